"""SQL Server's Virtual Device Interface in Python: both halves, zero-copy and across processes."""

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

__all__ = [
    "CommandCode",
    "CompletionCode",
    "DeviceSetConfig",
    "Feature",
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
    "Whence",
]
