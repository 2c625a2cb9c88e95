"""Which of many sets bring a database to a point in time, in which order."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass

from ..storage import MANIFEST, PARTIAL, StorageError, StoredSet
from .common import ArgumentError
from .heads import Head, head_of


class ChainError(ArgumentError):
    """The sets do not lead there; the message says what is missing. Nothing was begun."""


@dataclass(frozen=True)
class Link:
    """One set of a chain.

    Attributes
    ----------
    stored : StoredSet
    head : Head
    """

    stored: StoredSet
    head: Head

    @property
    def path(self) -> str:
        return self.stored.path


def is_set(path: str | os.PathLike[str]) -> bool:
    """Whether this is one set, or at least no directory of sets."""
    return not os.path.isdir(path) or os.path.exists(os.path.join(path, MANIFEST)) or not _sets_in(os.fspath(path))


def links(sources: Sequence[str | os.PathLike[str]], database: str | None = None) -> list[Link]:
    """The sets at these places: a place is a set, or a directory of sets.

    Parameters
    ----------
    sources : sequence of path
    database : str, optional
        Take from directories only sets of this database.

    Raises
    ------
    ChainError
        A set that was named does not tell what it is; or all sets are of other databases.
    StorageError, VerificationError
        A set that was named can not be read.
    """
    found: dict[str, Link] = {}
    others: set[str] = set()
    for source in (os.fspath(one) for one in sources):
        named = is_set(source)
        paths = [source] if named else _sets_in(source)
        for path in paths:
            stored = StoredSet(path)
            if not stored.restorable:
                if named:
                    raise StorageError(f"{path} is {stored.state}: it holds no whole backup and cannot be restored")
                continue
            if stored.manifest.snapshot is not None:  # its files are elsewhere
                if named:
                    raise ChainError(f"{path} is a snapshot: it can only be restored by itself, with a mount command")
                continue
            head = head_of(stored.path, stored.manifest)
            if head is None:
                if named:
                    raise ChainError(f"{path} does not tell what it holds: it can only be restored by itself")
                continue
            if named or database is None or head.database.casefold() == database.casefold():
                found[stored.path] = Link(stored, head)
            else:
                others.add(head.database)
    if others and not found:
        raise ChainError(
            f"no set here is of {database}, only of {', '.join(sorted(others))}: name the database that was backed up, "
            "and with it the new name that it is to have (--to)"
        )
    return list(found.values())


def plan(every: Sequence[Link], stop_at: str | None = None) -> list[Link]:
    """Choose and order the sets for a restore.

    The newest full backup before the point in time, the newest differential on it, and every log from there on; to the
    end of the last one where there is no point in time. A database that was restored to an earlier point has gone on
    from there: without a point in time the chain is the one that ends latest, and what was given up is left out.

    Parameters
    ----------
    every : sequence of Link
        Sets of one database; those that are not needed are left out.
    stop_at : str, optional
        ISO 8601 without a zone, the server's time.

    Raises
    ------
    ChainError
    """
    until = point_in_time(stop_at)
    names = {link.head.database.casefold() for link in every}
    if len(names) > 1:
        raise ChainError(f"these are backups of {len(names)} databases ({', '.join(sorted(names))}): name one")
    fulls = [link for link in every if link.head.kind == "full" and (until is None or _ended_by(link.head, until))]
    if not fulls:
        when = f" that had ended by {stop_at}" if until else ""
        raise ChainError(f"there is no full backup{when} among the {len(every)} sets")
    fulls.sort(key=_age, reverse=True)
    found: list[list[Link]] = []
    problem: ChainError | None = None  # of the first choice
    for full in fulls[:1] if until else fulls:
        differential = _newest([link for link in every if _builds_on(link.head, full.head)], until)
        for begun in ([full, differential], [full]) if differential is not None else ([full],):
            try:
                found.append(_continued(begun, every, until))
            except ChainError as error:
                problem = problem or (error if not found else None)
    if not found:
        assert problem is not None
        raise problem
    best = found[0] if until else max(found, key=lambda chain: _age(chain[-1]))  # of equal ones the first
    if problem is not None and not until and _age(best[-1]) < max(map(_age, every)):
        raise problem  # another one would end earlier than what there is
    return best


def _continued(chosen: list[Link], every: Sequence[Link], until: datetime.datetime | None) -> list[Link]:
    """A beginning with all logs that go on from it. Raises ChainError."""
    logs = [link for link in every if link.head.kind == "log"]
    chosen = list(chosen)
    while (link := _next(chosen[-1], logs, until)) is not None:
        chosen.append(link)
    last = chosen[-1].head
    if until and not (last.kind == "log" and _reached(last, until)):
        raise ChainError(
            f"the logs end with {chosen[-1].path} ({last.finished or 'time not known'}), before {until.isoformat()}"
        )
    return chosen


def point_in_time(text: str | None) -> datetime.datetime | None:
    """A point in the server's time, or ArgumentError."""
    if text is None:
        return None
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise ArgumentError(f"{text!r} is no point in time: write 2026-03-01T12:00:00") from None
    if found.tzinfo is not None:
        raise ArgumentError(f"{text!r} has a zone: give the server's own time, without one")
    return found


def _sets_in(directory: str) -> list[str]:
    paths = [os.path.join(directory, name) for name in sorted(os.listdir(directory)) if not name.endswith(PARTIAL)]
    return [path for path in paths if os.path.exists(os.path.join(path, MANIFEST))]


def _builds_on(differential: Head, full: Head) -> bool:
    if differential.kind != "differential" or full.copy_only:
        return False
    if differential.base_guid is not None:
        return differential.base_guid == full.set_guid
    return differential.base_lsn == full.checkpoint_lsn


def _next(last: Link, logs: list[Link], until: datetime.datetime | None) -> Link | None:
    """The log that goes on where the chain ends; None: nothing does, or the point in time is reached."""
    if until and last.head.kind == "log" and _reached(last.head, until):
        return None
    later = [link for link in logs if link.head.last_lsn > last.head.last_lsn and _same_path(last.head, link.head)]
    fitting = [link for link in later if link.head.first_lsn <= last.head.last_lsn]
    if later and not fitting:
        first = min(later, key=lambda link: link.head.first_lsn)
        raise ChainError(
            f"{first.path} begins at LSN {first.head.first_lsn}, and {last.path} ends at {last.head.last_lsn}: "
            "a log between them is missing"
        )
    # Where the path forks: the log that holds the point in time, else the newest, which is of the newest fork.
    reached = [link for link in fitting if until and _reached(link.head, until)]
    return min(reached, key=_age) if reached else max(fitting, key=_age, default=None)


def _same_path(last: Head, log: Head) -> bool:
    """Whether a log is of the recovery path on which a chain is: it may begin before a fork, and end behind it."""
    forks = {log.first_fork, log.last_fork}
    return None in forks or last.last_fork is None or last.last_fork in forks


def _newest(candidates: list[Link], until: datetime.datetime | None) -> Link | None:
    return max((link for link in candidates if until is None or _ended_by(link.head, until)), key=_age, default=None)


def _age(link: Link) -> tuple[datetime.datetime, int]:
    """Orders backups by time: a database that was restored to an earlier point goes on with LSNs used before."""
    return _time(link.head.finished) or _time(link.head.started) or datetime.datetime.min, link.head.last_lsn


def _ended_by(head: Head, until: datetime.datetime) -> bool:
    time = _time(head.finished) or _time(head.started)
    return time is not None and time <= until


def _reached(head: Head, until: datetime.datetime) -> bool:
    time = _time(head.finished)
    return time is not None and time >= until


def _time(text: str | None) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromisoformat(text).replace(tzinfo=None) if text else None
    except ValueError:
        return None
