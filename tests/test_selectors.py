"""Which databases a selector means, and what names of sets become."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdi_ext.jobs import ArgumentError
from vdi_ext.jobs.inquiries import DatabaseState
from vdi_ext.jobs.selectors import Skipped, is_selector, select
from vdi_ext.jobs.tokens import expand, has_token, tokens_of

SERVER = [
    DatabaseState("master", "ONLINE", "SIMPLE", True),
    DatabaseState("tempdb", "ONLINE", "SIMPLE", True),
    DatabaseState("model", "ONLINE", "FULL", True),
    DatabaseState("msdb", "ONLINE", "SIMPLE", True),
    DatabaseState("Sales", "ONLINE", "FULL", False),
    DatabaseState("sales_test", "ONLINE", "SIMPLE", False),
    DatabaseState("stopped", "OFFLINE", "FULL", False),
    DatabaseState("arriving", "RESTORING", "FULL", False),
    DatabaseState("elsewhere", "ONLINE", "FULL", False, preferred=False),
    DatabaseState("a,b [c]", "ONLINE", "BULK_LOGGED", False),
    DatabaseState("frozen", "ONLINE", "FULL", False, is_snapshot=True),
]
UNUSABLE = [Skipped("stopped", "it is OFFLINE"), Skipped("arriving", "it is RESTORING"),
            Skipped("elsewhere", "this is not the replica that backups are preferred on"),
            Skipped("frozen", "a database snapshot can not be backed up")]  # fmt: skip


@pytest.mark.parametrize(
    ("selector", "chosen", "skipped"),
    [
        ("USER_DATABASES", ["Sales", "sales_test", "a,b [c]"], UNUSABLE),
        ("all_databases", ["master", "model", "msdb", "Sales", "sales_test", "a,b [c]"], UNUSABLE),
        ("SYSTEM_DATABASES", ["master", "model", "msdb"], []),
        ("sales", ["Sales"], []),
        ("sales*", ["Sales", "sales_test"], []),
        ("SALES%, -sales_test", ["Sales"], []),
        ("-*test,USER_DATABASES,-[elsewhere],-stopped,-arriving,-froz?n", ["Sales", "a,b [c]"], []),
        ("[a,b [c]]] , m?d?l*", ["model", "a,b [c]"], []),
        ("tempdb", [], [Skipped("tempdb", "tempdb can not be backed up")]),
        ("stopped,Sales", ["Sales"], [UNUSABLE[0]]),
    ],
)
def test_what_a_selector_means(selector: str, chosen: list[str], skipped: list[Skipped]) -> None:
    assert select(selector, SERVER) == (chosen, skipped)


def test_what_has_no_log_is_skipped_and_named() -> None:
    chosen, skipped = select("*", SERVER, "log")
    assert chosen == ["model", "Sales", "a,b [c]"]
    simple = "its recovery model is SIMPLE: it has no log to back up"
    assert [entry.database for entry in skipped if entry.reason == simple] == ["master", "msdb", "sales_test"]
    assert ("master", "of master there are only full backups") in [
        (entry.database, entry.reason) for entry in select("master", SERVER, "differential")[1]]


@pytest.mark.parametrize(
    ("selector", "words"),
    [("nobody", "no database 'nobody'"), ("x*", "selects none"), ("a[b", "no list"), ("", "selects none"),
     ("-*,USER_DATABASES", "selects none"), ("[]", "no list"), (",,", "no list")],
)  # fmt: skip
def test_what_means_nothing_is_refused(selector: str, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        select(selector, SERVER)


@pytest.mark.parametrize(("text", "is_one"), [(None, False), ("sales", False), ("my db", False), ("a,b", True),
                                              ("USER_DATABASES", True), ("-x", True), ("s%", True), ("s?", True)])
def test_a_plain_name_is_no_selector(text: str | None, is_one: bool) -> None:
    assert is_selector(text) is is_one


@given(st.text(min_size=1, max_size=20))
def test_any_name_can_be_said_in_brackets(name: str) -> None:
    database = DatabaseState(name, "ONLINE", "FULL", False)
    other = DatabaseState(name + "x", "ONLINE", "FULL", False)
    if name != "tempdb":
        assert select("[" + name.replace("]", "]]") + "]", [database, other]) == ([name], [])


def test_tokens_become_what_they_stand_for() -> None:
    values = tokens_of(database="a/b", kind="log", server="host\\two", instance="two")
    name = expand("x/{server}_{database}_{kind}_{instance}-{date}T{time}Z{{}}", values)
    assert re.fullmatch(r"x/host%5Ctwo_a%2Fb_log_two-\d{8}T\d{6}Z\{\}", name)
    assert has_token("{database}", "database") and not has_token("{{database}}", "database")
    for wrong in ("{nothing}", "{", "}", "{}"):
        with pytest.raises(ArgumentError, match="is no token"):
            expand(wrong, values)


@given(st.text(min_size=1, max_size=60))
def test_a_name_stays_in_its_place(name: str) -> None:
    values = tokens_of(database=name, kind="full")
    path = Path(expand("/store/{database}", values))
    assert path.parent == Path("/store")
    assert path.name not in ("", ".", "..")
