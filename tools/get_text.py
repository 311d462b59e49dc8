"""Make plain text for train.py from articles, novels, dialogues and queries: python tools/get_text.py OUT.txt [FOLDER ...]

Without a FOLDER and without a network, the documentation inside the Python packages that are installed here:

    python tools/get_text.py corpus.txt
    python tools/get_text.py corpus.txt --labelled data     # and data/train.csv, data/dev.csv: texts, each with its package as the label

Text of your own needs no tool: a .txt file with a paragraph a line. Encyclopedias and novels (CC BY-SA, CC BY):

    git clone https://github.com/ag-gipp/wikiextractor && python tools/get_text.py featured.txt wikiextractor/text-excellent
    git clone https://github.com/Vibhas-hs-edu/WikiTasks && python tools/get_text.py recent.txt WikiTasks/text/AA
    git clone https://github.com/COST-ELTeC/ELTeC-eng && python tools/get_text.py novels.txt ELTeC-eng/level1

Dialogues, of which the customer's side is taken, and questions and commands. Each line names a repository, the commit that the model
inside the package learned from, its licence, and the parts that were read. --leave-out drops every text of a data set that models are
tested on:

    github.com/google-research-datasets/dstc8-schema-guided-dialogue  e852981  CC BY-SA 4.0  train dev test
    github.com/google-research-datasets/Taskmaster                    d92cb6a  CC BY 4.0     TM-4-2024/data
    github.com/PolyAI-LDN/task-specific-datasets                      57ec275  CC BY 4.0     span_extraction/restaurant8k

    python tools/get_text.py dialogues.txt FOLDER ... --leave-out CLINC150/data_full.json

    github.com/google-research-datasets/query-wellformedness          fb69c21  CC BY-SA 4.0
    github.com/google-research-datasets/natural-questions             fb26a30  CC BY-SA 3.0  nq_open
    github.com/xliuhw/NLU-Evaluation-Data                             f6071b4  CC BY 4.0     CrossValidation/out4LuisReal
    github.com/sonos/nlu-benchmark                                    b86ac7f  CC0           2017-06-custom-intent-engines
    github.com/PolyAI-LDN/task-specific-datasets                      57ec275  CC BY 4.0     banking_data nlupp/data
    github.com/brmson/dataset-factoid-webquestions                    6688908  CC BY 4.0     main
    github.com/microsoft/botframework-solutions                       08ad18f  MIT           the folders en-us of samples/csharp
    github.com/13luoyu/Transformer-machine-translation                aa43963  CC BY 2.0     cmn.txt, sentences of Tatoeba

    python tools/get_text.py queries.txt FOLDER ... --leave-out CLINC150/data_full.json

A FOLDER holds files of WikiExtractor (wiki_00, ...; <doc title="..."> elements), TEI novels (.xml), Python (.py: documentation strings, a
module as an article), or data sets: .json and .jsonl, .csv and .tsv (their first column is read), .lu and .qna (the files of bots). A
FOLDER may also be a single file, and a .txt is then read as a .tsv. OUT.txt gets a paragraph a line, and a line `= Title =` before each
article. It gets each text of a data set once. Half of these texts, chosen by a checksum, lose their punctuation, because people often
type without.
"""

from __future__ import annotations

import argparse
import collections
import csv
import html
import json
import os
import re
import sys
import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fastinfer.evaluation.articles import held_out
from fastinfer.files import replacing, replacing_all

DOCUMENT = re.compile(r'<doc [^>]*title="([^"]*)"[^>]*>\n(.*?)</doc>', re.DOTALL)
PARAGRAPH = re.compile(r"<p[^>]*>(.*?)</p>", re.DOTALL)
TAG = re.compile(r"<[^>]+>")
LINE, ARTICLE, NOVEL_LINE = 40, 200, 20  # characters: shorter lines of an article are headings, shorter articles are stubs
DATA = (".json", ".jsonl", ".csv", ".tsv", ".lu", ".qna")
SAID = ("utterance", "text", "question", "qText")  # keys of texts that somebody said, in any of the data sets
PIECES = ("segments", "slots")  # keys of parts of a text that is there as a whole, too
LABEL = re.compile(r"\{[^{}=]*=([^{}]*)\}")  # {City=Paris} in a bot's examples becomes Paris; {City} is a place to fill in
DOCSTRING = re.compile(r'"""(.*?)"""', re.DOTALL)
ROLE = re.compile(r":[a-z:]+:`~?([^`]*)`|``([^`]*)``")
PROSE = re.compile(r"[A-Z][^<>{}|=\\_\[\]]*[.!?]")
CODE = re.compile(r"[.:]:|--|[a-z]\(|/\w+/|[#*@$%^~]|\w\.\w+\.\w")
SENTENCE = 60  # characters: shorter paragraphs of documentation are headings and remarks
LABELS, ROWS = 8, 400  # packages that texts are labelled with, texts of each
PUNCTUATION = re.compile(r"[.,;:?!](?=\s|$)")


def articles(text: str) -> Iterator[str]:
    """The text of each article in a file of WikiExtractor: a line `= Title =`, then its paragraphs."""
    for found in DOCUMENT.finditer(text):
        body = [html.unescape(TAG.sub("", line)).strip() for line in found[2].split("\n")[1:]]
        body = [line for line in body if len(line) > LINE and not line.startswith("BULLET::")]
        if sum(map(len, body)) >= ARTICLE:
            yield "\n".join([f"= {html.unescape(found[1])} =", *body])


def novel(text: str) -> Iterator[str]:
    """The paragraphs of a TEI novel's body."""
    for found in PARAGRAPH.finditer(text, text.find("<body>")):
        line = html.unescape(re.sub(r"\s+", " ", TAG.sub("", found[1]))).strip()
        if len(line) > NOVEL_LINE:
            yield line


def sayings(file: Path, text: str) -> Iterator[str]:
    """The texts of a data set's file: the first column of a table, the values of SAID's keys in JSON, the examples of a bot."""
    if file.suffix in (".lu", ".qna"):
        yield from examples(text)
    elif file.suffix in (".tsv", ".txt"):
        yield from (line.partition("\t")[0] for line in text.splitlines())
    elif file.suffix == ".csv":
        yield from (row[0] for row in csv.reader(text.splitlines()) if row)
    else:
        yield from said([json.loads(line) for line in text.splitlines()] if file.suffix == ".jsonl" else json.loads(text))


def said(value: Any) -> Iterator[str]:
    """The texts under SAID's keys anywhere in a JSON value. A text in parts, a list `data`, is joined."""
    if isinstance(value, list):
        for item in value:
            yield from said(item)
    elif isinstance(value, dict) and str(value.get("speaker", "user")).lower() == "user":
        parts = value.get("data")
        if isinstance(parts, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
            yield "".join(part["text"] for part in parts)
            return
        for key, item in value.items():
            if key in SAID and isinstance(item, str):
                yield item
            elif key not in PIECES:
                yield from said(item)


def examples(text: str) -> Iterator[str]:
    """The texts in a bot's file: examples of intents, lines "- text" under a "#" heading, and questions, lines "## ? text"."""
    intent = False
    for line in text.splitlines():
        mark, _, rest = line.partition(" ")
        if mark.startswith(("#", "$", "@")):  # "#" begins an intent or a question, the others a list of an entity's values
            intent = mark.startswith("#")
        said = LABEL.sub(r"\1", rest.removeprefix("? ") if rest.startswith("? ") else rest if mark == "-" else "")
        if intent and "{" not in said:
            yield said


def documentation(text: str) -> Iterator[list[str]]:
    """The paragraphs of prose in each documentation string of a Python file. Code, tables and lists of parameters are left out."""
    for found in DOCSTRING.finditer(text):
        parts = (" ".join(part.split()) for part in re.split(r"\n\s*\n", found[1]))
        parts = (ROLE.sub(r"\1\2", part).replace("`", "") for part in parts)
        if prose := [part for part in parts if len(part) >= SENTENCE and PROSE.fullmatch(part) and not CODE.search(part)]:
            yield prose


def module(file: Path) -> str:
    """The dotted name of a Python file's module, from the folders that are packages."""
    parts, folder = [file.stem] * (file.stem != "__init__"), file.parent
    while (folder / "__init__.py").exists():
        parts, folder = [folder.name, *parts], folder.parent
    return ".".join(parts) or file.stem


def installed() -> list[Path]:
    """The folders of the standard library and of the packages that are installed."""
    found = [sysconfig.get_paths()["stdlib"], *(path for path in sys.path if path.endswith(("site-packages", "dist-packages")))]
    return [Path(path) for path in dict.fromkeys(found) if os.path.isdir(path)]


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


def as_typed(line: str) -> str:
    """The line; half of all lines, chosen by a checksum, lose their punctuation."""
    return PUNCTUATION.sub("", line).strip() if zlib.crc32(line.encode()) % 2 else line


def plain(line: str) -> str:
    """The key of a line: the same for lines that differ by case, punctuation and spaces alone."""
    return re.sub(r"\W+", " ", line.lower()).strip()


def texts_in(value: Any) -> Iterator[str]:
    """All strings in a JSON value, keys excepted."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts_in(item)


def paragraphs(file: Path, known: set[str]) -> Iterable[str]:
    """The lines to write for a file. A data set gives those whose key, plain(line), is not in `known`; their keys are added to it."""
    text = file.read_text("utf-8-sig", errors="ignore")
    if file.suffix == ".xml" or file.name.startswith("wiki_"):
        yield from (novel if file.suffix == ".xml" else articles)(text)
        return
    if file.suffix == ".py":
        said = [part for prose in documentation(text) for part in prose if plain(part) not in known]
        known.update(map(plain, said))
        yield from [f"= {module(file)} =", *dict.fromkeys(said)] if said else []
        return
    for line in sayings(file, text):
        if (key := plain(line)) and key not in known:
            known.add(key)
            yield as_typed(" ".join(line.split()))


def main(arguments: list[str] | None = None) -> int:
    """The command line: 0, or 1 with the reason on standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT.txt", type=Path, help="file to write")
    parser.add_argument(
        "folders", metavar="FOLDER", type=Path, nargs="*", help="folder or file to read (default: the Python packages that are installed)"
    )
    parser.add_argument("--labelled", metavar="FOLDER", type=Path, help="folder to write train.csv and dev.csv of Python files to, too")
    parser.add_argument(
        "--leave-out", metavar="FILE.json", type=Path, help="data set that models are tested on; none of its texts is written"
    )
    options = parser.parse_args(arguments)
    file = options.leave_out
    try:
        files = find(options.folders)
        for place in (options.out.parent, options.labelled):
            if place is not None:
                place.mkdir(parents=True, exist_ok=True)
        known = set(map(plain, texts_in(json.loads(file.read_text("utf-8"))))) if file else set()
        count = 0
        print(f"get_text: reading {len(files):,} files ...", file=sys.stderr)
        with replacing(options.out) as out:
            for file in files:
                for line in paragraphs(file, known):
                    count += out.write(f"{line}\n".encode())
        print(f"{options.out}: {count / 1e6:.1f} MB of text from {len(files):,} files")
        file = options.labelled
        if file is not None:
            paths = [file / "train.csv", file / "dev.csv"]
            with replacing_all(paths) as outs:
                for path, out, rows in zip(paths, outs, labelled(files), strict=True):
                    out.write("".join(as_csv(row) for row in [("text", "label"), *rows]).encode())
                    print(f"{path}: {len(rows):,} rows, {len({label for _, label in rows})} labels")
    except Refused as error:
        print(f"get_text: {error}", file=sys.stderr)
        return 1
    except (OSError, json.JSONDecodeError) as error:
        print(f"get_text: {file}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("get_text: interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


class Refused(Exception):
    """There is nothing to read. The message says what was found and what to do."""


def find(folders: list[Path]) -> list[Path]:
    """The files to read; without folders, those of the installed packages, without their tests. Raises Refused where there are none."""
    for folder in folders:
        if not folder.exists():
            raise Refused(
                f"{folder} does not exist: clone the repository that --help names, name text of your own, or name no folder for the "
                "documentation of the installed packages"
            )
    suffixes = (".xml", ".py", *DATA) if folders else (".py",)
    files = [
        path
        for folder in folders or installed()
        for path in ([folder] if folder.is_file() else sorted(folder.rglob("*")))
        if path == folder or (path.is_file() and (path.name.startswith("wiki_") or path.suffix in suffixes))
    ]
    if not folders:
        files = list(dict.fromkeys(file for file in files if not {"test", "tests", "testing", "_vendor", "idlelib"} & set(file.parts)))
    if not files:
        names = " ".join(map(str, folders))
        raise Refused(f"{names}: no files wiki_* of WikiExtractor, no .xml novels, no .py files, no data sets ({', '.join(DATA)})")
    return files


def as_csv(row: tuple[str, str]) -> str:
    """A row of a .csv file."""
    return ",".join('"' + cell.replace('"', '""') + '"' for cell in row) + "\n"


if __name__ == "__main__":
    sys.exit(main())
