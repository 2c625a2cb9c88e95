"""One command from a full ring: get + complete, alone and with a view of its buffer."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from .local import Local, drain

ROUNDS = 50


def measure(benchmark: BenchmarkFixture, local: Local, device: int, call) -> None:
    """Each round empties a ring that was filled outside of the time; the figure is for all its commands."""
    filled = False

    def fill() -> None:
        nonlocal filled
        if filled:
            local.finish()
        local.fill(device)
        filled = True

    benchmark.extra_info["commands"] = local.commands
    benchmark.pedantic(call, setup=fill, rounds=ROUNDS)
    local.finish()


@pytest.mark.benchmark(group="get + complete, 1024 commands")
@pytest.mark.parametrize("client", ["C", "Python", "ctypes"])
def test_get_and_complete(benchmark: BenchmarkFixture, local: Local, client: str) -> None:
    n = local.commands
    device, call = {
        "C": (1, partial(local.lib.client_drain, local.c, n)),
        "Python": (0, partial(drain, local.python, n)),
        "ctypes": (2, partial(local.ctypes.drain, n)),
    }[client]
    measure(benchmark, local, device, call)


@pytest.mark.benchmark(group="get + look + complete, 128 commands of 1 MiB")
@pytest.mark.parametrize(
    "look", [memoryview, lambda command: np.frombuffer(command, np.uint8), bytes], ids=["memoryview", "numpy", "bytes"]
)
def test_view(benchmark: BenchmarkFixture, large: Local, look) -> None:
    benchmark.extra_info["bytes"] = large.commands * large.block
    measure(benchmark, large, 0, partial(drain, large.python, large.commands, look))
