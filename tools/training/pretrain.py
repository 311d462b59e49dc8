"""train.py pretrain: masked language modelling from text, from scratch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastinfer.checkpoint.layouts import SPECIAL_TOKENS
from fastinfer.config import Config, Embed, FillMask, Ids, Norm, Positions, Tasks
from fastinfer.errors import InputError
from training import corpus, runs
from training.encoder import Encoder
from training.objectives import MaskedLanguageModel
from training.recipe import option
from training.workers import Workers

MASKED = (0.8, 0.9)  # of the tokens to guess, 80% become [MASK], 10% another token, 10% stay (Devlin et al., arXiv 1810.04805)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@dataclasses.dataclass(frozen=True)
class Pretrain(runs.Training):
    """Train a masked language model from text, from scratch."""

    tokenizer: str | None = option(None, "tokenizer.json (default: a WordPiece trained on the text)")
    vocabulary: int = option(30522, "tokens of the WordPiece that is trained where no tokenizer is named")
    hidden: int = option(384, "hidden width D")
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
    feedforward = runs.parse_shape(settings.shape)
    folder, workers = runs.open_run(settings, resume)
    tokenizer_file = folder / "tokenizer.json"
    if workers.rank == 0 and not resume:
        tokenizer = corpus.read_tokenizer(settings.tokenizer) if settings.tokenizer else train_tokenizer(settings)
        tokenizer.save(str(tokenizer_file))
    workers.wait()
    tokenizer = corpus.read_tokenizer(tokenizer_file)
    ids = special_ids(tokenizer, tokenizer_file)
    corpora = corpus.read(settings.text, tokenizer, settings.cache and Path(settings.cache), progress=workers.rank == 0)
    rows = tuple(found.rows(settings.max_tokens, (ids.cls, ids.sep)) for found in corpora)
    if not all(map(len, rows)):
        found = " and ".join(f"{len(c.ids):,}" for c in corpora)
        raise InputError(f"the text has {found} tokens to train and to validate, expected a row of {settings.max_tokens} of each: add text")
    torch.manual_seed(settings.seed)
    config = Config(
        hidden=settings.hidden,
        layers=settings.layers,
        heads=settings.heads,
        vocabulary=tokenizer.get_vocab_size(),
        norm=Norm("pre", 1e-12),
        positions=Positions("learned", settings.max_tokens),
        ffn=(feedforward,) * settings.layers,
        max_tokens=settings.max_tokens,
        tasks=Tasks(Embed("mean", True), FillMask(transform=True)),
        final_norm=True,
        ids=ids,
    )
    objective = MaskedLanguageModel(Encoder(config), settings.balance)
    runs.train(objective, Rows(rows, settings, ids, config.vocabulary, workers), settings, workers, resume=resume)


def train_tokenizer(settings: Pretrain) -> Any:
    """BERT's uncased WordPiece, trained on the text."""
    from tokenizers import BertWordPieceTokenizer

    made = BertWordPieceTokenizer(lowercase=True)
    made.train_from_iterator(corpus.paragraphs(settings.text), settings.vocabulary, special_tokens=SPECIAL, show_progress=False)
    return made._tokenizer


def special_ids(tokenizer: Any, path: Path) -> Ids:
    """The ids of the tokens with a meaning. Raises InputError for a tokenizer that lacks [CLS], [SEP] or [MASK]."""
    found = {key: next((n for n in map(tokenizer.token_to_id, names) if n is not None), None) for key, names in SPECIAL_TOKENS.items()}
    missing = [SPECIAL_TOKENS[key][0] for key in ("cls", "sep", "mask") if found[key] is None]
    if missing:
        raise InputError(f"{path} has no {', '.join(missing)} token, which masked language modelling needs")
    return Ids(**found)
