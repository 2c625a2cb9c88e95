/* Faults planted on purpose, for AddressSanitizer to find: plain accesses of a program that uses its buffers wrongly.
 * Server and client are two processes. usage: faults MODE; "clean" does the same without a fault. */
#include <sys/socket.h>

#include "harness.h"

static const char *mode;

static int is(const char *what)
{
    return strcmp(mode, what) == 0;
}

static volatile BYTE sink;

/* Steps are taken in turn over a socket: one byte says that the other side may go on. */
static void pass(int fd)
{
    if (send(fd, "x", 1, MSG_NOSIGNAL) != 1)
        _exit(1);
}

static void await(int fd)
{
    char c;
    if (recv(fd, &c, 1, 0) != 1)
        _exit(1); /* the other side was stopped by its sanitizer */
}

static int client(int fd, const Name *name)
{
    VDConfig cfg = config(1);
    cfg.prefixZoneSize = 64;
    VDC_Command *command;
    IClientVirtualDevice *device;
    IClientVirtualDeviceSet2 *set = new_client();
    NEED(V(set, CreateEx, NULL, name->text, &cfg));
    pass(fd);
    NEED(V(set, GetConfiguration, INFINITE, &cfg));
    NEED(V(set, OpenDevice, name->text, &device));
    NEED(V(device, GetCommand, INFINITE, &command));
    BYTE *buffer = command->buffer;
    sink = buffer[0] + buffer[command->size - 1];
    memset(buffer - 64, 1, 64);
    if (is("client-overrun"))
        sink = buffer[command->size];
    if (is("client-far-overrun"))
        sink = buffer[command->size + 511];
    if (is("client-underrun"))
        buffer[-65] = 1;
    pass(fd); /* the server may touch it now, if it dares */
    await(fd);
    NEED(V(device, CompleteCommand, command, ERROR_SUCCESS, 4096, 0));
    if (is("client-after-completion"))
        sink = buffer[0];
    if (is("client-zone-after-completion"))
        buffer[-64] = 1;
    HR(V(device, GetCommand, INFINITE, &command), VD_E_CLOSE);
    OK(V(set, Close));
    V(device, Release);
    V(set, Release);
    return g_failures ? 2 : 0;
}

static void *run_agent(void *server)
{
    IServerVirtualDeviceSet2 *set = server;
    V(set, ExecuteCompletionAgent);
    return NULL;
}

static int server(int fd, const Name *name)
{
    BYTE *buffers[3];
    Sent sent;
    IServerVirtualDevice *device;
    pthread_t agent;
    IServerVirtualDeviceSet2 *set = new_server();
    await(fd);
    NEED(V(set, Open, NULL, name->text));
    NEED(V(set, BeginConfiguration, VDF_WriteMedia, 512, 0, 65536, 0));
    NEED(V(set, RequestBuffers, 4096, 0, 3));
    NEED(V(set, EndConfiguration));
    NEED(V(set, OpenDevice, name->text, &device));
    pthread_create(&agent, NULL, run_agent, set);
    for (int i = 0; i < 3; i++)
        NEED(V(set, AllocateBuffer, &buffers[i], 4096, 0));
    memset(buffers[1], 7, 4096);
    if (is("server-overrun"))
        buffers[1][4096] = 7;
    if (is("server-far-overrun"))
        buffers[1][4096 + 511] = 7;
    if (is("server-zone")) /* the prefix zone is not the server's */
        buffers[1][-1] = 7;
    sent_init(&sent, VDC_Write, buffers[1], 4096);
    NEED(send_it(device, &sent));
    await(fd);
    if (is("server-lent"))
        buffers[1][0] = 7;
    pass(fd);
    wait_for(&sent);
    buffers[1][0] = 8;
    NEED(V(set, FreeBuffer, buffers[2], 4096));
    if (is("server-after-free"))
        buffers[2][0] = 8;
    OK(V(device, CloseDevice));
    pthread_join(agent, NULL);
    OK(V(set, Close));
    V(device, Release);
    V(set, Release);
    return g_failures ? 2 : 0;
}

int main(int argc, char **argv)
{
    int pair[2], status = -1;
    if (argc != 2 || socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0)
        return 2;
    mode = argv[1];
    Name name = fresh_name();
    watchdog(mode, 20);
    pid_t child = fork();
    if (child == 0) {
        close(pair[0]);
        watchdog(mode, 20);
        exit(client(pair[1], &name));
    }
    close(pair[1]);
    int mine = server(pair[0], &name);
    waitpid(child, &status, 0);
    return mine ? mine : status != 0;
}
