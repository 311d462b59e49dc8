"""Data sets and metrics, each defined once: what evaluate.py scores and finetune.py trains on.

GLUE tasks, CLINC150, WNUT17 and articles of Wikipedia are read as they are published, from a data folder that the
user names; a file of one's own is a table (.csv, .tsv, .jsonl) with named columns, or a word and its tag a line (.conll).
"""

from __future__ import annotations

import csv
import json
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import text

from fastinfer.errors import InputError, short

__all__ = [
    "GLUE",
    "NOT_HAD",
    "TASKS",
    "Examples",
    "Task",
    "find",
    "first_rows",
    "interval",
    "own_task",
    "resampled",
    "score",
    "short_names",
]

Kind = Literal["classes", "score", "tags", "pairs", "masks"]
RESAMPLES = 1000
SHOWN = 8  # names that a message lists

NOT_HAD = "MNLI and QQP could not be had, nor QNLI's training data"


@dataclass(frozen=True)
class Examples:
    """One split of a data set, row by row.

    inputs   a text, a pair of texts, or (tags) a list of words
    targets  classes: the label's index; score: a float; tags: a label per word; pairs: the row's own index; masks: nothing
    labels   names of the classes or tags; of a score, the one name of what is scored
    """

    inputs: list
    targets: list
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True, eq=False)
class Task:
    """A data set: where its splits lie, which columns count, and its official metrics.

    kind     classes: a label per text or pair; score: a number per text or pair; tags: a label per word;
             pairs: two texts that belong together, the first of which should find the second among all second ones;
             masks: texts whose tokens are to be guessed
    files    split -> path in the data folder, or in a folder of it
    scored   the split whose score is reported
    text, pair, target   columns of a table; no pair: single texts
    labels   label in the file -> its name in a model; None: those that the training split has
    header   column names of a table whose first line does not say them
    """

    name: str
    kind: Kind
    metrics: tuple[str, ...]
    files: Mapping[str, str]
    scored: str = "dev"
    text: str = "sentence"
    pair: str | None = None
    target: str = "label"
    labels: Mapping[str, str] | None = None
    header: tuple[str, ...] | None = None

    def read(self, data: str | Path, split: str, labels: Sequence[str] | None = None) -> Examples:
        """The examples of `split` in folder `data`.

        labels  the names that targets may have, each at its index; None: as the task says, or those found, sorted

        Raises InputError naming file and line for what does not fit, and OSError for a file that cannot be read.
        """
        if split not in self.files:
            raise InputError(f"{self.name} has no split {split!r}, only {', '.join(self.files)}")
        path = find(data, self.files[split])
        rows = list(self._rows(path, split))
        if not rows:
            raise InputError(f"{path} holds no examples")
        inputs = [given for _, given, _ in rows]
        if self.kind in ("pairs", "masks"):
            return Examples(inputs, list(range(len(inputs))) if self.kind == "pairs" else [], ())
        if self.kind == "score":
            return Examples(inputs, [_number(target, where) for where, _, target in rows], (self.target,))
        names = self.labels or {}
        named = [[names.get(t, t) for t in (target if self.kind == "tags" else [target])] for _, _, target in rows]
        if labels is None:
            labels = tuple(names.values()) or sorted({label for row in named for label in row}, key=_tag_order)
        index = {label: i for i, label in enumerate(labels)}
        for (where, _, _), row in zip(rows, named, strict=True):
            odd = [label for label in row if label not in index]
            if odd:
                raise InputError(f"{where}: label {short(odd[0])} is none of those that fit: {_some(labels)}")
        return Examples(inputs, named if self.kind == "tags" else [index[row[0]] for row in named], tuple(labels))

    def _rows(self, path: Path, split: str) -> Iterator[tuple[str, Any, Any]]:
        """(where, input, raw target) per example."""
        if self.kind == "tags":
            yield from _read_tagged(path)
        elif path.suffix == ".json":
            yield from _read_splits(path, split)
        elif path.suffix == ".xz":
            yield from _read_articles(path, whole=self.kind == "pairs")
        else:
            texts = [c for c in (self.text, self.pair) if c is not None]
            wanted = texts if self.kind == "pairs" else [*texts, self.target]
            for where, row in _read_table(path, self.header, wanted):
                given = tuple(row[c] for c in texts)
                yield where, given if self.pair else given[0], row.get(self.target)


def _glue(name: str, metrics: str, labels: Mapping[str, str] | None = None, *, train: bool = True, **columns: Any) -> Task:
    splits = ("train", "dev") if train else ("dev",)
    files = {split: f"{name}/{split}.tsv" for split in splits}
    return Task(name, "classes" if labels else "score", tuple(metrics.split()), files, labels=labels, **columns)


_ENTAILMENT = {label: label for label in ("entailment", "not_entailment")}
_SENTENCES = {"text": "sentence1", "pair": "sentence2"}

GLUE = {
    task.name: task
    for task in (
        _glue("SST-2", "accuracy", {"0": "negative", "1": "positive"}),
        _glue("CoLA", "matthews", {"0": "unacceptable", "1": "acceptable"}, header=("source", "label", "mark", "sentence")),
        _glue("MRPC", "accuracy f1", {"0": "different", "1": "equivalent"}, text="#1 String", pair="#2 String", target="Quality"),
        _glue("RTE", "accuracy", _ENTAILMENT, **_SENTENCES),
        _glue("STS-B", "pearson spearman", target="score", **_SENTENCES),
        _glue("QNLI", "accuracy", _ENTAILMENT, train=False, text="question", pair="sentence"),
    )
}
_ENTITIES = ("corporation", "creative-work", "group", "location", "person", "product")
TASKS = GLUE | {
    # 150 intents; the splits of queries that are out of scope are left out
    "CLINC150": Task("CLINC150", "classes", ("accuracy",), dict.fromkeys(("train", "val", "test"), "CLINC150/data_full.json"), "test"),
    "WNUT17": Task(
        "WNUT17",
        "tags",
        ("span_f1",),
        {"train": "WNUT17/wnut17train.conll", "dev": "WNUT17/emerging.dev.conll", "test": "WNUT17/emerging.test.annotated"},
        "test",
        labels={tag: tag for tag in ("O", *(f"{at}-{name}" for name in _ENTITIES for at in "BI"))},
    ),
    "retrieval": Task("retrieval", "pairs", ("recall@1",), {"test": "wikipedia-good-2019.txt.xz"}, "test"),
    "fill-mask": Task("fill-mask", "masks", ("mask_accuracy", "pseudo_perplexity"), {"test": "wikipedia-good-2019.txt.xz"}, "test"),
}
METRICS_OF = {"classes": ("accuracy",), "score": ("pearson", "spearman"), "tags": ("span_f1",), "pairs": ("recall@1",)}


def own_task(kind: Kind, files: Mapping[str, str | Path], **columns: Any) -> Task:
    """A task of the user's own files, {"train": path, "dev": path}; columns: text, pair, target (Task says what each is)."""
    stem = Path(next(iter(files.values()))).stem
    return Task(stem, kind, METRICS_OF[kind], {split: str(path) for split, path in files.items()}, **{"text": "text"} | columns)


def find(data: str | Path, name: str) -> Path:
    """The file `name` in folder `data`, or in a folder of it. Raises InputError where there is none."""
    data = Path(data)
    for path in (data / name, *sorted(data.glob(f"*/{name}"))):
        if path.is_file():
            return path
    raise InputError(f"{data} has no file {name}, nor has a folder in it: put the data set there as it is published")


def first_rows(word_ids: Sequence[int | None]) -> dict[int, int]:
    """{word: row of its first token}, which carries the word's tag; a word that was cut off, or has no token, is not there."""
    first: dict[int, int] = {}
    for row, word in enumerate(word_ids):
        if word is not None:
            first.setdefault(word, row)
    return first


# Stricter than text.sentences: a full stop after a capital, which may be an initial, ends nothing. A query should be a whole sentence.
SENTENCE_END = re.compile(r"""(?:(?<=[a-z0-9)"'][.!?])|(?<=[a-z0-9][.!?]["')]))\s+(?=[A-Z"(])""")
SENTENCE, REST, LONGEST = 40, 160, 1200  # characters of the first sentence, of the rest, of both
PASSAGES, MASKED = 5000, 200


# --- files -----------------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(where, line) of a UTF-8 text file, line ends removed."""
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        number = 0
        try:
            for number, line in enumerate(file, 1):
                yield f"{path}, line {number}", line.removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}, after line {number}: no UTF-8: {error.reason}") from None


def _read_table(path: Path, header: Sequence[str] | None, wanted: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """(where, the wanted columns) per row of a .csv, .tsv or .jsonl file; in .tsv quotes are characters like others, as GLUE has it."""
    if path.suffix == ".jsonl":
        for where, line in _lines(path):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where}: no JSON: {error}: {short(line)}") from None
            if not isinstance(row, dict):
                raise InputError(f"{where}: {short(row)}, expected an object with {_some(wanted)}")
            _need(where, list(row), wanted)
            values = {c: json.dumps(row[c]) if isinstance(row[c], (int, float)) else row[c] for c in wanted}
            for column, value in values.items():
                if not isinstance(value, str):
                    raise InputError(f"{where}: {column} is {short(value)}, expected text, or a number as a label")
            yield where, values
        return
    if path.suffix not in (".csv", ".tsv"):
        raise InputError(f"{path}: expected a file named .csv, .tsv, .jsonl, or .conll for tags")
    rows = _csv_rows(path) if path.suffix == ".csv" else ((where, line.split("\t")) for where, line in _lines(path))
    for where, row in rows:
        if header is None:
            header = row
            _need(where, header, wanted)
            continue
        if len(row) != len(header):
            raise InputError(f"{where} has {len(row)} columns, expected {len(header)}: {_some(header)}")
        found = dict(zip(header, row, strict=True))
        yield where, {c: found[c] for c in wanted}


def _csv_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            for row in reader:
                yield f"{path}, line {reader.line_num}", row
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path}, after line {reader.line_num}: {error}") from None


def _need(where: str, columns: Sequence[str], wanted: Sequence[str]) -> None:
    missing = [c for c in wanted if c not in columns]
    if missing:
        raise InputError(f"{where}: no column {_some(missing)}; there are {_some(columns)}")


def _read_splits(path: Path, split: str) -> Iterator[tuple[str, str, str]]:
    """CLINC150's file: {split: [[text, label], ...]}."""
    try:
        rows = json.loads(path.read_bytes())[split]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is no JSON object with a list {split!r}: {error}") from None
    for i, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != 2 or not all(isinstance(value, str) for value in row):
            raise InputError(f"{path}, {split}[{i}] is {short(row)}, expected [text, label]")
        yield f"{path}, {split}[{i}]", *row


def _read_tagged(path: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """CoNLL: on each line a word, white space, and in the last column its tag (O, B-x, I-x); an empty line ends a sentence."""
    start, words, tags = "", [], []
    for where, line in [*_lines(path), ("", "")]:
        fields = line.split("\t") if "\t" in line else line.split()
        if len(fields) >= 2:
            if fields[0] == "-DOCSTART-":
                continue
            if fields[-1] != "O" and fields[-1][:2] not in ("B-", "I-"):
                raise InputError(f"{where}: tag {short(fields[-1])}, expected O, B-x or I-x in the last column")
            start = start or where
            words.append(fields[0])
            tags.append(fields[-1])
        elif line.strip():
            raise InputError(f"{where}: {short(line)}, expected a word and its tag with white space between")
        elif words:
            yield start, words, tags
            start, words, tags = "", [], []


def _read_articles(path: Path, *, whole: bool) -> Iterator[tuple[str, Any, None]]:
    """Paragraphs of the articles that are kept out of training, as (first sentence, the rest); or 200 first sentences alone.

    The choice looks random and is always the same: the paragraphs with the lowest checksums, of those that have two
    sentences or more and a reasonable length.
    """
    found = {}
    for title, paragraphs in text.articles([path]):
        for paragraph in paragraphs if title is not None and text.held_out(title) else ():
            first, _, rest = SENTENCE_END.sub("\n", paragraph, count=1).partition("\n")
            if len(paragraph) <= LONGEST and len(first) >= SENTENCE and len(rest) >= REST:
                found[paragraph] = (first, rest)
    for paragraph in sorted(found, key=lambda p: (zlib.crc32(p.encode()), p))[: PASSAGES if whole else MASKED]:
        yield f"{path}, {short(paragraph)}", found[paragraph] if whole else found[paragraph][0], None


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where}: {short(text)} is no finite number")
    return value


def _tag_order(label: str) -> tuple:
    """O first, and B-x beside I-x; others by name."""
    return label != "O", label[2:] if label[:2] in ("B-", "I-") else label, label


def _some(names: Iterable[str]) -> str:
    names = [short(name) for name in names]
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def short_names(folders: Sequence[str | Path]) -> dict[str, str]:
    """{folder: what tells it apart}: its path without what all begin and end with; of one folder alone, its last part."""
    parts = {str(folder): list(Path(folder).parts) for folder in folders}
    if len(parts) == 1:
        return {folder: Path(folder).name for folder in parts}
    for end in (0, -1):
        while len({tuple(p[end:][:1]) for p in parts.values()}) == 1 and all(len(p) > 1 for p in parts.values()):
            for p in parts.values():
                p.pop(end)
    return {folder: str(Path(*p)) for folder, p in parts.items()}


# --- metrics ---------------------------------------------------------------------------------------
# Of arrays with one row per example, in percent (but perplexity). What is more than a mean is scikit-learn's, scipy's or seqeval's.


def _accuracy(predictions: np.ndarray, targets: np.ndarray) -> float:
    return 100 * float(np.mean(predictions == targets))


def _f1(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Of the second of two classes."""
    from sklearn.metrics import f1_score

    return 100 * f1_score(targets, predictions, pos_label=1, zero_division=0.0)


def _matthews(predictions: np.ndarray, targets: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return 100 * matthews_corrcoef(targets, predictions)


def _correlation(name: str) -> Callable[[np.ndarray, np.ndarray], float]:
    def correlation(predictions: np.ndarray, targets: np.ndarray) -> float:
        from scipy import stats

        if np.ptp(predictions) == 0 or np.ptp(targets) == 0:
            return 0.0  # undefined: a constant says nothing about the other
        return 100 * float(getattr(stats, name)(predictions, targets).statistic)

    return correlation


def _span_counts(predictions: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> np.ndarray:
    """(sentences, 3): spans that are right, predicted, true, as seqeval reads spans from tags."""
    from seqeval.metrics.sequence_labeling import get_entities

    pairs = [(set(get_entities(list(p))), set(get_entities(list(t)))) for p, t in zip(predictions, targets, strict=True)]
    return np.array([(len(p & t), len(p), len(t)) for p, t in pairs])


def _span_f1(counts: np.ndarray) -> float:
    right, predicted, true = counts.sum(0)
    return 200 * right / max(predicted + true, 1)


def _mask_accuracy(counts: np.ndarray) -> float:
    right, _, tokens = counts.sum(0)
    return 100 * right / tokens


def _pseudo_perplexity(counts: np.ndarray) -> float:
    """exp of the mean negative log probability of a token, given all others of its text (arXiv 1910.14659)."""
    _, surprise, tokens = counts.sum(0)
    return float(np.exp(surprise / tokens))


METRICS: dict[str, Callable[..., float]] = {
    "accuracy": _accuracy,
    "recall@1": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "pearson": _correlation("pearsonr"),
    "spearman": _correlation("spearmanr"),
    "span_f1": _span_f1,
    "mask_accuracy": _mask_accuracy,
    "pseudo_perplexity": _pseudo_perplexity,
}


def _arrays(task: Task, predictions: Sequence, targets: Sequence) -> tuple[np.ndarray, ...]:
    if task.kind == "masks":
        return (np.asarray(predictions),)
    if len(predictions) != len(targets):
        raise InputError(f"{task.name}: {len(predictions)} predictions for {len(targets)} targets")
    if task.kind == "tags":
        return (_span_counts(predictions, targets),)
    return np.asarray(predictions), np.asarray(targets)


def score(task: Task, predictions: Sequence, targets: Sequence) -> dict[str, float]:
    """{metric: value} of the task's metrics, in percent (but perplexity). GLUE's score of a task is their mean.

    predictions, targets  as Examples has targets; of masks, predictions are (texts, 3): tokens guessed right, the sum of
                          their negative log probabilities, tokens
    """
    arrays = _arrays(task, predictions, targets)
    return {metric: float(METRICS[metric](*arrays)) for metric in task.metrics}


def resampled(task: Task, predictions: Sequence, targets: Sequence, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, np.ndarray]:
    """{metric: (resamples,)} of sets drawn from the examples with replacement (bootstrap), the same sets for all predictions of a task."""
    arrays = _arrays(task, predictions, targets)
    count = len(arrays[0])
    draws = np.random.default_rng(seed).integers(count, size=(resamples, count))
    return {metric: np.array([METRICS[metric](*(a[draw] for a in arrays)) for draw in draws]) for metric in task.metrics}


def interval(values: np.ndarray) -> list[float]:
    """[low, high]: the middle 95% of resampled values, or of differences between two models' values."""
    return np.percentile(values, [2.5, 97.5]).tolist()
