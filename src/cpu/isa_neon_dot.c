/* The kernels for AArch64 with the dot instructions of int8 (an option of Armv8.2, and part of 8.4). */
#if defined(__aarch64__)
#include <string.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif

#include "kernels.h"

#if defined(__APPLE__) /* whose Arm CPUs all have them */
enum { DOTS_EVERYWHERE = 1 };
#else
enum { DOTS_EVERYWHERE = 0 };
#endif

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
#define ISA neon_dot
#define INT8_DOTS
#include "simd_neon.h"
#include "kernels.inc"

static int usable(void) {
#if defined(__linux__)
    enum { DOT = 1 << 20 }; /* HWCAP_ASIMDDP */
    return (getauxval(AT_HWCAP) & DOT) != 0;
#else
    return DOTS_EVERYWHERE;
#endif
}

#include "table.inc"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
