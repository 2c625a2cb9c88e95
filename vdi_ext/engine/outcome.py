"""What BACKUP and RESTORE have in common: how they end, and what neither does for a replay."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..mtf import Lsn
from .failures import Failure
from .messages import message
from .tsql import Statement
from .tsql.options import word_of


@dataclass(frozen=True)
class Outcome:
    """How the work of a statement ended that ended well.

    Parameters
    ----------
    pages : int
        Of all files together.
    files : tuple of (str, int)
        Logical name and pages of each that is reported.
    lsns : tuple of Lsn
        First and last.
    position : int
        Of the backup set on its medium.
    kind : str
        ``"D"``, ``"I"`` or ``"L"``, as in the stream.
    base_lsn : Lsn
        Of a differential: the full backup that it builds on.
    """

    pages: int
    files: tuple[tuple[str, int], ...]
    lsns: tuple[Lsn, Lsn]
    position: int = 1
    kind: str = "D"
    base_lsn: Lsn = (0, 0, 0)


_ALWAYS = frozenset({"verb", "database", "devices", "kind"})
_FOR_REPLAY = _ALWAYS | {
    "block_size", "buffer_count", "max_transfer_size", "stats", "copy_only", "format", "init", "skip", "rewind",
    "unload", "replace", "recovery",
}  # fmt: skip
_FOR_RECOVERY = _ALWAYS | {"recovery", "norecovery", "standby"}


def refuse_for_replay(statement: Statement) -> None:
    """The bytes of a replay are what they are: no option that would change them could be honoured. Raises `Failure`."""
    _refuse_others(statement, _FOR_REPLAY)


def refuse_for_recovery(statement: Statement) -> None:
    """Of no backup there is nothing to choose but the state it leaves. Raises `Failure`."""
    _refuse_others(statement, _FOR_RECOVERY)


def _refuse_others(statement: Statement, allowed: frozenset[str]) -> None:
    for field in fields(Statement):
        value = getattr(statement, field.name)
        if field.name not in allowed and value != field.default:
            raise Failure(None, message(3032, word_of(field.name, value)))
