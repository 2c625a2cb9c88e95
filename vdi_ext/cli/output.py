"""What the program says while it works, and at the end: for people, or as JSON lines."""

import argparse
import contextlib
import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from .. import jobs
from .exits import EXIT_OK

_printing = threading.Lock()
_REFRESH = 5.0  # seconds between two plain lines of progress


@contextlib.contextmanager
def progress(options: argparse.Namespace) -> Iterator[jobs.Progress | None]:
    if options.quiet:
        yield None
    elif options.json:
        yield lambda event: print_json({"event": "progress", **event.to_dict()})
    else:
        with terminal_progress() as report:
            yield report


@contextlib.contextmanager
def terminal_progress() -> Iterator[jobs.Progress]:
    """Progress for people, on standard error: a bar where that is a terminal, else a line now and then."""
    if sys.stderr.isatty():
        try:
            from tqdm import tqdm
        except ImportError:  # the extra "cli" is not installed
            pass
        else:
            with contextlib.closing(_Bar(tqdm)) as bar:
                yield bar
            return
    yield _Lines()


class _Bar:
    def __init__(self, tqdm: Any) -> None:
        tqdm.monitor_interval = 0  # no thread of its own
        self._tqdm = tqdm
        self._bar: Any = None

    def __call__(self, event: jobs.ProgressEvent) -> None:
        if event.phase == "message":
            self._tqdm.write(f"  {event.message}", file=sys.stderr)
        elif event.phase in ("transferring", "verifying"):
            if self._bar is None or self._bar.desc != event.phase:
                self.close()
                self._bar = self._tqdm(
                    desc=event.phase, total=event.bytes_total, unit="B", unit_scale=True, unit_divisor=1024,
                    file=sys.stderr, dynamic_ncols=True, leave=True, mininterval=0, smoothing=0,
                )  # fmt: skip
                self._bar.desc = event.phase
            self._bar.update(event.bytes_done - self._bar.n)
        elif event.phase in ("closing", "done") and self._bar is not None:
            self._bar.update(event.bytes_done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class _Lines:
    def __init__(self) -> None:
        self._last = 0.0
        self._done = 0

    def __call__(self, event: jobs.ProgressEvent) -> None:
        if event.phase == "message":
            text = event.message
        elif event.phase in ("transferring", "verifying"):
            new = event.bytes_done != self._done
            if not new or (time.monotonic() - self._last < _REFRESH and event.bytes_done != event.bytes_total):
                return
            self._done = event.bytes_done
            self._last = time.monotonic()
            text = f"{event.phase} {readable(event.bytes_done)}"
            if event.bytes_total and event.elapsed:
                rate = event.bytes_done / event.elapsed
                left = max(0, event.bytes_total - event.bytes_done) / rate
                text += f" of {readable(event.bytes_total)}, {readable(rate)}/s, {left:.0f} s left"
        elif event.device is None:
            text = event.phase
        else:
            return
        print(text, file=sys.stderr, flush=True)


def readable(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def print_json(document: dict) -> None:
    """Print one line; any thread."""
    line = json.dumps(document)
    with _printing:
        print(line, flush=True)


def statement(options: argparse.Namespace, text: str) -> int:
    """Print a statement that is not submitted."""
    if options.json:
        print_json({"event": "statement", "text": text})
    else:
        print(text)
    return EXIT_OK


def note(options: argparse.Namespace, event: str, database: str, reason: str) -> None:
    """One line about a database of which there is no backup."""
    if options.json:
        print_json({"event": event, "database": database, "reason": reason})
    else:
        print(f"{database}: {event}: {reason}")


def finished(options: argparse.Namespace, result: jobs.Result, text: str) -> int:
    if options.json:
        print_json({"event": "result", **result.to_dict()})
    else:
        rate = readable(result.size / result.seconds if result.seconds else 0)
        print(f"{text}: {readable(result.size)} in {result.seconds:.1f} s ({rate}/s)")
    return EXIT_OK


class OneLine(logging.Formatter):
    """An entry is one line of what can be printed: names and texts come from clients."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        text = super().formatMessage(record)
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
