/* A libsqlvdi.so that is as peculiar as SQL Server's may be. It stands before the provider's own classes, which are
 * compiled under other names, and exports nothing but the published ones.
 *
 * The variable SQLVDI_QUIRKS chooses among
 *     seconds   every wait is in seconds
 *     ms        every wait is in milliseconds (without either: GetConfiguration's in ms, GetCommand's in seconds)
 *     noise     each call but the waits prints on standard output, by way of C and of C++
 *     looks     Close says on standard error how often GetCommand was called
 *     wrong     OpenDevice gives a positive number
 *     umask     Create says on standard error which umask the process has meanwhile
 *
 * It does not forgive what a genuine library need not: a device that is called by two threads, called again after
 * VD_E_CLOSE or after Close, a wait without limit, shared memory that the group can not use. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <iostream>
#include <string>
#include <vector>

#define ClientVirtualDevice RealDevice
#define ClientVirtualDeviceSet RealDeviceSet
#include "published.h"
#undef ClientVirtualDevice
#undef ClientVirtualDeviceSet
#include "published.h"

struct CVD {
    RealDevice *real;
    pthread_t thread;
    bool called, over;
};

struct CVDS {
    RealDeviceSet real;
    std::vector<ClientVirtualDevice *> devices;
};

static long looks;

static bool quirk(const char *name)
{
    const char *all = getenv("SQLVDI_QUIRKS");
    return all && (',' + std::string(all) + ',').find(',' + std::string(name) + ',') != std::string::npos;
}

static void noise(const char *what)
{
    if (!quirk("noise"))
        return;
    printf("NOISE of C: ClientVirtualDeviceSet::%s\n", what);
    std::cout << "NOISE of C++: ClientVirtualDeviceSet::" << what << "\n";
}

[[noreturn]] static void unforgiven(const char *what)
{
    fprintf(stderr, "FAIL in the library: %s\n", what);
    abort();
}

/* In the unit of the real class, which takes `unit` per millisecond. */
static time_t wait_of(time_t wait, bool real_is_seconds)
{
    if (wait < 0)
        unforgiven("a wait without limit");
    if (quirk("seconds"))
        return real_is_seconds ? wait : wait * 1000;
    if (quirk("ms"))
        return real_is_seconds ? (wait + 999) / 1000 : wait;
    return wait;
}

/* What the client's half creates is there for the group. */
static bool group_may_use_memory()
{
    std::string name = "/sqlvdi-quirks-" + std::to_string(getpid());
    struct stat status = {};
    int fd = shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL, 0660);
    if (fd < 0 || fstat(fd, &status) != 0)
        unforgiven("shm_open");
    shm_unlink(name.c_str());
    close(fd);
    return (status.st_mode & 0777) == 0660;
}

/* Of the first thread, whichever asks. */
static unsigned umask_of_process()
{
    unsigned mask = ~0u;
    char line[256];
    FILE *file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof line, file) && sscanf(line, "Umask: %o", &mask) != 1)
        ;
    if (file)
        fclose(file);
    return mask;
}

/* A device object is the program's to delete: this library keeps it and never deletes it before Close. */
ClientVirtualDevice::ClientVirtualDevice() : cvd(nullptr) {}
ClientVirtualDevice::~ClientVirtualDevice() {}

static void enter(CVD *cvd)
{
    if (!cvd)
        unforgiven("a device is called after Close");
    if (cvd->over)
        unforgiven("a device is called after VD_E_CLOSE");
    if (cvd->called && !pthread_equal(cvd->thread, pthread_self()))
        unforgiven("two threads call one device");
    cvd->called = true;
    cvd->thread = pthread_self();
}

int ClientVirtualDevice::GetCommand(time_t timeOut, VDC_Command **ppCmd)
{
    enter(cvd);
    __atomic_fetch_add(&looks, 1, __ATOMIC_RELAXED);
    int result = cvd->real->GetCommand(wait_of(timeOut, true), ppCmd);
    cvd->over = result == CLOSED;
    return result;
}

int ClientVirtualDevice::CompleteCommand(VDC_Command *pCmd, int completionCode, unsigned long bytesTransferred,
                                         int64_t position)
{
    enter(cvd);
    return cvd->real->CompleteCommand(pCmd, completionCode, bytesTransferred, position);
}

ClientVirtualDeviceSet::ClientVirtualDeviceSet() : cvds(new CVDS) { noise("ClientVirtualDeviceSet"); }

ClientVirtualDeviceSet::~ClientVirtualDeviceSet()
{
    noise("~ClientVirtualDeviceSet");
    for (ClientVirtualDevice *device : cvds->devices) {
        delete device->cvd;
        delete device;
    }
    delete cvds;
}

int ClientVirtualDeviceSet::Create(char *name, VDConfig *cfg)
{
    noise("Create");
    if (quirk("umask"))
        fprintf(stderr, "umask %o\n", umask_of_process());
    if (!group_may_use_memory())
        return SECURITY;
    return cvds->real.Create(name, cfg);
}

int ClientVirtualDeviceSet::GetConfiguration(time_t timeout, VDConfig *cfg)
{
    int result = cvds->real.GetConfiguration(wait_of(timeout, false), cfg);
    if (result != TIMEOUT)
        noise("GetConfiguration");
    return result;
}

int ClientVirtualDeviceSet::OpenDevice(char *name, ClientVirtualDevice **ppVirtualDevice)
{
    noise("OpenDevice");
    if (quirk("wrong"))
        return 2;
    RealDevice *real = nullptr;
    int result = cvds->real.OpenDevice(name, &real);
    if (result == 0) {
        *ppVirtualDevice = new ClientVirtualDevice;
        (*ppVirtualDevice)->cvd = new CVD{real, pthread_t(), false, false};
        cvds->devices.push_back(*ppVirtualDevice);
    }
    return result;
}

int ClientVirtualDeviceSet::Close()
{
    noise("Close");
    if (quirk("looks"))
        fprintf(stderr, "looks %ld\n", looks);
    int result = cvds->real.Close();
    for (ClientVirtualDevice *device : cvds->devices)
        if (device->cvd) {
            delete device->cvd->real;
            delete device->cvd;
            device->cvd = nullptr;
        }
    return result;
}

int ClientVirtualDeviceSet::SignalAbort()
{
    noise("SignalAbort");
    return cvds->real.SignalAbort();
}

int ClientVirtualDeviceSet::OpenInSecondary(char *setName)
{
    noise("OpenInSecondary");
    return cvds->real.OpenInSecondary(setName);
}

int ClientVirtualDeviceSet::GetBufferHandle(uint8_t *pBuffer, unsigned int *pBufferHandle)
{
    noise("GetBufferHandle");
    return cvds->real.GetBufferHandle(pBuffer, pBufferHandle);
}

int ClientVirtualDeviceSet::MapBufferHandle(int dwBuffer, uint8_t **ppBuffer)
{
    noise("MapBufferHandle");
    return cvds->real.MapBufferHandle(dwBuffer, ppBuffer);
}

void ClientVirtualDeviceSet::RegisterDeviceClosed() { cvds->real.RegisterDeviceClosed(); }
