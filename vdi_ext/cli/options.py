"""What subcommands share: how each is made, and the options of every statement."""

import argparse
import sys
from collections.abc import Callable
from typing import Any

from .. import jobs
from .exits import EXIT_CODES

ADDRESSES = """\
addresses of databases:
  mssql://[USER@]HOST[:PORT][/INSTANCE][?database=NAME&driver=WHICH&encrypt=yes|no|strict&...]
                        a server; drivers: mssql-python, pymssql, pyodbc, python-tds
                        without USER the login is integrated; a password is never part of an address
addresses for the stand-in server:
  sqlite:PATH           a live SQLite file
  replay:PATH[,PATH..]  existing backup files, one per device
                        restore compares with them, or writes them where they are not there
  synthetic:SIZE[:SEED] generated pages, e.g. synthetic:10GiB:7 (a recovery model may follow: synthetic:1GiB:7:FULL)
"""

EPILOG = ADDRESSES + "\n" + EXIT_CODES
Run = Callable[[argparse.Namespace], int]


def new_command(commands: Any, name: str, run: Run, text: str) -> argparse.ArgumentParser:
    """Add a subcommand that can report as JSON or keep quiet; `run` gets its options and returns the exit code."""
    plain = argparse.RawDescriptionHelpFormatter
    added = commands.add_parser(name, help=text, description=text, formatter_class=plain, epilog=EPILOG)
    added.set_defaults(run=run)
    output = added.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="report as JSON, one object per line")
    output.add_argument("--quiet", action="store_true", help="no progress")
    return added


def add_statement_options(added: argparse.ArgumentParser) -> None:
    """The options that backup and restore share; `statement_options` reads them."""
    added.add_argument("--database", metavar="NAME", help="name in the statement (default: from the address); "
                       "for a backup also a list such as USER_DATABASES,-test*")  # fmt: skip
    added.add_argument("--provider", metavar="WHICH", help="embedded, system, or the path of a library")
    added.add_argument("--block-size", type=size, metavar="SIZE", help="WITH BLOCKSIZE, in bytes (64KiB = 65536)")
    added.add_argument("--buffer-count", type=int, metavar="N", help="WITH BUFFERCOUNT")
    added.add_argument("--max-transfer-size", type=size, metavar="SIZE", help="WITH MAXTRANSFERSIZE, in bytes")
    added.add_argument("--stats", type=int, metavar="PERCENT", help="WITH STATS: messages of the server's progress")
    added.add_argument("--no-complete", action="store_true", help="do without the Complete command after Flush")
    added.add_argument("--with", dest="with_options", action="append", default=[], metavar="OPTION",
                       help="another WITH option, as it stands; may be repeated")  # fmt: skip
    added.add_argument("--sql", metavar="TEXT", help="a statement of your own: {device}, {device2}, ... stand for "
                       "the devices' names")  # fmt: skip
    added.add_argument("--print-sql", action="store_true", help="print the statement, and do nothing")
    added.add_argument("--group", metavar="NAME", help="open the devices to this group (Linux)")
    added.add_argument("--in-process", action="store_true", help="run the stand-in server in this process")


def statement_options(options: argparse.Namespace) -> dict:
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
        "with_options": options.with_options,
        "sql": options.sql,
        "group": options.group,
    }


class _RefusePassword(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> None:
        parser.error("a password on the command line can be read by everybody who sees the list of processes: use "
                     "--password-file, --password-env or --password-command, or type it when asked")  # fmt: skip


def add_password_options(added: argparse.ArgumentParser) -> None:
    """Where the password of a server's login comes from; `password` reads them."""
    where = added.add_mutually_exclusive_group()
    where.add_argument("--password-file", metavar="PATH", help="the password is the first line of this file")
    where.add_argument("--password-env", metavar="NAME", help="the password is in this environment variable")
    where.add_argument("--password-command", metavar="COMMAND", help="the password is what this command prints")
    where.add_argument("--password", nargs="?", action=_RefusePassword, help=argparse.SUPPRESS)


def password(options: argparse.Namespace, *addresses: str) -> str | None:
    """The password for those addresses that need one; asks for it on a terminal where nothing says where it is."""
    needed = jobs.login_of(addresses)
    given = (options.password_file, options.password_env, options.password_command)
    if needed is None:
        if any(word is not None for word in given):
            raise jobs.ArgumentError("only mssql://USER@... has a password")
        return None
    prompt = f"Password of {needed}: " if sys.stdin is not None and sys.stdin.isatty() else None
    return jobs.password_from(file=given[0], variable=given[1], command=given[2], prompt=prompt)


def size(text: str) -> int:
    units = {"": 1, "k": 1 << 10, "m": 1 << 20, "kib": 1 << 10, "mib": 1 << 20}
    number = text.rstrip("kKmMiIbB")
    unit = text[len(number) :].lower()
    if not number.isdecimal() or unit not in units:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: give bytes, or a number with KiB or MiB")
    return int(number) * units[unit]
