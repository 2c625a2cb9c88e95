"""Functions of T-SQL that queries may use; they take and give values as SQLite holds them."""

from __future__ import annotations

import calendar
import math
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Context, Decimal
from typing import NamedTuple

from ..tsql import quote_name
from ..tsql.dates import parse_date
from ..types import BIGINT, DATETIME, FLOAT, GUID, INT, SYSNAME, SqlType, nvarchar
from .conversions import Raw, failure, to_raw

MAX_TEXT = 4000
TEXT = nvarchar(MAX_TEXT)
_WIDE = Context(prec=400)  # any float in full
NAME = nvarchar(128)


class Function(NamedTuple):
    """`least` and `most` arguments; `type` None is that of the first argument."""

    least: int
    most: int
    type: SqlType | None
    call: Callable[..., Raw]


def text_of(raw: Raw) -> str:
    if isinstance(raw, bytes):
        return raw.decode("latin-1")
    return str(raw)


def number_of(raw: Raw) -> int:
    try:
        return int(raw)  # type: ignore[arg-type]
    except (ValueError, OverflowError):
        raise failure(245, "varchar", text_of(raw)[:100], "int") from None


def _null(function: Callable[..., Raw]) -> Callable[..., Raw]:
    """NULL in, NULL out."""

    def call(*values: Raw) -> Raw:
        return None if None in values else function(*values)

    return call


# ---- operators


def divide(left: Raw, right: Raw) -> Raw:
    a, b = _numbers(left, right)
    if not b:
        raise failure(8134)
    if isinstance(a, int) and isinstance(b, int):
        quotient = abs(a) // abs(b)
        return to_raw(quotient if (a < 0) == (b < 0) else -quotient)
    return float(a) / float(b)


def remainder(left: Raw, right: Raw) -> Raw:
    a, b = _numbers(left, right)
    if not b:
        raise failure(8134)
    return to_raw(int(math.fmod(a, b))) if isinstance(a, int) and isinstance(b, int) else math.fmod(a, b)


def _numbers(*values: Raw) -> list[int | float]:
    return [value if isinstance(value, int | float) else number_of(value) for value in values]


def like(value: Raw, pattern: Raw, escape: Raw = None) -> Raw:
    """LIKE, without case."""
    if value is None or pattern is None:
        return None
    parts = _pattern(text_of(pattern).casefold(), text_of(escape).casefold() if escape is not None else "")
    return int(_matches(text_of(value).casefold(), parts))


_ANY = object()  # %


def _pattern(pattern: str, escape: str) -> list[object]:
    """Each part stands for one character (a predicate), or is `_ANY`."""
    parts: list[object] = []
    place = 0
    while place < len(pattern):
        char = pattern[place]
        place += 1
        if escape and char == escape and place < len(pattern):
            parts.append(pattern[place].__eq__)
            place += 1
        elif char == "%":
            if not parts or parts[-1] is not _ANY:
                parts.append(_ANY)
        elif char == "_":
            parts.append(lambda _: True)
        elif char == "[" and (end := pattern.find("]", place + 1)) > 0:
            parts.append(_char_set(pattern[place:end]))
            place = end + 1
        else:
            parts.append(char.__eq__)
    return parts


def _char_set(inside: str) -> Callable[[str], bool]:
    negative = inside.startswith("^")
    inside = inside[negative:]
    ranges = []
    place = 0
    while place < len(inside):
        last = inside[place + 2] if inside[place + 1 : place + 2] == "-" and place + 2 < len(inside) else inside[place]
        ranges.append((inside[place], last))
        place += 3 if last is not inside[place] else 1
    return lambda char: any(first <= char <= last for first, last in ranges) != negative


def _matches(text: str, parts: list[object]) -> bool:
    """Greedy with one point of return: never more than the product of both lengths."""
    place = part = 0
    back: tuple[int, int] | None = None
    while place < len(text):
        if part < len(parts) and parts[part] is _ANY:
            back, part = (place, part), part + 1
        elif part < len(parts) and parts[part](text[place]):  # type: ignore[operator]
            place, part = place + 1, part + 1
        elif back is not None:
            back = back[0] + 1, back[1]
            place, part = back[0], back[1] + 1
        else:
            return False
    return all(left is _ANY for left in parts[part:])


# ---- text


def _substring(text: Raw, start: Raw, length: Raw) -> Raw:
    first, count = number_of(start), number_of(length)
    if count < 0:
        raise failure(537)
    return text_of(text)[max(first - 1, 0) : max(first - 1 + count, 0)]


def _charindex(needle: Raw, text: Raw, start: Raw = 1) -> Raw:
    return text_of(text).casefold().find(text_of(needle).casefold(), max(number_of(start) - 1, 0)) + 1


def _count(length: Raw) -> int:
    if number_of(length) < 0:
        raise failure(537)
    return number_of(length)


def _right(text: Raw, length: Raw) -> Raw:
    count = _count(length)
    return text_of(text)[-count:] if count else ""


def _replace(text: Raw, old: Raw, new: Raw) -> Raw:
    whole, lower, wanted = text_of(text), text_of(text).lower(), text_of(old).lower()
    if not wanted or len(lower) != len(whole):
        return whole
    parts, place = [], 0
    while (found := lower.find(wanted, place)) >= 0:
        parts.append(whole[place:found])
        place = found + len(wanted)
    return text_of(new).join([*parts, whole[place:]])[: 2 * MAX_TEXT]


def _replicate(text: Raw, count: Raw) -> Raw:
    unit, number = text_of(text), number_of(count)
    if number < 0 or not unit:
        return None if number < 0 else ""
    return (unit * min(number, 2 * MAX_TEXT // len(unit) + 1))[: 2 * MAX_TEXT]


def _stuff(text: Raw, start: Raw, length: Raw, new: Raw) -> Raw:
    whole, first, count = text_of(text), number_of(start), number_of(length)
    if not 0 < first <= len(whole) or count < 0:
        return None
    return whole[: first - 1] + text_of(new) + whole[first - 1 + count :]


def _quotename(name: Raw, quote: Raw = "[") -> Raw:
    text, mark = text_of(name), text_of(quote)
    if len(text) > 128 or mark not in ("[", "]", "'", '"'):
        return None
    return quote_name(text) if mark in "[]" else f"{mark}{text.replace(mark, mark * 2)}{mark}"


def _parsename(name: Raw, part: Raw) -> Raw:
    parts = [piece.strip("[]") for piece in text_of(name).split(".")]
    number = number_of(part)
    return parts[-number] if 0 < number <= len(parts) <= 4 else None


def _concat(*values: Raw) -> Raw:
    return "".join(text_of(value) for value in values if value is not None)


def _char(code: Raw) -> Raw:
    number = number_of(code)
    return chr(number) if 0 <= number < 0xD800 else None


def _isnumeric(value: Raw) -> Raw:
    try:
        return int(value is not None and math.isfinite(float(value)))
    except ValueError:
        return 0


def _trim(side: Callable[[str], str]) -> Callable[..., Raw]:
    return _null(lambda text: side(text_of(text)))


# ---- dates

PARTS = {
    "year": "year", "yy": "year", "yyyy": "year", "quarter": "quarter", "qq": "quarter", "q": "quarter",
    "month": "month", "mm": "month", "m": "month", "dayofyear": "dayofyear", "dy": "dayofyear", "y": "dayofyear",
    "day": "day", "dd": "day", "d": "day", "week": "week", "wk": "week", "ww": "week", "weekday": "weekday",
    "dw": "weekday", "w": "weekday", "hour": "hour", "hh": "hour", "minute": "minute", "mi": "minute", "n": "minute",
    "second": "second", "ss": "second", "s": "second", "millisecond": "millisecond", "ms": "millisecond",
}  # fmt: skip
_SPANS = {
    "week": timedelta(weeks=1), "day": timedelta(days=1), "weekday": timedelta(days=1), "dayofyear": timedelta(days=1),
    "hour": timedelta(hours=1), "minute": timedelta(minutes=1), "second": timedelta(seconds=1),
    "millisecond": timedelta(milliseconds=1),
}  # fmt: skip
_MONTHS = {"year": 12, "quarter": 3, "month": 1}


def moment_of(raw: Raw) -> datetime:
    if isinstance(raw, int | float):
        try:
            return datetime(1900, 1, 1) + timedelta(days=raw)
        except (OverflowError, ValueError):
            raise failure(8115, "expression", "datetime", state=2) from None
    moment = parse_date(text_of(raw))
    if moment is None:
        raise failure(241)
    return moment


def dateadd(part: Raw, count: Raw, when: Raw) -> Raw:
    name, number, moment = text_of(part), number_of(count), moment_of(when)
    try:
        if name in _MONTHS:
            month = moment.year * 12 + moment.month - 1 + number * _MONTHS[name]
            year, month = divmod(month, 12)
            last = calendar.monthrange(year, month + 1)[1]
            return to_raw(moment.replace(year=year, month=month + 1, day=min(moment.day, last)))
        return to_raw(moment + number * _SPANS[name])
    except (ValueError, OverflowError):
        raise failure(517, "datetime") from None


def _datediff(part: Raw, first: Raw, last: Raw) -> Raw:
    """Boundaries between the two."""
    name, a, b = text_of(part), moment_of(first), moment_of(last)
    if name in _MONTHS:
        months = (moment.year * 12 + moment.month - 1 for moment in (a, b))
        start, end = (month // _MONTHS[name] for month in months)
        return end - start
    span = _SPANS[name]
    origin = datetime(1, 1, 1) - timedelta(0)
    shift = timedelta(days=1) if name == "week" else timedelta(0)  # weeks begin on Sunday; day one was a Monday
    return (b - origin + shift) // span - (a - origin + shift) // span


def _datepart(part: Raw, when: Raw) -> Raw:
    name, moment = text_of(part), moment_of(when)
    if name == "quarter":
        return (moment.month + 2) // 3
    if name == "weekday":
        return moment.isoweekday() % 7 + 1
    if name == "dayofyear":
        return moment.timetuple().tm_yday
    if name == "week":
        first = datetime(moment.year, 1, 1)
        return (moment.timetuple().tm_yday - 1 + first.isoweekday() % 7) // 7 + 1
    return moment.microsecond // 1000 if name == "millisecond" else int(getattr(moment, name))


def _datename(part: Raw, when: Raw) -> Raw:
    name, moment = text_of(part), moment_of(when)
    if name in ("month", "weekday"):
        return calendar.month_name[moment.month] if name == "month" else calendar.day_name[moment.weekday()]
    return str(_datepart(part, when))


def _round(value: Raw, digits: Raw) -> Raw:
    number, places = _numbers(value, digits)
    if abs(places) > 38 or not math.isfinite(number):
        return number
    rounded = Decimal(repr(number)).quantize(Decimal(1).scaleb(-int(places)), ROUND_HALF_UP, _WIDE)
    return to_raw(int(rounded)) if isinstance(number, int) else float(rounded)


FUNCTIONS: dict[str, Function] = {
    "abs": Function(1, 1, None, _null(lambda value: to_raw(abs(_numbers(value)[0])))),
    "ascii": Function(1, 1, INT, _null(lambda text: ord(text_of(text)[0]) if text_of(text) else None)),
    "ceiling": Function(1, 1, None, _null(lambda value: to_raw(math.ceil(_numbers(value)[0])))),
    "char": Function(1, 1, nvarchar(1), _null(_char)),
    "charindex": Function(2, 3, INT, _null(_charindex)),
    "concat": Function(2, 100, TEXT, _concat),
    "datalength": Function(1, 1, INT, _null(lambda v: len(v) if isinstance(v, bytes) else 2 * len(text_of(v)))),
    "dateadd": Function(3, 3, DATETIME, _null(dateadd)),
    "datediff": Function(3, 3, INT, _null(_datediff)),
    "datediff_big": Function(3, 3, BIGINT, _null(_datediff)),
    "datename": Function(2, 2, nvarchar(30), _null(_datename)),
    "datepart": Function(2, 2, INT, _null(_datepart)),
    "day": Function(1, 1, INT, _null(lambda when: moment_of(when).day)),
    "floor": Function(1, 1, None, _null(lambda value: to_raw(math.floor(_numbers(value)[0])))),
    "getdate": Function(0, 0, DATETIME, lambda: to_raw(datetime.now())),
    "getutcdate": Function(0, 0, DATETIME, lambda: to_raw(datetime.now(UTC))),
    "isdate": Function(1, 1, INT, lambda text: int(text is not None and parse_date(text_of(text)) is not None)),
    "isnumeric": Function(1, 1, INT, _isnumeric),
    "left": Function(2, 2, TEXT, _null(lambda text, count: text_of(text)[: _count(count)])),
    "len": Function(1, 1, INT, _null(lambda text: len(text_of(text).rstrip(" ")))),
    "lower": Function(1, 1, TEXT, _null(lambda text: text_of(text).lower())),
    "ltrim": Function(1, 1, TEXT, _trim(lambda text: text.lstrip(" "))),
    "month": Function(1, 1, INT, _null(lambda when: moment_of(when).month)),
    "nchar": Function(1, 1, nvarchar(1), _null(_char)),
    "newid": Function(0, 0, GUID, lambda: to_raw(uuid.uuid4())),
    "parsename": Function(2, 2, SYSNAME, _null(_parsename)),
    "power": Function(2, 2, FLOAT, _null(lambda a, b: _power(a, b))),
    "quotename": Function(1, 2, nvarchar(258), _null(_quotename)),
    "replace": Function(3, 3, TEXT, _null(_replace)),
    "replicate": Function(2, 2, TEXT, _null(_replicate)),
    "reverse": Function(1, 1, TEXT, _null(lambda text: text_of(text)[::-1])),
    "right": Function(2, 2, TEXT, _null(_right)),
    "round": Function(2, 2, None, _null(_round)),
    "rtrim": Function(1, 1, TEXT, _trim(lambda text: text.rstrip(" "))),
    "sign": Function(1, 1, INT, _null(lambda value: (_numbers(value)[0] > 0) - (_numbers(value)[0] < 0))),
    "space": Function(1, 1, TEXT, _null(lambda count: _replicate(" ", count))),
    "str": Function(1, 3, TEXT, _null(lambda v, size=10, places=0: _str(v, size, places))),
    "stuff": Function(4, 4, TEXT, _null(_stuff)),
    "substring": Function(3, 3, TEXT, _null(_substring)),
    "sysdatetime": Function(0, 0, SqlType("datetime2", scale=7), lambda: to_raw(datetime.now())),
    "sysutcdatetime": Function(0, 0, SqlType("datetime2", scale=7), lambda: to_raw(datetime.now(UTC))),
    "trim": Function(1, 1, TEXT, _trim(lambda text: text.strip(" "))),
    "unicode": Function(1, 1, INT, _null(lambda text: ord(text_of(text)[0]) if text_of(text) else None)),
    "upper": Function(1, 1, TEXT, _null(lambda text: text_of(text).upper())),
    "year": Function(1, 1, INT, _null(lambda when: moment_of(when).year)),
}
DATE_FUNCTIONS = frozenset({"dateadd", "datediff", "datediff_big", "datename", "datepart"})  # first a part's name


def _power(base: Raw, exponent: Raw) -> Raw:
    a, b = _numbers(base, exponent)
    try:
        return math.pow(a, b)
    except (OverflowError, ValueError):
        raise failure(8115, "expression", "float", state=2) from None


def _str(value: Raw, size: Raw, places: Raw) -> Raw:
    number, width, digits = _numbers(value, size, places)
    if not 0 < width <= 8000 or not 0 <= digits <= 16:
        return None
    text = f"{number:.{int(digits)}f}"
    return text.rjust(int(width)) if len(text) <= width else "*" * int(width)
