"""``vdi-ext doctor``."""

import argparse
from typing import Any

from .. import jobs
from . import output
from .exits import EXIT_DOCTOR, EXIT_OK
from .options import add_password_options, new_command, password

_MARKS = {"ok": "ok", "note": "note", "failed": "FAILED", "skipped": "skipped"}


def add(commands: Any) -> None:
    doctor = new_command(commands, "doctor", _doctor, "check everything that keeps backups from working")
    doctor.add_argument("address", metavar="ADDRESS", nargs="?", help="of a server, mssql://...; without: this machine")
    doctor.add_argument("--provider", metavar="WHICH", help="embedded, system, or the path of a library")
    doctor.add_argument("--group", metavar="NAME", help="open the devices to this group (Linux)")
    doctor.add_argument("--backup-test", action="store_true", help="back up the server's database model WITH COPY_ONLY "
                        "to nowhere; its msdb gains a row")  # fmt: skip
    add_password_options(doctor)


def _doctor(options: argparse.Namespace) -> int:
    addresses = [options.address] if options.address else []
    checks = jobs.diagnose(
        options.address, provider=options.provider, group=options.group, password=password(options, *addresses),
        backup_test=options.backup_test,
    )  # fmt: skip
    failed = 0
    for check in checks:
        failed += check.status == "failed"
        if options.json:
            output.print_json({"event": "check", **check.to_dict()})
        elif not options.quiet or check.status == "failed":
            print(f"{_MARKS[check.status]:8} {check.name}: {check.text}", flush=True)
            if check.remedy is not None:
                print(f"{'':8} -> {check.remedy}", flush=True)
    if options.json:
        output.print_json({"event": "result", "failed": failed})
    elif not options.quiet:
        print("everything that was looked at is well" if not failed else f"{failed} to be put right")
    return EXIT_DOCTOR if failed else EXIT_OK
