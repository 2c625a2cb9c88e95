"""Events as a file that Chrome's and Perfetto's trace viewers open.

The array form of the trace-event format: one record a line, of which the closing bracket may be missing. So the file
can be opened at any moment, and also after the process was killed.
"""

import contextlib
import errno
import json
import logging
import os
import threading
import time
from collections import OrderedDict

from ..constants import CommandCode, CompletionCode
from ..events import (
    CommandCompleted,
    CommandIssued,
    Configured,
    Event,
    MessageEvent,
    ProgressEvent,
    StateChanged,
    name_of,
)

DEFAULT_LIMIT = 64 << 20  # bytes: some 300,000 commands
LEAST_LIMIT = 16384
_RESERVE = 4096  # bytes for the last record and the bracket
_COUNTER_PERIOD = 0.1  # seconds
_SCOPES = 1024  # device sets remembered at the same time
_LANES = 100  # commands of a device that are shown beside each other
_TEXT = 2000  # characters of a message

log = logging.getLogger("vdi_ext.trace")


class _Scope:
    """One process in the viewer: a job, or a device set of the stand-in."""

    def __init__(self, pid: int, now: float) -> None:
        self.pid = pid
        self.lanes: set[int] = set()  # announced
        self.in_flight: dict[tuple[int, int], tuple[int, float]] = {}  # (device, number): lane, begin
        self.ends: dict[int, list[float]] = {}  # device: end of the last span on each lane; inf while one is open
        self.open_devices: dict[int, str] = {}
        self.moved = {"read": 0, "write": 0}  # bytes since the last counter
        self.counted_at = now
        self.counted = False  # the last counter was not 0


class TraceFile:
    """A consumer of events that writes each to a file as it happens.

    Every device of every device set is a row with a span for the time that it was open and one for each command; the
    commands of a device that overlap stand on rows beneath each other. State changes, messages and phases are instants;
    bytes per second and the progress of jobs are counters.

    Parameters
    ----------
    path : path
        Written anew, for its owner only.
    limit : int
        Bytes that the file may have. From 7/8 of it on commands and counters are left out, from the limit on
        everything; the last record says how much.

    Attributes
    ----------
    problem : OSError or None
        Why nothing more could be written. It ends no job.

    Raises
    ------
    OSError
        The file can not be made.
    ValueError
        `limit` is too small.

    Notes
    -----
    Each record is one call of write: what happened before a kill is in the file.
    """

    commands = True

    def __init__(self, path: str | os.PathLike[str], limit: int = DEFAULT_LIMIT) -> None:
        if limit < LEAST_LIMIT:
            raise ValueError(f"a trace needs at least {LEAST_LIMIT} bytes, not {limit}")
        self.problem: OSError | None = None
        self._limit = limit - _RESERVE
        self._soft_limit = limit // 8 * 7
        self._lock = threading.Lock()
        self._origin = time.monotonic()
        self._size = 0
        self._left_out = 0
        self._pids = 0
        self._scopes: OrderedDict[str, _Scope] = OrderedDict()
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._write(b"[")

    def __enter__(self) -> "TraceFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, event: Event) -> None:
        with self._lock:
            if self._fd < 0:
                return
            scope = self._scope(event)
            if isinstance(event, CommandIssued):
                self._issued(scope, event)
            elif isinstance(event, CommandCompleted):
                self._completed(scope, event)
            elif isinstance(event, StateChanged):
                self._state(scope, event)
            elif isinstance(event, MessageEvent):
                self._message(scope, event)
            elif isinstance(event, ProgressEvent):
                self._progress(scope, event)
            elif isinstance(event, Configured):
                self._instant(scope, 0, "configured", "state", event.at, event.to_dict()["config"])

    def close(self) -> None:
        """End the file well. Idempotent."""
        with self._lock:
            if self._fd < 0:
                return
            now = time.monotonic()
            for scope in self._scopes.values():
                self._end_devices(scope, now)
            if self._left_out:
                text = f"the trace was full: {self._left_out} records were left out"
                self._put({"name": text, "ph": "i", "s": "g", "pid": 0, "tid": 0, "ts": self._ts(now)}, final=True)
            self._write(b"\n]\n")
            os.close(self._fd)
            self._fd = -1

    # ---- events

    def _issued(self, scope: _Scope, event: CommandIssued) -> None:
        ends = scope.ends.setdefault(event.device, [])
        lane = next((n for n, end in enumerate(ends) if end <= event.at), len(ends))
        if lane == len(ends) < _LANES:
            ends.append(0.0)
        lane = min(lane, _LANES - 1)
        ends[lane] = float("inf")
        scope.in_flight[event.device, event.number] = lane, event.at

    def _completed(self, scope: _Scope, event: CommandCompleted) -> None:
        lane, begun = scope.in_flight.pop((event.device, event.number), (0, event.at - event.seconds))
        if event.device in scope.ends:
            scope.ends[event.device][lane] = event.at
        record = {
            "name": name_of(CommandCode, event.code), "cat": "command", "ph": "X", "pid": scope.pid,
            "tid": self._lane(scope, event.device, lane), "ts": self._ts(begun),
            "dur": round(max(0.0, event.at - begun) * 1e6, 3),
            "args": {
                "number": event.number, "size": event.size, "transferred": event.transferred,
                "completion": name_of(CompletionCode, event.completion),
            },
        }  # fmt: skip
        self._put(record, spare=True)
        direction = {CommandCode.READ: "read", CommandCode.WRITE: "write"}.get(event.code)  # type: ignore[call-overload]
        if direction is not None:
            scope.moved[direction] += event.transferred
        if event.at - scope.counted_at >= _COUNTER_PERIOD:
            self._throughput(scope, event.at)

    def _throughput(self, scope: _Scope, now: float) -> None:
        period = now - scope.counted_at
        rates = {name: round(moved / period / 2**20, 3) for name, moved in scope.moved.items()}
        # A counter holds from its time on: the rate belongs to the beginning of its period.
        self._counter(scope, "MiB/s", scope.counted_at, rates)
        scope.counted = any(scope.moved.values())
        scope.moved = dict.fromkeys(scope.moved, 0)
        scope.counted_at = now

    def _state(self, scope: _Scope, event: StateChanged) -> None:
        lane = 0 if event.device is None else self._lane(scope, event.device, 0)
        detail = {"detail": event.detail[:_TEXT]} if event.detail else {}
        if event.subject == "device" and event.device is not None:
            if event.state == "active" and event.device not in scope.open_devices:
                name = (event.detail or f"device {event.device}")[:_TEXT]
                scope.open_devices[event.device] = name
                self._span(scope, lane, name, "B", event.at)
                return
            if event.state == "closed" and event.device in scope.open_devices:
                self._span(scope, lane, scope.open_devices.pop(event.device), "E", event.at)
                return
        if event.subject == "set" and event.state in ("closed", "abort"):
            if any(scope.moved.values()) and event.at > scope.counted_at:
                self._throughput(scope, event.at)
            if scope.counted:
                self._counter(scope, "MiB/s", event.at, dict.fromkeys(scope.moved, 0))
                scope.counted = False
            self._end_devices(scope, event.at)
        self._instant(scope, lane, f"{event.subject}: {event.state}", "state", event.at, detail)

    def _message(self, scope: _Scope, event: MessageEvent) -> None:
        named = {"number": event.number, "severity": event.severity, "state": event.state}
        args = {name: value for name, value in named.items() if value is not None}
        title = "error log" if event.log else "message"
        title = title if event.number is None else f"{title} {event.number}"
        self._instant(scope, 0, title, "message", event.at, {**args, "text": event.text[:_TEXT]})

    def _progress(self, scope: _Scope, event: ProgressEvent) -> None:
        if event.phase in ("transferring", "verifying"):
            self._counter(scope, "bytes", event.at, {"done": event.bytes_done})
        else:
            lane = 0 if event.device is None else self._lane(scope, event.device, 0)
            self._instant(scope, lane, event.phase, "phase", event.at, {"bytes_done": event.bytes_done})

    # ---- records

    def _scope(self, event: Event) -> _Scope:
        scope = self._scopes.get(event.scope)
        if scope is None:
            self._pids += 1
            scope = self._scopes[event.scope] = _Scope(self._pids, event.at)
            if len(self._scopes) > _SCOPES:
                self._end_devices(self._scopes.popitem(last=False)[1], event.at)
            name = f"{event.scope or 'vdi_ext'} (process {os.getpid()})"
            self._metadata("process_name", scope.pid, 0, {"name": name})
            self._metadata("thread_name", scope.pid, 0, {"name": "statement"})
        return scope

    def _lane(self, scope: _Scope, device: int, lane: int) -> int:
        tid = device * _LANES + lane
        if tid not in scope.lanes:
            scope.lanes.add(tid)
            name = f"device {device}" + (f", command {lane + 1} at a time" if lane else "")
            self._metadata("thread_name", scope.pid, tid, {"name": name})
            self._metadata("thread_sort_index", scope.pid, tid, {"sort_index": tid})
        return tid

    def _metadata(self, name: str, pid: int, tid: int, args: dict) -> None:
        self._put({"name": name, "ph": "M", "pid": pid, "tid": tid, "args": args})

    def _instant(self, scope: _Scope, tid: int, name: str, category: str, at: float, args: dict) -> None:
        self._put(
            {"name": name, "cat": category, "ph": "i", "s": "t", "pid": scope.pid, "tid": tid, "ts": self._ts(at),
             "args": args}
        )  # fmt: skip

    def _span(self, scope: _Scope, tid: int, name: str, phase: str, at: float) -> None:
        self._put(
            {"name": name, "cat": "device", "ph": phase, "pid": scope.pid, "tid": tid, "ts": self._ts(at)},
            final=phase == "E",
        )

    def _counter(self, scope: _Scope, name: str, at: float, values: dict) -> None:
        self._put(
            {"name": name, "cat": "throughput", "ph": "C", "pid": scope.pid, "tid": 0, "ts": self._ts(at),
             "args": values},
            spare=True,
        )  # fmt: skip

    def _end_devices(self, scope: _Scope, now: float) -> None:
        for device, name in scope.open_devices.items():
            self._span(scope, self._lane(scope, device, 0), name, "E", now)
        scope.open_devices.clear()

    def _ts(self, at: float) -> float:
        return round(max(0.0, at - self._origin) * 1e6, 3)

    def _put(self, record: dict, *, spare: bool = False, final: bool = False) -> None:
        # A comma before a record, not behind it: the file lacks nothing but its bracket at any moment.
        line = (",\n" if self._size > 1 else "\n") + json.dumps(record, separators=(",", ":"))
        data = line.encode()
        limit = self._soft_limit if spare else self._limit
        if self._size + len(data) > limit and not (final and self._size + len(data) <= self._limit + _RESERVE // 2):
            self._left_out += 1
            return
        self._write(data)

    def _write(self, data: bytes) -> None:
        if self.problem is None:
            try:
                if os.write(self._fd, data) != len(data):
                    with contextlib.suppress(OSError):  # no file, but a pipe
                        os.ftruncate(self._fd, self._size)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._size += len(data)
            except OSError as error:
                self.problem = error
                log.warning("the trace is incomplete: %s", error)
