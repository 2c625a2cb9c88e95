# cython: annotation_typing=False
"""Buffers that cross process boundaries: handles, and what they map to in another process."""
import dataclasses

from ..errors import VDInvalidError, VDNotSupportedError

cimport cython
from libc.string cimport memcpy, memset

from ..libvdi cimport (
    BYTE,
    DWORD,
    HRESULT,
    VD_E_INVALID,
    VD_E_NOTSUPPORTED,
    VDC_Write,
    VdiBufferInfo,
)
from .command cimport Command, fill_buffer
from .refs cimport SetRef


@dataclasses.dataclass(frozen=True)
class BufferHandle:
    """The buffer of an outstanding READ or WRITE, by a name that other processes of the set understand.

    A value without any claim on memory: it may be pickled, sent and stored, and is good until its command is completed.

    Attributes
    ----------
    value : int
        The handle of the interface, 32 bits.
    size : int
        Bytes of the buffer.
    readonly : bool
        Whether the bytes may only be read (a WRITE command: a backup).
    set_name, instance : str, str or None
        With these `VirtualDeviceSet.open_in_secondary` joins the set.
    set_id : bytes or None
        Identity of the set, where the provider knows one.
    generation : int
        Identity of this lending of the buffer, where the provider knows one.

    Wraps: IClientVirtualDeviceSet2::GetBufferHandle (vdi.h)
    """

    value: int
    size: int
    readonly: bool
    set_name: str
    instance: str | None = None
    set_id: bytes | None = None
    generation: int = 0


@cython.final
@cython.no_gc_clear
cdef class MappedBuffer:
    """The bytes of a buffer whose command is with another process (or another part of this one).

    Supports the buffer protocol (uint8, shape ``(size,)``; read-only for a WRITE). A view keeps the memory mapped. It
    does not keep the command: if its owner completes it, the server reuses the memory, and then `release` raises.
    Trust what was read only after `release` has returned, or the ``with`` block ended, without an error.

    Threads: any.

    Attributes
    ----------
    handle : BufferHandle
        The handle that was mapped.

    Wraps: IClientVirtualDeviceSet2::MapBufferHandle (vdi.h)
    """

    def __init__(self, *args, **kwargs):
        raise TypeError("mapped buffers come from VirtualDeviceSet.map_buffer_handle()")

    def __reduce__(self):
        raise TypeError("a MappedBuffer belongs to its process; send its handle")

    def release(self) -> None:
        """Give the buffer up; a second call does nothing.

        Raises
        ------
        BufferError
            A view is alive. Nothing was released.
        VDInvalidError
            The command was completed while the buffer was mapped: what was read or written does not count. Not seen on
            another library than the embedded provider.
        VDAbortError
            The set was aborted meanwhile.
        VDNotOpenError
            The set was closed before, or the object was inherited through fork.
        """
        if self._buffer == NULL:
            return
        if self._exports:
            views = "1 view is" if self._exports == 1 else f"{self._exports} views are"
            raise BufferError(
                f"{views} alive on this buffer, to be dropped before releasing it "
                "(del array; with memoryview(mapped) as view: ...)"
            )
        self._buffer = NULL
        self._set.use()
        self._check_lent()

    def __enter__(self) -> MappedBuffer:
        if self._buffer == NULL:
            raise ValueError("the buffer is released")
        return self

    def __exit__(self, exc_type, exc, traceback) -> None:
        if exc_type is None:
            self.release()
        else:
            self._buffer = NULL  # no new views; those that live keep the memory

    def __getbuffer__(self, Py_buffer *view, int flags):
        if self._buffer == NULL:
            raise ValueError("the buffer is released")
        self._set.use()
        self._check_lent()
        fill_buffer(self, view, flags, self._buffer, &self._length, self._info.readOnly != 0)
        self._exports += 1
        self._set.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self._exports -= 1
        self._set.exports -= 1
        self._set.settle()

    def __repr__(self) -> str:
        cdef str access = "read-only" if self._info.readOnly else "writable"
        if self._buffer == NULL:
            return f"<MappedBuffer {self._info.size} bytes, released>"
        text = f"<MappedBuffer {self._info.size} bytes {access} at {<size_t>self._buffer:#x}"
        if self._exports:
            text += f", {self._exports} export{'' if self._exports == 1 else 's'}"
        return text + ">"

    cdef int _check_lent(self) except -1:
        """Raise if the lending that was mapped is over."""
        cdef HRESULT hr
        if self._set.embedded == NULL:
            return 0
        hr = self._set.embedded.lpVtbl.CheckBuffer(self._set.embedded, &self._info)
        if hr == VD_E_INVALID:
            raise VDInvalidError(
                VD_E_INVALID,
                "the command of this buffer was completed while the buffer was mapped; what was read may be other data",
                "CheckBuffer",
            )
        return self._set.check(hr, "CheckBuffer")


cdef object handle_of(SetRef ref, Command command, object instance):
    """The handle of an outstanding command of this set."""
    cdef VdiBufferInfo info
    cdef DWORD value = 0
    if command._device is None or command._device.set is not ref:
        raise VDInvalidError(VD_E_INVALID, "the command is of another set", "GetBufferHandle")
    if not command._carries_data():
        raise VDInvalidError(VD_E_INVALID, f"{command._name()} has no buffer", "GetBufferHandle")
    if command._c == NULL or command._deferred:
        raise VDInvalidError(VD_E_INVALID, "the command is completed, and its buffer the server's", "GetBufferHandle")
    if ref.embedded == NULL:
        ref.check(ref.p.lpVtbl.GetBufferHandle(ref.p, command._buffer, &value), "GetBufferHandle")
        return BufferHandle(value, command._size, command._code == VDC_Write, ref.name, instance)
    ref.check(ref.embedded.lpVtbl.DescribeBuffer(ref.embedded, command._buffer, &info), "GetBufferHandle")
    set_id = (<char *>info.setId)[:sizeof(info.setId)]
    return BufferHandle(info.value, info.size, bool(info.readOnly), ref.name, instance, set_id, info.generation)


cdef MappedBuffer map_handle(SetRef ref, object handle, object instance, bint trusted):
    """Map a handle; of what it says only the names are believed, unless there is nobody else to ask."""
    cdef VdiBufferInfo wanted
    cdef VdiBufferInfo actual
    cdef BYTE *buffer = NULL
    cdef HRESULT hr
    if not isinstance(handle, BufferHandle):
        raise TypeError(f"handle must be a BufferHandle, not {type(handle).__name__}")
    if handle.set_name != ref.name or (handle.instance or None) != instance:
        raise VDInvalidError(VD_E_INVALID, f"the handle is of the set {handle.set_name!r}", "MapBufferHandle")
    memset(&wanted, 0, sizeof(wanted))
    wanted.value = _number(handle.value, 0xFFFFFFFF, "value")
    wanted.size = _number(handle.size, 0xFFFFFFFF, "size")
    wanted.readOnly = bool(handle.readonly)
    wanted.generation = _number(handle.generation, 0xFFFFFFFFFFFFFFFF, "generation")
    if ref.embedded == NULL:
        if not trusted:
            raise VDNotSupportedError(
                VD_E_NOTSUPPORTED,
                "this library can not say whether a handle is valid; trusted=True maps it on the word of its sender",
                "MapBufferHandle",
            )
        ref.check(ref.p.lpVtbl.MapBufferHandle(ref.p, wanted.value, &buffer), "MapBufferHandle")
        actual = wanted
    else:
        set_id = handle.set_id
        if not isinstance(set_id, bytes) or len(set_id) != sizeof(wanted.setId):
            raise VDInvalidError(VD_E_INVALID, "the handle does not say of which set it is", "MapBufferHandle")
        memcpy(wanted.setId, <const char *>(<bytes>set_id), sizeof(wanted.setId))
        memset(&actual, 0, sizeof(actual))
        ref.in_flight += 1
        with nogil:
            hr = ref.embedded.lpVtbl.MapBuffer(ref.embedded, &wanted, &buffer, &actual)
        ref.leave()
        if hr == VD_E_INVALID:
            raise VDInvalidError(
                VD_E_INVALID, "the handle names no buffer that is lent now: completed, forged, or of another set",
                "MapBufferHandle",
            )
        ref.check(hr, "MapBufferHandle")
        if actual.size != wanted.size or (actual.readOnly != 0) != (wanted.readOnly != 0):
            raise VDInvalidError(
                VD_E_INVALID,
                f"the handle says {wanted.size} bytes{', read-only' if wanted.readOnly else ''}, but the buffer has "
                f"{actual.size} bytes{', read-only' if actual.readOnly else ''}: the handle was altered",
                "MapBufferHandle",
            )
    ref.use()  # closed by another thread while the GIL was released
    if buffer == NULL:
        raise VDInvalidError(VD_E_INVALID, "the library returned no address", "MapBufferHandle")
    cdef MappedBuffer self = MappedBuffer.__new__(MappedBuffer)
    self._set = ref
    self.handle = handle
    self._buffer = buffer
    self._info = actual
    self._length = actual.size
    return self


cdef object _number(object value, object limit, str field):
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
        raise VDInvalidError(VD_E_INVALID, f"the handle's {field} is {value!r}", "MapBufferHandle")
    return value
