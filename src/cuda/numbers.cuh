// Numbers: the type of activations (act), conversions, activation functions, sums over a warp, and the wait for the kernel before.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
#define FULL 0xffffffffu

#if defined(ACT_HALF)

struct act {
    u16 bits;
};

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

struct act {
    u16 bits;
};

__device__ __forceinline__ float to_float(act a) { return __uint_as_float((u32)a.bits << 16); }

// To nearest, ties to even, as the hardware of sm_80 does it; NaN stays NaN.
__device__ __forceinline__ act to_act(float f) {
    u32 b = __float_as_uint(f);
    act a;
    a.bits = f != f ? 0x7fc0 : (b + 0x7fff + ((b >> 16) & 1)) >> 16;
    return a;
}

__device__ __forceinline__ float2 unpack2(u32 pair) {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

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

__device__ __forceinline__ float power_of_2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#ifdef ACT_FLOAT
// The exact GELU, x/2 (1 + erf(x / sqrt 2)).
__device__ __forceinline__ float gelu(float x) { return 0.5f * x * (1.f + erff(x * 0.70710678118654752f)); }

// x / (1 + e^-x), and x / (1 + e^-2u), which is x/2 (1 + tanh u), for u = sqrt(2 / pi) (x + 0.044715 x^3).
__device__ __forceinline__ float curved(float x, int kind) {
    const float y = kind == KIND_SILU ? x : 1.5957691216057308f * (x + 0.044715f * x * x * x);
    return kind == KIND_GELU ? gelu(x) : __fdividef(x, 1.f + expf(-y));
}
#else
// For act of two bytes, the GELU is x / (1 + 2^-(x q(x^2))), too: the quartic q is fitted so that it differs from the exact one by less than 4e-6
// everywhere, in a third of the instructions. The other functions have a q with fewer terms.
__device__ __forceinline__ float curved(float x, int kind) {
    const bool erf = kind == KIND_GELU, silu = kind == KIND_SILU;
    const float y = erf ? x * x : fminf(x * x, 1e9f);  // 0 times infinity would be NaN
    const float q = (((erf ? 3.21037276e-6f : 0.f) * y - (erf ? 8.79096863e-5f : 0.f)) * y - (erf ? 3.62048138e-4f : 0.f)) * y +
                    (erf    ? 1.05229977e-1f
                     : silu ? 0.f
                            : 1.02943223e-1f);
    return __fdividef(x, 1.f + power_of_2(-x * (q * y + (erf ? 2.30204378f : silu ? 1.44269504f : 2.30220820f))));
}

__device__ __forceinline__ float gelu(float x) { return curved(x, KIND_GELU); }
#endif

// kind: KIND_NONE or one of those below
__device__ __forceinline__ float activated(float x, int kind) {
    if (kind == KIND_GELU || kind == KIND_SILU || kind == KIND_GELU_TANH) return curved(x, kind);
    return kind == KIND_TANH ? tanhf(x) : kind == KIND_RELU && x < 0.f ? 0.f : x;  // relu keeps a NaN
}

// Each becomes its sum over the warp; the sums do not wait for each other.
template <int M> __device__ __forceinline__ void warp_sums(float (&v)[M]) {
#pragma unroll
    for (int step = 16; step; step >>= 1)
#pragma unroll
        for (int i = 0; i < M; i++) v[i] += __shfl_xor_sync(FULL, v[i], step);
}

__device__ __forceinline__ float warp_sum(float v) {
    float sum[1] = {v};
    warp_sums(sum);
    return sum[0];
}

// One kernel after another.
// From sm_90 on, a kernel may be launched while the one before it still runs, once all blocks of that one have come past this. Before it, a kernel may
// use whatever was there when the one before was launched, weights above all; behind it, whatever the one before has written. Every kernel comes past
// it: so when one is launched, all but the one before it have ended.

__device__ __forceinline__ void await_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait; griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
