"""SQL Server's Virtual Device Interface in Python: both halves, zero-copy and across processes."""

from ._core.buffer import BufferHandle, MappedBuffer
from ._core.command import Command
from ._core.device import VirtualDevice
from ._core.device_set import VirtualDeviceSet
from ._core.provider import Provider
from .config import DeviceSetConfig
from .constants import CommandCode, CompletionCode, Feature, SetState, Whence
from .errors import (
    VDAbortError,
    VDBusyError,
    VDClosedError,
    VDError,
    VDInstanceNameError,
    VDInvalidError,
    VDIOError,
    VDMemoryError,
    VDNotOpenError,
    VDNotSupportedError,
    VDOpenError,
    VDProtocolError,
    VDQueueFullError,
    VDSecurityError,
    VDTimeoutError,
    VDUnexpectedError,
)
from .jobs import (
    backup,
    backup_several,
    backup_snapshot,
    pipe_backup,
    pipe_restore,
    recover,
    restore,
    restore_chain,
    restore_snapshot,
)

__all__ = [
    "BufferHandle",
    "Command",
    "CommandCode",
    "CompletionCode",
    "DeviceSetConfig",
    "Feature",
    "MappedBuffer",
    "Provider",
    "SetState",
    "VDAbortError",
    "VDBusyError",
    "VDClosedError",
    "VDError",
    "VDIOError",
    "VDInstanceNameError",
    "VDInvalidError",
    "VDMemoryError",
    "VDNotOpenError",
    "VDNotSupportedError",
    "VDOpenError",
    "VDProtocolError",
    "VDQueueFullError",
    "VDSecurityError",
    "VDTimeoutError",
    "VDUnexpectedError",
    "VirtualDevice",
    "VirtualDeviceSet",
    "Whence",
    "backup",
    "backup_several",
    "backup_snapshot",
    "pipe_backup",
    "pipe_restore",
    "recover",
    "restore",
    "restore_chain",
    "restore_snapshot",
]
