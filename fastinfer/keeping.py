"""Answers in files that an interrupted run keeps, and another run goes on with.

Answers to texts are written into FILE.part, and FILE.part.json says how many texts they are of, and what made them. At the end the part
becomes FILE. A run that is interrupted leaves the part, unless no window of texts was complete. A run with --resume reads the texts again
and compares them with those that the part is of, so its file is bit for bit that of a run without an interruption. The texts that follow
may be others than before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .cutting import sides_of
from .errors import InputError, check_int, listed, short
from .files import locked, naming, replacing
from .formats import Format
from .strict_json import read_json
from .text_io import Output

__all__ = ["Made", "Stream", "kept", "same_way"]

SAVED_EVERY = 5.0  # seconds between two writings of FILE.part.json: what a killed process may lose

FLAGS = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)

Made = dict[str, Any]  # {name: value} of what decides the answers: the model, the options


class Texts:
    """A digest of texts, in their order, and how many they are."""

    def __init__(self) -> None:
        self.count, self._sum = 0, hashlib.sha256()

    def add(self, texts: Sequence[Any]) -> None:
        for text in texts:
            sides = [side.encode() for side in sides_of(text)]
            self._sum.update(b"".join([f"{len(side)} ".encode() + side for side in sides]) + b"\n")
            self.count += 1

    @property
    def digest(self) -> str:
        return self._sum.hexdigest()


class Stream:
    """Answers for a stream, such as standard output or a pipe. A format that does not stream is made in a temporary file first."""

    done = 0

    def __init__(self, out: Output) -> None:
        self._out, self._count = out, 0
        self.made: Callable[[], Made] = dict

    @contextlib.contextmanager
    def writing(self, form: Format) -> Iterator[Callable[[Sequence[Any], Any], None]]:
        """Yield a function that writes the answers to some texts."""
        with contextlib.ExitStack() as stack:
            pieces: Any = self._out if form.streams else stack.enter_context(tempfile.TemporaryFile())
            pieces.write(form.head())

            def write(texts: Sequence[Any], found: Any) -> None:
                pieces.write(form.body(self._count, texts, found))
                self._count += len(texts)
                pieces.flush()

            yield write
            pieces.write(form.tail(self._count))
            if not form.streams:
                made = pieces if form.in_place else stack.enter_context(tempfile.TemporaryFile())
                form.finish(pieces, self._count, made)
                made.seek(0)
                while block := made.read(1 << 20):
                    self._out.write(block)

    def skip(self, texts: Iterator[Any]) -> None:
        """Nothing is kept of a stream."""

    def said(self) -> str:
        """What an interrupted run keeps: nothing."""
        return ""


@dataclass
class State:
    """What FILE.part.json says: the texts, the bytes of FILE.part that hold their answers, and what made these."""

    texts: int
    digest: str
    bytes: int
    made: Made


FIELDS = {field.name for field in dataclasses.fields(State)}


class Part:
    """Answers in FILE.part. The file is open, and locked against other runs, as long as this lives.

    resume  go on with the part of an earlier run, if there is one; False: begin a new one
    """

    def __init__(self, target: Path, *, resume: bool) -> None:
        self.target, self.path = target, target.with_name(f"{target.name}.part")
        self._state_path = target.with_name(f"{target.name}.part.json")
        with contextlib.ExitStack() as stack:
            self._file = self._opened(resume, stack)
            self._state = self._read_state() if resume else None
            self._stack = stack.pop_all()
        self._texts = Texts()
        self._saved = time.monotonic()
        self._complete: State | None = None  # after the last window that is whole
        self._finished = False
        self.made: Callable[[], Made] = dict

    @property
    def done(self) -> int:
        """The number of texts whose answers an earlier run kept."""
        return self._state.texts if self._state else 0

    def _opened(self, resume: bool, stack: contextlib.ExitStack) -> BinaryIO:
        """The file of the part, locked and closed by `stack`: that of an earlier run, or a new one that is created exclusively."""
        with naming(self.target):
            os.stat(os.path.join(self.target.parent, ""))
        while True:  # once, unless another run ends or begins meanwhile
            with naming(self.path), contextlib.suppress(FileNotFoundError):
                file = self._locked(os.open(self.path, FLAGS | getattr(os, "O_NONBLOCK", 0)), stack)
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise InputError(f"{self.path} is no regular file: remove it")
                if not self._named(file):
                    continue
                if resume:
                    return file
                if self._state_path.exists():
                    hint = "add --resume to go on with it, or remove it to begin again"
                    raise InputError(f"{self.path} keeps the answers of an interrupted run: {hint}")
                os.unlink(self.path)
            with naming(self.target), contextlib.suppress(FileExistsError):
                file = self._locked(os.open(self.path, FLAGS | os.O_CREAT | os.O_EXCL, 0o666), stack)
                if self._named(file):
                    break
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._state_path)
        return file

    def _named(self, file: BinaryIO) -> bool:
        """Whether the part still has its name. Another run may have removed it, or ended, before the file was locked."""
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(file.fileno()), os.lstat(self.path))
        return False

    def _locked(self, number: int, stack: contextlib.ExitStack) -> BinaryIO:
        """The file with this descriptor, locked as long as it is open. Raises InputError where another process has locked it."""
        file = stack.enter_context(os.fdopen(number, "r+b"))
        locked(file, self.path)
        return file

    def _read_state(self) -> State | None:
        """The state of an earlier run; None where it kept nothing. Raises InputError where the two files do not belong together."""
        if not self._state_path.exists():
            return None
        found = read_json(self._state_path)
        hint = f": remove {self.path} to begin again"
        if not isinstance(found, dict) or set(found) != FIELDS or not isinstance(found["made"], dict):
            raise InputError(f"{self._state_path} does not say what {self.path.name} holds{hint}")
        state = State(**found)
        size = os.fstat(self._file.fileno()).st_size
        check_int(f"{self._state_path}: texts", state.texts, 1)
        check_int(f"{self._state_path}: bytes", state.bytes, 0, size, because=f", the size of {self.path.name}{hint}")
        return state

    # --- going on ---

    def skip(self, texts: Iterator[Any]) -> None:
        """Read the texts whose answers are kept. Raises InputError where they are others now, or something else makes the answers."""
        if self._state is None:
            return
        hint = f": remove {self.path} to begin again"
        same_way(self.path, self._state.made, self.made())
        for text in texts:
            self._texts.add([text])
            if self._texts.count == self.done:
                break
        if self._texts.count < self.done or self._texts.digest != self._state.digest:
            raise InputError(f"{self.path} has the answers to {self.done} texts, but the input begins with others now{hint}")
        self._file.truncate(self._state.bytes)
        self._file.seek(self._state.bytes)
        self._complete = self._state

    @contextlib.contextmanager
    def writing(self, form: Format) -> Iterator[Callable[[Sequence[Any], Any], None]]:
        """Yield a function that writes the answers to some texts. Behind the block, the part is the target."""
        with naming(self.target):
            if self._complete is None:
                self._file.truncate(0)
                self._file.write(form.head())

        def write(texts: Sequence[Any], found: Any) -> None:
            body = form.body(self._texts.count, texts, found)
            with naming(self.target):
                self._file.write(body)
            self._texts.add(texts)
            self._complete = State(self._texts.count, self._texts.digest, self._file.tell(), {})
            if time.monotonic() - self._saved > SAVED_EVERY:
                self._save()

        yield write
        with naming(self.target):
            self._file.write(form.tail(self._texts.count))
            self._finish(form)

    def _finish(self, form: Format) -> None:
        """Put the complete file in the place of the target, and remove the part."""
        if form.in_place:
            form.finish(self._file, self._texts.count, self._file)
            self._file.flush()
            os.fsync(self._file.fileno())
            with contextlib.suppress(FileNotFoundError):
                os.chmod(self.path, stat.S_IMODE(self.target.stat().st_mode))
            os.replace(self.path, self.target)
        else:
            with replacing(self.target) as out:
                form.finish(self._file, self._texts.count, out)
            os.unlink(self.path)
        self._finished = True
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._state_path)

    def _save(self) -> None:
        """Write FILE.part.json for what is complete, once it is on the disk."""
        assert self._complete is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._complete.made = self._complete.made or self.made()
        with replacing(self._state_path) as out:
            out.write(json.dumps(dataclasses.asdict(self._complete)).encode())
        self._saved = time.monotonic()

    # --- the end ---

    def close(self) -> None:
        """Keep what is complete; where nothing is, remove both files."""
        if self._complete is not None and not self._finished:
            with contextlib.suppress(OSError):
                self._save()
        if self._complete is None and self._state is None and not self._finished:
            for path in (self.path, self._state_path):
                with contextlib.suppress(OSError):
                    path.unlink()
        with contextlib.suppress(OSError):
            self._stack.close()

    def said(self) -> str:
        """What an interrupted run keeps; "" if it has no complete window."""
        if self._complete is None or self._finished:
            return ""
        return f"the answers to {self._complete.texts} texts are kept in {self.path}: the same command with --resume goes on from there"


def same_way(path: Path, before: Made, made: Made) -> None:
    """Raise InputError unless what `path` keeps of an earlier run was made by what makes the answers now."""
    other = [name for name in made if before.get(name) != made[name]]
    if other:
        was = (f"{name.replace('_', ' ')} was {short(before.get(name))} and is {short(made[name])}" for name in other)
        raise InputError(f"{path} was made in another way: {listed(was)}. Give the same options: remove {path} to begin again")


@contextlib.contextmanager
def kept(target: str, *, resume: bool) -> Iterator[Part]:
    """The part of a file, kept when the block ends early."""
    part = Part(Path(target), resume=resume)
    try:
        yield part
    finally:
        part.close()
