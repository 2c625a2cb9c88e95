/* Hostile peers: one that tries to take memory away, one that sends messages that are almost right, strangers and other
 * users at the rendezvous. Whatever they do, the others get codes of the interface and go on living.
 *
 * usage: hostile [test ...]; VDI_FUZZ_ROUNDS and VDI_FUZZ_SEED for the messages */
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
#define NOBODY 65534

typedef struct Board {
    Name name;
    sem_t created, configured, joined;
    _Atomic int over;
} Board;
static Board *board;

static IServerVirtualDeviceSet2 *server;
static IClientVirtualDeviceSet2 *client;

static void *run_agent(void *unused)
{
    (void)unused;
    typed(V(server, ExecuteCompletionAgent));
    return NULL;
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
    pid_t pid = start_role(unsealed_server, "unsealed_server");
    waitpid(pid, &status, 0);
    CHECK(status == 0);
    CHECK(V(client, GetConfiguration, 0, &cfg) != NOERROR);
    V(client, Close);
    V(client, Release);

    new_board();
    pid = start_role(unsealed_primary, "unsealed_primary");
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
    pthread_create(&agent, NULL, run_agent, NULL);
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
    pid_t pid = start_role(stranger, "stranger");
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
    pid_t pid = start_role(nobody_tries, "nobody_tries");
    waitpid(pid, &status, 0);
    CHECK(status == 0);
    server = new_server();
    OK(V(server, Open, NULL, board->name.text)); /* nothing was disturbed */
    V(server, Close);
    V(server, Release);
    V(client, Close);

    if (rendezvous[0][0]) { /* somebody else sits on the name */
        pid = start_role(nobody_squats, "nobody_squats");
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
    pid = start_role(nobody_of_the_group, "nobody_of_the_group");
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
    pid_t pid = start_role(holder_of_the_name, "holder_of_the_name");
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
        TEST(lying_messages),
    };
    return run_tests(tests, sizeof tests / sizeof *tests, 60, argc, argv);
}
