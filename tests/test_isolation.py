"""NaN and infinity in one text never change a bit of another text of the batch, in every op and model, ISA, dtype and number of threads."""

import functools
import itertools

import backends
import builders
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from test_attention import attend
from test_fff import prune

import fastinfer
from fastinfer import PackedBatch, checkpoint
from fastinfer.checkpoint import Tensor
from fastinfer.config import FFF, Answer, Classify, Dense, Embed, FillMask, HeadLayer, Norm, Positions, Tag, Tasks

# Short texts share tiles of tokens, and long ones fill several. A poisoned text is first, last or between.
LENGTHS = (3, 1, 70, 2, 17, 40, 1, 33, 8, 5)
BOUNDS = list(itertools.pairwise(np.cumsum([0, *LENGTHS])))
POISONS = {"nan": np.nan, "inf": -np.inf}
ON = [("numpy", "float32", "own"), *((device, dtype, "own") for device in backends.COMPILED for dtype in backends.DTYPES)]
ON += [("cpu", "float32", "openmp")]

each_backend = pytest.mark.parametrize(("device", "dtype", "team"), ON, indirect=["team"])


def others_stay(run, arrays, poison, every=1):
    """Assert that poisoning a text in `arrays` (T, ...) changes no bit of other texts' rows in the outputs of run()."""
    want = [a.copy() for a in run()]
    for (begin, end), place in zip(BOUNDS, itertools.cycle(["all", "first", "last", "one"])):
        token = {"first": begin, "last": end - 1, "one": (begin + end) // 2}.get(place)
        part = np.s_[begin:end] if token is None else np.s_[token : token + 1]
        kept = [a[part].copy() for a in arrays]
        for a in arrays:
            a[part, ... if token is None else np.s_[::every]] = poison
        for got, before in zip(run(), want, strict=True):
            got = np.delete(got, np.s_[begin:end], 0)
            assert_array_equal(got, np.delete(before, np.s_[begin:end], 0), err_msg=f"text {begin}:{end}, {place}")
            assert np.isfinite(got).all()
        for a, before in zip(arrays, kept, strict=True):
            a[part] = before


@pytest.fixture(autouse=True)
def quiet():
    with np.errstate(all="ignore"):
        yield


@each_backend
@pytest.mark.parametrize(("heads", "size"), [(3, 8), (1, 16), (2, 24), (2, 32), (1, 40), (2, 64), (1, 72), (1, 128)])
def test_attention(device, dtype, team, heads, size):
    qkv = np.random.default_rng(size).standard_normal((sum(LENGTHS), 3 * heads * size), np.float32)
    for threads, poison in enumerate(POISONS.values(), 1):
        ops = fastinfer.backends.get(device, dtype=dtype, threads=threads)
        others_stay(lambda ops=ops: [attend(ops, qkv, LENGTHS, heads)], [qkv], poison, every=7)


@each_backend
def test_linear(device, dtype, team):
    rng = np.random.default_rng(1)
    x, weight, residual = (rng.standard_normal(s, np.float32) for s in ((sum(LENGTHS), 50), (70, 50), (sum(LENGTHS), 70)))
    for threads, poison in enumerate(POISONS.values(), 1):
        ops, out = fastinfer.backends.get(device, dtype=dtype, threads=threads), np.empty((len(x), 70), np.float32)
        matrix = ops.matrix(Tensor(weight, "float32"))
        for activation in (None, "gelu"):

            def run(ops=ops, matrix=matrix, activation=activation, out=out):
                ops.linear(x, matrix, activation=activation, residual=residual, out=out)
                return [out]

            others_stay(run, [x, residual], poison, every=9)


@each_backend
@pytest.mark.parametrize("shape", [(1, 7), (3, 4), (64, 2), (300, 0), "pruned"], ids=str)
def test_fff(device, dtype, team, shape):
    """The trees are deep, many and small, or pruned. All tokens go through the first nodes together."""
    rng = np.random.default_rng(2)
    (trees, depth), children = ((2, 6), []) if shape == "pruned" else (shape, None)
    count = 2 ** (depth + 1) - 1
    if shape == "pruned":
        tables = [prune(depth, rng) for _ in range(trees)]
        count = max(map(len, tables))
        children = np.full((trees, count, 2), -1, np.int32)
        for p, table in enumerate(tables):
            children[p, : len(table)] = table
    x = rng.standard_normal((sum(LENGTHS), 36), np.float32)
    rows, b_in = rng.standard_normal((trees, count, 2, 36), np.float32), rng.standard_normal((trees, count), np.float32)
    nodes, out = np.empty((len(x), trees, depth + 1), np.int32), np.empty_like(x)
    z = np.empty(nodes.shape, np.float32)
    for threads, poison in enumerate(POISONS.values(), 1):
        ops = fastinfer.backends.get(device, dtype=dtype, threads=threads)
        prepared = ops.trees(Tensor(rows, "float32"), b_in, children, depth)

        def run(ops=ops, prepared=prepared):
            ops.fff(x, prepared, residual=x, out=out, nodes=nodes, z=z)
            return [out, nodes, z]

        others_stay(run, [x], poison, every=5)


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)
@pytest.mark.parametrize("kind", ["mean", "max", "cls", "lse"])
def test_pool(poison, kind):
    x = np.random.default_rng(3).standard_normal((sum(LENGTHS), 20), np.float32)
    out, cu = np.empty((len(LENGTHS), 20), np.float32), np.cumsum([0, *LENGTHS], dtype=np.int32)
    for device in ("numpy", *backends.COMPILED):
        ops = fastinfer.backends.get(device)

        def run(ops=ops):
            ops.pool(x, cu, kind, out=out)
            return [np.repeat(out, LENGTHS, 0)]

        others_stay(run, [x], poison)


# --- models ---

VOCABULARY = 60
BAD = dict(zip(range(VOCABULARY - 3, VOCABULARY), (np.nan, np.inf, -np.inf), strict=True))  # tokens whose embedding is not finite
FEEDFORWARDS = {
    "dense": (Dense(100), Dense(40)),
    "deep": (FFF(1, 8), FFF(2, 5)),
    "wide": (FFF(64, 2), FFF(70, 0)),
    "mixed": (FFF(3, 4, dense=40, bias_out=True), FFF(2, 6, children=True, nodes=60)),
}
TASKS = Tasks(
    Embed("mean", True),
    FillMask(True, tied=False),
    Classify(("a", "b", "c"), "softmax", "lse", (HeadLayer(40, "tanh"),)),
    Tag(("O", "B-x", "I-x")),
    Answer(),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    @functools.cache
    def make(kind):
        config = builders.tiny(
            hidden=48, heads=2, layers=2, ffn=FEEDFORWARDS[kind], vocabulary=VOCABULARY, positions=Positions("learned", 70), max_tokens=70,
            norm=Norm("pre" if kind in ("deep", "mixed") else "post", 1e-12), embedding_norm=kind == "wide", tasks=TASKS,
        )  # fmt: skip
        made = builders.weights(config)
        for token, poison in BAD.items():
            made["embedding.word"].data[token] = poison
        folder = tmp_path_factory.mktemp(kind)
        checkpoint.save(folder, config, made)
        return folder

    return make


def asked(model, batch, **on):
    """Per text, all answers of a model."""
    said = [
        model.hidden_states(batch, layers=(0, 1, 2, -1), **on),
        [[a for layer in text if layer is not None for a in layer] for text in model.routes(batch, **on)],
        [[v] for v in model.embed(batch, **on)],
        [[v] for v in model.logits(batch, task="classify", **on)],
        *([[v] for v in model.logits(batch, task=task, positions="all", **on)] for task in ("tag", "answer", "fill_mask")),
    ]
    return [[a for part in parts for a in part] for parts in zip(*said, strict=True)]


@pytest.mark.parametrize(
    ("kind", "device", "dtype", "team"),
    [(kind, *on) for kind in FEEDFORWARDS for on in ON if "openmp" not in on] + [("mixed", *ON[-1])],
    indirect=["team"],
)
def test_a_text_of_a_model(folders, kind, device, dtype, team):
    """A token of one text gets an embedding of NaN or infinity. Its answers are not all finite; others do not change."""
    model = fastinfer.load(folders(kind), device=device, dtype=dtype, validate=False)
    rng = np.random.default_rng(4)
    rows = [rng.integers(0, min(BAD), length).tolist() for length in LENGTHS]
    want = {n: asked(model, PackedBatch.from_ids(rows), threads=1, batch_tokens=n) for n in (60, 2048)}
    ways = ((1, 2048), (2, 60)) if device != "numpy" else ((1, 2048),)
    for (text, length), token in zip(list(enumerate(LENGTHS))[:: 1 if device != "numpy" else 4], itertools.cycle(BAD)):
        ids = [list(row) for row in rows]
        ids[text][rng.integers(length)] = token
        for threads, limit in ways:
            got = asked(model, PackedBatch.from_ids(ids), threads=threads, batch_tokens=limit)
            assert not all(np.isfinite(a).all() for a in got[text]), "the poisoned text gives no numbers that look right"
            for i in set(range(len(LENGTHS))) - {text}:
                for a, b in zip(got[i], want[limit][i], strict=True):
                    assert_array_equal(a, b, err_msg=f"text {i} beside text {text}")
