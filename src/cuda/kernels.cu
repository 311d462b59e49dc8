// The GPU kernels: embedding, norms, activations, pooling, and the fast feedforward. attention.cu follows this text in the same program.
//
// NVRTC compiles it at run time for one model (backends/cuda.py says how), with
//   -D ACT_FLOAT | ACT_HALF | ACT_BFLOAT16   what activations and dense weights are (act)
//   -D ROW_INT8                              rows of trees are int8 with a float32 scale each; else they are act
//   -D HIDDEN=D  -D HEADS=H
// No header is included: a machine that only has CuPy has none. Sums are float32 whatever is stored.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
#define FULL 0xffffffffu

// ---- numbers ---------------------------------------------------------------------------------------------------------------------------

#if defined(ACT_HALF)

struct act { u16 bits; };

__device__ __forceinline__ float to_float(act a) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(a.bits));
    return f;
}

__device__ __forceinline__ act to_act(float f) {
    act a;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(a.bits) : "f"(f));
    return a;
}

__device__ __forceinline__ float2 unpack2(u32 pair) {
    float2 f;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}" : "=f"(f.x), "=f"(f.y) : "r"(pair));
    return f;
}

#elif defined(ACT_BFLOAT16)

struct act { u16 bits; };

__device__ __forceinline__ float to_float(act a) { return __uint_as_float((u32)a.bits << 16); }

// To nearest, ties to even, as the hardware of sm_80 does it; NaN stays NaN.
__device__ __forceinline__ act to_act(float f) {
    u32 b = __float_as_uint(f);
    act a;
    a.bits = f != f ? 0x7fc0 : (b + 0x7fff + ((b >> 16) & 1)) >> 16;
    return a;
}

__device__ __forceinline__ float2 unpack2(u32 pair) { return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)); }

#else

typedef float act;

__device__ __forceinline__ float to_float(float f) { return f; }
__device__ __forceinline__ float to_act(float f) { return f; }

#endif

#ifndef ACT_FLOAT
// Two neighbours in one word, the first in its lower half.
__device__ __forceinline__ u32 pack2(float first, float second) {
    u32 pair;
#if __CUDA_ARCH__ >= 800 && defined(ACT_HALF)
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
#elif __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
#else
    pair = to_act(first).bits | (u32)to_act(second).bits << 16;
#endif
    return pair;
}
#endif

// The exact GELU, x/2 (1 + erf(x / sqrt 2)).
__device__ __forceinline__ float gelu(float x) { return 0.5f * x * (1.f + erff(x * 0.70710678118654752f)); }

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int step = 16; step; step >>= 1) v += __shfl_xor_sync(FULL, v, step);
    return v;
}
