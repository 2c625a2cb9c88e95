"""The command line: ``vdi-ext backup | restore | recover``."""

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from . import jobs
from .errors import VDError

EXIT_OK = 0
EXIT_INTERNAL = 1
EXIT_USAGE = 2
EXIT_SQL = 3
EXIT_VDI = 4
EXIT_STORAGE = 5
EXIT_VERIFICATION = 6
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

EXIT_CODES = """\
exit codes:
  0    success
  1    an error of this program: please report it
  2    wrong usage
  3    the SQL statement failed, or its server was lost
  4    the virtual device interface failed
  5    storage failed: no space, no permission, name taken, no such set
  6    verification failed: a stripe is damaged, missing or foreign
  130  ended by Ctrl-C (SIGINT)
  143  ended by SIGTERM
"""

ADDRESSES = """\
addresses of databases (stand-in server):
  sqlite:PATH           a live SQLite file
  replay:PATH[,PATH..]  existing backup files, one per device
                        restore compares with them, or writes them where they are not there
  synthetic:SIZE[:SEED] generated pages, e.g. synthetic:10GiB:7
"""

_REFRESH = 5.0  # seconds between two plain lines of progress


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends a job as Ctrl-C does."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : list of str, optional
        Those of the process where not given.

    Returns
    -------
    int
        The exit code; see ``vdi-ext --help``.
    """
    options = _parser().parse_args(arguments)
    logging.getLogger("vdi_ext").addHandler(logging.NullHandler())  # the stand-in's error log is not for this terminal
    try:
        with _signals():
            return options.run(options)
    except Terminated as error:
        return _failure(options, "terminated", EXIT_TERMINATED, error)
    except KeyboardInterrupt as error:
        return _failure(options, "interrupted", EXIT_INTERRUPTED, error)
    except BrokenPipeError:
        # Whoever read our output has gone: nobody is left to tell, and the interpreter must not try at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_STORAGE
    except jobs.ArgumentError as error:
        return _failure(options, "usage", EXIT_USAGE, error)
    except jobs.SQLError as error:
        return _failure(options, "sql", EXIT_SQL, error)
    except jobs.VerificationError as error:
        return _failure(options, "verification", EXIT_VERIFICATION, error)
    except VDError as error:
        return _failure(options, "vdi", EXIT_VDI, error)
    except (jobs.StorageError, OSError) as error:
        return _failure(options, "storage", EXIT_STORAGE, error)


def _parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="vdi-ext", formatter_class=plain, epilog=ADDRESSES + "\n" + EXIT_CODES,
        description="Back up and restore databases through SQL Server's virtual device interface.",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"vdi-ext {jobs.tool_version()}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name, help=text, description=text, formatter_class=plain, epilog=ADDRESSES + "\n" + EXIT_CODES
        )
        added.set_defaults(run=run)
        output = added.add_mutually_exclusive_group()
        output.add_argument("--json", action="store_true", help="report as JSON, one object per line")
        output.add_argument("--quiet", action="store_true", help="no progress")
        return added

    backup = command("backup", _backup, "back up a database to a new set of stripes in a directory")
    backup.add_argument("source", metavar="SOURCE", help="address of the database")
    backup.add_argument("target", metavar="TARGET", help="DIRECTORY/NAME of the set; NAME must not exist")
    backup.add_argument("--devices", type=int, default=None, metavar="N", help="virtual devices = stripes, 1 to 64")
    backup.add_argument("--copy-only", action="store_true", help="WITH COPY_ONLY")
    backup.add_argument("--format", action="store_true", help="WITH FORMAT")

    restore = command("restore", _restore, "restore a database from a set of stripes, checking every byte")
    restore.add_argument("source", metavar="SOURCE", help="directory of the set")
    restore.add_argument("target", metavar="TARGET", help="address of the database")
    restore.add_argument("--verify-first", action="store_true", help="read and check everything before anything else")
    restore.add_argument("--replace", action="store_true", help="WITH REPLACE: overwrite an existing database")

    for added in (backup, restore):
        added.add_argument("--database", metavar="NAME", help="name in the statement (default: from the address)")
        added.add_argument("--provider", metavar="WHICH", help="embedded, system, or the path of a library")
        added.add_argument("--block-size", type=_size, metavar="SIZE", help="WITH BLOCKSIZE, in bytes (64KiB = 65536)")
        added.add_argument("--buffer-count", type=int, metavar="N", help="WITH BUFFERCOUNT")
        added.add_argument("--max-transfer-size", type=_size, metavar="SIZE", help="WITH MAXTRANSFERSIZE, in bytes")
        added.add_argument("--checksum", action="store_true", help="WITH CHECKSUM")
        added.add_argument("--stats", type=int, metavar="PERCENT", help="WITH STATS: messages of the server's progress")
        added.add_argument("--no-complete", action="store_true", help="do without the Complete command after Flush")
        added.add_argument("--in-process", action="store_true", help="run the stand-in server in this process")

    recover = command("recover", _recover, "list unfinished sets; verify, publish or remove them")
    recover.add_argument("store", metavar="STORE", help="a directory of sets, or one set")
    action = recover.add_mutually_exclusive_group()
    for name, text in (
        ("list", "only list them (default)"),
        ("verify", "read prepared sets and check sizes and digests"),
        ("publish", "verify prepared sets, and give them their final name"),
        ("remove", "remove what is no backup; a prepared or damaged set only where STORE names it"),
    ):
        action.add_argument(f"--{name}", dest="action", action="store_const", const=name, default="list", help=text)
    return parser


def _size(text: str) -> int:
    units = {"": 1, "k": 1 << 10, "m": 1 << 20, "kib": 1 << 10, "mib": 1 << 20}
    number = text.rstrip("kKmMiIbB")
    unit = text[len(number) :].lower()
    if not number.isdecimal() or unit not in units:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: give bytes, or a number with KiB or MiB")
    return int(number) * units[unit]


def _backup(options: argparse.Namespace) -> int:
    with _progress(options) as progress:
        result = jobs.backup(
            options.source, options.target, progress=progress, devices=options.devices, copy_only=options.copy_only,
            format=options.format, **_common(options),
        )  # fmt: skip
    return _finished(options, result, f"backed up to {result.path}")


def _restore(options: argparse.Namespace) -> int:
    with _progress(options) as progress:
        result = jobs.restore(
            options.source, options.target, progress=progress, verify_first=options.verify_first,
            replace=options.replace, **_common(options),
        )  # fmt: skip
    return _finished(options, result, f"restored {options.target} from {result.path}")


def _common(options: argparse.Namespace) -> dict:
    return {
        "database": options.database,
        "provider": options.provider,
        "block_size": options.block_size,
        "buffer_count": options.buffer_count,
        "max_transfer_size": options.max_transfer_size,
        "checksum": options.checksum,
        "stats": options.stats,
        "request_complete": not options.no_complete,
        "own_process": not options.in_process,
    }


def _recover(options: argparse.Namespace) -> int:
    with _progress(options) as progress:
        found = jobs.recover(options.store, action=options.action, progress=progress)
    for entry in found:
        if options.json:
            _print_json({"event": "set", **entry.to_dict()})
            continue
        print(f"{entry.state:10} {_bytes(entry.size):>10}  {entry.path}")
        for problem in entry.problems:
            print(f"           {problem}")
    if not found and not options.json:
        print("nothing unfinished")
    bad = any(entry.problems for entry in found if entry.state in ("prepared", "damaged"))
    return EXIT_VERIFICATION if bad else EXIT_OK


def _finished(options: argparse.Namespace, result: jobs.Result, text: str) -> int:
    if options.json:
        _print_json({"event": "result", **result.to_dict()})
    else:
        rate = _bytes(result.size / result.seconds if result.seconds else 0)
        print(f"{text}: {_bytes(result.size)} in {result.seconds:.1f} s ({rate}/s)")
    return EXIT_OK


def _failure(options: argparse.Namespace, kind: str, code: int, error: BaseException) -> int:
    words = {EXIT_INTERRUPTED: "ended by Ctrl-C", EXIT_TERMINATED: "ended by SIGTERM"}.get(code) or str(error)
    text = " ".join("; ".join([words, *getattr(error, "__notes__", ())]).split())
    if options.json:
        with contextlib.suppress(BrokenPipeError):
            _print_json({"event": "error", "kind": kind, "exit_code": code, "message": text})
    print(f"vdi-ext: {text}", file=sys.stderr)
    return code


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM and Ctrl-C end the job once; what comes during the clean-up does not disturb it."""
    seen: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        if not seen:
            seen.append(number)
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    old = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a shell's background job
            old[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)


@contextlib.contextmanager
def _progress(options: argparse.Namespace) -> Iterator[jobs.Progress | None]:
    if options.quiet:
        yield None
    elif options.json:
        yield lambda event: _print_json({"event": "progress", **event.to_dict()})
    else:
        with terminal_progress() as report:
            yield report


@contextlib.contextmanager
def terminal_progress() -> Iterator[jobs.Progress]:
    """Progress for people, on standard error: a bar where that is a terminal, else a line now and then."""
    if sys.stderr.isatty():
        try:
            from tqdm import tqdm
        except ImportError:  # the extra "cli" is not installed
            pass
        else:
            with contextlib.closing(_Bar(tqdm)) as bar:
                yield bar
            return
    yield _Lines()


class _Bar:
    def __init__(self, tqdm: Any) -> None:
        tqdm.monitor_interval = 0  # no thread of its own
        self._tqdm = tqdm
        self._bar: Any = None

    def __call__(self, event: jobs.ProgressEvent) -> None:
        if event.phase == "message":
            self._tqdm.write(f"  {event.message}", file=sys.stderr)
        elif event.phase in ("transferring", "verifying"):
            if self._bar is None or self._bar.desc != event.phase:
                self.close()
                self._bar = self._tqdm(
                    desc=event.phase, total=event.bytes_total, unit="B", unit_scale=True, unit_divisor=1024,
                    file=sys.stderr, dynamic_ncols=True, leave=True, mininterval=0, smoothing=0,
                )  # fmt: skip
                self._bar.desc = event.phase
            self._bar.update(event.bytes_done - self._bar.n)
        elif event.phase in ("closing", "done") and self._bar is not None:
            self._bar.update(event.bytes_done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class _Lines:
    def __init__(self) -> None:
        self._last = 0.0
        self._done = 0

    def __call__(self, event: jobs.ProgressEvent) -> None:
        if event.phase == "message":
            text = event.message
        elif event.phase in ("transferring", "verifying"):
            new = event.bytes_done != self._done
            if not new or (time.monotonic() - self._last < _REFRESH and event.bytes_done != event.bytes_total):
                return
            self._done = event.bytes_done
            self._last = time.monotonic()
            text = f"{event.phase} {_bytes(event.bytes_done)}"
            if event.bytes_total and event.elapsed:
                rate = event.bytes_done / event.elapsed
                left = max(0, event.bytes_total - event.bytes_done) / rate
                text += f" of {_bytes(event.bytes_total)}, {_bytes(rate)}/s, {left:.0f} s left"
        elif event.device is None:
            text = event.phase
        else:
            return
        print(text, file=sys.stderr, flush=True)


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _print_json(document: dict) -> None:
    print(json.dumps(document), flush=True)


if __name__ == "__main__":
    sys.exit(main())
