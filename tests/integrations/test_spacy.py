"""spaCy: a component of a pipeline that is saved."""

import subprocess
import sys

import numpy as np
import pytest
from packages import needed

spacy = needed("spacy")

import fastinfer

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def pipeline(random_model):
    """A pipeline with the component, which spaCy finds by its entry point."""
    made = spacy.blank("en")
    made.add_pipe("fastinfer", config={"model": random_model, "threads": 1})
    return made


def test_vectors_are_those_of_the_model(pipeline, random_model, texts):
    want = fastinfer.load(random_model).embed(texts)
    docs = list(pipeline.pipe(texts, batch_size=5))
    np.testing.assert_array_equal([doc._.embedding for doc in docs], want)
    np.testing.assert_array_equal([doc.vector for doc in docs], want)
    np.testing.assert_array_equal(pipeline(texts[2]).vector, want[2])
    assert docs[0].has_vector
    assert docs[0].similarity(docs[1]) == pytest.approx(float(want[0] @ want[1]), abs=1e-6)
    assert pipeline("").vector.shape == (32,)
    assert all(doc.vector.base is None for doc in docs)


def test_a_pipeline_is_reopened_by_another_process(pipeline, texts, tmp_path):
    pipeline.to_disk(tmp_path)
    code = f"import spacy; print(spacy.load({str(tmp_path)!r})({texts[0]!r}).vector.tolist())"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, timeout=120)
    np.testing.assert_array_equal(np.float32(eval(done.stdout)), pipeline(texts[0]).vector)


def test_several_processes_keep_the_embedding(pipeline, texts):
    docs = list(pipeline.pipe(texts, n_process=2, batch_size=4))
    np.testing.assert_array_equal([doc._.embedding for doc in docs], [pipeline(text).vector for text in texts])


def test_options(random_model, texts):
    made = spacy.blank("en")
    made.add_pipe("fastinfer", config={"model": random_model, "dim": 4})
    doc = made(texts[0])
    assert doc.vector.shape == (4,)
    with pytest.raises(fastinfer.ShapeError, match="two Docs of this component"):
        doc.similarity(spacy.blank("en")(texts[1]))
