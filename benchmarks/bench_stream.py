"""Bytes from process to process: the server writes every byte, the client reads every byte.

The time of a test is that of a whole run; ``extra_info`` has the GB/s of its steady middle.
"""

from __future__ import annotations

import hashlib

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from .local import Fleet
from .stage import read_nothing

SIZES = [64 << 10, 1 << 20, 4 << 20]
DEPTHS = [1, 4, 16]
BYTES = 128 << 20  # of one run
SLOW = 16 << 20


def measure(benchmark: BenchmarkFixture, size: int, count: int, call, *arguments: object, rounds: int = 5) -> None:
    """Time whole runs, and note the rate between their beginnings and ends."""
    rates: list[float] = []
    benchmark.extra_info.update(size=size, bytes=size * count)
    benchmark.pedantic(lambda: rates.append(size / call(*arguments)), rounds=rounds)
    benchmark.extra_info["GB/s"] = round(sorted(rates)[len(rates) // 2], 2)


@pytest.mark.benchmark(group="stream")
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("size", SIZES)
class TestStream:
    @pytest.mark.parametrize("client", ["Python", "Python, unread", "C", "ctypes copy", "memcpy only"])
    def test_stream(self, benchmark: BenchmarkFixture, stage, size: int, depth: int, client: str) -> None:
        pair, count = stage(size, depth), BYTES // size
        call, *more = {
            "Python": (pair.python_stream,),
            "Python, unread": (pair.python_stream, read_nothing),
            "C": (pair.c_stream,),
            "ctypes copy": (pair.ctypes_stream,),
            "memcpy only": (pair.copy,),
        }[client]
        measure(benchmark, size, count, call, count, depth, *more)


@pytest.mark.benchmark(group="stream by other means")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("means", ["shared_memory + Queue", "pipe", "pipe of 1 MiB"])
def test_other_means(benchmark: BenchmarkFixture, stage, size: int, means: str) -> None:
    pair, count = stage(size, 4), SLOW // size
    call, *more = {
        "shared_memory + Queue": (pair.queue,),
        "pipe": (pair.pipe, False),
        "pipe of 1 MiB": (pair.pipe, True),
    }[means]
    measure(benchmark, size, count, call, count, *more)


@pytest.mark.benchmark(group="SHA-256")
def test_sha256_of_stream(benchmark: BenchmarkFixture, stage) -> None:
    size = 1 << 20
    measure(benchmark, size, 32, stage(size, 4).python_stream, 32, 4, lambda command: hashlib.sha256(command).digest())


@pytest.mark.benchmark(group="SHA-256")
def test_sha256_alone(benchmark: BenchmarkFixture) -> None:
    data = bytes(range(256)) * 4096
    benchmark.extra_info["bytes"] = len(data)
    benchmark.pedantic(lambda: hashlib.sha256(data).digest(), rounds=32)


@pytest.mark.benchmark(group="256 MiB over several devices")
@pytest.mark.parametrize("devices", [1, 4, 64])
def test_devices(benchmark: BenchmarkFixture, fleet: Fleet, devices: int) -> None:
    measure(benchmark, fleet.block, 256, fleet.stream, devices, 256)
