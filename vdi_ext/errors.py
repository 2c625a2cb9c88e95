"""Exceptions for the status codes of the interface (section 3.3 of the specification).

The table `ERRORS` at the end gives each code its class; names, causes and remedies are those of `codes`.
Misuse that this package finds by itself is a plain builtin (`ValueError`, `BufferError`, `TypeError`).
"""

from __future__ import annotations

from typing import NamedTuple

from .codes import VDI, row_of_hresult

__all__ = [
    "ERRORS",
    "ErrorRow",
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
    "error_from_hresult",
]


class VDError(Exception):
    """A call of the interface failed.

    Parameters
    ----------
    code : int
        The HRESULT, signed or unsigned; kept as an unsigned 32-bit number. Where a subclass is also an `OSError`, its
        `errno` is that number and not one of the C library.
    message : str
        Cause and remedy.
    operation : str, optional
        The call that failed, in the specification's words (``"GetCommand"``).
    """

    code: int
    message: str
    operation: str | None

    def __init__(self, code: int, message: str, operation: str | None = None) -> None:
        code &= 0xFFFFFFFF
        # Exactly these three: the only shape that mixes with every builtin below and still copies and pickles.
        super().__init__(code, message, operation)
        self.code = code
        self.message = message
        self.operation = operation

    def __str__(self) -> str:
        row = row_of_hresult(self.code)
        status = f"{row.name}, 0x{self.code:08X}" if row else f"0x{self.code:08X}"
        where = f"{self.operation}: " if self.operation else ""
        return f"{where}{self.message} ({status})"


class VDNotOpenError(VDError, ValueError):
    """The object was not open."""


class VDTimeoutError(VDError, TimeoutError):
    """The interval of a wait ran out. Nothing changed: the call may be repeated."""


class VDAbortError(VDError, ConnectionAbortedError):
    """The operation was aborted by one side or by the death of a process.

    Attributes
    ----------
    reason : str or None
        One sentence about who or what caused the abort, where known.
    pid : int or None
        The process that died, signalled or closed, where known.
    """

    reason: str | None
    pid: int | None

    def __init__(
        self,
        code: int,
        message: str,
        operation: str | None = None,
        *,
        reason: str | None = None,
        pid: int | None = None,
    ) -> None:
        super().__init__(code, message, operation)
        self.reason = reason
        self.pid = pid

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text}: {self.reason}" if self.reason else text


class VDSecurityError(VDError, PermissionError):
    """Access was refused or could not be set up."""


class VDInvalidError(VDError, ValueError):
    """A parameter, name, address or handle is not valid."""


class VDInstanceNameError(VDError, LookupError):
    """The instance name was not recognised."""


class VDNotSupportedError(VDError, NotImplementedError):
    """The requested configuration is not valid or not supported."""


class VDMemoryError(VDError, MemoryError):
    """Out of memory, or above the provider's limit."""


class VDUnexpectedError(VDError, RuntimeError):
    """Internal error of the provider."""


class VDProtocolError(VDError, RuntimeError):
    """The call is not allowed in this state."""


class VDOpenError(VDError, RuntimeError):
    """All devices are open; or devices were still open at Close."""


class VDClosedError(VDError, EOFError):
    """The server has closed the device: the normal end, which ends iteration."""


class VDBusyError(VDError, BlockingIOError):
    """The resource is busy."""


class VDQueueFullError(VDError, BlockingIOError):
    """The queue of the device is full."""


class VDIOError(VDError, OSError):
    """The device is in IO-ERROR: it accepts only a CLEAR_ERROR until that has succeeded."""


class ErrorRow(NamedTuple):
    """One status code: its name, its class, and what its message says."""

    name: str
    error: type[VDError]
    cause: str
    remedy: str


_CLASSES: dict[str, type[VDError]] = {
    "VD_E_ABORT": VDAbortError,
    "VD_E_BUSY": VDBusyError,
    "VD_E_CLOSE": VDClosedError,
    "VD_E_INSTANCE_NAME": VDInstanceNameError,
    "VD_E_INVALID": VDInvalidError,
    "VD_E_IO_ERROR": VDIOError,
    "VD_E_MEMORY": VDMemoryError,
    "VD_E_NOTOPEN": VDNotOpenError,
    "VD_E_NOTSUPPORTED": VDNotSupportedError,
    "VD_E_OPEN": VDOpenError,
    "VD_E_PROTOCOL": VDProtocolError,
    "VD_E_QUEUE_FULL": VDQueueFullError,
    "VD_E_SECURITY": VDSecurityError,
    "VD_E_TIMEOUT": VDTimeoutError,
    "VD_E_UNEXPECTED": VDUnexpectedError,
}
ERRORS: dict[int, ErrorRow] = {
    code: ErrorRow(row.name, _CLASSES[row.name], row.cause, row.remedy) for code, row in VDI.items()
}


def error_from_hresult(
    code: int, operation: str | None = None, *, reason: str | None = None, pid: int | None = None
) -> VDError:
    """Make the exception for an HRESULT.

    Parameters
    ----------
    code : int
        The HRESULT, signed or unsigned. A code outside section 3.3 gives a plain `VDError` that keeps it.
    operation : str, optional
        The call that returned it.
    reason, pid
        Passed on to a `VDAbortError`; without meaning for other codes.
    """
    code &= 0xFFFFFFFF
    row = ERRORS.get(code)
    if row is None:  # one of COM or Win32 that a library passes through
        foreign = row_of_hresult(code)
        text = f"{foreign.cause}; {foreign.remedy}" if foreign else "the call failed with a code outside the interface"
        return VDError(code, text, operation)
    message = f"{row.cause}; {row.remedy}"
    if issubclass(row.error, VDAbortError):
        return row.error(code, message, operation, reason=reason, pid=pid)
    return row.error(code, message, operation)
