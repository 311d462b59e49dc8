"""The trainable feedforward: trees, neurons that are always on, and what the trees do with their tokens.

Trees are trained masked and dense: one matrix product gives the logits of all nodes, each token's path is walked in them, and
nodes off the path count as zero. The walk follows the sign of the logits, which has no gradient. It learns all the same, because a
node's logit is also its activation. Leaves that are blocks are trained so, too. Silent nodes add nothing, so only the balance loss
teaches them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastinfer.activations import Activation
from fastinfer.config import FFF, Config, Dense, Gated
from training.norm import make_norm

GATHERED = 16  # a CPU gathers the rows of a path where a tree has this many times more nodes than the path
DECIDED = 0.3  # the balance loss takes a logit of this size for a clear decision
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "relu": F.relu,
    "silu": F.silu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
}


class Leaves(list[tuple[Tensor | None, Tensor]]):
    """A list `seen` for Encoder.forward of a caller who wants the leaf of each token and not the logits of all nodes."""


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


class GatheredTrees(torch.autograd.Function):
    """P trees over T tokens by gathering the rows of each token's path: x (T, D), nodes (P, N, 2, D), b_in (P, N) or None
    -> (y (T, D), leaf (T, P) int32), y and leaf as MaskedTrees gives them.

    It takes T·P·(depth + 1)·D multiply-adds in place of T·P·N·D. This is faster on a CPU, where a matrix product costs as much per
    multiply-add as a gather. For the backward pass it keeps the paths and their logits, (T, P, depth + 1) of each, and gathers again.
    """

    @staticmethod
    def forward(ctx, x: Tensor, nodes: Tensor, b_in: Tensor | None) -> tuple[Tensor, Tensor]:
        """(y, leaf) as the class says."""
        trees, count = nodes.shape[:2]
        roots = count * torch.arange(trees, device=x.device)
        at, y = torch.zeros(len(x), trees, dtype=torch.int64, device=x.device), torch.zeros_like(x)
        path, logits = [], []
        for _ in range((count + 1).bit_length() - 1):
            into, out = _rows_of(nodes, roots + at)
            z = (into @ x[..., None])[..., 0]
            if b_in is not None:
                z = z + b_in.flatten()[roots + at]
            y += (F.gelu(z)[:, None] @ out)[:, 0]
            path.append(at)
            logits.append(z)
            at = 2 * at + 1 + (z > 0)
        ctx.save_for_backward(x, nodes, torch.stack(path), torch.stack(logits))
        ctx.has_bias = b_in is not None
        leaf = path[-1].int() + 1
        ctx.mark_non_differentiable(leaf)
        return y, leaf

    @staticmethod
    def backward(ctx, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
        """The gradients of the three arguments, from that of y. Each level of the trees has its own nodes, so it writes their part."""
        x, nodes, path, logits = ctx.saved_tensors
        trees, count = nodes.shape[:2]
        tree = torch.arange(trees, device=x.device)
        grad_x, grad_nodes = torch.zeros_like(x), torch.empty_like(nodes)
        grad_b_in = nodes.new_zeros(trees, count) if ctx.has_bias else None
        for level, (at, z) in enumerate(zip(path, logits, strict=True)):
            into, out = _rows_of(nodes, count * tree + at)
            grad_z = torch.ops.aten.gelu_backward((out @ grad[..., None])[..., 0], z)
            grad_x += (grad_z[:, None] @ into)[:, 0]
            first, size = 2**level - 1, 2**level
            pairs = torch.stack([grad_z[..., None] * x[:, None], F.gelu(z)[..., None] * grad[:, None]], 2)
            places = at - first + size * tree
            summed = torch.ops.aten.embedding_dense_backward(pairs.flatten(2), places, trees * size, -1, False)
            grad_nodes[:, first : first + size] = summed.view(trees, size, *nodes.shape[2:])
            if grad_b_in is not None:
                grad_b_in.view(-1).index_add_(0, (count * tree + at).flatten(), grad_z.flatten())
        return grad_x, grad_nodes, grad_b_in


def masked_blocks(
    x: Tensor,
    rows: Tensor,
    b_in: Tensor | None,
    b_leaf: Tensor | None,
    ffn: FFF,
    activation: Callable[[Tensor], Tensor],
    place: Tensor,
    below: Tensor,
    temperature: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Trees whose leaves are blocks, over T tokens: (y (T, D), logits (T, P, M), leaf (T, P) int32), logits and leaf as MaskedTrees gives
    them: M = 2**(depth + 1), row n + 1 has the logit of node n, and the rows of leaves have zeros.

    x (T, D); rows (P, N, 2, D) and b_in (P, N): nodes that decide, then block after block; b_leaf (P, B, D). A neuron adds for the
    tokens whose path has its place (N,) int32, a row of MaskedTrees, which has `below` (N,) levels under it; row 0 is on no path. With a
    temperature, a token takes both ways at each node, each by its share, which is sigmoid(z / temperature) for the right one.
    """
    z = F.linear(x, rows[:, :, 0].flatten(0, 1), None if b_in is None else b_in.flatten()).unflatten(1, rows.shape[:2])
    nodes = z[..., : ffn.node_count]
    leaf = torch.ones(z.shape[:2], dtype=torch.int32, device=x.device)
    for _ in range(ffn.depth):
        leaf = 2 * leaf + (nodes.gather(2, leaf[..., None].long() - 1)[..., 0] > 0).int()
    if temperature is None:
        on = leaf[..., None] >> below == place  # compared and not gathered, so that one kernel computes it with the activation
        middle = torch.where(on, activation(z), 0)
        reached = F.one_hot(leaf.long() - ffn.blocks, ffn.blocks).to(z.dtype)
    else:
        visits, reached = shares(nodes, ffn.depth, temperature)
        inner = torch.zeros_like(visits) if ffn.silent else visits
        middle = activation(z) * torch.cat([inner, reached.repeat_interleave(ffn.leaf, 2)], 2)
    y = middle.flatten(1) @ rows[:, :, 1].flatten(0, 1)
    if b_leaf is not None:
        y = y + reached.flatten(1) @ b_leaf.flatten(0, 1)
    logits = F.pad(nodes, (1, ffn.blocks))
    return y, logits, leaf


def shares(nodes: Tensor, depth: int, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """The part of each token that reaches each node (T, P, I) and each leaf (T, P, 2**depth), from the logits of the nodes (T, P, I)."""
    right = torch.sigmoid(nodes / temperature)
    share, levels = nodes.new_ones(*nodes.shape[:2], 1), [nodes[..., :0]]
    for level in range(depth):
        levels.append(share)
        there = right[..., 2**level - 1 : 2 ** (level + 1) - 1]
        share = torch.stack([share * (1 - there), share * there], -1).flatten(2)
    return torch.cat(levels, 2), share


def _rows_of(nodes: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """The in-rows and out-rows (T, P, D) of the nodes (P, N, 2, D) at `places` (T, P), which count through all trees."""
    return F.embedding(places, nodes.view(-1, 2 * nodes.shape[3])).unflatten(2, (2, -1)).unbind(2)


def visited(leaf: Tensor, below: Tensor) -> Tensor:
    """True for the rows on the path to each leaf: leaf (T, P), below (M,) -> (T, P, M) bool."""
    rows = torch.arange(len(below), dtype=leaf.dtype, device=leaf.device)
    return leaf[..., None] >> below == rows


class Feedforward(nn.Module):
    """P trees, W always-on neurons, perhaps gated, and an output bias, each of them where the config has it."""

    def __init__(self, config: Config, ffn: Dense | Gated | FFF) -> None:
        super().__init__()
        hidden = config.hidden
        self.norm = make_norm(config)
        trees = isinstance(ffn, FFF)
        width = ffn.dense if trees else ffn.width
        self.nodes = nn.Parameter(torch.empty(ffn.trees, ffn.count, 2, hidden)) if trees else None
        self.b_in = nn.Parameter(torch.empty(ffn.trees, ffn.count)) if trees and ffn.bias_in else None
        self.dense_in = nn.Linear(hidden, width, ffn.bias_in) if width else None
        self.dense_up = nn.Linear(hidden, width, ffn.bias_in) if isinstance(ffn, Gated) else None
        self.dense_out = nn.Linear(width, hidden, bias=False) if width else None
        self.activation = ACTIVATIONS[ffn.activation or config.activation]
        self.b_leaf = nn.Parameter(torch.empty(ffn.trees, ffn.blocks, hidden)) if trees and ffn.bias_leaf else None
        self.b_out = nn.Parameter(torch.empty(hidden)) if ffn.bias_out else None
        if trees:
            self.ffn = ffn
            self.tree_activation = ACTIVATIONS[ffn.activation or "gelu"]
            self.depth = ffn.depth
            rows = range(2 ** (ffn.depth + 1))
            below = torch.tensor([ffn.depth + 1 - max(row, 1).bit_length() for row in rows], dtype=torch.int32)
            self.register_buffer("below", below, persistent=False)
            leaves = 2**ffn.depth
            place = [0 if ffn.silent else row for row in range(1, leaves)] + [
                row for row in range(leaves, 2 * leaves) for _ in range(ffn.leaf)
            ]
            self.soft = False
            self.register_buffer("temperature", torch.zeros(()), persistent=False)
            self.register_buffer("place", torch.tensor(place, dtype=torch.int32), persistent=False)

    def soften(self, temperature: float) -> None:
        """In training mode, let tokens take both ways at each node by shares of this temperature; 0: one way."""
        if self.nodes is not None:
            self.soft = temperature > 0
            self.temperature.fill_(temperature)

    def forward(self, x: Tensor, seen: list[tuple[Tensor, Tensor]] | None = None) -> Tensor:
        """(T, D) -> (T, D). Where there are trees and a list `seen`, (logits (T, P, M), leaf (T, P)) is appended to it.

        Where `seen` is of kind Leaves, logits may be None.
        """
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        y = 0
        without_logits = seen is None or isinstance(seen, Leaves)
        soft = self.nodes is not None and self.soft and self.training
        if self.nodes is not None and (soft or self.ffn.has_blocks or self.ffn.activation not in (None, "gelu")):
            form, temperature = self.ffn, self.temperature.to(dtype) if soft else None
            if not form.has_blocks:  # a leaf that adds as other nodes do is a block of one neuron
                form = dataclasses.replace(form, bias_leaf=True)
            biases = [None if b is None else b.to(dtype) for b in (self.b_in, self.b_leaf)]
            place, below = self.place, self.below[self.place]
            y, logits, leaf = masked_blocks(
                x.to(dtype), self.nodes.to(dtype), *biases, form, self.tree_activation, place, below, temperature
            )
            if seen is not None:
                seen.append((logits, leaf))
        elif self.nodes is not None and without_logits and x.device.type == "cpu" and self.depth * GATHERED < self.nodes.shape[1]:
            y, leaf = GatheredTrees.apply(x.to(self.nodes.dtype), self.nodes, self.b_in)
            if seen is not None:
                seen.append((None, leaf))
        elif self.nodes is not None:
            nodes = F.pad(self.nodes.to(dtype), (0, 0, 0, 0, 1, 0))
            b_in = nodes.new_zeros(nodes.shape[:2]) if self.b_in is None else F.pad(self.b_in.to(dtype), (1, 0))
            y, logits, leaf = MaskedTrees.apply(x.to(dtype), nodes[:, :, 0], b_in, nodes[:, :, 1], self.below)
            if seen is not None:
                seen.append((logits, leaf))
        if self.dense_in is not None:
            middle = self.activation(self.dense_in(x))
            y = y + self.dense_out(middle if self.dense_up is None else middle * self.dense_up(x))
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
