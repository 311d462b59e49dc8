"""The format: the name, shape and dtype of every tensor that a Config has."""

from __future__ import annotations

import math
from typing import NamedTuple

from .. import feedforward, heads
from ..config import Config

__all__ = ["Spec", "parameters", "tensors"]


class Spec(NamedTuple):
    """What the format expects of one tensor. family: embeddings, matrices, trees, vector or table."""

    shape: tuple[int, ...]
    dtype: str
    family: str


def tensors(config: Config) -> dict[str, Spec]:
    """Every tensor of a checkpoint: {name: Spec(shape, dtype, family)}, scales of int8 tensors included.

    Dense weights are (out, in); qkv rows are all of q, then k, then v, heads side by side in each.
    """
    hidden = config.hidden
    raw: dict[str, tuple[tuple[int, ...], str]] = {"embedding.word": ((config.vocabulary, hidden), "embeddings")}

    def norm(name: str) -> None:
        raw[f"{name}.weight"] = ((hidden,), "vector")
        raw[f"{name}.bias"] = ((hidden,), "vector")

    if config.positions.kind == "learned":
        raw["embedding.position"] = ((config.positions.max, hidden), "embeddings")
    else:
        raw["embedding.position_scale"] = ((1,), "vector")
    if config.token_types:
        raw["embedding.token_type"] = ((config.token_types, hidden), "embeddings")
    if config.embedding_norm:
        norm("embedding.norm")
    for i, layer in enumerate(config.ffn):
        at = f"layers.{i}"
        norm(f"{at}.attention.norm")
        for name, out in (("qkv", 3 * hidden), ("out", hidden)):
            raw[f"{at}.attention.{name}.weight"] = ((out, hidden), "matrices")
            if config.attention_bias:
                raw[f"{at}.attention.{name}.bias"] = ((out,), "vector")
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
    """Weights of the model, scales not counted."""
    return sum(math.prod(s.shape) for name, s in tensors(config).items() if s.family != "table" and not name.endswith(".scale"))
