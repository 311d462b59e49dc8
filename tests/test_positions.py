"""Position schemes: tables near float64 formulas, and attention with them near float64 on every device, the same alone and in a batch."""

import itertools
import math

import backends
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import fastinfer
from fastinfer import positions
from fastinfer.batch import PackedBatch
from fastinfer.checkpoint import Tensor
from fastinfer.config import Alibi, Buckets, Disentangled
from fastinfer.weights import Embedding, Norm, Scores

TEXTS = ([1], [2, 5], [12, 13, 1, 31], [33, 64, 7], [100, 3], [250])
REACH = 256
EXPECTED: dict[tuple, np.ndarray] = {}  # what expected() gave
each_device = pytest.mark.parametrize("device", ["numpy", *backends.COMPILED])
each_dtype = pytest.mark.parametrize("dtype", backends.DTYPES)


def get(device, dtype="float32", threads=1):
    return fastinfer.backends.get(device, dtype=None if device == "numpy" else dtype, threads=threads)


def rounded(device, dtype, x):
    """x as attention multiplies it: one ISA has a bfloat16 dot product, and computes in it unless the dtype is float32."""
    return Tensor(x, "float32").to("bfloat16").float32() if is_low(device, dtype) else x


def is_low(device, dtype):
    return dtype != "float32" and device in backends.BFLOAT16_DOTS


def expected(qkv, lengths, heads, added, window=None, causal=False):
    """Attention in float64, a text and a head at a time; added(head, i, j, q_i, k_j) is what a score gains."""
    size = qkv.shape[1] // 3 // heads
    out = np.zeros((len(qkv), heads * size))
    for begin, end in itertools.pairwise(np.cumsum([0, *lengths])):
        for h in range(heads):
            q, k, v = (qkv[begin:end, (part * heads + h) * size : (part * heads + h + 1) * size].astype(np.float64) for part in range(3))
            for i in range(end - begin):
                seen = [j for j in range(end - begin) if (window is None or abs(i - j) <= window) and not (causal and j > i)]
                s = np.array([q[i] @ k[j] / math.sqrt(size) + added(h, i, j, q[i], k[j]) for j in seen])
                e = np.exp(s - s.max())
                out[begin + i, h * size : (h + 1) * size] = e @ v[seen] / e.sum()
    return out


def attend(ops, qkv, lengths, heads, scores):
    out = np.full((len(qkv), qkv.shape[1] // 3), np.nan, np.float32)
    ops.attention(np.ascontiguousarray(qkv), np.cumsum([0, *lengths], dtype=np.int32), heads, scores=scores, out=out)
    return out


def check(device, dtype, make, added, heads, size, texts=TEXTS, window=None, causal=False, seed=0):
    """Compare attention on a device with expected(), with other numbers of threads, and each text alone. make(ops): the Scores.

    expected() is computed once for all devices and dtypes that round alike: `added` differs between tests, and with heads and size.
    """
    others = [get(device, dtype, threads) for threads in (1, 2, 3)]
    scores = [make(ops) for ops in others]
    tolerance = 2e-2 if is_low(device, dtype) else 2e-5
    for lengths in texts:
        qkv = np.random.default_rng([seed, size, len(lengths)]).standard_normal((sum(lengths), 3 * heads * size), np.float32)
        got = attend(others[0], qkv, lengths, heads, scores[0])
        case = added.__qualname__, heads, size, tuple(lengths), window, causal, seed, is_low(device, dtype)
        if case not in EXPECTED:
            EXPECTED[case] = expected(rounded(device, dtype, qkv), lengths, heads, added, window, causal)
        assert_allclose(got, EXPECTED[case], rtol=tolerance, atol=tolerance)
        if device == "numpy":
            continue
        for ops, each in zip(others[1:], scores[1:], strict=True):
            assert_array_equal(attend(ops, qkv, lengths, heads, each), got)
        for begin, length in zip(np.cumsum([0, *lengths]), lengths, strict=False):
            part = np.s_[begin : begin + length]
            assert_array_equal(attend(others[1], qkv[part], [length], heads, scores[1]), got[part])


@each_device
@each_dtype
@pytest.mark.parametrize(("heads", "size", "window"), [(2, 16, 1), (1, 24, 7), (2, 64, 64), (3, 12, 40)])
def test_a_window_hides_keys_that_are_farther_away(device, dtype, heads, size, window):
    check(device, dtype, lambda ops: Scores(window=window), lambda *_: 0.0, heads, size, window=window)


@each_device
@each_dtype
@pytest.mark.parametrize(("heads", "size"), [(2, 16), (3, 24), (5, 12), (2, 64)])
def test_distances_are_added_to_scores(device, dtype, heads, size):
    table = np.random.default_rng(size).standard_normal((heads, 2 * REACH - 1)).astype(np.float32)
    check(device, dtype, lambda ops: Scores(distances=table), lambda h, i, j, q, k: float(table[h, REACH - 1 + j - i]), heads, size)


@each_device
@each_dtype
@pytest.mark.parametrize(("heads", "size", "window"), [(2, 16, None), (3, 12, None), (1, 64, 20)])
def test_a_causal_query_sees_no_key_behind_it(device, dtype, heads, size, window):
    scores = Scores(window=window, causal=True)
    check(device, dtype, lambda ops: scores, lambda *_: 0.0, heads, size, window=window, causal=True)


@each_device
@pytest.mark.parametrize("hidden", [1, 3, 8, 17, 64, 100, 384, 770])
def test_a_norm_without_a_bias_divides_by_the_root_mean_square(device, hidden):
    rng = np.random.default_rng(hidden)
    x, weight = (rng.standard_normal((70, hidden)) * 2 + 3).astype(np.float32), rng.standard_normal(hidden).astype(np.float32)
    want = x.astype(np.float64) / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5) * weight
    for threads in (1, 3):
        out = np.empty_like(x)
        get(device, threads=threads).norm(x, Norm(weight, None), 1e-5, out=out)
        assert_allclose(out, want, rtol=3e-6, atol=1e-6)


@each_device
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("heads", "size"), [(1, 8), (3, 24), (2, 128)])
def test_heads_of_q_and_k_are_normed(device, dtype, heads, size):
    ops, rng = get(device, dtype, 2), np.random.default_rng(size)
    qkv = rng.standard_normal((50, 3 * heads * size), np.float32) * 3
    weights = rng.standard_normal((2, size)).astype(np.float32)
    half = device != "numpy" and ops.qkv_dtype(size) == np.uint16
    given = Tensor(qkv, "float32").to("bfloat16").data.copy() if half else qkv.copy()
    exact = (Tensor(given, "bfloat16").float32() if half else qkv).astype(np.float64)
    ops.norm_heads(given, heads, *weights, 1e-6)
    got = Tensor(given, "bfloat16").float32() if half else given
    parts = exact.reshape(50, 3, heads, size)
    want = parts / np.sqrt((parts**2).mean(-1, keepdims=True) + 1e-6) * np.stack([*weights, np.ones(size)])[:, None]
    want[:, 2] = parts[:, 2]
    assert_allclose(got, want.reshape(qkv.shape), rtol=0.01 if half else 3e-6, atol=1e-6)


@each_device
def test_a_window_and_distances_work_together(device):
    table = np.random.default_rng(3).standard_normal((2, 2 * REACH - 1)).astype(np.float32)
    scores = Scores(window=9, distances=table)
    check(device, "float32", lambda ops: scores, lambda h, i, j, q, k: float(table[h, REACH - 1 + j - i]), 2, 32, window=9)


@each_device
@each_dtype
@pytest.mark.parametrize(("heads", "size", "buckets", "reach"), [(2, 16, 8, 24), (1, 24, 256, 512), (3, 12, 32, 100)])
def test_relative_scores_multiply_queries_and_keys_with_the_rows_of_their_distance(device, dtype, heads, size, buckets, reach):
    keys, queries = np.random.default_rng(buckets).standard_normal((2, 2 * buckets, heads * size)).astype(np.float32) / 4
    rows = positions.relative_rows(Disentangled(buckets, reach), REACH)
    exact = [rounded(device, dtype, table).astype(np.float64).reshape(2 * buckets, heads, size) for table in (keys, queries)]

    def added(h, i, j, q, k):
        at = rows[REACH - 1 + i - j]
        return (q @ exact[0][at, h] + k @ exact[1][at, h]) / math.sqrt(size)

    def make(ops):
        return Scores(relative=ops.relative(Tensor(keys, "float32"), Tensor(queries, "float32"), rows, heads))

    check(device, dtype, make, added, heads, size)


@each_device
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("heads", "size"), [(1, 2), (2, 16), (3, 24), (2, 64), (1, 80)])
def test_rotation_turns_pairs_of_columns_by_the_angle_of_the_position(device, dtype, heads, size):
    ops, lengths, theta = get(device, dtype, 2), [3, 1, 70, 26], 1000.0
    table = positions.rotary_table(REACH, size, theta, 0.5)
    qkv = np.random.default_rng(size).standard_normal((sum(lengths), 3 * heads * size), np.float32)
    want = qkv.astype(np.float64)
    for begin, end in itertools.pairwise(np.cumsum([0, *lengths])):
        for t in range(begin, end):
            for part in range(2 * heads):
                for i in range(size // 2):
                    angle = 0.5 * (t - begin) * theta ** (-2 * i / size)
                    a, b = part * size + i, part * size + size // 2 + i
                    x, y = want[t, a], want[t, b]
                    want[t, a], want[t, b] = x * math.cos(angle) - y * math.sin(angle), y * math.cos(angle) + x * math.sin(angle)
    half = device != "numpy" and ops.qkv_dtype(size) == np.uint16
    given = Tensor(qkv, "float32").to("bfloat16").data.copy() if half else qkv.copy()
    cu = np.cumsum([0, *lengths], dtype=np.int32)
    ops.rotate(given, cu, heads, table)
    got = Tensor(given, "bfloat16").float32() if half else given
    assert_allclose(got, want, rtol=0, atol=0.05 if half else 5e-6)
    assert_array_equal(
        got[:, 2 * heads * size :],
        Tensor(qkv, "float32").to("bfloat16").float32()[:, 2 * heads * size :] if half else qkv[:, 2 * heads * size :],
    )


def test_distances_of_alibi_fall_with_the_slopes_of_the_paper():
    assert_allclose(positions.alibi_slopes(8), [2.0**-h for h in range(1, 9)])
    assert_allclose(positions.alibi_slopes(12), [2.0**-h for h in range(1, 9)] + [2.0 ** -(h + 0.5) for h in range(4)])
    table = positions.distance_table(Alibi(), 5, 2, None)
    assert_array_equal(table[0], [-abs(d) / 16 for d in range(-4, 5)])


def test_buckets_are_those_of_the_published_models():
    torch = pytest.importorskip("torch", reason="needs torch")
    mpnet = pytest.importorskip("transformers.models.mpnet.modeling_mpnet", reason="needs transformers")
    deberta = pytest.importorskip("transformers.models.deberta_v2.modeling_deberta_v2", reason="needs transformers")
    distance = np.arange(-600, 601)
    theirs = mpnet.MPNetEncoder.relative_position_bucket(torch.from_numpy(distance), 32, 128)
    assert_array_equal(positions.bucket_of(distance, 32, 128), theirs.numpy())
    for buckets, reach in ((256, 512), (32, 128)):
        theirs = deberta.make_log_bucket_position(torch.from_numpy(distance), buckets, reach)
        assert_array_equal(positions.log_bucket(distance, buckets, reach), theirs.numpy())


def test_a_table_of_learned_distances_has_the_value_of_each_bucket():
    bias = np.random.default_rng(1).standard_normal((3, 32)).astype(np.float32)
    table = positions.distance_table(Buckets(), 200, 3, bias)
    for distance in (-199, -128, -9, -1, 0, 1, 7, 8, 130, 199):
        bucket = positions.bucket_of(np.array([distance]), 32, 128)[0]
        assert_array_equal(table[:, 199 + distance], bias[:, bucket])


@each_device
def test_an_embedding_may_end_in_an_rms_norm(device):
    ops, rng = get(device), np.random.default_rng(4)
    words, weight = rng.standard_normal((9, 24)).astype(np.float32), rng.standard_normal(24).astype(np.float32)
    embedding = Embedding(ops.table(Tensor(words, "float32")), None, None, Norm(weight, None), 1e-5)
    batch, out = PackedBatch.from_ids([[3, 1, 8], [5]]), np.empty((4, 24), np.float32)
    ops.embed(batch, embedding, out=out)
    rows = words[batch.ids].astype(np.float64)
    assert_allclose(out, rows / np.sqrt((rows**2).mean(-1, keepdims=True) + 1e-5) * weight, rtol=3e-6, atol=1e-6)
