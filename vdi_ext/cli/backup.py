"""``vdi-ext backup``."""

import argparse
from typing import Any

from .. import jobs
from . import output, snapshot
from .errors import exit_code
from .events import add_event_options, consumers
from .exits import EXIT_OK
from .options import add_password_options, add_statement_options, new_command, password, statement_options


def add(commands: Any) -> None:
    backup = new_command(commands, "backup", _backup, "back up a database to a new set of stripes in a directory")
    backup.add_argument("source", metavar="SOURCE", nargs="+", help="address of the database; of each, for a snapshot")
    backup.add_argument("target", metavar="TARGET", help="DIRECTORY/NAME of the set; NAME must not exist. "
                        "{database}, {kind}, {date}, {time}, {server}, {instance} are filled in")  # fmt: skip
    backup.add_argument("--devices", type=int, default=None, metavar="N", help="virtual devices = stripes, 1 to 64")
    add_backup_options(backup)
    add_statement_options(backup)
    add_password_options(backup)
    snapshot.add_backup_options(backup)
    add_event_options(backup)


def add_backup_options(added: argparse.ArgumentParser) -> None:
    """What is backed up, and how; `backup_options` reads them."""
    kind = added.add_mutually_exclusive_group()
    kind.add_argument("--differential", dest="kind", action="store_const", const="differential", default="full",
                      help="what has changed since the last full backup")  # fmt: skip
    kind.add_argument("--log", dest="kind", action="store_const", const="log", help="the log")
    kind.add_argument("--tail-log", dest="kind", action="store_const", const="tail",
                      help="the log WITH NORECOVERY: the database is then ready to be restored over")  # fmt: skip
    added.add_argument("--no-truncate", action="store_true", help="WITH NO_TRUNCATE: the log of a damaged database")
    added.add_argument("--copy-only", action="store_true", help="WITH COPY_ONLY: other backups do not build on it")
    added.add_argument("--format", action="store_true", help="WITH FORMAT")
    checksum = added.add_mutually_exclusive_group()
    checksum.add_argument("--checksum", action="store_true", default=None, help="WITH CHECKSUM: the rule for a server")
    checksum.add_argument("--no-checksum", dest="checksum", action="store_false", default=None,
                          help="without CHECKSUM")  # fmt: skip
    added.add_argument("--name", metavar="TEXT", help="WITH NAME")
    added.add_argument("--description", metavar="TEXT", help="WITH DESCRIPTION")


def backup_options(options: argparse.Namespace) -> dict[str, Any]:
    tail = options.kind == "tail"
    return {
        **statement_options(options),
        "devices": options.devices,
        "kind": "log" if tail else options.kind,
        "norecovery": tail,
        "no_truncate": options.no_truncate,
        "copy_only": options.copy_only,
        "format": options.format,
        "name": options.name,
        "description": options.description,
    }


def _backup(options: argparse.Namespace) -> int:
    if options.snapshot:
        return snapshot.backup(options)
    options.source = snapshot.one(options, "source")
    if options.print_sql:
        if jobs.is_selector(options.database):
            raise jobs.ArgumentError("to show a statement nobody is asked which databases there are: name one")
        return output.statement(options, jobs.backup_text(options.source, **backup_options(options)))
    secret = password(options, options.source)
    if jobs.is_selector(options.database):
        return _several(options, secret)
    with consumers(options) as events, output.progress(options) as progress:
        result = jobs.backup(
            options.source, options.target, progress=progress, events=events, password=secret,
            **backup_options(options),
        )  # fmt: skip
    return output.finished(options, result, f"backed up to {result.path}")


def _several(options: argparse.Namespace, secret: str | None) -> int:
    wishes = backup_options(options)
    selector = wishes.pop("database")
    with consumers(options) as events, output.progress(options) as progress:
        found = jobs.backup_several(
            options.source, options.target, selector, progress=progress, events=events, password=secret, **wishes
        )
    for result in found.done:
        output.finished(options, result, f"{result.database}: backed up to {result.path}")
    for skipped in found.skipped:
        output.note(options, "skipped", skipped.database, skipped.reason)
    for database, error in found.failed:
        output.note(options, "failed", database, " ".join(str(error).split()))
    return exit_code(found.failed[0][1]) if found.failed else EXIT_OK
