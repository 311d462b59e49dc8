"""The trainable encoder: fastinfer's model in PyTorch, with fast feedforward layers that learn.

An Encoder has the parameters of checkpoint.tensors(config), by the same names and in the same layouts, so that its state differs from a
checkpoint by the stored dtypes alone. Texts are rows of a padded batch:

    ids    (B, L) int64
    mask   (B, L) bool, True where there is a token; None: everywhere
    types  (B, L) int64 token types; None: zeros

feedforward.py and attention.py have the parts of a layer.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastinfer import checkpoint
from fastinfer.config import FFF, Alibi, Buckets, Config, FillMask, HeadLayer, Pooling, Project, Stored, StoredDtype
from fastinfer.errors import ConfigError, InputError, listed
from fastinfer.positions import sinusoids
from training.attention import Attention, Distances, Rotary, masks
from training.feedforward import ACTIVATIONS, Feedforward
from training.norm import make_norm

INIT = 0.02  # standard deviation of fresh matrices and embeddings, as BERT has it


# --- the encoder -----------------------------------------------------------------------------------


class Layer(nn.Module):
    """Attention and feedforward, each with a residual and a norm before it or after it."""

    def __init__(self, config: Config, number: int, rotary: Rotary | None) -> None:
        super().__init__()
        self.pre_norm = config.norm.order == "pre"
        self.attention = Attention(config, number, rotary)
        self.ffn = Feedforward(config, config.ffn[number])

    def forward(self, x: Tensor, mask: Tensor | None, dropout: float, seen: list[tuple[Tensor, Tensor]] | None) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        for block in (self.attention, self.ffn):
            y = block.norm(x) if self.pre_norm and block.norm is not None else x
            # A feedforward sees T tokens and not their arrangement, so that it is compiled once for all of them.
            y = block(y, mask) if block is self.attention else block(y.flatten(0, 1), seen).view_as(x)
            x = x + F.dropout(y, dropout, self.training)
            if not self.pre_norm:
                x = block.norm(x)
        return x


class Embedding(nn.Module):
    """Word, position and token type, summed, with a norm and a linear map to D columns where the config has them."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        columns, positions = config.embedding_width or config.hidden, config.positions
        self.word = nn.Parameter(torch.empty(config.vocabulary, columns))
        rows = positions.max + (positions.skip is not None)
        self.position = nn.Parameter(torch.empty(rows, columns)) if positions.kind == "learned" else None
        self.skip = positions.skip
        sinusoidal = positions.kind == "scaled-sinusoidal"
        self.position_scale = nn.Parameter(torch.empty(1)) if sinusoidal else None
        if sinusoidal:
            self.register_buffer("sines", torch.from_numpy(sinusoids(positions.max, columns)), persistent=False)
        self.token_type = nn.Parameter(torch.empty(config.token_types, columns)) if config.token_types else None
        self.norm = make_norm(config, columns) if config.embedding_norm else None
        self.project = nn.Linear(columns, config.hidden) if config.embedding_width is not None else None

    def forward(self, ids: Tensor, types: Tensor | None) -> Tensor:
        """(B, L) -> (B, L, D)."""
        length = ids.shape[1]
        x = F.embedding(ids, self.word)
        if self.skip is not None:
            counted = ids != self.skip
            x = x + F.embedding(counted.cumsum(1) * counted, self.position)
        elif self.position is not None:
            x = x + self.position[:length]
        if self.position_scale is not None:
            x = x + self.position_scale * self.sines[:length]
        if self.token_type is not None:
            x = x + (self.token_type[0] if types is None else F.embedding(types, self.token_type))
        x = x if self.norm is None else self.norm(x)
        return x if self.project is None else self.project(x)


class Encoder(nn.Module):
    """The trainable model of a Config, with fresh weights from torch's random generator; load() opens a checkpoint instead.

    dropout  share of the embeddings, and of what each block adds, that training mode drops

    Raises ConfigError, by name, for what cannot be trained.
    """

    def __init__(self, config: Config, dropout: float = 0.0) -> None:
        super().__init__()
        check_trainable(config)
        self.config = dataclasses.replace(config, stored=Stored())
        self.dropout = dropout
        self.embedding = Embedding(config)
        self.distances = Distances(config, config.distances) if isinstance(config.distances, (Buckets, Alibi)) else None
        turned = {(a.theta, a.scale) for a in config.attention if a.theta is not None}
        rotary = {(theta, scale): Rotary(config, theta, scale) for theta, scale in turned}
        self.layers = nn.ModuleList(Layer(config, i, rotary.get((a.theta, a.scale))) for i, a in enumerate(config.attention))
        self.final_norm = make_norm(config) if config.final_norm else None
        self.tasks = _heads(config)
        unknown = checkpoint.tensors(self.config).keys() - self.state_dict().keys()
        if unknown:
            raise ConfigError(f"the training form has no {listed(sorted(unknown))}, which this model has: it cannot be trained")
        self._start()

    def forward(
        self, ids: Tensor, mask: Tensor | None = None, types: Tensor | None = None, seen: list[tuple[Tensor, Tensor]] | None = None
    ) -> list[Tensor]:
        """The hidden states, each (B, L, D): of the embedding and of every layer, the last one after the final norm.

        seen  a list that gets (logits (B·L, P, M), leaf (B·L, P)) of each layer that has trees

        Raises InputError for rows that are longer than the positions.
        """
        length, most = ids.shape[1], self.config.positions.max
        if length > most:
            raise InputError(f"a batch has rows of {length} tokens, expected at most positions.max={most}: cut the texts")
        x = F.dropout(self.embedding(ids, types), self.dropout, self.training)
        states = [x]
        for layer, sees in zip(self.layers, masks(mask, length, self.config.attention, self.distances, ids.device), strict=True):
            x = layer(x, sees, self.dropout, seen)
            states.append(x)
        if self.final_norm is not None:
            states[-1] = self.final_norm(x)
        return states

    def embed(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """Final hidden states (B, L, D) -> embeddings (B, M), float32, as tasks.embed says. All tokens are pooled."""
        head = self.config.tasks.embed
        x = torch.cat([pool(states, mask, kind) for kind in head.poolings], -1)
        for i, layer in enumerate(head.layers):
            if isinstance(layer, Project):
                x = self.tasks.embed.layers[str(i)](x)
                x = x if layer.activation is None else ACTIVATIONS[layer.activation](x)
            else:
                x = F.normalize(x, dim=-1, eps=1e-12)
        x = F.normalize(x, dim=-1, eps=1e-12) if head.normalize else x
        return x[:, : head.dim]

    def classify(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """Final hidden states (B, L, D) -> logits (B, K)."""
        return self.tasks.classify(pool(states, mask, self.config.tasks.classify.pooling), self.dropout)

    def tag(self, states: Tensor) -> Tensor:
        """Final hidden states (B, L, D) -> logits (B, L, K)."""
        return self.tasks.tag(states, self.dropout)

    def answer(self, states: Tensor) -> Tensor:
        """Final hidden states (B, L, D) -> start and end logits (B, L, 2)."""
        return self.tasks.answer(states, 0.0)

    def fill_mask(self, states: Tensor) -> Tensor:
        """The final hidden states to decode (..., D) -> logits (..., V)."""
        head = self.tasks.fill_mask
        if head.transform is not None:
            states = head.norm(head.activation(head.transform(states)))
        return F.linear(states, self.embedding.word if head.decoder is None else head.decoder.weight, head.bias)

    @torch.no_grad()
    def _start(self) -> None:
        """Fill in fresh weights. In-rows give a normed token logits of about 0.6; out-rows shrink with the neurons that a token uses."""
        for name, weight in self.named_parameters():
            if name.endswith(("bias", "b_in", "b_out", "b_leaf")):
                weight.zero_()
            elif name.endswith("norm.weight"):
                weight.fill_(1)
            elif name.endswith("position_scale"):
                weight.fill_(self.embedding.word.shape[1] ** -0.5)
            elif name.endswith(".nodes"):
                used = self.config.ffn[int(name.split(".")[1])].used
                weight[:, :, 0].normal_(std=(3 * self.config.hidden) ** -0.5)
                weight[:, :, 1].normal_(std=0.17 * used**-0.5)
            else:
                weight.normal_(std=INIT)


def check_trainable(config: Config) -> None:
    """Raise ConfigError for parts of a model that the training form does not compute."""
    for ffn in config.ffn:
        if isinstance(ffn, FFF) and ffn.children:
            raise ConfigError("ffn has pruned trees (children true), which cannot be trained: train full trees, then prune")
        if ffn.kind not in ("dense", "gated", "fff"):
            raise ConfigError(f"ffn is of kind {ffn.kind!r}, which cannot be trained, expected dense, gated or fff")


def _heads(config: Config) -> nn.Module:
    tasks, heads = config.tasks, nn.ModuleDict()
    if tasks.embed and tasks.embed.layers:
        steps = [(str(i), layer) for i, layer in enumerate(tasks.embed.layers) if isinstance(layer, Project)]
        widths = itertools.pairwise(tasks.embed.widths(config.hidden))
        linear = {i: nn.Linear(a, b, layer.bias) for (i, layer), (a, b) in zip(steps, widths, strict=True)}
        heads["embed"] = nn.ModuleDict({"layers": nn.ModuleDict(linear)})
    if tasks.fill_mask:
        heads["fill_mask"] = _FillMask(config, tasks.fill_mask)
    if tasks.classify:
        heads["classify"] = _Head(config, tasks.classify.layers, len(tasks.classify.labels))
    if tasks.tag:
        heads["tag"] = _Head(config, tasks.tag.layers, len(tasks.tag.labels))
    if tasks.answer:
        heads["answer"] = _Head(config, tasks.answer.layers, 2)
    return heads


class _FillMask(nn.Module):
    def __init__(self, config: Config, head: FillMask) -> None:
        super().__init__()
        width = config.embedding_width or config.hidden
        self.transform = nn.Linear(config.hidden, width) if head.transform else None
        self.activation = ACTIVATIONS[head.activation]
        self.norm = nn.LayerNorm(width, config.norm.eps) if head.transform else None
        self.decoder = None if head.tied else nn.Linear(width, config.vocabulary, bias=False)
        self.bias = nn.Parameter(torch.empty(config.vocabulary)) if head.bias else None


class _Head(nn.Module):
    """Layers, then one linear layer to `outputs` logits."""

    def __init__(self, config: Config, layers: tuple[HeadLayer, ...], outputs: int) -> None:
        super().__init__()
        widths = [config.hidden, *(layer.width for layer in layers)]
        made = (_HeadLayer(columns, layer, config.norm.eps) for columns, layer in zip(widths, layers, strict=False))
        self.layers = nn.ModuleList(made)
        self.out = nn.Linear(widths[-1], outputs)

    def forward(self, x: Tensor, dropout: float) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.out(F.dropout(x, dropout, self.training))


class _HeadLayer(nn.Linear):
    """A linear map, its activation and, where it has one, its norm."""

    def __init__(self, columns: int, layer: HeadLayer, eps: float) -> None:
        super().__init__(columns, layer.width)
        self.activation = ACTIVATIONS[layer.activation]
        self.norm = nn.LayerNorm(layer.width, eps) if layer.norm else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(super().forward(x))
        return x if self.norm is None else self.norm(x)


def pool(states: Tensor, mask: Tensor | None, kind: Pooling) -> Tensor:
    """A float32 vector per text: (B, L, D), (B, L) -> (B, D). Padding, which follows a text, does not count."""
    states = states.float()
    if kind == "cls":
        return states[:, 0]
    if mask is None:
        mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    if kind == "lasttoken":
        return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]
    mask = mask[..., None]
    if kind in ("mean", "sqrtmean", "weightedmean"):
        weights = mask * mask.cumsum(1) if kind == "weightedmean" else mask
        total = weights.sum(1)
        return (states * weights).sum(1) / (total.sqrt() if kind == "sqrtmean" else total)
    states = states.masked_fill(~mask, -torch.inf)
    return states.amax(1) if kind == "max" else states.logsumexp(1)


def kept(state: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """What a model with the heads of `config` keeps of another model's state: all but its heads, and the layers of an embed head."""
    return {n: w for n, w in state.items() if not n.startswith("tasks.") or (config.tasks.embed and n.startswith("tasks.embed."))}


# --- checkpoints -----------------------------------------------------------------------------------


def load(folder: str | os.PathLike, *, dropout: float = 0.0) -> Encoder:
    """The checkpoint in `folder`, in any layout that fastinfer.load opens, as an Encoder in float32 on the CPU.

    Raises FastinferError as checkpoint.load does.
    """
    config, weights = checkpoint.load(folder, validate=True)
    return from_weights(config, weights, dropout=dropout)


def from_weights(config: Config, weights: Mapping[str, checkpoint.Tensor], *, dropout: float = 0.0) -> Encoder:
    """An Encoder with the given weights, {name: checkpoint.Tensor} as checkpoint.load gives them."""
    encoder = Encoder(config, dropout)
    encoder.load_state_dict({name: torch.from_numpy(np.array(tensor.float32())) for name, tensor in weights.items()})
    return encoder


def to_weights(encoder: Encoder, stored: Stored | StoredDtype = "float32") -> tuple[Config, dict[str, checkpoint.Tensor]]:
    """(Config, {name: checkpoint.Tensor}) of an Encoder, its weights rounded to the dtypes `stored`, one for each family or one for all."""
    if isinstance(stored, str):
        stored = Stored(embeddings=stored, matrices=stored, trees=stored)
    config = dataclasses.replace(encoder.config, stored=stored)
    spec = checkpoint.tensors(config)
    weights = {}
    for name, value in encoder.state_dict().items():
        weights[name] = checkpoint.Tensor(value.float().cpu().numpy(), "float32").to(spec[name].dtype)
    return config, weights


def save(
    encoder: Encoder, folder: str | os.PathLike, *, stored: Stored | StoredDtype = "float32", tokenizer: str | os.PathLike | None = None
) -> None:
    """Write an Encoder as a checkpoint folder that fastinfer.load opens; `tokenizer` is a tokenizer.json to copy.

    Raises CheckpointError for weights that a dtype cannot hold (NaN in int8), and where the folder cannot be written.
    """
    config, weights = to_weights(encoder, stored)
    checkpoint.save(folder, config, weights, tokenizer=tokenizer)
