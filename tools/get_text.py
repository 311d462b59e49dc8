"""Make plain text for train.py from articles, novels, dialogues and queries: python tools/get_text.py OUT.txt FOLDER [FOLDER ...]

Encyclopedias and novels (CC BY-SA, CC BY):

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

A FOLDER holds files of WikiExtractor (wiki_00, ...; <doc title="..."> elements), TEI novels (.xml), or data sets: .json and .jsonl, .csv
and .tsv (their first column is read), .lu and .qna (the files of bots). A FOLDER may also be a single file, and a .txt is then read as a
.tsv. OUT.txt gets a paragraph a line, and a line `= Title =` before each article. It gets each text of a data set once. Half of these
texts, chosen by a checksum, lose their punctuation, because people often type without.
"""

from __future__ import annotations

import argparse
import csv
import html
import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

DOCUMENT = re.compile(r'<doc [^>]*title="([^"]*)"[^>]*>\n(.*?)</doc>', re.DOTALL)
PARAGRAPH = re.compile(r"<p[^>]*>(.*?)</p>", re.DOTALL)
TAG = re.compile(r"<[^>]+>")
LINE, ARTICLE, NOVEL_LINE = 40, 200, 20  # characters: shorter lines of an article are headings, shorter articles are stubs
DATA = (".json", ".jsonl", ".csv", ".tsv", ".lu", ".qna")
SAID = ("utterance", "text", "question", "qText")  # keys of texts that somebody said, in any of the data sets
PIECES = ("segments", "slots")  # keys of parts of a text that is there as a whole, too
LABEL = re.compile(r"\{[^{}=]*=([^{}]*)\}")  # {City=Paris} in a bot's examples becomes Paris; {City} is a place to fill in
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
    for line in sayings(file, text):
        if (key := plain(line)) and key not in known:
            known.add(key)
            yield as_typed(" ".join(line.split()))


def main(arguments: list[str] | None = None) -> int:
    """The command line: 0, or 1 with the reason on standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT.txt", type=Path, help="file to write")
    parser.add_argument("folders", metavar="FOLDER", type=Path, nargs="+", help="folder or file to read")
    parser.add_argument(
        "--leave-out", metavar="FILE.json", type=Path, help="data set that models are tested on; none of its texts is written"
    )
    options = parser.parse_args(arguments)
    files = [
        path
        for folder in options.folders
        for path in ([folder] if folder.is_file() else sorted(folder.rglob("*")))
        if path == folder or (path.is_file() and (path.name.startswith("wiki_") or path.suffix in (".xml", *DATA)))
    ]
    if not files:
        print(
            f"get_text: {' '.join(map(str, options.folders))}: no files wiki_* of WikiExtractor, no .xml novels, no data sets "
            f"({', '.join(DATA)})",
            file=sys.stderr,
        )
        return 1
    file = options.leave_out
    try:
        known = set(map(plain, texts_in(json.loads(file.read_text("utf-8"))))) if file else set()
        with open(options.out, "w", encoding="utf-8") as out:
            for file in files:
                out.writelines(f"{line}\n" for line in paragraphs(file, known))
    except (OSError, json.JSONDecodeError) as error:
        print(f"get_text: {file}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
