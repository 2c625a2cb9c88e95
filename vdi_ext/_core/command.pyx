# cython: annotation_typing=False
"""A command of the server, its buffer as memory of Python, and its completion."""
import errno

from ..constants import CommandCode, known
from ..errors import error_from_hresult

cimport cython
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES, PyBUF_WRITABLE
from cpython.exc cimport PyErr_WarnEx
from cpython.long cimport PyLong_AsUnsignedLongLong
from cpython.number cimport PyNumber_Index

from ..libvdi cimport (
    DWORD,
    DWORDLONG,
    ERROR_DISK_FULL,
    ERROR_NOT_SUPPORTED,
    ERROR_OPERATION_ABORTED,
    HRESULT,
    VD_E_ABORT,
    VDC_ClearError,
    VDC_Command,
    VDC_Read,
    VDC_Write,
)
from .provider cimport fork_generation
from .refs cimport DeviceRef, Py_IsInitialized, SetRef


# By number; what lies beyond is given as an int.
cdef tuple _CODES = tuple(known(CommandCode, number) for number in range(max(CommandCode) + 1))
cdef object _DEFAULT = 0
cdef Py_ssize_t _ONE = 1
cdef char _EMPTY = 0
cdef const char *_FORMAT = "B"


@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class Command:
    """One command, from `VirtualDevice.get_command` until it is completed.

    Supports the buffer protocol: ``memoryview(command)``, ``np.frombuffer(command, ...)``, ``file.write(command)`` all
    reach the shared buffer itself (uint8, shape ``(size,)``), read-only for a WRITE, writable for a READ. A view keeps
    the memory mapped, whatever else is dropped; while one lives the command can not be completed, because the server
    would reuse the memory.

    As a context manager it completes what was left uncompleted. Without an exception: WRITE and CLEAR_ERROR with
    SUCCESS; READ with OPERATION_ABORTED and a `ValueError`, because it needs its count; any other with NOT_SUPPORTED.
    With an exception: DISK_FULL for ``OSError(ENOSPC)``, else OPERATION_ABORTED, as soon as no view lives; the
    exception goes on unchanged.

    One that is dropped uncompleted is completed with OPERATION_ABORTED and gives a `ResourceWarning`.

    Threads: may be used and completed by any thread, in any order with other commands.

    Wraps: VDC_Command (vdi.h)
    """

    def __init__(self, *args, **kwargs):
        raise TypeError("commands come from VirtualDevice.get_command()")

    def __reduce__(self):
        raise TypeError("a Command belongs to its process; send what get_buffer_handle(command) returns")

    @property
    def code(self) -> CommandCode | int:
        """What to do; a plain int where the specification has no such command."""
        if self._code < <DWORD>len(_CODES):
            return _CODES[self._code]
        return self._code

    @property
    def size(self) -> int:
        """Bytes of the buffer of a READ or WRITE; otherwise the command's argument (section 7.2)."""
        return self._size

    @property
    def position(self) -> int:
        """Position on the medium, for devices with random access or positioning (section 7.2)."""
        return self._position

    @property
    def prefix(self) -> memoryview:
        """The private bytes before the buffer as a writable view that counts as a view of the command.

        As long as `DeviceSetConfig.prefix_zone_size`, so empty where none was asked for. Its content does not survive
        from one command to the next.

        Raises
        ------
        BufferError
            The command has no buffer.
        ValueError
            The command is completed.
        """
        if not self._carries_data():
            raise BufferError(f"{self._name()} has no buffer")
        self._check_outstanding()
        return memoryview(_PrefixZone.__new__(_PrefixZone, self))

    def complete(self, code: int = 0, bytes_transferred: int | None = None, position: int = 0) -> None:
        """Give command and buffer back to the server.

        Parameters
        ----------
        code : CompletionCode or int
            Any Win32 code; all but SUCCESS put the device into IO-ERROR until the server clears it (section 6.4).
        bytes_transferred : int, optional
            At most `size`. For a WRITE the whole size where not given, for a READ always to be given, else 0.
        position : int
            Answer to GET_POSITION and SET_POSITION.

        Raises
        ------
        BufferError
            A view of the buffer or of the prefix zone is alive. Nothing was completed.
        ValueError
            Completed before; or a READ without its count; or a number out of its range. Nothing was completed.
        VDAbortError
            The set was aborted; the answer no longer counts.
        VDNotOpenError
            The set was closed, or the command was inherited through fork.

        Wraps: IClientVirtualDevice::CompleteCommand (vdi.h)
        """
        cdef DWORD transferred
        self._check_outstanding()
        if self._exports:
            raise BufferError(self._views())
        if bytes_transferred is None:
            if self._code == VDC_Read:
                raise ValueError("a READ is completed with its count: complete(code, bytes_transferred)")
            transferred = self._size if self._code == VDC_Write else 0
        else:
            transferred = <DWORD>_number(bytes_transferred, self._size, "bytes_transferred")
        cdef DWORD wire_code = <DWORD>_number(code, 0xFFFFFFFF, "code")
        cdef DWORDLONG wire_position = _number(position, 0xFFFFFFFFFFFFFFFF, "position")
        # An __index__ may have run Python code that completed or exported meanwhile.
        self._check_outstanding()
        if self._exports:
            raise BufferError(self._views())
        cdef HRESULT hr = self._finish(wire_code, transferred, wire_position)
        if hr < 0:
            raise self._device.set.error(hr, "CompleteCommand")

    def __enter__(self) -> Command:
        self._check_outstanding()
        return self

    def __exit__(self, exc_type, exc, traceback) -> None:
        cdef HRESULT hr
        if self._c == NULL or self._deferred:
            return
        if exc_type is not None:
            if not self._outstanding():
                return
            full = isinstance(exc, OSError) and exc.errno == errno.ENOSPC
            hr = self._give_up(ERROR_DISK_FULL if full else ERROR_OPERATION_ABORTED)
            if hr < 0 and hr != VD_E_ABORT and exc is not None:
                exc.add_note(f"the command could not be completed: {error_from_hresult(hr, 'CompleteCommand')}")
        elif self._code == VDC_Write or self._code == VDC_ClearError:
            self.complete()
        elif self._code == VDC_Read:
            self._check_outstanding()
            self._give_up(ERROR_OPERATION_ABORTED)
            raise ValueError("a READ was left without complete(code, bytes_transferred); it was aborted")
        else:
            self.complete(ERROR_NOT_SUPPORTED)

    def __getbuffer__(self, Py_buffer *view, int flags):
        if not self._carries_data():
            raise BufferError(f"{self._name()} has no buffer")
        self._export()
        try:
            fill_buffer(self, view, flags, self._buffer, &self._length, self._code == VDC_Write)
        except BaseException:
            self._release()
            raise

    def __releasebuffer__(self, Py_buffer *view):
        self._release()

    def __repr__(self) -> str:
        cdef str text = f"<Command {self._name()}"
        if self._carries_data():
            text += f" {self._size} bytes"
        if self._device is None or not self._outstanding():
            return f"{text}, completed>" if self._c == NULL else f"{text}, closed>"
        if self._carries_data():
            text += f" at {<size_t>self._buffer:#x}"
        if self._exports:
            text += f", {self._exports} export{'' if self._exports == 1 else 's'}"
        if self._deferred:
            text += ", to be aborted"
        return text + ">"

    def __dealloc__(self):
        # No view is alive, or it would keep us.
        if self._c == NULL or not self._outstanding():
            return
        if self._finish(ERROR_OPERATION_ABORTED, 0, 0) >= 0 and Py_IsInitialized():
            message = f"{self._name()} command was dropped uncompleted, and so aborted; use it in a with statement"
            PyErr_WarnEx(ResourceWarning, message.encode(), 1)

    def _name(self):
        code = self.code
        return code.name if isinstance(code, CommandCode) else f"{code}"

    def _views(self):
        views = "1 view is" if self._exports == 1 else f"{self._exports} views are"
        return (
            f"{views} alive on this {self._name()} command, to be dropped before completing it "
            "(del array; with memoryview(command) as view: ...)"
        )

    cdef bint _carries_data(self) noexcept:
        return self._code == VDC_Read or self._code == VDC_Write

    cdef bint _outstanding(self) noexcept:
        """Whether the native command is there still and ours."""
        return self._c != NULL and self._device.set.is_open and self._device.set.generation == fork_generation

    cdef int _check_outstanding(self) except -1:
        if self._c == NULL or self._deferred:
            raise ValueError("the command is completed already")
        if not self._outstanding():
            return self._device.set.refuse()
        return 0

    cdef HRESULT _finish(self, DWORD code, DWORD transferred, DWORDLONG position) noexcept:
        cdef VDC_Command *c = self._c
        self._c = NULL  # first: whatever comes, nobody completes it twice
        return self._device.complete(c, code, transferred, position)

    cdef HRESULT _give_up(self, DWORD code) noexcept:
        """Complete with an error and 0 bytes, at once or when the last view is dropped."""
        if self._exports:
            self._deferred = True
            self._deferred_code = code
            return 0
        return self._finish(code, 0, 0)

    cdef int _export(self) except -1:
        """Count one more view."""
        self._check_outstanding()
        if self._device.set.closing:
            self._device.set.refuse()
        self._exports += 1
        self._device.set.exports += 1
        return 0

    cdef void _release(self) noexcept:
        """Count one view less; do what waited for the last one."""
        cdef HRESULT hr
        cdef SetRef ref = self._device.set
        self._exports -= 1
        ref.exports -= 1
        if self._deferred and self._exports == 0 and self._outstanding():
            hr = self._finish(self._deferred_code, 0, 0)
            if hr < 0 and hr != VD_E_ABORT:
                ref.report(hr, "CompleteCommand", self)
        ref.settle()


@cython.final
@cython.no_gc
cdef class _PrefixZone:
    """Exporter of the bytes before a command's buffer; its views count as the command's."""
    cdef Command _command       # keeps the mapping
    cdef Py_ssize_t _length

    def __cinit__(self, Command command not None):
        self._command = command
        self._length = command._device.set.prefix_size if command._device is not None else 0

    def __getbuffer__(self, Py_buffer *view, int flags):
        self._command._export()
        try:
            fill_buffer(self, view, flags, self._command._buffer - self._length, &self._length, False)
        except BaseException:
            self._command._release()
            raise

    def __releasebuffer__(self, Py_buffer *view):
        self._command._release()


cdef DWORDLONG _number(object value, DWORDLONG limit, str name) except? 0xFFFFFFFFFFFFFFFF:
    cdef DWORDLONG number
    if value is _DEFAULT:  # a tenth of what a command costs in Python; any other 0 takes the long way
        return 0
    try:
        number = PyLong_AsUnsignedLongLong(PyNumber_Index(value))
    except OverflowError:
        raise ValueError(f"{name} must be between 0 and {limit}, not {value}") from None
    if number > limit:
        raise ValueError(f"{name} must be between 0 and {limit}, not {value}")
    return number


cdef Command new_command(DeviceRef device, VDC_Command *c):
    """The object for a command just fetched. What is read later is copied now: the structure is shared."""
    cdef Command self = Command.__new__(Command)
    self._device = device
    self._c = c
    self._code = c.commandCode
    self._size = c.size
    self._position = c.position
    self._buffer = c.buffer
    self._length = c.size
    return self


cdef int fill_buffer(
    object exporter, Py_buffer *view, int flags, void *data, Py_ssize_t *length, bint readonly
) except -1:
    """Fill a view of bytes; `length` must live as long as the exporter.

    By hand, because PyBuffer_FillInfo loses a reference to None with each view up to Python 3.11.
    """
    if readonly and flags & PyBUF_WRITABLE:
        raise BufferError("the buffer of a WRITE command is read-only")
    if length[0] == 0:
        data = &_EMPTY
    elif data == NULL:
        raise BufferError("the command came without a buffer")
    view.buf = data
    view.len = length[0]
    view.readonly = readonly
    view.itemsize = 1
    view.format = <char *>_FORMAT if flags & PyBUF_FORMAT else NULL
    view.ndim = 1
    view.shape = length if flags & PyBUF_ND else NULL
    view.strides = &_ONE if (flags & PyBUF_STRIDES) == PyBUF_STRIDES else NULL
    view.suboffsets = NULL
    view.internal = NULL
    view.obj = exporter
    return 0
