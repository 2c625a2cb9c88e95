"""Queries of the system tables and of the server's properties: values, their types, and errors by number."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_session import Heard, run

from vdi_ext.engine import Engine, Synthetic
from vdi_ext.engine.msdb import BackupRecord, FileRecord
from vdi_ext.engine.session import Parameter, Session, SqlType

SET = UUID("12345678-1234-1234-1234-123456789abc")
MEDIA = UUID("87654321-4321-4321-4321-cba987654321")
FORK = UUID("00000000-0000-0000-0000-00000000f0f0")
START = datetime(2024, 5, 6, 7, 8, 9)


def backup(type: str = "D", number: int = 0, **more) -> BackupRecord:
    defaults = dict(
        database="sales", type=type, devices=("first", "second"), started=START.replace(hour=7 + number),
        finished=START.replace(hour=7 + number, minute=30), set_guid=UUID(int=SET.int + number),
        media_guid=UUID(int=MEDIA.int + number), size=5 << 30, first_lsn=(37, 120, 34), last_lsn=(37, 200, 1),
        checkpoint_lsn=(37, 120, 34), database_lsn=None, first_fork=FORK, last_fork=FORK, family_guid=FORK,
        name="full backup", user="operator", server_name="STANDIN", machine_name="host",
        files=(FileRecord(1, "sales", "/data/sales.mdf", "D", 6 << 30, 5 << 30),),
    )  # fmt: skip
    return BackupRecord(**(defaults | more))


@pytest.fixture
def engine() -> Engine:
    engine = Engine({"sales": Synthetic(1 << 20), "Other db": Synthetic(1 << 20)}, server_name="STANDIN")
    engine.history.record(backup())
    engine.history.record(backup("L", 1, is_copy_only=True, first_lsn=(37, 200, 1), last_lsn=(40, 1, 2)))
    return engine


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    session = Session(engine, login="operator", program="a test", host="laptop")
    yield session
    session.close()


def value(session: Session, query: str) -> object:
    heard = run(session, query)
    assert heard.messages == [], query
    ((only,),) = heard.rows
    return only


def type_of(session: Session, query: str) -> str:
    heard = run(session, query)
    (columns,) = (event[1] for event in heard.events if event[0] == "columns")
    return str(columns[0].type)


@pytest.mark.parametrize(
    ("expression", "expected", "type_"),
    [
        ("1 + 2 * 3", 7, "int"),
        ("(1 + 2) * 3", 9, "int"),
        ("-7 / 2", -3, "int"),
        ("-7 % 4", -3, "int"),
        ("7 & 3 | 8", 11, "int"),
        ("5 ^ 1", 4, "int"),
        ("~0", -1, "int"),
        ("3000000000", 3000000000, "bigint"),
        ("99999999999999999999", Decimal("99999999999999999999"), "numeric(20,0)"),
        ("1.50", Decimal("1.50"), "numeric(3,2)"),
        ("1e3", 1000.0, "float"),
        ("0xAB01", b"\xab\x01", "varbinary(2)"),
        ("'it''s' + N' x'", "it's x", "nvarchar(6)"),
        ("'5' + 3", 8, "int"),
        ("NULL", None, "int"),
        ("CASE WHEN 1 > 2 THEN 'a' WHEN 'A' = 'a' THEN 'b' ELSE 'c' END", "b", "varchar(1)"),
        ("CASE 3 WHEN 3 THEN 1 END", 1, "int"),
        ("IIF(1 > 2, 1, NULL)", None, "int"),
        ("IIF('a' = 'A', 'yes', N'no')", "yes", "nvarchar(3)"),
        ("ISNULL(NULL, 'x')", "x", "varchar(1)"),
        ("COALESCE(NULL, NULL, 4)", 4, "int"),
        ("NULLIF(3, 3)", None, "int"),
        ("CAST('12' AS int) + 1", 13, "int"),
        ("CAST(3.7 AS int)", 3, "int"),
        ("CAST(1 AS decimal(10, 2)) / 3", Decimal("0.333333"), "numeric(38,6)"),
        ("CAST('abc' AS varchar(2))", "ab", "varchar(2)"),
        ("CAST('2024-05-06 07:08:09.123' AS datetime)", datetime(2024, 5, 6, 7, 8, 9, 123000), "datetime"),
        ("CAST('2024-05-06 07:08:09' AS date)", date(2024, 5, 6), "date"),
        ("CAST('12345678-1234-1234-1234-123456789abc' AS uniqueidentifier)", SET, "uniqueidentifier"),
        ("CONVERT(varchar(23), CAST('20240506 07:08:09.120' AS datetime), 121)", "2024-05-06 07:08:09.120",
         "varchar(23)"),
        ("CONVERT(char(8), CAST('2024-05-06' AS datetime), 112)", "20240506", "char(8)"),
        ("CONVERT(varchar, CAST('2024-05-06 17:08' AS datetime))", "May  6 2024  5:08PM", "varchar(30)"),
        ("CONVERT(nvarchar(36), 0x4142, 1)", "0x4142", "nvarchar(36)"),
        ("TRY_CAST('x' AS int)", None, "int"),
        ("LEN('abc  ')", 3, "int"),
        ("UPPER(SUBSTRING('backup', 2, 3))", "ACK", "nvarchar(4000)"),
        ("LEFT('backup', 2) + RIGHT('backup', 2)", "baup", "nvarchar(4000)"),
        ("REPLACE('a-b-c', '-', '')", "abc", "nvarchar(4000)"),
        ("CHARINDEX('K', 'backup')", 4, "int"),
        ("QUOTENAME('a]b')", "[a]]b]", "nvarchar(258)"),
        ("DATEDIFF(day, '20240501', '20240506')", 5, "int"),
        ("DATEDIFF(month, '20231231', '20240101')", 1, "int"),
        ("DATEDIFF(week, '20240504', '20240505')", 1, "int"),
        ("DATEADD(month, 1, CAST('20240131' AS datetime))", datetime(2024, 2, 29), "datetime"),
        ("DATEPART(weekday, '20240505')", 1, "int"),
        ("CAST('20240506' AS datetime) - 1", datetime(2024, 5, 5), "datetime"),
        ("ROUND(2.345, 2)", Decimal("2.350"), "numeric(4,3)"),
        ("(SELECT 3)", 3, "int"),
    ],
)  # fmt: skip
def test_expressions(session: Session, expression: str, expected: object, type_: str) -> None:
    found = value(session, f"SELECT {expression}")
    assert (found, type(found)) == (expected, type(expected))
    assert type_of(session, f"SELECT {expression}") == type_


@pytest.mark.parametrize(
    ("condition", "truth"),
    [
        ("'abc' LIKE 'A%'", True),
        ("'abc' LIKE '_b[a-d]'", True),
        ("'abc' NOT LIKE '[^a]%'", True),
        ("'50%' LIKE '50!%' ESCAPE '!'", True),
        ("'a' IN ('x', 'A')", True),
        ("3 BETWEEN 1 AND 3 AND NOT 4 BETWEEN 1 AND 3", True),
        ("NULL IS NULL OR 1 = 0", True),
        ("NULL = NULL", False),
        ("EXISTS (SELECT * FROM sys.databases WHERE name = 'MASTER')", True),
        ("'2024-05-06' > CAST('20240505' AS datetime)", True),
        ("'10' > 9", True),
        ("1 <> 1 OR 2 !< 2", True),
        ("(((1 = 1)))", True),
    ],
)
def test_conditions(session: Session, condition: str, truth: bool) -> None:
    heard = run(session, f"IF {condition} PRINT 'yes' ELSE PRINT 'no'")
    assert [message.text for message in heard.messages] == ["yes" if truth else "no"]


def test_a_pattern_of_stars_takes_no_time(session: Session) -> None:
    assert value(session, f"SELECT CASE WHEN '{'a' * 2000}' LIKE '{'%a' * 900}b' THEN 1 ELSE 0 END") == 0


def test_who_and_what_the_server_is(session: Session) -> None:
    row = run(
        session,
        "SELECT @@VERSION, @@SERVERNAME, @@SPID, SERVERPROPERTY('ProductVersion'), SERVERPROPERTY('EngineEdition'), "
        "SERVERPROPERTY('InstanceName'), IS_SRVROLEMEMBER('sysadmin'), SUSER_SNAME(), DB_NAME(), DB_ID('sales'), "
        "HOST_NAME(), APP_NAME(), @@TRANCOUNT, SERVERPROPERTY('IsHadrEnabled')",
    ).rows[0]
    assert row[0].startswith("Microsoft SQL Server 2022 (RTM) - 16.0.1000.6 (X64)") and "not SQL Server" in row[0]
    assert row[1:] == (
        "STANDIN", session.spid, "16.0.1000.6", 4, None, 1, "operator", "master", 5, "laptop", "a test", 0, 0,
    )  # fmt: skip


def test_an_instance_is_part_of_the_servers_name() -> None:
    engine = Engine({}, server_name="STANDIN", instance="SQL2")
    session = Session(engine)
    assert run(session, "SELECT @@SERVERNAME, SERVERPROPERTY('InstanceName')").rows == [("STANDIN\\SQL2", "SQL2")]
    session.close()


def test_the_databases(session: Session) -> None:
    heard = run(
        session,
        """
        SELECT d.name, d.database_id, state_desc, recovery_model_desc, is_read_only, source_database_id, d.replica_id
        FROM master.sys.databases AS d WITH (NOLOCK) WHERE d.database_id > 4 OR d.name = N'MSDB' ORDER BY d.name
        """,
    )
    assert heard.rows == [
        ("msdb", 4, "ONLINE", "SIMPLE", 0, None, None),
        ("Other db", 6, "ONLINE", "SIMPLE", 0, None, None),
        ("sales", 5, "ONLINE", "SIMPLE", 0, None, None),
    ]
    assert heard.events[-1] == ("done", 3)


def test_files_of_one_and_of_all_databases(session: Session) -> None:
    files = [("sales", "ROWS", 1), ("sales_log", "LOG", 2)]
    query = "SELECT name, type_desc, file_id FROM {} ORDER BY file_id"
    assert run(session, "USE sales " + query.format("sys.database_files")).rows == files
    assert run(session, query.format("sys.master_files WHERE database_id = DB_ID()")).rows == files


def test_the_history_of_backups(session: Session) -> None:
    heard = run(
        session,
        """
        SELECT s.backup_set_id, s.backup_set_uuid, s.type, s.first_lsn, s.last_lsn, s.is_copy_only, s.backup_size,
               s.backup_start_date, f.physical_device_name, f.device_type, f.family_sequence_number,
               s.first_recovery_fork_guid, s.name, s.database_name
        FROM msdb.dbo.backupset s
        INNER JOIN msdb.dbo.backupmediafamily f ON s.media_set_id = f.media_set_id
        WHERE s.database_name = 'SALES' AND s.backup_start_date >= '2024-05-06'
        ORDER BY s.backup_set_id, f.family_sequence_number
        """,
    )
    assert heard.rows[1] == (
        1, SET, "D", Decimal(37000000012000034), Decimal(37000000020000001), 0, Decimal(5 << 30), START, "second", 7, 2,
        FORK, "full backup", "sales",
    )  # fmt: skip
    assert [row[0] for row in heard.rows] == [1, 1, 2, 2]
    assert value(session, f"SELECT type FROM msdb..backupset WHERE backup_set_uuid = '{SET}'") == "D"
    assert run(session, "USE msdb SELECT COUNT(*) FROM dbo.backupset").rows == [(2,)]


def test_lsns_compare_as_numbers(session: Session) -> None:
    query = "SELECT backup_set_id FROM msdb.dbo.backupset WHERE last_lsn "
    assert value(session, query + "> 37000000020000001") == 2
    assert value(session, query + "= 37000000020000001") == 1
    assert value(session, "SELECT MAX(last_lsn) FROM msdb.dbo.backupset") == Decimal(40000000000100002)
    assert value(session, "SELECT backup_set_id FROM msdb.dbo.backupset a WHERE EXISTS (SELECT 1 FROM "
                 "msdb.dbo.backupset b WHERE b.last_lsn = a.first_lsn)") == 2  # fmt: skip


def test_the_last_backup_of_each_database(session: Session) -> None:
    """As monitoring asks it: grouped, joined outwards, numbered, in a common table expression."""
    grouped = """
        SELECT d.name, MAX(b.backup_finish_date) AS last_backup, DATEDIFF(hour, MAX(b.backup_finish_date), '20240507')
        FROM sys.databases d LEFT OUTER JOIN msdb.dbo.backupset b ON b.database_name = d.name AND b.type = 'D'
        WHERE d.database_id > 4 GROUP BY d.name HAVING COUNT(*) > 0 ORDER BY last_backup DESC
    """
    assert run(session, grouped).rows == [("sales", START.replace(minute=30), 17), ("Other db", None, None)]
    numbered = """
        ;WITH ranked AS (
            SELECT database_name, type, ROW_NUMBER() OVER (PARTITION BY database_name ORDER BY backup_set_id DESC) AS n
            FROM msdb.dbo.backupset
        )
        SELECT database_name, type FROM ranked WHERE n = 1
    """
    assert run(session, numbered).rows == [("sales", "L")]
    assert run(session, "SELECT x.n FROM (SELECT TOP (1) backup_set_id AS n FROM msdb.dbo.backupset ORDER BY "
               "backup_set_id DESC) x UNION ALL SELECT 7").rows == [(2,), (7,)]  # fmt: skip


def test_sessions_and_requests_are_seen(engine: Engine, session: Session) -> None:
    query = """
        SELECT r.session_id, r.command, r.percent_complete, s.login_name, s.program_name, t.text
        FROM sys.dm_exec_requests r JOIN sys.dm_exec_sessions s ON r.session_id = s.session_id
        CROSS APPLY sys.dm_exec_sql_text(r.sql_handle) AS t
    """
    assert run(session, query).rows == [(session.spid, "SELECT", 0.0, "operator", "a test", query)]


def test_preferred_replica_and_permissions(session: Session) -> None:
    assert value(session, "SELECT sys.fn_hadr_backup_is_preferred_replica('sales')") == 1
    assert value(session, "SELECT HAS_DBACCESS('sales')") == 1
    assert value(session, "SELECT IS_SRVROLEMEMBER('no such role')") is None
    assert value(session, "SELECT DATABASEPROPERTYEX('sales', 'Recovery')") == "SIMPLE"
    assert run(session, "SELECT * FROM sys.availability_groups").rows == []


def test_variables_and_parameters(session: Session) -> None:
    heard = Heard()
    given_ = {"@id": Parameter(SqlType("int"), 1), "@name": Parameter(SqlType("nvarchar", 50), "SALES")}
    session.run(
        "DECLARE @n nvarchar(3) = 'long', @d datetime SELECT @d = backup_start_date, @id += 1 FROM msdb..backupset"
        .replace(", @id += 1", ""), heard, given_,
    )  # fmt: skip
    assert (heard.messages, session.value("@n"), session.value("@d")) == ([], "lon", START.replace(hour=8))
    heard = Heard()
    session.run("SELECT type FROM msdb..backupset WHERE backup_set_id = @ID AND database_name = @Name", heard, given_)
    assert heard.rows == [("D",)]


@pytest.mark.parametrize(
    "name", ["null", "int", "bit", "decimal", "money", "float", "real", "date", "time", "datetime2", "datetimeoffset",
             "smalldatetime", "uniqueidentifier", "nvarchar", "char", "varbinary", "sysname"],
)  # fmt: skip
def test_a_parameter_of_any_type_can_be_null(session: Session, name: str) -> None:
    given_ = Parameter(SqlType(name, precision=10, scale=2), None)
    assert run(session, "SELECT @x, ISNULL(@x, NULL)", x=given_).rows == [(None, None)]
    heard = run(session, "SELECT name FROM sys.databases WHERE @x IS NOT NULL OR @x = @x OR @x IN (@x)", x=given_)
    assert (heard.rows, heard.messages) == ([], [])


@pytest.mark.parametrize(
    ("type_", "sent", "got"),
    [
        (SqlType("bit"), True, 1),
        (SqlType("decimal", precision=10, scale=2), Decimal("-1.50"), Decimal("-1.50")),
        (SqlType("date"), date(2024, 5, 6), date(2024, 5, 6)),
        (SqlType("time", scale=7), time(7, 8, 9), time(7, 8, 9)),
        (SqlType("datetimeoffset", scale=7), START.replace(tzinfo=UTC), START),
        (SqlType("uniqueidentifier"), SET, SET),
        (SqlType("varbinary", 8), b"\0\xff", b"\0\xff"),
        (SqlType("bigint"), -(1 << 63), -(1 << 63)),
        (SqlType("float"), 0.1, 0.1),
    ],
)
def test_parameters_come_back_as_they_went(session: Session, type_: SqlType, sent: object, got: object) -> None:
    heard = run(session, "SELECT @x", x=Parameter(type_, sent))
    assert heard.rows == [(got,)]


def test_a_text_executed_with_parameters(session: Session) -> None:
    sql = "EXEC sp_executesql N'SET @b = @a * 2; SELECT @b', N'@a int, @b int OUTPUT', @a = 4, @b = @out OUTPUT"
    heard = run(session, f"DECLARE @out int; {sql}; SELECT @out")
    assert heard.rows == [(8,), (8,)]
    assert run(session, "EXECUTE ('SELECT ' + '3')").rows == [(3,)]
    assert run(session, "EXEC sp_executesql N'SELECT @a', N'@a int'").numbers == [8178]
    assert run(session, "EXEC sp_executesql N'SELECT 1', N'', 2").numbers == [8144]
    nested = "DECLARE @s nvarchar(100) = N'EXEC sp_executesql @s, N''@s nvarchar(100)'', @s'; "
    assert run(session, nested + "EXEC sp_executesql @s, N'@s nvarchar(100)', @s").numbers == [217]


@pytest.mark.parametrize(
    ("batch", "number", "text"),
    [
        ("SELECT * FROM nowhere", 208, "Invalid object name 'nowhere'."),
        ("SELECT * FROM sales.dbo.orders", 208, "Invalid object name 'sales.dbo.orders'."),
        ("SELECT nothing FROM sys.databases", 207, "Invalid column name 'nothing'."),
        ("SELECT x.name FROM sys.databases d", 4104, 'The multi-part identifier "x.name" could not be bound.'),
        ("SELECT name FROM sys.databases a, sys.database_files b", 209, "Ambiguous column name 'name'."),
        ("SELECT nonsense()", 195, "'nonsense' is not a recognized built-in function name."),
        ("SELECT LEN()", 174, "The len function requires 1 argument(s)."),
        ("SELECT @x", 137, 'Must declare the scalar variable "@x".'),
        ("SELECT 1 / 0", 8134, "Divide by zero error encountered."),
        ("SELECT CAST('x' AS int)", 245, "Conversion failed when converting the varchar value 'x' to data type int."),
        ("SELECT CAST('x' AS datetime)", 241,
         "Conversion failed when converting date and/or time from character string."),
        ("SELECT 2147483647 + 1", 8115, "Arithmetic overflow error converting expression to data type int."),
        ("SELECT GETDATE() * 2", 402, "The data types datetime and int are incompatible in the multiply operator."),
        ("SELECT name FROM sys.databases WHERE name", 4145,
         "An expression of non-boolean type specified in a context where a condition is expected, near 'name'."),
        ("SELECT 1 = 1", 102, "Incorrect syntax near '='."),
        ("SELECT", 102, "Incorrect syntax near 'SELECT'."),
        ("SELECT FROM sys.databases", 156, "Incorrect syntax near the keyword 'FROM'."),
        ("SELECT (1", 102, "Incorrect syntax near '1'."),
        ("SELECT CAST(1 AS nonsense)", 243, "Type nonsense is not a defined system type."),
        ("DECLARE @a int, @a int", 134, "The variable name '@a' has already been declared. Variable names must be "
         "unique within a query batch or stored procedure."),
        ("sp_nothing 1, 2", 2812, "Could not find stored procedure 'sp_nothing'."),
        ("EXEC master.dbo.xp_cmdshell 'dir'", 2812, "Could not find stored procedure 'master.dbo.xp_cmdshell'."),
        ("CREATE DATABASE x", 3015, "CREATE DATABASE is not yet implemented."),
        ("DELETE FROM msdb.dbo.backupset", 3015, "DELETE FROM is not yet implemented."),
        ("WHILE 1 = 1 PRINT 'x'", 3015, "WHILE is not yet implemented."),
        ("KILL 49", 6106, "Process ID 49 is not an active process ID."),
        ("SELECT 1 UNION SELECT 2, 3", 205, "All queries combined using a UNION, INTERSECT or EXCEPT operator must "
         "have an equal number of expressions in their target lists."),
        (f"SELECT {'(' * 100}1{')' * 100}", 191, "Some part of your SQL statement is nested too deeply. Rewrite the "
         "query or break it up into smaller queries."),
        (f"SELECT 1{' + 1' * 5000}", 191, "Some part of your SQL statement is nested too deeply. Rewrite the query "
         "or break it up into smaller queries."),
        ("SELECT writefile('/tmp/x', 'y')", 195, "'writefile' is not a recognized built-in function name."),
        ("SELECT * FROM sqlite_master", 208, "Invalid object name 'sqlite_master'."),
    ],
)  # fmt: skip
def test_errors_by_their_numbers(session: Session, batch: str, number: int, text: str) -> None:
    heard = run(session, batch)
    assert [(message.number, message.text) for message in heard.messages] == [(number, text)]
    assert heard.messages[0].severity > 10
    assert "row" not in heard.shape


def test_messages_of_ones_own(session: Session) -> None:
    heard = run(session, "RAISERROR('%d of %s', 10, 1, 3, N'ten') WITH NOWAIT; RAISERROR('bad', 16, 2); PRINT 'after'")
    assert [(message.number, message.severity, message.state, message.text) for message in heard.messages] == [
        (50000, 10, 1, "3 of ten"), (50000, 16, 2, "bad"), (0, 0, 1, "after"),
    ]  # fmt: skip
    assert run(session, "PRINT 1/0 PRINT @@ERROR").messages[-1].text == "8134"


def test_rows_are_counted_unless_they_are_not_to_be(session: Session) -> None:
    assert run(session, "SELECT 1; SELECT @@ROWCOUNT").events[-1] == ("done", 1)
    assert run(session, "SET NOCOUNT ON SELECT 1").events[-1] == ("done", None)
    assert run(session, "SET ROWCOUNT 2 SELECT name FROM sys.databases SET ROWCOUNT 0").shape.count("row") == 2


def test_what_is_not_to_be_executed_is_not(session: Session) -> None:
    assert run(session, "SET FMTONLY ON SELECT name FROM sys.databases SET FMTONLY OFF").shape == [
        "done", "columns", "done", "done",
    ]  # fmt: skip
    assert run(session, "SET NOEXEC ON PRINT 'x' SET NOEXEC OFF PRINT 'y'").messages[0].text == "y"


def test_one_session_kills_another(engine: Engine, session: Session) -> None:
    other = Session(engine)
    closed = []
    other.on_kill = lambda: closed.append(other.spid)
    assert run(session, f"KILL {session.spid}").numbers == [6104]
    assert run(session, f"KILL {other.spid}").messages == []
    assert closed == [other.spid]
    assert run(other, "SELECT 1").numbers == [596]
    other.close()


SHARED = Engine({"sales": Synthetic(1 << 20)})
WORDS = [
    "SELECT", "FROM", "sys.databases", "msdb.dbo.backupset", "WHERE", "name", "=", "'x'", "N'y'", "1", "(", ")", ",",
    "*", "+", "-", "/", "AS", "a", "TOP", "ORDER BY", "GROUP BY", "UNION", "CASE", "WHEN", "THEN", "ELSE", "END",
    "CAST", "CONVERT", "int", "datetime", "@x", "@@SPID", "DECLARE", "SET", "IF", "BEGIN", "PRINT", "EXEC",
    "sp_executesql",
    "KILL", "USE", "LIKE", "IN", "BETWEEN", "AND", "OR", "NOT", "NULL", "EXISTS", "COUNT", "MAX", "DATEADD", "day",
    "GETDATE()", "OVER", "JOIN", "ON", "LEFT", "RAISERROR", "BACKUP DATABASE", "TO VIRTUAL_DEVICE =", "WITH", "STATS",
    "ROLLBACK", "TRAN", ";", ".", "[", "]", '"', "--", "/*", "0x1", "1e9", "9999999999999999999999", "\n", "%", "~",
    "DISTINCT", "HAVING", "CROSS APPLY", "COLLATE", "ISNULL", "WAITFOR", "\ud800",
]  # fmt: skip


@given(st.lists(st.sampled_from(WORDS), max_size=25).map(" ".join) | st.text(max_size=100).map("SELECT {}".format))
@settings(max_examples=600, deadline=None)
def test_whatever_is_said_gets_rows_or_messages(batch: str) -> None:
    session = Session(SHARED)
    heard = run(session, batch)
    assert all(message.number < 60000 and message.text for message in heard.messages)
    session.close()


@given(st.text(max_size=200), st.text(max_size=200))
def test_texts_come_back_as_they_went(left: str, right: str) -> None:
    session = Session(SHARED)
    one = Parameter(SqlType("nvarchar", 4000), left)
    heard = run(session, "SELECT @a, @b, @a + @b", a=one, b=Parameter(SqlType("nvarchar", 4000), right))
    assert heard.rows == [(left, right, left + right)]
    session.close()
