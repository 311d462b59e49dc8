"""The schema of the embed head: pooling, layers after it, prompts, and how rank() compares vectors."""

from __future__ import annotations

import typing
from dataclasses import dataclass, field
from typing import Literal

from .activations import Activation
from .errors import short
from .schema import LATER

__all__ = ["MAX_STEPS", "PROMPTS", "Embed", "Pooling", "Project", "Prompt", "Similarity", "Unit", "embed_problems"]

Pooling = Literal["mean", "cls", "max", "lse", "lasttoken", "weightedmean", "sqrtmean"]
Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]
MAX_STEPS = 64  # kinds of pooling, layers after it
PROMPTS = ("query", "document")  # names that every embedder has; their texts are empty where a model gives none


@dataclass(frozen=True)
class Project:
    """A linear map to `width` numbers, and an activation, in the layers of an embedding."""

    width: int
    bias: bool = True
    activation: Activation | None = None
    kind: Literal["linear"] = "linear"


@dataclass(frozen=True)
class Unit:
    """Scaling to length 1 in the layers of an embedding, before a later layer."""

    kind: Literal["unit"] = "unit"


@dataclass(frozen=True)
class Prompt:
    """A text that is put before other texts, with its name."""

    name: str
    text: str


@dataclass(frozen=True)
class Embed:
    """Text embedding: pool the final hidden states of a text, apply `layers`, scale to length 1 if `normalize`, keep `dim` numbers.

    pooling         one kind, or several whose vectors are joined
    dim             the first numbers that are kept, after scaling; None: all
    similarity      what rank() gives: the cosine, the dot product, or a distance times -1
    prompts         texts that can be put before each text, by name
    default_prompt  name of the prompt that embed() uses if a caller names none
    include_prompt  whether the tokens of a prompt are pooled, too
    """

    pooling: Pooling | tuple[Pooling, ...]
    normalize: bool
    layers: tuple[Project | Unit, ...] = field(default=(), metadata=LATER)
    dim: int | None = field(default=None, metadata=LATER)
    similarity: Similarity = field(default="cosine", metadata=LATER)
    prompts: tuple[Prompt, ...] = field(default=(), metadata=LATER)
    default_prompt: str | None = field(default=None, metadata=LATER)
    include_prompt: bool = field(default=True, metadata=LATER)

    @property
    def poolings(self) -> tuple[Pooling, ...]:
        """The kinds of pooling as a tuple."""
        return self.pooling if isinstance(self.pooling, tuple) else (self.pooling,)

    def widths(self, hidden: int) -> tuple[int, ...]:
        """The numbers of a vector after pooling states of `hidden` columns, and after each linear layer."""
        return (len(self.poolings) * hidden, *(layer.width for layer in self.layers if isinstance(layer, Project)))

    def numbers(self, hidden: int) -> int:
        """The numbers of a vector as embed() gives it."""
        return self.dim or self.widths(hidden)[-1]

    def text_of(self, name: str) -> str | None:
        """The text of the prompt with this name; None if there is no such prompt."""
        texts = dict.fromkeys(PROMPTS, "") | {prompt.name: prompt.text for prompt in self.prompts}
        return texts.get(name)


def embed_problems(head: Embed, hidden: int) -> typing.Iterator[str]:
    """Yield a message for each rule that an Embed breaks, beyond the types of its fields."""
    if isinstance(head.pooling, tuple) and not 2 <= len(head.pooling) <= MAX_STEPS:
        yield f"tasks.embed.pooling lists {len(head.pooling)} kinds, expected the name of one, or a list of 2 to {MAX_STEPS}"
    if len(head.layers) > MAX_STEPS:
        yield f"tasks.embed.layers lists {len(head.layers)} layers, expected at most {MAX_STEPS}"
    width = head.widths(hidden)[-1]
    if head.dim is not None and not 1 <= head.dim <= width:
        yield f"tasks.embed.dim is {short(head.dim)}, expected 1 to {short(width)}, the numbers of a vector"
    names = [prompt.name for prompt in head.prompts]
    if len(set(names)) != len(names):
        yield "tasks.embed.prompts has a name twice"
    if head.default_prompt is not None and head.text_of(head.default_prompt) is None:
        known = ", ".join(short(name) for name in dict.fromkeys((*PROMPTS, *names)))
        yield f"tasks.embed.default_prompt is {short(head.default_prompt)}, expected the name of a prompt: {known}"
