/* Four float lanes, AArch64 Advanced SIMD (which every AArch64 CPU has). */
#include <arm_neon.h>
#include <string.h>

#define VL 4
typedef float32x4_t vf;

static inline vf vf_set1(float s) { return vdupq_n_f32(s); }
static inline vf vf_zero(void) { return vdupq_n_f32(0.0f); }
#define vf_keep(v) __asm__("" : "+w"(v)) /* makes gcc keep v in a register */
static inline vf vf_load(const float *p) { return vld1q_f32(p); }
static inline void vf_store(float *p, vf a) { vst1q_f32(p, a); }
static inline vf vf_load_n(const float *p, int n) {
    float t[VL] = {0};
    memcpy(t, p, n * sizeof *t);
    return vf_load(t);
}
static inline void vf_store_n(float *p, vf a, int n) {
    float t[VL];
    vf_store(t, a);
    memcpy(p, t, n * sizeof *t);
}
static inline vf vf_add(vf a, vf b) { return vaddq_f32(a, b); }
static inline vf vf_sub(vf a, vf b) { return vsubq_f32(a, b); }
static inline vf vf_mul(vf a, vf b) { return vmulq_f32(a, b); }
static inline vf vf_div(vf a, vf b) { return vdivq_f32(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
static inline vf vf_max(vf a, vf b) { return vmaxq_f32(a, b); }
static inline vf vf_min(vf a, vf b) { return vminq_f32(a, b); }
static inline vf vf_abs(vf a) { return vabsq_f32(a); }
static inline vf vf_copysign(vf mag, vf sgn) { return vbslq_f32(vdupq_n_u32(0x80000000u), sgn, mag); }
static inline vf vf_select_lt(vf a, vf b, vf yes, vf no) { return vbslq_f32(vcltq_f32(a, b), yes, no); }
static inline vf vf_round(vf a) { return vrndnq_f32(a); }
static inline vf vf_pow2(vf n) { /* 2**n for integral n in [-126, 127] */
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23));
}
static inline vf vf_ldexp(vf a, vf n) { /* a * 2**n for integral n in [-252, 254], rounded once where a is normal */
    const vf half = vf_round(vf_mul(n, vf_set1(0.5f)));
    return vf_mul(vf_mul(a, vf_pow2(half)), vf_pow2(vf_sub(n, half)));
}
static inline vf vf_low_to_exponent(vf a) { return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(a), 23)); } /* bits << 23 */
static inline float vf_most(vf a) { return vmaxvq_f32(a); }
static inline float vf_sum(vf a) {
    float32x2_t s = vadd_f32(vget_low_f32(a), vget_high_f32(a));
    return vget_lane_f32(vpadd_f32(s, s), 0);
}
static inline vf vf_load_bf16(const uint16_t *p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
static inline vf vf_load_bf16_n(const uint16_t *p, int n) {
    uint16_t t[VL] = {0};
    memcpy(t, p, n * sizeof *t);
    return vf_load_bf16(t);
}
static inline vf vf_load_i8(const int8_t *p) {
    int8_t t[8] = {p[0], p[1], p[2], p[3], 0, 0, 0, 0};
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vld1_s8(t)))));
}
static inline vf vf_load_i8_n(const int8_t *p, int n) {
    int8_t t[VL] = {0};
    memcpy(t, p, n);
    return vf_load_i8(t);
}

/* For matrix products: 32-bit integer lanes, and one dot step per storage type (gemm.inc explains units and steps). */
typedef int32x4_t vi;
#define TILE_ROWS 12 /* tokens of a tile: 12 x 2 accumulators, 2 vectors of weights, 1 token use 27 of 32 registers */
#define UNSIGNED_TOKENS 0

static inline vi vi_set1(int32_t s) { return vdupq_n_s32(s); }
static inline vi vi_load(const void *p) { return vreinterpretq_s32_u8(vld1q_u8(p)); }
static inline void vi_store(void *p, vi a) { vst1q_u8(p, vreinterpretq_u8_s32(a)); }
static inline vi vi_max(vi a, vi b) { return vmaxq_s32(a, b); }
static inline int32_t vi_most(vi a) { return vmaxvq_s32(a); }
static inline vi vf_bits(vf a) { return vreinterpretq_s32_f32(a); }
static inline vf vi_to_vf(vi a) { return vcvtq_f32_s32(a); }
static inline vf vi_as_vf(vi a) { return vreinterpretq_f32_s32(a); }
static inline vi vi_and(vi a, vi b) { return vandq_s32(a, b); }

/* Store lane u of the four rows at to[u * stride + 0..3]. */
static inline void vf_store_transposed4(float *to, size_t stride, vf r0, vf r1, vf r2, vf r3) {
    const float32x4x2_t a = vtrnq_f32(r0, r1), b = vtrnq_f32(r2, r3);
    vst1q_f32(to, vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0])));
    vst1q_f32(to + stride, vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1])));
    vst1q_f32(to + 2 * stride, vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0])));
    vst1q_f32(to + 3 * stride, vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1])));
}

/* to[t] = values row[0][at + t], row[1][at + t], ..., row[VL - 1][at + t], for t < 4. */
static inline void vf_load_transposed4(const float *const row[VL], int at, vf to[4]) {
    float t[4 * VL];
    vf_store_transposed4(t, VL, vf_load(row[0] + at), vf_load(row[1] + at), vf_load(row[2] + at), vf_load(row[3] + at));
    for (int i = 0; i < 4; i++) to[i] = vf_load(t + i * VL);
}

/* 4 VL floats times s, rounded to the nearest integers (ties to even) in [-128, 127], four in each lane. */
static inline vi vi_quantise(const float *p, vf s) {
    const int16x4_t a = vmovn_s32(vcvtnq_s32_f32(vf_mul(vf_load(p), s))), b = vmovn_s32(vcvtnq_s32_f32(vf_mul(vf_load(p + 4), s)));
    const int16x4_t c = vmovn_s32(vcvtnq_s32_f32(vf_mul(vf_load(p + 8), s))), d = vmovn_s32(vcvtnq_s32_f32(vf_mul(vf_load(p + 12), s)));
    return vreinterpretq_s32_s8(vcombine_s8(vmovn_s16(vcombine_s16(a, b)), vmovn_s16(vcombine_s16(c, d))));
}

#ifdef INT8_DOTS /* SDOT */
#define I8_STEPS 1
static inline vi vi_dot_i8(vi a, vi b, vi sum) { return vdotq_s32(sum, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b)); }
static inline vi vi_first_i8(vi a) { return a; } /* int8, as vi_dot_i8 takes its first factor */
#else
#define I8_STEPS 2
static inline vi vi_even_i8(vi a) { /* bytes 0 and 2 of a lane, as int16 */
    return vreinterpretq_s32_s16(vshrq_n_s16(vshlq_n_s16(vreinterpretq_s16_s32(a), 8), 8));
}
static inline vi vi_odd_i8(vi a) { return vreinterpretq_s32_s16(vshrq_n_s16(vreinterpretq_s16_s32(a), 8)); } /* bytes 1 and 3 */
static inline vi vi_dot_i16(vi a, vi b, vi sum) {
    const int16x8_t x = vreinterpretq_s16_s32(a), y = vreinterpretq_s16_s32(b);
    return vaddq_s32(sum, vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y)));
}
#endif
#ifdef BF16_DOTS /* BFDOT, which adds a pair of products to a sum, and BFCVTN, which rounds to the nearest bf16, ties to even */
#define BF16_STEPS 1
static inline bfloat16x8_t vi_as_bf16(vi a) { return vreinterpretq_bf16_s32(a); }
static inline vf vf_dot_bf16(vi a, vi b, vf sum) { return vbfdotq_f32(sum, vi_as_bf16(a), vi_as_bf16(b)); }
static inline uint16x4_t vf_to_half(vf a) { return vreinterpret_u16_bf16(vcvt_bf16_f32(a)); }
static inline vi vi_zip_u16(uint16x4_t a, uint16x4_t b) { return vreinterpretq_s32_u16(vcombine_u16(vzip1_u16(a, b), vzip2_u16(a, b))); }
static inline vi vi_join_bf16(vf a, vf b) { /* VL bf16 from a, then VL from b */
    return vreinterpretq_s32_bf16(vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(a), b));
}
static inline vi vi_zip_bf16(vf a, vf b) { return vi_zip_u16(vf_to_half(a), vf_to_half(b)); } /* a0 b0 a1 b1 ... */
static inline vi vi_zip_half(const uint16_t *p, const uint16_t *q, int n, int m) { /* p0 q0 p1 q1 ..., zeros past n of p, m of q */
    uint16_t a[VL] = {0}, b[VL] = {0};
    memcpy(a, p, n * sizeof *a);
    memcpy(b, q, m * sizeof *b);
    return vi_zip_u16(vld1_u16(a), vld1_u16(b));
}
static inline void vf_store_half(uint16_t *p, vf a, int n) { /* the first n lanes as bf16 */
    const uint16x4_t half = vf_to_half(a);
    memcpy(p, &half, n >= VL ? sizeof half : n * sizeof *p);
}
static inline vi vi_pairs_bf16(const float *p) { return vi_join_bf16(vf_load(p), vf_load(p + VL)); } /* 2 VL floats as pairs of bf16 */
#else
#define BF16_STEPS 2
static inline vf vf_low_bf16(const void *p) { return vi_as_vf(vshlq_n_s32(vi_load(p), 16)); } /* the even values of 2 VL bf16 */
static inline vf vf_high_bf16(const void *p) { return vi_as_vf(vi_and(vi_load(p), vi_set1(-65536))); }
static inline vf vf_fma_in_turn(vf a, vf b, vf c) { return vf_fma(a, b, c); }
static inline vf vf_round_bf16(vf x) { /* rounded to the nearest bf16, ties to even; a nan stays a nan */
    const uint32x4_t b = vreinterpretq_u32_f32(x), up = vaddq_u32(vandq_u32(vshrq_n_u32(b, 16), vdupq_n_u32(1)), vdupq_n_u32(0x7fff));
    const vf r = vreinterpretq_f32_u32(vandq_u32(vaddq_u32(b, up), vdupq_n_u32(0xffff0000u)));
    return vbslq_f32(vceqq_f32(x, x), r, vdupq_n_f32(__builtin_nanf("")));
}
#endif
#ifdef MATRIX_INSTRUCTIONS /* two rows times two columns: SMMLA, and BFMMLA with BF16_DOTS (mmla.inc) */
static inline vi vi_pairs_i8(vi a, vi b, vi sum) { return vmmlaq_s32(sum, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b)); }
#ifdef BF16_DOTS
static inline vf vf_pairs_bf16(vi a, vi b, vf sum) { return vbfmmlaq_f32(sum, vi_as_bf16(a), vi_as_bf16(b)); }
#endif
static inline vi vi_first_row(vi a, vi b) { return vreinterpretq_s32_s64(vzip1q_s64(vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b))); }
static inline vi vi_second_row(vi a, vi b) { return vreinterpretq_s32_s64(vzip2q_s64(vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b))); }
#endif
static inline void vf_sum_4(const vf *a, float *sum) { /* sum[k] = vf_sum(a[k]) for four vectors */
    for (int k = 0; k < 4; k++) sum[k] = vf_sum(a[k]);
}
static inline void vf_load2_bf16(const uint16_t *p, vf *a, vf *b) {
    *a = vf_load_bf16(p);
    *b = vf_load_bf16(p + VL);
}
static inline void vf_stream(float *p, vf a) { vf_store(p, a); } /* a store that bypasses the caches on ISAs that can */
static inline void vf_stream_end(void) {}
