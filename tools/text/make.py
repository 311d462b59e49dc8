"""From the clones of sources to files of training text: each text once, none that models are tested on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import unescape
from pathlib import Path

from fastinfer.errors import InputError
from fastinfer.files import replacing

from .overlap import Evaluated
from .readers import TAG, as_typed, content, plain
from .sources import TYPED, Source

LETTERS, ENGLISH = 0.6, 0.95  # least shares of letters and spaces, and of ASCII, in a text that is written
WORDS = 2  # fewer are no text
NO_TEXT = re.compile(r"\S{60}")  # addresses, hashes, data
TESTS = {"test", "tests", "testing", "_vendor", "idlelib"}  # folders of Python packages


@dataclass
class Counts:
    """What became of the texts of a source, or of all sources of a kind: lines that were written, and lines that were not."""

    written: int = 0
    characters: int = 0
    known: int = 0
    left_out: int = 0

    def __iadd__(self, other: Counts) -> Counts:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self


@dataclass
class Seen:
    """What no line may repeat: the keys of the lines before it, as hashes, and the texts that models are tested on."""

    evaluated: Evaluated
    keys: set[int]

    def fresh(self, line: str, counts: Counts) -> bool:
        """Whether this line is to be written. Its key is remembered, and `counts` say why if not."""
        key = plain(line)
        known, shared = hash(key) in self.keys, self.evaluated.shares(key)
        self.keys.add(hash(key))
        counts.known += known
        counts.left_out += not known and shared is not None
        return not known and shared is None


def installed() -> list[Path]:
    """The folders of the standard library and of the packages that are installed."""
    found = [sysconfig.get_paths()["stdlib"], *(path for path in sys.path if path.endswith(("site-packages", "dist-packages")))]
    return [folder for folder in map(Path, dict.fromkeys(found)) if folder.is_dir()]


def modules() -> list[Path]:
    """The Python files of the standard library and of the packages that are installed, without their tests."""
    files = (file for folder in installed() for file in sorted(folder.rglob("*.py")))
    return list(dict.fromkeys(file for file in files if not TESTS & set(file.parts)))


def files_of(source: Source, clones: Path) -> list[Path]:
    """The files of a source. Raises InputError, which says how to get it, where there are none."""
    if not source.clone:
        return modules()
    folder = clones / source.folder if source.commit else clones
    found = sorted(path for glob in source.paths.split() for path in folder.glob(glob) if path.is_file())
    if not found:
        raise InputError(f"{folder} has no files {source.paths}. In {clones}: {source.clone}")
    return found


def other_commit(source: Source, clones: Path) -> str | None:
    """The commit of a source's clone if it is not the one that was read, or None. A folder that is not a clone counts as the right one."""
    if not source.commit:
        return None
    command = ["git", "-C", str(clones / source.folder), "rev-parse", "HEAD"]
    try:
        head = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return None  # git is not installed here
    return head[:12] if head and not head.startswith(source.commit) else None


def tidy(text: str) -> str:
    """A text on one line, without tags of HTML."""
    return " ".join(TAG.sub(" ", unescape(text)).split()).lstrip("-*• ")


def is_prose(line: str) -> bool:
    """Whether a line is text in English letters, of WORDS words or more, and not code, numbers or data."""
    if line.count(" ") < WORDS - 1 or NO_TEXT.search(line):
        return False
    letters = sum(map(str.isalpha, line)) + line.count(" ")
    foreign = 0 if line.isascii() else sum(c > "\x7f" for c in line)
    return letters >= LETTERS * len(line) and foreign <= (1 - ENGLISH) * len(line)


def taken(text: str, share: float) -> bool:
    """Whether a text is in the share of a source that is taken."""
    return zlib.crc32(text.encode()) // 512 % 1000 < 1000 * share  # // 512: other bits than for_validation and as_typed look at


def lines(source: Source, files: Iterable[Path], seen: Seen, counts: Counts) -> Iterator[str]:
    """The lines to write for a source. Raises InputError for a file that its reader cannot read."""
    for file in files:
        try:
            for text in source.read(file, content(file)):
                if not taken(text, source.share):
                    continue
                title, *paragraphs = text.split("\n") if text.startswith("= ") else ("", tidy(text))
                fresh = [line for line in paragraphs if (title or is_prose(line)) and seen.fresh(line, counts)]
                if fresh and title:
                    yield title
                for line in fresh:
                    counts.written += 1
                    counts.characters += len(line)
                    yield as_typed(line) if source.kind in TYPED else line
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, ValueError) as error:
            raise InputError(f"{file} is not what {source.repository} holds at {source.commit}: {error}") from None


def make(sources: Sequence[Source], clones: Path, folder: Path, evaluated: Evaluated) -> Counts:
    """Write FOLDER/KIND.txt for each kind, and print what became of each source; those that are not there are named and left out.

    Raises InputError where none is there, and as lines does; then the files of the kinds before stay.
    """
    from tqdm import tqdm  # the other commands do without what tools/requirements.txt brings

    found: dict[str, list[tuple[Source, list[Path]]]] = {}
    for source in sources:
        try:
            found.setdefault(source.kind, []).append((source, files_of(source, clones)))
        except InputError as error:
            print(f"left out: {source.repository}: {error}", file=sys.stderr)
            continue
        if other := other_commit(source, clones):
            print(f"{source.repository} is at {other}; {source.commit} was read before, so texts may differ", file=sys.stderr)
    found = {kind: some for kind, some in found.items() if some}
    if not found:
        raise InputError(f"{clones} holds no clone of a source: python tools/get_text.py sources names them and how to get them")
    folder.mkdir(parents=True, exist_ok=True)
    seen, total = Seen(evaluated, set()), Counts()
    print(f"{'MB':>8} {'lines':>9} {'known':>9} {'left out':>9}  source")
    for kind, some in found.items():
        whole = Counts()
        with replacing(folder / f"{kind.replace(' ', '-')}.txt") as out:
            for source, files in some:
                counts = Counts()
                for line in lines(source, tqdm(files, desc=source.folder, leave=False, disable=None), seen, counts):
                    out.write(f"{line}\n".encode())
                say(counts, f"{source.repository}, {source.terms}")
                whole += counts
        say(whole, f"= {kind} =")
        total += whole
    say(total, "all")
    return total


def say(counts: Counts, what: str) -> None:
    """Print a row of the table."""
    print(f"{counts.characters / 1e6:8.2f} {counts.written:9,} {counts.known:9,} {counts.left_out:9,}  {what}", flush=True)
