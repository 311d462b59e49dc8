"""The table of the suite: scores of models side by side with intervals, kept in a file that further runs add to."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastinfer.errors import InputError, near, short
from fastinfer.evaluation.metrics import interval
from fastinfer.files import replacing

from .kinds import Rows
from .models import Entry
from .tasks import TASKS


@dataclass
class Column:
    """A model and its scores.

    model   the folder or the name that the user gave
    digest  what the model is told by, wherever its folder is: the SHA-256 of its files
    scores  task -> (score, scores of the resampled sets)
    microseconds  per token, from text; None: not measured
    measured  time, device and number of threads of the run that measured the speed
    """

    name: str
    model: str
    dtype: str | None
    digest: str
    megabytes: float
    microseconds: float | None = None
    measured: str = ""
    scores: dict[str, tuple[float, list[float]]] = field(default_factory=dict)


class Summary(NamedTuple):
    """A column's average over tasks. Intervals are [low, high], 95%; per cent are of the first column."""

    average: float
    interval: list[float]
    difference: float
    difference_interval: list[float]
    per_cent: float
    per_cent_interval: list[float]
    lowest: float
    lowest_interval: list[float]
    lowest_task: str


class Table:
    """Columns by name; the first one is what the others are compared with. rows: task -> (number, checksum) of its rows."""

    def __init__(self, columns: Sequence[Column] = (), rows: Mapping[str, tuple[int, int]] | None = None) -> None:
        self.columns = {column.name: column for column in columns}
        self.rows = dict(rows or {})

    @classmethod
    def read(cls, path: Path) -> Table:
        """The table that `write` wrote. Raises InputError for another file."""
        try:
            found = json.loads(path.read_text("utf-8"))
            columns = [Column(**column) for column in found["columns"]]
            for column in columns:
                column.scores = {task: (float(score), list(map(float, draws))) for task, (score, draws) in column.scores.items()}
            return cls(columns, {task: (int(count), int(checksum)) for task, (count, checksum) in found["rows"].items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is not a table that `evaluate.py suite --out` wrote: {error}") from None

    def write(self, path: Path) -> None:
        """Write the table: whole as .json, which `read` reads; scores and intervals alone as .csv."""
        if path.suffix == ".csv":
            text = self.as_csv()
        else:
            text = json.dumps({"rows": self.rows, "columns": [dataclasses.asdict(column) for column in self.columns.values()]})
        with replacing(path) as file:
            file.write(text.encode())

    def column(self, entry: Entry, digest: str, megabytes: float) -> Column:
        """The column of an entry, made if the table has none. Raises InputError where the column of this name is of another model."""
        made = Column(*entry, digest, megabytes)
        found = self.columns.setdefault(entry.name, made)
        _same_model(found, made)
        return found

    def add(self, column: Column, task: str, rows: Rows, score: float, draws: np.ndarray) -> None:
        """Add a score. Raises InputError where the table has scores of other rows."""
        self._same_rows(task, (len(rows), rows.checksum()))
        column.scores[task] = (round(score, 3), [round(float(draw), 3) for draw in draws])

    def join(self, other: Table) -> None:
        """Add the columns of another table. Of two columns of the same name, the other's scores and speed count.

        Raises InputError where columns of the same name are of different models, or scores of the same task are of different rows.
        """
        for task, rows in other.rows.items():
            self._same_rows(task, rows)
        for name, column in other.columns.items():
            mine = self.columns.setdefault(name, column)
            _same_model(mine, column)
            if mine is not column:
                mine.scores |= column.scores
                mine.microseconds, mine.measured = column.microseconds or mine.microseconds, column.measured or mine.measured

    def _same_rows(self, task: str, rows: tuple[int, int]) -> None:
        """Raise InputError where the scores of a task in the table are of other rows."""
        mine = self.rows.setdefault(task, rows)
        if mine != rows:
            what = f"on {mine[0]:,} rows (checksum {mine[1]}), but these are {rows[0]:,} rows (checksum {rows[1]})"
            raise InputError(f"the table has scores of {task} {what}: score all models on the same texts")

    def named(self, name: str) -> Column:
        """The column of this name. Raises InputError for another."""
        if name not in self.columns:
            raise InputError(f"the table has no column {short(name)}{near(name, self.columns)}; there are {', '.join(self.columns)}")
        return self.columns[name]

    def common(self) -> list[str]:
        """The tasks that every column has, and that the makers of the model inside looked at nothing of."""
        return [task for task in self.tasks() if not TASKS[task].seen and all(task in c.scores for c in self.columns.values())]

    def tasks(self) -> list[str]:
        """The tasks that any column has, in the order of TASKS."""
        return [task for task in TASKS if any(task in column.scores for column in self.columns.values())]

    def summary(self, name: str) -> Summary | None:
        """A column's average over the common tasks; None where there are none."""
        tasks, column, first = self.common(), self.named(name), next(iter(self.columns.values()))
        if not tasks:
            return None
        mine, base = (np.array([c.scores[task][0] for task in tasks]) for c in (column, first))
        all_draws, all_base = (np.array([c.scores[task][1] for task in tasks]) for c in (column, first))
        draws, base_draws = all_draws.mean(0), all_base.mean(0)
        ratios = 100 * mine / np.maximum(base, 1e-9)
        lowest = int(ratios.argmin())
        return Summary(
            float(mine.mean()),
            interval(draws),
            float(mine.mean() - base.mean()),
            interval(draws - base_draws),
            float(100 * mine.mean() / base.mean()),
            interval(100 * draws / base_draws),
            float(ratios[lowest]),
            interval(100 * all_draws[lowest] / np.maximum(all_base[lowest], 1e-9)),
            tasks[lowest],
        )

    def as_csv(self) -> str:
        """A line per task and column, then a line per column with its average."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["task", "kind", "metric", "rows", "seen", "model", "dtype", "score", "low", "high", "less_low", "less_high"])
        first = next(iter(self.columns.values()))
        for task in self.tasks():
            for column in self.columns.values():
                if task in column.scores:
                    score, draws = column.scores[task]
                    less = interval(np.subtract(draws, first.scores[task][1])) if task in first.scores else ["", ""]
                    kind = TASKS[task].kind
                    row = [task, kind.kind, kind.metric, self.rows[task][0], TASKS[task].seen, column.name, column.dtype, score]
                    writer.writerow([*row, *map(_rounded, [*interval(np.array(draws)), *less])])
        for column in self.columns.values():
            if found := self.summary(column.name):
                row = ["average", "", "", len(self.common()), "", column.name, column.dtype, _rounded(found.average)]
                writer.writerow([*row, *map(_rounded, [*found.interval, *found.difference_interval])])
        return out.getvalue()

    def as_markdown(self) -> str:
        """The table as people read it: a line per task, a column per model."""
        columns = list(self.columns.values())
        rows = [["", "rows", *(column.name for column in columns)]]
        for task in self.tasks():
            seen = f" ({TASKS[task].seen})" if TASKS[task].seen else ""
            rows.append([task + seen, f"{self.rows[task][0]:,}", *(_cell(column.scores.get(task)) for column in columns)])
        found = [self.summary(column.name) for column in columns]
        others = [None, *found[1:]]  # the first column needs no comparison with itself
        common = f"{len(self.common())} tasks"
        per_cent = [f"{s.per_cent:.1f} {_range(s.per_cent_interval, 1)}" if s else "" for s in others]
        per_cent[0] = "100.0" if found[0] else ""
        rows.append(["average", common, *(f"{s.average:.2f} {_range(s.interval)}" if s else "" for s in found)])
        rows.append(["less the first", common, *(f"{s.difference:+.2f} {_range(s.difference_interval)}" if s else "" for s in others)])
        rows.append(["per cent of the first", common, *per_cent])
        lowest = [f"{s.lowest:.1f} {_range(s.lowest_interval, 1)} {s.lowest_task}" if s else "" for s in others]
        rows.append(["lowest task, per cent", "", *lowest])
        rows.append(["us per token, from text", "", *(f"{c.microseconds:.1f}" if c.microseconds else "" for c in columns)])
        rows.append(["MB of weights", "", *(f"{column.megabytes:.1f}" for column in columns)])
        widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
        lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        return "\n".join(lines)


def _same_model(one: Column, other: Column) -> None:
    """Raise InputError where two columns of the same name are of different models."""
    if (one.digest, one.dtype) != (other.digest, other.dtype):
        both = " and ".join(f"{c.model}{f':{c.dtype}' if c.dtype else ''} (SHA-256 {c.digest[:8]})" for c in (one, other))
        raise InputError(f"two models are named {one.name!r}: {both}; give one another name, NAME=MODEL, or write another table")


def _cell(found: tuple[float, list[float]] | None) -> str:
    """A score with its interval; "" where there is none."""
    return f"{found[0]:.2f} {_range(interval(np.array(found[1])))}" if found else ""


def _range(bounds: Sequence[float], digits: int = 2) -> str:
    """An interval in brackets."""
    return f"[{bounds[0]:.{digits}f}, {bounds[1]:.{digits}f}]"


def _rounded(value: Any) -> Any:
    """A number with three digits after the point."""
    return round(value, 3) if isinstance(value, float) else value
