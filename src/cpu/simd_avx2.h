/* Eight float lanes, AVX2 + FMA. isa_avx2.c includes it inside its target pragma. */
#include <immintrin.h>
#include <string.h>

#define VL 8
typedef __m256 vf;

static inline vf vf_set1(float s) { return _mm256_set1_ps(s); }
static inline vf vf_zero(void) { return _mm256_setzero_ps(); }
#define vf_keep(v) __asm__("" : "+x"(v)) /* makes gcc keep v in a register */
static inline vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void vf_store(float *p, vf a) { _mm256_storeu_ps(p, a); }
static inline __m256i vf_mask_(int n) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)); }
static inline vf vf_load_n(const float *p, int n) { return _mm256_maskload_ps(p, vf_mask_(n)); }
static inline void vf_store_n(float *p, vf a, int n) { _mm256_maskstore_ps(p, vf_mask_(n), a); }
static inline vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
static inline vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
static inline vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
static inline vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
static inline vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
static inline vf vf_abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
static inline vf vf_copysign(vf mag, vf sgn) {
    const vf sign = _mm256_set1_ps(-0.0f);
    return _mm256_or_ps(_mm256_andnot_ps(sign, mag), _mm256_and_ps(sign, sgn));
}
static inline vf vf_select_lt(vf a, vf b, vf yes, vf no) { return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
static inline vf vf_round(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline vf vf_pow2(vf n) { /* 2**n for integral n in [-126, 127] */
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
static inline vf vf_ldexp(vf a, vf n) { /* a * 2**n for integral n in [-252, 254], rounded once where a is normal */
    const vf half = vf_round(vf_mul(n, vf_set1(0.5f)));
    return vf_mul(vf_mul(a, vf_pow2(half)), vf_pow2(vf_sub(n, half)));
}
static inline vf vf_low_to_exponent(vf a) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a), 23)); } /* bits << 23 */
static inline float vf_most(vf a) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
}
static inline float vf_sum(vf a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
static inline vf vf_load_bf16(const uint16_t *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
static inline vf vf_load_bf16_n(const uint16_t *p, int n) {
    uint16_t t[VL] = {0};
    memcpy(t, p, n * sizeof *t);
    return vf_load_bf16(t);
}
static inline vf vf_load_i8(const int8_t *p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p))); }
static inline vf vf_load_i8_n(const int8_t *p, int n) {
    int8_t t[VL] = {0};
    memcpy(t, p, n);
    return vf_load_i8(t);
}

/* For matrix products: 32-bit integer lanes, and one dot step per storage type (gemm.inc explains units and steps). */
typedef __m256i vi;
#define TILE_ROWS 6 /* tokens of a tile: 6 x 2 accumulators, 2 vectors of weights, 1 token use 15 of 16 registers */
#define BF16_STEPS 2

static inline vi vi_set1(int32_t s) { return _mm256_set1_epi32(s); }
static inline vi vi_load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline void vi_store(void *p, vi a) { _mm256_storeu_si256((__m256i *)p, a); }
static inline vi vi_max(vi a, vi b) { return _mm256_max_epi32(a, b); }
static inline int32_t vi_most(vi a) {
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1)));
}
static inline vi vf_bits(vf a) { return _mm256_castps_si256(a); }
static inline vf vi_to_vf(vi a) { return _mm256_cvtepi32_ps(a); }
static inline vf vi_as_vf(vi a) { return _mm256_castsi256_ps(a); }
static inline vi vi_and(vi a, vi b) { return _mm256_and_si256(a, b); }

/* Store lane u of the four rows at to[u * stride + 0..3]. */
static inline void vf_store_transposed4(float *to, size_t stride, vf r0, vf r1, vf r2, vf r3) {
    const __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps(r0, r1)), b = _mm256_castps_pd(_mm256_unpackhi_ps(r0, r1));
    const __m256d c = _mm256_castps_pd(_mm256_unpacklo_ps(r2, r3)), d = _mm256_castps_pd(_mm256_unpackhi_ps(r2, r3));
    const vf q[4] = {_mm256_castpd_ps(_mm256_unpacklo_pd(a, c)), _mm256_castpd_ps(_mm256_unpackhi_pd(a, c)),
                     _mm256_castpd_ps(_mm256_unpacklo_pd(b, d)), _mm256_castpd_ps(_mm256_unpackhi_pd(b, d))};
    for (int i = 0; i < 4; i++) {
        _mm_storeu_ps(to + i * stride, _mm256_castps256_ps128(q[i]));
        _mm_storeu_ps(to + (4 + i) * stride, _mm256_extractf128_ps(q[i], 1));
    }
}

/* to[t] = values row[0][at + t], row[1][at + t], ..., row[VL - 1][at + t], for t < 4. */
static inline void vf_load_transposed4(const float *const row[VL], int at, vf to[4]) {
    for (int i = 0; i < 4; i++)
        to[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(row[i] + at)), _mm_loadu_ps(row[i + 4] + at), 1);
    const __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps(to[0], to[1])), b = _mm256_castps_pd(_mm256_unpackhi_ps(to[0], to[1]));
    const __m256d c = _mm256_castps_pd(_mm256_unpacklo_ps(to[2], to[3])), d = _mm256_castps_pd(_mm256_unpackhi_ps(to[2], to[3]));
    to[0] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, c));
    to[1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, c));
    to[2] = _mm256_castpd_ps(_mm256_unpacklo_pd(b, d));
    to[3] = _mm256_castpd_ps(_mm256_unpackhi_pd(b, d));
}

/* 4 VL floats times s, rounded to the nearest integers (ties to even) in [-128, 127], four in each lane. */
static inline vi vi_quantise(const float *p, vf s) {
    const __m256i a = _mm256_cvtps_epi32(vf_mul(vf_load(p), s)), b = _mm256_cvtps_epi32(vf_mul(vf_load(p + 8), s));
    const __m256i c = _mm256_cvtps_epi32(vf_mul(vf_load(p + 16), s)), d = _mm256_cvtps_epi32(vf_mul(vf_load(p + 24), s));
    const __m256i q = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d)); /* lanes a b c d a b c d */
    return _mm256_permutevar8x32_epi32(q, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

#ifdef INT8_DOTS /* VPDPBUSD of AVX-VNNI */
#define I8_STEPS 1
#define UNSIGNED_TOKENS 1
static inline vi vi_dot_i8(vi a, vi b, vi sum) { return _mm256_dpbusd_avx_epi32(sum, a, b); } /* a: 0..255, b: -128..127 */
static inline vi vi_sub(vi a, vi b) { return _mm256_sub_epi32(a, b); }
static inline vi vi_first_i8(vi a) { return _mm256_xor_si256(a, _mm256_set1_epi8(-128)); } /* int8 to uint8: 128 is added */
#else
#define I8_STEPS 2
#define UNSIGNED_TOKENS 0
static inline vi vi_even_i8(vi a) { return _mm256_srai_epi16(_mm256_slli_epi16(a, 8), 8); } /* bytes 0 and 2 of a lane, as int16 */
static inline vi vi_odd_i8(vi a) { return _mm256_srai_epi16(a, 8); }                        /* bytes 1 and 3 */
static inline vi vi_dot_i16(vi a, vi b, vi sum) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
    __asm__("" : "+x"(sum)); /* else gcc reassociates the sums of a tile and spills registers */
    return sum;
}
#endif
static inline vf vf_low_bf16(const void *p) { return vi_as_vf(_mm256_slli_epi32(vi_load(p), 16)); } /* the even values of 2 VL bf16 */
static inline vf vf_high_bf16(const void *p) { /* the odd values; a mask would need a register */
    return vi_as_vf(_mm256_blend_epi16(vi_load(p), _mm256_setzero_si256(), 0x55));
}
static inline vf vf_fma_in_turn(vf a, vf b,
                                vf c) { /* the assembly keeps the FMAs of a tile in order: gcc would reorder them and spill registers */
    c = vf_fma(a, b, c);
    __asm__("" : "+x"(c));
    return c;
}
static inline vf vf_round_bf16(vf x) { /* rounded to the nearest bf16, ties to even; a nan stays a nan */
    const vi b = vf_bits(x), up = _mm256_add_epi32(vi_and(_mm256_srli_epi32(b, 16), vi_set1(1)), vi_set1(0x7fff));
    const vf r = vi_as_vf(vi_and(_mm256_add_epi32(b, up), vi_set1(-65536)));
    return _mm256_blendv_ps(r, _mm256_set1_ps(__builtin_nanf("")), _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}
static inline void vf_sum_4(const vf *a, float *sum) { /* sum[k] = vf_sum(a[k]) for four vectors */
    for (int k = 0; k < 4; k++) sum[k] = vf_sum(a[k]);
}
static inline void vf_load2_bf16(const uint16_t *p, vf *a, vf *b) {
    *a = vf_load_bf16(p);
    *b = vf_load_bf16(p + VL);
}
static inline void vf_stream(float *p, vf a) { _mm256_stream_ps(p, a); } /* a store that bypasses the caches; p is 32-byte aligned */
static inline void vf_stream_end(void) { _mm_sfence(); }
