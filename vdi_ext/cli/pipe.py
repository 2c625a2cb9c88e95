"""``vdi-ext pipe``: one backup to standard output, one restore from standard input."""

import argparse
import sys
from typing import Any

from .. import jobs
from . import output
from .backup import add_backup_options, backup_options
from .events import add_event_options, consumers
from .exits import EXIT_OK
from .options import add_password_options, add_statement_options, new_command, password
from .restore import add_restore_options, restore_options


def add(commands: Any) -> None:
    text = "stream one backup to standard output, or one restore from standard input"
    pipe = commands.add_parser("pipe", help=text, description=text)
    ways = pipe.add_subparsers(metavar="WAY", required=True)
    backup = new_command(ways, "backup", _backup, "one backup to standard output; whole only if the exit code is 0")
    backup.add_argument("source", metavar="SOURCE", help="address of the database")
    backup.set_defaults(devices=1)
    restore = new_command(ways, "restore", _restore, "one restore from standard input")
    restore.add_argument("target", metavar="TARGET", help="address of the database")
    add_backup_options(backup)
    add_restore_options(restore)
    for added in (backup, restore):
        add_statement_options(added)
        add_password_options(added)
        add_event_options(added)


def _backup(options: argparse.Namespace) -> int:
    wishes = backup_options(options)
    if options.print_sql:
        return output.statement(options, jobs.backup_text(options.source, **wishes))
    if options.json:
        raise jobs.ArgumentError("standard output is for the backup: --json has no place there")
    if sys.stdout.isatty():
        raise jobs.ArgumentError("standard output is a terminal: send it to a file or a program")
    del wishes["devices"]
    secret = password(options, options.source)
    with consumers(options) as events, output.progress(options) as progress:
        jobs.pipe_backup(
            options.source, sys.stdout.fileno(), progress=progress, events=events, password=secret, **wishes
        )
    return EXIT_OK


def _restore(options: argparse.Namespace) -> int:
    if options.print_sql:
        raise jobs.ArgumentError("the statement of a piped restore can not be shown: use restore --print-sql")
    secret = password(options, options.target)
    with consumers(options) as events, output.progress(options) as progress:
        result = jobs.pipe_restore(
            sys.stdin.fileno(), options.target, progress=progress, events=events, password=secret,
            **restore_options(options),
        )  # fmt: skip
    return output.finished(options, result, f"restored {options.target}")
