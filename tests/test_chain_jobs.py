"""Chains of sets: what msdb and the streams say of them, and restores from many sets to a point in time."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
import uuid
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from engine_statements import content, state
from standin_driver import Driver

from vdi_ext.engine import Engine, Synthetic
from vdi_ext.jobs import (
    ArgumentError,
    ChainError,
    SQLError,
    VerificationError,
    backup,
    chain_texts,
    recover,
    restore,
    restore_chain,
)
from vdi_ext.jobs.chains import Link, links, plan
from vdi_ext.jobs.heads import Head, head_of, read_info, stream_head
from vdi_ext.storage import StoredSet

SIZE = 2 << 20


@pytest.fixture
def server() -> Driver:
    return Driver(Engine({"db": Synthetic(SIZE, 5, "FULL"), "simple": Synthetic(SIZE, 6)}))


class Chain:
    """A store with full, log, differential and log, and what the database held at each."""

    def __init__(self, server: Driver, store: Path) -> None:
        self.server = server
        self.store = store
        self.held: dict[str, list[int]] = {}
        self.take("full", "full")
        self.change(8)
        self.take("log1", "log")
        self.between = self.wait()
        self.change(16)
        self.take("diff", "differential")
        self.change(24)
        self.take("log2", "log")

    def change(self, page: int) -> None:
        self.server.engine.change("db", page)

    def take(self, name: str, kind: str) -> None:
        backup(self.server, self.store / name, database="db", kind=kind)
        self.held[name] = content(self.server.engine, "db")

    @staticmethod
    def wait() -> datetime:
        """A full second between all that was and all that follows; returns when it is over."""
        second = datetime.now().replace(microsecond=0) + timedelta(seconds=1)
        while datetime.now() <= second:
            time.sleep(0.01)
        return second

    def path(self, name: str) -> Path:
        return self.store / name


@pytest.fixture
def chain(server: Driver, tmp_path: Path) -> Chain:
    (tmp_path / "store").mkdir()
    return Chain(server, tmp_path / "store")


@pytest.fixture
def other() -> Driver:
    return Driver(Engine({}))


def kinds(server: Driver) -> list[str]:
    return [sql.split(" FROM ")[0] for sql in server.statements if sql.startswith("RESTORE")]


def test_the_manifest_says_what_msdb_and_the_stream_say(chain: Chain) -> None:
    heads = {}
    for name, kind in (("full", "full"), ("log1", "log"), ("diff", "differential"), ("log2", "log")):
        stored = StoredSet(str(chain.path(name)))
        head = heads[name] = head_of(stored.path, stored.manifest)
        assert head.kind == kind and head.database == "db" and head.copy_only is False
        own = stream_head(read_info(f"{stored.path}/stripe-01-of-01.bak", 65536))
        assert (own.set_guid, own.first_lsn, own.last_lsn) == (head.set_guid, head.first_lsn, head.last_lsn)
        assert head.finished is not None
        assert Head.from_dict(json.loads(json.dumps(head.to_dict()))) == head
    assert heads["diff"].base_guid == heads["full"].set_guid
    assert heads["log2"].first_lsn == heads["log1"].last_lsn


@pytest.mark.parametrize("sources", ["store", "sets", "sets in any order"])
def test_a_chain_is_restored_to_its_end(chain: Chain, other: Driver, sources: str) -> None:
    names = ["log2", "full", "diff", "log1"] if "any" in sources else ["full", "log1", "diff", "log2"]
    paths = [chain.store] if sources == "store" else [chain.path(name) for name in names]
    done = restore_chain(paths, other, database="db")
    assert [Path(result.path).name for result in done] == ["full", "diff", "log2"]
    assert kinds(other) == ["RESTORE DATABASE [db]", "RESTORE DATABASE [db]", "RESTORE LOG [db]"]
    assert state(other.engine, "db") == ("ONLINE", False)
    assert content(other.engine, "db") == chain.held["log2"]


def test_a_point_in_time(chain: Chain, other: Driver) -> None:
    done = restore_chain([chain.store], other, database="db", to="then", stop_at=chain.between.isoformat())
    assert [Path(result.path).name for result in done][:2] == ["full", "log1"]
    assert content(other.engine, "then") == chain.held["log1"]
    assert state(other.engine, "then") == ("ONLINE", False)


def test_a_chain_can_be_left_open(chain: Chain, other: Driver) -> None:
    restore_chain([chain.path("full"), chain.path("log1")], other, database="db", norecovery=True)
    assert state(other.engine, "db") == ("RESTORING", False)
    restore(chain.path("log2"), other, database="db", norecovery=True)  # a log by itself: it says what it is
    assert kinds(other)[-1] == "RESTORE LOG [db]"
    other.engine.execute("RESTORE DATABASE db WITH RECOVERY")
    assert content(other.engine, "db") == chain.held["log2"]


def test_files_go_where_they_are_sent(chain: Chain, other: Driver) -> None:
    restore_chain([chain.path("full")], other, database="db", to="my/copy", data_dir="D:\\data\\")
    sql = next(sql for sql in other.statements if sql.startswith("RESTORE"))
    assert "RESTORE DATABASE [my/copy]" in sql
    assert "MOVE N'db' TO N'D:\\data\\my_copy.mdf'" in sql
    assert "MOVE N'db_log' TO N'D:\\data\\my_copy_log.ldf'" in sql
    assert content(other.engine, "my/copy") == chain.held["full"]


def test_the_statements_of_a_chain_can_be_seen_first(chain: Chain) -> None:
    texts = chain_texts([chain.store], "mssql://nowhere?database=db", to="new", replace=True, data_dir="/d")
    assert [text.split(" FROM ")[0] for text in texts] == [
        "RESTORE DATABASE [new]", "RESTORE DATABASE [new]", "RESTORE LOG [new]"]
    assert ["NORECOVERY" in text for text in texts] == [True, True, False]
    assert ["REPLACE" in text and "MOVE N'db' TO N'/d/new.mdf'" in text for text in texts] == [True, False, False]


def test_what_is_missing_is_named_before_anything(chain: Chain, other: Driver, tmp_path: Path) -> None:
    for paths, options, words in (
        (["diff", "log2"], {}, "no full backup"),
        (["full", "log2"], {}, "log2 begins at LSN .* a log between them is missing"),
        (["full", "log1"], {"stop_at": "2100-01-01T00:00:00"}, "the logs end with .*log1 .*before 2100"),
        (["full"], {"stop_at": "2000-01-01T00:00:00"}, "no full backup that had ended by 2000"),
        (["full"], {"stop_at": "yesterday"}, "no point in time"),
        (["full"], {"stop_at": "2030-01-01T00:00:00Z"}, "has a zone"),
    ):
        with pytest.raises(ArgumentError, match=words):
            restore_chain([chain.path(name) for name in paths], other, database="db", **options)
    backup("synthetic:1M", tmp_path / "stranger")
    with pytest.raises(ChainError, match="2 databases"):
        restore_chain([chain.path("full"), tmp_path / "stranger"], other, database="db")
    assert other.connections == []


def test_a_name_that_no_set_is_of_is_named_with_those_that_there_are(chain: Chain, other: Driver) -> None:
    with pytest.raises(ChainError, match=r"no set here is of new, only of db: .*\(--to\)"):
        restore_chain([chain.store], other, database="new")
    assert not other.statements


def test_a_chain_that_fails_in_the_middle_says_how_far_it_came(chain: Chain, other: Driver) -> None:
    stripe = chain.path("log2") / "stripe-01-of-01.bak"
    data = bytearray(stripe.read_bytes())
    data[-1] ^= 1
    stripe.write_bytes(data)
    with pytest.raises(VerificationError) as caught:
        restore_chain([chain.store], other, database="db", verify_first=True)
    assert other.connections == []
    with pytest.raises(VerificationError) as caught:
        restore_chain([chain.store], other, database="db")
    assert caught.value.__notes__[-1].startswith("db is left RESTORING, with ")
    assert state(other.engine, "db") == ("RESTORING", False)


def test_forks_are_kept_apart(chain: Chain) -> None:
    """Of two logs that go on from the same place, only the one of the same recovery path is taken."""
    every = links([chain.store])
    log = next(link for link in every if link.path.endswith("log2"))
    fork = str(uuid.uuid4())
    head = dataclasses.replace(log.head, first_fork=fork, last_fork=fork, last_lsn=log.head.last_lsn + 5)
    assert [link.head for link in plan([*every, Link(log.stored, head)])][-1] == log.head


@pytest.mark.parametrize("full_again", [True, False], ids=["a full backup of the new path", "logs only"])
@pytest.mark.parametrize("timed", [True, False], ids=["to a point in time", "to the end"])
def test_after_a_point_in_time_the_chain_goes_on_from_there(chain: Chain, full_again: bool, timed: bool) -> None:
    """What the database was before it is left out, although its LSNs fit."""
    server = chain.server
    for page in range(32, 80, 8):
        chain.change(page)
    chain.take("log3", "log")
    chain.take("abandoned", "full")
    restore_chain([chain.path("full"), chain.path("log1")], server, database="db", replace=True)
    assert content(server.engine, "db") == chain.held["log1"]
    for page in range(80, 240, 8):  # beyond the LSNs that were given up
        chain.change(page)
    if full_again:
        chain.take("again", "full")
        chain.change(168)
    chain.take("log4", "log")
    until = chain.wait().isoformat() if timed else None
    chain.change(176)
    chain.take("log5", "log")
    done = restore_chain([chain.store], server, database="db", to="new", stop_at=until)
    used = {Path(result.path).name for result in done}
    assert not used & {"diff", "log2", "log3", "abandoned"}
    assert ("again" in used) is full_again
    assert content(server.engine, "new") == chain.held["log4" if timed else "log5"]


def forked(chain: Chain) -> None:
    """log3, up to the end of a path, and log4, which leaves that path at the end of log1."""
    chain.change(88)
    chain.take("log3", "log")
    restore_chain([chain.path("full"), chain.path("log1")], chain.server, database="db", replace=True)
    chain.change(160)
    chain.take("log4", "log")


def test_the_fork_point_is_known(chain: Chain) -> None:
    forked(chain)
    heads = {Path(link.path).name: link.head for link in links([chain.store])}
    log = heads["log4"]
    assert log.first_fork == heads["log1"].last_fork != log.last_fork
    assert log.fork_lsn == heads["log1"].last_lsn
    assert {head.fork_lsn for name, head in heads.items() if name != "log4"} == {0}
    document = log.to_dict()
    assert Head.from_dict(document) == log
    del document["fork_lsn"]  # of a manifest that was written before it was kept
    assert Head.from_dict(document) == dataclasses.replace(log, fork_lsn=0)
    stream = stream_head(read_info(f"{chain.path('log4')}/stripe-01-of-01.bak", 65536))
    assert (stream.first_fork, stream.last_fork) == (log.first_fork, log.last_fork)


def test_a_point_in_time_on_two_paths_is_not_guessed(chain: Chain, other: Driver) -> None:
    """The log that was given up and the one that goes on instead both cover it."""
    until = chain.wait().isoformat()
    forked(chain)
    with pytest.raises(ChainError, match=r"log3 and .*log4 .*different recovery paths.*name the sets"):
        restore_chain([chain.store], other, database="db", stop_at=until)
    assert not other.statements
    path = [chain.path(name) for name in ("full", "log1", "diff", "log2", "log3")]
    restore_chain(path, other, database="db", stop_at=until)
    assert content(other.engine, "db") == chain.held["log2"]


def test_paths_that_end_at_the_same_time_are_not_guessed(chain: Chain) -> None:
    forked(chain)
    now = "2026-03-01T12:00:00"
    every = [Link(link.stored, dataclasses.replace(link.head, finished=now)) for link in links([chain.store])]
    with pytest.raises(ChainError, match=r"log3 and .*log4 .*different recovery paths.*name the sets"):
        plan(every)


def test_a_newer_log_of_a_path_that_nothing_leads_to_is_named(chain: Chain) -> None:
    forked(chain)
    chain.change(168)
    chain.take("log5", "log")
    shutil.rmtree(chain.path("log4"))
    with pytest.raises(ChainError, match=r"log5 .*recovery path .*name the sets"):
        plan(links([chain.store]))


def test_copy_only_backups_are_no_base(server: Driver, tmp_path: Path) -> None:
    backup(server, tmp_path / "full", database="db")
    server.engine.change("db", 8)
    backup(server, tmp_path / "aside", database="db", copy_only=True)
    server.engine.change("db", 16)
    backup(server, tmp_path / "diff", database="db", kind="differential")
    stored = StoredSet(str(tmp_path / "aside"))
    assert head_of(stored.path, stored.manifest).copy_only is True
    chosen = plan(links([tmp_path / "full", tmp_path / "diff"]))
    assert [Path(link.path).name for link in chosen] == ["full", "diff"]


def test_the_tail_of_the_log(server: Driver, tmp_path: Path, other: Driver) -> None:
    backup(server, tmp_path / "full", database="db")
    server.engine.change("db", 8)
    held = content(server.engine, "db")
    backup(server, tmp_path / "tail", database="db", kind="log", norecovery=True)
    assert state(server.engine, "db") == ("RESTORING", False)
    restore_chain([tmp_path / "full", tmp_path / "tail"], other, database="db")
    assert content(other.engine, "db") == held


def test_msdb_that_says_otherwise_is_reported(server: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vdi_ext.jobs import heads

    real = heads.backup_row
    monkeypatch.setattr(
        heads, "backup_row", lambda *rest: dataclasses.replace(real(*rest), last_lsn=1, database="other"))
    with pytest.raises(VerificationError, match="is not the backup that msdb knows") as caught:
        backup(server, tmp_path / "set", database="db")
    assert [problem.split(" is ")[0] for problem in caught.value.problems[1:]] == ["the database", "the last LSN"]
    StoredSet(str(tmp_path / "set")).verify()  # whole, and the log may have been truncated for it: it stays


def test_streams_that_tell_nothing_are_found_in_msdb_by_their_device(
    server: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: Driver
) -> None:
    """Compressed and encrypted ones."""
    from vdi_ext.jobs import heads
    from vdi_ext.mtf import NotMtfError

    def unreadable(*rest: object) -> None:
        raise NotMtfError("compressed")

    monkeypatch.setattr(heads, "info_of", unreadable)
    backup(server, tmp_path / "full", database="db", devices=2)
    server.engine.change("db", 8)
    backup(server, tmp_path / "log", database="db", kind="log")
    prepared(server, tmp_path, True, kind="log")
    (entry,) = recover(str(tmp_path), action="resolve", server=server)
    assert entry.state == "published"
    every = sorted(links([tmp_path]), key=lambda link: link.head.last_lsn)
    assert [link.head.kind for link in every] == ["full", "log", "log"]
    assert {link.head.set_guid for link in every} == {str(record.set_guid) for record in server.engine.history.backups}
    restore_chain([tmp_path], other, database="db")
    assert content(other.engine, "db") == content(server.engine, "db")
    manifest = StoredSet(str(tmp_path / "log")).manifest
    manifest.backup = {}
    assert heads.kind_of(str(tmp_path / "log"), manifest) == "log"  # by its statement


def prepared(server: Driver, directory: Path, listed: bool, kind: str = "full") -> None:
    """A set whose outcome nobody has heard of."""
    from vdi_ext.jobs import StatementLostError

    def lose(event: object) -> None:
        if event.phase == "prepared":
            server.connections[first].session.killed = True

    first = len(server.connections)
    before = len(server.engine.history.backups)
    with pytest.raises(StatementLostError):
        backup(server, directory / "set", database="db", progress=lose, kind=kind)
    assert len(server.engine.history.backups) == before + 1
    if not listed:
        server.engine = Engine({"db": Synthetic(SIZE, 5, "FULL")})


@pytest.mark.parametrize("listed", [True, False])
def test_the_server_resolves_what_is_prepared(server: Driver, tmp_path: Path, listed: bool) -> None:
    prepared(server, tmp_path, listed)
    (entry,) = recover(str(tmp_path), action="resolve", server=server)
    if listed:
        assert (entry.state, entry.problems) == ("published", ())
        assert StoredSet(str(tmp_path / "set")).manifest.backup["database"] == "db"
        restore(tmp_path / "set", server, database="copy")
    else:
        assert entry.state == "prepared" and "the BACKUP has failed" in entry.problems[0]
        assert [path.name for path in tmp_path.iterdir()] == ["set.partial"]


def test_resolving_takes_a_server(tmp_path: Path, server: Driver) -> None:
    with pytest.raises(ArgumentError):
        recover(str(tmp_path), action="resolve")
    with pytest.raises(ArgumentError):
        recover(str(tmp_path), action="publish", server=server)
    with pytest.raises(SQLError):
        recover(str(tmp_path), action="resolve", server="mssql://nobody@127.0.0.1:1?driver=pymssql", password="x")
