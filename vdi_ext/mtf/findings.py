"""What a reader of media finds out: of the medium, of a backup set, and what is wrong with either."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from .configuration import Configuration


class MtfError(Exception):
    """The stream is not what it says: damaged, or of a form that is not understood."""


class NotMtfError(MtfError):
    """The stream does not begin as tape format does."""


class BlockSizeError(MtfError):
    """The stream was written with another block size.

    Parameters
    ----------
    found, expected : int
        Bytes.
    """

    def __init__(self, found: int, expected: int) -> None:
        super().__init__(f"written with a block size of {found} bytes and read with {expected}")
        self.found = found
        self.expected = expected


class TruncatedError(MtfError):
    """The stream ended before the backup set did."""


class ContinuationError(MtfError):
    """The stream is that of a volume which continues another.

    Parameters
    ----------
    sequence : int
        Of the volume.
    """

    def __init__(self, sequence: int) -> None:
        super().__init__(f"volume {sequence} of its family, which does not begin it")
        self.sequence = sequence


class NoSetError(MtfError):
    """The medium ends before the backup set that was asked for.

    Parameters
    ----------
    number : int
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"there is no backup set {number}")
        self.number = number


@dataclass(frozen=True)
class Label:
    """What a medium says of itself: TAPE and RAID."""

    name: str
    description: str
    software: str
    vendor: int
    written: datetime | None
    family_id: int
    sequence: int
    protected: bool  # by a password


@dataclass
class FamilyInfo:
    """What the beginning of a family says, and then that of the set that is being read."""

    media_guid: bytes = b""
    families: int = 0
    family: int = 0
    block_size: int = 0
    compressed: bool = False
    label: Label | None = None
    number: int = 0  # of the set on the medium
    set_guid: bytes = b""
    name: str = ""
    description: str = ""
    user: str = ""
    machine: str = ""
    attributes: int = 0  # of SSET
    database: str = ""
    server: str = ""
    checksum: bool = False
    snapshot: bool = False
    pages: int = 0  # in all families together
    files: list[tuple[int, str, int]] = field(default_factory=list)  # id, logical name, pages
    configuration: Configuration | None = None  # that of the end once it was read
