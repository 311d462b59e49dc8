/* The kernels for x86-64 with AVX-512 F, BW, DQ, VL, BF16 and VNNI. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#include "kernels.h"

static int usable(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
}

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni"))), \
                             apply_to = function)
#else
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni")
#endif
#define ISA avx512_bf16
#define BF16_DOTS
#define INT8_DOTS
#include "simd_avx512.h"
#include "kernels.inc"

#include "table.inc"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
