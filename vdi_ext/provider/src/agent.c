/* ExecuteCompletionAgent: one thread that hands every completion to its routine, and enforces serverTimeOut. */
#include "server.h"

#include <stdio.h>
#include <unistd.h>

static bool all_closed(struct server_set *s) { return atomic_load(&s->closed) == s->requested.deviceCount; }

static bool agent_has_work(void *arg) {
    struct server_set *s = arg;
    if (aborted(&s->latch) || !atomic_load_explicit(&s->gate.open, memory_order_relaxed))
        return true;
    uint32_t opened = atomic_load_explicit(&s->opened, memory_order_acquire);
    for (uint32_t i = 0; i < opened; i++)
        if (server_device_has_completion(s->devices[i]))
            return true;
    if (!all_closed(s))
        return false;
    if (atomic_load(&s->outstanding) == 0)
        return true;
    for (uint32_t i = 0; i < opened; i++)
        if (server_device_given_up(s->devices[i]))
            return true;
    return false;
}

/* Makes every callback that is still owed. New commands are refused by now. */
void agent_drain(struct server_set *s) {
    uint32_t opened = atomic_load(&s->opened);
    for (uint32_t i = 0; i < opened; i++)
        server_device_complete_all(s->devices[i], ERROR_OPERATION_ABORTED);
}

/* The moment at which two full intervals have passed without a completion while commands were out. */
static uint64_t timeout_at(struct server_set *s) {
    DWORD interval = s->requested.serverTimeOut;
    if (interval == 0 || atomic_load(&s->outstanding) == 0)
        return UINT64_MAX;
    return atomic_load(&s->pending_since) + 2 * (uint64_t)interval * 1000000u;
}

HRESULT agent_run(struct server_set *s) {
    for (;;) {
        bool progress = false;
        uint32_t opened = atomic_load_explicit(&s->opened, memory_order_acquire);
        for (uint32_t i = 0; i < opened; i++)
            for (int burst = 0; burst < 64 && !aborted(&s->latch) && atomic_load(&s->gate.open); burst++) {
                if (!server_device_complete_one(s->devices[i]))
                    break;
                progress = true;
            }
        if (aborted(&s->latch)) {
            agent_drain(s);
            return VD_E_ABORT;
        }
        if (!atomic_load(&s->gate.open)) {
            agent_drain(s);
            return NOERROR;
        }
        if (progress)
            continue;
        if (all_closed(s)) {
            for (uint32_t i = 0; i < opened; i++)
                if (server_device_given_up(s->devices[i]))
                    server_device_complete_all(s->devices[i], ERROR_OPERATION_ABORTED);
            if (atomic_load(&s->outstanding) == 0)
                return NOERROR;
        }
        uint64_t limit = timeout_at(s), now = now_ns();
        if (now >= limit) {
            char reason[128];
            snprintf(reason, sizeof reason, "No command was completed within two intervals of serverTimeOut (%u ms).",
                     s->requested.serverTimeOut);
            abort_post(&s->latch, VDI_ABORT_TIMEOUT, (DWORD)getpid(), reason);
            continue;
        }
        /* A command sent while nothing was out moves the limit from never to soon; look again after an interval. */
        DWORD interval = s->requested.serverTimeOut;
        uint64_t look_again = interval ? now + (uint64_t)interval * 1000000u : UINT64_MAX;
        wait_until(&s->ctl->agent_sleeps, agent_has_work, s, limit < look_again ? limit : look_again);
    }
}

bool agent_enter(struct server_set *s) {
    pthread_mutex_lock(&s->agent_lock);
    bool free = !s->agent_running;
    if (free) {
        s->agent_running = true;
        s->agent_thread = pthread_self();
    }
    pthread_mutex_unlock(&s->agent_lock);
    return free;
}

bool agent_leave(struct server_set *s) {
    pthread_mutex_lock(&s->agent_lock);
    s->agent_running = false;
    bool unmap = s->unmap_after_agent;
    pthread_cond_broadcast(&s->agent_left);
    pthread_mutex_unlock(&s->agent_lock);
    return unmap;
}

bool agent_wait(struct server_set *s) {
    pthread_mutex_lock(&s->agent_lock);
    bool self = s->agent_running && pthread_equal(s->agent_thread, pthread_self());
    while (s->agent_running && !self)
        pthread_cond_wait(&s->agent_left, &s->agent_lock);
    s->unmap_after_agent = self;
    pthread_mutex_unlock(&s->agent_lock);
    return !self;
}
