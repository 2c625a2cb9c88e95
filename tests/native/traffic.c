/* Both halves in one process and on one mapping, all threads busy, every byte written and read by plain accesses: what
 * ThreadSanitizer needs to see whether the rings publish what they hand over. usage: traffic [commands] */
#include "harness.h"

#define DEVICES 3
#define DEPTH 4
#define SIZE 4096

static Pair pair;
static int commands = 2000;

static BYTE pattern(unsigned device, int number, unsigned at)
{
    return (BYTE)(device * 31 + (unsigned)number * 7 + at);
}

/* Writes and Reads in turn, DEPTH in flight. */
static void *serve(void *argument)
{
    unsigned device = (unsigned)(uintptr_t)argument;
    Sent sent[DEPTH];
    BYTE *buffers[DEPTH];
    for (int i = 0; i < DEPTH; i++)
        NEED(V(pair.server, AllocateBuffer, &buffers[i], SIZE, 0));
    for (int n = 0; n < commands + DEPTH; n++) {
        int slot = n % DEPTH, before = n - DEPTH;
        if (before >= 0) {
            wait_for(&sent[slot]);
            CHECK(sent[slot].command.completionCode == ERROR_SUCCESS);
            CHECK(sent[slot].command.bytesTransferred == SIZE);
            if (sent[slot].command.commandCode == VDC_Read)
                for (unsigned at = 0; at < SIZE; at += 37)
                    CHECK(buffers[slot][at] == pattern(device, before + 1, at));
        }
        if (n >= commands)
            continue;
        sent_init(&sent[slot], n % 2 ? VDC_Read : VDC_Write, buffers[slot], SIZE);
        if (n % 2 == 0)
            for (unsigned at = 0; at < SIZE; at++)
                buffers[slot][at] = pattern(device, n, at);
        OK(send_it(pair.s[device], &sent[slot]));
    }
    for (int i = 0; i < DEPTH; i++)
        OK(V(pair.server, FreeBuffer, buffers[i], SIZE));
    OK(V(pair.s[device], CloseDevice));
    return NULL;
}

static void *take(void *argument)
{
    unsigned device = (unsigned)(uintptr_t)argument;
    HRESULT hr;
    VDC_Command *command;
    for (int n = 0; (hr = V(pair.c[device], GetCommand, INFINITE, &command)) == NOERROR; n++) {
        CHECK(command->size == SIZE);
        if (command->commandCode == VDC_Write) {
            for (unsigned at = 0; at < SIZE; at += 37)
                CHECK(command->buffer[at] == pattern(device, n, at));
        } else {
            for (unsigned at = 0; at < SIZE; at++)
                command->buffer[at] = pattern(device, n + 1, at);
        }
        OK(V(pair.c[device], CompleteCommand, command, ERROR_SUCCESS, SIZE, 0));
    }
    HR(hr, VD_E_CLOSE);
    return NULL;
}

static void all_threads(void)
{
    pthread_t threads[2 * DEVICES];
    pair_ready(&pair, DEVICES, SIZE, DEVICES * DEPTH);
    for (unsigned i = 0; i < DEVICES; i++) {
        pthread_create(&threads[2 * i], NULL, serve, (void *)(uintptr_t)i);
        pthread_create(&threads[2 * i + 1], NULL, take, (void *)(uintptr_t)i);
    }
    for (unsigned i = 0; i < 2 * DEVICES; i++)
        pthread_join(threads[i], NULL);
    OK(pair_join_agent(&pair));
    OK(V(pair.client, Close));
    OK(V(pair.server, Close));
    pair_discard(&pair);
}

int main(int argc, char **argv)
{
    static const Test tests[] = {TEST(all_threads)};
    if (argc > 1)
        commands = atoi(argv[1]);
    return run_tests(tests, 1, 60, 1, argv);
}
