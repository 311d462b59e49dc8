"""Tagging: each token gets a label, and labels are merged into spans of the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..batch import PackedBatch
from ..config import Config, Tag
from ..tokens import Tokens
from ..weights import Weights
from .common import Shapes, layers_tensors, linear, linear_tensors, through_layers
from .words import pieces, trim, words

if TYPE_CHECKING:
    from ..backends.reference import Reference

__all__ = ["LOGITS", "STRATEGIES", "decode", "forward", "merge", "parts", "tensors"]

LOGITS = "token"

# Each function gives the probabilities (K,) of a word from those of its tokens (tokens, K). "none" and "simple" tag tokens, not words,
# and "none" does not merge them.
STRATEGIES: dict[str, Callable[[np.ndarray], np.ndarray] | None] = {
    "none": None,
    "simple": None,
    "first": lambda scores: scores[0],
    "average": lambda scores: scores.mean(0),
    "max": lambda scores: scores[scores.max(1).argmax()],
}


def tensors(head: Tag, config: Config) -> Shapes:
    """The tensors of the layers, and of the map from them to K labels."""
    spec, width = layers_tensors(head.layers, config.hidden)
    return spec | linear_tensors("out", len(head.labels), width)


def forward(ops: Reference, x: Any, batch: PackedBatch, head: Tag, weights: Weights) -> Any:
    """The logits (T, K) from hidden states (T, D)."""
    return linear(ops, through_layers(ops, x, weights, "tag", head.layers), weights.tasks, "tag.out")


def decode(scores: np.ndarray, tokens: Tokens, text: str, head: Tag, strategy: str, marked: bool) -> list[tuple[int, int, str, float, str]]:
    """The spans (start, end, name, score, text[start:end]) of a text in reading order, from probabilities (tokens, K).

    strategy  a key of STRATEGIES
    marked    as in words()
    """
    choose = STRATEGIES[strategy]
    found = pieces(tokens, text)
    if choose is None:
        units = [(piece.start, piece.end) for piece in found]
        scores = scores[[piece.row for piece in found]]
    else:
        each = words(found, text, marked)
        units = [(word.start, word.end) for word in each]
        scores = np.stack([choose(scores[word.rows]) for word in each]) if each else scores[:0]
    if strategy == "none":
        best = zip(units, scores.argmax(1), scores.max(1, initial=0), strict=True)
        tagged = [(start, end, head.labels[k], float(score)) for (start, end), k, score in best if head.labels[k] != "O"]
    else:
        tagged = merge(scores, units, head.labels, head.scheme)
    spans = ((*trim(text, start, end), name, score) for start, end, name, score in tagged)
    return [(start, end, name, score, text[start:end]) for start, end, name, score in spans if start < end]


def merge(scores: np.ndarray, units: Sequence[tuple[int, int]], labels: Sequence[str], scheme: str) -> list[tuple[int, int, str, float]]:
    """The spans (start, end, name, score) of words or tokens that have equal tags and follow each other; spans named O are left out.

    scores (units, K) are probabilities; units has the (start, end) of each word or token, in reading order. A unit joins the one
    before it when its tag is equal and its label does not begin with B-. A span's score is the mean, its name that of its first label.
    """
    spans: list[tuple[int, int, str, float, int]] = []
    before = None
    for (start, end), best, score in zip(units, scores.argmax(1), scores.max(1, initial=0), strict=True):
        begins, tag, name = parts(labels[best], scheme)
        if tag == before and not begins:
            first, _, named, total, count = spans[-1]
            spans[-1] = (first, end, named, total + float(score), count + 1)
        else:
            spans.append((start, end, name, float(score), 1))
        before = tag
    return [(start, end, name, total / count) for start, end, name, total, count in spans if name != "O"]


def parts(label: str, scheme: str) -> tuple[bool, str, str]:
    """(whether a label begins a span, its tag, the name of a span that it begins), as config.Tag says."""
    if scheme == "io":
        return False, label, label
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label, label.split("-", 1)[-1]
