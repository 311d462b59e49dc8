"""How texts use the trees of a model: which neurons they visit, how clear the decisions are, which words end at the same leaf.

`fastinfer routes` prints this as text or as JSON, or draws a tree. A dense layer has no routes and is left out.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import api
from .arguments import INPUT_HELP, PAIRS_HELP, add_model, add_output, add_texts, at_least, describe
from .config import FFF
from .cutting import sides_of
from .errors import InputError, TaskError, check_int
from .reading import opened, windows
from .svg import COLOURS, WIDTH, line, rectangle, svg, text
from .text_commands import load
from .text_io import ENDINGS, as_json, json_line, output, output_ending, shown
from .tokenizer import TruncationWarning, warn_of

__all__ = ["LayerUse", "Use", "add_arguments", "drawn", "run", "use_of"]

WITH_TREES = "fastminilm-1x11"  # the model inside that has some
BYTES = 64 << 20  # of the routes that are held at a time
MARGINS = np.geomspace(1e-6, 1e3, 1025)  # bounds of the bins of |z|; a bin is 2% wide
LEAVES, WORDS, LONGEST = 8, 10, 140  # leaves in readable output; words shown of each, and their characters


class Leaf(NamedTuple):
    """A leaf of the tree that is shown: its node, the tokens that end there, and their texts, the most frequent first."""

    node: int
    tokens: int
    words: list[tuple[str, int]]


class LayerUse:
    """How often tokens visit the neurons of a layer's trees.

    number   of the layer, from 1
    visits   (P, N): tokens at each node; blocks at leaves follow the nodes
    neurons  (N,): the neurons of each, 1 for a node
    surety   (P, N): the sum of |z| there
    parents  (P, N): the node before each visited one, -1 for others
    turns    (P, N): whether a visited node lies on the right of its parent
    margins  (decisions, bins): decisions of each level whose |z| lies in a bin of MARGINS
    """

    def __init__(self, number: int, ffn: FFF, levels: int) -> None:
        self.number, self.ffn, self.levels = number, ffn, levels
        shape = (ffn.trees, ffn.numbered)
        self.neurons = np.where(np.arange(ffn.numbered) < ffn.node_count, 1, ffn.leaf)
        self.visits, self.surety = np.zeros(shape, np.int64), np.zeros(shape)
        self.parents, self.turns = np.full(shape, -1, np.int32), np.zeros(shape, bool)
        self.margins = np.zeros((levels - 1, len(MARGINS) + 1), np.int64)
        self.level = np.full(shape, -1, np.int32)

    def add(self, nodes: np.ndarray, z: np.ndarray) -> None:
        """Count the routes of some tokens: nodes and z (tokens, P, levels), as Model.routes() gives them."""
        for tree in range(nodes.shape[1]):
            for level in range(self.levels):
                at = nodes[:, tree, level]
                there = at >= 0
                at, margin = at[there], np.abs(z[there, tree, level])
                self.visits[tree] += np.bincount(at, minlength=self.visits.shape[1])
                self.surety[tree] += np.bincount(at, margin, minlength=self.visits.shape[1])
                self.level[tree, at] = level
                if level:
                    self.parents[tree, at] = nodes[there, tree, level - 1]
                    self.turns[tree, at] = z[there, tree, level - 1] > 0
                if level < self.levels - 1:  # blocks of pruned trees may lie here, and decide nothing
                    margin = margin[at < self.ffn.node_count]
                    self.margins[level] += np.bincount(np.searchsorted(MARGINS, margin), minlength=len(MARGINS) + 1)

    @property
    def used(self) -> int:
        """Neurons that a token visited."""
        return int(((self.visits > 0) * self.neurons).sum())

    @property
    def total(self) -> int:
        """Neurons of all trees."""
        return int(self.neurons.sum()) * self.ffn.trees

    def dead(self) -> tuple[int, int]:
        """(subtrees that no token entered although one was at their parent, neurons in them)."""
        entered = self.visits > 0
        inner = np.arange((self.visits.shape[1] - 1) // 2)
        below = [entered[:, inner] & ~entered[:, 2 * inner + side] for side in (1, 2)]
        return int(sum(side.sum() for side in below)), self.total - self.used

    def margin(self, share: float, level: int | None = None) -> float:
        """The |z| that this share of the decisions of a level, or of all levels, lies below."""
        counts = (self.margins.sum(0) if level is None else self.margins[level]).cumsum()
        place = int(np.searchsorted(counts, share * counts[-1]))
        return float(MARGINS[min(place, len(MARGINS) - 1)]) if counts[-1] else 0.0

    def by_level(self) -> Iterator[dict[str, Any]]:
        """What is known of each level of all trees, the root first."""
        for level in range(self.levels):
            visits = self.visits[self.level == level]
            decided = {"margin_10": self.margin(0.1, level), "margin_50": self.margin(0.5, level)} if level < self.levels - 1 else {}
            busiest = float(visits.max(initial=0) * self.ffn.trees / max(visits.sum(), 1))
            yield {"level": level, "nodes": self.ffn.trees << level, "visited": len(visits), "busiest": busiest, **decided}

    def record(self) -> dict[str, Any]:
        """All of this as JSON values."""
        subtrees, neurons = self.dead()
        found = {"layer": self.number, "shape": str(self.ffn), "neurons": self.total, "visited": self.used}
        if self.ffn.children:
            return {**found, "levels": list(self.by_level())}
        return {**found, "dead_subtrees": subtrees, "neurons_in_them": neurons, "levels": list(self.by_level())}


class Use(NamedTuple):
    """How texts use a model.

    texts, tokens  how many there were; special tokens count, too
    layers         its layers of trees
    shown          the layer whose leaves are shown, and `tree` the number of its tree, from 1
    leaves         its leaves with tokens, the fullest first
    """

    texts: int
    tokens: int
    layers: list[LayerUse]
    shown: LayerUse
    tree: int
    leaves: list[Leaf]


def use_of(model: api.Model, groups: Iterator[Sequence[Any]], *, layer: int | None = None, tree: int = 1) -> Use:
    """How texts, which come in groups, use the trees of a model.

    layer  whose leaves are collected, from 1; None: the last layer of trees
    tree   the tree of that layer, from 1

    Raises TaskError for a model without trees, InputError for a layer or a tree that it does not have.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise InputError("routes of texts need a tokenizer, which this model does not have")
    depths = [None if route is None else route[0].shape[2] for route in model.routes("a")[0]]
    layers = {
        i: LayerUse(i, ffn, n) for i, (ffn, n) in enumerate(zip(model.config.ffn, depths, strict=True), 1) if n and isinstance(ffn, FFF)
    }
    if not layers:
        raise TaskError(f"{model!r} has no trees: routes are for models with fast feedforward layers, such as {WITH_TREES}")
    layer = max(layers) if layer is None else layer
    if layer not in layers:
        raise InputError(f"layer is {layer}, expected one of those with trees: {', '.join(map(str, layers))}")
    check_int("tree", tree, 1, layers[layer].ffn.trees, because=f", the trees of layer {layer}")
    words: dict[int, Counter[str]] = {}
    ends: Counter[int] = Counter()
    texts = tokens = 0
    cuts: list[TruncationWarning] = []
    size = sum(use.ffn.trees * use.levels * 8 for use in layers.values())
    for group in groups:
        encodings = tokenizer.encode(group, cuts=cuts)
        texts += len(group)
        for part in _portions(list(zip(group, encodings, strict=True)), max(1, BYTES // size)):
            for (text_, encoding), found in zip(part, model.routes(tokenizer.batch([encoding for _, encoding in part])), strict=True):
                walked = {number: route for number, route in enumerate(found, 1) if route is not None}  # by layer
                for number, use in layers.items():
                    use.add(*walked[number])
                nodes, _ = walked[layer]
                path = nodes[:, tree - 1]
                tokens += len(path)
                leaf_of = path[np.arange(len(path)), (path >= 0).sum(1) - 1].tolist()
                ends.update(leaf_of)
                for leaf, word in zip(leaf_of, _words(text_, encoding), strict=False):
                    words.setdefault(leaf, Counter())[word] += 1
    warn_of(cuts)
    leaves = [
        Leaf(node, count, [pair for pair in words.get(node, Counter()).most_common() if pair[0]]) for node, count in ends.most_common()
    ]
    return Use(texts, tokens, list(layers.values()), layers[layer], tree, leaves)


def _portions(items: list[tuple[Any, Any]], most: int) -> Iterator[list[tuple[Any, Any]]]:
    """Texts with their encodings, in lists of at most `most` tokens; a longer text is a list by itself."""
    part: list[tuple[Any, Any]] = []
    count = 0
    for item in items:
        if part and count + len(item[1].ids) > most:
            yield part
            part, count = [], 0
        part.append(item)
        count += len(item[1].ids)
    if part:
        yield part


def _words(text_: Any, encoding: Any) -> list[str]:
    """The text of each token; "" for a special one."""
    sides = sides_of(text_)
    spans = zip(encoding.sequence_ids, encoding.offsets, strict=True)
    return ["" if side is None else sides[side][start:end].strip() for side, (start, end) in spans]


# --- as text ---------------------------------------------------------------------------------------------


def told(use: Use, name: str, leaves: int = LEAVES) -> Iterator[str]:
    """The lines of readable output."""
    yield f"{name}: {use.texts:,} texts, {use.tokens:,} tokens, special ones included"
    yield ""
    yield "layer  trees      neurons    visited         dead subtrees  with neurons  margin of a decision: 10%, half below"
    for layer in use.layers:
        subtrees, neurons = layer.dead()
        dead = f"{'':13}  {'':12}" if layer.ffn.children else f"{subtrees:13,}  {neurons:12,}"
        share = f"{layer.used:,} ({layer.used / layer.total:.1%})"
        margins = f"{layer.margin(0.1):.3f}  {layer.margin(0.5):.3f}"
        yield f"{layer.number:5}  {layer.ffn!s:9}  {layer.total:7,}    {share:14}  {dead}  {margins}"
    yield ""
    yield f"layer {use.shown.number}, level by level"
    yield "level  nodes    visited  tokens at the busiest  if even  margin: 10%, half below"
    for found in use.shown.by_level():
        margins = f"{found['margin_10']:.3f}  {found['margin_50']:.3f}" if "margin_10" in found else "leaves decide nothing"
        even = f"{1 / 2 ** found['level']:.1%}"
        yield f"{found['level']:5}  {found['nodes']:7,}  {found['visited']:7,}  {found['busiest']:21.1%}  {even:>7}  {margins}"
    yield ""
    yield f"words that share a leaf of layer {use.shown.number}" + (f", tree {use.tree}" if use.shown.ffn.trees > 1 else "")
    for leaf in use.leaves[:leaves]:
        yield f"{leaf.node:7,}  {leaf.tokens:6,} tokens  {_listed(leaf)}"


def _listed(leaf: Leaf, most: int = WORDS) -> str:
    """The words of a leaf, the most frequent first."""
    named = [word if count == 1 else f"{word} x{count}" for word, count in leaf.words[:most]]
    more = [f"and {len(leaf.words) - most} more"] if len(leaf.words) > most else []
    return shown("  ".join([*named, *more]) or "special tokens only", LONGEST)


# --- as a picture ------------------------------------------------------------------------------------------

TOP, STEP, LEFT, RIGHT, BELOW, APART = 84, 26, 46, 120, 132, 15  # pixels: around the tree, of a level, of words beside others


def drawn(use: Use, name: str) -> str:
    """The tree as an SVG: a row for each level, as wide as its tokens; pale where decisions are close; under leaves their words."""
    layer, tree = use.shown, use.tree - 1
    visits = layer.visits[tree]
    scale = (WIDTH - LEFT - RIGHT) / max(use.tokens, 1)
    subtrees, neurons = layer.dead()
    which = f", tree {use.tree} of {layer.ffn.trees}" if layer.ffn.trees > 1 else ""
    parts = [
        text(0, 18, f"Where {use.tokens:,} tokens go in layer {layer.number}{which} of {name}", bold=True, size=15),
        text(0, 38, "A box is a neuron, as wide as the share of tokens that visit it. Its decision sends them left or right below;"),
        text(0, 56, "the paler a box, the closer its decisions. Under wide leaves stand the words that end there."),
        text(WIDTH, TOP - 8, "neurons visited", anchor="end", size=11),
    ]
    sure = layer.surety[tree] / np.maximum(visits, 1)
    typical = max(layer.margin(0.9), 1e-9)
    places = {0: float(LEFT)}
    children: dict[int, list[int]] = {}
    for node in np.flatnonzero((visits > 0) & (layer.parents[tree] >= 0)).tolist():
        children.setdefault(int(layer.parents[tree, node]), []).append(node)
    words = {leaf.node: leaf for leaf in use.leaves}
    waiting = [0] if visits[0] else []
    ending: list[tuple[float, float, float, Leaf]] = []
    while waiting:
        node = waiting.pop()
        x, width, level = places[node], visits[node] * scale, int(layer.level[tree, node])
        last = level == layer.levels - 1 or node not in children
        colour, opacity = (COLOURS[1], 0.85) if last else (COLOURS[0], 0.2 + 0.75 * min(1.0, sure[node] / typical))
        named = f"neuron {node}" if node < layer.ffn.node_count else f"block {node - layer.ffn.node_count} of {layer.ffn.leaf} neurons"
        title = f"{named}: {visits[node]:,} tokens" + (f": {_listed(words[node])}" if node in words else f", mean |z| {sure[node]:.3f}")
        gap = min(1.0, width / 4)
        parts.append(rectangle(x, TOP + level * STEP, width - gap, STEP - 3, colour, opacity=opacity, title=title))
        if last and node in words:
            ending.append((x + width / 2, TOP + (level + 1) * STEP, width, words[node]))
        for child in sorted(children.get(node, []), key=lambda child: bool(layer.turns[tree, child])):
            places[child] = x
            x += visits[child] * scale
        waiting += sorted(children.get(node, []), key=lambda child: not layer.turns[tree, child])
    for found in layer.by_level():
        y = TOP + found["level"] * STEP + STEP / 2 + 2
        count = int((layer.level[tree] == found["level"]).sum())
        parts.append(text(LEFT - 10, y, str(found["level"]), anchor="end", size=11))
        parts.append(text(WIDTH, y, f"{count:,} of {2 ** found['level']:,}", anchor="end", size=11))
    parts.append(text(LEFT - 10, TOP - 8, "level", anchor="end", size=11))
    parts += _hung(ending)
    bottom = TOP + layer.levels * STEP + BELOW
    dead = "" if layer.ffn.children else f", {subtrees:,} subtrees with {neurons:,} neurons are never entered"
    parts += [
        line(0, bottom - 14, WIDTH, bottom - 14),
        text(0, bottom + 4, f"{layer.used:,} of {layer.total:,} neurons are visited{dead}."),
    ]
    return svg(f"Routes of {use.tokens} tokens in layer {layer.number} of {name}", bottom + 16, parts)


def _telling(leaf: Leaf) -> list[str]:
    """The words of a leaf; those with letters come before punctuation."""
    return sorted((word for word, _ in leaf.words), key=lambda word: not any(map(str.isalpha, word)))


def _hung(ending: list[tuple[float, float, float, Leaf]]) -> list[str]:
    """The words of leaves (middle, bottom, width, leaf), slanting down from them; of leaves that are close together, the widest one's."""
    parts: list[str] = []
    taken: list[float] = []
    for x, y, _, leaf in sorted(ending, key=lambda end: -end[2]):
        if leaf.words and all(abs(x - other) >= APART for other in taken):
            taken.append(x)
            parts.append(text(x - 3, y + 8, shown("  ".join(_telling(leaf)[:3]), 24), size=11, turn=50))
    return parts


# --- the command -----------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the description and the options of the command."""
    how = """
Show how texts use the trees of a model: the neurons that they visit, the subtrees that they never enter,
how clear the decisions are (the margin |z| of a neuron that sends a token left or right), and the words
that end at the same leaf. Written into FILE.svg, it is a picture of one tree.
"""
    describe(
        parser, how + INPUT_HELP + PAIRS_HELP, "fastinfer routes -i texts.txt", "fastinfer routes -i texts.txt --layer 3 -o routes.svg"
    )
    add_model(parser, default=f" (default: {WITH_TREES})")
    parser.set_defaults(model=WITH_TREES)
    add_output(parser, "svg")
    add_texts(parser, takes="either")
    parser.add_argument("--layer", type=at_least(1), metavar="N", help="show the leaves of layer N (default: the last with trees)")
    parser.add_argument("--tree", type=at_least(1), default=1, metavar="N", help="show tree N of that layer (default: 1)")
    parser.add_argument(
        "-k", "--leaves", type=at_least(1), default=LEAVES, metavar="N", help=f"show the N fullest leaves (default: {LEAVES})"
    )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    with output(args) as out:
        given = opened(args)
        model = load(args)
        use = use_of(model, windows(args, given), layer=args.layer, tree=args.tree)
        if as_json(args):
            leaves = [{"node": leaf.node, "tokens": leaf.tokens, "words": dict(leaf.words)} for leaf in use.leaves]
            layers = [layer.record() for layer in use.layers]
            shown_ = {"layer": use.shown.number, "tree": use.tree, "leaves": leaves}
            out.line(json_line({"texts": use.texts, "tokens": use.tokens, "layers": layers, "shown": shown_}))
        elif ENDINGS.get(output_ending(args)) == "svg":
            out.write(drawn(use, args.model).encode())
        else:
            out.line("\n".join(told(use, args.model, args.leaves)))
