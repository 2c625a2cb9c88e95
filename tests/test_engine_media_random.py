"""What may go wrong with devices that are positioned: failing commands, clients that leave, damaged media."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

import pytest
from device_statements import Shelf, failure, run
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from media import Client, Medium, Outcome, Zone

from vdi_ext import CommandCode, CompletionCode, DeviceSetConfig, Feature
from vdi_ext.engine import Engine, SqlError, Synthetic
from vdi_ext.engine.steps import Answer, Drive, Kind, TransferError, kind_of, write_zone

C, E = CommandCode, CompletionCode
POSITIONED = ["tape", "disk", "disk, removable"]


@pytest.fixture
def make(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


@pytest.fixture
def engine() -> Engine:
    return Engine({"db": Synthetic(600_000)})


# ---- kinds


@pytest.mark.parametrize(
    "features, kind",
    [
        (0, "pipe"), (Feature.REMOVABLE, "pipe"), (Feature.LIKE_TAPE, "tape"), (Feature.LIKE_DISK, "disk"),
        (Feature.LIKE_DISK | Feature.REMOVABLE, "disk"), (Feature.LIKE_TAPE | Feature.DISCARD, "tape"),
        (Feature.LIKE_TAPE & ~Feature.REMOVABLE, None), (Feature.FILE_MARKS, None),
        (Feature.LIKE_TAPE | Feature.LIKE_DISK, None), (Feature.LIKE_DISK | Feature.REWIND, None),
        (Feature.POSITION, None), (Feature.VSS_WRITER, None), (Feature.ENUM_FROZEN_FILES, None),
        (Feature.REQUEST_COMPLETE | Feature.SNAPSHOT_PREPARE | Feature.LATCH_STATS, "pipe"),
    ],
)  # fmt: skip
def test_kinds_of_devices(features: int, kind: str | None) -> None:
    found = kind_of(DeviceSetConfig(features=Feature(features)))
    assert (found.name if found is not None else None) == kind
    if found is not None:
        assert found.removable == bool(features & Feature.REMOVABLE)
        assert found.discards == bool(features & Feature.DISCARD)


def test_what_may_be_on_its_way() -> None:
    assert write_zone(Kind("pipe", warning=1 << 20), 512) is None, "no medium to change"
    assert write_zone(Kind("tape", True), 512) is None, "no zone is known"
    assert write_zone(Kind("tape", True, warning=1 << 20), 512) == (1 << 20) - 4096
    assert write_zone(Kind("tape", True, warning=512), 512) == 0, "one write at a time"


def test_a_device_that_stores_nothing_twice_is_full() -> None:
    drive = Drive(Kind("tape", True), "one", 512)
    steps = drive.write(bytes(1024))
    assert steps.send(None).code == C.WRITE  # type: ignore[arg-type]
    assert steps.send(Answer(E.END_OF_MEDIA, 0)).code == C.CLEAR_ERROR
    assert steps.send(Answer()).size == 1024
    with pytest.raises(TransferError) as info:
        steps.send(Answer(E.END_OF_MEDIA, 0))
    assert (info.value.what, info.value.code) == ("write", E.END_OF_MEDIA)


def test_counts_beyond_what_was_asked_for_are_not_believed() -> None:
    for kind in (Kind("disk"), Kind("tape", True)):
        drive = Drive(kind, "one", 512)
        for steps in (drive.read(1024), drive.write(bytes(1024))):
            steps.send(None)  # type: ignore[arg-type]
            with pytest.raises(TransferError):
                steps.send(Answer(E.SUCCESS, 1536))


# ---- commands that fail


class Failing:
    """Completes the first command of a kind with an error, or aborts the set instead."""

    def __init__(self, medium: Medium, code: CommandCode) -> None:
        self.code = code
        self.client: Client | None = None
        self._do, self._done = medium._do, False
        medium._do = self  # type: ignore[method-assign, assignment]

    def __call__(self, code: CommandCode | int, size: int, position: int, view: memoryview | None) -> Outcome:
        if code == self.code and not self._done:
            self._done = True
            if self.client is None:
                return Outcome(E.IO_DEVICE)
            self.client.set.signal_abort("the client leaves")
        return self._do(code, size, position, view)


USED = [
    ("tape", "BACKUP DATABASE db", C.REWIND), ("tape", "BACKUP DATABASE db", C.READ),
    ("tape", "BACKUP DATABASE db", C.SKIP_MARKS), ("tape", "BACKUP DATABASE db", C.GET_POSITION),
    ("tape", "BACKUP DATABASE db", C.CLEAR_ERROR), ("tape", "BACKUP DATABASE db", C.WRITE),
    ("tape", "BACKUP DATABASE db", C.WRITE_MARK), ("tape", "BACKUP DATABASE db", C.FLUSH),
    ("tape", "RESTORE DATABASE db WITH FILE = 2", C.SKIP_MARKS), ("tape", "RESTORE DATABASE db", C.SET_POSITION),
    ("tape", "RESTORE DATABASE db", C.REWIND), ("tape", "RESTORE DATABASE db", C.CLEAR_ERROR),
    ("tape", "RESTORE HEADERONLY", C.SKIP_BLOCKS), ("disk", "BACKUP DATABASE db", C.READ),
    ("disk", "BACKUP DATABASE db", C.SET_POSITION), ("disk", "BACKUP DATABASE db", C.GET_POSITION),
    ("disk", "RESTORE DATABASE db WITH FILE = 2", C.SET_POSITION),
    ("disk, removable", "BACKUP DATABASE db", C.WRITE),
]  # fmt: skip


@pytest.mark.parametrize("kind, statement, code", USED)
def test_a_command_that_fails_ends_the_statement(
    engine: Engine, make: Shelf, kind: str, statement: str, code: CommandCode
) -> None:
    for _ in range(2):
        run(engine, [make(kind)], "BACKUP DATABASE db")
    medium = make(kind)
    Failing(medium, code)
    error = failure(engine, [medium], statement)
    assert error.number in (3202, 3203)
    assert "1117(The request could not be performed because of an I/O device error.)" in error.messages[0].text
    assert sum("18210" in str(entry) and "1117" in str(entry) for entry in engine.error_log) == 1


@pytest.mark.parametrize("kind, statement, code", USED)
def test_a_client_that_leaves_ends_the_statement(
    engine: Engine, make: Shelf, kind: str, statement: str, code: CommandCode
) -> None:
    for _ in range(2):
        run(engine, [make(kind)], "BACKUP DATABASE db")
    medium = make(kind)
    failing = Failing(medium, code)
    with Client([medium]) as client:
        failing.client = client
        head, _, options = statement.partition(" WITH ")
        joint = "TO" if statement.startswith("BACKUP") else "FROM"
        with pytest.raises(SqlError) as info:
            engine.execute(f"{head} {joint} {client.clauses}" + (f" WITH {options}" if options else ""))
        client.join()
        client.errors.clear()  # VD_E_ABORT, as it wanted
    assert info.value.number in (3202, 3203)
    assert "995" in info.value.messages[0].text


@pytest.mark.parametrize("code", [E.NOT_SUPPORTED, E.SUCCESS])
def test_a_random_access_device_need_not_know_its_position(engine: Engine, make: Shelf, code: CompletionCode) -> None:
    """7.3: only a tape must answer GetPosition."""
    for _ in range(2):
        medium = make("disk")
        do = medium._do

        def answer(what: int, *rest: object, do=do) -> Outcome:
            return Outcome(code) if what == C.GET_POSITION and code else do(what, *rest)

        medium._do = answer  # type: ignore[method-assign, assignment]
        run(engine, [medium], "BACKUP DATABASE db")
        assert C.GET_POSITION in medium.codes()
    assert run(engine, [make("disk")], "RESTORE DATABASE db WITH FILE = 2")[-1].number == 3014


@pytest.mark.parametrize("kind", ["pipe", "tape", "disk"])
def test_short_reads_are_asked_again(engine: Engine, make: Shelf, kind: str) -> None:
    """Q20: a short read that succeeded; on a random-access device with others behind it that know their place."""
    run(engine, [make(kind)], "BACKUP DATABASE db")
    medium = make(kind)
    do = medium._do

    def short(code: int, size: int, position: int, view: memoryview | None) -> Outcome:
        if code == C.READ and view is not None and size > 4096:
            return do(code, size // 2 // 512 * 512, position, view[: size // 2 // 512 * 512])
        return do(code, size, position, view)

    medium._do = short  # type: ignore[method-assign, assignment]
    options = "WITH MAXTRANSFERSIZE = 65536, BUFFERCOUNT = 6"
    assert run(engine, [medium], f"RESTORE DATABASE db {options}")[-1].number == 3014


# ---- damaged media


def damage(path: Path, choose: random.Random) -> None:
    """Change a few bytes where blocks of metadata are, or cut something off."""
    data = bytearray(path.read_bytes())
    for _ in range(choose.randint(1, 3)):
        if choose.random() < 0.2:
            del data[choose.randrange(1, len(data)) :]
        else:
            # The ends are where labels, filemarks and ends of sets are.
            near = choose.randrange(min(9000, len(data)))
            data[choose.choice([choose.randrange(len(data)), near, -1 - near])] ^= choose.choice([1, 0x80, 0xFF])
    path.write_bytes(data)


@pytest.mark.parametrize("seed", range(25))
def test_damaged_media_are_never_more_than_an_error(engine: Engine, tmp_path: Path, seed: int) -> None:
    choose = random.Random(seed)
    make = Shelf(tmp_path)
    for _ in range(2):
        run(engine, [make("disk")], "BACKUP DATABASE db")
    good = (tmp_path / "medium 0").read_bytes()
    for statement in (
        "BACKUP DATABASE db", "BACKUP DATABASE db WITH INIT", "RESTORE DATABASE db WITH FILE = 2, REPLACE",
        "RESTORE DATABASE db WITH REPLACE", "RESTORE HEADERONLY", "RESTORE LABELONLY",
        "RESTORE VERIFYONLY WITH FILE = 2",
    ):  # fmt: skip
        (tmp_path / "medium 0").write_bytes(good)
        damage(tmp_path / "medium 0", choose)
        try:
            run(engine, [make("disk")], statement)
        except SqlError as error:
            assert 3000 <= error.number < 5000
            continue
        # A backup that succeeded is there.
        if statement.startswith("BACKUP"):
            last = 1 if "INIT" in statement else 3
            assert run(engine, [make("disk")], f"RESTORE DATABASE db WITH FILE = {last}")[-1].number == 3014


# ---- statements in any order, and a list of what they leave


class Statements(RuleBasedStateMachine):
    """Backups that begin, overwrite, append and fail on one medium; what the list says is there is restored."""

    kind = ""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.make = Shelf(self.folder)
        self.engine = Engine({f"db{number}": Synthetic(65536 * number, number) for number in (1, 2, 3)})
        self.sets: list[int] = []
        self.whole = True  # the last set was finished

    def medium(self, zones: list[Zone] | None = None) -> Medium:
        return self.make(self.kind, "medium", zones)

    @rule(
        database=st.integers(1, 3), option=st.sampled_from(["", "INIT", "FORMAT"]), block=st.sampled_from(["", "4096"])
    )
    def backup(self, database: int, option: str, block: str) -> None:
        if not self.sets or option == "FORMAT":
            self.block = block
        options = [word for word in (option, f"BLOCKSIZE = {self.block}" if self.block else "") if word]
        statement = f"BACKUP DATABASE db{database}" + (f" WITH {', '.join(options)}" if options else "")
        if not self.whole and not option:
            assert failure(self.engine, [self.medium()], statement).number == 3266
            return
        run(self.engine, [self.medium()], statement)
        self.sets = [database] if option else [*self.sets, database]
        self.whole = True

    @rule(database=st.integers(1, 3))
    def fail(self, database: int) -> None:
        """The medium is full in the middle of the set's data."""
        if not self.sets or not self.whole:
            return
        medium = self.medium()
        wrote, do = 0, medium._do

        def full(code: int, size: int, position: int, view: memoryview | None) -> Outcome:
            nonlocal wrote
            wrote += code == C.WRITE
            return Outcome(E.DISK_FULL) if code == C.WRITE and wrote == 2 else do(code, size, position, view)

        medium._do = full  # type: ignore[method-assign, assignment]
        block = f" WITH BLOCKSIZE = {self.block}" if self.block else ""
        assert failure(self.engine, [medium], f"BACKUP DATABASE db{database}{block}").number == 3202
        self.whole = False

    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        file = data.draw(st.integers(1, len(self.sets) + 1))
        block = f", BLOCKSIZE = {self.block}" if self.sets and self.block else ""
        if file > len(self.sets):
            number = data.draw(st.integers(1, 3))
            failure(self.engine, [self.medium()], f"RESTORE DATABASE db{number} WITH REPLACE, FILE = {file}{block}")
            return
        statement = f"RESTORE DATABASE db{self.sets[file - 1]} WITH REPLACE, FILE = {file}{block}"
        assert run(self.engine, [self.medium()], statement)[-1].number == 3014

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


@pytest.mark.parametrize("kind", POSITIONED)
def test_any_order_of_statements(kind: str) -> None:
    machine = type(f"Statements on {kind}", (Statements,), {"kind": kind})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=15, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


