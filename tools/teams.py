"""What the threads of each team cost, fastinfer's own and OpenMP's:

    python tools/teams.py --rounds 3

Fresh processes of both teams take turns. Before a time counts, its answer is compared, bit for bit, with that of one thread. Rows with
PyTorch need it: its matrix products run on OpenMP's threads, on the caller's thread in turn with fastinfer, or on another one all the time.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import fastinfer
from fastinfer import PackedBatch, backends
from fastinfer.bench.machine import describe_cpu

THREADS = 2
SECONDS = 0.4  # that a row is measured in a process, but at least LEAST calls
LEAST = 20
PAUSE = 0.005  # seconds
PRODUCT = 1024  # rows and columns of PyTorch's matrices

Times = dict[str, float]


def microseconds(run: Callable[[], Any], pause: float = 0, before: Callable[[], Any] | None = None) -> float:
    """The median time of run(). before() runs ahead of each call and is not counted."""
    times: list[float] = []
    run()
    end = time.perf_counter() + SECONDS
    while len(times) < LEAST or time.perf_counter() < end:
        if pause:
            time.sleep(pause)
        if before:
            before()
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return 1e6 * statistics.median(times)


def checked(run: Callable[[int], np.ndarray]) -> Callable[[], np.ndarray]:
    """run on THREADS threads, after its answer was found to be that of one."""
    if not np.array_equal(run(THREADS), run(1)):
        raise SystemExit("tools/teams.py: the answers of one thread and of a team differ")
    return functools.partial(run, THREADS)


def subjects() -> dict[str, Callable[[], Any]]:
    """What is timed: a call without work, a layer of trees, and embeddings."""
    rng = np.random.default_rng(0)
    kernels: Any = backends.get("cpu", threads=THREADS)
    trees = [rng.standard_normal(shape, np.float32) / 30 for shape in ((1, 4095, 768), (1, 4095), (1, 4095, 768))]
    layer, x = fastinfer.FFF(*trees, depth=11), rng.standard_normal((128, 768), np.float32)
    model = fastinfer.load(device="cpu", threads=THREADS)
    batch = PackedBatch.from_ids(rng.integers(1000, 20000, (8, 128)).tolist())
    return {
        "an empty call": lambda: kernels.kernels.probe_fma(0, THREADS),
        "a layer, 1x11, 128 tokens": checked(lambda threads: layer(x, threads=threads)),
        "embed, one text of 10 tokens": checked(lambda threads: model.embed("Boil the grains, then drain.", threads=threads)),
        "embed, 8x128 tokens": checked(lambda threads: model.embed(batch, threads=threads)),
    }


def cpu_time(run: Callable[[], Any]) -> float:
    """Microseconds of CPU time, of all threads, per call and pause."""
    begin = time.process_time()
    for _ in range(100):
        time.sleep(PAUSE)
        run()
    return 1e6 * (time.process_time() - begin) / 100


def in_fork(run: Callable[[], Any], calls: int) -> float:
    """The median time of the first calls in the children of forks, the start of their threads included."""
    times = []
    for _ in range(calls):
        read, write = os.pipe()
        child = os.fork()
        if not child:
            begin = time.perf_counter()
            run()
            os.write(write, repr(time.perf_counter() - begin).encode())
            os._exit(0)
        times.append(float(os.read(read, 99)))
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)
    return 1e6 * statistics.median(times)


def beside_torch(runs: dict[str, Callable[[], Any]]) -> Times:
    """The rows with PyTorch's threads in the same process."""
    import torch

    torch.set_num_threads(THREADS)
    a = torch.randn(PRODUCT, PRODUCT)
    stop, found = threading.Event(), {"a product of PyTorch": microseconds(lambda: a @ a)}
    for name, run in runs.items():
        found[f"{name}, after a product"] = microseconds(run, before=lambda: a @ a)
        found[f"a product and {name}"] = microseconds(lambda run=run: (a @ a, run()))  # type: ignore[misc]

    def multiply() -> None:
        torch.set_num_threads(THREADS)
        while not stop.is_set():
            a @ a

    busy = threading.Thread(target=multiply)
    busy.start()
    try:
        found |= {f"{name}, beside a thread of products": microseconds(run) for name, run in runs.items()}
    finally:
        stop.set()
        busy.join()
    return found


def measure(torch: bool) -> Times:
    """All rows for the team of this process, in microseconds."""
    if torch:
        import torch as _  # noqa: F401 - before fastinfer looks for an OpenMP library
    runs = subjects()
    embeds = {name: run for name, run in runs.items() if name.startswith("embed")}
    if torch:
        return beside_torch(embeds)
    short = runs["embed, one text of 10 tokens"]
    found = {name: microseconds(run) for name, run in runs.items()}
    found |= {f"{name}, after 5 ms": microseconds(run, PAUSE) for name, run in runs.items() if name != "embed, 8x128 tokens"}
    found["CPU time of an embed, one text, and a pause of 5 ms"] = cpu_time(short)
    found["embed, one text, first in a fork"] = in_fork(short, LEAST)
    return found


def run_process(team: str, torch: bool) -> Times:
    """measure() in a fresh process on a team."""
    environment = os.environ | {"FASTINFER_TEAM": team}
    done = subprocess.run(
        [sys.executable, __file__, "--measure", *["--torch"] * torch], stdout=subprocess.PIPE, env=environment, check=True
    )
    found: Times = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="processes of each team, whose median counts (default: 3)")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--torch", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.torch)))
        return
    try:
        import torch
    except ImportError:
        print("PyTorch is not installed: the rows with it are left out", file=sys.stderr)
        kinds = [False]
    else:
        print(f"PyTorch {torch.__version__}")
        kinds = [False, True]
    print(describe_cpu(backends.get("cpu", threads=THREADS)))
    print("| us | own | openmp |\n|---|---|---|")
    for kind in kinds:
        taken = [(run_process("own", kind), run_process("openmp", kind)) for _ in range(args.rounds)]
        for row in taken[0][0]:
            print(
                f"| {row} | " + " | ".join(f"{statistics.median(pair[i][row] for pair in taken):,.1f}" for i in (0, 1)) + " |", flush=True
            )


if __name__ == "__main__":
    main()
