# cython: annotation_typing=False
"""One device of a set: the stream of commands that the server sends."""
from ..errors import VDNotOpenError

cimport cython

from ..libvdi cimport (
    DWORD,
    ERROR_OPERATION_ABORTED,
    HRESULT,
    VD_E_CLOSE,
    VD_E_NOTOPEN,
    VD_E_TIMEOUT,
    VDC_Command,
    VDI_STATE_NORMALLY_TERMINATED,
)
from .command cimport Command, new_command
from .refs cimport DeviceRef, deadline_after, slice_of, usable


cdef enum:
    SLICE_MS = 100
    FOREIGN_SLICE_MS = 10  # other threads' completions wait that long


@cython.final
@cython.no_gc
cdef class VirtualDevice:
    """One stream of the set. Made by `VirtualDeviceSet.open_device`; an iterator over its commands.

    It has no close of its own: the server ends it, and after that nothing arrives any more. It keeps the set alive.

    Threads: one at a time in `get_command` or an iteration (another one gets a `RuntimeError`); different devices are
    independent of each other, and commands may be completed by any thread.

    Attributes
    ----------
    name : str
        The device's name.

    Wraps: IClientVirtualDevice (vdi.h)
    """

    def __init__(self, *args, **kwargs):
        raise TypeError("devices come from VirtualDeviceSet.open_device()")

    def __reduce__(self):
        raise TypeError("a VirtualDevice belongs to its process; open it by name in the other one")

    def get_command(self, timeout: float | None = None) -> Command:
        """Return the next command.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait for one; 0 only looks, None waits for ever.

        Raises
        ------
        VDTimeoutError
            None came in time.
        VDClosedError
            The server has closed the device: the normal end.
        VDAbortError
            The set was aborted.
        VDInvalidError
            The server has no device of this name.
        VDNotOpenError
            The set was closed, or the device was inherited through fork.
        RuntimeError
            Another thread is waiting for a command of this device.
        KeyboardInterrupt
            On Ctrl-C, at most 0.1 s after it. No command is lost by that.

        Wraps: IClientVirtualDevice::GetCommand (vdi.h)
        """
        cdef Command command = self._next(timeout)
        if command is None:
            raise self._ref.set.error(VD_E_CLOSE, "GetCommand")
        return command

    def commands(self, timeout: float | None = None) -> CommandIterator:
        """Iterate over the commands until the server closes the device.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait for each; a `VDTimeoutError` leaves the iterator usable. Other errors as `get_command`.
        """
        deadline_after(timeout)  # refuses a bad one now and not at the first command
        cdef CommandIterator commands = CommandIterator.__new__(CommandIterator)
        commands._device = self
        commands._timeout = timeout
        return commands

    def __iter__(self) -> VirtualDevice:
        return self

    def __next__(self) -> Command:
        cdef Command command = self._next(None)
        if command is None:
            raise StopIteration
        return command

    def __repr__(self) -> str:
        if self._ref is None or not usable(self._ref.set):
            return f"<VirtualDevice {self.name!r}, closed>"
        return f"<VirtualDevice {self.name!r}>"

    cdef Command _next(self, object timeout):
        """The next command; None when the server has closed the device."""
        cdef VDC_Command *c = NULL
        cdef HRESULT hr
        cdef DeviceRef ref = self._ref
        if ref is None:
            raise VDNotOpenError(VD_E_NOTOPEN, "devices come from VirtualDeviceSet.open_device()")
        if not usable(ref.set):
            ref.set.refuse()
        if ref.getting or ref.set.embedded == NULL:
            ref.fetching()
        # A poll makes no system call, and giving up the GIL costs more than a command that is there already.
        hr = ref.p.lpVtbl.GetCommand(ref.p, 0, &c)
        if hr == VD_E_TIMEOUT:
            hr = self._wait(timeout, &c)
        if hr == VD_E_CLOSE:
            ref.set.state = VDI_STATE_NORMALLY_TERMINATED
            return None
        if hr < 0:
            raise ref.set.error(hr, "GetCommand")
        try:
            return new_command(ref, c)
        except MemoryError:
            ref.p.lpVtbl.CompleteCommand(ref.p, c, ERROR_OPERATION_ABORTED, 0, 0)
            raise

    cdef HRESULT _wait(self, object timeout, VDC_Command **p_command) except? -1:
        cdef HRESULT hr
        cdef DWORD ms
        cdef DeviceRef ref = self._ref
        cdef double deadline = deadline_after(timeout)
        if slice_of(deadline) == 0:
            return VD_E_TIMEOUT
        ref.getting = True
        ref.set.in_flight += 1
        try:
            while True:
                ms = slice_of(deadline, SLICE_MS if ref.set.embedded != NULL else FOREIGN_SLICE_MS)
                with nogil:
                    hr = ref.p.lpVtbl.GetCommand(ref.p, ms, p_command)
                if hr != VD_E_TIMEOUT or ms == 0:
                    return hr
                ref.set.between_slices()
                if ref.posted is not None:
                    ref.getting = False
                    ref.fetching()
                    ref.getting = True
        finally:
            ref.getting = False
            ref.set.leave()


@cython.final
@cython.no_gc
cdef class CommandIterator:
    """Iterator over the commands of a device, with a timeout for each. Made by `VirtualDevice.commands`."""
    cdef VirtualDevice _device
    cdef object _timeout    # a number or None

    def __init__(self, *args, **kwargs):
        raise TypeError("use VirtualDevice.commands()")

    def __iter__(self) -> CommandIterator:
        return self

    def __next__(self) -> Command:
        if self._device is None:
            raise TypeError("use VirtualDevice.commands()")
        cdef Command command = self._device._next(self._timeout)
        if command is None:
            raise StopIteration
        return command


cdef VirtualDevice new_device(DeviceRef ref, str name):
    cdef VirtualDevice self = VirtualDevice.__new__(VirtualDevice)
    self._ref = ref
    self.name = name
    return self
