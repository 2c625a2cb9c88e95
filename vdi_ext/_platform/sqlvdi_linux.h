/* SQL Server's client library on Linux, which has C++ classes and no COM, behind the vtables of vdi.h. */
#ifndef SQLVDI_LINUX_H
#define SQLVDI_LINUX_H

#include "vdi.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The functions that such a library exports (section 2.4 of the specification), NULL at the end. */
extern const char *const sqlvdi_functions[];

/* A class factory of CLSID_MSSQL_ClientVirtualDeviceSet over a library (a handle of dlopen) that exports all of them.
 * It lives as long as the process, and so must the library. NULL: no memory. The first call sends what C and C++ print
 * to standard output in this process to standard error. */
IClassFactory *sqlvdi_class_factory(void *library);

#ifdef __cplusplus
}
#endif

#endif
