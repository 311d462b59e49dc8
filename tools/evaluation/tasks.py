"""The tasks of the suite, each defined once: where its texts come from, under which terms, and how they are read."""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import clones

from fastinfer.errors import InputError, short
from fastinfer.files import replacing

from . import files
from .kinds import Classes, Clusters, Pairs, Retrieval, Rows, Similarity, as_json, of_json

PACKED = ".json.xz"  # how the name of a suite in one file ends


@dataclass(frozen=True)
class Source:
    """A public repository on GitHub at the commit that was read, and the terms of its texts."""

    repository: str
    commit: str
    terms: str

    @property
    def folder(self) -> str:
        """The name of its clone in the data folder."""
        return clones.folder_of(self.repository)

    @property
    def clone(self) -> str:
        """The command that puts it into the current folder."""
        return clones.command(self.repository, self.commit)


@dataclass(frozen=True, eq=False)
class Task:
    """A task of the suite.

    kind  what its rows are, which decides how they are scored
    read  its rows, of the clone of its source
    seen  "": the makers of the model inside looked at nothing of it; "tuned": they chose models by its scores; "text": its texts, without
          labels, were in the training text of the model inside
    """

    name: str
    kind: type[Rows]
    source: Source
    read: Callable[[Path], Rows]
    seen: str = ""


STS = Source("brmson/dataset-sts", "e1d3375f5b3b", "per set, research use; MRPC: Microsoft, non-commercial")
STS_B = Source("eduardofv/sts_eval", "b4cd273eb2c6", "CC BY-SA 4.0 and per source")
QQP = Source("Deep1994/Quora-Question-Pairs-dataset-analysis-and-construction", "79a83eeb67f0", "Quora's terms")
NLI = Source("felipessalvatore/NLI_datasets", "9551b739a830", "per set: SNLI CC BY-SA 4.0")
REVIEWS = Source("amazon-research/amazon-multilingual-counterfactual-dataset", "3cc7de48bd8a", "CC BY-NC 4.0")
TWEETS = Source("cardiffnlp/tweeteval", "4fbd22cd7842", "per task; Twitter's terms")
SENTENCES = Source("FreedomIntelligence/qnn", "77f549372d43", "per set, research use; no licence file")
NEWS = Source("suuuch/TransformerClassification", "0d9808e1978c", "AG's corpus, non-commercial")
CLINC = Source("clinc/oos-eval", "828f8093932c", "CC BY 3.0")
BANKING = Source("PolyAI-LDN/task-specific-datasets", "57ec275d8078", "CC BY 4.0")
TOPICS = Source("rashadulrakib/short-text-clustering-enhancement", "f363b66e6fd5", "research use; no licence file")
TREND = Source("qiang2100/STTM", "5573ed45095c", "research use; no licence file")
CRANFIELD = Source("valinsogna/IR_BIM_model", "27499e342860", "MIT, around a collection without terms")
CISI = Source("PsychoProg/tf-idf", "beee251dd135", "a collection without terms")
SCIFACT = Source("sumithra-p-v/claimverifier", "b42f1c3444b2", "CC BY-NC 2.0")
XQUAD = Source("deepmind/xquad", "60cac4116491", "CC BY-SA 4.0")
DISFL_QA = Source("google-research-datasets/Disfl-QA", "1f0c16171c77", "CC BY 4.0")


def _sts(year: int) -> Task:
    """The test sets of a year of the shared task Semantic Textual Similarity."""

    def read(clone: Path) -> Rows:
        sets = sorted((clone / "data" / "sts" / "semeval-sts" / str(year)).glob("*.test.tsv"))
        return files.similarity(row for file in sets for row in files.scored(file))

    return Task(f"STS{year - 2000}", Similarity, STS, read)


def _nli(name: str) -> Task:
    """Pairs of which the first entails the second, among others."""
    return Task(name, Pairs, NLI, lambda clone: files.pairs(files.entailed(clone / "nli_datasets" / name.lower() / "dev.csv")))


def _tweets(name: str, train: str = "train") -> Task:
    """A task of TweetEval; train: the split to learn from."""

    def read(clone: Path) -> Rows:
        folder = clone / "datasets" / name
        return files.classes(*(files.side_by_side(folder / f"{p}_text.txt", folder / f"{p}_labels.txt") for p in (train, "test")))

    return Task(f"tweets: {name}", Classes, TWEETS, read)


def _two(name: str, *parts: str) -> Task:
    """Sentences in two files, one of each class."""

    def read(clone: Path) -> Rows:
        return files.halves(row for part in parts for row in files.of_one_class(clone / "data" / part, part))

    return Task(name, Classes, SENTENCES, read)


def _topics(name: str, stem: str) -> Task:
    """Short texts with a topic each."""
    return Task(name, Clusters, TOPICS, lambda clone: files.clusters(files.topics(clone / "data" / stem / f"{stem}_true_text")))


def _smart(name: str, source: Source, documents: str, queries: str, relevant: str) -> Task:
    """A collection in the format of the SMART system."""

    def read(clone: Path) -> Rows:
        return files.retrieval(files.smart(clone / queries), files.smart(clone / documents), files.judgements(clone / relevant))

    return Task(name, Retrieval, source, read)


def _table(name: str, source: Source, folder: str, parts: Sequence[str], columns: tuple[str, str], seen: str = "") -> Task:
    """Texts to learn from and to classify in two tables with the columns of the text and of the label."""

    def read(clone: Path) -> Rows:
        return files.classes(*(files.labelled(clone / folder / part, *columns) for part in parts))

    return Task(name, Classes, source, read, seen)


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        *map(_sts, range(2012, 2017)),
        Task(
            "SICK-R",
            Similarity,
            STS,
            lambda c: files.similarity(files.scored(c / "data/sts/sick2014/SICK_test_annotated.txt", 3, 1, header=True)),
        ),
        Task("MRPC", Pairs, STS, lambda c: files.pairs(files.scored(c / "data/para/msr/msr-para-test.tsv", 0, 3, header=True))),
        Task("QQP", Pairs, QQP, lambda c: files.pairs(files.scored(c / "dataset/dev.tsv"))),
        *map(_nli, ("SNLI", "MNLI", "SciTail")),
        _table("counterfactual reviews", REVIEWS, "data", ("EN_train.tsv", "EN_test.tsv"), ("sentence", "is_counterfactual")),
        _tweets("emotion"),
        _tweets("sentiment", "val"),
        _tweets("offensive"),
        Task(
            "TREC questions",
            Classes,
            SENTENCES,
            lambda c: files.classes(*(files.questions(c / "data/TREC" / part) for part in ("train_5500.label", "TREC_10.label"))),
        ),
        _two("customer reviews", "CR/custrev.neg", "CR/custrev.pos"),
        _two("subjectivity", "SUBJ/subj.objective", "SUBJ/subj.subjective"),
        Task("AG News", Classes, NEWS, lambda c: files.halves(files.news(c / "data/ag_news_csv/test.csv"))),
        _topics("StackOverflow", "stackoverflow"),
        _topics("biomedical titles", "biomedical"),
        _topics("search snippets", "search_snippets"),
        Task(
            "tweets by event",
            Clusters,
            TREND,
            lambda c: files.clusters(files.side_by_side(c / "dataset/Tweet.txt", c / "dataset/Tweet_LABEL.txt")),
        ),
        Task("SciFact", Retrieval, SCIFACT, lambda c: files.claims(c / "data/scifact.zip")),
        _smart("Cranfield", CRANFIELD, "data/cran/cran.all.1400", "data/cran/cran.qry", "data/cran/cranqrel"),
        _smart("CISI", CISI, "CISI.ALL", "CISI.QRY", "CISI.REL"),
        Task("XQuAD", Retrieval, XQUAD, lambda c: files.paragraphs(c / "xquad.en.json")),
        Task("Disfl-QA", Retrieval, DISFL_QA, lambda c: files.disfluent(c / "dev.json")),
        Task("WikiQA", Retrieval, SENTENCES, lambda c: files.answers(c / "data/QA/wiki/test.txt")),
        Task("STS-B dev", Similarity, STS_B, lambda c: files.similarity(files.scored(c / "data/stsbenchmark/sts-dev.csv", 4, 5)), "tuned"),
        Task("CLINC150", Classes, CLINC, lambda c: files.intents(c / "data/data_full.json"), "tuned"),
        _table("banking77", BANKING, "banking_data", ("train.csv", "test.csv"), ("text", "category"), "text"),
    )
}


def sources() -> list[Source]:
    """The sources of all tasks, each once."""
    return list(dict.fromkeys(task.source for task in TASKS.values()))


def read(task: Task, data: Path) -> Rows:
    """The rows of a task in a folder of clones. Raises InputError, which says how to get it, where they cannot be read."""
    clone = data / task.source.folder
    if not clone.is_dir():
        raise InputError(f"{clone} does not exist. In {data}: {task.source.clone}")
    try:
        return task.read(clone)
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}") from None


def read_all(data: Path, names: Iterable[str], say: Callable[[str], None]) -> dict[str, Rows]:
    """{task: rows} of the named tasks in a folder of clones, or in a packed file. What cannot be read is left out, and `say` is told why.

    Raises InputError where no task can be read.
    """
    if not data.exists():
        raise InputError(f"{data} does not exist: name the folder of the texts with --data; --help says how to get them")
    packed = unpacked(data) if data.is_file() else None
    found: dict[str, Rows] = {}
    for name in names:
        try:
            if packed is None:
                found[name] = read(TASKS[name], data)
            elif name in packed:
                found[name] = packed[name]
            else:
                raise InputError(f"{data} holds no such task")
        except InputError as error:
            say(f"{name} left out: {error}")
    if not found:
        raise InputError(f"{data} holds none of the tasks: --help says how to get their texts")
    return found


def pack(rows: Mapping[str, Rows], out: Path) -> int:
    """Write the rows of tasks into one file that read_all reads, and return its size in bytes."""
    text = json.dumps({name: as_json(task) for name, task in rows.items()}, ensure_ascii=False)
    content = lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)
    with replacing(out) as file:
        file.write(content)
    return len(content)


def unpacked(path: Path) -> dict[str, Rows]:
    """{task: rows} of a file that pack wrote. Raises InputError for another file."""
    try:
        value = json.loads(lzma.decompress(path.read_bytes()))
    except (OSError, lzma.LZMAError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a suite that --pack wrote: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds {short(value)}, expected an object of tasks")
    return {name: of_json(rows, f"{path}, {name}") for name, rows in value.items()}
