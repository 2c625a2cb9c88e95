"""What the numbers mean: VDI status codes, Win32 codes, messages of SQL Server; each with its cause and its remedy.

One table for everything that shows a code to people: the texts of exceptions, the messages of the stand-in, the
command line's errors, ``vdi-ext explain`` and ``vdi-ext doctor``. Sections 3.3, 3.4, 10, 12.4 and 12.6 of the
specification.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["HRESULT", "SQL", "VDI", "WIN32", "Explanation", "Row", "Win32Row", "codes_in", "explain", "row_of_hresult"]


class Row(NamedTuple):
    """One code. Cause and remedy are parts of sentences, without capital and full stop."""

    name: str
    cause: str
    remedy: str


class Win32Row(NamedTuple):
    """As `Row`; `text` is what Windows and so SQL Server prints."""

    name: str
    text: str
    cause: str
    remedy: str


class Explanation(NamedTuple):
    """A code as people want to read it."""

    code: str
    name: str
    cause: str
    remedy: str

    def __str__(self) -> str:
        known = f"{self.code} ({self.name})" if self.name else self.code
        return f"{known}: {self.cause}; {self.remedy}"

    def to_dict(self) -> dict:
        return self._asdict()


VDI: dict[int, Row] = {
    0x80770002: Row(
        "VD_E_NOTOPEN",
        "the object is not open in this process", "open it here; objects inherited through fork are inert",
    ),
    0x80770003: Row(
        "VD_E_TIMEOUT",
        "nothing happened within the time allowed", "call again, or wait longer",
    ),
    0x80770004: Row(
        "VD_E_ABORT",
        "the operation was aborted", "close the set and start the operation again",
    ),
    0x80770005: Row(
        "VD_E_SECURITY",
        "access to the set was refused", "run server and client as the same user, or name a group that both are in",
    ),
    0x80770006: Row(
        "VD_E_INVALID",
        "a parameter, name, address or handle is not valid", "check that it belongs to this set and is still in use",
    ),
    0x80770007: Row(
        "VD_E_INSTANCE_NAME",
        "no such instance of SQL Server", "give the bare instance name, without the machine; None is the default one",
    ),
    0x80770009: Row(
        "VD_E_NOTSUPPORTED",
        "the requested configuration is not supported", "check the number of devices (1 to 64), features and sizes",
    ),
    0x8077000A: Row(
        "VD_E_MEMORY",
        "not enough memory, or above the provider's limit", "ask for fewer or smaller buffers, or free some",
    ),
    0x8077000B: Row(
        "VD_E_UNEXPECTED",
        "internal error of the provider", "abort and close the set; please report it",
    ),
    0x8077000C: Row(
        "VD_E_PROTOCOL",
        "the call is not allowed in the present state", "check the order of calls and that no set of this name exists",
    ),
    0x8077000D: Row(
        "VD_E_OPEN",
        "all devices are open, or devices were still open when the set was closed",
        "open no more devices than configured, and read each to its end before closing",
    ),
    0x8077000E: Row(
        "VD_E_CLOSE",
        "the device was closed by the server", "expect no further command; close the set",
    ),
    0x8077000F: Row(
        "VD_E_BUSY",
        "in use by another thread or process", "let the other one finish",
    ),
    0x80770010: Row(
        "VD_E_QUEUE_FULL",
        "the queue of the device is full", "wait for a completion before sending more",
    ),
    0x80770011: Row(
        "VD_E_IO_ERROR",
        "the device is in IO-ERROR after a command that failed", "send CLEAR_ERROR and wait for its success",
    ),
}  # fmt: skip

_ASK_THE_CLIENT = "look at the backup client's own error, which came first"

WIN32: dict[int, Win32Row] = {
    0: Win32Row(
        "ERROR_SUCCESS", "The operation completed successfully.", "the command succeeded", "nothing is to be done",
    ),
    2: Win32Row(
        "ERROR_FILE_NOT_FOUND", "The system cannot find the file specified.",
        "the server found no set of that name",
        "start the client before the statement; check the instance, and that both sides use the same library",
    ),
    5: Win32Row(
        "ERROR_ACCESS_DENIED", "Access is denied.",
        "the objects of the set can not be made or opened",
        "run elevated or as the server's user; on Linux in its group",
    ),
    6: Win32Row(
        "ERROR_INVALID_HANDLE", "The handle is invalid.",
        "a command was sent to a device that is not open", "open the device before, and send nothing after its close",
    ),
    7: Win32Row(
        "ERROR_ARENA_TRASHED", "The storage control blocks were destroyed.",
        "the client reports that its memory is damaged", _ASK_THE_CLIENT,
    ),
    10: Win32Row(
        "ERROR_BAD_ENVIRONMENT", "The environment is incorrect.",
        "the client reports an error of its own", _ASK_THE_CLIENT,
    ),
    38: Win32Row(
        "ERROR_HANDLE_EOF", "Reached the end of the file.",
        "the stripe has no more data", "where the restore needs more, the stripe is cut short: verify the set",
    ),
    39: Win32Row(
        "ERROR_HANDLE_DISK_FULL", "The disk is full.",
        "the client can not store any more", "free space where the backup goes to",
    ),
    50: Win32Row(
        "ERROR_NOT_SUPPORTED", "The request is not supported.",
        "the client does not know the command", "offer only features whose commands the client answers",
    ),
    87: Win32Row(
        "ERROR_INVALID_PARAMETER", "The parameter is incorrect.",
        "the client could make nothing of the command", "check block size and positions against the configuration",
    ),
    112: Win32Row(
        "ERROR_DISK_FULL", "There is not enough space on the disk.",
        "the client can not store any more", "free space where the backup goes to",
    ),
    995: Win32Row(
        "ERROR_OPERATION_ABORTED",
        "The I/O operation has been aborted because of either a thread exit or an application request.",
        "the device set was aborted: by the client, its death, or a timeout", _ASK_THE_CLIENT,
    ),
    1100: Win32Row(
        "ERROR_END_OF_MEDIA", "The physical end of the tape has been reached.",
        "the medium comes to its end", "load the next one; fixed media must be large enough",
    ),
    1101: Win32Row(
        "ERROR_FILEMARK_DETECTED", "A tape access reached a filemark.",
        "a read ran into a filemark", "skip the mark, or restore with the block size of the backup",
    ),
    1102: Win32Row(
        "ERROR_BEGINNING_OF_MEDIA", "The beginning of the tape or a partition was encountered.",
        "positioning backwards met the beginning of the medium", "position from the beginning instead",
    ),
    1104: Win32Row(
        "ERROR_NO_DATA_DETECTED", "No more data is on the tape.",
        "the medium has no more data", "where the restore needs more, it is the wrong medium or one that was cut short",
    ),
    1106: Win32Row(
        "ERROR_INVALID_BLOCK_LENGTH",
        "When accessing a new tape of a multivolume partition, the current block size is incorrect.",
        "the medium has blocks of another size", "use the block size that the backup was written with",
    ),
    1112: Win32Row(
        "ERROR_NO_MEDIA_IN_DRIVE", "No media in drive.",
        "no medium could be loaded", "make the next medium ready, and start again",
    ),
    1117: Win32Row(
        "ERROR_IO_DEVICE", "The request could not be performed because of an I/O device error.",
        "the client could not store or fetch the bytes, or a command before this one failed", _ASK_THE_CLIENT,
    ),
    1129: Win32Row(
        "ERROR_EOM_OVERFLOW", "The physical end of the tape has been reached.",
        "the medium is full, and what was queued did not fit", "announce a larger warning zone before its end",
    ),
    1450: Win32Row(
        "ERROR_NO_SYSTEM_RESOURCES", "Insufficient system resources exist to complete the requested service.",
        "the queue of the device is full", "keep fewer commands in flight",
    ),
}  # fmt: skip

# Codes of COM and of Win32 in their HRESULT form for which there is more to say than WIN32 does.
HRESULT: dict[int, Row] = {
    0x80004002: Row(
        "E_NOINTERFACE",
        "the library does not have this interface", "use a library of the version that the program was written for",
    ),
    0x80004005: Row("E_FAIL", "the library failed without a reason", "look into the event log of the machine"),
    0x80040111: Row(
        "CLASS_E_CLASSNOTAVAILABLE",
        "the library does not have this class; its registration may be broken",
        "register sqlvdi.dll again, in the bitness of the program",
    ),
    0x80040154: Row(
        "REGDB_E_CLASSNOTREG",
        "the library is not registered for programs of this bitness", "install or register sqlvdi.dll in that bitness",
    ),
    0x8007000E: Row("E_OUTOFMEMORY", "out of memory", "ask for fewer or smaller buffers, or free some"),
    0x80070002: Row(
        "ERROR_FILE_NOT_FOUND",
        "no set of that name", "check the instance, and that both sides use the same library",
    ),
    0x80070005: Row(
        "E_ACCESSDENIED",
        "access denied; more privilege is needed", "run elevated or as the server's user; on Linux in its group",
    ),
    0x80070057: Row("E_INVALIDARG", "a parameter is not valid", "check names, sizes and addresses"),
}  # fmt: skip

SQL: dict[int, Row] = {
    229: Row("", "the login lacks a permission", "use a member of sysadmin: backups to virtual devices need it"),
    262: Row("", "the login may not back up this database", "use a member of sysadmin: virtual devices need it"),
    701: Row("", "the server could not get memory for the buffers", "lower BUFFERCOUNT or MAXTRANSFERSIZE"),
    911: Row("", "there is no such database", "check its name, and on which instance it is"),
    3013: Row("", "the statement failed", "see the message before this one, which says why"),
    3014: Row("", "the statement succeeded", "nothing is to be done; what came before it was recovered from"),
    3021: Row("", "a transaction is open", "use a connection with autocommit"),
    3023: Row("", "another backup or a change of files runs in this database", "wait until it has ended"),
    3041: Row("", "a BACKUP failed; the error log's word for it", "see the messages before it, and the client's"),
    3101: Row("", "somebody uses the database", "end the other connections, or SET SINGLE_USER before the restore"),
    3117: Row("", "no restore is in progress to which this backup could be added",
              "restore the full backup WITH NORECOVERY first"),
    3132: Row("", "stripes of the media set are missing", "give one device for each stripe of the backup"),
    3136: Row("", "the differential belongs to another full backup", "restore the full backup that came before it"),
    3035: Row("", "there is no full backup to which a differential could be made", "make a full backup first"),
    3183: Row("", "a page in the backup is damaged", "use another backup; the page was damaged then or has been since"),
    3189: Row("", "the backup set is damaged", "verify the stored set, and use another one"),
    3201: Row("", "the virtual device could not be opened; state 7: no set of that name, state 6: a device of it",
              "look at its operating system error; start the client first and name the right instance"),
    3202: Row("", "a write to the device failed", "look at its operating system error, and at the client's own"),
    3203: Row("", "a read from the device failed", "look at its operating system error, and at the client's own"),
    3204: Row("", "the statement was aborted", "it was cancelled, or its connection was lost; start it again"),
    3241: Row("", "the stripe is no whole backup", "give the stripes as they were stored, and verify the set"),
    3242: Row("", "this is no backup of SQL Server", "give the right stripes; the client must not change their bytes"),
    3254: Row("", "the stripe is empty", "give the right stripe"),
    3256: Row("", "the backup was interrupted and is not whole", "use another backup"),
    3258: Row("", "the stripe belongs to another media set", "give stripes of one backup only"),
    3261: Row("", "number of devices or features do not fit", "name as many devices as the set has"),
    4208: Row("", "the database is in the simple recovery model", "back up no log, or use the full recovery model"),
    4214: Row("", "there is no full backup to which a log backup could be made", "make a full backup first"),
    4305: Row("", "the log backup begins too late", "restore the log backups before it first"),
    4326: Row("", "the log backup ends too early", "go on with a later one"),
    18210: Row("", "the server's routine that is named failed on a virtual device; the error log's word for it",
               "look at its operating system error, and at the client's own"),
    18456: Row("", "the server refused the login", "check name and password, and that SQL logins are allowed"),
}  # fmt: skip

_WIN32_FACILITY = 0x80070000
# As SQL Server prints them: "Operating system error 995(The ...)", "failed: 112(There ...)", "0x80070002(failed ...)".
_IN_TEXT = re.compile(r"(?<![\w.])(0x[0-9a-fA-F]{8}|-\d{7,10})(?!\w)|(?:\berror |: )(\d{1,5})(?=\(\D)")


def row_of_hresult(code: int) -> Row | None:
    """What an HRESULT means: of the interface, of COM, or a Win32 code in its form; None where it is unknown."""
    code &= 0xFFFFFFFF
    row = VDI.get(code) or HRESULT.get(code)
    if row is None and code & 0xFFFF0000 == _WIN32_FACILITY and (win32 := WIN32.get(code & 0xFFFF)):
        row = Row(win32.name, win32.cause, win32.remedy)
    return row


def explain(code: int | str) -> list[Explanation]:
    """Everything that a number or a name can mean.

    Parameters
    ----------
    code : int or str
        An HRESULT, signed or not (``0x80770004``, ``-2139684860``), a Win32 code, a message number, or a name.

    Returns
    -------
    list of Explanation
        Empty where it is unknown.
    """
    if isinstance(code, str):
        try:
            code = int(code, 0)
        except ValueError:
            return _named(str(code))
    if code < 0 or code >= 0x80000000:
        code &= 0xFFFFFFFF
        row = row_of_hresult(code)
        return [Explanation(f"0x{code:08X}", *row)] if row else []
    found = []
    if code in WIN32:
        win32 = WIN32[code]
        found.append(Explanation(str(code), win32.name, win32.cause, win32.remedy))
    if code in SQL:
        found.append(Explanation(f"Msg {code}", *SQL[code]))
    return found


def codes_in(text: str) -> list[Explanation]:
    """The operating system errors and HRESULTs that a message of the server mentions, each once."""
    found: list[Explanation] = []
    for hresult, win32 in _IN_TEXT.findall(text):
        for entry in explain(hresult or win32):
            if entry not in found and not entry.code.startswith("Msg"):
                found.append(entry)
    return found


def _named(name: str) -> list[Explanation]:
    name = name.strip().upper()
    spellings = {name, f"VD_E_{name}", f"ERROR_{name}"}
    found = [Explanation(f"0x{code:08X}", *row) for code, row in {**VDI, **HRESULT}.items() if row.name in spellings]
    for code, row in WIN32.items():
        if row.name in spellings:
            found.append(Explanation(str(code), row.name, row.cause, row.remedy))
    return found
