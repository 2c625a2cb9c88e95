"""Messages of the stand-in: numbers, severities and texts as SQL Server has them in sys.messages.

Texts are those that Microsoft documents under "Database engine events and errors"; `%`-fields became `{}`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..codes import WIN32

# number: (severity, text)
_TEXTS = {
    102: (15, "Incorrect syntax near '{}'."),
    103: (15, "The {} that starts with '{}' is too long. Maximum length is {}."),
    105: (15, "Unclosed quotation mark after the character string '{}'."),
    107: (15, "The column prefix '{}' does not match with a table name or alias name used in the query."),
    108: (15, "The ORDER BY position number {} is out of range of the number of items in the select list."),
    113: (15, "Missing end comment mark '*/'."),
    116: (16, "Only one expression can be specified in the select list when the subquery is not introduced with "
              "EXISTS."),
    134: (15, "The variable name '{}' has already been declared. Variable names must be unique within a query batch or "
               "stored procedure."),
    137: (15, 'Must declare the scalar variable "{}".'),
    141: (15, "A SELECT statement that assigns a value to a variable must not be combined with data-retrieval "
              "operations."),
    148: (15, "Incorrect time syntax in time string '{}' used with WAITFOR."),
    155: (15, "'{}' is not a recognized {} option."),
    156: (15, "Incorrect syntax near the keyword '{}'."),
    168: (15, "The floating point value '{}' is out of the range of computer representation (8 bytes)."),
    174: (15, "The {} function requires {} argument(s)."),
    191: (15, "Some part of your SQL statement is nested too deeply. Rewrite the query or break it up into smaller "
              "queries."),
    195: (15, "'{}' is not a recognized {}."),
    201: (16, "Procedure or function '{}' expects parameter '{}', which was not supplied."),
    205: (16, "All queries combined using a UNION, INTERSECT or EXCEPT operator must have an equal number of "
              "expressions in their target lists."),
    207: (16, "Invalid column name '{}'."),
    208: (16, "Invalid object name '{}'."),
    209: (16, "Ambiguous column name '{}'."),
    214: (16, "Procedure expects parameter '{}' of type '{}'."),
    217: (16, "Maximum stored procedure, function, trigger, or view nesting level exceeded (limit {})."),
    241: (16, "Conversion failed when converting date and/or time from character string."),
    243: (16, "Type {} is not a defined system type."),
    245: (16, "Conversion failed when converting the {} value '{}' to data type {}."),
    263: (16, "Must specify table to select from."),
    281: (16, "{} is not a valid style number when converting from datetime to a character string."),
    319: (15, "Incorrect syntax near the keyword '{}'. If this statement is a common table expression, an "
              "xmlnamespaces clause or a change tracking context clause, the previous statement must be terminated "
              "with a semicolon."),
    321: (15, '"{}" is not a recognized table hints option. If it is intended as a parameter to a table-valued '
              'function or to the CHANGETABLE function, ensure that your database compatibility mode is set to 90.'),
    402: (16, "The data types {} and {} are incompatible in the {} operator."),
    408: (16, "A constant expression was encountered in the {} list, position {}."),
    517: (16, "Adding a value to a '{}' column caused an overflow."),
    537: (16, "Invalid length parameter passed to the LEFT or SUBSTRING function."),
    596: (21, "Cannot continue the execution because the session is in the kill state."),
    628: (16, "Cannot issue SAVE TRANSACTION when there is no active transaction."),
    701: (17, "There is insufficient system memory in resource pool 'default' to run this query."),
    911: (16, "Database '{}' does not exist. Make sure that the name is entered correctly."),
    927: (14, "Database '{}' cannot be opened. It is in the middle of a restore."),
    1001: (15, "Line {}: Length or precision specification {} is invalid."),
    1007: (15, "The number '{}' is out of the range for numeric representation (maximum precision 38)."),
    1011: (16, "The correlation name '{}' is specified multiple times in a FROM clause."),
    1038: (15, "An object or column name is missing or empty."),
    1834: (16, "The file '{}' cannot be overwritten.  It is being used by database '{}'."),
    1844: (16, "{} is not supported on {}."),
    2732: (16, "Error number {} is invalid. The number must be from {} through {} and it cannot be 50000."),
    2754: (16, "Error severity levels greater than {} can only be specified by members of the sysadmin role, using "
               "the WITH LOG option."),
    2786: (16, "The data type of substitution parameter {} does not match the expected type of the format "
               "specification."),
    2812: (16, "Could not find stored procedure '{}'."),
    3009: (16, "Could not insert a backup or restore history/detail record in the msdb database. This may indicate a "
               "problem with the msdb database. The backup/restore operation was still successful."),
    3013: (16, "{} is terminating abnormally."),
    3014: (10, "{} successfully processed {} pages in {}.{:03d} seconds ({}.{:03d} MB/sec)."),
    3015: (16, "{} is not yet implemented."),
    3021: (16, "Cannot perform a backup or restore operation within a transaction."),
    3023: (16, "Backup, file manipulation operations (such as ALTER DATABASE ADD FILE) and encryption changes on a "
               "database must be serialized. Reissue the statement after the current backup or file manipulation "
               "operation is completed."),
    3024: (16, "You can only perform a full backup of the master database. Use BACKUP DATABASE to back up the "
           "entire master database."),
    3031: (16, "Option '{}' conflicts with option(s) '{}'. Remove the conflicting option and reissue the statement."),
    3032: (16, "One or more of the options ({}) are not supported for this statement. Review the documentation for "
               "supported options."),
    3035: (16, 'Cannot perform a differential backup for database "{}", because a current database backup does '
           "not exist. Perform a full database backup by reissuing BACKUP DATABASE, omitting the WITH "
           "DIFFERENTIAL option."),
    3036: (16, 'The database "{}" is in warm-standby state (set by executing RESTORE WITH STANDBY) and cannot be '
           "backed up until the entire restore sequence is completed."),
    3041: (16, "BACKUP failed to complete the command {}. Check the backup application log for detailed messages."),
    3044: (16, "Invalid zero-length device name. Reissue the BACKUP statement with a valid device name."),
    3057: (16, "Invalid device name. The length of the device name provided exceeds supported limit (maximum length "
               "is:{}). Reissue the BACKUP statement with a valid device name."),
    3101: (16, "Exclusive access could not be obtained because the database is in use."),
    3102: (16, "{} cannot process database '{}' because it is in use by this session. It is recommended that the "
           "master database be used when performing this operation."),
    3108: (16, "To restore the master database, the server must be running in single-user mode. For information "
           'on starting in single-user mode, see "How to: Start an Instance of SQL Server (sqlservr.exe)" in '
           "Books Online."),
    3117: (16, "The log or differential backup cannot be restored because no files are ready to rollforward."),
    3118: (16, 'The database "{}" does not exist. RESTORE can only create a database when restoring either a full '
           "backup or a file backup of the primary file."),
    3119: (16, "Problems were identified while planning for the RESTORE statement. Previous messages provide details."),
    3120: (16, "This backup set will not be restored because all data has already been restored to a point beyond "
           "the time covered by this backup set."),
    3129: (16, 'The contents of the file "{}" are not consistent with a transition into the restore sequence. A '
               "restore from a backup set may be required."),
    3132: (16, "The media set has {} media families but only {} are provided. All members must be provided."),
    3135: (16, "The backup set in file '{}' was created by {} and cannot be used for this restore operation."),
    3136: (16, "This differential backup cannot be restored because the database has not been restored to the correct "
               "earlier state."),
    3142: (16, 'File "{}" cannot be restored over the existing "{}". Reissue the RESTORE statement using WITH '
           "REPLACE to overwrite pre-existing files, or WITH MOVE to identify an alternate location."),
    3145: (16, "The STOPAT option is not supported for databases that use the SIMPLE recovery model."),
    3147: (16, "Backup and restore operations are not allowed on database tempdb."),
    3153: (16, "The database is already fully recovered."),
    3154: (16, "The backup set holds a backup of a database other than the existing '{}' database."),
    3156: (16, "File '{}' cannot be restored to '{}'. Use WITH MOVE to identify a valid location for the file."),
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
    3234: (16, "Logical file '{}' is not part of database '{}'. Use RESTORE FILELISTONLY to list the logical file "
           "names."),
    3241: (16, "The media family on device '{}' is incorrectly formed. SQL Server cannot process this media family."),
    3242: (16, "The file on device '{}' is not a valid Microsoft Tape Format backup set."),
    3246: (16, "The media family on device '{}' is marked as nonappendable. Reissue the statement using the INIT "
               "option to overwrite the media."),
    3247: (16, "The volume on device '{}' has the wrong media sequence number ({}). Remove it and insert volume {}."),
    3249: (16, "The volume on device '{}' is a continuation volume for the backup set. Remove it and insert the volume "
               "holding the start of the backup set."),
    3250: (16, "The value '{}' is not within range for the {} parameter."),
    3253: (16, "The block size parameter must supply a value that is a power of 2."),
    3254: (16, "The volume on device '{}' is empty."),
    3256: (16, "The backup set on device '{}' was terminated while it was being created and is incomplete. RESTORE "
               "sequence is terminated abnormally."),
    3257: (16, "There is insufficient free space on disk volume '{}' to create the database. The database requires {} "
               "additional free bytes, while only {} bytes are available."),
    3258: (16, 'The volume on the device "{}" is not part of the media set that is currently being processed. Ensure '
               "that the backup devices are loaded with the correct media."),
    3260: (16, "An internal buffer has become full."),
    3261: (16, "SQL Server cannot use the virtual device configuration."),
    3262: (10, "The backup set on file {} is valid."),
    3263: (16, "Cannot use the volume on device '{}' as a continuation volume. It is sequence number {} of family {} "
               "for the current media set. Insert a new volume, or sequence number {} of family {} for the current "
               "set."),
    3266: (16, 'The backup data at the end of "{}" is incorrectly formatted. Backup sets on the media might be damaged '
               "and unusable. To determine the backup sets on the media, use RESTORE HEADERONLY. To determine the "
               "usability of the backup sets, run RESTORE VERIFYONLY. If all of the backup sets are incomplete, "
               "reformat the media using BACKUP WITH FORMAT, which destroys all the backup sets."),
    3268: (16, "Cannot use the backup file '{}' because it was originally formatted with sector size {} and is now on "
               "a device with sector size {}."),
    3271: (16, 'A nonrecoverable I/O error occurred on file "{}:" {}.'),
    3272: (16, "The '{}' device has a hardware sector size of {}, but the block size parameter specifies an "
               "incompatible override value of {}. Reissue the statement using a compatible block size."),
    3284: (16, "Filemark on device '{}' is not aligned. Re-issue the restore statement with the same blocksize used to "
               "create the backupset: '{}' looks like a possible value."),
    3902: (16, "The COMMIT TRANSACTION request has no corresponding BEGIN TRANSACTION."),
    3903: (16, "The ROLLBACK TRANSACTION request has no corresponding BEGIN TRANSACTION."),
    4002: (16, "The incoming tabular data stream (TDS) protocol stream is incorrect. The stream ended unexpectedly."),
    4035: (10, "Processed {} pages for database '{}', file '{}' on file {}."),
    4037: (16, 'The user-specified MEDIANAME "{}" does not match the MEDIANAME "{}" of the device "{}".'),
    4038: (16, "Cannot find file ID {} on device '{}'."),
    4060: (11, 'Cannot open database "{}" requested by the login. The login failed.'),
    4104: (16, 'The multi-part identifier "{}" could not be bound.'),
    4121: (16, 'Cannot find either column "{}" or the user-defined function or aggregate "{}", or the name is '
               'ambiguous.'),
    4145: (15, "An expression of non-boolean type specified in a context where a condition is expected, near '{}'."),
    4208: (16, "The statement {} is not allowed while the recovery model is SIMPLE. Use BACKUP DATABASE or change the "
               "recovery model using ALTER DATABASE."),
    4212: (16, "Cannot back up the log of the master database. Use BACKUP DATABASE instead."),
    4214: (16, "BACKUP LOG cannot be performed because there is no current database backup."),
    4220: (16, "Cannot back up the log of the model database with NORECOVERY option."),
    4305: (16, "The log in this backup set begins at LSN {}, which is too recent to apply to the database. An "
           "earlier log backup that includes LSN {} can be restored."),
    4322: (10, "This backup set contains records that were logged before the designated point in time. The "
           "database is being left in the restoring state so that more roll forward can be performed."),
    4326: (16, "The log in this backup set terminates at LSN {}, which is too early to apply to the database. A "
           "more recent log backup that includes LSN {} can be restored."),
    4330: (16, "This backup set cannot be applied because it is on a recovery path that is inconsistent with the "
           "database. The recovery path is the sequence of data and log backups that have brought the database to "
           "a particular recovery point. Find a compatible backup to restore, or restore the rest of the database "
           "to match a recovery point within this backup set, which will restore the database to a different "
           "point in time.  For more information about recovery paths, see SQL Server Books Online."),
    4335: (16, "The specified STOPAT time is too early. All or part of the database is already rolled forward "
           "beyond that point."),
    4338: (16, "The STOPAT clause specifies a point too early to allow this backup set to be restored. Choose a "
           "different stop point or use RESTORE DATABASE WITH RECOVERY to recover at the current point."),
    4353: (16, "Conflicting file relocations have been specified for file '{}'. Only a single WITH MOVE clause "
           "should be specified for any logical file name."),
    5011: (14, "User does not have permission to alter database '{}', the database does not exist, or the database is "
               "not in a state that allows access checks."),
    5058: (16, "Option '{}' cannot be set in database '{}'."),
    5069: (16, "{} statement failed."),
    5133: (16, 'Directory lookup for the file "{}" failed with the operating system error {}.'),
    5701: (10, "Changed database context to '{}'."),
    5703: (10, "Changed language setting to {}."),
    6101: (16, "Session ID {} is not valid."),
    6104: (16, "Cannot use KILL to kill your own process."),
    6106: (16, "Process ID {} is not an active process ID."),
    6120: (16, "Status report cannot be obtained. Rollback operation for Process ID {} is not in progress."),
    8003: (16, "The incoming request has too many parameters. The server supports a maximum of {} parameters. Reduce "
               "the number of parameters and resend the request."),
    8114: (16, "Error converting data type {} to {}."),
    8115: (16, "Arithmetic overflow error converting {} to data type {}."),
    8117: (16, "Operand data type {} is invalid for {} operator."),
    8134: (16, "Divide by zero error encountered."),
    8144: (16, "Procedure or function {} has too many arguments specified."),
    8145: (16, "{} is not a parameter for procedure {}."),
    8155: (16, "No column name was specified for column {} of '{}'."),
    8156: (16, "The column '{}' was specified multiple times for '{}'."),
    8158: (16, "'{}' has more columns than were specified in the column list."),
    8159: (16, "'{}' has fewer columns than were specified in the column list."),
    8162: (16, 'The formal parameter "{}" was not declared as an OUTPUT parameter, but the actual parameter passed in '
               'requested output.'),
    8169: (16, "Conversion failed when converting from a character string to uniqueidentifier."),
    8178: (16, "The parameterized query '{}' expects the parameter '{}', which was not supplied."),
    8179: (16, "Could not find prepared statement with handle {}."),
    8180: (16, "Statement(s) could not be prepared."),
    8623: (16, "The query processor ran out of internal resources and could not produce a query plan. This is a rare "
               "event and only expected for extremely complex queries or queries that reference a very large number "
               "of tables or partitions. Please simplify the query. If you believe you have received this message in "
               "error, contact Customer Support Services for more information."),
    10753: (15, "The function '{}' must have an OVER clause."),
    18210: (16, "{}: {} failure on backup device '{}'. Operating system error {}."),
    18264: (10, "Database backed up. Database: {}, creation date(time): {}, pages dumped: {}, first LSN: {}, last LSN: "
                "{}, number of dump devices: {}, device information: ({}). This is an informational message only. No "
                "user action is required."),
    18265: (10, "Log was backed up. Database: {}, creation date(time): {}, first LSN: {}, last LSN: {}, number of "
            "dump devices: {}, device information: ({}). This is an informational message only. No user action is "
            "required."),
    18267: (10, "Database was restored: Database: {}, creation date(time): {}, first LSN: {}, last LSN: {}, number of "
                "dump devices: {}, device information: ({}). Informational message. No user action required."),
    18268: (10, "Log was restored. Database: {}, creation date(time): {}, first LSN: {}, last LSN: {}, number of "
            "dump devices: {}, device information: ({}). This is an informational message. No user action is "
            "required."),
    18270: (10, "Database differential changes were backed up. Database: {}, creation date(time): {}, pages "
            "dumped: {}, first LSN: {}, last LSN: {}, full backup LSN: {}, number of dump devices: {}, device "
            "information: ({}). This is an informational message. No user action is required."),
    18271: (10, "Database changes were restored. Database: {}, creation date(time): {}, first LSN: {}, last LSN: "
            "{}, number of dump devices: {}, device information: ({}). This is an informational message. No user "
            "action is required."),
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


_patterns: list[tuple[re.Pattern[str], int]] = []  # of all texts, made when first wanted


def _compile() -> None:
    found = []
    for number, (_, text) in _TEXTS.items():
        pieces = [re.escape(piece) for piece in re.split(r"\{[^}]*\}", text)]
        found.append((re.compile(".*?".join(pieces), re.DOTALL), number))
    _patterns[:] = found


def recognize(text: str) -> int | None:
    """The number of a message of the catalogue by its text, for clients whose driver keeps the number back."""
    if not _patterns:
        _compile()
    return next((number for pattern, number in _patterns if pattern.fullmatch(text)), None)


def os_error(code: int) -> str:
    """An operating system error as SQL Server prints it; HRESULTs in hexadecimal."""
    low = code & 0xFFFF if code & 0xFFFF0000 == 0x80070000 else code
    text = WIN32[low].text if low in WIN32 else "failed to retrieve text for this error"
    number = f"0x{code:08x}" if code & 0x80000000 else str(code)
    return f"{number}({text})"
