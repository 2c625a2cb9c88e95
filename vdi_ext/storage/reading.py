"""Reading a set, and believing nothing that its manifest does not vouch for."""

import fcntl
import hashlib
import os
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from .files import exclusive, publish_set, read_manifest
from .manifest import MANIFEST, PARTIAL, STRIPE_NAME, Manifest, SetInUseError, StorageError, Stripe, VerificationError

READ_SIZE = 1 << 20


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
        scratch = buffer or bytearray(READ_SIZE)
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
            self.manifest = Manifest.from_json(read_manifest(self.path))
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
            if STRIPE_NAME.fullmatch(name) and name not in known:
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
            buffer = bytearray(READ_SIZE)
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
                publish_set(self.path, target, directory, self.manifest)
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
