"""Prepared weights, which the ops of a backend take: a frozen dataclass per part of the model.

An Array is of the backend's own kind: NumPy's on the CPU, CuPy's on a GPU. The backend's matrix(), table() and
trees() make a Matrix, a Table and Trees from stored tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from .config import Config

__all__ = ["Attention", "Embedding", "FeedForward", "Layer", "Linear", "Norm", "Weights", "assemble"]

Array: TypeAlias = Any
Matrix: TypeAlias = Any
Table: TypeAlias = Any
Trees: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class Norm:
    """Weight and bias (D,) of a LayerNorm."""

    weight: Array
    bias: Array


@dataclass(frozen=True, slots=True)
class Linear:
    """A dense weight (out, in) and its bias (out,) or None."""

    weight: Matrix
    bias: Array | None = None


@dataclass(frozen=True, slots=True)
class Embedding:
    """word (V, D), position (positions, D), token_type (types, D) or None, and the norm of their sum or None."""

    word: Table
    position: Array
    token_type: Array | None
    norm: Norm | None
    eps: float


@dataclass(frozen=True, slots=True)
class Attention:
    """qkv (3 D, D): all of q, then k, then v, heads side by side in each; out (D, D); the norm before or after, as in the model."""

    norm: Norm
    qkv: Linear
    out: Linear


@dataclass(frozen=True, slots=True)
class FeedForward:
    """Trees, neurons that are always on (dense_in and dense_out), or both; the output bias b_out (D,); the norm before or after.

    kind        a key of feedforward.KINDS
    norm        None for a layer outside a model
    activation  of the neurons that are always on; trees always use the exact GELU
    others      all prepared tensors by name, such as "gate.weight", for kinds that have more than the fields above
    """

    kind: str
    norm: Norm | None
    trees: Trees | None
    dense_in: Linear | None
    dense_out: Linear | None
    b_out: Array | None
    activation: str
    others: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of the encoder."""

    attention: Attention
    ffn: FeedForward


@dataclass(frozen=True, slots=True)
class Weights:
    """A prepared model. tasks maps names such as "tag.out.weight" to the tensors of its heads."""

    hidden: int
    heads: int
    eps: float
    pre_norm: bool
    embedding: Embedding
    layers: tuple[Layer, ...]
    final_norm: Norm | None
    tasks: Mapping[str, Any]


def assemble(config: Config, prepared: Mapping[str, Any]) -> Weights:
    """Weights from prepared tensors by the names of checkpoint.tensors(); `layers.i.ffn.trees` replaces those of layer i's trees."""

    def norm(name: str) -> Norm:
        return Norm(prepared[f"{name}.weight"], prepared[f"{name}.bias"])

    def linear(name: str) -> Linear:
        return Linear(prepared[f"{name}.weight"], prepared.get(f"{name}.bias"))

    def feedforward(i: int) -> FeedForward:
        name = f"layers.{i}.ffn"
        dense = f"{name}.dense_in.weight" in prepared
        return FeedForward(
            config.ffn[i].kind,
            norm(f"{name}.norm"),
            prepared.get(f"{name}.trees"),
            linear(f"{name}.dense_in") if dense else None,
            linear(f"{name}.dense_out") if dense else None,
            prepared.get(f"{name}.b_out"),
            config.activation,
            {key.removeprefix(f"{name}."): value for key, value in prepared.items() if key.startswith(f"{name}.")},
        )

    def attention(name: str) -> Attention:
        return Attention(norm(f"{name}.norm"), linear(f"{name}.qkv"), linear(f"{name}.out"))

    eps = config.norm.eps
    embedding = Embedding(
        prepared["embedding.word"],
        prepared["embedding.position"],
        prepared.get("embedding.token_type"),
        norm("embedding.norm") if config.embedding_norm else None,
        eps,
    )
    return Weights(
        config.hidden,
        config.heads,
        eps,
        config.norm.order == "pre",
        embedding,
        tuple(Layer(attention(f"layers.{i}.attention"), feedforward(i)) for i in range(config.layers)),
        norm("final_norm") if config.final_norm else None,
        {name.removeprefix("tasks."): value for name, value in prepared.items() if name.startswith("tasks.")},
    )
