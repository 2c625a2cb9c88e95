"""What a job tells while it runs."""

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

_TICK = 0.1  # seconds between two reports of progress

#: In the order in which a backup passes through them; "message" may come at any time.
PHASES = (
    "verifying",  # a full read before a restore, or of a set that recover looks at
    "creating",  # the device set is made
    "configuring",  # the statement was submitted; waiting for the server's configuration
    "opening",  # a device is opened
    "transferring",  # bytes move; repeated while they do
    "flushing",  # a device has been told to make its stripe durable
    "prepared",  # every stripe is durable; the statement's outcome is awaited
    "closing",  # all devices ended; the device set is closed
    "publishing",  # the statement succeeded; the set gets its name
    "done",
)


@dataclass(frozen=True)
class ProgressEvent:
    """One report of a running job.

    Attributes
    ----------
    job : str
        ``"backup"``, ``"restore"`` or ``"recover"``.
    phase : str
        One of `PHASES`, or ``"message"`` for a message of the server.
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

    job: str
    phase: str
    bytes_done: int
    bytes_total: int | None
    elapsed: float
    device: int | None = None
    message: str | None = None

    def to_dict(self) -> dict:
        """The fields that are set, for a JSON line."""
        fields = {name: value for name, value in asdict(self).items() if value is not None}
        return {**fields, "elapsed": round(self.elapsed, 3)}


Progress = Callable[[ProgressEvent], None]


class Reporter:
    """Counts bytes and calls the user's `progress`, one call at a time, from whichever thread has news."""

    def __init__(self, job: str, progress: Progress | None, total: int | None = None) -> None:
        self.job = job
        self.total = total
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
        if self._progress is None:
            return
        with self._speaking:
            elapsed = time.monotonic() - self._begun
            self._progress(ProgressEvent(self.job, phase, self._done, self.total, elapsed, device, message))

    def message(self, text: str) -> None:
        """Report what the server said."""
        self.phase("message", message=text)

    def tick(self, phase: str = "transferring") -> None:
        """Report progress, if the last report of it is old enough."""
        if time.monotonic() - self._last >= _TICK:
            self._last = time.monotonic()
            self.phase(phase)
