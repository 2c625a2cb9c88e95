"""Each error of section 12.4, provoked, and found where a user of SQL Server would look: at the driver or in the log.

The texts are those of the specification, written here by hand; white space between the words of a message is not
compared, of which SQL Server prints two where a part of its text is empty.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import textwrap
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytds
import pytest
from conftest import ROOT
from engine_clients import DONE, Handler, Player, Recorder, client
from tds_clients import DRIVERS, LOGIN, PASSWORD, PLAIN, connected

from vdi_ext import Command, CommandCode, CompletionCode, VDAbortError, VirtualDevice
from vdi_ext.engine import Engine, Message, Synthetic
from vdi_ext.engine.session import Session
from vdi_ext.engine.tds import Endpoint
from vdi_ext.events import Configured, Event

ABORTED = "995(The I/O operation has been aborted because of either a thread exit or an application request.)"
NOT_FOUND = "0x80070002(The system cannot find the file specified.)"
FULL = "112(There is not enough space on the disk.)"


class Driver:
    """A sink that keeps the messages of a batch, as a driver does."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def message(self, message: Message) -> None:
        self.messages.append(message)

    def columns(self, columns: tuple) -> None:
        raise AssertionError("no result set was asked for")

    row = columns

    def done(self, count: int | None) -> None:
        pass


class Server:
    """The stand-in with one database, and one connection to it: its own session, or python-tds over the network."""

    def __init__(self, stack: contextlib.ExitStack, how: str = "session", **options) -> None:
        self.engine = Engine({"db": Synthetic(5 << 20)}, **options)
        self._session: Session | None = None
        if how == "session":
            self._session = stack.enter_context(contextlib.closing(Session(self.engine)))
        else:
            self.endpoint = stack.enter_context(Endpoint(self.engine, {LOGIN: PASSWORD}))
            connection = DRIVERS[how]().connect(self.endpoint, PLAIN, Path())
            self._connection = stack.enter_context(contextlib.closing(connection))

    def run(self, sql: str) -> list[tuple[int, int, str]]:
        """Number, state and text of what the driver gets."""
        driver = Driver()
        if self._session is not None:
            self._session.run(sql, driver)
        else:
            self._over_the_network(sql, driver)
        return [(one.number, one.state, " ".join(one.text.split())) for one in driver.messages]

    def _over_the_network(self, sql: str, driver: Driver) -> None:
        """This driver keeps number, severity, state and text of every message."""
        with contextlib.closing(self._connection.cursor()) as cursor:
            with contextlib.suppress(pytds.Error):
                cursor.execute(sql)
                while cursor.nextset():
                    pass
            for _, said in cursor.messages:
                driver.message(Message(said.number, said.severity, said.state, said.text))

    @property
    def log(self) -> list[tuple[int, str]]:
        return [(entry.number, " ".join(entry.text.split())) for entry in self.engine.error_log]


@contextlib.contextmanager
def serving(how: str = "session", **options) -> Iterator[Server]:
    with contextlib.ExitStack() as stack:
        yield Server(stack, how, **options)


@pytest.fixture(params=["session", "python-tds"])
def how(request: pytest.FixtureRequest) -> str:
    """How the statement reaches the server."""
    return request.param


@pytest.fixture
def server(how: str) -> Iterator[Server]:
    with serving(how) as found:
        yield found


def failing(wanted: CommandCode, with_code: CompletionCode) -> Handler:
    def handler(number: int, command: Command) -> None:
        if command.code == wanted:
            command.complete(with_code, 0)
        elif command.code in DONE:
            command.complete()

    return handler


def failed_backup(server: Server, handler: Handler | None = None, options: str = "", **settings) -> str:
    """The first message to the driver of a BACKUP that fails; checks what follows it."""
    with client(1, handler or Recorder(1), **settings) as one:
        said = server.run(f"BACKUP DATABASE db TO {one.clauses} {options}")
    return check_failure(server, said, one.name)


def check_failure(server: Server, said: list[tuple[int, int, str]], name: str) -> str:
    (number, state, text), last = said
    assert last == (3013, 1, "BACKUP DATABASE is terminating abnormally.")
    assert server.log[-1] == (
        3041, "BACKUP failed to complete the command BACKUP DATABASE db. Check the backup application log for detailed "
        "messages.",
    )  # fmt: skip
    return f"{number}.{state} {text}".replace(name, "NAME")


def logged(server: Server, name: str = "") -> list[str]:
    """What 18210 says in the log, without the name of the device."""
    return [re.sub(r"'[^']*'", "'NAME'", text) for number, text in server.log if number == 18210]


# ---- 3201


@pytest.mark.parametrize("instance", [None, "OTHER"])
def test_3201_state_7_where_no_set_has_that_name(how: str, instance: str | None) -> None:
    """Also where it was made for another instance."""
    with serving(how, instance=instance) as server, client(1, Recorder(1)) as one:
        name = one.name if instance else "nobody"
        said = server.run(f"BACKUP DATABASE db TO VIRTUAL_DEVICE = '{name}'")
        first = check_failure(server, said, name)
        assert first == f"3201.7 Cannot open backup device 'NAME'. Operating system error {NOT_FOUND}."
        assert logged(server) == [
            f"BackupVirtualDeviceSet::Initialize: Open failure on backup device 'NAME'. Operating system error "
            f"{NOT_FOUND}."
        ]


def test_3201_state_6_where_a_device_of_the_set_can_not_be_opened(how: str) -> None:
    def abort(event: Event) -> None:
        if isinstance(event, Configured):  # configured, and no device is open yet
            one.abort()

    with serving(how, events=[abort]) as server:
        with client(1, Recorder(1)) as one:
            said = server.run(f"BACKUP DATABASE db TO {one.clauses}")
        first = check_failure(server, said, one.name)
        assert first == f"3201.6 Cannot open backup device 'NAME'. Operating system error {ABORTED}."
        assert logged(server) == [
            f"BackupVirtualDeviceSet::Initialize: Open failure on backup device 'NAME'. Operating system error "
            f"{ABORTED}."
        ]


# ---- 18210, by its routines


@pytest.mark.parametrize(
    ("code", "driver", "routine"),
    [
        (CommandCode.WRITE, 'Write on "NAME" failed:', "BackupMedium::ReportIoError: write failure"),
        (CommandCode.FLUSH, 'Write on "NAME" failed:', "BackupVirtualDeviceFile::RequestDurableMedia: Flush failure"),
    ],
)
def test_18210_of_a_client_that_has_no_space(server: Server, code: CommandCode, driver: str, routine: str) -> None:
    assert failed_backup(server, failing(code, CompletionCode.DISK_FULL)) == f"3202.1 {driver} {FULL}"
    assert logged(server) == [f"{routine} on backup device 'NAME'. Operating system error {FULL}."]


def test_18210_of_a_read_that_fails(server: Server) -> None:
    with client(1, failing(CommandCode.READ, CompletionCode.IO_DEVICE)) as one:
        said = server.run(f"RESTORE DATABASE db FROM {one.clauses}")
    text = "1117(The request could not be performed because of an I/O device error.)"
    assert said == [
        (3203, 1, f'Read on "{one.name}" failed: {text}'), (3013, 1, "RESTORE DATABASE is terminating abnormally."),
    ]  # fmt: skip
    assert logged(server) == [
        f"BackupMedium::ReportIoError: read failure on backup device 'NAME'. Operating system error {text}."
    ]
    assert 3041 not in [number for number, _ in server.log], "a message about BACKUP"


def test_18210_of_a_clear_error_that_fails(server: Server) -> None:
    recorder = Recorder(1)
    with client(1, recorder) as one:
        server.run(f"BACKUP DATABASE db TO {one.clauses}")
    stream = bytes(recorder.streams[0])
    place = 0

    def handler(number: int, command: Command) -> None:
        nonlocal place
        if command.code == CommandCode.CLEAR_ERROR:
            command.complete(CompletionCode.IO_DEVICE)
            return
        count = min(command.size, len(stream) - place)
        with memoryview(command) as view:
            view[:count] = stream[place : place + count]
        place += count
        # The end is told with the last bytes, so the device has to be cleared before it is closed.
        command.complete(CompletionCode.HANDLE_EOF if place == len(stream) else CompletionCode.SUCCESS, count)

    with client(1, handler) as one:
        said = server.run(f"RESTORE DATABASE db FROM {one.clauses} WITH REPLACE")
    text = "1117(The request could not be performed because of an I/O device error.)"
    assert [entry[0] for entry in said] == [3203, 3013]
    assert logged(server) == [
        f"BackupVirtualDeviceFile::ClearError: failure on backup device 'NAME'. Operating system error {text}."
    ]


def test_18210_where_there_is_no_memory_for_the_buffers(server: Server) -> None:
    """The code is VD_E_MEMORY."""
    first = failed_backup(server, options="WITH BUFFERCOUNT = 1000000")
    assert first == "701.1 There is insufficient system memory in resource pool 'default' to run this query."
    (text,) = logged(server)
    assert text.startswith(
        "BackupVirtualDeviceSet::AllocateBuffer: failure on backup device 'NAME'. Operating system error 0x8077000a("
    )


# ---- operating system error 995


def check_abort(server: Server, first: str) -> None:
    """After an abort the server still tries to flush and to clear, and reports that both fail."""
    assert first == f'3202.1 Write on "NAME" failed: {ABORTED}'
    assert logged(server) == [
        f"{routine} failure on backup device 'NAME'. Operating system error {ABORTED}."
        for routine in (
            "BackupMedium::ReportIoError: write",
            "BackupVirtualDeviceFile::RequestDurableMedia: Flush",
            "BackupVirtualDeviceFile::ClearError:",
        )
    ]


def test_995_after_signal_abort(server: Server) -> None:
    def handler(number: int, command: Command) -> None:
        one.abort()

    with client(1, handler) as one:
        said = server.run(f"BACKUP DATABASE db TO {one.clauses}")
    check_abort(server, check_failure(server, said, one.name))


def test_995_after_a_timeout(server: Server) -> None:
    def hold(number: int, device: VirtualDevice) -> None:
        commands = []
        with contextlib.suppress(VDAbortError):
            while True:
                commands.append(device.get_command())

    check_abort(server, failed_backup(server, loop=hold, server_timeout=0.05))


def test_995_after_the_death_of_the_client(server: Server) -> None:
    name = str(uuid.uuid4())
    program = """
        import sys
        from vdi_ext import VirtualDeviceSet
        with VirtualDeviceSet.create(sys.argv[1]) as vds:
            print("created", flush=True)
            vds.get_configuration()
            command = vds.open_device().get_command()
            print(command.code.name, flush=True)
            sys.stdin.read()
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program), name], cwd=ROOT, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdout is not None

    def kill() -> None:
        assert process.stdout is not None
        if process.stdout.readline() == "WRITE\n":
            process.kill()

    killer = threading.Thread(target=kill)
    try:
        assert process.stdout.readline() == "created\n"
        killer.start()
        said = server.run(f"BACKUP DATABASE db TO VIRTUAL_DEVICE = '{name}'")
    finally:
        process.kill()
        if killer.ident is not None:
            killer.join()
        process.communicate()
    check_abort(server, check_failure(server, said, name))


# ---- 3014


def test_3014_marks_success(server: Server) -> None:
    recorder = Recorder(1)
    with client(1, recorder) as one:
        said = server.run(f"BACKUP DATABASE db TO {one.clauses}")
    number, state, text = said[-1]
    assert (number, state) == (3014, 1)
    assert re.fullmatch(
        r"BACKUP DATABASE successfully processed \d+ pages in \d+\.\d{3} seconds \(\d+\.\d{3} MB/sec\)\.", text
    )
    with client(1, Player([bytes(recorder.streams[0])])) as one:
        said = server.run(f"RESTORE DATABASE db FROM {one.clauses} WITH REPLACE")
    assert said[-1][0] == 3014 and said[-1][2].startswith("RESTORE DATABASE successfully processed ")
    assert {3013, 3041, 18210}.isdisjoint(number for number, _ in server.log)


# ---- the same in other drivers


@pytest.mark.parametrize("name", DRIVERS)
def test_every_driver_shows_the_first_error_of_a_failed_backup(name: str, tmp_path: Path) -> None:
    """Which of them tell more is in docs/drivers.md."""
    with serving("python-tds") as server, client(1, failing(CommandCode.WRITE, CompletionCode.DISK_FULL)) as one:
        driver = DRIVERS[name]()
        certificate = tmp_path / "certificate.pem"
        certificate.write_bytes(server.endpoint.certificate)
        with connected(driver, server.endpoint, driver.modes[0], certificate) as connection:
            outcome = driver.run(connection, f"BACKUP DATABASE db TO {one.clauses}")
    assert f'Write on "{one.name}" failed: {FULL}' in str(outcome.error)
