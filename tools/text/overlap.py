"""Whether training lines share words with texts that models are tested on: 8-grams of words, or whole lines of fewer words."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fastinfer.errors import InputError

from .readers import as_json, content, plain

WORDS = 8  # in a row: fewer are shared by chance, as in "one of the most", more miss a text that was cut or changed
PACKED = (".gz", ".xz")


def texts_in(value: Any) -> Iterator[str]:
    """All strings in a JSON value, keys excepted."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts_in(item)


def evaluated(path: Path) -> Iterable[str]:
    """The texts of a data set: a line each of a .txt file, each cell of a .tsv or .csv, each string of a .json or .jsonl, perhaps packed.

    Raises InputError for another file, and for one that cannot be read.
    """
    kind = (path.with_suffix("") if path.suffix in PACKED else path).suffix
    try:
        text = content(path)
        if kind == ".txt":
            return text.splitlines()
        if kind == ".tsv":
            return (cell for line in text.splitlines() for cell in line.split("\t"))
        if kind == ".csv":
            return [cell for row in csv.reader(io.StringIO(text, newline="")) for cell in row]
        if kind in (".json", ".jsonl"):
            return texts_in(as_json(text))
    except (OSError, csv.Error, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    raise InputError(f"{path} is not a data set that is known here, expected .txt, .tsv, .csv, .json or .jsonl, perhaps with .gz or .xz")


class Evaluated:
    """The texts of data sets, ready for the question whether a line shares words with one of them.

    Raises InputError as evaluated does, and for a file without texts.
    """

    def __init__(self, paths: Sequence[Path] = ()) -> None:
        self._short: set[str] = set()
        self._grams: set[int] = set()  # hashes: one takes 8 bytes in place of about 50 letters
        for path in paths:
            before = len(self)
            for text in evaluated(path):
                self._add(plain(text).split())
            if len(self) == before:
                raise InputError(f"{path} holds no text that the files before it do not hold, too")

    def __len__(self) -> int:
        return len(self._short) + len(self._grams)

    def _add(self, words: list[str]) -> None:
        if 0 < len(words) < WORDS:
            self._short.add(" ".join(words))
        self._grams.update(map(hash, _grams(words)))

    def shares(self, key: str) -> str | None:
        """The words that a line, given as plain(line), shares with a text: eight in a row, or all words of a shorter line; or None."""
        words = key.split()
        if len(words) < WORDS:
            return key if key in self._short else None
        return next((" ".join(gram) for gram in _grams(words) if hash(gram) in self._grams), None)


def _grams(words: list[str]) -> Iterator[tuple[str, ...]]:
    """All runs of WORDS words."""
    return zip(*(words[i:] for i in range(WORDS)), strict=False)
