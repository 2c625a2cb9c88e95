"""The doctor's checks of a server: driver, connection, machine, instance, rights, and a backup to nowhere."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import socket
from collections.abc import Callable, Iterator

from .._core.provider import Provider
from ..errors import VDError
from .common import ArgumentError
from .doctor import FAILED, NOTE, OK, SKIPPED, Check, mib, remedy_of, words
from .drivers import adapter_for, imported
from .passwords import Password
from .piping import pipe_backup
from .server import Server, Session
from .server_address import DRIVERS, ServerAddress, parse_server_address
from .statements import SQLError

_AZURE_SQL_DATABASE = 5  # EngineEdition without BACKUP
_TESTED = "model"
_STAND_IN = "vdi_ext"  # what its @@VERSION names
_CONNECTION_REMEDY = "check host, port and instance, that the server listens to TCP, and what encryption it wants"


def check_server(
    address: str | Callable | None, library: Provider | None, chosen: Provider | str | os.PathLike[str] | None,
    group: str | None, password: Password | None, backup_test: bool,
) -> Iterator[Check]:  # fmt: skip
    """Everything about a server, as far as what failed before allows; without an address only which drivers there are.

    Parameters
    ----------
    address : str or callable or None
    library : Provider or None
        That devices are made with; None: there is none.
    chosen
        As the caller named it.
    group, password, backup_test
        As for `diagnose`.
    """
    if address is None:
        yield _drivers()
        return
    if not callable(address):
        yield (driver := _driver(parse_server_address(address)))
        if driver.status == FAILED:
            yield Check("connection", SKIPPED, "there is no driver")
            return
    server = Server(address, password)
    try:
        session = server.open()
    except SQLError as error:
        remedy = remedy_of(error) if error.number is not None else _CONNECTION_REMEDY
        yield Check("connection", FAILED, words(error), remedy)
        return
    with contextlib.closing(session):
        for name, check in (
            ("connection", _connection), ("rights", _rights), ("machine", _machine), ("instance", _instance),
        ):  # fmt: skip
            try:
                yield check(session, server, library)
            except SQLError as error:
                yield Check(name, FAILED, words(error), remedy_of(error))
    if backup_test:
        yield _backup_test(address, chosen, group, password)


# ---- the driver


def _drivers() -> Check:
    found = [version for name in DRIVERS if (version := _version(name)) is not None]
    if found:
        return Check("driver", OK, ", ".join(found))
    return Check("driver", NOTE, "none is installed", "pip install 'vdi_ext[mssql]' to reach a server")


def _driver(address: ServerAddress) -> Check:
    try:
        imported(adapter_for(address.driver).module)
    except ArgumentError as error:
        return Check("driver", FAILED, words(error), f"pip install {address.driver}, or name another with driver=")
    return Check("driver", OK, _version(address.driver) or address.driver)


def _version(driver: str) -> str | None:
    try:
        return f"{driver} {importlib.metadata.version(driver)}"
    except importlib.metadata.PackageNotFoundError:
        return None


# ---- the server


def _connection(session: Session, server: Server, library: Provider | None) -> Check:
    version = " ".join(str(session.rows("SELECT @@VERSION")[0][0]).split())
    edition = session.rows("SELECT SERVERPROPERTY('EngineEdition')")[0][0]
    if edition is not None and int(edition) == _AZURE_SQL_DATABASE:
        return Check("connection", FAILED, version, "Azure SQL Database has no BACKUP: use SQL Server")
    foreign = library is not None and library.path != Provider.embedded().path
    if library is not None and not foreign and _STAND_IN not in version:
        remedy = "run on the server's machine, where its own library is installed, or name that with --provider"
        return Check("connection", FAILED, f"{version}; its devices are not those of {library.path}", remedy)
    return Check("connection", OK, version)


def _rights(session: Session, server: Server, library: Provider | None) -> Check:
    login, member = session.rows("SELECT SUSER_SNAME(), IS_SRVROLEMEMBER('sysadmin')")[0]
    if member == 1:
        return Check("rights", OK, f"{login} is in the server role sysadmin")
    remedy = f"ALTER SERVER ROLE sysadmin ADD MEMBER [{login}]; db_backupoperator is not enough for virtual devices"
    return Check("rights", FAILED, f"{login} is not in the server role sysadmin", remedy)


def _machine(session: Session, server: Server, library: Provider | None) -> Check:
    name, physical = session.rows(
        "SELECT SERVERPROPERTY('MachineName'), SERVERPROPERTY('ComputerNamePhysicalNetBIOS')"
    )[0]
    here = socket.gethostname()
    if any(_same(here, str(other)) for other in (name, physical) if other):
        return Check("machine", OK, f"the server is on this machine, {here}")
    # A container has a name of its own, and an alias is no other machine: the test backup knows.
    remedy = "client and server must share one machine; in containers one IPC namespace; --backup-test tells for sure"
    return Check("machine", NOTE, f"the server calls its machine {name}, this one is {here}", remedy)


def _instance(session: Session, server: Server, library: Provider | None) -> Check:
    (found,) = session.rows("SELECT SERVERPROPERTY('InstanceName')")[0]
    named = server.instance
    if (found or "").casefold() == (named or "").casefold():
        if found and library is not None and library.classes_only:
            return Check("instance", FAILED, str(found), "the library on Linux knows the default instance alone")
        return Check("instance", OK, f"{found or 'the default one'}")
    remedy = f"write /{found} behind the address" if found else "leave the instance out of the address"
    text = f"the server is instance {found or '(default)'}, the address names {named or '(default)'}"
    return Check("instance", FAILED, f"{text}: the devices would not be found", remedy)


def _same(one: str, other: str) -> bool:
    """Whether two names can be of one machine; Windows keeps the first 15 characters only."""
    one, other = (name.partition(".")[0].casefold() for name in (one, other))
    return one == other or (min(len(one), len(other)) == 15 and one[:15] == other[:15])


# ---- a backup


def _backup_test(
    address: str | Callable, chosen: Provider | str | os.PathLike[str] | None, group: str | None,
    password: Password | None,
) -> Check:  # fmt: skip
    name = "test backup"
    descriptor = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        done = pipe_backup(
            address, descriptor, database=_TESTED, provider=chosen, password=password, group=group, copy_only=True
        )
    except (SQLError, VDError, OSError) as error:
        return Check(name, FAILED, words(error), remedy_of(error))
    finally:
        os.close(descriptor)
    text = f"{mib(done.size)} of {_TESTED} in {done.seconds:.1f} s, COPY_ONLY, to nowhere; msdb has gained a row"
    return Check(name, OK, text)
