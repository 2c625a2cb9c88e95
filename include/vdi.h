/* The Virtual Device Interface: structures, constants, and the six interfaces as C vtables in slot order.
 *
 * Usable from C and C++. An object is a pointer to a structure whose first member points to its vtable; call a method
 * as object->lpVtbl->Method(object, ...). Slots 0 to 2 of every vtable are those of IUnknown. Strings are UTF-16 and
 * end with a zero. Intervals are in milliseconds. Every out-pointer that is NULL gives VD_E_INVALID. */
#ifndef VDI_H
#define VDI_H

#include "vdi_platform.h"

/* Features of a device set (VDConfig.features). */
#define VDF_LikePipe 0x0u
#define VDF_Removable 0x1u
#define VDF_Rewind 0x2u
#define VDF_Position 0x10u
#define VDF_SkipBlocks 0x20u
#define VDF_ReversePosition 0x40u
#define VDF_Discard 0x80u
#define VDF_FileMarks 0x100u
#define VDF_RandomAccess 0x200u
#define VDF_SnapshotPrepare 0x400u
#define VDF_EnumFrozenFiles 0x800u
#define VDF_VSSWriter 0x1000u
#define VDF_RequestComplete 0x2000u
#define VDF_WriteMedia 0x10000u      /* set by the server: backup */
#define VDF_ReadMedia 0x20000u       /* set by the server: restore */
#define VDF_CompleteEnabled 0x40000u /* set by the server: VDF_RequestComplete was granted */
#define VDF_LatchStats 0x80000000u   /* undocumented; ignored */
#define VDF_LikeTape                                                                                                   \
    (VDF_FileMarks | VDF_Removable | VDF_Rewind | VDF_Position | VDF_SkipBlocks | VDF_ReversePosition)
#define VDF_LikeDisk VDF_RandomAccess

/* Command codes. */
#define VDC_Read 1u
#define VDC_Write 2u
#define VDC_ClearError 3u
#define VDC_Rewind 4u
#define VDC_WriteMark 5u
#define VDC_SkipMarks 6u
#define VDC_SkipBlocks 7u
#define VDC_Load 8u
#define VDC_GetPosition 9u
#define VDC_SetPosition 10u
#define VDC_Discard 11u
#define VDC_Flush 12u
#define VDC_Snapshot 13u
#define VDC_MountSnapshot 14u
#define VDC_PrepareToFreeze 15u
#define VDC_FileInfoBegin 16u
#define VDC_FileInfoEnd 17u
#define VDC_GetError 18u
#define VDC_Complete 19u

/* Whence of VDC_SetPosition in random-access mode; travels in the command's size. */
#define VDC_Beginning 0u
#define VDC_Current 1u
#define VDC_End 2u

#pragma pack(push, 8)

/* Configuration: the client proposes at CreateEx, the server decides, GetConfiguration returns the result. */
typedef struct VDConfig {
    DWORD deviceCount;           /* client: 1 to 64 */
    DWORD features;              /* client: VDF_*; the server adds its own bits */
    DWORD prefixZoneSize;        /* client: private bytes before each buffer */
    DWORD alignment;             /* client: minimum, 0 none; server: final value, at most 64 KiB */
    DWORD softFileMarkBlockSize; /* client: 0 means hard filemarks; only with VDF_FileMarks */
    DWORD EOMWarningSize;        /* client: bytes of the warning zone before the end of the medium, 0 none */
    DWORD serverTimeOut;         /* client: ms, 0 without limit */
    DWORD blockSize;             /* server: power of 2, 512 to 65536 */
    DWORD maxIODepth;            /* server: always 4, without meaning */
    DWORD maxTransferSize;       /* server: multiple of 64 KiB */
    DWORD bufferAreaSize;        /* server: bytes of shared buffers at EndConfiguration */
} VDConfig;

/* A command as the client receives it. Read-only, valid until passed to CompleteCommand. */
typedef struct VDC_Command {
    DWORD commandCode;
    DWORD size;
    DWORDLONG position;
    BYTE *buffer;
} VDC_Command;

struct VDS_Command;
typedef void(STDMETHODCALLTYPE *VDS_CompletionRoutine)(struct VDS_Command *pCmd);

/* A command as the server submits it. Valid until its completion routine has been called, which happens exactly once
 * for each SendCommand; the routine may submit it again. */
typedef struct VDS_Command {
    DWORD commandCode;       /* in */
    DWORD size;              /* in */
    DWORDLONG inPosition;    /* in */
    DWORDLONG outPosition;   /* out */
    BYTE *buffer;            /* in: from AllocateBuffer, or NULL */
    BYTE *completionRoutine; /* in: a VDS_CompletionRoutine */
    BYTE *completionContext; /* in: the server's own */
    DWORD completionCode;    /* out: Win32 code */
    DWORD bytesTransferred;  /* out */
} VDS_Command;

#pragma pack(pop)

/* One device, client side. Intended for one thread; CompleteCommand may come from any. */
typedef struct IClientVirtualDevice IClientVirtualDevice;
typedef struct IClientVirtualDeviceVtbl {
    HRESULT(STDMETHODCALLTYPE *QueryInterface)(IClientVirtualDevice *This, const IID *riid, void **ppvObject);
    ULONG(STDMETHODCALLTYPE *AddRef)(IClientVirtualDevice *This);
    ULONG(STDMETHODCALLTYPE *Release)(IClientVirtualDevice *This);
    /* Next command. dwTimeOut 0 polls, INFINITE waits without limit. NOERROR, VD_E_CLOSE (the normal end),
     * VD_E_TIMEOUT, VD_E_ABORT, VD_E_INVALID (the server has no device of this name), VD_E_PROTOCOL. */
    HRESULT(STDMETHODCALLTYPE *GetCommand)(IClientVirtualDevice *This, DWORD dwTimeOut, VDC_Command **ppCmd);
    /* Gives command and buffer back. Does not wait. NOERROR, VD_E_INVALID (not an outstanding command), VD_E_ABORT,
     * VD_E_PROTOCOL. Any code but ERROR_SUCCESS moves the device to IO-ERROR. */
    HRESULT(STDMETHODCALLTYPE *CompleteCommand)(IClientVirtualDevice *This, VDC_Command *pCmd, DWORD dwCompletionCode,
                                                DWORD dwBytesTransferred, DWORDLONG dwlPosition);
} IClientVirtualDeviceVtbl;
struct IClientVirtualDevice {
    const IClientVirtualDeviceVtbl *lpVtbl;
};

/* Slots 3 to 10 of a client's device set, shared by its two interfaces. */
#define VDI_CLIENT_SET_SLOTS(I)                                                                                        \
    HRESULT(STDMETHODCALLTYPE *QueryInterface)(I * This, const IID *riid, void **ppvObject);                           \
    ULONG(STDMETHODCALLTYPE *AddRef)(I * This);                                                                        \
    ULONG(STDMETHODCALLTYPE *Release)(I * This);                                                                       \
    /* CreateEx with the instance that the variable _VIRTUAL_SERVER_NAME_ names, else the default one. */              \
    HRESULT(STDMETHODCALLTYPE *Create)(I * This, LPCWSTR lpName, VDConfig *pCfg);                                      \
    /* Waits until the server has configured the set. NOERROR, VD_E_TIMEOUT, VD_E_ABORT, VD_E_PROTOCOL. */             \
    HRESULT(STDMETHODCALLTYPE *GetConfiguration)(I * This, DWORD dwTimeOut, VDConfig *pCfg);                           \
    /* Opens a device by name. NOERROR, VD_E_OPEN (all are open), VD_E_INVALID (unknown name), VD_E_ABORT,             \
     * VD_E_PROTOCOL (not configured, or this device is open). *ppVirtualDevice is NULL on failure. */                 \
    HRESULT(STDMETHODCALLTYPE *OpenDevice)(I * This, LPCWSTR lpName, IClientVirtualDevice * *ppVirtualDevice);         \
    /* Ends the use of the set. NOERROR, VD_E_OPEN (devices had not ended: aborted, and closed all the same),          \
     * VD_E_PROTOCOL (not open). Invalidates devices, commands and buffer addresses. */                                \
    HRESULT(STDMETHODCALLTYPE *Close)(I * This);                                                                       \
    /* Ends the operation for every process. NOERROR, VD_E_PROTOCOL. */                                                \
    HRESULT(STDMETHODCALLTYPE *SignalAbort)(I * This);                                                                 \
    HRESULT(STDMETHODCALLTYPE *OpenInSecondary)(I * This, LPCWSTR lpSetName);                                          \
    /* Address of an outstanding Read or Write's buffer -> handle for other processes of the set. */                   \
    HRESULT(STDMETHODCALLTYPE *GetBufferHandle)(I * This, BYTE * pBuffer, DWORD * pBufferHandle);                      \
    HRESULT(STDMETHODCALLTYPE *MapBufferHandle)(I * This, DWORD dwBuffer, BYTE * *ppBuffer)

/* A device set, client side. Any thread. */
typedef struct IClientVirtualDeviceSet IClientVirtualDeviceSet;
typedef struct IClientVirtualDeviceSetVtbl {
    VDI_CLIENT_SET_SLOTS(IClientVirtualDeviceSet);
} IClientVirtualDeviceSetVtbl;
struct IClientVirtualDeviceSet {
    const IClientVirtualDeviceSetVtbl *lpVtbl;
};

typedef struct IClientVirtualDeviceSet2 IClientVirtualDeviceSet2;
typedef struct IClientVirtualDeviceSet2Vtbl {
    VDI_CLIENT_SET_SLOTS(IClientVirtualDeviceSet2);
    /* Creates a set for one BACKUP or RESTORE. Instance NULL or empty: the default one. NOERROR, VD_E_NOTSUPPORTED
     * (configuration), VD_E_PROTOCOL (a set is open here, or the name is in use), VD_E_INVALID (name),
     * VD_E_INSTANCE_NAME, VD_E_SECURITY, VD_E_MEMORY. */
    HRESULT(STDMETHODCALLTYPE *CreateEx)(IClientVirtualDeviceSet2 *This, LPCWSTR lpInstanceName, LPCWSTR lpName,
                                         VDConfig *pCfg);
    /* Joins a set whose primary client has its configuration. NOERROR, VD_E_PROTOCOL, VD_E_ABORT, VD_E_SECURITY,
     * VD_E_TIMEOUT. */
    HRESULT(STDMETHODCALLTYPE *OpenInSecondaryEx)(IClientVirtualDeviceSet2 *This, LPCWSTR lpInstanceName,
                                                  LPCWSTR lpSetName);
} IClientVirtualDeviceSet2Vtbl;
struct IClientVirtualDeviceSet2 {
    const IClientVirtualDeviceSet2Vtbl *lpVtbl;
};

/* One device, server side. */
typedef struct IServerVirtualDevice IServerVirtualDevice;
typedef struct IServerVirtualDeviceVtbl {
    HRESULT(STDMETHODCALLTYPE *QueryInterface)(IServerVirtualDevice *This, const IID *riid, void **ppvObject);
    ULONG(STDMETHODCALLTYPE *AddRef)(IServerVirtualDevice *This);
    ULONG(STDMETHODCALLTYPE *Release)(IServerVirtualDevice *This);
    /* Queues a command. NOERROR: the completion routine runs later on the agent's thread. On VD_E_QUEUE_FULL,
     * VD_E_IO_ERROR, VD_E_PROTOCOL, VD_E_ABORT and VD_E_INVALID (buffer or size) it has been called before this
     * returns, with ERROR_NO_SYSTEM_RESOURCES, _IO_DEVICE, _INVALID_HANDLE, _OPERATION_ABORTED and
     * _INVALID_PARAMETER. Only without command or routine (VD_E_INVALID) nothing is called. */
    HRESULT(STDMETHODCALLTYPE *SendCommand)(IServerVirtualDevice *This, VDS_Command *pCmd);
    /* NOERROR, VD_E_CLOSE (closed before), VD_E_ABORT, VD_E_PROTOCOL. Queued commands are delivered first. */
    HRESULT(STDMETHODCALLTYPE *CloseDevice)(IServerVirtualDevice *This);
} IServerVirtualDeviceVtbl;
struct IServerVirtualDevice {
    const IServerVirtualDeviceVtbl *lpVtbl;
};

/* A device set, server side, in the form of SQL Server 7.0. The embedded provider does not serve it. */
typedef struct IServerVirtualDeviceSet IServerVirtualDeviceSet;
typedef struct IServerVirtualDeviceSetVtbl {
    HRESULT(STDMETHODCALLTYPE *QueryInterface)(IServerVirtualDeviceSet *This, const IID *riid, void **ppvObject);
    ULONG(STDMETHODCALLTYPE *AddRef)(IServerVirtualDeviceSet *This);
    ULONG(STDMETHODCALLTYPE *Release)(IServerVirtualDeviceSet *This);
    HRESULT(STDMETHODCALLTYPE *Open)(IServerVirtualDeviceSet *This, LPCWSTR lpName);
    HRESULT(STDMETHODCALLTYPE *GetConfiguration)(IServerVirtualDeviceSet *This, VDConfig *pCfg);
    HRESULT(STDMETHODCALLTYPE *SetConfiguration)(IServerVirtualDeviceSet *This, VDConfig *pCfg);
    HRESULT(STDMETHODCALLTYPE *ExecuteCompletionAgent)(IServerVirtualDeviceSet *This);
    HRESULT(STDMETHODCALLTYPE *OpenDevice)(IServerVirtualDeviceSet *This, LPCWSTR lpName,
                                           IServerVirtualDevice **ppVirtualDevice);
    HRESULT(STDMETHODCALLTYPE *AllocateBuffer)(IServerVirtualDeviceSet *This, BYTE **ppBuffer, DWORD dwSize,
                                               DWORD dwAlignment);
    HRESULT(STDMETHODCALLTYPE *FreeBuffer)(IServerVirtualDeviceSet *This, BYTE *pBuffer, DWORD dwSize);
    HRESULT(STDMETHODCALLTYPE *IsSharedBuffer)(IServerVirtualDeviceSet *This, BYTE *pBuffer);
    HRESULT(STDMETHODCALLTYPE *SignalAbort)(IServerVirtualDeviceSet *This);
    HRESULT(STDMETHODCALLTYPE *Close)(IServerVirtualDeviceSet *This);
} IServerVirtualDeviceSetVtbl;
struct IServerVirtualDeviceSet {
    const IServerVirtualDeviceSetVtbl *lpVtbl;
};

/* A device set, server side. Any thread. Not derived from IServerVirtualDeviceSet. */
typedef struct IServerVirtualDeviceSet2 IServerVirtualDeviceSet2;
typedef struct IServerVirtualDeviceSet2Vtbl {
    HRESULT(STDMETHODCALLTYPE *QueryInterface)(IServerVirtualDeviceSet2 *This, const IID *riid, void **ppvObject);
    ULONG(STDMETHODCALLTYPE *AddRef)(IServerVirtualDeviceSet2 *This);
    ULONG(STDMETHODCALLTYPE *Release)(IServerVirtualDeviceSet2 *This);
    /* Joins the set that a client created. NOERROR, VD_E_INVALID (no such set), VD_E_BUSY (it has a server),
     * VD_E_PROTOCOL, VD_E_SECURITY, VD_E_TIMEOUT. */
    HRESULT(STDMETHODCALLTYPE *Open)(IServerVirtualDeviceSet2 *This, LPCWSTR lpInstanceName, LPCWSTR lpSetName);
    /* What the client asked for; from BeginConfiguration on, what was decided. */
    HRESULT(STDMETHODCALLTYPE *GetConfiguration)(IServerVirtualDeviceSet2 *This, VDConfig *pCfg);
    /* Block size before alignment, as compiled headers have it. dwTimeout is accepted and ignored. */
    HRESULT(STDMETHODCALLTYPE *BeginConfiguration)(IServerVirtualDeviceSet2 *This, DWORD dwFeatures, DWORD dwBlockSize,
                                                   DWORD dwAlignment, DWORD dwMaxTransferSize, DWORD dwTimeout);
    /* Obtains the memory declared so far. VD_E_MEMORY leaves the state and drops the declarations. */
    HRESULT(STDMETHODCALLTYPE *EndConfiguration)(IServerVirtualDeviceSet2 *This);
    /* Declares buffers (before EndConfiguration: summed up; after it: obtained at once). */
    HRESULT(STDMETHODCALLTYPE *RequestBuffers)(IServerVirtualDeviceSet2 *This, DWORD dwSize, DWORD dwAlignment,
                                               DWORD dwCount);
    /* How many buffers of that size and alignment can still be allocated. */
    HRESULT(STDMETHODCALLTYPE *QueryAvailableBuffers)(IServerVirtualDeviceSet2 *This, DWORD dwSize, DWORD dwAlignment,
                                                      DWORD *pCount);
    /* Calls completion routines until all devices are closed (NOERROR), Close (NOERROR) or abort (VD_E_ABORT).
     * VD_E_BUSY: another thread is in it. */
    HRESULT(STDMETHODCALLTYPE *ExecuteCompletionAgent)(IServerVirtualDeviceSet2 *This);
    /* Opens the next device and gives it its name. VD_E_OPEN: all are open. */
    HRESULT(STDMETHODCALLTYPE *OpenDevice)(IServerVirtualDeviceSet2 *This, LPCWSTR lpName,
                                           IServerVirtualDevice **ppVirtualDevice);
    HRESULT(STDMETHODCALLTYPE *AllocateBuffer)(IServerVirtualDeviceSet2 *This, BYTE **ppBuffer, DWORD dwSize,
                                               DWORD dwAlignment);
    HRESULT(STDMETHODCALLTYPE *FreeBuffer)(IServerVirtualDeviceSet2 *This, BYTE *pBuffer, DWORD dwSize);
    /* 1 (numerically S_FALSE): the address lies in an allocated buffer; 0: it does not. */
    HRESULT(STDMETHODCALLTYPE *IsSharedBuffer)(IServerVirtualDeviceSet2 *This, BYTE *pBuffer);
    HRESULT(STDMETHODCALLTYPE *SignalAbort)(IServerVirtualDeviceSet2 *This);
    /* NOERROR; VD_E_PROTOCOL (not open; or devices were open: aborted, and closed all the same). Waits for a running
     * agent, except when called from its completion routine. */
    HRESULT(STDMETHODCALLTYPE *Close)(IServerVirtualDeviceSet2 *This);
} IServerVirtualDeviceSet2Vtbl;
struct IServerVirtualDeviceSet2 {
    const IServerVirtualDeviceSet2Vtbl *lpVtbl;
};

#endif
