"""load() gives the Config and the checked tensors of a checkpoint folder, in any known layout; load_all() gives its tokenizer, too."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from ..config import Config
from ..errors import CheckpointError, InputError, short
from ..strict_json import read_json
from ..tokenizer_file import Found, read_tokenizer
from .check import check, check_finite
from .read import map_folder
from .refusals import formats, refuse_folder, refuse_without_weights
from .tensor import Tensor

__all__ = ["load", "load_all"]

CONVERT = "\n  Where the file came from another tool, convert the original with fastinfer convert."
VALIDATE_BELOW = 64 << 20  # bytes: smaller checkpoints are scanned for NaN by default


def load(path: str | os.PathLike[str], *, validate: bool | None = None, copy: bool = False) -> tuple[Config, dict[str, Tensor]]:
    """The first two values of load_all()."""
    return _load(path, validate, copy)[:2]


def load_all(path: str | os.PathLike[str], *, validate: bool | None = None, copy: bool = False) -> tuple[Config, dict[str, Tensor], Found]:
    """The Config, {name: Tensor} and tokenizer of the checkpoint in folder `path`, in this format or one that layouts/ can translate.

    validate  scan all weights for NaN and infinity; None: only when they take less than VALIDATE_BELOW bytes
    copy      True: read the weights into memory; False: map them, except small tensors and tables of children

    What the files are, and which architecture config.json names, is looked at before weights are opened. Raises ConfigError or
    CheckpointError; a message about tensors lists every missing, surplus or misshapen one. Every size is checked against the files'
    sizes before memory is allocated for it.
    """
    config, tensors, tokenizer = _load(path, validate, copy)
    file = Path(path) / "tokenizer.json"
    if tokenizer is None and file.exists():
        tokenizer = Found(read_tokenizer(file, config.vocabulary), "tokenizer.json of the source", config.ids)
    return config, tensors, tokenizer or Found(None, "it has no tokenizer.json: put it into the folder, or pass ids", config.ids)


def _load(path: str | os.PathLike[str], validate: bool | None, copy: bool) -> tuple[Config, dict[str, Tensor], Found | None]:
    """The values of load_all(); None for the tokenizer of a folder in this format."""
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"path is {short(path)}, expected the name of a checkpoint folder")
    folder = Path(path)
    if not os.path.isdir(folder):
        what = ", ".join(formats([folder.name])) or "a file: pass the folder that holds it"
        hint = f" ({what})" if os.path.isfile(folder) else ""
        raise CheckpointError(f"{folder} is no checkpoint folder{hint}; expected one with config.json and model.safetensors")
    body = folder
    if (folder / "modules.json").exists():
        from . import layouts  # which folders of this format do not need, and whose import takes as long as that of everything else

        body = layouts.body_of(folder)
    refuse_folder(body)
    data = read_json(body / "config.json")
    ours = isinstance(data, dict) and "format_version" in data
    if not ours:
        from . import layouts

        layouts.look(data, body, folder)
    refuse_without_weights(body)
    read = functools.partial(map_folder, copy=copy)
    stored = read(body)
    if ours:
        config = Config.from_json(data, str(folder / "config.json"))
        tokenizer = None
        if (folder / "adapter_config.json").exists():
            raise CheckpointError(
                f"{folder} holds adapter_config.json beside weights of this format: put it beside the original's, and convert"
            )
    else:
        config, stored, tokenizer = layouts.translate(data, stored, body, folder, read)
    found = check(config, stored, str(folder), CONVERT if ours else "")
    if validate or (validate is None and sum(t.nbytes for t in found.values()) < VALIDATE_BELOW):
        check_finite(found, str(folder))
    return config, found, tokenizer
