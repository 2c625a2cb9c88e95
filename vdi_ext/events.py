"""What happens, as a stream of typed events: of a job, of the stand-in, of every command.

An event is told to consumers, plain callables, on the thread on which it happened; see `EventStream`. Where nobody
listens no event is made, and no command costs an instruction more.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from enum import IntEnum, IntFlag
from typing import Any, ClassVar

from .config import DeviceSetConfig
from .constants import known

__all__ = [
    "CommandCompleted",
    "CommandIssued",
    "Configured",
    "Consumer",
    "Event",
    "EventStream",
    "MessageEvent",
    "ProgressEvent",
    "StateChanged",
]

LOGGER = "vdi_ext.events"


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Attributes
    ----------
    at : float
        When, in seconds of `time.monotonic`, which all processes of a machine share.
    scope : str
        Whose event it is: the job (``"backup"``), or the device set of a statement of the stand-in.
    """

    kind: ClassVar[str] = "event"

    at: float = field(default_factory=time.monotonic, kw_only=True)
    scope: str = field(default="", kw_only=True)

    def to_dict(self) -> dict:
        """The fields that are set, for a JSON line: enums by name, seconds to the microsecond."""
        values = ((item.name, getattr(self, item.name)) for item in fields(self))
        return {name: _plain(value) for name, value in values if value is not None and value != ""}


@dataclass(frozen=True)
class Configured(Event):
    """The server has decided the configuration of a device set (section 4.3)."""

    kind = "configured"

    config: DeviceSetConfig


@dataclass(frozen=True)
class CommandIssued(Event):
    """A command went to a device: the server sent it, or the client fetched it.

    Attributes
    ----------
    device : int
        From 1.
    number : int
        Of the command on its device, from 1.
    code : CommandCode or int
    size : int
        Bytes of a READ or WRITE, otherwise the command's argument.
    position : int
    """

    kind = "command_issued"

    device: int
    number: int
    code: int
    size: int
    position: int = 0


@dataclass(frozen=True)
class CommandCompleted(Event):
    """A command was completed: its answer was given by the client, or has reached the server.

    Attributes
    ----------
    device, number, code, size
        As of the `CommandIssued` before it.
    completion : CompletionCode or int
    transferred : int
        Bytes.
    seconds : float
        Since it was issued.
    """

    kind = "command_completed"

    device: int
    number: int
    code: int
    size: int
    completion: int
    transferred: int
    seconds: float


@dataclass(frozen=True)
class StateChanged(Event):
    """A device set, a device, a statement or a job is in another state now.

    Attributes
    ----------
    subject : str
        ``"set"``, ``"device"``, ``"statement"`` or ``"job"``.
    state : str
        For a set and a device the words of section 6, in small letters; for a job one of `jobs.PHASES`.
    device : int or None
        The device concerned, from 1.
    detail : str or None
        Why, or what it is about.
    """

    kind = "state"

    subject: str
    state: str
    device: int | None = None
    detail: str | None = None


@dataclass(frozen=True)
class MessageEvent(Event):
    """The server said something.

    Attributes
    ----------
    text : str
    number, severity, state : int or None
        As SQL Server numbers its messages; None where only the text is known.
    log : bool
        It went to the error log, and not to the driver.
    """

    kind = "message"

    text: str
    number: int | None = None
    severity: int | None = None
    state: int | None = None
    log: bool = False


@dataclass(frozen=True)
class ProgressEvent(Event):
    """One report of a running job.

    Attributes
    ----------
    job : str
        ``"backup"``, ``"restore"`` or ``"recover"``.
    phase : str
        One of `jobs.PHASES`, or ``"message"`` for a message of the server.
    bytes_done : int
        Bytes moved so far, all devices together.
    bytes_total : int or None
        Bytes expected: of a backup an estimate, exact otherwise.
    elapsed : float
        Seconds since the job began.
    device : int or None
        The device concerned, from 1; None: all.
    message : str or None
        The server's words, or what a phase is about.
    """

    kind = "progress"

    job: str
    phase: str
    bytes_done: int
    bytes_total: int | None
    elapsed: float
    device: int | None = None
    message: str | None = None

    def to_dict(self) -> dict:
        """The fields that are set, for a JSON line."""
        return {**super().to_dict(), "elapsed": round(self.elapsed, 3)}


Consumer = Callable[[Event], object]


class EventStream:
    """Where events go. False, and never called, where nobody listens.

    Parameters
    ----------
    consumers : iterable of callable
        Each is called with every event, on the thread on which it happened, several threads at a time: so it must be
        quick and guard itself. What it raises ends the job. One with an attribute ``commands = False`` is not told
        about single commands. The logger ``vdi_ext.events`` is one more consumer where it is enabled: for commands and
        progress at DEBUG, for messages by their severity, for the rest at INFO.
    scope : str
        Of the events that `emit` makes.

    Attributes
    ----------
    commands : bool
        Somebody wants to hear of single commands.
    """

    def __init__(self, consumers: Iterable[Consumer] = (), scope: str = "") -> None:
        self.scope = scope
        self._consumers = [*consumers]
        self._of_commands = [each for each in self._consumers if getattr(each, "commands", True)]
        log = logging.getLogger(LOGGER)
        if log.isEnabledFor(logging.INFO):
            self._consumers.append(log_event)
        if log.isEnabledFor(logging.DEBUG):
            self._of_commands.append(log_event)
        self.commands = bool(self._of_commands)

    def __bool__(self) -> bool:
        return bool(self._consumers)

    def scoped(self, scope: str) -> EventStream:
        """The same consumers, for events of another scope."""
        twin = copy.copy(self)
        twin.scope = scope
        return twin

    def __call__(self, event: Event) -> None:
        commands = isinstance(event, CommandIssued | CommandCompleted)
        for consumer in self._of_commands if commands else self._consumers:
            consumer(event)

    def emit(self, kind: type[Event], *values: Any, **named: Any) -> None:
        """Make an event and tell it, if anybody listens."""
        if self._consumers:
            self(kind(*values, scope=self.scope, **named))


def log_event(event: Event) -> None:
    """A consumer: write an event to the logger ``vdi_ext.events``."""
    level = logging.INFO
    if isinstance(event, CommandIssued | CommandCompleted | ProgressEvent):
        level = logging.DEBUG
    elif isinstance(event, MessageEvent) and (event.severity or 0) > 10:
        level = logging.ERROR
    log = logging.getLogger(LOGGER)
    if log.isEnabledFor(level):
        words = " ".join(f"{name}={value}" for name, value in event.to_dict().items() if name not in ("at", "scope"))
        log.log(level, "%s: %s %s", event.scope or "-", event.kind, words)


def name_of(kind: type[IntEnum], number: int) -> str:
    """The name of a command or completion code, or its number where it has none."""
    return str(_plain(known(kind, number)))


def _plain(value: object) -> object:
    if isinstance(value, IntFlag):
        return value.name or hex(value)
    if isinstance(value, IntEnum):
        return value.name
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, DeviceSetConfig):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    return value
