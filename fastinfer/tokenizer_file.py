"""Opens an untrusted tokenizer.json with the tokenizers library, after checking that it cannot end or stop the process.

The library aborts when memory runs out, and panics when a file contradicts itself. So sizes, ids and components that
make a text longer are checked before the library sees the file. Then a few texts are tried. Panics become errors, at
load and in use. A regular expression that is not one of PATTERNS is tried in a separate process.

The time of such an expression on texts that were not tried cannot be bounded. The library gives up a single match after
ten million steps, which is an error here, but each character of a text may begin a match.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import contextlib
import dataclasses
import functools
import json
import mmap
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from . import trial
from .config import Ids
from .errors import CheckpointError, about, short
from .files import read_file
from .strict_json import parse_json, vocabulary_bytes

__all__ = [
    *("Found", "Library", "Plain", "TokenizerFile", "check_ids", "is_free", "made_tokenizer", "open_tokenizer", "plain", "read_tokenizer"),
]

MOST_CHARACTERS = 4096  # of a word of the vocabulary or of another string
MOST_PREFIX = 64  # characters of a string that is put before or after pieces: each piece copies it
MOST_WORD = 1000  # characters of a word that WordPiece splits, in time that grows with their square; published files have 100
MOST_NUMBER = 1 << 24
MOST_GROWTH = 1024  # characters that one may become: published files reach 648 when counted by the worst character
RUNS = 256  # characters: most of the expressions' characters of which runs are tried
TIMEOUT = 30  # seconds for the process on a busy machine; its own limit is trial.SECONDS of CPU time

# Expressions of published tokenizers. Their time grows with the length of a text, or with its square in runs of white space.
PATTERNS = frozenset(
    {
        r" {2,}",
        r"\s+",
        r"\s{2,}",
        r"\s",
        r"\s{2,}|[\n\r\t]",
        r"\p{N}",
        r"\p{N}{1,3}",
        r"\d",
        r"[0-9]",
        r"\n",
        r"[\r\n]",
        r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    }
)
MOST_ADDED = 16  # added tokens that each plain text is searched for
# How many characters one may become in a component; for Replace, Precompiled and Prepend, _growth() reads it from the file.
GROWTH = {"NFKC": 18, "NFKD": 18, "NFC": 3, "NFD": 4, "BertNormalizer": 4, "ByteLevel": 4, "Metaspace": 2}


class Library:
    """A tokenizers.Tokenizer whose errors, panics included, are CheckpointErrors that name its file."""

    def __init__(self, raw: Any, path: Path) -> None:
        self.__dict__ |= {"raw": raw, "path": path}

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.__dict__["raw"], name)
        if not callable(value):
            return value

        @functools.wraps(value)
        def call(*arguments: Any, **options: Any) -> Any:
            with as_errors(f"{self.path}: the tokenizers library failed"):
                return value(*arguments, **options)

        self.__dict__[name] = call
        return call


class Plain(NamedTuple):
    """The tokenizer of plain texts, those of printable ASCII without added tokens: BERT's normaliser changes nothing but their case.

    raw    the same tokenizer without its normaliser, which takes a third of the time, and without added tokens
    lower  whether it wants texts in lower case
    added  the added tokens, in lower case
    """

    raw: Library
    lower: bool
    added: list[str]

    def of(self, texts: list[Any]) -> dict[int, str]:
        """{index: what `raw` is to tokenise} of the plain ones among texts and pairs."""
        found = {}
        for i, text in enumerate(texts):
            if type(text) is str and text.isascii() and text.isprintable():
                lower = text.lower()
                if not any(token in lower for token in self.added):
                    found[i] = lower if self.lower else text
        return found


def plain(raw: Library) -> Plain | None:
    """The tokenizer of plain texts; None where the normaliser is not BERT's."""
    import tokenizers

    added = [token.content.lower() for token in raw.get_added_tokens_decoder().values()]
    if type(raw.normalizer) is not tokenizers.normalizers.BertNormalizer or len(added) > MOST_ADDED:
        return None
    made = tokenizers.Tokenizer(raw.model)  # the two share the vocabulary
    for part in ("pre_tokenizer", "post_processor"):
        if getattr(raw, part) is not None:
            setattr(made, part, getattr(raw, part))
    return Plain(Library(made, raw.path), raw.normalizer.lowercase, added)


@contextlib.contextmanager
def as_errors(what: str) -> Iterator[None]:
    """An Exception or a panic of the library in the block becomes a CheckpointError that begins with `what`."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = str(error)
    else:
        return
    raise CheckpointError(f"{what}: {reason[:500]}")


def is_free(size: int) -> bool:
    """Whether the system grants so many bytes of memory now. The library aborts when it gets none, so callers test first."""
    try:
        mmap.mmap(-1, size).close()
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class TokenizerFile:
    """The content of a tokenizer.json, as read or as made of other files, that may be opened.

    path      the file that errors name
    data      the object in it
    patterns  its regular expressions that are not PATTERNS
    exact     whether the scores of a Unigram model are those of `data`; the library's reader of JSON rounds them again
    stored    the content of the file, if it was read
    """

    path: Path
    data: dict[str, Any]
    patterns: set[str]
    exact: bool = True
    stored: bytes | None = None

    @functools.cached_property
    def text(self) -> bytes:
        """The content as JSON."""
        # Half of a surrogate pair, which JSON may hold, makes a text that the library refuses.
        return json.dumps(self.data, ensure_ascii=False).encode(errors="surrogatepass") if self.stored is None else self.stored

    @property
    def keeps_end(self) -> bool:
        """Whether a text that is too long loses its beginning and not its end."""
        truncation = self.data.get("truncation")
        return isinstance(truncation, dict) and truncation.get("direction") == "Left"


class Found(NamedTuple):
    """The tokenizer of a folder.

    file   its tokenizer.json, as read or as made; None if it has none that fastinfer can use
    about  where it comes from, or why there is none and what to do
    ids    the ids of special tokens
    """

    file: TokenizerFile | None
    about: str
    ids: Ids


def read_tokenizer(path: Path, vocabulary: int) -> TokenizerFile:
    """The content of the tokenizer.json at `path`, checked. Raises CheckpointError naming the file and the fault.

    vocabulary  number of tokens in the model's vocabulary
    """
    text = read_file(path, vocabulary_bytes(vocabulary)).removeprefix(codecs.BOM_UTF8)  # the library refuses the mark
    unreadable = f"{path} is no tokenizer that the tokenizers library can read"
    try:
        data = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{unreadable}: {error}") from None
    if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
        raise CheckpointError(f"{unreadable}: it has no model")
    return dataclasses.replace(made_tokenizer(path, data, vocabulary), stored=text)


def made_tokenizer(path: Path, data: dict[str, Any], vocabulary: int, exact: bool = True) -> TokenizerFile:
    """The object of a tokenizer.json that was made of the file at `path`, checked like one that was read. Raises CheckpointError."""
    with about(str(path)):
        return TokenizerFile(path, data, set(check(data, vocabulary)) - PATTERNS, exact)


def open_tokenizer(file: TokenizerFile, vocabulary: int) -> Library:
    """The tokenizer of a file, its padding and truncation switched off.

    vocabulary  number of tokens in the model's vocabulary

    Raises CheckpointError naming the file and the fault, or MemoryError.
    """
    if file.patterns:
        with about(str(file.path)):
            try_apart(file.text, vocabulary, file.patterns)
    needed = (16 << 20) + 64 * len(file.text)
    if not is_free(needed):
        raise MemoryError(f"{needed >> 20} MB to open {file.path} cannot be had")
    with as_errors(f"{file.path} is no tokenizer that the tokenizers library can read"):
        raw = _opened(file)
        raw.no_padding()
        raw.no_truncation()
        prefix = getattr(raw.model, "continuing_subword_prefix", None)
        if prefix and raw.decoder is None:
            import tokenizers

            raw.decoder = tokenizers.decoders.WordPiece(prefix)
        if not file.patterns:
            trial.trial(raw, vocabulary)
    return Library(raw, file.path)


def _opened(file: TokenizerFile) -> Any:
    """The library's tokenizer of a file."""
    import tokenizers

    raw = tokenizers.Tokenizer.from_buffer(file.text)
    model = file.data["model"]
    if file.exact and isinstance(model.get("vocab"), list):
        pieces = [(piece, score) for piece, score in model["vocab"]]
        raw.model = tokenizers.models.Unigram(pieces, unk_id=model.get("unk_id"), byte_fallback=model.get("byte_fallback", False))
    return raw


def check(data: dict[str, Any], vocabulary: int) -> list[str]:
    """The regular expressions in a tokenizer.json's object. Raises CheckpointError for content that the library must not see."""
    model = data["model"]
    words = model.get("vocab")
    if isinstance(words, list):  # a Unigram model has pairs (piece, score); the id is the place
        words = {entry[0]: i for i, entry in enumerate(words) if isinstance(entry, list) and entry and isinstance(entry[0], str)}
    if isinstance(words, dict):
        check_ids("the vocabulary", words, vocabulary)
    added = data.get("added_tokens")
    if isinstance(added, list):
        check_ids("added_tokens", {i: token.get("id") for i, token in enumerate(added) if isinstance(token, dict)}, vocabulary)
    for key, value in model.items():
        if key not in ("vocab", "merges"):
            most = MOST_WORD if key == "max_input_chars_per_word" else MOST_NUMBER
            for _ in _values(value, f"model.{key}", most, MOST_PREFIX):
                pass

    return _patterns(data, vocabulary)


def _patterns(data: dict[str, Any], vocabulary: int) -> list[str]:
    """The regular expressions of the parts around the model. Their growth, templates and numbers are checked on the way."""
    patterns: list[str] = []
    growth = 1
    for part in ("added_tokens", "normalizer", "pre_tokenizer", "decoder", "post_processor"):
        if part == "decoder":
            growth = 1  # a decoder starts anew from tokens of the vocabulary
        most = max(vocabulary - 1, 2) if part == "post_processor" else MOST_NUMBER
        for value in _values(data.get(part), part, most, MOST_CHARACTERS):
            if isinstance(value.get("Regex"), str):
                patterns.append(value["Regex"])
            if part != "post_processor":
                growth *= _growth(value)
            if growth > MOST_GROWTH:
                raise CheckpointError(f"{part} may make a text more than {MOST_GROWTH} times as long")
            for form in ("single", "pair"):
                _check_template(value.get(form), form)
    return patterns


def check_ids(what: str, ids: dict[Any, Any], vocabulary: int) -> None:
    """Raise CheckpointError unless {token: id} has ids from 0 to vocabulary - 1, and tokens of bounded length."""
    if len(ids) > vocabulary:
        raise CheckpointError(f"it has {len(ids)} tokens, but the model's vocabulary is {vocabulary}: it belongs to another model")
    if set(map(type, ids.values())) - {int} or not 0 <= min(ids.values(), default=0) <= max(ids.values(), default=0) < vocabulary:
        word, id_ = next((w, i) for w, i in ids.items() if type(i) is not int or not 0 <= i < vocabulary)
        raise CheckpointError(f"{what} gives {short(word)} the id {short(id_)}, expected 0 to {vocabulary - 1}, as the model has")
    longest = max(map(len, map(str, ids)), default=0)
    if longest > MOST_CHARACTERS:
        raise CheckpointError(f"{what} has a token of {longest} characters, expected at most {MOST_CHARACTERS}")


def _values(part: Any, at: str, number: int, characters: int) -> Iterator[dict[str, Any]]:
    """Yield every object in a part of the file. Raises CheckpointError for a number or a string out of bounds."""
    left = [(part, "")]
    while left:
        value, key = left.pop()
        if isinstance(value, dict):
            yield value
            left += [(v, k) for k, v in value.items()]
            left += [(k, "a key") for k in value]
        elif isinstance(value, list):
            left += [(v, key) for v in value]
        elif isinstance(value, str) and len(value) > characters and key != "precompiled_charsmap":
            raise CheckpointError(f"{at} has a string of {len(value)} characters, expected at most {characters}: {short(value)}")
        elif isinstance(value, int) and not 0 <= value <= number:
            raise CheckpointError(f"{at} has {key or 'the number'} {short(value)}, expected 0 to {number}")


def _growth(component: dict[str, Any]) -> int:
    """The most characters that one character becomes in a component of tokenizer.json."""
    kind = component.get("type")
    if kind == "Replace":
        pattern, content = component.get("pattern"), component.get("content")
        if not isinstance(pattern, dict) or not isinstance(content, str):
            return 1  # the library refuses it
        known = pattern.get("String") or pattern.get("Regex")
        if isinstance(known, str) and ("String" in pattern or known in PATTERNS):
            return max(1, -(-len(content) // len(known)) if "String" in pattern else len(content))
        return 1 + len(content)  # a pattern that matches the empty string matches between any two characters
    if kind == "Prepend":
        return 1 + len(component["prepend"]) if isinstance(component.get("prepend"), str) else 1
    if kind == "Precompiled":
        return _charsmap(component.get("precompiled_charsmap"))
    return GROWTH.get(kind, 1) if isinstance(kind, str) else 1


def _charsmap(text: Any) -> int:
    """Characters of the longest replacement in a sentencepiece map of characters.

    The map consists of the size of a trie in bytes (uint32), the trie, and the replacements, each ended by a zero.
    """
    if not isinstance(text, str):
        return 1  # the library refuses it
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise CheckpointError(f"precompiled_charsmap is not base64: {error}") from None
    size = int.from_bytes(data[:4], "little")
    if len(data) < 4 or size % 4 or not 0 < size <= len(data) - 4:
        raise CheckpointError(
            f"precompiled_charsmap names a trie of {size} bytes, expected a multiple of 4, at most the {len(data) - 4} there are"
        )
    return max(1, *(len(piece.decode(errors="replace")) for piece in data[4 + size :].split(b"\0")))


def _check_template(pieces: Any, form: str) -> None:
    """Raise CheckpointError if a template has the text, or a text of a pair, more than once."""
    if not isinstance(pieces, list):
        return
    sides = [piece["Sequence"].get("id") for piece in pieces if isinstance(piece, dict) and isinstance(piece.get("Sequence"), dict)]
    if sides.count("A") > 1 or sides.count("B") > 1:
        raise CheckpointError(f"post_processor repeats a text in its template {form!r}, expected each once")


def try_apart(text: bytes, vocabulary: int, patterns: set[str]) -> None:
    """Run trial.trial() in a separate process, with runs of each character in the patterns: runs make slow patterns slow.

    Raises CheckpointError if it fails, takes too long or too much memory, or if no process can be started.
    """
    import subprocess  # this and the next import much that few tokenizers need
    from multiprocessing import spawn

    import tokenizers

    characters = sorted(set("".join(patterns)))[:RUNS]
    # An expression may need a certain character to match, so each run is also tried with all of them after it.
    runs = [c * 64 + end for c in characters for end in ("", "\0" + "".join(characters))]
    library = Path(tokenizers.__file__).parents[1]
    executable = None if getattr(sys, "frozen", False) else spawn.get_executable()
    if not executable:
        raise CheckpointError(
            "it has a regular expression that must be tried in a process of its own, and there is no Python to start here"
        )
    named = f"a regular expression that cannot be used, one of {', '.join(map(short, sorted(patterns)[:5]))}"
    try:
        done = subprocess.run(
            [executable, "-I", trial.__file__, str(library)],
            input=json.dumps([vocabulary, runs]).encode() + b"\n" + text,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        raise CheckpointError(f"it has {named}: it takes more than {TIMEOUT} seconds") from None
    except OSError as error:
        raise CheckpointError(
            f"it has a regular expression that must be tried in a process of its own, which cannot be started: {error}"
        ) from None
    said = done.stdout.decode(errors="replace").strip()
    if said != "ok":
        raise CheckpointError(f"it has {named}: {said or f'the process that tried it ended with {done.returncode}'}")
