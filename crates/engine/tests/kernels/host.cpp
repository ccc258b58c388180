// Runs the kernels of cast.cu on the host, a thread block at a time, over requests from standard input.
//
//   host KERNEL A B < requests > results     A, B: bytes of a source and of a destination element
//
// A request: three little-endian u64, source skew, destination skew and count, then the source. Its result: the destination, with GUARD
// bytes of 0xA5 before and behind it. The source's block ends at the next multiple of 16, as the kernels are promised.

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cast_on_host.h"

static const size_t GUARD = 32;
static const unsigned THREADS = 32; // few, so that small counts go around the loops too

static bool take(void *to, size_t bytes) { return std::fread(to, 1, bytes, stdin) == bytes; }

static void answer(Kernel kernel, size_t a, size_t b, const uint64_t (&head)[3]) {
    const uint64_t src_skew = head[0], dst_skew = head[1], count = head[2];
    size_t block_size = (src_skew + count * a + 15) / 16 * 16, out_size = GUARD + dst_skew + count * b + GUARD;
    u8 *block = static_cast<u8 *>(std::aligned_alloc(16, block_size ? block_size : 16));
    if (!block || !take(block + src_skew, count * a)) std::exit(3);
    std::vector<ulonglong2> room(out_size / 16 + 1, ulonglong2{0xA5A5A5A5A5A5A5A5ull, 0xA5A5A5A5A5A5A5A5ull});
    u8 *out = reinterpret_cast<u8 *>(room.data());
    // Three tiles, so that a tile's own place counts.
    uint64_t cut1 = count / 3, cut2 = cut1 + count / 2;
    if (cut2 > count) cut2 = count;
    u8 *dst = out + GUARD + dst_skew;
    const uint64_t cuts[] = {0, cut1, cut2, count};
    std::vector<Tile> tiles;
    for (int t = 0; t < 3; t++) tiles.push_back({src_skew + cuts[t] * a, u64(uintptr_t(dst + cuts[t] * b)), cuts[t + 1] - cuts[t]});
    blockDim.x = THREADS;
    for (blockIdx.x = 0; blockIdx.x < tiles.size(); blockIdx.x++)
        for (threadIdx.x = 0; threadIdx.x < THREADS; threadIdx.x++) kernel(block, tiles.data());
    std::fwrite(out + dst_skew, 1, GUARD + count * b + GUARD, stdout);
    std::free(block);
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    Kernel kernel = reinterpret_cast<Kernel>(dlsym(RTLD_DEFAULT, argv[1]));
    if (!kernel) return 4;
    uint64_t head[3];
    while (take(head, sizeof head)) answer(kernel, std::strtoull(argv[2], nullptr, 10), std::strtoull(argv[3], nullptr, 10), head);
    return 0;
}
