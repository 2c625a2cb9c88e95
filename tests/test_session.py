"""Sessions: batches, their errors, BACKUP and RESTORE in them, cancelling and killing."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest
from engine_clients import Player, Recorder, client

from vdi_ext import Command, CommandCode
from vdi_ext.engine import Engine, Message, Sqlite, Synthetic
from vdi_ext.engine.catalog import entry_of
from vdi_ext.engine.session import Column, Session


class Heard:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.events: list[tuple] = []

    def message(self, message: Message) -> None:
        self.events.append(("message", message))

    def columns(self, columns: tuple[Column, ...]) -> None:
        self.events.append(("columns", columns))

    def row(self, values: tuple[object, ...]) -> None:
        self.events.append(("row", values))

    def done(self, count: int | None) -> None:
        self.events.append(("done", count))

    @property
    def messages(self) -> list[Message]:
        return [event[1] for event in self.events if event[0] == "message"]

    @property
    def numbers(self) -> list[int]:
        return [message.number for message in self.messages]

    @property
    def rows(self) -> list[tuple]:
        return [event[1] for event in self.events if event[0] == "row"]

    @property
    def shape(self) -> list[str]:
        return [event[0] for event in self.events]


@pytest.fixture
def engine() -> Engine:
    return Engine({"sales": Synthetic(1 << 20), "other": Synthetic(1 << 20)}, server_name="STANDIN")


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    session = Session(engine)
    yield session
    session.close()


def run(session: Session, batch: str, **parameters) -> Heard:
    heard = Heard()
    session.run(batch, heard, {f"@{name}": value for name, value in parameters.items()})
    return heard


def test_a_backup_and_a_restore(session: Session) -> None:
    recorder = Recorder(2)
    with client(2, recorder) as one:
        heard = run(session, f"SET NOCOUNT ON\nBACKUP DATABASE sales TO {one.clauses} WITH STATS = 50, CHECKSUM")
    assert one.errors == []
    assert heard.shape == ["done", *["message"] * 5, "done"]
    assert heard.numbers == [3211, 3211, 4035, 4035, 3014]
    assert {message.line for message in heard.messages} == {2}
    with client(2, Player(recorder.streams)) as one:
        heard = run(session, f"RESTORE DATABASE other FROM {one.clauses} WITH REPLACE;")
    assert one.errors == []
    assert heard.numbers[-1] == 3014


def test_errors_come_as_they_happen_and_only_once(session: Session) -> None:
    heard = run(session, "BACKUP DATABASE sales TO VIRTUAL_DEVICE = 'nobody'; SET ANSI_NULLS ON")
    assert heard.numbers == [3201, 3013]
    assert heard.shape == ["message", "message", "done", "done"]


def test_a_syntax_error_anywhere_executes_nothing(session: Session) -> None:
    heard = run(session, "BEGIN TRAN; BACKUP DATABASE sales TO VIRTUAL_DEVICE = 'x' WITH FOO")
    assert heard.numbers == [155]
    assert session.transactions == 0


def test_no_backup_in_a_transaction(session: Session) -> None:
    heard = run(session, "BEGIN TRANSACTION; BACKUP LOG sales TO VIRTUAL_DEVICE = 'x'; ROLLBACK")
    assert [str(message) for message in heard.messages] == [
        "Msg 3021, Level 16, State 0: Cannot perform a backup or restore operation within a transaction.",
        "Msg 3013, Level 16, State 1: BACKUP LOG is terminating abnormally.",
    ]
    assert session.transactions == 0


def test_transactions_nest_and_roll_back_at_once(session: Session) -> None:
    run(session, "BEGIN TRAN a BEGIN TRANSACTION")
    assert session.transactions == 2
    run(session, "COMMIT TRAN")
    assert session.transactions == 1
    run(session, "BEGIN TRAN; ROLLBACK TRANSACTION")
    assert session.transactions == 0
    assert run(session, "COMMIT").numbers == [3902]
    assert run(session, "ROLLBACK WORK").numbers == [3903]


def test_the_current_database(session: Session) -> None:
    heard = run(session, "USE SALES")
    assert (session.database, heard.numbers) == ("sales", [5701])
    assert heard.messages[0].text == "Changed database context to 'sales'."
    assert run(session, "use [nothing]").numbers == [911]
    assert session.database == "sales"


@pytest.mark.parametrize(
    "batch",
    [
        # What FreeTDS, ODBC and the other drivers send when they have connected.
        "SET TEXTSIZE 64512",
        "SET QUOTED_IDENTIFIER OFF SET TEXTSIZE 2147483647 SET ANSI_DEFAULTS ON",
        "set textsize 2147483647 set quoted_identifier on set implicit_transactions off",
        "SET ARITHABORT ON;SET CONCAT_NULL_YIELDS_NULL ON;SET ANSI_NULLS ON;SET ANSI_PADDING ON;",
        "SET TRANSACTION ISOLATION LEVEL READ COMMITTED",
        "SET TRANSACTION ISOLATION LEVEL SNAPSHOT;",
        "SET LOCK_TIMEOUT -1",
        "SET NOCOUNT, XACT_ABORT ON",
        "SET DATEFORMAT mdy",
        "",
        ";;",
    ],
)
def test_settings_that_drivers_send(session: Session, batch: str) -> None:
    assert run(session, batch).messages == []


def test_an_unknown_setting(session: Session) -> None:
    (problem,) = run(session, "SET FOO ON").messages
    assert problem.text == "'FOO' is not a recognized SET option."


def test_sessions_are_numbered_and_end(engine: Engine) -> None:
    first, second = Session(engine), Session(engine)
    assert (first.spid, second.spid) == (51, 52)
    first.close()
    first.close()
    third = Session(engine)
    assert third.spid == 51
    assert engine.sessions == [second, third]
    second.close()
    third.close()
    assert engine.sessions == []


def test_cancelling_aborts_the_device_set(session: Session) -> None:
    began, heard = threading.Event(), Heard()
    released = threading.Event()

    def wait(number: int, command: Command) -> None:
        began.set()
        with memoryview(command):
            released.wait(60)
        command.complete()

    with client(1, wait) as one:
        batch = f"BACKUP DATABASE sales TO {one.clauses}; USE other"
        thread = threading.Thread(target=session.run, args=(batch, heard))
        thread.start()
        assert began.wait(60)
        session.cancel()
        released.set()
        thread.join(60)
    assert not thread.is_alive()
    assert heard.numbers == [3204, 3013]
    assert session.database == "master", "nothing more of the batch runs"
    assert run(session, "USE other").numbers == [5701], "the next batch does"


def test_a_backup_is_in_msdb_afterwards(session: Session) -> None:
    recorder = Recorder(2)
    with client(2, recorder) as one:
        run(session, f"BACKUP DATABASE sales TO {one.clauses} WITH COPY_ONLY, CHECKSUM, NAME = N'a name'")
    heard = run(
        session,
        """
        SELECT s.database_name, s.type, s.is_copy_only, s.has_backup_checksums, s.name, f.physical_device_name,
               f.device_type, s.user_name
        FROM msdb.dbo.backupset s JOIN msdb.dbo.backupmediafamily f ON f.media_set_id = s.media_set_id
        ORDER BY f.family_sequence_number
        """,
    )
    assert [row[:7] for row in heard.rows] == [("sales", "D", 1, 1, "a name", name, 7) for name in one.names]
    stored = run(session, "SELECT file_type, logical_name FROM msdb.dbo.backupfile ORDER BY file_number").rows
    assert stored == [("D", "sales"), ("L", "sales_log")]
    with client(2, Player(recorder.streams)) as one:
        assert run(session, f"RESTORE DATABASE fresh FROM {one.clauses} WITH REPLACE").numbers[-1] == 3014
    heard = run(session, "SELECT destination_database_name, restore_type, replace FROM msdb.dbo.restorehistory")
    assert heard.rows == [("fresh", "D", 1)]
    assert run(session, "SELECT DB_ID('fresh')").rows == [(7,)]


def test_the_progress_of_a_backup_is_seen_from_another_session(engine: Engine, session: Session) -> None:
    began, released, seen = threading.Event(), threading.Event(), Heard()

    def hold(number: int, command: Command) -> None:
        if command.code == CommandCode.WRITE and command.size >= 1 << 16 and not began.is_set():
            command.complete()
            began.set()
            released.wait(60)
        else:
            command.complete()

    with client(1, hold) as one:
        batch = f"BACKUP DATABASE big TO {one.clauses} WITH MAXTRANSFERSIZE = 65536"
        engine.catalog.add(entry_of(engine.catalog.next_id(), "big", Synthetic(32 << 20), engine.started))
        thread = threading.Thread(target=session.run, args=(batch, seen))
        thread.start()
        assert began.wait(60)
        other = Session(engine)
        query = "SELECT session_id, command, percent_complete FROM sys.dm_exec_requests WHERE command LIKE 'BACKUP%'"
        ((spid, command, percent),) = run(other, query).rows
        other.close()
        released.set()
        thread.join(60)
    assert (spid, command) == (session.spid, "BACKUP DATABASE")
    assert 0 <= percent < 100
    assert seen.numbers[-1] == 3014


def test_kill_ends_a_backup_and_its_session(engine: Engine, session: Session) -> None:
    began, released, heard = threading.Event(), threading.Event(), Heard()

    def wait(number: int, command: Command) -> None:
        began.set()
        with memoryview(command):
            released.wait(60)
        command.complete()

    killer = Session(engine)
    with client(1, wait) as one:
        thread = threading.Thread(target=session.run, args=(f"BACKUP DATABASE sales TO {one.clauses}", heard))
        thread.start()
        assert began.wait(60)
        assert run(killer, f"DECLARE @who int = {session.spid} KILL 49; KILL {session.spid}").numbers == [6106]
        released.set()
        thread.join(60)
    assert not thread.is_alive()
    assert heard.numbers == [3204, 3013, 596]
    session.close()
    assert run(killer, "SELECT session_id FROM sys.dm_exec_sessions").rows == [(killer.spid,)]
    killer.close()


def test_waiting_ends_when_it_is_cancelled(session: Session) -> None:
    heard = Heard()
    thread = threading.Thread(target=session.run, args=("WAITFOR DELAY '01:00:00'; PRINT 'x'", heard))
    thread.start()
    while session.request is None and thread.is_alive():
        thread.join(0.01)
    session.cancel()
    thread.join(60)
    assert not thread.is_alive()
    assert heard.events == []


def test_a_query_without_end_is_cancelled(session: Session) -> None:
    endless = ", ".join(f"sys.configurations c{n}" for n in range(14))
    heard = Heard()
    thread = threading.Thread(target=session.run, args=(f"SELECT SUM(c0.value + c13.value) FROM {endless}", heard))
    thread.start()
    while session.request is None and thread.is_alive():
        thread.join(0.01)
    session.cancel()
    thread.join(60)
    assert not thread.is_alive()
    assert heard.rows == []


def test_the_recovery_model_can_be_altered(session: Session) -> None:
    assert run(session, "ALTER DATABASE [sales] SET RECOVERY FULL WITH NO_WAIT").messages == []
    query = "SELECT recovery_model_desc FROM sys.databases WHERE name = 'sales'"
    assert run(session, query).rows == [("FULL",)]
    assert run(session, "ALTER DATABASE nothing SET RECOVERY SIMPLE").numbers == [5011, 5069]
    text = run(session, "ALTER DATABASE sales SET OFFLINE").messages[0].text
    assert text == "ALTER DATABASE SET OFFLINE is not yet implemented."


def test_a_file_of_sqlite_has_no_log_to_back_up() -> None:
    with contextlib.closing(Session(Engine({"live": Sqlite("live.db")}))) as session:
        assert run(session, "ALTER DATABASE live SET RECOVERY FULL").numbers == [5058, 5069]
        assert run(session, "ALTER DATABASE live SET RECOVERY SIMPLE").numbers == []


def test_errors_end_what_they_end_on_a_server(session: Session) -> None:
    assert run(session, "SELECT 1/0; PRINT 'on'").numbers == [8134, 0]
    assert run(session, "SELECT CAST('x' AS int); PRINT 'on'").numbers == [245]
    run(session, "BEGIN TRAN")
    assert run(session, "SET XACT_ABORT ON; SELECT 1/0; PRINT 'on'").numbers == [8134]
    assert session.transactions == 0


def test_what_drivers_ask_before_they_commit(session: Session) -> None:
    assert run(session, "IF @@TRANCOUNT > 0 COMMIT TRAN").shape == []
    run(session, "SET IMPLICIT_TRANSACTIONS ON")
    run(session, "SELECT @@SPID")
    assert session.transactions == 0
    run(session, "SELECT name FROM sys.databases")
    assert session.transactions == 1
    assert run(session, "BACKUP DATABASE sales TO VIRTUAL_DEVICE = 'x'").numbers == [3021, 3013]
    run(session, "IF @@TRANCOUNT > 0 ROLLBACK TRAN; SET IMPLICIT_TRANSACTIONS OFF")
    assert session.transactions == 0


def test_a_procedure_of_its_own_changes_a_synthetic_database(engine: Engine, session: Session) -> None:
    """What there is to back up in differentials and logs, for those who only have a connection."""
    run(session, "ALTER DATABASE sales SET RECOVERY FULL")
    with client(1, full := Recorder(1)) as one:
        run(session, f"BACKUP DATABASE sales TO {one.clauses}")
    assert run(session, "EXEC sales..vdi_ext_change @page = 40, @pages = 16").events == [("done", 16)]
    assert run(session, "USE sales; EXEC vdi_ext_change 3; USE master").numbers == [5701, 5701]
    with client(1, Recorder(1)) as one:
        said = run(session, f"BACKUP DATABASE sales TO {one.clauses} WITH DIFFERENTIAL").messages
    assert said[0].text == "Processed 32 pages for database 'sales', file 'sales' on file 1."
    with client(1, log := Recorder(1)) as one:
        run(session, f"BACKUP LOG sales TO {one.clauses} WITH NORECOVERY")
    with client(1, Player([bytes(full.streams[0])])) as one:
        assert run(session, f"RESTORE DATABASE sales FROM {one.clauses} WITH NORECOVERY, REPLACE").numbers[-1] == 3014
    with client(1, Player([bytes(log.streams[0])])) as one:
        assert run(session, f"RESTORE LOG sales FROM {one.clauses}").numbers[-1] == 3014
    versions = engine.catalog.get("sales").versions
    assert [place for place, version in enumerate(versions) if version] == [0, 1, 5, 6]  # extents of 8 pages


@pytest.mark.parametrize(
    ("call", "number"),
    [
        ("EXEC sales..vdi_ext_change 1000000", 50000),
        ("EXEC sales..vdi_ext_change -8, 8", 50000),
        ("EXEC sales..vdi_ext_change 0, 0", 50000),
        ("EXEC sales..vdi_ext_change 0, 8, 8", 8144),
        ("EXEC sales..vdi_ext_change @extent = 0", 8145),
        ("EXEC sales..vdi_ext_change NULL", 214),
        ("EXEC sales..vdi_ext_change 'x'", 245),
        ("EXEC nothing..vdi_ext_change", 911),
    ],
)
def test_changes_that_cannot_be(session: Session, call: str, number: int) -> None:
    assert run(session, call).numbers == [number]


def test_a_database_that_is_being_restored_is_not_used(engine: Engine, session: Session) -> None:
    engine.catalog.get("other").state = "RESTORING"
    heard = run(session, "USE other")
    assert [str(message) for message in heard.messages] == [
        "Msg 927, Level 14, State 1: Database 'other' cannot be opened. It is in the middle of a restore."
    ]
    query = "SELECT state, state_desc, HAS_DBACCESS(name) FROM sys.databases WHERE name = 'other'"
    assert run(session, query).rows == [(1, "RESTORING", 0)]


def test_a_log_chain_is_seen_where_one_is(session: Session) -> None:
    """As tools ask before a log backup: none may begin before a full backup."""
    query = "SELECT last_log_backup_lsn FROM sys.database_recovery_status WHERE database_id = DB_ID('sales')"
    run(session, "ALTER DATABASE sales SET RECOVERY FULL")
    assert run(session, query).rows == [(None,)]
    with client(1, Recorder(1)) as one:
        run(session, f"BACKUP DATABASE sales TO {one.clauses}")
    ((lsn,),) = run(session, query).rows
    with client(1, Recorder(1)) as one:
        assert run(session, f"BACKUP LOG sales TO {one.clauses}").numbers[-1] == 3014
    assert run(session, "SELECT first_lsn FROM msdb.dbo.backupset WHERE type = 'L'").rows == [(lsn,)]
