// A CUDA driver in front of another one, by default the machine's own: passes every call on, counts what is held, and makes the call fail
// that a test names. So that failures can be injected on a real card. WATCHED_CUDA is the path of the library behind it.

#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <utility>

typedef int Result;
typedef unsigned long long Pointer;
enum { OK = 0, NOT_READY = 600, UNKNOWN = 999 };

static std::mutex mutex;
static std::map<Pointer, size_t> memory;
static long live = 0, calls = 0, fail_at = 0;
static size_t held = 0, peak = 0;

static void *behind(const char *name) {
    static void *library = [] {
        const char *path = std::getenv("WATCHED_CUDA");
        return path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : nullptr;
    }();
    void *function = library ? dlsym(library, name) : nullptr;
    if (!function) {
        std::fprintf(stderr, "watched CUDA: no %s in WATCHED_CUDA\n", name);
        std::abort();
    }
    return function;
}

static bool fails() {
    std::lock_guard<std::mutex> lock(mutex);
    return ++calls == fail_at;
}
static void count(long by) {
    std::lock_guard<std::mutex> lock(mutex);
    live += by;
}
static size_t granted(size_t bytes) { return (bytes + (2 << 20) - 1) >> 21 << 21; }

#define EXPORT extern "C" __attribute__((visibility("default")))
// The function behind, called with ARGUMENTS.
#define PASS(name, parameters, arguments) \
    static auto *next = reinterpret_cast<Result(*) parameters>(behind(#name)); \
    Result result = next arguments
// Passed on as it is.
#define FORWARD(name, parameters, arguments) \
    EXPORT Result name parameters { \
        PASS(name, parameters, arguments); \
        return result; \
    }
// Fails before anything happens, if it is the one; what it makes is counted.
#define MAKES(made, name, parameters, arguments) \
    EXPORT Result name parameters { \
        if (fails()) return UNKNOWN; \
        PASS(name, parameters, arguments); \
        if (result == OK) count(made); \
        return result; \
    }
// Gives back what another call made; does not fail.
#define ENDS(name, parameters, arguments) \
    EXPORT Result name parameters { \
        PASS(name, parameters, arguments); \
        count(-1); \
        return result; \
    }
// Fails after the work is done, as one that reports an earlier failure; one that says that work is still under way does not count.
#define WAITS(name, parameters, arguments) \
    EXPORT Result name parameters { \
        PASS(name, parameters, arguments); \
        return result != NOT_READY && fails() ? Result(UNKNOWN) : result; \
    }

EXPORT void testCudaFailAt(long call) {
    std::lock_guard<std::mutex> lock(mutex);
    calls = 0, fail_at = call;
}
EXPORT long testCudaCalls() {
    std::lock_guard<std::mutex> lock(mutex);
    return calls;
}
EXPORT long testCudaLive() {
    std::lock_guard<std::mutex> lock(mutex);
    return live;
}
EXPORT long testCudaPeak() {
    std::lock_guard<std::mutex> lock(mutex);
    return long(std::exchange(peak, held));
}

// A real driver does not tell how much it has still to do.
EXPORT long testCudaQueued() { return -1; }

FORWARD(cuDriverGetVersion, (int *version), (version))
FORWARD(cuInit, (unsigned flags), (flags))
FORWARD(cuGetErrorName, (Result error, const char **text), (error, text))
FORWARD(cuGetErrorString, (Result error, const char **text), (error, text))
FORWARD(cuDeviceGetCount, (int *count), (count))
FORWARD(cuDeviceGet, (int *device, int ordinal), (device, ordinal))
FORWARD(cuDeviceGetName, (char *name, int length, int device), (name, length, device))
FORWARD(cuDeviceTotalMem_v2, (size_t *bytes, int device), (bytes, device))
FORWARD(cuDeviceGetAttribute, (int *value, int attribute, int device), (value, attribute, device))
FORWARD(cuPointerGetAttribute, (void *value, int attribute, Pointer at), (value, attribute, at))
FORWARD(cuCtxSetCurrent, (void *context), (context))
FORWARD(cuCtxGetCurrent, (void **context), (context))
FORWARD(cuEventElapsedTime, (float *milliseconds, void *from, void *to), (milliseconds, from, to))

MAKES(1, cuDevicePrimaryCtxRetain, (void **context, int device), (context, device))
ENDS(cuDevicePrimaryCtxRelease_v2, (int device), (device))
MAKES(0, cuMemGetInfo_v2, (size_t *free, size_t *total), (free, total))
EXPORT Result cuMemAlloc_v2(Pointer *at, size_t bytes) {
    if (fails()) return UNKNOWN;
    PASS(cuMemAlloc_v2, (Pointer *, size_t), (at, bytes));
    if (result != OK) return result;
    std::lock_guard<std::mutex> lock(mutex);
    memory[*at] = granted(bytes), held += granted(bytes), live++;
    peak = std::max(peak, held);
    return result;
}
EXPORT Result cuMemFree_v2(Pointer at) {
    {
        std::lock_guard<std::mutex> lock(mutex); // before it is passed on: another thread may be given the address at once
        if (auto found = memory.find(at); found != memory.end()) held -= found->second, memory.erase(found), live--;
    }
    PASS(cuMemFree_v2, (Pointer), (at));
    return result;
}
MAKES(1, cuMemHostAlloc, (void **at, size_t bytes, unsigned flags), (at, bytes, flags))
ENDS(cuMemFreeHost, (void *at), (at))
MAKES(1, cuMemHostRegister_v2, (void *at, size_t bytes, unsigned flags), (at, bytes, flags))
ENDS(cuMemHostUnregister, (void *at), (at))
MAKES(1, cuStreamCreate, (void **stream, unsigned flags), (stream, flags))
WAITS(cuStreamSynchronize, (void *stream), (stream))
ENDS(cuStreamDestroy_v2, (void *stream), (stream))
MAKES(1, cuEventCreate, (void **event, unsigned flags), (event, flags))
MAKES(0, cuEventRecord, (void *event, void *stream), (event, stream))
WAITS(cuEventSynchronize, (void *event), (event))
WAITS(cuEventQuery, (void *event), (event))
ENDS(cuEventDestroy_v2, (void *event), (event))
MAKES(0, cuMemcpyHtoDAsync_v2, (Pointer to, const void *from, size_t bytes, void *stream), (to, from, bytes, stream))
MAKES(0, cuMemcpyDtoHAsync_v2, (void *to, Pointer from, size_t bytes, void *stream), (to, from, bytes, stream))
MAKES(0, cuMemsetD8Async, (Pointer to, unsigned char byte, size_t bytes, void *stream), (to, byte, bytes, stream))
MAKES(1, cuModuleLoadData, (void **module, const void *image), (module, image))
MAKES(0, cuModuleGetFunction, (void **function, void *module, const char *name), (function, module, name))
ENDS(cuModuleUnload, (void *module), (module))
MAKES(0, cuLaunchKernel,
      (void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *stream,
       void **parameters, void **extra),
      (function, gx, gy, gz, bx, by, bz, shared, stream, parameters, extra))
