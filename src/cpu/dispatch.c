/* The list of the ISAs that are compiled for this architecture, best first. */
#include "kernels.h"

extern const fi_isa fi_isa_portable;
#if defined(__x86_64__)
extern const fi_isa fi_isa_avx2, fi_isa_avx2_vnni, fi_isa_avx512, fi_isa_avx512_vnni, fi_isa_avx512_bf16, fi_isa_avx512_amx;
#elif defined(__aarch64__)
extern const fi_isa fi_isa_neon, fi_isa_neon_dot;
#endif

const fi_isa *const fi_isas[] = {
#if defined(__x86_64__)
    &fi_isa_avx512_amx,  &fi_isa_avx512_bf16,
    &fi_isa_avx512_vnni, &fi_isa_avx512,
    &fi_isa_avx2_vnni,   &fi_isa_avx2,
#elif defined(__aarch64__)
    &fi_isa_neon_dot, &fi_isa_neon,
#endif
    &fi_isa_portable,    NULL,
};
