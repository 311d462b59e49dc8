"""Layers and tokens with random weights, for tests and benchmarks."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from ..config import tree_nodes

# (trees, depth) of every row of the paper's table (arXiv 2311.10770); each has about 4,095 neurons
PAPER_SHAPES = (
    (3072, 0), (1536, 1), (512, 2), (256, 3), (128, 4), (64, 5), (32, 6), (16, 7), (8, 8), (4, 9), (2, 10), (1, 11),
)  # fmt: skip

Paths: TypeAlias = Literal["balanced", "skewed", "left", "right", "ties"]
Arrays: TypeAlias = tuple[np.ndarray, np.ndarray | None, np.ndarray]  # of an FFF: w_in (P, N, D), b_in (P, N), w_out (P, N, D)
DenseArrays: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]  # of a dense layer: w1 (W, D), b1 (W,), w2 (D, W)
DENSE_WIDTH = 3072  # neurons of the dense feedforward that the paper compares with


class FFFCase(NamedTuple):
    """The sizes of an FFF and of its input: T tokens of width D, P trees of a depth, `leaf` neurons at each leaf.

    paths  "balanced": each node sends about half of its tokens to the right, at random; "skewed": most tokens
           turn right at every node, so few leaves get most tokens; "left", "right": all tokens take one path;
           "ties": every third node gives z == 0 for every token
    """

    trees: int
    depth: int
    hidden: int
    tokens: int
    paths: Paths = "balanced"
    bias: bool = True
    leaf: int = 1

    @property
    def shape(self) -> str:
        """The shape as it is asked for: 1x11, or 1x6x64 with 64 neurons at each leaf."""
        return f"{self.trees}x{self.depth}" + (f"x{self.leaf}" if self.leaf > 1 else "")

    @property
    def nodes(self) -> int:
        """The nodes of a tree; with leaf > 1 those that decide."""
        return (1 << self.depth) - 1 if self.leaf > 1 else tree_nodes(self.depth)

    @property
    def used(self) -> int:
        """Neurons that a token uses."""
        return self.trees * (self.depth + self.leaf)

    def __str__(self) -> str:
        return f"{self.shape}-D{self.hidden}-T{self.tokens}-{self.paths}" + ("" if self.bias else "-nobias")

    def build(self, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
        """x (T, D), w_in (P, N, D), b_in (P, N) or None, w_out (P, N, D), all float32. Logits are nearly normal."""
        rng = np.random.default_rng(seed)
        shape = (self.trees, (1 << self.depth) - 1 + (self.leaf << self.depth), self.hidden)
        x = rng.standard_normal((self.tokens, self.hidden), np.float32)
        w_in = rng.standard_normal(shape, np.float32) / np.float32(self.hidden**0.5)
        w_out = rng.standard_normal(shape, np.float32) / np.float32(self.used**0.5)
        shift = {"balanced": 0.0, "skewed": 1.5, "left": -50.0, "right": 50.0, "ties": 0.0}[self.paths]
        b_in = (rng.standard_normal(shape[:2], np.float32) * np.float32(0.1) + np.float32(shift)) if self.bias else None
        if self.paths == "ties":
            w_in[:, ::3] = 0
            if b_in is not None:
                b_in[:, ::3] = 0
        return x, w_in, b_in, w_out


def dense_weights(hidden: int, width: int = DENSE_WIDTH) -> DenseArrays:
    """w1 (W, D), b1 (W,), w2 (D, W) of a random dense layer."""
    rng = np.random.default_rng(1)
    w1 = rng.standard_normal((width, hidden), np.float32) / np.float32(hidden**0.5)
    w2 = rng.standard_normal((hidden, width), np.float32) / np.float32(width**0.5)
    return w1, rng.standard_normal(width, np.float32) * np.float32(0.1), w2
