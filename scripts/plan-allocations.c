/* Counts what torch allocates on a CPU, for plan-measure.py: preloaded, it stands in front of posix_memalign, by which c10 allocates every
   tensor. Only calls from libc10 count, so scratch memory of gloo and of others stays out. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define SLOTS (1u << 20)

static struct { void *at; size_t size; } table[SLOTS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static size_t held, peak;
static int (*real_memalign)(void **, size_t, size_t);
static void (*real_free)(void *);

static unsigned slot(const void *at) { return (unsigned)(((uintptr_t)at >> 4) * 2654435761u) & (SLOTS - 1); }

static int from_torch(void *caller) {
    Dl_info info;
    return dladdr(caller, &info) && info.dli_fname && strstr(info.dli_fname, "libc10.so");
}

int posix_memalign(void **out, size_t alignment, size_t size) {
    if (!real_memalign) real_memalign = dlsym(RTLD_NEXT, "posix_memalign");
    int failed = real_memalign(out, alignment, size);
    if (failed || !from_torch(__builtin_return_address(0))) return failed;
    pthread_mutex_lock(&lock);
    unsigned i = slot(*out), tried = 0;
    while (table[i].at && table[i].at != (void *)-1 && tried++ < SLOTS) i = (i + 1) & (SLOTS - 1);
    table[i].at = *out;
    table[i].size = size;
    held += size;
    if (held > peak) peak = held;
    pthread_mutex_unlock(&lock);
    return 0;
}

void free(void *at) {
    if (!real_free) real_free = dlsym(RTLD_NEXT, "free");
    if (at && held) {
        pthread_mutex_lock(&lock);
        unsigned i = slot(at), tried = 0;
        while (table[i].at && table[i].at != at && tried++ < SLOTS) i = (i + 1) & (SLOTS - 1);
        if (table[i].at == at) {
            held -= table[i].size;
            table[i].at = (void *)-1;
        }
        pthread_mutex_unlock(&lock);
    }
    real_free(at);
}

size_t plan_held(void) { return held; }
size_t plan_peak(void) { return peak; }
void plan_reset(void) { pthread_mutex_lock(&lock); peak = held; pthread_mutex_unlock(&lock); }
