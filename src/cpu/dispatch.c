/* The ISAs that were compiled in, and the team that a kernel runs in. */
#include "kernels.h"

#ifdef _OPENMP
#include <omp.h>
const int fi_openmp = 1;
#else
const int fi_openmp = 0;
#endif

extern const fi_isa fi_isa_portable;
#if defined(__x86_64__)
extern const fi_isa fi_isa_avx2, fi_isa_avx512, fi_isa_avx512_bf16;
#elif defined(__aarch64__)
extern const fi_isa fi_isa_neon;
#endif

const fi_isa *const fi_isas[] = {
#if defined(__x86_64__)
    &fi_isa_avx512_bf16, &fi_isa_avx512, &fi_isa_avx2,
#elif defined(__aarch64__)
    &fi_isa_neon,
#endif
    &fi_isa_portable, NULL,
};

fi_team fi_team_here(void) {
#ifdef _OPENMP
    return (fi_team){omp_get_thread_num(), omp_get_num_threads()};
#else
    return (fi_team){0, 1};
#endif
}

void fi_barrier(void) {
#ifdef _OPENMP
#pragma omp barrier
#endif
}
