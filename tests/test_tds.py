"""The endpoint: cancelling, losing clients, many of them, those that do harm, procedures, transactions."""

from __future__ import annotations

import logging
import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from engine_clients import Recorder, client
from tds_raw import (
    ATTENTION,
    ATTENTION_ANSWERED,
    BATCH,
    ERROR,
    HEADERS,
    IN_TRANSACTION,
    LOGIN7,
    MORE,
    PRELOGIN,
    RPC,
    RawClient,
    call,
    integer,
    login7,
    text,
)

from vdi_ext import Command
from vdi_ext.engine import Engine, database_at
from vdi_ext.engine.tds import Endpoint

WAIT = 30.0
BEGUN, COMMITTED, ROLLED_BACK, RESET = 8, 9, 10, 18  # changes that ENVCHANGE tells


@pytest.fixture
def engine() -> Engine:
    return Engine({"db": database_at("synthetic:4M")}, server_name="STANDIN")


@pytest.fixture
def endpoint(engine: Engine) -> Iterator[Endpoint]:
    with Endpoint(engine, {"sa": "secret"}, encrypt="never") as one:
        yield one


@pytest.fixture
def raw(endpoint: Endpoint) -> Iterator[RawClient]:
    with RawClient(endpoint.host, endpoint.port) as one:
        yield one


def until(condition: Callable[[], bool]) -> None:
    """Wait for it; fails instead of waiting for ever."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Stalled:
    """A client of virtual devices that keeps its first command until it is let go."""

    def __init__(self) -> None:
        self.reached, self.go = threading.Event(), threading.Event()

    def __call__(self, number: int, command: Command) -> None:
        self.reached.set()
        self.go.wait(WAIT)


# ---- the end of what runs


def test_an_attention_ends_a_backup_and_aborts_its_devices(raw: RawClient) -> None:
    stalled = Stalled()
    with client(1, stalled) as one:
        raw.send(BATCH, HEADERS + f"BACKUP DATABASE db TO {one.clauses}".encode("utf-16-le"))
        assert stalled.reached.wait(WAIT)
        raw.send(ATTENTION)
        answer = raw.answer()
        stalled.go.set()
    assert 3013 in answer.numbers
    assert answer.dones[-1].status & (ATTENTION_ANSWERED | MORE) == ATTENTION_ANSWERED
    assert [type(error).__name__ for error in one.errors] == ["VDAbortError"]
    assert raw.batch("USE db").numbers == [5701]


def test_an_attention_ends_a_backup_that_waits_for_its_client(raw: RawClient, engine: Engine) -> None:
    """At any moment: also before the devices are open."""
    for _ in range(5):
        with client(1, Recorder(1)) as one:
            raw.send(BATCH, HEADERS + f"BACKUP DATABASE db TO {one.clauses}".encode("utf-16-le"))
            raw.send(ATTENTION)
            answers = [raw.answer()]
            while not answers[-1].dones[-1].status & ATTENTION_ANSWERED:
                answers.append(raw.answer())
            assert len(answers) <= 2


@pytest.mark.parametrize("encrypt", ["never", "strict"])
def test_an_attention_ends_a_batch_whose_answer_nobody_has_read_yet(engine: Engine, encrypt: str) -> None:
    """Both directions are full at that moment; under TLS they share its state."""
    with Endpoint(engine, {"sa": "secret"}, encrypt=encrypt) as endpoint:
        with RawClient(endpoint.host, endpoint.port, login=False) as raw:
            if encrypt == "strict":
                context = ssl.create_default_context(cadata=endpoint.certificate.decode())
                context.set_alpn_protocols(["tds/8.0"])
                raw.socket = context.wrap_socket(raw.socket, server_hostname="localhost")
            assert raw.log_in().acknowledged
            for _ in range(3):
                overwhelm(raw)


def overwhelm(raw: RawClient) -> None:
    raw.send(BATCH, HEADERS + ("USE db;" * 50_000).encode("utf-16-le"))
    raw.send(ATTENTION)
    answers = [raw.answer()]
    while not answers[-1].dones[-1].status & ATTENTION_ANSWERED:
        answers.append(raw.answer())
    assert len(answers) <= 2
    assert raw.batch("USE db").numbers == [5701]


def test_an_attention_for_nothing_is_answered(raw: RawClient) -> None:
    raw.send(ATTENTION)
    assert [done.status for done in raw.answer().dones] == [ATTENTION_ANSWERED]
    assert raw.batch("USE db").numbers == [5701]


def test_the_loss_of_a_client_ends_its_backup(endpoint: Endpoint) -> None:
    stalled = Stalled()
    with client(1, stalled) as one:
        with RawClient(endpoint.host, endpoint.port) as raw:
            raw.send(BATCH, HEADERS + f"BACKUP DATABASE db TO {one.clauses}".encode("utf-16-le"))
            assert stalled.reached.wait(WAIT)
        until(lambda: not endpoint.connections)
        stalled.go.set()
    assert [type(error).__name__ for error in one.errors] == ["VDAbortError"]


def test_closing_the_endpoint_ends_what_runs(engine: Engine) -> None:
    stalled = Stalled()
    with client(1, stalled) as one:
        with Endpoint(engine, {"sa": "secret"}, encrypt="never") as endpoint:
            with RawClient(endpoint.host, endpoint.port) as raw:
                raw.send(BATCH, HEADERS + f"BACKUP DATABASE db TO {one.clauses}".encode("utf-16-le"))
                assert stalled.reached.wait(WAIT)
                endpoint.close()
        stalled.go.set()
    assert [type(error).__name__ for error in one.errors] == ["VDAbortError"]
    with pytest.raises(OSError):
        RawClient(endpoint.host, endpoint.port)


# ---- many, slow and silent clients


def test_a_hundred_connections_at_once(endpoint: Endpoint) -> None:
    clients = [RawClient(endpoint.host, endpoint.port) for _ in range(100)]
    try:
        for one in clients:
            one.send(BATCH, HEADERS + "BACKUP DATABASE db TO VIRTUAL_DEVICE = 'none'".encode("utf-16-le"))
        assert [one.answer().numbers for one in clients] == [[3201, 3013]] * 100
        assert [one.batch("USE db").numbers for one in clients] == [[5701]] * 100
    finally:
        for one in clients:
            one.socket.close()


def test_no_more_connections_than_allowed(engine: Engine) -> None:
    with Endpoint(engine, {"sa": "secret"}, encrypt="never", most_connections=2) as endpoint:
        with RawClient(endpoint.host, endpoint.port) as first, RawClient(endpoint.host, endpoint.port):
            with RawClient(endpoint.host, endpoint.port, login=False) as third:
                assert third.closed()
            assert first.batch("USE db").numbers == [5701]


def test_a_client_that_stops_reading_holds_nobody_and_is_given_up(engine: Engine) -> None:
    with Endpoint(engine, {"sa": "secret"}, encrypt="never", send_timeout=0.5) as endpoint:
        with RawClient(endpoint.host, endpoint.port, receive_buffer=4096) as deaf:
            deaf.send(BATCH, HEADERS + ("USE db;" * 100_000).encode("utf-16-le"))
            with RawClient(endpoint.host, endpoint.port) as other:
                assert other.batch("USE db").numbers == [5701]
                until(lambda: other.batch("USE db").numbers == [5701] and endpoint.connections == 1)
            assert deaf.closed()


@pytest.mark.parametrize("said", [b"", b"\x12", b"\x12\x01\x00\x2f\0\0\0\0\0\0"])
def test_a_client_that_does_not_log_in_is_given_up(engine: Engine, said: bytes) -> None:
    with Endpoint(engine, {"sa": "secret"}, encrypt="never", login_timeout=0.3) as endpoint:
        with RawClient(endpoint.host, endpoint.port, login=False) as raw:
            raw.socket.sendall(said)
            assert raw.closed()


def test_a_login_that_trickles_in_is_given_up(engine: Engine) -> None:
    """The bound is for all of the login, however often something comes."""
    with Endpoint(engine, {"sa": "secret"}, encrypt="never", login_timeout=0.5) as endpoint:
        with RawClient(endpoint.host, endpoint.port, login=False) as raw:
            began = time.monotonic()
            with pytest.raises(OSError):
                while time.monotonic() - began < WAIT:
                    raw.socket.sendall(b"\x12\0\0\x09\0\0\0\0a")
                    time.sleep(0.02)
            until(lambda: not endpoint.connections)


def test_a_client_that_stops_within_a_request_is_given_up(engine: Engine) -> None:
    with Endpoint(engine, {"sa": "secret"}, encrypt="never", login_timeout=0.3) as endpoint:
        with RawClient(endpoint.host, endpoint.port) as raw:
            raw.socket.sendall(b"\x01\x00\x10\x00\0\0\0\0")
            assert raw.closed()


def test_a_request_has_a_largest_size(engine: Engine) -> None:
    with Endpoint(engine, {"sa": "secret"}, encrypt="never", largest_message=100_000) as endpoint:
        with RawClient(endpoint.host, endpoint.port) as raw:
            assert raw.batch("USE db" + " " * 40_000).numbers == [5701]
            try:
                raw.send(BATCH, HEADERS + (" " * 60_000).encode("utf-16-le"))
            except ConnectionError:
                pass
            assert raw.closed()


# ---- clients that do harm


def errors_of_this_program(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("encrypt", ["never", "optional", "strict"])
def test_random_bytes_close_the_connection_that_they_came_on(engine: Engine, encrypt: str, caplog) -> None:
    chance = random.Random(encrypt)
    with Endpoint(engine, {"sa": "secret"}, encrypt=encrypt) as endpoint:
        for number in range(60):
            with RawClient(endpoint.host, endpoint.port, login=False) as raw:
                if encrypt == "optional" and number % 3 == 0:  # into the handshake
                    raw.send(PRELOGIN, b"\x00\x00\x0b\x00\x06\x01\x00\x11\x00\x01\xff" + bytes(6) + b"\x01")
                    raw.message()
                elif encrypt == "strict":
                    raw.socket.sendall(b"\x16\x03\x01")
                kind = chance.choice([PRELOGIN, LOGIN7, BATCH, chance.randrange(256)])
                data = chance.randbytes(chance.randrange(300))
                try:
                    if chance.random() < 0.5:
                        raw.socket.sendall(data)
                    else:
                        raw.send(kind, data)
                    raw.socket.shutdown(socket.SHUT_WR)
                except OSError:
                    pass
                assert raw.closed()
        until(lambda: not endpoint.connections)
    assert errors_of_this_program(caplog) == []


@pytest.mark.parametrize("seed", range(3))
def test_damaged_logins_and_requests_do_no_harm(endpoint: Endpoint, seed: int, caplog) -> None:
    """Good messages with some bytes changed, before and after the login."""
    chance = random.Random(seed)
    requests = [
        (RPC, HEADERS + call(10, text("USE db"), text("@a int"), integer(3))),
        (RPC, HEADERS + call(13, integer(None, output=True), text("@a int"), text("USE db"), integer(3))),
        (BATCH, HEADERS + "USE db".encode("utf-16-le")),
        (14, HEADERS + b"\x05\0\0\0"),
        (LOGIN7, login7()),
    ]

    def damaged(data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(chance.randrange(1, 4)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        return bytes(changed)

    for number in range(80):
        kind, data = requests[number % len(requests)]
        with RawClient(endpoint.host, endpoint.port, login=kind != LOGIN7) as raw:
            if kind == LOGIN7:
                raw.send(PRELOGIN, b"\x00\x00\x0b\x00\x06\x01\x00\x11\x00\x01\xff" + bytes(6) + b"\x02")
                raw.message()
            raw.send(kind, damaged(data), status=1 | chance.choice([0, 0, 2, 8, 16, 0x80]))
            raw.socket.shutdown(socket.SHUT_WR)
            assert raw.closed()
    with RawClient(endpoint.host, endpoint.port) as raw:
        assert raw.batch("USE db").numbers == [5701]
    assert errors_of_this_program(caplog) == []


def test_a_malformed_request_is_told_and_closes_the_connection(raw: RawClient, caplog) -> None:
    assert raw.call(10, b"\0\0\x62\x08").numbers == [4002]
    assert raw.closed()
    assert "data type 0x62 is not understood" in caplog.text
    assert errors_of_this_program(caplog) == []


def test_requests_one_at_a_time(raw: RawClient) -> None:
    """The client awaits each answer; who does not is closed."""
    stalled = Stalled()
    with client(1, stalled) as one:
        raw.send(BATCH, HEADERS + f"BACKUP DATABASE db TO {one.clauses}".encode("utf-16-le"))
        assert stalled.reached.wait(WAIT)
        raw.send(BATCH, HEADERS + "USE db".encode("utf-16-le"))
        raw.send(BATCH, HEADERS + "USE db".encode("utf-16-le"))
        assert raw.closed()
        stalled.go.set()


# ---- logins


def test_a_wrong_login_gets_18456_and_no_more(endpoint: Endpoint, engine: Engine) -> None:
    for user, password in (("sa", "Secret"), ("sa", ""), ("nobody", "secret"), ("", "")):
        with RawClient(endpoint.host, endpoint.port, login=False) as raw:
            answer = raw.log_in(user, password)
            assert [tuple(said) for said in answer.said] == [(18456, 14, f"Login failed for user '{user}'.")]
            assert (answer.acknowledged, answer.changes) == (False, [])
            assert answer.dones[0].status == ERROR
            assert raw.closed()
    assert "secret" not in " ".join(entry.text for entry in engine.error_log).casefold()


def test_a_ticket_of_windows_gets_18452(endpoint: Endpoint) -> None:
    with RawClient(endpoint.host, endpoint.port, login=False) as raw:
        raw.send(PRELOGIN, b"\x00\x00\x0b\x00\x06\x01\x00\x11\x00\x01\xff" + bytes(6) + b"\x02")
        raw.message()
        raw.send(LOGIN7, login7(flags=b"\xe0\x83\x00\x00"))
        assert raw.answer().numbers == [18452]
        assert raw.closed()


@pytest.mark.parametrize(("asked", "current"), [("", "master"), ("DB", "db"), ("MSDB", "msdb")])
def test_the_database_of_a_login(endpoint: Endpoint, asked: str, current: str) -> None:
    with RawClient(endpoint.host, endpoint.port, login=False) as raw:
        said = raw.log_in(database=asked).said
        assert f"Changed database context to '{current}'." in [one.text for one in said]


def test_two_endpoints_have_two_certificates_and_logins(engine: Engine) -> None:
    with Endpoint(engine, {"a": "x"}) as one, Endpoint(engine, {"b": "y"}) as two:
        assert one.certificate.startswith(b"-----BEGIN CERTIFICATE-----")
        assert one.certificate != two.certificate and one.port != two.port


# ---- messages


def test_a_done_follows_each_message_where_that_is_wanted(engine: Engine) -> None:
    for wanted in (True, False):
        with Endpoint(engine, {"sa": "secret"}, encrypt="never", done_after_message=wanted) as endpoint:
            with RawClient(endpoint.host, endpoint.port) as raw, client(1, Recorder(1)) as one:
                answer = raw.batch(f"BACKUP DATABASE db TO {one.clauses}")
        assert answer.numbers[-1] == 3014
        informed = len(answer.said)
        assert len(answer.dones) == (informed + 1 if wanted else 1)
        assert [done.status & MORE for done in answer.dones] == [MORE] * (len(answer.dones) - 1) + [0]


def test_no_done_follows_the_messages_of_other_statements(raw: RawClient) -> None:
    for batch in ("USE db", "PRINT 'x'"):
        answer = raw.batch(batch)
        assert (len(answer.said), [done.status for done in answer.dones]) == (1, [0])


def test_messages_come_as_they_happen(raw: RawClient) -> None:
    """The first percentage is there while the client of the devices still waits."""
    halted = Recorder(1)
    reached, go = threading.Event(), threading.Event()
    seen = 0

    def handler(number: int, command: Command) -> None:
        nonlocal seen
        seen += 1
        if seen == 20:
            reached.set()
            go.wait(WAIT)
        halted(number, command)

    with client(1, handler) as one:
        statement = f"BACKUP DATABASE db TO {one.clauses} WITH STATS = 5, BUFFERCOUNT = 1, MAXTRANSFERSIZE = 65536"
        raw.send(BATCH, HEADERS + statement.encode("utf-16-le"))
        assert reached.wait(WAIT)
        head = raw._read(8)
        assert raw._read(struct.unpack(">H", head[2:4])[0] - 8)[0] == 0xAB
        go.set()
        assert raw.answer().numbers[-1] == 3014


# ---- procedures


def test_a_statement_with_parameters(raw: RawClient) -> None:
    with client(1, Recorder(1)) as one:
        answer = raw.call(10, text("BACKUP DATABASE @d TO VIRTUAL_DEVICE = @v"),
                          text("@d nvarchar(10), @v nvarchar(4000)"), text("db"), text(one.name, "@v"))  # fmt: skip
    assert answer.numbers[-1] == 3014
    assert (answer.status, answer.dones[-1].token, answer.dones[-1].status) == ([0], 0xFE, 0)
    assert all(done.token == 0xFF and done.status & MORE for done in answer.dones[:-1])


def test_prepared_statements(raw: RawClient) -> None:
    texts = text("@x nvarchar(10)"), text("BACKUP DATABASE @x TO VIRTUAL_DEVICE = 'none'")
    prepared = raw.call(11, integer(None, output=True), *texts, integer(1))
    (handle,) = (int.from_bytes(value, "little") for value in prepared.values)
    executed = raw.call(12, integer(handle), text("db"))
    assert executed.numbers == [3201, 3013] and executed.status == [3013]
    again = raw.call("sp_prepexec", integer(None, output=True), *texts, text("db"))
    assert again.numbers == [3201, 3013]
    assert int.from_bytes(again.values[0], "little") == handle + 1
    assert raw.call("sp_unprepare", integer(handle)).numbers == []
    gone = raw.call(12, integer(handle), text("db"))
    assert [said.text for said in gone.said] == [f"Could not find prepared statement with handle {handle}."]
    assert gone.numbers == [8179]


@pytest.mark.parametrize(("number", "name"), [(1, "sp_cursor"), (2, "sp_cursoropen"), (7, "sp_cursorfetch"),
                                              (14, "sp_prepexecrpc"), (99, "procedure number 99")])  # fmt: skip
def test_procedures_that_are_refused(raw: RawClient, number: int, name: str) -> None:
    answer = raw.call(number, integer(1))
    assert [tuple(said) for said in answer.said] == [(2812, 16, f"Could not find stored procedure '{name}'.")]
    assert answer.status == [2812]
    assert raw.batch("USE db").numbers == [5701]


@pytest.mark.parametrize(
    ("arguments", "number"),
    [
        ((), 201),
        ((integer(3),), 214),
        ((text("USE db"), text("nonsense")), 102),
        ((text("USE db"), text("@a int, @A int"), integer(1)), 134),
        ((text("USE db"), text("@a int"), integer(1), integer(2)), 8144),
        ((text("USE db"), text("@a int"), integer(1, "@b")), 8145),
        ((text("USE db"), text("@a int"), integer(1, output=True)), 8162),
        ((text("USE db"), text("@a int, @b numeric(10, 2) OUTPUT"), integer(1)), 8178),
        ((text("USE db"), text(", ".join(f"@a{n} int" for n in range(2101)))), 8003),
        ((text("USE db"), text("@a int" + " " * 30_000 + "!")), 102),  # in no time
        ((text("USE db"), text("@a " + " int" * 7_000 + "!")), 102),
    ],
)
def test_calls_that_do_not_fit(raw: RawClient, arguments: tuple[bytes, ...], number: int) -> None:
    assert raw.call(10, *arguments).numbers == [number]


def test_several_calls_in_one_request(raw: RawClient) -> None:
    raw.send(RPC, HEADERS + b"\xff".join([call(10, text("USE db"))] * 3))
    answer = raw.answer()
    assert answer.numbers == [5701] * 3 and answer.status == [0, 0, 0]
    assert [done.status for done in answer.dones if done.token == 0xFE] == [MORE, MORE, 0]


def test_output_parameters_come_back(raw: RawClient) -> None:
    answer = raw.call(10, text("SET @a = @a + 1"), text("@a int OUTPUT"), integer(41, "@a", output=True))
    assert [int.from_bytes(value, "little") for value in answer.values] == [42]


# ---- transactions


def test_transactions_by_the_transaction_manager(raw: RawClient) -> None:
    begun = raw.transaction(b"\x05\0\0\0")
    assert [kind for kind, _ in begun.changes] == [BEGUN]
    assert begun.dones == [(0xFD, IN_TRANSACTION, 0)]
    with client(1, Recorder(1)) as one:
        refused = raw.batch(f"BACKUP DATABASE db TO {one.clauses}")
        assert refused.numbers[0] == 3021
    committed = raw.transaction(b"\x07\0\0\x01\0\0\0")  # and begin another one
    assert [kind for kind, _ in committed.changes] == [COMMITTED, BEGUN]
    assert committed.changes[0][1][2:] == begun.changes[0][1][1:-1]  # the descriptor
    assert [kind for kind, _ in raw.transaction(b"\x08\0\0\0").changes] == [ROLLED_BACK]
    assert raw.transaction(b"\x08\0\0\0").numbers == [3903]


def test_transactions_by_statements(raw: RawClient) -> None:
    answer = raw.batch("BEGIN TRANSACTION")
    assert ([kind for kind, _ in answer.changes], answer.dones[-1].status) == ([BEGUN], IN_TRANSACTION)
    answer = raw.batch("COMMIT")
    assert ([kind for kind, _ in answer.changes], answer.dones[-1].status) == ([COMMITTED], 0)


def test_a_connection_that_is_handed_on_is_as_new(raw: RawClient) -> None:
    raw.batch("USE db")
    raw.batch("BEGIN TRANSACTION")
    handle = raw.call(11, integer(None, output=True), text(None), text("USE db"), integer(1)).values[0]
    raw.send(BATCH, HEADERS + "USE msdb".encode("utf-16-le"), status=1 | 8)
    answer = raw.answer()
    assert [kind for kind, _ in answer.changes] == [1, ROLLED_BACK, RESET, 1]
    assert raw.call(12, integer(int.from_bytes(handle, "little"))).numbers == [8179]


def test_a_request_that_its_sender_withdraws_is_not_run(raw: RawClient) -> None:
    raw.send(BATCH, HEADERS + "USE db".encode("utf-16-le"), status=1 | 2)
    answer = raw.answer()
    assert (answer.numbers, len(answer.dones)) == ([], 1)


def test_the_log_names_who_came_and_no_secret(endpoint: Endpoint, caplog) -> None:
    with caplog.at_level(logging.DEBUG, "vdi_ext"), RawClient(endpoint.host, endpoint.port) as raw:
        raw.batch("USE db")
    assert "session 51 of sa with test, without TLS" in caplog.text
    assert "secret" not in caplog.text
