/* Server half: what its files share. */
#ifndef VDI_SERVER_H
#define VDI_SERVER_H

#include "internal.h"

/* Space in the segments: holes that are free, and bins of freed buffers that are given out again as they are, the one
 * freed last first, because its lines are still in the cache. */
struct hole {
    uint32_t segment;
    uint64_t offset, length;
};
struct buffer {
    uint8_t *address; /* of the data; NULL: this number is free */
    DWORD size, alignment;
    uint32_t segment;
    uint64_t start, length; /* of the whole piece, with padding, prefix and guard */
    uint64_t offset;        /* of the data */
    uint64_t lending;       /* last value in the shared table */
    bool lent;              /* a command has it */
    bool binned;            /* freed, kept whole */
    uint32_t next;          /* in a bin, or in the list of free numbers */
    uint32_t same_hash;     /* allocated buffers by address */
};
struct allocator {
    DWORD prefix, alignment; /* of the set */
    struct hole *holes;
    unsigned hole_count, hole_room;
    struct buffer buffers[MAX_BUFFERS];
    uint32_t free_numbers, bins; /* heads; NO_BUFFER ends */
    struct {
        DWORD size, alignment;
    } made_for[MAX_SEGMENTS]; /* what a segment was requested for after configuration; 0: everything before */
    uint32_t by_address[1024];
};
uint64_t allocator_need(const struct allocator *a, DWORD size, DWORD alignment);
uint64_t allocator_reserve(const struct allocator *a, DWORD size, DWORD alignment); /* worst case of its place */
void allocator_init(struct allocator *a, DWORD prefix, DWORD alignment);
bool allocator_add(struct allocator *a, uint32_t segment, uint64_t length, DWORD size, DWORD alignment);
uint32_t allocator_take(struct allocator *a, struct segments *s, DWORD size, DWORD alignment); /* or NO_BUFFER */
void allocator_give(struct allocator *a, uint32_t number);
uint64_t allocator_count(struct allocator *a, DWORD size, DWORD alignment);
uint32_t allocator_find(const struct allocator *a, const BYTE *address);
bool allocator_contains(const struct allocator *a, const BYTE *address);
void allocator_free(struct allocator *a);

struct slot { /* a command that is with VDI or the client */
    VDS_Command *command;
    uint32_t ring; /* its index */
    uint32_t epoch;
    uint32_t buffer;
    uint32_t generation;
    uint16_t prev, next; /* in order of sending */
};
#define NO_SLOT 0xFFFFu

struct server_set;

struct server_device {
    IServerVirtualDevice iface;
    _Atomic ULONG refs;
    uint32_t generation; /* of fork */
    struct server_set *set;
    pthread_mutex_t lock;
    bool dead; /* the set was closed */
    bool closed;
    struct dev_shared *shared;
    uint32_t next_command, next_completion;
    uint32_t taken; /* commands that the client is known to have taken out of the ring */
    uint32_t cleared_epoch;
    unsigned outstanding;
    struct slot *slots;
    uint32_t slot_room; /* grows with use */
    uint16_t free_slots, first, last;
};

struct server_set {
    IServerVirtualDeviceSet2 iface;
    IVdiEmbeddedSet extra;
    _Atomic ULONG refs;
    _Atomic unsigned holds; /* on the memory: the object itself, referenced devices, a running agent */
    uint32_t generation;    /* of fork */

    pthread_mutex_t open_lock;
    bool used; /* Open succeeded once */
    struct gate gate;
    _Atomic uint32_t state; /* DNE, CONNECTED, CONFIGURABLE, INITIALIZING, ACTIVE; the others are derived */
    struct set_name who;
    struct mapping *ctl_map;
    struct ctl *ctl;
    struct segments segments;
    struct abort_latch latch;
    struct follower follower;
    VDConfig requested, decided;
    uint8_t set_id[16];

    pthread_mutex_t lock; /* of configuration and the opening of devices */
    uint64_t wanted, wanted_count, area;
    pthread_mutex_t space_lock; /* held for some tens of ns; taken inside a device's lock */
    struct allocator space;
    struct server_device *devices[MAX_DEVICES];
    _Atomic uint32_t opened, closed;

    _Atomic uint64_t outstanding; /* commands of all devices */
    _Atomic uint64_t pending_since; /* ns: last completion, or when outstanding left zero */
    pthread_mutex_t agent_lock;
    pthread_cond_t agent_left;
    bool agent_running, unmap_after_agent;
    pthread_t agent_thread;
};

uint32_t server_state(struct server_set *s);
void server_hold(struct server_set *s);
void server_drop(struct server_set *s);
void server_release_mappings(struct server_set *s);

struct server_device *server_device_create(struct server_set *s, struct dev_shared *shared);
void server_device_free(struct server_device *d);
bool server_device_complete_one(struct server_device *d); /* false: nothing there */
void server_device_complete_all(struct server_device *d, DWORD code);
bool server_device_has_completion(struct server_device *d);
bool server_device_given_up(struct server_device *d); /* the client reported VD_E_CLOSE and left commands behind */

bool agent_enter(struct server_set *s); /* false: another thread is it */
HRESULT agent_run(struct server_set *s);
bool agent_leave(struct server_set *s); /* true: Close was called in a completion routine; unmap now */
bool agent_wait(struct server_set *s);  /* false: this thread is the agent */
void agent_drain(struct server_set *s);

#endif
