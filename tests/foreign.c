/* A library for tests that is not the embedded provider: no IVdiEmbeddedSet, one device, a few Write commands over one
 * buffer, and calls that wait as long as the test wants. It writes down which thread called what of the device. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vdi_provider.h"

enum method { CREATE, JOIN, OPEN, CLOSE, METHODS };
enum { COMMANDS = 3, SIZE = 4096, HANDLE = 7, LOG = 4096 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int blocked[METHODS], entered[METHODS], left[METHODS];
static int live, sent, completed, open_sets;
static unsigned long callers[LOG];
static int calls;

VDI_EXPORT BYTE foreign_buffer[SIZE];
VDI_EXPORT void foreign_block(int method, int on) {
    pthread_mutex_lock(&lock);
    blocked[method] = on;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}
#define GETTER(name, value)                                                                                            \
    VDI_EXPORT int name(int i) {                                                                                       \
        (void)i;                                                                                                       \
        pthread_mutex_lock(&lock);                                                                                     \
        int v = (value);                                                                                               \
        pthread_mutex_unlock(&lock);                                                                                   \
        return v;                                                                                                      \
    }
GETTER(foreign_entered, entered[i])
GETTER(foreign_left, left[i])
GETTER(foreign_live, live)
GETTER(foreign_open_sets, open_sets)
GETTER(foreign_completed, completed)
VDI_EXPORT int foreign_threads(void) { /* how many threads called the device */
    pthread_mutex_lock(&lock);
    int different = 0;
    for (int i = 0; i < calls && i < LOG; i++) {
        int j = 0;
        while (callers[j] != callers[i])
            j++;
        different += j == i;
    }
    pthread_mutex_unlock(&lock);
    return different;
}

static void wait_here(enum method method) { /* under lock */
    entered[method]++;
    while (blocked[method])
        pthread_cond_wait(&changed, &lock);
    left[method]++;
}

/* ---- one device */

struct object {
    const void *vtbl;
    int refs;
    int open;
};
static VDC_Command commands[COMMANDS];

static HRESULT query(void *This, const IID *riid, void **out) {
    if (memcmp(riid, &IID_IVdiEmbeddedSet, sizeof *riid) == 0) {
        *out = NULL;
        return E_NOINTERFACE;
    }
    ((struct object *)This)->refs++;
    *out = This;
    return S_OK;
}
static ULONG add_ref(void *This) { return (ULONG) ++((struct object *)This)->refs; }
static ULONG release(void *This) {
    struct object *o = This;
    int refs = --o->refs;
    if (refs == 0) {
        pthread_mutex_lock(&lock);
        live--;
        pthread_mutex_unlock(&lock);
        free(o);
    }
    return (ULONG)refs;
}
static struct object *new_object(const void *vtbl) {
    struct object *o = calloc(1, sizeof *o);
    if (o) {
        o->vtbl = vtbl;
        o->refs = 1;
        live++;
    }
    return o;
}

static void note_caller(void) {
    if (calls < LOG)
        callers[calls++] = (unsigned long)pthread_self();
}

static HRESULT get_command(IClientVirtualDevice *This, DWORD timeout, VDC_Command **out) {
    (void)This;
    HRESULT hr = VD_E_TIMEOUT;
    pthread_mutex_lock(&lock);
    note_caller();
    if (sent < COMMANDS) {
        VDC_Command *c = &commands[sent++];
        *c = (VDC_Command){.commandCode = VDC_Write, .size = SIZE, .buffer = foreign_buffer};
        *out = c;
        hr = NOERROR;
    } else if (completed == COMMANDS) {
        hr = VD_E_CLOSE;
    }
    pthread_mutex_unlock(&lock);
    if (hr == VD_E_TIMEOUT && timeout)
        usleep(1000 * timeout);
    return hr;
}
static HRESULT complete(IClientVirtualDevice *This, VDC_Command *c, DWORD code, DWORD bytes, DWORDLONG position) {
    (void)This, (void)code, (void)position;
    HRESULT hr = VD_E_INVALID;
    pthread_mutex_lock(&lock);
    note_caller();
    if (c >= commands && c < commands + COMMANDS && c->buffer && bytes <= SIZE) {
        c->buffer = NULL;
        completed++;
        hr = NOERROR;
    }
    pthread_mutex_unlock(&lock);
    return hr;
}

/* ---- the set */

static HRESULT start(void *This, enum method method) {
    pthread_mutex_lock(&lock);
    wait_here(method);
    ((struct object *)This)->open = 1;
    open_sets++;
    sent = completed = calls = 0;
    pthread_mutex_unlock(&lock);
    return NOERROR;
}
static HRESULT create_ex(IClientVirtualDeviceSet2 *This, LPCWSTR instance, LPCWSTR name, VDConfig *config) {
    (void)instance, (void)name, (void)config;
    return start(This, CREATE);
}
static HRESULT join(IClientVirtualDeviceSet2 *This, LPCWSTR instance, LPCWSTR name) {
    (void)instance, (void)name;
    return start(This, JOIN);
}
static HRESULT old_create(IClientVirtualDeviceSet2 *This, LPCWSTR name, VDConfig *config) {
    return create_ex(This, NULL, name, config);
}
static HRESULT old_join(IClientVirtualDeviceSet2 *This, LPCWSTR name) { return join(This, NULL, name); }
static HRESULT get_configuration(IClientVirtualDeviceSet2 *This, DWORD timeout, VDConfig *config) {
    (void)This, (void)timeout;
    *config = (VDConfig){.deviceCount = 1, .features = VDF_WriteMedia, .blockSize = 512, .maxTransferSize = 65536};
    return NOERROR;
}
static HRESULT open_device(IClientVirtualDeviceSet2 *This, LPCWSTR name, IClientVirtualDevice **out) {
    (void)This, (void)name;
    static IClientVirtualDeviceVtbl vtbl;
    pthread_mutex_lock(&lock);
    vtbl.QueryInterface = (HRESULT(*)(IClientVirtualDevice *, const IID *, void **))query;
    vtbl.AddRef = (ULONG(*)(IClientVirtualDevice *))add_ref;
    vtbl.Release = (ULONG(*)(IClientVirtualDevice *))release;
    vtbl.GetCommand = get_command;
    vtbl.CompleteCommand = complete;
    wait_here(OPEN);
    *out = (IClientVirtualDevice *)new_object(&vtbl);
    pthread_mutex_unlock(&lock);
    return *out ? NOERROR : VD_E_MEMORY;
}
static HRESULT close_set(IClientVirtualDeviceSet2 *This) {
    struct object *o = (struct object *)This;
    pthread_mutex_lock(&lock);
    wait_here(CLOSE);
    HRESULT hr = o->open ? NOERROR : VD_E_PROTOCOL;
    open_sets -= o->open;
    o->open = 0;
    pthread_mutex_unlock(&lock);
    return hr;
}
static HRESULT signal_abort(IClientVirtualDeviceSet2 *This) {
    (void)This;
    return NOERROR;
}
static HRESULT get_handle(IClientVirtualDeviceSet2 *This, BYTE *buffer, DWORD *handle) {
    (void)This;
    *handle = HANDLE;
    return buffer == foreign_buffer ? NOERROR : VD_E_INVALID;
}
static HRESULT map_handle(IClientVirtualDeviceSet2 *This, DWORD handle, BYTE **buffer) {
    (void)This;
    *buffer = foreign_buffer;
    return handle == HANDLE ? NOERROR : VD_E_INVALID;
}
static const IClientVirtualDeviceSet2Vtbl set_vtbl = {
    .QueryInterface = (HRESULT(*)(IClientVirtualDeviceSet2 *, const IID *, void **))query,
    .AddRef = (ULONG(*)(IClientVirtualDeviceSet2 *))add_ref,
    .Release = (ULONG(*)(IClientVirtualDeviceSet2 *))release,
    .Create = old_create,
    .GetConfiguration = get_configuration,
    .OpenDevice = open_device,
    .Close = close_set,
    .SignalAbort = signal_abort,
    .OpenInSecondary = old_join,
    .GetBufferHandle = get_handle,
    .MapBufferHandle = map_handle,
    .CreateEx = create_ex,
    .OpenInSecondaryEx = join,
};

/* ---- the factory */

static HRESULT factory_query(IClassFactory *This, const IID *riid, void **out) {
    (void)riid;
    *out = This;
    return S_OK;
}
static ULONG factory_ref(IClassFactory *This) {
    (void)This;
    return 1;
}
static HRESULT create_instance(IClassFactory *This, IUnknown *outer, const IID *riid, void **out) {
    (void)This, (void)outer, (void)riid;
    pthread_mutex_lock(&lock);
    *out = new_object(&set_vtbl);
    pthread_mutex_unlock(&lock);
    return *out ? S_OK : E_OUTOFMEMORY;
}
static HRESULT lock_server(IClassFactory *This, int on) {
    (void)This, (void)on;
    return S_OK;
}
HRESULT DllGetClassObject(const CLSID *clsid, const IID *riid, void **out) {
    static const IClassFactoryVtbl vtbl = {factory_query, factory_ref, factory_ref, create_instance, lock_server};
    static const IClassFactory factory = {&vtbl};
    (void)clsid, (void)riid;
    *out = (void *)&factory;
    return S_OK;
}
