/* IClientVirtualDevice: takes commands from the ring, gives completions back, and keeps the IO-ERROR rules. */
#include "client.h"

#define DEVICE_OF(p) ((struct client_device *)(p))

/* ---- private copies of outstanding commands */

static struct client_command *command_new(struct client_device *d) {
    if (!d->free_commands) {
        unsigned k = 0;
        while (k < CHUNKS && d->chunks[k])
            k++;
        if (k == CHUNKS || !(d->chunks[k] = calloc(CHUNK, sizeof **d->chunks)))
            return NULL;
        for (unsigned i = CHUNK; i--;) {
            d->chunks[k][i].next_free = d->free_commands;
            d->free_commands = &d->chunks[k][i];
        }
    }
    struct client_command *c = d->free_commands;
    d->free_commands = c->next_free;
    c->out = true;
    return c;
}

static void command_free(struct client_device *d, struct client_command *c) {
    c->out = false;
    c->next_free = d->free_commands;
    d->free_commands = c;
}

/* The pointer comes from outside: only the address of an outstanding command will do. */
static struct client_command *command_find(struct client_device *d, const VDC_Command *p) {
    for (unsigned k = 0; k < CHUNKS && d->chunks[k]; k++) {
        uintptr_t offset = (uintptr_t)p - (uintptr_t)d->chunks[k];
        if (offset < CHUNK * sizeof **d->chunks && offset % sizeof **d->chunks == 0) {
            struct client_command *c = &d->chunks[k][offset / sizeof **d->chunks];
            return c->out ? c : NULL;
        }
    }
    return NULL;
}

/* Makes the buffer known to the other processes of the set. Most never are, so this is done only when asked for. */
void device_publish_buffer(struct client_device *d, struct client_command *c) {
    if (c->described)
        return;
    uint64_t offset;
    uint32_t segment = segments_locate(&d->life->segments, c->command.buffer, &offset);
    struct buf_entry *b = &d->life->ctl->buffers[c->buffer];
    atomic_store_explicit(&b->segment, segment, memory_order_relaxed);
    atomic_store_explicit(&b->offset, offset, memory_order_relaxed);
    atomic_store_explicit(&b->size, c->command.size, memory_order_relaxed);
    atomic_store_explicit(&b->read_only, c->command.commandCode == VDC_Write, memory_order_relaxed);
    atomic_store_explicit(&b->lending, c->lending, memory_order_release);
    c->described = true;
}

struct client_command *device_find_buffer(struct client_device *d, const BYTE *buffer) {
    for (unsigned k = 0; k < CHUNKS && d->chunks[k]; k++)
        for (unsigned i = 0; i < CHUNK; i++) {
            struct client_command *c = &d->chunks[k][i];
            if (c->out && c->buffer != NO_BUFFER && c->command.buffer == buffer && !atomic_load(&d->dead))
                return c;
        }
    return NULL;
}

/* Changed only under d->lock, read by waiting calls without it. */
static uint32_t change_older_out(struct client_device *d, int by) {
    uint32_t n = atomic_load_explicit(&d->older_out, memory_order_relaxed) + (uint32_t)by;
    atomic_store_explicit(&d->older_out, n, memory_order_release);
    return n;
}

/* ---- fetching */

enum fetched { FETCHED, NOTHING_YET, OTHER };

static enum fetched corrupt(struct client_device *d, HRESULT *hr) {
    abort_post(&d->life->latch, VDI_ABORT_CORRUPT, 0, "The queue of commands holds nonsense.");
    *hr = VD_E_ABORT;
    return OTHER;
}

/* Hands out the entry. Every field was copied from shared memory and is checked here. */
static enum fetched deliver(struct client_device *d, const struct cmd_entry *e, VDC_Command **out, HRESULT *hr) {
    struct life *l = d->life;
    BYTE *buffer = NULL;
    if (e->buffer != NO_BUFFER) {
        DWORD prefix = l->requested.prefixZoneSize;
        if (e->buffer >= MAX_BUFFERS || !life_await_segment(l, e->segment) ||
            !(buffer = segments_address(&l->segments, e->segment, e->offset, prefix, e->size)))
            return corrupt(d, hr);
        UNPOISON(buffer - prefix, (size_t)prefix + e->size);
    } else if (e->code == VDC_Read || e->code == VDC_Write) {
        return corrupt(d, hr);
    }
    struct client_command *c = command_new(d);
    if (!c) {
        *hr = VD_E_MEMORY;
        return OTHER;
    }
    d->next_command++;
    c->command = (VDC_Command){e->code, e->size, e->position, buffer};
    c->ticket = e->ticket;
    c->buffer = e->buffer;
    c->lending = e->lending;
    c->described = false;
    if (e->code != VDC_ClearError)
        change_older_out(d, 1);
    *out = &c->command;
    *hr = NOERROR;
    return FETCHED;
}

/* Under d->lock. */
static enum fetched fetch(struct client_device *d, VDC_Command **out, HRESULT *hr) {
    struct life *l = d->life;
    *hr = VD_E_PROTOCOL;
    if (atomic_load_explicit(&d->dead, memory_order_relaxed))
        return OTHER;
    *hr = VD_E_ABORT;
    if (aborted(&l->latch))
        return OTHER;
    *hr = VD_E_CLOSE;
    if (d->closed)
        return OTHER;
    if (!d->shared) {
        bool all_opened;
        d->shared = life_find_device(l, d->name, &all_opened);
        if (!d->shared) {
            *hr = VD_E_INVALID;
            return all_opened ? OTHER : NOTHING_YET;
        }
        d->epoch = 0;
    }
    d->withheld = false;
    for (;;) {
        struct cmd_entry *entry = &d->shared->commands[d->next_command % QUEUE_DEPTH];
        if (OBSERVE(&entry->seq) != d->next_command + 1)
            return NOTHING_YET;
        struct cmd_entry e;
        e.code = entry->code;
        e.size = entry->size;
        e.ticket = entry->ticket;
        e.position = entry->position;
        e.offset = entry->offset;
        e.lending = entry->lending;
        e.segment = entry->segment;
        e.buffer = entry->buffer;
        e.epoch = entry->epoch;
        __asm__ volatile("" ::: "memory");
        if (e.code == CODE_CLOSE) {
            d->closed = true;
            atomic_store(&d->shared->client_closed, 1);
            wake(&l->ctl->agent_sleeps);
            *hr = VD_E_CLOSE;
            return OTHER;
        }
        if (e.epoch > d->epoch || (d->io_error && e.epoch == d->epoch && e.code != VDC_ClearError))
            return corrupt(d, hr);
        if (e.epoch < d->epoch) { /* sent before the server knew of the error: its agent completes it */
            d->next_command++;
            continue;
        }
        if (d->io_error && atomic_load(&d->older_out)) {
            d->withheld = true;
            return NOTHING_YET;
        }
        return deliver(d, &e, out, hr);
    }
}

/* What a sleeping GetCommand waits for. Reads only what may change without d->lock. */
struct wish {
    struct client_device *d;
    struct dev_shared *shared;
    uint32_t next;
    bool withheld;
};

static bool something_happened(void *arg) {
    struct wish *w = arg;
    struct client_device *d = w->d;
    if (atomic_load_explicit(&d->dead, memory_order_relaxed) || aborted(&d->life->latch))
        return true;
    if (!w->shared) {
        bool all_opened;
        return life_find_device(d->life, d->name, &all_opened) || all_opened;
    }
    if (w->withheld)
        return atomic_load(&d->older_out) == 0;
    return OBSERVE(&w->shared->commands[w->next % QUEUE_DEPTH].seq) == w->next + 1;
}

static HRESULT STDMETHODCALLTYPE GetCommand(IClientVirtualDevice *This, DWORD timeout, VDC_Command **out) {
    struct client_device *d = DEVICE_OF(This);
    if (!out)
        return VD_E_INVALID;
    *out = NULL;
    if (INERT(d))
        return VD_E_NOTOPEN;
    HRESULT hr;
    pthread_mutex_lock(&d->lock);
    if (fetch(d, out, &hr) == NOTHING_YET) {
        if (timeout == 0) {
            hr = VD_E_TIMEOUT;
        } else {
            uint64_t deadline = deadline_after(timeout);
            bool in_time = true;
            enum fetched got = NOTHING_YET;
            while (in_time && got == NOTHING_YET) {
                struct wish w = {d, d->shared, d->next_command, d->withheld};
                _Atomic uint32_t *word = w.shared ? &w.shared->client_sleeps : &d->life->ctl->opened_sleeps;
                d->waiting++;
                pthread_mutex_unlock(&d->lock);
                in_time = wait_until(word, something_happened, &w, deadline);
                pthread_mutex_lock(&d->lock);
                if (--d->waiting == 0)
                    pthread_cond_broadcast(&d->left);
                got = fetch(d, out, &hr);
            }
            if (got == NOTHING_YET)
                hr = VD_E_TIMEOUT;
        }
    }
    pthread_mutex_unlock(&d->lock);
    return hr;
}

/* ---- completing */

static HRESULT STDMETHODCALLTYPE CompleteCommand(IClientVirtualDevice *This, VDC_Command *p, DWORD code, DWORD bytes,
                                                 DWORDLONG position) {
    struct client_device *d = DEVICE_OF(This);
    if (!p)
        return VD_E_INVALID;
    if (INERT(d))
        return VD_E_NOTOPEN;
    HRESULT hr = NOERROR;
    struct client_command *c = NULL;
    pthread_mutex_lock(&d->lock);
    if (atomic_load_explicit(&d->dead, memory_order_relaxed))
        hr = VD_E_PROTOCOL;
    else if (aborted(&d->life->latch))
        hr = VD_E_ABORT;
    else if (d->closed)
        hr = VD_E_PROTOCOL;
    else if (!d->shared || !(c = command_find(d, p)))
        hr = VD_E_INVALID;
    else if ((c->command.commandCode == VDC_Read || c->command.commandCode == VDC_Write) && bytes > c->command.size)
        hr = VD_E_INVALID;
    if (hr == NOERROR) {
        struct ctl *ctl = d->life->ctl;
        bool clear_error = c->command.commandCode == VDC_ClearError;
        struct cmp_entry *e = &d->shared->completions[d->next_completion % QUEUE_DEPTH];
        e->ticket = c->ticket;
        e->code = code;
        e->bytes = bytes;
        e->position = position;
        e->delivered = e->epoch = 0;
        if (code != ERROR_SUCCESS && !d->io_error) {
            d->io_error = true;
            d->epoch++;
            atomic_store(&d->shared->error_epoch, d->epoch); /* before the completion, so that the server refuses */
            e->delivered = d->next_command;
            e->epoch = d->epoch;
        } else if (code == ERROR_SUCCESS && clear_error) {
            d->io_error = false;
        }
        if (c->buffer != NO_BUFFER) {
            DWORD prefix = d->life->requested.prefixZoneSize;
            POISON(c->command.buffer - prefix, (size_t)prefix + c->command.size);
            if (c->described)
                atomic_store_explicit(&ctl->buffers[c->buffer].lending, c->lending + 1, memory_order_release);
        }
        command_free(d, c);
        PUBLISH(&e->seq, d->next_completion + 1);
        d->next_completion++;
        if (!clear_error && change_older_out(d, -1) == 0 && d->io_error)
            wake(&d->shared->client_sleeps); /* a ClearError may have been withheld for this */
        wake(&ctl->agent_sleeps);
    }
    pthread_mutex_unlock(&d->lock);
    return hr;
}

/* ---- life */

static HRESULT STDMETHODCALLTYPE QueryInterface(IClientVirtualDevice *This, const IID *riid, void **out) {
    if (!riid || !out)
        return E_POINTER;
    *out = NULL;
    if (!guid_equal(riid, &IID_IUnknown) && !guid_equal(riid, &IID_IClientVirtualDevice))
        return E_NOINTERFACE;
    atomic_fetch_add(&DEVICE_OF(This)->refs, 1);
    *out = This;
    return S_OK;
}

static ULONG STDMETHODCALLTYPE AddRef(IClientVirtualDevice *This) {
    return atomic_fetch_add(&DEVICE_OF(This)->refs, 1) + 1;
}

static ULONG STDMETHODCALLTYPE Release(IClientVirtualDevice *This) {
    struct client_device *d = DEVICE_OF(This);
    ULONG left = atomic_fetch_sub(&d->refs, 1) - 1;
    if (left == 0 && !INERT(d)) {
        atomic_fetch_sub(&live_objects, 1);
        life_release(d->life); /* frees the device with the last of the set */
    }
    return left;
}

static const IClientVirtualDeviceVtbl client_device_vtbl = {QueryInterface, AddRef, Release, GetCommand,
                                                            CompleteCommand};

struct client_device *device_create(struct life *life, const WCHAR *name) {
    struct client_device *d = calloc(1, sizeof *d);
    if (!d)
        return NULL;
    d->iface.lpVtbl = &client_device_vtbl;
    d->refs = 1;
    d->generation = atomic_load(&fork_generation);
    d->life = life;
    memcpy(d->name, name, sizeof d->name);
    adaptive_mutex_init(&d->lock);
    pthread_cond_init(&d->left, NULL);
    atomic_fetch_add(&life->refs, 1);
    atomic_fetch_add(&live_objects, 1);
    return d;
}

void device_kill(struct client_device *d) {
    pthread_mutex_lock(&d->lock);
    atomic_store(&d->dead, true);
    wake(&d->life->ctl->opened_sleeps);
    if (d->shared)
        wake(&d->shared->client_sleeps);
    while (d->waiting)
        pthread_cond_wait(&d->left, &d->lock);
    pthread_mutex_unlock(&d->lock);
}

void device_free(struct client_device *d) {
    for (unsigned k = 0; k < CHUNKS; k++)
        free(d->chunks[k]);
    pthread_cond_destroy(&d->left);
    pthread_mutex_destroy(&d->lock);
    free(d);
}
