"""Which exit code an error of a job gets."""

from .. import jobs
from ..errors import VDError
from .exits import EXIT_SQL, EXIT_STORAGE, EXIT_USAGE, EXIT_VDI, EXIT_VERIFICATION

#: Kind of error, in the order of asking (some are of several kinds) -> its word in JSON, its exit code.
KINDS: tuple[tuple[type[Exception], str, int], ...] = (
    (jobs.ArgumentError, "usage", EXIT_USAGE),
    (jobs.SQLError, "sql", EXIT_SQL),
    (jobs.VerificationError, "verification", EXIT_VERIFICATION),
    (VDError, "vdi", EXIT_VDI),
    (jobs.StorageError, "storage", EXIT_STORAGE),
    (OSError, "storage", EXIT_STORAGE),
)
KNOWN = tuple(kind for kind, _, _ in KINDS)


def word_of(error: BaseException) -> str:
    return next(word for kind, word, _ in KINDS if isinstance(error, kind))


def exit_code(error: BaseException) -> int:
    return next(code for kind, _, code in KINDS if isinstance(error, kind))
