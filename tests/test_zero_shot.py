"""classify(labels=...) gives what transformers' zero-shot pipeline gives, and refuses models and arguments that do not fit."""

import json
import warnings

import builders
import numpy as np
import pytest
from conftest import make_config, make_tokenizer

import fastinfer
from fastinfer.config import Classify, Tasks
from fastinfer.errors import InputError, TaskError
from fastinfer.heads import classify

LABELS = ["in London", "Paris", "an animal of the wood", "politics"]


@pytest.fixture(scope="module")
def parity():
    return pytest.importorskip("parity", reason="the oracles need PyTorch and transformers", exc_type=ImportError)


@pytest.mark.parametrize(
    ("number", "classes"),
    [
        (0, ["contradiction", "neutral", "entailment"]),
        (2, ["ENTAILMENT", "NEUTRAL", "CONTRADICTION"]),
        (3, ["entailment", "not_entailment"]),
        (4, ["neutral", "Entails", "contradiction", "other"]),
    ],
)
@pytest.mark.parametrize("multi_label", [False, True])
def test_the_scores_are_those_of_the_pipeline(parity, tmp_path, number, classes, multi_label):
    names = {"id2label": dict(enumerate(classes)), "label2id": {name: k for k, name in enumerate(classes)}}
    pair = parity.pair(parity.CASES[number], "classify", tmp_path, names)
    assert pair.ours.config.tasks.classify.labels == tuple(classes)
    pipeline = parity.transformers.ZeroShotClassificationPipeline(model=pair.theirs, tokenizer=pair.tokenizer)
    texts = [*parity.TEXTS[:20], *parity.LONG]
    for labels, template in ((LABELS, "This example is {}."), (LABELS[:1], "Es geht um {}, {}!"), (LABELS, "{}")):
        options = {"template": template, "multi_label": multi_label}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", fastinfer.tokenizer.TruncationWarning)
            got = pair.ours.classify(texts, labels=labels, **options)
        for text, answer in zip(texts, got, strict=True):
            hypothesis = template if template.count("{}") == 1 else template.replace("{}", "{0}")
            want = pipeline(text, candidate_labels=labels, hypothesis_template=hypothesis, multi_label=multi_label)
            assert [label for label, _ in answer] == want["labels"], text
            np.testing.assert_allclose([score for _, score in answer], want["scores"], atol=1e-5)


@pytest.fixture
def folder(tmp_path):
    config = make_config(max_tokens=8, tasks=Tasks(classify=Classify(("contradiction", "neutral", "entailment"), "softmax")))
    builders.save(tmp_path, config)
    make_tokenizer().save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.fixture
def model(folder):
    return fastinfer.load(folder)


def test_a_text_that_is_cut_keeps_the_whole_hypothesis_and_is_told_once(model):
    texts = ["ada", "ada lived in london ada"]
    with pytest.warns(fastinfer.tokenizer.TruncationWarning, match=r"1 of 2 texts had more than 8 tokens.*the first is texts\[1\]") as said:
        got = model.classify(texts, labels=["is", "is is"], template="{}")
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        begun = [model.classify("ada lived in london", labels=["is"], template="{}", multi_label=True)[0][0][1]]
        begun += [model.classify("ada lived in", labels=["is is"], template="{}", multi_label=True)[0][0][1]]
    with pytest.warns(fastinfer.tokenizer.TruncationWarning):
        alone = dict(model.classify(texts[1], labels=["is", "is is"], template="{}", multi_label=True)[0])
    assert [alone["is"], alone["is is"]] == begun
    assert {label for label, _ in got[1]} == {"is", "is is"}
    with pytest.raises(InputError, match="a second text of 5 tokens leaves no room for the first: the model's limit is 8"):
        model.classify("ada", labels=["is is is is is"], template="{}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "a, b"}, "labels is 'a, b', expected a list of names"),
        ({"labels": []}, "labels is .*, expected a list of names"),
        ({"labels": ["a", ""]}, "labels is .*, expected a list of names"),
        ({"labels": ["a", 3]}, r"labels\[1\] is an int"),
        ({"labels": ["a"], "template": "about"}, "template is 'about', expected a sentence with {} in it"),
        ({"labels": ["a"], "template": 3}, "template is 3, expected"),
        ({"labels": ["a"], "multi_label": 1}, "multi_label is 1"),
    ],
)
def test_arguments_that_do_not_fit(model, options, message):
    with pytest.raises(InputError, match=message):
        model.classify("ada", **options)
    with pytest.raises(InputError, match=r"texts\[0\] is a pair"):
        model.classify([("ada", "is")], labels=["a"])
    assert model.classify([], labels=["a"]) == []


def test_a_model_without_entailment_is_refused(readable_model):
    model = fastinfer.load(readable_model())
    with pytest.raises(TaskError, match=r"cannot score labels of yours: none of its classes is entailment, they are 'no', 'yes'"):
        model.classify("ada", labels=["a"])
    assert classify.entailment(("entailment",)) is None


def test_the_command(run, model, folder):
    status, out, _ = run("classify", "-m", folder, "ada", "--labels", "is, lived in", "--template", "{}", "--json")
    want = model.classify("ada", labels=["is", "lived in"], template="{}")[0]
    assert (status, [(r["label"], np.float32(r["score"])) for r in json.loads(out)["labels"]]) == (0, want)
    options = ["--labels", "is", "--template", "{} {}", "--multi-label", "-k", "1"]
    (label, score) = model.classify("ada", labels=["is"], template="{} {}", multi_label=True)[0][0]
    assert run("classify", "-m", folder, "ada", *options)[1] == f"ada\n  {score:.4f}  {label}\n"
    assert run("classify", "-m", folder, "ada", "--labels", " , ")[0] == 2
