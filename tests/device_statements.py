"""Statements of the stand-in whose devices are the reference media."""

from __future__ import annotations

from pathlib import Path

from media import Cartridge, Client, Disk, Medium, Pipe, Tape, Zone

from vdi_ext import Feature
from vdi_ext.engine import Engine, Message, SqlError


class Shelf:
    """Media by name: asked for again, one is the same medium, back at its beginning.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(
        self, kind: str, name: str = "medium", zones: list[Zone] | None = None, discard: bool = False
    ) -> Medium:
        """`kind`: pipe, tape or disk, or one of the others with ", removable"; `zones`: of each of its volumes."""
        count = len(zones) if zones else 2 if "removable" in kind or kind == "tape" else 1
        paths = [self._folder / f"{name} {number}" for number in range(count)]
        if kind == "tape":
            return Tape(map(Cartridge, paths, zones or [Zone() for _ in paths]), discard=discard)
        made = Disk if kind.startswith("disk") else Pipe
        return made(paths, zones or (), discard=discard, removable="removable" in kind)


def run(engine: Engine, media: list[Medium], statement: str, features: int = 0, **config: int) -> list[Message]:
    """Execute a statement with these devices."""
    with Client(media, Feature(features), **config) as client:
        joint = "TO" if statement.startswith("BACKUP") else "FROM"
        head, _, options = statement.partition(" WITH ")
        text = f"{head} {joint} {client.clauses}" + (f" WITH {options}" if options else "")
        return list(engine.execute(text).messages)


def failure(engine: Engine, media: list[Medium], statement: str, **config: int) -> SqlError:
    """Execute a statement that fails; the client sees its devices closed (section 9.2)."""
    error: SqlError | None = None
    with Client(media, **config) as client:
        joint = "TO" if statement.startswith("BACKUP") else "FROM"
        head, _, options = statement.partition(" WITH ")
        try:
            engine.execute(f"{head} {joint} {client.clauses}" + (f" WITH {options}" if options else ""))
        except SqlError as caught:
            error = caught
    assert error is not None, "the statement succeeded"
    assert error.messages[-1].number == 3013
    return error
