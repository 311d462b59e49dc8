"""A head and a feedforward that this package does not have, added from outside."""

from __future__ import annotations

import dataclasses
from math import erf
from types import SimpleNamespace

import builders
import numpy as np
import pytest

import fastinfer
from fastinfer import checkpoint, feedforward, heads
from fastinfer.checkpoint import Tensor
from fastinfer.config import Dense, Norm, Tasks
from fastinfer.heads import common
from fastinfer.run import Replica


@dataclasses.dataclass(frozen=True)
class Difficulty:
    """How hard a text is to read, one number per token's largest value."""

    labels: tuple[str, ...] = ("difficulty",)


@dataclasses.dataclass(frozen=True)
class MoreTasks(Tasks):
    difficulty: Difficulty | None = None


def forward(ops, x, batch, head, weights):
    return common.linear(ops, common.pool(ops, x, batch, "max"), weights.tasks, "difficulty.out")


@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_a_head_from_outside(device, monkeypatch):
    head = SimpleNamespace(LOGITS="text", tensors=lambda head, config: common.linear_tensors("out", 1, config.hidden), forward=forward)
    monkeypatch.setitem(heads.HEADS, "difficulty", head)
    config = builders.tiny(tasks=MoreTasks(difficulty=Difficulty()))
    stored = builders.weights(config)
    assert "tasks.difficulty.out.weight" in checkpoint.tensors(config)
    ops = fastinfer.backends.get(device)
    model = fastinfer.Model(config, [Replica(ops, ops.prepare(config, stored))], None, "outside", 0)
    batch = fastinfer.PackedBatch.from_ids(builders.rows(config))
    logits = model.logits(batch, task="difficulty")
    weight, bias = (stored[f"tasks.difficulty.out.{name}"].float32() for name in ("weight", "bias"))
    want = [states.max(0) @ weight.T.astype(np.float64) + bias for states in model.hidden_states(batch)]
    np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-5)


@dataclasses.dataclass(frozen=True)
class Deep(Dense):
    """Two hidden layers of the same width: W3 gelu(W2 gelu(W1 x))."""

    kind: str = "deep"


def deep_tensors(ffn, hidden):
    shapes = {"first": (ffn.width, hidden), "second": (ffn.width, ffn.width), "third": (hidden, ffn.width)}
    return {f"{name}.weight": (shape, "matrices") for name, shape in shapes.items()}


def deep_forward(ops, x, ffn, *, residual, out, work, routes):
    first, second, third = (ffn.others[f"{name}.weight"] for name in ("first", "second", "third"))
    one, two = (work.take(name, len(x), ops.outputs(first)) for name in ("one", "two"))
    ops.linear(x, first, activation=ffn.activation, out=one)
    ops.linear(one, second, activation=ffn.activation, out=two)
    ops.linear(two, third, residual=residual, out=out)


@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_a_feedforward_from_outside(device, monkeypatch):
    monkeypatch.setitem(feedforward.KINDS, "deep", feedforward.Kind(deep_tensors, deep_forward))
    config = builders.tiny(layers=1, ffn=(Deep(24, bias_in=False, bias_out=False),), norm=Norm("pre", 1e-5), final_norm=False)
    stored = builders.weights(config)
    ops = fastinfer.backends.get(device)
    model = fastinfer.Model(config, [Replica(ops, ops.prepare(config, stored))], None, "outside", 0)
    batch = fastinfer.PackedBatch.from_ids(builders.rows(config))
    without = stored | {"layers.0.ffn.third.weight": Tensor(np.zeros((config.hidden, 24), np.float32), "float32")}
    plain = fastinfer.Model(config, [Replica(ops, ops.prepare(config, without))], None, "outside", 0)
    weights = [stored[f"layers.0.ffn.{name}.weight"].float32().astype(np.float64) for name in ("first", "second", "third")]
    norm = [stored[f"layers.0.ffn.norm.{name}"].float32() for name in ("weight", "bias")]
    gelu = np.vectorize(lambda z: z * (1 + erf(z / 2**0.5)) / 2)
    for states, x in zip(model.hidden_states(batch), plain.hidden_states(batch), strict=True):
        h = x.astype(np.float64) - x.mean(1, keepdims=True)
        h = h / np.sqrt((h**2).mean(1, keepdims=True) + 1e-5) * norm[0] + norm[1]
        np.testing.assert_allclose(states, x + gelu(gelu(h @ weights[0].T) @ weights[1].T) @ weights[2].T, rtol=1e-4, atol=1e-4)
