/* Client half: what its files share. */
#ifndef VDI_CLIENT_H
#define VDI_CLIENT_H

#include "internal.h"

/* One claim on a device name, wherever in the set's processes it was opened. Kept by the primary. */
struct claim {
    WCHAR name[NAME_UNITS + 1];
    struct connection *holder; /* NULL: the primary itself */
};

struct connection { /* of the primary to one joiner */
    struct connection *next;
    struct peer peer;
    uint64_t deadline; /* for its HELLO */
    enum { NEWCOMER, SERVER, SECONDARY } role;
    bool said_bye;
};

/* Objects that OpenDevice may make: for every name taken on trust that was wrong, and then for every right one. */
#define MAX_OPENED (2 * MAX_DEVICES)

/* What lives from CreateEx or OpenInSecondary to Close. Devices keep it in memory beyond that, without its mappings. */
struct life {
    _Atomic unsigned refs;
    enum role role;
    struct set_name who;
    VDConfig requested, decided;
    struct mapping *ctl_map;
    struct ctl *ctl;
    uint8_t set_id[16];
    struct segments segments;
    struct abort_latch latch;
    struct gate gate;
    _Atomic uint32_t state; /* CONFIGURABLE, INITIALIZING, ACTIVE; the others are derived */

    pthread_mutex_t lock; /* of all below */
    struct client_device *devices[MAX_OPENED];
    unsigned device_count;

    /* primary */
    bool with_group;
    gid_t group;
    int ctl_fd, segment_fds[MAX_SEGMENTS];
    int listeners[2], stop_fd;
    pthread_t hub;
    struct connection *connections; /* the hub's own */
    bool server_came;
    struct claim claims[MAX_DEVICES];
    unsigned claim_count;

    /* secondary */
    struct follower follower;
};

struct client_command { /* what an outstanding command is, beyond what its receiver sees */
    VDC_Command command;
    bool out;
    bool described; /* its buffer has been made known in the shared table */
    uint32_t ticket, buffer, epoch;
    uint64_t lending;
    struct client_command *next_free;
};
#define CHUNK 64u
#define CHUNKS (QUEUE_DEPTH / CHUNK + 1)

struct client_device {
    IClientVirtualDevice iface;
    _Atomic ULONG refs;
    uint32_t generation; /* of fork */
    struct life *life;
    WCHAR name[NAME_UNITS + 1];

    pthread_mutex_t lock;
    pthread_cond_t left; /* a waiting call has left */
    unsigned waiting;
    _Atomic bool dead; /* the set was closed */
    bool closed;       /* VD_E_CLOSE was reported */
    struct dev_shared *shared; /* NULL until the server has opened a device of this name */
    uint32_t next_command, next_completion;
    bool io_error;
    bool withheld; /* the next command is a ClearError that must wait for older_out */
    uint32_t epoch;
    _Atomic uint32_t older_out; /* outstanding commands other than ClearError */
    struct client_command *chunks[CHUNKS];
    struct client_command *free_commands;
};

struct client_device *device_create(struct life *life, const WCHAR *name);
void device_kill(struct client_device *d); /* refuses all calls from now on, and waits for those inside */
void device_free(struct client_device *d);
struct client_command *device_find_buffer(struct client_device *d, const BYTE *buffer);
void device_publish_buffer(struct client_device *d, struct client_command *c);

/* ---- client_life.c. A group: its members may join as well; NULL for none. */
HRESULT life_begin(struct life **out, enum role role, LPCWSTR instance, LPCWSTR name, const VDConfig *cfg,
                   const gid_t *group);
HRESULT life_close(struct life *l); /* calls inside have left when it returns; the reference stays */
void life_release(struct life *l);
uint32_t life_state(struct life *l);
bool life_all_closed(struct life *l);
bool life_await_segment(struct life *l, uint32_t segment);
HRESULT life_claim(struct life *l, const WCHAR *name, struct connection *holder);
void life_disown(struct life *l, struct connection *holder);
bool life_claims_unfinished(struct life *l, struct connection *holder, bool of_holder_only);
struct dev_shared *life_find_device(struct life *l, const WCHAR *name, bool *all_opened);

/* ---- client_handles.c, inside a life. False and NULL: no buffer that is lent now. */
bool handle_describe(struct life *l, const BYTE *buffer, VdiBufferInfo *info);
BYTE *handle_map(struct life *l, DWORD value, const VdiBufferInfo *given, VdiBufferInfo *actual); /* both may be NULL */
bool handle_is_good(struct life *l, const VdiBufferInfo *handle);

HRESULT hub_start(struct life *l);
void hub_stop(struct life *l);

#endif
