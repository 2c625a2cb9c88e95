"""Runs a job in a process of its own, and holds it where a test says; not a test itself.

Argument: a JSON object with ``run`` ("backup", "restore" or "cli"), its ``args`` and ``kwargs``, and ``hold``: a phase,
or "mapped" for the first Write of a backup. There it says {"held": ...} on standard output and goes on after a line on
standard input. At the end it says how the job ended.
"""

import json
import os
import sys
import threading
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import vdi_ext
from vdi_ext import cli

order = json.loads(sys.argv[1])
once = threading.Lock()


def say(**said: object) -> None:
    os.write(1, json.dumps(said).encode() + b"\n")


def children() -> list[int]:
    return [int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]


def hold(where: str, **more: object) -> None:
    if once.acquire(blocking=False):
        say(held=where, children=children(), **more)
        sys.stdin.buffer.readline()


def progress(event: vdi_ext.jobs.ProgressEvent) -> None:
    if event.phase == order["hold"] and (event.phase != "transferring" or event.bytes_done):
        hold(event.phase)


def inspect(device_set: vdi_ext.VirtualDeviceSet, device: int, command: vdi_ext.Command) -> None:
    if order["hold"] == "mapped":
        handle = asdict(device_set.get_buffer_handle(command))
        hold("mapped", handle={**handle, "set_id": handle["set_id"].hex() if handle["set_id"] else None})


@contextmanager
def held_progress(options: object):
    yield progress


def main() -> int:
    if order["run"] == "cli":
        cli._progress = held_progress
        return cli.main(order["args"])
    kwargs = dict(order.get("kwargs", {}), progress=progress)
    if order["run"] == "backup":
        kwargs["inspect"] = inspect
    try:
        getattr(vdi_ext.jobs, order["run"])(*order["args"], **kwargs)
    except Exception as error:
        say(ended=type(error).__name__, message=str(error), notes=getattr(error, "__notes__", []))
        return 1
    say(ended="well")
    return 0


sys.exit(main())
