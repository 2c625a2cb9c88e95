"""The reference media do what section 7 of the specification asks of a client's devices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from media import MARK_SIZE, Cartridge, Disk, Medium, Outcome, Pipe, Tape, Zone, answer
from server_pair import active

from vdi_ext import CommandCode, CompletionCode, Feature, VDIOError, Whence

C, E = CommandCode, CompletionCode
BLOCK = 512
MODES = ["pipe", "pipe, removable", "tape", "disk", "disk, removable"]


def block(number: int, size: int = BLOCK) -> bytes:
    return bytes([number % 256]) * size


def write(medium: Medium, data: bytes, position: int = 0) -> Outcome:
    return medium.perform(C.WRITE, len(data), position, memoryview(data))


def read(medium: Medium, size: int, position: int = 0) -> tuple[Outcome, bytes]:
    data = bytearray(size)
    outcome = medium.perform(C.READ, size, position, memoryview(data))
    return outcome, bytes(data[: outcome.count])


def do(medium: Medium, code: CommandCode, size: int = 0, position: int = 0) -> Outcome:
    return medium.perform(code, size & 0xFFFFFFFF, position, None)


@pytest.fixture
def tape(tmp_path: Path) -> Iterator[Tape]:
    """Two files of two blocks and a third of one: 0 1 | 2 3 | 4, at its beginning."""
    made = Tape([Cartridge(tmp_path / "tape")])
    for number in range(5):
        assert write(made, block(number)).code == E.SUCCESS
        if number in (1, 3):
            assert do(made, C.WRITE_MARK).code == E.SUCCESS
    do(made, C.REWIND)
    yield made
    made.close()


@pytest.fixture(params=MODES)
def any_medium(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Medium]:
    paths = [tmp_path / "first", tmp_path / "second"]
    made: dict[str, Medium] = {
        "pipe": Pipe(paths[:1]),
        "pipe, removable": Pipe(paths),
        "tape": Tape([Cartridge(path) for path in paths]),
        "disk": Disk(paths[:1]),
        "disk, removable": Disk(paths),
    }
    yield made[request.param]
    for medium in made.values():
        medium.close()


# ---- the table of 7.3

MUST = {
    "pipe": {C.READ, C.WRITE, C.CLEAR_ERROR, C.FLUSH},
    "pipe, removable": {C.READ, C.WRITE, C.CLEAR_ERROR, C.FLUSH, C.LOAD},
    "tape": {
        C.READ, C.WRITE, C.CLEAR_ERROR, C.FLUSH, C.LOAD, C.WRITE_MARK, C.SKIP_MARKS, C.SKIP_BLOCKS, C.REWIND,
        C.GET_POSITION, C.SET_POSITION,
    },
    "disk": {C.READ, C.WRITE, C.CLEAR_ERROR, C.FLUSH, C.SET_POSITION, C.GET_POSITION},
    "disk, removable": {C.READ, C.WRITE, C.CLEAR_ERROR, C.FLUSH, C.SET_POSITION, C.GET_POSITION, C.LOAD},
}  # fmt: skip


def test_each_mode_answers_what_it_must(any_medium: Medium, request: pytest.FixtureRequest) -> None:
    mode = request.node.callspec.params["any_medium"]
    answered = set()
    write(any_medium, block(1))
    for code in C:
        if code in (C.READ, C.WRITE):
            outcome = any_medium.perform(code, BLOCK, 0, memoryview(bytearray(BLOCK)))
        else:
            outcome = do(any_medium, code)
        if outcome.code != E.NOT_SUPPORTED:
            answered.add(code)
    # Complete is answered by everybody: whether it comes is for the server to grant.
    assert answered - {C.COMPLETE} == MUST[mode]


@pytest.mark.parametrize("offered", [False, True])
def test_discard_is_answered_where_it_was_offered(offered: bool, tmp_path: Path) -> None:
    medium = Pipe([tmp_path / "pipe"], discard=offered)
    assert (Feature.DISCARD in medium.features) == offered
    assert do(medium, C.DISCARD).code == (E.SUCCESS if offered else E.NOT_SUPPORTED)
    medium.close()


def test_features_of_the_modes(tmp_path: Path) -> None:
    path = tmp_path / "x"
    cartridge = Cartridge(path)
    media = [Pipe([path]), Pipe([path, path]), Tape([cartridge]), Disk([path]), Disk([path, path])]
    assert [medium.features for medium in media] == [0, 0x1, 0x173, 0x200, 0x201]
    for medium in media:
        medium.close()


# ---- data


def test_what_was_written_is_read_again_whatever_the_sizes(any_medium: Medium) -> None:
    """1.2: the same sequence of bytes; the sizes of the reads need not be those of the writes."""
    place = 0
    for number, count in enumerate((1, 8, 3)):
        assert write(any_medium, block(number, count * BLOCK), place) == Outcome(E.SUCCESS, count * BLOCK)
        place += count * BLOCK
    assert do(any_medium, C.FLUSH).code == E.SUCCESS
    if isinstance(any_medium, Tape):
        do(any_medium, C.REWIND)
    elif isinstance(any_medium, Pipe):
        any_medium.place = 0
    found = b""
    for size in (2, 4, 16):
        outcome, data = read(any_medium, size * BLOCK, len(found))
        found += data
    assert found == block(0) + block(1, 8 * BLOCK) + block(2, 3 * BLOCK)
    # The last one wanted more than there was: the count is that of the bytes that came.
    assert outcome.code in (E.HANDLE_EOF, E.NO_DATA_DETECTED) and outcome.count == 6 * BLOCK
    again, _ = read(any_medium, BLOCK, len(found))
    assert again.code in (E.HANDLE_EOF, E.NO_DATA_DETECTED) and again.count == 0


def test_an_empty_medium_has_no_data(any_medium: Medium) -> None:
    outcome, _ = read(any_medium, BLOCK)
    assert outcome.code in (E.HANDLE_EOF, E.NO_DATA_DETECTED) and outcome.count == 0


# ---- filemarks and positions of a tape


def test_a_read_stops_at_a_filemark_and_goes_on_behind_it(tape: Tape) -> None:
    outcome, data = read(tape, 4 * BLOCK)
    assert (outcome.code, data) == (E.FILEMARK_DETECTED, block(0) + block(1))
    assert read(tape, 2 * BLOCK) == (Outcome(E.SUCCESS, 2 * BLOCK), block(2) + block(3))
    assert read(tape, BLOCK) == (Outcome(E.FILEMARK_DETECTED), b"")
    assert read(tape, 2 * BLOCK) == (Outcome(E.NO_DATA_DETECTED, BLOCK), block(4))


def test_a_read_needs_whole_blocks(tape: Tape) -> None:
    assert read(tape, BLOCK // 2)[0] == Outcome(E.INVALID_BLOCK_LENGTH)


@pytest.mark.parametrize(
    "start, count, code, behind",
    [
        (0, 1, E.SUCCESS, 3), (0, 2, E.SUCCESS, 6), (0, 3, E.NO_DATA_DETECTED, 7), (1, 1, E.SUCCESS, 3),
        (7, -1, E.SUCCESS, 5), (7, -2, E.SUCCESS, 2), (7, -3, E.BEGINNING_OF_MEDIA, 0), (3, -1, E.SUCCESS, 2),
        (4, 0, E.SUCCESS, 4), (7, 0x7FFFFFFF, E.NO_DATA_DETECTED, 7), (2, -(2**31), E.BEGINNING_OF_MEDIA, 0),
    ],
)  # fmt: skip
def test_skipping_filemarks(tape: Tape, start: int, count: int, code: CompletionCode, behind: int) -> None:
    """Behind the last mark skipped, in the direction of motion."""
    do(tape, C.SET_POSITION, 0, start)
    assert do(tape, C.SKIP_MARKS, count).code == code
    assert do(tape, C.GET_POSITION).position == behind


@pytest.mark.parametrize(
    "start, count, code, behind",
    [
        (0, 1, E.SUCCESS, 1), (0, 2, E.SUCCESS, 2), (0, 3, E.FILEMARK_DETECTED, 3), (6, 1, E.SUCCESS, 7),
        (6, 2, E.NO_DATA_DETECTED, 7), (5, -2, E.SUCCESS, 3), (5, -3, E.FILEMARK_DETECTED, 2),
        (1, -2, E.BEGINNING_OF_MEDIA, 0),
    ],
)  # fmt: skip
def test_skipping_blocks(tape: Tape, start: int, count: int, code: CompletionCode, behind: int) -> None:
    do(tape, C.SET_POSITION, 0, start)
    assert do(tape, C.SKIP_BLOCKS, count).code == code
    assert do(tape, C.GET_POSITION).position == behind


def test_a_position_returned_can_be_gone_to_again(tape: Tape) -> None:
    do(tape, C.SKIP_MARKS, 1)
    place = do(tape, C.GET_POSITION).position
    do(tape, C.REWIND)
    assert do(tape, C.GET_POSITION).position == 0
    assert do(tape, C.SET_POSITION, 0, place) == Outcome(E.SUCCESS, 0, place)
    assert read(tape, BLOCK)[1] == block(2)
    assert do(tape, C.SET_POSITION, 0, 99) == Outcome(E.NO_DATA_DETECTED, 0, 7)


@pytest.mark.parametrize("code", [C.WRITE, C.WRITE_MARK])
def test_writing_ends_the_data(tape: Tape, code: CommandCode) -> None:
    do(tape, C.SET_POSITION, 0, 1)
    if code == C.WRITE:
        write(tape, block(9))
        assert tape.loaded.files() == [block(0) + block(9)]
    else:
        do(tape, C.WRITE_MARK)
        assert tape.loaded.files() == [block(0), b""]
    assert read(tape, BLOCK)[0].code == E.NO_DATA_DETECTED


def test_a_cartridge_is_its_file(tape: Tape) -> None:
    do(tape, C.FLUSH)
    again = Cartridge(tape.loaded.path)
    assert again.files() == tape.loaded.files() == [block(0) + block(1), block(2) + block(3), block(4)]
    assert again.used == tape.loaded.used == 5 * BLOCK + 2 * MARK_SIZE
    again.close()


def test_another_block_size_is_refused(tape: Tape) -> None:
    tape.block_size = 1024
    assert write(tape, block(1)).code == E.INVALID_BLOCK_LENGTH


# ---- media ends (7.5)


def test_in_the_warning_zone_writes_are_stored_and_say_so(tmp_path: Path) -> None:
    tape = Tape([Cartridge(tmp_path / "tape", Zone(8 * BLOCK, 4 * BLOCK))])
    assert write(tape, block(1, 4 * BLOCK)) == Outcome(E.SUCCESS, 4 * BLOCK)
    assert write(tape, block(2, 2 * BLOCK)) == Outcome(E.END_OF_MEDIA, 2 * BLOCK)
    assert do(tape, C.WRITE_MARK).code == E.END_OF_MEDIA
    assert write(tape, block(3, 2 * BLOCK)) == Outcome(E.EOM_OVERFLOW, BLOCK)
    assert do(tape, C.WRITE_MARK).code == E.EOM_OVERFLOW
    assert tape.loaded.files() == [block(1, 4 * BLOCK) + block(2, 2 * BLOCK), block(3)]
    tape.close()


@pytest.mark.parametrize("kind", [Tape, Disk, Pipe])
def test_a_short_write_at_the_border(kind: type, tmp_path: Path) -> None:
    zone, paths = Zone(8 * BLOCK, 4 * BLOCK, short=True), [tmp_path / "a", tmp_path / "b"]
    medium = Tape([Cartridge(paths[0], zone)]) if kind is Tape else kind(paths, [zone, Zone()])
    assert write(medium, block(1, 6 * BLOCK)) == Outcome(E.END_OF_MEDIA, 4 * BLOCK)
    assert write(medium, block(1, 2 * BLOCK), 4 * BLOCK) == Outcome(E.END_OF_MEDIA, 2 * BLOCK)
    medium.close()


@pytest.mark.parametrize("kind", [Disk, Pipe])
def test_a_full_disk_that_cannot_be_changed(kind: type, tmp_path: Path) -> None:
    medium = kind([tmp_path / "full"], [Zone(2 * BLOCK)])
    assert write(medium, block(1, 2 * BLOCK)) == Outcome(E.SUCCESS, 2 * BLOCK)
    assert write(medium, block(1), 2 * BLOCK) == Outcome(E.DISK_FULL)
    medium.close()


@pytest.mark.parametrize("kind", ["tape", "disk", "pipe"])
def test_load_puts_in_the_next_medium(kind: str, tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    medium = {"tape": lambda: Tape(map(Cartridge, paths)), "disk": lambda: Disk(paths), "pipe": lambda: Pipe(paths)}[
        kind
    ]()
    write(medium, block(1, 2 * BLOCK))
    assert do(medium, C.LOAD).code == E.SUCCESS
    assert read(medium, BLOCK)[0].count == 0
    write(medium, block(2))
    assert do(medium, C.LOAD).code == E.NO_MEDIA_IN_DRIVE
    medium.close()
    assert [path.stat().st_size > BLOCK for path in paths] == [True, kind == "tape"]


# ---- the random-access file


def test_flush_is_the_end_of_the_file(tmp_path: Path) -> None:
    """7.4: a shorter backup over a longer file."""
    path = tmp_path / "disk"
    path.write_bytes(block(7, 10 * BLOCK))
    disk = Disk([path])
    do(disk, C.FLUSH)
    assert path.stat().st_size == 10 * BLOCK, "nothing was written"
    write(disk, block(1), 3 * BLOCK)
    write(disk, block(2), BLOCK)
    do(disk, C.FLUSH)
    assert path.read_bytes() == block(7) + block(2)
    disk.close()


def test_positions_are_bytes_from_where_whence_says(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(block(7, 10 * BLOCK))
    disk = Disk([path])
    minus = 2**64 - BLOCK
    assert do(disk, C.SET_POSITION, Whence.END, 0).position == 10 * BLOCK
    assert do(disk, C.SET_POSITION, Whence.END, minus).position == 9 * BLOCK
    assert do(disk, C.SET_POSITION, Whence.CURRENT, minus).position == 8 * BLOCK
    assert do(disk, C.SET_POSITION, Whence.BEGINNING, BLOCK).position == BLOCK
    assert do(disk, C.GET_POSITION).position == BLOCK
    assert do(disk, C.SET_POSITION, Whence.BEGINNING, minus) == Outcome(E.BEGINNING_OF_MEDIA, 0, BLOCK)
    assert do(disk, C.SET_POSITION, 3, 0).code == E.INVALID_PARAMETER
    read(disk, BLOCK, 4 * BLOCK)
    assert do(disk, C.GET_POSITION).position == 5 * BLOCK
    disk.close()


# ---- through both halves


def test_served_through_the_client_half(tmp_path: Path) -> None:
    """Counts and positions reach the server, and what is no success stops the device until it is cleared (6.4)."""
    tape = Tape([Cartridge(tmp_path / "tape")])
    with active(features=tape.features) as pair:
        buffer = pair.buffer(4 * BLOCK)

        def send(code: CommandCode, size: int = 0, position: int = 0) -> tuple[int, int, int]:
            data = buffer if code in (C.READ, C.WRITE) else None
            future = pair.device.send_command(code, data, size=size, position=position)
            answer(tape, pair.reader.get_command(10))
            return tuple(future.result(10))  # type: ignore[return-value]

        with memoryview(buffer) as view:
            view[:] = block(5, 4 * BLOCK)
        assert send(C.WRITE, 2 * BLOCK) == (E.SUCCESS, 2 * BLOCK, 0)
        assert send(C.WRITE_MARK)[0] == E.SUCCESS
        assert send(C.GET_POSITION) == (E.SUCCESS, 0, 3)
        assert send(C.SKIP_MARKS, -1)[0] == E.SUCCESS
        assert send(C.SET_POSITION, 0, 1) == (E.SUCCESS, 0, 1)
        with memoryview(buffer) as view:
            view[:] = bytes(4 * BLOCK)
        assert send(C.READ, 4 * BLOCK) == (E.FILEMARK_DETECTED, BLOCK, 0)
        with memoryview(buffer) as view:
            assert view[: 2 * BLOCK] == block(5) + bytes(BLOCK)
        with pytest.raises(VDIOError):
            pair.device.send_command(C.GET_POSITION)
        assert send(C.CLEAR_ERROR)[0] == E.SUCCESS
        assert send(C.GET_POSITION)[2] == 3
    tape.close()
