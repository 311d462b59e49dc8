"""Strict reading of untrusted JSON: files are bounded, and an object may not name a key twice."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from .errors import ConfigError, short
from .files import read_file

__all__ = ["MAX_JSON_BYTES", "MAX_VOCABULARY_BYTES", "as_json", "parse_json", "read_json", "vocabulary_bytes"]

MAX_JSON_BYTES = 4 << 20
MAX_VOCABULARY_BYTES = 64 << 20


def parse_json(text: bytes) -> Any:
    """The value of a JSON text. Raises ValueError, also for a key named twice, and RecursionError for deep nesting."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            name, _ = Counter(name for name, _ in items).most_common(1)[0]
            raise ValueError(f"an object names {short(name)} twice")
        return found

    return json.loads(text, object_pairs_hook=pairs)


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> Any:
    """The value of a JSON file of at most `limit` bytes. Raises ConfigError naming the file."""
    return as_json(read_file(path, limit, ConfigError), path)


def vocabulary_bytes(tokens: int) -> int:
    """Most bytes of a file that lists so many tokens. Published files have 10 to 80 bytes a token, and 0.3 MB for normalisation."""
    return min(MAX_VOCABULARY_BYTES, (1 << 20) + 512 * tokens)


def as_json(text: bytes, path: Path) -> Any:
    """parse_json() of the content of the file `path`. Raises ConfigError naming the file."""
    try:
        return parse_json(text)
    except RecursionError:
        raise ConfigError(f"{path} cannot be read as JSON: it is nested too deeply") from None
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from None
