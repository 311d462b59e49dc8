/* The kernels for x86-64 with AVX2, FMA and AVX-VNNI: the dot instruction of int8 without AVX-512. */
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <string.h>

#include "kernels.h"

/* AVX-VNNI is bit 4 of EAX. gcc 12 and clang do not know its name in __builtin_cpu_supports alike. */
static int usable(void) {
    unsigned a, b, c, d;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1 << 4);
}

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,avxvnni"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,avxvnni")
#endif
#define ISA avx2_vnni
#define INT8_DOTS
#include "simd_avx2.h"
#include "kernels.inc"

#include "table.inc"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
