"""Measure the quality and the speed of models through the engine.

    fastinfer evaluate .models/minilm --data data                        # on every data set that fits its heads
    fastinfer evaluate .models/minilm .models/fast --data data --dtype float32,int8
    fastinfer evaluate .models/sst2 --data data --tasks SST-2 --json
    fastinfer evaluate .models/mine --file reviews.csv --text review --target stars
    fastinfer evaluate fastminilm --train reviews.csv --file more.csv    # by the nearest centroid of the classes in --train
    fastinfer evaluate fastminilm --file corpus.txt --kind pairs         # retrieval of held-out paragraphs of one's own text

A MODEL is a checkpoint folder, or the name of a model inside fastinfer. Its heads decide what is measured:

    classify   the GLUE task, or CLINC150, whose labels it has, by the official metrics
    embed      STS-B by cosine; CLINC150 by the nearest centroid of the training split's embeddings; retrieval: the first
               sentence of a paragraph finds its rest among the rests of 5,000 paragraphs, of articles left out of training
    tag        WNUT17: F1 of spans
    fill_mask  accuracy and pseudo-perplexity, with each token of 200 sentences of these articles masked in turn

FOLDER holds the data sets as they are published, each in a folder of its own: SST-2/dev.tsv, CLINC150/data_full.json, ...
Brackets hold 95% bootstrap intervals. A difference to the first model is taken on the same resampled examples. Speed is measured from
text to answer, tokenizing included.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import warnings
from pathlib import Path
from typing import Any

from .. import api
from ..arguments import at_least
from ..catalog import folder_of
from ..errors import InputError, near
from ..tokenizer import TruncationWarning
from .metrics import check_packages
from .scoring import evaluate, fitting, read, visible
from .table import table
from .tasks import METRICS_OF, TASKS, Task, own_task

__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    warnings.simplefilter("ignore", TruncationWarning)  # cutting long texts is part of what is scored
    results: list[Any] = []
    first: dict[str, Any] = {}
    try:
        named = _named(args)
        for name in args.models:
            folder_of(name)
        for name in args.models:
            for dtype in args.dtype:
                model = api.load(name, device=args.device, dtype=dtype, threads=args.threads)
                for task in named or fitting(model, args.data, _say):
                    if visible():
                        _say(f"{name} {dtype or ''} on {task.name} ...")
                    results.append(evaluate(model, task, args.data, name, dtype, first))
                    if args.json:
                        print(json.dumps(dataclasses.asdict(results[-1])), flush=True)
    except KeyboardInterrupt:
        if results and not args.json:
            print(table(results))
        raise
    if not args.json:
        print(table(results))


def _named(args: argparse.Namespace) -> list[Task]:
    """The tasks that the arguments name, their files read and kept, so that an error in them comes before any model is loaded."""
    if args.train and not args.file:
        raise InputError(f"--train {args.train} holds the texts of known class; name the texts to score with --file, too")
    if args.train and args.kind != "classes":
        raise InputError(f"--train serves --kind classes alone, but the kind is {args.kind}: leave --train out")
    tasks = [TASKS[name] for name in args.tasks or ()]
    if args.file:
        files = {"dev": args.file} | ({"train": args.train} if args.train else {})
        tasks = [own_task(args.kind, files, text=args.text, pair=args.pair, target=args.target)]
    for task in tasks:
        check_packages(task)
        labels = read(task, args.data, "train").labels if args.train else None
        read(task, args.data, task.scored, labels)
    return tasks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the description and the options of the command."""
    parser.description = __doc__
    parser.add_argument("models", metavar="MODEL", nargs="+", help="checkpoint folder, or the name of a model inside fastinfer")
    parser.add_argument("--data", type=Path, default=Path("."), metavar="FOLDER", help="folder that holds the data sets (default: here)")
    parser.add_argument("--tasks", type=_names, metavar="NAME,...", help=f"data sets by name: {', '.join(TASKS)} (default: those that fit)")
    parser.add_argument("--file", type=Path, help="a data set of your own: .csv, .tsv, .jsonl, .conll for tags, .txt for masks")
    parser.add_argument("--train", type=Path, metavar="FILE", help="texts of known class, by whose centroids an embedder tells classes")
    parser.add_argument(
        "--kind",
        choices=tuple(METRICS_OF),
        default="classes",
        help="kind of --file (default: %(default)s). Of a .txt, paragraphs of held-out articles are read: pairs finds the rest of "
        "a paragraph by its first sentence, masks guesses the tokens of sentences",
    )
    parser.add_argument("--text", default="text", metavar="COLUMN", help="column of --file with the text (default: text)")
    parser.add_argument("--pair", metavar="COLUMN", help="column of --file with the second text of a pair")
    parser.add_argument("--target", default="label", metavar="COLUMN", help="column of --file with the label or the score (default: label)")
    parser.add_argument(
        "--dtype",
        type=lambda t: t.split(","),
        default=[None],
        metavar="DTYPE,...",
        help="dtypes to compute in, each a column of the table (default: the one that the stored dtype suggests)",
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cpu:ISA, cuda, cuda:N or numpy")
    parser.add_argument("--threads", type=at_least(1), metavar="N", help="use at most N threads (default: the CPUs this process may use)")
    parser.add_argument("--json", action="store_true", help="print a line of JSON per model and task")


def _names(given: str) -> list[str]:
    """The names of tasks in a list with commas, as TASKS spells them."""
    known = {name.lower(): name for name in TASKS}
    odd = [name for name in given.split(",") if name.lower() not in known]
    if odd:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(odd)}{near(odd[0], TASKS)}; expected some of {', '.join(TASKS)}")
    return [known[name.lower()] for name in given.split(",")]


def _say(message: object) -> None:
    print(f"fastinfer: {message}", file=sys.stderr)
