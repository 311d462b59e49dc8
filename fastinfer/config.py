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
from .embedding import Embed, Pooling, Project, Prompt, Unit, embed_problems
from .errors import ConfigError, listed, short
from .schema import MAX_SIZE, MAX_WIDTH, check_keys, hints_of, plain, read, sizes

__all__ = [
    "FFF", "FORMAT_VERSION", "MAX_DEPTH", "MAX_LAYERS", "MAX_POSITIONS", "MAX_SIZE", "MAX_WIDTH",
    "Answer", "Classify", "Config", "Dense", "Embed", "FillMask", "HeadLayer", "Ids", "Norm", "Pooling", "Positions", "Project",
    "Prompt", "Stored", "StoredDtype", "Tag", "Tasks", "Unit", "tree_nodes",
]  # fmt: skip

FORMAT_VERSION = 1
MAX_DEPTH = 15
MAX_LAYERS = 1024
MAX_POSITIONS = 1 << 16

StoredDtype = Literal["float32", "float16", "bfloat16", "int8"]


def tree_nodes(depth: int) -> int:
    """Nodes of a full binary tree with `depth` decisions: 2**(depth + 1) - 1."""
    return (2 << depth) - 1


@dataclass(frozen=True)
class Norm:
    """LayerNorm before each block ("pre") or after its residual ("post")."""

    order: Literal["pre", "post"]
    eps: float


@dataclass(frozen=True)
class Positions:
    """A learned table, or sines in even and cosines in odd columns times one learned scale."""

    kind: Literal["learned", "scaled-sinusoidal"]
    max: int


@dataclass(frozen=True)
class Ids:
    """Token ids with a meaning; None where the vocabulary has no such token."""

    pad: int | None = None
    mask: int | None = None
    cls: int | None = None
    sep: int | None = None


@dataclass(frozen=True)
class Dense:
    """A feedforward of `width` neurons that all tokens use."""

    width: int
    bias_in: bool = True
    bias_out: bool = True
    kind: Literal["dense"] = "dense"

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
class FFF:
    """A fast feedforward: `trees` binary trees of `depth` decisions, and `dense` neurons always on.

    children  True: an int32 table (P, nodes, 2) holds each node's children (pruned trees); False: heap order
    nodes     nodes stored per tree; None: a full tree. Only pruned trees may have fewer
    """

    trees: int
    depth: int
    dense: int = 0
    bias_in: bool = True
    bias_out: bool = False
    children: bool = False
    nodes: int | None = None
    kind: Literal["fff"] = "fff"

    @property
    def count(self) -> int:
        """N, the nodes stored per tree."""
        return tree_nodes(self.depth) if self.nodes is None else self.nodes

    @property
    def used(self) -> int:
        """Neurons that one token uses (at most, in pruned trees)."""
        return self.trees * (self.depth + 1) + self.dense

    @property
    def total(self) -> int:
        """Neurons stored."""
        return self.trees * self.count + self.dense

    def __str__(self) -> str:
        return f"{self.trees}x{self.depth}" + (" pruned" if self.children else "") + (f" + {self.dense} always on" if self.dense else "")


@dataclass(frozen=True)
class FillMask:
    """Masked-token prediction: dense + GELU + norm if `transform`, then a decoder over the vocabulary."""

    transform: bool
    tied: bool = True
    bias: bool = True


@dataclass(frozen=True)
class HeadLayer:
    """A linear layer with bias and an activation, before a head's last linear layer."""

    width: int
    activation: Activation


@dataclass(frozen=True)
class Classify:
    """Classes or scores of a text: pool, `layers`, then one linear layer to the labels."""

    labels: tuple[str, ...]
    output: Literal["softmax", "sigmoid", "identity"]
    pooling: Pooling = "cls"
    layers: tuple[HeadLayer, ...] = ()


@dataclass(frozen=True)
class Tag:
    """A label per token. Scheme "bio": labels O, B-x, I-x; "io": O and plain names."""

    labels: tuple[str, ...]
    scheme: Literal["bio", "io"] = "bio"


@dataclass(frozen=True)
class Answer:
    """Extractive question answering: a start and an end logit per token."""


@dataclass(frozen=True)
class Tasks:
    """The heads of a checkpoint; None for a head that it lacks."""

    embed: Embed | None = None
    fill_mask: FillMask | None = None
    classify: Classify | None = None
    tag: Tag | None = None
    answer: Answer | None = None

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
    """A model's architecture. Sizes: hidden D, heads H, vocabulary V; `ffn` has one entry per layer.

    It is checked when made: ConfigError names the key, the value found and the value expected.
    """

    hidden: int
    layers: int
    heads: int
    vocabulary: int
    norm: Norm
    positions: Positions
    ffn: tuple[Dense | FFF, ...]
    max_tokens: int
    tasks: Tasks
    embedding_norm: bool = True
    final_norm: bool = False
    token_types: int = 0
    ids: Ids = field(default_factory=Ids)
    attention_bias: bool = True
    activation: Literal["gelu"] = "gelu"
    stored: Stored = field(default_factory=Stored)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for name, kind in hints_of(Config).items():
            object.__setattr__(self, name, read(kind, getattr(self, name), name))
        problems = list(_problems(self))
        if problems:
            raise ConfigError(listed(problems, "\n  "))

    def to_json(self) -> str:
        """The text of config.json; a feedforward that all layers share is written once."""
        data = plain(self)
        data["tasks"] = {name: head for name, head in data["tasks"].items() if head is not None}
        if len(set(self.ffn)) == 1:
            data["ffn"] = data["ffn"][0]
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
            if isinstance(data["ffn"], dict):
                layers = read(int, data["layers"], "layers")
                if not 1 <= layers <= MAX_LAYERS:
                    raise ConfigError(f"layers is {short(layers)}, expected 1 to {MAX_LAYERS}")
                data = {**data, "ffn": [data["ffn"]] * layers}
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
    if c.heads > 0 and c.hidden % c.heads:
        yield f"hidden is {short(c.hidden)}, expected a multiple of heads={short(c.heads)}"
    if not 0 <= c.norm.eps < 1:
        yield f"norm.eps is {c.norm.eps}, expected 0 <= eps < 1"
    if not 1 <= c.positions.max <= MAX_POSITIONS:
        yield f"positions.max is {short(c.positions.max)}, expected 1 to {MAX_POSITIONS}"
    if not 1 <= c.max_tokens <= c.positions.max:
        yield f"max_tokens is {short(c.max_tokens)}, expected 1 to positions.max={short(c.positions.max)}"
    for name, value in vars(c.ids).items():
        if value is not None and not 0 <= value < c.vocabulary:
            yield f"ids.{name} is {short(value)}, expected 0 to vocabulary-1={short(c.vocabulary - 1)}"
    if len(c.ffn) != c.layers:
        yield f"ffn lists {len(c.ffn)} feedforwards, expected one for all, or layers={short(c.layers)}"
    yield from _problems_of_feedforwards(c)
    yield from _problems_of_heads(c.tasks)
    if c.tasks.embed:
        yield from embed_problems(c.tasks.embed, c.hidden)


def _problems_of_feedforwards(c: Config) -> typing.Iterator[str]:
    first = {ffn: i for i, ffn in reversed(list(enumerate(c.ffn)))}
    for ffn, i in first.items():
        at = f"ffn[{i}]."
        if isinstance(ffn, Dense):
            yield from sizes(MAX_WIDTH, **{at + "width": ffn.width})
            continue
        yield from sizes(MAX_WIDTH, **{at + "trees": ffn.trees, at + "dense": ffn.dense})
        if not 0 <= ffn.depth <= MAX_DEPTH:
            yield f"{at}depth is {short(ffn.depth)}, expected 0 to {MAX_DEPTH}"
        elif ffn.nodes is not None and not 1 <= ffn.nodes <= tree_nodes(ffn.depth):
            yield f"{at}nodes is {short(ffn.nodes)}, expected 1 to 2**(depth+1)-1 = {tree_nodes(ffn.depth)}"
        elif ffn.nodes not in (None, tree_nodes(ffn.depth)) and not ffn.children:
            yield f"{at}nodes is {short(ffn.nodes)}, but a tree without a table of children has 2**(depth+1)-1 = {tree_nodes(ffn.depth)}"
        elif ffn.total > MAX_SIZE:
            yield f"{at[:-1]} has {ffn.total} neurons, expected at most {MAX_SIZE}"


def _problems_of_heads(tasks: Tasks) -> typing.Iterator[str]:
    for name in ("classify", "tag"):
        head = getattr(tasks, name)
        if head is None:
            continue
        if not 1 <= len(head.labels) <= MAX_WIDTH:
            yield f"tasks.{name}.labels names {len(head.labels)} labels, expected 1 to {MAX_WIDTH}"
        if len(set(head.labels)) != len(head.labels):
            yield f"tasks.{name}.labels names a label twice"
    for i, layer in enumerate(tasks.classify.layers if tasks.classify else ()):
        yield from sizes(MAX_WIDTH, **{f"tasks.classify.layers[{i}].width": layer.width})
    if tasks.tag and tasks.tag.scheme == "bio":
        odd = [label for label in tasks.tag.labels if label != "O" and label[:2] not in ("B-", "I-")]
        if odd:
            yield f"tasks.tag.labels has {short(odd[0])}, which scheme bio does not know: labels are O, B-x and I-x"
