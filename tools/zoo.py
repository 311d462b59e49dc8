"""Build every published layout small, load it with fastinfer, and compare each answer with transformers: python tools/zoo.py

    python tools/zoo.py                    # the table of all families, about three minutes on two cores
    python tools/zoo.py --only mpnet bge   # families with one of these words in their names
    python tools/zoo.py --write            # and writes the table into docs/families.md

It needs PyTorch, transformers and sentence-transformers (tools/requirements.txt). Weights and vocabularies are random, so no file is downloaded.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import NamedTuple

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}

import torch
import transformers
from conversion import convert
from families import FAMILIES, lists
from families.build import Family, build
from families.oracle import Oracle, difference, opened

from fastinfer import Model
from fastinfer.errors import FastinferError

TOLERANCE = 1e-4  # of the largest number of an answer: a wrong setting changes these models by more than 1e-2
PAGE = Path(__file__).parents[1] / "docs" / "families.md"
MARKS = "<!-- made by tools/zoo.py -->", "<!-- end of what tools/zoo.py makes -->"
HEAD = ("family", "needs", "used for", "load", "convert", "largest difference")


class Row(NamedTuple):
    """What became of a family. apart: the largest difference from the oracle, None where nothing was compared."""

    family: Family
    load: str
    convert: str
    apart: float | None

    @property
    def right(self) -> bool:
        """Whether the family loads and gives the oracle's answers, converted too."""
        return self.load == self.convert == "right"

    @property
    def wrong(self) -> bool:
        """Whether the family loads and gives other answers, or is refused in another way than it shall be."""
        return "WRONG" in self.load + self.convert

    def line(self) -> str:
        """The row of the table."""
        apart = "" if self.apart is None else f"{self.apart:.0e}" if self.apart else "0"
        family = self.family
        return f"| {family.name} | {family.needs} | {', '.join(family.tasks)} | {self.load} | {self.convert} | {apart} |"


def examine(family: Family, folder: Path) -> Row:
    """Build a family inside `folder`, load it, convert it, and compare both with the oracle."""
    published, theirs = build(family, folder)
    model = opened(published)
    if isinstance(model, str):
        if not family.refused:
            return Row(family, f"refused: {brief(model)}", "", None)
        named = family.refused.lower() in model.lower()
        return Row(family, f"{'refused by name' if named else 'WRONG, refused without its name'}: {brief(model)}", "", None)
    if family.refused:
        return Row(family, f"WRONG: loads, but {family.refused} must be refused", "", None)
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
    return Row(family, load, again if again != load or load == "right" else "as loaded", max(apart, apart_again))


def compared(oracle: Oracle, family: Family, model: Model) -> tuple[str, float]:
    """("right" or what is wrong, the largest difference) of a model in the tasks of its family."""
    worst, found = 0.0, []
    for task in family.tasks:
        try:
            for asked, theirs, ours in oracle.compare(task, model):
                apart = difference(theirs, ours)
                worst = max(worst, apart)
                if apart > TOLERANCE:
                    found.append(f"WRONG: {task} {asked}".rstrip() + f" ({apart:.0e})")
                    break
        except FastinferError as error:
            found.append(f"{task} refused: {brief(str(error))}")
    return "; ".join(found) or "right", worst


def brief(message: str, most: int = 110) -> str:
    """The first line of a message, cut, without what would end a cell of a table."""
    line = message.strip(" :/\n").replace("|", "/").split("\n")[0]
    return line if len(line) <= most else line[:most].rsplit(" ", 1)[0] + " ..."


def run(families: list[Family]) -> list[Row]:
    """The rows of families, with a line of progress each on standard error."""
    rows: list[Row] = []
    begin = time.monotonic()
    for count, family in enumerate(families, 1):
        with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows.append(examine(family, Path(scratch)))
        row = rows[-1]
        apart = "" if row.apart is None else f" {row.apart:.0e}"
        print(f"{count:3}/{len(families)} {time.monotonic() - begin:4.0f} s  {family.name}: {row.load} / {row.convert}{apart}", file=sys.stderr)
    return rows


def table(rows: list[Row]) -> str:
    """The rows as a table of markdown, and a line of totals."""
    refused = sum(row.load.startswith("refused") for row in rows)
    right, wrong = sum(row.right for row in rows), sum(row.wrong for row in rows)
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|", *(row.line() for row in rows)]
    lines += ["", f"{len(rows)} families: {right} right, {refused} refused, {wrong} wrong, {len(rows) - right - refused - wrong} in part."]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command line: 0, or 1 where an answer is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="WORD", help="families with one of these words in their names")
    parser.add_argument("--write", action="store_true", help="write the table into docs/families.md")
    options = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    chosen = [f for f in FAMILIES if not options.only or any(word.lower() in f.name.lower() for word in options.only)]
    rows = run(chosen)
    made = table(rows)
    print(made)
    return int(any(row.wrong for row in rows))


if __name__ == "__main__":
    sys.exit(main())
