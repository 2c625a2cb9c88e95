"""``vdi-ext restore``."""

import argparse
from typing import Any

from .. import jobs
from . import output, snapshot
from .events import add_event_options, consumers
from .exits import EXIT_OK
from .options import add_password_options, add_statement_options, new_command, password, statement_options


def add(commands: Any) -> None:
    restore = new_command(
        commands, "restore", _restore, "restore a database from a set of stripes, checking every byte"
    )
    restore.add_argument("source", metavar="SOURCE", help="directory of the set; or of sets, of which "
                         "those are taken that it needs")  # fmt: skip
    restore.add_argument("target", metavar="TARGET", nargs="+", help="address of the database; of each, of a snapshot")
    restore.add_argument("--verify-first", action="store_true", help="read and check everything before anything else")
    restore.add_argument("--add", action="append", default=[], metavar="SET", help="another set, or directory of sets, "
                         "of a chain: differential, logs; may be repeated, in any order")  # fmt: skip
    restore.add_argument("--to", metavar="NEWNAME", help="restore under another name")
    restore.add_argument("--data-dir", metavar="DIR", help="put all files into this directory of the server")
    add_restore_options(restore)
    add_statement_options(restore)
    add_password_options(restore)
    snapshot.add_restore_options(restore)
    add_event_options(restore)


def add_restore_options(added: argparse.ArgumentParser) -> None:
    """How it is restored; `restore_options` reads them."""
    added.add_argument("--replace", action="store_true", help="WITH REPLACE: overwrite an existing database")
    added.add_argument("--norecovery", action="store_true", help="WITH NORECOVERY: more is to be restored")
    added.add_argument("--standby", metavar="FILE", help="WITH STANDBY: readable between restores; an undo file there")
    added.add_argument("--stop-at", metavar="TIME", help="WITH STOPAT: e.g. 2026-03-01T12:00:00, the server's time")
    added.add_argument("--move", nargs=2, action="append", default=[], metavar=("NAME", "PATH"),
                       help="WITH MOVE: where a file of the database goes; may be repeated")  # fmt: skip
    added.add_argument("--checksum", action="store_true", help="WITH CHECKSUM: fail if the backup has none")


def restore_options(options: argparse.Namespace) -> dict[str, Any]:
    return {
        **statement_options(options),
        "replace": options.replace,
        "norecovery": options.norecovery,
        "standby": options.standby,
        "stop_at": options.stop_at,
        "moves": dict(options.move),
    }


def _restore(options: argparse.Namespace) -> int:
    if options.mount_command:
        return snapshot.restore(options)
    options.target = snapshot.one(options, "target")
    wishes = restore_options(options)
    alone = not (options.add or options.to or options.data_dir) and jobs.is_set(options.source)
    several = {"to": options.to, "data_dir": options.data_dir, **wishes}
    sources = [options.source, *options.add]
    if not alone and options.sql:
        raise jobs.ArgumentError("--sql is one statement, and these are several")
    if options.print_sql:
        texts = [jobs.restore_text(options.source, options.target, **wishes)] if alone else \
            jobs.chain_texts(sources, options.target, **several)  # fmt: skip
        for text in texts:
            output.statement(options, text)
        return EXIT_OK
    secret = password(options, options.target)
    with consumers(options) as events, output.progress(options) as progress:
        more = {"progress": progress, "events": events, "verify_first": options.verify_first, "password": secret}
        if alone:
            done = [jobs.restore(options.source, options.target, **more, **wishes)]
        else:
            done = jobs.restore_chain(sources, options.target, **more, **several)
    name = f"{options.to} on {options.target}" if options.to else options.target
    for result in done:
        output.finished(options, result, f"restored {name} from {result.path}")
    return EXIT_OK
