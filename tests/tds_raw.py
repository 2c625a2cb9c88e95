"""A client of TDS that says what a test wants, byte by byte, and shows what comes back token by token."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field
from typing import NamedTuple

HEADERS = struct.pack("<IIHQI", 22, 18, 2, 0, 1)  # ALL_HEADERS with a transaction descriptor, as every driver sends
BATCH, RPC, ATTENTION, TRANSACTION, LOGIN7, PRELOGIN = 1, 3, 6, 14, 16, 18
MORE, ERROR, IN_TRANSACTION, COUNT, ATTENTION_ANSWERED = 1, 2, 4, 0x10, 0x20
WAIT = 30.0  # seconds; only a bound


class Done(NamedTuple):
    token: int
    status: int
    count: int


class Said(NamedTuple):
    number: int
    severity: int
    text: str


@dataclass
class Answer:
    """The tokens of one message."""

    said: list[Said] = field(default_factory=list)
    dones: list[Done] = field(default_factory=list)
    changes: list[tuple[int, bytes]] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    values: list[bytes] = field(default_factory=list)  # of output parameters that are int
    acknowledged: bool = False

    @property
    def numbers(self) -> list[int]:
        return [said.number for said in self.said]


def login7(user: str = "sa", password: str = "secret", database: str = "", *, version: int = 0x74000004,
           flags: bytes = b"\xe0\x03\x00\x00", extension: bytes = b"") -> bytes:  # fmt: skip
    """A LOGIN7 message, made by the layout in MS-TDS 2.2.6.4."""
    hidden = bytes((byte << 4 & 0xF0 | byte >> 4) ^ 0xA5 for byte in password.encode("utf-16-le"))
    texts = ["host", user, "", "test", "", "", "", "", database]
    pieces = [text.encode("utf-16-le") for text in texts]
    pieces[2] = hidden
    place, table, body = 94, b"", b""
    for number, piece in enumerate(pieces):
        if number == 5 and extension:
            # The extension's place holds the offset of what it has.
            table += struct.pack("<HH", place + len(body), 4)
            body += struct.pack("<I", place + len(body) + 4) + extension
        else:
            table += struct.pack("<HH", place + len(body), len(piece) // 2)
            body += piece
    fixed = struct.pack("<IIIII", version, 4096, 7, 1, 0) + flags + bytes(8)
    whole = fixed + table + bytes(6) + bytes(16) + body
    return struct.pack("<I", len(whole) + 4) + whole


class RawClient:
    """A connection to an endpoint, without TLS; logged in where `login`. A context manager."""

    def __init__(self, host: str, port: int, *, login: bool = True, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(WAIT)
        try:
            self.socket.connect((host, port))
            if login:
                assert self.log_in().acknowledged
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def send(self, kind: int, data: bytes = b"", status: int = 1) -> None:
        """In packets of at most 4096 bytes."""
        pieces = [data[start : start + 4088] for start in range(0, len(data), 4088)] or [b""]
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            head = struct.pack(">BBHHBB", kind, status if last else status & ~1, len(piece) + 8, 0, number & 255, 0)
            self.socket.sendall(head + piece)

    def message(self) -> bytes:
        """One message, whole. Raises `EOFError` where the connection ends."""
        parts = []
        while True:
            _, status, length, *_ = struct.unpack(">BBHHBB", self._read(8))
            parts.append(self._read(length - 8))
            if status & 1:
                return b"".join(parts)

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def closed(self) -> bool:
        """Whether the other side closes, whatever it says before."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return True

    def log_in(self, user: str = "sa", password: str = "secret", database: str = "") -> Answer:
        self.send(PRELOGIN, b"\x00\x00\x0b\x00\x06\x01\x00\x11\x00\x01\xff" + bytes(6) + b"\x02")
        assert self.message()[-3:]
        self.send(LOGIN7, login7(user, password, database))
        return self.answer()

    def batch(self, text: str) -> Answer:
        self.send(BATCH, HEADERS + text.encode("utf-16-le"))
        return self.answer()

    def call(self, procedure: int | str, *arguments: bytes) -> Answer:
        self.send(RPC, HEADERS + call(procedure, *arguments))
        return self.answer()

    def transaction(self, request: bytes) -> Answer:
        self.send(TRANSACTION, HEADERS + request)
        return self.answer()

    def answer(self) -> Answer:
        """The next message, taken apart. It must have no rows."""
        data, place, answer = self.message(), 0, Answer()
        while place < len(data):
            token = data[place]
            if token in (0xFD, 0xFE, 0xFF):
                status, _, count = struct.unpack_from("<HHQ", data, place + 1)
                answer.dones.append(Done(token, status, count))
                place += 13
            elif token == 0x79:
                answer.status.append(struct.unpack_from("<i", data, place + 1)[0])
                place += 5
            elif token == 0xAC:
                # Place, name, status, user type, flags, INTN of 4 bytes, value.
                names = place + 3 + 1 + 2 * data[place + 3]
                size = data[names + 1 + 4 + 2 + 2]
                answer.values.append(data[names + 10 : names + 10 + size])
                place = names + 10 + size
            elif token == 0xAE:
                place += 2
            else:
                (length,) = struct.unpack_from("<H", data, place + 1)
                body = data[place + 3 : place + 3 + length]
                if token in (0xAA, 0xAB):
                    number, _, severity, characters = struct.unpack_from("<iBBH", body)
                    answer.said.append(Said(number, severity, body[8 : 8 + 2 * characters].decode("utf-16-le")))
                elif token == 0xE3:
                    answer.changes.append((body[0], body[1:]))
                elif token == 0xAD:
                    answer.acknowledged = True
                else:
                    raise AssertionError(f"token {token:02x}")
                place += 3 + length
        return answer


def call(procedure: int | str, *arguments: bytes) -> bytes:
    """A call, without headers."""
    if isinstance(procedure, int):
        head = struct.pack("<HHH", 0xFFFF, procedure, 0)
    else:
        head = struct.pack("<H", len(procedure)) + procedure.encode("utf-16-le") + b"\0\0"
    return head + b"".join(arguments)


def text(value: str | None, name: str = "") -> bytes:
    """An argument of type nvarchar(4000)."""
    head = bytes([len(name)]) + name.encode("utf-16-le") + b"\0" + b"\xe7\x40\x1f\x09\x04\xd0\x00\x34"
    if value is None:
        return head + b"\xff\xff"
    data = value.encode("utf-16-le")
    return head + struct.pack("<H", len(data)) + data


def integer(value: int | None, name: str = "", *, output: bool = False) -> bytes:
    """An argument of type int."""
    head = bytes([len(name)]) + name.encode("utf-16-le") + bytes([output]) + b"\x26\x04"
    return head + (b"\0" if value is None else b"\x04" + struct.pack("<i", value))
