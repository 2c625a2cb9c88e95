# cython: annotation_typing=False
"""Owners of native sets and devices: what keeps memory mapped, when a set is closed, and calls that wait.

These classes have no cyclic references and no methods in Python. All their fields change only with the GIL held.
"""
import _thread
import threading
from math import isnan
from time import monotonic

from ..errors import VDNotOpenError, error_from_hresult

cimport cython
from cpython.exc cimport (
    PyErr_CheckSignals,
    PyErr_Fetch,
    PyErr_Restore,
    PyErr_SetObject,
    PyErr_WarnEx,
    PyErr_WriteUnraisable,
)
from cpython.ref cimport PyObject

from ..libvdi cimport (
    DWORD,
    DWORDLONG,
    HRESULT,
    LPCWSTR,
    VD_E_ABORT,
    VD_E_NOTOPEN,
    VD_E_OPEN,
    VDI_STATE_ABORT,
    VDI_STATE_ACTIVE,
    VDI_STATE_CONFIGURABLE,
    VDI_STATE_INITIALIZING,
    VDC_Command,
    VdiAbortInfo,
)
from .provider cimport fork_generation


cdef enum:
    SLICE_MS = 100  # how long a native wait runs before signals and a close are looked at


@cython.final
@cython.no_gc
cdef class SetRef:

    cdef int use(self) except -1:
        """Refuse a closed or inherited set."""
        if not usable(self):
            return self.refuse()
        return 0

    cdef int refuse(self) except -1:
        if self.generation != fork_generation:
            message = "the set was opened before a fork, in the parent process; open it here"
        else:
            message = "the set is closed"
        raise VDNotOpenError(VD_E_NOTOPEN, message)

    cdef object error(self, HRESULT hr, const char *op):
        """The exception for a failure of this set, with what the embedded provider knows of an abort."""
        cdef VdiAbortInfo info
        cdef bint known = False
        if hr != VD_E_ABORT:
            return error_from_hresult(hr, op.decode("ascii"))
        self.state = VDI_STATE_ABORT
        if self.embedded != NULL:
            with nogil:
                known = self.embedded.lpVtbl.GetAbortInfo(self.embedded, &info) >= 0
        if not known:
            return error_from_hresult(hr, op.decode("ascii"))
        info.reason[sizeof(info.reason) - 1] = 0
        reason = (<bytes>(<char *>info.reason)).decode("utf-8", "replace")
        return error_from_hresult(hr, op.decode("ascii"), reason=reason or None, pid=info.pid or None)

    cdef int check(self, HRESULT hr, const char *op) except -1:
        if hr < 0:
            raise self.error(hr, op)
        return 0

    cdef int between_slices(self) except -1:
        """Between two slices of a native wait: run signal handlers, see whether the set was closed."""
        # A handler may close the set. That must not wait for this call, which is not in native code now.
        self.in_flight -= 1
        try:
            PyErr_CheckSignals()
        finally:
            self.in_flight += 1
        return self.use()

    cdef void report(self, HRESULT hr, const char *op, object where) noexcept:
        """Hand a failure that nobody can be told of to sys.unraisablehook, whatever exception is on its way."""
        cdef PyObject *kind
        cdef PyObject *value
        cdef PyObject *traceback
        PyErr_Fetch(&kind, &value, &traceback)
        error = self.error(hr, op)
        PyErr_SetObject(type(error), error)
        PyErr_WriteUnraisable(where)
        PyErr_Restore(kind, value, traceback)

    cdef void leave(self) noexcept:
        """A native call that had raised `in_flight` has returned."""
        self.in_flight -= 1
        self.settle()

    cdef void settle(self) noexcept:
        """Close now if a close was put off and nothing stands against it any more."""
        cdef HRESULT hr
        if not self.deferred or self.exports or self.in_flight or not self.is_open:
            return
        if self.generation != fork_generation:
            return
        self.is_open = False
        self.in_flight += 1
        with nogil:
            hr = self.p.lpVtbl.Close(self.p)
        self.in_flight -= 1
        if hr < 0 and hr != VD_E_OPEN:  # devices were not at their end: so it was when the close was asked for
            self.report(hr, "Close", self)

    def __dealloc__(self):
        if self.p == NULL or self.generation != fork_generation:
            return
        cdef bint forgotten = self.is_open and self.handed_out and not self.closing
        with nogil:
            if self.is_open:
                self.p.lpVtbl.Close(self.p)
            if self.embedded != NULL:
                self.embedded.lpVtbl.Release(self.embedded)
            self.p.lpVtbl.Release(self.p)
        if forgotten and Py_IsInitialized():
            message = f"virtual device set {self.name!r} was never closed; use it in a with statement"
            PyErr_WarnEx(ResourceWarning, message.encode("utf-8", "backslashreplace"), 1)


@cython.final
@cython.no_gc
cdef class DeviceRef:

    cdef int fetching(self) except -1:
        """Before GetCommand: one thread at a time, and always the same where `owner` counts."""
        cdef HRESULT hr
        if self.getting:
            raise RuntimeError("another thread is in get_command() of this device; one at a time")
        if self.set.embedded != NULL:
            return 0
        if self.owner == 0:
            self.owner = _thread.get_ident()
        elif self.owner != <unsigned long>_thread.get_ident():
            raise RuntimeError("on this library one thread fetches all commands of a device")
        while self.posted:
            address, code, transferred, position = self.posted.pop(0)
            hr = self.p.lpVtbl.CompleteCommand(self.p, <VDC_Command *><size_t>address, code, transferred, position)
            if hr != VD_E_ABORT:  # which GetCommand is about to say
                self.set.check(hr, "CompleteCommand")
        return 0

    cdef HRESULT complete(self, VDC_Command *c, DWORD code, DWORD transferred, DWORDLONG position) noexcept:
        """Complete a command. Does not wait, so the GIL stays."""
        if self.set.embedded == NULL and self.owner != <unsigned long>_thread.get_ident():
            if self.posted is None:
                self.posted = []
            self.posted.append((<size_t>c, code, transferred, position))
            return 0
        return self.p.lpVtbl.CompleteCommand(self.p, c, code, transferred, position)

    def __dealloc__(self):
        if self.p == NULL or self.set.generation != fork_generation:
            return
        with nogil:
            self.p.lpVtbl.Release(self.p)


@cython.final
@cython.no_gc
cdef class NativeCall:

    cdef HRESULT run(self) except? -1:
        """Make the call. On the main thread a helper thread makes it, so that Ctrl-C is answered meanwhile.

        After a KeyboardInterrupt the helper goes on by itself; what it obtains is released when it ends.
        """
        self.set.in_flight += 1
        if not Py_IsInitialized() or _thread.get_ident() != threading.main_thread().ident:
            self.execute()
            return self.hr
        try:
            self.done = _thread.allocate_lock()
            self.done.acquire()
            _thread.start_new_thread(self, ())
        except RuntimeError:  # no more threads: without the answer to Ctrl-C
            self.execute()
            return self.hr
        except BaseException:
            self.set.leave()
            raise
        # A signal that another thread received, or that came just before, does not end the wait by itself.
        while not self.done.acquire(True, SLICE_MS / 1000.0):
            PyErr_CheckSignals()
        return self.hr

    def __call__(self):
        """The helper thread."""
        if self.done is None:
            raise TypeError("internal to the package")
        try:
            self.execute()
        finally:
            self.done.release()

    cdef void execute(self) noexcept:
        cdef SetRef ref = self.set
        cdef LPCWSTR instance = NULL
        cdef LPCWSTR name = NULL
        if self.instance is not None:
            instance = <LPCWSTR><const char *>self.instance
        if self.name is not None:
            name = <LPCWSTR><const char *>self.name
        with nogil:
            if self.method == CREATE_EX:
                self.hr = ref.p.lpVtbl.CreateEx(ref.p, instance, name, &self.config)
            elif self.method == OPEN_IN_SECONDARY_EX:
                self.hr = ref.p.lpVtbl.OpenInSecondaryEx(ref.p, instance, name)
            elif self.method == OPEN_DEVICE:
                self.hr = ref.p.lpVtbl.OpenDevice(ref.p, name, &self.device)
            else:
                self.hr = ref.p.lpVtbl.Close(ref.p)
        if self.hr >= 0:
            if self.method == CREATE_EX:
                ref.is_open = True
                ref.state = VDI_STATE_CONFIGURABLE
            elif self.method == OPEN_IN_SECONDARY_EX:
                ref.is_open = True
                ref.state = VDI_STATE_INITIALIZING
            elif self.method == OPEN_DEVICE:
                ref.state = VDI_STATE_ACTIVE
        ref.leave()

    def __dealloc__(self):
        if self.device != NULL and self.set.generation == fork_generation:  # nobody took it: the caller was interrupted
            with nogil:
                self.device.lpVtbl.Release(self.device)


cdef double deadline_after(object timeout) except? -1:
    """The moment at which a wait of `timeout` seconds ends; infinity for None."""
    if timeout is None:
        return float("inf")
    cdef double seconds = timeout
    if isnan(seconds) or seconds < 0:
        raise ValueError(f"timeout must be seconds that are not negative, or None; not {timeout!r}")
    return <double>monotonic() + seconds


cdef DWORD slice_of(double deadline, DWORD longest=SLICE_MS) except? 0xFFFFFFFF:
    """Milliseconds of the next native wait; 0 when the time is over."""
    cdef double left = deadline - <double>monotonic()
    if left <= 0:
        return 0
    if left * 1000 >= longest:
        return longest
    return <DWORD>(left * 1000) + 1
