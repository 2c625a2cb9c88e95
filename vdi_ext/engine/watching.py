"""A device set whose configuration, commands and states are told as events.

It stands in place of the set itself only where somebody listens: a transfer that nobody watches runs without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from ..constants import CommandCode, CompletionCode, SetState
from ..errors import VDError, VDIOError, VDProtocolError, VDQueueFullError
from ..events import CommandCompleted, CommandIssued, Configured, EventStream, StateChanged
from ..server import Completion, ServerBuffer, ServerDevice, ServerDeviceSet


def watched(device_set: ServerDeviceSet, events: EventStream) -> ServerDeviceSet:
    """The set itself, or where somebody listens one that can do the same and tells of it."""
    return WatchedSet(device_set, events.scoped(device_set.name)) if events else device_set  # type: ignore[return-value]


class WatchedSet:
    """A `ServerDeviceSet` that tells what happens to it; what is not here, the set itself answers."""

    def __init__(self, device_set: ServerDeviceSet, events: EventStream) -> None:
        self._set = device_set
        self._events = events
        self._devices = 0
        self._state("connected", device_set.name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._set, name)

    def __enter__(self) -> WatchedSet:
        self._set.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._state("abort", f"{type(error).__name__}: {error}")
        self._set.__exit__(kind, error, traceback)
        self._state("closed")

    def begin_configuration(self, *values: Any, **named: Any) -> None:
        self._set.begin_configuration(*values, **named)
        self._state("configurable")

    def end_configuration(self) -> None:
        self._set.end_configuration()
        self._events.emit(Configured, self._set.get_configuration())
        self._state("initializing")

    def open_device(self, name: str) -> ServerDevice:
        device = self._set.open_device(name)
        self._devices += 1
        self._events.emit(StateChanged, "device", "active", self._devices, name)
        if self._devices == 1:
            self._state("active")
        return WatchedDevice(device, self._devices, self._events)  # type: ignore[return-value]

    def signal_abort(self, reason: str | None = None) -> None:
        known = self._set.state is SetState.ABORT
        self._set.signal_abort(reason)
        if not known:
            self._state("abort", reason)

    def close(self) -> None:
        self._set.close()
        self._state("closed")

    def _state(self, state: str, detail: str | None = None) -> None:
        self._events.emit(StateChanged, "set", state, None, detail)


class WatchedDevice:
    """A `ServerDevice` that tells of its commands; what is not here, the device itself answers."""

    def __init__(self, device: ServerDevice, number: int, events: EventStream) -> None:
        self._device = device
        self._number = number
        self._events = events
        self._sent = 0
        self._failed = False  # as IO-ERROR of section 6.4

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def close_device(self) -> None:
        self._device.close_device()
        self._events.emit(StateChanged, "device", "closed", self._number)

    def send_command(
        self,
        code: CommandCode | int,
        buffer: ServerBuffer | None = None,
        *,
        size: int | None = None,
        position: int = 0,
        callback: Callable[[Completion], object] | None = None,
    ) -> Future[Completion]:
        bytes_ = (len(buffer) if buffer is not None else 0) if size is None else size
        self._sent += 1
        number, begun = self._sent, time.monotonic()

        def told(completion: int, transferred: int) -> None:
            now = time.monotonic()
            self._events.emit(
                CommandCompleted, self._number, number, code, bytes_, completion, transferred, now - begun, at=now
            )
            self._mark(code, completion)

        def completed(completion: Completion) -> None:
            told(completion.code, completion.bytes_transferred)
            if callback is not None:
                callback(completion)

        if self._events.commands:
            # First: the completion may come before the call returns.
            self._events.emit(CommandIssued, self._number, number, code, bytes_, position, at=begun)
        try:
            return self._device.send_command(code, buffer, size=size, position=position, callback=completed)
        except VDError as error:  # nothing will be called
            told(_refusal(error), 0)
            raise

    def _mark(self, code: int, completion: int) -> None:
        if completion == CompletionCode.SUCCESS:
            if not (self._failed and code == CommandCode.CLEAR_ERROR):
                return
            self._failed, state = False, "active"
        elif self._failed:
            return
        else:
            self._failed, state = True, "io-error"
        detail = None if state == "active" else f"completed with {int(completion)}"
        self._events.emit(StateChanged, "device", state, self._number, detail)


def _refusal(error: VDError) -> CompletionCode:
    """The code that the callback of a refused command gets in the interface (section 5.4)."""
    for kind, code in (
        (VDQueueFullError, CompletionCode.NO_SYSTEM_RESOURCES),
        (VDIOError, CompletionCode.IO_DEVICE),
        (VDProtocolError, CompletionCode.INVALID_HANDLE),
    ):
        if isinstance(error, kind):
            return code
    return CompletionCode.OPERATION_ABORTED
