"""Prepared weights, which the ops of a backend take: a named tuple per part of the model.

An Array is of the backend's own kind: NumPy's on the CPU, CuPy's on a GPU. The backend's matrix(), table() and
trees() make a Matrix, a Table and Trees from stored tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .batch import PackedBatch
from .config import Config

__all__ = [
    *("Attention", "Embedding", "FeedForward", "Form", "Layer", "Linear", "NODES", "Norm", "PLAIN", "Relative", "Scores", "Weights"),
    "assemble",
]

Array: TypeAlias = Any
Matrix: TypeAlias = Any
Table: TypeAlias = Any
Trees: TypeAlias = Any


class Norm(NamedTuple):
    """Weight and bias (D,) of a LayerNorm. bias None: an RMSNorm."""

    weight: Array
    bias: Array | None


class Linear(NamedTuple):
    """A dense weight (out, in) and its bias (out,) or None."""

    weight: Matrix
    bias: Array | None = None


class Embedding(NamedTuple):
    """word (V, E), position (positions, E) or None, token_type (types, E) or None, and the norm of their sum or None.

    project  the linear map from E columns to the model's D; None where E is D
    width    E, where there is a map
    skip     id of a token that takes no position; None: no token
    places   (1 + positions, E): the row of such tokens, then `position`
    """

    word: Table
    position: Array | None
    token_type: Array | None
    norm: Norm | None
    eps: float
    project: Linear | None = None
    width: int = 0
    skip: int | None = None
    places: Array | None = None

    def placed(self, batch: PackedBatch) -> tuple[Array | None, np.ndarray]:
        """(the table of positions, each token's row in it (T,) int32)."""
        skipped = batch.ids == self.skip
        if self.skip is None or not skipped.any():
            return self.position, batch.positions
        counted = np.cumsum(~skipped, dtype=np.int32)
        before = np.concatenate([np.zeros(1, np.int32), counted])[batch.cu_seqlens[:-1]]
        return self.places, np.where(skipped, np.int32(0), counted - np.repeat(before, batch.lengths))


class Relative(NamedTuple):
    """Disentangled attention: score (i, j) gains q_i . keys[r] + k_j . queries[r] before it is scaled, r = rows[positions - 1 + i - j].

    keys, queries  (2 * buckets, D), heads side by side
    rows           (2 * positions - 1,) int32, rising

    Backends may have a class of their own in its place.
    """

    keys: Array
    queries: Array
    rows: Array


class Scores(NamedTuple):
    """What attention does to the scores of one layer, beside q k^T / sqrt(S).

    window     a query sees keys that are at most so far away; None: all keys of its text
    causal     a query sees itself and keys before it alone
    distances  (H, 2 * positions - 1) float32: score (i, j) of a head gains the entry positions - 1 + j - i; None: nothing
    relative   a Relative of the backend, or None
    """

    window: int | None = None
    causal: bool = False
    distances: Array | None = None
    relative: Any = None


PLAIN = Scores()


class Attention(NamedTuple):
    """qkv (3 H S, D): all of q, then k, then v, heads side by side in each; out (D, H S); the norm before or after, as in the model.

    norm    None where the first layer has none
    heads   weights (S,) of an RMSNorm of each head of q, and of k; None: there is none
    rotary  (positions, S), by which q and k are turned, as positions.rotary_table makes it; None: they are not
    """

    norm: Norm | None
    qkv: Linear
    out: Linear
    heads: tuple[Array, Array] | None = None
    rotary: Array | None = None
    scores: Scores = PLAIN


class Form(NamedTuple):
    """What the neurons of trees do, and which of them are blocks.

    activation  of all neurons, a key of ACTIVATIONS
    silent      whether nodes that decide add nothing
    leaf        L, the neurons of a block
    blocks      B, the blocks at the end of each tree's neurons: N = I + B * L, I nodes. 0: there are none, and leaves are nodes
    b_leaf      (P, B, D) float32, the output bias of each block, or None
    """

    activation: str = "gelu"
    silent: bool = False
    leaf: int = 1
    blocks: int = 0
    b_leaf: np.ndarray | None = None


NODES = Form()


class FeedForward(NamedTuple):
    """Trees, neurons that are always on (dense_in and dense_out), or both; the output bias b_out (D,); the norm before or after.

    kind        a key of feedforward.KINDS
    norm        None for a layer outside a model
    activation  of the neurons that are always on
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


class Layer(NamedTuple):
    """One layer of the encoder."""

    attention: Attention
    ffn: FeedForward


class Weights(NamedTuple):
    """A prepared model for texts of up to `positions` tokens. tasks maps names such as "tag.out.weight" to the tensors of its heads."""

    hidden: int
    heads: int
    head_size: int
    positions: int
    eps: float
    pre_norm: bool
    embedding: Embedding
    layers: tuple[Layer, ...]
    final_norm: Norm | None
    tasks: Mapping[str, Any]


def assemble(config: Config, prepared: Mapping[str, Any]) -> Weights:
    """Weights from prepared tensors by the names of checkpoint.tensors(); `layers.i.ffn.trees` replaces those of layer i's trees.
    Tables are under the names that Reference.tables() gives them.
    """

    def norm(name: str) -> Norm:
        return Norm(prepared[f"{name}.weight"], prepared.get(f"{name}.bias"))

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
            config.ffn[i].activation or config.activation,
            {key.removeprefix(f"{name}."): value for key, value in prepared.items() if key.startswith(f"{name}.")},
        )

    def attention(i: int) -> Attention:
        name, kind = f"layers.{i}.attention", config.attention[i]
        return Attention(
            norm(f"{name}.norm") if f"{name}.norm.weight" in prepared else None,
            linear(f"{name}.qkv"),
            linear(f"{name}.out"),
            (prepared[f"{name}.query_norm.weight"], prepared[f"{name}.key_norm.weight"]) if config.head_norms else None,
            None if kind.theta is None else prepared[f"rotary.{kind.theta}.{kind.scale}"],
            Scores(kind.window, kind.causal, prepared.get("distances"), prepared.get(f"{name}.relative")),
        )

    eps, places, skip = config.norm.eps, prepared.get("embedding.position"), config.positions.skip
    embedding = Embedding(
        prepared["embedding.word"],
        places if skip is None or places is None else places[1:],
        prepared.get("embedding.token_type"),
        norm("embedding.norm") if config.embedding_norm else None,
        eps,
        linear("embedding.project") if config.embedding_width is not None else None,
        config.embedding_width or 0,
        skip,
        None if skip is None else places,
    )
    return Weights(
        config.hidden,
        config.heads,
        config.width_of_head,
        config.positions.max,
        eps,
        config.norm.order == "pre",
        embedding,
        tuple(Layer(attention(i), feedforward(i)) for i in range(config.layers)),
        norm("final_norm") if config.final_norm else None,
        {name.removeprefix("tasks."): value for name, value in prepared.items() if name.startswith("tasks.")},
    )
