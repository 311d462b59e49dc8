/* The kernels for AArch64. Every such CPU has Advanced SIMD (NEON). */
#if defined(__aarch64__)
#include <string.h>

#include "kernels.h"

#define ISA neon
#include "simd_neon.h"
#include "kernels.inc"

static int usable(void) { return 1; }

#include "table.inc"
#endif
