"""Where a statement runs: a server behind a driver, or the stand-in that a job starts for itself."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod

from .._core.provider import Provider
from .addresses import Described, describe_source, describe_target
from .common import ArgumentError, chosen_provider
from .inquiries import expected_size
from .passwords import Password
from .server import Connect, Server, Session
from .server_address import is_server
from .statements import OnMessage, SQLError, Statement, submit

Address = str | Connect
Library = Provider | str | os.PathLike[str] | None


class Place(ABC):
    """Where a statement runs; a context manager.

    Attributes
    ----------
    address : str
        For the manifest. Never holds a password.
    database : str
        The name in the statement.
    size : int or None
        Bytes that a backup is expected to take.
    devices : int or None
        The only number of devices that fits.
    library : Provider or None
        That of the devices; None: the client's default.
    instance : str or None
        Of the server, for the device set.
    is_server : bool
        It can be asked.
    session : Session or None
        With the server, until a statement takes it over.
    """

    address: str
    database: str
    size: int | None = None
    devices: int | None = None
    library: Provider | None = None
    instance: str | None = None
    is_server = False
    session: Session | None = None

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of what was not handed to a statement."""
        if self.session is not None:
            self.session.close()

    def check_devices(self, count: int) -> None:
        if self.devices is not None and count != self.devices:
            raise ArgumentError(f"{self.address} is {self.devices} files, one per device, not {count} devices")

    @abstractmethod
    def submit(self, text: str, heard: OnMessage) -> Statement:
        """Start the statement."""


class StandInPlace(Place):
    """The stand-in, for the time of one statement."""

    def __init__(self, described: Described, database: str | None, provider: Library, own_process: bool) -> None:
        self.address = described.address
        self.database = database or described.database
        self.size = described.size
        self.devices = described.devices
        self.library = self._library = chosen_provider(provider)
        self._write = described.write
        self._own_process = own_process

    def submit(self, text: str, heard: OnMessage) -> Statement:
        return submit(text, self.database, self.address, self._library, self._own_process, heard, self._write)


class ServerPlace(Place):
    """A server, with a session that a statement then takes over."""

    is_server = True

    def __init__(self, server: Server, database: str, provider: Library) -> None:
        self.server = server
        self.address = str(server)
        self.database = database
        self.instance = server.instance
        self.library = None if provider is None else chosen_provider(provider)
        self.session = server.open()

    def submit(self, text: str, heard: OnMessage) -> Statement:
        session, self.session = self.session, None
        assert session is not None, "a place takes one statement"
        return self.server.submit(text, session, heard)


def source_place(
    source: Address, database: str | None, kind: str, provider: Library, own_process: bool, password: Password | None
) -> Place:
    """Where a backup runs.

    Raises
    ------
    ArgumentError
        No such kind of database, or its files are not there.
    SQLError
        The server can not be reached, or refuses the login.
    """
    if not is_server(source):
        _refuse_password(password)
        return StandInPlace(describe_source(str(source)), database, provider, own_process)
    server = Server(source, password)
    place = ServerPlace(server, _named(server, database), provider)
    assert place.session is not None
    try:
        place.size = expected_size(place.session, place.database) if kind == "full" else None
    except SQLError:
        pass  # only an estimate: whoever may not read msdb may still back up
    except BaseException:
        place.close()
        raise
    return place


def target_place(
    target: Address, database: str | None, replace: bool, provider: Library, own_process: bool,
    password: Password | None,
) -> Place:  # fmt: skip
    """Where a restore runs. Raises as `source_place`."""
    if not is_server(target):
        _refuse_password(password)
        return StandInPlace(describe_target(str(target), replace=replace), database, provider, own_process)
    server = Server(target, password)
    return ServerPlace(server, _named(server, database), provider)


def _named(server: Server, database: str | None) -> str:
    name = database or server.database
    if not name:
        raise ArgumentError("which database? Add ?database=NAME to the address, or --database NAME")
    return name


def _refuse_password(password: Password | None) -> None:
    if password is not None:
        raise ArgumentError("only the address of a server (mssql://) has a password")
