/* The server and the secondaries follow the primary client: one thread each, asleep until the primary says something,
 * closes, or dies. */
#include "internal.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <unistd.h>

static void take_segment(struct follower *f, struct message *m, int *fds) {
    uint32_t n = atomic_load(&f->segments->count);
    if (m->count == 1 && m->index == n && n < MAX_SEGMENTS && m->sizes[0] <= MAX_AREA) {
        struct mapping *map = memory_map(fds[0], m->sizes[0], true);
        if (map) {
            f->segments->map[n] = map;
            atomic_store_explicit(&f->segments->count, n + 1, memory_order_release);
        }
    }
    close_all(fds, m->count);
}

/* False: the primary has closed. */
static bool take_messages(struct follower *f, bool *ended) {
    struct message m;
    int fds[MESSAGE_FDS], got;
    while ((got = link_receive(f->primary.fd, &m, fds, MESSAGE_FDS)) > 0) {
        bool bye = m.type == MSG_BYE;
        pthread_mutex_lock(&f->lock);
        if (m.type == MSG_SEGMENT) {
            take_segment(f, &m, fds);
        } else {
            close_all(fds, m.count);
            if (m.type == MSG_SEGMENT_ACK || m.type == MSG_OPEN_REPLY) {
                f->reply = m.hr;
                f->replied = true;
            }
        }
        pthread_cond_broadcast(&f->changed);
        pthread_mutex_unlock(&f->lock);
        if (bye)
            return false;
    }
    *ended = got < 0;
    return true;
}

static void *follow(void *arg) {
    struct follower *f = arg;
    struct pollfd p[3] = {{.fd = f->primary.fd, .events = POLLIN},
                          {.fd = f->primary.pidfd, .events = POLLIN},
                          {.fd = f->stop_fd, .events = POLLIN}};
    bool died = false, ended = false;
    while (!died) {
        while (poll(p, 3, -1) < 0 && errno == EINTR)
            ;
        if (p[2].revents)
            return NULL;
        bool process_ended = p[1].revents != 0;
        if (!take_messages(f, &ended))
            break;
        died = ended || process_ended;
    }
    if (died && !all_devices_ended(f->latch->ctl, f->device_count)) {
        char reason[128];
        snprintf(reason, sizeof reason, "The primary client, process %d, died.", (int)f->primary.pid);
        abort_post(f->latch, VDI_ABORT_PRIMARY_DIED, (DWORD)f->primary.pid, reason);
    }
    pthread_mutex_lock(&f->lock);
    f->gone = true;
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->lock);
    return NULL;
}

/* Threads of the provider take no signals: they belong to the program. */
int thread_start(pthread_t *thread, const char *name, void *(*run)(void *), void *arg) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 256 << 10);
    int e = pthread_create(thread, &attr, run, arg);
    if (e == 0)
        pthread_setname_np(*thread, name);
    pthread_attr_destroy(&attr);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return e;
}

HRESULT follower_start(struct follower *f, const struct peer *primary, struct abort_latch *latch,
                       struct segments *segments, DWORD device_count) {
    f->primary = *primary;
    f->latch = latch;
    f->segments = segments;
    f->device_count = device_count;
    f->gone = f->replied = false;
    pthread_mutex_init(&f->request, NULL);
    pthread_mutex_init(&f->lock, NULL);
    monotonic_cond_init(&f->changed);
    f->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (f->stop_fd < 0 || !descriptor_track(f->stop_fd))
        return VD_E_MEMORY;
    if (thread_start(&f->thread, "vdi follower", follow, f)) {
        descriptor_close(f->stop_fd);
        return VD_E_MEMORY;
    }
    return NOERROR;
}

/* Sends to the primary and waits for its answer, the abort, its end, or 5 seconds. */
HRESULT follower_request(struct follower *f, struct message *m, const int *fds) {
    uint64_t deadline = now_ns() + (uint64_t)JOIN_MS * 1000000u;
    HRESULT hr = VD_E_TIMEOUT;
    pthread_mutex_lock(&f->request);
    pthread_mutex_lock(&f->lock);
    f->replied = false;
    link_send(f->primary.fd, m, fds); /* where it fails the primary has gone, which the thread is about to see */
    while (!f->replied && !f->gone && !aborted(f->latch) && now_ns() < deadline)
        cond_wait_until(&f->changed, &f->lock, now_ns() + 50000000u);
    if (f->replied)
        hr = f->reply;
    else if (f->gone || aborted(f->latch))
        hr = VD_E_ABORT;
    pthread_mutex_unlock(&f->lock);
    pthread_mutex_unlock(&f->request);
    return hr;
}

bool follower_await_segment(struct follower *f, uint32_t segment) {
    uint64_t deadline = now_ns() + (uint64_t)JOIN_MS * 1000000u;
    pthread_mutex_lock(&f->lock);
    while (atomic_load(&f->segments->count) <= segment && !f->gone && !aborted(f->latch) && now_ns() < deadline)
        cond_wait_until(&f->changed, &f->lock, now_ns() + 50000000u);
    bool there = atomic_load(&f->segments->count) > segment;
    pthread_mutex_unlock(&f->lock);
    return there;
}

void follower_stop(struct follower *f) {
    struct message bye = {.type = MSG_BYE};
    eventfd_write(f->stop_fd, 1);
    pthread_join(f->thread, NULL);
    link_send(f->primary.fd, &bye, NULL); /* last: it makes the primary hang up, which the thread would misread */
    descriptor_close(f->stop_fd);
    peer_close(&f->primary);
    pthread_cond_destroy(&f->changed);
    pthread_mutex_destroy(&f->lock);
    pthread_mutex_destroy(&f->request);
}
