"""What a backup or a restore was asked for, as far as it goes into the statement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .common import ArgumentError
from .sql_text import OptionValue, filled, quoted_text, statement_text

#: Kind of a backup -> the object of the statement, and the option that makes it one.
KINDS = {"full": ("DATABASE", None), "differential": ("DATABASE", "DIFFERENTIAL"), "log": ("LOG", None)}


@dataclass(frozen=True, kw_only=True)
class _Wish:
    kind: str = "full"
    block_size: int | None = None
    buffer_count: int | None = None
    max_transfer_size: int | None = None
    checksum: bool = False
    stats: int | None = None
    norecovery: bool = False
    with_options: Sequence[str] = ()
    sql: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ArgumentError(f"kind must be one of {', '.join(KINDS)}, not {self.kind!r}")

    def _transfer(self) -> dict[str, OptionValue]:
        return {
            "BLOCKSIZE": self.block_size,
            "BUFFERCOUNT": self.buffer_count,
            "MAXTRANSFERSIZE": self.max_transfer_size,
            "CHECKSUM": self.checksum,
        }


@dataclass(frozen=True, kw_only=True)
class BackupWish(_Wish):
    """The options of `backup` that make its statement; see there.

    Raises
    ------
    ArgumentError
        They contradict each other.
    """

    copy_only: bool = False
    format: bool = False
    no_truncate: bool = False
    name: str | None = None
    description: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind != "log" and (self.norecovery or self.no_truncate):
            raise ArgumentError("NORECOVERY and NO_TRUNCATE are for backups of the log")
        if self.kind == "differential" and self.copy_only:
            raise ArgumentError("a differential backup can not be COPY_ONLY")

    def text(self, database: str, devices: Sequence[str]) -> str:
        """The statement, for devices of these names."""
        if self.sql is not None:
            return filled(self.sql, devices, "BACKUP")
        what, word = KINDS[self.kind]
        options: dict[str, OptionValue] = {word: True} if word else {}
        options |= self._transfer()
        options |= {
            "COPY_ONLY": self.copy_only,
            "FORMAT": self.format,
            "STATS": self.stats,
            "NAME": self.name,
            "DESCRIPTION": self.description,
            "NORECOVERY": self.norecovery,
            "NO_TRUNCATE": self.no_truncate,
        }
        return statement_text("BACKUP", database, devices, options, self.with_options, what)


@dataclass(frozen=True, kw_only=True)
class RestoreWish(_Wish):
    """The options of `restore` that make its statement; see there."""

    replace: bool = False
    standby: str | None = None
    stop_at: str | None = None
    moves: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norecovery and self.standby:
            raise ArgumentError("NORECOVERY leaves a database unreadable, STANDBY readable: choose one")

    def text(self, database: str, devices: Sequence[str]) -> str:
        """The statement, for devices of these names."""
        if self.sql is not None:
            return filled(self.sql, devices, "RESTORE")
        options = self._transfer()
        options |= {
            "REPLACE": self.replace,
            "STATS": self.stats,
            "NORECOVERY": self.norecovery,
            "STANDBY": self.standby,
            "STOPAT": self.stop_at,
        }
        moved = [f"MOVE {quoted_text(name)} TO {quoted_text(path)}" for name, path in self.moves.items()]
        what, _ = KINDS[self.kind]
        return statement_text("RESTORE", database, devices, options, [*moved, *self.with_options], what)
