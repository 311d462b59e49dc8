"""Trees in NumPy: the walk of tokens, and the sum over the neurons that they visit."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..activations import ACTIVATIONS
from ..weights import NODES, Form

GATHER_BYTES = 32 << 20  # bytes: rows of a tree that add_trees gathers at a time


class Trees(NamedTuple):
    """The trees of a layer: nodes (P, N, 2, D); b_in (P, N) or None; children (P, I, 2) int32 or None; depth: decisions of a walk.

    Of the N neurons, the first I are nodes, the others those of the blocks that `form` has.
    """

    nodes: np.ndarray
    b_in: np.ndarray | None
    children: np.ndarray | None
    depth: int
    form: Form = NODES

    @property
    def node_count(self) -> int:
        """I, the nodes per tree; a block's number is I or more."""
        return int(self.nodes.shape[1]) - self.form.blocks * self.form.leaf

    def block(self, x: np.ndarray, tree: int, block: int) -> np.ndarray:
        """What a block adds for x (T, D): (T, D)."""
        begin = self.node_count + block * self.form.leaf
        rows = slice(begin, begin + self.form.leaf)
        z = x @ self.nodes[tree, rows, 0].T
        if self.b_in is not None:
            z += self.b_in[tree, rows]
        y: np.ndarray = ACTIVATIONS[self.form.activation](z) @ self.nodes[tree, rows, 1]
        return y if self.form.b_leaf is None else y + self.form.b_leaf[tree, block]


def add_trees(
    x: np.ndarray,
    trees: Trees,
    bias: np.ndarray | None,
    residual: np.ndarray | None,
    out: np.ndarray,
    nodes: np.ndarray | None,
    z: np.ndarray | None,
) -> None:
    """Reference.fff, whose arguments these are."""
    w_in, w_out, form = trees.nodes[:, :, 0], trees.nodes[:, :, 1], trees.form
    step = max(1, GATHER_BYTES // (4 * x.shape[1]))
    for begin in range(0, len(x), step):
        part = slice(begin, min(begin + step, len(x)))
        y = np.zeros((part.stop - begin, x.shape[1]), np.float32)
        for p in range(len(w_in)):
            tokens, at, visits = np.arange(len(y)), np.zeros(len(y), np.int32), []
            reached = np.full(len(y), -1)  # the block of each token
            for level in range(trees.depth + 1):
                for record, value, stopped in ((nodes, at, -1), (z, 0, 0)):
                    if record is not None:
                        record[part, p, level] = stopped
                        record[begin + tokens, p, level] = value
                ends = at >= trees.node_count
                reached[tokens[ends]] = at[ends] - trees.node_count
                tokens, at = tokens[~ends], at[~ends]
                logit = np.einsum("td,td->t", x[part][tokens], w_in[p, at]) + (0 if trees.b_in is None else trees.b_in[p, at])
                visits.append((tokens, at, logit))
                if z is not None:
                    z[begin + tokens, p, level] = logit
                right = logit > 0
                at = (2 * at + 1 + right).astype(np.int32) if trees.children is None else trees.children[p, at, right.astype(np.int8)]
                tokens, at = tokens[at >= 0], at[at >= 0]
            strengths = ACTIVATIONS[form.activation](np.concatenate([logit for _, _, logit in visits]))  # at once: a call takes 20 us
            for tokens, at, _ in visits:
                if not form.silent:
                    y[tokens] += strengths[: len(at), None] * w_out[p, at]
                strengths = strengths[len(at) :]
            for block in np.unique(reached[reached >= 0]):
                y[reached == block] += trees.block(x[part][reached == block], p, block)
        y += 0 if bias is None else bias
        y += 0 if residual is None else residual[part]
        out[part] = y
