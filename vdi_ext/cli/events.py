"""Where the events of a command go: JSON lines, a trace file, metrics, a log on standard error."""

import argparse
import contextlib
import logging
import sys
from collections.abc import Iterator

from ..events import LOGGER, Consumer, Event, MessageEvent, ProgressEvent
from ..jobs.metrics import Metrics
from ..jobs.trace import TraceFile
from . import output


def add_event_options(added: argparse.ArgumentParser) -> None:
    """Options of every command that moves data; `consumers` reads them."""
    group = added.add_argument_group("events")
    group.add_argument("--trace", metavar="FILE", help="write a trace that Chrome's and Perfetto's viewers open")
    group.add_argument("--metrics", metavar="HOST:PORT", help="serve Prometheus metrics; loopback without a HOST")
    group.add_argument("--commands", action="store_true", help="with --json: a line for each command too")
    group.add_argument("-v", "--verbose", action="count", default=0,
                       help="log events to standard error; twice: commands and progress too")  # fmt: skip


@contextlib.contextmanager
def consumers(options: argparse.Namespace, *, progress: bool = True) -> Iterator[list[Consumer]]:
    """The consumers that the options ask for; they are closed when the block ends, however it does.

    Parameters
    ----------
    options : Namespace
    progress : bool
        Messages and progress are reported by a job's own function, and need no JSON lines.
    """
    with contextlib.ExitStack() as stack:
        found: list[Consumer] = []
        if options.verbose:
            stack.enter_context(_logging(logging.DEBUG if options.verbose > 1 else logging.INFO))
        if options.metrics:
            metrics = stack.enter_context(Metrics(options.metrics))
            print(f"vdi-ext: metrics at {metrics.url}", file=sys.stderr)
            found.append(metrics)
        if options.trace:
            stack.enter_context(_reported(trace := TraceFile(options.trace)))
            found.append(trace)
        if options.json:
            found.append(JsonLines(commands=options.commands, progress=not progress))
        yield found


class JsonLines:
    """A consumer that prints a line for each event."""

    def __init__(self, *, commands: bool, progress: bool) -> None:
        self.commands = commands
        self._silent = () if progress else (MessageEvent, ProgressEvent)

    def __call__(self, event: Event) -> None:
        if not isinstance(event, self._silent):
            output.print_json({"event": event.kind, **event.to_dict()})


@contextlib.contextmanager
def _reported(trace: TraceFile) -> Iterator[None]:
    """A trace that could not be written to its end fails nothing, but is not kept quiet about."""
    try:
        with trace:
            yield
    finally:
        if trace.problem is not None:
            print(f"vdi-ext: the trace is incomplete: {trace.problem.strerror}", file=sys.stderr)


@contextlib.contextmanager
def _logging(level: int) -> Iterator[None]:
    """The log of events on standard error."""
    log = logging.getLogger(LOGGER)
    handler = logging.StreamHandler()
    handler.setFormatter(output.OneLine("%(asctime)s.%(msecs)03d %(levelname)s %(message)s", "%H:%M:%S"))
    old = log.level
    log.addHandler(handler)
    log.setLevel(level)
    try:
        yield
    finally:
        log.setLevel(old)
        log.removeHandler(handler)
