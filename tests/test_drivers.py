"""Addresses of servers, passwords, and what the adapters make of what drivers raise and collect."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vdi_ext.jobs import ArgumentError, backup, backup_text, login_of, password_from
from vdi_ext.jobs.drivers import (
    Adapter,
    MssqlPython,
    Pymssql,
    Pyodbc,
    PythonTds,
    ServerMessage,
    adapter_for,
    adapter_of,
)
from vdi_ext.jobs.server import Server
from vdi_ext.jobs.server_address import ServerAddress, is_server, parse_server_address


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("driver=pymssql&encrypt=strict", "pymssql does not speak TDS 8.0"),
        ("driver=pymssql&ca_file=/x", "pymssql takes no ca_file"),
        ("driver=pyodbc&odbc_driver=FreeTDS&encrypt=yes&ca_file=/x", "pyodbc with FreeTDS takes no ca_file"),
        ("driver=python-tds&encrypt=strict", "python-tds does not speak TDS 8.0"),
        ("driver=python-tds&encrypt=yes", "add ca_file"),
        ("driver=python-tds&encrypt=yes&ca_file=/x", "add trust_server_certificate=yes"),
    ],
)
def test_what_a_driver_cannot_do_for_tls_is_refused(words: str, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it connects, and never left out in silence."""
    from OpenSSL import crypto

    monkeypatch.delattr(crypto.X509, "get_extension", raising=False)  # as in its present versions
    address = parse_server_address(f"mssql://sa@127.0.0.1:1?{words}")
    with pytest.raises(ArgumentError, match=match):
        adapter_for(address.driver).connect(address, "x")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("mssql://host", ServerAddress("host")),
        ("MSSQL://sa@host:1444/INST?database=my%20db&driver=pymssql",
         ServerAddress("host", 1444, "INST", "sa", "my db", "pymssql")),
        ("mssql://dom%5Cme@[::1]/MSSQLSERVER", ServerAddress("::1", None, None, "dom\\me")),
        ("mssql://h/?encrypt=strict&trust_server_certificate=yes&login_timeout=3&ca_file=/x&odbc_driver=FreeTDS",
         ServerAddress("h", encrypt="strict", trust_server_certificate=True, login_timeout=3, ca_file="/x",
                       odbc_driver="FreeTDS")),
    ],
)  # fmt: skip
def test_an_address_says_what_it_says(text: str, address: ServerAddress) -> None:
    assert parse_server_address(text) == address
    assert parse_server_address(str(address)) == address
    assert is_server(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mssql://sa:geheim@host", "a password in an address"),
        ("mssql://sa:geheim@host:99999999", "a password in an address"),
        ("mssql://sa@host?password=geheim", "a password in an address"),
        ("mssql://sa@host?PWD=geheim", "a password in an address"),
        ("mssql://", "no host"),
        ("mssql://host:port", "port"),
        ("mssql://host:0", "port"),
        ("mssql://host:70000", "port"),
        ("mssql://host/a/b", "no instance"),
        ("mssql://host/a%5Cb", "no instance"),
        ("mssql://host?colour=red", "no option colour"),
        ("mssql://host?driver=jdbc", "driver must be one of"),
        ("mssql://host?encrypt=perhaps", "encrypt must be one of"),
        ("mssql://host?login_timeout=0", "login_timeout"),
        ("sqlite:x", "not the address of a server"),
    ],
)
def test_what_is_no_address_is_refused(text: str, words: str) -> None:
    with pytest.raises(ArgumentError, match=words) as caught:
        parse_server_address(text)
    assert "geheim" not in str(caught.value)


def test_a_password_comes_from_where_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret"
    path.write_text("p w;}=\nsecond line\n")
    assert password_from(file=str(path)) == "p w;}="
    monkeypatch.setenv("MINE", "in the environment")
    assert password_from(variable="MINE") == "in the environment"
    assert password_from(command=f"head -n 1 '{path}'") == "p w;}="
    monkeypatch.setattr("getpass.getpass", lambda prompt: f"answer to {prompt}")
    assert password_from(prompt="mine?") == "answer to mine?"


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ({"file": "/nowhere"}, "password file /nowhere: No such file"),
        ({"variable": "NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE"),
        ({"command": "false"}, "ended with code 1"),
        ({"command": "/no/such/program"}, "can not be run"),
        ({"command": "'"}, "can not be run"),
        ({"command": "true"}, "holds no password"),
        ({"command": "printf %0200d 0"}, "holds no password"),
        ({}, "a password is needed"),
    ],
)
def test_a_password_that_is_not_there(where: dict, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        password_from(**where)


def test_who_needs_a_password() -> None:
    assert login_of(["sqlite:x", "mssql://me@box"]) == "me at box"
    assert login_of(["mssql://box"]) is None
    with pytest.raises(ArgumentError, match="needs the password of me"):
        Server("mssql://me@box")
    with pytest.raises(ArgumentError, match="integrated"):
        Server("mssql://box", "geheim")
    with pytest.raises(ArgumentError, match="only the address of a server"):
        backup("sqlite:x", "y", password="geheim")


def cli(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "vdi_ext", *map(str, arguments)], capture_output=True, text=True,
                          timeout=60, stdin=subprocess.DEVNULL, **options)


@pytest.mark.parametrize("arguments", [["--password", "geheim"], ["--password=geheim"]])
def test_a_password_on_the_command_line_is_refused(tmp_path: Path, arguments: list[str]) -> None:
    done = cli("backup", "mssql://sa@127.0.0.1:1", tmp_path / "set", *arguments)
    assert done.returncode == 2
    assert "--password-file" in done.stderr
    assert "geheim" not in done.stderr


def test_a_password_in_an_address_is_refused(tmp_path: Path) -> None:
    done = cli("backup", "mssql://sa:geheim@127.0.0.1:1?database=x", tmp_path / "set")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "geheim" not in done.stderr


def test_a_sentence_where_nobody_can_be_asked(tmp_path: Path) -> None:
    done = cli("backup", "mssql://sa@127.0.0.1:1?database=x", tmp_path / "set")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "a password is needed" in done.stderr


def test_print_sql_prints_and_does_nothing(tmp_path: Path) -> None:
    done = cli("backup", "mssql://sa@127.0.0.1:1?database=it's", tmp_path / "set", "--print-sql", "--devices", 2,
               "--tail-log", "--no-truncate", "--copy-only", "--name", "n", "--with", "RETAINDAYS = 3", "--stats", 5)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "BACKUP LOG [it's] TO VIRTUAL_DEVICE = N'{device}', VIRTUAL_DEVICE = N'{device2}' WITH CHECKSUM, COPY_ONLY, "
        "STATS = 5, NAME = N'n', NORECOVERY, NO_TRUNCATE, RETAINDAYS = 3\n"
    )
    assert list(tmp_path.iterdir()) == []
    assert backup_text("synthetic:1M", kind="differential") == (
        "BACKUP DATABASE [synthetic] TO VIRTUAL_DEVICE = N'{device}' WITH DIFFERENTIAL")


def test_print_sql_of_a_restore(tmp_path: Path) -> None:
    assert cli("backup", "synthetic:1M", tmp_path / "set", "--devices", 2, "--quiet").returncode == 0
    done = cli("restore", tmp_path / "set", "mssql://h?database=x", "--print-sql", "--replace", "--stop-at",
               "2026-01-02T03:04:05", "--move", "data", "/d/it's.mdf", "--standby", "/d/undo")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "RESTORE DATABASE [x] FROM VIRTUAL_DEVICE = N'{device}', VIRTUAL_DEVICE = N'{device2}' WITH BLOCKSIZE = 512, "
        "REPLACE, STANDBY = N'/d/undo', STOPAT = N'2026-01-02T03:04:05', MOVE N'data' TO N'/d/it''s.mdf'\n")


def test_a_selector_is_not_taken_for_a_name(tmp_path: Path) -> None:
    done = cli("backup", "mssql://h", tmp_path / "{database}", "--print-sql", "--database", "USER_DATABASES")
    assert done.returncode == 2 and "name one" in done.stderr
    done = cli("backup", "synthetic:1M", tmp_path / "{database}", "--database", "USER_DATABASES")
    assert done.returncode == 2 and "only a server" in done.stderr


# ---- what adapters make of what drivers raise, as their documentation has it


class DatabaseError(Exception):
    pass


class Mssql(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(f"Driver Error: Syntax error or access violation; DDBC Error: {text}")
        self.ddbc_error = text


ABORTED = 'Write on "x" failed: 995(The I/O operation has been aborted because of either a thread exit or an ' \
          "application request.)"
ENDED = "BACKUP DATABASE is terminating abnormally."
ODBC = "[Microsoft][ODBC Driver 18 for SQL Server]"


@pytest.mark.parametrize(
    ("adapter", "error", "said"),
    [
        (MssqlPython, Mssql(f"[Microsoft][SQL Server]{ABORTED}"), [(3202, ABORTED)]),
        (MssqlPython, Mssql("[Microsoft][SQL Server]Nobody knows this text."), [(None, "Nobody knows this text.")]),
        (MssqlPython, Mssql("[Microsoft]TCP Provider: Error code 0x68"), []),
        (MssqlPython, Mssql("[Microsoft]Communication link failure"), []),
        (Pyodbc, DatabaseError("42000", f"[42000] [FreeTDS][SQL Server]{ABORTED} (3202) (SQLExecDirectW)"),
         [(3202, ABORTED)]),
        (Pyodbc, DatabaseError("42000", f"[42000] {ODBC}[SQL Server]{ABORTED} (3202) (SQLMoreResults); "
                                        f"[42000] {ODBC}[SQL Server]{ENDED} (3013)"), [(3202, ABORTED), (3013, ENDED)]),
        (Pyodbc, DatabaseError("08S01", f"[08S01] {ODBC}TCP Provider: Error code 0x68 (104) (SQLMoreResults)"), []),
        (Pyodbc, DatabaseError("08S01", "[08S01] [FreeTDS][SQL Server]Unable (20009) (SQLDriverConnect)"), []),
        (Pyodbc, DatabaseError("HY008", "[HY008] [FreeTDS][SQL Server]Cancelled (0) (SQLExecDirectW)"), []),
        (Pymssql, DatabaseError(3202, f"{ABORTED}DB-Lib error message 20018, severity 16:\nGeneral".encode()),
         [(3202, ABORTED)]),
        (Pymssql, DatabaseError((18456, b"Login failed for user 'sa'.DB-Lib error message 20018")),
         [(18456, "Login failed for user 'sa'.")]),
        # The second time in a process, and all times after it.
        (Pymssql, DatabaseError((18456, b"DB-Lib error message 20018, severity 14:\nGeneral SQL Server error: Check")),
         [(18456, "the same message of the server as before; the driver keeps its text back")]),
        (Pymssql, DatabaseError((18456, b"DB-Lib error message 20009, severity 9:\nUnable to connect")), []),
        (Pymssql, DatabaseError(20047, b"DB-Lib error message 20047, severity 9:\nDBPROCESS is dead"), []),
        (PythonTds, OSError(9, "Bad file descriptor"), []),
        (Adapter, DatabaseError(911, "no such database"), [(911, "no such database")]),
        (Adapter, DatabaseError(ENDED), [(3013, ENDED)]),
        (Adapter, OSError(104, "Connection reset by peer"), []),
    ],
)  # fmt: skip
def test_only_what_the_server_said_counts_as_said(adapter: type[Adapter], error: Exception, said: list) -> None:
    """An error of the driver's own, such as a lost connection, tells nothing of what a statement has come to."""
    found = adapter.parse(error)
    assert [(message.number, message.text) for message in found] == said
    assert all(message.is_error for message in found)


def test_a_message_that_ends_the_session_tells_nothing_of_the_statement() -> None:
    assert ServerMessage("x", 596, 16).ends_session and ServerMessage("x", 3013, 21).ends_session
    assert not ServerMessage("x", 3013, 16).ends_session


def test_connections_of_others_get_the_adapter_that_fits() -> None:
    for module, adapter in (("pytds.connection", PythonTds), ("pyodbc", Pyodbc), ("mine", Adapter)):
        assert adapter_of(type("Connection", (), {"__module__": module})()) is adapter
