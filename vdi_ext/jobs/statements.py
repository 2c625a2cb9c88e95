"""Submitting a statement to the server while its devices are served.

The stand-in runs in a process of its own, so that its crash is seen as a server's would be, or on a thread here.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable

_STOP_TIMEOUT = 5.0  # seconds that a server which was told to end may take

OnMessage = Callable[[str], None]


class SQLError(Exception):
    """A statement failed.

    Attributes
    ----------
    messages : tuple of str
        What the server said, the first error first.
    number : int or None
        The first error's number.
    """

    def __init__(self, messages: list[str] | tuple[str, ...], number: int | None = None) -> None:
        self.messages = tuple(messages)
        self.number = number
        super().__init__(" ".join(self.messages))

    def __reduce__(self) -> tuple:
        return type(self), (self.messages, self.number)


class StatementLostError(SQLError):
    """The server went away before it reported the outcome, which is not known."""


class Statement:
    """A running statement. `result` tells how it ended; any thread may ask."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self._ended = threading.Event()
        self._error: SQLError | None = None
        self._callbacks: list[Callable[[], None]] = []

    @property
    def done(self) -> bool:
        return self._ended.is_set()

    @property
    def succeeded(self) -> bool:
        return self.done and self._error is None

    @property
    def lost(self) -> bool:
        """Ended without saying how, or still running."""
        return not self.done or isinstance(self._error, StatementLostError)

    def on_done(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)
        if self.done:
            callback()

    def wait(self, timeout: float | None = None) -> bool:
        return self._ended.wait(timeout)

    def result(self) -> list[str]:
        """The messages of a statement that succeeded; raises the `SQLError` of one that did not."""
        if self._error is not None:
            raise self._error
        return self.messages

    def stop(self) -> None:
        """Wait until nothing of the statement is left; a server of our own is ended."""
        raise NotImplementedError

    def _end(self, error: SQLError | None) -> None:
        self._error = error
        self._ended.set()
        for callback in self._callbacks:
            callback()
