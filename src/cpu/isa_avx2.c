/* The kernels for x86-64 with AVX2 and FMA. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#include "kernels.h"

static int usable(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define ISA avx2
#include "simd_avx2.h"
#include "kernels.inc"

#include "table.inc"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
