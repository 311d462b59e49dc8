"""SpanFinder: tagged spans and answers in texts of any length, which are read in sections and in windows that overlap."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from .config import Tag
from .errors import InputError, short
from .heads import answer, tag, words
from .heads.common import softmax
from .run import Head, Options, Runner
from .tokens import Window
from .values import Found, Span

__all__ = ["SpanFinder"]


class SpanFinder:
    """Finds spans with a head of the model that a Runner runs. forward: that of the head."""

    def __init__(self, runner: Runner, forward: Head) -> None:
        self._runner, self._forward = runner, forward

    def tag(self, texts: list[str], head: Tag, strategy: str, options: Options) -> list[list[Span]]:
        """Per text its tagged spans, as Model.tag() says."""
        tokenizer = self._runner.tokenizer("tag")
        sections = tokenizer.sections(texts)

        def tags(parts: list[str], first: int) -> list[list[Span]]:
            wholes, windows = tokenizer.windows(parts)
            said = self._logits(windows, options)
            found = []
            for i, group in itertools.groupby(zip(windows, said, strict=True), lambda pair: pair[0].text):
                scores = words.join_windows([(window.rows, softmax(rows)) for window, rows in group], wholes[i])
                found.append(tag.decode(scores, wholes[i], parts[i], head, strategy, tokenizer.marked))
            return found

        numbers = [section.text for section in sections]
        said = self._runner.by_portions([section.part for section in sections], tags, options, parts_of=numbers)
        answers: list[list[Span]] = [[] for _ in texts]
        for (i, at, _), spans in zip(sections, said, strict=True):
            answers[i] += [(at + start, at + end, *rest) for start, end, *rest in spans] if at else spans
        return answers

    def answer(
        self,
        questions: list[str],
        contexts: list[str],
        missing: set[int],
        top_k: int,
        no_answer: bool,
        whole_words: bool,
        options: Options,
    ) -> list[list[Found]]:
        """Per question its answers, as Model.answer() says; none for those in `missing`."""
        tokenizer, none = self._runner.tokenizer("answer"), self._runner.config.ids.cls
        sections = tokenizer.sections(contexts)
        parts_of = [section.text for section in sections]

        def decoded(pairs: list[tuple[str, str]], first: int) -> list[list[answer.Decoded]]:
            numbers = parts_of[first : first + len(pairs)]
            wholes, windows = tokenizer.windows(pairs, numbers)
            pieces = [words.pieces(whole, context, 1) for whole, (_, context) in zip(wholes, pairs, strict=True)]
            for number, pair, inside in zip(numbers, pairs, pieces, strict=True):
                if number not in missing:
                    _check(number, *pair, no_answer or any(piece.start < piece.end for piece in inside))
            said = self._logits(windows, options)
            found = []
            for i, group in itertools.groupby(zip(windows, said, strict=True), lambda pair: pair[0].text):
                context = pairs[i][1]
                known = words.words(pieces[i], context, tokenizer.marked) if whole_words else []
                word_of = {row: word for word in known for row in word.rows}
                found.append([answer.decode(rows, window.rows, wholes[i], context, word_of, none, top_k) for window, rows in group])
            return found

        pairs = [(questions[section.text], section.part) for section in sections]
        said = zip(sections, self._runner.by_portions(pairs, decoded, options, parts_of=parts_of), strict=True)
        answers: list[list[Found]] = []
        for i, group in itertools.groupby(said, lambda pair: pair[0].text):
            parts = [part for section, windows in group for part in answer.moved(windows, section.start)]
            answers.append([] if i in missing else answer.join(parts, contexts[i], no_answer)[:top_k])
        return answers

    def _logits(self, windows: list[Window], options: Options) -> list[np.ndarray]:
        """Per window of a text the logits (tokens, K) of its tokens."""
        packed = self._runner.packed([window.tokens for window in windows])
        found: list[Any] = self._runner.per_text([packed], len(windows), self._forward, options._replace(progress=False))
        return found


def _check(number: int, question: str, context: str, answerable: bool) -> None:
    """Raise InputError for a question or a context of which nothing can come."""
    if not question.strip():
        raise InputError(f"questions[{number}] is {short(question)}, expected a question")
    if not answerable:
        hint = "expected a text with an answer in it: leave it out, or pass no_answer=True"
        raise InputError(f"contexts[{number}] is {short(context)}, {hint}")
