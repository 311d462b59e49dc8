"""Readers of the files that hold a Hugging Face tokenizer's vocabulary where a folder has no tokenizer.json."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, ConfigError, about, short
from ...files import read_file
from ...strict_json import vocabulary_bytes
from ...tokenizer_file import check_ids
from .added_tokens import read_token
from .sentencepiece import CONTROL, USER_DEFINED, read_sentencepiece
from .settings import read_object

__all__ = ["Json", "read_camembert", "read_fairseq", "read_merges", "read_pieces", "read_text", "read_vocabulary"]

Json = dict[str, Any]
# Each reader takes a folder, the size of the model's vocabulary, which bounds the files, and the names of special tokens. It gives
# the vocab of a tokenizer.json and, as its class needs them, the merges, the unk_id, the normalizer and further special tokens.
BLANK = " \t\n\v\f\r\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))  # White_Space of Unicode


def read_vocabulary(path: Path, most: int) -> list[str]:
    """The lines of a vocab.txt or merges.txt without the white space at their ends. Raises CheckpointError.

    most  the model's vocabulary size, which bounds the file
    """
    try:
        text = read_file(path, vocabulary_bytes(most)).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} cannot be read as a vocabulary, one token a line: {error}") from None
    return [line.rstrip(BLANK) for line in text.removesuffix("\n").split("\n")]


def read_text(folder: Path, vocabulary: int, names: Mapping[str, str]) -> Json:
    """The vocabulary of vocab.txt, one token a line."""
    return {"vocab": {token: i for i, token in enumerate(read_vocabulary(folder / "vocab.txt", vocabulary))}}


def read_merges(folder: Path, vocabulary: int, names: Mapping[str, str]) -> Json:
    """The vocabulary of vocab.json and the merges of merges.txt, two pieces a line."""
    path = folder / "merges.txt"
    lines = enumerate(read_vocabulary(path, vocabulary), 1)
    merges = [(number, line.split(" ")) for number, line in lines if not line.startswith("#version")]
    for number, merge in merges:
        if len(merge) != 2:
            raise CheckpointError(f"{path}: line {number} is {short(' '.join(merge))}, expected two pieces with a space between them")
    words = read_object(folder / "vocab.json", dict, vocabulary_bytes(vocabulary))
    with about(str(folder / "vocab.json")):
        check_ids("the vocabulary", words, vocabulary)
    return {"vocab": words, "merges": [merge for _, merge in merges]}


def read_pieces(file: str) -> Callable[[Path, int, Mapping[str, str]], Json]:
    """A reader of the sentencepiece model `file`, whose pieces keep their ids."""

    def read(folder: Path, vocabulary: int, names: Mapping[str, str]) -> Json:
        pieces, unknown, charsmap = read_sentencepiece(folder / file, vocabulary)
        marked = [piece for piece in pieces if piece.kind in (CONTROL, USER_DEFINED) and piece.text]
        return {
            "vocab": [[piece.text, piece.score] for piece in pieces],
            "unk_id": unknown,
            "normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()} if charsmap else None,
            "extra": [read_token({"content": p.text, "special": p.kind == CONTROL, "normalized": False}, file) for p in marked],
        }

    return read


def read_fairseq(folder: Path, vocabulary: int, names: Mapping[str, str]) -> Json:
    """The pieces of XLM-RoBERTa: four special tokens take the place of the model's first three, and the mask follows the last."""
    first = [[_name(names, key, folder), 0.0] for key in ("bos", "pad", "eos", "unk")]
    read = read_pieces("sentencepiece.bpe.model")(folder, vocabulary, names)
    return read | {"vocab": [*first, *read["vocab"][3:], [_name(names, "mask", folder), 0.0]]}


def read_camembert(folder: Path, vocabulary: int, names: Mapping[str, str]) -> Json:
    """The pieces of CamemBERT: five special tokens take the place of the model's first one, and the mask follows the last."""
    pad, unknown = (_name(names, key, folder) for key in ("pad", "unk"))
    first = [["<s>NOTUSED", 0.0], [pad, 0.0], ["</s>NOTUSED", 0.0], [unknown, 0.0], ["<unk>NOTUSED", -100.0]]
    read = read_pieces("sentencepiece.bpe.model")(folder, vocabulary, names)
    return read | {"vocab": [*first, *read["vocab"][1:], [_name(names, "mask", folder), 0.0]]}


def _name(names: Mapping[str, str], key: str, folder: Path) -> str:
    if key not in names:
        raise ConfigError(f"{folder / 'tokenizer_config.json'}: {key}_token is null, expected a token: the vocabulary has a place for it")
    return names[key]
