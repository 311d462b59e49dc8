"""Folders of models, found by path, by the name of a model inside the package, or by a name on the hub."""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path

from . import hub
from .errors import CheckpointError, InputError, near, short

__all__ = ["folder_again", "folder_of", "inside", "lasting_name"]

MODELS = Path(__file__).with_name("models")  # a folder per model that ships inside the package
BESIDE = 1000  # folders beside one that does not exist, among which the one that was meant is sought


def inside() -> list[str]:
    """Names of the models that ship inside the package, the default first."""
    return sorted(path.parent.name for path in MODELS.glob("*/config.json"))


def folder_of(path_or_name: str | os.PathLike[str] | None) -> Path:
    """The folder that load() opens: that of the path; else of the model inside with this name; else of the repository on the hub.

    The root of a repository in a hub cache stands for the snapshot that its refs/main names. A Path is never a name.

    Raises CheckpointError for None if no model is inside, and for an unknown path or name.
    """
    if path_or_name is None:
        if not inside():
            raise CheckpointError("no model is named, and none is inside this installation: name a checkpoint folder")
        return MODELS / inside()[0]
    if not isinstance(path_or_name, (str, os.PathLike)):
        raise InputError(f"path_or_name is {short(path_or_name)}, expected the name of a checkpoint folder or of a model inside fastinfer")
    if os.path.exists(path_or_name):
        return hub.snapshot_in(Path(path_or_name)) or Path(path_or_name)
    if path_or_name in inside():
        return MODELS / path_or_name
    meant = near(os.fspath(path_or_name), [*inside(), *_beside(path_or_name)])
    if isinstance(path_or_name, str) and hub.NAME.fullmatch(path_or_name):
        try:
            return hub.find(path_or_name)
        except CheckpointError as error:
            raise CheckpointError(f"{error}{meant}") from error.__cause__
    raise CheckpointError(
        f"{os.fspath(path_or_name) or 'an empty name'} is no checkpoint folder; expected one with config.json and model.safetensors, "
        f"a name on the hub such as org/name, or the name of a model inside fastinfer ({', '.join(inside()) or 'there is none'}){meant}"
    )


def _beside(path: str | os.PathLike[str]) -> list[str]:
    """The folders beside a path that does not exist, spelled as it is."""
    with contextlib.suppress(OSError, ValueError), os.scandir(os.path.dirname(path) or ".") as found:
        folders = itertools.islice((entry.name for entry in found if entry.is_dir()), BESIDE)
        return [os.path.join(os.path.dirname(path), name) for name in folders]
    return []


def lasting_name(path_or_name: str | os.PathLike[str] | None, folder: Path) -> tuple[str, str]:
    """(kind, name) by which folder_again() finds the folder that folder_of() gave, in any directory and on other machines.

    ("inside", name) of a model inside the package; ("hub", "org/name@commit"); or ("folder", absolute path).
    """
    if folder.parent == MODELS:
        return "inside", folder.name
    if isinstance(path_or_name, str) and folder != Path(path_or_name) and hub.COMMIT.fullmatch(folder.name):
        found = hub.NAME.fullmatch(path_or_name)
        if found is not None:
            return "hub", f"{found['repo']}@{folder.name}"
    return "folder", os.path.abspath(folder)


def folder_again(kind: str, name: str) -> Path:
    """The folder with this lasting_name(). Raises CheckpointError where it does not exist."""
    if kind == "hub":
        return hub.find(name)
    folder = MODELS / name if kind == "inside" else Path(name)
    if not folder.is_dir():
        here = f"inside fastinfer, which has {', '.join(inside()) or 'no model'}" if kind == "inside" else "on this machine"
        raise CheckpointError(f"{name} does not exist {here}: put the folder there, or load the model by another name")
    return folder
