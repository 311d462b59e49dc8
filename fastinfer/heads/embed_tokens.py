"""Late interaction (ColBERT): a vector per token, and the score of a document by the best match of each token of a query."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from ..batch import PackedBatch
from ..config import Config
from ..retrieval import EmbedTokens
from ..weights import Weights
from .common import Shapes, linear, linear_tensors

if TYPE_CHECKING:
    from ..backends.reference import Reference

__all__ = ["LOGITS", "forward", "kept", "maxsim", "prepared", "tensors"]

LOGITS = None


def tensors(head: EmbedTokens, config: Config) -> Shapes:
    """The tensors of the linear maps of each token's state."""
    spec: Shapes = {}
    width = config.hidden
    for i, layer in enumerate(head.layers):
        made = linear_tensors(f"layers.{i}", layer.width, width)
        spec |= {name: shape for name, shape in made.items() if layer.bias or not name.endswith(".bias")}
        width = layer.width
    return spec


def forward(ops: Reference, x: Any, batch: PackedBatch, head: EmbedTokens, weights: Weights) -> Any:
    """One vector per token, (T, M), from hidden states (T, D), not scaled."""
    for i, layer in enumerate(head.layers):
        x = linear(ops, x, weights.tasks, f"embed_tokens.layers.{i}", layer.activation)
    return x if head.layers else ops.rows(x, np.arange(len(x)))  # the states are in a buffer that the next batch reuses


def prepared(batch: PackedBatch, head: EmbedTokens, query: bool) -> PackedBatch:
    """The batch with the marker of its side behind each first token, and queries filled up by the head's expansion.

    Marker and filled-up tokens have token type 0. Sources: colbert/modeling/tokenization of stanford-futuredata/ColBERT,
    ColBERT.tokenize of lightonai/pylate.
    """
    marker, expansion = (head.query if query else head.document).marker, head.expansion if query else None
    lengths = batch.lengths + (marker is not None)
    filled = lengths if expansion is None else np.maximum(lengths, expansion.tokens)
    ids = np.full(filled.sum(), 0 if expansion is None else expansion.token, np.int32)
    types = None if batch.token_types is None else np.zeros_like(ids)
    starts = np.concatenate([[0], np.cumsum(filled)])[:-1]
    places = batch.positions + (0 if marker is None else batch.positions > 0)
    at = np.repeat(starts, batch.lengths) + places
    ids[at] = batch.ids
    if types is not None:
        types[at] = batch.token_types
    if marker is not None:
        ids[starts + 1] = marker
    made = PackedBatch.from_flat(ids, filled, types)
    unseen = expansion is not None and not expansion.attend
    return dataclasses.replace(made, keys=lengths.astype(np.int32)) if unseen else made


def kept(ids: np.ndarray, head: EmbedTokens, query: bool) -> np.ndarray:
    """Which tokens have a vector in the answer, (T,) bool: all of a query, those of a document that are not skipped."""
    return np.ones(len(ids), bool) if query or not head.skip else ~np.isin(ids, head.skip)


def maxsim(query: np.ndarray, document: np.ndarray, head: EmbedTokens) -> float:
    """The sum over the tokens of a query (tokens, M) of the largest dot product with a token of a document, or the mean."""
    best = (query @ document.T).max(axis=1, initial=-np.inf)
    return float(best.mean() if head.similarity == "meanmaxsim" else best.sum())
