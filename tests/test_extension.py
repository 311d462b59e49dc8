"""A head that this package does not have, added from outside."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import builders
import numpy as np
import pytest

import fastinfer
from fastinfer import checkpoint, heads
from fastinfer.config import Tasks
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
