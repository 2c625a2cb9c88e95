"""Sessions: batches, their errors, BACKUP and RESTORE in them, cancelling and killing."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from engine_clients import Player, Recorder, client

from vdi_ext import Command
from vdi_ext.engine import Engine, Message, Synthetic
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
