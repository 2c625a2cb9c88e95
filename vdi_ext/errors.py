"""Exceptions for the status codes of the interface (section 3.3 of the specification).

The table `ERRORS` at the end drives everything: code, name, class, and what the message says of cause and remedy.
Misuse that this package finds by itself is a plain builtin (`ValueError`, `BufferError`, `TypeError`).
"""

from __future__ import annotations

from typing import NamedTuple

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
        row = ERRORS.get(self.code)
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


ERRORS: dict[int, ErrorRow] = {
    0x80770002: ErrorRow(
        "VD_E_NOTOPEN", VDNotOpenError,
        "the object is not open in this process", "open it here; objects inherited through fork are inert",
    ),
    0x80770003: ErrorRow(
        "VD_E_TIMEOUT", VDTimeoutError,
        "nothing happened within the time allowed", "call again, or wait longer",
    ),
    0x80770004: ErrorRow(
        "VD_E_ABORT", VDAbortError,
        "the operation was aborted", "close the set and start the operation again",
    ),
    0x80770005: ErrorRow(
        "VD_E_SECURITY", VDSecurityError,
        "access to the set was refused", "run server and client as the same user, or name a group that both are in",
    ),
    0x80770006: ErrorRow(
        "VD_E_INVALID", VDInvalidError,
        "a parameter, name, address or handle is not valid", "check that it belongs to this set and is still in use",
    ),
    0x80770007: ErrorRow(
        "VD_E_INSTANCE_NAME", VDInstanceNameError,
        "no such instance of SQL Server", "give the bare instance name, without the machine; None is the default one",
    ),
    0x80770009: ErrorRow(
        "VD_E_NOTSUPPORTED", VDNotSupportedError,
        "the requested configuration is not supported", "check the number of devices (1 to 64), features and sizes",
    ),
    0x8077000A: ErrorRow(
        "VD_E_MEMORY", VDMemoryError,
        "not enough memory, or above the provider's limit", "ask for fewer or smaller buffers, or free some",
    ),
    0x8077000B: ErrorRow(
        "VD_E_UNEXPECTED", VDUnexpectedError,
        "internal error of the provider", "abort and close the set; please report it",
    ),
    0x8077000C: ErrorRow(
        "VD_E_PROTOCOL", VDProtocolError,
        "the call is not allowed in the present state", "check the order of calls and that no set of this name exists",
    ),
    0x8077000D: ErrorRow(
        "VD_E_OPEN", VDOpenError,
        "all devices are open, or devices were still open when the set was closed",
        "open no more devices than configured, and read each to its end before closing",
    ),
    0x8077000E: ErrorRow(
        "VD_E_CLOSE", VDClosedError,
        "the device was closed by the server", "expect no further command; close the set",
    ),
    0x8077000F: ErrorRow(
        "VD_E_BUSY", VDBusyError,
        "in use by another thread or process", "let the other one finish",
    ),
    0x80770010: ErrorRow(
        "VD_E_QUEUE_FULL", VDQueueFullError,
        "the queue of the device is full", "wait for a completion before sending more",
    ),
    0x80770011: ErrorRow(
        "VD_E_IO_ERROR", VDIOError,
        "the device is in IO-ERROR after a command that failed", "send CLEAR_ERROR and wait for its success",
    ),
}  # fmt: skip

# Codes of COM and Win32 that libraries pass through; they stay plain VDError.
_FOREIGN = {
    0x80004002: "the library does not have this interface",
    0x8007000E: "out of memory",
    0x80040111: "the library does not have this class; its registration may be broken",
    0x80070002: "no set of that name; check the instance, and that both sides use the same library",
    0x80070005: "access denied; more privilege is needed",
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
    if row is None:
        return VDError(code, _FOREIGN.get(code, "the call failed with a code outside the interface"), operation)
    message = f"{row.cause}; {row.remedy}"
    if issubclass(row.error, VDAbortError):
        return row.error(code, message, operation, reason=reason, pid=pid)
    return row.error(code, message, operation)
