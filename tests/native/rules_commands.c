/* Rules of sections 5.4, 6.4, 6.5, 7.1 and 9: one callback for each SendCommand, IO-ERROR and ClearError with several
 * commands in flight, aborts, ends, serverTimeOut. Both halves in this process. */
#include "harness.h"

#define SENT 8

static Pair pair;
static Sent sent[SENT];
static BYTE *buffers[SENT];

/* Sends `count` writes of 4096 bytes to device 0. */
static void send_writes(int count)
{
    for (int i = 0; i < count; i++) {
        NEED(V(pair.server, AllocateBuffer, &buffers[i], 4096, 0));
        memset(buffers[i], 'a' + i, 4096);
        sent_init(&sent[i], VDC_Write, buffers[i], 4096);
        OK(send_it(pair.s[0], &sent[i]));
    }
}

static void expect_done(Sent *s, DWORD code)
{
    wait_for(s);
    CHECK(s->calls == 1);
    if (s->command.completionCode != code)
        printf("     completed with %u instead of %u\n", s->command.completionCode, code);
    CHECK(s->command.completionCode == code);
}

static void expect_none(unsigned device)
{
    VDC_Command *command = NULL;
    HR(V(pair.c[device], GetCommand, 0, &command), VD_E_TIMEOUT);
}

static void expect_refused(Sent *s, HRESULT hr, DWORD code)
{
    HR(send_it(pair.s[0], s), hr);
    CHECK(s->calls == 1);
    CHECK(s->command.completionCode == code);
    CHECK(pthread_equal(s->thread, pthread_self()));
}

static void values_travel(void)
{
    pair_ready(&pair, 1, 4096, 8);
    BYTE *buffer;
    NEED(V(pair.server, AllocateBuffer, &buffer, 4096, 0));
    static const DWORD codes[] = {VDC_Read, VDC_Write, VDC_Rewind, VDC_WriteMark, VDC_SkipMarks, VDC_SkipBlocks,
                                  VDC_Load, VDC_GetPosition, VDC_SetPosition, VDC_Discard, VDC_Flush, VDC_Snapshot,
                                  VDC_MountSnapshot, VDC_PrepareToFreeze, VDC_ClearError, VDC_Complete, 77, 0x80000000};
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        int transfer = codes[i] == VDC_Read || codes[i] == VDC_Write;
        sent_init(&sent[0], codes[i], transfer ? buffer : NULL, transfer ? 1024 : (DWORD)i);
        sent[0].command.inPosition = 0x123456789ABCDEF0u + i;
        OK(send_it(pair.s[0], &sent[0]));
        VDC_Command *command = get(&pair, 0);
        CHECK(command->commandCode == codes[i]);
        CHECK(command->size == (transfer ? 1024u : (DWORD)i));
        CHECK(command->position == 0x123456789ABCDEF0u + i);
        CHECK((command->buffer != NULL) == transfer);
        OK(V(pair.c[0], CompleteCommand, command, ERROR_SUCCESS, transfer ? 1000 : 0, 0xFEDCBA9876543210u - i));
        expect_done(&sent[0], ERROR_SUCCESS);
        CHECK(sent[0].command.bytesTransferred == (transfer ? 1000u : 0u));
        CHECK(sent[0].command.outPosition == 0xFEDCBA9876543210u - i);
        CHECK(pthread_equal(sent[0].thread, pair.agent));
    }
    /* A partial count with an error is honoured (Q21). */
    sent_init(&sent[0], VDC_Read, buffer, 4096);
    OK(send_it(pair.s[0], &sent[0]));
    VDC_Command *command = get(&pair, 0);
    memset(command->buffer, 7, 100);
    OK(V(pair.c[0], CompleteCommand, command, ERROR_HANDLE_EOF, 100, 0));
    expect_done(&sent[0], ERROR_HANDLE_EOF);
    CHECK(sent[0].command.bytesTransferred == 100 && buffer[99] == 7);
    sent_init(&sent[1], VDC_ClearError, NULL, 0);
    OK(send_it(pair.s[0], &sent[1]));
    complete(&pair, 0, get(&pair, 0), ERROR_SUCCESS);
    expect_done(&sent[1], ERROR_SUCCESS);
    /* More bytes than there were: refused, or at least not believed by the server. */
    sent_init(&sent[0], VDC_Read, buffer, 4096);
    OK(send_it(pair.s[0], &sent[0]));
    command = get(&pair, 0);
    HRESULT hr = V(pair.c[0], CompleteCommand, command, ERROR_SUCCESS, 0xFFFFFFFF, 0);
    if (hr == VD_E_INVALID)
        OK(V(pair.c[0], CompleteCommand, command, ERROR_SUCCESS, 4096, 0));
    else
        OK(hr);
    expect_done(&sent[0], ERROR_SUCCESS);
    CHECK(sent[0].command.bytesTransferred <= 4096);
    pair_finish(&pair);
}

static void any_order(void)
{
    pair_ready(&pair, 1, 4096, 8);
    static const int order[] = {3, 0, 4, 1, 2};
    VDC_Command *commands[5];
    send_writes(5);
    for (int i = 0; i < 5; i++) {
        commands[i] = get(&pair, 0);
        CHECK(commands[i]->buffer[0] == 'a' + i && commands[i]->buffer[4095] == 'a' + i);
    }
    for (int i = 0; i < 5; i++) {
        complete(&pair, 0, commands[order[i]], ERROR_SUCCESS);
        expect_done(&sent[order[i]], ERROR_SUCCESS);
        HR(V(pair.c[0], CompleteCommand, commands[order[i]], ERROR_SUCCESS, 0, 0), VD_E_INVALID);
    }
    pair_finish(&pair);
}

static int resubmitted;

static void resubmit(Sent *s)
{
    if (++resubmitted < 200)
        CHECK(send_it(pair.s[0], s) == NOERROR);
}

static void reuse_in_callback(void)
{
    pair_ready(&pair, 1, 4096, 1);
    resubmitted = 0;
    sent_init(&sent[0], VDC_Flush, NULL, 0);
    sent[0].then = resubmit;
    OK(send_it(pair.s[0], &sent[0]));
    for (int i = 0; i < 200; i++)
        complete(&pair, 0, get(&pair, 0), ERROR_SUCCESS);
    for (int i = 0; i < 200; i++)
        wait_for(&sent[0]);
    CHECK(sent[0].calls == 200);
    pair_finish(&pair);
}

static void refusals(void)
{
    pair_ready(&pair, 1, 4096, 2);
    BYTE *buffer, outside[512];
    NEED(V(pair.server, AllocateBuffer, &buffer, 4096, 0));
    HR(V(pair.s[0], SendCommand, NULL), VD_E_INVALID);
    sent_init(&sent[0], VDC_Flush, NULL, 0);
    sent[0].command.completionRoutine = NULL;
    HR(send_it(pair.s[0], &sent[0]), VD_E_INVALID);
    CHECK(sent[0].calls == 0);
    static const DWORD sizes[] = {4097, 8192, 0x7FFFFFFF, 0x80000000, 0xFFFFF000, 0xFFFFFFFF};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        sent_init(&sent[0], i & 1 ? VDC_Read : VDC_Write, buffer, sizes[i]);
        expect_refused(&sent[0], VD_E_INVALID, ERROR_INVALID_PARAMETER);
    }
    BYTE *const strange[] = {NULL, outside, buffer + 1, buffer + 512, buffer - 1, (BYTE *)(uintptr_t)UINT64_MAX};
    for (size_t i = 0; i < sizeof strange / sizeof *strange; i++) {
        sent_init(&sent[0], VDC_Write, strange[i], 512);
        expect_refused(&sent[0], VD_E_INVALID, ERROR_INVALID_PARAMETER);
    }
    expect_none(0); /* the client saw none of these */
    OK(V(pair.s[0], CloseDevice));
    sent_init(&sent[0], VDC_Flush, NULL, 0);
    expect_refused(&sent[0], VD_E_PROTOCOL, ERROR_INVALID_HANDLE);
    OK(V(pair.client, SignalAbort));
    sent_init(&sent[0], VDC_Flush, NULL, 0);
    expect_refused(&sent[0], VD_E_ABORT, ERROR_OPERATION_ABORTED);
    pair_discard(&pair);
}

#define MANY 5000
static Sent many[MANY];

static void queue_full(void)
{
    pair_ready(&pair, 1, 4096, 1);
    int accepted = 0;
    for (; accepted < MANY; accepted++) {
        sent_init(&many[accepted], VDC_Flush, NULL, 0);
        if (send_it(pair.s[0], &many[accepted]) != NOERROR)
            break;
    }
    CHECK(accepted >= 4095 && accepted <= 4096);
    CHECK(many[accepted].calls == 1 && many[accepted].command.completionCode == ERROR_NO_SYSTEM_RESOURCES);
    CHECK(pthread_equal(many[accepted].thread, pthread_self()));
    sent_init(&sent[0], VDC_Flush, NULL, 0);
    expect_refused(&sent[0], VD_E_QUEUE_FULL, ERROR_NO_SYSTEM_RESOURCES);
    for (int i = 0; i < 100; i++) { /* as soon as one is taken and completed there is room again */
        complete(&pair, 0, get(&pair, 0), ERROR_SUCCESS);
        wait_for(&many[i]);
        CHECK(many[i].command.completionCode == ERROR_SUCCESS);
    }
    sent_init(&sent[0], VDC_Flush, NULL, 0);
    OK(send_it(pair.s[0], &sent[0]));
    OK(V(pair.server, SignalAbort));
    HR(pair_join_agent(&pair), VD_E_ABORT);
    for (int i = 100; i < accepted; i++)
        CHECK(many[i].calls == 1 && many[i].command.completionCode == ERROR_OPERATION_ABORTED);
    CHECK(sent[0].calls == 1 && sent[0].command.completionCode == ERROR_OPERATION_ABORTED);
    pair_discard(&pair);
}

static void io_error(void)
{
    pair_ready(&pair, 2, 4096, 8);
    VDC_Command *commands[3];
    Sent refused, clear, other;
    send_writes(5);
    for (int i = 0; i < 3; i++)
        commands[i] = get(&pair, 0);
    complete(&pair, 0, commands[1], ERROR_DISK_FULL);
    expect_done(&sent[1], ERROR_DISK_FULL);
    expect_done(&sent[3], ERROR_IO_DEVICE); /* queued, never delivered */
    expect_done(&sent[4], ERROR_IO_DEVICE);
    expect_none(0);
    sent_init(&refused, VDC_Flush, NULL, 0);
    expect_refused(&refused, VD_E_IO_ERROR, ERROR_IO_DEVICE);
    sent_init(&other, VDC_Flush, NULL, 0); /* the other device does not care */
    OK(send_it(pair.s[1], &other));
    complete(&pair, 1, get(&pair, 1), ERROR_SUCCESS);
    expect_done(&other, ERROR_SUCCESS);
    sent_init(&clear, VDC_ClearError, NULL, 0);
    OK(send_it(pair.s[0], &clear));
    expect_none(0); /* withheld: two are outstanding */
    complete(&pair, 0, commands[0], ERROR_SUCCESS);
    expect_done(&sent[0], ERROR_SUCCESS); /* passed on as it is */
    expect_none(0);
    sent_init(&refused, VDC_Write, buffers[0], 512);
    expect_refused(&refused, VD_E_IO_ERROR, ERROR_IO_DEVICE);
    complete(&pair, 0, commands[2], ERROR_HANDLE_EOF);
    expect_done(&sent[2], ERROR_HANDLE_EOF);
    VDC_Command *command = get(&pair, 0);
    CHECK(command->commandCode == VDC_ClearError);
    complete(&pair, 0, command, ERROR_SUCCESS);
    expect_done(&clear, ERROR_SUCCESS);
    sent_init(&sent[0], VDC_Write, buffers[0], 4096);
    OK(send_it(pair.s[0], &sent[0]));
    complete(&pair, 0, get(&pair, 0), ERROR_SUCCESS);
    expect_done(&sent[0], ERROR_SUCCESS);
    pair_finish(&pair);
}

static void each_error_code(void)
{
    static const DWORD codes[] = {ERROR_HANDLE_EOF, ERROR_FILEMARK_DETECTED, ERROR_END_OF_MEDIA, ERROR_NOT_SUPPORTED,
                                  ERROR_NO_DATA_DETECTED, 12345, 0xFFFFFFFF};
    pair_ready(&pair, 1, 4096, 1);
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        sent_init(&sent[0], VDC_Flush, NULL, 0);
        OK(send_it(pair.s[0], &sent[0]));
        complete(&pair, 0, get(&pair, 0), codes[i]);
        expect_done(&sent[0], codes[i]);
        sent_init(&sent[1], VDC_Flush, NULL, 0);
        expect_refused(&sent[1], VD_E_IO_ERROR, ERROR_IO_DEVICE);
        /* ClearError answered with an error: still IO-ERROR, and may be sent again. */
        sent_init(&sent[2], VDC_ClearError, NULL, 0);
        OK(send_it(pair.s[0], &sent[2]));
        complete(&pair, 0, get(&pair, 0), ERROR_NOT_SUPPORTED);
        expect_done(&sent[2], ERROR_NOT_SUPPORTED);
        sent_init(&sent[3], VDC_Flush, NULL, 0);
        expect_refused(&sent[3], VD_E_IO_ERROR, ERROR_IO_DEVICE);
        sent_init(&sent[4], VDC_ClearError, NULL, 0);
        OK(send_it(pair.s[0], &sent[4]));
        complete(&pair, 0, get(&pair, 0), ERROR_SUCCESS);
        expect_done(&sent[4], ERROR_SUCCESS);
    }
    /* ClearError in Active: an ordinary command, whose failure is an error like any other. */
    sent_init(&sent[0], VDC_ClearError, NULL, 0);
    OK(send_it(pair.s[0], &sent[0]));
    complete(&pair, 0, get(&pair, 0), ERROR_SUCCESS);
    expect_done(&sent[0], ERROR_SUCCESS);
    sent_init(&sent[0], VDC_ClearError, NULL, 0);
    OK(send_it(pair.s[0], &sent[0]));
    complete(&pair, 0, get(&pair, 0), ERROR_IO_DEVICE);
    expect_done(&sent[0], ERROR_IO_DEVICE);
    sent_init(&sent[1], VDC_Flush, NULL, 0);
    expect_refused(&sent[1], VD_E_IO_ERROR, ERROR_IO_DEVICE);
    pair_finish(&pair); /* CloseDevice in IO-ERROR: VD_E_CLOSE for the client */
}

static void abort_in_io_error(void)
{
    pair_ready(&pair, 1, 4096, 8);
    Sent clear;
    VDC_Command *commands[2];
    send_writes(2);
    commands[0] = get(&pair, 0);
    commands[1] = get(&pair, 0);
    complete(&pair, 0, commands[0], ERROR_IO_DEVICE);
    expect_done(&sent[0], ERROR_IO_DEVICE);
    sent_init(&clear, VDC_ClearError, NULL, 0);
    OK(send_it(pair.s[0], &clear));
    expect_none(0);
    OK(V(pair.client, SignalAbort));
    expect_done(&clear, ERROR_OPERATION_ABORTED);
    expect_done(&sent[1], ERROR_OPERATION_ABORTED);
    VDC_Command *command;
    HR(V(pair.c[0], GetCommand, INFINITE, &command), VD_E_ABORT);
    HR(V(pair.c[0], CompleteCommand, commands[1], ERROR_SUCCESS, 0, 0), VD_E_ABORT);
    HR(pair_join_agent(&pair), VD_E_ABORT);
    pair_discard(&pair);
}

typedef struct Waiter {
    pthread_t thread;
    HRESULT hr;
    unsigned device;
} Waiter;

static void *wait_for_command(void *argument)
{
    Waiter *waiter = argument;
    VDC_Command *command;
    waiter->hr = V(pair.c[waiter->device], GetCommand, INFINITE, &command);
    return NULL;
}

static void *wait_for_configuration(void *argument)
{
    Waiter *waiter = argument;
    VDConfig cfg;
    waiter->hr = V(pair.client, GetConfiguration, INFINITE, &cfg);
    return NULL;
}

/* Aborted by one side or the other with commands queued, outstanding and waited for. */
static void abort_by(int server)
{
    pair_ready(&pair, 2, 4096, 8);
    Waiter waiter = {.device = 1};
    pthread_create(&waiter.thread, NULL, wait_for_command, &waiter);
    send_writes(4);
    VDC_Command *outstanding = get(&pair, 0);
    OK(server ? V(pair.server, SignalAbort) : V(pair.client, SignalAbort));
    OK(server ? V(pair.server, SignalAbort) : V(pair.client, SignalAbort)); /* again: nothing */
    HR(pair_join_agent(&pair), VD_E_ABORT);
    for (int i = 0; i < 4; i++)
        expect_done(&sent[i], ERROR_OPERATION_ABORTED);
    pthread_join(waiter.thread, NULL);
    HR(waiter.hr, VD_E_ABORT);
    HR(V(pair.c[0], CompleteCommand, outstanding, ERROR_SUCCESS, 4096, 0), VD_E_ABORT);
    VdiAbortInfo info = abort_info(server ? (void *)pair.client : (void *)pair.server);
    CHECK(info.cause == VDI_ABORT_SIGNALLED);
    CHECK(info.pid == (DWORD)getpid());
    /* Both sides may touch what they hold until their own Close. */
    CHECK(outstanding->buffer[0] == 'a');
    memset(buffers[1], 9, 4096);
    OK(V(pair.server, Close));
    CHECK(outstanding->buffer[4095] == 'a');
    HR(V(pair.c[0], GetCommand, 0, &outstanding), VD_E_ABORT); /* the server's Close un-aborts nothing (Q26) */
    pair_discard(&pair);
}

static void aborts(void)
{
    abort_by(0);
    abort_by(1);
}

static void abort_while_configuring(void)
{
    for (int server = 0; server < 2; server++) {
        VDConfig cfg = config(1);
        pair_create(&pair, &cfg);
        Waiter waiters[3];
        for (int i = 0; i < 3; i++)
            pthread_create(&waiters[i].thread, NULL, wait_for_configuration, &waiters[i]);
        OK(server ? V(pair.server, SignalAbort) : V(pair.client, SignalAbort));
        for (int i = 0; i < 3; i++) {
            pthread_join(waiters[i].thread, NULL);
            HR(waiters[i].hr, VD_E_ABORT);
        }
        HR(V(pair.server, BeginConfiguration, VDF_WriteMedia, 512, 0, 64 * KIB, 0), VD_E_ABORT);
        pair_discard(&pair);
    }
}

static void reason_travels(void)
{
    pair_ready(&pair, 1, 4096, 1);
    IVdiEmbeddedSet *x = embedded(pair.client);
    char text[600], longest[400];
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = 0;
    snprintf(text, sizeof text, "stripe 3: %s", longest);
    OK(V(x, SignalAbortWithReason, text)); /* longer than there is room: cut */
    VdiAbortInfo info = abort_info(pair.server);
    CHECK(strncmp(info.reason, "stripe 3: xxx", 13) == 0 && strlen(info.reason) <= 255);
    V(x, Release);
    pair_discard(&pair);
}

/* --- ends --- */

static void queued_before_close(void)
{
    pair_ready(&pair, 1, 4096, 8);
    send_writes(3);
    VDC_Command *first = get(&pair, 0), *command;
    OK(V(pair.s[0], CloseDevice));
    VDC_Command *second = get(&pair, 0), *third = get(&pair, 0);
    complete(&pair, 0, second, ERROR_SUCCESS);
    complete(&pair, 0, first, ERROR_SUCCESS);
    complete(&pair, 0, third, ERROR_SUCCESS);
    for (int i = 0; i < 3; i++)
        expect_done(&sent[i], ERROR_SUCCESS);
    HR(V(pair.c[0], GetCommand, INFINITE, &command), VD_E_CLOSE);
    HR(V(pair.c[0], GetCommand, INFINITE, &command), VD_E_CLOSE);
    HR(V(pair.c[0], GetCommand, 0, &command), VD_E_CLOSE);
    OK(pair_join_agent(&pair));
    OK(V(pair.client, Close));
    HR(V(pair.c[0], GetCommand, 0, &command), VD_E_PROTOCOL);
    OK(V(pair.server, Close));
    HR(V(pair.server, Close), VD_E_PROTOCOL);
    HR(V(pair.client, Close), VD_E_PROTOCOL);
    pair_discard(&pair);
}

static HRESULT in_callback;
static int what_in_callback;

static void end_in_callback(Sent *s)
{
    (void)s;
    in_callback = what_in_callback == 0   ? V(pair.server, Close)
                  : what_in_callback == 1 ? V(pair.server, SignalAbort)
                                          : V(pair.s[0], CloseDevice);
}

static void ends_from_callback(void)
{
    for (what_in_callback = 0; what_in_callback < 3; what_in_callback++) {
        pair_ready(&pair, 1, 4096, 8);
        send_writes(3);
        sent[0].then = end_in_callback;
        VDC_Command *command = get(&pair, 0);
        if (what_in_callback == 2) { /* an ordinary end: nothing else may be outstanding */
            complete(&pair, 0, get(&pair, 0), ERROR_SUCCESS);
            complete(&pair, 0, get(&pair, 0), ERROR_SUCCESS);
            expect_done(&sent[1], ERROR_SUCCESS);
            expect_done(&sent[2], ERROR_SUCCESS);
        }
        complete(&pair, 0, command, ERROR_SUCCESS);
        expect_done(&sent[0], ERROR_SUCCESS);
        HRESULT agent_result = pair_join_agent(&pair);
        if (what_in_callback == 2) {
            OK(in_callback);
            OK(agent_result);
            HR(V(pair.c[0], GetCommand, INFINITE, &command), VD_E_CLOSE);
            OK(V(pair.client, Close));
            OK(V(pair.server, Close));
        } else {
            HR(in_callback, what_in_callback == 0 ? VD_E_PROTOCOL : NOERROR); /* Close with a device open aborts */
            if (what_in_callback == 1)
                HR(agent_result, VD_E_ABORT);
            expect_done(&sent[1], ERROR_OPERATION_ABORTED);
            expect_done(&sent[2], ERROR_OPERATION_ABORTED);
            HR(V(pair.c[0], GetCommand, INFINITE, &command), VD_E_ABORT);
        }
        pair_discard(&pair);
    }
}

static void drop_in_callback(Sent *s)
{
    (void)s;
    in_callback = V(pair.client, Close); /* the other half, from the server's agent */
    CHECK(V(pair.server, Release) == 0); /* the last reference: closes, under the agent that is running this */
}

static void release_in_callback(void)
{
    pair_ready(&pair, 1, 4096, 8);
    send_writes(3);
    sent[0].then = drop_in_callback;
    complete(&pair, 0, get(&pair, 0), ERROR_SUCCESS);
    expect_done(&sent[0], ERROR_SUCCESS);
    pthread_join(pair.agent, NULL);
    HR(in_callback, VD_E_OPEN);
    expect_done(&sent[1], ERROR_OPERATION_ABORTED);
    expect_done(&sent[2], ERROR_OPERATION_ABORTED);
    Sent late;
    sent_init(&late, VDC_Flush, NULL, 0);
    expect_refused(&late, VD_E_PROTOCOL, ERROR_INVALID_HANDLE); /* the device is still there, and harmless */
    V(pair.s[0], Release);
    V(pair.c[0], Release);
    V(pair.client, Release);
}

/* Close while other threads wait inside. */
static void close_while_waiting(void)
{
    pair_ready(&pair, 2, 4096, 8);
    send_writes(2);
    VDC_Command *command = get(&pair, 0);
    (void)command;
    Waiter waiter = {.device = 1};
    pthread_create(&waiter.thread, NULL, wait_for_command, &waiter);
    HR(V(pair.server, Close), VD_E_PROTOCOL); /* with the agent waiting in another thread */
    pair_join_agent(&pair);
    expect_done(&sent[0], ERROR_OPERATION_ABORTED);
    expect_done(&sent[1], ERROR_OPERATION_ABORTED);
    pthread_join(waiter.thread, NULL);
    HR(waiter.hr, VD_E_ABORT);
    pair_discard(&pair);

    pair_ready(&pair, 1, 4096, 8);
    waiter.device = 0;
    pthread_create(&waiter.thread, NULL, wait_for_command, &waiter);
    HR(V(pair.client, Close), VD_E_OPEN);
    pthread_join(waiter.thread, NULL);
    CHECK(waiter.hr == VD_E_ABORT || waiter.hr == VD_E_PROTOCOL); /* before or after Close had ended */
    HR(pair_join_agent(&pair), VD_E_ABORT);
    CHECK(abort_info(pair.server).cause == VDI_ABORT_CLOSED);
    pair_discard(&pair);

    VDConfig cfg = config(1);
    pair_create(&pair, &cfg);
    pthread_create(&waiter.thread, NULL, wait_for_configuration, &waiter);
    OK(V(pair.client, Close));
    pthread_join(waiter.thread, NULL);
    CHECK(waiter.hr == VD_E_ABORT || waiter.hr == VD_E_PROTOCOL);
    pair_discard(&pair);
}

/* No agent ever ran: Close makes the callbacks, or the agent that comes after the abort. */
static void callbacks_without_agent(void)
{
    for (int agent_after = 0; agent_after < 2; agent_after++) {
        VDConfig cfg = config(1);
        pair_create(&pair, &cfg);
        pair_begin(&pair, VDF_WriteMedia, 512, 0);
        NEED(V(pair.server, EndConfiguration));
        NEED(V(pair.client, GetConfiguration, INFINITE, &cfg));
        NEED(V(pair.server, OpenDevice, pair.name.text, &pair.s[0]));
        sent_init(&sent[0], VDC_Flush, NULL, 0);
        OK(send_it(pair.s[0], &sent[0]));
        OK(V(pair.server, SignalAbort));
        CHECK(sent[0].calls == 0);
        if (agent_after)
            HR(V(pair.server, ExecuteCompletionAgent), VD_E_ABORT);
        OK(V(pair.server, Close));
        expect_done(&sent[0], ERROR_OPERATION_ABORTED);
        pair_discard(&pair);
    }
}

/* --- time --- */

/* Waits so long by the clock of the interface itself; device `device` has nothing to deliver. */
static void let_pass(unsigned device, DWORD ms)
{
    VDC_Command *command;
    double start = now();
    HR(V(pair.c[device], GetCommand, ms, &command), VD_E_TIMEOUT);
    CHECK(now() - start >= ms / 1000.0 - 0.001);
}

static void server_timeout(void)
{
    const DWORD interval = 150;
    VDConfig cfg = config(2);
    cfg.serverTimeOut = interval;
    pair_create(&pair, &cfg);
    pair_begin(&pair, VDF_WriteMedia, 512, 0);
    NEED(V(pair.server, RequestBuffers, 4096, 0, 8));
    pair_activate(&pair);
    let_pass(0, 4 * interval); /* nothing pending: no count */
    send_writes(2);
    complete(&pair, 0, get(&pair, 0), ERROR_SUCCESS);
    double last = now();
    expect_done(&sent[0], ERROR_SUCCESS);
    let_pass(1, interval); /* within the first interval since the last completion */
    VDC_Command *command = get(&pair, 0);
    complete(&pair, 0, command, ERROR_SUCCESS); /* starts the count again */
    expect_done(&sent[1], ERROR_SUCCESS);
    last = now();
    send_writes(1);
    HR(pair_join_agent(&pair), VD_E_ABORT);
    double took = now() - last;
    CHECK(took >= 2 * interval / 1000.0);
    CHECK(took < 5);
    expect_done(&sent[0], ERROR_OPERATION_ABORTED);
    CHECK(abort_info(pair.client).cause == VDI_ABORT_TIMEOUT);
    HR(V(pair.c[1], GetCommand, INFINITE, &command), VD_E_ABORT);
    pair_discard(&pair);
}

/* A slow but living client is never aborted: one completion in each interval and a half. */
static void server_timeout_restarts(void)
{
    const DWORD interval = 200;
    VDConfig cfg = config(2);
    cfg.serverTimeOut = interval;
    pair_create(&pair, &cfg);
    pair_begin(&pair, VDF_WriteMedia, 512, 0);
    NEED(V(pair.server, RequestBuffers, 4096, 0, 8));
    pair_activate(&pair);
    send_writes(4);
    for (int i = 0; i < 4; i++) {
        VDC_Command *command = get(&pair, 0);
        let_pass(1, interval + interval / 4);
        complete(&pair, 0, command, ERROR_SUCCESS);
    }
    for (int i = 0; i < 4; i++)
        expect_done(&sent[i], ERROR_SUCCESS);
    pair_finish(&pair);
}

static void no_server_timeout(void)
{
    pair_ready(&pair, 2, 4096, 8);
    send_writes(1);
    VDC_Command *command = get(&pair, 0);
    let_pass(1, 300);
    complete(&pair, 0, command, ERROR_SUCCESS);
    expect_done(&sent[0], ERROR_SUCCESS);
    pair_finish(&pair);
}

int main(int argc, char **argv)
{
    static const Test tests[] = {
        TEST(values_travel), TEST(any_order), TEST(reuse_in_callback), TEST(refusals), TEST(queue_full),
        TEST(io_error), TEST(each_error_code), TEST(abort_in_io_error), TEST(aborts), TEST(abort_while_configuring),
        TEST(reason_travels), TEST(queued_before_close), TEST(ends_from_callback), TEST(release_in_callback),
        TEST(close_while_waiting),
        TEST(callbacks_without_agent), TEST(server_timeout), TEST(server_timeout_restarts), TEST(no_server_timeout),
    };
    return run_tests(tests, sizeof tests / sizeof *tests, 30, argc, argv);
}
