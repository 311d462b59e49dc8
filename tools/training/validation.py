"""Figures of an encoder between the steps of its training: losses on validation batches, the use of leaves, and scores of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastinfer.config import FFF
from training.encoder import Encoder
from training.feedforward import Leaves, leaf_counts, usage
from training.loop import Data, Descent, add, split

VALIDATION_BATCHES = 8  # batches that a validation loss is the mean of

Evaluate = Callable[[Encoder], dict[str, float]]  # more figures, from the encoder in evaluation mode


@torch.no_grad()
def validate(descent: Descent, data: Data, evaluate: Evaluate | None) -> dict[str, Any]:
    """Mean losses over the validation batches, per layer with trees the use of its leaves, and what `evaluate` finds."""
    objective, workers = descent.objective, descent.workers
    objective.eval()
    sums: dict[str, Tensor] = {}
    counts: dict[int, Tensor] = {}
    layers = {i: ffn for i, ffn in enumerate(objective.encoder.config.ffn) if isinstance(ffn, FFF)}
    with descent.autocast():
        for number in range(VALIDATION_BATCHES):
            for share, part in split(data.batch(number, validation=True), descent.accumulate):
                seen: list[tuple[Tensor | None, Tensor]] = [] if objective.balance else Leaves()
                add(sums, objective(*part, seen=seen), share / VALIDATION_BATCHES)
                mask = None if part[1] is None else part[1].flatten()
                for (i, ffn), (_, leaf) in zip(layers.items(), seen, strict=True):
                    counts[i] = counts.get(i, 0) + leaf_counts(leaf, 2**ffn.depth, mask)
        scores = {} if evaluate is None else evaluate(objective.encoder)
    objective.train()
    figures: dict[str, Any] = {f"validation_{name}": value for name, value in workers.mean(sums).items() if name != "tokens"}
    if counts:
        figures |= use_of_leaves(list(counts.values()), several=workers.world > 1)
    return figures | scores


def use_of_leaves(counts: list[Tensor], *, several: bool) -> dict[str, list[float]]:
    """Usage of each layer's leaves, from the tokens that reached each: (trees, leaves) per layer; `several` processes add up theirs."""
    used = []
    for count in counts:
        if several:
            dist.all_reduce(count)
        used.append(usage(count))
    return {"effective_leaves": [round(u.effective, 4) for u in used], "dead_leaves": [round(u.dead, 4) for u in used]}
