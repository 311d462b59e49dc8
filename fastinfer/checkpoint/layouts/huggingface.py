"""Checkpoints of Hugging Face: BERT, the RoBERTa family and DistilBERT, with their heads, also inside sentence-transformers folders."""

from __future__ import annotations

from typing import Any, Literal

from ...activations import Activation
from ...config import MAX_LAYERS, Answer, Config, Dense, FillMask, Gated, Norm, Pooling, Positions, Tasks
from ..tensor import Tensor
from .sentence_transformers import add_tasks
from .source import Source, activation, classify, linear, norm, refuse, require, special_ids, stack, stored_dtypes, tag, tied
from .tokenizer import token_limit

__all__ = [
    "attention",
    "bert",
    "data2vec",
    "dense",
    "distilbert",
    "dpr",
    "electra",
    "ernie",
    "fill_mask",
    "finish",
    "heads",
    "roberta",
    "rows",
]


def bert(s: Source) -> tuple[Config, dict[str, Tensor]]:
    """The Config and the renamed tensors of a BERT checkpoint."""
    return _hugging_face(s, "bert.")


def dpr(s: Source) -> tuple[Config, dict[str, Tensor]]:
    """The Config and the renamed tensors of a DPR encoder of questions or contexts: a BERT whose first token is the embedding."""
    if any(name.startswith("span_predictor.") for name in s.stored):
        raise refuse(s, "architectures", s.data.get("architectures"), "DPRQuestionEncoder and DPRContextEncoder, not readers")
    require(s, projection_dim=0)
    question = any(name.startswith("question_encoder.") for name in s.stored)
    prefix = "question_encoder.bert_model." if question else "ctx_encoder.bert_model."
    return _hugging_face(s, prefix, pooling="cls")


def roberta(s: Source) -> tuple[Config, dict[str, Tensor]]:
    """The Config and the renamed tensors of a checkpoint of the RoBERTa family."""
    return _hugging_face(s, "roberta.", pad=s.number(s.data, "pad_token_id", 0, default=1))


def data2vec(s: Source) -> tuple[Config, dict[str, Tensor]]:
    """The Config and the renamed tensors of a data2vec text model, which is a RoBERTa with another prefix."""
    return _hugging_face(s, "data2vec_text.", pad=s.number(s.data, "pad_token_id", 0, default=1))


def electra(s: Source) -> tuple[Config, dict[str, Tensor]]:
    """The Config and the renamed tensors of an ELECTRA: a BERT whose embeddings may be narrower. The discriminator's head is dropped."""
    s.drop(*(f"discriminator_predictions.{name}.{part}" for name in ("dense", "dense_prediction") for part in ("weight", "bias")))
    return _hugging_face(s, "electra.")


def ernie(s: Source) -> tuple[Config, dict[str, Tensor]]:
    """The Config and the renamed tensors of an ERNIE: a BERT that may have task types."""
    return _hugging_face(s, "ernie.")


def _hugging_face(s: Source, prefix: str, pad: int | None = None, pooling: Pooling = "mean") -> tuple[Config, dict[str, Tensor]]:
    """bert and roberta in one. prefix: begins the names of the body; pad: id of a token that takes no position."""
    c = s.data
    if (c.get("position_embedding_type") or "absolute") != "absolute":
        raise refuse(s, "position_embedding_type", c["position_embedding_type"], "absolute")
    layers = s.number(c, "num_hidden_layers", 1, MAX_LAYERS)
    body = prefix if f"{prefix}embeddings.word_embeddings.weight" in s else ""
    made = {
        "embedding.word": s.get(f"{body}embeddings.word_embeddings.weight"),
        "embedding.position": rows(s.get(f"{body}embeddings.position_embeddings.weight"), pad),
        "embedding.token_type": s.get(f"{body}embeddings.token_type_embeddings.weight"),
        **norm(s, "embedding.norm", f"{body}embeddings.LayerNorm"),
    }
    if c.get("use_task_id"):  # ERNIE adds the row of task 0 to every token, and each token has one row of a token type
        task = s.get(f"{body}embeddings.task_type_embeddings.weight").float32()[:1]
        made["embedding.token_type"] = Tensor(made["embedding.token_type"].float32() + task, "float32")
    width = s.number(c, "embedding_size", 1, default=c.get("hidden_size")) if prefix == "electra." else None
    if width != c.get("hidden_size") and width is not None:
        made |= linear(s, "embedding.project", f"{body}embeddings_project")
    s.drop("position_ids", "embeddings.token_type_ids", "embeddings.task_type_embeddings.weight")
    s.drop("seq_relationship.weight", "seq_relationship.bias")
    for i in range(layers):
        theirs, ours = f"{body}encoder.layer.{i}", f"layers.{i}"
        made |= attention(s, ours, [f"{theirs}.attention.self.{n}" for n in ("query", "key", "value")], f"{theirs}.attention.output.dense")
        made |= norm(s, f"{ours}.attention.norm", f"{theirs}.attention.output.LayerNorm")
        made |= dense(s, ours, f"{theirs}.intermediate.dense", f"{theirs}.output.dense")
        made |= norm(s, f"{ours}.ffn.norm", f"{theirs}.output.LayerNorm")
    tasks = heads(s, made, body)
    return finish(
        s,
        made,
        tasks,
        hidden=s.number(c, "hidden_size", 1),
        layers=layers,
        heads=s.number(c, "num_attention_heads", 1),
        ffn=Dense(s.number(c, "intermediate_size", 1)),
        eps=s.number(c, "layer_norm_eps", 0, 1, kind=float, default=1e-12),
        token_types=len(made["embedding.token_type"].data),
        activation=activation(s, "hidden_act"),
        embedding_width=width if "embedding.project.weight" in made else None,
        pooling=pooling,
        skip=pad,
    )


def heads(s: Source, made: dict[str, Tensor], body: str) -> dict[str, Any]:
    """{task: its config} of the heads whose tensors the checkpoint has; the tensors are added to `made`."""
    pooler = next((name for name in (f"{body}pooler.dense", "pooler.dense") if f"{name}.weight" in s), None)

    tasks: dict[str, Any] = {}
    names = " ".join(s.data.get("architectures") or ())
    if "cls.predictions.transform.dense.weight" in s:
        tasks["fill_mask"] = fill_mask(
            s,
            made,
            "cls.predictions.transform.dense",
            "cls.predictions.transform.LayerNorm"
            if "cls.predictions.transform.LayerNorm.weight" in s
            else "cls.predictions.transform.layer_norm",
            "cls.predictions.decoder.weight",
            ["cls.predictions.decoder.bias", "cls.predictions.bias"],
            activation(s, "hidden_act"),
        )
    elif "generator_predictions.dense.weight" in s:
        tasks["fill_mask"] = fill_mask(
            s,
            made,
            "generator_predictions.dense",
            "generator_predictions.LayerNorm",
            "generator_lm_head.weight",
            ["generator_lm_head.bias"],
        )
    elif "lm_head.dense.weight" in s:
        tasks["fill_mask"] = fill_mask(
            s,
            made,
            "lm_head.dense",
            "lm_head.layer_norm",
            "lm_head.decoder.weight",
            ["lm_head.decoder.bias", "lm_head.bias"],
        )
    elif "classifier.out_proj.weight" in s:
        # ELECTRA's classifier has a GELU where those of RoBERTa and MPNet have tanh.
        between = "gelu" if s.data.get("model_type") == "electra" else "tanh"
        tasks["classify"] = classify(s, made, [("classifier.dense", between)], "classifier.out_proj")
    elif "classifier.weight" in s and pooler and "TokenClassification" not in names:
        function = activation(s, "pooler_hidden_act") if s.data.get("model_type") == "deberta-v2" else "tanh"
        tasks["classify"] = classify(s, made, [(pooler, function)], "classifier")
    elif "classifier.weight" in s:
        tasks["tag"] = tag(s, made)
    if "qa_outputs.weight" in s:
        made |= linear(s, "tasks.answer.out", "qa_outputs")
        tasks["answer"] = Answer()
    s.drop("pooler.dense.weight", "pooler.dense.bias")
    return tasks


def distilbert(s: Source) -> tuple[Config, dict[str, Tensor]]:
    """The Config and the renamed tensors of a DistilBERT checkpoint."""
    c = s.data
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
        made |= attention(s, ours, [f"{theirs}.attention.{n}_lin" for n in "qkv"], f"{theirs}.attention.out_lin")
        made |= norm(s, f"{ours}.attention.norm", f"{theirs}.sa_layer_norm")
        made |= dense(s, ours, f"{theirs}.ffn.lin1", f"{theirs}.ffn.lin2")
        made |= norm(s, f"{ours}.ffn.norm", f"{theirs}.output_layer_norm")
    tasks: dict[str, Any] = {}
    if "vocab_transform.weight" in s:
        names = "vocab_transform", "vocab_layer_norm", "vocab_projector.weight", ["vocab_projector.bias"]
        tasks["fill_mask"] = fill_mask(s, made, *names, activation(s, "activation"))
    elif "pre_classifier.weight" in s:
        tasks["classify"] = classify(s, made, [("pre_classifier", "relu")], "classifier")
    elif "classifier.weight" in s:
        tasks["tag"] = tag(s, made)
    if "qa_outputs.weight" in s:
        made |= linear(s, "tasks.answer.out", "qa_outputs")
        tasks["answer"] = Answer()
    return finish(
        s,
        made,
        tasks,
        hidden=s.number(c, "dim", 1),
        layers=layers,
        heads=s.number(c, "n_heads", 1),
        ffn=Dense(s.number(c, "hidden_dim", 1)),
        eps=1e-12,
        token_types=0,
        activation=activation(s, "activation"),
    )


def finish(
    s: Source,
    made: dict[str, Tensor],
    tasks: dict[str, Any],
    *,
    hidden: int,
    layers: int,
    eps: float,
    token_types: int = 0,
    ffn: Dense | Gated,
    positions: Positions | None = None,
    skip: int | None = None,
    order: Literal["pre", "post"] = "post",
    pooling: Pooling = "mean",
    **others: Any,
) -> tuple[Config, dict[str, Tensor]]:
    """The Config and the tensors, with the heads and the text limit of a sentence-transformers folder.

    ffn        of all layers
    positions  None: a learned table, which `made` has
    skip       id of a token that takes no position there
    pooling    of a folder that says nothing about it
    others     further fields of the Config
    """
    places = positions or Positions("learned", len(made["embedding.position"].data) - (skip is not None), skip)
    most = token_limit(s.folder, places.max)
    add_tasks(s, made, tasks, hidden, most, pooling)
    return (
        s.config(
            hidden=hidden,
            layers=layers,
            vocabulary=len(made["embedding.word"].data),
            positions=places,
            ffn=(ffn,) * layers,
            max_tokens=most,
            tasks=Tasks(**tasks),
            token_types=token_types,
            ids=special_ids(s, len(made["embedding.word"].data)),
            stored=stored_dtypes(made),
            **{"norm": Norm(order, eps), **others},
        ),
        made,
    )


def attention(s: Source, ours: str, qkv: list[str], out: str) -> dict[str, Tensor]:
    """The attention tensors of layer `ours`; q, k and v are stacked."""
    return {
        f"{ours}.attention.qkv.weight": stack(s.get(f"{n}.weight") for n in qkv),
        f"{ours}.attention.qkv.bias": stack(s.vector(f"{n}.bias") for n in qkv),
        **linear(s, f"{ours}.attention.out", out),
    }


def dense(s: Source, ours: str, first: str, second: str) -> dict[str, Tensor]:
    """The tensors of the dense feedforward of layer `ours`."""
    return {
        **linear(s, f"{ours}.ffn.dense_in", first),
        f"{ours}.ffn.dense_out.weight": s.get(f"{second}.weight"),
        f"{ours}.ffn.b_out": s.vector(f"{second}.bias"),
    }


def rows(table: Tensor, pad: int | None) -> Tensor:
    """A table of positions from the row of padding on: RoBERTa numbers positions from there, so it never uses the rows before that."""
    return Tensor(table.data[pad:], table.dtype) if pad else table


def fill_mask(
    s: Source,
    made: dict[str, Tensor],
    transform: str,
    layer_norm: str,
    decoder: str,
    biases: list[str],
    function: Activation = "gelu",
) -> FillMask:
    """The head of a masked language model. The first of `biases` that is stored is used; a second one is usually the same tensor."""
    made |= linear(s, "tasks.fill_mask.transform", transform)
    made |= norm(s, "tasks.fill_mask.norm", layer_norm)
    bias = next((b for b in biases if b in s), None)
    if bias:
        made["tasks.fill_mask.bias"] = s.vector(bias)
    s.drop(*biases)
    is_tied = tied(s, made, decoder)
    return FillMask(transform=True, tied=is_tied, bias=bias is not None, activation=function)
