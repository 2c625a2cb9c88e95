"""What a client asks for once it is logged in: batches, calls of procedures, and its transactions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from ..types import SqlType
from .types import Value, read_type
from .wire import ProtocolError, Reader

MOST_PARAMETERS = 2100
_BY_REFERENCE, _ENCRYPTED = 0x01, 0x08  # status of a parameter
_NEXT_CALL, _NEXT_CALL_UNRUN = 0xFF, 0xFE  # in the place of the length of a parameter's name
_NUMBERED = 0xFFFF  # in the place of the length of a procedure's name

# Procedures that are called by number.
_PROCEDURES = {
    1: "sp_cursor", 2: "sp_cursoropen", 3: "sp_cursorprepare", 4: "sp_cursorexecute", 5: "sp_cursorprepexec",
    6: "sp_cursorunprepare", 7: "sp_cursorfetch", 8: "sp_cursoroption", 9: "sp_cursorclose", 10: "sp_executesql",
    11: "sp_prepare", 12: "sp_execute", 13: "sp_prepexec", 14: "sp_prepexecrpc", 15: "sp_unprepare",
}  # fmt: skip


@dataclass(frozen=True)
class Argument:
    """A parameter of a call.

    Parameters
    ----------
    name : str
        With its ``@``; empty where it has only its place.
    type : SqlType
    value : object
        None for NULL.
    output : bool
        The caller wants it back.
    """

    name: str
    type: SqlType
    value: Value
    output: bool = False


@dataclass(frozen=True)
class Call:
    """A procedure by its name, and what it is given."""

    procedure: str
    arguments: tuple[Argument, ...]


class Act(IntEnum):
    """What a request for the transaction manager wants."""

    BEGIN = 5
    COMMIT = 7
    ROLLBACK = 8
    SAVE = 9


@dataclass(frozen=True)
class TransactionRequest:
    """A request for the transaction manager.

    Parameters
    ----------
    act : Act
    name : str
        Of the transaction or savepoint; may be empty.
    begin : bool
        Another one begins at once.
    """

    act: Act
    name: str = ""
    begin: bool = False


def _after_headers(data: bytes) -> Reader:
    """Past ALL_HEADERS, whose contents matter to nobody here."""
    reader = Reader(data)
    left = reader.uint32() - 4
    while left:
        size = reader.uint32()
        if not 6 <= size <= left:
            raise ProtocolError("a header of a request has a length that cannot be")
        reader.take(size - 4)
        left -= size
    return reader


def parse_batch(data: bytes) -> str:
    """The text of a batch. Raises `ProtocolError`."""
    reader = _after_headers(data)
    if reader.left % 2:
        raise ProtocolError("a batch ends within a character")
    return reader.text(reader.left // 2)


def parse_calls(data: bytes) -> list[Call]:
    """The calls of an RPC message, in their order. Raises `ProtocolError`."""
    reader = _after_headers(data)
    calls: list[Call] = []
    parameters = 0
    while reader.left:
        length = reader.uint16()
        if length == _NUMBERED:
            number = reader.uint16()
            name = _PROCEDURES.get(number, f"procedure number {number}")
        else:
            name = reader.text(length)
        reader.uint16()  # options: recompile, no metadata
        arguments: list[Argument] = []
        while reader.left:
            size = reader.uint8()
            if size == _NEXT_CALL_UNRUN:
                raise ProtocolError("a call that is not to be run")
            if size == _NEXT_CALL:
                break
            parameters += 1
            if parameters > MOST_PARAMETERS:
                raise ProtocolError(f"more than {MOST_PARAMETERS} parameters")
            arguments.append(_argument(reader, size))
        calls.append(Call(name, tuple(arguments)))
    if not calls:
        raise ProtocolError("an RPC message without a call")
    return calls


def _argument(reader: Reader, size: int) -> Argument:
    name, status = reader.text(size), reader.uint8()
    if status & _ENCRYPTED:
        raise ProtocolError("an encrypted parameter")
    type_ = read_type(reader)
    return Argument(name, type_.sql, type_.read(reader), bool(status & _BY_REFERENCE))


def parse_transaction(data: bytes) -> TransactionRequest:
    """A request for the transaction manager. Raises `ProtocolError`, also for distributed transactions."""
    reader = _after_headers(data)
    number = reader.uint16()
    if number not in list(Act):
        raise ProtocolError(f"transaction manager request {number} is not understood")
    act = Act(number)
    if act is Act.BEGIN:
        reader.uint8()  # isolation level: nothing here depends on it
    name = reader.short_text()
    if act in (Act.COMMIT, Act.ROLLBACK) and reader.uint8() & 1:
        reader.uint8()
        reader.short_text()
        return TransactionRequest(act, name, begin=True)
    return TransactionRequest(act, name)
