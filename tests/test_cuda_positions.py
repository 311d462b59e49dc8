"""Positions, windows, gates and narrow embeddings on a GPU: each operation near float64, models near the NumPy backend."""

import itertools
import math

import builders
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from test_cuda import DTYPES, ERROR, POISONS, assert_near, batch_of, needs_gpu, rounded, sent, sent_norm
from test_reference import layer_norm, norm_of

import fastinfer
from fastinfer import positions
from fastinfer.checkpoint import Tensor
from fastinfer.config import Alibi, Attention, Buckets, Dense, Disentangled, Embed, FillMask, Gated, Ids, Norm, Positions, Tasks
from fastinfer.weights import Embedding, Scores
from fastinfer.weights import Norm as NormWeights

REACH = 1024
TEXTS = ([1], [2, 5], [12, 13, 1, 31], [33, 64, 7, 128, 129], [15] * 40, [700, 3, 65])
# Heads of 64 run by wgmma where there is any, other heads by mma.sync, and float32 by plain arithmetic.
HEADS = [(2, 16), (3, 24), (2, 64), (1, 128)]
each_dtype = pytest.mark.parametrize("dtype", DTYPES[:3])


def fitted(dtype, heads, size):
    return fastinfer.backends.get("cuda", dtype=dtype).fitted(heads * size, heads, dtype)


def expected(qkv, lengths, heads, gains=None, window=None, causal=False):
    """Attention in float64, a text at a time. gains(length, q, k): what the scaled scores (H, L, L) gain, from q and k (H, L, S)."""
    texts = []
    for begin, end in itertools.pairwise(np.cumsum([0, *lengths])):
        q, k, v = qkv[begin:end].astype(np.float64).reshape(end - begin, 3, heads, -1).transpose(1, 2, 0, 3)
        s = np.einsum("hid,hjd->hij", q, k) / math.sqrt(q.shape[-1])
        if gains is not None:
            s = s + gains(end - begin, q, k)
        if window is not None:
            s = np.where(np.abs(behind(end - begin)) <= window, s, -np.inf)
        if causal:
            s = np.where(behind(end - begin) <= 0, s, -np.inf)
        e = np.exp(s - s.max(-1, keepdims=True))
        texts.append(np.einsum("hij,hjd->ihd", e / e.sum(-1, keepdims=True), v).reshape(end - begin, -1))
    return np.concatenate(texts)


def behind(length):
    """j - i in row i and column j."""
    return np.arange(length) - np.arange(length)[:, None]


def attend(ops, qkv, lengths, heads, scores):
    out = ops.empty(len(qkv), qkv.shape[1] // 3)
    out.fill(255)
    ops.attention(sent(ops, qkv), np.cumsum([0, *lengths], dtype=np.int32), heads, scores=scores, out=out)
    return ops.bring(out)()


def check(dtype, heads, size, make, gains=None, window=None, causal=False):
    """Compare attention with expected(). make(ops): the Scores on the GPU."""
    ops = fitted(dtype, heads, size)
    scores = make(ops)
    for lengths in TEXTS:
        rng = np.random.default_rng([size, len(lengths)])
        qkv = rounded(rng.standard_normal((sum(lengths), 3 * heads * size), np.float32), dtype)
        assert_near(attend(ops, qkv, lengths, heads, scores), expected(qkv, lengths, heads, gains, window, causal), dtype, factor=2)


# --- attention ---


@needs_gpu
@each_dtype
@pytest.mark.parametrize("window", [1, 7, 64, 200, 5000])
@pytest.mark.parametrize(("heads", "size"), HEADS)
def test_a_window_hides_keys_that_are_farther_away(heads, size, window, dtype):
    check(dtype, heads, size, lambda ops: Scores(window=window), window=window)


@needs_gpu
@each_dtype
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize(("heads", "size"), [(3, 24), (2, 64)])
def test_causal_queries_see_no_later_key(heads, size, window, dtype):
    check(dtype, heads, size, lambda ops: Scores(window=window, causal=True), window=window, causal=True)


def random_distances(heads):
    """(a table of random distances, their gains)"""
    table = np.random.default_rng(heads).standard_normal((heads, 2 * REACH - 1)).astype(np.float32)
    return table, lambda length, q, k: table[:, REACH - 1 + behind(length)].astype(np.float64)


@needs_gpu
@each_dtype
@pytest.mark.parametrize(("heads", "size"), HEADS)
def test_distances_are_added_to_scores(heads, size, dtype):
    table, gains = random_distances(heads)
    check(dtype, heads, size, lambda ops: Scores(distances=ops.floats(table)), gains)


@needs_gpu
@each_dtype
@pytest.mark.parametrize("heads", [2, 3])
def test_slopes_of_alibi_and_a_window_work_together(heads, dtype):
    table = positions.distance_table(Alibi(), REACH, heads, None)
    check(
        dtype, heads, 64, lambda ops: Scores(window=40, distances=ops.floats(table)),
        lambda length, q, k: table[:, REACH - 1 + behind(length)].astype(np.float64), window=40,
    )  # fmt: skip


def random_relative(heads, size, buckets, reach, dtype):
    """(make, gains) of random relative tables."""
    made = np.random.default_rng(buckets).standard_normal((2, 2 * buckets, heads * size)).astype(np.float32) / 2
    rows = positions.relative_rows(Disentangled(buckets, reach), REACH)
    keys, queries = rounded(made, dtype).astype(np.float64).reshape(2, 2 * buckets, heads, size)

    def gains(length, q, k):
        at = rows[REACH - 1 - behind(length)]
        by_query, by_key = np.einsum("hid,rhd->hir", q, keys), np.einsum("hjd,rhd->hjr", k, queries)
        i, j = np.arange(length)[:, None], np.arange(length)
        return (by_query[:, i, at] + by_key[:, j, at]) / math.sqrt(size)

    return lambda ops: ops.relative(*(Tensor(table, "float32") for table in made), rows, heads), gains


@needs_gpu
@each_dtype
@pytest.mark.parametrize(("heads", "size", "buckets", "reach"), [(2, 16, 8, 24), (3, 24, 10, 100), (2, 64, 256, 512), (1, 128, 32, 128)])
def test_relative_scores_multiply_queries_and_keys_with_the_rows_of_their_distance(heads, size, buckets, reach, dtype):
    make, gains = random_relative(heads, size, buckets, reach, dtype)
    check(dtype, heads, size, lambda ops: Scores(relative=make(ops)), gains)


@needs_gpu
@each_dtype
def test_heads_in_turns_and_all_parts_of_scores_together(dtype, monkeypatch):
    """With little memory for relative products, heads are computed one or two at a time."""
    heads, size = 5, 64
    table, by_distance = random_distances(heads)
    make, gains = random_relative(heads, size, 16, 64, dtype)
    ops, lengths = fitted(dtype, heads, size), [90, 1, 200]
    scores = Scores(window=70, distances=ops.floats(table), relative=make(ops))
    qkv = rounded(np.random.default_rng(4).standard_normal((291, 3 * heads * size), np.float32), dtype)
    want = expected(qkv, lengths, heads, lambda *of: gains(*of) + by_distance(*of), window=70)
    products = 2 * 291 * 32 * ops.storage.itemsize  # bytes of a head
    for count in (1, 2, 5):
        monkeypatch.setattr("fastinfer.backends.cuda.attention.RELATIVE_BYTES", count * products)
        assert_near(attend(ops, qkv, lengths, heads, scores), want, dtype, factor=2)


@needs_gpu
@each_dtype
@pytest.mark.parametrize(("heads", "size"), [(2, 32), (2, 64)])
def test_a_batch_that_is_filled_up(heads, size, dtype):
    """Padding tokens, whose bounds are 0 and 0, change no text, and no kernel writes their rows."""
    lengths, filling = [1, 2, 63, 64, 65, 200, 513], 37
    tokens, ops = sum(lengths), fitted(dtype, heads, size)
    qkv = rounded(np.random.default_rng(size).standard_normal((tokens, 3 * heads * size), np.float32), dtype)
    filled = np.concatenate([qkv, np.full((filling, qkv.shape[1]), np.nan, np.float32)])
    cu = np.cumsum([0, *lengths])
    bounds = np.zeros((tokens + filling, 2), np.int32)
    bounds[:tokens] = np.stack([np.repeat(cu[:-1], lengths), np.repeat(cu[1:], lengths)], 1)
    bounds = ops.memory.send("bounds", bounds)
    table, by_distance = random_distances(heads)
    make, gains = random_relative(heads, size, 16, 64, dtype)
    cases = [(Scores(window=9), None), (Scores(distances=ops.floats(table)), by_distance), (Scores(relative=make(ops)), gains)]
    for scores, gain in cases:
        out = ops.empty(tokens + filling, heads * size)
        out.view(np.uint8).fill(255)
        ops.attention(sent(ops, filled), bounds, heads, scores=scores, out=out)
        assert_near(ops.bring(out[:tokens])(), expected(qkv, lengths, heads, gain, scores.window), dtype, factor=2)
        assert (out[tokens:].get().view(np.uint8) == 255).all()
    there = sent(ops, filled)
    before = there[tokens:].copy()
    ops.rotate(there, bounds, heads, ops.floats(positions.rotary_table(513, size, 100.0, 1.0)))
    assert_array_equal(there[tokens:].get().view(np.uint8), before.get().view(np.uint8))
    assert_near(ops.bring(there[:tokens])(), turned(qkv, lengths, heads, size, 100.0, 1.0), dtype)


@needs_gpu
@each_dtype
@pytest.mark.parametrize(("heads", "size"), [(2, 32), (2, 64)])
def test_what_is_no_number_stays_in_its_text(heads, size, dtype):
    """NaN and infinity in a text leave the other texts right, and in the text itself those queries that do not see it."""
    lengths, ops = [3, 1, 70, 2, 17, 130, 1, 33, 8], fitted(dtype, heads, size)
    tokens, cu, window = sum(lengths), np.cumsum([0, *lengths]), 12
    clean = rounded(np.random.default_rng(size).standard_normal((tokens, 3 * heads * size), np.float32), dtype)
    table, by_distance = random_distances(heads)
    make, gains = random_relative(heads, size, 16, 64, dtype)
    cases = [(Scores(window=window), None), (Scores(distances=ops.floats(table)), by_distance), (Scores(relative=make(ops)), gains)]
    for scores, gain in cases:
        want = expected(clean, lengths, heads, gain, scores.window)
        for i, (begin, end) in enumerate(itertools.pairwise(cu)):
            qkv = clean.copy()
            qkv[end - 1] = POISONS[i % 3]
            reached = np.s_[begin if scores.window is None else max(begin, end - 1 - window) : end]
            got = attend(ops, qkv, lengths, heads, scores)
            assert not np.isfinite(got[reached]).all(1).any()
            assert_near(np.delete(got, reached, 0), np.delete(want, reached, 0), dtype, factor=2)


# --- rotation ---


def turned(qkv, lengths, heads, size, theta, scale):
    """qkv after rotation, in float64."""
    place = np.concatenate([np.arange(n) for n in lengths])
    angles = scale * place[:, None, None] * theta ** (-2 * np.arange(size // 2) / size)
    want = qkv.astype(np.float64).reshape(len(qkv), 3 * heads, 2, size // 2)
    x, y = want[:, : 2 * heads, 0].copy(), want[:, : 2 * heads, 1].copy()
    want[:, : 2 * heads, 0] = x * np.cos(angles) - y * np.sin(angles)
    want[:, : 2 * heads, 1] = y * np.cos(angles) + x * np.sin(angles)
    return want.reshape(qkv.shape)


@needs_gpu
@each_dtype
@pytest.mark.parametrize(("heads", "size"), [(1, 8), *HEADS])
def test_rotation_turns_pairs_of_columns_by_the_angle_of_the_position(heads, size, dtype):
    ops, lengths = fitted(dtype, heads, size), [3, 1, 70, 260]
    qkv = rounded(np.random.default_rng(size).standard_normal((sum(lengths), 3 * heads * size), np.float32), dtype)
    there = sent(ops, qkv)
    ops.rotate(there, np.cumsum([0, *lengths], dtype=np.int32), heads, ops.floats(positions.rotary_table(260, size, 1000.0, 0.5)))
    got = ops.bring(there)()
    assert_near(got, turned(qkv, lengths, heads, size, 1000.0, 0.5), dtype)
    assert_array_equal(got[:, 2 * heads * size :], qkv[:, 2 * heads * size :])


# --- products, embeddings, tables ---

FUNCTIONS = {
    None: np.array,
    "gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


@needs_gpu
@each_dtype
@pytest.mark.parametrize("activation", FUNCTIONS, ids=str)
@pytest.mark.parametrize("shape", [(5, 8, 16), (16, 768, 2304), (50, 768, 1152), (130, 768, 768), (3000, 64, 96)], ids=str)
def test_a_gate_multiplies_the_activation(shape, activation, dtype):
    """In place or not; without a gate, the activation alone and with a residual."""
    rng, (tokens, width, outputs) = np.random.default_rng(8), shape
    x, gate, weight, bias = (
        rounded(rng.standard_normal(s, np.float32) * np.float32(k), dtype)
        for s, k in (((tokens, width), 1), ((tokens, outputs), 1), ((outputs, width), 3 / width**0.5), ((outputs,), 1))
    )
    ops = fastinfer.backends.get("cuda", dtype=dtype).fitted(64, 0, dtype)
    matrix, offset = (make(Tensor(values, "float32")) for make, values in ((ops.matrix, weight), (ops.vector, bias)))
    want = FUNCTIONS[activation](x.astype(np.float64) @ weight.T.astype(np.float64) + bias)
    there, out, inside = sent(ops, gate), ops.empty(tokens, outputs), sent(ops, gate)
    ops.linear(sent(ops, x), matrix, bias=offset, activation=activation, gate=there, out=out)
    assert_near(ops.bring(out)(), want * gate, dtype)
    ops.linear(sent(ops, x), matrix, bias=offset, activation=activation, gate=inside, out=inside)
    assert_array_equal(inside.get(), out.get())
    assert_array_equal(ops.bring(there)(), gate)
    ops.linear(sent(ops, x), matrix, bias=offset, activation=activation, out=out)
    assert_near(ops.bring(out)(), want, dtype)
    ops.linear(sent(ops, x), matrix, bias=offset, activation=activation, residual=there, out=there)
    assert_near(ops.bring(there)(), want + gate, dtype)


@needs_gpu
@each_dtype
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_activations_of_large_values(activation, dtype):
    """They are 0 far below zero and the identity far above it; NaN stays."""
    ops = fastinfer.backends.get("cuda", dtype=dtype).fitted(16, 0, dtype)
    x = np.zeros((200, 16), np.float32)
    x[:, 0] = np.linspace(-200, 200, 200)
    x[:4, 1] = [6e4, -6e4, 3e38 if dtype == "bfloat16" else 5e4, np.nan]
    x = rounded(x, dtype)
    eye = ops.matrix(Tensor(np.diag(np.r_[1, 1, np.zeros(14)]).astype(np.float32), "float32"))
    for rows in (x, x[:16]):  # by cuBLASLt and, in two bytes, by the kernel of few rows
        out = ops.empty(*rows.shape)
        ops.linear(sent(ops, np.nan_to_num(rows)), eye, activation=activation, out=out)
        with np.errstate(over="ignore"):
            want = FUNCTIONS[activation](np.nan_to_num(rows).astype(np.float64))
        got = ops.bring(out)()
        assert np.isfinite(got[:, 0]).all()
        assert (np.abs(got[:, 0] - want[:, 0]) <= ERROR[dtype] * np.maximum(1, np.abs(want[:, 0]))).all()
        assert (np.abs(got[:3, 1] - want[:3, 1]) <= ERROR[dtype] * np.maximum(1, np.abs(want[:3, 1]))).all()
        alone = ops.empty(1, 16)
        ops.linear(sent(ops, rows[3:4]), eye, activation=activation, out=alone)
        assert np.isnan(ops.bring(alone)()).all()


@needs_gpu
@each_dtype
@pytest.mark.parametrize("width", [64, 24, 768])
def test_embeddings_without_positions_and_of_another_width(width, dtype):
    """The model's width is 64. Their norm is that of their own columns."""
    rng, lengths = np.random.default_rng(9), [3, 1, 12]
    ops = fitted(dtype, 2, 32)
    word, position, types = (rounded(rng.standard_normal((n, width), np.float32), dtype) for n in (30, 12, 2))
    norm = norm_of(rng, width)
    norm = NormWeights(rounded(norm.weight, dtype), rounded(norm.bias, dtype))
    ids, kinds = ([rng.integers(0, n, length) for length in lengths] for n in (30, 2))
    places = np.concatenate([np.arange(n) for n in lengths])
    for added in (None, position):
        tables = (None if t is None else ops.vector(Tensor(t, "float32")) for t in (word, added, types))
        embedding, out = Embedding(*tables, norm=sent_norm(ops, norm), eps=1e-6), ops.empty(16, width)
        ops.embed(fastinfer.PackedBatch.from_ids(ids, kinds), embedding, out=out)
        want = word[np.concatenate(ids)] + types[np.concatenate(kinds)] + (0 if added is None else position[places])
        assert_near(ops.bring(out)(), layer_norm(want, norm, 1e-6), dtype)


# --- models ---

TASKS = Tasks(Embed("mean", True), FillMask(True, tied=False))
MODELS = {
    "rotary, window, gated": {
        "norm": Norm("pre", 1e-5, first=False), "positions": Positions("none", 600), "ffn": (Gated(96),) * 3, "final_norm": True,
        "attention": (Attention(160000.0), Attention(10000.0, window=16), Attention(10000.0, window=3)), "attention_bias": False,
    },
    "rotary, scaled, silu": {
        "norm": Norm("post", 1e-12), "positions": Positions("none", 600), "ffn": (Gated(100, bias_in=True, bias_out=True),) * 3,
        "attention": (Attention(1000.0, 0.5),) * 3, "activation": "silu", "token_types": 2,
    },
    "causal": {
        "norm": Norm("pre", 1e-6), "positions": Positions("none", 600), "ffn": (Gated(96),) * 3, "activation": "silu",
        "attention": (Attention(10000.0, causal=True), Attention(100.0, causal=True, window=30), Attention(10000.0, causal=True)),
    },
    "alibi": {
        "norm": Norm("post", 1e-12), "positions": Positions("none", 600), "ffn": (Gated(128), Dense(72), Gated(128)),
        "distances": Alibi(), "activation": "gelu_tanh",
    },
    "buckets": {"norm": Norm("post", 1e-5), "distances": Buckets(), "ffn": (Dense(256),) * 3},
    "disentangled": {
        "norm": Norm("post", 1e-7), "positions": Positions("none", 600), "distances": Disentangled(32, 100), "ffn": (Dense(256),) * 3,
    },
    "narrow embedding": {"norm": Norm("post", 1e-12), "embedding_width": 24, "ffn": (Dense(256),) * 3, "token_types": 2},
    "narrow sines": {
        "norm": Norm("pre", 1e-12), "embedding_width": 40, "positions": Positions("scaled-sinusoidal", 600), "ffn": (Gated(64),) * 3,
        "embedding_norm": False, "final_norm": True,
    },
}  # fmt: skip


def config_of(kind, hidden=64, heads=2):
    options = {"hidden": hidden, "heads": heads, "layers": 3, "vocabulary": 101, "max_tokens": 600, "ids": Ids(0, 4, 2, 3), "tasks": TASKS}
    return builders.tiny(**options | {"positions": Positions("learned", 600), "token_types": 0} | MODELS[kind])


def check_model(folder, device, dtype, kind, hidden=64, heads=2):
    """Compare hidden states with those of the NumPy backend, text by text, in two batches."""
    config = config_of(kind, hidden, heads)
    builders.save(folder, config)
    host, model = fastinfer.load(folder, device="numpy"), fastinfer.load(folder, device=device, dtype=dtype)
    for lengths in ((1, 5, 17), (64, 130, 300, 2, 600)):
        batch = batch_of(lengths, types=config.token_types > 0)
        want = host.hidden_states(batch, layers=(0, 1, -1))
        for by in (16384, 200):  # all texts at once, and in several batches
            got = model.hidden_states(batch, layers=(0, 1, -1), batch_tokens=by)
            alone = model.hidden_states(batch, batch_tokens=by)  # the graph
            for ours, last, theirs in zip(got, alone, want, strict=True):
                for a, b in zip((*ours, last), (*theirs, theirs[-1]), strict=True):
                    assert_near(a, b, dtype, factor=8)
        if dtype == "float32":
            assert np.abs(model.embed(batch) - host.embed(batch)).max() < 1e-4


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", MODELS)
def test_a_model_agrees_with_numpy(tmp_path, kind, dtype):
    check_model(tmp_path, "cuda", dtype, kind)


@needs_gpu
@pytest.mark.parametrize("kind", ["rotary, window, gated", "alibi", "disentangled"])
def test_a_model_with_heads_of_64_agrees_with_numpy(tmp_path, kind):
    check_model(tmp_path, "cuda", "float16", kind, hidden=192, heads=3)


@pytest.mark.parametrize("kind", MODELS)
def test_the_same_check_passes_on_the_cpu(tmp_path, kind):
    check_model(tmp_path, "cpu", "float32", kind)
