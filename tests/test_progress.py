"""progress: a bar on standard error, that of tqdm where it is installed, or a function of the caller."""

import sys
import types

import pytest

import fastinfer
from fastinfer import progress

TEXTS = ["ada lived in london", "paris", "the [MASK] of france", "ada [MASK]", "unfriendly"] * 3
MASKS = [text for text in TEXTS if "[MASK]" in text]


@pytest.fixture(scope="module")
def model(random_model):
    return fastinfer.load(random_model, device="numpy")


def tasks(model):
    """{name: (a call with progress, how many texts it has)}"""
    small = {"batch_tokens": 8}
    return {
        "embed": (lambda show: model.embed(TEXTS, progress=show, **small), len(TEXTS)),
        "embed_sparse": (lambda show: model.embed_sparse(TEXTS, progress=show, **small), len(TEXTS)),
        "classify": (lambda show: model.classify(TEXTS, progress=show, **small), len(TEXTS)),
        "rank": (lambda show: model.rank("ada", TEXTS, progress=show, **small), len(TEXTS) + 1),
        "tag": (lambda show: model.tag(TEXTS, progress=show, **small), len(TEXTS)),
        "fill_mask": (lambda show: model.fill_mask(MASKS, progress=show, **small), len(MASKS)),
        "answer": (lambda show: model.answer(["is ?"] * 15, TEXTS, progress=show, **small), len(TEXTS)),
    }


TASKS = list(tasks(None))


@pytest.mark.parametrize("task", TASKS)
def test_a_function_is_told_of_each_step(task, model, capfd):
    call, total = tasks(model)[task]
    told: list = []
    call(lambda done, of: told.append((done, of)))
    assert told[-1] == (total, total)
    assert all(type(done) is int and of == total for done, of in told)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    if task not in ("tag", "fill_mask", "answer"):  # these are done in portions of many texts
        assert len(told) > 3
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("task", TASKS)
def test_what_the_function_raises_ends_the_call(task, model):
    call, _ = tasks(model)[task]

    def stop(done, total):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        call(stop)
    call(False)  # the model is as it was


def test_a_bar_of_tqdm_is_closed(model, monkeypatch):
    """It is told of all texts, and closed after an error, too."""
    bars: list = []

    class Bar:
        def __init__(self, total, **_):
            self.total, self.done, self.is_closed = total, 0, False
            bars.append(self)

        def update(self, count):
            self.done += count

        def close(self):
            self.is_closed = True

    module = types.ModuleType("tqdm.auto")
    module.tqdm = Bar
    monkeypatch.setitem(sys.modules, "tqdm", types.ModuleType("tqdm"))
    monkeypatch.setitem(sys.modules, "tqdm.auto", module)
    model.embed(TEXTS, progress=True)
    assert [(bar.done, bar.total, bar.is_closed) for bar in bars] == [(len(TEXTS), len(TEXTS), True)]
    with pytest.raises(fastinfer.InputError, match="has no"):
        model.fill_mask(TEXTS, progress=True)
    assert [bar.is_closed for bar in bars] == [True] * 2


def test_the_bar_of_the_real_tqdm(model, monkeypatch, capfd):
    pytest.importorskip("tqdm")
    monkeypatch.setattr(progress, "INTERVAL", 0)
    model.embed(TEXTS, progress=True, batch_tokens=8)
    out, err = capfd.readouterr()
    assert out == ""
    assert f"/{len(TEXTS)}" in err


def test_a_plain_bar_without_tqdm(model, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    monkeypatch.setattr(progress, "INTERVAL", 0)
    model.embed(TEXTS, progress=True, batch_tokens=8)
    out, err = capfd.readouterr()
    assert out == ""
    assert f"{len(TEXTS)}/{len(TEXTS)} texts" in err
    assert err.endswith("\r\x1b[K")


@pytest.mark.parametrize("wrong", [None, 1, "yes", []])
def test_other_values_are_refused(wrong, model):
    with pytest.raises(fastinfer.InputError, match=r"^progress is .*expected True, False or a function of \(done, total\)"):
        model.embed("ada", progress=wrong)
