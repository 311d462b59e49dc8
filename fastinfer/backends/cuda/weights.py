"""Weights in the form that kernels take: in the compute dtype, padded to whole vectors, and some trees also as matrix products."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ...checkpoint.tensor import Tensor
from ...config import tree_nodes
from ...weights import Form, Relative
from .kernels import Walk
from .memory import Memory
from .shared import VECTOR_BYTES


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
    """nodes (P, N, 2, D); scales (P, N, 2) float32 for int8 rows; b_in (P, N) float32; children (P, N, 2) int32; depth: decisions.

    walk  for which the kernels of these trees are compiled
    """

    nodes: Any
    scales: Any
    b_in: Any
    children: Any
    depth: int
    products: Products | None
    walk: Walk


class Leaves(NamedTuple):
    """Trees whose leaves are blocks. The rows of blocks have the compute dtype also where those of nodes are int8.

    nodes       the trees of the nodes that decide, or None at depth 0
    depth       decisions, after which a walk may reach a block
    rows_in     (P, blocks * leaf, D); rows_out has the same shape
    b_in        (P, blocks * leaf) float32 or None
    b_leaf      (P, blocks, D) float32 or None
    """

    nodes: Trees | None
    depth: int
    rows_in: Any
    rows_out: Any
    b_in: Any
    b_leaf: Any
    blocks: int
    leaf: int
    activation: str

    @property
    def trees(self) -> int:
        """P, the trees of the layer."""
        return len(self.rows_in)


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

    def trees(self, nodes: Tensor, b_in: np.ndarray | None, children: np.ndarray | None, depth: int, form: Form) -> Trees | Leaves:
        """The trees of a layer. Parameters are those of Reference.trees."""
        if self._int8_rows:
            nodes = nodes.to("int8")
        return self._leaves(nodes, b_in, children, depth, form) if form.blocks else self._nodes(nodes, b_in, children, depth, form)

    def _leaves(self, nodes: Tensor, b_in: np.ndarray | None, children: np.ndarray | None, depth: int, form: Form) -> Leaves:
        """The Leaves of trees with blocks."""
        count = nodes.data.shape[1] - form.blocks * form.leaf
        # Full trees reach their blocks behind the last node; the walk of others says itself where it ends.
        levels = depth + 1 if children is not None else min(depth + 1, count.bit_length())
        inner = None
        if count:
            upper = Tensor(nodes.data[:, :count], nodes.dtype, None if nodes.scale is None else nodes.scale[:, :count])
            inner = self._nodes(upper, None if b_in is None else b_in[:, :count], children, levels - 1, form)
        lower = Tensor(nodes.data[:, count:], nodes.dtype, None if nodes.scale is None else nodes.scale[:, count:]).float32()
        rows_in, rows_out = (self.vector(lower[:, :, side]) for side in (0, 1))
        b_leaf, biases = None, None if b_in is None else b_in[:, count:]
        if form.b_leaf is not None:
            b_leaf = np.zeros((*form.b_leaf.shape[:2], self.width), np.float32)
            b_leaf[:, :, : form.b_leaf.shape[2]] = form.b_leaf
        small = [None if a is None else self._memory.send("the trees of a layer", a) for a in (biases, b_leaf)]
        return Leaves(inner, depth, rows_in, rows_out, small[0], small[1], form.blocks, form.leaf, form.activation)

    def _nodes(self, nodes: Tensor, b_in: np.ndarray | None, children: np.ndarray | None, depth: int, form: Form) -> Trees:
        """The Trees of nodes alone."""
        rows, scales = (nodes.data, nodes.scale) if self._int8_rows else (nodes.float32(), None)
        count, _, hidden = rows.shape[1:]
        products = None
        if children is None and count == tree_nodes(depth) and self._pays_as_products(len(rows), depth, form.silent):
            products = self._as_products(nodes.float32(), b_in, depth)
        padded = np.zeros((*rows.shape[:3], self.width), rows.dtype)
        padded[..., :hidden] = rows
        sent = self._memory.send("the trees of a layer", padded if self._int8_rows else as_bits(padded, self._act))
        small = [None if a is None else self._memory.send("the trees of a layer", a) for a in (scales, b_in, children)]
        walk = Walk(depth, children is not None, form.activation, form.blocks > 0, form.silent)
        return Trees(sent, small[0], small[1], small[2], depth, products, walk)

    def _pays_as_products(self, trees: int, depth: int, silent: bool) -> bool:
        """Whether trees are also packed as products. They are 8, or silent (fff_reach); a tree has at most a warp in fff_mask."""
        itemsize = 4 if self._act == "float32" else 2
        return (trees >= 8 or (silent and depth > 0)) and 2 << depth <= 32 * (VECTOR_BYTES // itemsize)

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
