"""The files of the suite's repositories, and the rows that count: read as they are published, cut to a size by checksums.

A row is kept where the checksum of its texts is low, so the choice is the same everywhere and needs no seed.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import re
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fastinfer.errors import InputError, short
from fastinfer.evaluation.files import read_splits, read_table

from .kinds import Classes, Clusters, Pairs, Retrieval, Similarity

PAIRS, MEMBERS, UNKNOWN, KNOWN = 1500, 3000, 1500, 1000  # rows that are kept: pairs, texts to cluster, to classify, to learn from
FEWEST = 16  # texts of a class to learn from, at least
DOCUMENTS = 2000  # documents that are kept: all relevant ones, and others
LONGEST = 2000  # characters of a document that are kept; models read at most about 512 tokens
FIELD = re.compile(r"^\.([A-Z])(?:\s+(\d+))?\s*$")  # ".I 12" begins a document of the SMART format, ".W" its text

Row = TypeVar("Row")


def checksum(row: object) -> tuple[int, str]:
    """What rows are chosen by: a checksum of the row, and the row itself where two have the same."""
    text = json.dumps(row, ensure_ascii=False)
    return zlib.crc32(text.encode()), text


def chosen(rows: Iterable[Row], count: int) -> list[Row]:
    """The `count` rows with the lowest checksums, each once."""
    unique = {checksum(row): row for row in rows}
    return [unique[key] for key in sorted(unique)[:count]]


# --- the kinds, from rows of files -----------------------------------------------------------------


def similarity(rows: Iterable[tuple[str, str, float]]) -> Similarity:
    """Similarity of PAIRS rows (first, second, target)."""
    return Similarity(*_columns(chosen(rows, PAIRS)))


def pairs(rows: Iterable[tuple[str, str, float]]) -> Pairs:
    """Pairs of PAIRS rows (first, second, target)."""
    return Pairs(*_columns(chosen(rows, PAIRS)))


def classes(known: Iterable[tuple[str, str]], unknown: Iterable[tuple[str, str]]) -> Classes:
    """Classes of rows (text, label): about KNOWN to learn from, as many of each class, and UNKNOWN to classify.

    A text to learn from is not classified.
    """
    of_class = defaultdict(list)
    for row in known:
        of_class[row[1]].append(row)
    labels = {label: i for i, label in enumerate(sorted(of_class))}
    each = max(FEWEST, KNOWN // max(1, len(labels)))
    learned = [row for label in labels for row in chosen(of_class[label], each)]
    seen = {text for text, _ in learned}
    scored = chosen((row for row in unknown if row[0] not in seen), UNKNOWN)
    odd = sorted({label for _, label in scored} - set(labels))
    if odd:
        raise InputError(f"label {short(odd[0])} has no text to learn from")
    texts, targets = _columns(learned), _columns(scored)
    return Classes(texts[0], [labels[label] for label in texts[1]], targets[0], [labels[label] for label in targets[1]])


def halves(rows: Iterable[tuple[str, str]]) -> Classes:
    """Classes of a set without splits: a text is to learn from where its checksum is even."""
    parts: tuple[list[tuple[str, str]], ...] = ([], [])
    for row in rows:
        parts[zlib.crc32(row[0].encode()) % 2].append(row)
    return classes(*parts)


def clusters(rows: Iterable[tuple[str, str]]) -> Clusters:
    """Clusters of MEMBERS rows (text, label)."""
    kept = chosen(rows, MEMBERS)
    labels = {label: i for i, label in enumerate(sorted({label for _, label in kept}))}
    return Clusters([text for text, _ in kept], [labels[label] for _, label in kept])


def retrieval(queries: Iterable[tuple[str, str]], documents: Iterable[tuple[str, str]], relevant: dict[str, dict[str, float]]) -> Retrieval:
    """Retrieval of queries and documents (id, text), and {query: {document: how relevant}}.

    Documents without text are left out, queries without a relevant document, and documents beyond DOCUMENTS that are not relevant.
    """
    texts = {key: text[:LONGEST] for key, text in documents}
    relevant = {query: {key: grade for key, grade in found.items() if texts.get(key) != ""} for query, found in relevant.items()}
    asked = [(key, text) for key, text in queries if relevant.get(key)]
    needed = {document for key, _ in asked for document in relevant[key]}
    missing = sorted(needed - set(texts))
    if missing:
        raise InputError(f"document {short(missing[0])} is relevant to a query, but not among the {len(texts):,} documents")
    others = chosen((key for key, text in texts.items() if text and key not in needed), max(0, DOCUMENTS - len(needed)))
    place = {key: i for i, key in enumerate(sorted([*needed, *others], key=checksum))}
    found = [sorted([place[document], grade] for document, grade in relevant[key].items()) for key, _ in asked]
    return Retrieval([text for _, text in asked], [texts[key] for key in place], found)


def _columns(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """The columns of rows. Raises InputError where there are none."""
    if not rows:
        raise InputError("the files hold no rows")
    return [list(column) for column in zip(*rows, strict=True)]


# --- formats ---------------------------------------------------------------------------------------


def lines(path: Path, encoding: str = "utf-8-sig") -> Iterator[str]:
    """The lines of a text file, without spaces around them. Bytes that are no text become U+FFFD: the published file of QQP has some."""
    yield from (line.strip(" \r") for line in path.read_text(encoding, errors="replace").split("\n"))


def tabbed(path: Path, columns: int) -> Iterator[tuple[str, list[str]]]:
    """(where, cells) of each line that is not empty. Raises InputError for a line with fewer columns."""
    for number, line in enumerate(lines(path), 1):
        cells = [cell.strip() for cell in line.split("\t")]
        if line and len(cells) < columns:
            raise InputError(f"{path}, line {number} has {len(cells)} columns, expected at least {columns}")
        if line:
            yield f"{path}, line {number}", cells


def scored(path: Path, score: int = 0, first: int = 1, *, header: bool = False) -> Iterator[tuple[str, str, float]]:
    """(first, second, score) of a file in columns. Rows without a score were not judged and are left out.

    score, first  the columns of the score and of the first text; the second text follows the first
    """
    for number, (where, cells) in enumerate(tabbed(path, 1 + max(score, first + 1))):
        if cells[score] and not (header and number == 0):
            yield cells[first], cells[first + 1], _number(cells[score], where)


def entailed(path: Path) -> Iterator[tuple[str, str, float]]:
    """(premise, hypothesis, 1 where the premise entails the hypothesis, else 0) of a .csv file."""
    for _, row in read_table(path, None, ("premise", "hypothesis", "label")):
        yield row["premise"].strip(), row["hypothesis"].strip(), float(row["label"] == "entailment")


def labelled(path: Path, text: str, label: str) -> Iterator[tuple[str, str]]:
    """(text, label) of a table with these columns."""
    for _, row in read_table(path, None, (text, label)):
        yield row[text].strip(), row[label]


def side_by_side(texts: Path, labels: Path) -> Iterator[tuple[str, str]]:
    """(text, label) of two files, a line of each per example."""
    pair = [list(lines(texts)), list(lines(labels))]
    for rows in pair:
        while rows and not rows[-1]:
            rows.pop()
    if len(pair[0]) != len(pair[1]):
        raise InputError(f"{texts} has {len(pair[0])} lines, but {labels} has {len(pair[1])}, expected as many")
    yield from ((text, label) for text, label in zip(*pair, strict=True) if text)


def topics(path: Path) -> Iterator[tuple[str, str]]:
    """(text, label) of lines `label<TAB>text`."""
    yield from ((cells[1], cells[0]) for _, cells in tabbed(path, 2) if cells[1])


def questions(path: Path) -> Iterator[tuple[str, str]]:
    """(question, coarse class) of TREC's lines `CLASS:kind question`, in Latin-1."""
    for line in lines(path, "latin-1"):
        label, _, text = line.partition(" ")
        if text:
            yield text, label.partition(":")[0]


def of_one_class(path: Path, label: str) -> Iterator[tuple[str, str]]:
    """(text, label) of a file whose lines all have this label."""
    yield from ((line, label) for line in lines(path) if line)


def news(path: Path) -> Iterator[tuple[str, str]]:
    """(title and description, class) of a .csv file of AG News, which has no header."""
    for _, row in read_table(path, ("class", "title", "description"), ("class", "title", "description")):
        yield f"{row['title']}. {row['description']}".replace("\\", " "), row["class"]


def intents(path: Path) -> Classes:
    """Classes of CLINC150's JSON: its training split and its test split."""
    train, test = ([(text, label) for _, text, label in read_splits(path, split)] for split in ("train", "test"))
    return classes(train, test)


def smart(path: Path) -> Iterator[tuple[str, str]]:
    """(place from 1, title and text) of the documents or queries in a file of the SMART system, which has fields .I, .T, .W and others.

    Cranfield's judgements count queries from 1, whatever stands behind .I; in the other files, both agree.
    """
    place, kept = 0, False
    parts: dict[int, list[str]] = {}
    for line in lines(path):
        field = FIELD.match(line)
        if field and field[1] == "I":
            place += 1
            parts[place] = []
        elif line and not field and kept:
            parts[place].append(line)
        kept = field[1] in "TW" if field else kept
    yield from ((str(place), " ".join(words)) for place, words in parts.items())


def judgements(path: Path) -> dict[str, dict[str, float]]:
    """{query: {document: 1}} of lines that begin with the numbers of a query and of a document that is relevant to it."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for number, line in enumerate(lines(path), 1):
        parts = line.split()
        if parts and not (len(parts) > 1 and parts[0].isdigit() and parts[1].isdigit()):
            raise InputError(f"{path}, line {number}: {short(line)}, expected the numbers of a query and of a document")
        if parts:
            found[parts[0]][parts[1]] = 1.0
    return found


def claims(path: Path) -> Retrieval:
    """SciFact in a .zip file: claims of the validation split, and the abstracts that they cite."""
    abstracts = [(row["doc_id"], f"{row['title']} {' '.join(_strings(row['abstract']))}") for row in _zipped(path, "corpus_train.csv")]
    texts: dict[str, str] = {}
    cited: dict[str, dict[str, float]] = defaultdict(dict)
    for row in _zipped(path, "claims_validation.csv"):
        texts[row["id"]] = row["claim"]
        cited[row["id"]].update(dict.fromkeys(re.findall(r"\d+", row["cited_doc_ids"]), 1.0))
    return retrieval(texts.items(), abstracts, cited)


def paragraphs(path: Path) -> Retrieval:
    """Questions of a file in SQuAD's format, each with the paragraph that answers it among all paragraphs."""
    texts: list[tuple[str, str]] = []
    asked: list[tuple[str, str]] = []
    relevant: dict[str, dict[str, float]] = {}
    try:
        for article in _json(path)["data"]:
            for paragraph in article["paragraphs"]:
                key = str(len(texts))
                texts.append((key, paragraph["context"]))
                asked += [(question["id"], question["question"]) for question in paragraph["qas"]]
                relevant |= {question["id"]: {key: 1.0} for question in paragraph["qas"]}
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is not in SQuAD's format: {error}") from None
    return retrieval(asked, texts, relevant)


def disfluent(path: Path) -> Retrieval:
    """Disfl-QA: each question with slips and corrections, and the question that was meant among all questions."""
    try:
        found = {key: (row["disfluent"].strip(), row["original"].strip()) for key, row in _json(path).items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not in Disfl-QA's format: {error}") from None
    meant = {text: text for _, text in found.values()}
    return retrieval([(key, said) for key, (said, _) in found.items()], meant.items(), {k: {text: 1.0} for k, (_, text) in found.items()})


def answers(path: Path) -> Retrieval:
    """WikiQA: questions, and the sentences that answer them among those of all questions. Lines are `question<TAB>sentence<TAB>0 or 1`."""
    relevant: dict[str, dict[str, float]] = defaultdict(dict)
    sentences = {}
    for where, (question, sentence, right, *_) in tabbed(path, 3):
        sentences[sentence] = sentence
        if right not in ("0", "1"):
            raise InputError(f"{where}: {short(right)}, expected 0 or 1 in the last column")
        if right == "1":
            relevant[question][sentence] = 1.0
    return retrieval(((question, question) for question in relevant), sentences.items(), relevant)


def _json(path: Path) -> Any:
    """The value of a JSON file. Raises InputError where it holds none."""
    try:
        return json.loads("\n".join(lines(path)))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: {error}") from None


def _zipped(path: Path, name: str) -> Iterator[dict[str, str]]:
    """The rows of a .csv file in a .zip file."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as file:
            yield from csv.DictReader(io.TextIOWrapper(file, "utf-8", newline=""), strict=True)
    except (OSError, KeyError, zipfile.BadZipFile, csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} has no readable {name}: {error}") from None


def _strings(text: str) -> list[str]:
    """The strings of a printed array, ['...' "..."]."""
    return [ast.literal_eval(found) for found in re.findall(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", text)]


def _number(text: str, where: str) -> float:
    """The number that a text holds. Raises InputError where it holds none."""
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{where}: {short(text)} is no number") from None
