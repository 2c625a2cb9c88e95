"""The stand-in in a process of its own: one order on standard input, messages and outcome on standard output.

Standard input stays open as long as whoever gave the order lives; this process does not outlive him.
"""

import json
import os
import sys
import threading

from .statements import execute


def main() -> None:
    order = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_master, daemon=True).start()
    error = execute(order, lambda text: _tell({"message": text}))
    if error is None:
        _tell({"done": True})
    else:
        _tell({"error": error.messages, "number": error.number})


def _end_with_master() -> None:
    # The descriptor itself: this thread must not hold the stream's lock when the interpreter ends.
    while os.read(0, 4096):
        pass
    os._exit(1)


def _tell(said: dict) -> None:
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
