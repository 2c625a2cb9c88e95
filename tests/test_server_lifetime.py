"""Server half: what is dropped, closed, forked, interrupted or left open, in any order."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import weakref
from pathlib import Path

import pytest
from server_pair import BLOCK, TIMEOUT, TRANSFER, Pair, active, start, until

from vdi_ext import (
    CommandCode,
    Feature,
    SetState,
    VDAbortError,
    VDInvalidError,
    VDNotOpenError,
    VDProtocolError,
    VirtualDeviceSet,
)
from vdi_ext.server import Completion, ServerDeviceSet

ROOT = Path(__file__).resolve().parent.parent


# ---- close and views


def test_close_waits_for_nobodys_view_but_refuses() -> None:
    with active() as pair:
        buffer = pair.buffer()
        views = [memoryview(buffer), memoryview(buffer)[5:], memoryview(pair.buffer())]
        with pytest.raises(BufferError, match="3 views"):
            pair.server.close()
        assert pair.server.state is SetState.ACTIVE  # nothing was done
        future = pair.device.send_command(CommandCode.FLUSH)
        pair.reader.get_command(TIMEOUT).complete()
        assert future.result(TIMEOUT).code == 0
        pair.device.close_device()
        for view in views:
            view.release()
        pair.server.close()


def test_signal_abort_does_not_depend_on_views() -> None:
    with active() as pair, memoryview(pair.buffer()) as view:
        pair.server.signal_abort()
        view[:] = b"x" * TRANSFER
        assert bytes(view[:4]) == b"xxxx"


def test_an_exception_puts_close_off_until_the_views_are_gone() -> None:
    with Pair() as pair:
        pair.configure()
        with pytest.raises(KeyError, match="the user's"), pair.server:
            view = memoryview(pair.buffer())
            view[:4] = b"data"
            raise KeyError("the user's")
        with pytest.raises(VDAbortError, match="KeyError"):
            pair.client.get_configuration(TIMEOUT)
        assert bytes(view[:4]) == b"data"
        view[-1:] = b"!"
        with pytest.raises(ValueError):
            memoryview(view.obj)
        pair.server.close()  # was asked for already
        assert pair.server.state is SetState.ABORT
        part = view[10:]
        view.release()
        assert pair.server.state is SetState.ABORT
        part.release()
        assert pair.server.state is SetState.DOES_NOT_EXIST


def test_views_do_not_outlive_the_mapping() -> None:
    """The view, and it alone, keeps what it shows, whoever else has left."""
    pair = Pair().configure()
    with pytest.raises(KeyError), pair.server:
        view = memoryview(pair.buffer())
        view[:] = b"y" * TRANSFER
        raise KeyError
    client = pair.client
    del pair
    client.signal_abort()
    client.close()
    del client
    gc.collect()
    assert bytes(view) == b"y" * TRANSFER
    view.release()


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=lambda o: "".join(map(str, o)))
def test_objects_may_be_dropped_in_any_order(order: tuple[int, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        client = VirtualDeviceSet.create(provider="embedded")
        server = ServerDeviceSet.open(client.name)
        server.begin_configuration(Feature.WRITE_MEDIA, BLOCK, 0, TRANSFER)
        server.request_buffers(TRANSFER, 0, 1)
        server.end_configuration()
        client.get_configuration(TIMEOUT)
        device = server.open_device(server.name)
        buffer = server.allocate_buffer(TRANSFER)
        objects: list[object] = [server, device, buffer, memoryview(buffer)]
        del server, device, buffer
        for n in order:
            if n == 3:
                view = objects[3]
                assert isinstance(view, memoryview)
                view[:4] = b"live"
                assert bytes(view[:4]) == b"live"
                del view
            objects[n] = None
            gc.collect()
        with pytest.raises(VDAbortError, match="without closing"):
            client.open_device().get_command(TIMEOUT)
        client.close()


def test_a_set_that_is_collected_warns_aborts_and_closes() -> None:
    client = VirtualDeviceSet.create("collected", provider="embedded")
    server = ServerDeviceSet.open(client.name)
    with pytest.warns(ResourceWarning, match="unclosed device set <ServerDeviceSet 'collected'>") as record:
        del server
        gc.collect()
    record.clear()
    with pytest.raises(VDAbortError):
        client.get_configuration(TIMEOUT)
    client.close()


def test_a_set_that_ended_well_and_is_collected_does_not_abort() -> None:
    with active() as pair:
        pair.device.close_device()
        pair.server_devices.clear()
        with pytest.warns(ResourceWarning) as record:
            del pair.server
            gc.collect()
        record.clear()
        assert list(pair.reader) == []
        pair.client.close()
        pair.server = ServerDeviceSet.__new__(ServerDeviceSet)  # for the end of the block
        pair.abort_and_close = lambda: None  # type: ignore[method-assign]


@pytest.mark.threaded
def test_a_set_with_outstanding_commands_is_collected() -> None:
    client = VirtualDeviceSet.create(provider="embedded")
    server = ServerDeviceSet.open(client.name)
    server.begin_configuration(Feature.WRITE_MEDIA, BLOCK, 0, TRANSFER)
    server.request_buffers(TRANSFER, 0, 1)
    server.end_configuration()
    client.get_configuration(TIMEOUT)
    seen: list[Completion] = []
    future = server.open_device(server.name).send_command(
        CommandCode.WRITE, server.allocate_buffer(TRANSFER), callback=seen.append
    )
    with pytest.warns(ResourceWarning):
        del server
        gc.collect()
    assert future.result(TIMEOUT).code == 995
    assert seen == [future.result()]
    with pytest.raises(VDAbortError):
        client.open_device().get_command(TIMEOUT)
    client.close()


def test_an_exception_that_nobody_can_ask_for_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mishap(Exception):
        pass

    def callback(completion: Completion) -> None:
        raise Mishap(completion.code)

    reported: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: reported.append(unraisable.exc_type))
    client = VirtualDeviceSet.create(provider="embedded")
    server = ServerDeviceSet.open(client.name)
    server.begin_configuration(Feature.WRITE_MEDIA, BLOCK, 0, TRANSFER)
    server.end_configuration()
    client.get_configuration(TIMEOUT)
    future = server.open_device(server.name).send_command(CommandCode.FLUSH, callback=callback)
    with pytest.warns(ResourceWarning):
        del server
        gc.collect()
    assert future.result(TIMEOUT).code == 995
    until(lambda: bool(reported))
    assert reported == [Mishap]
    client.signal_abort()
    client.close()


def test_a_device_keeps_its_set() -> None:
    with active() as pair:
        server = pair.server
        del pair.server
        device = pair.server_devices[0]
        alive = weakref.ref(server)
        del server
        gc.collect()
        assert alive() is not None
        future = device.send_command(CommandCode.FLUSH)
        pair.reader.get_command(TIMEOUT).complete()
        assert future.result(TIMEOUT).code == 0
        found = alive()
        assert found is not None
        pair.server = found


def test_a_set_in_a_cycle_is_collected() -> None:
    client = VirtualDeviceSet.create(provider="embedded")
    server = ServerDeviceSet.open(client.name)

    class Holder:
        pass

    holder = Holder()
    holder.server, holder.itself = server, holder  # type: ignore[attr-defined]
    with pytest.warns(ResourceWarning):
        del server, holder
        gc.collect()
    client.signal_abort()
    client.close()


def test_a_callback_in_a_cycle_with_its_set_is_released_by_its_completion() -> None:
    with active() as pair:

        class State:
            def __init__(self) -> None:
                self.device = pair.device

            def callback(self, completion: Completion) -> None:
                pass

        state = State()
        gone = weakref.ref(state)
        future = pair.device.send_command(CommandCode.FLUSH, callback=state.callback)
        del state
        gc.collect()
        assert gone() is not None  # an outstanding command keeps its callback
        pair.reader.get_command(TIMEOUT).complete()
        future.result(TIMEOUT)
        until(lambda: gone() is None)


def test_references_stay_level() -> None:
    with active() as pair:
        buffer = pair.buffer()

        def callback(completion: Completion) -> None:
            pass

        def round_trip() -> None:
            future = pair.device.send_command(CommandCode.WRITE, buffer, callback=callback)
            with memoryview(buffer):
                pair.reader.get_command(TIMEOUT).complete()
            future.result(TIMEOUT)

        def refused() -> None:
            with pytest.raises(ValueError):
                pair.device.send_command(CommandCode.WRITE, buffer, size=2 * TRANSFER, callback=callback)

        things = (buffer, callback, pair.device, pair.server, None)
        for work in (round_trip, refused):
            for _ in range(10):
                work()
            before = [sys.getrefcount(t) for t in things]
            for _ in range(1000):
                work()
            until(lambda before=before: all(  # type: ignore[misc]
                abs(sys.getrefcount(t) - b) < 50 for t, b in zip(things, before, strict=True)
            ))


# ---- after close


def test_everything_after_close() -> None:
    with active() as pair:
        buffer = pair.buffer()
        pair.device.close_device()
        assert list(pair.reader) == []
        pair.server.close()
        server, device = pair.server, pair.device
        for call in (
            server.get_configuration,
            lambda: server.begin_configuration(0, 512, 0, 65536),
            lambda: server.request_buffers(512, 0, 1),
            lambda: server.query_available_buffers(512, 0),
            server.end_configuration,
            lambda: server.open_device("x"),
            lambda: server.allocate_buffer(512),
            lambda: server.free_buffer(buffer),
            server.execute_completion_agent,
            server.signal_abort,
            lambda: device.send_command(CommandCode.FLUSH),
            device.close_device,
        ):
            with pytest.raises(VDProtocolError):
                call()
        with pytest.raises(ValueError):
            memoryview(buffer)
        with pytest.raises(ValueError):
            server.is_shared_buffer(buffer)
        assert server.is_shared_buffer(b"x") is False
        assert server.state is SetState.DOES_NOT_EXIST
        assert server.close() is None  # type: ignore[func-returns-value]
        assert (server.name, device.name) == (pair.name, pair.name)


@pytest.mark.threaded
def test_close_from_several_threads_at_once() -> None:
    for _ in range(20):
        with active() as pair:
            pair.device.close_device()
            barrier = threading.Barrier(4)

            def close(pair: Pair = pair, barrier: threading.Barrier = barrier) -> None:
                barrier.wait(TIMEOUT)
                pair.server.close()

            for thread in [start(close) for _ in range(4)]:
                thread.outcome()
            assert pair.server.state is SetState.DOES_NOT_EXIST


@pytest.mark.threaded
def test_close_against_everything_else() -> None:
    for _ in range(20):
        with active() as pair:
            barrier = threading.Barrier(4)

            def send(pair: Pair = pair, barrier: threading.Barrier = barrier) -> None:
                buffer = pair.buffer()
                barrier.wait(TIMEOUT)
                try:
                    while True:
                        pair.device.send_command(CommandCode.WRITE, buffer).result(TIMEOUT)
                except (VDAbortError, VDProtocolError, ValueError):
                    pass

            def look(pair: Pair = pair, barrier: threading.Barrier = barrier) -> None:
                barrier.wait(TIMEOUT)
                try:
                    while True:
                        pair.server.free_buffer(pair.buffer())
                        pair.server.get_configuration()
                except (VDAbortError, VDProtocolError, ValueError):
                    pass

            def read(pair: Pair = pair, barrier: threading.Barrier = barrier) -> None:
                barrier.wait(TIMEOUT)
                try:
                    for command in pair.reader:
                        command.complete()
                except VDAbortError:
                    pass

            threads = [start(send), start(look), start(read)]
            barrier.wait(TIMEOUT)
            with pytest.raises(VDProtocolError):
                pair.server.close()
            for thread in threads:
                thread.outcome()


# ---- fork


def test_a_forked_child_has_inert_objects() -> None:
    with active() as pair:
        buffer = pair.buffer()
        view = memoryview(buffer)
        view[:4] = b"seen"
        future = pair.device.send_command(CommandCode.FLUSH)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                server, device = pair.server, pair.device
                for call in (
                    server.get_configuration,
                    lambda: server.begin_configuration(0, 512, 0, 65536),
                    lambda: server.request_buffers(512, 0, 1),
                    lambda: server.query_available_buffers(512, 0),
                    server.end_configuration,
                    lambda: server.open_device("x"),
                    lambda: server.allocate_buffer(512),
                    lambda: server.free_buffer(buffer),
                    lambda: server.is_shared_buffer(b"x"),
                    server.execute_completion_agent,
                    server.signal_abort,
                    server.close,
                    lambda: server.state,
                    lambda: device.send_command(CommandCode.FLUSH),
                    device.close_device,
                    lambda: memoryview(buffer),
                ):
                    with pytest.raises(VDNotOpenError):
                        call()
                assert bytes(view[:4]) == b"seen"  # what is mapped stays readable
                view.release()
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    pair.server.__exit__(ValueError, ValueError(), None)
                    del server, device, buffer, call, future
                    pair.__dict__.clear()
                    gc.collect()
                status = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        pair.reader.get_command(TIMEOUT).complete()  # the parent goes on undisturbed
        assert future.result(TIMEOUT).code == 0
        assert bytes(view[:4]) == b"seen"
        view.release()


def test_a_forked_child_may_have_sets_of_its_own() -> None:
    with active() as pair:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                with active() as mine:
                    future = mine.device.send_command(CommandCode.FLUSH)
                    mine.reader.get_command(TIMEOUT).complete()
                    status = future.result(TIMEOUT).code
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        assert pair.server.state is SetState.ACTIVE


# ---- processes: exit with open objects, Ctrl-C


def script(text: str, *arguments: str) -> list[str]:
    head = """
        import os, signal, sys, threading, time
        from server_pair import *
        from vdi_ext import *
        from vdi_ext.server import *
    """
    return [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(text), *arguments]


ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}


EXITS = {
    "open": "pair = Pair()",
    "configured": "pair = Pair().configure(); buffer = pair.buffer(); view = memoryview(buffer)",
    "active": "pair = Pair().configure().open_devices()",
    "outstanding": """
        pair = Pair().configure().open_devices()
        futures = [pair.device.send_command(CommandCode.WRITE, pair.buffer(), callback=print) for _ in range(3)]
        sys.stdout = open(os.devnull, "w")
    """,
    "agent of a thread": """
        pair = Pair().configure().open_devices()
        threading.Thread(target=lambda: pair.server.execute_completion_agent(), daemon=True).start()
        until(lambda: pair.server.agent_running)
        sys.stderr = open(os.devnull, "w")  # that thread says it was aborted
    """,
    "callback that hangs": """
        pair = Pair().configure().open_devices()
        arrived = threading.Event()
        def callback(completion):
            arrived.set()
            threading.Event().wait()
        pair.device.send_command(CommandCode.FLUSH, callback=callback)
        pair.reader.get_command(TIMEOUT).complete()
        assert arrived.wait(TIMEOUT)
    """,
    "callbacks under way": """
        pair = Pair().configure().open_devices()
        def again(completion):
            if completion.code == 0:
                pair.device.send_command(CommandCode.FLUSH, callback=again)
        for _ in range(8):
            pair.device.send_command(CommandCode.FLUSH, callback=again)
        def serve():
            try:
                for command in pair.reader:
                    command.complete()
            except VDError:
                pass
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        time.sleep(0.05)
    """,
    "views and a cycle": """
        pair = Pair().configure().open_devices()
        pair.itself = pair
        pair.views = [memoryview(pair.buffer())]
        import builtins
        builtins.keep = pair
    """,
    "used at the very end": """
        import builtins
        pair = Pair().configure().open_devices()
        class Late:
            def __init__(self):
                self.server, self.open, self.name, self.say = pair.server, ServerDeviceSet.open, pair.name, os.write
            def __del__(self):
                self.server.close()
                try:
                    self.open(self.name + "x")
                except ValueError:
                    return
                self.say(1, b"opened nothing")
        builtins.keep = Late()
    """,
    "put off": """
        pair = Pair().configure()
        try:
            with pair.server:
                view = memoryview(pair.buffer())
                raise KeyError
        except KeyError:
            pass
    """,
}


@pytest.mark.parametrize("case", EXITS)
def test_a_process_exits_with_everything_open(case: str) -> None:
    begin = time.monotonic()
    done = subprocess.run(script(EXITS[case]), env=ENVIRONMENT, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b""), done
    assert time.monotonic() - begin < 30


def test_a_server_that_exits_aborts_its_client() -> None:
    client = VirtualDeviceSet.create(provider="embedded")
    text = """
        server = ServerDeviceSet.open(sys.argv[1])
        server.begin_configuration(Feature.WRITE_MEDIA, 512, 0, 65536)
        server.end_configuration()
        device = server.open_device(server.name)
        device.send_command(CommandCode.FLUSH)
        sys.stdin.read()  # until the client has joined
    """
    process = subprocess.Popen(script(text, client.name), env=ENVIRONMENT, stdin=subprocess.PIPE)
    try:
        client.get_configuration(TIMEOUT)
        reader = client.open_device()
        process.stdin.close()
        with pytest.raises(VDAbortError, match="exits") as caught:
            while True:
                reader.get_command(TIMEOUT).complete()
        assert caught.value.pid == process.pid
    finally:
        assert process.wait(TIMEOUT) == 0
    client.close()


def test_a_client_that_is_killed_aborts_its_server() -> None:
    text = """
        with VirtualDeviceSet.create(provider="embedded") as client:
            print(client.name, flush=True)
            client.get_configuration()
            reader = client.open_device()
            commands = [reader.get_command(), reader.get_command()]
            print("got them", flush=True)
            reader.get_command()
    """
    process = subprocess.Popen(script(text), env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        server = ServerDeviceSet.open(process.stdout.readline().strip())
        server.begin_configuration(Feature.WRITE_MEDIA, BLOCK, 0, TRANSFER)
        server.request_buffers(TRANSFER, 0, 2)
        server.end_configuration()
        device = server.open_device(server.name)
        buffers = [server.allocate_buffer(TRANSFER) for _ in range(2)]
        futures = [device.send_command(CommandCode.WRITE, b) for b in buffers]
        assert process.stdout.readline() == "got them\n"
        process.kill()
        assert [f.result(1.0).code for f in futures] == [995, 995]
        with pytest.raises(VDAbortError, match="died") as caught:
            device.send_command(CommandCode.FLUSH)
        assert caught.value.pid == process.pid
        server.close()
    finally:
        process.kill()
        process.communicate()


WAITS = {
    "agent": """
        pair.open_devices()
        ready()
        pair.server.execute_completion_agent()
    """,
    "close": """
        pair.open_devices()
        arrived, leave = threading.Event(), threading.Event()
        def callback(completion):
            arrived.set()
            leave.wait()
        pair.device.send_command(CommandCode.FLUSH, callback=callback)
        pair.reader.get_command(TIMEOUT).complete()
        assert arrived.wait(TIMEOUT)
        ready()
        try:
            pair.server.close()
        finally:
            leave.set()
    """,
    "exit of the block": """
        pair.open_devices()
        arrived, leave = threading.Event(), threading.Event()
        def callback(completion):
            arrived.set()
            leave.wait()
        pair.device.send_command(CommandCode.FLUSH, callback=callback)
        pair.reader.get_command(TIMEOUT).complete()
        assert arrived.wait(TIMEOUT)
        try:
            with pair.server:
                ready()
                raise ValueError
        finally:
            leave.set()
    """,
    "future": """
        pair.open_devices()
        future = pair.device.send_command(CommandCode.FLUSH)
        ready()
        future.result()
    """,
}


@pytest.mark.parametrize("case", WAITS)
def test_ctrl_c_is_answered_at_once(case: str) -> None:
    text = f"""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        def ready():
            print("ready", flush=True)
        pair = Pair().configure()
        try:
{textwrap.indent(textwrap.dedent(WAITS[case]), " " * 12)}
        except KeyboardInterrupt:
            print(time.monotonic(), flush=True)
        pair.abort_and_close()
    """
    process = subprocess.Popen(script(text), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        waiting_in(process.pid)
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, err) == (0, "")
    assert float(out) - sent < 0.2


def waiting_in(pid: int) -> None:
    """Wait until the main thread of a process sleeps."""
    asleep = 0
    while asleep < 20:  # not only between two steps
        state = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        asleep = asleep + 1 if state == "S" else 0
        time.sleep(0.005)


def test_after_ctrl_c_the_agent_goes_on_until_close() -> None:
    with active() as pair:
        main = threading.main_thread().ident
        assert main is not None and threading.get_ident() == main

        def interrupt() -> None:
            until(lambda: pair.server.agent_running)
            signal.pthread_kill(main, signal.SIGINT)

        thread = start(interrupt)
        with pytest.raises(KeyboardInterrupt):
            pair.server.execute_completion_agent()
        thread.outcome()
        assert pair.server.agent_running
        future = pair.device.send_command(CommandCode.FLUSH)
        pair.reader.get_command(TIMEOUT).complete()
        assert future.result(TIMEOUT).code == 0
        pair.device.close_device()
        until(lambda: not pair.server.agent_running)


def test_open_of_a_silent_set_ends() -> None:
    """A client that is stopped does not answer: 5 seconds and no more; Ctrl-C is answered before."""
    text = """
        with VirtualDeviceSet.create(provider="embedded") as client:
            print(client.name, flush=True)
            sys.stdin.readline()
    """
    process = subprocess.Popen(
        script(text), env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        process.send_signal(signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
        timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])  # delivered to the timer's thread
        begin = time.monotonic()
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            ServerDeviceSet.open(name)
        assert time.monotonic() - begin < 0.5
        timer.join()
        begin = time.monotonic()
        with pytest.raises((TimeoutError, VDInvalidError)):
            ServerDeviceSet.open(name)
        assert time.monotonic() - begin < 7
        until(lambda: not any(t.name == "vdi-call" for t in threading.enumerate()))
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()
