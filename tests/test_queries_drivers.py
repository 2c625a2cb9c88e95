"""Every system table as each driver reads it: the types that columns have are those that their values have."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from uuid import UUID

import pytest
from tds_clients import DRIVERS, LOGIN, PASSWORD, connected
from test_queries import FORK, SET, START, backup
from test_tds_serve import Served, serving

from vdi_ext.engine.msdb import History, RestoreRecord
from vdi_ext.engine.queries.tables import TABLES


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    """A process of its own: mssql-python holds the interpreter's lock while it waits for the rest of a long text."""
    state = tmp_path_factory.mktemp("state")
    history = History(state)
    history.record(backup())
    history.record(RestoreRecord("copy", "D", START, SET, files=backup().files))
    with serving(
        "--database", "sales=synthetic:1M", "--server-name", "STANDIN", "--state", str(state),
        "--login", f"{LOGIN}=env:A_PASSWORD", A_PASSWORD=PASSWORD,
    ) as served:  # fmt: skip
        yield served


@pytest.fixture(params=DRIVERS)
def read(request, served, tmp_path) -> Iterator:
    """Takes a query, gives its rows."""
    driver = DRIVERS[request.param]()
    with connected(driver, served, driver.modes[0], tmp_path) as connection:
        yield lambda query, *parameters: driver.rows(connection, query.replace("?", driver.mark), *parameters)


def test_every_table_reaches_every_driver(read) -> None:
    for name in TABLES:
        database, _, table = name.partition(".")
        rows = read(f"SELECT * FROM {'msdb.dbo.' if database == 'msdb' else 'sys.'}{table}")
        assert all(len(row) == len(TABLES[name].columns) for row in rows)
    assert len(read("SELECT * FROM sys.databases")) == 5


def test_values_have_the_types_of_their_columns(read) -> None:
    query = """
        SELECT backup_set_uuid, first_lsn, backup_size, backup_start_date, type, is_copy_only, name, expiration_date,
               first_recovery_fork_guid, position, time_zone * 0
        FROM msdb.dbo.backupset WHERE database_name = ? AND backup_set_id < ?
    """
    ((guid, lsn, size, started, kind, copy, name, expires, fork, position, zero),) = read(query, "Sales", 5)
    assert (UUID(str(guid)), UUID(str(fork))) == (SET, FORK)
    assert (type(lsn), lsn, size) == (Decimal, Decimal(37000000012000034), Decimal(5 << 30))
    assert (started, kind, bool(copy), name, expires, position, zero) == (
        START, "D", False, "full backup", None, 1, 0,
    )  # fmt: skip


def test_what_a_tool_asks_first(read) -> None:
    query = """
        SELECT @@VERSION, @@SERVERNAME, @@SPID, SERVERPROPERTY('ProductVersion'), SERVERPROPERTY('EngineEdition'),
               IS_SRVROLEMEMBER('sysadmin'), CAST(SERVERPROPERTY('Edition') AS nvarchar(128)), GETDATE(),
               CAST(0.5 AS real), CAST(12.5 AS money), 0x0102, CONVERT(varchar(10), GETDATE(), 120)
    """
    ((version, server, spid, number, edition, admin, name, now, real, money, binary, day),) = read(query)
    assert version.startswith("Microsoft SQL Server 2022") and server == "STANDIN" and spid > 50
    assert (number, edition, admin, name) == ("16.0.1000.6", 4, 1, "Express Edition (64-bit)")
    assert isinstance(now, datetime) and day == now.date().isoformat()
    assert (real, Decimal(money), bytes(binary)) == (0.5, Decimal("12.5"), b"\1\2")
