"""Attention, norms and embeddings of every ISA: near float64, and bitwise the same alone, in a batch and with any threads."""

import itertools

import backends
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import fastinfer
from fastinfer.checkpoint import Tensor
from fastinfer.weights import Embedding, Norm

# Lengths around a block of queries and a panel of keys, which have 16 or 32.
TEXTS = ([1], [2, 5], [12, 13, 1, 31], [32], [33, 64, 7], [15, 16, 17, 18], [100, 3], [250])
HEADS = [(1, 8), (2, 16), (3, 24), (2, 32), (2, 40), (2, 64), (1, 72)]  # (heads, head size)

each_device = pytest.mark.parametrize("device", backends.COMPILED)
each_dtype = pytest.mark.parametrize("dtype", backends.DTYPES)


def attend(ops, qkv, lengths, heads, keys=None):
    cu = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    out = np.full((len(qkv), qkv.shape[1] // 3), np.nan, np.float32)
    ops.attention(np.ascontiguousarray(qkv), cu, heads, keys=None if keys is None else np.array(keys, np.int32), out=out)
    return out


def in_float64(qkv, lengths, heads, size, keys=None):
    out, bounds = [], np.concatenate([[0], np.cumsum(lengths)])
    for i, (begin, end) in enumerate(itertools.pairwise(bounds)):
        q, k, v = qkv[begin:end].astype(np.float64).reshape(end - begin, 3, heads, size).transpose(1, 2, 0, 3)
        k, v = (k, v) if keys is None else (k[:, : keys[i]], v[:, : keys[i]])
        scores = q @ k.transpose(0, 2, 1) / size**0.5
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out.append((weights / weights.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(end - begin, -1))
    return np.concatenate(out)


@each_device
@each_dtype
@pytest.mark.parametrize(("heads", "size"), HEADS)
def test_attention(device, dtype, heads, size):
    ops = [fastinfer.backends.get(device, dtype=dtype, threads=threads) for threads in (1, 2, 3)]
    # In low precisions, an ISA with a bfloat16 dot product rounds factors to bfloat16. The others use float32.
    low = dtype != "float32" and device in backends.BFLOAT16_DOTS
    for lengths in TEXTS:
        rng = np.random.default_rng([size, len(lengths)])
        qkv = rng.standard_normal((sum(lengths), 3 * heads * size), np.float32)
        exact = Tensor(qkv, "float32").to("bfloat16").float32() if low else qkv
        got = attend(ops[0], qkv, lengths, heads)
        assert_allclose(got, in_float64(exact, lengths, heads, size), rtol=5e-3 if low else 2e-5, atol=5e-3 if low else 3e-6)
        for each in ops[1:]:
            assert_array_equal(attend(each, qkv, lengths, heads), got)
        for begin, length in zip(np.cumsum([0, *lengths]), lengths, strict=False):
            part = np.s_[begin : begin + length]
            assert_array_equal(attend(ops[1], qkv[part], [length], heads), got[part])


@each_device
@each_dtype
@pytest.mark.parametrize(("heads", "size"), [(1, 8), (2, 64), (3, 24), (2, 7)])
def test_attention_to_the_first_tokens_of_a_text(device, dtype, heads, size):
    ops = [fastinfer.backends.get(device, dtype=dtype, threads=threads) for threads in (1, 3)]
    equal = assert_array_equal if size % 8 == 0 else lambda x, y: assert_allclose(x, y, rtol=1e-5, atol=1e-6)  # NumPy's sums
    low = dtype != "float32" and device in backends.BFLOAT16_DOTS and size % 8 == 0
    for lengths in TEXTS:
        rng = np.random.default_rng([size, len(lengths)])
        qkv = rng.standard_normal((sum(lengths), 3 * heads * size), np.float32)
        keys = [int(rng.integers(1, length + 1)) for length in lengths]
        exact = Tensor(qkv, "float32").to("bfloat16").float32() if low else qkv
        got = attend(ops[0], qkv, lengths, heads, keys)
        assert_allclose(got, in_float64(exact, lengths, heads, size, keys), rtol=5e-3 if low else 2e-5, atol=5e-3 if low else 3e-6)
        equal(attend(ops[1], qkv, lengths, heads, keys), got)
        equal(attend(ops[1], qkv, lengths, heads, lengths), attend(ops[1], qkv, lengths, heads))
        begin = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
        unseen = np.arange(len(qkv)) - begin >= np.repeat(keys, lengths)
        qkv[unseen, heads * size :] = np.nan  # keys and values that no token may see
        equal(attend(ops[1], qkv, lengths, heads, keys), got)
        for i, start in enumerate(np.cumsum([0, *lengths[:-1]])):
            seen = np.s_[start : start + keys[i]]
            equal(attend(ops[0], qkv[seen], [keys[i]], heads), got[seen])


@each_device
@each_dtype
def test_attention_keeps_what_is_no_number_to_its_text_and_head(device, dtype):
    qkv = np.random.default_rng(1).standard_normal((40, 3 * 64), np.float32)
    ops = fastinfer.backends.get(device, dtype=dtype)
    want = attend(ops, qkv, [20, 20], 2)
    qkv[3, 5] = np.nan  # in a query of the first head
    qkv[24, 64 + 5] = np.nan  # in a key of the first head
    got = attend(ops, qkv, [20, 20], 2)
    assert np.isnan(got[3, :32]).all()
    assert np.isnan(got[20:, :32]).all()
    assert_array_equal(got[:, 32:], want[:, 32:])
    assert_array_equal(np.delete(got[:20, :32], 3, 0), np.delete(want[:20, :32], 3, 0))


@each_device
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize(("heads", "size"), [(1, 8), (3, 40), (2, 64)])
def test_bfloat16_between_projection_and_attention_changes_no_bit(device, dtype, heads, size):
    """Attention in bfloat16 rounds q, k and v. So the product that makes them may round them already."""
    hidden, lengths = heads * size, [1, 2, 33, 70, 16]
    rng = np.random.default_rng(size)
    ops = fastinfer.backends.get(device, dtype=dtype, threads=2)
    if ops.qkv_dtype(size) != np.uint16:
        pytest.skip(f"{device} has no bfloat16 dot product, so attention computes float32")
    x = rng.standard_normal((sum(lengths), hidden), np.float32)
    weight, bias = (
        ops.matrix(Tensor(rng.standard_normal((3 * hidden, hidden), np.float32), "float32")),
        rng.standard_normal(3 * hidden, np.float32),
    )
    whole, half = np.empty((len(x), 3 * hidden), np.float32), np.empty((len(x), 3 * hidden), np.uint16)
    ops.linear(x, weight, bias=bias, out=whole)
    ops.linear(x, weight, bias=bias, out=half)
    assert_array_equal(half, Tensor(whole, "float32").to("bfloat16").data)
    cu_seqlens = np.cumsum([0, *lengths], dtype=np.int32)
    outputs = [np.full_like(x, np.nan) for _ in range(2)]
    for qkv, out in zip((whole, half), outputs, strict=True):
        ops.attention(qkv, cu_seqlens, heads, out=out)
    assert_array_equal(*outputs)


@each_device
@pytest.mark.parametrize("hidden", [1, 3, 8, 17, 64, 100, 384, 770])
def test_norm(device, hidden):
    rng = np.random.default_rng(hidden)
    x = (rng.standard_normal((200, hidden)) * 2 + 3).astype(np.float32)
    norm = Norm(*rng.standard_normal((2, hidden)).astype(np.float32))
    exact = x.astype(np.float64)
    centred = exact - exact.mean(-1, keepdims=True)
    want = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * norm.weight + norm.bias
    whole = np.empty_like(x)
    fastinfer.backends.get(device, threads=1).norm(x, norm, 1e-5, out=whole)
    # Subtracting the mean from two close values cancels most digits of float32.
    assert_allclose(whole, want, rtol=1e-5, atol=2e-5 if hidden > 3 else 1e-3)
    for tokens, threads in ((1, 1), (2, 1), (63, 2), (64, 3), (200, 2), (200, 3)):
        part = x[:tokens].copy()
        fastinfer.backends.get(device, threads=threads).norm(part, norm, 1e-5, out=part)
        assert_array_equal(part, whole[:tokens])


@each_device
@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("hidden", [3, 24, 100])
def test_embed(device, stored, hidden):
    rng = np.random.default_rng(hidden)
    words, position, types = (rng.standard_normal((n, hidden), np.float32) for n in (50, 32, 2))
    words = Tensor(words, "float32").to(stored)
    ids = [rng.integers(0, 50, n).tolist() for n in (1, 32, 7, 15, 16)]
    kinds = [rng.integers(0, 2, len(row)).tolist() for row in ids]
    batch = fastinfer.PackedBatch.from_ids(ids, kinds)
    want = words.float32()[batch.ids].astype(np.float64) + position[batch.positions] + types[batch.token_types]
    outputs = []
    for threads in (1, 3):
        ops = fastinfer.backends.get(device, threads=threads)
        embedding = Embedding(ops.table(words), position, types, None, 1e-5)
        outputs.append(np.full((71, hidden), np.nan, np.float32))
        ops.embed(batch, embedding, out=outputs[-1])
        assert_allclose(outputs[-1], want, rtol=1e-5, atol=1e-6)
    assert_array_equal(*outputs)
