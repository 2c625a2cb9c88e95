"""Each request to what executes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..messages import Message
from ..session import Session
from ..tsql import quote_name
from ..types import Column
from .answers import MOST_INFORMATIVE, Answer
from .packets import IGNORE, RESET, RESET_KEEPING_TRANSACTION, Packet, PacketType
from .procedures import Procedures
from .requests import Act, TransactionRequest, parse_batch, parse_calls, parse_transaction
from .wire import ProtocolError


class Dispatcher:
    """Executes requests in a session.

    Parameters
    ----------
    session : Session
    stopped : callable
        Whether the client wants an end of what runs.
    """

    def __init__(self, session: Session, stopped: Callable[[], bool]) -> None:
        self._session = session
        self._stopped = stopped
        self._procedures = Procedures(session, stopped)
        self._home = session.database

    def handle(self, packet: Packet, answer: Answer) -> None:
        """Execute one. Raises `ProtocolError` for what is none."""
        if packet.status & IGNORE:  # the client thought better of it while it was sending
            return
        if packet.status & (RESET | RESET_KEEPING_TRANSACTION):
            self._reset(answer, keep_transaction=not packet.status & RESET)
        if self._stopped():
            return
        if packet.type == PacketType.BATCH:
            self._session.run(parse_batch(packet.data), answer)
        elif packet.type == PacketType.RPC:
            self._procedures.run(parse_calls(packet.data), answer)
        elif packet.type == PacketType.TRANSACTION:
            self._transaction(parse_transaction(packet.data), answer)
        else:
            raise ProtocolError(f"a message of type {packet.type} within a session")

    def _reset(self, answer: Answer, *, keep_transaction: bool) -> None:
        """As if the client had just logged in: for pools, which hand connections on."""
        quiet = _Errors(answer)
        if self._session.transactions and not keep_transaction:
            self._session.run("ROLLBACK TRANSACTION", quiet)
        if self._session.database != self._home:
            self._session.run(f"USE {quote_name(self._home)}", quiet)
        self._procedures.forget()
        answer.reset()

    def _transaction(self, request: TransactionRequest, answer: Answer) -> None:
        name = f" {quote_name(request.name)}" if request.name else ""
        quiet = _Errors(answer)
        self._session.run(f"{request.act.name} TRANSACTION{name}", quiet)
        answer.changed(rolled_back=request.act is Act.ROLLBACK)
        if request.begin and not quiet.seen:
            self._session.run("BEGIN TRANSACTION", quiet)
        answer.changed()


class _Errors:
    """A sink that lets only errors through, for statements that the client did not write."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.seen = False

    def message(self, said: Message) -> None:
        if said.severity > MOST_INFORMATIVE:
            self.seen = True
            self._answer.message(said)

    def columns(self, columns: Sequence[Column]) -> None: ...

    def row(self, values: Sequence[object]) -> None: ...

    def done(self, count: int | None) -> None: ...
