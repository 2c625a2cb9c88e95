"""Builds the native test programs, plain or with a sanitizer, into a directory of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

NATIVE = Path(__file__).resolve().parent
ROOT = NATIVE.parent.parent
SOURCES = ROOT / "vdi_ext" / "provider" / "src"
ADAPTER = ROOT / "vdi_ext" / "_platform" / "sqlvdi_linux.cpp"
LIBRARY = ROOT / "vdi_ext" / "provider" / "libsqlvdi.so"
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
SANITIZERS = {
    "none": [],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"],
    "undefined": ["-fsanitize=undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-fsanitize=thread"],
}


def environment() -> dict[str, str]:
    """The environment of compilers and test programs: nothing of a sanitizer that Python itself may run under."""
    kept = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD" and not k.endswith("SAN_OPTIONS")}
    return kept | {
        "LC_ALL": "C.UTF-8",
        "ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "TSAN_OPTIONS": "exitcode=66",
    }


class Programs:
    """The test programs in one flavour.

    Flavour "none" takes the library that the package ships; any other compiles the provider's sources with the
    sanitizer, and with `defines`, which choose a mutant.
    """

    def __init__(self, where: Path, flavour: str = "none", cc: str = "gcc", cxx: str = "g++", defines: tuple = ()):
        self.where, self.flavour, self.cc, self.cxx = where, flavour, cc, cxx
        self.flags = ["-g", "-O1", "-pthread", "-D_GNU_SOURCE", f"-I{ROOT / 'include'}", *SANITIZERS[flavour]]
        where.mkdir(parents=True, exist_ok=True)
        if flavour == "none" and cc == "gcc" and not defines:
            self.library = LIBRARY
        else:
            self.library = where / "libsqlvdi.so"
            self._build_library(["-fPIC", "-fvisibility=hidden", *(f"-D{d}" for d in defines)])
        self.harness = where / "harness.o"
        self._run(cc, "-std=c11", *WARNINGS, "-c", NATIVE / "harness.c", "-o", self.harness)
        self._built: set[str] = set()

    def _run(self, *command: object) -> None:
        line = [str(part) for part in (command[0], *self.flags, *command[1:])]
        done = subprocess.run(line, capture_output=True, text=True, env=environment(), timeout=300)
        assert done.returncode == 0, f"{' '.join(line)}\n{done.stdout}{done.stderr}"

    def _build_library(self, flags: list[str]) -> None:
        def compile_one(source: Path) -> Path:
            out = self.where / f"{source.name}.o"
            if source.suffix == ".c":
                tool: tuple[str, ...] = (self.cc, "-std=c11")
            else:
                tool = (self.cxx, "-std=c++17", "-fno-exceptions", "-fno-rtti")
            self._run(*tool, *WARNINGS, *flags, "-c", source, "-o", out)
            return out

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, sorted([*SOURCES.glob("*.c"), *SOURCES.glob("*.cpp")])))
        link = ["-shared", "-Wl,-Bsymbolic-functions", "-Wl,-soname,libsqlvdi.so"]
        self._run(self.cc, *link, *objects, "-o", self.library)

    def classes_library(self, quirks: bool = False) -> Path:
        """Builds the library of somebody else: the provider's C++ classes without its class factory.

        With `quirks`, those of quirks.cpp stand before them.
        """
        out = self.where / ("quirks" if quirks else "classes") / "libsqlvdi.so"
        out.parent.mkdir(exist_ok=True)
        renamed = [f"-DClientVirtualDevice{what}=RealDevice{what}" for what in ("", "Set")] if quirks else []

        def compile_one(source: Path) -> Path:
            compiled = out.parent / f"{source.name}.o"
            flags = ["-fPIC", *(renamed if source.name == "cxxabi.cpp" else [])]
            tool = [self.cc, "-std=c11"] if source.suffix == ".c" else [self.cxx, "-std=c++17"]
            self._run(*tool, *WARNINGS, *flags, "-c", source, "-o", compiled)
            return compiled

        sources = [*SOURCES.glob("*.c"), *SOURCES.glob("*.cpp"), *([NATIVE / "quirks.cpp"] if quirks else [])]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, sources))
        script = out.parent / "exports"
        script.write_text("{ global: _ZN19ClientVirtualDevice*; _ZN22ClientVirtualDeviceSet*; local: *; };\n")
        link = ["-shared", f"-Wl,--version-script={script}", "-Wl,-Bsymbolic-functions,-soname,libsqlvdi.so"]
        self._run(self.cxx, *link, *objects, "-o", out)
        return out

    def program(self, name: str) -> Path:
        """Builds a program if that has not been done, and gives its path."""
        out = self.where / name
        if name not in self._built:
            link = [f"-L{self.library.parent}", "-lsqlvdi", f"-Wl,-rpath,{self.library.parent}", "-o", out]
            if name == "adapter":  # has the library of its choice, and no other
                self._run(self.cxx, "-std=c++17", *WARNINGS, NATIVE / "adapter.cpp", ADAPTER, "-ldl", "-o", out)
            elif (NATIVE / f"{name}.cpp").exists():
                self._run(self.cxx, "-std=c++11", *WARNINGS, NATIVE / f"{name}.cpp", *link)
            else:
                self._run(self.cc, "-std=c11", *WARNINGS, NATIVE / f"{name}.c", self.harness, *link)
            self._built.add(name)
        return out

    def command(self, name: str, *arguments: str) -> list[str]:
        """The command line of a program. ThreadSanitizer needs an address space that is not randomised."""
        prefix = ["setarch", "-R"] if self.flavour == "thread" and shutil.which("setarch") else []
        return [*prefix, str(self.program(name)), *arguments]

    def run(self, name: str, *arguments: str, timeout: float = 100) -> subprocess.CompletedProcess[str]:
        """Runs a program to its end."""
        return subprocess.run(
            self.command(name, *arguments), capture_output=True, text=True, env=environment(), timeout=timeout
        )

    def check(self, name: str, *arguments: str, timeout: float = 100) -> str:
        """Runs a program that must end well, and gives what it printed."""
        done = self.run(name, *arguments, timeout=timeout)
        assert done.returncode == 0, f"{name} {arguments} ended with {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout
