"""``vdi-ext serve``: the stand-in for SQL Server, on the network."""

import argparse
import contextlib
import logging
import os
import secrets
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

from .. import jobs
from . import output
from .events import add_event_options, consumers
from .exits import EXIT_OK
from .options import new_command

DEFAULT_LISTEN = "127.0.0.1:1433"
DEFAULT_LOGIN = "sa"
LEVELS = ("debug", "info", "warning", "error")


def add(commands: Any) -> None:
    serve = new_command(commands, "serve", _serve, "answer SQL Server's clients (TDS) with the stand-in")
    serve.add_argument("--listen", metavar="HOST:PORT", default=DEFAULT_LISTEN,
                       help=f"where (default {DEFAULT_LISTEN}); port 0 takes a free one")  # fmt: skip
    serve.add_argument("--database", dest="databases", action="append", required=True, metavar="NAME=ADDRESS",
                       help="a database; as often as wanted")  # fmt: skip
    serve.add_argument("--login", dest="logins", action="append", default=[], metavar="NAME=SOURCE",
                       help="who may log in, with the password in env:VARIABLE or file:PATH; as often as wanted "
                            "(default: sa, with a password made on the spot)")  # fmt: skip
    serve.add_argument("--encrypt", choices=("optional", "required", "strict", "never"), default="optional",
                       help="TLS: as the client wishes, but for the login always; always; first of all (TDS 8.0); not "
                            "at all, not even for passwords")  # fmt: skip
    serve.add_argument("--certificate", metavar="PATH", help="in PEM (default: made on the spot)")
    serve.add_argument("--key", metavar="PATH", help="of the certificate, in PEM, if it is not in the same file")
    serve.add_argument("--no-done-after-message", action="store_true",
                       help="no DONE after each message of a backup: drivers of ODBC return at its end")  # fmt: skip
    serve.add_argument("--instance", metavar="NAME", help="of SQL Server, as clients of virtual devices name it")
    serve.add_argument("--server-name", metavar="NAME", help="as in messages and backups (default: the host's)")
    serve.add_argument("--provider", metavar="WHICH", help="embedded, system, or the path of a library")
    serve.add_argument("--state", metavar="DIR",
                       help="where the history of backups (msdb) is kept (default: until the end only)")  # fmt: skip
    serve.add_argument("--log-level", choices=LEVELS, default="info", help="of the error log, on standard error")
    add_event_options(serve)


def _serve(options: argparse.Namespace) -> int:
    from ..engine import BANNER, Engine
    from ..engine.tds import CertificateError, Endpoint

    host, port = _address(options.listen)
    databases = _databases(options.databases)
    with (
        _logging(options.log_level),
        consumers(options, progress=False) as events,
        _logins(options.logins) as (logins, made),
    ):
        engine = Engine(databases, instance=options.instance, provider=options.provider,
                        server_name=options.server_name, history=_history(options.state),
                        events=events)  # fmt: skip
        try:
            endpoint = Endpoint(
                engine, logins, host=host, port=port, encrypt=options.encrypt, certificate=options.certificate,
                key=options.key, done_after_message=not options.no_done_after_message,
            )  # fmt: skip
        except (CertificateError, ValueError) as error:
            raise jobs.ArgumentError(str(error)) from None
        except OSError as error:
            raise jobs.ArgumentError(f"cannot listen on {options.listen}: {error.strerror}") from None
        with endpoint:
            where = {"host": endpoint.host, "port": endpoint.port, "databases": list(databases), "password_file": made}
            if options.json:
                output.print_json({"event": "listening", **where})
            elif not options.quiet:
                print(_greeting(BANNER, next(iter(logins)), **where), flush=True)
            threading.Event().wait()  # until a signal raises here
    return EXIT_OK


def _history(folder: str | None) -> Any:
    from ..engine.msdb import History

    try:
        if folder is not None:
            os.makedirs(folder, mode=0o700, exist_ok=True)
        return History(folder)
    except (OSError, ValueError) as error:
        raise jobs.ArgumentError(f"the state in {folder}: {error}") from None


def _greeting(banner: str, login: str, host: str, port: int, databases: list[str], password_file: str | None) -> str:
    lines = [
        banner,
        f"listening on {host}:{port}; databases: {', '.join(databases)}",
        f"connect:  tsql -H {host} -p {port} -U {login}",
        f"or:       sqlcmd -S {host},{port} -U {login} -C",
    ]
    if password_file is not None:
        lines.append(f"password of {login}: in {password_file}")
    lines.append("Ctrl-C ends it")
    return "\n".join(lines)


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise jobs.ArgumentError(f"{text!r} is no HOST:PORT to listen on")
    return host, int(port)


def _databases(texts: list[str]) -> dict[str, Any]:
    from ..engine import database_at

    found: dict[str, Any] = {}
    for text in texts:
        name, equals, address = text.partition("=")
        if not name or not equals:
            raise jobs.ArgumentError(f"{text!r} is no NAME=ADDRESS of a database")
        if name.casefold() in map(str.casefold, found):
            raise jobs.ArgumentError(f"two databases have the name {name}")
        try:
            found[name] = database_at(address)
        except ValueError as error:
            raise jobs.ArgumentError(str(error)) from None
    return found


@contextlib.contextmanager
def _logins(texts: list[str]) -> Iterator[tuple[dict[str, str], str | None]]:
    """Passwords by login, and the file with the one that was made because none was named."""
    if texts:
        yield dict(map(_login, texts)), None
        return
    folder = tempfile.mkdtemp(prefix="vdi-ext-")  # readable by this user alone
    try:
        path, password = os.path.join(folder, "password"), secrets.token_urlsafe(18)
        with open(path, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(password + "\n")
        yield {DEFAULT_LOGIN: password}, path
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _login(text: str) -> tuple[str, str]:
    name, _, source = text.partition("=")
    kind, _, where = source.partition(":")
    if not name or kind not in ("env", "file") or not where:
        # What stands there may be a password: it is not repeated.
        raise jobs.ArgumentError(f"--login {name}=... names no source of the password: env:VARIABLE or file:PATH")
    if kind == "env":
        password = os.environ.get(where, "")
    else:
        try:
            with open(where, encoding="utf-8") as file:
                password = file.readline().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise jobs.ArgumentError(f"the password of {name} cannot be read from {where}: {error}") from None
    if not password:
        raise jobs.ArgumentError(f"the password of {name} in {source} is empty or not there")
    return name, password


@contextlib.contextmanager
def _logging(level: str) -> Iterator[None]:
    """The error log, and what connections say, on standard error."""
    logger, handler = logging.getLogger("vdi_ext.engine"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(output.OneLine("%(asctime)s %(levelname)s %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
