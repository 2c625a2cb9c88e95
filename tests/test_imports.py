"""Imports go one way: each part of the package uses only what the table below lists for it.

The table is that of the design: client and server half never meet except at the vtable, the provider knows no Python,
and the stand-in for SQL Server is reached only by jobs and the command line, inside functions.
"""

from __future__ import annotations

import ast
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT

LEAVES = {"codes", "config", "constants", "errors", "events"}
NATIVE = {"libvdi", "_errors"}
PUBLIC = {"_core", "streams", "pipeline", "workers", "storage", "mtf"}

# Part -> what it may use of the package beyond itself and (except for the leaves) the leaves.
MAY_USE: dict[str, set[str]] = {
    "codes": set(),
    "constants": set(),
    "errors": {"codes", "constants"},
    "config": {"constants", "errors"},
    "events": {"config", "constants"},
    "libvdi": set(),
    "_errors": {"libvdi"},
    "_core": NATIVE,
    "_server": {*NATIVE, "_core.provider"},  # the private half of server
    "server": {*NATIVE, "_core.provider", "_server"},
    "mtf": set(),
    "streams": {"_core"},
    "pipeline": {"streams", "_core", "mtf", "storage"},
    "workers": {"pipeline", "_core"},
    "storage": set(),
    "engine": {"server", "mtf"},
    "jobs": PUBLIC,
    "cli": {"jobs"},
    "demo": {*PUBLIC, "server", "jobs", "cli"},
    "__main__": {"cli"},
    "": {*PUBLIC, "server", "jobs"},
}
MAY_USE_IN_FUNCTIONS: dict[str, set[str]] = {"jobs": {"engine"}, "cli": {"engine"}}

# Part -> packages of others. The stores of storage are not limited.
MAY_USE_OF_OTHERS = {
    "cli": {"tqdm"},
    "engine": {"cryptography", "numpy"},
    "jobs": {"prometheus_client"},
    "mtf": {"numpy"},
    "pipeline": {"numpy"},
}
OF_THE_LANGUAGE = sys.stdlib_module_names | {"cython", "cpython", "libc", "libcpp"}

# C: folder -> whose headers it may include in quotes.
C_FOLDERS = {
    "include": ["include"],
    "vdi_ext/provider/src": ["include", "vdi_ext/provider/src"],
    "vdi_ext/_platform": ["include", "vdi_ext/_platform"],
}


@dataclass(frozen=True)
class Import:
    target: str  # of this package: "vdi_ext", "vdi_ext._core.device"; else the name of the other package
    names: tuple[str, ...]
    in_function: bool


def module_of(path: Path) -> tuple[str, ...]:
    """vdi_ext/_core/device.pyx -> ("vdi_ext", "_core", "device"); a package's __init__ is the package."""
    parts = path.with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def resolve(path: Path, dots: int, name: str) -> str:
    """Absolute name of a module that a file of the package imports."""
    if not dots:
        return name
    package = path.parent.parts[: len(path.parent.parts) - (dots - 1)]
    return ".".join([*package, *([name] if name else [])])


def python_imports(path: Path, text: str) -> Iterator[Import]:
    def visit(node: ast.AST, in_function: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, (), in_function)
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            yield Import(resolve(path, node.level, node.module or ""), names, in_function)
        inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    return visit(ast.parse(text), False)


def cython_imports(path: Path, text: str) -> Iterator[Import]:
    text = re.sub(r"\(([^()]*)\)", lambda m: m[0].replace("\n", " "), text)  # imports over several lines
    for match in re.finditer(r"^( *)from +(\.*)([\w.]*) +c?import +\(?([\w, *]+)", text, re.M):
        names = tuple(name.split()[0] for name in match[4].split(",") if name.strip())
        yield Import(resolve(path, len(match[2]), match[3]), names, bool(match[1]))
    for match in re.finditer(r"^( *)c?import +([\w., ]+)$", text, re.M):
        for name in match[2].split(","):
            yield Import(name.split()[0], (), bool(match[1]))


def within(module: str, prefixes: set[str]) -> bool:
    return any(module == prefix or (prefix and module.startswith(f"{prefix}.")) for prefix in prefixes)


def violations_of(path: Path, text: str) -> Iterator[str]:
    own = ".".join(module_of(path)[1:])
    part = own.split(".")[0]
    if part not in MAY_USE:
        yield f"{path}: not in the table"
        return
    if part != "libvdi":
        for header in re.findall(r'^\s*cdef extern from "(vdi\w*\.h)"', text, re.M):
            yield f"{path}: only libvdi.pxd declares {header}"
    parse = python_imports if path.suffix in (".py", ".pyi") else cython_imports
    allowed = MAY_USE[part] | (set() if part in LEAVES else LEAVES)
    for used in parse(path, text):
        top, _, rest = used.target.partition(".")
        if top != "vdi_ext":
            stub_only = path.suffix == ".pyi" and top == "typing_extensions"
            known = top in OF_THE_LANGUAGE or top in MAY_USE_OF_OTHERS.get(part, ()) or part == "storage" or stub_only
            if not known:
                yield f"{path}: {part or '__init__'} must not use {top}"
            continue
        # `from . import device` names a module, `from .device import Device` a name in it.
        targets = {f"{rest}.{name}".strip(".") for name in used.names} if not rest else {rest}
        if rest and (package := rest.split(".")[0]) == rest and package in ("_core", "mtf", "engine", "jobs"):
            targets = {f"{rest}.{name}" for name in used.names} or targets
        for target in targets or {""}:
            if target and target.split(".")[0] not in MAY_USE:
                target = ""  # a name that __init__ offers
            other = target.split(".")[0]
            if part and other == part:
                continue
            here = allowed | (MAY_USE_IN_FUNCTIONS.get(part, set()) if used.in_function else set())
            if not within(target, here):
                yield f"{path}: {part or '__init__'} must not use {target or 'the package itself'}"
            private = [n for n in used.names if n.startswith("_") and n not in MAY_USE]
            private += [p for p in target.split(".")[1:] if p.startswith("_")]
            if private:
                yield f"{path}: private names of {target}: {', '.join(private)}"


def violations_of_c(root: Path) -> Iterator[str]:
    for folder, own in C_FOLDERS.items():
        headers = {header.name for other in own for header in (root / other).glob("*.h")}
        for path in sorted((root / folder).glob("*")):
            if path.suffix not in (".c", ".cpp", ".h"):
                continue
            for quoted, angled in re.findall(r'^\s*#\s*include\s+(?:"([^"]+)"|<([^>]+)>)', path.read_text(), re.M):
                if quoted and quoted not in headers:
                    yield f"{path.relative_to(root)}: must not include {quoted}"
                if (quoted or angled).lower().startswith(("python", "numpy")):
                    yield f"{path.relative_to(root)}: must not include {quoted or angled}"


def violations(root: Path) -> list[str]:
    found = list(violations_of_c(root))
    for path in sorted((root / "vdi_ext").rglob("*")):
        if path.suffix in (".py", ".pyi", ".pyx", ".pxd"):
            found += violations_of(path.relative_to(root), path.read_text())
    return found


def test_imports_go_one_way() -> None:
    assert violations(ROOT) == []


def test_the_walk_sees_the_imports_that_are_there() -> None:
    seen = list(python_imports(Path("vdi_ext/config.py"), (ROOT / "vdi_ext" / "config.py").read_text()))
    assert Import("vdi_ext.constants", ("Feature",), False) in seen
    seen = list(cython_imports(Path("vdi_ext/_errors.pyx"), (ROOT / "vdi_ext" / "_errors.pyx").read_text()))
    assert Import("vdi_ext.libvdi", ("HRESULT",), False) in seen
    assert Import("vdi_ext.errors", ("error_from_hresult",), False) in seen


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("vdi_ext/constants.py", "import numpy"),
        ("vdi_ext/errors.py", "from .config import DeviceSetConfig"),
        ("vdi_ext/libvdi.pxd", "from ._core.device cimport VirtualDevice"),
        ("vdi_ext/_errors.pyx", "from ._core.device cimport VirtualDevice"),
        ("vdi_ext/_core/device.pyx", "from ..server import ServerDevice"),
        ("vdi_ext/_core/device.pyx", "from .. import engine"),
        ("vdi_ext/_core/device.pyx", "from ..streams cimport (\n    Stream,\n)"),
        ("vdi_ext/_core/device.pyx", "import numpy"),
        ("vdi_ext/_core/device.pyx", 'cdef extern from "vdi.h":\n    pass'),
        ("vdi_ext/_core/device.pyx", "import vdi_ext"),
        ("vdi_ext/server.pyx", "from ._core.device cimport VirtualDevice"),
        ("vdi_ext/server.pyx", "from ._core import device"),
        ("vdi_ext/mtf/writer.py", "from .._core.device import VirtualDevice"),
        ("vdi_ext/mtf/writer.py", "import vdi_ext.engine"),
        ("vdi_ext/engine/backup.py", "from .._core.device_set import VirtualDeviceSet"),
        ("vdi_ext/engine/backup.py", "def f():\n    from ..jobs import backup"),
        ("vdi_ext/engine/backup.py", "from ..server import _private"),
        ("vdi_ext/jobs/backup.py", "from ..engine import execute"),
        ("vdi_ext/jobs/backup.py", "from .._core.device import _helper"),
        ("vdi_ext/jobs/backup.py", "def f():\n    from ..engine._tsql import parse"),
        ("vdi_ext/jobs/backup.py", "import requests"),
        ("vdi_ext/cli/backup.py", "from .._core.device import VirtualDevice"),
        ("vdi_ext/cli/backup.py", "from ..engine import execute"),
        ("vdi_ext/novelty.py", ""),
        ("vdi_ext/provider/src/extra.c", "#include <Python.h>"),
        ("vdi_ext/provider/src/extra.c", '#include "sqlvdi_linux.h"'),
        ("include/extra.h", "#include <Python.h>"),
    ],
)
def test_a_planted_import_is_seen(path: str, line: str, tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("*.so", "*.c", "__pycache__")
    shutil.copytree(ROOT / "vdi_ext", tmp_path / "vdi_ext", ignore=ignored)
    shutil.copytree(ROOT / "include", tmp_path / "include")
    before = violations(tmp_path)
    target = tmp_path / path
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("a") as file:
        file.write(f"\n{line}\n")
    assert set(violations(tmp_path)) - set(before)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("vdi_ext/_core/device.pyx", "from ..libvdi cimport HRESULT"),
        ("vdi_ext/server.pyx", "from ._core.provider cimport ProviderLibrary"),
        ("vdi_ext/engine/backup.py", "from ..server import ServerDeviceSet"),
        ("vdi_ext/jobs/backup.py", "def f():\n    from ..engine import execute"),
        ("vdi_ext/mtf/writer.py", "import numpy as np"),
    ],
)
def test_what_the_table_allows_is_allowed(path: str, line: str) -> None:
    assert list(violations_of(Path(path), line)) == []
