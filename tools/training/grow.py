"""A student's feedforwards started from a dense teacher's neurons, as text uses them.

The neurons that are always on are the teacher's strongest. Trees are grown from the root: a node sends half of its tokens to each side,
along the direction in which its inputs vary most with what the neurons give. A leaf gets the neurons that matter most for its tokens
and are not always on. Then least squares fit the out-rows to the teacher's output. So at first a student computes the teacher's
feedforward, pruned for each leaf. Nodes that decide give nothing at first.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from training.encoder import Encoder
from training.feedforward import Feedforward
from training.loop import Data

POWERS = 10  # power iterations for the direction of a node
ROUNDS = 2  # in which out-rows of leaves and those that are always on are fitted in turn
PRIOR = 50  # tokens: least squares hold to the teacher's out-rows as firmly as so many tokens would


@torch.no_grad()
def inputs(teacher: Encoder, data: Data, tokens: int, device: torch.device) -> list[Tensor]:
    """What at least so many tokens of text give to the feedforward of each of the teacher's layers: (T, D) float32 on the device."""
    found: list[list[Tensor]] = [[] for _ in teacher.layers]
    masks: list[Tensor] = []
    hooks = [
        layer.ffn.register_forward_pre_hook(lambda _, given, kept=kept: kept.append(given[0][masks[-1]].float()))
        for layer, kept in zip(teacher.layers, found, strict=True)
    ]
    teacher = teacher.to(device).eval()
    count = 0
    while count < tokens:
        ids, mask = data.batch(len(masks))
        masks.append(mask.flatten())
        teacher(ids, mask)
        count += int(masks[-1].sum())
    for hook in hooks:
        hook.remove()
    return [torch.cat(kept) for kept in found]


@torch.no_grad()
def grow(mine: Feedforward, theirs: Feedforward, x: Tensor) -> None:
    """Start `mine` from the neurons of `theirs`, a dense feedforward, as its inputs x (T, D) use them. All are on one device."""
    wanted = theirs(x)
    size = (x + wanted).norm(dim=1, keepdim=True)  # of the states that follow: errors count in parts of it
    active, wanted = theirs.activation(theirs.dense_in(x)) / size, wanted / size
    outs = theirs.dense_out.weight.T
    given = active * outs.norm(dim=1)
    order = given.square().mean(0).argsort(descending=True)
    on = order[: 0 if mine.dense_in is None else len(mine.dense_in.weight)]
    leaves: list[Leaf] = []
    trees = 0 if mine.nodes is None else len(mine.nodes)
    for tree in range(trees):  # each has a part of the neurons, so that no two have the same
        leaves += grow_tree(mine, tree, theirs, order[len(on) + tree :: trees], x, given)
    bias = torch.zeros_like(x[:1]) if theirs.b_out is None else theirs.b_out[None]
    always, held = torch.cat([active[:, on], 1 / size], 1), torch.cat([outs[on], bias])
    rows, made = held, torch.zeros_like(wanted)  # made: what the trees give
    for _, tokens, best in leaves:
        made[tokens] += active[tokens][:, best] @ outs[best]
    for _ in range(ROUNDS if leaves else 1):
        for block, tokens, best in leaves:
            some = active[tokens][:, best]
            left = wanted[tokens] - always[tokens] @ rows - made[tokens]
            fitted = fit(some, left + some @ block, outs[best])
            made[tokens] += some @ (fitted - block)
            block.copy_(fitted)
        rows = fit(always, wanted - made, held)
    if mine.dense_in is not None:
        copy_neurons(mine.dense_in.weight, mine.dense_in.bias, theirs, on)
        mine.dense_out.weight.copy_(rows[:-1].T)
    if mine.b_out is not None:
        mine.b_out.copy_(rows[-1])


class Leaf(NamedTuple):
    """A grown leaf: the out-rows (L, D) of its neurons, the tokens that reach it, and the teacher's neurons that it has."""

    rows: Tensor
    tokens: Tensor
    neurons: Tensor


def grow_tree(mine: Feedforward, tree: int, theirs: Feedforward, neurons: Tensor, x: Tensor, given: Tensor) -> list[Leaf]:
    """Start one tree from some of the teacher's neurons, of which `given` (T, neurons of the teacher) says how much each gives."""
    nodes, b_in, form, given = mine.nodes[tree], mine.b_in[tree], mine.ffn, given[:, neurons]
    there = {0: torch.arange(len(x), device=x.device)}  # {node: the tokens that reach it}
    missed: set[int] = set()  # nodes that no token reaches, because tokens that are equal go one way; they start as if all of these came
    deciding = 2**form.depth - 1
    nodes[:deciding, 1] = 0
    for node in range(deciding):
        tokens = there.pop(node)
        row, bias = decision(x[tokens], given[tokens])
        nodes[node, 0], b_in[node] = row, bias
        right = x[tokens] @ row + bias > 0
        for child, some in enumerate((tokens[~right], tokens[right]), 2 * node + 1):
            there[child] = some if len(some) else tokens
            if node in missed or not len(some):
                missed.add(child)
    leaves = []
    for leaf, tokens in there.items():
        block = slice(deciding + (leaf - deciding) * form.leaf, deciding + (leaf - deciding + 1) * form.leaf)
        best = neurons[given[tokens].square().mean(0).topk(form.leaf).indices]
        copy_neurons(nodes[block, 0], b_in[block], theirs, best)
        nodes[block, 1] = theirs.dense_out.weight.T[best]
        if leaf not in missed:
            leaves.append(Leaf(nodes[block, 1], tokens, best))
    return leaves


def copy_neurons(rows: Tensor, biases: Tensor, theirs: Feedforward, which: Tensor) -> None:
    """Copy the in-rows and the biases of some of the teacher's neurons."""
    rows.copy_(theirs.dense_in.weight[which])
    if theirs.dense_in.bias is not None:
        biases.copy_(theirs.dense_in.bias[which])


def decision(x: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
    """(in-row, bias) of a node that sends half of the tokens x (T, D) to each side, with logits of a variance of 1.

    Its direction is that of the largest covariance between x and what the neurons give (T, neurons).
    """
    mean = x.mean(0)
    x, given = x - mean, given - given.mean(0)
    covariance = x.T @ given
    covariance /= covariance.abs().max().clamp(min=torch.finfo(x.dtype).tiny)  # fourth powers for 1e5 tokens exceed float32
    row = covariance.square().sum(1)
    for _ in range(POWERS):
        row = F.normalize(covariance @ (covariance.T @ row), dim=0)
    logits = x @ row
    row = row / logits.square().mean().sqrt().clamp(min=1e-3)
    return row, -(mean @ row) - (x @ row).quantile(0.5)  # torch.median gives a token's logit, which rounding puts on either side


def fit(active: Tensor, wanted: Tensor, prior: Tensor) -> Tensor:
    """The out-rows (n, D) with which the activations (T, n) give what is wanted (T, D), by least squares held to `prior`."""
    gram = active.T @ active
    held = (PRIOR / len(active)) * gram.diagonal().clamp(min=torch.finfo(gram.dtype).eps * float(gram.trace()))
    gram = gram + held.diag()
    return prior + torch.linalg.solve(gram, active.T @ (wanted - active @ prior))
