"""Submitting a statement to the server while its devices are served.

The stand-in runs in a process of its own, so that its crash is seen as a server's would be, or on a thread here.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable

from .._core.provider import Provider

_STOP_TIMEOUT = 5.0  # seconds that a server which was told to end may take

# Finds this very package, but nothing in the working directory, and nothing in place of the standard library.
_PARENT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_BOOT = """
import sys
at = next((i for i, path in enumerate(sys.path) if path.endswith("-packages")), len(sys.path))
sys.path.insert(at, sys.argv[1])
from vdi_ext.jobs.standin import main
main()
"""

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


class Statement(ABC):
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

    @abstractmethod
    def stop(self) -> None:
        """Wait until nothing of the statement is left; a server of our own is ended."""

    def _end(self, error: SQLError | None) -> None:
        self._error = error
        self._ended.set()
        for callback in self._callbacks:
            callback()


class StandIn:
    """The stand-in, about to execute one order of `submit`."""

    def __init__(self, order: dict) -> None:
        from ..engine import Engine, Replay, database_at

        database = database_at(order["address"])
        if order["write"] and isinstance(database, Replay):  # otherwise it compares with what is there
            database = Replay((), output=database.files)
        self._sql = order["sql"]
        self._engine = Engine({order["database"]: database}, provider=order["provider"])

    def execute(self, say: OnMessage) -> SQLError | None:
        """Execute the statement in this thread; what it returns is the statement's own failure."""
        from ..engine import SqlError

        try:
            self._engine.execute(self._sql, lambda message: say(str(message)))
        except SqlError as error:
            return SQLError([str(message) for message in error.errors], error.number)
        return None

    def cancel(self) -> None:
        """End the statement; any thread."""
        self._engine.cancel()


class ThreadStatement(Statement):
    """The stand-in on a thread of this process."""

    def __init__(self, order: dict, heard: OnMessage) -> None:
        super().__init__()
        self._heard = heard
        self._server = StandIn(order)
        self._thread = threading.Thread(target=self._run, name="vdi-statement", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        if not self.done:
            self._server.cancel()
        self._thread.join()

    def _run(self) -> None:
        try:
            error = self._server.execute(self._say)
        except BaseException as failure:
            error = StatementLostError([f"the stand-in failed: {type(failure).__name__}: {failure}"])
            error.__cause__ = failure
        self._end(error)

    def _say(self, text: str) -> None:
        self.messages.append(text)
        self._heard(text)


class ProcessStatement(Statement):
    """The stand-in in a process of its own; it ends with this one, whatever ends this one.

    A plain child of the interpreter and not of `multiprocessing`, which would run the user's main module again.
    """

    def __init__(self, order: dict, heard: OnMessage) -> None:
        super().__init__()
        self._heard = heard
        self._stderr = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, _PARENT],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr,
            start_new_session=True,  # a terminal's Ctrl-C is ours to handle
        )  # fmt: skip
        with contextlib.suppress(BrokenPipeError):  # it died at once; the listener says how
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        self._listener = threading.Thread(target=self._listen, name="vdi-statement", daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # ends whatever it is doing
        try:
            self._process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join()
        self._process.stdout.close()
        self._stderr.close()

    def _listen(self) -> None:
        error: SQLError | None = None
        result = False
        for line in self._process.stdout:
            try:
                said = json.loads(line)
            except ValueError:  # cut off by its death
                break
            if "message" in said:
                self.messages.append(said["message"])
                self._heard(said["message"])
            else:
                result = True
                error = SQLError(said["error"], said["number"]) if "error" in said else None
        if not result:
            error = StatementLostError([f"the server's process {self.pid} {self._death()}"])
        self._end(error)

    def _death(self) -> str:
        code = self._process.wait()
        if code < 0:
            return f"was ended by signal {-code} before it reported the statement's outcome"
        self._stderr.seek(0)
        last = self._stderr.read()[-4000:].decode(errors="replace").strip().rpartition("\n")[2]
        return f"ended with code {code} before it reported the statement's outcome: {last or 'no word'}"


def submit(
    text: str, database: str, address: str, provider: Provider, own_process: bool, heard: OnMessage, write: bool = False
) -> Statement:
    """Start a statement.

    Parameters
    ----------
    text : str
        The statement.
    database, address : str
        What the name in the statement stands for.
    provider : Provider
        The client's.
    own_process : bool
        Run the stand-in in a process of its own.
    heard : callable
        Called with each message as it comes, on a thread of the statement's.
    write : bool
        A replay is to write its files instead of comparing with them.
    """
    # A library that has only the client's half meets the stand-in's where both were built from the same sources.
    library = None if provider.classes_only else provider.path
    order = {"sql": text, "database": database, "address": address, "provider": library, "write": write}
    return (ProcessStatement if own_process else ThreadStatement)(order, heard)
