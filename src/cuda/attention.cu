// Packed multi-head self-attention; this text follows kernels.cu in the same program.
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
// Three ways to multiply, chosen by GPU and act: plain float32 arithmetic, the tensor cores of sm_80 (mma.sync: 16 queries a warp), those of
// sm_90a (wgmma: 64 queries a group of 4 warps, tiles read from shared memory while the warps do other things).

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

namespace attending {

#define MASKED __int_as_float(0xff800000)  // -infinity, the score of a key that is not of the query's text
constexpr float NOTHING_YET = -1e30f;  // `most` before the first key: finite, so that MASKED - most is no NaN
constexpr float LOG2_E = 1.4426950408889634f;

struct Span { int begin, end; };

// volatile: loaded where it is written, not where it is first used, behind copies that take long.
__device__ __forceinline__ int2 text_of(const int2* bounds, int token, int tokens) {
    int2 text;
    asm volatile("ld.global.v2.s32 {%0, %1}, [%2];" : "=r"(text.x), "=r"(text.y) : "l"(bounds + min(token, tokens - 1)));
    return token < tokens ? text : make_int2(0, 0);
}

// The rows that the texts of COUNT tokens from `first` on lie in. The lanes of a warp ask together.
template <int COUNT> __device__ __forceinline__ Span texts_of(const int2* bounds, int first, int tokens) {
    int2 text[(COUNT + 31) / 32];
#pragma unroll
    for (int i = 0; i < COUNT; i += 32) text[i / 32] = text_of(bounds, first + i + lane_id() % COUNT, tokens);
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
__device__ __noinline__ void attend_alone(const act* qkv, int2 text, int row, act* out, float scale) {
    constexpr int COLUMNS = (HEAD + 31) / 32;  // of a lane: l, l + 32 ...
    const act* const query = qkv + (size_t)row * (3 * HIDDEN);
    float most = NOTHING_YET, total = 0.f, sums[COLUMNS] = {};
    for (int at = text.x; at < text.y; at++) {
        const act *const key = qkv + (size_t)at * (3 * HIDDEN) + HIDDEN, *const value = key + HIDDEN;
        float score = 0.f;
        for (int c = lane_id(); c < HEAD; c += 32) score += to_float(query[c]) * to_float(key[c]);
        score = warp_sum(score) * scale;
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
__device__ __forceinline__ void attend_again(u32 rows, const act* qkv, const int2* bounds, int first, act* out, float scale) {
    for (; rows; rows &= rows - 1) {
        const int row = first + __ffs(rows) - 1;
        __syncwarp();
        attend_alone(qkv, bounds[row], row, out, scale);
    }
}

#ifdef ATTENTION_PLAIN

// ---- plain arithmetic ------------------------------------------------------------------------------------------------------------------
// A warp has 16 queries. Its lanes are 4 x 8: lane (r, c) has the queries r + 4 i, and of the keys of a tile, c + 8 j: 4 x KEYS / 8 scores, then
// columns 4 c + 32 j of their sums. Keys and values take turns in one tile, which keeps even HEAD 128 within 48 KB.

constexpr int KEYS = HEAD > 64 ? 16 : 32;
constexpr int STRIDE = HEAD + 4;  // floats between rows of shared memory: eight neighbouring rows then start in different banks
constexpr int CHUNKS = (HEAD + 31) / 32;

struct Query {
    int2 text;
    float most, total, sums[CHUNKS][4];
};

__device__ __forceinline__ void load_rows(float (*rows)[STRIDE], int count, const act* from, int present) {
    for (int i = threadIdx.x; i < count * (HEAD / VECTOR); i += ATTENTION_THREADS) {
        const int r = i / (HEAD / VECTOR), at = i % (HEAD / VECTOR) * VECTOR;
        float values[VECTOR] = {};
        if (r < present) unpack(*reinterpret_cast<const uint4*>(from + r * (3 * HIDDEN) + at), values);
#pragma unroll
        for (int j = 0; j < VECTOR; j += 4)
            *reinterpret_cast<float4*>(&rows[r][at + j]) = make_float4(values[j], values[j + 1], values[j + 2], values[j + 3]);
    }
}

__device__ __forceinline__ float4 four(const float* p) { return *reinterpret_cast<const float4*>(p); }

__device__ __forceinline__ void add_scores(float (&s)[4][KEYS / 8], const float (*q)[STRIDE], const float (*k)[STRIDE]) {
#pragma unroll 4
    for (int d = 0; d < HEAD; d += 4) {
        float4 key[KEYS / 8];
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++) key[j] = four(&k[8 * j][d]);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float4 query = four(&q[4 * i][d]);
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
                s[i][j] += query.x * key[j].x + query.y * key[j].y + query.z * key[j].z + query.w * key[j].w;
        }
    }
}

// s[j] is the score of key `key` + 8 j; its weight goes to weights[8 j].
__device__ __forceinline__ void weigh(Query& query, float (&s)[KEYS / 8], int key, float scale, float* weights) {
    float largest = query.most;
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++) {
        s[j] = query.text.x <= key + 8 * j && key + 8 * j < query.text.y ? s[j] * scale : MASKED;
        largest = fmaxf(largest, s[j]);
    }
#pragma unroll
    for (int step = 4; step; step >>= 1) largest = fmaxf(largest, __shfl_xor_sync(FULL, largest, step));
    const float shrink = exp2f(query.most - largest);
    query.most = largest;
    query.total *= shrink;
#pragma unroll
    for (int j = 0; j < CHUNKS * 4; j++) query.sums[j / 4][j % 4] *= shrink;
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++) {
        const float weight = exp2f(s[j] - largest);
        query.total += weight;
        weights[8 * j] = weight;
    }
}

__device__ __forceinline__ void add_values(Query (&queries)[4], const float (*weights)[KEYS + 4], const float (*v)[STRIDE], int column) {
#pragma unroll
    for (int key = 0; key < KEYS; key += 4) {
        float4 weight[4];
#pragma unroll
        for (int i = 0; i < 4; i++) weight[i] = four(&weights[4 * i][key]);
#pragma unroll
        for (int k = 0; k < 4; k++)
#pragma unroll
            for (int j = 0; j < CHUNKS; j++) {
                if (column + 32 * j >= HEAD) continue;
                const float4 value = four(&v[key + k][column + 32 * j]);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float w = k == 0 ? weight[i].x : k == 1 ? weight[i].y : k == 2 ? weight[i].z : weight[i].w;
                    float(&sums)[4] = queries[i].sums[j];
                    sums[0] += w * value.x, sums[1] += w * value.y, sums[2] += w * value.z, sums[3] += w * value.w;
                }
            }
    }
}

__device__ __forceinline__ void store4(act* to, const float (&f)[4], float by) {
#ifdef ACT_FLOAT
    *reinterpret_cast<float4*>(to) = make_float4(f[0] * by, f[1] * by, f[2] * by, f[3] * by);
#else
    *reinterpret_cast<uint2*>(to) = make_uint2(pack2(f[0] * by, f[1] * by), pack2(f[2] * by, f[3] * by));
#endif
}

// Returns whether this lane has stored a NaN or an infinity.
__device__ __forceinline__ bool store(act* out, const Query& query, int column) {
    float total = query.total, zero = 0.f;
#pragma unroll
    for (int step = 4; step; step >>= 1) total += __shfl_xor_sync(FULL, total, step);
    if (query.text.x == query.text.y) return false;
#pragma unroll
    for (int j = 0; j < CHUNKS; j++)
        if (column + 32 * j < HEAD) {
            store4(out + column + 32 * j, query.sums[j], 1.f / total);
#pragma unroll
            for (int i = 0; i < 4; i++) zero += query.sums[j][i] * 0.f;
        }
    return zero != 0.f;
}

extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS) attention(const act* qkv, const int2* bounds, int tokens, act* out, float scale) {
    __shared__ __align__(16) float left[ATTENTION_QUERIES][STRIDE], tile[KEYS][STRIDE], weights[ATTENTION_QUERIES][KEYS + 4];
    await_previous();
    const int first = blockIdx.x * ATTENTION_QUERIES, warp_row = threadIdx.x / 32 * 16, own = warp_row + lane_id() / 8, c = lane_id() % 8;
    const act* const q = qkv + blockIdx.y * HEAD;
    const Span all = texts_of<ATTENTION_QUERIES>(bounds, first, tokens), mine = texts_of<16>(bounds, first + warp_row, tokens);
    load_rows(left, ATTENTION_QUERIES, q + (size_t)first * (3 * HIDDEN), tokens - first);

    Query queries[4] = {};
#pragma unroll
    for (int i = 0; i < 4; i++) queries[i].text = text_of(bounds, first + own + 4 * i, tokens), queries[i].most = NOTHING_YET;

    for (int key = all.begin; key < all.end; key += KEYS) {
        const act* const k = q + (size_t)key * (3 * HIDDEN) + HIDDEN;
        const bool needed = mine.begin < key + KEYS && key < mine.end;
        load_rows(tile, KEYS, k, all.end - key);
        __syncthreads();
        if (needed) {
            float s[4][KEYS / 8] = {};
            add_scores(s, left + own, tile + c);
#pragma unroll
            for (int i = 0; i < 4; i++) weigh(queries[i], s[i], key + c, scale * LOG2_E, &weights[own + 4 * i][c]);
        }
        __syncthreads();
        load_rows(tile, KEYS, k + HIDDEN, all.end - key);
        __syncthreads();
        if (needed) add_values(queries, weights + own, tile, 4 * c);
        __syncthreads();
    }
    u32 odd = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const u32 lanes = __ballot_sync(FULL, store(out + (size_t)(first + own + 4 * i) * HIDDEN + blockIdx.y * HEAD, queries[i], 4 * c));
#pragma unroll
        for (int r = 0; r < 4; r++) odd |= (lanes >> 8 * r & 255 ? 1 : 0) << (4 * i + r);  // eight lanes a row
    }
    attend_again(odd, q, bounds, first + warp_row, out + blockIdx.y * HEAD, scale * LOG2_E);
}

#else

// ---- tensor cores ----------------------------------------------------------------------------------------------------------------------
// A warp has 16 queries, and their scores and sums lie in its registers as mma.sync and wgmma both leave them: lane l has rows l / 4 and
// l / 4 + 8 and, of each 8 columns, 2 (l % 4) and the next; [columns / 8][2 * second row + column]. Two such groups of 8 columns, rounded to act
// in pairs, are the left operand of the next product, so weights never leave their registers.

constexpr int WIDTH = (HEAD + 15) / 16 * 16;  // of a head as the instructions see it: columns past HEAD are zeros
constexpr int CHUNKS = WIDTH / 8;             // 16 bytes each

struct Softmax { float most[2], total[2]; };

// A row's reference follows its largest exponent only when that has outgrown it by SLACK: weights up to 2^SLACK are as exact as those below 1,
// and most tiles then leave the sums unscaled.
constexpr float SLACK = 8.f;

#ifdef ATTENTION_WGMMA

constexpr int KEYS = 64;
constexpr int GROUP_WARPS = 4;  // that multiply together
constexpr int BLOCKS = 2;       // per multiprocessor: while some groups multiply, others take exponentials
constexpr int ROW_BYTES = 128;
constexpr int QUERY_BYTES = ATTENTION_QUERIES * ROW_BYTES;

// Chunks permuted by row, the layout that wgmma calls a swizzle of 128 bytes.
__device__ __forceinline__ int place(int r, int chunk) { return r * ROW_BYTES + (chunk ^ (r & 7)) * 16; }

// Part of such a tile as wgmma is told of it: the chunk of shared memory that it starts with and, in the upper word, that there are 1,024 bytes
// from 8 rows to the next and which swizzle.
__device__ __forceinline__ u64 part(u32 chunk) { return (u64)0x40000040 << 32 | chunk; }

#define FOUR(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define ALL_32 FOUR(0), FOUR(1), FOUR(2), FOUR(3), FOUR(4), FOUR(5), FOUR(6), FOUR(7)
#define WGMMA                                                                                                                              \
    "wgmma.mma_async.sync.aligned.m64n64k16.f32." ACT_PTX "." ACT_PTX " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, "  \
    "%15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "

// d (64, 64) = a b^T, or d + a b^T: 16 columns of 64 queries and of 64 keys, both in shared memory.
__device__ __forceinline__ void multiply(float (&d)[8][4], u64 a, u64 b, int add) {
    asm volatile("{.reg .pred add; setp.ne.b32 add, %34, 0; " WGMMA "%32, %33, add, 1, 1, 0, 0;}" : ALL_32 : "l"(a), "l"(b), "r"(add));
}

// d (64, 64) += a b: 16 weights of each query, and the values of 16 keys in shared memory.
__device__ __forceinline__ void multiply(float (&d)[8][4], const u32 (&a)[4], u64 b) {
    asm volatile(WGMMA "{%32, %33, %34, %35}, %36, 1, 1, 1, 1;" : ALL_32 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
#undef FOUR
#undef ALL_32
#undef WGMMA

__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

typedef u32 Queries;  // the chunk that the group's start with. (In registers, NVRTC 12.9 and 13.0 overwrite them inside the loop.)

// The two start_ functions only start: results may be used, and tiles and weights overwritten, after finish_products.
__device__ __forceinline__ void start_scores(float (&s)[KEYS / 8][4], Queries queries, u32 keys) {
    begin_products();
#pragma unroll
    for (int d = 0; d < HEAD; d += 16) multiply(s, part(queries + d / 8), part(keys / 16 + d / 8), d > 0);
    commit_products();
}

__device__ __forceinline__ void start_sums(float (&sums)[WIDTH / 8][4], const u32 (&weights)[KEYS / 16][4], u32 values) {
    begin_products();
#pragma unroll
    for (int k = 0; k < KEYS; k += 16) multiply(sums, weights[k / 16], part((values + k * ROW_BYTES) / 16));
    commit_products();
}

template <int N> __device__ __forceinline__ void finish_products(float (&d)[N][4]) {
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
    for (int i = 0; i < N * 4; i++) asm volatile("" : "+f"(d[i / 4][i % 4])::"memory");  // no use of them moves up past here
}

#else

constexpr int KEYS = 32;
constexpr int GROUP_WARPS = 1;
constexpr int BLOCKS = HEAD > 64 ? 2 : 4;
constexpr int QUERY_BYTES = 0;
constexpr int ROW_BYTES = WIDTH * 2 + 16;  // an odd number of chunks: eight neighbouring rows then start in different banks

__device__ __forceinline__ int place(int r, int chunk) { return r * ROW_BYTES + chunk * 16; }

struct Queries { u32 words[WIDTH / 16][4]; };

__device__ __forceinline__ void start_scores(float (&s)[KEYS / 8][4], const Queries& queries, u32 keys) {
    const int r = (lane_id() & 7) + (lane_id() >> 4) * 8, chunk = lane_id() >> 3 & 1;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n += 2) {
        s[n][0] = s[n][1] = s[n][2] = s[n][3] = s[n + 1][0] = s[n + 1][1] = s[n + 1][2] = s[n + 1][3] = 0.f;
#pragma unroll
        for (int d = 0; d < WIDTH / 16; d++) {
            u32 b[4];
            load_matrices(b, keys + place(n * 8 + r, d * 2 + chunk));
            multiply(s[n], queries.words[d], b[0], b[1]);
            multiply(s[n + 1], queries.words[d], b[2], b[3]);
        }
    }
}

__device__ __forceinline__ void start_sums(float (&sums)[WIDTH / 8][4], const u32 (&weights)[KEYS / 16][4], u32 values) {
    const int r = lane_id() & 15, chunk = lane_id() >> 4;
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++)
#pragma unroll
        for (int n = 0; n < WIDTH / 8; n += 2) {
            u32 b[4];
            load_transposed(b, values + place(k * 16 + r, n + chunk));
            multiply(sums[n], weights[k], b[0], b[1]);
            multiply(sums[n + 1], weights[k], b[2], b[3]);
        }
}

template <int N> __device__ __forceinline__ void finish_products(float (&)[N][4]) {}  // mma.sync is done when it returns

#endif

// Tiles come to shared memory two ahead of the products. A stage holds the keys of one and its values. Behind the stages lies the barrier, and
// before them the queries, if not in registers.
constexpr int STAGES = 4;  // two being filled, one multiplied, one that slower warps still multiply
constexpr int TILE_BYTES = KEYS * ROW_BYTES;
static_assert(ATTENTION_SHARED == QUERY_BYTES + STAGES * 2 * TILE_BYTES + 16, "");

// A thread copies one chunk of every AT_ONCE-th row of a tile.
constexpr int AT_ONCE = ATTENTION_THREADS / CHUNKS;
struct Copies {
    const act* from;  // its first key in the next tile
    int left;         // rows from that one to the end
    u32 to;           // where its chunk goes in a stage
};

__device__ __forceinline__ Copies plan_copies(const act* keys, Span rows, u32 stages) {
    const int r = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
    return {keys + (size_t)(rows.begin + r) * (3 * HIDDEN) + chunk * 8, rows.end - rows.begin - r, stages + place(r, chunk)};
}

__device__ __forceinline__ void start_copies(Copies& copies, int stage) {
    const u32 to = copies.to + stage * (2 * TILE_BYTES);
#pragma unroll
    for (int i = 0; i < KEYS; i += AT_ONCE) {
        const int r = threadIdx.x / CHUNKS;
        if ((KEYS % AT_ONCE != 0 || ATTENTION_THREADS % CHUNKS != 0) && (r >= AT_ONCE || i + r >= KEYS)) continue;
        const bool there = i < copies.left && (WIDTH == HEAD || threadIdx.x % CHUNKS < HEAD / 8);
        copy16(to + i * ROW_BYTES, copies.from + i * (3 * HIDDEN), there);
        copy16(to + i * ROW_BYTES + TILE_BYTES, copies.from + i * (3 * HIDDEN) + HIDDEN, there);
    }
    copies.from += KEYS * (3 * HIDDEN);
    copies.left -= KEYS;
}

// The barrier is passed once a tile, when all threads have said that their part of the tile has come, and that their products of the tile two
// before are done. They say so long before they wait, hence a warp may be most of a tile ahead of the others: some multiply while others
// take exponentials.
__device__ __forceinline__ void begin_barrier(u32 barrier) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(ATTENTION_THREADS) : "memory");
}

__device__ __forceinline__ void arrive(u32 barrier) {
    finish_copies<1>();  // all but those of the newest tile
#ifdef ATTENTION_WGMMA
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // wgmma reads shared memory another way than copies write it
#endif
    asm volatile("{.reg .b64 state; mbarrier.arrive.shared.b64 state, [%0];}" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void wait(u32 barrier, int tile) {
    asm volatile(
        "{.reg .pred passed; again: "
#if __CUDA_ARCH__ >= 900
        "mbarrier.try_wait.parity.shared.b64 passed, [%0], %1; "
#else
        "mbarrier.test_wait.parity.shared.b64 passed, [%0], %1; "
#endif
        "@!passed bra again;}" ::"r"(barrier),
        "r"(tile & 1)
        : "memory");
}

// Lane j of each four gives word i to lane i of them, and gets its word j.
__device__ __forceinline__ void transpose4(u32 (&w)[4]) {
#pragma unroll
    for (int step = 1; step <= 2; step *= 2)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (i & step) continue;
            const bool upper = lane_id() & step;
            const u32 got = __shfl_xor_sync(FULL, upper ? w[i] : w[i + step], step);
            (upper ? w[i] : w[i + step]) = got;
        }
}

#ifdef ATTENTION_WGMMA

// Part of the first group of copies.
__device__ __forceinline__ Queries load_queries(const act* from, int first, int tokens, u32 room) {
    const int r = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
#pragma unroll
    for (int i = 0; i < ATTENTION_QUERIES; i += AT_ONCE)
        copy16(room + place(r + i, chunk), from + (size_t)(first + r + i) * (3 * HIDDEN) + chunk * 8, first + r + i < tokens);
    return (room + threadIdx.x / (GROUP_WARPS * 32) * (GROUP_WARPS * 16 * ROW_BYTES)) / 16;
}

#else

// The lanes load 16 bytes each and exchange them for words of the layout above.
__device__ __forceinline__ Queries load_queries(const act* from, int first, int tokens, u32) {
    Queries queries;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int token = min(first + threadIdx.x / 32 * 16 + h * 8 + lane_id() / 4, tokens - 1);
#pragma unroll
        for (int n = 0; n < CHUNKS; n += 4) {
            const int chunk = n + lane_id() % 4;
            uint4 loaded = make_uint4(0, 0, 0, 0);
            if (chunk < HEAD / 8) loaded = *reinterpret_cast<const uint4*>(from + (size_t)token * (3 * HIDDEN) + chunk * 8);
            u32 w[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
            transpose4(w);
#pragma unroll
            for (int i = 0; i < 4 && n + i < CHUNKS; i++) queries.words[(n + i) / 2][(n + i) % 2 * 2 + h] = w[i];
        }
    }
    return queries;
}

#endif

// Scores of keys from `key` on that are not of a row's own text become -infinity.
__device__ __forceinline__ void mask(float (&s)[KEYS / 8][4], int key, const int2 (&text)[2]) {
    const bool inside = text[0].x <= key && key + KEYS <= text[0].y && text[1].x <= key && key + KEYS <= text[1].y;
    if (__all_sync(FULL, inside)) return;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const u32 at = key + n * 8 + lane_id() % 4 * 2 + e % 2 - text[e / 2].x;  // from the text's first key on; huge before it
            if (at >= (u32)(text[e / 2].y - text[e / 2].x)) s[n][e] = MASKED;
        }
}

__device__ __forceinline__ void raise_reference(Softmax& softmax, float (&sums)[WIDTH / 8][4], const float (&s)[KEYS / 8][4], float scale) {
    float largest[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        largest[h] = s[0][2 * h];
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) largest[h] = fmaxf(largest[h], fmaxf(s[n][2 * h], s[n][2 * h + 1]));
#pragma unroll
        for (int step = 1; step <= 2; step *= 2) largest[h] = fmaxf(largest[h], __shfl_xor_sync(FULL, largest[h], step));
        largest[h] *= scale;
    }
    if (!__any_sync(FULL, largest[0] > softmax.most[0] + SLACK || largest[1] > softmax.most[1] + SLACK)) return;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const float raised = fmaxf(softmax.most[h], largest[h]), shrink = power_of_2(softmax.most[h] - raised);
        softmax.most[h] = raised;
        softmax.total[h] *= shrink;
#pragma unroll
        for (int n = 0; n < WIDTH / 8; n++) sums[n][2 * h] *= shrink, sums[n][2 * h + 1] *= shrink;
    }
}

__device__ __forceinline__ void weigh(u32 (&weights)[KEYS / 16][4], Softmax& softmax, const float (&s)[KEYS / 8][4], float scale) {
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float one = power_of_2(s[n][2 * h] * scale - softmax.most[h]), two = power_of_2(s[n][2 * h + 1] * scale - softmax.most[h]);
            softmax.total[h] += one + two;
            weights[n / 2][n % 2 * 2 + h] = pack2(one, two);
        }
}

// Returns the rows of the warp in which a NaN or an infinity was stored, a bit each.
__device__ __forceinline__ u32 store(act* out, const float (&sums)[WIDTH / 8][4], const Softmax& softmax, const int2 (&text)[2]) {
    u32 odd = 0;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float total = softmax.total[h], zero = 0.f;
#pragma unroll
        for (int step = 1; step <= 2; step *= 2) total += __shfl_xor_sync(FULL, total, step);
        const float share = __fdividef(1.f, total);
#pragma unroll
        for (int n = 0; n < CHUNKS; n += 4) {
            u32 w[4] = {0, 0, 0, 0};
#pragma unroll
            for (int i = 0; i < 4 && n + i < CHUNKS; i++) w[i] = pack2(sums[n + i][2 * h] * share, sums[n + i][2 * h + 1] * share);
            transpose4(w);
            const int chunk = n + lane_id() % 4;
            if (text[h].x < text[h].y && chunk < HEAD / 8)
                *reinterpret_cast<uint4*>(out + h * 8 * HIDDEN + chunk * 8) = make_uint4(w[0], w[1], w[2], w[3]);
        }
#pragma unroll
        for (int n = 0; n < CHUNKS; n++) zero += sums[n][2 * h] * 0.f + sums[n][2 * h + 1] * 0.f;
        const u32 lanes = __ballot_sync(FULL, text[h].x < text[h].y && zero != 0.f);
#pragma unroll
        for (int r = 0; r < 8; r++) odd |= (lanes >> 4 * r & 15 ? 1 : 0) << (8 * h + r);  // four lanes a row
    }
    return odd;
}

extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS, BLOCKS)
    attention(const act* qkv, const int2* bounds, int tokens, act* out, float scale) {
    extern __shared__ __align__(1024) char shared[];
    const u32 room = __cvta_generic_to_shared(shared), stages = room + QUERY_BYTES, barrier = stages + STAGES * 2 * TILE_BYTES;
    const int first = blockIdx.x * ATTENTION_QUERIES, warp = threadIdx.x / 32, own = first + warp * 16 + lane_id() / 4;
    qkv += blockIdx.y * HEAD;

    if (threadIdx.x == 0) begin_barrier(barrier);
    const int2 text[2] = {text_of(bounds, own, tokens), text_of(bounds, own + 8, tokens)};
    const Span all = texts_of<ATTENTION_QUERIES>(bounds, first, tokens);
    __syncthreads();
    await_previous();
    const Queries queries = load_queries(qkv, first, tokens, room);
    Copies copies = plan_copies(qkv + HIDDEN, all, stages);
#pragma unroll
    for (int stage = 0; stage < 2; stage++) {
        if (all.begin + stage * KEYS < all.end) start_copies(copies, stage);
        commit_copies();
    }
    const Span group = texts_of<GROUP_WARPS * 16>(bounds, first + warp / GROUP_WARPS * (GROUP_WARPS * 16), tokens);
    arrive(barrier);

    scale *= LOG2_E;
    Softmax softmax = {{NOTHING_YET, NOTHING_YET}, {0.f, 0.f}};
    float sums[WIDTH / 8][4] = {};
    for (int tile = 0, key = all.begin; key < all.end; tile++, key += KEYS) {
        wait(barrier, tile);
        if (key + 2 * KEYS < all.end) start_copies(copies, (tile + 2) % STAGES);
        commit_copies();
        if (group.begin >= key + KEYS || key >= group.end) {
            arrive(barrier);
            continue;
        }
        const u32 keys = stages + tile % STAGES * (2 * TILE_BYTES), values = keys + TILE_BYTES;
        float s[KEYS / 8][4];
        start_scores(s, queries, keys);
        finish_products(s);
        arrive(barrier);
        mask(s, key, text);
        raise_reference(softmax, sums, s, scale);
        u32 weights[KEYS / 16][4];
        weigh(weights, softmax, s, scale);
        start_sums(sums, weights, values);
        finish_products(sums);
    }
    const u32 odd = store(out + (size_t)own * HIDDEN + blockIdx.y * HEAD, sums, softmax, text);
    attend_again(odd, qkv, bounds, first + warp * 16, out + blockIdx.y * HEAD, scale);
}

#endif

}  // namespace attending
