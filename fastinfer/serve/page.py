"""The page at /: a text, its answer, and the path of one of its tokens down a tree, with the recent texts that share the leaf."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..config import FFF
from ..errors import InputError, TaskError, check_int
from ..routes import WITH_TREES
from ..svg import COLOURS, FAINT, circle, line, svg, text
from . import requests as r
from .endpoint import endpoint
from .served import Served

__all__ = ["ENDPOINTS", "HEADERS", "html"]

# The pages load nothing from elsewhere, and nothing from elsewhere may frame them.
HEADERS = {
    "content-security-policy": "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}
TOP, STEP, LEFT, WIDE, SAID = 50, 30, 20, 430, 480  # pixels: above the root, of a level, of the tree, where words begin
SHARED = 20  # texts that are named


def html(name: str) -> str:
    """A page of this package."""
    return (Path(__file__).parent / f"{name}.html").read_text("utf-8")


class Walked(NamedTuple):
    """A text that the page showed: its tokens, and the leaf that each reached in each tree, by the number of the layer (tokens, P)."""

    text: str
    words: list[str]
    leaves: dict[int, np.ndarray]


@endpoint("/path", answered=dict[str, Any])
async def path(served: Served, asked: r.PathRequest) -> dict[str, Any]:
    """The way of a token of a text down a tree, drawn, with the texts of this page that share its leaf. The page at / asks this."""
    packed = await served.packed(served.read(asked.text, "text"), "text")
    [found] = await served.alone("routes", packed)
    routes = {number: route for number, route in enumerate(found, 1) if route is not None}
    if not routes:
        raise TaskError(f"{served.name} has no trees: paths are for models with fast feedforward layers, such as {WITH_TREES}")
    layer = max(routes) if asked.layer is None else asked.layer
    if layer not in routes:
        raise InputError(f"layer is {layer}, expected one of those with trees: {', '.join(map(str, routes))}")
    nodes, z = routes[layer]
    check_int("tree", asked.tree, 1, nodes.shape[1], because=f", the trees of layer {layer}")
    words = served.words(asked.text)[: len(nodes)]
    token = min(1, len(words) - 1) if asked.token is None else check_int("token", asked.token, 0, len(words) - 1)
    tree = asked.tree - 1
    walked = Walked(asked.text, words, {number: _leaves(route[0]) for number, route in routes.items()})
    shared = _sharing(served.recent, walked, layer, tree, token)
    if all(asked.text != other.text for other in served.recent):
        served.recent.append(walked)
    ways = [_way(nodes[i, tree], z[i, tree]) for i in range(len(words))]
    ffn = served.model.config.ffn[layer - 1]
    title = f"“{words[token]}” in layer {layer}, a tree of {ffn.count if isinstance(ffn, FFF) else 0:,} neurons, of which it uses"
    return {
        "tokens": words,
        "token": token,
        "layer": layer,
        "layers": list(routes),
        "trees": nodes.shape[1],
        "steps": [{"node": node, "margin": margin, "right": margin > 0} for node, margin in ways[token]],
        "shared": shared,
        "svg": _drawn(f"{title} {len(ways[token])}", ways, token, words, shared),
    }


def _leaves(nodes: np.ndarray) -> np.ndarray:
    """The last node of each path (tokens, P) of nodes (tokens, P, depth + 1), which are -1 behind a stop."""
    last = (nodes >= 0).sum(2, keepdims=True) - 1
    leaves: np.ndarray = np.take_along_axis(nodes, last, 2)[:, :, 0]
    return leaves


def _way(nodes: np.ndarray, z: np.ndarray) -> list[tuple[int, float]]:
    """The nodes of a path with their logits, from the root on."""
    return [(int(node), float(margin)) for node, margin in zip(nodes, z, strict=True) if node >= 0]


def _sharing(recent: Any, walked: Walked, layer: int, tree: int, token: int) -> list[dict[str, Any]]:
    """The recent texts of which a token reached the same leaf, the latest first, with these tokens."""
    leaf = walked.leaves[layer][token, tree]
    found = []
    for other in reversed(recent):
        rows = np.flatnonzero(other.leaves[layer][: len(other.words), tree] == leaf).tolist()
        if rows and other.text != walked.text:
            found.append({"text": other.text, "tokens": list(dict.fromkeys(other.words[row] for row in rows))})
    return found[:SHARED]


def _drawn(title: str, ways: list[list[tuple[int, float]]], token: int, words: list[str], shared: list[dict[str, Any]]) -> str:
    """The paths of all tokens, that of one token in colour with what each of its neurons decided."""
    levels = max(map(len, ways))
    parts = [text(0, 18, title, bold=True, size=15)]
    parts += [text(0, 36, "Pale lines are the paths of the other tokens of this text.")]
    for other in (way for i, way in enumerate(ways) if i != token):
        places = _places(other)
        parts += [line(*a, *b) for a, b in itertools.pairwise(places)]
    places = _places(ways[token])
    parts += [line(*a, *b, colour=COLOURS[1], width=3) for a, b in itertools.pairwise(places)]
    for level, ((x, y), (node, margin)) in enumerate(zip(places, ways[token], strict=True)):
        last = level == len(ways[token]) - 1
        turn = "the leaf" if last else "right" if margin > 0 else "left"
        parts.append(circle(x, y, 6, COLOURS[1]))
        parts.append(text(SAID, y + 4, f"neuron {node:,}: z = {margin:+.3f}, {turn}", colour=COLOURS[1]))
        parts.append(line(LEFT, y, LEFT + WIDE, y, colour=FAINT, dash="1 7"))
    together = list(dict.fromkeys([words[token], *(word for one in shared for word in one["tokens"])]))
    bottom = TOP + levels * STEP + 14
    parts.append(text(0, bottom, "At this leaf: " + ", ".join(together[:8])))
    return svg(title, bottom + 14, parts)


def _places(way: list[tuple[int, float]]) -> list[tuple[float, float]]:
    """Where the nodes of a path are drawn: each turn goes to one half of the width that is left."""
    x, width = 0.5, 0.5
    places = []
    for level, (_, margin) in enumerate(way):
        places.append((LEFT + x * WIDE, float(TOP + 10 + level * STEP)))
        width /= 2
        x += width if margin > 0 else -width
    return places


ENDPOINTS = (path,)
