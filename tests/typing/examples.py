"""What a type checker says of programs that use the package; never run. See test_typing.py."""

from concurrent.futures import Future
from typing import Any, assert_type

import numpy as np

import vdi_ext as vdi
from vdi_ext.jobs import Result
from vdi_ext.server import Completion, ServerBuffer, ServerDevice, ServerDeviceSet


def client() -> None:
    with vdi.VirtualDeviceSet.create(config=vdi.DeviceSetConfig(server_timeout=1.5)) as vds:
        assert_type(vds, vdi.VirtualDeviceSet)
        assert_type(vds.get_configuration(timeout=30), vdi.DeviceSetConfig)
        assert_type(vds.state, vdi.SetState)
        device = vds.open_device()
        assert_type(device, vdi.VirtualDevice)
        assert_type(device.get_command(), vdi.Command)
        for command in device.commands(timeout=0.5):
            assert_type(command, vdi.Command)
        for command in device:
            with command as inside:
                assert_type(inside, vdi.Command)
                assert_type(command.code, vdi.CommandCode | int)
                assert_type(command.prefix, memoryview)
                np.frombuffer(memoryview(command), "<u4")  # numpy knows other buffers from Python 3.12 on
                handle = vds.get_buffer_handle(command)
                assert_type(handle, vdi.BufferHandle)
                command.complete(vdi.CompletionCode.HANDLE_EOF, 10)


def secondary(handle: vdi.BufferHandle) -> bytes:
    with vdi.VirtualDeviceSet.open_in_secondary(handle.set_name) as vds, vds.map_buffer_handle(handle) as shared:
        assert_type(shared, vdi.MappedBuffer)
        return bytes(shared)


def server(name: str) -> None:
    with ServerDeviceSet.open(name, provider=vdi.Provider.embedded()) as vds:
        device = vds.open_device(name)
        assert_type(device, ServerDevice)
        buffer = vds.allocate_buffer(65536)
        assert_type(buffer, ServerBuffer)
        future = device.send_command(vdi.CommandCode.WRITE, buffer, callback=print)
        assert_type(future, Future[Completion])
        assert_type(future.result().bytes_transferred, int)


def job() -> None:
    assert_type(vdi.backup("sqlite:a.db", "store/name", devices=4), Result)
    assert_type(vdi.restore("store/name", "sqlite:b.db"), Result)


def errors(error: vdi.VDAbortError) -> None:
    assert_type(error.code, int)
    assert_type(error.pid, int | None)
    builtin: ConnectionAbortedError = error
    anything: Any = builtin
    print(anything)


def mistakes(device: vdi.VirtualDevice, command: vdi.Command) -> None:
    device.get_command(timeout="1")  # type: ignore[arg-type]
    command.size = 1  # type: ignore[misc]
    command.complete(bytes_transfered=1)  # type: ignore[call-arg]
    vdi.DeviceSetConfig(1, 2, 3).alignment = 4  # type: ignore[misc, arg-type]
