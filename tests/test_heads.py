"""Decoding: words of a text, spans of answers, windows of long texts, and the spaces around a filled mask."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from fastinfer import heads
from fastinfer.tokenizer import Tokens

probabilities = st.integers(1, 12).flatmap(
    lambda n: st.tuples(*[st.lists(st.floats(0, 1, width=32), min_size=n, max_size=n).map(np.array)] * 2)
)


@given(scores=probabilities, top_k=st.integers(1, 20), longest=st.integers(1, 14))
def test_best_spans_are_those_of_all_pairs(scores, top_k, longest):
    start, end = scores
    pairs = [(i, j, start[i] * end[j]) for i in range(len(start)) for j in range(i, min(i + longest, len(end)))]
    want = sorted(pairs, key=lambda span: (-span[2], span[0], span[1]))[:top_k]
    assert heads.answer.best_spans(start, end, top_k, longest) == want


def test_best_spans_of_a_long_context_take_memory_by_the_token():
    rng = np.random.default_rng(0)
    start, end = rng.random((2, 8000))
    tracemalloc.start()
    best = heads.answer.best_spans(start, end, 12)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(best) == 12
    assert peak < 8000 * heads.answer.ANSWER_TOKENS * 8 * 6  # bytes; a table of all pairs would take 512 MB


def tokens_of(text, *parts, words=None, special=()):
    """Tokens that cover the `parts` of a text in order."""
    offsets, at = [], 0
    for part in parts:
        at = text.index(part, at)
        offsets.append((at, at + len(part)))
        at += len(part)
    sides = [None if i in special else 0 for i in range(len(parts))]
    return Tokens([0] * len(parts), [0] * len(parts), offsets, words or [0] * len(parts), sides)


def words_of(text, *parts, words=None, marked=False):
    tokens = tokens_of(text, *parts, words=words)
    return [text[word.start : word.end] for word in heads.words.words(heads.words.pieces(tokens, text), text, marked)]


@pytest.mark.parametrize(
    ("text", "parts", "words"),
    [
        ("in Berlin, Rome!)", ["in", " Ber", "lin", ",", " Rome", "!)"], ["in", "Berlin", ",", "Rome", "!)"]),
        ("Obama's (wife", ["Obama", "'", "s", " (", "wife"], ["Obama", "'", "s", "(", "wife"]),
        ("“Berlin”", ["“", "Ber", "lin", "”"], ["“", "Berlin", "”"]),
        ("B12 €4", ["B", "12", " €", "4"], ["B12", "€", "4"]),
        ("北京市内", ["北京", "市", "内"], ["北京", "市", "内"]),
        ("a\nb", ["a", "\n", "b"], ["a", "b"]),
        ("  a ", ["  ", "a", " "], ["a"]),
        ("Łódź", ["Ł", "ód", "ź"], ["Łódź"]),
        ("e\u0301t", ["e", "\u0301", "t"], ["e\u0301t"]),
    ],
)
def test_words_of_a_vocabulary_that_marks_spaces(text, parts, words):
    assert words_of(text, *parts) == words


def test_white_space_that_is_a_token_begins_the_word_it_is_counted_to():
    tokens = tokens_of("a Łódź", "a", " ", "Łó", "dź", words=[0, 1, 1, 1])
    assert [word.rows for word in heads.words.words(heads.words.pieces(tokens, "a Łódź"), "a Łódź", False)] == [[0], [1, 2, 3]]


def test_words_of_a_vocabulary_that_marks_pieces_are_the_tokenizers():
    assert words_of("Berlin,x y", "Ber", "lin", ",", "x", "y", words=[0, 0, 0, 1, 2], marked=True) == ["Berlin,", "x", "y"]


def test_a_character_of_several_tokens_is_in_one_word():
    text = "🦊🦊"
    tokens = Tokens([0] * 4, [0] * 4, [(0, 1), (0, 1), (1, 2), (1, 2)], [0] * 4, [0] * 4)
    assert [word.rows for word in heads.words.words(heads.words.pieces(tokens, text), text, False)] == [[0, 1], [2, 3]]


@given(count=st.integers(0, 60), room=st.integers(2, 20))
def test_a_token_is_taken_from_the_window_where_it_is_farthest_from_a_border(count, room):
    shared = room // 2
    whole = Tokens([0] * (count + 2), [], [], [], [None, *[0] * count, None])
    starts = range(0, max(count - shared, 1), room - shared)
    windows = []
    for number, start in enumerate(starts):
        rows = [0, *range(start + 1, min(start + room, count) + 1), count + 1]
        windows.append((rows, np.full((len(rows), 1), number, np.float32)))
    joined = heads.words.join_windows(windows, whole)[1:-1, 0]
    for token in range(count):
        far = {}
        for number, start in enumerate(starts):
            end = min(start + room, count)
            if start <= token < end:
                far[number] = min(token - start if start else count, end - 1 - token if end < count else count)
        assert far[int(joined[token])] == max(far.values())


PER = heads.tag.Tag(("O", "B-PER", "I-PER"))


@pytest.mark.parametrize(
    ("strategy", "want"),
    [
        ("simple", [(0, 3, "PER", 0.6), (3, 5, "PER", 0.8)]),
        ("first", [(0, 5, "PER", 0.6)]),
        ("average", [(0, 5, "PER", 0.55)]),
        ("max", [(0, 5, "PER", 0.8)]),
    ],
)
def test_strategies(strategy, want):
    tokens = tokens_of("Adame in", "Ada", "me", "in", words=[0, 0, 1])
    scores = np.array([[0.3, 0.6, 0.1], [0.1, 0.8, 0.1], [0.9, 0.1, 0.0]])
    if strategy == "average":
        scores[1] = [0.4, 0.5, 0.1]
    got = heads.tag.decode(scores, tokens, "Adame in", PER, strategy, True)
    assert [(*span[:3], span[4]) for span in got] == [(*span[:3], "Adame in"[span[0] : span[1]]) for span in want]
    assert_allclose([span[3] for span in got], [span[3] for span in want])


def test_white_space_is_no_span():
    text = "a\n\nb"
    tokens = tokens_of(text, "a", "\n\n", "b", words=[0, 1, 2])
    scores = np.array([[0.9, 0.1, 0], [0.1, 0.9, 0], [0.1, 0.2, 0.7]])
    for strategy, want in {"simple": [(3, 4, "PER", pytest.approx(0.8), "b")], "first": [(3, 4, "PER", pytest.approx(0.7), "b")]}.items():
        assert heads.tag.decode(scores, tokens, text, PER, strategy, False) == want


@pytest.mark.parametrize(
    ("text", "token", "marked", "filled"),
    [
        ("is [M].", " the", False, "is the."),
        ("is [M].", "the", False, "isthe."),
        ("is[M].", " the", False, "is the."),
        ("is[M].", "the", False, "isthe."),
        ("is\n[M]", " the", False, "is\nthe"),
        ("[M] is", " The", False, "The is"),
        ("[M] is", "ly", False, "ly is"),
        ("([M])", " the", False, "( the)"),
        ("([M])", "the", False, "(the)"),
        ("is [M].", " the", True, "is the."),
        ("is[M].", " the", True, "is the."),
        ("is [M].", "ly", True, "isly."),
        ("([M])", " the", True, "(the)"),
        ("is[M]", " (", True, "is("),
        ("北京[M]", " 市", True, "北京市"),
    ],
)
def test_what_a_filled_mask_joins(text, token, marked, filled):
    start = text.index("[M]")
    assert heads.fill_mask.fill(text, start, start + 3, token, marked) == filled
