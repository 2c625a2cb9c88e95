"""RESTORE HEADERONLY, FILELISTONLY, LABELONLY and VERIFYONLY, on real backups and on those of the stand-in.

Columns and their types are those of the documentation for SQL Server 2022; values of real backups are those that were
measured in the files.
"""

from __future__ import annotations

import contextlib
import random
import uuid
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pytest
from engine_clients import DONE, Player, Recorder, client
from engine_statements import back_up, refused, restore

from vdi_ext import Command, CommandCode, CompletionCode, Feature
from vdi_ext.engine import Engine, SqlError, Synthetic
from vdi_ext.engine.looking import FILE_COLUMNS, HEADER_COLUMNS, file_row, fitted, header_row
from vdi_ext.engine.session import Session
from vdi_ext.mtf import BackupSet, DatabaseFile, FamilyInfo, FamilyReader, FamilyWriter, MediaSet, MtfError
from vdi_ext.mtf.blocks import filemark

# Database version, first, last, checkpoint and database backup LSN; type, checksum; of the README and the files.
REAL = {
    "01_full_checksum_2008r2.bak": (
        1, 22000000032600037, 22000000034200001, 22000000032600037, 21000000014700037, 1, 16,
        datetime(2017, 5, 18, 4, 17, 38), "db2",
    ),
    "02_diff_checksum_2008r2.bak": (
        5, 22000000034900034, 22000000036400001, 22000000034900034, 22000000032600037, 1, 16,
        datetime(2017, 5, 18, 4, 18, 19), "db2",
    ),
    "03_log_checksum_2vlf_2008r2.trn": (
        2, 322000000010200038, 323000000014800001, 323000000014600001, 323000000010200038, 1, 16,
        datetime(2017, 5, 18, 4, 18, 31), "db1",
    ),
    "04_chain_full_2008r2.bak": (
        1, 21000000015900037, 21000000017500001, 21000000015900037, 21000000011400037, 0, 0,
        datetime(2018, 7, 2, 8, 17, 41), "OlaMsFilterTest",
    ),
    "06_chain_log_empty_2008r2.trn": (
        2, 21000000018200001, 21000000018200001, 21000000015900037, 21000000015900037, 0, 0,
        datetime(2018, 7, 2, 8, 17, 42), "OlaMsFilterTest",
    ),
    "12_full_mediapassword_2008r2.bak": (
        1, 20000000033800037, 20000000035400001, 20000000033800037, 20000000018800043, 0, 0,
        datetime(2020, 10, 3, 15, 34, 48), "stripetest",
    ),
}  # fmt: skip
WHOLE = {  # and which families belong together
    "01_full_checksum_2008r2.bak", "02_diff_checksum_2008r2.bak", "03_log_checksum_2vlf_2008r2.trn",
    "04_chain_full_2008r2.bak", "05_chain_log_2008r2.trn", "06_chain_log_empty_2008r2.trn", "07_chain_diff_2008r2.bak",
    "12_full_mediapassword_2008r2.bak",
    ("08_stripe1of2_full_2008r2.bak", "09_stripe2of2_full_2008r2.bak"),
    ("10_stripe1of2_log_2008r2.trn", "11_stripe2of2_log_2008r2.trn"),
}  # fmt: skip


@pytest.fixture
def engine() -> Engine:
    return Engine({"db": Synthetic(2 << 20, 5, "FULL")}, server_name="server")


def rows_of(engine: Engine, kind: str, streams: list[bytes], options: str = "") -> list[dict[str, object]]:
    result = restore(engine, kind, streams, options)
    assert result.messages == ()
    names = [column.name for column in result.columns]
    assert all(len(row) == len(names) for row in result.rows)
    return [dict(zip(names, row, strict=True)) for row in result.rows]


# ---- HEADERONLY


@pytest.mark.parametrize("name", sorted(REAL))
def test_headers_of_real_backups(engine: Engine, bak: Path, name: str) -> None:
    kind, first, last, checkpoint, database_lsn, checksum, flag, started, database = REAL[name]
    (row,) = rows_of(engine, "HEADERONLY", [(bak / name).read_bytes()])
    assert (row["BackupType"], row["DatabaseName"], row["BackupStartDate"]) == (kind, database, started)
    assert [row[name] for name in ("FirstLSN", "LastLSN", "CheckpointLSN")] == [
        Decimal(number) for number in (first, last, checkpoint)
    ]
    assert row["DatabaseBackupLSN"] == database_lsn
    assert (row["HasBackupChecksums"], row["Flags"] & 16) == (checksum, flag)  # type: ignore[operator]
    assert row["BackupFinishDate"] >= started  # type: ignore[operator]
    assert (row["SoftwareVersionMajor"], row["SoftwareVersionMinor"], row["SoftwareVendorId"]) == (10, 50, 4608)
    assert (row["DatabaseVersion"], row["CompatibilityLevel"], row["Position"], row["DeviceType"]) == (661, 100, 1, 7)
    assert (row["UnicodeLocaleId"], row["UnicodeComparisonStyle"]) == (1033, 196609)
    assert (row["IsCopyOnly"], row["IsSnapshot"], row["IsDamaged"], row["IsForceOffline"]) == (0, 0, 0, 0)
    assert row["RecoveryModel"] is None, "where the stream has it is not known"
    assert row["BackupTypeDescription"] == {1: "Database", 2: "Transaction Log", 5: "Database Differential"}[kind]


def test_a_real_differential_names_its_base(engine: Engine, bak: Path) -> None:
    (base,) = rows_of(engine, "HEADERONLY", [(bak / "01_full_checksum_2008r2.bak").read_bytes()])
    (row,) = rows_of(engine, "HEADERONLY", [(bak / "02_diff_checksum_2008r2.bak").read_bytes()])
    assert base["BackupSetGUID"] == uuid.UUID("1604d529-b5bb-481a-80e1-fdc4cc312de8") == row["DifferentialBaseGUID"]
    assert row["DifferentialBaseLSN"] == base["FirstLSN"]
    assert base["DifferentialBaseLSN"] is base["DifferentialBaseGUID"] is None
    for name in ("BindingID", "RecoveryForkID", "FamilyGUID", "FirstRecoveryForkID"):
        assert base[name] == row[name] is not None


def test_headers_have_the_documented_columns(engine: Engine) -> None:
    columns = restore(engine, "HEADERONLY", back_up(engine, "DATABASE db")).columns
    assert len(columns) == 59
    types = {column.name: str(column.type) for column in columns}
    documented = {
        "BackupName": "nvarchar(128)", "BackupDescription": "nvarchar(255)", "BackupType": "smallint",
        "ExpirationDate": "datetime", "Position": "smallint", "DeviceType": "tinyint", "DatabaseVersion": "int",
        "BackupSize": "numeric(20,0)", "FirstLSN": "numeric(25,0)", "CompatibilityLevel": "tinyint", "Flags": "int",
        "BindingID": "uniqueidentifier", "IsCopyOnly": "bit", "RecoveryModel": "nvarchar(60)",
        "CompressedBackupSize": "bigint", "Containment": "tinyint", "EncryptorThumbprint": "varbinary(20)",
    }  # fmt: skip
    assert {name: types[name] for name in documented} == documented
    assert [column.name for column in columns][-3:] == ["LastValidRestoreTime", "TimeZone", "CompressionAlgorithm"]


def test_what_a_backup_was_told_is_in_its_header(engine: Engine) -> None:
    told = (
        "WITH NAME = 'näme', DESCRIPTION = 'what', MEDIANAME = 'medium', MEDIADESCRIPTION = 'more', CHECKSUM, "
        "COPY_ONLY, EXPIREDATE = '2031-02-03T04:05:06', FORMAT, STATS = 50, CONTINUE_AFTER_ERROR"
    )
    streams = back_up(engine, "DATABASE db", told)
    (row,) = rows_of(engine, "HEADERONLY", streams, "WITH MEDIANAME = 'medium'")
    assert (row["BackupName"], row["BackupDescription"]) == ("näme", "what")
    assert row["ExpirationDate"] == datetime(2031, 2, 3, 4, 5, 6)
    assert (row["IsCopyOnly"], row["HasBackupChecksums"], row["Flags"]) == (1, 1, 512 + 1024 + 16)
    assert (row["DatabaseName"], row["ServerName"], row["RecoveryModel"]) == ("db", "server", "FULL")
    assert row["RecoveryForkID"] == row["FirstRecoveryForkID"] == row["FamilyGUID"] != row["BindingID"]
    assert row["BackupSize"] == 2 << 20 == row["CompressedBackupSize"]
    record = engine.history.backups[-1]
    assert row["BackupSetGUID"] == record.set_guid
    (label,) = rows_of(engine, "LABELONLY", streams)
    assert (label["MediaName"], label["MediaDescription"]) == ("medium", "more")
    assert refused(engine, "HEADERONLY", "WITH MEDIANAME = 'other'", streams) == [4037]
    assert refused(engine, "DATABASE db", "WITH REPLACE, MEDIANAME = 'other'", streams) == [4037]


def test_a_log_says_where_its_chain_begins_and_where_it_forked(engine: Engine) -> None:
    full = back_up(engine, "DATABASE db")
    engine.change("db")
    first = back_up(engine, "LOG db")
    engine.change("db")
    tail = back_up(engine, "LOG db", "WITH NORECOVERY")
    rows = [rows_of(engine, "HEADERONLY", streams)[0] for streams in (full, first, tail)]
    assert [row["BeginsLogChain"] for row in rows] == [0, 1, 0]
    assert [(row["IsForceOffline"], row["Flags"]) for row in rows] == [(0, 512), (0, 512), (1, 512 + 64 + 256)]
    assert rows[2]["FirstLSN"] == rows[1]["LastLSN"]
    restore(engine, "DATABASE db", full, "WITH NORECOVERY")
    restore(engine, "LOG db", first, "WITH RECOVERY")
    engine.change("db")
    (forked,) = rows_of(engine, "HEADERONLY", back_up(engine, "LOG db"))
    assert forked["FirstRecoveryForkID"] == rows[1]["RecoveryForkID"] != forked["RecoveryForkID"]
    assert forked["ForkPointLSN"] == rows[1]["LastLSN"] == forked["FirstLSN"]
    assert all(row["ForkPointLSN"] is None for row in rows)


def test_a_compressed_backup_is_looked_into(engine: Engine, bak: Path) -> None:
    stream = [(bak / "22_full_compressed_2016.bak").read_bytes()]
    (row,) = rows_of(engine, "HEADERONLY", stream)
    assert (row["DatabaseName"], row["BackupType"], row["Compressed"]) == ("TutorialDB", 1, 1)
    assert [row[f"SoftwareVersion{part}"] for part in ("Major", "Minor", "Build")] == [13, 0, 1708]
    assert row["CompressedBackupSize"] is None and row["BackupSize"] == 2897920
    (label,) = rows_of(engine, "LABELONLY", stream)
    assert (label["IsCompressed"], label["FamilyCount"]) == (1, 1)
    data, log = rows_of(engine, "FILELISTONLY", stream)
    assert (data["LogicalName"], data["BackupSizeInBytes"], log["LogicalName"]) == (
        "TutorialDB", 344 * 8192, "TutorialDB_log",
    )  # fmt: skip
    result = restore(engine, "VERIFYONLY", stream)
    assert [message.number for message in result.messages] == [3262]
    damaged = bytearray(stream[0])
    damaged[200_000] ^= 1
    assert refused(engine, "VERIFYONLY", streams=[bytes(damaged)]) == [3189]
    assert refused(engine, "VERIFYONLY", streams=[stream[0][:300_000]]) == [3256]


# ---- FILELISTONLY


def test_file_lists_of_real_backups(engine: Engine, bak: Path) -> None:
    data, log = rows_of(engine, "FILELISTONLY", [(bak / "01_full_checksum_2008r2.bak").read_bytes()])
    assert (data["LogicalName"], data["Type"], data["FileGroupName"], data["FileId"], data["FileGroupId"]) == (
        "FullRecoveryModel", "D", "PRIMARY", 1, 1,
    )  # fmt: skip
    assert str(data["PhysicalName"]).endswith(".mdf") and str(log["PhysicalName"]).endswith(".ldf")
    assert (data["Size"], data["MaxSize"], log["Size"], log["MaxSize"]) == (3145728, 35184372080640, 1048576, 2 << 40)
    assert (data["BackupSizeInBytes"], data["SourceBlockSize"], data["CreateLSN"]) == (168 * 8192, 512, 0)
    assert (log["LogicalName"], log["Type"], log["FileGroupName"], log["FileId"]) == (
        "FullRecoveryModel_log", "L", None, 2,
    )  # fmt: skip
    assert data["UniqueId"] == uuid.UUID("e9e4027d-db2b-4e19-9927-fa0cbe83c515")
    assert (data["IsReadOnly"], data["IsPresent"], data["DifferentialBaseGUID"]) == (0, 1, None)
    three = rows_of(engine, "FILELISTONLY", [(bak / "03_log_checksum_2vlf_2008r2.trn").read_bytes()])
    assert [(row["LogicalName"], row["FileId"]) for row in three] == [("db1", 1), ("db1_1", 3), ("db1_log", 2)]
    assert three[1]["CreateLSN"] == 21000000005300002
    base = uuid.UUID("1604d529-b5bb-481a-80e1-fdc4cc312de8")
    data, log = rows_of(engine, "FILELISTONLY", [(bak / "02_diff_checksum_2008r2.bak").read_bytes()])
    assert data["DifferentialBaseGUID"] == base and data["DifferentialBaseLSN"] == 22000000032600037
    assert data["BackupSizeInBytes"] == 32 * 8192


def test_a_file_list_needs_the_beginning_only(engine: Engine) -> None:
    """So does a client that has no more to give than the first 64 KiB."""
    stream = back_up(engine, "DATABASE db")[0]
    asked = 0

    def play(number: int, command: Command) -> None:
        nonlocal asked
        if command.code == CommandCode.READ:
            with memoryview(command) as view:
                view[:] = stream[asked : asked + len(view)]
            asked += command.size
            command.complete(CompletionCode.SUCCESS, command.size)
        elif command.code in DONE:
            command.complete()

    for kind in ("FILELISTONLY", "LABELONLY"):
        asked = 0
        with client(1, play, Feature.LIKE_PIPE) as one:
            result = engine.execute(f"RESTORE {kind} FROM {one.clauses}")
        assert one.errors == [] and asked < 65536
        assert result.rows[0][0] in ("db", None)


def test_file_lists_name_where_files_were_moved_to(engine: Engine) -> None:
    streams = back_up(engine, "DATABASE db")
    restore(engine, "DATABASE other", streams, "WITH MOVE 'db' TO '/data/other.mdf'")
    data, log = rows_of(engine, "FILELISTONLY", back_up(engine, "DATABASE other"))
    assert (data["LogicalName"], data["PhysicalName"], log["LogicalName"]) == ("db", "/data/other.mdf", "db_log")
    assert len(restore(engine, "FILELISTONLY", streams).columns) == 22


# ---- LABELONLY


def test_labels_of_real_media(engine: Engine, bak: Path) -> None:
    names = ("08_stripe1of2_full_2008r2.bak", "09_stripe2of2_full_2008r2.bak")
    one, two = (rows_of(engine, "LABELONLY", [(bak / name).read_bytes()])[0] for name in names)
    assert one["MediaSetId"] == two["MediaSetId"] == uuid.UUID("dba99816-9a6c-4ab6-b68c-76b2a726823d")
    assert [(row["FamilyCount"], row["FamilySequenceNumber"]) for row in (one, two)] == [(2, 1), (2, 2)]
    assert one["MediaFamilyId"] == uuid.UUID("62f92839-0000-0000-0000-000000000000")
    assert (one["SoftwareName"], one["SoftwareVendorId"], one["MediaSequenceNumber"]) == (
        "Microsoft SQL Server", 4608, 1,
    )  # fmt: skip
    assert one["MediaDate"] == datetime(2017, 12, 15, 12, 46, 53)
    assert (one["MediaName"], one["MirrorCount"], one["IsCompressed"]) == (None, 1, 0)
    columns = restore(engine, "LABELONLY", [(bak / names[0]).read_bytes()]).columns
    assert [column.name for column in columns][:3] == ["MediaName", "MediaSetId", "FamilyCount"] and len(columns) == 13


def test_options_mean_something_or_are_refused(engine: Engine) -> None:
    streams = back_up(engine, "DATABASE db")
    for kind in ("HEADERONLY", "FILELISTONLY", "LABELONLY", "VERIFYONLY"):
        assert refused(engine, kind, "WITH CHECKSUM", streams) == [3187]
    assert refused(engine, "VERIFYONLY", "WITH MOVE 'nothing' TO '/a'", streams) == [3234]
    restore(engine, "VERIFYONLY", streams, "WITH MOVE 'db' TO '/a'")
    for option in ("REPLACE", "FILE = 2", "STOPAT = '2030-01-01'", "MOVE 'db' TO '/a'"):
        with pytest.raises(SqlError) as info:
            engine.execute(f"RESTORE DATABASE db WITH {option}, RECOVERY")
        assert info.value.number == 3032


def test_these_take_one_device(engine: Engine) -> None:
    streams = back_up(engine, "DATABASE db", devices=2)
    for kind in ("HEADERONLY", "FILELISTONLY", "LABELONLY"):
        assert refused(engine, kind, streams=streams) == [3205]
        assert rows_of(engine, kind, streams[1:])


# ---- several sets


@pytest.fixture
def two_sets() -> bytes:
    """A medium with two backup sets behind one another."""
    files = (DatabaseFile(1, "d", "/d", 65536, 0), DatabaseFile(2, "l", "/l", 0, 0, is_log=True))
    media, start, marks, stream = MediaSet(bytes(range(16)), 1), 0, (), b""
    for number in (1, 2):
        backup = BackupSet(
            bytes([number] * 16), f"database{number}", "s", "m", "u", files, datetime(2024, 1, number),
            datetime(2024, 2, number), kind="L", name=f"set {number}", number=number,
        )  # fmt: skip
        writer = FamilyWriter(media, backup, 1, 0, start, marks)
        stream += writer.begin() + writer.end(datetime(2024, 3, number))
        start, last = len(stream), filemark((), 512)[:4]
        place, found = stream.find(last), []
        while place >= 0:
            found.append(place)
            place = stream.find(last, place + 1)
        marks = tuple(reversed(found))
    return stream


def test_every_set_of_a_medium_has_a_row(engine: Engine, two_sets: bytes) -> None:
    rows = rows_of(engine, "HEADERONLY", [two_sets])
    assert [(row["Position"], row["DatabaseName"], row["BackupName"]) for row in rows] == [
        (1, "database1", "set 1"), (2, "database2", "set 2"),
    ]  # fmt: skip
    assert [row["BackupFinishDate"] for row in rows] == [datetime(2024, 3, 1), datetime(2024, 3, 2)]
    (only,) = rows_of(engine, "HEADERONLY", [two_sets], "WITH FILE = 2")
    assert only["Position"] == 2
    # The unused rest of a medium is no set.
    assert len(rows_of(engine, "HEADERONLY", [two_sets + bytes(5120)])) == 2
    for kind in ("HEADERONLY", "FILELISTONLY", "VERIFYONLY"):
        assert refused(engine, kind, "WITH FILE = 3", [two_sets]) == [4038]
    result = restore(engine, "VERIFYONLY", [two_sets], "WITH FILE = 2")
    assert [message.text for message in result.messages] == ["The backup set on file 2 is valid."]


def test_headers_that_lie_make_rows_of_the_right_types_or_errors(two_sets: bytes) -> None:
    """What a client sends may be anything; what a session gets must fit its columns."""
    pick = random.Random(1)
    places = [place for place in range(len(two_sets)) if two_sets.startswith(b"SCIN", place)]
    length = two_sets.index(b"SPAD", places[0]) - places[0]
    limits = {"tinyint": 255, "smallint": 2**15 - 1, "int": 2**31 - 1, "bigint": 2**63 - 1, "bit": 1}
    made = 0
    for _ in range(1500):
        data = bytearray(two_sets)
        for _ in range(pick.randrange(1, 12)):
            at, value = pick.randrange(8, length), pick.choice([0, 1, 0x7F, 0xFF, pick.randrange(256)])
            for place in places[:2]:  # the copy at the end says the same
                data[place + at] = value
        infos: list[FamilyInfo] = []
        reader = FamilyReader(512, lambda info: None, lambda pages: None, None, infos.append)
        with contextlib.suppress(MtfError):
            reader.feed(memoryview(data))
        for info in infos:
            assert info.configuration is not None
            headers = fitted(HEADER_COLUMNS, [header_row(info)])
            files = fitted(FILE_COLUMNS, [file_row(file, info.configuration) for file in info.configuration.files])
            for columns, rows in ((HEADER_COLUMNS, headers), (FILE_COLUMNS, files)):
                for row in rows:
                    for column, value in zip(columns, row, strict=True):
                        kind = column.type.name
                        if isinstance(value, int):
                            assert 0 <= value <= limits[kind], column
                        elif isinstance(value, str):
                            assert kind in ("nvarchar", "char") and len(value) <= column.type.size
                        elif isinstance(value, Decimal):
                            assert kind == "numeric" and value < 10**column.type.precision
                        elif value is not None:
                            assert (type(value), kind) in ((datetime, "datetime"), (uuid.UUID, "uniqueidentifier"))
            made += 1
    assert made > 300


# ---- VERIFYONLY


@pytest.mark.parametrize("names", sorted(WHOLE, key=str), ids=str)
def test_real_backups_are_valid(engine: Engine, bak: Path, names: str | tuple[str, ...]) -> None:
    streams = [(bak / name).read_bytes() for name in ((names,) if isinstance(names, str) else names)]
    result = restore(engine, "VERIFYONLY", streams)
    assert [(message.number, message.text) for message in result.messages] == [
        (3262, "The backup set on file 1 is valid."),
    ]  # fmt: skip


def test_damage_to_real_backups_is_found(engine: Engine, bak: Path) -> None:
    log = bytearray((bak / "03_log_checksum_2vlf_2008r2.trn").read_bytes())
    log[0x2200 + 70_000] ^= 4  # in what CSUM covers
    assert refused(engine, "VERIFYONLY", streams=[bytes(log)]) == [3189]
    full = bytearray((bak / "04_chain_full_2008r2.bak").read_bytes())
    full[0x2200 + 8192 * 16 + 5000] ^= 4  # no backup checksum, but that of the page
    assert refused(engine, "VERIFYONLY", streams=[bytes(full)]) == [3183]
    assert refused(engine, "VERIFYONLY", "WITH CHECKSUM", [bytes(full)]) == [3187]
    with client(1, Player([bytes(full[:100_000])])) as one, pytest.raises(SqlError) as info:
        engine.execute(f"RESTORE VERIFYONLY FROM {one.clauses}")
    assert [error.number for error in info.value.errors] == [3256, 3013]
    assert info.value.errors[-1].text == "VERIFY DATABASE is terminating abnormally."
    stripe = (bak / "08_stripe1of2_full_2008r2.bak").read_bytes()
    assert refused(engine, "VERIFYONLY", streams=[stripe]) == [3132]


def test_verifying_reads_all_and_says_so_in_the_history_if_asked(engine: Engine) -> None:
    streams = back_up(engine, "DATABASE db", "WITH CHECKSUM", 3)
    result = restore(engine, "VERIFYONLY", streams, "WITH CHECKSUM, STATS = 50, LOADHISTORY")
    assert [message.number for message in result.messages] == [3211, 3211, 3262]
    (record,) = engine.history.restores
    assert (record.type, record.database) == ("V", "db")
    with pytest.raises(SqlError) as info:
        engine.execute("RESTORE VERIFYONLY FROM VIRTUAL_DEVICE = 'a' WITH CONTINUE_AFTER_ERROR")
    assert info.value.number == 3032


# ---- over a session


def test_a_session_gets_a_result_set(engine: Engine) -> None:
    streams = back_up(engine, "DATABASE db")
    heard: list[tuple[str, object]] = []

    class Ear:
        def message(self, message) -> None:
            heard.append(("message", message.number))

        def columns(self, columns) -> None:
            heard.append(("columns", len(columns)))

        def row(self, values) -> None:
            heard.append(("row", values[0]))

        def done(self, count) -> None:
            heard.append(("done", count))

    session, recorder = Session(engine, login="operator"), Recorder(1)
    try:
        with client(1, Player(streams)) as one:
            session.run(f"RESTORE FILELISTONLY FROM {one.clauses}", Ear())
        assert heard == [("columns", 22), ("row", "db"), ("row", "db_log"), ("done", 2)]
        with client(1, recorder) as one:
            session.run(f"BACKUP DATABASE db TO {one.clauses}", Ear())
    finally:
        session.close()
    (row,) = rows_of(engine, "HEADERONLY", [bytes(recorder.streams[0])])
    assert row["UserName"] == "operator" == engine.history.backups[-1].user
