#include "harness.h"

#include <dirent.h>
#include <sys/prctl.h>

_Atomic int g_failures;

const char *hr_name(HRESULT hr)
{
    static const char *const names[] = {"?",         "?",          "NOTOPEN",    "TIMEOUT", "ABORT",   "SECURITY",
                                        "INVALID",   "INSTANCE",   "?",          "NOTSUPPORTED", "MEMORY", "UNEXPECTED",
                                        "PROTOCOL",  "OPEN",       "CLOSE",      "BUSY",    "QUEUE_FULL", "IO_ERROR"};
    uint32_t code = (uint32_t)hr;
    if (hr == NOERROR)
        return "NOERROR";
    if (code >> 16 == 0x8077 && (code & 0xFFFF) < sizeof names / sizeof *names)
        return names[code & 0xFFFF];
    return "other";
}

int check_hr(HRESULT got, HRESULT expected, const char *what, const char *file, int line)
{
    if (got == expected)
        return 1;
    printf("FAIL %s:%d: %s\n     gives %08x %s, expected %08x %s\n", file, line, what, (unsigned)got, hr_name(got),
           (unsigned)expected, hr_name(expected));
    fflush(stdout);
    g_failures++;
    return 0;
}

int check_true(int ok, const char *what, const char *file, int line)
{
    if (ok)
        return 1;
    printf("FAIL %s:%d: %s does not hold\n", file, line, what);
    fflush(stdout);
    g_failures++;
    return 0;
}

void need(HRESULT hr, const char *what, const char *file, int line)
{
    if (!check_hr(hr, NOERROR, what, file, line)) {
        printf("     the test can not go on\n");
        fflush(stdout);
        _exit(1);
    }
}

static char g_running[128];

static void hang(int signal_number)
{
    (void)signal_number;
    static const char text[] = "HANG in ";
    if (write(1, text, sizeof text - 1) < 0 || write(1, g_running, strlen(g_running)) < 0 || write(1, "\n", 1) < 0)
        _exit(4);
    _exit(3);
}

void watchdog(const char *name, unsigned seconds)
{
    snprintf(g_running, sizeof g_running, "%s", name);
    signal(SIGALRM, hang);
    alarm(seconds);
}

int run_tests(const Test *tests, size_t count, unsigned seconds, int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (size_t i = 0; i < count; i++) {
        int wanted = argc < 2;
        for (int a = 1; a < argc; a++)
            wanted |= strcmp(argv[a], tests[i].name) == 0;
        if (!wanted)
            continue;
        int before = g_failures;
        double start = now();
        watchdog(tests[i].name, seconds);
        tests[i].run();
        alarm(0);
        printf("%s %s (%.2f s)\n", g_failures == before ? "ok  " : "BAD ", tests[i].name, now() - start);
    }
    DWORD live = VdiLiveObjects();
    if (live) {
        printf("FAIL %u objects are still referenced\n", live);
        g_failures++;
    }
    printf("%d failures\n", g_failures);
    return g_failures ? 1 : 0;
}

double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

uint64_t next_random(uint64_t *state)
{
    uint64_t x = *state += 0x9E3779B97F4A7C15u;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

Name name_of(const char *utf8)
{
    Name name;
    size_t n = 0;
    const unsigned char *p = (const unsigned char *)utf8;
    while (*p && n + 2 < sizeof name.text / sizeof *name.text) {
        int more = *p < 0x80 ? 0 : *p < 0xE0 ? 1 : *p < 0xF0 ? 2 : 3;
        uint32_t code = more ? *p & (0x3Fu >> more) : *p;
        for (p++; more; more--)
            code = code << 6 | (*p++ & 0x3Fu);
        if (code >= 0x10000) {
            name.text[n++] = (WCHAR)(0xD800 + ((code - 0x10000) >> 10));
            name.text[n++] = (WCHAR)(0xDC00 + ((code - 0x10000) & 0x3FF));
        } else {
            name.text[n++] = (WCHAR)code;
        }
    }
    name.text[n] = 0;
    return name;
}

Name fresh_name(void)
{
    static _Atomic unsigned count;
    char text[64];
    snprintf(text, sizeof text, "native test %d.%u", (int)getpid(), count++);
    return name_of(text);
}

Name device_name(const Name *set, unsigned i)
{
    Name name = *set;
    if (i) {
        char digits[16];
        snprintf(digits, sizeof digits, "-%u", i);
        size_t n = 0;
        while (name.text[n])
            n++;
        for (size_t d = 0; digits[d]; d++)
            name.text[n++] = (WCHAR)digits[d];
        name.text[n] = 0;
    }
    return name;
}

static void *new_object(const CLSID *class_id, const IID *iid)
{
    IClassFactory *factory = NULL;
    void *object = NULL;
    NEED(DllGetClassObject(class_id, &IID_IClassFactory, (void **)&factory));
    NEED(factory->lpVtbl->CreateInstance(factory, NULL, iid, &object));
    factory->lpVtbl->Release(factory);
    return object;
}

IClientVirtualDeviceSet2 *new_client(void)
{
    return new_object(&CLSID_MSSQL_ClientVirtualDeviceSet, &IID_IClientVirtualDeviceSet2);
}

IServerVirtualDeviceSet2 *new_server(void)
{
    return new_object(&CLSID_MSSQL_ServerVirtualDeviceSet, &IID_IServerVirtualDeviceSet2);
}

IVdiEmbeddedSet *embedded(void *set)
{
    IUnknown *unknown = set;
    IVdiEmbeddedSet *x = NULL;
    NEED(unknown->lpVtbl->QueryInterface(unknown, &IID_IVdiEmbeddedSet, (void **)&x));
    return x;
}

DWORD state_of(void *set)
{
    IVdiEmbeddedSet *x = embedded(set);
    DWORD state = NO_STATE;
    OK(x->lpVtbl->GetState(x, &state));
    x->lpVtbl->Release(x);
    return state;
}

VdiAbortInfo abort_info(void *set)
{
    IVdiEmbeddedSet *x = embedded(set);
    VdiAbortInfo info;
    memset(&info, 0xEE, sizeof info);
    OK(x->lpVtbl->GetAbortInfo(x, &info));
    CHECK(memchr(info.reason, 0, sizeof info.reason) != NULL);
    x->lpVtbl->Release(x);
    return info;
}

VDConfig config(DWORD devices)
{
    VDConfig cfg;
    memset(&cfg, 0, sizeof cfg);
    cfg.deviceCount = devices;
    return cfg;
}

static void STDMETHODCALLTYPE sent_completed(VDS_Command *command)
{
    Sent *sent = (Sent *)command;
    sent->thread = pthread_self();
    sent->calls++;
    if (sent->then)
        sent->then(sent);
    sem_post(&sent->done);
}

void sent_init(Sent *sent, DWORD code, BYTE *buffer, DWORD size)
{
    memset(sent, 0, sizeof *sent);
    sem_init(&sent->done, 0, 0);
    sent->command.commandCode = code;
    sent->command.buffer = buffer;
    sent->command.size = size;
    sent->command.completionRoutine = (BYTE *)(uintptr_t)sent_completed;
    sent->command.completionCode = 0xAAAAAAAA;
    sent->command.bytesTransferred = 0xAAAAAAAA;
    sent->command.outPosition = 0xAAAAAAAA;
}

HRESULT send_it(IServerVirtualDevice *device, Sent *sent)
{
    return device->lpVtbl->SendCommand(device, &sent->command);
}

void wait_for(Sent *sent)
{
    while (sem_wait(&sent->done) != 0 && errno == EINTR)
        ;
}

void pair_create(Pair *pair, VDConfig *cfg)
{
    memset(pair, 0, sizeof *pair);
    pair->name = fresh_name();
    pair->devices = cfg->deviceCount;
    pair->client = new_client();
    pair->server = new_server();
    NEED(pair->client->lpVtbl->CreateEx(pair->client, NULL, pair->name.text, cfg));
    NEED(pair->server->lpVtbl->Open(pair->server, NULL, pair->name.text));
}

void pair_begin(Pair *pair, DWORD features, DWORD block, DWORD alignment)
{
    NEED(pair->server->lpVtbl->BeginConfiguration(pair->server, features, block, alignment, MIB, 1000));
}

static void *agent(void *argument)
{
    Pair *pair = argument;
    pair->agent_result = pair->server->lpVtbl->ExecuteCompletionAgent(pair->server);
    return NULL;
}

void pair_start_agent(Pair *pair)
{
    pair->agent_runs = 1;
    pthread_create(&pair->agent, NULL, agent, pair);
}

HRESULT pair_join_agent(Pair *pair)
{
    pthread_join(pair->agent, NULL);
    pair->agent_runs = 0;
    return pair->agent_result;
}

void pair_activate(Pair *pair)
{
    VDConfig cfg;
    NEED(pair->server->lpVtbl->EndConfiguration(pair->server));
    NEED(pair->client->lpVtbl->GetConfiguration(pair->client, INFINITE, &cfg));
    for (unsigned i = 0; i < pair->devices; i++) {
        Name name = device_name(&pair->name, i);
        NEED(pair->server->lpVtbl->OpenDevice(pair->server, name.text, &pair->s[i]));
        NEED(pair->client->lpVtbl->OpenDevice(pair->client, name.text, &pair->c[i]));
    }
    pair_start_agent(pair);
    /* One command there and back: from here on the agent is known to run. */
    Sent flush;
    sent_init(&flush, VDC_Flush, NULL, 0);
    NEED(send_it(pair->s[0], &flush));
    complete(pair, 0, get(pair, 0), ERROR_SUCCESS);
    wait_for(&flush);
}

void pair_ready(Pair *pair, DWORD devices, DWORD size, DWORD count)
{
    VDConfig cfg = config(devices);
    pair_create(pair, &cfg);
    pair_begin(pair, VDF_WriteMedia, 512, 0);
    if (count)
        NEED(pair->server->lpVtbl->RequestBuffers(pair->server, size, 0, count));
    pair_activate(pair);
}

static void release_all(Pair *pair)
{
    for (unsigned i = 0; i < pair->devices; i++) {
        if (pair->c[i])
            pair->c[i]->lpVtbl->Release(pair->c[i]);
        if (pair->s[i])
            pair->s[i]->lpVtbl->Release(pair->s[i]);
    }
    pair->client->lpVtbl->Release(pair->client);
    pair->server->lpVtbl->Release(pair->server);
}

void pair_finish(Pair *pair)
{
    VDC_Command *command;
    for (unsigned i = 0; i < pair->devices; i++)
        OK(pair->s[i]->lpVtbl->CloseDevice(pair->s[i]));
    for (unsigned i = 0; i < pair->devices; i++)
        HR(pair->c[i]->lpVtbl->GetCommand(pair->c[i], INFINITE, &command), VD_E_CLOSE);
    if (pair->agent_runs)
        OK(pair_join_agent(pair));
    OK(pair->client->lpVtbl->Close(pair->client));
    OK(pair->server->lpVtbl->Close(pair->server));
    release_all(pair);
}

void pair_discard(Pair *pair)
{
    pair->client->lpVtbl->SignalAbort(pair->client);
    pair->server->lpVtbl->SignalAbort(pair->server);
    if (pair->agent_runs)
        pair_join_agent(pair);
    pair->client->lpVtbl->Close(pair->client);
    pair->server->lpVtbl->Close(pair->server);
    release_all(pair);
}

VDC_Command *get(Pair *pair, unsigned device)
{
    VDC_Command *command = NULL;
    NEED(pair->c[device]->lpVtbl->GetCommand(pair->c[device], INFINITE, &command));
    return command;
}

void complete(Pair *pair, unsigned device, VDC_Command *command, DWORD code)
{
    IClientVirtualDevice *d = pair->c[device];
    OK(d->lpVtbl->CompleteCommand(d, command, code, code == ERROR_SUCCESS ? command->size : 0, 0));
}

int open_descriptors(void)
{
    int count = 0;
    DIR *dir = opendir("/proc/self/fd");
    if (dir) {
        while (readdir(dir))
            count++;
        closedir(dir);
    }
    return count;
}

int shared_mappings(void)
{
    int count = 0;
    char line[512];
    FILE *maps = fopen("/proc/self/maps", "r");
    if (maps) {
        while (fgets(line, sizeof line, maps))
            count += strstr(line, "memfd:") != NULL;
        fclose(maps);
    }
    return count;
}

int typed(HRESULT hr)
{
    if (hr == NOERROR || ((uint32_t)hr & 0xFFFF0000u) == 0x80770000u)
        return 1;
    printf("FAIL a victim gets %08x\n", (unsigned)hr);
    g_failures++;
    return 0;
}

int wait_briefly(sem_t *sem, unsigned ms)
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

__attribute__((no_sanitize("address"))) void touch(BYTE *buffer, DWORD size, int write)
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

pid_t start_role(void (*play)(void), const char *name)
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

long number_from(const char *variable, long otherwise)
{
    const char *text = getenv(variable);
    return text ? atol(text) : otherwise;
}
