// Rows: one warp holds a row of D values, or a few rows; how they are loaded, stored, multiplied and normed.
// Lane l has the values of columns (v * 32 + l) * VECTOR ... + VECTOR for each v: 16-byte loads that neighbours continue. D is a multiple of VECTOR.

#ifdef ACT_FLOAT
#define VECTOR 4
#else
#define VECTOR 8
#endif
#define VECTORS ((HIDDEN + 32 * VECTOR - 1) / (32 * VECTOR))
#define VALUES (VECTORS * VECTOR)

__device__ __forceinline__ int lane_id() { return threadIdx.x & 31; }
__device__ __forceinline__ int column(int v) { return (v * 32 + lane_id()) * VECTOR; }
__device__ __forceinline__ bool inside(int v) { return HIDDEN % (32 * VECTOR) == 0 || column(v) < HIDDEN; }

__device__ __forceinline__ void unpack(uint4 word, float (&f)[VECTOR]) {
#ifdef ACT_FLOAT
    f[0] = __uint_as_float(word.x), f[1] = __uint_as_float(word.y), f[2] = __uint_as_float(word.z), f[3] = __uint_as_float(word.w);
#else
    const u32 pairs[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 pair = unpack2(pairs[i]);
        f[2 * i] = pair.x, f[2 * i + 1] = pair.y;
    }
#endif
}

__device__ __forceinline__ uint4 pack(const float* f) {
#ifdef ACT_FLOAT
    return make_uint4(__float_as_uint(f[0]), __float_as_uint(f[1]), __float_as_uint(f[2]), __float_as_uint(f[3]));
#else
    return make_uint4(pack2(f[0], f[1]), pack2(f[2], f[3]), pack2(f[4], f[5]), pack2(f[6], f[7]));
#endif
}

#ifdef ROW_INT8
typedef signed char row;
typedef uint2 word;

// A byte placed behind the exponent of 2^23 is 2^23 + byte; two cheap instructions instead of a conversion at a quarter of the rate.
__device__ __forceinline__ void unpack(uint2 bytes, float (&f)[VECTOR]) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        u32 shifted = (i < 4 ? bytes.x : bytes.y) ^ 0x80808080u;
        f[i] = __uint_as_float(__byte_perm(shifted, 0x4b000000u, 0x7650u + (i & 3))) - 8388736.f;
    }
}
#else
typedef act row;
typedef uint4 word;
#endif

// Four neighbouring values; their address is a multiple of 8 bytes, of 16 in float32.
__device__ __forceinline__ void load4(float (&f)[4], const act* from) {
#ifdef ACT_FLOAT
    const float4 four = *reinterpret_cast<const float4*>(from);
    f[0] = four.x, f[1] = four.y, f[2] = four.z, f[3] = four.w;
#else
    const uint2 four = *reinterpret_cast<const uint2*>(from);
    const float2 low = unpack2(four.x), high = unpack2(four.y);
    f[0] = low.x, f[1] = low.y, f[2] = high.x, f[3] = high.y;
#endif
}

__device__ __forceinline__ void store4(act* to, const float (&f)[4], float by) {
#ifdef ACT_FLOAT
    *reinterpret_cast<float4*>(to) = make_float4(f[0] * by, f[1] * by, f[2] * by, f[3] * by);
#else
    *reinterpret_cast<uint2*>(to) = make_uint2(pack2(f[0] * by, f[1] * by), pack2(f[2] * by, f[3] * by));
#endif
}

struct Row {
    word words[VECTORS];
};

// Rows of trees and norms: kept in L1, which holds the top of a tree.
template <typename Word, typename T> __device__ __forceinline__ Word load(const T* from) {
    return __ldg(reinterpret_cast<const Word*>(from));
}

__device__ __forceinline__ void load_row(Row& r, const row* from) {
    from += column(0);
    asm("" : "+l"(from));  // one address; left alone, the compiler keeps one for each v in registers
#pragma unroll
    for (int v = 0; v < VECTORS; v++) r.words[v] = inside(v) ? load<word>(from + v * (32 * VECTOR)) : word();
}

// From memory to L2, a line a thread.
__device__ __forceinline__ void prefetch(const void* from, int bytes, int thread, int threads) {
    for (int at = thread * 128; at < bytes; at += threads * 128)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(reinterpret_cast<const char*>(from) + at));
}

// Tokens pass through once: L1 is kept for the trees.
__device__ __forceinline__ uint4 load_once(const act* from) {
    uint4 w;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w) : "l"(from));
    return w;
}

__device__ __forceinline__ void load_token(float (&x)[VALUES], const act* from) {
    uint4 words[VECTORS];
#pragma unroll
    for (int v = 0; v < VECTORS; v++) words[v] = inside(v) ? load_once(from + column(v)) : make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int v = 0; v < VECTORS; v++) unpack(words[v], reinterpret_cast<float (&)[VECTOR]>(x[v * VECTOR]));
}

__device__ __forceinline__ void store_token(const float (&y)[VALUES], act* to) {
#pragma unroll
    for (int v = 0; v < VECTORS; v++)
        if (inside(v)) *reinterpret_cast<uint4*>(to + column(v)) = pack(&y[v * VECTOR]);
}

__device__ __forceinline__ void add_token(float (&y)[VALUES], const act* from) {
    float more[VALUES];
    load_token(more, from);
#pragma unroll
    for (int i = 0; i < VALUES; i++) y[i] += more[i];
}

// This lane's part of x . row; four sums, so that additions do not wait for each other.
__device__ __forceinline__ float dot(const Row& r, const float (&x)[VALUES]) {
    float sums[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        float f[VECTOR];
        unpack(r.words[v], f);
#pragma unroll
        for (int j = 0; j < VECTOR; j++) sums[j & 3] += f[j] * x[v * VECTOR + j];
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

__device__ __forceinline__ void add_scaled(const Row& r, float by, float (&y)[VALUES]) {
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        float f[VECTOR];
        unpack(r.words[v], f);
#pragma unroll
        for (int j = 0; j < VECTOR; j++) y[v * VECTOR + j] += by * f[j];
    }
}

// The normed values of a row, before weight and bias, are (x - mean) * factor - shift.
struct Normed {
    float factor, shift;
};

// Given the sums of x - mean and of its square. The mean of x - mean is what rounding left of the mean: much where the mean is far from zero.
// NaN where float32 cannot hold the variance.
__device__ __forceinline__ Normed normed(const float (&sums)[2], float eps) {
    const float rest = sums[0] * (1.f / HIDDEN), variance = sums[1] * (1.f / HIDDEN) - rest * rest;
    const float factor =
        variance < __int_as_float(0x7f800000) ? rsqrtf((variance < 0.f ? 0.f : variance) + eps) : __int_as_float(0x7fc00000);
    return {factor, rest * factor};
}

// LayerNorm of the row that this warp holds, in two passes: (x - mean) / sqrt(variance + eps) * weight + bias.
__device__ __forceinline__ void normalise(float (&x)[VALUES], const act* weight, const act* bias, float eps) {
    float sum = 0.f, sums[2] = {0.f, 0.f};
#pragma unroll
    for (int i = 0; i < VALUES; i++) sum += x[i];
    float mean = warp_sum(sum) * (1.f / HIDDEN);
#pragma unroll
    for (int v = 0; v < VECTORS; v++)
#pragma unroll
        for (int j = 0; j < VECTOR; j++) {
            x[v * VECTOR + j] -= mean;
            if (inside(v)) sums[0] += x[v * VECTOR + j], sums[1] += x[v * VECTOR + j] * x[v * VECTOR + j];
        }
    warp_sums(sums);
    const Normed n = normed(sums, eps);
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        float w[VECTOR] = {}, b[VECTOR] = {};  // what is outside becomes zero again: sums go over it
        if (inside(v)) {
            unpack(load<uint4>(weight + column(v)), w);
            unpack(load<uint4>(bias + column(v)), b);
        }
#pragma unroll
        for (int j = 0; j < VECTOR; j++) x[v * VECTOR + j] = (x[v * VECTOR + j] * n.factor - n.shift) * w[j] + b[j];
    }
}

__device__ __forceinline__ int own_token(int warps = WARPS) { return blockIdx.x * warps + (threadIdx.x >> 5); }
