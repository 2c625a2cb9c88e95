"""One native device set of the server half: its lifetime, its completion agent, and calls that wait."""

import atexit
import threading
import time
import weakref
from concurrent.futures import Future

cimport cython
from cpython.exc cimport PyErr_SetObject, PyErr_WriteUnraisable
from libc.string cimport memset

from ._core.provider cimport fork_generation, provider_for
from .libvdi cimport (
    CLSID_MSSQL_ServerVirtualDeviceSet,
    DWORD,
    HRESULT,
    IID_IServerVirtualDeviceSet2,
    IID_IVdiEmbeddedSet,
    IServerVirtualDeviceSet2,
    LPCWSTR,
    NOERROR,
    VD_E_ABORT,
    VD_E_BUSY,
    VD_E_NOTOPEN,
    VD_E_PROTOCOL,
    VDI_STATE_ABORT,
    VDI_STATE_DOES_NOT_EXIST,
    VDI_STATE_NORMALLY_TERMINATED,
    VdiAbortInfo,
)

from .errors import VDAbortError, VDProtocolError, error_from_hresult


cdef extern from "Python.h":
    # False while the interpreter is torn down: other threads will not run Python any more.
    bint Py_IsInitialized()


cdef set _cores = set()  # weak references to the open ones
cdef double _EXIT_SECONDS = 1.0
_SLICE_SECONDS = 0.1


@cython.final
@cython.no_gc_clear  # __dealloc__ and releasing views need the fields
cdef class ServerCore:
    """One native device set: shared and kept alive by set, devices, buffers, outstanding commands and agent threads.

    Close, which unmaps the buffers, is called once, and never while a view of a buffer exists.
    """

    def __cinit__(self):
        self.forks = fork_generation
        self.idle = threading.Event()
        self.idle.set()

    def __dealloc__(self):
        if self.set == NULL or self.forks != fork_generation:
            return
        with nogil:
            if self.opened and not self.closed:
                self.set.lpVtbl.Close(self.set)
            if self.embedded != NULL:
                self.embedded.lpVtbl.Release(self.embedded)
            self.set.lpVtbl.Release(self.set)
        if self.failure is not None and Py_IsInitialized():
            report(self.failure, None)  # nobody can ask for it any more

    cdef IServerVirtualDeviceSet2 *native(self, str operation) except NULL:
        """The set, in the process that opened it."""
        if self.forks != fork_generation:
            raise error_from_hresult(VD_E_NOTOPEN, operation)
        if self.set == NULL:
            raise error_from_hresult(VD_E_PROTOCOL, operation)
        return self.set

    cdef object error(self, HRESULT hr, str operation):
        cdef VdiAbortInfo info
        reason = pid = None
        if hr == VD_E_ABORT and self.embedded != NULL:
            memset(&info, 0, sizeof(info))
            if self.embedded.lpVtbl.GetAbortInfo(self.embedded, &info) == NOERROR:
                reason = (<bytes>info.reason[:sizeof(info.reason)]).split(b"\0", 1)[0].decode("utf-8", "replace") or None
                pid = info.pid or None
        error = error_from_hresult(hr, operation, reason=reason, pid=pid)
        if hr == VD_E_ABORT:
            error.__cause__ = self.failure
        return error

    cdef int check(self, HRESULT hr, str operation) except -1:
        if hr < 0:
            raise self.error(hr, operation)
        return 0

    cdef DWORD state(self):
        """VDI_STATE_*; of a foreign provider only whether the set exists."""
        cdef DWORD state = VDI_STATE_DOES_NOT_EXIST
        if self.embedded != NULL and not self.closed and self.embedded.lpVtbl.GetState(self.embedded, &state) < 0:
            state = VDI_STATE_DOES_NOT_EXIST
        return state

    cdef create(self, object provider):
        """A native set that is not open yet."""
        self.provider = provider_for(provider, True)
        self.set = <IServerVirtualDeviceSet2 *>self.provider.create_instance(
            &CLSID_MSSQL_ServerVirtualDeviceSet, &IID_IServerVirtualDeviceSet2
        )
        if self.set.lpVtbl.QueryInterface(self.set, &IID_IVdiEmbeddedSet, <void **>&self.embedded) < 0:
            self.embedded = NULL

    cdef HRESULT open(self, bytes instance, bytes name) except? -1:
        cdef LPCWSTR p_instance = NULL
        cdef LPCWSTR p_name = <LPCWSTR><const char *>name
        cdef HRESULT hr
        if instance is not None:
            p_instance = <LPCWSTR><const char *>instance
        with nogil:
            hr = self.set.lpVtbl.Open(self.set, p_instance, p_name)
        if hr >= 0:
            self.opened = True
            _cores.add(weakref.ref(self, _cores.discard))
        return hr

    cdef HRESULT request_buffers(self, DWORD size, DWORD alignment, DWORD count):
        cdef HRESULT hr
        with nogil:
            hr = self.set.lpVtbl.RequestBuffers(self.set, size, alignment, count)
        return hr

    cdef HRESULT end_configuration(self):
        cdef HRESULT hr
        with nogil:
            hr = self.set.lpVtbl.EndConfiguration(self.set)
        return hr

    cdef HRESULT abort(self, str reason) except? -1:
        # The provider keeps 255 bytes; a sentence is cut between characters.
        cdef bytes text = (reason or "").replace("\0", " ").encode("utf-8", "replace")[:255]
        text = text.decode("utf-8", "ignore").encode()
        cdef const char *p_text = NULL
        cdef HRESULT hr
        if text:
            p_text = text
        with nogil:
            if self.embedded != NULL:
                hr = self.embedded.lpVtbl.SignalAbortWithReason(self.embedded, p_text)
            else:
                hr = self.set.lpVtbl.SignalAbort(self.set)
        return hr

    cdef fail(self, object error):
        """A callback raised: end the operation, and keep the exception for execute_completion_agent or close."""
        if isinstance(error, (VDAbortError, VDProtocolError)) and (self.closed or self.state() == VDI_STATE_ABORT):
            return  # a callback that went on sending after the end: it says nothing new
        if self.failure is None:
            self.failure = error
            self.abort(f"a completion callback raised {type(error).__name__}: {error}")
        elif error is not self.failure:
            self.failure.add_note(f"Another completion callback raised {error!r}")

    cdef raise_failure(self):
        failure = self.failure
        if failure is not None:
            self.failure = None
            raise failure

    cdef HRESULT close(self):
        """Native Close, once; waits for a running agent, unless called from its callback."""
        cdef HRESULT hr = NOERROR
        self.closing = True
        if not self.closed:
            self.closed = True
            with nogil:
                hr = self.set.lpVtbl.Close(self.set)
        return hr

    cdef close_if_unused(self):
        """The Close that was put off, by whoever leaves last. Its result says only what the abort has said."""
        if self.put_off and not self.closed and self.exports == 0 and not self.agent and self.forks == fork_generation:
            self.close()

    cdef HRESULT run_agent(self, bint own) except? -1:
        """ExecuteCompletionAgent on this thread; VD_E_BUSY where an agent runs."""
        cdef HRESULT hr
        if self.set == NULL:
            return VD_E_PROTOCOL
        if self.agent or (self.starting and not own):
            return VD_E_BUSY
        self.starting = False
        self.agent = True
        self.agent_ident = threading.get_ident()
        self.idle.clear()
        with nogil:
            hr = self.set.lpVtbl.ExecuteCompletionAgent(self.set)
        self.agent = False
        self.agent_ident = None
        self.close_if_unused()
        self.idle.set()
        return hr

    cdef run_own_agent(self):
        cdef HRESULT hr = self.run_agent(True)
        if hr not in (NOERROR, VD_E_ABORT, VD_E_BUSY, VD_E_PROTOCOL):
            self.fail(self.error(hr, "ExecuteCompletionAgent"))

    cdef await_aborted_agent(self):
        """After an abort the agent leaves soon: wait for that, interruptibly, unless called from its callback."""
        if self.agent_ident == threading.get_ident():
            return
        while (self.agent or self.starting) and self.state() == VDI_STATE_ABORT and Py_IsInitialized():
            self.idle.wait(_SLICE_SECONDS)

    cdef leave(self, double deadline):
        """The process ends with the set open: abort, and let the agent go before Python is finalised."""
        if self.forks != fork_generation or self.closed:
            return
        if not self.closing:
            if self.state() != VDI_STATE_NORMALLY_TERMINATED:
                self.abort("the server's process exits")
            self.closing = True
        self.put_off = True
        if self.idle.wait(max(0.0, deadline - time.monotonic())):
            self.close_if_unused()


cdef void report(object error, object where) noexcept:
    """Hand an exception to sys.unraisablehook. It must be set: inside an except clause it is not, any more."""
    PyErr_SetObject(type(error), error)
    PyErr_WriteUnraisable(where)


def start_agent(ServerCore core not None, str name):
    """Start the set's own agent thread: a daemon, for it must not keep the interpreter; _at_exit ends it in time."""
    core.starting = True
    core.idle.clear()
    try:
        threading.Thread(target=lambda: core.run_own_agent(), name=f"vdi-agent {name}", daemon=True).start()
    except BaseException:
        core.starting = False
        if not core.agent:
            core.idle.set()
        raise


@atexit.register
def _at_exit():
    cdef ServerCore core
    deadline = time.monotonic() + _EXIT_SECONDS
    for reference in list(_cores):
        core = reference()
        if core is not None:
            core.leave(deadline)


def wait(call):
    """Call what may wait. Only the main thread answers signals: it leaves the call to another one, and looks up often.

    A signal may be delivered to any thread, so that its arrival alone does not end a wait of the main thread.
    """
    if not Py_IsInitialized() or threading.get_ident() != threading.main_thread().ident:
        return call()
    future = Future()
    done = threading.Event()

    def answer():
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)
        finally:
            done.set()

    try:
        threading.Thread(target=answer, name="vdi-call", daemon=True).start()
    except RuntimeError:  # no thread to be had, as when the interpreter shuts down
        return call()
    while not done.wait(_SLICE_SECONDS):
        pass
    return future.result()
