"""The database that RESTORE DATABASE makes of a full backup: which it is, where its files go, what it replaces."""

from __future__ import annotations

import os
from datetime import datetime
from typing import TYPE_CHECKING

from ..mtf import PAGE_SIZE, Configuration, FamilyInfo, MtfError
from .catalog import Entry, entry_of
from .database import DatabaseError, PagedDatabase, Target, Versions
from .messages import os_error
from .sqlite import Sqlite
from .synthetic import RECOVERY_MODELS, Synthetic

if TYPE_CHECKING:
    from .execution import Execution


class Creation:
    """What a full backup becomes.

    Parameters
    ----------
    execution : Execution
    entry : Entry or None
        The database that has the name already.
    info : FamilyInfo
        Of the first family.

    Raises
    ------
    DatabaseError, MtfError
    """

    def __init__(self, execution: Execution, entry: Entry | None, info: FamilyInfo) -> None:
        assert info.configuration is not None
        self._execution = execution
        self._entry = entry
        self._info = info
        self._found = info.configuration
        self._moves = checked_moves(execution.statement.moves, self._found)
        self.replaces = execution.statement.replace or (entry is not None and entry.redo is not None)
        if entry is not None and not execution.statement.replace:
            self._refuse_overwriting(entry)
        self.database = self._made()

    def target(self) -> Target:
        """Where the pages go."""
        size = next((file.size for file in self._found.files if file.group_id), 0)
        if size != self._info.pages * PAGE_SIZE:
            raise MtfError(f"a full backup of {self._info.pages} pages of a file of {size} bytes")
        return self.database.target(self._execution.name, self._info.pages, replace=self.replaces)

    def finish(self, versions: Versions | None) -> Entry:
        """All of it came: enter the database, with nothing said yet about its state.

        Parameters
        ----------
        versions : array or None
            Of the extents of a synthetic database.
        """
        catalog, found, old = self._execution.engine.catalog, self._found, self._entry
        number = old.id if old is not None else catalog.next_id()
        entry = entry_of(number, self._execution.name, self.database, datetime.now())
        if old is not None:
            entry.lock = old.lock  # who waits for it waits for its successor
        entry.family_guid = found.family_guid
        model = found.extra.get("recovery_model")
        entry.recovery_model = model if isinstance(model, str) and model in RECOVERY_MODELS else "SIMPLE"
        entry.logical_name = next(file.name for file in found.files if file.group_id)
        if versions is not None:
            entry.versions = versions
            entry.paths = self._moves
        catalog.add(entry)
        return entry

    # ---- checks

    def _refuse_overwriting(self, entry: Entry) -> None:
        """What WITH REPLACE leaves out."""
        synthetic = isinstance(entry.database, Synthetic)
        if synthetic and entry.family_guid != self._found.family_guid:
            raise DatabaseError(3154, entry.name)
        stop = self._execution.statement.stop_at
        if entry.redo is None and entry.chain is not None and entry.recovery_model != "SIMPLE" and stop is None:
            raise DatabaseError(3159, entry.name)

    def _made(self) -> PagedDatabase:
        """The database that the backup is of, where it is to be."""
        extra = self._found.extra
        if extra.get("kind") == "synthetic":
            return self._synthetic()
        if extra.get("kind") == "sqlite":
            return self._sqlite()
        raise MtfError("the backup is not one of the stand-in")

    def _synthetic(self) -> Synthetic:
        size, seed = self._found.extra.get("size"), self._found.extra.get("seed")
        if type(size) is not int or type(seed) is not int:
            raise MtfError("the backup does not say which synthetic database it is of")
        try:
            return Synthetic(size, seed, str(self._found.extra.get("recovery_model")))
        except ValueError as error:
            raise MtfError(str(error)) from error

    def _sqlite(self) -> Sqlite:
        data = next((file for file in self._found.files if file.group_id), None)
        if data is None:
            raise MtfError("the backup names no data file")
        old = self._entry.database if self._entry is not None else None
        if isinstance(old, Sqlite) and data.name not in self._moves:
            return old  # the file that the server was told of
        path = os.path.abspath(self._moves.get(data.name, data.path))
        if not os.path.isdir(os.path.dirname(path)):
            raise DatabaseError(5133, path, os_error(3), further=self._elsewhere(data.name, path))
        for other in self._execution.engine.catalog:
            if other is not self._entry and isinstance(other.database, Sqlite):
                if os.path.abspath(other.database.path) == path:
                    raise DatabaseError(1834, path, other.name, further=self._elsewhere(data.name, path))
        if os.path.exists(path) and os.path.getsize(path) and not self._execution.statement.replace:
            raise DatabaseError(3142, data.name, path)
        return Sqlite(path)

    @staticmethod
    def _elsewhere(name: str, path: str) -> tuple[DatabaseError, ...]:
        """What is said besides where a file cannot lie where it should."""
        return DatabaseError(3156, name, path), DatabaseError(3119)


def checked_moves(moves: tuple[tuple[str, str], ...], found: Configuration) -> dict[str, str]:
    """New paths by logical name, as the backup spells it. Raises `DatabaseError`."""
    names = {file.name.casefold(): file.name for file in found.files}
    checked: dict[str, str] = {}
    for name, path in moves:
        known = names.get(name.casefold())
        if known is None:
            raise DatabaseError(3234, name, found.database)
        if known in checked:
            raise DatabaseError(4353, name)
        checked[known] = path
    return checked
