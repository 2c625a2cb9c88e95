"""The checksum loops, compiled and in numpy: each against the definition in plain Python, and against real pages."""

from __future__ import annotations

import random
import struct
import sys
import threading
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vdi_ext import mtf
from vdi_ext.mtf import _kernels, checksums

VARIANTS = pytest.mark.parametrize("variant", [_kernels, checksums], ids=["compiled", "numpy"])
SIZES = st.integers(0, 70)


def words_of(data: bytes) -> list[int]:
    return [word for word, in struct.iter_unpack("<I", data)]


def fold_slowly(words: list[int]) -> int:
    total = 0
    for word in words:
        total = ((total << 1 | total >> 31) & 0xFFFFFFFF) ^ word
    return total


def sectors_slowly(data: bytes) -> list[int]:
    found = []
    for start in range(0, len(data), 512):
        total = 0
        for word in words_of(data[start : start + 512]):
            total ^= word
        found.append(total)
    return found


def page_slowly(page: bytes) -> int:
    return fold_slowly(sectors_slowly(page[:60] + bytes(4) + page[64:]))


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def forms(data: bytes) -> Iterator[tuple[str, object]]:
    """The same bytes as everything that has the buffer protocol."""
    yield "bytes", data
    yield "bytearray", bytearray(data)
    yield "read-only memoryview", memoryview(bytearray(data)).toreadonly()
    yield "array", array("B", data)
    yield "numpy, two dimensions", np.frombuffer(data, np.uint8).reshape(-1, 512)
    yield "numpy, records", np.frombuffer(data, np.dtype([("a", "<u8"), ("b", "u1", 24)]))
    for shift in (1, 2, 3, 5, 13, 63):
        yield f"{shift} bytes off", memoryview(bytes(shift) + data)[shift:]


@VARIANTS
@given(count=SIZES, seed=st.integers(0, 1 << 32))
@settings(max_examples=60, deadline=None)
def test_definition(variant: ModuleType, count: int, seed: int) -> None:
    data = noise(512 * count, seed)
    own = sectors_slowly(data)
    assert variant.sector_xors(data).tolist() == own
    assert variant.stream_checksum(data) == fold_slowly(own)
    words = noise(4 * count, seed)
    assert variant.fold(np.frombuffer(words, "<u4")) == fold_slowly(words_of(words))


@VARIANTS
@pytest.mark.parametrize("count", [0, 1, 2, 511, 512, 513, 1024, 1500])
def test_lengths_around_the_inner_batches(variant: ModuleType, count: int) -> None:
    data = noise(512 * count)
    assert variant.stream_checksum(data) == fold_slowly(sectors_slowly(data))


@pytest.mark.parametrize("size", [*range(270), 8190, 8191, 8192, 8193, 8320, 16511, 40001])
def test_record_checksum_fills_up_the_last_word(size: int) -> None:
    data = noise(size)
    assert mtf.record_checksum(data) == fold_slowly(words_of(data + bytes(-size % 4)))


@VARIANTS
@pytest.mark.parametrize("pages", [0, 1, 3])
def test_page_checksums(variant: ModuleType, pages: int) -> None:
    data = noise(8192 * pages)
    want = [page_slowly(data[at : at + 8192]) for at in range(0, len(data), 8192)]
    found = variant.page_checksums(data)
    assert found.tolist() == want and found.dtype == np.uint32
    sectors = variant.sector_xors(data)
    before = sectors.copy()
    assert variant.page_checksums(data, sectors).tolist() == want
    assert (sectors == before).all()


def test_sectors_given_save_the_reading_of_the_data() -> None:
    data = noise(8192)
    assert mtf.page_checksums(data, np.zeros(16, np.uint32)).tolist() != mtf.page_checksums(data).tolist()
    shifted = memoryview(b"x" + mtf.sector_xors(data).tobytes())[1:]
    assert mtf.page_checksums(data, shifted).tolist() == mtf.page_checksums(data).tolist()


@VARIANTS
def test_every_kind_of_buffer(variant: ModuleType) -> None:
    data = noise(3 * 8192)
    sectors = sectors_slowly(data)
    pages = [page_slowly(data[at : at + 8192]) for at in range(0, len(data), 8192)]
    for name, buffer in forms(data):
        assert variant.sector_xors(buffer).tolist() == sectors, name
        assert variant.page_checksums(buffer).tolist() == pages, name
        assert variant.stream_checksum(buffer) == fold_slowly(sectors), name


def test_words_of_every_kind() -> None:
    words = noise(4 * 75)
    want = fold_slowly(words_of(words))
    for buffer in (words, array("I", words_of(words)), np.frombuffer(words, "<u4"), memoryview(b"abc" + words)[3:]):
        assert mtf.fold(buffer) == want


@VARIANTS
@given(first=SIZES, second=SIZES)
@settings(max_examples=60, deadline=None)
def test_combine(variant: ModuleType, first: int, second: int) -> None:
    words = words_of(noise(4 * (first + second)))
    parts = fold_slowly(words[:first]), fold_slowly(words[first:])
    assert variant.combine(*parts, second) == fold_slowly(words)
    assert variant.combine(*parts, second + (32 << 70)) == fold_slowly(words)


@VARIANTS
@pytest.mark.parametrize(
    "name, size", [("sector_xors", 511), ("stream_checksum", 513), ("page_checksums", 8191), ("page_checksums", 512)]
)
def test_sizes_that_do_not_fit(variant: ModuleType, name: str, size: int) -> None:
    with pytest.raises(ValueError):
        getattr(variant, name)(bytes(size))


def test_what_is_refused() -> None:
    calls: list[tuple[type[Exception], Callable[[], object]]] = [
        (TypeError, lambda: mtf.sector_xors("text")),
        (TypeError, lambda: mtf.page_checksums(None)),
        (TypeError, lambda: mtf.page_checksums(bytes(8192), 5)),
        (ValueError, lambda: mtf.page_checksums(bytes(8192), bytes(60))),
        (ValueError, lambda: mtf.page_checksums(bytes(8192), np.zeros(17, np.uint32))),
        (ValueError, lambda: mtf.page_checksums(bytes(8192), np.zeros(8, np.uint64))),
        (ValueError, lambda: mtf.page_checksums(b"", np.zeros(1, np.uint32))),
        (ValueError, lambda: mtf.fold(np.zeros(4, np.uint64))),
        (ValueError, lambda: mtf.fold(b"12345")),
        (ValueError, lambda: mtf.combine(1, 2, -1)),
        (OverflowError, lambda: mtf.combine(1 << 32, 2, 1)),
        (OverflowError, lambda: mtf.combine(1, -2, 1)),
        (BufferError, lambda: mtf.stream_checksum(memoryview(bytes(2048))[::2])),
        (ValueError, lambda: mtf.stream_checksum(np.zeros(2048, np.uint8)[::2])),
    ]
    for error, call in calls:
        with pytest.raises(error):
            call()


def test_a_buffer_is_let_go() -> None:
    data = bytearray(8192)
    for call in (mtf.sector_xors, mtf.page_checksums, mtf.stream_checksum, mtf.record_checksum, mtf.fold):
        call(data)
    for call, short in ((mtf.sector_xors, 1), (mtf.page_checksums, 512), (mtf.fold, 3)):
        with pytest.raises(ValueError):
            call(memoryview(data)[:short])
    with pytest.raises(ValueError):
        mtf.page_checksums(data, data)
    with pytest.raises(TypeError):
        mtf.page_checksums(data, 5)
    data.append(0)  # refused while anybody holds the memory


def streams(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Id and content of the MQDA, MQTL and CSUM streams of a file that is not compressed, found by their headers."""
    for name in (b"MQDA", b"MQTL", b"CSUM"):
        at = data.find(name)
        while at >= 0:
            header = struct.unpack_from("<11H", data, at)
            check = 0
            for word in header[:10]:
                check ^= word
            length, = struct.unpack_from("<Q", data, at + 8)
            if at % 4 == 0 and check == header[10] and length > 2:
                yield name, data[at + 22 : at + 22 + length]
            at = data.find(name, at + 1)


# Pages with a checksum, from the list of facts that comes with the files.
REAL = [
    ("01_full_checksum_2008r2.bak", 162),
    ("02_diff_checksum_2008r2.bak", 28),
    ("04_chain_full_2008r2.bak", 170),
    ("07_chain_diff_2008r2.bak", 28),
    ("08_stripe1of2_full_2008r2.bak", 75),
    ("09_stripe2of2_full_2008r2.bak", 95),
    ("12_full_mediapassword_2008r2.bak", 170),
]


@VARIANTS
@pytest.mark.parametrize("name, count", REAL)
def test_real_pages(variant: ModuleType, bak: Path, name: str, count: int) -> None:
    good = 0
    for kind, content in streams((bak / name).read_bytes()):
        if kind == b"MQDA":
            pages = np.frombuffer(content[2:], np.uint8).reshape(-1, 8192)
            words = pages.view("<u4")
            page = (pages[:, 0] == 1) & (pages[:, 1] <= 20) & (words[:, 8] % 8 == np.arange(len(pages)) % 8)
            marked = page & (words[:, 1] & 0x200 != 0)
            assert (variant.page_checksums(pages) == words[:, 15])[marked].all()
            good += int(marked.sum())
    assert good == count


@VARIANTS
@pytest.mark.parametrize(
    "name", ["01_full_checksum_2008r2.bak", "02_diff_checksum_2008r2.bak", "03_log_checksum_2vlf_2008r2.trn"]
)
def test_real_streams(variant: ModuleType, bak: Path, name: str) -> None:
    found = [(kind, content) for kind, content in streams((bak / name).read_bytes())]
    sums = sorted(variant.stream_checksum(memoryview(content)[2:]) for kind, content in found if kind != b"CSUM")
    assert sums == sorted(struct.unpack("<I", content)[0] for kind, content in found if kind == b"CSUM")
    assert len(sums) == 2


@pytest.mark.threaded
def test_threads_share_a_buffer() -> None:
    data = memoryview(bytearray(noise(64 * 8192))).toreadonly()
    want = checksums.page_checksums(data).tolist(), checksums.stream_checksum(data)
    found: list[object] = []

    def work() -> None:
        for _ in range(50):
            pages = mtf.page_checksums(data, mtf.sector_xors(data)).tolist()
            half = len(data) // 2
            parts = mtf.stream_checksum(data[:half]), mtf.stream_checksum(data[half:])
            found.append((pages, mtf.combine(*parts, half // 512)) == want)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 150


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", ["sector_xors", "page_checksums", "stream_checksum", "record_checksum", "fold"])
def test_the_gil_is_free_over_the_data(name: str) -> None:
    data = np.zeros(16 << 20, np.uint8)
    ran: list[bool] = []
    gate = threading.Lock()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # from here on the other thread runs only where this one lets it
    try:
        with gate:
            thread = threading.Thread(target=lambda: ran.append(gate.acquire()))
            thread.start()
        while not ran:
            getattr(mtf, name)(data)
    finally:
        sys.setswitchinterval(before)
        thread.join()


def test_public_functions_are_the_compiled_ones() -> None:
    """The faster ones at every size: benchmarks/README.md."""
    for name in ("combine", "fold", "page_checksums", "record_checksum", "sector_xors", "stream_checksum"):
        assert getattr(mtf, name) is getattr(_kernels, name)
