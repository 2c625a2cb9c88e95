"""Snapshots of a server's databases, reached through a driver."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from standin_driver import Driver
from tds_clients import LOGIN, PASSWORD
from test_snapshot_engine import can_write, check_copy, make_database
from test_snapshot_jobs import COPY, PLACE, nothing_frozen

from vdi_ext import backup, backup_snapshot, recover, restore, restore_snapshot
from vdi_ext.engine import Engine, Sqlite, Synthetic
from vdi_ext.engine.tds import Endpoint
from vdi_ext.jobs import ArgumentError, ChainError, CommandFailedError, ProgressEvent, SQLError, restore_chain
from vdi_ext.storage import StoredSet


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COPIES", str(tmp_path / "copies"))
    return tmp_path / "copies"


@pytest.fixture
def live(tmp_path: Path) -> list[Path]:
    return [make_database(tmp_path / "one.db", "wal"), make_database(tmp_path / "two.db")]


@pytest.fixture
def engine(live: list[Path]) -> Engine:
    return Engine({"one": Sqlite(str(live[0])), "two": Sqlite(str(live[1])), "pages": Synthetic(4 << 20, 3, "FULL")})


@pytest.fixture(params=["pymssql", "python-tds", "connect"])
def source(request: pytest.FixtureRequest, engine: Engine) -> Iterator[tuple[object, dict]]:
    """A server, and what it takes to log in."""
    if request.param == "connect":
        yield Driver(engine), {}
        return
    with Endpoint(engine, {LOGIN: PASSWORD}, encrypt="never") as endpoint:
        yield f"mssql://{LOGIN}@127.0.0.1:{endpoint.port}?driver={request.param}&encrypt=no", {"password": PASSWORD}


def test_databases_that_a_selector_means_are_frozen_together(
    tmp_path: Path, live: list[Path], copies: Path, engine: Engine, source: tuple[object, dict]
) -> None:
    address, login = source
    done = backup_snapshot(
        address, tmp_path / "{kind}", databases="USER_DATABASES, -nothing*", freeze_command=COPY, **login
    )
    assert done.database == "one, two, pages" and Path(done.path) == tmp_path / "{kind}"
    manifest = StoredSet(done.path).manifest
    assert [entry["files"] for entry in manifest.snapshot] == [[str(live[0])], [str(live[1])], []]
    assert all(line.endswith(" WITH CHECKSUM, SNAPSHOT") for line in manifest.statement.splitlines())
    assert sum("3014" in text for text in done.messages) in (0, 3)  # not every driver passes it on
    assert PASSWORD not in (Path(done.path) / "manifest.json").read_text()
    assert [record.is_snapshot for record in engine.history.backups] == [True] * 3
    for path in live:
        with closing(sqlite3.connect(path)) as db:
            db.execute("INSERT INTO counters VALUES ('lost', -1)")
            db.commit()
    engine.change("pages", 0)
    restore_snapshot(
        done.path, [address] * 3, databases=["one", "two", "pages"], mount_command=PLACE, replace=True, **login
    )
    assert all("lost" not in check_copy(path) for path in live)
    assert not engine.catalog.get("pages").versions.any()


@pytest.mark.parametrize("listed", [True, False])
def test_a_set_of_unknown_outcome_is_a_backup_if_msdb_lists_all_of_it(
    tmp_path: Path, copies: Path, engine: Engine, live: list[Path], listed: bool
) -> None:
    done = backup_snapshot(
        [Driver(engine), Driver(engine if listed else Engine({"two": Sqlite(str(live[1]))}))], tmp_path / "set",
        databases=["one", "two"], freeze_command=COPY,
    )  # fmt: skip
    Path(done.path).rename(tmp_path / "set.partial")
    [found] = recover(str(tmp_path), action="resolve", server=Driver(engine))
    assert found.state == ("published" if listed else "prepared")
    assert (tmp_path / "set").exists() == listed
    assert bool(found.problems) != listed


def test_a_chain_is_made_of_what_holds_the_data(tmp_path: Path, engine: Engine) -> None:
    server = Driver(engine)
    backup(server, tmp_path / "full", database="pages")
    backup_snapshot(server, tmp_path / "snapshot", databases=["pages"], freeze_command="true", copy_only=True)
    engine.change("pages", 8)
    backup(server, tmp_path / "log", database="pages", kind="log")
    restore_chain([tmp_path], server, database="pages", replace=True)
    statements = [sql for sql in server.statements if sql.startswith("RESTORE")]
    assert [sql.split(" FROM ")[0] for sql in statements] == ["RESTORE DATABASE [pages]", "RESTORE LOG [pages]"]
    with pytest.raises(ArgumentError, match="is a snapshot"):
        restore(tmp_path / "snapshot", server, database="pages", replace=True)
    with pytest.raises(ChainError, match="is a snapshot"):
        restore_chain([tmp_path / "snapshot", tmp_path / "log"], server, database="pages", replace=True)


def test_tokens_name_the_set(tmp_path: Path, copies: Path, engine: Engine) -> None:
    done = backup_snapshot(
        Driver(engine), f"{tmp_path}/{{database}}-{{kind}}", databases=["one"], freeze_command=COPY
    )
    assert done.path == f"{tmp_path}/one-snapshot"
    with pytest.raises(ArgumentError, match=r"leave \{database\} out"):
        backup_snapshot(Driver(engine), f"{tmp_path}/{{database}}", databases="one,two", freeze_command="true")


def test_what_cannot_be_backed_up_is_no_part_of_a_whole(tmp_path: Path, engine: Engine) -> None:
    engine.catalog.get("two").state = "RESTORING"
    with pytest.raises(ArgumentError, match="two: it is RESTORING"):
        backup_snapshot(Driver(engine), tmp_path / "set", databases="USER_DATABASES", freeze_command="true")
    with pytest.raises(ArgumentError, match="of one server"):
        backup_snapshot("synthetic:1MiB", tmp_path / "set", databases="USER_DATABASES", freeze_command="true")
    assert not (tmp_path / "set.partial").exists()


def test_a_failure_thaws_the_databases_of_a_server(
    tmp_path: Path, live: list[Path], engine: Engine, source: tuple[object, dict]
) -> None:
    address, login = source
    with pytest.raises(CommandFailedError, match="exit status 3: nowhere"):
        backup_snapshot(
            address, tmp_path / "set", databases="one,two", freeze_command="echo nowhere; exit 3", **login
        )
    nothing_frozen(tmp_path, live)

    def stop(event: ProgressEvent) -> None:
        if event.phase == "frozen":
            assert not any(map(can_write, live))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backup_snapshot(
            address, tmp_path / "set", databases="one,two", freeze_command="true", progress=stop, **login
        )
    nothing_frozen(tmp_path, live)
    with pytest.raises(SQLError) as caught:
        backup_snapshot(
            [address] * 2, tmp_path / "set", databases=["one", "master;"], freeze_command="true", **login
        )
    assert caught.value.number == 911
    nothing_frozen(tmp_path, live)
    assert engine.history.backups == ()
    numbers = [entry.number for entry in engine.error_log]
    assert numbers.count(3197) == numbers.count(3198) > 0
