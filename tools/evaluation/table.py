"""The table that evaluate.py prints: models side by side, with the names that tell them apart."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from evaluation.scoring import Result
from evaluation.tasks import GLUE, NOT_HAD, TASKS


def table(results: Sequence[Result]) -> str:
    """A column per model and dtype, a block of rows per task."""
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
    """The difference to the first model's score, with its interval."""
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
