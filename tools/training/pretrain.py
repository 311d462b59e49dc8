"""train.py pretrain: masked language modelling from text, from scratch."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastinfer.checkpoint.layouts import SPECIAL_TOKENS
from fastinfer.config import Config, Embed, FillMask, Ids, Norm, Positions, Stored, Tasks
from fastinfer.errors import InputError
from training import corpus, runs
from training.encoder import Encoder
from training.objectives import MaskedLanguageModel
from training.recipe import option
from training.start import open_model
from training.workers import Workers

MASKED = (0.8, 0.9)  # of the tokens to guess, 80% become [MASK], 10% another token, 10% stay (Devlin et al., arXiv 1810.04805)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ALPHABET = 1000  # characters that a trained tokenizer knows: the most frequent ones


@dataclasses.dataclass(frozen=True)
class Pretrain(runs.Training):
    """Train a masked language model from text, from scratch."""

    like: str | None = option(
        None,
        "a model whose architecture is trained, with the feedforwards of shape, in place of hidden, layers and heads: a folder or a name",
    )
    tokenizer: str | None = option(None, "tokenizer.json (default: that of like, or else a WordPiece trained on the text)")
    vocabulary: int = option(30522, "tokens of the WordPiece that is trained where no tokenizer is named")
    hidden: int = option(384, "hidden width D of a BERT with norms first and learned positions")
    layers: int = option(6, "number of layers")
    heads: int = option(12, "attention heads H")
    max_tokens: int = option(128, "tokens of a row")
    masked: float = option(0.15, "share of the tokens to guess")


class Rows:
    """Full rows of text with tokens to guess: the Data of pretrain."""

    def __init__(self, rows: tuple[np.ndarray, np.ndarray], settings: Pretrain, ids: Ids, vocabulary: int, workers: Workers) -> None:
        self.rows = [torch.from_numpy(r.astype(np.int32)).to(workers.device) for r in rows]
        self.settings, self.ids, self.vocabulary, self.workers = settings, ids, vocabulary, workers

    def batch(self, step: int, validation: bool = False) -> tuple[Tensor | None, ...]:
        """(ids (B, L), None, places (B, G), labels (B, G)) of this process."""
        rng = np.random.default_rng((self.settings.seed, step, validation))
        rows, length = self.rows[validation], self.settings.max_tokens
        count, guesses = self.settings.batch_tokens // length, max(1, round(self.settings.masked * length))
        mine = self.workers.rows(count)
        chosen = rng.integers(0, len(rows), count)[mine]
        places = 1 + rng.random((count, length - 2)).argpartition(guesses - 1, 1)[mine, :guesses]
        how, other = rng.random((count, guesses))[mine], rng.integers(0, self.vocabulary, (count, guesses))[mine]
        device = rows.device
        chosen, places, how, other = (torch.from_numpy(a).to(device) for a in (chosen, places, how, other))
        ids = rows[chosen].long()
        labels = ids.gather(1, places)
        shown = torch.where(how < MASKED[0], self.ids.mask, torch.where(how < MASKED[1], other, labels))
        return ids.scatter(1, places, shown), None, places, labels


def pretrain(settings: Pretrain, resume: bool) -> None:
    """Train a masked language model as `settings` say and export it."""
    folder, workers = runs.open_run(settings, resume, settings.like)
    if settings.tokenizer:
        corpus.read_tokenizer(settings.tokenizer)
    runs.check_positive(settings, "hidden", "layers", "heads", "vocabulary")
    like = settings.like and open_model(settings.like)
    ids, size = Ids(0, 4, 2, 3), min(settings.vocabulary, 1 << 20)  # those of a tokenizer that is trained here
    if like:
        size = like.config.vocabulary
    check_memory(settings, workers, architecture(settings, like and like.config, size, ids))
    tokenizer_file = folder / "tokenizer.json"
    if workers.rank == 0 and not resume:
        if settings.tokenizer or not like:
            made = corpus.read_tokenizer(settings.tokenizer) if settings.tokenizer else train_tokenizer(settings)
            made.save(str(tokenizer_file))
        else:
            tokenizer_file.write_bytes(like.tokenizer_json)
    workers.wait()
    tokenizer = corpus.read_tokenizer(tokenizer_file)
    ids = special_ids(tokenizer, tokenizer_file)
    corpora = corpus.read(settings.text, tokenizer, settings.cache and Path(settings.cache), progress=workers.rank == 0)
    rows = tuple(found.rows(settings.max_tokens, (ids.cls, ids.sep)) for found in corpora)
    torch.manual_seed(settings.seed)
    config = architecture(settings, like and like.config, tokenizer.get_vocab_size(), ids)
    objective = MaskedLanguageModel(Encoder(config), settings.balance)
    runs.train(objective, Rows(rows, settings, ids, config.vocabulary, workers), settings, workers, resume=resume)


def architecture(settings: Pretrain, like: Config | None, vocabulary: int, ids: Ids) -> Config:
    """The model that is trained: that of the settings, or `like` with their feedforwards. Raises InputError for a `like` that cannot be."""
    feedforward, tasks = runs.parse_shape(settings.shape), Tasks(Embed("mean", True), FillMask(transform=True))
    if like is None:
        return Config(
            hidden=settings.hidden,
            layers=settings.layers,
            heads=settings.heads,
            vocabulary=vocabulary,
            norm=Norm("pre", 1e-12),
            positions=Positions("learned", settings.max_tokens),
            ffn=(feedforward,) * settings.layers,
            max_tokens=settings.max_tokens,
            tasks=tasks,
            final_norm=True,
            ids=ids,
        )
    if any(layer.causal for layer in like.attention):
        raise InputError(f"like is {settings.like}, whose tokens see none after them, so it cannot learn to guess masks: name an encoder")
    if settings.max_tokens > like.positions.max:
        raise InputError(f"max_tokens is {settings.max_tokens}, expected at most {like.positions.max}, the positions of {settings.like}")
    return dataclasses.replace(
        like, vocabulary=vocabulary, ffn=(feedforward,) * like.layers, tasks=tasks, ids=ids, max_tokens=settings.max_tokens, stored=Stored()
    )


def check_memory(settings: Pretrain, workers: Workers, config: Config) -> None:
    """runs.check_memory for this model."""
    length = settings.max_tokens
    rows, guesses = settings.batch_tokens // length, max(1, round(settings.masked * length))

    def batch(count: int) -> tuple[Any, ...]:
        return torch.zeros(count, length, dtype=torch.int64), None, *torch.zeros(2, count, guesses, dtype=torch.int64)

    def make() -> MaskedLanguageModel:
        return MaskedLanguageModel(Encoder(config), settings.balance)

    runs.check_memory(settings, workers, make, lambda parts: [(-(-max(1, rows // workers.world) // parts), batch)], rows)


def train_tokenizer(settings: Pretrain) -> Any:
    """BERT's uncased WordPiece, trained on the text; the same text gives the same tokens.

    The library numbers letters in the order of a hash table, which differs between processes, and numbers decide between pairs that are
    equally frequent. So the letters are named here, in order, both as they begin words and, as tokens "##x", as they continue them.
    """
    from tokenizers import BertWordPieceTokenizer

    text, made = corpus.paragraphs(settings.text), BertWordPieceTokenizer(lowercase=True)
    found: collections.Counter[str] = collections.Counter()
    for paragraph in corpus.paragraphs(settings.text):
        found.update(made.normalizer.normalize_str(paragraph))
    letters = sorted(found, key=lambda c: (-found[c], c))[:ALPHABET]
    letters = sorted(c for c in letters if not c.isspace())
    special = [*SPECIAL, *(f"##{c}" for c in letters if c.isalnum())]
    made.train_from_iterator(
        text, settings.vocabulary, special_tokens=special, initial_alphabet=letters, limit_alphabet=len(letters), show_progress=False
    )
    tokens = made.get_vocab()
    raw = BertWordPieceTokenizer(dict(sorted(tokens.items(), key=lambda item: item[1])), lowercase=True)._tokenizer
    raw.add_special_tokens(SPECIAL)
    return raw


def special_ids(tokenizer: Any, path: Path) -> Ids:
    """The ids of the tokens with a meaning. Raises InputError for a tokenizer that lacks [CLS], [SEP] or [MASK]."""
    found = {key: next((n for n in map(tokenizer.token_to_id, names) if n is not None), None) for key, names in SPECIAL_TOKENS.items()}
    missing = [SPECIAL_TOKENS[key][0] for key in ("cls", "sep", "mask") if found[key] is None]
    if missing:
        raise InputError(f"{path} has no {', '.join(missing)} token, which masked language modelling needs")
    return Ids(**found)
