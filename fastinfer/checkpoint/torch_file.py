"""The tensors of a file that torch.save wrote, read without PyTorch: nothing in the file is run, and every size is checked.

A file is a pickle of tensors by name. The pickle refers to storages, which are records of an uncompressed zip file or, before
PyTorch 1.6, follow the pickle. This module interprets the pickle. It knows the operations that build lists, tuples and dicts of plain
values, and the few callables that make tensors; it refuses all others. A storage has to have as many bytes as its record.
"""

from __future__ import annotations

import math
import os
import pickletools
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import CheckpointError, short
from ..files import regular
from .tensor import Tensor

__all__ = ["read"]

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # the first two values of an old file
MAX_PICKLE = 4 << 20  # bytes: a thousand tensors need 0.2 MB
MAX_COUNT = 1 << 48  # largest size, offset or stride that is read
STORAGES: dict[str, tuple[str, np.dtype[Any]]] = {
    "FloatStorage": ("float32", np.dtype("<f4")),
    "HalfStorage": ("float16", np.dtype("<f2")),
    "BFloat16Storage": ("bfloat16", np.dtype("<u2")),
    "DoubleStorage": ("float64", np.dtype("<f8")),
    "LongStorage": ("int64", np.dtype("<i8")),
    "IntStorage": ("int32", np.dtype("<i4")),
    "ShortStorage": ("int16", np.dtype("<i2")),
    "CharStorage": ("int8", np.dtype("i1")),
    "ByteStorage": ("uint8", np.dtype("u1")),
    "BoolStorage": ("bool", np.dtype("?")),
}


class Broken(Exception):
    """The file is not one that torch.save writes, or holds more than tensors; the message says where."""


@dataclass(frozen=True)
class Storage:
    """`count` values of this kind in the record `key`."""

    key: str
    kind: str
    count: int

    @property
    def nbytes(self) -> int:
        return self.count * STORAGES[self.kind][1].itemsize


@dataclass(frozen=True)
class Strided:
    """A tensor that is not read yet: the part of a storage at this offset, with this size and these strides, counted in values."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Made:
    """A name that the pickle uses and that is known here: a callable to make a value from arguments, or a kind of storage."""

    name: str
    make: Callable[..., Any] | None = None


def read(path: Path) -> dict[str, Tensor]:
    """{name: Tensor} of the file at `path`. Raises CheckpointError naming it and what is wrong."""
    with regular(path) as file:
        try:
            values, records = _from_zip(file) if zipfile.is_zipfile(file) else _from_old(file)
            if not isinstance(values, dict):
                raise CheckpointError(f"{path} holds a {type(values).__name__}, expected tensors by name")
            odd = next((name for name, value in values.items() if not isinstance(value, Strided)), None)
            if odd is not None:
                raise CheckpointError(f"{path} holds {short(odd)}, a {type(values[odd]).__name__}, expected tensors by name")
            return {name: _tensor(name, value, records) for name, value in values.items()}
        except CheckpointError:
            raise
        except (Broken, zipfile.BadZipFile, struct.error, EOFError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
            reason = str(error)[:300] or type(error).__name__
            raise CheckpointError(f"{path} is no file of plain tensors that torch.save wrote: {reason}") from None


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_COUNT


def _tensor(name: str, value: Strided, records: dict[str, np.ndarray]) -> Tensor:
    """The part of the storage, checked to lie inside and not to be larger than it; a view where its values are contiguous."""
    dtype, bits = STORAGES[value.storage.kind]
    flat = records[value.storage.key].view(bits)
    numbers = (value.offset, *value.size, *value.stride)
    if len(value.size) != len(value.stride) or len(value.size) > 8 or any(not _is_count(n) for n in numbers):
        raise Broken(f"{short(name)} has size {short(value.size)}, strides {short(value.stride)} and offset {short(value.offset)}")
    count = math.prod(value.size)
    last = value.offset + sum((n - 1) * step for n, step in zip(value.size, value.stride, strict=True)) if count else 0
    if count > len(flat) or last >= max(len(flat), 1):
        raise Broken(f"{short(name)} has {count} values up to place {last} of a storage of {len(flat)}")
    if not count:
        return Tensor(np.empty(value.size, bits), dtype)
    strides = [step * bits.itemsize for step in value.stride]
    view = np.lib.stride_tricks.as_strided(flat[value.offset :], value.size, strides, writeable=False)
    return Tensor(np.asarray(view, order="C"), dtype)


# --- the two forms of a file -----------------------------------------------------------------------


def _from_zip(file: BinaryIO) -> tuple[Any, dict[str, np.ndarray]]:
    """The unpickled values and the bytes of each storage that they need."""
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise Broken(f"it has {len(pickles)} records data.pkl, expected one")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in entries and archive.read(_stored(entries[f"{root}byteorder"], 16)) != b"little":
            raise Broken("its byte order is not little")
        machine = Machine()
        values = machine.run(archive.read(_stored(entries[pickles[0]], MAX_PICKLE)))
        infos = {}
        for key, storage in machine.storages.items():
            info = entries.get(f"{root}data/{key}")
            if info is None or info.file_size != storage.nbytes:
                has = "does not exist" if info is None else f"has {info.file_size} bytes"
                raise Broken(f"the record of storage {short(key)} {has}, expected {storage.nbytes}")
            infos[key] = _stored(info, storage.nbytes)
        size = os.fstat(file.fileno()).st_size
        if sum(info.file_size for info in infos.values()) > size:  # records may share their bytes
            raise Broken(f"its storages have more bytes than the file, {size}")
        return values, {key: np.frombuffer(archive.read(info), np.uint8) for key, info in infos.items()}


def _stored(info: zipfile.ZipInfo, most: int) -> zipfile.ZipInfo:
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1 or info.file_size > most:
        raise Broken(f"the record {short(info.filename)} is compressed or encrypted, or has more than {most} bytes: {info.file_size}")
    return info


def _from_old(file: BinaryIO) -> tuple[Any, dict[str, np.ndarray]]:
    """As _from_zip, for an old file.

    It has five pickles (magic number, protocol, machine, values, keys), then for each key the count, an int64, and the bytes.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    pickled = file.read(1) == b"\x80"
    file.seek(0)
    if not pickled or Machine().run(file) != MAGIC or Machine().run(file) != PROTOCOL:
        raise Broken("it begins with neither a zip file nor the magic number of an old file")
    system = Machine().run(file)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Broken("its byte order is not little")
    machine = Machine()
    values, keys = machine.run(file), Machine().run(file)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(machine.storages):
        raise Broken("its keys are not those of its storages")
    records = {}
    for key in keys:
        storage = machine.storages[key]
        count = int.from_bytes(file.read(8), "little")
        if count != storage.count or storage.nbytes > size - file.tell():
            raise Broken(f"storage {short(key)} has {count} values, expected {storage.count}, and {size - file.tell()} bytes are left")
        records[key] = np.frombuffer(file.read(storage.nbytes), np.uint8)
    return values, records


# --- the pickle ------------------------------------------------------------------------------------


class Mark:
    """The mark below a group of values on the stack."""


class Machine:
    """Runs a pickle. storages: {key: a storage that it refers to}."""

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, source: bytes | BinaryIO) -> Any:
        """The value that the pickle builds. Raises Broken, and ValueError for bytes that are not a pickle."""
        begin: int | None = None
        for step, argument, place in pickletools.genops(source):
            begin = place if begin is None else begin
            if (place or 0) - (begin or 0) > MAX_PICKLE:
                raise Broken(f"its pickle has more than {MAX_PICKLE} bytes")
            if step.name in LITERALS:
                self.stack.append(LITERALS[step.name](argument))
            elif step.name == "STOP":
                return self._pop()
            else:
                operation = OPERATIONS.get(step.name)
                if operation is None:
                    raise Broken(f"its pickle has the operation {step.name}, which tensors do not need")
                operation(self, argument)
        raise Broken("its pickle does not end")

    def _pop(self, kind: type | tuple[type, ...] = object) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind) or isinstance(self.stack[-1], Mark):
            raise Broken("its pickle uses a value that it does not have")
        return self.stack.pop()

    def _top(self, kind: type) -> Any:
        value = self._pop(kind)
        self.stack.append(value)
        return value

    def _marked(self) -> list[Any]:
        """The values above the last mark."""
        at = next((i for i in reversed(range(len(self.stack))) if isinstance(self.stack[i], Mark)), None)
        if at is None:
            raise Broken("its pickle lacks a mark")
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def put(self, place: int) -> None:
        self.memo[place] = self._top(object)

    def get(self, place: int) -> None:
        if place not in self.memo:
            raise Broken("its pickle uses a value that it does not have")
        self.stack.append(self.memo[place])

    def pack(self, count: int | None) -> None:
        values = self._marked() if count is None else [self._pop() for _ in range(count)][::-1]
        self.stack.append(tuple(values))

    def extend(self, values: list[Any]) -> None:
        self._top(list).extend(values)

    def assign(self, values: list[Any]) -> None:
        target = self._top(dict)
        if len(values) % 2:
            raise Broken("its pickle has a key without a value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, (str, int)):  # hashing a nested tuple may take for ever
                raise Broken(f"its pickle has a dict whose key is a {type(key).__name__}")
            target[key] = value

    def find(self, name: str) -> None:
        module, _, kind = name.partition(" ")
        if module in ("torch", "torch.storage") and kind in STORAGES:
            self.stack.append(Made(kind))
        elif name in MAKERS:
            self.stack.append(Made(name, MAKERS[name]))
        else:
            raise Broken(f"its pickle names {short(name.replace(' ', '.'))}, which is not run: expected tensors by name")

    def find_named(self, _: Any) -> None:
        kind, module = self._pop(str), self._pop(str)
        self.find(f"{module} {kind}")

    def make(self, _: Any) -> None:
        arguments, made = self._pop(tuple), self._pop(Made)
        if made.make is None:
            raise Broken(f"its pickle calls {made.name}")
        try:
            self.stack.append(made.make(*arguments))
        except TypeError:
            raise Broken(f"its pickle calls {made.name} with {len(arguments)} arguments, some of them wrong") from None

    def storage(self, _: Any) -> None:
        """("storage", kind, key, device, count), and in old files whether it is part of another: None."""
        name = self._pop(tuple)
        if len(name) not in (5, 6) or name[0] != "storage" or name[5:] not in ((), (None,)):
            raise Broken("its pickle refers to what is not a storage of its own")
        _, kind, key, _, count = name[:5]
        if not isinstance(kind, Made) or kind.make or not isinstance(key, str) or not _is_count(count):
            raise Broken("its pickle refers to a storage without a kind, a key and a count")
        found = Storage(key, kind.name, count)
        if self.storages.setdefault(key, found) != found:
            raise Broken(f"its pickle has two storages {short(key)}")
        self.stack.append(found)


def _tensor_of(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Strided:
    if not isinstance(storage, Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise TypeError
    return Strided(storage, offset, size, stride)


def _parameter_of(value: Any, *_: Any) -> Strided:
    if not isinstance(value, Strided):
        raise TypeError
    return value


def _dict_of(*arguments: Any) -> dict[Any, Any]:
    if arguments:
        raise TypeError
    return {}


MAKERS: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": _dict_of,
    "torch._utils _rebuild_tensor": _tensor_of,
    "torch._utils _rebuild_tensor_v2": _tensor_of,
    "torch._utils _rebuild_parameter": _parameter_of,
}
LITERALS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"), lambda value: value),
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_TUPLE": lambda _: (),
    "EMPTY_LIST": lambda _: [],
    "EMPTY_DICT": lambda _: {},
    "MARK": lambda _: Mark(),
}
OPERATIONS: dict[str, Callable[[Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, argument: None),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), Machine.put),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), Machine.get),
    "TUPLE": Machine.pack,  # without an argument it takes all marked values
    "TUPLE1": lambda machine, _: machine.pack(1),
    "TUPLE2": lambda machine, _: machine.pack(2),
    "TUPLE3": lambda machine, _: machine.pack(3),
    "APPEND": lambda machine, _: machine.extend([machine._pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine._marked()),
    "SETITEM": lambda machine, _: machine.assign([machine._pop(), machine._pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.assign(machine._marked()),
    "GLOBAL": Machine.find,
    "STACK_GLOBAL": Machine.find_named,
    "REDUCE": Machine.make,
    "BINPERSID": Machine.storage,
    "BUILD": lambda machine, _: machine._pop(),  # drops the attributes of a dict, which hold versions of modules
    "POP": lambda machine, _: machine._pop(),
}
