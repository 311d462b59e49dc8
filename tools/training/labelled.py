"""Labelled texts as ids on a device, and the batches of an epoch: the Data of finetune."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastinfer.evaluation.tasks import Examples, Kind, first_rows
from fastinfer.tokenizer import Tokenizer
from training.objectives import IGNORED

WINDOW = 50  # batches whose texts are sorted by length together
MULTIPLE = 8  # tokens: the lengths of batches are padded to multiples of it

Side = tuple[Tensor, Tensor, Tensor | None]  # ids, mask, types of a batch, each (B, L)


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """n texts as ids on a device.

    ids, types  (n, L) int32; types None where the model has no token types
    lengths     (n,) number of tokens of each text, on the CPU
    words       per text {word: place of its first token}; for tags only
    """

    ids: Tensor
    types: Tensor | None
    lengths: np.ndarray
    words: list[dict[int, int]] | None = None

    def take(self, rows: Tensor, length: int) -> Side:
        """ids, mask, types (B, length) of some rows; narrower where no text of the whole split is that long."""
        ids = self.ids[rows, :length].long()
        mask = torch.arange(ids.shape[1], device=ids.device) < self.sizes[rows, None]
        return ids, mask, None if self.types is None else self.types[rows, :length].long()

    @functools.cached_property
    def sizes(self) -> Tensor:
        """The lengths (n,), on the device."""
        return torch.from_numpy(self.lengths).to(self.ids.device)


def encode(texts: Sequence[Any], tokenizer: Tokenizer, device: torch.device, *, words: bool = False) -> Rows:
    """The texts as the engine's tokenizer gives them, cut at the model's limit as the engine cuts."""
    encodings = tokenizer.encode(texts, words=words)
    packed = tokenizer.batch(encodings)
    lengths = packed.lengths
    there = np.arange(lengths.max()) < lengths[:, None]

    def padded(values: np.ndarray) -> Tensor:
        made = np.zeros(there.shape, np.int32)
        made[there] = values
        return torch.from_numpy(made).to(device)

    types = None if packed.token_types is None else padded(packed.token_types)
    return Rows(padded(packed.ids), types, lengths, [first_rows(e.word_ids) for e in encodings] if words else None)


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """A split of a task, on a device.

    sides    the texts: one side, or two for pairs
    targets  (n,) classes, scores or, for pairs, the row's own number; (n, L) for tags, IGNORED where a token carries none
    """

    sides: tuple[Rows, ...]
    targets: Tensor
    examples: Examples

    @classmethod
    def make(cls, examples: Examples, kind: Kind, tokenizer: Tokenizer, device: torch.device) -> Split:
        """The examples of a task of this kind, as the tokenizer and the loss want them."""
        if kind == "pairs":
            sides = tuple(encode(side, tokenizer, device) for side in zip(*examples.inputs, strict=True))
            return cls(sides, torch.arange(len(examples), device=device), examples)
        rows = encode(examples.inputs, tokenizer, device, words=kind == "tags")
        if kind != "tags":
            return cls((rows,), torch.tensor(examples.targets, device=device), examples)
        index = {label: i for i, label in enumerate(examples.labels)}
        targets = np.full(rows.ids.shape, IGNORED)
        for made, firsts, labels in zip(targets, rows.words, examples.targets, strict=True):
            for word, row in firsts.items():
                made[row] = index[labels[word]]
        return cls((rows,), torch.from_numpy(targets).to(device), examples)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example (n,); of a pair, those of the longer text."""
        return np.max([side.lengths for side in self.sides], axis=0)


def batches(lengths: np.ndarray, size: int, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, int]]:
    """(rows, padded length) of each batch of an epoch: every row once, in random order, texts of similar length together."""
    order = rng.permutation(len(lengths))
    made = []
    for start in range(0, len(order), WINDOW * size):
        window = order[start : start + WINDOW * size]
        window = window[np.argsort(lengths[window], kind="stable")]
        made += np.split(window, range(size, len(window), size))
    for i in rng.permutation(len(made)):
        yield made[i], padded_length(lengths[made[i]])


def padded_length(lengths: np.ndarray) -> int:
    """The length that a batch of texts with these lengths is padded to."""
    return -(-int(lengths.max()) // MULTIPLE) * MULTIPLE


class Epochs:
    """Batches of a split, epoch after epoch: the Data of finetune. Steps have to be asked for in order.

    targets  what the loss wants, in place of split.targets
    size     texts in a batch
    """

    def __init__(self, split: Split, targets: Tensor, size: int, rng: np.random.Generator) -> None:
        self.split, self.targets, self.size, self.rng = split, targets, size, rng
        self.lengths = split.lengths
        self.count = -(-len(self.lengths) // size)  # batches of an epoch
        self.drawn: list[tuple[Tensor, int]] = []

    def batch(self, step: int, validation: bool = False) -> tuple[tuple[Side, ...], Tensor]:
        """(ids, mask, types) of each side, and the targets of the batch."""
        if step % self.count == 0:
            order = list(batches(self.lengths, self.size, self.rng))
            # One transfer to the device for an epoch, none for a step.
            rows = torch.from_numpy(np.concatenate([some for some, _ in order])).to(self.targets.device)
            self.drawn = list(zip(rows.split([len(some) for some, _ in order]), [length for _, length in order], strict=True))
        rows, length = self.drawn[step % self.count]
        sides = tuple(side.take(rows, length) for side in self.split.sides)
        return sides, self.targets[rows] if self.targets.ndim == 1 else self.targets[rows, :length]
