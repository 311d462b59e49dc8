"""`fastinfer evaluate`, run as a command on tiny models with scores computed by hand."""

import json
import lzma
import math
import sys
import zlib

import numpy as np
import pytest
from conftest import LABELS, WORDS

import fastinfer
from fastinfer import cli
from fastinfer.config import Classify, Embed, FillMask, Tag, Tasks
from fastinfer.errors import InputError
from fastinfer.evaluation import metrics
from fastinfer.evaluation.tasks import TASKS


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, newline="")
    return path


@pytest.fixture
def run(capsys):
    """run(*arguments) -> (status, output, errors). JSON output is parsed into records."""

    def run(*arguments):
        try:
            status = cli.main(["evaluate", *map(str, arguments)])
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return status, [json.loads(line) for line in out.splitlines()] if "--json" in arguments else out, err

    return run


def one(result):
    """The only record of a run that succeeded."""
    status, (record,), err = result
    assert (status, err) == (0, "")
    assert record["texts_per_second"] > 0
    assert record["tokens_per_second"] > 3 * record["texts_per_second"]
    return record


# --- heads whose answers are known: tests/conftest.py defines a word's hidden state -----------


def test_a_classify_head_on_glue(run, readable_model, tmp_path):
    """The head answers "positive" for texts with "friend", which is right for three of four rows. The labels' order is the model's."""
    pytest.importorskip("sklearn", reason="the metrics are of scikit-learn")
    table = {"classify": {"friend": [9, 0], "[CLS]": [0, 1]}}
    folder = readable_model(table, tasks=Tasks(classify=Classify(("positive", "negative"), "softmax", "mean")))
    write(tmp_path / "glue" / "SST-2" / "dev.tsv", "sentence\tlabel\nfriend\t1\nada\t0\nparis\t0\nfriend paris\t0\n")
    record = one(run(folder, "--data", tmp_path, "--json"))
    assert (record["task"], record["how"], record["examples"], record["metrics"]) == ("SST-2", "head", 4, {"accuracy": 75})
    low, high = record["intervals"]["accuracy"]
    assert 0 <= low < 75 < high <= 100
    out = run(folder, "--data", tmp_path, "--tasks", "sst-2")[1]
    assert "accuracy  75.00 [" in out
    assert "MNLI and QQP could not be had, nor QNLI's training data" in out


def test_a_regression_head(run, readable_model, tmp_path):
    """The score is the share of "paris" among the five tokens: 1/5, 0, 2/5."""
    table = {"classify": {"paris": [1]}}
    folder = readable_model(table, tasks=Tasks(classify=Classify(("score",), "identity", "mean")))
    write(tmp_path / "STS-B" / "dev.tsv", "sentence1\tsentence2\tscore\nparis\tada\t1\nada\tada\t0\nparis\tparis\t5\n")
    record = one(run(folder, "--data", tmp_path, "--json"))
    assert record["how"] == "head"
    said = np.array([1 / 5, 0, 2 / 5])  # [CLS] one [SEP] two [SEP]
    assert record["metrics"] == pytest.approx({"pearson": 100 * np.corrcoef(said, [1, 0, 5])[0, 1], "spearman": 100})


def test_a_tag_head(run, readable_model, tmp_path):
    """The head is right for "ada" (B-PER) and "lovelace" (I-PER), misses "paris" and errs on "un". "friendly" uses its first token."""
    pytest.importorskip("seqeval", reason="the metric is of seqeval")
    table = {
        "tag": {word: 9.0 * np.eye(5)[LABELS.index(label)] for word, label in (("ada", "B-PER"), ("lovelace", "I-PER"), ("un", "B-LOC"))}
    }
    folder = readable_model(table, tasks=Tasks(tag=Tag(LABELS)))
    path = write(tmp_path / "own.conll", "ada\tB-PER\nlovelace\tI-PER\n\u200b\tO\nparis\tB-LOC\n\nfriendly\tO\nunfriendly\tO\n")
    record = one(run(folder, "--file", path, "--kind", "tags", "--json"))
    assert record["metrics"] == pytest.approx({"span_f1": 100 * 2 * 1 / (2 + 2)})
    long = write(tmp_path / "long.conll", "the\tO\n" * 40 + "ada\tB-PER\n")
    assert one(run(folder, "--file", long, "--kind", "tags", "--json"))["metrics"] == {"span_f1": 0}  # cut at 32 tokens


ARTICLE = "Paris is the capital of France in all of these words. "
REST = "Ada lived in London and she was a friend of the capital in Paris. " * 3


def articles(folder):
    """Three short articles that are excluded from training, with a passage each."""
    kept = [f"Title {i}" for i in range(60) if zlib.crc32(f"Title {i}".encode()) % 5 == 0][:3]
    found = [f"The {word} {ARTICLE}{word.title()} {REST}".strip() for word in ("ada", "london", "friend")]
    text = "".join(f"= {title} =\n{passage}\n" for title, passage in zip(kept, found, strict=True))
    (folder / "wikipedia-good-2019.txt.xz").write_bytes(lzma.compress(text.encode()))


def test_a_fill_mask_head(run, readable_model, tmp_path):
    """For every mask, the head gives "the" a probability of 1/2 and all other tokens equal shares of the rest."""
    articles(tmp_path)
    table = {"fill_mask": {"[MASK]": np.where(np.array(WORDS) == "the", math.log(len(WORDS) - 1), 0.0)}}
    folder = readable_model(table, tasks=Tasks(fill_mask=FillMask(False, tied=False, bias=False)))
    record = one(run(folder, "--data", tmp_path, "--json", "--dtype", "float32"))
    model = fastinfer.load(folder)
    first = [f"The {word} {ARTICLE}".strip() for word in ("ada", "london", "friend")]
    tokens = [WORDS[i] for encoding in model.tokenizer.encode(first) for i in encoding.ids[1:-1]]
    right = tokens.count("the")
    assert len(tokens) > right > 3
    other = len(tokens) - right
    assert record["metrics"] == pytest.approx(
        {
            "mask_accuracy": 100 * right / len(tokens),
            "pseudo_perplexity": math.exp((right * math.log(2) + other * math.log(2 * (len(WORDS) - 1))) / len(tokens)),
        },
        rel=1e-5,
    )


@pytest.fixture
def bag_of_words(readable_model):
    """An embedder whose vector of a text is the mean of its tokens' one-hot vectors."""
    return readable_model(tasks=Tasks(embed=Embed("mean", True)))


def test_an_embedder(run, bag_of_words, tmp_path):
    write(tmp_path / "STS-B" / "dev.tsv", "sentence1\tsentence2\tscore\nada\tada\t5\nada in london\tada\t3\nada\tparis\t0\nis\tthe\t1\n")
    splits = {
        "train": [["ada", "one"], ["ada ada in", "one"], ["paris", "two"]],
        "test": [["in", "one"], ["paris in", "two"], ["paris", "one"]],
    }
    write(tmp_path / "CLINC150" / "data_full.json", json.dumps(splits))
    articles(tmp_path)
    status, records, err = run(bag_of_words, "--data", tmp_path, "--json")
    assert (status, err) == (0, "")
    sts, clinc, retrieval = records
    assert [r["how"] for r in records] == ["cosine", "nearest centroid", "nearest"]
    said = [1, 3 / math.sqrt(3 * 5), 2 / 3, 2 / 3]  # [CLS] and [SEP] are shared
    assert sts["metrics"]["pearson"] == pytest.approx(100 * np.corrcoef(said, [5, 3, 0, 1])[0, 1], abs=1e-3)
    assert clinc["metrics"] == {"accuracy": pytest.approx(200 / 3)}
    assert (retrieval["examples"], retrieval["metrics"]) == (3, {"recall@1": 100})


def test_a_model_with_every_head_and_two_dtypes(run, random_model, tmp_path):
    """Columns of the table are models and dtypes. A task without data is left out with a note."""
    rows = [f"{a}\t{b}\t{len(a)}\n" for a, b in zip(WORDS[:-3], WORDS[3:], strict=True)]
    write(tmp_path / "STS-B" / "dev.tsv", "sentence1\tsentence2\tscore\n" + "".join(rows))
    articles(tmp_path)
    status, out, err = run(random_model, "--data", tmp_path, "--dtype", "float32,int8")
    assert status == 0
    assert err.count("left out") == err.count("fastinfer: CLINC150 left out") == 2
    header, *rows = out.splitlines()
    assert header.split() == ["random0", "float32", "random0", "int8"]
    assert [row for row in rows if not row.startswith(" ")] == [
        "STS-B: cosine, 19 examples",
        "retrieval: nearest, 3 examples",
        "fill-mask: each token masked, 3 examples",
    ]
    model = fastinfer.load(random_model, dtype="float32")
    first, second = (model.embed(words) for words in (WORDS[:-3], WORDS[3:]))
    pearson = 100 * np.corrcoef((first * second).sum(1), [len(a) for a in WORDS[:-3]])[0, 1]
    at = next(i for i, row in enumerate(rows) if "pearson" in row)
    _, exact, low, high, rough, *_ = rows[at].replace("[", "").replace("]", "").replace(",", "").split()
    assert exact == f"{pearson:.2f}"
    assert float(low) < pearson < float(high)
    assert float(rows[at + 1].split()[3]) == pytest.approx(float(rough) - float(exact), abs=0.011)


def test_the_difference_to_the_first_model(run, bag_of_words, tmp_path):
    """Two runs of the same model do not differ on any set."""
    write(tmp_path / "STS-B" / "dev.tsv", "sentence1\tsentence2\tscore\nada\tada\t5\nada in\tada\t3\nada\tparis\t0\nis\tthe\t1\n")
    status, records, _ = run(bag_of_words, bag_of_words, "--data", tmp_path, "--tasks", "STS-B", "--json")
    assert status == 0
    assert records[0]["differences"] == {}
    assert records[1]["differences"] == {"pearson": [0, 0], "spearman": [0, 0]}


def test_files_of_ones_own(run, bag_of_words, tmp_path):
    path = write(tmp_path / "own.csv", "query,found,points\nada,ada paris,3\nparis,in,2\nlondon,london,9\n")
    pairs = one(run(bag_of_words, "--file", path, "--kind", "pairs", "--text", "query", "--pair", "found", "--json"))
    assert pairs["metrics"] == {"recall@1": pytest.approx(200 / 3)}  # "paris" finds "ada paris"
    scored = run(bag_of_words, "--file", path, "--kind", "score", "--text", "query", "--pair", "found", "--target", "points")
    assert scored[0] == 0
    assert "spearman  100.00" in scored[1]


def test_classes_of_ones_own_by_training_texts(run, bag_of_words, tmp_path):
    train = write(tmp_path / "train.csv", "text,label\nada,one\nada ada in,one\nparis,two\n")
    scored = write(tmp_path / "dev.csv", "text,label\nin,one\nparis in,two\nparis,one\n")
    found = one(run(bag_of_words, "--train", train, "--file", scored, "--json"))
    assert (found["task"], found["how"]) == ("dev", "nearest centroid")
    assert found["metrics"] == {"accuracy": pytest.approx(200 / 3)}


def test_held_out_paragraphs_of_a_text_of_ones_own(run, random_model, tmp_path):
    articles(tmp_path)
    path = tmp_path / "own.txt"
    path.write_bytes(lzma.decompress((tmp_path / "wikipedia-good-2019.txt.xz").read_bytes()))
    for kind, task in (("pairs", "retrieval"), ("masks", "fill-mask")):
        own = one(run(random_model, "--file", path, "--kind", kind, "--json"))
        assert own["metrics"] == one(run(random_model, "--data", tmp_path, "--tasks", task, "--json"))["metrics"]
        assert own["examples"] == 3


# --- what is refused -------------------------------------------------------------------------------


def test_files_are_read_before_models(run, bag_of_words, tmp_path, monkeypatch):
    """A wrong file, column or name of a model is told before a model is loaded, also where it is the last that is named."""
    monkeypatch.setattr(fastinfer, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    good = write(tmp_path / "good.csv", "text,label\nada,one\n")
    for arguments, message in (
        (("--file", tmp_path / "none.csv"), "none.csv does not exist"),
        (("--file", good, "--train", tmp_path / "none.csv"), "none.csv does not exist"),
        (("--file", good, "--text", "txt"), "no column 'txt': did you mean text?; there are"),
        (("--file", good, "--target", "stars"), "no column 'stars'"),
        (("--train", good), "name the texts to score with --file"),
        (("--train", good, "--file", good, "--kind", "pairs", "--pair", "label"), "--train serves --kind classes alone"),
        (("--tasks", "STS-B"), "STS-B/dev.tsv does not exist"),
        (("--file", write(tmp_path / "flat.txt", "A text without titles.\n"), "--kind", "pairs"), "a line `= Title =` begins an article"),
        (("another", "--file", good), "another is no checkpoint folder"),
    ):
        status, out, err = run(bag_of_words, *arguments, "--data", tmp_path)
        assert (status, out) == (1, "")
        assert message in err


def test_what_does_not_fit(run, bag_of_words, readable_model, tmp_path):
    def error(*arguments, status=1):
        got, out, err = run(*arguments)
        assert (got, out) == (status, "")
        return err.strip().splitlines()[-1]

    assert "is no checkpoint folder" in error(tmp_path / "none")
    assert "expected some of SST-2, CoLA" in error(bag_of_words, "--tasks", "MNLI", status=2)
    assert "required: MODEL" in error(status=2)
    assert "nothing in" in error(bag_of_words, "--data", tmp_path)
    assert "STS-B/dev.tsv does not exist, and no folder of" in error(bag_of_words, "--data", tmp_path, "--tasks", "STS-B")
    for name, columns in (("RTE", "sentence1\tsentence2\tlabel"), ("QNLI", "question\tsentence\tlabel")):
        write(tmp_path / name / "dev.tsv", f"{columns}\nada\tparis\tentailment\n")
    assert "QNLI has no training texts, by whose centroids" in error(bag_of_words, "--data", tmp_path, "--tasks", "QNLI")
    articles(tmp_path)
    assert "has no head for fill-mask: it has embed" in error(bag_of_words, "--data", tmp_path, "--tasks", "fill-mask")
    write(tmp_path / "SST-2" / "dev.tsv", "sentence\tlabel\nfriend\t1\n")
    other = readable_model(tasks=Tasks(classify=Classify(("yes", "no"), "softmax")))
    assert "label 'positive' is none of those that fit: 'yes', 'no'" in error(other, "--data", tmp_path, "--tasks", "SST-2")
    two = readable_model(tasks=Tasks(classify=Classify(("entailment", "not_entailment"), "softmax")))
    assert "are those of RTE, QNLI: name one with --tasks" in error(two, "--data", tmp_path)


@pytest.mark.parametrize(
    ("kind", "module", "package"), [("score", "scipy.stats", "scipy"), ("tags", "seqeval.metrics.sequence_labeling", "seqeval")]
)
def test_a_missing_package_is_named_before_a_model_is_loaded(run, tmp_path, monkeypatch, kind, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    own = write(tmp_path / ("a.conll" if kind == "tags" else "a.csv"), "ada O\n" if kind == "tags" else "text,label\nada,0.5\n")
    status, out, err = run("fastminilm", "--file", own, "--kind", kind, "--json")
    assert (status, out) == (1, [])
    assert f"needs {package}: pip install {package}, or fastinfer[evaluate]" in err


def test_the_package_of_a_module_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(
        InputError, match=r"the metric f1 needs scikit-learn: pip install scikit-learn, or fastinfer\[evaluate\] \(.*sklearn"
    ):
        metrics.check_packages(TASKS["MRPC"])
