"""Readers of the settings files in a foreign checkpoint: special tokens, options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ...strict_json import MAX_JSON_BYTES, read_json

__all__ = ["SPECIAL_TOKENS", "read_object", "read_options", "special_tokens"]

SPECIAL_TOKENS = {"pad": ("[PAD]", "<pad>"), "mask": ("[MASK]", "<mask>"), "cls": ("[CLS]", "<s>"), "sep": ("[SEP]", "</s>")}


def special_tokens(folder: Path) -> dict[str, list[str]]:
    """{"pad", "mask", "cls" or "sep": the token's possible names}, the name in the tokenizer's settings before the usual ones."""
    named = read_options(folder / "tokenizer_config.json") | read_options(folder / "special_tokens_map.json")
    found = {}
    for key, habits in SPECIAL_TOKENS.items():
        name = named.get(f"{key}_token")
        name = name.get("content") if isinstance(name, dict) else name
        found[key] = [n for n in (name, *habits) if isinstance(n, str)]
    return found


def read_options(path: Path) -> dict[str, Any]:
    """The JSON object in a settings file; an empty one when the file does not exist."""
    return read_object(path, dict) if path.exists() else {}


def read_object(path: Path, kind: type[dict[str, Any]] | type[list[Any]], limit: int = MAX_JSON_BYTES) -> Any:
    """The object, or the list of objects, in a JSON file of at most `limit` bytes. Raises ConfigError for another kind."""
    value: Any = read_json(path, limit)
    if not isinstance(value, kind) or (kind is list and not all(isinstance(v, dict) for v in value)):
        raise ConfigError(f"{path} holds a {type(value).__name__}, expected {'a list of objects' if kind is list else 'an object'}")
    return value
