"""Stored vectors of an index: in parts that are never moved, in float32, int8 or bits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .backends.pages import LINE, from_multiple
from .precision import as_bits, as_codes

__all__ = ["PRECISIONS", "Part", "Rows", "fields", "floats"]

PRECISIONS = ("float32", "int8", "binary")
FIRST_ROWS, MOST_ROWS = 1024, 1 << 16  # rows of a new part, if not more are added at once: the first, and the largest
COPIED = 8192  # rows that are packed at a time


def fields(precision: str, similarity: str, dim: int) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """{name: (dtype, shape of a row)} of the arrays that hold vectors of `dim` numbers; what is scanned is the first."""
    float32 = np.dtype("<f4")
    found: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
    if precision == "float32":
        found["vectors"] = float32, (dim,)
    if precision == "binary":
        found["bits"] = np.dtype("u1"), (-(-dim // 8),)
    if precision in ("int8", "binary"):  # binary: for the scores of the best
        found |= {"codes": (np.dtype("i1"), (dim,)), "scale": (float32, ())}
    if similarity == "euclidean" and precision != "binary":
        found["bias"] = float32, ()  # -|x|^2 / 2: with it, a product is as large as the distance is small
    return found


class Part(NamedTuple):
    """Arrays of the same rows, by name. first: the place of the first row. gone (rows,): whether each was removed, or None."""

    arrays: dict[str, np.ndarray]
    first: int
    gone: np.ndarray | None


class Rows:
    """Vectors (N, dim) in a precision. A row keeps its place when another is removed."""

    def __init__(self, precision: str, similarity: str, dim: int) -> None:
        self.precision, self.dim = precision, dim
        self.fields = fields(precision, similarity, dim)
        self.count = self.removed = 0
        self.longest = 0.0  # the largest length of a vector
        self._parts: list[dict[str, np.ndarray]] = []
        self._ends: list[int] = []  # the rows of each part that are in use
        self._gone: np.ndarray | None = None  # (count or more,) bool

    @property
    def nbytes(self) -> int:
        """Bytes of the rows, removed ones included."""
        return self.count * sum(dtype.itemsize * math.prod(shape) for dtype, shape in self.fields.values())

    def hold(self, arrays: dict[str, np.ndarray], longest: float) -> None:
        """Take arrays of other rows as they are, for example mapped ones."""
        count = len(next(iter(arrays.values())))
        if count:
            self._parts.append(arrays)
            self._ends.append(count)
            self.count += count
        self.longest = max(self.longest, longest)

    def append(self, vectors: np.ndarray, coming: int = 0) -> None:
        """Copy finite vectors (B, dim) float32. coming: at least so many rows come from now on, these included."""
        for first in range(0, len(vectors), COPIED):
            block = vectors[first : first + COPIED]
            packed = self._packed(block)
            self.longest = max(self.longest, float(np.sqrt(np.einsum("bd,bd->b", block, block)).max(initial=0)))
            while len(block):
                room = self._room(max(coming, len(vectors)) - first)
                taken = min(room, len(block))
                end = self._ends[-1]
                for name, values in packed.items():
                    self._parts[-1][name][end : end + taken] = values[:taken]
                self._ends[-1] += taken
                self.count += taken
                first, block, packed = first + taken, block[taken:], {name: values[taken:] for name, values in packed.items()}

    def _packed(self, vectors: np.ndarray) -> dict[str, np.ndarray]:
        found = {"vectors": vectors}
        if "codes" in self.fields:
            codes, scale = as_codes(vectors)
            found = {"bits": as_bits(vectors), "codes": codes, "scale": scale}
            vectors = codes * scale[:, None]
        if "bias" in self.fields:
            found["bias"] = -np.einsum("bd,bd->b", vectors, vectors) / 2
        return {name: found[name] for name in self.fields}

    def _room(self, wanted: int) -> int:
        """The free rows of the last part, after a new one is begun where there are none."""
        last = self._parts[-1] if self._parts else None
        room = 0 if last is None else len(next(iter(last.values()))) - self._ends[-1]
        if not room or not next(iter(self._parts[-1].values())).flags.writeable:
            room = max(wanted, min(max(self.count, FIRST_ROWS), MOST_ROWS))
            self._parts.append({name: _aligned((room, *shape), dtype) for name, (dtype, shape) in self.fields.items()})
            self._ends.append(0)
        return room

    def shorten(self, count: int, longest: float) -> None:
        """Forget the rows from `count` on: those of an addition that failed."""
        while self.count > count:
            taken = min(self._ends[-1], self.count - count)
            self._ends[-1] -= taken
            self.count -= taken
            if not self._ends[-1]:
                self._parts.pop()
                self._ends.pop()
        self.longest = longest

    def remove(self, rows: np.ndarray) -> None:
        """Remove rows that are there."""
        gone = np.zeros(self.count, bool)
        if self._gone is not None:
            gone[: len(self._gone)] = self._gone
        gone[rows] = True
        self._gone, self.removed = gone, int(gone.sum())

    def kept(self) -> np.ndarray | None:
        """The rows that were not removed; None: all."""
        return None if self._gone is None else np.flatnonzero(~self._gone_in(0, self.count))

    def _gone_in(self, begin: int, end: int) -> np.ndarray:
        gone = np.zeros(end - begin, bool)
        if self._gone is not None:
            known = self._gone[begin:end]
            gone[: len(known)] = known
        return gone

    def blocks(self, size: int) -> Iterator[Part]:
        """Yield the rows in order, at most `size` at a time."""
        first = 0
        for arrays, end in zip(self._parts, self._ends, strict=True):
            for begin in range(0, end, size):
                stop = min(begin + size, end)
                gone = self._gone_in(first + begin, first + stop) if self._gone is not None else None
                yield Part({name: values[begin:stop] for name, values in arrays.items()}, first + begin, gone)
            first += end

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of some rows as float32 (len(rows), dim)."""
        if len(self._parts) == 1:
            return floats({name: values[rows] for name, values in self._parts[0].items() if name in FLOATS})
        out = np.empty((len(rows), self.dim), np.float32)
        first = 0
        for arrays, end in zip(self._parts, self._ends, strict=True):
            here = np.flatnonzero((rows >= first) & (rows < first + end))
            if len(here):
                out[here] = floats({name: values[rows[here] - first] for name, values in arrays.items() if name in FLOATS})
            first += end
        return out


FLOATS = ("vectors", "codes", "scale")


def floats(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The vectors that the arrays of some rows hold, as float32."""
    found: np.ndarray = arrays["vectors"] if "vectors" in arrays else arrays["codes"] * arrays["scale"][:, None]
    return found


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array that begins with a cache line."""
    size = math.prod(shape) * dtype.itemsize
    return from_multiple(np.empty(size + LINE, np.uint8), LINE)[:size].view(dtype).reshape(shape)
