"""The leaves: enums, configuration, exceptions."""

from __future__ import annotations

import copy
import math
import pickle
import re

import pytest
from conftest import ROOT

import vdi_ext
from vdi_ext import CommandCode, CompletionCode, DeviceSetConfig, Feature, SetState, VDAbortError, VDError, errors
from vdi_ext.constants import known

# Section 3.3 of the specification and section 4.4 of the conventions, typed from there.
TABLE = {
    0x80770002: ("VD_E_NOTOPEN", "VDNotOpenError", ValueError),
    0x80770003: ("VD_E_TIMEOUT", "VDTimeoutError", TimeoutError),
    0x80770004: ("VD_E_ABORT", "VDAbortError", ConnectionAbortedError),
    0x80770005: ("VD_E_SECURITY", "VDSecurityError", PermissionError),
    0x80770006: ("VD_E_INVALID", "VDInvalidError", ValueError),
    0x80770007: ("VD_E_INSTANCE_NAME", "VDInstanceNameError", LookupError),
    0x80770009: ("VD_E_NOTSUPPORTED", "VDNotSupportedError", NotImplementedError),
    0x8077000A: ("VD_E_MEMORY", "VDMemoryError", MemoryError),
    0x8077000B: ("VD_E_UNEXPECTED", "VDUnexpectedError", RuntimeError),
    0x8077000C: ("VD_E_PROTOCOL", "VDProtocolError", RuntimeError),
    0x8077000D: ("VD_E_OPEN", "VDOpenError", RuntimeError),
    0x8077000E: ("VD_E_CLOSE", "VDClosedError", EOFError),
    0x8077000F: ("VD_E_BUSY", "VDBusyError", BlockingIOError),
    0x80770010: ("VD_E_QUEUE_FULL", "VDQueueFullError", BlockingIOError),
    0x80770011: ("VD_E_IO_ERROR", "VDIOError", OSError),
}


def test_every_public_name_exists() -> None:
    for name in vdi_ext.__all__:
        assert hasattr(vdi_ext, name), name


def test_every_code_of_the_header_has_a_row() -> None:
    header = (ROOT / "include" / "vdierror.h").read_text()
    defined = {
        0x80770000 + int(number, 16): name
        for name, number in re.findall(r"#define (VD_E_\w+) VD_E_CODE\((0x[0-9A-F]+)u\)", header)
    }
    assert len(defined) == len(re.findall(r"#define VD_E_(?!CODE\()", header))
    assert {code: row.name for code, row in errors.ERRORS.items()} == defined


def test_the_table_is_that_of_the_specification() -> None:
    assert {code: (row.name, row.error.__name__) for code, row in errors.ERRORS.items()} == {
        code: (name, error) for code, (name, error, _) in TABLE.items()
    }


@pytest.mark.parametrize("code", TABLE)
def test_errors_are_builtins_print_copy_and_pickle(code: int) -> None:
    name, class_name, builtin = TABLE[code]
    signed = code - 2**32  # as a C call returns it
    error = errors.error_from_hresult(signed, "GetCommand")
    assert type(error) is getattr(vdi_ext, class_name)
    assert isinstance(error, VDError) and isinstance(error, builtin)
    assert (error.code, error.operation) == (code, "GetCommand")
    assert name in str(error) and "GetCommand" in str(error) and error.message in str(error)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is type(error) and twin.__dict__ == error.__dict__ and str(twin) == str(error)


def test_an_abort_carries_reason_and_process_through_a_pickle() -> None:
    error = errors.error_from_hresult(0x80770004, "GetCommand", reason="the server died", pid=4711)
    twin = pickle.loads(pickle.dumps(error))
    assert isinstance(twin, VDAbortError)
    assert (twin.reason, twin.pid) == ("the server died", 4711)
    assert "the server died" in str(twin)


def test_a_foreign_code_is_kept() -> None:
    error = errors.error_from_hresult(0x80070002 - 2**32, "Open")
    assert type(error) is VDError and error.code == 0x80070002 and "0x80070002" in str(error)


def test_unknown_numbers_pass_through() -> None:
    assert known(CommandCode, 12) is CommandCode.FLUSH
    assert known(CommandCode, 99) == 99 and type(known(CommandCode, 99)) is int
    assert Feature(0x80002001 | 0x4000) & 0x4000


def test_values_are_those_of_the_header() -> None:
    header = (ROOT / "include" / "vdi.h").read_text() + (ROOT / "include" / "vdi_provider.h").read_text()
    codes = dict(re.findall(r"#define VDC_(\w+) (\d+)u", header))
    whence = {"Beginning", "Current", "End"}
    assert {snake(n): int(v) for n, v in codes.items() if n not in whence} == {c.name: c.value for c in CommandCode}
    assert {snake(n): int(codes[n]) for n in whence} == {w.name: w.value for w in vdi_ext.Whence}
    features = {snake(n): int(v, 0) for n, v in re.findall(r"#define VDF_(\w+) (0x[0-9A-F]+)u", header, re.I)}
    features["LIKE_TAPE"], features["LIKE_DISK"] = 0x173, 0x200
    assert features == {n: f.value for n, f in Feature.__members__.items()}
    states = {n: int(v) for n, v in re.findall(r"#define VDI_STATE_(\w+) (\d+)u", header)}
    assert states == {s.name: s.value for s in SetState}
    win32 = dict(re.findall(r"#define ERROR_(\w+) (\d+)u", (ROOT / "include" / "vdierror.h").read_text()))
    assert {n: int(v) for n, v in win32.items()} == {c.name: c.value for c in CompletionCode}


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=VSS)(?=W)", "_", name).upper()


def test_a_configuration_goes_to_the_wire_and_back() -> None:
    config = DeviceSetConfig(
        device_count=4, features=Feature.REQUEST_COMPLETE, prefix_zone_size=16, alignment=4096,
        soft_file_mark_block_size=512, eom_warning_size=1 << 20, server_timeout=1.5,
        block_size=512, max_io_depth=4, max_transfer_size=1 << 20, buffer_area_size=8 << 20,
    )  # fmt: skip
    wire = (4, 0x2000, 16, 4096, 512, 1 << 20, 1500, 512, 4, 1 << 20, 8 << 20)
    assert config.to_wire() == wire
    assert DeviceSetConfig.from_wire(wire) == config
    assert pickle.loads(pickle.dumps(config)) == config and hash(config) == hash(copy.copy(config))


def test_the_default_configuration_asks_for_one_pipe() -> None:
    assert DeviceSetConfig().to_wire() == (1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    assert DeviceSetConfig.from_wire((1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)).server_timeout is None


@pytest.mark.parametrize(("seconds", "ms"), [(None, 0), (0.1, 100), (0.0001, 1), (1, 1000), (2.0005, 2001)])
def test_a_timeout_is_rounded_up_to_milliseconds(seconds: float | None, ms: int) -> None:
    assert DeviceSetConfig(server_timeout=seconds).to_wire()[6] == ms


@pytest.mark.parametrize("seconds", [0, 0.0, -1, math.nan, math.inf, 4294967.296])
def test_a_timeout_that_the_wire_can_not_carry_raises(seconds: float) -> None:
    with pytest.raises(ValueError, match="server_timeout"):
        DeviceSetConfig(server_timeout=seconds)


@pytest.mark.parametrize("field", ["device_count", "features", "prefix_zone_size", "alignment", "buffer_area_size"])
def test_a_number_that_the_wire_can_not_carry_raises(field: str) -> None:
    for value in (-1, 2**32):
        with pytest.raises(ValueError, match=field):
            DeviceSetConfig(**{field: value})
    for value in (1.0, "1", None, True):
        with pytest.raises(TypeError, match=field):
            DeviceSetConfig(**{field: value})
