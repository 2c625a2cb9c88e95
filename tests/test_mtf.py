"""Tape format: checksums against their definition and real files, families against an independent program."""

from __future__ import annotations

import contextlib
import json
import random
import struct
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdi_ext.engine.database import PageDamage
from vdi_ext.engine.stripes import BackupStripes, Metadata
from vdi_ext.engine.synthetic import Synthetic
from vdi_ext.mtf import (
    EXTENT_SIZE,
    PAGE_SIZE,
    BackupSet,
    BlockSizeError,
    FamilyInfo,
    FamilyReader,
    FamilyWriter,
    LogPart,
    MediaSet,
    MtfError,
    NotMtfError,
    TruncatedError,
    combine,
    fold,
    page_checksums,
    sector_xors,
    stream_checksum,
)
from vdi_ext.mtf.blocks import encode_date
from vdi_ext.mtf.checksums import header_checksum
from vdi_ext.mtf.container import ContainerError, decompress

NOW = datetime(2024, 2, 29, 23, 58, 59)
BLOCK_SIZES = [512 << n for n in range(8)]

# ---- checksums


def fold_slowly(words: list[int]) -> int:
    total = 0
    for word in words:
        total = ((total << 1 | total >> 31) & 0xFFFFFFFF) ^ word
    return total


def sectors_slowly(data: bytes) -> list[int]:
    sums = []
    for place in range(0, len(data), 512):
        total = 0
        for (word,) in struct.iter_unpack("<I", data[place : place + 512]):
            total ^= word
        sums.append(total)
    return sums


@given(st.lists(st.integers(0, 0xFFFFFFFF), max_size=100), st.integers(0, 100))
def test_fold_and_combine(words: list[int], cut: int) -> None:
    array = np.array(words, np.uint32)
    assert fold(array) == fold_slowly(words)
    assert combine(fold(array[:cut]), fold(array[cut:]), len(array[cut:])) == fold_slowly(words)


def test_sectors_and_pages_follow_the_definition() -> None:
    data = random.Random(1).randbytes(3 * PAGE_SIZE)
    assert sector_xors(data).tolist() == sectors_slowly(data)
    assert stream_checksum(memoryview(data)) == fold_slowly(sectors_slowly(data))
    # The published form for pages: sector i rotated left by 15 - i, the field itself taken as 0.
    expected = []
    for place in range(0, len(data), PAGE_SIZE):
        page = bytearray(data[place : place + PAGE_SIZE])
        page[60:64] = bytes(4)
        total = 0
        for number, word in enumerate(sectors_slowly(bytes(page))):
            turns = 15 - number
            total ^= (word << turns | word >> (32 - turns)) & 0xFFFFFFFF if turns else word
        expected.append(total)
    assert page_checksums(data).tolist() == expected
    assert page_checksums(data, sector_xors(data)).tolist() == expected


def test_parts_of_sectors_and_pages_are_refused() -> None:
    for call, size in ((sector_xors, 516), (page_checksums, 4096)):
        with pytest.raises(ValueError):
            call(bytes(size))


def test_a_real_backup_carries_these_checksums(bak: Path) -> None:
    data = (bak / "01_full_checksum_2008r2.bak").read_bytes()
    # Places as the block list of that file has them: TAPE, SSET, MSCI, the pages of MQDA, the CSUM behind them.
    for place in (0, 0x600, 0xE00):
        assert header_checksum(data[place : place + 50]) == struct.unpack_from("<H", data, place + 50)[0]
    pages = data[0x1E00 : 0x1E00 + 1376256]
    assert stream_checksum(pages) == 0x85E05B57 == struct.unpack_from("<I", data, 0x151E16)[0]
    array = np.frombuffer(pages, np.uint8).reshape(-1, PAGE_SIZE)
    flagged = (array[:, 0] == 1) & (array[:, 5] & 2 != 0)
    stored = array.view("<u4")[:, 15]
    assert flagged.sum() == 162
    assert (page_checksums(pages)[flagged] == stored[flagged]).all()


def test_dates_are_those_of_a_real_backup() -> None:
    assert encode_date(datetime(2017, 5, 18, 4, 17, 38)).hex() == "1f85644466"  # in 01, which says so
    assert encode_date(None) == bytes(5)


# ---- families


@dataclass
class Made:
    """Streams of one stripe set, and what the generator was told to put into them."""

    source: Synthetic
    block_size: int
    checksum: bool
    streams: list[bytes]
    pages: Counter[int]  # by family
    fill: Counter[int]


def make(size: int, families: int, block_size: int, checksum: bool, seed: int = 1, transfer: int = 1 << 19) -> Made:
    source = Synthetic(size, seed)
    media = MediaSet(bytes(range(16)), families, block_size, 0x12345678)
    backup = BackupSet(
        bytes(range(16, 32)), "päges", "server", "machine", "user", source.files("päges", source.pages), NOW, NOW,
        checksum,
    )  # fmt: skip
    snapshot = source.snapshot("päges", lambda: None)
    stripes = BackupStripes(snapshot, media, backup, transfer, now=lambda: NOW)
    made = Made(source, block_size, checksum, [b""] * families, Counter(), Counter())
    parts: list[list[bytes]] = [[] for _ in range(families)]
    pick = random.Random(seed)
    live = list(range(families))
    while live:
        family = pick.choice(live)
        item = stripes.next(family)
        if item is None:
            live.remove(family)
            continue
        data = np.empty(item.size, np.uint8)
        stripes.make(family, item, data)
        if not isinstance(item, Metadata):
            made.pages[family] += item.count
            made.fill[family] += item.count if item.fill else 0
        assert item.size % block_size == 0
        parts[family].append(data.tobytes())
    made.streams = [b"".join(part) for part in parts]
    return made


def read(made: Made, streams: list[bytes] | None = None, pieces: random.Random | None = None) -> list[FamilyInfo]:
    """Read all families and check every page."""
    target = made.source.target("päges", made.source.pages, replace=True)
    infos: list[FamilyInfo] = []
    for stream in made.streams if streams is None else streams:
        reader = FamilyReader(made.block_size, infos.append, target.accept)
        rest = memoryview(stream)
        while len(rest) and not reader.finished:
            length = pieces.choice([1, 7, 512, 8191, 8192, 65536, 300000]) if pieces else len(rest)
            reader.feed(rest[:length])
            rest = rest[length:]
        reader.end()
        assert not len(rest), "the family ended before its stream"
    target.finish()
    return infos


def test_an_independent_program_counts_what_was_made(shared: Path, tmp_path: Path) -> None:
    made = {}
    for block_size in BLOCK_SIZES:
        for families in (1, 2, 3, 5, 8):
            for checksum in (False, True):
                sets = make(1_000_000, families, block_size, checksum)
                for number, stream in enumerate(sets.streams):
                    path = tmp_path / f"{block_size}-{families}-{int(checksum)}-{number}.bak"
                    path.write_bytes(stream)
                    made[path.name] = (sets, number, families)
    program = shared / "prototypes" / "mtf_verify.py"
    names = sorted(made)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", program, "--json", *(tmp_path / name for name in names)],
        capture_output=True, text=True, check=True, timeout=100,
    )  # fmt: skip
    counts = {entry["file"]: entry for entry in json.loads(done.stdout)}
    assert sorted(counts) == names
    for name, found in counts.items():
        sets, number, families = made[name]
        # 1,000,000 bytes are 123 pages, in whole extents 128; each family has the same number of extents.
        extents = -(-16 // families)
        fill = sets.fill[number]
        assert sets.pages[number] == extents * 8
        marks = 3 if sets.block_size == 65536 else 0  # the ESPB behind each filemark
        expected = {
            "bytes": len(sets.streams[number]),
            "end": "",
            # TAPE SFMB SSET VOLB MSCI MSDA MSTL MSLS SFMB ESET ESET SFMB
            "dblk": 12 + marks,
            "dblk_ok": 12 + marks,
            # RAID, 2 MQCI, APAD, 2 MQDA, OTCP, TSMP, and a SPAD in each but the filemarks
            "stream": 17 + sets.checksum + marks,
            "stream_ok": 17 + sets.checksum + marks,
            "csum": int(sets.checksum),
            "csum_ok": int(sets.checksum),
            "mqda": extents * EXTENT_SIZE,
            "declared": [extents * 8 - fill, 128],
        }
        assert {key: found[key] for key in expected} == expected, name
        real = extents * 8 - fill
        assert found["pages"] == {
            "pages": extents * 8, "zero": 0, "fill": fill, "ck": real, "ck_ok": real, "torn": 0, "torn_ok": 0,
            "none": 0, "stale": 0,
        }, name  # fmt: skip
        assert found["raid"]["families"] == families and found["raid"]["family"] == number + 1
        assert found["media"]["sfm_units"] * 512 == sets.block_size
        (only,) = found["sets"]
        assert only["cfg"]["db"] == "päges" and only["cfg"]["type"] == "D" and only["cfg"]["start"] == str(NOW)
        assert only["cfg"]["finish"] is None and only["tail"]["finish"] == str(NOW)
        assert bool(only["cfg"]["flags"] & 0x10) == sets.checksum
    for families in (1, 2, 3, 5, 8):
        together = [f"512-{families}-1-{number}.bak" for number in range(families)]
        assert sum(counts[name]["declared"][0] for name in together) == 128


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("families", [1, 3])
@pytest.mark.parametrize("checksum", [False, True])
def test_what_is_written_is_read_in_pieces_of_any_size(block_size: int, families: int, checksum: bool) -> None:
    made = make(700_000, families, block_size, checksum, seed=block_size + families)
    infos = read(made, pieces=random.Random(block_size))
    assert [info.family for info in infos] == list(range(1, families + 1))
    for info in infos:
        assert info.families == families and info.block_size == block_size and info.checksum == checksum
        assert (info.database, info.server) == ("päges", "server")
        assert info.files == [(1, "päges", 88), (2, "päges_log", 0)]


def test_blocks_lie_where_real_files_have_them() -> None:
    stream = make(65536, 1, 512, True).streams[0]
    places = {b"TAPE": 0, b"SSET": 0x600, b"VOLB": 0xA00, b"MSCI": 0xE00}
    assert {kind: stream.index(kind) for kind in places} == places
    assert stream.index(b"SFMB") == 0x400
    big = make(65536, 1, 4096, True).streams[0]
    assert (big.index(b"SFMB"), big.index(b"SSET")) == (0x1000, 0x2000)


def test_a_writer_refuses_another_number_of_pages_than_announced() -> None:
    backup = BackupSet(bytes(16), "d", "s", "m", "u", (), NOW, NOW)
    writer = FamilyWriter(MediaSet(bytes(16), 1), backup, 1, 2)
    writer.begin()
    writer.pages(8)
    with pytest.raises(ValueError, match="8 pages of 16"):
        writer.end(NOW)


# ---- real backups


@pytest.mark.parametrize(
    ("name", "pages", "sectors"),
    [
        ("01_full_checksum_2008r2.bak", 168, 16),
        ("02_diff_checksum_2008r2.bak", 32, 15),
        ("03_log_checksum_2vlf_2008r2.trn", 0, 526),
        ("04_chain_full_2008r2.bak", 184, 16),
        ("05_chain_log_2008r2.trn", 0, 23),
        ("06_chain_log_empty_2008r2.trn", 0, 0),
        ("07_chain_diff_2008r2.bak", 32, 15),
        ("08_stripe1of2_full_2008r2.bak", 96, 70),
        ("09_stripe2of2_full_2008r2.bak", 96, 0),
        ("10_stripe1of2_log_2008r2.trn", 0, 92),
        ("11_stripe2of2_log_2008r2.trn", 0, 0),
        ("12_full_mediapassword_2008r2.bak", 184, 16),
        ("22_full_compressed_2016.bak", 344, 17),
    ],
)
def test_real_backups_are_read_in_pieces_of_any_size(bak: Path, name: str, pages: int, sectors: int) -> None:
    data, pick = memoryview((bak / name).read_bytes()), random.Random(name)
    seen = Counter[str]()
    parts = set()

    def log(part: LogPart, content: np.ndarray) -> None:
        parts.add((part.start, part.end))
        seen["log"] += content.nbytes

    def taken(content: np.ndarray) -> None:
        seen["pages"] += len(content)

    reader = FamilyReader(512, lambda info: None, taken, log)
    while len(data) and not reader.finished:
        assert reader.wanted <= len(data)
        length = pick.choice([1, 13, 512, 8191, 65536])
        reader.feed(data[:length])
        data = data[length:]
    reader.end()
    assert seen["pages"] == pages
    assert sum(end - start for start, end in parts) == 512 * sectors
    assert reader.info.compressed == (name[:2] == "22")


@pytest.mark.parametrize("count", [1, 3])
def test_damage_to_a_container_is_an_error_and_nothing_else(bak: Path, count: int) -> None:
    whole, pick = (bak / "22_full_compressed_2016.bak").read_bytes()[:60_000], random.Random(count)
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(count):
            data[pick.randrange(12, len(data))] = pick.randrange(256)
        with contextlib.suppress(MtfError):
            FamilyReader(512, lambda info: None, lambda pages: None).feed(memoryview(data))


def test_blocks_of_lz77_and_huffman_codes_are_hostile_until_checked() -> None:
    lengths = bytearray(256)
    lengths[ord("a") // 2] = 0x10  # 'a' (odd: the high nibble) and the match (256 + 15) have one bit each
    lengths[271 // 2] = 0x10
    # a, match of 3 + 15 + 3 at distance 1: bits 0 1, most significant first, in a word; its length in the next bytes.
    packed = bytes(lengths) + struct.pack("<HHB", 0b0100_0000_0000_0000, 0, 3)
    assert decompress(packed, 22) == b"a" * 22
    for bad, size in (
        (packed, 21),  # the match is longer than what is left
        (bytes(lengths) + struct.pack("<HHB", 0b1000_0000_0000_0000, 0, 3), 22),  # nothing to copy from
        (bytes(256) + bytes(8), 10),  # no code
        (bytes([0x11] * 256) + bytes(8), 10),  # more codes than there can be
        (packed[:200], 22),
    ):
        with pytest.raises(ContainerError):
            decompress(bad, size)


# ---- damage


def outcome(made: Made, streams: list[bytes]) -> str:
    try:
        read(made, streams)
    except (MtfError, PageDamage) as error:
        return type(error).__name__
    return "fine"


def test_every_truncation_is_seen() -> None:
    made = make(65536 * 2, 1, 512, True)
    stream = made.streams[0]
    cuts = {*range(0, len(stream), 512), *range(1, 0x1E00, 97), len(stream) - 1}
    for cut in sorted(cuts):
        assert outcome(made, [stream[:cut]]) == "TruncatedError", cut


def test_another_block_size_is_named() -> None:
    made = make(65536, 1, 4096, False)
    reader = FamilyReader(512, lambda info: None, lambda pages: None)
    with pytest.raises(BlockSizeError) as info:
        reader.feed(memoryview(made.streams[0]))
    assert info.value.found == 4096


def test_something_else_is_no_tape_format() -> None:
    for junk in (b"MSSQLBAK" + bytes(600), bytes(600), random.Random(2).randbytes(600)):
        reader = FamilyReader(512, lambda info: None, lambda pages: None)
        with pytest.raises((NotMtfError, MtfError)):
            reader.feed(memoryview(junk))


def test_flipped_bits_are_found_with_a_checksum() -> None:
    """Everywhere but in what restoring does not need: set map, texts that only inform, padding without a meaning."""
    made = make(65536, 1, 512, True)
    stream = made.streams[0]
    first, last = 0x1E00, 0x1E00 + EXTENT_SIZE
    pick = random.Random(4)
    for place in [pick.randrange(first, last) for _ in range(300)]:
        assert outcome(made, [_flip(stream, place, pick)]) != "fine", place
    seen = Counter(
        outcome(made, [_flip(stream, place, pick)]) != "fine"
        for place in [*range(0, first), *range(last, len(stream))][::7]
    )
    assert seen[True] > 0.9 * (seen[True] + seen[False])


def _flip(stream: bytes, place: int, pick: random.Random) -> bytes:
    damaged = bytearray(stream)
    damaged[place] ^= 1 << pick.randrange(8)
    return bytes(damaged)


def test_headers_that_lie_are_errors_and_nothing_else() -> None:
    """Numbers changed and the checksums made good again: an attacker's stream, not a damaged one."""
    made = make(65536, 2, 512, True)
    stream = made.streams[0]
    headers = [(place, 52) for kind in (b"TAPE", b"SFMB", b"SSET", b"VOLB", b"MSCI", b"MSDA", b"MSLS", b"ESET")
               for place in _all(stream, kind)]  # fmt: skip
    headers += [(place, 22) for kind in (b"RAID", b"SPAD", b"MQCI", b"APAD", b"MQDA", b"CSUM", b"OTCP")
                for place in _all(stream, kind)]  # fmt: skip
    pick = random.Random(5)
    for _ in range(1500):
        place, length = pick.choice(headers)
        damaged = bytearray(stream)
        at = pick.randrange(4, length - 2)
        damaged[place + at] = pick.choice([0, 1, 0x7F, 0x80, 0xFF, pick.randrange(256)])
        struct.pack_into("<H", damaged, place + length - 2, header_checksum(damaged[place : place + length - 2]))
        outcome(made, [bytes(damaged), made.streams[1]])
    for _ in range(1000):  # bodies: configuration, RAID, filemarks
        damaged = bytearray(stream)
        damaged[pick.randrange(0, 0x1E00)] = pick.choice([0, 0xFF, pick.randrange(256)])
        outcome(made, [bytes(damaged), made.streams[1]])


def _all(stream: bytes, kind: bytes) -> list[int]:
    places, place = [], stream.find(kind)
    while place >= 0:
        places.append(place)
        place = stream.find(kind, place + 1)
    return places


def test_pages_swapped_missing_or_twice_are_found() -> None:
    made = make(65536 * 3, 1, 512, False)
    stream, start = made.streams[0], 0x1E00
    extents = [stream[start + n * EXTENT_SIZE : start + (n + 1) * EXTENT_SIZE] for n in range(3)]
    pages = [stream[start + n * PAGE_SIZE : start + (n + 1) * PAGE_SIZE] for n in range(24)]

    def with_data(parts: list[bytes]) -> str:
        return outcome(made, [stream[:start] + b"".join(parts) + stream[start + 3 * EXTENT_SIZE :]])

    assert with_data(extents) == "fine"
    assert with_data([extents[2], extents[0], extents[1]]) == "fine"  # extents have no fixed order
    assert with_data([extents[0], extents[1], extents[1]]) == "PageDamage"
    other = make(65536 * 3, 1, 512, False, seed=2).streams[0][start : start + EXTENT_SIZE]
    assert with_data([other, extents[1], extents[2]]) == "PageDamage"
    assert with_data([*pages[:3], pages[4], pages[4], *pages[5:]]) == "PageDamage"


def test_a_checksum_that_is_not_that_of_the_pages_is_found() -> None:
    made = make(65536, 1, 512, True)
    stream = bytearray(made.streams[0])
    place = stream.index(b"CSUM") + 22
    stream[place] ^= 1
    assert outcome(made, [bytes(stream)]) == "MtfError"


def test_a_stream_of_nothing_is_truncated() -> None:
    reader = FamilyReader(512, lambda info: None, lambda pages: None)
    assert reader.wanted > 0 and reader.empty
    with pytest.raises(TruncatedError):
        reader.end()
