"""The training loop that pretrain, distill and finetune share: the optimiser, its schedule, and the steps.

The loop reads no files and writes none. Data makes the batches, an Objective the losses, and a Watcher says how much of the run is done
and reports, saves and validates after a step.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves, tree_map_only

from training.encoder import Encoder
from training.objectives import Objective
from training.workers import Workers

BETAS = (0.9, 0.98)  # of AdamW: the decay of its means of gradients and of their squares


class Data(Protocol):
    """Batches by step. Where processes train together, each takes its own rows of the batch."""

    def batch(self, step: int, validation: bool = False) -> tuple[Any, ...]:
        """The arguments of the objective's forward pass at this step."""
        ...


class Watcher(Protocol):
    """What the loop asks before each step and tells after it."""

    def share(self) -> float:
        """The part of the run that is done, from 0 to 1. The loop ends at 1."""
        ...

    def after_step(self, losses: dict[str, Tensor]) -> None:
        """Called with the losses of the step that was just taken, and "gradient", the norm of the gradient before it was clipped."""
        ...


class Rates(Protocol):
    """The settings that the loop reads; the recipes of all three commands have them."""

    lr: float
    lr_rest: float
    weight_decay: float
    clip: float
    bfloat16: bool | None
    accumulate: int


class Descent:
    """What the loop changes: an objective on the process's device, the optimiser of its encoder, and `step`, the number of steps taken.

    warmup  steps until the learning rate's peak, after which it follows a cosine to zero
    """

    def __init__(self, objective: Objective, settings: Rates, workers: Workers, *, warmup: int) -> None:
        on_gpu = workers.device.type == "cuda"
        self.objective, self.workers, self.warmup, self.clip = objective.to(workers.device), workers, warmup, settings.clip
        self.bfloat16 = on_gpu if settings.bfloat16 is None else settings.bfloat16
        self.accumulate = settings.accumulate
        self.optimizer = make_optimizer(objective.encoder, settings, fused=on_gpu)
        self.step = 0

    def autocast(self) -> torch.autocast:
        """A context in which forward passes compute in bfloat16, where the settings ask for it."""
        return torch.autocast(self.workers.device.type, torch.bfloat16, enabled=self.bfloat16)


def fit(descent: Descent, data: Data, watcher: Watcher) -> None:
    """Take steps until the watcher says that the whole run is done."""
    objective, optimizer, workers = descent.objective, descent.optimizer, descent.workers
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    model = DistributedDataParallel(objective) if workers.world > 1 else objective
    objective.train()
    while (done := workers.agreed(watcher.share())) < 1:
        objective.done = done
        factor = min(1, (descent.step + 1) / max(1, descent.warmup)) * 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        optimizer.zero_grad(set_to_none=True)
        losses: dict[str, Tensor] = {}
        parts = split(data.batch(descent.step), descent.accumulate)
        for number, (share, part) in enumerate(parts, 1):
            # Processes add up their gradients once a batch, with the last part.
            with model.no_sync() if workers.world > 1 and number < len(parts) else contextlib.nullcontext():
                with descent.autocast():
                    found = model(*part)
                (share * found["loss"]).backward()
            add(losses, found, share)
        losses["gradient"] = nn.utils.clip_grad_norm_(parameters, descent.clip)
        optimizer.step()
        descent.step += 1
        watcher.after_step(losses)


def split(batch: tuple[Any, ...], parts: int) -> list[tuple[float, tuple[Any, ...]]]:
    """(share of the rows, part) of a batch cut along its rows, the first dimension of all its tensors, into at most `parts` parts."""
    rows = len(next(t for t in tree_leaves(batch) if isinstance(t, Tensor)))
    cuts = [some.tolist() for some in torch.arange(rows).chunk(parts)]
    return [(len(some) / rows, tree_map_only(Tensor, lambda t, some=some: t[some[0] : some[-1] + 1], batch)) for some in cuts]


def add(losses: dict[str, Tensor], found: dict[str, Tensor], share: float) -> None:
    """Add the losses of a part of a batch to those of the batch: means by the part's share of the rows, and the number of tokens whole."""
    for name, value in found.items():
        value = value.detach().float()
        losses[name] = losses.get(name, 0) + (value if name == "tokens" else share * value)


def make_optimizer(encoder: Encoder, settings: Rates, *, fused: bool) -> torch.optim.AdamW:
    """AdamW over the weights that are not frozen: settings.lr for feedforwards, settings.lr_rest for the rest; vectors do not decay."""
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, weight in encoder.named_parameters():
        if weight.requires_grad:
            groups.setdefault((".ffn." in name and "norm" not in name, weight.ndim > 1 and not name.endswith("b_in")), []).append(weight)
    made = [
        {"params": weights, "peak": settings.lr if ffn else settings.lr_rest, "weight_decay": settings.weight_decay if decays else 0.0}
        for (ffn, decays), weights in groups.items()
    ]
    return torch.optim.AdamW(made, lr=settings.lr, betas=BETAS, fused=fused)
