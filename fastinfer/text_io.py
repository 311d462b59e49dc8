"""What the command line reads and writes: texts in, answers out."""

from __future__ import annotations

import argparse
import contextlib
import gzip
import itertools
import json
import os
import sys
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from .errors import InputError, short
from .files import replacing
from .progress import Progress
from .tokenizer import as_text

__all__ = [
    "as_json",
    "json_line",
    "listing",
    "named",
    "output",
    "read_texts",
    "reads_stdin",
    "shown",
    "table",
    "text_record",
    "windows",
    "write",
]

# Texts, and about as many characters, that are read, computed and written at a time.
WINDOW_TEXTS = 1024
WINDOW_CHARACTERS = 1 << 17
LINE_MEGABYTES = 16  # of the longest line: a text without a space takes 60 times as much while it is tokenised
SHOWN = 72  # characters of a text in readable output

# --- texts in --------------------------------------------------------------------------------------


def read_texts(args: argparse.Namespace) -> Iterator[str | tuple[str, str]]:
    """The texts of arguments, file or standard input, one by one. Raises InputError naming file and line."""
    if args.texts and not reads_stdin(args):
        for i, text in enumerate(args.texts, 1):
            yield _plain(text, args, f"argument {i}")
        return
    name = "standard input" if reads_stdin(args) else args.input
    parse = _parsed if args.jsonl or name.removesuffix(".gz").endswith((".jsonl", ".ndjson")) else _plain
    number = 0
    try:
        with _opened(name, args) as lines:
            for number, line in enumerate(_lines(lines, name), 1):
                yield parse(_decoded(line, number, name), args, f"{name}, line {number}")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{name}, after line {number}: broken gzip data: {error}") from None


def _lines(file: BinaryIO, name: str) -> Iterator[bytes]:
    """The lines of a file. Raises InputError for one that is too long, of which no more is read."""
    most = LINE_MEGABYTES << 20
    for number in itertools.count(1):
        line = file.readline(most + 1)
        if len(line) > most:
            raise InputError(f"{name}, line {number} has more than {LINE_MEGABYTES} MB, expected one text per line: split it")
        if not line:
            return
        yield line


def _opened(name: str, args: argparse.Namespace) -> contextlib.AbstractContextManager[BinaryIO]:
    if reads_stdin(args):
        return contextlib.nullcontext(sys.stdin.buffer)
    return gzip.open(name) if name.endswith(".gz") else open(name, "rb")


def reads_stdin(args: argparse.Namespace) -> bool:
    return args.texts == ["-"] or args.input == "-" or (not args.texts and args.input is None)


def _decoded(line: bytes, number: int, name: str) -> str:
    if number == 1:
        line = line.removeprefix(b"\xef\xbb\xbf")
    line = line.removesuffix(b"\n").removesuffix(b"\r")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{name}, line {number}: byte {error.start + 1} (0x{line[error.start]:02x}) is no UTF-8") from None


def _plain(text: str, args: argparse.Namespace, where: str) -> Any:
    """A text, or with --pairs two with a tab between them."""
    if not args.pairs:
        return as_text(text, where)
    pair = text.split("\t")
    if len(pair) != 2:
        raise InputError(f"{where} has {len(pair) - 1} tabs, expected two texts with one tab between them: {short(text)}")
    return as_text(pair, where)


def _parsed(line: str, args: argparse.Namespace, where: str) -> Any:
    """The text or pair that a JSON line holds."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: no JSON: {error}: {short(line)}") from None
    first, second = ("question", "context") if args.takes == "pairs" else ("text", "pair")
    if isinstance(value, dict) and first in value:
        value = [value[first], value[second]] if second in value else value[first]
    if isinstance(value, str) and args.takes != "pairs":
        return as_text(value, where)
    if isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value) and args.takes != "singles":
        return as_text(value, where)
    single, pair = f'"a text", {{"{first}": "a text"}}', f'["one", "two"], {{"{first}": "one", "{second}": "two"}}'
    expected = {"singles": single, "pairs": pair, "either": f"{single}, {pair}"}[args.takes]
    raise InputError(f"{where}: {short(value)}, expected one of {expected}")


def windows(args: argparse.Namespace) -> Iterator[list]:
    """The texts, a bounded window at a time, with a progress bar where it disturbs nothing."""
    visible = sys.stderr.isatty() and (args.output is not None or not sys.stdout.isatty())
    with Progress(_count(args) if visible else None, enabled=visible) as bar:
        window, characters = [], 0
        for text in read_texts(args):
            window.append(text)
            characters += len(text) if isinstance(text, str) else sum(map(len, text))
            if len(window) == WINDOW_TEXTS or characters >= WINDOW_CHARACTERS:
                yield window
                bar.advance(len(window))
                window, characters = [], 0
        if window:
            yield window


def _count(args: argparse.Namespace) -> int | None:
    """How many texts there will be, where that is known without unpacking."""
    if reads_stdin(args):
        return None
    if args.texts:
        return len(args.texts)
    if args.input.endswith(".gz") or not os.path.isfile(args.input):
        return None
    with open(args.input, "rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


# --- answers out -----------------------------------------------------------------------------------


@contextlib.contextmanager
def output(args: argparse.Namespace) -> Iterator[BinaryIO]:
    """Standard output; or --output, which is replaced only once all is written."""
    if args.output is None:
        yield sys.stdout.buffer
        return
    path = os.path.realpath(args.output)
    if os.path.exists(path) and not os.path.isfile(path):  # a device or a pipe
        with open(path, "wb") as file:
            yield file
        return
    with replacing(path) as file:
        yield file


def write(out: BinaryIO, text: str) -> None:
    out.write(text.encode() + b"\n")


def as_json(args: argparse.Namespace) -> bool:
    return args.json or (args.output or "").endswith((".jsonl", ".json"))


def json_line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def text_record(text: str | tuple[str, str]) -> dict[str, str]:
    return {"text": text} if isinstance(text, str) else {"text": text[0], "pair": text[1]}


def named(rows: Iterable[tuple], *names: str) -> list[dict]:
    return [dict(zip(names, row, strict=True)) for row in rows]


def listing(title: str, rows: list[tuple]) -> str:
    """A title and, indented under it, rows in aligned columns."""
    cells = [[shown(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join([title, *("  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)])


def shown(text: str | tuple[str, str]) -> str:
    """A text on one line, without control characters, cut where it is long; a pair with a bar between."""
    if not isinstance(text, str):
        return " | ".join(map(shown, text))
    line = "".join(c if c.isprintable() else " " for c in text[: SHOWN + 1])
    return line if len(line) <= SHOWN else line[: SHOWN - 3] + "..."


def table(found: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Names and values in two columns; what is nested stands indented under its name."""
    for name, value in found.items():
        label = indent + (name if ":" in name else name.replace("_", " "))  # a device keeps its name
        if isinstance(value, dict):
            yield label
            yield from table(value, indent + "  ")
            continue
        if isinstance(value, bool):
            value = "yes" if value else "no"
        elif isinstance(value, (list, tuple)):
            value = ", ".join(value)
        yield f"{label:<18}{value:,}" if isinstance(value, int) else f"{label:<18}{value or 'none'}"
