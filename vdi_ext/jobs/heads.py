"""What a backup says of itself at its beginning, and whether msdb says the same."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from ..mtf import BlockSizeError, FamilyInfo, FamilyReader, FileHeader, Lsn, MtfError
from ..storage import Manifest
from .inquiries import BackupRow, backup_row, backup_row_of_device, lsn_number
from .server import Session

_LONGEST = 8 << 20  # bytes that are read at most; a configuration has a few KiB for each file
_PIECE = 65536
_TYPES = {"D": "full", "I": "differential", "L": "log"}


@dataclass(frozen=True)
class Head:
    """One backup, as far as a chain must know it. LSNs are numbers as in T-SQL; times the server's, ISO 8601.

    Attributes
    ----------
    set_guid : str
    kind : {"full", "differential", "log"}
    database, server : str
    first_lsn, last_lsn, checkpoint_lsn, database_lsn, base_lsn : int
    base_guid : str or None
        Of the full backup that a differential builds on.
    first_fork, last_fork, family : str or None
        Recovery forks at the beginning and the end, and the database's family.
    fork_lsn : int
        Where the last fork begins, in a log that begins before it; otherwise, and where nobody knows, 0.
    copy_only : bool or None
        None: only msdb would know.
    started, finished : str or None
    """

    set_guid: str
    kind: str
    database: str
    server: str
    first_lsn: int
    last_lsn: int
    checkpoint_lsn: int
    database_lsn: int
    base_lsn: int
    base_guid: str | None
    first_fork: str | None
    last_fork: str | None
    fork_lsn: int
    family: str | None
    copy_only: bool | None
    started: str | None
    finished: str | None

    def to_dict(self) -> dict:
        """For a manifest. LSNs become text: many readers of JSON have no numbers of that size."""
        return {name: str(value) if name.endswith("_lsn") else value for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, document: Mapping[str, object]) -> Head | None:
        """Of a manifest; None where it says nothing, or nothing that can be believed."""
        names = set(cls.__dataclass_fields__)
        document = {"fork_lsn": "0", **document} if document else document  # the oldest manifests are without
        if set(document) != names:
            return None
        values: dict = dict(document)
        for name, value in document.items():
            if name.endswith("_lsn"):
                if not isinstance(value, str) or not value.isdecimal() or len(value) > 25:
                    return None
                values[name] = int(value)
            elif name == "copy_only":
                if not (value is None or isinstance(value, bool)):
                    return None
            elif not (isinstance(value, str) or (value is None and name not in ("set_guid", "kind", "database"))):
                return None
        return cls(**values) if values["kind"] in _TYPES.values() else None


class _Enough(Exception):
    pass


def read_info(path: str, block_size: int) -> FamilyInfo:
    """The beginning of a stripe.

    Parameters
    ----------
    path : str
    block_size : int
        That it was written with; another one is found out.

    Raises
    ------
    MtfError
        It is no stream that is understood: compressed, encrypted, or no backup.
    OSError
    """
    found: list[FamilyInfo] = []

    def start(info: FamilyInfo) -> None:
        found.append(info)
        raise _Enough

    reader = FamilyReader(block_size, start, lambda pages: None)
    with open(path, "rb") as file:
        try:
            while file.tell() < _LONGEST and (piece := file.read(_PIECE)):
                reader.feed(memoryview(piece))
        except _Enough:
            return found[0]
        except BlockSizeError as error:
            if error.found == block_size:
                raise
            return read_info(path, error.found)
    raise MtfError("no backup set begins there")


def info_of(directory: str, manifest: Manifest, number: int = 1) -> FamilyInfo:
    """The beginning of a stripe of a set, by default the first. Raises as `read_info`."""
    block_size = manifest.configuration.get("block_size")
    if type(block_size) is not int or not 512 <= block_size <= 65536 or block_size & (block_size - 1):
        block_size = 65536
    return read_info(os.path.join(directory, manifest.stripes[number - 1].file), block_size)


def files_of(directory: str, manifest: Manifest) -> tuple[FileHeader, ...]:
    """The files of the database that a set holds. Raises as `read_info`."""
    return info_of(directory, manifest).configuration.files


def head_of(directory: str, manifest: Manifest) -> Head | None:
    """What a stored set is: from its manifest, else from its first stripe. None: neither tells."""
    if (head := Head.from_dict(manifest.backup)) is not None:
        return head
    try:
        return stream_head(info_of(directory, manifest))
    except (MtfError, OSError):
        return None


def kind_of(directory: str, manifest: Manifest) -> str:
    """What a stored set holds: as `head_of` has it, else as its statement says."""
    if (head := head_of(directory, manifest)) is not None:
        return head.kind
    if re.match(r"\s*BACKUP\s+LOG\b", manifest.statement, re.IGNORECASE):
        return "log"
    return "differential" if re.search(r"\bDIFFERENTIAL\b", manifest.statement, re.IGNORECASE) else "full"


def stream_head(info: FamilyInfo) -> Head:
    """What the beginning of a stream says."""
    found = info.configuration
    copy_only = found.extra.get("copy_only")
    fork = _guid(found.recovery_fork)
    return Head(
        _guid(info.set_guid) or "", _TYPES.get(found.kind, "full"), found.database, found.server,
        _number(found.first_lsn), _number(found.last_lsn), _number(found.checkpoint_lsn), _number(found.database_lsn),
        _number(found.base_lsn), _guid(found.base_guid), _first_fork(found.kind, found.extra) or fork, fork, 0,
        _guid(found.family_guid), copy_only if isinstance(copy_only, bool) else None,
        found.started.isoformat() if found.started else None, None,
    )  # fmt: skip


def row_head(row: BackupRow) -> Head:
    """What msdb alone says, of a stream that tells nothing."""
    return Head(
        row.set_guid, _TYPES.get(row.type, "full"), row.database, "", row.first_lsn or 0, row.last_lsn or 0,
        row.checkpoint_lsn or 0, row.database_lsn or 0, row.base_lsn or 0, row.base_guid, row.first_fork,
        row.last_fork, row.fork_lsn or 0, None, row.copy_only, row.started, row.finished,
    )  # fmt: skip


def known_to(session: Session, directory: str, manifest: Manifest, number: int = 1) -> tuple[Head | None, list[str]]:
    """A stored set in the words of its stream and of the server's msdb.

    Parameters
    ----------
    number : int
        Of the stripe; only those of a snapshot differ.

    Returns
    -------
    Head or None
        None: msdb does not list it, so its BACKUP has not succeeded.
    list of str
        What msdb says otherwise than the stream.

    Raises
    ------
    SQLError
        msdb can not be asked.
    """
    try:
        head = stream_head(info_of(directory, manifest, number))
    except (MtfError, OSError):
        devices = re.findall(r"VIRTUAL_DEVICE\s*=\s*N?'((?:[^']|'')+)'", manifest.statement, re.IGNORECASE)
        known = len(devices) >= number
        row = backup_row_of_device(session, devices[number - 1].replace("''", "'")) if known else None
        return (None if row is None else row_head(row)), []
    row = backup_row(session, head.set_guid)
    if row is None:
        return None, []
    problems = differences(head, row)
    return (head if problems else merged(head, row)), problems


def differences(head: Head, row: BackupRow) -> list[str]:
    """What msdb says otherwise than the stream."""
    pairs = {
        "the set's GUID": (head.set_guid, row.set_guid),
        "the database": (head.database, row.database),
        "the type": (head.kind, _TYPES.get(row.type)),
        "the first LSN": (head.first_lsn, row.first_lsn),
        "the last LSN": (head.last_lsn, row.last_lsn),
        "the checkpoint LSN": (head.checkpoint_lsn, row.checkpoint_lsn),
    }
    if head.copy_only is not None:
        pairs["copy-only"] = (head.copy_only, row.copy_only)
    return [
        f"{what} is {there} in msdb and {here} in the stream"
        for what, (here, there) in pairs.items()
        if there is not None and here != there
    ]


def merged(head: Head, row: BackupRow) -> Head:
    """What both say together: forks, copy-only and the end are better known to msdb."""
    return Head(**{
        **vars(head),
        "copy_only": row.copy_only,
        "first_fork": row.first_fork or head.first_fork,
        "last_fork": row.last_fork or head.last_fork,
        "fork_lsn": row.fork_lsn or 0,
        "started": row.started or head.started,
        "finished": row.finished,
    })  # fmt: skip


def _first_fork(kind: str, extra: Mapping[str, object]) -> str | None:
    """Of a log, where the stream tells its recovery path: only the stand-in's do."""
    try:
        return _guid(bytes.fromhex(extra["forks"][0][0])) if kind == "L" else None  # type: ignore[index]
    except (TypeError, ValueError, IndexError, KeyError):
        return None


def _guid(raw: bytes) -> str | None:
    return str(UUID(bytes_le=bytes(raw))) if len(raw) == 16 and any(raw) else None


def _number(lsn: Lsn) -> int:
    return lsn_number(lsn)
