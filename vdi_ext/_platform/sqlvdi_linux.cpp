/* A library of SQL Server on Linux as an object of our vtables: its functions are looked up by their mangled names and
 * called with the object as first argument, which is what a compiler does for a class without virtual functions.
 *
 * What differs from the interface on Windows, and what is done about it:
 *
 * Waiting. Whether GetCommand counts milliseconds or seconds is not known; the documentation and the sample of the
 * vendor disagree. So the library is only ever asked for what is there at once, which is 0 in any unit, and the time
 * between is spent here. A negative wait, which is without limit, is never passed on.
 *
 * Console. The library prints diagnostics on standard output, in between the data of a program that writes there. Once
 * a library is used, C's standard output (and with it std::cout) ends in standard error; descriptor 1 and what Python
 * writes there stay what they were.
 *
 * umask. Shared memory is created for the group, which the umask would take away. Create runs with none, on a thread
 * that has one of its own: the files that the rest of the process makes meanwhile are not its concern.
 *
 * Instances. There are none; an instance's name gives VD_E_INSTANCE_NAME.
 *
 * Devices. They belong to the library, which forgets them at Close: from then on calls end here. A device that was
 * closed by the server is not asked again. Which thread may call one is the caller's to see to.
 *
 * The file needs no C++ runtime: no exceptions, no type information, no static constructors. */
#include "sqlvdi_linux.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "vdierror.h"
#include "vdiguid.h"

/* In the order of the members of Library. Constructors and destructors: those of complete objects. */
extern "C" const char *const sqlvdi_functions[] = {
    "_ZN22ClientVirtualDeviceSetC1Ev",
    "_ZN22ClientVirtualDeviceSetD1Ev",
    "_ZN22ClientVirtualDeviceSet6CreateEPcP8VDConfig",
    "_ZN22ClientVirtualDeviceSet16GetConfigurationElP8VDConfig",
    "_ZN22ClientVirtualDeviceSet10OpenDeviceEPcPP19ClientVirtualDevice",
    "_ZN22ClientVirtualDeviceSet5CloseEv",
    "_ZN22ClientVirtualDeviceSet11SignalAbortEv",
    "_ZN22ClientVirtualDeviceSet15OpenInSecondaryEPc",
    "_ZN22ClientVirtualDeviceSet15GetBufferHandleEPhPj",
    "_ZN22ClientVirtualDeviceSet15MapBufferHandleEiPPh",
    "_ZN19ClientVirtualDevice10GetCommandElPP11VDC_Command",
    "_ZN19ClientVirtualDevice15CompleteCommandEP11VDC_Commandiml",
    nullptr,
};

namespace {

struct Library {
    IClassFactory factory;
    void *handle;
    Library *next;
    void (*construct)(void *set);
    void (*destroy)(void *set);
    int (*create)(void *set, char *name, VDConfig *config);
    int (*get_configuration)(void *set, time_t wait, VDConfig *config);
    int (*open_device)(void *set, char *name, void **device);
    int (*close)(void *set);
    int (*signal_abort)(void *set);
    int (*open_in_secondary)(void *set, char *name);
    int (*get_buffer_handle)(void *set, uint8_t *buffer, unsigned int *handle);
    int (*map_buffer_handle)(void *set, int handle, uint8_t **buffer);
    int (*get_command)(void *device, time_t wait, VDC_Command **command);
    int (*complete_command)(void *device, VDC_Command *command, int code, unsigned long bytes, int64_t position);
};

struct Set {
    IClientVirtualDeviceSet2 iface;
    uint32_t references;
    uint32_t life; /* odd while a set is open; a device of another life is gone */
    const Library *library;
    alignas(16) unsigned char object[256]; /* the library's, published as 8 bytes */
};

struct Device {
    IClientVirtualDevice iface;
    uint32_t references;
    uint32_t life;
    Set *set; /* one reference */
    void *object;
    bool closed;
    uint64_t idle_since; /* ns; 0: the last look found something */
};

/* Of the list of libraries, and of the umask of the process. A fork waits for it: no child is born without a umask. */
pthread_mutex_t g_lock = PTHREAD_MUTEX_INITIALIZER;
void lock() { pthread_mutex_lock(&g_lock); }
void unlock() { pthread_mutex_unlock(&g_lock); }

bool equal(const IID *a, const IID &b) { return memcmp(a, &b, sizeof b) == 0; }

/* The library's results are the status codes as negative numbers, and 0. */
HRESULT status(int result) { return result <= 0 ? result : VD_E_UNEXPECTED; }

/* ---- names */

/* No name has more than 128 characters of 2 units, and a unit takes at most 3 bytes. */
const size_t NAME_UNITS = 257, NAME_BYTES = 3 * NAME_UNITS;

bool name_to_utf8(LPCWSTR name, char *text)
{
    size_t n = 0;
    for (size_t units = 0; name && units < NAME_UNITS; units++) {
        uint32_t code = *name++;
        if (code == 0) {
            text[n] = 0;
            return true;
        }
        if (code >= 0xD800 && code < 0xE000) {
            if (code >= 0xDC00 || *name < 0xDC00 || *name >= 0xE000)
                return false;
            code = 0x10000 + ((code & 0x3FF) << 10) + (*name++ & 0x3FFu);
            units++;
        }
        if (code < 0x80) {
            text[n++] = static_cast<char>(code);
        } else if (code < 0x800) {
            text[n++] = static_cast<char>(0xC0 | code >> 6);
            text[n++] = static_cast<char>(0x80 | (code & 0x3F));
        } else {
            if (code < 0x10000) {
                text[n++] = static_cast<char>(0xE0 | code >> 12);
            } else {
                text[n++] = static_cast<char>(0xF0 | code >> 18);
                text[n++] = static_cast<char>(0x80 | (code >> 12 & 0x3F));
            }
            text[n++] = static_cast<char>(0x80 | (code >> 6 & 0x3F));
            text[n++] = static_cast<char>(0x80 | (code & 0x3F));
        }
    }
    return false;
}

/* ---- waiting */

const uint64_t MS = 1000000;
const uint64_t SPIN = MS / 20; /* until here the next command is likely to be on its way */
const uint64_t LONGEST_NAP = 10 * MS;

uint64_t now()
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<uint64_t>(t.tv_sec) * 1000 * MS + static_cast<uint64_t>(t.tv_nsec);
}

/* Asks until there is something, or `wait` milliseconds have passed. It sleeps an eighth of the time that nothing came,
 * so what comes is late by at most an eighth of the time it took to come, and an idle device costs a hundred looks a
 * second. */
template <class Ask> HRESULT wait_for(DWORD wait, uint64_t *idle_since, Ask ask)
{
    uint64_t begun = now(), moment = begun;
    for (;;) {
        HRESULT hr = status(ask());
        if (hr != VD_E_TIMEOUT) {
            *idle_since = 0;
            return hr;
        }
        if (*idle_since == 0)
            *idle_since = moment;
        if (wait == 0)
            return hr;
        moment = now();
        uint64_t left = wait == INFINITE ? LONGEST_NAP : wait * MS;
        if (wait != INFINITE) {
            if (moment - begun >= left)
                return hr;
            left -= moment - begun;
        }
        uint64_t idle = moment - *idle_since, nap = idle / 8;
        if (idle < SPIN) {
            sched_yield();
            continue;
        }
        nap = nap < LONGEST_NAP ? nap : LONGEST_NAP;
        nap = nap < left ? nap : left;
        struct timespec t = {0, static_cast<long>(nap)};
        nanosleep(&t, nullptr); /* a signal ends it early, which only looks early */
    }
}

/* ---- devices */

Device *device_of(IClientVirtualDevice *This) { return reinterpret_cast<Device *>(This); }
Set *set_of(IClientVirtualDeviceSet2 *This) { return reinterpret_cast<Set *>(This); }

uint32_t life_of(const Set *set) { return __atomic_load_n(&set->life, __ATOMIC_ACQUIRE); }

ULONG STDMETHODCALLTYPE device_add_ref(IClientVirtualDevice *This)
{
    return __atomic_add_fetch(&device_of(This)->references, 1, __ATOMIC_RELAXED);
}

ULONG STDMETHODCALLTYPE device_release(IClientVirtualDevice *This)
{
    Device *device = device_of(This);
    uint32_t references = __atomic_sub_fetch(&device->references, 1, __ATOMIC_ACQ_REL);
    if (references == 0) {
        device->set->iface.lpVtbl->Release(&device->set->iface);
        free(device);
    }
    return references;
}

HRESULT STDMETHODCALLTYPE device_query(IClientVirtualDevice *This, const IID *riid, void **out)
{
    if (!riid || !out)
        return E_POINTER;
    *out = nullptr;
    if (!equal(riid, IID_IUnknown) && !equal(riid, IID_IClientVirtualDevice))
        return E_NOINTERFACE;
    device_add_ref(This);
    *out = This;
    return S_OK;
}

HRESULT STDMETHODCALLTYPE device_get_command(IClientVirtualDevice *This, DWORD wait, VDC_Command **out)
{
    Device *device = device_of(This);
    if (!out)
        return VD_E_INVALID;
    *out = nullptr;
    HRESULT hr = wait_for(wait, &device->idle_since, [device, out]() -> int {
        if (life_of(device->set) != device->life)
            return VD_E_PROTOCOL;
        if (device->closed)
            return VD_E_CLOSE;
        return device->set->library->get_command(device->object, 0, out);
    });
    device->closed = hr == VD_E_CLOSE;
    return hr == NOERROR && !*out ? VD_E_UNEXPECTED : hr;
}

HRESULT STDMETHODCALLTYPE device_complete(IClientVirtualDevice *This, VDC_Command *command, DWORD code, DWORD bytes,
                                          DWORDLONG position)
{
    Device *device = device_of(This);
    if (life_of(device->set) != device->life)
        return VD_E_PROTOCOL;
    if (!command)
        return VD_E_INVALID;
    return status(device->set->library->complete_command(device->object, command, static_cast<int>(code), bytes,
                                                         static_cast<int64_t>(position)));
}

const IClientVirtualDeviceVtbl device_vtbl = {device_query, device_add_ref, device_release, device_get_command,
                                              device_complete};

/* ---- the set */

struct CreateCall {
    Set *set;
    char *name;
    VDConfig *config;
    int result;
};

void *create_without_umask(void *argument)
{
    CreateCall *call = static_cast<CreateCall *>(argument);
    const Library *library = call->set->library;
    if (unshare(CLONE_FS) == 0) { /* from here on this thread has a umask and a working directory of its own */
        umask(0);
        call->result = library->create(call->set->object, call->name, call->config);
        return nullptr;
    }
    /* Some containers forbid it: then the umask of the whole process is lifted for the moment. */
    lock();
    mode_t mask = umask(0);
    call->result = library->create(call->set->object, call->name, call->config);
    umask(mask);
    unlock();
    return nullptr;
}

HRESULT opened(Set *set, int result)
{
    if (result == 0)
        __atomic_store_n(&set->life, life_of(set) + 1, __ATOMIC_RELEASE);
    return status(result);
}

ULONG STDMETHODCALLTYPE set_add_ref(IClientVirtualDeviceSet2 *This)
{
    return __atomic_add_fetch(&set_of(This)->references, 1, __ATOMIC_RELAXED);
}

HRESULT STDMETHODCALLTYPE set_close(IClientVirtualDeviceSet2 *This)
{
    Set *set = set_of(This);
    uint32_t life = life_of(set);
    if (!(life & 1) || !__atomic_compare_exchange_n(&set->life, &life, life + 1, false, __ATOMIC_ACQ_REL,
                                                    __ATOMIC_ACQUIRE))
        return VD_E_PROTOCOL;
    return status(set->library->close(set->object));
}

ULONG STDMETHODCALLTYPE set_release(IClientVirtualDeviceSet2 *This)
{
    Set *set = set_of(This);
    uint32_t references = __atomic_sub_fetch(&set->references, 1, __ATOMIC_ACQ_REL);
    if (references == 0) {
        set_close(This);
        set->library->destroy(set->object);
        free(set);
    }
    return references;
}

HRESULT STDMETHODCALLTYPE set_query(IClientVirtualDeviceSet2 *This, const IID *riid, void **out)
{
    if (!riid || !out)
        return E_POINTER;
    *out = nullptr;
    if (!equal(riid, IID_IUnknown) && !equal(riid, IID_IClientVirtualDeviceSet) &&
        !equal(riid, IID_IClientVirtualDeviceSet2))
        return E_NOINTERFACE;
    set_add_ref(This);
    *out = This;
    return S_OK;
}

HRESULT STDMETHODCALLTYPE set_create_ex(IClientVirtualDeviceSet2 *This, LPCWSTR instance, LPCWSTR name,
                                        VDConfig *config)
{
    Set *set = set_of(This);
    char text[NAME_BYTES];
    if (instance && *instance)
        return VD_E_INSTANCE_NAME;
    if (!config || !name_to_utf8(name, text))
        return VD_E_INVALID;
    CreateCall call = {set, text, config, VD_E_MEMORY};
    pthread_t thread;
    if (pthread_create(&thread, nullptr, create_without_umask, &call) != 0)
        return VD_E_MEMORY;
    pthread_join(thread, nullptr);
    return opened(set, call.result);
}

HRESULT STDMETHODCALLTYPE set_create(IClientVirtualDeviceSet2 *This, LPCWSTR name, VDConfig *config)
{
    return set_create_ex(This, nullptr, name, config);
}

HRESULT STDMETHODCALLTYPE set_open_in_secondary_ex(IClientVirtualDeviceSet2 *This, LPCWSTR instance, LPCWSTR name)
{
    Set *set = set_of(This);
    char text[NAME_BYTES];
    if (instance && *instance)
        return VD_E_INSTANCE_NAME;
    if (!name_to_utf8(name, text))
        return VD_E_INVALID;
    return opened(set, set->library->open_in_secondary(set->object, text));
}

HRESULT STDMETHODCALLTYPE set_open_in_secondary(IClientVirtualDeviceSet2 *This, LPCWSTR name)
{
    return set_open_in_secondary_ex(This, nullptr, name);
}

HRESULT STDMETHODCALLTYPE set_get_configuration(IClientVirtualDeviceSet2 *This, DWORD wait, VDConfig *config)
{
    Set *set = set_of(This);
    uint64_t idle_since = 0;
    if (!config)
        return VD_E_INVALID;
    return wait_for(wait, &idle_since,
                    [set, config] { return set->library->get_configuration(set->object, 0, config); });
}

HRESULT STDMETHODCALLTYPE set_open_device(IClientVirtualDeviceSet2 *This, LPCWSTR name, IClientVirtualDevice **out)
{
    Set *set = set_of(This);
    char text[NAME_BYTES];
    if (!out)
        return VD_E_INVALID;
    *out = nullptr;
    if (!name_to_utf8(name, text))
        return VD_E_INVALID;
    Device *device = static_cast<Device *>(calloc(1, sizeof *device));
    if (!device)
        return VD_E_MEMORY;
    device->life = life_of(set);
    HRESULT hr = status(set->library->open_device(set->object, text, &device->object));
    if (hr == NOERROR && !device->object)
        hr = VD_E_UNEXPECTED;
    if (FAILED(hr)) {
        free(device);
        return hr;
    }
    device->iface.lpVtbl = &device_vtbl;
    device->references = 1;
    device->set = set;
    set_add_ref(This);
    *out = &device->iface;
    return hr;
}

HRESULT STDMETHODCALLTYPE set_signal_abort(IClientVirtualDeviceSet2 *This)
{
    Set *set = set_of(This);
    return status(set->library->signal_abort(set->object));
}

HRESULT STDMETHODCALLTYPE set_get_buffer_handle(IClientVirtualDeviceSet2 *This, BYTE *buffer, DWORD *handle)
{
    Set *set = set_of(This);
    if (!buffer || !handle)
        return VD_E_INVALID;
    return status(set->library->get_buffer_handle(set->object, buffer, handle));
}

HRESULT STDMETHODCALLTYPE set_map_buffer_handle(IClientVirtualDeviceSet2 *This, DWORD handle, BYTE **buffer)
{
    Set *set = set_of(This);
    if (!buffer)
        return VD_E_INVALID;
    *buffer = nullptr;
    return status(set->library->map_buffer_handle(set->object, static_cast<int>(handle), buffer));
}

const IClientVirtualDeviceSet2Vtbl set_vtbl = {
    set_query, set_add_ref, set_release, set_create, set_get_configuration, set_open_device, set_close,
    set_signal_abort, set_open_in_secondary, set_get_buffer_handle, set_map_buffer_handle, set_create_ex,
    set_open_in_secondary_ex};

/* ---- the factory */

ULONG STDMETHODCALLTYPE factory_references(IClassFactory *) { return 1; }

HRESULT STDMETHODCALLTYPE factory_query(IClassFactory *This, const IID *riid, void **out)
{
    if (!riid || !out)
        return E_POINTER;
    bool known = equal(riid, IID_IUnknown) || equal(riid, IID_IClassFactory);
    *out = known ? This : nullptr;
    return known ? S_OK : E_NOINTERFACE;
}

HRESULT STDMETHODCALLTYPE factory_create_instance(IClassFactory *This, IUnknown *outer, const IID *riid, void **out)
{
    if (!riid || !out)
        return E_POINTER;
    *out = nullptr;
    if (outer)
        return CLASS_E_NOAGGREGATION;
    Set *set = static_cast<Set *>(calloc(1, sizeof *set));
    if (!set)
        return E_OUTOFMEMORY;
    set->iface.lpVtbl = &set_vtbl;
    set->references = 1;
    set->library = reinterpret_cast<Library *>(This);
    set->library->construct(set->object);
    HRESULT hr = set_query(&set->iface, riid, out);
    set_release(&set->iface);
    return hr;
}

HRESULT STDMETHODCALLTYPE factory_lock_server(IClassFactory *, int) { return S_OK; }

const IClassFactoryVtbl factory_vtbl = {factory_query, factory_references, factory_references, factory_create_instance,
                                        factory_lock_server};

Library *g_libraries;

/* The stream itself is changed: std::cout and others have taken its address before. Lines appear as they are printed. */
void send_output_to_stderr()
{
#ifdef __GLIBC__
    fflush(stdout);
    flockfile(stdout);
    stdout->_fileno = 2;
    funlockfile(stdout);
    setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);
#endif
}

template <class Function> void look_up(void *handle, const char *const *&name, Function *&function)
{
    function = reinterpret_cast<Function *>(dlsym(handle, *name++));
}

} // namespace

IClassFactory *sqlvdi_class_factory(void *handle)
{
    lock();
    Library *library = g_libraries;
    while (library && library->handle != handle)
        library = library->next;
    if (!library && (library = static_cast<Library *>(calloc(1, sizeof *library)))) {
        const char *const *name = sqlvdi_functions;
        look_up(handle, name, library->construct);
        look_up(handle, name, library->destroy);
        look_up(handle, name, library->create);
        look_up(handle, name, library->get_configuration);
        look_up(handle, name, library->open_device);
        look_up(handle, name, library->close);
        look_up(handle, name, library->signal_abort);
        look_up(handle, name, library->open_in_secondary);
        look_up(handle, name, library->get_buffer_handle);
        look_up(handle, name, library->map_buffer_handle);
        look_up(handle, name, library->get_command);
        look_up(handle, name, library->complete_command);
        library->factory.lpVtbl = &factory_vtbl;
        library->handle = handle;
        library->next = g_libraries;
        if (!g_libraries) {
            pthread_atfork(lock, unlock, unlock);
            send_output_to_stderr();
        }
        g_libraries = library;
    }
    unlock();
    return library ? &library->factory : nullptr;
}
