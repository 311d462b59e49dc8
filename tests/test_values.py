"""Texts as people have them: columns, arrays, iterators, and rows without a text."""

import collections
import math

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastinfer
from fastinfer import embedder
from fastinfer.config import Classify
from fastinfer.tokenizer import TruncationWarning, as_singles, as_texts
from fastinfer.values import is_missing

WORDS = ["ada lived", "zürich 東京", "", "london"]
GAPS = ["ada lived", None, "", "london", math.nan]  # rows 1 and 4 are missing


def optional(module, make):
    """A case of a package that may be missing: a function that skips then."""
    return lambda values: make(pytest.importorskip(module), values)


def pandas(dtype):
    """A Series of this dtype, under labels that are not its places."""
    return optional("pandas", lambda pd, values: pd.Series(values, dtype=dtype, index=[7 - i for i in range(len(values))]))


def plain(values):
    """The values with None for NaN, as columns of Arrow have them."""
    return [None if is_missing(value) else value for value in values]


def masked(values):
    return np.ma.masked_array([value or "" for value in plain(values)], [value is None for value in plain(values)])


def frame(name):
    return lambda values: pytest.importorskip("pandas").DataFrame({"text": values})[name]


# What may hold missing texts, and what cannot.
COLUMNS = {
    "list": list,
    "generator": lambda values: (value for value in values),
    "deque": collections.deque,
    "dict values": lambda values: dict(enumerate(values)).values(),
    "object array": lambda values: np.array(values, object),
    "StringDType": lambda values: np.array(values, np.dtypes.StringDType(na_object=None if None in values else math.nan)),
    "masked array": masked,
    "pandas object": pandas(object),
    "pandas str": pandas("str"),
    "pandas string": pandas("string"),
    "pandas category": pandas("category"),
    "pandas of a frame": frame("text"),
    "pandas index": optional("pandas", lambda pd, values: pd.Index(values)),
    "pandas array": optional("pandas", lambda pd, values: pd.array(values, dtype="string")),
    "polars": optional("polars", lambda pl, values: pl.Series(plain(values))),
    "polars category": optional("polars", lambda pl, values: pl.Series(plain(values), dtype=pl.Categorical)),
    "pyarrow": optional("pyarrow", lambda pa, values: pa.array(plain(values))),
    "pyarrow in chunks": optional("pyarrow", lambda pa, values: pa.chunked_array([plain(values)[:1], plain(values)[1:]])),
    "pyarrow dictionary": optional("pyarrow", lambda pa, values: pa.array(plain(values)).dictionary_encode()),
    "pyarrow large": optional("pyarrow", lambda pa, values: pa.array(plain(values), pa.large_string())),
}
WHOLE = {
    "str array": np.array,
    "str array, every second": lambda values: np.repeat(np.array(values), 2)[::2],
    "StringDType without missing": lambda values: np.array(values, np.dtypes.StringDType()),
    "str_": lambda values: list(map(np.str_, values)),
}


@pytest.fixture(scope="module")
def model(random_model):
    """On the compiled CPU, where an answer does not depend on the other texts."""
    if fastinfer.backends.available()["cpu"] is not None:
        pytest.skip("the compiled module is missing")
    return fastinfer.load(random_model, device="cpu")


@pytest.mark.parametrize("kind", [*COLUMNS, *WHOLE])
def test_columns(kind, model):
    make = (COLUMNS | WHOLE)[kind]
    assert as_texts(make(WORDS)) == as_singles(make(WORDS)) == WORDS
    want = model.embed(WORDS)
    assert_array_equal(model.embed(make(WORDS)), want)
    assert_array_equal(list(model.embed_iter(make(WORDS))), want)
    assert model.rank("ada", make(WORDS)) == model.rank("ada", WORDS)
    assert model.answer(make(["is ?"] * 4), make(["paris"] * 4)) == model.answer(["is ?"] * 4, ["paris"] * 4)


@pytest.mark.parametrize("kind", COLUMNS)
def test_missing_texts_in_columns(kind, model):
    values = GAPS if kind not in ("StringDType",) else [math.nan if is_missing(value) else value for value in GAPS]

    def column():
        return COLUMNS[kind](values)

    with pytest.raises(fastinfer.InputError, match=r"^texts\[1\] is (None|nan|<NA>), expected a str or a pair .*na='empty' or na='skip'"):
        model.embed(column())
    empty = model.embed(["ada lived", "", "", "london", ""])
    assert_array_equal(model.embed(column(), na="empty"), empty)
    assert_array_equal(list(model.embed_iter(column(), na="empty")), empty)
    skipped = model.embed(column(), na="skip")
    assert np.isnan(skipped[[1, 4]]).all()
    assert_array_equal(np.delete(skipped, [1, 4], 0), np.delete(empty, [1, 4], 0))
    assert_array_equal(list(model.embed_iter(column(), na="skip")), skipped)


def test_a_stream_counts_its_rows(model, monkeypatch):
    """Rows are named and skipped by their place in the whole stream, in every window of it."""
    monkeypatch.setattr(embedder, "STREAM_TEXTS", 2)
    with pytest.raises(fastinfer.InputError, match=r"^texts\[4\] is nan"):
        list(model.embed_iter(iter(["ada", "", "is", "of", math.nan])))
    got = np.stack(list(model.embed_iter(iter(GAPS * 2), na="skip")))
    assert_array_equal(got, model.embed(GAPS * 2, na="skip"))
    assert np.isnan(got).all(1).tolist() == [False, True, False, False, True] * 2


def test_answers_to_missing_texts_are_empty(model):
    texts, whole = GAPS, ["ada lived", "", "", "london", ""]
    for task in (model.classify, model.tag):
        want = task(whole)
        assert task(texts, na="empty") == want
        assert task(texts, na="skip") == [want[0], [], want[2], want[3], []]
    masks = ["the [MASK]", None, "[MASK] is"]
    filled = model.fill_mask([masks[0], masks[2]])
    assert model.fill_mask(masks, na="skip") == [filled[0], [], filled[1]]
    with pytest.raises(fastinfer.InputError, match=r"texts\[1\] has no \[MASK\] to fill"):
        model.fill_mask(masks, na="empty")
    with pytest.raises(fastinfer.InputError, match=r"texts\[2\] has no \[MASK\] to fill"):
        model.fill_mask(["[MASK]", None, "paris"], na="skip")
    weights, want = model.embed_sparse(texts, na="skip").toarray(), model.embed_sparse(whole).toarray()
    want[[1, 4]] = 0
    assert_array_equal(weights, want)
    assert_array_equal(model.embed_sparse(texts, na="empty").toarray(), model.embed_sparse(whole).toarray())


def test_documents_that_are_skipped_are_not_ranked(model):
    ranking = model.rank("ada", GAPS, na="skip")
    assert ranking == [(i, score) for i, score in model.rank("ada", GAPS, na="empty") if i not in (1, 4)]
    assert model.rank("ada", GAPS, na="skip", top_k=2) == ranking[:2]
    assert model.rank("ada", [None], na="skip") == []
    with pytest.raises(fastinfer.InputError, match=r"documents\[1\] is None"):
        model.rank("ada", GAPS)
    for query in (None, math.nan):
        with pytest.raises(fastinfer.InputError, match="query is"):
            model.rank(query, GAPS, na="skip")


def test_answers_of_missing_questions_and_contexts(model):
    questions, contexts = ["is ?", None, "who ?", "in ?"], ["ada lived", "paris", math.nan, "london"]
    want = model.answer(["is ?", "in ?"], ["ada lived", "london"])
    assert model.answer(questions, contexts, na="skip") == [want[0], [], [], want[1]]
    with pytest.raises(fastinfer.InputError, match=r"questions\[1\] is None"):
        model.answer(questions, contexts)
    with pytest.raises(fastinfer.InputError, match=r"questions\[1\] is '', expected a question"):
        model.answer(questions, contexts, na="empty")
    with pytest.raises(fastinfer.InputError, match=r"questions\[1\] is ' ', expected a question"):
        model.answer(["is ?", " "], ["ada", "ada"], na="skip")


def test_a_score_of_a_missing_text_is_nan(readable_model):
    folder = readable_model(tasks=fastinfer.config.Tasks(classify=Classify(("score",), "identity", "mean")))
    model = fastinfer.load(folder, device="numpy")
    got = model.classify(["ada", None], na="skip")
    assert got[0] == model.classify("ada")[0]
    assert math.isnan(got[1])
    assert all(isinstance(value, float) for value in got)


@pytest.mark.parametrize("na", ["empty", "skip"])
def test_a_pair_may_lack_a_side(na, model):
    pairs = [("ada", "lived"), ("ada", None), [math.nan, "lived"]]
    with pytest.raises(fastinfer.InputError, match=r"texts\[1\] is \('ada', None\), expected a str or a pair"):
        model.embed(pairs)
    want = model.embed([("ada", "lived"), ("ada", ""), ("", "lived")])
    if na == "skip":
        want[1:] = np.nan
    assert_array_equal(model.embed(pairs, na=na), want)


@pytest.mark.parametrize("texts", [[], [None], [math.nan, None]], ids=str)
def test_nothing_but_missing_texts(texts, model):
    assert np.isnan(model.embed(texts, na="skip")).all()
    assert model.embed(texts, na="skip").shape == (len(texts), 32)
    assert model.tag(texts, na="skip") == model.fill_mask(texts, na="skip") == model.classify(texts, na="skip") == [[]] * len(texts)
    assert model.answer(texts, texts, na="skip") == [[]] * len(texts)
    assert model.embed_sparse(texts, na="skip").nnz == 0


def test_cut_texts_are_named_by_their_row(model):
    with pytest.warns(TruncationWarning, match=r"1 of 3 texts .*the first is texts\[2\]"):
        model.embed([None, "ada", "ada " * 50], na="skip")


def test_what_is_no_text_is_refused_in_every_mode(model):
    for na in ("raise", "empty", "skip"):
        for texts, said in (
            (["ada", 5], r"texts\[1\] is an int"),
            (None, "texts is None"),
            (math.nan, "texts is a float"),
            (5, "texts is an int"),
        ):
            with pytest.raises(fastinfer.InputError, match=said):
                model.embed(texts, na=na)
        with pytest.raises(fastinfer.InputError, match=r"texts is a DataFrame, .*: pass the texts of one column"):
            model.embed(pytest.importorskip("pandas").DataFrame({"a": ["ada"]}), na=na)
    for na in ("Skip", "", None, True, np.array(["raise"]), ["raise"]):
        for call in (model.embed, model.tag, model.classify, lambda texts, na: list(model.embed_iter(texts, na=na))):
            with pytest.raises(fastinfer.InputError, match=r"^na is .*expected 'raise', 'empty' or 'skip'"):
                call("ada", na=na)


def test_ids_have_no_missing_texts(model):
    batch = fastinfer.PackedBatch.from_ids([[2, 5, 3], [2, 3]])
    for na in ("raise", "empty", "skip"):
        assert_array_equal(model.embed(batch, na=na), model.embed(batch))


def test_a_caller_may_change_the_list_afterwards():
    """The texts are those of the time of the call."""
    texts = ["ada", "lived"]
    read = as_texts(texts)
    texts[0] = "paris"
    assert read == ["ada", "lived"]
