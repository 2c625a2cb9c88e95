/* Hostile peers: one that scribbles over the control memory while traffic runs, one that tries to take memory away,
 * one that sends messages that are almost right, strangers and other users at the rendezvous. Whatever they do, the
 * others get codes of the interface and go on living.
 *
 * usage: hostile [test ...]; VDI_FUZZ_ROUNDS and VDI_FUZZ_SEED for the tests that are random */
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include "harness.h"

#define SIZE 8192u
#define PREFIX 512u
#define DEVICES 2
#define NOBODY 65534

typedef struct Board {
    Name name;
    uint64_t seed;
    int intensity, column; /* words at a time; the one of a line that is written to, or -1 */
    sem_t created, configured, joined;
    _Atomic int commands, over, hits, corrupt;
} Board;
static Board *board;

/* Every code that a victim sees is one of the interface's. */
static int typed(HRESULT hr)
{
    if (hr == NOERROR || ((uint32_t)hr & 0xFFFF0000u) == 0x80770000u)
        return 1;
    printf("FAIL a victim gets %08x\n", (unsigned)hr);
    g_failures++;
    return 0;
}

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

static int wait_briefly(sem_t *sem, unsigned ms)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += (long)(ms % 1000) * 1000000;
    until.tv_sec += ms / 1000 + until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    int result;
    while ((result = sem_timedwait(sem, &until)) != 0 && errno == EINTR)
        ;
    return result == 0;
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

/* What is handed out lies in the shared memory, whatever the scribbler made of address and size; it need not be the
 * right buffer, nor one buffer only, so what the provider poisons there is no criterion. */
__attribute__((no_sanitize("address"))) static void touch(BYTE *buffer, DWORD size, int write)
{
    for (DWORD at = 0; size; at = at + 64 < size ? at + 64 : size - 1) {
        volatile BYTE *byte = buffer + at;
        if (write)
            *byte = 2;
        else
            (void)*byte;
        if (at == size - 1)
            break;
    }
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

static pid_t start(void (*play)(void), const char *name)
{
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        g_failures = 0;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        watchdog(name, 20);
        play();
    }
    return pid;
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

static long number_from(const char *variable, long otherwise)
{
    const char *text = getenv(variable);
    return text ? atol(text) : otherwise;
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
        pids[0] = start(victim_primary, "victim_primary");
        while (sem_wait(&board->created) != 0)
            ;
        pids[1] = start(victim_server, "victim_server");
        while (sem_wait(&board->configured) != 0)
            ;
        pids[2] = start(scribbler, "scribbler");
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

/* --- memory that is taken away --- */

static int refuse_seals; /* this process pretends to seal */

int fcntl(int fd, int command, ...)
{
    va_list list;
    va_start(list, command);
    long argument = va_arg(list, long);
    va_end(list);
    if (refuse_seals && command == F_ADD_SEALS)
        return 0;
    return (int)syscall(SYS_fcntl, fd, command, argument);
}

static int try_to_shrink(void)
{
    int tried = 0;
    char path[64], link[256];
    for (int fd = 0; fd < 256; fd++) {
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(path, link, sizeof link - 1);
        if (n <= 0)
            continue;
        link[n] = 0;
        if (!strstr(link, "memfd:"))
            continue;
        tried++;
        errno = 0;
        CHECK(ftruncate(fd, 0) == -1 && errno == EPERM);
        CHECK(ftruncate(fd, 4096) == -1 && errno == EPERM);
        CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 0) == -1);
        int seals = fcntl(fd, F_GET_SEALS, 0L);
        CHECK(seals & F_SEAL_SHRINK);
        CHECK(seals & F_SEAL_SEAL); /* and no seal can be added that would stop the others from writing */
    }
    return tried;
}

static void nothing_shrinks(void)
{
    Pair pair;
    pair_ready(&pair, 1, 65536, 2);
    CHECK(try_to_shrink() >= 2); /* control memory and buffers */
    pair_finish(&pair);
}

static void unsealed_server(void)
{
    VDConfig cfg;
    refuse_seals = 1;
    server = new_server();
    if (V(server, Open, NULL, board->name.text) != NOERROR)
        _exit(0);
    NEED(V(server, BeginConfiguration, VDF_WriteMedia, 512, 0, 65536, 0));
    NEED(V(server, RequestBuffers, SIZE, 0, 4));
    HRESULT hr = V(server, EndConfiguration);
    CHECK(hr != NOERROR); /* the primary must not take it */
    (void)cfg;
    _exit(g_failures ? 1 : 0);
}

static void unsealed_primary(void)
{
    VDConfig cfg = config(1);
    refuse_seals = 1;
    client = new_client();
    V(client, CreateEx, NULL, board->name.text, &cfg);
    sem_post(&board->created);
    while (!board->over)
        sched_yield();
    _exit(0);
}

/* Memory that could shrink is not taken from anybody. */
static void unsealed_memory(void)
{
    int status = -1;
    VDConfig cfg = config(1);
    new_board();
    client = new_client();
    NEED(V(client, CreateEx, NULL, board->name.text, &cfg));
    pid_t pid = start(unsealed_server, "unsealed_server");
    waitpid(pid, &status, 0);
    CHECK(status == 0);
    CHECK(V(client, GetConfiguration, 0, &cfg) != NOERROR);
    V(client, Close);
    V(client, Release);

    new_board();
    pid = start(unsealed_primary, "unsealed_primary");
    while (sem_wait(&board->created) != 0)
        ;
    server = new_server();
    HRESULT hr = V(server, Open, NULL, board->name.text);
    CHECK(hr != NOERROR && typed(hr));
    V(server, Release);
    client = new_client();
    hr = V(client, OpenInSecondary, board->name.text);
    CHECK(hr != NOERROR && typed(hr));
    V(client, Release);
    board->over = 1;
    waitpid(pid, &status, 0);
    CHECK(status == 0);
}

/* --- messages that are almost right --- */

static uint64_t lies; /* this process changes what it sends: state of its random numbers, 0 for honest */

ssize_t sendmsg(int fd, const struct msghdr *honest, int flags)
{
    struct msghdr message = *honest;
    static char bytes[65536];
    struct iovec iov = {bytes, 0};
    if (lies && message.msg_iovlen == 1 && message.msg_iov[0].iov_len < sizeof bytes / 2) {
        size_t size = message.msg_iov[0].iov_len;
        memcpy(bytes, message.msg_iov[0].iov_base, size);
        iov.iov_len = size;
        message.msg_iov = &iov;
        switch (next_random(&lies) % 5) {
        case 0: /* words at the head, where the meaning is */
            ((uint32_t *)(void *)bytes)[next_random(&lies) % (size < 160 ? size / 4 : 40)] =
                next_random(&lies) % 2 ? (uint32_t)(next_random(&lies) % 70) : (uint32_t)next_random(&lies);
            break;
        case 1: bytes[next_random(&lies) % size] ^= (char)(1 << next_random(&lies) % 8); break;
        case 2: iov.iov_len = next_random(&lies) % (2 * size); break;
        case 3: message.msg_controllen = 0, message.msg_control = NULL; break;
        default: break;
        }
    }
    return syscall(SYS_sendmsg, fd, &message, flags);
}

static void tolerant_server(void)
{
    BYTE *buffer;
    IServerVirtualDevice *device = NULL;
    Sent sent;
    pthread_t agent;
    server = new_server();
    HRESULT hr = V(server, Open, NULL, board->name.text);
    typed(hr);
    typed(V(server, BeginConfiguration, VDF_WriteMedia, 512, 0, 65536, 0));
    typed(V(server, RequestBuffers, SIZE, 0, 2));
    typed(V(server, EndConfiguration));
    typed(V(server, OpenDevice, board->name.text, &device));
    pthread_create(&agent, NULL, victim_agent, NULL);
    int calls = 0;
    if (device && V(server, AllocateBuffer, &buffer, SIZE, 0) == NOERROR) {
        memset(buffer, 5, SIZE);
        sent_init(&sent, VDC_Write, buffer, SIZE);
        typed(send_it(device, &sent));
        calls = 1;
        typed(V(server, RequestBuffers, SIZE, 0, 1));
        wait_briefly(&sent.done, 50);
    }
    V(server, SignalAbort);
    pthread_join(agent, NULL);
    V(server, Close);
    CHECK(!calls || sent.calls == 1);
    if (device)
        V(device, Release);
    V(server, Release);
    CHECK(VdiLiveObjects() == 0);
}

static void tolerant_client(int primary)
{
    VDConfig cfg = config(2);
    IClientVirtualDevice *device = NULL;
    VDC_Command *command;
    BYTE *mapped;
    DWORD handle;
    Name name = device_name(&board->name, !primary);
    client = new_client();
    typed(primary ? V(client, CreateEx, NULL, board->name.text, &cfg)
                  : V(client, OpenInSecondary, board->name.text));
    sem_post(primary ? &board->created : &board->joined);
    typed(V(client, GetConfiguration, 300, &cfg));
    sem_post(&board->configured);
    typed(V(client, OpenDevice, name.text, &device));
    if (device && V(device, GetCommand, 50, &command) == NOERROR) {
        if (command->buffer) {
            touch(command->buffer, command->size, 0);
            typed(V(client, GetBufferHandle, command->buffer, &handle));
        }
        if (primary)
            wait_briefly(&board->joined, 20);
        typed(V(device, CompleteCommand, command, ERROR_SUCCESS, 0, 0));
    }
    for (DWORD i = 0; i < 50; i++)
        typed(V(client, MapBufferHandle, i, &mapped));
    if (!primary || !device)
        typed(V(client, GetConfiguration, 50, &cfg));
    V(client, Close);
    if (device)
        V(device, Release);
    V(client, Release);
    CHECK(VdiLiveObjects() == 0);
}

static void lying_messages(void)
{
    long rounds = number_from("VDI_FUZZ_ROUNDS", 60), seed = number_from("VDI_FUZZ_SEED", 1);
    for (long round = 0; round < rounds; round++) {
        new_board();
        pid_t pids[3];
        int status[3];
        watchdog("lying_messages", 60);
        for (int role = 0; role < 3; role++) {
            if (role == 1)
                wait_briefly(&board->created, 5000);
            if (role == 2)
                wait_briefly(&board->configured, 1000);
            fflush(stdout);
            if ((pids[role] = fork()) == 0) {
                g_failures = 0;
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                watchdog("one of three", 30);
                if (round % 3 == role)
                    lies = (uint64_t)(seed * 7919 + round + 1);
                if (role == 1)
                    tolerant_server();
                else
                    tolerant_client(role == 0);
                _exit(g_failures ? 1 : 0);
            }
        }
        for (int role = 0; role < 3; role++) {
            waitpid(pids[role], &status[role], 0);
            if (!CHECK(status[role] == 0))
                printf("     role %d in round %ld of seed %ld, liar %ld: %x\n", role, round, seed, round % 3,
                       status[role]);
        }
    }
}

/* --- strangers at the rendezvous --- */

/* Abstract sockets of this network name space, which is our own. */
static int listeners(char paths[][108], int most)
{
    char line[512], name[256];
    int n = 0;
    FILE *f = fopen("/proc/net/unix", "r");
    while (f && fgets(line, sizeof line, f)) {
        name[0] = 0;
        unsigned long flags = 0;
        if (sscanf(line, "%*s %*s %*s %lx %*s %*s %*s %255s", &flags, name) >= 2 && name[0] == '@' &&
            (flags & 0x10000) && n < most) /* it listens */
            snprintf(paths[n++], 108, "%.107s", name + 1);
    }
    if (f)
        fclose(f);
    return n;
}

static socklen_t address(struct sockaddr_un *a, const char *path)
{
    memset(a, 0, sizeof *a);
    a->sun_family = AF_UNIX;
    memcpy(a->sun_path + 1, path, strlen(path));
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(path));
}

static int connect_to(const char *path)
{
    static const int types[] = {SOCK_SEQPACKET, SOCK_STREAM};
    struct sockaddr_un a;
    socklen_t length = address(&a, path);
    for (int i = 0; i < 2; i++) {
        int fd = socket(AF_UNIX, types[i], 0);
        if (connect(fd, (struct sockaddr *)&a, length) == 0)
            return fd;
        close(fd);
    }
    return -1;
}

static char rendezvous[1][108];

static void stranger(void)
{
    uint64_t random = 99;
    static char noise[1 << 18];
    int fds[60];
    for (size_t i = 0; i < sizeof noise; i++)
        noise[i] = (char)next_random(&random);
    for (int i = 0; i < 60; i++) {
        fds[i] = connect_to(rendezvous[0]);
        if (fds[i] < 0)
            continue;
        struct timeval patience = {2, 0};
        setsockopt(fds[i], SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        size_t size = i < 20 ? 0 : i < 40 ? (size_t)(next_random(&random) % 8192) : sizeof noise / 2;
        if (i < 20 && i % 2)
            continue; /* says nothing, stays */
        union {
            struct cmsghdr align;
            char bytes[CMSG_SPACE(8 * sizeof(int))];
        } control;
        struct iovec iov = {noise, size};
        struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
        if (i % 3 == 0) { /* with descriptors that nobody asked for */
            message.msg_control = control.bytes;
            message.msg_controllen = sizeof control.bytes;
            struct cmsghdr *c = CMSG_FIRSTHDR(&message);
            c->cmsg_level = SOL_SOCKET;
            c->cmsg_type = SCM_RIGHTS;
            c->cmsg_len = CMSG_LEN(8 * sizeof(int));
            for (int k = 0; k < 8; k++)
                memcpy(CMSG_DATA(c) + (size_t)k * sizeof(int), &(int){1}, sizeof(int));
        }
        sendmsg(fds[i], &message, MSG_NOSIGNAL);
        if (i % 5 == 0) {
            close(fds[i]);
            fds[i] = -1;
        }
    }
    sem_post(&board->joined);
    while (!board->over)
        sched_yield();
    _exit(0);
}

static void strangers_knock(void)
{
    if (unshare(CLONE_NEWNET) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0) {
        printf("     no name space of our own: not tried\n");
        return;
    }
    Pair pair;
    VDConfig cfg = config(1);
    int status = -1, descriptors = open_descriptors();
    new_board();
    memset(&pair, 0, sizeof pair);
    pair.devices = 1;
    pair.name = fresh_name();
    pair.client = new_client();
    pair.server = new_server();
    NEED(V(pair.client, CreateEx, NULL, pair.name.text, &cfg));
    if (!CHECK(listeners(rendezvous, 1) == 1))
        return;
    pid_t pid = start(stranger, "stranger");
    while (sem_wait(&board->joined) != 0)
        ;
    double start_time = now();
    NEED(V(pair.server, Open, NULL, pair.name.text)); /* while they knock and stay */
    CHECK(now() - start_time < 5);
    pair_begin(&pair, VDF_WriteMedia, 512, 0);
    NEED(V(pair.server, RequestBuffers, 4096, 0, 1));
    pair_activate(&pair);
    board->over = 1;
    waitpid(pid, &status, 0);
    CHECK(status == 0);
    pair_finish(&pair);
    CHECK(open_descriptors() == descriptors);
}

/* --- other users; as root only --- */



static void become_nobody(void)
{
    if (setgroups(0, NULL) != 0 || setresgid(NOBODY, NOBODY, NOBODY) != 0 || setresuid(NOBODY, NOBODY, NOBODY) != 0)
        _exit(2);
}

static void nobody_tries(void)
{
    become_nobody();
    server = new_server();
    client = new_client();
    HRESULT hr = V(server, Open, NULL, board->name.text);
    CHECK(hr == VD_E_SECURITY || hr == VD_E_INVALID);
    hr = V(client, OpenInSecondary, board->name.text);
    CHECK(hr == VD_E_SECURITY || hr == VD_E_PROTOCOL || hr == VD_E_INVALID);
    /* By the socket itself: no memory comes with the answer, and then it is closed. */
    int fd = rendezvous[0][0] ? connect_to(rendezvous[0]) : -1;
    if (fd >= 0) {
        char bytes[8192];
        union {
            struct cmsghdr align;
            char bytes[CMSG_SPACE(64 * sizeof(int))];
        } control;
        struct iovec iov = {bytes, sizeof bytes};
        struct msghdr message = {
            .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
        while (recvmsg(fd, &message, 0) > 0) {
            CHECK(message.msg_controllen == 0);
            message.msg_controllen = sizeof control.bytes;
        }
    }
    _exit(g_failures ? 1 : 0);
}

static void nobody_squats(void)
{
    become_nobody();
    struct sockaddr_un a;
    socklen_t length = address(&a, rendezvous[0]);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    CHECK(bind(fd, (struct sockaddr *)&a, length) == 0 && listen(fd, 10) == 0);
    sem_post(&board->joined);
    while (!board->over)
        sched_yield();
    _exit(g_failures ? 1 : 0);
}

static void nobody_of_the_group(void)
{
    become_nobody();
    VDConfig cfg;
    server = new_server();
    OK(V(server, Open, NULL, board->name.text));
    OK(V(server, GetConfiguration, &cfg));
    _exit(g_failures ? 1 : 0);
}

static void other_users(void)
{
    int status = -1;
    VDConfig cfg = config(1);
    if (geteuid() != 0) {
        printf("     not root: not tried\n");
        return;
    }
    if (unshare(CLONE_NEWNET) != 0)
        printf("     no name space of our own: the socket is not tried\n");
    new_board();
    client = new_client();
    NEED(V(client, CreateEx, NULL, board->name.text, &cfg));
    if (listeners(rendezvous, 1) != 1)
        rendezvous[0][0] = 0;
    pid_t pid = start(nobody_tries, "nobody_tries");
    waitpid(pid, &status, 0);
    CHECK(status == 0);
    server = new_server();
    OK(V(server, Open, NULL, board->name.text)); /* nothing was disturbed */
    V(server, Close);
    V(server, Release);
    V(client, Close);

    if (rendezvous[0][0]) { /* somebody else sits on the name */
        pid = start(nobody_squats, "nobody_squats");
        while (sem_wait(&board->joined) != 0)
            ;
        HR(V(client, CreateEx, NULL, board->name.text, &cfg), VD_E_SECURITY);
        server = new_server();
        HRESULT hr = V(server, Open, NULL, board->name.text);
        CHECK(hr == VD_E_SECURITY || hr == VD_E_INVALID);
        V(server, Release);
        board->over = 1;
        waitpid(pid, &status, 0);
        CHECK(status == 0);
    }

    /* With a group, its members may join; both ends have to be in it. */
    gid_t group = NOBODY;
    CHECK(setgroups(1, &group) == 0);
    new_board();
    IVdiEmbeddedSet *x = embedded(client);
    OK(V(x, SetAccessGroup, NOBODY));
    V(x, Release);
    NEED(V(client, CreateEx, NULL, board->name.text, &cfg));
    pid = start(nobody_of_the_group, "nobody_of_the_group");
    waitpid(pid, &status, 0);
    CHECK(status == 0);
    V(client, Close);
    V(client, Release);
    CHECK(setgroups(0, NULL) == 0);
}

/* A live set of the same name, of another process. */
static void holder_of_the_name(void)
{
    VDConfig cfg = config(1);
    client = new_client();
    NEED(V(client, CreateEx, NULL, board->name.text, &cfg));
    sem_post(&board->created);
    while (!board->over)
        sched_yield();
    OK(V(client, GetConfiguration, 0, &cfg) == VD_E_TIMEOUT ? NOERROR : VD_E_UNEXPECTED); /* undisturbed */
    _exit(g_failures ? 1 : 0);
}

static void name_is_taken(void)
{
    int status = -1;
    VDConfig cfg = config(1);
    new_board();
    pid_t pid = start(holder_of_the_name, "holder_of_the_name");
    while (sem_wait(&board->created) != 0)
        ;
    client = new_client();
    for (int i = 0; i < 10; i++)
        HR(V(client, CreateEx, NULL, board->name.text, &cfg), VD_E_PROTOCOL);
    board->over = 1;
    waitpid(pid, &status, 0);
    CHECK(status == 0);
    OK(V(client, CreateEx, NULL, board->name.text, &cfg));
    V(client, Close);
    V(client, Release);
}

int main(int argc, char **argv)
{
    static const Test tests[] = {
        TEST(name_is_taken), TEST(nothing_shrinks), TEST(unsealed_memory), TEST(strangers_knock), TEST(other_users),
        TEST(lying_messages), TEST(fuzz),
    };
    return run_tests(tests, sizeof tests / sizeof *tests, 60, argc, argv);
}
