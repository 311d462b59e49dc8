"""Checkpoints of Hugging Face: BERT, the RoBERTa family and DistilBERT, with their heads, also inside sentence-transformers folders."""

from __future__ import annotations

from typing import Any

from ...config import MAX_LAYERS, Answer, Config, Dense, Embed, FillMask, Norm, Positions, Tasks
from ..tensor import Tensor
from .settings import sentence_transformers
from .source import Source, classify, linear, norm, refuse, special_ids, stack, stored_dtypes, tag, tied
from .tokenizer import token_limit

__all__ = ["bert", "distilbert", "roberta"]


def bert(s: Source) -> tuple[Config, dict[str, Tensor]]:
    """The Config and the renamed tensors of a BERT checkpoint."""
    return _hugging_face(s, "bert.", first_position=0)


def roberta(s: Source) -> tuple[Config, dict[str, Tensor]]:
    """The Config and the renamed tensors of a checkpoint of the RoBERTa family."""
    # RoBERTa numbers positions from padding_idx + 1, so it never uses the rows before that.
    return _hugging_face(s, "roberta.", first_position=s.number(s.data, "pad_token_id", 0, default=1) + 1)


def _hugging_face(s: Source, prefix: str, first_position: int) -> tuple[Config, dict[str, Tensor]]:
    """bert and roberta in one. prefix: begins the names of the body; first_position: the first row of positions that is used."""
    c = s.data
    if c.get("hidden_act", "gelu") != "gelu":
        raise refuse(s, "hidden_act", c["hidden_act"], "the exact gelu")
    if (c.get("position_embedding_type") or "absolute") != "absolute":
        raise refuse(s, "position_embedding_type", c["position_embedding_type"], "absolute")
    if c.get("is_decoder") or c.get("add_cross_attention"):
        raise refuse(s, "is_decoder or add_cross_attention", True, "encoders")
    layers = s.number(c, "num_hidden_layers", 1, MAX_LAYERS)
    body = prefix if f"{prefix}embeddings.word_embeddings.weight" in s else ""
    made = {
        "embedding.word": s.get(f"{body}embeddings.word_embeddings.weight"),
        "embedding.position": _rows(s.get(f"{body}embeddings.position_embeddings.weight"), first_position),
        "embedding.token_type": s.get(f"{body}embeddings.token_type_embeddings.weight"),
        **norm(s, "embedding.norm", f"{body}embeddings.LayerNorm"),
    }
    s.drop("position_ids", "embeddings.token_type_ids", "seq_relationship.weight", "seq_relationship.bias")
    for i in range(layers):
        theirs, ours = f"{body}encoder.layer.{i}", f"layers.{i}"
        made |= _attention(s, ours, [f"{theirs}.attention.self.{n}" for n in ("query", "key", "value")], f"{theirs}.attention.output.dense")
        made |= norm(s, f"{ours}.attention.norm", f"{theirs}.attention.output.LayerNorm")
        made |= _dense(s, ours, f"{theirs}.intermediate.dense", f"{theirs}.output.dense")
        made |= norm(s, f"{ours}.ffn.norm", f"{theirs}.output.LayerNorm")
    tasks = _heads(s, made, body)
    return _finish(
        s,
        made,
        tasks,
        hidden=s.number(c, "hidden_size", 1),
        layers=layers,
        heads=s.number(c, "num_attention_heads", 1),
        width=s.number(c, "intermediate_size", 1),
        eps=s.number(c, "layer_norm_eps", 0, 1, kind=float, default=1e-12),
        token_types=len(made["embedding.token_type"].data),
    )


def _heads(s: Source, made: dict[str, Tensor], body: str) -> dict[str, Any]:
    """{task: its config} of the heads whose tensors the checkpoint has; the tensors are added to `made`."""
    pooler = f"{body}pooler.dense" if f"{body}pooler.dense.weight" in s else None

    tasks: dict[str, Any] = {}
    names = " ".join(s.data.get("architectures") or ())
    if "cls.predictions.transform.dense.weight" in s:
        tasks["fill_mask"] = _fill_mask(
            s,
            made,
            "cls.predictions.transform.dense",
            "cls.predictions.transform.LayerNorm",
            "cls.predictions.decoder.weight",
            ["cls.predictions.decoder.bias", "cls.predictions.bias"],
        )
    elif "lm_head.dense.weight" in s:
        tasks["fill_mask"] = _fill_mask(
            s,
            made,
            "lm_head.dense",
            "lm_head.layer_norm",
            "lm_head.decoder.weight",
            ["lm_head.decoder.bias", "lm_head.bias"],
        )
    elif "classifier.out_proj.weight" in s:
        tasks["classify"] = classify(s, made, [("classifier.dense", "tanh")], "classifier.out_proj")
    elif "classifier.weight" in s and pooler and "TokenClassification" not in names:
        tasks["classify"] = classify(s, made, [(pooler, "tanh")], "classifier")
    elif "classifier.weight" in s:
        tasks["tag"] = tag(s, made)
    if "qa_outputs.weight" in s:
        made |= linear(s, "tasks.answer.out", "qa_outputs")
        tasks["answer"] = Answer()
    s.drop(f"{body}pooler.dense.weight", f"{body}pooler.dense.bias")
    return tasks


def distilbert(s: Source) -> tuple[Config, dict[str, Tensor]]:
    """The Config and the renamed tensors of a DistilBERT checkpoint."""
    c = s.data
    if c.get("activation", "gelu") != "gelu":
        raise refuse(s, "activation", c["activation"], "the exact gelu")
    layers = s.number(c, "n_layers", 1, MAX_LAYERS)
    body = "distilbert." if "distilbert.embeddings.word_embeddings.weight" in s else ""
    made = {
        "embedding.word": s.get(f"{body}embeddings.word_embeddings.weight"),
        "embedding.position": s.get(f"{body}embeddings.position_embeddings.weight"),
        **norm(s, "embedding.norm", f"{body}embeddings.LayerNorm"),
    }
    s.drop("position_ids")
    for i in range(layers):
        theirs, ours = f"{body}transformer.layer.{i}", f"layers.{i}"
        made |= _attention(s, ours, [f"{theirs}.attention.{n}_lin" for n in "qkv"], f"{theirs}.attention.out_lin")
        made |= norm(s, f"{ours}.attention.norm", f"{theirs}.sa_layer_norm")
        made |= _dense(s, ours, f"{theirs}.ffn.lin1", f"{theirs}.ffn.lin2")
        made |= norm(s, f"{ours}.ffn.norm", f"{theirs}.output_layer_norm")
    tasks: dict[str, Any] = {}
    if "vocab_transform.weight" in s:
        tasks["fill_mask"] = _fill_mask(s, made, "vocab_transform", "vocab_layer_norm", "vocab_projector.weight", ["vocab_projector.bias"])
    elif "pre_classifier.weight" in s:
        tasks["classify"] = classify(s, made, [("pre_classifier", "relu")], "classifier")
    elif "classifier.weight" in s:
        tasks["tag"] = tag(s, made)
    if "qa_outputs.weight" in s:
        made |= linear(s, "tasks.answer.out", "qa_outputs")
        tasks["answer"] = Answer()
    return _finish(
        s,
        made,
        tasks,
        hidden=s.number(c, "dim", 1),
        layers=layers,
        heads=s.number(c, "n_heads", 1),
        width=s.number(c, "hidden_dim", 1),
        eps=1e-12,
        token_types=0,
    )


def _finish(
    s: Source,
    made: dict[str, Tensor],
    tasks: dict[str, Any],
    *,
    hidden: int,
    layers: int,
    heads: int,
    width: int,
    eps: float,
    token_types: int,
) -> tuple[Config, dict[str, Tensor]]:
    """The Config and the tensors, with the pooling and the text limit of a sentence-transformers folder."""
    positions = len(made["embedding.position"].data)
    pooling, normalize = sentence_transformers(s.folder)
    if pooling or not tasks:
        tasks["embed"] = Embed(pooling or "mean", normalize)
    return (
        s.config(
            hidden=hidden,
            layers=layers,
            heads=heads,
            vocabulary=len(made["embedding.word"].data),
            norm=Norm("post", eps),
            positions=Positions("learned", positions),
            ffn=(Dense(width),) * layers,
            max_tokens=token_limit(s.folder, positions),
            tasks=Tasks(**tasks),
            token_types=token_types,
            ids=special_ids(s, len(made["embedding.word"].data)),
            stored=stored_dtypes(made),
        ),
        made,
    )


def _attention(s: Source, ours: str, qkv: list[str], out: str) -> dict[str, Tensor]:
    """The attention tensors of layer `ours`; q, k and v are stacked."""
    return {
        f"{ours}.attention.qkv.weight": stack(s.get(f"{n}.weight") for n in qkv),
        f"{ours}.attention.qkv.bias": stack(s.vector(f"{n}.bias") for n in qkv),
        **linear(s, f"{ours}.attention.out", out),
    }


def _dense(s: Source, ours: str, first: str, second: str) -> dict[str, Tensor]:
    """The tensors of the dense feedforward of layer `ours`."""
    return {
        **linear(s, f"{ours}.ffn.dense_in", first),
        f"{ours}.ffn.dense_out.weight": s.get(f"{second}.weight"),
        f"{ours}.ffn.b_out": s.vector(f"{second}.bias"),
    }


def _rows(table: Tensor, first: int) -> Tensor:
    """`table` without the rows before `first`."""
    return Tensor(table.data[first:], table.dtype) if first else table


def _fill_mask(s: Source, made: dict[str, Tensor], transform: str, layer_norm: str, decoder: str, biases: list[str]) -> FillMask:
    """The head of a masked language model. The first of `biases` that is stored is used; a second one is usually the same tensor."""
    made |= linear(s, "tasks.fill_mask.transform", transform)
    made |= norm(s, "tasks.fill_mask.norm", layer_norm)
    bias = next((b for b in biases if b in s), None)
    if bias:
        made["tasks.fill_mask.bias"] = s.vector(bias)
    s.drop(*biases)
    is_tied = tied(s, made, decoder)
    return FillMask(transform=True, tied=is_tied, bias=bias is not None)
