"""The training form of the published families: equal to the engine, whole in its gradients, exact from checkpoint to checkpoint."""

import dataclasses
import typing

import builders
import numpy as np
import pytest
from models import load_tool

import fastinfer
from fastinfer import activations, checkpoint
from fastinfer.config import (
    FFF,
    Alibi,
    Answer,
    Attention,
    Buckets,
    Classify,
    Dense,
    Disentangled,
    Embed,
    FillMask,
    Gated,
    HeadLayer,
    Norm,
    Positions,
    Stored,
    Tag,
    Tasks,
)

torch = pytest.importorskip("torch", reason="tools/training needs PyTorch")
encoders, feedforward, attention = (load_tool(f"training.{name}") for name in ("encoder", "feedforward", "attention"))

PLACES = 24
NOWHERE, POST = Positions("none", PLACES), Norm("post", 1e-12)
LOCAL, GLOBAL = Attention(theta=1e4, window=3), Attention(theta=16e4)
NORMED = (HeadLayer(7, "gelu", norm=True),)
HEADS = Tasks(
    Embed("mean", True),
    FillMask(True, activation="relu"),
    Classify(("a", "b", "c"), "softmax", "mean", (HeadLayer(8, "silu"), *NORMED)),
    Tag(("O", "B-x", "I-x"), layers=NORMED),
    Answer(NORMED),
)
SHAPES = {
    "trees": FFF(2, 3, bias_out=True),
    "a deep tree and always on": FFF(1, 7, 5, bias_out=True),
    "always on, no biases": FFF(3, 1, 6, bias_in=False),
}


def family(**changes):
    options = {"positions": NOWHERE, "max_tokens": PLACES, "norm": POST, "layers": 2, "tasks": HEADS} | changes
    return builders.tiny(**options | {"ffn": options["ffn"] * options["layers"]})


FAMILIES = {
    "MPNet": family(positions=Positions("learned", PLACES), distances=Buckets(8, 16), ffn=(Dense(9),)),
    "nomic": family(attention=(Attention(theta=1000.0),) * 2, activation="silu", ffn=(Gated(9),), attention_bias=False, token_types=2),
    "ModernBERT": family(
        layers=3,
        norm=Norm("pre", 1e-5, first=False),
        attention=(GLOBAL, LOCAL, LOCAL),
        ffn=(Gated(9),),
        final_norm=True,
        attention_bias=False,
    ),
    "gte": family(attention=(Attention(theta=500.0, scale=0.25),) * 2, ffn=(Gated(9, bias_out=True),), token_types=1),
    "jina-v2": family(hidden=24, heads=3, distances=Alibi(), ffn=(Gated(9, bias_out=True),), token_types=2),
    "MosaicBERT": family(distances=Alibi(), ffn=(Gated(9, bias_in=True, bias_out=True),), activation="gelu_tanh", token_types=2),
    "DeBERTa": family(distances=Disentangled(4, 12), ffn=(Dense(9),)),
    "ELECTRA-small": family(positions=Positions("learned", PLACES), embedding_width=6, ffn=(Dense(9),), token_types=2),
    "local ALiBi": family(distances=Alibi(), attention=(Attention(window=2),) * 2, ffn=(Dense(9),), activation="relu"),
    "local DeBERTa": family(distances=Disentangled(2, 6), attention=(Attention(window=4), Attention()), ffn=(Dense(9),)),
    "causal, RMSNorm, wide heads": family(
        norm=Norm("pre", 1e-6, kind="rms"),
        attention=(Attention(theta=1e4, causal=True), Attention(theta=1e4, causal=True, window=4)),
        head_size=12,
        head_norms=True,
        ffn=(Gated(9),),
        activation="silu",
        final_norm=True,
        attention_bias=False,
    ),
    "DeBERTa with wide heads": family(distances=Disentangled(4, 12), head_size=10, ffn=(Dense(9),)),
    "narrow sines": family(positions=Positions("scaled-sinusoidal", PLACES), embedding_width=10, ffn=(Dense(9),)),
}
each_family = pytest.mark.parametrize("name", FAMILIES)


def with_trees(config, shape):
    return dataclasses.replace(config, ffn=(SHAPES[shape],) * config.layers)


def random_encoder(config):
    """An Encoder whose weights are all random, in evaluation mode."""
    torch.manual_seed(0)
    encoder = encoders.Encoder(config).eval()
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return encoder


def texts(config, seed=1):
    """(rows of ids, rows of types, padded ids, padded types, mask): one text fills the batch, and one is a single token."""
    rng = np.random.default_rng(seed)
    lengths = [PLACES, 1, 9, 2]
    rows = [rng.integers(0, config.vocabulary, n).tolist() for n in lengths]
    types = [rng.integers(0, config.token_types, n).tolist() for n in lengths] if config.token_types else None

    def padded(values):
        return torch.tensor([row + [0] * (PLACES - len(row)) for row in values])

    mask = torch.arange(PLACES) < torch.tensor(lengths)[:, None]
    return rows, types, padded(rows), padded(types) if types else None, mask


def logits(encoder, states, mask):
    """{task: logits} of every head but embed, from the final hidden states."""
    made = {"fill_mask": encoder.fill_mask(states), "tag": encoder.tag(states), "answer": encoder.answer(states)}
    return made | {"classify": encoder.classify(states, mask)}


def close_to_the_engine(encoder, folder):
    config = encoder.config
    encoders.save(encoder, folder)
    model = fastinfer.load(folder, device="numpy")
    rows, types, ids, padded_types, mask = texts(config)
    batch = fastinfer.PackedBatch.from_ids(rows, types)
    with torch.no_grad():
        states = encoder(ids, mask, padded_types)
        vectors, answers = encoder.embed(states[-1], mask), logits(encoder, states[-1], mask)
        alone = encoder(ids[:1], None, None if types is None else padded_types[:1])[-1]
    layers = (*range(config.layers), -1)
    hidden = model.hidden_states(batch, layers=layers)
    for text, found in enumerate(hidden):
        for layer, want in zip(layers, found, strict=True):
            np.testing.assert_allclose(states[layer][text][mask[text]], want, atol=1e-4)
    np.testing.assert_allclose(alone[0], hidden[0][-1], atol=1e-4)
    np.testing.assert_allclose(vectors, model.embed(batch), atol=1e-4)
    for task, found in answers.items():
        for text, want in enumerate(model.logits(batch, task=task, positions="all")):
            mine = found[text] if task == "classify" else found[text][mask[text]]
            np.testing.assert_allclose(mine, want, rtol=1e-4, atol=1e-4)


@each_family
def test_the_training_form_computes_what_the_engine_computes(name, tmp_path):
    close_to_the_engine(random_encoder(FAMILIES[name]), tmp_path)


@each_family
@pytest.mark.parametrize("shape", SHAPES)
def test_it_does_so_with_fast_feedforwards(name, shape, tmp_path):
    close_to_the_engine(random_encoder(with_trees(FAMILIES[name], shape)), tmp_path)


@each_family
@pytest.mark.parametrize("trees", [False, True])
def test_gradients_of_every_parameter_are_the_slopes_of_the_loss(name, trees):
    config = with_trees(FAMILIES[name], "a deep tree and always on") if trees else FAMILIES[name]
    encoder = random_encoder(config).double()
    _, _, ids, types, mask = texts(config)

    def loss():
        states = encoder(ids, mask, types)[-1]
        heads = encoder.fill_mask(states), encoder.tag(states), encoder.answer(states), encoder.tasks.classify(states, 0.0)
        tokens = torch.cat([states, *heads], -1)[mask]
        return (tokens * torch.linspace(0, 99, tokens.numel(), dtype=tokens.dtype).view_as(tokens).sin()).sum()

    loss().backward()
    assert all(p.grad.norm() > 1e-6 for p in encoder.parameters()), [n for n, p in encoder.named_parameters() if p.grad.norm() <= 1e-6]
    values = list(encoder.parameters())
    directions = [torch.randn_like(p) / p.grad.norm() for p in values]  # so that each parameter has an equal part in the slope
    step = 1e-6
    with torch.no_grad():
        found = []
        for offset in (step, -2 * step):
            torch._foreach_add_(values, directions, alpha=offset)
            found.append(loss())
    along = sum((p.grad * d).sum() for p, d in zip(values, directions, strict=True))
    torch.testing.assert_close(along, (found[0] - found[1]) / (2 * step), rtol=1e-5, atol=1e-5)


@each_family
@pytest.mark.parametrize("trees", [False, True])
def test_a_checkpoint_keeps_its_bits_through_the_training_form(name, trees, tmp_path):
    config = with_trees(FAMILIES[name], "trees") if trees else FAMILIES[name]
    stored = Stored("bfloat16", "float16", "float32")
    written = builders.save(tmp_path / "a", dataclasses.replace(config, stored=stored))
    encoder = encoders.load(tmp_path / "a")
    assert {n: tuple(p.shape) for n, p in encoder.named_parameters()} == {n: s.shape for n, s in checkpoint.tensors(config).items()}
    encoders.save(encoder, tmp_path / "b", stored=stored)
    found_config, found = checkpoint.load(tmp_path / "b")
    assert found_config == dataclasses.replace(config, stored=stored)
    assert found.keys() == written.keys()
    for tensor, want in written.items():
        assert found[tensor].dtype == want.dtype
        np.testing.assert_array_equal(found[tensor].data, want.data)


@each_family
def test_fresh_weights_learn_in_bfloat16(name):
    """Autocast takes masks of floats, rotary angles and gates; what it computes is close to float32, and gradients are finite."""
    torch.manual_seed(0)
    config = with_trees(FAMILIES[name], "always on, no biases")
    encoder = encoders.Encoder(config)
    _, _, ids, types, mask = texts(config)
    exact = encoder(ids, mask, types)[-1]
    with torch.autocast("cpu", torch.bfloat16):
        states = encoder(ids, mask, types)[-1]
        made = [states, *logits(encoder, states, mask).values()]
    sum(x.float().pow(2).sum() for x in made).backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())
    difference = (states.float() - exact)[mask].norm(dim=-1) / exact[mask].norm(dim=-1)
    assert difference.median() < 0.05


def test_every_activation_has_a_trainable_form():
    x = np.linspace(-6, 6, 200, dtype=np.float32)
    assert feedforward.ACTIVATIONS.keys() == set(typing.get_args(activations.Activation))
    for name, function in feedforward.ACTIVATIONS.items():
        np.testing.assert_allclose(function(torch.from_numpy(x)), activations.ACTIVATIONS[name](x), atol=1e-6)


@pytest.mark.parametrize("window", [None, 1, 3, 50])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_every_query_sees_a_key(window, padded, causal):
    """A row of a mask without keys would be NaN in some of PyTorch's kernels, padding included."""
    mask = torch.arange(PLACES) < torch.tensor([[1], [20], [PLACES]]) if padded else None
    seen = attention.visible(mask, PLACES, window, causal, torch.device("cpu"))
    if seen is None:
        assert window is None
        assert not causal
        return
    seen = seen.expand(3, 1, PLACES, PLACES)[:, 0]
    assert seen.any(-1).all()
    for text, i, j in np.ndindex(*seen.shape):
        if mask is None or mask[text, i]:
            near = (window is None or abs(i - j) <= window) and not (causal and j > i)
            assert seen[text, i, j] == ((mask is None or bool(mask[text, j])) and near)


def test_layers_with_equal_angles_share_one_table():
    layers = encoders.Encoder(FAMILIES["ModernBERT"]).layers
    assert layers[1].attention.rotary is layers[2].attention.rotary is not layers[0].attention.rotary


# --- what is refused -------------------------------------------------------------------------------


def test_longer_rows_than_positions_are_refused():
    for name in ("MPNet", "nomic", "DeBERTa", "jina-v2"):
        with pytest.raises(fastinfer.InputError, match=f"rows of {PLACES + 1} tokens, expected at most positions.max={PLACES}"):
            encoders.Encoder(FAMILIES[name])(torch.zeros(1, PLACES + 1, dtype=torch.long))


def test_kinds_of_feedforwards_that_the_training_form_lacks_are_refused():
    @dataclasses.dataclass(frozen=True)
    class Squared(Dense):
        kind: str = "squared"

    with pytest.raises(fastinfer.ConfigError, match="'squared', which cannot be trained"):
        encoders.Encoder(dataclasses.replace(FAMILIES["MPNet"], ffn=(Squared(4),) * 2))


def test_tensors_that_the_training_form_lacks_are_refused(monkeypatch):
    known = checkpoint.tensors
    added = {"layers.0.attention.sinks": checkpoint.Spec((2,), "float32", "vector")}
    monkeypatch.setattr(encoders.checkpoint, "tensors", lambda config: known(config) | added)
    with pytest.raises(fastinfer.ConfigError, match=r"no layers\.0\.attention\.sinks, .*cannot be trained"):
        encoders.Encoder(FAMILIES["MPNet"])
