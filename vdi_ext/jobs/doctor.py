"""Looks at everything that keeps backups over virtual devices from working, and says what helps."""

from __future__ import annotations

import os
import platform
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from .._core.device_set import VirtualDeviceSet
from .._core.provider import Provider
from ..codes import codes_in, explain
from ..errors import VDError
from .common import ArgumentError, chosen_provider, tool_version
from .passwords import Password
from .piping import pipe_backup
from .surroundings import MSSQL, Account, Memory, account, describe_library, memory

OK, NOTE, FAILED, SKIPPED = "ok", "note", "failed", "skipped"

LEAST_MEMORY = 64 << 20  # bytes: less than what a backup with larger buffers asks for
LEAST_FILES = 256  # descriptors


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes
    ----------
    name : str
    status : str
        ``"ok"``; ``"note"``: something to know, that stops nothing by itself; ``"failed"``; ``"skipped"``: something
        that failed before it is in the way.
    text : str
        What was found.
    remedy : str or None
        What helps.
    """

    name: str
    status: str
    text: str
    remedy: str | None = None

    def to_dict(self) -> dict:
        return {name: value for name, value in asdict(self).items() if value is not None}


def diagnose(
    address: str | Callable | None = None,
    *,
    provider: Provider | str | os.PathLike[str] | None = None,
    group: str | None = None,
    password: Password | None = None,
    backup_test: bool = False,
) -> Iterator[Check]:
    """Check this machine and, where an address is given, a server; nothing is changed but by `backup_test`.

    Parameters
    ----------
    address : str or callable, optional
        Of a server, as for `backup`.
    provider, group, password
        As for `backup`.
    backup_test : bool
        Back up the server's database ``model`` WITH COPY_ONLY to nowhere. The server's msdb gains a row by it.

    Yields
    ------
    Check
        As soon as it is known.

    Raises
    ------
    ArgumentError
        `backup_test` without an address, or an address that is none.
    """
    from .doctor_server import check_server

    if backup_test and address is None:
        raise ArgumentError("a test backup needs the address of a server")
    yield Check("program", OK, f"vdi_ext {tool_version()}, Python {platform.python_version()}, {platform.system()}")
    library, found = check_provider(provider)
    yield found
    foreign = library is not None and library.classes_only
    if os.name == "posix":
        yield from check_account(account(), foreign=foreign)
        yield from check_memory(memory(), foreign=foreign)
    yield check_devices(library, group)
    yield from check_server(address, library, provider, group, password, backup_test)


# ---- the provider


def check_provider(provider: Provider | str | os.PathLike[str] | None) -> tuple[Provider | None, Check]:
    """Which library clients use here: where none is named SQL Server's, else the one of this package."""
    name = "provider"
    try:
        library = _default() if provider is None else chosen_provider(provider)
    except (ArgumentError, VDError, OSError) as error:
        remedy = f"it must be a library for {struct.calcsize('P') * 8}-bit programs that has the interface"
        if str(provider) == "system" or provider is None:
            remedy = "install SQL Server on this machine, or use --provider embedded (stand-in server only)"
        return None, Check(name, FAILED, words(error), remedy)
    bits, machine = describe_library(library.path)
    kind = "of this package" if library.path == Provider.embedded().path else "foreign"
    if kind == "foreign" and library.classes_only:
        kind = "SQL Server's, through its C++ classes"
    version = tool_version() if kind == "of this package" else f"of {_date(library.path)}"
    text = f"{library.path} ({kind}), version {version}, {bits} bits, {machine}"
    if kind == "of this package":
        remedy = "a real SQL Server does not know it: only the stand-in can be backed up with it"
        return library, Check(name, NOTE, text, remedy)
    return library, Check(name, OK, text)


def _default() -> Provider:
    try:
        return Provider.system()
    except FileNotFoundError:
        return Provider.embedded()


def _date(path: str) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(os.stat(path).st_mtime))


# ---- user and groups (section 10.3)


def check_account(who: Account, *, foreign: bool) -> Iterator[Check]:
    """Whether SQL Server on Linux and this user can open each other's shared memory."""
    umask = "unknown" if who.umask is None else f"0{who.umask:03o}"
    if foreign:
        yield Check("umask", OK, f"{umask}; devices are made with 0 all the same, as SQL Server needs it")
    else:
        yield Check("umask", OK, f"{umask}; it does not matter to this library")
    name = "groups"
    if who.server_uid is None or who.server_gid is None:
        text = f"this is user {who.user}; there is no user or no group {MSSQL}"
        status = FAILED if foreign else NOTE
        yield Check(name, status, text, f"SQL Server is not installed here, or runs as another user than {MSSQL}")
    elif who.uid == who.server_uid:
        yield Check(name, OK, f"this is user {MSSQL}, as the server is")
    else:
        yield _membership(name, who, FAILED if foreign else NOTE)


def _membership(name: str, who: Account, status: str) -> Check:
    missing = []
    if who.server_gid not in who.groups:
        if who.server_gid in who.listed:
            text = f"user {who.user} is in group {MSSQL}, but this process was started before"
            return Check(name, status, text, "log in again, or restart what starts this program")
        missing.append(f"usermod -a -G {MSSQL} {who.user}")
    if who.gid not in who.server_groups:
        missing.append(f"usermod -a -G {_group_name(who.gid)} {MSSQL}")
    if not missing:
        return Check(name, OK, f"user {who.user} and user {MSSQL} are in each other's group")
    text = f"user {who.user} and user {MSSQL} are not in each other's group"
    remedy = f"run this program as {MSSQL}, or: {'; '.join(missing)}; then restart SQL Server and log in again"
    return Check(name, status, text, remedy)


def _group_name(gid: int) -> str:
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


# ---- memory


def check_memory(limits: Memory, *, foreign: bool) -> Iterator[Check]:
    """Whether the buffers of a backup fit: BUFFERCOUNT times MAXTRANSFERSIZE."""
    name = "shared memory"
    if limits.memfd is not None and not foreign:
        yield Check(name, FAILED, f"no memory file can be made: {limits.memfd}",
                    "allow memfd_create: the container's or service's system call filter forbids it")  # fmt: skip
        return
    if foreign:
        if limits.shm_free is None:
            yield Check(name, FAILED, "/dev/shm is not there", "mount a tmpfs on /dev/shm")
            return
        if limits.shm_free < LEAST_MEMORY:
            yield Check(name, FAILED, f"only {mib(limits.shm_free)} are free in /dev/shm",
                        "make it larger: docker --shm-size, or mount -o remount,size=1G /dev/shm")  # fmt: skip
            return
    problems = []
    for found, what, remedy in (
        (limits.available, "are available on this machine", "free memory, or lower BUFFERCOUNT and MAXTRANSFERSIZE"),
        (limits.group_left, "are left to the control group (container, service)", "raise its memory limit"),
        (limits.limits.get("RLIMIT_AS"), "of address space are allowed (ulimit -v)", "ulimit -v unlimited"),
        (limits.limits.get("RLIMIT_FSIZE"), "may a file have, a memory file too (ulimit -f)", "ulimit -f unlimited"),
    ):
        if found is not None and found < LEAST_MEMORY:
            problems.append(Check(name, FAILED, f"only {mib(found)} {what}", remedy))
    yield from problems
    if not problems:
        least = min((size for size in (limits.available, limits.group_left) if size is not None), default=None)
        shm = f"; /dev/shm has {mib(limits.shm_free)}" if foreign and limits.shm_free is not None else ""
        yield Check(name, OK, f"{'no limit is known' if least is None else mib(least) + ' can be had'}{shm}")
    files = limits.limits.get("RLIMIT_NOFILE")
    if files is not None and files < LEAST_FILES:
        yield Check("open files", FAILED, f"only {files} are allowed (ulimit -n)", "ulimit -n 4096")
    else:
        yield Check("open files", OK, f"{'any number' if files is None else files} may be open")


# ---- a device set


def check_devices(library: Provider | None, group: str | None) -> Check:
    """Whether a device set can be made, and with the package's own library also whether bytes pass."""
    name = "device set"
    if library is None:
        return Check(name, SKIPPED, "there is no provider")
    try:
        if library.classes_only or library.path != Provider.embedded().path:
            with VirtualDeviceSet.create(provider=library, group=group):
                pass
            return Check(name, OK, "one could be made")
        descriptor = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        try:
            done = pipe_backup("synthetic:1MiB", descriptor, provider=library, group=group, own_process=False)
        finally:
            os.close(descriptor)
    except Exception as error:  # whatever it is, it is the finding
        return Check(name, FAILED, words(error), remedy_of(error))
    return Check(name, OK, f"{mib(done.size)} went through one, from the stand-in")


# ---- words


def remedy_of(error: BaseException) -> str:
    """What the table of codes says against an error."""
    found = codes_in(str(error))
    number = getattr(error, "number", None)
    if not found and isinstance(number, int):
        found = [entry for entry in explain(number) if entry.code.startswith("Msg")]
    if not found and isinstance(code := getattr(error, "code", None), int):
        found = explain(code)
    return "; ".join(entry.remedy for entry in found) or "see the message"


def words(error: BaseException) -> str:
    """Its text, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def mib(size: int) -> str:
    """Bytes as people read them."""
    return f"{size / 2**20:.1f} MiB" if size < 10 << 30 else f"{size / 2**30:.0f} GiB"
