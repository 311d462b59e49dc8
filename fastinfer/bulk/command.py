"""The command `fastinfer bulk embed IN.parquet OUT.parquet`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .. import tables, text_commands
from ..arguments import FORMATTER, add_model, add_vectors, at_least, describe
from ..backends import gpus
from ..errors import InputError, listed, near, short, warn
from ..files import digest, locked, naming, replacing
from ..info import info
from ..keeping import same_way
from ..precision import PRECISIONS
from ..progress import Progress
from ..strict_json import read_json
from ..text_io import argument
from .embed import Embed
from .engines import ENGINES, run
from .portions import Portions, join, seen

__all__ = ["add_arguments", "embed"]

ROWS = {"cpu": 1024, "cuda": 1 << 15}  # of a portion: about a second of a core, a quarter of a second of a GPU
STATE, LOCK = "run.json", "lock"  # names in FILE.parts: what makes the portions; locked by the process that joins them
LOOKED_EVERY = 0.5  # seconds between two looks for portions that are made

EXAMPLE = "fastinfer bulk embed texts.parquet vectors.parquet --engine ray"
NA = "a missing text is an error (raise, the default), an empty text, or gets a vector of NaN (skip)"
WHO = "what runs it: this process (local, the default), or processes of ray, dask or spark"
HOW = """
Add a column of vectors to a table in a .parquet file of any size. The table is embedded in portions, which appear in OUT.parquet.parts;
at the end they become OUT.parquet. A run that was interrupted goes on with --resume, with any engine.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `fastinfer bulk` does to a parser: a parser for each task."""
    describe(parser, "Answer the texts of a large table, in one process or with an engine for many.", EXAMPLE)
    tasks = parser.add_subparsers(metavar="TASK", required=True)
    sub = tasks.add_parser("embed", help="turn texts into vectors", formatter_class=FORMATTER)
    describe(sub, "Turn the texts of a large table into vectors.\n" + HOW, EXAMPLE)
    sub.set_defaults(parser=sub, check=_check)
    sub.add_argument("source", metavar="IN.parquet", help="the table; needs pyarrow")
    sub.add_argument("target", metavar="OUT.parquet", help="the same table with a column of vectors: fixed-size lists")
    add_model(sub)
    group = sub.add_argument_group("table")
    group.add_argument("--column", type=argument, default="text", metavar="NAME", help="the column of the texts (default: text)")
    group.add_argument("--to", type=argument, default="embedding", metavar="NAME", help="the column of the vectors (default: embedding)")
    group.add_argument(
        "--na",
        choices=("raise", "empty", "skip"),
        default="raise",
        help=NA,
    )
    add_vectors(sub)
    sub.add_argument("--precision", choices=PRECISIONS, default="float32", help="numbers of the vectors (default: float32)")
    sub.add_argument("--batch-tokens", type=at_least(1), metavar="N", help="compute at most N tokens at a time")
    group = sub.add_argument_group("engine")
    group.add_argument("--engine", choices=ENGINES, default="local", help=WHO)
    group.add_argument("--workers", type=at_least(1), metavar="N", help="processes of an engine (default: one per CPU, or one on a GPU)")
    group.add_argument("--resume", action="store_true", help="go on with what an interrupted run kept, if it kept something")


def _check(args: argparse.Namespace, error: Callable[[str], Any]) -> None:
    if not args.target.lower().endswith(".parquet"):
        error(f"OUT is {args.target}, expected the name of a .parquet file")
    if args.engine == "local" and args.workers:
        error("--workers is for the processes of an engine, and --engine local has none: use --threads")
    if args.column == args.to:
        error(f"--column and --to are both {args.to}, expected two names")


def embed(args: argparse.Namespace) -> None:
    """Run the command."""
    _check_source(args)
    if args.engine != "local":
        args.threads = args.threads or 1
        os.environ.setdefault("RAYON_NUM_THREADS", str(args.threads))  # threads of the tokenizer in the processes of an engine
    model = text_commands.load(args)
    options = text_commands.vector_options(args) | text_commands.batching(args)
    adds = Embed(model, column=args.column, to=args.to, precision=args.precision, na=args.na, **options)
    target, begun = os.path.realpath(args.target), time.monotonic()
    with _folder(args, target, adds) as portions:
        kept = len(portions.made())
        try:
            with _watched(portions):
                run(args.engine, portions, _workers(args, model.device))
            with replacing(target) as out:
                cut = join(portions, out)
        except BaseException:
            args.kept = _kept(portions)
            raise
    if cut is not None:
        warn(cut)
    rows, seconds = portions.total, time.monotonic() - begun
    rate = f", {(rows - kept * portions.rows) / seconds:.0f} texts/s" if rows > kept * portions.rows else ""
    print(f"{args.target}: {rows} texts, vectors of {adds.width} numbers ({adds.type}){rate}")


def _check_source(args: argparse.Namespace) -> None:
    """Raise InputError for a table that cannot be read, before a model is loaded."""
    with tables.parquet(args.source) as table:
        names = table.schema_arrow.names
        if args.column not in names:
            known = listed(map(short, names)) or "none"
            raise InputError(
                f"{args.source} has no column {short(args.column)}, only {known}{near(args.column, names)}: name one with --column"
            )
        if args.to in names:
            raise InputError(f"{args.source} has a column {short(args.to)}: name the column of the vectors otherwise, with --to")
        tables.check_texts(args.source, table.schema_arrow, args.column)
    if os.path.isdir(args.target):
        raise InputError(f"{args.target} is a folder, expected the name of a .parquet file")


def _workers(args: argparse.Namespace, device: str) -> int:
    """The number of processes: as many as the machine runs side by side, unless the caller says it."""
    if device.startswith("cuda"):
        return int(args.workers or (len(gpus()) if args.engine == "ray" else 1))  # ray gives each process a GPU of its own
    return int(args.workers or max(1, (info()["threads"] or 1) // (args.threads or 1)))


# --- what a run keeps --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _folder(args: argparse.Namespace, target: str, adds: Embed) -> Iterator[Portions]:
    """The portions of the source, in a folder beside the target that is locked. It stays where the block fails and portions are made."""
    folder = Path(f"{target}.parts")
    state = folder / STATE
    with naming(target):
        folder.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        with naming(folder):
            lock = stack.enter_context(open(folder / LOCK, "ab"))
        locked(lock, folder)
        if state.exists() and not args.resume:
            hint = "add --resume to go on with them, or remove it to begin again"
            raise InputError(f"{folder} keeps the portions of an interrupted run: {hint}")
        total, rows = tables.parquet_count(args.source), ROWS["cuda" if adds.model.device.startswith("cuda") else "cpu"]
        portions = Portions(os.path.abspath(args.source), seen(args.source), str(folder), adds, total, rows)
        try:
            _begin(portions, state, _made(args, portions))
            yield portions
        except BaseException:
            if not portions.made():
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


def _made(args: argparse.Namespace, portions: Portions) -> dict[str, Any]:
    """What decides what the portions hold."""
    with open(args.source, "rb") as file:
        content = digest(file)
    return text_commands.made(args, portions.embed.model) | {"table": content, "rows_of_a_portion": portions.rows}


def _begin(portions: Portions, state: Path, made: dict[str, Any]) -> None:
    """Go on with the portions that an earlier run made in the same way, or begin. Raises InputError where they were made in another way."""
    portions.forget()
    if state.exists():
        before = read_json(state)
        if not isinstance(before, dict):
            raise InputError(f"{state} does not say what {state.parent.name} holds: remove {state.parent} to begin again")
        same_way(state.parent, before, made)
        return
    for number in portions.made():
        portions.path(number).unlink()
    with replacing(state) as out:
        out.write(json.dumps(made).encode())


def _kept(portions: Portions) -> str:
    """What an interrupted run keeps; "" for nothing."""
    count = sum(map(portions.rows_of, portions.made()))
    if not count:
        return ""
    return f"the vectors of {count} texts are kept in {portions.folder}: the same command with --resume goes on from there"


@contextlib.contextmanager
def _watched(portions: Portions) -> Iterator[None]:
    """A progress bar during the block, where standard error is a terminal, of the portions that are made, whoever makes them."""
    if not sys.stderr.isatty():
        yield
        return
    done, ended = 0, threading.Event()

    def look() -> None:
        nonlocal done
        while not ended.wait(LOOKED_EVERY):
            count = sum(map(portions.rows_of, portions.made()))
            bar.advance(count - done)
            done = count

    with Progress(portions.total, enabled=True) as bar:
        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
