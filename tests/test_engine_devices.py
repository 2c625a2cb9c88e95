"""The stand-in uses each kind of device as section 7 describes, on the reference media."""

from __future__ import annotations

from pathlib import Path

import pytest
from device_statements import Shelf, failure, run
from media import Medium

from vdi_ext import CommandCode, CompletionCode, Feature
from vdi_ext.engine import Engine, Synthetic

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
