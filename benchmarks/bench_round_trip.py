"""One command at a time, there and back between two processes, against what the machine needs at least."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

PAUSE = 300_000  # ns after which a peer sleeps for certain


@pytest.mark.benchmark(group="1000 round trips, both sides awake")
@pytest.mark.parametrize("way", ["spinning ping-pong", "C", "Python"])
def test_awake(benchmark: BenchmarkFixture, stage, way: str) -> None:
    pair = stage(4096, 1)
    call, arguments = {
        "spinning ping-pong": (pair.raw_round_trip, (1000, False)),
        "C": (pair.c_round_trip, (1000,)),
        "Python": (pair.python_round_trip, (1000,)),
    }[way]
    benchmark.extra_info["ns"] = benchmark.pedantic(call, args=arguments, rounds=20)


@pytest.mark.benchmark(group="20 round trips, the receiver asleep each time (pauses included)")
@pytest.mark.parametrize("way", ["futex ping-pong", "C"])
def test_asleep(benchmark: BenchmarkFixture, stage, way: str) -> None:
    pair = stage(4096, 1)
    call = pair.sleepy_round_trip if way == "C" else pair.raw_sleepy_round_trip
    benchmark.extra_info["ns"] = benchmark.pedantic(call, args=(20, PAUSE), rounds=5)


@pytest.mark.benchmark(group="1000 round trips, futexes without pauses")
def test_futex(benchmark: BenchmarkFixture, stage) -> None:
    benchmark.extra_info["ns"] = benchmark.pedantic(stage(4096, 1).raw_round_trip, args=(1000, True), rounds=5)
