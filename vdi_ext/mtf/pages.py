"""8 KB pages: header fields, fill pages, and what makes a page ready for the stream.

Pages travel as arrays of shape ``(n, 8192)``, dtype uint8, usually views of a shared buffer.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .checksums import page_checksums

PAGE_SIZE = 8192
HEADER_SIZE = 96
EXTENT_PAGES = 8
EXTENT_SIZE = EXTENT_PAGES * PAGE_SIZE

CHECKSUM_FLAG = 0x200  # in flag_bits: the page carries a checksum at byte 60
TYPE_DATA, TYPE_TEXT, TYPE_FILE_HEADER, TYPE_FILL = 1, 3, 15, 101

Pages = npt.NDArray[np.uint8]

# The page header; the bytes in between and behind stay zero.
HEADER = np.dtype(
    {
        "names": [
            "version", "type", "flag_bits", "index_id", "row_length", "slots", "object_id", "free_bytes",
            "free_offset", "page_id", "file_id", "lsn_file", "lsn_block", "lsn_slot", "checksum",
        ],
        "formats": [
            "u1", "u1", "<u2", "<u2", "<u2", "<u2", "<u4", "<u2", "<u2", "<u4", "<u2", "<u4", "<u4", "<u2", "<u4",
        ],
        "offsets": [0, 1, 4, 6, 14, 22, 24, 28, 30, 32, 36, 40, 44, 48, 60],
        "itemsize": PAGE_SIZE,
    }
)  # fmt: skip


def headers(pages: Pages) -> npt.NDArray[np.void]:
    """The pages' headers as a structured array on the same memory."""
    return pages.reshape(-1).view(HEADER)


def seal_pages(pages: Pages) -> None:
    """Write each page's checksum into it; the header says already that there is one."""
    headers(pages)["checksum"] = page_checksums(pages)


def fill_pages(pages: Pages) -> None:
    """Make pages that stand for nothing: SQL Server evens out the lengths of stripes with them."""
    pages[:] = 0
    header = headers(pages)
    header["version"] = 1
    header["type"] = TYPE_FILL
    header["free_bytes"] = PAGE_SIZE - HEADER_SIZE
    header["free_offset"] = HEADER_SIZE


def is_fill(pages: Pages) -> npt.NDArray[np.bool_]:
    """Which pages are fill pages."""
    return (pages[:, 0] == 1) & (pages[:, 1] == TYPE_FILL)


def unused_pages(pages: Pages) -> npt.NDArray[np.bool_]:
    """Which pages are zero throughout: the unallocated rest of an extent."""
    return np.logical_not(pages.view(np.uint64).any(axis=1))
