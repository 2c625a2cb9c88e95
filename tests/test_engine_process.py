"""The stand-in in a process of its own: results, errors, deaths on either side, memory."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from engine_clients import Player, Recorder, client

from vdi_ext import Command, VDAbortError
from vdi_ext.engine import EngineDiedError, EngineProcess, Message, SqlError, Synthetic

HERE = str(Path(__file__).parent)


def test_results_messages_and_errors_come_back() -> None:
    with EngineProcess({"db": Synthetic(5_000_000, 1)}) as engine:
        assert engine.pid != os.getpid()
        heard: list[Message] = []
        recorder = Recorder(2)
        with client(2, recorder) as one:
            result = engine.execute(f"BACKUP DATABASE db TO {one.clauses} WITH CHECKSUM, STATS = 50", heard.append)
        assert result.pages == 616
        assert [message.number for message in heard] == [3211, 3211, 4035, 4035, 3014]
        assert tuple(heard) == result.messages
        streams = [bytes(stream) for stream in recorder.streams]
        with client(2, Player(streams)) as one:
            assert engine.execute(f"RESTORE DATABASE db FROM {one.clauses}").pages == 616
        assert [entry.number for entry in engine.error_log] == [18264, 18267]
        with pytest.raises(SqlError) as info:
            engine.execute("BACKUP DATABASE db TO nowhere")
        assert info.value.number == 102
        with client(1, Player([streams[0]])) as one, pytest.raises(SqlError) as info:
            engine.execute(f"RESTORE DATABASE db FROM {one.clauses}")
        assert [message.number for message in info.value.messages] == [3132, 3013]
    with pytest.raises(ValueError):
        engine.execute("BACKUP DATABASE db TO VIRTUAL_DEVICE = 'a'")
    engine.close()


def test_what_went_wrong_below_comes_back_with_the_error() -> None:
    with EngineProcess({"db": Synthetic(50 << 20)}) as engine:

        def give_up(number: int, command: Command) -> None:
            one.abort()

        with client(1, give_up) as one, pytest.raises(SqlError) as info:
            engine.execute(f"BACKUP DATABASE db TO {one.clauses}")
        cause = info.value.__cause__
        assert isinstance(cause, VDAbortError)
        assert cause.reason is not None and "gives up" in cause.reason


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_engine_is_seen_by_both(how: signal.Signals) -> None:
    """The client is aborted and told which process died; the statement's outcome is not known."""
    with EngineProcess({"db": Synthetic(1 << 30)}) as engine:
        pid = engine.pid
        seen = 0

        def handler(number: int, command: Command) -> None:
            nonlocal seen
            seen += 1
            if seen == 10:
                os.kill(pid, how)

        with client(1, handler) as one, pytest.raises(EngineDiedError) as info:
            engine.execute(f"BACKUP DATABASE db TO {one.clauses}")
        assert (info.value.pid, info.value.exitcode) == (pid, -how)
        (error,) = one.errors
        assert isinstance(error, VDAbortError) and error.pid == pid
        with pytest.raises(EngineDiedError):
            engine.execute("BACKUP DATABASE db TO VIRTUAL_DEVICE = 'a'")
        engine.cancel()


def test_cancel_from_another_thread() -> None:
    with EngineProcess({"db": Synthetic(1 << 40)}) as engine:
        started = threading.Event()

        def handler(number: int, command: Command) -> None:
            started.set()

        canceller = threading.Thread(target=lambda: (started.wait(), engine.cancel()))
        canceller.start()
        try:
            with client(1, handler) as one, pytest.raises(SqlError) as info:
                engine.execute(f"BACKUP DATABASE db TO {one.clauses}")
        finally:
            started.set()
            canceller.join()
        assert [message.number for message in info.value.messages] == [3204, 3013]
        assert isinstance(one.errors[0], VDAbortError)


def test_closing_ends_a_statement_that_runs() -> None:
    started = threading.Event()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            engine.execute(f"BACKUP DATABASE db TO {one.clauses}")
        except (EngineDiedError, OSError) as error:
            errors.append(error)

    engine = EngineProcess({"db": Synthetic(1 << 40)})
    with client(1, lambda number, command: started.set()) as one:
        runner = threading.Thread(target=run)
        runner.start()
        assert started.wait(60)
        engine.kill()
        runner.join()
        engine.close()
    assert isinstance(errors[0], EngineDiedError)


def run(program: str, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", program, HERE, *arguments], capture_output=True, text=True, timeout=timeout
    )


def test_ctrl_c_cancels_the_statement() -> None:
    program = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from engine_clients import client
from vdi_ext.engine import EngineProcess, Synthetic

if __name__ == "__main__":
    def handler(number, command):
        if not interrupted:
            interrupted.append(1)
            os.kill(engine.pid, signal.SIGINT)  # a terminal sends it to both
            os.kill(os.getpid(), signal.SIGINT)
    interrupted = []
    with EngineProcess({"db": Synthetic(1 << 40)}) as engine:
        with client(1, handler) as one:
            try:
                engine.execute(f"BACKUP DATABASE db TO {one.clauses}")
            except KeyboardInterrupt:
                print("interrupted")
        print(type(one.errors[0]).__name__)
"""
    done = run(program)
    assert (done.stdout, done.stderr, done.returncode) == ("interrupted\nVDAbortError\n", "", 0)


def test_the_engine_ends_with_its_parent() -> None:
    program = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from engine_clients import client
from vdi_ext.engine import EngineProcess, Synthetic

if __name__ == "__main__":
    engine = EngineProcess({"db": Synthetic(1 << 40)})
    print(engine.pid, flush=True)
    def handler(number, command):
        os.kill(os.getpid(), signal.SIGKILL)
    with client(1, handler) as one:
        engine.execute(f"BACKUP DATABASE db TO {one.clauses}")
"""
    process = subprocess.Popen([sys.executable, "-c", program, HERE], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        watch = os.pidfd_open(pid)
        try:
            assert process.wait(60) == -signal.SIGKILL
            assert select.select([watch], [], [], 30)[0], "the engine outlived its parent"
        finally:
            os.close(watch)


MEMORY = """
import json, sys
sys.path.insert(0, sys.argv[1])
from engine_clients import Regenerator, client
from vdi_ext.engine import EngineProcess, Synthetic

def peak(pid):
    for line in open(f"/proc/{pid}/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024

if __name__ == "__main__":
    source = Synthetic(int(sys.argv[2]), 7)
    keeper = Regenerator(source, 8)
    with EngineProcess({"db": source}) as engine:
        with client(8, keeper.record) as one:
            pages = engine.execute(f"BACKUP DATABASE db TO {one.clauses} WITH CHECKSUM").pages
        assert not one.errors, one.errors
        with client(8, keeper.player()) as one:
            restored = engine.execute(f"RESTORE DATABASE db FROM {one.clauses} WITH CHECKSUM").pages
        assert not one.errors, one.errors
        print(json.dumps([pages, restored, peak(engine.pid), peak("self")]))
"""


@pytest.mark.timeout(400)
def test_ten_gigabytes_over_eight_devices_in_constant_memory() -> None:
    peaks = {}
    for size in (1 << 30, 10 << 30):
        done = run(MEMORY, str(size), timeout=190)
        assert (done.returncode, done.stderr) == (0, "")
        pages, restored, *peaks[size] = json.loads(done.stdout)
        assert pages == restored == size // 8192
    for small, large in zip(peaks[1 << 30], peaks[10 << 30], strict=True):
        assert large - small < 20 << 20, peaks
        assert large < 300 << 20, peaks
