/* The primary client's thread: lets the server and the secondaries in, passes segments on, decides who opens which
 * device, and sees who dies. */
#include "client.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define MAX_CONNECTIONS 512u

static void drop(struct life *l, struct connection *c) {
    struct connection **p = &l->connections;
    while (*p != c)
        p = &(*p)->next;
    *p = c->next;
    DWORD pid = (DWORD)c->peer.pid;
    char reason[128];
    if (c->role == SERVER && !c->said_bye && !life_all_closed(l)) {
        snprintf(reason, sizeof reason, "The server, process %u, died.", pid);
        abort_post(&l->latch, VDI_ABORT_SERVER_DIED, pid, reason);
    } else if (c->role == SECONDARY && life_claims_unfinished(l, c, true)) {
        snprintf(reason, sizeof reason, "A secondary client, process %u, %s with a device open.", pid,
                 c->said_bye ? "left" : "died");
        abort_post(&l->latch, c->said_bye ? VDI_ABORT_CLOSED : VDI_ABORT_SECONDARY_DIED, pid, reason);
    }
    life_disown(l, c);
    peer_close(&c->peer);
    free(c);
}

static bool take_hello(struct life *l, struct connection *c, struct message *m) {
    struct message answer = {.type = MSG_WELCOME, .hr = NOERROR};
    int fds[MESSAGE_FDS];
    pthread_mutex_lock(&l->lock);
    if (!name_equal(m->who.name, l->who.name) || !name_equal(m->who.instance, l->who.instance))
        answer.hr = VD_E_INVALID;
    else if (aborted(&l->latch))
        answer.hr = VD_E_ABORT;
    else if (m->role == ROLE_SERVER)
        answer.hr = l->server_came ? VD_E_BUSY : NOERROR;
    else if (m->role == ROLE_SECONDARY)
        answer.hr = atomic_load(&l->state) >= VDI_STATE_INITIALIZING ? NOERROR : VD_E_PROTOCOL;
    else
        answer.hr = VD_E_INVALID;
    if (answer.hr == NOERROR) {
        answer.sizes[0] = l->ctl_map->size;
        fds[0] = l->ctl_fd;
        uint32_t n = atomic_load(&l->segments.count);
        for (uint32_t i = 0; i < n; i++) {
            answer.sizes[1 + i] = l->segments.map[i]->size;
            fds[1 + i] = l->segment_fds[i];
        }
        answer.count = 1 + n;
        c->role = m->role == ROLE_SERVER ? SERVER : SECONDARY;
        l->server_came |= c->role == SERVER;
    }
    pthread_mutex_unlock(&l->lock);
    return link_send(c->peer.fd, &answer, fds) && answer.hr == NOERROR;
}

/* Takes over a segment from the server and announces it before the server goes on to use it. */
static bool take_segment(struct life *l, struct connection *c, struct message *m, int *fds) {
    struct message answer = {.type = MSG_SEGMENT_ACK, .hr = VD_E_MEMORY};
    uint32_t n = atomic_load(&l->segments.count);
    uint64_t total = m->sizes[0];
    for (uint32_t i = 0; i < n; i++)
        total += l->segments.map[i]->size;
    struct mapping *map = NULL;
    if (m->count == 1 && m->index == n && n < MAX_SEGMENTS && m->sizes[0] <= MAX_AREA && total <= MAX_AREA)
        map = memory_map(fds[0], m->sizes[0], true);
    if (map) {
        pthread_mutex_lock(&l->lock);
        l->segments.map[n] = map;
        l->segment_fds[n] = fds[0];
        atomic_store_explicit(&l->segments.count, n + 1, memory_order_release);
        pthread_mutex_unlock(&l->lock);
        for (struct connection *other = l->connections; other; other = other->next)
            if (other->role == SECONDARY) {
                struct message on = {.type = MSG_SEGMENT, .index = n, .count = 1, .sizes = {m->sizes[0]}};
                link_send(other->peer.fd, &on, fds); /* one that does not read will find its segment missing */
            }
        answer.hr = NOERROR;
    } else {
        close_all(fds, m->count);
    }
    return link_send(c->peer.fd, &answer, NULL);
}

/* False: drop the connection. */
static bool take_message(struct life *l, struct connection *c) {
    struct message m;
    int fds[MESSAGE_FDS];
    for (;;) {
        int got = link_receive(c->peer.fd, &m, fds, MESSAGE_FDS);
        if (got <= 0)
            return got == 0;
        if (m.type == MSG_SEGMENT && c->role == SERVER) {
            if (!take_segment(l, c, &m, fds))
                return false;
            continue;
        }
        close_all(fds, m.count);
        if (m.type == MSG_HELLO && c->role == NEWCOMER) {
            if (!take_hello(l, c, &m))
                return false;
        } else if (m.type == MSG_OPEN_DEVICE && c->role == SECONDARY) {
            struct message answer = {.type = MSG_OPEN_REPLY, .hr = life_claim(l, m.who.name, c)};
            if (!link_send(c->peer.fd, &answer, NULL))
                return false;
        } else if (m.type == MSG_BYE) {
            c->said_bye = true;
            return false;
        } else {
            return false;
        }
    }
}

static void let_in(struct life *l, int listener) {
    struct peer peer;
    while (link_accept(listener, l->with_group, l->group, &peer) == 0) {
        unsigned n = 0;
        for (struct connection *c = l->connections; c; c = c->next)
            n++;
        struct connection *c = n < MAX_CONNECTIONS ? calloc(1, sizeof *c) : NULL;
        if (!c) {
            struct message no = {.type = MSG_WELCOME, .hr = VD_E_BUSY};
            link_send(peer.fd, &no, NULL);
            peer_close(&peer);
            return;
        }
        c->peer = peer;
        c->deadline = now_ns() + (uint64_t)JOIN_MS * 1000000u;
        c->next = l->connections;
        l->connections = c;
    }
}

static void *hub(void *arg) {
    struct life *l = arg;
    static const unsigned own = 3;
    struct pollfd *p = NULL;
    for (;;) {
        unsigned n = 0;
        uint64_t next = UINT64_MAX;
        for (struct connection *c = l->connections; c; c = c->next) {
            n++;
            if (c->role == NEWCOMER && c->deadline < next)
                next = c->deadline;
        }
        struct pollfd *bigger = realloc(p, (own + 2 * n) * sizeof *p);
        if (!bigger) {
            abort_post(&l->latch, VDI_ABORT_CLOSED, (DWORD)getpid(), "The primary client ran out of memory.");
            break;
        }
        p = bigger;
        p[0] = (struct pollfd){.fd = l->stop_fd, .events = POLLIN};
        p[1] = (struct pollfd){.fd = l->listeners[0], .events = POLLIN};
        p[2] = (struct pollfd){.fd = l->listeners[1], .events = POLLIN};
        unsigned k = own;
        for (struct connection *c = l->connections; c; c = c->next) {
            p[k++] = (struct pollfd){.fd = c->peer.fd, .events = POLLIN};
            p[k++] = (struct pollfd){.fd = c->peer.pidfd, .events = POLLIN};
        }
        uint64_t now = now_ns();
        int timeout = next == UINT64_MAX ? -1 : next <= now ? 0 : (int)((next - now) / 1000000u) + 1;
        while (poll(p, own + 2 * n, timeout) < 0 && errno == EINTR)
            ;
        if (p[0].revents)
            break;
        now = now_ns();
        k = own;
        for (struct connection *c = l->connections, *after; c; c = after, k += 2) {
            after = c->next;
            bool keep = !p[k].revents || take_message(l, c);
            if (keep && p[k + 1].revents) /* what it sent before it ended counts */
                keep = take_message(l, c) && false;
            if (!keep || (c->role == NEWCOMER && now >= c->deadline))
                drop(l, c);
        }
        for (int i = 0; i < 2; i++)
            if (p[1 + i].revents)
                let_in(l, l->listeners[i]);
    }
    free(p);
    return NULL;
}

HRESULT hub_start(struct life *l) {
    HRESULT hr = link_listen(&l->who, l->with_group, l->group, l->listeners);
    if (FAILED(hr))
        return hr;
    l->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (l->stop_fd < 0 || !descriptor_track(l->stop_fd)) {
        close_all(l->listeners, 2);
        return VD_E_MEMORY;
    }
    if (thread_start(&l->hub, "vdi primary", hub, l)) {
        close_all(l->listeners, 2);
        descriptor_close(l->stop_fd);
        return VD_E_MEMORY;
    }
    return NOERROR;
}

void hub_stop(struct life *l) {
    eventfd_write(l->stop_fd, 1);
    pthread_join(l->hub, NULL);
    close_all(l->listeners, 2); /* the name is free from here on */
    descriptor_close(l->stop_fd);
    while (l->connections) {
        struct connection *c = l->connections;
        struct message bye = {.type = MSG_BYE};
        link_send(c->peer.fd, &bye, NULL);
        l->connections = c->next;
        peer_close(&c->peer);
        free(c);
    }
}
