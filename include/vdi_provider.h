/* How a provider library is entered, and what the embedded provider answers beyond the published interface. */
#ifndef VDI_PROVIDER_H
#define VDI_PROVIDER_H

#include "vdi.h"
#include "vdierror.h"
#include "vdiguid.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Entry of a COM in-process server. Classes: CLSID_MSSQL_ClientVirtualDeviceSet, CLSID_MSSQL_ServerVirtualDeviceSet. */
#ifndef _WIN32
VDI_EXPORT HRESULT STDMETHODCALLTYPE DllGetClassObject(const CLSID *rclsid, const IID *riid, void **ppv);
VDI_EXPORT HRESULT STDMETHODCALLTYPE DllCanUnloadNow(void);
#endif
typedef HRESULT(STDMETHODCALLTYPE *VdiGetClassObjectFn)(const CLSID *rclsid, const IID *riid, void **ppv);

/* Embedded provider only: objects (sets and devices of both halves) that are referenced in this process. */
VDI_EXPORT DWORD VdiLiveObjects(void);
typedef DWORD (*VdiLiveObjectsFn)(void);

/* States of a set (each side has its own view). */
#define VDI_STATE_DOES_NOT_EXIST 0u
#define VDI_STATE_CONNECTED 1u
#define VDI_STATE_CONFIGURABLE 2u
#define VDI_STATE_INITIALIZING 3u
#define VDI_STATE_ACTIVE 4u
#define VDI_STATE_NORMALLY_TERMINATED 5u
#define VDI_STATE_ABORT 6u

/* A buffer that is out with a client, as the provider knows it. */
typedef struct VdiBufferInfo {
    DWORD value;          /* the handle of GetBufferHandle */
    DWORD size;           /* bytes of data */
    DWORD readOnly;       /* 1: a Write command's buffer */
    DWORD reserved;       /* 0 */
    DWORDLONG generation; /* changes each time the buffer is lent and given back */
    BYTE setId[16];       /* random identity of the set */
} VdiBufferInfo;

/* Who or what caused the abort. */
#define VDI_ABORT_NONE 0u
#define VDI_ABORT_SIGNALLED 1u      /* SignalAbort */
#define VDI_ABORT_CLOSED 2u         /* a side closed before the end */
#define VDI_ABORT_SERVER_DIED 3u
#define VDI_ABORT_PRIMARY_DIED 4u
#define VDI_ABORT_SECONDARY_DIED 5u /* with a device open */
#define VDI_ABORT_TIMEOUT 6u        /* serverTimeOut */
#define VDI_ABORT_CORRUPT 7u        /* the shared control memory holds nonsense */

typedef struct VdiAbortInfo {
    DWORD cause;      /* VDI_ABORT_* */
    DWORD pid;        /* process that died, signalled or closed; 0 where not known */
    char reason[256]; /* UTF-8, zero-terminated; one sentence */
} VdiAbortInfo;

/* {9C3A1F52-6E0B-4D7C-8A35-2B41D90E7F61}: answered by the set objects of both halves of the embedded provider. */
VDI_GUID(IID_IVdiEmbeddedSet, 0x9C3A1F52, 0x6E0B, 0x4D7C, 0x8A, 0x35, 0x2B, 0x41, 0xD9, 0x0E, 0x7F, 0x61);

typedef struct IVdiEmbeddedSet IVdiEmbeddedSet;
typedef struct IVdiEmbeddedSetVtbl {
    HRESULT(STDMETHODCALLTYPE *QueryInterface)(IVdiEmbeddedSet *This, const IID *riid, void **ppvObject);
    ULONG(STDMETHODCALLTYPE *AddRef)(IVdiEmbeddedSet *This);
    ULONG(STDMETHODCALLTYPE *Release)(IVdiEmbeddedSet *This);
    /* VDI_STATE_* as this object sees it. */
    HRESULT(STDMETHODCALLTYPE *GetState)(IVdiEmbeddedSet *This, DWORD *pState);
    HRESULT(STDMETHODCALLTYPE *GetSetId)(IVdiEmbeddedSet *This, BYTE *pSetId /* [16] */);
    /* Before CreateEx: lets members of this group join as well as the user. */
    HRESULT(STDMETHODCALLTYPE *SetAccessGroup)(IVdiEmbeddedSet *This, DWORD dwGroupId);
    /* Client: address of the buffer of an outstanding Read or Write of this process. VD_E_INVALID otherwise. */
    HRESULT(STDMETHODCALLTYPE *DescribeBuffer)(IVdiEmbeddedSet *This, const BYTE *pBuffer, VdiBufferInfo *pInfo);
    /* Client: maps by value, generation and setId; all three must name a buffer that is out now (VD_E_INVALID).
     * *pActual holds what the provider knows, whatever pHandle says of size and access. */
    HRESULT(STDMETHODCALLTYPE *MapBuffer)(IVdiEmbeddedSet *This, const VdiBufferInfo *pHandle, BYTE **ppBuffer,
                                          VdiBufferInfo *pActual);
    /* Client: NOERROR while that same lending lasts, VD_E_INVALID after it. */
    HRESULT(STDMETHODCALLTYPE *CheckBuffer)(IVdiEmbeddedSet *This, const VdiBufferInfo *pHandle);
    /* SignalAbort with one sentence for the others (UTF-8, NULL for none). */
    HRESULT(STDMETHODCALLTYPE *SignalAbortWithReason)(IVdiEmbeddedSet *This, const char *pReason);
    /* In Abort: why. */
    HRESULT(STDMETHODCALLTYPE *GetAbortInfo)(IVdiEmbeddedSet *This, VdiAbortInfo *pInfo);
} IVdiEmbeddedSetVtbl;
struct IVdiEmbeddedSet {
    const IVdiEmbeddedSetVtbl *lpVtbl;
};

#ifdef __cplusplus
}
#endif

#endif
