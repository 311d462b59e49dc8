"""Make plain text for train.py: python tools/get_text.py OUT.txt [FOLDER ...], or make, check, sources

Without a FOLDER and without a network, the documentation inside the Python packages that are installed here:

    python tools/get_text.py corpus.txt
    python tools/get_text.py corpus.txt --labelled data     # and data/train.csv, data/dev.csv: texts, each with its package as the label

Text of your own needs no tool: a .txt file with a paragraph a line. Text of many kinds from public repositories, whose table with commits
and licences is in docs/text.md:

    python tools/get_text.py sources --clone | sh     # in the folder of the clones: 3 GB and more; or the lines that you want
    python tools/get_text.py make corpus --clones . --leave-out eval.txt CLINC150/data_full.json
    python tools/get_text.py check corpus/*.txt --against eval.txt CLINC150/data_full.json

`make` writes corpus/KIND.txt for each kind: queries, dialogues, captions, news ... A source that is not there is named and left out. Each
text is written once. --leave-out drops the lines that share 8 words in a row with a text of a data set, and shorter lines that equal one.
`check` counts such lines, and exits with 1 if it finds any. Data sets are .txt (a text a line), .tsv, .csv, .json and .jsonl.

Folders of your own: a FOLDER holds files of WikiExtractor (wiki_00, ...; <doc title="..."> elements), TEI novels (.xml), Python (.py:
documentation strings, a module as an article), or data sets: .json and .jsonl, .csv and .tsv (their first column is read), .lu and .qna
(the files of bots). A FOLDER may also be a single file, and a .txt is then read as a .tsv. OUT.txt gets a paragraph a line, and a line
`= Title =` before each article. It gets each text once. Half of a data set's texts, chosen by a checksum, lose their punctuation, because
people often type without.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from text import sources
from text.make import make, modules
from text.overlap import WORDS, Evaluated
from text.readers import articles, as_typed, content, documentation, module, novel, plain, python, sayings

from fastinfer.errors import InputError
from fastinfer.evaluation.articles import TITLE, held_out
from fastinfer.evaluation.articles import lines as lines_of
from fastinfer.files import replacing, replacing_all

DATA = (".json", ".jsonl", ".csv", ".tsv", ".lu", ".qna")
LABELS, ROWS = 8, 400  # packages that texts are labelled with, texts of each
SHOWN = 3  # lines of a file that `check` prints


def labelled(files: Iterable[Path]) -> tuple[list[tuple[str, str]], ...]:
    """((text, label) to train on, (text, label) to score) of Python files: the first sentence of each documentation string and its package.

    The packages are the LABELS with the most texts, with at most ROWS texts each. Modules that training holds out give the texts to score.
    """
    found: dict[str, dict[str, bool]] = collections.defaultdict(dict)
    for file in (file for file in files if file.suffix == ".py"):
        name = module(file)
        for first, *_ in documentation(file.read_text("utf-8", errors="ignore")):
            found[name.partition(".")[0]].setdefault(first.partition(". ")[0].rstrip(".") + ".", held_out(name))
    most = sorted(found, key=lambda label: (-len(found[label]), label))[:LABELS]
    parts: tuple[list[tuple[str, str]], ...] = ([], [])
    for label in sorted(most):
        rows = sorted(found[label].items(), key=lambda row: zlib.crc32(row[0].encode()))[:ROWS]
        for text, scored in rows:
            parts[scored].append((text, label))
    return parts


def paragraphs(file: Path, known: set[str], evaluated: Evaluated) -> Iterator[str]:
    """The lines to write for a file: those that share no words with tests and whose key is not in `known`, which gets their keys."""
    wiki = file.name.startswith("wiki_")
    read = articles if wiki else {".xml": novel, ".py": python}.get(file.suffix, sayings)
    for found in read(file, content(file)):
        title, *lines = found.split("\n") if read in (articles, python) else ("", found)
        fresh = []
        for line in lines:
            if (key := plain(line)) and key not in known and not evaluated.shares(key):
                known.add(key)
                fresh.append(line)
        if title and fresh:
            yield title
        yield from (as_typed(" ".join(line.split())) if read is sayings else line for line in fresh)


# --- commands --------------------------------------------------------------------------------------


def text_command(options: argparse.Namespace) -> int:
    """get_text.py OUT.txt [FOLDER ...]: one file of text, and perhaps labels."""
    files = find(options.folders)
    for place in (options.out.parent, options.labelled):
        if place is not None:
            place.mkdir(parents=True, exist_ok=True)
    evaluated, known, count = Evaluated(options.leave_out), set(), 0
    print(f"get_text: reading {len(files):,} files ...", file=sys.stderr)
    with replacing(options.out) as out:
        for file in files:
            try:
                for line in paragraphs(file, known, evaluated):
                    count += out.write(f"{line}\n".encode())
            except (OSError, json.JSONDecodeError) as error:
                raise InputError(f"{file}: {error}") from None
    print(f"{options.out}: {count / 1e6:.1f} MB of text from {len(files):,} files")
    if options.labelled is not None:
        paths = [options.labelled / "train.csv", options.labelled / "dev.csv"]
        with replacing_all(paths) as outs:
            for path, out, rows in zip(paths, outs, labelled(files), strict=True):
                out.write("".join(as_csv(row) for row in [("text", "label"), *rows]).encode())
                print(f"{path}: {len(rows):,} rows, {len({label for _, label in rows})} labels")
    return 0


def sources_command(options: argparse.Namespace) -> int:
    """get_text.py sources: the table of the sources, or the commands that get them."""
    commands = dict.fromkeys(source.clone for source in sources.SOURCES if source.clone)
    print("\n".join(commands) if options.clone else sources.table())
    return 0


def make_command(options: argparse.Namespace) -> int:
    """get_text.py make FOLDER: a file of text for each kind."""
    wanted = [source for source in sources.SOURCES if not options.kind or source.kind in options.kind]
    make(wanted, options.clones, options.folder, Evaluated(options.leave_out))
    return 0


def check_command(options: argparse.Namespace) -> int:
    """get_text.py check TEXT ...: how many lines share words with texts that models are tested on; 1 if any does."""
    evaluated, total = Evaluated(options.against), 0
    print(f"{len(evaluated):,} runs of {WORDS} words, and texts of fewer, are looked for")
    for path in options.texts:
        count, found = 0, []
        for line in lines_of(path):
            if TITLE.fullmatch(line):
                continue  # nothing is trained on titles
            count += 1
            if shared := evaluated.shares(plain(line)):
                found.append((shared, line))
        total += len(found)
        print(f"{path}: {len(found):,} of {count:,} lines share words with them", flush=True)
        for shared, line in found[:SHOWN]:
            print(f'    "{shared}" in: {line[:200]}')
    if total:
        print(f"{total:,} lines share {WORDS} words in a row, or are a shorter text: make the text again with --leave-out", file=sys.stderr)
    return int(total > 0)


def arguments_of(arguments: list[str]) -> argparse.Namespace:
    """The command line, with the command as `run`. Without the name of a command, it is text_command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    if arguments[:1] in (["sources"], ["make"], ["check"]):
        commands = parser.add_subparsers()
        command = commands.add_parser("sources", help="print the table of the sources")
        command.add_argument("--clone", action="store_true", help="print the commands that get them in its place")
        command.set_defaults(run=sources_command)
        command = commands.add_parser("make", help="write a file of text for each kind of source")
        command.add_argument("folder", metavar="FOLDER", type=Path, help="folder to write KIND.txt to")
        command.add_argument("--clones", metavar="FOLDER", type=Path, required=True, help="folder that holds the clones of the sources")
        kinds = list(dict.fromkeys(source.kind for source in sources.SOURCES))
        command.add_argument("--kind", choices=kinds, action="append", help="write this kind alone; may be given several times")
        add_files(command, "--leave-out", "none of their texts is written", required=False)
        command.set_defaults(run=make_command)
        command = commands.add_parser("check", help="count the lines that share words with texts that models are tested on")
        command.add_argument("texts", metavar="TEXT", type=Path, nargs="+", help="text that a model is to learn from")
        add_files(command, "--against", "their texts are looked for", required=True)
        command.set_defaults(run=check_command)
        return parser.parse_args(arguments)
    parser.add_argument("out", metavar="OUT.txt", type=Path, help="file to write")
    parser.add_argument(
        "folders", metavar="FOLDER", type=Path, nargs="*", help="folder or file to read (default: the Python packages that are installed)"
    )
    parser.add_argument("--labelled", metavar="FOLDER", type=Path, help="folder to write train.csv and dev.csv of Python files to, too")
    add_files(parser, "--leave-out", "none of their texts is written", required=False)
    parser.set_defaults(run=text_command)
    return parser.parse_args(arguments)


def add_files(parser: argparse.ArgumentParser, flag: str, what: str, *, required: bool) -> None:
    """A flag for data sets that models are tested on."""
    parser.add_argument(flag, metavar="FILE", type=Path, nargs="+", default=[], required=required, help=f"data sets of tests; {what}")


def main(arguments: list[str] | None = None) -> int:
    """The command line: 0, or 1 with the reason on standard error."""
    try:
        options = arguments_of(sys.argv[1:] if arguments is None else arguments)
        return options.run(options)
    except (InputError, OSError) as error:
        print(f"get_text: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("get_text: interrupted; the file that was being written is as it was before", file=sys.stderr)
        return 130


def find(folders: list[Path]) -> list[Path]:
    """The files to read; without folders, those of the installed packages, without their tests. Raises InputError where there are none."""
    for folder in folders:
        if not folder.exists():
            raise InputError(
                f"{folder} does not exist: name text of your own, or no folder for the documentation of the installed packages; "
                "python tools/get_text.py sources names public repositories"
            )
    if not folders:
        files = modules()
    else:
        files = [
            path
            for folder in folders
            for path in ([folder] if folder.is_file() else sorted(folder.rglob("*")))
            if path == folder or (path.is_file() and (path.name.startswith("wiki_") or path.suffix in (".xml", ".py", *DATA)))
        ]
    if not files:
        names = " ".join(map(str, folders))
        raise InputError(f"{names}: no files wiki_* of WikiExtractor, no .xml novels, no .py files, no data sets ({', '.join(DATA)})")
    return files


def as_csv(row: tuple[str, str]) -> str:
    """A row of a .csv file."""
    return ",".join('"' + cell.replace('"', '""') + '"' for cell in row) + "\n"


if __name__ == "__main__":
    sys.exit(main())
