"""Who keeps what alive: orders of dropping, consumers of buffers, reference counts, forks, the end of a process."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import io
import itertools
import os
import socket
import struct
import sys
import threading
import traceback
import warnings
import weakref
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import pytest
from serving import SIZE, WAIT, Pair, pair, pattern, run_python

import vdi_ext as vdi
from vdi_ext import CommandCode, CompletionCode, Feature

OTHER_OBJECTS = 2  # the server's set and device stay

# ---- orders of dropping


def drop(both: Pair, things: dict[str, object], order: tuple[str, ...], check: Callable[[], None]) -> None:
    """Drop the things one by one; nothing outside `things` holds the client's objects."""
    both.devices.clear()
    both.vds = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # dropped open, as this test wants it
        for name in order:
            del things[name]
            check()
        gc.collect(0)
    assert things == {}


@pytest.fixture(params=[False, True], ids=["running", "aborted"])
def aborted(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_every_order_of_dropping_a_backup(aborted: bool) -> None:
    provider = vdi.Provider.embedded()
    data = pattern(1)
    names = ("set", "device", "command", "view", "array")
    for order in itertools.permutations(names):
        with pair(features=Feature.WRITE_MEDIA) as both:
            command, future = both.command(data=data)
            view = memoryview(command)[16:]
            things: dict[str, object] = {
                "set": both.vds, "device": both.device, "command": command, "view": view,
                "array": np.frombuffer(command, "<u8"),
            }  # fmt: skip
            if aborted:
                both.vds.signal_abort()
            del command, view

            def check(things=things) -> None:
                if "view" in things:
                    assert things["view"] == data[16:]
                if "array" in things:
                    assert things["array"].tobytes() == data

            drop(both, things, order, check)
            assert provider.live_objects() == OTHER_OBJECTS
            assert future.result(WAIT).code is CompletionCode.OPERATION_ABORTED


def test_every_order_of_dropping_mapped_buffers_and_prefix_zones(stack: ExitStack) -> None:
    provider = vdi.Provider.embedded()
    data = pattern(2)
    names = ("set", "command", "prefix", "mapped", "mapped view")
    memory = stack.enter_context(open("/proc/self/mem", "rb")).fileno()  # as the kernel sees it
    for order in itertools.permutations(names):
        with pair(prefix_zone_size=32) as both:
            command, future = both.command(data=data)
            mapped = both.vds.map_buffer_handle(both.vds.get_buffer_handle(command))
            address = np.frombuffer(command, np.uint8).ctypes.data
            prefix = command.prefix
            prefix[:] = bytes(range(32))
            things: dict[str, object] = {
                "set": both.vds, "command": command, "prefix": prefix, "mapped": mapped,
                "mapped view": memoryview(mapped),
            }  # fmt: skip
            del command, mapped, prefix

            def check(things=things, address=address) -> None:
                if "prefix" in things:
                    assert things["prefix"] == bytes(range(32))
                if "mapped view" in things and {"command", "prefix"} & set(things):
                    assert things["mapped view"] == data
                elif "mapped view" in things:  # completed: the server's again, but mapped
                    assert len(os.pread(memory, SIZE, address)) == SIZE

            drop(both, things, order, check)
            assert provider.live_objects() == OTHER_OBJECTS
            assert future.result(WAIT).code is CompletionCode.OPERATION_ABORTED


def test_objects_in_cycles_are_collected() -> None:
    provider = vdi.Provider.embedded()
    with pair() as both:
        command, future = both.command()
        cycle: list[object] = [both.vds, both.device, command, memoryview(command), np.frombuffer(command, np.uint8)]
        cycle.append(cycle)
        both.devices.clear()
        both.vds = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del cycle, command
            gc.collect()
        assert provider.live_objects() == OTHER_OBJECTS
        assert future.result(WAIT).code is CompletionCode.OPERATION_ABORTED


def test_a_device_keeps_its_set() -> None:
    with pair() as both:
        both.vds = None
        gc.collect()
        command, future = both.command()
        command.complete()
        assert future.result(WAIT).code == 0
        both.peer.close_device()
        assert list(both.device) == []
        with pytest.warns(ResourceWarning, match="never closed"):
            both.devices.clear()
            del command
            gc.collect()


def test_a_late_completion_that_fails_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: heard.append(args.exc_value))
    with pair() as both:
        command, _ = both.command()
        view = memoryview(command)
        with pytest.raises(ZeroDivisionError), command:
            raise ZeroDivisionError  # the completion waits for the view
        both.finish()  # section 6.2: a device that has reported VD_E_CLOSE takes no completion
        try:
            raise LookupError("on its way")
        except LookupError:
            view.release()
    assert [type(error) for error in heard] == [vdi.VDProtocolError]


def test_weak_references() -> None:
    with pair() as both:
        command, _ = both.command()
        mapped = both.vds.map_buffer_handle(both.vds.get_buffer_handle(command))
        references = [weakref.ref(thing) for thing in (both.vds, both.device, command, mapped)]
        assert [reference() for reference in references] == [both.vds, both.device, command, mapped]
        mapped.release()
        command.complete()
        del mapped, command
        assert references[2]() is None and references[3]() is None
        both.finish()


# ---- consumers of the buffer


HOLDING: dict[str, Callable[[vdi.Command], object]] = {
    "memoryview": memoryview,
    "slice": lambda c: memoryview(c)[100:200],
    "slice of a released view": lambda c: _slice_and_release(c),
    "cast": lambda c: memoryview(c).cast("Q"),
    "step": lambda c: memoryview(c)[::7],
    "read-only": lambda c: memoryview(c).toreadonly(),
    "frombuffer": lambda c: np.frombuffer(c, np.uint8),
    "array of u8": lambda c: np.frombuffer(c, "<u8"),
    "sub-array": lambda c: np.frombuffer(c, np.uint8)[5:9],
    "reshaped": lambda c: np.frombuffer(c, np.uint8).reshape(-1, 512).T,
    "asarray": lambda c: np.asarray(memoryview(c)),
    "iterator": lambda c: iter(memoryview(c)),
    "unpacker": lambda c: _advanced(struct.iter_unpack("<Q", c)),
    "dlpack": lambda c: np.from_dlpack(np.frombuffer(c, np.uint8)),
}
ONCE: dict[str, Callable[[vdi.Command], object]] = {
    "bytes": lambda c: bytes(c),
    "bytearray": lambda c: bytearray(c),
    "sha256": lambda c: hashlib.sha256(c).digest(),
    "crc32": lambda c: zlib.crc32(c),
    "compress": lambda c: zlib.compress(c, 1),
    "write": lambda c: io.BytesIO().write(c),
    "join": lambda c: b"".join([c, c]),
    "unpack": lambda c: struct.unpack_from("<16Q", c),
    "compare": lambda c: memoryview(c) == bytes(SIZE),
    "sum": lambda c: int(np.frombuffer(c, "<u8").sum()),
    "xor": lambda c: np.bitwise_xor.reduce(np.frombuffer(c, "<u4")),
    "send": lambda c: _send(c),
    "file": lambda c: _to_file(c),
}
FILLING: dict[str, Callable[[vdi.Command, bytes], object]] = {
    "assign": lambda c, data: memoryview(c).__setitem__(slice(None), data),
    "numpy": lambda c, data: np.copyto(np.frombuffer(c, np.uint8), np.frombuffer(data, np.uint8)),
    "readinto": lambda c, data: io.BytesIO(data).readinto(c),
    "pack_into": lambda c, data: struct.pack_into(f"{SIZE}s", c, 0, data),
    "ctypes": lambda c, data: ctypes.memmove((ctypes.c_char * SIZE).from_buffer(c), data, SIZE),
    "recv_into": lambda c, data: _receive(c, data),
}


def _slice_and_release(command: vdi.Command) -> memoryview:
    view = memoryview(command)
    part = view[1:]
    view.release()
    return part


def _advanced(iterator):
    next(iterator)
    return iterator


def _send(command: vdi.Command) -> int:
    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)
        return left.send(command)


def _receive(command: vdi.Command, data: bytes) -> None:
    left, right = socket.socketpair()
    with left, right, memoryview(command) as view:
        sender = threading.Thread(target=left.sendall, args=(data,))
        sender.start()
        got = 0
        while got < SIZE:
            got += right.recv_into(view[got:])
        sender.join(WAIT)


def _to_file(command: vdi.Command) -> int:
    fd = os.memfd_create("consumer")
    with open(fd, "wb", buffering=0) as file:
        return file.write(command)


def _features(consumer: str) -> tuple[Feature, CommandCode]:
    if consumer == "dlpack":
        return Feature.READ_MEDIA, CommandCode.READ
    return Feature.WRITE_MEDIA, CommandCode.WRITE


@pytest.mark.parametrize("consumer", HOLDING)
def test_a_holding_consumer_stands_against_complete_and_close(consumer: str) -> None:
    features, code = _features(consumer)
    with pair(features) as both:
        command, future = both.command(code)
        held = HOLDING[consumer](command)
        with pytest.raises(BufferError, match=f"alive on this {code.name} command.*del array"):
            command.complete(bytes_transferred=SIZE)
        with pytest.raises(BufferError, match="alive on buffers of this set.*del array"):
            both.vds.close()
        assert not future.done()
        del held
        gc.collect()
        command.complete(bytes_transferred=SIZE)
        assert future.result(WAIT).code == 0
        both.finish()
        both.vds.close()


@pytest.mark.parametrize("consumer", HOLDING)
def test_a_holding_consumer_after_an_abort(consumer: str) -> None:
    features, code = _features(consumer)
    with pair(features) as both:
        command, future = both.command(code, pattern(3))
        held = HOLDING[consumer](command)
        both.vds.signal_abort()
        assert future.result(WAIT).code is CompletionCode.OPERATION_ABORTED
        with pytest.raises(BufferError):
            both.vds.close()
        with memoryview(command) as view:
            assert view == pattern(3)
        del held
        both.vds.close()


@pytest.mark.parametrize("consumer", ONCE)
def test_a_consumer_that_is_done_leaves_no_view(consumer: str) -> None:
    with pair() as both:
        command, future = both.command(data=pattern(4))
        expected = ONCE[consumer](bytearray(pattern(4)))
        assert ONCE[consumer](command) == expected
        command.complete()
        assert future.result(WAIT).code == 0
        both.finish()


@pytest.mark.parametrize("consumer", FILLING)
def test_filling_a_read(consumer: str) -> None:
    with pair(Feature.READ_MEDIA) as both:
        future, buffer = both.send(CommandCode.READ)
        command = both.device.get_command(WAIT)
        FILLING[consumer](command, pattern(5))
        gc.collect()  # ctypes' object of the buffer is in a cycle
        command.complete(bytes_transferred=SIZE)
        assert future.result(WAIT).bytes_transferred == SIZE
        with memoryview(buffer) as view:
            assert view == pattern(5)
        both.finish()


# ---- the buffer protocol, flag by flag


class PyBuffer(ctypes.Structure):
    _fields_ = [
        ("buf", ctypes.c_void_p), ("obj", ctypes.py_object), ("len", ctypes.c_ssize_t), ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int), ("ndim", ctypes.c_int), ("format", ctypes.c_char_p),
        ("shape", ctypes.POINTER(ctypes.c_ssize_t)), ("strides", ctypes.POINTER(ctypes.c_ssize_t)),
        ("suboffsets", ctypes.c_void_p), ("internal", ctypes.c_void_p),
    ]  # fmt: skip


SIMPLE, WRITABLE, FORMAT, ND, STRIDES, INDIRECT = 0, 1, 4, 8, 0x18, 0x118


@pytest.mark.parametrize("flags", [SIMPLE, WRITABLE, FORMAT, ND, STRIDES, INDIRECT, STRIDES | FORMAT, 0x38, 0x58, 0x98])
@pytest.mark.parametrize("code", [CommandCode.READ, CommandCode.WRITE])
def test_each_flag_of_the_buffer_protocol(code: CommandCode, flags: int) -> None:
    get, release = ctypes.pythonapi.PyObject_GetBuffer, ctypes.pythonapi.PyBuffer_Release
    get.argtypes = [ctypes.py_object, ctypes.POINTER(PyBuffer), ctypes.c_int]
    with pair(Feature.READ_MEDIA if code is CommandCode.READ else Feature.WRITE_MEDIA) as both:
        command, _ = both.command(code, pattern(6))
        mapped = both.vds.map_buffer_handle(both.vds.get_buffer_handle(command))
        for exporter in (command, mapped):
            references = sys.getrefcount(exporter)
            view = PyBuffer()
            if flags & WRITABLE and code is CommandCode.WRITE:
                with pytest.raises(BufferError, match="read-only"):
                    get(exporter, view, flags)
            else:
                assert get(exporter, view, flags) == 0
                assert ctypes.string_at(view.buf, view.len) == pattern(6)
                assert (view.len, view.itemsize, view.ndim) == (SIZE, 1, 1)
                assert view.readonly == (code is CommandCode.WRITE)
                assert view.format == (b"B" if flags & FORMAT else None)
                assert bool(view.shape) == bool(flags & ND) and (not view.shape or view.shape[0] == SIZE)
                assert bool(view.strides) == (flags & STRIDES == STRIDES) and (not view.strides or view.strides[0] == 1)
                assert view.suboffsets is None
                with pytest.raises(BufferError):
                    command.complete() if exporter is command else mapped.release()
                release(ctypes.byref(view))
            assert sys.getrefcount(exporter) <= references
        mapped.release()
        command.complete(bytes_transferred=SIZE)
        both.finish()


# ---- references


def test_nothing_is_lost_over_many_rounds() -> None:
    rounds = 1000
    with pair(prefix_zone_size=8) as both:
        buffer = both.server.allocate_buffer(SIZE)

        def one_round() -> None:
            future = both.peer.send_command(CommandCode.WRITE, buffer)
            command = both.device.get_command(WAIT)
            with command:
                assert command.code is CommandCode.WRITE
                with memoryview(command) as view, view[1:]:
                    np.frombuffer(command, "<u4")
                with command.prefix as prefix:
                    prefix[0] = 1
                handle = both.vds.get_buffer_handle(command)
                with both.vds.map_buffer_handle(handle) as mapped, memoryview(mapped):
                    pass
                for refused in (lambda: memoryview(command).__setitem__(0, 1), lambda: command.complete(-1)):
                    with pytest.raises((TypeError, ValueError)):
                        refused()
                repr(command)
            future.result(WAIT)
            with pytest.raises(vdi.VDTimeoutError):
                both.device.get_command(0)

        watched = [None, both.vds, both.device, CommandCode.WRITE, vdi.Command, vdi.MappedBuffer, b"", (), 0]
        for _ in range(50):
            one_round()
        gc.collect()
        before, blocks = [sys.getrefcount(thing) for thing in watched], sys.getallocatedblocks()
        for _ in range(rounds):
            one_round()
        gc.collect()
        after, more = [sys.getrefcount(thing) for thing in watched], sys.getallocatedblocks() - blocks
        assert all(b - a < rounds // 10 for a, b in zip(before, after, strict=True)), (before, after)
        assert more < rounds // 2
        both.finish()


def test_sets_over_many_rounds_leave_nothing() -> None:
    def one_round() -> None:
        with vdi.VirtualDeviceSet.create(provider="embedded") as vds:
            with pytest.raises(vdi.VDTimeoutError):
                vds.get_configuration(0)
            with pytest.raises(vdi.VDProtocolError):
                vdi.VirtualDeviceSet.create(vds.name, provider="embedded")

    for _ in range(10):
        one_round()
    gc.collect()
    blocks, files = sys.getallocatedblocks(), len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        one_round()
    gc.collect()
    assert sys.getallocatedblocks() - blocks < 100
    assert len(os.listdir("/proc/self/fd")) <= files


# ---- fork


def in_child(body: Callable[[], None]) -> None:
    """Run it in a forked child; its assertions count."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            body()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@dataclass
class Inherited:
    """All that a child inherits, in one place, so that it can drop all of it."""

    vds: vdi.VirtualDeviceSet
    device: vdi.VirtualDevice
    command: vdi.Command
    view: memoryview
    deferred: vdi.Command
    held: memoryview
    mapped: vdi.MappedBuffer


def use_inherited(both: Pair, it: Inherited, handle: vdi.BufferHandle) -> None:
    assert it.view == pattern(7)
    calls: list[Callable[[], object]] = [
        it.device.get_command,
        lambda: next(it.device),
        lambda: list(it.device.commands(1)),
        it.vds.get_configuration,
        it.vds.open_device,
        it.vds.signal_abort,
        it.vds.close,
        it.vds.__enter__,
        it.command.complete,
        it.command.__enter__,
        lambda: memoryview(it.command),
        lambda: it.command.prefix,
        lambda: memoryview(it.mapped),
        lambda: it.vds.get_buffer_handle(it.command),
        lambda: it.vds.map_buffer_handle(handle),
        it.mapped.release,
    ]
    for call in calls:
        with pytest.raises(vdi.VDNotOpenError, match="fork"):
            call()
    repr(it)
    assert it.vds.state is vdi.SetState.DOES_NOT_EXIST
    for block in (it.vds, it.command, it.mapped):  # whose blocks end in the child by an exception
        block.__exit__(ValueError, ValueError("x"), None)
    warnings.simplefilter("error")
    it.held.release()
    both.vds = None
    both.devices.clear()
    calls.clear()
    vars(it).clear()
    del call, block
    gc.collect()
    with vdi.VirtualDeviceSet.create():  # a set of its own works
        pass


def test_inherited_objects_are_inert() -> None:
    with pair() as both:
        command, future = both.command(data=pattern(7))
        deferred, late = both.command(data=pattern(8))
        handle = both.vds.get_buffer_handle(command)
        mapped = both.vds.map_buffer_handle(handle)
        it = Inherited(both.vds, both.device, command, memoryview(command), deferred, memoryview(deferred), mapped)
        with pytest.raises(ZeroDivisionError), deferred:
            raise ZeroDivisionError
        del command, deferred, mapped
        in_child(lambda: use_inherited(both, it, handle))
        assert not future.done() and not late.done()  # nothing of that reached the server
        assert it.view == pattern(7)
        it.view.release()
        it.held.release()
        assert late.result(WAIT).code is CompletionCode.OPERATION_ABORTED
        it.mapped.release()
        it.command.complete()
        assert future.result(WAIT).code == 0


def test_a_child_of_a_child_and_a_parent_that_goes_on() -> None:
    with pair() as both:
        command, future = both.command(data=pattern(1))

        def grandchild() -> None:
            with pytest.raises(vdi.VDNotOpenError):
                command.complete()

        in_child(lambda: in_child(grandchild))
        command.complete()
        assert future.result(WAIT).code == 0
        both.finish()


# ---- the end of the process


ENDS = {
    "everything open": """
        both = start_pair()
        command, future = both.command(data=pattern(1))
        view = memoryview(command)[1:]
        mapped = both.vds.map_buffer_handle(both.vds.get_buffer_handle(command))
        mapped_view = memoryview(mapped)
        commands = both.device.commands(1)
    """,
    "a client with numpy": """
        import numpy as np
        vds = vdi.VirtualDeviceSet.create()
        cycle = [vds]
        cycle.append(cycle)
        array = np.frombuffer(b"x", np.uint8)
    """,
    "a thread waits for a command": """
        import contextlib, threading
        both = start_pair()
        def wait():
            with contextlib.suppress(vdi.VDAbortError):  # by the server half, when it sees the end
                both.device.get_command()
        threading.Thread(target=wait, daemon=True).start()
        while True:
            try:
                both.device.get_command(0)
            except RuntimeError:
                break
            except vdi.VDTimeoutError:
                pass
    """,
    "a thread waits for the configuration": """
        import threading
        vds = vdi.VirtualDeviceSet.create()
        threading.Thread(target=vds.get_configuration, daemon=True).start()
    """,
    "closed when all else is gone, with a thread that will not return": """
        import threading
        class Closer:
            vds = vdi.VirtualDeviceSet.create()
            def __del__(self):
                self.vds.close()
        closer = Closer()
        threading.Thread(target=closer.vds.get_configuration, daemon=True).start()
    """,
    "kept by a builtin": """
        import builtins
        builtins.kept = start_pair()
        builtins.command = builtins.kept.command()[0]
        builtins.view = memoryview(builtins.command)
    """,
    "closed at exit": """
        import atexit
        vds = vdi.VirtualDeviceSet.create()
        atexit.register(vds.close)
    """,
}


@pytest.mark.parametrize("kind", ENDS)
@pytest.mark.parametrize("consumer", ["plain", "-X dev"])
def test_a_process_that_ends_with_everything_open_says_nothing(kind: str, consumer: str) -> None:
    done = run_python(ENDS[kind])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    if consumer == "-X dev":  # there it may warn, and must not crash
        done = run_python(ENDS[kind], flags=["-X", "dev"])
        assert done.returncode == 0 and done.stdout == ""
        assert all(
            "Warning" in line or line.startswith(("  ", "Exception ignored")) for line in done.stderr.splitlines()
        )


@pytest.mark.parametrize("consumer", sorted(set(HOLDING) - {"dlpack"}))
def test_a_process_that_ends_with_a_holding_consumer(consumer: str) -> None:
    done = run_python(
        f"""
        import test_lifetime
        both = start_pair()
        command, future = both.command(data=pattern(1))
        held = test_lifetime.HOLDING[{consumer!r}](command)
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_sub_interpreters_refuse_to_import() -> None:
    done = run_python(
        """
        try:
            import _interpreters as interpreters
        except ImportError:
            import _xxsubinterpreters as interpreters  # up to 3.12
        interpreter = interpreters.create()
        try:  # up to 3.12 it raises, then it returns the error
            print(interpreters.run_string(interpreter, f"import sys; sys.path[:] = {sys.path!r}; import vdi_ext"))
        except RuntimeError as error:
            print(error)
        interpreters.destroy(interpreter)
        """
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "ImportError" in done.stdout
