/* IClientVirtualDeviceSet2, and IVdiEmbeddedSet of the client half. */
#include "client.h"

#include <stdio.h>
#include <unistd.h>

struct client_set {
    IClientVirtualDeviceSet2 iface;
    IVdiEmbeddedSet extra;
    _Atomic ULONG refs;
    uint32_t generation; /* of fork */
    pthread_mutex_t lock;
    struct life *life; /* between CreateEx or OpenInSecondary and Close */
    bool with_group;
    gid_t group;
};

#define SET_OF(p) ((struct client_set *)(p))
#define SET_OF_EXTRA(p) ((struct client_set *)((char *)(p)-offsetof(struct client_set, extra)))

/* The life of an open set, with the gate entered; NULL: there is none. */
static struct life *enter(struct client_set *s) {
    pthread_mutex_lock(&s->lock);
    struct life *l = s->life;
    if (l && gate_enter(&l->gate))
        atomic_fetch_add(&l->refs, 1);
    else
        l = NULL;
    pthread_mutex_unlock(&s->lock);
    return l;
}

static void leave(struct life *l) {
    gate_leave(&l->gate);
    life_release(l);
}

/* ---- creating and joining */

static HRESULT begin(struct client_set *s, enum role role, LPCWSTR instance, LPCWSTR name, const VDConfig *cfg) {
    if (INERT(s))
        return VD_E_NOTOPEN;
    pthread_mutex_lock(&s->lock);
    HRESULT hr = VD_E_PROTOCOL;
    if (!s->life)
        hr = life_begin(&s->life, role, instance, name, cfg, s->with_group ? &s->group : NULL);
    pthread_mutex_unlock(&s->lock);
    return hr;
}

static HRESULT STDMETHODCALLTYPE CreateEx(IClientVirtualDeviceSet2 *This, LPCWSTR instance, LPCWSTR name,
                                          VDConfig *cfg) {
    return cfg ? begin(SET_OF(This), ROLE_PRIMARY, instance, name, cfg) : VD_E_INVALID;
}

static HRESULT STDMETHODCALLTYPE Create(IClientVirtualDeviceSet2 *This, LPCWSTR name, VDConfig *cfg) {
    const char *variable = getenv("_VIRTUAL_SERVER_NAME_");
    WCHAR instance[NAME_UNITS + 1] = {0};
    for (unsigned i = 0; variable && variable[i]; i++) {
        if (i == NAME_UNITS || (unsigned char)variable[i] > 127)
            return VD_E_INSTANCE_NAME;
        instance[i] = (WCHAR)variable[i];
    }
    return CreateEx(This, instance, name, cfg);
}

static HRESULT STDMETHODCALLTYPE OpenInSecondaryEx(IClientVirtualDeviceSet2 *This, LPCWSTR instance, LPCWSTR name) {
    return begin(SET_OF(This), ROLE_SECONDARY, instance, name, NULL);
}

static HRESULT STDMETHODCALLTYPE OpenInSecondary(IClientVirtualDeviceSet2 *This, LPCWSTR name) {
    return OpenInSecondaryEx(This, NULL, name);
}

/* ---- the rest of the set */

static bool configured_or_over(void *arg) {
    struct life *l = arg;
    return atomic_load_explicit(&l->ctl->configured, memory_order_acquire) || aborted(&l->latch) ||
           !atomic_load_explicit(&l->gate.open, memory_order_acquire);
}

static HRESULT STDMETHODCALLTYPE GetConfiguration(IClientVirtualDeviceSet2 *This, DWORD timeout, VDConfig *cfg) {
    struct client_set *s = SET_OF(This);
    if (!cfg)
        return VD_E_INVALID;
    if (INERT(s))
        return VD_E_NOTOPEN;
    struct life *l = enter(s);
    if (!l)
        return VD_E_PROTOCOL;
    HRESULT hr = NOERROR;
    if (atomic_load(&l->state) == VDI_STATE_CONFIGURABLE && !configured_or_over(l) &&
        !wait_until(&l->ctl->configured_sleeps, configured_or_over, l, deadline_after(timeout)))
        hr = VD_E_TIMEOUT;
    else if (aborted(&l->latch))
        hr = VD_E_ABORT;
    else if (!atomic_load(&l->gate.open))
        hr = VD_E_PROTOCOL;
    else {
        pthread_mutex_lock(&l->lock);
        if (atomic_load(&l->state) == VDI_STATE_CONFIGURABLE) {
            COPY_OUT(l->decided, l->ctl->decided);
            if (config_check_decision(&l->requested, &l->decided))
                atomic_store(&l->state, VDI_STATE_INITIALIZING);
            else
                hr = VD_E_ABORT;
        }
        if (hr == NOERROR)
            *cfg = l->decided;
        pthread_mutex_unlock(&l->lock);
        if (hr == VD_E_ABORT)
            abort_post(&l->latch, VDI_ABORT_CORRUPT, (DWORD)getpid(), "The server's configuration is not valid.");
    }
    leave(l);
    return hr;
}

static HRESULT STDMETHODCALLTYPE OpenDevice(IClientVirtualDeviceSet2 *This, LPCWSTR name, IClientVirtualDevice **out) {
    struct client_set *s = SET_OF(This);
    WCHAR copy[NAME_UNITS + 1];
    if (!out)
        return VD_E_INVALID;
    *out = NULL;
    HRESULT hr = name_copy(copy, name);
    if (hr != NOERROR)
        return hr;
    if (INERT(s))
        return VD_E_NOTOPEN;
    struct life *l = enter(s);
    if (!l)
        return VD_E_PROTOCOL;
    uint32_t state = life_state(l);
    if (state == VDI_STATE_ABORT)
        hr = VD_E_ABORT;
    else if (state == VDI_STATE_CONFIGURABLE || state == VDI_STATE_NORMALLY_TERMINATED)
        hr = VD_E_PROTOCOL;
    else if (l->role == ROLE_PRIMARY)
        hr = life_claim(l, copy, NULL);
    else {
        struct message m = {.type = MSG_OPEN_DEVICE};
        memcpy(m.who.name, copy, sizeof copy);
        hr = follower_request(&l->follower, &m, NULL);
    }
    if (hr == NOERROR) {
        pthread_mutex_lock(&l->lock);
        struct client_device *d = l->device_count < MAX_OPENED ? device_create(l, copy) : NULL;
        if (d) {
            l->devices[l->device_count++] = d;
            atomic_store(&l->state, VDI_STATE_ACTIVE);
            *out = &d->iface;
        }
        pthread_mutex_unlock(&l->lock);
        if (!d) {
            hr = VD_E_MEMORY;
            abort_post(&l->latch, VDI_ABORT_CLOSED, (DWORD)getpid(), "A client ran out of memory opening a device.");
        }
    }
    leave(l);
    return hr;
}

static HRESULT STDMETHODCALLTYPE Close(IClientVirtualDeviceSet2 *This) {
    struct client_set *s = SET_OF(This);
    if (INERT(s))
        return VD_E_NOTOPEN;
    pthread_mutex_lock(&s->lock);
    struct life *l = s->life;
    s->life = NULL;
    pthread_mutex_unlock(&s->lock);
    if (!l)
        return VD_E_PROTOCOL;
    HRESULT hr = life_close(l);
    life_release(l);
    return hr;
}

static HRESULT signal_abort(struct client_set *s, const char *given) {
    if (INERT(s))
        return VD_E_NOTOPEN;
    struct life *l = enter(s);
    if (!l)
        return VD_E_PROTOCOL;
    char reason[256];
    snprintf(reason, sizeof reason, "The client, process %d, called SignalAbort.", (int)getpid());
    abort_post(&l->latch, VDI_ABORT_SIGNALLED, (DWORD)getpid(), given ? given : reason);
    leave(l);
    return NOERROR;
}

static HRESULT STDMETHODCALLTYPE SignalAbort(IClientVirtualDeviceSet2 *This) {
    return signal_abort(SET_OF(This), NULL);
}

/* ---- buffer handles */

/* Enters a set that can have buffers; *hr says why not. */
static struct life *enter_for_buffers(struct client_set *s, HRESULT *hr) {
    if (INERT(s)) {
        *hr = VD_E_NOTOPEN;
        return NULL;
    }
    struct life *l = enter(s);
    *hr = VD_E_PROTOCOL;
    if (!l)
        return NULL;
    uint32_t state = life_state(l);
    if (state != VDI_STATE_ABORT && state != VDI_STATE_CONFIGURABLE)
        return l;
    if (state == VDI_STATE_ABORT)
        *hr = VD_E_ABORT;
    leave(l);
    return NULL;
}

static HRESULT describe(struct client_set *s, const BYTE *buffer, VdiBufferInfo *info) {
    HRESULT hr;
    struct life *l = enter_for_buffers(s, &hr);
    if (!l)
        return hr;
    hr = handle_describe(l, buffer, info) ? NOERROR : VD_E_INVALID;
    leave(l);
    return hr;
}

static HRESULT map(struct client_set *s, DWORD value, const VdiBufferInfo *given, BYTE **out, VdiBufferInfo *actual) {
    HRESULT hr;
    struct life *l = enter_for_buffers(s, &hr);
    if (!l)
        return hr;
    *out = handle_map(l, value, given, actual);
    hr = *out ? NOERROR : VD_E_INVALID;
    leave(l);
    return hr;
}

static HRESULT STDMETHODCALLTYPE GetBufferHandle(IClientVirtualDeviceSet2 *This, BYTE *buffer, DWORD *handle) {
    VdiBufferInfo info;
    if (!buffer || !handle)
        return VD_E_INVALID;
    HRESULT hr = describe(SET_OF(This), buffer, &info);
    if (hr == NOERROR)
        *handle = info.value;
    return hr;
}

static HRESULT STDMETHODCALLTYPE MapBufferHandle(IClientVirtualDeviceSet2 *This, DWORD handle, BYTE **out) {
    if (!out)
        return VD_E_INVALID;
    *out = NULL;
    return map(SET_OF(This), handle, NULL, out, NULL);
}

/* ---- IUnknown */

/* Old clients ask for the first interface and call slots of the second: one vtable answers for both. */
static const IID *const own_ids[] = {&IID_IUnknown, &IID_IClientVirtualDeviceSet, &IID_IClientVirtualDeviceSet2, NULL};
_Static_assert(offsetof(struct client_set, extra) == offsetof(struct two_faced, extra), "as set_query finds it");

static ULONG release(struct client_set *s) {
    ULONG left = atomic_fetch_sub(&s->refs, 1) - 1;
    if (left == 0 && !INERT(s)) { /* in a forked child the rest stays as it is */
        Close(&s->iface);
        atomic_fetch_sub(&live_objects, 1);
        pthread_mutex_destroy(&s->lock);
        free(s);
    }
    return left;
}

static HRESULT STDMETHODCALLTYPE QueryInterface(IClientVirtualDeviceSet2 *This, const IID *riid, void **out) {
    return set_query((struct two_faced *)This, own_ids, riid, out);
}
static ULONG STDMETHODCALLTYPE AddRef(IClientVirtualDeviceSet2 *This) {
    return atomic_fetch_add(&SET_OF(This)->refs, 1) + 1;
}
static ULONG STDMETHODCALLTYPE Release(IClientVirtualDeviceSet2 *This) { return release(SET_OF(This)); }

static const IClientVirtualDeviceSet2Vtbl client_set_vtbl = {
    QueryInterface, AddRef,      Release,         Create,          GetConfiguration, OpenDevice, Close,
    SignalAbort,    OpenInSecondary, GetBufferHandle, MapBufferHandle, CreateEx,         OpenInSecondaryEx};

/* ---- IVdiEmbeddedSet */

static HRESULT STDMETHODCALLTYPE GetState(IVdiEmbeddedSet *This, DWORD *state) {
    if (!state)
        return VD_E_INVALID;
    if (INERT(SET_OF_EXTRA(This)))
        return VD_E_NOTOPEN;
    struct life *l = enter(SET_OF_EXTRA(This));
    *state = l ? life_state(l) : VDI_STATE_DOES_NOT_EXIST;
    if (l)
        leave(l);
    return NOERROR;
}

static HRESULT STDMETHODCALLTYPE GetSetId(IVdiEmbeddedSet *This, BYTE *id) {
    if (!id)
        return VD_E_INVALID;
    if (INERT(SET_OF_EXTRA(This)))
        return VD_E_NOTOPEN;
    struct life *l = enter(SET_OF_EXTRA(This));
    if (!l)
        return VD_E_PROTOCOL;
    memcpy(id, l->set_id, sizeof l->set_id);
    leave(l);
    return NOERROR;
}

static HRESULT STDMETHODCALLTYPE SetAccessGroup(IVdiEmbeddedSet *This, DWORD group) {
    struct client_set *s = SET_OF_EXTRA(This);
    if (INERT(s))
        return VD_E_NOTOPEN;
    pthread_mutex_lock(&s->lock);
    HRESULT hr = s->life ? VD_E_PROTOCOL : NOERROR;
    if (hr == NOERROR) {
        s->with_group = true;
        s->group = (gid_t)group;
    }
    pthread_mutex_unlock(&s->lock);
    return hr;
}

static HRESULT STDMETHODCALLTYPE DescribeBuffer(IVdiEmbeddedSet *This, const BYTE *buffer, VdiBufferInfo *info) {
    return buffer && info ? describe(SET_OF_EXTRA(This), buffer, info) : VD_E_INVALID;
}

static HRESULT STDMETHODCALLTYPE MapBuffer(IVdiEmbeddedSet *This, const VdiBufferInfo *handle, BYTE **out,
                                           VdiBufferInfo *actual) {
    if (!handle || !out)
        return VD_E_INVALID;
    *out = NULL;
    return map(SET_OF_EXTRA(This), handle->value, handle, out, actual);
}

static HRESULT STDMETHODCALLTYPE CheckBuffer(IVdiEmbeddedSet *This, const VdiBufferInfo *handle) {
    HRESULT hr;
    if (!handle)
        return VD_E_INVALID;
    struct life *l = enter_for_buffers(SET_OF_EXTRA(This), &hr);
    if (!l)
        return hr;
    hr = handle_is_good(l, handle) ? NOERROR : VD_E_INVALID;
    leave(l);
    return hr;
}

static HRESULT STDMETHODCALLTYPE SignalAbortWithReason(IVdiEmbeddedSet *This, const char *reason) {
    return signal_abort(SET_OF_EXTRA(This), reason);
}

static HRESULT STDMETHODCALLTYPE GetAbortInfo(IVdiEmbeddedSet *This, VdiAbortInfo *info) {
    if (!info)
        return VD_E_INVALID;
    if (INERT(SET_OF_EXTRA(This)))
        return VD_E_NOTOPEN;
    struct life *l = enter(SET_OF_EXTRA(This));
    if (!l)
        return VD_E_PROTOCOL;
    abort_get(&l->latch, info);
    leave(l);
    return NOERROR;
}

static const IVdiEmbeddedSetVtbl client_extra_vtbl = {
    extra_query,    extra_add_ref, extra_release, GetState,              GetSetId,    SetAccessGroup,
    DescribeBuffer, MapBuffer,     CheckBuffer,   SignalAbortWithReason, GetAbortInfo};

HRESULT client_set_create(const IID *riid, void **ppv) {
    struct client_set *s = calloc(1, sizeof *s);
    if (!s)
        return E_OUTOFMEMORY;
    s->iface.lpVtbl = &client_set_vtbl;
    s->extra.lpVtbl = &client_extra_vtbl;
    s->refs = 1;
    s->generation = atomic_load(&fork_generation);
    pthread_mutex_init(&s->lock, NULL);
    atomic_fetch_add(&live_objects, 1);
    HRESULT hr = QueryInterface(&s->iface, riid, ppv);
    release(s);
    return hr;
}
