// Attention's products by wgmma (sm_90a): 64 queries a group of 4 warps, tiles read from shared memory.

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

// Part of the first group of copies.
__device__ __forceinline__ Queries load_queries(const act* from, int first, int tokens, u32 room) {
    const int r = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
#pragma unroll
    for (int i = 0; i < ATTENTION_QUERIES; i += AT_ONCE)
        copy16(room + place(r + i, chunk), from + (size_t)(first + r + i) * (3 * HIDDEN) + chunk * 8, first + r + i < tokens);
    return (room + threadIdx.x / (GROUP_WARPS * 32) * (GROUP_WARPS * 16 * ROW_BYTES)) / 16;
}
