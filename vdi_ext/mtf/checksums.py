"""The 32-bit checksums of pages and backup streams, and the 16-bit ones of tape-format headers.

One function makes both 32-bit ones: ``c = 0; for x in words: c = rol32(c, 1) ^ x``, over the XORs of 512-byte sectors,
of one page for the page checksum and of the whole stream for the backup checksum. A rotation has period 32, so the sum
is 32 XOR columns, and the sums of two parts combine with one rotation.

Every function takes any object with the buffer protocol, copies none of it, and releases the GIL over the data.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

SECTOR_SIZE = 512
_SECTORS = 16  # of a page
_WORD = np.dtype("<u4")
_FIELD = 15  # the page checksum is the page's u32 number 15, at byte 60

_PAGE_TURNS = np.arange(15, -1, -1, dtype=np.uint32)  # sector i of a page is rotated left by 15 - i
_FOLD_TURNS = np.arange(31, -1, -1, dtype=np.uint32)

Words = npt.NDArray[np.uint32]


def rotate(words: Words, turns: Words) -> Words:
    """Rotate each word left by the matching number of bits, 0 to 31."""
    return (words << turns) | (words >> ((np.uint32(32) - turns) & np.uint32(31)))


def sector_xors(buffer: object) -> Words:
    """XOR of the 128 words of each 512-byte sector.

    Parameters
    ----------
    buffer : buffer
        Contiguous; a whole number of sectors, else `ValueError`.

    Returns
    -------
    numpy.ndarray of uint32, one per sector
        Owned by the caller.
    """
    data = np.frombuffer(buffer, _WORD)  # type: ignore[call-overload]
    return np.bitwise_xor.reduce(data.reshape(-1, SECTOR_SIZE // 4), axis=1)


def fold(words: Words) -> int:
    """``c = 0; for x in words: c = rol32(c, 1) ^ x``."""
    short = -len(words) % 32
    if short:
        words = np.concatenate([np.zeros(short, np.uint32), words])
    columns = np.bitwise_xor.reduce(words.reshape(-1, 32), axis=0)
    return int(np.bitwise_xor.reduce(rotate(columns, _FOLD_TURNS)))


def combine(first: int, second: int, count: int) -> int:
    """Checksum of two parts in sequence.

    Parameters
    ----------
    first, second : int
        `fold` of each part.
    count : int
        Number of words (sectors) of the second part.
    """
    turns = count % 32
    return (((first << turns) | (first >> (32 - turns))) & 0xFFFFFFFF) ^ second


def stream_checksum(buffer: object) -> int:
    """Backup checksum (the content of a CSUM stream) of data that is a whole number of sectors."""
    return fold(sector_xors(buffer))


def page_checksums(buffer: object, sectors: Words | None = None) -> Words:
    """Checksum that each 8 KB page ought to carry at byte 60; what it carries there is left out.

    Parameters
    ----------
    buffer : buffer
        Contiguous; a whole number of pages, else `ValueError`.
    sectors : numpy.ndarray of uint32, optional
        `sector_xors` of the same buffer where the caller has it; not changed.

    Returns
    -------
    numpy.ndarray of uint32, one per page
    """
    words = np.frombuffer(buffer, _WORD).reshape(-1, 2048)  # type: ignore[call-overload]
    own = sector_xors(buffer) if sectors is None else sectors
    turned = rotate(own.reshape(-1, _SECTORS), _PAGE_TURNS)
    field = words[:, _FIELD]
    return np.bitwise_xor.reduce(turned, axis=1) ^ rotate(field, _PAGE_TURNS[:1])


def header_checksum(header: bytes | bytearray | memoryview) -> int:
    """XOR of the 16-bit words: of the first 50 bytes of a descriptor block, the first 20 of a stream header."""
    total = 0
    for word in struct.unpack(f"<{len(header) // 2}H", header):
        total ^= word
    return total
