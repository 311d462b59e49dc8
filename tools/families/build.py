"""Family, a published layout as data, and the folders that it is built into: the publisher's, and the one that the oracle opens."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import sentence_transformers
import torch
import transformers

from .vocabularies import Vocabulary, vocabulary

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64}
# Keys that files of 2021 to 2023 have, and that newer ones no longer have or call otherwise.
OLD_KEYS = {"transformers_version": "4.30.2", "torch_dtype": "float32", "gradient_checkpointing": False, "dtype": None}
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Family:
    """A published layout.

    name        a published model that has this layout
    needs       what the layout asks of a reader beyond the family's architecture
    model       class of transformers (or of transcribed.py) that makes the weights
    tasks       what the layout is used for: embed, rank, classify, tag, answer, fill_mask, sparse, tokens, zero_shot
    vocabulary  kind of the tokenizer, a key of vocabularies.KINDS
    config      settings of the class's config that differ from SIZES
    published   keys of the published config.json that differ from those that transformers writes; None removes one
    names       the published names of the tensors, from those that transformers writes
    files       other files, path: JSON, a text, or tensors; None removes the file
    tokenizer   keys of tokenizer_config.json that differ from the vocabulary's; None removes one
    extra       files of the published folder that the oracle's must not have
    weights     file of the weights; with the ending .index.json, two files and their index
    dtype       dtype in which the weights are stored
    native      whether the oracle opens transformers' own config.json, because it cannot read the published one
    cuts        tokens at which tokenizer.json itself cuts and to which it pads; 0 for neither
    inside      folder inside the published one that holds the model itself; "" for the published folder
    saved_by    class of sentence-transformers that saves the published folder anew; "" for the files as they are
    oracle      "" for sentence-transformers and pipelines, "pooler" for the pooler_output of transformers
    refused     a word of the reason for which fastinfer shall refuse the layout; "" where it shall load
    """

    name: str
    needs: str
    model: str
    tasks: tuple[str, ...] = ("embed",)
    vocabulary: str = "bert"
    config: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, Any] = field(default_factory=dict)
    names: Callable[[Tensors], Tensors] | None = None
    files: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    weights: str = "model.safetensors"
    dtype: torch.dtype = torch.float32
    native: bool = False
    cuts: int = 0
    inside: str = ""
    saved_by: str = ""
    oracle: str = ""
    refused: str = ""

    def like(self, name: str, needs: str, **changes: Any) -> Family:
        """Another family, which differs in `changes`. Settings are merged, other fields replaced."""
        for key in changes.keys() & {"config", "published", "tokenizer"}:
            changes[key] = {**getattr(self, key), **changes[key]}
        return dataclasses.replace(self, name=name, needs=needs, **changes)


def build(family: Family, folder: Path) -> tuple[Path, Path]:
    """(the published folder, the folder for the oracle), written inside `folder`; mostly they are one folder."""
    theirs, words = folder / "theirs", vocabulary(family.vocabulary)
    model = theirs / family.inside
    make(family, words).save_pretrained(model)
    words.write(model, family.cuts)
    _edit(model / "tokenizer_config.json", family.tokenizer)
    _write(theirs, family.files)
    ours = shutil.copytree(theirs, folder / "published")
    _edit(ours / family.inside / "config.json", OLD_KEYS | dict(family.published))
    tensors = {name: t.to(family.dtype) for name, t in safetensors.torch.load_file(model / "model.safetensors").items()}
    safetensors.torch.save_file(tensors, model / "model.safetensors", {"format": "pt"})
    (ours / family.inside / "model.safetensors").unlink()
    tensors = family.names(tensors) if family.names else tensors
    tensors = {name: t.contiguous().clone() for name, t in tensors.items()}
    _write(ours / family.inside, _shards(tensors) if family.weights.endswith(".index.json") else {family.weights: tensors})
    _write(ours, family.extra)
    if family.saved_by:
        getattr(sentence_transformers, family.saved_by)(str(ours), device="cpu").save(str(folder / "saved"))
        return folder / "saved", folder / "saved"
    return ours, theirs if family.native else ours


def _shards(tensors: Tensors) -> dict[str, Any]:
    """The files of a model in two shards."""
    shards = {f"model-0000{i + 1}-of-00002.safetensors": dict(list(tensors.items())[i::2]) for i in range(2)}
    places = {name: file for file, part in shards.items() for name in part}
    return {**shards, "model.safetensors.index.json": {"metadata": {"total_size": 0}, "weight_map": places}}


def make(family: Family, words: Vocabulary) -> Any:
    """The model of a family, with random weights that are large enough for a wrong setting to show."""
    kind = getattr(transformers, family.model, None) or _transcribed(family.model)
    ids = {"pad_token_id": words.id_of("pad"), "bos_token_id": words.id_of("cls"), "eos_token_id": words.id_of("sep")}
    settings = {**SIZES, **{key: i for key, i in ids.items() if i is not None}, "vocab_size": words.raw.get_vocab_size(), **family.config}
    model = kind(kind.config_class(**{key: value for key, value in settings.items() if value is not None})).eval()
    generator = torch.Generator().manual_seed(sum(family.name.encode()))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.5 if "embedding" in name else 0.2
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale + is_norm)
    return model


def _transcribed(name: str) -> Any:
    from . import transcribed

    return getattr(transcribed, name)


def _edit(path: Path, changes: Mapping[str, Any]) -> None:
    """Change keys of a JSON file; None removes one."""
    data = json.loads(path.read_text()) | dict(changes)
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None or key not in changes}, indent=1))


def _write(folder: Path, files: Mapping[str, Any]) -> None:
    """Write files into a folder: tensors by the ending of the path, texts as they are, everything else as JSON."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.unlink()
        elif isinstance(content, str):
            path.write_text(content)
        elif name.endswith(".safetensors"):
            safetensors.torch.save_file(content, path, {"format": "pt"})
        elif name.endswith((".bin", ".pt")):
            torch.save(content, path)
        else:
            path.write_text(json.dumps(content, indent=1))


# --- sentence-transformers ---------------------------------------------------------------------------

IDENTITY, TANH, SIGMOID = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Tanh", "torch.nn.modules.activation.Sigmoid"
WAYS = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "mean_sqrt": "mean_sqrt_len_tokens", "last": "lasttoken"}


def sentence(
    pooling: str = "mean",
    *,
    normalize: bool = False,
    dense: tuple[tuple[int, int, bool, str], ...] = (),
    limit: int | None = 48,
    width: int = 32,
    lower: bool = False,
    settings: Mapping[str, Any] | None = None,
    limit_file: str = "sentence_bert_config.json",
    first: str = "",
    include_prompt: bool = True,
    dense_weights: str = "model.safetensors",
) -> dict[str, Any]:
    """The files of a sentence-transformers folder.

    dense     (in, out, bias, activation) of each Dense module after the pooling
    limit     max_seq_length; None leaves its file out
    settings  config_sentence_transformers.json; None leaves it out
    first     folder of the first module: "" in newer files, "0_Transformer" in old ones
    """
    kinds = [("Transformer", first), ("Pooling", "1_Pooling"), *(("Dense", f"{i}_Dense") for i in range(2, 2 + len(dense)))]
    if normalize:
        kinds.append(("Normalize", f"{len(kinds)}_Normalize"))
    switches = {f"pooling_mode_{key}": way == pooling for way, key in WAYS.items() if key != "lasttoken" or pooling == "last"}
    files: dict[str, Any] = modules(*kinds) | {"1_Pooling/config.json": {"word_embedding_dimension": width} | switches}
    if not include_prompt:
        files["1_Pooling/config.json"]["include_prompt"] = False
    if limit is not None:
        files[f"{first}/{limit_file}" if first else limit_file] = {"max_seq_length": limit, "do_lower_case": lower}
    if settings is not None:
        files["config_sentence_transformers.json"] = {"__version__": {"sentence_transformers": "2.2.2"}} | dict(settings)
    generator = torch.Generator().manual_seed(1)
    for i, (into, out, bias, activation) in enumerate(dense, 2):
        files[f"{i}_Dense/config.json"] = {"in_features": into, "out_features": out, "bias": bias, "activation_function": activation}
        tensors = {"linear.weight": torch.randn(out, into, generator=generator) * 0.3}
        if bias:
            tensors["linear.bias"] = torch.randn(out, generator=generator) * 0.3
        files[f"{i}_Dense/{dense_weights}"] = tensors
    return files


def modules(*kinds: tuple[str, str], package: str = "sentence_transformers.models") -> dict[str, Any]:
    """The modules.json of modules (class, folder)."""
    return {"modules.json": [{"idx": i, "name": str(i), "path": path, "type": f"{package}.{kind}"} for i, (kind, path) in enumerate(kinds)]}


# --- names -------------------------------------------------------------------------------------------


def without(*parts: str) -> Callable[[Tensors], Tensors]:
    """A renaming that leaves out the tensors with one of these parts in their names."""
    return lambda tensors: {name: t for name, t in tensors.items() if not any(part in name for part in parts)}


def renamed(*pairs: tuple[str, str]) -> Callable[[Tensors], Tensors]:
    """A renaming that replaces the first of each pair by the second, in order."""

    def rename(tensors: Tensors) -> Tensors:
        for old, new in pairs:
            tensors = {name.replace(old, new): t for name, t in tensors.items()}
        return tensors

    return rename


def prefixed(prefix: str) -> Callable[[Tensors], Tensors]:
    """A renaming that puts a prefix before every name."""
    return lambda tensors: {prefix + name: t for name, t in tensors.items()}


def with_positions(tensors: Tensors) -> Tensors:
    """The tensors with the position_ids that older files hold."""
    table = next(t for name, t in tensors.items() if name.endswith("position_embeddings.weight"))
    return tensors | {"embeddings.position_ids": torch.arange(len(table))[None]}


def then(*steps: Callable[[Tensors], Tensors]) -> Callable[[Tensors], Tensors]:
    """Several renamings, one after the other."""

    def rename(tensors: Tensors) -> Tensors:
        for step in steps:
            tensors = step(tensors)
        return tensors

    return rename
