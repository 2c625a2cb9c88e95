"""Files and directories of a store: names, locks, what is durable and what is removed."""

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import sys
from collections.abc import Callable, Iterator

from .manifest import MANIFEST, PARTIAL, STRIPE_NAME, Manifest, SetInUseError, StorageError, now

_MANIFEST_LIMIT = 4 << 20
_SYNC_FILE_RANGE_WRITE = 2


def require_space(path: str, needed: int) -> None:
    """Refuse a backup that the file system has no room for.

    Parameters
    ----------
    path : str
        An existing directory.
    needed : int
        Bytes the set is expected to take.

    Raises
    ------
    StorageError
        Fewer bytes are free.
    """
    try:
        info = os.statvfs(path)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}: give an existing directory") from error
    free = info.f_bavail * info.f_frsize
    if free < needed:
        raise StorageError(
            f"{path} has {free:,} bytes free, the backup needs about {needed:,}: free some or choose another place"
        )


@contextlib.contextmanager
def exclusive(path: str) -> Iterator[None]:
    """Hold a set against every other process. A set whose first stripe is gone has no writer.

    Raises
    ------
    SetInUseError
        Another process is at work on it.
    """
    first = next((name for name in sorted(os.listdir(path)) if STRIPE_NAME.fullmatch(name)), None)
    if first is None:
        yield
        return
    try:
        fd = os.open(os.path.join(path, first), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(f"{os.path.join(path, first)}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SetInUseError(f"{path} is in use by a running job") from None
        yield
    finally:
        os.close(fd)


def unfinished_sets(directory: str) -> list[str]:
    """Paths of everything under an unfinished name in a store."""
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        raise StorageError(f"{directory}: {error.strerror}") from error
    paths = [os.path.join(os.path.abspath(directory), name) for name in names if name.endswith(PARTIAL)]
    return [path for path in paths if os.path.isdir(path)]


def remove_set(path: str, manifest: Manifest | None, reason: str) -> None:
    """Remove an unfinished set that the caller holds: first it stops looking like a backup, then its files go.

    Raises
    ------
    StorageError
        Something could not be removed; what is left is no longer a backup.
    """
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    try:
        try:
            if manifest is not None and manifest.state == "prepared":
                manifest.state, manifest.reason, manifest.finished = "failed", reason, now()
                save_manifest(directory, manifest)
        except OSError:
            # A full disk: without its manifest the set is none either.
            unlink(directory, MANIFEST)
            os.fsync(directory)
        leftovers = sorted(os.listdir(directory), key=lambda name: name == MANIFEST)  # the manifest last
        for name in leftovers:
            if name in (MANIFEST, MANIFEST + ".new") or STRIPE_NAME.fullmatch(name):
                unlink(directory, name)
        os.rmdir(path)
        sync_directory(os.path.dirname(path))
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}: remove it by hand") from error
    finally:
        os.close(directory)


def checked_name(path: str) -> str:
    """The absolute path of a set that can be made, or StorageError."""
    path = os.fspath(path)
    if not path or path.endswith(os.sep):
        raise StorageError(f"{path!r} names no set: give DIRECTORY/NAME")
    absolute = os.path.abspath(path)
    if absolute.endswith(PARTIAL):
        raise StorageError(f"{path}: names ending in {PARTIAL} are for unfinished sets")
    if not os.path.isdir(os.path.dirname(absolute)):
        raise StorageError(f"{os.path.dirname(absolute)}: no such directory: make it first")
    return absolute


def publish_set(partial: str, target: str, directory: int, manifest: Manifest) -> None:
    manifest.state = "confirmed"
    try:
        save_manifest(directory, manifest)
        os.rename(partial, target)
    except OSError as error:
        manifest.state = "prepared"
        raise StorageError(f"{target}: {error.strerror}: the set stays in {partial} (see: vdi-ext recover)") from error
    sync_directory(os.path.dirname(target))


def save_manifest(directory: int, manifest: Manifest) -> None:
    new = MANIFEST + ".new"
    data = manifest.to_json().encode()
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        while data:
            data = data[os.write(fd, data) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(new, MANIFEST, src_dir_fd=directory, dst_dir_fd=directory)
    os.fsync(directory)


def read_manifest(path: str) -> str:
    fd = os.open(os.path.join(path, MANIFEST), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("not a regular file")
        data = file.read(_MANIFEST_LIMIT + 1)
    if len(data) > _MANIFEST_LIMIT:
        raise ValueError("too large for a manifest")
    return data.decode()


def unlink(directory: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


def sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _find_writeback() -> Callable[[int, int, int], None]:
    # Writing back as the stream goes leaves little for the final fsync. A hint: its failure shows at the fsync.
    if sys.platform != "linux":
        return lambda fd, offset, count: None
    call = ctypes.CDLL(None, use_errno=True).sync_file_range
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)

    def start(fd: int, offset: int, count: int) -> None:
        if call(fd, offset, count, _SYNC_FILE_RANGE_WRITE) != 0:
            code = ctypes.get_errno()
            if code not in (errno.ESPIPE, errno.EINVAL, errno.ENOSYS):
                raise OSError(code, os.strerror(code))

    return start


start_writeback = _find_writeback()
