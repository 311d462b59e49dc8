"""Checkpoints of crammedBERT (arXiv 2212.14034) and of the FastBERTs made from it (arXiv 2311.10770)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...config import FFF, MAX_DEPTH, MAX_LAYERS, MAX_POSITIONS, Classify, Config, Dense, FillMask, Norm, Pooling, Positions, Tasks
from ...errors import ConfigError, short
from ..tensor import Tensor
from .source import Source, classify, norm, refuse, special_ids, stored_dtypes, tied

__all__ = ["crammed"]


def crammed(s: Source) -> tuple[Config, dict[str, Tensor]]:
    """The Config and the renamed tensors of a crammedBERT or FastBERT checkpoint."""
    c = s.data["arch"]
    embedding, attention = c["embedding"], c["attention"]
    _check(s, c)
    hidden, layers = s.number(c, "hidden_size", 1), s.number(c, "num_transformer_layers", 1, MAX_LAYERS)
    heads, positions = s.number(attention, "num_attention_heads", 1), s.number(embedding, "max_seq_length", 1, MAX_POSITIONS)
    kind, width = c.get("intermed_type", "ff"), s.number(c, "intermed_size", 1)
    if kind not in ("ff", "fff"):
        raise refuse(s, "arch.intermed_type", kind, "ff and fff")
    feedforward: Dense | FFF = (
        FFF(width, s.number(c, "intermed_depth", 0, MAX_DEPTH)) if kind == "fff" else Dense(width, bias_in=False, bias_out=False)
    )
    made = {
        "embedding.word": s.get("encoder.embedding.word_embedding.weight"),
        "embedding.position_scale": s.vector("encoder.embedding.pos_embedding.scale_factor"),
    }
    if embedding.get("normalization", False):
        made |= norm(s, "embedding.norm", "encoder.embedding.norm")
    if c.get("final_norm", False):
        made |= norm(s, "final_norm", "encoder.final_norm")
    for i in range(layers):
        made |= _layer(s, i, feedforward, hidden, heads)
    tasks: dict[str, Any] = {}
    if "head.weight" in s:
        tasks["classify"] = _crammed_classifier(s, made, c["classification_head"])
    elif "decoder.weight" in s or c.get("tie_weights", False):
        bias = "decoder.bias" in s
        if bias:
            made["tasks.fill_mask.bias"] = s.vector("decoder.bias")
        tasks["fill_mask"] = FillMask(transform=False, tied=tied(s, made, "decoder.weight"), bias=bias)
    s.drop("position_ids")
    config = s.config(
        hidden=hidden,
        layers=layers,
        heads=heads,
        vocabulary=s.number(embedding, "vocab_size", 1),
        norm=Norm("pre", s.number(c, "norm_eps", 0, 1, kind=float)),
        positions=Positions("scaled-sinusoidal", positions),
        ffn=(feedforward,) * layers,
        max_tokens=positions,
        tasks=Tasks(**tasks),
        embedding_norm=bool(embedding.get("normalization", False)),
        final_norm=bool(c.get("final_norm", False)),
        ids=special_ids(s, len(made["embedding.word"].data)),
        attention_bias=False,
        stored=stored_dtypes(made),
    )
    return config, made


def _check(s: Source, c: dict[str, Any]) -> None:
    """Raise ConfigError that lists every setting which would need an op that fastinfer does not have."""
    embedding, attention = c["embedding"], c["attention"]
    expected: list[tuple[str, Any, Any]] = [
        ("arch.norm", c["norm"], "LayerNorm"),
        ("arch.norm_scheme", c["norm_scheme"], "pre"),
        ("arch.nonlin", c["nonlin"], "GELU"),
        ("arch.use_bias", c.get("use_bias", False), False),
        ("arch.ffn_layer_frequency", c.get("ffn_layer_frequency", 1), 1),
        ("arch.skip_head_transform", c.get("skip_head_transform", True), True),
        ("arch.embedding.pos_embedding", embedding["pos_embedding"], "scaled-sinusoidal"),
        ("arch.embedding.embedding_dim", embedding["embedding_dim"], c["hidden_size"]),
        ("arch.attention.type", attention["type"], "self-attention"),
        ("arch.attention.causal_attention", attention.get("causal_attention", False), False),
        ("arch.attention.rotary_embedding", attention.get("rotary_embedding", False), False),
        ("arch.attention.qkv_bias", attention.get("qkv_bias", False), False),
        ("arch.attention.skip_output_projection", attention.get("skip_output_projection", False), False),
        ("arch.attention.sequence_op", attention.get("sequence_op", "torch-softmax"), "torch-softmax"),
    ]
    wrong = [f"{name} is {short(got)}, only {want!r} is supported" for name, got, want in expected if got != want]
    if wrong:
        raise ConfigError(f"{s.folder / 'config.json'}: this crammedBERT needs what fastinfer does not have:\n  " + "\n  ".join(wrong))


def _layer(s: Source, i: int, feedforward: Dense | FFF, hidden: int, heads: int) -> dict[str, Tensor]:
    """The tensors of layer `i` by their names in this format."""
    made: dict[str, Tensor] = {}
    theirs, ours = f"encoder.layers.{i}", f"layers.{i}"
    made |= norm(s, f"{ours}.attention.norm", f"{theirs}.norm1")
    made |= norm(s, f"{ours}.ffn.norm", f"{theirs}.norm2")
    made[f"{ours}.attention.qkv.weight"] = _unweave(s.get(f"{theirs}.attn.self_attention.query_key_value.weight"), heads)
    factor = f"{theirs}.attn.self_attention.norm_factor"
    if factor in s:
        s.drop(factor)
        got, want = s.stored[factor].float32(), (hidden / heads) ** -0.5
        if not np.allclose(got, want, rtol=0.005, atol=0):  # the stored factor may have been rounded to bfloat16
            raise refuse(s, factor, got.tolist(), f"1/sqrt(head size) = {want:g}")
    made[f"{ours}.attention.out.weight"] = s.get(f"{theirs}.attn.dense.weight")
    if isinstance(feedforward, FFF):
        made[f"{ours}.ffn.nodes"] = _nodes(s, feedforward, f"{theirs}.ffn")
        made[f"{ours}.ffn.b_in"] = _shaped(s.vector(f"{theirs}.ffn.linear_in.bias"), (feedforward.trees, feedforward.count))
    else:
        made[f"{ours}.ffn.dense_in.weight"] = s.get(f"{theirs}.ffn.dense_in.weight")
        made[f"{ours}.ffn.dense_out.weight"] = s.get(f"{theirs}.ffn.dense_out.weight")
    return made


def _crammed_classifier(s: Source, made: dict[str, Tensor], head: dict[str, Any]) -> Classify:
    """The classifier head of a crammedBERT; its tensors are added to `made`."""
    poolers: dict[str, Pooling] = {"zero_index": "cls", "avg": "mean", "max": "max", "lse": "lse"}
    if head["pooler"] not in poolers:
        raise refuse(s, "arch.classification_head.pooler", head["pooler"], ", ".join(poolers))
    layers: list[tuple[str, Any]] = []
    if head.get("include_ff_layer", True):
        activations = {"Tanh": "tanh", "ReLU": "relu", "GELU": "gelu"}
        if head["nonlin"] not in activations:
            raise refuse(s, "arch.classification_head.nonlin", head["nonlin"], ", ".join(activations))
        layers = [("pooler.dense", activations[head["nonlin"]])]
    made_head = classify(s, made, layers, "head")
    return Classify(made_head.labels, made_head.output, poolers[head["pooler"]], made_head.layers)


def _unweave(weight: Tensor, heads: int) -> Tensor:
    """The qkv weight with all rows of q, then of k, then of v, from one that has [q, k, v] per head."""
    rows = len(weight.data)
    if not rows or rows % (3 * heads):
        return weight
    blocks = weight.data.reshape(heads, 3, rows // (3 * heads), -1)
    return Tensor(np.ascontiguousarray(blocks.transpose(1, 0, 2, 3)).reshape(rows, -1), weight.dtype)


def _nodes(s: Source, feedforward: FFF, theirs: str) -> Tensor:
    """The nodes (P, N, 2, D) made of linear_in (P * N, D) and linear_out (D, P * N)."""
    w_in, w_out = s.get(f"{theirs}.linear_in.weight"), s.get(f"{theirs}.linear_out.weight")
    if w_in.data.shape != w_out.data.T.shape or len(w_in.data) != feedforward.total:
        return w_in  # its shape is wrong, and check() will name it
    both = np.stack([w_in.data, w_out.to(w_in.dtype).data.T], axis=1)
    return Tensor(both.reshape(feedforward.trees, feedforward.count, 2, -1), w_in.dtype)


def _shaped(vector: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`vector` in `shape`, or unchanged where the sizes differ, so that check() names it."""
    return Tensor(vector.data.reshape(shape), vector.dtype) if vector.data.size == np.prod(shape) else vector
