/* The kernels for AArch64 with the matrix instructions of int8 (an option of Armv8.2, and part of 8.6) and the dot instructions. */
#if defined(__aarch64__)
#include "neon_features.h"
#endif
#if defined(__aarch64__) && NEON_I8MM
#include <string.h>

#include "kernels.h"

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("dotprod,i8mm"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod+i8mm")
#endif
#define ISA neon_i8mm
#define INT8_DOTS
#define MATRIX_INSTRUCTIONS /* SMMLA */
#include "simd_neon.h"
#include "kernels.inc"

static int usable(void) { return has_dot() && has_i8mm(); }

#include "table.inc"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
