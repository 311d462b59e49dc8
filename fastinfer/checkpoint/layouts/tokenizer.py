"""find_tokenizer() gives the tokenizer.json of a Hugging Face folder: the one that it has, changed as transformers 5.24 changes it, or one
that is made from its vocabulary files.

What decides is the tokenizer's class, and the settings in tokenizer_config.json, special_tokens_map.json, added_tokens.json and
sentence_bert_config.json. Every value is checked before it is used, and what is made is checked like a tokenizer.json that was read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...config import Ids
from ...errors import CheckpointError, ConfigError, listed, short
from ...tokenizer_file import Found, TokenizerFile, made_tokenizer, read_tokenizer
from .added_tokens import Vocabulary, find_tokens
from .settings import SPECIAL_TOKENS, read_options
from .tokenizer_kinds import ALIASES, KINDS, MODEL_CLASSES, PYTHON, Kind, Options, template
from .vocabularies import Json, read_vocabulary

__all__ = ["Found", "find_tokenizer", "sentence_options", "token_limit"]

# Files in which sentence-transformers keeps a Transformer's settings. The first that exists and is not empty counts.
SENTENCE_FILES = tuple(
    f"sentence_{name}_config.json" for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# Settings of a tokenizer that these files may pass. The last ones change no answer here.
GIVEN: tuple[str, ...] = (
    "model_max_length",
    "do_lower_case",
    "strip_accents",
    "tokenize_chinese_chars",
    "add_prefix_space",
    "truncation_side",
)
GIVEN += ("model_input_names", "padding_side", "use_fast", "clean_up_tokenization_spaces", "trust_remote_code")
CONTINUATIONS = 0.01  # share of pieces that begin with ##: BERT's vocabularies have a fifth or more, other kinds next to none
LATER = ("byte_fallback", "ignore_merges", "use_regex")  # settings that older files leave out, where the library takes our values
IDS = "tokenise with transformers, and pass ids"


class Refused(Exception):
    """A folder's tokenizer cannot be made. The message says why and what to do."""


def find_tokenizer(folder: Path, config: Mapping[str, Any], vocabulary: int) -> Found:
    """The tokenizer of a Hugging Face folder.

    config      the object in config.json
    vocabulary  size of the model's vocabulary

    Raises CheckpointError or ConfigError for a file that is broken, with the key and the value found and expected.
    """
    options = Options(folder / "tokenizer_config.json", read_options(folder / "tokenizer_config.json") | _given(*sentence_options(folder)))
    stored = read_tokenizer(folder / "tokenizer.json", vocabulary) if (folder / "tokenizer.json").exists() else None
    try:
        name = _class_name(config, options)
        made, about, ids = _made(folder, name, options, stored, vocabulary)
    except Refused as error:
        return Found(None, str(error), _ids_of_text(folder, options, vocabulary))
    _adapt(made, folder, options, KINDS.get(name or ""))
    exact = name in KINDS  # transformers passes the scores of these to the library as numbers, and others as text
    if stored and _same(made, stored.data):
        return Found(dataclasses.replace(stored, exact=exact), about, ids)
    path = folder / (KINDS[name].files[0] if name and not stored else "tokenizer.json")
    return Found(made_tokenizer(path, made, vocabulary, exact), about, ids)


def _class_name(config: Mapping[str, Any], options: Options) -> str | None:
    """The class of a folder's tokenizer without the ending Fast; None where tokenizer.json counts as it is. Raises Refused."""
    named = []
    for where, values in ((str(options.path), options.values), ("config.json", config)):
        value = values.get("tokenizer_class")
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"{where}: tokenizer_class is {short(value)}, expected the name of a class")
        named += [value.removesuffix("Fast")] if value else []
    name = named[0] if named else None
    if name in PYTHON:
        raise Refused(f"its tokenizer_class {name} {PYTHON[name]}, which the tokenizers library cannot do: {IDS}")
    kind = config.get("model_type")
    known = MODEL_CLASSES.get(kind, name) if isinstance(kind, str) else name
    if options.values.get("split_special_tokens"):
        raise Refused(f"split_special_tokens in tokenizer_config.json is not supported: {IDS}")
    name = None if known is None else name or known
    return ALIASES.get(name, name) if name else None


def _made(folder: Path, name: str | None, options: Options, stored: TokenizerFile | None, vocabulary: int) -> tuple[Json, str, Ids]:
    """(the object of a tokenizer.json, where it comes from, the ids of special tokens). Raises Refused."""
    kind = KINDS.get(name or "")
    added = _stored_tokens(stored) if stored else []
    tokens = find_tokens(folder, options.values, kind.tokens if kind else {}, added, vocabulary)
    names = {key: token["content"] for key, token in tokens.named.items()}
    if stored:
        read, about = _stored_vocabulary(stored, name, kind), "tokenizer.json of the source"
    else:
        read, about = _read_vocabulary(folder, name, kind, options, names, vocabulary)
    extra = read.pop("extra", None) or (list(kind.extra) if kind else [])
    words = Vocabulary(read["vocab"], [] if kind else added)
    words.add(tokens.listed, [*tokens.named.values(), *(extra if tokens.extra is None else tokens.extra)], vocabulary)
    ids = _ids(words, names)
    if kind is None:
        return {**(stored.data if stored else {}), "added_tokens": words.added}, about, ids
    parts = kind.parts(read, options, names)
    model = {"type": kind.model, **parts.pop("model"), **{key: read[key] for key in ("vocab", "merges") if key in read}}
    placed = {key: (content, id_) for key, content in names.items() if (id_ := words.id_of(content)) is not None}
    try:
        post = kind.post(placed, options)
    except KeyError as error:
        raise Refused(f"its vocabulary has no {error.args[0]} token: {IDS}") from None
    made = {key: stored.data.get(key) if stored else None for key in ("truncation", "padding")}
    return {"version": "1.0", **made, "added_tokens": words.added, **parts, "post_processor": post, "model": model}, about, ids


def _stored_tokens(stored: TokenizerFile) -> list[Json]:
    """The added tokens of a tokenizer.json. Raises CheckpointError unless they are a list of objects with content."""
    added = stored.data.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(token, dict) and isinstance(token.get("content"), str) for token in added):
        raise CheckpointError(f"{stored.path}: added_tokens is {short(added)}, expected a list of objects with content")
    return added


def _stored_vocabulary(stored: TokenizerFile, name: str | None, kind: Kind | None) -> Json:
    """The vocabulary of a tokenizer.json. Raises Refused if it is of another kind than the class has, CheckpointError if it is missing."""
    model = stored.data["model"]
    words = model.get("vocab")
    found = model.get("type") or ("Unigram" if isinstance(words, list) else "BPE" if "merges" in model else "WordPiece")
    if kind and found != kind.model:
        raise Refused(
            f"its tokenizer.json has a {short(found)} model, but tokenizer_class {name} means {kind.model}: if tokenizer.json is right, "
            'write "tokenizer_class": "PreTrainedTokenizerFast" into tokenizer_config.json'
        )
    pairs = isinstance(words, list) and all(isinstance(e, list) and len(e) == 2 and isinstance(e[0], str) for e in words)
    if not pairs if found == "Unigram" else not isinstance(words, dict):
        raise CheckpointError(f"{stored.path}: the vocab of its model is {short(words)}, which a {short(found)} model does not have")
    read = {"vocab": words, "normalizer": stored.data.get("normalizer")}
    return read | ({"merges": model.get("merges")} if found == "BPE" else {})


def _read_vocabulary(
    folder: Path, name: str | None, kind: Kind | None, options: Options, names: Mapping[str, str], vocabulary: int
) -> tuple[Json, str]:
    """(the vocabulary in the files of a class, a remark on it). Raises Refused."""
    if kind is None:
        raise Refused(f"the source has no tokenizer.json, and its tokenizer_class {name} cannot be built: {IDS}")
    if not all((folder / file).exists() for file in kind.files):
        raise Refused(f"the source has neither tokenizer.json nor {' and '.join(kind.files)}: add the missing file, or pass ids")
    read = kind.read(folder, vocabulary, names)
    words = read["vocab"]
    if kind.model == "WordPiece" and not options.values.get("tokenizer_class"):
        marked = sum(token.startswith("##") for token in words)
        if marked < CONTINUATIONS * len(words) or "[UNK]" not in words:
            raise Refused(f"vocab.txt does not look like WordPiece (pieces that begin with ##, and [UNK]): {IDS}")
    return read, f"{kind.model}, built from {' and '.join(kind.files)}"


def _ids(words: Vocabulary, names: Mapping[str, str]) -> Ids:
    """The ids of special tokens, by the names in the settings or else by the usual ones."""
    candidates = {key: [*([names[key]] if key in names else []), *habits] for key, habits in SPECIAL_TOKENS.items()}
    return Ids(**{key: next((i for i in map(words.id_of, found) if i is not None), None) for key, found in candidates.items()})


def _ids_of_text(folder: Path, options: Options, vocabulary: int) -> Ids:
    """The ids of special tokens in a vocab.txt of whatever kind."""
    if not (folder / "vocab.txt").exists():
        return Ids()
    words = {token: i for i, token in enumerate(read_vocabulary(folder / "vocab.txt", vocabulary)) if i < vocabulary}
    named = find_tokens(folder, options.values, {}, [], vocabulary).named
    return _ids(Vocabulary(words, []), {key: token["content"] for key, token in named.items()})


# --- settings that change a tokenizer of any class ---


def _adapt(made: Json, folder: Path, options: Options, kind: Kind | None) -> None:
    """Write into a tokenizer.json's object the settings that transformers and sentence-transformers keep beside it."""
    if _lowers(folder):
        parts = _parts(made.get("normalizer"), "normalizers")
        if not any(part.get("type") == "Lowercase" for part in parts):
            made["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *parts]}
    inputs = options.values.get("model_input_names")
    if inputs is not None and not (isinstance(inputs, list) and all(isinstance(name, str) for name in inputs)):
        raise ConfigError(f"{options.path}: model_input_names is {short(inputs)}, expected a list of names")
    typed = "token_type_ids" in inputs if inputs is not None else kind is not None and kind.types
    if not typed:
        made["post_processor"] = _without_types(made.get("post_processor"))
    truncation = made.get("truncation")
    stored = str(truncation.get("direction", "right")).lower() if isinstance(truncation, dict) else "right"
    side = options.choice("truncation_side", "left", "right") if "truncation_side" in options.values else stored
    if side != stored:
        made["truncation"] = {"direction": str(side).title(), "max_length": 512, "strategy": "LongestFirst", "stride": 0}


def _without_types(post: Any) -> Json:
    """A post_processor that gives every token the type 0."""
    kind = post.get("type") if isinstance(post, dict) else None
    if kind == "BertProcessing" and isinstance(post, dict):
        cls, sep = post.get("cls"), post.get("sep")
        if not isinstance(cls, list) or not isinstance(sep, list) or not len(cls) == len(sep) == 2:
            raise CheckpointError(f"post_processor is {short(post)}, expected a token and its id for cls and for sep")
        return template((cls[0], cls[1]), [(sep[0], sep[1])], (sep[0], sep[1]), 0)
    if kind == "Sequence" and _parts(post, "processors"):
        *first, last = _parts(post, "processors")
        return {**post, "processors": [*first, _without_types(last)]}
    if kind == "TemplateProcessing" and isinstance(post, dict):
        forms = {form: post[form] for form in ("single", "pair") if isinstance(post.get(form), list)}
        return post | {form: [_typed(piece) for piece in pieces] for form, pieces in forms.items()}
    if kind == "RobertaProcessing":
        return dict(post)
    texts = [{"Sequence": {"id": side, "type_id": 0}} for side in "AB"]
    plain = {"type": "TemplateProcessing", "single": texts[:1], "pair": texts, "special_tokens": {}}
    return plain if post is None else {"type": "Sequence", "processors": [post, plain]}


def _typed(piece: Any) -> Any:
    """A piece of a template, with the type 0."""
    if not isinstance(piece, dict):
        return piece
    return {key: {**value, "type_id": 0} if isinstance(value, dict) else value for key, value in piece.items()}


def _parts(component: Any, name: str) -> list[Json]:
    """A component in a list; a Sequence gives the list of its members, None an empty list."""
    if isinstance(component, dict) and component.get("type") == "Sequence":
        members = component.get(name)
        return [part for part in members if isinstance(part, dict)] if isinstance(members, list) else []
    return [component] if isinstance(component, dict) else []


def _same(made: Any, stored: Any) -> bool:
    """Whether a tokenizer.json's object says the same as the one that was made. The vocabularies are usually one object."""
    if made is stored:
        return True
    if not isinstance(made, dict) or not isinstance(stored, dict):
        return bool(made == stored)
    later = {key: made[key] for key in LATER if key in made}
    stored = later | stored
    return made.keys() == stored.keys() and all(_same(value, stored[key]) for key, value in made.items())


# --- settings of sentence-transformers ---


def sentence_options(folder: Path) -> tuple[Json, Path]:
    """The settings of a sentence-transformers Transformer module, and their file."""
    for name in SENTENCE_FILES:
        if found := read_options(folder / name):
            return found, folder / name
    return {}, folder / SENTENCE_FILES[0]


def _given(options: Json, path: Path) -> Json:
    """The settings of a tokenizer that sentence-transformers passes beside tokenizer_config.json, where they win. Raises ConfigError."""
    key = next((key for key in ("processor_kwargs", "tokenizer_args") if options.get(key)), None)
    given = options[key] if key else {}
    unknown = [name for name in given if name not in GIVEN] if isinstance(given, dict) else [given]
    if unknown:
        raise ConfigError(f"{path}: {key} has {listed(map(short, unknown))}, expected an object with {', '.join(GIVEN)} alone")
    return {name: value for name, value in given.items() if value is not None}


def token_limit(folder: Path, positions: int) -> int:
    """Most tokens of a text: the limits of sentence-transformers, else of tokenizer_config.json, and at most `positions`.

    Raises ConfigError for a limit that is not a number from 1.
    """
    sentence, path = sentence_options(folder)
    config = folder / "tokenizer_config.json"
    options = read_options(config)
    given = _given(sentence, path)
    for where, values, key in (
        (path, given, "model_max_length"),
        (path, sentence, "max_seq_length"),
        (config, options, "model_max_length"),
        (config, options, "max_len"),
    ):
        value = values.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 1:
            raise ConfigError(f"{where}: {key} is {short(value)}, expected a number of tokens from 1")
        return int(min(value, positions))
    return positions


def _lowers(folder: Path) -> bool:
    """Whether sentence-transformers lower-cases texts, whatever the tokenizer does."""
    options, path = sentence_options(folder)
    return Options(path, options).flag("do_lower_case", False)
