"""The system tables that queries may read, and their rows."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import NamedTuple

from ..catalog import Entry, address_of
from ..log import lsn_of
from ..msdb import lsn_number
from ..replay import Replay
from ..sqlite import Sqlite, content_pages
from ..synthetic import Synthetic
from ..tsql.tokens import Cursor, tokenize
from ..tsql.types import parse_type
from ..types import Column
from . import history
from .system import COLLATION, Context, full_name

Row = dict[str, object]


class Table(NamedTuple):
    """A system table; `of_database`: each database has its own."""

    columns: tuple[Column, ...]
    rows: Callable[[Context], Iterable[Row]]
    of_database: bool = False


def _columns(text: str) -> tuple[Column, ...]:
    """`name type, name type` as columns."""
    cursor = Cursor(tokenize(text))
    columns = []
    while True:
        name = cursor.next().value
        columns.append(Column(name, parse_type(cursor)))
        if not cursor.take(","):
            return tuple(columns)


def resolve(parts: list[str], database: str) -> tuple[str, str] | None:
    """The table that a name of one to four parts means, and its database; None where there is none.

    Parameters
    ----------
    parts : list of str
        Server, database, schema and name, from the right; a part may be empty.
    database : str
        The current one.
    """
    if not 1 <= len(parts) <= 3:
        return None
    *before, name = (part.lower() for part in parts)
    schema = before[-1] if before else ""
    where = before[0] if len(before) == 2 else database.lower()
    if schema in ("", "dbo") and f"msdb.{name}" in TABLES and where == "msdb":
        return f"msdb.{name}", database
    if schema in ("sys", "") and len(before) == 2 or schema in ("sys", "dbo", ""):
        wanted = f"sys.{name}"
        if wanted in TABLES and (schema == "sys" or name in _OLD):
            return wanted, database if where == database.lower() else where
    return None


_OLD = frozenset({"sysdatabases", "sysprocesses"})  # may stand without their schema


# ---- rows


def _databases(context: Context) -> Iterable[Row]:
    models = {"FULL": 1, "BULK_LOGGED": 2, "SIMPLE": 3}
    states = {"ONLINE": 0, "RESTORING": 1, "RECOVERING": 2, "RECOVERY_PENDING": 3, "SUSPECT": 4, "OFFLINE": 6}
    for info in context.databases:
        yield {
            "name": info.name, "database_id": info.id, "owner_sid": b"\1", "create_date": info.created,
            "compatibility_level": 160, "collation_name": COLLATION, "user_access": 0,
            "user_access_desc": "MULTI_USER", "is_read_only": int(info.is_in_standby), "is_auto_close_on": 0,
            "is_auto_shrink_on": 0, "state": states[info.state], "state_desc": info.state,
            "is_in_standby": int(info.is_in_standby), "is_cleanly_shutdown": 0, "is_supplemental_logging_enabled": 0,
            "snapshot_isolation_state": 0, "snapshot_isolation_state_desc": "OFF", "is_read_committed_snapshot_on": 0,
            "recovery_model": models[info.recovery_model], "recovery_model_desc": info.recovery_model,
            "page_verify_option": 2, "page_verify_option_desc": "CHECKSUM", "is_auto_create_stats_on": 1,
            "is_auto_update_stats_on": 1, "is_trustworthy_on": 0, "is_db_chaining_on": 0, "is_published": 0,
            "is_subscribed": 0, "is_merge_published": 0, "is_distributor": 0, "is_sync_with_backup": 0,
            "is_broker_enabled": 0, "log_reuse_wait": 0, "log_reuse_wait_desc": "NOTHING", "is_cdc_enabled": 0,
            "is_encrypted": 0, "target_recovery_time_in_seconds": 60, "containment": 0, "containment_desc": "NONE",
            "is_accelerated_database_recovery_on": 0, "is_query_store_on": 0, "is_mixed_page_allocation_on": 0,
        }  # fmt: skip


def _old_databases(context: Context) -> Iterable[Row]:
    for info in context.databases:
        yield {"name": info.name, "dbid": info.id, "sid": b"\1", "mode": 0, "status": 0, "status2": 0,
               "crdate": info.created, "cmptlevel": 160, "filename": info.path, "version": 957}  # fmt: skip


def _files(context: Context) -> Iterable[Row]:
    for entry in context.engine.catalog:
        for number, log, name, path, pages in _files_of(entry):
            yield {
                "database_id": entry.id, "file_id": number, "file_guid": None, "type": int(log),
                "type_desc": "LOG" if log else "ROWS", "data_space_id": int(not log), "name": name,
                "physical_name": path, "state": int(entry.state != "ONLINE"), "state_desc": entry.state, "size": pages,
                "max_size": -1, "growth": 8192, "is_media_read_only": 0, "is_read_only": 0, "is_sparse": 0,
                "is_percent_growth": 0, "is_name_reserved": 0,
            }  # fmt: skip


def _files_of(entry: Entry) -> Iterable[tuple[int, bool, str, str, int | None]]:
    """Number, whether it is the log, logical name, path, and pages where they are known."""
    database = entry.database
    if isinstance(database, Replay):
        return [(1, False, entry.name, address_of(database), None)]
    pages = database.pages if isinstance(database, Synthetic) else None
    if isinstance(database, Sqlite):
        with contextlib.suppress(OSError):
            pages = content_pages(os.path.getsize(database.path))
    return [
        (file.file_id, file.is_log, file.name, entry.path(file.name, file.path), None if pages is None else file.pages)
        for file in database.files(entry.logical_name, pages or 0)
        if not (file.is_log and isinstance(database, Sqlite))  # which has one file
    ]


def _own_files(context: Context) -> Iterable[Row]:
    own = context.database(context.session.database)
    return (row for row in _files(context) if own is not None and row["database_id"] == own.id)


def _recovery_status(context: Context) -> Iterable[Row]:
    for entry in context.engine.catalog:
        info, chain = entry.info, entry.chain
        yield {
            "database_id": info.id, "database_guid": info.recovery_fork, "family_guid": info.family_guid,
            "recovery_fork_guid": info.recovery_fork,
            "last_log_backup_lsn": None if chain is None else lsn_number(lsn_of(chain)),
        }  # fmt: skip


def _requests(context: Context) -> Iterable[Row]:
    for session in context.engine.sessions:
        request = session.request
        if request is not None:
            info = context.database(session.database)
            elapsed = max(0, round((datetime.now() - request.started).total_seconds() * 1000))
            percent = request.percent
            yield {
                "session_id": session.spid, "request_id": 0, "start_time": request.started, "status": request.status,
                "command": request.command, "sql_handle": session.handle, "statement_start_offset": 0,
                "statement_end_offset": -1, "plan_handle": None, "database_id": info.id if info else None, "user_id": 1,
                "blocking_session_id": 0, "wait_type": request.wait, "wait_time": 0, "last_wait_type": "BACKUPIO",
                "wait_resource": "", "open_transaction_count": session.transactions, "open_resultset_count": 1,
                "transaction_id": 0, "percent_complete": percent,
                "estimated_completion_time": round(elapsed * (100 - percent) / percent) if percent else 0,
                "cpu_time": 0, "total_elapsed_time": elapsed, "reads": 0, "writes": 0, "logical_reads": 0,
                "row_count": 0,
            }  # fmt: skip


def _sessions(context: Context) -> Iterable[Row]:
    for session in context.engine.sessions:
        info = context.database(session.database)
        yield {
            "session_id": session.spid, "login_time": session.began, "host_name": session.host or None,
            "program_name": session.program or None, "host_process_id": None, "client_version": 7,
            "client_interface_name": None, "security_id": b"\1", "login_name": session.login,
            "status": "running" if session.request else "sleeping", "cpu_time": 0, "memory_usage": 2,
            "total_elapsed_time": 0, "last_request_start_time": session.began, "reads": 0, "writes": 0,
            "logical_reads": 0, "is_user_process": 1, "database_id": info.id if info else None,
            "original_login_name": session.login, "open_transaction_count": session.transactions,
        }  # fmt: skip


def _texts(context: Context) -> Iterable[Row]:
    for session in context.engine.sessions:
        if session.request is not None:
            yield {"sql_handle": session.handle, "dbid": None, "encrypted": 0, "text": session.batch}


def _old_processes(context: Context) -> Iterable[Row]:
    for session in context.engine.sessions:
        info = context.database(session.database)
        request = session.request
        yield {
            "spid": session.spid, "kpid": 0, "blocked": 0, "dbid": info.id if info else 0, "uid": 1,
            "login_time": session.began, "last_batch": session.began, "ecid": 0, "open_tran": session.transactions,
            "status": "runnable" if request else "sleeping", "hostname": session.host,
            "program_name": session.program, "cmd": request.command if request else "AWAITING COMMAND",
            "loginame": session.login, "waittime": 0, "cpu": 0,
        }  # fmt: skip


def _configurations(context: Context) -> Iterable[Row]:
    for number, name, value in (
        (1579, "backup compression default", 0), (1584, "backup checksum default", 0),
        (1544, "max server memory (MB)", 2147483647), (518, "show advanced options", 0), (16390, "xp_cmdshell", 0),
    ):  # fmt: skip
        yield {"configuration_id": number, "name": name, "value": value, "value_in_use": value, "minimum": 0,
               "maximum": 2147483647, "description": name, "is_dynamic": 1, "is_advanced": 0}  # fmt: skip


def _servers(context: Context) -> Iterable[Row]:
    yield {"server_id": 0, "name": full_name(context.engine), "product": "SQL Server", "is_linked": 0}


def _filegroups(context: Context) -> Iterable[Row]:
    yield {"name": "PRIMARY", "data_space_id": 1, "type": "FG", "type_desc": "ROWS_FILEGROUP", "is_default": 1,
           "is_read_only": 0}  # fmt: skip


def _host(context: Context) -> Iterable[Row]:
    yield {"host_platform": "Linux", "host_distribution": "vdi_ext stand-in", "host_release": "",
           "host_service_pack_level": "", "os_language_version": 0}  # fmt: skip


def _nothing(context: Context) -> Iterable[Row]:
    return ()


TABLES: dict[str, Table] = {
    "sys.availability_groups": Table(_columns("""
        group_id uniqueidentifier, name sysname, resource_id nvarchar(40), resource_group_id nvarchar(40),
        automated_backup_preference tinyint, automated_backup_preference_desc nvarchar(60)"""), _nothing),
    "sys.availability_replicas": Table(_columns("""
        replica_id uniqueidentifier, group_id uniqueidentifier, replica_server_name nvarchar(256),
        backup_priority int, availability_mode tinyint"""), _nothing),
    "sys.certificates": Table(_columns("""
        name sysname, certificate_id int, thumbprint varbinary(32), pvt_key_last_backup_date datetime"""), _nothing),
    "sys.configurations": Table(_columns("""
        configuration_id int, name nvarchar(35), value int, minimum int, maximum int, value_in_use int,
        description nvarchar(255), is_dynamic bit, is_advanced bit"""), _configurations),
    "sys.database_files": Table(_columns("""
        file_id int, file_guid uniqueidentifier, type tinyint, type_desc nvarchar(60), data_space_id int, name sysname,
        physical_name nvarchar(260), state tinyint, state_desc nvarchar(60), size int, max_size int, growth int,
        is_media_read_only bit, is_read_only bit, is_sparse bit, is_percent_growth bit, is_name_reserved bit"""),
        _own_files, True),
    "sys.database_mirroring": Table(_columns("""
        database_id int, mirroring_guid uniqueidentifier, mirroring_state tinyint, mirroring_state_desc nvarchar(60),
        mirroring_role tinyint, mirroring_role_desc nvarchar(60)"""), _nothing),
    "sys.database_recovery_status": Table(_columns("""
        database_id int, database_guid uniqueidentifier, family_guid uniqueidentifier,
        last_log_backup_lsn numeric(25,0), recovery_fork_guid uniqueidentifier,
        first_recovery_fork_guid uniqueidentifier, fork_point_lsn numeric(25,0)"""),
        _recovery_status),
    "sys.databases": Table(_columns("""
        name sysname, database_id int, source_database_id int, owner_sid varbinary(85), create_date datetime,
        compatibility_level tinyint, collation_name sysname, user_access tinyint, user_access_desc nvarchar(60),
        is_read_only bit, is_auto_close_on bit, is_auto_shrink_on bit, state tinyint, state_desc nvarchar(60),
        is_in_standby bit, is_cleanly_shutdown bit, is_supplemental_logging_enabled bit,
        snapshot_isolation_state tinyint, snapshot_isolation_state_desc nvarchar(60), is_read_committed_snapshot_on bit,
        recovery_model tinyint, recovery_model_desc nvarchar(60), page_verify_option tinyint,
        page_verify_option_desc nvarchar(60), is_auto_create_stats_on bit, is_auto_update_stats_on bit,
        is_trustworthy_on bit, is_db_chaining_on bit, is_published bit, is_subscribed bit, is_merge_published bit,
        is_distributor bit, is_sync_with_backup bit, service_broker_guid uniqueidentifier, is_broker_enabled bit,
        log_reuse_wait tinyint, log_reuse_wait_desc nvarchar(60), is_cdc_enabled bit, is_encrypted bit,
        replica_id uniqueidentifier, group_database_id uniqueidentifier, resource_pool_id int,
        target_recovery_time_in_seconds int, containment tinyint, containment_desc nvarchar(60), is_query_store_on bit,
        is_mixed_page_allocation_on bit, is_accelerated_database_recovery_on bit"""), _databases),
    "sys.dm_database_encryption_keys": Table(_columns("""
        database_id int, encryption_state int, create_date datetime, percent_complete real"""), _nothing),
    "sys.dm_exec_connections": Table(_columns("""
        session_id int, most_recent_session_id int, connect_time datetime, net_transport nvarchar(40),
        protocol_type nvarchar(40), encrypt_option nvarchar(40), auth_scheme nvarchar(40), client_net_address
        varchar(48), local_net_address varchar(48), local_tcp_port int"""), _nothing),
    "sys.dm_exec_requests": Table(_columns("""
        session_id smallint, request_id int, start_time datetime, status nvarchar(30), command nvarchar(32),
        sql_handle varbinary(64), statement_start_offset int, statement_end_offset int, plan_handle varbinary(64),
        database_id smallint, user_id int, connection_id uniqueidentifier, blocking_session_id smallint,
        wait_type nvarchar(60), wait_time int, last_wait_type nvarchar(60), wait_resource nvarchar(256),
        open_transaction_count int, open_resultset_count int, transaction_id bigint, percent_complete real,
        estimated_completion_time bigint, cpu_time int, total_elapsed_time int, reads bigint, writes bigint,
        logical_reads bigint, row_count bigint"""), _requests),
    "sys.dm_exec_sessions": Table(_columns("""
        session_id smallint, login_time datetime, host_name nvarchar(128), program_name nvarchar(128),
        host_process_id int, client_version int, client_interface_name nvarchar(32), security_id varbinary(85),
        login_name nvarchar(128), status nvarchar(30), cpu_time int, memory_usage int, total_elapsed_time int,
        last_request_start_time datetime, last_request_end_time datetime, reads bigint, writes bigint,
        logical_reads bigint, is_user_process bit, database_id smallint, original_login_name nvarchar(128),
        open_transaction_count int"""), _sessions),
    "sys.dm_exec_sql_text": Table(_columns("""
        dbid smallint, objectid int, number smallint, encrypted bit, text nvarchar(max), sql_handle varbinary(64)"""),
        _texts),
    "sys.dm_hadr_availability_replica_states": Table(_columns("""
        replica_id uniqueidentifier, group_id uniqueidentifier, is_local bit, role tinyint, role_desc nvarchar(60)"""),
        _nothing),
    "sys.dm_hadr_database_replica_states": Table(_columns("""
        database_id int, group_id uniqueidentifier, replica_id uniqueidentifier, group_database_id uniqueidentifier,
        is_local bit, is_primary_replica bit, synchronization_state tinyint"""), _nothing),
    "sys.dm_os_host_info": Table(_columns("""
        host_platform nvarchar(256), host_distribution nvarchar(256), host_release nvarchar(256),
        host_service_pack_level nvarchar(256), os_language_version int"""), _host),
    "sys.filegroups": Table(_columns("""
        name sysname, data_space_id int, type char(2), type_desc nvarchar(60), is_default bit, is_read_only bit"""),
        _filegroups, True),
    "sys.master_files": Table(_columns("""
        database_id int, file_id int, file_guid uniqueidentifier, type tinyint, type_desc nvarchar(60),
        data_space_id int, name sysname, physical_name nvarchar(260), state tinyint, state_desc nvarchar(60), size int,
        max_size int, growth int, is_media_read_only bit, is_read_only bit, is_sparse bit, is_percent_growth bit,
        is_name_reserved bit"""), _files),
    "sys.servers": Table(_columns("server_id int, name sysname, product sysname, is_linked bit"), _servers),
    "sys.sysdatabases": Table(_columns("""
        name sysname, dbid smallint, sid varbinary(85), mode smallint, status int, status2 int, crdate datetime,
        reserved datetime, category int, cmptlevel tinyint, filename nvarchar(260), version smallint"""),
        _old_databases),
    "sys.sysprocesses": Table(_columns("""
        spid smallint, kpid smallint, blocked smallint, waittime bigint, dbid smallint, uid smallint, cpu int,
        login_time datetime, last_batch datetime, ecid smallint, open_tran smallint, status nchar(30),
        hostname nchar(128), program_name nchar(128), cmd nchar(26), loginame nchar(128)"""), _old_processes),
    **{name: Table(_columns(columns), rows) for name, (columns, rows) in history.TABLES.items()},
}  # fmt: skip
