"""Feedforward kinds: the tensors that each declares, and the forward pass that they share.

A fast feedforward has P trees, a dense one has W neurons that are always on. An fff may have both. With an
optional output bias, the output is

    y = sum over trees, over visited neurons n of act(x.w_in[n] + b_in[n]) * w_out[n], + the leaf's b_leaf
      + act(x @ dense_in.T + bias) @ dense_out.T + b_out

The neurons of a tree that a token visits are the nodes of its path, unless they are silent, and at the path's end a
block of L neurons (Belcak & Wattenhofer, arXiv 2308.14711). With L = 1 and nodes that add, the last node of a path is
like the others (arXiv 2311.10770).

A gated feedforward multiplies its neurons by a linear function of the input (GLU variants, arXiv 2002.05202):

    y = (act(x @ dense_in.T + bias) * (x @ dense_up.T + bias_up)) @ dense_out.T + b_out
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from .config import FFF, Dense, Gated
from .weights import FeedForward
from .workspace import Workspace

if TYPE_CHECKING:
    from .backends.reference import Reference

__all__ = ["KINDS", "Kind", "forward", "tensors"]


def _tensors(ffn: Dense | FFF, hidden: int) -> dict[str, tuple[tuple[int, ...], str]]:
    width = ffn.width if isinstance(ffn, Dense) else ffn.dense
    spec: dict[str, tuple[tuple[int, ...], str]] = {}
    if isinstance(ffn, FFF):
        spec["nodes"] = ((ffn.trees, ffn.count, 2, hidden), "trees")
        if ffn.bias_in:
            spec["b_in"] = ((ffn.trees, ffn.count), "vector")
        if ffn.children:
            spec["children"] = ((ffn.trees, ffn.node_count, 2), "table")
        if ffn.bias_leaf:
            spec["b_leaf"] = ((ffn.trees, ffn.blocks, hidden), "vector")
    if width:
        spec["dense_in.weight"] = ((width, hidden), "matrices")
        if ffn.bias_in:
            spec["dense_in.bias"] = ((width,), "vector")
        spec["dense_out.weight"] = ((hidden, width), "matrices")
    if ffn.bias_out:
        spec["b_out"] = ((hidden,), "vector")
    return spec


def _forward(
    ops: Reference, x: Any, ffn: FeedForward, *, residual: Any | None, out: Any, work: Workspace | None, routes: Any = None
) -> None:
    bias = ffn.b_out
    if ffn.dense_in is not None and ffn.dense_out is not None:
        for rows, middle in _pieces(ops, x, ffn, work):
            ops.linear(x[rows], ffn.dense_in.weight, bias=ffn.dense_in.bias, activation=ffn.activation, out=middle)
            added = None if residual is None else residual[rows]
            ops.linear(middle, ffn.dense_out.weight, bias=bias if ffn.trees is None else None, residual=added, out=out[rows])
        residual = out
    if ffn.trees is not None:
        nodes, z = routes or (None, None)
        ops.fff(x, ffn.trees, bias=bias, residual=residual, out=out, nodes=nodes, z=z)


def _pieces(ops: Reference, x: Any, ffn: FeedForward, work: Workspace | None) -> Iterator[tuple[slice, Any]]:
    """Rows of x that go through all products of a dense layer together, with a buffer for their neurons that stays in the cache."""
    assert work is not None
    assert ffn.dense_in is not None
    width = ops.outputs(ffn.dense_in.weight)
    pieces = max(1, -(-len(x) * width // ops.most_neurons))
    middle = work.take("middle", -(-len(x) // pieces), width)
    for i in range(pieces):
        rows = slice(len(x) * i // pieces, len(x) * (i + 1) // pieces)
        yield rows, middle[: rows.stop - rows.start]


def _gated_tensors(ffn: Gated, hidden: int) -> dict[str, tuple[tuple[int, ...], str]]:
    spec = _tensors(Dense(ffn.width, ffn.bias_in, ffn.bias_out), hidden)
    spec["dense_up.weight"] = ((ffn.width, hidden), "matrices")
    if ffn.bias_in:
        spec["dense_up.bias"] = ((ffn.width,), "vector")
    return spec


def _gated_forward(
    ops: Reference, x: Any, ffn: FeedForward, *, residual: Any | None, out: Any, work: Workspace | None, routes: Any = None
) -> None:
    assert ffn.dense_in is not None
    assert ffn.dense_out is not None
    for rows, middle in _pieces(ops, x, ffn, work):
        ops.linear(x[rows], ffn.others["dense_up.weight"], bias=ffn.others.get("dense_up.bias"), out=middle)
        ops.linear(x[rows], ffn.dense_in.weight, bias=ffn.dense_in.bias, activation=ffn.activation, gate=middle, out=middle)
        ops.linear(middle, ffn.dense_out.weight, bias=ffn.b_out, residual=None if residual is None else residual[rows], out=out[rows])


class Kind(NamedTuple):
    """The two functions of a kind of feedforward, with the parameters of tensors() and forward() below."""

    tensors: Callable[[Any, int], dict[str, tuple[tuple[int, ...], str]]]
    forward: Callable[..., None]


# Keys are the `kind` of a feedforward in a Config. Dense layers and trees share one formula.
KINDS: dict[str, Kind] = {
    "dense": Kind(_tensors, _forward),
    "gated": Kind(_gated_tensors, _gated_forward),
    "fff": Kind(_tensors, _forward),
}


def tensors(ffn: Dense | Gated | FFF, hidden: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """{name: (shape, family)} of one feedforward; families are those of checkpoint.Spec."""
    return KINDS[ffn.kind].tensors(ffn, hidden)


def forward(
    ops: Reference, x: Any, ffn: FeedForward, *, residual: Any | None, out: Any, work: Workspace | None, routes: Any = None
) -> None:
    """out = residual + feedforward(x), computed only by ops, since a backend may run these later.

    x         (T, D)
    residual  (T, D) or None; it may be `out` itself
    out       (T, D); it must not be x
    work      needed only for neurons that are always on
    routes    None, or (nodes, z), both (T, P, depth + 1), to be filled
    """
    KINDS[ffn.kind].forward(ops, x, ffn, residual=residual, out=out, work=work, routes=routes)
