"""Both sides of the comparison: the answers of transformers and sentence-transformers, fastinfer's, and how far they are apart."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sentence_transformers
import torch
import transformers

import fastinfer
from fastinfer.errors import FastinferError, TaskError

from .build import Family
from .texts import DOCUMENTS, HYPOTHESES, MASKED, PAIRS, QUERY, SPECIAL, TEXTS

Compared = Iterator[tuple[str, Any, Any]]  # (what was asked, their answer, our answer)
FLOAT = {"model_kwargs": {"dtype": torch.float32}, "device": "cpu"}
SHORT = [text[:60] for text in TEXTS if len(text) > 1]


class Oracle:
    """The answers of transformers and sentence-transformers for one folder. Models are opened when a task needs them."""

    def __init__(self, family: Family, folder: Path) -> None:
        self.family, self.folder = family, str(folder)

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers, which heads need."""
        return transformers.AutoTokenizer.from_pretrained(self.folder)

    def compare(self, task: str, model: fastinfer.Model) -> Compared:
        """What fastinfer and the oracle answer to each question of a task."""
        ask: dict[str, Callable[[fastinfer.Model], Compared]] = {
            "embed": self.embed,
            "rank": self.rank,
            "classify": self.classify,
            "fill_mask": self.fill_mask,
            "tag": self.tag,
            "answer": self.answer,
            "sparse": self.sparse,
            "tokens": self.tokens,
            "zero_shot": self.zero_shot,
        }
        with torch.inference_mode():
            yield from ask[task](model)

    def _auto(self, head: str) -> Any:
        kind = getattr(transformers, f"AutoModel{head}")
        return kind.from_pretrained(self.folder, dtype=torch.float32).eval()

    def _inputs(self, text: Any) -> Any:
        first, second = text if isinstance(text, tuple) else (text, None)
        return self.tokenizer(first, second, return_tensors="pt", truncation=True)

    # --- vectors ---

    def embed(self, model: fastinfer.Model) -> Compared:
        """Vectors, with each prompt that the model names."""
        if self.family.oracle == "pooler":
            config = transformers.AutoConfig.from_pretrained(self.folder)
            theirs = getattr(transformers, config.architectures[0]).from_pretrained(self.folder, dtype=torch.float32).eval()
            yield "", [theirs(**self._inputs(text)).pooler_output[0].numpy() for text in TEXTS], model.embed(TEXTS)
            return
        theirs = sentence_transformers.SentenceTransformer(self.folder, **FLOAT)
        yield "", theirs.encode(TEXTS), model.embed(TEXTS)
        yield "special tokens in a text", theirs.encode([SPECIAL]), model.embed([SPECIAL])
        for name, prompt in theirs.prompts.items():
            if prompt:
                yield f"prompt_name {name}", theirs.encode(TEXTS, prompt_name=name), asked(model.embed, TEXTS, prompt_name=name)

    def rank(self, model: fastinfer.Model) -> Compared:
        """Scores of documents, in their order."""
        if "embed" in self.family.tasks:
            theirs = sentence_transformers.SentenceTransformer(self.folder, **FLOAT)
            scores = theirs.similarity(theirs.encode_query(QUERY), theirs.encode_document(DOCUMENTS))[0].numpy()
        elif "tokens" in self.family.tasks:
            theirs = sentence_transformers.MultiVectorEncoder(self.folder, **FLOAT)
            scores = theirs.similarity(theirs.encode_query([QUERY]), theirs.encode_document(DOCUMENTS))[0].numpy()
        else:
            scores = sentence_transformers.CrossEncoder(self.folder, **FLOAT).predict([(QUERY, document) for document in DOCUMENTS])
        ranked = dict(model.rank(QUERY, DOCUMENTS))
        yield "", scores, np.array([ranked[i] for i in range(len(DOCUMENTS))])

    def sparse(self, model: fastinfer.Model) -> Compared:
        """Weights of the vocabulary's tokens."""
        theirs = sentence_transformers.SparseEncoder(self.folder, **FLOAT)
        yield "", theirs.encode(TEXTS).to_dense().numpy(), asked(model, "embed_sparse", TEXTS).toarray()

    def tokens(self, model: fastinfer.Model) -> Compared:
        """A vector for each token of a document."""
        theirs = sentence_transformers.MultiVectorEncoder(self.folder, **FLOAT)
        said = asked(model, "embed_tokens", TEXTS)
        for i, (want, got) in enumerate(zip(theirs.encode_document(TEXTS), said, strict=True)):
            yield f"text {i}", np.asarray(want), got

    # --- heads ---

    def classify(self, model: fastinfer.Model) -> Compared:
        """Scores of the labels, in the order of the labels."""
        theirs = self._auto("ForSequenceClassification")
        labels = [theirs.config.id2label[i] for i in range(theirs.config.num_labels)]
        texts = [*SHORT, *PAIRS]
        logits = torch.cat([theirs(**self._inputs(text)).logits for text in texts])
        if theirs.config.problem_type == "regression" or len(labels) == 1:
            yield "", logits[:, 0].numpy(), np.array(model.classify(texts))
            return
        many = theirs.config.problem_type == "multi_label_classification"
        scores = logits.sigmoid() if many else logits.softmax(-1)
        yield "labels", labels, list(model.config.tasks.classify.labels)
        yield "", scores.numpy(), np.array([[dict(answer)[label] for label in labels] for answer in model.classify(texts)])

    def fill_mask(self, model: fastinfer.Model) -> Compared:
        """Logits of the vocabulary at each mask."""
        theirs = self._auto("ForMaskedLM")
        texts = [text.format(*[self.tokenizer.mask_token] * 2) for text in MASKED]
        for text, got in zip(texts, model.logits(texts, task="fill_mask"), strict=True):
            inputs = self._inputs(text)
            yield text, theirs(**inputs).logits[0][inputs["input_ids"][0] == self.tokenizer.mask_token_id].numpy(), got

    def tag(self, model: fastinfer.Model) -> Compared:
        """Logits of the labels at each token, and the spans of the pipeline."""
        theirs = self._auto("ForTokenClassification")
        for text, got in zip(SHORT, model.logits(SHORT, task="tag"), strict=True):
            yield f"logits of {text!r}", theirs(**self._inputs(text)).logits[0].numpy(), got
        pipeline = transformers.TokenClassificationPipeline(model=theirs, tokenizer=self.tokenizer, aggregation_strategy="simple")
        for text, spans in zip(SHORT, model.tag(SHORT, strategy="simple"), strict=True):
            said = [(s["start"], s["end"], s["entity_group"]) for s in pipeline(text)]
            trimmed = [(a + len(text[a:b]) - len(text[a:b].lstrip()), a + len(text[a:b].rstrip()), label) for a, b, label in said]
            yield f"spans of {text!r}", [span for span in trimmed if span[0] < span[1]], [span[:3] for span in spans]

    def answer(self, model: fastinfer.Model) -> Compared:
        """Logits of start and end at each token of a question and its context."""
        theirs = self._auto("ForQuestionAnswering")
        for pair, got in zip(PAIRS, model.logits(PAIRS, task="answer"), strict=True):
            said = theirs(**self._inputs(pair))
            yield f"{pair}", torch.stack([said.start_logits[0], said.end_logits[0]], 1).numpy(), got

    def zero_shot(self, model: fastinfer.Model) -> Compared:
        """Scores of labels that the model was not trained on."""
        pipeline = transformers.pipeline(
            "zero-shot-classification", model=self._auto("ForSequenceClassification"), tokenizer=self.tokenizer
        )
        said = [dict(zip(answer["labels"], answer["scores"], strict=True)) for answer in pipeline(SHORT, HYPOTHESES)]
        ours = [dict(answer) for answer in asked(model.classify, SHORT, labels=HYPOTHESES)]
        yield "", np.array([[a[h] for h in HYPOTHESES] for a in said]), np.array([[a[h] for h in HYPOTHESES] for a in ours])


def asked(call: Any, *arguments: Any, **named: Any) -> Any:
    """The answer of a method, or of the method that the first argument names. Raises TaskError where fastinfer does not have it yet."""
    if not callable(call):
        name, *arguments = arguments
        if not hasattr(call, name):
            raise TaskError(f"fastinfer has no {name}")
        call = getattr(call, name)
    missing = [name for name in named if name not in inspect.signature(call).parameters]
    if missing:
        raise TaskError(f"fastinfer's {call.__name__} takes no {missing[0]}")
    return call(*arguments, **named)


def difference(theirs: Any, ours: Any) -> float:
    """The largest difference between two answers, in units of the largest number of theirs; infinity where they are not comparable."""
    if isinstance(theirs, list) and (not theirs or isinstance(theirs[0], (str, tuple))):
        return 0.0 if theirs == list(ours) else float("inf")
    theirs, ours = np.asarray(theirs, np.float64), np.asarray(ours, np.float64)
    if theirs.shape != ours.shape or not (np.isfinite(theirs).all() and np.isfinite(ours).all()):
        return float("inf")
    return float(np.abs(theirs - ours).max() / max(np.abs(theirs).max(), 1e-6)) if theirs.size else 0.0


def opened(folder: Path) -> fastinfer.Model | str:
    """fastinfer's model of a folder, or the reason for which it or its tokenizer is refused."""
    try:
        model = fastinfer.load(folder, device="cpu", dtype="float32", threads=1)
        model.hidden_states(TEXTS[:1])
        return model
    except FastinferError as error:
        return str(error)
