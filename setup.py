"""Build of the extension modules and of the embedded provider; the metadata are in pyproject.toml.

VDI_EXT_MAINTAINER=1    warnings in our own C and C++ are errors
VDI_EXT_SANITIZE=...    address (with undefined), thread, ...: builds everything with that sanitizer
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
os.chdir(ROOT)
INCLUDE = Path("include")
PROVIDER = Path("vdi_ext/provider")
PLATFORM = Path("vdi_ext/_platform")
HEADERS = sorted(map(str, INCLUDE.glob("*.h")))

SANITIZE = os.environ.get("VDI_EXT_SANITIZE", "")
MAINTAINER = os.environ.get("VDI_EXT_MAINTAINER") == "1"

COMMON = ["-fvisibility=hidden", "-Wall", "-Wextra", "-g"]
LINK = []
if SANITIZE:
    _sanitizer = f"-fsanitize={'address,undefined' if SANITIZE == 'address' else SANITIZE}"
    COMMON += [_sanitizer, "-O1", "-fno-omit-frame-pointer"]
    LINK += [_sanitizer]
else:
    COMMON += ["-O2"]
STRICT = ["-Werror"] if MAINTAINER else []
CFLAGS = [*COMMON, "-Wstrict-prototypes"]
CXXFLAGS = ["-std=c++17", "-fno-exceptions", "-fno-rtti", *COMMON]  # C++ here needs no runtime library
# Generated C is not ours to clean: it keeps the warnings, without those that its style sets off by itself.
CYTHON_CFLAGS = [*CFLAGS, "-Wno-unused-parameter", "-Wno-missing-field-initializers"]

# By hand: a pattern would hide a missing file.
MODULES = [
    "vdi_ext._errors",
    "vdi_ext._core.provider",
    "vdi_ext._core.refs",
    "vdi_ext._core.command",
    "vdi_ext._core.device",
    "vdi_ext._core.device_set",
    "vdi_ext._core.buffer",
    "vdi_ext._server",
    "vdi_ext.server",
    "vdi_ext.mtf._kernels",
    "vdi_ext.mtf._xpress",
]
# What a module contains besides its own source: sources in C and C++ without Python, and their headers.
CONTAINS = {
    "vdi_ext._core.provider": sorted(map(str, PLATFORM.glob("sqlvdi_linux.*"))),
    "vdi_ext.mtf._kernels": sorted(map(str, Path("vdi_ext/mtf/native").glob("kernels.*"))),
    "vdi_ext.mtf._xpress": sorted(map(str, Path("vdi_ext/mtf/native").glob("xpress.*"))),
}


def extension(module: str) -> Extension:
    return Extension(
        module,
        [module.replace(".", "/") + ".pyx"],
        include_dirs=[str(INCLUDE), str(PLATFORM)],
        depends=HEADERS + CONTAINS.get(module, []),
        extra_compile_args=CYTHON_CFLAGS,
        extra_link_args=LINK,
    )


class BuildExt(build_ext):
    """Builds the extension modules, then the provider, which is a plain shared library without Python."""

    def run(self) -> None:
        if self.inplace:  # one place for `build_ext --inplace` and `pip install -e`, so that nothing is compiled twice
            self.build_lib, self.build_temp = "build/inplace/lib", "build/inplace/temp"
        # Objects of another flavour must not be taken for up to date.
        stamp = Path(self.build_temp) / "flavour"
        flavour = f"{SANITIZE} {MAINTAINER} {hashlib.sha256(Path('setup.py').read_bytes()).hexdigest()}"
        self.force = self.force or not stamp.exists() or stamp.read_text() != flavour
        super().run()
        base = ROOT if self.inplace else Path(self.build_lib)
        self.build_provider(base / PROVIDER / "libsqlvdi.so")
        if not self.inplace:
            self.mkpath(f"{self.build_lib}/vdi_ext/include")
            for header in HEADERS:
                self.copy_file(header, f"{self.build_lib}/vdi_ext/include/{Path(header).name}")
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(flavour)

    def build_extension(self, ext: Extension) -> None:
        objects = Path(self.build_temp) / "contained"
        depends = [*map(Path, ext.depends), Path("setup.py")]
        sources = [Path(source) for source in CONTAINS.get(ext.name, []) if not source.endswith(".h")]
        ext.extra_objects = [self.compile(source, objects, depends) for source in sources]
        super().build_extension(ext)

    def compile(self, source: Path, objects: Path, depends: list[Path]) -> str:
        """Compile a source of C or C++ without Python; returns the object."""
        out = objects / f"{source.name}.o"
        if not self.force and out.exists() and out.stat().st_mtime > max(d.stat().st_mtime for d in depends):
            return str(out)
        objects.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".c":
            tool = [*shlex.split(os.environ.get("CC", "gcc")), "-std=c11", *CFLAGS]
        else:
            tool = [*shlex.split(os.environ.get("CXX", "g++")), *CXXFLAGS]
        common = [*STRICT, "-D_GNU_SOURCE", "-fPIC", "-pthread", f"-I{INCLUDE}"]
        self.call([*tool, *common, "-c", str(source), "-o", str(out)])
        return str(out)

    def build_provider(self, target: Path) -> None:
        sources = sorted(PROVIDER.glob("src/*.c")) + sorted(PROVIDER.glob("src/*.cpp"))
        depends = [*sources, *PROVIDER.glob("src/*.h"), *INCLUDE.glob("*.h"), Path(__file__)]
        if not self.force and target.exists() and target.stat().st_mtime > max(d.stat().st_mtime for d in depends):
            return
        objects = Path(self.build_temp) / "provider"
        target.parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            built = list(pool.map(lambda source: self.compile(source, objects, depends), sources))
        # nodelete: threads and fork handlers of the library may outlive a dlclose.
        # symbolic: the library's own entry is used, whatever the program exports.
        ld = "-Wl,-z,nodelete,--as-needed,-Bsymbolic-functions,-soname,libsqlvdi.so"
        cxx = shlex.split(os.environ.get("CXX", "g++"))
        link = ["-shared", "-pthread", ld, *LINK]
        fresh = f"{target}.new"
        self.call([*cxx, *link, *built, "-o", fresh])
        os.replace(fresh, target)  # never write into a file that a running process has mapped

    def call(self, command: list[str]) -> None:
        if self.verbose:
            print(shlex.join(command), flush=True)
        subprocess.run(command, check=True)


setup(
    ext_modules=cythonize(
        [extension(module) for module in MODULES],
        nthreads=os.cpu_count() or 1,
        compiler_directives={
            "language_level": 3,
            "embedsignature": True,
            "embedsignature.format": "python",
            "binding": True,
            "auto_pickle": False,
            "autotestdict": False,
        },
    ),
    cmdclass={"build_ext": BuildExt},
)
