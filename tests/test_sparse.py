"""embed_sparse gives what sentence-transformers' SparseEncoder gives, in bounded memory, and rank compares such vectors."""

import dataclasses
import functools
import json
import tracemalloc

import builders
import numpy as np
import pytest
from backends import COMPILED
from conftest import WORDS, make_config, make_tokenizer
from numpy.testing import assert_allclose, assert_array_equal

import fastinfer
from fastinfer import checkpoint
from fastinfer.config import Classify, FillMask, Ids, Tasks
from fastinfer.errors import ConfigError, TaskError
from fastinfer.heads import embed_sparse
from fastinfer.retrieval import EmbedSparse

HEADS = [
    EmbedSparse(),
    EmbedSparse("max", "log1p_relu"),
    EmbedSparse("sum", "relu"),
    EmbedSparse("sum", "log1p_relu", "cosine"),
    EmbedSparse("max", "relu", "euclidean", 40),
    EmbedSparse("max", "relu", "manhattan"),
]


@pytest.fixture(scope="module")
def parity():
    return pytest.importorskip("parity", reason="the oracles need PyTorch and transformers", exc_type=ImportError)


def with_head(folder, head, out):
    """The checkpoint in `folder`, saved in this format with an embed_sparse head."""
    config, stored = checkpoint.load(folder)
    config = dataclasses.replace(config, tasks=dataclasses.replace(config.tasks, embed_sparse=head))
    checkpoint.save(out, config, stored, tokenizer=folder / "tokenizer.json")
    return fastinfer.load(out)


@pytest.mark.parametrize("head", HEADS, ids=str)
@pytest.mark.parametrize("number", [0, 2, 3])
def test_weights_are_those_of_sentence_transformers(parity, tmp_path, head, number):
    package = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.sparse_encoder.modules")
    from sentence_transformers.base.modules import Transformer

    parity.pair(parity.CASES[number], "fill_mask", tmp_path)
    body = Transformer(str(tmp_path), transformer_task="fill-mask")
    pooling = modules.SpladePooling(head.pooling, head.activation)
    theirs = package.SparseEncoder(modules=[body, pooling], device="cpu", similarity_fn_name=head.similarity, max_active_dims=head.most)
    model = with_head(tmp_path, head, tmp_path / "ours")
    assert model.config.tasks.embed_sparse == head
    want = theirs.encode(parity.TEXTS)
    got = model.embed_sparse(parity.TEXTS)
    assert (got.shape, got.dtype, got.format) == (tuple(want.shape), np.float32, "csr")
    assert 0.02 < got.nnz / np.prod(got.shape) < 0.98, "weights that are all there, or none, show little"
    assert_allclose(got.toarray(), want.to_dense().numpy(), rtol=2e-6, atol=2e-5)
    theirs.save_pretrained(str(tmp_path / "saved"))
    saved = fastinfer.load(tmp_path / "saved")
    assert saved.config.tasks == model.config.tasks
    assert_array_equal(saved.embed_sparse(parity.TEXTS[:5]).toarray(), got[:5].toarray())
    query, documents = parity.TEXTS[3], parity.TEXTS[:12]
    scores = theirs.similarity(*(theirs.encode(texts, convert_to_sparse_tensor=False) for texts in ([query], documents)))[0].numpy()
    assert_allclose([score for _, score in sorted(model.rank(query, documents))], scores, rtol=1e-4, atol=1e-4)
    assert [index for index, _ in model.rank(query, documents)] == np.argsort(-scores, kind="stable").tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modules.json": {1: "sentence_transformers.sparse_encoder.models.SparseAutoEncoder"}}, "SparseAutoEncoder' is not supported"),
        ({"modules.json": {0: "sentence_transformers.models.Router"}}, "'Router', 'SpladePooling', expected a Transformer first"),
        (
            {"modules.json": {0: "sentence_transformers.sparse_encoder.models.SparseStaticEmbedding"}},
            "'SparseStaticEmbedding', 'SpladePooling', expected",
        ),
        ({"1_SpladePooling/config.json": {"pooling_strategy": "mean"}}, "pooling_strategy 'mean' is not supported, only max, sum"),
        ({"1_SpladePooling/config.json": {"activation_function": "gelu"}}, "activation_function 'gelu' is not supported"),
        ({"config_sentence_transformers.json": {"prompts": {"query": "Who: "}}}, "prompts .* is not supported, only empty ones"),
        ({"config_sentence_transformers.json": {"max_active_dims": 1.5}}, "max_active_dims is 1.5, expected a value of type int"),
    ],
    ids=str,
)
def test_folders_of_sparse_encoders_that_do_not_fit(parity, tmp_path, changes, message):
    parity.pair(parity.CASES[1], "fill_mask", tmp_path)
    files = {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.sparse_encoder.models.MLMTransformer"},
            {"idx": 1, "name": "1", "path": "1_SpladePooling", "type": "sentence_transformers.sparse_encoder.models.SpladePooling"},
        ],
        "1_SpladePooling/config.json": {"pooling_strategy": "sum", "activation_function": "relu", "word_embedding_dimension": 400},
        "config_sentence_transformers.json": {"model_type": "SparseEncoder", "prompts": {"query": ""}, "similarity_fn_name": None},
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    assert fastinfer.load(tmp_path).config.tasks.embed_sparse == EmbedSparse("sum")
    for name, change in changes.items():
        content = files[name]
        for key, value in change.items():
            if isinstance(key, int):
                content[key]["type"] = value
            else:
                content[key] = value
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        fastinfer.load(tmp_path)


def test_a_plain_masked_language_model_has_weights_but_does_not_rank(parity, tmp_path):
    package = pytest.importorskip("sentence_transformers")
    pair = parity.pair(parity.CASES[1], "fill_mask", tmp_path)
    want = package.SparseEncoder(str(tmp_path), device="cpu").encode(parity.TEXTS).to_dense().numpy()
    assert pair.ours.tasks == ("fill_mask",)
    assert_allclose(pair.ours.embed_sparse(parity.TEXTS).toarray(), want, atol=2e-5)
    with pytest.raises(TaskError, match="cannot rank: it has no embed, embed_tokens or embed_sparse head"):
        pair.ours.rank("a", ["b"])


@pytest.mark.parametrize("device", ["numpy", *COMPILED])
@pytest.mark.parametrize("head", HEADS[:5], ids=str)
def test_weights_do_not_depend_on_batch_threads_or_pieces(device, head, tmp_path, monkeypatch):
    config = builders.tiny(max_tokens=8, tasks=Tasks(fill_mask=FillMask(True, tied=False), embed_sparse=head))
    builders.save(tmp_path, config)
    model = fastinfer.load(tmp_path, device=device)
    batch = fastinfer.PackedBatch.from_ids(builders.rows(config, 3, 40))
    want = model.embed_sparse(batch)
    logits = model.logits(batch, task="fill_mask", positions="all")
    for row, text in zip(want.toarray(), logits, strict=True):
        each = np.log1p(np.maximum(text.astype(np.float64), 0))
        each = np.log1p(each) if head.activation == "log1p_relu" else each
        row_of = each.max(0) if head.pooling == "max" else each.sum(0)
        kept = np.argsort(-row_of)[: head.most]
        assert_allclose(row[kept], row_of[kept], rtol=1e-5, atol=1e-6)
        assert head.most is None or np.count_nonzero(row) <= head.most
    assert (np.diff(want.indptr) > 0).any()
    close = functools.partial(assert_allclose, rtol=1e-4, atol=1e-5)
    equal = close if device == "numpy" else assert_array_equal
    for size in (1, 3, 7):
        monkeypatch.setattr(embed_sparse, "tokens_at_once", lambda *_, size=size: size)
        for options in ({}, {"batch_tokens": 5}, {"threads": 3}):
            again = model.embed_sparse(batch, **options)
            equal(again.toarray(), want.toarray())


def test_memory_is_bounded_by_a_part_of_the_logits(tmp_path):
    config = builders.tiny(
        vocabulary=100_000, positions=builders.Positions("learned", 1000), max_tokens=1000, tasks=Tasks(fill_mask=FillMask(False))
    )
    builders.save(tmp_path, config)
    model = fastinfer.load(tmp_path)
    batch = fastinfer.PackedBatch.from_ids([np.arange(1000).tolist(), np.arange(900).tolist()])
    model.embed_sparse(batch)
    tracemalloc.start()
    model.embed_sparse(batch)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 110 << 20, "all logits would take 725 MB"


def test_nan_stays_in_its_text(tmp_path):
    config = builders.tiny(tasks=Tasks(fill_mask=FillMask(False, tied=False, bias=False)))
    made = builders.weights(config)
    made["embedding.word"].data[5] = np.nan
    checkpoint.save(tmp_path, config, made)
    model = fastinfer.load(tmp_path, validate=False)
    got = model.embed_sparse(fastinfer.PackedBatch.from_ids([[1, 2], [3, 5], [4, 1, 2]])).toarray()
    assert np.isnan(got[1]).all()
    assert np.isfinite(got[[0, 2]]).all()


def test_no_texts_and_texts_without_weights(readable_model):
    model = fastinfer.load(readable_model({"fill_mask": {"ada": [-1.0] * len(WORDS)}}))
    assert model.embed_sparse([]).shape == (0, len(WORDS))
    assert model.embed_sparse("ada").nnz == 0


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (Tasks(embed_sparse=EmbedSparse()), "tasks.embed_sparse is there without tasks.fill_mask"),
        (Tasks(fill_mask=FillMask(False), embed_sparse=EmbedSparse(most=0)), "tasks.embed_sparse.most is 0, expected 1 to"),
        (
            Tasks(fill_mask=FillMask(False), embed_sparse=EmbedSparse("mean")),
            "tasks.embed_sparse.pooling is 'mean', expected one of max, sum",
        ),
    ],
)
def test_heads_that_do_not_fit(tasks, message):
    with pytest.raises(ConfigError, match=message):
        builders.tiny(tasks=tasks)


def test_a_model_without_a_decoder_is_refused(readable_model):
    model = fastinfer.load(readable_model(tasks=Tasks(classify=Classify(("a", "b"), "softmax"))))
    with pytest.raises(TaskError, match="has no fill_mask head; it has classify"):
        model.embed_sparse("ada")


def test_the_command(run, tmp_path):
    config = make_config(tasks=Tasks(fill_mask=FillMask(False, tied=False), embed_sparse=EmbedSparse()), ids=Ids(0, 4, 2, 3))
    builders.save(tmp_path, config)
    make_tokenizer().save(str(tmp_path / "tokenizer.json"))
    row = fastinfer.load(tmp_path).embed_sparse("ada lived").toarray()[0]
    status, out, _ = run("embed", "--sparse", "-m", tmp_path, "ada lived", "--json")
    weights = {token: np.float32(weight) for token, weight in json.loads(out)["weights"].items()}
    assert (status, weights) == (0, {WORDS[i]: row[i] for i in np.argsort(-row, kind="stable") if row[i] > 0})
    assert list(weights.values()) == sorted(weights.values(), reverse=True)
    token, weight = next(iter(weights.items()))
    assert run("embed", "--sparse", "-m", tmp_path, "ada lived")[1].startswith(
        f"{len(weights)} tokens: ada lived\n  {weight:.4f}  {token}\n"
    )
    for options in (["-o", "x.npy"], ["--normalize"]):
        assert run("embed", "--sparse", "-m", tmp_path, "ada", *options)[0] == 2
