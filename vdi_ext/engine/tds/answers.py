"""What a session says, turned into the tokens of one reply."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from ..messages import Message
from ..session import Session
from ..types import Column, SqlType
from . import tokens
from .packets import Reply
from .tokens import Change, Done, Status
from .types import Value

log = logging.getLogger("vdi_ext.engine.tds")

MOST_INFORMATIVE = 10  # severity


class Context:
    """What a client was told about its session, so that it is told of changes.

    Parameters
    ----------
    session : Session
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.database = session.database
        self.transaction = 0  # descriptor; 0: none is open
        self._last = 0

    @property
    def transferring(self) -> bool:
        """Whether a BACKUP or RESTORE runs."""
        return self.session.request is not None and self.session.request.execution is not None

    def changes(self, *, rolled_back: bool = False) -> bytes:
        """ENVCHANGE tokens for everything that is new."""
        found = b""
        if (database := self.session.database) != self.database:
            found += tokens.change_text(Change.DATABASE, database, self.database)
            self.database = database
        if bool(self.session.transactions) != bool(self.transaction):
            if self.transaction:
                kind = Change.ROLLBACK if rolled_back else Change.COMMIT
                found += tokens.change_transaction(kind, self.transaction)
                self.transaction = 0
            else:
                self._last += 1
                self.transaction = self._last
                found += tokens.change_transaction(Change.BEGIN, self.transaction)
        return found


class Answer:
    """The reply to one request; a session writes into it as into its sink.

    A client that has gone disturbs nobody: `on_broken` is called once, and the rest goes nowhere.

    Parameters
    ----------
    reply : Reply
    context : Context
    server : str
        Name of the server, as messages carry it.
    done_after_message : bool
        A DONE follows each message of a BACKUP or RESTORE that informs, so that drivers which return at each DONE can
        step through. Other statements end with the message that they have.
    on_broken : callable
        Takes the error.

    Attributes
    ----------
    error : int
        Number of the last error since it was last set to 0.
    """

    def __init__(
        self, reply: Reply, context: Context, server: str, done_after_message: bool,
        on_broken: Callable[[OSError], None],
    ) -> None:  # fmt: skip
        self.error = 0
        self._reply = reply
        self._context = context
        self._server = server
        self._done_after_message = done_after_message
        self._on_broken = on_broken
        self._broken = False
        self._in_procedure = False
        self._columns: Sequence[Column] = ()
        self._failed = False  # since the last DONE
        self._open = False  # something was said since then
        # The last DONE so far: whether it is the last of all is known only later.
        self._held: tuple[Done, Status, int | None] | None = None

    # ---- the sink

    def message(self, said: Message) -> None:
        """Sent at once."""
        informs = said.severity <= MOST_INFORMATIVE
        self._write(self._context.changes() + tokens.message(said, self._server))
        if not informs:
            self._failed = True
            self.error = said.number
        elif self._done_after_message and self._context.transferring:
            self._hold(self._kind, None)
            self._release()
        self._flush()

    def columns(self, columns: Sequence[Column]) -> None:
        self._columns = tuple(columns)
        self._write(tokens.columns(self._columns))

    def row(self, values: Sequence[Value]) -> None:
        self._write(tokens.row(self._columns, values))

    def done(self, count: int | None) -> None:
        self.changed()
        self._release()
        self._hold(self._kind, count)
        self._flush()

    # ---- procedures

    def begin_procedure(self) -> None:
        """What follows is within a procedure."""
        self._in_procedure = True
        self.error = 0

    def end_procedure(self, status: int, outputs: Sequence[tuple[int, str, SqlType, Value]]) -> None:
        """It ends with a status and with its output parameters: place, name, type and value."""
        self._in_procedure = False
        self._write(self._context.changes() + tokens.return_status(status))
        for place, name, type_, value in outputs:
            self._write(tokens.return_value(place, name, type_, value))
        self._hold(Done.PROCEDURE, None)

    # ---- the end

    def changed(self, *, rolled_back: bool = False) -> None:
        """Tell what has changed in the session; where a transaction has ended, how."""
        if changes := self._context.changes(rolled_back=rolled_back):
            self._write(changes)

    def reset(self) -> None:
        """The session is as it was after the login."""
        self._write(self._context.changes(rolled_back=True) + tokens.change_reset())

    def settle(self) -> None:
        """All was said: what has no DONE yet gets one."""
        if self._open or self._held is None:
            self._release()
            self._hold(self._kind, None)

    def end(self, *, attention: bool) -> None:
        """End the reply; it also answers an attention."""
        self.settle()
        assert self._held is not None
        kind, status, count = self._held
        if attention:
            status |= Status.ATTENTION
        self._guard(lambda: self._finish(tokens.done(kind, status, count)))

    @property
    def _kind(self) -> Done:
        return Done.IN_PROCEDURE if self._in_procedure else Done.STATEMENT

    def _status(self) -> Status:
        status = Status.ERROR if self._failed else Status.FINAL
        return status | Status.IN_TRANSACTION if self._context.transaction else status

    def _hold(self, kind: Done, count: int | None) -> None:
        self._held = (kind, self._status(), count)
        self._failed = self._open = False

    def _release(self) -> None:
        """The DONE that was held back is not the last one."""
        if self._held is not None:
            kind, status, count = self._held
            self._held = None
            self._guard(lambda: self._reply.write(tokens.done(kind, status | Status.MORE, count)))

    def _write(self, data: bytes) -> None:
        self._release()
        self._open = True
        self._guard(lambda: self._reply.write(data))

    def _flush(self) -> None:
        self._guard(self._reply.flush)

    def _finish(self, last: bytes) -> None:
        self._reply.write(last)
        self._reply.end()

    def _guard(self, write: Callable[[], None]) -> None:
        if self._broken:
            return
        try:
            write()
        except OSError as error:
            self._broken = True
            self._on_broken(error)
