"""The data sets, each defined once: `fastinfer evaluate` scores models on them, and finetune trains on them.

GLUE tasks, CLINC150, WNUT17 and articles of Wikipedia are read as they are published, from a data folder that the user names. A user's own
file is a table (.csv, .tsv, .jsonl) with named columns, has a word and its tag on each line (.conll), or is a text (.txt).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import InputError, short
from .articles import HELD_OUT, OPENERS
from .files import find, read_articles, read_splits, read_table, read_tagged, some_of

Kind = Literal["classes", "score", "tags", "pairs", "masks"]

NOT_HAD = "MNLI and QQP could not be had, nor QNLI's training data"


@dataclass(frozen=True)
class Examples:
    """A split of a data set, an entry of each list per example.

    inputs   a text, a pair of texts, or, for tags, a list of words
    targets  classes: the label's index; score: a float; tags: a label per word; pairs: the example's own index; masks: nothing
    labels   names of the classes or tags; for a score, the one name of the scored quantity
    """

    inputs: list[Any]
    targets: list[Any]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True, eq=False)
class Task:
    """A data set: the files of its splits, the columns that count, and its official metrics.

    kind     classes: a label per text or pair; score: a number per text or pair; tags: a label per word;
             pairs: two texts that belong together, of which the first is to find the second among all second texts;
             masks: texts whose tokens are to be guessed
    files    split -> path in the data folder, or in one of its folders
    scored   the split whose score is reported
    text, pair, target   columns of a table; pair is None for single texts
    labels   label in the file -> its name in a model; None: the labels of the file are the names
    header   column names of a table whose first line does not hold them
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

        labels  the names that targets may have, each at its index; None: the task's own, or else those found, sorted

        Raises InputError with file and line for an example that does not fit, and OSError for a file that cannot be read.
        """
        if split not in self.files:
            raise InputError(f"{self.name} has no split {split!r}, only {', '.join(self.files)}")
        path = find(data, self.files[split])
        rows = list(self._rows(path, split))
        if not rows:
            of_articles = f" of held-out articles: a line `= Title =` begins an article, and {HELD_OUT}"
            raise InputError(f"{path} holds no examples" + (of_articles if self._of_articles(path) else ""))
        inputs = [given for _, given, _ in rows]
        if self.kind in ("pairs", "masks"):
            return Examples(inputs, list(range(len(inputs))) if self.kind == "pairs" else [], ())
        if self.kind == "score":
            return Examples(inputs, [_number(target, where) for where, _, target in rows], (self.target,))
        names = self.labels or {}
        named = [[names.get(t, t) for t in (target if self.kind == "tags" else [target])] for _, _, target in rows]
        if labels is None:
            labels = tuple(names.values()) or sorted({label for row in named for label in row}, key=_tag_order)
        _refuse_others(labels, named, [where for where, _, _ in rows])
        index = {label: i for i, label in enumerate(labels)}
        return Examples(inputs, named if self.kind == "tags" else [index[row[0]] for row in named], tuple(labels))

    def _rows(self, path: Path, split: str) -> Iterator[tuple[str, Any, Any]]:
        """(where it stands, input, target as it stands) of each example."""
        if self.kind == "tags":
            yield from read_tagged(path)
        elif path.suffix == ".json":
            yield from read_splits(path, split)
        elif self._of_articles(path):
            yield from read_articles(path, whole=self.kind == "pairs")
        else:
            texts = [c for c in (self.text, self.pair) if c is not None]
            wanted = texts if self.kind in ("pairs", "masks") else [*texts, self.target]
            for where, row in read_table(path, self.header, wanted):
                given = tuple(row[c] for c in texts)
                yield where, given if self.pair else given[0], row.get(self.target)

    def _of_articles(self, path: Path) -> bool:
        """Whether the examples are passages of a text's articles, and not rows of a table."""
        return self.kind in ("pairs", "masks") and path.suffix in (".txt", *OPENERS)


def _glue(name: str, metrics: str, labels: Mapping[str, str] | None = None, *, train: bool = True, **columns: Any) -> Task:
    """A task of GLUE, in a folder of its name. Without labels, its target is a score."""
    splits = ("train", "dev") if train else ("dev",)
    files = {split: f"{name}/{split}.tsv" for split in splits}
    return Task(name, "classes" if labels else "score", tuple(metrics.split()), files, labels=labels, **columns)


_ENTAILMENT = {label: label for label in ("entailment", "not_entailment")}
_SENTENCES: dict[str, Any] = {"text": "sentence1", "pair": "sentence2"}

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
    # 150 intents; the splits of queries out of scope are not used
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
METRICS_OF = {
    "classes": ("accuracy",),
    "score": ("pearson", "spearman"),
    "tags": ("span_f1",),
    "pairs": ("recall@1",),
    "masks": ("mask_accuracy", "pseudo_perplexity"),
}


def own_task(kind: Kind, files: Mapping[str, str | Path], **columns: Any) -> Task:
    """A task from the user's own files, {"train": path, "dev": path}; columns: text, pair, target, as in Task."""
    stem = Path(next(iter(files.values()))).stem
    return Task(stem, kind, METRICS_OF[kind], {split: str(path) for split, path in files.items()}, **{"text": "text"} | columns)


def first_rows(word_ids: Sequence[int | None]) -> dict[int, int]:
    """{word: place of its first token}, which carries the word's tag. A word that was cut off, or has no token, is left out."""
    first: dict[int, int] = {}
    for row, word in enumerate(word_ids):
        if word is not None:
            first.setdefault(word, row)
    return first


def _refuse_others(labels: Sequence[str], named: Sequence[Sequence[str]], places: Sequence[str]) -> None:
    """Raise InputError for the first example, given by its labels and its place, with a label that is not one of `labels`."""
    known = set(labels)
    for where, row in zip(places, named, strict=True):
        odd = [label for label in row if label not in known]
        if odd:
            raise InputError(f"{where}: label {short(odd[0])} is none of those that fit: {some_of(labels)}")


def _number(text: str, where: str) -> float:
    """The number that a text holds. Raises InputError where it holds none, or one that is not finite."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where}: {short(text)} is no finite number")
    return value


def _tag_order(label: str) -> tuple[Any, ...]:
    """The key of an order with O first, B-x beside I-x, and the rest by name."""
    return label != "O", label[2:] if label[:2] in ("B-", "I-") else label, label
