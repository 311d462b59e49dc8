"""Functions that heads share: linear maps and their tensors, pooling, softmax and sigmoid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..batch import PackedBatch

if TYPE_CHECKING:
    from ..backends.reference import Reference

__all__ = ["Shapes", "linear", "linear_tensors", "pool", "sigmoid", "softmax"]

Shapes: TypeAlias = dict[str, tuple[tuple[int, ...], str]]  # {name: (shape, family)}; Spec lists the families


def linear_tensors(name: str, out: int, width: int) -> Shapes:
    """The Shapes of a linear map: its weight (out, width) and its bias (out,)."""
    return {f"{name}.weight": ((out, width), "matrices"), f"{name}.bias": ((out,), "vector")}


def linear(ops: Reference, x: Any, tasks: Mapping[str, Any], name: str, activation: str | None = None) -> Any:
    """activation(x @ weight.T + bias) (T, M) of x (T, K), with the weight (M, K) and the bias of the linear map `name`."""
    weight = tasks[f"{name}.weight"]
    out = ops.empty(len(x), ops.outputs(weight))
    ops.linear(x, weight, bias=tasks.get(f"{name}.bias"), activation=activation, out=out)
    return out


def pool(ops: Reference, x: Any, batch: PackedBatch, kind: str) -> Any:
    """One vector per text, (B, D) float32, from hidden states (T, D). kind: as in ops.pool."""
    out = ops.empty(len(batch), x.shape[1], dtype=np.float32)
    ops.pool(x, batch.cu_seqlens, kind, out=out)
    return out


def softmax(logits: np.ndarray) -> np.ndarray:
    """The softmax along the last axis, without overflow for finite logits."""
    e = np.exp(logits - logits.max(-1, keepdims=True, initial=-np.inf))
    shares: np.ndarray = e / e.sum(-1, keepdims=True)
    return shares


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-logits)), without overflow."""
    e = np.exp(-np.abs(logits))
    s: np.ndarray = np.where(logits >= 0, 1, e) / (1 + e)
    return s
