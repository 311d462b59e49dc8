"""The backends that this machine can test, and what is asked of each."""

import fastinfer

ALL = [name for name, why_not in fastinfer.backends.available().items() if why_not is None and name != "cpu"]
# The compiled ones, whose answers are bitwise independent of batch, order and threads; by device, and by the name of their ISA.
COMPILED = [name for name in ALL if name.startswith("cpu:")]
ISAS = [name.removeprefix("cpu:") for name in COMPILED]
DTYPES = ("float32", "bfloat16", "int8")

# A logit this far from zero may not change its sign between float32 and float64.
ROUTE_MARGIN = 1e-4
# Against float64, outputs of order 1: float32 sums of up to a few thousand terms.
TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}
