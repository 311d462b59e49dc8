"""Checkpoints of decoders that embed (Qwen2, Qwen3, Mistral, Llama) and of T5 encoders: RMSNorm, no learned positions."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...config import MAX_LAYERS, MAX_POSITIONS, MAX_SIZE, Attention, Buckets, Config, Dense, Gated, Norm, Positions
from ..tensor import Tensor
from .huggingface import finish
from .source import Source, activation, refuse, require, stack, zeros

__all__ = ["decoder", "t5"]

T5_POSITIONS = 4096  # tokens: T5 has no limit of its own, since distances of 128 and more share a bucket


def decoder(s: Source) -> tuple[Config, dict[str, Tensor]]:
    """The Config and the renamed tensors of a decoder in a sentence-transformers folder, which says how to pool.

    Keys and values of grouped heads are repeated for each head of their group.
    """
    c, kind = s.data, s.data["model_type"]
    require(s, use_sliding_window=False, mlp_bias=False, partial_rotary_factor=1.0)
    layers = s.number(c, "num_hidden_layers", 1, MAX_LAYERS)
    hidden, heads = s.number(c, "hidden_size", 1), s.number(c, "num_attention_heads", 1)
    size = s.number(c, "head_dim", 1, default=128 if kind == "qwen3" else max(1, hidden // heads))
    body = s.prefix("embed_tokens.weight")
    made = {"embedding.word": s.get(f"{body}embed_tokens.weight"), "final_norm.weight": s.vector(f"{body}norm.weight")}
    s.drop("rotary_emb.inv_freq", "lm_head.weight")
    biased, normed = f"{body}layers.0.self_attn.q_proj.bias" in s, f"{body}layers.0.self_attn.q_norm.weight" in s
    for i in range(layers):
        theirs, ours = f"{body}layers.{i}", f"layers.{i}"
        made[f"{ours}.attention.norm.weight"] = s.vector(f"{theirs}.input_layernorm.weight")
        made |= _grouped(s, ours, theirs, heads, size, biased)
        if normed:
            made[f"{ours}.attention.query_norm.weight"] = s.vector(f"{theirs}.self_attn.q_norm.weight")
            made[f"{ours}.attention.key_norm.weight"] = s.vector(f"{theirs}.self_attn.k_norm.weight")
        made[f"{ours}.ffn.norm.weight"] = s.vector(f"{theirs}.post_attention_layernorm.weight")
        for name, part in (("dense_in", "gate"), ("dense_up", "up"), ("dense_out", "down")):
            made[f"{ours}.ffn.{name}.weight"] = s.get(f"{theirs}.mlp.{part}_proj.weight")
    eps = s.number(c, "rms_norm_eps", 0, 1, kind=float, default=1e-6)
    return finish(
        s,
        made,
        {},
        hidden=hidden,
        layers=layers,
        heads=heads,
        head_size=None if hidden == heads * size else size,
        head_norms=normed,
        eps=eps,
        norm=Norm("pre", eps, kind="rms"),
        ffn=Gated(s.number(c, "intermediate_size", 1)),
        activation=activation(s, "hidden_act", "silu"),
        positions=Positions("none", min(MAX_POSITIONS, s.number(c, "max_position_embeddings", 1, MAX_SIZE))),
        attention=(_causal(s),) * layers,
        attention_bias=biased,
        embedding_norm=False,
        final_norm=True,
    )


def _grouped(s: Source, ours: str, theirs: str, heads: int, size: int, biased: bool) -> dict[str, Tensor]:
    """The attention tensors of a layer: rows of k and v are repeated for the heads of a group; the map out gets a bias of zeros."""
    groups = s.number(s.data, "num_key_value_heads", 1, heads, default=heads)
    made = {f"{ours}.attention.out.weight": s.get(f"{theirs}.self_attn.o_proj.weight")}
    for part in ("weight", "bias") if biased else ("weight",):
        tensors = []
        for name in "qkv":
            stored = f"{theirs}.self_attn.{name}_proj.{part}"
            tensor = s.get(stored) if part == "weight" else s.vector(stored)
            if name != "q" and len(tensor.data) == groups * size and heads % groups == 0:
                rows = np.repeat(tensor.data.reshape(groups, size, *tensor.data.shape[1:]), heads // groups, axis=0)
                tensor = Tensor(rows.reshape(heads * size, *tensor.data.shape[1:]), tensor.dtype)
            tensors.append(tensor)
        made[f"{ours}.attention.qkv.{part}"] = stack(tensors)
    if biased:
        made[f"{ours}.attention.out.bias"] = zeros(len(made[f"{ours}.attention.out.weight"].data))
    return made


def _causal(s: Source) -> Attention:
    """The attention of a decoder: rotary positions, causal unless is_causal is false, with the window of a Mistral if it has one."""
    c = s.data
    parameters = c.get("rope_parameters") or c.get("rope_scaling") or {}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind != "default":
        raise refuse(s, "rope_scaling", parameters, "null")
    at = c if c.get("rope_theta") is not None else parameters
    theta = s.number(at, "rope_theta", 1, 10**9, kind=float, default=10000.0)
    window = c.get("sliding_window") if c["model_type"] == "mistral" else None
    if window is not None:  # theirs counts the token itself
        window = s.number(c, "sliding_window", 2, MAX_SIZE) - 1
        window = None if window >= MAX_POSITIONS else window
    return Attention(theta, window=window, causal=c.get("is_causal") is not False)


def t5(s: Source) -> tuple[Config, dict[str, Tensor]]:
    """The Config and the renamed tensors of a T5 encoder, whose scores are not scaled: q makes up for it. A decoder is left out."""
    c = s.data
    layers, hidden = s.number(c, "num_layers", 1, MAX_LAYERS), s.number(c, "d_model", 1)
    heads, size = s.number(c, "num_heads", 1), s.number(c, "d_kv", 1)
    projection = c.get("feed_forward_proj", "relu")
    gated, act = str(projection).startswith("gated-"), str(projection).removeprefix("gated-")
    act = "gelu_new" if projection == "gated-gelu" else act  # as transformers reads it
    require(s, dense_act_fn=act, is_gated_act=gated)
    word = "shared.weight" if "shared.weight" in s else "encoder.embed_tokens.weight"
    bias = s.get("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
    made = {
        "embedding.word": s.get(word),
        "distances.bias": Tensor(np.ascontiguousarray(bias.float32().T), "float32"),
        "final_norm.weight": s.vector("encoder.final_layer_norm.weight"),
    }
    s.drop("embed_tokens.weight", "lm_head.weight", *(name for name in s.stored if name.startswith("decoder.")))
    for i in range(layers):
        theirs, ours = f"encoder.block.{i}", f"layers.{i}"
        q, k, v = (s.get(f"{theirs}.layer.0.SelfAttention.{name}.weight") for name in "qkv")
        q = Tensor(q.float32() * np.float32(size**0.5), "float32").to(q.dtype)
        made |= {f"{ours}.attention.qkv.weight": stack([q, k, v])}
        made[f"{ours}.attention.out.weight"] = s.get(f"{theirs}.layer.0.SelfAttention.o.weight")
        made[f"{ours}.attention.norm.weight"] = s.vector(f"{theirs}.layer.0.layer_norm.weight")
        made[f"{ours}.ffn.norm.weight"] = s.vector(f"{theirs}.layer.1.layer_norm.weight")
        maps: dict[str, str] = (
            {"dense_in": "wi_0", "dense_up": "wi_1", "dense_out": "wo"} if gated else {"dense_in": "wi", "dense_out": "wo"}
        )
        made |= {f"{ours}.ffn.{name}.weight": s.get(f"{theirs}.layer.1.DenseReluDense.{part}.weight") for name, part in maps.items()}
    width, eps = s.number(c, "d_ff", 1), s.number(c, "layer_norm_epsilon", 0, 1, kind=float, default=1e-6)
    s.data = c | {"feed_forward_proj": act}
    ffn: Any = Gated(width) if gated else Dense(width, False, False)
    return finish(
        s,
        made,
        {},
        hidden=hidden,
        layers=layers,
        heads=heads,
        head_size=None if hidden == heads * size else size,
        eps=eps,
        norm=Norm("pre", eps, kind="rms"),
        ffn=ffn,
        activation=activation(s, "feed_forward_proj", "relu"),
        positions=Positions("none", T5_POSITIONS),
        distances=Buckets(len(bias.data), s.number(c, "relative_attention_max_distance", 2, MAX_POSITIONS, default=128)),
        attention_bias=False,
        embedding_norm=False,
        final_norm=True,
    )
