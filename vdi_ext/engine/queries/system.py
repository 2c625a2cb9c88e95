"""What queries ask of the server and the session: @@-variables, properties, names and roles."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..tsql.options import EDITION
from ..types import BIT, INT, SMALLINT, SYSNAME, SqlType, nvarchar
from .compiled import Expression
from .conversions import Raw
from .functions import NAME, Function, number_of, text_of

if TYPE_CHECKING:
    from ..catalog import DatabaseInfo
    from ..server import Engine
    from ..session import Session

COLLATION = "SQL_Latin1_General_CP1_CI_AS"
EXPRESS = 4  # engine edition
USERS = frozenset({"CURRENT_USER", "SESSION_USER", "SYSTEM_USER", "USER"})
_ROLES = frozenset("sysadmin serveradmin securityadmin processadmin setupadmin bulkadmin diskadmin dbcreator public"
                   .split())  # fmt: skip


@dataclass(frozen=True)
class Context:
    """Who asks.

    Parameters
    ----------
    engine : Engine
    session : Session
    databases : tuple of DatabaseInfo
    """

    engine: Engine
    session: Session
    databases: tuple[DatabaseInfo, ...]

    def database(self, name: str) -> DatabaseInfo | None:
        wanted = name.casefold()
        return next((info for info in self.databases if info.name.casefold() == wanted), None)


def version_text(engine: Engine) -> str:
    """@@VERSION."""
    number = ".".join(map(str, engine.version))
    return (f"Microsoft SQL Server 2022 (RTM) - {number} (X64) \n\tvdi_ext stand-in, which is not SQL Server\n\t"
            f"{EDITION} on Linux")  # fmt: skip


def full_name(engine: Engine) -> str:
    """@@SERVERNAME: with the instance, where it has a name."""
    return f"{engine.server_name}\\{engine.instance}" if engine.instance else engine.server_name


# ---- @@

GLOBALS: dict[str, SqlType] = {
    "@@cpu_busy": INT, "@@datefirst": SqlType("tinyint"), "@@dbts": SqlType("varbinary", 8), "@@error": INT,
    "@@fetch_status": INT, "@@identity": SqlType("numeric", precision=38), "@@langid": SMALLINT, "@@language": SYSNAME,
    "@@lock_timeout": INT, "@@max_connections": INT, "@@max_precision": SqlType("tinyint"), "@@microsoftversion": INT,
    "@@nestlevel": INT, "@@options": INT, "@@procid": INT, "@@rowcount": INT, "@@servername": SYSNAME,
    "@@servicename": SYSNAME, "@@spid": SMALLINT, "@@textsize": INT, "@@trancount": INT, "@@version": nvarchar(300),
}  # fmt: skip


def global_value(context: Context, name: str) -> Raw:
    session, engine = context.session, context.engine
    major, minor, build, _ = engine.version
    values: dict[str, Raw] = {
        "@@datefirst": 7, "@@error": session.error, "@@fetch_status": 0, "@@langid": 0, "@@language": "us_english",
        "@@lock_timeout": -1, "@@max_connections": 32767, "@@max_precision": 38,
        "@@microsoftversion": major << 24 | minor << 16 | build, "@@nestlevel": 0, "@@options": 5496, "@@procid": 0,
        "@@rowcount": session.row_count, "@@servername": full_name(engine),
        "@@servicename": engine.instance or "MSSQLSERVER", "@@spid": session.spid, "@@textsize": 2147483647,
        "@@trancount": session.transactions, "@@version": version_text(engine), "@@cpu_busy": 0,
        "@@dbts": bytes(8),
    }  # fmt: skip
    return values.get(name)


# ---- properties


def _server_properties(context: Context) -> dict[str, Raw]:
    engine = context.engine
    version = ".".join(map(str, engine.version))
    return {
        "buildclrversion": None, "collation": COLLATION, "collationid": 872468488, "comparisonstyle": 196609,
        "computernamephysicalnetbios": engine.server_name, "edition": EDITION, "editionid": -1592396055,
        "engineedition": EXPRESS, "filestreamconfiguredlevel": 0, "filestreameffectivelevel": 0,
        "hadrmanagerstatus": None, "instancedefaultbackuppath": None, "instancedefaultdatapath": None,
        "instancedefaultlogpath": None, "instancename": engine.instance, "isadvancedanalyticsinstalled": 0,
        "isclustered": 0, "isfulltextinstalled": 0, "ishadrenabled": 0, "isintegratedsecurityonly": 0, "islocaldb": 0,
        "ispolybaseinstalled": 0, "issingleuser": 0, "isxtpsupported": 0, "lcid": 1033, "licensetype": "DISABLED",
        "machinename": engine.server_name, "numlicenses": None, "pathseparator": "/", "processid": os.getpid(),
        "productbuild": str(engine.version[2]), "productbuildtype": None, "productlevel": "RTM",
        "productmajorversion": str(engine.version[0]), "productminorversion": str(engine.version[1]),
        "productupdatelevel": None, "productupdatereference": None, "productversion": version,
        "resourceversion": version, "servername": full_name(engine), "sqlcharset": 1, "sqlcharsetname": "iso_1",
        "sqlsortorder": 52, "sqlsortordername": "nocase_iso",
    }  # fmt: skip


_NUMBERS = frozenset(
    """
    collationid comparisonstyle editionid engineedition filestreamconfiguredlevel filestreameffectivelevel
    hadrmanagerstatus isadvancedanalyticsinstalled isclustered isfulltextinstalled ishadrenabled
    isintegratedsecurityonly islocaldb ispolybaseinstalled issingleuser isxtpsupported lcid numlicenses processid
    sqlcharset sqlsortorder isinstandby isautoclose isautoshrink version
""".split()
)
TYPED = frozenset({"serverproperty", "databasepropertyex"})


def type_of(name: str, arguments: list[Expression]) -> SqlType:
    """Of a property, which SQL Server gives as a sql_variant: what is in it."""
    literal = arguments[-1].literal
    return INT if isinstance(literal, str) and literal.strip().lower() in _NUMBERS else NAME


def _server_property(context: Context, name: Raw) -> Raw:
    return _server_properties(context).get(text_of(name).strip().lower())


def _database_property(context: Context, database: Raw, name: Raw) -> Raw:
    info = context.database(text_of(database))
    if info is None:
        return None
    values: dict[str, Raw] = {
        "collation": COLLATION, "comparisonstyle": 196609, "isautoclose": 0, "isautoshrink": 0,
        "isinstandby": int(info.is_in_standby), "lcid": 1033, "recovery": info.recovery_model, "status": info.state,
        "updateability": "READ_ONLY" if info.is_in_standby else "READ_WRITE", "useraccess": "MULTI_USER",
        "version": 957,
    }  # fmt: skip
    return values.get(text_of(name).strip().lower())


# ---- names and roles


def _db_id(context: Context, name: Raw = None) -> Raw:
    info = context.database(context.session.database if name is None else text_of(name))
    return info.id if info else None


def _db_name(context: Context, number: Raw = None) -> Raw:
    if number is None:
        return context.session.database
    wanted = number_of(number)
    return next((info.name for info in context.databases if info.id == wanted), None)


def _login(context: Context, *_: Raw) -> Raw:
    return context.session.login


def _is_member(context: Context, role: Raw, login: Raw = None) -> Raw:
    if login is not None and text_of(login).casefold() not in ("sa", context.session.login.casefold()):
        return None
    return 1 if text_of(role).casefold() in _ROLES else None


def _has_access(context: Context, name: Raw) -> Raw:
    info = context.database(text_of(name))
    return None if info is None else int(info.state == "ONLINE")


def _connection_property(context: Context, name: Raw) -> Raw:
    values: dict[str, Raw] = {"net_transport": "TCP", "protocol_type": "TSQL", "auth_scheme": "SQL"}
    return values.get(text_of(name).strip().lower())


def _object_id(context: Context, name: Raw, kind: Raw = None) -> Raw:
    from .tables import TABLES, resolve  # which needs what is above

    parts = [part.strip('[]" ') for part in text_of(name).split(".")]
    found = resolve(parts, context.session.database)
    return -1 - sorted(TABLES).index(found[0]) if found else None


def _null(function: Callable[..., Raw]) -> Callable[..., Raw]:
    def call(context: Context, *values: Raw) -> Raw:
        return None if None in values else function(context, *values)

    return call


FUNCTIONS: dict[str, Function] = {
    "app_name": Function(0, 0, NAME, lambda context: context.session.program),
    "connectionproperty": Function(1, 1, NAME, _null(_connection_property)),
    "databasepropertyex": Function(2, 2, NAME, _null(_database_property)),
    "db_id": Function(0, 1, SMALLINT, _null(_db_id)),
    "db_name": Function(0, 1, NAME, _null(_db_name)),
    "fn_hadr_backup_is_preferred_replica": Function(1, 1, BIT, _null(lambda context, name: 1)),
    "fn_hadr_is_primary_replica": Function(1, 1, BIT, lambda context, name: None),
    "fulltextserviceproperty": Function(1, 1, INT, lambda context, name: 0),
    "has_dbaccess": Function(1, 1, INT, _null(_has_access)),
    "has_perms_by_name": Function(3, 5, INT, lambda context, *names: 1),
    "host_name": Function(0, 0, NAME, lambda context: context.session.host or socket.gethostname()),
    "is_member": Function(1, 1, INT, _null(lambda context, role: 1 if text_of(role).casefold() == "db_owner" else 0)),
    "is_rolemember": Function(1, 2, INT, _null(lambda context, role, *_: int(text_of(role).casefold() == "db_owner"))),
    "is_srvrolemember": Function(1, 2, INT, _null(_is_member)),
    "object_id": Function(1, 2, INT, _null(_object_id)),
    "original_login": Function(0, 0, SYSNAME, _login),
    "schema_name": Function(0, 1, SYSNAME, lambda context, *number: "dbo"),
    "serverproperty": Function(1, 1, NAME, _null(_server_property)),
    "sessionproperty": Function(1, 1, INT, lambda context, name: 1),
    "suser_id": Function(0, 1, INT, _null(lambda context, *login: 1)),
    "suser_name": Function(0, 1, NAME, _null(_login)),
    "suser_sid": Function(0, 1, SqlType("varbinary", 85), _null(lambda context, *login: b"\1")),
    "suser_sname": Function(0, 1, NAME, _null(_login)),
    "user_id": Function(0, 1, INT, _null(lambda context, *name: 1)),
    "user_name": Function(0, 1, NAME, _null(lambda context, *number: "dbo")),
    "xact_state": Function(0, 0, SMALLINT, lambda context: int(context.session.transactions > 0)),
}
