"""Instructions of one get + complete, counted by callgrind: ``python -m benchmarks.instructions``.

A count does not depend on what else the machine does, so it shows what a change costs where times do not.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from . import library as native

CLIENTS = ("C", "Python", "Python with a memoryview")


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
    for toggle in (lambda: None, local.lib.bench_toggle_counting):
        local.fill(1 if client == "C" else 0)
        toggle()
        if client == "C":
            native.good(local.lib.client_drain(local.c, COMMANDS))
        else:
            drain(local.python, COMMANDS, use)
        toggle()
        local.finish()
    local.close()


def main() -> int:
    """Print a row for each client."""
    if len(sys.argv) == 3:
        run(sys.argv[1], Path(sys.argv[2]))
        return 0
    print("| get + complete from | instructions |\n| --- | --- |")
    with tempfile.TemporaryDirectory(prefix="vdi-bench-") as folder:
        library = native.build(Path(folder), "-march=x86-64")  # what valgrind knows
        for client in CLIENTS:
            print(f"| {client} | {count(client, library, Path(folder)):.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
