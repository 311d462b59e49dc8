"""A second teacher beside the first: embeddings that are as wide as the first teacher's and keep the cosines of both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastinfer.errors import InputError
from training.encoder import Encoder
from training.start import Start
from training.workers import Workers, mean_of_processes

# texts that the map is fitted on: fitted on 6,000, 12,000 and 24,000, it leaves out 14.8, 14.1 and 13.7% of other texts' embeddings
TEXTS = 16384


class Second(NamedTuple):
    """A second teacher, and (V,) for each of the first teacher's token ids the one that the second has for the same token."""

    encoder: Encoder
    ids: Tensor


class Beside(nn.Module):
    """What a student of two teachers learns: the embeddings of both, end to end, reduced to the width of the first one's."""

    def __init__(self, second: Second, width: int) -> None:
        super().__init__()
        self.encoder = second.encoder.eval().requires_grad_(False)
        config = self.encoder.config
        self.register_buffer("ids", second.ids)
        self.register_buffer("turn", torch.zeros(width + config.tasks.embed.numbers(config.hidden), width))

    def forward(self, first: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, M): what the student's embeddings should be, of length 1.

        first      (B, M) embeddings of the first teacher, of length 1
        ids, mask  (B, L) the tokens of the first teacher
        """
        return F.normalize(self.both(first, ids, mask) @ self.turn, dim=-1).float()

    def both(self, first: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, M + N): the embeddings of both teachers, end to end."""
        second = self.encoder.embed(self.encoder(self.ids[ids], mask)[-1], mask)
        return torch.cat([first, F.normalize(second, dim=-1)], -1)

    @torch.no_grad()
    def fit(self, teacher: Encoder, batch: Callable[[int], tuple[Any, ...]], workers: Workers) -> None:
        """Find the map on the text of the first batches, by the principal components of both embeddings.

        An inner product of both embeddings is the sum of two cosines, which the components keep best. Then an orthogonal map, which
        changes no cosine, turns them to where the first teacher's embeddings lie (Schoenemann, 1966), from which a student starts.
        """
        self.to(workers.device)
        teacher = teacher.to(workers.device).eval()
        moments, step, texts, width = self.turn.new_zeros(len(self.turn), len(self.turn)), 0, 0, self.turn.shape[1]
        while texts < TEXTS:
            ids, mask = batch(step)
            both = self.both(F.normalize(teacher.embed(teacher(ids, mask)[-1], mask), dim=-1), ids, mask)
            moments += both.T @ both
            step, texts = step + 1, texts + len(ids) * workers.world
        moments = mean_of_processes(moments).double()
        best = torch.linalg.eigh(moments).eigenvectors[:, -width:]
        left, _, right = torch.linalg.svd(best.T @ moments[:, :width])
        self.turn.copy_(best @ left @ right)


def same_tokens(first: Start, second: Start) -> Tensor:
    """(V,) for each of the first model's token ids the second model's id of the same token; those that frame and pad a text are matched.

    Raises InputError where the second model has no such token, and where it does not embed.
    """
    if second.config.tasks.embed is None:
        raise InputError(f"{second.name} has no embed head, so nothing can be learned from it beside {first.name}: name an embedder")
    theirs, mine = (model.tokenizer.raw.get_vocab() for model in (second, first))
    ids = torch.zeros(first.config.vocabulary, dtype=torch.long)
    missing = [token for token in mine if token not in theirs]
    for token, number in mine.items():
        ids[number] = theirs.get(token, 0)
    for role in ("cls", "sep", "pad", "mask"):
        number, other = getattr(first.config.ids, role), getattr(second.config.ids, role)
        if number is not None and other is not None:
            ids[number] = other
            missing = [token for token in missing if mine[token] != number]
    if missing:
        found = f"{len(missing):,} of the {len(mine):,} tokens of {first.name}, such as {missing[0]!r}"
        raise InputError(f"{second.name} does not have {found}: a second teacher has to cut texts into the same tokens")
    return ids
