// A CUDA driver that is none: libcuda.so.1 for tests on machines without a card. Device memory is host memory, kernels are cast.cu
// compiled for the host. It is stricter than a real one and as lazy as a real one may be: work runs only when it is waited for, so a
// buffer that is used again too early shows; fresh memory is poisoned; addresses, contexts and pinning are checked; what is wrong aborts.
//
// FAKE_CUDA_VERSION, FAKE_CUDA_DEVICES, FAKE_CUDA_MEMORY (bytes of a device), FAKE_CUDA_CAPABILITY (90 for 9.0) set what it claims to be, FAKE_CUDA_REGISTERS=0 that it
// registers no memory. It
// knows nothing of speed.

#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <list>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cast_on_host.h"

typedef int Result;
enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_PTX = 218, NOT_FOUND = 500, NOT_READY = 600, NOT_SUPPORTED = 801, UNKNOWN = 999 };
typedef u64 Pointer;

// What a stream has to do, and the host and device memory that it needs for that.
struct Work {
    std::function<void()> run;
    std::vector<std::pair<u64, u64>> ranges;
    const void *kernel = nullptr;
};
struct Stream {
    explicit Stream(int device) : device(device) {}
    int device;
    u64 queued = 0, done = 0;
    std::list<Work> work;
};
struct Event {
    Stream *stream = nullptr;
    u64 mark = 0;
    bool asked = false; // since it was recorded
};
struct Module {
    std::string name;
    Kernel kernel;
    u64 from, to; // bytes of an element
};
struct Allocation {
    u64 bytes;
    int device;
};

static std::recursive_mutex mutex;
static std::map<Pointer, Allocation> memory;
static std::map<uintptr_t, u64> pinned;
static std::set<Stream *> streams;
static std::set<Event *> events;
static std::set<Module *> modules;
static std::map<int, int> contexts; // device -> how often retained
static thread_local int current = -1;
static long calls = 0, fail_at = 0;
static u64 peak = 0, most_queued = 0;

static u64 setting(const char *name, u64 otherwise) {
    const char *text = std::getenv(name);
    return text && *text ? std::strtoull(text, nullptr, 10) : otherwise;
}
static int device_count() {
    const char *visible = std::getenv("CUDA_VISIBLE_DEVICES");
    if (visible && !*visible) return 0;
    int count = int(setting("FAKE_CUDA_DEVICES", 2));
    return visible ? std::min(count, int(1 + std::count(visible, visible + std::strlen(visible), ','))) : count;
}
// A driver maps whole pages of a device's memory.
static u64 granted(u64 bytes) { return (bytes + (2 << 20) - 1) >> 21 << 21; }
static u64 device_memory() { return setting("FAKE_CUDA_MEMORY", 256ull << 20); }

[[noreturn]] static void wrong(const char *what) {
    std::fprintf(stderr, "fake CUDA: %s\n", what);
    std::abort();
}
static void check_context() {
    if (current < 0 || contexts[current] == 0) wrong("a call without a current context");
}
static void check_device_range(Pointer at, u64 bytes, int device) {
    auto next = memory.upper_bound(at);
    if (next == memory.begin()) wrong("an address that was never allocated");
    auto &[start, allocation] = *std::prev(next);
    if (at + bytes > start + allocation.bytes) wrong("a range beyond its allocation");
    if (allocation.device != device) wrong("another device's memory");
}
static void check_pinned(const void *at, u64 bytes) {
    auto next = pinned.upper_bound(uintptr_t(at));
    if (next == pinned.begin() || uintptr_t(at) + bytes > std::prev(next)->first + std::prev(next)->second) wrong("a copy from memory that is not pinned");
}
static void unused(u64 at, u64 bytes, const char *what) {
    for (Stream *s : streams)
        for (const Work &work : s->work)
            for (auto [start, length] : work.ranges)
                if (start < at + bytes && at < start + length) wrong(what);
}
static void run(Stream *stream, u64 until) {
    while (stream->done < until) {
        stream->work.front().run();
        stream->work.pop_front();
        stream->done++;
    }
}
static u64 number(const void *pointer) { return u64(uintptr_t(pointer)); }
static void queue(Stream *stream, Work work) {
    if (!streams.count(stream)) wrong("a stream that does not exist, or the default stream");
    if (stream->device != current) wrong("a stream of another device");
    stream->work.push_back(std::move(work));
    stream->queued++;
    u64 waiting = 0;
    for (Stream *s : streams) waiting += s->queued - s->done;
    most_queued = std::max(most_queued, waiting);
}

// Bytes of an element of the dtype that stands at `at` of a kernel's name; `at` goes to the next one.
static u64 element(const std::string &name, size_t &at) {
    static const std::pair<const char *, u64> sizes[] = {{"f64", 8}, {"f32", 4}, {"f16", 2}, {"bf16", 2}, {"f8_e4m3", 1}, {"f8_e5m2", 1}};
    for (auto [dtype, bytes] : sizes)
        if (name.compare(at, std::strlen(dtype), dtype) == 0) {
            at += std::strlen(dtype) + 1;
            return bytes;
        }
    wrong("a kernel of an unknown dtype");
}

#define CALL extern "C" __attribute__((visibility("default"))) Result
#define LOCK std::lock_guard<std::recursive_mutex> lock(mutex)
// Calls that a test can make fail.
#define MAY_FAIL \
    LOCK; \
    if (++calls == fail_at) return UNKNOWN

extern "C" __attribute__((visibility("default"))) void testCudaFailAt(long call) {
    LOCK;
    calls = 0, fail_at = call;
}
extern "C" __attribute__((visibility("default"))) long testCudaCalls() {
    LOCK;
    return calls;
}
extern "C" __attribute__((visibility("default"))) long testCudaLive() {
    LOCK;
    long live = long(memory.size() + pinned.size() + streams.size() + events.size() + modules.size());
    for (auto &[device, count] : contexts) live += count;
    return live;
}

// The most device memory that was held at once since the last call.
extern "C" __attribute__((visibility("default"))) long testCudaPeak() {
    LOCK;
    return long(std::exchange(peak, 0));
}

// The most copies and kernels that were under way at once since the last call.
extern "C" __attribute__((visibility("default"))) long testCudaQueued() {
    LOCK;
    return long(std::exchange(most_queued, 0));
}

CALL cuDriverGetVersion(int *version) {
    *version = int(setting("FAKE_CUDA_VERSION", 12040));
    return OK;
}
CALL cuInit(unsigned) { return device_count() ? OK : NO_DEVICE; }
CALL cuGetErrorName(Result error, const char **text) {
    *text = error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : error == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE" : "CUDA_ERROR_UNKNOWN";
    return OK;
}
CALL cuGetErrorString(Result error, const char **text) {
    *text = error == OUT_OF_MEMORY ? "out of memory" : error == NO_DEVICE ? "no CUDA-capable device is detected" : "unknown error";
    return OK;
}
CALL cuDeviceGetCount(int *count) {
    *count = device_count();
    return OK;
}
CALL cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return ordinal < device_count() ? OK : INVALID_DEVICE;
}
CALL cuDeviceGetName(char *name, int length, int device) {
    std::snprintf(name, size_t(length), "Fake CUDA device %d", device);
    return OK;
}
CALL cuDeviceTotalMem_v2(size_t *bytes, int) {
    *bytes = device_memory();
    return OK;
}
CALL cuDevicePrimaryCtxRetain(void **context, int device) {
    MAY_FAIL;
    contexts[device]++;
    *context = reinterpret_cast<void *>(intptr_t(device + 1));
    return OK;
}
CALL cuDevicePrimaryCtxRelease_v2(int device) {
    LOCK;
    if (--contexts[device] < 0) wrong("a context released twice");
    return OK;
}
CALL cuDeviceGetAttribute(int *value, int attribute, int) {
    int capability = int(setting("FAKE_CUDA_CAPABILITY", 90));
    *value = attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10 : 0;
    return attribute == 75 || attribute == 76 ? OK : INVALID_VALUE;
}
CALL cuCtxSetCurrent(void *context) {
    current = int(intptr_t(context)) - 1;
    return OK;
}
CALL cuCtxGetCurrent(void **context) {
    *context = reinterpret_cast<void *>(intptr_t(current + 1));
    return OK;
}
CALL cuMemGetInfo_v2(size_t *free, size_t *total) {
    MAY_FAIL;
    check_context();
    u64 used = 0;
    for (auto &[at, allocation] : memory) used += allocation.device == current ? granted(allocation.bytes) : 0;
    *total = device_memory(), *free = device_memory() - used;
    return OK;
}
CALL cuMemAlloc_v2(Pointer *at, size_t bytes) {
    MAY_FAIL;
    check_context();
    size_t free, total;
    long before = calls;
    if (bytes == 0) return INVALID_VALUE;
    if (Result r = cuMemGetInfo_v2(&free, &total)) return r;
    calls = before;
    if (granted(bytes) > free) return OUT_OF_MEMORY;
    void *room = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    std::memset(room, 0xA5, bytes);
    *at = Pointer(uintptr_t(room));
    memory[*at] = {bytes, current};
    u64 held = 0;
    for (auto &[address, allocation] : memory) held += granted(allocation.bytes);
    peak = std::max(peak, held);
    return OK;
}
CALL cuMemFree_v2(Pointer at) {
    LOCK;
    check_context();
    if (!memory.count(at) || memory[at].device != current) wrong("memory freed that is not this device's");
    unused(at, memory[at].bytes, "memory freed under running work");
    memory.erase(at);
    std::free(reinterpret_cast<void *>(uintptr_t(at)));
    return OK;
}
CALL cuMemHostRegister_v2(void *at, size_t bytes, unsigned flags) {
    MAY_FAIL;
    check_context();
    if (flags || !bytes) wrong("memory registered with flags, or none");
    if (setting("FAKE_CUDA_REGISTERS", 1) == 0) return NOT_SUPPORTED;
    if (pinned.count(uintptr_t(at))) wrong("memory registered twice");
    std::memset(at, 0x5A, bytes); // what lies there is not to be relied on
    pinned[uintptr_t(at)] = bytes;
    return OK;
}
CALL cuMemHostUnregister(void *at) {
    LOCK;
    if (!pinned.count(uintptr_t(at))) wrong("memory unregistered that is not registered");
    unused(number(at), pinned[uintptr_t(at)], "memory unregistered under running work");
    pinned.erase(uintptr_t(at));
    return OK;
}
CALL cuPointerGetAttribute(int *value, int attribute, Pointer at) {
    LOCK;
    if (attribute != 9) wrong("an attribute of a pointer that is not its device");
    auto next = memory.upper_bound(at);
    if (next == memory.begin() || at >= std::prev(next)->first + std::prev(next)->second.bytes) return INVALID_VALUE;
    *value = std::prev(next)->second.device;
    return OK;
}
CALL cuMemHostAlloc(void **at, size_t bytes, unsigned flags) {
    MAY_FAIL;
    check_context();
    if (flags) wrong("pinned memory with flags");
    *at = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    std::memset(*at, 0x5A, bytes);
    pinned[uintptr_t(*at)] = bytes;
    return OK;
}
CALL cuMemFreeHost(void *at) {
    LOCK;
    if (!pinned.count(uintptr_t(at))) wrong("pinned memory freed twice");
    unused(number(at), pinned[uintptr_t(at)], "pinned memory freed under running work");
    pinned.erase(uintptr_t(at));
    std::free(at);
    return OK;
}
CALL cuStreamCreate(Stream **stream, unsigned flags) {
    MAY_FAIL;
    check_context();
    if (flags != 1) wrong("a stream that waits for the default stream");
    streams.insert(*stream = new Stream(current));
    return OK;
}
CALL cuStreamSynchronize(Stream *stream) {
    LOCK;
    run(stream, stream->queued);
    return ++calls == fail_at ? UNKNOWN : OK; // fails after the work, as a real one that reports an earlier failure
}
CALL cuStreamDestroy_v2(Stream *stream) {
    LOCK;
    if (stream->done != stream->queued) wrong("a stream destroyed under running work");
    if (!streams.erase(stream)) wrong("a stream destroyed twice");
    for (Event *e : events)
        if (e->stream == stream) e->stream = nullptr;
    delete stream;
    return OK;
}
CALL cuEventCreate(Event **event, unsigned flags) {
    MAY_FAIL;
    check_context();
    (void)flags;
    events.insert(*event = new Event);
    return OK;
}
CALL cuEventRecord(Event *event, Stream *stream) {
    MAY_FAIL;
    if (!streams.count(stream)) wrong("an event recorded on no stream");
    event->stream = stream, event->mark = stream->queued, event->asked = false;
    return OK;
}
// The first time it is asked, work is always still under way; not a step that may fail.
CALL cuEventQuery(Event *event) {
    LOCK;
    if (event->stream && event->stream->done < event->mark && !std::exchange(event->asked, true)) return NOT_READY;
    if (event->stream) run(event->stream, event->mark);
    return ++calls == fail_at ? UNKNOWN : OK;
}
CALL cuEventSynchronize(Event *event) {
    LOCK;
    if (event->stream) run(event->stream, event->mark);
    return ++calls == fail_at ? UNKNOWN : OK;
}
CALL cuEventElapsedTime(float *milliseconds, Event *, Event *) {
    *milliseconds = 1;
    return OK;
}
CALL cuEventDestroy_v2(Event *event) {
    LOCK;
    if (!events.erase(event)) wrong("an event destroyed twice");
    delete event;
    return OK;
}
CALL cuMemcpyHtoDAsync_v2(Pointer to, const void *from, size_t bytes, Stream *stream) {
    MAY_FAIL;
    check_device_range(to, bytes, current);
    check_pinned(from, bytes);
    queue(stream, {[=] { std::memcpy(reinterpret_cast<void *>(uintptr_t(to)), from, bytes); }, {{to, bytes}, {number(from), bytes}}});
    return OK;
}
CALL cuMemcpyDtoHAsync_v2(void *to, Pointer from, size_t bytes, Stream *stream) {
    MAY_FAIL;
    check_device_range(from, bytes, current);
    queue(stream, {[=] { std::memcpy(to, reinterpret_cast<void *>(uintptr_t(from)), bytes); }, {{from, bytes}, {number(to), bytes}}});
    return OK;
}
CALL cuMemsetD8Async(Pointer to, unsigned char byte, size_t bytes, Stream *stream) {
    MAY_FAIL;
    check_device_range(to, bytes, current);
    queue(stream, {[=] { std::memset(reinterpret_cast<void *>(uintptr_t(to)), byte, bytes); }, {{to, bytes}}});
    return OK;
}
CALL cuModuleLoadData(Module **module, const char *image) {
    MAY_FAIL;
    check_context();
    std::string text = image;
    size_t entry = text.find(".visible .entry ");
    if (text.find(".version") == std::string::npos || entry == std::string::npos) return INVALID_PTX;
    entry += std::strlen(".visible .entry ");
    std::string name = text.substr(entry, text.find('(', entry) - entry);
    Dl_info self;
    dladdr(reinterpret_cast<void *>(&cuModuleLoadData), &self);
    void *handle = dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    Kernel kernel = handle ? reinterpret_cast<Kernel>(dlsym(handle, name.c_str())) : nullptr;
    if (!kernel) return INVALID_PTX;
    u64 from = 1, to = 1; // of `copy`; all else is cast_FROM_TO
    if (size_t at = std::strlen("cast_"); name != "copy") from = element(name, at), to = element(name, at);
    modules.insert(*module = new Module{name, kernel, from, to});
    return OK;
}
CALL cuModuleGetFunction(Module **function, Module *module, const char *name) {
    MAY_FAIL;
    *function = module;
    return module->name == name ? OK : NOT_FOUND;
}
CALL cuModuleUnload(Module *module) {
    LOCK;
    for (Stream *s : streams)
        for (const Work &work : s->work)
            if (work.kernel == module) wrong("a kernel unloaded under running work");
    if (!modules.erase(module)) wrong("a kernel unloaded twice");
    delete module;
    return OK;
}
CALL cuLaunchKernel(Module *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, Stream *stream,
                    void **parameters, void **extra) {
    MAY_FAIL;
    if (gx == 0 || gy != 1 || gz != 1 || bx == 0 || bx > 1024 || by != 1 || bz != 1 || shared || extra) return INVALID_VALUE;
    u64 block = *static_cast<u64 *>(parameters[0]), tiles = *static_cast<u64 *>(parameters[1]);
    check_device_range(tiles, gx * sizeof(Tile), current);
    if (block % 16 || tiles % 8) wrong("a misaligned block or tiles");
    int device = current;
    auto launch = [=] {
        const Tile *list = reinterpret_cast<const Tile *>(uintptr_t(tiles));
        blockDim.x = bx;
        for (blockIdx.x = 0; blockIdx.x < gx; blockIdx.x++) {
            check_device_range(block + list[blockIdx.x].src, list[blockIdx.x].count * function->from, device);
            check_device_range(list[blockIdx.x].dst, list[blockIdx.x].count * function->to, device);
            for (threadIdx.x = 0; threadIdx.x < bx; threadIdx.x++) function->kernel(reinterpret_cast<const u8 *>(uintptr_t(block)), list);
        }
    };
    queue(stream, {launch, {{block, tiles + gx * sizeof(Tile) - block}}, function});
    return OK;
}
