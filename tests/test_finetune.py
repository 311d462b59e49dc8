"""train.py finetune: tiny models learn easy tasks, and the checkpoints score the same in the engine."""

import json
import random
import re

import builders
import numpy as np
import pytest
from conftest import WORDS, make_config, make_tokenizer
from models import TOOLS, load_tool

import fastinfer
from fastinfer.config import Alibi, Embed, Gated, Positions, Tasks
from fastinfer.errors import CheckpointError, InputError
from fastinfer.evaluation import metrics, scoring

torch = pytest.importorskip("torch", reason="fine-tuning needs PyTorch")
pytest.importorskip("tqdm", reason="fine-tuning needs tqdm")
finetune, study = load_tool("training.finetune"), load_tool("training.study")
labelled, comparison = load_tool("training.labelled"), load_tool("training.comparison")

PLAIN = [word for word in WORDS if word.isalpha()]
FAST = {"batch": 16, "lr": 3e-3, "lr_rest": 3e-3, "dropout": 0.0, "max_steps": 120, "epochs": 100.0}


def sentences(count, seed):
    """Random sentences of one to eight words."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(PLAIN, k=rng.randint(1, 8))) for _ in range(count)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def toy(tmp_path, random_model):
    """toy(kind, make, **settings) fine-tunes on the rows that `make` makes of sentences -> (settings, output lines, task)."""

    def toy(kind, make, **changes):
        files = {
            split: write(tmp_path / f"{split}.jsonl", make(sentences(n, i))) for i, (split, n) in enumerate((("train", 160), ("dev", 64)))
        }
        given = {"models": (random_model,), "out": str(tmp_path / "out"), "kind": kind, **files} | FAST | changes
        settings = finetune.Finetune(**given)
        return settings, study.results(settings), next(iter(finetune.tasks_of(settings).values()))

    return toy


def in_engine(folder, task, **options):
    """The metrics of a checkpoint by the NumPy backend, the reference of all others."""
    return scoring.evaluate(fastinfer.load(folder, device="numpy", **options), task, "", "model", None).metrics


# --- each kind of task -----------------------------------------------------------------------------


def test_classes(toy):
    settings, (line,), task = toy(
        "classes", lambda texts: [{"text": t, "label": "city" if "paris" in t or "london" in t else "none"} for t in texts]
    )
    assert line["metrics"]["accuracy"] > 95
    assert in_engine(settings.out, task) == pytest.approx(line["metrics"], abs=1e-3)
    model = fastinfer.load(settings.out)
    assert model.tasks == ("classify",)
    assert [best[0][0] for best in model.classify(["ada lived in paris", "the friend"])] == ["city", "none"]


def test_pairs_of_texts_as_classes(toy):
    def make(texts):
        other = texts[1:] + texts[:1]
        return [{"text": a, "second": b, "label": int("paris" in b)} for a, b in zip(texts, other, strict=True)]

    settings, (line,), task = toy("classes", make, pair="second", stored="bfloat16")
    assert line["metrics"]["accuracy"] > 90
    assert in_engine(settings.out, task, dtype="float32")["accuracy"] == pytest.approx(line["metrics"]["accuracy"], abs=5)
    assert fastinfer.load(settings.out).config.stored.matrices == "bfloat16"


def test_scores_of_any_scale(toy):
    """The number to learn is the count of a word, far from zero and one."""
    settings, (line,), task = toy("score", lambda texts: [{"text": t, "label": 5000 + 100 * (t.count("paris") > 0)} for t in texts])
    assert line["metrics"]["pearson"] > 90
    assert in_engine(settings.out, task) == pytest.approx(line["metrics"], abs=0.01)
    low, high = fastinfer.load(settings.out).classify(["the friend", "ada lived in paris"])
    assert (low, high) == (pytest.approx(5000, abs=30), pytest.approx(5100, abs=30))


def test_tags(toy, tmp_path):
    """The tags are places and names. "friendly" has two tokens, and a word without tokens does not shift the others."""
    pytest.importorskip("seqeval", reason="the metric is of seqeval")
    tag = {"paris": "B-LOC", "london": "B-LOC", "ada": "B-PER", "lovelace": "I-PER"}

    def conll(name, texts):
        lines = [[f"{word}\t{tag.get(word, 'O')}\n" for word in ["friendly", "\u200b", *text.split()]] for text in texts]
        (tmp_path / name).write_text("\n".join("".join(some) for some in lines))
        return str(tmp_path / name)

    files = {"train": conll("train.conll", sentences(160, 0)), "dev": conll("dev.conll", sentences(64, 1))}
    settings, (line,), task = toy("tags", lambda texts: [{}], **files)
    assert line["metrics"]["span_f1"] > 95
    assert in_engine(settings.out, task) == pytest.approx(line["metrics"], abs=1e-3)
    (found,) = fastinfer.load(settings.out).tag("friendly ada lived in paris")
    assert [(text, label) for _, _, label, _, text in found] == [("ada", "PER"), ("paris", "LOC")]


def test_pairs_that_belong_together(toy, random_model):
    """A text's partner has the same words in another order, twice. A random model finds fewer partners."""

    def make(texts):
        return [{"text": t, "second": " ".join(reversed((t + " . " + t).split()))} for t in dict.fromkeys(texts)]

    settings, (line,), task = toy("pairs", make, pair="second")
    before = in_engine(random_model, task)["recall@1"]
    assert line["metrics"]["recall@1"] > before + 10
    assert in_engine(settings.out, task) == pytest.approx(line["metrics"], abs=1e-3)
    assert fastinfer.load(settings.out).tasks == ("embed",)


# --- parts -----------------------------------------------------------------------------------------


def test_an_epoch_holds_each_row_once_and_neighbours_of_like_length():
    lengths = np.random.default_rng(0).integers(1, 120, 5003)
    made = list(labelled.batches(lengths, 16, np.random.default_rng(1)))
    assert np.array_equal(np.sort(np.concatenate([rows for rows, _ in made])), np.arange(5003))
    assert all(len(rows) <= 16 and lengths[rows].max() <= length < lengths[rows].max() + 8 for rows, length in made)
    assert sum(len(rows) * length for rows, length in made) < 1.15 * lengths.sum()
    again = [list(labelled.batches(lengths, 16, np.random.default_rng(seed))) for seed in (1, 2)]
    assert np.array_equal(again[0][0][0], made[0][0])
    assert not np.array_equal(again[1][0][0], made[0][0])


def test_the_start_is_kept_and_its_head_is_not(toy, random_model):
    """With a learning rate of zero the encoder does not change. Only the head is new, and dropout does not change weights."""
    settings, _, _ = toy(
        "classes", lambda texts: [{"text": t, "label": len(t) % 2} for t in texts], lr=0.0, lr_rest=0.0, max_steps=2, dropout=0.5
    )
    before, after = (fastinfer.load(folder).hidden_states(["ada lived in paris"])[0] for folder in (random_model, settings.out))
    assert np.array_equal(before, after)


@pytest.mark.filterwarnings("ignore:.*more than 13 tokens")
def test_batches_are_not_padded_beyond_the_models_positions(toy, tmp_path):
    """13 positions, where batches are padded to multiples of 8: ALiBi has no distances beyond them."""
    positions = {"positions": Positions("none", 13), "max_tokens": 13, "distances": Alibi(), "ffn": (Gated(8),)}
    config = make_config(tasks=Tasks(Embed("mean", True)), **positions)
    start = tmp_path / "start"
    builders.save(start, config)
    make_tokenizer().save(str(start / "tokenizer.json"))
    settings, (line,), task = toy(
        "classes", lambda texts: [{"text": t, "label": len(t) % 2} for t in texts], models=(str(start),), max_steps=3
    )
    assert in_engine(settings.out, task) == pytest.approx(line["metrics"], abs=1e-3)
    assert fastinfer.load(settings.out).config.distances == Alibi()


def test_runs_are_the_same_again_and_differ_by_seed(toy, tmp_path):
    def make(texts):
        return [{"text": t, "label": int("paris" in t)} for t in texts]

    _, first, _ = toy("classes", make, seeds=2, max_steps=5, dropout=0.1)
    _, again, _ = toy("classes", make, seeds=2, max_steps=5, dropout=0.1, out=str(tmp_path / "again"))
    assert [line["loss"] for line in first] == [line["loss"] for line in again]
    assert first[0]["loss"] != first[1]["loss"]
    fastinfer.load(tmp_path / "again" / "seed-1")


# --- many runs -------------------------------------------------------------------------------------


@pytest.fixture
def glue(tmp_path):
    """A folder with a tiny SST-2 and CoLA, and the settings of a study of two seeds on them."""
    for task, head in (("SST-2", "sentence\tlabel\n"), ("CoLA", "")):
        (tmp_path / task).mkdir()
        for split, texts in (("train", sentences(96, 2)), ("dev", sentences(48, 3))):
            rows = [(t, int("paris" in t)) for t in texts]
            lines = [f"{t}\t{label}\n" if head else f"x\t{label}\t\t{t}\n" for t, label in rows]
            (tmp_path / task / f"{split}.tsv").write_text(head + "".join(lines))
    return FAST | {"data": str(tmp_path), "tasks": ("SST-2", "CoLA"), "seeds": 2, "max_steps": 40, "keep": False}


def test_the_command(glue, tmp_path, random_model, capsys, monkeypatch):
    monkeypatch.setattr(study, "_SAID", [])  # a line about memory is not repeated within a process
    train = load_tool("train")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'tasks = ["SST-2"]\nmodels = ["{random_model}"]\ndata = "{tmp_path}"\nmax_steps = 3\nbatch = 16\n')
    arguments = ["finetune", str(recipe), "--out", str(tmp_path / "out"), "--stored", "int8"]
    assert train.main(arguments) == 0
    out, _ = capsys.readouterr()
    said, table = out.split("| model | SST-2 |")
    assert said.startswith("memory: about ")
    assert re.search(r", SST-2, seed 0: 3 steps, loss [\d.]+, accuracy [\d.]+\n$", said)
    assert table
    assert "<!-- SST-2 -->" in (tmp_path / "out" / study.PLOT).read_text()
    model = fastinfer.load(tmp_path / "out")
    assert (model.tasks, model.config.stored.trees) == (("classify",), "int8")
    assert {label for label, _ in model.classify("ada")[0]} == {"negative", "positive"}
    assert train.main(arguments) == 1
    assert "holds results already" in capsys.readouterr().err
    assert train.main([*arguments, "--resume"]) == 0
    assert train.main([*arguments, "--resume", "--lr", "0.5"]) == 1
    assert "had lr 0.0001, now 0.5: give the same settings, or name another folder" in capsys.readouterr().err


def without_time(lines):
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_a_study_goes_on_where_it_stopped_and_by_several_workers(glue, tmp_path, random_model, monkeypatch):
    pytest.importorskip("sklearn", reason="CoLA's metric is of scikit-learn")
    monkeypatch.syspath_prepend(TOOLS)  # workers inherit it
    settings = finetune.Finetune(models=(random_model,), out=str(tmp_path / "out"), **glue)
    whole = study.results(settings)
    assert [(line["task"], line["seed"]) for line in whole] == [("SST-2", 0), ("SST-2", 1), ("CoLA", 0), ("CoLA", 1)]
    path = tmp_path / "out" / study.RESULTS
    with pytest.raises(InputError, match="holds results already: go on with them by --resume"):
        study.results(settings)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    parallel = finetune.Finetune(models=(random_model,), out=str(tmp_path / "out"), **glue, workers=2)
    assert without_time(study.results(parallel, resume=True)) == without_time(whole)
    assert len(path.read_text().splitlines()) == 4
    assert not list(tmp_path.glob("out/**/config.json"))


def test_the_table_and_the_picture_of_a_study(glue, tmp_path):
    """Medians, extremes and averages equal those by hand. A model keeps 100% of itself, and one that errs more keeps less."""
    pytest.importorskip("sklearn", reason="CoLA's metric is of scikit-learn")
    settings = finetune.Finetune(models=("a/good", "a/same", "a/bad"), out="", **glue | {"seeds": 3})
    named = finetune.tasks_of(settings)
    rng, lines, scores = np.random.default_rng(0), [], {}
    for model, wrong in (("a/good", 0.05), ("a/same", None), ("a/bad", 0.3)):
        for (name, task), seed in ((pair, seed) for pair in named.items() for seed in range(3)):
            true = np.array(task.read(settings.data, "dev").targets)
            if wrong is None:
                said = next(line["predictions"] for line in lines if (line["task"], line["seed"]) == (name, seed))
            else:
                said = np.where(rng.random(len(true)) < wrong, 1 - true, true).tolist()
            found = metrics.score(task, said, true)
            scores.setdefault((model, name), []).append(*found.values())
            lines.append({"model": model, "task": name, "seed": seed, "metrics": found, "predictions": said})
    text = comparison.table(settings, lines)
    rows = {cells[1]: cells for cells in ([cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("|"))}
    assert rows["model"][2:8] == ["SST-2", "CoLA", "average", "without CoLA", "retention, average", "retention, without CoLA"]
    middle = {key: sorted(values)[1] for key, values in scores.items()}
    assert rows["bad"][2] == f"{middle['a/bad', 'SST-2']:.1f} ({min(scores['a/bad', 'SST-2']):.1f}..{max(scores['a/bad', 'SST-2']):.1f})"
    averages = {m: (middle[m, "SST-2"] + middle[m, "CoLA"]) / 2 for m in ("a/good", "a/bad")}
    assert rows["bad"][4:6] == [f"{averages['a/bad']:.1f}", f"{middle['a/bad', 'SST-2']:.1f}"]
    assert rows["good"][6:8] == ["", ""]
    assert rows["same"][6].startswith("100.0% [")
    value, low, high = (float(part.strip("[],%")) for part in rows["bad"][6].split())
    assert value == pytest.approx(100 * averages["a/bad"] / averages["a/good"], abs=0.06)
    assert low < value < high < 100
    assert "MNLI and QQP could not be had" in text
    pytest.importorskip("matplotlib", reason="which draws")
    comparison.plot(settings, lines, tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text()
    assert all(f"<!-- {name} -->" in drawn for name in ("SST-2", "CoLA", "good", "same", "bad"))


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "name tasks, or a file to train on"),
        ({"tasks": ("RTE",), "train": "x.csv"}, "name tasks, or a file to train on"),
        ({"tasks": ("QNLI",)}, "no training data is known for QNLI; it is for SST-2, CoLA"),
        ({"tasks": ("rte", "RTE")}, "no training data is known for rte"),
        ({"train": "x.csv"}, "dev is missing"),
        ({"train": "x.csv", "dev": "y.csv", "kind": "words"}, "kind is 'words', expected classes, score, tags, pairs"),
        ({"train": "x.csv", "dev": "y.csv", "kind": "pairs"}, "pair is missing"),
        ({"tasks": ("RTE",), "seeds": 0}, "seeds is 0, expected a positive number"),
        ({"tasks": ("RTE",), "epochs": 0.0}, "epochs is 0.0, expected a positive number"),
        ({"tasks": ("RTE",), "device": "tpu"}, "device is 'tpu', expected cpu, cuda or auto"),
        ({"tasks": ("RTE",)}, r"RTE/train\.tsv does not exist"),
    ],
)
def test_settings_that_do_not_fit(changes, message, tmp_path, random_model):
    settings = finetune.Finetune(models=(random_model,), out=str(tmp_path / "out"), **{"data": str(tmp_path)} | changes)
    with pytest.raises(InputError, match=message):
        study.results(settings)


def test_labels_of_the_scored_split_that_were_never_trained(toy):
    with pytest.raises(InputError, match=r"dev\.jsonl, line 1: label '64' is none of those that fit: '160'"):
        toy("classes", lambda texts: [{"text": t, "label": len(texts)} for t in texts])


def test_a_loss_that_is_not_finite(toy):
    with pytest.raises(InputError, match=r"the loss of fine-tuning is (nan|inf) after 20 steps: lower lr"):
        toy("score", lambda texts: [{"text": t, "label": len(t)} for t in texts], lr=1e30, lr_rest=1e30, max_steps=20, clip=1e30)


def test_models_that_cannot_start(toy, tmp_path, random_model):
    def make(texts):
        return [{"text": t, "label": 1} for t in texts]

    with pytest.raises(CheckpointError, match="is no checkpoint folder"):
        toy("classes", make, models=(str(tmp_path / "nothing"),))
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((tmp_path.__class__(random_model) / name).read_bytes())
    with pytest.raises(CheckpointError, match=r"has no tokenizer, which training needs to read text"):
        toy("classes", make, models=(str(bare),), out=str(tmp_path / "other"))
