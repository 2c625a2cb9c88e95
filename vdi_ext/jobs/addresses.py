"""Addresses of databases, as far as a job must understand them before a server does."""

import os
from dataclasses import dataclass

from .common import ArgumentError


@dataclass(frozen=True)
class Described:
    """What an address says.

    Attributes
    ----------
    address : str
    database : str
        A name for the statement.
    size : int or None
        Bytes that a backup is expected to take, of a source; None: not known.
    devices : int or None
        The only number of devices that fits; None: any.
    write : bool
        Files of a replay are to be written, of a target; else compared with.
    """

    address: str
    database: str
    size: int | None = None
    devices: int | None = None
    write: bool = False


def describe_source(address: str) -> Described:
    """What a backup of a database must know beforehand.

    Raises
    ------
    ArgumentError
        No such kind of database, or its files are not there.
    """
    kind, rest, database = _parse(address)
    if kind == "synthetic":
        return Described(address, "synthetic", database.size)
    paths = rest.split(",") if kind == "replay" else [rest]
    try:
        size = sum(os.stat(path).st_size for path in paths)
    except OSError as error:
        raise ArgumentError(f"{error.filename}: {error.strerror}") from None
    return Described(address, _stem(paths[0]), size, len(paths) if kind == "replay" else None)


def describe_target(address: str, *, replace: bool) -> Described:
    """What a restore into a database must know beforehand. Raises as `describe_source`."""
    kind, rest, _ = _parse(address)
    if kind == "synthetic":
        return Described(address, "synthetic")
    if kind == "sqlite":
        return Described(address, _stem(rest))
    paths = rest.split(",")
    missing = [path for path in paths if not os.path.exists(path)]
    if missing and len(missing) < len(paths) and not replace:
        raise ArgumentError(f"{missing[0]} is missing, others are there: name all or none of them, or use REPLACE")
    return Described(address, _stem(paths[0]), devices=len(paths), write=bool(missing) or replace)


def _parse(address: str) -> tuple:
    from ..engine import database_at

    try:
        database = database_at(address)
    except ValueError as error:
        raise ArgumentError(str(error)) from None
    return (*address.split(":", 1), database)


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0] or "database"
