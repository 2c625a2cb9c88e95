"""PRELOGIN: what both sides say before the login, the encryption above all."""

from __future__ import annotations

import struct
from enum import IntEnum, StrEnum

from .wire import ProtocolError, Reader

_END = 0xFF
_MOST_OPTIONS = 32


class Option(IntEnum):
    VERSION = 0
    ENCRYPTION = 1
    INSTANCE = 2
    THREAD = 3
    MARS = 4
    TRACE = 5
    FEDERATED = 6
    NONCE = 7


class Encryption(IntEnum):
    """The byte on the wire."""

    OFF = 0  # the login only
    ON = 1
    NOT_SUPPORTED = 2
    REQUIRED = 3


class Encrypt(StrEnum):
    """What the endpoint wants.

    OPTIONAL: the login is encrypted, and everything where the client asks for it. REQUIRED: everything is. STRICT: TLS
    comes first, as TDS 8.0 has it, and no other connection is served. NEVER: nothing is, not even passwords.
    """

    OPTIONAL = "optional"
    REQUIRED = "required"
    STRICT = "strict"
    NEVER = "never"


def parse(data: bytes) -> dict[int, bytes]:
    """The options of a PRELOGIN message by their numbers. Raises `ProtocolError`."""
    options: dict[int, bytes] = {}
    place = 0
    while True:
        if place >= len(data):
            raise ProtocolError("PRELOGIN has no end")
        number = data[place]
        if number == _END:
            break
        if len(options) >= _MOST_OPTIONS or number in options or place + 5 > len(data):
            raise ProtocolError("PRELOGIN has options that are too many, twice there or cut off")
        offset, length = struct.unpack_from(">HH", data, place + 1)
        options[number] = Reader(data, min(offset, len(data))).take(length)
        place += 5
    if Option.VERSION not in options:
        raise ProtocolError("PRELOGIN names no version")
    return options


def client_encryption(options: dict[int, bytes]) -> Encryption:
    """What the client asks for; a client that says nothing has no TLS. Raises `ProtocolError`."""
    value = options.get(Option.ENCRYPTION, bytes([Encryption.NOT_SUPPORTED]))
    # Bit 7 speaks of a client's certificate, which nobody asks for here.
    if len(value) != 1 or value[0] & 0x7F not in list(Encryption):
        raise ProtocolError("PRELOGIN asks for an unknown encryption")
    return Encryption(value[0] & 0x7F)


def negotiate(wanted: Encrypt, client: Encryption) -> Encryption:
    """The answer to what the client asks for (MS-TDS 2.2.6.5).

    A client that cannot, where it must, gets REQUIRED and is closed afterwards.
    """
    if wanted is Encrypt.NEVER:
        return Encryption.NOT_SUPPORTED
    if wanted is Encrypt.REQUIRED:
        return Encryption.ON if client is Encryption.ON else Encryption.REQUIRED
    if client in (Encryption.ON, Encryption.REQUIRED):
        return Encryption.ON
    return client


def answer(version: tuple[int, int, int], encryption: Encryption, asked: dict[int, bytes]) -> bytes:
    """The server's PRELOGIN message.

    Parameters
    ----------
    version : tuple of int
        Major, minor and build number.
    encryption : Encryption
    asked : dict
        Options of the client; some are answered only where it has them.
    """
    options = {
        Option.VERSION: struct.pack(">BBHH", *version, 0),
        Option.ENCRYPTION: bytes([encryption]),
        Option.INSTANCE: b"\0",  # as named, or none was
        Option.THREAD: b"",
        Option.MARS: b"\0",  # one request at a time
    }
    if Option.FEDERATED in asked:
        options[Option.FEDERATED] = b"\0"
    place = 5 * len(options) + 1
    head = body = b""
    for number, value in options.items():
        head += struct.pack(">BHH", number, place + len(body), len(value))
        body += value
    return head + bytes([_END]) + body
