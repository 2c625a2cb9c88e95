"""One backup to a stream, or one restore from a stream: without a set, and without a second copy."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
import time
from collections.abc import Callable, Iterable
from typing import Any

from .._core.command import Command
from .._core.device import VirtualDevice
from .._core.provider import Provider
from ..constants import CommandCode, CompletionCode
from ..errors import VDAbortError
from ..storage import StorageError
from .answering import DONE, Answer, answer_commands, complete
from .common import Result, completion_for
from .events import Consumer, Progress, Reporter
from .job import Job
from .passwords import Password
from .places import Address, Place, source_place, target_place
from .server_address import is_server
from .statements import Statement
from .wishes import BackupWish, RestoreWish

_STEP = 0.2  # seconds between two looks whether the job is about to end
_NOT_SYNCABLE = (errno.EINVAL, errno.ENOTSUP, errno.EROFS)  # a pipe, a terminal


def pipe_backup(
    source: Address,
    descriptor: int,
    *,
    database: str | None = None,
    provider: Provider | str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    request_complete: bool = True,
    own_process: bool = True,
    password: Password | None = None,
    group: str | None = None,
    events: Consumer | Iterable[Consumer] | None = None,
    checksum: bool | None = None,
    **options: Any,
) -> Result:
    """Back up a database into a descriptor, over one device.

    What is durable behind a pipe nobody here can know: a regular file is synced before a Flush is answered, whatever
    else is only written to. The backup is whole if and only if this returns; a reader must wait for that.

    Parameters
    ----------
    source, database, provider, progress, request_complete, own_process, password, group, events, checksum
        As for `backup`.
    descriptor : int
        Open for writing; stays open.
    options
        Options of the statement, as for `backup`.

    Raises
    ------
    StorageError
        It could not be written to. The server was told, so the BACKUP failed too.
    ArgumentError, SQLError, VDError
        As for `backup`.
    """
    wish = BackupWish(checksum=is_server(source) if checksum is None else checksum, **options)
    with source_place(source, database, wish.kind, provider, own_process, password) as place:
        place.check_devices(1)
        reporter = Reporter("backup", progress, place.size, events)
        sink = _Sink(descriptor, reporter)
        return _run(place, wish, sink, reporter, request_complete, group)


def pipe_restore(
    descriptor: int,
    target: Address,
    *,
    database: str | None = None,
    provider: Provider | str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    request_complete: bool = True,
    own_process: bool = True,
    password: Password | None = None,
    group: str | None = None,
    events: Consumer | Iterable[Consumer] | None = None,
    **options: Any,
) -> Result:
    """Restore a database from a descriptor, over one device, to the descriptor's end.

    There is no digest to compare with: only the server judges the stream. Parameters and errors as `pipe_backup`.
    """
    wish = RestoreWish(**options)
    with target_place(target, database, wish.replace, provider, own_process, password) as place:
        place.check_devices(1)
        reporter = Reporter("restore", progress, None, events)
        return _run(place, wish, _Source(descriptor, reporter), reporter, request_complete, group)


def _run(
    place: Place, wish: BackupWish | RestoreWish, end: _Sink | _Source, reporter: Reporter, request_complete: bool,
    group: str | None,
) -> Result:  # fmt: skip
    begun = time.monotonic()

    def start(names: list[str]) -> Statement:
        return place.submit(wish.text(place.database, names), job.hear)

    job = Job(
        reporter, 1, end.serve, provider=place.library, request_complete=request_complete, instance=place.instance,
        group=group,
    )  # fmt: skip
    with contextlib.closing(end):
        job.run(start, lambda config: None)
        end.finish()
    reporter.phase("done")
    seconds = time.monotonic() - begun
    return Result(end.label, end.size, 1, seconds, tuple(job.statement.messages), place.database)


class _End:
    """One end of the stream. Waits in steps, so that a job which ends is not held up by whoever is behind a pipe."""

    label = "(stream)"

    def __init__(self, descriptor: int, reporter: Reporter, mode: int) -> None:
        self._reporter = reporter
        self._own = stat.S_ISFIFO(os.fstat(descriptor).st_mode)
        # A description of our own: that it does not block must not be seen by whoever shares the other one.
        self._descriptor = os.open(f"/proc/self/fd/{descriptor}", mode | os.O_NONBLOCK) if self._own else descriptor
        self.size = 0

    def close(self) -> None:
        if self._own:
            os.close(self._descriptor)

    def _await(self, job: Job, writing: bool) -> None:
        ends: list[int] = [self._descriptor]
        while self._own and not any(select.select([] if writing else ends, ends if writing else [], [], _STEP)):
            if job.ending.is_set():
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))


class _Sink(_End):
    """Serves a backup's device by writing what it is sent."""

    def __init__(self, descriptor: int, reporter: Reporter) -> None:
        super().__init__(descriptor, reporter, os.O_WRONLY)
        self._failed: OSError | None = None

    def serve(self, job: Job, device: VirtualDevice, number: int) -> None:
        self._job = job
        try:
            answer_commands(device, number, self._answer, job.events)
        except VDAbortError:
            if self._failed is None:
                raise
        if self._failed is not None:  # also where the server's answer to it was an abort
            raise StorageError(f"the stream can not be written: {self._failed.strerror}") from self._failed

    def finish(self) -> None:
        """The statement has succeeded: what it did not flush is made durable now."""
        try:
            self._sync()
        except OSError as error:
            raise StorageError(f"the stream can not be written: {error.strerror}") from error

    def _answer(self, command: Command) -> Answer:
        code = command.code
        if code is CommandCode.WRITE:
            if not self._tried(lambda: self._write(command)):
                return complete(command, completion_for(self._failed), 0)
            self._reporter.advance(command.size)
        elif code in (CommandCode.FLUSH, CommandCode.COMPLETE):
            self._reporter.phase("flushing", device=1)
            if not self._tried(self._sync):
                return complete(command, completion_for(self._failed), 0)
        elif code is not CommandCode.CLEAR_ERROR:
            return complete(command, CompletionCode.NOT_SUPPORTED)
        command.complete()
        return DONE

    def _tried(self, act: Callable[[], None]) -> bool:
        if self._failed is None:
            try:
                act()
            except OSError as error:
                self._failed = error
        return self._failed is None

    def _write(self, command: Command) -> None:
        with memoryview(command) as view:
            done = 0
            while done < len(view):
                self._await(self._job, True)
                with view[done:] as rest, contextlib.suppress(BlockingIOError):
                    done += os.write(self._descriptor, rest)
        self.size += done

    def _sync(self) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            if error.errno not in _NOT_SYNCABLE:
                raise


class _Source(_End):
    """Serves a restore's device by reading."""

    def __init__(self, descriptor: int, reporter: Reporter) -> None:
        super().__init__(descriptor, reporter, os.O_RDONLY)

    def serve(self, job: Job, device: VirtualDevice, number: int) -> None:
        self._job = job

        def answer(command: Command) -> Answer:
            try:
                return self._answer(command)
            except StorageError as error:
                # Before the command is completed: nothing of it must look like data, or like their end.
                job.device_set.signal_abort(str(error))
                raise

        answer_commands(device, number, answer, job.events)

    def finish(self) -> None:
        """What a server leaves unread is read, so that the writer behind a pipe does not fail."""
        scratch = memoryview(bytearray(1 << 20))
        while self._read(scratch):
            pass

    def _answer(self, command: Command) -> Answer:
        code = command.code
        if code is CommandCode.READ:
            count = self._fill(command)
            enough = count == command.size
            return complete(command, CompletionCode.SUCCESS if enough else CompletionCode.HANDLE_EOF, count)
        if code not in (CommandCode.COMPLETE, CommandCode.CLEAR_ERROR):
            return complete(command, CompletionCode.NOT_SUPPORTED)
        command.complete()
        return DONE

    def _fill(self, command: Command) -> int:
        with memoryview(command) as view:
            done = 0
            while done < len(view):
                with view[done:] as rest:
                    count = self._read(rest)
                if count == 0:
                    break
                done += count
        self.size += done
        self._reporter.advance(done)
        return done

    def _read(self, buffer: memoryview) -> int:
        while True:
            try:
                self._await(self._job, False)
                return os.readv(self._descriptor, [buffer])
            except BlockingIOError:
                continue
            except OSError as error:
                raise StorageError(f"the stream can not be read: {error.strerror}") from error
