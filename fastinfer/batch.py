"""PackedBatch: T tokens of B texts side by side, without padding."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import DtypeError, InputError, ShapeError, check_array, is_plain, short

__all__ = ["PackedBatch", "cut"]

MOST_TOKENS = 2**31 - 1  # kernels count tokens as int32
ALONE = np.zeros(1, np.intp)


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """B texts as one row of T tokens.

    ids          (T,) int32
    cu_seqlens   (B + 1,) int32, rising from 0 to T: text b is ids[cu_seqlens[b]:cu_seqlens[b+1]]
    token_types  (T,) int32, or None (all 0)
    keys         (B,) int32: attention sees only so many tokens at the beginning of each text; None: it sees all. The further
                 tokens see these, too, but not each other or themselves: so ColBERT makes vectors of mask tokens behind a query
    """

    ids: np.ndarray
    cu_seqlens: np.ndarray
    token_types: np.ndarray | None = None
    keys: np.ndarray | None = None

    def __post_init__(self) -> None:
        check_array("ids", self.ids, ("T",), np.int32)
        check_array("cu_seqlens", self.cu_seqlens, ("B + 1",), np.int32)
        if self.token_types is not None:
            check_array("token_types", self.token_types, self.ids.shape, np.int32, because="token_types has one entry per id")
        if self.keys is not None:
            check_array("keys", self.keys, (len(self.cu_seqlens) - 1,), np.int32, because="keys has one entry per text")
        self.check_lengths()

    def check_lengths(self) -> None:
        """Raise ShapeError unless cu_seqlens rises from 0 to the number of ids: a caller may have changed the arrays since."""
        ids, cu = self.ids, self.cu_seqlens
        if cu.shape == (2,) and ids.ndim == 1 and cu[0] == 0 < cu[1] == len(ids) and self.keys is None:
            return  # one text, which is checked in a tenth of the time of the rest
        if ids.ndim != 1 or cu.ndim != 1 or not len(cu) or cu[0] != 0 or cu[-1] != len(ids) or (cu[1:] <= cu[:-1]).any():
            raise ShapeError(f"cu_seqlens does not rise from 0 to the {ids.size} ids given: build a batch with PackedBatch.from_ids")
        if self.keys is not None and ((self.keys < 1) | (self.keys > self.lengths)).any():
            b = int(np.argmax((self.keys < 1) | (self.keys > self.lengths)))
            raise InputError(f"keys[{b}] is {self.keys[b]}, expected 1 to {self.lengths[b]}, the tokens of text {b}")

    @classmethod
    def from_ids(cls, ids: Sequence[Sequence[int]], token_types: Sequence[Sequence[int]] | None = None) -> PackedBatch:
        """Pack a list of id lists (special tokens included, as the model wants them).

        Raises InputError for an empty row or an id that is not an int32, ShapeError where the rows of
        token_types and ids differ in length. A model checks the ids against its vocabulary, the lengths against its positions.
        """
        flat, lengths = _flatten("ids", ids)
        if not lengths.all():
            raise InputError(f"ids[{int(np.argmin(lengths))}] is empty, expected at least one token per text")
        types = None
        if token_types is not None:
            types, type_lengths = _flatten("token_types", token_types)
            if not np.array_equal(lengths, type_lengths):
                raise ShapeError(
                    f"token_types has rows of {type_lengths.tolist()[:8]} tokens, expected those of ids: {lengths.tolist()[:8]}"
                )
        return cls.from_flat(flat, lengths, types)

    @classmethod
    def from_flat(cls, ids: np.ndarray, lengths: np.ndarray, token_types: np.ndarray | None = None) -> PackedBatch:
        """The batch of texts that lie one after another in ids (T,) int32. lengths (B,): tokens per text, none of them 0."""
        cu_seqlens = np.zeros(len(lengths) + 1, np.int64)
        np.add.accumulate(lengths, out=cu_seqlens[1:])
        if cu_seqlens[-1] > MOST_TOKENS:
            raise InputError(f"ids holds {cu_seqlens[-1]} tokens, expected fewer than 2**31: pass them in parts")
        return cls(ids, cu_seqlens.astype(np.int32), token_types)

    @classmethod
    def join(cls, parts: Sequence[PackedBatch]) -> PackedBatch:
        """One batch of the texts of several, which all have token types and keys or all have none. A single batch is returned itself."""
        if len(parts) == 1:
            return parts[0]
        lengths = np.concatenate([np.empty(0, np.int64), *(part.lengths for part in parts)])
        ids = np.concatenate([np.empty(0, np.int32), *(part.ids for part in parts)])
        types, keys = ([array for part in parts if (array := getattr(part, name)) is not None] for name in ("token_types", "keys"))
        joined = cls.from_flat(ids, lengths, np.concatenate(types) if types else None)
        return dataclasses.replace(joined, keys=np.concatenate(keys)) if keys else joined

    def __len__(self) -> int:
        return len(self.cu_seqlens) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per text, (B,) int32."""
        lengths: np.ndarray = self.cu_seqlens[1:] - self.cu_seqlens[:-1]
        return lengths

    @property
    def positions(self) -> np.ndarray:
        """Each token's place in its text, (T,) int32."""
        places: np.ndarray = np.arange(len(self.ids), dtype=np.int32) - np.repeat(self.cu_seqlens[:-1], self.lengths)
        return places

    def split(self, array: np.ndarray) -> list[np.ndarray]:
        """Rows (T, ...) as one view per text."""
        if not is_plain(array) or array.shape[:1] != self.ids.shape:
            got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else short(array)
            raise ShapeError(f"array is {got}, expected an array of {len(self.ids)} rows, one per id")
        return np.split(array, self.cu_seqlens[1:-1]) if len(self) else []

    def select(self, texts: np.ndarray) -> PackedBatch:
        """The batch of the texts with these indices, in their order."""
        if not is_plain(texts) or texts.ndim != 1 or texts.dtype.kind not in "iu":
            raise DtypeError(f"texts is {short(texts)}, expected an array of indices of texts")
        if texts.size and not 0 <= texts.min() <= texts.max() < len(self):
            raise InputError(f"texts holds {texts.min()} to {texts.max()}, expected indices from 0 to {len(self) - 1}")
        lengths = self.lengths[texts]
        cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        take = np.arange(cu_seqlens[-1]) + np.repeat(self.cu_seqlens[texts] - cu_seqlens[:-1], lengths)
        types, keys = None if self.token_types is None else self.token_types[take], None if self.keys is None else self.keys[texts]
        return PackedBatch(self.ids[take], cu_seqlens, types, keys)


def cut(lengths: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    """Indices of texts, longest first, in groups of at most `batch_tokens` tokens; a longer text is a group by itself."""
    if len(lengths) == 1:
        yield ALONE
        return
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order], dtype=np.int64)
    start = done = 0
    while start < len(order):
        stop = max(start + 1, int(np.searchsorted(ends, done + batch_tokens, side="right")))
        yield order[start:stop]
        start, done = stop, int(ends[stop - 1])


def _flatten(name: str, rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of integers as (flat int32, lengths int64). Raises DtypeError or InputError naming the row."""
    if not _listed(rows):
        raise DtypeError(f"{name} is {short(rows)}, expected a list of lists of integers")
    bounds = np.iinfo(np.int32)
    arrays = []
    for i, row in enumerate(rows):
        if not _listed(row):
            raise DtypeError(f"{name}[{i}] is {short(row)}, expected a list of integers (one list per text)")
        try:
            array = np.asarray(row)
        except (ValueError, OverflowError, RecursionError):
            raise DtypeError(f"{name}[{i}] is {short(row)}, expected a list of integers") from None
        if array.size and (array.ndim != 1 or array.dtype.kind not in "iu"):
            raise DtypeError(
                f"{name}[{i}] is {short(row)}, which numpy takes for {array.dtype} {array.shape}, expected a list of 32-bit integers"
            )
        if array.size and (array.min() < bounds.min or array.max() > bounds.max):
            raise InputError(f"{name}[{i}] holds {array.min()} to {array.max()}, expected 32-bit integers")
        arrays.append(array.astype(np.int32).reshape(-1))
    lengths = np.array([len(a) for a in arrays], np.int64)
    return np.concatenate([np.empty(0, np.int32), *arrays]), lengths


def _listed(value: Any) -> bool:
    return value.ndim > 0 if is_plain(value) else isinstance(value, Sequence) and not isinstance(value, (str, bytes))
