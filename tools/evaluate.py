"""How good, and how fast, models are through the engine: python tools/evaluate.py MODEL [MODEL ...] --data FOLDER

    python tools/evaluate.py .models/minilm --data data                        # all that its heads can be scored on
    python tools/evaluate.py .models/minilm .models/fast --data data --dtype float32,int8
    python tools/evaluate.py .models/sst2 --data data --tasks SST-2 --json
    python tools/evaluate.py .models/mine --file reviews.csv --text review --target stars

A MODEL is a checkpoint folder, or the name of a model inside fastinfer. Its heads decide what is measured:

    classify   GLUE tasks by their official metrics, CLINC150 intents
    embed      STS-B by cosine; CLINC150 by the nearest centroid of the training split's embeddings; retrieval: the first
               sentence of a paragraph against 5,000 paragraphs that lost theirs, of articles kept out of training
    tag        WNUT17: F1 of spans
    fill_mask  each token of 200 sentences of these articles masked in turn: accuracy and pseudo-perplexity

FOLDER holds the data sets as they are published, each in a folder of its own: SST-2/dev.tsv, CLINC150/data_full.json, ...
Brackets hold 95% bootstrap intervals; of a difference to the first model, from the same resampled examples. Speed counts from text in
to answer out.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import log_softmax
from tasks import GLUE, NOT_HAD, TASKS, Examples, Task, first_rows, interval, own_task, resampled, score, short_names

import fastinfer
from fastinfer import PackedBatch
from fastinfer.config import Classify, Tag
from fastinfer.errors import FastinferError, InputError, TaskError
from fastinfer.progress import Progress
from fastinfer.tokenizer import TruncationWarning

OF_EMBEDDERS = ("STS-B", "CLINC150", "retrieval")


@dataclass(frozen=True)
class Result:
    """A model's score on a task.

    intervals    metric -> [low, high], 95%
    differences  metric -> [low, high] of the score less the first model's, both on the same resampled sets; of the first itself, none
    """

    model: str
    dtype: str | None
    task: str
    how: str
    examples: int
    metrics: dict[str, float]
    intervals: dict[str, list[float]]
    differences: dict[str, list[float]]
    texts_per_second: float
    tokens_per_second: float


class Meter:
    """A model, and the count and the time of the texts that it was given."""

    def __init__(self, model: fastinfer.Model) -> None:
        self.model = model
        self.texts = self.tokens = 0
        self.seconds = 0.0

    def call(self, method: Callable, batch: Any, tokens: int | None = None, **options: Any) -> Any:
        """method(batch): a task of the model; of its time, tokenizing is a part."""
        start = time.perf_counter()
        answers = method(batch, **options)
        self.seconds += time.perf_counter() - start
        packed = batch if isinstance(batch, PackedBatch) else self.model.tokenizer.batch(self.model.tokenizer.encode(batch))
        self.texts += len(packed)
        self.tokens += len(packed.ids)
        return answers

    def embed(self, texts: Sequence[Any]) -> np.ndarray:
        return self.call(self.model.embed, texts, normalize=True, progress=_visible())


# --- one way to answer each kind of task, per head -------------------------------------------------


def by_head(meter: Meter, examples: Examples) -> np.ndarray:
    """The classify head's label, or its score."""
    answers = meter.call(meter.model.classify, examples.inputs, top_k=1, progress=_visible())
    if answers and isinstance(answers[0], float):
        return np.array(answers)
    index = {label: i for i, label in enumerate(examples.labels)}
    return np.array([index[best[0][0]] for best in answers])


def by_cosine(meter: Meter, examples: Examples) -> np.ndarray:
    first, second = (meter.embed(list(side)) for side in zip(*examples.inputs, strict=True))
    return (first * second).sum(1)


def by_centroid(meter: Meter, examples: Examples, train: Examples) -> np.ndarray:
    """The class whose training texts' mean embedding is nearest."""
    vectors, targets = meter.embed(train.inputs), np.array(train.targets)
    centroids = np.stack([vectors[targets == k].mean(0) for k in range(len(train.labels))])
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    return (meter.embed(examples.inputs) @ centroids.T).argmax(1)


def by_nearest(meter: Meter, examples: Examples) -> np.ndarray:
    """For each first text, the row of the nearest second one."""
    first, second = (meter.embed(list(side)) for side in zip(*examples.inputs, strict=True))
    return (first @ second.T).argmax(1)


def by_tags(meter: Meter, examples: Examples) -> list[list[str]]:
    """The label of each word's first token; O for words beyond the model's limit."""
    model, labels = meter.model, meter.model.config.tasks.tag.labels
    encodings = model.tokenizer.encode(examples.inputs, words=True)
    logits = meter.call(model.logits, model.tokenizer.batch(encodings), task="tag")
    answers = []
    for words, encoding, rows in zip(examples.inputs, encodings, logits, strict=True):
        tags = ["O"] * len(words)
        for word, row in first_rows(encoding.word_ids).items():
            tags[word] = labels[int(rows[row].argmax())]
        answers.append(tags)
    return answers


def by_guess(meter: Meter, examples: Examples) -> np.ndarray:
    """(texts, 3): of a text's tokens, each masked in turn: how many were guessed right, the sum of -log p of the true ones, tokens."""
    model, counts = meter.model, []
    mask = model.config.ids.mask
    if mask is None:
        raise TaskError("the model names no mask token (ids.mask in config.json)")
    with Progress(len(examples), enabled=_visible()) as bar:
        for encoding in model.tokenizer.encode(examples.inputs):
            bar.advance(1)
            if mask in encoding.ids:
                continue
            rows = [row for row, side in enumerate(encoding.sequence_ids) if side is not None]
            true = [encoding.ids[row] for row in rows]
            masked = [[mask if i == row else id_ for i, id_ in enumerate(encoding.ids)] for row in rows]
            guesses = np.concatenate(meter.call(model.logits, PackedBatch.from_ids(masked), task="fill_mask"))
            right = guesses.argmax(1) == true
            surprise = -log_softmax(guesses.astype(np.float64), axis=1)[np.arange(len(true)), true]
            counts.append((right.sum(), surprise.sum(), len(true)))
    return np.array(counts)


# --- which way fits --------------------------------------------------------------------------------


class Way(NamedTuple):
    """How a model can be scored on a task."""

    how: str
    predict: Callable[[Meter], Any]
    examples: Examples


@functools.cache
def read(task: Task, data: Path, split: str, labels: tuple[str, ...] | None = None) -> Examples:
    return task.read(data, split, labels)


def way(model: fastinfer.Model, task: Task, data: Path) -> Way | None:
    """None where the model has no head for the task. Raises InputError for data that cannot be read or does not fit the head."""
    heads, head = model.config.tasks, labelled(model, task)
    if head is not None:
        found = read(task, data, task.scored)
        if task.kind == "score" or not heads.embed or set(found.labels) <= set(head.labels):
            examples = found if task.kind == "score" else read(task, data, task.scored, head.labels)
            predict = by_tags if task.kind == "tags" else by_head
            return Way("head", lambda meter: predict(meter, examples), examples)
    if heads.embed and task.kind == "classes":
        if "train" not in task.files:
            raise InputError(f"{task.name} has no training texts, whose centroids an embedder needs to tell classes apart")
        train = read(task, data, "train")
        examples = read(task, data, task.scored, train.labels)
        return Way("nearest centroid", lambda meter: by_centroid(meter, examples, train), examples)
    if heads.embed and task.kind in ("score", "pairs"):
        examples = read(task, data, task.scored)
        how, compare = ("cosine", by_cosine) if task.kind == "score" else ("nearest", by_nearest)
        return Way(how, lambda meter: compare(meter, examples), examples)
    if heads.fill_mask and task.kind == "masks":
        examples = read(task, data, task.scored)
        return Way("each token masked", lambda meter: by_guess(meter, examples), examples)
    return None


def labelled(model: fastinfer.Model, task: Task) -> Classify | Tag | None:
    """The model's head for a task of this kind, whatever its labels: a score is one label, classes are more."""
    heads = model.config.tasks
    if task.kind == "tags":
        return heads.tag
    head = heads.classify if task.kind in ("classes", "score") else None
    return head if head is not None and (task.kind == "score") == (len(head.labels) == 1) else None


def fitting(model: fastinfer.Model, data: Path) -> list[Task]:
    """The tasks that the model is scored on where none is named: those of embedders and of fill_mask, and the one whose labels it has."""
    heads = model.config.tasks
    same = []
    for task in TASKS.values():
        head, labels = labelled(model, task), (task.target,) if task.kind == "score" else (task.labels or {}).values()
        if head is not None and set(labels) == set(head.labels) and not (heads.embed and task.name in OF_EMBEDDERS):
            same.append(task)
    if len(same) > 1:
        raise InputError(f"the labels of {model!r} are those of {', '.join(task.name for task in same)}: name one with --tasks")
    usual = [task for task in TASKS.values() if (heads.embed and task.name in OF_EMBEDDERS) or (heads.fill_mask and task.kind == "masks")]
    found = []
    for task in same + usual:
        try:
            way(model, task, data)
            found.append(task)
        except InputError as error:
            _say(f"{task.name} left out: {error}")
    if not found:
        raise InputError(f"nothing in {data} fits the heads of {model!r}: name data sets with --tasks, or a file with --file")
    return found


def evaluate(
    model: fastinfer.Model, task: Task, data: Path, name: str, dtype: str | None, first: dict[str, dict[str, np.ndarray]] | None = None
) -> Result:
    """Score `model` on `task`. Raises TaskError where it has no head for it.

    first  {task: resampled metrics} of the first model; filled in where it lacks the task
    """
    chosen = way(model, task, data)
    if chosen is None:
        raise TaskError(f"{name} has no head for {task.name}: it has {', '.join(model.tasks) or 'none'}")
    meter = Meter(model)
    predictions, targets = chosen.predict(meter), chosen.examples.targets
    draws = resampled(task, predictions, targets)
    base = (first or {}).get(task.name)
    if first is not None and base is None:
        first[task.name] = draws
    return Result(
        name,
        dtype,
        task.name,
        chosen.how,
        len(chosen.examples),
        score(task, predictions, targets),
        {metric: interval(values) for metric, values in draws.items()},
        {metric: interval(values - base[metric]) for metric, values in draws.items()} if base else {},
        meter.texts / meter.seconds,
        meter.tokens / meter.seconds,
    )


# --- the command -----------------------------------------------------------------------------------


def table(results: Sequence[Result]) -> str:
    """Models side by side, a block of rows per task."""
    columns = list(dict.fromkeys((r.model, r.dtype) for r in results))
    names = short_names([model for model, _ in columns])
    rows = [["", *(f"{names[model]} {dtype or ''}".strip() for model, dtype in columns)]]
    for name, group in itertools.groupby(
        sorted(results, key=lambda r: list(TASKS).index(r.task) if r.task in TASKS else -1), lambda r: r.task
    ):
        by_column = {(r.model, r.dtype): r for r in group}
        first = next(iter(by_column.values()))
        rows.append([f"{name}: {first.how}, {first.examples:,} examples"])
        for metric in first.metrics:
            cells = (by_column.get(column) for column in columns)
            rows.append([f"  {metric}", *("" if r is None else f"{r.metrics[metric]:.2f} {_range(r.intervals[metric])}" for r in cells)])
            if any(r.differences for r in by_column.values()):
                cells = (by_column.get(column) for column in columns)
                less = ("" if r is None or not r.differences else _less(r, first, metric) for r in cells)
                rows.append(["    less the first's", *less])
        for unit in ("texts", "tokens"):
            cells = (by_column.get(column) for column in columns)
            rows.append([f"  {unit}/s", *("" if r is None else f"{getattr(r, f'{unit}_per_second'):,.0f}" for r in cells)])
    widths = [max(len(row[i]) for row in rows if len(row) > 1) for i in range(len(columns) + 1)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]
    if any(r.task in GLUE and r.how == "head" for r in results):
        lines.append(f"Of GLUE, {NOT_HAD}.")
    return "\n".join(lines)


def _less(result: Result, first: Result, metric: str) -> str:
    return f"{result.metrics[metric] - first.metrics[metric]:+.2f} {_range(result.differences[metric])}"


def _range(bounds: Sequence[float]) -> str:
    return f"[{bounds[0]:.2f}, {bounds[1]:.2f}]"


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 failed; wrong usage exits with 2."""
    args = _parser().parse_args(argv)
    warnings.simplefilter("ignore", TruncationWarning)  # that long texts are cut is a part of what is scored
    results, first = [], {}
    try:
        own = args.file and own_task(args.kind, {"dev": args.file}, text=args.text, pair=args.pair, target=args.target)
        for name in args.models:
            for dtype in args.dtype:
                model = fastinfer.load(name, device=args.device, dtype=dtype, threads=args.threads)
                chosen = [own] if own else [TASKS[t] for t in args.tasks] if args.tasks else fitting(model, args.data)
                for task in chosen:
                    if _visible():
                        _say(f"{name} {dtype or ''} on {task.name} ...")
                    results.append(evaluate(model, task, args.data, name, dtype, first))
                    if args.json:
                        print(json.dumps(dataclasses.asdict(results[-1])), flush=True)
    except (FastinferError, OSError) as error:
        _say(error)
        return 1
    except ImportError as error:
        _say(f"{error}: pip install -r tools/requirements.txt")
        return 1
    if not args.json:
        print(table(results))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", metavar="MODEL", nargs="+", help="checkpoint folder, or the name of a model inside fastinfer")
    parser.add_argument("--data", type=Path, default=Path("."), metavar="FOLDER", help="where the data sets lie (default: here)")
    parser.add_argument("--tasks", type=_names, metavar="NAME,...", help=f"of {', '.join(TASKS)} (default: those that fit)")
    parser.add_argument("--file", type=Path, help="a data set of your own: .csv, .tsv, .jsonl, or .conll for tags")
    parser.add_argument(
        "--kind", choices=("classes", "score", "tags", "pairs"), default="classes", help="what --file holds (default: classes)"
    )
    parser.add_argument("--text", default="text", metavar="COLUMN", help="column of --file with the text (default: text)")
    parser.add_argument("--pair", metavar="COLUMN", help="column with the second text of a pair")
    parser.add_argument("--target", default="label", metavar="COLUMN", help="column with the label or the score (default: label)")
    parser.add_argument(
        "--dtype",
        type=lambda t: t.split(","),
        default=[None],
        metavar="DTYPE,...",
        help="what to compute in (default: what is stored suggests)",
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cpu:ISA, cuda, cuda:N or numpy")
    parser.add_argument("--threads", type=int, metavar="N", help="most threads (default: the CPUs this process may use)")
    parser.add_argument("--json", action="store_true", help="a line of JSON per model and task")
    return parser


def _names(given: str) -> list[str]:
    known = {name.lower(): name for name in TASKS}
    odd = [name for name in given.split(",") if name.lower() not in known]
    if odd:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(odd)}; expected some of {', '.join(TASKS)}")
    return [known[name.lower()] for name in given.split(",")]


def _visible() -> bool:
    return sys.stderr.isatty()


def _say(message: object) -> None:
    print(f"evaluate: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
