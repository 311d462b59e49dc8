"""Tables as input: the texts in the columns of .csv, .tsv and .parquet files. Their other columns are not read."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .errors import InputError, required, short
from .files import naming

__all__ = ["BATCH", "check_texts", "csv_rows", "parquet", "parquet_count", "parquet_rows", "pyarrow"]

BUFFER = 1 << 20  # bytes of each column of a parquet file that are read at a time
BATCH = 1024  # rows of a parquet file that are held at a time

Row = tuple[str, dict[str, str]]  # (where it stands, {column: value})
Choose = Callable[[Sequence[str]], list[str]]  # the columns to read, chosen from all names; raises InputError


def csv_rows(lines: Iterator[tuple[str, str]], name: str, delimiter: str, choose: Choose, *, most: int) -> Iterator[Row]:
    """Yield the rows of a table whose first line has the names of its columns.

    lines  (where, line with its end) of each line of the file `name`; a cell in quotes may go on in the next line
    most   characters of the longest cell
    """
    csv.field_size_limit(most)
    reader = csv.reader((line for _, line in lines), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    places: dict[str, int] = {}
    try:
        for row in reader:
            if header is None:
                header = row
                places = {column: header.index(column) for column in choose(header)}
                twice = [column for column in places if header.count(column) > 1]
                if twice:
                    raise InputError(f"{name} has {header.count(twice[0])} columns {short(twice[0])}, expected different names")
            elif row:
                where = f"{name}, line {reader.line_num}"
                if len(row) != len(header):
                    raise InputError(f"{where} has {len(row)} cells, expected {len(header)}, as the first line has")
                yield where, {column: row[place] for column, place in places.items()}
    except csv.Error as error:
        raise InputError(f"{name}, line {reader.line_num}: no table: {error}") from None
    if header is None:
        raise InputError(f"{name} is empty, expected the names of columns in its first line")


def parquet_rows(name: str, choose: Choose) -> Iterator[Row]:
    """Yield the rows of a .parquet file."""
    with parquet(name) as table:
        with _intact(name):
            schema = table.schema_arrow
            names = schema.names
        columns = choose(names)
        for column in columns:
            check_texts(name, schema, column)
        number, batches = 0, table.iter_batches(BATCH, columns=list(dict.fromkeys(columns)))
        while True:
            with _intact(f"{name}, after row {number}"):
                batch = next(batches, None)
                rows = [] if batch is None else batch.to_pylist()
            if batch is None:
                return
            for row in rows:
                number += 1
                for column in columns:
                    if row[column] is None:
                        raise InputError(f"{name}, row {number}: column {short(column)} has no value, expected a text")
                yield f"{name}, row {number}", row


def check_texts(name: str, schema: Any, column: str) -> None:
    """Raise InputError unless a .parquet file `name` has one such column, and that has texts."""
    if schema.names.count(column) > 1:
        raise InputError(f"{name} has {schema.names.count(column)} columns {short(column)}, expected different names")
    types, kind = pyarrow(name).types, schema.field(column).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(kind) or types.is_large_string(kind)):
        raise InputError(f"{name}: column {short(column)} has {kind} values, expected texts")


def parquet_count(name: str) -> int:
    """The number of rows of a .parquet file."""
    with parquet(name) as table:
        return int(table.metadata.num_rows)


def pyarrow(name: str) -> Any:
    """The package that reads and writes the file `name`. Raises InputError where it is not installed."""
    return required("pyarrow", name, "parquet")


@contextlib.contextmanager
def parquet(name: str) -> Iterator[Any]:
    """An opened .parquet file. Raises InputError for a file of another kind."""
    pyarrow(name)
    from pyarrow.parquet import ParquetFile

    with naming(name), open(name, "rb") as file:
        with _intact(name):
            table = ParquetFile(file, buffer_size=BUFFER, pre_buffer=False)  # else a whole group of rows is in memory
        yield table


@contextlib.contextmanager
def _intact(where: str) -> Iterator[None]:
    """What pyarrow raises in the block for broken files, among it UnicodeDecodeError for names and texts, is an InputError."""
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, NotImplementedError) as error:  # Arrow's own errors are among these
        raise InputError(f"{where}: no parquet data: {error}") from None
