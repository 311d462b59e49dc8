"""Formats of answers: lines, JSON, tables and arrays, each made of one window of texts after another.

A format is written into a file piece by piece, so that an interrupted run can go on behind the pieces that are complete.
"""

from __future__ import annotations

import csv
import io
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from .cutting import sides_of
from .errors import InputError
from .tables import pyarrow
from .text_io import json_line, shortest

__all__ = ["Answers", "Format", "format_of"]

ARRAY = "embeddings"  # the name of the array in a .npz file
HEADER = 128  # bytes of a .npy file before its numbers, whatever the number of rows
ROWS = 1 << 14  # rows of a group in a .parquet file, at least; readers hold a group in memory
INTEGERS, REALS = {"row", "mask", "start", "end", "rank", "index"}, {"score", "weight"}  # columns of tables; others are texts


class Answers(NamedTuple):
    """How the answers of a command are shown.

    record    (text, answer) -> its object in JSON
    readable  (text, answer) -> lines for people
    names     the columns of a text and of the second text of a pair
    columns   the further columns of a table
    rows      answer -> its rows in a table, a cell for each of `columns`
    width     numbers of each vector, where an answer is a vector; 0: it is not
    numbered  a table may have several rows for a text, so its first column has the number of the text, from 0
    """

    record: Callable[[Any, Any], dict[str, Any]]
    readable: Callable[[Any, Any], str]
    names: tuple[str, str]
    columns: tuple[str, ...]
    rows: Callable[[Any], Sequence[tuple[Any, ...]]]
    width: int = 0
    numbered: bool = True


class Format:
    """The format of readable text, and what others have in common.

    streams   the pieces one after another are the file, so they can go to a pipe
    in_place  finish() completes the file that the pieces are in; False: it writes another one
    """

    streams = in_place = True

    def __init__(self, answers: Answers, name: str, paired: bool) -> None:
        self.answers, self.name, self.paired = answers, name, paired

    def head(self) -> bytes:
        """What a file begins with."""
        return b""

    def body(self, first: int, texts: Sequence[Any], found: Sequence[Any]) -> bytes:
        """The answers to some texts. first: the number of texts before them."""
        return "".join(self.answers.readable(*pair) + "\n" for pair in zip(texts, found, strict=True)).encode()

    def tail(self, count: int) -> bytes:
        """What a file of so many texts ends with."""
        return b""

    def finish(self, pieces: BinaryIO, count: int, out: BinaryIO) -> None:
        """Make the file of so many texts from its pieces, which have their tail. Where `in_place`, `out` is the same file."""

    def table(self, first: int, texts: Sequence[Any], found: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
        """The rows of a table, a cell for each of `columns`. A text without an answer has a row, too."""
        nothing = [(None,) * len(self.answers.columns)]
        for number, (text, answer) in enumerate(zip(texts, found, strict=True), first):
            if isinstance(text, str) == self.paired:
                kinds = ("pairs", "a single text") if self.paired else ("single texts", "a pair")
                raise InputError(f"text {number + 1} is {kinds[1]}, but a table holds {kinds[0]}, as it begins: write JSON lines instead")
            before = (number, *sides_of(text)) if self.answers.numbered else sides_of(text)
            yield from ((*before, *row) for row in self.answers.rows(answer) or nothing)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of table()."""
        return (*(["row"] if self.answers.numbered else []), *self.answers.names[: 1 + self.paired], *self.answers.columns)


class Lines(Format):
    """JSON, an object on each line."""

    def body(self, first: int, texts: Sequence[Any], found: Sequence[Any]) -> bytes:
        return "".join(json_line(self.answers.record(*pair)) + "\n" for pair in zip(texts, found, strict=True)).encode()


class List(Format):
    """JSON, one list with an object on each line."""

    def body(self, first: int, texts: Sequence[Any], found: Sequence[Any]) -> bytes:
        lines = (json_line(self.answers.record(*pair)) for pair in zip(texts, found, strict=True))
        return "".join(f"{',' if number else '['}\n{line}" for number, line in enumerate(lines, first)).encode()

    def tail(self, count: int) -> bytes:
        return b"\n]\n" if count else b"[]\n"


class Csv(Format):
    """A table with commas. Cells are quoted where they need it; numbers have the fewest digits that give the same float32."""

    def head(self) -> bytes:
        columns: list[str] = []
        for column in self.columns:
            columns += [f"{column}_{i}" for i in range(self.answers.width)] if column == "embedding" else [column]
        return self._written([columns])

    def body(self, first: int, texts: Sequence[Any], found: Sequence[Any]) -> bytes:
        return self._written(map(self._cells, self.table(first, texts, found)))

    @staticmethod
    def _cells(row: Sequence[Any]) -> Iterator[Any]:
        for cell in row:
            if isinstance(cell, np.ndarray):
                yield from map(str, cell)
            else:
                yield repr(shortest(cell)) if isinstance(cell, float) else cell

    @staticmethod
    def _written(rows: Any) -> bytes:
        out = io.StringIO()
        csv.writer(out).writerows(rows)  # ends lines with \r\n, as RFC 4180 says, so that a cell with either of these is quoted
        return out.getvalue().encode()


class Array(Format):
    """The file of numpy.save(): float32 (texts, width)."""

    streams = False

    def head(self) -> bytes:
        return self._head(0)

    def _head(self, count: int) -> bytes:
        said = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({count}, {self.answers.width}), }}"
        return b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little") + said.encode().ljust(HEADER - 11) + b"\n"

    def body(self, first: int, texts: Sequence[Any], found: Any) -> bytes:
        return bytes(np.asarray(found, "<f4").tobytes())

    def finish(self, pieces: BinaryIO, count: int, out: BinaryIO) -> None:
        pieces.seek(0)
        pieces.write(self._head(count))


class Archive(Array):
    """The file of numpy.savez(): one array in an archive."""

    in_place = False

    def finish(self, pieces: BinaryIO, count: int, out: BinaryIO) -> None:
        super().finish(pieces, count, pieces)
        pieces.seek(0)
        with zipfile.ZipFile(out, "w") as archive, archive.open(zipfile.ZipInfo(f"{ARRAY}.npy"), "w", force_zip64=True) as file:
            shutil.copyfileobj(pieces, file, 1 << 20)


class Parquet(Format):
    """A table of columns. Its pieces are record batches of Arrow, since a .parquet file ends with the places of all its parts."""

    streams = in_place = False

    def __init__(self, answers: Answers, name: str, paired: bool) -> None:
        super().__init__(answers, name, paired)
        self._arrow = pyarrow(name)
        self._schema = self._arrow.schema([(column, self._kind(column)) for column in self.columns])

    def _kind(self, column: str) -> Any:
        arrow = self._arrow
        if column == "embedding":
            return arrow.list_(arrow.float32())
        return arrow.int64() if column in INTEGERS else arrow.float64() if column in REALS else arrow.string()

    def body(self, first: int, texts: Sequence[Any], found: Sequence[Any]) -> bytes:
        rows = list(self.table(first, texts, found))
        columns = zip(*rows, strict=True) if rows else [()] * len(self.columns)
        arrays = [self._arrow.array(list(cells), field.type) for cells, field in zip(columns, self._schema, strict=True)]
        return bytes(self._arrow.record_batch(arrays, schema=self._schema).serialize())

    def finish(self, pieces: BinaryIO, count: int, out: BinaryIO) -> None:
        from pyarrow import ipc, parquet

        pieces.seek(0)
        with parquet.ParquetWriter(out, self._schema) as writer:
            group: list[Any] = []
            while pieces.read(1):
                pieces.seek(-1, io.SEEK_CUR)
                group.append(ipc.read_record_batch(ipc.read_message(pieces), self._schema))
                if sum(map(len, group)) >= ROWS:
                    writer.write_table(self._arrow.Table.from_batches(group))
                    group = []
            writer.write_table(self._arrow.Table.from_batches(group, self._schema))


FORMATS: dict[str, type[Format]] = {
    "text": Format,
    "jsonl": Lines,
    "json": List,
    "csv": Csv,
    "parquet": Parquet,
    "npy": Array,
    "npz": Archive,
}


def format_of(form: str, answers: Answers, name: str, paired: bool) -> Format:
    """The format with this name in text_io.ENDINGS, for the file `name`. paired: texts are pairs, as far as a table is concerned."""
    return FORMATS[form](answers, name, paired)
