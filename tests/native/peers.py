"""Native programs and others that run side by side, as server and clients."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from .build import Programs, environment


class Peers:
    """Starts programs and gives up on all of them together."""

    def __init__(self, programs: Programs):
        self.programs = programs
        self.running: list[subprocess.Popen[str]] = []

    def start(self, name: str, *arguments: str) -> subprocess.Popen[str]:
        # A program may leave its 8 bytes of a device to the end of the process.
        leaky = environment() | {"ASAN_OPTIONS": "detect_leaks=0"}
        return self.start_command(self.programs.command(name, *arguments), env=leaky, stderr=subprocess.STDOUT)

    def start_command(self, command: list[str], **options: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)
        self.running.append(process)
        return process

    def until(self, process: subprocess.Popen[str], line: str) -> None:
        assert process.stdout is not None
        for got in process.stdout:
            if got.strip() == line:
                return
            assert "FAIL" not in got, got
        pytest.fail(f"ended before it said {line!r}")

    def finish(self) -> list[tuple[str, str | None]]:
        """Waits for all, the last one first: a primary client waits for the end of its input before it closes.

        Gives what each still had to say, in the order of their start: standard output, and standard error where that
        is a pipe of its own.
        """
        said = []
        for process in reversed(self.running):
            out, err = process.communicate(timeout=60)
            assert process.returncode == 0, f"{process.args} ended with {process.returncode}\n{out}{err or ''}"
            said.append((out, err))
        return said[::-1]

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self.running:
            if process.poll() is None:
                process.kill()
            process.communicate()


def stream(device: int, size: int) -> bytes:
    """What cserver writes to a device."""
    folded = bytearray(size)
    for position in range(size):
        x = position * 131 + device + (position >> 12)
        folded[position] = (x ^ x >> 8) & 0xFF
    return bytes(folded)
