/* The adapter of vdi_ext/_platform over a library that has only the C++ classes, by its vtables: what its callers in
 * Cython never do, or see to themselves.
 *
 * adapter LIBRARY NAME     creates the set, for a server in another process, which sends a Flush and closes the device */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../vdi_ext/_platform/sqlvdi_linux.h"
#include "vdierror.h"
#include "vdiguid.h"

static int failures;

static void expect(int line, const char *what, long got, long expected)
{
    if (got != expected) {
        printf("FAIL line %d: %s gives %ld (0x%lX), expected %ld\n", line, what, got, got & 0xFFFFFFFFl, expected);
        failures++;
    }
}
#define EXPECT(call, expected) expect(__LINE__, #call, (long)(call), (long)(expected))
#define CALL(object, slot, ...) (object)->lpVtbl->slot((object), ##__VA_ARGS__)

static IClientVirtualDeviceSet2 *new_set(IClassFactory *factory)
{
    IClientVirtualDeviceSet2 *set = nullptr;
    EXPECT(CALL(factory, CreateInstance, nullptr, &IID_IClientVirtualDeviceSet2, (void **)&set), S_OK);
    return set;
}

static void identities(IClassFactory *factory)
{
    void *out = factory;
    IUnknown *unknown = (IUnknown *)factory;
    EXPECT(CALL(factory, QueryInterface, &IID_IClassFactory, &out), S_OK);
    EXPECT(out == factory, true);
    EXPECT(CALL(factory, QueryInterface, &IID_IClientVirtualDevice, &out), E_NOINTERFACE);
    EXPECT(out == nullptr, true);
    EXPECT(CALL(factory, QueryInterface, nullptr, &out), E_POINTER);
    EXPECT(CALL(factory, LockServer, 1), S_OK);
    EXPECT(CALL(factory, CreateInstance, unknown, &IID_IUnknown, &out), CLASS_E_NOAGGREGATION);
    EXPECT(CALL(factory, CreateInstance, nullptr, &IID_IServerVirtualDeviceSet2, &out), E_NOINTERFACE);
    EXPECT(out == nullptr, true);
    IClientVirtualDeviceSet2 *set = new_set(factory);
    /* Old clients ask for the first interface and call slots of the second. */
    const IID *same[] = {&IID_IUnknown, &IID_IClientVirtualDeviceSet, &IID_IClientVirtualDeviceSet2};
    for (const IID *iid : same) {
        EXPECT(CALL(set, QueryInterface, iid, &out), S_OK);
        EXPECT(out == set, true);
        EXPECT(CALL(set, Release), 1);
    }
    EXPECT(CALL(set, QueryInterface, &IID_IServerVirtualDeviceSet2, &out), E_NOINTERFACE);
    EXPECT(CALL(set, AddRef), 2);
    EXPECT(CALL(set, Release), 1);
    EXPECT(CALL(set, Release), 0);
}

static void arguments(IClassFactory *factory, LPCWSTR name)
{
    static const WCHAR lone[] = {'a', 0xD83D, 'b', 0}, last[] = {0xD83D, 0}, low[] = {0xDCBE, 0}, none[] = {0};
    static WCHAR endless[1000];
    for (WCHAR &c : endless)
        c = 'x';
    endless[999] = 0;
    VDConfig config;
    IClientVirtualDevice *device = (IClientVirtualDevice *)&config;
    BYTE *buffer;
    DWORD handle;
    memset(&config, 0, sizeof config);
    config.deviceCount = 1;
    IClientVirtualDeviceSet2 *set = new_set(factory);
    const LPCWSTR names[] = {lone, last, low, endless, nullptr};
    for (LPCWSTR bad : names) {
        EXPECT(CALL(set, CreateEx, nullptr, bad, &config), VD_E_INVALID);
        EXPECT(CALL(set, OpenInSecondaryEx, nullptr, bad), VD_E_INVALID);
        EXPECT(CALL(set, OpenDevice, bad, &device), VD_E_INVALID);
        EXPECT(device == nullptr, true);
    }
    EXPECT(CALL(set, CreateEx, u"SECOND", name, &config), VD_E_INSTANCE_NAME);
    EXPECT(CALL(set, OpenInSecondaryEx, u"SECOND", name), VD_E_INSTANCE_NAME);
    EXPECT(CALL(set, CreateEx, none, name, nullptr), VD_E_INVALID);
    EXPECT(CALL(set, GetConfiguration, 0, nullptr), VD_E_INVALID);
    EXPECT(CALL(set, OpenDevice, name, nullptr), VD_E_INVALID);
    EXPECT(CALL(set, GetBufferHandle, nullptr, &handle), VD_E_INVALID);
    EXPECT(CALL(set, GetBufferHandle, (BYTE *)&config, nullptr), VD_E_INVALID);
    EXPECT(CALL(set, MapBufferHandle, 1, nullptr), VD_E_INVALID);
    /* nothing is open */
    EXPECT(CALL(set, Close), VD_E_PROTOCOL);
    EXPECT(CALL(set, SignalAbort), VD_E_PROTOCOL);
    EXPECT(CALL(set, GetConfiguration, INFINITE, &config), VD_E_PROTOCOL);
    EXPECT(CALL(set, OpenDevice, name, &device), VD_E_PROTOCOL);
    EXPECT(CALL(set, MapBufferHandle, 1, &buffer), VD_E_PROTOCOL);
    EXPECT(CALL(set, OpenInSecondary, name), VD_E_PROTOCOL);
    EXPECT(CALL(set, Release), 0);
}

static void *abort_it(void *set)
{
    EXPECT(CALL((IClientVirtualDeviceSet2 *)set, SignalAbort), NOERROR);
    return nullptr;
}

/* A wait without limit is one, and a set that is dropped while open is closed. */
static void endless_wait(IClassFactory *factory, LPCWSTR name)
{
    VDConfig config;
    memset(&config, 0, sizeof config);
    config.deviceCount = 1;
    for (int life = 0; life < 3; life++) {
        IClientVirtualDeviceSet2 *set = new_set(factory);
        pthread_t thread;
        EXPECT(CALL(set, Create, name, &config), NOERROR);
        EXPECT(CALL(set, Create, name, &config), VD_E_PROTOCOL);
        EXPECT(CALL(set, GetConfiguration, 30, &config), VD_E_TIMEOUT);
        pthread_create(&thread, nullptr, abort_it, set);
        EXPECT(CALL(set, GetConfiguration, INFINITE, &config), VD_E_ABORT);
        pthread_join(thread, nullptr);
        EXPECT(CALL(set, Release), 0);
    }
}

/* Calls of a device, also when its set is closed, used again and gone. */
static void a_life(IClassFactory *factory, LPCWSTR name)
{
    VDConfig config;
    VDC_Command *command = nullptr;
    IClientVirtualDevice *device = nullptr;
    void *out;
    memset(&config, 0, sizeof config);
    config.deviceCount = 1;
    IClientVirtualDeviceSet2 *set = new_set(factory);
    EXPECT(CALL(set, CreateEx, nullptr, name, &config), NOERROR);
    printf("created\n");
    EXPECT(CALL(set, GetConfiguration, INFINITE, &config), NOERROR);
    EXPECT(CALL(set, OpenDevice, name, &device), NOERROR);
    EXPECT(CALL(device, QueryInterface, &IID_IClientVirtualDevice, &out), S_OK);
    EXPECT(CALL(device, QueryInterface, &IID_IClientVirtualDeviceSet, &out), E_NOINTERFACE);
    EXPECT(CALL(device, Release), 1);
    EXPECT(CALL(device, GetCommand, 0, nullptr), VD_E_INVALID);
    EXPECT(CALL(device, CompleteCommand, nullptr, 0, 0, 0), VD_E_INVALID);
    EXPECT(CALL(device, GetCommand, INFINITE, &command), NOERROR);
    EXPECT(command->commandCode, VDC_Flush);
    EXPECT(CALL(device, CompleteCommand, command, ERROR_SUCCESS, 0, 0), NOERROR);
    EXPECT(CALL(device, GetCommand, INFINITE, &command), VD_E_CLOSE);
    EXPECT(CALL(device, GetCommand, INFINITE, &command), VD_E_CLOSE);
    EXPECT(CALL(set, Close), NOERROR);
    EXPECT(CALL(set, Close), VD_E_PROTOCOL);
    EXPECT(CALL(device, GetCommand, INFINITE, &command), VD_E_PROTOCOL);
    EXPECT(CALL(device, CompleteCommand, command, ERROR_SUCCESS, 0, 0), VD_E_PROTOCOL);
    memset(&config, 0, sizeof config);
    config.deviceCount = 1;
    EXPECT(CALL(set, CreateEx, nullptr, name, &config), NOERROR); /* the next operation of the same object */
    EXPECT(CALL(device, GetCommand, 0, &command), VD_E_PROTOCOL);
    EXPECT(CALL(set, Close), NOERROR);
    EXPECT(CALL(set, Release), 1); /* the device's */
    EXPECT(CALL(device, GetCommand, 0, &command), VD_E_PROTOCOL);
    EXPECT(CALL(device, Release), 0);
}

int main(int argc, char **argv)
{
    WCHAR name[128] = {};
    setvbuf(stdout, nullptr, _IOLBF, 0);
    alarm(60);
    if (argc != 3 || strlen(argv[2]) > 127)
        return 2;
    for (size_t i = 0; argv[2][i]; i++)
        name[i] = (WCHAR)argv[2][i];
    void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!library) {
        printf("FAIL %s\n", dlerror());
        return 1;
    }
    IClassFactory *factory = sqlvdi_class_factory(library); /* from here on printf goes to standard error */
    EXPECT(sqlvdi_class_factory(library) == factory, true);
    identities(factory);
    arguments(factory, name);
    endless_wait(factory, name);
    a_life(factory, name);
    return failures ? 1 : 0;
}
