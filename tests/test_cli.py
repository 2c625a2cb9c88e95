"""The command line: exit codes, one-line errors, progress for people and for programs, signals."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from test_kill import BOUND, HERE, Peer, gone, kill
from test_storage import flip, litter

from vdi_ext import cli, jobs
from vdi_ext.errors import error_from_hresult
from vdi_ext.storage import StoredSet


def run(*arguments: object, timeout: float = 60, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "vdi_ext", *map(str, arguments)], capture_output=True, text=True,
                          timeout=timeout, **options)


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Address of two files that pass as a stripe set."""
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(os.urandom(512 * 700))
    return f"replay:{tmp_path / 'one'},{tmp_path / 'two'}"


def test_backup_and_restore(tmp_path: Path, source: str) -> None:
    done = run("backup", source, tmp_path / "set", "--stats", 10)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"backed up to {tmp_path / 'set'}: 700.0 KiB in ")
    done = run("restore", tmp_path / "set", f"replay:{tmp_path / 'a'},{tmp_path / 'b'}", "--verify-first")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a").read_bytes() == (tmp_path / "one").read_bytes()
    assert (tmp_path / "b").read_bytes() == (tmp_path / "two").read_bytes()


def test_every_option_reaches_the_statement(tmp_path: Path) -> None:
    done = run("backup", "synthetic:1M", tmp_path / "set", "--devices", 2, "--database", "my db",
               "--provider", "embedded", "--block-size", "1KiB", "--buffer-count", 6,
               "--max-transfer-size", 131072, "--checksum", "--copy-only",
               "--format", "--stats", 25, "--no-complete", "--in-process", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    manifest = StoredSet(str(tmp_path / "set")).manifest
    assert manifest.statement.startswith("BACKUP DATABASE [my db] TO VIRTUAL_DEVICE = N'")
    assert manifest.statement.endswith(" WITH BLOCKSIZE = 1024, BUFFERCOUNT = 6, MAXTRANSFERSIZE = 131072, CHECKSUM, "
                                       "COPY_ONLY, FORMAT, STATS = 25")
    assert manifest.configuration["max_transfer_size"] == 131072
    assert manifest.configuration["features"] & 0x42000 == 0


def test_json_lines(tmp_path: Path, source: str) -> None:
    done = run("backup", source, tmp_path / "set", "--json", "--stats", 50)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["event"] for line in lines} == {"configured", "progress", "result", "state"}
    phases = [line["phase"] for line in lines if line["event"] == "progress"]
    assert phases[0] == "creating" and phases[-1] == "done" and "message" in phases
    assert any("3014" in line["message"] for line in lines if line.get("phase") == "message")
    assert lines[-1]["event"] == "result"
    assert (lines[-1]["size"], lines[-1]["devices"], lines[-1]["path"]) == (512 * 1400, 2, str(tmp_path / "set"))


def test_an_error_in_json(tmp_path: Path) -> None:
    done = run("restore", tmp_path / "nothing", "synthetic:1M", "--json")
    assert done.returncode == 5
    assert json.loads(done.stdout)["kind"] == "storage"
    assert json.loads(done.stdout)["exit_code"] == 5
    assert len(done.stderr.splitlines()) == 1


def test_plain_lines_where_nobody_watches(tmp_path: Path, source: str) -> None:
    done = run("backup", source, tmp_path / "set")
    lines = done.stderr.splitlines()
    assert lines[:2] == ["creating", "configuring"] and lines[-1] == "done"
    assert not any("\r" in line for line in lines)


@pytest.mark.parametrize("bare", [False, True], ids=["with tqdm", "without"])
def test_a_bar_on_a_terminal(tmp_path: Path, bare: bool) -> None:
    """A terminal shows a bar with rate and remaining time; without the library for it, plain lines."""
    primary, secondary = pty.openpty()
    termios.tcsetwinsize(secondary, (24, 100))
    code = "import sys; from vdi_ext.cli import main; sys.exit(main(sys.argv[1:]))"
    if bare:
        code = "import sys; sys.modules['tqdm'] = None; " + code
    process = subprocess.Popen(
        [sys.executable, "-c", code, "backup", "synthetic:64M", str(tmp_path / "set"), "--devices", "2"],
        stdout=subprocess.DEVNULL, stderr=secondary)
    os.close(secondary)
    seen = b""
    try:
        while select.select([primary], [], [], BOUND)[0]:
            try:
                piece = os.read(primary, 65536)
            except OSError:  # the other end is closed
                break
            seen += piece
    finally:
        os.close(primary)
    assert process.wait(BOUND) == 0
    assert (b"%|" in seen) is not bare, seen
    assert b"B/s" in seen


LIBC = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libc" in line)

USAGE = [
    [], ["backup"], ["backup", "x"], ["steal", "x", "y"], ["backup", "sqlite:x", "y", "--devices", "many"],
    ["backup", "sqlite:x", "y", "--block-size", "big"], ["backup", "sqlite:x", "y", "--json", "--quiet"],
    ["recover", "x", "--publish", "--remove"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", USAGE, ids=" ".join)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: vdi-ext" in capsys.readouterr().err


def test_help_names_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["backup", "--help"])
    text = capsys.readouterr().out
    codes = {value for name, value in vars(cli).items() if name.startswith("EXIT_") and isinstance(value, int)}
    assert codes == {0, 1, 2, 3, 4, 5, 6, 7, 130, 143}
    assert all(f"\n  {code} " in text for code in codes)


def test_usage_that_only_the_job_sees(tmp_path: Path, source: str) -> None:
    for of, *options in (["sqlite:"], ["synthetic:1M", "--devices", 65], [source, "--devices", 3], ["sqlite:/no/file"]):
        done = run("backup", of, tmp_path / "x", *options)
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("vdi-ext: ")


def test_a_statement_that_fails(tmp_path: Path, source: str) -> None:
    done = run("backup", source, tmp_path / "set", "--block-size", 777, "--quiet")
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1 and "Msg " in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]


def test_an_interface_that_fails(tmp_path: Path, source: str) -> None:
    done = run("backup", source, tmp_path / "set", "--provider", LIBC, "--quiet")
    assert done.returncode == 4, done.stderr
    assert len(done.stderr.splitlines()) == 1
    done = run("backup", source, tmp_path / "set", "--provider", "/bin/true", "--quiet")
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1 and "can not be loaded" in done.stderr


def test_storage_that_fails(tmp_path: Path, source: str) -> None:
    (tmp_path / "set").mkdir()
    done = run("backup", source, tmp_path / "set", "--quiet")
    assert done.returncode == 5
    assert done.stderr == f"vdi-ext: {tmp_path / 'set'} exists: choose another name, backups are never overwritten\n"


@pytest.mark.parametrize("flags", [[], ["--verify-first"], ["--in-process"]], ids=" ".join)
def test_verification_that_fails(tmp_path: Path, source: str, flags: list[str]) -> None:
    assert run("backup", source, tmp_path / "set", "--quiet").returncode == 0
    flip(tmp_path / "set" / "stripe-02-of-02.bak", 100)
    done = run("restore", tmp_path / "set", f"replay:{tmp_path / 'a'},{tmp_path / 'b'}", "--quiet", *flags)
    assert done.returncode == 6
    assert len(done.stderr.splitlines()) == 1 and "stripe 2 of 2" in done.stderr and "damaged" in done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (jobs.ArgumentError("x"), 2),
        (jobs.SQLError(["x"]), 3),
        (jobs.StatementLostError(["x"]), 3),
        (error_from_hresult(0x80770004), 4),
        (error_from_hresult(0x80770005), 4),  # also a PermissionError
        (jobs.StorageError("x"), 5),
        (PermissionError(13, "x"), 5),
        (jobs.VerificationError("x"), 6),
        (KeyboardInterrupt(), 130),
        (cli.Terminated(), 143),
    ],
)
def test_each_failure_has_its_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    error.add_note("kept for you")
    monkeypatch.setattr(jobs, "recover", fail)
    assert cli.main(["recover", "x"]) == code
    said = capsys.readouterr().err
    assert said.startswith("vdi-ext: ") and said.endswith("; kept for you\n") and said.count("\n") == 1


def test_an_error_of_the_program_is_not_dressed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "recover", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["recover", "x"])


def test_recover(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    litter(tmp_path)
    assert cli.main(["recover", str(tmp_path)]) == 6  # one of them has no manifest to believe
    listed = capsys.readouterr().out
    assert f"prepared         30 B  {tmp_path / 'whole.partial'}" in listed
    assert cli.main(["recover", str(tmp_path), "--publish", "--json"]) == 6
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    states = {Path(line["path"]).name: line["state"] for line in lines if line["event"] == "set"}
    assert states == {"begun.partial": "writing", "half.partial": "writing", "hurt.partial": "prepared",
                      "odd.partial": "damaged", "whole": "published"}
    for name in ("hurt", "odd"):
        assert cli.main(["recover", str(tmp_path / name), "--remove"]) == 0
    assert cli.main(["recover", str(tmp_path), "--remove"]) == 0
    assert cli.main(["recover", str(tmp_path), "--verify"]) == 0
    assert capsys.readouterr().out.endswith("nothing unfinished\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fine", "whole"]


def test_a_reader_that_goes_away(tmp_path: Path, source: str) -> None:
    """Nobody reads our progress any more: the job ends, without a traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        process = subprocess.run([sys.executable, "-m", "vdi_ext", "backup", source, str(tmp_path / "set"), "--json"],
                                 stdout=writing, stderr=subprocess.PIPE, timeout=60, check=False)
    finally:
        os.close(writing)
    assert (process.returncode, process.stderr) == (5, b"")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("phase", ["creating", "configuring", "opening", "transferring", "flushing", "prepared",
                                   "closing", "publishing"])
def test_a_signal_ends_a_backup_cleanly(tmp_path: Path, phase: str, number: int, code: int) -> None:
    size = "256M" if phase == "transferring" else "4M"  # held at the first report of progress: it must not be the last
    arguments = ["backup", f"synthetic:{size}", str(tmp_path / "set"), "--devices", "2"]
    job = Peer(str(HERE / "job_process.py"), json.dumps({"run": "cli", "args": arguments, "hold": [phase]}))
    try:
        held = job.hear()
        assert held is not None and held["held"] == phase
        servers = [os.pidfd_open(pid) for pid in held["children"]]
        assert len(servers) == (phase not in ("creating", "publishing"))
        job.process.send_signal(number)
        job.send("go on")
        while job.hear() is not None:
            pass
        errors = job.end()
        assert job.process.returncode == code, errors
        assert errors.count("\n") == 1 and "ended by" in errors
        for server in servers:
            assert gone(server)
            os.close(server)
    finally:
        job.kill()
    left = [path.name for path in tmp_path.iterdir()]
    if phase in ("closing", "publishing"):  # the server has reported success by then
        assert left == ["set"]
    elif phase == "prepared":  # it may have, or the abort came first
        assert left in ([], ["set"])
    else:
        assert left == []
    if left:
        assert "the statement had succeeded: the set is published" in errors
        StoredSet(str(tmp_path / "set")).verify()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("phase", ["verifying", "creating", "configuring", "opening", "transferring"])
def test_a_signal_ends_a_restore_cleanly(tmp_path: Path, phase: str, number: int, code: int, source: str) -> None:
    target = f"replay:{tmp_path / 'a'},{tmp_path / 'b'}"
    if phase == "transferring":  # held at the first report of progress: it must not be the last
        source = target = "synthetic:256M"
    assert run("backup", source, tmp_path / "set", "--quiet", "--devices", "2").returncode == 0
    arguments = ["restore", str(tmp_path / "set"), target, "--verify-first", "--max-transfer-size", "64KiB"]
    job = Peer(str(HERE / "job_process.py"), json.dumps({"run": "cli", "args": arguments, "hold": [phase]}))
    try:
        assert (job.hear() or {}).get("held") == phase
        job.process.send_signal(number)
        job.send("go on")
        errors = job.end()
    finally:
        job.kill()
    assert (job.process.returncode, errors.count("\n")) == (code, 1), errors
    StoredSet(str(tmp_path / "set")).verify()


def test_a_server_that_dies(tmp_path: Path) -> None:
    arguments = ["backup", "synthetic:256M", str(tmp_path / "set")]
    job = Peer(str(HERE / "job_process.py"), json.dumps({"run": "cli", "args": arguments, "hold": ["transferring"]}))
    try:
        held = job.hear()
        assert held is not None and held.get("held") == "transferring"
        server = held["children"][0]
        kill(server)
        job.send("go on")
        errors = job.end()
    finally:
        job.kill()
    assert job.process.returncode == 3
    words = f"the server's process {server} was ended by signal 9 before it reported the statement's outcome"
    assert errors == f"vdi-ext: {words}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_second_signal_does_not_disturb_the_clean_up(tmp_path: Path) -> None:
    arguments = ["backup", "synthetic:256M", str(tmp_path / "set")]
    job = Peer(str(HERE / "job_process.py"), json.dumps({"run": "cli", "args": arguments, "hold": ["transferring"]}))
    try:
        assert (job.hear() or {}).get("held") == "transferring"
        for _ in range(5):
            job.process.send_signal(signal.SIGINT)
        job.send("go on")
        errors = job.end()
    finally:
        job.kill()
    assert (job.process.returncode, errors) == (130, "vdi-ext: ended by Ctrl-C\n")
    assert list(tmp_path.iterdir()) == []


FULL = """
import os, sys
from vdi_ext import jobs
folder, limit = sys.argv[1:]
def fill(event):
    if event.phase == "opening" and event.device == 1:
        exec(limit)
try:
    jobs.backup("synthetic:4M", folder + "/set", devices=2, progress=fill)
except jobs.StorageError as error:
    print(error)
    print(sorted(os.listdir(folder)))
"""
LIMITS = {
    "full disk": ("open(folder + '/other', 'wb').write(bytes(6 << 20))", "No space left on device", ["other"]),
    "limited files": ("import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))",
                      "File too large", []),
}  # fmt: skip
NAMESPACE = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
SMALL_DISK = [*NAMESPACE, "sh", "-c", 'mount -t tmpfs -o size=8M none "$0" && exec "$@"']
if shutil.which("unshare") is None or subprocess.run([*SMALL_DISK, "/mnt", "true"], capture_output=True).returncode:
    del LIMITS["full disk"]  # no right to mount, as in most containers: the limit of files has to do


@pytest.mark.parametrize("kind", LIMITS)
def test_a_store_that_fills_up(tmp_path: Path, kind: str) -> None:
    """There was room for the estimate when the backup began. It fails, says why, and cleans up; so did the BACKUP."""
    limit, words, left = LIMITS[kind]
    command = [sys.executable, "-c", FULL, str(tmp_path), limit]
    if kind == "full disk":
        command = [*SMALL_DISK, str(tmp_path), *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done
    first, second = done.stdout.splitlines()
    assert words in first and "stripe " in first
    assert second == str(left)


def test_the_working_directory_is_no_place_for_modules(tmp_path: Path, source: str) -> None:
    """Whoever backs up a directory may have a json.py in it."""
    for name in ("json", "queue", "numpy", "vdi_ext"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('wrong module')")
    done = subprocess.run([sys.executable, "-P", "-m", "vdi_ext", "backup", source, "set", "--quiet"], cwd=tmp_path,
                          capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_it_ends_in_time(tmp_path: Path) -> None:
    """Ctrl-C while bytes move ends within a second, both sides."""
    process = subprocess.Popen([sys.executable, "-m", "vdi_ext", "backup", "synthetic:2G", str(tmp_path / "set"),
                                "--json", "--devices", "4"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        for line in process.stdout:
            event = json.loads(line)
            if event.get("phase") == "transferring" and event["bytes_done"]:
                break
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(BOUND) == 130
        assert time.monotonic() - begun < 5
    finally:
        process.kill()
        process.communicate()
    assert list(tmp_path.iterdir()) == []
