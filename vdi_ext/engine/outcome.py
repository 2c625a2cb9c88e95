"""What BACKUP and RESTORE have in common: how they end, and what neither does for a replay."""

from __future__ import annotations

from dataclasses import dataclass

from ..mtf import Lsn
from .failures import Failure
from .messages import message
from .tsql import Statement


@dataclass(frozen=True)
class Outcome:
    """How the work of a statement ended that ended well.

    Parameters
    ----------
    pages : int
        Of all files together.
    files : tuple of (str, int)
        Logical name and pages of each.
    lsns : tuple of Lsn
        First and last.
    """

    pages: int
    files: tuple[tuple[str, int], ...]
    lsns: tuple[Lsn, Lsn]


def refuse_checksum(statement: Statement) -> None:
    """The bytes of a replay are what they are: neither option could be honoured. Raises `Failure`."""
    if statement.checksum is not None:
        raise Failure(None, message(3032, "checksum" if statement.checksum else "no_checksum"))
