/* Four float lanes through GCC/Clang vector extensions: the baseline of every target, no FMA. */
#include <math.h>
#include <string.h>

#define VL 4
typedef float vf __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t vi_ __attribute__((vector_size(16)));

static inline vf vf_set1(float s) { return (vf){s, s, s, s}; }
static inline vf vf_zero(void) { return vf_set1(0.0f); }
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
static inline vf vf_max(vf a, vf b) { return vf_select_lt(a, b, b, a); }
static inline vf vf_min(vf a, vf b) { return vf_select_lt(b, a, b, a); }
static inline vf vf_abs(vf a) { return vf_bits_((vi_)a & 0x7fffffff); }
static inline vf vf_copysign(vf mag, vf sgn) { return vf_bits_(((vi_)mag & 0x7fffffff) | ((vi_)sgn & ~0x7fffffff)); }
static inline vf vf_round(vf a) { /* to nearest even, |a| < 2**22 */
    const vf magic = vf_set1(12582912.0f);
    return (a + magic) - magic;
}
static inline vf vf_pow2(vf n) { /* 2**n for integral n in [-126, 127] */
    vi_ i = __builtin_convertvector(n, vi_);
    return vf_bits_((i + 127) << 23);
}
static inline float vf_sum(vf a) { return (a[0] + a[2]) + (a[1] + a[3]); }
static inline vf vf_load_bf16(const uint16_t *p) {
    vi_ t = {(int32_t)((uint32_t)p[0] << 16), (int32_t)((uint32_t)p[1] << 16), (int32_t)((uint32_t)p[2] << 16), (int32_t)((uint32_t)p[3] << 16)};
    return vf_bits_(t);
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
