"""Tokens and statements: what parses, what the errors name, and that a statement survives being written out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdi_ext.engine import SqlError, Statement, parse
from vdi_ext.engine.tsql import tokenize

ONE = "VIRTUAL_DEVICE = 'a'"


def failure(sql: str) -> tuple[int, str]:
    with pytest.raises(SqlError) as info:
        parse(sql)
    (only,) = info.value.messages
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


def test_nothing_but_what_must_be_there() -> None:
    assert parse(f"BACKUP DATABASE db TO {ONE}") == Statement("BACKUP", "db", ("a",))


@pytest.mark.parametrize(
    ("sql", "near"),
    [
        ("", ""),
        ("SELECT 1", "SELECT"),
        ("BACKUP", "BACKUP"),
        ("BACKUP DATABASE", "DATABASE"),
        ("BACKUP DATABASE db FROM VIRTUAL_DEVICE = 'a'", "FROM"),
        ("RESTORE DATABASE db TO VIRTUAL_DEVICE = 'a'", "TO"),
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
        ("BACKUP DATABASE db TO VIRTUAL_DEVICE = 'a'; SELECT 1", "SELECT"),
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
        (f"BACKUP DATABASE db TO {ONE} WITH COMPRESSION", 3032,
         "One or more of the options (compression) are not supported for this statement. Review the documentation for "
         "supported options."),
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
        (f"BACKUP LOG db TO {ONE}", 3015, "BACKUP LOG is not yet implemented."),
        ("BACKUP DATABASE db TO DISK = 'a'", 3015, "BACKUP with a DISK device is not yet implemented."),
        (f"RESTORE VERIFYONLY FROM {ONE}", 3015, "RESTORE VERIFYONLY is not yet implemented."),
    ],
)  # fmt: skip
def test_refusals(sql: str, number: int, text: str) -> None:
    assert failure(sql) == (number, text)


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=128)


@st.composite
def statements(draw: st.DrawFn) -> Statement:
    verb = draw(st.sampled_from(["BACKUP", "RESTORE"]))
    return Statement(
        verb,
        draw(NAMES),
        tuple(draw(st.lists(NAMES, min_size=1, max_size=64, unique=True))),
        draw(st.none() | st.sampled_from([512 << n for n in range(8)])),
        draw(st.none() | st.integers(1, 0x7FFFFFFF)),
        draw(st.none() | st.integers(1, 64).map(lambda n: n << 16)),
        draw(st.none() | st.integers(1, 100)),
        draw(st.none() | st.booleans()),
        copy_only=verb == "BACKUP" and draw(st.booleans()),
        format=verb == "BACKUP" and draw(st.booleans()),
        replace=verb == "RESTORE" and draw(st.booleans()),
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
