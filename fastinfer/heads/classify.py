"""Classification and regression: a score per class of each text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..batch import PackedBatch
from ..config import Classify, Config
from ..weights import Weights
from .common import Shapes, linear, linear_tensors, pool, sigmoid, softmax

if TYPE_CHECKING:
    from ..backends.reference import Reference

__all__ = ["LOGITS", "decode", "forward", "tensors"]

LOGITS = "text"


def tensors(head: Classify, config: Config) -> Shapes:
    """The tensors of the dense layers on the pooled vector, and of the map to K classes."""
    spec: Shapes = {}
    width = config.hidden
    for i, layer in enumerate(head.layers):
        spec |= linear_tensors(f"layers.{i}", layer.width, width)
        width = layer.width
    return spec | linear_tensors("out", len(head.labels), width)


def forward(ops: Reference, x: Any, batch: PackedBatch, head: Classify, weights: Weights) -> Any:
    """The logits (B, K) from hidden states (T, D)."""
    h = pool(ops, x, batch, head.pooling)
    for i, layer in enumerate(head.layers):
        h = linear(ops, h, weights.tasks, f"classify.layers.{i}", layer.activation)
    return linear(ops, h, weights.tasks, "classify.out")


def decode(logits: np.ndarray, head: Classify, top_k: int | None) -> list[Any]:
    """Per text a list of (label, score), best first, from logits (B, K). A head of one label gives a float per text."""
    scores = logits if head.output == "identity" else {"softmax": softmax, "sigmoid": sigmoid}[head.output](logits)
    if len(head.labels) == 1:
        return [float(value) for value in scores[:, 0]]
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return [[(head.labels[k], float(row[k])) for k in best] for row, best in zip(scores, order, strict=True)]
