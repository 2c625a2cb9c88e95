"""What to do with sets whose job did not end in order."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..storage import PARTIAL, SetInUseError, StorageError, StoredSet, VerificationError, exclusive, remove_set
from ..storage import unfinished_sets as find_unfinished
from .common import ArgumentError
from .events import Progress, Reporter
from .heads import known_to
from .passwords import Password
from .places import Address
from .server import Server, Session

ACTIONS = ("list", "verify", "publish", "resolve", "remove")


@dataclass(frozen=True)
class Unfinished:
    """One set under an unfinished name.

    Attributes
    ----------
    path : str
        Where it lies now.
    state : str
        ``"prepared"``: whole, the statement's outcome is not known; it can be restored, and is never deleted by itself.
        ``"writing"`` or ``"failed"``: no backup. ``"damaged"``: its manifest can not be believed. ``"in use"``: a job
        is at work on it. After an action also ``"verified"``, ``"published"`` or ``"removed"``.
    size : int
        Bytes of its stripes, as far as its manifest says.
    problems : tuple of str
        What stands against restoring it.
    """

    path: str
    state: str
    size: int = 0
    problems: tuple[str, ...] = ()

    def to_dict(self) -> dict:
        return {"path": self.path, "state": self.state, "size": self.size, "problems": list(self.problems)}


def recover(
    store: str,
    *,
    action: str = "list",
    progress: Progress | None = None,
    server: Address | None = None,
    password: Password | None = None,
) -> list[Unfinished]:
    """List, verify, publish or remove sets that a job left unfinished.

    Parameters
    ----------
    store : str
        A directory of sets, or one set: ``NAME`` or ``NAME.partial``.
    action : {"list", "verify", "publish", "resolve", "remove"}
        ``publish`` verifies each ``prepared`` set and gives it its name; the caller says by it that the statement
        succeeded, or that he wants the set whatever it said. ``resolve`` asks the server: a set that its msdb lists is
        verified and published, and of one that it does not list the BACKUP has failed, which is said. ``remove``
        removes what is no backup; a ``prepared`` or damaged set only where `store` names it.
    progress : callable, optional
        Called with a `ProgressEvent`.
    server : str or callable, optional
        Whom to ask, as for `backup`; needed to resolve.
    password : str or callable, optional
        For it.

    Returns
    -------
    list of Unfinished
        Every set found, as it is afterwards.

    Raises
    ------
    StorageError
        There is no such store or set, or it can not be changed.
    SQLError
        The server can not be asked.
    """
    if action not in ACTIONS:
        raise ValueError(f"action must be one of {', '.join(ACTIONS)}, not {action!r}")
    if (action == "resolve") != (server is not None):
        raise ArgumentError("to resolve sets takes a server that can be asked, and nothing else does")
    paths, named = _find(os.path.abspath(os.fspath(store)))
    reporter = Reporter("recover", progress)
    if server is None:
        return [_act(path, action, named, reporter) for path in paths]
    with contextlib.closing(Server(server, password).open()) as session:
        return [_resolve(path, session, reporter) for path in paths]


def _resolve(path: str, session: Session, reporter: Reporter) -> Unfinished:
    """Do with a prepared set what msdb says of it."""
    found = _act(path, "list", False, reporter)
    if found.state != "prepared":
        return found
    stored = StoredSet(path)
    taken = stored.manifest.snapshot
    # A snapshot has a backup in each stripe, and is one only together.
    for number in range(1, 2 if taken is None else len(taken) + 1):
        head, problems = known_to(session, stored.path, stored.manifest, number)
        if head is None:
            said = "msdb does not list it: the BACKUP has failed, or was of another server"
            return replace(found, problems=(said,))
        if problems:
            return replace(found, problems=tuple(problems))
        if taken is None:
            stored.manifest.backup = head.to_dict()
    return _verified(stored, "publish", reporter)


def _find(path: str) -> tuple[list[str], bool]:
    if path.endswith(PARTIAL):
        if not os.path.isdir(path):
            raise StorageError(f"{path}: no such set")
        return [path], True
    if os.path.isdir(path + PARTIAL):
        return [path + PARTIAL], True
    return find_unfinished(path), False


def _act(path: str, action: str, named: bool, reporter: Reporter) -> Unfinished:
    try:
        with exclusive(path):
            found, stored = _look(path)
            if action == "remove" and (named or found.state not in ("prepared", "damaged")):
                remove_set(path, stored.manifest if stored else None, "removed by recover")
                return Unfinished(path, "removed", found.size)
    except SetInUseError:
        return Unfinished(path, "in use")
    if stored is not None and action in ("verify", "publish") and found.state == "prepared":
        return _verified(stored, action, reporter)
    return found


def _look(path: str) -> tuple[Unfinished, StoredSet | None]:
    try:
        stored = StoredSet(path)
    except VerificationError as error:
        return Unfinished(path, "damaged", problems=error.problems), None
    except StorageError as error:
        return Unfinished(path, "writing", problems=(str(error),)), None
    return Unfinished(path, stored.state, stored.manifest.size), stored


def _verified(stored: StoredSet, action: str, reporter: Reporter) -> Unfinished:
    reporter.restart(stored.manifest.size)
    reporter.phase("verifying", message=stored.path)
    advance: Callable[[int], None] = reporter.advance

    def report(count: int) -> None:
        advance(count)
        reporter.tick("verifying")

    try:
        stored.verify(report)
    except VerificationError as error:
        return Unfinished(stored.path, stored.state, stored.manifest.size, error.problems)
    if action == "verify":
        return Unfinished(stored.path, "verified", stored.manifest.size)
    reporter.phase("publishing", message=stored.path)
    return Unfinished(stored.publish(), "published", stored.manifest.size)
