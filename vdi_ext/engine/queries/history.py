"""msdb's tables of backups and restores."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from ..msdb import VIRTUAL_DEVICE, BackupRecord, lsn_number

if TYPE_CHECKING:
    from ...mtf import Lsn
    from .system import Context

Row = dict[str, object]

BACKUPSET = """
    backup_set_id int, backup_set_uuid uniqueidentifier, media_set_id int, first_family_number tinyint,
    first_media_number smallint, last_family_number tinyint, last_media_number smallint,
    catalog_family_number tinyint, catalog_media_number smallint, position int, expiration_date datetime,
    software_vendor_id int, name nvarchar(128), description nvarchar(255), user_name nvarchar(128),
    software_major_version tinyint, software_minor_version tinyint, software_build_version smallint,
    time_zone smallint, mtf_minor_version tinyint, first_lsn numeric(25,0), last_lsn numeric(25,0),
    checkpoint_lsn numeric(25,0), database_backup_lsn numeric(25,0), database_creation_date datetime,
    backup_start_date datetime, backup_finish_date datetime, type char(1), sort_order smallint, code_page smallint,
    compatibility_level tinyint, database_version int, backup_size numeric(20,0), database_name nvarchar(128),
    server_name nvarchar(128), machine_name nvarchar(128), flags int, unicode_locale int, unicode_compare_style int,
    collation_name nvarchar(128), is_password_protected bit, recovery_model nvarchar(60), has_bulk_logged_data bit,
    is_snapshot bit, is_readonly bit, is_single_user bit, has_backup_checksums bit, is_damaged bit,
    begins_log_chain bit, has_incomplete_metadata bit, is_force_offline bit, is_copy_only bit,
    first_recovery_fork_guid uniqueidentifier, last_recovery_fork_guid uniqueidentifier, fork_point_lsn numeric(25,0),
    database_guid uniqueidentifier, family_guid uniqueidentifier, differential_base_lsn numeric(25,0),
    differential_base_guid uniqueidentifier, compressed_backup_size numeric(20,0), key_algorithm nvarchar(32),
    encryptor_thumbprint varbinary(20), encryptor_type nvarchar(32), last_valid_restore_time datetime"""
MEDIAFAMILY = """
    media_set_id int, family_sequence_number tinyint, media_family_id uniqueidentifier, media_count int,
    logical_device_name nvarchar(128), physical_device_name nvarchar(260), device_type tinyint,
    physical_block_size int, mirror tinyint"""
MEDIASET = """
    media_set_id int, media_uuid uniqueidentifier, media_family_count tinyint, name nvarchar(128),
    description nvarchar(255), software_name nvarchar(128), software_vendor_id int, MTF_major_version tinyint,
    mirror_count tinyint, is_password_protected bit, is_compressed bit, is_encrypted bit"""
BACKUPFILE = """
    backup_set_id int, first_family_number tinyint, first_media_number smallint, filegroup_name nvarchar(128),
    page_size int, file_number numeric(10,0), backed_up_page_count numeric(10,0), file_type char(1),
    source_file_block_size numeric(10,0), file_size numeric(20,0), logical_name nvarchar(128),
    physical_drive nvarchar(260), physical_name nvarchar(260), state tinyint, state_desc nvarchar(64),
    create_lsn numeric(25,0), drop_lsn numeric(25,0), file_guid uniqueidentifier, read_only_lsn numeric(25,0),
    read_write_lsn numeric(25,0), differential_base_lsn numeric(25,0), differential_base_guid uniqueidentifier,
    backup_size numeric(20,0), filegroup_guid uniqueidentifier, is_readonly bit, is_present bit"""
BACKUPFILEGROUP = """
    backup_set_id int, name nvarchar(128), filegroup_id int, filegroup_guid uniqueidentifier, type char(2),
    type_desc nvarchar(60), is_default bit, is_readonly bit, log_filegroup_guid uniqueidentifier"""
RESTOREHISTORY = """
    restore_history_id int, restore_date datetime, destination_database_name nvarchar(128), user_name nvarchar(128),
    backup_set_id int, restore_type char(1), replace bit, recovery bit, restart bit, stop_at datetime,
    device_count tinyint, stop_at_mark_name nvarchar(128), stop_before bit"""
RESTOREFILE = """
    restore_history_id int, file_number numeric(10,0), destination_phys_drive nvarchar(260),
    destination_phys_name nvarchar(260)"""
RESTOREFILEGROUP = "restore_history_id int, filegroup_name nvarchar(128)"
SUSPECT_PAGES = """
    database_id int, file_id int, page_id bigint, event_type int, error_count int, last_update_date datetime"""


def _lsn(lsn: Lsn | None) -> int | None:
    return None if lsn is None else lsn_number(lsn)


def _media(records: Iterable[BackupRecord]) -> dict[UUID, int]:
    """Numbers of media sets; several backup sets may be on one."""
    numbers: dict[UUID, int] = {}
    for record in records:
        numbers.setdefault(record.media_guid, len(numbers) + 1)
    return numbers


def _zone(moment: datetime) -> int:
    offset = moment.astimezone().utcoffset()
    return round(offset.total_seconds() / 900) if offset else 0  # quarters of an hour


def _backupset(context: Context) -> Iterable[Row]:
    records = context.engine.history.backups
    media = _media(records)
    major, minor, build, _ = context.engine.version
    for number, record in enumerate(records, 1):
        families = len(record.devices)
        yield {
            "backup_set_id": number, "backup_set_uuid": record.set_guid, "media_set_id": media[record.media_guid],
            "first_family_number": 1, "first_media_number": 1, "last_family_number": families, "last_media_number": 1,
            "catalog_family_number": families, "catalog_media_number": 1, "position": record.position,
            "expiration_date": record.expires, "software_vendor_id": 4608, "name": record.name,
            "description": record.description, "user_name": record.user, "software_major_version": major,
            "software_minor_version": minor, "software_build_version": build, "time_zone": _zone(record.started),
            "mtf_minor_version": 0, "first_lsn": _lsn(record.first_lsn), "last_lsn": _lsn(record.last_lsn),
            "checkpoint_lsn": _lsn(record.checkpoint_lsn), "database_backup_lsn": _lsn(record.database_lsn),
            "database_creation_date": record.database_created, "backup_start_date": record.started,
            "backup_finish_date": record.finished, "type": record.type, "sort_order": 52, "code_page": 0,
            "compatibility_level": 160, "database_version": record.database_version or None,
            "backup_size": record.size, "database_name": record.database, "server_name": record.server_name,
            "machine_name": record.machine_name, "flags": 512 if not record.has_checksums else 528,
            "unicode_locale": 1033, "unicode_compare_style": 196609,
            "collation_name": "SQL_Latin1_General_CP1_CI_AS", "is_password_protected": 0,
            "recovery_model": record.recovery_model, "has_bulk_logged_data": 0,
            "is_snapshot": int(record.is_snapshot), "is_readonly": 0, "is_single_user": 0,
            "has_backup_checksums": int(record.has_checksums), "is_damaged": int(record.is_damaged),
            "begins_log_chain": int(record.begins_log_chain),
            "has_incomplete_metadata": int(record.has_incomplete_metadata), "is_force_offline": int(record.is_tail),
            "is_copy_only": int(record.is_copy_only), "first_recovery_fork_guid": record.first_fork,
            "last_recovery_fork_guid": record.last_fork, "fork_point_lsn": _lsn(record.fork_lsn),
            "database_guid": record.last_fork, "family_guid": record.family_guid,
            "differential_base_lsn": _lsn(record.differential_base_lsn),
            "differential_base_guid": record.differential_base_guid, "compressed_backup_size": record.size,
        }  # fmt: skip


def _backupmediafamily(context: Context) -> Iterable[Row]:
    records = context.engine.history.backups
    media = _media(records)
    seen: set[UUID] = set()
    for record in records:
        if record.media_guid in seen:
            continue
        seen.add(record.media_guid)
        for number, device in enumerate(record.devices, 1):
            yield {
                "media_set_id": media[record.media_guid], "family_sequence_number": number, "media_count": 1,
                "physical_device_name": device, "device_type": VIRTUAL_DEVICE, "physical_block_size": record.block_size,
                "mirror": 0,
            }  # fmt: skip


def _backupmediaset(context: Context) -> Iterable[Row]:
    records = context.engine.history.backups
    media = _media(records)
    seen: set[UUID] = set()
    for record in records:
        if record.media_guid in seen:
            continue
        seen.add(record.media_guid)
        yield {
            "media_set_id": media[record.media_guid], "media_uuid": record.media_guid,
            "media_family_count": len(record.devices), "name": record.media_name,
            "description": record.media_description, "software_name": "Microsoft SQL Server",
            "software_vendor_id": 4608, "MTF_major_version": 1, "mirror_count": 1, "is_password_protected": 0,
            "is_compressed": 0, "is_encrypted": 0,
        }  # fmt: skip


def _backupfile(context: Context) -> Iterable[Row]:
    for number, record in enumerate(context.engine.history.backups, 1):
        for file in record.files:
            yield {
                "backup_set_id": number, "first_family_number": 1, "first_media_number": 1,
                "filegroup_name": None if file.type == "L" else "PRIMARY", "page_size": 8192,
                "file_number": file.number, "backed_up_page_count": file.backup_size // 8192, "file_type": file.type,
                "source_file_block_size": 512, "file_size": file.size, "logical_name": file.name,
                "physical_drive": None, "physical_name": file.path, "state": 0, "state_desc": "ONLINE",
                "create_lsn": 0, "drop_lsn": 0, "read_only_lsn": 0, "read_write_lsn": 0,
                "differential_base_lsn": _lsn(record.differential_base_lsn),
                "differential_base_guid": record.differential_base_guid, "backup_size": file.backup_size,
                "is_readonly": 0, "is_present": 1,
            }  # fmt: skip


def _backupfilegroup(context: Context) -> Iterable[Row]:
    for number, _ in enumerate(context.engine.history.backups, 1):
        yield {"backup_set_id": number, "name": "PRIMARY", "filegroup_id": 1, "type": "FG",
               "type_desc": "ROWS_FILEGROUP", "is_default": 1, "is_readonly": 0}  # fmt: skip


def _restorehistory(context: Context) -> Iterable[Row]:
    sets = {record.set_guid: number for number, record in enumerate(context.engine.history.backups, 1)}
    for number, record in enumerate(context.engine.history.restores, 1):
        yield {
            "restore_history_id": number, "restore_date": record.finished,
            "destination_database_name": record.database, "user_name": record.user,
            "backup_set_id": sets.get(record.set_guid), "restore_type": record.type, "replace": int(record.replace),
            "recovery": int(record.recovery), "restart": 0, "stop_at": record.stop_at, "device_count": None,
            "stop_before": 0,
        }  # fmt: skip


def _restorefile(context: Context) -> Iterable[Row]:
    for number, record in enumerate(context.engine.history.restores, 1):
        for file in record.files:
            yield {"restore_history_id": number, "file_number": file.number, "destination_phys_name": file.path}


def _restorefilegroup(context: Context) -> Iterable[Row]:
    for number, _ in enumerate(context.engine.history.restores, 1):
        yield {"restore_history_id": number, "filegroup_name": "PRIMARY"}


def _nothing(context: Context) -> Iterable[Row]:
    return ()


TABLES: dict[str, tuple[str, Callable[[Context], Iterable[Row]]]] = {
    "msdb.backupfile": (BACKUPFILE, _backupfile),
    "msdb.backupfilegroup": (BACKUPFILEGROUP, _backupfilegroup),
    "msdb.backupmediafamily": (MEDIAFAMILY, _backupmediafamily),
    "msdb.backupmediaset": (MEDIASET, _backupmediaset),
    "msdb.backupset": (BACKUPSET, _backupset),
    "msdb.restorefile": (RESTOREFILE, _restorefile),
    "msdb.restorefilegroup": (RESTOREFILEGROUP, _restorefilegroup),
    "msdb.restorehistory": (RESTOREHISTORY, _restorehistory),
    "msdb.suspect_pages": (SUSPECT_PAGES, _nothing),
}
