"""Traces: valid for the viewers at every moment, of bounded size, and true."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT
from engine_clients import Recorder, client
from trace_format import check_trace, read_trace

import vdi_ext
from vdi_ext import CommandCode, DeviceSetConfig
from vdi_ext.engine import Engine, Synthetic
from vdi_ext.events import CommandCompleted, CommandIssued, Configured, MessageEvent, StateChanged
from vdi_ext.jobs.trace import LEAST_LIMIT, TraceFile


def named(records: list[dict], phase: str, name: str | None = None) -> list[dict]:
    return [record for record in records if record["ph"] == phase and name in (None, record["name"])]


def test_a_trace_of_a_backup(tmp_path: Path) -> None:
    with TraceFile(tmp_path / "trace.json") as trace:
        result = vdi_ext.backup(
            "synthetic:20MiB", tmp_path / "set", devices=3, stats=25, events=trace, own_process=False
        )
    records = read_trace(tmp_path / "trace.json")
    assert oct((tmp_path / "trace.json").stat().st_mode & 0o777) == "0o600"
    spans = named(records, "X")
    assert sum(span["args"]["transferred"] for span in spans) == result.size
    assert {span["name"] for span in spans} == {"WRITE", "FLUSH", "COMPLETE"}
    assert {span["args"]["completion"] for span in spans} == {"SUCCESS"}
    threads = {record["tid"]: record["args"]["name"] for record in named(records, "M", "thread_name")}
    assert sorted({threads[span["tid"]] for span in spans}) == ["device 1", "device 2", "device 3"]
    assert len(named(records, "B")) == len(named(records, "E")) == 3
    said = [record["args"]["text"] for record in named(records, "i") if record["name"] == "message"]
    assert said == list(result.messages)
    states = [record["name"] for record in named(records, "i") if record["cat"] == "state"]
    assert {"set: configurable", "configured", "set: closed", "statement: succeeded"} <= set(states)
    rates = named(records, "C", "MiB/s")
    assert rates and rates[-1]["args"] == {"read": 0, "write": 0}
    assert max(rate["args"]["write"] for rate in rates) > 0


def test_overlapping_commands_of_the_stand_in_lie_on_rows_of_their_own(tmp_path: Path) -> None:
    with TraceFile(tmp_path / "trace") as trace:
        recorder = Recorder(2)
        with client(2, recorder) as one:
            Engine({"db": Synthetic(20_000_000)}, events=[trace]).execute(f"BACKUP DATABASE db TO {one.clauses}")
    records = read_trace(tmp_path / "trace")
    spans = named(records, "X")
    assert sum(span["args"]["transferred"] for span in spans) == sum(map(len, recorder.streams))
    assert len({span["tid"] for span in spans}) > 2  # several in flight: SQL Server's side sends ahead
    assert "error log 18264" in {record["name"] for record in named(records, "i")}


def test_the_file_is_valid_at_every_moment(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    trace = TraceFile(path)
    events = [
        Configured(DeviceSetConfig(), at=1.0),
        StateChanged("device", "active", 1, 'na"me'),
        CommandIssued(1, 1, 2, 512),
        CommandCompleted(1, 1, 2, 512, 0, 512, 0.1),
        MessageEvent('a "quote"\nand a line', 3014, 10, 1),
    ]
    sizes = [len(read_trace(path, whole=False))]
    for event in events:
        trace(event)
        sizes.append(len(read_trace(path, whole=False)))
    assert sizes == sorted(sizes) and sizes[-1] > len(events)
    trace.close()
    trace.close()
    trace(events[0])  # late: ignored
    assert len(read_trace(path)) == sizes[-1] + 1  # the device's end


def test_a_killed_job_leaves_a_valid_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    process = subprocess.Popen(
        [sys.executable, "-m", "vdi_ext", "backup", "synthetic:2G", tmp_path / "set", "--json", "--in-process",
         "--trace", path],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if event.get("phase") == "transferring" and event["bytes_done"]:
                break
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    records = read_trace(path, whole=False)
    assert named(records, "X", "WRITE") and named(records, "B") and not named(records, "E")


def test_the_size_is_bounded_and_what_is_missing_is_counted(tmp_path: Path) -> None:
    path, limit = tmp_path / "trace", 4 * LEAST_LIMIT
    trace = TraceFile(path, limit)
    for number in range(1, 2000):
        trace(CommandIssued(1, number, CommandCode.WRITE, 65536))
        trace(CommandCompleted(1, number, CommandCode.WRITE, 65536, 0, 65536, 0.0))
    trace(MessageEvent("said after the commands had to stop", 3014, 10, 1))
    for number in range(2000):
        trace(MessageEvent(f"message {number}", 3211, 10, 1))
    trace.close()
    assert path.stat().st_size <= limit
    records = read_trace(path)
    spans = len(named(records, "X"))
    assert 0 < spans < 1999
    assert named(records, "i", "message 3014"), "messages have room when commands have none"
    last = records[-1]
    kept = spans + len(named(records, "i")) - 1
    counters = len(named(records, "C"))
    left_out = int(last["name"].split(": ")[1].split()[0])
    assert left_out >= 1999 + 2001 - kept - counters
    assert last["s"] == "g"


def test_too_small_a_limit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least"):
        TraceFile(tmp_path / "trace", 100)
    assert not (tmp_path / "trace").exists()


def test_scopes_that_come_and_go_take_no_memory_for_ever(tmp_path: Path) -> None:
    with TraceFile(tmp_path / "trace") as trace:
        for number in range(3000):
            trace(StateChanged("device", "active", 1, scope=f"set {number}"))
        assert len(trace._scopes) == 1024
    records = read_trace(tmp_path / "trace")
    assert len(named(records, "B")) == len(named(records, "E")) == 3000


def test_a_full_disk_ends_the_trace_and_not_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trace"
    trace = TraceFile(path)
    trace(MessageEvent("fits"))
    whole = path.read_bytes()
    write = os.write

    def half(fd: int, data: bytes) -> int:
        return write(fd, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", half)
    trace(MessageEvent("does not fit"))
    monkeypatch.undo()
    assert trace.problem is not None and trace.problem.strerror == "No space left on device"
    trace(MessageEvent("too late"))
    trace.close()
    assert path.read_bytes() == whole
    read_trace(path, whole=False)


def test_devices_that_an_abort_ended_are_ended_in_the_trace(tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("enough")

    with TraceFile(tmp_path / "trace") as trace, pytest.raises(RuntimeError, match="enough"):
        vdi_ext.backup("synthetic:1MiB", tmp_path / "set", inspect=fail, events=trace, own_process=False)
    records = read_trace(tmp_path / "trace")
    assert len(named(records, "B")) == len(named(records, "E")) == 1
    assert named(records, "i", "set: abort")[0]["args"]["detail"] == "RuntimeError: enough"
    assert Counter(span["args"]["completion"] for span in named(records, "X"))["OPERATION_ABORTED"] == 1


@pytest.mark.parametrize(
    "bad",
    [
        {"name": "x", "ph": "X", "pid": 1, "tid": 1, "ts": 1},
        {"name": "x", "ph": "X", "pid": 1, "tid": 1, "ts": 1, "dur": -1},
        {"name": "x", "ph": "Q", "pid": 1, "tid": 1, "ts": 1},
        {"name": "x", "ph": "i", "pid": 1, "tid": 1, "ts": 1},
        {"name": "x", "ph": "C", "pid": 1, "tid": 1, "ts": 1, "args": {"a": "1"}},
        {"name": "x", "ph": "M", "pid": 1, "tid": 1, "args": {"name": "x"}},
        {"name": "x", "ph": "E", "pid": 1, "tid": 1, "ts": 1},
    ],
)
def test_the_validator_sees_what_is_wrong(bad: dict) -> None:
    with pytest.raises((AssertionError, KeyError, IndexError)):
        check_trace([bad])


def test_the_validator_sees_spans_that_cross() -> None:
    spans = [{"name": "x", "ph": "X", "pid": 1, "tid": 1, "ts": ts, "dur": 10} for ts in (0, 5)]
    with pytest.raises(AssertionError):
        check_trace(spans)
    check_trace([spans[0], {**spans[1], "tid": 2}])
