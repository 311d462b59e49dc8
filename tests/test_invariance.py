"""The answer for a text does not depend on the batch it is in, its order or the number of threads: bitwise, per ISA and dtype."""

import copy
import dataclasses
import functools
import itertools
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import backends
import builders
import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

import fastinfer
from fastinfer import PackedBatch
from fastinfer.backends import cpu, query
from fastinfer.batch import cut
from fastinfer.config import FFF, Classify, Dense, Embed, FillMask, HeadLayer, Norm, Positions, Tag, Tasks
from fastinfer.workspace import Workspace

LENGTHS = (1, 2, 7, 40, 3, 16, 61, 5, 33, 12, 1, 25)
FEEDFORWARDS = {
    "dense": (Dense(200), Dense(75)),
    "fff": (FFF(1, 9), FFF(2, 5)),
    "wide": (FFF(40, 2), FFF(70, 0)),
    "heads of 12": (FFF(1, 5),),
    "leaves": (
        FFF(1, 3, dense=20, leaf=20, bias_out=True),
        FFF(2, 2, leaf=7, silent=True, bias_leaf=True, activation="silu"),
        FFF(2, 3, leaf=5, children=True, nodes=5, leaves=6),
        FFF(3, 0, leaf=9),
    ),
    "mixed": (FFF(3, 4, dense=40, bias_out=True), Dense(50), FFF(2, 6, children=True, nodes=60)),
}
PRE = {"norm": Norm("pre", 1e-6), "final_norm": True, "positions": Positions("scaled-sinusoidal", 64)}
POST = {"norm": Norm("post", 1e-12), "final_norm": False, "positions": Positions("learned", 64)}
TASKS = Tasks(
    Embed("mean", True), FillMask(True), Classify(("a", "b", "c"), "softmax", "lse", (HeadLayer(40, "tanh"),)), Tag(("O", "B-x", "I-x"))
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """make(kind) -> a folder with a random model whose feedforwards are of that kind."""

    @functools.cache
    def make(kind):
        layers = FEEDFORWARDS[kind]
        config = builders.tiny(
            hidden=48,
            heads=4 if kind == "heads of 12" else 2,  # of size 24: a multiple of 8, but not of a vector's 16
            layers=len(layers),
            ffn=layers,
            vocabulary=70,
            max_tokens=64,
            token_types=2,
            tasks=TASKS,
            **(PRE if kind in ("fff", "mixed") else POST),
        )
        folder = tmp_path_factory.mktemp(kind)
        builders.save(folder, config)
        return folder

    return make


def texts():
    """(ids, token types) of random texts."""
    rng = np.random.default_rng(0)
    return [rng.integers(1, 70, length).tolist() for length in LENGTHS], [rng.integers(0, 2, length).tolist() for length in LENGTHS]


def batches(most):
    """(indices of texts, threads up to `most`): in order, reversed, shuffled, some twice, and each alone."""
    everything = list(range(len(LENGTHS)))
    shuffled = np.random.default_rng(1).permutation(everything).tolist()
    yield from itertools.product([everything, everything[::-1], shuffled, [3, 3, 6, 0, 3]], range(1, most + 1))
    yield from (([i], most) for i in everything)


# Calls of a model. Each gives, per text, an array, a tuple of arrays or a list of (label, score).
ASKS = {
    "final states": lambda model, batch, **on: model.hidden_states(batch, **on),
    "hidden states": lambda model, batch, **on: model.hidden_states(batch, layers=(*range(len(model.config.ffn) + 1), -1), **on),
    "embedding": lambda model, batch, **on: model.embed(batch, **on),
    "class logits": lambda model, batch, **on: model.logits(batch, task="classify", **on),
    "classes": lambda model, batch, **on: model.classify(batch, **on),
    "tag logits": lambda model, batch, **on: model.logits(batch, task="tag", **on),
    "mask logits": lambda model, batch, **on: model.logits(batch, task="fill_mask", positions="all", **on),
}


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True)) if isinstance(a, tuple) else np.array_equal(a, b)


@pytest.mark.parametrize("device", backends.WITH_VNNI)
@pytest.mark.parametrize("dtype", backends.DTYPES)
@pytest.mark.parametrize("kind", FEEDFORWARDS)
def test_a_text_is_bitwise_the_same_in_any_batch_order_and_team(folders, kind, device, dtype):
    check(fastinfer.load(folders(kind), device=device, dtype=dtype), 3)


@pytest.mark.parametrize("team", ["openmp"], indirect=True)
@pytest.mark.parametrize(("kind", "dtype"), list(zip(FEEDFORWARDS, itertools.cycle(backends.DTYPES))))
def test_a_text_is_bitwise_the_same_on_threads_of_openmp(folders, team, kind, dtype):
    """Two threads at most: three on two CPUs would wait for each other."""
    check(fastinfer.load(folders(kind), device="cpu", dtype=dtype), 2)


@pytest.mark.parametrize("device", backends.WITH_VNNI)
@pytest.mark.parametrize("kind", FEEDFORWARDS)
def test_a_text_is_bitwise_the_same_in_any_part_of_a_batch(folders, kind, device, monkeypatch):
    monkeypatch.setattr(cpu, "PART_TOKENS", 30)
    monkeypatch.setattr(cpu, "UNEVEN", 3)
    assert len(cpu.parts_of(np.cumsum([0, *LENGTHS]), 3, 30)) == 7
    for dtype in backends.DTYPES:
        check(fastinfer.load(folders(kind), device=device, dtype=dtype), 3)


@settings(max_examples=200, deadline=None)
@given(config=builders.configs(head_size=8), dtype=st.sampled_from(backends.DTYPES), threads=st.integers(1, 3), data=st.data())
def test_a_part_of_a_batch_gives_what_a_team_gives(config, dtype, threads, data):
    """All that a forward pass may have, with states after each layer alone left out: these are never computed in parts."""
    rows = builders.rows(config, seed=1, texts=data.draw(st.integers(2, 9)))
    batch = PackedBatch.from_ids(rows)
    if not any(attention.window or attention.causal for attention in config.attention) and data.draw(st.booleans()):
        batch = dataclasses.replace(batch, keys=np.array([data.draw(st.integers(1, len(row))) for row in rows], np.int32))
    ops, found = fastinfer.backends.get("cpu", threads=threads, dtype=dtype), []
    weights = ops.prepare(config, builders.weights(config))
    for tokens in (1 << 30, 3):
        with mock.patch.multiple(cpu, PART_TOKENS=tokens, UNEVEN=100):
            parts = cpu.parts_of(batch.cu_seqlens, threads, tokens)
            routes = [
                (np.zeros(shape, np.int32), np.zeros(shape, np.float32)) if isinstance(ffn, FFF) else None
                for ffn in config.ffn
                for shape in [(len(batch.ids), getattr(ffn, "trees", 0), getattr(ffn, "depth", 0) + 1)]
            ]
            found.append([np.array(ops.encode(weights, batch, Workspace(), routes=routes)), *(a for pair in routes if pair for a in pair)])
    assert same(*map(tuple, found))
    event(f"{0 if parts is None else len(parts) - 1} parts")


@settings(max_examples=200, deadline=None)
@given(config=builders.configs(head_size=8), dtype=st.sampled_from(backends.DTYPES), threads=st.integers(1, 3), data=st.data())
def test_ops_that_were_collected_for_other_texts_give_the_same(config, dtype, threads, data):
    ops = fastinfer.backends.get("cpu", threads=threads, dtype=dtype)
    weights = ops.prepare(config, builders.weights(config))
    for seed in range(4):
        rows = builders.rows(config, seed=seed, texts=data.draw(st.integers(1, 9)))
        types = data.draw(st.none() | st.just([[1 % max(config.token_types, 1)] * len(row) for row in rows]))
        batch = PackedBatch.from_ids(rows, types)
        work = ops.workspace()
        got = np.array(ops.encode(weights, batch, work))
        work.close()
        assert same(got, ops.encode(weights, batch, Workspace()))
        event(f"collected before: {ops.spare is not None and query.serves(weights, batch)}")


@pytest.mark.parametrize("what", ASKS)
def test_an_answer_stays_as_it_is_when_others_are_asked_for(folders, what):
    model = fastinfer.load(folders("mixed"), device="cpu")
    first, second = (PackedBatch.from_ids([row]) for row in texts()[0][2:4])
    answer = ASKS[what](model, first)[0]
    kept = copy.deepcopy(answer)
    ASKS[what](model, second)
    assert same(answer, kept)


def test_callers_at_the_same_time_get_the_answers_of_each_alone(folders):
    model = fastinfer.load(folders("mixed"), device="cpu")
    alone = [model.embed(PackedBatch.from_ids([row])) for row in texts()[0]]

    def ask(i):
        return np.concatenate([model.embed(PackedBatch.from_ids([texts()[0][i]])) for _ in range(50)])

    with ThreadPoolExecutor(len(LENGTHS)) as pool:
        for want, got in zip(alone, pool.map(ask, range(len(LENGTHS))), strict=True):
            assert (got == want).all()


def test_collected_ops_serve_the_next_call_of_their_weights_until_they_are_released():
    ops, config = fastinfer.backends.get("cpu", threads=2), builders.tiny()
    mine, others = (ops.prepare(config, builders.weights(config)) for _ in range(2))
    batch, spares = PackedBatch.from_ids([[1, 2, 3]]), []
    for weights, asked in ((mine, ops), (mine, ops), (others, ops), (mine, ops.using(1))):
        work = asked.workspace()
        asked.encode(weights, batch, work)
        assert asked.spare is None, "no other call may take it now"
        work.close()
        spares.append(asked.spare)
    assert spares[0] is spares[1]
    assert spares[1] is not spares[2]
    ops.release()
    assert ops.spare is None
    assert ops.using(1).spare is None


def test_parts_have_all_texts_and_nearly_equal_sizes():
    rng = np.random.default_rng(0)
    for threads, most in itertools.product((1, 2, 3, 8), (2, 60, 150)):
        lengths = np.sort(rng.integers(1, most, 9000))[::-1]
        for some in cut(lengths, 2048):
            cu_seqlens = np.cumsum([0, *lengths[some]])
            parts = cpu.parts_of(cu_seqlens, threads, 256)
            if parts is None and (cu_seqlens[-1] < 1536 or most > 0.1 * cu_seqlens[-1] / threads):  # few tokens, or long texts
                continue
            assert (parts[0], parts[-1]) == (0, len(some))
            assert (len(parts) - 1) % threads == 0
            sizes = np.diff(cu_seqlens[parts])
            assert sizes.min() > 0
            assert sizes.max() * len(sizes) <= 1.2 * sizes.sum()
    assert [len(cpu.parts_of(np.cumsum([0] + [400] * n), 2, 256)) - 1 for n in (4, 5, 6)] == [4, 2, 6]
    for lengths in ([100], [40] * 6, [512] * 3, [3000, *[1] * 900]):
        assert cpu.parts_of(np.cumsum([0, *lengths]), 2, 256) is None


def check(model, most):
    """Assert that batches of texts, on up to `most` threads, give the bits of each text alone on one thread."""
    rows, types = texts()

    def batch(which):
        return PackedBatch.from_ids([rows[i] for i in which], [types[i] for i in which])

    different = set()
    for what, ask in ASKS.items():
        alone = [ask(model, batch([i]), threads=1)[0] for i in range(len(rows))]
        for which, threads in batches(most):
            for i, got in zip(which, ask(model, batch(which), threads=threads), strict=True):
                if not same(got, alone[i]):
                    different.add((what, f"text {i} in {which} with {threads} threads"))
    assert not different
    final, tapped = (ASKS[what](model, batch(range(len(rows)))) for what in ("final states", "hidden states"))
    assert all(same(a, b[-1]) for a, b in zip(final, tapped, strict=True)), "to be asked for the layers between changes nothing"
