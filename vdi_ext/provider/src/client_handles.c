/* Handles of buffers: from an address to a number, and from a number of some process to an address in this one. */
#include "client.h"

bool handle_describe(struct life *l, const BYTE *buffer, VdiBufferInfo *info) {
    struct client_command *found = NULL;
    pthread_mutex_lock(&l->lock);
    for (unsigned i = 0; i < l->device_count && !found; i++) {
        struct client_device *d = l->devices[i];
        pthread_mutex_lock(&d->lock);
        found = device_find_buffer(d, buffer);
        if (found) {
            device_publish_buffer(d, found);
            memset(info, 0, sizeof *info);
            info->value = handle_value(l->set_id, found->buffer, found->lending);
            info->size = found->command.size;
            info->readOnly = found->command.commandCode == VDC_Write;
            info->generation = found->lending;
            memcpy(info->setId, l->set_id, sizeof info->setId);
        }
        pthread_mutex_unlock(&d->lock);
    }
    pthread_mutex_unlock(&l->lock);
    return found != NULL;
}

/* What a handle's number means now. False: nothing, or not any more. */
static bool look_up(struct life *l, DWORD value, VdiBufferInfo *info, uint32_t *segment, uint64_t *offset) {
    uint32_t index = (value & 0xFFF) - 1;
    if (index >= MAX_BUFFERS)
        return false;
    struct buf_entry *b = &l->ctl->buffers[index];
    uint64_t lending = atomic_load_explicit(&b->lending, memory_order_acquire);
    memset(info, 0, sizeof *info);
    info->value = handle_value(l->set_id, index, lending);
    info->size = atomic_load_explicit(&b->size, memory_order_relaxed);
    info->readOnly = atomic_load_explicit(&b->read_only, memory_order_relaxed) != 0;
    info->generation = lending;
    memcpy(info->setId, l->set_id, sizeof info->setId);
    *segment = atomic_load_explicit(&b->segment, memory_order_relaxed);
    *offset = atomic_load_explicit(&b->offset, memory_order_relaxed);
    atomic_thread_fence(memory_order_acquire);
    return (lending & 1) && info->value == value &&
           atomic_load_explicit(&b->lending, memory_order_relaxed) == lending;
}

static bool of_same_lending(struct life *l, const VdiBufferInfo *given, const VdiBufferInfo *info) {
    return given->generation == info->generation && !memcmp(given->setId, l->set_id, sizeof given->setId);
}

BYTE *handle_map(struct life *l, DWORD value, const VdiBufferInfo *given, VdiBufferInfo *actual) {
    VdiBufferInfo info;
    uint32_t segment;
    uint64_t offset;
    if (!look_up(l, value, &info, &segment, &offset) || (given && !of_same_lending(l, given, &info)) ||
        !life_await_segment(l, segment))
        return NULL;
    BYTE *p = segments_address(&l->segments, segment, offset, l->requested.prefixZoneSize, info.size);
    if (p) {
        UNPOISON(p, info.size);
        if (actual)
            *actual = info;
    }
    return p;
}

bool handle_is_good(struct life *l, const VdiBufferInfo *handle) {
    VdiBufferInfo info;
    uint32_t segment;
    uint64_t offset;
    return look_up(l, handle->value, &info, &segment, &offset) && of_same_lending(l, handle, &info);
}
