from ..libvdi cimport (
    DWORD,
    DWORDLONG,
    HRESULT,
    IClientVirtualDevice,
    IClientVirtualDeviceSet2,
    IVdiEmbeddedSet,
    VDC_Command,
    VDConfig,
)
from .provider cimport fork_generation


cdef extern from "Python.h":
    # False while the interpreter is being torn down: other threads will not run any more.
    bint Py_IsInitialized() noexcept nogil


cdef class SetRef:
    """Owner of one native set, of its mapping, and of the rule when it may be closed."""
    cdef IClientVirtualDeviceSet2 *p
    cdef IVdiEmbeddedSet *embedded  # NULL: another library than the embedded provider
    cdef str name
    cdef unsigned int generation    # of the process that made it
    cdef Py_ssize_t exports         # live views of the set's memory; native Close would unmap it under them
    cdef Py_ssize_t in_flight       # native calls that may be waiting without the GIL
    cdef bint is_open               # CreateEx or OpenInSecondaryEx succeeded, native Close has not begun
    cdef bint closing               # no new use
    cdef bint deferred              # whoever drops the last view or leaves the last call closes
    cdef bint handed_out            # a user's object had it, so forgetting to close is his
    cdef DWORD prefix_size          # bytes before each buffer
    cdef DWORD state                # VDI_STATE_* as far as the calls tell; the embedded provider knows better

    cdef int use(self) except -1
    cdef int refuse(self) except -1
    cdef object error(self, HRESULT hr, const char *op)
    cdef int check(self, HRESULT hr, const char *op) except -1
    cdef int between_slices(self) except -1
    cdef void report(self, HRESULT hr, const char *op, object where) noexcept
    cdef void leave(self) noexcept
    cdef void settle(self) noexcept


cdef class DeviceRef:
    """Owner of one native device."""
    cdef IClientVirtualDevice *p
    cdef SetRef set     # keeps the set, and with it the mapping, until the device is released
    cdef bint getting   # a thread is in GetCommand
    # Only the embedded provider takes a device's calls from several threads. Elsewhere the thread that fetches commands
    # makes all of them, and completions of other threads wait here for its next look.
    cdef unsigned long owner    # 0: none yet
    cdef list posted            # of (VDC_Command *, code, bytes, position), or None

    cdef int fetching(self) except -1
    cdef HRESULT complete(self, VDC_Command *c, DWORD code, DWORD transferred, DWORDLONG position) noexcept


cdef enum NativeMethod:
    CREATE_EX
    OPEN_IN_SECONDARY_EX
    OPEN_DEVICE
    CLOSE


cdef class NativeCall:
    """One native call that has no timeout and may wait."""
    cdef SetRef set
    cdef NativeMethod method
    cdef bytes instance             # UTF-16, or None for NULL
    cdef bytes name                 # UTF-16
    cdef VDConfig config
    cdef IClientVirtualDevice *device   # result of OPEN_DEVICE; owned until taken
    cdef HRESULT hr
    cdef object done                # lock that the helper thread opens

    cdef HRESULT run(self) except? -1
    cdef void execute(self) noexcept


cdef double deadline_after(object timeout) except? -1
cdef DWORD slice_of(double deadline, DWORD longest=*) except? 0xFFFFFFFF


cdef inline bint usable(SetRef ref) noexcept:
    return ref.is_open and not ref.closing and ref.generation == fork_generation
