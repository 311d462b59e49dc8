"""Rows of results: their ratios, and the lines and tables that show them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .engines import Engine
from .timing import Spread

Row = dict[str, Any]
Report = Callable[[Row], None]


def silent(row: Row) -> None:
    """The Report that prints nothing, for callers who use only the returned rows."""


class Output:
    """Standard output of a benchmark: a line per row or, with as_json, a JSON object per row with the machine's description."""

    def __init__(self, machine: Row, as_json: bool) -> None:
        self.machine = "  ".join(f"{k} {v}" for k, v in machine.items())
        self._about = machine
        self.as_json = as_json

    def row(self, row: Row, line: Callable[[Row], str]) -> None:
        """Print a row. line: the function that formats it for people."""
        print(json.dumps({**row, "machine": self._about}) if self.as_json else line(row), flush=True)

    def say(self, text: str) -> None:
        """Print text that is not a row. With JSON it goes to standard error."""
        print(text, file=sys.stderr if self.as_json else sys.stdout, flush=True)

    def table(self, header: str, line: Callable[[Row], str]) -> Report:
        """The Report of a table of layers, which prints a line per row. The header is printed now, but not with JSON."""
        if not self.as_json:
            print(self.machine)
            print(header, flush=True)
        return lambda row: self.row(row, line)


# --- ratios ----------------------------------------------------------------------------------------


def ladder_rows(spreads: Mapping[str, Spread], tokens: int) -> list[Row]:
    """A row per layer of the paper. spreads: {"dense LEVEL" or "fff LEVEL": us per call}; tokens: tokens per call."""
    us = {name: s.median / tokens for name, s in spreads.items()}
    fastest = min(t for name, t in us.items() if name.startswith("dense"))
    rows = []
    for name, spread in spreads.items():
        other = us.get("dense " + name.removeprefix("fff ")) if name.startswith("fff") else None
        rows.append(
            {
                "op": "ladder",
                "level": name,
                "tokens": tokens,
                "us_per_token": us[name],
                "p10": spread.low / tokens,
                "p90": spread.high / tokens,
                "against_same_level": other / us[name] if other else None,
                "against_best_dense": fastest / us[name],
            }
        )
    return rows


def ratios(name: str, engines: Mapping[str, Engine], times: Mapping[str, float]) -> Row:
    """Speed-ups of a fastinfer engine over each rival, its own dense form, the best rival of its dtype, and the best of all rivals."""
    engine = engines[name]
    speedup = {n: times[n] / times[name] for n, other in engines.items() if engine.own and not other.own}
    same = [speedup[n] for n in speedup if engines[n].dtype == engine.dtype]
    own_dense = times.get(f"fastinfer dense {engine.dtype}") if engine.own and engine.model != "dense" else None
    return {
        "speedup": speedup,
        "against_own_dense": own_dense / times[name] if own_dense else None,
        "against_best_of_dtype": min(same) if same else None,
        "against_best": min(speedup.values()) if speedup else None,
    }


# --- lines of layers -------------------------------------------------------------------------------

CMM_HEADER = (
    f"{'shape':>7} {'tokens':>6} {'dtype':>8} {'us/token':>9} {'p10..p90':>15} {'GB/s':>6} {'GFLOP/s':>7} {'nodes':>6} "
    f"{'x numpy':>8} {'best dense, us':>20} {'x best':>7} {'limit':>6} {'roofline':>8} {'bound by':>12} {'max_err':>8} {'rerouted':>8} "
    f"{'of equal':>8}"
)


def cmm_line(r: Row) -> str:
    """A row of layers.bench_cmm as a line under CMM_HEADER."""
    spread, best = f"{r['p10']:.3f}..{r['p90']:.3f}", f"{r['best_dense']} {r['dense_us'][r['best_dense']]:.2f}"
    numpy = f"{r['speedup']['numpy']:.1f}x" if "numpy" in r["speedup"] else "-"
    equal = f"{r['us_per_token'] / r['equal_us']:.2f}" if "equal_us" in r else "-"  # of the time of a dense layer of equal neurons used
    return (
        f"{r['shape']:>7} {r['tokens']:>6} {r['dtype']:>8} {r['us_per_token']:>9.3f} {spread:>15} {r['gb_per_s']:>6.0f} "
        f"{r['gflop_per_s']:>7.0f} "
        f"{r['nodes_touched']:>6.1%} {numpy:>8} {best:>20} {r['speedup'][r['best_dense']]:>6.1f}x {r['limit']:>5.0f}x "
        f"{r['share_of_roofline']:>8.0%} {r['bound_by']:>12} {r['max_error']:>8.0e} {r['rerouted']:>8.1%} {equal:>8}"
    )


# floor us: the time to move x, y and both rows of each node that can be visited once, at the rate of a copy
GPU_CMM_HEADER = (
    f"{'shape':>6} {'tokens':>6} {'dtype':>8} {'us':>9} {'p10..p90':>19} {'ns/token':>9} {'own dense':>9} {'best dense, us':>26} "
    f"{'x own':>6} {'x best':>6} {'x TF32':>6} {'cold us':>7} {'x cold':>6} {'floor us':>8} {'of floor':>8} {'max_err':>7} {'rerouted':>8} "
    "strategy"
)


# equal: this project's dense layer of as many neurons as a token uses; dense: of 3,072; grouped: other projects' grouped products
GPU_LEAVES_HEADER = (
    f"{'shape':>8} {'D':>5} {'tokens':>6} {'dtype':>8} {'us':>8} {'p10..p90':>17} {'equal us':>8} {'dense us':>8} {'x dense':>7} "
    f"{'floor us':>8} {'max_err':>7} {'walk':>13}  grouped us"
)


def gpu_leaves_line(r: Row) -> str:
    """A row of gpu_layers.bench_cmm for a shape with leaves of several neurons as a line under GPU_LEAVES_HEADER."""
    grouped = ", ".join(f"{name} {us:.1f}" for name, us in r["grouped_us"].items())
    return (
        f"{r['shape']:>8} {r['hidden']:>5} {r['tokens']:>6} {r['dtype']:>8} {r['us']:>8.2f} {r['p10']:>8.2f}..{r['p90']:<7.2f} "
        f"{r['equal_us']:>8.2f} {r['dense_us']['own']:>8.2f} {r['speedup']['own']:>6.1f}x {r['floor_us']:>8.2f} {r['max_error']:>7.0e} "
        f"{r['strategy']:>13}  {grouped or '-'}"
    )


def gpu_cmm_line(r: Row) -> str:
    """A row of gpu_layers.bench_cmm as a line under GPU_CMM_HEADER."""
    spread, best = f"{r['p10']:.2f}..{r['p90']:.2f}", f"{r['best_dense']} {r['dense_us'][r['best_dense']]:.1f}"
    cold, cold_speedup = ("-", "-") if r["cold_us"] is None else (f"{r['cold_us']:.1f}", f"{r['cold_speedup']:.1f}x")
    tf32 = "-" if r["tf32"] is None else f"{r['tf32']:.1f}x"
    return (
        f"{r['shape']:>6} {r['tokens']:>6} {r['dtype']:>8} {r['us']:>9.2f} {spread:>19} {r['ns_per_token']:>9.2f} "
        f"{r['dense_us']['own']:>9.1f} "
        f"{best:>26} {r['speedup']['own']:>5.1f}x {r['speedup'][r['best_dense']]:>5.1f}x {tf32:>6} {cold:>7} {cold_speedup:>6} "
        f"{r['floor_us']:>8.2f} {r['share_of_floor']:>8.0%} {r['max_error']:>7.0e} {r['rerouted']:>8.1%} {r['strategy']}"
    )


GEMM_HEADER = f"{'T x N x K':>16} {'dtype':>8} {'us':>10} {'p10..p90':>19} {'GOP/s':>7} {'f32 FMA peak':>12} {'max_err':>8}  rivals, GOP/s"


def gemm_line(r: Row) -> str:
    """A row of layers.bench_gemm as a line under GEMM_HEADER."""
    size, spread = f"{r['tokens']}x{r['outputs']}x{r['inputs']}", f"{r['p10']:.1f}..{r['p90']:.1f}"
    others = ", ".join(f"{name} {value:.0f}" for name, value in r["rivals_gop_per_s"].items())
    return (
        f"{size:>16} {r['dtype']:>8} {r['us']:>10.1f} {spread:>19} {r['gop_per_s']:>7.0f} {r['fma_peak']:>12.0f} "
        f"{r['max_error']:>8.0e}  {others}"
    )


LADDER_HEADER = f"{'':>14} {'tokens':>6} {'us/token':>9} {'p10..p90':>17} {'x same level':>12} {'x best dense':>12}"


def ladder_line(r: Row) -> str:
    """A row of ladder_rows as a line under LADDER_HEADER."""
    same = f"{r['against_same_level']:.1f}x" if r["against_same_level"] else "-"
    spread = f"{r['p10']:.2f}..{r['p90']:.2f}"
    return f"{r['level']:>14} {r['tokens']:>6} {r['us_per_token']:>9.2f} {spread:>17} {same:>12} {r['against_best_dense']:>11.2f}x"


# --- tables of models ------------------------------------------------------------------------------

# {table: its columns (title, key of the row, width, format)}. Padding does not count as tokens in us per token.
WHO = (("engine", "engine", 24, ""), ("model", "model", 6, ""), ("dtype", "dtype", 8, ""))
SPEED = (("us/token", "us_per_token", 8, ".1f"), ("p10", "p10", 8, ".1f"), ("p90", "p90", 8, ".1f"), ("texts/s", "texts_per_s", 8, ".1f"))
RATIOS = (
    ("x own dense", "against_own_dense", 11, ".2f"),
    ("x best of dtype", "against_best_of_dtype", 15, ".2f"),
    ("x best rival", "against_best", 12, ".2f"),
    ("max_err", "max_error", 7, ".0e"),
    ("mean_err", "mean_error", 8, ".0e"),
)
COLUMNS = {
    "model": (*WHO, *SPEED, *RATIOS),
    "gpu": (  # launch us: launch and wait, minus the graph; host us: call, minus the graph; parts: us per layer
        *WHO,
        ("graph ms", "graph_ms", 8, ".3f"),
        ("p10", "p10", 8, ".3f"),
        ("p90", "p90", 8, ".3f"),
        ("launch us", "launch_us", 9, ".1f"),
        ("call ms", "wall_ms", 8, ".3f"),
        ("host us", "host_us", 7, ".1f"),
        ("states ms", "states_ms", 9, ".3f"),
        ("attention us", "attention_us", 12, ".1f"),
        ("its block", "attention_block_us", 9, ".1f"),
        ("ffn block us", "ffn_block_us", 12, ".1f"),
        *RATIOS,
    ),
    "texts": (*WHO, ("order", "order", 8, ""), *SPEED),
    "queries": (  # ms from one text to its mean, after a pause of so long
        *WHO,
        ("tokens", "tokens", 6, ".1f"),
        *((f"{pause} {p}", f"{pause}_{p}", 8, ".2f") for pause in ("busy", "5ms", "1s") for p in ("p50", "p99")),
    ),
    "apart": (  # each engine in processes of its own
        *WHO,
        *((title, key, 8, ".1f") for title, key in (("texts/s", "texts_per_s"), ("least", "least"), ("most", "most"))),
        ("first answer s", "first_answer_s", 14, ".2f"),
        ("peak MB", "peak_mb", 8, ".0f"),
    ),
    "start": (  # peak is that of a batch of 32x128; PSS is taken after the first answer
        *WHO,
        ("load s", "load_s", 7, ".2f"),
        ("first answer s", "first_answer_s", 14, ".2f"),
        ("peak MB", "peak_mb", 8, ".0f"),
        ("PSS MB", "pss_mb", 7, ".0f"),
        ("stored MB", "stored_mb", 9, ".0f"),
        ("installed MB", "installed_mb", 12, ".0f"),
    ),
}


def header(op: str) -> str:
    """The titles of a table of models: "model", "gpu", "texts", "queries", "apart" or "start"."""
    return " ".join(f"{title:>{width}}" for title, _, width, _ in COLUMNS[op])


def line(row: Row) -> str:
    """A row as a line under its table's header."""
    cells = (("-" if row[key] is None else format(row[key], spec), width) for _, key, width, spec in COLUMNS[row["op"]])
    return " ".join(f"{cell:>{width}}" for cell, width in cells)


def table(rows: Sequence[Row]) -> str:
    """A table of microseconds per token, or of a GPU's milliseconds per batch, with a line per engine and a column per size."""
    title, key, spec = ("ms", "graph_ms", ".3f") if rows[0]["op"] == "gpu" else ("us per token", "us_per_token", ".1f")
    sizes = list(dict.fromkeys((r["texts"], r["tokens"]) for r in rows))
    times = {(r["engine"], r["model"], r["dtype"], r["texts"], r["tokens"]): format(r[key], spec) for r in rows}
    lines = [f"{title:<41}" + "".join(f"{'x'.join(map(str, s)):>9}" for s in sizes)]
    for who in dict.fromkeys(key[:3] for key in times):
        lines.append(f"{who[0]:>24} {who[1]:>6} {who[2]:>8} " + "".join(f"{times.get(who + s, '-'):>9}" for s in sizes))
    return "\n".join(lines)
