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
    """None: pooling has no weights."""
    return {}


def forward(ops: Reference, x: Any, batch: PackedBatch, head: Embed, weights: Weights) -> Any:
    """(T, D) -> (B, D), pooled as the checkpoint says."""
    return pool(ops, x, batch, head.pooling)


def normalized(vectors: np.ndarray) -> np.ndarray:
    """Each row at length 1; a row of zeros stays one."""
    units: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return units
