"""Attention on a GPU, and what it does with positions: the kernels `attention` and `rotate`, and products with relative rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import ShapeError
from ...weights import Relative, Scores
from .kernels import Changed, Kernels
from .launch import address
from .memory import Memory
from .session import Sessions
from .shared import WARPS

# struct Scores of attention.cu. A test compares the two.
ADDRESSES, SIZES = ("distances", "rows", "by_query", "by_key"), ("window", "reach", "width")
SCORES_STRUCT = np.dtype([(a, np.uint64) for a in ADDRESSES] + [(s, np.int32) for s in SIZES], align=True)
RELATIVE_BYTES = 128 << 20  # bytes: products with relative rows that are in memory at a time; heads are computed in so many turns


class Attention:
    """The attention of one model on one GPU. heads: its number of heads."""

    def __init__(self, kernels: Kernels, memory: Memory, sessions: Sessions, heads: int) -> None:
        self._kernels, self._memory, self._sessions, self._heads = kernels, memory, sessions, heads
        self._queries, self._threads, self._shared = kernels.constants(None, "attention_launch", 3)

    def _bounds(self, cu_seqlens: Any, keys: Any = None) -> Any:
        """The keys (T, 2) of each token on the GPU: `cu_seqlens` itself, or made from a host's array (B + 1,) and `keys`."""
        if cu_seqlens.ndim == 2:
            return cu_seqlens
        lengths, ends = np.diff(cu_seqlens), cu_seqlens[1:] if keys is None else cu_seqlens[:-1] + keys
        return self._memory.send("bounds of texts", np.stack([np.repeat(c, lengths) for c in (cu_seqlens[:-1], ends)], 1))

    @staticmethod
    def _changed(scores: Scores) -> Changed:
        """What the kernel for these scores is compiled with."""
        return Changed(scores.window is not None, scores.causal, scores.distances is not None, scores.relative is not None)

    def load(self, scores: Scores) -> None:
        """Compile the kernel for these scores now, so that the first call does not."""
        if any(changed := self._changed(scores)):
            self._kernels.constants(changed, "attention_launch", 3)

    def rotate(self, qkv: Any, cu_seqlens: Any, table: Any) -> None:
        """As Reference.rotate."""
        self._kernels.launch("rotate", -(-len(qkv) // WARPS), WARPS * 32, qkv, self._bounds(cu_seqlens), table, len(qkv))

    def attend(self, qkv: Any, cu_seqlens: Any, scores: Scores, keys: Any, out: Any) -> None:
        """As Reference.attention. Raises ShapeError for keys with a window."""
        if keys is not None and scores.window is not None:
            raise ShapeError(f"the window is {scores.window} where keys are given, expected none: a query might see no key")
        changed = self._changed(scores)
        bounds, factor = self._bounds(cu_seqlens, keys), (out.shape[1] // self._heads) ** -0.5
        if not any(changed):
            self._launch(self._heads, qkv, bounds, len(out), out, factor)
            return
        argument = np.zeros((), SCORES_STRUCT)
        if scores.window is not None:
            argument["window"] = scores.window
        if scores.distances is not None:
            argument["distances"], argument["reach"] = address(scores.distances), scores.distances.shape[1] // 2 + 1
        if scores.relative is None:
            self._launch(self._heads, qkv, bounds, len(out), out, factor, argument, variant=changed)
        else:
            self._attend_relatively(qkv, bounds, scores.relative, out, factor, argument, changed)

    def _attend_relatively(
        self, qkv: Any, bounds: Any, relative: Relative, out: Any, factor: float, argument: np.ndarray, changed: Changed
    ) -> None:
        """attend() with products of each query and key with the relative rows, of a few heads at a time. It changes `argument`."""
        session, (width, hidden) = self._sessions.current(), relative.keys.shape
        tokens, size = len(qkv), hidden // self._heads
        argument["rows"], argument["reach"], argument["width"] = address(relative.rows), len(relative.rows) // 2 + 1, width
        step = min(self._heads, max(1, RELATIVE_BYTES // (2 * tokens * width * qkv.dtype.itemsize)))
        distances = int(argument["distances"])
        for begin in range(0, self._heads, step):
            count, at = min(step, self._heads - begin), begin * size
            product = session.head_product(tokens, width, count, size, (3 * hidden, hidden), factor)
            for name, first, table in (("by_query", at, relative.keys), ("by_key", hidden + at, relative.queries)):
                products = session.take(name, count, tokens, width)
                product(qkv[:, first:], table[:, at:], None, None, products, session.workspace(), session.stream.ptr)
                argument[name] = address(products)
            if distances:
                argument["distances"] = distances + 4 * begin * (2 * int(argument["reach"]) - 1)
            self._launch(count, qkv[:, at:], bounds, tokens, out[:, at:], factor, argument, variant=changed)

    def _launch(self, heads: int, qkv: Any, bounds: Any, tokens: int, out: Any, *more: Any, variant: Changed | None = None) -> None:
        """Launch the kernel for `heads` heads; qkv and out begin at the columns of the first one."""
        grid = -(-tokens // self._queries), heads
        self._kernels.launch("attention", grid, self._threads, qkv, bounds, tokens, out, *more, shared=self._shared, variant=variant)
