"""Embeddings: one vector per text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..batch import PackedBatch
from ..config import Config, Embed
from ..weights import Weights
from .common import Shapes, pool

if TYPE_CHECKING:
    from ..backends.reference import Reference

__all__ = ["LOGITS", "forward", "normalized", "tensors"]

LOGITS = None


def tensors(head: Embed, config: Config) -> Shapes:
    """An empty dict, because pooling has no weights."""
    return {}


def forward(ops: Reference, x: Any, batch: PackedBatch, head: Embed, weights: Weights) -> Any:
    """One vector per text, (B, D), from hidden states (T, D), pooled as the checkpoint says."""
    return pool(ops, x, batch, head.pooling)


def normalized(vectors: np.ndarray) -> np.ndarray:
    """Each row scaled to length 1. A row of zeros stays zero."""
    units: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return units
