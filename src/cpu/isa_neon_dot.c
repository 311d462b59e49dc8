/* The kernels for AArch64 with the dot instructions of int8 (an option of Armv8.2, and part of 8.4). */
#if defined(__aarch64__)
#include "neon_features.h"
#endif
#if defined(__aarch64__) && NEON_DOT
#include <string.h>

#include "kernels.h"

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
#define ISA neon_dot
#define INT8_DOTS
#include "simd_neon.h"
#include "kernels.inc"

static int usable(void) { return has_dot(); }

#include "table.inc"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
