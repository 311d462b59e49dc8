"""Readers of the settings files in a foreign checkpoint: sentence-transformers modules, options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...config import Pooling
from ...errors import ConfigError, listed, short
from ...strict_json import MAX_JSON_BYTES, read_json

__all__ = ["SPECIAL_TOKENS", "read_object", "read_options", "sentence_transformers"]

SPECIAL_TOKENS = {"pad": ("[PAD]", "<pad>"), "mask": ("[MASK]", "<mask>"), "cls": ("[CLS]", "<s>"), "sep": ("[SEP]", "</s>")}


def sentence_transformers(folder: Path) -> tuple[Pooling | None, bool]:
    """(pooling, normalize) of a sentence-transformers folder; (None, False) for other folders."""
    if not (folder / "modules.json").exists():
        return None, False
    pooling: Pooling | None = None
    normalize = False
    for module in read_object(folder / "modules.json", list):
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            pooling = _pooling(_inside(folder, module.get("path", "")) / "config.json")
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise ConfigError(
                f"{folder / 'modules.json'}: module {short(module.get('type'))} is not supported, only Transformer, Pooling and Normalize"
            )
    return pooling, normalize


def _inside(folder: Path, path: Any) -> Path:
    """The folder of a module, from its path in modules.json. Links are followed, because hub caches consist of them."""
    if not isinstance(path, str) or Path(path).is_absolute() or ".." in Path(path).parts:
        raise ConfigError(
            f"{folder / 'modules.json'}: a module's path is {short(path)}, expected one inside the folder, such as '1_Pooling'"
        )
    return folder / path


def _pooling(path: Path) -> Pooling:
    """The one pooling that a Pooling module's config.json turns on: by name or, in older files, by one switch per pooling."""
    options = read_object(path, dict)
    ways: dict[str, Pooling] = {"mean": "mean", "mean_tokens": "mean", "cls": "cls", "cls_token": "cls", "max": "max", "max_tokens": "max"}
    prefix = "pooling_mode_"
    chosen = options.get("pooling_mode") or [k.removeprefix(prefix) for k, on in options.items() if k.startswith(prefix) and on is True]
    chosen = [chosen] if isinstance(chosen, str) else chosen
    if len(chosen) != 1 or chosen[0] not in ways:
        raise ConfigError(f"{path}: pooling {listed(map(short, chosen), ' + ') or 'none'} is not supported, only one of mean, cls and max")
    return ways[chosen[0]]


def read_options(path: Path) -> dict[str, Any]:
    """The JSON object in a settings file; an empty one when the file does not exist."""
    return read_object(path, dict) if path.exists() else {}


def read_object(path: Path, kind: type[dict[str, Any]] | type[list[Any]], limit: int = MAX_JSON_BYTES) -> Any:
    """The object, or the list of objects, in a JSON file of at most `limit` bytes. Raises ConfigError for another kind."""
    value: Any = read_json(path, limit)
    if not isinstance(value, kind) or (kind is list and not all(isinstance(v, dict) for v in value)):
        raise ConfigError(f"{path} holds a {type(value).__name__}, expected {'a list of objects' if kind is list else 'an object'}")
    return value
