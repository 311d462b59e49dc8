"""LangChain: embeddings and a reranker."""

import asyncio
import pickle

import numpy as np
import pytest
from packages import needed

needed("langchain_core")

from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore

import fastinfer
from fastinfer.integrations.langchain import FastinferEmbeddings, FastinferReranker

pytestmark = pytest.mark.filterwarnings("ignore")


def test_vectors_have_the_prompt_of_their_kind(embedder, texts, queries, documents):
    made = FastinferEmbeddings(embedder)
    np.testing.assert_array_equal(np.float32(made.embed_documents(texts)), documents)
    np.testing.assert_array_equal(np.float32([made.embed_query(text) for text in texts]), queries)
    np.testing.assert_array_equal(np.float32(asyncio.run(made.aembed_documents(texts))), documents)
    assert np.shape(FastinferEmbeddings(embedder, dim=4).embed_documents(texts)) == (12, 4)
    assert made.embed_documents([]) == []
    assert all(type(number) is float for number in made.embed_query("ada"))


def test_a_store_finds_what_the_vectors_say(embedder, texts, queries, documents):
    store = InMemoryVectorStore(FastinferEmbeddings(embedder))
    store.add_texts(texts)
    best = [found.page_content for found in store.similarity_search(texts[0], k=3)]
    assert best == [texts[i] for i in np.argsort(-(documents @ queries[0]))[:3]]


@pytest.mark.parametrize("name", ["embedder", "cross_encoder"])
def test_documents_are_put_in_the_order_of_rank(request, texts, name):
    folder = request.getfixturevalue(name)
    given = [Document(text, metadata={"number": i}) for i, text in enumerate(texts)]
    made = FastinferReranker(model=folder, top_n=4)
    want = fastinfer.load(folder).rank("ada lovelace", texts, top_k=4)
    for reranker in (made, pickle.loads(pickle.dumps(made)), FastinferReranker(**made.model_dump())):
        found = reranker.compress_documents(given, "ada lovelace")
        assert [(document.metadata["number"], document.metadata["relevance_score"]) for document in found] == want
    assert "relevance_score" not in given[0].metadata
    assert len(FastinferReranker(model=folder, top_n=None).compress_documents(given, "ada")) == 12
    with pytest.raises(ValueError, match="top_m"):
        FastinferReranker(model=folder, top_m=4)
