// Matrix products of few rows.
//
//   product_R_N(x (rows, inputs), weight (outputs, inputs), bias (outputs), beside, gated, out (rows, outputs), rows, outputs, inputs, kind)
//       out = activation(x weight^T + bias) * beside where gated, else + beside; bias and beside may be null, beside may be out; kind as in
//       activated()
//
// What few rows cost is that weights come from memory and that each kernel waits for the one before. A block has 16 R rows and 8 N outputs; all its
// weights fit into shared memory, and are on their way while the kernel before still runs. The warps share the inputs out, and a lane copies just
// what it will multiply: until the warps' sums are added up, no thread waits for another.
//
// Launched as (ceil(outputs / 8 N), ceil(rows / 16 R)) blocks of 32 PRODUCT_WARPS threads, with 512 PRODUCT_WARPS (N max(R, steps) + 12) bytes of
// dynamic memory; steps = ceil(inputs / (32 PRODUCT_WARPS)). outputs and inputs are multiples of 8. The host's code says PRODUCT_WARPS and
// PRODUCTS, which R and N there are.

#if !defined(ACT_FLOAT) && __CUDA_ARCH__ >= 800

// In a step a warp has 32 inputs, and lane l 8 of them from l % 4 * 8 on: of output l / 4 of each 8, and of rows l / 4 and l / 4 + 8 of each 16.
// mma.sync wants other inputs in these lanes, but it is all the same: both operands are permuted alike.
template <int R, int N>
__device__ __forceinline__ void product(const act* x, const act* weight, const act* bias, const act* beside, int gated, act* out, int rows,
                                        int outputs, int inputs, int kind) {
    extern __shared__ __align__(16) uint4 operands[];
    constexpr int AHEAD = 6 / R,
                  TILES = (R * N + PRODUCT_WARPS - 1) / PRODUCT_WARPS;  // steps of x on their way; tiles of sums that a warp adds up
    const int warp = threadIdx.x / 32, row = blockIdx.y * 16 * R + lane_id() / 4, output = blockIdx.x * 8 * N + lane_id() / 4;
    const int steps = (inputs + 32 * PRODUCT_WARPS - 1) / (32 * PRODUCT_WARPS), weights_of_warp = max(R, steps) * N * 32;
    // This lane's weights [step][n] and inputs [step % AHEAD][r][h], h = 1 for rows 8 on.
    uint4* const weights = operands + warp * weights_of_warp + lane_id();
    uint4* const left = operands + PRODUCT_WARPS * weights_of_warp + warp * (AHEAD * R * 2 * 32) + lane_id();
    auto input = [&](int step) { return (step * PRODUCT_WARPS + warp) * 32 + lane_id() % 4 * 8; };
    auto copy = [](uint4* to, const act* from, bool there) { copy16(__cvta_generic_to_shared(to), from, there); };

    for (int step = 0; step < steps; step++)
#pragma unroll
        for (int n = 0; n < N; n++) {
            const int i = input(step), o = output + n * 8;
            copy(weights + (step * N + n) * 32, weight + (size_t)o * inputs + i, o < outputs && i < inputs);
        }
    const int own_output = blockIdx.x * 8 * N + lane_id() % 4 * 2;  // and the next: of the sums that this lane adds up, before n
    u32 biases[TILES];
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        const int o = own_output + (warp + t * PRODUCT_WARPS) % N * 8;
        biases[t] = bias && o < outputs ? load<u32>(bias + o) : 0;
    }
    await_previous();
    auto start_step = [&](int step) {
        const int i = input(step);
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int from = row + r * 16 + h * 8;
                copy(left + ((step % AHEAD * R + r) * 2 + h) * 32, x + (size_t)from * inputs + i, from < rows && i < inputs);
            }
    };
#pragma unroll
    for (int step = 0; step < AHEAD; step++) {
        if (step < steps) start_step(step);
        commit_copies();
    }

    float sums[R][N][4] = {};
    for (int step = 0; step < steps; step++) {
        finish_copies<AHEAD - 1>();
        uint4 a[R][2], b[N];
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
            for (int h = 0; h < 2; h++) a[r][h] = left[((step % AHEAD * R + r) * 2 + h) * 32];
#pragma unroll
        for (int n = 0; n < N; n++) b[n] = weights[(step * N + n) * 32];
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int r = 0; r < R; r++) multiply(sums[r][n], {a[r][0].x, a[r][1].x, a[r][0].y, a[r][1].y}, b[n].x, b[n].y);
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int r = 0; r < R; r++) multiply(sums[r][n], {a[r][0].z, a[r][1].z, a[r][0].w, a[r][1].w}, b[n].z, b[n].w);
        if (step + AHEAD < steps) start_step(step + AHEAD);
        commit_copies();
    }

    u32 more[TILES][2];
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int tile = warp + t * PRODUCT_WARPS, to = row + tile / N * 16 + h * 8, o = own_output + tile % N * 8;
            more[t][h] = 0;
            if (beside && tile < R * N && to < rows && o < outputs)
                more[t][h] = *reinterpret_cast<const u32*>(beside + (size_t)to * outputs + o);
        }
    // This lane's weights have been used; its sums take their place.
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int n = 0; n < N; n++) {
            const float (&s)[4] = sums[r][n];
            *reinterpret_cast<float4*>(weights + (r * N + n) * 32) = make_float4(s[0], s[1], s[2], s[3]);
        }
    __syncthreads();
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        const int tile = warp + t * PRODUCT_WARPS, o = own_output + tile % N * 8;
        if (tile >= R * N || o >= outputs) continue;
        const float2 offset = unpack2(biases[t]);
        float sum[4] = {offset.x, offset.y, offset.x, offset.y};
#pragma unroll
        for (int w = 0; w < PRODUCT_WARPS; w++) {
            const float4 part = reinterpret_cast<const float4*>(operands)[w * weights_of_warp + tile * 32 + lane_id()];
            sum[0] += part.x, sum[1] += part.y, sum[2] += part.z, sum[3] += part.w;
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int to = row + tile / N * 16 + h * 8;
            if (to >= rows) continue;
            const float2 by = unpack2(more[t][h]);
            const float one = activated(sum[2 * h], kind), two = activated(sum[2 * h + 1], kind);
            const u32 pair = pack2(gated ? one * by.x : one + by.x, gated ? two * by.y : two + by.y);
            *reinterpret_cast<u32*>(out + (size_t)to * outputs + o) = pair;
        }
    }
}

#define PRODUCT(R, N)                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(PRODUCT_WARPS * 32)                                                                       \
        product_##R##_##N(const act* x, const act* weight, const act* bias, const act* beside, int gated, act* out, int rows, int outputs, \
                          int inputs, int kind) {                                                                                          \
        product<R, N>(x, weight, bias, beside, gated, out, rows, outputs, inputs, kind);                                                   \
    }
PRODUCTS
#undef PRODUCT

#endif
