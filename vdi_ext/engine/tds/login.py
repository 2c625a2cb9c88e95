"""LOGIN7: who logs in, with what, and whether they may."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from .wire import ProtocolError, Reader, decode_text

LARGEST = 128 * 1024 - 1  # bytes of a LOGIN7 message
_TDS_7_3 = 0x730A0003  # without the NBCROW of SQL Server 2008 R2
_TDS_7_4 = 0x74000004
_TDS_8 = 0x08000000  # stands apart: its number is smaller
_FIXED = 94  # bytes before the variable part
_CHANGE_PASSWORD, _EXTENSION = 0x01, 0x10  # in the third byte of flags
_INTEGRATED = 0x80  # in the second
_MOST_NAME = 128


@dataclass(frozen=True)
class Login:
    """What a client says of itself.

    Parameters
    ----------
    version : int
        Of TDS, to be spoken from here on: the client's, at most 7.4 where it is not 8.0.
    packet_size : int
        Bytes, as wanted; 0 leaves it to the server.
    user, host, program, library, database : str
    password : str
        Never shown.
    integrated : bool
        It wants to be known by its ticket of Windows, not by a password.
    change_password : bool
    features : frozenset of int or None
        Numbers of the extensions that it knows; None where it knows of no extensions.
    """

    version: int
    packet_size: int
    user: str
    password: str = field(repr=False)
    host: str
    program: str
    library: str
    database: str
    integrated: bool = False
    change_password: bool = False
    features: frozenset[int] | None = None


def parse(data: bytes) -> Login:
    """Read a LOGIN7 message. Raises `ProtocolError`."""
    fixed = Reader(data)
    if fixed.uint32() != len(data) or len(data) < _FIXED:
        raise ProtocolError("LOGIN7 has another length than it says")
    version, packet_size = _agreed(fixed.uint32()), fixed.uint32()
    fixed.take(12)  # the program's version and process, the connection
    _, second, _, third = fixed.take(4)
    fixed.take(8)  # time zone and language

    def piece(unit: int) -> bytes:
        offset, length = fixed.uint16(), fixed.uint16()
        if length and offset < _FIXED:
            raise ProtocolError("LOGIN7 has a field that is none")
        return Reader(data, min(offset, len(data))).take(length * unit)

    host, user, secret, program, _ = (piece(2) for _ in range(5))
    extension = piece(1)
    library, _, database = (piece(2) for _ in range(3))
    texts = [decode_text(value) for value in (user, host, program, library, database)]
    if any(len(text) > _MOST_NAME for text in texts):
        raise ProtocolError("LOGIN7 has a name that is too long")
    user_name, host_name, program_name, library_name, database_name = texts
    return Login(
        version=version,
        packet_size=packet_size,
        user=user_name,
        password=decode_text(_clear(secret)),
        host=host_name,
        program=program_name,
        library=library_name,
        database=database_name,
        integrated=bool(second & _INTEGRATED),
        change_password=bool(third & _CHANGE_PASSWORD),
        features=_features(data, extension) if third & _EXTENSION else None,
    )


def _agreed(version: int) -> int:
    if version & 0xFF000000 == _TDS_8:
        return _TDS_8
    if version < _TDS_7_3:
        raise ProtocolError(f"TDS version {version:08x} is too old: 7.3, 7.4 and 8.0 are spoken here")
    return min(version, _TDS_7_4)


def _clear(secret: bytes) -> bytes:
    """Undo what hides a password from a casual look: halves of each byte swapped, then XOR."""
    return bytes((byte ^ 0xA5) >> 4 | ((byte ^ 0xA5) & 0x0F) << 4 for byte in secret)


def _features(data: bytes, extension: bytes) -> frozenset[int]:
    start = Reader(extension).uint32()
    reader = Reader(data, min(start, len(data)))
    found: set[int] = set()
    while (number := reader.uint8()) != 0xFF:
        found.add(number)
        reader.take(reader.uint32())
    return frozenset(found)


class Logins:
    """Who may log in. The passwords themselves are not kept.

    Parameters
    ----------
    passwords : mapping of str to str
        By name of the login; names are compared without case.

    Raises
    ------
    ValueError
        A password is empty.
    """

    def __init__(self, passwords: Mapping[str, str]) -> None:
        if not all(passwords.values()):
            raise ValueError("a login has an empty password")
        self._salt = os.urandom(16)
        self._digests = {name.casefold(): self._digest(password) for name, password in passwords.items()}
        self._nobody = os.urandom(32)  # what an unknown name is compared with

    def admit(self, name: str, password: str) -> bool:
        """Whether this is the password of that login; takes as long for one that there is not."""
        known = self._digests.get(name.casefold(), self._nobody)
        return hmac.compare_digest(known, self._digest(password))

    def _digest(self, password: str) -> bytes:
        return hmac.digest(self._salt, password.encode("utf-16-le", "surrogatepass"), hashlib.sha256)
