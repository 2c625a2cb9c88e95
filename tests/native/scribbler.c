/* A hostile peer that scribbles over the control memory while traffic runs. Whatever it does, the others get codes of
 * the interface, every SendCommand has its one callback, and nobody crashes or hangs.
 *
 * usage: scribbler; VDI_FUZZ_ROUNDS and VDI_FUZZ_SEED say how often and how */
#include <sys/mman.h>

#include "harness.h"

#define SIZE 8192u
#define PREFIX 512u
#define DEVICES 2

typedef struct Board {
    Name name;
    uint64_t seed;
    int intensity, column; /* words at a time; the one of a line that is written to, or -1 */
    sem_t created, configured, joined;
    _Atomic int commands, over, hits, corrupt;
} Board;
static Board *board;

/* Leaves what is queued where it is until something was written into it, or for a moment. */
static void linger(void)
{
    int before = board->hits;
    for (int i = 0; i < 100 && board->hits == before && !board->over; i++)
        sched_yield();
}

static void linger_in_callback(Sent *sent)
{
    (void)sent;
    linger();
}

/* --- victims --- */

static IServerVirtualDeviceSet2 *server;
static IClientVirtualDeviceSet2 *client;

static void *victim_agent(void *unused)
{
    (void)unused;
    typed(V(server, ExecuteCompletionAgent));
    return NULL;
}

/* Sends until something is wrong, or enough. Each command is answered once, whatever happens. */
static void victim_server(void)
{
    enum { DEPTH = 4 };
    static Sent sent[DEVICES][DEPTH];
    static int sends[DEVICES][DEPTH];
    BYTE *buffers[DEVICES][DEPTH];
    IServerVirtualDevice *devices[DEVICES];
    pthread_t agent;
    int running = 1;
    server = new_server();
    NEED(V(server, Open, NULL, board->name.text));
    NEED(V(server, BeginConfiguration, VDF_WriteMedia, 512, 0, 65536, 0));
    NEED(V(server, RequestBuffers, SIZE, 0, DEVICES * DEPTH));
    NEED(V(server, EndConfiguration));
    for (unsigned i = 0; i < DEVICES; i++) {
        Name name = device_name(&board->name, i);
        NEED(V(server, OpenDevice, name.text, &devices[i]));
        for (int k = 0; k < DEPTH; k++) {
            NEED(V(server, AllocateBuffer, &buffers[i][k], SIZE, 0));
            sent_init(&sent[i][k], VDC_Flush, NULL, 0);
            sem_post(&sent[i][k].done); /* free */
        }
    }
    pthread_create(&agent, NULL, victim_agent, NULL);
    for (int n = 0; running && n < 1200; n++)
        for (unsigned i = 0; running && i < DEVICES; i++) {
            Sent *s = &sent[i][n % DEPTH];
            BYTE *buffer = buffers[i][n % DEPTH];
            if (!wait_briefly(&s->done, 300)) {
                running = 0; /* lost: the abort below must bring it back */
                break;
            }
            CHECK(s->calls == (sends[i][n % DEPTH] ? 1 : 0));
            if (s->calls && s->command.buffer) {
                CHECK(s->command.bytesTransferred <= SIZE);
                memset(buffer, n, SIZE);
            }
            if (n % 16 == 15) { /* a growing set */
                DWORD count;
                typed(V(server, QueryAvailableBuffers, SIZE, 0, &count));
                if (n % 512 == 15)
                    typed(V(server, RequestBuffers, SIZE, 0, 1));
            }
            sent_init(s, n % 7 == 6 ? VDC_Flush : n % 2 ? VDC_Read : VDC_Write, n % 7 == 6 ? NULL : buffer,
                      n % 7 == 6 ? 0 : SIZE);
            s->then = linger_in_callback;
            sends[i][n % DEPTH]++;
            HRESULT hr = send_it(devices[i], s);
            running = typed(hr) && hr == NOERROR;
        }
    typed(V(server, SignalAbort));
    pthread_join(agent, NULL);
    typed(V(server, Close));
    for (unsigned i = 0; i < DEVICES; i++)
        for (int k = 0; k < DEPTH; k++)
            CHECK(sent[i][k].calls == (sends[i][k] ? 1 : 0));
    board->over++;
    _exit(g_failures ? 1 : 0);
}

static void *victim_device(void *argument)
{
    IVdiEmbeddedSet *x = embedded(client);
    IClientVirtualDevice *device = NULL;
    unsigned number = (unsigned)(uintptr_t)argument;
    uint64_t random = board->seed + number;
    Name name = device_name(&board->name, number);
    HRESULT hr = V(client, OpenDevice, name.text, &device);
    typed(hr);
    for (int quiet = 0; device && quiet < 3;) {
        VDC_Command *command = NULL;
        hr = V(device, GetCommand, 100, &command);
        typed(hr);
        if (hr == VD_E_TIMEOUT) {
            quiet++;
            continue;
        }
        if (hr != NOERROR)
            break;
        quiet = 0;
        VDC_Command copy = *command;
        board->commands++;
        linger();
        if (copy.buffer) {
            VdiBufferInfo info, actual;
            BYTE *mapped = NULL;
            DWORD handle = 0;
            CHECK(copy.size <= 64 * MIB);
            touch(copy.buffer, copy.size, copy.commandCode == VDC_Read);
            touch(copy.buffer - PREFIX, PREFIX, 1);
            typed(V(client, GetBufferHandle, copy.buffer, &handle));
            if (V(client, MapBufferHandle, handle, &mapped) == NOERROR && mapped)
                touch(mapped, 1, 0);
            typed(V(client, MapBufferHandle, (DWORD)next_random(&random), &mapped));
            memset(&info, 0, sizeof info);
            typed(V(x, DescribeBuffer, copy.buffer, &info));
            if (V(x, MapBuffer, &info, &mapped, &actual) == NOERROR)
                touch(mapped, actual.size, 0);
            typed(V(x, CheckBuffer, &info));
        }
        CHECK(copy.commandCode == command->commandCode && copy.size == command->size && copy.buffer == command->buffer);
        hr = V(device, CompleteCommand, command, ERROR_SUCCESS, copy.buffer ? copy.size : 0, 0);
        if (!typed(hr) || hr != NOERROR)
            break;
    }
    if (device)
        V(device, Release);
    V(x, Release);
    return NULL;
}

static void victim_primary(void)
{
    VDConfig cfg = config(DEVICES);
    pthread_t threads[DEVICES];
    cfg.prefixZoneSize = PREFIX;
    cfg.serverTimeOut = 1000;
    client = new_client();
    NEED(V(client, CreateEx, NULL, board->name.text, &cfg));
    sem_post(&board->created);
    NEED(V(client, GetConfiguration, INFINITE, &cfg));
    sem_post(&board->configured);
    wait_briefly(&board->joined, 5000);
    for (unsigned i = 0; i < DEVICES; i++)
        pthread_create(&threads[i], NULL, victim_device, (void *)(uintptr_t)i);
    for (unsigned i = 0; i < DEVICES; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < 20; i++) {
        typed(V(client, GetConfiguration, 0, &cfg));
        if (abort_info(client).cause == VDI_ABORT_CORRUPT)
            board->corrupt = 1;
    }
    typed(V(client, SignalAbort));
    typed(V(client, Close));
    board->over++;
    _exit(g_failures ? 1 : 0);
}

/* --- the scribbler: joins as a secondary, so that it has the control memory, and writes into it --- */

typedef struct Area {
    uint8_t *start;
    size_t size;
} Area;

/* The largest memory file is the control memory here; buffers are few and small. */
static Area control_memory(void)
{
    Area best = {NULL, 0};
    char line[512];
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps)) {
        unsigned long from, to;
        if (strstr(line, "memfd:") && sscanf(line, "%lx-%lx rw", &from, &to) == 2 && to - from > best.size)
            best = (Area){(uint8_t *)from, to - from};
    }
    if (maps)
        fclose(maps);
    return best;
}

/* Where to write, without knowing the layout: words that have changed since the last look are the fronts of queues and
 * the counters, and what stands beside them belongs to the same entries. Only pages that were ever in use are looked
 * at, and the next ones. */
enum { PAGE = 1024, MOST_CHANGED = 4096 }; /* words */

__attribute__((no_sanitize("address", "undefined"))) static size_t look(Area area, uint32_t *before, uint8_t *used,
                                                                        uint32_t *changed, int whole)
{
    volatile uint32_t *words = (volatile uint32_t *)area.start;
    size_t pages = area.size / 4 / PAGE, count = 0;
    for (size_t page = 0; page < pages; page++) {
        if (!whole && !used[page] && !(page && used[page - 1]))
            continue;
        for (size_t i = page * PAGE; i < (page + 1) * PAGE; i++) {
            uint32_t word = words[i];
            if (word == before[i])
                continue;
            before[i] = word;
            used[page] = 1;
            if (count < MOST_CHANGED)
                changed[count++] = (uint32_t)i;
        }
    }
    return count;
}

__attribute__((no_sanitize("address", "undefined"))) static void scribble(Area area)
{
    static const uint64_t extremes[] = {0, 1, 2, 0x7F, 0xFF, 0xFFF, 0x1000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF,
                                        0x100000000, 0x7FFFFFFFFFFFFFFF, 0x8000000000000000, UINT64_MAX, 4096, 4032};
    static uint32_t changed[MOST_CHANGED];
    uint64_t random = board->seed;
    size_t words_in_all = area.size / 4;
    uint32_t *before = calloc(words_in_all, 4);
    uint8_t *used = calloc(words_in_all / PAGE, 1);
    volatile uint32_t *words = (volatile uint32_t *)area.start;
    look(area, before, used, changed, 1);
    while (!board->over && board->commands < 50)
        sched_yield();
    look(area, before, used, changed, 1);
    while (!board->over) {
        size_t count = look(area, before, used, changed, 0);
        if (!count) {
            sched_yield();
            continue;
        }
        int writes = board->intensity ? board->intensity : 1;
        for (int i = 0; i < writes && !board->over; i++) {
            size_t at = changed[next_random(&random) % count];
            if (board->column >= 0)
                at = at / 16 * 16 + (size_t)board->column;
            else if (next_random(&random) % 2)
                at = at / 16 * 16 + next_random(&random) % 16; /* the same line */
            else if (next_random(&random) % 16 == 0)
                at = next_random(&random) % 16384; /* the head */
            at %= words_in_all - 2;
            volatile uint64_t *wide = (volatile uint64_t *)(area.start + at * 4 / 8 * 8);
            switch (next_random(&random) % 6) {
            case 0: words[at] = (uint32_t)next_random(&random); break;
            case 1: words[at] = (uint32_t)extremes[next_random(&random) % 16]; break;
            case 2: *wide = extremes[next_random(&random) % 16]; break;
            case 3: words[at] += next_random(&random) % 2 ? 1 : -1u; break;
            case 4: words[at] = words[changed[next_random(&random) % count]]; break;
            default: words[at] ^= 1u << next_random(&random) % 32;
            }
            board->hits++;
        }
        if (!board->intensity && board->hits >= 20)
            return; /* a few words, one at a time */
    }
}

static void scribbler(void)
{
    client = new_client();
    HRESULT hr = V(client, OpenInSecondary, board->name.text);
    sem_post(&board->joined);
    if (hr != NOERROR)
        _exit(1);
    Area area = control_memory();
    if (!area.start)
        _exit(1);
    scribble(area);
    while (!board->over) /* leaving early is no abort, but stay for the sake of the memory */
        sched_yield();
    _exit(0);
}

static void new_board(void)
{
    if (!board)
        board = mmap(NULL, sizeof *board, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    memset(board, 0, sizeof *board);
    sem_init(&board->created, 1, 0);
    sem_init(&board->configured, 1, 0);
    sem_init(&board->joined, 1, 0);
    board->name = fresh_name();
}

static void fuzz(void)
{
    static const int intensities[] = {0, 1, 2, 20, 0, 5, 200, 1};
    long rounds = number_from("VDI_FUZZ_ROUNDS", 24), seed = number_from("VDI_FUZZ_SEED", 1);
    long hits = 0, corrupt = 0, commands = 0;
    for (long round = 0; round < rounds; round++) {
        int status[3] = {-1, -1, -1};
        new_board();
        board->seed = (uint64_t)(seed * 1000003 + round);
        board->intensity = intensities[round % 8];
        board->column = round % 24 < 16 ? (int)(round % 24) : -1; /* field by field, and then anything */
        pid_t pids[3];
        watchdog("fuzz", 60);
        pids[0] = start_role(victim_primary, "victim_primary");
        while (sem_wait(&board->created) != 0)
            ;
        pids[1] = start_role(victim_server, "victim_server");
        while (sem_wait(&board->configured) != 0)
            ;
        pids[2] = start_role(scribbler, "scribbler");
        for (int i = 0; i < 3; i++)
            waitpid(pids[i], &status[i], 0);
        hits += board->hits;
        commands += board->commands;
        corrupt += board->corrupt;
        if (!CHECK(status[0] == 0) | !CHECK(status[1] == 0))
            printf("     round %ld of seed %ld: primary %x, server %x, scribbler %x\n", round, seed, status[0],
                   status[1], status[2]);
        CHECK(status[2] == 0);
    }
    printf("     %ld writes and %ld commands in %ld rounds; nonsense was noticed in %ld\n", hits, commands, rounds,
           corrupt);
    CHECK(hits > 0 && corrupt > 0);
}

int main(int argc, char **argv)
{
    static const Test tests[] = {TEST(fuzz)};
    return run_tests(tests, 1, 60, argc, argv);
}
