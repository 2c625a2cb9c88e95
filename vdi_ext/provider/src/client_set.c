/* IClientVirtualDeviceSet2, and IVdiEmbeddedSet of the client half. */
#include "client.h"

#include <stdio.h>
#include <sys/random.h>
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
#define INERT(o) ((o)->generation != atomic_load_explicit(&fork_generation, memory_order_relaxed))

/* ---- life */

static struct life *life_new(enum role role) {
    struct life *l = calloc(1, sizeof *l);
    if (!l)
        return NULL;
    l->refs = 1;
    l->role = role;
    l->ctl_fd = l->stop_fd = l->listeners[0] = l->listeners[1] = -1;
    for (unsigned i = 0; i < MAX_SEGMENTS; i++)
        l->segment_fds[i] = -1;
    pthread_mutex_init(&l->lock, NULL);
    gate_init(&l->gate);
    return l;
}

void life_release(struct life *l) {
    if (atomic_fetch_sub(&l->refs, 1) != 1)
        return;
    for (unsigned i = 0; i < l->device_count; i++)
        device_free(l->devices[i]);
    pthread_mutex_destroy(&l->lock);
    free(l);
}

static void life_unmap(struct life *l) {
    segments_unmap(&l->segments);
    memory_unmap(l->ctl_map);
    descriptor_close(l->ctl_fd);
    for (uint32_t i = 0; i < MAX_SEGMENTS; i++)
        descriptor_close(l->segment_fds[i]);
    l->ctl = NULL;
}

bool life_all_closed(struct life *l) { return all_devices_ended(l->ctl, l->requested.deviceCount); }

uint32_t life_state(struct life *l) {
    if (aborted(&l->latch))
        return VDI_STATE_ABORT;
    uint32_t state = atomic_load(&l->state);
    return state >= VDI_STATE_INITIALIZING && life_all_closed(l) ? VDI_STATE_NORMALLY_TERMINATED : state;
}

/* The server's device of that name; *all_opened: it has opened every device, so no other name will come. */
struct dev_shared *life_find_device(struct life *l, const WCHAR *name, bool *all_opened) {
    struct dev_shared *found = NULL;
    bool all = true;
    for (DWORD i = 0; i < l->requested.deviceCount; i++) {
        struct dev_shared *d = &l->ctl->devices[i];
        if (!atomic_load_explicit(&d->opened, memory_order_acquire))
            all = false;
        else if (!found && name_equal(d->name, name))
            found = d;
    }
    *all_opened = all;
    return found;
}

HRESULT life_claim(struct life *l, const WCHAR *name, struct connection *holder) {
    HRESULT hr = NOERROR;
    bool all_opened;
    pthread_mutex_lock(&l->lock);
    bool known = life_find_device(l, name, &all_opened) != NULL;
    if (all_opened) /* names taken on trust that turned out to be wrong stand in nobody's way */
        for (unsigned i = 0; i < l->claim_count;) {
            bool unused;
            if (life_find_device(l, l->claims[i].name, &unused))
                i++;
            else
                l->claims[i] = l->claims[--l->claim_count];
        }
    bool open = false;
    for (unsigned i = 0; i < l->claim_count; i++)
        open |= name_equal(l->claims[i].name, name);
    if (aborted(&l->latch))
        hr = VD_E_ABORT;
    else if (open || life_all_closed(l))
        hr = VD_E_PROTOCOL;
    else if (l->claim_count == l->requested.deviceCount)
        hr = VD_E_OPEN;
    else if (all_opened && !known)
        hr = VD_E_INVALID;
    if (hr == NOERROR) {
        struct claim *c = &l->claims[l->claim_count++];
        memcpy(c->name, name, sizeof c->name);
        c->holder = holder;
    }
    pthread_mutex_unlock(&l->lock);
    return hr;
}

/* The holder is gone; what it opened counts as the primary's from now on. */
void life_disown(struct life *l, struct connection *holder) {
    pthread_mutex_lock(&l->lock);
    for (unsigned i = 0; i < l->claim_count; i++)
        if (l->claims[i].holder == holder)
            l->claims[i].holder = NULL;
    pthread_mutex_unlock(&l->lock);
}

/* Are there opened devices that have not reported VD_E_CLOSE? */
bool life_claims_unfinished(struct life *l, struct connection *holder, bool of_holder_only) {
    bool unfinished = false;
    pthread_mutex_lock(&l->lock);
    for (unsigned i = 0; i < l->claim_count; i++) {
        bool unused;
        struct dev_shared *d = life_find_device(l, l->claims[i].name, &unused);
        if ((!of_holder_only || l->claims[i].holder == holder) && !(d && atomic_load(&d->client_closed)))
            unfinished = true;
    }
    pthread_mutex_unlock(&l->lock);
    return unfinished;
}

bool life_await_segment(struct life *l, uint32_t segment) {
    if (segment >= MAX_SEGMENTS)
        return false;
    return atomic_load(&l->segments.count) > segment ||
           (l->role == ROLE_SECONDARY && follower_await_segment(&l->follower, segment));
}

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

static HRESULT create(struct life *l) {
    int fd = memory_create("vdi_ext control", sizeof(struct ctl));
    if (fd < 0 || !descriptor_track(fd))
        return VD_E_MEMORY;
    l->ctl_fd = fd;
    l->ctl_map = memory_map(fd, sizeof(struct ctl), false);
    if (!l->ctl_map || getrandom(l->set_id, sizeof l->set_id, 0) != sizeof l->set_id)
        return VD_E_MEMORY;
    l->ctl = (struct ctl *)l->ctl_map->base;
    l->latch.ctl = l->ctl;
    l->ctl->magic = CTL_MAGIC;
    l->ctl->version = CTL_VERSION;
    l->ctl->requested = l->requested;
    memcpy(l->ctl->set_id, l->set_id, sizeof l->set_id);
    atomic_store(&l->state, VDI_STATE_CONFIGURABLE);
    return hub_start(l);
}

static HRESULT join(struct life *l) {
    struct peer primary;
    struct message m;
    int fds[MESSAGE_FDS];
    HRESULT hr = link_connect(&l->who, ROLE_SECONDARY, &primary, &m, fds);
    if (hr == S_FALSE || hr == VD_E_INVALID)
        return VD_E_PROTOCOL; /* not created */
    if (hr != NOERROR)
        return hr;
    hr = VD_E_UNEXPECTED;
    if (m.count && m.sizes[0] == sizeof(struct ctl))
        l->ctl_map = memory_map(fds[0], sizeof(struct ctl), false);
    bool good = l->ctl_map != NULL;
    for (uint32_t i = 0; good && i + 1 < m.count; i++) {
        good = m.sizes[i + 1] <= MAX_AREA && (l->segments.map[i] = memory_map(fds[i + 1], m.sizes[i + 1], true));
        l->segments.count += good;
    }
    close_all(fds, m.count);
    if (good) {
        l->ctl = (struct ctl *)l->ctl_map->base;
        l->latch.ctl = l->ctl;
        COPY_OUT(l->requested, l->ctl->requested);
        COPY_OUT(l->decided, l->ctl->decided);
        memcpy(l->set_id, l->ctl->set_id, sizeof l->set_id);
        atomic_store(&l->state, VDI_STATE_INITIALIZING);
        if (l->ctl->magic == CTL_MAGIC && config_check_request(&l->requested) == NOERROR &&
            atomic_load(&l->ctl->configured) && config_check_decision(&l->requested, &l->decided))
            hr = follower_start(&l->follower, &primary, &l->latch, &l->segments,
                                l->requested.deviceCount);
    }
    if (hr != NOERROR)
        peer_close(&primary);
    return hr;
}

static HRESULT begin(struct client_set *s, enum role role, LPCWSTR instance, LPCWSTR name, const VDConfig *cfg) {
    if (INERT(s))
        return VD_E_NOTOPEN;
    pthread_mutex_lock(&s->lock);
    HRESULT hr = VD_E_PROTOCOL;
    struct life *l = s->life ? NULL : life_new(role);
    if (l) {
        l->with_group = s->with_group;
        l->group = s->group;
        hr = name_copy(l->who.name, name);
        if (hr == NOERROR)
            hr = instance_copy(l->who.instance, instance);
        if (hr == NOERROR && role == ROLE_PRIMARY) {
            l->requested = *cfg;
            l->requested.features &= ~VDF_LatchStats;
            l->requested.blockSize = l->requested.maxIODepth = 0;
            l->requested.maxTransferSize = l->requested.bufferAreaSize = 0;
            hr = config_check_request(&l->requested);
        }
        if (hr == NOERROR)
            hr = role == ROLE_PRIMARY ? create(l) : join(l);
        if (hr == NOERROR) {
            l->gate.open = true;
            s->life = l;
        } else {
            life_unmap(l);
            life_release(l);
        }
    } else if (!s->life) {
        hr = VD_E_MEMORY;
    }
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

static HRESULT close_life(struct life *l) {
    HRESULT hr = NOERROR;
    wake_everybody(l->ctl);
    gate_wait_empty(&l->gate);
    bool unfinished = false;
    for (unsigned i = 0; i < l->device_count; i++) {
        device_kill(l->devices[i]);
        unfinished |= l->role == ROLE_SECONDARY && !l->devices[i]->closed;
    }
    if (!aborted(&l->latch) && !life_all_closed(l)) {
        unfinished |= l->role == ROLE_PRIMARY && life_claims_unfinished(l, NULL, false);
        if (unfinished)
            hr = VD_E_OPEN;
        if (unfinished || l->role == ROLE_PRIMARY) {
            char reason[128];
            snprintf(reason, sizeof reason, "The client, process %d, closed before the end.", (int)getpid());
            abort_post(&l->latch, VDI_ABORT_CLOSED, (DWORD)getpid(), reason);
        }
    }
    if (l->role == ROLE_PRIMARY)
        hub_stop(l);
    else
        follower_stop(&l->follower);
    life_unmap(l);
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
    gate_shut(&l->gate);
    HRESULT hr = close_life(l);
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

static struct client_command *find_buffer(struct life *l, const BYTE *buffer, VdiBufferInfo *info) {
    struct client_command *found = NULL;
    pthread_mutex_lock(&l->lock);
    for (unsigned i = 0; i < l->device_count && !found; i++) {
        struct client_device *d = l->devices[i];
        pthread_mutex_lock(&d->lock);
        found = device_find_buffer(d, buffer);
        if (found) {
            device_publish_buffer(d, found);
            memset(info, 0, sizeof *info);
            info->value = handle_value(l->set_id, found->buffer, found->lending);
            info->size = found->command.size;
            info->readOnly = found->command.commandCode == VDC_Write;
            info->generation = found->lending;
            memcpy(info->setId, l->set_id, sizeof info->setId);
        }
        pthread_mutex_unlock(&d->lock);
    }
    pthread_mutex_unlock(&l->lock);
    return found;
}

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
    hr = find_buffer(l, buffer, info) ? NOERROR : VD_E_INVALID;
    leave(l);
    return hr;
}

/* What a handle's number means now. False: nothing, or not any more. */
static bool look_up(struct life *l, DWORD value, VdiBufferInfo *info, uint32_t *segment, uint64_t *offset) {
    uint32_t index = (value & 0xFFF) - 1;
    if (index >= MAX_BUFFERS)
        return false;
    struct buf_entry *b = &l->ctl->buffers[index];
    uint64_t lending = atomic_load_explicit(&b->lending, memory_order_acquire);
    memset(info, 0, sizeof *info);
    info->value = handle_value(l->set_id, index, lending);
    info->size = atomic_load_explicit(&b->size, memory_order_relaxed);
    info->readOnly = atomic_load_explicit(&b->read_only, memory_order_relaxed) != 0;
    info->generation = lending;
    memcpy(info->setId, l->set_id, sizeof info->setId);
    *segment = atomic_load_explicit(&b->segment, memory_order_relaxed);
    *offset = atomic_load_explicit(&b->offset, memory_order_relaxed);
    atomic_thread_fence(memory_order_acquire);
    return (lending & 1) && info->value == value &&
           atomic_load_explicit(&b->lending, memory_order_relaxed) == lending;
}

static HRESULT map(struct client_set *s, DWORD value, const VdiBufferInfo *given, BYTE **out, VdiBufferInfo *actual) {
    HRESULT hr;
    VdiBufferInfo info;
    uint32_t segment;
    uint64_t offset;
    struct life *l = enter_for_buffers(s, &hr);
    if (!l)
        return hr;
    hr = VD_E_INVALID;
    if (look_up(l, value, &info, &segment, &offset) &&
        (!given || (given->generation == info.generation && !memcmp(given->setId, l->set_id, sizeof info.setId))) &&
        life_await_segment(l, segment)) {
        BYTE *p = segments_address(&l->segments, segment, offset, l->requested.prefixZoneSize, info.size);
        if (p) {
            UNPOISON(p, info.size);
            *out = p;
            if (actual)
                *actual = info;
            hr = NOERROR;
        }
    }
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

static HRESULT query(struct client_set *s, const IID *riid, void **out) {
    if (!riid || !out)
        return E_POINTER;
    /* Old clients ask for the first interface and call slots of the second: one vtable answers for both. */
    if (guid_equal(riid, &IID_IUnknown) || guid_equal(riid, &IID_IClientVirtualDeviceSet) ||
        guid_equal(riid, &IID_IClientVirtualDeviceSet2))
        *out = &s->iface;
    else if (guid_equal(riid, &IID_IVdiEmbeddedSet))
        *out = &s->extra;
    else {
        *out = NULL;
        return E_NOINTERFACE;
    }
    atomic_fetch_add(&s->refs, 1);
    return S_OK;
}

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
    return query(SET_OF(This), riid, out);
}
static ULONG STDMETHODCALLTYPE AddRef(IClientVirtualDeviceSet2 *This) {
    return atomic_fetch_add(&SET_OF(This)->refs, 1) + 1;
}
static ULONG STDMETHODCALLTYPE Release(IClientVirtualDeviceSet2 *This) { return release(SET_OF(This)); }

static const IClientVirtualDeviceSet2Vtbl client_set_vtbl = {
    QueryInterface, AddRef,      Release,         Create,          GetConfiguration, OpenDevice, Close,
    SignalAbort,    OpenInSecondary, GetBufferHandle, MapBufferHandle, CreateEx,         OpenInSecondaryEx};

/* ---- IVdiEmbeddedSet */

static HRESULT STDMETHODCALLTYPE ExtraQueryInterface(IVdiEmbeddedSet *This, const IID *riid, void **out) {
    return query(SET_OF_EXTRA(This), riid, out);
}
static ULONG STDMETHODCALLTYPE ExtraAddRef(IVdiEmbeddedSet *This) {
    return atomic_fetch_add(&SET_OF_EXTRA(This)->refs, 1) + 1;
}
static ULONG STDMETHODCALLTYPE ExtraRelease(IVdiEmbeddedSet *This) { return release(SET_OF_EXTRA(This)); }

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
    VdiBufferInfo info;
    uint32_t segment;
    uint64_t offset;
    HRESULT hr;
    if (!handle)
        return VD_E_INVALID;
    struct life *l = enter_for_buffers(SET_OF_EXTRA(This), &hr);
    if (!l)
        return hr;
    bool good = look_up(l, handle->value, &info, &segment, &offset) && info.generation == handle->generation &&
                !memcmp(handle->setId, l->set_id, sizeof info.setId);
    leave(l);
    return good ? NOERROR : VD_E_INVALID;
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
    ExtraQueryInterface, ExtraAddRef, ExtraRelease, GetState,              GetSetId,    SetAccessGroup,
    DescribeBuffer,      MapBuffer,   CheckBuffer,  SignalAbortWithReason, GetAbortInfo};

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
    HRESULT hr = query(s, riid, ppv);
    release(s);
    return hr;
}
