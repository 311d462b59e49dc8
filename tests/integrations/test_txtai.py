"""txtai: vectors of an index that is saved."""

import numpy as np
import pytest
from packages import needed

needed("txtai")

from txtai import Embeddings

pytestmark = pytest.mark.filterwarnings("ignore")

METHOD = "fastinfer.integrations.txtai.FastinferVectors"


def test_an_index_and_the_one_that_is_read_from_what_it_writes(embedder, texts, queries, documents, tmp_path):
    index = Embeddings(method=METHOD, path=embedder, vectors={"threads": 1}, backend="numpy")
    index.index(texts)
    np.testing.assert_allclose(index.batchtransform(texts, "data"), documents, atol=1e-6)
    np.testing.assert_allclose(index.batchtransform(texts, "query"), queries, atol=1e-6)
    want = np.argsort(-(documents @ queries[0]))[:3].tolist()
    index.save(str(tmp_path / "index"))
    again = Embeddings()
    again.load(str(tmp_path / "index"))
    for made in (index, again):
        assert [i for i, _ in made.search(texts[0], 3)] == want


def test_options(embedder, texts):
    short = Embeddings(method=METHOD, path=embedder, vectors={"dim": 5})
    assert short.batchtransform(texts).shape == (12, 5)
    own = Embeddings(method=METHOD, path=embedder, instructions={"query": "the "})
    prompted = Embeddings(method=METHOD, path=embedder)
    np.testing.assert_allclose(own.batchtransform(texts, "query"), prompted.batchtransform(texts, "data"), atol=1e-6)
