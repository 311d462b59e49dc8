// Packed multi-head self-attention: how it is launched, and what its three forms have in common.
//
//   attention(qkv (T, 3 D), bounds (T), T, out (T, D), scale)       out = softmax(scale q k^T) v, per text and head
//
// bounds[t] is [begin, end), the rows of token t's text in the packed batch; padding behind the last text has begin == end == 0, and its rows of
// out are left alone. The kernel just before must not write bounds: they are read while it runs.
//
// A block takes one head of ATTENTION_QUERIES consecutive tokens, whatever texts they belong to: several short ones, or a
// part of a long one. It passes over all rows of those texts, a tile of keys at a time, and each query masks what is not of its own text. So the
// launch follows from T alone: (ceil(T / ATTENTION_QUERIES), HEADS) blocks of ATTENTION_THREADS with ATTENTION_SHARED bytes of dynamic memory.
//
// A masked key has weight 0, and 0 times a NaN is NaN: what is no number in one text would reach the others in a tile. It leaves such a row
// NaN or infinite; those rows, which are seen at the end, are computed again over the keys of their own text alone (attend_alone).
//
// The softmax is online: a row keeps a reference `most` near its largest exponent so far, the sum of its weights 2^(exponent - most), and the
// weighted sum of values; exponents are scale * log2(e) * q.k.
//
// A program compiled with SCORES does more to scores, as struct Scores says; its kernel gets that struct as one more argument. Elsewhere the text
// of a token stands for the keys that it sees, hence with WINDOW `text_of` gives those within the window, with CAUSAL those up to the token itself, and tiles that no query of a warp sees are
// skipped as those of other texts are.
//
// Three ways to multiply, chosen by GPU and act: plain float32 arithmetic (attention_plain.cuh), the tensor cores of sm_80 (attention_mma.cuh:
// 16 queries a warp), those of sm_90a (attention_wgmma.cuh: 64 queries a group of 4 warps, tiles read from shared memory while the warps do
// other things).

#define HEAD (HIDDEN / HEADS)  // a multiple of 8, at most 128

#if defined(ACT_FLOAT) || __CUDA_ARCH__ < 800
#define ATTENTION_PLAIN
#elif defined(__CUDA_ARCH_FEAT_SM90_ALL) && HEAD == 64
#define ATTENTION_WGMMA
#endif

#if defined(ATTENTION_PLAIN)
#define ATTENTION_QUERIES 64
#define ATTENTION_THREADS 128
#define ATTENTION_SHARED 0
#elif defined(ATTENTION_WGMMA)
#define ATTENTION_QUERIES 128
#define ATTENTION_THREADS 256
#define ATTENTION_SHARED (128 * 128 + 4 * 2 * 64 * 128 + 16)
#else
#define ATTENTION_QUERIES 64
#define ATTENTION_THREADS 128
#define ATTENTION_SHARED (4 * 2 * 32 * ((HEAD + 15) / 16 * 32 + 16) + 16)
#endif

extern "C" __device__ const int attention_launch[3] = {ATTENTION_QUERIES, ATTENTION_THREADS, ATTENTION_SHARED};  // what the host asks for

// What is done to the scores of one layer; SCORES_STRUCT of backends/cuda/attention.py has the same fields. For query i and key j of a head:
struct Scores {
    const float* distances;    // DISTANCES: (heads, 2 reach - 1), added to scaled scores; entry reach - 1 + j - i
    const int* rows;           // RELATIVE: (2 reach - 1), entry reach - 1 + i - j is the row r of that distance
    const act* by_query;       // (heads, tokens, width): scale q_i . keys[r], added as well
    const act* by_key;         // the same shape: scale k_j . queries[r]
    int window, reach, width;  // WINDOW: the farthest key that a query sees
};

namespace attending {

#define MASKED __int_as_float(0xff800000)  // -infinity, the score of a key that is not of the query's text
constexpr float NOTHING_YET = -1e30f;      // `most` before the first key: finite, so that MASKED - most is no NaN
constexpr float LOG2_E = 1.4426950408889634f;

struct Span {
    int begin, end;
};

struct Batch {
    const int2* bounds;
    int tokens;
#ifdef SCORES
    Scores scores;  // of one head
#endif
};

// The keys that a token sees, given those of its text.
__device__ __forceinline__ int2 seen(const Batch& batch, int token, int2 text) {
#ifdef WINDOW
    if (text.y) text = make_int2(max(text.x, token - batch.scores.window), min(text.y, token + batch.scores.window + 1));
#endif
#ifdef CAUSAL
    text.y = min(text.y, token + 1);
#endif
    return text;
}

// volatile: loaded where it is written, not where it is first used, behind copies that take long.
__device__ __forceinline__ int2 text_of(const Batch& batch, int token) {
    int2 text;
    asm volatile("ld.global.v2.s32 {%0, %1}, [%2];" : "=r"(text.x), "=r"(text.y) : "l"(batch.bounds + min(token, batch.tokens - 1)));
    return token < batch.tokens ? seen(batch, token, text) : make_int2(0, 0);
}

#ifdef SCORES
__device__ __forceinline__ Batch batch_of(const int2* bounds, int tokens, Scores scores, int head) {
#ifdef DISTANCES
    scores.distances += head * (2 * scores.reach - 1);
#endif
#ifdef RELATIVE
    const size_t products = (size_t)head * tokens * scores.width;
    scores.by_query += products, scores.by_key += products;
#endif
    return {bounds, tokens, scores};
}
#endif

#if defined(DISTANCES) || defined(RELATIVE)
#define GAINS

// What the tables say of a key that is `after` rows behind a query. Farther than the tables reach, no query sees a key: any entry will do.
struct Apart {
    float distance;
    int row;
};

__device__ __forceinline__ Apart apart(const Scores& scores, int after) {
    const int last = 2 * scores.reach - 2, at = min(max(after + scores.reach - 1, 0), last);
    Apart found = {0.f, 0};
#ifdef DISTANCES
    found.distance = __ldg(scores.distances + at);
#endif
#ifdef RELATIVE
    found.row = __ldg(scores.rows + last - at);
#endif
    return found;
}

// What is added to the scaled score of a query and a key, which are so far apart.
__device__ __forceinline__ float gain(const Batch& batch, int query, int key, const Apart& far) {
    float sum = far.distance;
#ifdef RELATIVE
    const int last = batch.tokens - 1, width = batch.scores.width;
    sum += to_float(batch.scores.by_query[(size_t)min(query, last) * width + far.row]);
    sum += to_float(batch.scores.by_key[(size_t)min(key, last) * width + far.row]);
#endif
    return sum;
}
#endif

// The rows that the texts of COUNT tokens from `first` on lie in: they begin where the first one's does. The lanes of a warp ask together.
template <int COUNT> __device__ __forceinline__ Span texts_of(const Batch& batch, int first) {
    int2 text[(COUNT + 31) / 32];
#pragma unroll
    for (int i = 0; i < COUNT; i += 32) text[i / 32] = text_of(batch, first + i + lane_id() % COUNT);
    int end = 0;
#pragma unroll
    for (int i = 0; i < COUNT; i += 32) end = max(end, text[i / 32].y);
#if __CUDA_ARCH__ >= 800
    end = __reduce_max_sync(FULL, end);
#else
#pragma unroll
    for (int step = 16; step; step >>= 1) end = max(end, __shfl_xor_sync(FULL, end, step));
#endif
    return {__shfl_sync(FULL, text[0].x, 0), end};
}

// A row of one head by a warp, over its own text. qkv and out begin at the head's columns; scale: of base-2 exponents.
__device__ __noinline__ void attend_alone(const act* qkv, Batch batch, int2 text, int row, act* out, float scale) {
    constexpr int COLUMNS = (HEAD + 31) / 32;  // of a lane: l, l + 32 ...
    const act* const query = qkv + (size_t)row * (3 * HIDDEN);
    float most = NOTHING_YET, total = 0.f, sums[COLUMNS] = {};
    for (int at = text.x; at < text.y; at++) {
        const act *const key = qkv + (size_t)at * (3 * HIDDEN) + HIDDEN, *const value = key + HIDDEN;
        float score = 0.f;
        for (int c = lane_id(); c < HEAD; c += 32) score += to_float(query[c]) * to_float(key[c]);
        score = warp_sum(score) * scale;
#ifdef GAINS
        score += gain(batch, row, at, apart(batch.scores, at - row)) * LOG2_E;
#endif
        const float raised = fmaxf(most, score), shrink = exp2f(most - raised), weight = exp2f(score - raised);
        most = raised, total = total * shrink + weight;
#pragma unroll
        for (int i = 0; i < COLUMNS; i++)
            if (lane_id() + 32 * i < HEAD) sums[i] = sums[i] * shrink + weight * to_float(value[lane_id() + 32 * i]);
    }
#pragma unroll
    for (int i = 0; i < COLUMNS; i++)
        if (lane_id() + 32 * i < HEAD) out[(size_t)row * HIDDEN + lane_id() + 32 * i] = to_act(sums[i] / total);
}

// The rows from `first` on whose bit is set in `rows`, likewise; `rows` is the same in all lanes. They were stored before.
__device__ __forceinline__ void attend_again(u32 rows, const act* qkv, const Batch& batch, int first, act* out, float scale) {
    for (; rows; rows &= rows - 1) {
        const int row = first + __ffs(rows) - 1;
        __syncwarp();
        attend_alone(qkv, batch, seen(batch, row, batch.bounds[row]), row, out, scale);
    }
}

#ifdef SCORES
#define PARAMETERS const act *qkv, const int2 *bounds, int tokens, act *out, float scale, Scores scores
#define BATCH batch_of(bounds, tokens, scores, blockIdx.y)
#else
#define PARAMETERS const act *qkv, const int2 *bounds, int tokens, act *out, float scale
#define BATCH {bounds, tokens}
#endif

#if defined(ATTENTION_PLAIN)
#include "attention_plain.cuh"
#else
#include "attention_tensor.cuh"
#endif

}  // namespace attending
