/* Abort: one word for the whole set. The first cause stands. */
#include "internal.h"

#include <sched.h>
#include <stdio.h>

bool aborted(struct abort_latch *a) {
    if (atomic_load_explicit(&a->seen, memory_order_relaxed))
        return true;
    if (atomic_load_explicit(&a->ctl->abort, memory_order_acquire) == 0)
        return false;
    atomic_store(&a->seen, true); /* a peer that clears the word again changes nothing here */
    return true;
}

void wake_everybody(struct ctl *ctl) {
    wake(&ctl->configured_sleeps);
    wake(&ctl->opened_sleeps);
    wake(&ctl->agent_sleeps);
    for (unsigned i = 0; i < MAX_DEVICES; i++)
        wake(&ctl->devices[i].client_sleeps);
}

void abort_post(struct abort_latch *a, DWORD cause, DWORD pid, const char *reason) {
    uint32_t none = 0;
    if (atomic_compare_exchange_strong(&a->ctl->abort, &none, 1)) {
        VdiAbortInfo *info = &a->ctl->abort_info;
        info->cause = cause;
        info->pid = pid;
        snprintf(info->reason, sizeof info->reason, "%s", reason);
        atomic_store_explicit(&a->ctl->abort, 2, memory_order_release);
    }
    atomic_store(&a->seen, true);
    wake_everybody(a->ctl);
}

void abort_get(struct abort_latch *a, VdiAbortInfo *info) {
    memset(info, 0, sizeof *info);
    uint64_t deadline = now_ns() + 100000000u; /* a writer that was killed half-way never ends */
    while (atomic_load_explicit(&a->ctl->abort, memory_order_acquire) == 1 && now_ns() < deadline)
        sched_yield();
    if (atomic_load_explicit(&a->ctl->abort, memory_order_acquire) == 2) {
        COPY_OUT(*info, a->ctl->abort_info);
        info->reason[sizeof info->reason - 1] = 0;
    }
}

bool all_devices_ended(struct ctl *ctl, DWORD device_count) {
    for (DWORD i = 0; i < device_count; i++)
        if (!atomic_load_explicit(&ctl->devices[i].client_closed, memory_order_acquire))
            return false;
    return true;
}
