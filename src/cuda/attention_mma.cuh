// Attention's products by mma.sync (sm_80 on): 16 queries a warp.

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
