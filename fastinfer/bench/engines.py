"""The type of engines that run whole models, this project's engines, and the models for benchmarks."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .. import checkpoint
from ..checkpoint import Tensor
from ..config import FFF, Stored

NEEDS = ("numpy", "tokenizers", "safetensors")  # fastinfer's dependencies

# encode(ids (B, S) int64, mask (B, S) or None) -> hidden states, (B, S, D) or B times (S, D). Some have attributes: fastinfer's has
# `model`; rivals on a GPU have `encoder(batches)`, which gives a gpu_models.Encoder.
Encode: TypeAlias = Any
EmbedTexts = Callable[[list[str]], Any]


class Engine(NamedTuple):
    """One way to run one model.

    load       load(*arguments) -> Encode; a fresh process runs its source, so it uses nothing outside the function
    arguments  strings and numbers
    packages   packages that the engine needs, without fastinfer itself
    embed      (encode, tokenizer) -> run(texts) -> (B, D), if the engine batches texts itself; None: it gets padded batches
    """

    name: str
    model: str
    dtype: str
    load: Callable[..., Encode]
    arguments: tuple[Any, ...]
    packages: tuple[str, ...]
    embed: Callable[[Encode, Any], EmbedTexts] | None = None

    @property
    def own(self) -> bool:
        """Whether the engine belongs to this project."""
        return self.load is load_fastinfer

    def __str__(self) -> str:
        return f"{self.name} {self.model} {self.dtype}"


# (folder in the Hugging Face layout, cache, threads, wanted(name), left_out) -> engines of other projects. The function adds
# {name: why it cannot run} to left_out.
FindEngines = Callable[[Path, Path, Any, Callable[[str], bool], dict[str, str]], Iterator[Engine]]


def load_fastinfer(folder: str, dtype: str, device: str, threads: int) -> Encode:
    """The Encode of fastinfer with the checkpoint in `folder`."""
    import fastinfer

    model = fastinfer.load(folder, device=device, dtype=dtype, threads=threads)

    def encode(ids, mask=None):  # type: ignore[no-untyped-def]  # a fresh process runs this source, without typing
        rows = ids if mask is None else [row[: m.sum()] for row, m in zip(ids, mask, strict=True)]
        return model.hidden_states(fastinfer.PackedBatch.from_ids(rows))

    encode.model = model  # type: ignore[attr-defined]  # bench model asks an Encode for its model
    return encode


def embed_own(encode: Encode, tokenizer: Any) -> EmbedTexts:
    """model.embed as run(texts). It orders texts by length and packs them without padding."""
    return functools.partial(encode.model.embed, normalize=False)


def own_engines(
    source: Path,
    base: str,
    cache: Path,
    threads: int | None,
    device: str,
    shapes: Sequence[tuple[int, int]],
    dtypes: Sequence[str],
    wanted: Callable[[str], bool],
) -> Iterator[Engine]:
    """This project's engines that are wanted: the model in folder `source`, named `base`, and an FFF of each shape, in each dtype."""
    for shape in (None, *shapes):
        model = base if shape is None else "{}x{}".format(*shape)
        for dtype in dtypes:
            if wanted(f"fastinfer {model} {dtype}"):
                folder = stored_as(source, cache / f"fastinfer-{model}-{dtype}", dtype, shape)
                yield Engine("fastinfer", model, dtype, load_fastinfer, (str(folder), dtype, device, threads), NEEDS, embed_own)


# --- models ----------------------------------------------------------------------------------------

BERT_BASE = {
    "architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu", "hidden_size": 768, "intermediate_size": 3072,
    "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2,
    "layer_norm_eps": 1e-12, "pad_token_id": 0, "position_embedding_type": "absolute",
    "attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0,
}  # fmt: skip


def bert_base(folder: Path) -> Path:
    """`folder`, which holds BERT-base in the Hugging Face layout with random weights of seed 0. It is written if it is empty."""
    from safetensors.numpy import save_file

    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    save_file(bert_base_weights(), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(BERT_BASE, indent=1))
    return folder


def bert_base_weights() -> dict[str, np.ndarray]:
    """{name in the Hugging Face layout: weight} of BERT_BASE, random float32 values of seed 0."""
    rng = np.random.default_rng(0)
    hidden, width = 768, 3072
    weights: dict[str, np.ndarray] = {}

    def matrix(name: str, *shape: int, deviation: float = 0.02) -> None:
        weights[f"{name}.weight"] = rng.standard_normal(shape, np.float32) * np.float32(deviation)

    def linear(name: str, *shape: int) -> None:
        matrix(name, *shape)
        weights[f"{name}.bias"] = rng.standard_normal(shape[0], np.float32) * np.float32(0.02)

    def norm(name: str) -> None:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = np.ones(hidden, np.float32), np.zeros(hidden, np.float32)

    matrix("embeddings.word_embeddings", 30522, hidden)
    matrix("embeddings.position_embeddings", 512, hidden, deviation=0.01)
    matrix("embeddings.token_type_embeddings", 2, hidden, deviation=0.002)
    norm("embeddings.LayerNorm")
    for i in range(12):
        at = f"encoder.layer.{i}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            linear(f"{at}.attention.{name}", hidden, hidden)
        norm(f"{at}.attention.output.LayerNorm")
        linear(f"{at}.intermediate.dense", width, hidden)
        linear(f"{at}.output.dense", hidden, width)
        norm(f"{at}.output.LayerNorm")
    return weights


def stored_as(source: Path, folder: Path, dtype: str, shape: tuple[int, int] | None = None) -> Path:
    """`folder`, which holds the model of `source` in `dtype`. shape: (trees, depth) of random trees that replace its feedforwards."""
    if (folder / "config.json").exists():
        return folder
    config, weights = checkpoint.load(source, validate=False)
    if shape is not None:
        ffn = FFF(*shape)
        config = dataclasses.replace(config, ffn=(ffn,) * config.layers)
        rng = np.random.default_rng(0)
        scale = np.array([config.hidden**-0.5, ffn.used**-0.5], np.float32)[:, None]
        weights = {name: t for name, t in weights.items() if ".ffn." not in name or ".ffn.norm" in name}
        for i in range(config.layers):
            nodes = rng.standard_normal((ffn.trees, ffn.count, 2, config.hidden), np.float32) * scale
            weights[f"layers.{i}.ffn.nodes"] = Tensor(nodes, "float32")
            weights[f"layers.{i}.ffn.b_in"] = Tensor(np.zeros((ffn.trees, ffn.count), np.float32), "float32")
    spec = checkpoint.tensors(config)
    weights = {name: t if spec[name].family in ("vector", "table") else t.to(dtype) for name, t in weights.items()}
    checkpoint.save(folder, dataclasses.replace(config, stored=Stored(dtype, dtype, dtype)), weights)  # type: ignore[arg-type]  # save() checks dtype
    if (source / "tokenizer.json").exists():
        shutil.copy(source / "tokenizer.json", folder)
    return folder
