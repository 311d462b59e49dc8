// The fast feedforward of one tree and not many tokens: time is waiting for memory, several levels cost one wait, and what can be loaded early
// is. This text follows fff.cu. Trees are complete: a step knows the nodes below before it has decided.

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
template <int L> struct Way {
    int nodes[L], next;
    float z[L];
};

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
            if (top && !silent) add_scaled(rows[l], by[l], y);
#pragma unroll
        for (int l = 0; l < L; l++)
            if (top + l <= DEPTH && !silent) load_row(rows[l], out_row(f, way.nodes[l]));
#pragma unroll
        for (int l = 0; l < L; l++)
            if (top + l <= DEPTH && !silent) by[l] = weight_of(f, way.nodes[l], way.z[l]);
    }
#pragma unroll
    for (int l = 0; l <= DEPTH % L; l++)
        if (!silent) add_scaled(rows[l], by[l], y);
    record(path, f, token, 0);
    if (!silent) finish(y, f, token);
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
    struct Own {
        word words[COLUMNS];
        float scale;
    };  // a thread's part of an out-row
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
    auto load_act = [&](uint4(&words)[COLUMNS], const act* from) {
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
    const bool owner = column_0 < HIDDEN && !silent;  // a branch of its own, behind the loads that the next step waits for
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
        const Way<L> way = way_through<L>(root, reinterpret_cast<float (&)[N]>(z));
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
                by[l] = neuron(way.z[l]);
                if (!last) load_own(rows[l], way.nodes[l]);
                else add_words(y, candidates[0].words, by[l] * candidates[0].scale), go_down(candidates, way.z[l] > 0.f);
            }
        }
        if ((f.path || to_blocks) && threadIdx.x == 0)
#pragma unroll
            for (int l = 0; l < L; l++) {
                if (to_blocks && top + l == DEPTH) record_block(f, token, 0, DEPTH, way.nodes[l], way.z[l]);
                if (!f.path || top + l > DEPTH) continue;
                f.path[(size_t)token * (DEPTH + 1) + top + l] = way.nodes[l];
                f.z[(size_t)token * (DEPTH + 1) + top + l] = way.z[l];
            }
    }

    if (silent) return;
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
