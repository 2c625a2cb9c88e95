"""Backup: from a server's virtual devices into a set of stripes."""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict

from .._core.command import Command
from .._core.device import VirtualDevice
from .._core.device_set import VirtualDeviceSet
from .._core.provider import Provider
from ..config import DeviceSetConfig
from ..constants import CommandCode, CompletionCode
from ..errors import VDAbortError
from ..storage import SetWriter, StorageError, StripeWriter, VerificationError
from .answering import DONE, Answer, answer_commands, complete
from .common import Result, checked_devices, completion_for, tool_version
from .events import Consumer, Progress, Reporter
from .heads import head_of, known_to
from .inquiries import server_name
from .job import Job
from .passwords import Password
from .places import Address, Place, ServerPlace, source_place
from .server_address import is_server
from .statements import SQLError, Statement
from .tokens import expand, has_token, tokens_of
from .wishes import BackupWish

Inspect = Callable[[VirtualDeviceSet, int, Command], None]


def backup(
    source: Address,
    target: str | os.PathLike[str],
    *,
    devices: int | None = 1,
    provider: Provider | str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    database: str | None = None,
    block_size: int | None = None,
    buffer_count: int | None = None,
    max_transfer_size: int | None = None,
    checksum: bool | None = None,
    copy_only: bool = False,
    format: bool = False,
    stats: int | None = None,
    request_complete: bool = True,
    own_process: bool = True,
    inspect: Inspect | None = None,
    kind: str = "full",
    norecovery: bool = False,
    no_truncate: bool = False,
    name: str | None = None,
    description: str | None = None,
    with_options: Sequence[str] = (),
    sql: str | None = None,
    password: Password | None = None,
    group: str | None = None,
    events: Consumer | Iterable[Consumer] | None = None,
) -> Result:
    """Back up a database into a new set of stripes.

    Parameters
    ----------
    source : str or callable
        Where the database is. A server: ``mssql://[user@]host[:port][/INSTANCE]?database=NAME``, or a function without
        arguments that returns a new DB-API connection. The stand-in: ``sqlite:PATH``, ``replay:PATH[,PATH...]`` or
        ``synthetic:SIZE[:SEED]``.
    target : path
        ``DIRECTORY/NAME`` of the set. NAME must not exist; it appears only when the statement has succeeded. Until
        then, and where the outcome stays unknown, the set is ``NAME.partial`` (see `recover`). In text, tokens such as
        ``{database}`` and ``{date}`` stand for what they say (`vdi_ext.jobs.tokens`); a path object is taken as it is.
    devices : int or None
        Number of virtual devices, one stripe and one thread each, 1 to 64. None: as many as the source has files.
    provider : Provider, str or None
        As for `VirtualDeviceSet.create`.
    progress : callable, optional
        Called with a `ProgressEvent`, one call at a time, from any of the job's threads. What it raises ends the job.
    database : str, optional
        The name in the statement; by default from the address.
    block_size, buffer_count, max_transfer_size, copy_only, format, stats, name, description, norecovery, no_truncate
        Options of the statement; sizes in bytes. None and False: the server's default.
    checksum : bool or None
        WITH CHECKSUM. None: where there is a server.
    request_complete : bool
        Ask for a Complete command. Where the server does not grant it, the last Flush takes its place.
    own_process : bool
        Run the stand-in in a process of its own.
    inspect : callable, optional
        ``inspect(device_set, device, command)`` is called on the device's thread (device: from 1) with each Write
        before it is stored: to look at the shared buffer, or to hand it to other processes. It must have dropped its
        views when it returns. What it raises ends the job.
    kind : {"full", "differential", "log"}
        What is backed up. A tail-log backup is one of the log with `norecovery`, and `no_truncate` where the database
        is damaged.
    with_options : sequence of str
        More WITH options, as they stand.
    sql : str, optional
        A statement of your own in place of all that; ``{device}``, ``{device2}``, ... stand for the devices' names.
    password : str or callable, optional
        Of the SQL login that the address names; a function is called for it.
    group : str, optional
        As for `VirtualDeviceSet.create`: who else may open the set.
    events : callable or iterable of callable, optional
        Consumers of everything that happens, as `vdi_ext.events.EventStream` takes them.

    Returns
    -------
    Result

    Raises
    ------
    ArgumentError
        Before anything is begun.
    StorageError
        The set could not be written. The server was told, so the BACKUP failed too.
    SQLError
        The statement failed. `StatementLostError`: its outcome is not known.
    VDError
        The interface failed.
    """
    begun = time.monotonic()
    wish = BackupWish(
        kind=kind, block_size=block_size, buffer_count=buffer_count, max_transfer_size=max_transfer_size,
        checksum=is_server(source) if checksum is None else checksum, copy_only=copy_only, format=format, stats=stats,
        name=name, description=description, norecovery=norecovery, no_truncate=no_truncate, with_options=with_options,
        sql=sql,
    )  # fmt: skip
    with source_place(source, database, kind, provider, own_process, password) as place:
        count = checked_devices(place.devices or 1 if devices is None else devices)
        place.check_devices(count)
        reporter = Reporter("backup", progress, place.size, events)
        writer = SetWriter(
            path_of(target, place, kind), count, expected_size=place.size or 0, database=place.database,
            source=place.address, tool=f"vdi-ext {tool_version()}",
        )  # fmt: skip
        stores = [_Store(stripe, reporter, inspect) for stripe in writer.stripes]

        def start(names: list[str]) -> Statement:
            writer.manifest.statement = wish.text(place.database, names)
            return place.submit(writer.manifest.statement, job.hear)

        def serve(job: Job, device: VirtualDevice, number: int) -> None:
            stores[number - 1].serve(job, device)

        def configured(config: DeviceSetConfig) -> None:
            writer.configure({**asdict(config), "features": int(config.features)})

        job = Job(
            reporter, count, serve, provider=place.library, request_complete=request_complete,
            instance=place.instance, group=group,
        )  # fmt: skip
        try:
            job.run(start, configured)
            reporter.phase("publishing")
        except BaseException as error:
            _settle_outcome(job, writer, place, error)
            raise
    path = _confirm(job, writer, place)
    reporter.phase("done")
    seconds = time.monotonic() - begun
    return Result(path, writer.manifest.size, count, seconds, tuple(job.statement.messages), place.database)


def path_of(target: str | os.PathLike[str], place: Place, kind: str) -> str:
    """Where the set goes: the target with its tokens filled in."""
    if not isinstance(target, str) or not ("{" in target or "}" in target):
        return os.fspath(target)
    name = server_name(place.session) if place.session is not None and has_token(target, "server") else "stand-in"
    return expand(target, tokens_of(database=place.database, kind=kind, server=name, instance=place.instance))


def _confirm(job: Job, writer: SetWriter, place: Place) -> str:
    """Publish the set of a statement that succeeded."""
    interrupted: KeyboardInterrupt | None = None
    problems: list[str] = []
    notes: list[str] = []
    try:
        # A server that says "done" without a Flush has still sent everything.
        for stripe in writer.stripes:
            if not stripe.complete:
                stripe.seal(complete=True)
        try:
            problems, notes = _describe(writer, place)
        except KeyboardInterrupt as error:  # the server may have truncated its log: first the set gets its name
            interrupted = error
        path = writer.confirm([*job.statement.messages, *notes])
    except OSError as error:
        raise StorageError(f"{writer.partial}: {error.strerror}: the BACKUP succeeded, the set did not") from error
    except KeyboardInterrupt as error:
        error.add_note(f"the statement had succeeded: look for {writer.path} and {writer.partial} (vdi-ext recover)")
        raise
    finally:
        writer.leave()
    if interrupted is not None:
        interrupted.add_note(f"the statement had succeeded: the set is published as {path}")
        raise interrupted
    if problems:
        raise VerificationError((f"{path} is published, but it is not the backup that msdb knows", *problems))
    return path


def _describe(writer: SetWriter, place: Place) -> tuple[list[str], list[str]]:
    """Have the manifest say what the backup is; what msdb says otherwise, and what else is to be said."""
    problems: list[str] = []
    notes: list[str] = []
    head = head_of(writer.partial, writer.manifest)
    if isinstance(place, ServerPlace):
        try:
            with contextlib.closing(place.server.open()) as session:
                listed, problems = known_to(session, writer.partial, writer.manifest)
        except SQLError as error:
            notes.append(f"msdb could not be asked: {error}")
        else:
            notes += [] if listed else ["msdb does not list it"]
            head = listed or head
    if head is not None:
        writer.manifest.backup = head.to_dict()
    return problems, notes


def _settle_outcome(job: Job, writer: SetWriter, place: Place, error: BaseException) -> None:
    """What becomes of the set when a job ends with an error: only the statement's own result decides."""
    try:
        if job.statement is not None and job.statement.succeeded:
            error.add_note(f"the statement had succeeded: the set is published as {_confirm(job, writer, place)}")
        elif job.statement is not None and job.statement.lost and writer.state == "prepared":
            writer.leave()
            error.add_note(f"the outcome is not known: {writer.partial} is kept (see: vdi-ext recover)")
        else:
            writer.fail(str(error))
    except (StorageError, VerificationError) as second:
        error.add_note(str(second))


class _Store:
    """Serves one device by storing what it is sent."""

    def __init__(self, stripe: StripeWriter, reporter: Reporter, inspect: Inspect | None) -> None:
        self._stripe = stripe
        self._reporter = reporter
        self._inspect = inspect
        self._failed: OSError | None = None

    def serve(self, job: Job, device: VirtualDevice) -> None:
        self._job = job
        try:
            answer_commands(device, self._stripe.number, self._answer, job.events)
        except VDAbortError:
            if self._failed is None:
                raise
        if self._failed is not None:  # also where the server's answer to it was an abort
            raise StorageError(f"{self._stripe.label}: {self._failed.strerror}") from self._failed

    def _answer(self, command: Command) -> Answer:
        code = command.code
        if code is CommandCode.WRITE:
            if self._inspect is not None and self._failed is None and self._job.device_set is not None:
                self._inspect(self._job.device_set, self._stripe.number, command)
            count = self._store(lambda: self._stripe.write(command))
            if count is None:
                return self._refuse(command)
            self._reporter.advance(count)
        elif code in (CommandCode.FLUSH, CommandCode.COMPLETE):
            self._reporter.phase("flushing", device=self._stripe.number)
            last = code is CommandCode.COMPLETE or not self._job.complete_granted
            prepared = self._store(lambda: self._stripe.seal(complete=last))
            if prepared is None:
                return self._refuse(command)
            if prepared:
                self._reporter.phase("prepared", device=self._stripe.number)
        elif code is not CommandCode.CLEAR_ERROR:
            return complete(command, CompletionCode.NOT_SUPPORTED)
        command.complete()
        return DONE

    def _store(self, act: Callable[[], int]) -> int | None:
        if self._failed is None:
            try:
                return act()
            except OSError as error:
                self._failed = error
        return None

    def _refuse(self, command: Command) -> Answer:
        # A failed store goes on answering, with an error: the server ends its statement and closes the devices.
        return complete(command, completion_for(self._failed), 0)
