"""Statements of tests, executed by the stand-in with clients in this process that keep what is written in memory."""

from __future__ import annotations

import pytest
from engine_clients import Player, Recorder, client

from vdi_ext.engine import Engine, Result, SqlError

Streams = list[bytes]


def back_up(engine: Engine, what: str, options: str = "", devices: int = 1) -> Streams:
    """Execute ``BACKUP {what} TO ... {options}``; returns a stream per device."""
    recorder = Recorder(devices)
    with client(devices, recorder) as one:
        engine.execute(f"BACKUP {what} TO {one.clauses} {options}")
    assert one.errors == []
    return [bytes(stream) for stream in recorder.streams]


def restore(engine: Engine, what: str, streams: Streams, options: str = "") -> Result:
    """Execute ``RESTORE {what} FROM ... {options}``."""
    with client(len(streams), Player(streams)) as one:
        result = engine.execute(f"RESTORE {what} FROM {one.clauses} {options}")
    assert one.errors == []
    return result


def refused(engine: Engine, what: str, options: str = "", streams: Streams | None = None) -> list[int]:
    """Execute a BACKUP, or a RESTORE of streams, that fails; returns the numbers of its errors."""
    handler = Recorder(1) if streams is None else Player(streams)
    with client(len(streams or [b""]), handler) as one, pytest.raises(SqlError) as info:
        words = f"BACKUP {what} TO" if streams is None else f"RESTORE {what} FROM"
        engine.execute(f"{words} {one.clauses} {options}")
    assert info.value.errors[-1].number == 3013
    return [error.number for error in info.value.errors[:-1]]


def state(engine: Engine, name: str) -> tuple[str, bool]:
    """State and standby of a database, as sys.databases has them."""
    info = next(info for info in engine.databases if info.name == name)
    return info.state, info.is_in_standby


def content(engine: Engine, name: str) -> list[int]:
    """The number of the last change of every extent."""
    entry = engine.catalog.get(name)
    assert entry is not None and entry.versions is not None
    return entry.versions.tolist()
