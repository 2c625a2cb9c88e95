/* In a forked child every inherited object is inert: its descriptors are closed here, and each method compares the
 * generation it was made in before it touches a lock. Mappings stay, so that views of them stay readable. */
#include "internal.h"

#include <unistd.h>

_Atomic uint32_t fork_generation;

static pthread_mutex_t descriptors_lock = PTHREAD_MUTEX_INITIALIZER;
static int *descriptors;
static unsigned used, room;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void prepare(void) {
    pthread_mutex_lock(&descriptors_lock);
    pthread_mutex_lock(&mappings_lock);
}
static void parent(void) {
    pthread_mutex_unlock(&mappings_lock);
    pthread_mutex_unlock(&descriptors_lock);
}
static void child(void) {
    pthread_mutex_init(&mappings_lock, NULL);
    pthread_mutex_init(&descriptors_lock, NULL);
    atomic_fetch_add(&fork_generation, 1);
    atomic_store(&live_objects, 0);
    wait_after_fork();
    for (unsigned i = 0; i < used; i++)
        close(descriptors[i]);
    used = 0;
}
static void install(void) { pthread_atfork(prepare, parent, child); }

void descriptors_hold(void) {
    pthread_once(&once, install);
    pthread_mutex_lock(&descriptors_lock);
}
void descriptors_release(void) { pthread_mutex_unlock(&descriptors_lock); }

/* Under descriptors_hold(). False: no memory; the descriptor is closed. */
bool descriptor_add(int fd) {
    if (used == room) {
        int *more = realloc(descriptors, (room + 64) * sizeof *more);
        if (!more) {
            close(fd);
            return false;
        }
        descriptors = more;
        room += 64;
    }
    descriptors[used++] = fd;
    return true;
}

bool descriptor_track(int fd) {
    if (fd < 0)
        return true;
    descriptors_hold();
    bool good = descriptor_add(fd);
    descriptors_release();
    return good;
}

void descriptor_close(int fd) {
    if (fd < 0)
        return;
    descriptors_hold();
    for (unsigned i = 0; i < used; i++)
        if (descriptors[i] == fd) {
            descriptors[i] = descriptors[--used];
            break;
        }
    close(fd);
    descriptors_release();
}
