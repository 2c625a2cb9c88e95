"""What is found around the backup sets of a volume: where its blocks end, its filemarks, the last set's end."""

from __future__ import annotations

import struct
from typing import NamedTuple

from .blocks import CONTINUATION, HEADER_SIZE, LONGEST_FILEMARK, STREAM_HEADER_SIZE, padding
from .checksums import header_checksum
from .findings import MtfError

_ABORTED = 1 << 18  # attribute of ESET


class Block(NamedTuple):
    """A descriptor block.

    Parameters
    ----------
    kind : bytes
        Four letters.
    attributes : int
    size : int
        Bytes with all its streams, up to the next block.
    """

    kind: bytes
    attributes: int
    size: int

    @property
    def is_continuation(self) -> bool:
        return bool(self.attributes & CONTINUATION)


def block_at(data: bytes, place: int = 0) -> Block | None:
    """The descriptor block at a place.

    Returns
    -------
    Block or None
        None: it goes on behind the data.

    Raises
    ------
    MtfError
        There is none, or it is damaged.
    """
    if len(data) - place < HEADER_SIZE:
        return None
    header = data[place : place + HEADER_SIZE]
    kind, attributes, first = struct.unpack_from("<4sIH", header)
    if header_checksum(header[:50]) != struct.unpack_from("<H", header, 50)[0] or first < HEADER_SIZE:
        raise MtfError(f"no descriptor block at {place:#x}")
    if kind == b"SFMB":
        return Block(kind, attributes, first)
    at = place + first
    while len(data) - at >= STREAM_HEADER_SIZE:
        stream = data[at : at + STREAM_HEADER_SIZE]
        name, length = struct.unpack_from("<4s4xQ", stream)
        if header_checksum(stream[:20]) != struct.unpack_from("<H", stream, 20)[0]:
            raise MtfError(f"the stream header at {at:#x} is damaged")
        at += STREAM_HEADER_SIZE + length
        if name == b"SPAD":
            return Block(kind, attributes, at - place) if at <= len(data) else None
        at += padding(at)
    return None


def filemarks_before(data: bytes) -> list[int]:
    """The places that a soft filemark names, newest first. Raises `MtfError`."""
    block = block_at(data)
    if block is None or block.kind != b"SFMB" or len(data) < min(block.size, LONGEST_FILEMARK):
        raise MtfError("no filemark at the end of the medium")
    used, = struct.unpack_from("<I", data, 56)
    if used > (block.size - 72) // 8:
        raise MtfError("a filemark lists more than it has room for")
    return list(struct.unpack_from(f"<{used}Q", data, 72))


def number_of_last_set(data: bytes) -> int:
    """Number of the set whose ESET this is. Raises `MtfError` where it is none, or that of an aborted set."""
    block = block_at(data)
    if data[:4] != b"ESET" or len(data) < 85 or (block is not None and block.size < 85):
        raise MtfError("ESET is missing")
    attributes, = struct.unpack_from("<I", data, HEADER_SIZE)
    if attributes & _ABORTED:
        raise MtfError("the last set was aborted")
    number, = struct.unpack_from("<H", data, 78)
    return int(number)
