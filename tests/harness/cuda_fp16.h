// What the kernels use of CUDA C++, for g++: the .cu sources include this instead of NVIDIA's header of the same name.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "fibers.h"

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define DYNAMIC_SHARED(type, name) type* const name = (type*)harness::machine().current->block->shared.get()

#define threadIdx (harness::machine().current->thread)
#define blockIdx (harness::machine().current->block->index)
#define gridDim (harness::machine().launch.grid)
#define blockDim (harness::machine().launch.block)

inline void __syncthreads(int line = __builtin_LINE()) { harness::barrier(line, 0); }
inline int __syncthreads_or(int value, int line = __builtin_LINE()) { return harness::barrier(line, value != 0) != 0; }
inline void __syncwarp(uint32_t mask = ~0u, int line = __builtin_LINE()) { harness::warp(harness::SYNC, mask, 0, 0, line); }
inline uint32_t __ballot_sync(uint32_t mask, int value, int line = __builtin_LINE()) {
    return (uint32_t)harness::warp(harness::BALLOT, mask, value != 0, 0, line);
}
inline int __any_sync(uint32_t mask, int value, int line = __builtin_LINE()) {
    return harness::warp(harness::BALLOT, mask, value != 0, 0, line) != 0;
}
inline int __all_sync(uint32_t mask, int value, int line = __builtin_LINE()) {
    return harness::warp(harness::BALLOT, mask, value == 0, 0, line) == 0;
}
template <typename T>
T harness_shuffle(harness::Operation operation, uint32_t mask, T value, int argument, int line) {
    static_assert(sizeof(T) <= 8);
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = harness::warp(operation, mask, bits, argument, line);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}
template <typename T>
T __shfl_sync(uint32_t mask, T value, int lane, int line = __builtin_LINE()) {
    return harness_shuffle(harness::SHUFFLE, mask, value, lane, line);
}
template <typename T>
T __shfl_up_sync(uint32_t mask, T value, unsigned step, int line = __builtin_LINE()) {
    return harness_shuffle(harness::SHUFFLE_UP, mask, value, (int)step, line);
}
template <typename T>
T __shfl_down_sync(uint32_t mask, T value, unsigned step, int line = __builtin_LINE()) {
    return harness_shuffle(harness::SHUFFLE_DOWN, mask, value, (int)step, line);
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, int line = __builtin_LINE()) {
    return harness_shuffle(harness::SHUFFLE_XOR, mask, value, bits, line);
}

// One OS thread: an atomic is a plain operation, after which another thread may come first.
template <typename T>
T atomicAdd(T* address, T value) {
    const T before = *address;
    *address = before + value;
    harness::maybe_yield();
    return before;
}
inline void __threadfence() {}  // cannot be judged here: tests/kernels/test_ptx.py asserts the fences

inline int __ffs(unsigned value) { return __builtin_ffs((int)value); }
inline int __popc(unsigned value) { return __builtin_popcount(value); }
template <typename To, typename From>
To harness_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof(To));
    return to;
}
inline unsigned __float_as_uint(float value) { return harness_bits<unsigned>(value); }
inline float __uint_as_float(unsigned value) { return harness_bits<float>(value); }
inline int __float2int_rn(float value) { return (int)std::nearbyint(value); }

template <typename T>
T __ldg(const T* from) { return *from; }
template <typename T>
T __ldcg(const T* from) { return *from; }
template <typename T>
void __stcg(T* to, T value) { *to = value; }

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

struct __half {
    uint16_t bits;
};
inline unsigned short __half_as_ushort(__half value) { return value.bits; }
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline float __half2float(__half value) {
    static const float* const table = [] {  // g++ converts in software: a table is several times faster
        float* all = new float[65536];
        for (unsigned i = 0; i < 65536; ++i) all[i] = (float)harness_bits<_Float16>((uint16_t)i);
        return all;
    }();
    return table[value.bits];
}
inline __half __float2half_rn(float value) { return {harness_bits<uint16_t>((_Float16)value)}; }

using std::exp;
using std::floor;
using std::fma;
using std::fmaf;
inline float fmaxf(float a, float b) { return __builtin_fmaxf(a, b); }
