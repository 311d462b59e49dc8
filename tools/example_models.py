"""Make a small model with all five heads, for trying them: python tools/example_models.py OUT

    python tools/example_models.py examples
    fastinfer tag -m examples "Ada Lovelace lived in London."

OUT gets the encoder of fastminilm-1x11, and heads that are fitted to the dozen sentences below by least squares,
in seconds and without PyTorch. They show what each call gives, not how good a model can be. The documents use this model.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

import fastinfer
from fastinfer import checkpoint
from fastinfer.config import Answer, Classify, FillMask, Tag
from fastinfer.errors import FastinferError

RIDGE = 1.0  # weight of the penalty: smaller ones fit the sentences better and other sentences worse

TOPICS = {
    "cooking": (
        "Boil the potatoes and add salt.",
        "Bake the bread until it is brown.",
        "Stir the soup slowly.",
        "Fry onions in oil.",
    ),
    "money": ("The bank raised its rate.", "Shares fell on Monday.", "The company paid a dividend.", "Inflation is slowing."),
    "pets": ("The dog chased the ball.", "Our cat sleeps on the sofa.", "The puppy needs a walk.", "Feed the kitten twice a day."),
}
LABELS = ("O", "B-person", "I-person", "B-place", "I-place")
NAMES = {
    "Ada Lovelace lived in London.": {"Ada Lovelace": "person", "London": "place"},
    "Marie Curie worked in Paris.": {"Marie Curie": "person", "Paris": "place"},
    "Alan Turing was born in London and studied in Cambridge.": {"Alan Turing": "person", "London": "place", "Cambridge": "place"},
    "Grace Hopper was born in New York.": {"Grace Hopper": "person", "New York": "place"},
    "In Berlin the trains were late again.": {"Berlin": "place"},
    "The soup was cold and the bread was old.": {},
}
QUESTIONS = (
    ("Where did Ada Lovelace live?", "Ada Lovelace lived in London.", "London"),
    ("Where did Marie Curie work?", "Marie Curie worked in Paris.", "Paris"),
    ("Who worked in Paris?", "Marie Curie worked in Paris.", "Marie Curie"),
    ("Who lived in London?", "Ada Lovelace lived in London.", "Ada Lovelace"),
    ("Who wrote the first program?", "The trains were late again.", None),
    ("Where was Grace Hopper born?", "Grace Hopper was born in New York.", "New York"),
)
MASKED = {
    "Paris is the [MASK] of France.": "capital",
    "London is the [MASK] of England.": "capital",
    "The [MASK] barked at the postman.": "dog",
    "The cat sleeps on the [MASK].": "sofa",
    "Boil the [MASK] for twelve minutes.": "rice",
    "The bank raised its [MASK] again.": "rate",
}


def fit(x: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(weight (K, D), bias (K,)) of the ridge regression from x (rows, D) to targets (rows, K), float32."""
    x, targets = x.astype(np.float64), targets.astype(np.float64)
    mean, offset = x.mean(0), targets.mean(0)
    centred = x - mean
    weight = np.linalg.solve(centred.T @ centred + RIDGE * np.eye(x.shape[1]), centred.T @ (targets - offset)).T
    return weight.astype(np.float32), (offset - weight @ mean).astype(np.float32)


def one_hot(rows: list[int], count: int, scale: float = 8.0) -> np.ndarray:
    """(rows, count) logits: `scale` at each row's own column, 0 elsewhere."""
    return scale * np.eye(count)[rows]


def topics(model: fastinfer.Model) -> tuple[np.ndarray, np.ndarray]:
    """The layer from mean-pooled states to the topics."""
    vectors = model.embed([text for texts in TOPICS.values() for text in texts], normalize=False)
    return fit(vectors, one_hot([i for i, texts in enumerate(TOPICS.values()) for _ in texts], len(TOPICS)))


def names(model: fastinfer.Model) -> tuple[np.ndarray, np.ndarray]:
    """The layer from a token's states to its label."""
    wanted: list[int] = []
    for text, spans in NAMES.items():
        found = {text.index(span): (text.index(span) + len(span), label) for span, label in spans.items()}
        for start, end in model.tokenizer.encode([text])[0].offsets:
            first = next((at for at, (stop, _) in found.items() if at <= start < end <= stop), None)
            wanted.append(0 if first is None else LABELS.index(("B-" if start == first else "I-") + found[first][1]))
    return fit(np.concatenate(model.hidden_states(list(NAMES))), one_hot(wanted, len(LABELS)))


def answers(model: fastinfer.Model) -> tuple[np.ndarray, np.ndarray]:
    """The layer from a token's states to the logits of the answer's start and end; [CLS] stands for no answer."""
    pairs = [(question, context) for question, context, _ in QUESTIONS]
    wanted = []
    for (_, context), (_, _, answer), tokens in zip(pairs, QUESTIONS, model.tokenizer.encode(pairs), strict=True):
        start = -1 if answer is None else context.index(answer)
        for i, ((begin, end), side) in enumerate(zip(tokens.offsets, tokens.sequence_ids, strict=True)):
            none = answer is None and i == 0
            wanted.append((none or (side == 1 and begin == start), none or (side == 1 and end == start + len(answer or ""))))
    return fit(np.concatenate(model.hidden_states(pairs)), 8.0 * np.array(wanted, float))


def masks(model: fastinfer.Model, embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The transform from a mask's states to the embedding of the word it hides."""
    mask = model.config.ids.mask
    tokens = model.tokenizer.encode(list(MASKED))
    states = [rows[t.ids.index(mask)] for rows, t in zip(model.hidden_states(list(MASKED)), tokens, strict=True)]
    return fit(np.stack(states), np.stack([embeddings[model.tokenizer.raw.token_to_id(word)] for word in MASKED.values()]))


def make(out: Path) -> None:
    """Write the model into folder `out`. Raises FastinferError, or OSError where it cannot be written."""
    source = Path(fastinfer.__file__).with_name("models") / "fastminilm-1x11"
    model = fastinfer.load(source, dtype="float32", device="cpu")
    config, stored = checkpoint.load(source)
    layers: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
        "classify.out": lambda: topics(model),
        "tag.out": lambda: names(model),
        "answer.out": lambda: answers(model),
        "fill_mask.transform": lambda: masks(model, stored["embedding.word"].float32()),
    }
    for name, layer in layers.items():
        weight, bias = layer()
        stored[f"tasks.{name}.weight"] = checkpoint.Tensor(weight, "float32").to(config.stored.matrices)
        stored[f"tasks.{name}.bias"] = checkpoint.Tensor(bias, "float32")
    for name, value in (("weight", 1.0), ("bias", 0.0)):
        stored[f"tasks.fill_mask.norm.{name}"] = checkpoint.Tensor(np.full(config.hidden, value, np.float32), "float32")
    tasks = dataclasses.replace(
        config.tasks,
        classify=Classify(tuple(TOPICS), "softmax", pooling="mean"),
        tag=Tag(LABELS),
        answer=Answer(),
        fill_mask=FillMask(transform=True, bias=False),
    )
    checkpoint.save(out, dataclasses.replace(config, tasks=tasks), stored, tokenizer=source / "tokenizer.json")


def main(arguments: list[str] | None = None) -> int:
    """The command line: 0, or 1 with the reason on standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write, new or of an earlier run")
    try:
        make(parser.parse_args(arguments).out)
    except (FastinferError, OSError) as error:
        print(f"example_models: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
