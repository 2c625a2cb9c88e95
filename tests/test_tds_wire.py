"""The parsers and writers of TDS: what is written is read back, and whatever comes, nothing but a typed error."""

from __future__ import annotations

import datetime
import socket
import struct
import threading
import tracemalloc
import uuid
from collections.abc import Callable
from decimal import Decimal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tds_raw import HEADERS, call, integer, login7, text

from vdi_ext.engine.messages import Message, message
from vdi_ext.engine.tds import login, packets, prelogin, requests, tokens, types
from vdi_ext.engine.tds.packets import ClosedError, PacketType, Reply, Stream
from vdi_ext.engine.tds.prelogin import Encrypt, Encryption
from vdi_ext.engine.tds.wire import ProtocolError, Reader
from vdi_ext.engine.types import SqlType, nvarchar

# ---- types

day = datetime.datetime
texts = st.text(st.characters(blacklist_categories=("Cs",)), max_size=300)


def digits(precision: int, scale: int) -> st.SearchStrategy[Decimal]:
    most = 10**precision - 1
    return st.integers(-most, most).map(lambda number: Decimal(number).scaleb(-scale))


VALUES: list[tuple[SqlType, st.SearchStrategy]] = [
    (SqlType("tinyint"), st.integers(0, 255)),
    (SqlType("smallint"), st.integers(-(2**15), 2**15 - 1)),
    (SqlType("int"), st.integers(-(2**31), 2**31 - 1)),
    (SqlType("bigint"), st.integers(-(2**63), 2**63 - 1)),
    (SqlType("bit"), st.booleans()),
    (SqlType("float"), st.floats(allow_nan=False)),
    (SqlType("real"), st.floats(allow_nan=False, width=32)),
    (SqlType("numeric", precision=25), digits(25, 0)),
    (SqlType("decimal", precision=38, scale=20), digits(28, 20)),
    (SqlType("money"), st.integers(-(2**63), 2**63 - 1).map(lambda n: Decimal(n).scaleb(-4))),
    (SqlType("smallmoney"), st.integers(-(2**31), 2**31 - 1).map(lambda n: Decimal(n).scaleb(-4))),
    (SqlType("uniqueidentifier"), st.uuids()),
    (SqlType("date"), st.dates()),
    (SqlType("time", scale=6), st.times()),
    (SqlType("datetime2", scale=6), st.datetimes()),
    (SqlType("datetimeoffset", scale=7),
     st.datetimes(day(2, 1, 1), day(9998, 1, 1), timezones=st.just(datetime.timezone(datetime.timedelta(hours=-7))))),
    (SqlType("smalldatetime"),
     st.integers(0, 179 * 365 * 1440).map(lambda n: day(1900, 1, 1) + datetime.timedelta(minutes=n))),
    # 300 ticks a second: what is a whole number of them comes back.
    (SqlType("datetime"),
     st.integers(-(10**9), 10**10).map(lambda n: day(1900, 1, 1) + datetime.timedelta(seconds=n / 50))),
    (nvarchar(600), texts),
    (nvarchar(None), texts),
    (SqlType("sysname", 128), st.text("abc", max_size=128)),
    (SqlType("varchar", 300), st.text("aäß€", max_size=300)),
    (SqlType("varbinary", 400), st.binary(max_size=400)),
    (SqlType("varbinary"), st.binary(max_size=9000)),
]  # fmt: skip


@pytest.mark.parametrize(("type_", "values"), VALUES, ids=[str(type_) for type_, _ in VALUES])
def test_a_value_comes_back_as_it_went(type_: SqlType, values: st.SearchStrategy) -> None:
    @given(st.none() | values)
    @settings(max_examples=60, deadline=None)
    def check(value: object) -> None:
        reader = Reader(types.type_info(type_) + types.encode(type_, value))
        assert types.read_type(reader).read(reader) == value
        assert reader.left == 0

    check()


@pytest.mark.parametrize(
    ("wire", "value"),
    [
        ("38 05000000", 5),
        ("26 04 04 FFFFFFFF", -1),
        ("68 01 00", None),
        ("6F 08 08 00000000 2C010000", day(1900, 1, 1, 0, 0, 1)),
        ("3A 0100 3C00", day(1900, 1, 2, 1)),
        ("6C 11 12 04 05 00 39300000", Decimal("-1.2345")),
        ("6C 05 09 00 03 01 3930", Decimal("12345")),  # as few bytes as the digits need
        ("E7 FFFF 0904D00034 FEFFFFFFFFFFFFFF 02000000 6100 02000000 6200 00000000", "ab"),  # length not known
        ("E7 FFFF 0904D00034 FFFFFFFFFFFFFFFF", None),
        ("63 FEFFFF7F 0904D00034 04000000 61006200", "ab"),
        ("A7 0A00 0904D00034 0200 80E4", "€ä"),  # code page 1252
        ("A7 0A00 0904D00434 0200 C3A4", "ä"),  # UTF-8
        ("24 10 10 00112233445566778899AABBCCDDEEFF", uuid.UUID("33221100-5544-7766-8899-aabbccddeeff")),
        ("1F", None),
    ],
)
def test_values_of_drivers(wire: str, value: object) -> None:
    """Encodings by the rules of MS-TDS 2.2.5.5."""
    reader = Reader(bytes.fromhex(wire))
    assert types.read_type(reader).read(reader) == value
    assert reader.left == 0


@pytest.mark.parametrize("wire", ["62 08000000", "F3 00 00 00", "26 03", "6C 11 00 00", "6C 11 26 27", "2A 08",
                                  "F1 01", "29 07 05 FFFFFFFFFF", "28 03 FFFFFF", "3D FFFFFF7F 00000000"])  # fmt: skip
def test_types_and_values_that_are_refused(wire: str) -> None:
    reader = Reader(bytes.fromhex(wire) + bytes(8))
    with pytest.raises(ProtocolError):
        types.read_type(reader).read(reader)


# ---- requests


def test_a_batch() -> None:
    assert requests.parse_batch(HEADERS + "SELECT 'ü€\U0001f600'".encode("utf-16-le")) == "SELECT 'ü€\U0001f600'"
    with pytest.raises(ProtocolError):
        requests.parse_batch(HEADERS + b"a")
    with pytest.raises(ProtocolError):
        requests.parse_batch(HEADERS + b"\x00\xd8")  # half a pair of surrogates


def test_calls() -> None:
    name = "sp_executesql".encode("utf-16-le")
    one = b"\xff\xff\x0a\x00\x00\x00" + b"\x00\x00\x38\x07\x00\x00\x00" + b"\x02@\0x\0\x01\x26\x04\x00"
    two = struct.pack("<H", len(name) // 2) + name + b"\0\0"
    first, second = requests.parse_calls(HEADERS + one + b"\xff" + two)
    assert (first.procedure, second.procedure, second.arguments) == ("sp_executesql", "sp_executesql", ())
    assert [(a.name, a.value, a.output) for a in first.arguments] == [("", 7, False), ("@x", None, True)]
    for cut in range(1, len(one)):
        if cut != 6 and cut != 13:  # there a call may end
            with pytest.raises(ProtocolError):
                requests.parse_calls(HEADERS + one[:cut])


def test_requests_for_the_transaction_manager() -> None:
    begin = requests.parse_transaction(HEADERS + b"\x05\x00\x00\x01t\x00")
    assert (begin.act, begin.name, begin.begin) == (requests.Act.BEGIN, "t", False)
    again = requests.parse_transaction(HEADERS + b"\x07\x00\x00\x01\x00\x00")
    assert (again.act, again.begin) == (requests.Act.COMMIT, True)
    with pytest.raises(ProtocolError):
        requests.parse_transaction(HEADERS + b"\x01\x00\x00")


scalars = st.one_of(st.none(), st.integers(-(2**31), 2**31 - 1))


@given(st.lists(st.tuples(st.sampled_from(["", "@a", "@ü"]), st.one_of(scalars, texts)), max_size=8))
@settings(max_examples=100, deadline=None)
def test_calls_come_as_they_went(arguments: list[tuple[str, object]]) -> None:
    """What another writer makes of them, in the tests' own client, is read here."""
    pieces = [text(value, name) if isinstance(value, str) else integer(value, name) for name, value in arguments]
    one = call("sp_executesql", *pieces)
    for parsed in requests.parse_calls(HEADERS + one + b"\xff" + one):
        assert [(argument.name, argument.value) for argument in parsed.arguments] == arguments


# ---- login


def test_a_login() -> None:
    asked = login.parse(login7("sä", "pä's", "db"))
    assert (asked.user, asked.password, asked.database, asked.host, asked.program) == (
        "sä",
        "pä's",
        "db",
        "host",
        "test",
    )
    assert (asked.version, asked.packet_size, asked.features, asked.integrated) == (0x74000004, 4096, None, False)
    assert "pä's" not in repr(asked)


def test_what_a_login_offers() -> None:
    extension = b"\x0a" + struct.pack("<I", 1) + b"\x01" + b"\x04" + struct.pack("<I", 0) + b"\xff"
    asked = login.parse(login7(flags=b"\xe0\x83\x00\x10", extension=extension))
    assert (asked.features, asked.integrated) == (frozenset({4, 10}), True)
    with pytest.raises(ProtocolError):
        login.parse(login7(flags=b"\xe0\x03\x00\x10", extension=extension[:-1]))


@pytest.mark.parametrize(("asked", "spoken"), [(0x730B0003, 0x730B0003), (0x74000004, 0x74000004),
                                               (0x75000000, 0x74000004), (0x08000000, 0x08000000)])  # fmt: skip
def test_versions(asked: int, spoken: int) -> None:
    assert login.parse(login7(version=asked)).version == spoken


@pytest.mark.parametrize("version", [0, 0x70000000, 0x71000001, 0x72090002])
def test_versions_that_are_too_old(version: int) -> None:
    with pytest.raises(ProtocolError, match="too old"):
        login.parse(login7(version=version))


def test_who_may_log_in() -> None:
    logins = login.Logins({"Sa": "secret"})
    assert logins.admit("sA", "secret")
    assert not logins.admit("sa", "Secret") and not logins.admit("", "") and not logins.admit("other", "secret")
    with pytest.raises(ValueError):
        login.Logins({"sa": ""})


# ---- prelogin


@pytest.mark.parametrize(
    ("wanted", "client", "agreed"),
    [
        (Encrypt.NEVER, Encryption.OFF, Encryption.NOT_SUPPORTED),
        (Encrypt.NEVER, Encryption.ON, Encryption.NOT_SUPPORTED),
        (Encrypt.OPTIONAL, Encryption.OFF, Encryption.OFF),
        (Encrypt.OPTIONAL, Encryption.ON, Encryption.ON),
        (Encrypt.OPTIONAL, Encryption.REQUIRED, Encryption.ON),
        (Encrypt.OPTIONAL, Encryption.NOT_SUPPORTED, Encryption.NOT_SUPPORTED),
        (Encrypt.REQUIRED, Encryption.OFF, Encryption.REQUIRED),
        (Encrypt.REQUIRED, Encryption.ON, Encryption.ON),
        (Encrypt.REQUIRED, Encryption.NOT_SUPPORTED, Encryption.REQUIRED),
    ],
)
def test_which_encryption_comes_of_what_both_want(wanted, client, agreed) -> None:
    """The table of MS-TDS 2.2.6.5."""
    assert prelogin.negotiate(wanted, client) is agreed


def test_prelogin() -> None:
    sent = prelogin.answer((16, 0, 1000), Encryption.ON, {})
    options = prelogin.parse(sent)
    assert options[prelogin.Option.VERSION] == bytes((16, 0, 3, 232, 0, 0))
    assert prelogin.client_encryption(options) is Encryption.ON
    assert prelogin.client_encryption({}) is Encryption.NOT_SUPPORTED
    for bad in (b"", b"\xff", sent[:-1], b"\0\0\x06\0\x06\xff", b"\x01\0\x06\0\x01\xff\0"):
        with pytest.raises(ProtocolError):
            prelogin.parse(bad)


# ---- packets


class Wire:
    """Both ends of a connection."""

    def __enter__(self) -> Wire:
        self.peer, self.socket = socket.socketpair()
        self.stream = Stream(self.socket, 5)
        return self

    def __exit__(self, *error: object) -> None:
        self.peer.close()
        self.socket.close()

    def receive(self, data: bytes, limit: int = 1 << 20) -> packets.Packet:
        self.peer.sendall(data)
        self.peer.shutdown(socket.SHUT_WR)
        return packets.receive(self.stream, 5, 5, limit)


@given(st.binary(max_size=2000), st.integers(512, 1024))
@settings(max_examples=30, deadline=None)
def test_a_message_comes_as_it_went(data: bytes, size: int) -> None:
    with Wire() as wire:
        reply = Reply(Stream(wire.peer, 5), size, 51)
        reply.write(data[:700])
        reply.flush()
        reply.write(data[700:])
        reply.end()
        packet = packets.receive(wire.stream, 5, 5, 1 << 20)
    assert (packet.type, packet.data) == (PacketType.RESULT, data)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", ClosedError),
        (b"\x01\x01\x00\x09\0\0\0\0", ClosedError),
        (b"\x01\x01\x00\x07\0\0\0\0", ProtocolError),
        (b"\x01\x00\x00\x09\0\0\0\0a" + b"\x03\x01\x00\x09\0\0\0\0a", ProtocolError),
        (b"\x01\x00\x40\x00\0\0\0\0" + bytes(16376), ProtocolError),
        (b"\x01\x00\x00\x08\0\0\0\0" + b"\x01\x01\x00\x09\0\0\0\0a", ProtocolError),  # nothing, and more of it
    ],
)
def test_packets_that_are_none(data: bytes, error: type[Exception]) -> None:
    with Wire() as wire, pytest.raises(error):
        wire.receive(data, limit=8192)


def test_a_message_in_small_packets_takes_little_memory() -> None:
    sent = b"\x01\x00\x00\x0a\0\0\0\0ab" * 100_000 + b"\x01\x01\0\x08\0\0\0\0"
    with Wire() as wire:
        sender = threading.Thread(target=wire.peer.sendall, args=(sent,))
        tracemalloc.start()
        try:
            sender.start()
            packet = packets.receive(wire.stream, 5, 30, 1 << 20)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            sender.join()
    assert packet.data == b"ab" * 100_000
    assert peak < 1_000_000


def test_a_client_that_does_not_read_is_given_up() -> None:
    with Wire() as wire, pytest.raises(ClosedError, match="does not read"):
        Stream(wire.socket, 0.2).write(bytes(64 << 20))


# ---- tokens


def test_messages() -> None:
    """The layout of ERROR and INFO tokens, MS-TDS 2.2.7.10 and 2.2.7.13."""
    said = tokens.message(message(3013, "BACKUP DATABASE"), "S")
    text = "BACKUP DATABASE is terminating abnormally.".encode("utf-16-le")
    body = struct.pack("<iBBH", 3013, 1, 16, len(text) // 2) + text + b"\x01S\0" + b"\0" + struct.pack("<i", 1)
    assert said == b"\xaa" + struct.pack("<H", len(body)) + body
    assert tokens.message(Message(3211, 10, 1, "x"), "S")[:9] == b"\xab" + struct.pack("<HiBB", 18, 3211, 1, 0)


def test_a_long_message_is_cut() -> None:
    token = tokens.message(Message(1, 16, 1, "x" * 100_000), "S" * 1000)
    reader = Reader(token, 1)
    assert reader.uint16() == reader.left
    reader.take(6)
    assert reader.text(reader.uint16()) == "x" * 8000
    assert (reader.short_text(), reader.short_text(), reader.left) == ("S" * 255, "", 4)


# ---- whatever comes

PARSERS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "batch": (requests.parse_batch, HEADERS + "SELECT 1".encode("utf-16-le")),
    "calls": (
        requests.parse_calls,
        HEADERS + b"\xff\xff\x0a\0\0\0"
        + b"\0\0\xe7\x40\x1f" + types.COLLATION + b"\x02\0a\0"
        + b"\x02@\0x\0\x01\x6c\x11\x12\x04\x05\x01\x39\x30\0\0"
        + b"\0\0\xa5\xff\xff\xfe" + b"\xff" * 7 + b"\x01\0\0\0a\0\0\0\0"
        + b"\0\0\x2b\x07\x0a" + bytes(10)
        + b"\0\0\x6f\x08\x08" + bytes(8),
    ),
    "transaction": (requests.parse_transaction, HEADERS + b"\x07\0\x01t\0\x01\0\0"),
    "login": (login.parse, login7(flags=b"\xe0\x03\0\x10", extension=b"\x0a\x01\0\0\0\x01\xff")),
    "prelogin": (prelogin.parse, prelogin.answer((16, 0, 1000), Encryption.OFF, {})),
}  # fmt: skip


@pytest.mark.parametrize("name", PARSERS)
def test_the_samples_are_good(name: str) -> None:
    parse, sample = PARSERS[name]
    parse(sample)


@pytest.mark.parametrize("name", PARSERS)
def test_random_bytes_give_a_typed_error_at_worst(name: str) -> None:
    parse, sample = PARSERS[name]

    @given(st.binary(max_size=200), st.booleans())
    @example(b"", False)
    @settings(max_examples=300, deadline=None)
    def check(data: bytes, headers: bool) -> None:
        try:
            parse(HEADERS + data if headers else data)
        except ProtocolError:
            pass

    check()


@pytest.mark.parametrize("name", PARSERS)
def test_damaged_messages_give_a_typed_error_at_worst(name: str) -> None:
    parse, sample = PARSERS[name]
    places = st.integers(0, len(sample) - 1)

    @given(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=6), st.integers(0, len(sample)))
    @settings(max_examples=500, deadline=None)
    def check(changes: list[tuple[int, int]], cut: int) -> None:
        data = bytearray(sample)
        for place, value in changes:
            data[place] = value
        for damaged in (bytes(data), bytes(data[:cut])):
            try:
                parse(damaged)
            except ProtocolError:
                pass

    check()


def test_every_cut_of_a_message_gives_a_typed_error_at_worst() -> None:
    for parse, sample in PARSERS.values():
        for cut in range(len(sample)):
            try:
                parse(sample[:cut])
            except ProtocolError:
                pass
