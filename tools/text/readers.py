"""Readers of text files: each gives the texts of a file's content.

A text becomes a line, except for an article, which is a line `= Title =` and its paragraphs, a line each.
"""

from __future__ import annotations

import csv
import gzip
import html
import io
import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

Reader = Callable[[Path, str], Iterator[str]]  # (the file's path, its content) -> its texts

DOCUMENT = re.compile(r'<doc [^>]*title="([^"]*)"[^>]*>\n(.*?)</doc>', re.DOTALL)
PARAGRAPH = re.compile(r"<p[^>]*>(.*?)</p>", re.DOTALL)
TAG = re.compile(r"</?[a-zA-Z!][^>]*>")
LINE, ARTICLE, NOVEL_LINE = 40, 200, 20  # characters: shorter lines of an article are headings, shorter articles are stubs
SAID = ("utterance", "text", "question", "qText")  # keys of texts that somebody said, in any of the data sets
PIECES = ("segments", "slots")  # keys of parts of a text that is there as a whole, too
LABEL = re.compile(r"\{[^{}=]*=([^{}]*)\}")  # {City=Paris} in a bot's examples becomes Paris; {City} is a place to fill in
DOCSTRING = re.compile(r'"""(.*?)"""', re.DOTALL)
ROLE = re.compile(r":[a-z:]+:`~?([^`]*)`|``([^`]*)``")
PROSE = re.compile(r"[A-Z][^<>{}|=\\_\[\]]*[.!?]")
CODE = re.compile(r"[.:]:|--|[a-z]\(|/\w+/|[#*@$%^~]|\w\.\w+\.\w")
SENTENCE = 60  # characters: shorter paragraphs of documentation are headings and remarks
PUNCTUATION = re.compile(r"[.,;:?!](?=\s|$)")
ROW = re.compile(r'<row [^>]*?\bBody="([^"]*)"(?:[^>]*?\bTitle="([^"]*)")?')
PREFORMATTED = re.compile(r"<pre.*?</pre>", re.DOTALL)
MARKUP = (  # of Markdown, in this order: what is found, what stays of it
    (re.compile(r"\A---\n.*?\n---\n", re.DOTALL), ""),
    (re.compile(r"^[ \t]*(```|~~~).*?^[ \t]*\1[ \t]*$", re.DOTALL | re.MULTILINE), ""),
    (re.compile(r"<!--.*?-->", re.DOTALL), ""),
    (re.compile(r"!\[[^\]]*\](\([^)]*\)|\[[^\]]*\])"), ""),
    (re.compile(r"^[ \t]*([#|>:]|\[[^\]]*\]:).*$", re.MULTILINE), ""),
    (re.compile(r"\[([^\[\]]*)\](\([^)]*\)|\[[^\]]*\])"), r"\1"),
    (re.compile(r"\*\*|__|`"), ""),
)
ITEM = re.compile(r"\n\s*\n(?:[-*+] +)?|\n[ \t]*(?:[-*+]|\d+\.)[ \t]+")

csv.field_size_limit(1 << 24)


# --- files -----------------------------------------------------------------------------------------


def content(path: Path) -> str:
    """The text of a file, perhaps packed with gzip or xz, or of all files in a .zip. Raises OSError for a broken one."""
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as packed:
                return "\n".join(packed.read(name).decode("utf-8-sig", "ignore") for name in packed.namelist() if "README" not in name)
        data = path.read_bytes()
        data = {".gz": gzip.decompress, ".xz": lzma.decompress}.get(path.suffix, bytes)(data)
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, zipfile.BadZipFile) as error:
        raise OSError(f"the archive is broken: {error}") from None
    return data.decode("utf-8-sig", "ignore")


def plain(line: str) -> str:
    """The key of a line: the same for lines that differ by case, punctuation and spaces alone."""
    return re.sub(r"\W+", " ", line.lower()).strip()


def as_typed(line: str) -> str:
    """The line; half of all lines, chosen by a checksum, lose their punctuation."""
    return PUNCTUATION.sub("", line).strip() if zlib.crc32(line.encode()) % 2 else line


# --- articles, novels, documentation -----------------------------------------------------------------


def articles(path: Path, text: str) -> Iterator[str]:
    """Each article in a file of WikiExtractor: a line `= Title =`, then its paragraphs."""
    for found in DOCUMENT.finditer(text):
        body = [html.unescape(TAG.sub("", line)).strip() for line in found[2].split("\n")[1:]]
        body = [line for line in body if len(line) > LINE and not line.startswith("BULLET::")]
        if sum(map(len, body)) >= ARTICLE:
            yield "\n".join([f"= {html.unescape(found[1])} =", *body])


def novel(path: Path, text: str) -> Iterator[str]:
    """The paragraphs of a TEI novel's body."""
    for found in PARAGRAPH.finditer(text, text.find("<body>")):
        line = html.unescape(re.sub(r"\s+", " ", TAG.sub("", found[1]))).strip()
        if len(line) > NOVEL_LINE:
            yield line


def documentation(text: str) -> Iterator[list[str]]:
    """The paragraphs of prose in each documentation string of a Python file. Code, tables and lists of parameters are left out."""
    for found in DOCSTRING.finditer(text):
        parts = (" ".join(part.split()) for part in re.split(r"\n\s*\n", found[1]))
        parts = (ROLE.sub(r"\1\2", part).replace("`", "") for part in parts)
        if prose := [part for part in parts if len(part) >= SENTENCE and PROSE.fullmatch(part) and not CODE.search(part)]:
            yield prose


def module(file: Path) -> str:
    """The dotted name of a Python file's module, from the folders that are packages."""
    parts, folder = [file.stem] * (file.stem != "__init__"), file.parent
    while (folder / "__init__.py").exists():
        parts, folder = [folder.name, *parts], folder.parent
    return ".".join(parts) or file.stem


def python(path: Path, text: str) -> Iterator[str]:
    """The documentation strings of a Python file as an article with the module's name."""
    if prose := list(dict.fromkeys(part for parts in documentation(text) for part in parts)):
        yield "\n".join([f"= {module(path)} =", *prose])


# --- what people said --------------------------------------------------------------------------------


def sayings(path: Path, text: str) -> Iterator[str]:
    """The texts of a data set's file: the first column of a table, the values of SAID's keys in JSON, the examples of a bot."""
    if path.suffix in (".lu", ".qna"):
        yield from examples(text)
    elif path.suffix in (".tsv", ".txt"):
        yield from (line.partition("\t")[0] for line in text.splitlines())
    elif path.suffix == ".csv":
        yield from (row[0] for row in csv.reader(text.splitlines()) if row)
    else:
        yield from said(as_json(text), SAID)


def as_json(text: str) -> Any:
    """The value of a file, or a list of the values of a file with one in each line. Raises json.JSONDecodeError."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def said(value: Any, keys: Sequence[str]) -> Iterator[str]:
    """The texts, and lists of texts, under these keys anywhere in a JSON value. A text in parts, a list `data`, is joined."""
    if isinstance(value, list):
        for item in value:
            yield from said(item, keys)
    elif isinstance(value, dict) and str(value.get("speaker", "user")).lower() == "user":
        parts = value.get("data")
        if isinstance(parts, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
            yield "".join(part["text"] for part in parts)
            return
        for key, item in value.items():
            if key in keys and isinstance(item, str):
                yield item
            elif key in keys and isinstance(item, list) and item and all(isinstance(part, str) for part in item):
                yield from item
            elif key not in PIECES:
                yield from said(item, keys)


def examples(text: str) -> Iterator[str]:
    """The texts in a bot's file: examples of intents, lines "- text" under a "#" heading, and questions, lines "## ? text"."""
    intent = False
    for line in text.splitlines():
        mark, _, rest = line.partition(" ")
        if mark.startswith(("#", "$", "@")):  # "#" begins an intent or a question, the others a list of an entity's values
            intent = mark.startswith("#")
        text_said = LABEL.sub(r"\1", rest.removeprefix("? ") if rest.startswith("? ") else rest if mark == "-" else "")
        if intent and "{" not in text_said:
            yield text_said


# --- tables, JSON, XML, Markdown, YAML ---------------------------------------------------------------


def field(*keys: str) -> Reader:
    """A reader of JSON: the texts under these keys, anywhere."""
    return lambda path, text: said(as_json(text), keys)


def passage(*keys: str) -> Reader:
    """A reader of JSON: for each object in each line, the sentences in the list under each of these keys, as one text."""
    return lambda path, text: (" ".join(row[key]) for row in as_json(text) for key in keys if row.get(key))


def column(*which: int | str) -> Reader:
    """A reader of tables with commas (.csv) or tabs: the cells of these columns, by number, or by name where the first row has names."""

    def read(path: Path, text: str) -> Iterator[str]:
        commas = ".csv" in path.suffixes
        quoting = csv.QUOTE_MINIMAL if commas or isinstance(which[0], str) else csv.QUOTE_NONE
        rows = csv.reader(io.StringIO(text, newline=""), delimiter="," if commas else "\t", quoting=quoting)
        names = next(rows, []) if isinstance(which[0], str) else []
        places = [names.index(name) if isinstance(name, str) else name for name in which]
        yield from (row[place] for row in rows for place in places if place < len(row))

    return read


def pattern(expression: str) -> Reader:
    """A reader of what the groups of a regular expression match."""
    compiled = re.compile(expression, re.MULTILINE | re.DOTALL)
    return lambda path, text: (group for found in compiled.finditer(text) for group in found.groups() if group)


def posts(path: Path, text: str) -> Iterator[str]:
    """The titles and paragraphs of a site of Stack Exchange, in the format of its dumps. Code is left out."""
    for body, title in ROW.findall(text):
        yield html.unescape(title)
        yield from PREFORMATTED.sub("", html.unescape(body)).split("</p>")


def markdown(path: Path, text: str) -> Iterator[str]:
    """The paragraphs and list items of a Markdown file. Headings, quotations, tables, code blocks and addresses are left out."""
    for found, stays in MARKUP:
        text = found.sub(stays, text)
    yield from ITEM.split("\n" + text)


def entries(*keys: str) -> Reader:
    """A reader of YAML: the texts under these keys, alone or in lists. Texts that are objects in turn are left out."""
    begin = re.compile(rf"^( *)(?:{'|'.join(keys)}):(.*)$")

    def read(path: Path, text: str) -> Iterator[str]:
        parts: list[str] = []
        depth = -1  # of the key that is being read, or -1
        for line in text.splitlines():
            rest = line.lstrip(" ")
            here = len(line) - len(rest)
            listed = rest.startswith("- ")
            if depth >= 0 and (here > depth or (listed and here == depth)) and not (listed and here > depth + 2):
                if listed:
                    yield scalar(parts)
                    parts = [rest[2:]]
                else:
                    parts.append(rest)
                continue
            yield scalar(parts)
            found = begin.match(line)
            depth, parts = (len(found[1]), [found[2].strip()]) if found else (-1, [])
        yield scalar(parts)

    return read


def scalar(lines: list[str]) -> str:
    """The text of a YAML scalar in these lines; "" for an object."""
    text = " ".join(line for line in lines if line.strip() not in ("|", ">", "|-", ">-", "")).strip()
    if re.match(r"\w+: ", text):
        return ""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1].replace("''", "'").replace('\\"', '"')
    return text
