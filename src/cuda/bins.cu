// The fast feedforward for tens of thousands of tokens: one tree, 8 to 11 levels below its root, by wgmma; this text follows kernels.cu.
//
// Rows fetched for one token each are 37 KB a token, out of L2. Here a row is fetched once for many tokens that need it:
//
//   fff_upper   Every token goes down the 7 upper levels: z of all their 127 nodes is a product, the signs say which 7 count. The token is put
//               on the list of its bin, one of the 128 subtrees below, and the GELU of its 7 logits is kept.
//   fff_lower   A block takes a bin: 64 tokens at a time, z of all nodes of the subtree is a product; what is off the path is set to zero; and a
//               second product, with the out-rows of the subtree and of the 7 nodes above it, which all tokens of a bin share, is their answer.
//
// Weights of nodes off the path are zero, exactly; those on it are rounded to act, and so is the answer before what stands around it.

#define BINS_FIT (!defined(ACT_FLOAT) && !defined(ROW_INT8) && !defined(STOPS) && defined(__CUDA_ARCH_FEAT_SM90_ALL) && HIDDEN % 64 == 0 && DEPTH >= 8 && DEPTH <= 11)

struct Bins {
    FFF f;            // its x is normed already
    const act* top;   // the in-rows of the upper levels: (D / 64, BINS, 64), chunks permuted by row as fff_upper wants them
    act* weights;     // (tokens, 8): of the upper levels, and 0
    int* lists;       // (BINS, tokens): the tokens of each bin
    int* state;       // (BINS + 2, APART): counts, NEXT, DONE; zeros before and after both kernels
};

#ifdef STAMPS
extern "C" { __device__ long long stamps[132 * 8], sections[132 * 16]; }
#define STAMP(i) if (threadIdx.x == 0) stamps[blockIdx.x * 8 + i] = clock64()
#else
#define STAMP(i)
#endif
#ifdef STAMPS
#define SECTION_START long long section = clock64()
#define SECTION(k) if (threadIdx.x == 0) { long long now = clock64(); sections[blockIdx.x * 16 + k] += now - section; section = now; }
#else
#define SECTION_START
#define SECTION(k)
#endif
#if BINS_FIT
namespace binned {

constexpr int TOP = 7, BINS = 1 << TOP, BELOW = DEPTH + 1 - TOP, NODES = (1 << BELOW) - 1;  // levels above and within a subtree; its nodes
constexpr int BLOCKS = HIDDEN / 64;  // of columns: as many as 128 bytes hold
constexpr int APART = 32;            // words between counts: all blocks add to them at once, and one L2 slice would be slow
enum State { NEXT = BINS * APART, DONE = (BINS + 1) * APART };

// Matrices in shared memory are blocks of 64 columns; in each, a row has 128 bytes, whose chunks of 16 are permuted by row, the layout that wgmma
// calls a swizzle of 128 bytes. `part` is what wgmma is told of one: its chunk of shared memory and, in the upper word, that there are
// 1,024 bytes from 8 rows to the next and which swizzle. Neighbours of 16 columns are two chunks apart.
__device__ __forceinline__ int place_of(int row, int chunk) { return row * 128 + (chunk ^ (row & 7)) * 16; }
__device__ __forceinline__ u64 part(u32 at) { return (u64)0x40000040 << 32 | at / 16; }

#define FOUR(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
// d (64, 128) += a (64, 16) b (128, 16)^T
__device__ __forceinline__ void multiply_rows(float (&d)[16][4], u64 a, u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." ACT_PTX "." ACT_PTX
                 " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, %64, %65, 1, 1, 1, 0, 0;"
                 : FOUR(0), FOUR(1), FOUR(2), FOUR(3), FOUR(4), FOUR(5), FOUR(6), FOUR(7), FOUR(8), FOUR(9), FOUR(10), FOUR(11), FOUR(12), FOUR(13),
                   FOUR(14), FOUR(15)
                 : "l"(a), "l"(b));
}

// d (64, 32) += a (64, 16) b (32, 16)^T. A group's warp w has rows 16 w and on; its lanes have of 16 rows what they have of `multiply`.
__device__ __forceinline__ void multiply_rows(float (&d)[4][4], u64 a, u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32." ACT_PTX "." ACT_PTX
                 " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, %16, %17, 1, 1, 1, 0, 0;"
                 : FOUR(0), FOUR(1), FOUR(2), FOUR(3)
                 : "l"(a), "l"(b));
}

// d (64, 64) += a (64, 16) b (16, 64)
__device__ __forceinline__ void multiply_columns(float (&d)[8][4], u64 a, u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." ACT_PTX "." ACT_PTX
                 " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, 1, 1, 1, 0, 1;"
                 : FOUR(0), FOUR(1), FOUR(2), FOUR(3), FOUR(4), FOUR(5), FOUR(6), FOUR(7)
                 : "l"(a), "l"(b));
}
#undef FOUR

__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

template <int N> __device__ __forceinline__ void finish_products(float (&d)[N][4]) {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
    for (int i = 0; i < N * 4; i++) asm volatile("" : "+f"(d[i / 4][i % 4])::"memory");  // no use of them moves up past here
}

// What this thread wrote to shared memory, by copies too, is what products read after the next __syncthreads.
__device__ __forceinline__ void show_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ void prefetch(const void* from, int bytes) {  // to L2, without the load units: many small ones would jam them
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}

__device__ __forceinline__ int level_of(int node) { return 31 - __clz(node + 1); }

// A node of a bin's subtree, counted in the whole tree.
__device__ __forceinline__ int node_of(int bin, int within) {
    const int level = level_of(within);
    return ((bin + BINS) << level) - 1 + within + 1 - (1 << level);
}

__device__ __forceinline__ void record(const FFF& f, int token, int level, int node, float z) {
    const size_t at = (size_t)token * (DEPTH + 1) + level;
    f.path[at] = node;
    f.z[at] = z;
}

// ---- the upper levels -------------------------------------------------------------------------------------------------------------------
// A group of four warps has 64 tokens, a warp 16 of them: lane l has of rows l / 4 and l / 4 + 8 the logits of nodes 8 j + 2 (l % 4) and the next.

namespace upper {

constexpr int THREADS = 256, TILE = THREADS / 2, STAGES = 3;
constexpr int TOP_ROWS = TILE * 128, STAGE = TOP_ROWS + BINS * 128;  // a stage: a block of the tokens' columns, and of the nodes'
constexpr int LOGITS = STAGES * STAGE, SHARED = LOGITS + TILE * 8 * 4;

}  // namespace upper

}  // namespace binned

extern "C" __global__ void __launch_bounds__(binned::upper::THREADS, 2) fff_upper(Bins b) {
    using namespace binned;
    using namespace binned::upper;
    extern __shared__ uint4 dynamic[];
    char* shared = reinterpret_cast<char*>(dynamic);
    const FFF& f = b.f;
    const int warp = threadIdx.x >> 5, lane = lane_id(), quad = lane / 4, pair = lane % 4, begin = blockIdx.x * TILE;
    const u32 base = (u32)__cvta_generic_to_shared(shared);
#ifdef PFT
    if (threadIdx.x == 0) {
        const int each = (f.count - (BINS - 1) + gridDim.x - 1) / gridDim.x, node = BINS - 1 + blockIdx.x * each;
        if (node < f.count) prefetch(in_row(f, node), min(each, f.count - node) * HIDDEN * 4);
    }
#endif
    const int row = threadIdx.x / 8, place = threadIdx.x % 8;
    auto start_copy = [&](int block) {
        if (block < BLOCKS) {
            const u32 to = base + block % STAGES * STAGE;
#ifdef NOA
            if (block == 0)
#endif
#pragma unroll
            for (int r = row; r < TILE; r += THREADS / 8)
                copy16(to + place_of(r, place), f.x + (size_t)min(begin + r, f.tokens - 1) * HIDDEN + block * 64 + place * 8);
#ifdef NOB
            if (block == 0)
#endif
#pragma unroll
            for (int i = threadIdx.x; i < BINS * 8; i += THREADS) copy16(to + TOP_ROWS + i * 16, b.top + (block * BINS * 8 + i) * 8);
        }
        commit_copies();
    };
    float z[16][4] = {};
    for (int block = 0; block < STAGES - 1; block++) start_copy(block);
#pragma unroll 1
    for (int block = 0; block < BLOCKS; block++) {
        finish_copies<STAGES - 2>();
        show_products();
        __syncthreads();  // all have this block, and are done with the one before
        start_copy(block + STAGES - 1);
        const u32 stage = base + block % STAGES * STAGE;
        begin_products();
#pragma unroll
        for (int k = 0; k < 4; k++) multiply_rows(z, part(stage + warp / 4 * (64 * 128) + k * 32), part(stage + TOP_ROWS + k * 32));
        finish_products(z);
    }

#ifdef NOEPI
    if (z[0][0] != 12345.f) return;
#endif
    u32 signs[2][4] = {}, visited[2][4] = {};
#pragma unroll
    for (int j = 0; j < 16; j++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            const int node = 8 * j + 2 * pair + c;
            const float b_in = f.b_in ? __ldg(f.b_in + node) : 0.f;
#pragma unroll
            for (int r = 0; r < 2; r++) {
                z[j][2 * r + c] += b_in;
                signs[r][j / 4] |= (u32)(z[j][2 * r + c] > 0.f) << (node & 31);
            }
        }
    int node[2] = {0, 0};
#pragma unroll
    for (int r = 0; r < 2; r++)
#pragma unroll
        for (int w = 0; w < 4; w++) {
            signs[r][w] |= __shfl_xor_sync(FULL, signs[r][w], 1);
            signs[r][w] |= __shfl_xor_sync(FULL, signs[r][w], 2);
        }
#pragma unroll
    for (int level = 0; level < TOP; level++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            u32 word = signs[r][0];
#pragma unroll
            for (int w = 0; w < 4; w++) {
                if (w && node[r] / 32 == w) word = signs[r][w];
                if (node[r] / 32 == w) visited[r][w] |= 1u << (node[r] & 31);
            }
            node[r] = 2 * node[r] + 1 + (word >> (node[r] & 31) & 1);
        }
    float* logits = reinterpret_cast<float*>(shared + LOGITS) + warp * (16 * 8);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float* own = logits + (8 * r + quad) * 8;
#pragma unroll
        for (int j = 0; j < 16; j++)
#pragma unroll
            for (int c = 0; c < 2; c++) {
                const int n = 8 * j + 2 * pair + c;
                if (visited[r][j / 4] >> (n & 31) & 1) own[level_of(n)] = z[j][2 * r + c];
            }
        if (pair == 0) own[TOP] = __int_as_float(node[r] - (BINS - 1));
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 16; i += 4) {  // eight lanes a token
        const int own = i + lane / 8, level = lane % 8, token = begin + warp * 16 + own;
        if (token >= f.tokens) continue;
        const int bin = __float_as_int(logits[own * 8 + TOP]);
        const float logit = logits[own * 8 + level];
        b.weights[(size_t)token * 8 + level] = to_act(level < TOP ? gelu(logit) : 0.f);
        if (level == TOP) b.lists[(size_t)bin * f.tokens + atomicAdd(b.state + bin * APART, 1)] = token;
        else if (f.path) record(f, token, level, ((bin + BINS) >> (TOP - level)) - 1, logit);
    }
}

// ---- the lower levels -------------------------------------------------------------------------------------------------------------------

namespace binned {
namespace lower {

constexpr int THREADS = 512, TILE = THREADS / 8;
constexpr int IN_ROWS = 32, OUT_ROWS = 48;  // in-rows of a subtree; its out-rows, one of zeros, those of the levels above, zeros
constexpr int OUT = BLOCKS * IN_ROWS * 128, X = OUT + BLOCKS * OUT_ROWS * 128, WEIGHTS = X + BLOCKS * TILE * 128;
constexpr int COUNTS = WEIGHTS + TILE * 128, SHARED = COUNTS + (2 * BINS + 4) * 4;

// `count` tokens of a bin, listed from `tokens` on.
__device__ __forceinline__ void take(const Bins& b, char* shared, int bin, const int* tokens, int count) {
    const FFF& f = b.f;
    const int warp = threadIdx.x >> 5, group = warp >> 2, lane = lane_id(), quad = lane / 4, pair = lane % 4;
    const int row = threadIdx.x / 8, place = threadIdx.x % 8;  // eight threads have a token where it is copied, and where its path is followed
    const u32 base = (u32)__cvta_generic_to_shared(shared);
    const uint4 zeros = make_uint4(0, 0, 0, 0);
    auto token_of = [&](int begin) { return __ldcg(tokens + min(begin + row, count - 1)); };

    // a row of 128 bytes of all blocks for each eight threads
#pragma unroll 1
    for (int r = row; r < IN_ROWS + OUT_ROWS; r += TILE) {
        const int within = r < IN_ROWS ? r : r - IN_ROWS, level = within - IN_ROWS;
        const act* from = nullptr;
        if (within < NODES) from = r < IN_ROWS ? in_row(f, node_of(bin, within)) : out_row(f, node_of(bin, within));
        else if (level >= 0 && level < TOP) from = out_row(f, ((bin + BINS) >> (TOP - level)) - 1);
        const u32 to = base + (r < IN_ROWS ? 0 : OUT) + place_of(within, place), stride = (r < IN_ROWS ? IN_ROWS : OUT_ROWS) * 128;
#pragma unroll
        for (int block = 0; block < BLOCKS; block++) copy16(to + block * stride, (from ? from : f.nodes) + place * 8 + block * 64, from != nullptr);
    }
    constexpr int EACH = IN_ROWS / 8;
    const int first = place * EACH;  // of the nodes whose logits this thread adds up
    float b_in[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) b_in[i] = f.b_in && first + i < NODES ? __ldg(f.b_in + node_of(bin, first + i)) : 0.f;
    SECTION_START;

    int next = token_of(0);
    auto start_tile = [&] {  // each warp copies the rows that it finishes
#pragma unroll
        for (int block = 0; block < BLOCKS; block++)
            copy16(base + X + block * (TILE * 128) + place_of(row, place), f.x + (size_t)next * HIDDEN + place * 8 + block * 64);
    };
    start_tile();
#pragma unroll 1
    for (int begin = 0; begin < count; begin += TILE) {
        const int token = next;
        uint4 above = zeros;
        if (place == 0) above = __ldcg(reinterpret_cast<const uint4*>(b.weights) + token);
        if (begin + TILE < count) {
            next = token_of(begin + TILE);
#ifndef NOPFN
            if (place == 0) prefetch(f.x + (size_t)next * HIDDEN, HIDDEN * 2);
#endif
        }
        commit_copies();
        finish_copies<0>();
        show_products();
        __syncthreads();
        SECTION(0);

        // logits: some of the blocks a group
        float z[4][4] = {};
        begin_products();
#pragma unroll 1
        for (int block = group; block < BLOCKS; block += 4)
#pragma unroll
            for (int k = 0; k < 4; k++)
                multiply_rows(z, part(base + X + block * (TILE * 128) + k * 32), part(base + block * (IN_ROWS * 128) + k * 32));
        finish_products(z);
        __syncthreads();  // the tile's memory is free now: what groups have of the logits goes there
        float* parts = reinterpret_cast<float*>(shared + X);
        const int own = warp % 4 * 16 + quad;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float* to = parts + (group * TILE + own) * IN_ROWS + (j ^ (own & 3)) * 8 + 2 * pair;
            *reinterpret_cast<float2*>(to) = make_float2(z[j][0], z[j][1]);
            *reinterpret_cast<float2*>(to + 8 * IN_ROWS) = make_float2(z[j][2], z[j][3]);
        }
        __syncthreads();
        SECTION(1);

        // the path
        {
            const float* from = parts + row * IN_ROWS + (first / 8 ^ (row & 3)) * 8 + first % 8;
            float mine[EACH];
            u32 signs = 0, visited = 0;
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                const float* at = from + i;
                mine[i] = ((at[0] + at[TILE * IN_ROWS]) + (at[2 * TILE * IN_ROWS] + at[3 * TILE * IN_ROWS])) + b_in[i];
                signs |= (u32)(mine[i] > 0.f) << (first + i);
            }
#pragma unroll
            for (int step = 1; step < 8; step <<= 1) signs |= __shfl_xor_sync(FULL, signs, step);
#pragma unroll
            for (int level = 0, node = 0; level < BELOW; level++) {
                visited |= 1u << node;
                node = 2 * node + 1 + (signs >> node & 1);
            }
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                const bool counts = visited >> (first + i) & 1;
                if (f.path && counts) record(f, token, TOP + level_of(first + i), node_of(bin, first + i), mine[i]);
                mine[i] = counts ? gelu(mine[i]) : 0.f;
            }
            *reinterpret_cast<uint2*>(shared + WEIGHTS + place_of(row, first / 8) + first % 8 * 2) = make_uint2(pack2(mine[0], mine[1]), pack2(mine[2], mine[3]));
            if (place == 0) {
                *reinterpret_cast<uint4*>(shared + WEIGHTS + place_of(row, IN_ROWS / 8)) = above;
                *reinterpret_cast<uint4*>(shared + WEIGHTS + place_of(row, IN_ROWS / 8 + 1)) = zeros;
            }
        }
        show_products();
        __syncthreads();
        SECTION(2);

        // the answer, to the tile's memory
#pragma unroll 1
        for (int block = group; block < BLOCKS; block += 4) {
            float y[8][4] = {};
            begin_products();
#pragma unroll
            for (int k = 0; k < OUT_ROWS / 16; k++)
                multiply_columns(y, part(base + WEIGHTS + k * 32), part(base + OUT + (block * OUT_ROWS + k * 16) * 128));
            finish_products(y);
            char* to = shared + X + block * (TILE * 128) + pair * 4;
#pragma unroll
            for (int j = 0; j < 8; j++) {
                *reinterpret_cast<u32*>(to + place_of(own, j)) = pack2(y[j][0], y[j][1]);
                *reinterpret_cast<u32*>(to + place_of(own + 8, j)) = pack2(y[j][2], y[j][3]);
            }
        }
        __syncthreads();
        SECTION(3);

        // what stands around it: a warp's rows together
#ifndef TOGETHER_ROWS
#define TOGETHER_ROWS 2
#endif
#pragma unroll 1
        for (int i = 0; i < TILE / 16; i += TOGETHER_ROWS) {
            float y[TOGETHER_ROWS][VALUES];
            int ids[TOGETHER_ROWS];
#pragma unroll
            for (int k = 0; k < TOGETHER_ROWS; k++) {
                const int r = warp * (TILE / 16) + i + k;
                ids[k] = __shfl_sync(FULL, token, 8 * (i + k));
#pragma unroll
                for (int v = 0; v < VECTORS; v++) {
                    const int chunk = column(v) / 8;
                    uint4 words = zeros;
                    if (inside(v)) words = *reinterpret_cast<const uint4*>(shared + X + chunk / 8 * (TILE * 128) + place_of(r, chunk % 8));
                    unpack(words, reinterpret_cast<float(&)[VECTOR]>(y[k][v * VECTOR]));
                }
            }
#pragma unroll
            for (int k = 0; k < TOGETHER_ROWS; k++)
                if (f.add_input) add_token(y[k], f.x + (size_t)ids[k] * HIDDEN);
#pragma unroll
            for (int k = 0; k < TOGETHER_ROWS; k++)
                if (begin + warp * (TILE / 16) + i + k < count) finish(y[k], f, ids[k]);
        }
        __syncwarp();
        if (begin + TILE < count) start_tile();
        SECTION(4);
    }
}

}  // namespace lower
}  // namespace binned

extern "C" __global__ void __launch_bounds__(binned::lower::THREADS, 1) fff_lower(Bins b) {
    using namespace binned;
    using namespace binned::lower;
    extern __shared__ uint4 dynamic[];
    char* shared = reinterpret_cast<char*>(dynamic);
    STAMP(3);
    // Each bin's first `slice` tokens are taken by a block of their own; what is left is cut into slices, too, for blocks that are done.
    int *counts = reinterpret_cast<int*>(shared + COUNTS), *ends = counts + BINS, *chosen = ends + BINS;
    const int slice = (b.f.tokens / BINS * 5 / 4 + 8 + TILE - 1) / TILE * TILE;
    for (int i = threadIdx.x; i < BINS; i += THREADS) counts[i] = __ldcg(b.state + i * APART);
    __syncthreads();
    if (threadIdx.x < 32) {  // the running sum of the parts behind the first, four bins a lane
        int own[BINS / 32], end = 0;
#pragma unroll
        for (int i = 0; i < BINS / 32; i++) own[i] = end += max(0, counts[BINS / 32 * threadIdx.x + i] - 1) / slice;
#pragma unroll
        for (int step = 1; step < 32; step <<= 1) {
            const int before = __shfl_up_sync(FULL, end, step);
            if (threadIdx.x >= step) end += before;
        }
#pragma unroll
        for (int i = 0; i < BINS / 32; i++) ends[BINS / 32 * threadIdx.x + i] = BINS + end - own[BINS / 32 - 1] + own[i];
    }
    __syncthreads();
    STAMP(4);
    for (int part = blockIdx.x; part < ends[BINS - 1];) {
        int bin = part, begin = 0;
        if (part >= BINS) {
            for (bin = 0; ends[bin] <= part;) bin++;
            begin = (part - (bin ? ends[bin - 1] : BINS) + 1) * slice;
        }
        if (counts[bin]) take(b, shared, bin, b.lists + (size_t)bin * b.f.tokens + begin, min(slice, counts[bin] - begin));
        STAMP(6);
        if (threadIdx.x == 0) *chosen = gridDim.x + atomicAdd(b.state + NEXT, 1);
        __syncthreads();
        part = *chosen;
        __syncthreads();
    }
    STAMP(7);
#ifndef NORESET
    if (threadIdx.x == 0 && atomicAdd(b.state + DONE, 1) == (int)gridDim.x - 1) {  // ready for the next launch
        for (int i = 0; i < BINS; i++) b.state[i * APART] = 0;
        b.state[NEXT] = b.state[DONE] = 0;
    }
#else
    if (threadIdx.x == 0 && atomicAdd(b.state + DONE, 1) == (int)gridDim.x - 1) b.state[NEXT] = b.state[DONE] = 0;
#endif
}

// What the host asks for: threads, shared memory and tokens of a block of fff_upper, threads and shared memory of one of fff_lower.
extern "C" __device__ const int bins_launch[5] = {binned::upper::THREADS, binned::upper::SHARED, binned::upper::TILE, binned::lower::THREADS,
                                                  binned::lower::SHARED};

#else
extern "C" __device__ const int bins_launch[5] = {0, 0, 0, 0, 0};
#endif
