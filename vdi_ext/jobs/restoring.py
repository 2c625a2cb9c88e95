"""Restore: from a set of stripes through virtual devices into a server."""

import contextlib
import os
import time
from collections.abc import Iterable, Mapping, Sequence

from .._core.command import Command
from .._core.device import VirtualDevice
from .._core.provider import Provider
from ..constants import CommandCode, CompletionCode
from ..storage import StorageError, StoredSet, StripeReader, VerificationError
from .answering import DONE, Answer, answer_commands, complete
from .common import ArgumentError, Result
from .events import Consumer, Progress, Reporter
from .heads import kind_of
from .job import Job
from .passwords import Password
from .places import Address, target_place
from .statements import Statement
from .wishes import RestoreWish


def restore(
    source: str | os.PathLike[str],
    target: Address,
    *,
    provider: Provider | str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    verify_first: bool = False,
    database: str | None = None,
    devices: int | None = None,
    block_size: int | None = None,
    buffer_count: int | None = None,
    max_transfer_size: int | None = None,
    checksum: bool = False,
    replace: bool = False,
    stats: int | None = None,
    request_complete: bool = True,
    own_process: bool = True,
    kind: str | None = None,
    norecovery: bool = False,
    standby: str | None = None,
    stop_at: str | None = None,
    moves: Mapping[str, str] | None = None,
    with_options: Sequence[str] = (),
    sql: str | None = None,
    password: Password | None = None,
    group: str | None = None,
    events: Consumer | Iterable[Consumer] | None = None,
) -> Result:
    """Restore a database from a stored set.

    Presence and sizes are checked before the statement is submitted, and digests while the bytes pass: the bytes that
    end a stripe reach the server only when the whole stripe was right. Damage aborts the device set.

    Parameters
    ----------
    source : path
        Directory of the set: ``NAME``, or ``NAME.partial`` of a prepared one.
    target : str or callable
        Where the database is to be, as for `backup`.
    verify_first : bool
        Read and check everything before the statement is submitted.
    devices : int, optional
        Must be the number of stripes where given.
    block_size : int, optional
        By default what the backup was written with, as the server demands.
    replace : bool
        Overwrite an existing database.
    kind : {"full", "differential", "log"}, optional
        What the set holds: RESTORE LOG for a log, else RESTORE DATABASE. By default what it says of itself.
    norecovery : bool
        Leave the database ready for further differentials and logs.
    standby : str, optional
        Leave it readable between them, with an undo file of this name on the server.
    stop_at : str, optional
        Point in time, ISO 8601 without a zone, in the server's time.
    moves : mapping of str to str, optional
        Logical names of files, and their new paths on the server.
    with_options : sequence of str
        More WITH options, as they stand.
    sql : str, optional
        A statement of your own, as for `backup`.
    provider, progress, database, buffer_count, max_transfer_size, checksum, stats, request_complete, own_process
        As for `backup`; so are `password`, `group` and `events`.

    Returns
    -------
    Result

    Raises
    ------
    ArgumentError
        Before anything is begun.
    VerificationError
        A stripe is damaged, missing or foreign; it is named.
    StorageError, SQLError, VDError
        As for `backup`.
    """
    begun = time.monotonic()
    stored = StoredSet(os.fspath(source))
    if stored.manifest.snapshot is not None:
        raise ArgumentError(f"{stored.path} is a snapshot: its files are elsewhere, and it takes a mount command")
    count = len(stored.manifest.stripes)
    if devices is not None and devices != count:
        raise ArgumentError(f"{stored.path} has {count} stripes: it is restored over {count} devices, not {devices}")
    wish = RestoreWish(
        kind=kind or kind_of(stored.path, stored.manifest),
        block_size=block_size or stored_block_size(stored), buffer_count=buffer_count,
        max_transfer_size=max_transfer_size, checksum=checksum, replace=replace, stats=stats, norecovery=norecovery,
        standby=standby, stop_at=stop_at, moves=moves or {}, with_options=with_options, sql=sql,
    )  # fmt: skip
    stored.check_presence()
    reporter = Reporter("restore", progress, stored.manifest.size, events)
    if verify_first:
        reporter.phase("verifying")

        def advance(size: int) -> None:
            reporter.advance(size)
            reporter.tick("verifying")

        stored.verify(advance)
        reporter.restart(stored.manifest.size)
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(target_place(target, database, replace, provider, own_process, password))
        place.check_devices(count)
        readers = [stack.enter_context(stored.open_stripe(n)) for n in range(1, count + 1)]

        def start(names: list[str]) -> Statement:
            return place.submit(wish.text(place.database, names), job.hear)

        def serve(job: Job, device: VirtualDevice, number: int) -> None:
            _serve(job, device, number, readers[number - 1], reporter)

        job = Job(
            reporter, count, serve, provider=place.library, request_complete=request_complete,
            instance=place.instance, group=group,
        )  # fmt: skip
        job.run(start, lambda config: None)
        for reader in readers:  # a server may stop at the end of the backup set, without reading what lies behind it
            reader.finish()
    reporter.phase("done")
    seconds = time.monotonic() - begun
    return Result(stored.path, stored.manifest.size, count, seconds, tuple(job.statement.messages), place.database)


def stored_block_size(stored: StoredSet) -> int | None:
    value = stored.manifest.configuration.get("block_size")
    return value if type(value) is int and value > 0 else None


def _serve(job: Job, device: VirtualDevice, number: int, reader: StripeReader, reporter: Reporter) -> None:
    def answer(command: Command) -> Answer:
        try:
            return _answer(command, reader, reporter)
        except (VerificationError, StorageError) as error:
            # Before the command is completed: nothing of it must look like data, or like their end.
            job.device_set.signal_abort(str(error))
            raise

    answer_commands(device, number, answer, job.events)


def _answer(command: Command, reader: StripeReader, reporter: Reporter) -> Answer:
    code = command.code
    if code is CommandCode.READ:
        count = reader.readinto(command)
        reporter.advance(count)
        return complete(command, CompletionCode.SUCCESS if count == command.size else CompletionCode.HANDLE_EOF, count)
    if code is CommandCode.COMPLETE:
        reader.finish()
    elif code is not CommandCode.CLEAR_ERROR:
        return complete(command, CompletionCode.NOT_SUPPORTED)
    command.complete()
    return DONE
