"""Runs a job in a process of its own, and holds it where a test says; not a test itself.

Argument: a JSON object with ``run`` ("backup", "restore" or "cli"), its ``args`` and ``kwargs``, and ``hold``: a list
of phases, among them "mapped" for the first Write of a backup and "transferring" for its third. In each it says
{"held": ...} on standard output, once, and goes on after a line on standard input. At the end it says how it ended,
and with ``measure`` how much memory it and its children have used at most, in bytes.
"""

import json
import os
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

import vdi_ext
from vdi_ext import cli

order = json.loads(sys.argv[1])
pending = set(order["hold"])
writes: list[int] = []
one_at_a_time = threading.Lock()


def say(**said: object) -> None:
    os.write(1, json.dumps(said).encode() + b"\n")


def children() -> list[int]:
    found = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # the thread has ended
            found += map(int, (task / "children").read_text().split())
    return found


def peak() -> int:
    """Most memory used; the resource usage would count whoever started this process, too."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def hold(where: str, **more: object) -> None:
    with one_at_a_time:
        if where in pending:
            pending.discard(where)
            say(held=where, children=children(), **more)
            sys.stdin.buffer.readline()


def progress(event: vdi_ext.jobs.ProgressEvent) -> None:
    # While a command is held, its device cannot end; a report of progress may come when all of them have.
    if event.phase in pending and (event.phase != "transferring" or order["run"] != "backup"):
        hold(event.phase)


def inspect(device_set: vdi_ext.VirtualDeviceSet, device: int, command: vdi_ext.Command) -> None:
    if "mapped" in pending:
        handle = asdict(device_set.get_buffer_handle(command))
        hold("mapped", handle={**handle, "set_id": handle["set_id"].hex() if handle["set_id"] else None})
    writes.append(device)
    if len(writes) >= 3 and "transferring" in pending:
        hold("transferring")


@contextmanager
def held_progress(options: object):
    yield progress


def main() -> int:
    if order["run"] == "cli":
        cli.output.progress = held_progress
        return cli.main(order["args"])
    kwargs = dict(order.get("kwargs", {}), progress=progress)
    if order["run"] == "backup":
        kwargs["inspect"] = inspect
    try:
        getattr(vdi_ext.jobs, order["run"])(*order["args"], **kwargs)
    except Exception as error:
        say(ended=type(error).__name__, message=str(error), notes=getattr(error, "__notes__", []))
        return 1
    if "measure" in order:
        say(own=peak(), children=getrusage(RUSAGE_CHILDREN).ru_maxrss * 1024)
    say(ended="well")
    return 0


sys.exit(main())
