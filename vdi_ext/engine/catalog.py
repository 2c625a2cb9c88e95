"""The databases of a server: what they are, in which state, and where their log and differential chains stand."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from ..mtf import EXTENT_PAGES
from .database import DatabaseError, Versions
from .databases import Database
from .log import CHANGE, TransactionLog
from .replay import Replay
from .sqlite import Sqlite
from .synthetic import RECOVERY_MODELS, Synthetic

ONLINE, RESTORING, RECOVERING = "ONLINE", "RESTORING", "RECOVERING"
FIRST_USER_DATABASE = 5  # number of it

# The databases that every server has; a mapping of the caller's may name others in their places.
_SYSTEM: tuple[tuple[str, Database], ...] = (
    ("master", Synthetic(4 << 20, 1)),
    ("tempdb", Synthetic(8 << 20, 2)),
    ("model", Synthetic(8 << 20, 3, "FULL")),
    ("msdb", Synthetic(16 << 20, 4)),
)


@dataclass(frozen=True)
class Base:
    """A full backup that later ones build on.

    Parameters
    ----------
    number : int
        Of its checkpoint's log record.
    guid : bytes
        Of the backup set.
    """

    number: int
    guid: bytes


@dataclass(frozen=True)
class Fork:
    """A recovery fork: the log from a record on, until the database is recovered to an earlier point.

    Parameters
    ----------
    guid : bytes
    start : int
        Number of its first log record.
    """

    guid: bytes
    start: int


@dataclass(frozen=True)
class Redo:
    """How far a database that is being restored was rolled forward.

    Parameters
    ----------
    number : int
        Of the log record that comes next.
    time : datetime
        That it was rolled forward to at least.
    base : Base or None
        The full backup that it began with.
    forks : tuple of Fork
        The recovery path up to here.
    """

    number: int
    time: datetime
    base: Base | None
    forks: tuple[Fork, ...]


@dataclass(frozen=True)
class DatabaseInfo:
    """A row of sys.databases.

    Parameters
    ----------
    id : int
    name : str
    created : datetime
    state : str
        ``"ONLINE"``, ``"RESTORING"`` or ``"RECOVERING"``.
    is_in_standby : bool
        Restored WITH STANDBY.
    recovery_model : str
        ``"SIMPLE"``, ``"FULL"`` or ``"BULK_LOGGED"``.
    family_guid, recovery_fork : UUID
    path : str
        Of its data file, or its address.
    has_log_file : bool
        Not of SQLite, which has one file.
    """

    id: int
    name: str
    created: datetime
    state: str
    is_in_standby: bool
    recovery_model: str
    family_guid: uuid.UUID
    recovery_fork: uuid.UUID
    path: str
    has_log_file: bool = True


@dataclass
class Entry:
    """One database. Its lock is for everything that a statement and a change could both touch."""

    id: int
    name: str
    database: Database
    created: datetime
    recovery_model: str = "SIMPLE"
    state: str = ONLINE
    standby: str | None = None  # path of the undo file
    family_guid: bytes = b""
    binding_guid: bytes = b""
    forks: tuple[Fork, ...] = ()
    log: TransactionLog = field(default_factory=TransactionLog)
    versions: Versions | None = None  # of the extents of a synthetic database
    base: Base | None = None  # for differentials
    chain: int | None = None  # number of the record that the next log backup begins with; None: no chain
    begins_chain: bool = False  # the next log backup is its first
    redo: Redo | None = None  # while it is being restored
    logical_name: str = ""  # of the data file; it stays when the database is restored under another name
    paths: Mapping[str, str] = field(default_factory=dict)  # of files that RESTORE moved, by logical name
    lock: threading.RLock = field(default_factory=threading.RLock)
    _freezes: int = 0
    _thawed: threading.Event = field(default_factory=threading.Event)

    @property
    def info(self) -> DatabaseInfo:
        with self.lock:
            fork = uuid.UUID(bytes_le=self.forks[-1].guid)
            return DatabaseInfo(
                self.id, self.name, self.created, self.state, self.standby is not None, self.recovery_model,
                uuid.UUID(bytes_le=self.family_guid), fork, address_of(self.database),
                not isinstance(self.database, Sqlite),
            )  # fmt: skip

    def path(self, name: str, otherwise: str) -> str:
        """Where a file lies, by its logical name."""
        return self.paths.get(name, otherwise)

    def freeze(self) -> None:
        """Let changes wait until `thaw` was called as often."""
        with self.lock:
            self._freezes += 1
            self._thawed.clear()

    def thaw(self) -> None:
        with self.lock:
            self._freezes -= 1
            if not self._freezes:
                self._thawed.set()

    def change(self, page: int, pages: int, time: datetime) -> int:
        """Change extents; returns the number of the log record that did it. Raises `DatabaseError`, `ValueError`."""
        while True:
            with self.lock:
                if not self._freezes:
                    return self._change(page, pages, time)
            self._thawed.wait()

    def _change(self, page: int, pages: int, time: datetime) -> int:
        with self.lock:
            if self.versions is None:
                raise ValueError(f"{self.name} is no synthetic database")
            if self.state != ONLINE or self.standby is not None:
                raise DatabaseError(927, self.name)
            first, end = page // EXTENT_PAGES, -(-(page + pages) // EXTENT_PAGES)
            if not 0 <= first < end <= len(self.versions):
                raise ValueError(f"pages {page} to {page + pages} are none of {self.name}")
            record = self.log.append(CHANGE, time, first, end - first)
            if self.recovery_model == "SIMPLE":
                self.log.truncate(self.log.next)
            self.versions[first:end] = record.number
            return record.number

    def set_recovery_model(self, model: str) -> None:
        """Switch it; a log chain ends with SIMPLE and begins with the next full backup."""
        if model not in RECOVERY_MODELS:
            raise ValueError(f"{model!r} is no recovery model")
        if model != "SIMPLE" and isinstance(self.database, Sqlite):
            # Its changes are in no log here: backups of one would succeed and carry nothing.
            raise DatabaseError(5058, "RECOVERY", self.name)
        with self.lock:
            self.recovery_model = model
            if model == "SIMPLE":
                self.chain = None
                self.log.truncate(self.log.next)

    def recover(self) -> None:
        """Bring it online where it was rolled forward to; a new recovery fork begins there."""
        with self.lock:
            redo = self.redo
            assert redo is not None
            self.log = TransactionLog(redo.number)
            self.forks = (*redo.forks, Fork(uuid.uuid4().bytes_le, redo.number))
            self.base = redo.base
            self.chain = redo.number if self.recovery_model != "SIMPLE" else None
            self.begins_chain = False
            self.binding_guid = uuid.uuid4().bytes_le
            self.state, self.standby, self.redo = ONLINE, None, None


def address_of(database: Database) -> str:
    """What `database_at` makes the database of; a path for one in files."""
    if isinstance(database, Synthetic):
        return database.address
    if isinstance(database, Replay):
        return ",".join(database.files or database.output)
    return database.path if isinstance(database, Sqlite) else type(database).__name__


def family_of(database: Database) -> bytes:
    """The GUID of what the database is: the same in every engine that is given the same one."""
    identity = database.identity if isinstance(database, Synthetic) else f"{type(database).__name__}:{id(database)}"
    if isinstance(database, Sqlite):
        identity = f"sqlite:{database.path}"
    return uuid.uuid5(uuid.NAMESPACE_URL, f"vdi_ext:{identity}").bytes_le


class Catalog:
    """The entries, by name without case. Any thread."""

    def __init__(self, databases: Mapping[str, Database], now: datetime) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        given = {name.casefold() for name in databases}
        for number, (name, database) in enumerate(_SYSTEM, 1):
            if name not in given:
                self.add(entry_of(number, name, database, now))
        for name, database in databases.items():
            self.add(entry_of(self.next_id(), name, database, now))

    def get(self, name: str) -> Entry | None:
        with self._lock:
            return self._entries.get(name.casefold())

    def add(self, entry: Entry) -> None:
        """Add it, or put it in the place of the one with its name."""
        with self._lock:
            self._entries[entry.name.casefold()] = entry

    def next_id(self) -> int:
        with self._lock:
            return max([FIRST_USER_DATABASE - 1, *(entry.id for entry in self._entries.values())]) + 1

    def __iter__(self) -> Iterator[Entry]:
        with self._lock:
            entries = list(self._entries.values())
        return iter(sorted(entries, key=lambda entry: entry.id))


def entry_of(number: int, name: str, database: Database, now: datetime) -> Entry:
    """A database that was never backed up."""
    entry = Entry(number, name, database, now, logical_name=name)
    entry.family_guid = family_of(database)
    entry.binding_guid = uuid.uuid4().bytes_le
    entry.forks = (Fork(entry.family_guid, 1),)
    if isinstance(database, Synthetic):
        entry.recovery_model = database.recovery_model
        entry.versions = database.unchanged()
    return entry


def path_through(forks: tuple[Fork, ...], first: int, last: int) -> tuple[Fork, ...]:
    """The forks that the log from record `first` up to `last` is of, the one that it goes on from included."""
    begun = [fork for fork in forks if fork.start < first] or list(forks[:1])
    later = [fork for fork in forks if first <= fork.start <= last and fork is not begun[-1]]
    return (replace(begun[-1], start=min(begun[-1].start, first)), *later)
