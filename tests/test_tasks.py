"""fastinfer/evaluation: each loader on tiny files, each metric against its definition, and the refusals."""

import json
import lzma
import math
import random
import zlib

import numpy as np
import pytest

from fastinfer.errors import InputError
from fastinfer.evaluation import metrics, table, tasks


def write(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding=encoding, newline="")
    return path


def refuses(message, task, data, split="dev", **options):
    with pytest.raises(InputError, match=message):
        task.read(data, split, **options)


# --- loaders ---


def test_glue_files_are_read_as_they_are_published(tmp_path):
    """Quotes are ordinary characters, MRPC begins with a byte order mark, and CoLA has no line of column names."""
    write(tmp_path / "SST-2" / "dev.tsv", 'sentence\tlabel\na "fine film \t1\nbad\t0\n')
    write(tmp_path / "glue" / "CoLA" / "dev.tsv", 'gj04\t1\t\tHe said "no.\ngj04\t0\t*\tSaid he no.\r\n')
    write(tmp_path / "MRPC" / "dev.tsv", '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t5\t6\tHe "left.\tHe went.\n')
    write(tmp_path / "RTE" / "dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\tIt rained.\tIt was dry.\tnot_entailment\n")
    write(tmp_path / "QNLI" / "dev.tsv", "index\tquestion\tsentence\tlabel\n0\tWho?\tAda.\tentailment\n")
    write(tmp_path / "STS-B" / "dev.tsv", "score\tsentence2\tsentence1\n3.8\tB.\tA.\n0.000\tD.\tC.\n")
    read = {name: task.read(tmp_path, "dev") for name, task in tasks.GLUE.items()}
    assert (read["SST-2"].inputs, read["SST-2"].targets) == (['a "fine film ', "bad"], [1, 0])
    assert (read["CoLA"].inputs, read["CoLA"].targets) == (['He said "no.', "Said he no."], [1, 0])
    assert (read["MRPC"].inputs, read["MRPC"].targets) == ([('He "left.', "He went.")], [1])
    assert (read["RTE"].inputs, read["RTE"].targets) == ([("It rained.", "It was dry.")], [1])
    assert (read["QNLI"].inputs, read["QNLI"].targets) == ([("Who?", "Ada.")], [0])
    assert (read["STS-B"].inputs, read["STS-B"].targets) == ([("A.", "B."), ("C.", "D.")], [3.8, 0.0])
    assert read["SST-2"].labels == ("negative", "positive")
    assert read["STS-B"].labels == ("score",)
    assert len(read["STS-B"]) == 2


def test_clinc150(tmp_path):
    splits = {"train": [["hi", "greet"], ["bye", "leave"]], "test": [["hello", "greet"]], "oos_test": [["x", "oos"]]}
    write(tmp_path / "other" / "CLINC150" / "data_full.json", json.dumps(splits))
    task = tasks.TASKS["CLINC150"]
    train = task.read(tmp_path, "train")
    assert (train.inputs, train.targets, train.labels) == (["hi", "bye"], [0, 1], ("greet", "leave"))
    assert task.read(tmp_path, "test", ("leave", "greet")).targets == [1]


CONLL = "-DOCSTART- -X- O O\n\nAda NNP I-NP B-PER\nLovelace NNP I-NP I-PER\nsmiled VBD I-VP O\n\n\nIn IN I-PP O\nParis NNP I-NP B-LOC"


def test_tags(tmp_path):
    path = write(tmp_path / "dev.conll", CONLL)
    found = tasks.own_task("tags", {"dev": path}).read("", "dev")
    assert found.inputs == [["Ada", "Lovelace", "smiled"], ["In", "Paris"]]
    assert found.targets == [["B-PER", "I-PER", "O"], ["O", "B-LOC"]]
    assert found.labels == ("O", "B-LOC", "B-PER", "I-PER")
    write(tmp_path / "WNUT17" / "emerging.test.annotated", "New York\tB-location\n#x\tO\n\n")
    assert tasks.TASKS["WNUT17"].read(tmp_path, "test").inputs == [["New York", "#x"]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("own.csv", 'stars,review,again\r\n5,"good, very\r\ngood","yes ""yes"""\r\n1,bad,no\r\n'),
        ("own.tsv", 'review\tagain\tstars\ngood, very\\ngood\tyes "yes"\t5\nbad\tno\t1\n'),
        (
            "own.jsonl",
            '{"review": "good, very\\r\\ngood", "again": "yes \\"yes\\"", "stars": 5}\n{"review": "bad", "again": "no", "stars": "1"}\n',
        ),
    ],
)
def test_files_of_ones_own(tmp_path, name, content):
    path = write(tmp_path / name, content, "utf-8-sig")
    newline = "\\n" if name == "own.tsv" else "\r\n"
    files = {"dev": path}
    classes = tasks.own_task("classes", files, text="review", target="stars").read("", "dev")
    assert classes.inputs == [f"good, very{newline}good", "bad"]
    assert (classes.targets, classes.labels) == ([1, 0], ("1", "5"))
    scored = tasks.own_task("score", files, text="review", pair="again", target="stars").read("", "dev")
    assert scored.inputs == [(f"good, very{newline}good", 'yes "yes"'), ("bad", "no")]
    assert (scored.targets, scored.labels) == ([5.0, 1.0], ("stars",))
    pairs = tasks.own_task("pairs", files, text="again", pair="review").read("", "dev")
    assert (pairs.inputs[1], pairs.targets) == (("no", "bad"), [0, 1])


def test_articles_kept_out_of_training(tmp_path):
    """Only articles whose title's checksum is divisible by five count, with paragraphs of two sentences, in any order of the file."""
    tail = " ".join(f"It also had a number {i} of further facts that fill a line." for i in range(4))
    articles = {
        f"Title {i}": [
            f'In {1900 + i} the town of Place-{i} had {i} citizens in "all." {tail}',
            "Too short. A line.",
            f"One sentence {'on ' * 90}.",
        ]
        for i in range(40)
    }
    task = tasks.TASKS["retrieval"]

    def read(order):
        text = "".join(f"= {title} =\n" + "".join(f"{p}\n" for p in articles[title]) for title in order)
        (tmp_path / "wikipedia-good-2019.txt.xz").write_bytes(lzma.compress(text.encode()))
        return task.read(tmp_path, "test")

    found = read(articles)
    out = [title for title in articles if zlib.crc32(title.encode()) % 5 == 0]
    assert 0 < len(out) < 20
    assert sorted(found.inputs) == sorted((p.removesuffix(f" {tail}"), tail) for p in (articles[title][0] for title in out))
    assert found.targets == list(range(len(out)))
    assert read(random.Random(0).sample(sorted(articles), 40)).inputs == found.inputs
    assert sorted(tasks.TASKS["fill-mask"].read(tmp_path, "test").inputs) == sorted(first for first, _ in found.inputs)


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["models/fast"], ["fast"]),
        (["runs/64x5/model", "runs/1x11/model"], ["64x5", "1x11"]),
        (["a/x", "b/y/x"], ["a", "b/y"]),
        (["a", "a/b"], ["a", "a/b"]),
        (["model", "x/model"], ["model", "x/model"]),
        (["/x/a", "b"], ["/x/a", "b"]),
    ],
)
def test_short_names_of_folders(folders, names):
    assert list(table.short_names(folders).values()) == names


# --- what is refused ---


def test_files_that_are_not_there(tmp_path):
    refuses(r"CoLA/dev\.tsv does not exist, and no folder of .* has it", tasks.TASKS["CoLA"], tmp_path)
    refuses("QNLI has no split 'train', only dev", tasks.TASKS["QNLI"], tmp_path, "train")
    refuses(r"expected a file named \.csv", tasks.own_task("classes", {"dev": write(tmp_path / "own.parquet", "x")}), "")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", "", "empty.csv holds no examples"),
        ("head.csv", "text,label\n", "head.csv holds no examples"),
        ("empty.jsonl", "", "empty.jsonl holds no examples"),
        ("columns.csv", "sentence,label\na,b\n", "line 1: no column 'text'; there are 'sentence', 'label'"),
        ("ragged.csv", "text,label\na,b,c\n", "line 2 has 3 columns, expected 2: 'text', 'label'"),
        ("ragged.tsv", "text\tlabel\na\tb\nc\n", "line 3 has 1 columns, expected 2"),
        ("quote.csv", 'text,label\n"a,b\n', "after line 2: unexpected end of data"),
        ("bytes.tsv", b"text\tlabel\na\tb\n\xff\tb\n", "bytes.tsv, after line [0-9]: no UTF-8"),
        ("bytes.csv", b"text,label\na,b\n\xff,b\n", "bytes.csv, after line [0-9]: .*can't decode"),
        ("broken.jsonl", '{"text": "a", "label": 1}\n{"text"\n', "line 2: no JSON"),
        ("list.jsonl", '["a", "b"]\n', r"line 1: \['a', 'b'\], expected an object with 'text', 'label'"),
        ("missing.jsonl", '{"text": "a"}\n', "line 1: no column 'label'; there are 'text'"),
        ("null.jsonl", '{"text": null, "label": 1}\n', "line 1: text is None, expected text"),
    ],
)
def test_tables_that_do_not_fit(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refuses(message, tasks.own_task("classes", {"dev": path}), "")


def test_labels_that_do_not_fit(tmp_path):
    path = write(tmp_path / "own.csv", "text,label\na,good\nb,Good\n")
    own = tasks.own_task("classes", {"dev": path})
    refuses("line 3: label 'Good' is none of those that fit: 'bad', 'good'", own, "", labels=("bad", "good"))
    many = tuple(f"label {i}" for i in range(12))
    refuses("'label 7' and 4 more", own, "", labels=many)
    write(tmp_path / "SST-2" / "dev.tsv", "sentence\tlabel\nfine\t2\n")
    refuses("line 2: label '2' is none of those that fit: 'negative', 'positive'", tasks.TASKS["SST-2"], tmp_path)


@pytest.mark.parametrize("value", ["", "high", "nan", "inf", "1,5"])
def test_scores_that_are_no_numbers(tmp_path, value):
    path = write(tmp_path / "own.csv", f'text,score\na,1\nb,"{value}"\n')
    refuses(f"line 3: '{value}' is no finite number", tasks.own_task("score", {"dev": path}, target="score"), "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Ada B-PER\nsmiled\n", "line 2: 'smiled', expected a word and its tag"),
        ("Ada PER\n", "line 1: tag 'PER', expected O, B-x or I-x"),
        ("\n \n", "holds no examples"),
    ],
)
def test_tags_that_do_not_fit(tmp_path, content, message):
    refuses(message, tasks.own_task("tags", {"dev": write(tmp_path / "dev.conll", content)}), "")
    tagged = tasks.own_task("tags", {"dev": write(tmp_path / "dev.conll", CONLL)})
    refuses("line 8: label 'B-LOC' is none of those that fit: 'O', 'B-PER', 'I-PER'", tagged, "", labels=("O", "B-PER", "I-PER"))


@pytest.mark.parametrize("content", ["[]", "{}", "{", '{"test": [["a"]]}', '{"test": [["a", 5]]}', '{"test": []}'])
def test_broken_clinc150(tmp_path, content):
    write(tmp_path / "CLINC150" / "data_full.json", content)
    refuses(r"no JSON object with a list 'test'|expected \[text, label\]|holds no examples", tasks.TASKS["CLINC150"], tmp_path, "test")


def test_broken_articles(tmp_path):
    path = tmp_path / "wikipedia-good-2019.txt.xz"
    path.write_bytes(b"no xz")
    refuses("the archive is broken", tasks.TASKS["retrieval"], tmp_path, "test")
    path.write_bytes(lzma.compress(b"= A =\nA paragraph.\n" * 100))
    refuses("holds no examples", tasks.TASKS["retrieval"], tmp_path, "test")


# --- metrics ---


def needs(module):
    return pytest.importorskip(module, reason=f"the metric is of {module}, which is not installed")


@pytest.fixture
def binary():
    rng = np.random.default_rng(0)
    targets = rng.integers(2, size=300)
    return np.where(rng.random(300) < 0.7, targets, 1 - targets), targets


def test_metrics_of_classes(binary):
    needs("sklearn")
    predictions, targets = binary
    tp, tn, fp, fn = (int(((predictions == p) & (targets == t)).sum()) for p, t in ((1, 1), (0, 0), (1, 0), (0, 1)))
    assert metrics.score(tasks.TASKS["MRPC"], predictions, targets) == pytest.approx(
        {"accuracy": 100 * (tp + tn) / 300, "f1": 200 * tp / (2 * tp + fp + fn)}
    )
    matthews = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert metrics.score(tasks.TASKS["CoLA"], predictions, targets) == pytest.approx({"matthews": 100 * matthews})
    assert metrics.score(tasks.TASKS["CoLA"], np.ones(300, int), targets) == {"matthews": 0}
    assert metrics.score(tasks.TASKS["MRPC"], np.zeros(3, int), np.ones(3, int)) == {"accuracy": 0, "f1": 0}


def test_metrics_of_scores():
    rng = np.random.default_rng(1)
    targets = rng.integers(6, size=200).astype(float)
    predictions = targets**2 + rng.normal(size=200) * 4
    ranks = [[(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values] for values in (predictions, targets)]
    found = metrics.score(tasks.TASKS["STS-B"], predictions.tolist(), targets.tolist())
    assert found["pearson"] == pytest.approx(100 * np.corrcoef(predictions, targets)[0, 1])
    assert found["spearman"] == pytest.approx(100 * np.corrcoef(*ranks)[0, 1])
    assert metrics.score(tasks.TASKS["STS-B"], np.ones(200), targets) == {"pearson": 0, "spearman": 0}


def test_f1_of_spans_is_seqevals():
    seqeval = needs("seqeval.metrics")
    task = tasks.TASKS["WNUT17"]
    gold = [["B-a", "I-a", "O", "B-b"], ["O", "O"], ["I-a", "I-b"]]
    said = [["B-a", "O", "O", "B-b"], ["B-a", "O"], ["B-a", "B-b"]]
    # right: b of the first sentence, both of the third, whose I- begins a span; 5 predicted, 4 true
    assert metrics.score(task, said, gold) == pytest.approx({"span_f1": 100 * 2 * 3 / (5 + 4)})
    rng = np.random.default_rng(2)
    labels = np.array(["O", "B-a", "I-a", "B-b", "I-b"])
    gold, said = ([labels[rng.integers(5, size=rng.integers(1, 9))].tolist() for _ in range(200)] for _ in range(2))
    said = [[*s, *["O"] * 9][: len(g)] for s, g in zip(said, gold, strict=True)]
    assert 5 < metrics.score(task, said, gold)["span_f1"] == pytest.approx(100 * seqeval.f1_score(gold, said))
    assert metrics.score(task, [["O"]], [["O"]]) == {"span_f1": 0}


def test_metrics_of_masks():
    counts = [(1, 2 * math.log(4), 2), (2, math.log(2), 3)]
    found = metrics.score(tasks.TASKS["fill-mask"], counts, [])
    assert found == pytest.approx({"mask_accuracy": 60, "pseudo_perplexity": 2.0})  # 4 * 4 * 2 = 2**5, over 5 tokens


def test_predictions_and_targets_of_different_lengths():
    with pytest.raises(InputError, match="SST-2: 2 predictions for 3 targets"):
        metrics.score(tasks.TASKS["SST-2"], [1, 0], [1, 0, 1])


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """The bootstrap's 95% interval is checked on 200 sets drawn with a known accuracy."""
    task, rng, hits, widths = tasks.TASKS["SST-2"], np.random.default_rng(3), 0, []
    for _ in range(200):
        right = (rng.random(150) < 0.8).astype(int)
        low, high = metrics.interval(metrics.resampled(task, right, np.ones(150, int), resamples=200)["accuracy"])
        hits += low <= 80 <= high
        widths.append(high - low)
    assert 180 <= hits <= 199
    assert np.mean(widths) == pytest.approx(2 * 1.96 * 100 * math.sqrt(0.8 * 0.2 / 150), rel=0.1)


def test_sets_are_drawn_alike_for_all_predictions(binary):
    """Then a model that errs on one more example is never better on any drawn set."""
    predictions, targets = binary
    task = tasks.TASKS["SST-2"]
    first, again, other = (metrics.resampled(task, *binary, seed=seed)["accuracy"] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    worse = predictions.copy()
    worse[np.flatnonzero(predictions == targets)[0]] ^= 1
    less = metrics.resampled(task, worse, targets)["accuracy"] - first
    assert less.max() == 0
    assert less.mean() == pytest.approx(-100 / 300, rel=0.1)
    assert metrics.interval(np.arange(1001) / 10) == pytest.approx([2.5, 97.5])
