"""Packets: the frames that TDS messages travel in, and the byte stream below them, plain or under TLS.

A message is one packet or several of the same type; the last one has the bit END in its status.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import threading
import time
from enum import IntEnum
from typing import NamedTuple

from .wire import ProtocolError

HEADER = struct.Struct(">BBHHBB")  # type, status, length with header, SPID, number, window
END = 0x01
IGNORE = 0x02  # of the last packet: what it ends is void
RESET, RESET_KEEPING_TRANSACTION = 0x08, 0x10  # before this request, reset the session
SMALLEST, LARGEST, DEFAULT = 512, 32767, 4096  # bytes of a packet
_PIECE = 65536


class PacketType(IntEnum):
    BATCH = 1
    RPC = 3
    RESULT = 4
    ATTENTION = 6
    BULK = 7
    TRANSACTION = 14
    LOGIN7 = 16
    SSPI = 17
    PRELOGIN = 18


class Packet(NamedTuple):
    """One message of a client.

    Parameters
    ----------
    type : int
    status : int
        Of the first packet, which says whether to reset the session, and of the last, which says whether it counts.
    data : bytes
    """

    type: int
    status: int
    data: bytes


class ClosedError(ConnectionError):
    """The other side has gone, or does not read any more."""


class Stream:
    """The bytes of a connection. One thread reads; several may write, one at a time.

    Parameters
    ----------
    connection : socket
        Owned by whoever made it.
    send_timeout : float
        Seconds that the other side may take to accept what one call writes.

    Attributes
    ----------
    deadline : float or None
        By `time.monotonic`: until then everything has to come, however long each wait may be.
    """

    def __init__(self, connection: socket.socket, send_timeout: float) -> None:
        self.deadline: float | None = None
        self._socket = connection
        self._send_timeout = send_timeout
        self._sending = threading.Lock()
        self._tls: ssl.SSLObject | None = None
        self._using_tls = threading.Lock()  # an SSLObject is for one thread at a time
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()

    # ---- reading

    def peek(self, timeout: float) -> int:
        """The first byte, which stays there. Raises `ClosedError`."""
        self._await(select.POLLIN, time.monotonic() + timeout)
        first = self._socket.recv(1, socket.MSG_PEEK)
        if not first:
            raise ClosedError("closed by the client")
        return first[0]

    def read(self, count: int, timeout: float | None) -> bytes:
        """Exactly so many bytes. Raises `ClosedError` where they do not come, in time or at all."""
        deadline = None if timeout is None else time.monotonic() + timeout
        data = bytearray()
        while len(data) < count:
            data += self._some(count - len(data), deadline)
        return bytes(data)

    def _some(self, most: int, deadline: float | None) -> bytes:
        if self._tls is None:
            return self._receive(most, deadline)
        while True:
            try:
                with self._using_tls:
                    data = self._tls.read(most)
            except ssl.SSLWantReadError:
                self._incoming.write(self._receive(_PIECE, deadline))
            except ssl.SSLError as error:
                raise ClosedError(f"TLS ended: {error.reason}") from None
            else:
                if not data:
                    raise ClosedError("closed by the client")
                return data

    def _receive(self, most: int, deadline: float | None) -> bytes:
        deadlines = [moment for moment in (deadline, self.deadline) if moment is not None]
        if deadlines:
            self._await(select.POLLIN, min(deadlines))
        data = self._socket.recv(min(most, _PIECE))
        if not data:
            raise ClosedError("closed by the client")
        return data

    # ---- writing

    def write(self, data: bytes) -> None:
        """All of it. Raises `ClosedError` where the client is gone, or does not take it within the bound."""
        with self._sending:
            if self._tls is not None:
                with self._using_tls:
                    self._tls.write(data)
                    data = self._outgoing.read()
            view, deadline = memoryview(data), time.monotonic() + self._send_timeout
            while view:
                try:
                    view = view[self._socket.send(view, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]
                except BlockingIOError:
                    self._await(select.POLLOUT, deadline)

    def _await(self, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(self._socket, event)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise ClosedError("the client does not read" if event == select.POLLOUT else "the client sends nothing")

    # ---- TLS

    def start_tls(self, context: ssl.SSLContext, timeout: float, *, in_packets: bool) -> ssl.SSLObject:
        """The handshake; whatever comes after it is under TLS.

        Parameters
        ----------
        context : SSLContext
        timeout : float
            Seconds for all of it.
        in_packets : bool
            Its messages travel in PRELOGIN packets, as in TDS 7; else bare, as in TDS 8.

        Raises
        ------
        ClosedError
            It failed.
        """
        deadline = time.monotonic() + timeout
        tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        while True:
            try:
                tls.do_handshake()
                more = False
            except ssl.SSLWantReadError:
                more = True
            except ssl.SSLError as error:
                raise ClosedError(f"TLS handshake failed: {error.reason}") from None
            if answer := self._outgoing.read():
                self.write(HEADER.pack(PacketType.PRELOGIN, END, len(answer) + 8, 0, 0, 0) + answer
                           if in_packets else answer)  # fmt: skip
            if not more:
                break
            left = deadline - time.monotonic()
            if in_packets:
                packet = receive(self, left, left, _PIECE)
                if packet.type != PacketType.PRELOGIN:
                    raise ProtocolError(f"a packet of type {packet.type} within the TLS handshake")
                self._incoming.write(packet.data)
            else:
                self._incoming.write(self._receive(_PIECE, deadline))
        self._tls = tls
        return tls

    def stop_tls(self) -> None:
        """From here on plainly: only the login was encrypted."""
        if self._incoming.pending or (self._tls is not None and self._tls.pending()):
            raise ProtocolError("something follows the login before its answer")
        self._tls = None


def receive(stream: Stream, first: float | None, rest: float, limit: int) -> Packet:
    """One message.

    Parameters
    ----------
    stream : Stream
    first, rest : float
        Seconds to wait for its begin, None without limit, and for each part of it from then on.
    limit : int
        Bytes that it may have.

    Raises
    ------
    ProtocolError, ClosedError
    """
    data = bytearray()
    kind = state = 0
    while True:
        type_, status, length, _, _, _ = HEADER.unpack(stream.read(HEADER.size, rest if data else first))
        if not data:
            kind = type_
        if not data or status & END:
            state |= status
        if type_ != kind:
            raise ProtocolError(f"a packet of type {type_} within a message of type {kind}")
        if length < HEADER.size or (length == HEADER.size and not status & END):
            raise ProtocolError(f"a packet of {length} bytes")
        if len(data) + length - HEADER.size > limit:
            raise ProtocolError(f"a message of more than {limit} bytes")
        data += stream.read(length - HEADER.size, rest)
        if status & END:
            return Packet(kind, state, bytes(data))


class Reply:
    """One message to the client, sent in packets as it grows.

    Parameters
    ----------
    stream : Stream
    packet_size : int
        Bytes, with the header.
    spid : int
    """

    def __init__(self, stream: Stream, packet_size: int, spid: int, kind: PacketType = PacketType.RESULT) -> None:
        self._stream = stream
        self._room = packet_size - HEADER.size
        self._spid = spid & 0xFFFF
        self._kind = kind
        self._data = bytearray()
        self._number = 0

    def write(self, data: bytes) -> None:
        """Add to it; what fills a packet is sent."""
        self._data += data
        while len(self._data) > self._room:
            self._send(self._room, 0)

    def flush(self) -> None:
        """Send what there is."""
        if self._data:
            self._send(len(self._data), 0)

    def end(self) -> None:
        self._send(len(self._data), END)

    def _send(self, size: int, status: int) -> None:
        self._number += 1
        header = HEADER.pack(self._kind, status, size + HEADER.size, self._spid, self._number & 0xFF, 0)
        packet = header + bytes(self._data[:size])
        del self._data[:size]
        self._stream.write(packet)
