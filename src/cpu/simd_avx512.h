/* Sixteen float lanes, AVX-512 F/BW/DQ/VL. isa_avx512*.c include it inside their target pragma. */
#include <immintrin.h>

#define VL 16
typedef __m512 vf;

static inline vf vf_set1(float s) { return _mm512_set1_ps(s); }
static inline vf vf_zero(void) { return _mm512_setzero_ps(); }
#define vf_keep(v) __asm__("" : "+v"(v)) /* makes gcc keep v in a register */
static inline vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void vf_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
static inline __mmask16 vf_mask_(int n) { return (__mmask16)((1u << n) - 1); }
static inline vf vf_load_n(const float *p, int n) { return _mm512_maskz_loadu_ps(vf_mask_(n), p); }
static inline void vf_store_n(float *p, vf a, int n) { _mm512_mask_storeu_ps(p, vf_mask_(n), a); }
static inline vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
static inline vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
static inline vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static inline vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
static inline vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
static inline vf vf_abs(vf a) { return _mm512_abs_ps(a); }
static inline vf vf_copysign(vf mag, vf sgn) {
    const vf sign = _mm512_set1_ps(-0.0f);
    return _mm512_or_ps(_mm512_andnot_ps(sign, mag), _mm512_and_ps(sign, sgn));
}
static inline vf vf_select_lt(vf a, vf b, vf yes, vf no) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes); }
static inline vf vf_round(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline vf vf_pow2(vf n) { return _mm512_scalef_ps(_mm512_set1_ps(1.0f), n); } /* 2**n for integral n in [-126, 127] */
static inline vf vf_ldexp(vf a, vf n) { return _mm512_scalef_ps(a, n); }             /* a * 2**n for integral n, rounded once */
static inline vf vf_low_to_exponent(vf a) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a), 23)); } /* bits << 23 */
static inline float vf_most(vf a) { return _mm512_reduce_max_ps(a); }
static inline float vf_sum(vf a) { return _mm512_reduce_add_ps(a); }
static inline vf vf_load_bf16(const uint16_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
static inline vf vf_load_bf16_n(const uint16_t *p, int n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(vf_mask_(n), p)), 16));
}
static inline vf vf_load_i8(const int8_t *p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p))); }
static inline vf vf_load_i8_n(const int8_t *p, int n) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(vf_mask_(n), p)));
}

/* For matrix products: 32-bit integer lanes, and one dot step per storage type (gemm.inc explains units and steps). */
typedef __m512i vi;
#define TILE_ROWS 12 /* tokens of a tile: 12 x 2 accumulators, 2 vectors of weights, 1 token use 27 of 32 registers */

static inline vi vi_set1(int32_t s) { return _mm512_set1_epi32(s); }
static inline vi vi_load(const void *p) { return _mm512_loadu_si512(p); }
static inline void vi_store(void *p, vi a) { _mm512_storeu_si512(p, a); }
static inline vi vi_max(vi a, vi b) { return _mm512_max_epi32(a, b); }
static inline int32_t vi_most(vi a) { return _mm512_reduce_max_epi32(a); }
static inline vi vf_bits(vf a) { return _mm512_castps_si512(a); }
static inline vf vi_to_vf(vi a) { return _mm512_cvtepi32_ps(a); }
static inline vf vi_as_vf(vi a) { return _mm512_castsi512_ps(a); }
static inline vi vi_and(vi a, vi b) { return _mm512_and_si512(a, b); }

/* Store lane u of the four rows at to[u * stride + 0..3]. */
static inline void vf_store_transposed4(float *to, size_t stride, vf r0, vf r1, vf r2, vf r3) {
    const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(r0, r1)), b = _mm512_castps_pd(_mm512_unpackhi_ps(r0, r1));
    const __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(r2, r3)), d = _mm512_castps_pd(_mm512_unpackhi_ps(r2, r3));
    const vf q[4] = {_mm512_castpd_ps(_mm512_unpacklo_pd(a, c)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, c)),
                     _mm512_castpd_ps(_mm512_unpacklo_pd(b, d)), _mm512_castpd_ps(_mm512_unpackhi_pd(b, d))};
    for (int i = 0; i < 4; i++) {
        _mm_storeu_ps(to + i * stride, _mm512_castps512_ps128(q[i]));
        _mm_storeu_ps(to + (4 + i) * stride, _mm512_extractf32x4_ps(q[i], 1));
        _mm_storeu_ps(to + (8 + i) * stride, _mm512_extractf32x4_ps(q[i], 2));
        _mm_storeu_ps(to + (12 + i) * stride, _mm512_extractf32x4_ps(q[i], 3));
    }
}

/* to[t] = values row[0][at + t], row[1][at + t], ..., row[VL - 1][at + t], for t < 4. */
static inline void vf_load_transposed4(const float *const row[VL], int at, vf to[4]) {
    for (int i = 0; i < 4; i++) { /* part j of a vector gets four values of row i + 4 j, by a load that fills the part alone */
        to[i] = _mm512_castps128_ps512(_mm_loadu_ps(row[i] + at));
        to[i] = _mm512_mask_broadcast_f32x4(to[i], 0x00f0, _mm_loadu_ps(row[i + 4] + at));
        to[i] = _mm512_mask_broadcast_f32x4(to[i], 0x0f00, _mm_loadu_ps(row[i + 8] + at));
        to[i] = _mm512_mask_broadcast_f32x4(to[i], 0xf000, _mm_loadu_ps(row[i + 12] + at));
    }
    const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(to[0], to[1])), b = _mm512_castps_pd(_mm512_unpackhi_ps(to[0], to[1]));
    const __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(to[2], to[3])), d = _mm512_castps_pd(_mm512_unpackhi_ps(to[2], to[3]));
    to[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    to[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    to[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    to[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
}

/* 4 VL floats times s, rounded to the nearest integers (ties to even) in [-128, 127], four in each lane. */
static inline vi vi_quantise(const float *p, vf s) {
    const __m512i a = _mm512_cvtps_epi32(vf_mul(vf_load(p), s)), b = _mm512_cvtps_epi32(vf_mul(vf_load(p + 16), s));
    const __m512i c = _mm512_cvtps_epi32(vf_mul(vf_load(p + 32), s)), d = _mm512_cvtps_epi32(vf_mul(vf_load(p + 48), s));
    const __m512i packed = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d)); /* within each 128 bits */
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), packed);
}

#ifdef INT8_DOTS /* VPDPBUSD */
#define I8_STEPS 1
#define UNSIGNED_TOKENS 1
static inline vi vi_dot_i8(vi a, vi b, vi sum) { return _mm512_dpbusd_epi32(sum, a, b); } /* a: 0..255, b: -128..127 */
static inline vi vi_sub(vi a, vi b) { return _mm512_sub_epi32(a, b); }
static inline vi vi_first_i8(vi a) { return _mm512_xor_si512(a, _mm512_set1_epi8(-128)); } /* int8 to uint8: 128 is added */
#else
#define I8_STEPS 2
#define UNSIGNED_TOKENS 0
static inline vi vi_even_i8(vi a) { return _mm512_srai_epi16(_mm512_slli_epi16(a, 8), 8); } /* bytes 0 and 2 of a lane, as int16 */
static inline vi vi_odd_i8(vi a) { return _mm512_srai_epi16(a, 8); }                        /* bytes 1 and 3 */
static inline vi vi_dot_i16(vi a, vi b, vi sum) {
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
    __asm__("" : "+v"(sum)); /* else gcc reassociates the sums of a tile and spills registers */
    return sum;
}
#endif
#ifdef BF16_DOTS /* VDPBF16PS */
#define BF16_STEPS 1
static inline vf vf_dot_bf16(vi a, vi b, vf sum) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
static inline vi vi_join_bf16(vf a, vf b) { return (vi)_mm512_cvtne2ps_pbh(b, a); } /* VL bf16 from a, then VL from b */
static inline vi vi_zip_bf16(vf a, vf b) {                                          /* a0 b0 a1 b1 ... */
    const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(a)), high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(b));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}
static inline vi vi_zip_half(const uint16_t *p, const uint16_t *q, int n, int m) { /* p0 q0 p1 q1 ..., zeros past n of p, m of q */
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(vf_mask_(n), p));
    return _mm512_or_si512(low, _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(vf_mask_(m), q)), 16));
}
static inline void vf_store_half(uint16_t *p, vf a, int n) { /* the first n lanes, rounded to the nearest bf16, ties to even */
    _mm256_mask_storeu_epi16(p, vf_mask_(n), (__m256i)_mm512_cvtneps_pbh(a));
}
static inline vi vi_pairs_bf16(const float *p) { return vi_join_bf16(vf_load(p), vf_load(p + VL)); } /* 2 VL floats as pairs of bf16 */
#else
#define BF16_STEPS 2
static inline vf vf_low_bf16(const void *p) { return vi_as_vf(_mm512_slli_epi32(vi_load(p), 16)); } /* the even values of 2 VL bf16 */
static inline vf vf_high_bf16(const void *p) { return vi_as_vf(vi_and(vi_load(p), vi_set1(-65536))); }
static inline vf vf_fma_in_turn(vf a, vf b, vf c) { return vf_fma(a, b, c); }
static inline vf vf_round_bf16(vf x) { /* rounded to the nearest bf16, ties to even; a nan stays a nan */
    const vi b = vf_bits(x), up = _mm512_add_epi32(_mm512_and_si512(_mm512_srli_epi32(b, 16), vi_set1(1)), vi_set1(0x7fff));
    const vf r = vi_as_vf(vi_and(_mm512_add_epi32(b, up), vi_set1(-65536)));
    return _mm512_mask_mov_ps(r, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_ps(__builtin_nanf("")));
}
#endif
static inline void vf_sum_4(const vf *a, float *sum) { /* sum[k] = vf_sum(a[k]) for four vectors, with the same order of additions */
    const __m512 ab_lo = _mm512_shuffle_f32x4(a[0], a[1], 0x44), ab_hi = _mm512_shuffle_f32x4(a[0], a[1], 0xee);
    const __m512 cd_lo = _mm512_shuffle_f32x4(a[2], a[3], 0x44), cd_hi = _mm512_shuffle_f32x4(a[2], a[3], 0xee);
    const __m512 ab = _mm512_add_ps(ab_hi, ab_lo), cd = _mm512_add_ps(cd_hi, cd_lo); /* 128-bit parts: a a b b, c c d d */
    const __m512 s = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0xdd), _mm512_shuffle_f32x4(ab, cd, 0x88));
    const __m512 t = _mm512_add_ps(s, _mm512_permute_ps(s, 0x4e)), u = _mm512_add_ps(t, _mm512_permute_ps(t, 0xb1));
    const __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm_storeu_ps(sum, _mm512_castps512_ps128(_mm512_permutexvar_ps(first, u)));
}
/* Two vectors from one load: each shuffle moves 16 words to the upper halves of 16 floats. */
static inline void vf_load2_bf16(const uint16_t *p, vf *a, vf *b) {
    const __m512i w = _mm512_loadu_si512(p);
    const __m512i lo =
        _mm512_set_epi16(15, 0, 14, 0, 13, 0, 12, 0, 11, 0, 10, 0, 9, 0, 8, 0, 7, 0, 6, 0, 5, 0, 4, 0, 3, 0, 2, 0, 1, 0, 0, 0);
    *a = _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, lo, w));
    *b = _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, _mm512_add_epi16(lo, _mm512_set1_epi16(16)), w));
}
static inline void vf_stream(float *p, vf a) { _mm512_stream_ps(p, a); } /* a store that bypasses the caches; p is 64-byte aligned */
static inline void vf_stream_end(void) { _mm_sfence(); }
