// Attention by plain arithmetic: float32, or a GPU without the tensor cores of sm_80.
//
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
            for (int j = 0; j < KEYS / 8; j++) s[i][j] += query.x * key[j].x + query.y * key[j].y + query.z * key[j].z + query.w * key[j].w;
        }
    }
}

#ifdef GAINS
// Scores, which are not scaled yet, of the queries `query` + 4 i and the keys `key` + 8 j gain what the tables say.
__device__ __forceinline__ void add_gains(float (&s)[4][KEYS / 8], const Batch& batch, int query, int key, float unscaled) {
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++) {
            const int q = query + 4 * i, k = key + 8 * j;
            s[i][j] += gain(batch, q, k, apart(batch.scores, k - q)) * unscaled;
        }
}
#endif

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
                    float (&sums)[4] = queries[i].sums[j];
                    sums[0] += w * value.x, sums[1] += w * value.y, sums[2] += w * value.z, sums[3] += w * value.w;
                }
            }
    }
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

extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS) attention(PARAMETERS) {
    __shared__ __align__(16) float left[ATTENTION_QUERIES][STRIDE], tile[KEYS][STRIDE], weights[ATTENTION_QUERIES][KEYS + 4];
    await_previous();
    const Batch batch = BATCH;
    const int first = blockIdx.x * ATTENTION_QUERIES, warp_row = threadIdx.x / 32 * 16, own = warp_row + lane_id() / 8, c = lane_id() % 8;
    const act* const q = qkv + blockIdx.y * HEAD;
    const Span all = texts_of<ATTENTION_QUERIES>(batch, first), mine = texts_of<16>(batch, first + warp_row);
    load_rows(left, ATTENTION_QUERIES, q + (size_t)first * (3 * HIDDEN), tokens - first);

    Query queries[4] = {};
#pragma unroll
    for (int i = 0; i < 4; i++) queries[i].text = text_of(batch, first + own + 4 * i), queries[i].most = NOTHING_YET;

    for (int key = all.begin; key < all.end; key += KEYS) {
        const act* const k = q + (size_t)key * (3 * HIDDEN) + HIDDEN;
        const bool needed = mine.begin < key + KEYS && key < mine.end;
        load_rows(tile, KEYS, k, all.end - key);
        __syncthreads();
        if (needed) {
            float s[4][KEYS / 8] = {};
            add_scores(s, left + own, tile + c);
#ifdef GAINS
            add_gains(s, batch, first + own, key + c, 1.f / scale);
#endif
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
    attend_again(odd, q, batch, first + warp_row, out + blockIdx.y * HEAD, scale * LOG2_E);
}
