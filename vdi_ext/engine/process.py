"""The stand-in in a process of its own, as SQL Server is one."""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import signal
import threading
from collections import deque
from collections.abc import Mapping
from multiprocessing.connection import Connection
from types import TracebackType

from .databases import Database
from .execution import OnMessage, Result
from .messages import Message, SqlError
from .server import Engine

_EXIT_TIMEOUT = 5.0  # seconds that the process may take to end when it was told to


class EngineDiedError(RuntimeError):
    """The engine's process ended before the statement did; its outcome is not known.

    Parameters
    ----------
    pid : int
    exitcode : int or None
        Negative: the signal that ended it.
    """

    def __init__(self, pid: int, exitcode: int | None) -> None:
        super().__init__(pid, exitcode)
        self.pid = pid
        self.exitcode = exitcode

    def __str__(self) -> str:
        how = f"signal {-self.exitcode}" if self.exitcode is not None and self.exitcode < 0 else f"code {self.exitcode}"
        return f"the engine's process {self.pid} ended with {how} before the statement did"


class EngineProcess:
    """An `Engine` in a child process; a context manager.

    Parameters
    ----------
    databases, instance, server_name
        As for `Engine`.
    provider : str or path, optional
        As for `Engine`, but no object.

    Attributes
    ----------
    error_log : deque of Message
        As of `Engine`.

    Notes
    -----
    `execute` is for one thread at a time; `cancel` and `kill` for any. The child ignores Ctrl-C, which reaches it
    from a terminal as well, and ends with its parent. Started with the *spawn* method: a program that uses it needs
    the usual ``if __name__ == "__main__":``.
    """

    def __init__(
        self,
        databases: Mapping[str, Database],
        *,
        instance: str | None = None,
        provider: object = None,
        server_name: str | None = None,
    ) -> None:
        self.error_log: deque[Message] = deque(maxlen=1000)
        context = multiprocessing.get_context("spawn")
        self._pipe, child = context.Pipe()
        self._sending = threading.Lock()
        self._executing = threading.Lock()
        options = {"instance": instance, "provider": provider, "server_name": server_name}
        self._process = context.Process(
            target=_serve, args=(child, dict(databases), options), name="vdi-engine", daemon=True
        )
        try:
            self._process.start()
        except BaseException:
            self._pipe.close()
            raise
        finally:
            child.close()
        self._pid = self._process.pid or 0
        self._closed = False

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._pid

    def execute(self, sql: str, on_message: OnMessage | None = None) -> Result:
        """Execute one statement; see `Engine.execute`.

        Raises
        ------
        SqlError
            The statement failed.
        EngineDiedError
            The process ended; nothing more can be executed.
        """
        with self._executing:
            if self._closed:
                raise ValueError("the engine's process was closed")
            self._send("execute", sql)
            interrupted: KeyboardInterrupt | None = None
            while True:
                try:
                    kind, *content = self._receive()
                except KeyboardInterrupt as error:
                    if interrupted is not None:
                        self.kill()
                        raise
                    interrupted = error
                    self.cancel()
                    continue
                if kind == "message":
                    if on_message is not None:
                        on_message(content[0])
                elif kind == "log":
                    self.error_log.append(content[0])
                elif interrupted is not None:
                    raise interrupted
                elif kind == "result":
                    return content[0]
                elif kind == "error":
                    raise SqlError(content[0]) from content[1]
                else:
                    raise content[0]

    def cancel(self) -> None:
        """End the statement that runs: its device set is aborted. Returns at once."""
        with contextlib.suppress(EngineDiedError):  # `execute` tells
            self._send("cancel")

    def kill(self) -> None:
        """End the process by SIGKILL, as a crash would."""
        self._process.kill()

    def close(self) -> None:
        """End the process; a statement that runs is cancelled. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._pipe.close()
        self._process.join(_EXIT_TIMEOUT)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        self._process.close()

    def _send(self, *order: object) -> None:
        try:
            with self._sending:
                self._pipe.send(order)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._died() from error

    def _receive(self) -> tuple:
        try:
            return self._pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._died() from error

    def _died(self) -> EngineDiedError:
        self._process.join(_EXIT_TIMEOUT)
        return EngineDiedError(self._pid, self._process.exitcode)


# ---- in the child


class _SpeakingEngine(Engine):
    """Sends its error log to the parent."""

    def __init__(self, say: _Speaker, databases: Mapping[str, Database], options: dict) -> None:
        super().__init__(databases, **options)
        self._say = say

    def to_log(self, entry: Message) -> None:
        super().to_log(entry)
        self._say("log", entry)


class _Speaker:
    """Sends to the parent; one that is gone hears nothing."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def __call__(self, *words: object) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._pipe.send(words)


def _serve(pipe: Connection, databases: dict[str, Database], options: dict) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    say = _Speaker(pipe)
    engine = _SpeakingEngine(say, databases, options)
    orders: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def listen() -> None:
        try:
            while True:
                word, *content = pipe.recv()
                if word == "execute":
                    orders.put(content[0])
                else:
                    engine.cancel()
        except (EOFError, ConnectionResetError):  # the parent closed, or is no more
            orders.put(None)
            engine.cancel()

    threading.Thread(target=listen, name="vdi-orders", daemon=True).start()
    while (sql := orders.get()) is not None:
        try:
            result = engine.execute(sql, lambda entry: say("message", entry))
        except SqlError as error:
            say("error", error.messages, error.__cause__)
        except Exception as error:
            say("failed", error)
        else:
            say("result", result)
