// The fast feedforward (CMM): the walk down trees, and the kernels for many tokens and for many trees.
// At node n: z = x . in[n] + b_in[n]; y += act(z) * out[n]; go to 2n + 1 + (z > 0). z == 0 goes left; leaves add too.
// Where leaves are blocks, these kernels walk the nodes that decide and say which block each token reaches: fff_blocks.cu computes the blocks.
// Between two norms of a layer it is memory that costs, so the norm before, the residual and the norm after are part of these kernels.

// FFF_STRUCT of backends/cuda/fff.py has the same fields.
struct FFF {
    const act* x;            // (tokens, D)
    const act* norm_weight;  // h = LayerNorm(x), or h = x where null
    const act* norm_bias;
    const act* residual;         // y = fff(h) + bias + residual (+ h where add_input); null: none
    const row* nodes;            // (trees, count, 2, D): the in-row and the out-row of a node side by side
    const float* scales;         // (trees, count, 2) of int8 rows
    const float* b_in;           // (trees, count) or null
    const int* children;         // with STOPS: (trees, count, 2), -1 = stop; else null: 2n + 1, 2n + 2
    const act* bias;             // (D) or null
    const act* out_norm_weight;  // out = LayerNorm(y), or y where null
    const act* out_norm_bias;
    act* out;      // (tokens, D), may be x: a row is read before it is written
    int* path;     // (tokens, trees, depth + 1) visited nodes, -1 after a stop; or null
    float* z;      // the same shape: their logits, 0 after a stop; or null
    int* reached;  // with BLOCKS: (trees, tokens) the block to which each path leads; `blocks` where it stops before
    int tokens, trees, count, add_input;
    int decisions, blocks;  // with BLOCKS: decisions of a walk that may reach a block, and the blocks of a tree
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

#ifndef TREE_KIND
#define TREE_KIND KIND_GELU
#endif
__device__ __forceinline__ float neuron(float z) { return activated(z, TREE_KIND); }

// What the out-row is multiplied by.
__device__ __forceinline__ float weight_of(const FFF& f, int n, float z) { return neuron(z) * out_scale(f, n); }

#ifdef STOPS
constexpr bool stops = true;
#else
constexpr bool stops = false;
#endif
#ifdef BLOCKS
constexpr bool to_blocks = true;
#else
constexpr bool to_blocks = false;
#endif
#ifdef SILENT
constexpr bool silent = true;  // nodes add nothing, and `out` is not written
#else
constexpr bool silent = false;
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
struct Path {
    int node;
    float z;
};

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
            if (stops && to_blocks && at[g] >= f.count) at[g] = -1;
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

// The block to which the last node of a path leads, which is at `level`.
__device__ __forceinline__ void record_block(const FFF& f, int token, int tree, int level, int node, float z) {
    const int next = next_node(f, tree, node, z);
    f.reached[(size_t)tree * f.tokens + token] = next >= f.count && level < f.decisions ? next - f.count : f.blocks;
}

__device__ __forceinline__ void record(const Path& path, const FFF& f, int token, int tree) {
    if (tree >= f.trees) return;
    if (to_blocks) {
        const int last = stops ? 31 - __clz(__ballot_sync(FULL, path.node >= 0 && lane_id() <= DEPTH)) : DEPTH;
        if (lane_id() == last) record_block(f, token, tree, last, path.node, path.z);
    }
    if (!f.path || lane_id() > DEPTH) return;
    const size_t at = ((size_t)token * f.trees + tree) * (DEPTH + 1) + lane_id();
    f.path[at] = path.node;
    f.z[at] = path.z;
}

#define ROW_WORDS (VECTORS * (int)sizeof(word) / 4)              // registers that a row takes
#define HELD (VALUES + ROW_WORDS)                                // and a row with a token
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
    if (silent) return;
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
        if (!silent) gather<TOGETHER, TOGETHER>(y, paths, f, tree, 1);
    }
    if (!silent) finish(y, f, token);
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
        if (!silent) gather<TOGETHER, TOGETHER>(y, paths, f, tree, TREE_WARPS);
    }
    if (silent) return;
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
