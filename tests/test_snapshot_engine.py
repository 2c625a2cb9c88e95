"""BACKUP and RESTORE WITH SNAPSHOT of the stand-in: the commands in their order, writers held, every end a thaw."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from engine_clients import Player, Recorder, client

from vdi_ext import Command, CommandCode, CompletionCode, Feature
from vdi_ext.engine import Engine, EngineDiedError, EngineProcess, Replay, SqlError, Sqlite, Synthetic
from vdi_ext.engine.freezing import FrozenSqlite

WRITE, READ, PREPARE, SNAPSHOT = (
    CommandCode.WRITE, CommandCode.READ, CommandCode.PREPARE_TO_FREEZE, CommandCode.SNAPSHOT,
)  # fmt: skip
MOUNT = CommandCode.MOUNT_SNAPSHOT
PREPARED = Feature.SNAPSHOT_PREPARE

# Commits nearly as fast as it can (a lock that is never free would starve other writers), and says after each commit
# what the last one was, before it begins the next.
WRITER = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
db.execute("PRAGMA synchronous=OFF")
for number in range(1 << 40):
    db.execute("BEGIN IMMEDIATE")
    db.execute("INSERT INTO commits (writer, number, filler) VALUES (?, ?, randomblob(3000))", (sys.argv[2], number))
    db.execute("UPDATE counters SET last = ? WHERE writer = ?", (number, sys.argv[2]))
    db.execute("COMMIT")
    print(number, flush=True)
    time.sleep(0.002)
"""


@pytest.fixture(params=["wal", "delete", "truncate", "persist"])
def journal(request: pytest.FixtureRequest) -> str:
    return request.param


def make_database(path: Path, journal: str = "delete", rows: int = 100) -> Path:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA journal_mode={journal}")
        db.execute("CREATE TABLE commits (writer TEXT, number INTEGER, filler BLOB)")
        db.execute("CREATE TABLE counters (writer TEXT PRIMARY KEY, last INTEGER)")
        db.execute("BEGIN")
        for number in range(rows):
            db.execute("INSERT INTO commits VALUES ('first', ?, randomblob(3000))", (number,))
        db.execute("COMMIT")
    return path


class Writers:
    """Processes that commit; `committed()` is what each has been told was committed, read up to now."""

    def __init__(self, path: Path, count: int) -> None:
        self._processes = []
        self.names = [f"w{number}" for number in range(count)]
        with closing(sqlite3.connect(path, isolation_level=None, timeout=60)) as db:
            db.executemany("INSERT INTO counters VALUES (?, -1)", [(name,) for name in self.names])
        self._last = dict.fromkeys(self.names, -1)
        self._news = threading.Condition()
        self._threads = []
        for name in self.names:
            process = subprocess.Popen(
                [sys.executable, "-I", "-c", WRITER, str(path), name], stdout=subprocess.PIPE, text=True
            )
            self._processes.append(process)
            thread = threading.Thread(target=self._listen, args=(name, process))
            thread.start()
            self._threads.append(thread)

    def _listen(self, name: str, process: subprocess.Popen[str]) -> None:
        for line in process.stdout:
            with self._news:
                self._last[name] = int(line)
                self._news.notify_all()

    def committed(self) -> dict[str, int]:
        with self._news:
            return dict(self._last)

    def wait_for_more(self, than: dict[str, int], by: int = 3) -> None:
        """Until each has committed `by` times more; bounded by the test's own limit."""
        with self._news:
            self._news.wait_for(lambda: all(self._last[name] >= than[name] + by for name in self.names))

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for thread in self._threads:
            thread.join()
        for process in self._processes:
            process.stdout.close()


@contextmanager
def writers(path: Path, count: int = 2) -> Iterator[Writers]:
    them = Writers(path, count)
    try:
        yield them
    finally:
        them.close()


def check_copy(path: Path) -> dict[str, int]:
    """The database alone, without anything beside it: intact, gapless, and up to which commit of each writer."""
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        last = dict(db.execute("SELECT writer, last FROM counters"))
        for name, number in last.items():
            query = "SELECT count(*), coalesce(max(number), -1) FROM commits WHERE writer = ?"
            assert db.execute(query, (name,)).fetchone() == (number + 1, number)
        return last


def can_write(path: Path) -> bool:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as db:
        try:
            db.execute("BEGIN IMMEDIATE")
            db.execute("ROLLBACK")
        except sqlite3.OperationalError:
            return False
        return True


def put(source: Path, target: Path) -> None:
    shutil.copy(source, target)


class Snapshotter(Recorder):
    """Keeps what is written, and does what a test says at the commands of a snapshot."""

    def __init__(self, **acts: Callable[[], int | None]) -> None:
        super().__init__(1)
        self._acts = acts
        self.before_freeze = -1

    def __call__(self, number: int, command: Command) -> None:
        name = command.code.name.lower() if isinstance(command.code, CommandCode) else ""
        if command.code in (PREPARE, SNAPSHOT, MOUNT):
            if command.code is PREPARE:
                self.before_freeze = len(self.streams[0])
            act = self._acts.get(name)
            command.complete((act() if act else None) or CompletionCode.SUCCESS)
        else:
            super().__call__(number, command)


def back_up(engine: Engine, handler: Snapshotter, features: Feature = PREPARED, options: str = "") -> list:
    with client(1, handler, features) as one:
        engine.execute(f"BACKUP DATABASE db TO {one.clauses} WITH SNAPSHOT{options}")
    assert not one.errors
    return one.codes[0]


def log_numbers(engine: Engine) -> list[int]:
    return [entry.number for entry in engine.error_log]


def test_the_commands_come_in_the_order_of_the_specification(tmp_path: Path) -> None:
    path = make_database(tmp_path / "db")
    engine = Engine({"db": Sqlite(str(path))})
    handler = Snapshotter()
    codes = back_up(engine, handler)
    assert [code for code, before in zip(codes, [None, *codes], strict=False) if code != before] == [
        WRITE, PREPARE, WRITE, SNAPSHOT]  # fmt: skip
    assert 0 < handler.before_freeze < len(handler.streams[0])
    assert log_numbers(engine) == [3197, 3198, 18264]
    assert "I/O is frozen on database db." in engine.error_log[0].text


def test_without_the_wish_nobody_is_asked_before_the_freeze(tmp_path: Path) -> None:
    engine = Engine({"db": Sqlite(str(make_database(tmp_path / "db")))})
    codes = back_up(engine, Snapshotter(), Feature.LIKE_PIPE)
    assert [code for code in codes if code != WRITE] == [SNAPSHOT]


def test_nothing_follows_the_snapshot_although_complete_was_wanted(tmp_path: Path) -> None:
    engine = Engine({"db": Sqlite(str(make_database(tmp_path / "db")))})
    assert back_up(engine, Snapshotter(), PREPARED | Feature.REQUEST_COMPLETE)[-1] is SNAPSHOT


def test_a_copy_of_the_frozen_file_has_every_commit(tmp_path: Path, journal: str) -> None:
    path = make_database(tmp_path / "db", journal)
    engine = Engine({"db": Sqlite(str(path))})
    seen: list[dict[str, int]] = []
    with writers(path) as them:
        them.wait_for_more(them.committed())

        def copy() -> None:
            assert not can_write(path)
            with closing(sqlite3.connect(path, timeout=0)) as reader:  # readers go on
                seen.append(dict(reader.execute("SELECT writer, last FROM counters")))
            shutil.copy(path, tmp_path / "copy")
            assert not can_write(path)

        for round in range(5):
            told = them.committed()
            back_up(engine, Snapshotter(snapshot=copy))
            copied = check_copy(tmp_path / "copy")
            assert copied == seen[round]
            assert all(copied[name] >= told[name] for name in them.names)
            them.wait_for_more(copied)  # the writers have gone on
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def play_back(
    engine: Engine, stream: bytes, mount: Callable[[], int | None], options: str = "", name: str = "db"
) -> list:
    player = Player([stream])

    def handler(number: int, command: Command) -> None:
        if command.code is MOUNT:
            command.complete(mount() or CompletionCode.SUCCESS)
        else:
            player(number, command)

    with client(1, handler) as one:
        engine.execute(f"RESTORE DATABASE {name} FROM {one.clauses} WITH SNAPSHOT{options}")
    assert not one.errors
    return one.codes[0]


@pytest.mark.parametrize("block_size", [512, 65536])
@pytest.mark.parametrize("checksum", ["", ", CHECKSUM"])
def test_there_and_back(tmp_path: Path, journal: str, block_size: int, checksum: str) -> None:
    path = make_database(tmp_path / "db", journal)
    options = f", BLOCKSIZE = {block_size}{checksum}"
    handler = Snapshotter(snapshot=lambda: put(path, tmp_path / "copy"))
    back_up(Engine({"db": Sqlite(str(path))}), handler, options=options)
    new = Engine({"db": Sqlite(str(tmp_path / "new"))})
    codes = play_back(new, handler.streams[0], lambda: put(tmp_path / "copy", tmp_path / "new"), options)
    assert codes[-1] is MOUNT and set(codes) == {READ, MOUNT}
    assert (tmp_path / "new").read_bytes() == (tmp_path / "copy").read_bytes()
    check_copy(tmp_path / "new")
    assert log_numbers(new) == [18267]


# ---- how a snapshot backup fails, and that the database goes on


REFUSALS = pytest.mark.parametrize("command", ["prepare_to_freeze", "snapshot"])


@pytest.fixture
def live(tmp_path: Path, journal: str) -> Path:
    return make_database(tmp_path / "db", journal)


def fails(engine: Engine, handler: Snapshotter, numbers: list[int], options: str = "") -> list:
    """Back up, in vain: the errors of the statement, and that the database can be written to. Returns the codes."""
    with client(1, handler, PREPARED) as one:
        with pytest.raises(SqlError) as caught:
            engine.execute(f"BACKUP DATABASE db TO {one.clauses} WITH SNAPSHOT{options}")
    assert [entry.number for entry in caught.value.errors] == numbers
    frozen = log_numbers(engine)
    assert frozen.count(3197) == frozen.count(3198)
    return one.codes[0]


@REFUSALS
def test_a_refusal_fails_the_statement_and_aborts_nothing(live: Path, command: str) -> None:
    engine = Engine({"db": Sqlite(str(live))})
    codes = fails(engine, Snapshotter(**{command: lambda: CompletionCode.OPERATION_ABORTED}), [3202, 3013])
    assert codes[-1].name.lower() == command
    assert (3197 in log_numbers(engine)) == (command == "snapshot")
    assert log_numbers(engine)[-1] == 3041 and 18210 in log_numbers(engine)
    assert can_write(live)


@REFUSALS
def test_an_abort_of_the_client_thaws(live: Path, command: str) -> None:
    engine = Engine({"db": Sqlite(str(live))})
    handler = Snapshotter(**{command: lambda: one.abort()})
    with client(1, handler, PREPARED) as one, pytest.raises(SqlError) as caught:
        engine.execute(f"BACKUP DATABASE db TO {one.clauses} WITH SNAPSHOT")
    assert caught.value.number == 3202
    assert can_write(live)


def test_a_cancelled_statement_thaws(live: Path) -> None:
    engine = Engine({"db": Sqlite(str(live))})
    handler = Snapshotter(snapshot=engine.cancel)
    with client(1, handler, PREPARED) as one, pytest.raises(SqlError) as caught:
        engine.execute(f"BACKUP DATABASE db TO {one.clauses} WITH SNAPSHOT")
    assert caught.value.number == 3204
    assert can_write(live)


def test_a_client_that_never_answers_is_thawed_without(live: Path) -> None:
    engine = Engine({"db": Sqlite(str(live), freeze_limit=0.3)})
    free = threading.Event()

    def sleep() -> None:
        with closing(sqlite3.connect(live, isolation_level=None, timeout=60)) as db:
            db.execute("BEGIN IMMEDIATE")  # waits until the database is thawed, while this command is outstanding
            db.execute("INSERT INTO commits VALUES ('late', 0, '')")
            db.execute("COMMIT")
        free.set()

    fails(engine, Snapshotter(snapshot=sleep), [3229, 3013])
    assert free.is_set()


def test_an_exception_of_the_server_thaws(live: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine({"db": Sqlite(str(live))})

    def extent(self: FrozenSqlite) -> None:
        assert not can_write(live)
        raise RuntimeError("mine")

    monkeypatch.setattr(FrozenSqlite, "extent", extent)
    with client(1, Snapshotter(), PREPARED) as one, pytest.raises(RuntimeError, match="mine"):
        engine.execute(f"BACKUP DATABASE db TO {one.clauses} WITH SNAPSHOT")
    assert can_write(live)
    assert log_numbers(engine)[:2] == [3197, 3198]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_server_that_dies_or_hangs_does_not_leave_it_frozen(live: Path, number: int) -> None:
    """A stopped server cannot thaw anything; the limit does."""
    with EngineProcess({"db": Sqlite(str(live), freeze_limit=1.0)}) as engine:

        def strike() -> None:
            assert not can_write(live)
            os.kill(engine.pid, number)
            with closing(sqlite3.connect(live, isolation_level=None, timeout=60)) as db:
                db.execute("BEGIN IMMEDIATE")
            os.kill(engine.pid, signal.SIGKILL)

        with client(1, Snapshotter(snapshot=strike), PREPARED) as one, pytest.raises(EngineDiedError):
            engine.execute(f"BACKUP DATABASE db TO {one.clauses} WITH SNAPSHOT")


def test_the_death_of_the_process_that_holds_fails_the_backup(live: Path) -> None:
    engine = Engine({"db": Sqlite(str(live))})

    def strike() -> None:
        children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
        pids = [int(pid) for path in children for pid in path.read_text().split()]
        [holder] = [pid for pid in pids if b"freezer.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(holder, signal.SIGKILL)

    fails(engine, Snapshotter(snapshot=strike), [3229, 3013])
    assert can_write(live)


def test_a_writer_that_does_not_end_fails_the_backup(live: Path) -> None:
    engine = Engine({"db": Sqlite(str(live), busy_timeout=0.1)})
    with closing(sqlite3.connect(live, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        codes = fails(engine, Snapshotter(), [3271, 3013])
        assert SNAPSHOT not in codes
    assert 3197 not in log_numbers(engine)
    assert can_write(live)


def test_a_reader_of_an_older_state_is_waited_for(tmp_path: Path) -> None:
    """Its snapshot keeps commits in the write-ahead log; the file alone would lack them."""
    path = make_database(tmp_path / "db", "wal")
    with closing(sqlite3.connect(path, isolation_level=None)) as reader, closing(sqlite3.connect(path)) as writer:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM commits").fetchone()
        writer.execute("INSERT INTO counters VALUES ('late', -1)")
        writer.commit()
        fails(Engine({"db": Sqlite(str(path), busy_timeout=0.1)}), Snapshotter(), [3271, 3013])
        assert can_write(path)
        reader.execute("COMMIT")
        handler = Snapshotter(snapshot=lambda: put(path, tmp_path / "copy"))
        back_up(Engine({"db": Sqlite(str(path))}), handler)
    assert "late" in check_copy(tmp_path / "copy")


def test_what_is_waited_for_can_be_aborted(live: Path) -> None:
    engine = Engine({"db": Sqlite(str(live))})
    with closing(sqlite3.connect(live, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        handler = Snapshotter(prepare_to_freeze=lambda: threading.Timer(0.2, one.abort).start())
        with client(1, handler, PREPARED) as one, pytest.raises(SqlError) as caught:
            engine.execute(f"BACKUP DATABASE db TO {one.clauses} WITH SNAPSHOT")
    assert caught.value.number == 3202
    assert can_write(live)


@pytest.mark.parametrize(
    ("database", "devices", "number"), [("replay", 1, 3032), ("synthetic", 2, 3205), ("missing", 1, 911)]
)
def test_what_can_never_be_is_refused_at_once(tmp_path: Path, database: str, devices: int, number: int) -> None:
    (tmp_path / "file").write_bytes(bytes(4096))
    databases = {
        "replay": Replay((str(tmp_path / "file"),)),
        "synthetic": Synthetic(1 << 20),
        "missing": Sqlite(str(tmp_path / "none")),
    }
    engine = Engine({"db": databases[database]})
    for verb, joint in (("BACKUP", "TO"), ("RESTORE", "FROM")) if database != "missing" else (("BACKUP", "TO"),):
        clauses = ", ".join(f"VIRTUAL_DEVICE = 'none {n}'" for n in range(devices))
        with pytest.raises(SqlError) as caught:
            engine.execute(f"{verb} DATABASE db {joint} {clauses} WITH SNAPSHOT")
        assert caught.value.number == number


@pytest.mark.parametrize("features", [Feature.LIKE_DISK, Feature.LIKE_TAPE])
def test_only_pipes_describe_a_snapshot(tmp_path: Path, features: Feature) -> None:
    """The specification expects them; on others the stand-in would write over whatever a medium holds."""
    path = make_database(tmp_path / "db")
    engine = Engine({"db": Sqlite(str(path))})
    for verb, joint in (("BACKUP", "TO"), ("RESTORE", "FROM")):
        with client(1, Snapshotter(), features) as one, pytest.raises(SqlError) as caught:
            engine.execute(f"{verb} DATABASE db {joint} {one.clauses} WITH SNAPSHOT")
        assert caught.value.number == 3261
    assert can_write(path)


# ---- restore


@pytest.fixture
def stored(tmp_path: Path) -> tuple[bytes, Path]:
    """The stream of a snapshot backup, and the copy of the file."""
    path = make_database(tmp_path / "source")
    handler = Snapshotter(snapshot=lambda: put(path, tmp_path / "copy"))
    back_up(Engine({"db": Sqlite(str(path))}), handler)
    return bytes(handler.streams[0]), tmp_path / "copy"


def restore_fails(
    engine: Engine, stream: bytes, mount: Callable[[], int | None], number: int, options: str = ""
) -> None:
    with pytest.raises(SqlError) as caught:
        play_back(engine, stream, mount, options)
    assert [entry.number for entry in caught.value.errors] == [number, 3013]


def test_the_old_database_is_locked_while_the_files_are_put_in_place(
    tmp_path: Path, stored: tuple[bytes, Path], journal: str
) -> None:
    stream, copy = stored
    old = make_database(tmp_path / "old", journal, rows=7)

    def mount() -> None:
        assert not can_write(old)
        assert not (tmp_path / "old-wal").exists()
        put(copy, old)

    play_back(Engine({"db": Sqlite(str(old))}), stream, mount, ", REPLACE")
    assert old.read_bytes() == copy.read_bytes()
    check_copy(old)
    assert can_write(old)


def test_an_existing_database_is_not_overwritten_without_replace(tmp_path: Path, stored: tuple[bytes, Path]) -> None:
    old = make_database(tmp_path / "old")
    restore_fails(Engine({"db": Sqlite(str(old))}), stored[0], lambda: pytest.fail("mounted"), 3159)
    check_copy(old)


def test_a_database_in_use_is_not_replaced(tmp_path: Path, stored: tuple[bytes, Path], journal: str) -> None:
    old = make_database(tmp_path / "old", journal)
    with closing(sqlite3.connect(old, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        restore_fails(Engine({"db": Sqlite(str(old))}), stored[0], lambda: pytest.fail("mounted"), 3101, ", REPLACE")


def test_what_an_earlier_database_left_beside_it_goes(tmp_path: Path, stored: tuple[bytes, Path]) -> None:
    stream, copy = stored
    for suffix in ("-wal", "-journal"):
        (tmp_path / f"new{suffix}").write_bytes(b"left over" * 100)
    play_back(Engine({"db": Sqlite(str(tmp_path / "new"))}), stream, lambda: put(copy, tmp_path / "new"))
    check_copy(tmp_path / "new")


@pytest.mark.parametrize("case", ["nothing", "cut", "another", "refused"])
def test_files_that_are_not_those_of_the_snapshot_fail_the_restore(
    tmp_path: Path, stored: tuple[bytes, Path], case: str
) -> None:
    stream, copy = stored
    new = tmp_path / "new"

    def mount() -> int | None:
        if case == "cut":
            new.write_bytes(copy.read_bytes()[:-4096])
        elif case == "another":  # of the same size, from another moment
            make_database(new)
            assert new.stat().st_size == copy.stat().st_size
        return CompletionCode.OPERATION_ABORTED if case == "refused" else None

    restore_fails(
        Engine({"db": Sqlite(str(new))}), stream, mount, {"nothing": 3271, "refused": 3203}.get(case, 3129)
    )


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_a_refused_mount_leaves_the_old_database_as_it_was(
    tmp_path: Path, stored: tuple[bytes, Path], mode: str
) -> None:
    old = make_database(tmp_path / "old", mode)
    refuse = lambda: CompletionCode.OPERATION_ABORTED  # noqa: E731
    restore_fails(Engine({"db": Sqlite(str(old))}), stored[0], refuse, 3203, ", REPLACE")
    check_copy(old)
    with closing(sqlite3.connect(old)) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == (mode,)
    assert can_write(old)


def test_each_kind_of_backup_is_restored_in_its_own_way_only(tmp_path: Path, stored: tuple[bytes, Path]) -> None:
    path = make_database(tmp_path / "db")
    plain = Recorder(1)
    with client(1, plain) as one:
        Engine({"db": Sqlite(str(path))}).execute(f"BACKUP DATABASE db TO {one.clauses}")
    new = Engine({"db": Sqlite(str(tmp_path / "new"))})
    restore_fails(new, plain.streams[0], lambda: pytest.fail("mounted"), 3135)
    with client(1, Player([stored[0]])) as one, pytest.raises(SqlError) as caught:
        new.execute(f"RESTORE DATABASE db FROM {one.clauses}")
    assert caught.value.number == 3135
    assert "BACKUP DATABASE WITH SNAPSHOT" in caught.value.errors[0].text
    with client(1, Player([stored[0]])) as one, pytest.raises(SqlError) as caught:
        Engine({"master": Sqlite(str(tmp_path / "new"))}).execute(
            f"RESTORE DATABASE master FROM {one.clauses} WITH SNAPSHOT")
    assert caught.value.number == 3196


def test_damage_to_the_stream_fails_the_restore(tmp_path: Path, stored: tuple[bytes, Path]) -> None:
    engine = Engine({"db": Sqlite(str(tmp_path / "new"))})
    stream = bytearray(stored[0])
    stream[len(stream) // 2] ^= 1
    restore_fails(engine, bytes(stream), lambda: pytest.fail("mounted"), 3183)
    restore_fails(engine, stored[0][: len(stream) // 2 & ~511], lambda: pytest.fail("mounted"), 3256)


def test_synthetic_pages_stand_still_and_need_no_files() -> None:
    handler = Snapshotter()
    back_up(Engine({"db": Synthetic(10 << 20, 5)}), handler)
    assert len(handler.streams[0]) < 100_000
    codes = play_back(Engine({"db": Synthetic(10 << 20, 5)}), handler.streams[0], lambda: None)
    assert codes[-1] is MOUNT
    restore_fails(Engine({"db": Synthetic(10 << 20, 6)}), handler.streams[0], lambda: pytest.fail("mounted"), 3154)


def test_memory_does_not_depend_on_the_size(tmp_path: Path) -> None:
    """The stream holds the first extent of the frozen file, never the file."""
    handler = Snapshotter()
    path = make_database(tmp_path / "db", rows=3000)
    back_up(Engine({"db": Sqlite(str(path))}), handler)
    assert path.stat().st_size > 10_000_000 and len(handler.streams[0]) < 100_000
