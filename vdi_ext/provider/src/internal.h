/* What the provider's parts share inside one process. */
#ifndef VDI_INTERNAL_H
#define VDI_INTERNAL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

#include "shared.h"

#define JOIN_MS 5000u
#define MAX_ALIGNMENT (2u << 20)
#define MAX_AREA 0xFFFF0000ull /* bytes of shared buffers in one set; also at most half of physical memory */
#define PREFIX_LIMIT (1u << 20)

#if defined(__SANITIZE_ADDRESS__)
#define VDI_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define VDI_ASAN 1
#endif
#endif
#ifdef VDI_ASAN
#include <sanitizer/asan_interface.h>
#define POISON(p, n) ASAN_POISON_MEMORY_REGION((p), (n))
#define UNPOISON(p, n) ASAN_UNPOISON_MEMORY_REGION((p), (n))
#define GUARD 4096u /* poisoned page behind each buffer */
#else
#define POISON(p, n) ((void)(p), (void)(n))
#define UNPOISON(p, n) ((void)(p), (void)(n))
#define GUARD 0u
#endif

static inline uint64_t round_up(uint64_t n, uint64_t to) { return (n + to - 1) & ~(to - 1); }
static inline bool is_power_of_2(uint64_t n) { return n && !(n & (n - 1)); }
static inline uint32_t max_u32(uint32_t a, uint32_t b) { return a > b ? a : b; }

/* ---- memory.c: sealed shared memory and its mappings, one per process whichever halves use it */
struct mapping {
    struct mapping *next;
    uint8_t *base;
    size_t size;
    uint64_t device, inode;
    unsigned refs;
};
int memory_create(const char *label, size_t size);            /* descriptor, or -1 with errno */
struct mapping *memory_map(int fd, size_t size, bool populate); /* checks seals and size; NULL: refused or no memory */
void memory_unmap(struct mapping *m);
extern pthread_mutex_t mappings_lock; /* held across fork */

struct segments { /* buffer memory of a set, in the order in which the server obtained it */
    struct mapping *map[MAX_SEGMENTS];
    _Atomic uint32_t count;
};
uint8_t *segments_address(struct segments *s, uint32_t segment, uint64_t offset, uint64_t before, uint64_t size);
uint32_t segments_locate(struct segments *s, const uint8_t *address, uint64_t *offset); /* of a known address */
void segments_unmap(struct segments *s);

/* ---- wait.c */
uint64_t now_ns(void);
uint64_t deadline_after(DWORD milliseconds); /* UINT64_MAX for INFINITE */
/* Waits until ready(arg), spinning briefly, then asleep on *sleeps, where wake() finds it. False: the time ran out. */
bool wait_until(_Atomic uint32_t *sleeps, bool (*ready)(void *), void *arg, uint64_t deadline);
void wait_after_fork(void);
void wake(_Atomic uint32_t *sleeps); /* a system call only if somebody sleeps */
void monotonic_cond_init(pthread_cond_t *cond);
void adaptive_mutex_init(pthread_mutex_t *mutex);
bool cond_wait_until(pthread_cond_t *cond, pthread_mutex_t *mutex, uint64_t deadline); /* false: the time ran out */

/* A gate counts the calls inside an object, so that Close can wait for them before it unmaps. */
struct gate {
    pthread_mutex_t lock;
    pthread_cond_t empty;
    _Atomic bool open;
    unsigned inside;
};
void gate_init(struct gate *g);
bool gate_enter(struct gate *g);
void gate_leave(struct gate *g);
bool gate_shut(struct gate *g); /* false: was shut already */
void gate_wait_empty(struct gate *g);

/* ---- abort.c: one word in the control memory, latched in each process */
struct abort_latch {
    struct ctl *ctl;
    _Atomic bool seen;
};
bool aborted(struct abort_latch *a);
void abort_post(struct abort_latch *a, DWORD cause, DWORD pid, const char *reason);
void abort_get(struct abort_latch *a, VdiAbortInfo *info);
void wake_everybody(struct ctl *ctl);
/* Every device has reported VD_E_CLOSE to its client: the end of a process changes nothing any more. */
bool all_devices_ended(struct ctl *ctl, DWORD device_count);

/* ---- names.c */
struct set_name {
    WCHAR instance[NAME_UNITS + 1];
    WCHAR name[NAME_UNITS + 1];
};
HRESULT name_copy(WCHAR out[NAME_UNITS + 1], LPCWSTR name); /* VD_E_INVALID */
HRESULT instance_copy(WCHAR out[NAME_UNITS + 1], LPCWSTR instance);
bool name_equal(const WCHAR *a, const WCHAR *b);

/* ---- link.c: messages between the processes of a set */
enum message_type {
    MSG_HELLO = 1, /* joiner: role, names */
    MSG_WELCOME,   /* primary: hr, sizes, descriptors of control memory and segments */
    MSG_SEGMENT,   /* server -> primary -> secondaries: one more segment */
    MSG_SEGMENT_ACK,
    MSG_OPEN_DEVICE, /* secondary: may I? */
    MSG_OPEN_REPLY,
    MSG_BYE /* the sender's side of the set has been closed in order */
};
enum role { ROLE_PRIMARY, ROLE_SERVER, ROLE_SECONDARY };
struct message {
    uint32_t magic, version;
    uint32_t type;
    uint32_t role;
    int32_t hr;
    uint32_t index;
    uint32_t count; /* of descriptors that come with it */
    uint32_t unused;
    uint64_t sizes[MAX_SEGMENTS + 1];
    struct set_name who;
};
#define MESSAGE_FDS (MAX_SEGMENTS + 1)
struct peer {
    int fd;
    int pidfd; /* -1: this very process, or a kernel that has none */
    pid_t pid;
};
HRESULT link_listen(const struct set_name *who, bool with_group, gid_t group, int fds[2]);
HRESULT link_connect(const struct set_name *who, enum role role, struct peer *peer, struct message *welcome,
                     int fds[MESSAGE_FDS]);
int link_accept(int listener, bool with_group, gid_t group, struct peer *peer); /* 0, or -1: nobody or refused */
bool link_send(int fd, struct message *m, const int *fds);
int link_receive(int fd, struct message *m, int *fds, unsigned max_fds); /* 1, 0 nothing there, -1 ended or nonsense */
void peer_close(struct peer *p);
void close_all(int *fds, unsigned count);

/* ---- fork.c: what a forked child must not keep */
extern _Atomic uint32_t fork_generation;
#define INERT(o) ((o)->generation != atomic_load_explicit(&fork_generation, memory_order_relaxed)) /* inherited */
void descriptors_hold(void); /* no fork happens between hold and release */
void descriptors_release(void);
bool descriptor_add(int fd);   /* while held */
bool descriptor_track(int fd); /* false: no memory; closed */
void descriptor_close(int fd);

/* ---- follow.c: a joiner's thread that watches the primary and takes its messages */
struct follower {
    struct peer primary;
    int stop_fd;
    pthread_t thread;
    struct abort_latch *latch;
    struct segments *segments; /* grow by what the primary announces */
    DWORD device_count;
    pthread_mutex_t request;   /* one request at a time */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool gone;    /* the primary closed, or died */
    bool replied; /* to the request under way */
    HRESULT reply;
};
int thread_start(pthread_t *thread, const char *name, void *(*run)(void *), void *arg); /* takes no signals */
HRESULT follower_start(struct follower *f, const struct peer *primary, struct abort_latch *latch,
                       struct segments *segments, DWORD device_count);
HRESULT follower_request(struct follower *f, struct message *m, const int *fds);
bool follower_await_segment(struct follower *f, uint32_t segment);
void follower_stop(struct follower *f);

/* ---- factory.c */
extern _Atomic uint32_t live_objects;
HRESULT client_set_create(const IID *riid, void **ppv);
HRESULT server_set_create(const IID *riid, void **ppv);
struct two_faced { /* the head of a set of either half: its own interface and the private one */
    IUnknown own;
    IVdiEmbeddedSet extra;
};
HRESULT set_query(struct two_faced *set, const IID *const own_ids[], const IID *riid, void **out); /* NULL ends the ids */
/* IUnknown of the private interface, by way of the own one. */
HRESULT STDMETHODCALLTYPE extra_query(IVdiEmbeddedSet *This, const IID *riid, void **out);
ULONG STDMETHODCALLTYPE extra_add_ref(IVdiEmbeddedSet *This);
ULONG STDMETHODCALLTYPE extra_release(IVdiEmbeddedSet *This);
static inline bool guid_equal(const GUID *a, const GUID *b) { return !memcmp(a, b, sizeof *a); }

/* ---- config.c: rules for VDConfig */
HRESULT config_check_request(const VDConfig *c);
bool config_check_decision(const VDConfig *requested, const VDConfig *c);

static inline uint32_t handle_value(const uint8_t set_id[16], uint32_t index, uint64_t lending) {
    /* 12 bits of index, 10 of generation, 9 of the set's identity; bit 31 stays clear for callers that use int */
    uint32_t salt = (uint32_t)set_id[0] | ((uint32_t)(set_id[1] & 1) << 8);
    return (index + 1) | (uint32_t)((lending >> 1) & 0x3FF) << 12 | salt << 22;
}

#endif
