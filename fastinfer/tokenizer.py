"""Text to ids: single texts and pairs, one truncation policy, character offsets.

The tokenizer.json of a checkpoint decides how text is cut into tokens; padding and truncation that it may
ask for are switched off, since batches are packed and the limit is the model's.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .batch import PackedBatch
from .config import Config
from .errors import CheckpointError, InputError

__all__ = ["Tokenizer", "as_texts"]

ANSWER_STRIDE = 128  # tokens that neighbouring windows of a long context share


def as_texts(texts: Any, name: str = "texts") -> list:
    """A list of texts, each a str or a pair (str, str) as a tuple. One str or one tuple is a batch of one.

    Raises InputError naming what is no text.
    """
    if isinstance(texts, (str, tuple)):
        texts = [texts]
    try:
        texts = list(texts)
    except TypeError:
        raise InputError(f"{name} is a {type(texts).__name__}, expected a str, a pair (str, str), or a list of these") from None
    for i, text in enumerate(texts):
        if isinstance(text, list) and len(text) == 2:
            text = texts[i] = tuple(text)
        if not isinstance(text, str) and not (isinstance(text, tuple) and len(text) == 2 and all(isinstance(t, str) for t in text)):
            raise InputError(f"{name}[{i}] is {_kind(text)}, expected a str or a pair (str, str)")
    return texts


class Tokenizer:
    """A checkpoint's tokenizer.json, with the model's limit of tokens per text.

    raw: the tokenizers.Tokenizer inside.
    """

    def __init__(self, path: Path, config: Config) -> None:
        import tokenizers

        try:
            self.raw = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(f"{path} is no tokenizer that the tokenizers library can read: {error}") from None
        self.raw.no_padding()
        self.raw.no_truncation()
        size = self.raw.get_vocab_size(with_added_tokens=True)
        if size > config.vocabulary:
            raise CheckpointError(
                f"{path} has {size} tokens, but the model's vocabulary is {config.vocabulary}: it belongs to another model"
            )
        self._config = config
        for count in (1, 2):
            if self.raw.num_special_tokens_to_add(count == 2) >= config.max_tokens:
                raise CheckpointError(
                    f"{path} adds {self.raw.num_special_tokens_to_add(count == 2)} tokens to a text, but max_tokens is {config.max_tokens}"
                )

    def encode(self, texts: Sequence[Any]) -> list[Any]:
        """tokenizers.Encoding per text: ids, type_ids, offsets (characters), special_tokens_mask, word_ids, sequence_ids.

        Texts over the model's limit are cut (of a pair, the longer one first), with one warning per call.
        """
        limit = self._config.max_tokens
        encodings = self.raw.encode_batch(list(texts))
        long = [i for i, e in enumerate(encodings) if len(e.ids) > limit]
        if long:
            longest = max(len(encodings[i].ids) for i in long)
            cutter = self._cutter(limit)
            for i in long:
                encodings[i] = cutter.encode(*([texts[i]] if isinstance(texts[i], str) else texts[i]))
            warnings.warn(
                f"{len(long)} of {len(texts)} texts had more than {limit} tokens, the model's limit, and were cut (the longest had {longest})",
                stacklevel=2,
            )
        return encodings

    def batch(self, encodings: Sequence[Any]) -> PackedBatch:
        """Pack encodings; a text without any token becomes the one token that begins a text (or pads, where there is none)."""
        ids = self._config.ids
        blank = next((i for i in (ids.cls, ids.sep, ids.pad) if i is not None), None)
        rows = []
        for i, encoding in enumerate(encodings):
            if not encoding.ids and blank is None:
                raise InputError(f"texts[{i}] gives no tokens, and the model names no token that could stand for an empty text")
            rows.append(encoding.ids or [blank])
        types = None
        if self._config.token_types > 1:
            types = [e.type_ids or [0] for e in encodings]
        return PackedBatch.from_ids(rows, types)

    def windows(self, question: str, context: str) -> list[Any]:
        """Encodings of (question, window of context) that cover a context of any length, neighbours sharing tokens."""
        room = (
            self._config.max_tokens
            - self.raw.num_special_tokens_to_add(True)
            - len(self.raw.encode(question, add_special_tokens=False).ids)
        )
        if room < 1:
            raise InputError(f"the question fills the model's limit of {self._config.max_tokens} tokens: no room for a context")
        cutter = self._cutter(self._config.max_tokens, strategy="only_second", stride=min(ANSWER_STRIDE, room // 2))
        encoding = cutter.encode(question, context)
        return [encoding, *encoding.overflowing]

    def _cutter(self, limit: int, **options: Any) -> Any:
        """A copy of the tokenizer that truncates; the shared one never changes, so that threads may use it."""
        import tokenizers

        cutter = tokenizers.Tokenizer.from_str(self.raw.to_str())
        cutter.enable_truncation(limit, **options)
        return cutter


def _kind(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)} ({', '.join(type(v).__name__ for v in value[:3])})"
    return f"a {type(value).__name__}"
