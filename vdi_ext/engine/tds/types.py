"""Types and values on the wire: what parameters say they are, and how columns are described and filled."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal

from ..types import SqlType
from .wire import ProtocolError, Reader, decode_text, encode_text

Value = object  # None, bool, int, float, Decimal, str, bytes, UUID, date, time, datetime

# SQL_Latin1_General_CP1_CI_AS: 1252 is its code page.
COLLATION = bytes((0x09, 0x04, 0xD0, 0x00, 0x34))
_UTF8 = 0x04000000  # in the first four bytes of a collation
_MAX = 0xFFFF  # the size of a type without one
_MOST_BYTES = 8000  # of a type with one
_PLP_NULL = 0xFFFFFFFFFFFFFFFF
_DAY0 = datetime(1900, 1, 1)
_DATE0 = date(1, 1, 1)
_MOST_PRECISION = 38

# Types of one size: token -> name. Their values have no length before them.
_FIXED = {
    0x30: ("tinyint", 1), 0x32: ("bit", 1), 0x34: ("smallint", 2), 0x38: ("int", 4), 0x7F: ("bigint", 8),
    0x3B: ("real", 4), 0x3E: ("float", 8), 0x3A: ("smalldatetime", 4), 0x3D: ("datetime", 8), 0x3C: ("money", 8),
    0x7A: ("smallmoney", 4), 0x1F: ("null", 0),
}  # fmt: skip
# Types of a few sizes, which tell them apart: token -> size -> name.
_SIZED = {
    0x26: {1: "tinyint", 2: "smallint", 4: "int", 8: "bigint"},
    0x68: {1: "bit"},
    0x6D: {4: "real", 8: "float"},
    0x6E: {4: "smallmoney", 8: "money"},
    0x6F: {4: "smalldatetime", 8: "datetime"},
    0x24: {16: "uniqueidentifier"},
}
_NUMERIC = {0x6A: "decimal", 0x6C: "numeric"}
_SCALED = {0x29: "time", 0x2A: "datetime2", 0x2B: "datetimeoffset"}
_DATE = 0x28
# Up to 8000 bytes or without limit: token -> name, whether a collation follows.
_STRINGS = {
    0xA5: ("varbinary", False), 0xAD: ("binary", False), 0xA7: ("varchar", True), 0xAF: ("char", True),
    0xE7: ("nvarchar", True), 0xEF: ("nchar", True),
}  # fmt: skip
_LONG = {0x22: ("varbinary", False), 0x23: ("varchar", True), 0x63: ("nvarchar", True)}  # image, text, ntext
_XML = 0xF1


@dataclass(frozen=True)
class WireType:
    """A type as a client describes it.

    Parameters
    ----------
    sql : SqlType
    read : callable
        Takes a value from a `Reader`; None is NULL. Raises `ProtocolError`.
    """

    sql: SqlType
    read: Callable[[Reader], Value]


def read_type(reader: Reader) -> WireType:
    """The TYPE_INFO of a parameter. Raises `ProtocolError`, also for types that are not spoken here."""
    token = reader.uint8()
    if token in _FIXED:
        name, size = _FIXED[token]
        return WireType(SqlType(name), lambda r: _scalar(name, r.take(size)))
    if token in _SIZED:
        sizes = _SIZED[token]
        name = _known(sizes, reader.uint8())
        return WireType(SqlType(name), lambda r: _sized(sizes, r))
    if token in _NUMERIC:
        reader.uint8()  # the most bytes of a value
        precision, scale = reader.uint8(), reader.uint8()
        if not 1 <= precision <= _MOST_PRECISION or scale > precision:
            raise ProtocolError(f"a number of {precision} digits, {scale} of them behind the point")
        sql = SqlType(_NUMERIC[token], precision=precision, scale=scale)
        return WireType(sql, lambda r: _numeric(r.take(r.uint8()), scale))
    if token == _DATE:
        return WireType(SqlType("date"), lambda r: _time_value("date", 0, r.take(r.uint8())))
    if token in _SCALED:
        name, scale = _SCALED[token], reader.uint8()
        if scale > 7:
            raise ProtocolError(f"a time with {scale} digits behind the point")
        return WireType(SqlType(name, scale=scale), lambda r: _time_value(name, scale, r.take(r.uint8())))
    if token in _STRINGS:
        return _string_type(*_STRINGS[token], reader.uint16(), reader)
    if token in _LONG:
        name, collated = _LONG[token]
        reader.uint32()  # the most bytes of a value
        decode = _decoder(name, reader.take(5) if collated else COLLATION)
        return WireType(SqlType(name), lambda r: _long(r, decode))
    if token == _XML:
        if reader.uint8():
            raise ProtocolError("XML with a schema is not understood")
        return WireType(SqlType("nvarchar"), lambda r: _plp(r, decode_text))
    raise ProtocolError(f"data type 0x{token:02X} is not understood")


# ---- reading values


def _known(sizes: dict[int, str], size: int) -> str:
    if size not in sizes:
        raise ProtocolError(f"a value of {size} bytes where only {', '.join(map(str, sizes))} fit")
    return sizes[size]


def _sized(sizes: dict[int, str], reader: Reader) -> Value:
    size = reader.uint8()
    return _scalar(_known(sizes, size), reader.take(size)) if size else None


def _scalar(name: str, data: bytes) -> Value:
    if name == "null":
        return None
    if name == "tinyint":
        return data[0]
    if name == "bit":
        return data[0] != 0
    if name in ("smallint", "int", "bigint"):
        return int.from_bytes(data, "little", signed=True)
    if name in ("real", "float"):
        return struct.unpack("<f" if name == "real" else "<d", data)[0]
    if name == "smallmoney":
        return Decimal(int.from_bytes(data, "little", signed=True)).scaleb(-4)
    if name == "money":
        high, low = struct.unpack("<iI", data)
        return Decimal((high << 32) | low).scaleb(-4)
    if name == "uniqueidentifier":
        return uuid.UUID(bytes_le=data)
    try:
        if name == "smalldatetime":
            days, minutes = struct.unpack("<HH", data)
            return _DAY0 + timedelta(days=days, minutes=minutes)
        days, ticks = struct.unpack("<iI", data)  # ticks: 300 a second
        return _DAY0 + timedelta(days=days, milliseconds=round(ticks * 10 / 3))
    except OverflowError:
        raise ProtocolError(f"a {name} beyond all calendars") from None


def _numeric(data: bytes, scale: int) -> Value:
    if not data:
        return None
    if not 2 <= len(data) <= 17 or data[0] > 1:  # as many bytes as the digits need, or 5, 9, 13, 17
        raise ProtocolError("a number whose length or sign is none")
    digits = str(int.from_bytes(data[1:], "little"))
    if len(digits) > _MOST_PRECISION:
        raise ProtocolError(f"a number of {len(digits)} digits")
    return Decimal((1 - data[0], tuple(map(int, digits)), -scale))


def _time_value(name: str, scale: int, data: bytes) -> Value:
    if not data:
        return None
    clock = {"date": 0, "time": 0, "datetime2": 3, "datetimeoffset": 5}[name]  # bytes behind the time of day
    size = 3 if name == "date" else clock + _clock_size(scale)
    if len(data) != size:
        raise ProtocolError(f"a {name} of {len(data)} bytes where {size} fit")
    try:
        if name == "date":
            return _DATE0 + timedelta(days=int.from_bytes(data, "little"))
        ticks = int.from_bytes(data[: size - clock], "little")
        moment = timedelta(microseconds=ticks * 10**6 // 10**scale)
        if moment >= timedelta(days=1):
            raise ProtocolError("a time of day beyond midnight")
        start = datetime(1, 1, 1)
        if name == "time":
            return (start + moment).time()
        days = int.from_bytes(data[size - clock : size - clock + 3], "little")
        whole = start + timedelta(days=days) + moment
        if name == "datetime2":
            return whole
        zone = timezone(timedelta(minutes=int.from_bytes(data[-2:], "little", signed=True)))
        return whole.replace(tzinfo=UTC).astimezone(zone)
    except (OverflowError, ValueError):
        raise ProtocolError(f"a {name} beyond all calendars") from None


def _clock_size(scale: int) -> int:
    return 3 if scale <= 2 else 4 if scale <= 4 else 5


def _string_type(name: str, collated: bool, size: int, reader: Reader) -> WireType:
    decode = _decoder(name, reader.take(5) if collated else COLLATION)
    if size == _MAX:
        return WireType(SqlType(name), lambda r: _plp(r, decode))
    return WireType(SqlType(name, size // 2 if name.startswith("n") else size), lambda r: _short(r, decode))


def _decoder(name: str, collation: bytes) -> Callable[[bytes], Value]:
    if name.endswith("binary"):
        return bytes
    if name.startswith("n"):
        return decode_text
    code_page = "utf-8" if int.from_bytes(collation[:4], "little") & _UTF8 else "cp1252"
    return lambda data: data.decode(code_page, "replace")


def _short(reader: Reader, decode: Callable[[bytes], Value]) -> Value:
    size = reader.uint16()
    return None if size == 0xFFFF else decode(reader.take(size))


def _long(reader: Reader, decode: Callable[[bytes], Value]) -> Value:
    size = reader.uint32()
    return None if size == 0xFFFFFFFF else decode(reader.take(size))


def _plp(reader: Reader, decode: Callable[[bytes], Value]) -> Value:
    """A value in pieces; its total length may be unknown beforehand, and is not believed."""
    if reader.uint64() == _PLP_NULL:
        return None
    data = bytearray()
    while size := reader.uint32():
        data += reader.take(size)
    return decode(bytes(data))


# ---- describing and filling columns

_INTEGERS = {"tinyint": 1, "smallint": 2, "int": 4, "bigint": 8}
_TEXT = {"char", "varchar", "nchar", "nvarchar"}
_CODES = {name: token for token, (name, _) in _STRINGS.items()}


def type_info(type_: SqlType) -> bytes:
    """TYPE_INFO of a column, always one that can be NULL."""
    name = _plain(type_)
    if name in _INTEGERS:
        return bytes((0x26, _INTEGERS[name]))
    for token, sizes in _SIZED.items():
        for size, other in sizes.items():
            if other == name:
                return bytes((token, size))
    if name in _NUMERIC.values():
        return bytes((0x6C, 17, type_.precision or 18, type_.scale or 0))
    if name == "date":
        return bytes((_DATE,))
    for token, other in _SCALED.items():
        if other == name:
            return bytes((token, _scale(type_)))
    size = _room(type_) or _MAX
    return bytes((_CODES[name],)) + struct.pack("<H", size) + (COLLATION if name in _TEXT else b"")


def encode(type_: SqlType, value: Value) -> bytes:
    """A value of a column, as its `type_info` promises it. Raises TypeError or ValueError where it does not fit."""
    name = _plain(type_)
    if name in _CODES:
        return _encode_string(type_, name, value)
    if value is None:
        return b"\0"
    data = _encode_scalar(type_, name, value)
    return bytes((len(data),)) + data


def _plain(type_: SqlType) -> str:
    return {"sysname": "nvarchar", "null": "int"}.get(type_.name, type_.name)


def _room(type_: SqlType) -> int:
    """Bytes that a string of the type may have at most; 0: it is without limit."""
    size = (type_.size or 0) * (2 if _plain(type_).startswith("n") else 1)
    return size if size <= _MOST_BYTES else 0


def _scale(type_: SqlType) -> int:
    return 7 if type_.scale is None else type_.scale


def _encode_string(type_: SqlType, name: str, value: Value) -> bytes:
    room = _room(type_)
    if value is None:
        return b"\xff\xff" if room else struct.pack("<Q", _PLP_NULL)
    if name.endswith("binary"):
        data = bytes(value)  # type: ignore[call-overload]
    elif name.startswith("n"):
        data = encode_text(str(value))
    else:
        data = str(value).encode("cp1252", "replace")
    if not room:
        return struct.pack("<Q", len(data)) + (struct.pack("<I", len(data)) + data if data else b"") + bytes(4)
    if len(data) > room:
        raise ValueError(f"{len(data)} bytes in a column of type {name}({type_.size})")
    return struct.pack("<H", len(data)) + data


def _encode_scalar(type_: SqlType, name: str, value: Value) -> bytes:
    if name in _INTEGERS:
        return int(value).to_bytes(_INTEGERS[name], "little", signed=name != "tinyint")  # type: ignore[call-overload]
    if name == "bit":
        return bytes((1 if value else 0,))
    if name in ("real", "float"):
        return struct.pack("<f" if name == "real" else "<d", value)
    if name in _NUMERIC.values():
        return _encode_numeric(type_, Decimal(value))  # type: ignore[arg-type]
    if name in ("money", "smallmoney"):
        units = round(Decimal(value).scaleb(4))  # type: ignore[arg-type]
        if name == "smallmoney":
            return struct.pack("<i", units)
        return struct.pack("<iI", units >> 32, units & 0xFFFFFFFF)
    if name == "uniqueidentifier":
        return (value if isinstance(value, uuid.UUID) else uuid.UUID(str(value))).bytes_le
    return _encode_time(type_, name, value)


def _encode_numeric(type_: SqlType, value: Decimal) -> bytes:
    scale, precision = type_.scale or 0, type_.precision or 18
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        raise ValueError(f"{value} is no number")
    number = int("".join(map(str, digits)))
    shift = exponent + scale
    number = number * 10**shift if shift >= 0 else (number + 5 * 10 ** (-shift - 1)) // 10**-shift
    if number >= 10**precision:
        raise ValueError(f"{value} in a column of {precision} digits")
    return bytes((1 - sign,)) + number.to_bytes(16, "little")


def _encode_time(type_: SqlType, name: str, value: Value) -> bytes:
    if isinstance(value, datetime):
        day, clock = value.date(), value.time()
    elif isinstance(value, date):
        day, clock = value, time()
    elif isinstance(value, time):
        day, clock = _DATE0, value
    else:
        raise TypeError(f"{type(value).__name__} in a column of type {name}")
    if name == "datetimeoffset":
        moment = value if isinstance(value, datetime) else datetime.combine(day, clock)
        offset = moment.utcoffset() or timedelta()
        moment = moment.replace(tzinfo=None) - offset
        day, clock = moment.date(), moment.time()
        tail = struct.pack("<h", offset // timedelta(minutes=1))
    else:
        tail = b""
    micros = ((clock.hour * 60 + clock.minute) * 60 + clock.second) * 10**6 + clock.microsecond
    if name == "smalldatetime":
        return struct.pack("<HH", (day - _DAY0.date()).days, micros // 60_000_000)
    if name == "datetime":
        ticks = min(round(micros * 3 / 10_000), 24 * 3600 * 300 - 1)
        return struct.pack("<iI", (day - _DAY0.date()).days, ticks)
    days = (day - _DATE0).days.to_bytes(3, "little")
    if name == "date":
        return days
    scale = _scale(type_)
    front = (micros * 10**scale // 10**6).to_bytes(_clock_size(scale), "little")
    return front + (b"" if name == "time" else days) + tail
