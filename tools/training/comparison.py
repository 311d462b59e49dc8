"""The scores of many fine-tuned models side by side: a table, a picture, and what each model keeps of the first one's score."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fastinfer.evaluation.metrics import score
from fastinfer.evaluation.table import short_names
from fastinfer.evaluation.tasks import GLUE, NOT_HAD
from training.finetune import Finetune, tasks_of

DRAWS = 400  # resampled sets of the bootstrap


def table(settings: Finetune, lines: Sequence[dict[str, Any]]) -> str:
    """A Markdown table: per model and task the median over the seeds and the extremes; for tasks of GLUE also averages and retention.

    lines  a dict per run, as study.results gives them

    A task's score is the mean of its metrics, and an average is the mean of the tasks' medians. Retention is the ratio of a model's average
    to the first model's. Its interval is the middle 95% of the ratios of resampled sets: seeds (per model) and examples (the same
    for all models) are drawn with replacement.
    """
    named = tasks_of(settings)
    scores: dict[tuple[str, str], list[float]] = {}
    for line in lines:
        scores.setdefault((line["model"], line["task"]), []).append(_mean(line["metrics"]))
    averages = _averages(list(named))
    kept = _retention(settings, lines, averages) if len(settings.models) > 1 and averages else {}
    heads = ["model", *named, *averages, *(f"retention, {name}" for name in averages if kept)]
    rows = [heads, ["---"] * len(heads)]
    for model in settings.models:
        medians = {t: float(np.median(scores[model, t])) for t in named}
        cells = [f"{medians[t]:.1f}{_extremes(scores[model, t])}" for t in named]
        cells += [f"{np.mean([medians[t] for t in some]):.1f}" for some in averages.values()]
        cells += [kept.get((model, name), "") for name in averages if kept]
        rows.append([short_names(settings.models)[model], *cells])
    note = f"\n\nMedian of {settings.seeds} seeds (lowest..highest)." if settings.seeds > 1 else "\n\nOne seed."
    note += f" Of GLUE, {NOT_HAD}." if named.keys() & GLUE.keys() else ""
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + note


def _averages(named: list[str]) -> dict[str, list[str]]:
    """{name of an average: the tasks that it is taken over}, for several tasks of GLUE alone."""
    if len(named) < 2 or not set(named) <= GLUE.keys():
        return {}
    without = [t for t in named if t != "CoLA"]
    return {"average": named} | ({"without CoLA": without} if len(without) < len(named) else {})


def _extremes(scores: Sequence[float]) -> str:
    """The lowest and the highest of several scores, in brackets; nothing for a single one."""
    return f" ({min(scores):.1f}..{max(scores):.1f})" if len(scores) > 1 else ""


def plot(settings: Finetune, lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw a panel per task, with a dot per seed and a bar at the median of each model, into the file at `path`."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    named, names = tasks_of(settings), short_names(settings.models)
    figure, panels = pyplot.subplots(1, len(named), figsize=(1 + 2.5 * len(named), 3.5), squeeze=False)
    for axes, task in zip(panels[0], named, strict=True):
        for x, model in enumerate(settings.models):
            scores = [_mean(line["metrics"]) for line in lines if (line["model"], line["task"]) == (model, task)]
            axes.plot([x] * len(scores), scores, "o", color=f"C{x}", alpha=0.5)
            axes.plot([x - 0.3, x + 0.3], [np.median(scores)] * 2, color=f"C{x}")
        axes.set(title=task, ylabel="score" if axes is panels[0][0] else "")
        axes.set_xticks(range(len(settings.models)), [names[model] for model in settings.models], rotation=45, ha="right")
    figure.savefig(path, bbox_inches="tight")
    pyplot.close(figure)


def _retention(settings: Finetune, lines: Sequence[dict[str, Any]], averages: dict[str, list[str]]) -> dict[tuple[str, str], str]:
    """{(model, average): "percent [low, high]" of the first model's average}, empty for the first model itself."""
    named, rng = tasks_of(settings), np.random.default_rng(0)
    targets = {t: np.array(task.read(settings.data, task.scored).targets) for t, task in named.items()}
    said = {(line["model"], line["task"], line["seed"]): np.array(line["predictions"]) for line in lines}

    def medians(seeds: dict[str, np.ndarray], rows: dict[str, Any]) -> dict[tuple[str, str], float]:
        found = {}
        for m, t in itertools.product(settings.models, named):
            each = {s: _mean(score(named[t], said[m, t, s][rows[t]], targets[t][rows[t]])) for s in set(seeds[m].tolist())}
            found[m, t] = float(np.median([each[s] for s in seeds[m].tolist()]))
        return found

    def ratios(found: dict[tuple[str, str], float]) -> dict[tuple[str, str], float]:
        mean = {(m, name): np.mean([found[m, t] for t in some]) for m in settings.models for name, some in averages.items()}
        return {(m, name): 100 * value / mean[settings.models[0], name] for (m, name), value in mean.items()}

    drawn = []
    for _ in tqdm(range(DRAWS), desc="intervals of retention"):
        seeds = {m: rng.integers(settings.seeds, size=settings.seeds) for m in settings.models}
        drawn.append(ratios(medians(seeds, {t: rng.integers(len(y), size=len(y)) for t, y in targets.items()})))
    whole = ratios(medians(dict.fromkeys(settings.models, np.arange(settings.seeds)), dict.fromkeys(named, slice(None))))
    shown = {}
    for key, value in whole.items():
        low, high = np.percentile([draw[key] for draw in drawn], [2.5, 97.5])
        shown[key] = f"{value:.1f}% [{low:.1f}, {high:.1f}]" if key[0] != settings.models[0] else ""
    return shown


def _mean(metrics: dict[str, float]) -> float:
    return sum(metrics.values()) / len(metrics)
