/* What the native tests share: objects from the class factory, checks that print and go on, a watchdog, and a set with
 * both of its halves in this process. */
#ifndef HARNESS_H
#define HARNESS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "vdi_provider.h"

#define KIB 1024u
#define MIB (1024u * 1024u)
#define MAX_DEVICES 64
#define NO_STATE 99u

/* Checks count failures, print them with their place, and give the verdict back. */
extern _Atomic int g_failures;
int check_hr(HRESULT got, HRESULT expected, const char *what, const char *file, int line);
int check_true(int ok, const char *what, const char *file, int line);
#define HR(call, expected) check_hr((call), (expected), #call, __FILE__, __LINE__)
#define OK(call) HR(call, NOERROR)
#define CHECK(condition) check_true((condition) != 0, #condition, __FILE__, __LINE__)
/* For a step without which the rest of a test means nothing. */
#define NEED(call) need((call), #call, __FILE__, __LINE__)
void need(HRESULT hr, const char *what, const char *file, int line);
const char *hr_name(HRESULT hr);

/* Calls a slot. */
#define V(object, slot, ...) ((object)->lpVtbl->slot((object), ##__VA_ARGS__))

/* Runs the named tests, or all, each within `seconds`. Returns the exit code of the program. */
typedef struct Test {
    const char *name;
    void (*run)(void);
} Test;
#define TEST(f) {#f, f}
int run_tests(const Test *tests, size_t count, unsigned seconds, int argc, char **argv);
void watchdog(const char *name, unsigned seconds);

double now(void); /* seconds, monotonic */
uint64_t next_random(uint64_t *state);

/* Names: UTF-16 of UTF-8, in a buffer that the caller holds. */
typedef struct Name {
    WCHAR text[300];
} Name;
Name name_of(const char *utf8);
Name fresh_name(void);                          /* unique on this machine */
Name device_name(const Name *set, unsigned i);  /* device 0 has the name of the set */

IClientVirtualDeviceSet2 *new_client(void);
IServerVirtualDeviceSet2 *new_server(void);
/* IVdiEmbeddedSet of either; the reference is the caller's. */
IVdiEmbeddedSet *embedded(void *set);
DWORD state_of(void *set);
VdiAbortInfo abort_info(void *set);
VDConfig config(DWORD devices);

/* A command that counts its callbacks. */
typedef struct Sent {
    VDS_Command command; /* first: callbacks get its address */
    sem_t done;
    _Atomic int calls;
    pthread_t thread;
    void (*then)(struct Sent *); /* called in the callback */
    void *data;
} Sent;
void sent_init(Sent *sent, DWORD code, BYTE *buffer, DWORD size);
HRESULT send_it(IServerVirtualDevice *device, Sent *sent);
void wait_for(Sent *sent); /* its callback */

/* A set with both halves in this process. */
typedef struct Pair {
    Name name;
    DWORD devices;
    IClientVirtualDeviceSet2 *client;
    IServerVirtualDeviceSet2 *server;
    IClientVirtualDevice *c[MAX_DEVICES];
    IServerVirtualDevice *s[MAX_DEVICES];
    pthread_t agent;
    int agent_runs;
    HRESULT agent_result;
} Pair;
void pair_create(Pair *pair, VDConfig *cfg);                              /* CreateEx and Open */
void pair_begin(Pair *pair, DWORD features, DWORD block, DWORD alignment); /* BeginConfiguration, transfers of 1 MiB */
void pair_activate(Pair *pair);  /* EndConfiguration, GetConfiguration, all devices on both sides, agent */
void pair_start_agent(Pair *pair);
HRESULT pair_join_agent(Pair *pair);
void pair_finish(Pair *pair); /* CloseDevice, VD_E_CLOSE, Close, Release; all must go well */
void pair_discard(Pair *pair); /* aborts and releases whatever the state */
/* All the above: `count` buffers of `size` bytes. */
void pair_ready(Pair *pair, DWORD devices, DWORD size, DWORD count);

/* Server: sends and waits for the callback, with the client's part in between. */
VDC_Command *get(Pair *pair, unsigned device);
void complete(Pair *pair, unsigned device, VDC_Command *command, DWORD code);

/* For tests with hostile peers: 1 if it is NOERROR or a code of the interface, else a failure. */
int typed(HRESULT hr);
int wait_briefly(sem_t *sem, unsigned ms); /* 0: the time ran out */
/* Looks at every cache line of a buffer, or writes there. Not instrumented: what a hostile peer made of address and
 * size need not be one buffer, so what the provider poisons is no criterion. */
void touch(BYTE *buffer, DWORD size, int write);
pid_t start_role(void (*play)(void), const char *name); /* in a child, which dies with this process */
long number_from(const char *variable, long otherwise);

int open_descriptors(void);
int shared_mappings(void); /* lines of /proc/self/maps that name a memfd */

#endif
