/* Four float lanes through GCC/Clang vector extensions: the baseline for every target, without FMA. */
#include <string.h>

#define VL 4
typedef float vf __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t vi_ __attribute__((vector_size(16)));
typedef uint32_t vu_ __attribute__((vector_size(16)));

static inline vf vf_set1(float s) { return (vf){s, s, s, s}; }
static inline vf vf_zero(void) { return vf_set1(0.0f); }
#define vf_keep(v) ((void)0)
static inline vf vf_load(const float *p) { return *(const vf *)p; }
static inline void vf_store(float *p, vf a) { *(vf *)p = a; }
static inline vf vf_load_n(const float *p, int n) {
    float t[VL] = {0};
    memcpy(t, p, n * sizeof *t);
    return vf_load(t);
}
static inline void vf_store_n(float *p, vf a, int n) { memcpy(p, &a, n * sizeof *p); }
static inline vf vf_add(vf a, vf b) { return a + b; }
static inline vf vf_sub(vf a, vf b) { return a - b; }
static inline vf vf_mul(vf a, vf b) { return a * b; }
static inline vf vf_div(vf a, vf b) { return a / b; }
static inline vf vf_fma(vf a, vf b, vf c) { return a * b + c; }
static inline vf vf_bits_(vi_ m) { return (vf)m; }
static inline vf vf_select_lt(vf a, vf b, vf yes, vf no) { /* a < b ? yes : no */
    vi_ m = (vi_)(a < b);
    return vf_bits_((m & (vi_)yes) | (~m & (vi_)no));
}
static inline vf vf_max(vf a, vf b) { return vf_select_lt(b, a, a, b); } /* b where a or b is nan, as on x86 */
static inline vf vf_min(vf a, vf b) { return vf_select_lt(a, b, a, b); }
static inline vf vf_abs(vf a) { return vf_bits_((vi_)a & 0x7fffffff); }
static inline vf vf_copysign(vf mag, vf sgn) { return vf_bits_(((vi_)mag & 0x7fffffff) | ((vi_)sgn & ~0x7fffffff)); }
static inline vf vf_round(vf a) { /* to nearest even, |a| < 2**22 */
    const vf magic = vf_set1(12582912.0f);
    return (a + magic) - magic;
}
static inline vf vf_pow2(vf n) { /* 2**n for integral n in [-126, 127] */
    vi_ i = __builtin_convertvector(n, vi_);
    return vf_bits_((vi_)((vu_)(i + 127) << 23));
}
static inline vf vf_ldexp(vf a, vf n) { /* a * 2**n for integral n in [-252, 254], rounded once where a is normal */
    const vf half = vf_round(vf_mul(n, vf_set1(0.5f)));
    return vf_mul(vf_mul(a, vf_pow2(half)), vf_pow2(vf_sub(n, half)));
}
static inline vf vf_low_to_exponent(vf a) { return vf_bits_((vi_)((vu_)a << 23)); } /* bits << 23 */
static inline float vf_most(vf a) {
    const float low = a[0] > a[2] ? a[0] : a[2], high = a[1] > a[3] ? a[1] : a[3];
    return low > high ? low : high;
}
static inline float vf_sum(vf a) { return (a[0] + a[2]) + (a[1] + a[3]); }
static inline vf vf_load_bf16(const uint16_t *p) {
    const vu_ t = {p[0], p[1], p[2], p[3]};
    return vf_bits_((vi_)(t << 16));
}
static inline vf vf_load_bf16_n(const uint16_t *p, int n) {
    uint16_t t[VL] = {0};
    memcpy(t, p, n * sizeof *t);
    return vf_load_bf16(t);
}
static inline vf vf_load_i8(const int8_t *p) { return (vf){p[0], p[1], p[2], p[3]}; }
static inline vf vf_load_i8_n(const int8_t *p, int n) {
    int8_t t[VL] = {0};
    memcpy(t, p, n);
    return vf_load_i8(t);
}

/* For matrix products: 32-bit integer lanes, and one dot step per storage type (gemm.inc explains units and steps). */
typedef vi_ vi;
#define TILE_ROWS 4 /* tokens of a tile: 4 x 2 accumulators leave some of 16 registers for products, since there is no FMA */
#define BF16_STEPS 2
#define I8_STEPS 2
#define UNSIGNED_TOKENS 0

static inline vi vi_set1(int32_t s) { return (vi){s, s, s, s}; }
static inline vi vi_load(const void *p) {
    vi a;
    memcpy(&a, p, sizeof a);
    return a;
}
static inline void vi_store(void *p, vi a) { memcpy(p, &a, sizeof a); }
static inline vi vi_max(vi a, vi b) { return (a & (a > b)) | (b & ~(a > b)); }
static inline int32_t vi_most(vi a) {
    const int32_t low = a[0] > a[2] ? a[0] : a[2], high = a[1] > a[3] ? a[1] : a[3];
    return low > high ? low : high;
}
static inline vi vf_bits(vf a) { return (vi)a; }
static inline vf vi_to_vf(vi a) { return __builtin_convertvector(a, vf); }
static inline vf vi_as_vf(vi a) { return (vf)a; }
static inline vi vi_and(vi a, vi b) { return a & b; }

/* Store lane u of the four rows at to[u * stride + 0..3]. */
static inline void vf_store_transposed4(float *to, size_t stride, vf r0, vf r1, vf r2, vf r3) {
    for (int u = 0; u < VL; u++) vf_store(to + u * stride, (vf){r0[u], r1[u], r2[u], r3[u]});
}

/* to[t] = values row[0][at + t], row[1][at + t], ..., row[VL - 1][at + t], for t < 4. */
static inline void vf_load_transposed4(const float *const row[VL], int at, vf to[4]) {
    float t[4 * VL];
    vf_store_transposed4(t, VL, vf_load(row[0] + at), vf_load(row[1] + at), vf_load(row[2] + at), vf_load(row[3] + at));
    for (int i = 0; i < 4; i++) to[i] = vf_load(t + i * VL);
}

/* 4 VL floats times s, rounded to the nearest integers (ties to even) in [-128, 127], four in each lane. */
static inline vi vi_quantise(const float *p, vf s) {
    const vf magic = vf_set1(12582912.0f); /* 1.5 * 2**23: adding it leaves the integer in the low bits */
    int8_t q[4 * VL];
    for (int i = 0; i < 4; i++) {
        const vi r = vf_bits(vf_fma(vf_load(p + i * VL), s, magic));
        for (int j = 0; j < VL; j++) q[i * VL + j] = (int8_t)r[j];
    }
    return vi_load(q);
}

static inline vi vi_even_i8(vi a) { /* bytes 0 and 2 of a lane, as int16; computed on numbers, so any byte order works */
    return (((vi)((vu_)a << 24) >> 24) & 0xffff) | (((vi)((vu_)a << 8) >> 24) << 16);
}
static inline vi vi_odd_i8(vi a) { return vi_even_i8((vi)((vu_)a >> 8)); } /* bytes 1 and 3 */
static inline vi vi_dot_i16(vi a, vi b, vi sum) {
    return sum + ((vi)((vu_)a << 16) >> 16) * ((vi)((vu_)b << 16) >> 16) + (a >> 16) * (b >> 16);
}
static inline vf vf_low_bf16(const void *p) { return vi_as_vf((vi)((vu_)vi_load(p) << 16)); } /* the even values of 2 VL bf16 */
static inline vf vf_high_bf16(const void *p) { return vi_as_vf(vi_load(p) & -65536); }
static inline vf vf_fma_in_turn(vf a, vf b, vf c) { return vf_fma(a, b, c); }
static inline vf vf_round_bf16(vf x) { /* rounded to the nearest bf16, ties to even; a nan stays a nan */
    const vu_ b = (vu_)x;
    const vi r = (vi)((b + 0x7fff + ((b >> 16) & 1)) & 0xffff0000u), ok = (vi)(x == x);
    return vf_bits_((r & ok) | (vf_bits(vf_set1(__builtin_nanf(""))) & ~ok));
}
static inline void vf_sum_4(const vf *a, float *sum) { /* sum[k] = vf_sum(a[k]) for four vectors */
    for (int k = 0; k < 4; k++) sum[k] = vf_sum(a[k]);
}
static inline void vf_load2_bf16(const uint16_t *p, vf *a, vf *b) {
    *a = vf_load_bf16(p);
    *b = vf_load_bf16(p + VL);
}
static inline void vf_stream(float *p, vf a) { vf_store(p, a); } /* a store that bypasses the caches on ISAs that can */
static inline void vf_stream_end(void) {}
