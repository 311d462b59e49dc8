"""How many texts a second machines embed, what saturates first, what a billion texts cost, and how many workers feed a GPU:

    python tools/scale.py                                # the tables of docs/scale.md
    python tools/scale.py --tokenise 8000 --gpu 300000   # with other rates
    python tools/scale.py --save                        # also docs/figures/scale.csv, for tools/figures.py

Every number is an option. Those of Rates were measured, those of Assumed are named assumptions: put yours in their place.

A worker of `fastinfer bulk` on a GPU reads a portion, tokenises it on one core, waits for its turn on the GPU, computes, and writes. So N
workers and one GPU are a closed queue: limit() bounds its rate, exact() solves it for exponential times (mean value analysis), and
simulate() runs it event by event with times of any spread. farm() runs workers that are lost now and then and begin a portion again.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
WORKERS = (1, 2, 4, 8, 16, 32, 64)  # that share a GPU, in the figure
ROUNDS = 400  # portions that each worker of a simulated queue makes, at least
LEAST = 20_000  # portions of a simulated queue
SEED = 18


@dataclass(frozen=True)
class Rates:
    """What was measured: docs/scale.md says where."""

    tokens: float = 32.3  # of a text
    text_bytes: float = 141  # of a text in UTF-8
    vector_bytes: float = 1548  # of a row of 384 float32 in a .parquet file, with its text's code
    tokenise: float = 10_500  # texts/s of a core
    read: float = 505_000  # texts/s of a core, from .parquet to Python
    write: float = 215_000  # texts/s of a core, vectors to .parquet
    cpu: float = 800  # texts/s of a core, from text to vectors
    gpu: float = 385_000  # texts/s of a GPU, from ids


@dataclass(frozen=True)
class Assumed:
    """What a reader may know better."""

    disk: float = 1e9  # bytes/s
    network: float = 1.25e9  # bytes/s: 10 Gbit/s
    core_price: float = 0.04  # for an hour of a core
    gpu_price: float = 4.0  # for an hour of a machine with one GPU
    gpu_cores: float = 16  # of that machine
    spread: float = 0.2  # standard deviation of a portion's time over its mean
    lost: float = 0.1  # workers lost, for each worker and hour
    restart: float = 30.0  # seconds until a lost worker is replaced
    portion: float = 1024  # texts of a portion on a CPU
    gpu_portion: float = 32_768  # texts of a portion on a GPU


# --- one machine -------------------------------------------------------------------------------------------


def capacities(rates: Rates, assumed: Assumed) -> dict[str, float]:
    """{resource of a machine with one GPU: texts/s at which it is full}. The smallest saturates first."""
    return {
        "tokenising, all cores": assumed.gpu_cores * rates.tokenise,
        "the GPU": rates.gpu,
        "writing .parquet, one core": rates.write,
        "reading .parquet, one core": rates.read,
        "disk, vectors out": assumed.disk / rates.vector_bytes,
        "network, vectors out": assumed.network / rates.vector_bytes,
        "network, texts in": assumed.network / rates.text_bytes,
    }


def seconds(rates: Rates, portion: float) -> tuple[float, float]:
    """(seconds of a core, seconds of the GPU) that a portion takes."""
    return portion * (1 / rates.tokenise + 1 / rates.read + 1 / rates.write), portion / rates.gpu


def limit(workers: int, core: float, gpu: float) -> float:
    """Portions a second that no number of workers on one GPU can exceed."""
    return min(workers / (core + gpu), 1 / gpu)


def exact(workers: int, core: float, gpu: float) -> float:
    """Portions a second of a closed queue whose times are exponential: mean value analysis, one worker more at a time."""
    waiting, rate = 0.0, 0.0
    for count in range(1, workers + 1):
        answer = gpu * (1 + waiting)  # a worker finds what count - 1 workers leave in the queue
        rate = count / (core + answer)
        waiting = rate * answer
    return rate


def simulate(workers: int, core: float, gpu: float, spread: float, rng: np.random.Generator) -> float:
    """Portions a second of the queue with times of this spread, event by event; the first fifth of the time is left out."""
    rounds = max(ROUNDS, LEAST // workers)
    cores, gpus = (drawn(mean, spread, (workers, rounds), rng) for mean in (core, gpu))
    arrivals = [(float(cores[worker, 0]), worker, 0) for worker in range(workers)]
    heapq.heapify(arrivals)
    free, ends = 0.0, []
    while arrivals:
        time, worker, done = heapq.heappop(arrivals)
        free = max(free, time) + float(gpus[worker, done])
        ends.append(free)
        if done + 1 < rounds:
            heapq.heappush(arrivals, (free + float(cores[worker, done + 1]), worker, done + 1))
    first, last = len(ends) // 5, len(ends) * 4 // 5  # at the end, some workers have nothing to do any more
    return (last - first) / (ends[last] - ends[first])


def drawn(mean: float, spread: float, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Positive times with this mean and standard deviation over mean: gamma."""
    return np.full(shape, mean) if spread == 0 else rng.gamma(spread**-2, mean * spread**2, shape)


# --- many workers ------------------------------------------------------------------------------------------


def farm(
    portions: int, workers: int, mean: float, spread: float, lost: float, restart: float, rng: np.random.Generator
) -> tuple[float, int]:
    """(seconds until the last portion is made, workers that were lost) where each takes the next portion when it is free.

    lost  workers lost for each worker and second; the portion that one had begun is made again, by another
    """
    free, end, losses = [0.0] * workers, 0.0, 0
    for time in drawn(mean, spread, (portions,), rng):
        begin = heapq.heappop(free)
        while lost and (survived := float(rng.exponential(1 / lost))) < time:
            losses += 1
            heapq.heappush(free, begin + survived + restart)
            begin = heapq.heappop(free)
        heapq.heappush(free, begin + float(time))
        end = max(end, begin + float(time))
    return end, losses


def expected_loss(portions: int, workers: int, mean: float, lost: float, restart: float) -> float:
    """What farm() takes beyond its work, as a share: half a portion and a restart for each loss, and the wait for the last portion."""
    return lost * (mean / 2 + restart) + mean / 2 * workers / (portions * mean)


# --- tables ------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def figure(rates: Rates, assumed: Assumed) -> list[tuple[str, int, int]]:
    """(series, workers, texts/s) of docs/figures/scale.csv: one GPU shared by workers."""
    rng = np.random.default_rng(SEED)
    core, gpu = seconds(rates, assumed.gpu_portion)
    rows = []
    for workers in WORKERS:
        found = limit(workers, core, gpu), simulate(workers, core, gpu, assumed.spread, rng), exact(workers, core, gpu)
        names = "limit", "simulated", "exponential times"
        rows += [(name, workers, round(rate * assumed.gpu_portion, -2)) for name, rate in zip(names, found, strict=True)]
    return [(name, workers, int(rate)) for name, workers, rate in rows]


def report(rates: Rates, assumed: Assumed) -> str:
    """The tables of docs/scale.md."""
    full = sorted(capacities(rates, assumed).items(), key=lambda item: item[1])
    parts = [table(["resource of a machine with a GPU", "full at texts/s"], [[name, f"{rate:,.0f}"] for name, rate in full])]
    core, gpu = seconds(rates, assumed.gpu_portion)
    parts.append(f"a portion of {assumed.gpu_portion:,.0f} texts: {core:.2f} s of a core, {gpu:.3f} s of the GPU; workers that feed it: ")
    parts[-1] += f"({core:.2f} + {gpu:.3f}) / {gpu:.3f} = {(core + gpu) / gpu:.1f}"
    rows = figure(rates, assumed)
    head = ["workers", *dict.fromkeys(name for name, *_ in rows)]
    parts.append(table(head, [[str(w), *(f"{rate:,}" for _, workers, rate in rows if workers == w)] for w in WORKERS]))
    machine = min(full[0][1], fed_rate(rates, assumed))
    price = {"a CPU core": (rates.cpu, assumed.core_price), "a machine with a GPU": (machine, assumed.gpu_price)}
    lines = []
    for name, (rate, hour) in price.items():
        hours = 1e9 / rate / 3600
        lines.append([name, f"{rate:,.0f}", f"{hours:,.1f} h", f"{hour:g}", f"{hours * hour:,.1f}"])
    parts.append(table(["", "texts/s", "a billion texts", "price of an hour", "price of a billion"], lines))
    lines = []
    for workers in (16, 256, 4096):
        texts = 1e9
        portions, mean = math.ceil(texts / assumed.portion), assumed.portion / rates.cpu
        end, losses = farm(portions, workers, mean, assumed.spread, assumed.lost / 3600, assumed.restart, np.random.default_rng(SEED))
        share = end / (texts / rates.cpu / workers) - 1
        want = expected_loss(portions, workers, mean, assumed.lost / 3600, assumed.restart)
        lines.append([f"{workers:,}", f"{end / 3600:,.2f} h", f"{losses:,}", f"{share:.2%}", f"{want:.2%}"])
    parts.append(table(["CPU workers", "a billion texts", "workers lost", "beyond the work, simulated", "by the formula"], lines))
    return "\n\n".join(parts)


def fed_rate(rates: Rates, assumed: Assumed) -> float:
    """Texts a second of a GPU that a worker for each core of its machine feeds, times of the assumed spread."""
    core, gpu = seconds(rates, assumed.gpu_portion)
    rate = simulate(int(assumed.gpu_cores), core, gpu, assumed.spread, np.random.default_rng(SEED))
    return rate * assumed.gpu_portion


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = (Rates, Assumed)
    for kind in kinds:
        group = parser.add_argument_group(kind.__name__.lower())
        for field in dataclasses.fields(kind):
            group.add_argument(
                f"--{field.name.replace('_', '-')}", type=float, default=field.default, metavar="X", help=f"{field.default:g}"
            )
    parser.add_argument("--save", action="store_true", help="write docs/figures/scale.csv")
    options = parser.parse_args(arguments)
    rates, assumed = (kind(**{field.name: getattr(options, field.name) for field in dataclasses.fields(kind)}) for kind in kinds)
    wrong = [name for name, value in (vars(rates) | vars(assumed)).items() if value <= 0 and name not in ("spread", "lost", "restart")]
    if wrong:
        parser.error(f"--{wrong[0].replace('_', '-')} is {getattr(options, wrong[0]):g}, expected a number above 0")
    print(report(rates, assumed))
    if options.save:
        lines = [f"{name},{name},{workers},{rate}" for name, workers, rate in figure(rates, assumed)]
        head = ["# python tools/scale.py --save", "# simulated, from the rates of docs/scale.md", "# y: texts per second of one GPU"]
        (FIGURES / "scale.csv").write_text("\n".join([*head, "group,series,x,y", *lines]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
