"""Ctrl-C in every call that can wait: answered within 0.2 s (as the project promises), and nothing is left behind."""

from __future__ import annotations

import multiprocessing
import statistics
from pathlib import Path

import pytest
from serving import WAIT, pair, process, receive, run_python
from test_client_foreign import foreign  # noqa: F401

ANSWER = 0.2  # seconds
ROUNDS = 5

WAITING = """
import _thread, os, signal, threading, time

def interrupted(call, is_waiting):
    '''Seconds from the signal to the KeyboardInterrupt out of call().'''
    sent = []
    begun = threading.Event()
    def interrupt():
        begun.wait()
        deadline = time.monotonic() + WAIT
        while not is_waiting() and time.monotonic() < deadline:
            time.sleep(0.001)
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        begun.set()
        call()
        raise SystemExit("the call returned")
    except KeyboardInterrupt:
        answered = time.monotonic()
    thread.join()
    return answered - sent[0]
"""

FOREIGN = (
    WAITING
    + """
import ctypes, gc
library = ctypes.CDLL(sys.argv[1])
CREATE, JOIN, OPEN, CLOSE = range(4)

def waits_in(method):
    before = library.foreign_entered(method)
    return lambda: library.foreign_entered(method) > before

def settle():
    '''Unblock everything; what the helper threads obtained is released.'''
    for method in range(4):
        library.foreign_block(method, 0)
    gc.collect()
    deadline = time.monotonic() + WAIT
    while (library.foreign_live(0) or library.foreign_open_sets(0)) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert (library.foreign_live(0), library.foreign_open_sets(0)) == (0, 0)
"""
)

EMBEDDED = {
    "get_command": """
        with pair() as both:
            def is_waiting():
                try:
                    both.device.get_command(0)
                except RuntimeError as error:
                    return not isinstance(error, vdi.VDError)
                except vdi.VDTimeoutError:
                    return False
            for call in CALLS:
                print(interrupted(lambda: call(both.device), is_waiting))
            # and no command was lost
            both.send(CommandCode.FLUSH)
            both.device.get_command(WAIT).complete()
            both.finish()
    """,
    "get_configuration": """
        with vdi.VirtualDeviceSet.create() as vds:
            for delay in (0, 0.01, 0.05, 0.11, 0.15):
                start = time.monotonic()
                print(interrupted(vds.get_configuration, lambda: time.monotonic() > start + delay))
    """,
}


def check(done, rounds: int = ROUNDS) -> None:
    assert (done.returncode, done.stderr) == (0, "")
    answers = [float(line) for line in done.stdout.split()]
    assert len(answers) == rounds
    assert statistics.median(answers) < ANSWER and max(answers) < 10 * ANSWER, answers


def test_interrupting_get_command() -> None:
    calls = "CALLS = [lambda d: d.get_command(), lambda d: d.get_command(60), lambda d: next(d), lambda d: list(d), "
    calls += "lambda d: next(d.commands(60))]\n"
    check(run_python(WAITING + calls + _dedent(EMBEDDED["get_command"])))


def test_interrupting_get_configuration() -> None:
    check(run_python(WAITING + _dedent(EMBEDDED["get_configuration"])))


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("CREATE", "vdi.VirtualDeviceSet.create(provider=sys.argv[1])"),
        ("JOIN", "vdi.VirtualDeviceSet.open_in_secondary('set', provider=sys.argv[1])"),
    ],
)
def test_interrupting_what_makes_a_set(method: str, call: str, foreign: Path) -> None:  # noqa: F811
    code = f"""
        for _ in range({ROUNDS}):
            library.foreign_block({method}, 1)
            print(interrupted(lambda: {call}, waits_in({method})))
            settle()
    """
    check(run_python(FOREIGN + _dedent(code), str(foreign), flags=["-W", "error"]))


def test_interrupting_open_device(foreign: Path) -> None:  # noqa: F811
    code = f"""
        for _ in range({ROUNDS}):
            with vdi.VirtualDeviceSet.create(provider=sys.argv[1]) as vds:
                library.foreign_block(OPEN, 1)
                print(interrupted(vds.open_device, waits_in(OPEN)))
                library.foreign_block(OPEN, 0)
            del vds
            settle()
    """
    check(run_python(FOREIGN + _dedent(code), str(foreign), flags=["-W", "error"]))


def test_interrupting_close(foreign: Path) -> None:  # noqa: F811
    """In the native call, and while it waits for another thread's call."""
    code = f"""
        for number in range({ROUNDS}):
            vds = vdi.VirtualDeviceSet.create(provider=sys.argv[1])
            if number % 2:
                library.foreign_block(CLOSE, 1)
                print(interrupted(vds.close, waits_in(CLOSE)))
                library.foreign_block(CLOSE, 0)
                vds.close()  # waits for the first
                assert library.foreign_open_sets(0) == 0
            else:
                library.foreign_block(OPEN, 1)
                is_waiting = waits_in(OPEN)
                thread = threading.Thread(target=vds.open_device)
                thread.start()
                print(interrupted(vds.close, is_waiting))
                library.foreign_block(OPEN, 0)
                thread.join()
                vds.close()
                del thread
            del vds
            settle()
    """
    check(run_python(FOREIGN + _dedent(code), str(foreign), flags=["-W", "error"]))


def primary(connection) -> None:
    """A primary client and its server, in a process that the test stops."""
    with pair(devices=2, open_devices=False) as both:
        for number in range(2):
            both.peers.append(both.server.open_device(f"{both.vds.name}/{number}"))
        connection.send(both.vds.name)
        assert connection.poll(WAIT)


@pytest.mark.parametrize("call", ["open_in_secondary", "open_device", "close"])
def test_interrupting_a_secondary_whose_primary_does_not_answer(call: str) -> None:
    mine, its = multiprocessing.get_context("spawn").Pipe()
    with process("spawn", primary, its) as child:
        code = f"""
            name, pid, call = sys.argv[1], int(sys.argv[2]), {call!r}
            vds = vdi.VirtualDeviceSet.open_in_secondary(name)
            late = lambda: time.monotonic() > start + 0.05
            os.kill(pid, signal.SIGSTOP)
            tasks = f"/proc/{{pid}}/task"
            while any(open(f"{{tasks}}/{{task}}/stat").read().rsplit(")")[1][1] != "T" for task in os.listdir(tasks)):
                time.sleep(0.001)
            try:
                for number in range({ROUNDS}):
                    start = time.monotonic()
                    if call == "open_in_secondary":
                        print(interrupted(lambda: vdi.VirtualDeviceSet.open_in_secondary(name), late))
                    elif call == "open_device":
                        print(interrupted(lambda: vds.open_device(f"{{name}}/{{number % 2}}"), late))
                    else:
                        thread = threading.Thread(target=open_x)
                        thread.start()
                        print(interrupted(vds.close, late))
                        break
            finally:
                os.kill(pid, signal.SIGCONT)
            deadline = time.monotonic() + WAIT
            while _thread._count() and time.monotonic() < deadline:
                time.sleep(0.001)
            assert _thread._count() == 0  # the helpers have ended by themselves
            try:
                vds.close()
            except vdi.VDOpenError:
                assert call == "open_device"  # what was opened and then given to nobody
        """
        helper = """
            def open_x():
                try:
                    vds.open_device("x")
                except vdi.VDError:
                    pass
        """
        done = run_python(WAITING + _dedent(helper) + _dedent(code), receive(mine), str(child.pid))
        mine.send("end")
    check(done, 1 if call == "close" else ROUNDS)


def test_a_handler_that_closes_the_set_ends_the_wait() -> None:
    done = run_python(
        WAITING
        + _dedent("""
        with pair() as both:
            def handler(number, frame):
                try:
                    both.device.get_command(0)
                except RuntimeError as error:
                    print(error)
                try:
                    both.vds.close()
                except vdi.VDOpenError:
                    print("closed")
            signal.signal(signal.SIGALRM, handler)
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            try:
                both.device.get_command()
            except vdi.VDNotOpenError as error:
                print(error.message)
    """)
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "another thread is in get_command() of this device; one at a time",
        "closed",
        "the set is closed",
    ]


def _dedent(code: str) -> str:
    import textwrap

    return textwrap.dedent(code)


@pytest.mark.parametrize("call", ["create(", "open_in_secondary('set', "])
def test_an_unhandled_interrupt_ends_the_process(call: str, foreign: Path) -> None:  # noqa: F811
    """Although the native call still waits, on its helper thread."""
    code = f"""
        library.foreign_block(CREATE, 1)
        library.foreign_block(JOIN, 1)
        def interrupt():
            while not library.foreign_entered(CREATE) and not library.foreign_entered(JOIN):
                time.sleep(0.001)
            os.kill(os.getpid(), signal.SIGINT)
        threading.Thread(target=interrupt).start()
        vdi.VirtualDeviceSet.{call}provider=sys.argv[1])
    """
    done = run_python(FOREIGN + _dedent(code), str(foreign))
    assert done.returncode == -2 and done.stdout == ""
    assert done.stderr.rstrip().endswith("KeyboardInterrupt") and "Exception ignored" not in done.stderr
