// The GPU kernels: embedding, norms, activations, pooling, and the fast feedforward. products.cu and attention.cu follow this text in the
// same program.
//
// NVRTC compiles it at run time for one model (backends/cuda.py says how), with
//   -D ACT_FLOAT | ACT_HALF | ACT_BFLOAT16   what activations and dense weights are (act)
//   -D HIDDEN=D  -D HEADS=H                  all kernels but the feedforward's; no HEADS, no attention
//   -D HIDDEN=D  -D DEPTH=depth              the feedforward of trees walked so deep: loops over levels are unrolled
//   -D ROW_INT8                              rows of trees are int8 with a float32 scale each; else they are act
//   -D STOPS                                 trees are pruned: a table says where a node leads, or that the walk stops
// and, defined in front of this text, WARPS and FEW_WARPS: warps of a block, where each has a token.
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

__device__ __forceinline__ float power_of_2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// The exact GELU, x/2 (1 + erf(x / sqrt 2)). For act of two bytes it is x / (1 + 2^-(x q(x^2))): the quartic q is fitted so that the two differ by
// less than 4e-6 everywhere, in a third of the instructions.
__device__ __forceinline__ float gelu(float x) {
#ifdef ACT_FLOAT
    return 0.5f * x * (1.f + erff(x * 0.70710678118654752f));
#else
    const float y = x * x;
    const float q = (((3.21037276e-6f * y - 8.79096863e-5f) * y - 3.62048138e-4f) * y + 1.05229977e-1f) * y + 2.30204378f;
    return __fdividef(x, 1.f + power_of_2(-x * q));
#endif
}

// kind: 0 none, 1 gelu, 2 tanh, 3 relu
__device__ __forceinline__ float activated(float x, int kind) {
    return kind == 1 ? gelu(x) : kind == 2 ? tanhf(x) : kind == 3 && x < 0.f ? 0.f : x;  // relu keeps a NaN
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

#if !defined(ACT_FLOAT) && __CUDA_ARCH__ >= 800

// ---- tensor cores ----------------------------------------------------------------------------------------------------------------------

#ifdef ACT_HALF
#define ACT_PTX "f16"
#else
#define ACT_PTX "bf16"
#endif

// d (16, 8) += a (16, 16) b (16, 8). Lane l has rows l / 4 and l / 4 + 8 of d and, of each, columns 2 (l % 4) and the next.
__device__ __forceinline__ void multiply(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." ACT_PTX "." ACT_PTX ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four matrices of 8 x 8 from shared memory; lane l says where row l % 8 of matrix l / 8 starts.
__device__ __forceinline__ void load_matrices(u32 (&m)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(from)
                 : "memory");
}

__device__ __forceinline__ void load_transposed(u32 (&m)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(from)
                 : "memory");
}

// 16 bytes to shared memory past the registers; zeros, and nothing is read, if they are not there. L2 may fetch the 128 bytes around: in
// attention what they hold of another head is wanted as well (5% of the time of short texts with heads of 32).
__device__ __forceinline__ void copy16(u32 to, const act* from, bool there = true) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// This thread's copies are done, but for those of the newest `LEFT` commits.
template <int LEFT> __device__ __forceinline__ void finish_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }

#endif

// ---- one kernel after another ----------------------------------------------------------------------------------------------------------
// From sm_90 on, a kernel may be launched while the one before it still runs, once all blocks of that one have come past this. Before it, a kernel may
// use whatever was there when the one before was launched, weights above all; behind it, whatever the one before has written. Every kernel comes past
// it: so when one is launched, all but the one before it have ended.

__device__ __forceinline__ void await_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait; griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ---- rows: one warp holds a row of D values, or a few rows ------------------------------------------------------------------------------
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

struct Row { word words[VECTORS]; };

// Rows of trees and norms: kept in L1, which holds the top of a tree.
template <typename Word, typename T> __device__ __forceinline__ Word load(const T* from) { return __ldg(reinterpret_cast<const Word*>(from)); }

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
    for (int v = 0; v < VECTORS; v++) unpack(words[v], reinterpret_cast<float(&)[VECTOR]>(x[v * VECTOR]));
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
struct Normed { float factor, shift; };

// Given the sums of x - mean and of its square. The mean of x - mean is what rounding left of the mean: much where the mean is far from zero.
// NaN where float32 cannot hold the variance.
__device__ __forceinline__ Normed normed(const float (&sums)[2], float eps) {
    const float rest = sums[0] * (1.f / HIDDEN), variance = sums[1] * (1.f / HIDDEN) - rest * rest;
    const float factor = variance < __int_as_float(0x7f800000) ? rsqrtf((variance < 0.f ? 0.f : variance) + eps) : __int_as_float(0x7fc00000);
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

#ifndef DEPTH

// ---- what is simple: a warp a token ----------------------------------------------------------------------------------------------------

// The text that holds token t: the last b with starts[b] <= t, found 32 candidates at a time.
__device__ __forceinline__ int find_text(const int* starts, int texts, int t) {
    int low = 0, high = texts;  // low holds; high does not
    while (high - low > 1) {
        int step = (high - low + 31) / 32, probe = low + step * (lane_id() + 1);
        int after = __popc(__ballot_sync(FULL, probe < high && __ldg(starts + probe) <= t));
        low += step * after;
        high = min(high, low + step);
    }
    return low;
}

// out (tokens, D) = word[ids] + position[place in its text] + token_type[types], normed where there is a norm; bounds (tokens): the rows
// of each token's text, 0 and 0 for those behind the last text, which fill the batch up to the size of its graph.
// input: texts, then ids (tokens), then starts (tokens + 1, texts + 1 of them used), then types (tokens)
extern "C" __global__ void __launch_bounds__(WARPS * 32) embed(const int* input, int with_types, const act* word, const act* position,
                                                               const act* token_type, const act* weight, const act* bias, float eps,
                                                               int2* bounds, act* out, int tokens) {
    await_previous();
    const int t = own_token();
    if (t >= tokens) return;
    const int texts = __ldg(input), *ids = input + 1, *starts = ids + tokens, *types = starts + tokens + 1;
    int2 text = make_int2(0, 0);
    if (t < __ldg(starts + texts)) {
        int b = find_text(starts, texts, t);
        text = make_int2(__ldg(starts + b), __ldg(starts + b + 1));
    }
    if (lane_id() == 0) bounds[t] = text;
    float x[VALUES];
    load_token(x, word + (size_t)__ldg(ids + t) * HIDDEN);
    add_token(x, position + (size_t)(text.y ? t - text.x : 0) * HIDDEN);
    if (token_type) add_token(x, token_type + (size_t)(with_types ? __ldg(types + t) : 0) * HIDDEN);
    if (weight) normalise(x, weight, bias, eps);
    store_token(x, out + (size_t)t * HIDDEN);
}

extern "C" __global__ void __launch_bounds__(WARPS * 32) layer_norm(const act* x, const act* weight, const act* bias, float eps, act* out,
                                                              int tokens) {
    prefetch(weight, HIDDEN * (int)sizeof(act), threadIdx.x, WARPS * 32);
    prefetch(bias, HIDDEN * (int)sizeof(act), threadIdx.x, WARPS * 32);
    await_previous();
    const int t = own_token();
    if (t >= tokens) return;
    float row[VALUES];
    load_token(row, x + (size_t)t * HIDDEN);
    normalise(row, weight, bias, eps);
    store_token(row, out + (size_t)t * HIDDEN);
}

// x = activation(x) (+ residual), `count` values, a multiple of VECTOR. kind as in activated()
extern "C" __global__ void __launch_bounds__(256) activate(act* x, const act* residual, int kind, long long count) {
    await_previous();
    for (long long i = (blockIdx.x * 256ll + threadIdx.x) * VECTOR; i < count; i += gridDim.x * 256ll * VECTOR) {
        float f[VECTOR];
        unpack(*reinterpret_cast<const uint4*>(x + i), f);
#pragma unroll
        for (int j = 0; j < VECTOR; j++) f[j] = activated(f[j], kind);
        if (residual) {
            float r[VECTOR];
            unpack(*reinterpret_cast<const uint4*>(residual + i), r);
#pragma unroll
            for (int j = 0; j < VECTOR; j++) f[j] += r[j];
        }
        *reinterpret_cast<uint4*>(x + i) = pack(f);
    }
}

// out (texts, D) float32: a block a text, a thread a column. kind: 0 cls (the first token), 1 mean, 2 max, 3 lse (log of the sum of exp)
extern "C" __global__ void __launch_bounds__(128) pool(const act* x, const int* starts, int kind, float* out) {
    await_previous();
    const int begin = __ldg(starts + blockIdx.x), end = __ldg(starts + blockIdx.x + 1);
    for (int c = threadIdx.x; c < HIDDEN; c += 128) {
        float first = to_float(x[(size_t)begin * HIDDEN + c]), top = first, sum = 0.f;
        if (kind)
            for (int t = begin; t < end; t++) {
                float value = to_float(x[(size_t)t * HIDDEN + c]);
                sum += value, top = value > top || value != value ? value : top;
            }
        float pooled = kind == 0 ? first : kind == 1 ? sum / (end - begin) : top;
        if (kind == 3) {
            sum = 0.f;
            for (int t = begin; t < end; t++) sum += expf(to_float(x[(size_t)t * HIDDEN + c]) - top);
            pooled = top + logf(sum);
        }
        out[(size_t)blockIdx.x * HIDDEN + c] = pooled;
    }
}

#ifndef ACT_FLOAT
// out = x, `count` values
extern "C" __global__ void __launch_bounds__(256) to_float32(const act* x, float* out, long long count) {
    await_previous();
    for (long long i = (blockIdx.x * 256ll + threadIdx.x) * VECTOR; i < count; i += gridDim.x * 256ll * VECTOR) {
        if (i + VECTOR > count) {
            for (long long j = i; j < count; j++) out[j] = to_float(x[j]);
            break;
        }
        float f[VECTOR];
        unpack(load_once(x + i), f);
#pragma unroll
        for (int j = 0; j < VECTOR; j += 4) *reinterpret_cast<float4*>(out + i + j) = make_float4(f[j], f[j + 1], f[j + 2], f[j + 3]);
    }
}
#endif

#else  // DEPTH

// ---- the fast feedforward (CMM) --------------------------------------------------------------------------------------------------------
// At node n: z = x . in[n] + b_in[n]; y += gelu(z) * out[n]; go to 2n + 1 + (z > 0). z == 0 goes left; leaves add too.
// Between two norms of a layer it is memory that costs, so the norm before, the residual and the norm after are part of these kernels.

struct FFF {
    const act* x;               // (tokens, D)
    const act* norm_weight;     // h = LayerNorm(x), or h = x where null
    const act* norm_bias;
    const act* residual;        // y = fff(h) + bias + residual (+ h where add_input); null: none
    const row* nodes;           // (trees, count, 2, D): the in-row and the out-row of a node side by side
    const float* scales;        // (trees, count, 2) of int8 rows
    const float* b_in;          // (trees, count) or null
    const int* children;        // with STOPS: (trees, count, 2), -1 = stop; else null: 2n + 1, 2n + 2
    const act* bias;            // (D) or null
    const act* out_norm_weight; // out = LayerNorm(y), or y where null
    const act* out_norm_bias;
    act* out;                   // (tokens, D), may be x: a row is read before it is written
    int* path;                  // (tokens, trees, depth + 1) visited nodes, -1 after a stop; or null
    float* z;                   // the same shape: their logits, 0 after a stop; or null
    int tokens, trees, count, add_input;
    float eps;
};

// Nodes of all trees are counted through: n = tree * count + node.
__device__ __forceinline__ const row* in_row(const FFF& f, int n) { return f.nodes + (size_t)n * (2 * HIDDEN); }
__device__ __forceinline__ const row* out_row(const FFF& f, int n) { return in_row(f, n) + HIDDEN; }

// What decides at a node, loaded together: a bias that came later would cost a second wait.
struct Node {
    Row row;
    float bias;
#ifdef ROW_INT8
    float scale;
#endif
};

__device__ __forceinline__ void load_node(Node& node, const FFF& f, int n) {
    load_row(node.row, in_row(f, n));
    node.bias = f.b_in ? __ldg(f.b_in + n) : 0.f;
#ifdef ROW_INT8
    node.scale = __ldg(f.scales + 2 * (size_t)n);
#endif
}

// z of the warp's token, in every lane
__device__ __forceinline__ float logit(const Node& node, const float (&x)[VALUES]) {
    float product = warp_sum(dot(node.row, x));
#ifdef ROW_INT8
    product *= node.scale;
#endif
    return product + node.bias;
}

__device__ __forceinline__ float out_scale(const FFF& f, int n) {
#ifdef ROW_INT8
    return __ldg(f.scales + 2 * (size_t)n + 1);
#else
    return 1.f;
#endif
}

// What the out-row is multiplied by.
__device__ __forceinline__ float weight_of(const FFF& f, int n, float z) { return gelu(z) * out_scale(f, n); }

#ifdef STOPS
constexpr bool stops = true;
#else
constexpr bool stops = false;
#endif

__device__ __forceinline__ int next_node(const FFF& f, int tree, int node, float z) {
    const int right = z > 0.f;
    return stops ? __ldg(f.children + 2 * ((size_t)tree * f.count + node) + right) : 2 * node + 1 + right;
}

__device__ __forceinline__ void load_input(float (&x)[VALUES], const FFF& f, int token) {
    load_token(x, f.x + (size_t)token * HIDDEN);
    if (f.norm_weight) normalise(x, f.norm_weight, f.norm_bias, f.eps);
}

// y: the sum over the visited nodes, and h where it is added
__device__ __forceinline__ void finish(float (&y)[VALUES], const FFF& f, int token) {
    if (f.bias) add_token(y, f.bias);
    if (f.residual) add_token(y, f.residual + (size_t)token * HIDDEN);
    if (f.out_norm_weight) normalise(y, f.out_norm_weight, f.out_norm_bias, f.eps);
    store_token(y, f.out + (size_t)token * HIDDEN);
}

// Where a token went in one tree, a level a lane.
struct Path { int node; float z; };

// The g-th of the trees `tree`, `tree + stride` ...; behind the last, the last again, whose work is dropped: no load stands in a branch.
__device__ __forceinline__ int tree_of(const FFF& f, int tree, int stride, int g) { return min(tree + g * stride, f.trees - 1); }

// This warp's token down G trees in step: loads of one hide those of another.
template <int G> __device__ __forceinline__ void descend(Path (&paths)[G], const float (&x)[VALUES], const FFF& f, int tree, int stride) {
    int at[G];
#pragma unroll
    for (int g = 0; g < G; g++) at[g] = 0, paths[g] = {-1, 0.f};
#pragma unroll 1
    for (int level = 0; level <= DEPTH; level++) {
        Node nodes[G];
#pragma unroll
        for (int g = 0; g < G; g++)
            if (!stops || at[g] >= 0) load_node(nodes[g], f, tree_of(f, tree, stride, g) * f.count + at[g]);
#pragma unroll
        for (int g = 0; g < G; g++) {
            if (stops && at[g] < 0) continue;
            float z = logit(nodes[g], x);
            if (lane_id() == level) paths[g] = {at[g], z};
            at[g] = next_node(f, tree_of(f, tree, stride, g), at[g], z);
        }
    }
}

// y += what the nodes of these paths say. All levels take their GELU at once; then rows are loaded, `AHEAD` at a time.
template <int G, int AHEAD>
__device__ __forceinline__ void gather(float (&y)[VALUES], const Path (&paths)[G], const FFF& f, int tree, int stride) {
    float by[G];
#pragma unroll
    for (int g = 0; g < G; g++) {
        const bool counts = lane_id() <= DEPTH && tree + g * stride < f.trees && (!stops || paths[g].node >= 0);
        by[g] = counts ? weight_of(f, tree_of(f, tree, stride, g) * f.count + paths[g].node, paths[g].z) : 0.f;
    }
#pragma unroll
    for (int level = 0; level <= DEPTH; level += AHEAD / G) {
        Row rows[AHEAD];
        float scale[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int g = i % G, l = level + i / G;
            if (l > DEPTH) continue;
            const int node = __shfl_sync(FULL, paths[g].node, l);
            scale[i] = __shfl_sync(FULL, by[g], l);
            if (!stops || node >= 0) load_row(rows[i], out_row(f, tree_of(f, tree, stride, g) * f.count + node));
            else rows[i] = Row();
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            if (level + i / G <= DEPTH) add_scaled(rows[i], scale[i], y);
    }
}

__device__ __forceinline__ void record(const Path& path, const FFF& f, int token, int tree) {
    if (!f.path || tree >= f.trees || lane_id() > DEPTH) return;
    const size_t at = ((size_t)token * f.trees + tree) * (DEPTH + 1) + lane_id();
    f.path[at] = path.node;
    f.z[at] = path.z;
}

#define ROW_WORDS (VECTORS * (int)sizeof(word) / 4)  // registers that a row takes
#define HELD (VALUES + ROW_WORDS)  // and a row with a token
#define TOGETHER (ROW_WORDS <= 8 ? 4 : ROW_WORDS <= 12 ? 2 : 1)  // trees that a warp walks in step

// One tree, a warp a token. For many tokens, whose speed is that of many warps: registers are held to what lets four blocks (three, two)
// share a multiprocessor.
extern "C" __global__ void __launch_bounds__(WARPS * 32, HELD <= 48 ? 4 : HELD <= 72 ? 3 : 2) fff_tree(FFF f) {
    await_previous();
    const int token = own_token();
    if (token >= f.tokens) return;
    float x[VALUES];
    load_input(x, f, token);
    Path path[1];
    descend(path, x, f, 0, 1);
    record(path[0], f, token, 0);
    if (!f.add_input)
#pragma unroll
        for (int i = 0; i < VALUES; i++) x[i] = 0.f;
    gather<1, (ROW_WORDS <= 12 ? (stops ? 2 : 3) : 1)>(x, path, f, 0, 1);
    finish(x, f, token);
}

// Many trees, a warp a token.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 2) fff_trees(FFF f) {
    await_previous();
    const int token = own_token();
    if (token >= f.tokens) return;
    float x[VALUES], y[VALUES];
    load_input(x, f, token);
#pragma unroll
    for (int i = 0; i < VALUES; i++) y[i] = f.add_input ? x[i] : 0.f;
    for (int tree = 0; tree < f.trees; tree += TOGETHER) {
        Path paths[TOGETHER];
        descend(paths, x, f, tree, 1);
#pragma unroll
        for (int g = 0; g < TOGETHER; g++) record(paths[g], f, token, tree + g);
        gather<TOGETHER, TOGETHER>(y, paths, f, tree, 1);
    }
    finish(y, f, token);
}

// Many trees, few tokens: a block a token, whose warps share the trees out and then add up in one order.
#define TREE_WARPS (ROW_WORDS <= 12 ? 16 : ROW_WORDS <= 24 ? 8 : 4)
extern "C" __device__ const int trees_few_threads[1] = {TREE_WARPS * 32};  // what the host asks for
extern "C" __global__ void __launch_bounds__(TREE_WARPS * 32) fff_trees_few(FFF f) {
    __shared__ float sums[TREE_WARPS / 2][VALUES * 32];
    await_previous();
    const int token = blockIdx.x, warp = threadIdx.x >> 5;
    float x[VALUES], y[VALUES];
    load_input(x, f, token);
#pragma unroll
    for (int i = 0; i < VALUES; i++) y[i] = f.add_input && warp == 0 ? x[i] : 0.f;
    for (int tree = warp; tree < f.trees; tree += TREE_WARPS * TOGETHER) {
        Path paths[TOGETHER];
        descend(paths, x, f, tree, TREE_WARPS);
#pragma unroll
        for (int g = 0; g < TOGETHER; g++) record(paths[g], f, token, tree + g * TREE_WARPS);
        gather<TOGETHER, TOGETHER>(y, paths, f, tree, TREE_WARPS);
    }
    for (int half = TREE_WARPS / 2; half; half >>= 1) {
        if (warp >= half && warp < 2 * half)
#pragma unroll
            for (int i = 0; i < VALUES; i++) sums[warp - half][i * 32 + lane_id()] = y[i];
        __syncthreads();
        if (warp < half)
#pragma unroll
            for (int i = 0; i < VALUES; i++) y[i] += sums[warp][i * 32 + lane_id()];
        __syncthreads();
    }
    if (warp == 0) finish(y, f, token);
}

// Each becomes its sum over a block of `N` warps. `slots` are for these sums alone.
template <int M, int N> __device__ __forceinline__ void block_sums(float (&v)[M], float (&slots)[M][N]) {
    warp_sums(v);
#pragma unroll
    for (int i = 0; i < M; i++)
        if (lane_id() == 0) slots[i][threadIdx.x >> 5] = v[i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < M; i++) {
        v[i] = 0.f;
#pragma unroll
        for (int w = 0; w < N; w++) v[i] += slots[i][w];
    }
}

#ifndef STOPS

// ---- one tree, not many tokens: time is waiting for memory, several levels cost one wait, and what can be loaded early is ----------------

// Places in a subtree are counted in heap order. Level of a place, and the node there in the subtree under `root`:
__device__ __forceinline__ int level_of(int place) { return 31 - __clz(place + 1); }
__device__ __forceinline__ int node_at(int root, int place) { return ((root + 1) << level_of(place)) + place - (1 << level_of(place)); }

// The heap becomes what lies below its left child or its right one.
template <int N, typename T> __device__ __forceinline__ void go_down(T (&heap)[N], bool right) {
#pragma unroll
    for (int first = 0; 2 * first + 2 < N; first = 2 * first + 1)
#pragma unroll
        for (int i = 0; i <= first; i++) heap[first + i] = right ? heap[3 * first + 2 + i] : heap[2 * first + 1 + i];
}

// The way through a subtree of L levels: nodes, their logits, and where it leads.
template <int L> struct Way { int nodes[L], next; float z[L]; };

template <int L, int N> __device__ __forceinline__ Way<L> way_through(int root, float (&logits)[N]) {
    Way<L> way;
    way.next = root;
#pragma unroll
    for (int l = 0; l < L; l++) {
        const bool right = logits[0] > 0.f;
        way.nodes[l] = way.next, way.z[l] = logits[0];
        way.next = 2 * way.next + 1 + right;
        go_down(logits, right);
    }
    return way;
}

// Asks for `count` nodes to be brought from memory to L2, before somebody waits for them.
__device__ __forceinline__ void prefetch_nodes(const FFF& f, int first, int count) {
#if __CUDA_ARCH__ >= 900
    count = min(count, f.count - first);
    if (lane_id() == 0 && count > 0)
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(in_row(f, first)), "r"(count * 2 * HIDDEN * (int)sizeof(row)));
#endif
}

// Hundreds of tokens: a warp a token, 2 levels a step. The 3 nodes that a step may need are loaded at once; the out-rows of the 2 visited are
// loaded, and added, while the next step is waited for.
extern "C" __global__ void __launch_bounds__(FEW_WARPS * 32, 4) fff_tree_few(FFF f) {
    constexpr int L = ROW_WORDS <= 24 ? 2 : 1, N = (1 << L) - 1;
    const int token = own_token(FEW_WARPS);
    if (token >= f.tokens) return;
    Node nodes[N];
    auto load_nodes = [&](int top, int root) {
#pragma unroll
        for (int i = 0; i < N; i++)
            if (top + level_of(i) <= DEPTH) load_node(nodes[i], f, node_at(root, i));
    };
    load_nodes(0, 0);
    prefetch_nodes(f, token, 1);
    await_previous();
    float x[VALUES], y[VALUES];
    load_input(x, f, token);
#pragma unroll
    for (int i = 0; i < VALUES; i++) y[i] = f.add_input ? x[i] : 0.f;
    Path path = {0, 0.f};
    Row rows[L];
    float by[L];
    int root = 0;
#pragma unroll
    for (int top = 0; top <= DEPTH; top += L) {
        float logits[N];
#pragma unroll
        for (int i = 0; i < N; i++) logits[i] = top + level_of(i) <= DEPTH ? logit(nodes[i], x) : 0.f;
        const Way<L> way = way_through<L>(root, logits);
        root = way.next;
#pragma unroll
        for (int l = 0; l < L; l++)
            if (lane_id() == top + l) path = {way.nodes[l], way.z[l]};
        load_nodes(top + L, root);
#pragma unroll
        for (int l = 0; l < L; l++)
            if (top) add_scaled(rows[l], by[l], y);
#pragma unroll
        for (int l = 0; l < L; l++)
            if (top + l <= DEPTH) load_row(rows[l], out_row(f, way.nodes[l]));
#pragma unroll
        for (int l = 0; l < L; l++)
            if (top + l <= DEPTH) by[l] = weight_of(f, way.nodes[l], way.z[l]);
    }
#pragma unroll
    for (int l = 0; l <= DEPTH % L; l++) add_scaled(rows[l], by[l], y);
    record(path, f, token, 0);
    finish(y, f, token);
}

template <int N, typename Word> __device__ __forceinline__ void add_words(float (&y)[N][VECTOR], const Word (&words)[N], float by) {
#pragma unroll
    for (int k = 0; k < N; k++) {
        float f[VECTOR];
        unpack(words[k], f);
#pragma unroll
        for (int j = 0; j < VECTOR; j++) y[k][j] += by * f[j];
    }
}

// Few tokens: a block a token, 3 levels a step, a warp to each of their 7 nodes. Columns of the output belong to threads. Out-rows are loaded
// when their nodes are known, and added while the next step is waited for; in the last step all 7 are loaded with the in-rows.
extern "C" __global__ void __launch_bounds__(7 * 32, HELD <= 48 ? 2 : 1) fff_subtrees(FFF f) {
    constexpr int L = 3, N = 7, STRIDE = N * 32 * VECTOR, COLUMNS = (HIDDEN + STRIDE - 1) / STRIDE;
    struct Own { word words[COLUMNS]; float scale; };  // a thread's part of an out-row
    __shared__ __align__(16) float logits[2][N + 1];
    __shared__ float input[HIDDEN], slots[1][N], more_slots[2][N];
    const int token = blockIdx.x, warp = threadIdx.x >> 5, column_0 = threadIdx.x * VECTOR;
    auto takes_part = [&](int top) { return top + L <= DEPTH + 1 || top + level_of(warp) <= DEPTH; };  // in the step that begins there
    auto owns = [&](int k) { return HIDDEN % STRIDE == 0 || column_0 + k * STRIDE < HIDDEN; };
    auto load_own = [&](Own& own, int n) {
        const row* from = out_row(f, n) + column_0;
        asm("" : "+l"(from));  // as in load_row
#pragma unroll
        for (int k = 0; k < COLUMNS; k++) own.words[k] = owns(k) ? load<word>(from + k * STRIDE) : word();
        own.scale = out_scale(f, n);
    };
    auto load_act = [&](uint4 (&words)[COLUMNS], const act* from) {
#pragma unroll
        for (int k = 0; k < COLUMNS; k++)
            words[k] = from && owns(k) ? *reinterpret_cast<const uint4*>(from + column_0 + k * STRIDE) : make_uint4(0, 0, 0, 0);
    };
    float y[COLUMNS][VECTOR] = {};

    Node node;
    if (takes_part(0)) load_node(node, f, warp);
    constexpr int EACH = 4;  // nodes whose way to L2 a block begins: the upper levels, which most tokens will need
    if (warp == N - 1) prefetch_nodes(f, EACH * token, EACH);
    if (f.norm_weight) {
        prefetch(f.norm_weight, HIDDEN * (int)sizeof(act), threadIdx.x, N * 32);
        prefetch(f.norm_bias, HIDDEN * (int)sizeof(act), threadIdx.x, N * 32);
    }
    await_previous();
    float x[VALUES];
    load_input(x, f, token);
    uint4 bias[COLUMNS], residual[COLUMNS], weight[COLUMNS], offset[COLUMNS];
    const bool owner = column_0 < HIDDEN;  // a branch of its own, behind the loads that the next step waits for
    if (owner) {
        load_act(bias, f.bias);
        load_act(residual, f.residual ? f.residual + (size_t)token * HIDDEN : nullptr);
        load_act(weight, f.out_norm_weight);
        load_act(offset, f.out_norm_bias);
    }
    if (f.add_input && warp == 0)
#pragma unroll
        for (int v = 0; v < VECTORS; v++)
#pragma unroll
            for (int j = 0; j < VECTOR; j++)
                if (inside(v)) input[column(v) + j] = x[v * VECTOR + j];

    Own rows[L], candidates[N];  // out-rows of the step before; of the last step
    auto load_last = [&](int top, int root) {
        if (top > DEPTH || top + L <= DEPTH) return;
#pragma unroll
        for (int i = 0; i < N; i++)
            if (top + level_of(i) <= DEPTH) load_own(candidates[i], node_at(root, i));
    };
    if (owner) load_last(0, 0);
    float by[L];
    int root = 0;
#pragma unroll
    for (int top = 0; top <= DEPTH; top += L) {
        const bool last = top + L > DEPTH;
        if (takes_part(top)) {
            const float z = logit(node, x);
            if (lane_id() == 0) logits[top / L & 1][warp] = z;
        }
        __syncthreads();
        float z[N + 1];
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            const float4 four = *reinterpret_cast<const float4*>(&logits[top / L & 1][i]);
            z[i] = four.x, z[i + 1] = four.y, z[i + 2] = four.z, z[i + 3] = four.w;
        }
        const Way<L> way = way_through<L>(root, reinterpret_cast<float(&)[N]>(z));
        root = way.next;
        if (takes_part(top + L)) load_node(node, f, node_at(root, warp));
        if (owner) {
            load_last(top + L, root);
#pragma unroll
            for (int l = 0; l < L; l++)
                if (top) add_words(y, rows[l].words, by[l] * rows[l].scale);
#pragma unroll
            for (int l = 0; l < L; l++) {
                if (top + l > DEPTH) continue;
                by[l] = gelu(way.z[l]);
                if (!last) load_own(rows[l], way.nodes[l]);
                else add_words(y, candidates[0].words, by[l] * candidates[0].scale), go_down(candidates, way.z[l] > 0.f);
            }
        }
        if (f.path && threadIdx.x == 0)
#pragma unroll
            for (int l = 0; l < L; l++) {
                if (top + l > DEPTH) continue;
                f.path[(size_t)token * (DEPTH + 1) + top + l] = way.nodes[l];
                f.z[(size_t)token * (DEPTH + 1) + top + l] = way.z[l];
            }
    }

    // finish(), a thread to its columns
    float sum[1] = {0.f}, sums[2] = {0.f, 0.f};
    if (owner) {
        add_words(y, bias, 1.f);
        add_words(y, residual, 1.f);
        if (f.add_input)
#pragma unroll
            for (int k = 0; k < COLUMNS; k++)
#pragma unroll
                for (int j = 0; j < VECTOR; j++)
                    if (owns(k)) y[k][j] += input[column_0 + k * STRIDE + j];
#pragma unroll
        for (int k = 0; k < COLUMNS; k++)
#pragma unroll
            for (int j = 0; j < VECTOR; j++) sum[0] += y[k][j];
    }
    if (f.out_norm_weight) {
        block_sums(sum, slots);
        const float mean = sum[0] * (1.f / HIDDEN);
#pragma unroll
        for (int k = 0; k < COLUMNS; k++)
#pragma unroll
            for (int j = 0; j < VECTOR; j++)
                if (owns(k)) y[k][j] -= mean, sums[0] += y[k][j], sums[1] += y[k][j] * y[k][j];
        block_sums(sums, more_slots);
        const Normed n = normed(sums, f.eps);
#pragma unroll
        for (int k = 0; k < COLUMNS; k++) {
            float w[VECTOR], b[VECTOR];
            unpack(weight[k], w);
            unpack(offset[k], b);
#pragma unroll
            for (int j = 0; j < VECTOR; j++) y[k][j] = (y[k][j] * n.factor - n.shift) * w[j] + b[j];
        }
    }
#pragma unroll
    for (int k = 0; k < COLUMNS; k++)
        if (owns(k)) *reinterpret_cast<uint4*>(f.out + (size_t)token * HIDDEN + column_0 + k * STRIDE) = pack(y[k]);
}

#endif  // STOPS

// Wide layers by matrix products: between x @ in.T and @ out, keep the GELU of the logits on the path and zero the rest, in place.
// logits (tokens, width), without b_in (width): trees side by side in SLOTS each, the last of which is unused. A block has a token; small
// trees share a thread, large ones are spread over lanes. path, z: as in FFF, or null.
#define SLOTS (2 << DEPTH)
#if SLOTS <= 32 * VECTOR
extern "C" __global__ void __launch_bounds__(256) fff_mask(act* logits, const float* b_in, int width, int* path, float* z) {
    await_previous();
    constexpr int LANES = SLOTS > VECTOR ? SLOTS / VECTOR : 1, PER_THREAD = SLOTS < VECTOR ? SLOTS : VECTOR;
    const int words = width / VECTOR, mine = lane_id() % LANES, first = lane_id() - mine;
    for (int base = 0; base < words; base += 256) {
        const int i = min(base + (int)threadIdx.x, words - 1);  // those behind the end keep their warp company
        uint4* at = reinterpret_cast<uint4*>(logits + (size_t)blockIdx.x * width) + i;
        float f[VECTOR];
        unpack(*at, f);
        u32 rights = 0, keep = 0;
#pragma unroll
        for (int j = 0; j < VECTOR; j++) {
            f[j] += __ldg(b_in + i * VECTOR + j);
            rights |= (f[j] > 0.f) << j;
        }
#pragma unroll
        for (int tree = 0; tree < VECTOR; tree += PER_THREAD)
#pragma unroll
            for (int level = 0, node = 0; level <= DEPTH; level++) {
                const int bit = tree + node % PER_THREAD, owner = node / PER_THREAD;
                const u32 theirs = __shfl_sync(FULL, rights, first + owner);
                if (owner == mine) keep |= 1u << bit;
                if (path && owner == mine && base + threadIdx.x < words) {
                    const size_t tree_here = ((size_t)blockIdx.x * words + i) * VECTOR / SLOTS + (SLOTS < VECTOR ? tree / PER_THREAD : 0);
                    path[tree_here * (DEPTH + 1) + level] = node;
#pragma unroll
                    for (int j = 0; j < VECTOR; j++)
                        if (j == bit) z[tree_here * (DEPTH + 1) + level] = f[j];
                }
                node = 2 * node + 1 + (theirs >> bit & 1);
            }
#pragma unroll
        for (int j = 0; j < VECTOR; j++) f[j] = keep >> j & 1 ? gelu(f[j]) : 0.f;
        if (base + threadIdx.x < words) *at = pack(f);
    }
}
#endif

#endif  // DEPTH
