"""The model that training starts from or learns from: a checkpoint folder, the name of a model inside fastinfer, or a name on the hub."""

from __future__ import annotations

import functools
from typing import NamedTuple

from fastinfer import checkpoint
from fastinfer.catalog import folder_of
from fastinfer.config import Config
from fastinfer.errors import CheckpointError
from fastinfer.tokenizer import Tokenizer
from training.encoder import Encoder, from_weights


class Start(NamedTuple):
    """An opened model: its name, config and weights, its tokenizer, and the content of a tokenizer.json for what is made of it."""

    name: str
    config: Config
    weights: dict[str, checkpoint.Tensor]
    tokenizer: Tokenizer
    tokenizer_json: bytes

    def encoder(self, *, dropout: float = 0.0) -> Encoder:
        """The model in float32 on the CPU."""
        return from_weights(self.config, self.weights, dropout=dropout)


def open_encoder(name: str) -> Encoder:
    """The model that fastinfer.load(name) opens, which needs no tokenizer, in float32 on the CPU."""
    config, weights, _ = checkpoint.load_all(folder_of(name), validate=True)
    return from_weights(config, weights)


@functools.cache
def open_model(name: str) -> Start:
    """The model that fastinfer.load(name) opens, kept for other runs. Raises CheckpointError where it has no tokenizer."""
    config, weights, tokenizer = checkpoint.load_all(folder_of(name), validate=True)
    if tokenizer.file is None:
        raise CheckpointError(f"{name} has no tokenizer, which training needs to read text ({tokenizer.about}): put a tokenizer.json there")
    opened = Tokenizer(tokenizer.file, config)
    return Start(name, config, weights, opened, tokenizer.file.text if tokenizer.file.exact else opened.raw.to_str().encode())
