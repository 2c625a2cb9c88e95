"""The examples of the README are programs that run."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import time
from pathlib import Path

from conftest import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S)


def block(word: str) -> str:
    (found,) = [text for text in BLOCKS if word in text]
    return found


def start(program: str, folder: Path, python: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([python, "-c", program], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def test_the_two_halves_meet(tmp_path: Path, python: str) -> None:
    client = start(block("VirtualDeviceSet.create("), tmp_path, python)
    deadline = time.monotonic() + 30
    while True:  # the server's statement comes when the set is there, which nothing announces
        server = start(block("ServerDeviceSet.open("), tmp_path, python)
        errors = server.communicate(timeout=60)[1]
        if server.returncode == 0 or "VDInvalidError" not in errors or time.monotonic() > deadline:
            break
    assert server.returncode == 0, errors
    errors = client.communicate(timeout=60)[1]
    assert client.returncode == 0, errors
    assert (tmp_path / "nightly.bak").read_bytes() == b"page" * 16384


def test_backup_and_restore(tmp_path: Path, python: str) -> None:
    with sqlite3.connect(tmp_path / "app.db") as connection:
        connection.execute("CREATE TABLE t AS SELECT 'kept' AS word")
    connection.close()
    (tmp_path / "backups").mkdir()
    program = start(block("vdi_ext.backup("), tmp_path, python)
    errors = program.communicate(timeout=100)[1]
    assert program.returncode == 0, errors
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
