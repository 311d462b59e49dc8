"""fastinfer serve: every answer is that of the model's own method, every limit names itself, and nothing makes the server fail."""

import asyncio
import base64
import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import WORDS
from packages import needed

for name in ("httptools", "msgspec", "orjson", "prometheus_client", "starlette", "uvicorn"):
    needed(name)

import msgspec
from serving import running

import fastinfer
from fastinfer.serve import command
from fastinfer.serve.app import ENDPOINTS
from fastinfer.serve.reading import Reader
from fastinfer.serve.settings import Limits

ORDINARY = WORDS[5:]
TYPES = {path: endpoint.answered for endpoint in ENDPOINTS for path in endpoint.paths}

pytestmark = [pytest.mark.filterwarnings("ignore::fastinfer.tokenizer.TruncationWarning")]


@pytest.fixture(scope="module")
def server(random_model, embedder, cross_encoder):
    """A server of a model with all heads, an embedder with prompts and a cross-encoder."""
    with running({"all": random_model, "embedder": embedder, "cross": cross_encoder}) as server:
        yield server


@pytest.fixture(scope="module")
def model(random_model):
    return fastinfer.load(random_model, device="cpu")


@pytest.fixture(scope="module")
def rng():
    return random.Random()


def some_texts(rng, count, most=12):
    return [" ".join(rng.choices(ORDINARY, k=rng.randint(1, most))) for _ in range(count)]


def answer(server, path, asked):
    """The answer of a path, which must have the type that the OpenAPI page says."""
    got = server.post(path, asked)
    assert got.status == 200, got.body
    msgspec.json.decode(got.body, type=TYPES[path])
    return got.json


def refused(server, path, asked, status):
    """The message of an error, in the form of the protocol of its path."""
    got = server.post(path, asked)
    assert got.status == status, got.body
    if path.startswith("/v1/"):
        assert set(got.json["error"]) == {"message", "type", "param", "code"}
        return got.json["error"]["message"]
    assert set(got.json) == {"error", "error_type"}
    return got.json["error"]


def same(got, want):
    """Assert that numbers in JSON are float32 numbers, bit for bit."""
    np.testing.assert_array_equal(np.array(got, np.float32), want)


# --- OpenAI ---


@pytest.mark.parametrize("form", ["float", "base64"])
def test_embeddings_are_those_of_the_model(server, model, rng, form):
    texts = some_texts(rng, 5)
    rows = [encoding.ids for encoding in model.tokenizer.encode(texts)]
    long = ["", "ada ada " * 99]
    for asked, meant in ((texts[0], texts[:1]), (texts, texts), (rows[0], texts[:1]), (rows, texts), (long, long)):
        for dim in (None, 7):
            got = answer(server, "/v1/embeddings", {"input": asked, "encoding_format": form, "dimensions": dim, "user": "me"})
            assert [row["index"] for row in got["data"]] == list(range(len(meant)))
            vectors = [row["embedding"] for row in got["data"]]
            if form == "base64":
                vectors = [struct.unpack(f"<{dim or 32}f", base64.b64decode(vector)) for vector in vectors]
            same(vectors, model.embed(meant, dim=dim))
    assert got["model"] == "all"
    tokens = sum(len(encoding.ids) for encoding in model.tokenizer.encode(long))
    assert got["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


def test_models_are_listed_and_named(server, embedder):
    listed = server.get("/v1/models").json
    assert [one["id"] for one in listed["data"]] == ["all", "embedder", "cross"]
    assert server.get("/v1/models/cross").json == listed["data"][2]
    assert server.get("/v1/models/crass").json["error"]["code"] == "model_not_found"
    got = answer(server, "/v1/embeddings", {"input": "ada", "model": "embedder"})
    same(got["data"][0]["embedding"], fastinfer.load(embedder, device="cpu").embed("ada")[0])
    assert "did you mean cross?" in refused(server, "/v1/embeddings", {"input": "ada", "model": "crass"}, 404)


# --- text-embeddings-inference ---


def test_embed(server, model, rng):
    texts = some_texts(rng, 4)
    for how, want in (
        ({}, model.embed(texts, normalize=True)),
        ({"normalize": False, "dimensions": 5, "truncate": True}, model.embed(texts, normalize=False, dim=5)),
        ({"model": "all", "truncation_direction": "Right"}, model.embed(texts)),
    ):
        same(answer(server, "/embed", {"inputs": texts, **how}), want)
    same(server.post("/", {"inputs": texts}).json, model.embed(texts))
    same(answer(server, "/embed", {"inputs": texts[0]}), model.embed(texts[:1]))


def test_prompts_are_put_before_texts(server, embedder, rng):
    texts = some_texts(rng, 3)
    own = fastinfer.load(embedder, device="cpu")
    for name in ("query", "document"):
        got = answer(server, "/embed", {"inputs": texts, "model": "embedder", "prompt_name": name})
        same(got, own.embed(texts, prompt_name=name))
    assert "expected the name of a prompt" in refused(server, "/embed", {"inputs": "ada", "prompt_name": "qeury"}, 422)


def test_long_texts_are_cut_on_the_side_that_is_asked_for(server, model):
    text = "ada " * 40 + "london " * 40
    whole = model.tokenizer.raw.encode(text).ids
    left, right = [whole[0], *whole[-31:]], [*whole[:31], whole[-1]]
    for side, ids in (("Left", left), ("right", right)):
        want = model.embed(fastinfer.PackedBatch.from_ids([ids], [[0] * 32]))
        got = server.post("/embed", {"inputs": text, "truncation_direction": side})
        same(got.json, want)
        assert (got.headers["x-truncated-texts"], got.headers["x-compute-tokens"]) == ("1", "32")
    said = refused(server, "/embed", {"inputs": ["ada", text], "truncate": False}, 422)
    assert "1 of inputs have more than 32 tokens" in said
    assert "inputs[1]" in said


def test_vectors_of_tokens(server, model, rng):
    texts = some_texts(rng, 3)
    for got, want in zip(answer(server, "/embed_all", {"inputs": texts}), model.hidden_states(texts), strict=True):
        same(got, want)


def test_sparse_vectors(server, model, rng):
    pytest.importorskip("scipy")
    texts = some_texts(rng, 3)
    got = answer(server, "/embed_sparse", {"inputs": texts})
    dense = np.zeros((3, len(WORDS)), np.float32)
    for row, weights in enumerate(got):
        for weight in weights:
            dense[row, weight["index"]] = weight["value"]
    np.testing.assert_array_equal(dense, model.embed_sparse(texts).toarray())
    assert "has no fill_mask head" in refused(server, "/embed_sparse", {"inputs": "ada", "model": "embedder"}, 424)


def test_predictions(server, model, rng):
    single, pair = "ada", ("ada", "in london")
    for asked, texts in ((single, [single]), (pair, [pair]), ([["ada"], ["ada", "in london"]], [single, pair])):
        got = answer(server, "/predict", {"inputs": asked})
        got = got if isinstance(asked, list) else [got]
        for row, want in zip(got, model.classify(texts), strict=True):
            assert [one["label"] for one in row] == [label for label, _ in want]
            same([one["score"] for one in row], np.float32([score for _, score in want]))
        raw = answer(server, "/predict", {"inputs": asked, "raw_scores": True})
        raw = raw if isinstance(asked, list) else [raw]
        same([[one["score"] for one in row] for row in raw], -np.sort(-model.logits(texts, task="classify"), axis=1))
    for bad in ([], [[]], [["a", "b", "c"]], ["a", "b", "c"], [["a"], "b"]):
        assert server.post("/predict", {"inputs": bad}).status in (400, 422)


def test_ranks(server, embedder, cross_encoder, rng):
    query, texts = "who is ada", some_texts(rng, 6)
    own = fastinfer.load(embedder, device="cpu")
    got = answer(server, "/rerank", {"query": query, "texts": texts, "return_text": True, "model": "embedder"})
    assert [(one["index"], np.float32(one["score"])) for one in got] == own.rank(query, texts)
    assert [one["text"] for one in got] == [texts[one["index"]] for one in got]
    scorer = fastinfer.load(cross_encoder, device="cpu")
    logits = scorer.logits([(query, text) for text in texts], task="classify")[:, 0]
    raw = answer(server, "/rerank", {"query": query, "texts": texts, "raw_scores": True, "model": "cross"})
    assert {one["index"]: np.float32(one["score"]) for one in raw} == dict(enumerate(logits))
    got = answer(server, "/rerank", {"query": query, "texts": texts, "model": "cross"})
    np.testing.assert_allclose([one["score"] for one in got], np.sort(1 / (1 + np.exp(-np.float64(logits))))[::-1], rtol=1e-5)
    assert all("text" not in one for one in got)


def test_similarities(server, model, rng):
    one, *others = some_texts(rng, 5)
    got = answer(server, "/similarity", {"inputs": {"source_sentence": one, "sentences": others}, "parameters": {"truncate": True}})
    vectors = np.float64(model.embed([one, *others], normalize=False))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(got, vectors[1:] @ vectors[0], atol=1e-5)
    assert "is empty" in refused(server, "/similarity", {"inputs": {"source_sentence": one, "sentences": []}}, 400)


def test_tokens_and_back(server, model):
    text = "Ada lived, in LONDON " * 20
    [tokens] = answer(server, "/tokenize", {"inputs": text})
    encoding = model.tokenizer.raw.encode(text)
    assert [token["id"] for token in tokens] == encoding.ids
    assert (tokens[0]["text"], tokens[0]["special"], tokens[0]["start"]) == ("[CLS]", True, None)
    assert all(text[token["start"] : token["stop"]] == token["text"] for token in tokens[1:-1])
    [bare] = answer(server, "/tokenize", {"inputs": [text], "add_special_tokens": False})
    assert bare == tokens[1:-1]
    for ids in (encoding.ids, [encoding.ids]):
        assert answer(server, "/decode", {"ids": ids}) == [model.tokenizer.raw.decode(encoding.ids)]
    assert "expected 0 to" in refused(server, "/decode", {"ids": [[len(WORDS)]]}, 422)
    assert server.post("/decode", {"ids": [1, [1]]}).status == 422


def test_headers_have_the_times(server):
    headers = server.post("/embed", {"inputs": ["ada", "in london"]}).headers
    assert headers["x-compute-characters"] == "12"
    for name in ("x-compute-time", "x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time"):
        assert int(headers[name]) >= 0


def test_info_and_health(server, model):
    info = server.get("/info").json
    assert info["model_id"] == "all"
    assert info["models"]["cross"]["model_type"] == {"reranker": {"id2label": {"0": "score"}, "label2id": {"score": 0}}}
    assert (info["max_input_length"], info["tasks"]) == (32, list(model.tasks))
    assert info["trees"] == any(ffn.kind == "fff" for ffn in model.config.ffn)
    for path in ("/health", "/ping"):
        assert server.get(path)[::2] == (200, b"")


def test_metrics_have_the_names_of_their_dashboards(server):
    server.post("/embed", {"inputs": ["ada", "is in london"]})
    said = server.get("/metrics").body.decode()
    found = {line.split()[0]: float(line.split()[1]) for line in said.splitlines() if not line.startswith("#")}
    for name in ("te_request_count", "te_request_success"):
        assert found[name + '{method="batch"}'] >= 1
    for name in ("request_duration", "request_tokenization_duration", "request_queue_duration", "request_inference_duration"):
        assert found[f"te_{name}_count"] >= 1
    for name in ("te_request_input_length", "te_batch_next_size", "te_batch_next_tokens"):
        assert found[name + "_sum"] >= found[name + "_count"] >= 1
    assert found["te_queue_size"] == 0
    server.post("/predict", {"inputs": "ada", "model": "embedder"})
    assert 'te_request_failure{err="backend"}' in server.get("/metrics").body.decode()


# --- further tasks ---


def test_masks_tags_and_answers(server, model):
    texts = ["ada lived in [MASK]", "[MASK] is in [MASK] ."]
    for got, want in zip(answer(server, "/fill_mask", {"inputs": texts, "top_k": 2}), model.fill_mask(texts, top_k=2), strict=True):
        assert [[(g["token"], g["score"], g["sequence"]) for g in mask] for mask in got] == want
    assert "texts[0] has no [MASK]" in refused(server, "/fill_mask", {"inputs": "ada"}, 422)
    texts = ["ada lived in london " * 30, "paris"]
    got = answer(server, "/tag", {"inputs": texts, "strategy": "max"})
    assert [[tuple(span.values()) for span in spans] for spans in got] == model.tag(texts, strategy="max")
    asked = {"question": "who lived in london ?", "context": "ada lived in london ." * 20}
    want = model.answer(asked["question"], asked["context"], top_k=3)
    for inputs in (asked, [asked]):
        got = answer(server, "/answer", {"inputs": inputs, "top_k": 3})
        assert [[tuple(found.values()) for found in one] for one in got] == want


# --- what is refused ---


@pytest.mark.parametrize(
    ("path", "asked", "status", "said"),
    [
        ("/v1/embeddings", {}, 422, "missing required field `input`"),
        ("/v1/embeddings", {"input": 3}, 422, "$.input"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, 422, "encoding_format"),
        ("/v1/embeddings", {"input": "a", "dimensions": 0}, 422, "dimensions"),
        ("/v1/embeddings", {"input": "a", "dimensions": 10**30}, 422, "dimensions"),
        ("/v1/embeddings", {"input": "a", "dimensions": 33}, 422, "dimensions is 33"),
        ("/v1/embeddings", {"input": []}, 400, "input is empty"),
        ("/v1/embeddings", {"input": [[]]}, 422, "input[0] is []"),
        ("/v1/embeddings", {"input": ["a", [2, 3]]}, 422, "mixes texts and ids"),
        ("/v1/embeddings", {"input": [2, "a"]}, 422, "mixes texts and ids"),
        ("/v1/embeddings", {"input": [2, 999, 3]}, 422, "is 999, expected 0 to"),
        ("/v1/embeddings", {"input": [2, -1, 3]}, 422, "is -1, expected 0 to"),
        ("/v1/embeddings", {"input": [[2, 2**70, 3]]}, 422, "ids[0]"),
        ("/v1/embeddings", {"input": [[2, *[5] * 40, 3]]}, 422, "has 42 tokens, expected at most 32"),
        ("/v1/embeddings", {"input": [5, 6, 7]}, 422, "begin with 2 and end with 3"),
        ("/v1/embeddings", {"input": "a", "inputs": "b"}, 422, "unknown field `inputs`"),
        ("/v1/embeddings", b"{", 400, "no JSON"),
        ("/v1/embeddings", b"", 400, "no JSON"),
        ("/v1/embeddings", b'{"input": "\xff"}', 400, "no JSON"),
        ("/v1/embeddings", b'{"input": ' + b"[" * 100000, 422, "got `array`"),
        ("/embed", {"inputs": "a", "normalise": False}, 422, "unknown field `normalise`"),
        ("/embed", {"inputs": [], "normalize": True}, 400, "inputs is empty"),
        ("/embed", b'{"inputs": "\\ud800"}', 400, "no JSON"),
        ("/embed", {"inputs": ["a"], "model": "cross"}, 424, "cross has no embed head"),
        ("/rerank", {"query": "a", "texts": []}, 400, "texts is empty"),
        ("/answer", {"inputs": {"question": "", "context": "ada"}}, 422, "expected a question"),
        ("/tag", {"inputs": "a", "model": "cross"}, 424, "no tag head"),
        ("/path", {"text": "ada", "layer": 9}, 422, "layer is 9"),
        ("/path", {"text": "ada", "token": 9}, 422, "token is 9"),
    ],
)
def test_a_request_that_cannot_be_answered_says_why(server, path, asked, status, said):
    got = server.post(path, asked)
    assert got.status == status
    assert said in got.body.decode()
    assert "Traceback" not in got.body.decode()


def test_an_error_names_no_folder_of_the_server(server, random_model):
    for path in ("/tag", "/predict"):
        assert random_model not in server.post(path, {"inputs": "a", "model": "embedder"}).body.decode()


@pytest.mark.parametrize(
    ("limits", "asked", "status"),
    [
        ({"max_body": 100}, {"input": "a" * 100}, 413),
        ({"max_texts": 2}, {"input": ["a"] * 3}, 422),
        ({"max_tokens": 9}, {"input": ["ada ada", "ada ada ada ada"]}, 422),
        ({"max_tokens": 9}, {"input": [[2, 5, 3]] * 4}, 422),
        ({"max_waiting": 2}, {"input": ["a"] * 3}, 429),
    ],
)
def test_a_limit_names_itself(random_model, limits, asked, status):
    ((name, most),) = limits.items()
    with running({"all": random_model}, **limits) as server:
        said = refused(server, "/v1/embeddings", asked, status)
        assert str(most) in said
        assert name if name == "max_waiting" else f"--{name.replace('_', '-')}" in said
        assert server.post("/v1/embeddings", {"input": "ada"}).status == 200


def exchanged(port, *parts, pause=0.0):
    """All that a server sends for parts of a request that come with pauses."""
    with socket.create_connection(("127.0.0.1", port), 30) as client:
        for part in parts:
            client.sendall(part)
            time.sleep(pause)
        found = b""
        while part := client.recv(65536):
            found += part
        return found


def test_answers_are_sent_at_once():
    """Nagle's algorithm would hold the body of an answer until the client confirms the head: 40 ms."""
    with command.listening("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_slow_body_and_a_slow_answer_end_in_time(random_model, monkeypatch):
    with running({"all": random_model}, max_seconds=1) as server:
        got = exchanged(server.port, b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{", pause=0.01)
        assert got.startswith(b"HTTP/1.1 408")
        assert b"--max-seconds" in got
        model = server.models["all"].model
        embed, go = model.embed, threading.Event()

        def held(texts, **options):
            assert not len(texts) or go.wait(30)
            return embed(texts, **options)

        monkeypatch.setattr(model, "embed", held, raising=False)
        try:
            assert "1 seconds (--max-seconds" in refused(server, "/embed", {"inputs": "ada"}, 429)
        finally:
            go.set()
        end = time.monotonic() + 30
        while server.post("/embed", {"inputs": "ada"}).status != 200:
            assert time.monotonic() < end, "the server did not go on"


def test_a_body_without_its_length_is_limited_too(random_model):
    with running({"all": random_model}, max_body=1000) as server:
        head = b"POST /embed HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        assert exchanged(server.port, head, b"400\r\n" + b"x" * 1024 + b"\r\n").startswith(b"HTTP/1.1 413")


def test_a_key_is_needed_where_one_is_set(random_model):
    with running({"all": random_model}, key="secret") as server:
        for headers in ({}, {"authorization": "Bearer secre"}, {"authorization": "secret"}, {"authorization": "Bearer \xe9"}):
            for path in ("/embed", "/v1/embeddings", "/tokenize", "/path"):
                got = server.post(path, {"inputs": "ada"}, **headers)
                assert (got.status, got.headers["www-authenticate"]) == (401, "Bearer")
            assert server.get("/v1/models", **headers).status == 401
        assert server.post("/embed", {"inputs": "ada"}, authorization="Bearer secret").status == 200
        assert server.get("/info", authorization="Bearer secret").status == 200
        assert [server.get(path).status for path in ("/", "/docs", "/openapi.json", "/health", "/metrics")] == [200] * 5


# --- many at once ---


def test_requests_are_tokenised_together_and_get_their_own(model, rng, monkeypatch):
    """Short requests share a call. A text that is cut, or that cannot be used, concerns its own request alone."""
    calls, packed = [], model.tokenizer.packed

    def counted(texts, cuts):
        calls.append(len(texts))
        if "broken" in texts:
            raise fastinfer.InputError("broken")
        return packed(texts, cuts)

    async def ask(asked):
        with ThreadPoolExecutor(1) as pool:
            reader = Reader(pool)
            return await asyncio.gather(*(reader.read(model.tokenizer, texts) for texts in asked), return_exceptions=True)

    monkeypatch.setattr(model.tokenizer, "packed", counted)
    asked = [some_texts(rng, rng.randint(1, 4)) for _ in range(9)] + [[("ada", "in london")], ["ada " * 600]]
    for more, together in (([], [sum(map(len, asked)) - 1, 1]), ([["ada " * 99]], None), ([["broken"]], None)):
        calls.clear()
        found = asyncio.run(ask([*asked, *more]))
        assert together is None or sorted(calls) == sorted(together)
        for texts, got in zip([*asked, *more], found, strict=True):
            if texts == ["broken"]:
                assert isinstance(got, fastinfer.InputError)
                continue
            [want] = packed(texts, [])
            for name in ("ids", "cu_seqlens", "token_types"):
                np.testing.assert_array_equal(getattr(got[0], name), getattr(want, name))
            assert (got[1] is not None) == any(len(text) > 300 for text in texts)


class Client:
    """A connection whose requests are counted as bytes, so that it can leave in the middle of any."""

    def __init__(self, port):
        self.port = port

    async def ask(self, path, asked, leave=None):
        """(status, JSON) of an answer; None if the client leaves after so many seconds."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        try:
            body = json.dumps(asked).encode()
            writer.write(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
            if leave is not None:
                await asyncio.sleep(leave)
                return None
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(re.search(rb"content-length: (\d+)", head)[1])
            return int(head[9:12]), json.loads(await reader.readexactly(length))
        finally:
            writer.close()


def test_no_answer_is_lost_or_swapped(random_model, model, rng):
    """Many clients of several kinds, of which some leave; a small batch makes requests of parts."""
    texts = list(dict.fromkeys(some_texts(rng, 300)))
    alone = {text: model.embed(text)[0] for text in texts}
    labels = {text: model.classify(text)[0] for text in texts}

    async def client(server, left):
        client, count = Client(server.port), 0
        for _ in range(12):
            some = rng.sample(texts, rng.choice([1, 1, 2, 9]))
            kind = rng.choice(["/embed", "/v1/embeddings", "/predict"])
            asked = {"/embed": {"inputs": some}, "/v1/embeddings": {"input": some}, "/predict": {"inputs": [[text] for text in some]}}[kind]
            got = await client.ask(kind, asked, rng.random() * 0.01 if rng.random() < left else None)
            if got is None:
                continue
            assert got[0] == 200
            count += 1
            if kind == "/predict":
                assert [[(one["label"], np.float32(one["score"])) for one in row] for row in got[1]] == [
                    [(label, np.float32(score)) for label, score in labels[text]] for text in some
                ]
            else:
                vectors = got[1] if kind == "/embed" else [row["embedding"] for row in got[1]["data"]]
                same(vectors, np.array([alone[text] for text in some]))
        return count

    async def all_clients(server, left):
        return sum(await asyncio.gather(*(client(server, left) for _ in range(24))))

    with running({"all": random_model}, batch_tokens=60) as server:
        assert asyncio.run(all_clients(server, 0)) == 24 * 12
        assert asyncio.run(all_clients(server, 0.4)) > 24
        end = time.monotonic() + 20
        while server.models["all"].batcher.waiting:
            assert time.monotonic() < end, "a request of a client that left is still there"
            time.sleep(0.01)


def test_a_client_that_goes_away_frees_its_place(random_model, monkeypatch):
    with running({"all": random_model}, threads=1) as server:  # one batch at a time
        served = server.models["all"]
        embed, began, go, computed = served.model.embed, threading.Event(), threading.Event(), []

        def held(texts, **options):
            if len(texts):
                computed.append(len(texts))
                began.set()
                assert go.wait(30)
            return embed(texts, **options)

        monkeypatch.setattr(served.model, "embed", held, raising=False)

        async def ask():
            client = Client(server.port)
            first = asyncio.create_task(client.ask("/embed", {"inputs": "ada"}))
            await asyncio.to_thread(began.wait, 30)
            await client.ask("/embed", {"inputs": ["ada"] * 50}, leave=0.2)
            end = time.monotonic() + 20
            while served.batcher.waiting != 1:
                assert time.monotonic() < end
                await asyncio.sleep(0.01)
            go.set()
            return await first

        try:
            assert asyncio.run(ask())[0] == 200
        finally:
            go.set()
        assert computed == [1]


def test_a_burst_gets_answers_or_429(random_model, model, rng):
    texts = some_texts(rng, 20)
    want = {text: model.embed(text)[0] for text in texts}

    async def ask(server, text):
        status, got = await Client(server.port).ask("/embed", {"inputs": text})
        if status == 200:
            same(got[0], want[text])
        return status

    async def burst(server):
        return await asyncio.gather(*(ask(server, rng.choice(texts)) for _ in range(160)))

    with running({"all": random_model}, max_waiting=8) as server:
        for _ in range(3):
            assert set(asyncio.run(burst(server))) <= {200, 429}
        got = server.post("/embed", {"inputs": ["ada"] * 9})
        assert (got.status, got.headers["retry-after"], got.json["error_type"]) == (429, "1", "Overloaded")
        assert server.post("/embed", {"inputs": "ada"}).status == 200


# --- strange requests ---

ODD = [
    None,
    True,
    0,
    -1,
    1.5,
    1e400,
    10**40,
    "",
    "ada",
    "\x00",
    "\ud800",
    [],
    {},
    [[]],
    [None],
    [""] * 5000,
    ["ada", 3],
    [[2, 3], "x"],
    {"a": {}},
]


def strange(rng, endpoint):
    """A request of an endpoint with values of any kind, as bytes that may be damaged."""
    fields = endpoint.asked.__struct_fields__
    good = {"input": "ada", "inputs": "ada", "query": "ada", "texts": ["ada"], "ids": [[2, 3]], "text": "ada"}
    asked = {name: good[name] for name in fields if name in good}
    for name in rng.sample(list(fields), rng.randint(0, 2)):
        asked[name] = rng.choice(ODD)
    if rng.random() < 0.1:
        asked["more"] = 1
    body = json.dumps(asked).encode("utf-8", "surrogatepass")
    if rng.random() < 0.3:
        at = rng.randrange(len(body))
        body = body[:at] + rng.choice([b"", bytes([rng.randrange(256)]), b"\xff\xfe"]) + body[at + rng.randint(0, 2) :]
    return body


def test_strange_requests_get_no_server_error(server, rng):
    for endpoint in ENDPOINTS:
        for _ in range(40):
            body = strange(rng, endpoint)
            got = server.post(endpoint.paths[0], body)
            assert 200 <= got.status < 500, (endpoint.paths, body, got)
            assert got.json is not None
    for line in (b"GET / HTTP/9.9\r\n\r\n", b"\x00\xff\r\n\r\n", b"POST /embed HTTP/1.1\r\ncontent-length: x\r\n\r\n"):
        assert not exchanged(server.port, line + b"\r\n").startswith(b"HTTP/1.1 5")
    assert server.get("/nothing").status == 404
    assert server.get("/embed").status == 405
    assert server.post("/embed", {"inputs": "ada"}).status == 200


def test_requests_of_schemathesis_get_no_server_error(server, tmp_path):
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--checks", "not_a_server_error"]
    done = subprocess.run([*command, "--max-examples", "15", "--phases", "examples,coverage,fuzzing"], capture_output=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout.decode()[-3000:]


def test_the_openapi_page_has_every_endpoint(server):
    api = server.get("/openapi.json").json
    assert set(api["paths"]) >= {path for endpoint in ENDPOINTS for path in endpoint.paths}
    for endpoint in ENDPOINTS:
        posted = api["paths"][endpoint.paths[0]]["post"]
        name = posted["requestBody"]["content"]["application/json"]["schema"]["$ref"].split("/")[-1]
        assert set(api["components"]["schemas"][name]["properties"]) == set(endpoint.asked.__struct_fields__)
        assert posted["description"]
    assert api == server.get("/api-doc/openapi.json").json


# --- the page ---


def test_a_path_down_the_trees(server, model):
    server.post("/path", {"text": "paris is in france"})
    text = "ada is in london"
    got = answer(server, "/path", {"text": text, "token": 2})
    layers = {number: route for number, route in enumerate(model.routes(text)[0], 1) if route is not None}
    nodes, z = layers[got["layer"]]
    assert [step["node"] for step in got["steps"]] == nodes[2, 0].tolist()
    same([step["margin"] for step in got["steps"]], z[2, 0])
    assert got["tokens"] == ["[CLS]", *text.split(), "[SEP]"]
    others = model.routes("paris is in france")[0][got["layer"] - 1][0][:, 0, -1].tolist()
    words = ["[CLS]", "paris", "is", "in", "france", "[SEP]"]
    sharing = [word for word, leaf in zip(words, others, strict=True) if leaf == nodes[2, 0, -1]]
    found = [one for one in got["shared"] if one["text"] == "paris is in france"]
    assert [one["tokens"] for one in found] == ([sharing] if sharing else [])
    assert f"neuron {nodes[2, 0, 0]}" in got["svg"]


def test_pages_load_nothing_from_elsewhere(server):
    for path in ("/", "/docs"):
        got = server.get(path)
        assert "default-src 'none'" in got.headers["content-security-policy"]
        assert not re.search(r"(?:src|href)=\"?(?:https?:)?//", got.body.decode())


@pytest.mark.parametrize(("path", "shown"), [("/?text=", "<svg"), ("/docs", "POST /v1/embeddings")])
def test_pages_in_a_browser(server, tmp_path, path, shown):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    text = "ada <b>lived</b> in london"
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--virtual-time-budget=20000", "--dump-dom"]
    url = server.url + path + (urllib.parse.quote(text) if "text=" in path else "")
    dom = subprocess.run([browser, *options, url], capture_output=True, timeout=120).stdout.decode()
    assert shown in dom
    if "text=" in path:
        assert re.search(r"embed: \d+ numbers: -?\d\.\d{4} ", dom)
        assert re.search(r"neuron \d+: z = [+-]\d\.\d{3}, (?:left|right)", dom)
        assert "<b>lived</b>" not in dom
        assert '<p id="error" role="alert"></p>' in dom


# --- the command ---


def started(*options, **environment):
    """(process, address) of the command, which listens on a free port."""
    command = [sys.executable, "-m", "fastinfer", "serve", "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, **environment})
    for line in process.stderr:
        if line.startswith(b"{") and json.loads(line)["message"] == "serving":
            return process, json.loads(line)["address"]
    raise AssertionError(process.wait())


def ended(process):
    """(status, log) of the command after SIGTERM."""
    process.send_signal(signal.SIGTERM)
    with process.stderr:
        log = [json.loads(line) for line in process.stderr if line.startswith(b"{")]
    return process.wait(60), log


def wait_for(server, process):
    end = time.monotonic() + 60
    while True:
        try:
            return server.get("/health")
        except OSError:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send")
def test_the_command_answers_logs_and_ends_in_order(random_model, model):
    from serving import Running

    process, address = started("-m", f"small={random_model}", FASTINFER_API_KEY="secret")
    server = Running(address, int(address.rpartition(":")[2]), {})
    wait_for(server, process)
    same(server.post("/embed", {"inputs": "ada in london"}, authorization="Bearer secret").json, model.embed("ada in london"))
    assert server.post("/embed", {"inputs": "ada in london"}).status == 401
    status, log = ended(process)
    assert status == 0
    [first, second] = [line for line in log if line["message"] == "request"]
    assert (first["status"], first["model"], first["texts"], first["tokens"]) == (200, "small", 1, 5)
    assert second["status"] == 401
    assert "london" not in json.dumps(log)
    assert log[-1]["message"] == "ended"


@pytest.mark.skipif(os.name == "nt", reason="uvicorn starts workers by other means on Windows")
def test_workers_answer_and_add_up_their_metrics(random_model, model):
    from serving import Running

    process, address = started("-m", random_model, "--workers", "2", "--threads", "1")
    server = Running(address, int(address.rpartition(":")[2]), {})
    wait_for(server, process)
    for _ in range(20):
        same(server.post("/embed", {"inputs": "ada in london"}).json, model.embed("ada in london"))
    assert 'te_request_success{method="single"} 20.0' in server.get("/metrics").body.decode()
    assert ended(process)[0] == 0


def test_errors_of_the_command(run, random_model, tmp_path):
    for options, said in (
        (["-m", tmp_path / "nothing"], "is no checkpoint folder"),
        (["-m", random_model, "-m", random_model], "two models have the name"),
        (["-m", f"=x{random_model}"], "expected MODEL or NAME=MODEL"),
        (["--host", "nowhere.invalid"], "cannot be listened on"),
        (["--port", "99999"], "expected 0 to 65535"),
    ):
        status, _, errors = run("serve", *options)
        assert (status, said in errors) == (1, True), errors
    (tmp_path / "key").write_text("\n")
    assert "is empty or has other" in run("serve", "--api-key-file", tmp_path / "key")[2]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "cannot be listened on" in run("serve", "--port", taken.getsockname()[1])[2]
    assert "8388608" in str(Limits())
