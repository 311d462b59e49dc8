"""Special and added tokens of a Hugging Face tokenizer, read from its settings files as transformers 5.24 reads them.

Four files may name them: tokenizer_config.json, special_tokens_map.json, added_tokens.json and tokenizer.json. The first of them
decides alone if it has added_tokens_decoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import ConfigError, short
from ...strict_json import vocabulary_bytes
from .settings import read_object, read_options

__all__ = ["NAMED", "Token", "Tokens", "Vocabulary", "find_tokens", "read_token"]

NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")  # in the order in which transformers adds them
FLAGS = ("single_word", "lstrip", "rstrip", "special")
Token = dict[str, Any]  # as in the added_tokens of a tokenizer.json, without the id


def read_token(value: Any, where: str, **defaults: bool) -> Token:
    """The token that a string or an object of a settings file describes. Raises ConfigError that begins with `where`."""
    given = {"content": value} if isinstance(value, str) else value
    if not isinstance(given, dict) or not isinstance(given.get("content"), str) or not given["content"]:
        raise ConfigError(f"{where} is {short(value)}, expected a token: a string, or an object with its content")
    token: Token = {"content": given["content"]} | {flag: given.get(flag, defaults.get(flag, False)) for flag in FLAGS}
    normalized = given.get("normalized", defaults.get("normalized"))
    token["normalized"] = not token["special"] if normalized is None else normalized
    for flag, flagged in token.items():
        if flag != "content" and not isinstance(flagged, bool):
            raise ConfigError(f"{where}: {flag} of {short(token['content'])} is {short(flagged)}, expected true or false")
    return token


class Tokens(NamedTuple):
    """The tokens that a tokenizer's settings name.

    listed  added tokens in the order of their ids
    named   {"cls", ...: the special token of that name}
    extra   further special tokens; None where the settings list none
    """

    listed: list[Token]
    named: dict[str, Token]
    extra: list[Token] | None


def find_tokens(folder: Path, options: Mapping[str, Any], defaults: Mapping[str, Token], stored: Iterable[Any], vocabulary: int) -> Tokens:
    """The tokens of the tokenizer in a folder.

    options     the object in tokenizer_config.json
    defaults    the tokens that the tokenizer's class names, by name
    stored      the added_tokens of tokenizer.json
    vocabulary  size of the model's vocabulary, which bounds the size of added_tokens.json

    Raises ConfigError for a setting that is not a token.
    """
    config = f"{folder / 'tokenizer_config.json'}: "
    settings = {key: (value, config + key) for key, value in options.items()}
    by_id: dict[int, Token] = {}
    if "added_tokens_decoder" in options:
        listed, where = options["added_tokens_decoder"], config + "added_tokens_decoder"
        if not isinstance(listed, dict):
            raise ConfigError(f"{where} is {short(listed)}, expected an object")
        by_id |= {_id(key, where): read_token(value, f"{where}.{key}") for key, value in listed.items()}
    else:
        path = folder / "special_tokens_map.json"
        settings |= {key: (value, f"{path}: {key}") for key, value in read_options(path).items()}
        by_id |= _legacy(folder, settings, vocabulary)
        where = f"{folder / 'tokenizer.json'}: added_tokens"
        by_id |= {_id(token.get("id"), where): read_token(token, where) for token in stored}
    known = {token["content"]: token for token in by_id.values()}
    named = {}
    for name in (*NAMED, *_others(settings)):
        value, where = settings.get(f"{name}_token", (defaults.get(name), "the class"))
        if value is not None:
            lstrip = isinstance(value, str) and name in defaults and defaults[name]["lstrip"]
            token = read_token(value, where, lstrip=lstrip)
            named[name] = known.get(token["content"], token | _as_special(value))
    return Tokens([by_id[key] for key in sorted(by_id)], named, _extra(settings))


def _as_special(value: Any) -> Token:
    """The flags that a special token gets: it is matched before the text is normalised, unless its object says otherwise."""
    explicit = isinstance(value, dict) and isinstance(value.get("normalized"), bool)
    return {"special": True} if explicit else {"special": True, "normalized": False}


def _legacy(folder: Path, settings: Mapping[str, tuple[Any, str]], vocabulary: int) -> dict[int, Token]:
    """{id: token} of added_tokens.json, which older versions wrote beside a vocabulary."""
    path = folder / "added_tokens.json"
    if not path.exists():
        return {}
    named = [settings[key] for key in (f"{name}_token" for name in NAMED) if settings.get(key, (None,))[0] is not None]
    special = [read_token(value, where) for value, where in named] + (_extra(settings) or [])
    contents = {token["content"] for token in special}
    return {
        _id(id_, f"{path}: {short(content)}"): read_token({"content": content, "special": content in contents}, str(path))
        for content, id_ in read_object(path, dict, vocabulary_bytes(vocabulary)).items()
    }


def _extra(settings: Mapping[str, tuple[Any, str]]) -> list[Token] | None:
    """Further special tokens, under the newer or the older name of that setting; None where neither lists any."""
    for key in ("extra_special_tokens", "additional_special_tokens"):
        listed, where = settings.get(key, (None, ""))
        if listed and not isinstance(listed, dict):
            if not isinstance(listed, list):
                raise ConfigError(f"{where} is {short(listed)}, expected a list of tokens")
            return [read_token(value, where, special=isinstance(value, str)) for value in listed]
    return None


def _others(settings: Mapping[str, tuple[Any, str]]) -> list[str]:
    """Names of special tokens beyond NAMED, such as "image" for an image_token."""
    names = [
        key.removesuffix("_token") for key, (value, _) in settings.items() if key.endswith("_token") and isinstance(value, (str, dict))
    ]
    return [name for name in names if name not in NAMED]


def _id(value: Any, where: str) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    if type(value) is not int or value < 0:
        raise ConfigError(f"{where} has the id {short(value)}, expected an integer from 0")
    return value


class Vocabulary:
    """The ids of a tokenizer's tokens, to which tokens are added as the tokenizers library does it.

    words  {token: id}, or a list of (token, score) in the order of their ids
    added  the added tokens as tokenizer.json lists them
    """

    def __init__(self, words: Mapping[str, int] | Sequence[Sequence[Any]], added: Iterable[Token]) -> None:
        self._words: Mapping[str, int] = words if isinstance(words, Mapping) else {entry[0]: i for i, entry in enumerate(words)}
        self._size = len(words)
        self._added = {token["content"]: token for token in added}

    @property
    def added(self) -> list[Token]:
        return sorted(self._added.values(), key=lambda token: token["id"])

    def id_of(self, content: str) -> int | None:
        """The id of a token; None for one that the vocabulary does not have."""
        found = self._added.get(content)
        return self._words.get(content) if found is None else found["id"]

    def add(self, listed: list[Token], special: list[Token], vocabulary: int) -> None:
        """Add tokens that find_tokens() gave. Listed ones replace the flags of an added token, special ones do not.

        A token that needs an id of `vocabulary` or more is left out, as the model has no embedding for it.
        """
        contents = {token["content"] for token in special}
        before = {content: {flag: token.get(flag) for flag in token if flag != "id"} for content, token in self._added.items()}
        changed = [token for token in listed if before.get(token["content"]) != token]
        for token in [*changed, *(token for token in special if token["content"] not in before.keys() | {t["content"] for t in listed})]:
            id_ = self.id_of(token["content"])
            if id_ is None:
                id_ = max([self._size, *(known["id"] + 1 for known in self._added.values())])
            if id_ < vocabulary:
                self._added[token["content"]] = {"id": id_, **token, "special": token["special"] or token["content"] in contents}
