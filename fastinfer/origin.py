"""Where a model was loaded from, and how. A pickle of a Model holds this, and not the weights."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from . import checkpoint
from .catalog import folder_again
from .errors import CheckpointError

__all__ = ["How", "Origin", "same_folder"]

Stamps = dict[str, tuple[int, ...] | None]


class How(NamedTuple):
    """The arguments of load() beside the name, as api.load() describes them."""

    device: str | tuple[str, ...]
    dtype: str | None
    threads: int | None
    max_depth: int | None
    validate: bool | None
    copy: bool


@dataclass(eq=False)
class Origin:
    """The files and the options of one load().

    kind, name  the folder's catalog.lasting_name()
    folder      the folder itself, by an absolute path
    stamps      its checkpoint.stamps() when it was loaded
    how         the arguments of load()
    """

    kind: str
    name: str
    folder: Path
    stamps: Stamps
    how: How
    _digest: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def kept(self) -> tuple[str, str, Stamps, str, How]:
        """The arguments with which api._reopened() finds the same files again.

        Raises CheckpointError where the files are not those that were loaded any more, since a name cannot lead back to these.
        """
        if self.kind == "hub":  # a commit names its files for ever
            return self.kind, self.name, {}, "", self.how
        with self._lock:
            self._digest = self._digest or checkpoint.digest(self.folder)
        # The files did not change while the digest was made, so equal stamps now mean that it is that of the loaded files.
        if checkpoint.stamps(self.folder) != self.stamps:
            raise CheckpointError(
                f"{self.folder} has changed or vanished since the model was loaded, and a pickle holds this name and not the weights: "
                "load the model again"
            )
        return self.kind, self.name, self.stamps, self._digest, self.how


@contextlib.contextmanager
def same_folder(kind: str, name: str, stamps: Stamps, digest: str) -> Iterator[Path]:
    """The folder of a model that was pickled with these values of kept(), which must stay as it is during the block.

    Files with the same stamps are the same. Others, such as a copy on another machine, are read and compared by their digest.
    Raises CheckpointError where the folder does not exist, holds something else, or changes.
    """
    try:
        folder = folder_again(kind, name)
    except CheckpointError as error:
        raise CheckpointError(f"a pickle stands for a model that cannot be found: {error}") from error
    with checkpoint.unchanged(folder) as found:
        if kind != "hub" and found != stamps and checkpoint.digest(folder) != digest:
            raise CheckpointError(
                f"{folder} holds another model than the one that was pickled: its files have changed since. "
                "Put the files back, or pickle the model that is there now"
            )
        yield folder
