"""The format: the name, shape and dtype of every tensor that a Config has."""

from __future__ import annotations

import math
from typing import NamedTuple

from .. import feedforward, heads
from ..config import Buckets, Config, Disentangled

__all__ = ["Spec", "parameters", "tensors"]


class Spec(NamedTuple):
    """The shape and dtype that one tensor must have. family: "embeddings", "matrices", "trees", "vector" or "table"."""

    shape: tuple[int, ...]
    dtype: str
    family: str


def tensors(config: Config) -> dict[str, Spec]:
    """{name: Spec(shape, dtype, family)} of every tensor of a checkpoint, including the scales of int8 tensors.

    Dense weights are (out, in). The rows of qkv are all rows of q, then of k, then of v, each with its heads side by side.
    """
    hidden, width = config.hidden, config.embedding_width or config.hidden
    inner = config.heads * config.width_of_head
    raw: dict[str, tuple[tuple[int, ...], str]] = {"embedding.word": ((config.vocabulary, width), "embeddings")}

    def norm(name: str, columns: int = hidden) -> None:
        raw[f"{name}.weight"] = ((columns,), "vector")
        if config.norm.kind == "layer":
            raw[f"{name}.bias"] = ((columns,), "vector")

    if config.positions.kind == "learned":
        raw["embedding.position"] = ((config.positions.max + (config.positions.skip is not None), width), "embeddings")
    elif config.positions.kind == "scaled-sinusoidal":
        raw["embedding.position_scale"] = ((1,), "vector")
    if config.token_types:
        raw["embedding.token_type"] = ((config.token_types, width), "embeddings")
    if config.embedding_norm:
        norm("embedding.norm", width)
    if config.embedding_width is not None:
        raw["embedding.project.weight"] = ((hidden, width), "matrices")
        raw["embedding.project.bias"] = ((hidden,), "vector")
    if isinstance(config.distances, Buckets):
        raw["distances.bias"] = ((config.heads, config.distances.buckets), "vector")
    for i, layer in enumerate(config.ffn):
        at = f"layers.{i}"
        if i or config.norm.order == "post" or config.norm.first:
            norm(f"{at}.attention.norm")
        if isinstance(config.distances, Disentangled):
            for name in ("relative_keys", "relative_queries"):
                raw[f"{at}.attention.{name}"] = ((2 * config.distances.buckets, inner), "vector")
        for name, out, columns in (("qkv", 3 * inner, hidden), ("out", hidden, inner)):
            raw[f"{at}.attention.{name}.weight"] = ((out, columns), "matrices")
            if config.attention_bias:
                raw[f"{at}.attention.{name}.bias"] = ((out,), "vector")
        if config.head_norms:
            raw |= {f"{at}.attention.{name}_norm.weight": ((config.width_of_head,), "vector") for name in ("query", "key")}
        norm(f"{at}.ffn.norm")
        raw |= {f"{at}.ffn.{name}": spec for name, spec in feedforward.tensors(layer, hidden).items()}
    if config.final_norm:
        norm("final_norm")
    raw |= {f"tasks.{name}": spec for name, spec in heads.tensors(config).items()}

    spec: dict[str, Spec] = {}
    for name, (shape, family) in raw.items():
        dtype = {"vector": "float32", "table": "int32"}.get(family) or getattr(config.stored, family)
        spec[name] = Spec(shape, dtype, family)
        if dtype == "int8":
            spec[f"{name}.scale"] = Spec(shape[:-1], "float32", "vector")
    return spec


def parameters(config: Config) -> int:
    """The number of weights of the model, without scales and tables of children."""
    return sum(math.prod(s.shape) for name, s in tensors(config).items() if s.family != "table" and not name.endswith(".scale"))
