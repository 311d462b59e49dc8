"""Folders that hold something other than a text encoder in safetensors or a .bin: what they hold, by name, and what to do."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError, FastinferError, listed, short
from ..strict_json import read_json
from .read import WEIGHTS

__all__ = ["described", "formats", "names_in", "refuse_folder", "refuse_quantised", "refuse_without_weights"]

FORMATS = {  # what a file holds, by its name
    "GGUF weights": r"\.gguf$",
    "an ONNX model": r"\.onnx$",
    "an OpenVINO model": r"(^|/)openvino[^/]*\.xml$",
    "TensorFlow weights": r"\.h5$|(^|/)saved_model\.pb$|\.ckpt(\.index)?$|\.tflite$",
    "Flax weights": r"\.msgpack$",
    "a Core ML model": r"\.mlmodel$|\.mlpackage$",
    "weights of rust-bert": r"\.ot$",
}
FORMAT_FOLDERS = ("onnx", "openvino", "saved_model")  # where repositories keep other formats
ORIGINAL = f"expected {' or '.join(WEIGHTS)}: take it from the repository of the original model"
MODULES = {  # kinds of a first module without a transformer
    "StaticEmbedding": "a table of static embeddings without an encoder",
    "WordEmbeddings": "a table of static embeddings without an encoder",
    "BoW": "a bag of words",
    "CLIPModel": "a model of images",
    "Router": "several models, chosen by the kind of text",
    "Asym": "several models, chosen by the kind of text",
}
# What a model is, by the name of its type and its classes, and by keys that only such configs have; the first that fits.
KINDS: list[tuple[str, str, tuple[str, ...]]] = [
    ("a table of static embeddings without an encoder", r"model2vec|StaticModel|static", ()),
    ("a model of images", r"Image|Vision|ViT|vit\b|CLIP|clip|[Ss]iglip|Detection|Segmentation", ("vision_config", "image_size")),
    ("a model of audio", r"Audio|Speech|CTC|[Ww]av2[Vv]ec|[Ww]hisper|[Hh]ubert", ("audio_config", "num_mel_bins", "feat_extract_norm")),
    ("a decoder-only language model", r"ForCausalLM|LMHead|gpt|llama|mistral|qwen|gemma|phi|falcon|bloom|\bopt\b|mamba|rwkv", ()),
    ("a model of an encoder and a decoder", r"ForConditionalGeneration|\bm?t5\b|bart|pegasus|marian", ()),
]


def names_in(folder: Path) -> list[str]:
    """Names of the files in a folder, and of those in its folders for other formats, relative to it."""
    found = []
    for at in ("", *FORMAT_FOLDERS):
        try:
            found += [os.path.join(at, name) for name in sorted(os.listdir(folder / at))]
        except (OSError, ValueError):
            continue
    return found


def refuse_folder(folder: Path, names: Iterable[str] | None = None) -> None:
    """Raise CheckpointError where the files of a folder show that it holds no model to run here. Its config.json is not read.

    names  its files, where more are known than lie in it; None: those in it
    """
    names = names_in(folder) if names is None else list(names)
    said = None
    if "model_index.json" in names:
        said = "holds a diffusers pipeline (model_index.json), expected a text encoder"
    elif "adapter_config.json" in names and not _has_weights(names):
        said = _adapter_alone(folder)
    elif "config.json" not in names:
        said = _without_config(folder, names)
    if said is not None:
        raise CheckpointError(f"{folder} {said}")


def refuse_without_weights(folder: Path, names: Iterable[str] | None = None) -> None:
    """Raise CheckpointError for a folder without weights in a format that is read, naming those that it has. names: as above."""
    names = names_in(folder) if names is None else list(names)
    if not _has_weights(names):
        others = formats(names)
        raise CheckpointError(f"{folder} has no weights" + (f" but {listed(others, ' and ')}" if others else "") + f", {ORIGINAL}")


def refuse_quantised(data: dict[str, Any], folder: Path) -> None:
    """Raise ConfigError for weights that another tool has quantised."""
    for key in ("quantization_config", "compression_config"):
        found = data.get(key)
        if found:
            method = found.get("quant_method", "bitsandbytes") if isinstance(found, dict) else found
            raise ConfigError(
                f"{folder / 'config.json'}: {key} says that the weights are quantised by {short(method)}, which is not read: "
                f'take the original weights, and load them with dtype="int8"'
            )


def described(data: dict[str, Any]) -> str:
    """What a model is that has this config.json and is not recognised, to follow its model_type in a message; '' where unknown."""
    classes = data.get("architectures")
    names = [str(name) for name in (classes if isinstance(classes, list) else ())]
    text = " ".join([str(data.get("model_type")), *names])
    if data.get("is_encoder_decoder") is True:
        return f", {KINDS[-1][0]}"
    return next((f", {kind}" for kind, pattern, keys in KINDS if re.search(pattern, text) or any(data.get(key) for key in keys)), "")


def formats(names: list[str]) -> list[str]:
    """Each format of FORMATS that is among the files, with its first file."""
    found = ((kind, next((n for n in names if re.search(pattern, n)), None)) for kind, pattern in FORMATS.items())
    return [f"{kind} ({short(name)})" for kind, name in found if name is not None]


def _has_weights(names: list[str]) -> bool:
    return any(name in names or f"{name}.index.json" in names for name in WEIGHTS)


def _adapter_alone(folder: Path) -> str:
    settings = _read(folder / "adapter_config.json", dict) or {}
    base, task = settings.get("base_model_name_or_path"), settings.get("task_type")
    said = f"holds an adapter (adapter_config.json) without the weights of its base model, {short(base)}"
    if task in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
        return f"{said}; its task_type is {task}, and fastinfer runs encoders"
    return f"{said}: add that model's config.json, model.safetensors and tokenizer files to the folder"


def _without_config(folder: Path, names: list[str]) -> str | None:
    snapshots = folder / "snapshots"
    if snapshots.is_dir():
        inside = [f"snapshots/{name}" for name in sorted(os.listdir(snapshots))]
        return f"is a repository in a hub cache: open one of its snapshots ({listed(inside) or 'it has none'})"
    modules = _read(folder / "modules.json", list) or []
    first = str(modules[0].get("type", "")).rpartition(".")[2] if modules and isinstance(modules[0], dict) else ""
    if first == "Transformer":
        return None
    if first in MODULES:
        return f"begins with a module {first} (modules.json), {MODULES[first]}; expected a Transformer"
    caches = [name for name in names if name.startswith("models--")]
    if caches:
        return f"is a hub cache: open one of its repositories by its name, such as {caches[0][8:].replace('--', '/')}"
    others = formats(names)
    if others:
        return f"has no config.json but {listed(others, ' and ')}; expected config.json, and {' or '.join(WEIGHTS)}"
    return None


def _read(path: Path, kind: type) -> Any:
    """The value of a JSON file; None where the file is missing, broken or of another kind."""
    try:
        value = read_json(path)
    except FastinferError:
        return None
    return value if isinstance(value, kind) else None
