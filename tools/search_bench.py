"""How fast and how exact fastinfer.Index searches, beside NumPy, faiss and usearch: tools/search_bench.py --rows 20000 --threads 1

    pip install faiss-cpu usearch
    python tools/search_bench.py --rows 1000000 --threads 2 --queries 1
    python tools/search_bench.py --texts sentences.txt --precision int8

Vectors are drawn anew in each run, in clusters, as texts have them; or they are embeddings of a file of texts, a line each. Engines take
turns.
Answers in float32 are compared with products in float64 before anything is timed; scores closer than 1e-6 count as equal.
Recall is the share of the ten best that float32 finds, too. Engines have copies of the vectors: a million take 6 GB.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

TOP = 10
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CLUSTERS = 2000  # of the vectors that are drawn
SPREAD = 0.9  # length of a vector's part that is not its cluster's, which has length 1
SECONDS = 4.0  # an engine gets no more turns after this


def drawn(rng: Any, rows: int, dim: int, centres: Any) -> Any:
    """(rows, dim) float32 of length 1 around the centres, made in place."""
    import numpy as np

    out = np.empty((rows, dim), np.float32)
    for first in range(0, rows, 1 << 14):
        block = out[first : first + (1 << 14)]
        rng.standard_normal(out=block, dtype=np.float32)
        block *= SPREAD / np.sqrt(dim)
        block += centres[rng.integers(0, len(centres), len(block))]
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    return out


def data(args: argparse.Namespace, model: Any) -> tuple[Any, Any, str]:
    """(vectors, queries, what they are). Queries are not among the vectors."""
    import numpy as np

    seed = np.random.SeedSequence()
    rng = np.random.default_rng(seed)
    if args.texts:
        with open(args.texts, encoding="utf-8") as file:
            texts = list(dict.fromkeys(line.strip() for line in file if line.strip()))
        rng.shuffle(texts)
        vectors = model.embed(texts[: args.rows + 1000], progress=sys.stderr.isatty())
        return vectors[1000:], vectors[:1000], f"embeddings of {len(vectors) - 1000} lines of {args.texts}"
    centres = rng.standard_normal((CLUSTERS, args.dim), dtype=np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    what = f"{args.rows} vectors of {args.dim} numbers in {CLUSTERS} clusters, drawn from seed {seed.entropy}"
    return drawn(rng, args.rows, args.dim, centres), drawn(rng, 1000, args.dim, centres), what


def own(model: Any, precision: str, threads: int) -> Callable[[Any, int], Callable[[Any, int], Any]]:
    def build(vectors: Any, _: int) -> Callable[[Any, int], Any]:
        import numpy as np

        import fastinfer

        index = fastinfer.Index(model, precision=precision)
        index.add(vectors)
        return lambda queries, k: np.array([[row for row, _ in found] for found in index.search(queries, k, threads=threads)])

    return build


def true_best(vectors: Any, queries: Any) -> Any:
    """The rows of the TOP largest products in float64, and the products: (Q, TOP) each."""
    import numpy as np

    scores, rows = np.empty((len(queries), 0)), np.empty((len(queries), 0), np.int64)
    for first in range(0, len(vectors), 1 << 14):
        new = queries.astype(np.float64) @ vectors[first : first + (1 << 14)].T.astype(np.float64)
        scores = np.concatenate([scores, new], 1)
        rows = np.concatenate([rows, np.broadcast_to(np.arange(first, first + new.shape[1]), new.shape)], 1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
        scores, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
    return rows, scores


def turns(
    engines: dict[str, Callable[[Any, int], Any]], batches: Iterator[Any], repeats: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Milliseconds of each engine's calls. Each turn has other queries, the same for all engines."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(repeats):
        queries = next(batches)
        for name, search in engines.items():
            if sum(times[name]) < 1e3 * SECONDS:
                begin = clock()
                search(queries, TOP)
                times[name].append(1e3 * (clock() - begin))
    return times


def asked(queries: Any, size: int) -> Iterator[Any]:
    """Yield batches of queries, drawn anew."""
    import numpy as np

    rng = np.random.default_rng()
    while True:
        yield queries[rng.integers(0, len(queries), size)]


def resident() -> float:
    """MB that the process has in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(args: argparse.Namespace) -> None:
    import numpy as np
    from rivals import search as rivals

    import fastinfer

    model = fastinfer.load(device="cpu", threads=args.threads)
    vectors, queries, what = data(args, model)
    print(
        f"{what}; {args.threads} threads; {args.clock} time; {rivals.versions()}; fastinfer {fastinfer.__version__} on {model.device}",
        flush=True,
    )
    checked = queries[-100 if len(vectors) < 100_000 else -10 :]
    truth, scores = true_best(vectors, checked)
    for precision in args.precision.split(","):
        engines, memory = {}, {}
        for name, build in {"fastinfer": own(model, precision, args.threads), **rivals.ENGINES[precision]}.items():
            before = resident()
            try:
                engines[name] = build(vectors, args.threads)
            except ImportError as error:
                print(f"left out: {name} ({error})", file=sys.stderr)
                continue
            memory[name] = resident() - before
        recall = {name: recalled(vectors, checked, search(checked, TOP), truth, scores) for name, search in engines.items()}
        for name, share in recall.items():
            if precision == "float32" and share < 1:
                sys.exit(f"{name} misses {1 - share:.1%} of the best")
        for size in map(int, args.queries.split(",")):
            for name, times in turns(engines, asked(queries[:-100], size), args.repeats, CLOCKS[args.clock]).items():
                low, middle, high = np.percentile(times, [25, 50, 75])
                print(
                    f"{precision:8} {size:4} queries  {name:26} {middle:9.2f} ms  (quartiles {low:.2f} to {high:.2f}, {len(times)} turns)  "
                    f"recall {recall[name]:.3f}  {memory[name]:7.0f} MB",
                    flush=True,
                )


def recalled(vectors: Any, queries: Any, found: Any, truth: Any, scores: Any) -> float:
    """The share of rows that are among the true best, or as good as the last of them within what float32 tells apart."""
    import numpy as np

    got = np.einsum("qkd,qd->qk", vectors[found].astype(np.float64), queries.astype(np.float64))
    return float((got >= scores[:, -1:] - 1e-6).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20000, help="vectors (default: 20000)")
    parser.add_argument("--dim", type=int, default=384, help="numbers of a vector that is drawn (default: 384)")
    parser.add_argument("--texts", metavar="FILE", help="embed the lines of FILE; 1000 of them become queries")
    parser.add_argument("--queries", default="1,100", help="queries of a call (default: 1,100)")
    parser.add_argument("--precision", default="float32,int8,binary", help="default: float32,int8,binary")
    parser.add_argument("--threads", type=int, default=1, help="threads of each engine (default: 1)")
    parser.add_argument("--repeats", type=int, default=15, help="turns of each engine (default: 15)")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: time of all threads, for a machine that others use (default: wall)"
    )
    args = parser.parse_args()
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # read as NumPy and faiss are imported
        os.environ[name] = str(args.threads)
    measure(args)


if __name__ == "__main__":
    main()
