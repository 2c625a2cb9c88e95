/* One operation of a client set, from CreateEx or OpenInSecondary to Close: its memory, its names, its end. */
#include "client.h"

#include <stdio.h>
#include <sys/random.h>
#include <unistd.h>

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

HRESULT life_begin(struct life **out, enum role role, LPCWSTR instance, LPCWSTR name, const VDConfig *cfg,
                   const gid_t *group) {
    struct life *l = life_new(role);
    if (!l)
        return VD_E_MEMORY;
    if (group) {
        l->with_group = true;
        l->group = *group;
    }
    HRESULT hr = name_copy(l->who.name, name);
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
    if (hr != NOERROR) {
        life_unmap(l);
        life_release(l);
        return hr;
    }
    l->gate.open = true;
    *out = l;
    return NOERROR;
}

HRESULT life_close(struct life *l) {
    HRESULT hr = NOERROR;
    gate_shut(&l->gate);
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
