"""Backup sets that go on from one medium to the next (section 7.5), on the reference media."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from device_statements import Shelf, failure, run
from media import Client, Disk, Medium, Outcome, Pipe, Tape, Zone

from vdi_ext import CommandCode, CompletionCode, Feature
from vdi_ext.engine import Engine, Synthetic

C, E = CommandCode, CompletionCode
REMOVABLE = ["pipe, removable", "tape", "disk, removable"]
BLOCK = 512


@pytest.fixture
def make(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


@pytest.fixture
def engine() -> Engine:
    return Engine({"db1": Synthetic(3_000_000, 1), "db2": Synthetic(3_000_000, 2)})


def zones(capacity: int, warning: int, count: int = 6, *, short: bool = False) -> list[Zone]:
    """Media of which each but the last has an end."""
    return [*(Zone(capacity, warning, short) for _ in range(count - 1)), Zone()]


def used(medium: Medium) -> int:
    """Volumes that the medium went through."""
    return medium.codes().count(C.LOAD) + 1


@pytest.mark.parametrize("kind", REMOVABLE)
@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("capacity", [700_000, 1_000_000, 1_310_720])
@pytest.mark.parametrize("options", ["", "CHECKSUM, BLOCKSIZE = 4096, MAXTRANSFERSIZE = 65536, BUFFERCOUNT = 8"])
def test_a_set_on_several_volumes(
    engine: Engine, make: Shelf, kind: str, short: bool, capacity: int, options: str
) -> None:
    capacity = capacity // 4096 * 4096
    warning = 400_000 // 4096 * 4096
    with_options = f" WITH {options}" if options else ""
    medium = make(kind, zones=zones(capacity, warning, short=short))
    run(engine, [medium], f"BACKUP DATABASE db1{with_options}", eom_warning_size=warning)
    assert used(medium) > 2
    warned = [entry for entry in medium.log if entry.outcome.code == E.END_OF_MEDIA]
    assert warned
    if short:
        assert any(entry.code == C.WRITE and entry.outcome.count < entry.size for entry in warned), "a short write"
    assert run(engine, [make(kind, zones=zones(capacity, warning))], f"RESTORE DATABASE db1{with_options}")[
        -1
    ].number == 3014


@pytest.mark.parametrize("kind", REMOVABLE)
def test_stripes_change_their_volumes_by_themselves(engine: Engine, make: Shelf, kind: str) -> None:
    def media() -> list[Medium]:
        return [make(kind, f"m{number}", zones(300_000 + 65536 * number, 150_000)) for number in range(3)]

    written = media()
    run(engine, written, "BACKUP DATABASE db1 WITH MAXTRANSFERSIZE = 65536", eom_warning_size=150_000)
    assert all(used(medium) > 1 for medium in written)
    assert run(engine, media(), "RESTORE DATABASE db1")[-1].number == 3014


def test_what_is_on_the_cartridges(engine: Engine, make: Shelf) -> None:
    """As Microsoft Tape Format has it: filemark, EOTM, filemark; then a label that counts, and the set again."""
    tape = make("tape", zones=zones(1_000_000, 400_000))
    assert isinstance(tape, Tape)
    run(engine, [tape], "BACKUP DATABASE db1", eom_warning_size=400_000)
    tape = make("tape", zones=zones(1_000_000, 400_000))
    contents = [cartridge.files() for cartridge in tape.cartridges if len(cartridge)]
    tape.close()
    assert len(contents) > 2
    for number, files in enumerate(contents):
        label = files[0]
        attributes, = struct.unpack_from("<I", label, 4)
        sequence, soft = struct.unpack_from("<H", label, 60)[0], struct.unpack_from("<H", label, 64)[0]
        assert (label[:4], sequence, soft) == (b"TAPE", number + 1, 0)
        assert bool(attributes & 1) == (number > 0), "a continuation says that it is one"
        assert files[1][:4] == b"SSET"
        assert bool(struct.unpack_from("<I", files[1], 4)[0] & 1) == (number > 0)
        assert files[-1] == b"", "behind the last filemark is nothing"
        if number < len(contents) - 1:
            assert files[-2][:4] == b"EOTM" and len(files[-2]) == 1024
        else:
            assert files[-2][-1024:-1020] == b"ESET"
        # SSET says where it is, in the device's own addresses: behind label and filemark.
        assert struct.unpack_from("<Q", files[1], 80)[0] == len(label) // BLOCK + 1


@pytest.mark.parametrize("kind", REMOVABLE)
def test_no_more_is_on_its_way_than_the_zone_holds(engine: Engine, make: Shelf, kind: str) -> None:
    """The zone is as large as announced, and nothing is refused although eight buffers could have been sent."""
    warning = 2 * 65536 + 4 * 1024
    medium = make(kind, zones=zones(10 * 65536, warning, 8))
    run(
        engine, [medium], "BACKUP DATABASE db1 WITH MAXTRANSFERSIZE = 65536, BUFFERCOUNT = 16",
        eom_warning_size=warning,
    )  # fmt: skip
    assert used(medium) > 3
    assert not any(entry.outcome.code in (E.EOM_OVERFLOW, E.DISK_FULL) for entry in medium.log)


@pytest.mark.parametrize("kind", REMOVABLE)
def test_a_device_that_cannot_take_the_queue_fails_the_backup(engine: Engine, make: Shelf, kind: str) -> None:
    medium = make(kind, zones=zones(1_000_000, 512))
    error = failure(engine, [medium], "BACKUP DATABASE db1")
    assert error.number == 3202


@pytest.mark.parametrize("kind", REMOVABLE)
def test_no_further_medium(engine: Engine, make: Shelf, kind: str) -> None:
    medium = make(kind, zones=[Zone(1_000_000, 400_000)])
    error = failure(engine, [medium], "BACKUP DATABASE db1", eom_warning_size=400_000)
    assert error.number == 3202 and "1112" in error.messages[0].text
    assert medium.codes()[-1] == C.LOAD
    assert any("Load failure" in str(entry) for entry in engine.error_log)


@pytest.mark.parametrize("kind", REMOVABLE)
def test_the_wrong_volume_on_restore(engine: Engine, make: Shelf, kind: str) -> None:
    made = make(kind, zones=zones(1_000_000, 400_000, 4))
    run(engine, [made], "BACKUP DATABASE db1", eom_warning_size=400_000)
    other = make(kind, "other", zones=zones(1_000_000, 400_000, 4))
    run(engine, [other], "BACKUP DATABASE db1", eom_warning_size=400_000)

    def order(*numbers: int, others: tuple[int, ...] = ()) -> Medium:
        medium = make(kind, zones=zones(1_000_000, 400_000, 4))
        foreign = make(kind, "other", zones=zones(1_000_000, 400_000, 4))
        attribute = "cartridges" if kind == "tape" else "paths"
        items, alien = getattr(medium, attribute), getattr(foreign, attribute)
        chosen = [alien[n] if n in others else items[n] for n in numbers]
        for unused in (*items, *alien):
            if kind == "tape" and unused not in chosen:
                unused.close()
        foreign.cartridges = [] if isinstance(foreign, Tape) else None  # type: ignore[attr-defined]
        if not isinstance(foreign, Tape):
            foreign.close()
        setattr(medium, attribute, chosen)
        if isinstance(medium, Disk | Pipe):
            medium.close()
            medium._fd = medium._open()
        return medium

    assert failure(engine, [order(0, 2, 1)], "RESTORE DATABASE db1").number == 3247
    assert failure(engine, [order(0, 1, 2, others=(1,))], "RESTORE DATABASE db1").number == 3258
    assert failure(engine, [order(1, 2, 3)], "RESTORE DATABASE db1").number == 3249
    missing = failure(engine, [order(0, 1)], "RESTORE DATABASE db1")
    assert missing.number == 3203 and "1112" in missing.messages[0].text
    assert run(engine, [order(0, 1, 2, 3)], "RESTORE DATABASE db1")[-1].number == 3014


@pytest.mark.parametrize("kind", ["tape", "disk, removable"])
def test_volumes_that_are_still_wanted_are_not_overwritten(engine: Engine, make: Shelf, kind: str) -> None:
    made = make(kind, zones=zones(1_000_000, 400_000, 4))
    run(engine, [made], "BACKUP DATABASE db1", eom_warning_size=400_000)

    def swapped() -> Medium:
        """The next volume is one that a set is on already."""
        medium = make(kind, "fresh", zones=zones(1_000_000, 400_000, 2))
        wanted = make(kind, zones=zones(1_000_000, 400_000, 4))
        if isinstance(medium, Tape) and isinstance(wanted, Tape):
            for unused in (medium.cartridges[1], *wanted.cartridges[:1], *wanted.cartridges[2:]):
                unused.close()
            medium.cartridges[1] = wanted.cartridges[1]
        elif isinstance(medium, Disk) and isinstance(wanted, Disk):
            medium.paths[1] = wanted.paths[1]
            wanted.close()
        return medium

    assert failure(engine, [swapped()], "BACKUP DATABASE db2", eom_warning_size=400_000).number == 3258
    run(engine, [make(kind, zones=zones(1_000_000, 400_000, 4))], "RESTORE DATABASE db1")
    # FORMAT and INIT say that what the media hold is not wanted.
    medium = swapped()
    medium_zones = [Zone(1_000_000, 400_000), Zone()]
    if isinstance(medium, Tape):
        for cartridge, zone in zip(medium.cartridges, medium_zones, strict=True):
            cartridge.zone = zone
    elif isinstance(medium, Disk):
        medium.zones = medium_zones
    run(engine, [medium], "BACKUP DATABASE db2 WITH FORMAT", eom_warning_size=400_000)


def test_the_same_volume_again(engine: Engine, make: Shelf) -> None:
    """A changer that puts the full cartridge in again."""
    tape = make("tape", zones=[Zone(1_000_000, 400_000)])
    assert isinstance(tape, Tape)
    tape.cartridges.append(tape.cartridges[0])
    error = failure(engine, [tape], "BACKUP DATABASE db1 WITH FORMAT", eom_warning_size=400_000)
    assert error.number == 3263
    assert "It is sequence number 1 of family 1 " in error.messages[0].text
    assert "Insert a new volume, or sequence number 2 of family 1" in error.messages[0].text


def test_appending_to_a_tape_that_goes_on(engine: Engine, make: Shelf) -> None:
    """The end of the data is on the last cartridge; the first one is in the drive."""
    run(
        engine, [make("tape", zones=zones(1_000_000, 400_000))], "BACKUP DATABASE db1", eom_warning_size=400_000
    )
    medium = make("tape", zones=zones(1_000_000, 400_000))
    run(engine, [medium], "BACKUP DATABASE db2", eom_warning_size=400_000)
    first_write = next(n for n, entry in enumerate(medium.log) if entry.code == C.WRITE)
    assert medium.codes()[:first_write].count(C.LOAD) >= 2
    assert run(engine, [make("tape", zones=zones(1_000_000, 400_000))], "RESTORE DATABASE db1")[-1].number == 3014


def test_appending_to_files_that_go_on_is_refused(engine: Engine, make: Shelf) -> None:
    kind = "disk, removable"
    run(engine, [make(kind, zones=zones(1_000_000, 400_000))], "BACKUP DATABASE db1", eom_warning_size=400_000)
    medium = make(kind, zones=zones(1_000_000, 400_000))
    # The first volume does not end with a backup set, and one behind it counts from elsewhere.
    assert failure(engine, [medium], "BACKUP DATABASE db2").number == 3266
    medium = make(kind, zones=zones(1_000_000, 400_000))
    assert isinstance(medium, Disk)
    medium.perform(C.LOAD, 0, 0, None)
    assert failure(engine, [medium], "BACKUP DATABASE db2").number == 3246
    medium = make(kind, zones=zones(1_000_000, 400_000))
    medium.perform(C.LOAD, 0, 0, None)
    assert failure(engine, [medium], "BACKUP DATABASE db2 WITH INIT").number == 3247


def test_a_database_that_fills_a_volume_to_its_last_byte() -> None:
    """Where nothing is left to be written, no further volume is asked for."""
    engine = Engine({"db": Synthetic(65536)})
    with Client([_Probe()]) as client:
        engine.execute(f"BACKUP DATABASE db TO {client.clauses}")
    size = client.media[0].size  # type: ignore[attr-defined]
    probe = _Probe(size)
    with Client([probe], eom_warning_size=65536) as client:
        engine.execute(f"BACKUP DATABASE db TO {client.clauses}")
    assert probe.codes()[-2:] == [C.CLEAR_ERROR, C.FLUSH] and C.LOAD not in probe.codes()


class _Probe(Medium):
    """A removable pipe to nowhere that warns with the last byte it can take."""

    def __init__(self, capacity: int = 1 << 60) -> None:
        super().__init__(Feature.REMOVABLE)
        self.capacity = capacity
        self.size = 0

    def _do(self, code, size, position, view):
        if code == C.WRITE:
            self.size += size
            return Outcome(E.END_OF_MEDIA if self.size >= self.capacity else E.SUCCESS, size)
        if code == C.FLUSH:
            return Outcome()
        return super()._do(code, size, position, view)


@pytest.mark.parametrize("kind", REMOVABLE)
@pytest.mark.parametrize("short", [False, True])
def test_the_end_comes_anywhere(make: Shelf, kind: str, short: bool) -> None:
    """The warning begins all over the set: in its first blocks, in pages, at filemarks, at the very end."""
    engine = Engine({"db": Synthetic(300_000)})
    changed = 0
    options = "MAXTRANSFERSIZE = 65536, BUFFERCOUNT = 1"
    for border in [*range(2048, 12_000, 1024), *range(13_000, 325_000, 19_968), *range(330_000, 350_000, 1024)]:
        border = border // BLOCK * BLOCK
        name = f"border {border}"

        def media(border: int = border, name: str = name) -> Medium:
            return make(kind, name, [Zone(border + 81_920, 81_920, short), Zone(), Zone()])

        medium = media()
        run(engine, [medium], f"BACKUP DATABASE db WITH {options}", eom_warning_size=81_920)
        changed += used(medium) - 1
        assert run(engine, [media()], f"RESTORE DATABASE db WITH {options}")[-1].number == 3014, border
        if kind == "tape":  # and the end of the set is found wherever it is
            run(engine, [media()], "BACKUP DATABASE db", eom_warning_size=81_920)
    assert changed > 20


@pytest.mark.parametrize("kind", REMOVABLE)
@pytest.mark.parametrize("ahead", [2, 5])
def test_clients_that_fetch_several_commands(engine: Engine, make: Shelf, kind: str, ahead: int) -> None:
    """All that is pending when the warning comes is stored; reads that went beyond a filemark are taken back."""
    options = "MAXTRANSFERSIZE = 65536, BUFFERCOUNT = 6"
    medium = make(kind, zones=zones(1_000_000, 500_000))
    run(engine, [medium], f"BACKUP DATABASE db1 WITH {options}", ahead=ahead, eom_warning_size=500_000)
    assert used(medium) > 3
    medium = make(kind, zones=zones(1_000_000, 500_000))
    assert run(engine, [medium], f"RESTORE DATABASE db1 WITH {options}", ahead=ahead)[-1].number == 3014


@pytest.mark.parametrize("kind", REMOVABLE)
def test_looking_at_sets_that_go_on(engine: Engine, make: Shelf, kind: str) -> None:
    """What nobody wants is passed over, but not past the end of a volume."""

    def medium() -> Medium:
        return make(kind, zones=zones(1_000_000, 400_000))

    run(engine, [medium()], "BACKUP DATABASE db1", eom_warning_size=400_000)
    sets = 1
    if kind == "tape":
        run(engine, [medium()], "BACKUP DATABASE db2", eom_warning_size=400_000)
        sets = 2
    looked = medium()
    with Client([looked]) as client:
        result = engine.execute(f"RESTORE HEADERONLY FROM {client.clauses}")
    assert result.messages == ()
    assert used(looked) >= 3
    run(engine, [medium()], "RESTORE VERIFYONLY")
    assert run(engine, [medium()], f"RESTORE DATABASE db{sets} WITH FILE = {sets}")[-1].number == 3014
    assert failure(engine, [medium()], f"RESTORE DATABASE db1 WITH FILE = {sets + 1}").number == 4038


def test_a_second_set_that_goes_on(engine: Engine, make: Shelf) -> None:
    """The first set is whole on the first volume; the second one begins there."""
    for kind in ("tape", "disk, removable"):
        ends = [Zone(4_500_000, 400_000), Zone(4_500_000, 400_000), Zone()]
        run(engine, [make(kind, kind, ends)], "BACKUP DATABASE db1", eom_warning_size=400_000)
        ends = [Zone(4_500_000, 400_000), Zone(4_500_000, 400_000), Zone()]
        medium = make(kind, kind, ends)
        run(engine, [medium], "BACKUP DATABASE db2", eom_warning_size=400_000)
        assert used(medium) == 2
        for number in (2, 1):
            medium = make(kind, kind, ends)
            assert run(engine, [medium], f"RESTORE DATABASE db{number} WITH FILE = {number}")[-1].number == 3014
            assert used(medium) == number
