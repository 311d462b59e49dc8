"""Articles in text files: what get_text.py writes, training reads and evaluation scores on.

A text file is .txt, .txt.gz, .txt.xz (a paragraph a line) or .jsonl (an object with "text" a line), in UTF-8. A line `= Title =` begins
an article. Training leaves out the articles that held_out() names, so that evaluation can use them.
"""

from __future__ import annotations

import gzip
import json
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import InputError, short

OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
TITLE = re.compile(r"= (.*) =")
HELD_OUT = "one article in five, chosen by a checksum of its title, is held out"


def held_out(title: str) -> bool:
    """Whether training leaves out the article of this title: one article in five, chosen by a checksum of the title."""
    return zlib.crc32(title.encode()) % 5 == 0


def text_file(path: str | os.PathLike[str]) -> Path:
    """The path of a text file. Raises InputError for a file that does not exist, and for an ending that is not known."""
    path = Path(path)
    plain = path.with_suffix("") if path.suffix in OPENERS else path
    if plain.suffix not in (".txt", ".jsonl"):
        raise InputError(f"{path} is no text file that is known here, expected .txt or .jsonl, perhaps with .gz or .xz")
    if not path.is_file():
        raise InputError(f"{path} does not exist: name a text with a paragraph a line, such as tools/get_text.py makes")
    return path


def lines(path: str | os.PathLike[str]) -> Iterator[str]:
    """The lines of a text file, or of each "text" in a .jsonl file, stripped and without empty ones.

    Raises InputError as text_file does, and with file and line for bytes that are not UTF-8, a line without a "text", and a broken
    archive; OSError for a file that cannot be opened.
    """
    path = text_file(path)
    of_objects = ".jsonl" in path.suffixes[-2:]
    number = 0
    try:
        with OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if of_objects and line.strip():
                    row = json.loads(line)
                    text = row.get("text") if isinstance(row, dict) else None
                    if not isinstance(text, str):
                        raise InputError(f'{path}, line {number} is {short(row)}, expected an object with a "text"')
                    yield from filter(None, map(str.strip, text.splitlines()))
                elif line.strip():
                    yield line.strip()
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {number} is no JSON: {error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, after line {number}: no UTF-8 text: {error}") from None
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}, after line {number}: the archive is broken: {error}") from None


def articles(paths: Iterable[str | os.PathLike[str]]) -> Iterator[tuple[str | None, list[str]]]:
    """(title, paragraphs) of each article. A paragraph outside of any article counts as an article without a title.

    Raises InputError for a file without text.
    """
    for path in paths:
        title: str | None = None
        paragraphs: list[str] = []
        empty = True
        for line in lines(path):
            heading = TITLE.fullmatch(line)
            if heading and paragraphs:
                yield title, paragraphs
            if heading:
                title, paragraphs = heading[1], []
            elif title is None:
                yield None, [line]
                empty = False
            else:
                paragraphs.append(line)
                empty = False
        if paragraphs:
            yield title, paragraphs
        if empty:
            raise InputError(f"{path} holds no text")
