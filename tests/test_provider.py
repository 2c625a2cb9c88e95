"""The embedded provider, tested by C programs against its vtables: tests/native/*.c.

VDI_EXT_SANITIZE chooses the flavour (none, address, undefined, thread) in which everything here is built.
"""

from __future__ import annotations

import os
import subprocess

import pytest
from native.build import LIBRARY, Programs, environment


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
    programs.check("traffic", "2000")


def test_death_of_each_process(programs: Programs) -> None:
    programs.check("death")


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


def test_clang_builds_it_and_the_tables_hold(tmp_path_factory: pytest.TempPathFactory) -> None:
    Programs(tmp_path_factory.mktemp("clang"), "none", "clang", "clang++").check("state_table")
