"""Device sets, devices and commands of the client: calls, codes, states, and each way of leaving a command."""

from __future__ import annotations

import copy
import errno
import gc
import os
import pickle
import re
import subprocess
import threading
import uuid

import pytest
from serving import SIZE, WAIT, pair, pattern

import vdi_ext as vdi
from vdi_ext import CommandCode, CompletionCode, DeviceSetConfig, Feature, SetState
from vdi_ext.server import Completion, ServerDeviceSet

DONE = {CommandCode.WRITE: SIZE, CommandCode.READ: SIZE}


# ---- sets


def test_a_set_without_a_name_gets_a_fresh_guid() -> None:
    with vdi.VirtualDeviceSet.create() as one, vdi.VirtualDeviceSet.create() as two:
        assert uuid.UUID(one.name) != uuid.UUID(two.name)


def test_states_of_a_set_from_creation_to_close() -> None:
    with pair(open_devices=False) as both:
        assert both.vds.state is SetState.INITIALIZING
        peer = both.server.open_device(both.vds.name)
        device = both.vds.open_device()
        assert (device.name, both.vds.state) == (both.vds.name, SetState.ACTIVE)
        peer.close_device()
        assert list(device) == []
        assert both.vds.state is SetState.NORMALLY_TERMINATED
        both.vds.close()
        assert both.vds.state is SetState.DOES_NOT_EXIST
        both.vds.close()  # a second one does nothing
        both.server.close()


def test_a_new_set_is_configurable_and_has_no_devices() -> None:
    with vdi.VirtualDeviceSet.create() as vds:
        assert vds.state is SetState.CONFIGURABLE
        with pytest.raises(vdi.VDProtocolError):
            vds.open_device()
        with pytest.raises(vdi.VDTimeoutError) as caught:
            vds.get_configuration(0.05)
        assert (caught.value.code, caught.value.operation) == (0x80770003, "GetConfiguration")
        assert vds.state is SetState.CONFIGURABLE  # section 5.1: a timeout changes nothing


def test_configuration_is_what_the_server_decided() -> None:
    asked = {"prefix_zone_size": 64, "alignment": 8192, "server_timeout": 1.5}
    with pair(Feature.READ_MEDIA, open_devices=False, **asked) as both:
        config = both.vds.config
        assert (config.device_count, config.prefix_zone_size, config.server_timeout) == (1, 64, 1.5)
        assert config.features & Feature.READ_MEDIA
        assert (config.block_size, config.max_transfer_size, config.alignment) == (512, SIZE, 8192)
        assert config.buffer_area_size >= 16 * SIZE
        assert both.vds.get_configuration(0) == config


def test_a_name_in_use_is_refused_until_its_set_is_closed() -> None:
    name = f"{uuid.uuid4()} with spaces, Ümläute and \U0001f4be"
    with vdi.VirtualDeviceSet.create(name) as vds:
        assert vds.name == name
        with pytest.raises(vdi.VDProtocolError):
            vdi.VirtualDeviceSet.create(name)
    with vdi.VirtualDeviceSet.create(name):
        pass


@pytest.mark.parametrize("name", ["", "a\\b", "x" * 129, "zero\0inside"])
def test_bad_names_are_invalid(name: str) -> None:
    with pytest.raises(vdi.VDInvalidError):
        vdi.VirtualDeviceSet.create(name)


@pytest.mark.parametrize("config", [{"device_count": 0}, {"device_count": 65}, {"features": Feature.WRITE_MEDIA}])
def test_unsupported_configurations(config: dict[str, int]) -> None:
    with pytest.raises(vdi.VDNotSupportedError):
        vdi.VirtualDeviceSet.create(config=DeviceSetConfig(**config))


@pytest.mark.parametrize(
    "arguments",
    [{"config": None}, {"config": 1}, {"name": 5}, {"name": b"x"}, {"instance": 5}, {"provider": 5}, {"group": 1.5}],
)
def test_arguments_of_the_wrong_type(arguments: dict[str, object]) -> None:
    with pytest.raises(TypeError):
        vdi.VirtualDeviceSet.create(**arguments)


def test_an_empty_instance_is_the_default_one() -> None:
    name = str(uuid.uuid4())
    with vdi.VirtualDeviceSet.create(name, instance="") as vds:
        assert vds.instance is None
        with pytest.raises(vdi.VDProtocolError):
            vdi.VirtualDeviceSet.create(name)
        with vdi.VirtualDeviceSet.create(name, instance="OTHER") as other:
            assert other.instance == "OTHER"


def test_a_group_by_number_and_by_name() -> None:
    import grp

    with vdi.VirtualDeviceSet.create(group=os.getgid()), vdi.VirtualDeviceSet.create(group=grp.getgrgid(0).gr_name):
        pass
    with pytest.raises(LookupError, match="no group 'no such group'"):
        vdi.VirtualDeviceSet.create(group="no such group")
    for number in (-1, 0xFFFFFFFF):
        with pytest.raises(ValueError, match="group"):
            vdi.VirtualDeviceSet.create(group=number)


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan"), "1", b""])
def test_bad_timeouts(timeout: object) -> None:
    with pair() as both:
        for wait in (both.vds.get_configuration, both.device.get_command, both.device.commands):
            with pytest.raises((ValueError, TypeError)):
                wait(timeout)


def test_a_timeout_beyond_32_bits_of_milliseconds_waits() -> None:
    with pair() as both:
        both.send(CommandCode.FLUSH)
        with both.device.get_command(1e12) as command:
            assert command.code is CommandCode.FLUSH
            command.complete()
        both.finish()


def test_devices_by_name() -> None:
    with pair(devices=3) as both:
        assert [d.name for d in both.devices] == [both.vds.name, f"{both.vds.name}/1", f"{both.vds.name}/2"]
        with pytest.raises((vdi.VDOpenError, vdi.VDProtocolError)):
            both.vds.open_device()
        both.finish()
        both.vds.close()
        with pytest.raises(vdi.VDNotOpenError):
            both.vds.open_device()


def test_a_device_of_an_unknown_name_is_invalid() -> None:
    with pair(open_devices=False, devices=2) as both:
        for name in (both.vds.name, "second"):
            both.peers.append(both.server.open_device(name))
        with pytest.raises(vdi.VDInvalidError):
            both.vds.open_device("third")
        assert both.vds.open_device("second").name == "second"


def test_abort_says_who_and_why() -> None:
    with pair() as both:
        both.vds.signal_abort("the tape is \N{SNOWMAN} frozen")
        for call in (both.device.get_command, both.vds.get_configuration, both.vds.open_device):
            with pytest.raises(vdi.VDAbortError) as caught:
                call()
            assert (caught.value.reason, caught.value.pid) == ("the tape is \N{SNOWMAN} frozen", os.getpid())
        assert both.vds.state is SetState.ABORT
        both.vds.signal_abort("again")  # allowed, changes nothing
        with pytest.raises(vdi.VDAbortError, match="frozen"):
            both.device.get_command()
        both.vds.close()  # section 6.2: OK after an abort


def test_an_exception_in_the_set_s_block_aborts_with_its_text() -> None:
    with pair() as both:
        with pytest.raises(KeyError) as caught, both.vds:
            raise KeyError("lost")
        assert not hasattr(caught.value, "__notes__")
        with pytest.raises(vdi.VDAbortError) as seen:
            both.server.allocate_buffer(SIZE)
        assert "KeyError: 'lost'" in str(seen.value) or seen.value.reason in (None, "KeyError: 'lost'")


def test_leaving_the_set_early_is_an_error() -> None:
    with pair() as both:
        with pytest.raises(vdi.VDOpenError), both.vds:
            pass
        assert both.vds.state is SetState.DOES_NOT_EXIST
        both.vds.close()


def test_everything_raises_on_a_closed_set() -> None:
    with pair() as both:
        command, _ = both.command()
        handle = both.vds.get_buffer_handle(command)
        with pytest.raises(vdi.VDOpenError):
            both.vds.close()
        calls = [
            both.device.get_command,
            lambda: next(both.device),
            lambda: next(both.device.commands(1)),
            both.vds.open_device,
            both.vds.get_configuration,
            both.vds.signal_abort,
            both.vds.__enter__,
            command.complete,
            command.__enter__,
            lambda: memoryview(command),
            lambda: command.prefix,
            lambda: both.vds.get_buffer_handle(command),
            lambda: both.vds.map_buffer_handle(handle),
            lambda: command.__exit__(None, None, None),
        ]
        for call in calls:
            with pytest.raises(vdi.VDNotOpenError):
                call()
        assert "closed" in repr(both.vds) and "closed" in repr(both.device) and "closed" in repr(command)
        both.vds.close()


def test_objects_are_not_made_by_hand_nor_pickled() -> None:
    with pair() as both:
        command, future = both.command()
        with both.vds.map_buffer_handle(both.vds.get_buffer_handle(command)) as mapped:
            for thing in (both.vds, both.device, both.device.commands(1), command, mapped, vdi.Provider.embedded()):
                with pytest.raises(TypeError):
                    type(thing)()
                with pytest.raises(TypeError):
                    pickle.dumps(thing)
                with pytest.raises(TypeError):
                    copy.copy(thing)
                with pytest.raises(TypeError):
                    type("Derived", (type(thing),), {})
        del thing
        command.complete()
        future.result(WAIT)
        both.finish()


def test_an_empty_object_only_raises() -> None:
    """`object.__new__` gets by the factories; nothing that follows may crash."""
    kinds = [vdi.VirtualDeviceSet, vdi.VirtualDevice, vdi.Command, vdi.MappedBuffer, vdi.Provider]
    factories = ("create", "open_in_secondary", "embedded", "system", "load")
    arguments = {"get_buffer_handle": [None], "map_buffer_handle": [None], "__exit__": [None, None, None]}
    for kind in kinds:
        empty = kind.__new__(kind)
        repr(empty)
        for name in dir(kind):
            if name in dir(object) or name in factories:
                continue
            try:
                member = getattr(empty, name)
                if callable(member):
                    member(*arguments.get(name, []))
            except (TypeError, ValueError, BufferError, vdi.VDNotSupportedError):
                pass
        with pytest.raises((TypeError, ValueError, BufferError)):
            memoryview(empty)
    with vdi.VirtualDeviceSet.create() as vds:
        with pytest.raises(vdi.VDInvalidError):
            vds.get_buffer_handle(vdi.Command.__new__(vdi.Command))


# ---- providers


def test_providers_by_name_and_path() -> None:
    embedded = vdi.Provider.embedded()
    for provider in (embedded, "embedded", embedded.path, None):
        with vdi.VirtualDeviceSet.create(provider=provider) as vds:
            assert vds.state is SetState.CONFIGURABLE
            assert embedded.live_objects() == 1
    del vds
    gc.collect()
    assert embedded.live_objects() == 0


def test_the_system_s_provider_says_what_is_missing() -> None:
    if os.path.exists("/opt/mssql/lib/libsqlvdi.so"):
        assert vdi.Provider.system().path == "/opt/mssql/lib/libsqlvdi.so"
        return
    with pytest.raises(FileNotFoundError, match=r"install SQL Server .* or use Provider\.embedded\(\)"):
        vdi.Provider.system()
    with pytest.raises(FileNotFoundError):
        vdi.VirtualDeviceSet.create(provider="system")


def test_libraries_that_are_none(tmp_path) -> None:
    with pytest.raises(FileNotFoundError):
        vdi.Provider.load(tmp_path / "absent.so")
    text = tmp_path / "text.so"
    text.write_text("not a library")
    with pytest.raises(OSError, match="text.so"):
        vdi.Provider.load(text)
    source = tmp_path / "empty.c"
    source.write_text("int nothing;")
    subprocess.run(["cc", "-shared", "-o", tmp_path / "empty.so", source], check=True)
    with pytest.raises(vdi.VDNotSupportedError, match="exports neither DllGetClassObject"):
        vdi.VirtualDeviceSet.create(provider=tmp_path / "empty.so")


# ---- commands


def test_a_command_says_what_the_server_sent() -> None:
    with pair(features=Feature.WRITE_MEDIA) as both:
        command, future = both.command(data=pattern(1), position=1 << 40)
        assert (command.code, command.size, command.position) == (CommandCode.WRITE, SIZE, 1 << 40)
        assert isinstance(command.code, CommandCode)
        assert re.fullmatch(rf"<Command WRITE {SIZE} bytes at 0x[0-9a-f]+>", repr(command))
        with memoryview(command) as view:
            assert view == pattern(1)
            assert re.fullmatch(rf"<Command WRITE {SIZE} bytes at 0x[0-9a-f]+, 1 export>", repr(command))
        command.complete()
        assert "completed" in repr(command)
        assert future.result(WAIT) == Completion(CompletionCode.SUCCESS, SIZE, 0)
        both.finish()


def test_unknown_command_codes_are_ints() -> None:
    with pair() as both:
        command, future = both.command(4711)
        assert command.code == 4711 and type(command.code) is int
        assert "4711" in repr(command)
        with command:
            pass
        assert future.result(WAIT).code is CompletionCode.NOT_SUPPORTED
        both.finish()


def test_several_outstanding_commands_complete_in_any_order() -> None:
    with pair() as both:
        pairs = [both.command(data=pattern(i)) for i in range(8)]
        for i in (3, 0, 7, 1, 6, 2, 5, 4):
            command, future = pairs[i]
            assert not future.done()
            with memoryview(command) as view:
                assert view == pattern(i)
            command.complete(bytes_transferred=SIZE - i)
            assert future.result(WAIT) == Completion(CompletionCode.SUCCESS, SIZE - i, 0)
        both.finish()


def test_completion_carries_code_bytes_and_position() -> None:
    with pair(Feature.READ_MEDIA) as both:
        command, future = both.command(CommandCode.READ)
        with memoryview(command) as view:
            view[:3] = b"abc"
        command.complete(CompletionCode.HANDLE_EOF, 3, position=(1 << 64) - 1)
        assert future.result(WAIT) == Completion(CompletionCode.HANDLE_EOF, 3, (1 << 64) - 1)
        # Any code but SUCCESS moves the device to IO-ERROR, which only ClearError ends (section 6.4).
        command, future = both.command(CommandCode.CLEAR_ERROR)
        command.complete()
        assert future.result(WAIT).code is CompletionCode.SUCCESS
        command, future = both.command(4)  # REWIND
        command.complete(1234)  # any Win32 code
        assert future.result(WAIT).code == 1234


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (CommandCode.READ, {}),
        (CommandCode.READ, {"code": CompletionCode.HANDLE_EOF}),
        (CommandCode.READ, {"bytes_transferred": SIZE + 1}),
        (CommandCode.READ, {"bytes_transferred": -1}),
        (CommandCode.READ, {"bytes_transferred": 1 << 32}),
        (CommandCode.WRITE, {"bytes_transferred": SIZE + 1}),
        (CommandCode.WRITE, {"code": -1}),
        (CommandCode.WRITE, {"code": 1 << 32}),
        (CommandCode.WRITE, {"position": -1}),
        (CommandCode.WRITE, {"position": 1 << 64}),
        (CommandCode.WRITE, {"code": None}),
        (CommandCode.WRITE, {"code": "0"}),
        (CommandCode.WRITE, {"bytes_transferred": 1.5}),
        (CommandCode.FLUSH, {"bytes_transferred": 1}),
    ],
)
def test_a_bad_completion_completes_nothing(code: CommandCode, arguments: dict[str, object]) -> None:
    with pair(Feature.READ_MEDIA if code is CommandCode.READ else Feature.WRITE_MEDIA) as both:
        command, future = both.command(code)
        with pytest.raises((ValueError, TypeError)):
            command.complete(**arguments)
        assert not future.done()
        command.complete(bytes_transferred=DONE.get(code, 0))
        assert future.result(WAIT) == Completion(CompletionCode.SUCCESS, DONE.get(code, 0), 0)
        both.finish()


def test_a_command_is_completed_once() -> None:
    with pair() as both:
        command, future = both.command()
        command.complete()
        for call in (command.complete, command.__enter__, lambda: memoryview(command), lambda: command.prefix):
            with pytest.raises(ValueError, match="completed already"):
                call()
        command.__exit__(None, None, None)
        assert future.result(WAIT).code is CompletionCode.SUCCESS
        both.finish()


def test_an_argument_that_completes_the_command_itself() -> None:
    class Count:
        def __index__(self) -> int:
            command.complete()
            return 5

    with pair() as both:
        command, future = both.command()
        with pytest.raises(ValueError, match="completed already"):
            command.complete(bytes_transferred=Count())
        assert future.result(WAIT).bytes_transferred == SIZE
        both.finish()


def test_completion_after_an_abort_raises_and_counts_no_longer() -> None:
    with pair() as both:
        command, future = both.command()
        both.server.signal_abort("enough")
        with pytest.raises(vdi.VDAbortError, match="enough"):
            command.complete()
        with pytest.raises(ValueError, match="completed already"):
            command.complete()
        assert future.result(WAIT).code is CompletionCode.OPERATION_ABORTED


# ---- leaving `with command:` (design 6.3)

LEFT = {
    CommandCode.WRITE: (CompletionCode.SUCCESS, SIZE),
    CommandCode.CLEAR_ERROR: (CompletionCode.SUCCESS, 0),
    **{
        code: (CompletionCode.NOT_SUPPORTED, 0)
        for code in CommandCode
        if code not in (CommandCode.WRITE, CommandCode.CLEAR_ERROR, CommandCode.READ)
    },
}


@pytest.mark.parametrize("code", LEFT)
def test_each_kind_of_command_left_uncompleted(code: CommandCode) -> None:
    with pair() as both:
        command, future = both.command(code)
        with command as entered:
            assert entered is command
        assert future.result(WAIT) == Completion(LEFT[code][0], LEFT[code][1], 0)


def test_a_read_left_uncompleted_is_aborted_and_raises() -> None:
    with pair(Feature.READ_MEDIA) as both:
        command, future = both.command(CommandCode.READ)
        with pytest.raises(ValueError, match="complete\\(code, bytes_transferred\\)"), command:
            pass
        assert future.result(WAIT) == Completion(CompletionCode.OPERATION_ABORTED, 0, 0)


def test_a_read_left_with_a_view_is_aborted_when_the_view_goes() -> None:
    with pair(Feature.READ_MEDIA) as both:
        command, future = both.command(CommandCode.READ)
        view = memoryview(command)
        with pytest.raises(ValueError), command:
            pass
        assert not future.done()
        assert "to be aborted" in repr(command)
        with pytest.raises(ValueError, match="completed already"):
            command.complete(bytes_transferred=SIZE)
        view.release()
        assert future.result(WAIT) == Completion(CompletionCode.OPERATION_ABORTED, 0, 0)


def test_a_write_left_with_a_view_completes_nothing_until_asked_again() -> None:
    with pair() as both:
        command, future = both.command()
        view = memoryview(command)
        with pytest.raises(BufferError, match="1 view is alive"), command:
            pass
        assert not future.done()
        view.release()
        command.complete()
        assert future.result(WAIT) == Completion(CompletionCode.SUCCESS, SIZE, 0)
        both.finish()


@pytest.mark.parametrize("code", [CommandCode.READ, CommandCode.WRITE, CommandCode.FLUSH, CommandCode.COMPLETE])
def test_a_completed_command_leaves_the_block_as_it_is(code: CommandCode) -> None:
    with pair(Feature.READ_MEDIA if code is CommandCode.READ else Feature.WRITE_MEDIA) as both:
        for error in (None, OSError(errno.ENOSPC, "full")):
            command, future = both.command(code)
            try:
                with command:
                    command.complete(bytes_transferred=DONE.get(code, 0))
                    if error:
                        raise error
            except OSError as caught:
                assert caught is error
            assert future.result(WAIT) == Completion(CompletionCode.SUCCESS, DONE.get(code, 0), 0)
        both.finish()


# ---- an exception in `with command:` (design 6.4)


class Odd(BaseException):
    pass


ERRORS = {
    "full": (lambda: OSError(errno.ENOSPC, "no space"), CompletionCode.DISK_FULL),
    "other OSError": (lambda: OSError(errno.EIO, "broken"), CompletionCode.OPERATION_ABORTED),
    "end of file": (lambda: EOFError("short"), CompletionCode.OPERATION_ABORTED),
    "stop": (lambda: StopIteration("x"), CompletionCode.OPERATION_ABORTED),
    "interrupt": (KeyboardInterrupt, CompletionCode.OPERATION_ABORTED),
    "exit": (lambda: SystemExit(3), CompletionCode.OPERATION_ABORTED),
    "ours": (lambda: vdi.VDTimeoutError(0x80770003, "late"), CompletionCode.OPERATION_ABORTED),
    "odd": (Odd, CompletionCode.OPERATION_ABORTED),
}
CODES = [CommandCode.READ, CommandCode.WRITE, CommandCode.FLUSH, CommandCode.CLEAR_ERROR]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("kind", ERRORS)
def test_each_kind_of_exception_propagates_and_completes_the_command(kind: str, code: CommandCode) -> None:
    make, expected = ERRORS[kind]
    error = make()
    with pair(Feature.READ_MEDIA if code is CommandCode.READ else Feature.WRITE_MEDIA) as both:
        command, future = both.command(code)
        with pytest.raises(type(error)) as caught, command:
            raise error
        assert caught.value is error
        assert caught.value.__context__ is None and not hasattr(error, "__notes__")
        assert future.result(WAIT) == Completion(expected, 0, 0)


@pytest.mark.parametrize("code", [CommandCode.READ, CommandCode.WRITE])
@pytest.mark.parametrize("kind", ERRORS)
def test_with_live_views_the_completion_waits_for_the_last(kind: str, code: CommandCode) -> None:
    make, expected = ERRORS[kind]
    error = make()
    with pair(Feature.READ_MEDIA if code is CommandCode.READ else Feature.WRITE_MEDIA) as both:
        command, future = both.command(code, pattern(9))
        views = [memoryview(command), memoryview(command)[1:], command.prefix]
        with pytest.raises(type(error)) as caught, command:
            raise error
        assert caught.value is error
        with pytest.raises(ValueError):
            memoryview(command)  # no further views
        for view in views:
            assert not future.done()
            if view.nbytes == SIZE:
                assert view == pattern(9)
            view.release()
        del view, views  # the slice's export ends with the slice
        assert future.result(WAIT) == Completion(expected, 0, 0)


@pytest.mark.parametrize("kind", ERRORS)
def test_with_live_views_the_set_aborts_and_closes_when_they_go(kind: str) -> None:
    error = ERRORS[kind][0]()
    with pair() as both:
        command, future = both.command(data=pattern(2))
        with pytest.raises(type(error)) as caught, both.vds, command:
            view = memoryview(command)
            raise error
        assert caught.value is error and caught.value.__context__ is None and not hasattr(error, "__notes__")
        assert future.result(WAIT).code is CompletionCode.OPERATION_ABORTED
        with pytest.raises(vdi.VDNotOpenError):
            both.vds.open_device()
        both.server.close()
        assert view == pattern(2)  # still mapped
        view.release()


def test_an_exception_that_holds_the_view_in_its_traceback() -> None:
    """The usual case: the frame that raised holds the view, so it lives as long as the exception is looked at."""

    def work(command: vdi.Command) -> None:
        view = memoryview(command)
        with command:
            raise RuntimeError(f"after {view.nbytes} bytes")

    with pair() as both:
        command, future = both.command()
        try:
            work(command)
        except RuntimeError:
            assert not future.done()
        assert future.result(WAIT) == Completion(CompletionCode.OPERATION_ABORTED, 0, 0)


def test_the_user_s_exception_surfaces_after_an_abort_by_the_server() -> None:
    with pair() as both:
        command, _ = both.command()
        with pytest.raises(ZeroDivisionError), both.vds, command:
            both.server.signal_abort()
            raise ZeroDivisionError


def test_leaving_a_write_after_an_abort_says_so() -> None:
    with pair() as both:
        command, _ = both.command()
        with pytest.raises(vdi.VDAbortError), command:
            both.server.signal_abort()


# ---- dropped uncompleted (design 6.6)


@pytest.mark.parametrize("code", [CommandCode.READ, CommandCode.WRITE, CommandCode.FLUSH])
def test_a_dropped_command_is_aborted_with_a_warning(code: CommandCode) -> None:
    with pair(Feature.READ_MEDIA if code is CommandCode.READ else Feature.WRITE_MEDIA) as both:
        command, future = both.command(code)
        with pytest.warns(ResourceWarning, match=f"{code.name} command was dropped uncompleted"):
            del command
            gc.collect()
        assert future.result(WAIT) == Completion(CompletionCode.OPERATION_ABORTED, 0, 0)


def test_a_command_dropped_with_its_last_view_is_aborted() -> None:
    with pair() as both:
        command, future = both.command()
        view = memoryview(command)
        del command
        gc.collect()
        assert not future.done()
        with pytest.warns(ResourceWarning):
            del view
            gc.collect()
        assert future.result(WAIT).code is CompletionCode.OPERATION_ABORTED


def test_a_command_dropped_after_an_abort_says_nothing() -> None:
    with pair() as both:
        command, _ = both.command()
        both.vds.signal_abort()
        del command
        gc.collect()


def test_a_set_dropped_open_warns_and_is_closed() -> None:
    with vdi.VirtualDeviceSet.create() as vds:
        name = vds.name
    vds = vdi.VirtualDeviceSet.create(name)
    with pytest.warns(ResourceWarning, match=f"'{name}' was never closed"):
        del vds
        gc.collect()
    with vdi.VirtualDeviceSet.create(name):  # so the name is free
        pass


# ---- iteration and threads


def test_iteration_ends_when_the_server_closes_the_device() -> None:
    with pair() as both:
        futures = [both.send(CommandCode.FLUSH)[0] for _ in range(5)]
        both.peer.close_device()
        count = 0
        for command in both.device:
            assert command.code is CommandCode.FLUSH
            command.complete()
            count += 1
        assert count == 5 and all(f.result(WAIT).code == 0 for f in futures)
        for _ in range(2):  # section 13, Q10: again and again until the set is closed
            with pytest.raises(vdi.VDClosedError):
                both.device.get_command()
            assert list(both.device.commands(0)) == []


def test_iteration_with_a_timeout_goes_on_after_it() -> None:
    with pair() as both:
        commands = both.device.commands(timeout=0.02)
        assert iter(commands) is commands
        with pytest.raises(vdi.VDTimeoutError):
            next(commands)
        both.send(CommandCode.FLUSH)
        next(commands).complete()
        with pytest.raises(vdi.VDTimeoutError):
            next(commands)
        both.finish()
        with pytest.raises(StopIteration):
            next(commands)


def test_two_threads_in_one_device() -> None:
    """The second gets an error; the first gets its command."""
    with pair() as both:
        got: list[vdi.Command] = []
        waiting = threading.Thread(target=lambda: got.append(both.device.get_command(WAIT)))
        waiting.start()
        while True:
            try:
                both.device.get_command(0)
            except vdi.VDTimeoutError:
                continue  # the thread is not in it yet
            except RuntimeError as error:
                assert "one at a time" in str(error)
                break
        both.send(CommandCode.FLUSH)
        waiting.join(WAIT)
        got.pop().complete()
        both.finish()


@pytest.mark.threaded
def test_commands_are_completed_by_other_threads() -> None:
    count = 500
    with pair(buffers=32) as both:
        import queue

        work: queue.SimpleQueue[vdi.Command | None] = queue.SimpleQueue()

        def complete() -> None:
            while (command := work.get()) is not None:
                with memoryview(command) as view:
                    number = int.from_bytes(view[:4], "little")
                command.complete(bytes_transferred=number)

        def send() -> None:
            pending = []
            for number in range(count):
                if len(pending) == 16:
                    check(*pending.pop(0))
                future, buffer = both.send(data=number.to_bytes(4, "little") * (SIZE // 4))
                pending.append((number, future, buffer))
            for entry in pending:
                check(*entry)
            both.peer.close_device()

        def check(number: int, future, buffer) -> None:
            assert future.result(WAIT) == Completion(CompletionCode.SUCCESS, number, 0)
            both.server.free_buffer(buffer)

        failed: list[BaseException] = []

        def guarded(target) -> None:
            try:
                target()
            except BaseException as error:
                failed.append(error)
                both.vds.signal_abort()

        threads = [threading.Thread(target=guarded, args=(complete,)) for _ in range(3)]
        threads.append(threading.Thread(target=guarded, args=(send,)))
        for thread in threads:
            thread.start()
        try:
            for command in both.device.commands(WAIT):
                work.put(command)
                del command
        finally:
            for _ in range(3):
                work.put(None)
            for thread in threads:
                thread.join(WAIT)
        assert failed == []


@pytest.mark.threaded
@pytest.mark.parametrize("end", ["close", "signal_abort", "server aborts"])
def test_a_waiting_thread_is_released(end: str) -> None:
    expected = vdi.VDNotOpenError if end == "close" else vdi.VDAbortError
    for _ in range(5):
        with pair() as both:
            start = threading.Barrier(2)
            caught: list[BaseException] = []

            def wait(start=start, caught=caught, device=both.device) -> None:
                start.wait()
                try:
                    device.get_command(None)
                except BaseException as error:
                    caught.append(error)

            thread = threading.Thread(target=wait)
            thread.start()
            start.wait()
            if end == "close":
                with pytest.raises(vdi.VDOpenError):
                    both.vds.close()
            elif end == "signal_abort":
                both.vds.signal_abort()
            else:
                both.server.signal_abort()
            thread.join(WAIT)
            assert not thread.is_alive() and [type(e) for e in caught] == [expected]


@pytest.mark.threaded
def test_close_races_with_everything() -> None:
    """Whatever wins, each call ends with its result or with one of the errors of a closed or aborted set."""
    import sys

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    allowed = (vdi.VDNotOpenError, vdi.VDAbortError, vdi.VDOpenError, vdi.VDProtocolError, ValueError, BufferError)
    unexpected: list[BaseException] = []
    try:
        for round_number in range(40):
            with pair() as both:
                commands = [both.command(data=pattern(0))[0] for _ in range(4)]
                handle = both.vds.get_buffer_handle(commands[0])
                jobs = [
                    lambda d=both.device: d.get_command(None),
                    lambda c=commands[0]: memoryview(c).release(),
                    lambda c=commands[1]: c.complete(),
                    lambda c=commands[2]: bytes(c),
                    lambda v=both.vds, h=handle: v.map_buffer_handle(h).release(),
                    both.vds.close if round_number % 2 else both.vds.signal_abort,
                ]
                start = threading.Barrier(len(jobs))

                def run(job, start=start) -> None:
                    start.wait()
                    try:
                        job()
                    except allowed:
                        pass
                    except BaseException as error:
                        unexpected.append(error)

                threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
                for thread in threads:
                    thread.start()
                try:
                    threads[-1].join(WAIT)
                    both.vds.signal_abort()
                except vdi.VDNotOpenError:
                    pass
                for thread in threads:
                    thread.join(WAIT)
                    assert not thread.is_alive()
                commands.clear()
                jobs.clear()
                del threads, thread
    finally:
        sys.setswitchinterval(interval)
    assert unexpected == []


# ---- prefix zone


def test_the_prefix_zone_is_a_writable_view_of_its_own() -> None:
    with pair(prefix_zone_size=48) as both:
        command, future = both.command(data=pattern(3))
        with command.prefix as prefix:
            assert (prefix.nbytes, prefix.readonly, prefix.format) == (48, False, "B")
            prefix[:] = bytes(range(48))
            with pytest.raises(BufferError, match="1 view is alive"):
                command.complete()
            with command.prefix as again:
                assert again == bytes(range(48))
        with memoryview(command) as view:
            assert view == pattern(3)  # the zone lies before the data, not in it
        command.complete()
        assert future.result(WAIT).code is CompletionCode.SUCCESS
        both.finish()


def test_without_a_prefix_zone_the_view_is_empty() -> None:
    with pair() as both:
        command, _ = both.command()
        with command.prefix as prefix:
            assert (prefix.nbytes, prefix.readonly) == (0, False)
        command.complete()
        command, _ = both.command(CommandCode.FLUSH)
        with pytest.raises(BufferError, match="FLUSH has no buffer"):
            command.prefix  # noqa: B018
        with pytest.raises(BufferError, match="FLUSH has no buffer"):
            memoryview(command)
        command.complete()
        both.finish()


def test_a_server_that_is_gone_is_named() -> None:
    """The death of the server's process is tested with the provider; here: that the exception carries it."""
    with vdi.VirtualDeviceSet.create() as vds:
        child = os.fork()
        if child == 0:
            server = ServerDeviceSet.open(vds.name)
            server.begin_configuration(Feature.WRITE_MEDIA, 512, 4096, SIZE)
            os._exit(0)
        with pytest.raises(vdi.VDAbortError) as caught:
            vds.get_configuration(WAIT)
        os.waitpid(child, 0)
        assert caught.value.pid == child and str(child) in caught.value.reason
