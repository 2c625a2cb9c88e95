"""Fixtures of all tests: the real backups, and a look around after each test for what it left behind."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("VDI_EXT_SHARED", ROOT.parent / "shared"))
REQUIRE_SHARED = os.environ.get("CI") == "true" or "VDI_EXT_REQUIRE_SHARED" in os.environ

PROVIDER = ROOT / "vdi_ext" / "provider" / "libsqlvdi.so"
GRACE = 5.0  # seconds that a thread or process which is on its way out may take


def pytest_configure() -> None:
    # A shell that starts a job in the background has Ctrl-C ignored in it and in all its children.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder ../shared; tests that need it are skipped where it is absent, and fail where it is required."""
    if not (SHARED / "data" / "bak").is_dir():
        (pytest.fail if REQUIRE_SHARED else pytest.skip)(f"{SHARED} with the real backup files is absent")
    return SHARED


@pytest.fixture(scope="session")
def bak(shared: Path) -> Path:
    """The folder of real backup files."""
    return shared / "data" / "bak"


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if REQUIRE_SHARED and reporter is not None and reporter.stats.get("skipped"):
        reporter.write_line("tests were skipped although everything is required here", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def live_objects() -> int:
    """Objects of the embedded provider that are referenced in this process; 0 while the library is not loaded."""
    try:
        library = ctypes.CDLL(str(PROVIDER), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
        return 0
    library.VdiLiveObjects.restype = ctypes.c_uint32
    return int(library.VdiLiveObjects())


def children() -> dict[int, str]:
    """Child processes with their command lines, without the helpers that multiprocessing keeps."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            pids = (task / "children").read_text().split()
        except OSError:  # the thread has ended
            continue
        for pid in pids:
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # reaped meanwhile
                continue
            if "multiprocessing.resource_tracker" not in command and "multiprocessing.forkserver" not in command:
                found[int(pid)] = command or "(zombie)"
    return found


def memory_files() -> set[str]:
    """Open descriptors of memory files, and what lies in /dev/shm under a name of ours."""
    found = {f"/dev/shm/{name}" for name in os.listdir("/dev/shm") if "vdi" in name.lower()}
    for fd in os.listdir("/proc/self/fd"):
        try:
            link = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:  # the descriptor of the listing itself
            continue
        if link.startswith("/memfd:"):
            found.add(f"fd {fd} {link}")
    return found


class Surroundings:
    """What exists now; `changes()` names what has been added since."""

    def __init__(self) -> None:
        self.objects = live_objects()
        self.files = memory_files()
        self.children = children()
        self.threads = set(threading.enumerate())

    def changes(self) -> list[str]:
        multiprocessing.active_children()  # joins those that have ended
        found = [f"{name} left open" for name in sorted(memory_files() - self.files)]
        found += [f"child process {p} left: {c}" for p, c in children().items() if p not in self.children]
        found += [f"thread left running: {t!r}" for t in threading.enumerate() if t not in self.threads]
        if (more := live_objects() - self.objects) > 0:
            found.append(f"{more} objects of the provider left")
        return found


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fails a test that leaves objects, shared memory, processes or threads."""
    before = Surroundings()
    yield
    deadline = time.monotonic() + GRACE
    while left := before.changes():
        gc.collect()
        if not (left := before.changes()):
            break
        if time.monotonic() > deadline:
            for pid in children().keys() - before.children.keys():
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            pytest.fail("left behind: " + "; ".join(left))
        time.sleep(0.01)


@pytest.fixture
def python() -> str:
    """The interpreter, for tests that start a process of their own."""
    return sys.executable
