"""A component for spaCy: nlp.add_pipe("fastinfer") gives each Doc the vector of its text.

spaCy finds it by its name, because fastinfer names it among its entry points, so a saved pipeline opens without an import.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from spacy.language import Language
from spacy.tokens import Doc
from spacy.util import minibatch

from ..errors import ShapeError
from .lazy import Lazy

__all__ = ["FastinferVectors", "make"]

if not Doc.has_extension("embedding"):
    Doc.set_extension("embedding", default=None)


class FastinferVectors:
    """Sets doc._.embedding to the embedding of the whole text, which Doc.vector and Doc.similarity then use.

    name                    of the component in its pipeline
    model                   gives the Model
    prompt_name, dim        as Model.embed takes them

    spaCy keeps doc._.embedding where it writes a Doc to bytes, as nlp.pipe(n_process=2) does. It warns then that it does not keep
    hooks: such a Doc has its embedding, but no vector.
    """

    def __init__(self, name: str, model: Lazy, prompt_name: str | None, dim: int | None) -> None:
        self.name, self.model, self.prompt_name, self.dim = name, model, prompt_name, dim

    def __call__(self, doc: Doc) -> Doc:
        return next(self.pipe([doc], batch_size=1))

    def pipe(self, stream: Iterable[Doc], *, batch_size: int = 256) -> Iterator[Doc]:
        """Yield the Docs with their vectors, embedding batch_size texts at a time."""
        for docs in minibatch(stream, batch_size):
            vectors = self.model().embed([doc.text for doc in docs], prompt_name=self.prompt_name, dim=self.dim)
            for doc, vector in zip(docs, vectors, strict=True):
                doc._.embedding = vector.copy()  # a row would keep the whole batch
                doc.user_hooks |= {"vector": vector_of, "has_vector": has_vector, "similarity": similarity}
                yield doc


def vector_of(doc: Doc) -> np.ndarray:
    """The vector that the component gave a Doc."""
    vector: np.ndarray = doc._.embedding
    return vector


def has_vector(doc: Doc) -> bool:
    """Whether the component gave a Doc a vector."""
    return doc._.embedding is not None


def similarity(doc: Doc, other: Any) -> float:
    """The cosine of the vectors of a Doc and of another object with a vector. Raises ShapeError for vectors of different lengths."""
    if doc.vector.shape != other.vector.shape:
        raise ShapeError(f"the vectors are {doc.vector.shape} and {other.vector.shape}, expected two Docs of this component")
    lengths = float(np.linalg.norm(doc.vector)) * float(np.linalg.norm(other.vector))
    return float(np.dot(doc.vector, other.vector)) / lengths if lengths else 0.0


@Language.factory(
    "fastinfer",
    assigns=["doc._.embedding", "doc.vector"],
    default_config={"model": None, "device": "auto", "dtype": None, "threads": None, "prompt_name": None, "dim": None},
)
def make(
    nlp: Language,
    name: str,
    model: str | None,
    device: str,
    dtype: str | None,
    threads: int | None,
    prompt_name: str | None,
    dim: int | None,
) -> FastinferVectors:
    """The component for a pipeline. model, device, dtype, threads: as fastinfer.load takes them."""
    return FastinferVectors(name, Lazy(model, device, dtype, threads), prompt_name, dim)
