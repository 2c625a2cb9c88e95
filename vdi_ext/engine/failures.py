"""How statements fail: what went wrong below, as the messages that the driver and the error log get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..constants import CompletionCode
from ..errors import VDAbortError, VDError, VDMemoryError
from ..mtf import BlockSizeError, ContinuationError, MtfError, NoSetError, NotMtfError, TruncatedError
from ..server import ServerDevice
from .database import DATA_FILE, DatabaseError, PageDamage
from .messages import Message, message, os_error
from .steps import TransferError
from .stripes import RestoreStripes
from .transfer import Consumer

if TYPE_CHECKING:
    from .server import Engine

# Routine and failure as the error log names them (section 12.4). For Complete and those of snapshots no
# published text is known.
_ROUTINES = {
    "write": ("BackupMedium::ReportIoError", "write"),
    "read": ("BackupMedium::ReportIoError", "read"),
    "Open": ("BackupVirtualDeviceSet::Initialize", "Open"),
    "AllocateBuffer": ("BackupVirtualDeviceSet::AllocateBuffer", ""),
    "Flush": ("BackupVirtualDeviceFile::RequestDurableMedia", "Flush"),
    "Complete": ("BackupVirtualDeviceFile::RequestComplete", "Complete"),
    "ClearError": ("BackupVirtualDeviceFile::ClearError", ""),
    "PrepareToFreeze": ("BackupVirtualDeviceFile::PrepareToFreeze", "PrepareToFreeze"),
    "Snapshot": ("BackupVirtualDeviceFile::TakeSnapshot", "Snapshot"),
    "MountSnapshot": ("BackupVirtualDeviceFile::MountSnapshot", "MountSnapshot"),
}


class Failure(Exception):
    """Messages for the driver on their way out.

    Parameters
    ----------
    cause : BaseException or None
        What went wrong below; without frames, see `bare`.
    messages : Message
    """

    def __init__(self, cause: BaseException | None, *messages: Message) -> None:
        super().__init__(*messages)
        self.messages = messages
        self.cause = cause


def bare(error: BaseException | None) -> BaseException | None:
    """The exception without frames, which would keep views of the shared buffers."""
    part = error
    while part is not None:
        part.__traceback__ = None
        part = part.__cause__ or part.__context__
    return error


def of_database(error: DatabaseError) -> Failure:
    """What a database or a plan refused."""
    entries = [message(one.number, *one.args[1:]) for one in (error, *error.further)]
    return Failure(bare(error.__cause__), *entries)


class Explainer:
    """Knows the statement's devices; logs failures of theirs as 18210.

    Parameters
    ----------
    engine : Engine
        Whose error log it is.
    names : sequence of str
        Of the devices.
    database : str
        As the statement names it, or the backup where that names none.
    writing : bool
    """

    def __init__(self, engine: Engine, names: Sequence[str], database: str, *, writing: bool) -> None:
        self._engine = engine
        self._names = names
        self.database = database
        self._writing = writing
        self.cancelled = False

    def log_io(self, what: str, device: str, code: int) -> None:
        routine = _ROUTINES.get(what, (f"BackupVirtualDeviceFile::{what}", what))
        self._engine.to_log(message(18210, *routine, device, os_error(code)))

    def open(self, error: VDError, code: int, state: int) -> Failure:
        """A device that cannot be opened."""
        self.log_io("Open", self._names[0], code)
        return Failure(bare(error), message(3201, self._names[0], os_error(code), state=state))

    def explain(self, error: Exception, devices: list[ServerDevice], consumer: Consumer | None = None) -> Failure:
        """What ended the work between Open and Close.

        Parameters
        ----------
        error : Exception
        devices : list of ServerDevice
            Open.
        consumer : Consumer, optional
            What read the streams.
        """
        if isinstance(error, TransferError):
            return self._transfer(error)
        if isinstance(error, VDAbortError):
            return self._abort(error, devices)
        if isinstance(error, VDMemoryError):
            self.log_io("AllocateBuffer", self._names[0], error.code)
            return Failure(bare(error), message(701))
        if isinstance(error, VDError):
            return self.open(error, error.code, 6)
        if isinstance(error, DatabaseError):
            return of_database(error)
        if isinstance(error, PageDamage):
            return self.damage(error)
        if isinstance(error, MtfError) and isinstance(consumer, RestoreStripes):
            return self._stream(error, consumer)
        return Failure(bare(error), message(3189))

    def damage(self, error: PageDamage) -> Failure:
        return Failure(bare(error), message(3183, DATA_FILE, error.page_id, self.database))

    def _transfer(self, error: TransferError) -> Failure:
        self.log_io(error.what, error.device, error.code)
        if error.what == "write" and error.code == CompletionCode.SUCCESS:
            return Failure(bare(error), message(3222, error.device, error.done, error.size))
        number = 3203 if error.what == "read" or not self._writing else 3202
        return Failure(bare(error), message(number, error.device, os_error(error.code)))

    def _abort(self, error: VDAbortError, devices: list[ServerDevice]) -> Failure:
        aborted = int(CompletionCode.OPERATION_ABORTED)
        # SQL Server still tries to clear and to flush, and reports that both fail.
        for device in devices:
            for what in ("write", "Flush", "ClearError") if self._writing else ("read", "ClearError"):
                self.log_io(what, device.name, aborted)
        if self.cancelled:
            return Failure(bare(error), message(3204))
        if not devices:
            return self.open(error, aborted, 6)
        return Failure(bare(error), message(3202 if self._writing else 3203, self._names[0], os_error(aborted)))

    def _stream(self, error: MtfError, stripes: RestoreStripes) -> Failure:
        device = self._names[stripes.current]
        reader = stripes.readers[stripes.current]
        if isinstance(error, BlockSizeError):
            problem = message(3284, device, error.found)
        elif isinstance(error, ContinuationError):
            problem = message(3249, device)
        elif isinstance(error, NoSetError):
            problem = message(4038, error.number, device)
        elif isinstance(error, NotMtfError):
            problem = message(3242, device)
        elif isinstance(error, TruncatedError):
            cut = message(3256, device) if reader.started else message(3208)
            problem = message(3254, device) if reader.empty else cut
        else:
            problem = message(3189) if reader.started else message(3241, device)
        return Failure(bare(error), problem)
