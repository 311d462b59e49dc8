"""Draw the figures of the documents from the result files beside them: python tools/figures.py [NAME ...]

    python tools/figures.py                 # every figure of docs/figures
    python tools/figures.py --measure       # also walk a sentence down the trees of the model inside again, for tree.svg

A chart comes from a .csv file with the columns group, series, x, y and perhaps low and high; the lines above them that begin with #
say what was measured, where and when. Colours are readable on white and on black; there is no background.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from fastinfer.svg import COLOURS, FAINT, SIZE, TEXT, WIDTH, circle, line, svg, text

FIGURES = Path(__file__).parents[1] / "docs" / "figures"

ROW = 22  # pixels of a bar
SENTENCE, TOKEN, LAYER = "How do I cook rice?", "rice", 3  # what tree.svg shows


class Row(NamedTuple):
    """One measured value; low and high bound it where they are known."""

    group: str
    series: str
    x: str
    y: float
    low: float | None
    high: float | None


def read(name: str) -> list[Row]:
    """The rows of docs/figures/NAME.csv."""
    lines = (FIGURES / f"{name}.csv").read_text().splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return [
        Row(r["group"], r["series"], r["x"], float(r["y"]), *(float(v) if (v := r.get(k)) else None for k in ("low", "high"))) for r in rows
    ]


def short(value: float) -> str:
    """A value with three digits, or all digits of a large one."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


# --- charts ----------------------------------------------------------------------------------------


def bars(title: str, rows: Sequence[Row], unit: str) -> str:
    """Horizontal bars from 0, grouped; a colour per series, the value at the end of each bar."""
    left, right, top = 235, 70, 52
    series = list(dict.fromkeys(row.series for row in rows))
    scale = (WIDTH - left - right) / max(row.y for row in rows)
    parts = [text(0, 18, title, bold=True, size=15), text(0, 36, unit)]
    x = float(WIDTH)
    for i, name in reversed(list(enumerate(series))):
        x -= 8 * len(name) + 26
        parts += [f'<rect x="{x:.1f}" y="26" width="12" height="12" rx="2" fill="{COLOURS[i]}"/>', text(x + 17, 37, name)]
    y = float(top)
    for group in dict.fromkeys(row.group for row in rows):
        members = [row for row in rows if row.group == group]
        parts.append(text(left - 12, y + ROW * len(members) / 2 + 4, group, anchor="end"))
        for row in members:
            colour = COLOURS[series.index(row.series)]
            parts.append(f'<rect x="{left}" y="{y + 3:.1f}" width="{row.y * scale:.1f}" height="{ROW - 6}" rx="2" fill="{colour}"/>')
            parts.append(text(left + row.y * scale + 6, y + ROW - 6, short(row.y)))
            y += ROW
        y += 12
    return svg(title, y, [*parts, line(left, top - 4, left, y - 8)])


def dots(title: str, rows: Sequence[Row], unit: str, *, low: float, high: float, step: float, mark: float | None = None) -> str:
    """A dot per row with its interval as a line, over an axis from low to high; mark: a value to compare with."""
    left, right, top = 330, 60, 52
    series = list(dict.fromkeys(row.series for row in rows))

    def at(value: float) -> float:
        return left + (value - low) / (high - low) * (WIDTH - left - right)

    groups = list(dict.fromkeys(row.group for row in rows))
    bottom = top + ROW * len(rows) + 12 * len(groups)
    parts = [text(0, 18, title, bold=True, size=15), text(0, 36, unit)]
    for i in range(round((high - low) / step) + 1):
        value = low + i * step
        parts += [line(at(value), top - 4, at(value), bottom), text(at(value), bottom + 16, f"{value:g}", anchor="middle")]
    if mark is not None:
        parts.append(line(at(mark), top - 4, at(mark), bottom, colour=TEXT, width=1.5, dash="4 3"))
    y = float(top)
    for group in groups:
        for row in (row for row in rows if row.group == group):
            colour, middle = COLOURS[series.index(row.series)], y + ROW / 2
            name = f"{group}, {row.series}" if len(series) > 1 else group
            parts.append(text(left - 14, middle + 4, name, anchor="end"))
            if row.low is not None and row.high is not None:
                parts.append(line(at(row.low), middle, at(row.high), middle, colour=colour, width=2.5))
            parts.append(circle(at(row.y), middle, 5, colour))
            parts.append(text(WIDTH, middle + 4, f"{row.y:.1f}", anchor="end"))
            y += ROW
        y += 12
    return svg(title, bottom + 24, parts)


def curves(title: str, rows: Sequence[Row], unit: str, xlabel: str) -> str:
    """A curve per series over x, both axes logarithmic; each curve's name stands at its end."""
    left, right, top, height = 56, 215, 52, 300
    xs, ys = [float(row.x) for row in rows], [row.y for row in rows]
    first, last = math.log(min(xs)), math.log(max(xs))
    low, high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log(x) - first) / (last - first)
        return left + across * (WIDTH - left - right), top + height * (1 - (math.log10(y) - low) / (high - low))

    parts = [text(0, 18, title, bold=True, size=15), text(0, 36, unit)]
    for power in range(low, high + 1):
        y = place(min(xs), 10.0**power)[1]
        parts += [line(left, y, WIDTH - right, y), text(left - 8, y + 4, f"{10.0**power:,g}", anchor="end")]
    for x in sorted(set(xs)):
        parts.append(text(place(x, 1)[0], top + height + 18, f"{x:,.0f}", anchor="middle"))
    parts.append(text(left + (WIDTH - left - right) / 2, top + height + 38, xlabel, anchor="middle"))
    ends = []
    for i, name in enumerate(dict.fromkeys(row.series for row in rows)):
        points = [place(float(row.x), row.y) for row in rows if row.series == name]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[i]}" stroke-width="2.5"/>')
        parts += [circle(x, y, 3.5, COLOURS[i]) for x, y in points]
        ends.append((points[-1][1], name, COLOURS[i]))
    below = -math.inf
    for y, name, colour in sorted(ends):  # names that would overlap move down
        below = max(y + 4, below + SIZE + 4)
        parts.append(text(WIDTH - right + 14, below, name, colour=colour))
    return svg(title, top + height + 48, parts)


def scatter(title: str, rows: Sequence[Row], unit: str, xlabel: str) -> str:
    """A point per row with its interval, over a logarithmic x; a thin line leads to its name at the right. A colour per series."""
    left, right, top, height = 46, 200, 76, 330
    series = list(dict.fromkeys(row.series for row in rows))
    xs = [math.log(float(row.x)) for row in rows]
    first, last = min(xs) - 0.3, max(xs) + 0.3
    low = math.floor(min(row.y if row.low is None else row.low for row in rows) / 2) * 2
    high = math.ceil(max(row.y if row.high is None else row.high for row in rows) / 2) * 2

    def across(x: float) -> float:
        return left + (math.log(x) - first) / (last - first) * (WIDTH - left - right)

    def down(y: float) -> float:
        return top + height * (1 - (y - low) / (high - low))

    parts = [text(0, 18, title, bold=True, size=15), text(0, 36, unit)]
    place = float(WIDTH)
    for i, name in reversed(list(enumerate(series))):
        place -= 7.5 * len(name) + 26
        parts += [circle(place + 6, 49, 5, COLOURS[i]), text(place + 17, 53, name)]
    for value in range(low, high + 1, 2 if high - low <= 24 else 10):
        parts += [line(left, down(value), WIDTH - right, down(value)), text(left - 8, down(value) + 4, f"{value}", anchor="end")]
    for tick in (factor * 10.0**power for power in range(-3, 5) for factor in (1, 2, 5)):
        if first <= math.log(tick) <= last:
            parts.append(text(across(tick), top + height + 18, f"{tick:g}", anchor="middle"))
    parts.append(text(left + (WIDTH - left - right) / 2, top + height + 38, xlabel, anchor="middle"))
    below = -math.inf
    for row in sorted(rows, key=lambda row: -row.y):  # names that would overlap move down
        colour, x, y = COLOURS[series.index(row.series)], across(float(row.x)), down(row.y)
        below = max(y + 4, below + SIZE + 4)
        parts.append(line(x, y, WIDTH - right + 8, below - 4, colour=colour, width=0.5))
        if row.low is not None and row.high is not None:
            parts.append(line(x, down(row.low), x, down(row.high), colour=colour, width=2.5))
        parts += [circle(x, y, 5, colour), text(WIDTH - right + 14, below, row.group, colour=colour)]
    return svg(title, max(top + height + 48, below + 10), parts)


def tree() -> str:
    """A token's way down one tree: the first levels whole, then the path alone."""
    found = json.loads((FIGURES / "tree.json").read_text())
    nodes, z = found["nodes"], found["z"]
    shown, top, step, left, width = 5, 62, 56, 30, 500  # levels drawn whole; pixels

    def place(node: int) -> tuple[float, float]:
        level = (node + 1).bit_length() - 1
        return left + (node + 1 - 2**level + 0.5) / 2**level * width, top + level * step

    title = f"The token “{found['token']}” walks down a tree of {found['stored']:,} neurons and uses {len(nodes)} of them"
    parts = [text(0, 18, title, bold=True, size=15), text(0, 37, f"“{found['text']}”, layer {found['layer']} of {found['model']}")]
    visited = set(nodes)
    for node in range(2**shown - 1):
        x, y = place(node)
        if node:
            above = place((node - 1) // 2)
            on = node in visited
            parts.insert(2, line(*above, x, y, colour=COLOURS[1] if on else FAINT, width=3 if on else 1))
        parts.append(circle(x, y, 9 if node in visited else 5, COLOURS[1] if node in visited else FAINT))
    x, y = place(nodes[shown - 1])
    rest = len(nodes) - shown
    for i in range(1, 4):
        parts.append(circle(x, y + 12 + 13 * i, 2.5, COLOURS[1]))
    bottom = y + 76
    parts += [circle(x, bottom, 9, COLOURS[1]), line(left, y + 30, left + width, y + 30, dash="2 5")]
    parts.append(text(left, y + 48, f"{rest} more levels, {found['stored'] - 2**shown + 1:,} more neurons"))
    for level in range(shown):
        turn = "right" if z[level] > 0 else "left"
        parts.append(text(left + width + 28, top + level * step + 5, f"z = {z[level]:+.2f}: add, go {turn}", colour=COLOURS[1]))
    parts.append(text(left + width + 28, bottom + 5, f"z = {z[-1]:+.2f}: add, stop at the leaf", colour=COLOURS[1]))
    return svg(title, bottom + 18, parts)


def measure() -> None:
    """Write tree.json: the path of TOKEN in SENTENCE down the tree of LAYER of the model inside, computed in float32."""
    import fastinfer

    model = fastinfer.load("fastminilm-1x11", dtype="float32", device="cpu")
    tokens = model.tokenizer.encode([SENTENCE])[0].ids
    place = tokens.index(model.tokenizer.raw.token_to_id(TOKEN))
    nodes, z = (path[place, 0] for path in model.routes(SENTENCE)[0][LAYER - 1])
    ffn = model.config.ffn[LAYER - 1]
    found = {"model": "fastminilm-1x11", "text": SENTENCE, "token": TOKEN, "layer": LAYER, "stored": ffn.total - ffn.dense}
    found |= {"nodes": nodes.tolist(), "z": [round(float(value), 4) for value in z]}
    (FIGURES / "tree.json").write_text(json.dumps(found) + "\n")


DRAWN: dict[str, Callable[[], str]] = {
    "tree": tree,
    "cmm-cpu": lambda: curves(
        "A tree 1x11 of 4,095 neurons beside dense layers of 3,072, on the CPU",
        read("cmm-cpu"),
        "microseconds per token, logarithmic; hidden size 768, 2 threads",
        "tokens per call",
    ),
    "cmm-gpu": lambda: curves(
        "A tree 1x11 of 4,095 neurons beside dense layers of 3,072, on a GPU",
        read("cmm-gpu"),
        "microseconds per call, logarithmic; hidden size 768",
        "tokens per call",
    ),
    "scale": lambda: curves(
        "Workers that share a GPU: each tokenises on one core and waits for its turn",
        read("scale"),
        "texts per second, logarithmic; simulated from measured rates",
        "workers",
    ),
    "models-cpu": lambda: bars(
        "Whole models of BERT-base size on the CPU, 32 texts of 128 tokens",
        read("models-cpu"),
        "microseconds per token, less is better; 2 threads",
    ),
    "models-gpu": lambda: bars(
        "Whole models of BERT-base size on a GPU, float16", read("models-gpu"), "times faster than PyTorch's dense model, compiled"
    ),
    "memory": lambda: bars(
        "Memory of a fresh process after its first answer, BERT-base size",
        read("memory"),
        "MB of proportional set size, less is better",
    ),
    "quality": lambda: dots(
        "The model inside, as it ships, beside its teacher",
        read("quality"),
        "per cent, with 95% intervals",
        low=20,
        high=100,
        step=20,
    ),
    "pareto": lambda: scatter(
        "Quality against speed: what a microsecond buys",
        read("pareto"),
        "per cent of the teacher's average over the suite, with 95% intervals",
        "microseconds per token on the CPU, from text, logarithmic",
    ),
    "shapes": lambda: dots(
        "Shapes of trees, distilled and fine-tuned: average of four GLUE tasks",
        read("shapes"),
        "per cent of the dense control, with 95% intervals",
        low=94,
        high=104,
        step=2,
        mark=100,
    ),
}


def main(arguments: list[str] | None = None) -> int:
    """The command line: 0, or 1 with the reason on standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"figures to draw, of {', '.join(DRAWN)} (default: all)")
    parser.add_argument("--measure", action="store_true", help="compute the path of tree.svg again")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(DRAWN))
    if unknown:
        parser.error(f"no figure is named {', '.join(unknown)}; expected some of {', '.join(DRAWN)}")
    try:
        if options.measure:
            measure()
        for name in options.names or DRAWN:
            (FIGURES / f"{name}.svg").write_text(DRAWN[name]())
    except OSError as error:
        print(f"figures: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
