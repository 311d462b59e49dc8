"""Input and output of the command line: texts in, answers out."""

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
from collections.abc import Iterable, Iterator
from typing import IO, Any, BinaryIO

from .errors import InputError, printable, short
from .files import naming, replacing
from .progress import Progress
from .tokenizer import as_text

__all__ = [
    "ENDINGS",
    "STANDARD_OUTPUT",
    "argument",
    "as_json",
    "json_line",
    "listing",
    "named",
    "output",
    "output_ending",
    "read_records",
    "read_texts",
    "reads_stdin",
    "shown",
    "table",
    "text_record",
    "windows",
]

# Texts, and roughly characters, that are read, computed and written at a time.
WINDOW_TEXTS = 1024
WINDOW_CHARACTERS = 1 << 17
LINE_MEGABYTES = 16  # of the longest line: tokenising a text without spaces takes 60 times its size in memory
DOCUMENT_MEGABYTES = 1024  # of the longest line of a .json file, which may be a whole list of texts
SHOWN = 72  # characters of a text in readable output
STANDARD_OUTPUT = "standard output"
ENDINGS = {".npy": "array", ".jsonl": "json", ".ndjson": "json", ".json": "json", ".txt": "text", "": "text"}

_NOT_ASCII = re.compile(r"[^ -~]")

# --- texts in --------------------------------------------------------------------------------------


def read_texts(args: argparse.Namespace) -> Iterator[str | tuple[str, str]]:
    """Yield the texts of the arguments, the file or standard input. Raises InputError naming file and line."""
    if args.texts and not reads_stdin(args):
        for i, text in enumerate(args.texts, 1):
            yield _plain(argument(text), args, f"argument {i}")
        return
    name = "standard input" if reads_stdin(args) else args.input
    kind = _kind(args)
    with naming(name), _opened(args) as file:
        lines = _lines(file, name, DOCUMENT_MEGABYTES if kind == "json" else LINE_MEGABYTES)
        if kind == "plain":
            yield from (_plain(line, args, where) for where, line in lines)
        else:
            yield from (_item(value, args, where) for where, value in _values(lines, name, document=kind == "json"))


def read_records(args: argparse.Namespace) -> Iterator[tuple[Any, Any, str]]:
    """Yield (id, text, where it is): the "id" of a JSON object, else None."""
    kind = "plain" if args.texts and not reads_stdin(args) else _kind(args)
    if kind == "plain":
        yield from ((None, text, f"text {i}") for i, text in enumerate(read_texts(args), 1))
        return
    name = "standard input" if reads_stdin(args) else args.input
    with naming(name), _opened(args) as file:
        lines = _lines(file, name, DOCUMENT_MEGABYTES if kind == "json" else LINE_MEGABYTES)
        for where, value in _values(lines, name, document=kind == "json"):
            yield value.get("id") if isinstance(value, dict) else None, _item(value, args, where), where


def _kind(args: argparse.Namespace) -> str:
    """How the input is read: "plain" for lines, "jsonl", or "json", which is a list of texts or JSON lines in a .json file."""
    ending = "" if reads_stdin(args) else os.path.splitext(args.input.lower().removesuffix(".gz"))[1]
    return "jsonl" if args.jsonl or ending in (".jsonl", ".ndjson") else "json" if ending == ".json" else "plain"


def _opened(args: argparse.Namespace) -> contextlib.AbstractContextManager[IO[bytes] | gzip.GzipFile]:
    if reads_stdin(args):
        return contextlib.nullcontext(sys.stdin.buffer)
    return gzip.open(args.input) if args.input.lower().endswith(".gz") else open(args.input, "rb")


def reads_stdin(args: argparse.Namespace) -> bool:
    return args.texts == ["-"] or args.input == "-" or (not args.texts and args.input is None)


def argument(text: str) -> str:
    """An argument read as UTF-8, whatever the locale's encoding; unchanged if its bytes are not UTF-8."""
    with contextlib.suppress(UnicodeError):
        return os.fsencode(text).decode()
    return text


def _lines(file: IO[bytes] | gzip.GzipFile, name: str, megabytes: int) -> Iterator[tuple[str, str]]:
    """Yield (where, line) of a file, without line ends and byte order mark.

    Raises InputError for a line that is not UTF-8 or has more than `megabytes` MB; the rest of a long line is not read.
    """
    where, number, most = name, 0, megabytes << 20
    try:
        for number, line in enumerate(iter(lambda: file.readline(most + 2), b""), 1):
            where = f"{name}, line {number}"
            if len(line) > most + line.endswith(b"\n"):
                raise InputError(f"{where} has more than {megabytes} MB, expected one text per line: split it")
            if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise InputError(f"{where}: the file is UTF-16 or UTF-32, expected UTF-8: convert it with iconv -f UTF-16 -t UTF-8")
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if b"\0" in line:
                raise InputError(f"{where}: byte {line.index(0) + 1} is 0, expected UTF-8 text: the file is binary, or UTF-16")
            yield where, line.removesuffix(b"\n").removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: byte {error.start + 1} (0x{error.object[error.start]:02x}) is no UTF-8") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{name}, after line {number}: broken gzip data: {error}") from None


def _values(lines: Iterator[tuple[str, str]], name: str, *, document: bool) -> Iterator[tuple[str, Any]]:
    """Yield (where, JSON value) per line, blank lines skipped; for a document that is a list, per item.

    A document holds JSON lines, too, if its first line is a complete value and more lines follow.
    """
    filled: Iterator[tuple[str, str]] = ((where, line) for where, line in lines if line.strip())
    if document:
        head = list(itertools.islice(filled, 2))
        filled = itertools.chain(head, filled)
        if head and not (len(head) == 2 and _is_json(head[0][1])):
            value = _parsed("\n".join(line for _, line in filled), name)
            items = value if isinstance(value, list) else [value]
            yield from ((f"{name}, item {i}", item) for i, item in enumerate(items, 1))
            return
    yield from ((where, _parsed(line, where)) for where, line in filled)


def _is_json(text: str) -> bool:
    try:
        _parsed(text, "")
    except InputError:
        return False
    return True


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: no JSON: {error}: {short(text)}") from None


def _plain(text: str, args: argparse.Namespace, where: str) -> Any:
    """The text of a line or argument; with --pairs, the two texts around its tab."""
    if not args.pairs:
        return as_text(text, where)
    pair = text.split("\t")
    if len(pair) != 2:
        raise InputError(f"{where} has {len(pair) - 1} tabs, expected two texts with one tab between them: {short(text)}")
    return as_text(pair, where)


def _item(value: Any, args: argparse.Namespace, where: str) -> Any:
    """The text or pair that a JSON value holds."""
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


def windows(args: argparse.Namespace) -> Iterator[list[Any]]:
    """The texts, a bounded window at a time, with a progress bar where it cannot mix with answers."""
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
    """The number of texts; None if it cannot be known without unpacking or parsing."""
    if reads_stdin(args):
        return None
    if args.texts:
        return len(args.texts)
    kind = _kind(args)
    if kind == "json" or args.input.lower().endswith(".gz") or not os.path.isfile(args.input):
        return None
    with open(args.input, "rb") as file:
        count = filled = 0
        for piece in iter(lambda: file.readline(1 << 20), b""):  # a line, or a part of a long one
            filled = filled or int(kind == "plain" or bool(piece.strip()))
            if piece.endswith(b"\n"):
                count, filled = count + filled, 0
        return count + filled


# --- answers out -----------------------------------------------------------------------------------


def fill_closed_streams() -> None:
    """Open the null device for each closed standard stream, so that no other file gets its number and receives its output.

    Messages to a closed standard error are dropped; writing an answer to a closed standard output fails.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_WRONLY if number == 2 else os.O_RDONLY)  # open() takes the lowest free number: this one
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def drop_output() -> None:
    """Discard the rest of standard output's buffer: the interpreter would fail to write it again as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Output:
    """A binary file for answers, whose errors name it."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name

    def write(self, data: Any) -> int:
        with naming(self._name):
            return self._file.write(data)

    def line(self, text: str) -> None:
        self.write(text.encode() + b"\n")

    def flush(self) -> None:
        with naming(self._name):
            self._file.flush()

    def close(self) -> None:
        with naming(self._name):
            self._file.close()


@contextlib.contextmanager
def output(args: argparse.Namespace) -> Iterator[Output]:
    """Standard output, or the file of --output, which is replaced only after everything is written."""
    name = STANDARD_OUTPUT if args.output is None else os.path.realpath(args.output)
    with contextlib.ExitStack() as stack:
        if args.output is None:
            out = Output(sys.stdout.buffer, name)
        elif os.path.exists(name) and not os.path.isfile(name):  # a device or a pipe; or a folder, which open() refuses
            out = Output(open(name, "wb"), name)  # noqa: SIM115
            stack.callback(out.close)
        else:
            out = Output(stack.enter_context(replacing(name)), name)
        yield out
        out.flush()


def output_ending(args: argparse.Namespace) -> str:
    return os.path.splitext(args.output or "")[1].lower()


def as_json(args: argparse.Namespace) -> bool:
    return args.json or ENDINGS.get(output_ending(args)) == "json"


def json_line(value: Any) -> str:
    """`value` as JSON on one line. Characters that could act on a terminal are escaped, as JSON allows in any string."""
    line = json.dumps(value, ensure_ascii=False)
    return line if line.isprintable() else _NOT_ASCII.sub(_escaped, line)


def _escaped(found: re.Match[str]) -> str:
    return found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1]


def text_record(text: str | tuple[str, str]) -> dict[str, str]:
    return {"text": text} if isinstance(text, str) else {"text": text[0], "pair": text[1]}


def named(rows: Iterable[tuple[Any, ...]], *names: str) -> list[dict[str, Any]]:
    return [dict(zip(names, row, strict=True)) for row in rows]


def listing(title: str, rows: list[tuple[Any, ...]]) -> str:
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
    """Names and values in two columns; nested values are indented under their name."""
    for name, value in found.items():
        label = indent + (name if ":" in name else name.replace("_", " "))  # the name of a device is not changed
        if isinstance(value, dict):
            yield label
            yield from table(value, indent + "  ")
            continue
        if isinstance(value, bool):
            value = "yes" if value else "no"
        elif isinstance(value, (list, tuple)):
            value = ", ".join(value)
        yield f"{label:<18}{value:,}" if isinstance(value, int) else f"{label:<18}{printable(value or 'none')}"
