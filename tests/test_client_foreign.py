"""Another library than the embedded provider: what it can not do is said, and its devices see one thread each."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import threading
from pathlib import Path

import pytest
from conftest import ROOT
from serving import WAIT

import vdi_ext as vdi
from vdi_ext import CommandCode, Feature, SetState

COMMANDS, SIZE, HANDLE = 3, 4096, 7  # as in foreign.c


@pytest.fixture(scope="session")
def foreign(tmp_path_factory) -> Path:
    library = tmp_path_factory.mktemp("foreign") / "foreign.so"
    flags = ["-std=c11", "-Wall", "-Wextra", "-D_GNU_SOURCE", "-fPIC", "-shared", "-pthread", f"-I{ROOT / 'include'}"]
    subprocess.run(["cc", *flags, str(ROOT / "tests" / "foreign.c"), "-o", str(library)], check=True)
    return library


@pytest.fixture
def control(foreign: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(foreign))
    assert library.foreign_live(0) == 0
    yield library
    gc.collect()
    assert library.foreign_live(0) == 0 and library.foreign_open_sets(0) == 0


def test_a_foreign_library_end_to_end(foreign: Path, control: ctypes.CDLL) -> None:
    with vdi.VirtualDeviceSet.create("set", provider=str(foreign)) as vds:
        assert vds.state is SetState.CONFIGURABLE
        assert vds.get_configuration(WAIT).features == Feature.WRITE_MEDIA
        assert vds.state is SetState.INITIALIZING
        count = 0
        for command in vds.open_device():
            assert (vds.state, command.code, command.size) == (SetState.ACTIVE, CommandCode.WRITE, SIZE)
            with command, memoryview(command) as view:
                assert view.readonly
            count += 1
        assert (count, vds.state) == (COMMANDS, SetState.NORMALLY_TERMINATED)
        vds.signal_abort("the reason has no way to travel")
        assert vds.state is SetState.ABORT
    assert control.foreign_threads() == 1
    provider = vdi.Provider.load(foreign)
    with pytest.raises(vdi.VDNotSupportedError, match="does not count"):
        provider.live_objects()
    with pytest.raises(vdi.VDNotSupportedError, match="groups"):
        vdi.VirtualDeviceSet.create(provider=provider, group=0)


def test_handles_of_a_foreign_library_are_believed_only_on_request(foreign: Path, control: ctypes.CDLL) -> None:
    with vdi.VirtualDeviceSet.create("set", provider=foreign) as vds:
        vds.get_configuration()
        with vds.open_device().get_command(0) as command:
            handle = vds.get_buffer_handle(command)
            assert handle == vdi.BufferHandle(HANDLE, SIZE, True, "set")
            with pytest.raises(vdi.VDNotSupportedError, match="trusted=True"):
                vds.map_buffer_handle(handle)
            ctypes.memmove(control.foreign_buffer, b"bytes", 5)
            with vds.map_buffer_handle(handle, trusted=True) as mapped, memoryview(mapped) as view:
                assert (bytes(view[:5]), view.nbytes, view.readonly) == (b"bytes", SIZE, True)
            with pytest.raises(vdi.VDInvalidError):
                vds.map_buffer_handle(vdi.BufferHandle(HANDLE + 1, SIZE, True, "set"), trusted=True)
            with pytest.raises(vdi.VDInvalidError):
                vds.map_buffer_handle(vdi.BufferHandle(HANDLE, SIZE, True, "other"), trusted=True)


def test_completions_of_other_threads_are_made_by_the_device_s_own(foreign: Path, control: ctypes.CDLL) -> None:
    with vdi.VirtualDeviceSet.create("set", provider=foreign) as vds:
        vds.get_configuration()
        device = vds.open_device()
        commands = [device.get_command(WAIT) for _ in range(COMMANDS)]

        def complete() -> None:
            for command in commands:
                command.complete()
            with pytest.raises(RuntimeError, match="one thread fetches"):
                device.get_command(0)

        thread = threading.Thread(target=complete)
        thread.start()
        assert list(device) == []  # ends once all completions have arrived
        thread.join(WAIT)
    assert (control.foreign_completed(0), control.foreign_threads()) == (COMMANDS, 1)
