"""The format: which tensors a Config has, and how they are saved, mapped, checked and validated.

A checkpoint folder holds config.json, model.safetensors (or shards with model.safetensors.index.json) and
tokenizer.json. Files are safetensors; tensors whose size is a multiple of 64 bytes start 64-byte
aligned, so that trees are used where they lie in the mapped file.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import math
import mmap
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import ffn, heads
from .config import MAX_VOCABULARY_BYTES, Config, parse_json, read_json
from .errors import CheckpointError, DtypeError, InputError, listed, short
from .files import read_file, regular, replacing_all, stamp

__all__ = ["Group", "Spec", "Tensor", "check_children", "check_finite", "group", "load", "map_folder", "parameters", "save", "tensors"]
__all__ += ["unchanged"]

# name here -> (name in safetensors, numpy dtype of its bits; numpy has no bfloat16)
DTYPES = {
    "float32": ("F32", np.dtype("<f4")),
    "float16": ("F16", np.dtype("<f2")),
    "bfloat16": ("BF16", np.dtype("<u2")),
    "int8": ("I8", np.dtype("i1")),
    "int32": ("I32", np.dtype("<i4")),
}
FROM_SAFETENSORS = {code: (name, dtype) for name, (code, dtype) in DTYPES.items()}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FILES = ("config.json", "tokenizer.json", "vocab.txt", ".safetensors", ".bin", ".index.json")  # how names of a checkpoint's files end
ALIGNMENT = 64
VALIDATE_BELOW = 64 << 20  # bytes: smaller checkpoints are scanned for NaN by default
SCAN = 1 << 20  # values that the scan converts at a time
MAX_HEADER = 16 << 20  # bytes: 1,024 layers need 4 MB
SMALL = 64 << 10  # bytes: smaller tensors are copied, since nothing would be gained by mapping them
MAX_SINUSOIDS = 64 << 20  # bytes of a table that no tensor confirms, where the weights are not larger


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

    def release(self) -> None:
        """Let the system take back the memory of a mapped file's pages that hold this; whoever touches them again reads them again."""
        base: Any = self.data
        while isinstance(base, np.ndarray):
            base = base.base
        if not isinstance(base, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
            return
        whole = np.frombuffer(base, np.uint8)
        if whole.flags.writeable:  # no file that could give the pages back
            return
        begin = self.data.ctypes.data - whole.ctypes.data
        first, end = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, (begin + self.data.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if first < end:
            base.madvise(mmap.MADV_DONTNEED, first, end - first)

    def float32(self) -> np.ndarray:
        """The values, float32; the stored memory itself where it is float32 already."""
        if self.dtype == "bfloat16":
            return (self.data.astype(np.uint32) << 16).view(np.float32)
        if self.dtype == "int8":
            return self.data * self.scale[..., None]
        return self.data.astype(np.float32, copy=False)

    def to(self, dtype: str) -> Tensor:
        """The same values stored as `dtype`: bfloat16 rounds to nearest even; int8 has absmax / 127 of each row as its scale.

        Raises CheckpointError where a finite value does not fit into float16 or bfloat16, or NaN or infinity into int8.
        """
        if dtype not in DTYPES or "int32" in (dtype, self.dtype):
            raise DtypeError(f"cannot store {self.dtype} as {dtype!r}, expected one of float32, float16, bfloat16, int8")
        if dtype == self.dtype:
            return self
        values = self.float32()
        if dtype == "float32":
            return Tensor(values, dtype)
        if dtype != "int8":
            limit, instead = {"float16": (65504.0, "bfloat16"), "bfloat16": (3.3895313892515355e38, "float32")}[dtype]
            peak = float(np.abs(values).max(initial=0, where=np.isfinite(values)))
            if peak > limit:
                raise CheckpointError(f"a weight of magnitude {peak:g} does not fit into {dtype} (at most {limit:g}): use {instead}")
        if dtype == "float16":
            return Tensor(values.astype(np.float16), dtype)
        if dtype == "bfloat16":
            bits = np.ascontiguousarray(values).view(np.uint32)
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            return Tensor(np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16), dtype)
        peaks = np.abs(values).max(axis=-1, initial=0)
        if not np.isfinite(peaks).all():
            raise CheckpointError("a weight is NaN or infinite, which int8 cannot hold: use bfloat16, or repair the weights")
        scale = peaks / np.float32(127)
        scale[scale == 0] = 1
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


def load(
    path: str | os.PathLike,
    *,
    validate: bool | None = None,
    copy: bool = False,
    read: Callable[[Path], dict[str, Tensor]] | None = None,
) -> tuple[Config, dict[str, Tensor]]:
    """Map and check the checkpoint in folder `path`, of this format or another that layouts.py can rename.

    validate  scan all weights for NaN and infinity; None: when the files are small
    copy      read the weights into memory; False: map them, except small tensors and tables of children
    read      gets the folder's tensors; None: map_folder, which knows safetensors alone

    Raises ConfigError or CheckpointError; a message about tensors lists every missing, surplus or
    misshapen one. Nothing is allocated before it is checked against the files' sizes.
    """
    from . import layouts

    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"path is {short(path)}, expected the name of a checkpoint folder")
    folder = Path(path)
    if not os.path.isdir(folder):
        hint = " (a file: pass the folder that holds it)" if os.path.isfile(folder) else ""
        raise CheckpointError(f"{folder} is no checkpoint folder{hint}; expected one with config.json and model.safetensors")
    data = read_json(folder / "config.json")
    stored = read(folder) if read else map_folder(folder, read=functools.partial(map_file, copy=copy))
    if isinstance(data, dict) and "format_version" in data:
        config = Config.from_json(data, str(folder / "config.json"))
    else:
        config, stored = layouts.translate(data, stored, folder)
    found = check(config, stored, str(folder))
    if validate or (validate is None and sum(t.nbytes for t in found.values()) < VALIDATE_BELOW):
        check_finite(found, str(folder))
    return config, found


def map_folder(folder: Path, file_name: str = SINGLE, read: Callable[[Path], dict[str, Tensor]] | None = None) -> dict[str, Tensor]:
    """{name: Tensor} of the folder's `file_name`, or of the shards that its index lists.

    read  gets the tensors of one file; None: map_file, which maps a safetensors file and reads nothing of the weights
    """
    read = read or map_file
    single, index = folder / file_name, folder / f"{file_name}.index.json"
    if not index.exists():
        if not single.exists():
            torch = "; tools/convert.py can convert its pytorch_model.bin" if any(folder.glob("pytorch_model*.bin")) else ""
            raise CheckpointError(f"{folder} has neither {single.name} nor {index.name}{torch}")
        return read(single)
    parts = read_json(index)
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
        )
    found: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in read(folder / file).items():
            if parts.get(name) != file:
                raise CheckpointError(f"{folder / file} holds {short(name)}, which {index.name} places in {parts.get(name, 'no file')}")
            found[name] = tensor
    absent = sorted(set(parts) - set(found))
    if absent:
        raise CheckpointError(f"{index} places tensors in shards that do not hold them: {listed(map(short, absent))}")
    return found


def map_file(path: Path, copy: bool = False) -> dict[str, Tensor]:
    """{name: Tensor} of one safetensors file: views of its memory map, or copies.

    copy  copies of all; False: of small tensors and of integers, which may be indices that kernels follow unchecked

    The safetensors library checks the header: its length, every tensor's size and place, the file's end. This reads the
    places from the header that it found sound, since the arrays that the library gives are copies. Both read one open file.
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
            # The format does not promise alignment.
            if data is None or dtype == "int32" or end - begin <= SMALL or (start + begin) % bits.itemsize:
                view = np.empty(end - begin, np.uint8)
                file.seek(start + begin)
                if file.readinto(view) != len(view):
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


@contextlib.contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """Raise CheckpointError where a file of the checkpoint was written to or replaced during the block: what was read may be a mix."""

    def stamps() -> dict[str, Any]:
        try:
            names = sorted(name for name in os.listdir(folder) if name.endswith(FILES))
        except (OSError, ValueError):
            names = []
        return {name: stamp(folder / name) for name in names}

    before = stamps()
    yield
    after = stamps()
    if before != after:
        changed = [name for name in sorted(before | after) if before.get(name) != after.get(name)]
        raise CheckpointError(f"{folder / changed[0]} changed while it was read: load the checkpoint again when its writer is done")


def check(config: Config, stored: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """`stored` with int8 scales attached, when it is exactly what `config` says; else one error that lists all that is not."""
    spec = tensors(config)
    problems = [f"missing    {name} {spec[name].shape} {spec[name].dtype}" for name in spec if name not in stored]
    problems += [f"surplus    {short(name)} {t.data.shape} {t.dtype}" for name, t in stored.items() if name not in spec]
    for name in spec.keys() & stored.keys():
        shape, dtype, family = spec[name]
        tensor = stored[name]
        if tensor.dtype != dtype:
            problems.append(f"dtype      {name} is {tensor.dtype}, expected {dtype}")
        elif tensor.data.dtype != DTYPES[dtype][1]:
            problems.append(f"dtype      {name} holds {tensor.data.dtype}, expected {DTYPES[dtype][1]} for {dtype}")
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
            + listed(sorted(problems), "\n  ")
            + "\n  Where the file came from another tool, convert the original with tools/convert.py."
        )
    table, weights = 4 * config.positions.max * config.hidden, sum(t.nbytes for t in stored.values())
    if config.positions.kind == "scaled-sinusoidal" and table > max(MAX_SINUSOIDS, weights):
        raise CheckpointError(
            f"{where}: positions.max is {config.positions.max}, whose table of sines would take {table} bytes, "
            f"expected at most {max(MAX_SINUSOIDS, weights)}, for weights of {weights} bytes"
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
            f"{what}[{p}, {n}, {side}] is {children[p, n, side]}, expected a node after {n}: "
            "children follow their parent, or a walk could loop"
        )
    # all trees at once: node n of tree p is number p * count + n
    level = np.arange(len(children)) * count
    table = np.where(children < 0, -1, children + level[:, None, None]).reshape(-1, 2)
    for _ in range(depth):
        level = np.unique(table[level])
        level = level[level >= 0]
    deeper = table[level]
    if (deeper >= 0).any():
        p, n = divmod(int(deeper.max()), count)
        raise CheckpointError(f"{what}[{p}] leads to node {n} after more than depth={depth} decisions")


def check_finite(found: Mapping[str, Tensor], where: str) -> None:
    """Raise CheckpointError naming every tensor that holds NaN or infinity (scales included)."""
    bad = []
    for name, tensor in found.items():
        if tensor.dtype == "int32":
            continue
        values = Tensor(tensor.scale, "float32") if tensor.dtype == "int8" else tensor
        flat = values.data.reshape(-1)
        parts = (Tensor(flat[i : i + SCAN], values.dtype).float32() for i in range(0, flat.size, SCAN))
        count = sum(int(np.count_nonzero(~np.isfinite(part))) for part in parts)
        if count:
            bad.append(f"{name}{'.scale' * (tensor.dtype == 'int8')}: {count} of {flat.size}")
    if bad:
        raise CheckpointError(f"{where}: weights that are NaN or infinite:\n  " + listed(bad, "\n  "))


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

    All files are written under temporary names first and renamed when all are on the disk: a full disk leaves the
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
    """The bytes of a safetensors file, header padded and tensors ordered so that all but the odd-sized ones are aligned."""
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
    """Write all files, flush them to the disk, and when that went well put them in place."""
    with replacing_all([folder / name for name in files]) as handles:
        for handle, chunks in zip(handles, files.values(), strict=True):
            for chunk in chunks:
                handle.write(chunk)


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
