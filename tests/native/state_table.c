/* Walks every cell of the state tables (section 6.2 for clients, 6.3 for servers) with the readings of section 13:
 * each function in each state, its code and the state after it. The other half of the set lives in this process or,
 * with "split", in another one.
 *
 * Both halves are driven by small operations, so that the same table runs either way. A cell gets a set that was
 * brought into its state from nothing, runs the cell's own preparation and then the operation. */
#include <sys/socket.h>

#include "harness.h"

enum {
    END,
    /* client */
    C_NEW, C_CREATE, C_CREATEEX, C_GETCONF, C_POLLCONF, C_OPEN, C_GET, C_COMPLETE, C_COMPLETE_STRANGE, C_ABORT, C_CLOSE,
    C_SECONDARY, C_SECONDARYEX, C_HANDLE, C_HANDLE_STRANGE, C_MAP, C_MAP_STRANGE, C_DROP,
    /* server */
    S_NEW, S_OPEN, S_GETCONF, S_BEGIN, S_REQUEST, S_QUERY, S_END, S_AGENT, S_AGENT_START, S_JOIN, S_OPENDEV, S_ALLOC,
    S_FREE, S_FREE_STRANGE, S_SHARED, S_SHARED_STRANGE, S_SEND, S_CLOSEDEV, S_ABORT, S_CLOSE, S_DROP,
    S_WAIT, /* for the callback of the last command of a device; gives its completion code */
    QUIT
};

#define FIRST_SERVER_OP S_NEW
#define DEVICES 2

typedef struct Step {
    int op;
    int arg;
} Step;

typedef struct Reply {
    HRESULT hr;
    DWORD state;
} Reply;

static Name g_set; /* the set of the cell that is being walked; made by the parent, sent along */

/* --- the two halves as this process holds them --- */

static IClientVirtualDeviceSet2 *g_client;
static IClientVirtualDevice *g_cdev[DEVICES + 1];
static VDC_Command *g_command[DEVICES + 1];
static BYTE *g_command_buffer;
static DWORD g_handle = 12345;
static BYTE g_strange[4096];

static IServerVirtualDeviceSet2 *g_server;
static IServerVirtualDevice *g_sdev[DEVICES + 1];
static BYTE *g_buffer;
static Sent g_sent[DEVICES + 1][4];
static int g_sends[DEVICES + 1];
static pthread_t g_agent;
static int g_agent_runs;
static HRESULT g_agent_result;

static void *agent_main(void *unused)
{
    (void)unused;
    g_agent_result = g_server->lpVtbl->ExecuteCompletionAgent(g_server);
    return NULL;
}

static HRESULT client_do(Step step)
{
    IClientVirtualDeviceSet2 *c = g_client;
    VDConfig cfg = config(DEVICES);
    IClientVirtualDevice *device = step.op == C_CLOSE ? NULL : g_cdev[step.arg]; /* C_CLOSE's is a code */
    VDC_Command *command = NULL;
    BYTE *address = NULL;
    HRESULT hr;
    switch (step.op) {
    case C_NEW:
        g_client = new_client();
        return NOERROR;
    case C_DROP:
        for (int i = 0; i <= DEVICES; i++) {
            if (g_cdev[i])
                g_cdev[i]->lpVtbl->Release(g_cdev[i]);
            g_cdev[i] = NULL;
            g_command[i] = NULL;
        }
        if (c)
            c->lpVtbl->Release(c);
        g_client = NULL;
        g_command_buffer = NULL;
        g_handle = 12345;
        return NOERROR;
    case C_CREATE:
        return c->lpVtbl->Create(c, g_set.text, &cfg);
    case C_CREATEEX:
        return c->lpVtbl->CreateEx(c, NULL, g_set.text, &cfg);
    case C_GETCONF:
        return c->lpVtbl->GetConfiguration(c, INFINITE, &cfg);
    case C_POLLCONF:
        return c->lpVtbl->GetConfiguration(c, 0, &cfg);
    case C_OPEN: {
        Name name = device_name(&g_set, (unsigned)step.arg);
        IClientVirtualDevice *opened = (IClientVirtualDevice *)g_strange;
        hr = c->lpVtbl->OpenDevice(c, name.text, &opened);
        if (FAILED(hr))
            CHECK(opened == NULL);
        else if (g_cdev[step.arg])
            g_cdev[step.arg]->lpVtbl->Release(g_cdev[step.arg]); /* of the life before */
        if (SUCCEEDED(hr))
            g_cdev[step.arg] = opened;
        return hr;
    }
    case C_GET:
        hr = device->lpVtbl->GetCommand(device, 0, &command);
        if (SUCCEEDED(hr))
            g_command[step.arg] = command;
        if (SUCCEEDED(hr) && command->buffer)
            g_command_buffer = command->buffer;
        return hr;
    case C_COMPLETE:
        command = g_command[step.arg] ? g_command[step.arg] : (VDC_Command *)g_strange;
        return device->lpVtbl->CompleteCommand(device, command, ERROR_SUCCESS, 512, 0);
    case C_COMPLETE_STRANGE:
        command = step.arg ? g_command[0] : (VDC_Command *)g_strange; /* another device's, or none */
        return device->lpVtbl->CompleteCommand(device, command, ERROR_SUCCESS, 512, 0);
    case C_ABORT:
        return c->lpVtbl->SignalAbort(c);
    case C_CLOSE:
        return c->lpVtbl->Close(c);
    case C_SECONDARY:
        return c->lpVtbl->OpenInSecondary(c, g_set.text);
    case C_SECONDARYEX:
        return c->lpVtbl->OpenInSecondaryEx(c, NULL, g_set.text);
    case C_HANDLE:
        return c->lpVtbl->GetBufferHandle(c, g_command_buffer ? g_command_buffer : g_strange, &g_handle);
    case C_HANDLE_STRANGE:
        return c->lpVtbl->GetBufferHandle(c, g_strange, &(DWORD){0});
    case C_MAP:
        return c->lpVtbl->MapBufferHandle(c, g_handle, &address);
    default: /* C_MAP_STRANGE */
        return c->lpVtbl->MapBufferHandle(c, 0x7FFFFFFF, &address);
    }
}

static HRESULT server_do(Step step)
{
    IServerVirtualDeviceSet2 *s = g_server;
    IServerVirtualDevice *device = g_sdev[step.arg];
    VDConfig cfg;
    DWORD count = 0;
    BYTE *buffer = NULL;
    HRESULT hr;
    switch (step.op) {
    case S_NEW:
        g_server = new_server();
        return NOERROR;
    case S_DROP:
        for (int i = 0; i <= DEVICES; i++) {
            if (g_sdev[i])
                g_sdev[i]->lpVtbl->Release(g_sdev[i]);
            g_sdev[i] = NULL;
            g_sends[i] = 0;
        }
        if (s)
            s->lpVtbl->Release(s);
        g_server = NULL;
        g_buffer = NULL;
        return NOERROR;
    case S_OPEN:
        return s->lpVtbl->Open(s, NULL, g_set.text);
    case S_GETCONF:
        return s->lpVtbl->GetConfiguration(s, &cfg);
    case S_BEGIN:
        return s->lpVtbl->BeginConfiguration(s, VDF_WriteMedia, 512, 0, 64 * KIB, 1000);
    case S_REQUEST:
        return s->lpVtbl->RequestBuffers(s, 4096, 0, 4);
    case S_QUERY:
        return s->lpVtbl->QueryAvailableBuffers(s, 4096, 0, &count);
    case S_END:
        return s->lpVtbl->EndConfiguration(s);
    case S_AGENT: /* where it must come back at once */
        return s->lpVtbl->ExecuteCompletionAgent(s);
    case S_AGENT_START: /* where it stays: gives NOERROR once the state shows that it is in */
        g_agent_runs = 1;
        pthread_create(&g_agent, NULL, agent_main, NULL);
        while (state_of(g_server) == VDI_STATE_INITIALIZING)
            sched_yield(); /* bounded by the watchdog */
        return NOERROR;
    case S_JOIN:
        if (!g_agent_runs)
            return NOERROR;
        pthread_join(g_agent, NULL);
        g_agent_runs = 0;
        return g_agent_result;
    case S_OPENDEV: {
        Name name = device_name(&g_set, (unsigned)step.arg);
        IServerVirtualDevice *opened = NULL;
        hr = s->lpVtbl->OpenDevice(s, name.text, &opened);
        if (SUCCEEDED(hr))
            g_sdev[step.arg] = opened;
        return hr;
    }
    case S_ALLOC:
        hr = s->lpVtbl->AllocateBuffer(s, &buffer, 4096, 0);
        if (SUCCEEDED(hr) && !g_buffer)
            g_buffer = buffer;
        return hr;
    case S_FREE:
        return s->lpVtbl->FreeBuffer(s, g_buffer ? g_buffer : g_strange, 4096);
    case S_FREE_STRANGE:
        return s->lpVtbl->FreeBuffer(s, g_strange, 4096);
    case S_SHARED:
        return s->lpVtbl->IsSharedBuffer(s, g_buffer ? g_buffer : g_strange);
    case S_SHARED_STRANGE:
        return s->lpVtbl->IsSharedBuffer(s, g_strange);
    case S_SEND: {
        Sent *sent = &g_sent[step.arg][g_sends[step.arg]++];
        /* The first command of device 0 is a Write with the buffer, the others are Flushes. */
        int write = step.arg == 0 && g_sends[0] == 1 && g_buffer;
        sent_init(sent, write ? VDC_Write : VDC_Flush, write ? g_buffer : NULL, write ? 4096 : 0);
        hr = send_it(device, sent);
        if (FAILED(hr)) {
            DWORD code = hr == VD_E_PROTOCOL ? ERROR_INVALID_HANDLE : hr == VD_E_ABORT ? ERROR_OPERATION_ABORTED : 0;
            CHECK(sent->calls == 1 && sent->command.completionCode == code);
            CHECK(pthread_equal(sent->thread, pthread_self()));
            g_sends[step.arg]--;
        }
        return hr;
    }
    case S_WAIT:
        wait_for(&g_sent[step.arg][g_sends[step.arg] - 1]);
        return (HRESULT)g_sent[step.arg][g_sends[step.arg] - 1].command.completionCode;
    case S_CLOSEDEV:
        return device->lpVtbl->CloseDevice(device);
    case S_ABORT:
        return s->lpVtbl->SignalAbort(s);
    default: /* S_CLOSE */
        return s->lpVtbl->Close(s);
    }
}

/* --- which process does it --- */

static int g_peer = -1;       /* socket to the other process */
static int g_remote_server;   /* with g_peer: the server is over there, else the client */

static Reply local(Step step)
{
    void *half = step.op < FIRST_SERVER_OP ? (void *)g_client : (void *)g_server;
    if (!half && step.op != C_NEW && step.op != S_NEW)
        return (Reply){VD_E_NOTOPEN, NO_STATE};
    Reply reply = {.hr = step.op < FIRST_SERVER_OP ? client_do(step) : server_do(step), .state = NO_STATE};
    void *set = step.op < FIRST_SERVER_OP ? (void *)g_client : (void *)g_server;
    if (set)
        reply.state = state_of(set);
    return reply;
}

typedef struct Request {
    Step step;
    Name set;
} Request;

static void exact(ssize_t got, size_t size)
{
    if (got != (ssize_t)size)
        _exit(5);
}

static void serve(int fd)
{
    Request request;
    for (;;) {
        exact(recv(fd, &request, sizeof request, MSG_WAITALL), sizeof request);
        if (request.step.op == QUIT) {
            CHECK(VdiLiveObjects() == 0);
            _exit(g_failures ? 1 : 0);
        }
        g_set = request.set;
        alarm(20);
        Reply reply = local(request.step);
        exact(send(fd, &reply, sizeof reply, MSG_NOSIGNAL), sizeof reply);
    }
}

static Reply perform(Step step)
{
    int is_server = step.op >= FIRST_SERVER_OP;
    if (g_peer < 0 || is_server != g_remote_server)
        return local(step);
    Request request = {step, g_set};
    Reply reply;
    exact(send(g_peer, &request, sizeof request, MSG_NOSIGNAL), sizeof request);
    exact(recv(g_peer, &reply, sizeof reply, MSG_WAITALL), sizeof reply);
    return reply;
}

/* --- states from nothing --- */

static void steps(const Step *list, HRESULT expected)
{
    for (; list->op; list++)
        if (!check_hr(perform(*list).hr, expected, "step of a preparation", __FILE__, list->op))
            exit(1);
}
#define STEPS(...) steps((const Step[]){__VA_ARGS__, {END, 0}}, NOERROR)
#define CLOSES(...) steps((const Step[]){__VA_ARGS__, {END, 0}}, VD_E_CLOSE)

static void cleanup(void)
{
    perform((Step){C_ABORT, 0});
    perform((Step){S_ABORT, 0});
    perform((Step){S_JOIN, 0});
    perform((Step){C_CLOSE, 0});
    perform((Step){S_CLOSE, 0});
    perform((Step){C_DROP, 0});
    perform((Step){S_DROP, 0});
}

static void configured(void)
{
    STEPS({S_NEW, 0}, {S_OPEN, 0}, {S_BEGIN, 0}, {S_REQUEST, 0}, {S_END, 0});
}

/* Ends as Does Not Exist with devices of the life before. */
static void one_life(void)
{
    g_set = fresh_name();
    STEPS({C_NEW, 0}, {C_CREATE, 0});
    configured();
    STEPS({C_GETCONF, 0}, {S_OPENDEV, 0}, {S_OPENDEV, 1}, {C_OPEN, 0}, {C_OPEN, 1}, {S_CLOSEDEV, 0}, {S_CLOSEDEV, 1});
    CLOSES({C_GET, 0}, {C_GET, 1});
    STEPS({C_CLOSE, 0}, {S_CLOSE, 0});
}

/* A client in `state`: the second life of its object, so that devices of the first are there to be called. In Active:
 * device 0 open with one command outstanding and one queued, device 1 open at the server only. */
static void client_in(DWORD state)
{
    one_life();
    STEPS({S_DROP, 0});
    g_set = fresh_name();
    if (state == VDI_STATE_DOES_NOT_EXIST)
        return;
    STEPS({C_CREATEEX, 0});
    if (state == VDI_STATE_CONFIGURABLE)
        return;
    configured();
    STEPS({C_GETCONF, 0});
    if (state == VDI_STATE_INITIALIZING)
        return;
    STEPS({S_OPENDEV, 0}, {S_OPENDEV, 1}, {S_ALLOC, 0}, {S_AGENT_START, 0}, {S_SEND, 0}, {S_SEND, 0}, {C_OPEN, 0},
          {C_GET, 0}, {C_HANDLE, 0});
    if (state == VDI_STATE_NORMALLY_TERMINATED) {
        STEPS({C_COMPLETE, 0}, {C_GET, 0}, {C_COMPLETE, 0}, {S_WAIT, 0}, {C_OPEN, 1}, {S_CLOSEDEV, 0}, {S_CLOSEDEV, 1});
        CLOSES({C_GET, 0}, {C_GET, 1});
    } else if (state == VDI_STATE_ABORT) {
        STEPS({S_ABORT, 0});
    }
}

/* A server in `state`. In Active: device 0 of two open at both sides, no agent yet. */
static void server_in(DWORD state)
{
    g_set = fresh_name();
    if (state == VDI_STATE_DOES_NOT_EXIST) {
        one_life();
        return;
    }
    STEPS({C_NEW, 0}, {C_CREATEEX, 0}, {S_NEW, 0}, {S_OPEN, 0});
    if (state == VDI_STATE_CONNECTED)
        return;
    STEPS({S_BEGIN, 0});
    if (state == VDI_STATE_CONFIGURABLE)
        return;
    STEPS({S_REQUEST, 0}, {S_END, 0}, {C_GETCONF, 0}, {S_ALLOC, 0});
    if (state == VDI_STATE_INITIALIZING)
        return;
    STEPS({S_OPENDEV, 0}, {C_OPEN, 0});
    if (state == VDI_STATE_NORMALLY_TERMINATED)
        STEPS({S_OPENDEV, 1}, {S_CLOSEDEV, 0}, {S_CLOSEDEV, 1});
    else if (state == VDI_STATE_ABORT)
        STEPS({S_ABORT, 0});
}

/* --- the tables --- */

#define DNE VDI_STATE_DOES_NOT_EXIST
#define CON VDI_STATE_CONNECTED
#define CFG VDI_STATE_CONFIGURABLE
#define INI VDI_STATE_INITIALIZING
#define ACT VDI_STATE_ACTIVE
#define NT VDI_STATE_NORMALLY_TERMINATED
#define ABO VDI_STATE_ABORT

static const char *const state_names[] = {"Does Not Exist", "Connected", "Configurable",       "Initializing",
                                          "Active",         "Normally Terminated", "Abort"};

typedef struct Cell {
    const char *function;
    DWORD state;
    Step prepare[6]; /* all give NOERROR */
    Step step;
    HRESULT hr;
    DWORD next;
    HRESULT or_hr; /* a second code where the table has two */
} Cell;

/* One row: what the function gives in each state, and where it leads if not to the same state. */
#define P VD_E_PROTOCOL
#define A VD_E_ABORT
#define I VD_E_INVALID
#define CROW(f, op, arg, h0, n0, h2, n2, h3, n3, h4, n4, h5, n5, h6, n6)                                               \
    {f, DNE, {{END, 0}}, {op, arg}, h0, n0, h0}, {f, CFG, {{END, 0}}, {op, arg}, h2, n2, h2},                          \
        {f, INI, {{END, 0}}, {op, arg}, h3, n3, h3}, {f, ACT, {{END, 0}}, {op, arg}, h4, n4, h4},                      \
        {f, NT, {{END, 0}}, {op, arg}, h5, n5, h5}, {f, ABO, {{END, 0}}, {op, arg}, h6, n6, h6}
#define CELL(f, state, op, arg, hr, next, ...) {f, state, {__VA_ARGS__}, {op, arg}, hr, next, hr}

static const Cell client_cells[] = {
    /* function, operation, Does Not Exist, Configurable, Initializing, Active, Normally Terminated, Abort */
    CROW("Create", C_CREATE, 0, 0, CFG, P, CFG, P, INI, P, ACT, P, NT, P, ABO),
    CROW("CreateEx", C_CREATEEX, 0, 0, CFG, P, CFG, P, INI, P, ACT, P, NT, P, ABO),
    CROW("GetConfiguration", C_POLLCONF, 0, P, DNE, VD_E_TIMEOUT, CFG, 0, INI, 0, ACT, 0, NT, A, ABO),
    CROW("OpenDevice", C_OPEN, 1, P, DNE, P, CFG, 0, ACT, 0, ACT, P, NT, A, ABO),
    CROW("GetCommand", C_GET, 0, P, DNE, P, CFG, P, INI, 0, ACT, VD_E_CLOSE, NT, A, ABO),
    CROW("CompleteCommand", C_COMPLETE, 0, P, DNE, P, CFG, P, INI, 0, ACT, P, NT, A, ABO),
    CROW("SignalAbort", C_ABORT, 0, P, DNE, 0, ABO, 0, ABO, 0, ABO, 0, ABO, 0, ABO),
    CROW("Close", C_CLOSE, 0, P, DNE, 0, DNE, 0, DNE, VD_E_OPEN, DNE, 0, DNE, 0, DNE),
    CROW("OpenInSecondary of itself", C_SECONDARY, 0, P, DNE, P, CFG, P, INI, P, ACT, P, NT, P, ABO),
    CROW("OpenInSecondaryEx of itself", C_SECONDARYEX, 0, P, DNE, P, CFG, P, INI, P, ACT, P, NT, P, ABO),
    CROW("GetBufferHandle", C_HANDLE_STRANGE, 0, P, DNE, P, CFG, I, INI, I, ACT, I, NT, A, ABO),
    CROW("MapBufferHandle", C_MAP_STRANGE, 0, P, DNE, P, CFG, I, INI, I, ACT, I, NT, A, ABO),
    CELL("GetBufferHandle of a lent buffer", ACT, C_HANDLE, 0, 0, ACT, {END, 0}),
    CELL("GetBufferHandle of a buffer given back", NT, C_HANDLE, 0, I, NT, {END, 0}),
    CELL("MapBufferHandle of a lent buffer", ACT, C_MAP, 0, 0, ACT, {END, 0}),
    CELL("MapBufferHandle of a buffer given back", NT, C_MAP, 0, I, NT, {END, 0}),
    {"GetBufferHandle of a lent buffer", ABO, {{END, 0}}, {C_HANDLE, 0}, A, ABO, NOERROR},
    {"MapBufferHandle of a lent buffer", ABO, {{END, 0}}, {C_MAP, 0}, A, ABO, NOERROR},
    /* the refinements under the table */
    CELL("GetConfiguration, server ready", CFG, C_GETCONF, 0, 0, INI, {S_NEW, 0}, {S_OPEN, 0}, {S_BEGIN, 0},
         {S_END, 0}),
    CELL("GetConfiguration, server aborted", CFG, C_GETCONF, 0, A, ABO, {S_NEW, 0}, {S_OPEN, 0}, {S_ABORT, 0}),
    CELL("OpenDevice, server ready", CFG, C_OPEN, 0, P, CFG, {S_NEW, 0}, {S_OPEN, 0}, {S_BEGIN, 0}, {S_END, 0}),
    CELL("OpenDevice of an open device", ACT, C_OPEN, 0, P, ACT, {END, 0}),
    CELL("OpenDevice of an unknown name", ACT, C_OPEN, 2, I, ACT, {END, 0}),
    CELL("OpenDevice, all open", ACT, C_OPEN, 2, VD_E_OPEN, ACT, {C_OPEN, 1}),
    CELL("GetCommand, none there", ACT, C_GET, 1, VD_E_TIMEOUT, ACT, {C_OPEN, 1}),
    CELL("GetCommand, one device of two closed", ACT, C_GET, 1, VD_E_CLOSE, ACT, {C_OPEN, 1}, {S_CLOSEDEV, 1}),
    CELL("CompleteCommand of a strange pointer", ACT, C_COMPLETE_STRANGE, 0, I, ACT, {END, 0}),
    CELL("CompleteCommand twice", ACT, C_COMPLETE, 0, I, ACT, {C_COMPLETE, 0}),
    CELL("CompleteCommand at the wrong device", ACT, C_COMPLETE_STRANGE, 1, I, ACT, {C_OPEN, 1}),
    CELL("CompleteCommand after CloseDevice", ACT, C_COMPLETE, 0, 0, ACT, {S_CLOSEDEV, 0}),
    CELL("GetCommand of what was queued before CloseDevice", ACT, C_GET, 0, 0, ACT, {S_CLOSEDEV, 0}),
};

#define SROW(f, op, arg, h0, n0, h1, n1, h2, n2, h3, n3, h4, n4, h5, n5, h6, n6)                                       \
    CROW(f, op, arg, h0, n0, h2, n2, h3, n3, h4, n4, h5, n5, h6, n6), {f, CON, {{END, 0}}, {op, arg}, h1, n1, h1}

static const Cell server_cells[] = {
    /* function, operation, Does Not Exist, Connected, Configurable, Initializing, Active, Normally Terminated, Abort */
    SROW("Open", S_OPEN, 0, P, DNE, P, CON, P, CFG, P, INI, P, ACT, P, NT, P, ABO),
    SROW("GetConfiguration", S_GETCONF, 0, P, DNE, 0, CON, 0, CFG, 0, INI, 0, ACT, 0, NT, A, ABO),
    SROW("BeginConfiguration", S_BEGIN, 0, P, DNE, 0, CFG, P, CFG, P, INI, P, ACT, P, NT, A, ABO),
    SROW("RequestBuffers", S_REQUEST, 0, P, DNE, P, CON, 0, CFG, 0, INI, 0, ACT, P, NT, A, ABO),
    SROW("QueryAvailableBuffers", S_QUERY, 0, P, DNE, P, CON, 0, CFG, 0, INI, 0, ACT, P, NT, A, ABO),
    SROW("EndConfiguration", S_END, 0, P, DNE, P, CON, 0, INI, P, INI, P, ACT, P, NT, A, ABO),
    SROW("OpenDevice", S_OPENDEV, 1, P, DNE, P, CON, P, CFG, 0, ACT, 0, ACT, P, NT, A, ABO),
    SROW("AllocateBuffer", S_ALLOC, 0, P, DNE, P, CON, P, CFG, 0, INI, 0, ACT, P, NT, A, ABO),
    SROW("FreeBuffer", S_FREE, 0, P, DNE, P, CON, P, CFG, 0, INI, 0, ACT, 0, NT, 0, ABO),
    SROW("IsSharedBuffer", S_SHARED, 0, 0, DNE, 0, CON, 0, CFG, 1, INI, 1, ACT, 1, NT, 1, ABO),
    SROW("IsSharedBuffer, no", S_SHARED_STRANGE, 0, 0, DNE, 0, CON, 0, CFG, 0, INI, 0, ACT, 0, NT, 0, ABO),
    SROW("SignalAbort", S_ABORT, 0, P, DNE, 0, ABO, 0, ABO, 0, ABO, 0, ABO, 0, ABO, 0, ABO),
    SROW("Close", S_CLOSE, 0, P, DNE, 0, DNE, 0, DNE, 0, DNE, P, DNE, 0, DNE, 0, DNE),
    /* These two need a device, and there is none before Active other than that of a set that was closed. */
    CELL("SendCommand", DNE, S_SEND, 0, P, DNE, {END, 0}),
    CELL("SendCommand", ACT, S_SEND, 0, 0, ACT, {END, 0}),
    CELL("SendCommand", NT, S_SEND, 0, P, NT, {END, 0}),
    CELL("SendCommand", ABO, S_SEND, 0, A, ABO, {END, 0}),
    CELL("CloseDevice", DNE, S_CLOSEDEV, 0, P, DNE, {END, 0}),
    CELL("CloseDevice", ACT, S_CLOSEDEV, 0, 0, ACT, {END, 0}),
    CELL("CloseDevice", NT, S_CLOSEDEV, 0, VD_E_CLOSE, NT, {END, 0}),
    CELL("CloseDevice", ABO, S_CLOSEDEV, 0, A, ABO, {END, 0}),
    /* The agent: comes back at once where it may not run or has nothing to do. */
    CELL("ExecuteCompletionAgent", DNE, S_AGENT, 0, P, DNE, {END, 0}),
    CELL("ExecuteCompletionAgent", CON, S_AGENT, 0, P, CON, {END, 0}),
    CELL("ExecuteCompletionAgent", CFG, S_AGENT, 0, P, CFG, {END, 0}),
    CELL("ExecuteCompletionAgent", INI, S_AGENT_START, 0, 0, ACT, {END, 0}),
    CELL("ExecuteCompletionAgent", ACT, S_AGENT_START, 0, 0, ACT, {END, 0}),
    CELL("ExecuteCompletionAgent", NT, S_AGENT, 0, P, NT, {END, 0}),
    CELL("ExecuteCompletionAgent", ABO, S_AGENT, 0, A, ABO, {END, 0}),
    /* a callback proves that the first one is in */
    CELL("ExecuteCompletionAgent, second", ACT, S_AGENT, 0, VD_E_BUSY, ACT, {S_AGENT_START, 0}, {S_SEND, 0}, {C_GET, 0},
         {C_COMPLETE, 0}, {S_WAIT, 0}),
    /* refinements */
    CELL("OpenDevice, all open", ACT, S_OPENDEV, 2, VD_E_OPEN, ACT, {S_OPENDEV, 1}),
    CELL("CloseDevice of a closed device", ACT, S_CLOSEDEV, 0, VD_E_CLOSE, ACT, {S_OPENDEV, 1}, {S_CLOSEDEV, 0}),
    CELL("CloseDevice of the last device", ACT, S_CLOSEDEV, 1, 0, NT, {S_OPENDEV, 1}, {S_CLOSEDEV, 0}),
    CELL("SendCommand to a closed device", ACT, S_SEND, 0, P, ACT, {S_OPENDEV, 1}, {S_CLOSEDEV, 0}),
    CELL("FreeBuffer of a strange address", ACT, S_FREE_STRANGE, 0, I, ACT, {END, 0}),
    CELL("FreeBuffer twice", ACT, S_FREE, 0, I, ACT, {S_FREE, 0}),
    CELL("IsSharedBuffer after FreeBuffer", ACT, S_SHARED, 0, 0, ACT, {S_FREE, 0}),
    CELL("SignalAbort of the client, then GetConfiguration", ACT, S_GETCONF, 0, A, ABO, {C_ABORT, 0}),
    /* Q26: one side's Close does not undo the abort. Q27: in Active it is one. */
    CELL("after the client closed in Active", ACT, S_ALLOC, 0, A, ABO, {C_CLOSE, VD_E_OPEN}),
    CELL("after the client aborted and closed", ACT, S_ALLOC, 0, A, ABO, {C_ABORT, 0}, {C_CLOSE, NOERROR}),
};

/* Objects that never had a set. */
static const Step fresh_steps[] = {
    {C_NEW, 0},   {C_POLLCONF, 0}, {C_OPEN, 0},    {C_ABORT, 0}, {C_CLOSE, 0},   {C_HANDLE, 0}, {C_MAP, 0},
    {S_NEW, 0},   {S_GETCONF, 0},  {S_BEGIN, 0},   {S_END, 0},   {S_REQUEST, 0}, {S_QUERY, 0},  {S_AGENT, 0},
    {S_OPENDEV, 0}, {S_ALLOC, 0},  {S_FREE, 0},    {S_ABORT, 0}, {S_CLOSE, 0},
};

static void walk(const Cell *cells, size_t count, void (*enter)(DWORD), const char *side)
{
    for (size_t i = 0; i < count; i++) {
        const Cell *cell = &cells[i];
        char what[200];
        snprintf(what, sizeof what, "%s: %s in %s", side, cell->function, state_names[cell->state]);
        watchdog(what, 20);
        enter(cell->state);
        for (const Step *step = cell->prepare; step->op; step++)
            check_hr(perform(*step).hr, step->op == C_CLOSE ? (HRESULT)step->arg : NOERROR, what, __FILE__, step->op);
        Reply reply = perform(cell->step);
        if (reply.hr != cell->or_hr)
            check_hr(reply.hr, cell->hr, what, __FILE__, __LINE__);
        if (reply.state != cell->next) {
            printf("FAIL %s\n     leads to %s, expected %s\n", what,
                   reply.state <= ABO ? state_names[reply.state] : "nowhere", state_names[cell->next]);
            g_failures++;
        }
        cleanup();
    }
    printf("%zu cells of the %s\n", count, side);
}

static void walk_fresh(void)
{
    watchdog("objects without a set", 20);
    g_set = fresh_name();
    for (size_t i = 0; i < sizeof fresh_steps / sizeof *fresh_steps; i++) {
        Step step = fresh_steps[i];
        int is_new = step.op == C_NEW || step.op == S_NEW;
        Reply reply = perform(step);
        check_hr(reply.hr, is_new ? NOERROR : VD_E_PROTOCOL, "on an object without a set", __FILE__, step.op);
        CHECK(reply.state == DNE);
    }
    /* A server that finds no set stays as it was (Q25) and may try again. */
    CHECK(perform((Step){S_OPEN, 0}).hr == VD_E_INVALID);
    Reply reply = perform((Step){C_CREATE, 0});
    CHECK(reply.hr == NOERROR && reply.state == CFG);
    reply = perform((Step){S_OPEN, 0});
    CHECK(reply.hr == NOERROR && reply.state == CON);
    cleanup();
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    int split = argc > 1 && strcmp(argv[1], "split") == 0;
    pid_t other = 0;
    if (split) {
        int pair[2];
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0 || (other = fork()) < 0)
            return 2;
        if (other == 0) {
            close(pair[0]);
            watchdog("the other process", 20);
            serve(pair[1]);
        }
        close(pair[1]);
        g_peer = pair[0];
    }
    walk_fresh();
    g_remote_server = 1;
    walk(client_cells, sizeof client_cells / sizeof *client_cells, client_in, "client");
    g_remote_server = 0;
    walk(server_cells, sizeof server_cells / sizeof *server_cells, server_in, "server");
    alarm(0);
    CHECK(VdiLiveObjects() == 0);
    if (split) {
        Request quit = {.step = {QUIT, 0}};
        int status = -1;
        exact(send(g_peer, &quit, sizeof quit, MSG_NOSIGNAL), sizeof quit);
        CHECK(waitpid(other, &status, 0) == other && status == 0);
    }
    printf("%d failures\n", g_failures);
    return g_failures ? 1 : 0;
}
