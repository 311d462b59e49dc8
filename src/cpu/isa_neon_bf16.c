/* The kernels for AArch64 with the dot and matrix instructions of int8 and bfloat16 (options of Armv8.2, and parts of 8.6). */
#if defined(__aarch64__)
#include "neon_features.h"
#endif
#if defined(__aarch64__) && NEON_I8MM
#include <string.h>

#include "kernels.h"

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("dotprod,i8mm,bf16"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod+i8mm+bf16")
#endif
#define ISA neon_bf16
#define BF16_DOTS
#define INT8_DOTS
#define MATRIX_INSTRUCTIONS /* SMMLA and BFMMLA */
#include "simd_neon.h"
#include "kernels.inc"

static int usable(void) { return has_dot() && has_i8mm() && has_bf16(); }

#include "table.inc"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
