"""The server half of the interface: what SQL Server's side of a backup or restore does with a device set.

A server opens the set that a client created, configures it, opens the devices, lends buffers to the client with
commands, and hears of their completion on one thread, the completion agent (sections 1.3, 5.3 and 5.4 of the
specification).
"""

import math
from collections import namedtuple
from concurrent.futures import Future

cimport cython
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_FULL_RO, PyBUF_ND, PyBUF_STRIDES, PyBuffer_Release, PyObject_GetBuffer
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.string cimport memset

from ._core.provider cimport fork_generation, wide
from ._server cimport ServerCore, report
from .libvdi cimport (
    BYTE,
    DWORD,
    HRESULT,
    INFINITE,
    IServerVirtualDevice,
    IServerVirtualDeviceSet2,
    LPCWSTR,
    VD_E_BUSY,
    VD_E_NOTOPEN,
    VD_E_NOTSUPPORTED,
    VD_E_PROTOCOL,
    VDConfig,
    VDI_STATE_NORMALLY_TERMINATED,
    VDS_Command,
)

from ._server import start_agent, wait
from .config import DeviceSetConfig
from .constants import CompletionCode, SetState
from .errors import error_from_hresult

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

# ---- completions ---------------------------------------------------------------------------------------------------

@cython.final
@cython.freelist(64)
cdef class _Pending:
    """A command between SendCommand and its completion routine; the provider holds one reference to it."""

    cdef VDS_Command command
    cdef ServerCore core
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
        except BaseException as another:
            report(another, pending.future)


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

    cdef ServerCore _core
    cdef BYTE *_data  # in the mapping of _core; NULL when freed
    cdef DWORD _size
    cdef Py_ssize_t _exports
    cdef Py_ssize_t _shape
    cdef Py_ssize_t _stride
    cdef bint lent    # out with a command

    def __init__(self, *args, **kwargs):
        raise TypeError("a ServerBuffer comes from ServerDeviceSet.allocate_buffer")

    def __dealloc__(self):
        cdef ServerCore core = self._core
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
    cdef ServerCore _core
    cdef str _name

    def __init__(self, *args, **kwargs):
        raise TypeError("a ServerDevice comes from ServerDeviceSet.open_device")

    def __dealloc__(self):
        if self._p != NULL and self._core.forks == fork_generation:
            with nogil:
                self._p.lpVtbl.Release(self._p)

    cdef ServerCore _open(self, str operation):
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
        cdef ServerCore core = self._open("SendCommand")
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
            start_agent(core, self._set._name)
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
        cdef ServerCore core = self._open("CloseDevice")
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

    cdef ServerCore _core
    cdef str _name
    cdef str _instance
    cdef object __weakref__

    def __cinit__(self, *args, **kwargs):
        self._core = ServerCore()

    def __init__(self, *args, **kwargs):
        raise TypeError("a ServerDeviceSet comes from ServerDeviceSet.open")

    def __del__(self):
        cdef ServerCore core = self._core
        if core.forks != fork_generation or not core.opened or core.closing:
            return
        core.closing = core.put_off = True
        if core.state() != VDI_STATE_NORMALLY_TERMINATED:
            core.abort("the server dropped the set without closing it")
        core.close_if_unused()
        PyErr_ResourceWarning(self, 1, b"unclosed device set %R", <void *>self)

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
        cdef ServerCore core = self._core
        self._name = name
        self._instance = instance
        w_name = wide(name)
        w_instance = None if instance is None else wide(instance)
        core.create(provider)
        try:
            core.check(wait(lambda: core.open(w_instance, w_name)), "Open")
        except BaseException:
            core.closing = True  # nobody gets this object: its end is no news
            raise
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
        cdef ServerCore core = self._core
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
        cdef ServerCore core = self._core
        if kind is None:
            self.close()
            return
        if core.forks != fork_generation or core.closing or not core.opened:
            return
        core.abort(f"the server raised {kind.__name__}: {error}")
        core.closing = True
        if core.exports:
            core.put_off = True
        else:
            wait(lambda: core.close())
        if core.failure is not None and core.failure is not error and core.failure is not error.__cause__:
            error.add_note(f"A completion callback had raised {core.failure!r}")
        core.failure = None

    def get_configuration(self):
        """Return what the client asked for; from `begin_configuration` on, what was decided.

        Raises
        ------
        VDAbortError, VDProtocolError
            The set was aborted; it was closed.

        Wraps: IServerVirtualDeviceSet2::GetConfiguration (section 5.3).
        """
        cdef ServerCore core = self._core
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
        cdef ServerCore core = self._core
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
        cdef ServerCore core = self._core
        cdef DWORD c_size = size, c_alignment = alignment, c_count = count
        core.native("RequestBuffers")
        core.check(wait(lambda: core.request_buffers(c_size, c_alignment, c_count)), "RequestBuffers")

    def query_available_buffers(self, size, alignment):
        """Return how many buffers of that size and alignment (bytes) can still be had.

        Raises
        ------
        VDInvalidError, VDProtocolError, VDAbortError
            A bad value; not allowed in this state; the set was aborted.

        Wraps: IServerVirtualDeviceSet2::QueryAvailableBuffers (section 5.3).
        """
        cdef ServerCore core = self._core
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
        cdef ServerCore core = self._core
        core.native("EndConfiguration")
        core.check(wait(lambda: core.end_configuration()), "EndConfiguration")

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
        cdef ServerCore core = self._core
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
        cdef ServerCore core = self._core
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
        cdef ServerCore core = self._core
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
        cdef ServerCore core = self._core
        core.native("ExecuteCompletionAgent")
        core.await_aborted_agent()
        hr = wait(lambda: core.run_agent(False))
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
        cdef ServerCore core = self._core
        if core.closing and core.forks == fork_generation:
            return
        core.native("Close")
        if core.exports:
            raise BufferError(
                f"{core.exports} views of buffers live: release or delete them before closing the set"
            )
        core.closing = True
        hr = wait(lambda: core.close())
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
