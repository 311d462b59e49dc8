"""Score embedding models on a broad suite of tasks, and draw quality against speed: python tools/evaluate.py COMMAND

    python tools/evaluate.py suite .models/minilm:float32 fastminilm-1x11 --data suite --out table.json
    python tools/evaluate.py suite mine=runs/student/checkpoint:int8 --data suite --out table.json   # one more column
    python tools/evaluate.py speed fastminilm-1x11 --data suite --out table.json --threads 2
    python tools/evaluate.py join table.json elsewhere.json          # columns of another machine; join table.csv table.json converts
    python tools/evaluate.py static FOLDER .models/static            # model2vec's method, for a further column
    python tools/evaluate.py openvino FOLDER .models/openvino        # its int8 in OpenVINO, for one more
    python tools/evaluate.py pareto table.json ".models/minilm float32=teacher" "fastminilm-1x11=trees"

`suite --help` lists the tasks, and the commands that get their texts.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import figures
from evaluation import models, pareto, tasks
from evaluation.files import chosen
from evaluation.kinds import KINDS, Rows
from evaluation.table import Table

import fastinfer
from fastinfer.arguments import at_least
from fastinfer.errors import FastinferError, InputError, near
from fastinfer.files import replacing
from fastinfer.tokenizer import TruncationWarning

SPEED_TEXTS = 600  # texts whose speed is measured: a few seconds of the slowest model


def suite(options: argparse.Namespace) -> None:
    """Score the models on the tasks, and print the table."""
    entries = [models.entry(given) for given in options.models]
    rows = tasks.read_all(options.data, options.tasks or tasks.TASKS, say)
    if options.pack:
        say(f"{options.pack}: {tasks.pack(rows, options.pack) / 1e6:.1f} MB, {len(rows)} tasks")
    if options.texts:
        with replacing(options.texts) as out:
            out.write("".join(f"{text}\n" for text in distinct(rows)).encode())
    table = start(options.out)
    loaded = opened(entries, table, options)
    for label, model in loaded.items():
        for name, task in rows.items():
            began = time.monotonic()
            table.add(table.named(label), name, task, *task.result(model.embed))
            say(f"{label} on {name}: {table.named(label).scores[name][0]:.2f} ({time.monotonic() - began:.1f} s)")
            if options.out:
                table.write(options.out)
    if entries and options.speed:
        measure(loaded, rows, table, options)
    finish(table, options.out)


def speed(options: argparse.Namespace) -> None:
    """Measure the speed of models again, all in one run, and print the table."""
    entries = [models.entry(given) for given in options.models]
    rows = tasks.read_all(options.data, tasks.TASKS, say)
    table = start(options.out)
    measure(opened(entries, table, options), rows, table, options)
    finish(table, options.out)


def opened(entries: Sequence[models.Entry], table: Table, options: argparse.Namespace) -> dict[str, models.Embedder]:
    """{name: the loaded model} of the entries, each with a column in the table."""
    for entry in entries:
        table.column(entry, *models.about(entry))
    return {entry.name: models.load(entry, options.device, options.threads) for entry in entries}


def measure(loaded: Mapping[str, models.Embedder], rows: Mapping[str, Rows], table: Table, options: argparse.Namespace) -> None:
    """Put the speeds of the loaded models into their columns."""
    threads = options.threads or fastinfer.info()["threads"]
    measured = f"{datetime.datetime.now():%Y-%m-%d %H:%M}, {options.device}, {threads} threads"
    found = models.microseconds(loaded, chosen(distinct(rows), SPEED_TEXTS))
    for name, value in found.items():
        column = table.named(name)
        column.microseconds = round(value, 2)
        column.measured = measured


def join(options: argparse.Namespace) -> None:
    """Join tables of several runs or machines, and print the table."""
    table = start(options.out)
    for path in options.tables:
        table.join(Table.read(path))
    finish(table, options.out)


def static(options: argparse.Namespace) -> None:
    """Write static embeddings of a teacher."""
    say(f"{options.out}: {models.distil_static(options.teacher, options.out):,} tokens of {models.STATIC} dimensions")


def openvino(options: argparse.Namespace) -> None:
    """Write a teacher as an int8 model of OpenVINO, quantised by NNCF with paragraphs of this project's documents."""
    models.quantise(options.teacher, options.out)


def distinct(rows: Mapping[str, Rows]) -> list[str]:
    """All texts of the tasks, each once and on one line."""
    return list(dict.fromkeys(" ".join(text.split()) for task in rows.values() for text in task.texts()))


def start(out: Path | None) -> Table:
    """The table that a run adds to."""
    if out and out.suffix not in (".json", ".csv"):
        raise InputError(f"--out is {out}, expected a .json file, which further runs add to, or a .csv file")
    return Table.read(out) if out and out.suffix == ".json" and out.exists() else Table()


def finish(table: Table, out: Path | None) -> None:
    """Write the table and print it."""
    if not table.columns:
        return
    if out:
        table.write(out)
    print(table.as_markdown())


def say(message: str) -> None:
    print(f"evaluate: {message}", file=sys.stderr)


def draw(options: argparse.Namespace) -> None:
    """Write the points of the picture, and draw it."""
    text = pareto.points(Table.read(options.table), options.points, options.machine)
    with replacing(figures.FIGURES / "pareto.csv") as out:
        out.write(text.encode())
    figures.main(["pareto"])


# --- the command line ------------------------------------------------------------------------------


def listed_tasks() -> str:
    """The tasks, and the commands that get their texts, for --help."""
    lines = [
        f"  {name:24} {task.kind.kind:11} {task.source.folder}{f', {task.seen}' if task.seen else ''}" for name, task in tasks.TASKS.items()
    ]
    scores = [f"  {kind:11} {of.metric}" for kind, of in KINDS.items()]
    clones = [f"  {source.clone}   # {source.terms}" for source in tasks.sources()]
    return "\n".join(
        [
            "The texts, of which nothing comes with fastinfer:\n",
            "  mkdir -p suite && cd suite",
            *clones,
            "\nThe tasks, how they are scored, and the folder of each. The average leaves out those marked tuned (the makers of the model"
            "\ninside chose it by their scores) and text (its training text holds theirs, without labels):\n",
            *lines,
            "",
            *scores,
        ]
    )


def names(given: str) -> list[str]:
    """The names of tasks in a list with commas, as TASKS spells them."""
    known = {name.lower(): name for name in tasks.TASKS}
    odd = [name for name in given.split(",") if name.lower() not in known]
    if odd:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(odd)}{near(odd[0], known)}; expected some of {', '.join(tasks.TASKS)}")
    return [known[name.lower()] for name in given.split(",")]


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = made.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], None], **texts: Any) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name, help=run.__doc__, description=run.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, **texts
        )
        added.set_defaults(run=run)
        return added

    scores, times = command("suite", suite, epilog=listed_tasks()), command("speed", speed)
    for added in (scores, times):
        added.add_argument(
            "models",
            metavar="MODEL",
            nargs="*" if added is scores else "+",
            help="[NAME=]MODEL[:DTYPE]: a checkpoint folder, a model inside, or what static or openvino wrote; NAME heads its column",
        )
        added.add_argument(
            "--data",
            type=Path,
            default=Path("suite"),
            metavar="FOLDER",
            help="folder of the clones, or a file of --pack (default: %(default)s)",
        )
        added.add_argument("--out", type=Path, metavar="FILE", help="table to write: .json, to which further runs add columns, or .csv")
        added.add_argument("--device", default="cpu", help="as in fastinfer.load (default: cpu)")
        added.add_argument("--threads", type=at_least(1), metavar="N", help="threads of the CPU (default: the CPUs this process may use)")
    scores.add_argument("--tasks", type=names, metavar="NAME,...", help="some of the tasks below (default: all)")
    scores.add_argument("--no-speed", dest="speed", action="store_false", help="do not measure the speed")
    scores.add_argument(
        "--pack", type=Path, metavar="FILE", help="write the rows of the tasks into one file, for --data on a machine without the clones"
    )
    scores.add_argument(
        "--texts", type=Path, metavar="FILE", help="write all texts of the tasks, one a line, so that training can leave them out"
    )
    joined = command("join", join)
    joined.add_argument("out", type=Path, metavar="OUT", help="table to write: .json, whose columns are kept if it exists, or .csv")
    joined.add_argument("tables", type=Path, metavar="TABLE.json", nargs="+", help="tables that suite --out wrote")
    made_static = command("static", static)
    made_static.add_argument("teacher", metavar="MODEL", help="folder in the Hugging Face layout")
    made_static.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    made_openvino = command("openvino", openvino)
    made_openvino.add_argument("teacher", metavar="MODEL", help="folder in the Hugging Face layout")
    made_openvino.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    drawn = command("pareto", draw)
    drawn.add_argument("table", type=Path, metavar="TABLE.json", help="what suite --out wrote")
    drawn.add_argument("points", metavar="COLUMN=KIND", nargs="+", help="a column of the table, and the kind that gives it its colour")
    drawn.add_argument("--machine", default="", help="what the speeds were measured on")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: 0, or 1 with the reason on standard error."""
    warnings.simplefilter("ignore", TruncationWarning)  # cutting long texts is part of what is scored
    options = parser().parse_args(arguments)
    try:
        options.run(options)
    except (FastinferError, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("evaluate: interrupted; a table given with --out holds what was scored", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
