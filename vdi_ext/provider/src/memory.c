/* Shared memory that the kernel takes back when the last process is gone: sealed memfds, mapped once per process. */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

pthread_mutex_t mappings_lock = PTHREAD_MUTEX_INITIALIZER;
static struct mapping *mappings;

int memory_create(const char *label, size_t size) {
    int fd = memfd_create(label, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -1;
    if (ftruncate(fd, (off_t)size) || fcntl(fd, F_ADD_SEALS, SEALS)) {
        int saved = errno;
        close(fd);
        errno = saved;
        return -1;
    }
    return fd;
}

/* Address space aligned so that every permitted alignment of an offset is an alignment of the address. */
static uint8_t *map_aligned(int fd, size_t size, bool populate) {
    size_t span = size + MAX_ALIGNMENT;
    uint8_t *area = mmap(NULL, span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED)
        return NULL;
    uint8_t *base = (uint8_t *)round_up((uintptr_t)area, MAX_ALIGNMENT);
    size_t mapped = round_up(size, 4096);
    if (mmap(base, mapped, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | (populate ? MAP_POPULATE : 0), fd, 0) ==
        MAP_FAILED) {
        munmap(area, span);
        return NULL;
    }
    if (base > area)
        munmap(area, (size_t)(base - area));
    if (base + mapped < area + span)
        munmap(base + mapped, (size_t)(area + span - (base + mapped)));
    madvise(base, mapped, MADV_DONTDUMP);
    return base;
}

struct mapping *memory_map(int fd, size_t size, bool populate) {
    struct stat st;
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 || fstat(fd, &st) || st.st_size < 0 || (uint64_t)st.st_size != size)
        return NULL;
    pthread_mutex_lock(&mappings_lock);
    struct mapping *m;
    for (m = mappings; m; m = m->next)
        if (m->device == st.st_dev && m->inode == st.st_ino && m->size == size)
            break;
    if (m) {
        m->refs++;
    } else if ((m = calloc(1, sizeof *m))) {
        m->base = map_aligned(fd, size, populate);
        if (m->base) {
            if (populate) /* buffers: nobody's until they are allocated */
                POISON(m->base, size);
            m->size = size;
            m->device = st.st_dev;
            m->inode = st.st_ino;
            m->refs = 1;
            m->next = mappings;
            mappings = m;
        } else {
            free(m);
            m = NULL;
        }
    }
    pthread_mutex_unlock(&mappings_lock);
    return m;
}

void memory_unmap(struct mapping *m) {
    if (!m)
        return;
    pthread_mutex_lock(&mappings_lock);
    if (--m->refs == 0) {
        struct mapping **p = &mappings;
        while (*p != m)
            p = &(*p)->next;
        *p = m->next;
        UNPOISON(m->base, m->size);
        munmap(m->base, round_up(m->size, 4096));
        free(m);
    }
    pthread_mutex_unlock(&mappings_lock);
}

/* Address of [offset - before, offset + size) if it lies in a known segment, else NULL. */
uint8_t *segments_address(struct segments *s, uint32_t segment, uint64_t offset, uint64_t before, uint64_t size) {
    if (segment >= atomic_load_explicit(&s->count, memory_order_acquire))
        return NULL;
    struct mapping *m = s->map[segment];
    if (offset > m->size || size > m->size - offset || before > offset)
        return NULL;
    return m->base + offset;
}

uint32_t segments_locate(struct segments *s, const uint8_t *address, uint64_t *offset) {
    uint32_t i = 0;
    while ((*offset = (uintptr_t)address - (uintptr_t)s->map[i]->base) >= s->map[i]->size)
        i++;
    return i;
}

void segments_unmap(struct segments *s) {
    uint32_t n = atomic_exchange(&s->count, 0);
    for (uint32_t i = 0; i < n; i++) {
        memory_unmap(s->map[i]);
        s->map[i] = NULL;
    }
}
