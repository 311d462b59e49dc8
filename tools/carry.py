"""A model as a small file, without the tensors that a model which is there already has.

    python tools/carry.py pack .models/minilm minilm.xz --known fastminilm-1x11 --stored bfloat16
    python tools/carry.py unpack minilm.xz .models/minilm --known fastminilm-1x11

So a teacher gets to a machine without a network in 15 MB, and a student comes back without its teacher's embeddings. With --stored, the
embeddings are stored as those of the known model are (without one: as int8), and the rest in that dtype. With --near 0.005, tensors
that differ from those of the known model by so little, in parts of their length, are taken from it, too. With --part-mb, pack writes
FILE.0, FILE.1, ... of at most so many MB, which unpack finds by the name FILE.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import lzma
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from fastinfer import checkpoint
from fastinfer.catalog import folder_of
from fastinfer.checkpoint.tensor import DTYPES
from fastinfer.config import Config, Stored
from fastinfer.conversion import STORED, check_out
from fastinfer.errors import CheckpointError, FastinferError
from fastinfer.files import replacing

# weights are noise but for the distribution of single bytes, which this finds best
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 0, "lp": 0, "pb": 0}]


def main(arguments: list[str] | None = None) -> int:
    """The command line: 0, or 1 with the reason on standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    packing = commands.add_parser("pack", help="write a model as a file")
    packing.add_argument("model", metavar="MODEL", help="what fastinfer.load opens")
    packing.add_argument("file", metavar="FILE", type=Path)
    packing.add_argument("--stored", choices=STORED, help="dtype of matrices and trees (default: all as they are)")
    packing.add_argument("--near", type=float, default=0.0, metavar="PART", help="largest difference of a tensor that is left out")
    packing.add_argument("--part-mb", type=float, metavar="MB", help="cut the file into parts of at most so many MB")
    unpacking = commands.add_parser("unpack", help="write a packed model as a folder")
    unpacking.add_argument("file", metavar="FILE", type=Path)
    unpacking.add_argument("folder", metavar="FOLDER", type=Path)
    for command in (packing, unpacking):
        command.add_argument("--known", metavar="MODEL", help="the model whose tensors are left out (default: none are)")
    options = parser.parse_args(arguments)
    try:
        if options.command == "pack":
            pack(options.model, options.file, options.known, stored=options.stored, near=options.near, part_mb=options.part_mb)
        else:
            unpack(options.file, options.folder, options.known)
    except (FastinferError, OSError) as error:
        print(f"carry: {error}", file=sys.stderr)
        return 1
    return 0


def opened(name: str) -> tuple[Config, dict[str, checkpoint.Tensor], bytes | None]:
    """(config, weights, content of tokenizer.json or None) of a model that fastinfer.load opens."""
    folder = folder_of(name)
    config, weights, tokenizer = checkpoint.load_all(folder, validate=True)
    return config, weights, tokenizer.file.text if tokenizer.file is not None and tokenizer.file.exact else None


def arrays(tensor: checkpoint.Tensor) -> list[np.ndarray]:
    """The arrays of a tensor: its bits and, for int8, its scales."""
    return [tensor.data] if tensor.scale is None else [tensor.data, tensor.scale]


def digest(tensor: checkpoint.Tensor) -> str:
    """A checksum of a tensor's dtype, shape and bits."""
    found = hashlib.sha256(f"{tensor.dtype} {tensor.data.shape}".encode())
    for array in arrays(tensor):
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def difference(tensor: checkpoint.Tensor, other: checkpoint.Tensor) -> float:
    """The length of the difference of two tensors, in parts of the length of the first."""
    mine, theirs = tensor.float32(), other.float32()
    return float(np.linalg.norm(mine - theirs) / max(1e-30, np.linalg.norm(mine)))


def pack(model: str, file: Path, known: str | None, *, stored: str | None = None, near: float = 0.0, part_mb: float | None = None) -> None:
    """Write a model without the tensors of the model `known` into a file, or into parts of it."""
    config, weights, tokenizer = opened(model)
    known_config, there, known_tokenizer = (config, {}, None) if known is None else opened(known)
    if stored is not None:
        kinds: Any = {"matrices": stored, "trees": stored}
        config = dataclasses.replace(config, stored=Stored(embeddings="int8" if known is None else known_config.stored.embeddings, **kinds))
        spec = checkpoint.tensors(config)
        weights = {name: tensor if spec[name].family == "table" else tensor.to(spec[name].dtype) for name, tensor in weights.items()}
    entries, content = [], []
    for name, tensor in weights.items():
        other = there.get(name)
        known_there = other is not None and (other.dtype, other.data.shape) == (tensor.dtype, tensor.data.shape)
        known_there = known_there and (digest(other) == digest(tensor) or difference(tensor, other) < near)
        kept = other if known_there else tensor
        entries.append({"name": name, "dtype": tensor.dtype, "shape": tensor.data.shape, "digest": digest(kept), "known": known_there})
        if not known_there:
            for array in arrays(tensor):  # byte by byte of all elements: the first bytes, which have the exponents, are much alike
                planes = np.ascontiguousarray(array).view(np.uint8).reshape(-1, array.itemsize).T
                content.append(planes.tobytes())
    head = {"config": json.loads(config.to_json()), "tensors": entries, "tokenizer": "known"}
    if known is None or tokenizer != known_tokenizer:
        head["tokenizer"] = None if tokenizer is None else tokenizer.decode()
    data = lzma.compress(json.dumps(head).encode() + b"\n" + b"".join(content), filters=FILTERS)
    size = int(part_mb * 1e6) if part_mb else len(data)
    parts = [data[i : i + size] for i in range(0, len(data), size)]
    for number, part in enumerate(parts):
        with replacing(file.with_name(f"{file.name}.{number}") if part_mb else file) as out:
            out.write(part)
    left_out = sum(entry["known"] for entry in entries)
    print(f"{file}: {len(data) / 1e6:.1f} MB in {len(parts)} files, {left_out} of {len(entries)} tensors left out")


def unpack(file: Path, folder: Path, known: str | None) -> None:
    """Write a packed model as a checkpoint folder, with the tensors that were left out from the model `known`."""
    check_out(file, folder)
    parts = [file] if file.exists() else sorted(file.parent.glob(f"{file.name}.[0-9]*"), key=lambda path: int(path.suffix[1:]))
    if not parts:
        raise CheckpointError(f"neither {file} nor {file}.0 exists: name what carry.py pack wrote")
    try:
        head, _, content = lzma.decompress(b"".join(part.read_bytes() for part in parts)).partition(b"\n")
        read = json.loads(head)
        entries, config, tokenizer = read["tensors"], Config.from_json(read["config"], str(file)), read["tokenizer"]
    except (lzma.LZMAError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is not what carry.py pack writes, or parts of it are missing: {error}") from None
    if tokenizer == "known" and known is None:
        raise CheckpointError(f"{file} was packed without its tokenizer: name the model that has it with --known")
    there, known_tokenizer = ({}, None) if known is None else opened(known)[1:]
    weights, at = {}, 0
    for entry in entries:
        name, dtype, shape = entry["name"], entry["dtype"], entry["shape"]
        if entry["known"]:
            tensor = there.get(name)
        else:
            found = []
            for kind, size in [(DTYPES[dtype][1], shape)] + ([(np.dtype("<f4"), shape[:-1])] if dtype == "int8" else []):
                length = int(np.prod(size)) * kind.itemsize
                planes = np.frombuffer(content[at : at + length], np.uint8).reshape(kind.itemsize, -1)
                found.append(np.ascontiguousarray(planes.T).view(kind).reshape(size))
                at += length
            tensor = checkpoint.Tensor(found[0], dtype, *found[1:])
        if tensor is None or digest(tensor) != entry["digest"]:
            source = f"{known} has not the tensor that was left out" if entry["known"] else "the file is damaged"
            raise CheckpointError(f"{file}: {name}: {source}: pack and unpack with the same known model")
        weights[name] = tensor
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "tokenizer.json")
        text = known_tokenizer if tokenizer == "known" else None if tokenizer is None else tokenizer.encode()
        if text is not None:
            path.write_bytes(text)
        checkpoint.save(folder, config, weights, tokenizer=path if text is not None else None)
    print(f"{folder}: {len(weights)} tensors")


if __name__ == "__main__":
    sys.exit(main())
