"""Where backup sets rest: one directory per set, one file per stripe, and a manifest that says what they hold.

A set is written under ``NAME.partial/`` and published by one rename to ``NAME/``. The manifest's state says how far
it came, and is durable before it is believed:

=============  ======================================================================================================
``writing``    being written, or its writer died: no backup
``prepared``   every stripe is durable and complete, the statement's outcome is not known: restorable, kept
``confirmed``  the statement succeeded; counts once the directory carries its own name
``failed``     the statement failed: no backup
=============  ======================================================================================================

Everything read back from a manifest is checked before it is used.
"""

import contextlib
import ctypes
import datetime
import errno
import fcntl
import hashlib
import json
import os
import re
import stat
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from typing import Any

MANIFEST = "manifest.json"
PARTIAL = ".partial"
FORMAT = "vdi-ext backup set"
FORMAT_VERSION = 1
STATES = ("writing", "prepared", "confirmed", "failed")

_MANIFEST_LIMIT = 4 << 20
_READ_SIZE = 1 << 20
_WRITEBACK = 8 << 20
_SYNC_FILE_RANGE_WRITE = 2
_STRIPE_NAME = re.compile(r"stripe-\d{2}-of-\d{2}\.bak")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class StorageError(Exception):
    """A store could not be written, read or changed; the message says what to do."""


class SetInUseError(StorageError):
    """Another process is at work on the set."""


class VerificationError(Exception):
    """Stored data are not what was stored.

    Attributes
    ----------
    problems : tuple of str
        One line for each stripe that is wrong, missing or foreign.
    """

    def __init__(self, problems: str | tuple[str, ...]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("; ".join(self.problems))

    def __reduce__(self) -> tuple:
        return type(self), (self.problems,)


def now() -> str:
    """The time in UTC, as manifests carry it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclass
class Stripe:
    """What a manifest says about one stripe.

    Attributes
    ----------
    number : int
        1 for the first device.
    file : str
        Name within the set's directory.
    size : int
        Durable bytes.
    sha256 : str
        Hexadecimal digest of these bytes.
    complete : bool
        The device has flushed (or completed) and nothing was written since.
    """

    number: int
    file: str
    size: int = 0
    sha256: str = hashlib.sha256().hexdigest()
    complete: bool = False


@dataclass
class Manifest:
    """The description of one set, stored beside its stripes as JSON."""

    state: str
    stripes: list[Stripe]
    set_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    database: str = ""
    source: str = ""
    statement: str = ""
    tool: str = ""
    created: str = field(default_factory=now)
    finished: str | None = None
    configuration: dict = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    reason: str | None = None

    @property
    def size(self) -> int:
        """Bytes of all stripes."""
        return sum(stripe.size for stripe in self.stripes)

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, "version": FORMAT_VERSION, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Parse and check a manifest.

        Raises
        ------
        ValueError
            It is no manifest, one of a later version, or contradicts itself.
        """
        try:
            document = json.loads(text)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        if not isinstance(document, dict) or document.pop("format", None) != FORMAT:
            raise ValueError("not a manifest of a backup set")
        if document.pop("version", None) != FORMAT_VERSION:
            raise ValueError("written by another version of this program")
        kinds: dict[str, type | tuple[type, ...]] = {
            "stripes": list, "configuration": dict, "messages": list,
            "finished": (str, type(None)), "reason": (str, type(None)),
        }  # fmt: skip
        names = {f.name for f in fields(cls)}
        if set(document) != names:
            raise ValueError(f"fields missing or unknown: {', '.join(sorted(names ^ set(document)))}")
        for name, value in document.items():
            if not isinstance(value, kinds.get(name, str)):
                raise ValueError(f"{name} is of the wrong type")
        if document["state"] not in STATES:
            raise ValueError("unknown state")
        stripes = [_checked_stripe(number, entry) for number, entry in enumerate(document.pop("stripes"), 1)]
        if not 1 <= len(stripes) <= 64:
            raise ValueError(f"{len(stripes)} stripes, where 1 to 64 are possible")
        if document["state"] in ("prepared", "confirmed") and not all(stripe.complete for stripe in stripes):
            raise ValueError("complete although a stripe is not")
        return cls(stripes=stripes, **document)


def _checked_stripe(number: int, entry: object) -> Stripe:
    if not isinstance(entry, dict) or set(entry) != {f.name for f in fields(Stripe)}:
        raise ValueError(f"stripe {number} is not described")
    stripe = Stripe(**entry)
    if (
        type(stripe.number) is not int
        or stripe.number != number
        or not isinstance(stripe.file, str)
        or not _STRIPE_NAME.fullmatch(stripe.file)
        or type(stripe.size) is not int
        or stripe.size < 0
        or not isinstance(stripe.sha256, str)
        or not _DIGEST.fullmatch(stripe.sha256)
        or type(stripe.complete) is not bool
    ):
        raise ValueError(f"stripe {number} is described wrongly")
    return stripe


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


class StripeWriter:
    """One stripe of a set that is being written. One thread at a time; different stripes are independent."""

    def __init__(self, owner: "SetWriter", record: Stripe, fd: int) -> None:
        self._owner = owner
        self._record = record
        self._fd = fd
        self._hash = hashlib.sha256()
        self._started = 0  # bytes whose write-back was asked for
        self._broken: OSError | None = None  # after a failed write or fsync nobody knows what the disk holds
        self.size = 0

    @property
    def number(self) -> int:
        return self._record.number

    @property
    def complete(self) -> bool:
        """Sealed as complete, and nothing written since."""
        return self._record.complete

    @property
    def label(self) -> str:
        """How the stripe is named in messages."""
        return f"stripe {self.number} ({os.path.join(self._owner.partial, self._record.file)})"

    def write(self, data) -> int:
        """Append a buffer's bytes, hashing them where they are.

        Parameters
        ----------
        data : buffer
            Any contiguous bytes; not kept after the return.

        Returns
        -------
        int
            Bytes written: all of them.

        Raises
        ------
        OSError
            The first failure; every later call raises it again.
        """
        self._check()
        if self._record.complete:
            self._owner._reopen(self._record)
        try:
            with memoryview(data) as view, view.cast("B") as octets:
                size = len(octets)
                done = 0
                while done < size:
                    with octets[done:] as rest:
                        done += os.write(self._fd, rest)
                self._hash.update(octets)
            self.size += size
            if self.size - self._started >= _WRITEBACK:
                _start_writeback(self._fd, self._started, self.size - self._started)
                self._started = self.size
        except OSError as error:
            self._broken = error
            raise
        return size

    def seal(self, *, complete: bool) -> bool:
        """Make everything written so far durable, and the manifest say so.

        Parameters
        ----------
        complete : bool
            Nothing more is expected. With the last stripe's, the set becomes ``prepared``.

        Returns
        -------
        bool
            The set is prepared by this.
        """
        self._check()
        try:
            os.fsync(self._fd)
            return self._owner._sealed(self._record, self.size, self._hash.copy().hexdigest(), complete)
        except OSError as error:
            self._broken = error
            raise

    def _check(self) -> None:
        if self._broken is not None:
            raise OSError(self._broken.errno, f"stripe {self.number}: {self._broken.strerror}")

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class SetWriter:
    """A set that is being written.

    Parameters
    ----------
    path : str
        Where the set will be found once confirmed: ``.../NAME``.
    devices : int
        Number of stripes.
    expected_size : int, optional
        Bytes that must be free before anything is begun.
    description : str
        ``database``, ``source``, ``statement``, ``tool`` of the manifest.

    Raises
    ------
    StorageError
        NAME or its unfinished form exists, there is too little space, or nothing can be written there.
    """

    def __init__(self, path: str, devices: int, *, expected_size: int = 0, **description: Any) -> None:
        self.path = checked_name(path)
        self.partial = self.path + PARTIAL
        self._parent = os.path.dirname(self.path)
        self._lock = threading.Lock()
        self._dir = -1
        self.stripes: list[StripeWriter] = []
        require_space(self._parent, expected_size)
        records = [Stripe(n, f"stripe-{n:02}-of-{devices:02}.bak") for n in range(1, devices + 1)]
        self.manifest = Manifest("writing", records, **description)
        try:
            os.mkdir(self.partial, 0o700)
        except FileExistsError:
            raise StorageError(
                f"{self.partial} exists: another backup is writing it, or one was interrupted "
                f"(see: vdi-ext recover {self.partial})"
            ) from None
        except OSError as error:
            raise StorageError(f"{self.partial}: {error.strerror}") from error
        try:
            # Only whoever holds the unfinished name may publish, so the look at the final name cannot be overtaken.
            if os.path.lexists(self.path):
                raise StorageError(f"{self.path} exists: choose another name, backups are never overwritten")
            self._dir = os.open(self.partial, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            for record in records:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                fd = os.open(record.file, flags, 0o600, dir_fd=self._dir)
                self.stripes.append(StripeWriter(self, record, fd))
            fcntl.flock(self.stripes[0]._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # seen by recover as long as we live
            self._save()
            _sync_directory(self._parent)
        except BaseException as error:
            self.fail("could not be begun")
            if isinstance(error, OSError):
                raise StorageError(f"{self.partial}: {error.strerror}") from error
            raise

    @property
    def state(self) -> str:
        return self.manifest.state

    def configure(self, configuration: dict) -> None:
        """Note the negotiated configuration; the next durable manifest carries it."""
        with self._lock:
            self.manifest.configuration = dict(configuration)

    def confirm(self, messages: Sequence[str] = ()) -> str:
        """Publish the set: the statement succeeded.

        Returns
        -------
        str
            The set's directory.

        Raises
        ------
        StorageError
            A stripe is not complete, or the rename failed; the set stays ``prepared``.
        """
        with self._lock:
            if self.manifest.state != "prepared":
                raise StorageError(f"{self.partial}: not every stripe is complete, so the set cannot be confirmed")
            try:
                self.manifest.messages = list(messages)
                _publish(self.partial, self.path, self._dir, self.manifest)
            finally:
                self._close()
        return self.path

    def fail(self, reason: str) -> None:
        """Mark the set ``failed``, then remove what it left."""
        with self._lock:
            try:
                remove_set(self.partial, self.manifest, reason)
            finally:
                self._close()

    def leave(self) -> None:
        """Let go of the set as it is: its outcome is not known."""
        with self._lock:
            self._close()

    def _reopen(self, record: Stripe) -> None:
        # More data after the last Flush: what the manifest promises must stop being a whole set before the file grows.
        with self._lock:
            record.complete = False
            if self.manifest.state == "prepared":
                self.manifest.state = "writing"
                self._save()

    def _sealed(self, record: Stripe, size: int, digest: str, complete: bool) -> bool:
        with self._lock:
            record.size, record.sha256, record.complete = size, digest, complete
            if all(stripe.complete for stripe in self.manifest.stripes):
                self.manifest.state = "prepared"
                self.manifest.finished = now()
            self._save()
            return self.manifest.state == "prepared"

    def _save(self) -> None:
        _save_manifest(self._dir, self.manifest)

    def _close(self) -> None:
        for stripe in self.stripes:
            stripe._close()
        if self._dir >= 0:
            os.close(self._dir)
            self._dir = -1


class StripeReader:
    """One stripe of a stored set, read once from its beginning. One thread at a time.

    The bytes that end the stripe are given out only when the digest of all of them is right.
    """

    def __init__(self, owner: "StoredSet", record: Stripe) -> None:
        self._record = record
        self._label = owner.label(record)
        self._fd = owner._open(record)
        self._hash = hashlib.sha256()
        self.position = 0

    def __enter__(self) -> "StripeReader":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def size(self) -> int:
        return self._record.size

    def readinto(self, buffer) -> int:
        """Fill a buffer, or as much of it as the stripe has left.

        Returns
        -------
        int
            Bytes placed; 0 at the end.

        Raises
        ------
        VerificationError
            The file ends early, or these are its last bytes and the digest of all is wrong: the buffer's content must
            not be used.
        StorageError
            The file cannot be read.
        """
        with memoryview(buffer) as view, view.cast("B") as octets:
            wanted = min(len(octets), self.size - self.position)
            done = 0
            while done < wanted:
                with octets[done:wanted] as rest:
                    try:
                        count = os.readv(self._fd, [rest])
                    except OSError as error:
                        raise StorageError(f"{self._label}: {error.strerror}") from error
                if count == 0:
                    raise VerificationError(f"{self._label} ends after {self.position + done:,} of {self.size:,} bytes")
                done += count
            with octets[:wanted] as filled:
                self._hash.update(filled)
        self.position += wanted
        if self.position == self.size and self._hash.hexdigest() != self._record.sha256:
            raise VerificationError(f"{self._label} is damaged: its SHA-256 is not the manifest's")
        return wanted

    def finish(self, buffer: bytearray | None = None) -> None:
        """Read what is left, only to check it."""
        scratch = buffer or bytearray(_READ_SIZE)
        while self.readinto(scratch):
            pass

    @property
    def digest(self) -> str:
        """SHA-256 of what was read so far, hexadecimal."""
        return self._hash.hexdigest()


class StoredSet:
    """A set at rest.

    Parameters
    ----------
    path : str
        Its directory, ``NAME`` or ``NAME.partial``.

    Raises
    ------
    StorageError
        There is no such set, or its manifest is missing or unreadable.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(os.fspath(path))
        if not os.path.isdir(self.path):
            hint = ""
            if os.path.isdir(self.path + PARTIAL):
                hint = f"; {self.path + PARTIAL} is there: its outcome is not known (see: vdi-ext recover)"
            raise StorageError(f"{self.path}: no such backup set{hint}")
        try:
            self.manifest = Manifest.from_json(_read_manifest(self.path))
        except FileNotFoundError:
            raise StorageError(f"{self.path} has no {MANIFEST}: it is no backup set, or the start of one") from None
        except OSError as error:
            raise StorageError(f"{os.path.join(self.path, MANIFEST)}: {error.strerror}") from error
        except ValueError as error:
            raise VerificationError(f"{os.path.join(self.path, MANIFEST)}: {error}") from error

    @property
    def unfinished(self) -> bool:
        """It lies under its unfinished name."""
        return self.path.endswith(PARTIAL)

    @property
    def state(self) -> str:
        """What the set counts as: a set under its unfinished name is at best ``prepared``."""
        if self.unfinished and self.manifest.state == "confirmed":
            return "prepared"
        return self.manifest.state

    @property
    def restorable(self) -> bool:
        return self.state in ("prepared", "confirmed")

    def label(self, record: Stripe) -> str:
        """How a stripe is named in messages."""
        return f"stripe {record.number} of {len(self.manifest.stripes)} ({os.path.join(self.path, record.file)})"

    def check_presence(self) -> None:
        """Check that exactly the stripes of the manifest are there, in their sizes.

        Raises
        ------
        VerificationError
            Names every stripe that is missing, of another size, or not of this set.
        """
        if not self.restorable:
            raise StorageError(f"{self.path} is {self.state}: it holds no whole backup and cannot be restored")
        problems = []
        for record in self.manifest.stripes:
            try:
                found = os.stat(os.path.join(self.path, record.file), follow_symlinks=False)
            except FileNotFoundError:
                problems.append(f"{self.label(record)} is missing")
                continue
            if not stat.S_ISREG(found.st_mode):
                problems.append(f"{self.label(record)} is no regular file")
            elif found.st_size != record.size:
                how = "truncated" if found.st_size < record.size else "too long"
                problems.append(f"{self.label(record)} is {how}: {found.st_size:,} bytes instead of {record.size:,}")
        known = {record.file for record in self.manifest.stripes}
        for name in sorted(os.listdir(self.path)):
            if _STRIPE_NAME.fullmatch(name) and name not in known:
                problems.append(f"{os.path.join(self.path, name)} is no stripe of this set of {len(known)}")
        if problems:
            raise VerificationError(tuple(problems))

    def open_stripe(self, number: int) -> StripeReader:
        return StripeReader(self, self.manifest.stripes[number - 1])

    def verify(self, advance: Callable[[int], None] = lambda count: None) -> None:
        """Read everything and check sizes and digests.

        Parameters
        ----------
        advance : callable, optional
            Called with the bytes of each read, from several threads. An exception of it ends the verification.

        Raises
        ------
        VerificationError
            Names every stripe that is wrong.
        """
        self.check_presence()
        stop = threading.Event()

        def check(record: Stripe) -> str | None:
            buffer = bytearray(_READ_SIZE)
            with StripeReader(self, record) as reader:
                try:
                    while not stop.is_set() and (count := reader.readinto(buffer)):
                        advance(count)
                except VerificationError as error:
                    twin = [s.number for s in self.manifest.stripes if s.sha256 == reader.digest and s is not record]
                    return f"{error} (it holds stripe {twin[0]})" if twin else str(error)
            return None

        with ThreadPoolExecutor(min(len(self.manifest.stripes), os.cpu_count() or 1)) as pool:
            try:
                problems = [problem for problem in pool.map(check, self.manifest.stripes) if problem]
            finally:
                stop.set()
        if problems:
            raise VerificationError(tuple(problems))

    def publish(self) -> str:
        """Confirm a ``prepared`` set whose outcome the caller knows or accepts. Returns its new path."""
        if not self.unfinished or self.state != "prepared":
            raise StorageError(f"{self.path} is {self.state}: only a prepared set can be published")
        target = self.path.removesuffix(PARTIAL)
        with exclusive(self.path):
            if os.path.lexists(target):
                raise StorageError(f"{target} exists: move it away first")
            directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _publish(self.path, target, directory, self.manifest)
            finally:
                os.close(directory)
        self.path = target
        return target

    def _open(self, record: Stripe) -> int:
        try:
            fd = os.open(os.path.join(self.path, record.file), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise VerificationError(f"{self.label(record)} is missing") from None
        except OSError as error:
            raise StorageError(f"{self.label(record)}: {error.strerror}") from error
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_size != record.size:
                raise VerificationError(f"{self.label(record)} has changed its size")
            if record.size == 0 and record.sha256 != hashlib.sha256().hexdigest():
                raise VerificationError(f"{self.label(record)} is damaged: its SHA-256 is not the manifest's")
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise SetInUseError(f"{self.path} is being written or removed by another process") from None
        except BaseException:
            os.close(fd)
            raise
        return fd


@contextlib.contextmanager
def exclusive(path: str) -> Iterator[None]:
    """Hold a set against every other process. A set whose first stripe is gone has no writer.

    Raises
    ------
    SetInUseError
        Another process is at work on it.
    """
    first = next((name for name in sorted(os.listdir(path)) if _STRIPE_NAME.fullmatch(name)), None)
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
                _save_manifest(directory, manifest)
        except OSError:
            # A full disk: without its manifest the set is none either.
            _unlink(directory, MANIFEST)
            os.fsync(directory)
        leftovers = sorted(os.listdir(directory), key=lambda name: name == MANIFEST)  # the manifest last
        for name in leftovers:
            if name in (MANIFEST, MANIFEST + ".new") or _STRIPE_NAME.fullmatch(name):
                _unlink(directory, name)
        os.rmdir(path)
        _sync_directory(os.path.dirname(path))
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


def _publish(partial: str, target: str, directory: int, manifest: Manifest) -> None:
    manifest.state = "confirmed"
    try:
        _save_manifest(directory, manifest)
        os.rename(partial, target)
    except OSError as error:
        manifest.state = "prepared"
        raise StorageError(f"{target}: {error.strerror}: the set stays in {partial} (see: vdi-ext recover)") from error
    _sync_directory(os.path.dirname(target))


def _save_manifest(directory: int, manifest: Manifest) -> None:
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


def _read_manifest(path: str) -> str:
    fd = os.open(os.path.join(path, MANIFEST), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("not a regular file")
        data = file.read(_MANIFEST_LIMIT + 1)
    if len(data) > _MANIFEST_LIMIT:
        raise ValueError("too large for a manifest")
    return data.decode()


def _unlink(directory: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


def _sync_directory(path: str) -> None:
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


_start_writeback = _find_writeback()
