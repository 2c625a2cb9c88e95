/* The C part of the benchmarks: a server, a client, and what they are measured against. Called through ctypes. */
#ifndef BENCH_H
#define BENCH_H

#include <stdbool.h>
#include <stddef.h>

#include "vdi_provider.h"

#define EXPORT __attribute__((visibility("default")))

uint64_t bench_now(void); /* ns, the same clock in all processes */
void bench_spin(uint64_t ns);
void *bench_class(const char *provider, const CLSID *clsid, const IID *iid); /* a new object, or NULL */
bool bench_wide(WCHAR *to, size_t room, const char *ascii);

/* Reads every byte once, as wide as the compiler can. */
uint64_t bench_read_all(const void *p, size_t size);

#endif
