"""Snapshots as a user's program takes them: several live databases, real commands, servers in their own processes."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from test_snapshot_engine import can_write, check_copy, make_database

from vdi_ext import backup, backup_snapshot, restore, restore_snapshot
from vdi_ext.jobs import (
    ArgumentError,
    CommandFailedError,
    FreezeTimeoutError,
    ProgressEvent,
    SQLError,
    StatementLostError,
    StorageError,
    VerificationError,
    external,
    recover,
)
from vdi_ext.storage import StoredSet

MODES = pytest.mark.parametrize("own_process", [True, False], ids=["own process", "in process"])

COPY = """
mkdir "$COPIES" && printf "%s\\n" "$VDI_EXT_FILES" | while read -r file; do cp "$file" "$COPIES/" || exit 1; done
"""
PLACE = """
printf "%s\\n" "$VDI_EXT_FILES" | while read -r file; do cp "$COPIES/$(basename "$file")" "$file" || exit 1; done
"""


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands of these tests put files."""
    monkeypatch.setenv("COPIES", str(tmp_path / "copies"))
    return tmp_path / "copies"


@pytest.fixture
def live(tmp_path: Path) -> list[Path]:
    return [make_database(tmp_path / "one.db", "wal"), make_database(tmp_path / "two.db"),
            make_database(tmp_path / "three.db", "persist")]  # fmt: skip


def addresses(paths: list[Path]) -> list[str]:
    return [f"sqlite:{path}" for path in paths]


def nothing_frozen(tmp_path: Path, live: list[Path]) -> None:
    assert all(map(can_write, live))
    assert not (tmp_path / "set").exists() and not (tmp_path / "set.partial").exists()


@MODES
def test_databases_are_frozen_together_while_others_write(
    tmp_path: Path, live: list[Path], copies: Path, own_process: bool
) -> None:
    """One writer writes the same number to all, one after the other: frozen together, they differ by one at most."""
    chain = """
import sqlite3, sys, time
dbs = [sqlite3.connect(path, isolation_level=None, timeout=60) for path in sys.argv[1:]]
for number in range(1 << 40):
    for db in dbs:
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO commits VALUES ('chain', ?, '')", (number,))
        db.execute("UPDATE counters SET last = ? WHERE writer = 'chain'", (number,))
        db.execute("COMMIT")
    print(number, flush=True)
    time.sleep(0.002)
"""
    for path in live:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("INSERT INTO counters VALUES ('chain', -1)")
    with subprocess.Popen([sys.executable, "-I", "-c", chain, *map(str, live)], stdout=subprocess.PIPE) as process:
        try:
            for _ in range(10):
                told = int(process.stdout.readline())
            done = backup_snapshot(addresses(live), tmp_path / "set", freeze_command=COPY, own_process=own_process)
            while int(process.stdout.readline()) < told + 10:
                pass
        finally:
            process.kill()
    copied = [check_copy(copies / path.name)["chain"] for path in live]
    # Frozen one after the other, an earlier database may hold one number less than a later one, or one more.
    assert min(copied) >= told and max(copied) - min(copied) <= 1
    assert done.devices == 3 and sum("3014" in text for text in done.messages) == 3
    targets = [tmp_path / "new" / path.name for path in live]
    (tmp_path / "new").mkdir()
    restore_snapshot(done.path, addresses(targets), mount_command=PLACE, own_process=own_process)
    assert [check_copy(path)["chain"] for path in targets] == copied


def test_the_manifest_says_what_was_frozen(tmp_path: Path, live: list[Path], copies: Path) -> None:
    done = backup_snapshot(addresses(live), tmp_path / "set", freeze_command=COPY, databases=["a", "b]c", "d\te"])
    manifest = StoredSet(done.path).manifest
    assert manifest.snapshot == [
        {"database": name, "source": f"sqlite:{path}", "files": [str(path)]}
        for name, path in zip(["a", "b]c", "d\te"], live, strict=True)
    ]
    assert manifest.statement.splitlines()[1].startswith("BACKUP DATABASE [b]]c] TO VIRTUAL_DEVICE = N'")
    assert all(" WITH SNAPSHOT" in line for line in manifest.statement.splitlines())
    assert manifest.database == "a, b]c, d\te"
    assert done.size < 300_000
    assert recover(str(tmp_path)) == []


def test_the_environment_tells_names_and_files(tmp_path: Path, live: list[Path], copies: Path) -> None:
    out = tmp_path / "environment"
    tell = [sys.executable, "-I", "-c", f"import json, os; json.dump(dict(os.environ), open({str(out)!r}, 'w'))"]
    sources = [*addresses(live[:2]), "synthetic:1MiB"]
    backup_snapshot(sources, tmp_path / "set", freeze_command=tell)
    every = json.loads(out.read_text())
    told = {key: every[key] for key in every.keys() - os.environ.keys() if key.startswith("VDI_EXT_")}
    assert told == {
        "VDI_EXT_ACTION": "freeze", "VDI_EXT_SET": str(tmp_path / "set.partial"), "VDI_EXT_NAME": "set",
        "VDI_EXT_DATABASES": "3", "VDI_EXT_FILES": f"{live[0]}\n{live[1]}",
        "VDI_EXT_DATABASE_1": "one", "VDI_EXT_ADDRESS_1": f"sqlite:{live[0]}", "VDI_EXT_FILES_1": str(live[0]),
        "VDI_EXT_DATABASE_2": "two", "VDI_EXT_ADDRESS_2": f"sqlite:{live[1]}", "VDI_EXT_FILES_2": str(live[1]),
        "VDI_EXT_DATABASE_3": "synthetic", "VDI_EXT_ADDRESS_3": "synthetic:1MiB", "VDI_EXT_FILES_3": "",
    }  # fmt: skip
    copies.mkdir()
    for path in live:
        shutil.copy(path, copies)
    (tmp_path / "new").mkdir()
    new = [tmp_path / "new" / path.name for path in live]
    restore_snapshot(
        tmp_path / "set", [*addresses(new[:2]), "synthetic:1MiB"],
        mount_command=["sh", "-c", PLACE + shlex.join(tell)],
    )  # fmt: skip
    told = json.loads(out.read_text())
    assert told["VDI_EXT_ACTION"] == "mount" and told["VDI_EXT_SET"] == str(tmp_path / "set")
    assert told["VDI_EXT_FILES_2"] == str(new[1]) and told["VDI_EXT_ORIGINALS_2"] == str(live[1])


@MODES
def test_a_failing_command_freezes_nothing_and_shows_its_output(
    tmp_path: Path, live: list[Path], own_process: bool
) -> None:
    with pytest.raises(CommandFailedError) as caught:
        backup_snapshot(
            addresses(live), tmp_path / "set", freeze_command="echo no volume; echo such >&2; exit 7",
            own_process=own_process,
        )  # fmt: skip
    assert caught.value.returncode == 7 and caught.value.output == "no volume\nsuch"
    assert "the freeze command failed with exit status 7" in str(caught.value)
    nothing_frozen(tmp_path, live)


def test_a_command_that_cannot_be_started(tmp_path: Path, live: list[Path]) -> None:
    with pytest.raises(CommandFailedError, match="cannot be started"):
        backup_snapshot(addresses(live), tmp_path / "set", freeze_command=["/does/not/exist"])
    nothing_frozen(tmp_path, live)


def test_a_command_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path, live: list[Path]) -> None:
    stubborn = f"trap '' TERM; sleep 1000 & echo $! >{tmp_path}/pid; echo begun; wait; sleep 1000"
    with pytest.raises(CommandFailedError, match="not done within 1.5 seconds: begun") as caught:
        backup_snapshot(addresses(live), tmp_path / "set", freeze_command=stubborn, freeze_timeout=1.5)
    assert caught.value.returncode is None
    nothing_frozen(tmp_path, live)
    stat = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] in "ZX"


@MODES
def test_one_database_that_cannot_be_frozen_stops_all(tmp_path: Path, live: list[Path], own_process: bool) -> None:
    source = tmp_path / "backup.bak"
    source.write_bytes(bytes(4096))
    with pytest.raises(SQLError) as caught:
        backup_snapshot(
            [*addresses(live), f"replay:{source}"], tmp_path / "set", freeze_command=f"touch {tmp_path}/ran",
            own_process=own_process,
        )  # fmt: skip
    assert caught.value.number == 3032 and caught.value.__notes__ == ["database backup"]
    assert not (tmp_path / "ran").exists()
    nothing_frozen(tmp_path, live)


def test_one_database_that_is_written_to_for_too_long_stops_all(tmp_path: Path, live: list[Path]) -> None:
    """The others are frozen by then; the time limit counts from the first freeze."""
    with closing(sqlite3.connect(live[1], isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(FreezeTimeoutError, match="not frozen within 1 seconds: two"):
            backup_snapshot(
                addresses(live), tmp_path / "set", freeze_command=f"touch {tmp_path}/ran", freeze_timeout=1.0
            )
        assert can_write(live[0]) and can_write(live[2])
    assert not (tmp_path / "ran").exists()
    nothing_frozen(tmp_path, live)


def test_the_death_of_one_server_while_frozen_stops_all(tmp_path: Path, live: list[Path]) -> None:
    """The command kills one of the three servers, and would go on for ever."""
    strike = tmp_path / "strike.py"
    strike.write_text(f"""
import os, pathlib, signal, time
parent = {os.getpid()}
for path in pathlib.Path(f"/proc/{{parent}}/task").glob("*/children"):
    for pid in path.read_text().split():
        if b"vdi_ext.jobs.standin" in pathlib.Path(f"/proc/{{pid}}/cmdline").read_bytes():
            os.kill(int(pid), signal.SIGKILL)
            while True:
                time.sleep(1)
""")
    with pytest.raises(StatementLostError, match="signal 9") as caught:
        backup_snapshot(addresses(live), tmp_path / "set", freeze_command=[sys.executable, str(strike)])
    assert caught.value.__notes__[0] in ("database one", "database two", "database three")
    nothing_frozen(tmp_path, live)


@MODES
@pytest.mark.parametrize("phase", ["creating", "configuring", "opening", "frozen"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_progress_raises_ends_the_snapshot(
    tmp_path: Path, live: list[Path], phase: str, error: type[BaseException], own_process: bool
) -> None:
    def stop(event: ProgressEvent) -> None:
        if event.phase == phase:
            raise error

    with pytest.raises(error):
        backup_snapshot(
            addresses(live), tmp_path / "set", freeze_command=f"touch {tmp_path}/ran", progress=stop,
            own_process=own_process,
        )  # fmt: skip
    assert not (tmp_path / "ran").exists()
    nothing_frozen(tmp_path, live)


@pytest.mark.parametrize("phase", ["closing", "publishing"])
def test_what_progress_raises_after_the_snapshot_cannot_undo_it(tmp_path: Path, live: list[Path], phase: str) -> None:
    def stop(event: ProgressEvent) -> None:
        if event.phase == phase:
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError) as caught:
        backup_snapshot(addresses(live), tmp_path / "set", freeze_command="true", progress=stop)
    assert any("the statements had succeeded" in note for note in caught.value.__notes__)
    assert StoredSet(str(tmp_path / "set")).state == "confirmed"


def run_cli(*words: object, **more: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vdi_ext", *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_while_the_command_runs(tmp_path: Path, live: list[Path], number: signal.Signals) -> None:
    os.mkfifo(tmp_path / "begun")
    command = f"echo $$ >{tmp_path}/begun; exec sleep 1000"
    process = run_cli(
        "backup", "--snapshot", "--freeze-command", command, *addresses(live), tmp_path / "set", "--quiet"
    )
    pid = int((tmp_path / "begun").read_text())  # all are frozen
    try:
        assert not any(map(can_write, live))
        process.send_signal(number)
        _, said = process.communicate()
        for path in live:  # also after a kill, when nobody is left to say so
            with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as db:
                db.execute("BEGIN IMMEDIATE")
        assert not (tmp_path / "set").exists()
        if number == signal.SIGKILL:
            [left] = recover(str(tmp_path))
            assert left.state == "writing"
        else:
            assert process.returncode == 128 + number and "ended by" in said
            assert not (tmp_path / "set.partial").exists()
            assert not Path(f"/proc/{pid}").exists()
    finally:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)


def test_a_client_that_dies_behind_the_snapshot_leaves_a_set_that_restores(
    tmp_path: Path, live: list[Path], copies: Path
) -> None:
    """Every server has been told of success, and nobody has given the set its name."""
    script = """
import os, signal, sys, vdi_ext
def die(event):
    if event.phase == "publishing":
        os.kill(os.getpid(), signal.SIGKILL)
vdi_ext.backup_snapshot(sys.argv[3:], sys.argv[1], freeze_command=sys.argv[2], progress=die)
"""
    words = [sys.executable, "-c", script, tmp_path / "set", COPY, *addresses(live)]
    assert subprocess.run(list(map(str, words))).returncode == -signal.SIGKILL
    assert all(map(can_write, live))
    [left] = recover(str(tmp_path), action="verify")
    assert left.state == "verified" and left.path == f"{tmp_path}/set.partial"
    (tmp_path / "new").mkdir()
    new = [tmp_path / "new" / path.name for path in live]
    restore_snapshot(left.path, addresses(new), mount_command=PLACE)
    assert [check_copy(path) for path in new] == [check_copy(copies / path.name) for path in live]
    [found] = recover(str(tmp_path), action="publish")
    assert found.state == "published" and StoredSet(str(tmp_path / "set")).manifest.snapshot is not None


def test_a_store_that_fails_fails_the_snapshot(
    tmp_path: Path, live: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write

    def write(fd: int, data: memoryview) -> int:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("stripe-02-of-03.bak"):
            raise OSError(28, os.strerror(28))
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(StorageError, match=r"stripe 2 .*No space left on device"):
        backup_snapshot(addresses(live), tmp_path / "set", freeze_command=f"touch {tmp_path}/ran")
    assert not (tmp_path / "ran").exists()
    nothing_frozen(tmp_path, live)


@pytest.mark.parametrize("call", range(1, 7))
def test_a_description_that_is_not_durable_fails_the_snapshot(
    tmp_path: Path, live: list[Path], call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the command (1 to 3) and after it, when the set would become a backup."""
    real, calls = os.fsync, []

    def fsync(fd: int) -> None:
        if ".bak" in os.readlink(f"/proc/self/fd/{fd}"):
            calls.append(1)
            if len(calls) == call:
                raise OSError(5, os.strerror(5))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StorageError, match="Input/output error"):
        backup_snapshot(addresses(live), tmp_path / "set", freeze_command=f"touch {tmp_path}/ran")
    assert (tmp_path / "ran").exists() == (call > 3)
    nothing_frozen(tmp_path, live)


@pytest.mark.parametrize(
    ("sources", "options", "words"),
    [
        ([], {}, "1 to 64 databases"),
        (["synthetic:1MiB"] * 65, {}, "1 to 64 databases"),
        (["synthetic:1MiB"], {"freeze_timeout": 0}, "positive"),
        (["synthetic:1MiB"], {"databases": ["a", "b"]}, "as many names"),
        (["synthetic:1MiB"], {"databases": "a"}, "as many names"),
        (["oracle:db"], {}, "no address"),
    ],
)
def test_impossible_orders(tmp_path: Path, sources: list[str], options: dict, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        backup_snapshot(sources, tmp_path / "set", freeze_command="true", **options)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_there_and_back(tmp_path: Path, live: list[Path], copies: Path) -> None:
    process = run_cli("backup", *addresses(live), tmp_path / "set", "--snapshot", "--freeze-command", COPY)
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    assert said.startswith("took a snapshot of sqlite:") and "frozen" in errors.splitlines()
    (tmp_path / "new").mkdir()
    new = [tmp_path / "new" / path.name for path in live]
    process = run_cli("restore", tmp_path / "set", *addresses(new), "--mount-command", PLACE, "--json")
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    assert json.loads(said.splitlines()[-1])["devices"] == 3
    assert [check_copy(path) for path in new] == [check_copy(path) for path in live]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["backup", "--snapshot", "synthetic:1MiB", "set"], "takes --freeze-command"),
        (["backup", "--snapshot", "--freeze-command", "true", "--devices", "2", "synthetic:1MiB", "set"],
         "--devices has no meaning for a snapshot"),
        (["backup", "synthetic:1MiB", "synthetic:2MiB", "set"], "one SOURCE is wanted"),
        (["restore", "set", "synthetic:1MiB", "synthetic:2MiB"], "one TARGET is wanted"),
        (["backup", "--freeze-command", "true", "synthetic:1MiB", "set"], "--freeze-command is for --snapshot"),
    ],
)  # fmt: skip
def test_wrong_usage_of_the_command_line(tmp_path: Path, words: list[str], said: str) -> None:
    process = run_cli(*words, cwd=tmp_path)
    _, errors = process.communicate()
    assert process.returncode == 2 and said in errors
    assert list(tmp_path.iterdir()) == []


def test_a_failing_command_ends_the_program_with_its_output(tmp_path: Path, live: list[Path]) -> None:
    process = run_cli(
        "backup", "--snapshot", "--freeze-command", "echo no such volume; exit 9", *addresses(live), tmp_path / "set",
    )  # fmt: skip
    _, errors = process.communicate()
    assert process.returncode == 5
    assert "vdi-ext: the freeze command failed with exit status 9: no such volume" in errors
    nothing_frozen(tmp_path, live)


# ---- restore


@pytest.fixture
def taken(tmp_path: Path, live: list[Path], copies: Path) -> Path:
    return Path(backup_snapshot(addresses(live), tmp_path / "set", freeze_command=COPY).path)


def test_a_set_is_restored_as_what_it_is(tmp_path: Path, live: list[Path], taken: Path) -> None:
    with pytest.raises(ArgumentError, match="is a snapshot"):
        restore(taken, "sqlite:new.db")
    with pytest.raises(ArgumentError, match=r"of 3 databases \(one, two, three\), not of 1"):
        restore_snapshot(taken, "sqlite:new.db", mount_command="true")
    backup(f"sqlite:{live[0]}", tmp_path / "plain")
    with pytest.raises(ArgumentError, match="is no snapshot"):
        restore_snapshot(tmp_path / "plain", "sqlite:new.db", mount_command="true")


def test_existing_databases_are_replaced_on_demand(tmp_path: Path, live: list[Path], taken: Path) -> None:
    for path in live:
        with closing(sqlite3.connect(path)) as db:
            db.execute("INSERT INTO counters VALUES ('lost', -1)")
            db.commit()
    with pytest.raises(SQLError, match="3159"):
        restore_snapshot(taken, addresses(live), mount_command=PLACE)
    assert all("lost" in check_copy(path) for path in live)
    restore_snapshot(taken, addresses(live), mount_command=PLACE, replace=True)
    assert all("lost" not in check_copy(path) for path in live)


def test_files_of_another_database_are_noticed(tmp_path: Path, taken: Path, copies: Path) -> None:
    """The second and the third are of one size."""
    (copies / "two.db").rename(copies / "x"), (copies / "three.db").rename(copies / "two.db")
    (copies / "x").rename(copies / "three.db")
    new = [tmp_path / "new" / name for name in ("one.db", "two.db", "three.db")]
    (tmp_path / "new").mkdir()
    with pytest.raises(SQLError, match="3129") as caught:
        restore_snapshot(taken, addresses(new), mount_command=PLACE)
    assert any(note.startswith("database t") for note in caught.value.__notes__)
    check_copy(new[0])


@MODES
def test_a_mount_command_that_fails_fails_all(
    tmp_path: Path, live: list[Path], taken: Path, own_process: bool
) -> None:
    before = [check_copy(path) for path in live]
    with pytest.raises(CommandFailedError, match="the mount command failed with exit status 1: nowhere"):
        restore_snapshot(
            taken, addresses(live), mount_command="echo nowhere; false", replace=True, own_process=own_process
        )
    with pytest.raises(CommandFailedError, match="was not done within 0.2 seconds"):
        restore_snapshot(
            taken, addresses(live), mount_command="sleep 1000", mount_timeout=0.2, replace=True,
            own_process=own_process,
        )  # fmt: skip
    assert [check_copy(path) for path in live] == before
    assert all(map(can_write, live))


def test_a_damaged_description_is_named_before_anything_starts(tmp_path: Path, taken: Path) -> None:
    stripe = taken / "stripe-02-of-03.bak"
    data = bytearray(stripe.read_bytes())
    data[-1] ^= 1
    stripe.write_bytes(data)
    with pytest.raises(VerificationError, match="stripe 2 of 3"):
        restore_snapshot(taken, [f"sqlite:{tmp_path}/n{n}" for n in range(3)], mount_command=f"touch {tmp_path}/ran")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("change", ["short", "extra", "type", "newline"])
def test_a_manifest_that_describes_a_snapshot_wrongly_is_refused(taken: Path, change: str) -> None:
    path = taken / "manifest.json"
    document = json.loads(path.read_text())
    entries = document["snapshot"]
    if change == "short":
        entries.pop()
    elif change == "extra":
        entries[0]["more"] = 1
    elif change == "type":
        entries[1]["files"] = "x"
    else:
        entries[2]["files"] = ["/a\n/etc/passwd"]
    path.write_text(json.dumps(document))
    with pytest.raises(VerificationError, match="the snapshot is described wrongly"):
        StoredSet(str(taken))


def test_manifests_from_before_snapshots_are_read(tmp_path: Path, live: list[Path]) -> None:
    done = backup(f"sqlite:{live[0]}", tmp_path / "plain")
    path = Path(done.path) / "manifest.json"
    document = json.loads(path.read_text())
    assert document.pop("snapshot") is None
    path.write_text(json.dumps(document))
    assert StoredSet(done.path).manifest.snapshot is None


def test_a_signal_that_comes_as_the_command_starts_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []

    class Interrupted(subprocess.Popen):
        """What has started the command, and has not yet been told to anybody, when the signal comes."""

        def __init__(self, *arguments, **options) -> None:
            super().__init__(*arguments, **options)
            begun.append(self)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(external.subprocess, "Popen", Interrupted)
    told = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored here
    try:
        with pytest.raises(KeyboardInterrupt):
            external.run_command(
                "exec sleep 1000", {}, title="command", deadline=external.Deadline(None), check=lambda: None,
                failed=told.append,
            )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)
    assert [process.returncode for process in begun] == [-signal.SIGTERM]
    assert len(told) == 1
