"""load() and Model, on tiny models whose answers are known or must not depend on the batch."""

import itertools
import math
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import backends
import numpy as np
import pytest
from conftest import WORDS
from numpy.testing import assert_allclose, assert_array_equal

import fastinfer
from fastinfer import PackedBatch, embedder
from fastinfer.config import Classify, Embed, FillMask, Tasks
from fastinfer.errors import CheckpointError, InputError, TaskError
from fastinfer.tokenizer import TruncationWarning

TEXTS = [
    "Ada Lovelace lived in London.",
    "",
    "Paris is the capital of France.",
    ("Ada", "unfriendly london"),
    "paris " * 20,
    "?",
    ("is paris the capital", ""),
    "ada",
]


@pytest.fixture(scope="module")
def model(random_model):
    return fastinfer.load(random_model)


def softmax(*logits):
    e = np.exp(np.array(logits, np.float64) - max(logits))
    return (e / e.sum()).tolist()


# --- batches ---


def test_one_text_alone_is_a_batch_of_one(model):
    assert_array_equal(model.embed("ada"), model.embed(["ada"]))
    assert model.embed("ada").shape == (1, 32)
    assert model.embed(("ada", "london")).shape == (1, 32)
    assert model.embed(["ada", "london"]).shape == (2, 32)
    assert len(model.classify("ada")) == len(model.tag("ada")) == len(model.answer("ada?", "london")) == 1


def test_no_texts_give_no_answers(model):
    assert model.embed([]).shape == (0, 32)
    assert model.embed([]).dtype == np.float32
    assert list(model.embed_iter([])) == []
    assert model.classify([]) == model.tag([]) == model.fill_mask([]) == model.answer([], []) == model.rank("ada", []) == []
    assert model.logits([], task="classify").shape == (0, 2)
    assert model.hidden_states([]) == []


@pytest.mark.parametrize("device", ["numpy", "cpu"])
@pytest.mark.parametrize("batch_tokens", [1, 9, 40, 8192])
def test_a_text_has_the_same_answer_alone_and_in_any_batch(random_model, device, batch_tokens):
    model = fastinfer.load(random_model, device=device)
    alone = np.concatenate([model.embed(text) for text in TEXTS])
    assert np.abs(alone[:, None] - alone[None]).max(-1)[~np.eye(len(TEXTS), dtype=bool)].min() > 1e-3, "texts that are alike show no order"
    assert_allclose(model.embed(TEXTS, batch_tokens=batch_tokens), alone, atol=1e-5)
    assert_allclose(list(model.embed_iter(TEXTS, batch_tokens=batch_tokens)), alone, atol=1e-5)
    for order in (slice(None, None, -1), slice(3, 6)):
        assert_allclose(model.embed(TEXTS[order], batch_tokens=batch_tokens), alone[order], atol=1e-5)
    for task in ("classify", "tag", "answer"):
        together = model.logits(TEXTS, task=task, batch_tokens=batch_tokens)
        for got, text in zip(together, TEXTS, strict=True):
            assert_allclose(got, model.logits(text, task=task)[0], atol=1e-5)
    masked = ["[MASK] lived in london", "ada", ("[MASK]", "in [MASK]"), "paris is [MASK]"]
    rows = model.logits(masked, task="fill_mask", batch_tokens=batch_tokens)
    assert [len(r) for r in rows] == [1, 0, 2, 1]
    for got, text in zip(rows, masked, strict=True):
        assert_allclose(got, model.logits(text, task="fill_mask")[0], atol=1e-5)
        everywhere = model.logits(text, task="fill_mask", positions="all")[0]
        places = np.array(model.tokenizer.encode([text])[0].ids) == WORDS.index("[MASK]")
        assert_allclose(got, everywhere[places], atol=1e-5)


def test_ids_are_accepted_where_texts_are(model):
    batch = model.tokenizer.batch(model.tokenizer.encode(TEXTS))
    assert_array_equal(model.embed(batch), model.embed(TEXTS))
    assert_array_equal(list(model.embed_iter(batch)), model.embed(TEXTS))
    assert model.classify(batch) == model.classify(TEXTS)


def test_embed_iter_reads_ahead_by_one_window_at_most(model, monkeypatch):
    monkeypatch.setattr(embedder, "STREAM_TEXTS", 4)
    read = 0

    def stream():
        nonlocal read
        for text in itertools.islice(itertools.cycle(TEXTS), 30):
            read += 1
            yield text

    want = model.embed(TEXTS)
    for i, vector in enumerate(model.embed_iter(stream())):
        assert read <= (i // 4 + 1) * 4
        assert_allclose(vector, want[i % len(TEXTS)], atol=1e-5)
    assert i == 29


def test_embed_iter_warns_once(model, monkeypatch):
    monkeypatch.setattr(embedder, "STREAM_TEXTS", 2)
    with pytest.warns(TruncationWarning, match="3 of 7 texts .*longest had at least 45") as said:
        list(model.embed_iter(["paris " * 40, "ada", "paris " * 50, "london", "is", "paris", "paris " * 45]))
    assert len(said) == 1


def test_embed_iter_takes_what_embed_takes(model, monkeypatch):
    monkeypatch.setattr(embedder, "STREAM_TEXTS", 2)
    assert_array_equal(list(model.embed_iter("ada")), model.embed("ada"))
    assert_array_equal(list(model.embed_iter(("ada", "london"))), model.embed(("ada", "london")))
    stream = model.embed_iter(["a", "b", "c", 4])
    with pytest.raises(InputError, match=r"texts\[3\] is an int"):
        list(stream)
    with pytest.raises(InputError, match="texts is a bytes"):
        list(model.embed_iter(b"ada"))


def test_normalize(model, readable_model):
    lengths = np.linalg.norm(model.embed(TEXTS, normalize=False), axis=1)
    assert (np.abs(lengths - 1) > 0.05).all()
    assert_allclose(np.linalg.norm(model.embed(TEXTS, normalize=True), axis=1), 1, rtol=1e-6)
    assert_array_equal(model.embed(TEXTS), model.embed(TEXTS, normalize=True))
    plain = fastinfer.load(readable_model(tasks=Tasks(Embed("mean", False))))
    assert_allclose(plain.embed("ada").nonzero()[1], [WORDS.index(w) for w in ("[CLS]", "[SEP]", "ada")])
    assert_allclose(plain.embed("ada").max(), 1 / 3)


def test_cut_texts_warn_once_and_are_used(model):
    with pytest.warns(TruncationWarning) as caught:
        got = model.embed(["paris " * 100, "ada", ("ada " * 50, "london")])
    assert len(caught) == 1
    assert_allclose(got, model.embed(["paris " * 30, "ada", ("ada " * 28, "london")]), atol=1e-5)


CUTTING = {
    "embed": lambda model, long: model.embed(["ada", long]),
    "embed_iter": lambda model, long: list(model.embed_iter(["ada", long])),
    "classify": lambda model, long: model.classify(["ada", long]),
    "fill_mask": lambda model, long: model.fill_mask(["[MASK]", f"[MASK] {long}"]),
    "rank": lambda model, long: model.rank("ada", [long]),
    "hidden_states": lambda model, long: model.hidden_states(["ada", long]),
    "logits": lambda model, long: model.logits(["ada", long], task="tag"),
    "routes": lambda model, long: model.routes(["ada", long]),
}


@pytest.mark.parametrize("name", CUTTING)
def test_a_warning_of_cut_texts_names_the_callers_line(model, name):
    with pytest.warns(TruncationWarning, match=r"1 of 2 texts .* the first is texts\[1\]") as caught:
        CUTTING[name](model, "ada " * 100)
    assert [(w.filename, w.lineno) for w in caught] == [(__file__, CUTTING[name].__code__.co_firstlineno)]


def test_a_tuple_of_documents_is_a_batch(model):
    assert model.rank("ada", ("ada", "london")) == model.rank("ada", ["ada", "london"])
    with pytest.raises(InputError, match=r"documents\[0\] is a pair"):
        model.rank("ada", [("ada", "london")])


@pytest.mark.parametrize("bad", [None, 7, b"ada", ["ada", None], ["ada", 7], ["ada", b"x"], ["ada", ["a"]], [["ada"]], [["a", ["b"]]]])
@pytest.mark.parametrize("method", ["embed", "classify", "fill_mask", "tag", "hidden_states", "routes", "rank"])
def test_what_is_no_text_is_named(model, method, bad):
    call = getattr(model, method)
    name = "documents" if method == "rank" else "texts"
    where = rf"{name}\[{len(bad) - 1}\] is " if isinstance(bad, list) else f"{name} is "
    with pytest.raises(InputError, match=where):
        call("ada", bad) if method == "rank" else call(bad)


def test_wrong_arguments(model):
    for name, call in {
        "query is None": lambda: model.rank(None, ["ada"]),
        "query is a pair": lambda: model.rank(("ada", "b"), ["ada"]),
        r"texts\[1\] is a pair": lambda: model.tag(["ada", ("ada", "b")]),
        r"contexts\[0\] is a pair": lambda: model.answer(["ada"], [("a", "b")]),
        "contexts is None": lambda: model.answer(["ada"], None),
        r"questions\[1\] is an int": lambda: model.answer(["ada", 5], ["a", "b"]),
        "2 questions and 1 contexts": lambda: model.answer(["ada", "ada"], ["a"]),
        "top_k is 0": lambda: model.classify("ada", top_k=0),
        "top_k is True": lambda: model.rank("ada", ["a"], top_k=True),
        r"top_k is 1\.5": lambda: model.fill_mask("[MASK]", top_k=1.5),
        "batch_tokens is -1": lambda: model.embed("ada", batch_tokens=-1),
        "positions is 'any'": lambda: model.logits("ada", task="fill_mask", positions="any"),
    }.items():
        with pytest.raises(InputError, match=name):
            call()


def test_text_for_a_model_without_tokenizer(random_model, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(f"{random_model}/{name}")
    model = fastinfer.load(tmp_path)
    assert model.tokenizer is None
    assert model.embed(PackedBatch.from_ids([[2, 5, 3]])).shape == (1, 32)
    calls = [model.embed, model.classify, model.fill_mask, model.tag, lambda text: model.answer(text, text), lambda t: model.rank(t, t)]
    for call in calls:
        with pytest.raises(InputError, match=r"has no tokenizer\.json: put it into the folder, or pass ids"):
            call("[MASK]")


def test_a_task_without_a_head_names_the_heads(readable_model):
    model = fastinfer.load(readable_model(tasks=Tasks(fill_mask=FillMask(False, tied=False, bias=False))))
    for call in (model.embed, model.classify, model.tag, lambda t: model.answer(t, t), lambda t: next(model.embed_iter(t))):
        with pytest.raises(TaskError, match=r"has no (embed|classify|tag|answer) head; it has fill_mask"):
            call("ada")
    with pytest.raises(
        TaskError, match=r"cannot rank: it has no embed, embed_tokens or embed_sparse head, .* of one label, only fill_mask"
    ):
        model.rank("ada", ["paris"])


def test_models_inside(monkeypatch, tmp_path, readable_model):
    """None loads the first model by name. A Path is never a model's name. A folder that exists wins over a name."""
    monkeypatch.setattr(fastinfer.catalog, "MODELS", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no model is named, and none is inside this installation: name a checkpoint folder"):
        fastinfer.load()
    with pytest.raises(CheckpointError, match=r"few is no checkpoint folder; .* model inside fastinfer \(there is none\)$"):
        fastinfer.load("few")
    for name, limit in (("two", 7), ("one", 6)):
        shutil.copytree(readable_model(max_tokens=limit), tmp_path / "models" / name)
    assert fastinfer.info()["models"] == ["one", "two"]
    assert [fastinfer.load(name).config.max_tokens for name in (None, "one", "two")] == [6, 6, 7]
    with pytest.raises(CheckpointError, match=r"three is no checkpoint folder; .* model inside fastinfer \(one, two\)$"):
        fastinfer.load("three")
    with pytest.raises(CheckpointError, match="one is no checkpoint folder"):
        fastinfer.load(Path("one"))
    shutil.copytree(readable_model(max_tokens=8), "one")
    assert fastinfer.load("one").config.max_tokens == 8


# --- classify ---


def test_classify(readable_model):
    tables = {"classify": {"paris": [4, -2], "[CLS]": [0, 6]}}
    model = fastinfer.load(readable_model(tables))
    ((first, second),) = model.classify("paris")  # the mean over [CLS] paris [SEP]
    scores = softmax(4 / 3, 4 / 3)
    assert (first[0], second[0]) == ("no", "yes"), "ties keep the order of the labels"
    assert_allclose([first[1], second[1]], scores, rtol=1e-6)
    ((first, second),) = model.classify("ada")
    assert (first[0], second[0]) == ("yes", "no")
    assert_allclose([first[1], second[1]], softmax(2, 0), rtol=1e-6)
    assert [len(best) for best in model.classify(["ada", "paris"], top_k=1)] == [1, 1]
    pair = model.classify(("ada", "paris paris"))  # (6, 0) + 2 * (4, -2) over 6 tokens
    assert_allclose(dict(pair[0])["no"], softmax(8 / 6, 2 / 6)[0], rtol=1e-6)


def test_classify_of_many_labels_and_of_a_regression(readable_model):
    tables = {"classify": {"paris": [3, -6]}}
    each = fastinfer.load(readable_model(tables, tasks=Tasks(classify=Classify(("a", "b"), "sigmoid", "mean"))))
    ((first, second),) = each.classify("paris")
    assert (first[0], second[0]) == ("a", "b")
    assert_allclose([first[1], second[1]], [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(2))], rtol=1e-6)
    score = fastinfer.load(readable_model({"classify": {"paris": [3]}}, tasks=Tasks(classify=Classify(("score",), "identity", "mean"))))
    assert score.classify(["paris", "ada", "paris paris"]) == pytest.approx([1, 0, 1.5])


# --- rank ---


def test_rank_by_embedding(readable_model):
    model = fastinfer.load(readable_model(tasks=Tasks(Embed("mean", False))))
    documents = ["ada", "paris", "london in london", "paris ada", "ada"]
    ranking = model.rank("ada", documents)
    assert [i for i, _ in ranking] == [0, 4, 3, 1, 2]
    # one-hot tokens of [CLS] ada [SEP]: 3 shared of 3 and 3; 3 of 4; 2 of 3; 2, against the length of (1, 1, 1, 2)
    want = [1, 1, 3 / math.sqrt(3 * 4), 2 / 3, 2 / math.sqrt(3 * 7)]
    assert_allclose([s for _, s in ranking], want, rtol=1e-6)
    assert model.rank("ada", documents, top_k=2) == ranking[:2]
    assert model.rank("ada", "ada") == [(0, pytest.approx(1))]


def test_a_score_does_not_depend_on_the_documents_beside():
    model = fastinfer.load(device="cpu")  # the shipped model: BLAS may sum its long vectors in several orders
    documents = [" ".join(WORDS[5 + i : 8 + i]) for i in range(8)]
    together = dict(model.rank("Where did Ada live?", documents))
    assert len(set(together.values())) == len(documents)
    for i, document in enumerate(documents):
        assert model.rank("Where did Ada live?", [document]) == [(0, together[i])]
        assert dict(model.rank("Where did Ada live?", documents[: i + 1]))[i] == together[i]


@pytest.mark.parametrize("output", ["identity", "sigmoid", "softmax"])
def test_rank_by_cross_encoder(readable_model, output):
    tables = {"classify": {"paris": [3], "london": [-3]}}
    model = fastinfer.load(readable_model(tables, tasks=Tasks(classify=Classify(("score",), output, "mean"))))
    ranking = model.rank("ada", ["london", "in", "paris", "paris of france"])  # [CLS] ada [SEP] document [SEP]
    assert [i for i, _ in ranking] == [2, 3, 1, 0]
    logits = np.array([3 / 5, 3 / 7, 0, -3 / 5])
    assert_allclose([s for _, s in ranking], 1 / (1 + np.exp(-logits)) if output == "sigmoid" else logits, atol=1e-6)
    with pytest.raises(InputError, match=r"documents\[1\] is a pair"):
        model.rank("ada", ["london", ("a", "b")])


# --- fill_mask ---


@pytest.fixture
def filler(readable_model):
    """A model whose mask logits are 3 for london, 2 for paris, 1 for ##ly, and 0 for all others."""
    row = np.zeros(len(WORDS))
    for word, logit in (("london", 3), ("paris", 2), ("##ly", 1)):
        row[WORDS.index(word)] = logit
    return fastinfer.load(readable_model({"fill_mask": {"[MASK]": row}}))


def test_fill_mask(filler):
    answers = filler.fill_mask(["Ada lived in [MASK].", "[MASK] is, [MASK]?"], top_k=3)
    scores = softmax(3, 2, 1, *[0] * (len(WORDS) - 3))
    assert [[[(t, f) for t, _, f in best] for best in masks] for masks in answers] == [
        [[("london", "Ada lived in london."), ("paris", "Ada lived in paris."), ("##ly", "Ada lived inly.")]],
        [
            [("london", "london is, [MASK]?"), ("paris", "paris is, [MASK]?"), ("##ly", "ly is, [MASK]?")],
            [("london", "[MASK] is, london?"), ("paris", "[MASK] is, paris?"), ("##ly", "[MASK] is,ly?")],
        ],
    ]
    for masks in answers:
        for best in masks:
            assert_allclose([s for _, s, _ in best], scores[:3], rtol=1e-6)
    assert len(filler.fill_mask("[MASK]", top_k=1000)[0][0]) == len(WORDS)


def test_fill_mask_in_a_pair(filler):
    ((second,),) = filler.fill_mask(("Who?", "Ada in [MASK]"), top_k=1)
    assert second[0][2] == ("Who?", "Ada in london")
    first, second = filler.fill_mask(("[MASK] 🦊", "é [MASK]."), top_k=1)[0]
    assert first[0][2] == ("london 🦊", "é [MASK].")
    assert second[0][2] == ("[MASK] 🦊", "é london.")


def test_fill_mask_keeps_the_order_of_texts(filler):
    texts = [f"{'ada ' * n}[MASK]{' of' * (20 - 2 * n)}" for n in range(8)]
    for batch_tokens in (1, 30, 8192):
        answers = filler.fill_mask(texts, top_k=1, batch_tokens=batch_tokens)
        assert [masks[0][0][2] for masks in answers] == [t.replace("[MASK]", "london") for t in texts]


def test_fill_mask_without_a_mask(filler):
    with pytest.raises(InputError, match=r"texts\[1\] has no \[MASK\] to fill in its first 32 tokens: 'ada'"):
        filler.fill_mask(["[MASK]", "ada"])
    with pytest.warns(TruncationWarning), pytest.raises(InputError, match=r"texts\[0\] has no \[MASK\]"):
        filler.fill_mask("ada " * 40 + "[MASK]")


# --- tag ---


def test_tag(readable_model):
    rows = {word: [1, 0, 0, 0, 0] for word in WORDS}
    rows |= {"ada": [0, 4, 0, 0, 0], "lovelace": [0, 0, 3, 0, 0], "london": [0, 0, 0, 2, 0], "paris": [0, 0, 0, 0, 5]}
    rows |= {"friend": [0, 0, 0, 6, 0], "##ly": [0, 7, 0, 0, 0], "[CLS]": [0, 9, 0, 0, 0], "[SEP]": [0, 9, 0, 0, 0]}
    model = fastinfer.load(readable_model({"tag": rows}))
    per, more, loc = (softmax(logit, 0, 0, 0, 0)[0] for logit in (4, 3, 2))
    texts = ["Ada  Lovelace lived in London.", "ada ada", "lovelace", "ada paris paris", "é 🦊 friendly?", "", "is"]
    want = [
        [(0, 13, "PER", (per + more) / 2, "Ada  Lovelace"), (23, 29, "LOC", loc, "London")],
        [(0, 3, "PER", per, "ada"), (4, 7, "PER", per, "ada")],
        [(0, 8, "PER", more, "lovelace")],
        [(0, 3, "PER", per, "ada"), (4, 15, "LOC", softmax(5, 0, 0, 0, 0)[0], "paris paris")],
        [(4, 12, "LOC", softmax(6, 0, 0, 0, 0)[0], "friendly")],
        [],
        [],
    ]
    for got, spans in zip(model.tag(texts, batch_tokens=10), want, strict=True):
        assert [(*s[:3], s[4]) for s in got] == [(*s[:3], s[4]) for s in spans]
        assert_allclose([s[3] for s in got], [s[3] for s in spans], rtol=1e-6)


# --- answer ---


def test_answer(readable_model):
    tables = {"answer": {"london": [5, 1], "paris": [1, 4], "ada": [1.5, 3], "[CLS]": [9, 9], "is": [9, 9]}}
    model = fastinfer.load(readable_model(tables))
    context = "Ada lived in London of Paris."  # ada lived in london of paris .
    # the softmax covers [CLS], which means "no answer", and the context
    (none, *starts), (_, *ends) = softmax(9, 1.5, 0, 0, 5, 0, 1, 0), softmax(9, 3, 0, 0, 1, 0, 4, 0)
    ((best, second, third),) = model.answer("is is?", context, top_k=3)
    assert (*best[:2], best[3]) == (13, 28, "London of Paris")
    assert (*second[:2], second[3]) == (13, 19, "London")
    assert third[3] == "Ada lived in London of Paris"
    want = [starts[3] * ends[5], starts[3] * ends[3], starts[0] * ends[5]]
    assert_allclose([best[2], second[2], third[2]], want, rtol=1e-5)
    batch = model.answer(["is?", "is"], [context, "the capital ada"])
    assert [[a[3] for a in answers] for answers in batch] == [["London of Paris"], ["ada"]]
    ((silence, again),) = model.answer("is is?", context, top_k=2, no_answer=True)
    assert (silence[:2], silence[3], again) == ((0, 0), "", best)
    assert silence[2] == pytest.approx(none * softmax(9, 3, 0, 0, 1, 0, 4, 0)[0])
    assert model.answer("is?", "", no_answer=True) == [[(0, 0, pytest.approx(1), "")]]
    for question, text, message in (("is?", " ", r"contexts\[0\] is ' ', expected a text"), ("", "ada", r"questions\[0\] is ''")):
        with pytest.raises(InputError, match=message):
            model.answer([question], [text])


def test_answer_reads_a_long_context_in_windows(readable_model):
    model = fastinfer.load(readable_model({"answer": {"london": [30, 0], "paris": [0, 30]}}))
    context = "ada lived in the capital " * 40 + "London of Paris" + " in france" * 60
    ((answer,),) = model.answer("is?", context)
    assert answer[3] == "London of Paris"
    assert context[answer[0] : answer[1]] == "London of Paris"
    assert answer[2] > 0.99
    answers = model.answer("is?", context, top_k=5)[0]
    assert len({a[:2] for a in answers}) == 5, "windows that overlap give a span once"


# --- threads and processes ---


def test_several_python_threads_at_once(model):
    texts = [[f"{'ada ' * (i % 5)}{word}"] * (1 + i % 3) for i, word in enumerate(WORDS[5:] * 4)]
    want = [model.embed(t) for t in texts]
    with ThreadPoolExecutor(8) as pool:
        for got, expected in zip(pool.map(model.embed, texts), want, strict=True):
            assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("device", [["numpy", "numpy"], *([[name] for name in backends.ALL if name.startswith("cuda")])], ids=str)
def test_texts_are_tokenised_ahead_of_a_device_that_leaves_the_host_free(random_model, monkeypatch, device):
    """Windows of texts on devices that take turns give the answers of one window on one device, in order, with one warning."""
    want_of, model = fastinfer.load(random_model, device="numpy"), fastinfer.load(random_model, device=device)
    for ops, _ in model._runner.replicas:
        monkeypatch.setattr(ops, "asynchronous", True)
    monkeypatch.setattr(fastinfer.run, "WINDOW_TEXTS", 64)
    rng = np.random.default_rng(3)
    texts = [" ".join(rng.choice(["ada", "lovelace", "lived", "in", "london"], rng.integers(1, 60))) for _ in range(500)]
    with pytest.warns(TruncationWarning) as said:
        want, got = want_of.embed(texts), model.embed(texts, batch_tokens=100)
    assert [str(w.message) for w in said] == [str(said[0].message)] * 2
    assert {w.filename for w in said} == {__file__}
    assert_allclose(got, want, atol=1e-5)
    short = [text for text in texts if len(text) < 80]
    assert_allclose(model.logits(short, task="classify", batch_tokens=64), want_of.logits(short, task="classify"), atol=1e-3)


@pytest.mark.parametrize("device", [[], 3, None], ids=str)
def test_devices_that_are_none(random_model, device):
    with pytest.raises(InputError, match=r"device is .*, expected a string such as 'cpu', or a list of them"):
        fastinfer.load(random_model, device=device)


def test_release_leaves_the_weights(model):
    want = model.embed("ada")
    model.release()
    assert_array_equal(model.embed("ada"), want)


FORK = """
import os, signal, sys
import numpy as np
import fastinfer

model = fastinfer.load(sys.argv[1], device="cpu", threads=2)
texts = ["ada lovelace lived in london", "paris is the capital of france"] * 200
want = model.embed(texts)
child = os.fork()
if child == 0:
    signal.alarm(60)  # ends a child that hangs
    same = np.allclose(model.embed(texts), want, atol=1e-5)
    os._exit(0 if same else 3)
print("child", os.waitpid(child, 0)[1])
assert np.allclose(model.embed(texts), want, atol=1e-5)
"""


def test_a_child_process_still_answers(random_model):
    done = subprocess.run([sys.executable, "-c", FORK, random_model], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "child 0\n", done.stderr
    assert done.returncode == 0, done.stderr


def test_repr_says_what_it_is(random_model):
    text = repr(fastinfer.load(random_model, device="numpy"))
    assert "1 layers, hidden 32, feedforward 2x3, tasks embed, fill_mask, classify, tag, answer" in text
    assert text.endswith("device numpy>")
