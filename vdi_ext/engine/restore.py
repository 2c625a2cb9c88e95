"""RESTORE: the families of a backup, checked and put into the database."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..mtf import EXTENT_PAGES, PAGE_SIZE, FamilyInfo, MtfError
from ..mtf.pages import Pages
from .backup import LSNS
from .database import DatabaseError, PageDamage, PagedDatabase, Target
from .failures import Failure, bare
from .messages import message
from .outcome import Outcome, refuse_checksum
from .replay import Replay, ReplayDifference
from .stripes import ReplayReturn, RestoreStripes
from .tsql import Statement

if TYPE_CHECKING:
    from .execution import Execution

MOST_PAGES = 0xFFFFFFF8  # that 32 bits can number, in whole extents


def restore(execution: Execution) -> Outcome:
    """Execute a RESTORE DATABASE. Raises `Failure`, `DatabaseError`."""
    database = execution.database
    if isinstance(database, Replay):
        return _take_files(execution, database)
    return _take_pages(execution, database)


def _take_files(execution: Execution, database: Replay) -> Outcome:
    statement, devices = execution.statement, execution.devices
    refuse_checksum(statement)
    target = database.target(statement.devices, replace=statement.replace)
    try:
        devices.read(ReplayReturn(target, devices.transfer_size))
        target.finish()
    except ReplayDifference as error:
        target.abandon()
        raise Failure(bare(error), message(3189)) from None
    except BaseException:
        target.abandon()
        raise
    return Outcome(-(-execution.moved // PAGE_SIZE), (), LSNS)


def _take_pages(execution: Execution, database: PagedDatabase) -> Outcome:
    statement, devices = execution.statement, execution.devices
    plan = _RestorePlan(
        execution.name, database, statement, lambda pages: execution.expect(pages * PAGE_SIZE)
    )
    try:
        devices.read(RestoreStripes(len(statement.devices), devices.block_size, plan.family, plan.accept))
        plan.finish()
    except BaseException as error:
        plan.abandon()
        if isinstance(error, PageDamage):
            raise execution.explainer.damage(error) from None
        raise
    return Outcome(plan.pages, plan.files, LSNS)


class _RestorePlan:
    """What a restore learns from the first family, and whether the others belong to it."""

    def __init__(
        self, name: str, database: PagedDatabase, statement: Statement, total: Callable[[int], None]
    ) -> None:
        self._name = name
        self._database = database
        self._statement = statement
        self._total = total
        self._target: Target | None = None
        self._families: dict[int, str] = {}
        self._first: FamilyInfo | None = None
        self.pages = 0
        self.files: tuple[tuple[str, int], ...] = ()

    def family(self, number: int, info: FamilyInfo) -> None:
        device, count = self._statement.devices[number], len(self._statement.devices)
        if info.families > count:
            raise DatabaseError(3132, info.families, count)
        if info.families < count:
            raise DatabaseError(3231, device, info.families, count)
        if info.family in self._families:
            raise DatabaseError(3227, device, info.family, self._families[info.family])
        self._families[info.family] = device
        if self._first is None:
            self._begin(info)
            return
        first = self._first
        if (info.media_guid, info.set_guid, info.pages) != (first.media_guid, first.set_guid, first.pages):
            raise DatabaseError(3258, device)

    def _begin(self, info: FamilyInfo) -> None:
        if info.snapshot:
            raise DatabaseError(3135, 1, "BACKUP DATABASE WITH SNAPSHOT")
        if self._statement.checksum and not info.checksum:
            raise DatabaseError(3187)
        if not 0 < info.pages <= MOST_PAGES or info.pages % EXTENT_PAGES:
            raise MtfError(f"the backup announces {info.pages} pages, which are no whole extents or too many")
        self._first = info
        self.pages = info.pages
        self.files = tuple((name, pages) for _, name, pages in info.files)
        self._total(info.pages)
        self._target = self._database.target(self._name, info.pages, replace=self._statement.replace)

    def accept(self, pages: Pages) -> None:
        assert self._target is not None  # pages come after the first family's beginning
        self._target.accept(pages)

    def finish(self) -> None:
        assert self._target is not None
        self._target.finish()

    def abandon(self) -> None:
        if self._target is not None:
            self._target.abandon()
