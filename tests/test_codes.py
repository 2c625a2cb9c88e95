"""The table of codes: complete, readable, and found under every spelling."""

from __future__ import annotations

import json
import re

import pytest
from conftest import ROOT

from vdi_ext import CompletionCode, cli
from vdi_ext.codes import HRESULT, SQL, VDI, WIN32, codes_in, explain, row_of_hresult
from vdi_ext.engine import messages
from vdi_ext.errors import error_from_hresult


def test_every_code_of_the_interface_has_a_row() -> None:
    header = (ROOT / "include" / "vdierror.h").read_text()
    named = re.findall(r"#define (VD_E_\w+) VD_E_CODE\((0x[0-9A-F]+)u\)", header)
    assert {0x80770000 + int(number, 16): name for name, number in named} == {c: row.name for c, row in VDI.items()}
    win32 = {code: f"ERROR_{CompletionCode(code).name}" for code in CompletionCode}
    assert {code: name for code, name in win32.items() if WIN32[code].name != name} == {}


@pytest.mark.parametrize("row", [*VDI.values(), *HRESULT.values(), *WIN32.values(), *SQL.values()])
def test_cause_and_remedy_are_parts_of_one_sentence(row: tuple) -> None:
    for words in (row.cause, row.remedy):  # type: ignore[attr-defined]
        assert words and words == words.strip() and words[-1] not in ".;" and "\n" not in words


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("0x80770004", "VD_E_ABORT"), ("-2139684861", "VD_E_TIMEOUT"), (-2139684861, "VD_E_TIMEOUT"),
        ("2155282436", "VD_E_ABORT"), ("995", "ERROR_OPERATION_ABORTED"), (112, "ERROR_DISK_FULL"),
        ("0x80070070", "ERROR_DISK_FULL"), ("0x80070005", "E_ACCESSDENIED"), ("vd_e_close", "VD_E_CLOSE"),
        ("OPERATION_ABORTED", "ERROR_OPERATION_ABORTED"), ("0x3e3", "ERROR_OPERATION_ABORTED"),
    ],
)  # fmt: skip
def test_a_code_is_found_under_every_spelling(code: int | str, name: str) -> None:
    (found,) = explain(code)
    assert found.name == name and found.cause in str(found) and found.remedy in str(found)


@pytest.mark.parametrize("code", ["3201", 3201])
def test_a_message_number_is_explained(code: int | str) -> None:
    (found,) = explain(code)
    assert found.code == "Msg 3201" and "state 7" in found.cause


@pytest.mark.parametrize("code", ["", "0x8077FFFF", "nonsense", 4711, "-1", "1e3"])
def test_what_is_unknown_gives_nothing(code: int | str) -> None:
    assert explain(code) == []


def test_exceptions_of_codes_that_libraries_pass_through_say_what_helps() -> None:
    for code in HRESULT:
        row = row_of_hresult(code)
        text = str(error_from_hresult(code - 2**32, "CreateEx"))
        assert row is not None and row.name in text and row.cause in text and row.remedy in text
    assert "ERROR_DISK_FULL" in str(error_from_hresult(0x80070070))


@pytest.mark.parametrize("code", sorted(WIN32))
def test_codes_are_found_in_the_messages_that_carry_them(code: int) -> None:
    said = messages.os_error(code)
    for number, values in ((3201, ("set", said)), (3202, ("set", said)), (18210, ("A::B", "write", "set", said))):
        assert [entry.code for entry in codes_in(messages.message(number, *values).text)] == [str(code)]


def test_codes_in_text_are_decoded_once_and_nothing_else_is_taken_for_one() -> None:
    assert [entry.code for entry in codes_in("error 0x80070002(a); error 0x80070002(b), returns -2139684860.")] == [
        "0x80070002", "0x80770004",
    ]  # fmt: skip
    assert codes_in("Processed 995 pages for database '112', file 'x' on file 38. Line 995") == []


def test_explain_on_the_command_line(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["explain", "-2139684860", "995"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("0x80770004 (VD_E_ABORT): ") and second.startswith("995 (ERROR_OPERATION_ABORTED): ")
    assert cli.main(["explain", "--json", "3201"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["code"] == "Msg 3201" and document["remedy"]


def test_an_unknown_code_on_the_command_line_is_wrong_usage(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as info:
        cli.main(["explain", "4711"])
    assert info.value.code == 2 and "4711" in capsys.readouterr().err


def test_an_error_of_the_program_is_decoded(tmp_path, capsys: pytest.CaptureFixture) -> None:
    """A set that is too small for a device of its own: the server's message carries the code."""
    path = str(tmp_path / "set")
    assert cli.main(["backup", "--quiet", "--in-process", "synthetic:1MiB", path, "--buffer-count", "900000"]) == 3
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and "Msg 701: the server could not get memory for the buffers; lower BUFFERC" in text
