"""Timing of functions on the CPU. They take turns, and each gets a median with its spread."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

INPUTS = 8  # different random inputs that take turns
TURN_SECONDS = 0.05  # seconds of timed calls per turn
LONG_SECONDS = 0.5  # seconds: longer calls are not preceded by untimed ones
PAUSE_SECONDS = 0.05  # seconds between turns: OpenBLAS threads spin for about 20 ms after a call
EVICT_BYTES = 128 << 20  # bytes read before each cold call, meant to exceed every cache
MASKED_ENV = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # some machines set these, and they halve numpy's speed

Run = Callable[[Any], Any]


class Spread(NamedTuple):
    """Microseconds per call: median, 10th and 90th percentile."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, times: Sequence[float]) -> Spread:
        """The Spread of measured microseconds."""
        return cls(*np.percentile(times, [50, 10, 90]).tolist())


def latencies(runs: Mapping[str, Run], inputs: Sequence[Any], *, pause: float, calls: int) -> dict[str, tuple[float, float]]:
    """{name: (median, 99th percentile)} of milliseconds of a call that follows `pause` seconds of sleep.

    The runs take turns, of a tenth of the calls each; PAUSE_SECONDS and an untimed call precede a turn.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(10):
        for name, run in runs.items():
            time.sleep(PAUSE_SECONDS)
            run(inputs[turn % len(inputs)])
            while len(times[name]) < calls * (turn + 1) // 10:
                if pause:
                    time.sleep(pause)
                start = time.perf_counter()
                run(inputs[len(times[name]) % len(inputs)])
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: (float(np.percentile(t, 50)), float(np.percentile(t, 99))) for name, t in times.items()}


def reexecute(threads: int) -> None:
    """Restart this process with `threads` threads for BLAS and without MASKED_ENV, unless its environment is so already."""
    wanted = {f"{lib}_NUM_THREADS": str(threads) for lib in ("OPENBLAS", "MKL", "OMP")}
    if all(os.environ.get(k) == v for k, v in wanted.items()) and not any(k in os.environ for k in MASKED_ENV):
        return
    environment = {k: v for k, v in os.environ.items() if k not in MASKED_ENV} | wanted
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def interleaved(
    runs: Mapping[str, Run],
    inputs: Sequence[Any],
    *,
    seconds: float,
    cold: bool = False,
    least: int = 7,
    pause: float = PAUSE_SECONDS,
) -> dict[str, Spread]:
    """The Spread of each run. The runs take turns, each for about `seconds` in all and at least `least` calls. The inputs rotate.

    cold   evict caches before each timed call
    pause  seconds of sleep at the start of a turn: thread pools of BLAS spin after their last call and would slow the next run

    A turn is a pause, two untimed calls (none if calls are long), then timed calls for TURN_SECONDS.
    """
    evict = np.ones(EVICT_BYTES // 4, np.float32) if cold else None
    times: dict[str, list[float]] = {name: [] for name in runs}
    spent, last = dict.fromkeys(runs, 0.0), dict.fromkeys(runs, 0.0)
    waiting = list(runs)
    call = 0
    while waiting:
        for name in waiting:
            run, turn = runs[name], 0.0
            time.sleep(pause)
            for x in (inputs[0], inputs[-1]):
                if last[name] < LONG_SECONDS:
                    start = time.perf_counter()
                    run(x)
                    last[name] = time.perf_counter() - start
            while turn < TURN_SECONDS:
                x = inputs[call % len(inputs)]
                call += 1
                if evict is not None:
                    evict.max()
                start = time.perf_counter()
                run(x)
                last[name] = took = time.perf_counter() - start
                times[name].append(took * 1e6)
                turn += took
            spent[name] += turn
        waiting = [n for n in waiting if len(times[n]) < least or spent[n] < seconds]
    return {name: Spread.of(t) for name, t in times.items()}
