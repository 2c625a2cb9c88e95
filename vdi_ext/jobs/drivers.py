"""Connecting to a server with one of several drivers, and what each of them tells (docs/drivers.md has the table).

An adapter knows one driver: how it connects, where it keeps the server's messages, and what its exceptions say. All of
them release the interpreter while a statement runs, so the devices can be served from threads of the same process.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from .common import ArgumentError
from .server_address import ServerAddress

PROGRAM = "vdi_ext"

_EXTRAS = {"mssql_python": "vdi_ext[mssql]", "pymssql": "vdi_ext[pymssql]", "pyodbc": "pyodbc", "pytds": "python-tds",
           "OpenSSL": "pyOpenSSL"}  # fmt: skip
_ODBC_TAGS = re.compile(r"(?:\[(?:Microsoft|FreeTDS|unixODBC|Driver Manager|ODBC [^\]]*|SQL Server)\])+")
_ODBC_ERROR = re.compile(
    r"\[(\w{5})\] ((?:\[[^\]]*\])+)(.*?) \((-?\d+)\)(?: \(SQL\w+\))?(?=; \[\w{5}\] \[|\Z)", re.DOTALL
)
_DB_LIB = "DB-Lib error message"
_OF_FREETDS = range(20000, 21000)  # numbers that its libraries give to errors of their own
_ENDS_SESSION = {596, 6005}  # the session was killed; the server is shutting down


@dataclass(frozen=True)
class ServerMessage:
    """What a server said, as far as the driver passes it on.

    Attributes
    ----------
    text : str
    number : int or None
        None: the driver keeps it for itself, and the text is not one that we know.
    severity, state : int or None
        Above 10 it is an error.
    """

    text: str
    number: int | None = None
    severity: int | None = None
    state: int | None = None

    @property
    def is_error(self) -> bool:
        return self.severity is not None and self.severity > 10

    @property
    def ends_session(self) -> bool:
        """The server ends the connection with it, so it tells nothing of what a statement has come to."""
        return (self.severity or 0) >= 20 or self.number in _ENDS_SESSION

    def __str__(self) -> str:
        if self.number is None:
            return self.text
        words = [f"Msg {self.number}"]
        words += [f"Level {self.severity}"] if self.severity is not None else []
        words += [f"State {self.state}"] if self.state is not None else []
        return f"{', '.join(words)}: {self.text}"


class Adapter:
    """Any DB-API connection: what the specification's optional `messages` and the exceptions' arguments tell.

    Parameters
    ----------
    connection : DB-API connection
    """

    module: ClassVar[str] = ""
    can_cancel: ClassVar[bool] = False  # whether a cursor may be cancelled from another thread

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self._heard: list[ServerMessage] = []

    @classmethod
    def connect(cls, address: ServerAddress, password: str | None) -> Any:
        raise NotImplementedError

    def set_autocommit(self) -> None:
        """BACKUP and RESTORE are not allowed within a transaction."""
        if callable(getattr(self.connection, "autocommit", None)):
            self.connection.autocommit(True)
        elif hasattr(self.connection, "autocommit"):
            self.connection.autocommit = True

    def begin(self, hear: Callable[[ServerMessage], None]) -> None:
        """A statement begins; `hear` may be called from now on, on its thread."""

    def new_messages(self, cursor: Any) -> list[ServerMessage]:
        """What the last step of a cursor has brought, where it raised nothing."""
        found = []
        for entry in getattr(cursor, "messages", None) or ():
            error = entry[1] if isinstance(entry, tuple) and len(entry) == 2 else entry
            found += self.parse(error) if isinstance(error, Exception) else [recognised(str(error))]
        return found

    def errors(self, error: Exception, cursor: Any) -> list[ServerMessage]:
        """The server's messages when a step raised; without an error among them, the server said nothing of it."""
        return self.parse(error)

    @classmethod
    def parse(cls, error: Exception) -> list[ServerMessage]:
        """The server's messages that an exception carries."""
        if not any(kind.__name__ == "DatabaseError" for kind in type(error).__mro__):
            return []
        number = next((part for part in error.args if type(part) is int), getattr(error, "number", None))
        text = next((part for part in reversed(error.args) if isinstance(part, str)), str(error))
        return [recognised(text, number if type(number) is int else None, getattr(error, "severity", 16))]

    def close(self) -> None:
        self.connection.close()


class _Odbc(Adapter):
    def new_messages(self, cursor: Any) -> list[ServerMessage]:
        found = []
        for state, text in getattr(cursor, "messages", None) or ():
            number = re.search(r"\((\d+)\)", state)
            found.append(recognised(_untagged(text), int(number[1]) if number else None, 10))
        return found


class MssqlPython(_Odbc):
    """mssql-python: Microsoft's driver. Its exceptions carry the first error's text, and no number."""

    module = "mssql_python"

    @classmethod
    def connect(cls, address: ServerAddress, password: str | None) -> Any:
        driver = imported(cls.module)
        driver.pooling(enabled=False)  # what lies in a pool is a session that outlives its job
        words: dict[str, str | None] = {"Server": _server_of(address, ","), "Database": "master"}
        words |= {"Trusted_Connection": "yes"} if address.integrated else {"UID": address.user, "PWD": password or ""}
        words |= {"Encrypt": address.encrypt} if address.encrypt else {}
        words |= {"TrustServerCertificate": "yes"} if address.trust_server_certificate else {}
        words |= {"ServerCertificate": address.ca_file} if address.ca_file else {}
        return driver.connect(_odbc_string(words), autocommit=True)

    @classmethod
    def parse(cls, error: Exception) -> list[ServerMessage]:
        text = getattr(error, "ddbc_error", "")
        return [recognised(_untagged(text), None, 16)] if "[SQL Server]" in text else []


class Pyodbc(_Odbc):
    """pyodbc with Microsoft's ODBC driver or FreeTDS."""

    module = "pyodbc"
    can_cancel = True

    @classmethod
    def connect(cls, address: ServerAddress, password: str | None) -> Any:
        driver = imported(cls.module)
        driver.pooling = False
        name = address.odbc_driver or _installed_odbc_driver(driver)
        freetds = "tdsodbc" in name.lower() or "freetds" in name.lower()
        words: dict[str, str | None] = {"DRIVER": name, "Database": "master"}
        if freetds:
            if address.ca_file:
                raise ArgumentError("pyodbc with FreeTDS takes no ca_file: name it in freetds.conf")
            words |= {"Server": address.host, "Port": str(address.port or 1433), "TDS_Version": "7.4"}
            words |= {"Encryption": {"yes": "require", "no": "off", "strict": "strict"}[address.encrypt]} \
                if address.encrypt else {}  # fmt: skip
        else:
            words |= {"Server": _server_of(address, ",")}
            words |= {"Encrypt": address.encrypt} if address.encrypt else {}
            words |= {"TrustServerCertificate": "yes"} if address.trust_server_certificate else {}
            words |= {"ServerCertificate": address.ca_file} if address.ca_file else {}
        words |= {"Trusted_Connection": "yes"} if address.integrated else {"UID": address.user, "PWD": password or ""}
        return driver.connect(_odbc_string(words), autocommit=True, timeout=address.login_timeout)

    @classmethod
    def parse(cls, error: Exception) -> list[ServerMessage]:
        found = []
        for _, tags, text, number in _ODBC_ERROR.findall(str(error.args[-1]) if error.args else ""):
            if "[SQL Server]" in tags and int(number) > 0 and int(number) not in _OF_FREETDS:
                found.append(recognised(text, int(number), 16))
        return found


class Pymssql(Adapter):
    """pymssql: DB-Library of FreeTDS. Messages come as they happen, with everything but their numbers."""

    module = "pymssql"

    @classmethod
    def connect(cls, address: ServerAddress, password: str | None) -> Any:
        driver = imported(cls.module)
        if address.encrypt == "strict":
            raise ArgumentError("pymssql does not speak TDS 8.0: encrypt=strict needs another driver")
        if address.ca_file:
            raise ArgumentError("pymssql takes no ca_file: name it in freetds.conf")
        encryption = {"yes": "require", "no": "off", None: None}[address.encrypt]
        options = {"encryption": encryption} if encryption else {}
        if address.port is not None or address.instance is None:  # else the browser service says which
            options["port"] = str(address.port or 1433)
        return driver.connect(
            server=_server_of(address, None), user=address.user, password=password,
            database="master", autocommit=True, login_timeout=address.login_timeout, appname=PROGRAM, **options,
        )  # fmt: skip

    def begin(self, hear: Callable[[ServerMessage], None]) -> None:
        self._heard.clear()

        def handle(state: int, severity: int, server: bytes, procedure: bytes, line: int, text: bytes) -> None:
            message = replace(recognised(text.decode(errors="replace"), None, severity), state=state)
            if message.is_error:  # its number may come with the exception
                self._heard.append(message)
            else:
                hear(message)

        self.connection._conn.set_msghandler(handle)  # the documented way to the messages

    def new_messages(self, cursor: Any) -> list[ServerMessage]:
        found, self._heard = self._heard, []
        return found

    def errors(self, error: Exception, cursor: Any) -> list[ServerMessage]:
        said = self.parse(error)
        heard = self.new_messages(cursor)
        if heard and said:
            heard[0] = replace(heard[0], number=said[0].number)  # the exception's number is that of the first error
        return heard or said

    @classmethod
    def parse(cls, error: Exception) -> list[ServerMessage]:
        words = error.args[0] if error.args and isinstance(error.args[0], tuple) else error.args
        if len(words) < 2 or type(words[0]) is not int or not isinstance(words[1], bytes):
            return []
        text, _, others = words[1].decode(errors="replace").partition(_DB_LIB)
        # A message that is the same as the one before comes without its text; 20018 says that the server sent one. The
        # number may be that of an earlier connection where it sent none.
        server = text or others.lstrip().startswith("20018")
        if not server or words[0] <= 0 or words[0] in _OF_FREETDS:
            return []
        text = text or "the same message of the server as before; the driver keeps its text back"
        return [recognised(text, words[0], 16)]


class PythonTds(Adapter):
    """python-tds: pure Python. Everything is there, once a step has ended."""

    module = "pytds"

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self._seen = 0

    @classmethod
    def connect(cls, address: ServerAddress, password: str | None) -> Any:
        driver = imported(cls.module)
        if address.encrypt == "strict":
            raise ArgumentError("python-tds does not speak TDS 8.0: encrypt=strict needs another driver")
        if address.encrypt == "yes" and not address.ca_file:
            raise ArgumentError("python-tds encrypts only with certificates that it is given: add ca_file=PATH")
        if address.ca_file and address.encrypt != "no" and not address.trust_server_certificate:
            certificates = imported("OpenSSL").crypto.X509
            if not hasattr(certificates, "get_extension"):
                raise ArgumentError("python-tds cannot compare the server's name with what this pyOpenSSL offers: add "
                                    "trust_server_certificate=yes (the certificate is still checked by ca_file)")
        return driver.connect(
            dsn=_server_of(address, None), port=address.port, user=address.user, password=password or "",
            database="master", autocommit=True, login_timeout=address.login_timeout, appname=PROGRAM,
            cafile=address.ca_file if address.encrypt != "no" else None,
            validate_host=not address.trust_server_certificate, use_sso=address.integrated,
        )  # fmt: skip

    def begin(self, hear: Callable[[ServerMessage], None]) -> None:
        self._seen = 0

    def new_messages(self, cursor: Any) -> list[ServerMessage]:
        every = cursor.messages or ()
        new = every[self._seen :]
        self._seen = len(every)
        return [self._message(error) for _, error in new]

    def errors(self, error: Exception, cursor: Any) -> list[ServerMessage]:
        # What was raised repeats all of them in one text.
        return self.new_messages(cursor) or self.parse(error)

    @classmethod
    def parse(cls, error: Exception) -> list[ServerMessage]:
        return [cls._message(error)] if getattr(error, "number", 0) else []

    @staticmethod
    def _message(error: Any) -> ServerMessage:
        return ServerMessage(error.text, error.number, error.severity, error.state)


_ADAPTERS: dict[str, type[Adapter]] = {
    "mssql-python": MssqlPython, "pymssql": Pymssql, "pyodbc": Pyodbc, "python-tds": PythonTds,
}  # fmt: skip


def adapter_for(driver: str) -> type[Adapter]:
    """The adapter of a driver by its name in addresses."""
    return _ADAPTERS[driver]


def adapter_of(connection: Any) -> type[Adapter]:
    """The adapter that fits a connection which somebody else made."""
    module = type(connection).__module__.partition(".")[0]
    return next((adapter for adapter in _ADAPTERS.values() if adapter.module == module), Adapter)


def imported(module: str) -> Any:
    """A driver's module, or ArgumentError that says what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ArgumentError(
            f"the driver {module} can not be loaded ({error}): pip install '{_EXTRAS[module]}', or choose another "
            "with driver= in the address"
        ) from error


def recognised(text: str, number: int | None = None, severity: int | None = None) -> ServerMessage:
    """A message whose number the driver may have kept back: those of texts that SQL Server documents are known."""
    from ..engine.messages import recognize

    text = text.strip()
    if number is None and (known := recognize(text)) is not None:
        number = known
    return ServerMessage(text, number, severity)


def _untagged(text: str) -> str:
    return text[tags.end() :] if (tags := _ODBC_TAGS.match(text)) else text


def _server_of(address: ServerAddress, before_port: str | None) -> str:
    if address.instance and address.port is None:
        return f"{address.host}\\{address.instance}"
    return f"{address.host}{before_port}{address.port}" if before_port and address.port is not None else address.host


def _odbc_string(words: dict[str, str | None]) -> str:
    return ";".join(f"{name}={_odbc_quoted(value or '')}" for name, value in words.items()) + ";"


def _odbc_quoted(value: str) -> str:
    return value if re.fullmatch(r"[\w.,:/\\-]+", value) else "{" + value.replace("}", "}}") + "}"


def _installed_odbc_driver(driver: Any) -> str:
    names = driver.drivers()
    microsoft = sorted(name for name in names if re.fullmatch(r"ODBC Driver \d+ for SQL Server", name))
    if microsoft:
        return microsoft[-1]
    if "FreeTDS" in names:
        return "FreeTDS"
    for folder in ("/usr/lib/x86_64-linux-gnu/odbc", "/usr/lib/aarch64-linux-gnu/odbc", "/usr/lib/odbc", "/usr/lib64"):
        path = os.path.join(folder, "libtdsodbc.so")
        if os.path.exists(path):
            return path
    raise ArgumentError("no ODBC driver for SQL Server is installed: install msodbcsql18 or tdsodbc, or another driver")
