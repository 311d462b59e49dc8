"""Checkpoints with gated feedforwards, and rotary positions or ALiBi: nomic_bert, ModernBERT, gte ("new"), JinaBERT and MosaicBERT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...activations import Activation
from ...config import (
    MAX_LAYERS,
    MAX_POSITIONS,
    MAX_THETA,
    Alibi,
    Answer,
    Attention,
    Classify,
    Config,
    Dense,
    FillMask,
    Gated,
    HeadLayer,
    Norm,
    Positions,
    Tag,
)
from ...errors import ConfigError, short
from ..tensor import Tensor
from .huggingface import attention, fill_mask, finish, heads, rows
from .source import Source, activation, classify, halves, linear, norm, refuse, require, tag, zeros

__all__ = ["alibi", "flash_roberta", "gte", "modernbert", "nomic"]

# The keys of nomic_bert's published configs, which are those of GPT-2, and those of BERT, which transformers writes.
NOMIC_KEYS = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
    "layer_norm_eps": "layer_norm_epsilon",
    "hidden_act": "activation_function",
    "rope_theta": "rotary_emb_base",
}


def nomic(s: Source) -> tuple[Config, dict[str, Tensor]]:
    """The Config and the renamed tensors of a nomic_bert: post-norm, rotary positions, gated or dense feedforwards."""
    require(s, prenorm=False, parallel_block=False, use_rms_norm=False, causal=False, rotary_emb_interleaved=False, rotary_emb_fraction=1.0)
    require(s, scale_attn_weights=True, rotary_emb_scale_base=0, num_experts=0, moe_every_n_layers=0)
    c = dict(s.data)
    for ours, theirs in NOMIC_KEYS.items():
        if theirs in c and ours in c and ours != "hidden_act" and c[ours] != c[theirs]:
            raise refuse(s, ours, c[ours], f"{short(c[theirs])}, as {theirs} says")
        if theirs in c:
            c[ours] = c[theirs]
    return _flash(s, c, "attn", 1000.0)


def flash_roberta(s: Source) -> tuple[Config, dict[str, Tensor]]:
    """The Config and the renamed tensors of an XLM-R with packed attention (jina-embeddings-v3, jina-reranker-v2).

    The weights are those without the adapters that a jina-embeddings-v3 has beside them, as in a call that names no task.
    """
    s.stored = {name.replace(".parametrizations.weight.original", ".weight"): tensor for name, tensor in s.stored.items()}
    s.drop(*(name for name in s.stored if ".parametrizations.weight." in name))
    return _flash(s, s.data, "mixer", 20000.0)


def _flash(s: Source, c: Mapping[str, Any], mixer: str, theta: float) -> tuple[Config, dict[str, Tensor]]:
    """nomic and flash_roberta in one. c: the config by BERT's keys; mixer: the name of attention in tensors; theta: the default base."""
    layers = s.number(c, "num_hidden_layers", 1, MAX_LAYERS)
    body = s.prefix("embeddings.word_embeddings.weight")
    made = {"embedding.word": s.get(f"{body}embeddings.word_embeddings.weight"), **norm(s, "embedding.norm", f"{body}emb_ln")}
    types = s.number(c, "type_vocab_size", 0, default=2)
    if types:
        made["embedding.token_type"] = s.get(f"{body}embeddings.token_type_embeddings.weight")
    learned = f"{body}embeddings.position_embeddings.weight" in s
    if learned:
        first = s.number(c, "pad_token_id", 0, default=1) + 1
        made["embedding.position"] = rows(s.get(f"{body}embeddings.position_embeddings.weight"), first)
    gated = f"{body}encoder.layers.0.mlp.fc11.weight" in s
    act = "fc12" if gated else "fc1"  # the map that has the activation
    maps = f"{mixer}.Wqkv", f"{mixer}.out_proj", f"mlp.{act}", "mlp.fc2"
    qkv, out, fed_in, fed_out = (f"{body}encoder.layers.0.{name}.bias" in s for name in maps)
    for i in range(layers):
        theirs, ours = f"{body}encoder.layers.{i}", f"layers.{i}"
        made |= _attention(s, ours, f"{theirs}.{mixer}.Wqkv", f"{theirs}.{mixer}.out_proj", qkv, out)
        made |= norm(s, f"{ours}.attention.norm", f"{theirs}.norm1")
        made |= _map(s, f"{ours}.ffn.dense_in", f"{theirs}.mlp.{act}", fed_in)
        if gated:
            made |= _map(s, f"{ours}.ffn.dense_up", f"{theirs}.mlp.fc11", fed_in)
        made |= _out(s, ours, f"{theirs}.mlp.fc2", fed_out)
        made |= norm(s, f"{ours}.ffn.norm", f"{theirs}.norm2")
    places = s.number(c, "max_position_embeddings", 1, MAX_POSITIONS)
    if c.get("rotary_scaling_factor"):  # beyond the trained length, the base would change with the length of a text
        places = min(places, s.number(c, "max_trained_positions", 1, MAX_POSITIONS, default=2048))
    _plain_rotation(s, c.get("rope_parameters"))
    base = _theta(s, c, "rope_theta" if c.get("rope_theta") is not None else "rotary_emb_base", theta)
    return finish(
        s,
        made,
        heads(s, made, body),
        hidden=s.number(c, "hidden_size", 1),
        layers=layers,
        heads=s.number(c, "num_attention_heads", 1),
        eps=s.number(c, "layer_norm_eps", 0, 1, kind=float, default=1e-12),
        ffn=(Gated if gated else Dense)(s.number(c, "intermediate_size", 1), fed_in, fed_out),
        activation=_gate_activation(s, c.get("hidden_act", "silu")),
        positions=None if learned else Positions("none", places),
        token_types=types,
        attention=() if learned else (Attention(base),) * layers,
        attention_bias=qkv or out,
    )


def modernbert(s: Source) -> tuple[Config, dict[str, Tensor]]:
    """The Config and the renamed tensors of a ModernBERT: pre-norm, without a norm in layer 0, windows and two rotary bases."""
    c = s.data
    layers = s.number(c, "num_hidden_layers", 1, MAX_LAYERS)
    normed, attends, fed = (bool(c.get(key, False)) for key in ("norm_bias", "attention_bias", "mlp_bias"))
    body = s.prefix("embeddings.tok_embeddings.weight")
    made = {
        "embedding.word": s.get(f"{body}embeddings.tok_embeddings.weight"),
        **norm(s, "embedding.norm", f"{body}embeddings.norm", normed),
        **norm(s, "final_norm", f"{body}final_norm", normed),
    }
    for i in range(layers):
        theirs, ours = f"{body}layers.{i}", f"layers.{i}"
        if i:
            made |= norm(s, f"{ours}.attention.norm", f"{theirs}.attn_norm", normed)
        made |= _attention(s, ours, f"{theirs}.attn.Wqkv", f"{theirs}.attn.Wo", attends, attends)
        made |= norm(s, f"{ours}.ffn.norm", f"{theirs}.mlp_norm", normed)
        made |= _fused(s, ours, f"{theirs}.mlp.Wi", fed)
        made |= _out(s, ours, f"{theirs}.mlp.Wo", fed)
    eps = s.number(c, "norm_eps", 0, 1, kind=float, default=1e-5)
    return finish(
        s,
        made,
        _modernbert_heads(s, made, normed),
        hidden=s.number(c, "hidden_size", 1),
        layers=layers,
        heads=s.number(c, "num_attention_heads", 1),
        eps=eps,
        norm=Norm("pre", eps, first=False),
        ffn=Gated(s.number(c, "intermediate_size", 1), fed, fed),
        activation=activation(s, "hidden_activation"),
        positions=Positions("none", s.number(c, "max_position_embeddings", 1, MAX_POSITIONS, default=8192)),
        attention=_alternating(s, layers),
        attention_bias=attends,
        final_norm=True,
        pooling="cls",
    )


def gte(s: Source) -> tuple[Config, dict[str, Tensor]]:
    """The Config and the renamed tensors of a gte v1.5 (model_type "new" or "gte"): post-norm, rotary positions, gated feedforwards."""
    c = s.data
    require(s, layer_norm_type="layer_norm", position_embedding_type="rope", logn_attention_scale=False, pack_qkv=True)
    layers = s.number(c, "num_hidden_layers", 1, MAX_LAYERS)
    body = s.prefix("embeddings.word_embeddings.weight")
    made = {
        "embedding.word": s.get(f"{body}embeddings.word_embeddings.weight"),
        **norm(s, "embedding.norm", f"{body}embeddings.LayerNorm"),
    }
    types = s.number(c, "type_vocab_size", 0, default=0)
    if types:
        made["embedding.token_type"] = s.get(f"{body}embeddings.token_type_embeddings.weight")
    s.drop("position_ids", "rotary_emb.inv_freq")
    for i in range(layers):
        theirs, ours = f"{body}encoder.layer.{i}", f"layers.{i}"
        made |= _attention(s, ours, f"{theirs}.attention.qkv_proj", f"{theirs}.attention.o_proj", True, True)
        made |= norm(s, f"{ours}.attention.norm", f"{theirs}.attn_ln")
        up, gate = halves(s.get(f"{theirs}.mlp.up_gate_proj.weight"))
        made |= {f"{ours}.ffn.dense_in.weight": gate, f"{ours}.ffn.dense_up.weight": up}
        made |= _out(s, ours, f"{theirs}.mlp.down_proj", True)
        made |= norm(s, f"{ours}.ffn.norm", f"{theirs}.mlp_ln")
    hidden, count = s.number(c, "hidden_size", 1), s.number(c, "num_attention_heads", 1)
    if "lm_head.norm.weight" in s:
        names = "lm_head.dense", "lm_head.norm", "lm_head.decoder.weight", ["lm_head.decoder.bias", "lm_head.bias"]
        tasks: dict[str, Any] = {"fill_mask": fill_mask(s, made, *names, activation(s, "hidden_act"))}
    else:
        tasks = heads(s, made, body)
    return finish(
        s,
        made,
        tasks,
        hidden=hidden,
        layers=layers,
        heads=count,
        eps=s.number(c, "layer_norm_eps", 0, 1, kind=float, default=1e-12),
        ffn=Gated(s.number(c, "intermediate_size", 1), False, True),
        activation=activation(s, "hidden_act"),
        positions=Positions("none", s.number(c, "max_position_embeddings", 1, MAX_POSITIONS)),
        token_types=types,
        attention=(_scaled_rotation(s, hidden // count),) * layers,
        pooling="cls",
    )


def alibi(s: Source) -> tuple[Config, dict[str, Tensor]]:
    """The Config and the renamed tensors of a JinaBERT or MosaicBERT: a BERT with ALiBi and gated feedforwards."""
    c = s.data
    kind = c.get("feed_forward_type", "geglu")
    if kind not in ("geglu", "reglu"):
        raise refuse(s, "feed_forward_type", kind, "geglu and reglu")
    if any(name.endswith("attention.self.layer_norm_q.weight") for name in s.stored):
        raise refuse(s, "attention.self.layer_norm_q", "a norm of q and k", "attention without it")
    layers = s.number(c, "num_hidden_layers", 1, MAX_LAYERS)
    body = s.prefix("embeddings.word_embeddings.weight")
    made = {
        "embedding.word": s.get(f"{body}embeddings.word_embeddings.weight"),
        "embedding.token_type": s.get(f"{body}embeddings.token_type_embeddings.weight"),
        **norm(s, "embedding.norm", f"{body}embeddings.LayerNorm"),
    }
    s.drop("position_ids", "embeddings.token_type_ids", "encoder.alibi", "seq_relationship.weight", "seq_relationship.bias")
    packed = f"{body}encoder.layer.0.attention.self.Wqkv.weight" in s
    for i in range(layers):
        theirs, ours = f"{body}encoder.layer.{i}", f"layers.{i}"
        if packed:
            made |= _attention(s, ours, f"{theirs}.attention.self.Wqkv", f"{theirs}.attention.output.dense", True, True)
        else:
            names = [f"{theirs}.attention.self.{n}" for n in ("query", "key", "value")]
            made |= attention(s, ours, names, f"{theirs}.attention.output.dense")
        made |= norm(s, f"{ours}.attention.norm", f"{theirs}.attention.output.LayerNorm")
        made |= _fused(s, ours, f"{theirs}.mlp.gated_layers", False)
        made |= _out(s, ours, f"{theirs}.mlp.wo", True)
        made |= norm(s, f"{ours}.ffn.norm", f"{theirs}.mlp.layernorm")
    return finish(
        s,
        made,
        heads(s, made, body),
        hidden=s.number(c, "hidden_size", 1),
        layers=layers,
        heads=s.number(c, "num_attention_heads", 1),
        eps=s.number(c, "layer_norm_eps", 0, 1, kind=float, default=1e-12),
        ffn=Gated(s.number(c, "intermediate_size", 1), False, True),
        activation="relu" if kind == "reglu" else activation(s, "hidden_act"),
        positions=Positions("none", s.number(c, "max_position_embeddings", 1, MAX_POSITIONS)),
        token_types=len(made["embedding.token_type"].data),
        distances=Alibi(),
    )


def _attention(s: Source, ours: str, qkv: str, out: str, qkv_bias: bool, out_bias: bool) -> dict[str, Tensor]:
    """The attention tensors of a layer whose q, k and v are one map. Where one of both maps has a bias, the other gets zeros."""
    made = {}
    for name, theirs, has in (("qkv", qkv, qkv_bias), ("out", out, out_bias)):
        weight = made[f"{ours}.attention.{name}.weight"] = s.get(f"{theirs}.weight")
        if qkv_bias or out_bias:
            made[f"{ours}.attention.{name}.bias"] = s.vector(f"{theirs}.bias") if has else zeros(len(weight.data))
    return made


def _fused(s: Source, ours: str, theirs: str, bias: bool) -> dict[str, Tensor]:
    """The two maps into a gated feedforward, from one whose first half of rows has the activation."""
    made = {}
    for name, tensor in [("weight", s.get(f"{theirs}.weight"))] + ([("bias", s.vector(f"{theirs}.bias"))] if bias else []):
        made[f"{ours}.ffn.dense_in.{name}"], made[f"{ours}.ffn.dense_up.{name}"] = halves(tensor)
    return made


def _out(s: Source, ours: str, theirs: str, bias: bool) -> dict[str, Tensor]:
    """The map out of a feedforward."""
    made = {f"{ours}.ffn.dense_out.weight": s.get(f"{theirs}.weight")}
    return made | ({f"{ours}.ffn.b_out": s.vector(f"{theirs}.bias")} if bias else {})


def _map(s: Source, ours: str, theirs: str, bias: bool) -> dict[str, Tensor]:
    """A linear map, with a bias or without one."""
    return linear(s, ours, theirs) if bias else {f"{ours}.weight": s.get(f"{theirs}.weight")}


def _gate_activation(s: Source, name: Any) -> Activation:
    """The activation of a nomic_bert, whose config may name the gate."""
    gates: dict[Any, Activation] = {"swiglu": "silu", "geglu": "gelu", "reglu": "relu"}
    if isinstance(name, str) and name in gates:
        return gates[name]
    return activation(s, "activation_function" if "activation_function" in s.data else "hidden_act", "silu")


def _theta(s: Source, at: Mapping[str, Any], key: str, default: float) -> float:
    """The rotary base: at[key], else the rope_theta of rope_parameters, else the default."""
    parameters = at.get("rope_parameters")
    if at.get(key) is None and isinstance(parameters, dict):
        at, key = parameters, "rope_theta"
    theta: float = s.number(at, key, 1, int(MAX_THETA), kind=float) if at.get(key) is not None else default
    return theta


def _plain_rotation(s: Source, parameters: Any) -> None:
    """Raise ConfigError unless rotary positions are plain."""
    kind = parameters.get("rope_type", parameters.get("type", "default")) if isinstance(parameters, dict) else "default"
    if kind != "default":
        raise refuse(s, "rope_type", kind, "default")


def _alternating(s: Source, layers: int) -> tuple[Attention, ...]:
    """The attention of each layer of a ModernBERT: all tokens in some layers, a window in the others, each with a base of its own."""
    c = s.data
    require(s, rope_scaling={})
    parameters = c.get("rope_parameters") or {}
    thetas = {}
    for kind, key, default in (("full_attention", "global_rope_theta", 160000.0), ("sliding_attention", "local_rope_theta", 10000.0)):
        own = parameters.get(kind) or {}
        _plain_rotation(s, own)
        thetas[kind] = _theta(s, own, "rope_theta", default) if "rope_theta" in own else _theta(s, {key: c.get(key)}, key, default)
    every = s.number(c, "global_attn_every_n_layers", 1, MAX_LAYERS, default=3)
    kinds = c.get("layer_types") or ["sliding_attention" if i % every else "full_attention" for i in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in thetas for kind in kinds):
        raise ConfigError(f"{s.folder / 'config.json'}: layer_types is {short(kinds)}, expected {layers} of {', '.join(thetas)}")
    window = s.number(c, "local_attention", 2, 2 * MAX_POSITIONS, default=128) // 2
    require(s, sliding_window=window)  # transformers' name for half of local_attention
    return tuple(Attention(thetas[kind], window=window if kind == "sliding_attention" else None) for kind in kinds)


def _scaled_rotation(s: Source, size: int) -> Attention:
    """The rotary positions of a gte v1.5, whose base and frequencies NTK scaling changes by a factor, whatever the length of a text.

    factor f, heads of S values: base theta * f, frequencies times f**(-2 / S) (NTKScalingRotaryEmbedding of the published model).
    """
    theta = _theta(s, s.data, "rope_theta", 160000.0)
    scaling = s.data.get("rope_scaling")
    if scaling is None:
        _plain_rotation(s, s.data.get("rope_parameters"))
        return Attention(theta)
    kind = scaling.get("type", scaling.get("rope_type"))
    if kind != "ntk" or scaling.get("mixed_b") is not None:
        raise refuse(s, "rope_scaling", scaling, "null and type ntk without mixed_b")
    factor = s.number(scaling, "factor", 1, 1024, kind=float)
    return Attention(theta * factor, factor ** (-2 / size))


def _modernbert_heads(s: Source, made: dict[str, Tensor], normed: bool) -> dict[str, Any]:
    """{task: its config} of a ModernBERT, whose heads begin with a dense layer and a norm."""
    if "head.dense.weight" not in s:
        return {}
    bias, function = bool(s.data.get("classifier_bias", False)), activation(s, "classifier_activation")
    if "classifier.weight" not in s:
        made |= linear(s, "tasks.fill_mask.transform", "head.dense", bias) | norm(s, "tasks.fill_mask.norm", "head.norm", normed)
        decoder_bias = bool(s.data.get("decoder_bias", True))
        if decoder_bias:
            made["tasks.fill_mask.bias"] = s.vector("decoder.bias")
        if own := "decoder.weight" in s:
            made["tasks.fill_mask.decoder.weight"] = s.get("decoder.weight")
        return {"fill_mask": FillMask(True, not own, decoder_bias, function)}
    names = " ".join(s.data.get("architectures") or ())
    task = "tag" if "TokenClassification" in names else "answer" if "QuestionAnswering" in names else "classify"
    made |= linear(s, f"tasks.{task}.layers.0", "head.dense", bias) | norm(s, f"tasks.{task}.layers.0.norm", "head.norm", normed)
    layers = (HeadLayer(max(1, len(made[f"tasks.{task}.layers.0.weight"].data)), function, norm=True),)
    if task == "answer":
        made |= linear(s, "tasks.answer.out", "classifier")
        return {task: Answer(layers)}
    if task == "tag":
        tagger = tag(s, made)
        return {task: Tag(tagger.labels, tagger.scheme, layers)}
    pooling = s.data.get("classifier_pooling", "cls")
    if pooling not in ("cls", "mean"):
        raise refuse(s, "classifier_pooling", pooling, "cls and mean")
    classifier = classify(s, made, [], "classifier")
    return {task: Classify(classifier.labels, classifier.output, pooling, layers)}
