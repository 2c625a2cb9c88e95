/* What two processes need at least: ping-pongs over two words of shared memory, and writers of plain pipes. */
#include "bench.h"

#include <errno.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

struct court { /* shared; zeroed before each match */
    _Alignas(64) _Atomic uint32_t ping;
    _Alignas(64) _Atomic uint32_t pong;
    _Alignas(64) uint64_t stamp[2];
};

static void await(_Atomic uint32_t *word, uint32_t value, bool asleep) {
    uint32_t seen;
    while ((seen = atomic_load_explicit(word, memory_order_acquire)) != value)
        if (asleep)
            syscall(SYS_futex, word, FUTEX_WAIT, seen, NULL, NULL, 0);
}

static void serve(_Atomic uint32_t *word, uint32_t value, bool asleep) {
    atomic_store(word, value);
    if (asleep)
        syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

/* The side that is measured: ns for `count` round trips, counted from `from` on so that a match can go on. */
EXPORT int64_t raw_ping(void *court_, uint32_t from, uint32_t count, int asleep) {
    struct court *c = court_;
    uint64_t start = bench_now();
    for (uint32_t i = from + 1; i <= from + count; i++) {
        serve(&c->ping, i, asleep);
        await(&c->pong, i, asleep);
    }
    return (int64_t)(bench_now() - start);
}

EXPORT void raw_pong(void *court_, uint32_t from, uint32_t count, int asleep) {
    struct court *c = court_;
    for (uint32_t i = from + 1; i <= from + count; i++) {
        await(&c->ping, i, asleep);
        serve(&c->pong, i, asleep);
    }
}

/* As client_sleepy and its server: each side waits until the other sleeps; the ways are timed, the pauses are not. */
EXPORT void raw_sleepy_ping(void *court_, uint32_t from, uint32_t count, uint64_t pause, uint64_t *times) {
    struct court *c = court_;
    for (uint32_t i = 1; i <= count; i++) {
        bench_spin(pause);
        uint64_t sent = bench_now();
        serve(&c->ping, from + i, true);
        await(&c->pong, from + i, true);
        times[i - 1] = bench_now() - c->stamp[1] + (c->stamp[0] - sent);
    }
}

EXPORT void raw_sleepy_pong(void *court_, uint32_t from, uint32_t count, uint64_t pause) {
    struct court *c = court_;
    for (uint32_t i = from + 1; i <= from + count; i++) {
        await(&c->ping, i, true);
        c->stamp[0] = bench_now();
        bench_spin(pause);
        c->stamp[1] = bench_now();
        serve(&c->pong, i, true);
    }
}

/* Writes `count` blocks of fresh bytes; 0, or errno. */
EXPORT int raw_write(int fd, const uint8_t *source, uint32_t size, uint32_t count) {
    while (count--)
        for (uint32_t done = 0; done < size;) {
            ssize_t n = write(fd, source + done, size - done);
            if (n < 0 && errno != EINTR)
                return errno;
            done += n > 0 ? (uint32_t)n : 0;
        }
    return 0;
}

EXPORT void raw_copy(void *to, const void *from, size_t size) { memcpy(to, from, size); }
EXPORT uint64_t raw_read_all(const void *p, size_t size) { return bench_read_all(p, size); }
EXPORT uint64_t raw_now(void) { return bench_now(); }
