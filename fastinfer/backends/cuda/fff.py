"""The argument of the FFF kernels, struct FFF of fff.cu. A test compares the struct with the table here."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...weights import Norm
from .launch import address
from .weights import Trees

# The fields are addresses (0: null), then sizes, then eps.
ADDRESSES = ["x", "norm_weight", "norm_bias", "residual", "nodes", "scales", "b_in", "children", "bias", "out_norm_weight", "out_norm_bias"]
ADDRESSES += ["out", "path", "z"]
SIZES = ("tokens", "trees", "count", "add_input")
FFF_STRUCT = np.dtype([(a, np.uint64) for a in ADDRESSES] + [(s, np.int32) for s in SIZES] + [("eps", np.float32)], align=True)


def fff_argument(
    x: Any, trees: Trees, bias: Any, residual: Any, out: Any, nodes: Any, z: Any,
    norm: Norm | None, add_input: bool, out_norm: Norm | None, eps: float,
) -> np.ndarray:  # fmt: skip
    """A struct FFF, an array () of FFF_STRUCT, for one launch. Parameters are those of FittedCUDA.fff_between_norms."""
    arrays = {
        "x": x, "residual": residual, "nodes": trees.nodes, "scales": trees.scales, "b_in": trees.b_in, "children": trees.children,
        "bias": bias, "out": out, "path": nodes, "z": z,
    }  # fmt: skip
    if norm is not None:
        arrays |= {"norm_weight": norm.weight, "norm_bias": norm.bias}
    if out_norm is not None:
        arrays |= {"out_norm_weight": out_norm.weight, "out_norm_bias": out_norm.bias}
    argument = np.zeros((), FFF_STRUCT)
    for name, array in arrays.items():
        argument[name] = address(array)
    argument["tokens"] = len(x)
    argument["trees"], argument["count"] = trees.nodes.shape[:2]
    argument["add_input"], argument["eps"] = add_input, eps
    return argument
