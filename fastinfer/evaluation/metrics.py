"""Metrics, each defined once: the score of predictions, and how far it may be off.

A metric takes arrays with a row per example and gives percent, except for the perplexity. Metrics that are more than a mean come from
scikit-learn, scipy or seqeval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import InputError, required
from .tasks import Task

RESAMPLES = 1000  # resampled sets of the bootstrap
# {metric: (module that computes it, the package that pip installs)}
PACKAGES = {
    "f1": ("sklearn.metrics", "scikit-learn"),
    "matthews": ("sklearn.metrics", "scikit-learn"),
    "pearson": ("scipy.stats", "scipy"),
    "spearman": ("scipy.stats", "scipy"),
    "span_f1": ("seqeval.metrics.sequence_labeling", "seqeval"),
}


def check_packages(task: Task) -> None:
    """Raise InputError where a package is missing that a metric of the task needs."""
    for metric in task.metrics:
        if metric in PACKAGES:
            _package(metric)


def _package(metric: str) -> Any:
    """The module that computes a metric. Raises InputError where it is not installed."""
    module, package = PACKAGES[metric]
    return required(module, f"the metric {metric}", "evaluate", package)


def _accuracy(predictions: np.ndarray, targets: np.ndarray) -> float:
    """The share of the predictions that are right."""
    return 100 * float(np.mean(predictions == targets))


def _f1(predictions: np.ndarray, targets: np.ndarray) -> float:
    """F1 of the second of two classes."""
    return 100 * float(_package("f1").f1_score(targets, predictions, pos_label=1, zero_division=0.0))


def _matthews(predictions: np.ndarray, targets: np.ndarray) -> float:
    """The Matthews correlation coefficient."""
    return 100 * float(_package("matthews").matthews_corrcoef(targets, predictions))


def _correlation(metric: str) -> Callable[[np.ndarray, np.ndarray], float]:
    """The correlation that scipy.stats has under this name with an r behind it."""

    def correlation(predictions: np.ndarray, targets: np.ndarray) -> float:
        if np.ptp(predictions) == 0 or np.ptp(targets) == 0:
            return 0.0  # The correlation of a constant is undefined.
        return 100 * float(getattr(_package(metric), f"{metric}r")(predictions, targets).statistic)

    return correlation


def _span_counts(predictions: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> np.ndarray:
    """(sentences, 3): the number of right, of predicted and of true spans, as seqeval reads spans from tags."""
    get_entities = _package("span_f1").get_entities
    pairs = [(set(get_entities(list(p))), set(get_entities(list(t)))) for p, t in zip(predictions, targets, strict=True)]
    return np.array([(len(p & t), len(p), len(t)) for p, t in pairs])


def _span_f1(counts: np.ndarray) -> float:
    """F1 of spans, from _span_counts."""
    right, predicted, true = counts.sum(0)
    return 200 * float(right) / max(int(predicted + true), 1)


def _mask_accuracy(counts: np.ndarray) -> float:
    """The share of the masked tokens that were guessed right."""
    right, _, tokens = counts.sum(0)
    return 100 * float(right) / float(tokens)


def _pseudo_perplexity(counts: np.ndarray) -> float:
    """exp of the mean negative log probability of a token, given all other tokens of its text (arXiv 1910.14659)."""
    _, surprise, tokens = counts.sum(0)
    return float(np.exp(surprise / tokens))


METRICS: dict[str, Callable[..., float]] = {
    "accuracy": _accuracy,
    "recall@1": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "pearson": _correlation("pearson"),
    "spearman": _correlation("spearman"),
    "span_f1": _span_f1,
    "mask_accuracy": _mask_accuracy,
    "pseudo_perplexity": _pseudo_perplexity,
}


def _arrays(task: Task, predictions: Sequence[Any], targets: Sequence[Any]) -> tuple[np.ndarray, ...]:
    """The arguments of the task's metrics. Raises InputError where predictions and targets differ in number."""
    if task.kind == "masks":
        return (np.asarray(predictions),)
    if len(predictions) != len(targets):
        raise InputError(f"{task.name}: {len(predictions)} predictions for {len(targets)} targets")
    if task.kind == "tags":
        return (_span_counts(predictions, targets),)
    return np.asarray(predictions), np.asarray(targets)


def score(task: Task, predictions: Sequence[Any], targets: Sequence[Any]) -> dict[str, float]:
    """{metric: value} of the task's metrics, in percent except for the perplexity. GLUE's score of a task is their mean.

    predictions, targets  as Examples has targets. For masks, predictions are (texts, 3): the number of tokens guessed right, the sum of the
                          negative log probabilities of the true tokens, the number of tokens.

    Raises InputError where predictions and targets differ in number.
    """
    arrays = _arrays(task, predictions, targets)
    return {metric: float(METRICS[metric](*arrays)) for metric in task.metrics}


def resampled(
    task: Task, predictions: Sequence[Any], targets: Sequence[Any], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, np.ndarray]:
    """{metric: (resamples,)} of sets that are drawn from the examples with replacement (bootstrap).

    The sets depend on the seed and the number of examples alone, so all predictions of a task are scored on the same ones.
    """
    arrays = _arrays(task, predictions, targets)
    count = len(arrays[0])
    draws = np.random.default_rng(seed).integers(count, size=(resamples, count))
    return {metric: np.array([METRICS[metric](*(a[draw] for a in arrays)) for draw in draws]) for metric in task.metrics}


def interval(values: np.ndarray) -> list[float]:
    """[low, high]: the middle 95% of resampled values, or of the differences of two models' values."""
    return list(map(float, np.percentile(values, [2.5, 97.5])))
