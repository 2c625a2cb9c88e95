"""The backup stream: tape-format blocks and streams, 8 KB pages, and the checksums over them.

A stream of one device is one media family: descriptor blocks (DBLK), each followed by its streams. `FamilyWriter` makes
one, `FamilyReader` takes one apart again while its bytes arrive in pieces of any size.
"""

from __future__ import annotations

from ._kernels import combine, fold, page_checksums, record_checksum, sector_xors, stream_checksum
from ._xpress import CompressionError, decompress, decompress_into
from .blocks import BackupSet, DatabaseFile, LogPart, Lsn, MediaSet
from .configuration import Configuration, FileHeader
from .findings import (
    BlockSizeError,
    ContinuationError,
    FamilyInfo,
    Label,
    MtfError,
    NoSetError,
    NotMtfError,
    TruncatedError,
)
from .pages import EXTENT_PAGES, EXTENT_SIZE, PAGE_SIZE, fill_pages, seal_pages, unused_pages
from .reader import FamilyReader
from .writer import FamilyWriter

__all__ = [
    "BackupSet",
    "BlockSizeError",
    "CompressionError",
    "Configuration",
    "ContinuationError",
    "DatabaseFile",
    "EXTENT_PAGES",
    "EXTENT_SIZE",
    "FamilyInfo",
    "FamilyReader",
    "FamilyWriter",
    "FileHeader",
    "Label",
    "LogPart",
    "Lsn",
    "MediaSet",
    "MtfError",
    "NoSetError",
    "NotMtfError",
    "PAGE_SIZE",
    "TruncatedError",
    "combine",
    "decompress",
    "decompress_into",
    "fill_pages",
    "fold",
    "page_checksums",
    "record_checksum",
    "seal_pages",
    "sector_xors",
    "stream_checksum",
    "unused_pages",
]
