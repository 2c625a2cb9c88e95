"""The loops over pages and records, compiled and in numpy; ``python -m benchmarks.bench_kernels`` prints the table."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from time import perf_counter_ns
from types import ModuleType

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from vdi_ext.mtf import _kernels, checksums

VARIANTS = {"compiled": _kernels, "numpy": checksums}
SIZES = [8 << 10, 64 << 10, 1 << 20, 4 << 20, 64 << 20]
ROUNDS, ROUND_NS = 15, 20_000_000


def noise(size: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, size, np.uint8)


def verify(variant: ModuleType, data: np.ndarray) -> object:
    """What is computed of a buffer that is verified: page checksums and backup checksum, the data being read once."""
    sectors = variant.sector_xors(data)
    return variant.page_checksums(data, sectors), variant.fold(sectors)


CALLS: dict[str, Callable[[ModuleType, np.ndarray], object]] = {
    "sector XORs": lambda variant, data: variant.sector_xors(data),
    "page checksums": lambda variant, data: variant.page_checksums(data),
    "backup checksum": lambda variant, data: variant.stream_checksum(data),
    "both": verify,
    "fold": lambda variant, data: variant.fold(data.view("<u4")),
}


@pytest.mark.benchmark(group="checksums")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_checksums(benchmark: BenchmarkFixture, variant: str, call: str, size: int) -> None:
    data = noise(size)
    benchmark.extra_info["bytes"] = size
    benchmark(CALLS[call], VARIANTS[variant], data)


def rates(sides: list[Callable[[], object]], size: int) -> list[list[float]]:
    """Bytes per ns of each, in rounds that take turns."""
    found: list[list[float]] = [[] for _ in sides]
    counts = []
    for side in sides:
        side()
        start = perf_counter_ns()
        side()
        counts.append(max(1, ROUND_NS // (perf_counter_ns() - start)))
    for _ in range(ROUNDS):
        for side, count, into in zip(sides, counts, found, strict=True):
            start = perf_counter_ns()
            for _ in range(count):
                side()
            into.append(size * count / (perf_counter_ns() - start))
    return found


def cell(found: list[float]) -> str:
    """Median and middle half."""
    low, middle, high = statistics.quantiles(found, n=4)
    return f"{middle:.3g} ({low:.3g}-{high:.3g})"


def main() -> int:
    """Print GB/s of everything."""
    print("| | buffer | compiled | numpy |\n| --- | --- | --- | --- |")
    for name, call in CALLS.items():
        for size in SIZES:
            data = noise(size)
            sides = [lambda v=variant, d=data, c=call: c(v, d) for variant in VARIANTS.values()]
            cells = " | ".join(map(cell, rates(sides, size)))
            print(f"| {name} | {size >> 10} KiB | {cells} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
