"""The points of the picture of quality against speed, as a result file that tools/figures.py draws."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from fastinfer.errors import InputError

from .table import Table

COMMAND = "python tools/evaluate.py suite; python tools/evaluate.py speed; python tools/evaluate.py pareto"


def points(table: Table, given: Sequence[str], machine: str) -> str:
    """The .csv file of points `COLUMN=KIND`: columns of the table by name, each of a kind, which gives it its colour.

    machine  what the speeds were measured on, for the lines above the rows

    Raises InputError for a column that the table lacks, or whose speed was not measured, and for speeds that were measured differently.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("group", "series", "x", "y", "low", "high"))
    measured: dict[str, str] = {}
    for point in given:
        name, _, kind = point.rpartition("=")
        if not name or not kind:
            raise InputError(f"{point!r} is no point, expected COLUMN=KIND, such as {next(iter(table.columns), 'mine')}=trees")
        column, found = table.named(name), table.summary(name)
        if column.microseconds is None or found is None:
            what = "scores on tasks that all columns have" if found is None else "speed: run `evaluate.py speed` with it"
            raise InputError(f"column {name!r} has no {what}")
        measured[column.measured] = name
        bounds = found.per_cent_interval if name != next(iter(table.columns)) else []
        writer.writerow((name, kind, f"{column.microseconds:.1f}", *(f"{v:.1f}" for v in (found.per_cent, *bounds))))
    if len(measured) > 1:
        odd = "; ".join(f"{name!r} {how}" for how, name in measured.items())
        raise InputError(f"speeds were measured differently ({odd}): run `evaluate.py speed` with all of them at once")
    tasks, first = table.common(), next(iter(table.columns))
    head = [
        COMMAND,
        f"speed: {next(iter(measured))}; {machine}",
        f"x: median microseconds per token, from text; y: average of {len(tasks)} tasks, per cent of that of {first}, with 95% intervals",
    ]
    return "".join(f"# {line}\n" for line in head) + out.getvalue()
