"""The ids of the rows of an index, and its texts: kept as they are given, or read from a mapped file when they are asked for."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .errors import CheckpointError, InputError, check_int, short

__all__ = ["MOST", "Ids", "Strings", "checked_ids", "new_ids"]

MOST = (1 << 63) - 1  # the largest integer that is an id


class Strings:
    """A sequence of str in two arrays: `text`, UTF-8 of all, and `ends` (N,), where each ends. They may be of a stranger's file."""

    def __init__(self, text: np.ndarray, ends: np.ndarray, where: str) -> None:
        self._text, self._ends, self._where = text, ends, where

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: int) -> str:
        begin, end = int(self._ends[i - 1]) if i else 0, int(self._ends[i])
        if not 0 <= begin <= end <= len(self._text):
            raise CheckpointError(f"{self._where}: text {i} is from byte {begin} to {end} of {len(self._text)}, expected ascending ends")
        try:
            return self._text[begin:end].tobytes().decode()
        except UnicodeDecodeError:
            raise CheckpointError(f"{self._where}: text {i} is not UTF-8") from None


class Ids:
    """The ids of an index, one for each row: all int or all str; or texts. `held` come from a file, others are added."""

    def __init__(self, held: Sequence[Any] | np.ndarray | Strings = ()) -> None:
        self._held = held
        self._added: Any = None
        self._places: dict[Any, int] | None = None
        self._gone: set[int] = set()

    @property
    def kind(self) -> type | None:
        """int or str; None while there is no id."""
        if len(self._held):
            return str if isinstance(self._held, Strings) else int
        return None if not self._added else type(self._added[0])

    def __len__(self) -> int:
        return len(self._held) + len(self._added or ())

    def __getitem__(self, row: int) -> Any:
        found = self._held[row] if row < len(self._held) else self._added[row - len(self._held)]
        return found if isinstance(found, str) else int(found)

    def __iter__(self) -> Iterator[Any]:
        return (self[row] for row in range(len(self)))

    def extend(self, ids: Sequence[Any]) -> None:
        """Add ids that checked_ids() has seen."""
        if self._added is None:
            self._added = [] if len(ids) and isinstance(ids[0], str) else array("q")
        first = len(self)
        self._added.extend(ids)
        if self._places is not None:
            self._places.update(zip(ids, range(first, first + len(ids)), strict=True))

    def shorten(self, count: int) -> None:
        """Forget the ids from row `count` on."""
        if len(self) > count:
            del self._added[count - len(self._held) :]
            self._places = None
            self._added = self._added or None

    def place(self, key: Any) -> int | None:
        """The row of an id; None where there is no such id."""
        if self._places is None:
            self._places = {key: row for row, key in enumerate(self) if row not in self._gone}
        return self._places.get(key) if type(key) in (int, str) else None

    def remove(self, rows: Sequence[int]) -> None:
        """Forget the ids of these rows, so that they may be given again."""
        for row in rows:
            key = self[row]
            if self._places is not None and self._places.get(key) == row:
                del self._places[key]
        self._gone.update(rows)


def new_ids(first: int, count: int) -> range:
    """The integers from `first` on, for `count` new rows. Raises InputError where these are too large for ids."""
    if first + count - 1 > MOST:
        raise InputError(f"the largest id of the index is {first - 1}, so {count} texts cannot get the integers that follow: give ids")
    return range(first, first + count)


def checked_ids(ids: Any, count: int, known: Ids) -> list[Any]:
    """`ids` of `count` new rows as a list of int or of str. Raises InputError for other types, repeated ids and a wrong number of them."""
    if isinstance(ids, (str, bytes, dict, set)):
        raise InputError(f"ids is {short(ids)}, expected a list with an int or a str for each text")
    try:
        found = list(ids)
    except TypeError:
        raise InputError(f"ids is {short(ids)}, expected a list with an int or a str for each text") from None
    if len(found) != count:
        raise InputError(f"got {len(found)} ids for {count} texts, expected one for each")
    kind = known.kind or (str if found and isinstance(found[0], str) else int)
    for i, key in enumerate(found):
        if kind is int and not isinstance(key, str):
            found[i] = check_int(f"ids[{i}]", key, -MOST - 1, MOST)
        elif kind is int or not isinstance(key, str):
            wanted = "an int" if kind is int else "a str"
            raise InputError(f"ids[{i}] is {short(key)}, expected {wanted}, as the other ids of the index are")
        else:
            found[i] = str(key)
            try:
                key.encode()
            except UnicodeEncodeError:
                raise InputError(f"ids[{i}] is {short(key)}, which cannot be written as UTF-8") from None
    if len(set(found)) < count:
        seen: set[Any] = set()
        twice = next(key for key in found if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise InputError(f"ids names {short(twice)} twice, expected different ids")
    for i, key in enumerate(found):
        if known.place(key) is not None:
            raise InputError(f"ids[{i}] is {short(key)}, which the index has already: remove it first, or give another id")
    return found
