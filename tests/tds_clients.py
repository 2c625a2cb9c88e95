"""The drivers that people use with SQL Server, behind one face for the tests."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vdi_ext.engine.tds import Endpoint

LOGIN, PASSWORD = "sa", "Pässw0rd; {'!"  # FreeTDS's ODBC driver cannot take a closing brace
PLAIN, LOGIN_ONLY, ALL, STRICT = "plain", "login", "all", "strict"


@dataclass
class Outcome:
    """What a batch came to: messages that inform, in their order, and the error that the driver raised."""

    messages: list[str]
    error: Exception | None = None
    steps: int = 0  # result sets and other stops on the way


class Driver:
    """A driver of Python's database interface."""

    modes: tuple[str, ...] = ()  # of TLS, that it can ask for
    error: type[Exception] = Exception
    mark = "?"  # of a parameter

    def connect(self, endpoint: Endpoint, tls: str, certificate: Path, *, password: str = PASSWORD,
                database: str = "master", autocommit: bool = True) -> Any:  # fmt: skip
        raise NotImplementedError

    def informed(self, cursor: Any) -> list[str]:
        """What the cursor was told since the last step."""
        return [str(text) for _, text in getattr(cursor, "messages", None) or []]

    def run(self, connection: Any, batch: str) -> Outcome:
        """Run a batch to its end, as programs have to: through all of its results."""
        cursor, outcome = connection.cursor(), Outcome([])
        with contextlib.closing(cursor):
            try:
                cursor.execute(batch)
                outcome.messages += self.informed(cursor)
                while cursor.nextset():
                    outcome.steps += 1
                    outcome.messages += self.informed(cursor)
            except self.error as error:
                outcome.error = error
        return outcome

    def rows(self, connection: Any, batch: str, *parameters: object) -> list[tuple]:
        with contextlib.closing(connection.cursor()) as cursor:
            cursor.execute(batch, parameters)
            return [tuple(row) for row in cursor.fetchall()]


class Pymssql(Driver):
    modes = (PLAIN, ALL)
    mark = "%s"

    def __init__(self) -> None:
        import pymssql

        self.module = pymssql
        self.error = pymssql.Error

    def connect(self, endpoint, tls, certificate, *, password=PASSWORD, database="master", autocommit=True):
        encryption = {PLAIN: "off", ALL: "require"}[tls]
        return self.module.connect(
            endpoint.host, LOGIN, password, database, port=str(endpoint.port), autocommit=autocommit,
            login_timeout=20, timeout=60, encryption=encryption,
        )  # fmt: skip

    def run(self, connection, batch):
        said: list[str] = []
        # The one way to its messages.
        connection._conn.set_msghandler(lambda state, severity, server, procedure, line, text: said.append(_str(text)))
        outcome = super().run(connection, batch)
        outcome.messages = said
        return outcome


class Pytds(Driver):
    modes = (PLAIN, LOGIN_ONLY, ALL)
    mark = "%s"

    def __init__(self) -> None:
        import pytds

        self.module = pytds
        self.error = pytds.Error

    def connect(self, endpoint, tls, certificate, *, password=PASSWORD, database="master", autocommit=True):
        trust = {}
        if tls != PLAIN:
            # It compares names with calls that its TLS library has lost; the certificate itself it verifies.
            trust = {"cafile": str(certificate), "validate_host": False, "enc_login_only": tls == LOGIN_ONLY}
        return self.module.connect(
            endpoint.host, database, LOGIN, password, port=endpoint.port, autocommit=autocommit, login_timeout=20,
            timeout=60, **trust,
        )  # fmt: skip

    def informed(self, cursor):
        return [error.args[0] for _, error in cursor.messages]


class Pyodbc(Driver):
    """With FreeTDS's driver."""

    modes = (PLAIN, ALL)

    def __init__(self) -> None:
        import pyodbc

        pyodbc.pooling = False
        self.module = pyodbc
        self.error = pyodbc.Error

    def connect(self, endpoint, tls, certificate, *, password=PASSWORD, database="master", autocommit=True):
        encryption = {PLAIN: "off", ALL: "require"}[tls]
        return self.module.connect(
            f"DRIVER=FreeTDS;Server={endpoint.host};Port={endpoint.port};UID={LOGIN};PWD={_braced(password)};"
            f"Database={database};TDS_Version=7.4;Encryption={encryption}",
            autocommit=autocommit, timeout=20,
        )  # fmt: skip


class MssqlPython(Driver):
    modes = (LOGIN_ONLY, ALL, STRICT)

    def __init__(self) -> None:
        import mssql_python

        mssql_python.pooling(enabled=False)
        self.module = mssql_python
        self.error = mssql_python.Error

    def connect(self, endpoint, tls, certificate, *, password=PASSWORD, database="master", autocommit=True):
        trust = {
            LOGIN_ONLY: "Encrypt=no;TrustServerCertificate=yes",
            ALL: "Encrypt=yes;TrustServerCertificate=yes",
            STRICT: f"Encrypt=strict;ServerCertificate={certificate}",
        }[tls]
        return self.module.connect(
            f"Server={endpoint.host},{endpoint.port};UID={LOGIN};PWD={_braced(password)};Database={database};{trust};",
            autocommit=autocommit, timeout=20,
        )  # fmt: skip


DRIVERS: dict[str, type[Driver]] = {
    "mssql-python": MssqlPython,
    "pymssql": Pymssql,
    "pyodbc": Pyodbc,
    "python-tds": Pytds,
}


def tsql(endpoint: Endpoint, batches: list[str], folder: Path, *, encryption: str = "off",
         password: str = PASSWORD, version: str = "7.4") -> subprocess.CompletedProcess[str]:  # fmt: skip
    """FreeTDS's own client, one batch after the other."""
    conf = folder / "freetds.conf"
    conf.write_text(
        f"[global]\ntds version = {version}\nclient charset = UTF-8\n"
        f"[standin]\nhost = {endpoint.host}\nport = {endpoint.port}\nencryption = {encryption}\n"
    )
    return subprocess.run(
        ["tsql", "-S", "standin", "-U", LOGIN, "-P", password, "-o", "q"],
        input="".join(f"{batch}\ngo\n" for batch in batches),
        env={**os.environ, "FREETDSCONF": str(conf), "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=60,
    )


@contextlib.contextmanager
def connected(driver: Driver, endpoint: Endpoint, tls: str, certificate: Path, **more: Any) -> Iterator[Any]:
    with contextlib.closing(driver.connect(endpoint, tls, certificate, **more)) as connection:
        yield connection


def _braced(value: str) -> str:
    return "{" + value.replace("}", "}}") + "}"


def _str(text: object) -> str:
    return text.decode() if isinstance(text, bytes) else str(text)
