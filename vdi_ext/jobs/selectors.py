"""Which databases of a server a backup is of: ``USER_DATABASES,-test*``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .common import ArgumentError
from .inquiries import DatabaseState

GROUPS = ("ALL_DATABASES", "SYSTEM_DATABASES", "USER_DATABASES")

_WILD = re.compile(r"[*?%]")


@dataclass(frozen=True)
class Skipped:
    """A database that was meant, and of which there is no backup.

    Attributes
    ----------
    database, reason : str
    """

    database: str
    reason: str


@dataclass(frozen=True)
class _Word:
    text: str
    excluded: bool
    literal: bool  # in brackets: no group, no wildcards

    @property
    def is_name(self) -> bool:
        return self.literal or not (self.text.upper() in GROUPS or _WILD.search(self.text))

    def matches(self, database: DatabaseState) -> bool:
        if self.is_name:
            return self.text.casefold() == database.name.casefold()
        group = self.text.upper()
        if group in GROUPS:
            return group == "ALL_DATABASES" or database.is_system == (group == "SYSTEM_DATABASES")
        pieces = (".*" if c in "*%" else "." if c == "?" else re.escape(c) for c in self.text)
        return re.fullmatch("".join(pieces), database.name, re.IGNORECASE | re.DOTALL) is not None


def is_selector(text: str | None) -> bool:
    """Whether a database is given by more than its plain name."""
    if not text:
        return False
    return bool(_WILD.search(text)) or "," in text or text.startswith("-") or text.upper() in GROUPS


def select(
    selector: str, databases: Iterable[DatabaseState], kind: str = "full"
) -> tuple[list[str], list[Skipped]]:
    """Choose databases.

    Parameters
    ----------
    selector : str
        Names, names with ``*`` (or ``%``) and ``?``, and `GROUPS`, separated by commas; what begins with ``-`` is left
        out, wherever it stands. ``[...]`` holds a name with any characters, ``]`` doubled. Without regard to case.
    databases : iterable of DatabaseState
    kind : {"full", "differential", "log"}

    Returns
    -------
    list of str
        Names of those to back up, in the server's order.
    list of Skipped
        Those that were selected and can not be backed up so.

    Raises
    ------
    ArgumentError
        The selector is malformed, names a database that is not there, or selects none.
    """
    words = list(_words(selector))
    there = list(databases)
    for word in words:
        if word.is_name and not word.excluded and not any(word.matches(database) for database in there):
            raise ArgumentError(f"there is no database {word.text!r}")
    chosen: list[str] = []
    skipped: list[Skipped] = []
    for database in there:
        meant = [word for word in words if not word.excluded and word.matches(database)]
        if not meant or any(word.excluded and word.matches(database) for word in words):
            continue
        reason = _reason(database, kind)
        if reason is None:
            chosen.append(database.name)
        elif database.name != "tempdb" or any(word.is_name for word in meant):  # nobody means it by a group
            skipped.append(Skipped(database.name, reason))
    if not chosen and not skipped:
        raise ArgumentError(f"{selector!r} selects none of the {len(there)} databases")
    return chosen, skipped


def _reason(database: DatabaseState, kind: str) -> str | None:
    """Why a database can not be backed up so."""
    if database.name == "tempdb":
        return "tempdb can not be backed up"
    if database.is_snapshot:
        return "a database snapshot can not be backed up"
    if database.state != "ONLINE":
        return f"it is {database.state}"
    if kind == "log" and database.recovery_model == "SIMPLE":
        return "its recovery model is SIMPLE: it has no log to back up"
    if kind != "full" and database.name == "master":
        return "of master there are only full backups"
    if not database.preferred:
        return "this is not the replica that backups are preferred on"
    return None


def _words(selector: str) -> Iterator[_Word]:
    pattern = re.compile(r"\s*(-?)\s*(?:\[((?:[^\]]|\]\])+)\]|([^,\[\]]+?))\s*(?:,|\Z)")
    place = 0
    while place < len(selector):
        found = pattern.match(selector, place)
        if found is None:
            raise ArgumentError(f"{selector[place:]!r} is no list of databases: give names separated by commas")
        minus, literal, text = found.groups()
        yield _Word(literal.replace("]]", "]") if literal else text, bool(minus), literal is not None)
        place = found.end()
