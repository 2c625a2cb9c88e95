"""The device set of one statement: opened, configured, driven and closed in the way that fits how it went."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..constants import CommandCode, Feature
from ..errors import VDError, VDInvalidError
from ..mtf import MtfError
from ..server import ServerDevice, ServerDeviceSet
from .database import DatabaseError, PageDamage
from .failures import Explainer, Failure
from .messages import message
from .mounting import Mounted, mount
from .positioning import MediumRefused
from .replay import ReplayDifference
from .steps import Kind, kind_of, write_zone
from .transfer import SMALL_BUFFER, Consumer, Producer, Transfer, TransferError
from .tsql import Statement
from .watching import watched

if TYPE_CHECKING:
    from .server import Engine

DEFAULT_BLOCK_SIZE = 512
DEFAULT_TRANSFER_SIZE = 1 << 20
DEFAULT_BUFFERS = 4  # at least; two for each of many devices
ALIGNMENT = 4096  # bytes; what O_DIRECT wants

_FILE_NOT_FOUND = 0x80070002  # what SQL Server prints where the interface says VD_E_INVALID (section 12.4)


class DeviceRun:
    """Opens the set of a statement and moves its data.

    Parameters
    ----------
    engine : Engine
    statement : Statement
    explainer : Explainer
    progress : callable
        Called with bytes of the database that were moved.

    Attributes
    ----------
    prepares_to_freeze : bool
        The client wants to be asked before a snapshot's freeze.
    mounted : Mounted
        The media of a backup, once `write` calls for its streams.
    """

    mounted: Mounted

    def __init__(
        self, engine: Engine, statement: Statement, explainer: Explainer, progress: Callable[[int], None]
    ) -> None:
        self._engine = engine
        self._statement = statement
        self._explainer = explainer
        self._progress = progress
        self._lock = threading.Lock()
        self._set: ServerDeviceSet | None = None
        self._buffers = 0
        self._complete = False
        self._kind = Kind("pipe")
        self._soft_filemarks = 0
        self.prepares_to_freeze = False

    @property
    def block_size(self) -> int:
        """Bytes."""
        return self._statement.block_size or DEFAULT_BLOCK_SIZE

    @property
    def transfer_size(self) -> int:
        """Bytes."""
        return self._statement.max_transfer_size or DEFAULT_TRANSFER_SIZE

    @property
    def write_size(self) -> int:
        """Most bytes of one write, once the devices are open: no more than fits where a medium warns of its end."""
        zone = write_zone(self._kind, self.block_size)
        return self.transfer_size if zone is None else max(65536, min(self.transfer_size, zone // 65536 * 65536))

    def cancel(self) -> None:
        """End it. Any thread."""
        with self._lock:
            self._explainer.cancelled = True
            device_set = self._set
        if device_set is not None:
            with contextlib.suppress(VDError):  # it ended by itself meanwhile
                device_set.signal_abort("the statement was cancelled")

    def check(self) -> None:
        """Whether to go on with what is not a transfer; raises after an abort, also by `cancel`."""
        assert self._set is not None
        self._set.get_configuration()

    def write(self, streams: Callable[[], Producer], *, raw: bool = False) -> None:
        """Validate and position the media, send streams, then Flush, and Complete where granted.

        Parameters
        ----------
        streams : callable
            Called once the client waits for nothing else: making the snapshot may take long.
        raw : bool
            The streams are whole media, which replace what is there.

        Raises
        ------
        Failure
        """

        def move(transfer: Transfer) -> None:
            if raw:
                transfer.rewind()
            else:
                self.mounted = mount(
                    transfer, self._statement, self._kind, self.block_size, self._soft_filemarks
                )
            last = (CommandCode.FLUSH, CommandCode.COMPLETE) if self._complete else (CommandCode.FLUSH,)
            # The last Flush is the last command where there is no Complete (section 7.4).
            transfer.write(streams(), (CommandCode.REWIND, *last) if self._rewinds else last)

        self.move(move, writing=True)

    def read(self, consumer: Consumer) -> None:
        """Position the media, read until the consumer has what it wants. Raises `Failure`."""

        def move(transfer: Transfer) -> None:
            transfer.position(consumer, self._statement.file or 1)
            transfer.read(consumer)
            if self._rewinds:
                transfer.rewind()

        self.move(move, consumer, writing=False)

    @property
    def _rewinds(self) -> bool:
        """REWIND, which is the default, and has a meaning for tapes only."""
        return self._kind.keeps_marks and self._statement.rewind is not False

    def move(self, act: Callable[[Transfer], None], consumer: Consumer | None = None, *, writing: bool) -> None:
        """Move data in several steps.

        Parameters
        ----------
        act : callable
            Does it, by reading and writing again and again.
        consumer : Consumer, optional
            What reads, if anything does.
        writing : bool
            The direction of the media; commands can be sent in both.

        Raises
        ------
        Failure
        """
        device_set = self._open()
        # An unexpected exception leaves through here: it aborts, and the native Close waits for the last view.
        # What Close itself could say is known by then.
        with contextlib.suppress(VDError), device_set:
            with self._lock:
                self._set = device_set
            try:
                failure = self._drive(device_set, act, consumer, writing)
            finally:
                with self._lock:
                    self._set = None
        if failure is not None:
            raise failure

    def abort(self, reason: str) -> None:
        """Make it fail. Any thread."""
        with self._lock:
            device_set = self._set
        if device_set is not None:
            _abort(device_set, reason)

    def _drive(
        self, device_set: ServerDeviceSet, act: Callable[[Transfer], None], consumer: Consumer | None, writing: bool
    ) -> Failure | None:
        """Everything between Open and Close; returns what failed."""
        devices: list[ServerDevice] = []
        failure = None
        explain = self._explainer.explain
        try:
            if self._explainer.cancelled:
                raise Failure(None, message(3204))
            self._configure(device_set, writing)
            for name in self._statement.devices:
                devices.append(device_set.open_device(name))
            try:
                self._move(device_set, devices, act, writing)
            except (TransferError, MtfError, PageDamage, ReplayDifference, DatabaseError) as error:
                failure = explain(error, devices, consumer)
                if writing and not isinstance(error, TransferError | MediumRefused):
                    raise failure from None  # our own failure, with commands in flight
                # Nothing is in flight: the client sees its devices closed, and learns the rest from the statement.
            for device in devices:
                with contextlib.suppress(VDError) if failure is not None else contextlib.nullcontext():
                    device.close_device()
        except Failure as error:
            failure = error
            _abort(device_set, str(error.messages[0].text))
        except VDError as error:
            failure = failure or explain(error, devices, consumer)
            _abort(device_set, str(error))
        return failure

    def _open(self) -> ServerDeviceSet:
        name, engine = self._statement.devices[0], self._engine
        try:
            device_set = ServerDeviceSet.open(name, instance=engine.instance, provider=engine.provider)  # type: ignore[arg-type]
        except VDError as error:
            code = _FILE_NOT_FOUND if isinstance(error, VDInvalidError) else error.code
            raise self._explainer.open(error, code, 7) from None
        return watched(device_set, engine.events)

    def _configure(self, device_set: ServerDeviceSet, writing: bool) -> None:
        """Decide from the statement and what the client asked for (sections 4.2 and 4.3)."""
        statement, asked = self._statement, device_set.get_configuration()
        kind = kind_of(asked)
        # A snapshot's description goes through something like a pipe (section 11.1).
        unfit = kind is None or (statement.snapshot and kind.keeps_marks)
        if kind is None or unfit or asked.device_count != len(statement.devices):
            raise Failure(None, message(3261))
        if statement.snapshot and kind.name != "pipe":  # the only kind that section 11 expects
            raise Failure(None, message(3261))
        self._kind = kind
        self._soft_filemarks = asked.soft_file_mark_block_size
        self.prepares_to_freeze = bool(asked.features & Feature.SNAPSHOT_PREPARE)
        # Behind the Snapshot command comes the end of the device (section 11.2).
        self._complete = writing and not statement.snapshot and bool(asked.features & Feature.REQUEST_COMPLETE)
        features = asked.features | (Feature.WRITE_MEDIA if writing else Feature.READ_MEDIA)
        if self._complete:
            features |= Feature.COMPLETE_ENABLED
        alignment = max(ALIGNMENT, self.block_size, asked.alignment)
        device_set.begin_configuration(features, self.block_size, alignment, self.transfer_size)
        self._buffers = statement.buffer_count or max(DEFAULT_BUFFERS, 2 * len(statement.devices))
        device_set.request_buffers(self.transfer_size, 0, self._buffers)
        device_set.request_buffers(SMALL_BUFFER, 0, len(statement.devices))
        device_set.end_configuration()

    def _move(
        self, device_set: ServerDeviceSet, devices: list[ServerDevice], act: Callable[[Transfer], None], writing: bool
    ) -> None:
        transfer = Transfer(
            device_set,
            devices,
            kind=self._kind,
            buffers=self._buffers,
            transfer_size=self.transfer_size,
            block_size=self.block_size,
            progress=self._progress,
            may_overwrite=bool(self._statement.format or self._statement.init),
        )
        try:
            act(transfer)
        except (TransferError, MediumRefused):
            if writing:
                with contextlib.suppress(TransferError, VDError):  # what failed before that is the news
                    transfer.discard()
            raise
        finally:
            transfer.release()


def _abort(device_set: ServerDeviceSet, reason: str) -> None:
    with contextlib.suppress(VDError):  # it may be aborted already
        device_set.signal_abort(reason)
