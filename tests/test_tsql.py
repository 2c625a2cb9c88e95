"""Tokens and statements: what parses, what the errors name, and that a statement survives being written out."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdi_ext.engine import SqlError, Statement, parse
from vdi_ext.engine.tsql import refuse, tokenize
from vdi_ext.engine.tsql.options import ALLOWED, EXCLUSIVE
from vdi_ext.engine.tsql.statement import DATES, NUMBERS, SWITCHES, TEXTS

ONE = "VIRTUAL_DEVICE = 'a'"
UNSUPPORTED = ("One or more of the options ({}) are not supported for this statement. Review the documentation for "
               "supported options.")  # fmt: skip


def failure(sql: str) -> tuple[int, str]:
    with pytest.raises(SqlError) as info:
        refuse(parse(sql))
    only, *rest = info.value.messages
    assert [entry.number for entry in rest] == ([3013] if only.number == 1844 else [])
    assert only.number == info.value.number and only.severity in (15, 16)
    return only.number, only.text


def test_everything_at_once() -> None:
    sql = """
        -- a comment
        backup /* another /* nested */ one */ Database [a]]b] To Virtual_Device=N'x''y',
            VIRTUAL_DEVICE = 'two words' WITH blocksize=4096, BufferCount = 7, MAXTRANSFERSIZE= 131072,
            stats, CHECKSUM, COPY_ONLY, format ;
    """
    assert parse(sql) == Statement(
        "BACKUP", "a]b", ("x'y", "two words"), 4096, 7, 131072, 10, True, copy_only=True, format=True
    )


def test_restore() -> None:
    sql = f'RESTORE DATABASE "my ""db""" FROM {ONE} WITH REPLACE, NO_CHECKSUM, STATS = 1'
    assert parse(sql) == Statement("RESTORE", 'my "db"', ("a",), stats=1, checksum=False, replace=True)


def test_every_option_of_a_backup() -> None:
    sql = f"""
        BACKUP LOG db TO {ONE} WITH NAME = N'a ''full'' one', DESCRIPTION = 'd', MEDIANAME = 'm',
            MEDIADESCRIPTION = 'n', EXPIREDATE = '2030-01-02', COPY_ONLY,
            NOINIT, SKIP, NOFORMAT, NO_TRUNCATE, STANDBY = '/u.bak', NOREWIND,
            UNLOAD, CONTINUE_AFTER_ERROR, CHECKSUM, NO_COMPRESSION
    """
    assert parse(sql) == Statement(
        "BACKUP", "db", ("a",), kind="LOG", name="a 'full' one", description="d", media_name="m", media_description="n",
        expire_date=datetime(2030, 1, 2), copy_only=True, init=False, skip=True, format=False, no_truncate=True,
        standby="/u.bak", rewind=False, unload=True, continue_after_error=True, checksum=True, compression=False,
    )  # fmt: skip
    assert parse(f"BACKUP DATABASE db TO {ONE} WITH DIFFERENTIAL, SNAPSHOT, RETAINDAYS = 0").retain_days == 0


def test_every_option_of_a_restore() -> None:
    sql = f"""
        RESTORE LOG db FROM {ONE} WITH MOVE 'a' TO '/a', MOVE N'b' TO '/b', FILE = 2, NORECOVERY, REPLACE,
            STOPATMARK = 'lsn:15000000040000037' AFTER '20240102 03:04:05', STOP_ON_ERROR
    """
    assert parse(sql) == Statement(
        "RESTORE", "db", ("a",), kind="LOG", moves=(("a", "/a"), ("b", "/b")), file=2, norecovery=True, replace=True,
        stop_at_mark="lsn:15000000040000037", stop_after=datetime(2024, 1, 2, 3, 4, 5), continue_after_error=False,
    )  # fmt: skip
    stop = parse(f"RESTORE DATABASE db FROM {ONE} WITH STOPAT = 'Jun 30, 2024 10:00 PM'").stop_at
    assert stop == datetime(2024, 6, 30, 22)


@pytest.mark.parametrize("kind", ["HEADERONLY", "FILELISTONLY", "LABELONLY", "VERIFYONLY"])
def test_what_only_looks_at_the_medium_names_no_database(kind: str) -> None:
    assert parse(f"RESTORE {kind} FROM {ONE} WITH NOUNLOAD") == Statement(
        "RESTORE", "", ("a",), kind=kind, unload=False
    )
    assert failure(f"RESTORE {kind} db FROM {ONE}") == (102, "Incorrect syntax near 'db'.")


def test_a_differential_backup_cannot_be_copy_only() -> None:
    # COPY_ONLY has no effect there, says the reference.
    assert not parse(f"BACKUP DATABASE db TO {ONE} WITH COPY_ONLY, DIFFERENTIAL").copy_only


def test_variables_stand_for_values() -> None:
    sql = "BACKUP DATABASE @DB TO VIRTUAL_DEVICE = @a, VIRTUAL_DEVICE=@b WITH NAME = @n, BLOCKSIZE = @size, STATS = @s"
    values = {"@db": "sales", "@a": "x", "@b": "y", "@n": "a name", "@size": 4096, "@s": Decimal(5)}
    assert parse(sql, values) == Statement("BACKUP", "sales", ("x", "y"), block_size=4096, stats=5, name="a name")
    with pytest.raises(SqlError) as info:
        parse(sql, values | {"@n": None})
    assert info.value.number == 3217
    moment = datetime(2024, 1, 1)
    assert parse(f"RESTORE DATABASE db FROM {ONE} WITH STOPAT = @t", {"@t": moment}).stop_at == moment


def test_errors_name_their_line() -> None:
    with pytest.raises(SqlError) as info:
        parse("\n/* two\nlines */ BACKUP DATABASE db\n  TO nowhere")
    assert info.value.messages[0].line == 4


def test_nothing_but_what_must_be_there() -> None:
    assert parse(f"BACKUP DATABASE db TO {ONE}") == Statement("BACKUP", "db", ("a",))


@pytest.mark.parametrize(
    ("sql", "near"),
    [
        ("", ""),
        ("BACKUP", "BACKUP"),
        ("BACKUP DATABASE", "DATABASE"),
        ("BACKUP DATABASE db TO", "TO"),
        ("BACKUP DATABASE db TO VIRTUAL_DEVICE 'a'", "a"),
        ("BACKUP DATABASE db TO VIRTUAL_DEVICE = a", "a"),
        ("BACKUP DATABASE db TO VIRTUAL_DEVICE = 'a',", ","),
        ("BACKUP DATABASE db TO VIRTUAL_DEVICE = 'a' nonsense", "nonsense"),
        ("BACKUP DATABASE db TO VIRTUAL_DEVICE = 'a' WITH", "WITH"),
        ("BACKUP DATABASE db TO VIRTUAL_DEVICE = 'a' WITH BLOCKSIZE", "BLOCKSIZE"),
        ("BACKUP DATABASE db TO VIRTUAL_DEVICE = 'a' WITH BLOCKSIZE = 'x'", "x"),
        ("BACKUP DATABASE db TO VIRTUAL_DEVICE = 'a' WITH STATS = -1", "-"),
        ("BACKUP DATABASE db TO VIRTUAL_DEVICE = 'a' WITH STATS = 1.5", "1.5"),
        ("BACKUP DATABASE db TO VIRTUAL_DEVICE = 'a' WITH CHECKSUM = 1", "="),
        ("BACKUP DATABASE 'db' TO VIRTUAL_DEVICE = 'a'", "db"),
    ],
)
def test_the_error_names_the_offending_token(sql: str, near: str) -> None:
    assert failure(sql) == (102, f"Incorrect syntax near '{near}'.")


@pytest.mark.parametrize(
    ("sql", "number", "text"),
    [
        ("BACKUP DATABASE db TO VIRTUAL_DEVICE = 'abc", 105,
         "Unclosed quotation mark after the character string 'abc'."),
        ("BACKUP DATABASE [db", 105, "Unclosed quotation mark after the character string 'db'."),
        ("BACKUP /* DATABASE db /* */", 113, "Missing end comment mark '*/'."),
        (f"BACKUP DATABASE {'d' * 129} TO {ONE}", 103,
         f"The identifier that starts with '{'d' * 128}' is too long. Maximum length is 128."),
        ("BACKUP DATABASE @db TO VIRTUAL_DEVICE = 'a'", 137, 'Must declare the scalar variable "@db".'),
        (f"BACKUP DATABASE db TO {ONE} WITH FOO", 155, "'FOO' is not a recognized BACKUP option."),
        (f"BACKUP DATABASE db TO {ONE} WITH REPLACE", 155, "'REPLACE' is not a recognized BACKUP option."),
        (f"RESTORE DATABASE db FROM {ONE} WITH copy_only", 155, "'copy_only' is not a recognized RESTORE option."),
        ("SELECT 1", 156, "Incorrect syntax near the keyword 'SELECT'."),
        ("BACKUP DATABASE db FROM VIRTUAL_DEVICE = 'a'", 156, "Incorrect syntax near the keyword 'FROM'."),
        ("RESTORE DATABASE db TO VIRTUAL_DEVICE = 'a'", 156, "Incorrect syntax near the keyword 'TO'."),
        ("BACKUP DATABASE table TO VIRTUAL_DEVICE = 'a'", 156, "Incorrect syntax near the keyword 'table'."),
        (f"BACKUP DATABASE db TO {ONE} WITH stats, select", 156, "Incorrect syntax near the keyword 'select'."),
        (f"BACKUP DATABASE db TO {ONE}; SELECT 1", 156, "Incorrect syntax near the keyword 'SELECT'."),
        ("BACKUP DATABASE db WITH stats", 319, "Incorrect syntax near the keyword 'WITH'. If this statement is a "
         "common table expression, an xmlnamespaces clause or a change tracking context clause, the previous statement "
         "must be terminated with a semicolon."),
        (f"BACKUP DATABASE db TO {ONE} WITH COMPRESSION", 1844,
         "BACKUP DATABASE WITH COMPRESSION is not supported on Express Edition (64-bit)."),
        (f"BACKUP LOG db TO {ONE} WITH ENCRYPTION (ALGORITHM = AES_256, SERVER CERTIFICATE = c)", 1844,
         "BACKUP LOG WITH ENCRYPTION is not supported on Express Edition (64-bit)."),
        (f"BACKUP DATABASE db TO {ONE} MIRROR TO VIRTUAL_DEVICE = 'b' WITH FORMAT", 3218,
         "Backup mirroring is not available in this edition of SQL Server. See Books Online for more details on "
         "feature support in different SQL Server editions."),
        (f"BACKUP LOG db TO {ONE} WITH DIFFERENTIAL", 3032, UNSUPPORTED.format("differential")),
        (f"BACKUP DATABASE db TO {ONE} WITH NORECOVERY", 3032, UNSUPPORTED.format("norecovery")),
        (f"BACKUP DATABASE db TO {ONE} WITH PASSWORD = 'secret'", 3032, UNSUPPORTED.format("password")),
        (f"BACKUP DATABASE db TO {ONE} WITH MediaPassword = 'secret'", 3032, UNSUPPORTED.format("mediapassword")),
        (f"BACKUP DATABASE db TO {ONE} WITH CREDENTIAL = 'c'", 3032, UNSUPPORTED.format("credential")),
        (f"BACKUP DATABASE db FILE = 'a' TO {ONE}", 3032, UNSUPPORTED.format("file")),
        (f"BACKUP DATABASE db READ_WRITE_FILEGROUPS TO {ONE}", 3032, UNSUPPORTED.format("read_write_filegroups")),
        (f"RESTORE DATABASE db PAGE = '1:57' FROM {ONE}", 3032, UNSUPPORTED.format("page")),
        (f"RESTORE DATABASE db FROM {ONE} WITH PARTIAL", 3032, UNSUPPORTED.format("partial")),
        (f"RESTORE LABELONLY FROM {ONE} WITH FILE = 1", 3032, UNSUPPORTED.format("file")),
        (f"RESTORE HEADERONLY FROM {ONE} WITH REPLACE", 3032, UNSUPPORTED.format("replace")),
        (f"RESTORE DATABASE db FROM {ONE} WITH STOPAT = 'yesterday'", 241,
         "Conversion failed when converting date and/or time from character string."),
        (f"RESTORE DATABASE db FROM {ONE} WITH RECOVERY, NORECOVERY", 3031,
         "Option 'recovery' conflicts with option(s) 'norecovery'. Remove the conflicting option and reissue the "
         "statement."),
        (f"BACKUP DATABASE db TO {ONE} WITH FORMAT, NOINIT", 3031,
         "Option 'format' conflicts with option(s) 'noinit'. Remove the conflicting option and reissue the statement."),
        (f"BACKUP DATABASE db TO {ONE} WITH RETAINDAYS = 100000", 3250,
         "The value '100000' is not within range for the RETAINDAYS parameter."),
        (f"RESTORE DATABASE db FROM {ONE} WITH FILE = 0", 3250,
         "The value '0' is not within range for the FILE parameter."),
        (f"BACKUP DATABASE db TO {ONE} WITH NAME = '{'n' * 129}'", 103,
         f"The character string that starts with '{'n' * 128}' is too long. Maximum length is 128."),
        (f"BACKUP DATABASE db TO {ONE} WITH CHECKSUM, NO_CHECKSUM", 3031,
         "Option 'no_checksum' conflicts with option(s) 'checksum'. Remove the conflicting option and reissue the "
         "statement."),
        (f"BACKUP DATABASE db TO {ONE} WITH BLOCKSIZE = 1000", 3253,
         "The block size parameter must supply a value that is a power of 2."),
        (f"BACKUP DATABASE db TO {ONE} WITH BLOCKSIZE = 256", 3250,
         "The value '256' is not within range for the BLOCKSIZE parameter."),
        (f"BACKUP DATABASE db TO {ONE} WITH BLOCKSIZE = 131072", 3250,
         "The value '131072' is not within range for the BLOCKSIZE parameter."),
        (f"BACKUP DATABASE db TO {ONE} WITH MAXTRANSFERSIZE = 65537", 3217,
         "Invalid value specified for MAXTRANSFERSIZE parameter."),
        (f"BACKUP DATABASE db TO {ONE} WITH MAXTRANSFERSIZE = 4259840", 3250,
         "The value '4259840' is not within range for the MAXTRANSFERSIZE parameter."),
        (f"BACKUP DATABASE db TO {ONE} WITH BUFFERCOUNT = 0", 3250,
         "The value '0' is not within range for the BUFFERCOUNT parameter."),
        (f"BACKUP DATABASE db TO {ONE} WITH STATS = {'9' * 5000}", 3250,
         f"The value '{'9' * 5000}' is not within range for the STATS parameter."),
        ("BACKUP DATABASE db TO VIRTUAL_DEVICE = ''", 3044,
         "Invalid zero-length device name. Reissue the BACKUP statement with a valid device name."),
        (f"BACKUP DATABASE db TO VIRTUAL_DEVICE = '{'x' * 129}'", 3057,
         "Invalid device name. The length of the device name provided exceeds supported limit (maximum length is:128). "
         "Reissue the BACKUP statement with a valid device name."),
        ("BACKUP DATABASE db TO " + ", ".join(f"VIRTUAL_DEVICE = '{n}'" for n in range(65)), 3205,
         "Too many backup devices specified for backup or restore; only 64 are allowed."),
        (f"BACKUP DATABASE db TO {ONE}, {ONE}", 3261, "SQL Server cannot use the virtual device configuration."),
        ("BACKUP CERTIFICATE c TO FILE = 'x'", 3015, "BACKUP CERTIFICATE is not yet implemented."),
        ("BACKUP DATABASE db TO DISK = 'a'", 3015, "BACKUP with a DISK device is not yet implemented."),
    ],
)  # fmt: skip
def test_refusals(sql: str, number: int, text: str) -> None:
    assert failure(sql) == (number, text)


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=128)


SHORT = st.text(st.characters(exclude_categories=["Cs"]), max_size=128)
NUMBER_VALUES = {
    "block_size": st.sampled_from([512 << n for n in range(8)]),
    "max_transfer_size": st.integers(1, 64).map(lambda n: n << 16),
    "stats": st.integers(1, 100),
    "retain_days": st.integers(0, 99999),
}


@st.composite
def statements(draw: st.DrawFn) -> Statement:
    operation = draw(st.sampled_from(sorted(ALLOWED)))
    verb, kind = operation.split()
    given: dict[str, object] = {}
    for field in sorted(draw(st.sets(st.sampled_from(sorted(ALLOWED[operation]))))):
        if field in SWITCHES:
            given[field] = draw(st.booleans()) if SWITCHES[field][1] else True
        elif field in NUMBERS:
            given[field] = draw(NUMBER_VALUES.get(field, st.integers(1, 0x7FFFFFFF)))
        elif field in TEXTS:
            given[field] = draw(SHORT)
        elif field in DATES:
            given[field] = draw(st.datetimes())
        else:
            given[field] = tuple(draw(st.lists(st.tuples(SHORT, SHORT), max_size=4)))
    for names in EXCLUSIVE:
        for name in [name for name in names if name in given][1:]:
            del given[name]
    if given.get("format"):
        given["init"] = given["skip"] = True
    if given.get("differential"):
        given.pop("copy_only", None)
    if "stop_at_mark" in given or "stop_before_mark" in given:
        given["stop_after"] = draw(st.none() | st.datetimes())
    database = kind in ("DATABASE", "LOG")
    return Statement(
        verb,
        draw(NAMES) if database else "",
        tuple(draw(st.lists(NAMES, min_size=1, max_size=64, unique=True))),
        kind=kind,
        files=tuple(draw(st.lists(SHORT, max_size=3))) if database else (),
        filegroups=tuple(draw(st.lists(SHORT, max_size=3))) if database else (),
        read_write_filegroups=database and draw(st.booleans()),
        **given,
    )


@given(statements())
def test_a_statement_survives_being_written_out(statement: Statement) -> None:
    assert parse(statement.to_sql()) == statement


@given(st.text(max_size=300) | st.lists(st.sampled_from(
    ["BACKUP", "RESTORE", "DATABASE", "TO", "FROM", "WITH", ",", "=", "'", "N'", "[", "]", '"', "db", "1", "--", "/*",
     "*/", ";", "@x", "VIRTUAL_DEVICE", "STATS", "\n"]), max_size=40).map(" ".join))  # fmt: skip
def test_any_text_parses_or_is_refused(sql: str) -> None:
    try:
        statement = parse(sql)
    except SqlError as error:
        assert error.number
    else:
        assert parse(statement.to_sql()) == statement


@given(st.text(max_size=300))
def test_tokens_cover_the_text_in_order(sql: str) -> None:
    try:
        tokens = tokenize(sql)
    except SqlError:
        return
    place = 0
    for token in tokens:
        place = sql.index(token.text, place) + len(token.text)
