"""Reads the vocabulary of a sentencepiece model, a message of protocol buffers (sentencepiece_model.proto), without that library."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ...errors import CheckpointError, short
from ...files import read_file
from ...strict_json import vocabulary_bytes

__all__ = ["CONTROL", "USER_DEFINED", "Piece", "SentencePiece", "read_sentencepiece"]

# Kinds of pieces, and of models.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM = 1
MODELS = {1: "Unigram", 2: "BPE", 3: "word", 4: "character"}
# Types of fields in a message.
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MARGIN = 4  # pieces: a model may leave out the first pieces and those that another token replaces


class Piece(NamedTuple):
    """A piece of the vocabulary: its text, its log probability, its kind."""

    text: str
    score: float
    kind: int


class SentencePiece(NamedTuple):
    """What a sentencepiece model says about its tokenizer.

    pieces    the pieces in the order of their ids
    unknown   id of the piece for unknown characters
    charsmap  the map that normalises characters; empty if there is none
    """

    pieces: list[Piece]
    unknown: int
    charsmap: bytes


def read_sentencepiece(path: Path, vocabulary: int) -> SentencePiece:
    """The content of a Unigram model's file.

    vocabulary  size of the model's vocabulary, which bounds the file and its pieces

    Raises CheckpointError naming the file, for a broken file and for a model of another kind.
    """
    data = read_file(path, vocabulary_bytes(vocabulary))
    pieces: list[Piece] = []
    unknown, kind, charsmap = 0, UNIGRAM, b""
    try:
        for number, value in _fields(data):
            if number == 1:
                pieces.append(_piece(_bytes(value)))
                if len(pieces) > vocabulary + MARGIN:
                    raise ValueError(f"it has more than {len(pieces) - 1} pieces, but the model's vocabulary is {vocabulary}")
            elif number == 2:
                trainer = dict(_fields(_bytes(value)))
                kind, unknown = _number(trainer.get(3, UNIGRAM)), _number(trainer.get(40, 0))
            elif number == 3:
                charsmap = _bytes(dict(_fields(_bytes(value))).get(2, b""))
    except (ValueError, IndexError, struct.error) as error:
        raise CheckpointError(f"{path} is not a sentencepiece model: {error}: copy or download it again") from None
    if not pieces or not unknown < len(pieces):
        raise CheckpointError(f"{path} has {len(pieces)} pieces and gives unknown ones the id {unknown}, expected one of its pieces")
    if kind != UNIGRAM:
        raise CheckpointError(f"{path} is a {MODELS.get(kind, short(kind))} model, expected Unigram, as its tokenizer_class has")
    return SentencePiece(pieces, unknown, charsmap)


def _piece(data: bytes) -> Piece:
    """The piece in a message. Raises ValueError."""
    fields = dict(_fields(data))
    text = _bytes(fields.get(1, b"")).decode()
    score = struct.unpack("<f", _bytes(fields[2]))[0] if 2 in fields else 0.0
    if not math.isfinite(score):
        raise ValueError(f"the piece {short(text)} has the score {score}")
    return Piece(text, score, _number(fields.get(3, NORMAL)))


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the (number, value) of each field of a message: an int, or bytes. Raises ValueError or IndexError."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        kind = key & 7
        value: int | bytes
        if kind == VARINT:
            value, at = _varint(data, at)
        elif kind in (BYTES, FIXED32, FIXED64):
            size = {FIXED32: 4, FIXED64: 8}.get(kind, 0)
            if kind == BYTES:
                size, at = _varint(data, at)
            if size > end - at:
                raise ValueError(f"a field of {size} bytes has {end - at} left")
            value, at = data[at : at + size], at + size
        else:
            raise ValueError(f"a field has the type {kind}, expected 0, 1, 2 or 5")
        yield key >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(number, where the next field begins) of the variable-length number at `at`."""
    byte = data[at]
    if byte < 128:
        return byte, at + 1
    number = shift = 0
    for place in range(at, at + 10):
        byte = data[place]
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number, place + 1
    raise ValueError("a number has more than 10 bytes")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError(f"a field holds the number {value}, expected bytes")
    return value


def _number(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError(f"a field holds {len(value)} bytes, expected a number")
    return value
