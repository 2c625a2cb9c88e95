"""The program: its subcommands, its signals, and which exit code an error gets."""

import argparse
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from .. import jobs
from . import backup, doctor, explain, output, pipe, recover, restore, serve
from .errors import KNOWN, exit_code, word_of
from .exits import EXIT_INTERRUPTED, EXIT_STORAGE, EXIT_TERMINATED
from .explain import explanations
from .options import EPILOG

# Modules with an `add(commands)`, in the order of the help.
COMMANDS = (backup, restore, pipe, recover, serve, doctor, explain)


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
    except KNOWN as error:
        return _failure(options, word_of(error), exit_code(error), error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vdi-ext", formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EPILOG,
        description="Back up and restore databases through SQL Server's virtual device interface.",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"vdi-ext {jobs.tool_version()}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return parser


def _failure(options: argparse.Namespace, kind: str, code: int, error: BaseException) -> int:
    words = {EXIT_INTERRUPTED: "ended by Ctrl-C", EXIT_TERMINATED: "ended by SIGTERM"}.get(code) or str(error)
    explained = explanations(error)
    text = " ".join("; ".join([words, *getattr(error, "__notes__", ()), *map(str, explained)]).split())
    if options.json:
        with contextlib.suppress(BrokenPipeError):
            document = {"event": "error", "kind": kind, "exit_code": code, "message": text}
            if explained:
                document["explanations"] = [entry.to_dict() for entry in explained]
            output.print_json(document)
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
