/* IServerVirtualDevice: puts commands into the ring and keeps account of what is out. */
#include "server.h"

#define DEVICE_OF(p) ((struct server_device *)(p))
#define SLOT_BITS 12 /* a ticket: slot number below, its generation above */

/* ---- slots, in order of sending */

static uint16_t slot_new(struct server_device *d) {
    if (d->free_slots == NO_SLOT) {
        if (d->slot_room == QUEUE_DEPTH)
            return NO_SLOT;
        uint32_t room = d->slot_room ? d->slot_room * 2 : 64;
        struct slot *more = realloc(d->slots, room * sizeof *more);
        if (!more)
            return NO_SLOT;
        memset(more + d->slot_room, 0, (room - d->slot_room) * sizeof *more);
        d->slots = more;
        for (uint32_t i = room; i-- > d->slot_room;) {
            d->slots[i].next = d->free_slots;
            d->free_slots = (uint16_t)i;
        }
        d->slot_room = room;
    }
    uint16_t n = d->free_slots;
    struct slot *s = &d->slots[n];
    d->free_slots = s->next;
    s->prev = d->last;
    s->next = NO_SLOT;
    if (d->last != NO_SLOT)
        d->slots[d->last].next = n;
    else
        d->first = n;
    d->last = n;
    return n;
}

/* Takes the command back from VDI: from here on it is the server's, as is its buffer. */
static VDS_Command *slot_end(struct server_device *d, uint16_t n) {
    struct slot *s = &d->slots[n];
    struct server_set *set = d->set;
    VDS_Command *c = s->command;
    if (s->buffer != NO_BUFFER) {
        pthread_mutex_lock(&set->space_lock);
        struct buffer *b = &set->space.buffers[s->buffer];
        b->lent = false;
        UNPOISON(b->address, b->size);
        b->lending++;
        pthread_mutex_unlock(&set->space_lock);
    }
    if (s->prev != NO_SLOT)
        d->slots[s->prev].next = s->next;
    else
        d->first = s->next;
    if (s->next != NO_SLOT)
        d->slots[s->next].prev = s->prev;
    else
        d->last = s->prev;
    s->command = NULL;
    s->generation++;
    s->next = d->free_slots;
    d->free_slots = n;
    d->outstanding--;
    atomic_fetch_sub(&set->outstanding, 1);
    return c;
}

static void call_back(VDS_Command *c, DWORD code, DWORD bytes, DWORDLONG position) {
    c->completionCode = code;
    c->bytesTransferred = bytes;
    c->outPosition = position;
    VDS_CompletionRoutine routine;
    memcpy(&routine, &c->completionRoutine, sizeof routine);
    routine(c);
}

/* For serverTimeOut: something was completed, or the first command went out. */
static void note_time(struct server_set *set) {
    if (set->requested.serverTimeOut)
        atomic_store_explicit(&set->pending_since, now_ns(), memory_order_relaxed);
}

/* ---- sending */

/* Under d->lock. */
static HRESULT send(struct server_device *d, VDS_Command *c) {
    struct server_set *set = d->set;
    if (d->dead || atomic_load(&set->state) == VDI_STATE_DOES_NOT_EXIST)
        return VD_E_PROTOCOL;
    if (aborted(&set->latch))
        return VD_E_ABORT;
    if (d->closed)
        return VD_E_PROTOCOL;
    uint32_t epoch = atomic_load_explicit(&d->shared->error_epoch, memory_order_acquire);
    if (epoch != d->cleared_epoch && c->commandCode != VDC_ClearError)
        return VD_E_IO_ERROR;
    bool transfer = c->commandCode == VDC_Read || c->commandCode == VDC_Write;
    if (c->commandCode == CODE_CLOSE || (transfer && (!c->buffer || !c->size)))
        return VD_E_INVALID;
    if (d->outstanding >= QUEUE_DEPTH - 1 || d->next_command - d->taken >= QUEUE_DEPTH - 1)
        return VD_E_QUEUE_FULL;

    uint32_t number = NO_BUFFER;
    struct buffer lent = {0};
    if (c->buffer) {
        pthread_mutex_lock(&set->space_lock);
        number = allocator_find(&set->space, c->buffer);
        struct buffer *b = number == NO_BUFFER ? NULL : &set->space.buffers[number];
        if (b && !b->lent && c->size <= b->size) {
            b->lent = true;
            b->lending++; /* odd: out */
            lent = *b;
        } else {
            number = NO_BUFFER;
        }
        pthread_mutex_unlock(&set->space_lock);
        if (number == NO_BUFFER)
            return VD_E_INVALID;
    }
    uint16_t n = slot_new(d);
    if (n == NO_SLOT) {
        if (number != NO_BUFFER) {
            pthread_mutex_lock(&set->space_lock);
            set->space.buffers[number].lent = false;
            set->space.buffers[number].lending++;
            pthread_mutex_unlock(&set->space_lock);
        }
        return VD_E_QUEUE_FULL;
    }
    if (number != NO_BUFFER)
        POISON(lent.address, lent.size);
    struct slot *s = &d->slots[n];
    s->command = c;
    s->ring = d->next_command;
    s->epoch = epoch;
    s->buffer = number;
    d->outstanding++;
    if (atomic_fetch_add(&set->outstanding, 1) == 0)
        note_time(set);

    struct cmd_entry *e = &d->shared->commands[d->next_command % QUEUE_DEPTH];
    e->code = c->commandCode;
    e->size = c->size;
    e->ticket = n | s->generation << SLOT_BITS;
    e->position = c->inPosition;
    e->offset = lent.offset;
    e->lending = lent.lending;
    e->segment = lent.segment;
    e->buffer = number;
    e->epoch = epoch;
    PUBLISH(&e->seq, d->next_command + 1);
    d->next_command++;
    wake(&d->shared->client_sleeps);
    return NOERROR;
}

static HRESULT STDMETHODCALLTYPE SendCommand(IServerVirtualDevice *This, VDS_Command *c) {
    struct server_device *d = DEVICE_OF(This);
    if (!c || !c->completionRoutine)
        return VD_E_INVALID;
    if (INERT(d))
        return VD_E_NOTOPEN;
    pthread_mutex_lock(&d->lock);
    HRESULT hr = send(d, c);
    pthread_mutex_unlock(&d->lock);
    if (hr != NOERROR) {
        DWORD code = hr == VD_E_QUEUE_FULL ? ERROR_NO_SYSTEM_RESOURCES
                     : hr == VD_E_IO_ERROR ? ERROR_IO_DEVICE
                     : hr == VD_E_PROTOCOL ? ERROR_INVALID_HANDLE
                     : hr == VD_E_ABORT    ? ERROR_OPERATION_ABORTED
                                           : ERROR_INVALID_PARAMETER;
        call_back(c, code, 0, 0);
    }
    return hr;
}

static HRESULT STDMETHODCALLTYPE CloseDevice(IServerVirtualDevice *This) {
    struct server_device *d = DEVICE_OF(This);
    if (INERT(d))
        return VD_E_NOTOPEN;
    HRESULT hr = NOERROR;
    pthread_mutex_lock(&d->lock);
    if (d->dead)
        hr = VD_E_PROTOCOL;
    else if (aborted(&d->set->latch))
        hr = VD_E_ABORT;
    else if (d->closed)
        hr = VD_E_CLOSE;
    else {
        d->closed = true;
        struct cmd_entry *e = &d->shared->commands[d->next_command % QUEUE_DEPTH];
        e->code = CODE_CLOSE;
        PUBLISH(&e->seq, d->next_command + 1);
        d->next_command++;
        atomic_fetch_add(&d->set->closed, 1);
        wake(&d->shared->client_sleeps);
        wake(&d->set->ctl->agent_sleeps);
    }
    pthread_mutex_unlock(&d->lock);
    return hr;
}

/* ---- completing, on the agent's thread */

bool server_device_has_completion(struct server_device *d) {
    uint32_t next = d->next_completion;
    return OBSERVE(&d->shared->completions[next % QUEUE_DEPTH].seq) == next + 1;
}

bool server_device_given_up(struct server_device *d) {
    pthread_mutex_lock(&d->lock);
    bool given_up = d->closed && d->outstanding && atomic_load(&d->shared->client_closed) &&
                    !server_device_has_completion(d);
    pthread_mutex_unlock(&d->lock);
    return given_up;
}

static void complete_list(VDS_Command *c, DWORD code) {
    while (c) {
        VDS_Command *after;
        memcpy(&after, &c->outPosition, sizeof after);
        call_back(c, code, 0, 0);
        c = after;
    }
}

/* Under d->lock: ends all commands sent from ring index `from` on that know of fewer errors than `epoch`. They are
 * chained through outPosition, which is the server's to write until the callback. */
static VDS_Command *end_commands(struct server_device *d, bool all, uint32_t from, uint32_t epoch) {
    VDS_Command *head = NULL, *tail = NULL;
    for (uint16_t n = d->first, after; n != NO_SLOT; n = after) {
        struct slot *s = &d->slots[n];
        after = s->next;
        if (!all && ((int32_t)(s->ring - from) < 0 || s->epoch >= epoch))
            continue;
        VDS_Command *c = slot_end(d, n), *none = NULL;
        memcpy(&c->outPosition, &none, sizeof none);
        if (tail)
            memcpy(&tail->outPosition, &c, sizeof c);
        else
            head = c;
        tail = c;
    }
    return head;
}

void server_device_complete_all(struct server_device *d, DWORD code) {
    pthread_mutex_lock(&d->lock);
    VDS_Command *list = end_commands(d, true, 0, 0);
    pthread_mutex_unlock(&d->lock);
    complete_list(list, code);
}

bool server_device_complete_one(struct server_device *d) {
    if (!server_device_has_completion(d))
        return false;
    pthread_mutex_lock(&d->lock);
    struct cmp_entry *entry = &d->shared->completions[d->next_completion % QUEUE_DEPTH], e;
    e.ticket = entry->ticket;
    e.code = entry->code;
    e.bytes = entry->bytes;
    e.position = entry->position;
    e.delivered = entry->delivered;
    e.epoch = entry->epoch;
    __asm__ volatile("" ::: "memory");
    d->next_completion++;
    uint32_t n = e.ticket & ((1u << SLOT_BITS) - 1);
    struct slot *s = n < d->slot_room ? &d->slots[n] : NULL;
    bool good = s && s->command && ((s->generation ^ e.ticket >> SLOT_BITS) & 0xFFFFF) == 0;
    VDS_Command *c = NULL, *refused = NULL;
    if (good) {
        c = s->command;
        bool transfer = c->commandCode == VDC_Read || c->commandCode == VDC_Write;
        good = !transfer || e.bytes <= c->size;
    }
    if (good) {
        if ((int32_t)(s->ring + 1 - d->taken) > 0)
            d->taken = s->ring + 1;
        if (c->commandCode == VDC_ClearError && e.code == ERROR_SUCCESS && (int32_t)(s->epoch - d->cleared_epoch) > 0)
            d->cleared_epoch = s->epoch;
        slot_end(d, (uint16_t)n);
        if (e.epoch) /* the device went to IO-ERROR: what the client had not seen yet, it will not see */
            refused = end_commands(d, false, e.delivered, e.epoch);
        note_time(d->set);
    }
    pthread_mutex_unlock(&d->lock);
    if (!good) {
        abort_post(&d->set->latch, VDI_ABORT_CORRUPT, 0, "The queue of completions holds nonsense.");
        return true;
    }
    call_back(c, e.code, e.bytes, e.position);
    complete_list(refused, ERROR_IO_DEVICE);
    return true;
}

/* ---- life */

static HRESULT STDMETHODCALLTYPE QueryInterface(IServerVirtualDevice *This, const IID *riid, void **out) {
    if (!riid || !out)
        return E_POINTER;
    *out = NULL;
    if (!guid_equal(riid, &IID_IUnknown) && !guid_equal(riid, &IID_IServerVirtualDevice))
        return E_NOINTERFACE;
    atomic_fetch_add(&DEVICE_OF(This)->refs, 1);
    *out = This;
    return S_OK;
}

static ULONG STDMETHODCALLTYPE AddRef(IServerVirtualDevice *This) {
    return atomic_fetch_add(&DEVICE_OF(This)->refs, 1) + 1;
}

static ULONG STDMETHODCALLTYPE Release(IServerVirtualDevice *This) {
    struct server_device *d = DEVICE_OF(This);
    ULONG left = atomic_fetch_sub(&d->refs, 1) - 1;
    if (left == 0 && !INERT(d)) {
        atomic_fetch_sub(&live_objects, 1);
        server_drop(d->set); /* frees the device with the last of the set */
    }
    return left;
}

static const IServerVirtualDeviceVtbl server_device_vtbl = {QueryInterface, AddRef, Release, SendCommand, CloseDevice};

struct server_device *server_device_create(struct server_set *s, struct dev_shared *shared) {
    struct server_device *d = calloc(1, sizeof *d);
    if (!d)
        return NULL;
    d->iface.lpVtbl = &server_device_vtbl;
    d->refs = 1;
    d->generation = atomic_load(&fork_generation);
    d->set = s;
    d->shared = shared;
    d->free_slots = d->first = d->last = NO_SLOT;
    adaptive_mutex_init(&d->lock);
    server_hold(s);
    atomic_fetch_add(&live_objects, 1);
    return d;
}

void server_device_free(struct server_device *d) {
    free(d->slots);
    pthread_mutex_destroy(&d->lock);
    free(d);
}
