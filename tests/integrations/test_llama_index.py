"""LlamaIndex: an embedding model and a reranker."""

import asyncio
import pickle

import numpy as np
import pytest
from packages import needed

needed("llama_index.core")

from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode

import fastinfer
from fastinfer.integrations.llama_index import FastinferEmbedding, FastinferRerank

pytestmark = pytest.mark.filterwarnings("ignore")


def test_vectors_have_the_prompt_of_their_kind(embedder, texts, queries, documents):
    made = FastinferEmbedding(model_name=embedder)
    for other in (made, pickle.loads(pickle.dumps(made)), FastinferEmbedding.from_dict(made.to_dict())):
        np.testing.assert_array_equal(np.float32(other.get_text_embedding_batch(texts)), documents)
        np.testing.assert_array_equal(np.float32([other.get_query_embedding(text) for text in texts]), queries)
    np.testing.assert_array_equal(np.float32(made.get_text_embedding(texts[3])), documents[3])
    np.testing.assert_array_equal(np.float32(asyncio.run(made.aget_text_embedding_batch(texts))), documents)
    np.testing.assert_array_equal(np.float32(asyncio.run(made.aget_query_embedding(texts[2]))), queries[2])
    assert len(FastinferEmbedding(model_name=embedder, dim=4).get_query_embedding("ada")) == 4


@pytest.mark.parametrize("name", ["embedder", "cross_encoder"])
def test_an_index_and_a_reranker(request, embedder, texts, queries, documents, name):
    nodes = [TextNode(text=text, id_=str(i)) for i, text in enumerate(texts)]
    index = VectorStoreIndex(nodes, embed_model=FastinferEmbedding(model_name=embedder))
    found = index.as_retriever(similarity_top_k=5).retrieve(texts[0])
    assert [int(node.node_id) for node in found] == np.argsort(-(documents @ queries[0]))[:5].tolist()
    folder = request.getfixturevalue(name)
    made = FastinferRerank(model=folder, top_n=2)
    ranked = made.postprocess_nodes(found, query_str="ada lovelace")
    want = fastinfer.load(folder).rank("ada lovelace", [node.text for node in found], top_k=2)
    assert [(node.node_id, node.score) for node in ranked] == [(found[i].node_id, score) for i, score in want]
    with pytest.raises(fastinfer.InputError, match="got no query"):
        made.postprocess_nodes(found)
