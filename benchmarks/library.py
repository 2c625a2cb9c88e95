"""The C part: compiled once into a directory of the caller, entered through ctypes."""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
import sysconfig
from ctypes import POINTER, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path

from vdi_ext import Provider

HERE = Path(__file__).resolve().parent
INCLUDE = HERE.parent / "include"

# Modes of server_start, as in native/server.c.
FILL, RESEND, SLEEPY, RING = range(4)

_FUNCTIONS = {
    "bench_toggle_counting": (None, []),
    "client_join": (c_void_p, [c_char_p, c_char_p]),
    "client_open": (c_void_p, [c_void_p, c_char_p]),
    "client_release": (None, [c_void_p]),
    "client_leave": (c_int, [c_void_p]),
    "client_stream": (c_int64, [c_void_p, c_uint32, c_int]),
    "client_drain": (c_int64, [c_void_p, c_uint32]),
    "client_sleepy": (c_int, [c_void_p, c_uint32, c_uint64]),
    "client_stream_all": (c_int64, [POINTER(c_void_p), c_uint32, c_uint32, c_int]),
    "server_open": (c_void_p, [c_char_p, c_char_p, c_uint32, c_uint32]),
    "server_start": (
        c_int,
        [c_void_p, c_int, c_uint32, c_uint32, c_uint32, c_uint32, c_uint32, c_uint64, POINTER(c_uint64)],
    ),
    "server_finish": (c_int, [c_void_p]),
    "server_copy": (c_int64, [c_void_p, c_uint32, c_uint32, c_uint32]),
    "server_close": (c_int, [c_void_p]),
    "raw_ping": (c_int64, [c_void_p, c_uint32, c_uint32, c_int]),
    "raw_pong": (None, [c_void_p, c_uint32, c_uint32, c_int]),
    "raw_sleepy_ping": (None, [c_void_p, c_uint32, c_uint32, c_uint64, POINTER(c_uint64)]),
    "raw_sleepy_pong": (None, [c_void_p, c_uint32, c_uint32, c_uint64]),
    "raw_write": (c_int, [c_int, c_void_p, c_uint32, c_uint32]),
    "raw_copy": (None, [c_void_p, c_void_p, c_size_t]),
}


def build(folder: Path, *options: str) -> Path:
    """Compile the C part for this machine; returns the shared library."""
    target = folder / "libbench.so"
    compiler = shlex.split(os.environ.get("CC", "gcc"))
    flags = "-std=c11 -D_GNU_SOURCE -O3 -march=native -g -Wall -Wextra -Werror -fPIC -shared -pthread".split()
    sources = sorted(map(str, (HERE / "native").glob("*.c")))
    includes = [f"-I{INCLUDE}", f"-I{sysconfig.get_path('include')}"]
    command = [*compiler, *flags, *options, "-fvisibility=hidden", *includes, *sources, "-o", str(target)]
    subprocess.run(command, check=True)
    return target


def load(path: Path | str) -> ctypes.CDLL:
    """Load the C part; every call releases the GIL, but `object_read_all` only while it reads."""
    library = ctypes.CDLL(str(path))
    library.object_read_all = ctypes.PyDLL(str(path)).object_read_all
    library.object_read_all.restype, library.object_read_all.argtypes = c_uint64, [ctypes.py_object]
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def embedded() -> str:
    """The embedded provider's file; sets may be built over another one, to compare two of them."""
    return Provider.embedded().path


def good(result: int) -> int:
    """Pass a result on; negative ones are failures."""
    if result is None or result < 0:
        raise RuntimeError(f"the native half of a benchmark failed: {result}")
    return result
