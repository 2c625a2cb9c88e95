"""The command line: ``vdi-ext backup | restore | recover | serve``, one module for each."""

from .exits import (
    EXIT_CODES,
    EXIT_DOCTOR,
    EXIT_INTERNAL,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_SQL,
    EXIT_STORAGE,
    EXIT_TERMINATED,
    EXIT_USAGE,
    EXIT_VDI,
    EXIT_VERIFICATION,
)
from .output import terminal_progress
from .program import Terminated, main

__all__ = [
    "EXIT_CODES",
    "EXIT_DOCTOR",
    "EXIT_INTERNAL",
    "EXIT_INTERRUPTED",
    "EXIT_OK",
    "EXIT_SQL",
    "EXIT_STORAGE",
    "EXIT_TERMINATED",
    "EXIT_USAGE",
    "EXIT_VDI",
    "EXIT_VERIFICATION",
    "Terminated",
    "main",
    "terminal_progress",
]
