/* Everything at once: threads send, fetch, complete, open, map, allocate and ask, while others abort, close and release
 * at a random moment. Every call must come back, every SendCommand must have had one callback, and under a sanitizer
 * nothing may be touched that is gone. usage: races [rounds [seed]] */
#include "harness.h"

#define DEVICES 2
#define DEPTH 4
#define SIZE 4096

static Pair pair;
static IClientVirtualDeviceSet2 *secondary;
static uint64_t seed;
static int how;
static _Atomic int moment; /* commands completed */
static _Atomic int over;   /* somebody has begun to end it */
static Sent sent[DEVICES][DEPTH];
static int sends[DEVICES][DEPTH];

static int ended(HRESULT hr)
{
    if (hr == NOERROR || hr == VD_E_TIMEOUT)
        return 0;
    CHECK(hr == VD_E_ABORT || hr == VD_E_PROTOCOL || hr == VD_E_CLOSE || hr == VD_E_INVALID || hr == VD_E_MEMORY);
    return hr == VD_E_ABORT || hr == VD_E_PROTOCOL || hr == VD_E_CLOSE;
}

static void *sender(void *argument)
{
    unsigned device = (unsigned)(uintptr_t)argument;
    BYTE *buffers[DEPTH];
    for (int i = 0; i < DEPTH; i++)
        if (V(pair.server, AllocateBuffer, &buffers[i], SIZE, 0) != NOERROR)
            return NULL;
    for (int n = 0;; n++) {
        Sent *s = &sent[device][n % DEPTH];
        if (n >= DEPTH) {
            wait_for(s);
            CHECK(s->calls == 1);
            if (s->command.completionCode != ERROR_SUCCESS)
                break;
        }
        sent_init(s, n % 2 ? VDC_Read : VDC_Write, buffers[n % DEPTH], SIZE);
        sends[device][n % DEPTH] = 1;
        if (ended(send_it(pair.s[device], s)))
            break;
    }
    return NULL;
}

static void *getter(void *argument)
{
    unsigned device = (unsigned)(uintptr_t)argument;
    VDC_Command *command;
    HRESULT hr;
    while (!ended(hr = V(pair.c[device], GetCommand, device ? 20 : INFINITE, &command))) {
        if (hr != NOERROR)
            continue;
        moment++;
        if (ended(V(pair.c[device], CompleteCommand, command, ERROR_SUCCESS, SIZE, 0)))
            break;
    }
    return NULL;
}

/* The calls that anybody may make at any time. */
static void *asker(void *argument)
{
    uint64_t random = seed + (uint64_t)(uintptr_t)argument;
    IClientVirtualDeviceSet2 *client = argument ? secondary : pair.client;
    IVdiEmbeddedSet *x = embedded(client);
    Name name = name_of("unknown");
    for (;;) {
        VDConfig cfg;
        DWORD count;
        BYTE *address;
        IClientVirtualDevice *device = NULL;
        VdiAbortInfo info;
        HRESULT hr = V(client, GetConfiguration, INFINITE, &cfg);
        switch (next_random(&random) % 6) {
        case 0: V(client, MapBufferHandle, (DWORD)next_random(&random) % 64, &address); break;
        case 1: V(client, OpenDevice, name.text, &device); break;
        case 2: V(pair.server, QueryAvailableBuffers, SIZE, 0, &count); break;
        case 3:
            if (V(pair.server, AllocateBuffer, &address, SIZE, 0) == NOERROR)
                V(pair.server, FreeBuffer, address, SIZE);
            break;
        case 4: V(x, GetAbortInfo, &info); break;
        default: V(pair.server, GetConfiguration, &cfg);
        }
        if (device)
            V(device, Release);
        if (ended(hr))
            break;
    }
    V(x, Release);
    return NULL;
}

static void *ender(void *argument)
{
    uint64_t random = seed * 77 + (uint64_t)(uintptr_t)argument;
    int when = (int)(next_random(&random) % 200);
    while (moment < when && !over)
        sched_yield();
    over = 1;
    switch (how) {
    case 0: V(pair.client, SignalAbort); break;
    case 1: V(pair.server, SignalAbort); break;
    case 2: V(pair.client, Close); break;
    case 3: V(pair.server, Close); break;
    case 4: V(secondary, SignalAbort); break;
    case 5:
        V(pair.client, Close);
        V(secondary, Close);
        V(pair.server, Close);
        break;
    case 6:
        V(pair.server, Close);
        V(pair.client, Close);
        break;
    default:
        V(pair.s[0], CloseDevice);
        V(pair.server, SignalAbort);
        V(secondary, Close);
    }
    return NULL;
}

static void one_round(void)
{
    pthread_t threads[2 * DEVICES + 5];
    int n = 0;
    moment = over = 0;
    memset(sends, 0, sizeof sends);
    secondary = new_client();
    pair_ready(&pair, DEVICES, SIZE, DEVICES * DEPTH + 2);
    NEED(V(secondary, OpenInSecondary, pair.name.text));
    for (uintptr_t i = 0; i < DEVICES; i++) {
        pthread_create(&threads[n++], NULL, sender, (void *)i);
        pthread_create(&threads[n++], NULL, getter, (void *)i);
    }
    for (uintptr_t i = 0; i < 2; i++)
        pthread_create(&threads[n++], NULL, asker, (void *)i);
    int enders = how >= 5 ? 1 : 2;
    for (uintptr_t i = 0; i < (uintptr_t)enders; i++)
        pthread_create(&threads[n++], NULL, ender, (void *)i);
    for (int i = 2 * DEVICES + 2; i < n; i++)
        pthread_join(threads[i], NULL);
    V(pair.client, SignalAbort); /* whatever it was, it is the end */
    V(pair.server, SignalAbort);
    for (int i = 0; i < 2 * DEVICES + 2; i++)
        pthread_join(threads[i], NULL);
    V(secondary, Close);
    V(secondary, Release);
    pair_discard(&pair);
    for (int d = 0; d < DEVICES; d++)
        for (int i = 0; i < DEPTH; i++)
            CHECK(!sends[d][i] || sent[d][i].calls == 1);
    CHECK(VdiLiveObjects() == 0);
}

static long rounds = 80;

static void races(void)
{
    int descriptors = open_descriptors();
    for (long i = 0; i < rounds && !g_failures; i++) {
        seed = seed * 31 + (uint64_t)i;
        how = (int)(i % 8);
        one_round();
        if (g_failures)
            printf("     round %ld, way %d\n", i, how);
    }
    CHECK(open_descriptors() == descriptors);
    CHECK(shared_mappings() == 0);
}

int main(int argc, char **argv)
{
    static const Test tests[] = {TEST(races)};
    if (argc > 1)
        rounds = atol(argv[1]);
    seed = argc > 2 ? (uint64_t)atol(argv[2]) : 1;
    return run_tests(tests, 1, 60, 1, argv);
}
