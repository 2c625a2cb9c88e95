/* The classes of libsqlvdi.so as Linux programs link them: two classes of one pointer each and no virtual functions,
 * on top of the vtables that this library's own class factory hands out.
 *
 * Who owns what. A program allocates a ClientVirtualDeviceSet itself (8 bytes) and runs the constructor here; devices
 * come from OpenDevice. A program may delete a device at any time, before or after Close and even after the set is
 * gone, and most never do, so the library never frees the 8 bytes of a device: it takes back what is behind them when
 * the set is destroyed or used for the next operation.
 *
 * The file needs no C++ runtime: no exceptions, no type information, no static constructors. */
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "vdi_provider.h"

/* The program's operator new where it has one, so that its delete gives back what was taken from the same place. */
extern "C" __attribute__((weak)) void *_Znwm(size_t size);

namespace {

/* 128 characters of at most two units each, the longest name that there is, and the zero. */
const size_t NAME_UNITS = 257;

/* UTF-8 to UTF-16. False for malformed text and for text that is longer than any name. */
bool name_from_utf8(const char *text, WCHAR *name)
{
    if (!text)
        return false;
    const unsigned char *p = reinterpret_cast<const unsigned char *>(text);
    size_t n = 0;
    while (*p) {
        static const uint32_t smallest[] = {0, 0x80, 0x800, 0x10000};
        int more = *p < 0x80 ? 0 : *p < 0xE0 ? 1 : *p < 0xF0 ? 2 : 3;
        if ((*p >= 0x80 && *p < 0xC2) || *p > 0xF4)
            return false;
        uint32_t code = more ? *p & (0x3Fu >> more) : *p;
        p++;
        for (int i = 0; i < more; i++, p++) {
            if ((*p & 0xC0) != 0x80)
                return false; /* the final zero as well */
            code = code << 6 | (*p & 0x3Fu);
        }
        if (code < smallest[more] || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
            return false;
        size_t units = code < 0x10000 ? 1 : 2;
        if (n + units >= NAME_UNITS)
            return false;
        if (units == 1) {
            name[n++] = static_cast<WCHAR>(code);
        } else {
            name[n++] = static_cast<WCHAR>(0xD800 + ((code - 0x10000) >> 10));
            name[n++] = static_cast<WCHAR>(0xDC00 + ((code - 0x10000) & 0x3FF));
        }
    }
    name[n] = 0;
    return true;
}

/* A wait in units of so many milliseconds. Negative or INFINITE: without limit. Waits that do not fit into a DWORD
 * become the longest that does (49 days), never a short one. */
DWORD wait_ms(time_t wait, time_t ms_per_unit)
{
    if (wait < 0 || wait == static_cast<time_t>(INFINITE))
        return INFINITE;
    const time_t longest = static_cast<time_t>(INFINITE) - 1;
    return static_cast<DWORD>(wait > longest / ms_per_unit ? longest : wait * ms_per_unit);
}

/* Guards the lists of devices: taken only to open, drop and delete devices. */
pthread_mutex_t g_lists = PTHREAD_MUTEX_INITIALIZER;

} // namespace

class ClientVirtualDevice;

/* Behind a ClientVirtualDevice: one reference for the program's object and one for each call that is under way, so
 * that neither delete nor the set's end takes anything from under a call. */
struct CVD {
    int references;
    IClientVirtualDevice *native; /* one reference */
    ClientVirtualDevice *shell;   /* the program's object */
    CVD *next, **link;            /* the set's list */
};

/* Behind a ClientVirtualDeviceSet. */
struct CVDS {
    IClientVirtualDeviceSet2 *native; /* one reference */
    CVD *devices;                     /* those of this operation that the program has not deleted */
};

class __attribute__((visibility("default"))) ClientVirtualDevice {
    friend class ClientVirtualDeviceSet;
    CVD *cvd;

public:
    ClientVirtualDevice();
    ~ClientVirtualDevice();
    int GetCommand(time_t timeOut, VDC_Command **ppCmd);
    int CompleteCommand(VDC_Command *pCmd, int completionCode, unsigned long bytesTransferred, int64_t position);
};

class __attribute__((visibility("default"))) ClientVirtualDeviceSet {
    CVDS *cvds;

public:
    ClientVirtualDeviceSet();
    ~ClientVirtualDeviceSet();
    int Create(char *name, VDConfig *cfg);
    int GetConfiguration(time_t timeout, VDConfig *cfg);
    int OpenDevice(char *name, ClientVirtualDevice **ppVirtualDevice);
    int Close();
    int SignalAbort();
    int OpenInSecondary(char *setName);
    int GetBufferHandle(uint8_t *pBuffer, unsigned int *pBufferHandle);
    int MapBufferHandle(int dwBuffer, uint8_t **ppBuffer);
    void RegisterDeviceClosed();

private:
    __attribute__((visibility("hidden"))) void drop_devices();
};

static_assert(sizeof(ClientVirtualDevice) == 8 && sizeof(ClientVirtualDeviceSet) == 8, "programs allocate 8 bytes");

namespace {

CVD *borrow(CVD *cvd)
{
    if (cvd)
        __atomic_fetch_add(&cvd->references, 1, __ATOMIC_RELAXED);
    return cvd;
}

void give_back(CVD *cvd)
{
    if (__atomic_fetch_sub(&cvd->references, 1, __ATOMIC_ACQ_REL) == 1) {
        cvd->native->lpVtbl->Release(cvd->native);
        free(cvd);
    }
}

} // namespace

ClientVirtualDevice::ClientVirtualDevice() : cvd(nullptr) {}

ClientVirtualDevice::~ClientVirtualDevice()
{
    pthread_mutex_lock(&g_lists);
    CVD *mine = cvd;
    cvd = nullptr;
    if (mine) {
        *mine->link = mine->next;
        if (mine->next)
            mine->next->link = mine->link;
    }
    pthread_mutex_unlock(&g_lists);
    if (mine)
        give_back(mine);
}

/* Seconds: what Microsoft's sample passes (90) is meant as seconds, and its documentation's milliseconds would end the
 * sample after a tenth of one. */
int ClientVirtualDevice::GetCommand(time_t timeOut, VDC_Command **ppCmd)
{
    CVD *mine = borrow(cvd);
    if (!mine)
        return VD_E_PROTOCOL;
    HRESULT hr = mine->native->lpVtbl->GetCommand(mine->native, wait_ms(timeOut, 1000), ppCmd);
    give_back(mine);
    return hr;
}

int ClientVirtualDevice::CompleteCommand(VDC_Command *pCmd, int completionCode, unsigned long bytesTransferred,
                                         int64_t position)
{
    if (bytesTransferred > UINT32_MAX)
        return VD_E_INVALID;
    CVD *mine = borrow(cvd);
    if (!mine)
        return VD_E_PROTOCOL;
    HRESULT hr = mine->native->lpVtbl->CompleteCommand(mine->native, pCmd, static_cast<DWORD>(completionCode),
                                                       static_cast<DWORD>(bytesTransferred),
                                                       static_cast<DWORDLONG>(position));
    give_back(mine);
    return hr;
}

ClientVirtualDeviceSet::ClientVirtualDeviceSet() : cvds(static_cast<CVDS *>(calloc(1, sizeof(CVDS))))
{
    IClassFactory *factory = nullptr;
    if (!cvds || FAILED(DllGetClassObject(&CLSID_MSSQL_ClientVirtualDeviceSet, &IID_IClassFactory,
                                          reinterpret_cast<void **>(&factory))))
        return;
    factory->lpVtbl->CreateInstance(factory, nullptr, &IID_IClientVirtualDeviceSet2,
                                    reinterpret_cast<void **>(&cvds->native)); /* NULL where it fails */
    factory->lpVtbl->Release(factory);
}

ClientVirtualDeviceSet::~ClientVirtualDeviceSet()
{
    if (!cvds)
        return;
    drop_devices();
    if (cvds->native) {
        cvds->native->lpVtbl->Close(cvds->native); /* VD_E_PROTOCOL where the program has closed it */
        cvds->native->lpVtbl->Release(cvds->native);
    }
    free(cvds);
    cvds = nullptr;
}

/* Takes back what is behind the devices; calls on them give VD_E_PROTOCOL from now on. */
void ClientVirtualDeviceSet::drop_devices()
{
    pthread_mutex_lock(&g_lists);
    CVD *cvd = cvds->devices;
    cvds->devices = nullptr;
    for (CVD *each = cvd; each; each = each->next)
        each->shell->cvd = nullptr;
    pthread_mutex_unlock(&g_lists);
    while (cvd) {
        CVD *next = cvd->next;
        give_back(cvd);
        cvd = next;
    }
}

int ClientVirtualDeviceSet::Create(char *name, VDConfig *cfg)
{
    WCHAR wide[NAME_UNITS];
    if (!cvds || !cvds->native)
        return VD_E_MEMORY;
    if (!name_from_utf8(name, wide))
        return VD_E_INVALID;
    HRESULT hr = cvds->native->lpVtbl->Create(cvds->native, wide, cfg);
    if (SUCCEEDED(hr))
        drop_devices();
    return hr;
}

int ClientVirtualDeviceSet::OpenInSecondary(char *setName)
{
    WCHAR wide[NAME_UNITS];
    if (!cvds || !cvds->native)
        return VD_E_MEMORY;
    if (!name_from_utf8(setName, wide))
        return VD_E_INVALID;
    HRESULT hr = cvds->native->lpVtbl->OpenInSecondary(cvds->native, wide);
    if (SUCCEEDED(hr))
        drop_devices();
    return hr;
}

int ClientVirtualDeviceSet::GetConfiguration(time_t timeout, VDConfig *cfg)
{
    if (!cvds || !cvds->native)
        return VD_E_MEMORY;
    return cvds->native->lpVtbl->GetConfiguration(cvds->native, wait_ms(timeout, 1), cfg);
}

int ClientVirtualDeviceSet::OpenDevice(char *name, ClientVirtualDevice **ppVirtualDevice)
{
    if (!ppVirtualDevice)
        return VD_E_INVALID;
    *ppVirtualDevice = nullptr;
    if (!cvds || !cvds->native)
        return VD_E_MEMORY;
    WCHAR wide[NAME_UNITS];
    if (!name_from_utf8(name, wide))
        return VD_E_INVALID;
    IClientVirtualDevice *native = nullptr;
    HRESULT hr = cvds->native->lpVtbl->OpenDevice(cvds->native, wide, &native);
    if (FAILED(hr))
        return hr;
    CVD *cvd = static_cast<CVD *>(malloc(sizeof *cvd));
    const size_t size = sizeof(ClientVirtualDevice);
    void *memory = cvd ? (_Znwm ? _Znwm(size) : malloc(size)) : nullptr;
    if (!memory) {
        free(cvd);
        native->lpVtbl->Release(native);
        return VD_E_MEMORY;
    }
    ClientVirtualDevice *device = static_cast<ClientVirtualDevice *>(memory);
    device->cvd = cvd;
    pthread_mutex_lock(&g_lists);
    *cvd = {1, native, device, cvds->devices, &cvds->devices};
    if (cvd->next)
        cvd->next->link = &cvd->next;
    cvds->devices = cvd;
    pthread_mutex_unlock(&g_lists);
    *ppVirtualDevice = device;
    return hr;
}

int ClientVirtualDeviceSet::Close()
{
    if (!cvds || !cvds->native)
        return VD_E_MEMORY;
    return cvds->native->lpVtbl->Close(cvds->native);
}

int ClientVirtualDeviceSet::SignalAbort()
{
    if (!cvds || !cvds->native)
        return VD_E_MEMORY;
    return cvds->native->lpVtbl->SignalAbort(cvds->native);
}

int ClientVirtualDeviceSet::GetBufferHandle(uint8_t *pBuffer, unsigned int *pBufferHandle)
{
    if (!cvds || !cvds->native)
        return VD_E_MEMORY;
    return cvds->native->lpVtbl->GetBufferHandle(cvds->native, pBuffer, pBufferHandle);
}

int ClientVirtualDeviceSet::MapBufferHandle(int dwBuffer, uint8_t **ppBuffer)
{
    if (!cvds || !cvds->native)
        return VD_E_MEMORY;
    return cvds->native->lpVtbl->MapBufferHandle(cvds->native, static_cast<DWORD>(dwBuffer), ppBuffer);
}

/* A notification among the library's own parts, public by accident. The provider counts closed devices itself. */
void ClientVirtualDeviceSet::RegisterDeviceClosed() {}
