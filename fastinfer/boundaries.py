"""Where a long text can be cut in two so that the tokens of the parts are those of the whole."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Sequence
from typing import Any

__all__ = ["boundaries"]

# Components that treat the text before a boundary without regard to the text behind it, and the other way round.
NORMALIZERS = {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Replace", "StripAccents", "Strip"}
REPLACEMENTS = ({"String": "``"}, '"'), ({"String": "''"}, '"'), ({"Regex": " {2,}"}, " "), ({"Regex": " {2,}"}, "▁")
PRE_TOKENIZERS = {"BertPreTokenizer", "ByteLevel", "Digits", "Metaspace", "Punctuation", "Whitespace", "WhitespaceSplit"}
MODELS = {"BPE", "Unigram", "WordLevel", "WordPiece"}
# Normalizers that leave ASCII punctuation and Chinese characters as and where they are.
PLAIN = {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents"}


def boundaries(raw: Any) -> re.Pattern[str] | None:
    """Matches, without width, where a text can be cut without changing a token; None where `raw`, a tokenizers.Tokenizer, promises none.

    The tokens of text[:cut] are then the first of those of the text, and text[cut - 1:] gives one character's tokens and then the rest.

    At a boundary a space stands behind a letter, a digit or a visible character of ASCII. Each of PRE_TOKENIZERS that splits at spaces
    ends a word there, whatever stands further left or right, and MODELS see one word at a time. NORMALIZERS work on a character, a
    combining sequence or a grapheme, none of which goes on with a space, or strip the text's end; REPLACEMENTS do not reach across.
    An added token could, whose content has white space behind another character; one that takes in the white space on its right, or
    is a single character, would end or begin otherwise. A tokenizer that has one of these, or a component of another kind, has no
    boundaries.

    BertPreTokenizer makes each ASCII punctuation character a word of its own and, with its normalizer, each Chinese one, so
    between two of these is a boundary, too, unless an added token may contain them.
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
        used = set("_").union(*(token.content for token in added))  # "_" counts as of a word beside an added token
        marks = "".join(map(re.escape, sorted(set(string.punctuation) - used)))
        places.append(f"(?<=[{marks}])(?=[{marks}])")
        if all(map(str.isascii, used)) and any(part.get("handle_chinese_chars") for part in normalizers):
            places.append("(?<=[\u4e00-\u9fff])(?=[\u4e00-\u9fff])")
    return re.compile("|".join(places))


def _are_local(normalizers: Sequence[dict[str, Any]], splitters: Sequence[dict[str, Any]]) -> bool:
    """Whether these components keep what stands on the two sides of a boundary apart."""
    replaced = [(part["pattern"], part["content"]) for part in normalizers if part["type"] == "Replace"]
    # The first that does not only split off punctuation or digits must split at spaces: it may write them otherwise.
    first = next((part for part in splitters if part["type"] not in ("Punctuation", "Digits")), None)
    return (
        {part["type"] for part in normalizers} <= NORMALIZERS
        and {part["type"] for part in splitters} <= PRE_TOKENIZERS
        and all(replacement in REPLACEMENTS for replacement in replaced)
        and not any(part.get("strip_left") for part in normalizers)
        and first is not None
        and _splits(first)
        # Several spaces that became one "▁" are split by Metaspace alone.
        and ("▁" not in [content for _, content in replaced] or any(part["type"] == "Metaspace" and _splits(part) for part in splitters))
    )


def _splits(part: dict[str, Any]) -> bool:
    return bool(part.get("use_regex", True) and part.get("split", True))


def _parts(component: Any, name: str) -> list[dict[str, Any]]:
    """A component, or what a Sequence of them consists of, as tokenizer.json has it."""
    if component is None:
        return []
    left, parts = [json.loads(component.__getstate__())], []
    while left:
        part = left.pop(0)
        left[:0] = part.get(name, ()) if part["type"] == "Sequence" else ()
        parts += [] if part["type"] == "Sequence" else [part]
    return parts
