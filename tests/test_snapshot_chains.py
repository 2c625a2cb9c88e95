"""Snapshots among other backups: what builds on them, what msdb remembers, and what RESTORE ... ONLY says of them."""

from __future__ import annotations

import json
import struct
import threading
from pathlib import Path

import pytest
from engine_clients import Player, client
from engine_statements import back_up as back_up_pages
from engine_statements import content, refused, restore, state
from test_snapshot_engine import (
    MOUNT,
    PREPARED,
    Snapshotter,
    back_up,
    can_write,
    check_copy,
    fails,
    log_numbers,
    make_database,
    play_back,
    put,
    restore_fails,
)

from vdi_ext.engine import Engine, SqlError, Sqlite, Synthetic
from vdi_ext.engine.freezing import MountedSynthetic
from vdi_ext.mtf import MtfError

SIZE = 4 << 20


@pytest.fixture
def engine() -> Engine:
    return Engine({"db": Synthetic(SIZE, 5, "FULL")})


def snapshot(engine: Engine, **acts: object) -> bytes:
    handler = Snapshotter(**acts)
    back_up(engine, handler)
    return bytes(handler.streams[0])


def test_differentials_and_logs_build_on_a_snapshot(engine: Engine) -> None:
    engine.change("db", 8)
    full = snapshot(engine)
    held = content(engine, "db")
    engine.change("db", 64, 24)
    differential = back_up_pages(engine, "DATABASE db", "WITH DIFFERENTIAL")
    engine.change("db", 128)
    log = back_up_pages(engine, "LOG db")
    end = content(engine, "db")
    for ways in ([("LOG", log)], [("DATABASE", differential), ("LOG", log)]):
        other = Engine({})
        play_back(other, full, lambda: None, ", NORECOVERY")
        assert state(other, "db") == ("RESTORING", False) and content(other, "db") == held != end
        for kind, streams in ways:
            restore(other, f"{kind} db", streams, "WITH NORECOVERY")
        other.execute("RESTORE DATABASE db WITH RECOVERY")
        assert state(other, "db") == ("ONLINE", False) and content(other, "db") == end


def test_a_snapshot_that_fails_is_no_base(engine: Engine) -> None:
    fails(engine, Snapshotter(snapshot=lambda: 995), [3202, 3013])
    assert refused(engine, "DATABASE db", "WITH DIFFERENTIAL") == [3035]
    assert refused(engine, "LOG db") == [4214]
    assert engine.history.backups == ()


def test_changes_before_the_freeze_are_in_it_and_those_after_it_wait(engine: Engine) -> None:
    """While the client holds PrepareToFreeze, the database is not frozen yet."""
    changed = threading.Event()
    threads = []

    def freeze() -> None:
        held.append(content(engine, "db"))
        threads.append(threading.Thread(target=lambda: (engine.change("db", 256), changed.set())))
        threads[0].start()
        assert not changed.wait(0.1)
        held.append(content(engine, "db"))

    held: list[list[int]] = []
    full = snapshot(engine, prepare_to_freeze=lambda: engine.change("db", 64) and None, snapshot=freeze)
    threads[0].join()
    assert changed.is_set() and held[0] == held[1] != content(engine, "db")
    log = back_up_pages(engine, "LOG db")
    other = Engine({})
    play_back(other, full, lambda: None, ", NORECOVERY")
    assert content(other, "db") == held[0]
    restore(other, "LOG db", log)
    assert content(other, "db") == content(engine, "db")


def test_changes_wait_for_every_snapshot_and_not_for_ever() -> None:
    engine = Engine({"db": Synthetic(SIZE, 5, freeze_limit=0.3)})
    changes = []

    def inner() -> None:
        engine.change("db", 8)  # goes on when the time is up, of the outer snapshot as well
        changes.append(1)

    fails(engine, Snapshotter(snapshot=lambda: fails(engine, Snapshotter(snapshot=inner), [3229, 3013]) and None),
          [3229, 3013])  # fmt: skip
    assert changes == [1]
    engine.change("db", 8)


def test_too_many_changes_to_describe_are_refused(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    monkeypatch.setattr("vdi_ext.engine.freezing._MOST_RUNS", 2)
    for page in (0, 16, 32):
        engine.change("db", page)
    fails(engine, Snapshotter(), [3260, 3013])
    engine.change("db", 0)


@pytest.mark.parametrize(
    "changed",
    [None, {}, [1], [[1, 2]], [[1, 2, "3"]], [[-1, 1, 1]], [[0, 0, 1]], [[0, 65, 1]], [[64, 1, 1]], [[0, 1, 0]],
     [[0, 1, 1 << 32]], [[0, 1, True]]],
)  # fmt: skip
def test_what_a_stream_says_of_changes_is_checked(changed: object) -> None:
    with pytest.raises(MtfError):
        MountedSynthetic(Synthetic(SIZE, 5), SIZE // 8192, changed)


def test_a_sqlite_database_is_restoring_until_it_is_recovered(tmp_path: Path) -> None:
    path = make_database(tmp_path / "db")
    stream = snapshot(Engine({"db": Sqlite(str(path))}), snapshot=lambda: put(path, tmp_path / "copy"))
    engine = Engine({"db": Sqlite(str(tmp_path / "new"))})
    play_back(engine, stream, lambda: put(tmp_path / "copy", tmp_path / "new"), ", NORECOVERY")
    assert state(engine, "db") == ("RESTORING", False)
    with client(1, Snapshotter(), PREPARED) as one, pytest.raises(SqlError) as caught:
        engine.execute(f"BACKUP DATABASE db TO {one.clauses} WITH SNAPSHOT")
    assert caught.value.number == 927
    engine.execute("RESTORE DATABASE db WITH RECOVERY")
    back_up(engine, Snapshotter())
    check_copy(tmp_path / "new")


def test_a_database_is_created_where_its_files_are_moved_to(tmp_path: Path) -> None:
    path = make_database(tmp_path / "db")
    engine = Engine({"db": Sqlite(str(path))})
    stream = snapshot(engine, snapshot=lambda: put(path, tmp_path / "copy"))
    moved = f", MOVE 'db' TO '{tmp_path}/moved'"
    play_back(engine, stream, lambda: put(tmp_path / "copy", tmp_path / "moved"), moved, name="other")
    assert [info.path for info in engine.databases if info.name == "other"] == [str(tmp_path / "moved")]
    check_copy(tmp_path / "moved")
    back_up_pages(engine, "DATABASE other")
    # Where it was lies the old one still.
    with client(1, Player([stream])) as one, pytest.raises(SqlError) as caught:
        engine.execute(f"RESTORE DATABASE third FROM {one.clauses} WITH SNAPSHOT")
    assert caught.value.number == 1834
    assert engine.catalog.get("third") is None and can_write(path)


def test_a_mount_that_fails_creates_nothing(tmp_path: Path) -> None:
    path = make_database(tmp_path / "db")
    stream = snapshot(Engine({"db": Sqlite(str(path))}))
    engine = Engine({})
    moved = f", MOVE 'db' TO '{tmp_path}/moved'"
    restore_fails(engine, stream, lambda: None, 3271, moved)
    assert engine.catalog.get("db") is None and engine.history.restores == ()


def test_msdb_remembers_that_it_was_a_snapshot(engine: Engine) -> None:
    stream = snapshot(engine)
    [record] = engine.history.backups
    assert (record.type, record.is_snapshot, record.is_copy_only) == ("D", True, False)
    other = Engine({})
    play_back(other, stream, lambda: None)
    assert [record.set_guid] == [row.set_guid for row in other.history.restores]
    back_up(engine, Snapshotter(), options=", COPY_ONLY")
    assert engine.history.backups[-1].is_copy_only


def test_system_databases_and_states_have_their_rules(engine: Engine) -> None:
    stream = snapshot(engine)
    for name, number in (("tempdb", 3147), ("master", 3196)):
        with client(1, Player([stream])) as one, pytest.raises(SqlError) as caught:
            engine.execute(f"RESTORE DATABASE {name} FROM {one.clauses} WITH SNAPSHOT")
        assert caught.value.number == number
    engine.change("db", 8)
    restore_fails(engine, stream, lambda: pytest.fail("mounted"), 3159)
    play_back(engine, stream, lambda: None, ", REPLACE")
    assert not any(content(engine, "db"))


def only(engine: Engine, what: str, stream: bytes) -> list[dict[str, object]]:
    with client(1, Player([stream])) as one:
        result = engine.execute(f"RESTORE {what} FROM {one.clauses}")
    assert MOUNT not in one.codes[0]
    return [dict(zip([column.name for column in result.columns], row, strict=True)) for row in result.rows]


def test_header_and_files_of_a_snapshot_are_shown(tmp_path: Path) -> None:
    path = make_database(tmp_path / "db")
    stream = snapshot(Engine({"db": Sqlite(str(path))}))
    engine = Engine({})
    [header] = only(engine, "HEADERONLY", stream)
    assert header["IsSnapshot"] == 1 and header["BackupType"] == 1 and header["DatabaseName"] == "db"
    data, log = only(engine, "FILELISTONLY", stream)
    assert data["PhysicalName"] == str(path) and log["Type"] == "L"
    [label] = only(engine, "LABELONLY", stream)
    assert label["FamilyCount"] == 1
    only(engine, "VERIFYONLY", stream)
    plain = back_up_pages(Engine({"db": Sqlite(str(path))}), "DATABASE db")[0]
    [header] = only(engine, "HEADERONLY", plain)
    assert header["IsSnapshot"] == 0


def test_the_flag_of_a_snapshot_is_the_one_that_headeronly_shows(engine: Engine) -> None:
    """Flags of HEADERONLY: 2 is a snapshot, 16 says that there are checksums."""
    stream = snapshot(engine)
    flags, = struct.unpack_from("<I", stream, stream.index(b"SCIN") + 8)
    assert flags & 0x12 == 0x2
    extra = stream[stream.index(b"VDIX") + 8 :]
    assert json.JSONDecoder().raw_decode(extra[: extra.index(b"}") + 1].decode())[0]["changed"] == []
    assert 3197 in log_numbers(engine)
