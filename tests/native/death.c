/* What the others see when a process is killed. One orchestrator (this process, without any object of the provider)
 * forks a server, a primary client and one or two secondaries, waits until they have reported that they are where it
 * wants them, kills one, and checks what the others report: every call back within a second, the right codes, the cause
 * and the process. With "children", the victim has forked before: once by fork(), once by the bare system call, which
 * no library hears of; the children hold all its descriptors and live on.
 *
 * usage: death [test ...] */
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "harness.h"

#define BOUND 1.0 /* seconds, from section 2 of the requirements */
#define SIZE 65536

enum { SERVER, PRIMARY, SECONDARY, MAPPER, ROLES };
static const char *const role_names[] = {"server", "primary", "secondary", "mapper"};
static const DWORD causes[] = {VDI_ABORT_SERVER_DIED, VDI_ABORT_PRIMARY_DIED, VDI_ABORT_SECONDARY_DIED};

/* Where the processes are when one is killed. */
enum { CREATED, CONNECTED, CONFIGURED, IDLE, OUTSTANDING, TRAFFIC, PHASES };
static const char *const phase_names[] = {"created", "connected", "configured", "idle", "outstanding", "traffic"};

/* Shared by the orchestrator and its children; nothing of the provider's. */
typedef struct Board {
    Name name;
    int phase;
    sem_t go[ROLES];    /* orchestrator: do the next step */
    sem_t there[ROLES]; /* role: at the phase */
    sem_t seen;         /* a role has finished: its results are below */
    _Atomic int commands;
    DWORD handle;
    struct {
        HRESULT blocked; /* of the call that was waiting, or made next */
        DWORD cause, pid;
        double when;
        int sent, aborted, completed; /* server's callbacks */
        int failures;
    } result[ROLES];
    pid_t forked[2];
    _Atomic int child_runs;
} Board;
static Board *board;

static void at_phase(int role)
{
    sem_post(&board->there[role]);
    while (sem_wait(&board->go[role]) != 0)
        ;
}

static void report(int role, void *set, HRESULT hr)
{
    board->result[role].when = now();
    board->result[role].blocked = hr;
    if (set) {
        VdiAbortInfo info = abort_info(set);
        board->result[role].cause = info.cause;
        board->result[role].pid = info.pid;
    }
    board->result[role].failures = g_failures;
}

/* --- roles; each ends by _exit --- */

static IServerVirtualDevice *sdev[2];
static Sent sents[2][4];
static _Atomic int aborted_calls, completed_calls;

static void count_and_resend(Sent *sent)
{
    if (sent->command.completionCode == ERROR_OPERATION_ABORTED)
        aborted_calls++;
    else
        completed_calls++;
    board->commands++;
    if (sent->command.completionCode == ERROR_SUCCESS && board->phase == TRAFFIC) {
        if (send_it(sdev[(uintptr_t)sent->data], sent) == NOERROR)
            board->result[SERVER].sent++;
        /* a refusal has called this function again, by itself */
    }
}

static void play_server(void)
{
    IServerVirtualDeviceSet2 *set = new_server();
    NEED(V(set, Open, NULL, board->name.text));
    if (board->phase > CONNECTED) {
        NEED(V(set, BeginConfiguration, VDF_WriteMedia, 512, 0, 65536, 0));
        NEED(V(set, RequestBuffers, SIZE, 0, 8));
        NEED(V(set, EndConfiguration));
    }
    if (board->phase <= CONFIGURED)
        at_phase(SERVER);
    if (board->phase >= IDLE) {
        for (unsigned i = 0; i < 2; i++) {
            Name name = device_name(&board->name, i);
            NEED(V(set, OpenDevice, name.text, &sdev[i]));
        }
        if (board->phase >= OUTSTANDING)
            for (unsigned i = 0; i < 8; i++) {
                BYTE *buffer;
                NEED(V(set, AllocateBuffer, &buffer, SIZE, 0));
                Sent *sent = &sents[i % 2][i / 2];
                sent_init(sent, VDC_Write, buffer, SIZE);
                sent->then = count_and_resend;
                sent->data = (void *)(uintptr_t)(i % 2);
                NEED(send_it(sdev[i % 2], sent));
                board->result[SERVER].sent++;
            }
        sem_post(&board->there[SERVER]);
        HRESULT hr = V(set, ExecuteCompletionAgent);
        board->result[SERVER].aborted = aborted_calls;
        board->result[SERVER].completed = completed_calls;
        report(SERVER, hr == VD_E_ABORT ? set : NULL, hr);
    } else { /* there is nothing to wait in: the next call says it */
        VDConfig cfg;
        HRESULT hr;
        do
            hr = V(set, GetConfiguration, &cfg);
        while (hr == NOERROR && sched_yield() == 0);
        report(SERVER, set, hr);
    }
    OK(V(set, Close));
    sem_post(&board->seen);
    _exit(0);
}

static void serve_device(int role, IClientVirtualDeviceSet2 *set, unsigned number)
{
    IClientVirtualDevice *device;
    VDC_Command *command = NULL;
    HRESULT hr;
    Name name = device_name(&board->name, number);
    NEED(V(set, OpenDevice, name.text, &device));
    if (board->phase == OUTSTANDING) {
        for (int i = 0; i < 3; i++)
            NEED(V(device, GetCommand, INFINITE, &command));
        NEED(V(set, GetBufferHandle, command->buffer, &board->handle));
    }
    sem_post(&board->there[role]);
    BYTE first = command ? command->buffer[0] : 0;
    while ((hr = V(device, GetCommand, INFINITE, &command)) == NOERROR) {
        BYTE *buffer = command->buffer;
        volatile BYTE touch = buffer ? buffer[SIZE - 1] : 0;
        (void)touch;
        if (board->phase == TRAFFIC) {
            HRESULT done = V(device, CompleteCommand, command, ERROR_SUCCESS, SIZE, 0);
            if (done != NOERROR && !HR(done, VD_E_ABORT))
                break;
        }
    }
    report(role, hr == VD_E_ABORT ? set : NULL, hr);
    if (hr == VD_E_ABORT && board->phase == OUTSTANDING) {
        VDConfig cfg; /* nothing useful is left, and everything answers */
        HR(V(set, GetConfiguration, INFINITE, &cfg), VD_E_ABORT);
        HR(V(device, GetCommand, INFINITE, &command), VD_E_ABORT);
        (void)first;
        board->result[role].failures = g_failures;
    }
    OK(V(set, Close));
    V(device, Release);
    V(set, Release);
}

static void play_primary(void)
{
    IClientVirtualDeviceSet2 *set = new_client();
    VDConfig cfg = config(2);
    NEED(V(set, CreateEx, NULL, board->name.text, &cfg));
    sem_post(&board->there[PRIMARY]); /* the server may come */
    HRESULT hr = V(set, GetConfiguration, INFINITE, &cfg);
    if (hr != NOERROR) {
        report(PRIMARY, set, hr);
        OK(V(set, Close));
    } else {
        if (board->phase == CONFIGURED) {
            at_phase(PRIMARY);
            while ((hr = V(set, GetConfiguration, INFINITE, &cfg)) == NOERROR)
                sched_yield();
            report(PRIMARY, set, hr);
            OK(V(set, Close));
        } else {
            sem_post(&board->there[PRIMARY]); /* secondaries may come */
            serve_device(PRIMARY, set, 0);
        }
    }
    sem_post(&board->seen);
    _exit(0);
}

static void play_secondary(void)
{
    IClientVirtualDeviceSet2 *set = new_client();
    NEED(V(set, OpenInSecondary, board->name.text));
    serve_device(SECONDARY, set, 1);
    sem_post(&board->seen);
    _exit(0);
}

/* Joins, maps a buffer by its handle, opens no device. */
static void play_mapper(void)
{
    IClientVirtualDeviceSet2 *set = new_client();
    VDConfig cfg;
    BYTE *mapped;
    NEED(V(set, OpenInSecondary, board->name.text));
    if (board->phase == OUTSTANDING)
        NEED(V(set, MapBufferHandle, board->handle, &mapped));
    at_phase(MAPPER);
    HRESULT hr;
    while ((hr = V(set, GetConfiguration, 0, &cfg)) == NOERROR)
        sched_yield();
    report(MAPPER, set, hr);
    OK(V(set, Close));
    sem_post(&board->seen);
    _exit(0);
}

/* --- the orchestrator --- */

static pid_t pids[ROLES];

static void start(int role)
{
    static void (*const plays[])(void) = {play_server, play_primary, play_secondary, play_mapper};
    fflush(stdout);
    pids[role] = fork();
    if (pids[role] == 0) {
        g_failures = 0; /* its own */
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        watchdog(role_names[role], 20);
        plays[role]();
    }
}

static void until_there(int role)
{
    while (sem_wait(&board->there[role]) != 0)
        ;
}

static void reset(int phase)
{
    if (!board) {
        board = mmap(NULL, sizeof *board, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (board == MAP_FAILED)
            exit(2);
    }
    memset(board, 0, sizeof *board);
    board->name = fresh_name();
    board->phase = phase;
    for (int i = 0; i < ROLES; i++) {
        sem_init(&board->go[i], 1, 0);
        sem_init(&board->there[i], 1, 0);
        pids[i] = 0;
    }
    sem_init(&board->seen, 1, 0);
}

/* Brings all to `phase`, with a mapper where asked. */
static void stage(int phase, int with_secondary, int with_mapper)
{
    reset(phase);
    start(PRIMARY);
    until_there(PRIMARY);
    if (phase == CREATED)
        return;
    start(SERVER);
    if (phase <= CONFIGURED) {
        until_there(SERVER);
        if (phase == CONFIGURED)
            until_there(PRIMARY);
    } else {
        until_there(PRIMARY);
        if (with_secondary)
            start(SECONDARY);
        until_there(SERVER);
        until_there(PRIMARY);
        if (with_secondary)
            until_there(SECONDARY);
    }
    if (with_mapper) {
        start(MAPPER);
        until_there(MAPPER);
    }
}

static void let_go(void)
{
    for (int i = 0; i < ROLES; i++)
        sem_post(&board->go[i]);
}

static double kill_role(int role)
{
    double when = now();
    kill(pids[role], SIGKILL);
    return when;
}

static void reap(int role)
{
    int status;
    if (pids[role] > 0 && waitpid(pids[role], &status, 0) == pids[role])
        pids[role] = 0;
}

/* The survivors have all come back in time and say who it was. */
static void expect_aborts(int victim, pid_t pid, double killed)
{
    for (int role = 0; role < ROLES; role++)
        if (pids[role] && role != victim)
            while (sem_wait(&board->seen) != 0)
                ;
    for (int role = 0; role < ROLES; role++) {
        if (!pids[role] || role == victim)
            continue;
        int bad = g_failures;
        CHECK(board->result[role].failures == 0);
        HR(board->result[role].blocked, VD_E_ABORT);
        CHECK(board->result[role].when - killed < BOUND);
        CHECK(board->result[role].cause == causes[victim]);
        CHECK(board->result[role].pid == (DWORD)pid);
        if (role == SERVER && board->phase == OUTSTANDING)
            CHECK(board->result[role].aborted == board->result[role].sent && board->result[role].completed == 0);
        if (role == SERVER && board->phase == TRAFFIC)
            CHECK(board->result[role].aborted > 0);
        if (g_failures != bad)
            printf("     %s after the death of the %s, %s: %.3f s, cause %u, process %u\n", role_names[role],
                   role_names[victim], phase_names[board->phase], board->result[role].when - killed,
                   board->result[role].cause, board->result[role].pid);
    }
}

/* The name is free at once, and a set of that name works. */
static void name_is_free(void)
{
    pid_t child = fork();
    if (child == 0) {
        watchdog("name_is_free", 10);
        g_failures = 0;
        IClientVirtualDeviceSet2 *client = new_client();
        IServerVirtualDeviceSet2 *server = new_server();
        VDConfig cfg = config(1);
        OK(V(client, CreateEx, NULL, board->name.text, &cfg));
        OK(V(server, Open, NULL, board->name.text));
        _exit(g_failures ? 1 : 0);
    }
    int status = -1;
    waitpid(child, &status, 0);
    CHECK(status == 0);
}

static int isolated; /* no other program's sockets are in sight */

static void nothing_in_the_kernel(void)
{
    char line[512];
    FILE *f = fopen("/proc/net/unix", "r");
    int found = 0;
    while (f && fgets(line, sizeof line, f))
        found += strstr(line, "@vdi") != NULL;
    if (f)
        fclose(f);
    if (found && isolated)
        printf("     %d sockets of sets are left\n", found);
    CHECK(found == 0 || !isolated);
}

static void each_death(void)
{
    for (int round = 0; round < 5 * (OUTSTANDING + 1); round++)
        for (int victim = SERVER; victim <= SECONDARY; victim++) {
            int phase = round % (OUTSTANDING + 1);
            if ((phase == CREATED && victim != PRIMARY) || (phase < IDLE && victim == SECONDARY))
                continue;
            stage(phase, 1, phase == OUTSTANDING);
            pid_t pid = pids[victim];
            double killed = kill_role(victim);
            let_go();
            reap(victim);
            expect_aborts(victim, pid, killed);
            for (int role = 0; role < ROLES; role++)
                reap(role);
            name_is_free();
        }
    nothing_in_the_kernel();
}

/* In the middle of traffic, after a seeded number of commands. */
static void in_traffic(void)
{
    uint64_t random = 2026;
    for (int round = 0; round < 30; round++) {
        int victim = round % 3;
        stage(TRAFFIC, 1, 0);
        int target = (int)(next_random(&random) % 400);
        while (board->commands < target)
            sched_yield();
        pid_t pid = pids[victim];
        double killed = kill_role(victim);
        reap(victim);
        expect_aborts(victim, pid, killed);
        for (int role = 0; role < ROLES; role++)
            reap(role);
        name_is_free();
    }
    nothing_in_the_kernel();
}

/* All of them at once, then the name again. */
static void all_at_once(void)
{
    for (int phase = CREATED; phase < PHASES; phase++) {
        stage(phase, 1, phase == OUTSTANDING);
        for (int role = 0; role < ROLES; role++)
            if (pids[role])
                kill_role(role);
        for (int role = 0; role < ROLES; role++)
            reap(role);
        name_is_free();
    }
    nothing_in_the_kernel();
}

/* On a signal of the orchestrator the victim forks twice: in a way that libraries hear of, and in one that they do
 * not. */
static void on_signal(int number)
{
    (void)number;
    if (board->forked[0])
        return;
    pid_t heard = fork();
    if (heard == 0) {
        alarm(120); /* whatever becomes of the test */
        board->child_runs = 1; /* and what the library does in a child is done */
        for (;;)
            pause();
    }
    pid_t unheard = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (unheard == 0) {
        alarm(120);
        for (;;)
            pause();
    }
    board->forked[0] = heard;
    board->forked[1] = unheard;
}

static void die_with_children_in(int victim)
{
    signal(SIGUSR1, on_signal); /* inherited by the roles */
    for (int phase = CONNECTED; phase <= OUTSTANDING; phase++) {
        if (phase < IDLE && victim == SECONDARY)
            continue;
        stage(phase, 1, 0);
        pid_t pid = pids[victim];
        kill(pid, SIGUSR1);
        while (!*(volatile pid_t *)&board->forked[1] || !board->child_runs)
            sched_yield();
        double killed = kill_role(victim);
        let_go();
        reap(victim);
        expect_aborts(victim, pid, killed);
        for (int role = 0; role < ROLES; role++)
            reap(role);
        /* The subreaper gets the orphans. The one that no library heard of holds the name as long as it lives. */
        kill(board->forked[1], SIGKILL);
        CHECK(waitpid(board->forked[1], NULL, 0) == board->forked[1]);
        name_is_free(); /* although the other child lives */
        kill(board->forked[0], SIGKILL);
        CHECK(waitpid(board->forked[0], NULL, 0) == board->forked[0]);
    }
    signal(SIGUSR1, SIG_DFL);
}

static void server_with_children(void)
{
    die_with_children_in(SERVER);
}

static void primary_with_children(void)
{
    die_with_children_in(PRIMARY);
}

static void secondary_with_children(void)
{
    die_with_children_in(SECONDARY);
}

/* One that only mapped buffers disturbs nobody: the commands in flight, and the end, are as ever. */
static void mapper_disturbs_nobody(void)
{
    stage(TRAFFIC, 1, 1);
    kill_role(MAPPER);
    reap(MAPPER);
    int so_far = board->commands;
    while (board->commands < so_far + 500)
        sched_yield();
    CHECK(board->result[PRIMARY].blocked == NOERROR && board->result[PRIMARY].when == 0);
    CHECK(board->result[SERVER].when == 0);
    pid_t pid = pids[SERVER];
    double killed = kill_role(SERVER);
    reap(SERVER);
    expect_aborts(SERVER, pid, killed);
    for (int role = 0; role < ROLES; role++)
        reap(role);

    stage(OUTSTANDING, 1, 1);
    kill_role(MAPPER);
    reap(MAPPER);
    pid = pids[PRIMARY];
    killed = kill_role(PRIMARY); /* and what comes after is still told right */
    reap(PRIMARY);
    expect_aborts(PRIMARY, pid, killed);
    for (int role = 0; role < ROLES; role++)
        reap(role);
}

int main(int argc, char **argv)
{
    static const Test tests[] = {
        TEST(each_death), TEST(in_traffic), TEST(all_at_once), TEST(server_with_children),
        TEST(primary_with_children), TEST(secondary_with_children), TEST(mapper_disturbs_nobody),
    };
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    isolated = unshare(CLONE_NEWNET) == 0 || unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0;
    printf("%s\n", isolated ? "abstract sockets of our own" : "among the abstract sockets of others");
    int result = run_tests(tests, sizeof tests / sizeof *tests, 60, argc, argv);
    while (waitpid(-1, NULL, 0) > 0)
        ;
    return result;
}
