"""Commands to one device that follow from one another: what positions, validates and changes media.

Such steps are generators: they yield a `Request` and get an `Answer`. They send nothing themselves, so the thread that
runs a transfer can run them for one device while it moves the data of the others, and a test against a list.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ..config import DeviceSetConfig
from ..constants import CommandCode, CompletionCode, Feature
from ..mtf import blocks

if TYPE_CHECKING:
    from .lane import Slot

# Codes that end a read without being failures (section 7.4).
ENDS = (CompletionCode.HANDLE_EOF, CompletionCode.NO_DATA_DETECTED)
MARK = CompletionCode.FILEMARK_DETECTED
WARNING = CompletionCode.END_OF_MEDIA

# What every kind of device may offer beside its own.
_EXTRAS = (
    Feature.REMOVABLE | Feature.DISCARD | Feature.SNAPSHOT_PREPARE | Feature.REQUEST_COMPLETE | Feature.LATCH_STATS
)


class TransferError(Exception):
    """A device did not do what it was asked to.

    Parameters
    ----------
    device : str
    what : str
        ``"write"``, ``"read"``, or a command's name: ``"Flush"``, ``"ClearError"``, ``"Snapshot"`` ...
    code : int
        Completion code.
    done, size : int
        Bytes transferred and bytes asked for.
    """

    def __init__(self, device: str, what: str, code: int, done: int = 0, size: int = 0) -> None:
        super().__init__(device, what, code, done, size)
        self.device = device
        self.what = what
        self.code = int(code)
        self.done = done
        self.size = size


def name_of(code: CommandCode) -> str:
    """A command as `TransferError` names it."""
    plain = code in (CommandCode.READ, CommandCode.WRITE)
    return code.name.lower() if plain else code.name.title().replace("_", "")


@dataclass(frozen=True)
class Kind:
    """What kind of device a client emulates (sections 3.1 and 7.3).

    Parameters
    ----------
    name : str
        ``"pipe"``, ``"tape"`` or ``"disk"``.
    removable : bool
        Media can be changed.
    discards : bool
        Discard is understood.
    warning : int
        Bytes that a medium holds still when it first warns of its end; 0 where unknown.
    """

    name: str
    removable: bool = False
    discards: bool = False
    warning: int = 0

    @property
    def keeps_marks(self) -> bool:
        return self.name == "tape"

    @property
    def is_addressed(self) -> bool:
        """Reads and writes carry a position."""
        return self.name == "disk"

    @property
    def positions(self) -> bool:
        return self.name != "pipe"


def kind_of(asked: DeviceSetConfig) -> Kind | None:
    """The kind that a client asks for; None for a mixture outside of the contract."""
    own = asked.features & ~_EXTRAS
    removable = bool(asked.features & Feature.REMOVABLE)
    names = {Feature.LIKE_PIPE: "pipe", Feature.LIKE_DISK: "disk"}
    if removable:
        names[Feature.LIKE_TAPE & ~Feature.REMOVABLE] = "tape"
    if own not in names:
        return None
    return Kind(names[own], removable, bool(asked.features & Feature.DISCARD), asked.eom_warning_size)


def write_zone(kind: Kind, block_size: int) -> int | None:
    """Bytes that may be on their way to a device so that all of them fit when it warns (7.5); None: any number.

    Two filemarks and EOTM have to fit as well.
    """
    if not kind.removable or not kind.warning:
        return None
    return max(0, kind.warning - 4 * max(blocks.FORMAT_BLOCK, block_size))


class Request(NamedTuple):
    """A command to be sent.

    Parameters
    ----------
    code : CommandCode
    size : int
        Bytes of a transfer, a count, or whence.
    position : int
    data : bytes
        What a Write writes, if not the content of `slot`.
    slot : Slot, optional
        Whose buffer is to be sent.
    """

    code: CommandCode
    size: int = 0
    position: int = 0
    data: bytes = b""
    slot: Slot | None = None


class Answer(NamedTuple):
    """How it was completed; `data` is what a Read read."""

    code: int = CompletionCode.SUCCESS
    done: int = 0
    position: int = 0
    data: bytes = b""


T = TypeVar("T")
Steps = Generator[Request, Answer, T]


class Drive:
    """A device as steps see it: its commands, each with what has to follow if it is not completed with success.

    Parameters
    ----------
    kind : Kind
    name : str
        Of the device.
    block_size : int
        Bytes.

    Attributes
    ----------
    position : int
        Of the next transfer on a device that is addressed, bytes.
    marks : int
        Filemarks that lie before the place of a tape, as far as it was only read and skipped forward.
    """

    def __init__(self, kind: Kind, name: str, block_size: int) -> None:
        self.kind = kind
        self.name = name
        self.block_size = block_size
        self.position = 0
        self.marks = 0

    @property
    def unit(self) -> int:
        """Bytes that every block of metadata which ends on a physical block is a multiple of."""
        return max(blocks.FORMAT_BLOCK, self.block_size)

    def error(self, request: Request, answer: Answer) -> TransferError:
        return TransferError(self.name, name_of(request.code), answer.code, answer.done, request.size)

    def do(
        self, code: CommandCode, size: int = 0, position: int = 0, *, allow: tuple[CompletionCode, ...] = ()
    ) -> Steps[Answer]:
        """Send a command without a buffer.

        Parameters
        ----------
        allow : tuple of CompletionCode
            Codes that are no failures. As any but success, they put the device into IO-ERROR, which is cleared here.
        """
        request = Request(code, size, position)
        answer = yield request
        if answer.code != CompletionCode.SUCCESS:
            if answer.code not in allow:
                raise self.error(request, answer)
            yield from self.clear()
        return answer

    def clear(self) -> Steps[None]:
        """Bring the device back from IO-ERROR (section 6.4)."""
        yield from self.do(CommandCode.CLEAR_ERROR)

    def read(self, size: int) -> Steps[Answer]:
        """Read, again where a read came back short (Q20), until all is there, or an end or a filemark."""
        data, code, allowed = b"", 0, (*ENDS, MARK) if self.kind.keeps_marks else ENDS
        while len(data) < size and code == CompletionCode.SUCCESS:
            request = Request(CommandCode.READ, size - len(data), self.position if self.kind.is_addressed else 0)
            answer = yield request
            code = answer.code
            if answer.done > request.size or (code != CompletionCode.SUCCESS and code not in allowed):
                raise self.error(request, answer)
            if not answer.done and code == CompletionCode.SUCCESS:
                raise self.error(request, answer._replace(code=CompletionCode.IO_DEVICE))
            data += answer.data
            self.position += answer.done
        if code != CompletionCode.SUCCESS:
            yield from self.clear()
        self.marks += code == MARK
        return Answer(code, len(data), data=data)

    def write(self, data: bytes = b"", slot: Slot | None = None) -> Steps[None]:
        """Write all of it, again what was not stored, while the medium warns of its end but takes more."""
        size = len(data) if slot is None else slot.size
        stalled = False
        while size:
            request = Request(CommandCode.WRITE, size, self.position if self.kind.is_addressed else 0, data, slot)
            answer = yield request
            if answer.code == WARNING and self.kind.removable:
                # A drive may begin to warn with a write that stores nothing; twice, it is full.
                if not answer.done and stalled:
                    raise self.error(request, answer)
                stalled = not answer.done
                yield from self.clear()
            elif answer.code != CompletionCode.SUCCESS or answer.done != size:
                raise self.error(request, answer)
            if answer.done > size:
                raise self.error(request, answer)
            self.position += answer.done
            size -= answer.done
            data = data[answer.done :]
            if slot is not None and size:
                assert slot.data is not None
                slot.data[:size] = slot.data[answer.done : answer.done + size].copy()
                slot.size = size

    def write_mark(self) -> Steps[None]:
        """A filemark that the device keeps; the warning of the end has been heard before."""
        yield from self.do(CommandCode.WRITE_MARK, allow=(WARNING,))

    def rewind(self) -> Steps[None]:
        """To the beginning of the medium."""
        self.position = self.marks = 0
        if self.kind.keeps_marks:
            yield from self.do(CommandCode.REWIND)

    def skip_marks(self, count: int) -> Steps[bool]:
        """Skip filemarks forward; whether there were so many."""
        answer = yield from self.do(CommandCode.SKIP_MARKS, count, allow=(CompletionCode.NO_DATA_DETECTED,))
        self.marks += count
        return answer.code == CompletionCode.SUCCESS

    def behind_mark(self) -> Steps[None]:
        """Back behind the last filemark that was met: reads that were sent with the one which met it went further."""
        marks = self.marks
        yield from self.rewind()
        yield from self.skip_marks(marks)

    def address(self) -> Steps[int | None]:
        """The physical address of here; None where the device has none to give.

        A random-access device should answer, but need not (section 7.3).
        """
        if not self.kind.positions:
            return None
        allow = (CompletionCode.NOT_SUPPORTED,) if self.kind.is_addressed else ()
        answer = yield from self.do(CommandCode.GET_POSITION, allow=allow)
        return answer.position if answer.code == CompletionCode.SUCCESS else None


def abandon(drive: Drive) -> Steps[None]:
    """Tell a device that nobody wants the data of this operation any more; whatever it says to that is right."""
    answer = yield Request(CommandCode.DISCARD)
    if answer.code == CompletionCode.IO_DEVICE:
        yield Request(CommandCode.CLEAR_ERROR)
        yield Request(CommandCode.DISCARD)
