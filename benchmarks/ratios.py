"""Every ratio that the package promises, each from one interleaved run: ``python -m benchmarks.ratios [NAME ...]``.

A round measures the one side and the other directly after each other, some milliseconds each, in changing order. What
counts is the median of the rounds' ratios. A round during which anything waited for a processor is repeated, because
two processes suffer more from a third one than a single thread does; where the machine never is quiet for long enough
the rounds count as they are, and the table says so.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, perf_counter_ns

import numpy as np

from . import library as native
from .local import Fleet, Local
from .stage import Stage

MIB = 1 << 20
DEPTH = 4
BLOCKS = 160  # in one measurement of a stream
PAUSE = 300_000  # ns after which a peer sleeps for certain
STALLED = 0.02  # share of a measurement during which something waited for a processor, and above which it is repeated


@dataclass(frozen=True)
class Ratio:
    """Quotient of two measurements; `key` selects it on the command line."""

    key: str
    text: str
    core: float
    goal: float
    top: Callable[[], float]
    bottom: Callable[[], float]
    at_most: bool = False  # else at least
    crowded: bool = False  # its own threads wait for a processor, or for being woken

    def holds(self, value: float) -> bool:
        """Whether the value reaches the target of column core."""
        return value <= self.core if self.at_most else value >= self.core


def streams(stage: Stage) -> list[Ratio]:
    """Process to process, 1 MiB commands, 4 outstanding, every byte written by the server and read by the client."""

    def rate(ns: Callable[[], float]) -> Callable[[], float]:
        return lambda: 1 / ns()

    python = rate(lambda: stage.python_stream(BLOCKS, DEPTH))
    c = rate(lambda: stage.c_stream(BLOCKS, DEPTH))
    copy = rate(lambda: stage.copy(BLOCKS, DEPTH))
    ratios = [
        Ratio("python", "Python client / C client", 0.90, 0.98, python, c),
        Ratio("memcpy", "process to process / memcpy by one thread", 0.80, 0.95, python, copy),
        Ratio("memcpy-c", "the same, client in C", 0.80, 0.95, c, copy),
    ]

    return [
        *ratios,
        *hashing(stage, DEPTH, 24),
        Ratio("queue", "stream / shared_memory + Queue", 3, 6, python, rate(lambda: stage.queue(32)),
              crowded=True),
        Ratio("pipe-1m", "stream / pipe of 1 MiB", 5, 13, python, rate(lambda: stage.pipe(24, True)),
              crowded=True),
        Ratio("pipe", "stream / default pipe", 15, 45, python, rate(lambda: stage.pipe(24, False)),
              crowded=True),
        Ratio("ctypes", "stream / ctypes client that copies", 1.5, 1.9, python,
              rate(lambda: stage.ctypes_stream(BLOCKS, DEPTH))),
    ]  # fmt: skip


def hashing(stage: Stage, depth: int, count: int, prefix: str = "", key: str = "") -> list[Ratio]:
    """SHA-256 in the loop: against hashlib on private memory, and on the same buffers without any command."""

    def sha256(data: object) -> object:
        return hashlib.sha256(data).digest()

    blocks = [np.frombuffer(np.random.default_rng(i).bytes(stage.block), np.uint8) for i in range(depth)]

    def alone() -> float:
        start = perf_counter_ns()
        for i in range(count):
            sha256(blocks[i % depth])
        return count / (perf_counter_ns() - start)

    def hashed() -> float:
        return 1 / stage.python_stream(count, depth, sha256)

    def warm() -> float:
        return 1 / stage.python_stream(count, depth, lambda command: (stage.read_all(command), sha256(command)))

    def rewritten() -> float:
        return 1 / stage.rewritten(sha256, max(2, count // depth), depth)

    text = f"{prefix}SHA-256 of a stream"
    return [
        Ratio(f"sha256{key}", f"{text} / hashlib alone", 0.95, 0.99, hashed, alone),
        Ratio(f"sha256-shared{key}", f"{text} / hashlib on the same buffers", 0.95, 0.99, hashed, rewritten),
        Ratio(f"sha256-warm{key}", f"{text}, each block read once before / hashlib alone", 0.95, 0.99, warm, alone),
    ]


def small_blocks(stage: Stage) -> list[Ratio]:
    """The same where blocks are of 64 KiB, 16 outstanding: the machinery counts for more."""
    count = 1024

    def python() -> float:
        return 1 / stage.python_stream(count, 16)

    def c() -> float:
        return 1 / stage.c_stream(count, 16)

    return [
        Ratio("python-64k", "64 KiB, depth 16: Python client / C client", 0.90, 0.98, python, c),
        Ratio("queue-64k", "64 KiB, depth 16: stream / shared_memory + Queue", 3, 6, python,
              lambda: 1 / stage.queue(256), crowded=True),
        *hashing(stage, 16, 512, "64 KiB, depth 16: ", "-64k"),
    ]  # fmt: skip


def large_blocks(stage: Stage) -> list[Ratio]:
    """The largest transfer that T-SQL allows."""
    return [
        *hashing(stage, DEPTH, 12, "4 MiB: ", "-4m"),
        Ratio("queue-4m", "4 MiB: stream / shared_memory + Queue", 3, 6, lambda: 1 / stage.python_stream(40, DEPTH),
              lambda: 1 / stage.queue(16), crowded=True),
    ]  # fmt: skip


def round_trips(stage: Stage) -> list[Ratio]:
    """One command at a time between two processes."""

    def raw() -> float:
        return stage.raw_round_trip(5000, False)

    return [
        Ratio("trip", "round trip at depth 1, C / spinning ping-pong", 2.5, 1.4,
              lambda: stage.c_round_trip(5000), raw, True),
        Ratio("trip-python", "the same from Python", 2.5, 1.4, lambda: stage.python_round_trip(5000), raw, True),
        Ratio("asleep", "round trip with a sleeping peer / futex ping-pong", 1.3, 1.05,
              lambda: stage.sleepy_round_trip(12, PAUSE), lambda: stage.raw_sleepy_round_trip(12, PAUSE), True,
              crowded=True),
    ]  # fmt: skip


def commands(small: Local, large: Local) -> list[Ratio]:
    """Get and complete with the commands there already."""
    data = bytearray(large.block)

    def copied() -> float:
        view = memoryview(data)
        start = perf_counter_ns()
        for _ in range(16):
            bytes(view)
        return (perf_counter_ns() - start) / 16

    return [
        Ratio("command", "get + complete, Python / C", 3.0, 1.8, small.python_drain, small.c_drain, True),
        Ratio("view", "get + memoryview + complete / bytes() of 1 MiB", 1 / 50, 1 / 100,
              lambda: large.python_drain(memoryview), copied, True),
    ]  # fmt: skip


def fleets(c: Fleet, python: Fleet) -> list[Ratio]:
    """The same bytes through the same 64 buffers of 1 MiB."""
    count = 1024

    def over(fleet: Fleet, devices: int) -> Callable[[], float]:
        return lambda: 1 / fleet.stream(devices, count)

    return [
        Ratio("fleet", "64 devices / 1 device, clients in C", 0.7, 0.95, over(c, 64), over(c, 1), crowded=True),
        Ratio(
            "fleet-python", "the same in Python, 64 threads", 0.7, 0.95, over(python, 64), over(python, 1), crowded=True
        ),
    ]


# ---- measuring


def waited() -> float:
    """Seconds that something, anywhere, has waited for a processor so far; 0 where the kernel does not say."""
    try:
        with open("/proc/pressure/cpu") as pressure:
            return int(pressure.readline().split("total=")[1]) / 1e6
    except OSError:
        return 0.0


def await_quiet(limit: float) -> bool:
    """Wait until nothing else is runnable."""
    end = perf_counter() + limit
    while perf_counter() < end:
        with open("/proc/loadavg") as load:
            if int(load.read().split()[3].split("/")[0]) <= 1:
                return True
        time.sleep(0.003)
    return False


def once(measure: Callable[[], float], limit: float, crowded: bool = False) -> tuple[float, bool]:
    """One measurement, and whether it was left alone."""
    quiet = await_quiet(limit)
    before, start = waited(), perf_counter()
    value = measure()
    return value, quiet if crowded else waited() - before <= STALLED * (perf_counter() - start)


def measure(ratio: Ratio, rounds: int, seconds: float) -> tuple[list[float], list[float], list[float], bool]:
    """Ratios, upper and lower values of the rounds that count, and whether these were quiet."""
    quiet: list[tuple[float, float]] = []
    every: list[tuple[float, float]] = []
    end = perf_counter() + seconds
    ratio.top(), ratio.bottom()
    while len(quiet) < rounds and (perf_counter() < end or len(every) < 5):
        order = [ratio.top, ratio.bottom]
        if len(every) % 2:
            order.reverse()
        (first, alone), (second, too) = (once(side, 0.5, ratio.crowded) for side in order)
        pair = (second, first) if len(every) % 2 else (first, second)
        every.append(pair)
        if alone and too:
            quiet.append(pair)
    enough = len(quiet) >= 5
    counted = quiet if enough else every
    return [a / b for a, b in counted], [a for a, _ in counted], [b for _, b in counted], enough


def pin(pid: int, processors: set[int]) -> None:
    """Keep all threads of a process on these processors."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(thread), processors)


@contextmanager
def apart(peers: list[int], wanted: bool) -> Iterator[None]:
    """This process and its peers on a processor each, so that no placement by the scheduler is in the figures."""
    mine = os.sched_getaffinity(0)
    if wanted and len(mine) > 1:
        one, other, *_ = sorted(mine)
        pin(os.getpid(), {one})
        for peer in peers:
            pin(peer, {other})
    try:
        yield
    finally:
        pin(os.getpid(), mine)


def number(value: float) -> str:
    return f"1/{1 / value:.0f}" if value < 0.1 else f"{value:.3g}"


def report(ratio: Ratio, rounds: int, seconds: float) -> bool:
    """Measure one ratio and print its row."""
    values, *_, quiet = measure(ratio, rounds, seconds)
    middle = statistics.median(values)
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    holds = ratio.holds(middle)
    print(
        f"| {ratio.text} | {number(middle)} | {number(low)}-{number(high)} | {number(ratio.core)} "
        f"| {number(ratio.goal)} | {'yes' if holds else 'NO'} | {len(values)}{'' if quiet else ', not quiet'} |",
        flush=True,
    )
    return holds


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 0 where every ratio reaches column core."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ratios", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these; see the first column of --list")
    parser.add_argument("--list", action="store_true", help="names and what they mean")
    parser.add_argument("--rounds", type=int, default=25, help="that count, for each ratio (%(default)s)")
    parser.add_argument("--seconds", type=float, default=30, help="at most, for each ratio (%(default)s)")
    parser.add_argument("--free", action="store_true", help="leave it to the scheduler where processes run")
    options = parser.parse_args(arguments)

    def selected(ratios: list[Ratio]) -> Iterator[Ratio]:
        for ratio in ratios:
            if options.list:
                print(f"{ratio.key:14} {ratio.text}")
            elif not options.names or ratio.key in options.names:
                yield ratio

    results = []
    head = ("ratio", "median", "middle half", "core", "goal", "reached", "rounds")
    if not options.list:
        print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}")

    def run(ratios: list[Ratio]) -> None:
        for ratio in selected(ratios):
            results.append(report(ratio, options.rounds, options.seconds))

    with tempfile.TemporaryDirectory(prefix="vdi-bench-") as folder, ExitStack() as parts:
        library = native.build(Path(folder))

        def part(kind, *arguments, **keywords):
            made = kind(library, *arguments, **keywords)
            parts.callback(made.close)
            return made

        stage, narrow, wide = part(Stage, MIB, DEPTH), part(Stage, 64 << 10, 16), part(Stage, 4 * MIB, DEPTH)
        with apart([stage.peer.pid, narrow.peer.pid, wide.peer.pid], not options.free):
            run(streams(stage))
            run(small_blocks(narrow))
            run(large_blocks(wide))
            run(round_trips(stage))
            run(commands(part(Local), part(Local, MIB, 128)))
        run(fleets(part(Fleet, MIB, python=False), part(Fleet, MIB, python=True)))
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
