"""Real drivers against the stand-in's endpoint: logins, TLS, statements, messages, parameters, transactions."""

from __future__ import annotations

import datetime
import decimal
import logging
import re
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_clients import Recorder, client
from tds_clients import ALL, DRIVERS, LOGIN, LOGIN_ONLY, PASSWORD, PLAIN, STRICT, Driver, connected, tsql

from vdi_ext import Command
from vdi_ext.engine import Engine, database_at
from vdi_ext.engine.tds import Endpoint

HOW = {
    PLAIN: "without TLS",
    LOGIN_ONLY: "its login under TLS",
    ALL: "all of it under TLS",
    STRICT: "all of it under TLS, as TDS 8.0 has it",
}
MODES = [(name, tls) for name, kind in DRIVERS.items() for tls in kind.modes]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine({"db": database_at("synthetic:4M")}, server_name="STANDIN")


@pytest.fixture(scope="module")
def endpoints(engine: Engine) -> Iterator[dict[str, Endpoint]]:
    made = {
        mode: Endpoint(engine, {LOGIN: PASSWORD}, encrypt=mode) for mode in ("optional", "required", "strict", "never")
    }
    yield made
    for endpoint in made.values():
        endpoint.close()


@pytest.fixture
def endpoint(endpoints: dict[str, Endpoint]) -> Endpoint:
    return endpoints["optional"]


@pytest.fixture(scope="module", params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Driver:
    return DRIVERS[request.param]()


@pytest.fixture
def certificate(endpoint: Endpoint, tmp_path: Path) -> Path:
    return certificate_of(endpoint, tmp_path)


def certificate_of(endpoint: Endpoint, folder: Path) -> Path:
    path = folder / f"certificate {endpoint.port}.pem"
    path.write_bytes(endpoint.certificate)
    return path


def how_they_came(caplog: pytest.LogCaptureFixture) -> list[str]:
    """With which TLS clients have logged in, from the log."""
    return [record.message.partition(", ")[2] for record in caplog.records if ": session " in record.message]


# ---- logins and TLS


@pytest.mark.parametrize(("name", "tls"), MODES)
def test_each_driver_logs_in_with_each_tls_it_has(endpoint, certificate, name, tls, caplog) -> None:
    driver = DRIVERS[name]()
    with (
        caplog.at_level(logging.INFO, "vdi_ext.engine.tds"),
        connected(driver, endpoint, tls, certificate) as connection,
    ):
        assert driver.run(connection, "BEGIN TRANSACTION COMMIT").error is None
    assert how_they_came(caplog) == [HOW[tls]]


@pytest.mark.parametrize(("name", "tls"), MODES)
def test_where_tls_is_required_nothing_goes_plainly(endpoints, tmp_path, name, tls, caplog) -> None:
    driver, endpoint = DRIVERS[name](), endpoints["required"]
    certificate = certificate_of(endpoint, tmp_path)
    with caplog.at_level(logging.INFO, "vdi_ext.engine.tds"):
        try:
            with connected(driver, endpoint, tls, certificate) as connection:
                assert driver.run(connection, "BEGIN TRANSACTION COMMIT").error is None
        except driver.error:
            assert tls in (PLAIN, LOGIN_ONLY)
    logged = how_they_came(caplog)
    assert not set(logged) & {HOW[PLAIN], HOW[LOGIN_ONLY]}
    assert logged or tls in (PLAIN, LOGIN_ONLY)


def test_a_strict_endpoint_takes_nothing_else(endpoints, tmp_path) -> None:
    driver, endpoint = DRIVERS["mssql-python"](), endpoints["strict"]
    certificate = certificate_of(endpoint, tmp_path)
    with connected(driver, endpoint, STRICT, certificate) as connection:
        assert driver.run(connection, "BEGIN TRANSACTION COMMIT").error is None
    with pytest.raises(driver.error):
        driver.connect(endpoint, ALL, certificate)


@pytest.mark.parametrize("name", DRIVERS)
def test_without_tls_where_there_is_none(endpoints, tmp_path, name, caplog) -> None:
    driver = DRIVERS[name]()
    tls = PLAIN if PLAIN in driver.modes else LOGIN_ONLY
    with caplog.at_level(logging.INFO, "vdi_ext.engine.tds"):
        with connected(driver, endpoints["never"], tls, tmp_path) as connection:
            assert driver.run(connection, "BEGIN TRANSACTION COMMIT").error is None
    assert how_they_came(caplog) == [HOW[PLAIN]]


def test_a_wrong_password_gets_18456_and_no_more(driver, endpoint, certificate, engine) -> None:
    engine.error_log.clear()
    with pytest.raises(driver.error) as caught:
        driver.connect(endpoint, driver.modes[0], certificate, password="another")
    # DB-Library has the text for the first refusal of a process only, and the number for all.
    assert f"Login failed for user '{LOGIN}'." in str(caught.value) or "(18456, " in str(caught.value)
    assert "Reason" not in str(caught.value)
    assert {entry.number for entry in engine.error_log} == {18456}
    assert all("Reason: no such login, or another password. [CLIENT: 127.0.0.1:" in entry.text
               for entry in engine.error_log)  # fmt: skip


def test_an_unknown_database_gets_4060(driver, endpoint, certificate) -> None:
    with pytest.raises(driver.error) as caught:
        driver.connect(endpoint, driver.modes[0], certificate, database="nowhere")
    # Some drivers give the first error, some the last.
    assert re.search('Cannot open database "nowhere" requested by|Login failed for user|18456', str(caught.value))


# ---- statements


def test_a_backup_sends_its_messages(driver, endpoint, certificate) -> None:
    recorder = Recorder(1)
    with connected(driver, endpoint, driver.modes[-2], certificate) as connection, client(1, recorder) as one:
        outcome = driver.run(connection, f"BACKUP DATABASE db TO {one.clauses} WITH STATS = 25")
    assert outcome.error is None
    texts = [re.sub(r"^(\[[^]]*\])+", "", text) for text in outcome.messages]
    assert texts[:4] == [f"{percent} percent processed." for percent in (25, 50, 75, 100)]
    assert texts[-1].startswith("BACKUP DATABASE successfully processed ")
    assert len(recorder.streams[0]) > 4 << 20


def test_the_first_error_of_a_backup_reaches_the_caller(driver, endpoint, certificate) -> None:
    with connected(driver, endpoint, driver.modes[-1], certificate) as connection:
        outcome = driver.run(connection, "BACKUP DATABASE db TO VIRTUAL_DEVICE = 'nobody made this set'")
        assert "Cannot open backup device 'nobody made this set'. Operating system error 0x80070002" in str(
            outcome.error
        )
        assert driver.run(connection, "BEGIN TRANSACTION COMMIT").error is None


def test_a_syntax_error(driver, endpoint, certificate) -> None:
    with connected(driver, endpoint, driver.modes[0], certificate) as connection:
        assert "Incorrect syntax near the keyword 'DATABASE'" in str(
            driver.run(connection, "BACKUPS DATABASE db").error
        )


def test_a_backup_within_a_transaction_is_refused(driver, endpoint, certificate) -> None:
    with connected(driver, endpoint, driver.modes[0], certificate, autocommit=False) as connection:
        outcome = driver.run(connection, "BACKUP DATABASE db TO VIRTUAL_DEVICE = 'any'")
        assert "Cannot perform a backup or restore operation within a transaction." in str(outcome.error)
        connection.rollback()


def test_drivers_of_odbc_stop_at_each_message_and_can_step_on(endpoint, certificate) -> None:
    """Who closes before the last step has ended a backup half-way: the same as with SQL Server."""
    for name, steps in (("mssql-python", True), ("pyodbc", True), ("pymssql", False), ("python-tds", False)):
        driver = DRIVERS[name]()
        with connected(driver, endpoint, driver.modes[0], certificate) as connection, client(1, Recorder(1)) as one:
            outcome = driver.run(connection, f"BACKUP DATABASE db TO {one.clauses} WITH STATS = 25")
        assert outcome.error is None
        assert (outcome.steps >= 5) is steps, name


@pytest.mark.parametrize("name", ["mssql-python", "pyodbc"])
def test_who_closes_before_the_last_step_ends_the_backup(endpoint, certificate, name) -> None:
    driver, recorder = DRIVERS[name](), Recorder(1)
    reached, go, seen = threading.Event(), threading.Event(), []

    def handler(number: int, command: Command) -> None:
        seen.append(command.code)
        if len(seen) == 40:  # of more than 64
            reached.set()
            go.wait(30)
        recorder(number, command)

    with client(1, handler) as one:
        with connected(driver, endpoint, driver.modes[0], certificate) as connection:
            cursor = connection.cursor()
            options = "STATS = 5, BUFFERCOUNT = 1, MAXTRANSFERSIZE = 65536"
            cursor.execute(f"BACKUP DATABASE db TO {one.clauses} WITH {options}")  # returns at the first message
            assert reached.wait(30)
            cursor.close()
        go.set()
    assert [type(error).__name__ for error in one.errors] == ["VDAbortError"]


def test_other_statements_end_with_their_message(driver, endpoint, certificate) -> None:
    """A driver that stops at each DONE is through with them at once: the connection is free for another cursor."""
    with connected(driver, endpoint, driver.modes[0], certificate) as connection:
        first = connection.cursor()
        first.execute("USE db")
        second = connection.cursor()
        second.execute("SELECT DB_NAME()")
        assert second.fetchall()[0][0] == "db"
        first.close()
        second.close()


# ---- queries and parameters


def test_queries(driver, endpoint, certificate) -> None:
    with connected(driver, endpoint, driver.modes[-1], certificate) as connection:
        ((version,),) = driver.rows(connection, "SELECT @@VERSION")
        assert version.startswith("Microsoft SQL Server")
        assert driver.rows(connection, "SELECT @@SERVERNAME, IS_SRVROLEMEMBER('sysadmin')") == [("STANDIN", 1)]
        assert ("db",) in driver.rows(connection, "SELECT name FROM sys.databases")


VALUES = [
    5, 2**40, True, None, 1.5, decimal.Decimal("-12.345"), "häß €", "x" * 3000, b"ab\0",
    datetime.datetime(2024, 1, 2, 3, 4, 5), uuid.UUID(int=5 << 90),
]  # fmt: skip
# Types that a driver does not tell the server, or gives back as text.
AS_TEXT = {
    "pymssql": (datetime.datetime, uuid.UUID),  # it writes values into the statement
    "pyodbc": (uuid.UUID,),
    "python-tds": (bytes,),
}


def test_parameters_arrive_as_they_were_given(driver, endpoint, certificate, request) -> None:
    differ = AS_TEXT.get(request.node.callspec.params["driver"], ())
    with connected(driver, endpoint, driver.modes[-1], certificate) as connection:
        for value in VALUES:
            ((back,),) = driver.rows(connection, f"SELECT {driver.mark}", value)
            if not isinstance(value, differ):
                assert back == value
            else:
                plain = value.decode() if isinstance(value, bytes) else str(value)
                assert str(back).removesuffix(".000").upper() == plain.upper()


def test_a_driver_cancels(endpoint, certificate) -> None:
    """With an attention, while another thread waits for the statement; the connection is good for more."""
    driver = DRIVERS["pyodbc"]()
    reached, go = threading.Event(), threading.Event()

    def stalled(number: int, command: Command) -> None:
        reached.set()
        go.wait(30)

    with connected(driver, endpoint, ALL, certificate) as connection, client(1, stalled) as one:
        cursor, errors = connection.cursor(), []

        def work() -> None:
            try:
                cursor.execute(f"BACKUP DATABASE db TO {one.clauses}")
            except driver.error as error:
                errors.append(error)

        worker = threading.Thread(target=work)
        worker.start()
        assert reached.wait(30)
        cursor.cancel()
        worker.join(30)
        go.set()
        cursor.close()
        assert len(errors) == 1
        assert driver.rows(connection, "SELECT 1") == [(1,)]
    assert [type(error).__name__ for error in one.errors] == ["VDAbortError"]


def test_kill_ends_a_connection_and_its_backup(endpoint, certificate) -> None:
    driver = DRIVERS["pymssql"]()
    reached, go = threading.Event(), threading.Event()

    def stalled(number: int, command: Command) -> None:
        reached.set()
        go.wait(30)

    with (
        connected(driver, endpoint, PLAIN, certificate) as victim,
        connected(driver, endpoint, PLAIN, certificate) as other,
    ):
        ((spid,),) = driver.rows(victim, "SELECT @@SPID")
        with client(1, stalled) as one:
            outcomes = []
            batch = f"BACKUP DATABASE db TO {one.clauses}"
            worker = threading.Thread(target=lambda: outcomes.append(driver.run(victim, batch)))
            worker.start()
            assert reached.wait(30)
            assert driver.run(other, f"KILL {spid}").error is None
            go.set()
            worker.join(30)
        assert [type(error).__name__ for error in one.errors] == ["VDAbortError"]
        assert outcomes[0].error is not None


# ---- tsql


@pytest.mark.parametrize(("encryption", "how"), [("off", PLAIN), ("request", LOGIN_ONLY), ("require", ALL)])
def test_tsql(endpoint, tmp_path, encryption, how, caplog) -> None:
    with caplog.at_level(logging.INFO, "vdi_ext.engine.tds"):
        done = tsql(endpoint, ["use db", "backup database db to virtual_device = 'x'"], tmp_path, encryption=encryption)
    assert "Msg 3201 (severity 16, state 7) from STANDIN Line 1:" in done.stderr
    assert "Msg 3013 (severity 16, state 1) from STANDIN Line 1:" in done.stderr
    assert how_they_came(caplog) == [HOW[how]]


@pytest.mark.parametrize("version", ["7.3", "7.4"])
def test_versions_of_tds(endpoint, tmp_path, version) -> None:
    done = tsql(endpoint, ["select @@version"], tmp_path, version=version)
    assert "Microsoft SQL Server 2022" in done.stdout


@pytest.mark.parametrize(
    ("version", "text"),
    [("7.0", "a message of type 16 where PRELOGIN belongs"), ("7.1", "is too old: 7.3, 7.4 and 8.0 are spoken here"),
     ("7.2", "is too old: 7.3, 7.4 and 8.0 are spoken here")],
)  # fmt: skip
def test_versions_that_are_too_old(endpoint, tmp_path, version, text, caplog) -> None:
    assert tsql(endpoint, [], tmp_path, version=version).returncode != 0
    assert text in caplog.text


def test_tsql_with_a_wrong_password(endpoint, tmp_path) -> None:
    done = tsql(endpoint, [], tmp_path, password="another")
    assert done.returncode != 0 and "Msg 18456 (severity 14, state 1)" in done.stderr
