"""The loop in which a job answers the commands of one device, observed only where somebody wants to see them."""

import errno
import time
from collections.abc import Callable

from .._core.command import Command
from .._core.device import VirtualDevice
from ..constants import CommandCode, CompletionCode, known
from ..events import CommandCompleted, CommandIssued, EventStream

#: How a command was completed: code, and bytes transferred (None: the whole of a WRITE, else 0).
Answer = tuple[int, int | None]

DONE: Answer = (CompletionCode.SUCCESS, None)


def answer_commands(
    device: VirtualDevice, number: int, answer: Callable[[Command], Answer], events: EventStream
) -> None:
    """Have every command of a device answered, until the server closes the device.

    Parameters
    ----------
    device : VirtualDevice
    number : int
        The device's, from 1.
    answer : callable
        Completes the command it is given, and returns how. What it raises goes on, and completes the command as
        leaving ``with command:`` does.
    events : EventStream
        Where nobody listens for commands the loop is the bare one, without a test in it.
    """
    if not events.commands:
        for command in device:
            with command:
                answer(command)
        return
    for count, command in enumerate(device, 1):
        begun = time.monotonic()
        code, size = command.code, command.size
        events.emit(CommandIssued, number, count, code, size, command.position, at=begun)
        completion: int = CompletionCode.OPERATION_ABORTED
        transferred: int | None = 0
        try:
            with command:
                completion, transferred = answer(command)
        except OSError as error:
            if error.errno == errno.ENOSPC:  # as leaving the block has completed it
                completion = CompletionCode.DISK_FULL
            raise
        finally:
            if transferred is None:
                transferred = size if code == CommandCode.WRITE else 0
            now = time.monotonic()
            completion = known(CompletionCode, completion)
            events.emit(CommandCompleted, number, count, code, size, completion, transferred, now - begun, at=now)


def complete(command: Command, code: CompletionCode, transferred: int | None = None) -> Answer:
    """Complete a command, and return how."""
    command.complete(code, transferred)
    return code, transferred
