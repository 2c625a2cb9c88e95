"""Buffers in several processes: handles, what they map to, and handles that must not map."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import multiprocessing
import os
import pickle
import socket
from contextlib import ExitStack

import numpy as np
import pytest
from serving import SIZE, WAIT, pair, pattern, process, receive, run_python

import vdi_ext as vdi
from vdi_ext import BufferHandle, CommandCode, CompletionCode, DeviceSetConfig, Feature
from vdi_ext.server import Completion, ServerDeviceSet

# The sanitizers' allocators do not survive a fork while another thread allocates.
STARTS = ["spawn"] if os.environ.get("VDI_EXT_SANITIZE") else ["fork", "spawn"]
BOTH_STARTS = pytest.mark.parametrize("context", STARTS)
COUNT = 24
DEPTH = 4


# ---- the processes


def serve(name: str, features: Feature, counts: list[int], results) -> None:
    """A server: sends `counts[i]` buffers to device i, several at a time, and checks what comes back."""
    writing = bool(features & Feature.WRITE_MEDIA)
    code = CommandCode.WRITE if writing else CommandCode.READ
    server = ServerDeviceSet.open(name)
    server.begin_configuration(features, 512, 4096, SIZE)
    server.request_buffers(SIZE, 4096, DEPTH * len(counts))
    server.end_configuration()
    with server:
        peers = [server.open_device(name if i == 0 else f"{name}/{i}") for i in range(len(counts))]
        pending: list[tuple] = []

        def check() -> None:
            seed, buffer, future = pending.pop(0)
            assert future.result(WAIT) == Completion(CompletionCode.SUCCESS, SIZE, 0)
            with memoryview(buffer) as view:
                assert view == pattern(seed), f"buffer {seed} came back with other bytes"
            server.free_buffer(buffer)

        for number in range(max(counts)):
            for device, count in enumerate(counts):
                if number >= count:
                    continue
                if len(pending) == DEPTH * len(counts):
                    check()
                buffer = server.allocate_buffer(SIZE)
                seed = device * 1000 + number
                with memoryview(buffer) as view:
                    view[:] = pattern(seed) if writing else bytes(SIZE)
                pending.append((seed, buffer, peers[device].send_command(code, buffer)))
        while pending:
            check()
        for peer in peers:
            assert peer.send_command(CommandCode.FLUSH).result(WAIT).code == 0
            peer.close_device()
        results.send(sum(counts))


def read_buffers(orders, answers) -> None:
    """A secondary of a backup: reads what the handles name, in every way, and answers with digests."""
    vds = None
    while (order := orders.recv()) is not None:
        seed, handle = order
        vds = vds or vdi.VirtualDeviceSet.open_in_secondary(handle.set_name)
        with vds.map_buffer_handle(handle) as shared:
            view = memoryview(shared)
            assert (view.nbytes, view.readonly, view.format) == (SIZE, True, "B")
            assert view == pattern(seed)
            assert np.array_equal(np.frombuffer(shared, "<u4"), np.frombuffer(pattern(seed), "<u4"))
            with pytest.raises(TypeError):
                view[0] = 1
            with pytest.raises(TypeError):
                (ctypes.c_char * SIZE).from_buffer(shared)
            digest = hashlib.sha256(shared).hexdigest()
            view.release()
        answers.send((seed, digest))
    vds.close()


def fill_buffers(orders, answers) -> None:
    """A secondary of a restore: writes into what the handles name."""
    vds = None
    while (order := orders.recv()) is not None:
        seed, handle = order
        vds = vds or vdi.VirtualDeviceSet.open_in_secondary(handle.set_name)
        with vds.map_buffer_handle(handle) as shared:
            data = pattern(seed)
            array = np.frombuffer(shared, np.uint8)
            assert array.flags.writeable and array.size == SIZE
            array[: SIZE // 2] = np.frombuffer(data[: SIZE // 2], np.uint8)
            del array
            with memoryview(shared) as view:
                view[SIZE // 2 :] = data[SIZE // 2 :]
        answers.send((seed, hashlib.sha256(data).hexdigest()))
    vds.close()


@BOTH_STARTS
@pytest.mark.parametrize("features", [Feature.WRITE_MEDIA, Feature.READ_MEDIA])
def test_commands_are_worked_on_by_other_processes(context: str, features: Feature) -> None:
    """The seed of the project: server, primary and two secondaries, each its own process, several handles out."""
    mp = multiprocessing.get_context(context)
    work = read_buffers if features & Feature.WRITE_MEDIA else fill_buffers
    with vdi.VirtualDeviceSet.create(provider="embedded") as vds, ExitStack() as stack:
        results, server_end = mp.Pipe()
        stack.enter_context(process(context, serve, vds.name, features, [COUNT], server_end))
        config = vds.get_configuration(WAIT)
        assert config.features & features
        workers = []
        for _ in range(2):
            (orders, worker_orders), (answers, worker_answers) = mp.Pipe(), mp.Pipe()
            stack.enter_context(process(context, work, worker_orders, worker_answers))
            workers.append((orders, answers))
        device = vds.open_device()
        out: list[tuple[int, vdi.Command]] = []
        seed = 0

        def complete_oldest() -> None:
            number, command = out.pop(0)
            assert receive(workers[number % 2][1]) == (number, hashlib.sha256(pattern(number)).hexdigest())
            command.complete(bytes_transferred=SIZE)

        while seed < COUNT:
            command = device.get_command(WAIT)
            handle = vds.get_buffer_handle(command)
            assert (handle.size, handle.readonly) == (SIZE, command.code is CommandCode.WRITE)
            workers[seed % 2][0].send((seed, handle))
            out.append((seed, command))
            seed += 1
            if len(out) == DEPTH:
                complete_oldest()
        while out:
            complete_oldest()
        for orders, _ in workers:
            orders.send(None)
        del command
        for command in device:
            assert command.code is CommandCode.FLUSH
            command.complete()
        assert receive(results) == COUNT


def read_one_over_a_socket(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as peer, peer.makefile("rwb") as stream:
        handle = pickle.load(stream)
        with (
            vdi.VirtualDeviceSet.open_in_secondary(handle.set_name) as vds,
            vds.map_buffer_handle(handle) as shared,
        ):
            digest = hashlib.sha256(shared).digest()
        stream.write(digest)


@BOTH_STARTS
def test_a_handle_over_a_socket(context: str) -> None:
    with pair() as both, socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(WAIT)
        command, future = both.command(data=pattern(5))
        with process(context, read_one_over_a_socket, listener.getsockname()[1]):
            peer, _ = listener.accept()
            with peer:
                peer.settimeout(WAIT)
                peer.sendall(pickle.dumps(both.vds.get_buffer_handle(command)))
                assert peer.recv(32, socket.MSG_WAITALL) == hashlib.sha256(pattern(5)).digest()
        command.complete()
        assert future.result(WAIT).code == 0
        both.finish()


def test_a_handle_in_a_program_that_knows_nothing_else() -> None:
    with pair(Feature.READ_MEDIA) as both:
        command, future = both.command(CommandCode.READ)
        handle = pickle.dumps(both.vds.get_buffer_handle(command)).hex()
        done = run_python(
            """
            import pickle
            handle = pickle.loads(bytes.fromhex(sys.argv[1]))
            with vdi.VirtualDeviceSet.open_in_secondary(handle.set_name) as vds:
                with vds.map_buffer_handle(handle) as shared:
                    memoryview(shared)[:] = pattern(77)
            """,
            handle,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        with memoryview(command) as view:
            assert view == pattern(77)
        command.complete(bytes_transferred=SIZE)
        assert future.result(WAIT).bytes_transferred == SIZE
        both.finish()


# ---- section 10.1: a secondary that serves a device by itself


def serve_second_device(name: str, ready) -> None:
    with vdi.VirtualDeviceSet.open_in_secondary(name) as vds:
        device = vds.open_device(f"{name}/1")
        assert vds.get_configuration(0).features & Feature.WRITE_MEDIA  # returns at once
        assert vds.config.device_count == 2
        seed = 1000
        for command in device.commands(WAIT):
            with command:
                if command.code is CommandCode.WRITE:
                    with memoryview(command) as view:
                        assert view == pattern(seed)
                    seed += 1
                else:
                    command.complete()
        ready.send(seed - 1000)


@BOTH_STARTS
def test_a_secondary_serves_a_device_by_itself(context: str) -> None:
    mp = multiprocessing.get_context(context)
    with vdi.VirtualDeviceSet.create(config=DeviceSetConfig(device_count=2), provider="embedded") as vds:
        results, server_end = mp.Pipe()
        counts, secondary_end = mp.Pipe()
        with process(context, serve, vds.name, Feature.WRITE_MEDIA, [7, COUNT], server_end):
            vds.get_configuration(WAIT)
            with process(context, serve_second_device, vds.name, secondary_end):
                seed = 0
                for command in vds.open_device().commands(WAIT):
                    with command:
                        if command.code is CommandCode.WRITE:
                            assert bytes(command) == pattern(seed)
                            seed += 1
                        else:
                            command.complete()
                assert (seed, receive(counts), receive(results)) == (7, COUNT, 7 + COUNT)


def join_too_early(name: str) -> None:
    with pytest.raises(vdi.VDProtocolError):
        vdi.VirtualDeviceSet.open_in_secondary(name)


@BOTH_STARTS
def test_a_secondary_waits_for_the_primary_s_configuration(context: str) -> None:
    with vdi.VirtualDeviceSet.create() as vds, process(context, join_too_early, vds.name):
        pass
    with process(context, join_too_early, "no such set"):
        pass


def abort_with_error(name: str) -> None:
    with pytest.raises(ArithmeticError), vdi.VirtualDeviceSet.open_in_secondary(name):
        raise ArithmeticError("bad page 7")


@BOTH_STARTS
def test_an_error_in_a_secondary_aborts_for_all(context: str) -> None:
    with pair() as both:
        with process(context, abort_with_error, both.vds.name) as child:
            pid = child.pid
            with pytest.raises(vdi.VDAbortError) as caught:
                both.device.get_command(WAIT)
        assert (caught.value.reason, caught.value.pid) == ("ArithmeticError: bad page 7", pid)


def map_and_vanish(handle: BufferHandle) -> None:
    vds = vdi.VirtualDeviceSet.open_in_secondary(handle.set_name)
    view = memoryview(vds.map_buffer_handle(handle))
    assert view == pattern(1)
    os._exit(0)


@BOTH_STARTS
def test_a_secondary_that_only_mapped_disturbs_nobody(context: str) -> None:
    with pair() as both:
        command, future = both.command(data=pattern(1))
        with process(context, map_and_vanish, both.vds.get_buffer_handle(command)):
            pass
        with memoryview(command) as view:
            assert view == pattern(1)
        command.complete()
        assert future.result(WAIT).code == 0
        both.finish()


# ---- handles that must not map


def forgeries(handle: BufferHandle) -> dict[str, BufferHandle]:
    assert handle.set_id is not None
    changes: dict[str, list[object]] = {
        "value": [
            handle.value + 1, handle.value - 1, handle.value ^ 0x80000000, handle.value ^ 0x1000, 0, 1, 0xFFFFFFFF, -1,
            1 << 32, None, "1", 1.0, True,
        ],
        "size": [handle.size + 1, handle.size - 1, 0, 2 * handle.size, 0xFFFFFFFF, 1 << 32, -1, None],
        "readonly": [not handle.readonly],
        "set_name": ["another set", "", None, handle.set_name + "x", 5],
        "instance": ["OTHER", 5],
        "set_id": [bytes(16), handle.set_id[:-1], handle.set_id + b"\0", handle.set_id[::-1], None, "0" * 16, b""],
        "generation": [handle.generation + 1, handle.generation + 2, handle.generation - 1, 0, -1, 1 << 64, 2**64 - 1,
                       None],
    }  # fmt: skip
    return {
        f"{field}={value!r}": dataclasses.replace(handle, **{field: value})
        for field, values in changes.items()
        for value in values
        if (type(value), value) != (type(real := getattr(handle, field)), real)  # 1 may be what it is
    }


def map_forgeries(handle: BufferHandle, answers) -> None:
    found = {}
    with vdi.VirtualDeviceSet.open_in_secondary(handle.set_name) as vds:
        for what, forged in forgeries(handle).items():
            try:
                vds.map_buffer_handle(forged)
                found[what] = "mapped"
            except vdi.VDInvalidError:
                pass
            except BaseException as error:
                found[what] = repr(error)
        with vds.map_buffer_handle(handle) as shared:  # none of them did any harm
            assert len(memoryview(shared)) == SIZE
    answers.send(found)


@BOTH_STARTS
@pytest.mark.parametrize("code", [CommandCode.READ, CommandCode.WRITE])
def test_a_handle_forged_in_each_field(context: str, code: CommandCode) -> None:
    answers, end = multiprocessing.get_context(context).Pipe()
    with pair(Feature.READ_MEDIA if code is CommandCode.READ else Feature.WRITE_MEDIA) as both:
        command, _ = both.command(code)
        with process(context, map_forgeries, both.vds.get_buffer_handle(command), end):
            assert receive(answers) == {}
        command.complete(bytes_transferred=SIZE)
        both.finish()


def map_in(name: str, handles: list[BufferHandle], answers) -> None:
    names = []
    with vdi.VirtualDeviceSet.open_in_secondary(name) as vds:
        for handle in handles:
            try:
                vds.map_buffer_handle(handle)
                names.append("mapped")
            except vdi.VDError as error:
                names.append(type(error).__name__)
    answers.send(names)


@BOTH_STARTS
def test_a_handle_of_another_set(context: str) -> None:
    answers, end = multiprocessing.get_context(context).Pipe()
    with pair() as one, pair() as two:
        command, _ = one.command()
        other, _ = two.command()
        handle, own = one.vds.get_buffer_handle(command), two.vds.get_buffer_handle(other)
        tries = [
            handle,
            dataclasses.replace(handle, set_name=own.set_name),
            dataclasses.replace(handle, set_name=own.set_name, set_id=own.set_id, value=handle.value ^ 2),
            dataclasses.replace(own, set_id=handle.set_id),
            own,
        ]
        with process(context, map_in, two.vds.name, tries, end):
            assert receive(answers) == ["VDInvalidError"] * 4 + ["mapped"]
        command.complete()
        other.complete()
        one.finish()
        two.finish()


@BOTH_STARTS
def test_a_handle_used_after_completion(context: str) -> None:
    """Also once the same memory is out again under a later command."""
    answers, end = multiprocessing.get_context(context).Pipe()
    with pair(buffers=1) as both:
        future, buffer = both.send(data=pattern(1))
        command = both.device.get_command(WAIT)
        old = both.vds.get_buffer_handle(command)
        command.complete()
        future.result(WAIT)
        with process(context, map_in, both.vds.name, [old], end):
            assert receive(answers) == ["VDInvalidError"]
        both.server.free_buffer(buffer)
        command, _ = both.command(data=pattern(2))
        new = both.vds.get_buffer_handle(command)
        assert new != old
        with process(context, map_in, both.vds.name, [old, new], end):
            assert receive(answers) == ["VDInvalidError", "mapped"]
        command.complete()
        both.finish()


def hold(handle: BufferHandle, steps) -> None:
    vds = vdi.VirtualDeviceSet.open_in_secondary(handle.set_name)
    mapped = [vds.map_buffer_handle(handle) for _ in range(4)]
    view = memoryview(mapped[0])
    assert view == pattern(1)
    steps.send("mapped")
    assert receive(steps) == "completed"
    bytes(view)  # still mapped: other bytes perhaps, no crash
    with pytest.raises(BufferError, match="1 view is alive"):
        mapped[0].release()
    view.release()
    with pytest.raises(vdi.VDInvalidError, match="completed while"):
        mapped[0].release()
    mapped[0].release()  # has been released all the same
    with pytest.raises(vdi.VDInvalidError, match="completed while"), mapped[1]:
        pass
    with pytest.raises(ZeroDivisionError), mapped[2]:  # the user's exception is the one that surfaces
        raise ZeroDivisionError
    with pytest.raises(vdi.VDInvalidError):
        memoryview(mapped[3])  # no view of what is the server's again
    vds.close()


@BOTH_STARTS
def test_a_handle_released_after_completion(context: str) -> None:
    steps, end = multiprocessing.get_context(context).Pipe()
    with pair() as both:
        command, future = both.command(data=pattern(1))
        with process(context, hold, both.vds.get_buffer_handle(command), end):
            assert receive(steps) == "mapped"
            command.complete()
            assert future.result(WAIT).code == 0
            steps.send("completed")
        both.finish()


# ---- within one process


def test_a_handle_is_a_plain_value() -> None:
    with pair(prefix_zone_size=16) as both:
        command, _ = both.command()
        handle = both.vds.get_buffer_handle(command)
        assert handle == both.vds.get_buffer_handle(command)
        assert pickle.loads(pickle.dumps(handle)) == handle and hash(handle) == hash(pickle.loads(pickle.dumps(handle)))
        assert len({handle, both.vds.get_buffer_handle(command)}) == 1
        assert 0 < handle.value <= 0xFFFFFFFF
        assert (handle.size, handle.readonly, handle.set_name, handle.instance) == (SIZE, True, both.vds.name, None)
        assert isinstance(handle.set_id, bytes) and len(handle.set_id) == 16 and handle.generation > 0
        with pytest.raises(dataclasses.FrozenInstanceError):
            handle.value = 1  # type: ignore[misc]
        command.complete()
        both.finish()


def test_handles_of_different_buffers_differ() -> None:
    with pair() as both:
        commands = [both.command()[0] for _ in range(8)]
        handles = [both.vds.get_buffer_handle(command) for command in commands]
        assert len({handle.value for handle in handles}) == 8
        for number, handle in enumerate(handles):
            with both.vds.map_buffer_handle(handle) as mapped, memoryview(commands[number]) as view:
                address = np.frombuffer(mapped, np.uint8).ctypes.data
                assert address == np.frombuffer(view, np.uint8).ctypes.data  # one mapping in a process
        for command in commands:
            command.complete()
        both.finish()


def test_commands_that_have_no_handle() -> None:
    with pair() as both, pair() as other:
        write, _ = both.command()
        flush, _ = both.command(CommandCode.FLUSH)
        for vds, command in ((other.vds, write), (both.vds, flush)):
            with pytest.raises(vdi.VDInvalidError):
                vds.get_buffer_handle(command)
        write.complete()
        with pytest.raises(vdi.VDInvalidError, match="completed"):
            both.vds.get_buffer_handle(write)
        flush.complete()
        for wrong in (None, b"x", memoryview(b"x"), 5):
            with pytest.raises(TypeError):
                both.vds.get_buffer_handle(wrong)
            with pytest.raises(TypeError):
                both.vds.map_buffer_handle(wrong)
        both.finish()
        other.finish()


def test_a_mapped_buffer_is_released_once_and_by_its_block() -> None:
    with pair() as both:
        command, _ = both.command(data=pattern(4))
        handle = both.vds.get_buffer_handle(command)
        mapped = both.vds.map_buffer_handle(handle)
        assert mapped.handle == handle and "read-only" in repr(mapped)
        with mapped as entered:
            assert entered is mapped
            with memoryview(mapped) as view:
                assert "1 export" in repr(mapped)
                with pytest.raises(BufferError, match="1 view is alive"):
                    mapped.release()
                assert view == pattern(4)
        assert "released" in repr(mapped)
        mapped.release()
        for use in (mapped.__enter__, lambda: memoryview(mapped)):
            with pytest.raises(ValueError, match="released"):
                use()
        with pytest.raises(BufferError), both.vds.map_buffer_handle(handle) as again:
            view = memoryview(again)  # left alive: nothing is released
        view.release()
        again.release()
        command.complete()
        both.finish()


def test_a_mapped_view_keeps_no_command_but_the_mapping() -> None:
    with pair() as both:
        command, future = both.command(data=pattern(4))
        mapped = both.vds.map_buffer_handle(both.vds.get_buffer_handle(command))
        view = memoryview(mapped)
        command.complete()
        assert future.result(WAIT).code == 0
        with pytest.raises(BufferError, match="1 view is alive on buffers of this set"):
            both.vds.close()
        view.release()
        with pytest.raises(vdi.VDOpenError):
            both.vds.close()
        with pytest.raises(vdi.VDNotOpenError):
            mapped.release()


def test_a_mapped_buffer_after_an_abort() -> None:
    with pair() as both:
        command, _ = both.command(data=pattern(4))
        mapped = both.vds.map_buffer_handle(both.vds.get_buffer_handle(command))
        view = memoryview(mapped)
        both.server.signal_abort("enough")
        assert view == pattern(4)  # section 9.3: stays valid until close
        view.release()
        with pytest.raises((vdi.VDAbortError, vdi.VDInvalidError)):
            mapped.release()


def test_a_secondary_in_the_primary_s_own_process() -> None:
    with pair() as both:
        command, future = both.command(data=pattern(1))
        handle = both.vds.get_buffer_handle(command)
        with (
            vdi.VirtualDeviceSet.open_in_secondary(both.vds.name) as second,
            second.map_buffer_handle(handle) as shared,
        ):
            with memoryview(shared) as view:
                assert view == pattern(1)
            with pytest.raises(vdi.VDInvalidError, match="another set"):
                second.get_buffer_handle(command)
        command.complete()
        assert future.result(WAIT).code == 0
        both.finish()
