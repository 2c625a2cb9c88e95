"""``vdi-ext restore``."""

import argparse
from typing import Any

from .. import jobs
from . import output
from .events import add_event_options, consumers
from .options import add_statement_options, new_command, statement_options


def add(commands: Any) -> None:
    restore = new_command(
        commands, "restore", _restore, "restore a database from a set of stripes, checking every byte"
    )
    restore.add_argument("source", metavar="SOURCE", help="directory of the set")
    restore.add_argument("target", metavar="TARGET", help="address of the database")
    restore.add_argument("--verify-first", action="store_true", help="read and check everything before anything else")
    restore.add_argument("--replace", action="store_true", help="WITH REPLACE: overwrite an existing database")
    add_statement_options(restore)
    add_event_options(restore)


def _restore(options: argparse.Namespace) -> int:
    with consumers(options) as events, output.progress(options) as progress:
        result = jobs.restore(
            options.source, options.target, progress=progress, events=events, verify_first=options.verify_first,
            replace=options.replace, **statement_options(options),
        )  # fmt: skip
    return output.finished(options, result, f"restored {options.target} from {result.path}")
