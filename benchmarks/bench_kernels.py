"""The loops over pages and records, compiled and in numpy; ``python -m benchmarks.bench_kernels`` prints the table."""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from types import ModuleType

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from vdi_ext.mtf import _kernels, checksums, container, decompress_into

VARIANTS = {"compiled": _kernels, "numpy": checksums}
SIZES = [8 << 10, 64 << 10, 1 << 20, 4 << 20, 64 << 20]
ROUNDS, ROUND_NS = 15, 20_000_000
SHARED = Path(os.environ.get("VDI_EXT_SHARED", Path(__file__).resolve().parent.parent.parent / "shared"))
COMPRESSED = SHARED / "data" / "bak" / "22_full_compressed_2016.bak"

Record = tuple[bytes, int]  # compressed data, and bytes that come out


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


def records() -> list[Record]:
    """The records of a real backup."""
    found: list[Record] = []

    class Collector(container.Unpacker):
        @staticmethod
        def _unpacked(record: bytes) -> bytes:
            found.append((record[28:], record[1] * 512))
            return b""

    for _ in Collector().feed(COMPRESSED.read_bytes()):
        pass
    return found


def unpack(some: list[Record]) -> None:
    """Decompress records, each into the same memory."""
    out = memoryview(bytearray(max(size for _, size in some)))
    for data, size in some:
        decompress_into(data, out[:size])


@pytest.mark.benchmark(group="decompression")
def test_decompression(benchmark: BenchmarkFixture) -> None:
    if not COMPRESSED.exists():
        pytest.skip(f"{COMPRESSED} is absent")
    some = records()
    benchmark.extra_info["bytes"] = sum(size for _, size in some)
    benchmark(unpack, some)


def main() -> int:
    """Print GB/s of everything."""
    print("| | buffer | compiled | numpy |\n| --- | --- | --- | --- |")
    for name, call in CALLS.items():
        for size in SIZES:
            data = noise(size)
            sides = [lambda v=variant, d=data, c=call: c(v, d) for variant in VARIANTS.values()]
            cells = " | ".join(map(cell, rates(sides, size)))
            print(f"| {name} | {size >> 10} KiB | {cells} |", flush=True)
    if COMPRESSED.exists():
        every = records()
        every.sort(key=lambda record: len(record[0]) / record[1])
        print("\n| decompression, GB/s of output | records | compressed to | |\n| --- | --- | --- | --- |")
        quarter = len(every) // 4
        for name, some in {"all": every, "best quarter": every[:quarter], "worst quarter": every[-quarter:]}.items():
            size, packed = sum(size for _, size in some), sum(len(data) for data, _ in some)
            found, = rates([lambda some=some: unpack(some)], size)
            print(f"| {name} | {len(some)} | {packed / size:.2f} | {cell(found)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
