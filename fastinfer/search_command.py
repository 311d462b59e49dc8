"""The commands `fastinfer index` and `fastinfer search`."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Iterator
from typing import Any

from . import index_file
from .arguments import add_dim, add_model, add_output, add_texts, at_least, describe
from .catalog import inside
from .errors import InputError, short
from .files import naming
from .index import Index
from .reading import read_records, read_texts, reads_stdin, windows
from .rows import PRECISIONS
from .text_commands import load
from .text_io import as_json, json_line, output, shown

__all__ = ["add_index", "add_search", "index", "search"]

PORTION = 1024  # texts that are read and added at a time
PASSAGE = 1000  # characters: paragraphs of a file are joined up to so many, about as many as a model reads at once
FILE_MEGABYTES = 64  # of the largest file of a folder that is read

INDEX_HELP = """
INDEX is a file that ends with .npz, or a folder. Where it exists it is replaced, or with --add gets more texts.
Texts come from --input FILE, one text per line (.jsonl, .json and .gz work, too), from the arguments, or from standard input.
The id of a text is the "id" of its JSON value, or its number, from 0 on. With --input FOLDER every text file under it is cut into
passages at blank lines; the id of a passage is FILE:LINE.
"""
SEARCH_HELP = """
INDEX is what fastinfer index made, with the same model. Queries come from the arguments, from --input FILE, or from standard input,
where each line is answered at once.
"""


def add_index(parser: argparse.ArgumentParser) -> None:
    """Add the description and the options of index."""
    describe(parser, "Embed texts once, to search them.\n" + INDEX_HELP, "fastinfer index notes.npz -i notes/")
    parser.add_argument("index", metavar="INDEX", help="the .npz file or the folder to write")
    add_model(parser)
    add_output(parser)
    add_texts(parser)
    parser.add_argument("--add", action="store_true", help="add to INDEX instead of replacing it")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="how vectors are stored (default: float32)")
    add_dim(parser)


def add_search(parser: argparse.ArgumentParser) -> None:
    """Add the description and the options of search."""
    how = "Find the texts of an index that are most like a query.\n" + SEARCH_HELP
    describe(parser, how, 'fastinfer search notes.npz "rice" -k 3')
    parser.add_argument("index", metavar="INDEX", help="the .npz file or the folder that fastinfer index wrote")
    add_model(parser)
    add_output(parser)
    add_texts(parser, "QUERY", interactive=True)
    parser.add_argument("-k", "--top-k", type=at_least(1), default=10, metavar="N", help="show the best N (default: 10)")


def index(args: argparse.Namespace) -> None:
    """Write an index of the texts that the arguments name, and say how many it has."""
    folder = args.input is not None and os.path.isdir(args.input)
    with output(args) as out:
        found = _opened(args) if args.add else Index(load(args), precision=args.precision, dim=args.dim, keep_texts=True)
        records = _passages(args.input) if folder else _with_ids(args, len(found) if args.add else 0)
        batching = {} if args.batch_tokens is None else {"batch_tokens": args.batch_tokens}
        while portion := list(itertools.islice(records, PORTION)):
            ids, texts = [key for key, _ in portion], [text for _, text in portion]
            found.add(texts, ids, **batching)
            if sys.stderr.isatty():
                print(f"\r{len(found)} texts", end="", file=sys.stderr, flush=True)
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        if not len(found):
            raise InputError(f"{args.input or 'standard input'} has no texts, expected at least one")
        found.save(args.index)
        size = f"{found.nbytes / 1e6:.1f} MB"
        record = {"index": args.index, "texts": len(found), "bytes": found.nbytes}
        out.line(json_line(record) if as_json(args) else f"{args.index}: {len(found)} texts, vectors of {found.dim} numbers, {size}")


def search(args: argparse.Namespace) -> None:
    """Write the best texts of an index for each query, as soon as they are known."""
    with output(args) as out:
        found = _opened(args)
        batching = {} if args.batch_tokens is None else {"batch_tokens": args.batch_tokens}
        for queries in ([text] for text in read_texts(args)) if reads_stdin(args) else windows(args, read_texts(args)):
            for query, best in zip(queries, found.search(queries, args.top_k, **batching), strict=True):
                out.line(json_line(_record(found, query, best)) if as_json(args) else "\n".join(_lines(found, query, best, args)))
            out.flush()


def _opened(args: argparse.Namespace) -> Index:
    """The index that the arguments name, with the model that they name or, by default, the one inside that made it."""
    if args.model is None:
        name = index_file.read(args.index)[0].named.name
        if name not in inside():
            raise InputError(f"{args.index} was made with the model {short(name)}: name it with -m")
        args.model = name
    return Index.open(args.index, load(args))


def _text_of(found: Index, key: Any) -> str | None:
    return found.text(key) if found.keeps_texts else None


def _record(found: Index, query: str, best: list[tuple[Any, float]]) -> dict[str, Any]:
    results = [{"id": key, "score": score, "text": _text_of(found, key)} for key, score in best]
    return {"query": query, "results": [{name: value for name, value in result.items() if value is not None} for result in results]}


def _lines(found: Index, query: str, best: list[tuple[Any, float]], args: argparse.Namespace) -> Iterator[str]:
    """The query, where there may be several, and a line for each answer."""
    several = reads_stdin(args) or args.input is not None or len(args.texts) > 1
    if several:
        yield shown(query)
    width = max((len(shown(str(key))) for key, _ in best), default=0)
    for place, (key, score) in enumerate(best, 1):
        number = f"{'  ' if several else ''}{place:{len(str(len(best)))}}"
        yield f"{number}  {score:8.4f}  {shown(str(key)):{width}}  {shown(_text_of(found, key) or '')}".rstrip()


def _with_ids(args: argparse.Namespace, first: int) -> Iterator[tuple[Any, str]]:
    """Yield (id, text) of the input: the id that a JSON value has, else the number of the text."""
    named: bool | None = None
    for number, (key, text, where) in enumerate(read_records(args), first):
        if named is not None and named != (key is not None):
            raise InputError(f"{where} has {'no ' if named else 'an '}id, expected {'an' if named else 'no'} id, as the texts before")
        named = key is not None
        if named and type(key) not in (int, str):
            raise InputError(f"{where}: its id is {short(key)}, expected an int or a str")
        yield (key if named else number), text


def _passages(folder: str) -> Iterator[tuple[str, str]]:
    """Yield (FILE:LINE, text) of the passages in all text files under a folder. Hidden files and those that are not UTF-8 are left out."""
    for where, names, files in os.walk(folder, onerror=_raise):
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in sorted(files):
            path = os.path.join(where, name)
            if name.startswith(".") or not os.path.isfile(path) or os.path.getsize(path) > FILE_MEGABYTES << 20:
                continue
            with naming(path), open(path, "rb") as file:
                content = file.read()
            try:
                text = content.decode()
            except UnicodeDecodeError:
                continue
            if "\0" not in text:
                yield from ((f"{os.path.relpath(path, folder)}:{line}", passage) for line, passage in _cut(text))


def _raise(error: OSError) -> None:
    raise error


def _cut(text: str) -> Iterator[tuple[int, str]]:
    """Yield (number of its first line, passage): paragraphs, joined while they have at most PASSAGE characters together."""
    first, lines = 0, 0
    held: list[str] = []
    size = 0
    for is_text, group in itertools.groupby(text.splitlines(), key=lambda line: bool(line.strip())):
        paragraph = list(group)
        if is_text:
            length = sum(map(len, paragraph))
            if held and size + length > PASSAGE:
                yield first + 1, "\n".join(held)
                held, size = [], 0
            if not held:
                first = lines
            held += paragraph
            size += length
        lines += len(paragraph)
    if held:
        yield first + 1, "\n".join(held)
