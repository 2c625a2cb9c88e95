"""``vdi-ext serve``: its greeting, where passwords come from, its end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from cryptography.hazmat.primitives import serialization
from engine_clients import Recorder, client
from tds_clients import ALL, DRIVERS, PLAIN, connected
from tds_raw import BATCH, HEADERS, RawClient

from vdi_ext.engine.tds import tls

BOUND = 30.0


class Served:
    """A server in a process of its own, and what it said when it began."""

    def __init__(self, process: subprocess.Popen, said: dict) -> None:
        self.process = process
        self.host, self.port = said["host"], said["port"]
        self.password_file = said["password_file"]

    def end(self, number: signal.Signals) -> tuple[int, str, str]:
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=BOUND)
        return self.process.returncode, out, err


@contextlib.contextmanager
def serving(*arguments: str, **environment: str) -> Iterator[Served]:
    process = subprocess.Popen(
        [sys.executable, "-m", "vdi_ext", "serve", "--listen", "127.0.0.1:0", "--json", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield Served(process, json.loads(line))
    finally:
        process.kill()
        process.communicate()


def refused(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "vdi_ext", "serve", *arguments], capture_output=True, text=True,
                          timeout=BOUND)  # fmt: skip


def test_a_server_that_nobody_configured(tmp_path: Path) -> None:
    """A login and a certificate are made on the spot; the password is in a file that nobody else may read."""
    driver = DRIVERS["pymssql"]()
    with serving("--database", "db=synthetic:1M", "--database", "Other=synthetic:1M") as served:
        path = Path(served.password_file)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        password = path.read_text().strip()
        with connected(driver, served, ALL, tmp_path, password=password) as connection:
            names = [name for (name,) in driver.rows(connection, "SELECT name FROM sys.databases")]
            assert names[-2:] == ["db", "Other"]
        code, _, log = served.end(signal.SIGINT)
    assert code == 130 and not path.exists()
    assert password not in log
    assert "of sa with pymssql" in log


def test_the_greeting_says_how_to_connect() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "vdi_ext", "serve", "--listen", "127.0.0.1:0", "--database", "db=synthetic:1M"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        lines = [process.stdout.readline().rstrip("\n") for _ in range(6)]
        process.send_signal(signal.SIGTERM)
        assert process.wait(BOUND) == 143
    finally:
        process.kill()
        process.communicate()
    assert lines[0].endswith("it is not SQL Server")
    port = lines[1].removeprefix("listening on 127.0.0.1:").partition(";")[0]
    assert lines[1] == f"listening on 127.0.0.1:{port}; databases: db"
    assert lines[2] == f"connect:  tsql -H 127.0.0.1 -p {port} -U sa"
    assert lines[3] == f"or:       sqlcmd -S 127.0.0.1,{port} -U sa -C"
    assert lines[4].startswith("password of sa: in /")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_what_runs(number: signal.Signals) -> None:
    reached, go = threading.Event(), threading.Event()

    def stalled(device: int, command: object) -> None:
        reached.set()
        go.wait(BOUND)

    with serving(
        "--database", "db=synthetic:1M", "--encrypt", "never", "--login", "sa=env:SECRET", SECRET="secret"
    ) as served:
        with RawClient(served.host, served.port) as raw, client(1, stalled) as one:
            raw.send(BATCH, HEADERS + f"BACKUP DATABASE db TO {one.clauses}".encode("utf-16-le"))
            assert reached.wait(BOUND)
            code, _, log = served.end(number)
            go.set()
    assert code == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert "Traceback" not in log
    assert [type(error).__name__ for error in one.errors] == ["VDAbortError"]


def test_no_client_writes_lines_into_the_log() -> None:
    with serving(
        "--database", "db=synthetic:1M", "--encrypt", "never", "--login", "sa=env:SECRET", SECRET="secret"
    ) as served:
        with RawClient(served.host, served.port, login=False) as raw:
            raw.log_in(user="x\nforged \x1b[2J")
            assert raw.closed()
        _, _, log = served.end(signal.SIGINT)
    assert "Login failed for user 'x\\nforged \\x1b[2J'." in log


def test_a_backup_over_the_network(tmp_path: Path) -> None:
    """The server in one process, the client of the devices in another."""
    driver, recorder = DRIVERS["python-tds"](), Recorder(2)
    (tmp_path / "secret").write_text("p w\n")
    with serving("--database", "db=synthetic:3M", "--login", f"sa=file:{tmp_path / 'secret'}") as served:
        with connected(driver, served, PLAIN, tmp_path, password="p w") as connection, client(2, recorder) as one:
            outcome = driver.run(connection, f"BACKUP DATABASE db TO {one.clauses}")
    assert outcome.error is None
    assert sum(map(len, recorder.streams)) > 3 << 20


def test_a_certificate_that_is_given(tmp_path: Path) -> None:
    made, key = tls.generate("127.0.0.1")
    (tmp_path / "c.pem").write_bytes(made)
    (tmp_path / "k.pem").write_bytes(key)
    with serving("--database", "db=synthetic:1M", "--login", "sa=env:SECRET", "--encrypt", "strict", "--certificate",
                 str(tmp_path / "c.pem"), "--key", str(tmp_path / "k.pem"), SECRET="secret") as served:  # fmt: skip
        context = ssl.create_default_context(cafile=str(tmp_path / "c.pem"))
        context.set_alpn_protocols(["tds/8.0"])
        with RawClient(served.host, served.port, login=False) as raw:
            raw.socket = context.wrap_socket(raw.socket, server_hostname="127.0.0.1")
            assert raw.socket.selected_alpn_protocol() == "tds/8.0"
            assert raw.log_in().acknowledged
            assert raw.batch("USE db").numbers == [5701]


def test_a_key_behind_a_passphrase_is_refused_and_nobody_is_asked(tmp_path: Path) -> None:
    made, key = tls.generate("localhost")
    locked = serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"x"),
    )
    (tmp_path / "c.pem").write_bytes(made)
    (tmp_path / "k.pem").write_bytes(locked)
    with pytest.raises(tls.CertificateError, match="the key of the certificate is encrypted"):
        tls.load(tmp_path / "c.pem", tmp_path / "k.pem")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--database", "synthetic:1M"], "is no NAME=ADDRESS of a database"),
        (["--database", "a=synthetic:1M", "--database", "A=synthetic:2M"], "two databases have the name A"),
        (["--database", "a=oracle:x"], "is no address of a database"),
        (["--database", "a=synthetic:1M", "--listen", "1433"], "is no HOST:PORT to listen on"),
        (["--database", "a=synthetic:1M", "--listen", "192.0.2.1:0"], "cannot listen on 192.0.2.1:0"),
        (["--database", "a=synthetic:1M", "--login", "sa=hunter2"], "--login sa=... names no source of the password"),
        (["--database", "a=synthetic:1M", "--login", "sa=env:NOT_THERE"], "is empty or not there"),
        (["--database", "a=synthetic:1M", "--login", "sa=file:/nowhere"], "cannot be read from /nowhere"),
        (["--database", "a=synthetic:1M", "--certificate", "/nowhere"], "the certificate /nowhere cannot be used"),
        ([], "--database"),
    ],
)
def test_wrong_usage(arguments: list[str], text: str) -> None:
    done = refused(*arguments)
    assert done.returncode == 2
    assert text in done.stderr and "hunter2" not in done.stderr and "Traceback" not in done.stderr


def test_without_the_package_for_certificates_the_extra_is_named() -> None:
    code = "import sys; sys.modules['cryptography'] = None; from vdi_ext.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = [sys.executable, "-c", code, "serve", "--listen", "127.0.0.1:0", "--database", "a=synthetic:1M"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=BOUND)
    assert (done.returncode, 'pip install "vdi_ext[serve]"' in done.stderr) == (2, True)


def test_the_example_of_the_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "serve.md").read_text(), re.M | re.S)
    exec(program, {})
    assert capsys.readouterr().out.startswith("127.0.0.1 ")


def test_the_history_of_backups_outlives_the_server(tmp_path: Path) -> None:
    state, driver = tmp_path / "state", DRIVERS["pymssql"]()
    arguments = ("--database", "db=synthetic:1M", "--login", "sa=env:A_PASSWORD", "--state", str(state))
    query = "SELECT database_name, type FROM msdb.dbo.backupset"
    with (
        serving(*arguments, A_PASSWORD="a password") as served,
        connected(driver, served, ALL, tmp_path, password="a password") as connection,
    ):
        with client(1, Recorder(1)) as one:
            assert driver.run(connection, f"BACKUP DATABASE db TO {one.clauses}").error is None
        assert driver.rows(connection, query) == [("db", "D")]
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    with (
        serving(*arguments, A_PASSWORD="a password") as served,
        connected(driver, served, ALL, tmp_path, password="a password") as connection,
    ):
        assert driver.rows(connection, query) == [("db", "D")]
    (state / "history.jsonl").write_text("nonsense\n")
    ended = refused("--database", "db=synthetic:1M", "--state", str(state))
    assert ended.returncode == 2 and "line 1 is no record" in ended.stderr
