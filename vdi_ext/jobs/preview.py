"""The statements that jobs would submit, for those who want to see them first. Nothing is asked, nothing is done."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from ..storage import StoredSet
from .addresses import describe_source, describe_target
from .common import ArgumentError, checked_devices
from .heads import kind_of
from .places import Address
from .restoring import stored_block_size
from .restoring_chain import chain_steps
from .server_address import is_server, parse_server_address
from .sql_text import placeholders
from .wishes import BackupWish, RestoreWish


def backup_text(source: Address, *, devices: int | None = None, database: str | None = None, **options: Any) -> str:
    """The statement of a `backup` with these options; ``{device}``, ``{device2}``, ... stand for the devices' names.

    Parameters
    ----------
    source, devices, database
        As for `backup`.
    options
        Its other options. Those that do not go into the statement are ignored.

    Raises
    ------
    ArgumentError
    """
    if is_server(source):
        name, fitting = _database(source, database), None
    else:
        described = describe_source(str(source))
        name, fitting = database or described.database, described.devices
    if options.get("checksum") is None:
        options["checksum"] = is_server(source)
    wish = BackupWish(**_only(BackupWish, options))
    return wish.text(name, placeholders(checked_devices(devices or fitting or 1)))


def restore_text(
    source: str | os.PathLike[str], target: Address, *, database: str | None = None, **options: Any
) -> str:
    """The statement of a `restore` with these options, as `backup_text` has it."""
    stored = StoredSet(os.fspath(source))
    if is_server(target):
        name = _database(target, database)
    else:
        name = database or describe_target(str(target), replace=bool(options.get("replace"))).database
    options["kind"] = options.get("kind") or kind_of(stored.path, stored.manifest)
    options["block_size"] = options.get("block_size") or stored_block_size(stored)
    wish = RestoreWish(**_only(RestoreWish, options))
    return wish.text(name, placeholders(len(stored.manifest.stripes)))


def chain_texts(
    sources: Sequence[str | os.PathLike[str]], target: Address, *, database: str | None = None, to: str | None = None,
    data_dir: str | None = None, stop_at: str | None = None, replace: bool = False, norecovery: bool = False,
    standby: str | None = None, moves: Mapping[str, str] | None = None, **options: Any,
) -> list[str]:  # fmt: skip
    """The statements of a `restore_chain` with these options, in their order, as `restore_text` has them."""
    chosen, _, steps = chain_steps(
        sources, target, database=database, to=to, data_dir=data_dir, stop_at=stop_at, replace=replace,
        norecovery=norecovery, standby=standby, moves=moves,
    )  # fmt: skip
    return [
        restore_text(link.path, target, **{**options, **step}) for link, step in zip(chosen, steps, strict=True)
    ]


def _database(address: Address, database: str | None) -> str:
    name = database or (None if callable(address) else parse_server_address(address).database)
    if not name:
        raise ArgumentError("which database? Add ?database=NAME to the address, or --database NAME")
    return name


def _only(wish: type, options: dict[str, Any]) -> dict[str, Any]:
    return {field.name: options[field.name] for field in fields(wish) if options.get(field.name) is not None}
