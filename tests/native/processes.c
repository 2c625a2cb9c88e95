/* More than one process, all of them well-behaved: forked children, secondaries that meet new memory, waits that end
 * although the other side sleeps, and what a call costs while the other side is awake. */
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "harness.h"

static Pair pair;

static int child_status(pid_t pid)
{
    int status = -1;
    waitpid(pid, &status, 0);
    return status;
}

/* In a forked child: nothing does anything, everything says so, and what was mapped can still be read. */
static void all_inert(VDC_Command *outstanding, BYTE *buffer)
{
    VDConfig cfg;
    VDC_Command *command;
    DWORD handle, count;
    BYTE *address;
    Sent sent;
    IClientVirtualDevice *device;
    IServerVirtualDevice *server_device;
    Name other = fresh_name();
    HR(V(pair.client, GetConfiguration, INFINITE, &cfg), VD_E_NOTOPEN);
    HR(V(pair.client, CreateEx, NULL, other.text, &cfg), VD_E_NOTOPEN);
    HR(V(pair.client, OpenInSecondary, pair.name.text), VD_E_NOTOPEN);
    HR(V(pair.client, OpenDevice, pair.name.text, &device), VD_E_NOTOPEN);
    HR(V(pair.client, GetBufferHandle, buffer, &handle), VD_E_NOTOPEN);
    HR(V(pair.client, MapBufferHandle, 1, &address), VD_E_NOTOPEN);
    HR(V(pair.c[0], GetCommand, INFINITE, &command), VD_E_NOTOPEN);
    HR(V(pair.c[0], CompleteCommand, outstanding, 0, 0, 0), VD_E_NOTOPEN);
    HR(V(pair.client, SignalAbort), VD_E_NOTOPEN);
    HR(V(pair.client, Close), VD_E_NOTOPEN);
    HR(V(pair.server, GetConfiguration, &cfg), VD_E_NOTOPEN);
    HR(V(pair.server, BeginConfiguration, 0, 512, 0, 65536, 0), VD_E_NOTOPEN);
    HR(V(pair.server, EndConfiguration), VD_E_NOTOPEN);
    HR(V(pair.server, RequestBuffers, 512, 0, 1), VD_E_NOTOPEN);
    HR(V(pair.server, QueryAvailableBuffers, 512, 0, &count), VD_E_NOTOPEN);
    HR(V(pair.server, AllocateBuffer, &address, 512, 0), VD_E_NOTOPEN);
    HR(V(pair.server, FreeBuffer, buffer, 4096), VD_E_NOTOPEN);
    HR(V(pair.server, OpenDevice, pair.name.text, &server_device), VD_E_NOTOPEN);
    HR(V(pair.server, ExecuteCompletionAgent), VD_E_NOTOPEN);
    sent_init(&sent, VDC_Flush, NULL, 0);
    HR(send_it(pair.s[0], &sent), VD_E_NOTOPEN);
    CHECK(sent.calls == 0);
    HR(V(pair.s[0], CloseDevice), VD_E_NOTOPEN);
    HR(V(pair.server, SignalAbort), VD_E_NOTOPEN);
    HR(V(pair.server, Close), VD_E_NOTOPEN);
    CHECK(buffer[0] == 'm' && buffer[4095] == 'm');
    for (unsigned i = 0; i < pair.devices; i++) {
        V(pair.c[i], Release);
        V(pair.s[i], Release);
    }
    V(pair.client, Release);
    V(pair.server, Release);
    CHECK(VdiLiveObjects() == 0);
}

static void forked_children_are_inert(void)
{
    int descriptors = open_descriptors();
    pair_ready(&pair, 1, 4096, 2);
    BYTE *buffer;
    Sent sent;
    OK(V(pair.server, AllocateBuffer, &buffer, 4096, 0));
    memset(buffer, 'm', 4096);
    sent_init(&sent, VDC_Write, buffer, 4096);
    OK(send_it(pair.s[0], &sent));
    VDC_Command *command = get(&pair, 0);
    for (int round = 0; round < 3; round++) {
        fflush(stdout);
        pid_t child = fork();
        if (child == 0) {
            watchdog("forked child", 20);
            g_failures = 0;
            CHECK(open_descriptors() == descriptors); /* the provider's are closed */
            all_inert(command, command->buffer);
            pair_ready(&pair, 2, 4096, 2); /* objects of its own are as good as any */
            pair_finish(&pair);
#ifdef __SANITIZE_ADDRESS__ /* what stands behind inert objects is left alone on purpose */
            _exit(g_failures ? 1 : 0);
#endif
            exit(g_failures ? 1 : 0); /* with its exit handlers */
        }
        CHECK(child_status(child) == 0);
    }
    complete(&pair, 0, command, ERROR_SUCCESS);
    wait_for(&sent);
    CHECK(sent.command.completionCode == ERROR_SUCCESS);
    pair_finish(&pair);
}

static _Atomic int stop;

static void *traffic_server(void *unused)
{
    (void)unused;
    Sent sent;
    while (!stop) {
        sent_init(&sent, VDC_Flush, NULL, 0);
        OK(send_it(pair.s[0], &sent));
        wait_for(&sent);
        CHECK(sent.command.completionCode == ERROR_SUCCESS);
    }
    OK(V(pair.s[0], CloseDevice));
    return NULL;
}

static void *traffic_client(void *unused)
{
    (void)unused;
    VDC_Command *command;
    while (V(pair.c[0], GetCommand, INFINITE, &command) == NOERROR)
        OK(V(pair.c[0], CompleteCommand, command, ERROR_SUCCESS, 0, 0));
    return NULL;
}

/* Locks may be held by other threads at the moment of the fork. */
static void forks_in_traffic(void)
{
    pthread_t threads[2];
    stop = 0;
    pair_ready(&pair, 1, 4096, 2);
    pthread_create(&threads[0], NULL, traffic_server, NULL);
    pthread_create(&threads[1], NULL, traffic_client, NULL);
    for (int i = 0; i < 60; i++) {
        pid_t child = fork();
        if (child == 0) {
            VDC_Command *command;
            Sent sent;
            g_failures = 0;
            alarm(5);
            signal(SIGALRM, SIG_DFL);
            HR(V(pair.c[0], GetCommand, INFINITE, &command), VD_E_NOTOPEN);
            sent_init(&sent, VDC_Flush, NULL, 0);
            HR(send_it(pair.s[0], &sent), VD_E_NOTOPEN);
            V(pair.c[0], Release);
            V(pair.s[0], Release);
            V(pair.client, Release);
            V(pair.server, Release);
            IClientVirtualDeviceSet2 *own = new_client();
            V(own, Release);
            _exit(g_failures || VdiLiveObjects() ? 1 : 0);
        }
        int status = child_status(child);
        if (!CHECK(status == 0)) {
            printf("     child %d ended with %x\n", i, status);
            break;
        }
    }
    stop = 1;
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    OK(pair_join_agent(&pair));
    OK(V(pair.client, Close));
    OK(V(pair.server, Close));
    pair_discard(&pair);
}

/* --- a secondary in another process, and memory that is there only after it has joined --- */

typedef struct Board {
    Name name;
    sem_t go, done;
    DWORD handle, size;
    BYTE value;
    int over;
} Board;
static Board *board;

static void new_board(void)
{
    if (!board)
        board = mmap(NULL, sizeof *board, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    memset(board, 0, sizeof *board);
    sem_init(&board->go, 1, 0);
    sem_init(&board->done, 1, 0);
}

static void wait_sem(sem_t *sem)
{
    while (sem_wait(sem) != 0)
        ;
}

static void mapping_secondary(void)
{
    IClientVirtualDeviceSet2 *set = new_client();
    wait_sem(&board->go);
    NEED(V(set, OpenInSecondary, board->name.text));
    sem_post(&board->done);
    for (;;) {
        wait_sem(&board->go);
        if (board->over)
            break;
        BYTE *mapped = NULL;
        NEED(V(set, MapBufferHandle, board->handle, &mapped));
        CHECK(mapped[0] == board->value && mapped[board->size - 1] == board->value);
        memset(mapped, board->value + 1, board->size); /* a Read's buffer: it may write */
        sem_post(&board->done);
    }
    HR(V(set, MapBufferHandle, board->handle, &(BYTE *){NULL}), VD_E_INVALID);
    OK(V(set, Close));
    V(set, Release);
    _exit(g_failures ? 1 : 0);
}

static void secondary_meets_new_memory(void)
{
    new_board();
    pid_t child = fork();
    if (child == 0) {
        watchdog("mapping_secondary", 20);
        g_failures = 0;
        mapping_secondary();
    }
    pair_ready(&pair, 1, 4096, 1);
    board->name = pair.name;
    sem_post(&board->go);
    wait_sem(&board->done);
    for (unsigned i = 0; i < 30; i++) {
        DWORD size = 128 * KIB + 512 * i;
        BYTE *buffer;
        Sent sent;
        OK(V(pair.server, RequestBuffers, size, 0, 1));
        OK(V(pair.server, AllocateBuffer, &buffer, size, 0));
        memset(buffer, (int)i, size);
        sent_init(&sent, VDC_Read, buffer, size);
        OK(send_it(pair.s[0], &sent));
        VDC_Command *command = get(&pair, 0);
        OK(V(pair.client, GetBufferHandle, command->buffer, &board->handle));
        board->size = size;
        board->value = (BYTE)i;
        sem_post(&board->go);
        wait_sem(&board->done);
        CHECK(command->buffer[0] == i + 1 && command->buffer[size - 1] == i + 1);
        complete(&pair, 0, command, ERROR_SUCCESS);
        wait_for(&sent);
        CHECK(buffer[size / 2] == i + 1);
    }
    board->over = 1;
    sem_post(&board->go);
    CHECK(child_status(child) == 0);
    pair_finish(&pair);
}

/* --- waits --- */

static void sleeping_primary(void)
{
    IClientVirtualDeviceSet2 *set = new_client();
    VDConfig cfg = config(1);
    NEED(V(set, CreateEx, NULL, board->name.text, &cfg));
    sem_post(&board->done);
    for (;;)
        pause();
}

/* Joining is bounded, although the primary client does not answer. */
static void joining_is_bounded(void)
{
    new_board();
    board->name = fresh_name();
    fflush(stdout);
    pid_t child = fork();
    if (child == 0)
        sleeping_primary();
    wait_sem(&board->done);
    kill(child, SIGSTOP);
    waitpid(child, NULL, WUNTRACED);
    IServerVirtualDeviceSet2 *server = new_server();
    double start = now();
    HR(V(server, Open, NULL, board->name.text), VD_E_TIMEOUT);
    double took = now() - start;
    CHECK(took < 7); /* 5 seconds, says the design */
    kill(child, SIGCONT);
    OK(V(server, Open, NULL, board->name.text)); /* and now it works */
    kill(child, SIGKILL);
    child_status(child);
    V(server, Release);
}

static double cpu_seconds(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

/* The client, the agent and all threads of the provider wait without burning a core. */
static void waiting_is_cheap(void)
{
    pair_ready(&pair, 1, 4096, 2);
    VDC_Command *command;
    double before = cpu_seconds();
    HR(V(pair.c[0], GetCommand, 1000, &command), VD_E_TIMEOUT);
    double used = cpu_seconds() - before;
    if (!CHECK(used < 0.05))
        printf("     %.3f s of processor time in one second of waiting\n", used);
    pair_finish(&pair);
}

/* Somebody knocks while the primary has no descriptor left: it neither burns a core nor forgets him. */
static void starved_primary(void)
{
    IClientVirtualDeviceSet2 *set = new_client();
    VDConfig cfg = config(1);
    struct rlimit limit, none;
    watchdog("starved_primary", 20);
    g_failures = 0;
    NEED(V(set, CreateEx, NULL, board->name.text, &cfg));
    getrlimit(RLIMIT_NOFILE, &limit);
    none = limit;
    int next = dup(0); /* the lowest free number is the limit */
    close(next);
    none.rlim_cur = (rlim_t)next;
    setrlimit(RLIMIT_NOFILE, &none);
    sem_post(&board->done);
    wait_sem(&board->go);
    double before = cpu_seconds();
    HR(V(set, GetConfiguration, 500, &cfg), VD_E_TIMEOUT);
    double used = cpu_seconds() - before;
    if (!CHECK(used < 0.1))
        printf("     %.3f s of processor time in half a second of waiting\n", used);
    setrlimit(RLIMIT_NOFILE, &limit);
    wait_sem(&board->go);
    _exit(g_failures ? 1 : 0);
}

static void no_descriptor_left(void)
{
    new_board();
    board->name = fresh_name();
    fflush(stdout);
    pid_t child = fork();
    if (child == 0)
        starved_primary();
    wait_sem(&board->done);
    IServerVirtualDeviceSet2 *server = new_server();
    sem_post(&board->go);
    OK(V(server, Open, NULL, board->name.text)); /* as soon as there is one again */
    sem_post(&board->go);
    CHECK(child_status(child) == 0);
    V(server, Release);
}

/* --- system calls: a thread in strict seccomp mode is killed by any but read, write and exit --- */

enum { COMMANDS = 1000 };
static Sent fast[COMMANDS];
static _Atomic int release_agent, agent_held;
static int report_pipe[2];

static void hold_agent(Sent *sent)
{
    (void)sent;
    agent_held = 1;
    while (!release_agent)
        ;
}

static void *strict_sender(void *unused)
{
    VDC_Command *command;
    (void)unused;
    int bad = prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) != 0;
    for (int i = 2; i < COMMANDS && !bad; i++)
        bad = send_it(pair.s[0], &fast[i]) != NOERROR;
    for (int i = 2; i < COMMANDS && !bad; i++)
        bad = V(pair.c[0], GetCommand, INFINITE, &command) != NOERROR ||
              V(pair.c[0], CompleteCommand, command, ERROR_SUCCESS, 0, 0) != NOERROR;
    for (int i = 0; i < 1000 && !bad; i++)
        bad = V(pair.c[0], GetCommand, 0, &command) != VD_E_TIMEOUT;
    char result = bad ? 'b' : 'g';
    if (write(report_pipe[1], &result, 1) == 1)
        syscall(SYS_exit, 0);
    return NULL;
}

static void no_system_calls_while_the_peer_is_awake(void)
{
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        pthread_t thread;
        char result = 0;
        watchdog("no_system_calls", 20);
        pair_ready(&pair, 1, 4096, 2);
        for (int warm = 0; warm < 2; warm++) { /* the second time everything that grows has grown */
            for (int i = 0; i < COMMANDS; i++)
                sent_init(&fast[i], VDC_Flush, NULL, 0);
            if (warm)
                break;
            for (int i = 0; i < COMMANDS; i++)
                NEED(send_it(pair.s[0], &fast[i]));
            VDC_Command *commands[COMMANDS];
            for (int i = 0; i < COMMANDS; i++)
                commands[i] = get(&pair, 0);
            for (int i = 0; i < COMMANDS; i++)
                complete(&pair, 0, commands[i], ERROR_SUCCESS);
            for (int i = 0; i < COMMANDS; i++)
                wait_for(&fast[i]);
        }
        fast[0].then = hold_agent; /* the agent is awake: in a callback */
        NEED(send_it(pair.s[0], &fast[0]));
        complete(&pair, 0, get(&pair, 0), ERROR_SUCCESS);
        while (!agent_held)
            sched_yield();
        NEED(send_it(pair.s[0], &fast[1])); /* finds the marks of the last sleepers, who have woken by themselves */
        complete(&pair, 0, get(&pair, 0), ERROR_SUCCESS);
        if (pipe(report_pipe) != 0 || pthread_create(&thread, NULL, strict_sender, NULL) != 0)
            _exit(2);
        _exit(read(report_pipe[0], &result, 1) == 1 && result == 'g' ? 0 : 1);
    }
    int status = child_status(child);
    if (!CHECK(status == 0))
        printf("     ended with %x\n", status);
}

int main(int argc, char **argv)
{
    static const Test tests[] = {
        TEST(forked_children_are_inert), TEST(forks_in_traffic), TEST(secondary_meets_new_memory),
        TEST(joining_is_bounded), TEST(waiting_is_cheap), TEST(no_descriptor_left),
        TEST(no_system_calls_while_the_peer_is_awake),
    };
    return run_tests(tests, sizeof tests / sizeof *tests, 30, argc, argv);
}
