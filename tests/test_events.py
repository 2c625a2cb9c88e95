"""One stream of typed events for everything that happens."""

from __future__ import annotations

import json
import logging
import threading
from collections import defaultdict
from pathlib import Path

import pytest
from engine_clients import Recorder as EngineRecorder
from engine_clients import client

import vdi_ext
from vdi_ext import CommandCode, CompletionCode, Feature
from vdi_ext.engine import Engine, SqlError, Synthetic
from vdi_ext.engine.watching import watched
from vdi_ext.events import (
    CommandCompleted,
    CommandIssued,
    Configured,
    Event,
    EventStream,
    MessageEvent,
    ProgressEvent,
    StateChanged,
)
from vdi_ext.jobs import answering, job
from vdi_ext.jobs import events as jobs_events


class Recorder:
    """A consumer that keeps what it is told."""

    def __init__(self, commands: bool = True) -> None:
        self.events: list[Event] = []
        self.commands = commands

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]


def backed_up(tmp_path: Path, recorder: Recorder, **options) -> vdi_ext.jobs.Result:
    return vdi_ext.backup("synthetic:5MiB:1", tmp_path / "set", events=recorder, own_process=False, **options)


def check_commands(recorder: Recorder, devices: int) -> dict[int, list[CommandCompleted]]:
    """Every command is issued once and completed once, numbered from 1 on each device."""
    issued, completed = defaultdict(list), defaultdict(list)
    for event in recorder.of(CommandIssued):
        issued[event.device].append(event)
    for event in recorder.of(CommandCompleted):
        completed[event.device].append(event)
    assert set(issued) == set(completed) == set(range(1, devices + 1))
    for device in issued:
        assert [event.number for event in issued[device]] == list(range(1, len(issued[device]) + 1))
        twins = {event.number: event for event in issued[device]}
        assert sorted(twins) == sorted(event.number for event in completed[device])
        for event in completed[device]:
            twin = twins[event.number]
            assert (event.code, event.size) == (twin.code, twin.size)
            assert event.seconds >= 0 and event.at >= twin.at
    return completed


def test_a_backup_tells_everything(tmp_path: Path) -> None:
    recorder = Recorder()
    result = backed_up(tmp_path, recorder, devices=3, stats=50)
    completed = check_commands(recorder, 3)
    for events in completed.values():
        assert {event.completion for event in events} == {CompletionCode.SUCCESS}
        codes = [event.code for event in events]
        assert codes[-2:] == [CommandCode.FLUSH, CommandCode.COMPLETE]
        assert set(codes[:-2]) == {CommandCode.WRITE}
    assert sum(event.transferred for events in completed.values() for event in events) == result.size
    (configured,) = recorder.of(Configured)
    assert configured.config.device_count == 3 and configured.config.features & Feature.COMPLETE_ENABLED
    assert [event.text for event in recorder.of(MessageEvent)] == list(result.messages)
    states = [(event.subject, event.state) for event in recorder.of(StateChanged)]
    assert states.count(("device", "active")) == states.count(("device", "closed")) == 3
    kept = [state for state in states if state[0] != "device"]
    assert kept == [
        ("set", "configurable"), ("statement", "submitted"), ("set", "initializing"), ("statement", "succeeded"),
        ("set", "closed"),
    ]  # fmt: skip
    assert recorder.of(ProgressEvent)[-1].phase == "done"
    assert {event.scope for event in recorder.events} == {"backup"}


def test_a_restore_tells_how_its_reads_ended(tmp_path: Path) -> None:
    size = backed_up(tmp_path, Recorder(), devices=2).size
    recorder = Recorder()
    vdi_ext.restore(tmp_path / "set", "synthetic:5MiB:1", events=[recorder], own_process=False)
    completed = [event for events in check_commands(recorder, 2).values() for event in events]
    reads = [event for event in completed if event.code == CommandCode.READ]
    assert sum(event.transferred for event in reads) == size
    assert all(event.transferred == event.size for event in reads if event.completion == CompletionCode.SUCCESS)


def test_a_failed_command_is_told_with_its_code(tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    recorder = Recorder()
    with pytest.raises(OSError, match="No space left"):
        backed_up(tmp_path, recorder, inspect=fail)
    assert recorder.of(CommandCompleted)[-1].completion == CompletionCode.DISK_FULL
    assert ("set", "abort") in [(event.subject, event.state) for event in recorder.of(StateChanged)]


def test_what_a_consumer_raises_ends_the_job(tmp_path: Path) -> None:
    def consumer(event: Event) -> None:
        if isinstance(event, CommandIssued):
            raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        backed_up(tmp_path, consumer)
    assert not (tmp_path / "set").exists()


def test_a_consumer_may_do_without_commands(tmp_path: Path) -> None:
    recorder = Recorder(commands=False)
    assert not EventStream([recorder]).commands and EventStream([recorder])
    backed_up(tmp_path, recorder)
    assert not recorder.of(CommandIssued) and not recorder.of(CommandCompleted) and recorder.of(Configured)


def test_where_nobody_listens_nothing_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("an event was made")

    for module in (answering, job, jobs_events):
        for kind in (CommandIssued, CommandCompleted, Configured, StateChanged, MessageEvent, ProgressEvent):
            if hasattr(module, kind.__name__):
                monkeypatch.setattr(module, kind.__name__, never)
    assert not EventStream() and not EventStream().commands
    vdi_ext.backup("synthetic:1MiB", tmp_path / "set", own_process=False)


def test_events_become_json(tmp_path: Path) -> None:
    recorder = Recorder()
    backed_up(tmp_path, recorder, devices=2)
    lines = [json.loads(json.dumps({"event": event.kind, **event.to_dict()})) for event in recorder.events]
    writes = [line for line in lines if line["event"] == "command_completed" and line["code"] == "WRITE"]
    assert writes and {line["completion"] for line in writes} == {"SUCCESS"}
    (configured,) = (line for line in lines if line["event"] == "configured")
    assert configured["config"]["features"] == "REQUEST_COMPLETE|WRITE_MEDIA|COMPLETE_ENABLED"


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO, logging.WARNING])
def test_events_are_logged(level: int, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with caplog.at_level(level, "vdi_ext.events"):
        vdi_ext.backup("synthetic:1MiB", tmp_path / "set", own_process=False)
    lines = [record.getMessage() for record in caplog.records if record.name == "vdi_ext.events"]
    commands = [line for line in lines if line.startswith("backup: command_completed ") and "code=WRITE" in line]
    assert bool(commands) == (level == logging.DEBUG)
    assert any("BACKUP DATABASE successfully processed" in line for line in lines) == (level <= logging.INFO)


def test_an_error_of_the_server_is_logged_as_one(caplog: pytest.LogCaptureFixture) -> None:
    stream = EventStream(scope="set 1")
    assert not stream
    with caplog.at_level(logging.INFO, "vdi_ext.events"):
        EventStream(scope="set 1").emit(MessageEvent, "terminated", 3013, 16, 1)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR and "number=3013" in record.getMessage()


def test_consumers_hear_events_on_the_thread_of_the_event(tmp_path: Path) -> None:
    names: dict[type, set[str]] = defaultdict(set)

    def consumer(event: Event) -> None:
        names[type(event)].add(threading.current_thread().name)

    backed_up(tmp_path, consumer, devices=2)
    assert names[CommandIssued] == names[CommandCompleted] == {"vdi-device-1", "vdi-device-2"}


# ---- the stand-in


def test_a_statement_of_the_stand_in_tells_everything() -> None:
    told = Recorder()
    engine = Engine({"db": Synthetic(5_000_000, 1)}, events=[told])
    recorder = EngineRecorder(2)
    with client(2, recorder) as one:
        result = engine.execute(f"BACKUP DATABASE db TO {one.clauses} WITH STATS = 50")
    completed = check_commands(told, 2)
    sizes = [sum(event.transferred for event in completed[device]) for device in (1, 2)]
    assert sizes == [len(stream) for stream in recorder.streams]
    assert [event.code for event in completed[1]][-2:] == [CommandCode.FLUSH, CommandCode.COMPLETE]
    (configured,) = told.of(Configured)
    assert configured.config == one.config
    said = [(event.number, event.text) for event in told.of(MessageEvent) if not event.log]
    assert said == [(entry.number, entry.text) for entry in result.messages]
    assert [event.number for event in told.of(MessageEvent) if event.log] == [18264]
    states = [(event.subject, event.state) for event in told.of(StateChanged) if event.subject != "device"]
    assert states == [
        ("statement", "running"), ("set", "connected"), ("set", "configurable"), ("set", "initializing"),
        ("set", "active"), ("set", "closed"), ("statement", "succeeded"),
    ]  # fmt: skip
    assert {event.scope for event in told.events if not getattr(event, "log", False)} == {configured.scope}


def test_a_device_of_the_stand_in_goes_into_io_error_and_back() -> None:
    told = Recorder()
    engine = Engine({"db": Synthetic(5_000_000, 1)}, events=[told])
    recorder = EngineRecorder(1)
    with client(1, recorder) as one:
        engine.execute(f"BACKUP DATABASE db TO {one.clauses}")
    stream = bytes(recorder.streams[0])

    def play_and_end(number: int, command: vdi_ext.Command) -> None:
        if command.code == CommandCode.READ and play_and_end.place == 0:  # type: ignore[attr-defined]
            play_and_end.place = 1  # type: ignore[attr-defined]
            with memoryview(command) as view:
                view[:512] = stream[:512]
            command.complete(CompletionCode.HANDLE_EOF, 512)
        elif command.code == CommandCode.CLEAR_ERROR:
            command.complete()

    play_and_end.place = 0  # type: ignore[attr-defined]
    told.events.clear()
    with client(1, play_and_end) as one, pytest.raises(SqlError):
        engine.execute(f"RESTORE DATABASE db FROM {one.clauses}")
    states = [(event.subject, event.state) for event in told.of(StateChanged)]
    assert ("device", "io-error") in states and states[-1] == ("statement", "failed")
    assert told.of(CommandCompleted)[0].completion == CompletionCode.HANDLE_EOF
    assert 3013 in [event.number for event in told.of(MessageEvent)]


def test_an_unwatched_stand_in_runs_on_the_set_itself() -> None:
    device_set = object()
    assert watched(device_set, EventStream()) is device_set  # type: ignore[arg-type]
