"""Train many students of one teacher, several at a time, and print a table of them.

    python tools/students.py options --teacher .models/minilm --cache corpus.npz --out runs --seconds 560
    python tools/students.py shapes --teacher .models/minilm --cache corpus.npz --out runs --steps 2400 --seeds 3

A study is a list of flags of `train.py distill`; the runs of a study take the same steps. All runs of the first seed come first. After
--seconds no run starts, and those that still train keep their state: the same command goes on with them, and does not repeat what is done.
Each run is a folder in --out, with a log beside it. The table has the mean over the seeds, and how far they are apart.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.report import METRICS, read_metrics

from fastinfer.errors import FastinferError, InputError

TREE = "--shape '1x6 leaf 64 + 128'"
SHIPPED = "--grow 131072 --lr 2e-3 --lr-rest 4e-4 --fade 0.5"  # what tools/configs/narrow.toml says beside its shape and its time
STUDIES = {
    "points": {  # of the picture of quality and speed, and of GLUE
        "dense 448": f"--shape 'dense 448' {SHIPPED}",
        "1x5 leaf 96 + 256": f"--shape '1x5 leaf 96 + 256' {SHIPPED}",
        "1x11 + 128": f"--shape '1x11 + 128' {SHIPPED}",
        "64x5": f"--shape 64x5 {SHIPPED}",
    },
    "options": {  # of training, with one shape
        "copied": f"{TREE} --copy",
        "grown": f"{TREE} --grow 131072",
        "grown, faded": f"{TREE} --grow 131072 --fade 0.4",
        "grown, soft": f"{TREE} --grow 131072 --soft 0.3",
        "grown, lower rate": f"{TREE} --grow 131072 --lr 5e-4",
        "grown, higher rates": f"{TREE} --grow 131072 --lr 2e-3 --lr-rest 4e-4",
    },
    "shapes": {  # with the same recipe
        "1x6 leaf 64 + 128": f"{TREE} --grow 131072",
        "1x11 + 128": "--shape '1x11 + 128' --grow 131072",
        "dense 140": "--shape 'dense 140' --grow 131072",
        "dense 396": "--shape 'dense 396' --grow 131072",
        "3 layers, 1x6 leaf 64 + 128": f"{TREE} --grow 131072 --layers 0,2,4",
        "3 layers, dense 396": "--shape 'dense 396' --grow 131072 --layers 0,2,4",
        "layers 1,3,5, 1x6 leaf 64 + 128": f"{TREE} --grow 131072 --layers 1,3,5",
        "4 layers, 1x6 leaf 64 + 128": f"{TREE} --grow 131072 --layers 0,1,3,5",
        "1x5 leaf 128 + 128": "--shape '1x5 leaf 128 + 128' --grow 131072",
        "1x6 leaf 64 + 256": "--shape '1x6 leaf 64 + 256' --grow 131072",
        "dense 1536": "--shape 'dense 1536' --grow 131072",
    },
}
COLUMNS = {"validation_embed": "1 - cosine", "validation_hidden": "hidden", "sts_spearman": "STS-B", "tokens_per_second": "tokens/s"}
LAST = 20.0  # seconds before the end at which runs that still train are told to keep their state


def main(arguments: list[str] | None = None) -> int:
    """The command line: 0, or 1 where a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES, help="which runs")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder for the runs")
    parser.add_argument("--runs", nargs="+", metavar="NAME", help="these runs of the study alone, by their names in it")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs of each kind (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1200, metavar="N", help="steps of a run (default: %(default)s)")
    parser.add_argument("--at-once", type=int, default=3, metavar="N", help="runs that share the device (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=float("inf"), metavar="S", help="time after which all runs have stopped")
    parser.add_argument("--teacher", required=True, help="as train.py distill takes it, and so are these:")
    for name in ("beside", "cache", "sts", "batch-tokens", "warmup", "device", "text"):
        parser.add_argument(f"--{name}")
    options = parser.parse_args(arguments)
    try:
        return study(options)
    except (FastinferError, OSError) as error:
        print(f"students: {error}", file=sys.stderr)
        return 1


def study(options: argparse.Namespace) -> int:
    """Train the runs of a study and print their table: 0, or 1 where a run failed."""
    began, kinds = time.monotonic(), STUDIES[options.study]
    chosen = options.runs or list(kinds)
    if unknown := set(chosen) - kinds.keys():
        raise InputError(f"{options.study} has no run {', '.join(sorted(unknown))}; known here: {'; '.join(kinds)}")
    options.out.mkdir(parents=True, exist_ok=True)
    waiting = [(name, seed) for seed in range(options.seeds) for name in chosen]
    training: dict[tuple[str, int], tuple[subprocess.Popen, float]] = {}
    longest, failed = 0.0, []
    while waiting or training:
        left = began + options.seconds - LAST - time.monotonic()
        while waiting and len(training) < options.at_once and left > longest:
            run = waiting.pop(0)
            if not (folder_of(options, *run) / "model").exists():
                training[run] = start(options, kinds[run[0]], *run), time.monotonic()
        if left <= longest and waiting:
            waiting.clear()
        for run, (process, since) in list(training.items()):
            if process.poll() is not None:
                del training[run]
                longest = max(longest, time.monotonic() - since) if process.returncode == 0 else longest
                if process.returncode not in (0, 130, -signal.SIGTERM):  # it was told to stop
                    failed.append(run)
            elif left <= 0:
                process.terminate()
        time.sleep(0.2)
    for name, seed in failed:
        log = folder_of(options, name, seed).with_suffix(".log").read_text().splitlines()
        print(f"{name}, seed {seed}, failed:\n  " + "\n  ".join(log[-5:]), file=sys.stderr)
    print(table(options, chosen))
    return 1 if failed else 0


def folder_of(options: argparse.Namespace, name: str, seed: int) -> Path:
    """The folder of a run."""
    return options.out / f"{options.study}-{name.replace(', ', '-').replace(' + ', '-').replace(' ', '-')}-{seed}"


def start(options: argparse.Namespace, flags: str, name: str, seed: int) -> subprocess.Popen:
    """Start a run, or go on with it."""
    folder = folder_of(options, name, seed)
    command = [sys.executable, str(Path(__file__).with_name("train.py")), "distill", "--out", str(folder)]
    if (folder / "state.pt").exists():
        command.append("--resume")
    else:
        command += ["--teacher", options.teacher, "--steps", str(options.steps), "--seed", str(seed), "--stored", "int8"]
        for key in ("beside", "cache", "sts", "batch_tokens", "warmup", "device", "text"):
            if getattr(options, key) is not None:
                command += [f"--{key.replace('_', '-')}", getattr(options, key)]
        command += ["--validate-every", str(options.steps), *shlex.split(flags)]
    with open(folder.with_suffix(".log"), "a") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def table(options: argparse.Namespace, names: Sequence[str]) -> str:
    """The last validation of each kind of run that has ended: the mean over its seeds, and the distance of the lowest to the highest."""
    rows = [["run", "seeds", *COLUMNS.values()]]
    for name in names:
        folders = [folder_of(options, name, seed) for seed in range(options.seeds)]
        lines = [read_metrics(folder / METRICS)[-1] for folder in folders if (folder / "model").exists()]
        if lines:
            rows.append([name, str(len(lines)), *(cell([line[key] for line in lines if key in line]) for key in COLUMNS)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def cell(values: Sequence[Any]) -> str:
    """The mean of several figures, and how far they are apart."""
    if not values:
        return "-"
    mean, apart = sum(values) / len(values), max(values) - min(values)
    return f"{mean:.4g}" + (f" ({apart:.2g})" if len(values) > 1 else "")


if __name__ == "__main__":
    sys.exit(main())
