#include "bench.h"

#include <dlfcn.h>
#include <time.h>

#if __has_include(<valgrind/callgrind.h>)
#include <valgrind/callgrind.h>
#endif

uint64_t bench_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void bench_spin(uint64_t ns) {
    for (uint64_t end = bench_now() + ns; bench_now() < end;)
        ;
}

void *bench_class(const char *provider, const CLSID *clsid, const IID *iid) {
    void *library = dlopen(provider, RTLD_NOW | RTLD_LOCAL);
    void *entry = library ? dlsym(library, "DllGetClassObject") : NULL;
    IClassFactory *factory;
    void *object = NULL;
    if (!entry || FAILED(((VdiGetClassObjectFn)entry)(clsid, &IID_IClassFactory, (void **)&factory)))
        return NULL;
    if (FAILED(factory->lpVtbl->CreateInstance(factory, NULL, iid, &object)))
        object = NULL;
    factory->lpVtbl->Release(factory);
    return object;
}

bool bench_wide(WCHAR *to, size_t room, const char *ascii) {
    do {
        if (!room--)
            return false;
        *to++ = (unsigned char)*ascii;
    } while (*ascii++);
    return true;
}

uint64_t bench_read_all(const void *p, size_t size) {
    const uint64_t *q = p;
    uint64_t x = 0;
    for (size_t i = 0; i < size / sizeof *q; i++)
        x ^= q[i];
    return x;
}

/* Instructions are counted between two calls of this, where the program runs under callgrind. */
EXPORT void bench_toggle_counting(void) {
#ifdef CALLGRIND_TOGGLE_COLLECT
    CALLGRIND_TOGGLE_COLLECT;
#endif
}
