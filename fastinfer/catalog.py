"""Folders of models, found by path or by the name of a model inside the package."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import CheckpointError, InputError, short

__all__ = ["folder_of", "inside"]

MODELS = Path(__file__).with_name("models")  # a folder per model that ships inside the package


def inside() -> list[str]:
    """Names of the models that ship inside the package, the default first."""
    return sorted(path.parent.name for path in MODELS.glob("*/config.json"))


def folder_of(path_or_name: str | os.PathLike[str] | None) -> Path:
    """The folder that load() opens. Raises CheckpointError for None if no model is inside, and for an unknown path or name."""
    if path_or_name is None:
        if not inside():
            raise CheckpointError("no model is named, and none is inside this installation: name a checkpoint folder")
        return MODELS / inside()[0]
    if not isinstance(path_or_name, (str, os.PathLike)):
        raise InputError(f"path_or_name is {short(path_or_name)}, expected the name of a checkpoint folder or of a model inside fastinfer")
    if os.path.exists(path_or_name):
        return Path(path_or_name)
    if path_or_name in inside():
        return MODELS / path_or_name
    raise CheckpointError(
        f"{os.fspath(path_or_name) or 'an empty name'} is no checkpoint folder; expected one with config.json and model.safetensors, "
        f"or the name of a model inside fastinfer ({', '.join(inside()) or 'there is none'})"
    )
