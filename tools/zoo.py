"""Build every published layout small, load it with fastinfer, and compare each answer with transformers: python tools/zoo.py

    python tools/zoo.py                    # all families, a minute or two; writes the table into docs/families.md
    python tools/zoo.py --only mpnet bge   # families with one of these words in their names; only prints

It needs PyTorch, transformers and sentence-transformers. Weights and vocabularies are random, so nothing is downloaded. The status is 1
where fastinfer gives another answer than the oracle, or refuses a folder without naming what it refuses.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the imports that read it

import sentence_transformers
import torch
import transformers
from families import FAMILIES
from families.build import Family, build
from families.lists import LISTS
from families.oracle import Oracle, difference, opened

from fastinfer import Model
from fastinfer.conversion import convert
from fastinfer.errors import FastinferError
from fastinfer.files import replacing

TOLERANCE = 1e-4  # of the largest number of an answer: a wrong setting changes these models by more than 1e-3
PAGE = Path(__file__).parents[1] / "docs" / "families.md"
MARKS = "<!-- begin: python tools/zoo.py -->", "<!-- end -->"
HEAD = ("family", "needs", "used for", "load", "convert", "largest difference")


class Row(NamedTuple):
    """What became of a family. apart: the largest difference from the oracle, None where nothing was compared."""

    family: Family
    load: str
    convert: str = ""
    apart: float | None = None

    @property
    def kind(self) -> str:
        """right, wrong, refused by name, refused, or in part."""
        if "WRONG" in self.load + self.convert:
            return "wrong"
        if self.load == self.convert == "right":
            return "right"
        return next((kind for kind in ("refused by name", "refused") if self.load.startswith(kind)), "in part")

    def line(self) -> str:
        """The row of the table."""
        steps = [step for step in (1e-6, 1e-5, TOLERANCE) if self.apart is not None and self.apart < step]
        apart = f"< {steps[0]:.0e}" if steps else "" if self.apart is None else f"{self.apart:.0e}"
        family = self.family
        return f"| {family.name} | {family.needs} | {', '.join(family.tasks)} | {self.load} | {self.convert} | {apart} |"


def examine(family: Family, folder: Path) -> Row:
    """Build a family inside `folder`, load it, convert it, and compare both with the oracle."""
    published, theirs = build(family, folder)
    model = opened(published)
    if family.refused:
        named = not isinstance(model, str) or family.refused.lower() in model.lower()
        why = "WRONG: it loads" if not isinstance(model, str) else f"{'refused by name' if named else 'WRONG, not named'}: {brief(model)}"
        return Row(family, why)
    if isinstance(model, str):
        return Row(family, f"{'refused by name' if names(model, published) else 'refused'}: {brief(model)}")
    oracle = Oracle(family, theirs)
    load, apart = compared(oracle, family, model)
    try:
        convert(published, folder / "converted")
    except FastinferError as error:
        return Row(family, load, f"refused: {brief(str(error).replace(str(published), ''))}", apart)
    converted = opened(folder / "converted")
    if isinstance(converted, str):
        return Row(family, load, f"WRONG: the converted folder is refused: {brief(converted)}", apart)
    again, apart_again = compared(oracle, family, converted)
    return Row(family, load, again if load == "right" or again == "right" else "as loaded", max(apart, apart_again))


def names(message: str, folder: Path) -> bool:
    """Whether a refusal names the architecture, or the setting and its value."""
    path = folder / "config.json"
    kind = json.loads(path.read_text()).get("model_type") if path.exists() else None
    return f"'{kind}'" in message or "is not supported" in message


def compared(oracle: Oracle, family: Family, model: Model) -> tuple[str, float]:
    """("right" or what is wrong, the largest difference) of a model in the tasks of its family."""
    worst, found = 0.0, []
    for task in family.tasks:
        try:
            for asked, theirs, ours in oracle.compare(task, model):
                apart = difference(theirs, ours)
                worst = max(worst, apart)
                if apart > TOLERANCE:
                    found.append(f"WRONG: {task} {brief(asked, 40)}".rstrip() + f" ({apart:.0e})")
        except FastinferError as error:
            found.append(f"{task} refused: {brief(str(error))}")
        except Exception as error:  # a crash is a finding, and the table shows it
            found.append(f"WRONG: {task} raises {type(error).__name__}: {brief(str(error))}")
    return "; ".join(found[:3]) or "right", worst


def brief(message: str, most: int = 110) -> str:
    """The first line of a message, cut, without the folder it is about and without what would end a cell of a table."""
    first = message.strip().split("\n")[0].partition(" Recognised are")[0]
    words = [word for word in first.replace("|", "/").split() if not word.startswith(tempfile.gettempdir())]
    line = " ".join(words).strip(" :/")
    return line if len(line) <= most else line[:most].rsplit(" ", 1)[0] + " ..."


def run(families: list[Family]) -> list[Row]:
    """The rows of families, with a line of progress each on standard error."""
    rows: list[Row] = []
    begin, threads = time.monotonic(), torch.get_num_threads()
    torch.set_num_threads(1)  # the models are too small for more
    for count, family in enumerate(families, 1):
        with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row = examine(family, Path(scratch))
        rows.append(row)
        print(f"{count:3}/{len(families)} {time.monotonic() - begin:4.0f} s  {row.line()}", file=sys.stderr)
    torch.set_num_threads(threads)
    return rows


def table(rows: list[Row]) -> str:
    """The rows as a table of markdown, and a line of totals."""
    kinds = [row.kind for row in rows]
    totals = ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("right", "refused by name", "refused", "in part", "wrong"))
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|", *(row.line() for row in rows)]
    versions = f"transformers {transformers.__version__}, sentence-transformers {sentence_transformers.__version__}"
    return "\n".join([*lines, "", f"{len(rows)} families: {totals}. Compared with {versions}."])


def coverage(rows: list[Row]) -> str:
    """How many models of each list have a layout that loads and gives the oracle's answers, as a table of markdown."""
    right = {row.family.name for row in rows if row.kind == "right"}
    lines = ["| list | load right | the others |", "|---|---|---|"]
    for name, models in LISTS.items():
        others = [model for model, family in models.items() if family not in right]
        lines.append(f"| {name} | {len(models) - len(others)} of {len(models)} | {', '.join(others)} |")
    return "\n".join(lines)


def write(text: str) -> None:
    """Put `text` between the marks of docs/families.md."""
    page = PAGE.read_text()
    before, rest = page.split(MARKS[0])
    with replacing(PAGE) as file:
        file.write(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{rest.split(MARKS[1])[1]}".encode())


def main(arguments: list[str] | None = None) -> int:
    """The command line: 0, or 1 where an answer is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="WORD", help="print the families with one of these words in their names")
    options = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    words = [word.lower() for word in options.only or [""]]
    rows = run([family for family in FAMILIES if any(word in family.name.lower() for word in words)])
    text = table(rows) if options.only else f"{table(rows)}\n\n{coverage(rows)}"
    print(text)
    if not options.only:
        write(text)
    return int(any(row.kind == "wrong" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
