"""What heads share: the tensors of a linear map, its forward, pooling, softmax and sigmoid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..batch import PackedBatch

if TYPE_CHECKING:
    from ..backends.reference import Reference

__all__ = ["Shapes", "linear", "linear_tensors", "pool", "sigmoid", "softmax"]

Shapes: TypeAlias = dict[str, tuple[tuple[int, ...], str]]  # {name: (shape, family)}, families as in checkpoint.Spec


def linear_tensors(name: str, out: int, width: int) -> Shapes:
    """A dense weight (out, width) and its bias."""
    return {f"{name}.weight": ((out, width), "matrices"), f"{name}.bias": ((out,), "vector")}


def linear(ops: Reference, x: Any, tasks: Mapping[str, Any], name: str, activation: str | None = None) -> Any:
    """x (T, K) through the dense weight `name` and its activation: (T, M)."""
    weight = tasks[f"{name}.weight"]
    out = ops.empty(len(x), ops.outputs(weight))
    ops.linear(x, weight, bias=tasks.get(f"{name}.bias"), activation=activation, out=out)
    return out


def pool(ops: Reference, x: Any, batch: PackedBatch, kind: str) -> Any:
    """(T, D) -> (B, D): one vector per text."""
    out = ops.empty(len(batch), x.shape[1], dtype=np.float32)
    ops.pool(x, batch.cu_seqlens, kind, out=out)
    return out


def softmax(logits: np.ndarray) -> np.ndarray:
    """Along the last axis, float32, safe for any finite logits."""
    e = np.exp(logits - logits.max(-1, keepdims=True, initial=-np.inf))
    shares: np.ndarray = e / e.sum(-1, keepdims=True)
    return shares


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow."""
    e = np.exp(-np.abs(logits))
    s: np.ndarray = np.where(logits >= 0, 1, e) / (1 + e)
    return s
