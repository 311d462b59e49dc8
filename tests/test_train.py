"""tools/train.py, from text to a model that the engine loads. Runs resume, share their work, break, or have wrong settings."""

import dataclasses
import errno
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import types

import builders
import numpy as np
import pytest
import tokenizers
from conftest import WORDS, make_config, make_tokenizer
from models import TOOLS, load_tool

import fastinfer
from fastinfer import catalog, checkpoint
from fastinfer.config import (
    FFF,
    Attention,
    Classify,
    Dense,
    Disentangled,
    Embed,
    FillMask,
    Gated,
    Ids,
    Norm,
    Positions,
    Project,
    Tasks,
)
from fastinfer.errors import CheckpointError, InputError

torch = pytest.importorskip("torch", reason="tools/train.py needs PyTorch")
for name in ("tqdm", "matplotlib", "sklearn"):
    pytest.importorskip(name, reason=f"tools/train.py needs {name}")
train, plot_runs = load_tool("train"), load_tool("plot_runs")
text, distill, encoders, finetune, objectives, pretrain, recipe, report, runs, workers = (
    load_tool(f"training.{name}")
    for name in ("corpus", "distill", "encoder", "finetune", "objectives", "pretrain", "recipe", "report", "runs", "workers")
)
loop, memory, start, grow, feedforward, beside = (
    load_tool(f"training.{name}") for name in ("loop", "memory", "start", "grow", "feedforward", "beside")
)
CPU = torch.device("cpu")

SMALL = ["--batch-tokens", "192", "--report-every", "1", "--validate-every", "100", "--warmup", "3", "--device", "cpu"]
MODEL = ["--hidden", "32", "--heads", "2", "--layers", "2", "--max-tokens", "16", "--shape", "2x3 + 4"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A text file with some hundred paragraphs of the tiny tokenizer's words."""
    rng = random.Random(0)
    words = [w for w in WORDS if w.isalpha()]
    sentences = [" ".join(rng.choices(words, k=rng.randint(4, 14))).capitalize() + "." for _ in range(3000)]
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text("\n".join(" ".join(sentences[i : i + 4]) for i in range(0, len(sentences), 4)))
    return path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The folder of a tiny dense embedder with random weights."""
    return make_teacher(tmp_path_factory.mktemp("teacher"))


def run(*arguments):
    assert train.main([str(a) for a in arguments]) == 0


def metrics(folder):
    return report.read_metrics(folder / report.METRICS)


def make_teacher(folder, **changes):
    """The folder of a tiny teacher with random weights: a dense embedder, unless `changes` make it another."""
    tasks, norm = Tasks(Embed("mean", True)), Norm("post", 1e-12)
    config = make_config(**{"tasks": tasks, "ffn": (Dense(24),) * 2, "layers": 2, "norm": norm, "embedding_norm": True} | changes)
    checkpoint.save(folder, config, builders.weights(config))
    make_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def weights_of(folder):
    return runs.load_state(folder)["encoder"]


# --- from end to end -------------------------------------------------------------------------------


def test_distillation_gives_an_embedder_that_the_engine_loads(tmp_path, corpus, teacher, capsys):
    out = tmp_path / "run"
    run("distill", "--teacher", teacher, "--text", corpus, "--out", out, "--shape", "1x3 + 8", "--steps", "60", "--stored", "int8", *SMALL)
    assert "1x3 + 8 always on" in capsys.readouterr().out

    model = fastinfer.load(out / "model")
    assert model.config.ffn == (FFF(1, 3, 8, bias_out=True),) * 2
    texts = ["Ada lived in London.", "Paris is the capital of France.", "friend"]
    wanted = fastinfer.load(teacher).embed(texts)
    cosines = (model.embed(texts) * wanted).sum(1)
    fresh = tmp_path / "fresh"
    run("distill", "--teacher", teacher, "--text", corpus, "--out", fresh, "--shape", "1x3 + 8", "--steps", "1", *SMALL)
    assert (cosines > (fastinfer.load(fresh / "model").embed(texts) * wanted).sum(1)).all()

    lines = metrics(out)
    assert [line["step"] for line in lines] == [*range(1, 61), 60]
    assert lines[-2]["loss"] < 0.5 * lines[0]["loss"]
    assert lines[-1]["validation_hidden"] > 0
    assert len(lines[-1]["effective_leaves"]) == len(lines[-1]["dead_leaves"]) == 2
    assert (out / "plot.svg").read_text().count("<path") > 2
    assert plot_runs.main([str(tmp_path / "both.svg"), str(out / "metrics.jsonl"), str(fresh / "metrics.jsonl")]) == 0
    assert "both.svg" in os.listdir(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": Positions("none", 32), "attention": (Attention(theta=1e4, window=3), Attention(theta=1e5)), "ffn": (Gated(24),) * 2}
        | {"norm": Norm("pre", 1e-5, first=False), "final_norm": True, "activation": "silu"},
        {"positions": Positions("none", 32), "distances": Disentangled(8, 16), "embedding_width": 12, "ffn": (Gated(24, True, True),) * 2},
    ],
    ids=["rotary, windows, gated", "disentangled, narrow, gated"],
)
def test_a_teacher_of_another_family_is_distilled_into_trees(tmp_path, corpus, changes):
    folder = tmp_path / "teacher"
    folder.mkdir()
    teacher, out = make_teacher(folder, **changes), tmp_path / "run"
    flags = ["--steps", "4", "--shape", "1x3 + 8", "--stored", "int8", "--balance", "0.1"]
    run("distill", "--teacher", teacher, "--text", corpus, "--out", out, *flags, *SMALL)
    model, wanted = fastinfer.load(out / "model", device="numpy"), fastinfer.load(teacher).config
    assert model.config == dataclasses.replace(wanted, ffn=(FFF(1, 3, 8, bias_out=True),) * 2, stored=model.config.stored)
    lines = metrics(out)
    assert lines[3]["loss"] < lines[0]["loss"]
    runs.export(out, tmp_path / "exact", "float32")
    model, encoder, row = fastinfer.load(tmp_path / "exact", device="numpy"), runs.trained(out).eval(), [2, 7, 9, 4, 8, 11, 12, 5, 3]
    with torch.no_grad():
        states = encoder(torch.tensor([row]))[-1][0]
    np.testing.assert_allclose(states, model.hidden_states(fastinfer.PackedBatch.from_ids([row]))[0], atol=1e-4)


def test_pretraining_gives_a_masked_language_model_that_the_engine_loads(tmp_path, corpus):
    out = tmp_path / "run"
    flags = ["--vocabulary", "60", "--steps", "40", "--lr", "1e-2", "--lr-rest", "1e-2", "--balance", "0.1"]
    run("pretrain", "--text", corpus, "--out", out, *flags, *MODEL, *SMALL)
    model = fastinfer.load(out / "model", device="numpy")
    assert model.tasks == ("embed", "fill_mask")
    assert len(model.fill_mask("Ada lived in [MASK].", top_k=3)[0][0]) == 3
    lines = metrics(out)
    assert lines[-2]["loss"] < lines[0]["loss"] - 0.3
    assert lines[-1]["validation_balance"] < 0.25

    # the engine computes the trained model
    encoder = runs.trained(out).eval()
    batch = fastinfer.PackedBatch.from_ids([[2, 7, 9, 4, 3], [2, 4, 3]])
    with torch.no_grad():
        for row, found in zip(([2, 7, 9, 4, 3], [2, 4, 3]), model.logits(batch, positions="all"), strict=True):
            np.testing.assert_allclose(encoder.fill_mask(encoder(torch.tensor([row]))[-1][0]), found, atol=1e-4)


def test_export_stores_a_run_in_any_dtype(tmp_path, corpus, teacher):
    out = tmp_path / "run"
    run("distill", "--teacher", teacher, "--text", corpus, "--out", out, "--shape", "2x2", "--steps", "1", *SMALL)
    for dtype in ("float32", "float16", "bfloat16", "int8"):
        run("export", out, tmp_path / dtype, "--stored", dtype)
        config, found = checkpoint.load(tmp_path / dtype)
        assert config.stored.trees == dtype
        np.testing.assert_allclose(found["layers.0.ffn.nodes"].float32(), weights_of(out)["layers.0.ffn.nodes"], atol=3e-3)


def test_average_writes_the_mean_of_weights(tmp_path, corpus, teacher, capsys):
    """Each has its part: three models of one start, and a wrong one among them is refused."""
    for seed in range(3):
        flags = ["--teacher", teacher, "--text", corpus, "--steps", "3", "--seed", seed, *SMALL]
        run("distill", "--out", tmp_path / f"{seed}", *flags)
    models = [tmp_path / f"{seed}" / "model" for seed in range(3)]
    capsys.readouterr()
    run("average", tmp_path / "mean", *models, "--stored", "float32")
    assert f"that of {models[0]}" in capsys.readouterr().out
    weights = [checkpoint.load(model)[1] for model in models]
    config, found = checkpoint.load(tmp_path / "mean")
    assert config == checkpoint.load(models[0])[0]
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor.float32(), np.mean([w[name].float32() for w in weights], 0, dtype=float), atol=1e-6, rtol=1e-6)
    first, second = (w["layers.0.ffn.nodes"].float32() for w in weights[:2])
    assert np.abs(first - second).max() > 1e-5
    assert (tmp_path / "mean" / "tokenizer.json").read_bytes() == (models[0] / "tokenizer.json").read_bytes()
    assert fastinfer.load(tmp_path / "mean", device="numpy").embed("Ada lived here.").shape == (1, 32)

    assert train.main(["average", str(tmp_path / "bad"), str(models[0]), str(teacher)]) == 1
    assert f"configurations of {models[0]} and {teacher} differ" in capsys.readouterr().err
    other = tmp_path / "other"
    shutil.copytree(models[1], other)
    (other / "tokenizer.json").unlink()
    assert train.main(["average", str(tmp_path / "bad"), str(models[0]), str(other)]) == 1
    assert f"tokenizers of {models[0]} and {other} differ" in capsys.readouterr().err
    assert train.main(["average", str(tmp_path / "bad"), "nothing"]) == 1
    assert "nothing is no checkpoint folder" in capsys.readouterr().err
    assert train.main(["average", str(models[1]), str(models[0]), str(models[1])]) == 1
    assert "is the source itself" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()


def test_a_time_limit_ends_a_run(tmp_path, corpus, teacher, monkeypatch):
    clock = itertools.count()  # seconds: each reading is one later
    monkeypatch.setattr(runs, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    run("distill", "--teacher", teacher, "--text", corpus, "--out", tmp_path / "run", "--shape", "2x2", "--seconds", "40", *SMALL)
    rates = [line["lr"] for line in metrics(tmp_path / "run") if "lr" in line]
    assert 5 < len(rates) < 40
    assert rates[-1] < max(rates) / 2


def test_a_time_limit_holds_over_the_parts_of_a_run(tmp_path, corpus, teacher, monkeypatch):
    """The learning rate of a run that is stopped and resumed follows the same course, and it ends after the same time."""
    clock = itertools.count()
    monkeypatch.setattr(runs, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    after = runs.Run.after_step

    def stops(self, losses):
        after(self, losses)
        self.stopped = self.descent.step == stop

    monkeypatch.setattr(runs.Run, "after_step", stops)
    flags = ["distill", "--teacher", teacher, "--text", corpus, "--shape", "2x2", "--seconds", "40", *SMALL]
    stop = None
    run(*flags, "--out", tmp_path / "whole")
    stop = 6
    assert train.main([str(a) for a in (*flags, "--out", tmp_path / "parts")]) == 130
    stop = None
    run("distill", "--out", tmp_path / "parts", "--resume")
    whole, parts = ([(line["seconds"], line["lr"]) for line in metrics(tmp_path / name) if "lr" in line] for name in ("whole", "parts"))
    assert len(parts) == pytest.approx(len(whole), abs=3)
    assert parts[:6] == whole[:6]
    assert all(b < a for (_, a), (_, b) in itertools.pairwise(parts[4:]))
    assert parts[-1][1] < 0.2 * max(rate for _, rate in parts)


# --- the same, whatever happens on the way ---------------------------------------------------------


@pytest.mark.parametrize("command", ["pretrain", "distill"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, corpus, teacher, command, monkeypatch, capsys):
    of_command = ["--tokenizer", teacher / "tokenizer.json", *MODEL] if command == "pretrain" else ["--teacher", teacher, "--shape", "2x3"]
    flags = [command, "--text", corpus, "--steps", "6", "--save-every", "0", *of_command, *SMALL]
    run(*flags, "--out", tmp_path / "whole")

    objective = objectives.MaskedLanguageModel if command == "pretrain" else objectives.Distillation
    forward, calls = objective.forward, []

    def breaks(self, *batch, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(self, *batch, **options)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "check_memory", lambda *_: None)  # which would take steps, too
        patch.setattr(objective, "forward", breaks)
        assert train.main([str(a) for a in (*flags, "--out", tmp_path / "parts")]) == 130
    assert "interrupted in step 4; the state after step 3 is kept in" in capsys.readouterr().err
    assert runs.load_state(tmp_path / "parts")["step"] == 3
    run(command, "--out", tmp_path / "parts", "--resume")  # with the settings that it had

    whole, parts = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    of_interest = [[(line["step"], line["tokens"], line.get("loss")) for line in metrics(tmp_path / n)] for n in ("whole", "parts")]
    assert of_interest[0] == of_interest[1]


def test_ctrl_c_ends_a_run_after_its_step_and_keeps_it(tmp_path, corpus, monkeypatch, capsys):
    flags = ["pretrain", "--text", corpus, "--steps", "4", "--tokenizer", save(make_tokenizer(), tmp_path), *MODEL, *SMALL]
    run(*flags, "--out", tmp_path / "whole")
    forward, calls = objectives.MaskedLanguageModel.forward, []

    def interrupts(self, *batch, **options):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return forward(self, *batch, **options)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "check_memory", lambda *_: None)  # which would take steps, too
        patch.setattr(objectives.MaskedLanguageModel, "forward", interrupts)
        assert train.main([str(a) for a in (*flags, "--out", tmp_path / "parts")]) == 130
    out, err = capsys.readouterr()
    assert "stopping after this step; press Ctrl-C again" in out
    assert "stopped after step 3, whose state is kept in" in err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    run("pretrain", "--out", tmp_path / "parts", "--resume")
    whole, parts = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert train.main(["pretrain", "--out", str(tmp_path / "parts"), "--resume", "--hidden", "64"]) == 1
    assert "differs from the settings by hidden" in capsys.readouterr().err


def test_a_batch_in_parts_teaches_the_same(tmp_path, corpus):
    flags = ["pretrain", "--text", corpus, "--steps", "3", "--tokenizer", save(make_tokenizer(), tmp_path), *MODEL, *SMALL]
    for parts in (1, 5):
        run(*flags, "--out", tmp_path / str(parts), "--accumulate", parts)
    one, five = weights_of(tmp_path / "1"), weights_of(tmp_path / "5")
    for name in one:
        assert (one[name] - five[name]).abs().mean() < 1e-5, name
    first, second = (metrics(tmp_path / name) for name in ("1", "5"))
    assert [line["tokens"] for line in first] == [line["tokens"] for line in second]
    for figure in ("loss", "validation_loss"):
        mine, theirs = ([line[figure] for line in lines if figure in line] for lines in (first, second))
        np.testing.assert_allclose(mine, theirs, rtol=1e-4)


def test_batches_are_cut_along_their_rows():
    batch = (torch.arange(10).view(5, 2), None, ((torch.arange(5), None),))
    found = loop.split(batch, 3)
    assert [share for share, _ in found] == [0.4, 0.4, 0.2]
    assert torch.equal(torch.cat([part[0] for _, part in found]), batch[0])
    assert torch.equal(torch.cat([part[2][0][0] for _, part in found]), batch[2][0][0])
    assert len(loop.split(batch, 9)) == 5


def test_a_short_run_reports_its_losses_and_its_last_validation(tmp_path, corpus, teacher, capsys):
    flags = ["distill", "--teacher", teacher, "--text", corpus, "--out", tmp_path / "run", "--shape", "2x2"]
    run(*flags, "--steps", "3", "--batch-tokens", "192", "--device", "cpu")  # fewer steps than --report-every
    line, last = metrics(tmp_path / "run")
    assert (line["step"], last["step"]) == (3, 3)
    assert line["tokens"] == last["tokens"] > 0
    said = capsys.readouterr().out
    assert f"trained for 3 steps and {line['tokens']:,} tokens in" in said
    assert f"loss {line['loss']:.4g} at first, {line['loss']:.4g} at last, {last['validation_loss']:.4g} in validation" in said


def test_the_hidden_states_error_fades(tmp_path, corpus, teacher):
    whole, out = tmp_path / "whole", tmp_path / "run"
    flags = ["distill", "--teacher", teacher, "--text", corpus, "--shape", "2x2", "--steps", "8", *SMALL]
    run(*flags, "--out", whole)
    run(*flags, "--out", out, "--fade", "0.5")
    for step, (line, first) in enumerate(zip(metrics(out)[:8], metrics(whole), strict=False)):
        rest = 10 * line["embed"] + 100 * line["similarity"]
        weight = min(1.0, 2 * (1 - step / 8))
        assert line["loss"] == pytest.approx(weight * line["hidden"] + rest, rel=1e-3)
        assert (line["loss"] == first["loss"]) == (step <= 4)


@pytest.mark.parametrize("shape", ["1x2 leaf 4 + 3", "2x2"])
def test_soft_decisions_become_hard(tmp_path, corpus, teacher, shape):
    flags = ["distill", "--teacher", teacher, "--text", corpus, "--shape", shape, "--steps", "8", *SMALL]
    run(*flags, "--out", tmp_path / "hard")
    run(*flags, "--out", tmp_path / "soft", "--soft", "0.5")
    hard, soft = ([line["hidden"] for line in metrics(tmp_path / name) if "hidden" in line] for name in ("hard", "soft"))
    assert hard[0] != soft[0]
    soft_nodes, hard_nodes = (weights_of(tmp_path / name)["layers.0.ffn.nodes"] for name in ("soft", "hard"))
    assert not torch.equal(soft_nodes, hard_nodes)
    student = distill.make_student(encoders.load(teacher), distill.Distill(out="", shape=shape))
    objective = distill.make_objective(student, encoders.load(teacher), distill.Distill(out="", soft=0.5))
    for done, wanted in ((0.0, 0.5), (0.25, 0.25), (0.5, 0.0), (0.9, 0.0)):
        objective.done = done
        objective(torch.tensor([[2, 7, 3]]), torch.ones(1, 3, dtype=torch.bool))
        assert (student.layers[1].ffn.temperature, student.layers[1].ffn.soft) == (wanted, wanted > 0)


# --- memory ----------------------------------------------------------------------------------------


class Square(torch.nn.Module):
    """An objective whose memory is known: a square matrix of 4 MB, and rows of 4 kB."""

    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Linear(1000, 1000, bias=False)

    def forward(self, x):
        return {"loss": (self.encoder(x) * torch.tensor(2.0)).sum()}


def test_memory_is_found_without_taking_it():
    def rows(count):
        return [(count, lambda few: (torch.ones(few, 1000),))]

    found = memory.needed(Square, rows(10**7), 1, bfloat16=False)  # 40 GB a tensor
    assert (found.weights, found.optimizer, found.teacher) == (memory.SPREAD * 4e6, memory.SPREAD * 12e6, 0)
    assert found.activations == pytest.approx(memory.SPREAD * 3 * 40e9, rel=0.4)  # x, its product, and the double of this
    less = memory.needed(Square, rows(10**6), 10, bfloat16=False)
    assert less.activations == pytest.approx(found.activations / 10, rel=0.01)
    assert memory.LATER + 5e7 < found.process < 2e10


def test_a_run_that_does_not_fit_is_told_what_to_lower(monkeypatch):
    rows = 10**6
    monkeypatch.setattr(memory, "_of_process", lambda: 1e8)  # which other tests of this process may change

    def check(limit, accumulate=1):
        batches = lambda parts: [(-(-rows // parts), lambda few: (torch.ones(few, 1000),))]  # noqa: E731
        now = (memory._of_process() + memory.LATER) / 1e9
        return memory.check(Square, batches, rows=rows, accumulate=accumulate, size=("batch_tokens", rows), memory=now + limit)

    assert "GB that it may take (memory)" in check(100)
    with pytest.raises(
        InputError, match=r"about .* activations .*: give --accumulate 16, .* or --batch-tokens 62500 \(now 1000000\)"
    ) as error:
        check(1.2)
    assert "activations" in check(1.2, accumulate=16), error
    with pytest.raises(InputError, match=r"training takes at least .* without activations, .*: take a smaller model"):
        check(0.01)
    rows, model = 2, memory.SPREAD * 16e-3
    with pytest.raises(InputError, match=r"One row at a time \(--accumulate 2\) takes about .*: lower max_tokens, take a smaller model"):
        check(model + 1e-6)


def test_memory_that_control_groups_allow(tmp_path):
    own = tmp_path / "own"
    state = "anon 60\n{}inactive_file 30\n"
    second = {"a/memory.max": "500", "a/memory.current": "90", "a/memory.stat": state.format(""), "a/b/memory.max": "max"}
    first = {f"memory/a/memory.{name}_in_bytes": value for name, value in (("limit", "500"), ("usage", "90"))}
    first["memory/a/memory.stat"] = state.format("total_")
    for text, files in (("0::/a/b\n", second), ("3:cpu:/x\n4:memory:/a\n", first)):
        own.write_text(text)
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
        assert memory._groups(tmp_path, own) == [(500, 60)]
    assert memory._groups(tmp_path, tmp_path / "none") == []
    assert memory.available() > 1e6


@pytest.mark.parametrize("kind", ["pretrain", "distill", "distill beside"])
def test_two_processes_equal_one(tmp_path, corpus, teacher, kind):
    command = kind.split()[0]
    of_command = ["--tokenizer", teacher / "tokenizer.json", *MODEL] if command == "pretrain" else ["--teacher", teacher, "--shape", "2x3"]
    of_command += ["--beside", make_other(tmp_path, teacher)] if kind == "distill beside" else []
    flags = [str(f) for f in (command, "--text", corpus, "--steps", "4", *of_command, *SMALL)]
    run(*flags, "--out", tmp_path / "one")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(TOOLS / "train.py")]
    done = subprocess.run(
        [*launch, *flags, "--out", str(tmp_path / "two")], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    for name in one:  # AdamW turns rounding errors of zero gradients into whole steps, so a few weights differ more
        torch.testing.assert_close(two[name], one[name], atol=1e-4, rtol=0, msg=lambda m, name=name: f"{name}: {m}")
        assert (two[name] - one[name]).abs().mean() < 1e-5
    first, second = (metrics(tmp_path / n) for n in ("one", "two"))
    assert [line["tokens"] for line in first] == [line["tokens"] for line in second]
    np.testing.assert_allclose(
        [line["loss"] for line in first if "loss" in line], [line["loss"] for line in second if "loss" in line], rtol=1e-3
    )


def test_a_full_disk_keeps_the_state_before(tmp_path, corpus, teacher, monkeypatch, capsys):
    out = tmp_path / "run"
    flags = ["distill", "--teacher", teacher, "--text", corpus, "--out", out, "--shape", "2x2", "--save-every", "0", *SMALL]
    run(*flags, "--steps", "2")
    before, save, calls = (out / "state.pt").read_bytes(), torch.save, []

    def full(state, file):
        calls.append(1)
        file.write(b"half of a sta")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    assert train.main([str(a) for a in (*flags, "--steps", "4", "--resume")]) == 1
    assert "could not be saved" in (message := capsys.readouterr().err)
    assert "the state saved before it is as it was" in message
    assert calls
    assert (out / "state.pt").read_bytes() == before
    assert not list(out.glob(".*"))
    monkeypatch.setattr(torch, "save", save)
    run(*flags, "--steps", "4", "--resume")
    assert runs.load_state(out)["step"] == 4


# --- batches and students --------------------------------------------------------------------------


def test_batches_to_guess_from(tmp_path, corpus):
    tokenizer = make_tokenizer()
    corpora = text.read([corpus], text.read_tokenizer(save(tokenizer, tmp_path)))
    rows = tuple(c.rows(16, (2, 3)) for c in corpora)
    settings = pretrain.Pretrain(out="", steps=1, max_tokens=16, batch_tokens=64 * 16, masked=0.2)
    ids = pretrain.special_ids(tokenizer, tmp_path)
    data = pretrain.Rows(rows, settings, ids, len(WORDS), workers.Workers(0, 1, torch.device("cpu")))
    shown, mask, places, labels = data.batch(5)
    assert mask is None
    assert places.shape == labels.shape == (64, 3)
    assert all(len(set(row)) == 3 for row in places.tolist())
    assert places.min() >= 1
    assert places.max() <= 14
    whole = shown.scatter(1, places, labels).numpy()
    assert {row.tobytes() for row in whole.astype(np.uint16)} <= {row.tobytes() for row in rows[0]}
    hidden = shown.gather(1, places)
    assert 0.7 < (hidden == ids.mask).float().mean() < 0.9
    assert 0.05 < (hidden == labels).float().mean() < 0.25
    assert all(torch.equal(a, b) for a, b in zip(data.batch(5)[2:], (places, labels), strict=True))
    assert not torch.equal(data.batch(6)[3], labels)
    parts = [pretrain.Rows(rows, settings, ids, len(WORDS), workers.Workers(r, 2, torch.device("cpu"))).batch(5) for r in (0, 1)]
    assert all(torch.equal(torch.cat([a, b]), c) for a, b, c in zip(parts[0][2:], parts[1][2:], (places, labels), strict=True))


def save(tokenizer, folder):
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def test_batches_of_pieces_are_framed_and_padded(tmp_path, corpus):
    corpora = text.read([corpus], text.read_tokenizer(save(make_tokenizer(), tmp_path)))
    settings = distill.Distill(out="", steps=1, batch_tokens=480)
    data = distill.Pieces(corpora, settings, 32, make_config().ids, workers.Workers(0, 1, torch.device("cpu")))
    begin, end = corpora[0].pieces(30)
    pieces = {tuple(corpora[0].ids[b:e].tolist()) for b, e in zip(begin, end, strict=True)}
    shapes = set()
    for step in range(20):
        ids, mask = data.batch(step)
        shapes.add(ids.shape)
        for row, on in zip(ids, mask, strict=True):
            found = row[on].tolist()
            assert (found[0], found[-1]) == (2, 3)
            assert tuple(found[1:-1]) in pieces
            assert not row[~on].any()
    assert shapes == {(30, 16), (15, 32)}


def test_a_student_keeps_what_is_no_feedforward(teacher):
    dense = encoders.load(teacher)
    student = distill.make_student(dense, distill.Distill(out="", shape="2x3 + 5", copy=True, stored="int8"))
    state, known = student.state_dict(), dense.state_dict()
    assert torch.equal(state["layers.1.attention.qkv.weight"], known["layers.1.attention.qkv.weight"])
    word = checkpoint.Tensor(known["embedding.word"].numpy(), "float32").to("int8").float32()
    np.testing.assert_array_equal(state["embedding.word"], word)
    assert not student.embedding.word.requires_grad
    mine, theirs = student.layers[0].ffn, dense.layers[0].ffn
    strength = theirs.dense_in.weight.norm(dim=1) * theirs.dense_out.weight.norm(dim=0)
    for row, bias, out in zip(mine.dense_in.weight, mine.dense_in.bias, mine.dense_out.weight.T, strict=True):
        (at,) = (theirs.dense_in.weight == row).all(1).nonzero()[0].tolist()
        assert strength[at] >= strength.sort().values[-5]
        assert bias == theirs.dense_in.bias[at]
        assert torch.equal(out, theirs.dense_out.weight[:, at])


def test_a_student_with_copies_of_all_neurons_is_the_teacher(teacher):
    dense = encoders.load(teacher)
    student = distill.make_student(dense, distill.Distill(out="", shape="dense 24", copy=True))
    ids = torch.tensor([[2, 7, 9, 4, 3], [2, 11, 12, 5, 3]])
    with torch.no_grad():
        torch.testing.assert_close(student(ids)[-1], dense(ids)[-1], atol=1e-5, rtol=0)


def test_a_student_with_fewer_layers(tmp_path, corpus, capsys):
    """A layer learns what the teacher hands to the layer that the next one comes from."""
    attention = tuple(Attention(window=w) for w in (None, 3, 4, None))
    deep = encoders.load(make_teacher(tmp_path, layers=4, ffn=(Dense(24),) * 4, attention=attention))
    ids, mask = torch.randint(4, 12, (3, 9)), torch.ones(3, 9, dtype=torch.bool)
    settings = distill.Distill(out="", shape="dense 24", copy=True, layers="1,2")
    student = distill.make_student(deep, settings)
    assert student.config.attention == attention[1:3]
    for mine, theirs in zip(student.layers, deep.layers[1:3], strict=True):
        assert torch.equal(mine.attention.qkv.weight, theirs.attention.qkv.weight)
        assert torch.equal(mine.ffn.dense_in.weight.sort(0).values, theirs.ffn.dense_in.weight.sort(0).values)
    with torch.no_grad():
        mine, theirs = student(ids, mask), deep(ids, mask)
        wanted = sum(((mine[s] - theirs[t]) ** 2).sum(-1).div((theirs[t] ** 2).sum(-1)).mean() for s, t in ((1, 2), (2, 4)))
        found = distill.make_objective(student, deep, settings)(ids, mask)
    assert float(found["hidden"]) == pytest.approx(float(wanted), rel=1e-4)

    flags = ["--layers", "0,3", "--shape", "2x2", "--steps", "2"]
    run("distill", "--teacher", tmp_path, "--text", corpus, "--out", tmp_path / "run", *flags, *SMALL)
    assert fastinfer.load(tmp_path / "run" / "model").config.layers == 2
    for layers in ("0,4", "2,1", "1,1", "", "0, 2", "-1"):
        flags = ["--out", tmp_path / "bad", "--layers=" + layers, "--steps", "1"]
        assert train.main(["distill", *map(str, ("--teacher", tmp_path, "--text", corpus, *flags))]) == 1
        assert f"layers is {layers!r}, expected numbers of the teacher's layers, 0 to 3, in order" in capsys.readouterr().err


def sample(corpus, folder, tokens=1500):
    """(ids, mask) of text, what the teacher's feedforwards take in, and the data that it comes from."""
    opened = start.open_model(str(folder))
    corpora = text.read([corpus], text.read_tokenizer(folder / "tokenizer.json"))
    data = distill.Pieces(corpora, distill.Distill(out="", steps=1, batch_tokens=480), 32, opened.config.ids, workers.Workers(0, 1, CPU))
    return *data.batch(10**6), grow.inputs(opened.encoder(), data, tokens, CPU), data


@pytest.mark.parametrize("shape", ["dense 24", "1x3 leaf 24", "2x2 leaf 7 + 10", "1x2 leaf 16 + 8"])
def test_a_grown_student_with_all_of_the_teachers_neurons_is_the_teacher(corpus, teacher, shape):
    ids, mask, _, data = sample(corpus, teacher)
    dense, settings = encoders.load(teacher), distill.Distill(out="", shape=shape, grow=1500)
    student = distill.make_student(dense, settings)
    fresh = student(ids, mask)[-1]
    distill.grow_student(student, dense, settings, data, CPU)
    with torch.no_grad():
        wanted, found = dense(ids, mask)[-1], student(ids, mask)[-1]
    torch.testing.assert_close(found[mask], wanted[mask], atol=2e-4, rtol=0)
    assert (fresh - wanted)[mask].abs().max() > 0.1


def test_trees_are_grown_from_what_their_tokens_use(tmp_path, corpus, teacher):
    """Half of the inputs are positive in one column and use one half of the neurons. A tree finds the column, and each leaf its half."""
    dense = encoders.load(teacher)
    theirs, hidden = dense.layers[0].ffn, dense.config.hidden
    x = torch.randn(4000, hidden)
    sign = torch.where(torch.arange(4000) % 2 == 0, 3.0, -3.0)
    x[:, 5] = sign * (1 + torch.rand(4000))
    with torch.no_grad():
        theirs.dense_in.weight.normal_(std=0.2)
        theirs.dense_in.weight[:, 5] = torch.where(torch.arange(24) < 12, 1.0, -1.0)
        theirs.dense_in.bias.zero_()
        theirs.dense_out.weight.normal_()
    mine = feedforward.Feedforward(dense.config, FFF(1, 1, bias_out=True, leaf=12))
    grow.grow(mine, theirs, x)
    row = mine.nodes[0, 0, 0]
    assert row.abs().argmax() == 5
    assert not mine.nodes[0, 0, 1].any()
    left, right = (mine.nodes[0, 1 + 12 * side : 13 + 12 * side, 0, 5].sign() for side in (0, 1))
    assert torch.equal(left.unique(), -right.unique())
    assert right.unique() == row[5].sign()
    seen = []
    y = mine(x, seen)
    assert torch.bincount(seen[0][1].flatten() - 2).tolist() == [2000, 2000]
    wanted = theirs(x)
    assert (y - wanted).square().sum() < 0.05 * (wanted - wanted.mean(0)).square().sum()


@pytest.mark.parametrize("tokens", [501, 500])
def test_a_grown_decision_takes_many_large_inputs(tokens):
    """What 1e5 tokens give has covariances whose fourth powers float32 cannot hold. The threshold lies midway between tokens."""
    x, given = torch.randn(tokens, 32), torch.randn(tokens, 24)
    x[:, 5] += 10 * given[:, 3]
    row, bias = grow.decision(x, given)
    assert row.abs().argmax() == 5
    large, same = grow.decision(x, 1e6 * given)
    torch.testing.assert_close(torch.cat([large, same[None]]), torch.cat([row, bias[None]]), atol=1e-4, rtol=0)
    distance = (x.double() @ row.double() + bias).sort().values
    assert (distance[: tokens // 2] < 0).all()
    assert (distance[-(tokens // 2) :] > 0).all()
    assert abs(distance[(tokens - 1) // 2] + distance[tokens // 2]) < 1e-5


def test_trees_are_grown_from_tokens_that_are_equal(teacher):
    dense = encoders.load(teacher)
    mine, theirs, x = feedforward.Feedforward(dense.config, FFF(1, 3, 2, bias_out=True, leaf=3)), dense.layers[0].ffn, torch.randn(2, 32)
    x = x[torch.arange(100) % 2]  # two tokens, so that six of the eight leaves get none
    grow.grow(mine, theirs, x)
    assert all(weight.isfinite().all() for name, weight in mine.named_parameters() if "norm" not in name)
    assert (mine(x) - theirs(x)).square().sum() < 0.5 * theirs(x).square().sum()  # .19 is the most of 300 runs


def test_a_run_starts_grown(tmp_path, corpus, teacher, capsys):
    flags = ["distill", "--teacher", teacher, "--text", corpus, "--shape", "1x2 leaf 8 + 8", "--steps", "2", *SMALL]
    run(*flags, "--out", tmp_path / "copied", "--copy")
    run(*flags, "--out", tmp_path / "grown", "--grow", "1000")
    copied, grown = (metrics(tmp_path / name)[0]["hidden"] for name in ("copied", "grown"))
    assert grown < 0.7 * copied
    run(*flags, "--out", tmp_path / "cut", "--grow", "1000", "--layers", "1")
    assert metrics(tmp_path / "cut")[0]["hidden"] > grown
    for changes, message in (
        ({"--grow": "0"}, "grow is 0, expected a positive number"),
        ({"--shape": "1x2 leaf 20 + 8"}, "grow takes 28 of the teacher's neurons for a token, which has 24: take a smaller shape"),
        ({"--shape": "gated 8"}, "grow starts neurons without gates, but the shape is gated 8"),
    ):
        changed = [part for pair in changes.items() for part in pair]
        assert train.main([*map(str, flags), "--out", str(tmp_path / "bad"), "--grow", "1000", *changed]) == 1
        assert message in capsys.readouterr().err


# --- a second teacher ------------------------------------------------------------------------------


def make_other(folder, teacher, *, same=False, **changes):
    """The folder of a second teacher whose ids begin at another word and whose [CLS] is <s>: random, or the same model as the first."""
    folder = folder / "other"
    folder.mkdir()
    order = [*WORDS[-7:], *WORDS[:-7]]
    pad, mask, cls, sep = (order.index(word) for word in ("[PAD]", "[MASK]", "[CLS]", "[SEP]"))
    config, weights = checkpoint.load(teacher, validate=True)
    made = dataclasses.replace(config, ids=Ids(pad, mask, cls, sep), **changes)
    if same:
        rows = weights["embedding.word"].float32()
        weights["embedding.word"] = checkpoint.Tensor(np.concatenate([rows[-7:], rows[:-7]]), "float32")
    checkpoint.save(folder, made, weights if same else builders.weights(made, seed=1))
    words = {"<s>" if word == "[CLS]" else word: i for i, word in enumerate(order)}
    tokenizers.Tokenizer(tokenizers.models.WordPiece(words, unk_token="[UNK]")).save(str(folder / "tokenizer.json"))
    return folder


def test_a_second_teacher_that_is_the_first_teaches_the_same(tmp_path, corpus, teacher, monkeypatch):
    monkeypatch.setattr(beside, "TEXTS", 500)
    first, other = start.open_model(str(teacher)), start.open_model(str(make_other(tmp_path, teacher, same=True)))
    ids, mask, _, data = sample(corpus, teacher)
    found = beside.same_tokens(first, other)
    assert sorted(found.tolist()) == list(range(len(WORDS)))
    encoder = first.encoder().eval()
    with torch.no_grad():
        wanted = encoder.embed(encoder(ids, mask)[-1], mask)
        both = beside.Beside(beside.Second(other.encoder(), found), encoder.config.hidden)
        both.fit(encoder, data.batch, workers.Workers(0, 1, CPU))
        torch.testing.assert_close(both(wanted, ids, mask), wanted, atol=1e-4, rtol=0)


def test_what_two_teachers_say_keeps_the_cosines_of_both(tmp_path, corpus, teacher, monkeypatch):
    monkeypatch.setattr(beside, "TEXTS", 500)
    first, other = start.open_model(str(teacher)), start.open_model(str(make_other(tmp_path, teacher)))
    (ids, mask, _, data), encoder = sample(corpus, teacher), first.encoder().eval()
    both = beside.Beside(distill.second_teacher(first, other, 32), encoder.config.hidden)
    both.fit(encoder, data.batch, workers.Workers(0, 1, CPU))
    torch.testing.assert_close(both.turn.T @ both.turn, torch.eye(encoder.config.hidden), atol=1e-5, rtol=0)
    with torch.no_grad():
        mine = encoder.embed(encoder(ids, mask)[-1], mask)
        joined, made = both.both(mine, ids, mask), both(mine, ids, mask)
    cosines = joined @ joined.T / 2
    assert (made @ made.T - cosines).abs().mean() < 0.5 * (mine @ mine.T - cosines).abs().mean()
    turned = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0))).Q
    assert ((made * mine).sum(1).mean()) > ((made @ turned) * mine).sum(1).mean()


def test_a_student_of_two_teachers(tmp_path, corpus, teacher, monkeypatch):
    monkeypatch.setattr(beside, "TEXTS", 500)
    both, found = ["--beside", make_other(tmp_path, teacher)], {}
    flags = ["distill", "--teacher", teacher, "--text", corpus, "--shape", "dense 24", "--copy", "--hidden-weight", "0", *SMALL]
    for name, more in {"one": [], "two": both, "longer": [*both, "--steps", "200", "--lr-rest", "3e-3", "--lr", "3e-3"]}.items():
        run(*flags, "--out", tmp_path / name, "--steps", "1", *more)
        found[name] = metrics(tmp_path / name)[-1]["validation_embed"]
    assert found["one"] < 0.2 * found["two"]  # the student starts as the first teacher
    assert found["longer"] < 0.85 * found["two"]
    assert fastinfer.load(tmp_path / "longer" / "model").embed(["Ada lived in London."]).shape == (1, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": Tasks()}, "other has no embed head, so nothing can be learned from it"),
        ({"positions": Positions("learned", 16), "max_tokens": 16}, "other reads at most 16 tokens, not 32: lower max_tokens"),
        ({"ids": Ids(mask=11, sep=10)}, "does not have 1 of the 22 tokens of .*, such as '.CLS.': a second teacher has to cut texts"),
    ],
    ids=["no embedder", "short", "other tokens"],
)
def test_a_second_teacher_has_to_fit(tmp_path, teacher, changes, message):
    other = start.open_model(str(make_other(tmp_path, teacher)))
    other = other._replace(name="other", config=dataclasses.replace(other.config, **changes))
    with pytest.raises(InputError, match=message):
        distill.second_teacher(start.open_model(str(teacher)), other, 32)


def test_a_second_teacher_is_beside_an_embedder(tmp_path, teacher):
    first = start.open_model(str(make_teacher(tmp_path, tasks=Tasks())))
    with pytest.raises(InputError, match="has no embed head, so a second teacher beside it has nothing to add"):
        distill.second_teacher(first, start.open_model(str(teacher)), 32)


@pytest.mark.parametrize(
    ("before", "after", "ffn"), [("2x3 + 5", "2x3 + 3", FFF(2, 3, 3, bias_out=True)), ("dense 5", "dense 3", Dense(3))]
)
def test_a_student_goes_on_from_an_earlier_one(tmp_path, teacher, before, after, ffn):
    dense = encoders.load(teacher)
    first = distill.make_student(dense, distill.Distill(out="", shape=before))
    encoders.save(first, tmp_path / "first")
    second = distill.make_student(dense, distill.Distill(out="", shape=after, start=str(tmp_path / "first"), stored="int8"))
    assert second.config.ffn == (ffn,) * 2
    state, known = second.state_dict(), first.state_dict()
    for name, weight in known.items():
        if name.startswith("layers.") and ".dense_" not in name:
            assert torch.equal(state[name], weight), name
    assert torch.equal(state["embedding.word"], distill.make_student(dense, distill.Distill(out="", stored="int8")).embedding.word)
    for name, axis in (("dense_in.weight", 1), ("dense_out.weight", 0)):
        mine, theirs = state[f"layers.1.ffn.{name}"], known[f"layers.1.ffn.{name}"]
        assert {tuple(w.tolist()) for w in mine.movedim(1 - axis, 0)} < {tuple(w.tolist()) for w in theirs.movedim(1 - axis, 0)}
    strength = known["layers.1.ffn.dense_in.weight"].norm(dim=1) * known["layers.1.ffn.dense_out.weight"].norm(dim=0)
    kept = strength[torch.cdist(state["layers.1.ffn.dense_in.weight"], known["layers.1.ffn.dense_in.weight"]).argmin(1)]
    assert kept.min() == strength.sort().values[-3]


def test_a_student_keeps_the_layers_of_the_embed_head(tmp_path):
    head = Embed("mean", True, layers=(Project(5, activation="tanh"),))
    folder = make_teacher(tmp_path, tasks=Tasks(head, classify=Classify(("a", "b"), "softmax")))
    dense = encoders.load(folder)
    student = distill.make_student(dense, distill.Distill(out="", shape="2x3"))
    assert student.config.tasks == Tasks(head)
    assert torch.equal(student.state_dict()["tasks.embed.layers.0.weight"], dense.state_dict()["tasks.embed.layers.0.weight"])
    assert encoders.kept(dense.state_dict(), dataclasses.replace(dense.config, tasks=Tasks(fill_mask=FillMask(True)))).keys() == {
        name for name in dense.state_dict() if not name.startswith("tasks.")
    }


def test_neurons_are_copied_from_dense_feedforwards_alone(tmp_path):
    recipe = distill.Distill(out="", shape="2x3 + 5", copy=True)
    bare = make_teacher(tmp_path, ffn=(Dense(24, bias_in=False),) * 2)
    assert not distill.make_student(encoders.load(bare), recipe).layers[0].ffn.dense_in.bias.any()
    for other, found in ((Gated(24), "gated 24"), (FFF(1, 2), "1x2")):
        with pytest.raises(InputError, match=f"copy takes .* but the teacher has {found}: leave copy out"):
            distill.make_student(encoders.load(make_teacher(tmp_path, ffn=(other,) * 2)), recipe)


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ("1x11", FFF(1, 11, bias_out=True)),
        ("8x3 + 64", FFF(8, 3, 64, bias_out=True)),
        ("1x6 leaf 64", FFF(1, 6, bias_out=True, leaf=64)),
        ("4x4 leaf 16 + 128", FFF(4, 4, 128, bias_out=True, leaf=16)),
        ("dense 12", Dense(12)),
        ("gated 12", Gated(12)),
    ],
)
def test_shapes_are_read(shape, found):
    assert runs.parse_shape(shape) == found


@pytest.mark.parametrize(
    ("shape", "options", "reason"),
    [
        ("2x3 + 6", {}, "or with more neurons that are always on"),
        ("1x3 + 5", {}, "expected a student of this teacher"),
        ("dense 24", {}, "expected a student of this teacher"),
        ("2x3 + 5", {"copy": True}, "start and copy both say"),
        ("2x3 + 5", {"grow": 1000}, "start and grow both say"),
    ],
)
def test_an_earlier_student_has_to_fit(tmp_path, teacher, shape, options, reason):
    dense = encoders.load(teacher)
    encoders.save(distill.make_student(dense, distill.Distill(out="", shape="2x3 + 5")), tmp_path / "first")
    with pytest.raises(InputError, match=reason):
        distill.make_student(dense, distill.Distill(out="", shape=shape, start=str(tmp_path / "first"), **options))


# --- what is wrong with a run ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"--steps": None}, "neither steps nor seconds"),
        ({"--shape": "11"}, "shape is '11', expected trees x depth"),
        ({"--shape": "1x99"}, "depth is 99, expected 0 to 15"),
        ({"--stored": "int4"}, "stored is 'int4', expected one of"),
        ({"--device": "tpu"}, "device is 'tpu', expected cpu, cuda or auto"),
        ({"--teacher": None}, "distillation has no teacher"),
        ({"--teacher": "nowhere"}, "nowhere is no checkpoint folder"),
        ({"--text": None}, "there is no text to train on"),
        ({"--text": "missing.txt"}, "missing.txt"),
        ({"--max-tokens": "4"}, "max_tokens is 4, expected 8 to 32"),
        ({"--soft": "-1"}, "soft is -1.0, expected a temperature of 0 or more"),
        ({"--fade": "1.5"}, "fade is 1.5, expected a part of the run, from 0 to 1"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit(tmp_path, corpus, teacher, flags, message, capsys):
    given = {"--teacher": teacher, "--text": corpus, "--out": tmp_path / "run", "--steps": "1"} | flags
    arguments = ["distill", *(str(part) for flag, value in given.items() if value is not None for part in (flag, value))]
    assert train.main(arguments) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("train: ")
    assert message in error


def test_files_are_looked_at_before_models(tmp_path, corpus, teacher, monkeypatch, capsys):
    monkeypatch.setattr(start.checkpoint, "load_all", lambda *_, **__: pytest.fail("a model was opened"))
    good = {"--teacher": teacher, "--text": corpus, "--out": tmp_path / "run", "--steps": "1"}
    (tmp_path / "file").write_text("")
    for changes, message in (
        ({"--text": tmp_path / "none.txt"}, "none.txt does not exist"),
        ({"--text": tmp_path / "file"}, "is no text file that is known here"),
        ({"--start": "nowhere"}, "nowhere is no checkpoint folder"),
        ({"--sts": tmp_path}, "dev.tsv does not exist"),
        ({"--cache": "ids.bin"}, "cache is 'ids.bin', expected the name of a .npz file"),
        ({"--out": tmp_path / "file"}, "File exists"),
        ({"--shape": "1y11"}, "shape is '1y11'"),
        ({"--stored": "int9"}, "did you mean int8?"),
        ({"--accumulate": "0"}, "accumulate is 0, expected a positive number"),
    ):
        assert train.main(["distill", *(str(part) for pair in (good | changes).items() for part in pair)]) == 1
        assert message in capsys.readouterr().err, changes
    assert train.main(["distill", str(tmp_path / "none.toml"), "--out", "x"]) == 1
    assert "none.toml does not exist" in capsys.readouterr().err


def test_too_little_text(tmp_path, teacher, capsys):
    (tmp_path / "one.txt").write_text("Ada lived in London. Paris is the capital of France.\n")
    model = {"pretrain": ["--tokenizer", teacher / "tokenizer.json"], "distill": ["--teacher", teacher]}
    for command, flags in model.items():
        arguments = [command, "--text", tmp_path / "one.txt", "--out", tmp_path / command, "--steps", "1", *flags]
        assert train.main(list(map(str, arguments))) == 1
        assert "1 paragraphs are not held out, and none" in (said := capsys.readouterr().err)
        assert "add text, to 1,000 paragraphs or more" in said


def test_models_are_named_as_for_the_engine(tmp_path, corpus, teacher, monkeypatch):
    """A teacher, and the model whose architecture is pretrained, by the name of a model inside the package."""
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "tiny").symlink_to(teacher)
    monkeypatch.setattr(catalog, "MODELS", tmp_path / "inside")
    run("distill", "--teacher", "tiny", "--text", corpus, "--out", tmp_path / "a", "--shape", "2x2", "--steps", "1", *SMALL)
    assert fastinfer.load(tmp_path / "a" / "model").tokenizer is not None
    run(
        "pretrain",
        "--like",
        "tiny",
        "--text",
        corpus,
        "--out",
        tmp_path / "b",
        "--shape",
        "2x2",
        "--max-tokens",
        "16",
        "--steps",
        "1",
        *SMALL,
    )
    model, wanted = fastinfer.load(tmp_path / "b" / "model"), fastinfer.load(teacher).config
    assert (model.tasks, model.config.norm, model.config.hidden) == (("embed", "fill_mask"), wanted.norm, wanted.hidden)
    assert model.config.ffn == (FFF(2, 2, bias_out=True),) * wanted.layers


def test_a_trained_tokenizer_is_the_same_again(corpus):
    """Two trainings in a process differ as much as those of two processes: the library's hash tables are seeded anew."""
    settings = pretrain.Pretrain(out="", steps=1, text=(str(corpus),), vocabulary=60)
    first, second = (pretrain.train_tokenizer(settings) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    assert [first.id_to_token(i) for i in range(5)] == pretrain.SPECIAL
    assert first.encode("Ada, Paris").tokens[0] == "[CLS]"
    assert first.encode("##a [MASK]").tokens[1:3] == ["[UNK]", "[UNK]"]  # no letter is a special token


def test_a_teacher_that_is_no_bert(tmp_path, corpus, teacher, capsys):
    folder = tmp_path / "teacher"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    (folder / "model.safetensors").write_bytes((teacher / "model.safetensors").read_bytes())
    assert train.main(["distill", "--teacher", str(folder), "--text", str(corpus), "--out", str(tmp_path / "run"), "--steps", "1"]) == 1
    assert "model_type 'gpt2'" in capsys.readouterr().err
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((teacher / name).read_bytes())
    assert train.main(["distill", "--teacher", str(folder), "--text", str(corpus), "--out", str(tmp_path / "run"), "--steps", "1"]) == 1
    assert "has no tokenizer, which training needs to read text" in capsys.readouterr().err


def test_a_run_is_not_overwritten(tmp_path, corpus, teacher, capsys):
    flags = [
        "distill",
        "--teacher",
        str(teacher),
        "--text",
        str(corpus),
        "--out",
        str(tmp_path / "run"),
        "--shape",
        "1x1",
        "--steps",
        "1",
        *SMALL,
    ]
    run(*flags)
    assert train.main(flags) == 1
    assert "holds a run already: go on with it by --resume" in capsys.readouterr().err
    assert train.main([*flags[: -len(SMALL)], "--out", str(tmp_path / "other"), "--resume"]) == 1
    assert "holds no state.pt" in capsys.readouterr().err
    (tmp_path / "run" / "state.pt").write_bytes(b"no state")
    assert train.main(["export", str(tmp_path / "run"), str(tmp_path / "model")]) == 1
    assert "is no state of a training run" in capsys.readouterr().err


def test_rows_that_processes_cannot_share():
    with pytest.raises(InputError, match="7 rows, expected a multiple of the 2 processes"):
        workers.Workers(0, 2, torch.device("cpu")).rows(7)
    assert workers.Workers(1, 2, torch.device("cpu")).rows(8) == slice(4, 8)


def test_recipes_come_from_a_file_and_flags_override_it(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text('text = ["a.txt"]\nlr = 1\nsteps = 3\nout = "there"\nbfloat16 = true\n')
    made = recipe.make(distill.Distill, file, {"steps": 5})
    assert (made.text, made.lr, made.steps, made.out, made.bfloat16, made.seed) == (("a.txt",), 1.0, 5, "there", True, 0)
    assert dataclasses.replace(made, steps=3) == recipe.make(distill.Distill, file, {})
    assert json.loads(json.dumps(dataclasses.asdict(made)))["text"] == ["a.txt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("out = 'x'\nsteeps = 3", r"unknown key steeps: did you mean steps\?; known here: out, steps"),
        ("out = 'x'\nsteps = 'three'", "steps is 'three', expected an integer"),
        ("out = 'x'\nsteps = true", "steps is True, expected an integer"),
        ("out = 'x'\ntext = 'a.txt'", "text is 'a.txt', expected a list of texts"),
        ("out = 'x'\nlr = '1'", "lr is '1', expected a number"),
        ("steps = 3", "missing out: set it in the recipe, or give --out"),
        ("steps = ", "is no TOML"),
    ],
)
def test_recipes_that_do_not_fit(tmp_path, content, message):
    file = tmp_path / "a.toml"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        recipe.make(distill.Distill, file, {})


def test_the_projects_recipes_are_read():
    kinds = dict.fromkeys(("cpu", "embedder", "embedder-queries", "narrow", "shapes"), distill.Distill)
    kinds |= {"mlm": pretrain.Pretrain, "glue": finetune.Finetune}
    files = {file.stem: file for file in (TOOLS / "configs").glob("*.toml")}
    assert files.keys() == kinds.keys()
    for stem, file in files.items():
        given = {"out": "x"} | ({"models": ("x",)} if stem == "glue" else {})
        assert recipe.make(kinds[stem], file, given).out == "x"


def test_states_that_are_none(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no state\.pt"):
        runs.load_state(tmp_path)
