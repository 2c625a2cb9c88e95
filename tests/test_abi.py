"""The headers against the tables of sections 2 and 3 of the specification, and libvdi.pxd against the headers.

The tables are typed here from the specification, not from the headers. A probe is compiled with the C compiler and
compares sizes, offsets, slots with their signatures, constants and identifiers.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

INCLUDE = ROOT / "include"
HEADERS = sorted(h.name for h in INCLUDE.glob("*.h"))
PXD = ROOT / "vdi_ext" / "libvdi.pxd"
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
C, CXX = ["-std=c11", "-xc"], ["-std=c++17", "-xc++"]
# gcc and g++ are there, the package was built with them; clang where it is installed, which it is where CI runs.
COMPILERS = [("gcc", C), ("g++", CXX)] + [
    (name, language)
    for name, language in (("clang", C), ("clang++", CXX))
    if shutil.which(name) or os.environ.get("CI") == "true"
]

# Section 2.1: size, alignment, offset of each field.
STRUCTS = {
    "VDConfig": (44, 4, {
        "deviceCount": 0, "features": 4, "prefixZoneSize": 8, "alignment": 12, "softFileMarkBlockSize": 16,
        "EOMWarningSize": 20, "serverTimeOut": 24, "blockSize": 28, "maxIODepth": 32, "maxTransferSize": 36,
        "bufferAreaSize": 40,
    }),
    "VDC_Command": (24, 8, {"commandCode": 0, "size": 4, "position": 8, "buffer": 16}),
    "VDS_Command": (56, 8, {
        "commandCode": 0, "size": 4, "inPosition": 8, "outPosition": 16, "buffer": 24, "completionRoutine": 32,
        "completionContext": 40, "completionCode": 48, "bytesTransferred": 52,
    }),
}  # fmt: skip

# Section 2.3: the slots from 3 on with their parameters. Slots 0 to 2 are those of IUnknown.
CLIENT_SET = [
    ("Create", "LPCWSTR, VDConfig *"),
    ("GetConfiguration", "DWORD, VDConfig *"),
    ("OpenDevice", "LPCWSTR, IClientVirtualDevice **"),
    ("Close", ""),
    ("SignalAbort", ""),
    ("OpenInSecondary", "LPCWSTR"),
    ("GetBufferHandle", "BYTE *, DWORD *"),
    ("MapBufferHandle", "DWORD, BYTE **"),
]
INTERFACES = {
    "IClientVirtualDevice": [
        ("GetCommand", "DWORD, VDC_Command **"),
        ("CompleteCommand", "VDC_Command *, DWORD, DWORD, DWORDLONG"),
    ],
    "IClientVirtualDeviceSet": CLIENT_SET,
    "IClientVirtualDeviceSet2": [
        *CLIENT_SET,
        ("CreateEx", "LPCWSTR, LPCWSTR, VDConfig *"),
        ("OpenInSecondaryEx", "LPCWSTR, LPCWSTR"),
    ],
    "IServerVirtualDevice": [("SendCommand", "VDS_Command *"), ("CloseDevice", "")],
    "IServerVirtualDeviceSet": [
        ("Open", "LPCWSTR"),
        ("GetConfiguration", "VDConfig *"),
        ("SetConfiguration", "VDConfig *"),
        ("ExecuteCompletionAgent", ""),
        ("OpenDevice", "LPCWSTR, IServerVirtualDevice **"),
        ("AllocateBuffer", "BYTE **, DWORD, DWORD"),
        ("FreeBuffer", "BYTE *, DWORD"),
        ("IsSharedBuffer", "BYTE *"),
        ("SignalAbort", ""),
        ("Close", ""),
    ],
    "IServerVirtualDeviceSet2": [
        ("Open", "LPCWSTR, LPCWSTR"),
        ("GetConfiguration", "VDConfig *"),
        ("BeginConfiguration", "DWORD, DWORD, DWORD, DWORD, DWORD"),
        ("EndConfiguration", ""),
        ("RequestBuffers", "DWORD, DWORD, DWORD"),
        ("QueryAvailableBuffers", "DWORD, DWORD, DWORD *"),
        ("ExecuteCompletionAgent", ""),
        ("OpenDevice", "LPCWSTR, IServerVirtualDevice **"),
        ("AllocateBuffer", "BYTE **, DWORD, DWORD"),
        ("FreeBuffer", "BYTE *, DWORD"),
        ("IsSharedBuffer", "BYTE *"),
        ("SignalAbort", ""),
        ("Close", ""),
    ],
}

# Section 2.2.
GUIDS = {
    "IID_IUnknown": "00000000-0000-0000-C000-000000000046",
    "IID_IClassFactory": "00000001-0000-0000-C000-000000000046",
    "IID_IClientVirtualDevice": "40700424-0080-11D2-851F-00C04FC21759",
    "IID_IClientVirtualDeviceSet": "40700425-0080-11D2-851F-00C04FC21759",
    "IID_IClientVirtualDeviceSet2": "D0E6EB07-7A62-11D2-8573-00C04FC21759",
    "IID_IServerVirtualDevice": "B5E7A131-A7BD-11D1-84C2-00C04FC21759",
    "IID_IServerVirtualDeviceSet": "B5E7A132-A7BD-11D1-84C2-00C04FC21759",
    "IID_IServerVirtualDeviceSet2": "AECBD0D6-24C6-11D3-85B7-00C04FC21759",
    "CLSID_MSSQL_ClientVirtualDeviceSet": "40700425-0080-11D2-851F-00C04FC21759",
    "CLSID_MSSQL_ServerVirtualDeviceSet": "B5E7A132-A7BD-11D1-84C2-00C04FC21759",
    "CLSID_WINFS_ClientVirtualDeviceSet": "50B99B13-7B84-44D3-9C98-2652BF144D96",
    "CLSID_WINFS_ServerVirtualDeviceSet": "92E6B26B-57DA-47ED-8153-DFF187A76DDE",
    "CLSID_WIDVDI_ClientVirtualDeviceSet": "A9A3FE12-61C7-496E-AABF-B83E3287AB82",
    "CLSID_WIDVDI_ServerVirtualDeviceSet": "A6F16B19-0040-4947-8D3F-52DE129BB615",
}

# Sections 3.1 to 3.4.
CONSTANTS = {
    "VDF_LikePipe": 0, "VDF_Removable": 0x1, "VDF_Rewind": 0x2, "VDF_Position": 0x10, "VDF_SkipBlocks": 0x20,
    "VDF_ReversePosition": 0x40, "VDF_Discard": 0x80, "VDF_FileMarks": 0x100, "VDF_RandomAccess": 0x200,
    "VDF_SnapshotPrepare": 0x400, "VDF_EnumFrozenFiles": 0x800, "VDF_VSSWriter": 0x1000,
    "VDF_RequestComplete": 0x2000, "VDF_WriteMedia": 0x10000, "VDF_ReadMedia": 0x20000,
    "VDF_CompleteEnabled": 0x40000, "VDF_LatchStats": 0x80000000, "VDF_LikeTape": 0x173, "VDF_LikeDisk": 0x200,
    "VDC_Read": 1, "VDC_Write": 2, "VDC_ClearError": 3, "VDC_Rewind": 4, "VDC_WriteMark": 5, "VDC_SkipMarks": 6,
    "VDC_SkipBlocks": 7, "VDC_Load": 8, "VDC_GetPosition": 9, "VDC_SetPosition": 10, "VDC_Discard": 11,
    "VDC_Flush": 12, "VDC_Snapshot": 13, "VDC_MountSnapshot": 14, "VDC_PrepareToFreeze": 15,
    "VDC_FileInfoBegin": 16, "VDC_FileInfoEnd": 17, "VDC_GetError": 18, "VDC_Complete": 19,
    "VDC_Beginning": 0, "VDC_Current": 1, "VDC_End": 2,
    "NOERROR": 0, "S_OK": 0, "S_FALSE": 1, "INFINITE": 0xFFFFFFFF,
    "VD_E_NOTOPEN": 0x80770002, "VD_E_TIMEOUT": 0x80770003, "VD_E_ABORT": 0x80770004, "VD_E_SECURITY": 0x80770005,
    "VD_E_INVALID": 0x80770006, "VD_E_INSTANCE_NAME": 0x80770007, "VD_E_NOTSUPPORTED": 0x80770009,
    "VD_E_MEMORY": 0x8077000A, "VD_E_UNEXPECTED": 0x8077000B, "VD_E_PROTOCOL": 0x8077000C,
    "VD_E_OPEN": 0x8077000D, "VD_E_CLOSE": 0x8077000E, "VD_E_BUSY": 0x8077000F,
    "VD_E_QUEUE_FULL": 0x80770010, "VD_E_IO_ERROR": 0x80770011, "E_ACCESSDENIED": 0x80070005,
    "ERROR_SUCCESS": 0, "ERROR_INVALID_HANDLE": 6, "ERROR_ARENA_TRASHED": 7, "ERROR_BAD_ENVIRONMENT": 10,
    "ERROR_HANDLE_EOF": 38, "ERROR_HANDLE_DISK_FULL": 39, "ERROR_NOT_SUPPORTED": 50, "ERROR_DISK_FULL": 112,
    "ERROR_OPERATION_ABORTED": 995, "ERROR_END_OF_MEDIA": 1100, "ERROR_FILEMARK_DETECTED": 1101,
    "ERROR_BEGINNING_OF_MEDIA": 1102, "ERROR_NO_DATA_DETECTED": 1104, "ERROR_INVALID_BLOCK_LENGTH": 1106,
    "ERROR_NO_MEDIA_IN_DRIVE": 1112, "ERROR_IO_DEVICE": 1117, "ERROR_EOM_OVERFLOW": 1129,
    "ERROR_NO_SYSTEM_RESOURCES": 1450,
}  # fmt: skip

UNKNOWN_SLOTS = ["QueryInterface", "AddRef", "Release"]


def compile_c(source: str, tmp_path: Path, compiler: str = "gcc", flags: list[str] = C) -> tuple[Path, str]:
    """Compile a program and return it with what the compiler said: nothing, where it compiled."""
    text, program = tmp_path / "probe.txt", tmp_path / "probe"
    program.unlink(missing_ok=True)
    text.write_text(source + "\n")
    command = [compiler, *flags, *STRICT, f"-I{INCLUDE}", str(text), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode == 0) == program.exists()
    return program, done.stderr


@pytest.mark.parametrize(("compiler", "flags"), COMPILERS)
def test_sizes_offsets_slots_constants_and_identifiers(compiler: str, flags: list[str], tmp_path: Path) -> None:
    lines, expected = [], {}

    def show(name: str, expression: str, value: int) -> None:
        lines.append(f'printf("%s %llu\\n", "{name}", (unsigned long long)({expression}));')
        expected[name] = str(value)

    for struct, (size, alignment, offsets) in STRUCTS.items():
        show(f"sizeof({struct})", f"sizeof({struct})", size)
        lines.append(f"struct align_{struct} {{ char c; {struct} s; }};")
        show(f"alignof({struct})", f"offsetof(struct align_{struct}, s)", alignment)
        for field, offset in offsets.items():
            show(f"{struct}.{field}", f"offsetof({struct}, {field})", offset)
    for interface, slots in INTERFACES.items():
        names = [*UNKNOWN_SLOTS, *(name for name, _ in slots)]
        show(f"slots of {interface}", f"sizeof({interface}Vtbl) / sizeof(void *)", len(names))
        show(f"size of {interface}", f"sizeof({interface})", 8)
        for number, name in enumerate(names):
            show(f"{interface}::{name}", f"offsetof({interface}Vtbl, {name}) / sizeof(void *)", number)
    for name, value in CONSTANTS.items():
        show(name, f"(uint32_t){name}", value)
    for name, text in GUIDS.items():
        lines.append(f'guid("{name}", &{name});')
        expected[name] = text
    source = """
        #include <stdio.h>
        #include "vdi_provider.h"
        static void guid(const char *name, const GUID *g) {
            printf("%s %08X-%04X-%04X-%02X%02X-", name, (unsigned)g->Data1, g->Data2, g->Data3, g->Data4[0],
                   g->Data4[1]);
            for (int i = 2; i < 8; i++) printf("%02X", g->Data4[i]);
            printf("\\n");
        }
        int main(void) { """ + "\n".join(lines) + " return 0; }"
    program, errors = compile_c(source, tmp_path, compiler, flags)
    assert not errors
    output = subprocess.run([program], capture_output=True, text=True, timeout=60, check=True).stdout
    assert dict(line.rsplit(" ", 1) for line in output.splitlines()) == expected


def test_signatures_of_all_slots(tmp_path: Path) -> None:
    checks = []
    for interface, slots in INTERFACES.items():
        unknown = [("HRESULT", "QueryInterface", "const IID *, void **"), ("ULONG", "AddRef", ""),
                   ("ULONG", "Release", "")]  # fmt: skip
        for result, name, parameters in unknown + [("HRESULT", *slot) for slot in slots]:
            all_parameters = f"{interface} *, {parameters}".rstrip(", ")
            checks.append(same_type(f"(({interface}Vtbl *)0)->{name}", f"{result} (*)({all_parameters})"))
    _, errors = compile_c(check_program(checks), tmp_path, flags=["-std=gnu11", "-xc"])
    assert not errors


def same_type(expression: str, type_: str) -> str:
    return f'_Static_assert(__builtin_types_compatible_p(__typeof__({expression}), {type_}), "{expression}");'


def check_program(checks: list[str]) -> str:
    return '#include "vdi_provider.h"\n' + "\n".join(checks) + "\nint main(void) { return 0; }\n"


@pytest.mark.parametrize(("compiler", "flags"), COMPILERS)
@pytest.mark.parametrize("header", HEADERS)
def test_each_header_compiles_by_itself(header: str, compiler: str, flags: list[str], tmp_path: Path) -> None:
    twice = f'#include "{header}"\n' * 2  # the guard against that works, too
    _, errors = compile_c(twice + "int main(void) { return 0; }", tmp_path, compiler, flags)
    assert not errors


@pytest.mark.parametrize(("compiler", "flags"), COMPILERS)
def test_a_plain_program_can_implement_and_call_an_interface(compiler: str, flags: list[str], tmp_path: Path) -> None:
    source = """
        #include <stdio.h>
        #include <string.h>
        #include "vdi_provider.h"
        static HRESULT query(IServerVirtualDevice *self, const IID *riid, void **out) {
            if (memcmp(riid, &IID_IServerVirtualDevice, sizeof *riid)) { *out = NULL; return E_NOINTERFACE; }
            *out = self;
            return NOERROR;
        }
        static ULONG add(IServerVirtualDevice *self) { (void)self; return 2; }
        static ULONG release(IServerVirtualDevice *self) { (void)self; return 1; }
        static HRESULT send(IServerVirtualDevice *self, VDS_Command *command) {
            (void)self;
            return command->commandCode == VDC_Flush ? NOERROR : VD_E_IO_ERROR;
        }
        static HRESULT close_device(IServerVirtualDevice *self) { (void)self; return VD_E_CLOSE; }
        static const IServerVirtualDeviceVtbl vtbl = {query, add, release, send, close_device};
        int main(void) {
            IServerVirtualDevice device = {&vtbl}, *p = &device;
            VDS_Command command;
            void *other;
            LPCWSTR name = u"a name";
            memset(&command, 0, sizeof command);
            command.commandCode = VDC_Flush;
            if (p->lpVtbl->SendCommand(p, &command) != NOERROR || name[1] != ' ') return 1;
            if (p->lpVtbl->QueryInterface(p, &IID_IServerVirtualDevice, &other) != NOERROR || other != p) return 2;
            if (p->lpVtbl->QueryInterface(p, &IID_IClassFactory, &other) != E_NOINTERFACE || other) return 3;
            if (!FAILED(p->lpVtbl->CloseDevice(p)) || p->lpVtbl->CloseDevice(p) != VD_E_CLOSE) return 4;
            return 0;
        }
    """
    program, errors = compile_c(source, tmp_path, compiler, flags)
    assert not errors
    assert subprocess.run([program], timeout=60, check=False).returncode == 0


# ---- libvdi.pxd against the headers ----

FUNCTION_POINTER = re.compile(r"ctypedef (\w+) \(\*(\w+)\)\((.*)\)")
CONSTANT = re.compile(r"const (\w+) (\w+)")
SLOT = re.compile(r"(\w+) (\w+)\((.*)\)")
FIELD = re.compile(r"(.+?[ *])(\w+)((?:\[\d+\])?)")


class Declarations:
    """What a .pxd file declares: constants and type names with their types, structures with their members."""

    def __init__(self, text: str) -> None:
        self.constants: dict[str, str] = {}
        self.types: dict[str, str] = {}
        self.structs: dict[str, list[str]] = {}
        struct = ""
        for line in text.splitlines():
            entry = line.split("#")[0].strip().removesuffix(" noexcept nogil")
            depth = (len(line) - len(line.lstrip())) // 4
            if not entry or entry == "pass" or depth == 0:
                continue
            if depth == 2:
                self.structs[struct].append(entry)
            elif match := re.fullmatch(r"ctypedef struct (\w+)(:?)", entry):
                struct = match[1]
                if match[2]:
                    self.structs[struct] = []
            elif match := CONSTANT.fullmatch(entry):
                self.constants[match[2]] = match[1]
            elif match := FUNCTION_POINTER.fullmatch(entry):
                self.types[match[2]] = f"{match[1]} (*)({match[3] or 'void'})"
            elif match := re.fullmatch(r"ctypedef (.+?[ *])(\w+)", entry):
                self.types[match[2]] = match[1]
            else:
                raise AssertionError(f"not understood: {line}")


def disagreements(pxd: str, tmp_path: Path) -> list[str]:
    """Say where the text of a .pxd file and the headers disagree."""
    declared = Declarations(pxd)
    found = []
    # What the headers have, the .pxd has: constants by their prefixes, structures all.
    headers = "".join((INCLUDE / name).read_text() for name in HEADERS)
    wanted = set(re.findall(r"#define ((?:VD[FC]|VD_E|ERROR|VDI_STATE|VDI_ABORT)_\w+)(?![\w(])", headers))
    found += [f"constant {name} is missing" for name in sorted(wanted - declared.constants.keys())]
    structs = set(re.findall(r"^(?:typedef )?struct (\w+) \{", headers, re.M))
    found += [f"structure {name} is missing" for name in sorted(structs - declared.structs.keys())]
    # What the .pxd has, the headers have in the same way: a twin of each structure is laid beside the original.
    checks = [same_type(name, type_) for name, type_ in declared.constants.items()]
    checks += [same_type(f"*({name} *)0", type_) for name, type_ in declared.types.items()]
    for struct, members in declared.structs.items():
        if not members:
            continue  # opaque on the Cython side
        fields = {}
        for member in members:
            if match := SLOT.fullmatch(member):
                fields[match[2]] = (f"{match[1]} (*{match[2]})({match[3]});", f"{match[1]} (*)({match[3]})")
            elif match := FIELD.fullmatch(member):
                fields[match[2]] = (f"{member};", f"{match[1]}{match[3]}")
            else:
                raise AssertionError(f"not understood: {member}")
        twin = f"struct twin_{struct}"
        checks.append(f"{twin} {{ {' '.join(declaration for declaration, _ in fields.values())} }};")
        checks.append(f'_Static_assert(sizeof({twin}) == sizeof({struct}), "size of {struct}");')
        # A field that fits into padding changes no size: -Wextra finds that an initializer per field is one too few.
        zeros = ", ".join("{0}" if type_.endswith("]") else "0" for _, type_ in fields.values())
        checks.append(f"extern {struct} all_of_{struct}; {struct} all_of_{struct} = {{{zeros}}};")
        for name, (_, type_) in fields.items():
            place = f"offsetof({twin}, {name}) == offsetof({struct}, {name})"
            checks.append(f'_Static_assert({place}, "{struct}.{name}");')
            checks.append(same_type(f"(({struct} *)0)->{name}", type_))
    _, errors = compile_c(check_program(checks), tmp_path, flags=["-std=gnu11", "-xc"])
    return found + [line for line in errors.splitlines() if "error:" in line]


def test_the_pxd_agrees_with_the_headers(tmp_path: Path) -> None:
    assert disagreements(PXD.read_text(), tmp_path) == []


SLOT_A = "        HRESULT Close(IServerVirtualDeviceSet2 *This) noexcept nogil\n"
SLOT_B = "        HRESULT SignalAbort(IServerVirtualDeviceSet2 *This) noexcept nogil\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(SLOT_B + SLOT_A, SLOT_A + SLOT_B, id="two slots swapped"),
        pytest.param(SLOT_A, "", id="last slot missing"),
        pytest.param(SLOT_B, "", id="slot missing in the middle"),
        pytest.param(SLOT_A, SLOT_A.replace("Close", "CloseSet"), id="slot of another name"),
        pytest.param("DWORD dwTimeOut, VDC_Command **ppCmd", "VDC_Command **ppCmd, DWORD dwTimeOut",
                     id="parameters swapped"),
        pytest.param("DWORD dwBytesTransferred, DWORDLONG", "DWORD dwBytesTransferred, DWORD", id="parameter's type"),
        pytest.param("ULONG AddRef(IClassFactory", "int AddRef(IClassFactory", id="result's type"),
        pytest.param("        DWORD features\n", "", id="field missing"),
        pytest.param("        DWORD bytesTransferred\n", "", id="last field missing"),
        pytest.param("        DWORDLONG position\n", "        DWORD position\n", id="field's type"),
        pytest.param("        DWORD blockSize\n        DWORD maxIODepth\n",
                     "        DWORD maxIODepth\n        DWORD blockSize\n", id="fields swapped"),
        pytest.param("BYTE setId[16]", "BYTE setId[8]", id="length of an array"),
        pytest.param("    const DWORD VDC_Flush\n", "", id="constant missing"),
        pytest.param("const DWORD VDC_Flush", "const DWORD VDC_Flash", id="constant of another name"),
        pytest.param("const HRESULT VD_E_BUSY", "const DWORD VD_E_BUSY", id="constant's type"),
        pytest.param("const GUID IID_IUnknown", "const DWORD IID_IUnknown", id="identifier's type"),
        pytest.param("ctypedef int32_t HRESULT", "ctypedef uint32_t HRESULT", id="type's meaning"),
        pytest.param("(*VDS_CompletionRoutine)(VDS_Command *pCmd)", "(*VDS_CompletionRoutine)(VDC_Command *pCmd)",
                     id="callback's parameter"),
    ],
)  # fmt: skip
def test_a_planted_disagreement_is_seen(old: str, new: str, tmp_path: Path) -> None:
    text = PXD.read_text()
    assert text.count(old) >= 1
    assert disagreements(text.replace(old, new, 1), tmp_path)
