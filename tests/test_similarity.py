"""similarity, paraphrase_pairs and communities give what float64 and sentence-transformers give, at bounded memory; precisions of embed."""

import tracemalloc

import numpy as np
import pytest
from conftest import WORDS
from numpy.testing import assert_allclose, assert_array_equal

import fastinfer
from fastinfer.errors import DtypeError, FastinferError, InputError, ShapeError


@pytest.fixture
def rng():
    seed = np.random.SeedSequence().entropy
    print("seed", seed)
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def package():
    pytest.importorskip("torch")
    return pytest.importorskip("sentence_transformers.util", reason="the oracle needs sentence-transformers")


def clusters(rng, count, groups, dim=24, spread=0.35):
    """Vectors around some centres, in any order."""
    centres = rng.standard_normal((groups, dim))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    return (centres[rng.integers(0, groups, count)] + spread * rng.standard_normal((count, dim)) / np.sqrt(dim)).astype(np.float32)


# --- similarity ---


@pytest.mark.parametrize("kind", ["cosine", "dot", "euclidean", "manhattan"])
@pytest.mark.parametrize(("left", "right"), [(1, 1), (3, 700), (600, 5), (0, 4), (4, 0)])
def test_similarity_is_that_of_float64(rng, kind, left, right):
    a, b = rng.standard_normal((left, 19)) * 3, rng.standard_normal((right, 19))
    found = fastinfer.similarity(a, b, kind=kind)
    assert (found.shape, found.dtype) == ((left, right), np.float32)
    if kind in ("cosine", "dot"):
        x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) if kind == "cosine" else v for v in (a, b))
        want = x @ y.T
    else:
        apart = a[:, None] - b[None]
        want = -(np.linalg.norm(apart, axis=2) if kind == "euclidean" else np.abs(apart).sum(axis=2))
    assert_allclose(found, want, rtol=1e-5, atol=1e-5)


def test_a_vector_is_as_near_to_itself_as_can_be(rng):
    a = rng.standard_normal((50, 40)).astype(np.float32)
    for kind, best in (("cosine", 1), ("euclidean", 0), ("manhattan", 0)):
        assert_allclose(np.diag(fastinfer.similarity(a, kind=kind)), best, atol=2e-6)
    assert_array_equal(fastinfer.similarity(np.zeros((1, 3)), np.ones((1, 3))), [[0]])


def test_similarity_takes_what_sentence_transformers_takes(package, rng):
    a, b = rng.standard_normal((2, 30, 16)).astype(np.float32)
    theirs = {"cosine": package.cos_sim, "dot": package.dot_score, "euclidean": package.euclidean_sim, "manhattan": package.manhattan_sim}
    for kind, function in theirs.items():
        assert_allclose(fastinfer.similarity(a, b, kind=kind), function(a, b).numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        (np.zeros(3), ShapeError),
        ([[1.0, 2.0], [1.0]], FastinferError),
        (["a text"], DtypeError),
        (np.array([[np.nan, 1.0]]), InputError),
        (np.array([[1e300, 1.0]]), InputError),
        (None, DtypeError),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_what_is_no_array_of_vectors_is_refused(values, error):
    for function in (fastinfer.similarity, fastinfer.paraphrase_pairs, fastinfer.communities):
        with pytest.raises(error):
            function(values)


def test_wrong_arguments(rng):
    a = rng.standard_normal((3, 4))
    with pytest.raises(InputError, match="kind is 'angle'"):
        fastinfer.similarity(a, kind="angle")
    with pytest.raises(ShapeError, match="as many numbers"):
        fastinfer.similarity(a, a[:, :2])
    for options in ({"top_k": 0}, {"max_pairs": 0}, {"progress": 1}):
        with pytest.raises(InputError):
            fastinfer.paraphrase_pairs(a, **options)
    for options in ({"threshold": 1.5}, {"threshold": True}, {"threshold": "1"}, {"min_size": 0}, {"progress": 1}):
        with pytest.raises(InputError):
            fastinfer.communities(a, **options)


# --- pairs and communities ---


@pytest.mark.parametrize(("top_k", "max_pairs"), [(5, 10**6), (100, 40), (3, 700)])
def test_paraphrase_pairs_are_those_of_sentence_transformers(package, rng, top_k, max_pairs):
    import torch

    vectors = clusters(rng, 1300, 200)
    ours = fastinfer.paraphrase_pairs(vectors, top_k=top_k, max_pairs=max_pairs)
    theirs = package.paraphrase_mining_embeddings(torch.from_numpy(vectors), top_k=top_k, max_pairs=max_pairs)
    assert len(ours) == len(theirs)
    assert_allclose([score for score, _, _ in ours], [score for score, _, _ in theirs], atol=2e-6)
    assert all(i < j for _, i, j in ours)
    assert len({pair[1:] for pair in ours} & {(i, j) for _, i, j in theirs}) > 0.99 * len(theirs)  # but for scores equal to 1e-6


def test_paraphrase_pairs_of_equal_vectors(rng):
    one = rng.standard_normal((1, 8))
    assert [pair[1:] for pair in fastinfer.paraphrase_pairs(np.tile(one, (3, 1)))] == [(0, 1), (0, 2), (1, 2)]
    assert fastinfer.paraphrase_pairs(one) == []
    assert fastinfer.paraphrase_pairs(np.zeros((0, 8))) == []
    many = fastinfer.paraphrase_pairs(np.tile(one, (600, 1)), top_k=2, max_pairs=50)
    assert len(many) == 50


@pytest.mark.parametrize("min_size", [1, 3, 20])
def test_communities_are_those_of_sentence_transformers(package, rng, min_size):
    vectors = clusters(rng, 1400, 60, spread=0.15)  # far inside the threshold, so no rounding decides
    ours = fastinfer.communities(vectors, threshold=0.8, min_size=min_size)
    theirs = package.community_detection(vectors, threshold=0.8, min_community_size=min_size)
    assert [len(group) for group in ours] == [len(group) for group in theirs]
    assert {frozenset(group) for group in ours} == {frozenset(group) for group in theirs}
    assert sum(map(len, ours)) == len(set().union(*map(set, ours)))


def test_a_community_begins_with_its_centre_and_goes_on_by_the_cosine(rng):
    vectors = clusters(rng, 500, 9, spread=0.6)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for centre, *others in fastinfer.communities(vectors, threshold=0.6, min_size=5):
        cosines = units[others] @ units[centre]
        assert (cosines > 0.6 - 1e-5).all()
        assert (np.diff(cosines) < 1e-5).all()
    assert fastinfer.communities(np.zeros((0, 4))) == []


def test_memory_does_not_grow_with_the_square(rng):
    peaks = []
    for count in (4000, 16000):
        vectors = clusters(rng, count, count // 10)
        tracemalloc.start()
        fastinfer.communities(vectors)
        fastinfer.paraphrase_pairs(vectors, top_k=2, max_pairs=100)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2.5 * peaks[0]
    assert peaks[1] < 16000 * 16000 / 4


# --- precision ---


def test_precisions_are_those_of_sentence_transformers(random_model, package):
    from sentence_transformers.util.quantization import quantize_embeddings

    model = fastinfer.load(random_model, device="numpy")
    plain = model.embed(WORDS)
    for name in ("float32", "binary", "ubinary"):
        found, theirs = model.embed(WORDS, precision=name), quantize_embeddings(plain, name)
        assert found.dtype == theirs.dtype
        assert_array_equal(found, theirs)


def test_int8_keeps_the_direction_of_each_vector(random_model):
    """Each text is rounded by itself, so that its codes do not depend on the others, unlike ranges that are those of a batch."""
    model = fastinfer.load(random_model, device="cpu" if fastinfer.info()["devices"]["cpu"] is None else "numpy")
    plain, codes = model.embed(WORDS), model.embed(WORDS, precision="int8")
    assert codes.dtype == np.int8
    assert (np.abs(codes.astype(int)).max(axis=1) == 127).all()
    cosines = np.einsum("bd,bd->b", plain, codes / np.linalg.norm(codes, axis=1, keepdims=True).astype(np.float64))
    assert (cosines > 0.9999).all()
    if model.device != "numpy":
        assert_array_equal(model.embed(WORDS[:1], precision="int8"), codes[:1])
    assert_array_equal(model.embed(WORDS, precision="float16"), plain.astype(np.float16))
    assert_array_equal(model.embed([], precision="int8").shape, (0, 32))
    assert_array_equal(model.embed([], precision="binary").shape, (0, 4))
    for wrong in ("int4", None, 8, ["int8"]):
        with pytest.raises(InputError, match="precision is"):
            model.embed(WORDS, precision=wrong)
