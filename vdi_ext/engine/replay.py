"""Real backup files as a database: sent byte for byte, one device per file, and compared or written out on restore."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .database import DatabaseError

Bytes = npt.NDArray[np.uint8]


class ReplayDifference(Exception):  # a finding, turned into message 3189
    """What came back is not what the file holds."""


@dataclass(frozen=True)
class Replay:
    """The files of one backup, in the order of the devices.

    Parameters
    ----------
    files : tuple of str
        What a BACKUP sends, and what a RESTORE compares with.
    output : tuple of str, optional
        Where a RESTORE writes instead of comparing; as many as files. WITH REPLACE it replaces existing files.
    """

    files: tuple[str, ...]
    output: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if isinstance(self.files, str) or isinstance(self.output, str):
            raise TypeError("files and output are sequences of paths")
        object.__setattr__(self, "files", tuple(self.files))
        object.__setattr__(self, "output", tuple(self.output))
        if not self.files and not self.output:
            raise ValueError("a replay needs files")
        if self.files and self.output and len(self.files) != len(self.output):
            raise ValueError(f"{len(self.output)} places to write to for {len(self.files)} files")

    @property
    def devices(self) -> int:
        return len(self.files or self.output)

    def check(self, name: str) -> None:
        """Refuse early what can never be sent."""
        if not self.files or not all(map(os.path.isfile, self.files)):
            raise DatabaseError(911, name)

    def source(self, names: tuple[str, ...], block_size: int) -> ReplaySource:
        """The files for the devices `names`."""
        if len(names) != self.devices:
            raise DatabaseError(3231, names[0], self.devices, len(names))
        return ReplaySource(self.files, names, block_size)

    def target(self, names: tuple[str, ...], *, replace: bool) -> ReplayTarget:
        if len(names) != self.devices:
            raise DatabaseError(3231, names[0], self.devices, len(names))
        if self.output:
            return ReplayTarget(self.output, write=True, replace=replace)
        return ReplayTarget(self.files, write=False, replace=replace)


class ReplaySource:
    """Reads the files."""

    def __init__(self, files: tuple[str, ...], names: tuple[str, ...], block_size: int) -> None:
        self._files = files
        self._descriptors: list[int] = []
        self.sizes: list[int] = []
        try:
            for path, name in zip(files, names, strict=True):
                self._descriptors.append(_open(path, os.O_RDONLY))
                size = os.fstat(self._descriptors[-1]).st_size
                if size % block_size:
                    raise DatabaseError(3272, name, min(size & -size, 65536), block_size)
                self.sizes.append(size)
        except BaseException:
            self.close()
            raise

    def read(self, number: int, offset: int, buffer: Bytes) -> None:
        """Fill the buffer from a place in file `number`."""
        _read(self._files[number], self._descriptors[number], offset, buffer)

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())


class ReplayTarget:
    """Compares with the files, or writes new ones that get their names at the end."""

    def __init__(self, paths: tuple[str, ...], *, write: bool, replace: bool) -> None:
        self._paths = paths
        self._write = write
        self._places = [0] * len(paths)
        self._descriptors: list[int] = []
        self._expected: Bytes = np.empty(0, np.uint8)
        try:
            for path in paths:
                if write and not replace and os.path.exists(path):
                    raise DatabaseError(3159, path)
                flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC if write else os.O_RDONLY
                self._descriptors.append(_open(_unfinished(path) if write else path, flags))
        except BaseException:
            self.abandon()
            raise

    def accept(self, number: int, data: Bytes) -> None:
        """Take the next bytes of device `number`."""
        path, fd, place = self._paths[number], self._descriptors[number], self._places[number]
        if self._write:
            try:
                view = memoryview(data)
                while len(view):
                    view = view[os.write(fd, view) :]
            except OSError as error:
                raise DatabaseError(3271, path, str(error)) from error
        else:
            if os.fstat(fd).st_size < place + len(data):
                raise ReplayDifference(f"more than the {os.fstat(fd).st_size} bytes of {path}")
            if len(self._expected) < len(data):
                self._expected = np.empty(len(data), np.uint8)
            expected = self._expected[: len(data)]
            _read(path, fd, place, expected)
            if not np.array_equal(expected, data):
                raise ReplayDifference(f"byte {place + int(np.argmax(expected != data))} is not that of {path}")
        self._places[number] = place + len(data)

    def finish(self) -> None:
        """All devices have reported the end of their data."""
        for path, fd, place in zip(self._paths, self._descriptors, self._places, strict=True):
            if not self._write and os.fstat(fd).st_size != place:
                raise ReplayDifference(f"only {place} of the {os.fstat(fd).st_size} bytes of {path}")
        if self._write:
            try:
                for fd in self._descriptors:
                    os.fsync(fd)
                for path in self._paths:
                    os.rename(_unfinished(path), path)
            except OSError as error:
                raise DatabaseError(3271, self._paths[0], str(error)) from error
        self._close()

    def abandon(self) -> None:
        if self._write:
            for path in self._paths[: len(self._descriptors)]:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(_unfinished(path))
        self._close()

    def _close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())


def _unfinished(path: str) -> str:
    return f"{path}.restoring"


def _open(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DatabaseError(3271, path, str(error)) from error


def _read(path: str, fd: int, offset: int, buffer: Bytes) -> None:
    view = memoryview(buffer)
    try:
        while len(view):
            count = os.preadv(fd, [view], offset)
            if not count:
                raise OSError("the file ends before its size")
            view = view[count:]
            offset += count
    except OSError as error:
        raise DatabaseError(3271, path, str(error)) from error
