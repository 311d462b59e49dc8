"""What the kernels of src/cuda and the host's code agree on: dtypes, sizes of blocks, numbers of choices.

Each table stands here once: defines() hands it to the compiler.
"""

from __future__ import annotations

import numpy as np

from ...activations import NUMBERS

# The dtype of activations: NumPy's dtype of its bits, and the macro by which the kernels are told.
STORAGE = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
MACROS = {"float32": "ACT_FLOAT", "float16": "ACT_HALF", "bfloat16": "ACT_BFLOAT16"}

MAX_HIDDEN = 4096  # a warp holds a row in registers
WARPS = 8  # of a block in which each warp has a token
FEW_WARPS = 2  # the same in fff_tree_few: small blocks spread evenly over the multiprocessors
PRODUCT_WARPS = 8  # of a block of products.cu
PRODUCTS = ((1, 1), (1, 2), (1, 3), (1, 6), (2, 3), (2, 6), (2, 9), (2, 12))  # (R, N) of the kernels of products.cu

# A kernel is told an activation or a pooling by its place here.
ACTIVATIONS = tuple(NUMBERS)
POOLINGS = ("cls", "mean", "max", "lse")


def defines() -> tuple[str, ...]:
    """The options of the compiler that tell the kernels these tables."""
    values = {"WARPS": WARPS, "FEW_WARPS": FEW_WARPS, "PRODUCT_WARPS": PRODUCT_WARPS, "PRODUCTS": " ".join(f"PRODUCT{p}" for p in PRODUCTS)}
    values |= {f"KIND_{name}".upper(): place for place, name in enumerate(ACTIVATIONS)}
    values |= {f"POOL_{name}".upper(): place for place, name in enumerate(POOLINGS)}
    return tuple(f"-D{name}={value}" for name, value in values.items())
