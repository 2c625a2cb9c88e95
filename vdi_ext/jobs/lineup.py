"""Several jobs that wait for one another: each on a thread of its own, all of them at the same points."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .._core.device_set import VirtualDeviceSet
from ..config import DeviceSetConfig
from .external import Deadline
from .job import Job
from .statements import SQLError, Statement

_POLL = 0.1  # seconds between two looks at whether a device set was aborted
_PATIENCE = 10.0  # seconds that jobs are given to end once they may


class StoppedError(Exception):
    """Another job of the same operation has failed."""


class FreezeTimeoutError(SQLError):
    """Not all databases were frozen in time; it names those."""


@dataclass
class Part:
    """One of the jobs.

    Attributes
    ----------
    name : str
        Of the database.
    job : Job
    start, configured : callable
        As `Job.run` takes them.
    error : BaseException or None
        How it failed.
    """

    name: str
    job: Job
    start: Callable[[list[str]], Statement]
    configured: Callable[[DeviceSetConfig], None] = lambda config: None
    error: BaseException | None = None

    @property
    def succeeded(self) -> bool:
        """Its statement has; the job itself may have failed all the same."""
        return self.job.statement is not None and self.job.statement.succeeded

    @property
    def lost(self) -> bool:
        """Nobody knows how its statement ended."""
        return self.job.statement is not None and self.job.statement.lost


class Lineup:
    """Points that are passed together.

    Parameters
    ----------
    names : sequence of str
        Of the jobs' databases.
    stages : sequence of str
        The points in their order. Who reaches one without having reached those before it has passed them.
    """

    def __init__(self, names: Sequence[str], stages: Sequence[str]) -> None:
        self._names = tuple(names)
        self._stages = tuple(stages)
        self._changed = threading.Condition()
        self._reached = [-1] * len(self._names)
        self._open = -1  # the last stage that is open
        self._failure: BaseException | None = None

    def arrive(self, number: int, stage: str, device_set: VirtualDeviceSet) -> bool:
        """Wait until a stage is opened; on the thread of a device that holds a command.

        Returns
        -------
        bool
            False: something failed, the command is to be refused.

        Raises
        ------
        VDAbortError
            The device set was aborted meanwhile.
        """
        index = self._stages.index(stage)
        with self._changed:
            self._reached[number] = index
            self._changed.notify_all()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._failure is not None or self._open >= index, _POLL)
                if self._failure is not None:
                    return False
                if self._open >= index:
                    return True
            device_set.get_configuration(timeout=0)

    def wait_for_all(self, stage: str, deadline: Deadline) -> None:
        """Wait until everybody is there.

        Raises
        ------
        FreezeTimeoutError
            That took too long.
        BaseException
            What failed.
        """
        index = self._stages.index(stage)
        with self._changed:
            done = self._changed.wait_for(
                lambda: self._failure is not None or min(self._reached) >= index, deadline.left
            )
            if self._failure is not None:
                raise self._failure
            if not done:
                late = ", ".join(
                    name for name, reached in zip(self._names, self._reached, strict=True) if reached < index
                )
                raise FreezeTimeoutError([f"not {stage} within {deadline.seconds:g} seconds: {late}"])

    def wait_for_first(self, stage: str) -> None:
        """Wait until somebody is there, or everybody at the stage before it. Raises as `wait_for_all`."""
        index = self._stages.index(stage)
        with self._changed:
            self._changed.wait_for(
                lambda: self._failure is not None or max(self._reached) >= index or min(self._reached) >= index - 1
            )
            if self._failure is not None:
                raise self._failure

    def open(self, stage: str) -> None:
        """Let everybody pass. Raises what has failed meanwhile."""
        with self._changed:
            if self._failure is not None:
                raise self._failure
            self._open = self._stages.index(stage)
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Refuse whoever waits, and whoever comes. The first failure counts."""
        with self._changed:
            if self._failure is None:
                self._failure = error
            self._changed.notify_all()

    @property
    def failure(self) -> BaseException | None:
        return self._failure

    def passed(self, stage: str) -> bool:
        """Whether a stage was opened."""
        return self._open >= self._stages.index(stage)

    def waits(self, number: int) -> bool:
        """Whether a job waits at a stage that was not opened."""
        with self._changed:
            return self._reached[number] > self._open

    # ---- the jobs

    def run(self, parts: Sequence[Part], conduct: Callable[[], None]) -> None:
        """Run the jobs, and `conduct` meanwhile in this thread: it opens the stages. Ends when all jobs have.

        Raises
        ------
        BaseException
            The first failure: of `conduct`, a signal, or one of the jobs.
        """
        threads = [
            threading.Thread(target=self._run, args=(number, part), name=f"vdi-job-{part.name}", daemon=True)
            for number, part in enumerate(parts)
        ]
        try:
            for thread in threads:
                thread.start()
            conduct()
            for thread in threads:
                while thread.is_alive():
                    thread.join(_POLL)
        except BaseException as error:
            self.fail(error)
            if not self.passed(self._stages[-1]):
                for number, part in enumerate(parts):
                    if not self.waits(number):
                        part.job.stop(StoppedError(f"stopped: {error}"))
            raise
        finally:
            for thread in threads:
                if thread.ident is not None:
                    thread.join(_PATIENCE)
            for part, thread in zip(parts, threads, strict=True):
                if thread.is_alive():
                    part.job.stop(StoppedError("stopped: the statement does not end"))
                    thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self, number: int, part: Part) -> None:
        try:
            part.job.run(part.start, part.configured)
            if self._reached[number] < len(self._stages) - 1:
                raise SQLError([f"the statement for {part.name} ended without a snapshot"])
        except BaseException as error:
            part.error = error
            if not isinstance(error, StoppedError):
                error.add_note(f"database {part.name}")
                self.fail(error)
