"""Models that the suite scores: checkpoints through the engine, static embeddings through model2vec, and int8 models through OpenVINO."""

from __future__ import annotations

import importlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol

import numpy as np
from rivals.cpu import export_onnx, load_openvino, quantize_openvino

import fastinfer
from fastinfer import checkpoint
from fastinfer.bench.models import embed_padded, read_tokenizer
from fastinfer.catalog import folder_of
from fastinfer.errors import InputError, TaskError

DTYPES = ("float32", "bfloat16", "float16", "int8")
ROUNDS = 15  # times that each model embeds the texts whose speed is measured
STATIC = 256  # dimensions of static embeddings, model2vec's default
OPENVINO = "openvino_model.xml"  # as optimum names it


class Entry(NamedTuple):
    """A column of the table: its name, the model, and the dtype to compute in (None: the one that the stored dtype suggests)."""

    name: str
    model: str
    dtype: str | None


def entry(given: str) -> Entry:
    """The entry that the user wrote as [NAME=]MODEL[:DTYPE]. Without a NAME, it is named after the model and the dtype."""
    name, _, rest = given.rpartition("=")
    model, _, dtype = rest.rpartition(":")
    if dtype not in DTYPES:
        model, dtype = rest, ""
    if not model:
        raise InputError(f"{given!r} names no model, expected [NAME=]MODEL[:DTYPE], where DTYPE is one of {', '.join(DTYPES)}")
    return Entry(name or f"{Path(model).name} {dtype}".strip(), model, dtype or None)


class Embedder(Protocol):
    """A model that is loaded: texts to vectors of length one."""

    def embed(self, texts: Sequence[str]) -> np.ndarray: ...


class Engine:
    """A checkpoint, through fastinfer."""

    def __init__(self, entry: Entry, device: str, threads: int | None) -> None:
        self.model = fastinfer.load(entry.model, device=device, dtype=entry.dtype, threads=threads)
        if "embed" not in self.model.tasks:
            raise TaskError(f"{entry.model} has no head for embed: it has {', '.join(self.model.tasks) or 'none'}")

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        vectors: np.ndarray = self.model.embed(texts, normalize=True)
        return vectors


class Static:
    """Static embeddings, through model2vec."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = _model2vec("model2vec").StaticModel.from_pretrained(folder)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.asarray(self.model.encode(list(texts), use_multiprocessing=False), np.float32)
        lengths: np.ndarray = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: np.ndarray = vectors / np.maximum(lengths, 1e-12)
        return unit


class OpenVINO:
    """What quantise() wrote, through OpenVINO: padded batches of 32 texts sorted by length, and the means of their tokens."""

    def __init__(self, folder: Path, threads: int | None) -> None:
        tokenizer = read_tokenizer(folder / "tokenizer.json", json.loads((folder / "config.json").read_bytes())["max_tokens"])
        encode = load_openvino(str(folder / OPENVINO), "bf16", threads or fastinfer.info()["threads"])
        self.run = embed_padded(encode, tokenizer, ordered=True)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        vectors = self.run(list(texts))
        unit: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit


def load(entry: Entry, device: str, threads: int | None) -> Embedder:
    """The model of an entry, loaded. Raises the errors of fastinfer.load, and TaskError for a model that does not embed."""
    folder = Path(entry.model)
    if (folder / OPENVINO).exists():
        return OpenVINO(folder, threads)
    try:
        static = "embedding_dtype" in json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, TypeError):
        static = False  # fastinfer.load says what is wrong
    if not static:
        return Engine(entry, device, threads)
    if entry.dtype:
        raise InputError(f"{entry.model} holds static embeddings, which have no dtype to compute in: leave :{entry.dtype} out")
    return Static(folder)


def about(entry: Entry) -> tuple[str, float]:
    """(SHA-256 of the files that are read, megabytes of those of the weights). Raises CheckpointError where there is no such model."""
    folder = folder_of(entry.model)
    weights = list(folder.glob("*.safetensors")) or list(folder.glob("*.bin"))
    return checkpoint.digest(folder), sum(file.stat().st_size for file in weights) / 1e6


def count_tokens(texts: Sequence[str]) -> int:
    """Tokens of the texts, as BERT's vocabulary of the model inside cuts them: the unit of all speeds, whatever the model's own tokens."""
    tokenizer: Any = fastinfer.load(device="cpu", threads=1).tokenizer
    return len(tokenizer.batch(tokenizer.encode(list(texts))).ids)


def microseconds(models: Mapping[str, Embedder], texts: Sequence[str]) -> dict[str, float]:
    """{name: median microseconds per token, from text to vectors}. The models take turns, each ROUNDS times."""
    tokens = count_tokens(texts)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        model.embed(texts[:32])
    for _ in range(ROUNDS):
        for name, model in models.items():
            start = time.perf_counter()
            model.embed(texts)
            seconds[name].append(time.perf_counter() - start)
    return {name: median(found) * 1e6 / tokens for name, found in seconds.items()}


def distil_static(teacher: str, out: Path) -> int:
    """Write static embeddings of a sentence-transformers folder by model2vec's method, and return the number of tokens that have one.

    Each token of the vocabulary passes the teacher alone. The vectors are reduced to STATIC dimensions by principal components, and
    weighted by the rank of their token.
    """
    folder = _published(teacher)
    model = _model2vec("model2vec.distill").distill(model_name=str(folder), pca_dims=STATIC, device="cpu")
    model.save_pretrained(str(out))
    return len(model.embedding)


def quantise(teacher: str, out: Path) -> None:
    """Write a folder in the Hugging Face layout, whose vectors are means of its tokens, as an int8 model of OpenVINO."""
    folder = _published(teacher)
    config = fastinfer.load(folder, device="cpu", threads=1).config
    if config.tasks.embed is None or config.tasks.embed.pooling != "mean" or config.tasks.embed.layers:
        raise TaskError(f"{teacher} does not embed by the mean of its tokens alone")
    with TemporaryDirectory() as scratch:
        export_onnx(folder, Path(scratch))
        quantize_openvino(folder, Path(scratch))
        out.mkdir(parents=True, exist_ok=True)
        for suffix in (".xml", ".bin"):
            shutil.copy(Path(scratch) / f"ov_int8{suffix}", (out / OPENVINO).with_suffix(suffix))
    shutil.copy(folder / "tokenizer.json", out)
    (out / "config.json").write_text(json.dumps({"max_tokens": config.max_tokens}))


def _published(teacher: str) -> Path:
    """The folder of a teacher. Raises InputError where it is not in the Hugging Face layout, which other packages read."""
    folder = folder_of(teacher)
    if json.loads((folder / "config.json").read_bytes()).get("model_type") is None:
        raise InputError(f"{teacher} is in fastinfer's own layout, expected a folder in the Hugging Face layout, which other packages read")
    return folder


def _model2vec(module: str) -> Any:
    """A module of model2vec. Raises InputError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"static embeddings need model2vec: pip install 'model2vec[distill]' ({error})") from None
