"""A backup client in Python on a library that the test names, and with no other library of the interface.

library_client.py LIBRARY backup|restore NAME DEVICES PREFIX    all devices, a thread each, files PREFIX.0 ...
library_client.py LIBRARY pooled NAME DEVICES PREFIX            backup; threads of a pool complete the commands
library_client.py LIBRARY primary NAME DEVICES PREFIX           the first device only; closes at the end of its input
library_client.py LIBRARY secondary NAME NUMBER PREFIX          one device of a primary's set
library_client.py LIBRARY owner NAME 1 PREFIX                   backup; another process copies the buffers, by handle
library_client.py LIBRARY reader NAME 0 PREFIX                  that process; handles come on standard input
library_client.py LIBRARY idle NAME 1 PREFIX                    waits in vain for a second command

LIBRARY is a path, "system", or "default". Every line on standard output is JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import vdi_ext as vdi
from vdi_ext import CommandCode, CompletionCode, DeviceSetConfig, Feature

WAIT = 30.0  # seconds; only a bound
DURABLE = (CommandCode.WRITE, CommandCode.FLUSH, CommandCode.CLEAR_ERROR)


def say(event: str, **more: object) -> None:
    print(json.dumps({"event": event, **more}), flush=True)


def device_name(name: str, number: int) -> str:
    return f"{name}-{number}" if number else name


def answer(command: vdi.Command, fd: int, offset: int) -> None:
    """Store or fetch the bytes of a command at their place in the file."""
    if command.code is CommandCode.WRITE:
        assert os.pwrite(fd, command, offset) == command.size
        command.complete()
    elif command.code is CommandCode.READ:
        count = os.preadv(fd, [command], offset)
        command.complete(CompletionCode.SUCCESS if count == command.size else CompletionCode.HANDLE_EOF, count)
    elif command.code is CommandCode.FLUSH:
        os.fsync(fd)
        command.complete()
    elif command.code is CommandCode.CLEAR_ERROR:
        command.complete()
    else:
        command.complete(CompletionCode.NOT_SUPPORTED)


def serve(vds: vdi.VirtualDeviceSet, number: int, prefix: str, pool: ThreadPoolExecutor | None = None) -> None:
    device = vds.open_device(device_name(vds.name, number))
    fd = os.open(f"{prefix}.{number}", os.O_RDWR | os.O_CREAT, 0o600)
    offset = 0
    for command in device:
        size = command.size if command.code in (CommandCode.READ, CommandCode.WRITE) else 0
        if pool is None:
            answer(command, fd, offset)
        else:
            pool.submit(answer, command, fd, offset)
        offset += size
        del command
    assert list(device) == []  # it stays closed
    os.close(fd)


def serve_all(vds: vdi.VirtualDeviceSet, count: int, prefix: str, pool: ThreadPoolExecutor | None) -> None:
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            serve(vds, number, prefix, pool)
        except BaseException as error:  # raised again below
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert not failures, failures


def lend(vds: vdi.VirtualDeviceSet, library: str, prefix: str) -> None:
    """Hand every buffer to another process by its handle, and complete the command when that has copied it."""
    command_line = [sys.executable, __file__, library, "reader", vds.name, "0", prefix]
    with subprocess.Popen(command_line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        for command in vds.open_device():
            if command.code is CommandCode.WRITE:
                handle = vds.get_buffer_handle(command)
                print(json.dumps([handle.value, handle.size, handle.readonly]), file=reader.stdin, flush=True)
                assert reader.stdout.readline() == "copied\n"
            command.complete(*([] if command.code in DURABLE else [CompletionCode.NOT_SUPPORTED]))
        reader.stdin.close()
    assert reader.returncode == 0


def read(vds: vdi.VirtualDeviceSet, prefix: str) -> None:
    """Copy the buffers whose handles come in."""
    with open(f"{prefix}.0", "wb") as file:
        for line in sys.stdin:
            handle = vdi.BufferHandle(*json.loads(line), vds.name)
            try:
                vds.map_buffer_handle(handle)
                raise AssertionError("believed")
            except vdi.VDNotSupportedError:
                pass
            with vds.map_buffer_handle(handle, trusted=True) as mapped:
                file.write(mapped)
            print("copied", flush=True)


def idle(vds: vdi.VirtualDeviceSet, prefix: str) -> None:
    """Wait for a second command in vain."""
    device = vds.open_device()
    with device.get_command(WAIT) as command, open(f"{prefix}.0", "wb") as file:  # held meanwhile
        begun = time.monotonic()
        for _ in range(20):
            try:
                device.get_command(0.05)
                raise AssertionError("a second command")
            except vdi.VDTimeoutError:
                pass
        say("nothing", seconds=time.monotonic() - begun)
        answer(command, file.fileno(), 0)
    assert list(device) == []


def main() -> None:
    library, what, name, number, prefix = sys.argv[1:]
    provider = {"system": "system", "default": None}.get(library, library)
    if what in ("secondary", "reader"):
        with vdi.VirtualDeviceSet.open_in_secondary(name, provider=provider) as vds:
            read(vds, prefix) if what == "reader" else serve(vds, int(number), prefix)
        return
    count = int(number)
    with vdi.VirtualDeviceSet.create(name, DeviceSetConfig(device_count=count), provider=provider) as vds:
        begun = time.monotonic()
        try:
            vds.get_configuration(0.2)
        except vdi.VDTimeoutError:
            say("not configured", seconds=time.monotonic() - begun)
        say("created")
        config = vds.get_configuration(WAIT)
        assert config.features & (Feature.READ_MEDIA if what == "restore" else Feature.WRITE_MEDIA)
        say("configured")
        if what == "idle":
            idle(vds, prefix)
        elif what == "primary":
            serve(vds, 0, prefix)
            sys.stdin.read()
        elif what == "owner":
            lend(vds, library, prefix)
        elif what == "pooled":
            with ThreadPoolExecutor(3) as pool:
                serve_all(vds, count, prefix, pool)
        else:
            serve_all(vds, count, prefix, None)
    with open("/proc/self/maps") as maps:
        say("ended", libraries=sorted({line.split(maxsplit=5)[5].strip() for line in maps if "libsqlvdi" in line}))


if __name__ == "__main__":
    main()
