/* Waiting: a short spin, then a futex. The side that wakes makes a system call only where somebody sleeps. */
#include "internal.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SPIN_NS 50000u
#define SLICE_NS 200000000u /* a peer that scribbles over the futex word can delay a wake-up by this, no more */

uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t deadline_after(DWORD milliseconds) {
    return milliseconds == INFINITE ? UINT64_MAX : now_ns() + (uint64_t)milliseconds * 1000000u;
}

static struct timespec timespec_of(uint64_t ns) {
    return (struct timespec){.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
}

static inline void pause_cpu(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Spinning is worth its while where the other side runs at the same time. Where it does not - the processors are busy, or
 * it takes long over each command - the process finds out by spinning in vain, and from then on its threads spin only now
 * and then, to see whether that has changed. Each thread for itself would find out too late where there are many. */
#define IN_VAIN 2u     /* times in a row after which it is given up */
#define TRY_AGAIN 16u  /* one wait in so many spins all the same */
static _Atomic unsigned in_vain;

/* More spinners than processors would only take the time that the other side needs. */
static _Atomic int spinners;

void wait_after_fork(void) { atomic_store(&spinners, 0); }

static int processors = 1;

/* When the library is loaded: to find out, the C library opens a file, which a fork on another thread would inherit. */
__attribute__((constructor)) static void count_processors(void) {
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    processors = n < 1 ? 1 : (int)n;
}

static bool spin(bool (*ready)(void *), void *arg, uint64_t until) {
    do
        for (int i = 0; i < 64; i++) {
            pause_cpu();
            if (ready(arg))
                return true;
        }
    while (now_ns() < until);
    return false;
}

bool wait_until(_Atomic uint32_t *sleeps, bool (*ready)(void *), void *arg, uint64_t deadline) {
    if (ready(arg))
        return true;
    uint64_t start = now_ns();
    if (start >= deadline)
        return false;
    unsigned vain = atomic_load_explicit(&in_vain, memory_order_relaxed);
    if (processors > 1 && (vain < IN_VAIN || vain % TRY_AGAIN == 0)) {
        bool came = false;
        if (atomic_fetch_add_explicit(&spinners, 1, memory_order_relaxed) < processors)
            came = spin(ready, arg, start + SPIN_NS < deadline ? start + SPIN_NS : deadline);
        atomic_fetch_sub_explicit(&spinners, 1, memory_order_relaxed);
        if (came) {
            if (vain)
                atomic_store_explicit(&in_vain, 0, memory_order_relaxed);
            return true;
        }
    }
    atomic_fetch_add_explicit(&in_vain, 1, memory_order_relaxed);
    for (;;) {
        atomic_store(sleeps, 1);
        if (ready(arg))
            return true;
        uint64_t now = now_ns();
        if (now >= deadline)
            return false;
        uint64_t left = deadline - now;
        struct timespec slice = timespec_of(left < SLICE_NS ? left : SLICE_NS);
        syscall(SYS_futex, sleeps, FUTEX_WAIT, 1, &slice, NULL, 0);
    }
}

void wake(_Atomic uint32_t *sleeps) {
    if (atomic_load(sleeps) && atomic_exchange(sleeps, 0))
        syscall(SYS_futex, sleeps, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

void monotonic_cond_init(pthread_cond_t *cond) {
    pthread_condattr_t a;
    pthread_condattr_init(&a);
    pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &a);
    pthread_condattr_destroy(&a);
}

/* Sections under these locks are some tens of ns long: spin before sleeping. */
void adaptive_mutex_init(pthread_mutex_t *mutex) {
    pthread_mutexattr_t a;
    pthread_mutexattr_init(&a);
    pthread_mutexattr_settype(&a, PTHREAD_MUTEX_ADAPTIVE_NP);
    pthread_mutex_init(mutex, &a);
    pthread_mutexattr_destroy(&a);
}

bool cond_wait_until(pthread_cond_t *cond, pthread_mutex_t *mutex, uint64_t deadline) {
    if (deadline == UINT64_MAX)
        return pthread_cond_wait(cond, mutex) == 0;
    struct timespec t = timespec_of(deadline);
    return pthread_cond_timedwait(cond, mutex, &t) != ETIMEDOUT;
}

void gate_init(struct gate *g) {
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->empty, NULL);
    g->inside = 0;
}

bool gate_enter(struct gate *g) {
    pthread_mutex_lock(&g->lock);
    bool open = g->open;
    if (open)
        g->inside++;
    pthread_mutex_unlock(&g->lock);
    return open;
}

void gate_leave(struct gate *g) {
    pthread_mutex_lock(&g->lock);
    if (--g->inside == 0)
        pthread_cond_broadcast(&g->empty);
    pthread_mutex_unlock(&g->lock);
}

bool gate_shut(struct gate *g) {
    pthread_mutex_lock(&g->lock);
    bool was = g->open;
    g->open = false;
    pthread_mutex_unlock(&g->lock);
    return was;
}

void gate_wait_empty(struct gate *g) {
    pthread_mutex_lock(&g->lock);
    while (g->inside)
        pthread_cond_wait(&g->empty, &g->lock);
    pthread_mutex_unlock(&g->lock);
}
