"""Edge cases of every method: no text, texts of one token, layers named twice, rows of zeros, shortened trees."""

import backends
import builders
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from test_golden import GOLDEN

import fastinfer
from fastinfer import PackedBatch, checkpoint
from fastinfer.checkpoint import Tensor
from fastinfer.config import FFF, Dense, Stored

each_device = pytest.mark.parametrize("device", backends.ALL)
NOTHING = {
    "embed": lambda model, none: model.embed(none),
    "embed_iter": lambda model, none: list(model.embed_iter(none)),
    "classify": lambda model, none: model.classify(none),
    "hidden_states": lambda model, none: model.hidden_states(none, layers=(0, -1)),
    "logits of classes": lambda model, none: model.logits(none, task="classify"),
    "logits of tags": lambda model, none: model.logits(none, task="tag"),
    "logits of answers": lambda model, none: model.logits(none, task="answer"),
    "logits of masks": lambda model, none: model.logits(none, task="fill_mask"),
    "logits of all tokens": lambda model, none: model.logits(none, task="fill_mask", positions="all"),
    "routes": lambda model, none: model.routes(none),
}
OF_TEXT = {
    "fill_mask": lambda model: model.fill_mask([]),
    "tag": lambda model: model.tag([]),
    "answer": lambda model: model.answer([], []),
    "rank": lambda model: model.rank("ada", []),
}


@each_device
@pytest.mark.parametrize("what", [*NOTHING, *OF_TEXT])
def test_no_text_gives_no_answer(random_model, device, what):
    model = fastinfer.load(random_model, device=device)
    if what in OF_TEXT:
        assert OF_TEXT[what](model) == []
        return
    for none in ([], PackedBatch.from_ids([])):
        got = NOTHING[what](model, none)
        assert len(got) == 0
        assert what != "embed" or (got.shape == (0, model.config.hidden) and got.dtype == np.float32)


@each_device
@pytest.mark.parametrize("kind", ["fff-float32", "children-float32", "fff-always-on-float32", "dense-float32"])
def test_any_cut_and_team_gives_the_same(device, kind):
    """This covers texts of one token and of many, batches of one token, and more threads than texts."""
    model = fastinfer.load(GOLDEN / "format-1" / kind, device=device)
    batch = PackedBatch.from_ids([[3], [4, 5], [6], [7] * 8, [8]])
    want = model.hidden_states(batch, layers=(0, 1, 2, -1)), model.embed(batch), model.routes(batch)
    for batch_tokens in (1, 2, 9, np.int64(10**6)):
        for threads in (1, 2, 64):
            on = {"batch_tokens": batch_tokens, "threads": threads}
            states, vectors, routes = (
                model.hidden_states(batch, layers=(0, 1, 2, -1), **on),
                model.embed(batch, **on),
                model.routes(batch, **on),
            )
            assert_allclose(vectors, want[1], atol=1e-5)
            for a, b in zip(states, want[0], strict=True):
                for one, other in zip(a, b, strict=True):
                    assert_allclose(one, other, atol=1e-5)
            for a, b in zip(routes, want[2], strict=True):
                assert all(one is other is None or np.array_equal(one[0], other[0]) for one, other in zip(a, b, strict=True))


@each_device
def test_layers_in_any_order_and_twice(random_model, device):
    model = fastinfer.load(random_model, device=device)
    batch = PackedBatch.from_ids([[5, 6, 7], [8], [9, 5]])
    layers = (1, -1, 0, 1, -1, np.int64(0))
    alone = {i: model.hidden_states(batch, layers=(i,)) for i in (-1, 0, 1)}
    got = model.hidden_states(batch, layers=layers)
    for text, states in enumerate(got):
        for i, state in zip(layers, states, strict=True):
            assert_allclose(state, alone[int(i)][text], rtol=1e-6, atol=1e-6)
    before = [state.copy() for state in got[0]]
    got[0][0][:] = 7
    for state, kept in zip(got[0][1:], before[1:], strict=True):
        assert_array_equal(state, kept, err_msg="to write into one array changes no other")


@each_device
@pytest.mark.parametrize("kind", ["fff-float32", "children-float32"])
def test_trees_cut_short_and_not(device, kind):
    """Shortened paths are the beginnings of the full ones. A max_depth beyond the trees' depth changes nothing."""
    folder, batch = GOLDEN / "format-1" / kind, PackedBatch.from_ids([[3, 9, 4], [4], [6, 7]])
    whole = fastinfer.load(folder, device=device)
    routes, states = whole.routes(batch), whole.hidden_states(batch)
    for depth in (0, 1, 2, 3, 4, 99, 10**9):
        cut = fastinfer.load(folder, device=device, max_depth=depth)
        got = cut.routes(batch)
        for text, full in zip(got, routes, strict=True):
            for ffn, a, b in zip(whole.config.ffn, text, full, strict=True):
                if b is not None:
                    assert a[0].shape[-1] == min(depth, ffn.depth) + 1
            assert_array_equal(text[0][0], full[0][0][..., : text[0][0].shape[-1]])
        if depth >= max(f.depth for f in whole.config.ffn if isinstance(f, FFF)):
            for a, b in zip(cut.hidden_states(batch), states, strict=True):
                if device == "cuda":  # each load there chooses its products by timing
                    assert_allclose(a, b, rtol=1e-5, atol=1e-5)
                else:
                    assert_array_equal(a, b)


@pytest.mark.parametrize("device", backends.COMPILED)
@pytest.mark.parametrize("stored", ["float32", "int8"])
def test_rows_of_zeros_in_int8(tmp_path, device, stored):
    """Rows whose scale would be 0 stay zeros, and nothing is divided by 0."""
    config = builders.tiny(layers=2, ffn=(Dense(30), Dense(7)), stored=Stored(stored, stored, stored))
    made = builders.weights(config)
    for name, tensor in made.items():
        if tensor.data.ndim > 1:
            values = tensor.float32().copy()
            values.reshape(-1, values.shape[-1])[::2] = 0
            made[name] = Tensor(values, "float32").to(tensor.dtype)
    checkpoint.save(tmp_path, config, made)
    batch = PackedBatch.from_ids([[0], [2, 3, 0, 1], [5] * 8])
    want = fastinfer.load(tmp_path, device="numpy").hidden_states(batch)
    got = fastinfer.load(tmp_path, device=device, dtype="int8").hidden_states(batch)
    for a, b in zip(got, want, strict=True):
        assert np.abs(a - b).max() < 0.1
    zeros, x = np.zeros((2, 7, 16), np.float32), np.ones((3, 16), np.float32)
    layer = fastinfer.FFF(zeros, None, zeros, depth=2, device=device, dtype="int8")
    assert_array_equal(layer(x), 0)
    assert_array_equal(layer.routes(x)[0], np.broadcast_to([0, 1, 3], (3, 2, 3)))


@pytest.mark.parametrize(("dtype", "value", "instead"), [("float16", 7e4, "bfloat16"), ("bfloat16", 3.4e38, "float32")])
def test_a_weight_that_would_round_to_infinity_is_refused(dtype, value, instead):
    most = {"float16": 65504, "bfloat16": 3.3895313892515355e38}[dtype]
    for sign in (1, -1):
        with pytest.raises(fastinfer.CheckpointError, match=rf"does not fit into {dtype} \(at most .*\): use {instead}"):
            Tensor(np.array([[1, sign * value]], np.float32), "float32").to(dtype)
        kept = np.array([[sign * most, np.inf, -np.inf, np.nan]], np.float32)
        assert_array_equal(Tensor(kept, "float32").to(dtype).float32(), kept)


def test_a_layer_in_bfloat16_names_a_weight_beyond_it():
    w = np.zeros((1, 1, 8), np.float32)
    w[0, 0, 3] = 3.4e38
    with pytest.raises(fastinfer.CheckpointError, match=r"magnitude 3\.4e\+38 does not fit into bfloat16 .*: use float32"):
        fastinfer.FFF(w, None, w, depth=0, dtype="bfloat16")
