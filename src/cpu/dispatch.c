/* The list of the ISAs that are compiled for this architecture, best first. */
#include "kernels.h"
#if defined(__aarch64__)
#include "neon_features.h"
#endif

extern const fi_isa fi_isa_portable;
#if defined(__x86_64__)
extern const fi_isa fi_isa_avx2, fi_isa_avx2_vnni, fi_isa_avx512, fi_isa_avx512_vnni, fi_isa_avx512_bf16, fi_isa_avx512_amx;
#elif defined(__aarch64__)
extern const fi_isa fi_isa_neon, fi_isa_neon_dot, fi_isa_neon_i8mm, fi_isa_neon_bf16;
#endif

const fi_isa *const fi_isas[] = {
#if defined(__x86_64__)
    &fi_isa_avx512_amx,  &fi_isa_avx512_bf16,
    &fi_isa_avx512_vnni, &fi_isa_avx512,
    &fi_isa_avx2_vnni,   &fi_isa_avx2,
#elif defined(__aarch64__)
#if NEON_I8MM
    &fi_isa_neon_bf16, &fi_isa_neon_i8mm,
#endif
#if NEON_DOT
    &fi_isa_neon_dot,
#endif
    &fi_isa_neon,
#endif
    &fi_isa_portable,    NULL,
};
