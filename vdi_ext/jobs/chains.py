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
    end of the last one where there is no point in time. All of them are of one recovery path: a database that was
    restored to an earlier point has gone on from there, and what it was before is used up to the fork point only.
    Without a point in time the path is the one that ends latest; a point in time must be on one path only.

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
    data = [link for link in every if link.head.kind != "log" and (until is None or _ended_by(link.head, until))]
    fulls = [link for link in data if link.head.kind == "full"]
    if not fulls:
        when = f" that had ended by {stop_at}" if until else ""
        raise ChainError(f"there is no full backup{when} among the {len(every)} sets")
    logs = [link for link in every if link.head.kind == "log"]
    previous = _reachable(fulls, data, logs, until)
    found = list(previous)
    best = max(found, key=_age)  # of equal ones the first
    if until:
        held = [link for link in found if link.head.kind == "log" and _reached(link.head, until)]
        if not held:
            _check_gap(best, logs)
            raise ChainError(
                f"the logs end with {best.path} ({best.head.finished or 'time not known'}), before {until.isoformat()}"
            )
        best = min(held, key=_age)
        rivals = held
    else:
        _check_gap(best, logs)
        _check_newer_paths(best, found, logs)
        rivals = [link for link in found if _when(link) in (None, _when(best))]
    for rival in rivals:
        if _apart(best.head, rival.head):
            raise ChainError(
                f"{best.path} and {rival.path} are of different recovery paths, and their times do not tell which of "
                "them is meant: name the sets of the one that is wanted, not their directory"
            )
    chain: list[Link] = []
    link: Link | None = best
    while link is not None:
        chain.append(link)
        link = previous[link]
    return chain[::-1]


def _reachable(
    fulls: list[Link], data: list[Link], logs: list[Link], until: datetime.datetime | None
) -> dict[Link, Link | None]:
    """All sets that can be restored, those of the newest beginnings first, and after which one each."""
    previous: dict[Link, Link | None] = {}
    for full in sorted(fulls, key=_age, reverse=True):
        differentials = [link for link in data if _builds_on(link.head, full.head)]
        for begun in (*sorted(differentials, key=_age, reverse=True), full):
            previous.setdefault(begun, None if begun is full else full)
            waiting = [begun]
            while waiting:
                last = waiting.pop()
                if until and last.head.kind == "log" and _reached(last.head, until):
                    continue
                fitting = [link for link in logs if link.head.first_lsn <= last.head.last_lsn]
                following = [link for link in fitting if _goes_on(last.head, link.head) and link not in previous]
                previous.update(dict.fromkeys(following, last))
                waiting += sorted(following, key=_age)  # the newest goes first
    return previous


def _goes_on(last: Head, log: Head) -> bool:
    """Whether a log has more of the recovery path that leads to the end of a set; there may be a gap between them."""
    if log.last_lsn <= last.last_lsn:
        return False
    if None in (last.last_fork, log.first_fork, log.last_fork) or last.last_fork == log.last_fork:
        return True
    # It leaves this path at the fork point: nowhere before it begins, where nobody knows better.
    return last.last_fork == log.first_fork and last.last_lsn <= (log.fork_lsn or log.first_lsn)


def _check_gap(last: Link, logs: list[Link]) -> None:
    """Raises ChainError where logs go on from a set, but not at its end."""
    later = [link for link in logs if _goes_on(last.head, link.head)]
    first = min(later, key=lambda link: link.head.first_lsn, default=None)
    if first is not None and first.head.first_lsn > last.head.last_lsn:
        raise ChainError(
            f"{first.path} begins at LSN {first.head.first_lsn}, and {last.path} ends at {last.head.last_lsn}: "
            "a log between them is missing"
        )


def _check_newer_paths(best: Link, found: list[Link], logs: list[Link]) -> None:
    """Raises ChainError where there is newer log, of a path to which nothing leads."""
    known = {link.head.last_fork for link in found}
    end = _when(best)
    for log in logs:
        time = _when(log)
        if None not in known and log.head.last_fork not in (None, *known) and (not time or not end or time > end):
            raise ChainError(
                f"{log.path} is not older than {best.path}, and of a recovery path to which no set here leads: "
                "add what is missing, or name the sets that are wanted, not their directory"
            )


def _apart(one: Head, other: Head) -> bool:
    """Whether two sets are of different recovery paths, neither on the way to the other."""
    if None in (one.last_fork, other.last_fork) or one.last_fork == other.last_fork:
        return False
    return not any(
        late.first_fork == early.last_fork and early.last_lsn <= (late.fork_lsn or late.first_lsn)
        for early, late in ((one, other), (other, one))
    )


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


def _age(link: Link) -> tuple[datetime.datetime, int]:
    """Orders backups by time: a database that was restored to an earlier point goes on with LSNs used before."""
    return _when(link) or datetime.datetime.min, link.head.last_lsn


def _when(link: Link) -> datetime.datetime | None:
    return _time(link.head.finished) or _time(link.head.started)


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
