"""The argument of the feedforward's kernels: struct FFF of fff.cu, which a test compares with the table here."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...weights import Norm
from .launch import address
from .weights import Trees

# Addresses, 0 for null; sizes; eps
ADDRESSES = ["x", "norm_weight", "norm_bias", "residual", "nodes", "scales", "b_in", "children", "bias", "out_norm_weight", "out_norm_bias"]
ADDRESSES += ["out", "path", "z"]
SIZES = ("tokens", "trees", "count", "add_input")
FFF_STRUCT = np.dtype([(a, np.uint64) for a in ADDRESSES] + [(s, np.int32) for s in SIZES] + [("eps", np.float32)], align=True)


def fff_argument(
    x: Any, trees: Trees, bias: Any, residual: Any, out: Any, nodes: Any, z: Any,
    norm: Norm | None, add_input: bool, out_norm: Norm | None, eps: float,
) -> np.ndarray:  # fmt: skip
    """struct FFF of the feedforward's kernels."""
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
