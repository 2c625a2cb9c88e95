"""What a job tells while it runs."""

import threading
import time
from collections.abc import Callable, Iterable

from ..events import Consumer, EventStream, MessageEvent, ProgressEvent

_TICK = 0.1  # seconds between two reports of progress

#: In the order in which a backup passes through them; "message" may come at any time.
PHASES = (
    "verifying",  # a full read before a restore, or of a set that recover looks at
    "creating",  # the device set is made
    "configuring",  # the statement was submitted; waiting for the server's configuration
    "opening",  # a device is opened
    "transferring",  # bytes move; repeated while they do
    "frozen",  # of a snapshot: every database is frozen, the freeze command runs; the message is their number
    "mounting",  # of a snapshot: every server waits for its files, the mount command runs
    "flushing",  # a device has been told to make its stripe durable
    "prepared",  # every stripe is durable; the statement's outcome is awaited
    "closing",  # all devices ended; the device set is closed
    "publishing",  # the statement succeeded; the set gets its name
    "done",
)


Progress = Callable[[ProgressEvent], None]


class Reporter:
    """Counts bytes and calls the user's `progress`, one call at a time, from whichever thread has news.

    Attributes
    ----------
    events : EventStream
        Is told the same, and by the rest of the job more.
    """

    def __init__(
        self,
        job: str,
        progress: Progress | None,
        total: int | None = None,
        events: Consumer | Iterable[Consumer] | None = None,
    ) -> None:
        self.job = job
        self.total = total
        self.events = EventStream(() if events is None else [events] if callable(events) else events, job)
        self._progress = progress
        self._counter = threading.Lock()
        self._speaking = threading.Lock()
        self._done = 0
        self._begun = time.monotonic()
        self._last = 0.0

    @property
    def done(self) -> int:
        return self._done

    def advance(self, count: int) -> None:
        with self._counter:
            self._done += count

    def restart(self, total: int | None) -> None:
        """Count from 0 again towards another total."""
        with self._counter:
            self._done, self.total = 0, total

    def phase(self, phase: str, *, device: int | None = None, message: str | None = None) -> None:
        """Report at once. An exception of the user's function is the caller's to raise: it ends the job."""
        if self._progress is None and not self.events:
            return
        with self._speaking:
            now = time.monotonic()
            elapsed = now - self._begun
            event = ProgressEvent(
                self.job, phase, self._done, self.total, elapsed, device, message, at=now, scope=self.job
            )
            if self._progress is not None:
                self._progress(event)
            if phase == "message":
                self.events.emit(MessageEvent, message)
            elif self.events:
                self.events(event)

    def message(self, text: str) -> None:
        """Report what the server said."""
        self.phase("message", message=text)

    def tick(self, phase: str = "transferring") -> None:
        """Report progress, if the last report of it is old enough."""
        if time.monotonic() - self._last >= _TICK:
            self._last = time.monotonic()
            self.phase(phase)
