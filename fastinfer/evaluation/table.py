"""The table that `fastinfer evaluate` prints: models side by side, with the names that tell them apart."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

from .scoring import Result
from .tasks import GLUE, NOT_HAD, TASKS

Column = tuple[str, str | None]  # model, dtype


def table(results: Sequence[Result]) -> str:
    """A column per model and dtype, a block of rows per task."""
    columns = list(dict.fromkeys((r.model, r.dtype) for r in results))
    names = short_names([model for model, _ in columns])
    rows = [["", *(f"{names[model]} {dtype or ''}".strip() for model, dtype in columns)]]
    known = list(TASKS)
    in_order = sorted(results, key=lambda r: known.index(r.task) if r.task in TASKS else -1)
    for _, group in itertools.groupby(in_order, lambda r: r.task):
        rows += _block({(r.model, r.dtype): r for r in group}, columns)
    widths = [max(len(row[i]) for row in rows if len(row) > 1) for i in range(len(columns) + 1)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]
    if any(r.task in GLUE and r.how == "head" for r in results):
        lines.append(f"Of GLUE, {NOT_HAD}.")
    return "\n".join(lines)


def _block(results: dict[Column, Result], columns: Sequence[Column]) -> list[list[str]]:
    """The rows of a task: a heading, its metrics, its speed. A column without a result has empty cells."""
    first = next(iter(results.values()))

    def row(name: str, cell: Callable[[Result], str]) -> list[str]:
        return [name, *(cell(results[column]) if column in results else "" for column in columns)]

    rows = [[f"{first.task}: {first.how}, {first.examples:,} examples"]]
    for metric in first.metrics:
        rows.append(row(f"  {metric}", functools.partial(_score, metric)))
        if any(r.differences for r in results.values()):
            rows.append(row("    less the first's", functools.partial(_less, first, metric)))
    rows.append(row("  texts/s", lambda r: f"{r.texts_per_second:,.0f}"))
    rows.append(row("  tokens/s", lambda r: f"{r.tokens_per_second:,.0f}"))
    return rows


def _score(metric: str, result: Result) -> str:
    """The score, with its interval."""
    return f"{result.metrics[metric]:.2f} {_range(result.intervals[metric])}"


def _less(first: Result, metric: str, result: Result) -> str:
    """The difference to the first model's score, with its interval; "" for the first model."""
    if not result.differences:
        return ""
    return f"{result.metrics[metric] - first.metrics[metric]:+.2f} {_range(result.differences[metric])}"


def _range(bounds: Sequence[float]) -> str:
    """An interval in brackets."""
    return f"[{bounds[0]:.2f}, {bounds[1]:.2f}]"


def short_names(folders: Sequence[str | Path]) -> dict[str, str]:
    """{folder: a short name}: its path without the parts that all paths begin or end with; for a single folder, its last part."""
    parts = {str(folder): list(Path(folder).parts) for folder in folders}
    if len(parts) == 1:
        return {folder: Path(folder).name for folder in parts}
    for end in (0, -1):
        while len({tuple(p[end:][:1]) for p in parts.values()}) == 1 and all(len(p) > 1 for p in parts.values()):
            for p in parts.values():
                p.pop(end)
    return {folder: str(Path(*p)) for folder, p in parts.items()}
