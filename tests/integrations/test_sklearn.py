"""TextEmbedder in scikit-learn's own tools."""

import pickle

import numpy as np
import pytest
from packages import needed

needed("sklearn")

from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks

import fastinfer
from fastinfer.integrations.sklearn import TextEmbedder

pytestmark = pytest.mark.filterwarnings("ignore")

CHECKS = [
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_tags_renamed",
    "check_get_params_invariance",
    "check_mixin_order",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_set_params",
    "check_valid_tag_types",
]


@pytest.mark.parametrize("check", CHECKS)
def test_checks_of_scikit_learn_that_suit_texts(check):
    if not hasattr(estimator_checks, check):
        pytest.skip(f"this version of scikit-learn has no {check}")
    getattr(estimator_checks, check)("TextEmbedder", TextEmbedder())


def test_check_estimator_passes():
    estimator_checks.check_estimator(TextEmbedder())


def test_vectors_are_those_of_the_model(embedder, texts):
    model = fastinfer.load(embedder)
    made = TextEmbedder(embedder, prompt_name="query", dim=7, normalize=True)
    np.testing.assert_array_equal(made.transform(np.array(texts)), model.embed(texts, prompt_name="query", dim=7, normalize=True))
    np.testing.assert_array_equal(TextEmbedder(model).fit_transform(texts), model.embed(texts))
    assert TextEmbedder(embedder).fit(texts).transform([]).shape == (0, 32)


def test_parameters_may_change_after_use(embedder, random_model, texts):
    made = TextEmbedder(embedder)
    made.transform(texts)
    np.testing.assert_array_equal(made.set_params(model=random_model).transform(texts), fastinfer.load(random_model).embed(texts))
    assert made.set_params(dim=3).transform(texts).shape == (12, 3)


def test_clones_and_pickles_hold_no_weights(embedder, texts):
    made = TextEmbedder(embedder, dim=5)
    want = made.transform(texts)
    stored = pickle.dumps(made)
    assert len(stored) < 1000
    loaded = TextEmbedder(fastinfer.load(embedder), dim=5)
    for other in (clone(made), pickle.loads(stored)):
        assert other.get_params() == made.get_params()
        np.testing.assert_array_equal(other.transform(texts), want)
    for other in (clone(loaded), pickle.loads(pickle.dumps(loaded))):
        np.testing.assert_array_equal(other.transform(texts), want)


def test_a_search_over_parameters_in_two_processes(embedder, texts):
    texts = [f"{text} {word}" for text in texts for word in ("ada", "paris")]
    labels = np.tile([0, 1], 12)
    search = GridSearchCV(
        make_pipeline(TextEmbedder(embedder), LogisticRegression()),
        {"textembedder__dim": [8, 32]},
        n_jobs=2,
        cv=2,
        error_score="raise",
    )
    search.fit(texts, labels)
    best = search.best_params_
    vectors = fastinfer.load(embedder).embed(texts, dim=best["textembedder__dim"])
    want = LogisticRegression().fit(vectors, labels).predict_proba(vectors)
    np.testing.assert_allclose(search.predict_proba(texts), want)


def test_names_of_columns_and_output_as_a_table(embedder, texts):
    pandas = needed("pandas")
    made = TextEmbedder(embedder, dim=3)
    assert made.get_feature_names_out().tolist() == ["textembedder0", "textembedder1", "textembedder2"]
    table = pandas.DataFrame({"text": texts, "number": range(len(texts))}, index=range(5, 17))
    columns = ColumnTransformer([("t", made, "text"), ("n", "passthrough", ["number"])]).set_output(transform="pandas")
    found = columns.fit_transform(table)
    assert found.columns.tolist() == ["t__textembedder0", "t__textembedder1", "t__textembedder2", "n__number"]
    assert found.index.tolist() == table.index.tolist()
    np.testing.assert_array_equal(found.iloc[:, :3], fastinfer.load(embedder).embed(texts, dim=3))
    with pytest.raises(fastinfer.InputError, match="pass the texts of one column"):
        made.transform(table[["text"]])


def test_fit_tells_what_is_wrong(embedder):
    for wrong, error in (
        ({"model": "nowhere"}, "CheckpointError"),
        ({"model": embedder, "dim": 99}, "InputError"),
        ({"model": 1}, "InputError"),
    ):
        with pytest.raises(getattr(fastinfer, error)):
            TextEmbedder(**wrong).fit(["ada"])
