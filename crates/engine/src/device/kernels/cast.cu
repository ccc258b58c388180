// The casts of crates/cast/src/scalar.rs on a GPU, bit for bit, and a copy, each over a list of tiles.
//
// Integer arithmetic, and float additions, multiplications and conversions that IEEE 754 fixes to the bit (never fused, no flushing): a
// host compiler gives the same bits, so tests/kernels compiles this very file and compares it with the reference. cast.ptx beside it is
// made from it by scripts/make-ptx.py. Which tiles there are is the host's business.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// A run of elements: from an offset in the staged block to an address, both of any alignment. One thread block takes one tile.
struct Tile {
    u64 src;
    u64 dst;
    u64 count;
};

#define EXP_ALL 0x7f800000u
#define QUIET 0x00400000u

__device__ u32 min32(u32 a, u32 b) { return a < b ? a : b; }

// Rounds the magnitude of a float32 that is not NaN to MAN mantissa bits and exponent bias BIAS, to the nearest, ties to even; overflow
// runs on into larger exponents.
template <u32 MAN, u32 BIAS> __device__ u32 round_small(u32 magnitude) {
    // Subnormal: the sum's last place is the result's, so the addition rounds, and what is left above the large term is the answer.
    const u32 large = (151 - BIAS - MAN) << 23;
    u32 subnormal = __float_as_uint(__fadd_rn(__uint_as_float(magnitude), __uint_as_float(large))) - large;
    u32 odd = (magnitude >> (23 - MAN)) & 1;
    u32 normal = ((magnitude + (1u << (22 - MAN)) - 1 + odd) >> (23 - MAN)) - ((127 - BIAS) << MAN);
    return magnitude < ((128 - BIAS) << 23) ? subnormal : normal;
}

// The float32 bits of a finite magnitude: moved into place, where its exponent is too small by a constant, subnormals' too.
template <u32 MAN, u32 BIAS> __device__ u32 widen_small(u32 magnitude) {
    const u32 scale = (254 - BIAS) << 23;
    return __float_as_uint(__fmul_rn(__uint_as_float(magnitude << (23 - MAN)), __uint_as_float(scale)));
}

// The dtypes: `Bits` in memory, to and from the bits of a float32.
struct F32 {
    typedef u32 Bits;
    static __device__ u32 widen(u32 x) { return x; }
    static __device__ u32 narrow(u32 x) { return x; }
};

struct Bf16 {
    typedef u16 Bits;
    static __device__ u32 widen(u16 x) { return u32(x) << 16; }
    static __device__ u16 narrow(u32 x) {
        bool nan = (x & 0x7fffffffu) > EXP_ALL;
        return u16((nan ? x | QUIET : x + 0x7fff + ((x >> 16) & 1)) >> 16);
    }
};

struct F16 {
    typedef u16 Bits;
    static __device__ u32 widen(u16 x) {
        u32 magnitude = x & 0x7fff, sign = u32(x & 0x8000) << 16;
        if (magnitude == 0x7c00) return sign | EXP_ALL;
        return sign | (magnitude > 0x7c00 ? EXP_ALL | QUIET | (magnitude << 13) : widen_small<10, 15>(magnitude));
    }
    static __device__ u16 narrow(u32 x) {
        u32 magnitude = x & 0x7fffffffu;
        u32 bits = magnitude > EXP_ALL ? 0x7e00u | ((magnitude >> 13) & 0x03ff) : min32(round_small<10, 15>(magnitude), 0x7c00);
        return u16(((x & 0x80000000u) >> 16) | bits);
    }
};

struct E5m2 {
    typedef u8 Bits;
    static __device__ u32 widen(u8 x) { return F16::widen(u16(u32(x) << 8)); }
    static __device__ u8 narrow(u32 x) {
        u32 magnitude = x & 0x7fffffffu;
        return u8(((x & 0x80000000u) >> 24) | (magnitude > EXP_ALL ? 0x7f : min32(round_small<2, 15>(magnitude), 0x7c)));
    }
};

struct E4m3 {
    typedef u8 Bits;
    static __device__ u32 widen(u8 x) {
        u32 magnitude = x & 0x7f;
        return (u32(x & 0x80) << 24) | (magnitude == 0x7f ? 0x7ff00000u : widen_small<3, 7>(magnitude));
    }
    // Beyond 448, infinity included, torch saturates.
    static __device__ u8 narrow(u32 x) {
        u32 magnitude = x & 0x7fffffffu;
        return u8(((x & 0x80000000u) >> 24) | (magnitude > EXP_ALL ? 0x7f : min32(round_small<3, 7>(magnitude), 0x7e)));
    }
};

struct F64 {
    typedef u64 Bits;
    static __device__ u32 widen(u64 x) {
        bool nan = (x & 0x7fffffffffffffffull) > 0x7ff0000000000000ull;
        u32 quiet = (u32(x >> 32) & 0x80000000u) | EXP_ALL | QUIET | (u32(x >> 29) & 0x003fffffu);
        return nan ? quiet : __float_as_uint(__double2float_rn(__longlong_as_double((long long)x)));
    }
    static __device__ u64 narrow(u32 x) {
        u64 quiet = (u64(x & 0x80000000u) << 32) | 0x7ff8000000000000ull | (u64(x & 0x007fffffu) << 29);
        return (x & 0x7fffffffu) > EXP_ALL ? quiet : u64(__double_as_longlong(double(__uint_as_float(x))));
    }
};

struct Byte {
    typedef u8 Bits;
    static __device__ u32 widen(u8 x) { return x; }
    static __device__ u8 narrow(u32 x) { return u8(x); }
};

// Element k of words that lie as in memory (little-endian).
template <class Bits> __device__ Bits get(const u64 *words, u32 k) {
    return Bits(words[k * sizeof(Bits) / 8] >> (k * sizeof(Bits) % 8 * 8));
}
template <class Bits> __device__ void put(u64 *words, u32 k, Bits x) { words[k * sizeof(Bits) / 8] |= u64(x) << (k * sizeof(Bits) % 8 * 8); }

// 16 bytes from any address, by aligned 16-byte loads.
__device__ void load16(const u8 *p, u64 *out) {
    u32 skew = u32(u64(p) % 16);
    const ulonglong2 *at = (const ulonglong2 *)(p - skew);
    ulonglong2 low = at[0];
    out[0] = low.x, out[1] = low.y;
    if (skew == 0) return;
    ulonglong2 high = at[1];
    u64 w0 = low.x, w1 = low.y, w2 = high.x;
    if (skew >= 8) w0 = low.y, w1 = high.x, w2 = high.y;
    u32 bits = skew % 8 * 8;
    out[0] = (w0 >> bits) | (w1 << 1 << (63 - bits));
    out[1] = (w1 >> bits) | (w2 << 1 << (63 - bits));
}

// One element between any two addresses, byte by byte.
template <class A, class B> __device__ void one(const u8 *src, u8 *dst) {
    u64 word = 0;
    for (u32 i = 0; i < sizeof(typename A::Bits); i++) word |= u64(src[i]) << (8 * i);
    u64 cast = B::narrow(A::widen(typename A::Bits(word)));
    for (u32 i = 0; i < sizeof(typename B::Bits); i++) dst[i] = u8(cast >> (8 * i));
}

// Casts one tile. `block` lies at a multiple of 16, and so does the end of what may be read from it.
template <class A, class B> __device__ void run(const u8 *block, const Tile *tiles) {
    typedef typename A::Bits From;
    typedef typename B::Bits To;
    constexpr u32 a = sizeof(From), b = sizeof(To), per = 16 / (a < b ? a : b); // elements of a group: 16 bytes or more on both sides
    const Tile tile = tiles[blockIdx.x];
    const u8 *src = block + tile.src;
    u8 *dst = (u8 *)tile.dst;
    // One by one until the destination is at a multiple of 16: all of them where it never is, as its elements are misaligned.
    u64 gap = (16 - tile.dst % 16) % 16;
    u64 head = gap % b == 0 && gap / b < tile.count ? gap / b : tile.count;
    u64 groups = (tile.count - head) / per, rest = tile.count - groups * per;
    for (u64 g = threadIdx.x; g < groups; g += blockDim.x) {
        const u8 *from = src + (head + g * per) * a;
        ulonglong2 *to = (ulonglong2 *)(dst + (head + g * per) * b);
        u64 in[per * a / 8], out[per * b / 8];
#pragma unroll
        for (u32 w = 0; w < per * a / 16; w++) load16(from + 16 * w, in + 2 * w);
#pragma unroll
        for (u32 w = 0; w < per * b / 8; w++) out[w] = 0;
#pragma unroll
        for (u32 k = 0; k < per; k++) put<To>(out, k, B::narrow(A::widen(get<From>(in, k))));
#pragma unroll
        for (u32 w = 0; w < per * b / 16; w++) {
            ulonglong2 word = {out[2 * w], out[2 * w + 1]};
            to[w] = word;
        }
    }
    for (u64 i = threadIdx.x; i < rest; i += blockDim.x) {
        u64 at = i < head ? i : i + groups * per;
        one<A, B>(src + at * a, dst + at * b);
    }
}

#define KERNEL(name, A, B) \
    extern "C" __global__ void name(const u8 *block, const Tile *tiles) { run<A, B>(block, tiles); }

KERNEL(copy, Byte, Byte)
KERNEL(cast_f64_f32, F64, F32)
KERNEL(cast_f64_f16, F64, F16)
KERNEL(cast_f64_bf16, F64, Bf16)
KERNEL(cast_f64_f8_e4m3, F64, E4m3)
KERNEL(cast_f64_f8_e5m2, F64, E5m2)
KERNEL(cast_f32_f64, F32, F64)
KERNEL(cast_f32_f16, F32, F16)
KERNEL(cast_f32_bf16, F32, Bf16)
KERNEL(cast_f32_f8_e4m3, F32, E4m3)
KERNEL(cast_f32_f8_e5m2, F32, E5m2)
KERNEL(cast_f16_f64, F16, F64)
KERNEL(cast_f16_f32, F16, F32)
KERNEL(cast_f16_bf16, F16, Bf16)
KERNEL(cast_f16_f8_e4m3, F16, E4m3)
KERNEL(cast_f16_f8_e5m2, F16, E5m2)
KERNEL(cast_bf16_f64, Bf16, F64)
KERNEL(cast_bf16_f32, Bf16, F32)
KERNEL(cast_bf16_f16, Bf16, F16)
KERNEL(cast_bf16_f8_e4m3, Bf16, E4m3)
KERNEL(cast_bf16_f8_e5m2, Bf16, E5m2)
KERNEL(cast_f8_e4m3_f64, E4m3, F64)
KERNEL(cast_f8_e4m3_f32, E4m3, F32)
KERNEL(cast_f8_e4m3_f16, E4m3, F16)
KERNEL(cast_f8_e4m3_bf16, E4m3, Bf16)
KERNEL(cast_f8_e4m3_f8_e5m2, E4m3, E5m2)
KERNEL(cast_f8_e5m2_f64, E5m2, F64)
KERNEL(cast_f8_e5m2_f32, E5m2, F32)
KERNEL(cast_f8_e5m2_f16, E5m2, F16)
KERNEL(cast_f8_e5m2_bf16, E5m2, Bf16)
KERNEL(cast_f8_e5m2_f8_e4m3, E5m2, E4m3)
