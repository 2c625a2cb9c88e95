"""RAISERROR's text, which is filled as C's printf fills it."""

from __future__ import annotations

import re

from .messages import Message, SqlError, message

_FIELD = re.compile(
    r"%(?P<flags>[-+0# ]*)(?P<width>\d{1,3}|\*)?(?:\.(?P<precision>\d{1,3}))?(?P<kind>I64d|ld|[diosuxX%])"
)
_MOST = 2047  # characters of a text


def formatted(values: list[object], line: int) -> Message:
    """The message of RAISERROR(text or number, severity, state, ...).

    Raises
    ------
    SqlError
        2745 (a severity above 18), 2786 (an argument that does not fit), 2787 (a format that is none).
    """
    text, severity, state, *arguments = values
    if not isinstance(severity, int) or not isinstance(state, int) or severity > 18:
        raise SqlError((message(2754, 18, line=line),))
    if not isinstance(text, str):
        raise SqlError((message(2732, text, 13000, 2147483647, line=line),))
    rest = iter(arguments)

    def fill(match: re.Match[str]) -> str:
        kind = match["kind"]
        if kind == "%":
            return "%"
        value = next(rest, None)
        if value is None:
            return "(null)"
        if (kind == "s") != isinstance(value, str):
            raise SqlError((message(2786, arguments.index(value) + 1, line=line),))
        shown = value[: int(match["precision"])] if isinstance(value, str) and match["precision"] else value
        width = match["width"] if match["width"] and match["width"] != "*" else ""
        sign = "<" if "-" in match["flags"] else ">" if isinstance(value, str) else ""
        zero = "0" if "0" in match["flags"] and not sign else ""
        form = {"x": "x", "X": "X", "o": "o"}.get(kind, "s" if isinstance(value, str) else "d")
        return format(shown, f"{sign}{zero}{width}{form}")

    filled = _FIELD.sub(fill, text)[:_MOST]
    return Message(50000, max(0, severity), min(max(1, state), 255), filled, line)
