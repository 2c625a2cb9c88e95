"""The embedded provider, tested by C programs against its vtables: tests/native/*.c.

VDI_EXT_SANITIZE chooses the flavour (none, address, undefined, thread) in which everything here is built.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from native.build import LIBRARY, Programs, environment
from native.peers import Peers, stream


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return Programs(tmp_path_factory.mktemp("native"), os.environ.get("VDI_EXT_SANITIZE") or "none")


@pytest.mark.threaded
def test_every_cell_of_the_state_tables(programs: Programs) -> None:
    out = programs.check("state_table")
    assert "cells of the client" in out and "cells of the server" in out


def test_every_cell_with_the_halves_in_two_processes(programs: Programs) -> None:
    programs.check("state_table", "split")


@pytest.mark.threaded
@pytest.mark.parametrize("name", ["rules_commands", "rules_buffers", "rules_sets"])
def test_rules(programs: Programs, name: str) -> None:
    programs.check(name)


@pytest.mark.threaded
def test_traffic_with_both_halves_on_one_mapping(programs: Programs) -> None:
    programs.check("traffic", "6000")  # the rings go round


@pytest.mark.threaded
def test_errors_with_many_commands_in_flight(programs: Programs) -> None:
    programs.check("errors", "20000")


@pytest.mark.threaded
def test_everything_at_once_while_it_ends(programs: Programs) -> None:
    programs.check("races", "80")


def test_death_of_each_process(programs: Programs) -> None:
    programs.check("death")


def test_several_processes_that_behave(programs: Programs) -> None:
    programs.check("processes")


@pytest.mark.parametrize(
    "attack",
    ["name_is_taken", "nothing_shrinks", "unsealed_memory", "strangers_knock", "other_users", "lying_messages"],
)
def test_hostile_peers(programs: Programs, attack: str) -> None:
    programs.check("hostile", attack)


def test_random_bytes_in_the_control_memory(programs: Programs) -> None:
    programs.check("scribbler")


EXPORTS = """
DllCanUnloadNow DllGetClassObject VdiLiveObjects
_ZN19ClientVirtualDeviceC1Ev _ZN19ClientVirtualDeviceC2Ev _ZN19ClientVirtualDeviceD1Ev _ZN19ClientVirtualDeviceD2Ev
_ZN19ClientVirtualDevice10GetCommandElPP11VDC_Command _ZN19ClientVirtualDevice15CompleteCommandEP11VDC_Commandiml
_ZN22ClientVirtualDeviceSetC1Ev _ZN22ClientVirtualDeviceSetC2Ev
_ZN22ClientVirtualDeviceSetD1Ev _ZN22ClientVirtualDeviceSetD2Ev
_ZN22ClientVirtualDeviceSet6CreateEPcP8VDConfig _ZN22ClientVirtualDeviceSet16GetConfigurationElP8VDConfig
_ZN22ClientVirtualDeviceSet10OpenDeviceEPcPP19ClientVirtualDevice _ZN22ClientVirtualDeviceSet5CloseEv
_ZN22ClientVirtualDeviceSet11SignalAbortEv _ZN22ClientVirtualDeviceSet15OpenInSecondaryEPc
_ZN22ClientVirtualDeviceSet15GetBufferHandleEPhPj _ZN22ClientVirtualDeviceSet15MapBufferHandleEiPPh
_ZN22ClientVirtualDeviceSet20RegisterDeviceClosedEv
""".split()


def test_exports_are_the_documented_ones_and_no_more() -> None:
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", str(LIBRARY)], capture_output=True, text=True, check=True, env=environment()
    ).stdout
    exported = {line.split()[-1] for line in listing.splitlines()}
    sanitizers_own = {name for name in exported if name.startswith(("__asan", "__ubsan", "__odr_asan"))}
    assert exported - sanitizers_own == set(EXPORTS)


def test_the_library_needs_no_python_and_no_cxx_runtime() -> None:
    listing = subprocess.run(
        ["readelf", "-d", str(LIBRARY)], capture_output=True, text=True, check=True, env=environment()
    ).stdout
    needed = [line for line in listing.splitlines() if "NEEDED" in line]
    assert needed and not any("python" in line or "stdc++" in line for line in needed)


# Where clang is installed, which it is where CI runs.
if shutil.which("clang") or os.environ.get("CI") == "true":

    def test_clang_builds_it_and_the_tables_hold(tmp_path_factory: pytest.TempPathFactory) -> None:
        Programs(tmp_path_factory.mktemp("clang"), "none", "clang", "clang++").check("state_table")


# --- C++ programs that link -lsqlvdi, in processes without Python ---


def test_cxx_contract(programs: Programs) -> None:
    programs.check("cxx_client", "contract")


@pytest.mark.parametrize(("devices", "deletion"), [(1, "never"), (1, "delete"), (4, "late"), (16, "never")])
def test_cxx_client_backs_up_and_restores(programs: Programs, tmp_path: Path, devices: int, deletion: str) -> None:
    name, prefix = f"cxx {os.getpid()} {devices} {deletion} \N{FLOPPY DISK}", str(tmp_path / "stripe")
    megabytes = 1
    for operation in ("backup", "restore"):
        with Peers(programs) as peers:
            client = peers.start("cxx_client", operation, name, str(devices), prefix, deletion)
            peers.until(client, "created")
            peers.start("cserver", operation, name, str(devices), str(megabytes))
            peers.finish()
    for device in range(devices):
        stored = (tmp_path / f"stripe.{device}").read_bytes()
        assert len(stored) == megabytes << 20
        assert stored[: 3 << 16] == stream(device, 3 << 16)


def test_cxx_secondaries_serve_devices(programs: Programs, tmp_path: Path) -> None:
    name, prefix = f"cxx secondaries {os.getpid()}", str(tmp_path / "stripe")
    for operation in ("backup", "restore"):
        with Peers(programs) as peers:
            primary = peers.start("cxx_client", "primary", name, "3", prefix)
            peers.until(primary, "created")
            peers.start("cserver", operation, name, "3", "1")
            peers.until(primary, "configured")
            for device in ("1", "2"):
                peers.start("cxx_client", "secondary", name, device, prefix)
            peers.finish()
    assert [(tmp_path / f"stripe.{device}").stat().st_size for device in range(3)] == [1 << 20] * 3


@pytest.mark.parametrize("operation", ["backup", "restore"])
def test_cxx_handles_cross_processes(programs: Programs, operation: str) -> None:
    name = f"cxx handles {os.getpid()}"
    with Peers(programs) as peers:
        client = peers.start("cxx_client", "handles", name, "2")
        peers.until(client, "created")
        peers.start("cserver", operation, name, "1", "2")
        peers.finish()
