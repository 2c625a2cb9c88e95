/* Client: the loops that a program in C would write over the vtable. */
#include "bench.h"

#include <pthread.h>
#include <stdlib.h>

EXPORT void *client_join(const char *provider, const char *name) {
    WCHAR wide[129];
    IClientVirtualDeviceSet2 *set =
        bench_class(provider, &CLSID_MSSQL_ClientVirtualDeviceSet, &IID_IClientVirtualDeviceSet2);
    if (set && (!bench_wide(wide, 129, name) || FAILED(set->lpVtbl->OpenInSecondaryEx(set, NULL, wide)))) {
        set->lpVtbl->Release(set);
        set = NULL;
    }
    return set;
}

EXPORT void *client_open(void *set_, const char *name) {
    IClientVirtualDeviceSet2 *set = set_;
    IClientVirtualDevice *device;
    WCHAR wide[129];
    return bench_wide(wide, 129, name) && SUCCEEDED(set->lpVtbl->OpenDevice(set, wide, &device)) ? device : NULL;
}

EXPORT void client_release(void *device_) {
    IClientVirtualDevice *device = device_;
    device->lpVtbl->Release(device);
}

EXPORT int client_leave(void *set_) {
    IClientVirtualDeviceSet2 *set = set_;
    HRESULT hr = set->lpVtbl->Close(set);
    set->lpVtbl->Release(set);
    return hr;
}

static uint64_t sink; /* keeps the compiler from dropping what was read */

static int serve(IClientVirtualDevice *d, uint32_t count, int read) {
    VDC_Command *c;
    HRESULT hr;
    while (count--) {
        if (FAILED(hr = d->lpVtbl->GetCommand(d, INFINITE, &c)))
            return hr;
        if (read)
            sink ^= bench_read_all(c->buffer, c->size);
        if (FAILED(hr = d->lpVtbl->CompleteCommand(d, c, ERROR_SUCCESS, c->size, 0)))
            return hr;
    }
    return 0;
}

/* Serves `count` commands; returns ns, or a negative HRESULT. */
EXPORT int64_t client_stream(void *device, uint32_t count, int read) {
    uint64_t start = bench_now();
    int hr = serve(device, count, read);
    return hr < 0 ? hr : (int64_t)(bench_now() - start);
}

/* The same with the ring known to be full: nothing but get and complete. */
EXPORT int64_t client_drain(void *device, uint32_t count) {
    IClientVirtualDevice *d = device;
    VDC_Command *c;
    uint64_t start = bench_now();
    for (uint32_t i = 0; i < count; i++) {
        HRESULT hr = d->lpVtbl->GetCommand(d, 0, &c);
        if (FAILED(hr) || FAILED(hr = d->lpVtbl->CompleteCommand(d, c, ERROR_SUCCESS, c->size, 0)))
            return hr;
    }
    return (int64_t)(bench_now() - start);
}

/* Takes each of `count` READ commands asleep, and answers when the server sleeps. The first words of the buffer: when it
 * was sent, when it was received, when it was completed. */
EXPORT int client_sleepy(void *device, uint32_t count, uint64_t pause) {
    IClientVirtualDevice *d = device;
    while (count--) {
        VDC_Command *c;
        HRESULT hr = d->lpVtbl->GetCommand(d, INFINITE, &c);
        if (FAILED(hr))
            return hr;
        uint64_t *stamp = (uint64_t *)c->buffer;
        stamp[1] = bench_now();
        bench_spin(pause);
        stamp[2] = bench_now();
        if (FAILED(hr = d->lpVtbl->CompleteCommand(d, c, ERROR_SUCCESS, c->size, 0)))
            return hr;
    }
    return 0;
}

/* One thread for each of several devices. */
struct worker {
    pthread_t thread;
    IClientVirtualDevice *device;
    uint32_t count;
    int read, hr;
};

static void *work(void *arg) {
    struct worker *w = arg;
    w->hr = serve(w->device, w->count, w->read);
    return NULL;
}

EXPORT int64_t client_stream_all(void **devices, uint32_t n, uint32_t count_each, int read) {
    struct worker *w = calloc(n, sizeof *w);
    int64_t result = 0;
    if (!w)
        return E_OUTOFMEMORY;
    uint64_t start = bench_now();
    for (uint32_t i = 0; i < n; i++) {
        w[i].device = devices[i];
        w[i].count = count_each;
        w[i].read = read;
        if (pthread_create(&w[i].thread, NULL, work, &w[i]))
            abort();
    }
    for (uint32_t i = 0; i < n; i++) {
        pthread_join(w[i].thread, NULL);
        if (w[i].hr < 0)
            result = w[i].hr;
    }
    free(w);
    return result ? result : (int64_t)(bench_now() - start);
}
