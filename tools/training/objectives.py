"""What training minimises: the losses of a batch for pretrain, distill and finetune.

An Objective is a module, so that DistributedDataParallel can wrap it; its forward pass takes a batch as the Data of its command makes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastinfer.evaluation.tasks import Kind
from training.beside import Beside
from training.encoder import Encoder
from training.workers import every_row, mean_of_processes

SHARPNESS = 20.0  # factor of the cosines before the softmax over a batch's partners
HARD = 0.5  # part of a run after which soft decisions are hard
IGNORED = -100  # target of a token that carries no tag; cross_entropy leaves it out

Seen = list[tuple[Tensor, Tensor]]  # of each layer with trees (logits, leaf), which Encoder.forward appends


class Objective(nn.Module):
    """Losses of a batch: forward(*batch) -> {"loss": the one that is minimised, its parts by name}. `encoder` is what is trained.

    The objectives of pretrain and distill also give "tokens", the number of tokens in the batch, and take `seen`, a list for
    Encoder.forward. `balance` is the weight of the loss that balances decisions; 0 leaves it out. `done` is the part of the run that is
    done, which the loop sets before each step.
    """

    encoder: Encoder
    balance: float = 0.0
    done: float = 0.0


class MaskedLanguageModel(Objective):
    """Cross entropy of the tokens to guess."""

    def __init__(self, encoder: Encoder, balance: float) -> None:
        super().__init__()
        self.encoder, self.balance = encoder, balance

    def forward(self, ids: Tensor, mask: None, places: Tensor, labels: Tensor, seen: Seen | None = None) -> dict[str, Tensor]:
        """ids (B, L) with tokens hidden; places (B, G) of the tokens to guess, and labels (B, G), the ids that stood there."""
        seen = [] if seen is None and self.balance else seen
        states = self.encoder(ids, mask, seen=seen)[-1]
        chosen = states.gather(1, places[..., None].expand(-1, -1, states.shape[2])).flatten(0, 1)
        loss = F.cross_entropy(self.encoder.fill_mask(chosen).float(), labels.flatten())
        return with_balance({"loss": loss, "tokens": torch.tensor(float(ids.numel()), device=ids.device)}, self, seen, None)


class Weights(Protocol):
    """The weights of the losses of distillation; a Distill recipe has them."""

    hidden_weight: float
    fade: float
    soft: float
    embed_weight: float
    similarity_weight: float
    balance: float


class Distillation(Objective):
    """The difference between the student's hidden states and embeddings and the teacher's.

    matched     of each of the student's layers, the number of the teacher's state that its output is compared with; 0 is the embedding
    beside      a second teacher; embeddings are then compared with what both teachers say, hidden states with the first one's
    hidden      the mean over tokens of |student - teacher|² / |teacher|², summed over layers; over the last part `fade` of the run, its
                weight falls to zero
    embed       the mean over texts of 1 - cosine of the embeddings
    similarity  the mean squared error of the batch's matrix of cosines, over the texts of all processes
    """

    def __init__(self, encoder: Encoder, teacher: Encoder, weights: Weights, matched: Sequence[int], beside: Beside | None = None) -> None:
        super().__init__()
        self.encoder, self.weights, self.balance, self.matched, self.beside = encoder, weights, weights.balance, matched, beside
        self.teacher = teacher.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Distillation:
        """Set the student's mode; the teachers stay in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        if self.beside is not None:
            self.beside.eval()
        return self

    def forward(self, ids: Tensor, mask: Tensor, seen: Seen | None = None) -> dict[str, Tensor]:
        """ids (B, L), mask (B, L)."""
        weights = self.weights
        if weights.soft:
            for layer in self.encoder.layers:
                layer.ffn.soften(weights.soft * max(0.0, 1 - self.done / HARD))
        seen = [] if seen is None and self.balance else seen
        with torch.no_grad():
            wanted = self.teacher(ids, mask)
        states = self.encoder(ids, mask, seen=seen)
        tokens = mean_of_processes(mask.sum().float())  # so that the mean of the processes' losses is the loss of the whole batch
        weight = mask[..., None] / tokens
        losses = {"hidden": sum(relative_error(s, wanted[i], weight) for s, i in zip(states[1:], self.matched, strict=True))}
        kept = min(1.0, (1 - self.done) / weights.fade) if weights.fade else 1.0
        loss = weights.hidden_weight * kept * losses["hidden"]
        if self.encoder.config.tasks.embed:
            student = F.normalize(self.encoder.embed(states[-1], mask), dim=-1)
            with torch.no_grad():
                teacher = F.normalize(self.teacher.embed(wanted[-1], mask), dim=-1)
                teacher = teacher if self.beside is None else self.beside(teacher, ids, mask)
            losses["embed"] = 1 - (student * teacher).sum(-1).mean()
            every_student, every_teacher = every_row(student), every_row(teacher)
            losses["similarity"] = ((student @ every_student.T - teacher @ every_teacher.T).float() ** 2).mean()
            loss = loss + weights.embed_weight * losses["embed"] + weights.similarity_weight * losses["similarity"]
        return with_balance({"loss": loss, **losses, "tokens": tokens}, self, seen, mask.flatten())


class Labelled(Objective):
    """The loss of a task's head: cross entropy of classes, of tags and of partners in a batch; squared error of scores."""

    def __init__(self, encoder: Encoder, kind: Kind) -> None:
        super().__init__()
        self.encoder, self.kind = encoder, kind

    def forward(self, sides: tuple[tuple[Tensor, Tensor, Tensor | None], ...], targets: Tensor) -> dict[str, Tensor]:
        """sides: (ids, mask, types), each (B, L), of each side, which are two for pairs; targets (B,), or (B, L) for tags."""
        encoder = self.encoder
        if self.kind == "pairs":
            first, second = (F.normalize(embed(encoder, *side), dim=-1) for side in sides)
            return {"loss": F.cross_entropy(SHARPNESS * first @ second.T, torch.arange(len(first), device=first.device))}
        ids, mask, types = sides[0]
        states = encoder(ids, mask, types)[-1]
        if self.kind == "tags":
            return {"loss": F.cross_entropy(encoder.tag(states).float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED)}
        logits = encoder.classify(states, mask).float()
        return {"loss": F.mse_loss(logits[:, 0], targets.float()) if self.kind == "score" else F.cross_entropy(logits, targets)}


def embed(encoder: Encoder, ids: Tensor, mask: Tensor, types: Tensor | None) -> Tensor:
    """The embeddings (B, D) of a batch of texts, each argument (B, L)."""
    return encoder.embed(encoder(ids, mask, types)[-1], mask)


def relative_error(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """The sum over tokens of weight · |student - teacher|² / |teacher|². Tensors (B, L, D), weight (B, L, 1)."""
    student, teacher = student.float(), teacher.float()
    return (((student - teacher) ** 2).sum(-1, keepdim=True) / (teacher**2).sum(-1, keepdim=True) * weight).sum()


def with_balance(losses: dict[str, Tensor], objective: Objective, seen: Seen | None, mask: Tensor | None) -> dict[str, Tensor]:
    """`losses` and, where it has a weight, the balance of all layers that have trees."""
    if objective.balance:
        layers = [layer.ffn for layer in objective.encoder.layers if layer.ffn.nodes is not None]
        losses["balance"] = sum(ffn.balance(*record, mask) for ffn, record in zip(layers, seen, strict=True))
        losses["loss"] = losses["loss"] + objective.balance * losses["balance"]
    return losses
