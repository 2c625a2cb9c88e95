"""Addresses of servers: ``mssql://[user@]host[:port][/INSTANCE][?database=NAME&...]``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from .common import ArgumentError

SCHEME = "mssql://"
DRIVERS = ("mssql-python", "pymssql", "pyodbc", "python-tds")
ENCRYPT = ("yes", "no", "strict")

_SECRETS = {"password", "pwd", "pass", "secret"}


@dataclass(frozen=True)
class ServerAddress:
    """Where a server is and how it is spoken to. Holds no password.

    Attributes
    ----------
    host : str
    port : int or None
        None: 1433, or whatever the server's browser service says of a named instance.
    instance : str or None
        Bare name; None: the default instance. Also the instance of the virtual device set.
    user : str or None
        A SQL login; None: an integrated login.
    database : str or None
        What the statement is about, not what the session begins in: that is always master.
    driver : str
        One of `DRIVERS`.
    encrypt : str or None
        One of `ENCRYPT`; None: as the driver has it.
    trust_server_certificate : bool
    ca_file : str or None
        Certificates that are believed, for drivers that take a file.
    odbc_driver : str or None
        Name or path of the ODBC driver, for pyodbc.
    login_timeout : int
        Seconds.
    """

    host: str
    port: int | None = None
    instance: str | None = None
    user: str | None = None
    database: str | None = None
    driver: str = "mssql-python"
    encrypt: str | None = None
    trust_server_certificate: bool = False
    ca_file: str | None = None
    odbc_driver: str | None = None
    login_timeout: int = 15

    @property
    def integrated(self) -> bool:
        return self.user is None

    def __str__(self) -> str:
        user = f"{quote(self.user, safe='')}@" if self.user is not None else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = f":{self.port}" if self.port is not None else ""
        instance = f"/{quote(self.instance, safe='')}" if self.instance else ""
        words = {
            "database": self.database, "driver": self.driver if self.driver != DRIVERS[0] else None,
            "encrypt": self.encrypt, "trust_server_certificate": "yes" if self.trust_server_certificate else None,
            "ca_file": self.ca_file, "odbc_driver": self.odbc_driver,
            "login_timeout": str(self.login_timeout) if self.login_timeout != 15 else None,
        }  # fmt: skip
        query = urlencode({name: value for name, value in words.items() if value is not None}, quote_via=quote)
        return f"{SCHEME}{user}{host}{port}{instance}" + (f"?{query}" if query else "")


def is_server(address: Any) -> bool:
    """Whether something is the address of a server, or a function that connects to one."""
    return callable(address) or (isinstance(address, str) and address.lower().startswith(SCHEME))


def login_of(addresses: Iterable[str]) -> str | None:
    """Who needs a password for one of these addresses, as ``user at host``; None: nobody."""
    for text in addresses:
        if is_server(text) and not (address := parse_server_address(text)).integrated:
            return f"{address.user} at {address.host}"
    return None


def parse_server_address(text: str) -> ServerAddress:
    """Take an address apart.

    Raises
    ------
    ArgumentError
        It is none, or it holds a password; the message never repeats one.
    """
    parts = urlsplit(text)
    if parts.scheme.lower() != SCHEME.removesuffix("://"):
        raise ArgumentError(f"not the address of a server: give {SCHEME}[user@]host[:port][/INSTANCE][?database=NAME]")
    words = dict(parse_qsl(parts.query, keep_blank_values=True))
    if ":" in parts.netloc.rpartition("@")[0] or _SECRETS & {name.lower() for name in words}:
        raise ArgumentError(
            "a password in an address can be read by everybody who sees the list of processes: give it by a prompt, "
            "--password-file, --password-env or --password-command"
        )
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ArgumentError(f"the port of {parts.netloc.rpartition('@')[2]!r} is no number from 1 to 65535") from None
    if not host:
        raise ArgumentError(f"{SCHEME} names no host")
    if port == 0 or parts.fragment:
        raise ArgumentError("an address ends with its options, and its port is a number from 1 to 65535")
    instance = unquote(parts.path.strip("/")) or None
    if instance and ("/" in instance or "\\" in instance):
        raise ArgumentError(f"{instance!r} is no instance: give its bare name, without the machine")
    known = {"database", "driver", "encrypt", "trust_server_certificate", "ca_file", "odbc_driver", "login_timeout"}
    if unknown := set(words) - known:
        raise ArgumentError(f"an address has no option {', '.join(sorted(unknown))}; it has {', '.join(sorted(known))}")
    return ServerAddress(
        host=host,
        port=port,
        instance=None if instance is None or instance.upper() == "MSSQLSERVER" else instance,
        user=unquote(parts.username) if parts.username is not None else None,
        database=words.get("database") or None,
        driver=_one_of(words, "driver", DRIVERS) or DRIVERS[0],
        encrypt=_one_of(words, "encrypt", ENCRYPT),
        trust_server_certificate=_one_of(words, "trust_server_certificate", ("yes", "no")) == "yes",
        ca_file=os.path.expanduser(words["ca_file"]) if words.get("ca_file") else None,
        odbc_driver=words.get("odbc_driver") or None,
        login_timeout=_seconds(words.get("login_timeout", "15")),
    )


def _one_of(words: dict[str, str], name: str, choices: tuple[str, ...]) -> str | None:
    if name not in words:
        return None
    value = words[name].lower()
    if value not in choices:
        raise ArgumentError(f"{name} must be one of {', '.join(choices)}")
    return value


def _seconds(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 3600:
        raise ArgumentError("login_timeout must be a number of seconds from 1 to 3600")
    return int(text)
