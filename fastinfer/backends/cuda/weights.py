"""Weights in the form that kernels take: in the compute dtype, padded to whole vectors, and some trees also as matrix products."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ...checkpoint.tensor import Tensor
from ...config import tree_nodes
from ...weights import Relative
from .kernels import Walk
from .memory import Memory

VECTOR_BYTES = 16  # bytes: a kernel loads so many at once


class Matrix(NamedTuple):
    """A dense weight: data (up(outputs), up(inputs)), padded with zeros, and the number of outputs without padding."""

    data: Any
    outputs: int


class Products(NamedTuple):
    """Trees as two matrix products: first (trees * slots, D), bias (trees * slots), second (D, trees * slots).

    At depth 0 each tree has one slot, and the layer is dense. Else slots = 2 << depth, and fff_mask adds the bias, which is float32.
    """

    first: Matrix
    bias: Any
    second: Matrix


class Trees(NamedTuple):
    """nodes (P, N, 2, D); scales (P, N, 2) float32 for int8 rows; b_in (P, N) float32; children (P, N, 2) int32; depth: decisions."""

    nodes: Any
    scales: Any
    b_in: Any
    children: Any
    depth: int
    products: Products | None

    @property
    def walk(self) -> Walk:
        """The walk for which the kernels of these trees are compiled."""
        return Walk(self.depth, self.children is not None)


def up(size: int) -> int:
    """`size` rounded up to a multiple of 8, because loads and tensor cores take 8 values of two bytes at once."""
    return -(-size // 8) * 8


def as_bits(values: np.ndarray, act: str) -> np.ndarray:
    """float32 values as the bits of the dtype `act`."""
    return Tensor(values, "float32").to(act).data


class Packing:
    """Packs weights and sends them to the GPU. act: the compute dtype; int8_rows: whether trees have int8 rows; hidden: columns."""

    def __init__(self, memory: Memory, act: str, int8_rows: bool, hidden: int) -> None:
        self._memory, self._act, self._int8_rows, self.width = memory, act, int8_rows, up(hidden)

    def vector(self, values: np.ndarray) -> Any:
        """float32 rows on the GPU in the compute dtype, each padded with zeros."""
        padded = np.zeros((*values.shape[:-1], up(values.shape[-1])), np.float32)
        padded[..., : values.shape[-1]] = values
        return self._memory.send("a weight", as_bits(padded, self._act))

    def matrix(self, weight: np.ndarray) -> Matrix:
        """The Matrix of a dense weight (outputs, inputs) float32."""
        outputs, inputs = weight.shape
        padded = np.zeros((up(outputs), up(inputs)), np.float32)
        padded[:outputs, :inputs] = weight
        return Matrix(self._memory.send("a dense weight", as_bits(padded, self._act)), outputs)

    def relative(self, keys: np.ndarray, queries: np.ndarray, rows: np.ndarray) -> Relative:
        """The Relative of tables (2 * buckets, D) float32, with rows of zeros behind them up to a multiple of 8."""
        both = np.zeros((2, up(len(keys)), keys.shape[1]), np.float32)
        both[:, : len(keys)] = keys, queries
        return Relative(self.vector(both[0]), self.vector(both[1]), self._memory.send("a table of positions", rows))

    def trees(self, nodes: Tensor, b_in: np.ndarray | None, children: np.ndarray | None, depth: int) -> Trees:
        """The Trees of a layer. Parameters are those of Reference.trees."""
        if self._int8_rows:
            nodes = nodes.to("int8")
        rows, scales = (nodes.data, nodes.scale) if self._int8_rows else (nodes.float32(), None)
        count, _, hidden = rows.shape[1:]
        products = None
        if children is None and count == tree_nodes(depth) and self._pays_as_products(len(rows), depth):
            products = self._as_products(nodes.float32(), b_in, depth)
        padded = np.zeros((*rows.shape[:3], self.width), rows.dtype)
        padded[..., :hidden] = rows
        sent = self._memory.send("the trees of a layer", padded if self._int8_rows else as_bits(padded, self._act))
        small = [None if a is None else self._memory.send("the trees of a layer", a) for a in (scales, b_in, children)]
        return Trees(sent, small[0], small[1], small[2], depth, products)

    def _pays_as_products(self, trees: int, depth: int) -> bool:
        """Whether trees are also packed as products. They need 8 trees, and fff_mask spreads a tree over at most one warp."""
        itemsize = 4 if self._act == "float32" else 2
        return trees >= 8 and 2 << depth <= 32 * (VECTOR_BYTES // itemsize)

    def _as_products(self, nodes: np.ndarray, b_in: np.ndarray | None, depth: int) -> Products:
        """The Products of full trees. A tree has a slot per node and, unless depth is 0, an empty one, so that slots are a power of two."""
        trees, count, _, hidden = nodes.shape
        slots = 2 << depth if depth else 1
        rows, bias = np.zeros((trees, slots, 2, hidden), np.float32), np.zeros((trees, slots), np.float32)
        rows[:, :count] = nodes
        if b_in is not None:
            bias[:, :count] = b_in
        first, second = rows[:, :, 0].reshape(-1, hidden), rows[:, :, 1].reshape(-1, hidden).T
        offset = self._memory.send("the trees of a layer", bias.reshape(-1)) if depth else self.vector(bias.reshape(-1))
        return Products(self.matrix(first), offset, self.matrix(second))
