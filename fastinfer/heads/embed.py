"""Embeddings: one vector per text, and how alike vectors are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..batch import PackedBatch
from ..config import Config, Embed, Project
from ..weights import Weights
from .common import Shapes, linear, linear_tensors

if TYPE_CHECKING:
    from ..backends.reference import Reference

__all__ = ["LOGITS", "finished", "forward", "normalized", "scores", "tensors"]

LOGITS = None


def tensors(head: Embed, config: Config) -> Shapes:
    """The tensors of the linear layers after pooling; pooling has no weights."""
    spec: Shapes = {}
    widths = iter(head.widths(config.hidden))
    width = next(widths)
    for i, layer in enumerate(head.layers):
        if isinstance(layer, Project):
            made = linear_tensors(f"layers.{i}", layer.width, width)
            spec |= {name: shape for name, shape in made.items() if layer.bias or not name.endswith(".bias")}
            width = next(widths)
    return spec


def forward(ops: Reference, x: Any, batch: PackedBatch, head: Embed, weights: Weights, skip: int = 0) -> Any:
    """One vector per text, (B, M), from hidden states (T, D): pooled and put through the layers, not cut or scaled as finished() does.

    skip  tokens at the beginning of each text that are not pooled
    """
    hidden = x.shape[1]
    vectors = ops.empty(len(batch), len(head.poolings) * hidden, dtype=np.float32)
    for i, kind in enumerate(head.poolings):
        ops.pool(x, batch.cu_seqlens, kind, skip=skip, out=vectors[:, i * hidden : (i + 1) * hidden])
    for i, layer in enumerate(head.layers):
        if isinstance(layer, Project):
            vectors = linear(ops, vectors, weights.tasks, f"embed.layers.{i}", layer.activation)
        else:
            units = ops.empty(*vectors.shape)
            ops.unit(vectors, out=units)
            vectors = units
    return vectors


def finished(vectors: np.ndarray, head: Embed, normalize: bool | None, dim: int | None) -> np.ndarray:
    """The vectors (B, M) of forward() as embed() gives them, with `dim` numbers each.

    normalize  scale to length 1; None: as the head says
    dim        None: as the head says. A head scales before it cuts, so only then may a vector that it cuts be shorter than 1
    """
    unit = head.normalize if normalize is None else normalize
    if unit and normalize is None and dim is None and head.dim is not None:
        return normalized(vectors)[:, : head.dim]
    vectors = vectors[:, : head.dim if dim is None else dim]
    return normalized(vectors) if unit else vectors


def squares(vectors: np.ndarray) -> np.ndarray:
    """The squares of the lengths of vectors (B, M): (B, 1)."""
    found: np.ndarray = np.add.reduce(vectors * vectors, axis=1, keepdims=True)  # np.linalg.norm() takes three times as long for one row
    return found


def normalized(vectors: np.ndarray, lengths: np.ndarray | None = None) -> np.ndarray:
    """Each row scaled to length 1. A row of zeros stays zero. lengths (B, 1): what squares() gave for them."""
    lengths = np.sqrt(squares(vectors) if lengths is None else lengths)
    units: np.ndarray = vectors / np.maximum(lengths, np.float32(1e-12))
    return units


def scores(query: np.ndarray, documents: np.ndarray, kind: str) -> np.ndarray:
    """How alike the vectors documents (B, M) are to the vector query (M,), as the head's similarity `kind` says: larger is more alike.

    For the cosine, vectors have length 1.
    """
    if kind in ("cosine", "dot"):
        # The order of a BLAS's sums would depend on the number of rows.
        products: np.ndarray = np.einsum("bd,d->b", documents, query)
        return products
    apart = documents - query
    distances: np.ndarray = np.linalg.norm(apart, axis=1) if kind == "euclidean" else np.abs(apart).sum(axis=1)
    return -distances
