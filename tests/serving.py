"""The other side for tests of the client half: a server in this process, or in one of its own."""

from __future__ import annotations

import functools
import multiprocessing
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import vdi_ext as vdi
from vdi_ext import CommandCode, DeviceSetConfig, Feature
from vdi_ext.server import ServerDevice, ServerDeviceSet

SIZE = 65536
WAIT = 20.0  # seconds; only a bound, nothing is expected to take that long


@functools.lru_cache(256)
def pattern(seed: int, size: int = SIZE) -> bytes:
    """Bytes that differ from buffer to buffer and within each."""
    return b"".join((seed * 0x9E3779B1 + i * 0x85EBCA77 & 0xFFFFFFFF).to_bytes(4, "little") for i in range(size // 4))


@dataclass
class Pair:
    """Both halves of a set in this process; `command` makes the server send and the client fetch."""

    vds: vdi.VirtualDeviceSet | None
    server: ServerDeviceSet
    devices: list[vdi.VirtualDevice] = field(default_factory=list)
    peers: list[ServerDevice] = field(default_factory=list)

    @property
    def device(self) -> vdi.VirtualDevice:
        return self.devices[0]

    @property
    def peer(self) -> ServerDevice:
        return self.peers[0]

    def send(self, code=CommandCode.WRITE, data=None, *, size=None, position=0, device=0):
        """Send one command; returns its future and, for READ and WRITE, the server's buffer."""
        if code not in (CommandCode.READ, CommandCode.WRITE):
            return self.peers[device].send_command(code, size=size, position=position), None
        buffer = self.server.allocate_buffer(SIZE)
        with memoryview(buffer) as view:
            view[:] = data if data is not None else bytes(SIZE)
        return self.peers[device].send_command(code, buffer, size=size, position=position), buffer

    def command(self, code=CommandCode.WRITE, data=None, **kwargs):
        """Send one command and fetch it; returns the client's command and the server's future."""
        future, _ = self.send(code, data, **kwargs)
        return self.devices[kwargs.get("device", 0)].get_command(WAIT), future

    def finish(self) -> None:
        """The normal end of both halves."""
        for peer in self.peers:
            peer.close_device()
        for device in self.devices:
            assert list(device) == []


def start_pair(
    features: Feature = Feature.WRITE_MEDIA, *, devices: int = 1, open_devices: bool = True, buffers: int = 16, **config
) -> Pair:
    """A configured set whose devices are open on both sides; to be ended by the caller, or by nobody."""
    vds = vdi.VirtualDeviceSet.create(config=DeviceSetConfig(device_count=devices, **config), provider="embedded")
    both = Pair(vds, ServerDeviceSet.open(vds.name))
    both.server.begin_configuration(features, 512, max(4096, config.get("alignment", 0)), SIZE)
    both.server.request_buffers(SIZE, 4096, buffers)
    both.server.end_configuration()
    vds.get_configuration(WAIT)
    for number in range(devices if open_devices else 0):
        name = vds.name if number == 0 else f"{vds.name}/{number}"
        both.peers.append(both.server.open_device(name))
        both.devices.append(vds.open_device(name))
    return both


@contextmanager
def pair(*args, **kwargs) -> Iterator[Pair]:
    """`start_pair` for a block. Leaves nothing behind, whatever happened to it; `vds` may be None by then."""
    both = start_pair(*args, **kwargs)
    try:
        yield both
    finally:
        halves = [half for half in (both.vds, both.server) if half is not None]
        for half in halves:
            try:
                half.signal_abort()
            except (vdi.VDProtocolError, vdi.VDNotOpenError):
                pass  # closed by the test
        both.devices.clear()
        both.peers.clear()
        for half in reversed(halves):
            half.close()


def run_python(code: str, *args: str, **kwargs) -> subprocess.CompletedProcess[str]:
    """Run a program in an interpreter of its own, with the names of this module at hand."""
    return subprocess.run(
        [sys.executable, *kwargs.pop("flags", []), "-c", PREAMBLE + textwrap.dedent(code), *args],
        capture_output=True,
        text=True,
        timeout=60,
        **kwargs,
    )


PREAMBLE = f"""
import sys
sys.path[:0] = {[__file__.rsplit("/", 1)[0], __file__.rsplit("/", 2)[0]]!r}
import vdi_ext as vdi
from vdi_ext import CommandCode, CompletionCode, Feature
from serving import SIZE, WAIT, pair, pattern, start_pair
"""


@contextmanager
def process(context: str, target, *args) -> Iterator[multiprocessing.process.BaseProcess]:
    """A process that has ended well when the block ends, and is killed when the block fails."""
    child = multiprocessing.get_context(context).Process(target=target, args=args)
    child.start()
    try:
        yield child
        child.join(WAIT)
        assert child.exitcode == 0, f"{target.__name__} ended with {child.exitcode}"
    finally:
        if child.is_alive():
            child.kill()
        child.join()
        child.close()


def receive(connection):
    """What the other process sent; fails instead of waiting for ever."""
    assert connection.poll(WAIT), "the other process does not answer"
    return connection.recv()
