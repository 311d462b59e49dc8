"""The file of an Index: an .npz whose arrays are not compressed, so that they are mapped. Files are untrusted."""

from __future__ import annotations

import io
import json
import math
import mmap
import os
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from .catalog import inside
from .errors import CheckpointError, InputError, check_int, short
from .files import naming, regular, replacing
from .keys import MOST, Ids
from .precision import check_precision
from .rows import PRECISIONS, Rows, fields
from .strict_json import parse_json

if TYPE_CHECKING:
    from .api import Model

__all__ = ["Meta", "Named", "check_model", "model_of", "name_of", "read", "write"]

FORMAT, VERSION = "fastinfer index", 1
FILE = "index.npz"  # the name of the file in a folder
META = "meta"  # the array that holds the Meta, as JSON in UTF-8
MOST_META = 1 << 16  # bytes
MOST_MEMBERS = 16
MOST_DIRECTORY = 1 << 16  # bytes of the end of the file in which zip lists its members
MOST_HEADER = 1 << 12  # bytes of the header of an array
MOST_DIM = 1 << 17
# The beginning of an .npy: its version, the length of what follows, and that, a dict, which is not evaluated.
HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..(\{'descr': '([<|](?:f[248]|[iu][1248]))', "
    rb"'fortran_order': False, 'shape': \(([0-9]{0,15}(?:, ?[0-9]{0,15})?)\), \} *\n)",
    re.S,
)
ALIGNED = 64  # bytes: kernels read faster from such addresses
WRITTEN = 8192  # rows that are written at a time


class Named(NamedTuple):
    """The name of a model, for people, and its fingerprint."""

    name: str
    fingerprint: str


@dataclass(frozen=True)
class Meta:
    """What a file says about its arrays. cut: the `dim` that Index was given; following: the next id that is made."""

    named: Named
    precision: str
    similarity: str
    dim: int
    cut: int | None
    count: int
    following: int
    longest: float
    texts: bool


def name_of(model: Model) -> str:
    """The name of a model inside the package or on the hub, else the path of its folder."""
    return model._name if model._origin is None else model._origin.name


def model_of(meta: Meta, where: str) -> Model | None:
    """The model inside the package that made the file, loaded; None for another model, since a file may not say what is opened."""
    if meta.named.name not in inside():
        return None
    from .api import load

    return load(meta.named.name)


def check_model(meta: Meta, model: Any, head: Any, where: str) -> None:
    """Raise CheckpointError unless the vectors of the file are those of this model."""
    if model.fingerprint != meta.named.fingerprint:
        raise CheckpointError(
            f"{where} holds vectors of {short(meta.named.name)} (fingerprint {meta.named.fingerprint}), expected those of {name_of(model)} "
            f"({model.fingerprint}): open it with the model that made it, or index the texts again"
        )
    dim = head.numbers(model.config.hidden) if meta.cut is None else meta.cut
    if (head.similarity, dim) != (meta.similarity, meta.dim):
        raise CheckpointError(
            f"{where} holds vectors of {meta.dim} numbers for the {meta.similarity} similarity, "
            f"expected {dim} for {head.similarity}, as its model says"
        )


# --- writing -----------------------------------------------------------------------------------------


def _file_of(path: str | os.PathLike[str]) -> Path:
    """The file of an index: the path itself if it ends with .npz, else FILE in this folder."""
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise InputError(f"path is {short(path)}, expected the name of a file that ends with .npz, or of a folder")
    found = Path(path)
    return found if found.suffix.lower() == ".npz" and not found.is_dir() else found / FILE


def write(path: str | os.PathLike[str], meta: Meta, rows: Rows, ids: Ids, texts: Ids | None) -> None:
    """Write an index. Only the rows that are kept are written. Raises OSError."""
    target = _file_of(path)
    with naming(target):
        target.parent.mkdir(exist_ok=True)
    kept = rows.kept()
    order = range(rows.count) if kept is None else kept.tolist()
    with replacing(target) as file, naming(target), zipfile.ZipFile(file, "w") as archive:
        said = {"format": FORMAT, "version": VERSION, "model": meta.named.name, "fingerprint": meta.named.fingerprint}
        said |= {key: getattr(meta, key) for key in ("precision", "similarity", "dim", "cut", "count", "following", "longest", "texts")}
        text = np.frombuffer(json.dumps(said).encode(), np.uint8)
        _write_array(archive, META, text.dtype, text.shape, iter([text]))
        for name, (dtype, shape) in rows.fields.items():
            _write_array(archive, name, dtype, (meta.count, *shape), _kept_rows(rows, name))
        if ids.kind is str:
            _write_strings(archive, "ids", [ids[row] for row in order])
        else:
            numbers = np.fromiter((ids[row] for row in order), np.dtype("<i8"), meta.count)
            _write_array(archive, "ids", numbers.dtype, numbers.shape, iter([numbers]))
        if texts is not None:
            _write_strings(archive, "texts", [texts[row] for row in order])


def _kept_rows(rows: Rows, name: str) -> Iterator[np.ndarray]:
    for part in rows.blocks(WRITTEN):
        yield part.arrays[name] if part.gone is None else part.arrays[name][~part.gone]


def _write_strings(archive: zipfile.ZipFile, name: str, texts: list[str]) -> None:
    sizes = np.fromiter((len(text.encode()) for text in texts), np.int64, len(texts))
    ends = np.cumsum(sizes).astype("<i8")
    _write_array(archive, f"{name}_ends", ends.dtype, ends.shape, iter([ends]))
    pieces = (np.frombuffer(text.encode(), np.uint8) for text in texts)
    _write_array(archive, f"{name}_text", np.dtype("u1"), (int(sizes.sum()),), pieces)


def _write_array(archive: zipfile.ZipFile, name: str, dtype: np.dtype, shape: tuple[int, ...], blocks: Iterator[np.ndarray]) -> None:
    """Add an array NAME.npy, whose values begin at a multiple of ALIGNED bytes of the file."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
    entry = zipfile.ZipInfo(f"{name}.npy")
    entry.external_attr = 0o600 << 16
    # A local header has 30 bytes, the name, and 20 bytes for sizes beyond 4 GB. A field of zeros that nobody reads fills it up.
    at = archive.fp.tell() + 30 + len(entry.filename) + 20 + 4 + head.tell()  # type: ignore[union-attr]
    entry.extra = struct.pack("<HH", 0xFA51, -at % ALIGNED) + bytes(-at % ALIGNED)
    with archive.open(entry, "w", force_zip64=True) as out:
        out.write(head.getvalue())
        for block in blocks:
            out.write(np.ascontiguousarray(block, dtype).data.cast("B") if block.size else b"")


# --- reading -----------------------------------------------------------------------------------------


def read(path: str | os.PathLike[str]) -> tuple[Meta, dict[str, np.ndarray], str]:
    """(what a file says about itself, its arrays, mapped, its name). Everything but the values of arrays is checked.

    Raises CheckpointError naming the file.
    """
    target = _file_of(path)
    with regular(target) as file:
        try:
            found = _members(file, str(target))
        except (zipfile.BadZipFile, struct.error, NotImplementedError, UnicodeDecodeError, EOFError, RecursionError) as error:
            raise CheckpointError(f"{target} is not an index that fastinfer wrote: {error}") from None
    meta = _meta_of(found.pop(META, None), str(target))
    wanted = {name: (dtype, (meta.count, *shape)) for name, (dtype, shape) in fields(meta.precision, meta.similarity, meta.dim).items()}
    numbers, bytes_ = np.dtype("<i8"), np.dtype("u1")
    for name, strings in (("ids", "ids_ends" in found), ("texts", meta.texts)):
        if strings:
            text = found.get(f"{name}_text")
            wanted |= {f"{name}_ends": (numbers, (meta.count,)), f"{name}_text": (bytes_, () if text is None else (text.size,))}
        elif name == "ids":
            wanted["ids"] = numbers, (meta.count,)
    if set(found) != set(wanted):
        raise CheckpointError(f"{target} has the arrays {', '.join(sorted(found))}, expected {', '.join(sorted(wanted))}")
    for name, (dtype, shape) in wanted.items():
        array = found[name]
        if array.dtype != dtype or array.shape != shape:
            raise CheckpointError(f"{target}: {name} is {array.dtype} {array.shape}, expected {dtype} {shape}")
        if not array.flags.aligned or (array.size and array.ctypes.data % 4):  # a file that another program wrote
            found[name] = array.copy()
    return meta, found, str(target)


def _members(file: BinaryIO, where: str) -> dict[str, np.ndarray]:
    """{name: array} of the members of an .npz, as views of the mapped file."""
    size = os.fstat(file.fileno()).st_size
    if size < 22:
        raise zipfile.BadZipFile("File is not a zip file")
    _check_directory(file, size, where)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    if len(entries) > MOST_MEMBERS or len({entry.filename for entry in entries}) < len(entries):
        raise CheckpointError(f"{where} has {len(entries)} members, expected at most {MOST_MEMBERS} of different names")
    mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    found = {}
    for entry in entries:
        name = f"{where}: {short(entry.filename)}"
        if not entry.filename.endswith(".npy") or entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise CheckpointError(f"{name} is compressed or no array, expected arrays that are stored as they are")
        local = mapped[entry.header_offset : entry.header_offset + 30]
        if entry.header_offset < 0 or len(local) < 30 or local[:4] != b"PK\3\4":
            raise CheckpointError(f"{name} does not begin at byte {entry.header_offset}, where the file says it does")
        begin = entry.header_offset + 30 + sum(struct.unpack("<HH", local[26:30]))
        if begin + entry.file_size > size:
            raise CheckpointError(f"{name} ends at byte {begin + entry.file_size}, but the file has {size}")
        found[entry.filename.removesuffix(".npy")] = _array(mapped, begin, entry.file_size, name)
    return found


def _check_directory(file: BinaryIO, size: int, where: str) -> None:
    """Raise CheckpointError for a list of members that is longer than an index has: zipfile reads it whole."""
    file.seek(max(0, size - MOST_DIRECTORY))
    tail = file.read(MOST_DIRECTORY)
    end = tail.rfind(b"PK\5\6")
    if end < 0 or len(tail) < end + 22:
        raise zipfile.BadZipFile("it has no list of members at its end")
    directory = struct.unpack("<I", tail[end + 12 : end + 16])[0]
    if directory > MOST_DIRECTORY:  # 0xffffffff stands for a number in another record, which an index never needs
        raise CheckpointError(f"{where} lists its members in {directory} bytes, expected at most {MOST_DIRECTORY}")


def _array(mapped: mmap.mmap, begin: int, size: int, where: str) -> np.ndarray:
    """The array of an .npy of `size` bytes at `begin`, as a view."""
    head = HEADER.match(mapped[begin : begin + min(size, MOST_HEADER)])
    if head is None:
        raise CheckpointError(f"{where} has no header of an array of numbers in C order, version 1.0, as numpy.save writes it")
    dtype, shape = np.dtype(head[2].decode()), tuple(int(number) for number in head[3].replace(b",", b" ").split())
    count = math.prod(shape)
    if len(head[1]) != int.from_bytes(head[0][8:10], "little") or head.end() + count * dtype.itemsize != size:
        raise CheckpointError(f"{where} has {size} bytes, expected {head.end()} and an array of {dtype} {short(shape)}")
    found: np.ndarray = np.frombuffer(mapped, dtype, count, begin + head.end()).reshape(shape)
    return found


def _meta_of(text: np.ndarray | None, where: str) -> Meta:
    if text is None or text.dtype != np.uint8 or text.size > MOST_META:
        raise CheckpointError(f"{where} is not an index that fastinfer wrote: it has no array {META!r} of at most {MOST_META} bytes")
    try:
        said = parse_json(text.tobytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: {META} cannot be read as JSON: {error}") from None
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        raise CheckpointError(f"{where}: {META} is {short(said)}, expected the format {FORMAT!r}")
    if said.get("version") != VERSION:
        raise CheckpointError(f"{where} has version {short(said.get('version'))}, expected {VERSION}: a newer fastinfer may read it")

    def value(key: str, good: Callable[[Any], bool], expected: str) -> Any:
        if not good(said.get(key)):
            raise CheckpointError(f"{where}: {key} is {short(said.get(key))}, expected {expected}")
        return said[key]

    def whole(key: str, low: int, high: int) -> int:
        return check_int(f"{where}: {key}", said.get(key), low, high, error=CheckpointError)

    kinds = ("cosine", "dot", "euclidean", "manhattan")
    precision = value("precision", lambda v: isinstance(v, str) and v in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
    return Meta(
        Named(*(value(key, lambda v: isinstance(v, str) and len(v) <= 4096, "a str") for key in ("model", "fingerprint"))),
        check_precision(precision, PRECISIONS),
        value("similarity", lambda v: isinstance(v, str) and v in kinds, f"one of {', '.join(kinds)}"),
        whole("dim", 1, MOST_DIM),
        None if said.get("cut") is None else whole("cut", 1, MOST_DIM),
        whole("count", 0, 1 << 40),
        whole("following", 0, MOST + 1),
        value("longest", lambda v: type(v) in (int, float) and 0 <= v < 2e19, "the length of a vector"),
        value("texts", lambda v: isinstance(v, bool), "true or false"),
    )
