"""Backups of several databases, one after the other."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import VDError
from ..storage import StorageError
from .backing_up import backup
from .common import ArgumentError, Result
from .inquiries import databases, server_name
from .passwords import Password
from .places import Address
from .selectors import Skipped, select
from .server import Server
from .server_address import is_server
from .statements import SQLError
from .tokens import expand, has_token, tokens_of


@dataclass(frozen=True)
class Several:
    """What became of the databases that a selector means.

    Attributes
    ----------
    done : tuple of Result
    skipped : tuple of Skipped
        No backup was tried.
    failed : tuple of (str, Exception)
        Names, and how the backup failed.
    """

    done: tuple[Result, ...]
    skipped: tuple[Skipped, ...]
    failed: tuple[tuple[str, Exception], ...]


def backup_several(
    source: Address, target: str, selector: str, *, password: Password | None = None, **options: Any
) -> Several:
    """Back up the databases that a selector means, one after the other. One that fails does not keep the others.

    Parameters
    ----------
    source : str or callable
        A server, as for `backup`.
    target : str
        Path of the sets, with ``{database}`` in it; see `tokens.expand`.
    selector : str
        See `selectors.select`.
    options
        Others of `backup`.

    Raises
    ------
    ArgumentError
        Before anything is begun.
    SQLError
        The server can not be asked for its databases.
    """
    if not is_server(source):
        raise ArgumentError("only a server (mssql://) has several databases")
    if not has_token(target, "database"):
        raise ArgumentError(f"{target!r} is one name for several backups: put {{database}} into it")
    server = Server(source, password)
    kind = options.get("kind", "full")
    with contextlib.closing(server.open()) as session:
        name = server_name(session)
        chosen, skipped = select(selector, databases(session), kind)
    paths = [
        expand(target, tokens_of(database=database, kind=kind, server=name, instance=server.instance))
        for database in chosen
    ]
    done: list[Result] = []
    failed: list[tuple[str, Exception]] = []
    for database, path in zip(chosen, paths, strict=True):
        try:
            done.append(backup(source, Path(path), database=database, password=server.password, **options))
        except (SQLError, StorageError, VDError, OSError) as error:
            failed.append((database, error))
    return Several(tuple(done), tuple(skipped), tuple(failed))
