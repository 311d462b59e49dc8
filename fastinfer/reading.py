"""Texts in: from arguments, lines, JSON and tables, in files and on standard input, for the command line."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import gzip
import itertools
import json
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from . import tables
from .errors import InputError, InputWarning, near, short, warn
from .files import naming
from .progress import Progress
from .text_io import argument
from .tokenizer import as_text

__all__ = ["opened", "read_records", "read_texts", "reads_stdin", "text_names", "windows"]

# Texts, and roughly characters, that are read, computed and written at a time.
WINDOW_TEXTS = 1024
WINDOW_CHARACTERS = 1 << 17
LINE_MEGABYTES = 16  # of the part of a line that is read, and of the longest value in JSON and in a table
PIECE = 1 << 20  # bytes of a list in JSON that are read at a time
TABLES = {".csv": ",", ".tsv": "\t", ".parquet": "parquet"}  # {ending of a table: what stands between its cells}
SPACE = re.compile(r"[ \t\n\r]*")  # white space in JSON

Text = str | tuple[str, str]
File = IO[bytes] | gzip.GzipFile


def opened(args: argparse.Namespace) -> Iterator[Text]:
    """read_texts(), after the first text of a file has been read: what is wrong with the file is found before a model is loaded."""
    texts = read_texts(args)
    return texts if reads_stdin(args) else itertools.chain(list(itertools.islice(texts, 1)), texts)


def read_texts(args: argparse.Namespace) -> Iterator[Text]:
    """Yield the texts of the arguments, the file or standard input. Raises InputError naming file and line."""
    if args.texts and not reads_stdin(args):
        for i, text in enumerate(args.texts, 1):
            yield _plain(argument(text), args, f"argument {i}")
        return
    name = "standard input" if reads_stdin(args) else args.input
    kind = _kind(args)
    if kind == "plain" and args.column:
        raise InputError(f"{name} is read as plain lines, which have no columns: --column is for .csv, .tsv, .parquet, .jsonl and .json")
    if kind != "plain" and args.pairs and args.takes != "pairs":
        raise InputError(f"--pairs is for plain lines, and {name} has none: a pair in a table is --column twice, in JSON a list of two")
    if kind == "parquet":
        yield from (_item(row, args, where) for where, row in tables.parquet_rows(name, lambda names: _wanted(names, args, name)))
        return
    with naming(name), _opened(args) as file:
        if kind == "plain":
            cut = not args.whole and not args.pairs
            yield from (_plain(line, args, where) for where, line in _lines(file, name, cut=cut))
        else:
            yield from (_item(value, args, where) for where, value in _structured(file, name, kind, args))


def read_records(args: argparse.Namespace) -> Iterator[tuple[Any, Any, str]]:
    """Yield (id, text, where it is): the "id" of a JSON object, else None."""
    kind = "plain" if args.texts and not reads_stdin(args) else _kind(args)
    if kind not in ("json", "jsonl"):
        yield from ((None, text, f"text {i}") for i, text in enumerate(read_texts(args), 1))
        return
    name = "standard input" if reads_stdin(args) else args.input
    with naming(name), _opened(args) as file:
        for where, value in _structured(file, name, kind, args):
            yield value.get("id") if isinstance(value, dict) else None, _item(value, args, where), where


def _structured(file: File, name: str, kind: str, args: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Yield (where, value) of JSON, or (where, row) of a table."""
    if kind == "json":
        return _document(file, name)
    if kind == "jsonl":
        return _values(_lines(file, name))
    lines, most = _lines(file, name, ends=True), LINE_MEGABYTES << 20
    return tables.csv_rows(lines, name, kind, lambda names: _wanted(names, args, name), most=most)


def _kind(args: argparse.Namespace) -> str:
    """How the input is read: "plain" for lines, "jsonl", "json" (a list of texts, or JSON lines in a .json file), or a value of TABLES."""
    ending = "" if reads_stdin(args) else os.path.splitext(args.input.lower().removesuffix(".gz"))[1]
    if args.jsonl or ending in (".jsonl", ".ndjson"):
        return "jsonl"
    if ending == ".tsv" and args.pairs:
        return "plain"
    return "json" if ending == ".json" else TABLES.get(ending, "plain")


def _opened(args: argparse.Namespace) -> contextlib.AbstractContextManager[File]:
    if reads_stdin(args):
        return contextlib.nullcontext(sys.stdin.buffer)
    return gzip.open(args.input) if args.input.lower().endswith(".gz") else open(args.input, "rb")


def reads_stdin(args: argparse.Namespace) -> bool:
    return args.texts == ["-"] or args.input == "-" or (not args.texts and args.input is None)


# --- columns and keys ------------------------------------------------------------------------------------


def text_names(args: argparse.Namespace) -> tuple[str, str]:
    """The names of a text and of the second text of a pair in the output: those of the input's columns or keys, where they were given."""
    first, second = ("question", "context") if args.command == "answer" else ("text", "pair")
    given = args.column or []
    if len(given) == 1 and args.command == "answer":  # the question came with -q
        return first, given[0]
    return (given[0], given[1]) if len(given) == 2 else (given[0] if given else first, second)


def _keys(args: argparse.Namespace) -> list[str]:
    """The columns or keys that are read: of a text, or of a pair."""
    if args.column:
        return list(args.column)
    return ["question", "context"] if args.takes == "pairs" else ["text", "pair"]


def _wanted(columns: Sequence[str], args: argparse.Namespace, name: str) -> list[str]:
    """The columns of a table that have the texts, or the pairs. Raises InputError where it has none of these names."""
    wanted = _keys(args)
    if not args.column and args.takes != "pairs" and (args.takes == "singles" or "pair" not in columns):
        wanted = ["text"]
    for column in wanted:
        if column not in columns:
            known = ", ".join(map(short, columns[:20]))
            hint = near(column, columns) or ("" if args.column else ": name one with --column")
            raise InputError(f"{name} has no column {short(column)}, only {known or 'none'}{hint}")
    return wanted


def _item(value: Any, args: argparse.Namespace, where: str) -> Any:
    """The text or pair that a JSON value or the row of a table holds."""
    keys, found = _keys(args), value
    first, second = keys[0], keys[-1]
    if isinstance(value, dict) and first in value:
        value = [value[first], value[second]] if second != first and second in value else value[first]
    if isinstance(value, str) and args.takes != "pairs":
        return as_text(value, where)
    if isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value) and args.takes != "singles":
        return as_text(value, where)
    single, pair = f'"a text", {{"{first}": "a text"}}', f'["one", "two"], {{"{first}": "one", "{second}": "two"}}'
    if second == first:
        pair = '["one", "two"]'
    expected = {"singles": single, "pairs": pair, "either": f"{single}, {pair}"}[args.takes]
    hint = near(first, found) if isinstance(found, dict) and first not in found else ""
    raise InputError(f"{where}: {short(value)}, expected one of {expected}{hint}")


def _plain(text: str, args: argparse.Namespace, where: str) -> Any:
    """The text of a line or argument; with --pairs, the two texts around its tab."""
    if not args.pairs:
        return as_text(text, where)
    pair = text.split("\t")
    if len(pair) != 2:
        hint = ": to ask one question of all texts, give it with -q" if args.command == "answer" else ""
        expected = "a question and a context" if args.command == "answer" else "two texts"
        raise InputError(f"{where} has {len(pair) - 1} tabs, expected {expected} with one tab between them{hint}: {short(text)}")
    return as_text(pair, where)


# --- lines -----------------------------------------------------------------------------------------------


def _lines(file: File, name: str, *, cut: bool = False, ends: bool = False) -> Iterator[tuple[str, str]]:
    """Yield (where, line) of a file without its byte order mark; of a line of over LINE_MEGABYTES, no more than that is in memory.

    cut   the beginning of such a line stands for it, with an InputWarning; False: InputError
    ends  keep the ends of lines

    Raises InputError for a line that is not UTF-8.
    """
    where, number, most = name, 0, LINE_MEGABYTES << 20
    with _decoding(lambda: where, lambda: f"{name}, after line {number}"):
        for number, line in enumerate(iter(lambda: file.readline(most + 2), b""), 1):
            where = f"{name}, line {number}"
            if len(line) > most + line.endswith(b"\n"):
                if not cut:
                    raise InputError(f"{where} has more than {LINE_MEGABYTES} MB, expected one text per line: split it")
                warn(InputWarning(f"{where} has more than {LINE_MEGABYTES} MB: only its first {LINE_MEGABYTES} MB were read"))
                rest = line
                while not rest.endswith(b"\n") and (rest := file.readline(PIECE)):
                    pass
                line = codecs.utf_8_decode(line[:most], "strict", False)[0].encode()  # without a part of a character at its end
            if number == 1:
                line = _unmarked(line, where)
            if b"\0" in line:
                raise InputError(f"{where}: byte {line.index(0) + 1} is 0, expected UTF-8 text: the file is binary, or UTF-16")
            yield where, line.decode() if ends else line.removesuffix(b"\n").removesuffix(b"\r").decode()


def _unmarked(data: bytes, where: str) -> bytes:
    """The beginning of a file without the byte order mark of UTF-8. Raises InputError for that of another encoding."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{where}: the file is UTF-16 or UTF-32, expected UTF-8: convert it with iconv -f UTF-16 -t UTF-8")
    return data.removeprefix(codecs.BOM_UTF8)


@contextlib.contextmanager
def _decoding(where: Callable[[], str], after: Callable[[], str]) -> Iterator[None]:
    """An error of the encoding, or of gzip, is an InputError that says where the file is broken."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(f"{where()}: byte {error.start + 1} (0x{error.object[error.start]:02x}) is no UTF-8") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{after()}: broken gzip data: {error}") from None


# --- JSON ------------------------------------------------------------------------------------------------


def _values(lines: Iterator[tuple[str, str]]) -> Iterator[tuple[str, Any]]:
    """Yield (where, JSON value) per line; blank lines are skipped."""
    return ((where, _parsed(line, where)) for where, line in lines if line.strip())


def _document(file: File, name: str) -> Iterator[tuple[str, Any]]:
    """Yield (where, JSON value) of a .json file: per item of its list, or per line if the first line is a whole value and more follow."""
    with _decoding(lambda: name, lambda: f"{name}, after line 0"):
        head = _unmarked(file.read(LINE_MEGABYTES << 20), f"{name}, line 1").lstrip()
        file.seek(0)
    line, _, rest = head.partition(b"\n")
    if rest.strip() and _is_json(line):
        yield from _values(_lines(file, name))
    elif head.startswith(b"["):
        yield from ((f"{name}, item {i}", item) for i, item in enumerate(_items(_pieces(file, name), name), 1))
    elif head:
        yield f"{name}, item 1", _parsed("\n".join(line for _, line in _lines(file, name)), name)


def _pieces(file: File, name: str) -> Iterator[str]:
    """The text of a file, PIECE bytes at a time."""
    decoder, done = codecs.getincrementaldecoder("utf-8-sig")(), 0
    with _decoding(lambda: f"{name}, after byte {done}", lambda: f"{name}, after byte {done}"):
        while data := file.read(PIECE):
            yield decoder.decode(data)
            done += len(data)
        yield decoder.decode(b"", True)


def _items(pieces: Iterator[str], name: str) -> Iterator[Any]:
    """Yield the items of the one list in JSON that the pieces make up, with one item in memory at a time."""
    decode = json.JSONDecoder().raw_decode
    text, at, mark = "", 0, "["  # the mark that stands before the next item

    def skip(at: int) -> int:
        return SPACE.match(text, at).end()  # type: ignore[union-attr]  # it matches everywhere

    while True:
        at, said = skip(at), "the list has no end"
        if text[at : at + 1] == "]" and mark == ",":
            break
        if at < len(text) and text[at] != mark:
            raise InputError(f"{name}: no JSON: expected {mark}{'' if mark == '[' else ' or ]'} before {short(text[at : at + 80])}")
        item = skip(at + 1)
        if mark == "[" and text[item : item + 1] == "]":
            at, mark = item, ","
            continue
        try:
            value, end = decode(text, item) if item < len(text) else (None, len(text))
        except RecursionError as error:
            raise InputError(f"{name}: no JSON: {error}") from None
        except ValueError as error:
            said, end = str(error), len(text)
        end = skip(end)
        if text[end : end + 1] in (",", "]"):  # another character may be a part of the value, as in 5e3
            yield value
            at, mark = end, ","
            continue
        said = said if end == len(text) else "expected , or ] behind a value"
        piece = next(pieces, None)
        if piece is None or len(text) - at > LINE_MEGABYTES << 20:
            longer = "" if piece is None else f" in {LINE_MEGABYTES} MB"
            raise InputError(f"{name}: no JSON{longer}: {said}: {short(text[at : at + 80])}")
        text, at = text[at:] + piece, 0
    rest = text[at + 1 :].strip() or next((piece for piece in pieces if piece.strip()), "")
    if rest:
        raise InputError(f"{name}: no JSON: more follows after the list: {short(rest[:80])}")


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: no JSON: {error}: {short(text)}") from None


# --- windows ---------------------------------------------------------------------------------------------


def windows(args: argparse.Namespace, texts: Iterator[Text], done: int = 0) -> Iterator[list[Any]]:
    """The texts, a bounded window at a time, with a progress bar where it cannot mix with answers. done: how many came before them."""
    visible = sys.stderr.isatty() and (args.output is not None or not sys.stdout.isatty())
    with Progress(_count(args) if visible else None, enabled=visible) as bar:
        bar.advance(done)
        window: list[Any] = []
        characters = 0
        for text in texts:
            window.append(text)
            characters += len(text) if isinstance(text, str) else sum(map(len, text))
            if len(window) == WINDOW_TEXTS or characters >= WINDOW_CHARACTERS:
                yield window
                bar.advance(len(window))
                window, characters = [], 0
        if window:
            yield window


def _count(args: argparse.Namespace) -> int | None:
    """The number of texts; None if it cannot be known without unpacking or parsing."""
    if reads_stdin(args):
        return None
    if args.texts:
        return len(args.texts)
    kind = _kind(args)
    if kind == "parquet":
        return tables.parquet_count(args.input)
    if kind not in ("plain", "jsonl") or args.input.lower().endswith(".gz") or not os.path.isfile(args.input):
        return None
    with open(args.input, "rb") as file:
        count = filled = 0
        for piece in iter(lambda: file.readline(1 << 20), b""):  # a line, or a part of a long one
            filled = filled or int(kind == "plain" or bool(piece.strip()))
            if piece.endswith(b"\n"):
                count, filled = count + filled, 0
        return count + filled
