/* Rendezvous and messages. The primary client listens on an abstract socket, which vanishes with its last descriptor;
 * its name is a hash of user (or group), instance and set. Both ends check each other's user, whatever the name. */
#include "internal.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif
#ifndef SO_PEERGROUPS
#define SO_PEERGROUPS 59
#endif

static uint64_t fnv1a(uint64_t h, const void *data, size_t n) {
    const uint8_t *p = data;
    for (size_t i = 0; i < n; i++)
        h = (h ^ p[i]) * 0x100000001B3ull;
    return h;
}

/* The hash only has to spread names; who may join is decided by credentials, and the names themselves are compared. */
static socklen_t address_of(struct sockaddr_un *a, char kind, uint32_t id, const struct set_name *who) {
    uint64_t h[2] = {0xCBF29CE484222325ull, 0x84222325CBF29CE4ull};
    for (int i = 0; i < 2; i++) {
        h[i] = fnv1a(h[i], &kind, 1);
        h[i] = fnv1a(h[i], &id, sizeof id);
        h[i] = fnv1a(h[i], who, sizeof *who);
    }
    memset(a, 0, sizeof *a);
    a->sun_family = AF_UNIX;
    int n = snprintf(a->sun_path + 1, sizeof a->sun_path - 1, "vdi_ext/%c%u/%016llx%016llx", kind, id,
                     (unsigned long long)h[0], (unsigned long long)h[1]);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n);
}

void close_all(int *fds, unsigned count) {
    for (unsigned i = 0; i < count; i++)
        descriptor_close(fds[i]);
}

void peer_close(struct peer *p) {
    descriptor_close(p->fd);
    descriptor_close(p->pidfd);
    p->fd = p->pidfd = -1;
}

static bool in_group(int fd, const struct ucred *cred, gid_t group) {
    if (cred->gid == group)
        return true;
    gid_t groups[1024];
    socklen_t size = sizeof groups;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &size))
        return false;
    for (size_t i = 0; i < size / sizeof *groups; i++)
        if (groups[i] == group)
            return true;
    return false;
}

/* Checks who is at the other end and gets hold of that very process. */
static bool identify(struct peer *p, bool with_group, gid_t group) {
    struct ucred cred;
    socklen_t size = sizeof cred;
    p->pidfd = -1;
    if (getsockopt(p->fd, SOL_SOCKET, SO_PEERCRED, &cred, &size) ||
        !(cred.uid == geteuid() || (with_group && in_group(p->fd, &cred, group))))
        return false;
    p->pid = cred.pid;
    if (p->pid == getpid())
        return true;
    size = sizeof p->pidfd;
    if (getsockopt(p->fd, SOL_SOCKET, SO_PEERPIDFD, &p->pidfd, &size)) {
        p->pidfd = -1;
        if (errno == ENOPROTOOPT && p->pid > 0) /* kernels before 6.5; the socket tells if the number was reused */
            p->pidfd = (int)syscall(SYS_pidfd_open, p->pid, 0);
    }
    if (!descriptor_track(p->pidfd))
        p->pidfd = -1;
    return true;
}

static int new_socket(void) { return socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0); }

/* 0: connected; otherwise errno. Waits while the backlog is full, until the deadline. */
static int connect_until(int fd, const struct sockaddr_un *a, socklen_t length, uint64_t deadline) {
    while (connect(fd, (const struct sockaddr *)a, length)) {
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN)
            return errno;
        if (now_ns() >= deadline)
            return ETIMEDOUT;
        poll(NULL, 0, 10); /* a Unix socket gives no event for room in a listener's backlog */
    }
    return 0;
}

/* VD_E_PROTOCOL: the name is in use by this user; VD_E_SECURITY: by somebody else. */
static HRESULT who_holds(const struct sockaddr_un *a, socklen_t length) {
    HRESULT hr = VD_E_PROTOCOL;
    struct peer p = {.fd = new_socket(), .pidfd = -1};
    if (p.fd < 0)
        return VD_E_MEMORY;
    if (connect_until(p.fd, a, length, now_ns()) == 0 && !identify(&p, false, 0))
        hr = VD_E_SECURITY;
    peer_close(&p);
    return hr;
}

static HRESULT listen_on(const struct sockaddr_un *a, socklen_t length, int *listener) {
    *listener = -1;
    int fd = new_socket();
    if (fd < 0)
        return VD_E_MEMORY;
    descriptors_hold(); /* a child forked in between would keep the name */
    HRESULT hr = NOERROR;
    if (bind(fd, (const struct sockaddr *)a, length))
        hr = errno == EADDRINUSE ? VD_E_BUSY : VD_E_SECURITY;
    else if (listen(fd, 128))
        hr = VD_E_SECURITY;
    if (hr != NOERROR)
        close(fd);
    else if (descriptor_add(fd))
        *listener = fd;
    else
        hr = VD_E_MEMORY;
    descriptors_release();
    return hr == VD_E_BUSY ? who_holds(a, length) : hr;
}

HRESULT link_listen(const struct set_name *who, bool with_group, gid_t group, int fds[2]) {
    fds[0] = fds[1] = -1;
    for (int i = 0; i < (with_group ? 2 : 1); i++) {
        struct sockaddr_un a;
        socklen_t length = i ? address_of(&a, 'g', group, who) : address_of(&a, 'u', geteuid(), who);
        HRESULT hr = listen_on(&a, length, &fds[i]);
        if (FAILED(hr)) {
            close_all(fds, 2);
            fds[0] = fds[1] = -1;
            return hr;
        }
    }
    return NOERROR;
}

int link_accept(int listener, bool with_group, gid_t group, struct peer *peer) {
    peer->fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    peer->pidfd = -1;
    if (peer->fd < 0 && errno != EAGAIN && errno != EINTR)
        poll(NULL, 0, 10); /* no descriptor or no memory for him: he stays in the queue, and poll() says so at once */
    if (peer->fd < 0)
        return -1;
    if (!descriptor_track(peer->fd)) {
        peer->fd = -1;
        return -1;
    }
    if (!identify(peer, with_group, group)) {
        struct message no = {.type = MSG_WELCOME, .hr = VD_E_SECURITY};
        link_send(peer->fd, &no, NULL);
        peer_close(peer);
        return -1;
    }
    return 0;
}

bool link_send(int fd, struct message *m, const int *fds) {
    m->magic = CTL_MAGIC;
    m->version = CTL_VERSION;
    struct iovec iov = {m, sizeof *m};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(MESSAGE_FDS * sizeof(int))];
    } control;
    struct msghdr h = {.msg_iov = &iov, .msg_iovlen = 1};
    if (m->count) {
        memset(&control, 0, sizeof control);
        h.msg_control = control.bytes;
        h.msg_controllen = CMSG_SPACE(m->count * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&h);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(m->count * sizeof(int));
        memcpy(CMSG_DATA(c), fds, m->count * sizeof(int));
    }
    ssize_t n;
    do
        n = sendmsg(fd, &h, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    return n == (ssize_t)sizeof *m;
}

int link_receive(int fd, struct message *m, int *fds, unsigned max_fds) {
    struct iovec iov = {m, sizeof *m};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(MESSAGE_FDS * sizeof(int))];
    } control;
    struct msghdr h = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    ssize_t n;
    do
        n = recvmsg(fd, &h, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : -1;
    unsigned got = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&h); c; c = CMSG_NXTHDR(&h, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        unsigned k = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        for (unsigned i = 0; i < k; i++) {
            int one;
            memcpy(&one, CMSG_DATA(c) + i * sizeof(int), sizeof one);
            if (got < max_fds && descriptor_track(one))
                fds[got++] = one;
            else if (got >= max_fds)
                close(one);
        }
    }
    if (n != (ssize_t)sizeof *m || (h.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) || m->magic != CTL_MAGIC ||
        m->version != CTL_VERSION || m->count != got) {
        close_all(fds, got);
        return -1;
    }
    m->who.instance[NAME_UNITS] = m->who.name[NAME_UNITS] = 0;
    if (m->hr != NOERROR && (uint32_t)m->hr >> 16 != 0x8077) /* nothing but codes of the interface gets to a caller */
        m->hr = VD_E_UNEXPECTED;
    return 1;
}

/* Tries the user's own name, then those of his groups. ENOENT-like outcomes are left to the caller's taste: NULL name
 * found gives S_FALSE. */
HRESULT link_connect(const struct set_name *who, enum role role, struct peer *peer, struct message *welcome,
                     int fds[MESSAGE_FDS]) {
    uint64_t deadline = now_ns() + (uint64_t)JOIN_MS * 1000000u;
    gid_t groups[1024];
    int n = getgroups(1023, groups);
    if (n < 0)
        n = 0;
    groups[n++] = getegid();
    for (int i = -1; i < n; i++) {
        struct sockaddr_un a;
        socklen_t length = i < 0 ? address_of(&a, 'u', geteuid(), who) : address_of(&a, 'g', groups[i], who);
        peer->pidfd = -1;
        peer->fd = new_socket();
        if (peer->fd < 0)
            return VD_E_MEMORY;
        if (!descriptor_track(peer->fd)) {
            peer->fd = -1;
            return VD_E_MEMORY;
        }
        int e = connect_until(peer->fd, &a, length, deadline);
        if (e == ECONNREFUSED || e == ENOENT) {
            peer_close(peer);
            continue;
        }
        HRESULT hr = NOERROR;
        if (e)
            hr = e == ETIMEDOUT ? VD_E_TIMEOUT : VD_E_SECURITY;
        else if (!identify(peer, i >= 0, i >= 0 ? groups[i] : 0))
            hr = VD_E_SECURITY;
        struct message hello = {.type = MSG_HELLO, .role = role, .who = *who};
        if (hr == NOERROR && !link_send(peer->fd, &hello, NULL))
            hr = VD_E_TIMEOUT;
        while (hr == NOERROR) {
            int got = link_receive(peer->fd, welcome, fds, MESSAGE_FDS);
            if (got > 0) {
                hr = welcome->type == MSG_WELCOME ? welcome->hr : VD_E_UNEXPECTED;
                if (hr == NOERROR && welcome->count)
                    return NOERROR;
                close_all(fds, welcome->count);
                hr = hr == NOERROR ? VD_E_UNEXPECTED : hr;
            } else if (got < 0) {
                hr = S_FALSE; /* the primary went away while it was asked */
            } else {
                uint64_t now = now_ns();
                struct pollfd p[2] = {{.fd = peer->fd, .events = POLLIN}, {.fd = peer->pidfd, .events = POLLIN}};
                if (now >= deadline)
                    hr = VD_E_TIMEOUT;
                else if (poll(p, 2, (int)((deadline - now) / 1000000u) + 1) > 0 && p[1].revents && !p[0].revents)
                    hr = S_FALSE;
            }
        }
        peer_close(peer);
        return hr;
    }
    return S_FALSE;
}
