"""Writing a set, so that nothing looks finished before it is."""

import fcntl
import hashlib
import os
import threading
from collections.abc import Sequence
from typing import Any

from .files import checked_name, publish_set, remove_set, require_space, save_manifest, start_writeback, sync_directory
from .manifest import PARTIAL, Manifest, StorageError, Stripe, now

_WRITEBACK = 8 << 20


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
                start_writeback(self._fd, self._started, self.size - self._started)
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
            sync_directory(self._parent)
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
                publish_set(self.partial, self.path, self._dir, self.manifest)
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
        save_manifest(self._dir, self.manifest)

    def _close(self) -> None:
        for stripe in self.stripes:
            stripe._close()
        if self._dir >= 0:
            os.close(self._dir)
            self._dir = -1
