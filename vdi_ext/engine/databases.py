"""The kinds of database, and their addresses."""

from __future__ import annotations

import re
from typing import TypeAlias

from .database import PagedDatabase
from .replay import Replay
from .sqlite import Sqlite
from .synthetic import RECOVERY_MODELS, Synthetic

Database: TypeAlias = PagedDatabase | Replay

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def database_at(address: str) -> Database:
    """Make a database from its address.

    Parameters
    ----------
    address : str
        ``sqlite:PATH``, ``replay:PATH[,PATH...]``, or ``synthetic:SIZE[:SEED[:MODEL]]``; a size is a number of bytes,
        or of powers of 1024 with K, M, G or T behind it, and iB behind that if wanted; a model is ``SIMPLE``, ``FULL``
        or ``BULK_LOGGED``.

    Raises
    ------
    ValueError
        It is none of these.
    """
    kind, _, rest = address.partition(":")
    if kind == "sqlite" and rest:
        return Sqlite(rest)
    if kind == "replay" and rest:
        return Replay(tuple(rest.split(",")))
    if kind == "synthetic":
        match = re.fullmatch(r"(\d+)([KMGT]?)(?:I?B)?(?::(\d+)(?::(\w+))?)?", rest.upper())
        if match and (match[4] or "SIMPLE") in RECOVERY_MODELS:
            return Synthetic(int(match[1]) << _UNITS[match[2]], int(match[3] or 0), match[4] or "SIMPLE")
    forms = "sqlite:PATH, replay:PATH[,PATH...] or synthetic:SIZE[:SEED[:MODEL]]"
    raise ValueError(f"{address!r} is no address of a database; it has one of the forms {forms}")
