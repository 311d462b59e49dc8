"""Scoring a model through the engine: which of its heads fits a task, the answers of that head, their metrics and their speed."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..api import Model
from ..batch import PackedBatch
from ..config import Classify, Tag
from ..errors import InputError, TaskError
from ..progress import Progress
from .metrics import check_packages, interval, resampled, score
from .tasks import TASKS, Examples, Task, first_rows

OF_EMBEDDERS = ("STS-B", "CLINC150", "retrieval")  # tasks that an embedder is scored on where none is named


@dataclass(frozen=True)
class Result:
    """A model's score on a task.

    how          the way in which its answers were made
    intervals    metric -> [low, high] of the score, 95%
    differences  metric -> [low, high] of the score minus the first model's, on the same resampled sets; empty for the first model itself
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
    """A model, the number of texts and tokens that it was given, and the seconds that its answers took."""

    def __init__(self, model: Model) -> None:
        self.model: Any = model
        self.texts = self.tokens = 0
        self.seconds = 0.0

    def call(self, method: Callable[..., Any], batch: Any, tokens: int | None = None, **options: Any) -> Any:
        """method(batch), where method is a task of the model. Its time includes tokenizing."""
        start = time.perf_counter()
        answers = method(batch, **options)
        self.seconds += time.perf_counter() - start
        packed = batch if isinstance(batch, PackedBatch) else self.model.tokenizer.batch(self.model.tokenizer.encode(batch))
        self.texts += len(packed)
        self.tokens += len(packed.ids)
        return answers

    def embed(self, texts: Sequence[Any]) -> np.ndarray:
        """The normalised embeddings of the texts."""
        vectors: np.ndarray = self.call(self.model.embed, texts, normalize=True, progress=visible())
        return vectors


# --- the answers of each head ----------------------------------------------------------------------


def by_head(meter: Meter, examples: Examples) -> np.ndarray:
    """The index of the classify head's label, or its score."""
    answers = meter.call(meter.model.classify, examples.inputs, top_k=1, progress=visible())
    if answers and isinstance(answers[0], float):
        return np.array(answers)
    index = {label: i for i, label in enumerate(examples.labels)}
    return np.array([index[best[0][0]] for best in answers])


def by_cosine(meter: Meter, examples: Examples) -> np.ndarray:
    """The cosine of the embeddings of each pair."""
    first, second = (meter.embed(list(side)) for side in zip(*examples.inputs, strict=True))
    cosines: np.ndarray = (first * second).sum(1)
    return cosines


def by_centroid(meter: Meter, examples: Examples, train: Examples) -> np.ndarray:
    """The class whose training texts have the nearest mean embedding."""
    vectors, targets = meter.embed(train.inputs), np.array(train.targets)
    centroids = np.stack([vectors[targets == k].mean(0) for k in range(len(train.labels))])
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    classes: np.ndarray = (meter.embed(examples.inputs) @ centroids.T).argmax(1)
    return classes


def by_nearest(meter: Meter, examples: Examples) -> np.ndarray:
    """For each first text, the row of the nearest second text."""
    first, second = (meter.embed(list(side)) for side in zip(*examples.inputs, strict=True))
    rows: np.ndarray = (first @ second.T).argmax(1)
    return rows


def by_tags(meter: Meter, examples: Examples) -> list[list[str]]:
    """The label of each word's first token, and O for words beyond the model's limit."""
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
    """(texts, 3), with each token of a text masked in turn: tokens guessed right, the sum of -log p of the true tokens, tokens."""
    model, counts = meter.model, []
    mask = model.config.ids.mask
    if mask is None:
        raise TaskError("the model names no mask token (ids.mask in config.json)")
    with Progress(len(examples), enabled=visible()) as bar:
        for encoding in model.tokenizer.encode(examples.inputs):
            bar.advance(1)
            if mask in encoding.ids:
                continue
            rows = [row for row, side in enumerate(encoding.sequence_ids) if side is not None]
            true = [encoding.ids[row] for row in rows]
            masked = [[mask if i == row else id_ for i, id_ in enumerate(encoding.ids)] for row in rows]
            guesses = np.concatenate(meter.call(model.logits, PackedBatch.from_ids(masked), task="fill_mask"))
            right = guesses.argmax(1) == true
            logits = guesses.astype(np.float64)
            most = logits.max(1)
            surprise = most + np.log(np.exp(logits - most[:, None]).sum(1)) - logits[np.arange(len(true)), true]
            counts.append((right.sum(), surprise.sum(), len(true)))
    return np.array(counts)


# --- the head that fits a task ---------------------------------------------------------------------


class Way(NamedTuple):
    """A way to score a model on a task: its name, a function that answers the examples, and the examples."""

    how: str
    predict: Callable[[Meter], Any]
    examples: Examples


@functools.cache
def read(task: Task, data: Path, split: str, labels: tuple[str, ...] | None = None) -> Examples:
    """Task.read, kept for other models."""
    return task.read(data, split, labels)


def way(model: Model, task: Task, data: Path) -> Way | None:
    """The way to score the model on the task; None where it has no head for it.

    Raises InputError for data that cannot be read or do not fit the head.
    """
    heads, head = model.config.tasks, labelled(model, task)
    if head is not None:
        found = read(task, data, task.scored)
        if task.kind == "score" or not heads.embed or set(found.labels) <= set(head.labels):
            examples = found if task.kind == "score" else read(task, data, task.scored, head.labels)
            predict = by_tags if task.kind == "tags" else by_head
            return Way("head", lambda meter: predict(meter, examples), examples)
    if heads.embed and task.kind == "classes":
        if "train" not in task.files:
            raise InputError(f"{task.name} has no training texts, by whose centroids an embedder tells classes: name a file with --train")
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


def labelled(model: Model, task: Task) -> Classify | Tag | None:
    """The model's head for a task of this kind, whatever its labels are. A head with one label gives a score, with several, classes."""
    heads = model.config.tasks
    if task.kind == "tags":
        return heads.tag
    head = heads.classify if task.kind in ("classes", "score") else None
    return head if head is not None and (task.kind == "score") == (len(head.labels) == 1) else None


def fitting(model: Model, data: Path, say: Callable[[str], None]) -> list[Task]:
    """The tasks that the model is scored on where none is named: those of embedders, those of fill_mask, and the one whose labels it has.

    say  called with a message for each task that is left out because its data cannot be read

    Raises InputError where no task fits, or the labels of several do.
    """
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
            say(f"{task.name} left out: {error}")
    if not found:
        raise InputError(f"nothing in {data} fits the heads of {model!r}: name data sets with --tasks, or a file with --file")
    return found


def evaluate(
    model: Model, task: Task, data: Path, name: str, dtype: str | None, first: dict[str, dict[str, np.ndarray]] | None = None
) -> Result:
    """Score `model` on `task`. Raises TaskError where it has no head for it, and InputError where a package of a metric is missing.

    first  {task: resampled metrics} of the first model; a task that it lacks is added, with this model's
    """
    check_packages(task)
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


def visible() -> bool:
    """Whether somebody may see the progress: standard error is a terminal."""
    return sys.stderr.isatty()
