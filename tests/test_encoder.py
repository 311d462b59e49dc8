"""tools/training/encoder.py against the package, and its hand-written gradients against autograd of the plain definition."""

import dataclasses
import itertools

import builders
import numpy as np
import pytest
from models import load_tool

import fastinfer
from fastinfer import checkpoint
from fastinfer.config import FFF, Answer, Classify, Dense, Embed, FillMask, HeadLayer, Norm, Positions, Project, Stored, Tag, Tasks, Unit

torch = pytest.importorskip("torch", reason="tools/training needs PyTorch")
encoders, feedforward = load_tool("training.encoder"), load_tool("training.feedforward")

HEADS = Tasks(
    Embed("mean", True),
    FillMask(True),
    Classify(("a", "b", "c"), "softmax", "cls", (HeadLayer(7, "tanh"),)),
    Tag(("O", "B-x", "I-x")),
    Answer(),
)
CONFIGS = {
    "post, trees and always on": builders.tiny(
        layers=2, ffn=(FFF(3, 4, 5, bias_out=True), FFF(1, 6)), norm=Norm("post", 1e-12), tasks=HEADS
    ),
    "pre, sines, final norm": builders.tiny(
        ffn=(FFF(2, 3, bias_in=False),), positions=Positions("scaled-sinusoidal", 8), final_norm=True, attention_bias=False, tasks=HEADS
    ),
    "dense, token types": builders.tiny(ffn=(Dense(9),), token_types=2, embedding_norm=False, tasks=HEADS),
    "depth 0, untied, bare heads": builders.tiny(
        ffn=(FFF(6, 0, 3),), tasks=dataclasses.replace(HEADS, embed=Embed("lse", False), fill_mask=FillMask(False, False, False))
    ),
    "layers after pooling": builders.tiny(
        tasks=Tasks(Embed(("cls", "sqrtmean", "lasttoken"), True, (Unit(), Project(9, True, "relu"), Unit(), Project(5, False)), dim=3))
    ),
    "leaves": builders.tiny(
        layers=4,
        ffn=(
            FFF(2, 3, 5, bias_out=True, leaf=4, bias_leaf=True, activation="silu"),
            FFF(1, 2, leaf=3, silent=True, bias_in=False),
            FFF(2, 3, 2, activation="relu"),
            FFF(3, 0, leaf=2, activation="gelu_tanh"),
        ),
    ),
    "max pooling, wide": builders.tiny(ffn=(FFF(7, 2),), tasks=Tasks(Embed("max", True), classify=Classify(("x",), "identity", "mean"))),
}


def walk(x, nodes, b_in):
    """y (T, D) and the visited nodes (T, P, depth + 1) by the definition, token by token. Autograd follows the gathers."""
    depth = (nodes.shape[1] + 1).bit_length() - 2
    rows, paths = [], []
    for token in x:
        y, path = torch.zeros_like(token), []
        for tree, bias in zip(nodes, b_in, strict=True):
            n, at = 0, []
            for _ in range(depth + 1):
                z = token @ tree[n, 0] + bias[n]
                y = y + torch.nn.functional.gelu(z) * tree[n, 1]
                at.append(n)
                n = 2 * n + 1 + int(z > 0)
            path.append(at)
        rows.append(y)
        paths.append(path)
    return torch.stack(rows), torch.tensor(paths)


@pytest.mark.parametrize(("trees", "depth"), [(1, 5), (3, 2), (4, 0), (2, 1)])
def test_masked_form_agrees_with_the_walk(trees, depth):
    torch.manual_seed(trees * 10 + depth)
    config = builders.tiny(ffn=(FFF(trees, depth),))
    layer = feedforward.Feedforward(config, config.ffn[0]).double()
    with torch.no_grad():
        for p in (layer.nodes, layer.b_in):
            p.normal_()
    x = torch.randn(40, config.hidden, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(40, config.hidden, dtype=torch.float64)

    seen = []
    y = layer(x, seen)
    (y * weight).sum().backward()
    got = [t.grad.clone() for t in (x, layer.nodes, layer.b_in)]
    for t in (x, layer.nodes, layer.b_in):
        t.grad = None
    want, paths = walk(x, layer.nodes, layer.b_in)
    (want * weight).sum().backward()

    torch.testing.assert_close(y, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(seen[0][1].long() - 1, paths[..., -1])
    for mine, t in zip(got, (x, layer.nodes, layer.b_in), strict=True):
        torch.testing.assert_close(mine, t.grad, rtol=1e-12, atol=1e-12)
    assert got[1].abs().sum(-1).gt(0).any(-1).sum() > depth  # several nodes learn


@pytest.mark.parametrize(
    "ffn", [FFF(2, 3, leaf=4, bias_leaf=True), FFF(1, 2, leaf=3, silent=True), FFF(2, 2, activation="relu"), FFF(2, 0, leaf=5)], ids=str
)
def test_blocks_agree_with_the_walk(ffn):
    """The output and every gradient, token by token from the definition."""
    torch.manual_seed(ffn.depth)
    config = builders.tiny(ffn=(ffn,))
    layer = feedforward.Feedforward(config, ffn).double()
    weights = [p for p in (layer.nodes, layer.b_in, layer.b_leaf) if p is not None]
    with torch.no_grad():
        for p in weights:
            p.normal_()
    x = torch.randn(40, config.hidden, dtype=torch.float64, requires_grad=True)
    seen = []
    y = layer(x, seen)
    got = torch.autograd.grad(y.pow(2).sum(), [x, *weights], allow_unused=True)
    act, inner, rows, leaves = feedforward.ACTIVATIONS[ffn.activation or "gelu"], 2**ffn.depth - 1, [], []
    for token in x:
        total = torch.zeros_like(token)
        for p in range(ffn.trees):
            at = 0
            while at < inner:
                z = token @ layer.nodes[p, at, 0] + layer.b_in[p, at]
                if not ffn.silent:
                    total = total + act(z) * layer.nodes[p, at, 1]
                at = 2 * at + 1 + int(z > 0)
            leaves.append(at + 1)
            for n in range(inner + (at - inner) * ffn.leaf, inner + (at - inner + 1) * ffn.leaf):
                total = total + act(token @ layer.nodes[p, n, 0] + layer.b_in[p, n]) * layer.nodes[p, n, 1]
            if layer.b_leaf is not None:
                total = total + layer.b_leaf[p, at - inner]
        rows.append(total)
    want = torch.stack(rows)
    torch.testing.assert_close(y, want, rtol=1e-12, atol=1e-12)
    assert seen[0][1].flatten().tolist() == leaves
    assert seen[0][0].shape == (40, ffn.trees, 2 ** (ffn.depth + 1))
    if ffn.depth:
        first = x @ layer.nodes[:, 0, 0].T + layer.b_in[:, 0]
        torch.testing.assert_close(seen[0][0][..., 1], first)  # row n + 1 is node n, as balance() takes it
    for mine, theirs in zip(got, torch.autograd.grad(want.pow(2).sum(), [x, *weights]), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "ffn", [FFF(2, 3, leaf=4, bias_leaf=True), FFF(1, 2, leaf=3, silent=True), FFF(2, 2, activation="relu"), FFF(2, 0, leaf=5)], ids=str
)
def test_soft_decisions_take_both_ways(ffn):
    """The output is that of every path, each by the product of its shares; it is hard at temperature 0, in evaluation, and near both."""
    torch.manual_seed(ffn.depth)
    config = builders.tiny(ffn=(ffn,))
    layer = feedforward.Feedforward(config, ffn).double()
    for p in (layer.nodes, layer.b_in, layer.b_leaf):
        if p is not None:
            torch.nn.init.normal_(p)
    x = torch.randn(20, config.hidden, dtype=torch.float64)
    hard = layer(x)
    layer.soften(0.7)
    act, inner, rows = feedforward.ACTIVATIONS[ffn.activation or "gelu"], 2**ffn.depth - 1, []

    def below(token, p, at, share):
        def given(n):
            return share * act(token @ layer.nodes[p, n, 0] + layer.b_in[p, n]) * layer.nodes[p, n, 1]

        if at >= inner:
            block = range(inner + (at - inner) * ffn.leaf, inner + (at - inner + 1) * ffn.leaf)
            return sum(map(given, block)) + (0 if layer.b_leaf is None else share * layer.b_leaf[p, at - inner])
        right = torch.sigmoid((token @ layer.nodes[p, at, 0] + layer.b_in[p, at]) / 0.7)
        sides = below(token, p, 2 * at + 1, share * (1 - right)) + below(token, p, 2 * at + 2, share * right)
        return sides if ffn.silent else sides + given(at)

    for token in x:
        rows.append(sum(below(token, p, 0, 1.0) for p in range(ffn.trees)))
    torch.testing.assert_close(layer(x), torch.stack(rows), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer.eval()(x), hard)
    layer.train().soften(1e-6)
    torch.testing.assert_close(layer(x), hard)
    layer.soften(0)
    torch.testing.assert_close(layer(x), hard)


def test_balance_teaches_silent_nodes():
    torch.manual_seed(0)
    config = builders.tiny(ffn=(FFF(1, 3, leaf=2, silent=True),))
    layer, seen = feedforward.Feedforward(config, config.ffn[0]), []
    with torch.no_grad():
        layer.nodes.normal_(std=0.1)
        layer.b_in.fill_(2.0)  # every token goes right
    layer(torch.randn(64, config.hidden), seen)
    loss = layer.balance(*seen[0], None)
    loss.backward()
    assert loss > 0.2
    assert layer.nodes.grad[0, :7, 0].abs().sum(1).gt(0).sum() == 3, "those that tokens visit"
    assert not layer.nodes.grad[0, 7:].any()


@pytest.mark.parametrize("bias", [True, False])
def test_the_form_that_gathers_agrees_with_the_masked_one(bias, monkeypatch):
    torch.manual_seed(1)
    config = builders.tiny(ffn=(FFF(2, 8, 3, bias),))
    layer = feedforward.Feedforward(config, config.ffn[0]).double()
    x = torch.randn(50, config.hidden, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        for p in (layer.nodes, *([layer.b_in] if bias else [])):
            p.normal_()
    found, leaves, masked = [], [], feedforward.MaskedTrees.apply
    calls = []
    monkeypatch.setattr(feedforward.MaskedTrees, "apply", lambda *a: calls.append(1) or masked(*a))
    for seen in (None, feedforward.Leaves(), []):  # on a CPU, rows of deep trees are gathered, unless the caller wants logits
        y = layer(x, seen)
        weights = [x, *layer.dense_in.parameters(), layer.nodes, *([layer.b_in] if bias else [])]
        found.append([y, *torch.autograd.grad(y.pow(2).sum(), weights)])
        leaves.append(seen and seen[0][1])
    assert len(calls) == 1
    assert torch.equal(*leaves[1:])
    for one, other in itertools.product(found[:2], found[2:]):
        for mine, theirs in zip(one, other, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_gradients_pass_gradcheck_away_from_ties():
    torch.manual_seed(3)
    config = builders.tiny(hidden=4, heads=1, ffn=(FFF(2, 2),))
    layer = feedforward.Feedforward(config, config.ffn[0]).double()
    below = layer.below
    x, w_in, w_out = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((5, 4), (2, 8, 4), (2, 8, 4)))
    b_in = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    logits = feedforward.MaskedTrees.apply(x, w_in, b_in, w_out, below)[1]
    assert logits.abs().min() > 1e-4, "a tie: choose another seed"
    assert torch.autograd.gradcheck(lambda *a: feedforward.MaskedTrees.apply(*a, below)[:2], (x, w_in, b_in, w_out))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_forward_agrees_with_the_engine(config, tmp_path):
    torch.manual_seed(0)
    encoder = encoders.Encoder(config)
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    encoders.save(encoder, tmp_path)
    model = fastinfer.load(tmp_path, device="numpy")
    rows = builders.rows(config, seed=1)
    batch = fastinfer.PackedBatch.from_ids(rows)
    ids, mask = torch.zeros(len(rows), config.max_tokens, dtype=torch.long), torch.zeros(len(rows), config.max_tokens, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), True
    with torch.no_grad():
        states = encoder.eval()(ids, mask)
        last = states[-1]
        want = {"embed": encoder.embed(last, mask)}
        if config.tasks.classify:
            want["classify"] = encoder.classify(last, mask)
        if config.tasks.tag:
            want["tag"], want["answer"], want["fill_mask"] = encoder.tag(last), encoder.answer(last), encoder.fill_mask(last)

    layers = (*range(config.layers), -1)
    hidden = model.hidden_states(batch, layers=layers)
    for text in range(len(rows)):
        for layer in layers:
            mine = states[layer][text][mask[text]].numpy()
            np.testing.assert_allclose(mine, hidden[text][layers.index(layer)], atol=2e-5)
    np.testing.assert_allclose(want["embed"], model.embed(batch), atol=2e-5)
    # heads: the reference ops over the final states of the engine
    if config.tasks.classify:
        only = dataclasses.replace(config.tasks, embed=None, fill_mask=None, tag=None, answer=None)
        np.testing.assert_allclose(want["classify"], logits(encoder, only, tmp_path, batch), atol=2e-5)
    for task in ("tag", "fill_mask"):
        if getattr(config.tasks, task):
            only = Tasks(**{task: getattr(config.tasks, task)})
            found = logits(encoder, only, tmp_path, batch, positions="all")
            for text in range(len(rows)):
                np.testing.assert_allclose(want[task][text][mask[text]], found[text], atol=5e-5)


def logits(encoder, tasks, folder, batch, **options):
    """The engine's logits from a checkpoint that has only `tasks`."""
    config, weights = encoders.to_weights(encoder)
    config = dataclasses.replace(config, tasks=tasks)
    checkpoint.save(folder, config, {n: t for n, t in weights.items() if n in checkpoint.tensors(config)})
    return fastinfer.load(folder, device="numpy").logits(batch, **options)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_checkpoints_round_trip(tmp_path, dtype):
    config = builders.tiny(stored=Stored(dtype, dtype, dtype))
    written = builders.save(tmp_path / "a", config)
    encoder = encoders.load(tmp_path / "a")
    assert {n: tuple(p.shape) for n, p in encoder.named_parameters()} == {n: s.shape for n, s in checkpoint.tensors(encoder.config).items()}
    encoders.save(encoder, tmp_path / "b", stored=dtype)
    _, found = checkpoint.load(tmp_path / "b")
    for name, tensor in written.items():  # a second rounding changes nothing
        np.testing.assert_allclose(found[name].float32(), tensor.float32(), rtol=1e-6)


def test_state_names_are_the_formats():
    for config in CONFIGS.values():
        encoder = encoders.Encoder(config)
        spec = checkpoint.tensors(encoder.config)
        assert {n: tuple(p.shape) for n, p in encoder.state_dict().items()} == {n: s.shape for n, s in spec.items()}


def test_autocast_follows_its_own_route_in_bfloat16():
    torch.manual_seed(0)
    config = builders.tiny(ffn=(FFF(2, 5),))
    layer = feedforward.Feedforward(config, config.ffn[0])
    with torch.no_grad():
        layer.nodes.normal_()
        layer.b_in.normal_()
    x = torch.randn(64, config.hidden, requires_grad=True)
    exact, seen = [], []
    y32 = layer(x, exact)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x, seen)
    y.float().sum().backward()
    assert y.dtype == seen[0][0].dtype == torch.bfloat16
    assert layer.nodes.grad.dtype == x.grad.dtype == torch.float32
    same = (exact[0][1] == seen[0][1]).all(1)
    assert same.float().mean() > 0.8
    torch.testing.assert_close(y[same].float(), y32[same], atol=0.5, rtol=0.05)


def test_balance_measures_and_mends_a_one_sided_tree():
    torch.manual_seed(0)
    config = builders.tiny(ffn=(FFF(1, 3),))
    layer = feedforward.Feedforward(config, config.ffn[0])
    with torch.no_grad():
        layer.nodes.normal_(std=0.1)
        layer.b_in.fill_(2.0)  # every token goes right
    x = torch.randn(512, config.hidden)
    mask = torch.arange(512) < 400

    def measure():
        seen = []
        layer(x, seen)
        return layer.balance(*seen[0], mask), feedforward.usage(feedforward.leaf_counts(seen[0][1], 8, mask))

    before, used_before = measure()
    optimizer = torch.optim.Adam(layer.parameters(), 0.05)
    for _ in range(150):
        optimizer.zero_grad()
        measure()[0].backward()
        optimizer.step()
    after, used_after = measure()
    assert before > 0.2
    assert after < 0.02
    assert used_before.dead > 0.5
    assert used_after.dead == 0
    assert used_before.effective < 0.3 < 0.7 < used_after.effective


def test_usage_counts_what_the_engine_routes(tmp_path):
    config = builders.tiny(ffn=(FFF(3, 3),))
    builders.save(tmp_path, config)
    encoder, model = encoders.load(tmp_path), fastinfer.load(tmp_path, device="numpy")
    rows = builders.rows(config, seed=5, texts=12)
    counts = torch.zeros(3, 8, dtype=torch.long)
    for row in rows:
        seen = []
        encoder(torch.tensor([row]), seen=seen)
        counts += feedforward.leaf_counts(seen[0][1], 8)
    routes = np.concatenate([layers[0][0] for layers in model.routes(fastinfer.PackedBatch.from_ids(rows))])
    for tree in range(3):
        np.testing.assert_array_equal(counts[tree], np.bincount(routes[:, tree, -1] - 7, minlength=8))


def test_usage_of_known_spreads():
    even, one = feedforward.usage(torch.full((2, 8), 5)), feedforward.usage(torch.tensor([[7, 0, 0, 0]]))
    assert (even.effective, even.dead) == (pytest.approx(1), 0)
    assert (one.effective, one.dead) == (pytest.approx(0.25), 0.75)


@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler warns when it is imported and reads gradients
def test_compiled_form_agrees_with_the_eager_one():
    torch.manual_seed(0)
    config = builders.tiny(ffn=(FFF(2, 4, 3),), tasks=Tasks(Embed("mean", True)))
    encoder = encoders.Encoder(config)
    ids, mask = torch.randint(0, config.vocabulary, (5, 8)), torch.arange(8) < torch.tensor([[8], [3], [1], [8], [5]])
    plain = encoder.embed(encoder(ids, mask)[-1], mask)
    plain.sum().backward()
    want = {n: p.grad.clone() for n, p in encoder.named_parameters()}
    encoder.zero_grad()

    for layer in encoder.layers:
        layer.ffn.compile(dynamic=False)
    found = encoder.embed(encoder(ids, mask)[-1], mask)
    found.sum().backward()
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)
    for name, p in encoder.named_parameters():
        torch.testing.assert_close(p.grad, want[name], atol=1e-5, rtol=1e-4)


def test_pruned_trees_cannot_be_trained():
    with pytest.raises(fastinfer.ConfigError, match="pruned"):
        encoders.Encoder(builders.tiny(ffn=(FFF(2, 3, children=True, nodes=9),)))
