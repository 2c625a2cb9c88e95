/* Server: sends commands as fast as they come back. Its completion routine fills the buffer and sends it again. */
#include "bench.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>

enum mode {
    FILL,    /* each WRITE carries fresh bytes, copied from a source that is in the cache */
    RESEND,  /* the same without the copy */
    SLEEPY,  /* READs, each sent when the client sleeps; stamps in the buffer */
    RING,    /* WRITEs sent without waiting for an answer; server_finish lets the agent take the completions */
};

struct server;
struct slot {
    VDS_Command command;
    struct server *server;
    IServerVirtualDevice *device;
    uint32_t *left; /* of its device */
};

struct server {
    IServerVirtualDeviceSet2 *set;
    uint32_t device_count, buffer_count, block;
    IServerVirtualDevice *devices[64];
    struct slot *slots; /* one for each buffer */
    uint8_t *source;
    pthread_t agent;

    enum mode mode;
    uint32_t left[64]; /* commands still to be sent */
    uint32_t done, total;
    uint64_t pause;
    uint64_t *times; /* SLEEPY: both ways, ns */
    pthread_mutex_t lock;
    pthread_cond_t finished;
    sem_t parked; /* RING: holds the agent in its first completion */
    int failure;
};

static void fill(struct slot *slot) {
    struct server *s = slot->server;
    if (s->mode == FILL)
        memcpy(slot->command.buffer, s->source, slot->command.size);
    if (s->mode == SLEEPY) {
        bench_spin(s->pause);
        ((uint64_t *)slot->command.buffer)[0] = bench_now();
    }
}

static void completed(VDS_Command *c) {
    struct slot *slot = (struct slot *)c;
    struct server *s = slot->server;
    if (s->mode == SLEEPY) {
        uint64_t now = bench_now(), *stamp = (uint64_t *)c->buffer;
        s->times[s->done] = stamp[1] - stamp[0] + (now - stamp[2]);
    }
    if (s->mode == RING && s->done == 0)
        while (sem_wait(&s->parked))
            ;
    if (c->completionCode != ERROR_SUCCESS)
        s->failure = (int)c->completionCode;
    if (*slot->left && c->completionCode == ERROR_SUCCESS) {
        --*slot->left;
        fill(slot);
        if (FAILED(slot->device->lpVtbl->SendCommand(slot->device, c)))
            s->failure = -1;
    }
    if (++s->done == s->total || s->failure) {
        pthread_mutex_lock(&s->lock);
        pthread_cond_signal(&s->finished);
        pthread_mutex_unlock(&s->lock);
    }
}

static void *agent(void *arg) {
    struct server *s = arg;
    s->set->lpVtbl->ExecuteCompletionAgent(s->set);
    return NULL;
}

static HRESULT configure(struct server *s, const char *name) {
    WCHAR wide[129];
    VDConfig config;
    HRESULT hr = VD_E_INVALID;
    if (!bench_wide(wide, 129, name) || FAILED(hr = s->set->lpVtbl->Open(s->set, NULL, wide)) ||
        FAILED(hr = s->set->lpVtbl->GetConfiguration(s->set, &config)) ||
        FAILED(hr = s->set->lpVtbl->BeginConfiguration(s->set, VDF_WriteMedia, 4096, 4096, 4u << 20, 0)) ||
        FAILED(hr = s->set->lpVtbl->RequestBuffers(s->set, s->block, 4096, s->buffer_count)) ||
        FAILED(hr = s->set->lpVtbl->EndConfiguration(s->set)))
        return hr;
    s->device_count = config.deviceCount;
    for (uint32_t i = 0; i < s->device_count; i++) { /* the set's name, then name-1, name-2 ... */
        char device[129];
        size_t n = strlen(name);
        if (n > 120)
            return VD_E_INVALID;
        memcpy(device, name, n + 1);
        if (i >= 10)
            memcpy(device + n, (char[]){'-', (char)('0' + i / 10), (char)('0' + i % 10), 0}, 4);
        else if (i)
            memcpy(device + n, (char[]){'-', (char)('0' + i), 0}, 3);
        bench_wide(wide, 129, device);
        if (FAILED(hr = s->set->lpVtbl->OpenDevice(s->set, wide, &s->devices[i])))
            return hr;
    }
    for (uint32_t i = 0; i < s->buffer_count; i++) {
        VDS_Command *c = &s->slots[i].command;
        if (FAILED(hr = s->set->lpVtbl->AllocateBuffer(s->set, &c->buffer, s->block, 4096)))
            return hr;
        VDS_CompletionRoutine routine = completed;
        memcpy(&c->completionRoutine, &routine, sizeof routine);
        s->slots[i].server = s;
    }
    return NOERROR;
}

/* Opens a set that a client has created, configures it, and runs its agent. NULL: it failed. */
EXPORT void *server_open(const char *provider, const char *name, uint32_t block, uint32_t buffers) {
    struct server *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->block = block;
    s->buffer_count = buffers;
    s->slots = calloc(buffers, sizeof *s->slots);
    s->source = malloc(block);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->finished, NULL);
    sem_init(&s->parked, 0, 0);
    s->set = bench_class(provider, &CLSID_MSSQL_ServerVirtualDeviceSet, &IID_IServerVirtualDeviceSet2);
    if (!s->set || !s->slots || !s->source || FAILED(configure(s, name)) ||
        pthread_create(&s->agent, NULL, agent, s)) {
        if (s->set) {
            s->set->lpVtbl->Close(s->set);
            s->set->lpVtbl->Release(s->set);
        }
        free(s->slots);
        free(s->source);
        free(s);
        return NULL;
    }
    for (uint32_t i = 0; i < block; i++)
        s->source[i] = (uint8_t)(i * 2654435761u >> 24);
    return s;
}

/* Sends the first `depth` commands of each of `n` devices from `first` on, `count` in all to each. */
EXPORT int server_start(void *server, int mode, uint32_t first, uint32_t n, uint32_t count, uint32_t depth,
                        uint32_t size, uint64_t pause, uint64_t *times) {
    struct server *s = server;
    if (first + n > s->device_count || n * depth > s->buffer_count || size > s->block || count < depth)
        return VD_E_INVALID;
    s->mode = mode;
    s->done = 0;
    s->total = n * count;
    s->pause = pause;
    s->times = times;
    s->failure = 0;
    for (uint32_t i = 0; i < n; i++)
        s->left[first + i] = count - depth;
    for (uint32_t k = 0; k < n * depth; k++) { /* in turn, as SQL Server spreads its buffers */
        struct slot *slot = &s->slots[k];
        uint32_t device = first + k % n;
        slot->device = s->devices[device];
        slot->left = &s->left[device];
        slot->command.commandCode = mode == SLEEPY ? VDC_Read : VDC_Write;
        slot->command.size = size;
        fill(slot);
        if (FAILED(slot->device->lpVtbl->SendCommand(slot->device, &slot->command)))
            return -1;
    }
    return 0;
}

/* Waits until all of them are completed. */
EXPORT int server_finish(void *server) {
    struct server *s = server;
    if (s->mode == RING)
        sem_post(&s->parked);
    pthread_mutex_lock(&s->lock);
    while (s->done < s->total && !s->failure)
        pthread_cond_wait(&s->finished, &s->lock);
    pthread_mutex_unlock(&s->lock);
    return s->failure;
}

/* What the stream is measured against: the same bytes into the same buffers, and nothing else. Returns ns. */
EXPORT int64_t server_copy(void *server, uint32_t count, uint32_t depth, uint32_t size) {
    struct server *s = server;
    uint64_t start = bench_now();
    for (uint32_t i = 0; i < count; i++)
        memcpy(s->slots[i % depth].command.buffer, s->source, size);
    return (int64_t)(bench_now() - start);
}

/* Ends the devices, waits for the client to see it, and closes. */
EXPORT int server_close(void *server) {
    struct server *s = server;
    for (uint32_t i = 0; i < s->device_count; i++)
        s->devices[i]->lpVtbl->CloseDevice(s->devices[i]);
    pthread_join(s->agent, NULL);
    for (uint32_t i = 0; i < s->device_count; i++)
        s->devices[i]->lpVtbl->Release(s->devices[i]);
    HRESULT hr = s->set->lpVtbl->Close(s->set);
    s->set->lpVtbl->Release(s->set);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->finished);
    sem_destroy(&s->parked);
    free(s->slots);
    free(s->source);
    free(s);
    return hr;
}
