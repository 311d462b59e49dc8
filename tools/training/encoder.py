"""The trainable encoder: fastinfer's model in PyTorch, with fast feedforward layers that learn.

An Encoder has the parameters of checkpoint.tensors(config), by the same names and in the same layouts, so that its state differs from a
checkpoint by the stored dtypes alone. Texts are rows of a padded batch:

    ids    (B, L) int64
    mask   (B, L) bool, True where there is a token; None: everywhere
    types  (B, L) int64 token types; None: zeros

Trees are trained masked and dense: one matrix product gives the logits of all nodes, each token's path is walked in them, and
nodes off the path count as zero. The walk follows the sign of the logits, which has no gradient. It learns all the same, because a
node's logit is also its activation.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from conversion import read_weights
from torch import Tensor, nn

from fastinfer import checkpoint
from fastinfer.config import FFF, Classify, Config, Dense, FillMask, Pooling, Stored, StoredDtype
from fastinfer.errors import ConfigError
from fastinfer.positions import sinusoids

INIT = 0.02  # standard deviation of fresh matrices and embeddings, as BERT has it
GATHERED = 16  # a CPU gathers the rows of a path where a tree has this many times more nodes than the path
DECIDED = 0.3  # the balance loss takes a logit of this size for a clear decision


# --- feedforward -----------------------------------------------------------------------------------


class MaskedTrees(torch.autograd.Function):
    """P trees over T tokens: (y (T, D), logits (T, P, M), leaf (T, P) int32).

    x (T, D); w_in, w_out (P, M, D) and b_in (P, M), where M = N + 1 = 2**(depth + 1): node n is row n + 1, and row 0 is a dummy
    that no path visits. So the children of row r are rows 2r and 2r + 1, leaves are rows M/2 to M - 1, and sizes are even.
    `below` (M,) int32: levels under each row. Row r is on the path to a leaf when leaf >> below[r] == r, so a leaf stands for its
    whole path. Of the tensors with T·P·M elements, only the logits are kept for the backward pass.
    """

    @staticmethod
    def forward(ctx, x: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, below: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(y, logits, leaf) as the class says."""
        logits = F.linear(x, w_in.flatten(0, 1), b_in.flatten()).unflatten(1, b_in.shape)
        leaf = torch.ones(logits.shape[:2], dtype=torch.int32, device=x.device)
        for _ in range(len(below).bit_length() - 2):
            leaf = 2 * leaf + (logits.gather(2, leaf[..., None].long())[..., 0] > 0).int()
        y = torch.where(visited(leaf, below), F.gelu(logits), 0).flatten(1) @ w_out.flatten(0, 1)
        ctx.save_for_backward(x, w_in, w_out, below, logits, leaf)
        ctx.mark_non_differentiable(leaf)
        ctx.set_materialize_grads(False)
        return y, logits, leaf

    @staticmethod
    def backward(ctx, grad: Tensor | None, grad_logits: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        """The gradients of the five arguments, from those of y and of the logits."""
        x, w_in, w_out, below, logits, leaf = ctx.saved_tensors
        on = visited(leaf, below)
        grad = torch.zeros_like(x) if grad is None else grad
        grad_w_out = (torch.where(on, F.gelu(logits), 0).flatten(1).T @ grad).view_as(w_out)
        grad_z = torch.where(on, torch.ops.aten.gelu_backward((grad @ w_out.flatten(0, 1).T).view_as(logits), logits), 0)
        if grad_logits is not None:
            grad_z = grad_z + grad_logits
        grad_w_in = (grad_z.flatten(1).T @ x).view_as(w_in)
        return grad_z.flatten(1) @ w_in.flatten(0, 1), grad_w_in, grad_z.sum(0), grad_w_out, None


def gathered(x: Tensor, nodes: Tensor, b_in: Tensor | None) -> Tensor:
    """P trees over T tokens by gathering the rows of each token's path: x (T, D), nodes (P, N, 2, D), b_in (P, N) -> (T, D).

    It computes what MaskedTrees does, in float32 and with T·P·(depth + 1)·D multiply-adds in place of T·P·N·D. This is faster on a CPU,
    where a matrix product costs as much per multiply-add as a gather.
    """
    trees, count = nodes.shape[:2]
    table = nodes.view(trees * count, -1)
    roots = count * torch.arange(trees, device=x.device)
    at, y = torch.zeros(len(x), trees, dtype=torch.int64, device=x.device), 0
    for _ in range((count + 1).bit_length() - 1):
        into, out = F.embedding(roots + at, table).unflatten(2, (2, -1)).unbind(2)
        z = (x[:, None] * into).sum(-1)
        if b_in is not None:
            z = z + b_in.flatten()[roots + at]
        y = y + (F.gelu(z)[..., None] * out).sum(1)
        at = 2 * at + 1 + (z > 0)
    return y


def visited(leaf: Tensor, below: Tensor) -> Tensor:
    """True for the rows on the path to each leaf: leaf (T, P), below (M,) -> (T, P, M) bool."""
    rows = torch.arange(len(below), dtype=leaf.dtype, device=leaf.device)
    return leaf[..., None] >> below == rows


class Feedforward(nn.Module):
    """P trees, W always-on neurons and an output bias, each of them where the config has it."""

    def __init__(self, config: Config, ffn: Dense | FFF) -> None:
        super().__init__()
        hidden = config.hidden
        self.norm = nn.LayerNorm(hidden, config.norm.eps)
        trees = isinstance(ffn, FFF)
        width = ffn.dense if trees else ffn.width
        self.nodes = nn.Parameter(torch.empty(ffn.trees, ffn.count, 2, hidden)) if trees else None
        self.b_in = nn.Parameter(torch.empty(ffn.trees, ffn.count)) if trees and ffn.bias_in else None
        self.dense_in = nn.Linear(hidden, width, ffn.bias_in) if width else None
        self.dense_out = nn.Linear(width, hidden, bias=False) if width else None
        self.b_out = nn.Parameter(torch.empty(hidden)) if ffn.bias_out else None
        if trees:
            rows = range(2 ** (ffn.depth + 1))
            below = torch.tensor([ffn.depth + 1 - max(row, 1).bit_length() for row in rows], dtype=torch.int32)
            self.register_buffer("below", below, persistent=False)

    def forward(self, x: Tensor, seen: list[tuple[Tensor, Tensor]] | None = None) -> Tensor:
        """(T, D) -> (T, D). Where there are trees and a list `seen`, (logits (T, P, M), leaf (T, P)) is appended to it."""
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        y = 0
        if self.nodes is not None and seen is None and x.device.type == "cpu" and self.below[1] * GATHERED < self.nodes.shape[1]:
            y = gathered(x.to(self.nodes.dtype), self.nodes, self.b_in)
        elif self.nodes is not None:
            nodes = F.pad(self.nodes.to(dtype), (0, 0, 0, 0, 1, 0))
            b_in = nodes.new_zeros(nodes.shape[:2]) if self.b_in is None else F.pad(self.b_in.to(dtype), (1, 0))
            y, logits, leaf = MaskedTrees.apply(x.to(dtype), nodes[:, :, 0], b_in, nodes[:, :, 1], self.below)
            if seen is not None:
                seen.append((logits, leaf))
        if self.dense_in is not None:
            y = y + self.dense_out(F.gelu(self.dense_in(x)))
        return y if self.b_out is None else y + self.b_out.to(y.dtype)

    def balance(self, logits: Tensor, leaf: Tensor, mask: Tensor | None) -> Tensor:
        """The distance of the decisions from sending half of a node's tokens each way: from 0, balanced, to 1/4.

        It is the mean over trees of the sum over nodes of share · (p - 1/2)². share is the part of the tokens that visits the node, so
        nodes with few tokens count for little; p is the mean over them of sigmoid(z / DECIDED). mask (T,) bool or None. Processes that
        train together balance their own tokens each.
        """
        half = len(self.below) // 2  # rows before this one decide; the others are leaves
        on = visited(leaf, self.below)[..., :half]
        on = (on if mask is None else on & mask[:, None, None]).float()
        count = on.sum(0)
        right = (on * torch.sigmoid(logits[..., :half].float() / DECIDED)).sum(0) / count.clamp(min=1)
        return (count / len(leaf) * (right - 0.5) ** 2).sum(-1).mean()


# --- the encoder -----------------------------------------------------------------------------------


class Attention(nn.Module):
    """Multi-head self-attention inside each text, with its norm."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = nn.LayerNorm(config.hidden, config.norm.eps)
        self.qkv = nn.Linear(config.hidden, 3 * config.hidden, config.attention_bias)
        self.out = nn.Linear(config.hidden, config.hidden, config.attention_bias)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, L, D) -> (B, L, D). The rows of padding hold arbitrary values."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None, None])
        return self.out(y.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention and feedforward, each with a residual and a norm before it or after it."""

    def __init__(self, config: Config, ffn: Dense | FFF) -> None:
        super().__init__()
        self.pre_norm = config.norm.order == "pre"
        self.attention = Attention(config)
        self.ffn = Feedforward(config, ffn)

    def forward(self, x: Tensor, mask: Tensor | None, dropout: float, seen: list[tuple[Tensor, Tensor]] | None) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        for block in (self.attention, self.ffn):
            y = block.norm(x) if self.pre_norm else x
            # A feedforward sees T tokens and not their arrangement, so that it is compiled once for all of them.
            y = block(y, mask) if block is self.attention else block(y.flatten(0, 1), seen).view_as(x)
            x = x + F.dropout(y, dropout, self.training)
            if not self.pre_norm:
                x = block.norm(x)
        return x


class Embedding(nn.Module):
    """Word, position and token type, summed, with a norm where the config has one."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.word = nn.Parameter(torch.empty(config.vocabulary, config.hidden))
        learned = config.positions.kind == "learned"
        self.skip = config.positions.skip
        rows = config.positions.max + (self.skip is not None)
        self.position = nn.Parameter(torch.empty(rows, config.hidden)) if learned else None
        self.position_scale = None if learned else nn.Parameter(torch.empty(1))
        if not learned:
            self.register_buffer("sines", torch.from_numpy(sinusoids(config.positions.max, config.hidden)), persistent=False)
        self.token_type = nn.Parameter(torch.empty(config.token_types, config.hidden)) if config.token_types else None
        self.norm = nn.LayerNorm(config.hidden, config.norm.eps) if config.embedding_norm else None

    def forward(self, ids: Tensor, types: Tensor | None) -> Tensor:
        """(B, L) -> (B, L, D)."""
        length = ids.shape[1]
        x = F.embedding(ids, self.word)
        if self.skip is not None:
            counted = ids != self.skip
            x = x + F.embedding(counted.cumsum(1) * counted, self.position)
        else:
            x = x + (self.position[:length] if self.position is not None else self.position_scale * self.sines[:length])
        if self.token_type is not None:
            x = x + (self.token_type[0] if types is None else F.embedding(types, self.token_type))
        return x if self.norm is None else self.norm(x)


class Encoder(nn.Module):
    """The trainable model of a Config, with fresh weights from torch's random generator; load() opens a checkpoint instead.

    dropout  share of the embeddings, and of what each block adds, that training mode drops

    Raises ConfigError for pruned trees, which cannot be trained.
    """

    def __init__(self, config: Config, dropout: float = 0.0) -> None:
        super().__init__()
        if any(isinstance(ffn, FFF) and ffn.children for ffn in config.ffn):
            raise ConfigError("ffn has pruned trees (children true), which cannot be trained: train full trees, then prune")
        self.config = dataclasses.replace(config, stored=Stored())
        self.dropout = dropout
        self.embedding = Embedding(config)
        self.layers = nn.ModuleList(Layer(config, ffn) for ffn in config.ffn)
        self.final_norm = nn.LayerNorm(config.hidden, config.norm.eps) if config.final_norm else None
        self.tasks = _heads(config)
        self._start()

    def forward(
        self, ids: Tensor, mask: Tensor | None = None, types: Tensor | None = None, seen: list[tuple[Tensor, Tensor]] | None = None
    ) -> list[Tensor]:
        """The hidden states, each (B, L, D): of the embedding and of every layer, the last one after the final norm.

        seen  a list that gets (logits (B·L, P, M), leaf (B·L, P)) of each layer that has trees
        """
        x = F.dropout(self.embedding(ids, types), self.dropout, self.training)
        states = [x]
        for layer in self.layers:
            x = layer(x, mask, self.dropout, seen)
            states.append(x)
        if self.final_norm is not None:
            states[-1] = self.final_norm(x)
        return states

    def embed(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """Final hidden states (B, L, D) -> embeddings (B, D), float32, as tasks.embed says."""
        pooled = pool(states, mask, self.config.tasks.embed.pooling)
        return F.normalize(pooled, dim=-1, eps=1e-12) if self.config.tasks.embed.normalize else pooled

    def classify(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """Final hidden states (B, L, D) -> logits (B, K)."""
        head = self.config.tasks.classify
        x = pool(states, mask, head.pooling)
        for layer, linear in zip(head.layers, self.tasks.classify.layers, strict=True):
            x = {"tanh": torch.tanh, "relu": F.relu, "gelu": F.gelu}[layer.activation](linear(x))
        return self.tasks.classify.out(F.dropout(x, self.dropout, self.training))

    def tag(self, states: Tensor) -> Tensor:
        """Final hidden states (B, L, D) -> logits (B, L, K)."""
        return self.tasks.tag.out(F.dropout(states, self.dropout, self.training))

    def answer(self, states: Tensor) -> Tensor:
        """Final hidden states (B, L, D) -> start and end logits (B, L, 2)."""
        return self.tasks.answer.out(states)

    def fill_mask(self, states: Tensor) -> Tensor:
        """The final hidden states to decode (..., D) -> logits (..., V)."""
        head = self.tasks.fill_mask
        if head.transform is not None:
            states = head.norm(F.gelu(head.transform(states)))
        return F.linear(states, self.embedding.word if head.decoder is None else head.decoder.weight, head.bias)

    @torch.no_grad()
    def _start(self) -> None:
        """Fill in fresh weights. In-rows give a normed token logits of about 0.6; out-rows shrink with the neurons that a token uses."""
        for name, weight in self.named_parameters():
            if name.endswith(("bias", "b_in", "b_out")):
                weight.zero_()
            elif name.endswith("norm.weight"):
                weight.fill_(1)
            elif name.endswith("position_scale"):
                weight.fill_(self.config.hidden**-0.5)
            elif name.endswith(".nodes"):
                used = self.config.ffn[int(name.split(".")[1])].used
                weight[:, :, 0].normal_(std=(3 * self.config.hidden) ** -0.5)
                weight[:, :, 1].normal_(std=0.17 * used**-0.5)
            else:
                weight.normal_(std=INIT)


def _heads(config: Config) -> nn.Module:
    tasks, hidden = config.tasks, config.hidden
    heads = nn.ModuleDict()
    if tasks.fill_mask:
        heads["fill_mask"] = _FillMask(config, tasks.fill_mask)
    if tasks.classify:
        heads["classify"] = _Classify(hidden, tasks.classify)
    if tasks.tag:
        heads["tag"] = nn.ModuleDict({"out": nn.Linear(hidden, len(tasks.tag.labels))})
    if tasks.answer:
        heads["answer"] = nn.ModuleDict({"out": nn.Linear(hidden, 2)})
    return heads


class _FillMask(nn.Module):
    def __init__(self, config: Config, head: FillMask) -> None:
        super().__init__()
        self.transform = nn.Linear(config.hidden, config.hidden) if head.transform else None
        self.norm = nn.LayerNorm(config.hidden, config.norm.eps) if head.transform else None
        self.decoder = None if head.tied else nn.Linear(config.hidden, config.vocabulary, bias=False)
        self.bias = nn.Parameter(torch.empty(config.vocabulary)) if head.bias else None


class _Classify(nn.Module):
    def __init__(self, hidden: int, head: Classify) -> None:
        super().__init__()
        widths = [hidden, *(layer.width for layer in head.layers)]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.out = nn.Linear(widths[-1], len(head.labels))


def pool(states: Tensor, mask: Tensor | None, kind: Pooling) -> Tensor:
    """A float32 vector per text: (B, L, D), (B, L) -> (B, D). Padding does not count."""
    states = states.float()
    if kind == "cls":
        return states[:, 0]
    if mask is None:
        mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    mask = mask[..., None]
    if kind == "mean":
        return (states * mask).sum(1) / mask.sum(1)
    states = states.masked_fill(~mask, -torch.inf)
    return states.amax(1) if kind == "max" else states.logsumexp(1)


# --- checkpoints -----------------------------------------------------------------------------------


def load(folder: str | os.PathLike, *, dropout: float = 0.0) -> Encoder:
    """The checkpoint in `folder`, in any layout that fastinfer.load opens, as an Encoder in float32 on the CPU.

    Raises FastinferError as checkpoint.load does.
    """
    config, weights = checkpoint.load(Path(folder), validate=True, read=read_weights)
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


# --- what the trees do -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Usage:
    """The spread of a layer's tokens over the leaves of its trees.

    effective  the perplexity of the leaves' shares of the tokens, divided by the number of leaves: 1 where all leaves get the same; the
               mean over trees
    dead       the part of the leaves that no token reached
    """

    effective: float
    dead: float


def leaf_counts(leaf: Tensor, leaves: int, mask: Tensor | None = None) -> Tensor:
    """The number of tokens that reach each leaf: leaf (T, P) as MaskedTrees gives it, mask (T,) -> (P, leaves) int64."""
    if mask is not None:
        leaf = leaf[mask]
    trees = torch.arange(leaf.shape[1], device=leaf.device)
    return torch.bincount((leaf - leaves + trees * leaves).flatten(), minlength=len(trees) * leaves).view(-1, leaves)


def usage(counts: Tensor) -> Usage:
    """The Usage of the trees, from the tokens that reached each leaf (P, leaves)."""
    share = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    perplexity = torch.special.entr(share).sum(1).exp()
    return Usage(float((perplexity / counts.shape[1]).mean()), float((counts == 0).double().mean()))
