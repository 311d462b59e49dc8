"""tools/evaluate.py: scores against values computed by other means, files in the formats of their publishers, tables, the picture."""

import csv
import json
import lzma
import math
import zipfile
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import WORDS, make_tokenizer
from models import TOOLS, load_tool

import fastinfer
from fastinfer.config import Embed, FillMask, Tasks
from fastinfer.errors import InputError

pytest.importorskip("sklearn", reason="tools/evaluate.py scores with scikit-learn")
pytest.importorskip("scipy", reason="tools/evaluate.py scores with scipy")
evaluate = load_tool("evaluate")
figures, files, kinds, models, pareto, table, tasks = map(
    load_tool, ("figures", *(f"evaluation.{name}" for name in ("files", "kinds", "models", "pareto", "table", "tasks")))
)


def embedder(vectors):
    """embed() of a model that gives each text of a dict its vector."""
    return lambda texts: np.stack([vectors[text] for text in texts]).astype(np.float32)


def unit(random, count, dim=8):
    found = random.normal(size=(count, dim))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.fixture
def random():
    return np.random.default_rng()


@pytest.fixture
def few(monkeypatch):
    """Fewer resampled sets, for tests that look at scores alone."""
    monkeypatch.setattr(kinds, "RESAMPLES", 3)


# --- scores ----------------------------------------------------------------------------------------


def test_similarity_is_the_correlation_of_ranks(random, few):
    """Without ties, Spearman is 1 - 6 sum(d^2) / (n (n^2 - 1)), d being the difference of ranks."""
    count = 30
    first, second, target = unit(random, count), unit(random, count), random.permutation(count) / 7
    names = [[f"{side}{i}" for i in range(count)] for side in "ab"]
    rows = kinds.Similarity(*names, target.tolist())
    cosines = [sum(a * b for a, b in zip(*pair, strict=True)) for pair in zip(first, second, strict=True)]
    ranks = [[sorted(values).index(value) for value in values] for values in (cosines, target.tolist())]
    expected = 1 - 6 * sum((a - b) ** 2 for a, b in zip(*ranks, strict=True)) / (count * (count**2 - 1))
    score, _ = rows.result(embedder(dict(zip(names[0] + names[1], [*first, *second], strict=True))))
    assert score == pytest.approx(100 * expected, abs=1e-4)


def test_pairs_are_scored_by_average_precision(random, few):
    """The mean over the true pairs of the share of true pairs among those that are at least as similar."""
    count = 40
    first, second, target = unit(random, count), unit(random, count), random.integers(2, size=count)
    target[:2] = 0, 1
    cosines = (first * second).sum(1)
    shares = [np.mean(target[cosines >= cosine]) for cosine, true in zip(cosines, target, strict=True) if true]
    names = [[f"{side}{i}" for i in range(count)] for side in "ab"]
    rows = kinds.Pairs(*names, target.astype(float).tolist())
    score, _ = rows.result(embedder(dict(zip(names[0] + names[1], [*first, *second], strict=True))))
    assert score == pytest.approx(100 * np.mean(shares), abs=1e-4)
    assert kinds.Pairs(["a"], ["b"], [0.0]).score(np.array([0.5]), np.array([0])) == 0


def test_classes_are_learned_from_the_known_texts(random):
    """Two classes of texts around two directions; 3 of 12 texts bear the label of the other class."""
    around = {label: np.eye(8)[label] + 0.05 * random.normal(size=(20, 8)) for label in (0, 1)}
    vectors = {f"{label}-{i}": row / np.linalg.norm(row) for label, rows in around.items() for i, row in enumerate(rows)}
    known = [f"{label}-{i}" for label in (0, 1) for i in range(14)]
    unknown = [f"{label}-{i}" for label in (0, 1) for i in range(14, 20)]
    target = [0] * 6 + [1] * 6
    for i in (0, 7, 8):
        target[i] = 1 - target[i]
    rows = kinds.Classes(known, [0] * 14 + [1] * 14, unknown, target)
    score, draws = rows.result(embedder(vectors))
    assert score == 75
    assert draws.std() == pytest.approx(100 * math.sqrt(0.75 * 0.25 / 12), rel=0.2)


def test_clusters_are_scored_by_v_measure(random, few):
    """Homogeneity and completeness from entropies, for runs whose clusters are given; their mean; all of it for clusters far apart."""

    def entropy(counts):
        shares = np.array([count for count in counts if count]) / sum(counts)
        return -(shares * np.log(shares)).sum()

    def v_measure(target, found):
        both = np.array([[np.sum((target == t) & (found == f)) for f in range(3)] for t in range(3)])
        mutual = entropy(both.sum(0)) + entropy(both.sum(1)) - entropy(both.ravel())
        return 2 * mutual / (entropy(both.sum(0)) + entropy(both.sum(1)))

    target = random.integers(3, size=60)
    target[:3] = 0, 1, 2
    runs = np.stack([np.where(random.random(60) < 0.7, target, random.integers(3, size=60)) for _ in range(kinds.RUNS)], 1)
    rows = kinds.Clusters([str(i) for i in range(60)], target.tolist())
    expected = np.mean([v_measure(target, run) for run in runs.T])
    assert rows.score(runs, np.arange(60)) == pytest.approx(100 * expected, abs=1e-6)
    some = random.permutation(60)[:30]
    expected = np.mean([v_measure(target[some], run[some]) for run in runs.T])
    assert rows.score(runs[some], some) == pytest.approx(100 * expected, abs=1e-6)
    apart = {str(i): np.eye(8)[t] + 0.01 * random.normal(size=8) for i, t in enumerate(target)}
    assert rows.result(embedder(apart))[0] == pytest.approx(100, abs=15)  # k-means may join two clusters in some of its runs


@pytest.mark.parametrize(("topics", "clusters"), [(1, 1), (1, 4), (4, 1), (7, 5)])
def test_v_measure_is_that_of_scikit_learn(random, topics, clusters):
    metrics = pytest.importorskip("sklearn.metrics")
    target, found = random.integers(topics, size=90), random.integers(clusters, size=90)
    assert kinds.v_measure(target, found) == pytest.approx(metrics.v_measure_score(target, found), abs=1e-9)


def test_retrieval_is_scored_by_ndcg(random, few):
    """Gains by rank, divided by log2(rank + 1), over the best order; documents beyond the tenth do not count."""
    queries, documents = unit(random, 6), unit(random, 25)
    relevant = [
        sorted([int(d), float(g)] for d, g in zip(random.permutation(25)[:n], random.integers(1, 4, n), strict=True)) for n in range(1, 7)
    ]
    found = []
    for query, gains in zip(queries, relevant, strict=True):
        order = sorted(range(25), key=lambda d: -float(query @ documents[d]))
        gain = dict(gains)
        got = sum(gain.get(d, 0) / math.log2(rank + 2) for rank, d in enumerate(order[:10]))
        found.append(got / sum(g / math.log2(rank + 2) for rank, g in enumerate(sorted(gain.values(), reverse=True)[:10])))
    names = [f"q{i}" for i in range(6)], [f"d{i}" for i in range(25)]
    rows = kinds.Retrieval(*names, relevant)
    score, _ = rows.result(embedder(dict(zip(names[0] + names[1], [*queries, *documents], strict=True))))
    assert score == pytest.approx(100 * np.mean(found), abs=1e-3)


def test_resampled_scores_are_paired_and_centred(random, monkeypatch):
    """Two models on the same rows meet the same sets; the mean of the resampled scores is the score."""
    monkeypatch.setattr(kinds, "RESAMPLES", 50)
    target = random.integers(2, size=200).tolist()
    vectors = [dict(zip(map(str, range(200)), unit(random, 200), strict=True)) for _ in range(2)]
    rows = kinds.Pairs([str(i) for i in range(200)], [str((7 * i) % 200) for i in range(200)], target)
    results = [rows.result(embedder(v)) for v in (vectors[0], vectors[1], vectors[0])]
    assert results[0][1].tolist() == results[2][1].tolist()
    for score, draws in results:
        assert draws.shape == (kinds.RESAMPLES,)
        assert draws.mean() == pytest.approx(score)
    same, other = results[0][1] - results[2][1], results[0][1] - results[1][1]
    assert same.std() == 0 < other.std()


# --- files, as their publishers write them ---------------------------------------------------------

TRAIN_TEST, TWEETS = ("train", "test"), [(n, s) for n in ("emotion", "sentiment", "offensive") for s in ("train", "val", "test")]
SPLITS = {split: [[f"{split} text {i} of {label}", label] for label in ("pay", "book") for i in range(3)] for split in TRAIN_TEST}
SMART = (
    ".I 1\n.T\nlift of wings\n.A\nsomebody\n.W\nthe wing lifts\nthe plane .\n.I 2\n.T\n\n.A\n\n.W\n.I 3\n.W\ndrag of tails\n.X\n1\t5\t1\n"
)
QUERIES = ".I 001\n.W\nwhat lifts ?\n.I 004\n.W\nwhat is in the empty one ?\n.I 005\n.W\nwhat drags ?\n"
JUDGED = "1 1 2 \n2 2 1\n3 3 1 \n3 1 4\n"
ASKED = [{"context": f"About {i}.", "qas": [{"id": f"{i}{q}", "question": f"What {q} {i}?"} for q in "ab"]} for i in "xy"]
DISFLUENT = {
    "1": {"original": "Who won? ", "disfluent": "Who lost no won?"},
    "2": {"original": "Who ran?", "disfluent": "Er who ran?"},
}
CLAIMS = """id,claim,evidence_doc_id,evidence_label,evidence_sentences,cited_doc_ids
1,Wings lift.,,,[],[ 7 12]
1,Wings lift.,7,SUPPORT,[2],[ 7 12]
2,Tails drag.,,,[],[]
"""
ABSTRACTS = """doc_id,title,abstract,structured
7,Wings,"['They lift.'
 'They don\\'t drag.']",False
12,Tails,"[""It's a tail.""]",False
13,Noses,['Point.'],False
"""
NLI = 'premise,hypothesis,label\n"A, and b.",A.,entailment\nA.,B.,neutral\nA.,Not a.,contradiction\n'
SICK = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n6\tA boy runs\tA boy walks\t3.3\tNEUTRAL\n"
MRPC = '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t10\t11\t"Quoted," he said.\tHe said it.\n0\t12\t13\tOne.\tTwo.\n'
WIKI_QA = "who won ?\tShe won .\t1\nwho won ?\tIt rained .\t0\nwho lost ?\tIt rained .\t0\nwho ran ?\tHe ran .\t1\n"
CISI = "     1     1\t0\t0.000000\n     3     3\t0\t0.000000\n"
STS_B = 'main-captions\tMSRvid\t2012test\t0000\t5.000\tA "man\tA man\nmain\tx\ty\t2\t1.5\tOne\tTwo\tnote\tnote\n'
QUORA, STS = "Quora-Question-Pairs-dataset-analysis-and-construction/dataset/dev.tsv", "dataset-sts/data/sts"
REVIEWS, TOPICS = "amazon-multilingual-counterfactual-dataset/data", "short-text-clustering-enhancement/data"
ONE_CLASS = ("CR/custrev.neg", "CR/custrev.pos", "SUBJ/subj.objective", "SUBJ/subj.subjective")

FILES = {f"{STS}/semeval-sts/20{y}/{n}.test.tsv": f"3.5\tA {n} {y}.\tA {y}.\n\tNot judged.\tBy any.\n" for y in range(12, 17) for n in "ab"}
FILES |= {f"{STS}/sick2014/SICK_test_annotated.txt": SICK, "dataset-sts/data/para/msr/msr-para-test.tsv": MRPC}
FILES |= {QUORA: "1\tWhy so?\tHow so?\t18\n0\tWho?\tWhen?\t211\n"}
FILES |= {f"NLI_datasets/nli_datasets/{name}/dev.csv": NLI for name in ("snli", "mnli", "scitail")}
FILES |= {f"{REVIEWS}/EN_{s}.tsv": f'sentence\tis_counterfactual\n"It {s}s\t0\nI wish it {s}ed\t1\n' for s in TRAIN_TEST}
FILES |= {f"tweeteval/datasets/{name}/{s}_text.txt": f"@user {s} {name} “a” \n{s} {name} b\n" for name, s in TWEETS}
FILES |= {f"tweeteval/datasets/{name}/{s}_labels.txt": "0\n1\n" for name, s in TWEETS}
FILES |= {"qnn/data/TREC/train_5500.label": "NUM:dist How far is Café ?\nLOC:city Where is it ?\n"}
FILES |= {"qnn/data/TREC/TREC_10.label": "LOC:other Where ?\n", "qnn/data/QA/wiki/test.txt": WIKI_QA}
FILES |= {f"qnn/data/{name}": "".join(f"{name} {i} . \n" for i in range(40)) for name in ONE_CLASS}
FILES |= {
    "TransformerClassification/data/ag_news_csv/test.csv": "".join(f'"{1 + i % 2}","T {i}","Is ""so\\{i}"", ha."\n' for i in range(40))
}
FILES |= {f"{TOPICS}/{n}/{n}_true_text": f"7\tmap in {n}\t\r\n9\tfold in {n}\n" for n in ("stackoverflow", "biomedical", "search_snippets")}
FILES |= {"STTM/dataset/Tweet.txt": "brain rehab\ntrailer week\nbrain delay", "STTM/dataset/Tweet_LABEL.txt": "37\n14\n37\n"}
FILES |= {f"IR_BIM_model/data/cran/{n}": text for n, text in (("cran.all.1400", SMART), ("cran.qry", QUERIES), ("cranqrel", JUDGED))}
FILES |= {f"tf-idf/CISI.{n}": text for n, text in (("ALL", SMART), ("QRY", QUERIES), ("REL", CISI))}
FILES |= {"xquad/xquad.en.json": json.dumps({"data": [{"paragraphs": ASKED}]}), "Disfl-QA/dev.json": json.dumps(DISFLUENT)}
FILES |= {"sts_eval/data/stsbenchmark/sts-dev.csv": STS_B, "oos-eval/data/data_full.json": json.dumps(SPLITS)}
FILES |= {f"task-specific-datasets/banking_data/{s}.csv": f'text,category\n"My card, {s}",card\nMoney {s},cash\n' for s in TRAIN_TEST}


@pytest.fixture(scope="module")
def clones(tmp_path_factory):
    """A data folder with small files of all sources."""
    root = tmp_path_factory.mktemp("suite")
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("latin-1" if "TREC" in name else "utf-8"))
    (root / "claimverifier" / "data").mkdir(parents=True)
    with zipfile.ZipFile(root / "claimverifier" / "data" / "scifact.zip", "w") as archive:
        archive.writestr("claims_validation.csv", CLAIMS)
        archive.writestr("corpus_train.csv", ABSTRACTS)
    return root


@pytest.fixture(scope="module")
def rows(clones):
    return {name: tasks.read(task, clones) for name, task in tasks.TASKS.items()}


def test_every_task_is_of_its_kind(rows):
    for name, task in tasks.TASKS.items():
        assert type(rows[name]) is task.kind
        assert len(rows[name]) > 0
        assert all(text == text.strip() != "" for text in rows[name].texts())
    assert len([task for task in tasks.TASKS.values() if not task.seen]) >= 15
    assert {task.seen for task in tasks.TASKS.values()} == {"", "tuned", "text"}


def test_pairs_of_texts(rows):
    def pairs(name):
        found = rows[name]
        return sorted(zip(found.first, found.second, found.target, strict=True))

    assert pairs("STS14") == [("A a 14.", "A 14.", 3.5), ("A b 14.", "A 14.", 3.5)]
    assert pairs("SICK-R") == [("A boy runs", "A boy walks", 3.3)]
    assert pairs("MRPC") == [('"Quoted," he said.', "He said it.", 1), ("One.", "Two.", 0)]
    assert pairs("QQP") == [("Who?", "When?", 0), ("Why so?", "How so?", 1)]
    assert pairs("SciTail") == [("A, and b.", "A.", 1), ("A.", "B.", 0), ("A.", "Not a.", 0)]
    assert pairs("STS-B dev") == [('A "man', "A man", 5), ("One", "Two", 1.5)]


def test_texts_with_classes(rows):
    def classes(name):
        found = rows[name]
        return [sorted(zip(*columns, strict=True)) for columns in ((found.known, found.known_target), (found.unknown, found.target))]

    assert classes("counterfactual reviews") == [[('"It trains', 0), ("I wish it trained", 1)], [('"It tests', 0), ("I wish it tested", 1)]]
    assert classes("tweets: sentiment") == [
        [("@user val sentiment “a”", 0), ("val sentiment b", 1)],
        [("@user test sentiment “a”", 0), ("test sentiment b", 1)],
    ]
    assert classes("TREC questions") == [[("How far is Café ?", 1), ("Where is it ?", 0)], [("Where ?", 0)]]
    assert classes("banking77")[1] == [("Money test", 1), ("My card, test", 0)]
    assert classes("CLINC150")[0] == [(text, int(label == "pay")) for text, label in sorted(SPLITS["train"])]
    for name, label in (("subjectivity", "SUBJ/subj.subjective"), ("customer reviews", "CR/custrev.pos")):
        known, unknown = classes(name)
        assert len(known + unknown) == len({text for text, _ in known + unknown}) == 80
        assert {(text.startswith(label), target) for text, target in known + unknown} == {(True, 1), (False, 0)}
    texts = sorted(text for part in classes("AG News") for text, _ in part)
    assert texts == sorted(f'T {i}. Is "so {i}", ha.' for i in range(40))


def test_texts_with_topics(rows):
    assert sorted(zip(rows["StackOverflow"].members, rows["StackOverflow"].target, strict=True)) == [
        ("fold in stackoverflow", 1),
        ("map in stackoverflow", 0),
    ]
    found = dict(zip(rows["tweets by event"].members, rows["tweets by event"].target, strict=True))
    assert found == {"brain rehab": 1, "trailer week": 0, "brain delay": 1}


def test_queries_and_documents(rows):
    def pairs(name):
        found = rows[name]
        return {query: {found.documents[d]: g for d, g in right} for query, right in zip(found.queries, found.relevant, strict=True)}

    wing, tail = "lift of wings the wing lifts the plane .", "drag of tails"
    assert pairs("Cranfield") == {"what lifts ?": {wing: 1}, "what drags ?": {wing: 1, tail: 1}}
    assert pairs("CISI") == {"what lifts ?": {wing: 1}, "what drags ?": {tail: 1}}
    assert pairs("SciFact") == {"Wings lift.": {"Wings They lift. They don't drag.": 1, "Tails It's a tail.": 1}}
    assert sorted(rows["SciFact"].documents) == ["Noses Point.", "Tails It's a tail.", "Wings They lift. They don't drag."]
    assert pairs("XQuAD") == {f"What {q} {i}?": {f"About {i}.": 1} for i in "xy" for q in "ab"}
    assert pairs("Disfl-QA") == {"Who lost no won?": {"Who won?": 1}, "Er who ran?": {"Who ran?": 1}}
    assert pairs("WikiQA") == {"who won ?": {"She won .": 1}, "who ran ?": {"He ran .": 1}}
    assert sorted(rows["WikiQA"].documents) == ["He ran .", "It rained .", "She won ."]


def test_rows_are_chosen_by_checksum(random):
    """The choice depends on neither the order nor other rows that are not chosen, and has no row twice."""
    many = [(f"text {i}", str(i % 5)) for i in range(9000)]
    mixed = [many[i] for i in random.permutation(len(many))] + many[:50]
    assert files.clusters(many) == files.clusters(mixed)
    assert len(files.clusters(many)) == len(set(files.clusters(many).members)) == files.MEMBERS
    found = files.halves(mixed)
    assert not set(found.known) & set(found.unknown)
    assert [found.known_target.count(label) for label in range(5)] == [files.KNOWN // 5] * 5
    assert len(found) == files.UNKNOWN
    relevant = {"q": {"3": 2.0, "5000": 1.0}, "nothing": {}}
    one, two = (files.retrieval([("q", "Q"), ("nothing", "N")], [(str(i), f"d{i}" * 999) for i in order], relevant)
                for order in (range(6000), random.permutation(6000)))  # fmt: skip
    assert one == two
    assert (one.queries, len(one.documents), max(map(len, one.documents))) == (["Q"], files.DOCUMENTS, files.LONGEST)
    assert {one.documents[d][:5].strip("d"): g for d, g in one.relevant[0]} in ({"3d3": 2, "5000": 1}, {"3d3d": 2, "5000": 1})


BROKEN = [
    ("STS12", f"{STS}/semeval-sts/2012/a.test.tsv", "much\tA\tB\n", "line 1: 'much' is no number"),
    ("QQP", QUORA, "1\tA\n", "line 1 has 2 columns, expected at least 3"),
    ("QQP", QUORA, "", "the files hold no rows"),
    ("QQP", QUORA, None, "dev.tsv cannot be read: No such file or directory"),
    ("SNLI", "NLI_datasets/nli_datasets/snli/dev.csv", "premise,label\nA.,neutral\n", "no column 'hypothesis'"),
    ("tweets: emotion", "tweeteval/datasets/emotion/test_labels.txt", "0\n", "has 2 lines, but"),
    ("tweets: offensive", "tweeteval/datasets/offensive/test_labels.txt", "0\n7\n", "label '7' has no text to learn from"),
    ("Cranfield", "IR_BIM_model/data/cran/cranqrel", "1 9 1\n", "document '9' is relevant to a query, but not among the 3 documents"),
    ("Cranfield", "IR_BIM_model/data/cran/cranqrel", "1 two\n", "line 1: '1 two', expected the numbers of a query and of a document"),
    ("SciFact", "claimverifier/data/scifact.zip", "PK", "has no readable corpus_train.csv"),
    ("XQuAD", "xquad/xquad.en.json", '{"data": [{}]}', "is not in SQuAD's format: 'paragraphs'"),
    ("XQuAD", "xquad/xquad.en.json", "{", "is no JSON"),
    ("Disfl-QA", "Disfl-QA/dev.json", "[]", "is not in Disfl-QA's format"),
    ("WikiQA", "qnn/data/QA/wiki/test.txt", "who ?\tShe .\tyes\n", "line 1: 'yes', expected 0 or 1"),
    ("CLINC150", "oos-eval/data/data_full.json", "{}", "is no JSON object with a list 'train'"),
    ("banking77", "task-specific-datasets/banking_data/test.csv", None, "test.csv cannot be read: No such file or directory"),
]


@pytest.mark.parametrize(("name", "file", "text", "said"), BROKEN, ids=[f"{name}: {said[:20]}" for name, _, _, said in BROKEN])
def test_a_broken_file_is_named(tmp_path, name, file, text, said):
    folder = tasks.TASKS[name].source.folder
    for other, content in FILES.items():
        if other.startswith(f"{folder}/"):
            (tmp_path / other).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / other).write_text(content)
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).unlink(missing_ok=True)
    if text is not None:
        (tmp_path / file).write_text(text)
    with pytest.raises(InputError) as caught:
        tasks.read(tasks.TASKS[name], tmp_path)
    assert said in str(caught.value)


# --- the table -------------------------------------------------------------------------------------


def column(name, scores, **changes):
    """A column with scores, {task: (score, resampled scores)}."""
    return table.Column(name, f"models/{name}", None, f"digest of {name}", 12.5, **changes, scores=scores)


@pytest.fixture
def two():
    """A table of two models on three tasks, one of which the makers tuned on."""
    draws = np.linspace(-2, 2, 101)
    first = {"STS12": (80.0, list(80 + draws)), "AG News": (40.0, list(40 - draws)), "CLINC150": (99.0, list(99 + draws))}
    second = {"STS12": (78.0, list(78 + draws)), "AG News": (42.0, list(42 + draws)), "CLINC150": (10.0, list(10 + draws))}
    speed = {"measured": "2026-01-02, cpu, 2 threads"}
    columns = [column("big", first, microseconds=50.0, **speed), column("small", second, microseconds=5.0, **speed)]
    return table.Table(columns, {"STS12": (7, 70), "AG News": (8, 80), "CLINC150": (9, 90)})


def test_the_average_of_a_column(two):
    """By hand: (80 + 40) / 2 and (78 + 42) / 2. Draws of the first cancel out; 95% of those of the second are within 1.9."""
    big, small = two.summary("big"), two.summary("small")
    assert (big.average, big.interval, big.difference, big.per_cent) == (60, pytest.approx([60, 60]), 0, 100)
    assert (small.average, small.difference, small.per_cent) == (60, 0, 100)
    assert small.interval == pytest.approx([58.1, 61.9])
    assert small.difference_interval == pytest.approx([-1.9, 1.9])
    assert small.per_cent_interval == pytest.approx([100 - 190 / 60, 100 + 190 / 60])
    assert (small.lowest, small.lowest_task) == (97.5, "STS12")
    assert small.lowest_interval == pytest.approx([100 * 76.1 / 78.1, 100 * 79.9 / 81.9])  # both draws of STS12 rise together


def test_the_average_is_over_tasks_that_all_columns_have(two):
    two.columns["small"].scores.pop("AG News")
    assert two.common() == ["STS12"]
    assert two.summary("small").per_cent == 97.5
    two.columns["small"].scores.pop("STS12")
    assert two.summary("small") is None
    text = two.as_markdown()
    assert "| CLINC150 (tuned)" in text
    assert "| 0 tasks" in text


def test_a_table_is_kept_in_a_file(two, tmp_path):
    two.write(tmp_path / "table.json")
    found = table.Table.read(tmp_path / "table.json")
    assert found.as_markdown() == two.as_markdown()
    assert found.as_csv() == two.as_csv()
    assert [line.split(",")[:6] for line in two.as_csv().splitlines()[1:3]] == [
        ["STS12", "similarity", "Spearman of cosines", "7", "", name] for name in ("big", "small")
    ]
    assert two.as_csv().splitlines()[2].split(",")[7:] == ["78.0", "76.1", "79.9", "-2.0", "-2.0"]
    assert two.as_csv().splitlines()[-1].split(",")[7:] == ["60.0", "58.1", "61.9", "-1.9", "1.9"]


@pytest.mark.parametrize("text", ["", "[]", '{"columns": [{}], "rows": {}}', '{"columns": [], "rows": {"STS12": 7}}'])
def test_another_file_is_no_table(text, tmp_path):
    (tmp_path / "table.json").write_text(text)
    with pytest.raises(InputError, match=r"is not a table that `evaluate\.py suite --out` wrote"):
        table.Table.read(tmp_path / "table.json")


def test_scores_of_other_rows_and_of_other_models_are_not_mixed(two):
    """Neither as many other rows, nor another model in the same folder, nor another dtype."""
    small = two.column(models.Entry("small", "moved/small", None), "digest of small", 12.5)
    assert small.scores["STS12"][0] == 78
    with pytest.raises(InputError, match="the table has scores of STS12 on 7 rows"):
        two.add(small, "STS12", kinds.Similarity(list("abcdefg"), list("abcdefg"), [1.0] * 7), 50.0, np.full(101, 50.0))
    two.add(small, "STS13", LIKE, 50.0, np.full(101, 50.0))
    two.add(small, "STS13", LIKE, 60.0, np.full(101, 60.0))
    assert small.scores["STS13"][0] == 60
    for entry, digest in (
        (models.Entry("small", "models/small", None), "another"),
        (models.Entry("small", "models/small", "int8"), "digest of small"),
    ):
        with pytest.raises(InputError, match="two models are named 'small': models/small"):
            two.column(entry, digest, 12.5)


def test_tables_are_joined(two):
    """Columns of a second table come after those of the first; a column of both has the scores of both, and the later speed."""
    more = table.Table(
        [column("big", {"STS13": (1.0, [1.0] * 101)}, microseconds=40.0, measured="later"), column("new", {})], {"STS13": (3, 30)}
    )
    two.join(more)
    assert list(two.columns) == ["big", "small", "new"]
    big = two.columns["big"]
    assert (set(big.scores), big.microseconds, big.measured) == ({"STS12", "STS13", "AG News", "CLINC150"}, 40.0, "later")
    assert two.columns["small"].microseconds == 5.0
    with pytest.raises(InputError, match="scores of STS13 on 3 rows"):
        two.join(table.Table([], {"STS13": (3, 31)}))
    with pytest.raises(InputError, match="two models are named 'new': models/new"):
        two.join(table.Table([table.Column("new", "elsewhere", "int8", "digest of new", 1.0)]))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("runs/a/checkpoint", ("checkpoint", "runs/a/checkpoint", None)),
        ("runs/a:int8", ("a int8", "runs/a", "int8")),
        ("my model=C:/runs/a:bfloat16", ("my model", "C:/runs/a", "bfloat16")),
        ("x=C:/runs/a", ("x", "C:/runs/a", None)),
    ],
)
def test_how_a_model_is_named(given, expected):
    assert models.entry(given) == expected


def test_a_name_without_a_model():
    with pytest.raises(InputError, match="'x=:int8' names no model"):
        models.entry("x=:int8")


# --- the command -----------------------------------------------------------------------------------

LIKE = kinds.Similarity(["ada", "ada", "ada lovelace"], ["ada", "paris", "ada"], [5.0, 0.0, 3.0])
FIND = kinds.Retrieval(["capital of france", "ada"], ["ada lovelace", "paris is the capital"], [[[1, 1.0]], [[0, 2.0]]])
SORT = kinds.Clusters(["ada", "ada lovelace", "paris", "paris france"], [0, 0, 1, 1])


@pytest.fixture
def command(capsys, monkeypatch, readable_model, tmp_path):
    """command(*arguments) -> (status, output, errors), in a folder with a tiny model, "readable", and a packed suite of three tasks."""
    monkeypatch.setattr(kinds, "RESAMPLES", 20)
    monkeypatch.chdir(tmp_path)
    readable_model(tasks=Tasks(embed=Embed("mean", True)))
    tasks.pack({"STS12": LIKE, "XQuAD": FIND, "tweets by event": SORT}, tmp_path / "suite.json.xz")

    def run(*arguments):
        try:
            status = evaluate.main([*map(str, arguments)])
        except SystemExit as stop:
            status = stop.code
        return (status, *capsys.readouterr())

    return run


def test_models_on_a_packed_suite(command, tmp_path):
    """Every answer of the tiny model is right, since its vectors count words. A second run adds a column to the table."""
    arguments = ("--data", "suite.json.xz", "--out", "table.json", "--tasks", "sts12,xquad,mrpc")
    status, out, err = command("suite", "tiny=readable:float32", *arguments, "--no-speed")
    assert status == 0
    assert "MRPC left out: suite.json.xz holds no such task" in err
    assert "tiny on STS12: 100.00" in err
    assert [line.split("|")[3].split()[0] for line in out.splitlines()[2:5]] == ["100.00"] * 3
    status, out, err = command("suite", "readable:int8", *arguments, "--threads", 2)
    found = table.Table.read(tmp_path / "table.json")
    assert list(found.columns) == ["tiny", "readable int8"]
    assert found.columns["tiny"].microseconds is None
    assert found.columns["readable int8"].microseconds > 0
    assert found.columns["readable int8"].measured.endswith(", cpu, 2 threads")
    assert "| readable int8" in out
    assert command("speed", "tiny=readable:float32", *arguments[:4])[0] == 0
    assert table.Table.read(tmp_path / "table.json").columns["tiny"].microseconds > 0
    status, out, _ = command("join", "table.csv", "table.json")
    assert status == 0
    assert "| readable int8" in out
    assert (tmp_path / "table.csv").read_text() == table.Table.read(tmp_path / "table.json").as_csv()


def test_a_folder_of_clones_is_packed(command, clones, tmp_path):
    status, _, err = command("suite", "--data", clones, "--pack", "packed.json.xz", "--texts", "texts.txt")
    assert status == 0
    assert "left out" not in err
    assert tasks.unpacked(tmp_path / "packed.json.xz") == {name: tasks.read(task, clones) for name, task in tasks.TASKS.items()}
    texts = (tmp_path / "texts.txt").read_text().splitlines()
    assert {"Who lost no won?", "brain rehab", 'T 7. Is "so 7", ha.'} <= set(texts)
    assert len(texts) == len(set(texts))


def test_a_task_without_its_clone_is_named_with_the_command_that_gets_it(command, clones, tmp_path):
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite" / "xquad").symlink_to(clones / "xquad")
    status, out, err = command("suite", "readable", "--no-speed")
    assert status == 0
    assert out.count("| XQuAD") == 1
    assert (
        "Disfl-QA left out: suite/Disfl-QA does not exist. In suite: git clone https://github.com/google-research-datasets/Disfl-QA" in err
    )
    assert err.count("left out") == len(tasks.TASKS) - 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("suite", "readable", "--data", "nowhere"),
            "nowhere does not exist: name the folder of the texts with --data; --help says how to get them",
        ),
        (("suite", "readable", "--data", "readable/config.json"), "readable/config.json is not a suite that --pack wrote"),
        (("suite", "readable", "--data", "suite.json.xz", "--tasks", "stss"), "unknown: stss: did you mean"),
        (("suite", "missing", "--data", "suite.json.xz"), "missing"),
        (("suite", "a=readable", "a=readable:int8", "--data", "suite.json.xz"), "two models are named 'a': readable"),
        (("suite", "readable", "--data", "suite.json.xz", "--tasks", "mrpc"), "suite.json.xz holds none of the tasks"),
        (("suite", "readable", "--data", "suite.json.xz", "--out", "table.txt"), "--out is table.txt, expected a .json file"),
        (("suite", "readable", "--data", "suite.json.xz", "--out", "readable/config.json"), "is not a table"),
        (("pareto", "readable/config.json", "tiny=trees"), "is not a table"),
    ],
)
def test_what_is_refused(command, arguments, said):
    status, _, err = command(*arguments)
    assert status in (1, 2)
    assert said in err


def test_a_model_that_does_not_embed(command, readable_model):
    readable_model(tasks=Tasks(fill_mask=FillMask(False, tied=False, bias=False)))
    assert "readable has no head for embed: it has fill_mask" in command("suite", "readable", "--data", "suite.json.xz")[2]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "holds []"),
        ({"STS12": {"kind": "riddles"}}, "expected an object whose kind is one of similarity"),
        ({"STS12": {"kind": "pairs", "first": []}}, "expected kind and the lists first, second, target"),
        ({"STS12": {"kind": "clusters", "members": [], "target": 3}}, "expected kind and the lists members, target"),
    ],
)
def test_a_broken_packed_file(command, tmp_path, value, said):
    (tmp_path / "suite.json.xz").write_bytes(lzma.compress(json.dumps(value).encode()))
    assert said in command("suite", "readable", "--data", "suite.json.xz")[2]


def test_static_embeddings(command, tmp_path, monkeypatch):
    """A folder that model2vec wrote is scored as a model is; the vectors of its words are one-hot, and here one word has none."""
    model2vec = pytest.importorskip("model2vec", reason="static embeddings are of model2vec")
    tokenizer = make_tokenizer()
    tokenizer.no_padding()
    tokenizer.no_truncation()
    vectors = np.eye(len(WORDS), dtype=np.float32)
    vectors[WORDS.index("un")] = 0
    model2vec.StaticModel(vectors, tokenizer).save_pretrained(tmp_path / "static")
    found = models.load(models.Entry("static", "static", None), "cpu", None).embed(["ada lovelace", "un"])
    assert found[0] @ vectors[WORDS.index("ada")] == pytest.approx(0.5**0.5, abs=1e-3)
    assert not found[1].any()
    assert "static on STS12: 100.00" in command("suite", "static", "--data", "suite.json.xz", "--no-speed")[2]
    assert (
        "static embeddings, which have no dtype to compute in: leave :int8 out"
        in command("suite", "static:int8", "--data", "suite.json.xz")[2]
    )


@pytest.mark.filterwarnings("ignore")  # other packages may warn of anything
def test_an_int8_model_of_openvino(command, tmp_path):
    """It gives nearly the vectors of the float32 model, in any order and of any length of texts."""
    for module in ("torch", "transformers", "onnxruntime", "openvino", "nncf"):
        pytest.importorskip(module, reason=f"the int8 model of OpenVINO is made with {module}")
    import torch
    import transformers

    sizes = {"vocab_size": len(WORDS), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    teacher = transformers.BertModel(transformers.BertConfig(**sizes, max_position_embeddings=128)).eval()
    torch.manual_seed(0)
    for weight in teacher.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    teacher.save_pretrained(tmp_path / "teacher")
    make_tokenizer().save(str(tmp_path / "teacher" / "tokenizer.json"))
    assert command("openvino", "teacher", "ov")[0] == 0
    texts = ["ada lovelace", "un", "", *(" ".join(WORDS[5 : 5 + n]) for n in (9, 3, 14))]
    found = models.load(models.Entry("ov", "ov", None), "cpu", 1).embed(texts)
    want = fastinfer.load(tmp_path / "teacher", device="numpy").embed(texts, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-4)
    assert (found * want).sum(1).min() > 0.98
    assert "ov on STS12: " in command("suite", "ov", "--data", "suite.json.xz", "--no-speed")[2]


def test_other_packages_read_published_folders_alone(command):
    for made in ("static", "openvino"):
        assert "readable is in fastinfer's own layout, expected a folder in the Hugging Face layout" in command(made, "readable", "out")[2]


def test_sources_and_terms_are_in_the_help_and_in_the_documents(command):
    status, out, _ = command("suite", "--help")
    assert status == 0
    page = (TOOLS.parent / "docs" / "evaluation.md").read_text()
    for source in tasks.sources():
        assert f"git clone https://github.com/{source.repository} && git -C {source.folder} checkout {source.commit}" in out
        assert f"(https://github.com/{source.repository}) `{source.commit}` | {source.terms} |" in page
    for name in tasks.TASKS:
        assert f"\n  {name} " in out
        assert f"| {name}" in page


# --- the picture -----------------------------------------------------------------------------------


def test_points_of_the_picture(two):
    text = pareto.points(two, ["big=teacher", "small=trees"], "a machine")
    lines = text.splitlines()
    assert lines[1] == "# speed: 2026-01-02, cpu, 2 threads; a machine"
    assert "average of 2 tasks, per cent of that of big" in lines[2]
    rows = list(csv.DictReader(lines[3:]))
    assert rows[0] == {"group": "big", "series": "teacher", "x": "50.0", "y": "100.0", "low": None, "high": None}
    assert rows[1] == {"group": "small", "series": "trees", "x": "5.0", "y": "100.0", "low": "96.8", "high": "103.2"}


@pytest.mark.parametrize(
    ("point", "said"),
    [
        ("small", "'small' is no point, expected COLUMN=KIND"),
        ("smal=trees", "the table has no column 'smal': did you mean small"),
        ("late=trees", "column 'late' has no speed"),
        ("other=trees", "speeds were measured differently"),
    ],
)
def test_points_that_cannot_be_drawn(two, point, said):
    scores = two.columns["big"].scores
    two.columns["late"] = column("late", scores)
    two.columns["other"] = column("other", scores, microseconds=1.0, measured="another day")
    with pytest.raises(InputError, match=said):
        pareto.points(two, ["big=teacher", point], "")


def test_the_picture_shows_every_point(random):
    """Names do not overlap, points to the right are slower, higher points are better, and each has its colour."""
    kinds_of = ["teacher", "trees", "dense", "static"]
    rows = [figures.Row(f"model {i}", kinds_of[i % 4], f"{0.5 * 1.8**i:.2f}", 90 + float(random.random()), 89.0, 92.0) for i in range(8)]
    parsed = ElementTree.fromstring(figures.scatter("Title", rows, "unit", "x"))
    texts = {element.text: element for element in parsed.iter("{http://www.w3.org/2000/svg}text")}
    assert {row.group for row in rows} | set(kinds_of) <= set(texts)
    circles = list(parsed.iter("{http://www.w3.org/2000/svg}circle"))[len(kinds_of) :]
    by_height = sorted(rows, key=lambda row: -row.y)
    places = [(float(c.get("cx")), float(c.get("cy")), c.get("fill")) for c in circles]
    assert [y for _, y, _ in places] == sorted(y for _, y, _ in places)
    for row, (_, _, fill) in zip(by_height, places, strict=True):
        assert fill == figures.COLOURS[list(dict.fromkeys(r.series for r in rows)).index(row.series)]
    order = sorted(range(8), key=lambda i: float(by_height[i].x))
    assert [places[i][0] for i in order] == sorted(x for x, _, _ in places)
    heights = [float(texts[row.group].get("y")) for row in by_height]
    starts = [float(texts[row.group].get("x")) for row in by_height]
    for i in range(8):
        for j in range(i):
            assert abs(heights[i] - heights[j]) >= 13 or abs(starts[i] - starts[j]) >= 7 * len("model 1")
