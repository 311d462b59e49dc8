"""save() writes a checkpoint folder as a whole or not at all."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Config
from ..errors import CheckpointError
from ..files import read_file, replacing_all
from ..strict_json import MAX_VOCABULARY_BYTES
from .check import check
from .read import INDEX, SINGLE
from .spec import tensors
from .tensor import DTYPES, Tensor

__all__ = ["save"]

ALIGNMENT = 64  # bytes: tensors start at multiples of this


def save(
    path: str | os.PathLike[str],
    config: Config,
    weights: Mapping[str, Tensor],
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    max_shard_bytes: int | None = None,
) -> None:
    """Write a checkpoint folder: config.json, one safetensors file or shards with an index, tokenizer.json.

    weights          {name: Tensor} with the tensors of tensors(config); they are checked before anything is written
    tokenizer        the tokenizer.json to copy; None: none
    max_shard_bytes  start a new shard where one would exceed this size; None: write one file

    All files are first written under temporary names, and renamed when all are on the disk. So a full disk leaves the
    folder as it was. Equal weights give equal bytes. Raises CheckpointError for weights that do not fit the config, and
    for a folder that cannot be written.
    """
    flat: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        flat[name] = Tensor(tensor.data, tensor.dtype)
        if tensor.scale is not None:
            flat[f"{name}.scale"] = Tensor(tensor.scale, "float32")
    check(config, flat, str(path))
    flat = {name: flat[name] for name in tensors(config)}

    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in flat.items():
        if max_shard_bytes and shards[-1] and size + tensor.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    names = [SINGLE] if len(shards) == 1 else [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    files: dict[str, Iterable[Any]] = {name: _file(shard) for name, shard in zip(names, shards, strict=True)}
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(t.nbytes for t in flat.values())},
            "weight_map": {t: n for n, shard in zip(names, shards, strict=True) for t in shard},
        }
        files[INDEX] = [json.dumps(index, indent=1).encode()]
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if tokenizer is not None:
            files["tokenizer.json"] = [read_file(tokenizer, MAX_VOCABULARY_BYTES)]
        _replace(folder, files | {"config.json": [config.to_json().encode()]})
        for old in {SINGLE, INDEX, *(f.name for f in folder.glob("model-?????-of-?????.safetensors"))} - set(files):
            (folder / old).unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error}") from error


def _file(shard: Mapping[str, Tensor]) -> Iterable[Any]:
    """The bytes of a safetensors file. All tensors whose size is a multiple of ALIGNMENT come first, so that they are aligned."""
    order = sorted(shard, key=lambda name: (shard[name].nbytes % ALIGNMENT != 0, -shard[name].data.itemsize))
    header: dict[str, Any] = {"__metadata__": {"format": "fastinfer"}}
    begin = 0
    for name in order:
        tensor = shard[name]
        end = begin + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype][0], "shape": tensor.data.shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    yield struct.pack("<Q", len(text)) + text
    for name in order:
        yield np.ascontiguousarray(shard[name].data).reshape(-1).view(np.uint8)


def _replace(folder: Path, files: Mapping[str, Iterable[Any]]) -> None:
    """Write all files under temporary names, flush them to the disk, and rename them if all of that succeeded."""
    with replacing_all([folder / name for name in files]) as handles:
        for handle, chunks in zip(handles, files.values(), strict=True):
            for chunk in chunks:
                handle.write(chunk)
