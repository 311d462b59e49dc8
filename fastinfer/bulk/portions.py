"""Portions: a .parquet file in portions of rows, each embedded into a file of its own by whichever process, then joined in their order.

The files of the portions are in FILE.parts. Each appears there whole or not at all, and what it holds depends on its rows alone. So a
portion can be made twice, an engine may repeat what a killed process had begun, and an interrupted run goes on with what is missing.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
import json
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import FastinferError, InputError, about, short
from ..files import naming, replacing, stamp
from ..formats import ROWS
from ..tables import BATCH, parquet, pyarrow
from ..tokenizer import TruncationWarning
from .embed import Embed

__all__ = ["NUMBER", "Portions", "join", "seen"]

NUMBER = "id"  # the column of the numbers of portions, as spark.range calls it
PART, FAILED = ".arrow", "failed.txt"  # names in FILE.parts: of a portion, of what could not be embedded
CUTS = b"fastinfer.cuts"  # key in a portion's file: its TruncationWarnings


@dataclass
class Portions:
    """A function of a batch of numbers of portions that writes the file of each, and gives the batch back. It can be pickled.

    source  the .parquet file; seen: its size and time when the run began
    folder  where the portions are written
    embed   what adds the vectors
    total   rows of the source
    rows    of a portion

    A batch is what an engine calls it with: a dict of arrays or a table of pandas with the column NUMBER, or an iterator of tables.
    """

    source: str
    seen: tuple[int, int]
    folder: str
    embed: Embed
    total: int
    rows: int

    @property
    def count(self) -> int:
        """The number of portions."""
        return -(-self.total // self.rows)

    def path(self, number: int) -> Path:
        """The file of a portion."""
        return Path(self.folder, f"{number:08d}{PART}")

    def rows_of(self, number: int) -> int:
        """The rows of a portion."""
        return min(self.rows, self.total - number * self.rows)

    def made(self) -> list[int]:
        """The numbers of the portions that are made."""
        with os.scandir(self.folder) as found:
            return sorted(int(entry.name.removesuffix(PART)) for entry in found if entry.name.endswith(PART) and entry.name[0].isdigit())

    # --- in a process of an engine ---

    def __call__(self, batch: Any) -> Any:
        if isinstance(batch, Iterator):
            return map(self._each, batch)
        return self._each(batch)

    def _each(self, batch: Any) -> Any:
        """Make the portions of a batch. An error that would come again is left in the folder: engines repeat what raises one."""
        for number in batch[NUMBER]:
            if self.failed():
                break
            try:
                self.make(int(number))
            except FastinferError as error:
                with replacing(Path(self.folder, FAILED)) as out:
                    out.write(str(error).encode())
        return batch

    def failed(self) -> str:
        """The error that a process left; "" if none did."""
        with contextlib.suppress(FileNotFoundError):
            return Path(self.folder, FAILED).read_text()
        return ""

    def forget(self) -> None:
        """Remove the error that an earlier run left."""
        Path(self.folder, FAILED).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the source, which this process keeps open for its next portion."""
        _source.cache_clear()

    def make(self, number: int) -> None:
        """Write the file of a portion, unless it exists. Raises InputError for rows that cannot be embedded, naming them."""
        path = self.path(number)
        if path.exists():
            return
        first, count = number * self.rows, self.rows_of(number)
        if seen(self.source) != self.seen:
            raise InputError(f"{self.source} has changed since the run began: begin again")
        table = _source(self.source, self.seen).read(first, count)
        texts = table.column(self.embed.column)
        if texts.null_count and self.embed.refuses_missing:
            row = first + texts.is_null().to_pylist().index(True) + 1
            hint = "expected a text: --na says what becomes of missing ones"
            raise InputError(f"{self.source}, row {row}: column {short(self.embed.column)} has no value, {hint}")
        with about(f"{self.source}, rows {first + 1} to {first + count}"), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", TruncationWarning)
            table = self.embed(table)
        nothing = TruncationWarning(0, count, 0, self.embed.model.config.max_tokens)
        cuts = [warning.message.args for warning in said if isinstance(warning.message, TruncationWarning)] or [nothing.args]
        for warning in said:
            if not isinstance(warning.message, TruncationWarning):
                warnings.warn(warning.message, stacklevel=1)
        _write(table.replace_schema_metadata((table.schema.metadata or {}) | {CUTS: json.dumps(cuts).encode()}), path)


def seen(source: str) -> tuple[int, int]:
    """The size and the time of a file, which every machine sees alike."""
    found = stamp(source)
    return (0, 0) if found is None else (found[2], found[3])


def _write(table: Any, path: Path) -> None:
    from pyarrow import ipc

    with replacing(path) as out, ipc.new_file(out, table.schema) as writer:
        writer.write_table(table.combine_chunks())


# --- rows of the source ------------------------------------------------------------------------------------


class Source:
    """Rows of a .parquet file by their numbers. A read goes on where the last one ended: a group of rows is read from its beginning."""

    def __init__(self, name: str) -> None:
        self._name, self._opened = name, contextlib.ExitStack()
        self._file = self._opened.enter_context(parquet(name))
        sizes = [self._file.metadata.row_group(i).num_rows for i in range(self._file.metadata.num_row_groups)]
        self._starts = list(itertools.accumulate(sizes, initial=0))
        self._at = sys.maxsize  # the row that comes next; beyond all rows where nothing does
        self._batches: Iterator[Any] = iter(())
        self._left: list[Any] = []  # the rest of a batch of which rows were given
        self._reading = threading.Lock()

    def read(self, first: int, count: int) -> Any:
        """The table of `count` rows from `first` on. Raises InputError for a broken file."""
        arrow = pyarrow(self._name)
        with self._reading:
            at, self._at = self._at, sys.maxsize  # until these rows are read
            group = self._group(first)
            if first < at or group > self._group(at):
                at, self._left = self._starts[group], []
                self._batches = self._file.iter_batches(BATCH, row_groups=range(group, len(self._starts) - 1), use_threads=False)
            try:
                self._take(first - at)
                taken = self._take(count)
            except (arrow.ArrowException, OSError, StopIteration) as error:
                raise InputError(f"{self._name}, rows {first + 1} to {first + count} cannot be read: {error}") from None
            self._at = first + count
        return arrow.Table.from_batches(taken, self._file.schema_arrow)

    def _group(self, row: int) -> int:
        return bisect.bisect_right(self._starts, row) - 1

    def _take(self, count: int) -> list[Any]:
        """The next `count` rows, in batches."""
        taken = []
        while count:
            batch = self._left.pop() if self._left else next(self._batches)
            if len(batch) > count:
                self._left.append(batch.slice(count))
                batch = batch.slice(0, count)
            count -= len(batch)
            taken.append(batch)
        return taken


@functools.lru_cache(1)
def _source(name: str, _: tuple[int, int]) -> Source:
    return Source(name)


# --- the end -----------------------------------------------------------------------------------------------


def join(portions: Portions, out: BinaryIO) -> TruncationWarning | None:
    """Write the rows of all portions into one .parquet file, and give one warning for all texts that were cut."""
    from pyarrow.parquet import ParquetWriter

    arrow = pyarrow(portions.source)
    with parquet(portions.source) as source:
        schema = source.schema_arrow.append(portions.embed.field())
    cuts: list[TruncationWarning] = []
    group: list[Any] = []
    with ParquetWriter(out, schema, **_how(schema, portions.embed.to)) as writer:
        for number in range(portions.count):
            table = _read(portions, number, schema)
            cuts += [TruncationWarning(*cut) for cut in json.loads(table.schema.metadata[CUTS])]
            group.append(table.replace_schema_metadata(schema.metadata))
            if number == portions.count - 1 or sum(map(len, group)) >= ROWS:
                writer.write_table(arrow.concat_tables(group))
                group = []
    return TruncationWarning.total(cuts)


def _read(portions: Portions, number: int, schema: Any) -> Any:
    """The table in the file of a portion, mapped. Raises InputError for a file that is not what make() wrote."""
    from pyarrow import ipc

    arrow, path = pyarrow(portions.source), portions.path(number)
    hint = "remove it, and go on with --resume"
    try:
        with naming(path):
            table = ipc.open_file(arrow.memory_map(str(path))).read_all()
    except arrow.ArrowInvalid as error:
        raise InputError(f"{path} is broken: {hint} ({error})") from None
    if len(table) != portions.rows_of(number) or not table.schema.equals(schema) or CUTS not in (table.schema.metadata or {}):
        raise InputError(f"{path} does not hold the {portions.rows_of(number)} rows of its portion: {hint}")
    return table


def _how(schema: Any, to: str) -> dict[str, Any]:
    """How ParquetWriter stores a table: what its vectors are made of neither repeats nor can be compressed."""
    others = [name for name in schema.names if name != to]
    return {"use_dictionary": others, "compression": dict.fromkeys(others, "snappy"), "write_statistics": others}
