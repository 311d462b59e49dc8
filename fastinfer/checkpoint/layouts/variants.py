"""Checkpoints of Hugging Face that differ from BERT in attention or in the order of norms: MPNet, pre-norm RoBERTa, DeBERTa-v2."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...config import MAX_LAYERS, MAX_POSITIONS, Buckets, Config, Dense, Disentangled, Positions
from ..tensor import Tensor
from .huggingface import attention, dense, fill_mask, finish, heads, rows
from .source import Source, activation, norm, refuse, require

__all__ = ["deberta", "mpnet", "prenorm_roberta"]


def mpnet(s: Source) -> tuple[Config, dict[str, Tensor]]:
    """The Config and the renamed tensors of an MPNet: a RoBERTa without token types, with buckets of distances."""
    layers = s.number(s.data, "num_hidden_layers", 1, MAX_LAYERS)
    body = s.prefix("embeddings.word_embeddings.weight")
    bias = s.get(f"{body}encoder.relative_attention_bias.weight")
    made = {
        "embedding.word": s.get(f"{body}embeddings.word_embeddings.weight"),
        "embedding.position": rows(s.get(f"{body}embeddings.position_embeddings.weight"), 1),  # MPNet's padding index is always 1
        "distances.bias": Tensor(np.ascontiguousarray(bias.float32().T), "float32"),
        **norm(s, "embedding.norm", f"{body}embeddings.LayerNorm"),
    }
    s.drop("position_ids")
    for i in range(layers):
        theirs, ours = f"{body}encoder.layer.{i}", f"layers.{i}"
        made |= attention(s, ours, [f"{theirs}.attention.attn.{n}" for n in "qkv"], f"{theirs}.attention.attn.o")
        made |= norm(s, f"{ours}.attention.norm", f"{theirs}.attention.LayerNorm")
        made |= dense(s, ours, f"{theirs}.intermediate.dense", f"{theirs}.output.dense")
        made |= norm(s, f"{ours}.ffn.norm", f"{theirs}.output.LayerNorm")
    return finish(s, made, heads(s, made, body), **_sizes(s), skip=1, distances=Buckets(len(bias.data), 128))


def prenorm_roberta(s: Source) -> tuple[Config, dict[str, Tensor]]:
    """The Config and the renamed tensors of a RoBERTa with its norms before the blocks, and one at the end."""
    layers, pad = s.number(s.data, "num_hidden_layers", 1, MAX_LAYERS), s.number(s.data, "pad_token_id", 0, default=1)
    body = s.prefix("embeddings.word_embeddings.weight")
    made = {
        "embedding.word": s.get(f"{body}embeddings.word_embeddings.weight"),
        "embedding.position": rows(s.get(f"{body}embeddings.position_embeddings.weight"), pad),
        "embedding.token_type": s.get(f"{body}embeddings.token_type_embeddings.weight"),
        **norm(s, "embedding.norm", f"{body}embeddings.LayerNorm"),
        **norm(s, "final_norm", f"{body}LayerNorm"),
    }
    s.drop("position_ids", "embeddings.token_type_ids")
    for i in range(layers):
        theirs, ours = f"{body}encoder.layer.{i}", f"layers.{i}"
        made |= norm(s, f"{ours}.attention.norm", f"{theirs}.attention.LayerNorm")
        made |= attention(s, ours, [f"{theirs}.attention.self.{n}" for n in ("query", "key", "value")], f"{theirs}.attention.output.dense")
        made |= norm(s, f"{ours}.ffn.norm", f"{theirs}.intermediate.LayerNorm")
        made |= dense(s, ours, f"{theirs}.intermediate.dense", f"{theirs}.output.dense")
    types = len(made["embedding.token_type"].data)
    return finish(s, made, heads(s, made, body), **_sizes(s), order="pre", final_norm=True, token_types=types, skip=pad)


def deberta(s: Source) -> tuple[Config, dict[str, Tensor]]:
    """The Config and the renamed tensors of a DeBERTa-v2 or v3.

    The keys and queries of distances are computed here: each layer's maps of q and k, applied to the table that layers share.
    """
    c, hidden = s.data, s.number(s.data, "hidden_size", 1)
    layers, count = s.number(c, "num_hidden_layers", 1, MAX_LAYERS), s.number(c, "num_attention_heads", 1)
    require(s, relative_attention=True, conv_kernel_size=0, embedding_size=hidden, attention_head_size=hidden // count)
    kinds = c.get("pos_att_type") or []
    kinds = [part.strip() for part in kinds.split("|")] if isinstance(kinds, str) else list(kinds)
    if not kinds or not set(kinds) <= {"c2p", "p2c"}:
        raise refuse(s, "pos_att_type", c.get("pos_att_type"), "c2p, p2c and both")
    buckets = s.number(c, "position_buckets", 2, 4096, default=-1)
    places = s.number(c, "max_position_embeddings", 1, MAX_POSITIONS)
    reach = places if c.get("max_relative_positions", -1) in (-1, 0) else s.number(c, "max_relative_positions", 1, MAX_POSITIONS)
    body = s.prefix("embeddings.word_embeddings.weight")
    made = {"embedding.word": s.get(f"{body}embeddings.word_embeddings.weight"), **norm(s, "embedding.norm", f"{body}embeddings.LayerNorm")}
    types = s.number(c, "type_vocab_size", 0, default=0)
    if types:
        made["embedding.token_type"] = s.get(f"{body}embeddings.token_type_embeddings.weight")
    if c.get("position_biased_input", True):
        made["embedding.position"] = s.get(f"{body}embeddings.position_embeddings.weight")
    s.drop("position_ids")
    s.drop(*(name for name in s.stored if name.startswith("mask_predictions.")))
    relative = _relative_table(s, body, buckets)
    for i in range(layers):
        theirs, ours = f"{body}encoder.layer.{i}", f"layers.{i}"
        names = [f"{theirs}.attention.self.{n}_proj" for n in ("query", "key", "value")]
        made |= attention(s, ours, names, f"{theirs}.attention.output.dense")
        made |= _relative(s, made, ours, f"{theirs}.attention.self", relative, kinds)
        made |= norm(s, f"{ours}.attention.norm", f"{theirs}.attention.output.LayerNorm")
        made |= dense(s, ours, f"{theirs}.intermediate.dense", f"{theirs}.output.dense")
        made |= norm(s, f"{ours}.ffn.norm", f"{theirs}.output.LayerNorm")
    tasks = heads(s, made, body)
    if "lm_predictions.lm_head.dense.weight" in s:
        head = "lm_predictions.lm_head"
        tasks["fill_mask"] = fill_mask(
            s, made, f"{head}.dense", f"{head}.LayerNorm", f"{head}.decoder.weight", [f"{head}.bias"], activation(s, "hidden_act")
        )
    positions = None if "embedding.position" in made else Positions("none", places)
    return finish(s, made, tasks, **_sizes(s, 1e-7), positions=positions, token_types=types, distances=Disentangled(buckets, reach))


def _relative_table(s: Source, body: str, buckets: int) -> np.ndarray:
    """The rows of distances (2 * buckets, D) that layers share, normed if the config says so."""
    table = s.get(f"{body}encoder.rel_embeddings.weight").float32()[: 2 * buckets]
    if "layer_norm" not in str(s.data.get("norm_rel_ebd", "none")).lower():
        return table
    made = norm(s, "norm", f"{body}encoder.LayerNorm")
    fits = [_fits(s, f"{body}encoder.LayerNorm.{part}", made[f"norm.{part}"].data, table.shape[1:]) for part in ("weight", "bias")]
    if not all(fits):
        return table
    centred = table - table.mean(-1, keepdims=True)
    scale = np.sqrt((centred * centred).mean(-1, keepdims=True) + s.number(s.data, "layer_norm_eps", 0, 1, kind=float, default=1e-7))
    normed: np.ndarray = centred / scale * made["norm.weight"].data + made["norm.bias"].data
    return normed


def _relative(s: Source, made: dict[str, Tensor], ours: str, theirs: str, table: np.ndarray, kinds: list[str]) -> dict[str, Tensor]:
    """The keys and queries of distances of a layer, and its map of q, k and v, whose q has the scale 1 / sqrt(1 + kinds)."""
    parts = {}
    for part, shared, own, kind in (("keys", "key", "pos_key", "c2p"), ("queries", "query", "pos_query", "p2c")):
        name = f"{theirs}.{shared if s.data.get('share_att_key', False) else own}_proj"
        parts[part] = np.zeros_like(table)
        if kind in kinds:
            weight, bias = s.get(f"{name}.weight").float32(), s.vector(f"{name}.bias").data
            if _fits(s, f"{name}.weight", weight, (len(bias), table.shape[1])):
                parts[part] = table @ weight.T + bias
    scale = np.float32((1 + len(set(kinds))) ** -0.5)
    weight, bias = (made[f"{ours}.attention.qkv.{name}"].float32().copy() for name in ("weight", "bias"))
    for array in (weight, bias):
        array[: len(array) // 3] *= scale
    dtype = made[f"{ours}.attention.qkv.weight"].dtype
    return {
        f"{ours}.attention.relative_keys": Tensor(parts["keys"], "float32"),
        f"{ours}.attention.relative_queries": Tensor(parts["queries"] * scale, "float32"),
        f"{ours}.attention.qkv.weight": Tensor(weight, "float32").to(dtype),
        f"{ours}.attention.qkv.bias": Tensor(bias, "float32"),
    }


def _fits(s: Source, name: str, array: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether the tensor `name` has this shape. If not, config() raises the error."""
    if array.shape != shape:
        s.problems.append(f"shape    {name} is {array.shape}, expected {shape}")
    return array.shape == shape


def _sizes(s: Source, eps: float = 1e-12) -> dict[str, Any]:
    """The sizes that these families name alike."""
    return {
        "hidden": s.number(s.data, "hidden_size", 1),
        "layers": s.number(s.data, "num_hidden_layers", 1, MAX_LAYERS),
        "heads": s.number(s.data, "num_attention_heads", 1),
        "ffn": Dense(s.number(s.data, "intermediate_size", 1)),
        "eps": s.number(s.data, "layer_norm_eps", 0, 1, kind=float, default=eps),
        "activation": activation(s, "hidden_act"),
    }
