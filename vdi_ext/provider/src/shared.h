/* Layout of the control memory that all processes of a set share. Everything in it may be overwritten by a hostile peer
 * at any time: copy a field out once, check the copy, use the copy. */
#ifndef VDI_SHARED_H
#define VDI_SHARED_H

#include <stdatomic.h>
#include <stdint.h>

#include "vdi_provider.h"

#define CTL_MAGIC 0x43494456u
#define CTL_VERSION 1u

#define MAX_DEVICES 64u
#define MAX_SEGMENTS 64u
#define MAX_BUFFERS 4032u /* so that a queue holds every buffer and some control commands besides */
#define QUEUE_DEPTH 4096u
#define NAME_UNITS 256u /* 128 characters, each up to two UTF-16 units */
#define NO_BUFFER 0xFFFFFFFFu
#define CODE_CLOSE 0xFFFFFFFFu /* in a command ring: the server has closed the device */

#define LINE _Alignas(64)

/* Server -> client. One cache line, published by its own sequence number, so that a command costs one line transfer
 * and neither side reads the other's index. */
struct cmd_entry {
    LINE _Atomic uint32_t seq; /* ring index + 1 */
    uint32_t code;
    uint32_t size;
    uint32_t ticket; /* server's slot and its generation, returned in the completion */
    uint64_t position;
    uint64_t offset; /* of the data in its segment */
    uint64_t lending; /* generation of the buffer while it is out */
    uint32_t segment;
    uint32_t buffer; /* index into the buffer table, or NO_BUFFER */
    uint32_t epoch;  /* errors of the device that the server knew of */
};

/* Client -> server. */
struct cmp_entry {
    _Alignas(32) _Atomic uint32_t seq; /* ring index + 1 */
    uint32_t ticket;
    uint32_t code;
    uint32_t bytes;
    uint64_t position;
    uint32_t delivered; /* with epoch: commands from this ring index on were never seen by the client */
    uint32_t epoch;     /* not 0: this completion moved the device to IO-ERROR, for the epoch-th time */
};

/* What a handle means. Written by the client that holds the command, when it makes a handle and when it completes the
 * command; a buffer is out while its lending is odd. */
struct buf_entry {
    _Atomic uint64_t lending;
    _Atomic uint64_t offset;
    _Atomic uint32_t segment;
    _Atomic uint32_t size;
    _Atomic uint32_t read_only;
    uint32_t unused;
};

struct dev_shared {
    LINE _Atomic uint32_t opened; /* by the server; publishes name */
    WCHAR name[NAME_UNITS + 1];
    LINE _Atomic uint32_t error_epoch; /* by the client: times the device went to IO-ERROR */
    _Atomic uint32_t client_closed;    /* by the client: VD_E_CLOSE was reported */
    LINE _Atomic uint32_t client_sleeps;
    struct cmd_entry commands[QUEUE_DEPTH];
    struct cmp_entry completions[QUEUE_DEPTH];
};

struct ctl {
    /* Written by the primary before anybody joins. */
    uint32_t magic;
    uint32_t version;
    uint8_t set_id[16];
    VDConfig requested;

    LINE _Atomic uint32_t configured; /* publishes decided */
    VDConfig decided;
    LINE _Atomic uint32_t configured_sleeps;

    LINE _Atomic uint32_t abort; /* 0; 1 cause being written; 2 abort_info published */
    VdiAbortInfo abort_info;

    LINE _Atomic uint32_t agent_sleeps;
    LINE _Atomic uint32_t opened_sleeps; /* clients waiting for the server to open devices */

    struct buf_entry buffers[MAX_BUFFERS];
    struct dev_shared devices[MAX_DEVICES];
};

/* Copies a structure out of shared memory; the compiler may not read it again afterwards. */
#define COPY_OUT(dst, src)                                                                                             \
    do {                                                                                                               \
        (dst) = (src);                                                                                                 \
        __asm__ volatile("" ::: "memory");                                                                             \
    } while (0)

/* The order in which a ring entry becomes visible. The mutant exists to prove that the race detector sees. */
#ifdef VDI_MUTANT_RELAXED_PUBLICATION
#define PUBLISH(p, v) atomic_store_explicit((p), (v), memory_order_relaxed)
#else
#define PUBLISH(p, v) atomic_store_explicit((p), (v), memory_order_seq_cst)
#endif
#define OBSERVE(p) atomic_load_explicit((p), memory_order_acquire)

#endif
