"""Chains: what full, differential and log backups mean for one another, and the errors that broken ones give.

Numbers of messages are those of the documentation; so are the rules that they tell of.
"""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
import subprocess
import sys
import uuid
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from engine_clients import Player, Recorder, client
from engine_statements import Streams, back_up, content, refused, restore, state

from vdi_ext import Command, CommandCode, CompletionCode
from vdi_ext.engine import Engine, SqlError, Sqlite, Synthetic
from vdi_ext.engine.database import DatabaseError
from vdi_ext.engine.log import CHANGE, CHECKPOINT, TransactionLog, decode, encode, lsn_of, number_of
from vdi_ext.engine.session import Session
from vdi_ext.mtf import PAGE_SIZE, FamilyInfo, FamilyReader, MtfError

SIZE = 2 << 20  # 32 extents
LATER = datetime(2100, 1, 1)  # than any backup of a test is taken


@pytest.fixture
def engine() -> Engine:
    return Engine({"db": Synthetic(SIZE, 5, "FULL"), "simple": Synthetic(SIZE, 6)})


def info_of(stream: bytes) -> FamilyInfo:
    infos: list[FamilyInfo] = []
    reader = FamilyReader(512, lambda info: None, lambda pages: None, on_end=infos.append)
    reader.feed(memoryview(stream))
    reader.end()
    return infos[0]


# ---- the log itself


def test_numbers_of_records_and_log_sequence_numbers_are_two_names_of_one_thing() -> None:
    numbers = [1, 2, 2031, 2032, 2033, 5000, 10**6]
    lsns = [lsn_of(number) for number in numbers]
    assert [number_of(lsn) for lsn in lsns] == numbers
    assert lsns == sorted(lsns)
    for wrong in ((0, 0, 0), (20, 16, 2), (20, 15, 1), (20, 2048, 1), (19, 20, 1)):
        with pytest.raises(ValueError):
            number_of(wrong)


def test_records_go_into_sectors_of_virtual_log_files_and_come_back() -> None:
    log = TransactionLog(2030)
    now = datetime(2024, 2, 29, 12, 0, 0, 123456)
    made = [log.append(CHECKPOINT if n % 3 else CHANGE, now + timedelta(seconds=n), n, 2) for n in range(6)]
    parts = encode(made, log.next)
    assert [part.sequence for part in parts] == [20, 21]
    for part in parts:
        assert part.end - part.start == len(part.data) and part.start % 512 == 0
        assert {byte & 0xC0 for byte in part.data[::512]} == {part.parity}
    assert parts[0].parity != parts[1].parity
    assert [record for part in parts for record in decode(part.data)] == made
    damaged = bytearray(parts[0].data)
    damaged[20] ^= 1
    with pytest.raises(MtfError):
        list(decode(damaged))
    (empty,) = encode([], 7)
    assert empty.start == empty.end and not empty.data


# ---- backups


def test_a_differential_holds_what_changed_since_the_last_full_one(engine: Engine) -> None:
    full = back_up(engine, "DATABASE db")
    engine.change("db", 8, 8)
    engine.change("db", 100, 20)  # pages 100 to 119: extents 12 to 14
    one = back_up(engine, "DATABASE db", "WITH DIFFERENTIAL")
    engine.change("db", 200)
    two = back_up(engine, "DATABASE db", "WITH DIFFERENTIAL, COPY_ONLY")
    base, first, second = (info_of(streams[0]) for streams in (full, one, two))
    assert [info.configuration.kind for info in (base, first, second)] == ["D", "I", "I"]
    assert [info.pages for info in (base, first, second)] == [256, 5 * 8, 6 * 8]  # and always the first extent
    for info in (first, second):
        assert info.configuration.base_guid == base.set_guid
        assert info.configuration.base_lsn == base.configuration.first_lsn == info.configuration.database_lsn
    assert first.configuration.last_lsn <= second.configuration.first_lsn
    again = back_up(engine, "DATABASE db")  # a new base: nothing has changed since
    third = info_of(back_up(engine, "DATABASE db", "WITH DIFFERENTIAL")[0])
    assert third.pages == 8 and third.configuration.base_guid == info_of(again[0]).set_guid


def test_a_differential_needs_a_full_one_that_was_no_copy(engine: Engine) -> None:
    assert refused(engine, "DATABASE db", "WITH DIFFERENTIAL") == [3035]
    back_up(engine, "DATABASE db", "WITH COPY_ONLY")
    assert refused(engine, "DATABASE db", "WITH DIFFERENTIAL") == [3035]
    full = back_up(engine, "DATABASE db")
    engine.change("db", 8)
    back_up(engine, "DATABASE db", "WITH COPY_ONLY")
    kept = info_of(back_up(engine, "DATABASE db", "WITH DIFFERENTIAL")[0])
    assert kept.configuration.base_guid == info_of(full[0]).set_guid and kept.pages == 16


def test_log_backups_follow_one_another(engine: Engine) -> None:
    full = info_of(back_up(engine, "DATABASE db")[0]).configuration
    engine.change("db", 0)
    first = info_of(back_up(engine, "LOG db")[0]).configuration
    engine.change("db", 8)
    copy = info_of(back_up(engine, "LOG db", "WITH COPY_ONLY")[0]).configuration
    second = info_of(back_up(engine, "LOG db")[0]).configuration
    third = info_of(back_up(engine, "LOG db")[0]).configuration  # nothing was logged meanwhile
    assert first.first_lsn == full.first_lsn and first.extra["begins_chain"]
    assert copy.first_lsn == second.first_lsn == first.last_lsn and not second.extra["begins_chain"]
    assert copy.last_lsn == second.last_lsn, "a copy cuts nothing off the log"
    assert third.first_lsn == third.last_lsn == second.last_lsn
    assert {first.database_lsn, second.database_lsn, third.database_lsn} == {full.first_lsn}
    assert {first.recovery_fork, third.recovery_fork} == {full.recovery_fork}


def test_log_backups_need_a_recovery_model_and_a_full_backup(engine: Engine) -> None:
    assert refused(engine, "LOG simple") == [4208]
    assert refused(engine, "LOG db") == [4214]
    back_up(engine, "DATABASE db", "WITH COPY_ONLY")
    assert refused(engine, "LOG db") == [4214]
    back_up(engine, "DATABASE db")
    back_up(engine, "LOG db")
    engine.set_recovery_model("db", "SIMPLE")
    assert refused(engine, "LOG db") == [4208]
    engine.set_recovery_model("db", "FULL")
    assert refused(engine, "LOG db") == [4214], "the chain ended with the simple model"
    engine.set_recovery_model("simple", "BULK_LOGGED")
    back_up(engine, "DATABASE simple")
    back_up(engine, "LOG simple")


def test_system_databases_have_their_own_rules() -> None:
    engine = Engine({})
    assert [info.name for info in engine.databases] == ["master", "tempdb", "model", "msdb"]
    assert refused(engine, "LOG master") == [4212]
    assert refused(engine, "DATABASE master", "WITH DIFFERENTIAL") == [3024]
    assert refused(engine, "DATABASE tempdb") == [3147]
    assert refused(engine, "LOG model", "WITH NORECOVERY") == [4220]
    streams = back_up(engine, "DATABASE master")
    assert refused(engine, "DATABASE master", streams=streams) == [3108]
    assert refused(engine, "DATABASE tempdb", streams=streams) == [3147]
    back_up(engine, "DATABASE model", "WITH COPY_ONLY")


def test_a_backup_that_fails_cuts_off_nothing_and_is_no_base(engine: Engine) -> None:
    back_up(engine, "DATABASE db")
    engine.change("db", 8)

    def fails(number: int, command: Command) -> None:
        if command.code == CommandCode.FLUSH:
            command.complete(CompletionCode.DISK_FULL)

    for what, options in (("LOG db", ""), ("DATABASE db", ""), ("LOG db", "WITH NORECOVERY")):
        with client(1, fails) as one, pytest.raises(SqlError):
            engine.execute(f"BACKUP {what} TO {one.clauses} {options}")
    assert state(engine, "db") == ("ONLINE", False)
    log = info_of(back_up(engine, "LOG db", "WITH COPY_ONLY")[0]).configuration
    differential = info_of(back_up(engine, "DATABASE db", "WITH DIFFERENTIAL")[0])
    assert differential.pages == 16 and log.first_lsn == differential.configuration.base_lsn
    assert [record.type for record in engine.history.backups] == ["D", "L", "I"]


def test_an_independent_program_counts_log_and_differential(engine: Engine, shared: Path, tmp_path: Path) -> None:
    back_up(engine, "DATABASE db", "WITH CHECKSUM")
    for number in range(2100):  # more than one virtual log file holds
        engine.change("db", 8 * (number % 20))
    files = {}
    for name, what, options in (("log", "LOG db", ""), ("diff", "DATABASE db", ", DIFFERENTIAL")):
        for block in (512, 4096):
            streams = back_up(engine, what, f"WITH CHECKSUM, COPY_ONLY, BLOCKSIZE = {block}{options}", 2)
            for number, stream in enumerate(streams):
                files[f"{name}-{block}-{number}"] = stream
    for name, stream in files.items():
        (tmp_path / name).write_bytes(stream)
    program = shared / "prototypes" / "mtf_verify.py"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", program, "--json", *(tmp_path / name for name in files)],
        capture_output=True, text=True, check=True, timeout=100,
    )  # fmt: skip
    for found in json.loads(done.stdout):
        name = found["file"]
        kind, _, family = name.split("-")
        assert (found["dblk_ok"], found["stream_ok"], found["end"]) == (found["dblk"], found["stream"], ""), name
        assert found["csum_ok"] == found["csum"] == (0 if (kind, family) == ("log", "1") else 2 if kind == "log" else 1)
        # The full backup's checkpoint, and the changes; in the first family only.
        assert found["logsec"] == (2101 if (kind, family) == ("log", "0") else 0), name
        assert found["logsec_ok"] == found["logsec"], name
        assert found["declared"][1] == (160 if kind == "diff" else 0)
        assert found["pages"].get("ck_ok", 0) == found["pages"].get("ck", 0)
        assert found["sets"][0]["cfg"]["type"] == ("L" if kind == "log" else "I")


# ---- restores


class Chain:
    """A database with full, differential and two log backups, and what it held at each of them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.held: dict[str, list[int]] = {}
        self.full = self._take("full", "DATABASE db")
        self._change(8, 1)
        self.log1 = self._take("log1", "LOG db")
        self._change(16, 2)
        self.diff = self._take("diff", "DATABASE db", "WITH DIFFERENTIAL")
        self._change(24, 3)
        self._change(32, 4)
        self.log2 = self._take("log2", "LOG db")

    def _change(self, page: int, hours: int) -> None:
        self.engine.change("db", page, at=LATER + timedelta(hours=hours))
        self.held[f"change {hours}"] = content(self.engine, "db")

    def _take(self, name: str, what: str, options: str = "") -> Streams:
        streams = back_up(self.engine, what, options)
        self.held[name] = content(self.engine, "db")
        return streams


@pytest.fixture
def chain(engine: Engine) -> Chain:
    return Chain(engine)


@pytest.fixture
def other() -> Engine:
    """A server that knows nothing of the database."""
    return Engine({})


def test_every_way_through_a_chain_leads_to_its_end(chain: Chain, other: Engine) -> None:
    ways = [
        [("DATABASE", chain.full), ("LOG", chain.log1), ("LOG", chain.log2)],
        [("DATABASE", chain.full), ("DATABASE", chain.diff), ("LOG", chain.log2)],
        [("DATABASE", chain.full), ("LOG", chain.log1), ("DATABASE", chain.diff), ("LOG", chain.log2)],
        [("DATABASE", chain.full), ("LOG", chain.log1), ("LOG", chain.log1), ("LOG", chain.log2)],
    ]
    for number, way in enumerate(ways):
        name = f"copy{number}"
        for kind, streams in way:
            restore(other, f"{kind} {name}", streams, "WITH NORECOVERY")
            assert state(other, name) == ("RESTORING", False)
        result = other.execute(f"RESTORE DATABASE {name} WITH RECOVERY") if number else None
        if result is None:
            restore(other, f"LOG {name}", chain.log2, "WITH RECOVERY")
        assert state(other, name) == ("ONLINE", False)
        assert content(other, name) == chain.held["log2"]


def test_a_restored_database_can_be_backed_up_and_goes_on_in_a_fork_of_its_own(chain: Chain, other: Engine) -> None:
    restore(other, "DATABASE copy", chain.full, "WITH NORECOVERY")
    restore(other, "LOG copy", chain.log1, "WITH RECOVERY")
    other.change("copy", 40)
    log = back_up(other, "LOG copy")
    differential = back_up(other, "DATABASE copy", "WITH DIFFERENTIAL")
    forked, original = info_of(log[0]).configuration, info_of(chain.full[0]).configuration
    assert forked.recovery_fork != original.recovery_fork and forked.family_guid == original.family_guid
    assert forked.first_lsn == info_of(chain.log1[0]).configuration.last_lsn
    assert info_of(differential[0]).configuration.base_guid == info_of(chain.full[0]).set_guid
    # Either fork leads on from the first log backup, but not from the other.
    third = Engine({})
    restore(third, "DATABASE db", chain.full, "WITH NORECOVERY")
    restore(third, "LOG db", chain.log1, "WITH NORECOVERY")
    restore(third, "LOG db", log, "WITH NORECOVERY")
    assert refused(third, "LOG db", "WITH NORECOVERY", chain.log2) == [4330]
    restore(third, "DATABASE db", differential, "WITH RECOVERY")
    assert content(third, "db") == content(other, "copy")


def test_gaps_and_what_is_behind_already(chain: Chain, other: Engine) -> None:
    restore(other, "DATABASE db", chain.full, "WITH NORECOVERY")
    with client(1, Player(chain.log2)) as one, pytest.raises(SqlError) as info:
        other.execute(f"RESTORE LOG db FROM {one.clauses}")
    begins, redo = info_of(chain.log2[0]).configuration.first_lsn, info_of(chain.full[0]).configuration.last_lsn
    printed = ["{}{:010}{:05}".format(*lsn) for lsn in (begins, redo)]
    assert info.value.messages[0].text == (
        f"The log in this backup set begins at LSN {printed[0]}, which is too recent to apply to the database. An "
        f"earlier log backup that includes LSN {printed[1]} can be restored."
    )
    assert info.value.number == 4305
    restore(other, "DATABASE db", chain.diff, "WITH NORECOVERY")
    assert refused(other, "LOG db", streams=chain.log1) == [4326]
    assert state(other, "db") == ("RESTORING", False), "a refusal changes nothing"
    restore(other, "LOG db", chain.log2)


def test_differentials_and_logs_are_for_databases_that_are_being_restored(chain: Chain, other: Engine) -> None:
    engine = chain.engine
    for what, streams in (("DATABASE", chain.diff), ("LOG", chain.log1)):
        assert refused(engine, f"{what} db", streams=streams) == [3117]
        assert refused(other, f"{what} new", streams=streams) == [3118]
    newer = back_up(engine, "DATABASE db")
    restore(other, "DATABASE db", newer, "WITH NORECOVERY")
    assert refused(other, "DATABASE db", streams=chain.diff) == [3136]
    assert refused(other, "LOG db", streams=chain.log1) == [4326]
    back_up(engine, "DATABASE simple")
    foreign = back_up(engine, "DATABASE simple", "WITH DIFFERENTIAL")
    assert refused(other, "DATABASE db", streams=foreign) == [3154]
    assert refused(other, "LOG db", streams=chain.full) == [3135]
    assert refused(other, "DATABASE db", streams=chain.log1) == [3135]


def test_a_database_is_not_overwritten_by_mistake(chain: Chain) -> None:
    engine = chain.engine
    assert refused(engine, "DATABASE db", streams=chain.full) == [3159]
    foreign = back_up(engine, "DATABASE simple")
    assert refused(engine, "DATABASE db", streams=foreign) == [3154]
    restore(engine, "DATABASE simple", foreign)  # its own, and no log that could be lost
    restore(engine, "DATABASE db", foreign, "WITH REPLACE")
    assert content(engine, "db") == content(engine, "simple")
    assert refused(engine, "LOG db") == [4208], "the recovery model came with the backup"


def test_the_tail_of_the_log_leaves_the_database_restoring(chain: Chain) -> None:
    engine = chain.engine
    engine.change("db", 48)
    held = content(engine, "db")
    tail = back_up(engine, "LOG db", "WITH NORECOVERY")
    assert state(engine, "db") == ("RESTORING", False)
    for what in ("DATABASE db", "LOG db"):
        assert refused(engine, what) == [927]
    with pytest.raises(Exception, match="927"):
        engine.change("db", 0)
    restore(engine, "DATABASE db", chain.full, "WITH NORECOVERY")  # the tail is safe: no REPLACE needed
    for streams in (chain.log1, chain.log2):
        restore(engine, "LOG db", streams, "WITH NORECOVERY")
    restore(engine, "LOG db", tail)
    assert content(engine, "db") == held and state(engine, "db") == ("ONLINE", False)
    # Or the database goes on where it was.
    back_up(engine, "LOG db", "WITH NORECOVERY")
    engine.execute("RESTORE DATABASE db WITH RECOVERY")
    assert content(engine, "db") == held
    with pytest.raises(SqlError) as info:
        engine.execute("RESTORE DATABASE db WITH RECOVERY")
    assert info.value.number == 3153


def test_nothing_is_logged_behind_the_tail(chain: Chain) -> None:
    engine, recorder, refusals = chain.engine, Recorder(1), []

    def fails(number: int, command: Command) -> None:
        with pytest.raises(DatabaseError) as info:
            engine.change("db", 0)
        refusals.append(info.value.number)
        if command.code == CommandCode.WRITE:
            recorder(number, command)
        else:
            command.complete(CompletionCode.DISK_FULL)

    with client(1, fails) as one, pytest.raises(SqlError):
        engine.execute(f"BACKUP LOG db TO {one.clauses} WITH NORECOVERY")
    assert set(refusals) == {927} and len(refusals) > 1
    engine.change("db", 0)  # it failed: the database goes on


def test_no_truncate_leaves_the_log_as_it_is(chain: Chain) -> None:
    engine = chain.engine
    engine.change("db", 0)
    kept = info_of(back_up(engine, "LOG db", "WITH NO_TRUNCATE")[0]).configuration
    assert kept.copy_only
    again = info_of(back_up(engine, "LOG db")[0]).configuration
    assert (again.first_lsn, again.last_lsn) == (kept.first_lsn, kept.last_lsn)


def test_standby_shows_the_database_between_two_logs(chain: Chain, other: Engine) -> None:
    restore(other, "DATABASE db", chain.full, "WITH STANDBY = 'undo'")
    assert state(other, "db") == ("ONLINE", True)
    assert refused(other, "DATABASE db") == [3036]
    restore(other, "LOG db", chain.log1, "WITH STANDBY = 'undo'")
    assert content(other, "db") == chain.held["log1"] and state(other, "db") == ("ONLINE", True)
    restore(other, "LOG db", chain.log2)
    assert content(other, "db") == chain.held["log2"] and state(other, "db") == ("ONLINE", False)


CODES = {3117, 3118, 3120, 3136, 4305, 4326, 4330}


@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_accepted_in_any_order_leads_to_what_was_backed_up(engine: Engine, seed: int) -> None:
    """Backups of every kind between random changes; a restore of any of them is refused or leads to its moment."""
    pick = random.Random(seed)
    backups: list[tuple[str, Streams, list[int]]] = []  # with what the database held, in their order
    for number in range(14):
        for _ in range(pick.randrange(3)):
            first = pick.randrange(256)
            engine.change("db", first, pick.randrange(1, 257 - first))
        kind, options = pick.choice(
            [("DATABASE", ""), ("DATABASE", "WITH COPY_ONLY"), ("DATABASE", "WITH DIFFERENTIAL"), ("LOG", ""),
             ("LOG", ""), ("LOG", "WITH COPY_ONLY")] if number else [("DATABASE", "")]
        )  # fmt: skip
        backups.append((kind, back_up(engine, f"{kind} db", options, pick.choice([1, 1, 2])), content(engine, "db")))
    fulls = [n for n, (_, streams, _) in enumerate(backups) if info_of(streams[0]).configuration.kind == "D"]
    for attempt in range(3):
        other = Engine({})
        reached = pick.choice(fulls)
        restore(other, "DATABASE db", backups[reached][1], "WITH NORECOVERY")
        candidates = range(reached, len(backups)) if attempt else pick.sample(range(len(backups)), len(backups))
        for number in candidates:
            kind, streams, _ = backups[number]
            if number in fulls:
                continue
            with client(len(streams), Player(streams)) as one:
                try:
                    other.execute(f"RESTORE {kind} db FROM {one.clauses} WITH NORECOVERY")
                except SqlError as error:
                    assert error.number in CODES, error
                else:
                    assert number >= reached or backups[number][2] == backups[reached][2]
                    reached = max(reached, number)
            assert content(other, "db") == backups[reached][2]
        if attempt:  # in their order: every log goes on where the one before it ended
            assert reached >= max((n for n in candidates if backups[n][0] == "LOG"), default=0)
        other.execute("RESTORE DATABASE db WITH RECOVERY")
        assert content(other, "db") == backups[reached][2]


# ---- a point in time


@pytest.mark.parametrize(
    ("hours", "held"), [(2.5, "change 2"), (3, "change 3"), (3.5, "change 3"), (9, "change 4")]
)
def test_stopat_stops_behind_what_happened_by_then(chain: Chain, other: Engine, hours: float, held: str) -> None:
    restore(other, "DATABASE db", chain.full, "WITH NORECOVERY")
    restore(other, "LOG db", chain.log1, "WITH NORECOVERY")
    stop = LATER + timedelta(hours=hours)
    result = restore(other, "LOG db", chain.log2, f"WITH STOPAT = '{stop.isoformat(timespec='seconds')}'")
    if hours == 9:  # the log ends before that: there may be more
        assert [message.number for message in result.messages][-1] == 3014
        assert 4322 in [message.number for message in result.messages]
        assert state(other, "db") == ("RESTORING", False)
        other.execute("RESTORE DATABASE db WITH RECOVERY")
    assert state(other, "db") == ("ONLINE", False)
    assert content(other, "db") == chain.held[held]


def test_points_in_time_that_cannot_be_reached(chain: Chain, other: Engine) -> None:
    past = "WITH NORECOVERY, STOPAT = '2020-01-01T00:00:00'"
    assert refused(other, "DATABASE db", past, chain.full) == [4338]
    simple = back_up(chain.engine, "DATABASE simple")
    assert refused(other, "DATABASE s", past, simple) == [3145]
    restore(other, "DATABASE db", chain.full, "WITH STOPAT = '2100-01-01T00:00:00'")
    assert state(other, "db") == ("RESTORING", False), "logs can lead there"
    assert refused(other, "LOG db", past, chain.log1) == [4335]
    assert refused(other, "DATABASE db", past, chain.diff) == [4338]


# ---- where a new database goes


def test_files_move_by_their_logical_names(chain: Chain, other: Engine) -> None:
    restore(other, "DATABASE new", chain.full, "WITH MOVE 'db' TO '/data/new.mdf', MOVE 'DB_log' TO '/data/new.ldf'")
    moved = info_of(back_up(other, "DATABASE new")[0]).configuration
    assert [file.path for file in moved.files][0] == "/data/new.mdf"
    assert refused(other, "DATABASE x", "WITH MOVE 'nothing' TO '/a'", chain.full) == [3234]
    assert refused(other, "DATABASE x", "WITH MOVE 'db' TO '/a', MOVE 'DB' TO '/b'", chain.full) == [4353]
    assert other.catalog.get("x") is None


def test_a_sqlite_database_is_created_where_it_is_moved_to(tmp_path: Path) -> None:
    path, copy = tmp_path / "a.db", tmp_path / "copy.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE t(a)")
        db.execute("INSERT INTO t VALUES(42)")
        db.commit()
    engine = Engine({"a": Sqlite(str(path))})
    streams = back_up(engine, "DATABASE a")
    assert refused(engine, "DATABASE b", streams=streams) == [1834, 3156, 3119]
    assert refused(engine, "DATABASE b", f"WITH MOVE 'a' TO '{tmp_path}/none/b.db'", streams) == [5133, 3156, 3119]
    restore(engine, "DATABASE b", streams, f"WITH MOVE 'a' TO '{copy}', NORECOVERY")
    assert state(engine, "b") == ("RESTORING", False)
    engine.execute("RESTORE DATABASE b WITH RECOVERY")
    with contextlib.closing(sqlite3.connect(copy)) as db:
        assert db.execute("SELECT a FROM t").fetchall() == [(42,)]
    assert refused(Engine({}), "DATABASE c", f"WITH MOVE 'a' TO '{copy}'", streams) == [3142]
    assert [info.path for info in engine.databases if info.name == "b"] == [str(copy)]
    assert refused(engine, "DATABASE b", "WITH DIFFERENTIAL") == [3032]
    back_up(engine, "DATABASE b")


# ---- who else is there


def test_a_database_that_sessions_use_is_not_restored(chain: Chain) -> None:
    engine = chain.engine

    class Ear:
        def __init__(self) -> None:
            self.numbers: list[int] = []

        def message(self, message) -> None:
            self.numbers.append(message.number)

        def columns(self, columns) -> None: ...

        def row(self, values) -> None: ...

        def done(self, count) -> None: ...

    own = Session(engine, database="db")
    try:
        ear = Ear()
        own.run("RESTORE DATABASE db FROM VIRTUAL_DEVICE = 'none' WITH REPLACE", ear)
        assert ear.numbers == [3102, 3013]
        assert refused(engine, "DATABASE db", "WITH REPLACE", chain.full) == [3101]
        assert refused(engine, "LOG db", "WITH NORECOVERY") == [3101]
        back_up(engine, "LOG db")
    finally:
        own.close()
    restore(engine, "DATABASE db", chain.full, "WITH REPLACE")


def test_damage_while_restoring_leaves_the_database_as_it_was(chain: Chain, other: Engine) -> None:
    restore(other, "DATABASE db", chain.full, "WITH NORECOVERY")
    before = content(other, "db")
    damaged = bytearray(chain.log1[0])
    damaged[damaged.index(b"vdi_ext log 1") + 40] ^= 1
    assert refused(other, "LOG db", streams=[bytes(damaged)]) == [3189]
    damaged = bytearray(chain.diff[0])
    damaged[0x1E00 + PAGE_SIZE + 500] ^= 1
    assert refused(other, "DATABASE db", streams=[bytes(damaged)]) == [3183]
    assert content(other, "db") == before and state(other, "db") == ("RESTORING", False)
    for streams in (chain.log1, chain.log2):
        restore(other, "LOG db", streams, "WITH NORECOVERY")
    assert content(other, "db") == chain.held["log2"]


# ---- msdb


def test_every_backup_and_restore_is_remembered(chain: Chain, other: Engine) -> None:
    copy = back_up(
        chain.engine, "LOG db",
        "WITH COPY_ONLY, CHECKSUM, NAME = 'n', DESCRIPTION = 'd', MEDIANAME = 'm', MEDIADESCRIPTION = 'md'", 2,
    )  # fmt: skip
    records = chain.engine.history.backups
    assert [record.type for record in records] == ["D", "L", "I", "L", "L"]
    streams = (chain.full, chain.log1, chain.diff, chain.log2, copy)
    for record, stream in zip(records, streams, strict=True):
        info = info_of(stream[0])
        found = info.configuration
        assert record.set_guid == uuid.UUID(bytes_le=info.set_guid)
        assert record.media_guid == uuid.UUID(bytes_le=info.media_guid)
        assert (record.first_lsn, record.last_lsn, record.checkpoint_lsn) == (
            found.first_lsn, found.last_lsn, found.checkpoint_lsn,
        )  # fmt: skip
        assert record.last_fork == uuid.UUID(bytes_le=found.recovery_fork) == record.first_fork
        assert record.family_guid == uuid.UUID(bytes_le=found.family_guid)
        assert record.recovery_model == "FULL" and record.database == "db"
        assert record.started <= record.finished
    assert records[2].differential_base_guid == records[0].set_guid
    assert records[1].begins_log_chain and not records[3].begins_log_chain
    last = records[-1]
    assert last.is_copy_only and last.has_checksums and len(last.devices) == 2
    assert (last.name, last.description, last.media_name, last.media_description) == ("n", "d", "m", "md")
    restore(other, "DATABASE db", chain.full, "WITH NORECOVERY")
    restore(other, "LOG db", chain.log1, "WITH RECOVERY")
    assert [(record.type, record.recovery, record.set_guid) for record in other.history.restores] == [
        ("D", False, records[0].set_guid), ("L", True, records[1].set_guid),
    ]  # fmt: skip


def test_a_history_that_cannot_be_written_does_not_undo_the_backup(engine: Engine) -> None:
    class Broken:
        backups = restores = ()

        def record(self, record) -> None:
            raise OSError("disk full")

    engine.history = Broken()  # type: ignore[assignment]
    with client(1, Recorder(1)) as one:
        result = engine.execute(f"BACKUP DATABASE db TO {one.clauses}")
    assert [message.number for message in result.messages] == [3009, 4035, 4035, 3014]
    engine.change("db", 0)
    back_up(engine, "LOG db")


def test_the_error_log_tells_the_kinds_apart(chain: Chain, other: Engine) -> None:
    assert [entry.number for entry in chain.engine.error_log] == [18264, 18265, 18270, 18265]
    restore(other, "DATABASE db", chain.full, "WITH NORECOVERY")
    restore(other, "DATABASE db", chain.diff, "WITH NORECOVERY")
    result = restore(other, "LOG db", chain.log2)
    assert [entry.number for entry in other.error_log] == [18267, 18271, 18268]
    assert result.messages[-1].text.startswith("RESTORE LOG successfully processed 1 pages in ")
