"""Classification and regression: a score per class of each text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..batch import PackedBatch
from ..config import Classify, Config
from ..weights import Weights
from .common import Shapes, layers_tensors, linear, linear_tensors, pool, sigmoid, softmax, through_layers

if TYPE_CHECKING:
    from ..backends.reference import Reference

__all__ = ["LOGITS", "decode", "entailment", "forward", "relevance", "shares", "tensors", "without", "zero_shot"]

LOGITS = "text"


def tensors(head: Classify, config: Config) -> Shapes:
    """The tensors of the dense layers on the pooled vector, and of the map to K classes."""
    spec, width = layers_tensors(head.layers, config.hidden)
    return spec | linear_tensors("out", len(head.labels), width)


def forward(ops: Reference, x: Any, batch: PackedBatch, head: Classify, weights: Weights) -> Any:
    """The logits (B, K) from hidden states (T, D)."""
    h = pool(ops, x, batch, head.pooling)
    return linear(ops, through_layers(ops, h, weights, "classify", head.layers), weights.tasks, "classify.out")


def decode(logits: np.ndarray, head: Classify, top_k: int | None) -> list[Any]:
    """Per text a list of (label, score), best first, from logits (B, K). A head of one label gives a float per text."""
    scores = shares(logits, head)
    if len(head.labels) == 1:
        return [float(value) for value in scores[:, 0]]
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return [[(head.labels[k], float(row[k])) for k in best] for row, best in zip(scores, order, strict=True)]


def shares(logits: np.ndarray, head: Classify) -> np.ndarray:
    """The scores (B, K) of logits (B, K), as the head's output says."""
    return logits if head.output == "identity" else {"softmax": softmax, "sigmoid": sigmoid}[head.output](logits)


def without(answers: list[Any], missing: Sequence[int]) -> list[Any]:
    """The answers with NaN in the place of a float, and an empty list in the place of labels, for the texts that were skipped."""
    for i in missing:
        answers[i] = math.nan if isinstance(answers[i], float) else []
    return answers


def relevance(logits: np.ndarray, head: Classify) -> np.ndarray:
    """The score (B,) of each pair (query, document) from the logits (B, 1) of a cross-encoder."""
    scores: np.ndarray = (sigmoid(logits) if head.output == "sigmoid" else logits)[:, 0]
    return scores


def entailment(labels: Sequence[str]) -> tuple[int, int] | None:
    """The classes (contradiction, entailment) of a model of natural language inference; None for another model.

    As in transformers' zero-shot pipeline, entailment is the first label that begins with "entail". Contradiction is the first
    class or, where that is entailment, the last one.
    """
    found = next((k for k, label in enumerate(labels) if label.lower().startswith("entail")), None)
    return None if found is None or len(labels) < 2 else (0 if found else len(labels) - 1, found)


def zero_shot(logits: np.ndarray, labels: Sequence[str], multi_label: bool, top_k: int | None) -> list[list[tuple[str, float]]]:
    """Per text a list of (label, score), best first, from the logits of contradiction and entailment (B, labels, 2).

    multi_label  True: entailment against contradiction, label by label; False: a softmax of entailment over the labels
    """
    alone = multi_label or len(labels) == 1
    scores = softmax(logits)[..., 1] if alone else softmax(logits[..., 1])
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return [[(labels[k], float(row[k])) for k in best] for row, best in zip(scores, order, strict=True)]
