/* The kernels for x86-64 with AMX (tiles of int8 and bfloat16) beside AVX-512 F, BW, DQ, VL, BF16 and VNNI. */
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <string.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernels.h"

/* Linux gives a process the tiles' 8 KB of state a thread only if it asks for them; every thread has them then. */
static int tiles_permitted(void) {
#if defined(__linux__) && defined(SYS_arch_prctl)
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    return 0;
#endif
}

static int usable(void) {
    enum { BF16 = 1 << 22, TILE = 1 << 24, INT8 = 1 << 25 }; /* of EDX */
    unsigned a, b, c, d;
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni") &&
           __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & BF16) && (d & TILE) && (d & INT8) && tiles_permitted();
}

#ifdef __clang__
#pragma clang attribute push(                                                                                                \
    __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,amx-tile,amx-int8,amx-bf16"))), \
    apply_to = function)
#else
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,amx-tile,amx-int8,amx-bf16")
#endif
#define ISA avx512_amx
#define BF16_DOTS
#define INT8_DOTS
#define TILE_INSTRUCTIONS /* TDPBF16PS and TDPBUSD */
#include "simd_avx512.h"
#include "kernels.inc"

#include "table.inc"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
