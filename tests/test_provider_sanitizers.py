"""Checks that could pass by looking away, proved to see: planted faults and a mutant must be reported.

These build the flavours that they need by themselves, whatever VDI_EXT_SANITIZE says.
"""

from __future__ import annotations

import pytest
from native.build import Programs


@pytest.fixture(scope="session")
def asan(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return Programs(tmp_path_factory.mktemp("asan"), "address")


def test_right_use_of_buffers_is_not_reported(asan: Programs) -> None:
    done = asan.run("faults", "clean")
    assert done.returncode == 0 and "ERROR" not in done.stderr, done.stdout + done.stderr


@pytest.mark.parametrize(
    "fault",
    [
        "server-overrun",
        "server-far-overrun",
        "server-zone",
        "server-lent",
        "server-after-free",
        "client-overrun",
        "client-far-overrun",
        "client-underrun",
        "client-after-completion",
        "client-zone-after-completion",
    ],
)
def test_a_planted_fault_is_reported(asan: Programs, fault: str) -> None:
    done = asan.run("faults", fault)
    assert done.returncode != 0
    assert "AddressSanitizer: use-after-poison" in done.stderr, done.stdout + done.stderr
    half = fault.partition("-")[0]
    frame = next(line for line in done.stderr.splitlines() if " #0 " in line)
    assert f" in {half} " in frame and "faults.c" in frame, done.stderr


def test_traffic_is_free_of_races(tmp_path_factory: pytest.TempPathFactory) -> None:
    done = Programs(tmp_path_factory.mktemp("tsan"), "thread").run("traffic", "1000")
    assert done.returncode == 0 and "ThreadSanitizer" not in done.stderr, done.stdout + done.stderr


def test_a_relaxed_publication_is_reported(tmp_path_factory: pytest.TempPathFactory) -> None:
    where = tmp_path_factory.mktemp("mutant")
    done = Programs(where, "thread", defines=("VDI_MUTANT_RELAXED_PUBLICATION",)).run("traffic", "200")
    assert done.returncode != 0
    assert "ThreadSanitizer: data race" in done.stderr, done.stdout + done.stderr
