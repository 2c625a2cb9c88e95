"""What a machine allows, as the doctor's checks look at it; read once, so that a check can be tried on any machine."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from pathlib import Path

MSSQL = "mssql"  # user and group of SQL Server on Linux

_ELF = struct.Struct("<4sBB10xHH")  # magic, class, byte order, type, machine
_MACHINES = {3: "x86", 40: "ARM", 62: "x86-64", 183: "AArch64"}
_UNLIMITED = 1 << 60  # bytes; version 1 of control groups has a number instead of the word


@dataclass(frozen=True)
class Account:
    """Who this process is, on Linux.

    Attributes
    ----------
    user : str
    uid, gid : int
        Effective.
    groups : frozenset of int
        That the process has; what was added to the user since its login is not among them.
    umask : int or None
    server_uid, server_gid : int or None
        Of the user and the group ``mssql``; None: there is none.
    listed : frozenset of int
        Groups that the user is in according to the system's list.
    server_groups : frozenset of int
        The same of ``mssql``.
    """

    user: str
    uid: int
    gid: int
    groups: frozenset[int] = frozenset()
    umask: int | None = None
    server_uid: int | None = None
    server_gid: int | None = None
    listed: frozenset[int] = frozenset()
    server_groups: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Memory:
    """What limits shared memory; bytes, None: no limit, or not known.

    Attributes
    ----------
    memfd : str or None
        Why memory files can not be made; None: they can.
    available : int or None
        Of the machine.
    group_left : int or None
        Of the control group until its limit.
    shm_free : int or None
        In /dev/shm; None: it is not there.
    limits : dict of str to int or None
        Resource limits by name: ``RLIMIT_AS``, ``RLIMIT_FSIZE``, ``RLIMIT_NOFILE``.
    """

    memfd: str | None = None
    available: int | None = None
    group_left: int | None = None
    shm_free: int | None = None
    limits: dict[str, int | None] = field(default_factory=dict)


def account() -> Account:
    """Of this process."""
    import grp
    import pwd

    def entry(number: int) -> pwd.struct_passwd | None:
        try:
            return pwd.getpwuid(number)
        except KeyError:
            return None

    def groups_of(name: str, gid: int) -> frozenset[int]:
        return frozenset([gid, *(group.gr_gid for group in grp.getgrall() if name in group.gr_mem)])

    uid, gid = os.geteuid(), os.getegid()
    me = entry(uid)
    try:
        server = pwd.getpwnam(MSSQL)
    except KeyError:
        server = None
    try:
        server_gid = grp.getgrnam(MSSQL).gr_gid
    except KeyError:
        server_gid = None
    return Account(
        user=me.pw_name if me else str(uid), uid=uid, gid=gid, groups=frozenset([gid, *os.getgroups()]),
        umask=_umask(), server_uid=server.pw_uid if server else None, server_gid=server_gid,
        listed=groups_of(me.pw_name, me.pw_gid) if me else frozenset(),
        server_groups=groups_of(MSSQL, server.pw_gid) if server else frozenset(),
    )  # fmt: skip


def memory() -> Memory:
    """Of this process."""
    import resource

    limits = {}
    for name in ("RLIMIT_AS", "RLIMIT_FSIZE", "RLIMIT_NOFILE"):
        soft = resource.getrlimit(getattr(resource, name))[0]
        limits[name] = None if soft == resource.RLIM_INFINITY else soft
    try:
        shm = os.statvfs("/dev/shm")
        shm_free = shm.f_bavail * shm.f_frsize
    except OSError:
        shm_free = None
    left = _group_left(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    return Memory(_memfd(), _available(), left, shm_free, limits)


def describe_library(path: str) -> tuple[int | None, str]:
    """Bits of a shared library, and for which machine it was made; None where it is no ELF file."""
    try:
        with open(path, "rb") as file:
            head = file.read(_ELF.size)
        magic, bits, order, _, machine = _ELF.unpack(head)
    except (OSError, struct.error):
        return None, "no library"
    if magic != b"\x7fELF" or bits not in (1, 2) or order != 1:
        return None, "no library of this kind of system"
    return bits * 32, _MACHINES.get(machine, f"machine {machine}")


def _umask() -> int | None:
    try:  # without changing it, as os.umask would
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    except (OSError, ValueError):
        pass
    return None


def _memfd() -> str | None:
    if not hasattr(os, "memfd_create"):
        return "this Python was built without memfd_create"
    try:
        descriptor = os.memfd_create("vdi-doctor", os.MFD_CLOEXEC)
    except OSError as error:
        return error.strerror
    try:
        os.ftruncate(descriptor, 1 << 20)
    except OSError as error:
        return error.strerror
    finally:
        os.close(descriptor)
    return None


def _available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


def _group_left(root: Path, membership: Path) -> int | None:
    """The least that any control group above this process has left, of either version."""
    left = None
    for limit, used in _group_files(root, membership):
        try:
            most, now = limit.read_text().strip(), int(used.read_text())
        except (OSError, ValueError):
            continue
        if most.isdecimal() and int(most) < _UNLIMITED:
            here = max(0, int(most) - now)
            left = here if left is None else min(left, here)
    return left


def _group_files(root: Path, membership: Path) -> list[tuple[Path, Path]]:
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers == "":
            base, names = root, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            base, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        folder = base / place.strip("/")
        while True:
            found.append((folder / names[0], folder / names[1]))
            if folder == base or base not in folder.parents:
                break
            folder = folder.parent
    return found
