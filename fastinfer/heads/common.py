"""Functions that heads share: linear maps and their tensors, pooling, softmax and sigmoid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..batch import PackedBatch
from ..config import HeadLayer
from ..weights import Norm, Weights

if TYPE_CHECKING:
    from ..backends.reference import Reference

__all__ = ["Shapes", "layers_tensors", "linear", "linear_tensors", "pool", "ranked", "sigmoid", "softmax", "through_layers"]

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


def layers_tensors(layers: Sequence[HeadLayer], width: int) -> tuple[Shapes, int]:
    """(the Shapes of a head's layers on `width` columns, under layers.i; the columns of the last layer, or `width` if there is none)."""
    spec: Shapes = {}
    for i, layer in enumerate(layers):
        spec |= linear_tensors(f"layers.{i}", layer.width, width)
        if layer.norm:
            spec |= {f"layers.{i}.norm.{name}": ((layer.width,), "vector") for name in ("weight", "bias")}
        width = layer.width
    return spec, width


def through_layers(ops: Reference, x: Any, weights: Weights, task: str, layers: Sequence[HeadLayer]) -> Any:
    """x (T, K), put through the layers of the head `task`: a linear map, its activation and, if it has one, its norm each."""
    for i, layer in enumerate(layers):
        name = f"{task}.layers.{i}"
        x = linear(ops, x, weights.tasks, name, layer.activation)
        if layer.norm:
            ops.norm(x, Norm(weights.tasks[f"{name}.norm.weight"], weights.tasks[f"{name}.norm.bias"]), weights.eps, out=x)
    return x


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


def ranked(scores: np.ndarray, top_k: int | None, missing: Sequence[int] = ()) -> list[tuple[int, float]]:
    """The (index, score) of the top_k largest of scores (B,) but those at `missing`, largest first; None: of all. Ties keep their order."""
    order = np.argsort(-scores, kind="stable")
    if missing:
        order = order[~np.isin(order, missing)]
    return [(int(i), float(scores[i])) for i in order[:top_k]]
