"""The types of requests and answers. The checks of requests and the OpenAPI page are both made from them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

Count = Annotated[int, Meta(ge=1)]
Inputs = Annotated[
    str | list[str | int | list[int]],
    Meta(description="A text, a list of texts, the token ids of one text, or a list of such lists. Ids are those of the served model."),
]
Named = Annotated[str | None, Meta(description="Name of a served model, as /v1/models lists them; the first one if left out.")]
Prompted = Annotated[str | None, Meta(description="Name of a prompt of the model, which is put before each text.")]
Truncate = Annotated[
    bool | None, Meta(description="Cut texts of more tokens than the model reads, which is the default; false: refuse them.")
]
Direction = Annotated[
    Literal["Left", "Right", "left", "right"] | None,
    Meta(description="The side on which a text is cut; left out: as the tokenizer's file says, mostly Right."),
]
Raw = Annotated[bool, Meta(description="Give logits, not probabilities.")]


class Asked(Struct, kw_only=True, forbid_unknown_fields=True):
    """What every request may have."""

    model: Named = None


# --- OpenAI ---


class EmbeddingsRequest(Asked, kw_only=True):
    input: Inputs
    encoding_format: Annotated[Literal["float", "base64"], Meta(description="base64: of float32 numbers, little-endian.")] = "float"
    dimensions: Annotated[Count | None, Meta(description="Keep this many numbers of each vector.")] = None
    user: Annotated[str | None, Meta(description="Is accepted and not used.")] = None


class Embedding(Struct):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(Struct):
    prompt_tokens: int
    total_tokens: int


class Embeddings(Struct):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class ServedModel(Struct):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ServedModels(Struct):
    object: Literal["list"]
    data: list[ServedModel]


# --- text-embeddings-inference ---


class Truncated(Asked, kw_only=True):
    """Requests whose texts may be cut."""

    truncate: Truncate = None
    truncation_direction: Direction = None


class EmbedSparseRequest(Truncated, kw_only=True):
    inputs: Inputs
    prompt_name: Prompted = None


class EmbedAllRequest(EmbedSparseRequest, kw_only=True):
    normalize: Annotated[bool | None, Meta(description="Is accepted and not used: clients send it.")] = None


class EmbedRequest(EmbedSparseRequest, kw_only=True):
    normalize: Annotated[bool, Meta(description="Scale vectors to length 1.")] = True
    dimensions: Annotated[Count | None, Meta(description="Keep this many numbers of each vector.")] = None


class SparseValue(Struct):
    index: int
    value: float


class PredictRequest(Truncated, kw_only=True):
    inputs: Annotated[
        str | list[str | list[str]], Meta(description="A text, a pair of texts, or a list of lists that hold a text or a pair each.")
    ]
    raw_scores: Raw = False


class Prediction(Struct):
    score: float
    label: str


class RerankRequest(Truncated, kw_only=True):
    query: str
    texts: list[str]
    raw_scores: Raw = False
    return_text: bool = False


class Rank(Struct):
    index: int
    score: float
    text: str | None = None


class Compared(Struct, forbid_unknown_fields=True):
    source_sentence: str
    sentences: list[str]


class SimilarityParameters(Struct, kw_only=True, forbid_unknown_fields=True):
    truncate: Truncate = None
    truncation_direction: Direction = None
    prompt_name: Prompted = None


class SimilarityRequest(Asked, kw_only=True):
    inputs: Compared
    parameters: SimilarityParameters | None = None


class TokenizeRequest(Asked, kw_only=True):
    inputs: str | list[str]
    add_special_tokens: bool = True
    prompt_name: Prompted = None


class Token(Struct):
    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class DecodeRequest(Asked, kw_only=True):
    ids: list[int | list[int]]
    skip_special_tokens: bool = True


# --- further tasks ---


class FillMaskRequest(Asked, kw_only=True):
    inputs: Annotated[str | list[str], Meta(description="Texts with the model's mask token in them.")]
    top_k: Count = 5


class Guess(Struct):
    token: str
    score: float
    sequence: str


class TagRequest(Asked, kw_only=True):
    inputs: str | list[str]
    strategy: Literal["none", "simple", "first", "average", "max"] = "first"


class Span(Struct):
    start: int
    end: int
    label: str
    score: float
    text: str


class Question(Struct, forbid_unknown_fields=True):
    question: str
    context: str


class AnswerRequest(Asked, kw_only=True):
    inputs: Question | list[Question]
    top_k: Count = 1
    no_answer: Annotated[bool, Meta(description="Let an empty answer stand for no answer.")] = False


class Found(Struct):
    start: int
    end: int
    score: float
    text: str


def named(kind: type[Struct], rows: Iterable[tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Tuples as the JSON objects of a type of answers."""
    return [dict(zip(kind.__struct_fields__, row, strict=True)) for row in rows]


# --- errors ---


class TeiError(Struct):
    error: str
    error_type: str


class OpenAIErrorBody(Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(Struct):
    error: OpenAIErrorBody


# --- the page ---


class PathRequest(Asked, kw_only=True):
    text: str
    token: int | None = None
    layer: Count | None = None
    tree: Count = 1


Vectors: TypeAlias = list[list[float]]
