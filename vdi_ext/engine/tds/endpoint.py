"""The endpoint: listens, and gives each client a connection."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Mapping

from ..server import Engine
from . import tls
from .connection import Connection, Settings
from .login import Logins
from .prelogin import Encrypt

log = logging.getLogger("vdi_ext.engine.tds")

DONE_AFTER_MESSAGE = True  # what drivers of ODBC can step through, and others do not mind
_PAUSE = 0.1  # seconds after a failure to accept, as where descriptors have run out


class Endpoint:
    """Answers TDS for an engine, from its making until `close`; a context manager.

    Parameters
    ----------
    engine : Engine
        Whose statements are executed.
    logins : mapping of str to str
        Passwords by the names of those who may log in.
    host, port : str, int
        Where to listen; port 0 takes a free one.
    encrypt : Encrypt or str
        ``"optional"``, ``"required"``, ``"strict"`` or ``"never"``.
    certificate, key : path, optional
        In PEM; a certificate is made on the spot where none is given.
    done_after_message : bool
        A DONE follows each message of a BACKUP or RESTORE that informs.
    login_timeout, send_timeout : float
        Seconds until a client is given up that does not log in, or does not read.
    most_connections : int
        At once; more are closed unheard.
    largest_message : int
        Bytes of one request.

    Attributes
    ----------
    host, port
        Where it listens.
    certificate : bytes
        In PEM; empty where there is no TLS.

    Raises
    ------
    OSError
        It cannot listen there.
    CertificateError
        The certificate cannot be used, or none can be made.
    ValueError
        A password is empty.
    """

    def __init__(
        self,
        engine: Engine,
        logins: Mapping[str, str],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        encrypt: Encrypt | str = Encrypt.OPTIONAL,
        certificate: str | os.PathLike[str] | None = None,
        key: str | os.PathLike[str] | None = None,
        done_after_message: bool = DONE_AFTER_MESSAGE,
        login_timeout: float = 15.0,
        send_timeout: float = 30.0,
        most_connections: int = 1000,
        largest_message: int = 8 << 20,
    ) -> None:
        wanted = Encrypt(encrypt)
        context = None
        if wanted is not Encrypt.NEVER:
            context = tls.load(certificate, key) if certificate is not None else tls.make(host)
        self._engine = engine
        self._settings = Settings(
            Logins(logins), wanted, context, done_after_message, login_timeout, send_timeout, largest_message
        )
        self._most = most_connections
        self._lock = threading.Lock()
        self._connections: dict[Connection, threading.Thread] = {}
        self._closing = threading.Event()
        self.certificate = context.certificate if context is not None else b""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=256)
        self.host, self.port = self._listener.getsockname()[:2]
        self._thread = threading.Thread(target=self._accept, name="tds-listen")
        self._thread.start()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        with self._lock:
            return len(self._connections)

    def close(self) -> None:
        """End all connections, with what they run, and wait until they have ended."""
        with self._lock:
            if self._closing.is_set():
                return
            self._closing.set()
            connections = list(self._connections.items())
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes who accepts
        self._thread.join()
        self._listener.close()
        for connection, _ in connections:
            connection.close()
        for _, thread in connections:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                accepted, (host, port, *_) = self._listener.accept()
            except OSError as error:
                if self._closing.is_set():
                    return
                log.error("a connection could not be accepted: %s", error)
                self._closing.wait(_PAUSE)
                continue
            client = f"{host}:{port}"
            with self._lock:
                if self._closing.is_set() or len(self._connections) >= self._most:
                    log.warning("%s: closed: there are %d connections already", client, len(self._connections))
                    accepted.close()
                    continue
                connection = Connection(accepted, client, self._engine, self._settings)
                thread = threading.Thread(target=self._run, args=(connection,), name=f"tds-{client}")
                self._connections[connection] = thread
                try:
                    thread.start()
                except RuntimeError as error:  # no more threads
                    log.error("%s: closed: %s", client, error)
                    del self._connections[connection]
                    accepted.close()

    def _run(self, connection: Connection) -> None:
        try:
            connection.run()
        finally:
            with self._lock:
                del self._connections[connection]
