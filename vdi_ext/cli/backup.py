"""``vdi-ext backup``."""

import argparse
from typing import Any

from .. import jobs
from . import output
from .events import add_event_options, consumers
from .options import add_statement_options, new_command, statement_options


def add(commands: Any) -> None:
    backup = new_command(commands, "backup", _backup, "back up a database to a new set of stripes in a directory")
    backup.add_argument("source", metavar="SOURCE", help="address of the database")
    backup.add_argument("target", metavar="TARGET", help="DIRECTORY/NAME of the set; NAME must not exist")
    backup.add_argument("--devices", type=int, default=None, metavar="N", help="virtual devices = stripes, 1 to 64")
    backup.add_argument("--copy-only", action="store_true", help="WITH COPY_ONLY")
    backup.add_argument("--format", action="store_true", help="WITH FORMAT")
    add_statement_options(backup)
    add_event_options(backup)


def _backup(options: argparse.Namespace) -> int:
    with consumers(options) as events, output.progress(options) as progress:
        result = jobs.backup(
            options.source, options.target, progress=progress, events=events, devices=options.devices,
            copy_only=options.copy_only, format=options.format, **statement_options(options),
        )  # fmt: skip
    return output.finished(options, result, f"backed up to {result.path}")
