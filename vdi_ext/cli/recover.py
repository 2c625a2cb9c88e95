"""``vdi-ext recover``."""

import argparse
from typing import Any

from .. import jobs
from . import output
from .exits import EXIT_OK, EXIT_VERIFICATION
from .options import add_password_options, new_command, password


def add(commands: Any) -> None:
    recover = new_command(commands, "recover", _recover, "list unfinished sets; verify, publish or remove them")
    recover.add_argument("store", metavar="STORE", help="a directory of sets, or one set")
    action = recover.add_mutually_exclusive_group()
    for name, text in (
        ("list", "only list them (default)"),
        ("verify", "read prepared sets and check sizes and digests"),
        ("publish", "verify prepared sets, and give them their final name"),
        ("resolve", "ask --server's msdb: publish what it lists, name what it does not"),
        ("remove", "remove what is no backup; a prepared or damaged set only where STORE names it"),
    ):
        action.add_argument(f"--{name}", dest="action", action="store_const", const=name, default="list", help=text)
    recover.add_argument("--server", metavar="ADDRESS", help="mssql://... of the server that wrote them")
    add_password_options(recover)


def _recover(options: argparse.Namespace) -> int:
    secret = password(options, *filter(None, [options.server]))
    with output.progress(options) as progress:
        found = jobs.recover(
            options.store, action=options.action, progress=progress, server=options.server, password=secret
        )
    for entry in found:
        if options.json:
            output.print_json({"event": "set", **entry.to_dict()})
            continue
        print(f"{entry.state:10} {output.readable(entry.size):>10}  {entry.path}")
        for problem in entry.problems:
            print(f"           {problem}")
    if not found and not options.json:
        print("nothing unfinished")
    bad = any(entry.problems for entry in found if entry.state in ("prepared", "damaged"))
    return EXIT_VERIFICATION if bad else EXIT_OK
