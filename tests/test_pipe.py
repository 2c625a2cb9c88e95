"""One backup to a stream, one restore from one: the bytes are the device's, and only success counts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from standin_driver import Driver

from vdi_ext.engine import Engine, database_at
from vdi_ext.jobs import SQLError, StorageError, backup, pipe_backup, pipe_restore

SIZE = 512 * 5000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(os.urandom(SIZE))
    return path


def start(*arguments: object, **options: object) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "vdi_ext", "pipe", *map(str, arguments)], stderr=subprocess.PIPE,
                            **options)


def test_through_a_pipe_from_backup_to_restore(tmp_path: Path, file: Path) -> None:
    copy = tmp_path / "copy"
    one = start("backup", f"replay:{file}", "--quiet", stdout=subprocess.PIPE)
    two = start("restore", f"replay:{copy}", "--quiet", stdin=one.stdout, stdout=subprocess.PIPE)
    one.stdout.close()
    said, errors = two.communicate(timeout=60)
    _, other = one.communicate(timeout=60)
    assert (one.returncode, two.returncode, other, errors) == (0, 0, b"", b"")
    assert said.startswith(b"restored replay:")
    assert copy.read_bytes() == file.read_bytes()


def test_a_file_holds_what_the_device_was_sent(tmp_path: Path, file: Path) -> None:
    with open(tmp_path / "out", "wb") as out:
        done = subprocess.run([sys.executable, "-m", "vdi_ext", "pipe", "backup", f"replay:{file}", "--quiet"],
                              stdout=out, stderr=subprocess.PIPE, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "out").read_bytes() == file.read_bytes()


@contextmanager
def pipe() -> Iterator[list[int]]:
    ends = list(os.pipe())
    try:
        yield ends
    finally:
        for fd in ends:
            os.close(fd)


@pytest.fixture
def server() -> Driver:
    return Driver(Engine({"sales": database_at("synthetic:4MiB:3"), "copy": database_at("synthetic:4MiB:3")}))


def test_a_reader_that_goes_fails_the_backup(server: Driver) -> None:
    """The BACKUP fails on the server as well, so nothing is truncated for a stream that nobody has."""
    with pipe() as ends:
        os.close(ends.pop(0))
        with pytest.raises(StorageError, match="Broken pipe"):
            pipe_backup(server, ends[0], database="sales")
    assert any(entry.number == 3041 for entry in server.engine.error_log)


def test_a_statement_that_fails_is_told(server: Driver, tmp_path: Path) -> None:
    with open(tmp_path / "out", "wb") as out, pytest.raises(SQLError) as caught:
        pipe_backup(server, out.fileno(), database="nobody")
    assert caught.value.number == 911
    assert (tmp_path / "out").stat().st_size == 0


def test_a_stream_restores_on_a_server(server: Driver, tmp_path: Path) -> None:
    with open(tmp_path / "out", "w+b") as out:
        pipe_backup(server, out.fileno(), database="sales", block_size=512)
        backup(server, tmp_path / "set", database="sales", block_size=512)
        assert out.seek(0, 2) == (tmp_path / "set" / "stripe-01-of-01.bak").stat().st_size
        out.seek(0)
        pipe_restore(out.fileno(), server, database="copy", replace=True, block_size=512)


def test_a_stream_that_ends_early_fails_the_restore(server: Driver, tmp_path: Path) -> None:
    with open(tmp_path / "out", "w+b") as out:
        pipe_backup(server, out.fileno(), database="sales")
        out.truncate(1 << 20)
        out.seek(0)
        with pytest.raises(SQLError):
            pipe_restore(out.fileno(), server, database="copy", replace=True)


@pytest.mark.parametrize("way", ["backup", "restore"])
def test_a_signal_ends_it_although_nobody_moves_at_the_other_end(way: str) -> None:
    with pipe() as (reading, writing):
        if way == "backup":
            job = start("backup", "synthetic:64M", stdout=writing)
        else:
            job = start("restore", "synthetic:64M", stdin=reading, stdout=subprocess.DEVNULL)
        try:
            for line in job.stderr:
                if line.strip() == b"configuring":
                    break
            if way == "backup":
                assert os.read(reading, 4096)
            job.send_signal(signal.SIGINT)
            errors = job.communicate(timeout=20)[1]
        finally:
            job.kill()
            job.communicate()
        assert job.returncode == 130, errors


def test_standard_output_is_for_the_bytes() -> None:
    done = subprocess.run([sys.executable, "-m", "vdi_ext", "pipe", "backup", "synthetic:1M", "--json"],
                          capture_output=True, timeout=60, check=False)
    assert done.returncode == 2
    done = subprocess.run([sys.executable, "-m", "vdi_ext", "pipe", "backup", "synthetic:1M", "--print-sql"],
                          capture_output=True, timeout=60, check=False)
    assert done.stdout == b"BACKUP DATABASE [synthetic] TO VIRTUAL_DEVICE = N'{device}'\n"


def test_a_slow_reader_gets_everything(server: Driver) -> None:
    got: list[int] = []
    reading, writing = os.pipe()

    def read() -> None:
        while piece := os.read(reading, 777):
            got.append(len(piece))

    thread = threading.Thread(target=read)
    thread.start()
    try:
        done = pipe_backup(server, writing, database="sales")
    finally:
        os.close(writing)
        thread.join()
        os.close(reading)
    assert sum(got) == done.size > 4 << 20
