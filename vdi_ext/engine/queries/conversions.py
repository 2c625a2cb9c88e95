"""Values between Python, SQLite and T-SQL's types: what CAST and CONVERT do, and what goes to the client.

SQLite holds dates as ISO text, GUIDs as text in capitals, and numbers that 64 bits cannot hold as text of digits.
"""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from uuid import UUID

from ..messages import SqlError, message
from ..tsql.dates import parse_date
from ..types import SqlType

Raw = int | float | str | bytes | None  # what SQLite holds

INTEGERS = {"tinyint": (0, 255), "smallint": (-(1 << 15), (1 << 15) - 1), "int": (-(1 << 31), (1 << 31) - 1),
            "bigint": (-(1 << 63), (1 << 63) - 1)}  # fmt: skip
DECIMALS = {"numeric", "decimal", "money", "smallmoney"}
FLOATS = {"float", "real"}
STRINGS = {"nvarchar", "nchar", "varchar", "char", "sysname"}
BINARIES = {"varbinary", "binary"}
DATES = {"datetime", "datetime2", "smalldatetime", "date", "datetimeoffset"}
# The class of a value, the higher of two wins.
CLASSES = ("binary", "string", "guid", "bit", "int", "decimal", "float", "time", "date")

_DAY0 = datetime(1900, 1, 1)


def class_of(type_: SqlType | None) -> str:
    """What kind of value a type holds; empty for NULL, whose type a client may leave open."""
    if type_ is None:
        return ""
    name = type_.name
    for names, found in ((INTEGERS, "int"), (DECIMALS, "decimal"), (FLOATS, "float"), (STRINGS, "string"),
                         (BINARIES, "binary"), (DATES, "date")):  # fmt: skip
        if name in names:
            return found
    return {"uniqueidentifier": "guid", "bit": "bit", "time": "time"}.get(name, "")


def failure(number: int, *values: object, state: int = 1) -> SqlError:
    return SqlError((message(number, *values, state=state),))


def fit(text: str, size: int | None) -> str:
    """The beginning of a text that has at most so many UTF-16 units."""
    if size is None or 2 * len(text) <= size or len(text.encode("utf-16-le", "surrogatepass")) <= 2 * size:
        return text
    return text.encode("utf-16-le", "surrogatepass")[: 2 * size].decode("utf-16-le", "ignore")


# ---- SQLite


def to_raw(value: object) -> Raw:
    """A value as SQLite holds it."""
    if value is None or isinstance(value, float | str | bytes):
        return value
    if isinstance(value, int):
        return int(value) if -(1 << 63) <= value < 1 << 63 else str(value)
    if isinstance(value, Decimal):
        if value != value.to_integral_value():
            return float(value)
        return to_raw(int(value))
    if isinstance(value, datetime):
        return value.replace(tzinfo=None).isoformat(" ", "microseconds")
    if isinstance(value, date):
        return f"{value.isoformat()} 00:00:00.000000"
    if isinstance(value, time):
        return value.replace(tzinfo=None).isoformat("microseconds")
    if isinstance(value, UUID):
        return str(value).upper()
    raise TypeError(f"{type(value).__name__} is no value of T-SQL")


def from_raw(type_: SqlType | None, raw: Raw) -> object:
    """A value of SQLite as one of this type. Raises `SqlError` where it does not fit."""
    if raw is None or type_ is None:
        return raw
    found = class_of(type_)
    try:
        if found == "string":
            return fit(raw if isinstance(raw, str) else _plain(raw), type_.size)
        if found in ("int", "bit"):
            number = int(raw)
            return _in_range(number, type_) if found == "int" else int(number != 0)
        if found == "decimal":
            return _decimal(Decimal(str(raw)), type_)
        if found == "float":
            return float(raw)
        if found == "date":
            return _moment(datetime.fromisoformat(str(raw)), type_)
        if found == "time":
            return time.fromisoformat(str(raw))
        if found == "guid":
            return UUID(str(raw))
        return raw if isinstance(raw, bytes) else str(raw).encode("utf-16-le")
    except (ValueError, TypeError, OverflowError, InvalidOperation):
        raise failure(8114, "nvarchar" if isinstance(raw, str) else "float", type_.name) from None


def _plain(raw: Raw) -> str:
    return raw.decode("latin-1") if isinstance(raw, bytes) else str(raw)


def _in_range(number: int, type_: SqlType) -> int:
    least, most = INTEGERS[type_.name]
    if not least <= number <= most:
        raise failure(8115, "expression", type_.name, state=2)
    return number


def _decimal(value: Decimal, type_: SqlType) -> Decimal:
    precision, scale = {"money": (19, 4), "smallmoney": (10, 4)}.get(
        type_.name, (type_.precision or 18, type_.scale)
    )  # fmt: skip
    if not value.is_finite() or value.adjusted() >= precision - scale:
        raise failure(8115, "numeric", type_.name, state=2)
    return value.quantize(Decimal(1).scaleb(-scale), ROUND_HALF_UP)


def _moment(moment: datetime, type_: SqlType) -> object:
    if type_.name == "date":
        return moment.date()
    if type_.name == "smalldatetime":
        return (moment + timedelta(seconds=30)).replace(second=0, microsecond=0)
    if type_.name == "datetime":
        ticks = round(moment.microsecond * 3 / 10_000)  # 300 a second
        return moment.replace(microsecond=0) + timedelta(milliseconds=round(ticks * 10 / 3))
    return moment


# ---- CAST and CONVERT


def convert(value: object, target: SqlType, style: int = 0) -> object:
    """A value as another type.

    Raises
    ------
    SqlError
        241, 245, 8114, 8115 or 8169.
    """
    if value is None:
        return None
    found = class_of(target)
    if found == "string":
        return _string(value, target, style)
    if found == "int":
        return _in_range(_integer(value, target), target)
    if found == "bit":
        if isinstance(value, str) and value.strip().lower() in ("true", "false"):
            return int(value.strip().lower() == "true")
        return int(_integer(value, target) != 0)
    if found in ("decimal", "float"):
        return _number(value, target, found)
    if found == "date":
        return _moment(_date(value), target)
    if found == "time":
        return value if isinstance(value, time) else _date(value).time()
    if found == "guid":
        return _guid(value)
    return _binary(value, target, style)


def _name_of(value: object) -> str:
    names = {str: "nvarchar", bytes: "varbinary", UUID: "uniqueidentifier", time: "time", datetime: "datetime"}
    return names.get(type(value), "date" if isinstance(value, date) else "numeric")


def _integer(value: object, target: SqlType) -> int:
    if isinstance(value, str):
        text = value.strip()
        try:
            return int(text) if text else 0
        except ValueError:
            raise failure(245, "varchar", fit(value, 100), target.name) from None
    if isinstance(value, bytes):
        return int.from_bytes(value[-8:], "big", signed=len(value) >= 8)
    if isinstance(value, datetime):
        return (value - _DAY0).days
    if isinstance(value, int | float | Decimal):
        try:
            return int(value)
        except (ValueError, OverflowError):
            raise failure(8115, "float", target.name, state=2) from None
    raise failure(8114, _name_of(value), target.name)


def _number(value: object, target: SqlType, found: str) -> object:
    if isinstance(value, datetime):
        value = (value - _DAY0) / timedelta(days=1)
    try:
        number = Decimal(str(value).strip() or "0") if isinstance(value, int | float | Decimal | str) else None
    except InvalidOperation:
        number = None
    if number is None or not number.is_finite():
        raise failure(8114, _name_of(value), target.name)
    if found == "decimal":
        return _decimal(number, target)
    try:
        return float(number)
    except OverflowError:
        raise failure(8115, "expression", target.name, state=2) from None


def _date(value: object) -> datetime:
    if isinstance(value, datetime):
        return value.replace(tzinfo=None)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day)
    if isinstance(value, str):
        text = value.strip()
        moment = parse_date(text) if text else _DAY0
        if moment is None:
            raise failure(241)
        return moment
    if isinstance(value, int | float | Decimal):
        try:
            return _DAY0 + timedelta(days=float(value))
        except (OverflowError, ValueError):
            raise failure(8115, "expression", "datetime", state=2) from None
    raise failure(241)


def _guid(value: object) -> UUID:
    try:
        if isinstance(value, bytes):
            return UUID(bytes_le=value[:16])
        return value if isinstance(value, UUID) else UUID(str(value).strip())
    except ValueError:
        raise failure(8169) from None


def _binary(value: object, target: SqlType, style: int) -> bytes:
    if isinstance(value, bytes):
        data = value
    elif isinstance(value, UUID):
        data = value.bytes_le
    elif isinstance(value, int):
        data = (value & ((1 << 64) - 1)).to_bytes(8, "big")[0 if abs(value) >> 31 else 4 :]
    elif isinstance(value, str) and style in (1, 2):
        try:
            data = bytes.fromhex(value.removeprefix("0x") if style == 1 else value)
        except ValueError:
            raise failure(8114, "varchar", target.name) from None
    else:
        data = str(value).encode("utf-16-le", "replace")
    return data if target.size is None else data[: target.size]


# ---- dates as text

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DATE_STYLES = {
    1: "{m:02}/{d:02}/{yy:02}", 2: "{yy:02}.{m:02}.{d:02}", 3: "{d:02}/{m:02}/{yy:02}", 4: "{d:02}.{m:02}.{yy:02}",
    5: "{d:02}-{m:02}-{yy:02}", 6: "{d:02} {mon} {yy:02}", 7: "{mon} {d:02}, {yy:02}", 10: "{m:02}-{d:02}-{yy:02}",
    11: "{yy:02}/{m:02}/{d:02}", 12: "{yy:02}{m:02}{d:02}",
    0: "{mon} {d:>2} {y:04} {h12:>2}:{mi:02}{half}", 8: "{h:02}:{mi:02}:{s:02}",
    9: "{mon} {d:>2} {y:04} {h12:>2}:{mi:02}:{s:02}:{ms:03}{half}",
    13: "{d:02} {mon} {y:04} {h:02}:{mi:02}:{s:02}:{ms:03}",
    14: "{h:02}:{mi:02}:{s:02}:{ms:03}", 20: "{y:04}-{m:02}-{d:02} {h:02}:{mi:02}:{s:02}",
    21: "{y:04}-{m:02}-{d:02} {h:02}:{mi:02}:{s:02}.{ms:03}", 23: "{y:04}-{m:02}-{d:02}",
    126: "{y:04}-{m:02}-{d:02}T{h:02}:{mi:02}:{s:02}.{ms:03}",
}  # fmt: skip
_WITH_CENTURY = {101: 1, 102: 2, 103: 3, 104: 4, 105: 5, 106: 6, 107: 7, 110: 10, 111: 11, 112: 12}
_SAME = {100: 0, 108: 8, 24: 8, 109: 9, 113: 13, 114: 14, 120: 20, 121: 21, 25: 21, 127: 126}


def _date_text(moment: datetime, style: int) -> str:
    form = _DATE_STYLES.get(_SAME.get(style, style))
    if style in _WITH_CENTURY:
        form = _DATE_STYLES[_WITH_CENTURY[style]].replace("{yy:02}", "{y:04}")
    if form is None:
        raise failure(281, style)
    return form.format(
        y=moment.year, yy=moment.year % 100, m=moment.month, d=moment.day, h=moment.hour, mi=moment.minute,
        s=moment.second, ms=moment.microsecond // 1000, mon=_MONTHS[moment.month - 1], h12=moment.hour % 12 or 12,
        half="AM" if moment.hour < 12 else "PM",
    )  # fmt: skip


def _string(value: object, target: SqlType, style: int) -> str:
    if isinstance(value, datetime):
        text = _date_text(value.replace(tzinfo=None), style)
    elif isinstance(value, date):
        text = _date_text(datetime(value.year, value.month, value.day), style or 23)
    elif isinstance(value, bytes):
        if style in (1, 2):
            text = ("0x" if style == 1 else "") + value.hex().upper()
        else:
            text = value.decode("utf-16-le" if target.name.startswith("n") else "cp1252", "replace")
    elif isinstance(value, UUID):
        text = str(value).upper()
    elif isinstance(value, float):
        text = f"{value:.6g}" if style == 0 else f"{value:.15e}"
    elif isinstance(value, Decimal):
        text = format(value, "f")
    else:
        text = str(value)
    if isinstance(value, int) and target.size is not None and len(text) > target.size:
        return "*"
    text = fit(text, target.size)
    return text.ljust(target.size) if target.name in ("char", "nchar") and target.size else text
