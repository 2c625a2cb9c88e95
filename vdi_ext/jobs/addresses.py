"""Addresses of databases, as far as a job must understand them before a server does."""

import os
import re
from dataclasses import dataclass

from .common import ArgumentError

_UNITS = {"": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}


@dataclass(frozen=True)
class Described:
    """What an address says.

    Attributes
    ----------
    address : str
    database : str
        A name for the statement.
    size : int or None
        Bytes that a backup is expected to take; None: not known.
    devices : int or None
        The only number of devices that fits; None: any.
    """

    address: str
    database: str
    size: int | None = None
    devices: int | None = None

    def check_devices(self, count: int) -> None:
        if self.devices is not None and count != self.devices:
            raise ArgumentError(f"{self.address} is {self.devices} files, one per device, not {count} devices")


def describe(address: str, *, reading: bool) -> Described:
    """Take an address apart.

    Parameters
    ----------
    address : str
        ``sqlite:PATH``, ``replay:PATH[,PATH...]`` or ``synthetic:SIZE[@SEED]``.
    reading : bool
        It is the source: its files must be there.

    Raises
    ------
    ArgumentError
        No such kind of database, or no such file.
    """
    kind, colon, rest = address.partition(":")
    if not colon or not rest:
        raise ArgumentError(f"{address!r} is no address: use sqlite:PATH, replay:PATH[,PATH...], synthetic:SIZE[@N]")
    if kind == "sqlite":
        return Described(address, _stem(rest), _size_of([rest]) if reading else None)
    if kind == "replay":
        paths = rest.split(",")
        return Described(address, _stem(paths[0]), _size_of(paths) if reading else None, len(paths))
    if kind == "synthetic":
        return Described(address, "synthetic", _synthetic_size(address, rest))
    raise ArgumentError(f"{address!r}: {kind!r} is no kind of database: use sqlite, replay or synthetic")


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0] or "database"


def _size_of(paths: list[str]) -> int:
    try:
        sizes = [os.stat(path).st_size for path in paths]
    except OSError as error:
        raise ArgumentError(f"{error.filename}: {error.strerror}") from None
    return sum(sizes)


def _synthetic_size(address: str, rest: str) -> int:
    match = re.fullmatch(r"(\d+) ?([KMGT]iB|)(?:@\d+)?", rest, re.IGNORECASE)
    if not match:
        raise ArgumentError(f"{address!r}: give a size and, if wanted, a seed, as in synthetic:10GiB@7")
    return int(match[1]) * _UNITS[match[2].lower()]
