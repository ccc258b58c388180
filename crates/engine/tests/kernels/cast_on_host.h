// cast.cu for the host: what CUDA's compiler has built in, and the file itself (CAST_CU). Thread indices are globals.

#pragma once
#include <cstring>

#define __device__
#define __global__
struct alignas(16) ulonglong2 {
    unsigned long long x, y;
};
static thread_local struct {
    unsigned x;
} blockIdx, threadIdx, blockDim;

template <class To, class From> static To bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
static unsigned __float_as_uint(float x) { return bits<unsigned>(x); }
static float __uint_as_float(unsigned x) { return bits<float>(x); }
static long long __double_as_longlong(double x) { return bits<long long>(x); }
static double __longlong_as_double(long long x) { return bits<double>(x); }
static float __fadd_rn(float a, float b) { return a + b; }
static float __fmul_rn(float a, float b) { return a * b; }
static float __double2float_rn(double x) { return float(x); }

#include CAST_CU

typedef void (*Kernel)(const u8 *, const Tile *);
