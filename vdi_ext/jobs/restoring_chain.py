"""Restore from several sets: a full backup, a differential on it, logs, up to a point in time or to the end."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..mtf import MtfError
from ..storage import StoredSet, VerificationError
from .chains import Link, links, plan, point_in_time
from .common import ArgumentError, Result
from .heads import files_of
from .passwords import Password, resolve
from .places import Address
from .restoring import restore
from .server_address import is_server, parse_server_address


def restore_chain(
    sources: Sequence[str | os.PathLike[str]],
    target: Address,
    *,
    database: str | None = None,
    to: str | None = None,
    data_dir: str | None = None,
    stop_at: str | None = None,
    replace: bool = False,
    norecovery: bool = False,
    standby: str | None = None,
    moves: Mapping[str, str] | None = None,
    verify_first: bool = False,
    password: Password | None = None,
    **options: Any,
) -> list[Result]:
    """Restore a database from as many sets as it takes.

    All of them are chosen, and with `verify_first` read, before the first statement. Should a later one fail, the
    database stays in the state RESTORING, and the error says which sets it has.

    Parameters
    ----------
    sources : sequence of path
        Sets, and directories of sets, in any order; those that are not needed are left out.
    target : str or callable
        As for `restore`.
    database : str, optional
        Whose sets are taken from directories, and the name in the statement where `to` is not given; by default from
        the address.
    to : str, optional
        Another name for the restored database.
    data_dir : str, optional
        A directory on the server, for all files of the database; they are named after it.
    stop_at : str, optional
        Point in time, ISO 8601 without a zone, in the server's time.
    replace, norecovery, standby, moves, verify_first, password, options
        As for `restore`; `replace` and `moves` go with the first statement, `norecovery` and `standby` with the last.

    Returns
    -------
    list of Result
        One for each set, in the order of the restore.

    Raises
    ------
    ChainError
        The sets do not lead there; nothing was begun.
    ArgumentError, VerificationError, StorageError, SQLError, VDError
        As for `restore`.
    """
    chosen, into, steps = chain_steps(
        sources, target, database=database, to=to, data_dir=data_dir, stop_at=stop_at, replace=replace,
        norecovery=norecovery, standby=standby, moves=moves,
    )  # fmt: skip
    if verify_first:
        for link in chosen:
            link.stored.verify()
    password = resolve(password)
    done: list[Result] = []
    for link, step in zip(chosen, steps, strict=True):
        try:
            done.append(restore(link.path, target, password=password, **step, **options))
        except BaseException as error:
            if done:
                error.add_note(f"{into} is left RESTORING, with {_list(chosen[: len(done)])}")
            raise
    return done


def chain_steps(
    sources: Sequence[str | os.PathLike[str]], target: Address, *, database: str | None, to: str | None,
    data_dir: str | None, stop_at: str | None, replace: bool, norecovery: bool, standby: str | None,
    moves: Mapping[str, str] | None,
) -> tuple[list[Link], str, list[dict[str, Any]]]:  # fmt: skip
    """The sets, the name of the database, and for each set what `restore` is asked for. As `restore_chain`."""
    name = database
    if name is None and isinstance(target, str) and is_server(target):
        name = parse_server_address(target).database
    point_in_time(stop_at)
    chosen = plan(links(sources, name), stop_at)
    into = to or name or chosen[0].head.database
    moved = moved_files(chosen[0].stored, into, data_dir) if data_dir else {}
    steps = []
    for link in chosen:
        first, last = link is chosen[0], link is chosen[-1]
        steps.append({
            "database": into, "kind": link.head.kind, "replace": replace and first,
            "moves": {**moved, **(moves or {})} if first else {}, "norecovery": norecovery or not last,
            "standby": standby if last else None, "stop_at": stop_at if link.head.kind == "log" else None,
        })  # fmt: skip
    return chosen, into, steps


def moved_files(stored: StoredSet, database: str, data_dir: str) -> dict[str, str]:
    """Where the files of a backup go, by their logical names: into one directory, named after the database.

    Raises
    ------
    ArgumentError
        The set does not tell its files.
    """
    try:
        files = files_of(stored.path, stored.manifest)
    except (MtfError, OSError, VerificationError) as error:
        raise ArgumentError(f"{stored.path} does not tell its files ({error}): name them with MOVE") from error
    separator = "\\" if "\\" in data_dir else "/"
    found: dict[str, str] = {}
    taken: set[str] = set()
    for file in files:
        usual = ".ldf" if file.group_id == 0 else ".mdf" if file.file_id == 1 else ".ndf"
        extension = os.path.splitext(file.path.replace("\\", "/"))[1] or usual
        stem = f"{database}_log" if file.group_id == 0 else database if file.file_id == 1 else f"{database}_{file.name}"
        safe = "".join("_" if character in '/\\:*?"<>|' or character < " " else character for character in stem)
        name = f"{safe}{extension}"
        if name.casefold() in taken:
            name = f"{safe}_{file.file_id}{extension}"
        taken.add(name.casefold())
        found[file.name] = data_dir.rstrip(separator) + separator + name
    return found


def _list(chosen: Sequence[Link]) -> str:
    return ", ".join(link.path for link in chosen)
