/* AArch64, whose Advanced SIMD is always there. */
#if defined(__aarch64__)
#include <string.h>

#include "kernels.h"

#define ISA neon
#include "simd_neon.h"
#include "math.inc"
#include "gemm.inc"
#include "norm.inc"
#include "attention.inc"
#include "fff.inc"
#include "probe.inc"

static int usable(void) { return 1; }

#include "table.inc"
#endif
