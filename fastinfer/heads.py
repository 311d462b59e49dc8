"""Task heads: the tensors each declares, its forward over final hidden states, and decoding to answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .batch import PackedBatch
from .config import Config

__all__ = [
    "best_spans",
    "decode_classes",
    "forward_answer",
    "forward_classify",
    "forward_embed",
    "forward_fill_mask",
    "forward_tag",
    "merge_tags",
    "tensors",
]


def tensors(config: Config) -> dict[str, tuple[tuple[int, ...], str]]:
    """{name: (shape, family)} of all heads, names beginning with the task's."""
    spec: dict[str, tuple[tuple[int, ...], str]] = {}
    hidden, tasks = config.hidden, config.tasks

    def linear(name: str, out: int, width: int) -> None:
        spec[f"{name}.weight"] = ((out, width), "matrices")
        spec[f"{name}.bias"] = ((out,), "vector")

    if tasks.fill_mask:
        if tasks.fill_mask.transform:
            linear("fill_mask.transform", hidden, hidden)
            spec["fill_mask.norm.weight"] = ((hidden,), "vector")
            spec["fill_mask.norm.bias"] = ((hidden,), "vector")
        if not tasks.fill_mask.tied:
            spec["fill_mask.decoder.weight"] = ((config.vocabulary, hidden), "matrices")
        if tasks.fill_mask.bias:
            spec["fill_mask.bias"] = ((config.vocabulary,), "vector")
    if tasks.classify:
        width = hidden
        for i, layer in enumerate(tasks.classify.layers):
            linear(f"classify.layers.{i}", layer.width, width)
            width = layer.width
        linear("classify.out", len(tasks.classify.labels), width)
    if tasks.tag:
        linear("tag.out", len(tasks.tag.labels), hidden)
    if tasks.answer:
        linear("answer.out", 2, hidden)
    return spec


def _linear(ops: Any, x: np.ndarray, layer: Any, activation: str | None = None) -> np.ndarray:
    out = ops.empty(len(x), ops.outputs(layer.weight))
    ops.linear(x, layer.weight, bias=layer.bias, activation=activation, out=out)
    return out


def _pool(ops: Any, x: np.ndarray, batch: PackedBatch, kind: str) -> np.ndarray:
    out = ops.empty(len(batch), x.shape[1], dtype=np.float32)
    ops.pool(x, batch.cu_seqlens, kind, out=out)
    return out


def forward_embed(ops: Any, x: np.ndarray, batch: PackedBatch, config: Config) -> np.ndarray:
    """(T, D) -> (B, D), pooled as the checkpoint says."""
    return _pool(ops, x, batch, config.tasks.embed.pooling)


def normalized(vectors: np.ndarray) -> np.ndarray:
    """Each row at length 1; a row of zeros stays one."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def forward_classify(ops: Any, x: np.ndarray, batch: PackedBatch, config: Config, heads: Any) -> np.ndarray:
    """(T, D) -> logits (B, K)."""
    head = config.tasks.classify
    h = _pool(ops, x, batch, head.pooling)
    for layer, weights in zip(head.layers, heads.classify.layers or (), strict=True):
        h = _linear(ops, h, weights, layer.activation)
    return _linear(ops, h, heads.classify.out)


def forward_tag(ops: Any, x: np.ndarray, heads: Any) -> np.ndarray:
    """(T, D) -> logits (T, K)."""
    return _linear(ops, x, heads.tag.out)


def forward_answer(ops: Any, x: np.ndarray, heads: Any) -> np.ndarray:
    """(T, D) -> start and end logits (T, 2)."""
    return _linear(ops, x, heads.answer.out)


def forward_fill_mask(ops: Any, x: np.ndarray, config: Config, heads: Any, eps: float) -> np.ndarray:
    """The rows to decode (M, D) -> logits (M, V)."""
    if config.tasks.fill_mask.transform:
        x = _linear(ops, x, heads.fill_mask.transform, "gelu")
        ops.norm(x, heads.fill_mask.norm, eps, out=x)
    decoder = heads.fill_mask.decoder
    out = ops.empty(len(x), ops.outputs(decoder.weight))
    ops.linear(x, decoder.weight, bias=heads.fill_mask.bias, out=out)
    return out


def softmax(logits: np.ndarray) -> np.ndarray:
    """Along the last axis, float32, safe for any finite logits."""
    e = np.exp(logits - logits.max(-1, keepdims=True, initial=-np.inf))
    return e / e.sum(-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow."""
    e = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1, e) / (1 + e)


def decode_classes(logits: np.ndarray, config: Config, top_k: int | None) -> list:
    """(B, K) -> per text a list of (label, score), best first; a regression (one label, identity) -> list of float."""
    head = config.tasks.classify
    if head.output == "identity" and len(head.labels) == 1:
        return logits[:, 0].tolist()
    scores = {"softmax": softmax, "sigmoid": sigmoid, "identity": np.asarray}[head.output](logits)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return [[(head.labels[k], float(row[k])) for k in best] for row, best in zip(scores, order, strict=True)]


def merge_tags(
    scores: np.ndarray, words: Sequence[tuple[int, int, int]], labels: Sequence[str], scheme: str
) -> list[tuple[int, int, str, float]]:
    """Probabilities to spans (start, end, name, score).

    scores (tokens, K); words: (row of the word's first token, start, end) in reading order. A word takes
    the label of its first token. Neighbouring words join when the second continues the first (I- after
    B- or I- of the same name; in scheme "io", the same name). The score is the mean over the words.
    """
    spans: list[tuple[int, int, str, float, int]] = []
    open_name = None
    for row, start, end in words:
        best = int(scores[row].argmax())
        label, score = labels[best], float(scores[row, best])
        if label == "O":
            open_name = None
            continue
        name = label[2:] if scheme == "bio" else label
        begins = scheme == "bio" and label.startswith("B-")
        if name == open_name and not begins:
            first, _, _, total, count = spans[-1]
            spans[-1] = (first, end, name, total + score, count + 1)
        else:
            spans.append((start, end, name, score, 1))
        open_name = name
    return [(start, end, name, total / count) for start, end, name, total, count in spans]


def best_spans(start: np.ndarray, end: np.ndarray, allowed: np.ndarray, top_k: int, longest: int = 30) -> list[tuple[int, int, float]]:
    """The best (first, last, score) with first <= last < first + longest inside `allowed`, scores as log probabilities.

    start, end (tokens,) logits; allowed (tokens,) bool. Softmax runs over the allowed tokens.
    """
    where = np.flatnonzero(allowed)
    if not len(where):
        return []
    log_start, log_end = (a[where] - _logsumexp(a[where]) for a in (start, end))
    table = log_start[:, None] + log_end[None, :]
    length = where[None, :] - where[:, None]
    table = np.where((length >= 0) & (length < longest), table, -np.inf)
    order = np.argsort(-table, axis=None, kind="stable")[:top_k]
    rows, columns = np.unravel_index(order, table.shape)
    return [(int(where[i]), int(where[j]), float(table[i, j])) for i, j in zip(rows, columns, strict=True) if np.isfinite(table[i, j])]


def _logsumexp(a: np.ndarray) -> float:
    top = a.max()
    return float(top + np.log(np.exp(a - top).sum()))
