/* IO-ERROR at random moments with many commands in flight (section 6.4). For each command one of two things holds: the
 * client saw it, and its code is the one that the client gave; or the client never saw it, and its code is
 * ERROR_IO_DEVICE. ClearError comes to the client only when nothing else is outstanding, and ends the state.
 *
 * usage: errors [commands [seed]] */
#include "harness.h"

#define POOL 48
#define MOST 100000

static Pair pair;
static int commands = 20000;
static uint64_t seed = 1;
static Sent pool[POOL];
static sem_t free_slots;
static uint32_t given[MOST];          /* by id: the client's code + 1, 0 for not seen */
static _Atomic uint32_t answered[MOST]; /* by id: the callback's code + 1 */
static _Atomic int lost, cleared, errors;

/* The completion routine: the slot is free when this has said so. */
static void STDMETHODCALLTYPE note(VDS_Command *command)
{
    Sent *sent = (Sent *)command;
    DWORDLONG id = command->inPosition;
    CHECK(atomic_exchange(&answered[id], command->completionCode + 1) == 0);
    sent->calls = 0;
    sem_post(&free_slots);
}

static void *client_main(void *unused)
{
    (void)unused;
    enum { HELD = 12 };
    VDC_Command *held[HELD];
    int count = 0, in_error = 0;
    uint64_t random = seed;
    for (;;) {
        VDC_Command *command = NULL;
        int room = count < HELD && next_random(&random) % 3;
        HRESULT hr = room || !count ? V(pair.c[0], GetCommand, count ? 0 : INFINITE, &command) : VD_E_TIMEOUT;
        if (hr == VD_E_CLOSE)
            break;
        if (hr == NOERROR) {
            CHECK(given[command->position] == 0); /* never twice */
            given[command->position] = 0xFFFFFFFF;
            if (command->commandCode == VDC_ClearError) {
                CHECK(count == 0 || !in_error);
                in_error = 0;
            } else {
                CHECK(!in_error); /* whatever was queued is not delivered any more */
            }
            held[count++] = command;
            continue;
        }
        HR(hr, VD_E_TIMEOUT);
        int which = (int)(next_random(&random) % (uint64_t)count);
        command = held[which];
        held[which] = held[--count];
        DWORD code = ERROR_SUCCESS;
        if (command->commandCode == VDC_ClearError)
            cleared++;
        else if (next_random(&random) % 40 == 0)
            code = (DWORD)(2000 + next_random(&random) % 100);
        given[command->position] = code + 1;
        if (code) {
            in_error = 1;
            errors++;
        }
        OK(V(pair.c[0], CompleteCommand, command, code, 0, 0));
    }
    return NULL;
}

static Sent *free_slot(void)
{
    while (sem_wait(&free_slots) != 0)
        ;
    for (int i = 0;; i = (i + 1) % POOL)
        if (pool[i].calls == 0)
            return &pool[i];
}

static HRESULT send_id(DWORD code, int id, Sent **out)
{
    Sent *sent = free_slot();
    sent_init(sent, code, NULL, 0);
    sent->calls = 1; /* taken */
    sent->command.completionRoutine = (BYTE *)(uintptr_t)note;
    sent->command.inPosition = (DWORDLONG)id;
    *out = sent;
    return send_it(pair.s[0], sent);
}

static void in_flight(void)
{
    pthread_t client;
    Sent *sent;
    sem_init(&free_slots, 0, POOL);
    pair_ready(&pair, 1, 4096, 1);
    pthread_create(&client, NULL, client_main, NULL);
    int id = 0;
    while (id < commands) {
        HRESULT hr = send_id(VDC_Flush, id++, &sent);
        if (hr == NOERROR)
            continue;
        HR(hr, VD_E_IO_ERROR);
        lost++;
        int clear = id++;
        OK(send_id(VDC_ClearError, clear, &sent));
        while (!answered[clear])
            sched_yield();
        CHECK(answered[clear] == ERROR_SUCCESS + 1);
    }
    for (int i = 0; i < id; i++) /* a server waits for what is out before it closes */
        while (!answered[i])
            sched_yield();
    OK(V(pair.s[0], CloseDevice));
    pthread_join(client, NULL);
    OK(pair_join_agent(&pair));
    int unseen = 0;
    for (int i = 0; i < id; i++) {
        uint32_t expected = given[i] ? given[i] : ERROR_IO_DEVICE + 1;
        unseen += !given[i];
        if (answered[i] != expected) {
            printf("     command %d: client %d, server %d\n", i, (int)given[i] - 1, (int)answered[i] - 1);
            g_failures++;
            break;
        }
    }
    printf("     %d commands, %d errors, %d cleared, %d refused, %d never delivered\n", id, errors, cleared, lost,
           unseen - lost);
    CHECK(errors > 0 && cleared > 0 && lost > 0 && unseen > lost);
    OK(V(pair.client, Close));
    OK(V(pair.server, Close));
    pair_discard(&pair);
}

int main(int argc, char **argv)
{
    static const Test tests[] = {TEST(in_flight)};
    if (argc > 1)
        commands = atoi(argv[1]) < MOST - 2 ? atoi(argv[1]) : MOST - 2;
    if (argc > 2)
        seed = (uint64_t)atoll(argv[2]);
    return run_tests(tests, 1, 60, 1, argv);
}
