"""The stand-in in a process of its own: one order on standard input, messages and outcome on standard output.

Standard input stays open as long as whoever gave the order lives and waits: its end ends the statement.
"""

import json
import os
import sys
import threading

from .statements import StandIn

_GRACE = 4.0  # seconds that a cancelled statement may take to clean up


def main() -> None:
    # The descriptor itself: a thread that is caught in a stream's lock would hold up the interpreter's exit.
    line = b""
    while not line.endswith(b"\n"):
        if not (piece := os.read(0, 65536)):
            return
        line += piece
    server = StandIn(json.loads(line))
    threading.Thread(target=_watch, args=(server,), name="vdi-watch", daemon=True).start()
    error = server.execute(lambda text: _tell({"message": text}))
    _tell({"error": error.messages, "number": error.number} if error else {"done": True})


def _watch(server: StandIn) -> None:
    while os.read(0, 4096):
        pass
    server.cancel()
    threading.Event().wait(_GRACE)
    os._exit(1)


def _tell(said: dict) -> None:
    try:
        os.write(1, json.dumps(said).encode() + b"\n")
    except BrokenPipeError:
        sys.exit(1)  # nobody is left to hear it
