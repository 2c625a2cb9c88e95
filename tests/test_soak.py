"""Memory does not grow with the size of a backup: the same job with ten times the bytes.

10 GiB against 1 GiB where VDI_EXT_SOAK is set, else a hundredth of both.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from test_kill import HERE, Peer

LONG = "VDI_EXT_SOAK" in os.environ
SIZES = (1 << 30, 10 << 30) if LONG else (32 << 20, 320 << 20)
DEVICES = 8
GROWTH = 20e6  # bytes
CEILING = 300e6


def peaks(run: str, arguments: list[str], **kwargs: object) -> dict[str, int]:
    """Run a job; the most memory that it and its server have used, in bytes, shared buffers included."""
    order = {"run": run, "args": arguments, "kwargs": kwargs, "hold": [], "measure": True}
    job = Peer(str(HERE / "job_process.py"), json.dumps(order))
    try:
        used = job.hear(900 if LONG else 60)
        assert used is not None and "own" in used, used
        assert job.hear() == {"ended": "well"}
        assert job.end() == ""
    finally:
        job.kill()
    return {run: used["own"], f"server of {run}": used["children"]}


@pytest.mark.timeout(1800)
def test_memory_is_constant(tmp_path: Path) -> None:
    found = []
    for size in SIZES:
        directory = tmp_path / str(size)
        address = f"synthetic:{size}:1"
        both = peaks("backup", [address, str(directory)], devices=DEVICES, checksum=True)
        assert sum(path.stat().st_size for path in directory.glob("*.bak")) > size
        found.append(both | peaks("restore", [str(directory), address], checksum=True))
        for path in directory.iterdir():
            path.unlink()
    small, large = found
    text = ", ".join(f"{who}: {small[who] / 1e6:.1f} -> {large[who] / 1e6:.1f} MB" for who in small)
    print(text)
    for who in small:
        assert large[who] - small[who] <= GROWTH, text
        assert large[who] < CEILING, text
