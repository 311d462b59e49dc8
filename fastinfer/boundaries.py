"""Places where a long text can be cut in two so that its parts have the tokens of the whole."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Sequence
from typing import Any

__all__ = ["boundaries"]

# Components whose result on one side of a boundary does not depend on the text on the other side.
NORMALIZERS = {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Replace", "StripAccents", "Strip"}
REPLACEMENTS = (
    ({"String": "``"}, '"'),
    ({"String": "''"}, '"'),
    ({"Regex": " {2,}"}, " "),
    ({"Regex": " {2,}"}, "▁"),
    ({"Regex": r"\s{2,}|[\n\r\t]"}, " "),
)
PRE_TOKENIZERS = {"BertPreTokenizer", "ByteLevel", "Digits", "Metaspace", "Punctuation", "Whitespace", "WhitespaceSplit"}
MODELS = {"BPE", "Unigram", "WordLevel", "WordPiece"}
# Normalizers that neither change nor move ASCII punctuation and Chinese characters.
PLAIN = {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents"}


def boundaries(raw: Any) -> re.Pattern[str] | None:
    """A pattern of empty matches, at each of which a text can be cut without changing a token; None where no place is safe.

    raw  a tokenizers.Tokenizer

    The tokens of text[:cut] are the first tokens of the text; text[cut - 1:] gives one character's tokens and then all later ones.

    A boundary lies after a letter, a digit or a visible ASCII character and before a space. Each of PRE_TOKENIZERS that splits at
    spaces ends a word there, whatever stands further left or right, and MODELS see one word at a time. NORMALIZERS work on a character,
    a combining sequence or a grapheme, and none of these continues with a space; or they strip the text's end. REPLACEMENTS do not
    reach across. An added token reaches across if its content has white space after another character. An added token that takes in
    the white space on its right, or is a single character, would make a part end or begin differently. A tokenizer that has such a
    token, or a component of another kind, has no boundaries.

    BertPreTokenizer makes each ASCII punctuation character a word and, with its normalizer, each Chinese character. So a boundary
    lies between two of these, too, unless an added token may contain them.
    """
    added = list(raw.get_added_tokens_decoder().values())
    normalizers, splitters = _parts(raw.normalizer, "normalizers"), _parts(raw.pre_tokenizer, "pretokenizers")
    if not _are_local(normalizers, splitters) or type(raw.model).__name__ not in MODELS or getattr(raw.model, "dropout", None):
        return None
    for token in added:
        contents = [token.content, raw.normalizer.normalize_str(token.content) if raw.normalizer and token.normalized else ""]
        if token.rstrip or any(re.search(r"\A\S\Z|\S[\s▁]", content) for content in contents):
            return None
    places = [r"(?<=[\w!-~])(?= )"]
    if [part["type"] for part in splitters] == ["BertPreTokenizer"] and {part["type"] for part in normalizers} <= PLAIN:
        used = set("_").union(*(token.content for token in added))  # next to an added token "_" counts as part of a word
        marks = "".join(map(re.escape, sorted(set(string.punctuation) - used)))
        places.append(f"(?<=[{marks}])(?=[{marks}])")
        if all(map(str.isascii, used)) and any(part.get("handle_chinese_chars") for part in normalizers):
            places.append("(?<=[\u4e00-\u9fff])(?=[\u4e00-\u9fff])")
    return re.compile("|".join(places))


def _are_local(normalizers: Sequence[dict[str, Any]], splitters: Sequence[dict[str, Any]]) -> bool:
    """Whether these components treat the two sides of a boundary independently."""
    replaced = [(part["pattern"], part["content"]) for part in normalizers if part["type"] == "Replace"]
    # The first splitter besides Punctuation and Digits must split at spaces: it may rewrite them before later ones see them.
    first = next((part for part in splitters if part["type"] not in ("Punctuation", "Digits")), None)
    return (
        {part["type"] for part in normalizers} <= NORMALIZERS
        and {part["type"] for part in splitters} <= PRE_TOKENIZERS
        and all(replacement in REPLACEMENTS for replacement in replaced)
        and not any(part.get("strip_left") for part in normalizers)
        and first is not None
        and _splits(first)
        # Only Metaspace splits at the "▁" that several spaces became.
        and ("▁" not in [content for _, content in replaced] or any(part["type"] == "Metaspace" and _splits(part) for part in splitters))
    )


def _splits(part: dict[str, Any]) -> bool:
    return bool(part.get("use_regex", True) and part.get("split", True))


def _parts(component: Any, name: str) -> list[dict[str, Any]]:
    """A component as tokenizer.json describes it, in a list; a Sequence gives the list of its members, None an empty list."""
    if component is None:
        return []
    left, parts = [json.loads(component.__getstate__())], []
    while left:
        part = left.pop(0)
        left[:0] = part.get(name, ()) if part["type"] == "Sequence" else ()
        parts += [] if part["type"] == "Sequence" else [part]
    return parts
