"""Commands of the user's that a job runs: to take a snapshot of files, and to put them back."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor

from ..storage import StorageError

_POLL = 0.05  # seconds between two looks at the command
_GRACE = 2.0  # seconds that a command may take to end when it was told to
_SHOWN = 4000  # bytes of its output, from the end

Command = str | Sequence[str]


class Deadline:
    """A number of seconds, counted from now; None: without limit."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    @property
    def left(self) -> float | None:
        """Seconds, not below 0."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    @property
    def over(self) -> bool:
        return self.left == 0.0


class CommandFailedError(StorageError):
    """A command of the user's failed.

    Attributes
    ----------
    returncode : int or None
        Its exit status, negative for a signal; None where it was ended because its time was up.
    output : str
        The end of what it said.
    """

    def __init__(self, what: str, returncode: int | None, output: str) -> None:
        self.what, self.returncode, self.output = what, returncode, output
        super().__init__(f"{what}: {output}" if output else what)

    def __reduce__(self) -> tuple:
        return type(self), (self.what, self.returncode, self.output)


def run_command(
    command: Command,
    environment: Mapping[str, str],
    *,
    title: str,
    deadline: Deadline,
    check: Callable[[], None],
    failed: Callable[[BaseException], None],
) -> str:
    """Run a command to its end, in a session of its own.

    Parameters
    ----------
    command : str or sequence of str
        For the shell, or a program and its arguments.
    environment : mapping
        Added to this process's own.
    title : str
        What it is called in errors.
    deadline : Deadline
        Then it is ended, and everything that it started and left in its session's process group.
    check : callable
        Called while it runs; what it raises ends it.
    failed : callable
        Told of the failure before the command is ended, which may take a moment.

    Returns
    -------
    str
        The end of its output.

    Raises
    ------
    CommandFailedError
        It could not be started, its exit status was not 0, or its time was up.
    """
    with tempfile.TemporaryFile() as output:

        def said() -> str:
            size = os.fstat(output.fileno()).st_size  # its own place in the file is the command's, too
            return os.pread(output.fileno(), _SHOWN, max(0, size - _SHOWN)).decode(errors="replace").strip()

        # Started on another thread: no signal's exception can come between the start and what knows of it.
        starter = ThreadPoolExecutor(1)
        starting = starter.submit(
            subprocess.Popen, command, shell=isinstance(command, str), env={**os.environ, **environment},
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            futures.wait([starting])
            if isinstance(problem := starting.exception(), OSError):
                raise CommandFailedError(f"the {title} cannot be started: {problem}", None, "") from problem
            process = starting.result()
            while True:
                try:
                    status = process.wait(_POLL)
                    break
                except subprocess.TimeoutExpired:
                    check()
                    if deadline.over:
                        what = f"the {title} was not done within {deadline.seconds:g} seconds"
                        raise CommandFailedError(what, None, said()) from None
        except BaseException as error:
            failed(error)
            if starting.exception() is None:
                _end(starting.result())
            raise
        finally:
            starter.shutdown()
        if status:
            how = f"was ended by signal {-status}" if status < 0 else f"failed with exit status {status}"
            raise CommandFailedError(f"the {title} {how}", status, said())
        return said()


def _end(process: subprocess.Popen[bytes]) -> None:
    """The command, and what it started: first asked, then ended."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
