"""Answers out, and the text that people see: output of the command line."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from .errors import printable
from .files import naming, replacing

__all__ = [
    "ENDINGS",
    "STANDARD_OUTPUT",
    "Output",
    "argument",
    "as_json",
    "drop_output",
    "fill_closed_streams",
    "is_file",
    "json_line",
    "listing",
    "named",
    "output",
    "output_ending",
    "shortest",
    "shown",
    "table",
    "text_record",
]

SHOWN = 72  # characters of a text in readable output
STANDARD_OUTPUT = "standard output"
# {ending of an output file: its format}; formats.py writes them
ENDINGS = {
    ".npy": "npy",
    ".npz": "npz",
    ".csv": "csv",
    ".parquet": "parquet",
    ".svg": "svg",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".txt": "text",
    "": "text",
}

FLOAT32 = float(np.finfo(np.float32).max)
_NOT_ASCII = re.compile(r"[^ -~]")


def argument(text: str) -> str:
    """An argument read as UTF-8, whatever the locale's encoding; unchanged if its bytes are not UTF-8."""
    with contextlib.suppress(UnicodeError):
        return os.fsencode(text).decode()
    return text


# --- files and streams -----------------------------------------------------------------------------------


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
        elif not is_file(name):
            out = Output(open(name, "wb"), name)  # noqa: SIM115
            stack.callback(out.close)
        else:
            out = Output(stack.enter_context(replacing(name)), name)
        yield out
        out.flush()


def is_file(name: str) -> bool:
    """Whether an output of this name is a file. Else it is a device or a pipe; or a folder, which open() refuses."""
    return os.path.isfile(name) or not os.path.exists(name)


def output_ending(args: argparse.Namespace) -> str:
    return os.path.splitext(args.output or "")[1].lower()


def as_json(args: argparse.Namespace) -> bool:
    return args.json or ENDINGS.get(output_ending(args)) in ("json", "jsonl")


def json_line(value: Any) -> str:
    """`value` as JSON on one line. Characters that could act on a terminal are escaped, as JSON allows in any string.

    Numbers have the fewest digits that give the same number again: the same float32, if the number is one.
    """
    line = _json(value)
    return line if line.isprintable() else _NOT_ASCII.sub(_escaped, line)


def _json(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key, ensure_ascii=False)}: {_json(item)}" for key, item in value.items()) + "}"
    if isinstance(value, np.ndarray) and np.isfinite(value).all():
        return "[" + ", ".join(map(str, value)) + "]"
    if isinstance(value, (list, tuple, np.ndarray)):
        return "[" + ", ".join(map(_json, value)) + "]"
    return json.dumps(shortest(float(value)) if isinstance(value, (float, np.float32)) else value, ensure_ascii=False)


def shortest(value: float) -> float:
    """The float with the fewest digits that is `value`; if `value` is a float32, the one that a float32 keeps."""
    if not abs(value) <= FLOAT32 or float(np.float32(value)) != value:
        return value
    return float(str(np.float32(value)))


def _escaped(found: re.Match[str]) -> str:
    return found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1]


def text_record(text: str | tuple[str, str], names: tuple[str, str] = ("text", "pair")) -> dict[str, str]:
    return {names[0]: text} if isinstance(text, str) else dict(zip(names, text, strict=True))


def named(rows: Iterable[tuple[Any, ...]], *names: str) -> list[dict[str, Any]]:
    return [dict(zip(names, row, strict=True)) for row in rows]


def listing(title: str, rows: list[tuple[Any, ...]], most: int = SHOWN) -> str:
    """A title and, indented under it, rows in aligned columns, whose cells are cut where they have over `most` characters."""
    cells = [[shown(cell, most) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join([title, *("  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)])


def shown(text: str | tuple[str, str], most: int = SHOWN) -> str:
    """A text on one line, without control characters, cut where it has over `most` characters; a pair with a bar between."""
    if not isinstance(text, str):
        return " | ".join(shown(side, most) for side in text)
    line = "".join(c if c.isprintable() else " " for c in text[: most + 1])
    return line if len(line) <= most else line[: most - 3] + "..."


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
