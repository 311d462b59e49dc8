/* Any CPU that the compiler targets. */
#include <string.h>

#include "kernels.h"

#define ISA portable
#include "simd_portable.h"
#include "math.inc"
#include "gemm.inc"
#include "norm.inc"
#include "attention.inc"
#include "fff.inc"
#include "probe.inc"

static int usable(void) { return 1; }

#include "table.inc"
