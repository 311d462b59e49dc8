"""The files of data sets: rows of a table, of CLINC150's JSON, of CoNLL, and paragraphs of articles, each with its place in the file."""

from __future__ import annotations

import csv
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, near, short
from .articles import articles, held_out

SHOWN = 8  # names that a message lists
# It is stricter than what training needs, because a query has to be a whole sentence: a full stop after a capital, which may be an
# initial, ends nothing.
SENTENCE_END = re.compile(r"""(?:(?<=[a-z0-9)"'][.!?])|(?<=[a-z0-9][.!?]["')]))\s+(?=[A-Z"(])""")
SENTENCE, REST, LONGEST = 40, 160, 1200  # characters: at least of the first sentence, at least of the rest, at most of both
PASSAGES, MASKED = 5000, 200  # paragraphs that retrieval is scored on, sentences that masks are


def find(data: str | Path, name: str) -> Path:
    """The path of file `name` in folder `data` or in one of its folders. Raises InputError where none has it."""
    data = Path(data)
    for path in (data / name, *sorted(data.glob(f"*/{name}"))):
        if path.is_file():
            return path
    raise InputError(f"{data / name} does not exist, and no folder of {data} has it: mend the path, or put the data set there as published")


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(where, line) of each line of a UTF-8 text file, without line ends."""
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        number = 0
        try:
            for number, line in enumerate(file, 1):
                yield f"{path}, line {number}", line.removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}, after line {number}: no UTF-8: {error.reason}") from None


def read_table(path: Path, header: Sequence[str] | None, wanted: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """(where, {column: value} of the wanted columns) of each row of a .csv, .tsv or .jsonl file.

    A quote in a .tsv file is a character like any other, as in the files of GLUE.
    """
    if path.suffix == ".jsonl":
        yield from _read_objects(path, wanted)
        return
    if path.suffix not in (".csv", ".tsv"):
        raise InputError(f"{path}: expected a file named .csv, .tsv, .jsonl, or .conll for tags")
    rows = _csv_rows(path) if path.suffix == ".csv" else ((where, line.split("\t")) for where, line in _lines(path))
    for where, row in rows:
        if header is None:
            header = row
            _need(where, header, wanted)
            continue
        if len(row) != len(header):
            raise InputError(f"{where} has {len(row)} columns, expected {len(header)}: {some_of(header)}")
        found = dict(zip(header, row, strict=True))
        yield where, {c: found[c] for c in wanted}


def _read_objects(path: Path, wanted: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """(where, {column: value} of the wanted columns) of each line of a .jsonl file. A number is a value, too."""
    for where, line in _lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: no JSON: {error}: {short(line)}") from None
        if not isinstance(row, dict):
            raise InputError(f"{where}: {short(row)}, expected an object with {some_of(wanted)}")
        _need(where, list(row), wanted)
        values = {c: json.dumps(row[c]) if isinstance(row[c], (int, float)) else row[c] for c in wanted}
        for column, value in values.items():
            if not isinstance(value, str):
                raise InputError(f"{where}: {column} is {short(value)}, expected text, or a number as a label")
        yield where, values


def _csv_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """(where, cells) of each row of a .csv file."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            for row in reader:
                yield f"{path}, line {reader.line_num}", row
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path}, after line {reader.line_num}: {error}") from None


def _need(where: str, columns: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise InputError for wanted columns that a file lacks."""
    missing = [c for c in wanted if c not in columns]
    if missing:
        raise InputError(f"{where}: no column {some_of(missing)}{near(missing[0], columns)}; there are {some_of(columns)}")


def read_splits(path: Path, split: str) -> Iterator[tuple[str, str, str]]:
    """(where, text, label) of each row of a split in a file like CLINC150's: {split: [[text, label], ...]}."""
    try:
        rows = json.loads(path.read_bytes())[split]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is no JSON object with a list {split!r}: {error}") from None
    if not isinstance(rows, list):
        raise InputError(f"{path}: {split!r} is {short(rows)}, expected a list of [text, label]")
    for i, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != 2 or not all(isinstance(value, str) for value in row):
            raise InputError(f"{path}, {split}[{i}] is {short(row)}, expected [text, label]")
        yield f"{path}, {split}[{i}]", *row


def read_tagged(path: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """(where, words, tags) of each sentence of a CoNLL file.

    A line holds a word, white space, and in the last column the word's tag (O, B-x or I-x). An empty line ends a sentence.
    """
    start, words, tags = "", [], []
    for where, line in [*_lines(path), ("", "")]:
        fields = line.split("\t") if "\t" in line else line.split()
        if len(fields) >= 2:
            if fields[0] == "-DOCSTART-":
                continue
            if fields[-1] != "O" and fields[-1][:2] not in ("B-", "I-"):
                raise InputError(f"{where}: tag {short(fields[-1])}, expected O, B-x or I-x in the last column")
            start = start or where
            words.append(fields[0])
            tags.append(fields[-1])
        elif line.strip():
            raise InputError(f"{where}: {short(line)}, expected a word and its tag with white space between")
        elif words:
            yield start, words, tags
            start, words, tags = "", [], []


def read_articles(path: Path, *, whole: bool) -> Iterator[tuple[str, Any, None]]:
    """Paragraphs of the held-out articles: (where, (first sentence, the rest), None) of each where `whole`, else the first sentence alone.

    The paragraphs have two sentences or more and a suitable length. Those with the lowest checksums are taken, so the choice is always the
    same.
    """
    found = {}
    for title, paragraphs in articles([path]):
        for paragraph in paragraphs if title is not None and held_out(title) else ():
            first, _, rest = SENTENCE_END.sub("\n", paragraph, count=1).partition("\n")
            if len(paragraph) <= LONGEST and len(first) >= SENTENCE and len(rest) >= REST:
                found[paragraph] = (first, rest)
    for paragraph in sorted(found, key=lambda p: (zlib.crc32(p.encode()), p))[: PASSAGES if whole else MASKED]:
        yield f"{path}, {short(paragraph)}", found[paragraph] if whole else found[paragraph][0], None


def some_of(names: Iterable[str]) -> str:
    """The first names in quotes, and how many more there are, for a message."""
    names = [short(name) for name in names]
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
