"""Messages of the stand-in: numbers, severities and texts as SQL Server has them in sys.messages.

Texts are those that Microsoft documents under "Database engine events and errors"; `%`-fields became `{}`.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from ..codes import WIN32

# number: (severity, text)
_TEXTS = {
    102: (15, "Incorrect syntax near '{}'."),
    103: (15, "The {} that starts with '{}' is too long. Maximum length is {}."),
    105: (15, "Unclosed quotation mark after the character string '{}'."),
    113: (15, "Missing end comment mark '*/'."),
    134: (15, "The variable name '{}' has already been declared. Variable names must be unique within a query batch or "
               "stored procedure."),
    137: (15, 'Must declare the scalar variable "{}".'),
    155: (15, "'{}' is not a recognized {} option."),
    156: (15, "Incorrect syntax near the keyword '{}'."),
    195: (15, "'{}' is not a recognized {}."),
    201: (16, "Procedure or function '{}' expects parameter '{}', which was not supplied."),
    214: (16, "Procedure expects parameter '{}' of type '{}'."),
    241: (16, "Conversion failed when converting date and/or time from character string."),
    319: (15, "Incorrect syntax near the keyword '{}'. If this statement is a common table expression, an "
              "xmlnamespaces clause or a change tracking context clause, the previous statement must be terminated "
              "with a semicolon."),
    596: (21, "Cannot continue the execution because the session is in the kill state."),
    701: (17, "There is insufficient system memory in resource pool 'default' to run this query."),
    911: (16, "Database '{}' does not exist. Make sure that the name is entered correctly."),
    1038: (15, "An object or column name is missing or empty."),
    1844: (16, "{} is not supported on {}."),
    2812: (16, "Could not find stored procedure '{}'."),
    3013: (16, "{} is terminating abnormally."),
    3014: (10, "{} successfully processed {} pages in {}.{:03d} seconds ({}.{:03d} MB/sec)."),
    3015: (16, "{} is not yet implemented."),
    3021: (16, "Cannot perform a backup or restore operation within a transaction."),
    3023: (16, "Backup, file manipulation operations (such as ALTER DATABASE ADD FILE) and encryption changes on a "
               "database must be serialized. Reissue the statement after the current backup or file manipulation "
               "operation is completed."),
    3031: (16, "Option '{}' conflicts with option(s) '{}'. Remove the conflicting option and reissue the statement."),
    3032: (16, "One or more of the options ({}) are not supported for this statement. Review the documentation for "
               "supported options."),
    3041: (16, "BACKUP failed to complete the command {}. Check the backup application log for detailed messages."),
    3044: (16, "Invalid zero-length device name. Reissue the BACKUP statement with a valid device name."),
    3057: (16, "Invalid device name. The length of the device name provided exceeds supported limit (maximum length "
               "is:{}). Reissue the BACKUP statement with a valid device name."),
    3101: (16, "Exclusive access could not be obtained because the database is in use."),
    3129: (16, 'The contents of the file "{}" are not consistent with a transition into the restore sequence. A '
               "restore from a backup set may be required."),
    3132: (16, "The media set has {} media families but only {} are provided. All members must be provided."),
    3135: (16, "The backup set in file '{}' was created by {} and cannot be used for this restore operation."),
    3159: (16, 'The tail of the log for the database "{}" has not been backed up. Use BACKUP LOG WITH NORECOVERY to '
               "backup the log if it contains work you do not want to lose. Use the WITH REPLACE or WITH STOPAT clause "
               "of the RESTORE statement to just overwrite the contents of the log."),
    3183: (16, 'RESTORE detected an error on page ({}:{}) in database "{}" as read from the backup set.'),
    3187: (16, "RESTORE WITH CHECKSUM cannot be specified because the backup set does not contain checksum "
               "information."),
    3189: (16, "Damage to the backup set was detected."),
    3196: (16, "RESTORE master WITH SNAPSHOT is not supported. To restore master from a snapshot backup, stop the "
               "service and copy the data and log file."),
    3197: (10, "I/O is frozen on database {}. No user action is required. However, if I/O is not resumed promptly, you "
               "could cancel the backup."),
    3198: (10, "I/O was resumed on database {}. No user action is required."),
    3201: (16, "Cannot open backup device '{}'. Operating system error {}."),
    3202: (16, 'Write on "{}" failed: {}'),
    3203: (16, 'Read on "{}" failed: {}'),
    3204: (16, "The backup or restore was aborted."),
    3205: (16, "Too many backup devices specified for backup or restore; only {} are allowed."),
    3208: (16, "Unexpected end of file while reading beginning of backup set. Confirm that the media contains a valid "
               "SQL Server backup set, and see the console error log for more details."),
    3211: (10, "{} percent processed."),
    3217: (16, "Invalid value specified for {} parameter."),
    3218: (16, "Backup mirroring is not available in this edition of SQL Server. See Books Online for more details on "
               "feature support in different SQL Server editions."),
    3222: (16, "The WriteFileEx system function executed on file '{}' only wrote {} bytes, expected {}."),
    3227: (16, 'The backup media on "{}" is part of media family {} which has already been processed on "{}". Ensure '
               "that backup devices are correctly specified. For tape devices, ensure that the correct volumes are "
               "loaded."),
    3229: (16, "Request for device '{}' timed out."),
    3231: (16, 'The media loaded on "{}" is formatted to support {} media families, but {} media families are expected '
               "according to the backup device specification."),
    3241: (16, "The media family on device '{}' is incorrectly formed. SQL Server cannot process this media family."),
    3242: (16, "The file on device '{}' is not a valid Microsoft Tape Format backup set."),
    3250: (16, "The value '{}' is not within range for the {} parameter."),
    3253: (16, "The block size parameter must supply a value that is a power of 2."),
    3254: (16, "The volume on device '{}' is empty."),
    3256: (16, "The backup set on device '{}' was terminated while it was being created and is incomplete. RESTORE "
               "sequence is terminated abnormally."),
    3257: (16, "There is insufficient free space on disk volume '{}' to create the database. The database requires {} "
               "additional free bytes, while only {} bytes are available."),
    3258: (16, 'The volume on the device "{}" is not part of the media set that is currently being processed. Ensure '
               "that the backup devices are loaded with the correct media."),
    3261: (16, "SQL Server cannot use the virtual device configuration."),
    3271: (16, 'A nonrecoverable I/O error occurred on file "{}:" {}.'),
    3272: (16, "The '{}' device has a hardware sector size of {}, but the block size parameter specifies an "
               "incompatible override value of {}. Reissue the statement using a compatible block size."),
    3284: (16, "Filemark on device '{}' is not aligned. Re-issue the restore statement with the same blocksize used to "
               "create the backupset: '{}' looks like a possible value."),
    3902: (16, "The COMMIT TRANSACTION request has no corresponding BEGIN TRANSACTION."),
    3903: (16, "The ROLLBACK TRANSACTION request has no corresponding BEGIN TRANSACTION."),
    4002: (16, "The incoming tabular data stream (TDS) protocol stream is incorrect. The stream ended unexpectedly."),
    4035: (10, "Processed {} pages for database '{}', file '{}' on file {}."),
    4060: (11, 'Cannot open database "{}" requested by the login. The login failed.'),
    5701: (10, "Changed database context to '{}'."),
    5703: (10, "Changed language setting to {}."),
    6104: (16, "Cannot use KILL to kill your own process."),
    6106: (16, "Process ID {} is not an active process ID."),
    8003: (16, "The incoming request has too many parameters. The server supports a maximum of {} parameters. Reduce "
               "the number of parameters and resend the request."),
    8144: (16, "Procedure or function {} has too many arguments specified."),
    8145: (16, "{} is not a parameter for procedure {}."),
    8178: (16, "The parameterized query '{}' expects the parameter '{}', which was not supplied."),
    8179: (16, "Could not find prepared statement with handle {}."),
    18210: (16, "{}: {} failure on backup device '{}'. Operating system error {}."),
    18264: (10, "Database backed up. Database: {}, creation date(time): {}, pages dumped: {}, first LSN: {}, last LSN: "
                "{}, number of dump devices: {}, device information: ({}). This is an informational message only. No "
                "user action is required."),
    18267: (10, "Database was restored: Database: {}, creation date(time): {}, first LSN: {}, last LSN: {}, number of "
                "dump devices: {}, device information: ({}). Informational message. No user action required."),
    18452: (14, "Login failed. The login is from an untrusted domain and cannot be used with Integrated "
                "authentication."),
    18456: (14, "Login failed for user '{}'."),
}  # fmt: skip

@dataclass(frozen=True)
class Message:
    """One message to the driver or the error log.

    Parameters
    ----------
    number, severity, state : int
        Severity 10 and below informs; above it is an error.
    text : str
    line : int
        Of the batch, from 1.
    """

    number: int
    severity: int
    state: int
    text: str
    line: int = 1

    def __str__(self) -> str:
        return f"Msg {self.number}, Level {self.severity}, State {self.state}: {self.text}"


class SqlError(Exception):
    """A statement failed.

    Parameters
    ----------
    messages : tuple of Message
        All that the statement sent, information included, in their order.
    """

    def __init__(self, messages: tuple[Message, ...]) -> None:
        super().__init__(messages)
        self.messages = messages

    @property
    def errors(self) -> tuple[Message, ...]:
        """The messages that are errors."""
        return tuple(message for message in self.messages if message.severity > 10)

    @property
    def number(self) -> int:
        """Number of the first error."""
        return self.errors[0].number if self.errors else 0

    def __str__(self) -> str:
        return "\n".join(map(str, self.errors))


def message(number: int, *values: object, state: int = 1, line: int = 1) -> Message:
    """Make a message of the catalogue."""
    severity, text = _TEXTS[number]
    return Message(number, severity, state, text.format(*values), line)


@functools.cache
def _patterns() -> list[tuple[re.Pattern[str], int]]:
    found = []
    for number, (_, text) in _TEXTS.items():
        pieces = [re.escape(piece) for piece in re.split(r"\{[^}]*\}", text)]
        found.append((re.compile(".*?".join(pieces), re.DOTALL), number))
    return found


def recognize(text: str) -> int | None:
    """The number of a message of the catalogue by its text, for clients whose driver keeps the number back."""
    return next((number for pattern, number in _patterns() if pattern.fullmatch(text)), None)


def os_error(code: int) -> str:
    """An operating system error as SQL Server prints it; HRESULTs in hexadecimal."""
    low = code & 0xFFFF if code & 0xFFFF0000 == 0x80070000 else code
    text = WIN32[low].text if low in WIN32 else "failed to retrieve text for this error"
    number = f"0x{code:08x}" if code & 0x80000000 else str(code)
    return f"{number}({text})"
