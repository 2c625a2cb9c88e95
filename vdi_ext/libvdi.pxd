# The only declaration of include/*.h on the Cython side. tests/test_abi.py compares it with the headers.
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "vdi_platform.h" nogil:
    ctypedef uint8_t BYTE
    ctypedef uint32_t DWORD
    ctypedef uint32_t ULONG
    ctypedef uint64_t DWORDLONG
    ctypedef int32_t HRESULT
    ctypedef uint16_t WCHAR
    ctypedef const WCHAR *LPCWSTR
    ctypedef struct GUID:
        pass
    ctypedef GUID IID
    ctypedef GUID CLSID
    const DWORD INFINITE
    const HRESULT S_OK
    const HRESULT S_FALSE
    const HRESULT NOERROR
    const HRESULT E_NOINTERFACE
    ctypedef struct IUnknown
    ctypedef struct IUnknownVtbl:
        HRESULT QueryInterface(IUnknown *This, const IID *riid, void **ppvObject) noexcept nogil
        ULONG AddRef(IUnknown *This) noexcept nogil
        ULONG Release(IUnknown *This) noexcept nogil
    ctypedef struct IUnknown:
        const IUnknownVtbl *lpVtbl
    ctypedef struct IClassFactory
    ctypedef struct IClassFactoryVtbl:
        HRESULT QueryInterface(IClassFactory *This, const IID *riid, void **ppvObject) noexcept nogil
        ULONG AddRef(IClassFactory *This) noexcept nogil
        ULONG Release(IClassFactory *This) noexcept nogil
        HRESULT CreateInstance(IClassFactory *This, IUnknown *pUnkOuter, const IID *riid, void **ppvObject) noexcept nogil
        HRESULT LockServer(IClassFactory *This, int fLock) noexcept nogil
    ctypedef struct IClassFactory:
        const IClassFactoryVtbl *lpVtbl


cdef extern from "vdierror.h" nogil:
    const HRESULT VD_E_NOTOPEN
    const HRESULT VD_E_TIMEOUT
    const HRESULT VD_E_ABORT
    const HRESULT VD_E_SECURITY
    const HRESULT VD_E_INVALID
    const HRESULT VD_E_INSTANCE_NAME
    const HRESULT VD_E_NOTSUPPORTED
    const HRESULT VD_E_MEMORY
    const HRESULT VD_E_UNEXPECTED
    const HRESULT VD_E_PROTOCOL
    const HRESULT VD_E_OPEN
    const HRESULT VD_E_CLOSE
    const HRESULT VD_E_BUSY
    const HRESULT VD_E_QUEUE_FULL
    const HRESULT VD_E_IO_ERROR
    const DWORD ERROR_SUCCESS
    const DWORD ERROR_INVALID_HANDLE
    const DWORD ERROR_ARENA_TRASHED
    const DWORD ERROR_BAD_ENVIRONMENT
    const DWORD ERROR_HANDLE_EOF
    const DWORD ERROR_HANDLE_DISK_FULL
    const DWORD ERROR_NOT_SUPPORTED
    const DWORD ERROR_INVALID_PARAMETER
    const DWORD ERROR_DISK_FULL
    const DWORD ERROR_OPERATION_ABORTED
    const DWORD ERROR_END_OF_MEDIA
    const DWORD ERROR_FILEMARK_DETECTED
    const DWORD ERROR_BEGINNING_OF_MEDIA
    const DWORD ERROR_NO_DATA_DETECTED
    const DWORD ERROR_INVALID_BLOCK_LENGTH
    const DWORD ERROR_NO_MEDIA_IN_DRIVE
    const DWORD ERROR_IO_DEVICE
    const DWORD ERROR_EOM_OVERFLOW
    const DWORD ERROR_NO_SYSTEM_RESOURCES


cdef extern from "vdiguid.h" nogil:
    const GUID IID_IUnknown
    const GUID IID_IClassFactory
    const GUID IID_IClientVirtualDevice
    const GUID IID_IClientVirtualDeviceSet
    const GUID IID_IClientVirtualDeviceSet2
    const GUID IID_IServerVirtualDevice
    const GUID IID_IServerVirtualDeviceSet
    const GUID IID_IServerVirtualDeviceSet2
    const GUID CLSID_MSSQL_ClientVirtualDeviceSet
    const GUID CLSID_MSSQL_ServerVirtualDeviceSet


cdef extern from "vdi.h" nogil:
    const DWORD VDF_LikePipe
    const DWORD VDF_Removable
    const DWORD VDF_Rewind
    const DWORD VDF_Position
    const DWORD VDF_SkipBlocks
    const DWORD VDF_ReversePosition
    const DWORD VDF_Discard
    const DWORD VDF_FileMarks
    const DWORD VDF_RandomAccess
    const DWORD VDF_SnapshotPrepare
    const DWORD VDF_EnumFrozenFiles
    const DWORD VDF_VSSWriter
    const DWORD VDF_RequestComplete
    const DWORD VDF_WriteMedia
    const DWORD VDF_ReadMedia
    const DWORD VDF_CompleteEnabled
    const DWORD VDF_LatchStats
    const DWORD VDF_LikeTape
    const DWORD VDF_LikeDisk
    const DWORD VDC_Read
    const DWORD VDC_Write
    const DWORD VDC_ClearError
    const DWORD VDC_Rewind
    const DWORD VDC_WriteMark
    const DWORD VDC_SkipMarks
    const DWORD VDC_SkipBlocks
    const DWORD VDC_Load
    const DWORD VDC_GetPosition
    const DWORD VDC_SetPosition
    const DWORD VDC_Discard
    const DWORD VDC_Flush
    const DWORD VDC_Snapshot
    const DWORD VDC_MountSnapshot
    const DWORD VDC_PrepareToFreeze
    const DWORD VDC_FileInfoBegin
    const DWORD VDC_FileInfoEnd
    const DWORD VDC_GetError
    const DWORD VDC_Complete
    const DWORD VDC_Beginning
    const DWORD VDC_Current
    const DWORD VDC_End

    ctypedef struct VDConfig:
        DWORD deviceCount
        DWORD features
        DWORD prefixZoneSize
        DWORD alignment
        DWORD softFileMarkBlockSize
        DWORD EOMWarningSize
        DWORD serverTimeOut
        DWORD blockSize
        DWORD maxIODepth
        DWORD maxTransferSize
        DWORD bufferAreaSize
    ctypedef struct VDC_Command:
        DWORD commandCode
        DWORD size
        DWORDLONG position
        BYTE *buffer
    ctypedef struct VDS_Command
    ctypedef void (*VDS_CompletionRoutine)(VDS_Command *pCmd) noexcept nogil
    ctypedef struct VDS_Command:
        DWORD commandCode
        DWORD size
        DWORDLONG inPosition
        DWORDLONG outPosition
        BYTE *buffer
        BYTE *completionRoutine
        BYTE *completionContext
        DWORD completionCode
        DWORD bytesTransferred

    ctypedef struct IClientVirtualDeviceVtbl
    ctypedef struct IClientVirtualDevice:
        const IClientVirtualDeviceVtbl *lpVtbl
    ctypedef struct IClientVirtualDeviceVtbl:
        HRESULT QueryInterface(IClientVirtualDevice *This, const IID *riid, void **ppvObject) noexcept nogil
        ULONG AddRef(IClientVirtualDevice *This) noexcept nogil
        ULONG Release(IClientVirtualDevice *This) noexcept nogil
        HRESULT GetCommand(IClientVirtualDevice *This, DWORD dwTimeOut, VDC_Command **ppCmd) noexcept nogil
        HRESULT CompleteCommand(IClientVirtualDevice *This, VDC_Command *pCmd, DWORD dwCompletionCode, DWORD dwBytesTransferred, DWORDLONG dwlPosition) noexcept nogil

    ctypedef struct IClientVirtualDeviceSetVtbl
    ctypedef struct IClientVirtualDeviceSet:
        const IClientVirtualDeviceSetVtbl *lpVtbl
    ctypedef struct IClientVirtualDeviceSetVtbl:
        HRESULT QueryInterface(IClientVirtualDeviceSet *This, const IID *riid, void **ppvObject) noexcept nogil
        ULONG AddRef(IClientVirtualDeviceSet *This) noexcept nogil
        ULONG Release(IClientVirtualDeviceSet *This) noexcept nogil
        HRESULT Create(IClientVirtualDeviceSet *This, LPCWSTR lpName, VDConfig *pCfg) noexcept nogil
        HRESULT GetConfiguration(IClientVirtualDeviceSet *This, DWORD dwTimeOut, VDConfig *pCfg) noexcept nogil
        HRESULT OpenDevice(IClientVirtualDeviceSet *This, LPCWSTR lpName, IClientVirtualDevice **ppVirtualDevice) noexcept nogil
        HRESULT Close(IClientVirtualDeviceSet *This) noexcept nogil
        HRESULT SignalAbort(IClientVirtualDeviceSet *This) noexcept nogil
        HRESULT OpenInSecondary(IClientVirtualDeviceSet *This, LPCWSTR lpSetName) noexcept nogil
        HRESULT GetBufferHandle(IClientVirtualDeviceSet *This, BYTE *pBuffer, DWORD *pBufferHandle) noexcept nogil
        HRESULT MapBufferHandle(IClientVirtualDeviceSet *This, DWORD dwBuffer, BYTE **ppBuffer) noexcept nogil

    ctypedef struct IClientVirtualDeviceSet2Vtbl
    ctypedef struct IClientVirtualDeviceSet2:
        const IClientVirtualDeviceSet2Vtbl *lpVtbl
    ctypedef struct IClientVirtualDeviceSet2Vtbl:
        HRESULT QueryInterface(IClientVirtualDeviceSet2 *This, const IID *riid, void **ppvObject) noexcept nogil
        ULONG AddRef(IClientVirtualDeviceSet2 *This) noexcept nogil
        ULONG Release(IClientVirtualDeviceSet2 *This) noexcept nogil
        HRESULT Create(IClientVirtualDeviceSet2 *This, LPCWSTR lpName, VDConfig *pCfg) noexcept nogil
        HRESULT GetConfiguration(IClientVirtualDeviceSet2 *This, DWORD dwTimeOut, VDConfig *pCfg) noexcept nogil
        HRESULT OpenDevice(IClientVirtualDeviceSet2 *This, LPCWSTR lpName, IClientVirtualDevice **ppVirtualDevice) noexcept nogil
        HRESULT Close(IClientVirtualDeviceSet2 *This) noexcept nogil
        HRESULT SignalAbort(IClientVirtualDeviceSet2 *This) noexcept nogil
        HRESULT OpenInSecondary(IClientVirtualDeviceSet2 *This, LPCWSTR lpSetName) noexcept nogil
        HRESULT GetBufferHandle(IClientVirtualDeviceSet2 *This, BYTE *pBuffer, DWORD *pBufferHandle) noexcept nogil
        HRESULT MapBufferHandle(IClientVirtualDeviceSet2 *This, DWORD dwBuffer, BYTE **ppBuffer) noexcept nogil
        HRESULT CreateEx(IClientVirtualDeviceSet2 *This, LPCWSTR lpInstanceName, LPCWSTR lpName, VDConfig *pCfg) noexcept nogil
        HRESULT OpenInSecondaryEx(IClientVirtualDeviceSet2 *This, LPCWSTR lpInstanceName, LPCWSTR lpSetName) noexcept nogil

    ctypedef struct IServerVirtualDeviceVtbl
    ctypedef struct IServerVirtualDevice:
        const IServerVirtualDeviceVtbl *lpVtbl
    ctypedef struct IServerVirtualDeviceVtbl:
        HRESULT QueryInterface(IServerVirtualDevice *This, const IID *riid, void **ppvObject) noexcept nogil
        ULONG AddRef(IServerVirtualDevice *This) noexcept nogil
        ULONG Release(IServerVirtualDevice *This) noexcept nogil
        HRESULT SendCommand(IServerVirtualDevice *This, VDS_Command *pCmd) noexcept nogil
        HRESULT CloseDevice(IServerVirtualDevice *This) noexcept nogil

    ctypedef struct IServerVirtualDeviceSetVtbl
    ctypedef struct IServerVirtualDeviceSet:
        const IServerVirtualDeviceSetVtbl *lpVtbl
    ctypedef struct IServerVirtualDeviceSetVtbl:
        HRESULT QueryInterface(IServerVirtualDeviceSet *This, const IID *riid, void **ppvObject) noexcept nogil
        ULONG AddRef(IServerVirtualDeviceSet *This) noexcept nogil
        ULONG Release(IServerVirtualDeviceSet *This) noexcept nogil
        HRESULT Open(IServerVirtualDeviceSet *This, LPCWSTR lpName) noexcept nogil
        HRESULT GetConfiguration(IServerVirtualDeviceSet *This, VDConfig *pCfg) noexcept nogil
        HRESULT SetConfiguration(IServerVirtualDeviceSet *This, VDConfig *pCfg) noexcept nogil
        HRESULT ExecuteCompletionAgent(IServerVirtualDeviceSet *This) noexcept nogil
        HRESULT OpenDevice(IServerVirtualDeviceSet *This, LPCWSTR lpName, IServerVirtualDevice **ppVirtualDevice) noexcept nogil
        HRESULT AllocateBuffer(IServerVirtualDeviceSet *This, BYTE **ppBuffer, DWORD dwSize, DWORD dwAlignment) noexcept nogil
        HRESULT FreeBuffer(IServerVirtualDeviceSet *This, BYTE *pBuffer, DWORD dwSize) noexcept nogil
        HRESULT IsSharedBuffer(IServerVirtualDeviceSet *This, BYTE *pBuffer) noexcept nogil
        HRESULT SignalAbort(IServerVirtualDeviceSet *This) noexcept nogil
        HRESULT Close(IServerVirtualDeviceSet *This) noexcept nogil

    ctypedef struct IServerVirtualDeviceSet2Vtbl
    ctypedef struct IServerVirtualDeviceSet2:
        const IServerVirtualDeviceSet2Vtbl *lpVtbl
    ctypedef struct IServerVirtualDeviceSet2Vtbl:
        HRESULT QueryInterface(IServerVirtualDeviceSet2 *This, const IID *riid, void **ppvObject) noexcept nogil
        ULONG AddRef(IServerVirtualDeviceSet2 *This) noexcept nogil
        ULONG Release(IServerVirtualDeviceSet2 *This) noexcept nogil
        HRESULT Open(IServerVirtualDeviceSet2 *This, LPCWSTR lpInstanceName, LPCWSTR lpSetName) noexcept nogil
        HRESULT GetConfiguration(IServerVirtualDeviceSet2 *This, VDConfig *pCfg) noexcept nogil
        HRESULT BeginConfiguration(IServerVirtualDeviceSet2 *This, DWORD dwFeatures, DWORD dwBlockSize, DWORD dwAlignment, DWORD dwMaxTransferSize, DWORD dwTimeout) noexcept nogil
        HRESULT EndConfiguration(IServerVirtualDeviceSet2 *This) noexcept nogil
        HRESULT RequestBuffers(IServerVirtualDeviceSet2 *This, DWORD dwSize, DWORD dwAlignment, DWORD dwCount) noexcept nogil
        HRESULT QueryAvailableBuffers(IServerVirtualDeviceSet2 *This, DWORD dwSize, DWORD dwAlignment, DWORD *pCount) noexcept nogil
        HRESULT ExecuteCompletionAgent(IServerVirtualDeviceSet2 *This) noexcept nogil
        HRESULT OpenDevice(IServerVirtualDeviceSet2 *This, LPCWSTR lpName, IServerVirtualDevice **ppVirtualDevice) noexcept nogil
        HRESULT AllocateBuffer(IServerVirtualDeviceSet2 *This, BYTE **ppBuffer, DWORD dwSize, DWORD dwAlignment) noexcept nogil
        HRESULT FreeBuffer(IServerVirtualDeviceSet2 *This, BYTE *pBuffer, DWORD dwSize) noexcept nogil
        HRESULT IsSharedBuffer(IServerVirtualDeviceSet2 *This, BYTE *pBuffer) noexcept nogil
        HRESULT SignalAbort(IServerVirtualDeviceSet2 *This) noexcept nogil
        HRESULT Close(IServerVirtualDeviceSet2 *This) noexcept nogil


cdef extern from "vdi_provider.h" nogil:
    ctypedef HRESULT (*VdiGetClassObjectFn)(const CLSID *rclsid, const IID *riid, void **ppv) noexcept nogil
    ctypedef DWORD (*VdiLiveObjectsFn)() noexcept nogil
    const GUID IID_IVdiEmbeddedSet
    const DWORD VDI_STATE_DOES_NOT_EXIST
    const DWORD VDI_STATE_CONNECTED
    const DWORD VDI_STATE_CONFIGURABLE
    const DWORD VDI_STATE_INITIALIZING
    const DWORD VDI_STATE_ACTIVE
    const DWORD VDI_STATE_NORMALLY_TERMINATED
    const DWORD VDI_STATE_ABORT
    const DWORD VDI_ABORT_NONE
    const DWORD VDI_ABORT_SIGNALLED
    const DWORD VDI_ABORT_CLOSED
    const DWORD VDI_ABORT_SERVER_DIED
    const DWORD VDI_ABORT_PRIMARY_DIED
    const DWORD VDI_ABORT_SECONDARY_DIED
    const DWORD VDI_ABORT_TIMEOUT
    const DWORD VDI_ABORT_CORRUPT

    ctypedef struct VdiBufferInfo:
        DWORD value
        DWORD size
        DWORD readOnly
        DWORD reserved
        DWORDLONG generation
        BYTE setId[16]
    ctypedef struct VdiAbortInfo:
        DWORD cause
        DWORD pid
        char reason[256]

    ctypedef struct IVdiEmbeddedSetVtbl
    ctypedef struct IVdiEmbeddedSet:
        const IVdiEmbeddedSetVtbl *lpVtbl
    ctypedef struct IVdiEmbeddedSetVtbl:
        HRESULT QueryInterface(IVdiEmbeddedSet *This, const IID *riid, void **ppvObject) noexcept nogil
        ULONG AddRef(IVdiEmbeddedSet *This) noexcept nogil
        ULONG Release(IVdiEmbeddedSet *This) noexcept nogil
        HRESULT GetState(IVdiEmbeddedSet *This, DWORD *pState) noexcept nogil
        HRESULT GetSetId(IVdiEmbeddedSet *This, BYTE *pSetId) noexcept nogil
        HRESULT SetAccessGroup(IVdiEmbeddedSet *This, DWORD dwGroupId) noexcept nogil
        HRESULT DescribeBuffer(IVdiEmbeddedSet *This, const BYTE *pBuffer, VdiBufferInfo *pInfo) noexcept nogil
        HRESULT MapBuffer(IVdiEmbeddedSet *This, const VdiBufferInfo *pHandle, BYTE **ppBuffer, VdiBufferInfo *pActual) noexcept nogil
        HRESULT CheckBuffer(IVdiEmbeddedSet *This, const VdiBufferInfo *pHandle) noexcept nogil
        HRESULT SignalAbortWithReason(IVdiEmbeddedSet *This, const char *pReason) noexcept nogil
        HRESULT GetAbortInfo(IVdiEmbeddedSet *This, VdiAbortInfo *pInfo) noexcept nogil
