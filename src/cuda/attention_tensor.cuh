// Attention on tensor cores: what mma.sync and wgmma have in common, and the kernel.
//
// A warp has 16 queries, and their scores and sums lie in its registers as mma.sync and wgmma both leave them: lane l has rows l / 4 and
// l / 4 + 8 and, of each 8 columns, 2 (l % 4) and the next; [columns / 8][2 * second row + column]. Two such groups of 8 columns, rounded to act
// in pairs, are the left operand of the next product, so weights never leave their registers.

constexpr int WIDTH = (HEAD + 15) / 16 * 16;  // of a head as the instructions see it: columns past HEAD are zeros
constexpr int CHUNKS = WIDTH / 8;             // 16 bytes each

struct Softmax {
    float most[2], total[2];
};

// A row's reference follows its largest exponent only when that has outgrown it by SLACK: weights up to 2^SLACK are as exact as those below 1,
// and most tiles then leave the sums unscaled.
constexpr float SLACK = 8.f;

// A thread copies one chunk of every AT_ONCE-th row of a tile.
constexpr int AT_ONCE = ATTENTION_THREADS / CHUNKS;

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
#include "attention_wgmma.cuh"
#else
#include "attention_mma.cuh"
#endif

// Tiles come to shared memory two ahead of the products. A stage holds the keys of one and its values. Behind the stages lies the barrier, and
// before them the queries, if not in registers.
constexpr int STAGES = 4;  // two being filled, one multiplied, one that slower warps still multiply
constexpr int TILE_BYTES = KEYS * ROW_BYTES;
static_assert(ATTENTION_SHARED == QUERY_BYTES + STAGES * 2 * TILE_BYTES + 16, "");

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
    asm volatile("{.reg .pred passed; again: "
#if __CUDA_ARCH__ >= 900
                 "mbarrier.try_wait.parity.shared.b64 passed, [%0], %1; "
#else
                 "mbarrier.test_wait.parity.shared.b64 passed, [%0], %1; "
#endif
                 "@!passed bra again;}" ::"r"(barrier),
                 "r"(tile & 1)
                 : "memory");
}

#ifdef GAINS
// Scores, which are not scaled yet, gain what the tables say. `query`: the lane's first row; the other is 8 behind it, and so are the keys of n behind
// those of n - 1: hence two keys are as far from one row as the two before are from the other.
__device__ __forceinline__ void add_gains(float (&s)[KEYS / 8][4], const Batch& batch, int query, int key, float unscaled) {
    key += lane_id() % 4 * 2;
    Apart before[2] = {apart(batch.scores, key - 8 - query), apart(batch.scores, key - 7 - query)};
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            const int k = key + n * 8 + c;
            const Apart far = apart(batch.scores, k - query);
            s[n][c] += gain(batch, query, k, far) * unscaled;
            s[n][2 + c] += gain(batch, query + 8, k, before[c]) * unscaled;
            before[c] = far;
        }
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
            const float one = power_of_2(s[n][2 * h] * scale - softmax.most[h]),
                        two = power_of_2(s[n][2 * h + 1] * scale - softmax.most[h]);
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

extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS, BLOCKS) attention(PARAMETERS) {
    extern __shared__ __align__(1024) char shared[];
    const u32 room = __cvta_generic_to_shared(shared), stages = room + QUERY_BYTES, barrier = stages + STAGES * 2 * TILE_BYTES;
    const int first = blockIdx.x * ATTENTION_QUERIES, warp = threadIdx.x / 32, own = first + warp * 16 + lane_id() / 4;
    const Batch batch = BATCH;
    qkv += blockIdx.y * HEAD;

    if (threadIdx.x == 0) begin_barrier(barrier);
    const int2 text[2] = {text_of(batch, own), text_of(batch, own + 8)};
    const Span all = texts_of<ATTENTION_QUERIES>(batch, first);
    __syncthreads();
    await_previous();
    const Queries queries = load_queries(qkv, first, tokens, room);
    Copies copies = plan_copies(qkv + HIDDEN, all, stages);
#pragma unroll
    for (int stage = 0; stage < 2; stage++) {
        if (all.begin + stage * KEYS < all.end) start_copies(copies, stage);
        commit_copies();
    }
    const Span group = texts_of<GROUP_WARPS * 16>(batch, first + warp / GROUP_WARPS * (GROUP_WARPS * 16));
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
#ifdef GAINS
        add_gains(s, batch, own, key, LOG2_E / scale);
#endif
        mask(s, key, text);
        raise_reference(softmax, sums, s, scale);
        u32 weights[KEYS / 16][4];
        weigh(weights, softmax, s, scale);
        start_sums(sums, weights, values);
        finish_products(sums);
    }
    const u32 odd = store(out + (size_t)own * HIDDEN + blockIdx.y * HEAD, sums, softmax, text);
    attend_again(odd, qkv, batch, first + warp * 16, out + blockIdx.y * HEAD, scale);
}
