"""GB/s from process to process by block and depth, and what else moves bytes: ``python -m benchmarks.table``.

Medians of undisturbed rounds, as in ratios.py; each row is one interleaved run.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from . import library as native
from .ratios import apart, once
from .stage import Stage, read_nothing

SIZES = (64 << 10, 1 << 20, 4 << 20)
DEPTHS = (1, 4, 16)
BYTES = 128 << 20
ROUNDS, SECONDS = 7, 15.0


def row(stage: Stage, depth: int) -> dict[str, Callable[[], float]]:
    """What is measured over one set: ns per block; then what does not depend on the depth."""
    count, slow = BYTES // stage.block, (16 << 20) // stage.block
    return {
        "memcpy": lambda: stage.copy(count, depth),
        "C": lambda: stage.c_stream(count, depth),
        "Python": lambda: stage.python_stream(count, depth),
        "unread": lambda: stage.python_stream(count, depth, read_nothing),
        "ctypes": lambda: stage.ctypes_stream(count, depth),
        "Queue": lambda: stage.queue(slow),
        "pipe 1M": lambda: stage.pipe(slow, True),
        "pipe": lambda: stage.pipe(slow, False),
    }


def measured(sides: dict[str, Callable[[], float]]) -> tuple[dict[str, float], bool]:
    """Median ns of each, and whether these are of undisturbed measurements."""
    quiet: dict[str, list[float]] = {name: [] for name in sides}
    every: dict[str, list[float]] = {name: [] for name in sides}
    end = perf_counter() + SECONDS
    while min(map(len, quiet.values())) < ROUNDS and (perf_counter() < end or min(map(len, every.values())) < 3):
        for name, side in sides.items():
            if len(quiet[name]) < ROUNDS:
                value, alone = once(side, 0.5, crowded=name in ("Queue", "pipe 1M", "pipe"))
                every[name].append(value)
                if alone:
                    quiet[name].append(value)
    enough = min(map(len, quiet.values())) >= 3
    return {name: statistics.median((quiet if enough else every)[name]) for name in sides}, enough


def main() -> int:
    """Print the table."""
    with tempfile.TemporaryDirectory(prefix="vdi-bench-") as folder:
        library = native.build(Path(folder))
        for size in SIZES:
            for depth in DEPTHS:
                stage = Stage(library, size, depth)
                try:
                    with apart([stage.peer.pid], True):
                        ns, quiet = measured(row(stage, depth))
                finally:
                    stage.close()
                if (size, depth) == (SIZES[0], DEPTHS[0]):
                    print(f"| block | depth | {' | '.join(ns)} |\n|{' --- |' * (len(ns) + 2)}")
                rates = " | ".join(f"{size / value:.1f}" for value in ns.values())
                print(f"| {size >> 10} KiB{'' if quiet else ', not quiet'} | {depth} | {rates} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
