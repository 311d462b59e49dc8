// Kernels that take each token or value by itself: embedding, norm, rotation, activation, pooling, conversion.

// The text that holds token t: the last b with starts[b] <= t, found 32 candidates at a time.
__device__ __forceinline__ int find_text(const int* starts, int texts, int t) {
    int low = 0, high = texts;  // low holds; high does not
    while (high - low > 1) {
        int step = (high - low + 31) / 32, probe = low + step * (lane_id() + 1);
        int after = __popc(__ballot_sync(FULL, probe < high && __ldg(starts + probe) <= t));
        low += step * after;
        high = min(high, low + step);
    }
    return low;
}

// out (tokens, D) = word[ids] + position[place in its text] + token_type[types], normed where there is a norm; position and token_type may be
// null. bounds (tokens): the rows of each token's text, 0 and 0 for those behind the last text, which fill the batch up to the size of its graph.
// input: texts, then ids (tokens), then starts (tokens + 1, texts + 1 of them used), then types (tokens)
extern "C" __global__ void __launch_bounds__(WARPS * 32)
    embed(const int* input, int with_types, const act* word, const act* position, const act* token_type, const act* weight, const act* bias,
          float eps, int2* bounds, act* out, int tokens) {
    await_previous();
    const int t = own_token();
    if (t >= tokens) return;
    const int texts = __ldg(input), *ids = input + 1, *starts = ids + tokens, *types = starts + tokens + 1;
    int2 text = make_int2(0, 0);
    if (t < __ldg(starts + texts)) {
        int b = find_text(starts, texts, t);
        text = make_int2(__ldg(starts + b), __ldg(starts + b + 1));
    }
    if (lane_id() == 0) bounds[t] = text;
    float x[VALUES];
    load_token(x, word + (size_t)__ldg(ids + t) * HIDDEN);
    if (position) add_token(x, position + (size_t)(text.y ? t - text.x : 0) * HIDDEN);
    if (token_type) add_token(x, token_type + (size_t)(with_types ? __ldg(types + t) : 0) * HIDDEN);
    if (weight) normalise(x, weight, bias, eps);
    store_token(x, out + (size_t)t * HIDDEN);
}

extern "C" __global__ void __launch_bounds__(WARPS * 32)
    layer_norm(const act* x, const act* weight, const act* bias, float eps, act* out, int tokens) {
    prefetch(weight, HIDDEN * (int)sizeof(act), threadIdx.x, WARPS * 32);
    prefetch(bias, HIDDEN * (int)sizeof(act), threadIdx.x, WARPS * 32);
    await_previous();
    const int t = own_token();
    if (t >= tokens) return;
    float row[VALUES];
    load_token(row, x + (size_t)t * HIDDEN);
    normalise(row, weight, bias, eps);
    store_token(row, out + (size_t)t * HIDDEN);
}

#ifdef HEADS
// The heads of q and k in qkv (tokens, 3 D), turned in place. Columns i and HALF + i of a head are a pair; its angle's cosine and sine are in the
// same columns of table (positions, SIZE), in the row of the token's place in its text. Tokens behind the last text stay.
extern "C" __global__ void __launch_bounds__(WARPS * 32) rotate(act* qkv, const int2* bounds, const float* table, int tokens) {
    constexpr int SIZE = HIDDEN / HEADS, HALF = SIZE / 2, FOURS = HALF / 4;
    await_previous();
    const int t = own_token();
    if (t >= tokens) return;
    const int2 text = bounds[t];
    if (text.x == text.y) return;
    act* const heads = qkv + (size_t)t * (3 * HIDDEN);
    const float* const angles = table + (size_t)(t - text.x) * SIZE;
    for (int i = lane_id(); i < 2 * HEADS * FOURS; i += 32) {
        const int at = i % FOURS * 4;
        act *const one = heads + i / FOURS * SIZE + at, *const two = one + HALF;
        const float4 c = load<float4>(angles + at), s = load<float4>(angles + HALF + at);
        float x[4], y[4];
        load4(x, one), load4(y, two);
        store4(one, {x[0] * c.x - y[0] * s.x, x[1] * c.y - y[1] * s.y, x[2] * c.z - y[2] * s.z, x[3] * c.w - y[3] * s.w}, 1.f);
        store4(two, {y[0] * c.x + x[0] * s.x, y[1] * c.y + x[1] * s.y, y[2] * c.z + x[2] * s.z, y[3] * c.w + x[3] * s.w}, 1.f);
    }
}
#endif

// x = activation(x) * beside where gated, else activation(x) + beside, `count` values, a multiple of VECTOR; beside may be null.
// kind as in activated()
extern "C" __global__ void __launch_bounds__(256) activate(act* x, const act* beside, int gated, int kind, act* out, long long count) {
    await_previous();
    for (long long i = (blockIdx.x * 256ll + threadIdx.x) * VECTOR; i < count; i += gridDim.x * 256ll * VECTOR) {
        float f[VECTOR];
        unpack(*reinterpret_cast<const uint4*>(x + i), f);
#pragma unroll
        for (int j = 0; j < VECTOR; j++) f[j] = activated(f[j], kind);
        if (beside) {
            float r[VECTOR];
            unpack(*reinterpret_cast<const uint4*>(beside + i), r);
#pragma unroll
            for (int j = 0; j < VECTOR; j++) f[j] = gated ? f[j] * r[j] : f[j] + r[j];
        }
        *reinterpret_cast<uint4*>(out + i) = pack(f);
    }
}

// out (texts, D) float32, whose rows are `stride` apart: a block a text, a thread a column. kind: POOL_CLS (the first token), POOL_MEAN, POOL_MAX,
// POOL_LSE (log of the sum of exp), POOL_LASTTOKEN, POOL_WEIGHTEDMEAN (by place, from 1), POOL_SQRTMEAN (the sum over the root of the count)
// skip: tokens that are left out at the beginning of a text, though never its last one
extern "C" __global__ void __launch_bounds__(128) pool(const act* x, const int* starts, int kind, int skip, float* out, int stride) {
    await_previous();
    const int start = __ldg(starts + blockIdx.x), end = __ldg(starts + blockIdx.x + 1), begin = min(start + skip, end - 1);
    const float places = .5f * (end - begin) * (begin + end - 2 * start + 1);  // the sum of the places of the tokens
    for (int c = threadIdx.x; c < HIDDEN; c += 128) {
        float first = to_float(x[(size_t)(kind == POOL_LASTTOKEN ? end - 1 : begin) * HIDDEN + c]), top = first, sum = 0.f;
        if (kind != POOL_CLS && kind != POOL_LASTTOKEN)
            for (int t = begin; t < end; t++) {
                float value = to_float(x[(size_t)t * HIDDEN + c]);
                if (kind == POOL_WEIGHTEDMEAN) value *= t - start + 1;
                sum += value, top = value > top || value != value ? value : top;
            }
        float pooled = top;
        if (kind == POOL_MEAN) pooled = sum / (end - begin);
        if (kind == POOL_SQRTMEAN) pooled = sum / sqrtf(end - begin);
        if (kind == POOL_WEIGHTEDMEAN) pooled = sum / places;
        if (kind == POOL_LSE) {
            sum = 0.f;
            for (int t = begin; t < end; t++) sum += expf(to_float(x[(size_t)t * HIDDEN + c]) - top);
            pooled = top + logf(sum);
        }
        out[(size_t)blockIdx.x * stride + c] = pooled;
    }
}

// out = each row of x, `width` wide, scaled to length 1: a warp a row
extern "C" __global__ void __launch_bounds__(32) unit(const act* x, int width, act* out) {
    await_previous();
    const act* row = x + (size_t)blockIdx.x * width;
    float sum = 0.f;
    for (int c = lane_id(); c < width; c += 32) sum += to_float(row[c]) * to_float(row[c]);
    const float length = fmaxf(sqrtf(warp_sum(sum)), 1e-12f);
    for (int c = lane_id(); c < width; c += 32) out[(size_t)blockIdx.x * width + c] = to_act(to_float(row[c]) / length);
}

#ifndef ACT_FLOAT
// out = x, `count` values
extern "C" __global__ void __launch_bounds__(256) to_float32(const act* x, float* out, long long count) {
    await_previous();
    for (long long i = (blockIdx.x * 256ll + threadIdx.x) * VECTOR; i < count; i += gridDim.x * 256ll * VECTOR) {
        if (i + VECTOR > count) {
            for (long long j = i; j < count; j++) out[j] = to_float(x[j]);
            break;
        }
        float f[VECTOR];
        unpack(load_once(x + i), f);
#pragma unroll
        for (int j = 0; j < VECTOR; j += 4) *reinterpret_cast<float4*>(out + i + j) = make_float4(f[j], f[j + 1], f[j + 2], f[j + 3]);
    }
}
#endif
