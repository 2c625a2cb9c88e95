"""The compiled part and the sets that the benchmarks run over; each lives as long as a session needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from . import library as native
from .local import Fleet, Local
from .stage import Stage


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared library with the C part."""
    return native.build(tmp_path_factory.mktemp("build"))


@pytest.fixture(scope="module")
def local(library: Path) -> Iterator[Local]:
    """A ring of 1024 commands of 4 KiB in one process."""
    local = Local(library)
    yield local
    local.close()


@pytest.fixture(scope="module")
def large(library: Path) -> Iterator[Local]:
    """A ring of 128 commands of 1 MiB in one process."""
    large = Local(library, 1 << 20, 128)
    yield large
    large.close()


@pytest.fixture(scope="module")
def stage(library: Path) -> Iterator[Callable[[int, int], Stage]]:
    """A function from bytes and depth to a set between two processes; one is open at a time."""
    current: list[tuple[tuple[int, int], Stage]] = []

    def get(size: int, depth: int) -> Stage:
        if not current or current[0][0] != (size, depth):
            while current:
                current.pop()[1].close()
            current.append(((size, depth), Stage(library, size, depth)))
        return current[0][1]

    yield get
    while current:
        current.pop()[1].close()


@pytest.fixture(scope="module", params=["C", "Python"])
def fleet(library: Path, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """64 devices with a buffer of 1 MiB each."""
    fleet = Fleet(library, 1 << 20, python=request.param == "Python")
    yield fleet
    fleet.close()
