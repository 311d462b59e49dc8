"""Texts a second that processes embed which share one GPU, each with one thread for its tokenizer, as the workers of `fastinfer bulk` do:

    python tools/feed.py --texts sentences.txt                  # 1, 2, 4, 8 and 16 processes on cuda:0; tools/scale.py simulates the same
    python tools/feed.py --texts sentences.txt --device cpu --workers 1,2

The first line is one process that has every core for its tokenizer. Processes load the model, make a portion to warm up, and begin
together. Each takes the lines of the file from a place of its own, a portion at a time. What all of them made in --seconds is counted, and
portions that are unfinished then by their share.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastinfer.arguments import at_least
from fastinfer.bulk.command import ROWS

READY = 120.0  # seconds within which every process has loaded its model


def portion(device: str) -> int:
    """Texts of a portion, as `fastinfer bulk` has them."""
    return ROWS["cuda" if device.startswith("cuda") else "cpu"]


def worker(options: argparse.Namespace, texts: Sequence[str], at: int, begin: Any, made: Any, tokenizer_threads: int | None) -> None:
    """Embed portions, the first from text `at` on, from the moment when all are ready; send when each was done, or what went wrong."""
    try:
        if tokenizer_threads:
            os.environ["RAYON_NUM_THREADS"] = str(tokenizer_threads)
        from fastinfer import load

        model = load(options.model, device=options.device, threads=None if options.device.startswith("cuda") else 1)
        size = portion(options.device)
        portions = ([texts[(at + n * size + i) % len(texts)] for i in range(size)] for n in itertools.count())
        model.embed(next(portions))
        begin.wait(READY)
        start, times = time.perf_counter(), [0.0]
        while times[-1] < options.seconds:
            model.embed(next(portions))
            times.append(time.perf_counter() - start)
        made.put(times)
    except BaseException as error:
        begin.abort()  # nobody waits for this process
        made.put(repr(error))


def portions_by(times: Sequence[float], end: float) -> float:
    """Portions that a process made until `end`, which finished one at each of these times but the first, when it began."""
    done = sum(moment <= end for moment in times) - 1
    return done + (end - times[done]) / (times[done + 1] - times[done]) if done + 1 < len(times) else float(done)


def rate(options: argparse.Namespace, texts: Sequence[str], workers: int, tokenizer_threads: int | None) -> float:
    """Texts a second of so many processes together. Raises SystemExit with what went wrong in one of them."""
    spawn = multiprocessing.get_context("spawn")
    begin, made = spawn.Barrier(workers), spawn.Queue()
    for number in range(workers):
        given = options, texts, number * len(texts) // workers, begin, made, tokenizer_threads
        spawn.Process(target=worker, args=given, daemon=True).start()
    found = [made.get(timeout=READY + 10 * options.seconds) for _ in range(workers)]
    wrong = [times for times in found if isinstance(times, str)]
    if wrong:  # of those that waited for another one, it says nothing
        raise SystemExit(f"feed: a process failed: {min(wrong, key=lambda error: error.startswith('BrokenBarrierError'))}")
    return sum(portions_by(times, options.seconds) for times in found) * portion(options.device) / options.seconds


def counts(given: str) -> list[int]:
    """The numbers in a list with commas."""
    return [at_least(1)(count) for count in given.split(",")]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True, metavar="FILE", help="texts, one a line")
    parser.add_argument("-m", "--model", default="fastminilm", help="(default: the model inside)")
    parser.add_argument("--device", default="cuda:0", help="(default: cuda:0)")
    parser.add_argument("--workers", type=counts, default="1,2,4,8,16", metavar="N,N", help="processes (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, metavar="S", help="of each measurement (default: 4)")
    options = parser.parse_args(arguments)
    texts = [line for line in options.texts.read_text("utf-8").splitlines() if line.strip()]
    if not texts:
        raise SystemExit(f"feed: {options.texts} has no texts, expected one a line")
    print(f"{len(texts):,} texts, {os.cpu_count()} CPUs, {options.model} on {options.device}", flush=True)
    print(f"1 process, every core: {rate(options, texts, 1, None):,.0f} texts/s", flush=True)
    for workers in options.workers:
        print(f"{workers} processes, a core each: {rate(options, texts, workers, 1):,.0f} texts/s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
