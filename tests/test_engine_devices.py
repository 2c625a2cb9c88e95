"""The stand-in uses each kind of device as section 7 describes, on the reference media."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from device_statements import Shelf, failure, run
from media import Client, Medium, Tape, Zone

from vdi_ext import CommandCode, CompletionCode, Feature
from vdi_ext.engine import Engine, Replay, SqlError, Synthetic

C, E = CommandCode, CompletionCode
SIZE = 3_000_000
KINDS = ["pipe", "pipe, removable", "tape", "disk", "disk, removable"]
POSITIONED = ["tape", "disk", "disk, removable"]

@pytest.fixture
def make(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


@pytest.fixture
def engine() -> Engine:
    return Engine({f"db{number}": Synthetic(SIZE, number) for number in range(1, 5)})


# ---- each kind, there and back


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("devices", [1, 3])
@pytest.mark.parametrize("options", ["", "BLOCKSIZE = 65536, CHECKSUM"])
def test_there_and_back(engine: Engine, make: Shelf, kind: str, devices: int, options: str) -> None:
    media = [make(kind, f"m{number}") for number in range(devices)]
    with_options = f" WITH {options}" if options else ""
    messages = run(engine, media, f"BACKUP DATABASE db1{with_options}", Feature.REQUEST_COMPLETE)
    assert messages[-1].number == 3014
    for medium in media:
        assert medium.codes()[-2:] == [C.FLUSH, C.COMPLETE]
    media = [make(kind, f"m{number}") for number in range(devices)]
    assert run(engine, media, f"RESTORE DATABASE db1{with_options}")[-1].number == 3014


@pytest.mark.parametrize("kind", POSITIONED)
def test_backup_sets_are_appended_and_found_again(engine: Engine, make: Shelf, kind: str) -> None:
    for number in (1, 2, 3):
        run(engine, [make(kind)], f"BACKUP DATABASE db{number}")
    for number in (3, 1, 2):
        messages = run(engine, [make(kind)], f"RESTORE DATABASE db{number} WITH FILE = {number}")
        assert messages[-1].number == 3014
    assert failure(engine, [make(kind)], "RESTORE DATABASE db1 WITH FILE = 4").messages[0].number == 4038
    # Without FILE it is the first one.
    assert run(engine, [make(kind)], "RESTORE DATABASE db1")[-1].number == 3014


@pytest.mark.parametrize("kind", POSITIONED)
@pytest.mark.parametrize("option", ["INIT", "FORMAT"])
def test_overwriting(engine: Engine, make: Shelf, kind: str, option: str) -> None:
    for number in (1, 2):
        run(engine, [make(kind)], f"BACKUP DATABASE db{number} WITH MEDIANAME = 'first'")
    run(engine, [make(kind)], f"BACKUP DATABASE db3 WITH {option}")
    assert run(engine, [make(kind)], "RESTORE DATABASE db3")[-1].number == 3014
    assert failure(engine, [make(kind)], "RESTORE DATABASE db3 WITH FILE = 2").messages[0].number == 4038
    # INIT keeps the label, FORMAT writes a new one.
    assert (b"f\0i\0r\0s\0t\0" in beginning(make(kind))) == (option == "INIT")


def beginning(medium: Medium) -> bytes:
    data = bytearray(1024)
    medium.perform(C.READ, len(data), 0, memoryview(data))
    medium.close()
    return bytes(data)


def test_many_sets_are_more_than_one_filemark_can_name(engine: Engine, make: Shelf) -> None:
    """A filemark of 512 bytes names 55 others; each set adds two."""
    engine = Engine({"db": Synthetic(65536)})
    for _ in range(30):
        run(engine, [make("disk")], "BACKUP DATABASE db")
    for number in (1, 2, 15, 29, 30):
        assert run(engine, [make("disk")], f"RESTORE DATABASE db WITH FILE = {number}")[-1].number == 3014
    assert failure(engine, [make("disk")], "RESTORE DATABASE db WITH FILE = 31").messages[0].number == 4038


@pytest.mark.parametrize("kind", POSITIONED)
def test_a_shorter_backup_over_a_longer_one_ends_the_medium(make: Shelf, kind: str) -> None:
    engine = Engine({"long": Synthetic(SIZE), "short": Synthetic(65536)})
    run(engine, [make(kind)], "BACKUP DATABASE long")
    run(engine, [make(kind)], "BACKUP DATABASE short WITH INIT")
    run(engine, [make(kind)], "BACKUP DATABASE long")
    assert run(engine, [make(kind)], "RESTORE DATABASE short")[-1].number == 3014
    assert run(engine, [make(kind)], "RESTORE DATABASE long WITH FILE = 2")[-1].number == 3014


# ---- what is sent to whom (7.3)

ALWAYS = {C.READ, C.WRITE, C.CLEAR_ERROR, C.FLUSH, C.COMPLETE, C.DISCARD}
SNAPSHOTS = {C.SNAPSHOT, C.MOUNT_SNAPSHOT, C.PREPARE_TO_FREEZE}  # sent to pipes only; see test_snapshot_engine
SENT = {
    "pipe": ALWAYS,
    "pipe, removable": ALWAYS | {C.LOAD},
    "tape": ALWAYS | {
        C.LOAD, C.REWIND, C.WRITE_MARK, C.SKIP_MARKS, C.SKIP_BLOCKS, C.GET_POSITION, C.SET_POSITION,
    },
    "disk": ALWAYS | {C.GET_POSITION, C.SET_POSITION},
    "disk, removable": ALWAYS | {C.GET_POSITION, C.SET_POSITION, C.LOAD},
}  # fmt: skip
NEVER = {C.FILE_INFO_BEGIN, C.FILE_INFO_END, C.GET_ERROR}  # documented nowhere (Q17)


def test_every_command_is_sent_to_somebody() -> None:
    assert set.union(*SENT.values()) | SNAPSHOTS == set(C) - NEVER


@pytest.mark.parametrize("kind", KINDS)
def test_which_commands_are_sent(make: Shelf, kind: str) -> None:
    """Over everything that a device can be used for: full, overwritten, appended to, read, changed, given up."""
    engine = Engine({"db": Synthetic(1_000_000)})
    media: list[Medium] = []

    def medium(name: str = "medium", zones: list[Zone] | None = None) -> list[Medium]:
        media.append(make(kind, name, zones, discard=True))
        return media[-1:]

    run(engine, medium(), "BACKUP DATABASE db", Feature.REQUEST_COMPLETE)
    if kind in POSITIONED:
        run(engine, medium(), "BACKUP DATABASE db")
        run(engine, medium(), "RESTORE DATABASE db WITH FILE = 2")
    run(engine, medium(), "RESTORE HEADERONLY")
    run(engine, medium(), "RESTORE VERIFYONLY")
    if kind not in ("pipe", "disk"):
        ends = [Zone(600_000, 300_000), Zone()]
        run(engine, medium("two", ends), "BACKUP DATABASE db", eom_warning_size=300_000)
        run(engine, medium("two", ends), "RESTORE DATABASE db")
    failure(engine, medium("full", [Zone(100_000)]), "BACKUP DATABASE db")
    # A pipe is read to its end only by a statement that looks for further sets; that is where ClearError comes from.
    assert {code for one in media for code in one.codes()} == SENT[kind]
    assert not any(entry.outcome.code == E.NOT_SUPPORTED for one in media for entry in one.log)


def sequence(medium: Medium) -> list[tuple[CommandCode, int]]:
    """Commands that are no data, with their counts; runs of data as one."""
    found: list[tuple[CommandCode, int]] = []
    for entry in medium.log:
        size = 0 if entry.code in (C.READ, C.WRITE) else entry.size
        size -= 1 << 32 if size >> 31 else 0
        step = (CommandCode(entry.code), size)
        if step[0] not in (C.READ, C.WRITE) or found[-1:] != [step]:
            found.append(step)
    return found


FAR = 0x7FFFFFFF
LABEL = [(C.REWIND, 0), (C.READ, 0), (C.CLEAR_ERROR, 0)]  # up to the filemark behind it
SET = [(C.WRITE, 0), (C.WRITE_MARK, 0), (C.WRITE, 0), (C.WRITE_MARK, 0)]


def test_what_a_tape_is_asked_to_do(engine: Engine, make: Shelf) -> None:
    new = make("tape")
    run(engine, [new], "BACKUP DATABASE db1 WITH FORMAT")
    assert sequence(new) == [
        (C.REWIND, 0), (C.WRITE, 0), (C.WRITE_MARK, 0), (C.GET_POSITION, 0), *SET, (C.REWIND, 0), (C.FLUSH, 0),
    ]  # fmt: skip
    more = make("tape")
    run(engine, [more], "BACKUP DATABASE db2 WITH NOREWIND")
    assert sequence(more) == [
        *LABEL, (C.GET_POSITION, 0),
        (C.SKIP_MARKS, FAR), (C.CLEAR_ERROR, 0), (C.GET_POSITION, 0),
        (C.SKIP_MARKS, -2), (C.SKIP_MARKS, 1), (C.READ, 0), (C.SKIP_MARKS, 1), (C.GET_POSITION, 0),
        *SET, (C.FLUSH, 0),
    ]  # fmt: skip
    second = make("tape")
    run(engine, [second], "RESTORE DATABASE db2 WITH FILE = 2")
    assert sequence(second)[:8] == [
        *LABEL, (C.SKIP_MARKS, 2), (C.GET_POSITION, 0), (C.READ, 0), (C.SET_POSITION, 0), (C.READ, 0),
    ]  # fmt: skip
    assert sequence(second)[-1] == (C.REWIND, 0)
    blank = make("tape", "blank")
    run(engine, [blank], "BACKUP DATABASE db1")
    assert sequence(blank)[:6] == [*LABEL, (C.REWIND, 0), (C.WRITE, 0), (C.WRITE_MARK, 0)]


def test_what_a_random_access_device_is_asked_to_do(engine: Engine, make: Shelf) -> None:
    new = make("disk")
    run(engine, [new], "BACKUP DATABASE db1 WITH FORMAT")
    assert sequence(new) == [(C.WRITE, 0), (C.GET_POSITION, 0), (C.WRITE, 0), (C.FLUSH, 0)]
    more = make("disk")
    run(engine, [more], "BACKUP DATABASE db2")
    assert sequence(more) == [
        (C.READ, 0), (C.SET_POSITION, 2), (C.READ, 0), (C.SET_POSITION, 0), (C.GET_POSITION, 0), (C.WRITE, 0),
        (C.FLUSH, 0),
    ]  # fmt: skip
    assert more.log[0].position == 0, "what is there is validated first"
    writes = [entry for entry in more.log if entry.code == C.WRITE]
    place = next(entry.outcome.position for entry in more.log if entry.code == C.SET_POSITION)
    for entry in writes:
        assert entry.position == place
        place += entry.size


def test_headers_are_read_without_the_data_between_them(engine: Engine, make: Shelf) -> None:
    for kind in ("tape", "disk"):
        run(engine, [make(kind, kind)], "BACKUP DATABASE db1")
        run(engine, [make(kind, kind)], "BACKUP DATABASE db2")
        medium = make(kind, kind)
        run(engine, [medium], "RESTORE HEADERONLY")
        assert sum(entry.outcome.count for entry in medium.log if entry.code == C.READ) < SIZE // 10
        if kind == "tape":
            assert medium.codes().count(C.SKIP_BLOCKS) == 2


@pytest.mark.parametrize("soft", [0, 4096])
def test_the_label_says_how_filemarks_are_kept(engine: Engine, make: Shelf, soft: int) -> None:
    """4.1: 0 where the device keeps them, else what the client said."""
    tape = make("tape")
    run(engine, [tape], "BACKUP DATABASE db1", soft_file_mark_block_size=soft)
    assert struct.unpack_from("<H", beginning(make("tape")), 64)[0] * 512 == soft
    assert run(engine, [make("tape")], "RESTORE DATABASE db1", soft_file_mark_block_size=soft)[-1].number == 3014


@pytest.mark.parametrize("kind", POSITIONED)
def test_the_set_says_where_it_is(engine: Engine, make: Shelf, kind: str) -> None:
    """7.4: what GetPosition returned before it goes into MTF's physical block address."""
    run(engine, [make(kind)], "BACKUP DATABASE db1")
    medium = make(kind)
    run(engine, [medium], "BACKUP DATABASE db2")
    told = [entry.outcome.position for entry in medium.log if entry.code == C.GET_POSITION][-1]
    again = make(kind)
    data = bytearray(1024)
    again.perform(C.SET_POSITION, 0, told, None)
    again.perform(C.READ, len(data), told, memoryview(data))
    again.close()
    assert data[:4] == b"SSET" and struct.unpack_from("<H", data, 62)[0] == 2
    assert struct.unpack_from("<Q", data, 80)[0] == told


@pytest.mark.parametrize("kind", KINDS)
def test_real_files_go_out_and_come_back_as_they_are(make: Shelf, bak: Path, kind: str, tmp_path: Path) -> None:
    path = bak / "22_full_compressed_2016.bak"
    engine = Engine({"real": Replay((str(path),))})
    run(engine, [make(kind)], "BACKUP DATABASE real WITH MAXTRANSFERSIZE = 65536")
    assert run(engine, [make(kind)], "RESTORE DATABASE real")[-1].number == 3014
    if kind.startswith("disk"):
        assert (tmp_path / "medium 0").read_bytes() == path.read_bytes()


# ---- media that are not what the statement needs


def numbers(error: SqlError) -> list[int]:
    return [message.number for message in error.messages]


@pytest.mark.parametrize("kind", POSITIONED)
def test_what_cannot_be_written_to_is_left_as_it_is(engine: Engine, make: Shelf, kind: str, tmp_path: Path) -> None:
    def content() -> list[bytes]:
        return [path.read_bytes() for path in sorted(tmp_path.iterdir())]

    run(engine, [make(kind)], "BACKUP DATABASE db1 WITH MEDIANAME = 'one'")
    before = content()
    cases = [
        ([make(kind)], "BACKUP DATABASE db1 WITH MEDIANAME = 'two'", 4037),
        ([make(kind), make(kind, "new")], "BACKUP DATABASE db1", 3258),
        ([make(kind), make(kind)], "BACKUP DATABASE db1 WITH INIT", 3231),
    ]
    if kind != "tape":  # a tape cannot even read blocks of another size
        cases.append(([make(kind)], "BACKUP DATABASE db1 WITH BLOCKSIZE = 4096", 3268))
    for media, statement, number in cases:
        assert numbers(failure(engine, media, statement)) == [number, 3013]
        assert all(C.WRITE not in medium.codes() for medium in media)
    assert [data for data in content() if data] == [data for data in before if data]
    # SKIP looks at no name.
    run(engine, [make(kind)], "BACKUP DATABASE db1 WITH MEDIANAME = 'two', SKIP")


def test_a_tape_with_blocks_of_another_size(engine: Engine, make: Shelf) -> None:
    run(engine, [make("tape")], "BACKUP DATABASE db1 WITH BLOCKSIZE = 4096")
    error = failure(engine, [make("tape")], "BACKUP DATABASE db1")
    assert numbers(error) == [3203, 3013]
    assert "1106" in error.messages[0].text
    run(engine, [make("tape")], "BACKUP DATABASE db1 WITH FORMAT")


@pytest.mark.parametrize("kind", POSITIONED)
def test_media_with_something_else(engine: Engine, make: Shelf, kind: str) -> None:
    medium = make(kind)
    medium.perform(C.WRITE, 4096, 0, memoryview(b"nothing of ours " * 256))
    medium.close()
    for options in ("", " WITH INIT", " WITH INIT, SKIP"):
        assert numbers(failure(engine, [make(kind)], f"BACKUP DATABASE db1{options}")) == [3242, 3013]
    assert numbers(failure(engine, [make(kind)], "RESTORE DATABASE db1")) == [3242, 3013]
    run(engine, [make(kind)], "BACKUP DATABASE db1 WITH FORMAT")


@pytest.mark.parametrize("kind", POSITIONED)
def test_a_set_that_was_never_finished(engine: Engine, make: Shelf, kind: str) -> None:
    """Nothing is appended behind it; INIT begins again."""
    run(engine, [make(kind)], "BACKUP DATABASE db1")
    failure(engine, [make(kind, zones=[Zone(4_500_000)])], "BACKUP DATABASE db2")
    assert numbers(failure(engine, [make(kind)], "BACKUP DATABASE db3")) == [3266, 3013]
    assert run(engine, [make(kind)], "RESTORE DATABASE db1")[-1].number == 3014
    assert failure(engine, [make(kind)], "RESTORE DATABASE db2 WITH FILE = 2").messages[-1].number == 3013
    run(engine, [make(kind)], "BACKUP DATABASE db3 WITH INIT")
    assert run(engine, [make(kind)], "RESTORE DATABASE db3")[-1].number == 3014


@pytest.mark.parametrize("kind", POSITIONED)
def test_an_empty_medium_holds_no_backup(engine: Engine, make: Shelf, kind: str) -> None:
    assert numbers(failure(engine, [make(kind)], "RESTORE DATABASE db1")) == [3254, 3013]
    assert failure(engine, [make(kind)], "RESTORE DATABASE db1 WITH FILE = 2").messages[-1].number == 3013


@pytest.mark.parametrize("kind", POSITIONED)
def test_stripes_belong_together(engine: Engine, make: Shelf, kind: str) -> None:
    run(engine, [make(kind, "a"), make(kind, "b")], "BACKUP DATABASE db1")
    run(engine, [make(kind, "c"), make(kind, "d")], "BACKUP DATABASE db1")
    assert numbers(failure(engine, [make(kind, "a"), make(kind, "c")], "BACKUP DATABASE db1")) == [3258, 3013]
    assert numbers(failure(engine, [make(kind, "a"), make(kind, "a")], "BACKUP DATABASE db1")) == [3227, 3013]
    # In whichever order they are given, each family goes on where it was.
    run(engine, [make(kind, "b"), make(kind, "a")], "BACKUP DATABASE db2")
    media = [make(kind, "a"), make(kind, "b")]
    assert run(engine, media, "RESTORE DATABASE db2 WITH FILE = 2")[-1].number == 3014


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("discard", [False, True])
def test_what_was_given_up_is_discarded(engine: Engine, make: Shelf, kind: str, discard: bool) -> None:
    """Only by a client that understands it (C:2odv), and once for each device."""
    media = [make(kind, "a", [Zone(500_000)], discard), make(kind, "b", None, discard)]
    error = failure(engine, media, "BACKUP DATABASE db1 WITH MAXTRANSFERSIZE = 65536")
    assert error.number == 3202
    for medium in media:
        assert medium.codes().count(C.DISCARD) == discard
    assert C.FLUSH not in media[0].codes()


def test_a_tape_is_rewound_unless_it_shall_not_be(engine: Engine, make: Shelf) -> None:
    for statement in ("BACKUP DATABASE db1", "RESTORE DATABASE db1"):
        for option, rewound in (("", True), (" WITH REWIND", True), (" WITH NOREWIND", False)):
            medium = make("tape")
            run(engine, [medium], statement + option)
            assert (medium.codes()[-2 if statement.startswith("B") else -1] == C.REWIND) == rewound
            assert isinstance(medium, Tape) and (medium.place == 0) == rewound


@pytest.mark.parametrize("kind", POSITIONED)
def test_sets_of_every_kind_on_one_medium(make: Shelf, kind: str) -> None:
    engine = Engine({"db": Synthetic(SIZE, recovery_model="FULL")})
    differential = "BACKUP DATABASE db WITH DIFFERENTIAL"
    for statement in ("BACKUP DATABASE db", "BACKUP LOG db", differential, "BACKUP LOG db"):
        run(engine, [make(kind)], statement)
    run(engine, [make(kind)], "RESTORE DATABASE db WITH NORECOVERY, REPLACE")
    run(engine, [make(kind)], "RESTORE DATABASE db WITH FILE = 3, NORECOVERY")
    assert run(engine, [make(kind)], "RESTORE LOG db WITH FILE = 4")[-1].number == 3014


def test_a_snapshot_goes_to_no_tape(engine: Engine, make: Shelf) -> None:
    with Client([make("tape")]) as client:
        with pytest.raises(SqlError) as info:
            engine.execute(f"BACKUP DATABASE db1 TO {client.clauses} WITH SNAPSHOT")
        client.join()
        client.errors.clear()  # VD_E_ABORT: the configuration is refused
    assert info.value.number == 3261


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["HEADERONLY", "FILELISTONLY", "LABELONLY", "VERIFYONLY"])
def test_looking_at_what_is_there(engine: Engine, make: Shelf, kind: str, what: str) -> None:
    run(engine, [make(kind)], "BACKUP DATABASE db1 WITH CHECKSUM")
    medium = make(kind)
    run(engine, [medium], f"RESTORE {what}")
    assert C.WRITE not in medium.codes() and C.WRITE_MARK not in medium.codes()
