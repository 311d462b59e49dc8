"""Haystack: components that embed and rank, in pipelines that are saved."""

import numpy as np
import pytest
from packages import needed

needed("haystack")

from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.document_stores.in_memory import InMemoryDocumentStore

import fastinfer
from fastinfer.integrations.haystack import FastinferDocumentEmbedder, FastinferRanker, FastinferTextEmbedder

pytestmark = pytest.mark.filterwarnings("ignore")


def test_vectors_have_the_prompt_of_their_kind(embedder, texts, queries, documents):
    given = [Document(content=text) for text in texts]
    found = FastinferDocumentEmbedder(embedder).run(given)["documents"]
    np.testing.assert_array_equal(np.float32([document.embedding for document in found]), documents)
    assert [document.id for document in found] == [document.id for document in given]
    assert given[0].embedding is None
    vector = FastinferTextEmbedder(embedder).run(texts[1])["embedding"]
    np.testing.assert_array_equal(np.float32(vector), queries[1])


def test_fields_of_meta_are_embedded_before_the_content(embedder):
    made = FastinferDocumentEmbedder(embedder, meta_fields_to_embed=["who", "where", "none"], separator=" in ")
    [found] = made.run([Document(content="france", meta={"where": "paris", "who": "ada", "none": None, "more": "?"})])["documents"]
    np.testing.assert_array_equal(np.float32(found.embedding), fastinfer.load(embedder).embed("the ada in paris in france", prompt="")[0])
    assert made.run([Document(content=None)])["documents"][0].embedding is not None


def test_a_pipeline_and_the_one_that_is_read_from_what_it_writes(embedder, cross_encoder, texts, queries, documents):
    store = InMemoryDocumentStore(embedding_similarity_function="dot_product")
    store.write_documents(FastinferDocumentEmbedder(embedder).run([Document(content=text) for text in texts])["documents"])
    pipeline = Pipeline()
    pipeline.add_component("embed", FastinferTextEmbedder(embedder, threads=1))
    pipeline.add_component("find", InMemoryEmbeddingRetriever(store, top_k=6))
    pipeline.add_component("rank", FastinferRanker(cross_encoder, top_k=3))
    pipeline.connect("embed.embedding", "find.query_embedding")
    pipeline.connect("find.documents", "rank.documents")
    best = [texts[i] for i in np.argsort(-(documents @ queries[0]))[:6]]
    want = [(best[i], score) for i, score in fastinfer.load(cross_encoder).rank("ada", best, top_k=3)]
    again = Pipeline.loads(pipeline.dumps(), **trusted())
    for made in (pipeline, again):
        found = made.run({"embed": {"text": texts[0]}, "rank": {"query": "ada"}})["rank"]["documents"]
        assert [(document.content, document.score) for document in found] == want
    assert again.get_component("embed").to_dict() == pipeline.get_component("embed").to_dict()


def trusted():
    """The option of newer versions, which open only what they are told to trust."""
    import inspect

    known = "allowed_modules" in inspect.signature(Pipeline.loads).parameters
    return {"allowed_modules": ["fastinfer.integrations.haystack"]} if known else {}


def test_a_component_that_got_a_model_cannot_be_saved(embedder):
    made = FastinferTextEmbedder(fastinfer.load(embedder))
    made.warm_up()
    assert len(made.run("ada")["embedding"]) == 32
    with pytest.raises(fastinfer.InputError, match="pass the name or the folder"):
        made.to_dict()
