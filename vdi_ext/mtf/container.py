"""The container of compressed backups (MSSQLBAK): its records, and the stream that they hold.

Behind 480 bytes that begin with the magic number come records back to back: data, compressed with LZ77 and Huffman
codes as [MS-XCA] describes, one block each; padding; an index. Filemarks stay as they are, on physical blocks, and name
one another by their places in the container. The outputs and the filemarks, one behind the other, are the tape format
that an uncompressed backup would be.

Decompression is plain Python, about a megabyte a second: enough to look at headers and to verify what is not large.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from .checksums import fold

MAGIC = b"MSSQLBAK"
_START = 480
_DATA, _PAD, _INDEX = 0x21, 0x24, 0x2C
_DATA_HEADER, _OTHER_HEADER = 28, 24
_UNIT = 512
_LONGEST_INDEX = 16 << 20
_TABLE = 256  # bytes of code lengths before the compressed data
_SYMBOLS = 512
_LONGEST_CODE = 15


class ContainerError(Exception):  # turned into MtfError by the reader
    """The container is damaged, or of a version that is not known."""


class Unpacker:
    """Takes a container apart while its bytes arrive in pieces of any size.

    Attributes
    ----------
    place : int
        In the container, of the record whose content was yielded last.
    """

    def __init__(self) -> None:
        self.place = 0
        self._next = 0  # place of the record in the buffer
        self._buffer = bytearray()
        self._begun = False

    @property
    def wanted(self) -> int:
        """Bytes that are certain to follow, if anything does."""
        return max(1, self._length() - len(self._buffer))

    @property
    def empty(self) -> bool:
        """Whether everything that came has been handed on."""
        return not self._buffer

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        """Take the next bytes; yields pieces of the stream in them. Raises `ContainerError`."""
        self._buffer += data
        while len(self._buffer) >= (length := self._length()):
            record = bytes(self._buffer[:length])
            del self._buffer[:length]
            self.place, self._next = self._next, self._next + length
            if not self._begun:
                self._check_start(record)
            elif record[:4] == b"SFMB":
                yield record
            elif record[0] == _DATA:
                yield self._unpacked(record)

    def _length(self) -> int:
        """Bytes of the record here, as far as they can be known."""
        buffer = self._buffer
        if not self._begun:
            return _START
        if len(buffer) < 4:
            return 4
        if buffer[:4] == b"SFMB":
            return max(10, struct.unpack_from("<H", buffer, 8)[0]) if len(buffer) >= 10 else 10
        kind, _, size = struct.unpack_from("<BBH", buffer)
        if kind == _DATA:
            return _DATA_HEADER + size
        if kind == _PAD:
            return _OTHER_HEADER + size
        if kind == _INDEX:
            if len(buffer) < 36:
                return 36
            length, = struct.unpack_from("<I", buffer, 32)
            if not 12 <= length <= _LONGEST_INDEX:
                raise ContainerError(f"an index of {length} bytes")
            return _OTHER_HEADER + int(length)
        raise ContainerError(f"a record of the unknown kind {kind:#x}")

    def _check_start(self, start: bytes) -> None:
        self._begun = True
        version, = struct.unpack_from("<I", start, 8)
        if not start.startswith(MAGIC) or version != 2:
            raise ContainerError(f"a container of version {version}")

    @staticmethod
    def _unpacked(record: bytes) -> bytes:
        stored, = struct.unpack_from("<I", record, 24)
        packed = record[_DATA_HEADER:]
        if fold(np.frombuffer(packed + bytes(-len(packed) % 4), "<u4")) != stored:
            raise ContainerError("the checksum of a compressed record does not match")
        return decompress(packed, record[1] * _UNIT)


def decompress(packed: bytes, size: int) -> bytes:
    """Decompress one block.

    Parameters
    ----------
    packed : bytes
        Code lengths, then the bits.
    size : int
        Bytes that come out.

    Raises
    ------
    ContainerError
        It is no such block.
    """
    if len(packed) < _TABLE + 4:
        raise ContainerError("a compressed block is too short")
    table = _decoding_table(packed[:_TABLE])
    words = packed + bytes(8)  # the last refills may look behind the end
    first, second = struct.unpack_from("<HH", words, _TABLE)
    bits, held, place = first << 16 | second, 16, _TABLE + 4
    out = bytearray()
    try:
        while len(out) < size:
            symbol, length = table[bits >> 17]
            bits, held = bits << length & 0xFFFFFFFF, held - length
            if held < 0:
                bits |= (words[place] | words[place + 1] << 8) << -held
                held, place = held + 16, place + 2
            if symbol < 256:
                out.append(symbol)
                continue
            count, shift = symbol & 15, symbol >> 4 & 15
            if count == 15:
                count, place = words[place], place + 1
                if count == 255:
                    count, place = words[place] | words[place + 1] << 8, place + 2
                    if count == 0:
                        count, place = struct.unpack_from("<I", words, place)[0], place + 4
                    if count < 15:
                        raise ContainerError("a match is shorter than it can be")
                else:
                    count += 15
            count += 3
            distance = (1 << shift) + (bits >> 32 - shift if shift else 0)
            bits, held = bits << shift & 0xFFFFFFFF, held - shift
            if held < 0:
                bits |= (words[place] | words[place + 1] << 8) << -held
                held, place = held + 16, place + 2
            start = len(out) - distance
            if start < 0 or count > size - len(out):
                raise ContainerError("a match points out of its block")
            while count:  # a match may overlap what it makes
                part = out[start : start + count]
                out += part
                start, count = start + len(part), count - len(part)
    except (IndexError, struct.error):
        raise ContainerError("a compressed block ends too early") from None
    return bytes(out)


def _decoding_table(lengths: bytes) -> list[tuple[int, int]]:
    """Symbol and code length for every 15 bits: canonical codes, by length and then by symbol."""
    by_length: list[list[int]] = [[] for _ in range(_LONGEST_CODE + 1)]
    for symbol in range(_SYMBOLS):
        length = lengths[symbol >> 1] >> 4 * (symbol & 1) & 15
        if length:
            by_length[length].append(symbol)
    table: list[tuple[int, int]] = []
    for length, symbols in enumerate(by_length):
        for symbol in symbols:
            table += [(symbol, length)] * (1 << _LONGEST_CODE - length)
    if len(table) != 1 << _LONGEST_CODE:
        raise ContainerError("the code lengths of a compressed block are no code")
    return table
