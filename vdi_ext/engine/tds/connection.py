"""One connection, from its first byte to its end.

Its own thread logs in and then runs what is asked; a second one reads meanwhile, so that an attention, and the loss of
the client, end what runs.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ..database import DatabaseError
from ..messages import Message, message
from ..server import VERSION, Engine
from ..session import Session
from . import login, prelogin, tokens
from .answers import Answer, Context
from .dispatch import Dispatcher
from .login import Login, Logins
from .packets import DEFAULT, LARGEST, SMALLEST, Packet, PacketType, Reply, Stream, receive
from .prelogin import Encrypt, Encryption
from .tls import ALPN, Tls
from .tokens import Change, Done, Status
from .wire import ProtocolError

log = logging.getLogger("vdi_ext.engine.tds")

LANGUAGE = "us_english"
_TLS_BYTE = 0x16  # what TLS begins with; a packet never does
_STRICT = "all of it under TLS, as TDS 8.0 has it"
_HOW = {
    Encryption.OFF: "its login under TLS",
    Encryption.ON: "all of it under TLS",
    Encryption.REQUIRED: "all of it under TLS",
    Encryption.NOT_SUPPORTED: "without TLS",
}
_AGAIN = 0.05  # seconds until a statement that goes on is cancelled again


@dataclass(frozen=True)
class Settings:
    """How an endpoint treats its connections.

    Parameters
    ----------
    logins : Logins
    encrypt : Encrypt
    tls : Tls or None
        None only where `encrypt` is NEVER.
    done_after_message : bool
        A DONE follows each message of a BACKUP or RESTORE that informs.
    login_timeout : float
        Seconds that the login may take, and any message from its first byte to its last between two reads.
    send_timeout : float
        Seconds that a client may take to accept a packet.
    largest_message : int
        Bytes of one request.
    """

    logins: Logins
    encrypt: Encrypt
    tls: Tls | None = field(repr=False)
    done_after_message: bool
    login_timeout: float
    send_timeout: float
    largest_message: int


class Connection:
    """Serves one client.

    Parameters
    ----------
    connection : socket
        Owned from here on.
    client : str
        Its address, for the log.
    engine : Engine
    settings : Settings
    """

    def __init__(self, connection: socket.socket, client: str, engine: Engine, settings: Settings) -> None:
        self._socket = connection
        self._client = client
        self._engine = engine
        self._settings = settings
        self._stream = Stream(connection, settings.send_timeout)
        self._change = threading.Condition()
        self._waiting: deque[Packet] = deque()  # at most one: the client awaits each answer
        self._request: Packet | None = None
        self._attention = False
        self._busy = False
        self._gone = False
        self._how = ""  # it is encrypted, for the log

    def run(self) -> None:
        """Serve until the client goes, or `close`."""
        try:
            asked = self._log_in()
            session = self._open(asked)
            if session is not None:
                with contextlib.closing(session):
                    self._serve(asked, session)
        except Exception as error:
            self._report(error)
        finally:
            self.close()
            self._socket.close()

    def close(self) -> None:
        """End it, with what it runs. Any thread."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _report(self, error: Exception) -> None:
        if isinstance(error, ProtocolError):
            log.warning("%s: closed: %s", self._client, error)
        elif isinstance(error, OSError):
            log.debug("%s: %s", self._client, error)
        else:
            log.error("%s: closed after an error of this program", self._client, exc_info=error)

    # ---- logging in

    def _log_in(self) -> Login:
        """Everything up to the login, which is not judged yet."""
        wanted, tls, patience = self._settings.encrypt, self._settings.tls, self._settings.login_timeout
        self._stream.deadline = time.monotonic() + patience
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        strict = self._stream.peek(patience) == _TLS_BYTE
        if strict:
            if tls is None:
                raise ProtocolError("TLS where none is offered")
            if self._stream.start_tls(tls.first, patience, in_packets=False).selected_alpn_protocol() != ALPN:
                raise ProtocolError(f"TLS without the protocol {ALPN}")
        elif wanted is Encrypt.STRICT:
            raise ProtocolError("a connection that does not begin with TLS")
        options = prelogin.parse(self._expect(PacketType.PRELOGIN))
        agreed = Encryption.NOT_SUPPORTED
        if not strict:
            agreed = prelogin.negotiate(wanted, prelogin.client_encryption(options))
        reply = Reply(self._stream, DEFAULT, 0)
        reply.write(prelogin.answer(VERSION[:3], agreed, options))
        reply.end()
        if agreed is not Encryption.NOT_SUPPORTED:
            assert tls is not None
            self._stream.start_tls(tls.within, patience, in_packets=True)
        asked = login.parse(self._expect(PacketType.LOGIN7))
        if agreed is Encryption.OFF:
            self._stream.stop_tls()
        self._stream.deadline = None
        self._how = _STRICT if strict else _HOW[agreed]
        return asked

    def _expect(self, kind: PacketType) -> bytes:
        patience = self._settings.login_timeout
        packet = receive(self._stream, patience, patience, login.LARGEST)
        if packet.type != kind:
            raise ProtocolError(f"a message of type {packet.type} where {kind.name} belongs")
        return packet.data

    def _open(self, asked: Login) -> Session | None:
        """A session for a login that may have one. Else the client is told only that it failed, the log why."""
        if asked.integrated:
            self._refuse(asked, "this is no domain", message(18452))
        elif asked.change_password:
            self._refuse(asked, "passwords cannot be changed here")
        elif not self._settings.logins.admit(asked.user, asked.password):
            self._refuse(asked, "no such login, or another password")
        else:
            try:
                home = self._engine.name_of(asked.database or "master")
                return Session(self._engine, login=asked.user, program=asked.program, host=asked.host, database=home)
            except DatabaseError:
                refused = message(18456, asked.user)
                self._refuse(asked, f"no database {asked.database!r}", message(4060, asked.database), refused)
        return None

    def _refuse(self, asked: Login, why: str, *said: Message) -> None:
        entry = message(18456, asked.user)
        text = f"{entry.text} Reason: {why}. [CLIENT: {self._client}]"
        self._engine.to_log(Message(entry.number, entry.severity, entry.state, text))
        reply = Reply(self._stream, DEFAULT, 0)
        for refusal in said or (entry,):
            reply.write(tokens.message(refusal, self._engine.server_name))
        reply.write(tokens.done(Done.STATEMENT, Status.ERROR))
        reply.end()

    def _welcome(self, asked: Login, session: Session, size: int) -> None:
        name = self._engine.server_name
        reply = Reply(self._stream, DEFAULT, session.spid)
        reply.write(tokens.change_text(Change.DATABASE, session.database, "master"))
        reply.write(tokens.message(message(5701, session.database, state=2), name))
        reply.write(tokens.change_collation())
        reply.write(tokens.change_text(Change.LANGUAGE, LANGUAGE, ""))
        reply.write(tokens.message(message(5703, LANGUAGE), name))
        reply.write(tokens.login_acknowledged(asked.version, VERSION[:3]))
        reply.write(tokens.change_text(Change.PACKET_SIZE, str(size), str(DEFAULT)))
        if asked.features is not None:
            reply.write(tokens.features_acknowledged())
        reply.write(tokens.done(Done.STATEMENT, Status.FINAL))
        reply.end()
        log.info("%s: session %d of %s with %s, %s", self._client, session.spid, asked.user, asked.program, self._how)

    # ---- serving

    def _serve(self, asked: Login, session: Session) -> None:
        size = min(max(asked.packet_size or DEFAULT, SMALLEST), LARGEST)
        self._welcome(asked, session, size)
        context = Context(session)
        dispatcher = Dispatcher(session, self._stopped)
        session.on_kill = self.close
        reader = threading.Thread(target=self._read, args=(session,), name=f"tds-read-{session.spid}")
        reader.start()
        try:
            while self._next():
                reply = Reply(self._stream, size, session.spid)
                answer = Answer(
                    reply, context, self._engine.server_name, self._settings.done_after_message, self._broken
                )
                try:
                    if self._request is not None:
                        dispatcher.handle(self._request, answer)
                except Exception as error:
                    self._report(error)
                    answer.message(message(4002 if isinstance(error, ProtocolError) else 596))
                    answer.end(attention=False)
                    break
                answer.end(attention=self._answered())
        finally:
            self.close()
            self._answered()
            reader.join()

    def _next(self) -> bool:
        """Wait for a request, or for an attention that wants its answer; False where the client has gone."""
        with self._change:
            self._change.wait_for(lambda: self._waiting or self._attention or self._gone)
            self._request = self._waiting.popleft() if self._waiting else None
            self._busy = self._request is not None
            return not self._gone

    def _stopped(self) -> bool:
        """Whether the client wants an end of what runs, or has gone."""
        return self._attention or self._gone

    def _answered(self) -> bool:
        """The request ends now; returns whether an attention came, which its last token answers."""
        with self._change:
            attention, self._attention, self._busy = self._attention, False, False
            self._change.notify_all()
            return attention

    def _broken(self, error: OSError) -> None:
        log.info("%s: %s", self._client, error)
        self.close()

    # ---- the reading thread

    def _read(self, session: Session) -> None:
        settings = self._settings
        try:
            while True:
                packet = receive(self._stream, None, settings.login_timeout, settings.largest_message)
                with self._change:
                    if packet.type == PacketType.ATTENTION:
                        self._attention = True
                    elif self._waiting:
                        raise ProtocolError("a request before the answer to the one before")
                    else:
                        self._waiting.append(packet)
                    self._change.notify_all()
                self._cancel(session, lambda: self._attention)
        except Exception as error:
            self._report(error)
        finally:
            with self._change:
                self._gone = True
                self._change.notify_all()
            self.close()
            self._cancel(session, lambda: self._gone)

    def _cancel(self, session: Session, wanted: Callable[[], bool]) -> None:
        """End what runs, until it has ended: a statement that had not quite begun does not see the first call."""
        while True:
            with self._change:
                if not self._busy or not wanted():
                    return
            session.cancel()
            with self._change:
                self._change.wait_for(lambda: not self._busy or not wanted(), _AGAIN)
