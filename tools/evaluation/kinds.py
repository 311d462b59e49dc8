"""Kinds of tasks: which rows a task of each kind has, what a model's vectors predict of them, and how the predictions are scored.

A kind has a row per example. `predict` gives an array with a row per example, too, so that the bootstrap draws rows of it.
Scores are in percent. Metrics and learners come from scikit-learn and scipy.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np

from fastinfer.errors import InputError, required, short
from fastinfer.evaluation.metrics import METRICS

# From texts to (texts, dim), float32, each row of length one.
Embed: TypeAlias = Callable[[Sequence[str]], np.ndarray]

RESAMPLES = 500  # sets that the bootstrap draws
RUNS = 60  # k-means runs, each with its own seed, whose scores are averaged: they differ by 1 to 3, the mean of 60 by 0.1 to 0.4
BEST = 10  # documents of a query that count


@dataclass(frozen=True)
class Rows:
    """The rows of a task. Subclasses are the kinds."""

    kind: ClassVar[str]
    metric: ClassVar[str]

    def __len__(self) -> int:
        """The number of examples that are scored."""
        raise NotImplementedError

    def texts(self) -> list[str]:
        """All texts that a model embeds."""
        raise NotImplementedError

    def checksum(self) -> int:
        """A checksum of the rows, which tells whether two scores are of the same ones."""
        return zlib.crc32(json.dumps(as_json(self)).encode())

    def predict(self, embed: Embed) -> np.ndarray:
        """What the vectors predict, a row per example."""
        raise NotImplementedError

    def score(self, predictions: np.ndarray, rows: np.ndarray) -> float:
        """The score of the examples with these indexes, of which `predictions` holds the rows."""
        raise NotImplementedError

    def resampled(self, predictions: np.ndarray, random: np.random.Generator) -> float:
        """The score of as many examples, drawn with replacement."""
        rows = random.integers(len(self), size=len(self))
        return self.score(predictions[rows], rows)

    def result(self, embed: Embed) -> tuple[float, np.ndarray]:
        """(score, (RESAMPLES,) scores of resampled sets) of a model.

        The sets depend on the number of examples alone, so the scores of two models on the same set form a pair. Repeated examples bias
        some metrics, so the resampled scores are moved to have the score as their mean.
        """
        predictions = self.predict(embed)
        score = self.score(predictions, np.arange(len(self)))
        random = np.random.default_rng(len(self))
        draws = np.array([self.resampled(predictions, random) for _ in range(RESAMPLES)])
        return score, draws - draws.mean() + score


@dataclass(frozen=True)
class Similarity(Rows):
    """Pairs of texts with a similarity given by people."""

    kind: ClassVar[str] = "similarity"
    metric: ClassVar[str] = "Spearman of cosines"
    first: list[str]
    second: list[str]
    target: list[float]

    def __len__(self) -> int:
        return len(self.target)

    def texts(self) -> list[str]:
        return [*self.first, *self.second]

    def predict(self, embed: Embed) -> np.ndarray:
        cosines: np.ndarray = (embed(self.first) * embed(self.second)).sum(1)
        return cosines

    def score(self, predictions: np.ndarray, rows: np.ndarray) -> float:
        return METRICS["spearman"](predictions, np.asarray(self.target)[rows])


@dataclass(frozen=True)
class Pairs(Similarity):
    """Pairs of texts that belong together (1) or do not (0)."""

    kind: ClassVar[str] = "pairs"
    metric: ClassVar[str] = "average precision of cosines"

    def score(self, predictions: np.ndarray, rows: np.ndarray) -> float:
        target = np.asarray(self.target)[rows]
        if not target.any():
            return 0.0  # No pair belongs together, so precision is undefined.
        return 100 * float(_sklearn("metrics").average_precision_score(target, predictions))


@dataclass(frozen=True)
class Classes(Rows):
    """Texts with a class, and others to learn from."""

    kind: ClassVar[str] = "classes"
    metric: ClassVar[str] = "accuracy of logistic regression"
    known: list[str]
    known_target: list[int]
    unknown: list[str]
    target: list[int]

    def __len__(self) -> int:
        return len(self.target)

    def texts(self) -> list[str]:
        return [*self.known, *self.unknown]

    def predict(self, embed: Embed) -> np.ndarray:
        learner = _sklearn("linear_model").LogisticRegression(max_iter=1000)
        classes: np.ndarray = learner.fit(embed(self.known), self.known_target).predict(embed(self.unknown))
        return classes

    def score(self, predictions: np.ndarray, rows: np.ndarray) -> float:
        return METRICS["accuracy"](predictions, np.asarray(self.target)[rows])


@dataclass(frozen=True)
class Clusters(Rows):
    """Texts with a topic that is found again, or not, by k-means with as many clusters as topics."""

    kind: ClassVar[str] = "clusters"
    metric: ClassVar[str] = f"v-measure of k-means, mean of {RUNS} runs"
    members: list[str]
    target: list[int]

    def __len__(self) -> int:
        return len(self.target)

    def texts(self) -> list[str]:
        return self.members

    def predict(self, embed: Embed) -> np.ndarray:
        vectors, kmeans, count = embed(self.members), _sklearn("cluster").KMeans, len(set(self.target))
        with required("threadpoolctl", "k-means", "evaluate").threadpool_limits(1):  # two threads take ten times as long on busy cores
            return np.stack([kmeans(count, n_init=1, random_state=seed).fit_predict(vectors) for seed in range(RUNS)], 1)

    def score(self, predictions: np.ndarray, rows: np.ndarray) -> float:
        return self._mean(predictions, rows, np.ones(RUNS))

    def resampled(self, predictions: np.ndarray, random: np.random.Generator) -> float:
        """Runs are drawn with replacement, too, because k-means starts at random."""
        rows = random.integers(len(self), size=len(self))
        return self._mean(predictions[rows], rows, np.bincount(random.integers(RUNS, size=RUNS), minlength=RUNS))

    def _mean(self, predictions: np.ndarray, rows: np.ndarray, times: np.ndarray) -> float:
        """The mean v-measure of the runs, each counted so many times."""
        target = np.asarray(self.target)[rows]
        found = [v_measure(target, predictions[:, run]) for run in np.flatnonzero(times)]
        return 100 * float(np.average(found, weights=times[times > 0]))


def v_measure(target: np.ndarray, found: np.ndarray) -> float:
    """sklearn.metrics.v_measure_score of labels (N,) from 0 on, in a fraction of the time: 500 resampled sets of 60 runs need many.

    It is twice the mutual information over the sum of the entropies (Rosenberg and Hirschberg, 2007, https://aclanthology.org/D07-1043).
    """

    def entropy(labels: np.ndarray) -> float:
        shares = np.bincount(labels) / len(labels)
        return float(-np.sum(shares * np.log(np.where(shares > 0, shares, 1))))

    apart = entropy(target) + entropy(found)
    return 2 * (apart - entropy(target * (found.max() + 1) + found)) / apart if apart else 1.0


@dataclass(frozen=True)
class Retrieval(Rows):
    """Queries, and documents among which the relevant ones are to stand first.

    relevant  for each query, pairs [index of a document, how relevant it is: above 0]
    """

    kind: ClassVar[str] = "retrieval"
    metric: ClassVar[str] = f"nDCG@{BEST} of cosines"
    queries: list[str]
    documents: list[str]
    relevant: list[list[list[float]]]

    def __len__(self) -> int:
        return len(self.queries)

    def texts(self) -> list[str]:
        return [*self.queries, *self.documents]

    def predict(self, embed: Embed) -> np.ndarray:
        """(queries,): the nDCG of each query."""
        ndcg, found = _sklearn("metrics").ndcg_score, []
        cosines = embed(self.queries) @ embed(self.documents).T
        for row, relevant in zip(cosines, self.relevant, strict=True):
            gains = np.zeros((1, len(self.documents)))
            for document, gain in relevant:
                gains[0, int(document)] = gain
            found.append(ndcg(gains, row[None], k=BEST))
        return np.array(found)

    def score(self, predictions: np.ndarray, rows: np.ndarray) -> float:
        return 100 * float(predictions.mean())


KINDS: dict[str, type[Rows]] = {kind.kind: kind for kind in (Similarity, Pairs, Classes, Clusters, Retrieval)}


def as_json(rows: Rows) -> dict[str, Any]:
    """The rows as an object that JSON can hold."""
    return {"kind": rows.kind} | dataclasses.asdict(rows)


def of_json(value: Any, where: str) -> Rows:
    """The rows that as_json made an object of. Raises InputError for other objects."""
    kind = KINDS.get(value.get("kind", "")) if isinstance(value, dict) else None
    if kind is None:
        raise InputError(f"{where} is {short(value)}, expected an object whose kind is one of {', '.join(KINDS)}")
    names = [field.name for field in dataclasses.fields(kind)]
    columns = {name: value.get(name) for name in names}
    if set(value) != {"kind", *names} or not all(isinstance(column, list) for column in columns.values()):
        raise InputError(f"{where} has {', '.join(value)}, expected kind and the lists {', '.join(names)}")
    return kind(**columns)


def _sklearn(module: str) -> Any:
    """A module of scikit-learn. Raises InputError where it is not installed."""
    return required(f"sklearn.{module}", "the suite", "evaluate", "scikit-learn")
