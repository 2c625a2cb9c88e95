"""Snapshots: databases are frozen together, a command of the user's copies their files, and all of them go on.

What a server sends of a database is only its description; the files themselves are where the command puts them. A set
holds the descriptions of all databases that were frozen together, one stripe for each.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from .._core.command import Command
from .._core.device import VirtualDevice
from .._core.provider import Provider
from ..config import DeviceSetConfig
from ..constants import CommandCode, CompletionCode, Feature
from ..errors import VDAbortError
from ..storage import SetWriter, StorageError, StoredSet, StripeReader, StripeWriter, VerificationError
from .answering import DONE, Answer, answer_commands, complete
from .backing_up import path_of
from .common import ArgumentError, Result, completion_for, tool_version
from .events import Consumer, Progress, Reporter
from .external import Command as UserCommand
from .external import Deadline, run_command
from .inquiries import database_files
from .inquiries import databases as all_databases
from .job import Job
from .lineup import Lineup, Part
from .passwords import Password
from .places import Address, Place, source_place, target_place
from .restoring import stored_block_size
from .selectors import select
from .server import Server
from .server_address import is_server
from .statements import Statement
from .tokens import has_token
from .wishes import BackupWish, RestoreWish

_PREPARED, _FROZEN, _MOUNTING = "prepared to freeze", "frozen", "mounting"
_MOST = 64  # databases of one set


def backup_snapshot(
    sources: Address | Sequence[Address],
    target: str | os.PathLike[str],
    *,
    freeze_command: UserCommand,
    freeze_timeout: float = 60.0,
    provider: Provider | str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    databases: str | Sequence[str] | None = None,
    block_size: int | None = None,
    checksum: bool | None = None,
    copy_only: bool = False,
    with_options: Sequence[str] = (),
    own_process: bool = True,
    password: Password | None = None,
    group: str | None = None,
    events: Consumer | Iterable[Consumer] | None = None,
) -> Result:
    """Freeze databases together, have their files copied, and store what their servers say of them.

    Every database is held before its freeze until all have come that far; when all are frozen, the command runs once.
    Its exit status decides. Nothing stays frozen, however it ends.

    Parameters
    ----------
    sources : str or callable, or a sequence of them
        Addresses of the databases, as for `backup`; 1 to 64.
    target : path
        ``DIRECTORY/NAME`` of the set that holds the servers' descriptions, one stripe per database.
    freeze_command : str or sequence of str
        For the shell, or a program and its arguments. It must have secured the files when it ends with status 0. The
        environment tells it which: see docs/snapshots.md.
    freeze_timeout : float
        Seconds that databases may be frozen at most, the command's time included.
    databases : str or sequence of str, optional
        Names in the statements, in the order of `sources`; by default from the addresses. Of one server a text selects
        them, as in ``"USER_DATABASES,-test*"``; what cannot be backed up then ends the whole, for it would be missing.
    provider, progress, block_size, checksum, copy_only, with_options, own_process, password, group, events
        As for `backup`; the password is that of every server.

    Returns
    -------
    Result
        Its size is that of the descriptions.

    Raises
    ------
    ArgumentError
        Before anything is begun.
    CommandFailedError
        The command failed, or its time was up; carries the end of its output.
    FreezeTimeoutError
        Not all databases were frozen in time.
    StorageError, SQLError, VDError
        As for `backup`. A note names the database.
    """
    begun = time.monotonic()
    addresses, password = _meant(sources, databases, password)
    if not freeze_timeout > 0:
        raise ArgumentError(f"freeze_timeout must be positive, not {freeze_timeout!r}")
    with contextlib.ExitStack() as stack:
        places = [
            stack.enter_context(source_place(address, name, "snapshot", provider, own_process, password))
            for address, name in addresses
        ]
        if len(places) > 1 and isinstance(target, str) and has_token(target, "database"):
            raise ArgumentError(f"{target!r} is one set for several databases: leave {{database}} out")
        files = [_files(place) for place in places]
        reporter = Reporter("backup", progress, None, events)
        writer = SetWriter(
            path_of(target, places[0], "snapshot"), len(places), database=", ".join(place.database for place in places),
            source=" ".join(place.address for place in places), tool=f"vdi-ext {tool_version()}",
            snapshot=[
                {"database": place.database, "source": place.address, "files": list(paths)}
                for place, paths in zip(places, files, strict=True)
            ],
        )  # fmt: skip
        lineup = Lineup([place.database for place in places], (_PREPARED, _FROZEN))
        statements = [""] * len(places)

        def part(number: int, place: Place) -> Part:
            store = _Description(writer.stripes[number], number, lineup, reporter)
            wish = BackupWish(
                block_size=block_size, checksum=place.is_server if checksum is None else checksum,
                copy_only=copy_only, with_options=("SNAPSHOT", *with_options),
            )  # fmt: skip

            def start(names: list[str]) -> Statement:
                statements[number] = text = wish.text(place.database, names)
                writer.manifest.statement = "\n".join(filter(None, statements))
                return place.submit(text, job.hear)

            def configured(config: DeviceSetConfig) -> None:
                writer.configure({**asdict(config), "features": int(config.features)})

            job = Job(
                reporter, 1, store.serve, provider=place.library, request_complete=False, instance=place.instance,
                group=group, features=Feature.SNAPSHOT_PREPARE,
            )  # fmt: skip
            return Part(place.database, job, start, configured)

        def conduct() -> None:
            lineup.wait_for_first(_FROZEN)
            deadline = Deadline(freeze_timeout)
            lineup.wait_for_all(_PREPARED, deadline)
            lineup.open(_PREPARED)
            lineup.wait_for_all(_FROZEN, deadline)
            reporter.phase("frozen", message=str(len(places)))
            environment = {"VDI_EXT_SET": writer.partial, "VDI_EXT_NAME": os.path.basename(writer.path)}
            _run(freeze_command, "freeze", environment, places, files, deadline, lineup)
            _seal(writer)
            lineup.open(_FROZEN)

        parts = [part(number, place) for number, place in enumerate(places)]
        try:
            lineup.run(parts, conduct)
            reporter.phase("publishing")
        except BaseException as error:
            _settle(parts, writer, error)
            raise
    path = _confirm(parts, writer)
    reporter.phase("done")
    seconds = time.monotonic() - begun
    return Result(path, writer.manifest.size, len(parts), seconds, _messages(parts), writer.manifest.database)


def _meant(
    sources: Address | Sequence[Address], databases: str | Sequence[str] | None, password: Password | None
) -> tuple[list[tuple[Address, str | None]], Password | None]:
    """The addresses with their names, and the password once it was asked for."""
    if not isinstance(databases, str):
        return _several(sources, databases), password
    [(source, _), *more] = _several(sources, None)
    if more or not is_server(source):
        raise ArgumentError(f"{databases!r} selects databases of one server (mssql://); else they need as many names")
    server = Server(source, password)
    with contextlib.closing(server.open()) as session:
        chosen, skipped = select(databases, all_databases(session))
    if skipped:
        raise ArgumentError("; ".join(f"{each.database}: {each.reason}" for each in skipped))
    return _several([source] * len(chosen), chosen), server.password


def _several(
    addresses: Address | Sequence[Address], names: Sequence[str] | None
) -> list[tuple[Address, str | None]]:
    """Each address with its name, where it has one."""
    listed = [addresses] if isinstance(addresses, str) or callable(addresses) else list(addresses)
    if not 1 <= len(listed) <= _MOST:
        raise ArgumentError(f"a snapshot takes 1 to {_MOST} databases, not {len(listed)}")
    if names is not None and (isinstance(names, str) or len(names) != len(listed)):
        raise ArgumentError(f"{len(listed)} databases need as many names")
    return list(zip(listed, names or itertools.repeat(None), strict=names is not None))


def _files(place: Place) -> tuple[str, ...]:
    """What a command has to copy, or to put in place."""
    if place.session is not None:
        return tuple(database_files(place.session, place.database))
    kind, _, rest = place.address.partition(":")
    return (os.path.abspath(rest),) if kind == "sqlite" else ()


def _run(
    command: UserCommand,
    action: str,
    environment: dict[str, str],
    places: Sequence[Place],
    files: Sequence[Sequence[str]],
    deadline: Deadline,
    lineup: Lineup,
) -> None:
    environment = {
        **environment,
        "VDI_EXT_ACTION": action,
        "VDI_EXT_DATABASES": str(len(places)),
        "VDI_EXT_FILES": "\n".join(path for paths in files for path in paths),
    }
    for number, (place, paths) in enumerate(zip(places, files, strict=True), 1):
        environment[f"VDI_EXT_DATABASE_{number}"] = place.database
        environment[f"VDI_EXT_ADDRESS_{number}"] = place.address
        environment[f"VDI_EXT_FILES_{number}"] = "\n".join(paths)

    def check() -> None:
        if lineup.failure is not None:
            raise lineup.failure

    run_command(
        command, environment, title=f"{action} command", deadline=deadline, check=check, failed=lineup.fail
    )


def _seal(writer: SetWriter) -> None:
    """The files are secured: from now on the set is a backup whose statements have not ended yet."""
    for stripe in writer.stripes:
        try:
            stripe.seal(complete=True)
        except OSError as error:
            raise StorageError(f"{stripe.label}: {error.strerror}") from error


def _confirm(parts: list[Part], writer: SetWriter) -> str:
    try:
        for stripe in writer.stripes:
            if not stripe.complete:  # a server that wrote more behind its Snapshot command
                stripe.seal(complete=True)
        return writer.confirm(_messages(parts))
    except OSError as error:
        raise StorageError(f"{writer.partial}: {error.strerror}: the BACKUP succeeded, the set did not") from error
    except KeyboardInterrupt as error:
        error.add_note(f"the statements had succeeded: look for {writer.path} and {writer.partial} (vdi-ext recover)")
        raise
    finally:
        writer.leave()


def _settle(parts: list[Part], writer: SetWriter, error: BaseException) -> None:
    """What becomes of the set: only what the statements say decides, and only together they are a backup."""
    try:
        if all(part.succeeded for part in parts):
            error.add_note(f"the statements had succeeded: the set is published as {_confirm(parts, writer)}")
        elif writer.state == "prepared" and any(part.succeeded or part.lost for part in parts):
            writer.leave()
            good = ", ".join(part.name for part in parts if part.succeeded) or "none"
            error.add_note(f"statements that succeeded: {good}; {writer.partial} is kept (see: vdi-ext recover)")
        else:
            writer.fail(str(error))
    except StorageError as second:
        error.add_note(str(second))


def _messages(parts: list[Part]) -> tuple[str, ...]:
    return tuple(text for part in parts for text in part.job.statement.messages)


class _Description:
    """Serves the device of one database by storing what describes it."""

    def __init__(self, stripe: StripeWriter, number: int, lineup: Lineup, reporter: Reporter) -> None:
        self._stripe = stripe
        self._number = number
        self._lineup = lineup
        self._reporter = reporter
        self._failed: OSError | None = None
        self._taken = False

    def serve(self, job: Job, device: VirtualDevice, number: int) -> None:
        assert job.device_set is not None
        self._set = job.device_set
        try:
            answer_commands(device, number, self._answer, job.events)
        except VDAbortError:
            if self._failed is None:
                raise
        if self._failed is not None:
            raise StorageError(f"{self._stripe.label}: {self._failed.strerror}") from self._failed

    def _answer(self, command: Command) -> Answer:
        code = command.code
        try:
            if code is CommandCode.WRITE and self._failed is None:
                self._reporter.advance(self._stripe.write(command))
            elif code is CommandCode.PREPARE_TO_FREEZE:
                return self._wait(command, _PREPARED)
            elif code is CommandCode.SNAPSHOT and self._failed is None:
                self._stripe.seal(complete=False)  # what can fail of it shall fail before the command runs
                answer = self._wait(command, _FROZEN)
                self._taken = answer is DONE
                return answer
            elif code in (CommandCode.FLUSH, CommandCode.COMPLETE) and self._failed is None:
                self._stripe.seal(complete=self._taken)
            elif self._failed is None and code is not CommandCode.CLEAR_ERROR:
                return complete(command, CompletionCode.NOT_SUPPORTED)
        except OSError as error:
            if isinstance(error, VDAbortError):
                raise
            self._failed = error
        if self._failed is not None and code is not CommandCode.CLEAR_ERROR:
            return complete(command, completion_for(self._failed), 0)
        command.complete()
        return DONE

    def _wait(self, command: Command, stage: str) -> Answer:
        if not self._lineup.arrive(self._number, stage, self._set):
            return complete(command, CompletionCode.OPERATION_ABORTED)
        command.complete()
        return DONE


# ---- restore


def restore_snapshot(
    source: str | os.PathLike[str],
    targets: Address | Sequence[Address],
    *,
    mount_command: UserCommand,
    mount_timeout: float | None = None,
    provider: Provider | str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    databases: Sequence[str] | None = None,
    block_size: int | None = None,
    checksum: bool = False,
    replace: bool = False,
    norecovery: bool = False,
    with_options: Sequence[str] = (),
    own_process: bool = True,
    password: Password | None = None,
    group: str | None = None,
    events: Consumer | Iterable[Consumer] | None = None,
) -> Result:
    """Restore databases from a set of `backup_snapshot`: a command puts their files back.

    It runs once, when every server waits for the files; its exit status decides.

    Parameters
    ----------
    source : path
        Directory of the set: ``NAME``, or ``NAME.partial`` of a prepared one.
    targets : str or callable, or a sequence of them
        Addresses of the databases, as many as the set holds and in its order.
    mount_command : str or sequence of str
        As the freeze command of `backup_snapshot`: the files must be in place, byte for byte as they were, when it
        ends with status 0.
    mount_timeout : float, optional
        Seconds that it may take.
    databases, block_size, provider, progress, checksum, replace, norecovery, with_options, own_process, password,
    group, events
        As for `restore` and `backup_snapshot`.

    Returns
    -------
    Result

    Raises
    ------
    ArgumentError
        Before anything is begun.
    CommandFailedError
        The command failed, or its time was up.
    VerificationError, StorageError, SQLError, VDError
        As for `restore`. A note names the database.
    """
    begun = time.monotonic()
    stored = StoredSet(os.fspath(source))
    taken = stored.manifest.snapshot
    if taken is None:
        raise ArgumentError(f"{stored.path} is no snapshot: it holds the data themselves, and needs no mount command")
    if mount_timeout is not None and not mount_timeout > 0:
        raise ArgumentError(f"mount_timeout must be positive, not {mount_timeout!r}")
    addresses = _several(targets, databases)
    if len(addresses) != len(taken):
        names = ", ".join(entry["database"] for entry in taken)
        raise ArgumentError(f"{stored.path} is of {len(taken)} databases ({names}), not of {len(addresses)}")
    stored.verify()  # it is small, and everything depends on it
    reporter = Reporter("restore", progress, stored.manifest.size, events)
    wish = RestoreWish(
        block_size=block_size or stored_block_size(stored), checksum=checksum, replace=replace,
        norecovery=norecovery, with_options=("SNAPSHOT", *with_options),
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        places = [
            stack.enter_context(target_place(address, name, replace, provider, own_process, password))
            for address, name in addresses
        ]
        # A server that does not know the database puts its files where they were.
        originals = [entry["files"] for entry in taken]
        files = [
            _files(place) or (was if place.is_server else ()) for place, was in zip(places, originals, strict=True)
        ]
        lineup = Lineup([place.database for place in places], (_MOUNTING,))

        def part(number: int, place: Place) -> Part:
            player = _Player(stack.enter_context(stored.open_stripe(number + 1)), number, lineup, reporter)

            def start(names: list[str]) -> Statement:
                return place.submit(wish.text(place.database, names), job.hear)

            job = Job(
                reporter, 1, player.serve, provider=place.library, request_complete=False, instance=place.instance,
                group=group,
            )  # fmt: skip
            return Part(place.database, job, start)

        def conduct() -> None:
            lineup.wait_for_all(_MOUNTING, Deadline(None))
            reporter.phase("mounting", message=str(len(places)))
            environment = {"VDI_EXT_SET": stored.path, "VDI_EXT_NAME": os.path.basename(stored.path)}
            for number, was in enumerate(originals, 1):
                environment[f"VDI_EXT_ORIGINALS_{number}"] = "\n".join(was)
            _run(mount_command, "mount", environment, places, files, Deadline(mount_timeout), lineup)
            lineup.open(_MOUNTING)

        parts = [part(number, place) for number, place in enumerate(places)]
        try:
            lineup.run(parts, conduct)
        except BaseException as error:
            if good := [part.name for part in parts if part.succeeded]:
                error.add_note(f"restored all the same: {', '.join(good)}")
            raise
    reporter.phase("done")
    seconds = time.monotonic() - begun
    restored = ", ".join(part.name for part in parts)
    return Result(stored.path, stored.manifest.size, len(parts), seconds, _messages(parts), restored)


class _Player:
    """Serves the device of one database by playing its description back."""

    def __init__(self, reader: StripeReader, number: int, lineup: Lineup, reporter: Reporter) -> None:
        self._reader = reader
        self._number = number
        self._lineup = lineup
        self._reporter = reporter

    def serve(self, job: Job, device: VirtualDevice, number: int) -> None:
        assert job.device_set is not None
        self._set = job.device_set
        answer_commands(device, number, self._answer, job.events)

    def _answer(self, command: Command) -> Answer:
        code = command.code
        try:
            if code is CommandCode.READ:
                count = self._reader.readinto(command)
                self._reporter.advance(count)
                full = count == command.size
                return complete(command, CompletionCode.SUCCESS if full else CompletionCode.HANDLE_EOF, count)
            if code is CommandCode.MOUNT_SNAPSHOT:
                if not self._lineup.arrive(self._number, _MOUNTING, self._set):
                    return complete(command, CompletionCode.OPERATION_ABORTED)
            elif code not in (CommandCode.CLEAR_ERROR, CommandCode.COMPLETE):
                return complete(command, CompletionCode.NOT_SUPPORTED)
        except (VerificationError, StorageError) as error:
            self._set.signal_abort(str(error))
            raise
        command.complete()
        return DONE
