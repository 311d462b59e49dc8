"""The backends that this machine can test, and the tolerances of their tests."""

import fastinfer

# ISAs that differ from another in int8 products alone: the tests of those take them, others do not.
VNNI = ("cpu:avx512_vnni", "cpu:avx2_vnni", "cpu:neon_dot", "cpu:neon_i8mm")
USABLE = [name for name, why_not in fastinfer.backends.available().items() if why_not is None and name != "cpu"]
ALL = [name for name in USABLE if name not in VNNI]
# The compiled backends, by device and by ISA. Their answers are bitwise independent of batch, order and threads.
COMPILED = [name for name in ALL if name.startswith("cpu:")]
WITH_VNNI = [name for name in USABLE if name.startswith("cpu:")]
ISAS = [name.removeprefix("cpu:") for name in COMPILED]
# Those that multiply in bfloat16 by instructions that sum pairs: they flush denormals, and attention rounds its factors.
BFLOAT16_DOTS = ("cpu:avx512_amx", "cpu:avx512_bf16", "cpu:neon_bf16")
DTYPES = ("float32", "bfloat16", "int8")

# A logit farther from zero than this must have the same sign in float32 and in float64.
ROUTE_MARGIN = 1e-4
# Allowed difference from float64 of outputs of order 1, which are float32 sums of up to a few thousand terms.
TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}
