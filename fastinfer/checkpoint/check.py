"""Checks of stored tensors: the set that a Config has, tables of children, NaN and infinity."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..config import FFF, Config, Disentangled
from ..errors import CheckpointError, listed, short
from .spec import Spec, tensors
from .tensor import DTYPES, Tensor

__all__ = ["check", "check_children", "check_finite"]

SCAN = 1 << 20  # values that check_finite converts at a time
MAX_COMPUTED = 64 << 20  # bytes: computed tables may be so large, or as large as the weights; no stored tensor confirms their size


def computed_bytes(config: Config) -> int:
    """The bytes of the tables of positions that are computed and not stored."""
    values = 0
    if config.positions.kind == "scaled-sinusoidal":
        values += config.embedding_width or config.hidden
    values += config.hidden // config.heads * len({(a.theta, a.scale) for a in config.attention if a.theta is not None})
    if config.distances is not None:
        values += 2 * (1 if isinstance(config.distances, Disentangled) else config.heads)
    return 4 * config.positions.max * values


def check(config: Config, stored: Mapping[str, Tensor], where: str, hint: str = "") -> dict[str, Tensor]:
    """The tensors of `stored` by name, with the scales of int8 tensors attached.

    where, hint  what an error begins with, and what it ends with: what to do about tensors that do not fit

    Raises CheckpointError, which lists every tensor of another name, shape or dtype than `config` says.
    """
    spec = tensors(config)
    problems = [f"missing    {name} {spec[name].shape} {spec[name].dtype}" for name in spec if name not in stored]
    problems += [f"surplus    {short(name)} {t.data.shape} {t.dtype}" for name, t in stored.items() if name not in spec]
    problems += [p for name in spec.keys() & stored.keys() if (p := _problem(name, stored[name], spec[name])) is not None]
    if problems:
        raise CheckpointError(
            f"{where}: {len(problems)} tensor{'s' * (len(problems) > 1)} not as config.json says:\n  "
            + listed(sorted(problems), "\n  ")
            + hint
        )
    size, weights = computed_bytes(config), sum(t.nbytes for t in stored.values())
    if size > max(MAX_COMPUTED, weights):
        raise CheckpointError(
            f"{where}: positions.max is {config.positions.max}, whose tables would take {size} bytes, "
            f"expected at most {max(MAX_COMPUTED, weights)}, for weights of {weights} bytes"
        )
    found = {}
    for name, (_, dtype, family) in spec.items():
        if dtype == "int8":
            found[name] = Tensor(stored[name].data, dtype, stored[f"{name}.scale"].data)
        elif not name.endswith(".scale"):
            found[name] = stored[name]
        if family == "table":
            layer = config.ffn[int(name.split(".")[1])]
            assert isinstance(layer, FFF)
            check_children(found[name].data, layer.depth, f"{where}: {name}", layer.blocks)
    return found


def _problem(name: str, tensor: Tensor, spec: Spec) -> str | None:
    """A line that says how a tensor differs from its Spec, or None when it does not differ."""
    shape, dtype, family = spec
    if tensor.dtype != dtype:
        return f"dtype      {name} is {tensor.dtype}, expected {dtype}"
    if tensor.data.dtype != DTYPES[dtype][1]:
        return f"dtype      {name} holds {tensor.data.dtype}, expected {DTYPES[dtype][1]} for {dtype}"
    if tensor.data.shape == shape:
        return None
    hint = ""
    if family == "trees":
        hint = " = (trees, nodes, in|out, hidden)"
        nodes = tensor.data.shape[1] if tensor.data.ndim == 4 else 0
        if nodes & (nodes + 1) and not shape[1] & (shape[1] + 1):
            hint += f"; {nodes} nodes are not a full tree (2**k - 1)"
    return f"shape      {name} is {tensor.data.shape}, expected {shape}{hint}"


def check_children(children: np.ndarray, depth: int, what: str, blocks: int = 0) -> None:
    """Raise CheckpointError unless every walk down a table of children (P, N, 2) ends after at most depth decisions.

    Each child must be -1 (stop), the index of a later node, so that no walk loops, or a block, N to N + blocks - 1. No node may lie
    deeper than `depth`, and where there are blocks, only they may lie there.
    """
    count = children.shape[1]
    parent = np.arange(count)[None, :, None]
    outside = (children < -1) | (children >= count + blocks)
    if outside.any():
        p, n, side = np.argwhere(outside)[0]
        or_block = f", or a block from {count} to {count + blocks - 1}" * bool(blocks)
        raise CheckpointError(
            f"{what}[{p}, {n}, {side}] is {children[p, n, side]}, expected -1 (stop) or a node from 0 to {count - 1}{or_block}"
        )
    back = (children != -1) & (children <= parent)
    if back.any():
        p, n, side = np.argwhere(back)[0]
        raise CheckpointError(
            f"{what}[{p}, {n}, {side}] is {children[p, n, side]}, expected a node after {n}: "
            "children follow their parent, or a walk could loop"
        )
    # all trees at once: node n of tree p is number p * count + n
    level = np.arange(len(children)) * count
    table = np.where((children < 0) | (children >= count), -1, children + level[:, None, None]).reshape(-1, 2)
    deepest = depth - (blocks > 0)
    for _ in range(deepest):
        level = np.unique(table[level])
        level = level[level >= 0]
    deeper = table[level]
    if (deeper >= 0).any():
        p, n = divmod(int(deeper.max()), count)
        what_for = f"depth={depth} decisions" if deepest == depth else f"{deepest} decisions, where only a block may be"
        raise CheckpointError(f"{what}[{p}] leads to node {n} after more than {what_for}")


def check_finite(found: Mapping[str, Tensor], where: str) -> None:
    """Raise CheckpointError that names every tensor, or scale of one, which holds NaN or infinity."""
    bad = []
    for name, tensor in found.items():
        if tensor.dtype == "int32":
            continue
        values = tensor if tensor.scale is None else Tensor(tensor.scale, "float32")
        flat = values.data.reshape(-1)
        parts = (Tensor(flat[i : i + SCAN], values.dtype).float32() for i in range(0, flat.size, SCAN))
        count = sum(int(np.count_nonzero(~np.isfinite(part))) for part in parts)
        if count:
            bad.append(f"{name}{'.scale' * (tensor.dtype == 'int8')}: {count} of {flat.size}")
    if bad:
        raise CheckpointError(f"{where}: weights that are NaN or infinite:\n  " + listed(bad, "\n  "))
