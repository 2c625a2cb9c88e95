"""Tokens: the pieces that a server's answer is made of."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum, IntFlag

from ..messages import Message
from ..types import Column, SqlType
from .types import COLLATION, Value, encode, type_info
from .wire import long_text, short_text

_MOST_TEXT = 8000  # characters of a message
PROGRAM = "Microsoft SQL Server"  # what drivers expect to talk to


class Done(IntEnum):
    """Which token ends a statement."""

    STATEMENT = 0xFD
    PROCEDURE = 0xFE
    IN_PROCEDURE = 0xFF


class Status(IntFlag):
    """How it ended."""

    FINAL = 0
    MORE = 0x01
    ERROR = 0x02
    IN_TRANSACTION = 0x04
    COUNT = 0x10
    ATTENTION = 0x20


class Change(IntEnum):
    """What an ENVCHANGE token tells of."""

    DATABASE = 1
    LANGUAGE = 2
    PACKET_SIZE = 4
    COLLATION = 7
    BEGIN = 8
    COMMIT = 9
    ROLLBACK = 10
    RESET = 18


def message(said: Message, server: str) -> bytes:
    """An INFO or ERROR token; ten is the highest severity that informs, and goes out as 0, as SQL Server does it."""
    severity = 0 if said.severity == 10 else said.severity
    body = (
        struct.pack("<iBB", said.number, said.state & 0xFF, severity & 0xFF)
        + long_text(said.text[:_MOST_TEXT])
        + short_text(server)
        + short_text("")  # no procedure
        + struct.pack("<i", said.line)
    )
    return struct.pack("<BH", 0xAB if said.severity <= 10 else 0xAA, len(body)) + body


def done(kind: Done, status: Status, count: int | None = None) -> bytes:
    """The end of a statement, with its rows where it has a count of them."""
    if count is not None:
        status |= Status.COUNT
    return struct.pack("<BHHQ", kind, status, 0xC1 if count is not None else 0, count or 0)


def change_text(kind: Change, new: str, old: str) -> bytes:
    return _change(kind, short_text(new) + short_text(old))


def change_collation() -> bytes:
    return _change(Change.COLLATION, bytes((len(COLLATION),)) + COLLATION + b"\0")


def change_transaction(kind: Change, number: int) -> bytes:
    """A transaction began, or ended; by its descriptor."""
    descriptor = b"\x08" + struct.pack("<Q", number)
    return _change(kind, descriptor + b"\0" if kind is Change.BEGIN else b"\0" + descriptor)


def change_reset() -> bytes:
    return _change(Change.RESET, b"\0\0")


def _change(kind: Change, body: bytes) -> bytes:
    return struct.pack("<BHB", 0xE3, len(body) + 1, kind) + body


def login_acknowledged(version: int, build: tuple[int, int, int]) -> bytes:
    """The login is accepted; with the version of TDS that is spoken from here on."""
    major, minor, number = build
    body = b"\x01" + struct.pack(">I", version) + short_text(PROGRAM) + struct.pack(">BBH", major, minor, number)
    return struct.pack("<BH", 0xAD, len(body)) + body


def features_acknowledged() -> bytes:
    """None of the extensions that a client offers is used."""
    return b"\xae\xff"


def columns(described: Sequence[Column]) -> bytes:
    """COLMETADATA: begins a result set."""
    parts = [struct.pack("<BH", 0x81, len(described) or 0xFFFF)]
    for column in described:
        parts.append(struct.pack("<IH", 0, 1 if column.nullable else 0))
        parts.append(type_info(column.type) + short_text(column.name))
    return b"".join(parts)


def row(described: Sequence[Column], values: Sequence[Value]) -> bytes:
    parts = [b"\xd1"]
    parts += [encode(column.type, value) for column, value in zip(described, values, strict=True)]
    return b"".join(parts)


def return_status(value: int) -> bytes:
    return struct.pack("<Bi", 0x79, value)


def return_value(ordinal: int, name: str, type_: SqlType, value: Value) -> bytes:
    """An output parameter of a procedure."""
    head = struct.pack("<BH", 0xAC, ordinal) + short_text(name) + struct.pack("<BIH", 1, 0, 1)
    return head + type_info(type_) + encode(type_, value)
