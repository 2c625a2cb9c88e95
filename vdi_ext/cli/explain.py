"""``vdi-ext explain``, and what every error of the program adds to its text."""

import argparse
from typing import Any

from .. import jobs
from ..codes import Explanation, codes_in, explain
from . import output
from .exits import EXIT_OK
from .options import new_command

_SAYS_NOTHING = (3013, 3041)  # another message says why


def add(commands: Any) -> None:
    added = new_command(commands, "explain", _explain, "say what a code or message number means, and what helps")
    added.add_argument("code", metavar="CODE", nargs="+", type=_code,
                       help="0x80770004, -2139684860, 995, 3201, VD_E_ABORT ...")  # fmt: skip


def explanations(error: BaseException) -> list[Explanation]:
    """What to add to the text of an error: the codes that the server's messages carry, else its message number."""
    if not isinstance(error, jobs.SQLError):
        return []
    found = codes_in(" ".join(error.messages))
    if not found and error.number is not None and error.number not in _SAYS_NOTHING:
        found = [entry for entry in explain(error.number) if entry.code.startswith("Msg")]
    return found


def _code(text: str) -> list[Explanation]:
    found = explain(text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no code or message number that is known here")
    return found


def _explain(options: argparse.Namespace) -> int:
    for entry in [entry for found in options.code for entry in found]:
        if options.json:
            output.print_json({"event": "explanation", **entry.to_dict()})
        else:
            print(entry)
    return EXIT_OK
