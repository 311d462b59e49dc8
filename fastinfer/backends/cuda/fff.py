"""The arguments of the FFF kernels: struct FFF of fff.cu, struct Leaves of fff_blocks.cu. A test compares them with the tables here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...weights import Norm
from .launch import address
from .shared import ACTIVATIONS
from .weights import Leaves, Trees, up

# The fields are addresses (0: null), then sizes, then eps.
ADDRESSES = ["x", "norm_weight", "norm_bias", "residual", "nodes", "scales", "b_in", "children", "bias", "out_norm_weight", "out_norm_bias"]
ADDRESSES += ["out", "path", "z", "reached"]
SIZES = ("tokens", "trees", "count", "add_input", "decisions", "blocks")
FFF_STRUCT = np.dtype([(a, np.uint64) for a in ADDRESSES] + [(s, np.int32) for s in SIZES] + [("eps", np.float32)], align=True)

LEAVES_ADDRESSES = [
    "x",
    "reached",
    "rows_in",
    "rows_out",
    "b_in",
    "b_leaf",
    "bias",
    "residual",
    "order",
    "tiles",
    "neurons",
    "few",
    "sums",
    "out",
]
LEAVES_SIZES = ("tokens", "trees", "blocks", "leaf", "stride", "most", "kind")
LEAVES_STRUCT = np.dtype([(a, np.uint64) for a in LEAVES_ADDRESSES] + [(s, np.int32) for s in LEAVES_SIZES], align=True)


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


def to_leaves(argument: np.ndarray, leaves: Leaves, reached: Any) -> None:
    """Have the walk of a struct FFF say which block each token reaches: reached (P, T) int32."""
    argument["reached"], argument["decisions"], argument["blocks"] = address(reached), leaves.depth, leaves.blocks


def leaves_argument(
    x: Any, leaves: Leaves, reached: Any, bias: Any, residual: Any, out: Any, most: int, buffers: Mapping[str, Any]
) -> np.ndarray:
    """A struct Leaves, an array () of LEAVES_STRUCT.

    reached  (P, T) int32, or None where the only block is reached
    most     tiles of a tree, at most
    buffers  the fields by name that the kernels write themselves
    """
    argument = np.zeros((), LEAVES_STRUCT)
    given = {"x": x, "reached": reached, "bias": bias, "residual": residual, "out": out}
    weights = {name: getattr(leaves, name) for name in ("rows_in", "rows_out", "b_in", "b_leaf")}
    for name, array in (given | weights | dict(buffers)).items():
        argument[name] = address(array)
    argument["tokens"], argument["most"], argument["kind"] = len(x), most, ACTIVATIONS.index(leaves.activation)
    argument["stride"] = up(leaves.leaf)
    for name in ("trees", "blocks", "leaf"):
        argument[name] = getattr(leaves, name)
    return argument
