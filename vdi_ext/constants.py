"""Numbers of the interface as enums (sections 3.1, 3.2 and 3.4 of the specification)."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import TypeVar

__all__ = ["CommandCode", "CompletionCode", "Feature", "SetState", "Whence", "known"]

_E = TypeVar("_E", bound=IntEnum)


class Feature(IntFlag):
    """Feature bits of a device set, ``VDF_*`` (section 3.1). Unknown bits are kept."""

    LIKE_PIPE = 0
    REMOVABLE = 0x1
    REWIND = 0x2
    POSITION = 0x10
    SKIP_BLOCKS = 0x20
    REVERSE_POSITION = 0x40
    DISCARD = 0x80
    FILE_MARKS = 0x100
    RANDOM_ACCESS = 0x200
    SNAPSHOT_PREPARE = 0x400
    ENUM_FROZEN_FILES = 0x800
    VSS_WRITER = 0x1000
    REQUEST_COMPLETE = 0x2000
    WRITE_MEDIA = 0x10000  # from here on set by the server
    READ_MEDIA = 0x20000
    COMPLETE_ENABLED = 0x40000
    LATCH_STATS = 0x80000000
    LIKE_TAPE = FILE_MARKS | REMOVABLE | REWIND | POSITION | SKIP_BLOCKS | REVERSE_POSITION
    LIKE_DISK = RANDOM_ACCESS


class CommandCode(IntEnum):
    """What the server asks a device to do, ``VDC_*`` (section 3.2)."""

    READ = 1
    WRITE = 2
    CLEAR_ERROR = 3
    REWIND = 4
    WRITE_MARK = 5
    SKIP_MARKS = 6
    SKIP_BLOCKS = 7
    LOAD = 8
    GET_POSITION = 9
    SET_POSITION = 10
    DISCARD = 11
    FLUSH = 12
    SNAPSHOT = 13
    MOUNT_SNAPSHOT = 14
    PREPARE_TO_FREEZE = 15
    FILE_INFO_BEGIN = 16
    FILE_INFO_END = 17
    GET_ERROR = 18
    COMPLETE = 19


class Whence(IntEnum):
    """Base of a SET_POSITION in random-access mode; travels in the command's size (section 3.2)."""

    BEGINNING = 0
    CURRENT = 1
    END = 2


class CompletionCode(IntEnum):
    """Win32 codes that complete a command (section 3.4). Any other Win32 code may be passed as an int."""

    SUCCESS = 0
    INVALID_HANDLE = 6
    ARENA_TRASHED = 7
    BAD_ENVIRONMENT = 10
    HANDLE_EOF = 38
    HANDLE_DISK_FULL = 39
    NOT_SUPPORTED = 50
    INVALID_PARAMETER = 87
    DISK_FULL = 112
    OPERATION_ABORTED = 995
    END_OF_MEDIA = 1100
    FILEMARK_DETECTED = 1101
    BEGINNING_OF_MEDIA = 1102
    NO_DATA_DETECTED = 1104
    INVALID_BLOCK_LENGTH = 1106
    NO_MEDIA_IN_DRIVE = 1112
    IO_DEVICE = 1117
    EOM_OVERFLOW = 1129
    NO_SYSTEM_RESOURCES = 1450


class SetState(IntEnum):
    """State of a device set as one side sees it (section 6.1)."""

    DOES_NOT_EXIST = 0
    CONNECTED = 1
    CONFIGURABLE = 2
    INITIALIZING = 3
    ACTIVE = 4
    NORMALLY_TERMINATED = 5
    ABORT = 6


def known(kind: type[_E], value: int) -> _E | int:
    """Return the member of `kind` with this value, or the value itself where no member has it."""
    try:
        return kind(value)
    except ValueError:
        return value
