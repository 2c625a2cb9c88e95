"""One statement, from its text to its result: plan, device set, messages."""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, NoReturn

from ..constants import CommandCode, CompletionCode, Feature
from ..errors import VDAbortError, VDError, VDInvalidError, VDMemoryError
from ..mtf import (
    EXTENT_PAGES,
    PAGE_SIZE,
    BackupSet,
    BlockSizeError,
    DatabaseFile,
    FamilyInfo,
    MediaSet,
    MtfError,
    NotMtfError,
    TruncatedError,
)
from ..mtf.pages import Pages
from ..server import ServerDevice, ServerDeviceSet
from .database import DATA_FILE, DatabaseError, PageDamage, PagedDatabase, Target
from .databases import Database
from .messages import Message, SqlError, message, os_error
from .replay import Replay, ReplayDifference
from .stripes import BackupStripes, ReplayReturn, ReplayStreams, RestoreStripes
from .transfer import SMALL_BUFFER, Consumer, Producer, Transfer, TransferError
from .tsql import Statement, parse

if TYPE_CHECKING:
    from .server import Engine

DEFAULT_BLOCK_SIZE = 512
DEFAULT_TRANSFER_SIZE = 1 << 20
DEFAULT_BUFFERS = 4  # at least; two for each of many devices
ALIGNMENT = 4096  # bytes; what O_DIRECT wants
MOST_PAGES = 0xFFFFFFF8  # that 32 bits can number, in whole extents
LSNS = ((1, 1, 1), (1, 2, 1))  # no database here has a log

# Pipe-like and disk-like devices; what the other bits offer is never asked for.
_SUPPORTED = (
    Feature.REMOVABLE | Feature.RANDOM_ACCESS | Feature.DISCARD | Feature.SNAPSHOT_PREPARE | Feature.REQUEST_COMPLETE
    | Feature.LATCH_STATS
)  # fmt: skip
_FILE_NOT_FOUND = 0x80070002  # what SQL Server prints where the interface says VD_E_INVALID (section 12.4)

# Routine and failure as the error log names them (section 12.4). For Complete no published text is known.
_ROUTINES = {
    "write": ("BackupIoRequest::ReportIoError", "write"),
    "read": ("BackupIoRequest::ReportIoError", "read"),
    "Open": ("BackupVirtualDeviceSet::Initialize", "Open"),
    "AllocateBuffer": ("BackupVirtualDeviceSet::AllocateBuffer", ""),
    "Flush": ("BackupVirtualDeviceFile::RequestDurableMedia", "Flush"),
    "Complete": ("BackupVirtualDeviceFile::RequestComplete", "Complete"),
    "ClearError": ("BackupVirtualDeviceFile::ClearError", ""),
}

OnMessage = Callable[[Message], object]

log = logging.getLogger("vdi_ext.engine")


@dataclass(frozen=True)
class Result:
    """How a statement ended that ended well.

    Parameters
    ----------
    messages : tuple of Message
        In their order; the last one is 3014.
    pages : int
    seconds : float
    """

    messages: tuple[Message, ...]
    pages: int
    seconds: float


class _Failure(Exception):  # messages for the driver on their way out
    def __init__(self, cause: BaseException | None, *messages: Message) -> None:
        super().__init__(*messages)
        self.messages = messages
        self.cause = cause


class Execution:
    """One statement that is being executed."""

    def __init__(self, engine: Engine, sql: str, on_message: OnMessage | None) -> None:
        self._engine = engine
        self._sql = sql
        self._on_message = on_message
        self._messages: list[Message] = []
        self._lock = threading.Lock()
        self._cancelled = False
        self._set: ServerDeviceSet | None = None
        self._moved = 0  # bytes of the database
        self._total = 0
        self._told = 0  # percent

    def cancel(self) -> None:
        """End it. Any thread."""
        with self._lock:
            self._cancelled = True
            device_set = self._set
        if device_set is not None:
            with contextlib.suppress(VDError):  # it ended by itself meanwhile
                device_set.signal_abort("the statement was cancelled")

    def run(self) -> Result:
        """Execute it. Raises `SqlError`."""
        started = time.monotonic()
        try:
            self._statement = statement = parse(self._sql)
        except SqlError as error:
            self._tell(*error.messages)
            raise
        try:
            self._name, database = self._engine.find(statement.database)
            with self._engine.using(self._name, alone=statement.verb == "RESTORE"):
                act = self._backup if statement.verb == "BACKUP" else self._restore
                pages, files = act(database)
        except _Failure as error:
            failure = error
        except DatabaseError as error:
            failure = _Failure(_bare(error.__cause__), message(error.number, *error.args[1:]))
        else:
            seconds = time.monotonic() - started
            self._succeeded(pages, files, seconds)
            return Result(tuple(self._messages), pages, seconds)
        # Outside of the handler: an exception's frames hold views of the shared buffers, and while those live the set
        # stays mapped. What the caller gets must hold none.
        cause, messages = failure.cause, failure.messages
        del failure
        self._failed(cause, messages)

    # ---- messages

    def _succeeded(self, pages: int, files: tuple[tuple[str, int], ...], seconds: float) -> None:
        statement, name = self._statement, self._name
        if statement.stats is not None:
            self._percent(100)
        for file, count in files:
            self._tell(message(4035, count, name, file, 1))
        took = max(1, round(seconds * 1000))
        rate = pages * PAGE_SIZE * 1_000_000 // (took << 20)  # thousandths of a MiB a second
        spoken = (took // 1000, took % 1000, rate // 1000, rate % 1000)
        self._tell(message(3014, statement.operation, pages, *spoken))
        devices = ", ".join(f"'{device}'" for device in statement.devices)
        where = f"FILE=1, TYPE=VIRTUAL_DEVICE: {{{devices}}}"
        now = datetime.now().strftime("%Y/%m/%d(%H:%M:%S)")
        lsns = [":".join(map(str, lsn)) for lsn in LSNS]
        values: tuple[object, ...] = (name, now, pages, *lsns) if statement.verb == "BACKUP" else (name, now, *lsns)
        number = 18264 if statement.verb == "BACKUP" else 18267
        self._engine.to_log(message(number, *values, len(statement.devices), where))

    def _failed(self, cause: BaseException | None, messages: tuple[Message, ...]) -> NoReturn:
        if cause is not None:
            log.info("%s fails: %s", self._statement.operation, cause)
        self._tell(*messages, message(3013, self._statement.operation))
        if self._statement.verb == "BACKUP":
            self._engine.to_log(message(3041, f"BACKUP DATABASE {self._statement.database}"))
        raise SqlError(tuple(self._messages)) from cause

    def _tell(self, *messages: Message) -> None:
        for entry in messages:
            self._messages.append(entry)
            if self._on_message is not None:
                self._on_message(entry)

    def _progress(self, count: int) -> None:
        self._moved += count
        if self._statement.stats is not None and self._total:
            self._percent(min(100, self._moved * 100 // self._total))

    def _percent(self, percent: int) -> None:
        """The highest multiple of STATS that was reached, if it was not told yet; and 100."""
        step = self._statement.stats or 100
        reached = 100 if percent == 100 else percent // step * step
        if reached > self._told:
            self._told = reached
            self._tell(message(3211, reached))

    def _log_io(self, what: str, device: str, code: int) -> None:
        self._engine.to_log(message(18210, *_ROUTINES[what], device, os_error(code)))

    # ---- backup

    def _backup(self, database: Database) -> tuple[int, tuple[tuple[str, int], ...]]:
        statement, name = self._statement, self._name
        database.check(name)
        with contextlib.ExitStack() as stack:
            if isinstance(database, Replay):
                self._refuse_checksum()
                source = database.source(statement.devices, self._block_size)
                stack.enter_context(contextlib.closing(source))
                self._total = sum(source.sizes)
                self._run(lambda: ReplayStreams(source, self._transfer_size), None)
                return -(-self._total // PAGE_SIZE), ()
            files: list[DatabaseFile] = []

            def streams() -> BackupStripes:
                # Once the client waits for nothing else: copying may take long.
                snapshot = stack.enter_context(contextlib.closing(database.snapshot(name, self._check)))
                files.extend(database.files(name, snapshot.pages))
                self._total = snapshot.pages * PAGE_SIZE
                number = uuid.uuid4()
                media = MediaSet(number.bytes_le, len(statement.devices), self._block_size, number.time_low)
                now = datetime.now()
                backup = BackupSet(
                    uuid.uuid4().bytes_le, name, self._engine.server_name, socket.gethostname(), _user(),
                    tuple(files), now, now, bool(statement.checksum), uuid.uuid4().bytes_le, *LSNS,
                )  # fmt: skip
                return BackupStripes(snapshot, media, backup, self._transfer_size, SMALL_BUFFER)

            self._run(streams, None)
        return sum(file.pages for file in files), tuple((file.name, file.pages) for file in files)

    def _check(self) -> None:
        """Whether to go on with what is not a transfer."""
        assert self._set is not None
        self._set.get_configuration()  # raises after an abort, also by `cancel`

    # ---- restore

    def _restore(self, database: Database) -> tuple[int, tuple[tuple[str, int], ...]]:
        statement = self._statement
        if isinstance(database, Replay):
            self._refuse_checksum()
            target = database.target(statement.devices, replace=statement.replace)
            try:
                self._run(None, ReplayReturn(target, self._transfer_size))
                target.finish()
            except ReplayDifference as error:
                target.abandon()
                raise _Failure(_bare(error), message(3189)) from None
            except BaseException:
                target.abandon()
                raise
            return -(-self._moved // PAGE_SIZE), ()
        plan = _RestorePlan(self._name, database, statement, self._plan_total)
        try:
            self._run(None, RestoreStripes(len(statement.devices), self._block_size, plan.family, plan.accept))
            plan.finish()
        except BaseException as error:
            plan.abandon()
            if isinstance(error, PageDamage):
                raise self._page_damage(error) from None
            raise
        return plan.pages, plan.files

    def _plan_total(self, pages: int) -> None:
        self._total = pages * PAGE_SIZE

    def _refuse_checksum(self) -> None:
        """The bytes of a replay are what they are: neither option could be honoured."""
        if self._statement.checksum is not None:
            word = "checksum" if self._statement.checksum else "no_checksum"
            raise _Failure(None, message(3032, word))

    def _page_damage(self, error: PageDamage) -> _Failure:
        return _Failure(_bare(error), message(3183, DATA_FILE, error.page_id, self._name))

    # ---- the device set

    @property
    def _block_size(self) -> int:
        return self._statement.block_size or DEFAULT_BLOCK_SIZE

    @property
    def _transfer_size(self) -> int:
        return self._statement.max_transfer_size or DEFAULT_TRANSFER_SIZE

    def _run(self, streams: Callable[[], Producer] | None, consumer: Consumer | None) -> None:
        """Open the set, move the data, and end it in the way that fits. Raises `_Failure`."""
        device_set = self._open()
        # An unexpected exception leaves through here: it aborts, and the native Close waits for the last view.
        # What Close itself could say is known by then.
        with contextlib.suppress(VDError), device_set:
            with self._lock:
                self._set = device_set
            try:
                failure = self._drive(device_set, streams, consumer)
            finally:
                with self._lock:
                    self._set = None
        if failure is not None:
            raise failure

    def _drive(
        self, device_set: ServerDeviceSet, streams: Callable[[], Producer] | None, consumer: Consumer | None
    ) -> _Failure | None:
        """Everything between Open and Close; returns what failed."""
        devices: list[ServerDevice] = []
        failure = None
        try:
            if self._cancelled:
                raise _Failure(None, message(3204))
            self._configure(device_set, streams is not None)
            for name in self._statement.devices:
                devices.append(device_set.open_device(name))
            try:
                self._move(device_set, devices, streams, consumer)
            except (TransferError, MtfError, PageDamage, ReplayDifference, DatabaseError) as error:
                failure = self._explain(error, devices, consumer)
                if streams is not None and not isinstance(error, TransferError):
                    raise failure from None  # our own failure, with commands in flight
                # Nothing is in flight: the client sees its devices closed, and learns the rest from the statement.
            for device in devices:
                with contextlib.suppress(VDError) if failure is not None else contextlib.nullcontext():
                    device.close_device()
        except _Failure as error:
            failure = error
            _abort(device_set, str(error.messages[0].text))
        except VDError as error:
            failure = failure or self._explain(error, devices, consumer)
            _abort(device_set, str(error))
        return failure

    def _open(self) -> ServerDeviceSet:
        name = self._statement.devices[0]
        try:
            return ServerDeviceSet.open(name, instance=self._engine.instance, provider=self._engine.provider)  # type: ignore[arg-type]
        except VDError as error:
            code = _FILE_NOT_FOUND if isinstance(error, VDInvalidError) else error.code
            self._log_io("Open", name, code)
            raise _Failure(_bare(error), message(3201, name, os_error(code), state=7)) from None

    def _configure(self, device_set: ServerDeviceSet, writing: bool) -> None:
        """Decide from the statement and what the client asked for (sections 4.2 and 4.3)."""
        statement, asked = self._statement, device_set.get_configuration()
        if asked.device_count != len(statement.devices) or asked.features & ~_SUPPORTED:
            raise _Failure(None, message(3261))
        self._complete = writing and bool(asked.features & Feature.REQUEST_COMPLETE)
        self._random_access = bool(asked.features & Feature.RANDOM_ACCESS)
        features = asked.features | (Feature.WRITE_MEDIA if writing else Feature.READ_MEDIA)
        if self._complete:
            features |= Feature.COMPLETE_ENABLED
        alignment = max(ALIGNMENT, self._block_size, asked.alignment)
        device_set.begin_configuration(features, self._block_size, alignment, self._transfer_size)
        self._buffers = statement.buffer_count or max(DEFAULT_BUFFERS, 2 * len(statement.devices))
        device_set.request_buffers(self._transfer_size, 0, self._buffers)
        device_set.request_buffers(SMALL_BUFFER, 0, len(statement.devices))
        device_set.end_configuration()

    def _move(
        self,
        device_set: ServerDeviceSet,
        devices: list[ServerDevice],
        streams: Callable[[], Producer] | None,
        consumer: Consumer | None,
    ) -> None:
        transfer = Transfer(
            device_set,
            devices,
            buffers=self._buffers,
            transfer_size=self._transfer_size,
            block_size=self._block_size,
            random_access=self._random_access,
            progress=self._progress,
        )
        try:
            if streams is not None:
                last = (CommandCode.FLUSH, CommandCode.COMPLETE) if self._complete else (CommandCode.FLUSH,)
                transfer.write(streams(), last)
            elif consumer is not None:
                transfer.read(consumer)
        finally:
            transfer.release()

    # ---- what went wrong

    def _explain(self, error: Exception, devices: list[ServerDevice], consumer: Consumer | None) -> _Failure:
        if isinstance(error, TransferError):
            return self._transfer_failure(error)
        if isinstance(error, VDAbortError):
            return self._abort_failure(error, devices)
        if isinstance(error, VDMemoryError):
            self._log_io("AllocateBuffer", self._statement.devices[0], error.code)
            return _Failure(_bare(error), message(701))
        if isinstance(error, VDError):
            self._log_io("Open", self._statement.devices[0], error.code)
            return _Failure(_bare(error), message(3201, self._statement.devices[0], os_error(error.code), state=6))
        if isinstance(error, DatabaseError):
            return _Failure(_bare(error.__cause__), message(error.number, *error.args[1:]))
        if isinstance(error, PageDamage):
            return self._page_damage(error)
        if isinstance(error, MtfError) and isinstance(consumer, RestoreStripes):
            return self._stream_failure(error, consumer)
        return _Failure(_bare(error), message(3189))

    def _transfer_failure(self, error: TransferError) -> _Failure:
        self._log_io(error.what, error.device, error.code)
        if error.what == "write" and error.code == CompletionCode.SUCCESS:
            return _Failure(_bare(error), message(3222, error.device, error.done, error.size))
        number = 3203 if error.what in ("read", "ClearError") else 3202
        return _Failure(_bare(error), message(number, error.device, os_error(error.code)))

    def _abort_failure(self, error: VDAbortError, devices: list[ServerDevice]) -> _Failure:
        aborted = int(CompletionCode.OPERATION_ABORTED)
        writing = self._statement.verb == "BACKUP"
        # SQL Server still tries to clear and to flush, and reports that both fail.
        for device in devices:
            for what in ("write", "Flush", "ClearError") if writing else ("read", "ClearError"):
                self._log_io(what, device.name, aborted)
        if self._cancelled:
            return _Failure(_bare(error), message(3204))
        name = self._statement.devices[0]
        if not devices:
            self._log_io("Open", name, aborted)
            return _Failure(_bare(error), message(3201, name, os_error(aborted), state=6))
        return _Failure(_bare(error), message(3202 if writing else 3203, name, os_error(aborted)))

    def _stream_failure(self, error: MtfError, stripes: RestoreStripes) -> _Failure:
        device = self._statement.devices[stripes.current]
        reader = stripes.readers[stripes.current]
        if isinstance(error, BlockSizeError):
            problem = message(3284, device, error.found)
        elif isinstance(error, NotMtfError):
            problem = message(3242, device)
        elif isinstance(error, TruncatedError):
            cut = message(3256, device) if reader.started else message(3208)
            problem = message(3254, device) if reader.empty else cut
        else:
            problem = message(3189) if reader.started else message(3241, device)
        return _Failure(_bare(error), problem)


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


def _abort(device_set: ServerDeviceSet, reason: str) -> None:
    with contextlib.suppress(VDError):  # it may be aborted already
        device_set.signal_abort(reason)


def _bare(error: BaseException | None) -> BaseException | None:
    """The exception without frames, which would keep views of the shared buffers."""
    part = error
    while part is not None:
        part.__traceback__ = None
        part = part.__cause__ or part.__context__
    return error


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a user without a name
        return str(os.geteuid())
