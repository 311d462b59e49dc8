"""The format: which tensors a Config has, and how they are saved, mapped, checked and validated.

A checkpoint folder holds config.json, model.safetensors (or shards with model.safetensors.index.json) and
tokenizer.json. Files are safetensors; tensors whose size is a multiple of 64 bytes start 64-byte
aligned, so that trees are used where they lie in the mapped file.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import ffn, heads
from .config import Config, read_json
from .errors import CheckpointError

__all__ = ["Group", "Spec", "Tensor", "check_children", "check_finite", "group", "load", "map_folder", "parameters", "save", "tensors"]

# name here -> (name in safetensors, numpy dtype of its bits; numpy has no bfloat16)
DTYPES = {
    "float32": ("F32", np.dtype("<f4")),
    "float16": ("F16", np.dtype("<f2")),
    "bfloat16": ("BF16", np.dtype("<u2")),
    "int8": ("I8", np.dtype("i1")),
    "int32": ("I32", np.dtype("<i4")),
}
FROM_SAFETENSORS = {code: (name, dtype) for name, (code, dtype) in DTYPES.items()}
ALIGNMENT = 64
VALIDATE_BELOW = 64 << 20  # bytes: smaller checkpoints are scanned for NaN by default


class Spec(NamedTuple):
    """What the format expects of one tensor. family: embeddings, matrices, trees, vector or table."""

    shape: tuple[int, ...]
    dtype: str
    family: str


@dataclass(frozen=True, eq=False)
class Tensor:
    """A stored tensor: its bits (bfloat16 as uint16), what they are, and for int8 a float32 scale per row."""

    data: np.ndarray
    dtype: str
    scale: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def float32(self) -> np.ndarray:
        """The values, float32; the stored memory itself where it is float32 already."""
        if self.dtype == "bfloat16":
            return (self.data.astype(np.uint32) << 16).view(np.float32)
        if self.dtype == "int8":
            return self.data * self.scale[..., None]
        return self.data.astype(np.float32, copy=False)

    def to(self, dtype: str) -> Tensor:
        """The same values stored as `dtype`: bfloat16 rounds to nearest even; int8 has absmax / 127 of each row as its scale.

        Raises CheckpointError where a finite value does not fit into float16.
        """
        if dtype == self.dtype:
            return self
        values = self.float32()
        if dtype == "float32":
            return Tensor(values, dtype)
        if dtype == "float16":
            limit = float(np.finfo(np.float16).max)
            if np.isfinite(values).all() and np.abs(values).max(initial=0) > limit:
                raise CheckpointError(
                    f"a weight of magnitude {np.abs(values).max():g} does not fit into float16 (at most {limit:g}): use bfloat16"
                )
            return Tensor(values.astype(np.float16), dtype)
        if dtype == "bfloat16":
            bits = np.ascontiguousarray(values).view(np.uint32)
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            return Tensor(np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16), dtype)
        peak = np.abs(values).max(axis=-1, initial=0)
        scale = np.where(peak > 0, peak / 127, 1).astype(np.float32)
        return Tensor(np.rint(values / scale[..., None]).clip(-127, 127).astype(np.int8), dtype, scale)


def tensors(config: Config) -> dict[str, Spec]:
    """Every tensor of a checkpoint: {name: Spec(shape, dtype, family)}, scales of int8 tensors included.

    Dense weights are (out, in); qkv rows are all of q, then k, then v, heads side by side in each.
    """
    hidden = config.hidden
    raw: dict[str, tuple[tuple[int, ...], str]] = {"embedding.word": ((config.vocabulary, hidden), "embeddings")}

    def norm(name: str) -> None:
        raw[f"{name}.weight"] = ((hidden,), "vector")
        raw[f"{name}.bias"] = ((hidden,), "vector")

    if config.positions.kind == "learned":
        raw["embedding.position"] = ((config.positions.max, hidden), "embeddings")
    else:
        raw["embedding.position_scale"] = ((1,), "vector")
    if config.token_types:
        raw["embedding.token_type"] = ((config.token_types, hidden), "embeddings")
    if config.embedding_norm:
        norm("embedding.norm")
    for i, feedforward in enumerate(config.ffn):
        at = f"layers.{i}"
        norm(f"{at}.attention.norm")
        for name, out in (("qkv", 3 * hidden), ("out", hidden)):
            raw[f"{at}.attention.{name}.weight"] = ((out, hidden), "matrices")
            if config.attention_bias:
                raw[f"{at}.attention.{name}.bias"] = ((out,), "vector")
        norm(f"{at}.ffn.norm")
        raw |= {f"{at}.ffn.{name}": spec for name, spec in ffn.tensors(feedforward, hidden).items()}
    if config.final_norm:
        norm("final_norm")
    raw |= {f"tasks.{name}": spec for name, spec in heads.tensors(config).items()}

    spec: dict[str, Spec] = {}
    for name, (shape, family) in raw.items():
        dtype = {"vector": "float32", "table": "int32"}.get(family) or getattr(config.stored, family)
        spec[name] = Spec(shape, dtype, family)
        if dtype == "int8":
            spec[f"{name}.scale"] = Spec(shape[:-1], "float32", "vector")
    return spec


# --- reading ---------------------------------------------------------------------------------------


def load(path: str | os.PathLike, *, validate: bool | None = None) -> tuple[Config, dict[str, Tensor]]:
    """Map and check the checkpoint in folder `path`, of this format or another that layouts.py can rename.

    validate  scan all weights for NaN and infinity; None: when the files are small

    Raises ConfigError or CheckpointError; a message about tensors lists every missing, surplus or
    misshapen one. Nothing is allocated before it is checked against the files' sizes.
    """
    from . import layouts

    folder = Path(path)
    if not folder.is_dir():
        hint = " (a file: pass the folder that holds it)" if folder.is_file() else ""
        raise CheckpointError(f"{folder} is no checkpoint folder{hint}; expected one with config.json and model.safetensors")
    data = read_json(folder / "config.json")
    stored = map_folder(folder)
    if isinstance(data, dict) and "format_version" in data:
        config = Config.from_json(data, str(folder / "config.json"))
    else:
        config, stored = layouts.translate(data, stored, folder)
    found = check(config, stored, str(folder))
    if validate or (validate is None and sum(t.nbytes for t in found.values()) < VALIDATE_BELOW):
        check_finite(found, str(folder))
    return config, found


def map_folder(folder: Path) -> dict[str, Tensor]:
    """{name: Tensor} of the folder's safetensors files, memory-mapped, nothing of the weights read."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if not index.exists():
        if not single.exists():
            raise CheckpointError(f"{folder} has neither model.safetensors nor model.safetensors.index.json")
        return map_file(single)
    parts = read_json(index)
    parts = parts.get("weight_map") if isinstance(parts, dict) else None
    if not isinstance(parts, dict) or not all(isinstance(v, str) for v in parts.values()):
        raise CheckpointError(f"{index} has no weight_map of tensor names to file names")
    files = sorted(set(parts.values()))
    outside = [f for f in files if Path(f).name != f]
    missing = [f for f in files if not (folder / f).is_file()]
    if outside or missing:
        raise CheckpointError(
            f"{index} names {'files outside the folder' if outside else 'shards that are missing'}: {', '.join(outside or missing)}"
        )
    found: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in map_file(folder / file).items():
            if parts.get(name) != file:
                raise CheckpointError(f"{folder / file} holds {name!r}, which {index.name} places in {parts.get(name, 'no file')}")
            found[name] = tensor
    absent = sorted(set(parts) - set(found))
    if absent:
        raise CheckpointError(f"{index} places tensors in shards that do not hold them: {', '.join(absent)}")
    return found


def map_file(path: Path) -> dict[str, Tensor]:
    """{name: Tensor} of one safetensors file, views of its memory map.

    The safetensors library checks the header (offsets, sizes, overlaps, the file's end); this reads the
    offsets, since the library's own arrays are copies.
    """
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        data = np.memmap(path, np.uint8, mode="r", offset=8 + length) if os.path.getsize(path) > 8 + length else np.empty(0, np.uint8)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} is no whole safetensors file: {error}") from None
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        dtype, bits = FROM_SAFETENSORS.get(entry["dtype"], (entry["dtype"], np.dtype(np.uint8)))
        view = data[begin:end].view(np.ndarray)
        if dtype in DTYPES:
            if view.ctypes.data % bits.itemsize:  # the format does not promise alignment
                view = view.copy()
            view = view.view(bits).reshape(entry["shape"])
        found[name] = Tensor(view, dtype)
    return found


def check(config: Config, stored: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """`stored` with int8 scales attached, when it is exactly what `config` says; else one error that lists all that is not."""
    spec = tensors(config)
    problems = [f"missing    {name} {spec[name].shape} {spec[name].dtype}" for name in spec if name not in stored]
    problems += [f"surplus    {name} {t.data.shape} {t.dtype}" for name, t in stored.items() if name not in spec]
    for name in spec.keys() & stored.keys():
        shape, dtype, family = spec[name]
        tensor = stored[name]
        if tensor.dtype != dtype:
            problems.append(f"dtype      {name} is {tensor.dtype}, expected {dtype}")
        elif tensor.data.shape != shape:
            hint = ""
            if family == "trees":
                hint = " = (trees, nodes, in|out, hidden)"
                nodes = tensor.data.shape[1] if tensor.data.ndim == 4 else 0
                if nodes & (nodes + 1):
                    hint += f"; {nodes} nodes are no full tree (2**k - 1)"
            problems.append(f"shape      {name} is {tensor.data.shape}, expected {shape}{hint}")
    if problems:
        raise CheckpointError(
            f"{where}: {len(problems)} tensor{'s' * (len(problems) > 1)} not as config.json says:\n  "
            + "\n  ".join(sorted(problems))
            + "\n  Where the file came from another tool, convert the original with tools/convert.py."
        )
    found = {}
    for name, (_, dtype, family) in spec.items():
        if dtype == "int8":
            found[name] = Tensor(stored[name].data, dtype, stored[f"{name}.scale"].data)
        elif not name.endswith(".scale"):
            found[name] = stored[name]
        if family == "table":
            depth = config.ffn[int(name.split(".")[1])].depth
            check_children(found[name].data, depth, f"{where}: {name}")
    return found


def check_children(children: np.ndarray, depth: int, what: str) -> None:
    """A table of children (P, N, 2) is a forest that a walk leaves within depth + 1 nodes, or CheckpointError.

    Each child is -1 (stop) or the index of a later node, so no walk loops; and no node lies deeper than `depth`.
    """
    count = children.shape[1]
    parent = np.arange(count)[None, :, None]
    outside = (children < -1) | (children >= count)
    if outside.any():
        p, n, side = np.argwhere(outside)[0]
        raise CheckpointError(f"{what}[{p}, {n}, {side}] is {children[p, n, side]}, expected -1 (stop) or a node from 0 to {count - 1}")
    back = (children != -1) & (children <= parent)
    if back.any():
        p, n, side = np.argwhere(back)[0]
        raise CheckpointError(
            f"{what}[{p}, {n}, {side}] is {children[p, n, side]}, expected a node after {n}: children follow their parent, or a walk could loop"
        )
    for p, table in enumerate(children):
        level = np.zeros(1, np.int64)
        for _ in range(depth):
            level = np.unique(table[level])
            level = level[level >= 0]
        deeper = table[level]
        if (deeper >= 0).any():
            raise CheckpointError(f"{what}[{p}] leads to node {int(deeper.max())} after more than depth={depth} decisions")


def check_finite(found: Mapping[str, Tensor], where: str) -> None:
    """Raise CheckpointError naming every tensor that holds NaN or infinity (scales included)."""
    bad = []
    for name, tensor in found.items():
        values = tensor.scale if tensor.dtype == "int8" else None if tensor.dtype == "int32" else tensor.float32()
        if values is not None and not np.isfinite(values).all():
            bad.append(f"{name}: {np.count_nonzero(~np.isfinite(values))} of {values.size}")
    if bad:
        raise CheckpointError(f"{where}: weights that are NaN or infinite:\n  " + "\n  ".join(bad))


# --- writing ---------------------------------------------------------------------------------------


def save(
    path: str | os.PathLike,
    config: Config,
    weights: Mapping[str, Tensor],
    *,
    tokenizer: str | os.PathLike | None = None,
    max_shard_bytes: int | None = None,
) -> None:
    """Write a checkpoint folder: config.json, one safetensors file or shards with an index, tokenizer.json.

    weights          {name: Tensor} as tensors(config) says; checked before anything is written
    tokenizer        a tokenizer.json to copy
    max_shard_bytes  start a new shard where one would grow beyond this

    Each file is written under a temporary name and then renamed. Raises CheckpointError for weights that
    do not fit the config.
    """
    flat: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        flat[name] = Tensor(tensor.data, tensor.dtype)
        if tensor.scale is not None:
            flat[f"{name}.scale"] = Tensor(tensor.scale, "float32")
    check(config, flat, str(path))
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)

    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in flat.items():
        if max_shard_bytes and shards[-1] and size + tensor.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        names = ["model.safetensors"]
    else:
        names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        _write(folder / name, shard)
    stale = {f.name for f in folder.glob("model*.safetensors")} - set(names)
    if len(shards) == 1:
        stale.add("model.safetensors.index.json")
    else:
        index = {
            "metadata": {"total_size": sum(t.nbytes for t in flat.values())},
            "weight_map": {t: n for n, shard in zip(names, shards, strict=True) for t in shard},
        }
        _replace(folder / "model.safetensors.index.json", [json.dumps(index, indent=1).encode()])
    for name in stale:
        (folder / name).unlink(missing_ok=True)
    if tokenizer is not None and Path(tokenizer).resolve() != (folder / "tokenizer.json").resolve():
        shutil.copyfile(tokenizer, folder / "tokenizer.json")
    _replace(folder / "config.json", [config.to_json().encode()])


def _write(path: Path, shard: Mapping[str, Tensor]) -> None:
    """One safetensors file, header padded and tensors ordered so that all but the odd-sized ones are aligned."""
    order = sorted(shard, key=lambda name: (shard[name].nbytes % ALIGNMENT != 0, -shard[name].data.itemsize))
    header: dict[str, Any] = {"__metadata__": {"format": "fastinfer"}}
    begin = 0
    for name in order:
        tensor = shard[name]
        end = begin + tensor.data.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype][0], "shape": tensor.data.shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    bits = (np.ascontiguousarray(shard[name].data, DTYPES[shard[name].dtype][1]) for name in order)
    _replace(path, [struct.pack("<Q", len(text)), text, *(b.reshape(-1).view(np.uint8) for b in bits)])


def _replace(path: Path, chunks: Iterable[Any]) -> None:
    """Write under a temporary name, flush to disk, rename: the old file survives a full disk."""
    temporary = path.with_name(path.name + ".partial")
    try:
        with open(temporary, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# --- prepared weights ------------------------------------------------------------------------------


class Group:
    """Prepared weights by dotted name: weights.layers[0].attention.qkv.weight. What a config may leave out is None where it did."""

    OPTIONAL = frozenset({"bias", "b_out", "trees", "dense_in", "final_norm", "norm", "token_type", "layers", "tasks"})

    def __getattr__(self, name: str) -> Any:
        if name in self.OPTIONAL:
            return None
        raise AttributeError(f"no weights named {name!r} here, only {', '.join(vars(self)) or 'none'}")


def group(flat: Mapping[str, Any]) -> Group:
    """{"a.b.0.c": value} as nested Groups, numbered names as lists."""
    root = Group()
    for name, value in flat.items():
        at: Any = root
        *path, last = name.split(".")
        for part in path:
            at = vars(at).setdefault(part, Group())
        setattr(at, last, value)

    def lists(node: Any) -> Any:
        if not isinstance(node, Group):
            return node
        children = {k: lists(v) for k, v in vars(node).items()}
        if children and all(k.isdigit() for k in children):
            return [children[str(i)] for i in range(len(children))]
        vars(node).update(children)
        return node

    return lists(root)


def parameters(config: Config) -> int:
    """Weights of the model, scales not counted."""
    return sum(math.prod(s.shape) for name, s in tensors(config).items() if s.family != "table" and not name.endswith(".scale"))
