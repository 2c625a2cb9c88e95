"""The examples of the README are programs that run."""

from __future__ import annotations

import os
import re
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S)


def block(word: str) -> str:
    (found,) = [text for text in BLOCKS if word in text]
    return found


@contextmanager
def started(program: str, folder: Path, python: str) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [python, "-c", program], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()  # nothing where it has ended


def errors_of(process: subprocess.Popen[str]) -> str:
    """What a program that failed said; nothing of one that did not."""
    errors = process.communicate(timeout=60)[1]
    return "" if process.returncode == 0 else errors or f"exit {process.returncode}"


def test_the_two_halves_meet(tmp_path: Path, python: str) -> None:
    with started(block("VirtualDeviceSet.create("), tmp_path, python) as client:
        deadline = time.monotonic() + 30
        while True:  # nothing announces the moment at which the set is there
            with started(block("ServerDeviceSet.open("), tmp_path, python) as server:
                errors = errors_of(server)
            if "VDInvalidError" not in errors or time.monotonic() > deadline:
                break
        assert not errors
        assert not errors_of(client)
    assert (tmp_path / "nightly.bak").read_bytes() == b"page" * 16384


def test_backup_and_restore(tmp_path: Path, python: str) -> None:
    with sqlite3.connect(tmp_path / "app.db") as connection:
        connection.execute("CREATE TABLE t AS SELECT 'kept' AS word")
    connection.close()
    (tmp_path / "backups").mkdir()
    with started(block("vdi_ext.backup("), tmp_path, python) as program:
        assert not errors_of(program)
    with sqlite3.connect(tmp_path / "copy.db") as connection:
        assert connection.execute("SELECT word FROM t").fetchall() == [("kept",)]
    connection.close()


def test_examples_are_short() -> None:
    assert all(len(text.splitlines()) <= 17 for text in BLOCKS)


def test_exit_codes_are_those_of_the_command_line() -> None:
    from vdi_ext import cli

    rows = re.findall(r"^\| ([\d, ]+) \|", README, re.M)
    listed = {int(code) for row in rows for code in row.split(",")}
    assert listed == {value for name, value in vars(cli).items() if name.startswith("EXIT_") and name != "EXIT_CODES"}


def test_the_server_and_its_second_terminal(tmp_path: Path, python: str) -> None:
    """What the console blocks say, line by line; they were set up already, and the port is a free one."""
    first, second = (
        [line[2:] for line in text.splitlines() if line.startswith("$ ")]
        for text in re.findall(r"^```console\n(.*?)^```$", README, re.M | re.S)
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "PATH": f"{Path(python).parent}:{os.environ['PATH']}"}

    def shell(lines: list[str], **options) -> subprocess.Popen[str]:
        script = "set -e\n" + "\n".join(line for line in lines if "activate" not in line).replace("14330", port)
        return subprocess.Popen(
            ["bash", "-c", script], cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, **options,
        )  # fmt: skip

    with shell([*first[:-1], "exec " + first[-1]]) as server:
        try:
            assert server.stdout is not None
            assert any("listening" in line for line in server.stdout)
            # Without a terminal tsql reads the password from standard input too.
            with shell(second, stdin=subprocess.PIPE, start_new_session=True) as client:
                password = (tmp_path / "sa.password").read_text()
                query = "select database_name, type from msdb.dbo.backupset\ngo\n"
                said, _ = client.communicate(password + query, timeout=100)
            assert client.returncode == 0, said
            assert re.search(r"shop\tD\n.*shop\tI\n", said, re.S)
            server.send_signal(signal.SIGTERM)
            server.communicate(timeout=30)
            assert server.returncode == 143
        finally:
            server.kill()
