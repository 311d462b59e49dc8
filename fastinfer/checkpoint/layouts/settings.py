"""Readers of the settings files in a foreign checkpoint: limits, special tokens, vocabulary, options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import CheckpointError, ConfigError
from ...files import read_file
from ...strict_json import MAX_JSON_BYTES, read_json, vocabulary_bytes

__all__ = ["SPECIAL_TOKENS", "read_object", "read_options", "read_vocabulary", "special_tokens", "token_limit"]

SPECIAL_TOKENS = {"pad": ("[PAD]", "<pad>"), "mask": ("[MASK]", "<mask>"), "cls": ("[CLS]", "<s>"), "sep": ("[SEP]", "</s>")}
# (file, key) of the largest number of tokens per text in a sentence-transformers folder. The first one found counts.
TOKEN_LIMITS = (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length"))


def token_limit(folder: Path) -> int | None:
    """The most tokens per text that the settings files of a sentence-transformers folder name, or None."""
    limits = [read_options(folder / file).get(key) for file, key in TOKEN_LIMITS]
    return next((limit for limit in limits if limit is not None), None)


def special_tokens(folder: Path) -> dict[str, list[str]]:
    """{"pad", "mask", "cls" or "sep": the token's possible names}, the name in the tokenizer's settings before the usual ones."""
    named = read_options(folder / "tokenizer_config.json") | read_options(folder / "special_tokens_map.json")
    found = {}
    for key, habits in SPECIAL_TOKENS.items():
        name = named.get(f"{key}_token")
        name = name.get("content") if isinstance(name, dict) else name
        found[key] = [n for n in (name, *habits) if isinstance(n, str)]
    return found


def read_vocabulary(path: Path, most: int) -> list[str]:
    """The tokens of a vocab.txt, one per line. most: the model's vocabulary size, which bounds the file. Raises CheckpointError."""
    try:
        text = read_file(path, vocabulary_bytes(most)).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} cannot be read as a vocabulary, one token a line: {error}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")


def read_options(path: Path) -> dict[str, Any]:
    """The JSON object in a settings file; an empty one when the file does not exist."""
    return read_object(path, dict) if path.exists() else {}


def read_object(path: Path, kind: type[dict[str, Any]] | type[list[Any]], limit: int = MAX_JSON_BYTES) -> Any:
    """The object, or the list of objects, in a JSON file of at most `limit` bytes. Raises ConfigError for another kind."""
    value: Any = read_json(path, limit)
    if not isinstance(value, kind) or (kind is list and not all(isinstance(v, dict) for v in value)):
        raise ConfigError(f"{path} holds a {type(value).__name__}, expected {'a list of objects' if kind is list else 'an object'}")
    return value
