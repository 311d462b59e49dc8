"""Values that the kernels of src/cuda and the host's code share: dtypes, sizes of blocks, numbers of choices.

Each table is written only here, and defines() passes it to the compiler.
"""

from __future__ import annotations

import numpy as np

from ...activations import NUMBERS

# {dtype of activations: NumPy's dtype of its bits}, {dtype of activations: the macro that selects it in the kernels}.
STORAGE = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
MACROS = {"float32": "ACT_FLOAT", "float16": "ACT_HALF", "bfloat16": "ACT_BFLOAT16"}

MAX_HIDDEN = 4096  # columns: a warp holds a row in registers
WARPS = 8  # warps of a block in which each warp has a token
FEW_WARPS = 2  # warps of a block in fff_tree_few: small blocks spread evenly over the multiprocessors
BLOCK_COLUMNS = 64  # columns of a product of a block of neurons that a block of threads computes
VECTOR_BYTES = 16  # bytes: a kernel loads so many at once
PRODUCT_WARPS = 8  # warps of a block in products.cu
PRODUCTS = ((1, 1), (1, 2), (1, 3), (1, 6), (2, 3), (2, 6), (2, 9), (2, 12))  # (R, N) of the kernels of products.cu

# A kernel gets an activation or a pooling as its index here.
ACTIVATIONS = tuple(NUMBERS)
POOLINGS = ("cls", "mean", "max", "lse", "lasttoken", "weightedmean", "sqrtmean")


def defines() -> tuple[str, ...]:
    """The compiler options that pass these tables to the kernels."""
    values = {
        "WARPS": WARPS,
        "FEW_WARPS": FEW_WARPS,
        "PRODUCT_WARPS": PRODUCT_WARPS,
        "BLOCK_COLUMNS": BLOCK_COLUMNS,
        "PRODUCTS": " ".join(f"PRODUCT{p}" for p in PRODUCTS),
    }
    values |= {f"KIND_{name}".upper(): place for place, name in enumerate(ACTIVATIONS)}
    values |= {f"POOL_{name}".upper(): place for place, name in enumerate(POOLINGS)}
    return tuple(f"-D{name}={value}" for name, value in values.items())
