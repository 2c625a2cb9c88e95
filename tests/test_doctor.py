"""The doctor: what it finds here, and what it says of machines and servers on which something is wrong."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import PROVIDER
from tds_clients import LOGIN, PASSWORD

from vdi_ext import Provider, cli
from vdi_ext.engine import Engine, Synthetic
from vdi_ext.engine.tds import Endpoint
from vdi_ext.jobs import ArgumentError, Check, diagnose, doctor_server, surroundings
from vdi_ext.jobs.doctor import check_account, check_memory, check_provider
from vdi_ext.jobs.server import Server
from vdi_ext.jobs.surroundings import Account, Memory, describe_library

MIB = 1 << 20
MSSQL = {"server_uid": 10001, "server_gid": 10002}


def by_name(checks: Iterator[Check]) -> dict[str, Check]:
    found = {}
    for check in checks:
        assert check.status in ("ok", "note", "failed", "skipped") and check.text
        assert check.status != "failed" or check.remedy, "each failure has its remedy"
        found[check.name] = check
    return found


def statuses(found: dict[str, Check]) -> dict[str, str]:
    return {name: check.status for name, check in found.items()}


# ---- this machine


def test_this_machine_with_the_library_of_the_package() -> None:
    found = by_name(diagnose(provider="embedded"))
    assert list(found) == [
        "program", "provider", "umask", "groups", "shared memory", "open files", "device set", "driver",
    ]  # fmt: skip
    assert not [check for check in found.values() if check.status in ("failed", "skipped")]
    assert str(PROVIDER) in found["provider"].text and f"{struct.calcsize('P') * 8} bits" in found["provider"].text
    assert "MiB went through" in found["device set"].text
    assert "mssql-python 1." in found["driver"].text and "python-tds" in found["driver"].text


def test_a_library_that_is_none(tmp_path: Path) -> None:
    bad = tmp_path / "libsqlvdi.so"
    bad.write_bytes(b"not a library")
    found = by_name(diagnose(provider=bad))
    assert statuses(found)["provider"] == "failed" and statuses(found)["device set"] == "skipped"
    library, check = check_provider(tmp_path / "nothing")
    assert library is None and check.status == "failed"


def test_the_bits_of_a_library_are_read_from_its_head(tmp_path: Path) -> None:
    assert describe_library(os.fspath(PROVIDER))[0] == struct.calcsize("P") * 8
    path = tmp_path / "library"
    head = bytearray(PROVIDER.read_bytes()[:64])
    head[4:5], head[18:20] = b"\1", (3).to_bytes(2, "little")
    path.write_bytes(head)
    assert describe_library(os.fspath(path)) == (32, "x86")
    for content in (b"", b"\x7fELF", b"MZ" + bytes(62), b"\x7fELF\7" + bytes(59)):
        path.write_bytes(content)
        assert describe_library(os.fspath(path))[0] is None


@pytest.mark.parametrize(
    ("who", "status", "words"),
    [
        (Account("ann", 1000, 1000, frozenset([1000])), "failed", "no user or no group mssql"),
        (Account("mssql", 10001, 10002, frozenset([10002]), **MSSQL), "ok", "this is user mssql"),
        (Account("ann", 1000, 1000, frozenset([1000, 10002]), server_groups=frozenset([1000, 10002]), **MSSQL),
         "ok", "in each other's group"),
        (Account("ann", 1000, 1000, frozenset([1000]), listed=frozenset([1000, 10002]), **MSSQL),
         "failed", "log in again"),
        (Account("ann", 1000, 1000, frozenset([1000]), listed=frozenset([1000]), **MSSQL),
         "failed", "usermod -a -G mssql ann; usermod -a -G"),
        (Account("ann", 1000, 1000, frozenset([1000, 10002]), **MSSQL), "failed", " mssql; then restart SQL Server"),
    ],
)  # fmt: skip
def test_groups(who: Account, status: str, words: str) -> None:
    found = by_name(check_account(who, foreign=True))["groups"]
    assert found.status == status and words in f"{found.text} -> {found.remedy}"
    # With the package's own library they matter to nobody but who has SQL Server as well.
    assert by_name(check_account(who, foreign=False))["groups"].status == ("ok" if status == "ok" else "note")


def test_the_umask_is_told() -> None:
    assert by_name(check_account(Account("ann", 1, 1, umask=0o77), foreign=True))["umask"].text.startswith("0077")
    assert surroundings.account().umask is not None


@pytest.mark.parametrize(
    ("limits", "foreign", "words"),
    [
        (Memory("Function not implemented"), False, "memfd_create"),
        (Memory(available=10 * MIB), False, "BUFFERCOUNT"),
        (Memory(available=900 * MIB, group_left=20 * MIB), False, "control group"),
        (Memory(limits={"RLIMIT_AS": 30 * MIB}), False, "ulimit -v"),
        (Memory(limits={"RLIMIT_FSIZE": 1024}), False, "ulimit -f"),
        (Memory(limits={"RLIMIT_NOFILE": 20}), False, "ulimit -n"),
        (Memory(), True, "mount a tmpfs on /dev/shm"),
        (Memory(shm_free=10 * MIB), True, "--shm-size"),
    ],
)
def test_memory_that_is_not_enough(limits: Memory, foreign: bool, words: str) -> None:
    failed = [check for check in check_memory(limits, foreign=foreign) if check.status == "failed"]
    assert len(failed) == 1 and words in f"{failed[0].text} -> {failed[0].remedy}"


@pytest.mark.parametrize("foreign", [False, True])
def test_memory_that_is_enough(foreign: bool) -> None:
    limits = Memory(None, 8 << 30, 2 << 30, 4 << 30, {"RLIMIT_AS": None, "RLIMIT_FSIZE": None, "RLIMIT_NOFILE": 1024})
    found = by_name(check_memory(limits, foreign=foreign))
    assert set(statuses(found).values()) == {"ok"} and "2048.0 MiB" in found["shared memory"].text


def test_limits_of_control_groups_of_both_versions(tmp_path: Path) -> None:
    membership, root = tmp_path / "cgroup", tmp_path / "fs"
    inner, v1 = root / "system" / "job", root / "memory" / "docker"
    inner.mkdir(parents=True)
    v1.mkdir(parents=True)
    membership.write_text("0::/system/job\n5:cpu,memory:/docker\n")
    assert surroundings._group_left(root, membership) is None
    (inner / "memory.max").write_text("max\n")
    (inner / "memory.current").write_text("5\n")
    (inner.parent / "memory.max").write_text("1000\n")
    (inner.parent / "memory.current").write_text("400\n")
    assert surroundings._group_left(root, membership) == 600
    (v1 / "memory.limit_in_bytes").write_text("500\n")
    (v1 / "memory.usage_in_bytes").write_text("480\n")
    assert surroundings._group_left(root, membership) == 20
    (v1 / "memory.limit_in_bytes").write_text(f"{(1 << 63) - 4096}\n")  # its word for none
    assert surroundings._group_left(root, membership) == 600
    assert surroundings._group_left(root, tmp_path / "nothing") is None


# ---- a server


@pytest.fixture
def engine() -> Engine:
    return Engine({"model": Synthetic(MIB), "db": Synthetic(MIB)})


@pytest.fixture
def address(engine: Engine) -> Iterator[str]:
    with Endpoint(engine, {LOGIN: PASSWORD}) as endpoint:
        yield f"mssql://{LOGIN}@{endpoint.host}:{endpoint.port}?driver=python-tds&encrypt=no"


def diagnosed(address: str, **options) -> dict[str, Check]:
    return by_name(diagnose(address, provider="embedded", **{"password": PASSWORD, **options}))


def test_a_server_that_is_well(address: str) -> None:
    found = diagnosed(address)
    assert not [check for check in found.values() if check.status in ("failed", "skipped")]
    assert list(found)[-5:] == ["driver", "connection", "rights", "machine", "instance"]
    assert found["rights"].text == "sa is in the server role sysadmin" and found["machine"].status == "ok"


def test_a_backup_to_nowhere_is_made_only_where_it_is_asked_for(address: str, engine: Engine) -> None:
    diagnosed(address)
    assert [entry.number for entry in engine.error_log] == []
    found = diagnosed(address, backup_test=True)["test backup"]
    assert found.status == "ok" and "msdb has gained a row" in found.text
    (entry,) = engine.error_log
    assert entry.number == 18264 and "Database: model" in entry.text
    with contextlib.closing(Server(address, PASSWORD).open()) as session:
        rows = session.rows("SELECT database_name, is_copy_only FROM msdb.dbo.backupset")
    assert [(name, bool(copy_only)) for name, copy_only in rows] == [("model", True)]


def test_a_test_backup_that_fails_says_what_helps(address: str, engine: Engine) -> None:
    engine.instance = "OTHER"  # so the devices are not found
    found = diagnosed(address, backup_test=True)
    assert found["test backup"].status == found["instance"].status == "failed"
    assert "0x80070002" in found["test backup"].text and "check the instance" in (found["test backup"].remedy or "")
    assert "/OTHER" in (found["instance"].remedy or "")


def test_a_wrong_password(address: str) -> None:
    found = diagnosed(address, password="wrong")
    assert found["connection"].status == "failed" and "wrong" not in found["connection"].text
    assert list(found)[-1] == "connection"


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = diagnosed(f"mssql://sa@127.0.0.1:{port}?driver=python-tds&encrypt=no&login_timeout=2")["connection"]
    assert found.status == "failed" and "host, port and instance" in (found.remedy or "")


def test_a_driver_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str) -> None:
        raise ArgumentError(f"the driver {module} can not be loaded")

    monkeypatch.setattr(doctor_server, "imported", missing)
    found = diagnosed("mssql://sa@127.0.0.1:1")
    assert statuses(found)["driver"] == "failed" and statuses(found)["connection"] == "skipped"


class Answers:
    """A session of a server that is not here."""

    def __init__(self, **rows: tuple) -> None:
        self._rows = rows

    def rows(self, sql: str) -> list[tuple]:
        return [next(values for word, values in self._rows.items() if word in sql)]


@pytest.mark.parametrize(
    ("name", "answers", "status", "words"),
    [
        ("_connection", {"VERSION": ("Microsoft SQL Server 2022 (RTM)\n\tOct",), "Edition": (3,)}, "failed",
         "own library"),
        ("_connection", {"VERSION": ("Microsoft SQL Azure (RTM)",), "Edition": (5,)}, "failed", "no BACKUP"),
        ("_rights", {"ROLE": ("bob", 0)}, "failed", "ALTER SERVER ROLE sysadmin ADD MEMBER [bob]"),
        ("_machine", {"Machine": ("FARAWAY", "FARAWAY")}, "note", "share one machine"),
        ("_machine", {"Machine": (socket.gethostname().upper(), None)}, "ok", ""),
        ("_instance", {"Instance": (None,)}, "ok", "default"),
        ("_instance", {"Instance": ("SQLEXPRESS",)}, "failed", "/SQLEXPRESS"),
    ],
)  # fmt: skip
def test_servers_with_something_wrong(name: str, answers: dict, status: str, words: str) -> None:
    server = Server(lambda: None)
    check = getattr(doctor_server, name)(Answers(**answers), server, Provider.embedded())
    assert check.status == status and words in f"{check.text} -> {check.remedy}"


def test_a_test_backup_needs_an_address() -> None:
    with pytest.raises(ArgumentError, match="address of a server"):
        list(diagnose(backup_test=True))


# ---- the command line


def test_exit_code_and_lines(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["doctor", "--provider", "embedded"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "everything that was looked at is well"
    assert cli.main(["doctor", "--provider", "/nothing", "--json"]) == cli.EXIT_DOCTOR == 7
    *checks, result = map(json.loads, capsys.readouterr().out.splitlines())
    assert result == {"event": "result", "failed": 1}
    (failed,) = (check for check in checks if check["status"] == "failed")
    assert failed["name"] == "provider" and failed["remedy"] and failed["event"] == "check"


def test_the_command_line_asks_a_server(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("SA_PASSWORD", PASSWORD)
    arguments = ["doctor", address, "--provider", "embedded", "--password-env", "SA_PASSWORD", "--backup-test"]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert "ok       test backup: " in out and PASSWORD not in out
