"""fastinfer serve with clients that others wrote: each gets the numbers of the model's own methods."""

import asyncio
import base64
import gc
import warnings

import numpy as np
import pytest
from packages import needed

for name in ("httptools", "msgspec", "orjson", "prometheus_client", "starlette", "uvicorn"):
    needed(name)

from serving import running

import fastinfer

pytestmark = pytest.mark.filterwarnings("ignore")  # other packages may warn of anything


@pytest.fixture(scope="module")
def server(random_model, cross_encoder):
    with running({"all": random_model, "cross": cross_encoder}, key="secret") as server:
        yield server


@pytest.fixture(scope="module")
def open_server(random_model, cross_encoder):
    """A server without a key, for clients that send none."""
    with running({"cross": cross_encoder, "all": random_model}) as server:
        yield server


@pytest.fixture(scope="module")
def tei(random_model):
    """A server of one embedder, as clients of text-embeddings-inference expect it."""
    with running({"all": random_model}) as server:
        yield server


@pytest.fixture(autouse=True)
def _sockets_of_clients():
    """Some of these clients cannot be closed. What they leave open is collected here, not in the test that runs next."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def vectors(random_model, texts):
    return fastinfer.load(random_model, device="cpu").embed(texts)


def same(got, want):
    np.testing.assert_array_equal(np.array(got, np.float32), want)


def test_openai(server, random_model, texts, vectors):
    openai = needed("openai")
    with openai.OpenAI(base_url=server.url + "/v1", api_key="secret", max_retries=0) as client:
        for form in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):  # without one the client asks for base64
            got = client.embeddings.create(model="all", input=texts, **form)
            rows = [row.embedding for row in got.data]
            if form.get("encoding_format") == "base64":
                rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
            same(rows, vectors)
        model = fastinfer.load(random_model, device="cpu")
        ids = [encoding.ids for encoding in model.tokenizer.encode(texts)]
        same(
            [row.embedding for row in client.embeddings.create(model="all", input=ids, dimensions=5, user="me").data],
            model.embed(texts, dim=5),
        )
        same(client.embeddings.create(model="all", input=texts[0]).data[0].embedding, vectors[0])
        assert [one.id for one in client.models.list()] == ["all", "cross"]
        assert client.models.retrieve("cross").id == "cross"
        for error, asked in (
            (openai.NotFoundError, {"model": "none", "input": "ada"}),
            (openai.UnprocessableEntityError, {"model": "all", "input": [[99999]]}),
            (openai.BadRequestError, {"model": "all", "input": []}),
        ):
            with pytest.raises(error):
                client.embeddings.create(**asked)
    with openai.OpenAI(base_url=server.url + "/v1", api_key="wrong", max_retries=0) as client, pytest.raises(openai.AuthenticationError):
        client.embeddings.create(model="all", input="ada")


def test_openai_with_many_at_once(server, texts, vectors):
    openai = needed("openai")

    async def ask():
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="secret") as client:
            return await asyncio.gather(*(client.embeddings.create(model="all", input=text) for text in texts * 4))

    same([one.data[0].embedding for one in asyncio.run(ask())], np.concatenate([vectors] * 4))


def test_langchain_openai(server, texts, vectors):
    needed("langchain_openai")
    from langchain_openai import OpenAIEmbeddings

    # By default this class sends the ids of OpenAI's tokenizer.
    made = OpenAIEmbeddings(model="all", base_url=server.url + "/v1", api_key="secret", check_embedding_ctx_length=False)
    same(made.embed_documents(texts), vectors)
    same(made.embed_query(texts[2]), vectors[2])


def test_llama_index_openai(server, texts, vectors):
    needed("llama_index.embeddings.openai")
    from llama_index.embeddings.openai import OpenAIEmbedding

    made = OpenAIEmbedding(model_name="all", api_base=server.url + "/v1", api_key="secret")
    same(made.get_text_embedding_batch(texts), vectors)
    same(made.get_query_embedding(texts[3]), vectors[3])


def test_llama_index_tei(tei, texts, vectors):
    needed("llama_index.embeddings.text_embeddings_inference")
    from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

    made = TextEmbeddingsInference(model_name="all", base_url=tei.url)
    query = made._format_query(texts[1]) if hasattr(made, "_format_query") else texts[1]
    assert len(made.get_text_embedding_batch(texts)) == len(texts)
    assert len(made.get_query_embedding(query)) == vectors.shape[1]
    same(made._call_api(texts), vectors)
    same(asyncio.run(made._acall_api(texts)), vectors)


def test_llama_index_tei_rerank(open_server, cross_encoder, texts):
    needed("llama_index.postprocessor.tei_rerank")
    from llama_index.core.schema import NodeWithScore, TextNode
    from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

    nodes = [NodeWithScore(node=TextNode(text=text)) for text in texts]
    found = TextEmbeddingInference(base_url=open_server.url, top_n=4).postprocess_nodes(nodes, query_str="who is ada")
    seen = [node.node.get_content(metadata_mode="embed") for node in nodes]
    want = fastinfer.load(cross_encoder, device="cpu").rank("who is ada", seen, top_k=4)
    assert [one.node.text for one in found] == [texts[index] for index, _ in want]


def test_tei_client(tei, open_server, random_model, cross_encoder, texts, vectors):
    needed("tei_client")
    from tei_client import HttpClient

    client, model = HttpClient(tei.url), fastinfer.load(random_model, device="cpu")
    assert client.health()
    assert client.info().max_input_length == model.config.max_tokens
    same(client.embed(texts), vectors)
    same(asyncio.run(client.async_embed(texts[0])), vectors[:1])
    same(client.embed_all(texts[:1])[0], model.hidden_states(texts[:1])[0])
    ids = [tokens.get_ids() for tokens in client.tokenize(texts)]
    assert ids == [encoding.ids for encoding in model.tokenizer.encode(texts)]
    assert client.decode(ids) == [model.tokenizer.raw.decode(row) for row in ids]
    found = HttpClient(open_server.url).rerank("who is ada", texts).ranks
    assert [rank.index for rank in found] == [index for index, _ in fastinfer.load(cross_encoder, device="cpu").rank("who is ada", texts)]


def test_pytei(tei, texts, vectors):
    pytei = needed("pytei")
    client = pytei.TEIClient(url=tei.url)
    same(client.embed(texts), vectors)
    same(client.embed(texts[5], truncate=True, skip_cache=True), vectors[5])


def test_huggingface_hub(tei, texts, vectors):
    hub = needed("huggingface_hub")
    with hub.InferenceClient(model=tei.url) as client:
        same(client.feature_extraction(texts[4], normalize=True, truncate=True), vectors[4:5])
