"""Server half: opening, configuration, buffers, names, states, end."""

from __future__ import annotations

import uuid

import pytest
from server_pair import BLOCK, TIMEOUT, TRANSFER, Pair, active, start

from vdi_ext import (
    CommandCode,
    DeviceSetConfig,
    Feature,
    SetState,
    VDAbortError,
    VDBusyError,
    VDClosedError,
    VDInvalidError,
    VDMemoryError,
    VDOpenError,
    VDProtocolError,
    VirtualDeviceSet,
)
from vdi_ext.server import ServerBuffer, ServerDevice, ServerDeviceSet

# ---- open


def test_open_needs_a_set_of_that_name() -> None:
    with pytest.raises(VDInvalidError) as caught:
        ServerDeviceSet.open(f"nobody {uuid.uuid4()}")
    assert caught.value.operation == "Open"


def test_open_is_for_one_server_only() -> None:
    with Pair() as pair, pytest.raises(VDBusyError):
        ServerDeviceSet.open(pair.name)


def test_names_are_case_sensitive() -> None:
    with Pair("Case " + str(uuid.uuid4())) as pair, pytest.raises(VDInvalidError):
        ServerDeviceSet.open(pair.name.lower())


def test_the_instance_belongs_to_the_name() -> None:
    name = str(uuid.uuid4())
    with Pair(name, instance="SQL2022") as pair:
        assert pair.server.instance == "SQL2022"
        with pytest.raises(VDInvalidError):
            ServerDeviceSet.open(name)


@pytest.mark.parametrize("instances", [(None, ""), ("", None)])
def test_an_empty_instance_is_the_default_one(instances: tuple[str | None, str | None]) -> None:
    client = VirtualDeviceSet.create(instance=instances[0], provider="embedded")
    with client, ServerDeviceSet.open(client.name, instance=instances[1]) as server:
        assert server.state is SetState.CONNECTED


@pytest.mark.parametrize(
    "name", ["two words", "Datensicherung Ä ß 雪 🜚", "x" * 128, "雪" * 128, "🜚" * 128, "a/b:c*?\"<>|'", " "]
)
def test_names_of_sets_and_devices(name: str) -> None:
    with Pair(name, device_count=2) as pair:
        pair.configure()
        first = pair.server.open_device(name)
        second = pair.server.open_device(name[:-1] + "2")
        assert (pair.server.name, first.name, second.name) == (name, name, name[:-1] + "2")
        assert pair.client.open_device(first.name).name == first.name
        reader = pair.client.open_device(second.name)
        future = second.send_command(CommandCode.FLUSH)
        reader.get_command(TIMEOUT).complete()
        assert future.result(TIMEOUT).code == 0


@pytest.mark.parametrize("name", ["", "x" * 129, "back\\slash", "zero\0inside"])
def test_names_that_are_no_names(name: str) -> None:
    with pytest.raises(ValueError):
        ServerDeviceSet.open(name)
    with Pair(device_count=2) as pair:
        pair.configure()
        with pytest.raises(ValueError):
            pair.server.open_device(name)
        assert pair.server.open_device("good").name == "good"


@pytest.mark.parametrize("name", [None, 1, b"bytes"])
def test_names_of_another_type(name: object) -> None:
    with pytest.raises(TypeError):
        ServerDeviceSet.open(name)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [ServerDeviceSet, ServerDevice, ServerBuffer])
def test_objects_come_from_their_factories(kind: type) -> None:
    with pytest.raises(TypeError):
        kind()


def test_an_object_made_behind_its_back_is_not_open() -> None:
    server = ServerDeviceSet.__new__(ServerDeviceSet)
    device = ServerDevice.__new__(ServerDevice)
    buffer = ServerBuffer.__new__(ServerBuffer)
    for call in (
        server.get_configuration,
        server.end_configuration,
        server.execute_completion_agent,
        server.signal_abort,
        server.close,
        server.__enter__,
        device.close_device,
        lambda: device.send_command(CommandCode.FLUSH),
        lambda: server.is_shared_buffer(b"x"),
        lambda: server.state,
    ):
        with pytest.raises(VDProtocolError):
            call()
    with pytest.raises(ValueError):
        memoryview(buffer)
    with pytest.raises(ValueError):
        with active() as pair:
            pair.server.free_buffer(buffer)
    assert repr(server) and repr(device) and repr(buffer)


# ---- configuration


def test_the_server_sees_what_the_client_asks_for() -> None:
    asked = DeviceSetConfig(
        device_count=3,
        features=Feature.LIKE_TAPE | Feature.DISCARD | Feature.REQUEST_COMPLETE,
        prefix_zone_size=100,
        alignment=1024,
        soft_file_mark_block_size=65536,
        eom_warning_size=1 << 20,
        server_timeout=12.5,
    )
    client = VirtualDeviceSet.create(config=asked, provider="embedded")
    with client, ServerDeviceSet.open(client.name) as server:
        seen = server.get_configuration()
        for field in (
            "device_count",
            "features",
            "prefix_zone_size",
            "alignment",
            "soft_file_mark_block_size",
            "eom_warning_size",
            "server_timeout",
        ):
            assert getattr(seen, field) == getattr(asked, field), field


def test_both_see_what_the_server_decided() -> None:
    with Pair(features=Feature.REQUEST_COMPLETE, alignment=2048) as pair:
        pair.server.begin_configuration(
            Feature.REQUEST_COMPLETE | Feature.WRITE_MEDIA | Feature.COMPLETE_ENABLED, 1024, 4096, 3 * 65536, timeout=30
        )
        pair.server.request_buffers(3 * 65536, 0, 5)
        pair.server.end_configuration()
        decided = pair.client.get_configuration(TIMEOUT)
        assert decided.features == Feature.REQUEST_COMPLETE | Feature.WRITE_MEDIA | Feature.COMPLETE_ENABLED
        assert (decided.block_size, decided.alignment, decided.max_transfer_size) == (1024, 4096, 3 * 65536)
        assert decided.max_io_depth == 4
        assert decided.buffer_area_size >= 5 * 3 * 65536
        assert pair.server.get_configuration() == decided


def test_an_alignment_of_0_means_the_block_size() -> None:
    with Pair() as pair:
        assert pair.configure(block_size=4096, alignment=0).client.config.alignment == 4096


@pytest.mark.parametrize(
    ("block_size", "alignment", "transfer"),
    [
        (256, 0, TRANSFER),  # block size: power of 2 from 512 to 65536
        (131072, 0, TRANSFER),
        (1000, 0, TRANSFER),
        (0, 0, TRANSFER),
        (1024, 512, TRANSFER),  # alignment: from the block size
        (512, 131072, TRANSFER),  # to 64 KiB
        (512, 1536, TRANSFER),  # a power of 2
        (512, 0, 0),  # transfer: a nonzero multiple of 64 KiB
        (512, 0, 65536 + 512),
        (512, 0, 32768),
    ],
)
def test_begin_configuration_refuses(block_size: int, alignment: int, transfer: int) -> None:
    with Pair() as pair:
        with pytest.raises(VDInvalidError):
            pair.server.begin_configuration(Feature.WRITE_MEDIA, block_size, alignment, transfer)
        assert pair.server.state is SetState.CONNECTED
        pair.configure()  # nothing was lost


@pytest.mark.parametrize("block_size", [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536])
def test_every_block_size(block_size: int) -> None:
    with Pair() as pair:
        assert pair.configure(block_size=block_size).client.config.block_size == block_size


def test_the_alignment_is_not_below_the_clients_wish() -> None:
    with Pair(alignment=8192) as pair:
        with pytest.raises(VDInvalidError):
            pair.server.begin_configuration(Feature.WRITE_MEDIA, BLOCK, 4096, TRANSFER)
        assert pair.configure(alignment=8192).client.config.alignment == 8192


@pytest.mark.parametrize("features", [Feature.LIKE_TAPE | Feature.WRITE_MEDIA, Feature(0x100000)])
def test_the_server_adds_only_its_own_features(features: Feature) -> None:
    with Pair() as pair, pytest.raises(VDInvalidError):
        pair.server.begin_configuration(features, BLOCK, 0, TRANSFER)


@pytest.mark.parametrize("arguments", [(-1, 512, 0, 65536), (0, 2**32, 0, 65536), (0, 512, -1, 65536)])
def test_numbers_beyond_32_bits(arguments: tuple[int, int, int, int]) -> None:
    with Pair() as pair, pytest.raises(OverflowError):
        pair.server.begin_configuration(*arguments)


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_timeout_that_is_none(timeout: float) -> None:
    with Pair() as pair, pytest.raises(ValueError):
        pair.server.begin_configuration(Feature.WRITE_MEDIA, BLOCK, 0, TRANSFER, timeout)


def test_the_client_waits_until_the_end_of_configuration() -> None:
    with Pair() as pair:
        waiting = start(lambda: pair.client.get_configuration(TIMEOUT))
        pair.server.begin_configuration(Feature.WRITE_MEDIA, BLOCK, 0, TRANSFER)
        with pytest.raises(TimeoutError):
            pair.client.get_configuration(0)
        pair.server.end_configuration()
        assert waiting.outcome() == pair.client.get_configuration()


def test_a_server_that_does_not_like_it_aborts() -> None:
    with Pair() as pair:
        pair.server.signal_abort("cannot work with that")
        with pytest.raises(VDAbortError, match="cannot work with that") as caught:
            pair.client.get_configuration(TIMEOUT)
        assert "cannot work with that" in str(caught.value.reason)


# ---- buffers


def test_requests_are_summed_up() -> None:
    with Pair() as pair:
        pair.server.begin_configuration(Feature.WRITE_MEDIA, BLOCK, 0, TRANSFER)
        pair.server.request_buffers(TRANSFER, 0, 3)
        pair.server.request_buffers(2048, 0, 2)
        pair.server.request_buffers(TRANSFER, 0, 1)
        pair.server.end_configuration()
        buffers = [pair.buffer(TRANSFER) for _ in range(4)]
        buffers += [pair.buffer(2048) for _ in range(2)]
        assert [b.size for b in buffers] == [TRANSFER] * 4 + [2048] * 2
        with pytest.raises(VDMemoryError):
            pair.buffer(TRANSFER)


def test_available_buffers_are_those_that_can_be_had() -> None:
    with Pair() as pair:
        pair.configure(count=4)
        assert pair.server.query_available_buffers(TRANSFER, 0) == 4
        held = [pair.buffer(), pair.buffer()]
        assert pair.server.query_available_buffers(TRANSFER, 0) == 2
        pair.server.free_buffer(held.pop())
        assert pair.server.query_available_buffers(TRANSFER, 0) == 3
        assert pair.server.query_available_buffers(4 * TRANSFER + 1, 0) == 0
        got = [pair.buffer() for _ in range(3)]
        assert pair.server.query_available_buffers(TRANSFER, 0) == 0
        with pytest.raises(VDMemoryError):
            pair.buffer()
        assert len(got) == 3


def test_requests_after_configuration_are_obtained_at_once() -> None:
    with active(count=1) as pair:
        first = pair.buffer()
        with pytest.raises(VDMemoryError):
            pair.buffer()
        pair.server.request_buffers(4 * TRANSFER, 0, 2)
        grown = [pair.buffer(4 * TRANSFER) for _ in range(2)]
        for n, buffer in enumerate([first, *grown]):  # a new segment serves commands as the first does
            memoryview(buffer)[:] = bytes([n + 1]) * buffer.size
            future = pair.device.send_command(CommandCode.WRITE, buffer)
            with pair.reader.get_command(TIMEOUT) as command:
                assert bytes(command) == bytes([n + 1]) * buffer.size
            assert future.result(TIMEOUT) == (0, buffer.size, 0)


def test_no_memory_leaves_the_state() -> None:
    with Pair() as pair:
        pair.server.begin_configuration(Feature.WRITE_MEDIA, BLOCK, 0, TRANSFER)
        with pytest.raises(MemoryError):
            pair.server.request_buffers(0xFFFF0000, 0, 4000)
            pair.server.end_configuration()
        assert pair.server.state is SetState.CONFIGURABLE
        pair.server.request_buffers(TRANSFER, 0, 2)
        pair.server.end_configuration()
        assert [pair.buffer().size for _ in range(2)] == [TRANSFER] * 2


@pytest.mark.parametrize("alignment", [0, 512, 1024, 4096, 65536, 2 << 20])
@pytest.mark.parametrize("prefix", [0, 1, 512, 5000])
def test_buffers_are_aligned_and_their_prefix_zone_is_hidden(alignment: int, prefix: int) -> None:
    with Pair(prefix_zone_size=prefix) as pair:
        pair.server.begin_configuration(Feature.WRITE_MEDIA, 1024, 2048, TRANSFER)
        pair.server.request_buffers(3 * 1024, alignment, 3)
        pair.server.end_configuration()
        pair.client.get_configuration(TIMEOUT)
        pair.open_devices()
        buffers = [pair.buffer(3 * 1024, alignment) for _ in range(3)]
        spans = []
        for n, buffer in enumerate(buffers):
            with memoryview(buffer) as view:
                assert view.nbytes == 3 * 1024 and not view.readonly and view.format == "B" and view.ndim == 1
                address = address_of(view)
                assert address % max(alignment, 2048) == 0
                spans.append((address - prefix, address + 3 * 1024))
                view[:] = bytes([n]) * view.nbytes
            future = pair.device.send_command(CommandCode.WRITE, buffer)
            command = pair.reader.get_command(TIMEOUT)
            with command, memoryview(command.prefix) as zone:
                assert zone.nbytes == prefix
                zone[:] = b"\xee" * prefix
            assert future.result(TIMEOUT).bytes_transferred == 3 * 1024
        spans.sort()
        assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))
        assert [bytes(b) for b in buffers] == [bytes([n]) * 3 * 1024 for n in range(3)]  # zones lie outside


def address_of(view: memoryview) -> int:
    import numpy as np

    return int(np.frombuffer(view, np.uint8).ctypes.data)


@pytest.mark.parametrize(("size", "alignment"), [(0, 0), (TRANSFER, 3), (TRANSFER, 4 << 20)])
def test_buffers_that_make_no_sense(size: int, alignment: int) -> None:
    with active() as pair, pytest.raises(VDInvalidError):
        pair.buffer(size, alignment)


def test_a_freed_buffer_is_given_out_again() -> None:
    with active(count=1) as pair:
        for _ in range(3):
            buffer = pair.buffer()
            pair.server.free_buffer(buffer)
            assert pair.server.query_available_buffers(TRANSFER, 0) == 1
        for use in (lambda: memoryview(buffer), lambda: pair.server.free_buffer(buffer)):
            with pytest.raises(ValueError):
                use()
        with pytest.raises(ValueError):
            pair.device.send_command(CommandCode.WRITE, buffer)


def test_a_collected_buffer_is_given_back() -> None:
    with active(count=1) as pair:
        view = memoryview(pair.buffer())
        assert pair.server.query_available_buffers(TRANSFER, 0) == 0
        view.release()
        assert pair.server.query_available_buffers(TRANSFER, 0) == 1


def test_a_buffer_with_views_is_not_freed() -> None:
    with active() as pair:
        buffer = pair.buffer()
        view = memoryview(buffer)
        part = view[10:20]
        view.release()
        with pytest.raises(BufferError, match="1 view"):
            pair.server.free_buffer(buffer)
        part.release()
        pair.server.free_buffer(buffer)


def test_a_lent_buffer_is_neither_freed_nor_sent_again() -> None:
    with active() as pair:
        buffer = pair.buffer()
        future = pair.device.send_command(CommandCode.WRITE, buffer)
        assert buffer.is_lent
        for use in (
            lambda: pair.server.free_buffer(buffer),
            lambda: pair.device.send_command(CommandCode.WRITE, buffer),
        ):
            with pytest.raises(ValueError, match="lent"):
                use()
        pair.reader.get_command(TIMEOUT).complete()
        assert future.result(TIMEOUT).code == 0
        assert not buffer.is_lent
        pair.server.free_buffer(buffer)


def test_a_buffer_serves_its_own_set_only() -> None:
    with active() as pair, active() as other:
        buffer = other.buffer()
        for use in (
            lambda: pair.server.free_buffer(buffer),
            lambda: pair.device.send_command(CommandCode.WRITE, buffer),
        ):
            with pytest.raises(ValueError):
                use()
        for thing in (bytearray(10), memoryview(buffer), None):
            with pytest.raises(TypeError):
                pair.server.free_buffer(thing)  # type: ignore[arg-type]
        assert not pair.server.is_shared_buffer(buffer)


def test_is_shared_buffer_takes_anything_with_memory() -> None:
    import numpy as np

    with active() as pair:
        buffer = pair.buffer()
        view = memoryview(buffer)
        for shared in (buffer, view, view[100:], view[-1:], view[::2], np.frombuffer(buffer, "<u4")):
            assert pair.server.is_shared_buffer(shared)
        for foreign in (b"bytes", bytearray(5), np.zeros(4)):
            assert not pair.server.is_shared_buffer(foreign)
        with pytest.raises(TypeError):
            pair.server.is_shared_buffer("text")  # type: ignore[arg-type]
        view.release()
        del view, shared
        other = pair.buffer()
        with memoryview(other) as gone:
            assert pair.server.is_shared_buffer(gone)
        pair.server.free_buffer(other)


def test_buffer_protocol_of_a_buffer() -> None:
    with active() as pair:
        buffer = pair.buffer(4096)
        assert len(buffer) == buffer.size == 4096
        with memoryview(buffer) as view:
            assert (view.format, view.shape, view.strides, view.readonly) == ("B", (4096,), (1,), False)
            view[:4] = b"data"
            with memoryview(buffer) as second:
                assert bytes(second[:4]) == b"data"
        with buffer.__buffer__(0) as view:
            assert view.obj is buffer
        assert "4096" in repr(buffer) and "data" not in repr(buffer)


# ---- devices


def test_devices_are_opened_as_often_as_configured() -> None:
    with Pair(device_count=2) as pair:
        pair.configure()
        first, second = pair.server.open_device("one"), pair.server.open_device("two")
        with pytest.raises(VDOpenError):
            pair.server.open_device("three")
        first.close_device()
        with pytest.raises(VDClosedError):
            first.close_device()
        assert pair.server.state is SetState.ACTIVE
        second.close_device()
        assert pair.server.state is SetState.NORMALLY_TERMINATED


def test_names_of_devices_are_unique() -> None:
    with Pair(device_count=2) as pair:
        pair.configure()
        pair.server.open_device("one")
        with pytest.raises(VDInvalidError):
            pair.server.open_device("one")
        assert pair.server.open_device("One").name == "One"


def test_64_devices() -> None:
    with active(device_count=64, count=64) as pair:
        buffers = [pair.buffer() for _ in range(64)]
        futures = []
        for n, (device, buffer) in enumerate(zip(pair.server_devices, buffers, strict=True)):
            memoryview(buffer)[:] = bytes([n]) * TRANSFER
            futures.append(device.send_command(CommandCode.WRITE, buffer, position=n))
        for n, reader in enumerate(pair.client_devices):
            with reader.get_command(TIMEOUT) as command:
                assert bytes(command) == bytes([n]) * TRANSFER
        assert [f.result(TIMEOUT).bytes_transferred for f in futures] == [TRANSFER] * 64
        for device in pair.server_devices:
            device.close_device()
        for reader in pair.client_devices:
            assert list(reader) == []
        pair.server.close()
        pair.client.close()


# ---- end


def test_a_normal_life() -> None:
    client = VirtualDeviceSet.create(provider="embedded")
    states = []
    with ServerDeviceSet.open(client.name) as server:
        states.append(server.state)
        server.begin_configuration(Feature.WRITE_MEDIA, BLOCK, 0, TRANSFER)
        states.append(server.state)
        server.request_buffers(TRANSFER, 0, 1)
        server.end_configuration()
        states.append(server.state)
        client.get_configuration(TIMEOUT)
        device = server.open_device(server.name)
        states.append(server.state)
        reader = client.open_device()
        buffer = server.allocate_buffer(TRANSFER)
        memoryview(buffer)[:] = b"x" * TRANSFER
        future = device.send_command(CommandCode.WRITE, buffer)
        with reader.get_command(TIMEOUT) as command:
            assert bytes(command) == b"x" * TRANSFER
        assert future.result(TIMEOUT) == (0, TRANSFER, 0)
        device.close_device()
        states.append(server.state)
        assert list(reader) == []
    assert server.state is SetState.DOES_NOT_EXIST
    client.close()
    assert [s.name for s in states] == ["CONNECTED", "CONFIGURABLE", "INITIALIZING", "ACTIVE", "NORMALLY_TERMINATED"]


def test_close_with_open_devices_aborts_and_closes() -> None:
    with active() as pair:
        future = pair.device.send_command(CommandCode.FLUSH)
        with pytest.raises(VDProtocolError):
            pair.server.close()
        assert future.result(TIMEOUT).code == 995
        assert pair.server.state is SetState.DOES_NOT_EXIST
        with pytest.raises(VDAbortError):
            pair.reader.get_command(TIMEOUT)
        pair.server.close()  # idempotent


def test_a_client_that_closes_early_aborts_the_server() -> None:
    with active() as pair:
        future = pair.device.send_command(CommandCode.FLUSH)
        with pytest.raises(VDOpenError):
            pair.client.close()
        assert future.result(TIMEOUT).code == 995
        with pytest.raises(VDAbortError):
            pair.device.send_command(CommandCode.FLUSH)


def test_the_name_is_free_after_the_end() -> None:
    name = str(uuid.uuid4())
    for _ in range(3):
        with Pair(name) as pair:
            pair.configure()


def test_close_does_not_wait_for_a_client() -> None:
    with active() as pair:
        pair.device.close_device()
        pair.server.close()
        assert list(pair.reader) == []  # what was sent before is delivered all the same
        pair.client.close()
