"""Statements executed over virtual devices, with clients in this process."""

from __future__ import annotations

import contextlib
import json
import os
import random
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from engine_clients import DONE, Player, Recorder, client

from vdi_ext import (
    Command,
    CommandCode,
    CompletionCode,
    Feature,
    VDAbortError,
    VDClosedError,
    VDTimeoutError,
    VirtualDevice,
)
from vdi_ext.engine import Engine, Message, Replay, SqlError, Sqlite, Synthetic, quote_name

STRIPES = [(8, 9), (10, 11)]


def backup(engine: Engine, database: str, devices: int = 1, options: str = "", **settings) -> tuple[list[bytes], list]:
    """Back up into memory. Returns the streams and the messages."""
    recorder = Recorder(devices)
    with client(devices, recorder, **settings) as one:
        result = engine.execute(f"BACKUP DATABASE {quote_name(database)} TO {one.clauses} {options}")
    assert one.errors == []
    return [bytes(stream) for stream in recorder.streams], list(result.messages)


def restore(engine: Engine, database: str, streams: list[bytes], options: str = "", **settings) -> list[Message]:
    player = Player(streams, settings.pop("most", None))
    with client(len(streams), player, **settings) as one:
        result = engine.execute(f"RESTORE DATABASE {quote_name(database)} FROM {one.clauses} {options}")
    assert one.errors == []
    return list(result.messages)


def restore_failure(engine: Engine, streams: list[bytes], options: str = "", database: str = "db") -> SqlError:
    with client(len(streams), Player(streams)) as one, pytest.raises(SqlError) as info:
        engine.execute(f"RESTORE DATABASE {quote_name(database)} FROM {one.clauses} {options}")
    assert one.errors == [], "the client sees its devices closed, not an abort (section 9.2)"
    assert info.value.messages[-1].number == 3013
    return info.value


def numbers(messages: list[Message] | tuple[Message, ...]) -> list[int]:
    return [message.number for message in messages]


# ---- synthetic databases, there and back


@pytest.mark.parametrize("devices", [1, 2, 5, 8])
@pytest.mark.parametrize("checksum", ["", "WITH CHECKSUM"])
def test_synthetic_there_and_back(devices: int, checksum: str) -> None:
    engine = Engine({"db": Synthetic(5_000_000, 1)})
    streams, messages = backup(engine, "DB", devices, checksum)
    assert numbers(messages) == [4035, 4035, 3014]
    assert messages[0].text == "Processed 616 pages for database 'db', file 'db' on file 1."
    assert messages[-1].text.startswith("BACKUP DATABASE successfully processed 616 pages in ")
    assert messages[-1].text.endswith(" MB/sec).")
    # Extents in equal numbers: 77 of them, evened out.
    assert len({len(stream) for stream in streams}) == 1
    messages = restore(engine, "db", streams, checksum)
    assert messages[-1].text.startswith("RESTORE DATABASE successfully processed 616 pages in ")
    assert numbers(engine.error_log) == [18264, 18267]
    assert f"number of dump devices: {devices}, device information: (FILE=1, TYPE=VIRTUAL_DEVICE: {{'set " in (
        engine.error_log[0].text
    )


@pytest.mark.parametrize("block_size", [512, 4096, 65536])
@pytest.mark.parametrize("transfer", [65536, 1 << 20, 4 << 20])
@pytest.mark.parametrize("buffers", [1, 3, 20])
def test_options_for_transfers_are_honoured(block_size: int, transfer: int, buffers: int) -> None:
    engine = Engine({"db": Synthetic(3_000_000, 2)})
    sizes = set()
    recorder = Recorder(2)

    def handler(number: int, command: Command) -> None:
        if command.code == CommandCode.WRITE:
            sizes.add(command.size)
        recorder(number, command)

    options = f"WITH BLOCKSIZE = {block_size}, MAXTRANSFERSIZE = {transfer}, BUFFERCOUNT = {buffers}"
    with client(2, handler) as one:
        engine.execute(f"BACKUP DATABASE db TO {one.clauses} {options}")
    config = one.config
    assert config is not None
    assert (config.block_size, config.max_transfer_size) == (block_size, transfer)
    assert config.alignment >= max(4096, block_size)
    assert config.features & Feature.WRITE_MEDIA and not config.features & Feature.READ_MEDIA
    assert max(sizes) == min(transfer, 184 * 8192)  # a family has 23 extents: 368 pages in two halves
    assert all(size % block_size == 0 for size in sizes)
    restore(engine, "db", [bytes(stream) for stream in recorder.streams], options)


def test_defaults() -> None:
    with client(1, Recorder(1)) as one:
        Engine({"db": Synthetic(65536)}).execute(f"BACKUP DATABASE db TO {one.clauses}")
    assert one.config is not None
    assert (one.config.block_size, one.config.max_transfer_size, one.config.max_io_depth) == (512, 1 << 20, 4)
    assert one.config.buffer_area_size >= 4 << 20


@pytest.mark.parametrize("asked", [Feature.REQUEST_COMPLETE, Feature.LIKE_PIPE])
def test_flush_and_complete_come_last_and_once(asked: Feature) -> None:
    with client(3, Recorder(3), asked) as one:
        Engine({"db": Synthetic(3_000_000)}).execute(f"BACKUP DATABASE db TO {one.clauses}")
    granted = one.config is not None and bool(one.config.features & Feature.COMPLETE_ENABLED)
    assert granted == bool(asked)
    last = [CommandCode.FLUSH, CommandCode.COMPLETE] if asked else [CommandCode.FLUSH]
    for codes in one.codes:
        assert codes[-len(last) :] == last
        assert set(codes[: -len(last)]) == {CommandCode.WRITE}


def test_restore_sends_reads_and_nothing_else() -> None:
    engine = Engine({"db": Synthetic(3_000_000)})
    streams, _ = backup(engine, "db", 2)
    with client(2, Player(streams)) as one:
        engine.execute(f"RESTORE DATABASE db FROM {one.clauses}")
    assert one.config is not None and one.config.features & Feature.READ_MEDIA
    assert not one.config.features & Feature.COMPLETE_ENABLED
    assert {code for codes in one.codes for code in codes} == {CommandCode.READ}


def test_a_disk_like_device_gets_positions() -> None:
    places: list[tuple[int, int]] = []

    def handler(number: int, command: Command) -> None:
        if command.code == CommandCode.WRITE:
            places.append((command.position, command.size))
        elif command.code in DONE:
            command.complete()

    with client(1, handler, Feature.LIKE_DISK) as one:
        Engine({"db": Synthetic(3_000_000)}).execute(f"BACKUP DATABASE db TO {one.clauses} WITH FORMAT")
    expected = 0
    for position, size in places:
        assert position == expected
        expected += size


def test_progress() -> None:
    engine = Engine({"db": Synthetic(20 << 20)})
    heard: list[Message] = []
    with client(1, Recorder(1)) as one:
        result = engine.execute(f"BACKUP DATABASE db TO {one.clauses} WITH STATS = 20", heard.append)
    assert tuple(heard) == result.messages
    texts = [message.text for message in heard if message.number == 3211]
    assert texts == [f"{percent} percent processed." for percent in (20, 40, 60, 80, 100)]
    with client(1, Recorder(1)) as one:
        result = engine.execute(f"BACKUP DATABASE db TO {one.clauses} WITH STATS = 30")
    assert [m.text.split()[0] for m in result.messages if m.number == 3211] == ["30", "60", "90", "100"]
    streams, messages = backup(engine, "db")
    assert 3211 not in numbers(messages)


@pytest.mark.parametrize("most", [1000, 70_000, 8192 * 3 + 512])
def test_short_reads_with_success_are_asked_for_again(most: int) -> None:
    engine = Engine({"db": Synthetic(1_000_000, 4)})
    streams, _ = backup(engine, "db", 2, "WITH CHECKSUM")
    restore(engine, "db", streams, most=most)


def test_completions_in_any_order() -> None:
    engine = Engine({"db": Synthetic(8 << 20, 5)})
    streams, _ = backup(engine, "db")
    pick = random.Random(1)
    most = 0

    def loop(number: int, device: VirtualDevice) -> None:
        nonlocal most
        place = 0
        held: list[Command] = []
        while True:
            try:
                command = device.get_command(0 if held else None)
            except VDClosedError:
                return
            except VDTimeoutError:  # nothing more is coming before something is answered
                most = max(most, len(held))
                pick.shuffle(held)
                for command in held:
                    command.complete(CompletionCode.SUCCESS, command.size)
                held = []
                continue
            with memoryview(command) as view:
                view[:] = streams[0][place : place + len(view)]
            place += command.size
            held.append(command)

    with client(1, Player([]), loop=loop) as one:
        engine.execute(f"RESTORE DATABASE db FROM {one.clauses}")
    assert one.errors == []
    assert most > 1


# ---- replay


def test_every_real_file_comes_back_as_it_was(bak: Path, tmp_path: Path) -> None:
    files = sorted(bak.glob("*.bak")) + sorted(bak.glob("*.trn"))
    assert len(files) == 13
    for path in files:
        engine = Engine({"db": Replay((str(path),))})
        streams, messages = backup(engine, "db")
        assert streams == [path.read_bytes()]
        assert numbers(messages) == [3014]
        restore(engine, "db", streams)  # compares
        copy = tmp_path / path.name
        restore(Engine({"db": Replay((str(path),), (str(copy),))}), "db", streams)
        assert copy.read_bytes() == path.read_bytes()
    assert len(os.listdir(tmp_path)) == len(files)


@pytest.mark.parametrize("stripes", STRIPES)
def test_real_stripe_sets_come_back_as_they_were(bak: Path, tmp_path: Path, stripes: tuple[int, int]) -> None:
    files = [str(next(bak.glob(f"{number:02}_*"))) for number in stripes]
    engine = Engine({"db": Replay(tuple(files), tuple(str(tmp_path / f"{n}") for n in stripes))})
    streams, _ = backup(engine, "db", 2, "WITH MAXTRANSFERSIZE = 65536")
    assert streams == [Path(file).read_bytes() for file in files]
    restore(engine, "db", streams, "WITH MAXTRANSFERSIZE = 131072")
    assert [(tmp_path / f"{n}").read_bytes() for n in stripes] == streams
    assert sorted(os.listdir(tmp_path)) == sorted(map(str, stripes))


def test_a_block_size_that_does_not_divide_a_file_is_refused(bak: Path) -> None:
    path = bak / "06_chain_log_empty_2008r2.trn"  # 19968 bytes are 39 blocks of 512
    engine = Engine({"db": Replay((str(path),))})
    with client(1, Recorder(1)) as one, pytest.raises(SqlError) as info:
        engine.execute(f"BACKUP DATABASE db TO {one.clauses} WITH BLOCKSIZE = 1024")
    assert numbers(info.value.messages) == [3272, 3013]


@pytest.mark.parametrize("change", ["bit", "shorter", "longer"])
def test_a_replay_compares_every_byte(tmp_path: Path, change: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(random.Random(1).randbytes(100 * 512))
    engine = Engine({"db": Replay((str(path),))})
    data = bytearray(path.read_bytes())
    if change == "bit":
        data[51199] ^= 1
    data = {"bit": data, "shorter": data[:-512], "longer": data + bytes(512)}[change]
    error = restore_failure(engine, [bytes(data)])
    assert error.number == 3189
    assert str(path) in str(error.__cause__)


def test_a_replay_cannot_honour_checksum_options(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(512))
    for option in ("CHECKSUM", "NO_CHECKSUM"):
        with pytest.raises(SqlError) as info:
            Engine({"db": Replay((str(path),))}).execute(
                f"BACKUP DATABASE db TO VIRTUAL_DEVICE = 'none' WITH {option}"
            )
        assert info.value.number == 3032


# ---- SQLite


def test_sqlite_there_and_back(tmp_path: Path) -> None:
    path, copy = tmp_path / "a.db", tmp_path / "b.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE t(a, b)")
        db.execute("BEGIN")
        db.executemany("INSERT INTO t VALUES(?, ?)", ((n, os.urandom(2000)) for n in range(3000)))
        db.execute("COMMIT")
        rows = db.execute("SELECT * FROM t").fetchall()
        engine = Engine({"a": Sqlite(str(path)), "b": Sqlite(str(copy))})
        streams, messages = backup(engine, "a", 4, "WITH CHECKSUM, STATS")
        restore(engine, "b", streams, "WITH CHECKSUM")
        with contextlib.closing(sqlite3.connect(copy)) as other:
            assert other.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert other.execute("SELECT * FROM t").fetchall() == rows
    assert numbers(messages)[-3:] == [4035, 4035, 3014]
    error = restore_failure(engine, streams, database="b")
    assert error.number == 3159
    restore(engine, "b", streams, "WITH REPLACE")
    assert sorted(os.listdir(tmp_path)) == ["a.db", "b.db"]
    assert restore_failure(Engine({"db": Synthetic(1 << 20)}), streams).number == 3154


def test_a_client_that_gives_up_ends_the_wait_for_a_locked_database(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("CREATE TABLE t(a)")
        db.execute("BEGIN EXCLUSIVE")

        waits = threading.Event()

        class Locked(Sqlite):
            def snapshot(self, *args):
                waits.set()  # the server's devices are open by now, which ours may have been before
                return super().snapshot(*args)

        def loop(number: int, device: VirtualDevice) -> None:
            assert waits.wait(60)
            one.abort()

        with client(1, Recorder(1), loop=loop) as one, pytest.raises(SqlError) as info:
            Engine({"db": Locked(str(path))}).execute(f"BACKUP DATABASE db TO {one.clauses}")
    assert numbers(info.value.messages) == [3202, 3013]
    assert isinstance(info.value.__cause__, VDAbortError)
    assert os.listdir(tmp_path) == ["a.db"]


def test_an_independent_program_counts_a_striped_backup(shared: Path, tmp_path: Path) -> None:
    """The streams as they came through the devices; sums over the families follow from the parameters."""
    engine = Engine({"db": Synthetic(10_000_000)})
    names = []
    for devices in (1, 3, 8):
        streams, _ = backup(engine, "db", devices, "WITH CHECKSUM, BLOCKSIZE = 4096")
        for number, stream in enumerate(streams):
            names.append(tmp_path / f"{devices}-{number}")
            names[-1].write_bytes(stream)
    program = shared / "prototypes" / "mtf_verify.py"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", program, "--json", *names],
        capture_output=True, text=True, check=True, timeout=100,
    )  # fmt: skip
    entries = {entry["file"]: entry for entry in json.loads(done.stdout)}
    for devices in (1, 3, 8):
        family = [entries[f"{devices}-{number}"] for number in range(devices)]
        extents = -(-153 // devices)  # 1224 pages are 153 extents
        for entry in family:
            assert (entry["dblk_ok"], entry["dblk"], entry["stream_ok"], entry["stream"]) == (12, 12, 18, 18)
            assert (entry["csum_ok"], entry["csum"], entry["end"]) == (1, 1, "")
            assert entry["pages"]["pages"] == extents * 8
            assert entry["declared"][1] == 1224
        assert sum(entry["declared"][0] for entry in family) == 1224
        assert sum(entry["pages"]["ck_ok"] for entry in family) == 1224
        assert sum(entry["pages"]["fill"] for entry in family) == extents * 8 * devices - 1224
        assert len({entry["raid"]["mediaset"] for entry in family}) == 1
        assert sorted(entry["raid"]["family"] for entry in family) == list(range(1, devices + 1))


# ---- statements that fail


def test_a_set_that_does_not_exist() -> None:
    engine = Engine({"db": Synthetic(65536)})
    with pytest.raises(SqlError) as info:
        engine.execute("BACKUP DATABASE db TO VIRTUAL_DEVICE = 'no such set'")
    first, second = info.value.messages
    assert (first.number, first.state) == (3201, 7)
    assert first.text == (
        "Cannot open backup device 'no such set'. Operating system error 0x80070002(The system cannot find the file "
        "specified.)."
    )
    assert second.text == "BACKUP DATABASE is terminating abnormally."
    assert [message.text for message in engine.error_log] == [
        "BackupVirtualDeviceSet::Initialize: Open failure on backup device 'no such set'. Operating system error "
        "0x80070002(The system cannot find the file specified.).",
        "BACKUP failed to complete the command BACKUP DATABASE db. Check the backup application log for detailed "
        "messages.",
    ]
    assert numbers(engine.error_log) == [18210, 3041]


def test_a_database_that_does_not_exist() -> None:
    with pytest.raises(SqlError) as info:
        Engine({}).execute("BACKUP DATABASE nothing TO VIRTUAL_DEVICE = 'a'")
    assert numbers(info.value.messages) == [911, 3013]


def test_another_number_of_devices_than_the_set_has() -> None:
    engine = Engine({"db": Synthetic(65536)})
    with client(2, Recorder(2)) as one, pytest.raises(SqlError) as info:
        engine.execute(f"BACKUP DATABASE db TO VIRTUAL_DEVICE = '{one.name}'")
    assert numbers(info.value.messages) == [3261, 3013]
    assert isinstance(one.errors[0], VDAbortError)


def test_a_mixture_of_devices_is_refused() -> None:
    engine = Engine({"db": Synthetic(65536)})
    with client(1, Recorder(1), Feature.FILE_MARKS | Feature.REWIND) as one, pytest.raises(SqlError) as info:
        engine.execute(f"BACKUP DATABASE db TO {one.clauses}")
    assert info.value.number == 3261


def failing(code: CommandCode, with_code: CompletionCode, after: int = 0):
    """A handler that completes the first `code` after `after` others with an error."""
    seen = 0
    lock = threading.Lock()

    def handler(number: int, command: Command) -> None:
        nonlocal seen
        with lock:
            seen += command.code == code
            fail = command.code == code and seen == after + 1
        if fail:
            command.complete(with_code, 0)
        else:
            command.complete(CompletionCode.SUCCESS, command.size if command.code == CommandCode.WRITE else None)

    return handler


@pytest.mark.parametrize("devices", [1, 3])
@pytest.mark.parametrize("after", [0, 1, 20])
def test_a_full_disk(devices: int, after: int) -> None:
    engine = Engine({"db": Synthetic(50 << 20)})
    with (
        client(devices, failing(CommandCode.WRITE, CompletionCode.DISK_FULL, after)) as one,
        pytest.raises(SqlError) as info,
    ):
        engine.execute(f"BACKUP DATABASE db TO {one.clauses}")
    assert one.errors == [], "the client sees its devices closed, not an abort (section 9.2)"
    first, second = info.value.messages
    assert first.number == 3202 and first.text.endswith('" failed: 112(There is not enough space on the disk.)')
    assert first.text.split('"')[1] in one.names
    assert second.number == 3013
    assert numbers(engine.error_log) == [18210, 3041]
    assert engine.error_log[0].text.startswith("BackupMedium::ReportIoError: write failure on backup device 'set ")


@pytest.mark.parametrize(
    ("code", "routine"),
    [
        (CommandCode.FLUSH, "BackupVirtualDeviceFile::RequestDurableMedia: Flush failure on backup device"),
        (CommandCode.COMPLETE, "BackupVirtualDeviceFile::RequestComplete: Complete failure on backup device"),
    ],
)
def test_what_fails_at_the_end_fails_the_backup(code: CommandCode, routine: str) -> None:
    engine = Engine({"db": Synthetic(1 << 20)})
    with client(2, failing(code, CompletionCode.HANDLE_DISK_FULL)) as one, pytest.raises(SqlError) as info:
        engine.execute(f"BACKUP DATABASE db TO {one.clauses}")
    assert one.errors == []
    assert numbers(info.value.messages) == [3202, 3013]
    assert engine.error_log[0].text.startswith(routine)


def test_a_write_that_stored_less_is_a_failure() -> None:
    engine = Engine({"db": Synthetic(1 << 20)})

    def handler(number: int, command: Command) -> None:
        writing = command.code == CommandCode.WRITE
        command.complete(CompletionCode.SUCCESS, command.size - 512 if writing and command.size > 65536 else None)

    with client(1, handler) as one, pytest.raises(SqlError) as info:
        engine.execute(f"BACKUP DATABASE db TO {one.clauses}")
    assert numbers(info.value.messages) == [3222, 3013]
    assert info.value.messages[0].text.endswith("only wrote 1048064 bytes, expected 1048576.")


def test_a_read_that_fails() -> None:
    engine = Engine({"db": Synthetic(1 << 20)})
    with client(1, failing(CommandCode.READ, CompletionCode.IO_DEVICE)) as one, pytest.raises(SqlError) as info:
        engine.execute(f"RESTORE DATABASE db FROM {one.clauses}")
    assert one.errors == []
    assert numbers(info.value.messages) == [3203, 3013]
    assert numbers(engine.error_log) == [18210]


def test_a_read_that_brings_nothing_does_not_go_on_for_ever() -> None:
    engine = Engine({"db": Synthetic(1 << 20)})
    handler = failing(CommandCode.READ, CompletionCode.SUCCESS)  # 0 bytes, and no end of data
    with client(1, handler) as one, pytest.raises(SqlError) as info:
        engine.execute(f"RESTORE DATABASE db FROM {one.clauses}")
    assert info.value.number == 3203


def test_an_abort_by_the_client() -> None:
    engine = Engine({"db": Synthetic(50 << 20)})

    def handler(number: int, command: Command) -> None:
        one.abort()

    with client(1, handler) as one, pytest.raises(SqlError) as info:
        engine.execute(f"BACKUP DATABASE db TO {one.clauses}")
    assert numbers(info.value.messages) == [3202, 3013]
    assert "995(The I/O operation has been aborted" in info.value.messages[0].text
    assert isinstance(info.value.__cause__, VDAbortError)
    assert "gives up" in str(info.value.__cause__)
    # SQL Server still tries to clear and to flush, and logs that both fail.
    assert [entry.text.split(":")[2] for entry in engine.error_log if entry.number == 18210] == [
        "ReportIoError", "RequestDurableMedia", "ClearError",
    ]  # fmt: skip


@pytest.mark.parametrize("verb", ["BACKUP", "RESTORE"])
def test_cancel(verb: str) -> None:
    engine = Engine({"db": Synthetic(50 << 20)})
    reached = threading.Event()

    def loop(number: int, device: VirtualDevice) -> None:
        commands = [device.get_command(None)]
        reached.set()
        with contextlib.suppress(VDAbortError):
            while True:
                commands.append(device.get_command(None))

    canceller = threading.Thread(target=lambda: (reached.wait(), engine.cancel()))
    canceller.start()
    try:
        with client(1, Recorder(1), loop=loop) as one, pytest.raises(SqlError) as info:
            engine.execute(f"{verb} DATABASE db {'TO' if verb == 'BACKUP' else 'FROM'} {one.clauses}")
    finally:
        reached.set()
        canceller.join()
    assert numbers(info.value.messages) == [3204, 3013]
    engine.cancel()  # nothing runs: nothing happens


def test_an_interrupt_while_waiting_ends_the_statement_at_once() -> None:
    program = """
import os, signal, sys, threading, time
sys.path.insert(0, sys.argv[1])
from engine_clients import Recorder, client
from vdi_ext import VDAbortError
from vdi_ext.engine import Engine, Synthetic

ended = []

def loop(number, device):
    command = device.get_command(None)
    global sent
    sent = time.monotonic()
    os.kill(os.getpid(), signal.SIGINT)
    try:
        while True:
            device.get_command(None)
    except VDAbortError:
        ended.append("abort")

with client(1, Recorder(1), loop=loop) as one:
    try:
        Engine({"db": Synthetic(50 << 20)}).execute(f"BACKUP DATABASE db TO {one.clauses}")
    except KeyboardInterrupt:
        print("interrupted", time.monotonic() - sent < 1.0)
print(ended)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(Path(__file__).parent)], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr, done.returncode) == ("interrupted True\n['abort']\n", "", 0)


def test_an_exception_of_the_listener_aborts_and_surfaces() -> None:
    class Mine(Exception):
        pass

    def complain(message: Message) -> None:
        raise Mine

    with client(1, Recorder(1)) as one, pytest.raises(Mine):
        Engine({"db": Synthetic(50 << 20)}).execute(f"BACKUP DATABASE db TO {one.clauses} WITH STATS = 1", complain)
    assert isinstance(one.errors[0], VDAbortError)


def test_a_database_that_is_restored_is_not_backed_up_and_the_reverse() -> None:
    engine = Engine({"db": Synthetic(20 << 20)})
    recorder = Recorder(1)
    problems: list[int] = []

    def handler(number: int, command: Command) -> None:
        if not problems:
            for verb, joint in (("RESTORE", "FROM"), ("BACKUP", "TO")):
                with pytest.raises(SqlError) as info:
                    engine.execute(f"{verb} DATABASE db {joint} VIRTUAL_DEVICE = 'none'")
                problems.append(info.value.number)
        recorder(number, command)

    with client(1, handler) as one:
        engine.execute(f"BACKUP DATABASE db TO {one.clauses}")
    assert problems == [3101, 3201]  # two backups at once may be
    problems.clear()
    player = Player([bytes(recorder.streams[0])])

    def handler_of_restore(number: int, command: Command) -> None:
        if not problems:
            with pytest.raises(SqlError) as info:
                engine.execute("BACKUP DATABASE db TO VIRTUAL_DEVICE = 'none'")
            problems.append(info.value.number)
        player(number, command)

    with client(1, handler_of_restore) as one:
        engine.execute(f"RESTORE DATABASE db FROM {one.clauses}")
    assert problems == [3023]


# ---- restores of what is not right


@pytest.fixture(scope="module")
def three() -> list[bytes]:
    """A backup in three families."""
    return backup(Engine({"db": Synthetic(2_000_000)}), "db", 3, "WITH CHECKSUM")[0]


@pytest.fixture
def engine() -> Engine:
    return Engine({"db": Synthetic(2_000_000)})


def test_families_must_belong_together(engine: Engine, three: list[bytes]) -> None:
    restore(engine, "db", three)
    restore(engine, "db", three[::-1])  # the order does not matter
    other, _ = backup(engine, "db", 3)
    assert restore_failure(engine, three[:2]).number == 3132
    assert restore_failure(engine, [*three, three[0]]).number == 3231
    assert restore_failure(engine, [three[0], three[1], three[1]]).number == 3227
    assert restore_failure(engine, [three[0], other[1], three[2]]).number == 3258


@pytest.mark.parametrize(
    ("length", "number"), [(0, 3254), (600, 3208), (0x1000, 3208), (0x1D00, 3256), (500_000, 3256), (-512, 3256)]
)
def test_truncation_is_never_an_end(engine: Engine, three: list[bytes], length: int, number: int) -> None:
    assert restore_failure(engine, [three[0], three[1][:length], three[2]]).number == number


def test_damage(engine: Engine, three: list[bytes]) -> None:
    def changed(place: int) -> list[bytes]:
        stream = bytearray(three[1])
        stream[place] ^= 0x10
        return [three[0], bytes(stream), three[2]]

    page = restore_failure(engine, changed(0x1E00 + 8192 * 9 + 4000))
    assert page.number == 3183
    assert page.messages[0].text.startswith("RESTORE detected an error on page (1:")
    assert restore_failure(engine, changed(0)).number == 3242
    assert restore_failure(engine, changed(0x600 + 20)).number == 3241
    assert restore_failure(engine, changed(three[1].index(b"CSUM") + 22)).number == 3189
    assert restore_failure(engine, changed(three[1].rindex(b"SFMB") + 2)).number == 3189


def test_no_tape_format(engine: Engine, three: list[bytes], bak: Path) -> None:
    assert restore_failure(engine, [b"SQLBACKUP" + bytes(1015)]).number == 3242
    assert restore_failure(engine, [b"MSSQLBAK" + bytes(1016)]).number == 3241  # of no version that is known
    # A real backup is of no database that the stand-in could make.
    real = [(bak / "01_full_checksum_2008r2.bak").read_bytes()]
    assert restore_failure(engine, real).number == 3154
    assert restore_failure(engine, real, "WITH REPLACE").number == 3189
    assert restore_failure(engine, [(bak / "06_chain_log_empty_2008r2.trn").read_bytes()]).number == 3135


def test_another_block_size(engine: Engine, three: list[bytes]) -> None:
    error = restore_failure(engine, three, "WITH BLOCKSIZE = 4096")
    assert error.number == 3284
    assert error.messages[0].text.endswith("'512' looks like a possible value.")


def test_a_checksum_that_is_not_there(engine: Engine) -> None:
    streams, _ = backup(engine, "db")
    assert restore_failure(engine, streams, "WITH CHECKSUM").number == 3187


def test_what_a_failure_leaves_holds_no_buffers(engine: Engine, three: list[bytes]) -> None:
    """The exception may be kept; the set is gone all the same."""
    damaged = bytearray(three[0])
    damaged[0x1E00 + 5000] ^= 1
    error = restore_failure(engine, [bytes(damaged), *three[1:]])
    from conftest import memory_files

    assert error.__cause__ is not None
    assert not memory_files()
