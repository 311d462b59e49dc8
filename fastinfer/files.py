"""Reading untrusted files within limits, and writing files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from .errors import CheckpointError, FastinferError, InputError

__all__ = ["digest", "locked", "naming", "read_file", "regular", "replacing", "replacing_all", "stamp"]

DIGEST_BYTES = 1 << 20  # read at a time
POINTER = b"version https://git-lfs"  # begins the text that stands for a large file


@contextlib.contextmanager
def regular(path: str | os.PathLike[str], kind: type[FastinferError] = CheckpointError) -> Iterator[BufferedReader]:
    """The regular file at `path`, or at the end of its links, open for reading.

    A pipe or a device is refused without waiting for it. The opened file itself is checked, so no other file can take
    its place in between. A pointer of git-lfs, which a clone without git-lfs has in the place of a large file, is refused.
    Raises `kind` naming the file, also for an OSError in the block.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise IsADirectoryError
            if file.peek(len(POINTER)).startswith(POINTER):
                raise kind(f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull` in its clone, or download the file")
            yield file
    except FastinferError:
        raise
    except FileNotFoundError:
        raise kind(f"{path} does not exist") from None
    except IsADirectoryError:
        raise kind(f"{path} is no regular file") from None
    except (OSError, ValueError) as error:
        raise kind(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _without_waiting(path: str, flags: int) -> int:
    """An opener that returns at once even for a pipe without a writer. Windows has no such pipes in its folders, and no flags for them."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))


def read_file(path: str | os.PathLike[str], limit: int, kind: type[FastinferError] = CheckpointError) -> bytes:
    """The content of a regular file of at most `limit` bytes, whose size is checked before anything is read.

    Raises `kind` naming the file.
    """
    with regular(path, kind) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise kind(f"{path} has {size} bytes, expected at most {limit}")
        text = file.read(size + 1)
    if len(text) != size:
        raise kind(f"{path} changed while it was read: had {size} bytes, gave {len(text)}")
    return text


def stamp(file: str | os.PathLike[str] | int) -> tuple[int, ...] | None:
    """A tuple that changes when the file of this name or descriptor is written to or replaced; None if stat() fails."""
    try:
        found = os.stat(file)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def digest(file: BinaryIO) -> str:
    """The SHA-256 of what is left to read of a file, in hexadecimal."""
    import hashlib  # imports OpenSSL, which takes longer than most modules

    content = hashlib.sha256()
    while block := file.read(DIGEST_BYTES):
        content.update(block)
    return content.hexdigest()


def locked(file: BinaryIO, path: str | os.PathLike[str]) -> None:
    """Lock an open file as long as it is open. Raises InputError naming `path` where another process has locked it."""
    with contextlib.suppress(ImportError):  # on Windows, nobody can remove or replace a file that is open
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{path} belongs to a run that is still going on: wait for it, or name another file") from None


@contextlib.contextmanager
def naming(name: str | os.PathLike[str]) -> Iterator[None]:
    """An OSError raised in the block names this file, and not a temporary file or no file."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = os.fspath(name), None
        raise


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file to write that takes the place of `path` when the block ends without an error.

    It is written under an unpredictable name in the same folder, created exclusively, so that no link is followed
    and no other file is touched. Of two writers the last one to finish wins, with a whole file. After an error `path` is
    unchanged. The file gets the mode of the one it replaces, or the process's default. Raises OSError.
    """
    with replacing_all([path]) as (file,):
        yield file


@contextlib.contextmanager
def replacing_all(paths: Sequence[str | os.PathLike[str]]) -> Iterator[Sequence[BinaryIO]]:
    """replacing() for several files: none is renamed before all are on the disk."""
    targets = [Path(path) for path in paths]
    names = [target.with_name(f".{target.name[:80]}.{os.urandom(16).hex()}.tmp") for target in targets]
    with contextlib.ExitStack() as stack:
        files: list[BinaryIO] = []
        for name, target in zip(names, targets, strict=True):
            stack.callback(_remove, name)
            with naming(target):
                files.append(stack.enter_context(open(name, "xb")))
            with contextlib.suppress(FileNotFoundError, AttributeError):  # Windows has no fchmod before Python 3.13
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
    """Remove a temporary file if it exists. Errors are ignored: the caller is told of the first error, not of this one."""
    with contextlib.suppress(OSError):
        path.unlink()
