"""Decompression of compressed backups: against a slow decoder and an encoder in plain Python, and real records."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native.build import NATIVE, ROOT, SANITIZERS, WARNINGS, environment

from vdi_ext.mtf import CompressionError, MtfError, decompress, decompress_into, page_checksums

SOURCES = ROOT / "vdi_ext" / "mtf" / "native"
Operation = int | tuple[int, int]  # a literal, or length and distance of a match


# ---- the definition, one bit after the other


class Refused(Exception):
    """Of the slow decoder."""


def codes_of(lengths: list[int]) -> dict[tuple[int, int], int]:
    """Symbol by length and code: canonical, by length and then by symbol."""
    found = {}
    code = 0
    for length in range(1, 16):
        code <<= 1
        for symbol in range(512):
            if lengths[symbol] == length:
                found[length, code] = symbol
                code += 1
    if code != 1 << 15:
        raise Refused("no code")
    return found


class Bits:
    """Bits in 16-bit words, and the bytes between them: a word is fetched as soon as fewer than 16 bits are left."""

    def __init__(self, data: bytes, place: int) -> None:
        self.data, self.place, self.held = data, place, ""
        self.fetch()
        self.fetch()

    def octets(self, count: int) -> int:
        part = self.data[self.place : self.place + count]
        if len(part) < count:
            raise Refused("too short")
        self.place += count
        return int.from_bytes(part, "little")

    def fetch(self) -> None:
        self.held += format(self.octets(2), "016b")

    def drop(self, count: int) -> str:
        part, self.held = self.held[:count], self.held[count:]
        if len(self.held) < 16:
            self.fetch()
        return part


def decompress_slowly(data: bytes, size: int) -> tuple[bytes, int]:
    """The output, and how much of the input it took."""
    out = bytearray()
    place = 0
    while len(out) < size:
        table = data[place : place + 256]
        if len(table) < 256:
            raise Refused("too short")
        codes = codes_of([nibble for byte in table for nibble in (byte & 15, byte >> 4)])
        bits = Bits(data, place + 256)
        end = min(size, len(out) + 65536)
        while len(out) < end:
            length = 1
            while (symbol := codes.get((length, int(bits.held[:length], 2)))) is None:
                length += 1
            bits.drop(length)
            if symbol < 256:
                out.append(symbol)
                continue
            count, extra = symbol % 16, symbol // 16 - 16
            if count == 15:
                count += bits.octets(1)
                if count == 270:
                    count = bits.octets(2) or bits.octets(4)
                    if count < 15:
                        raise Refused("a length")
            distance = (1 << extra) + int(bits.drop(extra) or "0", 2)
            if distance > len(out) or len(out) + count + 3 > size:
                raise Refused("outside")
            apply(out, (count + 3, distance))
        place = bits.place
    return bytes(out), place


def apply(out: bytearray, operation: Operation) -> None:
    if isinstance(operation, int):
        out.append(operation)
        return
    length, distance = operation
    pattern = bytes(out[-distance:])[:length]
    out += (pattern * (length // len(pattern) + 1))[:length]


def result_of(call: Callable[[], object], error: type[Exception]) -> object:
    try:
        return call()
    except error:
        return None


def same_as_slowly(data: bytes, size: int) -> object:
    """Both give the same, or both refuse; writes nothing outside of the memory that it was given."""
    want = result_of(lambda: decompress_slowly(data, size), Refused)
    memory = bytearray(b"\xa5" * (size + 128))

    def into() -> tuple[bytes, int]:
        with memoryview(memory)[64 : 64 + size] as out:
            used = decompress_into(data, out)
            return bytes(out), used

    assert result_of(into, CompressionError) == want
    assert memory[:64] == memory[-64:] == b"\xa5" * 64
    return want


# ---- an encoder: whatever operations under whatever code


class Encoder:
    """Operations under a code, as one block; the words stand where `Bits` fetches them."""

    def __init__(self, lengths: list[int], pick: random.Random) -> None:
        self.codes = {symbol: format(code, f"0{length}b") for (length, code), symbol in codes_of(lengths).items()}
        self.pick = pick
        self.out = bytearray(low | high << 4 for low, high in zip(lengths[::2], lengths[1::2], strict=True))
        self.words = [256, 258]  # their places
        self.out += bytes(4)
        self.bits: list[str] = []
        self.count = 0

    def put(self, bits: str) -> None:
        self.bits.append(bits)
        self.count += len(bits)
        if 16 * len(self.words) - self.count < 16:
            self.words.append(len(self.out))
            self.out += bytes(2)

    def encode(self, operations: list[Operation]) -> bytes:
        for operation in operations:
            if isinstance(operation, int):
                self.put(self.codes[operation])
            else:
                self.match(operation[0] - 3, operation[1])
        text = "".join(self.bits).ljust(16 * len(self.words), "0")
        for number, place in enumerate(self.words):
            struct.pack_into("<H", self.out, place, int(text[16 * number : 16 * number + 16], 2))
        return bytes(self.out)

    def match(self, length: int, distance: int) -> None:
        extra = distance.bit_length() - 1
        self.put(self.codes[256 + 16 * extra + min(length, 15)])
        if length >= 15:
            forms = [(length < 270, lambda: bytes([length - 15])),
                     (length <= 65535, lambda: b"\xff" + struct.pack("<H", length)),
                     (True, lambda: b"\xff" + struct.pack("<HI", 0, length))]  # fmt: skip
            self.out += self.pick.choice([form for possible, form in forms if possible])()
        if extra:
            self.put(format(distance - (1 << extra), f"0{extra}b"))


def encode(blocks: list[list[Operation]], lengths: list[int], pick: random.Random) -> bytes:
    return b"".join(Encoder(lengths, pick).encode(block) for block in blocks)


def some_lengths(pick: random.Random) -> list[int]:
    """Lengths, up to 15 bits, of 512 codes that are complete: the leaves of a tree that grew at random."""
    leaves = [0]
    while len(leaves) < 512:
        place = max(pick.sample(range(len(leaves)), min(pick.randint(1, 3), len(leaves))), key=leaves.__getitem__)
        if leaves[place] < 15:
            leaves[place] += 1
            leaves.append(leaves[place])
    pick.shuffle(leaves)
    return leaves


def some_operations(pick: random.Random, size: int, done: int) -> list[Operation]:
    found: list[Operation] = [pick.randrange(256)]
    made = 1
    while made < size:
        room, far = size - made, min(done + made, 65535)
        if room < 3 or pick.randrange(2):
            found.append(pick.randrange(256))
            made += 1
            continue
        length = min(room, pick.choice([3, 4, 8, 17, 18, 19, 33, 272, 273, 274, 1000, 40000]))
        distance = min(far, pick.choice([1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 100, pick.randint(1, far), far]))
        found.append((length, distance))
        made += length
    return found


@given(st.integers(0, 1 << 62), st.sampled_from([1, 2, 100, 5000, 65535, 65536, 65537, 70000, 131072, 140000]))
@settings(max_examples=60, deadline=None)
def test_whatever_can_be_encoded(seed: int, size: int) -> None:
    pick = random.Random(seed)
    lengths = some_lengths(pick)
    blocks: list[list[Operation]] = []
    want = bytearray()
    while len(want) < size:
        blocks.append(some_operations(pick, min(65536, size - len(want)), len(want)))
        for operation in blocks[-1]:
            apply(want, operation)
    packed = encode(blocks, lengths, pick)
    assert decompress(packed, size) == want
    out = bytearray(size)
    assert decompress_into(packed + b"what follows", out) == len(packed)
    assert out == want
    for cut in (1, 2, 3, len(packed) // 2):
        with pytest.raises(CompressionError):
            decompress(packed[:-cut], size)


def test_the_encoder_makes_long_codes() -> None:
    assert max(max(some_lengths(random.Random(seed))) for seed in range(20)) == 15


def test_a_match_of_many_megabytes() -> None:
    """Its length has four bytes; then it is over the first 64 KiB, and the block ends with it."""
    size = 20_000_000
    packed = encode([[7, (size - 1, 1)]], [9] * 512, random.Random(1))
    assert decompress(packed, size) == b"\7" * size


# ---- real records


def records(bak: Path) -> list[tuple[bytes, int]]:
    """Compressed data and size of its result, of every record of the file."""
    data = (bak / "22_full_compressed_2016.bak").read_bytes()
    place, found = 480, []
    while place < len(data):
        if data[place : place + 4] == b"SFMB":
            place += struct.unpack_from("<H", data, place + 8)[0]
            continue
        kind, units, size = struct.unpack_from("<BBH", data, place)
        if kind == 0x21:
            found.append((data[place + 28 : place + 28 + size], 512 * units))
            place += 28 + size
        else:
            place += 24 + (size if kind == 0x24 else struct.unpack_from("<I", data, place + 32)[0])
    return found


@pytest.fixture(scope="module")
def real(bak: Path) -> list[tuple[bytes, int]]:
    return records(bak)


@cache
def slowly(data: bytes, size: int) -> tuple[bytes, int]:
    return decompress_slowly(data, size)


def test_real_records(real: list[tuple[bytes, int]]) -> None:
    assert len(real) == 49
    for data, size in real:
        want, used = slowly(data, size)
        assert decompress(data, size) == want
        assert decompress_into(data, bytearray(size)) == used
        assert len(data) - 2 <= used <= len(data)


def test_pages_in_real_records(real: list[tuple[bytes, int]]) -> None:
    """The 274 pages with checksums that the list of facts names for this file."""
    stream = np.frombuffer(b"".join(decompress(data, size) for data, size in real), np.uint8)
    good = 0
    for start in range(0, 8192, 512):
        pages = stream[start : start + (len(stream) - start) // 8192 * 8192].reshape(-1, 8192)
        words = pages.view("<u4")
        page = (pages[:, 0] == 1) & (pages[:, 1] >= 1) & (pages[:, 1] <= 20) & (words[:, 1] & 0x200 != 0)
        good += int((page & (page_checksums(pages.copy()) == words[:, 15])).sum())
    assert good == 274


def test_every_kind_of_buffer(real: list[tuple[bytes, int]]) -> None:
    data, size = min(real, key=lambda record: len(record[0]))
    want = decompress(data, size)
    for packed in (bytearray(data), memoryview(data), memoryview(b"x" + data)[1:], np.frombuffer(data, np.uint8)):
        assert decompress(packed, size) == want
    for out in (bytearray(size), np.zeros(size, np.uint8), np.zeros(size // 4, "<u4"), memoryview(bytearray(size))):
        decompress_into(data, out)
        assert bytes(out) == want


def test_what_is_refused(real: list[tuple[bytes, int]]) -> None:
    data, size = real[0]
    assert issubclass(CompressionError, MtfError) and issubclass(CompressionError, ValueError)
    assert decompress(b"", 0) == b"" and decompress_into(b"", bytearray()) == 0
    for packed in (b"", bytes(300), b"\x99" * 259, b"\x11" * 400, data[:-3], b"\xff" * 65536):
        with pytest.raises(CompressionError):
            decompress(packed, size)
    with pytest.raises(CompressionError, match=f"block of {len(data)} bytes"):
        decompress(data, size + 512)
    for error, call in (
        (ValueError, lambda: decompress(data, -1)),
        (TypeError, lambda: decompress("text", 5)),
        (TypeError, lambda: decompress_into(data, 5)),
        (BufferError, lambda: decompress_into(data, bytes(size))),
        (BufferError, lambda: decompress_into(data, memoryview(bytearray(2 * size))[::2])),
    ):
        with pytest.raises(error):
            call()
    out = bytearray(size)
    with pytest.raises(CompressionError):
        decompress_into(data[:-3], out)
    with pytest.raises(TypeError):
        decompress_into(5, out)
    out.append(0)  # refused while anybody holds the memory


@given(st.binary(max_size=600), st.integers(0, 3000))
@settings(max_examples=300, deadline=None)
def test_random_bytes(data: bytes, size: int) -> None:
    same_as_slowly(data, size)


@given(st.binary(min_size=4, max_size=600), st.integers(0, 3000), st.integers(0, 1 << 62))
@settings(max_examples=300, deadline=None)
def test_random_bits_under_a_code(data: bytes, size: int, seed: int) -> None:
    lengths = some_lengths(random.Random(seed))
    table = bytes(low | high << 4 for low, high in zip(lengths[::2], lengths[1::2], strict=True))
    same_as_slowly(table + data, size)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_real_records(real: list[tuple[bytes, int]], data: st.DataObject) -> None:
    packed, size = data.draw(st.sampled_from(real))
    damaged = bytearray(packed)
    for bit in data.draw(st.lists(st.integers(0, 8 * len(packed) - 1), max_size=3)):
        damaged[bit // 8] ^= 1 << bit % 8
    length = data.draw(st.one_of(st.just(len(packed)), st.integers(0, len(packed))))
    same_as_slowly(bytes(damaged[:length]), size)


# ---- threads


@pytest.mark.threaded
def test_threads(real: list[tuple[bytes, int]]) -> None:
    want = [decompress(data, size) for data, size in real]
    found: list[bool] = []

    def work() -> None:
        for (data, size), expected in zip(real, want, strict=True):
            found.append(decompress(data, size) == expected)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 3 * len(real)


@pytest.mark.timeout(30)
def test_the_gil_is_free_meanwhile() -> None:
    packed = encode([[7, ((16 << 20) - 1, 1)]], [9] * 512, random.Random(1))
    ran: list[bool] = []
    gate = threading.Lock()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # from here on the other thread runs only where this one lets it
    try:
        with gate:
            thread = threading.Thread(target=lambda: ran.append(gate.acquire()))
            thread.start()
        while not ran:
            decompress(packed, 16 << 20)
    finally:
        sys.setswitchinterval(before)
        thread.join()


# ---- under AddressSanitizer, on memory that ends where the data does


@pytest.fixture(scope="module", params=["gcc", "clang"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = request.param if shutil.which(request.param) else "gcc"
    out = tmp_path_factory.mktemp("unpack") / "unpack"
    flags = ["-std=c11", "-O1", "-g", *WARNINGS, *SANITIZERS["address"], f"-I{SOURCES}"]
    line = [compiler, *flags, NATIVE / "unpack.c", SOURCES / "xpress.c", "-o", out]
    subprocess.run(line, check=True, env=environment(), timeout=100)
    return out


@pytest.fixture(scope="module")
def sample(real: list[tuple[bytes, int]], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The record with the most compressed bytes in a file, and its size."""
    data, size = max(real, key=lambda record: len(record[0]))
    path = tmp_path_factory.mktemp("record") / "record"
    path.write_bytes(data)
    return str(path), str(size)


def run(program: Path, mode: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, mode, *arguments], capture_output=True, text=True, env=environment(), timeout=100
    )


def test_a_real_record_is_not_reported(program: Path, sample: tuple[str, str]) -> None:
    done = run(program, "clean", *sample)
    assert done.returncode == 0 and not done.stderr, done.stderr


@pytest.mark.parametrize("fault, access", [("overread", "READ of size"), ("overwrite", "WRITE of size")])
def test_a_planted_overrun_is_reported(program: Path, sample: tuple[str, str], fault: str, access: str) -> None:
    done = run(program, fault, *sample)
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr and access in done.stderr, done.stderr
    assert "xpress.c" in done.stderr, done.stderr


def test_mutations_are_not_reported(program: Path, sample: tuple[str, str]) -> None:
    done = run(program, "mutate", *sample, "3000")
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert 0 < int(done.stdout) < 3000
