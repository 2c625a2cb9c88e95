"""Events as Prometheus metrics, served over HTTP (extra ``metrics``)."""

import threading
from enum import IntEnum
from typing import Any

from ..constants import CommandCode, CompletionCode
from ..events import CommandCompleted, CommandIssued, Event, MessageEvent, ProgressEvent, StateChanged, name_of
from .common import ArgumentError

LOOPBACK = "127.0.0.1"
_BUCKETS = (1e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2, 5e-2, 0.1, 0.5, 1.0, 5.0, 30.0, 300.0)  # seconds


class Metrics:
    """A consumer of events that counts them, and a web server that tells the counts.

    Parameters
    ----------
    address : str
        ``HOST:PORT``, ``:PORT`` or ``PORT``; without a host the loopback one. Port 0 is any that is free. What is
        served names no database and no data, but who can reach it sees when backups run: anything but loopback is to
        be asked for by name.

    Attributes
    ----------
    url : str

    Raises
    ------
    ArgumentError
        The extra is not installed, or the address is none.
    OSError
        Nothing can listen there.
    """

    commands = True

    def __init__(self, address: str) -> None:
        host, port = parse_address(address)
        try:
            import prometheus_client as prometheus
        except ImportError:
            raise ArgumentError("metrics need prometheus-client: pip install 'vdi_ext[metrics]'") from None
        self._registry = registry = prometheus.CollectorRegistry()
        named: dict[str, Any] = {"namespace": "vdi", "registry": registry}
        counter, gauge = prometheus.Counter, prometheus.Gauge
        self._commands = counter("commands", "Commands that were completed.", ["command", "completion"], **named)
        self._bytes = counter("bytes", "Bytes that commands moved.", ["command"], **named)
        self._seconds = prometheus.Histogram(
            "command_seconds", "From issue to completion of a command.", ["command"], buckets=_BUCKETS, **named
        )
        self._in_flight = gauge("commands_in_flight", "Commands issued and not completed.", **named)
        self._devices = gauge("devices_open", "Virtual devices that are open.", **named)
        self._statements = counter("statements", "Statements that ended.", ["outcome"], **named)
        self._running = gauge("statements_running", "Statements that have not ended.", **named)
        self._aborts = counter("aborts", "Device sets that were aborted.", **named)
        self._messages = counter("messages", "Messages of the server.", ["number", "severity", "to"], **named)
        self._job_bytes = gauge("job_bytes", "Bytes that a job has moved.", ["job"], **named)
        self._job_total = gauge("job_bytes_expected", "Bytes that a job is expected to move.", ["job"], **named)
        self._last = gauge("last_success_timestamp_seconds", "When a statement last succeeded.", **named)
        self._lock = threading.Lock()
        self._open: set[tuple[str, int]] = set()
        self._statements_of: set[str] = set()
        self._children: dict[tuple[str, str], tuple[Any, Any, Any]] = {}
        self._server, self._thread = prometheus.start_http_server(port, host, registry)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_port}/metrics"

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, event: Event) -> None:
        if isinstance(event, CommandIssued):
            self._in_flight.inc()
        elif isinstance(event, CommandCompleted):
            self._completed(event)
        elif isinstance(event, StateChanged):
            with self._lock:
                self._state(event)
        elif isinstance(event, MessageEvent):
            number, severity = ("" if value is None else str(value) for value in (event.number, event.severity))
            self._messages.labels(number, severity, "log" if event.log else "driver").inc()
        elif isinstance(event, ProgressEvent):
            self._job_bytes.labels(event.job).set(event.bytes_done)
            if event.bytes_total is not None:
                self._job_total.labels(event.job).set(event.bytes_total)

    def close(self) -> None:
        """Stop serving. Idempotent."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _completed(self, event: CommandCompleted) -> None:
        self._in_flight.dec()
        key = command, completion = _label(CommandCode, event.code), _label(CompletionCode, event.completion)
        children = self._children.get(key)
        if children is None:
            children = self._children[key] = (
                self._commands.labels(command, completion),
                self._bytes.labels(command),
                self._seconds.labels(command),
            )
        children[0].inc()
        if event.code in (CommandCode.READ, CommandCode.WRITE):
            children[1].inc(event.transferred)
        children[2].observe(event.seconds)

    def _state(self, event: StateChanged) -> None:
        if event.subject == "device":
            key = event.scope, event.device or 0
            if event.state == "active":
                self._open.add(key)
            elif event.state == "closed":
                self._open.discard(key)
        elif event.subject == "set":
            if event.state == "abort":
                self._aborts.inc()
            elif event.state == "closed":
                self._open = {key for key in self._open if key[0] != event.scope}
        elif event.subject == "statement":
            if event.state in ("succeeded", "failed", "lost"):
                self._statements.labels(event.state).inc()
                self._statements_of.discard(event.scope)
                if event.state == "succeeded":
                    self._last.set_to_current_time()
            else:
                self._statements_of.add(event.scope)
        self._devices.set(len(self._open))
        self._running.set(len(self._statements_of))


def _label(kind: type[IntEnum], number: int) -> str:
    # The other side chooses numbers freely; each new label would be kept for ever.
    name = name_of(kind, number)
    return "other" if name.isdigit() else name


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``, ``[V6]:PORT``, ``:PORT`` or ``PORT``. Raises `ArgumentError`."""
    host, _, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ArgumentError(f"{address!r} is ambiguous: write an IPv6 address as [ADDRESS]:PORT")
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ArgumentError(f"{address!r} is no address: give HOST:PORT, or only PORT for this machine's loopback")
    return host or LOOPBACK, int(port)
