"""A secondary: maps the buffers whose handles arrive on standard input, and hashes them whenever asked; not a test."""

import hashlib
import json
import sys

from vdi_ext import BufferHandle, VDError, VirtualDeviceSet


def say(**said: object) -> None:
    print(json.dumps(said), flush=True)


def lines():
    return (json.loads(line) for line in sys.stdin)


def serve(fields: dict, orders) -> None:
    """Keep one buffer mapped until told to let go; hash it on each order meanwhile."""
    handle = BufferHandle(**{**fields, "set_id": bytes.fromhex(fields["set_id"]) if fields["set_id"] else None})
    with VirtualDeviceSet.open_in_secondary(handle.set_name, provider="embedded") as device_set:
        mapped = device_set.map_buffer_handle(handle)
        with memoryview(mapped) as view:
            say(mapped=hashlib.sha256(view).hexdigest())
            for order in orders:
                say(again=hashlib.sha256(view).hexdigest())
                if order == "go":
                    break
        try:
            mapped.release()
            released = "in time"
        except VDError as error:  # the command was completed meanwhile, or the set aborted
            released = type(error).__name__
    say(released=released)


say(ready=True)
orders = lines()
for order in orders:
    try:
        serve(order, orders)
    except VDError as error:
        say(failed=type(error).__name__, message=str(error))
