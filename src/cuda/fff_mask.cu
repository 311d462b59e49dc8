// Wide layers by matrix products: between x @ in.T and @ out, keep the neurons on the path and zero the rest, in place.
// logits (tokens, width), without b_in (width): trees side by side in SLOTS each, the last of which is unused. A block has a token; small
// trees share a thread, large ones are spread over lanes. path, z: as in FFF, or null. reached, with BLOCKS: as in FFF, `stride` from tree to tree.
#define SLOTS (2 << DEPTH)
#if SLOTS <= 32 * VECTOR
extern "C" __global__ void __launch_bounds__(256)
    fff_mask(act* logits, const float* b_in, int width, int* path, float* z, int* reached, int stride) {
    await_previous();
    constexpr int LANES = SLOTS > VECTOR ? SLOTS / VECTOR : 1, PER_THREAD = SLOTS < VECTOR ? SLOTS : VECTOR;
    const int words = width / VECTOR, mine = lane_id() % LANES, first = lane_id() - mine;
    for (int base = 0; base < words; base += 256) {
        const int i = min(base + (int)threadIdx.x, words - 1);  // those behind the end keep their warp company
        uint4* at = reinterpret_cast<uint4*>(logits + (size_t)blockIdx.x * width) + i;
        float f[VECTOR];
        unpack(*at, f);
        u32 rights = 0, keep = 0;
#pragma unroll
        for (int j = 0; j < VECTOR; j++) {
            f[j] += __ldg(b_in + i * VECTOR + j);
            rights |= (f[j] > 0.f) << j;
        }
#pragma unroll
        for (int tree = 0; tree < VECTOR; tree += PER_THREAD) {
            int node = 0;
#pragma unroll
            for (int level = 0; level <= DEPTH; level++) {
                const int bit = tree + node % PER_THREAD, owner = node / PER_THREAD;
                const u32 theirs = __shfl_sync(FULL, rights, first + owner);
                if (owner == mine) keep |= 1u << bit;
                if (path && owner == mine && base + threadIdx.x < words) {
                    const size_t tree_here = ((size_t)blockIdx.x * words + i) * VECTOR / SLOTS + (SLOTS < VECTOR ? tree / PER_THREAD : 0);
                    path[tree_here * (DEPTH + 1) + level] = node;
#pragma unroll
                    for (int j = 0; j < VECTOR; j++)
                        if (j == bit) z[tree_here * (DEPTH + 1) + level] = f[j];
                }
                node = 2 * node + 1 + (theirs >> bit & 1);
            }
            if (to_blocks && mine == 0 && base + threadIdx.x < words)
                reached[(size_t)((i * VECTOR + tree) / SLOTS) * stride + blockIdx.x] = node - (SLOTS - 1);
        }
#pragma unroll
        for (int j = 0; j < VECTOR; j++) f[j] = keep >> j & 1 ? neuron(f[j]) : 0.f;
        if (base + threadIdx.x < words) *at = pack(f);
    }
}
#endif

#ifdef BLOCKS
// The walk of silent nodes through their logits, without b_in (trees * SLOTS): a thread a token and tree. logits (tokens, width);
// path, z, reached, stride: as in fff_mask.
extern "C" __global__ void __launch_bounds__(256)
    fff_reach(const act* logits, const float* b_in, int width, int* path, float* z, int* reached, int stride, int tokens, int trees) {
    await_previous();
    const long long i = blockIdx.x * 256ll + threadIdx.x;
    const int token = i / trees, tree = i % trees;
    if (token >= tokens) return;
    int node = 0;
    for (int level = 0; level <= DEPTH; level++) {
        const int slot = tree * SLOTS + node;
        const float logit = to_float(logits[(size_t)token * width + slot]) + __ldg(b_in + slot);
        if (path) path[i * (DEPTH + 1) + level] = node, z[i * (DEPTH + 1) + level] = logit;
        node = 2 * node + 1 + (logit > 0.f);
    }
    reached[(size_t)tree * stride + token] = node - (SLOTS - 1);
}
#endif
