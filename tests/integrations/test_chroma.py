"""Chroma: a collection that is reopened with its model."""

import subprocess
import sys

import numpy as np
import pytest
from packages import needed

chromadb = needed("chromadb")

import fastinfer
from fastinfer.integrations.chroma import FastinferEmbeddingFunction

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_collection_is_reopened_by_another_process(embedder, texts, queries, documents, tmp_path):
    client = chromadb.PersistentClient(str(tmp_path))
    collection = client.create_collection("texts", embedding_function=FastinferEmbeddingFunction(embedder, threads=1))
    collection.add(ids=list(map(str, range(len(texts)))), documents=texts)
    assert collection.configuration_json["hnsw"]["space"] == "cosine"
    found = collection.get(include=["embeddings"])
    order = np.argsort(list(map(int, found["ids"])))
    np.testing.assert_allclose(found["embeddings"][order], documents, atol=1e-7)
    want = [str(i) for i in np.argsort(-(documents @ queries[0]))[:3]]
    assert collection.query(query_texts=[texts[0]], n_results=3)["ids"] == [want]
    code = f"""
import chromadb, fastinfer.integrations.chroma
collection = chromadb.PersistentClient({str(tmp_path)!r}).get_collection("texts")
print(collection.query(query_texts=[{texts[0]!r}], n_results=3)["ids"])
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == repr([want])


def test_settings_make_the_same_function(embedder, texts):
    made = FastinferEmbeddingFunction(embedder, dim=6, threads=1)
    again = FastinferEmbeddingFunction.build_from_config(made.get_config())
    assert again.get_config() == made.get_config()
    np.testing.assert_array_equal(again(texts), made(texts))
    assert np.shape(again.embed_query(texts)) == (12, 6)


def test_settings_that_do_not_fit_are_refused(embedder):
    with pytest.raises(fastinfer.InputError, match="expected device, dim, dtype, model, threads alone"):
        FastinferEmbeddingFunction.build_from_config({"model": embedder, "code": "import os"})
    made = FastinferEmbeddingFunction(embedder)
    for change in ({"model": "another"}, {"dim": 3}):
        with pytest.raises(fastinfer.InputError, match="with which the vectors of the collection were made"):
            made.validate_config_update(made.get_config(), {**made.get_config(), **change})
    made.validate_config_update(made.get_config(), {**made.get_config(), "threads": 2})
