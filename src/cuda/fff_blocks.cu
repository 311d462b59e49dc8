// Blocks of neurons at the leaves: y[t] += act(x[t] @ in.T + b_in) @ out + b_leaf of the block that token t reaches in each tree.
//
// The walk (fff.cu) leaves the number of each token's block. For a few tokens, each reads its own blocks: fff_few_in, fff_few_out. For more, fff_group
// sorts the tokens by block and cuts them into tiles of one block each; fff_block_in and fff_block_out are the two products of every tile, which
// gather the rows of their tokens and scatter the result. Trees are added one launch after another, so no two blocks of threads write the same row.
// A grid has as many tiles as there can be at most; those that are left over end at once.

// LEAVES_STRUCT of backends/cuda/fff.py has the same fields.
struct Leaves {
    const act* x;         // (tokens, D)
    const int* reached;   // (trees, tokens): block, `blocks` where a path stops before one; null: all reach block 0
    const act* rows_in;   // (trees, blocks * leaf, D)
    const act* rows_out;  // the same shape
    const float* b_in;    // (trees, blocks * leaf) or null
    const float* b_leaf;  // (trees, blocks, D) or null
    const act* bias;      // (D) or null
    const act* residual;  // (tokens, D), may be out; null: none
    const int* order;     // (trees, tokens): the tokens, sorted by block
    const int4* tiles;    // (trees, most): block, first place in `order`, tokens; 0 tokens: not used
    act* neurons;         // (tokens, stride): of the tokens in `order` in one tree, zeros behind `leaf`
    float* few;           // (tokens, trees, stride): neurons in fff_few_in
    float* sums;          // (tokens, D): what the trees before have given; null where there is one tree
    act* out;             // (tokens, D)
    int tokens, trees, blocks, leaf, stride, most, kind;  // kind as in activated()
};

__device__ __forceinline__ float2 load2(const act* from) {
#ifdef ACT_FLOAT
    return *reinterpret_cast<const float2*>(from);
#else
    return unpack2(*reinterpret_cast<const u32*>(from));
#endif
}

__device__ __forceinline__ void store2(act* to, float2 two) {
#ifdef ACT_FLOAT
    *reinterpret_cast<float2*>(to) = two;
#else
    *reinterpret_cast<u32*>(to) = pack2(two.x, two.y);
#endif
}

__device__ __forceinline__ void add2(float2& to, float2 two) { to.x += two.x, to.y += two.y; }

// The number of this lane's `bin`, counted up by one for each lane that has it; a bin below 0 is not counted. Lanes alike need one atomic together.
__device__ __forceinline__ int claim(int* numbers, int bin) {
    const u32 alike = __match_any_sync(FULL, bin);
    const int leader = __ffs(alike) - 1;
    int number = 0;
    if (lane_id() == leader && bin >= 0) number = atomicAdd(numbers + bin, __popc(alike));
    return __shfl_sync(FULL, number, leader) + __popc(alike & ((1u << lane_id()) - 1));
}

// Each value becomes its sum over this lane and those before it.
__device__ __forceinline__ void add_before(int& one, int& two) {
#pragma unroll
    for (int step = 1; step < 32; step <<= 1) {
        const int a = __shfl_up_sync(FULL, one, step), b = __shfl_up_sync(FULL, two, step);
        if (lane_id() >= step) one += a, two += b;
    }
}

// A counting sort of the tokens of a tree by their block, a block of threads to each tree. The order within a block of neurons is not determined, but
// no answer depends on it. places: of each block of neurons, in shared memory, or in `scratch` (trees, blocks + 1) where they do not fit.
extern "C" __global__ void __launch_bounds__(1024)
    fff_group(const int* reached, int* order, int4* tiles, int* scratch, int tokens, int blocks, int rows, int most) {
    extern __shared__ int shared_places[];
    __shared__ int warps[2][32];
    await_previous();
    const int tree = blockIdx.x, bins = blocks + 1, lane = lane_id(), warp = threadIdx.x >> 5, padded = (tokens + 31) / 32 * 32;
    int* const places = scratch ? scratch + (size_t)tree * bins : shared_places;
    order += (size_t)tree * tokens, tiles += (size_t)tree * most;
    auto block_of = [&](int t) { return t >= tokens ? -1 : reached ? reached[(size_t)tree * tokens + t] : 0; };

    for (int b = threadIdx.x; b < bins; b += 1024) places[b] = 0;
    __syncthreads();
    for (int t = threadIdx.x; t < padded; t += 1024) claim(places, block_of(t));
    __syncthreads();
    const int each = (bins + 1023) / 1024, first = min((int)threadIdx.x * each, bins), last = min(first + each, bins);
    int here = 0, tiles_here = 0;
    for (int b = first; b < last; b++) here += places[b], tiles_here += (places[b] + rows - 1) / rows;
    int at = here, tile = tiles_here;
    add_before(at, tile);
    if (lane == 31) warps[0][warp] = at, warps[1][warp] = tile;
    __syncthreads();
    if (warp == 0) {
        int one = warps[0][lane], two = warps[1][lane];
        add_before(one, two);
        warps[0][lane] = one, warps[1][lane] = two;
    }
    __syncthreads();
    at += (warp ? warps[0][warp - 1] : 0) - here, tile += (warp ? warps[1][warp - 1] : 0) - tiles_here;
    for (int b = first; b < last; b++) {
        const int count = places[b];
        places[b] = at;
        for (int i = 0; i < count; i += rows) tiles[tile++] = make_int4(b, at + i, min(rows, count - i), 0);
        at += count;
    }
    for (int i = warps[1][31] + threadIdx.x; i < most; i += 1024) tiles[i] = make_int4(0, 0, 0, 0);
    __syncthreads();
    for (int t = threadIdx.x; t < padded; t += 1024) {
        const int to = claim(places, block_of(t));
        if (t < tokens) order[to] = t;
    }
}

#if !defined(ACT_FLOAT) && __CUDA_ARCH__ >= 800
#define BLOCK_STAGES 3  // steps whose operands are in shared memory: one is multiplied, the others are on their way
#else
#define BLOCK_STAGES 1
#endif
#define STEP (8 * VECTOR)      // inputs of a step: 128 bytes of a row
#define COLUMNS BLOCK_COLUMNS  // outputs of a block of threads, 16 to a warp

// Where a tile with CHUNKS words to a row has a word: neighbours in a column are in different banks.
template <int CHUNKS> __device__ __forceinline__ int swizzled(int row, int chunk) { return row * CHUNKS + (chunk ^ (row & 7)); }

// A lane has, of each 16 rows, lane / 4 and the one 8 below it; of each 8 columns of its warp's 16, 2 (lane % 4) and the next: what multiply() gives.
// a: (ROWS, STEP); b: (COLUMNS, STEP), or (STEP, COLUMNS) where SECOND.
template <int ROWS, bool SECOND>
__device__ __forceinline__ void multiply_step(float (&sums)[ROWS / 16][2][4], const uint4* a, const uint4* b) {
    constexpr int CHUNKS = SECOND ? COLUMNS / VECTOR : 8;
    const int lane = lane_id(), warp = threadIdx.x >> 5;
#if BLOCK_STAGES > 1
    const u32 left = __cvta_generic_to_shared(a), right = __cvta_generic_to_shared(b);
#pragma unroll
    for (int k = 0; k < STEP / 16; k++) {
        u32 two[4];  // operands of the first 8 columns, then of the others
        if (SECOND) load_transposed(two, right + 16 * swizzled<CHUNKS>(k * 16 + lane % 16, warp * 2 + lane / 16));
        else load_matrices(two, right + 16 * swizzled<CHUNKS>(warp * 16 + lane / 16 * 8 + lane % 8, k * 2 + lane / 8 % 2));
#pragma unroll
        for (int r = 0; r < ROWS / 16; r++) {
            u32 one[4];
            load_matrices(one, left + 16 * swizzled<8>(r * 16 + lane % 16, k * 2 + lane / 16));
#pragma unroll
            for (int n = 0; n < 2; n++) multiply(sums[r][n], one, two[2 * n], two[2 * n + 1]);
        }
    }
#else
#pragma unroll 1
    for (int k = 0; k < 8; k++) {
        float two[4][VECTOR];
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const int column = warp * 16 + c / 2 * 8 + lane % 4 * 2 + c % 2;
            if (!SECOND) unpack(b[swizzled<CHUNKS>(column, k)], two[c]);
            else
#pragma unroll
                for (int v = 0; v < VECTOR; v++) {
                    const uint4* const word = b + swizzled<CHUNKS>(k * VECTOR + v, column / VECTOR);
                    two[c][v] = to_float(reinterpret_cast<const act*>(word)[column % VECTOR]);
                }
        }
#pragma unroll
        for (int i = 0; i < ROWS / 8; i++) {
            float one[VECTOR];
            unpack(a[swizzled<8>(i * 8 + lane / 4, k)], one);
#pragma unroll
            for (int c = 0; c < 4; c++)
#pragma unroll
                for (int v = 0; v < VECTOR; v++) sums[i / 2][c / 2][i % 2 * 2 + c % 2] += one[v] * two[c][v];
        }
    }
#endif
}

// The first product of a tile (neurons from x) or the second (out from neurons), COLUMNS columns of it.
template <int ROWS, bool SECOND> __device__ __forceinline__ void block_product(const Leaves& f, int tree, int first_column) {
    constexpr int CHUNKS = SECOND ? COLUMNS / VECTOR : 8;
    __shared__ __align__(128) uint4 left[BLOCK_STAGES][ROWS * 8], right[BLOCK_STAGES][COLUMNS * 8];
    await_previous();
    const int4 tile = f.tiles[(size_t)tree * f.most + blockIdx.x];
    const int block = tile.x, count = tile.z, lane = lane_id(), column_0 = first_column + (threadIdx.x >> 5) * 16 + lane % 4 * 2;
    const bool stopped = block == f.blocks;
    if (!count || (stopped && !SECOND)) return;
    const int* const order = f.order + (size_t)tree * f.tokens + tile.y;
    act* const neurons = f.neurons + (size_t)tile.y * f.stride;
    const size_t of_block = (size_t)tree * f.blocks + block;
    const act* const weights = (SECOND ? f.rows_out : f.rows_in) + of_block * f.leaf * HIDDEN;
    const int inputs = SECOND ? f.stride : HIDDEN, steps = stopped ? 0 : (inputs + STEP - 1) / STEP;

    const act* rows[ROWS / 16];  // those of which this thread copies a word in each step
#pragma unroll
    for (int i = 0; i < ROWS / 16; i++) {
        const int row = threadIdx.x / 8 + i * 16;
        rows[i] = row >= count ? nullptr : SECOND ? neurons + (size_t)row * f.stride : f.x + (size_t)order[row] * HIDDEN;
    }
    auto copy = [&](uint4* to, const act* from, bool there) {
#if BLOCK_STAGES > 1
        copy16(__cvta_generic_to_shared(to), there ? from : weights, there);
#else
        *to = there ? *reinterpret_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
#endif
    };
    auto copy_step = [&](int step) {
        const int stage = step % BLOCK_STAGES, chunk = threadIdx.x % 8, input = step * STEP + chunk * VECTOR;
#pragma unroll
        for (int i = 0; i < ROWS / 16; i++)
            copy(&left[stage][swizzled<8>(threadIdx.x / 8 + i * 16, chunk)], rows[i] + input, rows[i] && input < inputs);
#pragma unroll
        for (int i = 0; i < COLUMNS * 8 / 128; i++) {
            const int at = threadIdx.x + i * 128, row = at / CHUNKS, word = at % CHUNKS;
            const int neuron = SECOND ? step * STEP + row : first_column + row;
            const int column = (SECOND ? first_column : step * STEP) + word * VECTOR;
            copy(&right[stage][swizzled<CHUNKS>(row, word)], weights + (size_t)neuron * HIDDEN + column,
                 neuron < f.leaf && column < HIDDEN);
        }
    };
    float sums[ROWS / 16][2][4] = {};
#if BLOCK_STAGES > 1
#pragma unroll
    for (int step = 0; step < BLOCK_STAGES - 1; step++) {
        if (step < steps) copy_step(step);
        commit_copies();
    }
    for (int step = 0; step < steps; step++) {
        finish_copies<BLOCK_STAGES - 2>();
        __syncthreads();
        if (step + BLOCK_STAGES - 1 < steps) copy_step(step + BLOCK_STAGES - 1);
        commit_copies();
        multiply_step<ROWS, SECOND>(sums, left[step % BLOCK_STAGES], right[step % BLOCK_STAGES]);
    }
#else
    for (int step = 0; step < steps; step++) {
        __syncthreads();
        copy_step(step);
        __syncthreads();
        multiply_step<ROWS, SECOND>(sums, left[0], right[0]);
    }
#endif

#pragma unroll
    for (int n = 0; n < 2; n++) {
        const int column = column_0 + n * 8;
        if (column >= (SECOND ? HIDDEN : f.stride)) continue;
        float2 offset = make_float2(0.f, 0.f);
        if (SECOND) {
            if (f.b_leaf && !stopped) offset = *reinterpret_cast<const float2*>(f.b_leaf + of_block * HIDDEN + column);
            if (f.bias && tree == 0) add2(offset, load2(f.bias + column));
        } else if (f.b_in) {
            const float* const from = f.b_in + of_block * f.leaf + column;
            offset = make_float2(column < f.leaf ? from[0] : 0.f, column + 1 < f.leaf ? from[1] : 0.f);
        }
#pragma unroll
        for (int i = 0; i < ROWS / 8; i++) {
            const int row = i * 8 + lane / 4;
            if (row >= count) continue;
            float2 y = make_float2(sums[i / 2][n][i % 2 * 2], sums[i / 2][n][i % 2 * 2 + 1]);
            add2(y, offset);
            if (!SECOND) {
                y.x = column < f.leaf ? activated(y.x, f.kind) : 0.f;
                y.y = column + 1 < f.leaf ? activated(y.y, f.kind) : 0.f;
                store2(neurons + (size_t)row * f.stride + column, y);
                continue;
            }
            const size_t at = (size_t)order[row] * HIDDEN + column;
            if (tree) add2(y, *reinterpret_cast<const float2*>(f.sums + at));
            else if (f.residual) add2(y, load2(f.residual + at));
            if (tree == f.trees - 1) store2(f.out + at, y);
            else *reinterpret_cast<float2*>(f.sums + at) = y;
        }
    }
}

// Launched as (most, ceil(stride / COLUMNS)) and (most, ceil(D / COLUMNS)) blocks of 128 threads.
#define BLOCK_PRODUCTS(ROWS)                                                                     \
    extern "C" __global__ void __launch_bounds__(128) fff_block_in_##ROWS(Leaves f, int tree) {  \
        block_product<ROWS, false>(f, tree, blockIdx.y * COLUMNS);                               \
    }                                                                                            \
    extern "C" __global__ void __launch_bounds__(128) fff_block_out_##ROWS(Leaves f, int tree) { \
        block_product<ROWS, true>(f, tree, blockIdx.y * COLUMNS);                                \
    }
BLOCK_PRODUCTS(16)
BLOCK_PRODUCTS(64)
#undef BLOCK_PRODUCTS

// A few tokens: a warp a neuron. Launched as (tokens * trees, ceil(leaf / WARPS)) blocks.
extern "C" __global__ void __launch_bounds__(WARPS * 32) fff_few_in(Leaves f) {
    await_previous();
    const int token = blockIdx.x / f.trees, tree = blockIdx.x % f.trees, neuron = blockIdx.y * WARPS + (threadIdx.x >> 5);
    const int block = f.reached ? f.reached[(size_t)tree * f.tokens + token] : 0;
    if (neuron >= f.leaf || block == f.blocks) return;
    const size_t at = ((size_t)tree * f.blocks + block) * f.leaf + neuron;
    Row r;
    load_row(r, f.rows_in + at * HIDDEN);
    const float offset = f.b_in ? __ldg(f.b_in + at) : 0.f;
    float x[VALUES];
    load_token(x, f.x + (size_t)token * HIDDEN);
    const float z = warp_sum(dot(r, x)) + offset;
    if (lane_id() == 0) f.few[(size_t)blockIdx.x * f.stride + neuron] = activated(z, f.kind);
}

// And a block a token and 32 VECTOR columns, whose warps share the neurons of its blocks out and then add up in one order.
// Launched as (tokens, ceil(D / (32 VECTOR))) blocks.
extern "C" __global__ void __launch_bounds__(WARPS * 32) fff_few_out(Leaves f) {
    __shared__ float parts[WARPS][32 * VECTOR];
    await_previous();
    const int token = blockIdx.x, warp = threadIdx.x >> 5, first_column = blockIdx.y * 32 * VECTOR,
              column = first_column + lane_id() * VECTOR;
    float y[VECTOR] = {};
    if (column < HIDDEN)
        for (int tree = 0; tree < f.trees; tree++) {
            const int block = f.reached ? f.reached[(size_t)tree * f.tokens + token] : 0;
            if (block == f.blocks) continue;
            const size_t of_block = (size_t)tree * f.blocks + block;
            const act* const rows = f.rows_out + of_block * f.leaf * HIDDEN + column;
            const float* const by = f.few + ((size_t)token * f.trees + tree) * f.stride;
#pragma unroll 8
            for (int neuron = warp; neuron < f.leaf; neuron += WARPS) {
                float w[VECTOR];
                unpack(load<uint4>(rows + (size_t)neuron * HIDDEN), w);
#pragma unroll
                for (int j = 0; j < VECTOR; j++) y[j] += by[neuron] * w[j];
            }
            if (f.b_leaf && warp == 0)
#pragma unroll
                for (int j = 0; j < VECTOR; j++) y[j] += f.b_leaf[of_block * HIDDEN + column + j];
        }
#pragma unroll
    for (int j = 0; j < VECTOR; j++) parts[warp][lane_id() * VECTOR + j] = y[j];
    __syncthreads();
    const int own = first_column + threadIdx.x;
    if (threadIdx.x >= 32 * VECTOR || own >= HIDDEN) return;
    float sum = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) sum += parts[w][threadIdx.x];
    const size_t at = (size_t)token * HIDDEN + own;
    if (f.bias) sum += to_float(f.bias[own]);
    if (f.residual) sum += to_float(f.residual[at]);
    f.out[at] = to_act(sum);
}
