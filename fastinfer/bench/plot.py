"""Figures of benchmarks. They need matplotlib."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import InputError, required
from .oracle import TOLERANCE
from .report import Row

FORMATS = (".svg", ".png", ".pdf")


def check_plot(path: str) -> None:
    """Raise InputError unless a figure can be drawn into this file."""
    _pyplot()
    ending = os.path.splitext(path)[1].lower()
    if ending not in FORMATS:
        raise InputError(f"--plot {path}: {ending or 'a name without an ending'} is not drawn, expected {', '.join(FORMATS)}")
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise InputError(f"--plot {path}: {os.path.dirname(path)} is no folder")


def _pyplot() -> Any:
    """matplotlib.pyplot, set to draw into files. Raises InputError if matplotlib is missing."""
    required("matplotlib", "--plot", "plot").use("Agg")
    from matplotlib import pyplot

    return pyplot


def plot_cmm(rows: Sequence[Row], path: str, speedup: Callable[[Row], float], against: str) -> None:
    """Draw speed-ups over `against` by tokens into a file, with a line per shape and dtype. Dotted lines are the shapes' limits."""
    figure, axes = _pyplot().subplots(figsize=(9, 5.5))
    shapes = list(dict.fromkeys(r["shape"] for r in rows))
    styles = {"float32": "-", "float16": "-.", "bfloat16": "--", "int8": ":"}
    for i, shape in enumerate(shapes):
        mine = [r for r in rows if r["shape"] == shape]
        for dtype in dict.fromkeys(r["dtype"] for r in mine):
            line = [(r["tokens"], speedup(r)) for r in mine if r["dtype"] == dtype]
            axes.plot(*zip(*line, strict=True), styles[dtype], color=f"C{i}", marker="o", markersize=4, label=f"{shape} {dtype}")
        axes.axhline(mine[0]["limit"], color=f"C{i}", linewidth=0.8, linestyle=(0, (1, 3)))
        axes.annotate(
            f"limit of {shape}", (max(r["tokens"] for r in mine), mine[0]["limit"]), fontsize=7, color=f"C{i}", ha="right", va="bottom"
        )
    axes.set(xscale="log", yscale="log", xlabel="tokens in the batch", ylabel=f"times faster than {against}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def plot_models(rows: Sequence[Row], path: str) -> None:
    """Draw tokens per second as bars into a file, with a panel per size. Rivals are grey, fastinfer is coloured."""
    pyplot = _pyplot()
    sizes = list(dict.fromkeys((r["texts"], r["tokens"]) for r in rows))
    ordered = sorted(rows, key=lambda r: list(TOLERANCE).index(r["dtype"]))
    names = list(dict.fromkeys((r["dtype"], r["engine"], r["model"]) for r in ordered))
    figure, panels = pyplot.subplots(1, len(sizes), figsize=(3.2 + 2.2 * len(sizes), 0.8 + 0.22 * len(names)), sharey=True, squeeze=False)
    for axes, size in zip(panels[0], sizes, strict=True):
        speed = {(r["dtype"], r["engine"], r["model"]): 1e6 / r["us_per_token"] for r in rows if (r["texts"], r["tokens"]) == size}
        colours = ["0.7" if name[1] != "fastinfer" else "C0" if name[2] == "dense" else "C1" for name in names]
        axes.barh(range(len(names)), [speed.get(name, 0) for name in names], color=colours)
        axes.set(title="{}x{}".format(*size), xlabel="tokens per second")
    panels[0][0].set_yticks(range(len(names)), [f"{e}, {d}" + f", {m}" * (e == "fastinfer") for d, e, m in names], fontsize=7)
    panels[0][0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
