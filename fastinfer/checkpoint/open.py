"""load(): the Config and the checked tensors of a checkpoint folder, of this format or another tool's."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

from ..config import Config
from ..errors import CheckpointError, InputError, short
from ..strict_json import read_json
from . import layouts
from .check import check, check_finite
from .read import map_file, map_folder
from .tensor import Tensor

__all__ = ["load"]

VALIDATE_BELOW = 64 << 20  # bytes: smaller checkpoints are scanned for NaN by default


def load(
    path: str | os.PathLike[str],
    *,
    validate: bool | None = None,
    copy: bool = False,
    read: Callable[[Path], dict[str, Tensor]] | None = None,
) -> tuple[Config, dict[str, Tensor]]:
    """Map and check the checkpoint in folder `path`, of this format or another that layouts.py can rename.

    validate  scan all weights for NaN and infinity; None: when the files are small
    copy      read the weights into memory; False: map them, except small tensors and tables of children
    read      gets the folder's tensors; None: map_folder, which knows safetensors alone

    Raises ConfigError or CheckpointError; a message about tensors lists every missing, surplus or
    misshapen one. Nothing is allocated before it is checked against the files' sizes.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"path is {short(path)}, expected the name of a checkpoint folder")
    folder = Path(path)
    if not os.path.isdir(folder):
        hint = " (a file: pass the folder that holds it)" if os.path.isfile(folder) else ""
        raise CheckpointError(f"{folder} is no checkpoint folder{hint}; expected one with config.json and model.safetensors")
    data = read_json(folder / "config.json")
    stored = read(folder) if read else map_folder(folder, read=functools.partial(map_file, copy=copy))
    if isinstance(data, dict) and "format_version" in data:
        config = Config.from_json(data, str(folder / "config.json"))
    else:
        config, stored = layouts.translate(data, stored, folder)
    found = check(config, stored, str(folder))
    if validate or (validate is None and sum(t.nbytes for t in found.values()) < VALIDATE_BELOW):
        check_finite(found, str(folder))
    return config, found
