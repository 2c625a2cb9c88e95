/* Status codes of the interface, and the Win32 codes with which a client completes commands. */
#ifndef VDIERROR_H
#define VDIERROR_H

#include "vdi_platform.h"

/* Severity 1, facility 0x77. */
#define VD_E_CODE(n) ((HRESULT)(0x80770000u + (n)))

#define VD_E_NOTOPEN VD_E_CODE(0x2u)        /* the object was not open */
#define VD_E_TIMEOUT VD_E_CODE(0x3u)        /* the interval of a wait ran out */
#define VD_E_ABORT VD_E_CODE(0x4u)          /* an abort was requested: only SignalAbort and Close remain useful */
#define VD_E_SECURITY VD_E_CODE(0x5u)       /* access was refused or could not be set up */
#define VD_E_INVALID VD_E_CODE(0x6u)        /* bad parameter */
#define VD_E_INSTANCE_NAME VD_E_CODE(0x7u)  /* the instance name was not recognised */
#define VD_E_NOTSUPPORTED VD_E_CODE(0x9u)   /* the requested configuration is not valid */
#define VD_E_MEMORY VD_E_CODE(0xAu)         /* out of memory, or above the provider's limit */
#define VD_E_UNEXPECTED VD_E_CODE(0xBu)     /* internal error */
#define VD_E_PROTOCOL VD_E_CODE(0xCu)       /* the call is not allowed in this state */
#define VD_E_OPEN VD_E_CODE(0xDu)           /* all devices are open; or devices were still open at Close */
#define VD_E_CLOSE VD_E_CODE(0xEu)          /* the server has closed the device */
#define VD_E_BUSY VD_E_CODE(0xFu)           /* the resource is busy */
#define VD_E_QUEUE_FULL VD_E_CODE(0x10u)    /* SendCommand: the device's queue is full (no published number) */
#define VD_E_IO_ERROR VD_E_CODE(0x11u)      /* SendCommand: the device is in IO-ERROR (no published number) */

#ifndef _WIN32
#define ERROR_SUCCESS 0u
#define ERROR_INVALID_HANDLE 6u
#define ERROR_ARENA_TRASHED 7u
#define ERROR_BAD_ENVIRONMENT 10u
#define ERROR_HANDLE_EOF 38u
#define ERROR_HANDLE_DISK_FULL 39u
#define ERROR_NOT_SUPPORTED 50u
#define ERROR_INVALID_PARAMETER 87u
#define ERROR_DISK_FULL 112u
#define ERROR_OPERATION_ABORTED 995u
#define ERROR_END_OF_MEDIA 1100u
#define ERROR_FILEMARK_DETECTED 1101u
#define ERROR_BEGINNING_OF_MEDIA 1102u
#define ERROR_NO_DATA_DETECTED 1104u
#define ERROR_INVALID_BLOCK_LENGTH 1106u
#define ERROR_NO_MEDIA_IN_DRIVE 1112u
#define ERROR_IO_DEVICE 1117u
#define ERROR_EOM_OVERFLOW 1129u
#define ERROR_NO_SYSTEM_RESOURCES 1450u
#endif

#endif
