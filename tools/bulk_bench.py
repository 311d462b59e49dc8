"""How `fastinfer bulk embed` does with an engine beside one process of as many threads:

    pip install pyarrow 'ray[data]' 'dask[dataframe]' distributed pyspark
    python tools/bulk_bench.py rate ray --texts sentences.txt --seconds 25
    python tools/bulk_bench.py kill local ray dask spark --texts sentences.txt --rows 100000
    python tools/bulk_bench.py memory --texts sentences.txt --rows 100000

rate    texts a second, and CPU seconds a thousand texts of all processes, between the first portions and the last one: start-up is apart.
        The engine and one process take turns; each run is stopped when its time is over
kill    the whole table, with one of an engine's workers killed (SIGKILL) in the middle; equal digests are equal files
memory  the most memory of one process for the first twentieth of the table, and for all of it, in one group of rows

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
START = 90  # seconds that an engine may take to start


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


def parents() -> dict[int, tuple[int, float]]:
    """{process: (its parent, its CPU seconds)} of all processes."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                fields = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()
                found[int(name)] = int(fields[1]), (int(fields[11]) + int(fields[12])) / TICKS
    return found


def cpu_seconds(root: int) -> float:
    """CPU seconds of a process and of all that it started, so far as they live."""
    known = parents()

    def below(process: int) -> bool:
        while process in known and process != root:
            process = known[process][0]
        return process == root

    return sum(seconds for process, (_, seconds) in known.items() if below(process))


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
                process.send_signal(signal.SIGINT)
            process.wait(60)
            if process.returncode not in (0, 130):
                said.seek(0)
                print(said.read()[-3000:], file=sys.stderr)


# --- what is measured --------------------------------------------------------------------------------------


def rate(args: argparse.Namespace, folder: Path) -> None:
    from fastinfer.bulk.command import ROWS

    source = table_of(args, folder / "in.parquet", args.rows)
    rates: dict[str, list[float]] = {engine: [] for engine in dict.fromkeys(["local", *args.engines])}
    for turn in range(args.turns):
        for engine in rates:
            target = folder / f"{engine}{turn}.parquet"
            begin = time.time()
            with started(source, target, engine, args.workers) as process:
                while len(made(target)) < 2 * args.workers and process.poll() is None and time.time() < begin + START:
                    time.sleep(0.05)
                first, cpu, count = time.time(), cpu_seconds(process.pid), len(made(target))
                while time.time() < first + args.seconds and process.poll() is None:
                    time.sleep(0.05)
                spent, times = cpu_seconds(process.pid) - cpu, made(target)
            if len(times) < count + 3:
                print(f"{engine}: {len(times)} portions are too few to tell", flush=True)
                continue
            texts = ROWS["cpu"] * (len(times) - count)
            rates[engine].append(texts / (times[-1] - times[count - 1]))
            each = 1000 * spent / texts
            print(f"{engine:>6}: {rates[engine][-1]:7.1f} texts/s, {each:5.2f} CPU s per 1000, start {times[0] - begin:5.1f} s", flush=True)
    for engine, found in rates.items():
        if found and rates["local"]:
            ratio = statistics.median(rates["local"]) / statistics.median(found)
            print(f"{engine:>6}: median {statistics.median(found):7.1f} texts/s, {ratio - 1:+.1%} time against local")


def kill(args: argparse.Namespace, folder: Path) -> None:
    from fastinfer.bulk.command import ROWS

    source = table_of(args, folder / "in.parquet", args.rows)
    middle = -(-args.rows // ROWS["cpu"]) // 2
    for engine in args.engines:
        target, killed, begin = folder / f"{engine}.parquet", 0, time.time()
        with started(source, target, engine, args.workers) as process:
            while process.poll() is None:
                time.sleep(0.2)
                count = len(made(target))
                if engine != "local" and not killed and count >= middle and (found := readers(source, process.pid)):
                    os.kill(found[0], signal.SIGKILL)
                    killed = count
        digest = hashlib.sha256(target.read_bytes()).hexdigest() if target.exists() else "no file"
        said = f"a worker killed after {killed} portions" if killed else "no worker killed"
        print(f"{engine:>6}: {time.time() - begin:4.0f} s, {said}, SHA-256 {digest}", flush=True)


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
    parser.add_argument("what", choices=["rate", "kill", "memory"])
    parser.add_argument("engines", nargs="*", metavar="ENGINE", help="local, ray, dask or spark")
    parser.add_argument("--texts", type=Path, metavar="FILE", help="texts, one a line (default: random sentences)")
    parser.add_argument("--rows", type=int, default=100_000, metavar="N")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes of one thread; of one process, threads (default: 2)")
    parser.add_argument("--seconds", type=float, default=25, metavar="S", help="of each run that is timed (default: 25)")
    parser.add_argument("--turns", type=int, default=1, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        {"rate": rate, "kill": kill, "memory": memory}[args.what](args, Path(folder).resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
