/* IServerVirtualDeviceSet2, and IVdiEmbeddedSet of the server half. */
#include "server.h"

#include <stdio.h>
#include <unistd.h>

#define SET_OF(p) ((struct server_set *)(p))
#define SET_OF_EXTRA(p) ((struct server_set *)((char *)(p)-offsetof(struct server_set, extra)))
#define STATE(s) (1u << (s)) /* for sets of states */

uint32_t server_state(struct server_set *s) {
    uint32_t state = atomic_load(&s->state);
    if (state == VDI_STATE_DOES_NOT_EXIST)
        return state;
    if (aborted(&s->latch))
        return VDI_STATE_ABORT;
    return state == VDI_STATE_ACTIVE && atomic_load(&s->closed) == s->requested.deviceCount
               ? VDI_STATE_NORMALLY_TERMINATED
               : state;
}

/* Enters an open set in one of the given states. Otherwise *hr says why not: abort outranks the order of calls. */
static bool enter(struct server_set *s, uint32_t states, HRESULT *hr) {
    *hr = VD_E_NOTOPEN;
    if (INERT(s))
        return false;
    *hr = VD_E_PROTOCOL;
    if (!gate_enter(&s->gate))
        return false;
    uint32_t state = server_state(s);
    if (states & STATE(state)) {
        *hr = NOERROR;
        return true;
    }
    if (state == VDI_STATE_ABORT)
        *hr = VD_E_ABORT;
    gate_leave(&s->gate);
    return false;
}

static void leave(struct server_set *s) { gate_leave(&s->gate); }

/* ---- Open and Close */

static HRESULT join(struct server_set *s) {
    struct peer primary;
    struct message m;
    int fds[MESSAGE_FDS];
    HRESULT hr = link_connect(&s->who, ROLE_SERVER, &primary, &m, fds);
    if (hr != NOERROR)
        return hr == S_FALSE ? VD_E_INVALID : hr; /* no such set */
    hr = VD_E_UNEXPECTED;
    if (m.count == 1 && m.sizes[0] == sizeof(struct ctl))
        s->ctl_map = memory_map(fds[0], sizeof(struct ctl), false);
    close_all(fds, m.count);
    if (s->ctl_map) {
        s->ctl = (struct ctl *)s->ctl_map->base;
        s->latch.ctl = s->ctl;
        COPY_OUT(s->requested, s->ctl->requested);
        memcpy(s->set_id, s->ctl->set_id, sizeof s->set_id);
        if (s->ctl->magic == CTL_MAGIC && config_check_request(&s->requested) == NOERROR)
            hr = follower_start(&s->follower, &primary, &s->latch, &s->segments,
                                s->requested.deviceCount);
    }
    if (hr != NOERROR) {
        peer_close(&primary);
        memory_unmap(s->ctl_map);
        s->ctl_map = NULL;
    }
    return hr;
}

static HRESULT STDMETHODCALLTYPE Open(IServerVirtualDeviceSet2 *This, LPCWSTR instance, LPCWSTR name) {
    struct server_set *s = SET_OF(This);
    if (INERT(s))
        return VD_E_NOTOPEN;
    pthread_mutex_lock(&s->open_lock);
    HRESULT hr = s->used ? VD_E_PROTOCOL : NOERROR;
    if (hr == NOERROR)
        hr = name_copy(s->who.name, name);
    if (hr == NOERROR)
        hr = instance_copy(s->who.instance, instance);
    if (hr == NOERROR)
        hr = join(s);
    if (hr == NOERROR) {
        s->used = true;
        s->decided = s->requested;
        atomic_store(&s->state, VDI_STATE_CONNECTED);
        atomic_store(&s->gate.open, true);
    }
    pthread_mutex_unlock(&s->open_lock);
    return hr;
}

void server_release_mappings(struct server_set *s) {
    segments_unmap(&s->segments);
    memory_unmap(s->ctl_map);
    s->ctl_map = NULL;
    allocator_free(&s->space);
}

static HRESULT STDMETHODCALLTYPE Close(IServerVirtualDeviceSet2 *This) {
    struct server_set *s = SET_OF(This);
    if (INERT(s))
        return VD_E_NOTOPEN;
    if (!gate_shut(&s->gate))
        return VD_E_PROTOCOL;
    HRESULT hr = NOERROR;
    gate_wait_empty(&s->gate);
    bool ended = server_state(s) == VDI_STATE_NORMALLY_TERMINATED && atomic_load(&s->outstanding) == 0;
    if (!ended && !aborted(&s->latch)) {
        if (atomic_load(&s->opened) > atomic_load(&s->closed))
            hr = VD_E_PROTOCOL;
        char reason[128];
        snprintf(reason, sizeof reason, "The server, process %d, closed before the end.", (int)getpid());
        abort_post(&s->latch, VDI_ABORT_CLOSED, (DWORD)getpid(), reason);
    }
    uint32_t opened = atomic_load(&s->opened);
    for (uint32_t i = 0; i < opened; i++) {
        pthread_mutex_lock(&s->devices[i]->lock);
        s->devices[i]->dead = true;
        pthread_mutex_unlock(&s->devices[i]->lock);
    }
    wake(&s->ctl->agent_sleeps);
    server_hold(s);
    bool agent_gone = agent_wait(s);
    agent_drain(s); /* what no agent has called back, if ever there was one */
    follower_stop(&s->follower);
    atomic_store(&s->state, VDI_STATE_DOES_NOT_EXIST);
    if (agent_gone)
        server_release_mappings(s);
    server_drop(s);
    return hr;
}

static HRESULT signal_abort(struct server_set *s, const char *given) {
    HRESULT hr;
    if (!enter(s, ~0u, &hr))
        return hr;
    char reason[256];
    snprintf(reason, sizeof reason, "The server, process %d, called SignalAbort.", (int)getpid());
    abort_post(&s->latch, VDI_ABORT_SIGNALLED, (DWORD)getpid(), given ? given : reason);
    leave(s);
    return NOERROR;
}

static HRESULT STDMETHODCALLTYPE SignalAbort(IServerVirtualDeviceSet2 *This) {
    return signal_abort(SET_OF(This), NULL);
}

/* ---- configuration */

static HRESULT STDMETHODCALLTYPE GetConfiguration(IServerVirtualDeviceSet2 *This, VDConfig *cfg) {
    struct server_set *s = SET_OF(This);
    HRESULT hr;
    if (!cfg)
        return VD_E_INVALID;
    if (!enter(s, ~STATE(VDI_STATE_ABORT), &hr))
        return hr;
    pthread_mutex_lock(&s->lock);
    *cfg = s->decided;
    pthread_mutex_unlock(&s->lock);
    leave(s);
    return NOERROR;
}

static HRESULT STDMETHODCALLTYPE BeginConfiguration(IServerVirtualDeviceSet2 *This, DWORD features, DWORD block_size,
                                                    DWORD alignment, DWORD max_transfer_size, DWORD timeout) {
    struct server_set *s = SET_OF(This);
    HRESULT hr;
    (void)timeout;
    if (!enter(s, STATE(VDI_STATE_CONNECTED), &hr))
        return hr;
    pthread_mutex_lock(&s->lock);
    VDConfig c = s->requested;
    c.features |= features & ~VDF_LatchStats;
    c.blockSize = block_size;
    c.alignment = alignment ? alignment : max_u32(block_size, s->requested.alignment);
    c.maxIODepth = 4;
    c.maxTransferSize = max_transfer_size;
    bool grants_unasked = (features & VDF_CompleteEnabled) && !(s->requested.features & VDF_RequestComplete);
    if (atomic_load(&s->state) != VDI_STATE_CONNECTED)
        hr = VD_E_PROTOCOL;
    else if (grants_unasked || !config_check_decision(&s->requested, &c))
        hr = VD_E_INVALID;
    else {
        s->decided = c;
        allocator_init(&s->space, c.prefixZoneSize, c.alignment);
        atomic_store(&s->state, VDI_STATE_CONFIGURABLE);
    }
    pthread_mutex_unlock(&s->lock);
    leave(s);
    return hr;
}

static uint64_t area_limit(void) {
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    uint64_t half = pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page / 2 : MAX_AREA;
    return half < MAX_AREA ? half : MAX_AREA;
}

/* Obtains one more piece of shared memory, for buffers of all kinds or of one, and makes sure that the clients have it.
 * Under s->lock. */
static HRESULT add_segment(struct server_set *s, uint64_t length, DWORD buffer_size, DWORD alignment) {
    uint64_t size = round_up(length, 4096);
    uint32_t n = atomic_load(&s->segments.count);
    if (n == MAX_SEGMENTS || size > area_limit() || s->area + size > area_limit())
        return VD_E_MEMORY;
    int fd = memory_create("vdi_ext buffers", size);
    if (fd < 0 || !descriptor_track(fd))
        return VD_E_MEMORY;
    HRESULT hr = VD_E_MEMORY;
    struct mapping *map = memory_map(fd, size, true);
    if (map) {
        struct message m = {.type = MSG_SEGMENT, .index = n, .count = 1, .sizes = {size}};
        hr = follower_request(&s->follower, &m, &fd);
        if (hr == NOERROR) {
            pthread_mutex_lock(&s->space_lock);
            s->segments.map[n] = map;
            atomic_store_explicit(&s->segments.count, n + 1, memory_order_release);
            bool good = allocator_add(&s->space, n, length, buffer_size, alignment);
            pthread_mutex_unlock(&s->space_lock);
            s->area += size;
            hr = good ? NOERROR : VD_E_MEMORY;
        } else {
            memory_unmap(map);
        }
    }
    descriptor_close(fd);
    return hr;
}

static bool good_buffer_request(DWORD size, DWORD alignment) {
    return size && (alignment == 0 || (is_power_of_2(alignment) && alignment <= MAX_ALIGNMENT));
}

#define CONFIGURED (STATE(VDI_STATE_CONFIGURABLE) | STATE(VDI_STATE_INITIALIZING) | STATE(VDI_STATE_ACTIVE))
#define RUNNING (STATE(VDI_STATE_INITIALIZING) | STATE(VDI_STATE_ACTIVE))
#define ENDED (STATE(VDI_STATE_NORMALLY_TERMINATED) | STATE(VDI_STATE_ABORT))

static HRESULT STDMETHODCALLTYPE RequestBuffers(IServerVirtualDeviceSet2 *This, DWORD size, DWORD alignment,
                                                DWORD count) {
    struct server_set *s = SET_OF(This);
    HRESULT hr;
    if (!enter(s, CONFIGURED, &hr))
        return hr;
    pthread_mutex_lock(&s->lock);
    uint64_t bytes, sum, numbers;
    if (!count || !good_buffer_request(size, alignment)) {
        hr = VD_E_INVALID;
    } else {
        if (__builtin_mul_overflow(allocator_reserve(&s->space, size, alignment), (uint64_t)count, &bytes))
            bytes = UINT64_MAX;
        if (atomic_load(&s->state) != VDI_STATE_CONFIGURABLE) {
            hr = bytes > MAX_AREA || count > MAX_BUFFERS ? VD_E_MEMORY : add_segment(s, bytes, size, alignment);
        } else {
            if (__builtin_add_overflow(s->wanted, bytes, &sum))
                sum = UINT64_MAX;
            numbers = s->wanted_count + count;
            s->wanted = sum;
            s->wanted_count = numbers;
        }
    }
    pthread_mutex_unlock(&s->lock);
    leave(s);
    return hr;
}

static HRESULT STDMETHODCALLTYPE QueryAvailableBuffers(IServerVirtualDeviceSet2 *This, DWORD size, DWORD alignment,
                                                       DWORD *count) {
    struct server_set *s = SET_OF(This);
    HRESULT hr;
    if (!count)
        return VD_E_INVALID;
    if (!enter(s, CONFIGURED, &hr))
        return hr;
    if (good_buffer_request(size, alignment)) {
        pthread_mutex_lock(&s->space_lock);
        *count = (DWORD)allocator_count(&s->space, size, alignment);
        pthread_mutex_unlock(&s->space_lock);
    } else {
        hr = VD_E_INVALID;
    }
    leave(s);
    return hr;
}

static HRESULT STDMETHODCALLTYPE EndConfiguration(IServerVirtualDeviceSet2 *This) {
    struct server_set *s = SET_OF(This);
    HRESULT hr;
    if (!enter(s, STATE(VDI_STATE_CONFIGURABLE), &hr))
        return hr;
    pthread_mutex_lock(&s->lock);
    if (atomic_load(&s->state) != VDI_STATE_CONFIGURABLE)
        hr = VD_E_PROTOCOL;
    else if (s->wanted_count > MAX_BUFFERS || s->wanted > MAX_AREA)
        hr = VD_E_MEMORY;
    else if (s->wanted)
        hr = add_segment(s, s->wanted, 0, 0);
    s->wanted = s->wanted_count = 0;
    if (hr == NOERROR) {
        s->decided.bufferAreaSize = (DWORD)s->area;
        s->ctl->decided = s->decided;
        atomic_store(&s->state, VDI_STATE_INITIALIZING);
        atomic_store_explicit(&s->ctl->configured, 1, memory_order_release);
        wake(&s->ctl->configured_sleeps);
    }
    pthread_mutex_unlock(&s->lock);
    leave(s);
    return hr;
}

/* ---- devices and the agent */

static HRESULT STDMETHODCALLTYPE OpenDevice(IServerVirtualDeviceSet2 *This, LPCWSTR name, IServerVirtualDevice **out) {
    struct server_set *s = SET_OF(This);
    WCHAR copy[NAME_UNITS + 1];
    if (!out)
        return VD_E_INVALID;
    *out = NULL;
    HRESULT hr = name_copy(copy, name);
    if (hr != NOERROR)
        return hr;
    if (!enter(s, RUNNING, &hr))
        return hr;
    pthread_mutex_lock(&s->lock);
    uint32_t n = atomic_load(&s->opened);
    if (n == s->requested.deviceCount)
        hr = VD_E_OPEN;
    for (uint32_t i = 0; hr == NOERROR && i < n; i++)
        if (name_equal(s->ctl->devices[i].name, copy))
            hr = VD_E_INVALID;
    if (hr == NOERROR) {
        struct server_device *d = server_device_create(s, &s->ctl->devices[n]);
        if (d) {
            memcpy(d->shared->name, copy, sizeof copy);
            s->devices[n] = d;
            atomic_store_explicit(&s->opened, n + 1, memory_order_release);
            atomic_store(&s->state, VDI_STATE_ACTIVE);
            atomic_store_explicit(&d->shared->opened, 1, memory_order_release);
            wake(&s->ctl->opened_sleeps);
            *out = &d->iface;
        } else {
            hr = VD_E_MEMORY;
        }
    }
    pthread_mutex_unlock(&s->lock);
    leave(s);
    return hr;
}

static HRESULT STDMETHODCALLTYPE ExecuteCompletionAgent(IServerVirtualDeviceSet2 *This) {
    struct server_set *s = SET_OF(This);
    HRESULT hr;
    uint32_t states = RUNNING | STATE(VDI_STATE_ABORT);
    if (atomic_load(&s->outstanding)) /* an agent that comes after the last CloseDevice still has callbacks to make */
        states |= STATE(VDI_STATE_NORMALLY_TERMINATED);
    if (!enter(s, states, &hr))
        return hr;
    bool was_aborted = aborted(&s->latch);
    if (!agent_enter(s)) {
        leave(s);
        return was_aborted ? VD_E_ABORT : VD_E_BUSY;
    }
    server_hold(s);
    uint32_t initializing = VDI_STATE_INITIALIZING;
    atomic_compare_exchange_strong(&s->state, &initializing, VDI_STATE_ACTIVE);
    leave(s); /* Close waits for the agent by other means, since a completion routine may call it */
    hr = agent_run(s);
    if (agent_leave(s))
        server_release_mappings(s);
    server_drop(s);
    return hr;
}

/* ---- buffers */

static HRESULT STDMETHODCALLTYPE AllocateBuffer(IServerVirtualDeviceSet2 *This, BYTE **out, DWORD size,
                                                DWORD alignment) {
    struct server_set *s = SET_OF(This);
    HRESULT hr;
    if (!out)
        return VD_E_INVALID;
    *out = NULL;
    if (!enter(s, RUNNING, &hr))
        return hr;
    if (good_buffer_request(size, alignment)) {
        pthread_mutex_lock(&s->space_lock);
        uint32_t number = allocator_take(&s->space, &s->segments, size, alignment);
        if (number == NO_BUFFER)
            hr = VD_E_MEMORY;
        else
            *out = s->space.buffers[number].address;
        pthread_mutex_unlock(&s->space_lock);
    } else {
        hr = VD_E_INVALID;
    }
    leave(s);
    return hr;
}

static HRESULT STDMETHODCALLTYPE FreeBuffer(IServerVirtualDeviceSet2 *This, BYTE *address, DWORD size) {
    struct server_set *s = SET_OF(This);
    HRESULT hr;
    if (!enter(s, RUNNING | ENDED, &hr))
        return hr;
    pthread_mutex_lock(&s->space_lock);
    uint32_t number = allocator_find(&s->space, address);
    if (number == NO_BUFFER || s->space.buffers[number].size != size || s->space.buffers[number].lent) {
        hr = VD_E_INVALID;
    } else {
        allocator_give(&s->space, number);
        if (!aborted(&s->latch)) /* after an abort a client may still hold it */
            POISON(address, size);
    }
    pthread_mutex_unlock(&s->space_lock);
    leave(s);
    return hr;
}

static HRESULT STDMETHODCALLTYPE IsSharedBuffer(IServerVirtualDeviceSet2 *This, BYTE *address) {
    struct server_set *s = SET_OF(This);
    HRESULT hr;
    if (!enter(s, ~0u, &hr))
        return hr == VD_E_NOTOPEN ? hr : 0;
    pthread_mutex_lock(&s->space_lock);
    bool shared = allocator_contains(&s->space, address);
    pthread_mutex_unlock(&s->space_lock);
    leave(s);
    return shared ? 1 : 0;
}

/* ---- IUnknown */

void server_hold(struct server_set *s) { atomic_fetch_add(&s->holds, 1); }

void server_drop(struct server_set *s) {
    if (atomic_fetch_sub(&s->holds, 1) != 1)
        return;
    uint32_t opened = atomic_load(&s->opened);
    for (uint32_t i = 0; i < opened; i++)
        server_device_free(s->devices[i]);
    allocator_free(&s->space);
    free(s);
}

static const IID *const own_ids[] = {&IID_IUnknown, &IID_IServerVirtualDeviceSet2, NULL};
_Static_assert(offsetof(struct server_set, extra) == offsetof(struct two_faced, extra), "as set_query finds it");

static ULONG release(struct server_set *s) {
    ULONG left = atomic_fetch_sub(&s->refs, 1) - 1;
    if (left == 0 && !INERT(s)) { /* in a forked child the rest stays as it is */
        Close(&s->iface);
        atomic_fetch_sub(&live_objects, 1);
        server_drop(s);
    }
    return left;
}

static HRESULT STDMETHODCALLTYPE QueryInterface(IServerVirtualDeviceSet2 *This, const IID *riid, void **out) {
    return set_query((struct two_faced *)This, own_ids, riid, out);
}
static ULONG STDMETHODCALLTYPE AddRef(IServerVirtualDeviceSet2 *This) {
    return atomic_fetch_add(&SET_OF(This)->refs, 1) + 1;
}
static ULONG STDMETHODCALLTYPE Release(IServerVirtualDeviceSet2 *This) { return release(SET_OF(This)); }

static const IServerVirtualDeviceSet2Vtbl server_set_vtbl = {QueryInterface,        AddRef,
                                                             Release,               Open,
                                                             GetConfiguration,      BeginConfiguration,
                                                             EndConfiguration,      RequestBuffers,
                                                             QueryAvailableBuffers, ExecuteCompletionAgent,
                                                             OpenDevice,            AllocateBuffer,
                                                             FreeBuffer,            IsSharedBuffer,
                                                             SignalAbort,           Close};

/* ---- IVdiEmbeddedSet */

static HRESULT STDMETHODCALLTYPE GetState(IVdiEmbeddedSet *This, DWORD *state) {
    struct server_set *s = SET_OF_EXTRA(This);
    HRESULT hr;
    if (!state)
        return VD_E_INVALID;
    *state = VDI_STATE_DOES_NOT_EXIST;
    if (!enter(s, ~0u, &hr))
        return hr == VD_E_NOTOPEN ? hr : NOERROR;
    *state = server_state(s);
    leave(s);
    return NOERROR;
}

static HRESULT STDMETHODCALLTYPE GetSetId(IVdiEmbeddedSet *This, BYTE *id) {
    struct server_set *s = SET_OF_EXTRA(This);
    HRESULT hr;
    if (!id)
        return VD_E_INVALID;
    if (!enter(s, ~0u, &hr))
        return hr;
    memcpy(id, s->set_id, sizeof s->set_id);
    leave(s);
    return NOERROR;
}

/* Handles and access belong to the client half. */
static HRESULT STDMETHODCALLTYPE SetAccessGroup(IVdiEmbeddedSet *This, DWORD group) {
    (void)This, (void)group;
    return VD_E_NOTSUPPORTED;
}
static HRESULT STDMETHODCALLTYPE DescribeBuffer(IVdiEmbeddedSet *This, const BYTE *buffer, VdiBufferInfo *info) {
    (void)This, (void)buffer, (void)info;
    return VD_E_NOTSUPPORTED;
}
static HRESULT STDMETHODCALLTYPE MapBuffer(IVdiEmbeddedSet *This, const VdiBufferInfo *handle, BYTE **out,
                                           VdiBufferInfo *actual) {
    (void)This, (void)handle, (void)out, (void)actual;
    return VD_E_NOTSUPPORTED;
}
static HRESULT STDMETHODCALLTYPE CheckBuffer(IVdiEmbeddedSet *This, const VdiBufferInfo *handle) {
    (void)This, (void)handle;
    return VD_E_NOTSUPPORTED;
}

static HRESULT STDMETHODCALLTYPE SignalAbortWithReason(IVdiEmbeddedSet *This, const char *reason) {
    return signal_abort(SET_OF_EXTRA(This), reason);
}

static HRESULT STDMETHODCALLTYPE GetAbortInfo(IVdiEmbeddedSet *This, VdiAbortInfo *info) {
    struct server_set *s = SET_OF_EXTRA(This);
    HRESULT hr;
    if (!info)
        return VD_E_INVALID;
    if (!enter(s, ~0u, &hr))
        return hr;
    abort_get(&s->latch, info);
    leave(s);
    return NOERROR;
}

static const IVdiEmbeddedSetVtbl server_extra_vtbl = {
    extra_query,    extra_add_ref, extra_release, GetState,              GetSetId,    SetAccessGroup,
    DescribeBuffer, MapBuffer,     CheckBuffer,   SignalAbortWithReason, GetAbortInfo};

HRESULT server_set_create(const IID *riid, void **ppv) {
    struct server_set *s = calloc(1, sizeof *s);
    if (!s)
        return E_OUTOFMEMORY;
    s->iface.lpVtbl = &server_set_vtbl;
    s->extra.lpVtbl = &server_extra_vtbl;
    s->refs = 1;
    s->holds = 1;
    s->generation = atomic_load(&fork_generation);
    pthread_mutex_init(&s->open_lock, NULL);
    pthread_mutex_init(&s->lock, NULL);
    adaptive_mutex_init(&s->space_lock);
    pthread_mutex_init(&s->agent_lock, NULL);
    pthread_cond_init(&s->agent_left, NULL);
    gate_init(&s->gate);
    allocator_init(&s->space, 0, 512);
    atomic_fetch_add(&live_objects, 1);
    HRESULT hr = QueryInterface(&s->iface, riid, ppv);
    release(s);
    return hr;
}
