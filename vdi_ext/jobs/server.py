"""A server that is reached through a driver: sessions, and a statement that runs on a thread of its own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from .common import ArgumentError
from .drivers import Adapter, ServerMessage, adapter_for, adapter_of
from .passwords import Password, resolve
from .server_address import ServerAddress, parse_server_address
from .statements import OnMessage, SQLError, Statement, StatementLostError

Connect = Callable[[], Any]

_MOST_STEPS = 1_000_000  # result sets of one statement; a driver that never ends is not followed for ever
_SUCCESS = 3014  # what the server says at the end of a BACKUP or RESTORE that went well
_CANCEL_TIMEOUT = 3.0  # seconds that a statement may take to end once it was cancelled
_KILL_TIMEOUT = 10.0  # seconds that it may take once its session was killed


class Server:
    """Where statements are sent.

    Parameters
    ----------
    source : str or callable
        ``mssql://...``, or a function without arguments that returns a new DB-API connection.
    password : str or callable, optional
        Of a SQL login; called where it is a function, once.

    Attributes
    ----------
    address : ServerAddress or None
    password : str or None

    Raises
    ------
    ArgumentError
        The address is none, or a password is missing or not wanted.
    """

    def __init__(self, source: str | Connect, password: Password | None = None) -> None:
        self._connect: Connect
        self.address: ServerAddress | None = None
        if callable(source):
            self._connect = source
            self.password = None
        else:
            self.address = address = parse_server_address(source)
            if address.integrated and password is not None:
                raise ArgumentError(f"{address} names no user, so its login is integrated and has no password")
            self.password = resolve(password)
            if not address.integrated and self.password is None:
                raise ArgumentError(f"{address} needs the password of {address.user}")
            adapter = adapter_for(address.driver)
            self._connect = lambda: adapter.connect(address, self.password)

    def __str__(self) -> str:
        return str(self.address) if self.address else "the server"

    @property
    def instance(self) -> str | None:
        return self.address.instance if self.address else None

    @property
    def database(self) -> str | None:
        return self.address.database if self.address else None

    def open(self) -> Session:
        """Connect.

        Raises
        ------
        SQLError
            The server can not be reached or refuses the login; the message never holds the password.
        """
        try:
            connection = self._connect()
        except ArgumentError:
            raise
        except Exception as error:
            raise self._refused(error) from None
        try:
            return Session(connection)
        except BaseException:
            with contextlib.suppress(Exception):
                connection.close()
            raise

    def submit(self, text: str, session: Session, heard: OnMessage) -> ServerStatement:
        """Start a statement in a session, which ends with it."""
        return ServerStatement(self, session, text, heard)

    def kill(self, spid: int) -> None:
        """End another session.

        Raises
        ------
        SQLError
            The server refuses, or can not be reached.
        """
        with contextlib.closing(self.open()) as session:
            session.rows(f"KILL {spid:d}")

    def _refused(self, error: Exception) -> SQLError:
        adapter = adapter_for(self.address.driver) if self.address else Adapter
        said = adapter.parse(error)
        words = [str(message) for message in said]
        if not words:
            detail = " ".join(str(error).split()) or type(error).__name__
            words = [f"{self} can not be reached: {detail}"]
        if self.password:
            words = [text.replace(self.password, "***") for text in words]
        return SQLError(words, said[0].number if said else None)


class Session:
    """One connection. One thread at a time, `cancel` excepted."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.adapter = adapter_of(connection)(connection)
        self.adapter.set_autocommit()
        self._cursor: Any = None
        self.spid = int(self.rows("SELECT @@SPID")[0][0])

    def close(self) -> None:
        with contextlib.suppress(Exception):  # it may be broken, and nothing is left to be told
            self.adapter.close()

    def rows(self, sql: str) -> list[tuple]:
        """Execute a statement; the rows of all its result sets.

        Raises
        ------
        SQLError
        """
        found: list[tuple] = []
        self.run(sql, lambda message: None, found.extend)
        return found

    def run(
        self, sql: str, heard: Callable[[ServerMessage], None], rows: Callable[[list[tuple]], None] | None = None
    ) -> None:
        """Execute a statement and step through everything that it answers: drivers return before the server is done.

        Parameters
        ----------
        sql : str
        heard : callable
            Called with each message, errors included, as soon as the driver gives it.
        rows : callable, optional
            Called with the rows of each result set.

        Raises
        ------
        SQLError
            The server reported an error. `StatementLostError`: the connection ended, and it did not.
        """
        errors: list[ServerMessage] = []

        def hear(messages: list[ServerMessage]) -> None:
            for message in messages:
                if message.is_error:
                    errors.append(message)
                heard(message)

        lost = self._steps(sql, hear, errors, rows)
        if errors and not any(message.ends_session for message in errors):
            raise SQLError([str(message) for message in errors], errors[0].number)
        if errors or lost is not None:
            said = [str(message) for message in errors] or [f"the connection was lost: {_words(lost)}"]
            raise StatementLostError(said, errors[0].number if errors else None) from lost

    def _steps(
        self, sql: str, hear: Callable[[list[ServerMessage]], None], errors: list[ServerMessage], rows: Any
    ) -> Exception | None:
        """Everything to the end; returns what ended it early."""
        try:
            cursor = self._cursor = self.connection.cursor()
            self.adapter.begin(lambda message: hear([message]))
            more = True
            for number in range(_MOST_STEPS):
                try:
                    more = (cursor.execute(sql), True)[1] if number == 0 else bool(cursor.nextset())
                    if more and cursor.description:
                        fetched = cursor.fetchall()
                        if rows is not None:
                            rows([tuple(row) for row in fetched])
                    hear(self.adapter.new_messages(cursor))
                except Exception as error:
                    before = len(errors)
                    hear(self.adapter.errors(error, cursor))
                    if len(errors) == before:  # not the server's: the driver has no more to give, or nothing at all
                        return None if errors else error
                if not more:
                    return None
            return RuntimeError(f"the driver did not come to an end after {_MOST_STEPS} results")
        except Exception as error:
            return error
        finally:
            self._cursor = None
            with contextlib.suppress(Exception):
                cursor.close()

    def cancel(self) -> bool:
        """End what runs, from any thread, where the driver can do that. Returns whether it could."""
        cursor = self._cursor
        if cursor is None or not self.adapter.can_cancel:
            return False
        try:
            cursor.cancel()
        except Exception:
            return False
        return True


class ServerStatement(Statement):
    """A statement on a thread of its own, in a session that ends with it."""

    def __init__(self, server: Server, session: Session, text: str, heard: OnMessage) -> None:
        super().__init__()
        self._server = server
        self._session = session
        self._text = text
        self._hear = heard
        self._numbers: set[int | None] = set()
        self._thread = threading.Thread(target=self._run, name="vdi-statement", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the statement where it has not: cancel it, then kill its session from another one."""
        if not self.done and self._session.cancel():
            self.wait(_CANCEL_TIMEOUT)
        if not self.done:
            try:
                self._server.kill(self._session.spid)
            except SQLError as error:
                text = f"session {self._session.spid} could not be ended, and may wait on the server: {error}"
                self.messages.append(text)
                self._hear(text)
            self.wait(_KILL_TIMEOUT)
        if self.done:
            self._thread.join()
            self._session.close()

    def _run(self) -> None:
        failure: SQLError | None = None
        try:
            self._session.run(self._text, self._say)
            if self._numbers and None not in self._numbers and _SUCCESS not in self._numbers:
                failure = StatementLostError(["the driver came to an end before the server reported success"])
        except SQLError as error:
            failure = error
        except BaseException as error:
            failure = StatementLostError([f"the statement's thread failed: {type(error).__name__}: {error}"])
            failure.__cause__ = error
        self._end(failure)

    def _say(self, message: ServerMessage) -> None:
        self._numbers.add(message.number)
        self.messages.append(str(message))
        self._hear(str(message))


def _words(error: BaseException | None) -> str:
    return " ".join(str(error).split()) or type(error).__name__
