"""Dates as T-SQL's literals write them, in the forms that do not depend on a language other than us_english."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime

_TIME = (
    r"(?:(?P<hour>\d{1,2})(?::(?P<minute>\d{1,2})(?::(?P<second>\d{1,2})(?:[.:](?P<fraction>\d{1,7}))?)?)?"
    r"\s*(?P<half>AM|PM)?(?:Z|[+-]00:00)?)"
)
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_MONTH = r"(?P<name>" + "|".join(_MONTHS) + r")[A-Z]*\.?"
_FORMS = [
    re.compile(rf"{date}(?:(?:\s+|T){_TIME})?", re.ASCII | re.IGNORECASE)
    for date in (
        r"(?P<year>\d{4})(?P<month>\d\d)(?P<day>\d\d)",
        r"(?P<year>\d{4})[-/.](?P<month>\d{1,2})[-/.](?P<day>\d{1,2})",
        r"(?P<month>\d{1,2})[-/.](?P<day>\d{1,2})[-/.](?P<year>\d{4})",
        rf"{_MONTH}\s+(?P<day>\d{{1,2}}),?\s+(?P<year>\d{{4}})",
        rf"(?P<day>\d{{1,2}})\s+{_MONTH},?\s+(?P<year>\d{{4}})",
    )
]
_CLOCK = re.compile(_TIME, re.ASCII | re.IGNORECASE)  # of the first day


def parse_date(text: str) -> datetime | None:
    """The moment that a literal names; None where it names none."""
    text = text.strip()
    for form in _FORMS:
        if match := form.fullmatch(text):
            return _moment(match.groupdict())
    if (match := _CLOCK.fullmatch(text)) and (match["minute"] or match["half"]):
        return _moment({"year": "1900", "month": "1", "day": "1"} | match.groupdict())
    return None


def _moment(parts: Mapping[str, str | None]) -> datetime | None:
    name = parts.get("name")
    month = _MONTHS.index(name.upper()) + 1 if name else int(parts["month"] or 0)
    hour = int(parts["hour"] or 0)
    if half := parts["half"]:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if half.upper() == "PM" else 0)
    fraction = int((parts["fraction"] or "").ljust(7, "0")) // 10
    try:
        return datetime(
            int(parts["year"] or 0), month, int(parts["day"] or 0), hour, int(parts["minute"] or 0),
            int(parts["second"] or 0), fraction,
        )  # fmt: skip
    except ValueError:
        return None
