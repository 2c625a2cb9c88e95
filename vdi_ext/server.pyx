"""The server half of the interface: what SQL Server's side of a backup or restore does with a device set.

A server opens the set that a client created, configures it, opens the devices, lends buffers to the client with
commands, and hears of their completion on one thread, the completion agent (sections 1.3, 5.3 and 5.4 of the
specification).
"""

import atexit
import math
import threading
import time
import weakref
from collections import namedtuple
from concurrent.futures import Future

cimport cython
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_FULL_RO, PyBUF_ND, PyBUF_STRIDES, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_WriteUnraisable
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.string cimport memset

from ._core.provider cimport Provider, fork_generation, provider_for, wide
from .libvdi cimport (
    BYTE,
    DWORD,
    DWORDLONG,
    HRESULT,
    IID_IServerVirtualDeviceSet2,
    IID_IVdiEmbeddedSet,
    CLSID_MSSQL_ServerVirtualDeviceSet,
    INFINITE,
    IServerVirtualDevice,
    IServerVirtualDeviceSet2,
    IVdiEmbeddedSet,
    LPCWSTR,
    NOERROR,
    VD_E_ABORT,
    VD_E_BUSY,
    VD_E_NOTOPEN,
    VD_E_NOTSUPPORTED,
    VD_E_PROTOCOL,
    VDConfig,
    VDI_STATE_ABORT,
    VDI_STATE_DOES_NOT_EXIST,
    VDI_STATE_NORMALLY_TERMINATED,
    VDS_Command,
    VdiAbortInfo,
)

from .config import DeviceSetConfig
from .constants import CompletionCode, SetState
from .errors import VDAbortError, VDProtocolError, error_from_hresult

__all__ = ["Completion", "ServerBuffer", "ServerDevice", "ServerDeviceSet"]

cdef extern from *:
    """
    /* The command that this thread is handing to SendCommand. A refused one is completed before SendCommand returns, on
     * this same thread, which may hold the GIL: its completion routine must find that out without Python. */
    static _Thread_local void *vdi_sending;
    """
    void *vdi_sending


cdef extern from "Python.h":
    int PyErr_ResourceWarning(object source, Py_ssize_t stack_level, const char *format, ...) except -1


Completion = namedtuple("Completion", ("code", "bytes_transferred", "position"), module=__name__)
Completion.__doc__ = """How a client completed a command.

Attributes
----------
code : CompletionCode or int
    Win32 code; anything but ``CompletionCode.SUCCESS`` put the device into IO-ERROR.
bytes_transferred : int
    Bytes of a READ or WRITE; honoured whatever the code.
position : int
    Answer to GET_POSITION and SET_POSITION.

Source: ``VDS_Command``, sections 2.1 and 7.2.
"""

cdef dict _CODES = {int(code): code for code in CompletionCode}
cdef object _new_tuple = tuple.__new__
cdef set _open_sets = set()  # weak references to cores
cdef double _EXIT_SECONDS = 1.0
_SLICE_SECONDS = 0.1


# ---- native objects ------------------------------------------------------------------------------------------------

@cython.final
@cython.no_gc_clear  # __dealloc__ and releasing views need the fields
cdef class _Core:
    """One native device set: shared and kept alive by set, devices, buffers, outstanding commands and agent threads.

    Close, which unmaps the buffers, is called once, and never while a view of a buffer exists.
    """

    cdef IServerVirtualDeviceSet2 *set  # one reference
    cdef IVdiEmbeddedSet *embedded      # one reference; NULL with a foreign provider
    cdef unsigned int forks
    cdef Py_ssize_t exports             # views of buffers
    cdef bint opened
    cdef bint closing                   # to be closed as soon as neither view nor agent is left
    cdef bint closed                    # Close has been called
    cdef bint starting                  # an own agent thread was started and has not arrived yet
    cdef bint agent                     # a thread is in ExecuteCompletionAgent
    cdef object agent_ident             # that thread
    cdef object idle                    # Event: no agent
    cdef object failure                 # what a callback raised and nobody has heard of yet
    cdef Provider provider              # keeps the library loaded
    cdef object __weakref__

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

    def open(self, bytes instance, bytes name):
        cdef LPCWSTR p_instance = NULL
        cdef LPCWSTR p_name = <LPCWSTR><const char *>name
        cdef HRESULT hr
        if instance is not None:
            p_instance = <LPCWSTR><const char *>instance
        with nogil:
            hr = self.set.lpVtbl.Open(self.set, p_instance, p_name)
        self.opened = hr >= 0
        return hr

    cdef HRESULT abort(self, str reason):
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

    def close(self):
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
        if self.closing and not self.closed and self.exports == 0 and not self.agent and self.forks == fork_generation:
            self.close()

    def run_agent(self, bint own=False):
        """ExecuteCompletionAgent on this thread; VD_E_BUSY where an agent runs."""
        cdef HRESULT hr
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

    def run_own_agent(self):
        hr = self.run_agent(True)
        if hr not in (NOERROR, VD_E_ABORT, VD_E_BUSY, VD_E_PROTOCOL):
            self.fail(self.error(hr, "ExecuteCompletionAgent"))

    cdef start_agent(self, str name):
        self.starting = True
        self.idle.clear()
        try:
            # A daemon thread: it must not keep the interpreter; _at_exit ends it before Python is finalised.
            threading.Thread(target=self.run_own_agent, name=f"vdi-agent {name}", daemon=True).start()
        except BaseException:
            self.starting = False
            if not self.agent:
                self.idle.set()
            raise

    def leave(self, double deadline):
        """The process ends with the set open: abort, and let the agent go before Python is finalised."""
        if self.forks != fork_generation or self.closed:
            return
        if not self.closing:
            if self.state() != VDI_STATE_NORMALLY_TERMINATED:
                self.abort("the server's process exits")
            self.closing = True
        if self.idle.wait(max(0.0, deadline - time.monotonic())):
            self.close_if_unused()


@atexit.register
def _at_exit():
    deadline = time.monotonic() + _EXIT_SECONDS
    for reference in list(_open_sets):
        core = reference()
        if core is not None:
            core.leave(deadline)


def _wait(call):
    """Call what may wait. Only the main thread answers signals: it leaves the call to another one, and looks up often.

    A signal may be delivered to any thread, so that its arrival alone does not end a wait of the main thread.
    """
    if threading.get_ident() != threading.main_thread().ident:
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


# ---- completions ---------------------------------------------------------------------------------------------------

@cython.final
@cython.freelist(64)
cdef class _Pending:
    """A command between SendCommand and its completion routine; the provider holds one reference to it."""

    cdef VDS_Command command
    cdef _Core core
    cdef ServerBuffer buffer
    cdef object future
    cdef object callback


cdef void _completed(VDS_Command *command) noexcept nogil:
    """Completion routine: on the agent's thread, on the closing one where no agent ran, or inside SendCommand."""
    if vdi_sending == <void *>command:
        return  # refused: the sender raises, and the command is still his
    _deliver(command)


cdef void _deliver(VDS_Command *command) noexcept with gil:
    cdef _Pending pending = <_Pending><void *>command.completionContext
    Py_DECREF(pending)
    if pending.buffer is not None:
        pending.buffer.lent = False
    try:
        code = command.completionCode
        completion = _new_tuple(
            Completion, (_CODES.get(code, code), command.bytesTransferred, command.outPosition)
        )
        if pending.callback is not None:
            try:
                pending.callback(completion)
            except BaseException as error:
                pending.core.fail(error)  # before the future is done: who waits for it finds the set aborted
        pending.future.set_result(completion)
    except BaseException as error:  # no memory, or the user finished the future himself
        try:
            pending.core.fail(error)
        except BaseException:
            PyErr_WriteUnraisable(pending.future)


# ---- public objects ------------------------------------------------------------------------------------------------

@cython.final
@cython.no_gc_clear  # __dealloc__ needs the core
cdef class ServerBuffer:
    """A shared buffer of a device set, writable through the buffer protocol without a copy.

    Made by `ServerDeviceSet.allocate_buffer`. The memory is that of the set's shared mapping; the client sees the same
    bytes. Views may live on while the buffer is lent to a command: that endangers the data that the client sees, and
    nothing else. A buffer that is collected is given back to the set.

    Thread safety: any thread.

    Source: sections 6.6 and 8 of the specification.
    """

    cdef _Core _core
    cdef BYTE *_data  # in the mapping of _core; NULL when freed
    cdef DWORD _size
    cdef Py_ssize_t _exports
    cdef Py_ssize_t _shape
    cdef Py_ssize_t _stride
    cdef bint lent    # out with a command

    def __init__(self, *args, **kwargs):
        raise TypeError("a ServerBuffer comes from ServerDeviceSet.allocate_buffer")

    def __dealloc__(self):
        cdef _Core core = self._core
        if core is None or self._data == NULL or core.forks != fork_generation or core.closed:
            return
        with nogil:
            core.set.lpVtbl.FreeBuffer(core.set, self._data, self._size)

    @property
    def size(self) -> int:
        """Bytes of data, without the client's prefix zone."""
        return self._size

    @property
    def is_lent(self) -> bool:
        """Whether a command that has not been completed holds the buffer."""
        return self.lent

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        state = "freed" if self._data == NULL else "lent" if self.lent else "held"
        return f"<ServerBuffer {self._size} bytes at 0x{<size_t>self._data:x}, {state}, {self._exports} exports>"

    def __buffer__(self, int flags, /) -> memoryview:
        """Return a view; from Python 3.12 on the interpreter provides this itself."""
        return memoryview(self)

    def __getbuffer__(self, Py_buffer *view, int flags):
        if self._data == NULL or self._core.closing:
            raise ValueError("the buffer was freed, or its set closed")
        if self._core.forks != fork_generation:
            raise error_from_hresult(VD_E_NOTOPEN, "AllocateBuffer")
        self._shape = self._size
        self._stride = 1
        view.buf = self._data
        view.len = self._size
        view.itemsize = 1
        view.readonly = 0
        view.ndim = 1
        view.format = <char *>b"B" if flags & PyBUF_FORMAT else NULL
        view.shape = &self._shape if flags & PyBUF_ND else NULL
        view.strides = &self._stride if (flags & PyBUF_STRIDES) == PyBUF_STRIDES else NULL
        view.suboffsets = NULL
        view.internal = NULL
        self._exports += 1
        self._core.exports += 1
        view.obj = self

    def __releasebuffer__(self, Py_buffer *view):
        self._exports -= 1
        self._core.exports -= 1
        self._core.close_if_unused()


@cython.final
@cython.no_gc_clear  # __dealloc__ needs the core
cdef class ServerDevice:
    """One virtual device, server side. Made by `ServerDeviceSet.open_device`, and keeps its set alive.

    Thread safety: any thread.
    """

    cdef IServerVirtualDevice *_p  # one reference
    cdef ServerDeviceSet _set
    cdef _Core _core
    cdef str _name

    def __init__(self, *args, **kwargs):
        raise TypeError("a ServerDevice comes from ServerDeviceSet.open_device")

    def __dealloc__(self):
        if self._p != NULL and self._core.forks == fork_generation:
            with nogil:
                self._p.lpVtbl.Release(self._p)

    cdef _Core _open(self, str operation):
        if self._core is None:
            raise error_from_hresult(VD_E_PROTOCOL, operation)
        self._core.native(operation)
        return self._core

    @property
    def name(self) -> str:
        """The device's name, given at `ServerDeviceSet.open_device`."""
        return self._name

    def __repr__(self) -> str:
        return f"<ServerDevice {self._name!r} of {self._set!r}>"

    def send_command(self, code, ServerBuffer buffer=None, *, size=None, position=0, callback=None):
        """Queue a command for the client.

        The buffer is lent until the command is completed: it can be neither freed nor sent again before. Its contents
        should be left alone as well, although views of it may live.

        The first send starts a completion agent on a thread of its own, unless one runs already.

        Parameters
        ----------
        code : CommandCode or int
            What to do.
        buffer : ServerBuffer, optional
            For READ and WRITE: a buffer of the same set.
        size : int, optional
            Bytes to transfer; or a count, or a whence. The buffer's size where not given, 0 without a buffer.
        position : int
            Bytes, for random access and SET_POSITION.
        callback : callable, optional
            Called with the `Completion` on the agent's thread, once, before the future is done. It may send the next
            command, abort or close. An exception from it aborts the set and is raised by
            `ServerDeviceSet.execute_completion_agent`, else by `ServerDeviceSet.close`.

        Returns
        -------
        concurrent.futures.Future of Completion
            Done exactly once, whatever happens to the client; it can not be cancelled. After an abort its code is
            OPERATION_ABORTED, and a client that still runs may use the buffer until it closes.

        Raises
        ------
        VDQueueFullError, VDIOError, VDProtocolError, VDAbortError, VDInvalidError
            The command was refused: nothing was sent and no callback is called. VDIOError: the device is in IO-ERROR
            and takes only CLEAR_ERROR.
        ValueError
            The buffer belongs to another set, is freed, or is lent.

        Wraps: IServerVirtualDevice::SendCommand (section 5.4).
        """
        global vdi_sending  # a C variable of this thread
        cdef _Core core = self._open("SendCommand")
        cdef _Pending pending
        cdef VDS_Command *command
        cdef HRESULT hr
        if callback is not None and not callable(callback):
            raise TypeError(f"callback must be callable, not {type(callback).__name__}")
        pending = _Pending.__new__(_Pending)
        command = &pending.command
        memset(command, 0, sizeof(VDS_Command))
        command.commandCode = code
        command.inPosition = position
        command.completionRoutine = <BYTE *>&_completed
        command.completionContext = <BYTE *><void *>pending
        if size is not None:
            command.size = _dword(size)
        if buffer is not None:
            if buffer._core is not core:
                raise ValueError("the buffer belongs to another set")
            if buffer._data == NULL:
                raise ValueError("the buffer was freed")
            if buffer.lent:
                raise ValueError("the buffer is lent to a command that is not completed")
            command.buffer = buffer._data
            if size is None:
                command.size = buffer._size
        future = Future()
        future.set_running_or_notify_cancel()
        pending.core = core
        pending.buffer = buffer
        pending.future = future
        pending.callback = callback
        if not core.agent and not core.starting:
            core.start_agent(self._set._name)
        # From here to the check nothing may raise or run Python code: the provider owns one reference when hr is good.
        Py_INCREF(pending)
        if buffer is not None:
            if buffer.lent or buffer._data == NULL:  # starting the agent let other threads run
                Py_DECREF(pending)
                raise ValueError("the buffer was freed or sent by another thread")
            buffer.lent = True
        vdi_sending = command
        if core.embedded != NULL:
            hr = self._p.lpVtbl.SendCommand(self._p, command)  # does not wait
        else:
            with nogil:
                hr = self._p.lpVtbl.SendCommand(self._p, command)
        vdi_sending = NULL
        if hr < 0:
            if buffer is not None:
                buffer.lent = False
            Py_DECREF(pending)
            raise core.error(hr, "SendCommand")
        return future

    def close_device(self):
        """End the device: the client gets the commands queued so far, then the end.

        Raises
        ------
        VDClosedError
            It was closed before.
        VDAbortError, VDProtocolError
            The set was aborted; it was closed.

        Wraps: IServerVirtualDevice::CloseDevice (section 5.4).
        """
        cdef _Core core = self._open("CloseDevice")
        cdef HRESULT hr
        with nogil:
            hr = self._p.lpVtbl.CloseDevice(self._p)
        core.check(hr, "CloseDevice")


@cython.final
@cython.no_gc_clear
cdef class ServerDeviceSet:
    """A device set, server side, made by `ServerDeviceSet.open`; a context manager.

    Leaving the ``with`` block closes the set; leaving it by an exception aborts it first, and puts the native Close off
    until no view of a buffer lives. An open set that is collected is aborted and closed with a `ResourceWarning`. In a
    forked child the set and all that came from it are inert: calls raise `VDNotOpenError`, and nothing is closed.

    Thread safety: any thread. Every call that can wait answers Ctrl-C on the main thread: the native call then runs on
    a helper thread, and finishes there by itself.
    """

    cdef _Core _core
    cdef str _name
    cdef str _instance
    cdef object __weakref__

    def __cinit__(self, *args, **kwargs):
        self._core = _Core()

    def __init__(self, *args, **kwargs):
        raise TypeError("a ServerDeviceSet comes from ServerDeviceSet.open")

    def __del__(self):
        cdef _Core core = self._core
        if core.forks != fork_generation or not core.opened or core.closing:
            return
        core.closing = True
        if core.state() != VDI_STATE_NORMALLY_TERMINATED:
            core.abort("the server dropped the set without closing it")
        core.close_if_unused()
        PyErr_ResourceWarning(self, 1, b"unclosed device set %R", <void *>self)
        core.raise_failure()

    @classmethod
    def open(cls, str name not None, *, str instance=None, provider=None):
        """Join the set that a client created.

        Parameters
        ----------
        name : str
            Name of the set: the first VIRTUAL_DEVICE of the statement. Case-sensitive.
        instance : str, optional
            Instance that the client named; None or empty is the default one.
        provider : Provider, str or os.PathLike, optional
            ``"embedded"`` (default), ``"system"``, or the path of a library.

        Raises
        ------
        VDInvalidError
            No set of that name.
        VDBusyError
            It has a server.
        VDSecurityError, VDProtocolError, VDTimeoutError
            It belongs to another user; it has ended; the client's process did not answer within 5 seconds.

        Wraps: IServerVirtualDeviceSet2::Open (section 5.3).
        """
        cdef ServerDeviceSet self = cls.__new__(cls)
        cdef _Core core = self._core
        self._name = name
        self._instance = instance
        w_name = wide(name)
        w_instance = None if instance is None else wide(instance)
        core.provider = provider_for(provider, True)
        core.set = <IServerVirtualDeviceSet2 *>core.provider.create_instance(
            &CLSID_MSSQL_ServerVirtualDeviceSet, &IID_IServerVirtualDeviceSet2
        )
        if core.set.lpVtbl.QueryInterface(core.set, &IID_IVdiEmbeddedSet, <void **>&core.embedded) < 0:
            core.embedded = NULL
        try:
            core.check(_wait(lambda: core.open(w_instance, w_name)), "Open")
        except BaseException:
            core.closing = True  # nobody gets this object: its end is no news
            raise
        _open_sets.add(weakref.ref(core, _open_sets.discard))
        return self

    @property
    def name(self) -> str:
        """The name of the set."""
        return self._name

    @property
    def instance(self) -> str | None:
        """The instance given at `open`."""
        return self._instance

    @property
    def state(self) -> SetState:
        """The server's view of the set (section 6.1).

        Raises
        ------
        VDNotSupportedError
            A foreign provider does not tell.
        """
        cdef _Core core = self._core
        core.native("GetState")
        if core.embedded == NULL and not core.closed:
            raise error_from_hresult(VD_E_NOTSUPPORTED, "GetState")
        return SetState(core.state())

    @property
    def agent_running(self) -> bool:
        """Whether a thread is the completion agent: the caller's, or the set's own."""
        return self._core.agent or self._core.starting

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name!r}>"

    def __enter__(self):
        self._core.native("Open")
        return self

    def __exit__(self, kind, error, traceback):
        cdef _Core core = self._core
        if kind is None:
            self.close()
            return
        if core.forks != fork_generation or core.closing or not core.opened:
            return
        core.abort(f"the server raised {kind.__name__}: {error}")
        core.closing = True
        _wait(self._close_aborted)
        if core.failure is not None and core.failure is not error and core.failure is not error.__cause__:
            error.add_note(f"A completion callback had raised {core.failure!r}")
        core.failure = None

    def _close_aborted(self):
        cdef _Core core = self._core
        if core.exports == 0:
            core.close()

    def get_configuration(self):
        """Return what the client asked for; from `begin_configuration` on, what was decided.

        Raises
        ------
        VDAbortError, VDProtocolError
            The set was aborted; it was closed.

        Wraps: IServerVirtualDeviceSet2::GetConfiguration (section 5.3).
        """
        cdef _Core core = self._core
        cdef IServerVirtualDeviceSet2 *p = core.native("GetConfiguration")
        cdef VDConfig c
        cdef HRESULT hr
        memset(&c, 0, sizeof(c))
        with nogil:
            hr = p.lpVtbl.GetConfiguration(p, &c)
        core.check(hr, "GetConfiguration")
        return DeviceSetConfig.from_wire((
            c.deviceCount, c.features, c.prefixZoneSize, c.alignment, c.softFileMarkBlockSize, c.EOMWarningSize,
            c.serverTimeOut, c.blockSize, c.maxIODepth, c.maxTransferSize, c.bufferAreaSize,
        ))

    def begin_configuration(self, features, block_size, alignment, max_transfer_size, timeout=None):
        """Fix the properties of the set.

        Parameters
        ----------
        features : Feature
            The client's features, a direction (WRITE_MEDIA or READ_MEDIA), and COMPLETE_ENABLED where granted.
        block_size : int
            Bytes; a power of 2 from 512 to 65536.
        alignment : int
            Bytes; 0 for the block size, else a power of 2 from the block size to 65536.
        max_transfer_size : int
            Bytes; a multiple of 65536.
        timeout : float, optional
            Seconds; carried, and without effect (section 13, Q5).

        Raises
        ------
        VDInvalidError
            A value breaks the rules above.
        VDProtocolError, VDAbortError
            Not allowed in this state; the set was aborted.

        Wraps: IServerVirtualDeviceSet2::BeginConfiguration (sections 4.3 and 5.3).
        """
        cdef _Core core = self._core
        cdef IServerVirtualDeviceSet2 *p = core.native("BeginConfiguration")
        cdef DWORD bits = features, block = block_size, align = alignment, transfer = max_transfer_size
        cdef DWORD ms = _milliseconds(timeout)
        cdef HRESULT hr
        with nogil:
            hr = p.lpVtbl.BeginConfiguration(p, bits, block, align, transfer, ms)
        core.check(hr, "BeginConfiguration")

    def request_buffers(self, size, alignment, count):
        """Declare that buffers will be wanted: summed up before `end_configuration`, obtained at once after it.

        Parameters
        ----------
        size : int
            Bytes of data of each; the client's prefix zone is added by itself.
        alignment : int
            Bytes, a power of 2; 0 for that of the set.
        count : int
            How many.

        Raises
        ------
        VDMemoryError
            Not enough memory; the state stays.
        VDInvalidError, VDProtocolError, VDAbortError
            A bad value; not allowed in this state; the set was aborted.

        Wraps: IServerVirtualDeviceSet2::RequestBuffers (sections 5.3 and 8.1).
        """
        cdef DWORD c_size = size, c_alignment = alignment, c_count = count
        self._core.native("RequestBuffers")
        self._core.check(_wait(lambda: self._request_buffers(c_size, c_alignment, c_count)), "RequestBuffers")

    def _request_buffers(self, DWORD size, DWORD alignment, DWORD count):
        cdef IServerVirtualDeviceSet2 *p = self._core.set
        cdef HRESULT hr
        with nogil:
            hr = p.lpVtbl.RequestBuffers(p, size, alignment, count)
        return hr

    def query_available_buffers(self, size, alignment):
        """Return how many buffers of that size and alignment (bytes) can still be had.

        Raises
        ------
        VDInvalidError, VDProtocolError, VDAbortError
            A bad value; not allowed in this state; the set was aborted.

        Wraps: IServerVirtualDeviceSet2::QueryAvailableBuffers (section 5.3).
        """
        cdef _Core core = self._core
        cdef IServerVirtualDeviceSet2 *p = core.native("QueryAvailableBuffers")
        cdef DWORD c_size = size, c_alignment = alignment, count = 0
        cdef HRESULT hr
        with nogil:
            hr = p.lpVtbl.QueryAvailableBuffers(p, c_size, c_alignment, &count)
        core.check(hr, "QueryAvailableBuffers")
        return count

    def end_configuration(self):
        """Obtain the memory declared so far and let the client go on.

        Raises
        ------
        VDMemoryError
            Not enough memory: the state stays, the declarations are dropped, and fewer may be declared.
        VDProtocolError, VDAbortError
            Not allowed in this state; the set was aborted.

        Wraps: IServerVirtualDeviceSet2::EndConfiguration (sections 5.3 and 8.1).
        """
        self._core.native("EndConfiguration")
        self._core.check(_wait(self._end_configuration), "EndConfiguration")

    def _end_configuration(self):
        cdef IServerVirtualDeviceSet2 *p = self._core.set
        cdef HRESULT hr
        with nogil:
            hr = p.lpVtbl.EndConfiguration(p)
        return hr

    def open_device(self, str name not None):
        """Open the next device and give it its name.

        Parameters
        ----------
        name : str
            Unique within the set; that of the first is by custom the name of the set.

        Raises
        ------
        VDOpenError
            As many as configured are open.
        VDInvalidError, VDProtocolError, VDAbortError
            A bad or used name; not allowed in this state; the set was aborted.

        Wraps: IServerVirtualDeviceSet2::OpenDevice (section 5.3).
        """
        cdef _Core core = self._core
        cdef IServerVirtualDeviceSet2 *p = core.native("OpenDevice")
        cdef ServerDevice device = ServerDevice.__new__(ServerDevice)
        cdef IServerVirtualDevice *p_device = NULL
        cdef bytes w_name = wide(name)
        cdef LPCWSTR p_name = <LPCWSTR><const char *>w_name
        cdef HRESULT hr
        with nogil:
            hr = p.lpVtbl.OpenDevice(p, p_name, &p_device)
        core.check(hr, "OpenDevice")
        device._set = self
        device._core = core
        device._name = name
        device._p = p_device
        return device

    def allocate_buffer(self, size, alignment=0):
        """Take a shared buffer from the area of the set.

        Parameters
        ----------
        size : int
            Bytes of data; the client's prefix zone comes on top, hidden.
        alignment : int
            Bytes, a power of 2; 0 for that of the set.

        Returns
        -------
        ServerBuffer
            Writable; given back by `free_buffer`, by its collection, or with the set.

        Raises
        ------
        VDMemoryError
            The area has no room left.
        VDInvalidError, VDProtocolError, VDAbortError
            A bad value; not allowed in this state; the set was aborted.

        Wraps: IServerVirtualDeviceSet2::AllocateBuffer (section 5.3).
        """
        cdef _Core core = self._core
        cdef IServerVirtualDeviceSet2 *p = core.native("AllocateBuffer")
        cdef ServerBuffer buffer = ServerBuffer.__new__(ServerBuffer)
        cdef DWORD c_size = size, c_alignment = alignment
        cdef BYTE *data = NULL
        cdef HRESULT hr
        with nogil:
            hr = p.lpVtbl.AllocateBuffer(p, &data, c_size, c_alignment)
        core.check(hr, "AllocateBuffer")
        buffer._core = core
        buffer._size = c_size
        buffer._data = data
        return buffer

    def free_buffer(self, ServerBuffer buffer not None):
        """Give a buffer back. Allowed until `close`, also after the end and after an abort.

        Raises
        ------
        BufferError
            Views of it live.
        ValueError
            It belongs to another set, is freed already, or is lent to a command.
        VDProtocolError
            The set was closed.

        Wraps: IServerVirtualDeviceSet2::FreeBuffer (section 5.3).
        """
        cdef _Core core = self._core
        cdef IServerVirtualDeviceSet2 *p = core.native("FreeBuffer")
        cdef BYTE *data = buffer._data
        cdef DWORD size = buffer._size
        cdef HRESULT hr
        if buffer._core is not core:
            raise ValueError("the buffer belongs to another set")
        if data == NULL:
            raise ValueError("the buffer was freed")
        if buffer.lent:
            raise ValueError("the buffer is lent to a command that is not completed")
        if buffer._exports:
            raise BufferError(f"{buffer._exports} views of the buffer live: release or delete them first")
        buffer._data = NULL  # taken out before other threads can run
        with nogil:
            hr = p.lpVtbl.FreeBuffer(p, data, size)
        core.check(hr, "FreeBuffer")

    def is_shared_buffer(self, buffer) -> bool:
        """Return whether an object's memory lies in an allocated buffer of this set.

        Parameters
        ----------
        buffer : object with the buffer protocol
            Its first byte decides.

        Wraps: IServerVirtualDeviceSet2::IsSharedBuffer (section 5.3).
        """
        cdef IServerVirtualDeviceSet2 *p = self._core.native("IsSharedBuffer")
        cdef Py_buffer view
        cdef HRESULT hr
        PyObject_GetBuffer(buffer, &view, PyBUF_FULL_RO)
        with nogil:
            hr = p.lpVtbl.IsSharedBuffer(p, <BYTE *>view.buf)
        PyBuffer_Release(&view)
        return hr == 1  # TRUE; numerically S_FALSE

    def execute_completion_agent(self):
        """Be the completion agent: call the callbacks and finish the futures of completed commands.

        Runs until all devices of the set have been opened and closed and nothing is outstanding, or until `close`.
        Called on the main thread it waits, answering Ctrl-C, while a helper thread is the agent; callbacks then run on
        that one, and after Ctrl-C it remains the agent. Not needed where the set's own agent, started by the first
        send, will do: to use another thread, let `agent_running` become true before the first send.

        Raises
        ------
        VDBusyError
            An agent runs already. After the abort of a set this is waited for instead.
        VDAbortError
            The set was aborted; outstanding commands were completed with OPERATION_ABORTED before.
        VDProtocolError
            Not allowed in this state.
        Exception
            What a callback raised.

        Wraps: IServerVirtualDeviceSet2::ExecuteCompletionAgent (section 5.3).
        """
        cdef _Core core = self._core
        core.native("ExecuteCompletionAgent")
        if core.agent_ident != threading.get_ident():
            while (core.agent or core.starting) and core.state() == VDI_STATE_ABORT:
                core.idle.wait(_SLICE_SECONDS)
        hr = _wait(core.run_agent)
        if hr != VD_E_BUSY:
            core.raise_failure()
        core.check(hr, "ExecuteCompletionAgent")

    def signal_abort(self, str reason=None):
        """End the operation for every process. Does not depend on views, and does not close.

        Outstanding commands are completed with OPERATION_ABORTED; clients get `VDAbortError`.

        Parameters
        ----------
        reason : str, optional
            One sentence for the others; cut at 255 bytes.

        Raises
        ------
        VDProtocolError
            The set was closed.

        Wraps: IServerVirtualDeviceSet2::SignalAbort (sections 5.3 and 9.3).
        """
        self._core.native("SignalAbort")
        self._core.check(self._core.abort(reason), "SignalAbort")

    def close(self):
        """Leave the set; afterwards this object, its devices and its buffers are of no use. Idempotent.

        Waits for a running agent, unless called from a callback. Buffers need not be freed before.

        Raises
        ------
        BufferError
            Views of buffers live; nothing was done.
        VDProtocolError
            Devices were open: the set was aborted, and closed all the same.
        Exception
            What a callback raised and `execute_completion_agent` was not called to hear; the set is closed.

        Wraps: IServerVirtualDeviceSet2::Close (section 5.3).
        """
        cdef _Core core = self._core
        if core.closing and core.forks == fork_generation:
            return
        core.native("Close")
        if core.exports:
            raise BufferError(
                f"{core.exports} views of buffers live: release or delete them before closing the set"
            )
        core.closing = True
        hr = _wait(core.close)
        core.raise_failure()
        core.check(hr, "Close")


cdef DWORD _dword(object value) except? 0:
    """A count may be negative (SKIP_BLOCKS): 32 bits, signed or unsigned."""
    cdef long long number = value
    if not -0x80000000 <= number <= 0xFFFFFFFF:
        raise OverflowError(f"{number} does not fit into 32 bits")
    return <DWORD>(number & 0xFFFFFFFF)


cdef DWORD _milliseconds(object timeout) except? 0:
    if timeout is None:
        return INFINITE
    if not timeout >= 0:
        raise ValueError(f"timeout must be None or at least 0 seconds, not {timeout}")
    return <DWORD>min(math.ceil(min(timeout, 0xFFFFFFFE) * 1000), 0xFFFFFFFE)
