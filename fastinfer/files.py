"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

__all__ = ["naming", "replacing", "replacing_all"]


@contextlib.contextmanager
def naming(name: str | os.PathLike) -> Iterator[None]:
    """An OSError raised in here names this file: not a temporary one that nobody knows, and not none."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = os.fspath(name), None
        raise


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file to write that takes the place of `path` when the block ends without an error.

    It is written under an unpredictable name in the same folder, created exclusively, so that no link is followed, no
    file of another is touched and two writers do not meet: the last one to finish wins, whole. After an error `path`
    is as it was. The file gets the mode of the one it replaces, or the process's default. Raises OSError.
    """
    with replacing_all([path]) as (file,):
        yield file


@contextlib.contextmanager
def replacing_all(paths: Sequence[str | os.PathLike]) -> Iterator[list[BinaryIO]]:
    """replacing() for several files: none is renamed before all are on the disk."""
    targets = [Path(path) for path in paths]
    names = [target.with_name(f".{target.name[:80]}.{secrets.token_hex(16)}.tmp") for target in targets]
    with contextlib.ExitStack() as stack:
        files = []
        for name, target in zip(names, targets, strict=True):
            stack.callback(_remove, name)
            with naming(target):
                files.append(stack.enter_context(open(name, "xb")))
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(files[-1].fileno(), stat.S_IMODE(target.stat().st_mode))
        yield files
        for file, target in zip(files, targets, strict=True):
            with naming(target):
                file.flush()
                os.fsync(file.fileno())
                file.close()
        for name, target in zip(names, targets, strict=True):
            with naming(target):
                os.replace(name, target)


def _remove(path: Path) -> None:
    """Remove a temporary file, where there is one: what went wrong before is what the caller is told."""
    with contextlib.suppress(OSError):
        path.unlink()
