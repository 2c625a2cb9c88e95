# cython: annotation_typing=False
"""A virtual device set, seen by a client: configuration, devices, handles of buffers, abort and close."""
import time
import uuid

from ..config import DeviceSetConfig
from ..constants import SetState, known
from ..errors import VDInstanceNameError, VDNotOpenError, VDNotSupportedError

cimport cython
from cpython.exc cimport PyErr_CheckSignals

from ..libvdi cimport (
    CLSID_MSSQL_ClientVirtualDeviceSet,
    DWORD,
    HRESULT,
    IClientVirtualDeviceSet2,
    IID_IClientVirtualDeviceSet2,
    IID_IVdiEmbeddedSet,
    VD_E_INSTANCE_NAME,
    VD_E_NOTOPEN,
    VD_E_NOTSUPPORTED,
    VD_E_TIMEOUT,
    VDConfig,
    VDI_STATE_ABORT,
    VDI_STATE_CONFIGURABLE,
    VDI_STATE_INITIALIZING,
)
from .buffer cimport MappedBuffer, handle_of, map_handle
from .command cimport Command
from .device cimport VirtualDevice, new_device
from .provider cimport Provider, fork_generation, provider_for, wide
from .refs cimport (
    CLOSE,
    CREATE_EX,
    OPEN_DEVICE,
    OPEN_IN_SECONDARY_EX,
    DeviceRef,
    NativeCall,
    NativeMethod,
    Py_IsInitialized,
    SetRef,
    deadline_after,
    slice_of,
    usable,
)


@cython.final
@cython.no_gc_clear
cdef class VirtualDeviceSet:
    """The devices of one BACKUP or RESTORE, on the side that stores the data.

    Made by `create` (the primary client) or `open_in_secondary` (any further process). As a context manager it is
    closed at the end; an exception aborts the operation first, for all processes of the set, and goes on unchanged.

    Its memory stays mapped as long as a view of a command or mapped buffer lives, whatever is dropped first. In a
    forked child it is inert: calls raise `VDNotOpenError`, and dropping it does nothing.

    Threads: any thread may call anything at any time. `close` makes calls that wait in other threads raise.

    Wraps: IClientVirtualDeviceSet2 (vdi.h)
    """

    def __init__(self, *args, **kwargs):
        raise TypeError("use VirtualDeviceSet.create() or VirtualDeviceSet.open_in_secondary(name)")

    def __reduce__(self):
        raise TypeError("a VirtualDeviceSet belongs to its process; send its name and use open_in_secondary")

    @classmethod
    def create(
        cls,
        name: str | None = None,
        config: DeviceSetConfig = DeviceSetConfig(),
        *,
        instance: str | None = None,
        provider: Provider | str | None = None,
        group: str | int | None = None,
    ) -> VirtualDeviceSet:
        """Create a set, for the server to find by its name.

        Parameters
        ----------
        name : str, optional
            1 to 128 characters without a backslash, case-sensitive; also the name of the first device. None: a new
            GUID, which nobody else can guess.
        config : DeviceSetConfig
            What is asked for.
        instance : str, optional
            Instance of SQL Server that runs the statement, without the machine; None or empty is the default one.
        provider : Provider, str or os.PathLike, optional
            A `Provider`, ``"embedded"``, ``"system"`` or the path of a library. None: SQL Server's component where it
            is installed, else the embedded provider.
        group : str or int, optional
            Name or number of a group of the operating system whose members may join, besides the same user. Embedded
            provider only.

        Raises
        ------
        VDNotSupportedError
            The configuration is not supported, or the library is not usable or has no groups.
        VDInvalidError
            The name is not valid.
        VDProtocolError
            A set of this name exists.
        VDInstanceNameError, VDSecurityError, VDMemoryError
            The library says so.
        LookupError
            There is no such group.

        Wraps: IClientVirtualDeviceSet2::CreateEx (vdi.h)
        """
        if not isinstance(config, DeviceSetConfig):
            raise TypeError(f"config must be a DeviceSetConfig, not {type(config).__name__}")
        if name is None:
            name = str(uuid.uuid4())
        cdef VirtualDeviceSet self = _new_set(name, instance, provider)
        cdef NativeCall call = _call(self._ref, CREATE_EX, name, self._instance)
        (
            call.config.deviceCount, call.config.features, call.config.prefixZoneSize, call.config.alignment,
            call.config.softFileMarkBlockSize, call.config.EOMWarningSize, call.config.serverTimeOut,
            call.config.blockSize, call.config.maxIODepth, call.config.maxTransferSize, call.config.bufferAreaSize,
        ) = config.to_wire()
        if group is not None:
            if self._ref.embedded == NULL:
                raise VDNotSupportedError(VD_E_NOTSUPPORTED, "only the embedded provider has groups", "CreateEx")
            self._ref.check(
                self._ref.embedded.lpVtbl.SetAccessGroup(self._ref.embedded, _group_id(group)), "SetAccessGroup"
            )
        self._ref.check(call.run(), "CreateEx")
        self._ref.prefix_size = config.prefix_zone_size
        self._ref.handed_out = True
        self._config = config
        return self

    @classmethod
    def open_in_secondary(
        cls, name: str, *, instance: str | None = None, provider: Provider | str | None = None
    ) -> VirtualDeviceSet:
        """Join a set that another process created and for which it has its configuration.

        Parameters
        ----------
        name, instance, provider
            As for `create`.

        Raises
        ------
        VDProtocolError
            There is no such set, or its primary client has not got its configuration yet.
        VDAbortError
            The set was aborted.
        VDSecurityError, VDTimeoutError
            It belongs to another user; its primary client does not answer.

        Wraps: IClientVirtualDeviceSet2::OpenInSecondaryEx (vdi.h)
        """
        cdef VirtualDeviceSet self = _new_set(name, instance, provider)
        self._secondary = True
        cdef NativeCall call = _call(self._ref, OPEN_IN_SECONDARY_EX, name, self._instance)
        self._ref.check(call.run(), "OpenInSecondaryEx")
        # Decided already, as the set would not be open otherwise; the size of prefix zones is needed from now on.
        self._configure(5.0)
        self._ref.handed_out = True
        return self

    @property
    def name(self) -> str:
        """Name of the set and of its first device."""
        return self._ref.name if self._ref is not None else ""

    @property
    def instance(self) -> str | None:
        """Instance of SQL Server, None for the default one."""
        return self._instance

    @property
    def config(self) -> DeviceSetConfig:
        """What was asked for, and after `get_configuration` what the server decided."""
        return self._config

    @property
    def state(self) -> SetState:
        """State of the set as this process sees it (section 6.1)."""
        cdef DWORD state = 0
        cdef SetRef ref = self._ref
        if ref is None or not usable(ref):
            return SetState.DOES_NOT_EXIST
        if ref.embedded == NULL:
            state = ref.state
        else:
            ref.check(ref.embedded.lpVtbl.GetState(ref.embedded, &state), "GetState")
        return known(SetState, state)

    def get_configuration(self, timeout: float | None = None) -> DeviceSetConfig:
        """Wait until the server has configured the set, and return what it decided.

        May be called again at any time, from any thread; it then returns at once.

        Parameters
        ----------
        timeout : float, optional
            Seconds; None waits for ever.

        Raises
        ------
        VDTimeoutError
            The server did not configure it in time. Nothing changed: call again.
        VDAbortError
            The set was aborted.
        VDNotOpenError
            The set is closed, or was inherited through fork.
        KeyboardInterrupt
            On Ctrl-C, at most 0.1 s after it.

        Wraps: IClientVirtualDeviceSet2::GetConfiguration (vdi.h)
        """
        return self._configure(timeout)

    def open_device(self, name: str | None = None) -> VirtualDevice:
        """Open a device of the set.

        Parameters
        ----------
        name : str, optional
            Name of the device as in its VIRTUAL_DEVICE clause; None is the first, which has the name of the set.

        Raises
        ------
        VDOpenError
            All devices are open.
        VDInvalidError
            The set has no device of this name.
        VDProtocolError
            The device is open, or the set is not configured yet.
        VDAbortError
            The set was aborted.
        VDNotOpenError
            The set is closed, or was inherited through fork.

        Wraps: IClientVirtualDeviceSet2::OpenDevice (vdi.h)
        """
        cdef SetRef ref = self._use()
        if name is None:
            name = ref.name
        cdef NativeCall call = _call(ref, OPEN_DEVICE, name, None)
        if self._secondary or ref.embedded == NULL:
            ref.check(call.run(), "OpenDevice")
        else:  # the embedded provider answers its primary client at once
            ref.in_flight += 1
            call.execute()
            ref.check(call.hr, "OpenDevice")
        cdef DeviceRef device = DeviceRef.__new__(DeviceRef)
        device.set = ref
        device.p = call.device
        call.device = NULL
        return new_device(device, name)

    def get_buffer_handle(self, command: Command) -> BufferHandle:
        """Return a name for a command's buffer by which other processes of the set can map it.

        The command stays with this process, which must not complete it before the others are done with the buffer.

        Parameters
        ----------
        command : Command
            An uncompleted READ or WRITE of a device of this set.

        Raises
        ------
        VDInvalidError
            It is of another set, completed, or has no buffer.
        VDNotOpenError
            The set is closed, or was inherited through fork.

        Wraps: IClientVirtualDeviceSet2::GetBufferHandle (vdi.h)
        """
        if not isinstance(command, Command):
            raise TypeError(f"command must be a Command, not {type(command).__name__}")
        return handle_of(self._use(), <Command>command, self._instance)

    def map_buffer_handle(self, handle: BufferHandle, *, trusted: bool = False) -> MappedBuffer:
        """Map the buffer of a command that another process holds.

        Parameters
        ----------
        handle : BufferHandle
            What `get_buffer_handle` returned there. With the embedded provider nothing in it is believed.
        trusted : bool
            With another library, which gives only an address: believe the size and access that the handle states. A
            wrong or stale handle then reads or writes foreign memory.

        Returns
        -------
        MappedBuffer
            The same bytes, not a copy.

        Raises
        ------
        VDInvalidError
            The command is completed, or the handle is altered or of another set.
        VDNotSupportedError
            The library can not check handles, and `trusted` is false.
        VDAbortError
            The set was aborted.
        VDNotOpenError
            The set is closed, or was inherited through fork.

        Wraps: IClientVirtualDeviceSet2::MapBufferHandle (vdi.h)
        """
        return map_handle(self._use(), handle, self._instance, trusted)

    def signal_abort(self, reason: str | None = None) -> None:
        """End the operation for every process of the set.

        Views stay valid. Waiting calls, here and elsewhere, raise `VDAbortError`; only `close` remains to be done.

        Parameters
        ----------
        reason : str, optional
            One sentence that the others see in `VDAbortError.reason`. Embedded provider only.

        Raises
        ------
        VDNotOpenError
            The set is closed, or was inherited through fork.

        Wraps: IClientVirtualDeviceSet2::SignalAbort (vdi.h)
        """
        cdef SetRef ref = self._use()
        cdef bytes encoded = None
        if reason is not None:
            encoded = reason.replace("\0", " ").encode("utf-8", "backslashreplace")
        ref.check(_abort(ref, encoded), "SignalAbort")

    def close(self) -> None:
        """End the use of the set by this process; a second call does nothing.

        Calls that other threads are waiting in raise `VDNotOpenError` first. Uncompleted commands are lost: complete
        them before.

        Raises
        ------
        BufferError
            A view of the set's memory is alive. Nothing was closed. (`signal_abort` always works.)
        VDOpenError
            Devices had not been read to their end, so the operation was aborted. The set is closed.
        VDNotOpenError
            The set was inherited through fork.

        Wraps: IClientVirtualDeviceSet2::Close (vdi.h)
        """
        cdef SetRef ref = self._ref
        cdef NativeCall call
        if ref is None:
            return
        if ref.generation != fork_generation:
            if ref.is_open:
                ref.refuse()
            return
        if ref.is_open and ref.exports:
            views = "1 view is" if ref.exports == 1 else f"{ref.exports} views are"
            raise BufferError(
                f"{views} alive on buffers of this set, to be dropped before closing it "
                "(del array; with memoryview(command) as view: ...)"
            )
        ref.closing = True
        while ref.in_flight:  # waiting calls look at `closing` between their slices
            if not Py_IsInitialized():
                return  # they never will; the end of the process closes
            PyErr_CheckSignals()
            time.sleep(0.002)
        if not ref.is_open:  # it has been closed, just now perhaps
            return
        ref.is_open = False
        call = _call(ref, CLOSE, None, None)
        ref.check(call.run(), "Close")

    def __enter__(self) -> VirtualDeviceSet:
        self._use()
        return self

    def __exit__(self, exc_type, exc, traceback) -> None:
        cdef SetRef ref = self._ref
        cdef HRESULT hr
        if exc_type is None:
            self.close()
            return
        if ref is None or not ref.is_open or ref.generation != fork_generation:
            return
        hr = _abort(ref, _why(exc_type, exc))
        if hr < 0 and exc is not None:
            exc.add_note(f"the set could not be aborted: {ref.error(hr, 'SignalAbort')}")
        ref.closing = True
        ref.deferred = True
        ref.settle()

    def __repr__(self) -> str:
        if self._ref is None or not usable(self._ref):
            return f"<VirtualDeviceSet {self.name!r}, closed>"
        return f"<VirtualDeviceSet {self.name!r} {getattr(self.state, 'name', self.state)}>"

    cdef SetRef _use(self):
        if self._ref is None:
            raise VDNotOpenError(VD_E_NOTOPEN, "use VirtualDeviceSet.create() or open_in_secondary(name)")
        self._ref.use()
        return self._ref

    cdef object _configure(self, object timeout):
        cdef VDConfig wire
        cdef HRESULT hr
        cdef DWORD ms
        cdef SetRef ref = self._use()
        cdef double deadline = deadline_after(timeout)
        ref.in_flight += 1
        try:
            while True:
                ms = slice_of(deadline)
                with nogil:
                    hr = ref.p.lpVtbl.GetConfiguration(ref.p, ms, &wire)
                if hr != VD_E_TIMEOUT or ms == 0:
                    break
                ref.between_slices()
        finally:
            ref.leave()
        ref.check(hr, "GetConfiguration")
        ref.prefix_size = wire.prefixZoneSize
        if ref.state == VDI_STATE_CONFIGURABLE:
            ref.state = VDI_STATE_INITIALIZING
        self._config = DeviceSetConfig.from_wire((
            wire.deviceCount, wire.features, wire.prefixZoneSize, wire.alignment, wire.softFileMarkBlockSize,
            wire.EOMWarningSize, wire.serverTimeOut, wire.blockSize, wire.maxIODepth, wire.maxTransferSize,
            wire.bufferAreaSize,
        ))
        return self._config


cdef VirtualDeviceSet _new_set(str name, object instance, object provider):
    """An object with a native set that does not exist yet."""
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {type(name).__name__}")
    if instance is not None and not isinstance(instance, str):
        raise TypeError(f"instance must be a str or None, not {type(instance).__name__}")
    cdef VirtualDeviceSet self = VirtualDeviceSet.__new__(VirtualDeviceSet)
    cdef SetRef ref = SetRef.__new__(SetRef)
    cdef Provider library = provider_for(provider, False)
    if instance and library.classes_only:
        raise VDInstanceNameError(
            VD_E_INSTANCE_NAME,
            f"SQL Server on Linux has no named instances, and {library.path} takes none; leave out the instance "
            f"{instance!r}",
        )
    ref.p = <IClientVirtualDeviceSet2 *>library.create_instance(
        &CLSID_MSSQL_ClientVirtualDeviceSet, &IID_IClientVirtualDeviceSet2
    )
    ref.generation = fork_generation
    ref.name = name
    with nogil:
        if ref.p.lpVtbl.QueryInterface(ref.p, &IID_IVdiEmbeddedSet, <void **>&ref.embedded) < 0:
            ref.embedded = NULL
    self._ref = ref
    self._instance = instance or None
    return self


cdef NativeCall _call(SetRef ref, NativeMethod method, str name, object instance):
    cdef NativeCall call = NativeCall.__new__(NativeCall)
    call.set = ref
    call.method = method
    if name is not None:
        call.name = wide(name)
    if instance is not None:
        call.instance = wide(instance)
    return call


cdef HRESULT _abort(SetRef ref, bytes reason) noexcept:
    cdef HRESULT hr
    cdef const char *text = NULL
    if reason is not None:
        text = <const char *>reason
    ref.in_flight += 1
    with nogil:
        if ref.embedded != NULL:
            hr = ref.embedded.lpVtbl.SignalAbortWithReason(ref.embedded, text)
        else:
            hr = ref.p.lpVtbl.SignalAbort(ref.p)
    if hr >= 0:
        ref.state = VDI_STATE_ABORT
    ref.leave()
    return hr


cdef bytes _why(object exc_type, object exc):
    """The exception in one line, for the other processes. Never fails: the exception itself is what counts."""
    try:
        text = f"{exc_type.__name__}: {exc}"
    except Exception:
        text = exc_type.__name__
    return text.replace("\0", " ").encode("utf-8", "backslashreplace")


cdef DWORD _group_id(object group) except? 0xFFFFFFFF:
    if isinstance(group, str):
        import grp  # not on every system
        try:
            return grp.getgrnam(group).gr_gid
        except KeyError:
            raise LookupError(f"there is no group {group!r} on this system") from None
    if isinstance(group, bool) or not isinstance(group, int):
        raise TypeError(f"group must be a name or a number, not {type(group).__name__}")
    if not 0 <= group <= 0xFFFFFFFE:
        raise ValueError(f"group must be a group number, not {group}")
    return group
