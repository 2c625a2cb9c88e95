"""The state tables 6.2 to 6.5 of the specification, cell by cell, as Python sees them.

Typed from the reference with the readings of its section 13. A cell says how the call ends and, after an arrow, the
next state; without an arrow the state stays. Cells that Python can not reach are left out: a device, command or buffer
does not exist before the state in which it is made, and Create and Open make their objects.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial

import pytest
from server_pair import BLOCK, TIMEOUT, TRANSFER, Pair, active, start, until

from vdi_ext import (
    BufferHandle,
    Command,
    CommandCode,
    CompletionCode,
    Feature,
    SetState,
    VDAbortError,
    VDBusyError,
    VDClosedError,
    VDInvalidError,
    VDIOError,
    VDNotOpenError,
    VDOpenError,
    VDProtocolError,
    VDTimeoutError,
    VirtualDeviceSet,
)
from vdi_ext.server import ServerBuffer, ServerDevice, ServerDeviceSet

STATES = {
    "DNE": SetState.DOES_NOT_EXIST,
    "Connected": SetState.CONNECTED,
    "Configurable": SetState.CONFIGURABLE,
    "Initializing": SetState.INITIALIZING,
    "Active": SetState.ACTIVE,
    "Terminated": SetState.NORMALLY_TERMINATED,
    "Abort": SetState.ABORT,
}
ERRORS = {
    "PROTO": VDProtocolError,
    "ABT": VDAbortError,
    "BUSY": VDBusyError,
    "CLOSE": VDClosedError,
    "INVALID": VDInvalidError,
    "OPEN": VDOpenError,
    "NOTOPEN": VDNotOpenError,
}


def table(text: str) -> list[tuple[str, str, str, str]]:
    """(function, state, outcome, next state) of each cell that is not empty."""
    head, _, *rows = [[c.strip() for c in line.strip().strip("|").split("|")] for line in text.strip().splitlines()]
    cells = []
    for function, *row in rows:
        for state, cell in zip(head[1:], row, strict=True):
            if cell:
                outcome, _, after = (part.strip() for part in cell.partition("→"))
                cells.append((function, state, outcome, after or state))
    return cells


def check(call: Callable[[], object], outcome: str) -> None:
    """The call ends as the cell says; TRUE and FALSE are results."""
    if outcome in ("OK", "TRUE", "FALSE"):
        result = call()
        if outcome != "OK":
            assert result is (outcome == "TRUE")
        return
    with pytest.raises(ERRORS[outcome]) as caught:
        call()
    assert type(caught.value) is ERRORS[outcome]


# ---- 6.3: the server


class ServerWorld:
    """A server's set in one state, with the objects that exist in it."""

    def __init__(self, state: str, devices: int = 1) -> None:
        self.pair = pair = Pair(device_count=devices)
        self.server: ServerDeviceSet = pair.server
        self.device: ServerDevice | None = None
        self.buffer: ServerBuffer | None = None
        if state in ("Connected", "DNE from Connected"):
            return
        self.server.begin_configuration(Feature.WRITE_MEDIA, BLOCK, 0, TRANSFER)
        if state == "Configurable":
            return
        self.server.request_buffers(TRANSFER, 0, 4)
        self.server.end_configuration()
        pair.client.get_configuration(TIMEOUT)
        self.buffer = self.server.allocate_buffer(TRANSFER)
        if state == "Initializing":
            return
        self.device = self.server.open_device(pair.name)
        self.reader = pair.client.open_device()
        if state == "Abort":
            self.server.signal_abort()
        elif state in ("Terminated", "DNE"):
            self.device.close_device()
            assert list(self.reader) == []
            if state == "DNE":
                self.server.close()

    def execute_completion_agent(self) -> None:
        """Where an agent is allowed, it runs on a thread of its own when this returns."""
        if self.server.state not in (SetState.INITIALIZING, SetState.ACTIVE):
            self.server.execute_completion_agent()
            return
        agent = start(self.server.execute_completion_agent)
        until(lambda: self.server.agent_running and self.server.state is SetState.ACTIVE)
        assert agent.is_alive()

    def call(self, function: str) -> Callable[[], object]:
        server, device, buffer = self.server, self.device, self.buffer
        calls: dict[str, Callable[[], object]] = {
            "GetConfiguration": server.get_configuration,
            "BeginConfiguration": lambda: server.begin_configuration(Feature.WRITE_MEDIA, BLOCK, 0, TRANSFER),
            "RequestBuffers": lambda: server.request_buffers(TRANSFER, 0, 1),
            "QueryAvailableBuffers": lambda: server.query_available_buffers(TRANSFER, 0),
            "EndConfiguration": server.end_configuration,
            "OpenDevice": lambda: server.open_device("another"),
            "ExecuteCompletionAgent": self.execute_completion_agent,
            "AllocateBuffer": lambda: server.allocate_buffer(TRANSFER),
            "IsSharedBuffer foreign": lambda: server.is_shared_buffer(b"foreign"),
            "SignalAbort": server.signal_abort,
            "Close": server.close,
        }
        if buffer is not None:
            calls["FreeBuffer"] = lambda: server.free_buffer(buffer)
            calls["IsSharedBuffer"] = lambda: server.is_shared_buffer(buffer)
        if device is not None:
            calls["SendCommand"] = lambda: device.send_command(CommandCode.FLUSH)
            calls["CloseDevice"] = device.close_device
        return calls[function]


SERVER = table(
    """
    | Function | DNE | Connected | Configurable | Initializing | Active | Terminated | Abort |
    | --- | --- | --- | --- | --- | --- | --- | --- |
    | GetConfiguration | PROTO | OK | OK | OK | OK | OK | ABT |
    | BeginConfiguration | PROTO | OK → Configurable | PROTO | PROTO | PROTO | PROTO | ABT |
    | RequestBuffers | PROTO | PROTO | OK | OK | OK | PROTO | ABT |
    | QueryAvailableBuffers | PROTO | PROTO | OK | OK | OK | PROTO | ABT |
    | EndConfiguration | PROTO | PROTO | OK → Initializing | PROTO | PROTO | PROTO | ABT |
    | OpenDevice | PROTO | PROTO | PROTO | OK → Active | OK | PROTO | ABT |
    | ExecuteCompletionAgent | PROTO | PROTO | PROTO | OK → Active | OK | PROTO | ABT |
    | AllocateBuffer | PROTO | PROTO | PROTO | OK | OK | PROTO | ABT |
    | FreeBuffer | PROTO | | | OK | OK | OK | OK |
    | IsSharedBuffer | | | | TRUE | TRUE | TRUE | TRUE |
    | IsSharedBuffer foreign | FALSE | FALSE | FALSE | FALSE | FALSE | FALSE | FALSE |
    | SendCommand | PROTO | | | | OK | PROTO | ABT |
    | CloseDevice | PROTO | | | | OK → Terminated | CLOSE | ABT |
    | SignalAbort | PROTO | OK → Abort | OK → Abort | OK → Abort | OK → Abort | OK → Abort | OK |
    | Close | OK | OK → DNE | OK → DNE | OK → DNE | PROTO → DNE | OK → DNE | OK → DNE |
    """
)  # Close in DNE: natively VD_E_PROTOCOL; in Python a second close() does nothing


@pytest.mark.parametrize(("function", "state", "outcome", "after"), SERVER)
def test_server(function: str, state: str, outcome: str, after: str) -> None:
    world = ServerWorld(state, devices=2 if (function, state) == ("OpenDevice", "Active") else 1)
    with world.pair:
        assert world.server.state is STATES[state]
        peer = world.pair.client.state
        check(world.call(function), outcome)
        assert world.server.state is STATES[after]
        if after == "Abort" or (function, state) == ("Close", "Active"):  # 9.3; section 13, Q27
            until(lambda: world.pair.client.state is SetState.ABORT)
        elif function != "Close":
            assert world.pair.client.state is peer


def test_every_server_row_is_walked() -> None:
    named = {
        "GetConfiguration", "BeginConfiguration", "RequestBuffers", "QueryAvailableBuffers", "EndConfiguration",
        "OpenDevice", "ExecuteCompletionAgent", "AllocateBuffer", "FreeBuffer", "IsSharedBuffer", "SendCommand",
        "CloseDevice", "SignalAbort", "Close",
    }  # fmt: skip
    assert {function.split()[0] for function, *_ in SERVER} == named


@pytest.mark.parametrize("state", ["Connected", "Configurable", "Initializing", "Active", "Terminated"])
@pytest.mark.parametrize("side", ["server", "client"])
def test_abort_is_one_state_wherever_it_came_from(state: str, side: str) -> None:
    world = ServerWorld(state)
    with world.pair:
        getattr(world.pair, side).signal_abort()
        until(lambda: world.server.state is SetState.ABORT)
        for function, at, outcome, _ in SERVER:
            if at == "Abort" and not (
                function in ("FreeBuffer", "IsSharedBuffer", "Close")
                or (function in ("SendCommand", "CloseDevice") and world.device is None)
            ):
                check(world.call(function), outcome)
        assert world.server.state is SetState.ABORT


def test_open_device_when_none_is_left() -> None:
    world = ServerWorld("Active")
    with world.pair:
        check(world.call("OpenDevice"), "OPEN")
        assert world.server.state is SetState.ACTIVE


def test_a_second_agent() -> None:
    world = ServerWorld("Active")
    with world.pair:
        check(world.call("ExecuteCompletionAgent"), "OK")
        check(world.server.execute_completion_agent, "BUSY")
        assert world.server.state is SetState.ACTIVE


def test_open_joins_a_set_once() -> None:
    for state in ("Connected", "Configurable", "Initializing", "Active", "Terminated"):
        world = ServerWorld(state)
        with world.pair:
            check(partial(ServerDeviceSet.open, world.pair.name), "BUSY")
            assert world.server.state is STATES[state]
    check(lambda: ServerDeviceSet.open(str(uuid.uuid4())), "INVALID")  # section 13, Q25


def test_every_device_has_its_own_end() -> None:
    with active(device_count=2) as pair:
        first, second = pair.server_devices
        first.close_device()
        assert pair.server.state is SetState.ACTIVE
        check(first.close_device, "CLOSE")
        check(lambda: first.send_command(CommandCode.FLUSH), "PROTO")
        second.close_device()
        assert pair.server.state is SetState.NORMALLY_TERMINATED


# ---- 6.2: the client


class ClientWorld:
    """A client's set in one state, with the objects that exist in it. A command is outstanding from Active on."""

    def __init__(self, state: str) -> None:
        self.pair = pair = Pair()
        self.client: VirtualDeviceSet = pair.client
        self.reader = None
        self.command: Command | None = None
        self.handle = BufferHandle(1, TRANSFER, True, pair.name, set_id=bytes(16), generation=1)
        if state == "Configurable":
            return
        pair.configure()
        if state == "Initializing":
            return
        pair.open_devices()
        self.reader = pair.reader
        sent = pair.buffer()
        self.future = pair.device.send_command(CommandCode.WRITE, sent)
        self.command = self.reader.get_command(TIMEOUT)
        self.handle = self.client.get_buffer_handle(self.command)
        if state == "Abort":
            self.client.signal_abort()
        elif state in ("Terminated", "DNE"):
            pair.device.close_device()
            with pytest.raises(VDClosedError):
                self.reader.get_command(TIMEOUT)
            if state == "DNE":
                self.client.close()
        else:
            pair.device.send_command(CommandCode.FLUSH)

    def call(self, function: str) -> Callable[[], object]:
        client, reader, command = self.client, self.reader, self.command

        def map_and_release() -> None:
            with client.map_buffer_handle(self.handle):
                pass

        def get_and_complete() -> None:
            assert reader is not None
            reader.get_command(TIMEOUT).complete()

        calls: dict[str, Callable[[], object]] = {
            "GetConfiguration": lambda: client.get_configuration(TIMEOUT),
            "OpenDevice": lambda: client.open_device(),
            "OpenDevice, another name": lambda: client.open_device("another"),
            "SignalAbort": client.signal_abort,
            "Close": client.close,
            "MapBufferHandle": map_and_release,
        }
        if command is not None:
            calls["GetCommand"] = get_and_complete
            calls["CompleteCommand"] = command.complete
            calls["GetBufferHandle"] = lambda: client.get_buffer_handle(command)
        return calls[function]


CLIENT = table(
    """
    | Function | DNE | Configurable | Initializing | Active | Terminated | Abort |
    | --- | --- | --- | --- | --- | --- | --- |
    | GetConfiguration | NOTOPEN | | OK | OK | OK | ABT |
    | OpenDevice | NOTOPEN | PROTO | OK → Active | PROTO | PROTO | ABT |
    | OpenDevice, another name | NOTOPEN | PROTO | | OPEN | PROTO | ABT |
    | GetCommand | NOTOPEN | | | OK | CLOSE | ABT |
    | CompleteCommand | NOTOPEN | | | OK | PROTO | ABT |
    | SignalAbort | NOTOPEN | OK → Abort | OK → Abort | OK → Abort | OK → Abort | OK |
    | Close | OK | OK → DNE | OK → DNE | OPEN → DNE | OK → DNE | OK → DNE |
    | GetBufferHandle | NOTOPEN | | | OK | OK | |
    | MapBufferHandle | NOTOPEN | PROTO | INVALID | OK | OK | |
    """
)  # DNE: natively VD_E_PROTOCOL; in Python a closed set says so itself, and a second close() does nothing.
# OpenDevice in Active: per device (section 13, Q4), and the only one is open. GetCommand after the end: Q10. Close: Q7.
# OpenDevice of another name in Initializing: taken on trust until the server has opened its devices.


@pytest.mark.parametrize(("function", "state", "outcome", "after"), CLIENT)
def test_client(function: str, state: str, outcome: str, after: str) -> None:
    world = ClientWorld(state)
    with world.pair:
        assert world.client.state is STATES[state]
        peer = world.pair.server.state
        check(world.call(function), outcome)
        assert world.client.state is STATES[after]
        if after == "Abort" or (function, state) == ("Close", "Active"):
            until(lambda: world.pair.server.state is SetState.ABORT)
        elif function != "Close":
            assert world.pair.server.state is peer


def test_every_client_row_is_walked() -> None:
    named = {
        "GetConfiguration", "OpenDevice", "GetCommand", "CompleteCommand", "SignalAbort", "Close", "GetBufferHandle",
        "MapBufferHandle",
    }  # fmt: skip
    assert {function.split(",")[0] for function, *_ in CLIENT} == named


@pytest.mark.parametrize("function", ["GetBufferHandle", "MapBufferHandle"])
def test_handles_in_abort(function: str) -> None:
    world = ClientWorld("Abort")
    with world.pair:
        try:
            world.call(function)()
        except VDAbortError:
            pass  # the table allows both
        assert world.client.state is SetState.ABORT


@pytest.mark.parametrize("state", ["Configurable", "Initializing", "Active", "Terminated"])
@pytest.mark.parametrize("side", ["server", "client"])
def test_abort_of_the_client_is_one_state(state: str, side: str) -> None:
    world = ClientWorld(state)
    with world.pair:
        getattr(world.pair, side).signal_abort()
        until(lambda: world.client.state is SetState.ABORT)
        for function, at, outcome, _ in CLIENT:
            if at == "Abort" and function != "Close":
                if function in ("GetCommand", "CompleteCommand") and world.command is None:
                    continue
                check(world.call(function), outcome)
        check(world.client.close, "OK")  # no VD_E_CLOSE will come
        assert world.client.state is SetState.DOES_NOT_EXIST


def test_get_configuration_moves_the_client() -> None:
    with Pair() as pair:
        with pytest.raises(VDTimeoutError):
            pair.client.get_configuration(0)
        assert pair.client.state is SetState.CONFIGURABLE
        pair.server.begin_configuration(Feature.WRITE_MEDIA, BLOCK, 0, TRANSFER)
        pair.server.end_configuration()
        assert pair.client.state is SetState.CONFIGURABLE  # section 13, Q13
        with pytest.raises(VDProtocolError):
            pair.client.open_device()
        pair.client.get_configuration(TIMEOUT)
        assert pair.client.state is SetState.INITIALIZING


def test_open_device_is_per_device() -> None:
    with Pair(device_count=3) as pair:
        pair.configure()
        for name in ("one", "two", "three"):
            pair.server.open_device(name)
        one = pair.client.open_device("one")
        assert pair.client.state is SetState.ACTIVE
        check(lambda: pair.client.open_device("one"), "PROTO")
        check(lambda: pair.client.open_device("four"), "INVALID")
        two, three = pair.client.open_device("two"), pair.client.open_device("three")
        check(lambda: pair.client.open_device("four"), "OPEN")
        check(lambda: pair.client.open_device("one"), "PROTO")
        assert [d.name for d in (one, two, three)] == ["one", "two", "three"]


def test_close_is_per_device() -> None:
    with active(device_count=2) as pair:
        for n, state in ((0, SetState.ACTIVE), (1, SetState.NORMALLY_TERMINATED)):
            pair.server_devices[n].close_device()
            for _ in range(2):
                with pytest.raises(VDClosedError):
                    pair.client_devices[n].get_command(TIMEOUT)
            assert pair.client.state is state


def test_get_command_without_a_command() -> None:
    with active() as pair:
        with pytest.raises(VDTimeoutError):
            pair.reader.get_command(0)
        assert pair.client.state is SetState.ACTIVE


def test_create_of_a_name_in_use() -> None:
    for state in ("Configurable", "Initializing", "Active", "Terminated", "Abort"):
        world = ClientWorld(state)
        with world.pair:
            check(partial(VirtualDeviceSet.create, world.pair.name, provider="embedded"), "PROTO")  # Q23
            assert world.client.state is STATES[state]


@pytest.mark.parametrize(
    ("state", "outcome"),
    [("Configurable", "PROTO"), ("Initializing", "OK"), ("Active", "OK"), ("Terminated", "OK"), ("Abort", "ABT")],
)
def test_open_in_secondary(state: str, outcome: str) -> None:
    world = ClientWorld(state)
    with world.pair:

        def join() -> None:
            with VirtualDeviceSet.open_in_secondary(world.pair.name, provider="embedded") as secondary:
                assert state == "Terminated" or secondary.state is SetState.INITIALIZING

        check(join, outcome)


# ---- 6.4: the error state of a device


def in_error(pair: Pair) -> None:
    future = pair.device.send_command(CommandCode.FLUSH)
    pair.reader.get_command(TIMEOUT).complete(CompletionCode.DISK_FULL)
    assert future.result(TIMEOUT).code is CompletionCode.DISK_FULL


def is_in_error(pair: Pair) -> bool:
    try:
        pair.device.send_command(CommandCode.FLUSH)
    except VDIOError:
        return True
    pair.reader.get_command(TIMEOUT).complete()
    return False


@pytest.mark.parametrize(
    ("error", "code", "after"),
    [
        (False, CompletionCode.SUCCESS, False),
        (False, CompletionCode.NOT_SUPPORTED, True),
        (True, CompletionCode.SUCCESS, True),  # late completion of an older command
        (True, CompletionCode.HANDLE_EOF, True),
    ],
)
def test_completions(error: bool, code: CompletionCode, after: bool) -> None:
    with active() as pair:
        older = pair.device.send_command(CommandCode.FLUSH)
        command = pair.reader.get_command(TIMEOUT)
        if error:
            in_error(pair)
        command.complete(code)
        assert older.result(TIMEOUT).code is code
        assert is_in_error(pair) is after


@pytest.mark.parametrize(
    ("error", "code", "after"),
    [
        (False, CompletionCode.SUCCESS, False),
        (False, CompletionCode.NOT_SUPPORTED, True),
        (True, CompletionCode.SUCCESS, False),
        (True, CompletionCode.NOT_SUPPORTED, True),
    ],
)
def test_clear_error(error: bool, code: CompletionCode, after: bool) -> None:
    with active() as pair:
        if error:
            in_error(pair)
        cleared = pair.device.send_command(CommandCode.CLEAR_ERROR)
        pair.reader.get_command(TIMEOUT).complete(code)
        assert cleared.result(TIMEOUT).code is code
        assert is_in_error(pair) is after


@pytest.mark.parametrize("code", [c for c in CommandCode if c is not CommandCode.CLEAR_ERROR], ids=lambda c: c.name)
def test_a_device_in_error_takes_nothing_else(code: CommandCode) -> None:
    with active() as pair:
        in_error(pair)
        with pytest.raises(VDIOError):
            pair.device.send_command(code, pair.buffer())


@pytest.mark.parametrize("error", [False, True])
@pytest.mark.parametrize(("end", "code"), [("close", VDClosedError), ("abort", VDAbortError)])
def test_the_end_of_a_device(error: bool, end: str, code: type[Exception]) -> None:
    with active() as pair:
        if error:
            in_error(pair)
        if end == "close":
            pair.device.close_device()
        else:
            pair.server.signal_abort()
        with pytest.raises(code):
            pair.reader.get_command(TIMEOUT)


# ---- 6.5: the life of one command, and who holds its buffer


def test_life_of_a_command() -> None:
    with active() as pair:
        buffer = pair.buffer()
        assert not buffer.is_lent  # server-owned
        future = pair.device.send_command(CommandCode.WRITE, buffer)
        assert buffer.is_lent and not future.done()  # queued
        command = pair.reader.get_command(TIMEOUT)
        assert buffer.is_lent and not future.done()  # outstanding
        command.complete()
        assert future.result(TIMEOUT) == (CompletionCode.SUCCESS, TRANSFER, 0)
        assert not buffer.is_lent  # completed


def test_queued_to_completed_by_an_error() -> None:
    with active() as pair:
        buffer = pair.buffer()
        first = pair.device.send_command(CommandCode.FLUSH)
        queued = pair.device.send_command(CommandCode.WRITE, buffer)
        pair.reader.get_command(TIMEOUT).complete(CompletionCode.DISK_FULL)
        assert (first.result(TIMEOUT).code, queued.result(TIMEOUT).code) == (112, 1117)
        assert not buffer.is_lent


@pytest.mark.parametrize("outstanding", [False, True])
def test_to_completed_by_an_abort(outstanding: bool) -> None:
    with active() as pair:
        buffer = pair.buffer()
        memoryview(buffer)[:4] = b"data"
        future = pair.device.send_command(CommandCode.WRITE, buffer)
        command = pair.reader.get_command(TIMEOUT) if outstanding else None
        pair.server.signal_abort()
        assert future.result(TIMEOUT) == (995, 0, 0)
        assert not buffer.is_lent
        if command is not None:
            with memoryview(command) as view:
                assert bytes(view[:4]) == b"data"  # the client may still be using it until it closes
            with pytest.raises(VDAbortError):
                command.complete()


def test_a_completion_that_came_too_late_is_ignored() -> None:
    with active() as pair:
        future = pair.device.send_command(CommandCode.FLUSH)
        command = pair.reader.get_command(TIMEOUT)
        pair.client.signal_abort()
        with pytest.raises(VDAbortError):
            command.complete()
        assert future.result(TIMEOUT).code is CompletionCode.OPERATION_ABORTED
