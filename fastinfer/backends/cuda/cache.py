"""Compiled kernels on the disk. The name of a file has the hash of its content, and only this user may write to the folder.

A program from this folder runs on the GPU with the process's rights. So a program is used only if this user owns the folder
and the file, others may write to neither, the file is a regular one, and its content has the hash in its name.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from ...errors import BackendError
from ...files import replacing

__all__ = ["cached"]

KINDS = ("cubin", "ptx")
OTHERS = stat.S_IWGRP | stat.S_IWOTH


def cached(key: str, make: Callable[[], tuple[bytes, str]]) -> Path:
    """The file of the program `key`.

    make  () -> (program, its kind: "cubin" or "ptx"); called if no trusted file exists

    The file lies in $XDG_CACHE_HOME/fastinfer or ~/.cache/fastinfer, or else in a temporary folder of this process.
    Raises BackendError if no folder can be written.
    """
    folder = usual_folder() or private_folder()
    for path in sorted(folder.glob(f"{key}-*")):
        if trusted(path):
            return path
    program, kind = make()
    name = f"{key}-{hashlib.sha256(program).hexdigest()}.{kind}"
    try:
        return _write(folder / name, program)
    except OSError:  # such as a full disk
        folder = private_folder()
    try:
        return _write(folder / name, program)
    except OSError as error:
        raise BackendError(f"the compiled GPU kernels cannot be written, set XDG_CACHE_HOME to a folder with room: {error}") from None


def _write(path: Path, program: bytes) -> Path:
    """`path`, after the program was written to it for this user alone."""
    with replacing(path) as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(program)
    return path


def usual_folder() -> Path | None:
    """The folder of this user's compiled kernels, created if needed; None if it cannot be used or others may write to it."""
    try:
        given = Path(os.environ.get("XDG_CACHE_HOME", ""))
        home = Path(os.environ["HOME"]) if "HOME" in os.environ else Path.home()  # an empty HOME is not the root folder
        folder = (given if given.is_absolute() else home / ".cache") / "fastinfer"
        if not folder.is_absolute():
            return None
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
        if status.st_uid == os.geteuid() and not _ours(status):
            folder.chmod(stat.S_IMODE(status.st_mode) & ~OTHERS)
        usable = _ours(folder.stat()) and os.access(folder, os.W_OK)
    except (OSError, RuntimeError, ValueError):  # RuntimeError: this user has no home folder
        return None
    return folder if usable else None


@functools.cache
def private_folder() -> Path:
    """A temporary folder that is removed when this process ends. Raises BackendError if it cannot be created."""
    try:
        folder = tempfile.mkdtemp(prefix="fastinfer-")
    except OSError as error:
        raise BackendError(f"no folder for compiled GPU kernels can be written, set XDG_CACHE_HOME to one: {error}") from None
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def trusted(path: Path) -> bool:
    """Whether `path` is a regular file of this user, not a link and not writable by others, whose content has the hash in its name."""
    named = re.fullmatch(r".*-([0-9a-f]{64})\.(?:" + "|".join(KINDS) + ")", path.name)
    if named is None:
        return False
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            return stat.S_ISREG(status.st_mode) and _ours(status) and hashlib.sha256(file.read()).hexdigest() == named[1]
    except OSError:
        return False


def _ours(status: os.stat_result) -> bool:
    """Whether this user owns the file or folder, and others may not write to it."""
    return status.st_uid == os.geteuid() and not status.st_mode & OTHERS
