"""Readers of a checkpoint folder's files. They give tensors as views of the mapped file, or as copies."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ..errors import CheckpointError, listed, short
from ..files import digest as content_digest
from ..files import regular, stamp
from ..strict_json import parse_json, read_json
from .tensor import DTYPES, FROM_SAFETENSORS, Tensor

__all__ = ["ADAPTERS", "INDEX", "SINGLE", "WEIGHTS", "digest", "map_file", "map_folder", "stamps", "unchanged", "weights_file"]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHTS = (SINGLE, "pytorch_model.bin")  # files of weights, the preferred one first; each may be in shards, with an index
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
# Name endings of the files that stamps() lists, and the names of the folders in which it does, such as 2_Dense.
FILES = (
    *("config.json", "modules.json", "tokenizer.json", "tokens.json", "map.json", "vocab.txt", "vocab.json", "merges.txt"),
    *("config_sentence_transformers.json", "artifact.metadata", ".model", ".safetensors", ".bin", ".index.json"),
)
MODULE = re.compile(r"\d+_\w+")
MAX_HEADER = 16 << 20  # bytes: the header of 1,024 layers takes 4 MB
SMALL = 64 << 10  # bytes: tensors up to this size are copied, because mapping them would save nothing


def weights_file(folder: Path, names: tuple[str, ...] = WEIGHTS) -> str | None:
    """The first of `names` that the folder has, whole or in shards; None where it has none of them."""
    return next((name for name in names if (folder / name).exists() or (folder / f"{name}.index.json").exists()), None)


def map_folder(folder: Path, names: tuple[str, ...] = WEIGHTS, *, copy: bool = False) -> dict[str, Tensor]:
    """{name: Tensor} of the first file of `names` that the folder has, or of the shards that its index lists.

    copy  True: read safetensors into memory; False: map them. A .bin is always read into memory.

    Raises CheckpointError where a file or a tensor is missing, or where the index names another shard for a tensor.
    """
    chosen = weights_file(folder, names)
    if chosen is None:
        raise CheckpointError(f"{folder} has no weights, expected {' or '.join(names)}, or shards with an .index.json")
    if chosen.endswith(".safetensors"):
        read: Callable[[Path], dict[str, Tensor]] = functools.partial(map_file, copy=copy)
    else:
        from . import torch_file  # imports zipfile and more

        read = torch_file.read
    if (folder / chosen).exists():
        return read(folder / chosen)
    index = folder / f"{chosen}.index.json"
    parts = _weight_map(index)
    found: dict[str, Tensor] = {}
    for file in sorted(set(parts.values())):
        for name, tensor in read(folder / file).items():
            if parts.get(name) != file:
                raise CheckpointError(f"{folder / file} holds {short(name)}, which {index.name} places in {parts.get(name, 'no file')}")
            found[name] = tensor
    absent = sorted(set(parts) - set(found))
    if absent:
        raise CheckpointError(f"{index} places tensors in shards that do not hold them: {listed(map(short, absent))}")
    return found


def _weight_map(index: Path) -> dict[str, str]:
    """{name of a tensor: name of its shard} from the index. Raises CheckpointError unless every shard is a file of the same folder."""
    folder, parts = index.parent, read_json(index)
    parts = parts.get("weight_map") if isinstance(parts, dict) else None
    if not isinstance(parts, dict) or not all(isinstance(v, str) for v in parts.values()):
        raise CheckpointError(f"{index} has no weight_map, expected an object of tensor names to file names")
    files = sorted(set(parts.values()))
    outside = [f for f in files if Path(f).name != f]
    missing = [f for f in files if not os.path.isfile(folder / f)]
    if outside or missing:
        raise CheckpointError(
            f"{index} names {'files outside the folder' if outside else 'shards that are missing'}: "
            + listed(map(short, outside or missing))
            + ("" if outside else ": download them into the folder")
        )
    return parts


def map_file(path: Path, copy: bool = False) -> dict[str, Tensor]:
    """{name: Tensor} of one safetensors file: views of its memory map, or copies. Raises CheckpointError for a broken file.

    copy  True: copy all tensors; False: copy only small ones and int32 ones, because kernels follow indices without checks

    The safetensors library checks the header: its length, every tensor's size and place, and the file's end. But the library's
    arrays are copies, so this function reads the places from the checked header itself. Both read the same open file.
    """
    import safetensors

    with regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            start = 8 + int.from_bytes(file.read(8), "little")
            if 8 + MAX_HEADER < start <= size:
                raise ValueError(f"its header has {start - 8} bytes, expected at most {MAX_HEADER}")
            text = file.read(start - 8) if start <= size else b""
            with safetensors.safe_open(f"/dev/fd/{file.fileno()}", framework="numpy"):
                pass
            if os.pread(file.fileno(), len(text), 8) != text:
                raise ValueError("it changed while it was read")
            header = parse_json(text)
            data = np.memmap(file, np.uint8, mode="r", offset=start) if start < size and not copy else None
        except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
            if os.strerror(errno.ENOMEM) in str(error):
                raise MemoryError(f"{path} cannot be mapped: {error}") from None
            raise CheckpointError(f"{path} ({size} bytes) is no whole safetensors file: {error}: copy or download it again") from None
        header.pop("__metadata__", None)
        found = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            dtype, bits = FROM_SAFETENSORS.get(entry["dtype"], (entry["dtype"], np.dtype(np.uint8)))
            # A view needs aligned data, and the safetensors format does not promise alignment.
            if data is None or dtype == "int32" or end - begin <= SMALL or (start + begin) % bits.itemsize:
                view = np.empty(end - begin, np.uint8)
                file.seek(start + begin)
                if file.readinto(view.data) != len(view):
                    raise CheckpointError(f"{path} changed while it was read: it had {size} bytes")
            else:
                view = data[begin:end].view(np.ndarray)
            if dtype in DTYPES:
                try:
                    view = view.view(bits).reshape(entry["shape"])
                except (ValueError, OverflowError) as error:
                    raise CheckpointError(f"{path}: tensor {short(name)} has shape {short(entry['shape'])}: {error}") from None
            found[name] = Tensor(view, dtype)
    return found


def stamps(folder: Path) -> dict[str, tuple[int, ...] | None]:
    """{name: its files.stamp()} of the files in a folder that decide what load() makes of it. Empty where there is no such folder."""
    names: list[str] = []
    with contextlib.suppress(OSError, ValueError):
        for name in sorted(os.listdir(folder)):
            inside = os.listdir(folder / name) if MODULE.fullmatch(name) and os.path.isdir(folder / name) else []
            names += [name, *(f"{name}/{file}" for file in sorted(inside))]
    return {name: stamp(folder / name) for name in names if name.endswith(FILES)}


@contextlib.contextmanager
def unchanged(folder: Path) -> Iterator[dict[str, tuple[int, ...] | None]]:
    """Yield stamps(). Raise CheckpointError when they change during the block, because the tensors may then mix two versions."""
    before = stamps(folder)
    yield before
    after = stamps(folder)
    if before != after:
        changed = [name for name in sorted(before | after) if before.get(name) != after.get(name)]
        raise CheckpointError(f"{folder / changed[0]} changed while it was read: load the checkpoint again when its writer is done")


def digest(folder: Path) -> str:
    """The SHA-256 of the names and contents of the files that stamps() lists, in hexadecimal.

    Of weights in several formats, only those that load() reads count. Raises CheckpointError for a file that cannot be read.
    """
    import hashlib  # imports OpenSSL, which takes longer than most modules

    total = hashlib.sha256()
    with unchanged(folder) as names:
        for name in names:
            if not _is_read(folder / name):
                continue
            with regular(folder / name) as file:
                total.update(f"{name}\0{content_digest(file)}\n".encode())
    return total.hexdigest()


def _is_read(file: Path) -> bool:
    """Whether load() reads this file: of weights, only those in the preferred format."""
    if not file.name.endswith((".safetensors", ".bin", ".index.json")):
        return True
    chosen = (weights_file(file.parent, names) for names in (WEIGHTS, ADAPTERS))
    return any(name and file.name.startswith(name.split(".")[0]) and Path(name).suffix in file.suffixes for name in chosen)
