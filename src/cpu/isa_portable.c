/* The kernels for every CPU that the compiler can target. */
#include <string.h>

#include "kernels.h"

#define ISA portable
#include "simd_portable.h"
#include "kernels.inc"

static int usable(void) { return 1; }

#include "table.inc"
