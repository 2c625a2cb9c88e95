"""Instructions of one get + complete, counted by callgrind: ``python -m benchmarks.instructions``.

A count does not depend on what else the machine does, so it shows what a change costs where times do not. The loop of
a job is a bare one where nobody listens to its events: the two rows agree to what the loop's own beginning takes.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from vdi_ext import Command

from . import library as native

CLIENTS = ("C", "Python", "Python with a memoryview")
LOOPS = ("a bare loop", "the loop of a job", "the loop of a job with a consumer of events")


def count(client: str, library: Path, folder: Path) -> float:
    """Instructions for each command."""
    out = folder / "callgrind.out"
    subprocess.run(
        [
            "valgrind", "--tool=callgrind", "--collect-atstart=no", f"--callgrind-out-file={out}",
            sys.executable, "-m", "benchmarks.instructions", client, str(library),
        ],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=300,
    )  # fmt: skip
    total = re.search(r"^(?:summary|totals): (\d+)", out.read_text(), re.MULTILINE)
    if total is None:
        raise RuntimeError("callgrind wrote no total")
    return int(total[1]) / COMMANDS


COMMANDS = 1024


def run(client: str, library: Path) -> None:
    """What runs under callgrind: one full ring, counted; the ring before it, not."""
    from .local import Local, drain

    local = Local(library, commands=COMMANDS)
    use = memoryview if client == CLIENTS[2] else None
    # Ready before anything is counted.
    loop = loop_of(client) if client in LOOPS else None
    for toggle in (lambda: None, local.lib.bench_toggle_counting):
        local.fill(1 if client == "C" else 0)
        toggle()
        if client == "C":
            native.good(local.lib.client_drain(local.c, COMMANDS))
        elif loop is not None:
            loop(itertools.islice(local.python, COMMANDS))
        else:
            drain(local.python, COMMANDS, use)
        toggle()
        local.finish()
    local.close()


def loop_of(kind: str) -> Callable[[Iterator[Command]], None]:
    """A loop over the commands of a device that completes each: by itself, or as a job does it."""
    from vdi_ext.events import EventStream
    from vdi_ext.jobs.answering import DONE, Answer, answer_commands

    def answer(command: Command) -> Answer:
        command.complete()
        return DONE

    def bare(commands: Iterator[Command]) -> None:
        for command in commands:
            with command:
                answer(command)

    if kind == LOOPS[0]:
        return bare
    events = EventStream([lambda event: None] if kind == LOOPS[2] else [])
    return lambda commands: answer_commands(commands, 1, answer, events)  # type: ignore[arg-type]


def main() -> int:
    """Print a row for each client."""
    if len(sys.argv) == 3:
        run(sys.argv[1], Path(sys.argv[2]))
        return 0
    print("| get + complete from | instructions |\n| --- | --- |")
    with tempfile.TemporaryDirectory(prefix="vdi-bench-") as folder:
        library = native.build(Path(folder), "-march=x86-64")  # what valgrind knows
        for client in (*CLIENTS, *LOOPS):
            print(f"| {client} | {count(client, library, Path(folder)):.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
