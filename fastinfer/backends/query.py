"""Queries on the CPU: the ops of a forward pass of a few tokens, collected once for many calls."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..batch import PackedBatch
from ..weights import Weights
from ..workspace import Workspace

if TYPE_CHECKING:
    from .cpu import CPU

__all__ = ["Buffers", "Query", "collect", "serves"]

# tokens: the most of a batch whose ops are collected once. Collecting took 390 of the 1,600 us of 10 tokens (fastminilm, an Intel Xeon with
# AMX), and matters less the more tokens there are.
QUERY_TOKENS = 64


class Room(PackedBatch):
    """A batch whose arrays are filled anew for each query."""

    token_types: np.ndarray

    @functools.cached_property
    def positions(self) -> np.ndarray:
        return super().positions


class Query(NamedTuple):
    """The ops of a forward pass of up to N tokens, and the arrays that they read and write.

    ends  (N + 1,) int32, with the batch's cu_seqlens at its beginning
    x     (N, D): the final hidden states
    """

    weights: Weights
    batch: Room
    ends: np.ndarray
    program: Any
    x: np.ndarray

    def run(self, batch: PackedBatch, threads: int) -> np.ndarray:
        """The final hidden states (T, D) of a batch, a view of x."""
        tokens, texts = len(batch.ids), len(batch)
        self.batch.ids[:tokens] = batch.ids
        self.batch.positions[:tokens] = batch.positions
        self.batch.token_types[:tokens] = 0 if batch.token_types is None else batch.token_types
        self.ends[: texts + 1] = batch.cu_seqlens
        self.program.run_first(tokens, texts, threads)
        return self.x[:tokens]


class Buffers(Workspace):
    """The buffers of a call. The Query that it has taken from its backend goes back there when it ends, for the next call."""

    def __init__(self, ops: CPU) -> None:
        super().__init__()
        self._ops = ops
        self._query: Query | None = None

    def query(self, weights: Weights) -> Query:
        """The Query of these weights. No other call has it."""
        if self._query is None or self._query.weights is not weights:
            self._query = self._ops.take_query(weights)
        return self._query

    def close(self) -> None:
        if self._query is not None:
            self._ops.spare = self._query
            self._query = None


def collect(weights: Weights, program: Any, encode: Callable[[Weights, PackedBatch, Workspace], np.ndarray]) -> Query:
    """A new Query. encode: the forward pass, by ops that `program` collects."""
    tokens = most_tokens(weights)
    ids = np.full(tokens, 1 if weights.embedding.skip == 0 else 0, np.int32)
    ends = np.array([0, tokens, *[0] * (tokens - 1)], np.int32)
    batch = Room(ids, ends[:2], np.zeros_like(ids))
    return Query(weights, batch, ends, program, encode(weights, batch, Workspace()))


def most_tokens(weights: Weights) -> int:
    """The most tokens of a batch that a Query serves."""
    return min(QUERY_TOKENS, weights.positions)


def serves(weights: Weights, batch: PackedBatch) -> bool:
    """Whether a Query serves a batch: a small one without keys, whose tokens all have positions."""
    skip = weights.embedding.skip
    return 0 < len(batch.ids) <= most_tokens(weights) and batch.keys is None and (skip is None or not (batch.ids == skip).any())
