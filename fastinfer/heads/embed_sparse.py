"""Sparse embeddings (SPLADE): a weight per token of the vocabulary for each text, from the logits of the fill_mask head."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..batch import PackedBatch
from ..config import Config, FillMask
from ..retrieval import EmbedSparse
from ..weights import Weights
from . import fill_mask
from .common import Shapes

if TYPE_CHECKING:
    from ..backends.reference import Reference

__all__ = ["LOGITS", "forward", "tensors", "weights_of"]

LOGITS = None

# Bytes of logits that exist at once, per token of the device's batches: 64 MB on a CPU, 512 MB on a GPU, whatever the vocabulary.
BYTES_PER_TOKEN = 1 << 15


def tensors(head: EmbedSparse, config: Config) -> Shapes:
    """An empty dict, because the logits are those of the fill_mask head."""
    return {}


def forward(ops: Reference, x: Any, batch: PackedBatch, head: EmbedSparse, weights: Weights, decoder: FillMask) -> Any:
    """Per text and token of the vocabulary (B, V) float32, from hidden states (T, D): the largest logit; for "sum", the sum of activations.

    Tokens are decoded a part at a time, so that the logits of a whole batch never exist.
    """
    size = ops.outputs(weights.tasks["fill_mask.decoder.weight"])
    most = tokens_at_once(ops.batch_tokens, size)
    pieces = list(pieces_of(batch.cu_seqlens, most))
    if head.pooling == "sum":
        sums = np.zeros((len(batch), size), np.float32)
        for text, begin, end in pieces:  # row after row, so that the sum does not depend on the pieces
            for row in activated(ops.bring(fill_mask.forward(ops, x[begin:end], batch, decoder, weights))(), head):
                sums[text] += row
        return sums
    tops = ops.empty(len(pieces), size, dtype=np.float32)
    done = 0
    for group in groups_of(pieces, most):
        begin, bounds = group[0][1], np.array([group[0][1], *(end for _, _, end in group)], np.int32)
        part = slice(begin, int(bounds[-1]))
        ops.largest(fill_mask.forward(ops, x[part], batch, decoder, weights), bounds - begin, out=tops[done : done + len(group)])
        done += len(group)
    if len(pieces) == len(batch):
        return tops
    out = ops.empty(len(batch), size, dtype=np.float32)
    counts = np.bincount([text for text, _, _ in pieces], minlength=len(batch))
    ops.largest(tops, np.concatenate([[0], np.cumsum(counts)]).astype(np.int32), out=out)
    return out


def tokens_at_once(batch_tokens: int, vocabulary: int) -> int:
    """How many tokens are decoded at once, on a device whose batches have so many."""
    return max(1, batch_tokens * BYTES_PER_TOKEN // (4 * vocabulary))


def pieces_of(cu_seqlens: np.ndarray, most: int) -> Iterator[tuple[int, int, int]]:
    """Yield (text, first row, row after the last) of parts of texts, which have at most `most` tokens."""
    for text, (begin, end) in enumerate(itertools.pairwise(cu_seqlens.tolist())):
        for start in range(begin, end, most):
            yield text, start, min(start + most, end)


def groups_of(pieces: list[tuple[int, int, int]], most: int) -> Iterator[list[tuple[int, int, int]]]:
    """Yield neighbouring pieces in lists that have at most `most` tokens together."""
    group: list[tuple[int, int, int]] = []
    for piece in pieces:
        if group and piece[2] - group[0][1] > most:
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def activated(logits: np.ndarray, head: EmbedSparse) -> np.ndarray:
    """log(1 + relu(logits)) and, for log1p_relu, log(1 + that)."""
    values: np.ndarray = np.log1p(np.maximum(logits, 0))
    return np.log1p(values) if head.activation == "log1p_relu" else values


def weights_of(row: np.ndarray, head: EmbedSparse) -> tuple[np.ndarray, np.ndarray]:
    """(ids ascending int32, weights float32) of a text from its row (V,) of forward(). Weights of 0 are left out; NaN is kept."""
    ids = np.flatnonzero(~(row <= 0))
    values = activated(row[ids], head) if head.pooling == "max" else row[ids]
    if head.most is not None and len(ids) > head.most:
        kept = np.sort(np.argsort(-values, kind="stable")[: head.most])
        ids, values = ids[kept], values[kept]
    return ids.astype(np.int32), values
