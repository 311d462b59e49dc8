"""The schema of a model: frozen dataclasses, JSON in and out, validation, the formulas of a tree.

A Config determines every tensor of a checkpoint (checkpoint.tensors) and how to run it. config.json is
its JSON form: nested dataclasses become nested objects, and unknown keys are refused.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from .activations import Activation
from .embedding import Embed as Embed
from .embedding import Pooling as Pooling
from .embedding import Project as Project
from .embedding import Prompt as Prompt
from .embedding import Unit as Unit
from .embedding import embed_problems
from .errors import ConfigError, listed, short
from .retrieval import EmbedSparse, EmbedTokens, retrieval_problems
from .schema import LATER, check_keys, hints, plain, read, sizes
from .schema import MAX_SIZE as MAX_SIZE
from .schemes import MAX_POSITIONS as MAX_POSITIONS
from .schemes import MAX_THETA as MAX_THETA
from .schemes import Alibi as Alibi
from .schemes import Attention as Attention
from .schemes import Buckets as Buckets
from .schemes import Disentangled as Disentangled
from .schemes import Positions as Positions
from .schemes import attention_problems

FORMAT_VERSION = 1
MAX_DEPTH = 15
MAX_LAYERS = 1024
# Sizes that a file may name are bounded before anything is computed from them.
MAX_WIDTH = 1 << 16  # neurons of a feedforward or a head: their float32 values for a batch of 2,048 tokens take at most 0.5 GB

StoredDtype = Literal["float32", "float16", "bfloat16", "int8"]


def tree_nodes(depth: int) -> int:
    """Nodes of a full binary tree with `depth` decisions: 2**(depth + 1) - 1."""
    return (2 << depth) - 1


@dataclass(frozen=True)
class Norm:
    """LayerNorm before each block ("pre") or after its residual ("post").

    first  whether layer 0 has a norm before its attention, in order "pre"
    kind   "rms": x / sqrt(mean(x**2) + eps) * weight, without a mean and a bias (RMSNorm, Zhang & Sennrich, arXiv 1910.07467)
    """

    order: Literal["pre", "post"]
    eps: float
    first: bool = field(default=True, metadata=LATER)
    kind: Literal["layer", "rms"] = field(default="layer", metadata=LATER)


@dataclass(frozen=True)
class Ids:
    """Token ids with a meaning; None where the vocabulary has no such token."""

    pad: int | None = None
    mask: int | None = None
    cls: int | None = None
    sep: int | None = None


@dataclass(frozen=True)
class Dense:
    """A feedforward of `width` neurons that all tokens use. activation: None is the model's."""

    width: int
    bias_in: bool = True
    bias_out: bool = True
    kind: Literal["dense"] = "dense"
    activation: Activation | None = field(default=None, metadata=LATER)

    @property
    def used(self) -> int:
        """Neurons that one token uses."""
        return self.width

    @property
    def total(self) -> int:
        """Neurons stored."""
        return self.width

    def __str__(self) -> str:
        return f"dense {self.width}"


@dataclass(frozen=True)
class Gated:
    """A dense feedforward of `width` neurons, each of which is multiplied by a linear function of the input (Shazeer, arXiv 2002.05202)."""

    width: int
    bias_in: bool = False
    bias_out: bool = False
    kind: Literal["gated"] = "gated"
    activation: Activation | None = field(default=None, metadata=LATER)

    @property
    def used(self) -> int:
        """Neurons that one token uses."""
        return self.width

    @property
    def total(self) -> int:
        """Neurons stored."""
        return self.width

    def __str__(self) -> str:
        return f"gated {self.width}"


@dataclass(frozen=True)
class FFF:
    """A fast feedforward: `trees` binary trees of `depth` decisions, and `dense` neurons always on.

    children    True: an int32 table (P, nodes, 2) holds each node's children (pruned trees); False: heap order
    nodes       nodes stored per tree; None: a full tree. Only pruned trees may have fewer
    leaf        L, the neurons of the block at each leaf, all of which are computed for the tokens that reach it
    silent      True: the nodes that decide add nothing to the output
    activation  of all neurons; None: trees use the exact GELU, and neurons that are always on the model's activation
    bias_leaf   whether each leaf has an output bias
    leaves      blocks stored per tree; None: those of a full tree. Only pruned trees may have fewer

    Where the last node of a path is like the others (leaf 1, not silent, no bias_leaf) there are no blocks, and leaves are nodes.
    Else `nodes` counts the nodes that decide.
    """

    trees: int
    depth: int
    dense: int = 0
    bias_in: bool = True
    bias_out: bool = False
    children: bool = False
    nodes: int | None = None
    kind: Literal["fff"] = "fff"
    leaf: int = field(default=1, metadata=LATER)
    silent: bool = field(default=False, metadata=LATER)
    activation: Activation | None = field(default=None, metadata=LATER)
    bias_leaf: bool = field(default=False, metadata=LATER)
    leaves: int | None = field(default=None, metadata=LATER)

    @property
    def has_blocks(self) -> bool:
        """Whether leaves are blocks, not nodes like those that decide."""
        return self.leaf > 1 or self.silent or self.bias_leaf

    @property
    def full_nodes(self) -> int:
        """The nodes of a full tree of this form; with blocks, those that decide."""
        return (1 << self.depth) - 1 if self.has_blocks else tree_nodes(self.depth)

    @property
    def node_count(self) -> int:
        """I, the nodes stored per tree; a block's number is I or more."""
        return self.full_nodes if self.nodes is None else self.nodes

    @property
    def blocks(self) -> int:
        """B, the blocks stored per tree."""
        return (1 << self.depth if self.leaves is None else self.leaves) if self.has_blocks else 0

    @property
    def count(self) -> int:
        """N, the neurons stored per tree: nodes, then blocks."""
        return self.node_count + self.blocks * self.leaf

    @property
    def numbered(self) -> int:
        """The numbers that a route may have in a tree: nodes, then blocks."""
        return self.node_count + self.blocks

    @property
    def used(self) -> int:
        """Neurons that one token uses (at most, in pruned trees)."""
        return self.trees * (self.depth + self.leaf) + self.dense

    @property
    def total(self) -> int:
        """Neurons stored."""
        return self.trees * self.count + self.dense

    def __str__(self) -> str:
        parts = [
            f"{self.trees}x{self.depth}",
            "pruned" if self.children else "",
            f"with leaves of {self.leaf}" if self.leaf > 1 else "",
            "silent" if self.silent else "",
            f"+ {self.dense} always on" if self.dense else "",
        ]
        return " ".join(filter(None, parts))


@dataclass(frozen=True)
class FillMask:
    """Masked-token prediction: dense + activation + norm if `transform`, then a decoder over the vocabulary."""

    transform: bool
    tied: bool = True
    bias: bool = True
    activation: Activation = field(default="gelu", metadata=LATER)


@dataclass(frozen=True)
class HeadLayer:
    """A linear layer with bias and an activation, before a head's last linear layer. norm: a LayerNorm follows."""

    width: int
    activation: Activation
    norm: bool = field(default=False, metadata=LATER)


@dataclass(frozen=True)
class Classify:
    """Classes or scores of a text: pool, `layers`, then one linear layer to the labels."""

    labels: tuple[str, ...]
    output: Literal["softmax", "sigmoid", "identity"]
    pooling: Pooling = "cls"
    layers: tuple[HeadLayer, ...] = ()


@dataclass(frozen=True)
class Tag:
    """A label per token; O stands for none.

    scheme  "bio": B-x begins a span and I-x continues one, both with the tag x. Any other label continues a span of the same label;
            a span that it begins is named by what follows its first dash, as in transformers' pipeline. "io": labels are names
    """

    labels: tuple[str, ...]
    scheme: Literal["bio", "io"] = "bio"
    layers: tuple[HeadLayer, ...] = field(default=(), metadata=LATER)


@dataclass(frozen=True)
class Answer:
    """Extractive question answering: a start and an end logit per token."""

    layers: tuple[HeadLayer, ...] = field(default=(), metadata=LATER)


@dataclass(frozen=True)
class Tasks:
    """The heads of a checkpoint; None for a head that it lacks."""

    embed: Embed | None = field(default=None, metadata=LATER)
    fill_mask: FillMask | None = field(default=None, metadata=LATER)
    classify: Classify | None = field(default=None, metadata=LATER)
    tag: Tag | None = field(default=None, metadata=LATER)
    answer: Answer | None = field(default=None, metadata=LATER)
    embed_sparse: EmbedSparse | None = field(default=None, metadata=LATER)
    embed_tokens: EmbedTokens | None = field(default=None, metadata=LATER)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f.name for f in dataclasses.fields(self) if getattr(self, f.name) is not None)


@dataclass(frozen=True)
class Stored:
    """The stored dtype of each family of tensors. Norms, biases and scales are always float32."""

    embeddings: StoredDtype = "float32"
    matrices: StoredDtype = "float32"
    trees: StoredDtype = "float32"


@dataclass(frozen=True)
class Config:
    """A model's architecture. Sizes: hidden D, heads H, vocabulary V; `ffn` and `attention` have one entry per layer.

    embedding_width  E, the columns of the embeddings, which a linear map widens to D; None: D, without a map
    distances        what attention adds to the scores of each pair of tokens in all layers
    activation       of the neurons of dense and gated feedforwards that name none; trees that name none use the exact GELU
    head_size        S, the columns of a head; None: D / H
    head_norms       whether an RMSNorm of each head of q and k comes before they are turned

    It is checked when made: ConfigError names the key, the value found and the value expected.
    """

    hidden: int
    layers: int
    heads: int
    vocabulary: int
    norm: Norm
    positions: Positions
    ffn: tuple[Dense | Gated | FFF, ...]
    max_tokens: int
    tasks: Tasks
    embedding_norm: bool = True
    final_norm: bool = False
    token_types: int = 0
    ids: Ids = field(default_factory=Ids)
    attention_bias: bool = True
    activation: Activation = "gelu"
    stored: Stored = field(default_factory=Stored)
    format_version: int = FORMAT_VERSION
    attention: tuple[Attention, ...] = field(default=(), metadata=LATER)  # empty: all layers have the default
    distances: Buckets | Alibi | Disentangled | None = field(default=None, metadata=LATER)
    embedding_width: int | None = field(default=None, metadata=LATER)
    head_size: int | None = field(default=None, metadata=LATER)
    head_norms: bool = field(default=False, metadata=LATER)

    def __post_init__(self) -> None:
        for name, kind in hints(Config).items():
            object.__setattr__(self, name, read(kind, getattr(self, name), name))
        if not self.attention:
            object.__setattr__(self, "attention", (Attention(),) * max(0, min(self.layers, MAX_LAYERS)))
        problems = list(_problems(self))
        if problems:
            raise ConfigError(listed(problems, "\n  "))

    @property
    def width_of_head(self) -> int:
        """S, the columns of a head."""
        return self.hidden // self.heads if self.head_size is None else self.head_size

    def to_json(self) -> str:
        """The text of config.json; what all layers share is written once."""
        data = plain(self)
        for name in ("ffn", "attention"):
            if len(set(getattr(self, name))) == 1:
                data[name] = data[name][0]
        if set(self.attention) == {Attention()}:
            del data["attention"]
        return json.dumps({"format_version": data.pop("format_version"), **data}, indent=2) + "\n"

    @classmethod
    def from_json(cls, data: Any, where: str = "config.json") -> Config:
        """The Config of config.json's object. Raises ConfigError naming the file, the key, the value found and the value expected."""
        try:
            if not isinstance(data, dict):
                raise ConfigError(f"the whole is {short(data)}, expected an object")
            version = data.get("format_version")
            if type(version) is not int or version != FORMAT_VERSION:
                newer = type(version) is int and version > FORMAT_VERSION
                raise ConfigError(
                    f"format_version is {short(version)}, expected {FORMAT_VERSION}: "
                    + (
                        "a newer fastinfer wrote this checkpoint; update fastinfer to read it"
                        if newer
                        else "the file is damaged or was edited; copy or convert the checkpoint again"
                    )
                )
            check_keys(cls, data, "")
            for name in ("ffn", "attention"):
                if isinstance(data.get(name), dict):
                    layers = read(int, data["layers"], "layers")
                    if not 1 <= layers <= MAX_LAYERS:
                        raise ConfigError(f"layers is {short(layers)}, expected 1 to {MAX_LAYERS}")
                    data = {**data, name: [data[name]] * layers}
            return cls(**data)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None


def _problems(c: Config) -> typing.Iterator[str]:
    """Yield a message for each rule that a Config breaks, beyond the types of its fields."""
    if c.format_version != FORMAT_VERSION:
        yield f"format_version is {short(c.format_version)}, expected {FORMAT_VERSION}"
    yield from sizes(hidden=c.hidden, heads=c.heads, vocabulary=c.vocabulary, token_types=c.token_types)
    if not 1 <= c.layers <= MAX_LAYERS:
        yield f"layers is {short(c.layers)}, expected 1 to {MAX_LAYERS}"
    if c.heads > 0 and c.hidden % c.heads and c.head_size is None:
        yield f"hidden is {short(c.hidden)}, expected a multiple of heads={short(c.heads)}"
    if not 0 <= c.norm.eps < 1:
        yield f"norm.eps is {c.norm.eps}, expected 0 <= eps < 1"
    if not 1 <= c.positions.max <= MAX_POSITIONS:
        yield f"positions.max is {short(c.positions.max)}, expected 1 to {MAX_POSITIONS}"
    if c.positions.skip is not None and c.positions.kind != "learned":
        yield f"positions.skip is {short(c.positions.skip)}, expected none where positions.kind is {c.positions.kind}"
    if not 1 <= c.max_tokens <= c.positions.max:
        yield f"max_tokens is {short(c.max_tokens)}, expected 1 to positions.max={short(c.positions.max)}"
    for name, value in {**{f"ids.{key}": id_ for key, id_ in vars(c.ids).items()}, "positions.skip": c.positions.skip}.items():
        if value is not None and not 0 <= value < c.vocabulary:
            yield f"{name} is {short(value)}, expected 0 to vocabulary-1={short(c.vocabulary - 1)}"
    if len(c.ffn) != c.layers:
        yield f"ffn lists {len(c.ffn)} feedforwards, expected one for all, or layers={short(c.layers)}"
    yield from attention_problems(c)
    yield from _problems_of_feedforwards(c)
    yield from _problems_of_heads(c.tasks)
    if c.tasks.embed:
        yield from embed_problems(c.tasks.embed, c.hidden)
    yield from retrieval_problems(c.tasks, c.vocabulary, c.max_tokens, any(layer.window for layer in c.attention))


def _problems_of_feedforwards(c: Config) -> typing.Iterator[str]:
    first = {ffn: i for i, ffn in reversed(list(enumerate(c.ffn)))}
    for ffn, i in first.items():
        at = f"ffn[{i}]."
        if isinstance(ffn, (Dense, Gated)):
            yield from sizes(MAX_WIDTH, **{at + "width": ffn.width})
            continue
        yield from sizes(MAX_WIDTH, **{at + "trees": ffn.trees, at + "dense": ffn.dense, at + "leaf": ffn.leaf})
        if not 0 <= ffn.depth <= MAX_DEPTH:
            yield f"{at}depth is {short(ffn.depth)}, expected 0 to {MAX_DEPTH}"
            continue
        formula = "2**depth-1" if ffn.has_blocks else "2**(depth+1)-1"
        least = 0 if ffn.has_blocks and not ffn.depth else 1
        if ffn.nodes is not None and not least <= ffn.nodes <= ffn.full_nodes:
            yield f"{at}nodes is {short(ffn.nodes)}, expected {least} to {formula} = {ffn.full_nodes}"
        elif ffn.nodes not in (None, ffn.full_nodes) and not ffn.children:
            yield f"{at}nodes is {short(ffn.nodes)}, but a tree without a table of children has {formula} = {ffn.full_nodes}"
        elif ffn.leaves is not None and not ffn.has_blocks:
            yield f"{at}leaves is {short(ffn.leaves)}, expected none where leaves are nodes (leaf 1, not silent, no bias_leaf)"
        elif ffn.leaves is not None and not 1 <= ffn.leaves <= 1 << ffn.depth:
            yield f"{at}leaves is {short(ffn.leaves)}, expected 1 to 2**depth = {1 << ffn.depth}"
        elif ffn.leaves not in (None, 1 << ffn.depth) and not ffn.children:
            yield f"{at}leaves is {short(ffn.leaves)}, but a tree without a table of children has 2**depth = {1 << ffn.depth}"
        elif ffn.children and not ffn.node_count:
            yield f"{at}children is true, expected false for trees of depth 0, which have no node that decides"
        elif ffn.total > MAX_SIZE:
            yield f"{at[:-1]} has {ffn.total} neurons, expected at most {MAX_SIZE}"


def _problems_of_heads(tasks: Tasks) -> typing.Iterator[str]:
    for name, head in (("classify", tasks.classify), ("tag", tasks.tag)):
        if head is None:
            continue
        if not 1 <= len(head.labels) <= MAX_WIDTH:
            yield f"tasks.{name}.labels names {len(head.labels)} labels, expected 1 to {MAX_WIDTH}"
        if len(set(head.labels)) != len(head.labels):
            yield f"tasks.{name}.labels names a label twice"
    for name in ("embed", "classify", "tag", "answer"):
        for i, layer in enumerate(getattr(getattr(tasks, name), "layers", ())):
            if not isinstance(layer, Unit):
                yield from sizes(MAX_WIDTH, **{f"tasks.{name}.layers[{i}].width": layer.width})
