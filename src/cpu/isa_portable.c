#include "kernels.h"
#include "simd_portable.h"
#include "math.inc"
#include "fff.inc"

static int usable(void) { return 1; }

const fi_isa fi_isa_portable = {"portable", usable, fff_workspace, fff, gelu_array};
