"""How `fastinfer bulk embed` does with an engine beside one process of as many threads:

    pip install pyarrow 'ray[data]' 'dask[dataframe]' distributed pyspark
    python tools/bulk_bench.py engines local ray dask spark --texts sentences.txt --rows 100000
    python tools/bulk_bench.py memory --texts sentences.txt --rows 100000

engines  embeds the whole table with each engine. Texts a second, and CPU seconds a thousand texts of workers and of all other processes
         of the engine, are those between the first portions and the middle of the table, so start-up is apart. Then a worker of an
         engine is killed (SIGKILL). With --no-kill none is, and the last portions end what is measured. Equal digests are equal files
memory   the most memory of one process for the first twentieth of the table, and for all of it, in one group of rows

Texts are the lines of a file, in the order that --seed gives, or random sentences. It reads /proc, so it needs Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

WORDS = ["a", "the", "of", "in", "rice", "cat", "boil", "bank", "rate", "river", "train", "slowly", "raised", "question", "letter"]
TICKS = os.sysconf("SC_CLK_TCK")


def table_of(args: argparse.Namespace, path: Path, rows: int) -> Path:
    """A .parquet file of texts, in one group of rows."""
    import pyarrow as pa
    from pyarrow import parquet

    rng = random.Random(args.seed)
    if args.texts:
        texts = [line for line in args.texts.read_text("utf-8").splitlines() if line.strip()]
        rng.shuffle(texts)
        texts = (texts * (rows // len(texts) + 1))[:rows]
    else:
        texts = [" ".join(rng.choices(WORDS, k=rng.choice([4, 8, 8, 16, 16, 30, 60]))) for _ in range(rows)]
    parquet.write_table(pa.table({"id": range(rows), "text": texts}), path, row_group_size=rows)
    return path


def command(source: Path, target: Path, engine: str, workers: int) -> list[str]:
    how = ["--threads", str(workers)] if engine == "local" else ["--threads", "1", "--workers", str(workers)]
    return [sys.executable, "-m", "fastinfer", "bulk", "embed", str(source), str(target), "--engine", engine, *how]


# --- processes ---------------------------------------------------------------------------------------------


def parents() -> dict[int, tuple[int, str, float]]:
    """{process: (its parent, its name, its CPU seconds)} of all processes."""
    found = {}
    for process in os.listdir("/proc"):
        if process.isdigit():
            with contextlib.suppress(OSError):
                name, _, rest = Path("/proc", process, "stat").read_text().partition("(")[2].rpartition(")")
                fields = rest.split()
                found[int(process)] = int(fields[1]), name, (int(fields[11]) + int(fields[12])) / TICKS
    return found


def cpu_seconds(root: int) -> dict[int, tuple[str, float]]:
    """{process: (its name, its CPU seconds)} of a process and of all that it started, so far as they live."""
    known = parents()

    def below(process: int) -> bool:
        while process in known and process != root:
            process = known[process][0]
        return process == root

    return {process: (name, seconds) for process, (_, name, seconds) in known.items() if below(process)}


def by_name(before: dict[int, tuple[str, float]], after: dict[int, tuple[str, float]], workers: list[int]) -> dict[str, float]:
    """{"workers" or the name of other processes: CPU seconds between two looks at them}."""
    spent: dict[str, float] = {}
    for process, (name, seconds) in after.items():
        who = "workers" if process in workers else name
        spent[who] = spent.get(who, 0.0) + seconds - before.get(process, (name, 0.0))[1]
    return spent


def readers(source: Path, but: int) -> list[int]:
    """The processes that have a file open, but for one: an engine's workers."""
    found = []
    for process in parents():
        with contextlib.suppress(OSError):
            folder = f"/proc/{process}/fd"
            if process != but and any(os.readlink(f"{folder}/{fd}") == str(source) for fd in os.listdir(folder)):
                found.append(process)
    return found


def made(target: Path) -> list[float]:
    """When each portion appeared."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(path.stat().st_mtime for path in Path(f"{target}.parts").glob("*.arrow"))
    return []


@contextlib.contextmanager
def started(*given: object) -> Iterator[subprocess.Popen[str]]:
    with tempfile.TemporaryFile("w+") as said, subprocess.Popen(command(*given), stdout=said, stderr=said, text=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()  # a shell's process in the background ignores SIGINT
            process.wait(60)
            if process.returncode not in (0, 128 + signal.SIGTERM):
                said.seek(0)
                print(said.read()[-3000:], file=sys.stderr)


# --- what is measured --------------------------------------------------------------------------------------


def slope(times: list[float]) -> float:
    """Portions a second: the least squares line through the numbers of portions over the times when they appeared."""
    middle, half = statistics.fmean(times), (len(times) - 1) / 2
    return sum((t - middle) * (n - half) for n, t in enumerate(times)) / sum((t - middle) ** 2 for t in times)


def engines(args: argparse.Namespace, folder: Path) -> None:
    from fastinfer.bulk.command import ROWS

    source = table_of(args, folder / "in.parquet", args.rows)
    count = -(-args.rows // ROWS["cpu"])
    first, last = 2 * args.workers, count - args.workers if args.no_kill else count // 2
    for engine in args.engines:
        target, killed, begin = folder / f"{engine}.parquet", 0, time.time()
        before: dict[int, tuple[str, float]] = {}
        after: dict[int, tuple[str, float]] = {}
        workers: list[int] = []
        times: list[float] = []
        with started(source, target, engine, args.workers) as process:
            while process.poll() is None:
                time.sleep(0.02)
                if len(times) >= last:
                    continue
                times = made(target)
                before = before or (cpu_seconds(process.pid) if len(times) >= first else {})
                if len(times) >= last:
                    after, workers = cpu_seconds(process.pid), readers(source, -1)
                    if engine != "local" and not args.no_kill:
                        os.kill(next(worker for worker in workers if worker != process.pid), signal.SIGKILL)
                        killed = len(times)
        digest = hashlib.sha256(target.read_bytes()).hexdigest()[:16] if target.exists() else "no file"
        thousands = ROWS["cpu"] * (len(times) - first) / 1000
        spent = {who: seconds / thousands for who, seconds in by_name(before, after, workers).items()}
        work, rate = spent.pop("workers"), ROWS["cpu"] * slope(times[first - 1 :])
        own, most = sum(spent.values()), sorted(spent, key=spent.__getitem__, reverse=True)[:4]
        steady = f"{rate:7.1f} texts/s, CPU s per 1000: workers {work:.3f}, engine {own:.3f} ({own / work:.1%})"
        whose = ", ".join(f"{who} {spent[who]:.3f}" for who in most if spent[who] >= 0.0005)
        start = f"start {times[0] - begin:.1f} s, all {time.time() - begin:.1f} s"
        print(f"{engine:>6}: {steady}; {start}, killed after {killed} portions, SHA-256 {digest}", flush=True)
        if whose:
            print(f"        engine: {whose}", flush=True)


def memory(args: argparse.Namespace, folder: Path) -> None:
    for rows in (args.rows // 20, args.rows):
        source, target = table_of(args, folder / "in.parquet", rows), folder / "out.parquet"
        with started(source, target, "local", args.workers) as process:
            most = 0
            while process.poll() is None:
                with contextlib.suppress(OSError, StopIteration):
                    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                    most = max(most, next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")))
                time.sleep(0.05)
        sizes = f"{source.stat().st_size / 1e6:.1f} MB in, {target.stat().st_size / 1e6:.1f} MB out"
        print(f"{rows} rows, {sizes}: at most {most / 1024:.0f} MB", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["engines", "memory"])
    parser.add_argument("engines", nargs="*", metavar="ENGINE", help="local, ray, dask or spark")
    parser.add_argument("--texts", type=Path, metavar="FILE", help="texts, one a line (default: random sentences)")
    parser.add_argument("--rows", type=int, default=100_000, metavar="N", help="of the table (default: 100000)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes of one thread; of one process, threads (default: 2)")
    parser.add_argument("--no-kill", action="store_true", help="kill no worker")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the texts")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no process and no folder is left
    with tempfile.TemporaryDirectory() as folder:
        {"engines": engines, "memory": memory}[args.what](args, Path(folder).resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
