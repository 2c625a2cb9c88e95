"""Seeded sequences of public calls in any order: never a crash, a hang, a wrong byte, or something left over."""

from __future__ import annotations

import gc
import random
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from serving import WAIT, Pair, pair, pattern

import vdi_ext as vdi
from vdi_ext import CommandCode, Feature

REFUSED = (vdi.VDError, ValueError, BufferError)  # what a call out of place may raise


class Sequence:
    """One set, and whatever a random sequence of calls makes of it."""

    def __init__(self, both: Pair, code: CommandCode, rng: random.Random) -> None:
        self.both, self.code, self.rng = both, code, rng
        self.sent = 0
        self.commands: list[tuple[int, vdi.Command]] = []
        self.views: list[tuple[int, object]] = []  # of commands: their bytes must not change
        self.handles: list[vdi.BufferHandle] = []
        self.mapped: list[vdi.MappedBuffer] = []
        self.others: list[object] = []  # views whose bytes belong to somebody else by now

    def pick(self, things: list):
        return self.rng.choice(things) if things else self.skip()

    @staticmethod
    def skip():
        raise ValueError("nothing to pick")

    # The steps. Names are for the failure's trace.

    def get(self) -> None:
        self.both.send(self.code, pattern(self.sent))
        self.commands.append((self.sent, self.both.device.get_command(WAIT)))
        self.sent += 1

    def flush(self) -> None:
        self.both.send(CommandCode.FLUSH)
        with self.both.device.get_command(WAIT) as command:
            if self.rng.random() < 0.5:
                command.complete()

    def view(self) -> None:
        seed, command = self.pick(self.commands)
        makers: list[Callable[[vdi.Command], object]] = [
            memoryview,
            lambda c: memoryview(c)[64:].cast("I"),
            lambda c: np.frombuffer(c, "<u4")[::3],
        ]
        self.views.append((seed, self.rng.choice(makers)(command)))

    def prefix(self) -> None:
        view = self.pick(self.commands)[1].prefix
        view[:] = bytes([self.rng.randrange(256)]) * len(view)
        self.others.append(view)

    def complete(self) -> None:
        command = self.pick(self.commands)[1]
        count = self.rng.choice([None, 0, command.size, command.size + 1, -1])
        command.complete(self.rng.choice([0, 0, 38, 995, 1 << 40]), count)

    def leave(self) -> None:
        with self.pick(self.commands)[1]:
            if self.rng.random() < 0.5:
                raise vdi.VDInvalidError(0x80770006, "thrown")

    def handle(self) -> None:
        self.handles.append(self.both.vds.get_buffer_handle(self.pick(self.commands)[1]))

    def map(self) -> None:
        self.mapped.append(self.both.vds.map_buffer_handle(self.pick(self.handles)))

    def view_mapped(self) -> None:
        self.others.append(memoryview(self.pick(self.mapped)))

    def release_mapped(self) -> None:
        self.pick(self.mapped).release()

    def poll(self) -> None:
        self.both.device.get_command(0)

    def configuration(self) -> None:
        self.both.vds.get_configuration(0)

    def open_again(self) -> None:
        self.both.vds.open_device()

    def drop(self) -> None:
        things = self.pick([self.commands, self.views, self.views, self.others, self.mapped, self.handles])
        if things:
            things.pop(self.rng.randrange(len(things)))

    def collect(self) -> None:
        gc.collect(0)

    def show(self) -> None:
        repr((self.both.vds, self.both.devices, self.commands, self.mapped))

    def abort(self) -> None:
        (self.both.vds if self.rng.random() < 0.5 else self.both.server).signal_abort("at random")

    def close(self) -> None:
        self.both.vds.close()

    def leave_set(self) -> None:
        with self.both.vds:
            raise vdi.VDInvalidError(0x80770006, "thrown")

    WEIGHTS = {
        "get": 12, "flush": 2, "view": 14, "prefix": 3, "complete": 8, "leave": 4, "handle": 5, "map": 5,
        "view_mapped": 5, "release_mapped": 4, "poll": 2, "configuration": 1, "open_again": 1, "drop": 24, "collect": 1,
        "show": 1, "abort": 1, "close": 2, "leave_set": 1,
    }  # fmt: skip

    def run(self, steps: int) -> None:
        for name in self.rng.choices(list(self.WEIGHTS), list(self.WEIGHTS.values()), k=steps):
            try:
                getattr(self, name)()
            except REFUSED:
                pass
            for seed, view in self.views:
                whole = np.frombuffer(pattern(seed), "<u4")
                if isinstance(view, np.ndarray):
                    assert np.array_equal(view, whole[::3])
                else:
                    assert view == (memoryview(pattern(seed)) if view.format == "B" else whole[16:])


@pytest.mark.parametrize("seed", range(60))
def test_any_sequence_of_calls(seed: int) -> None:
    rng = random.Random(seed)
    code = rng.choice([CommandCode.READ, CommandCode.WRITE])
    features = Feature.READ_MEDIA if code is CommandCode.READ else Feature.WRITE_MEDIA
    with warnings.catch_warnings(), pair(features, prefix_zone_size=rng.choice([0, 16]), buffers=64) as both:
        warnings.simplefilter("ignore", ResourceWarning)
        sequence = Sequence(both, code, rng)
        sequence.run(80)
        order = [sequence.commands, sequence.views, sequence.others, sequence.mapped, both.devices]
        rng.shuffle(order)
        if rng.random() < 0.5:
            both.vds = None
        for things in order:
            things.clear()
