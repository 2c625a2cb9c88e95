"""Reading and writing the little-endian fields of TDS messages; every read is checked against the end of the data."""

from __future__ import annotations

import struct


class ProtocolError(Exception):
    """What the other side sent is not TDS, or beyond a limit. The connection is closed."""


class Reader:
    """Reads fields from the bytes of one message, in order.

    Parameters
    ----------
    data : bytes
    start : int
        Offset of the first field.
    """

    def __init__(self, data: bytes, start: int = 0) -> None:
        self._data = data
        self._place = start

    @property
    def left(self) -> int:
        """Bytes that were not read yet."""
        return len(self._data) - self._place

    def take(self, count: int) -> bytes:
        """The next bytes. Raises `ProtocolError` where they are not there."""
        if not 0 <= count <= self.left:
            raise ProtocolError(f"a field of {count} bytes where {self.left} are left")
        start = self._place
        self._place += count
        return self._data[start : self._place]

    def uint8(self) -> int:
        return self.take(1)[0]

    def uint16(self) -> int:
        return int.from_bytes(self.take(2), "little")

    def uint32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def int32(self) -> int:
        return int.from_bytes(self.take(4), "little", signed=True)

    def uint64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def text(self, characters: int) -> str:
        """UTF-16 of so many code units."""
        return decode_text(self.take(2 * characters))

    def short_text(self) -> str:
        """A text behind its length in one byte (B_VARCHAR)."""
        return self.text(self.uint8())

    def rest(self) -> bytes:
        return self.take(self.left)


def decode_text(data: bytes) -> str:
    """UTF-16LE. Raises `ProtocolError` where it is none; lone surrogates are none."""
    try:
        return data.decode("utf-16-le")
    except UnicodeDecodeError as error:
        raise ProtocolError(f"a text that is not UTF-16: {error.reason}") from None


def encode_text(text: str) -> bytes:
    return text.encode("utf-16-le", "replace")


def short_text(text: str) -> bytes:
    """Behind its length in one byte; cut where it is longer."""
    data = encode_text(text)[: 2 * 255]
    return bytes([len(data) // 2]) + data


def long_text(text: str) -> bytes:
    """Behind its length in two bytes; cut where it is longer."""
    data = encode_text(text)[: 2 * 0x7000]
    return struct.pack("<H", len(data) // 2) + data
