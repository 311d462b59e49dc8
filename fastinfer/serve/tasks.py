"""Tasks that neither protocol has: /fill_mask, /tag and /answer. A request of one text gets a list of one answer, too."""

from __future__ import annotations

from typing import Any

from . import requests as r
from .endpoint import CALL, endpoint
from .served import Served

__all__ = ["ENDPOINTS"]


@endpoint("/fill_mask", answered=list[list[list[r.Guess]]])
async def fill_mask(served: Served, asked: r.FillMaskRequest) -> list[Any]:
    """For each mask token of each text the likeliest tokens, and the text with each of them in it."""
    served.needs("fill_mask")
    texts = served.read(asked.inputs)
    await served.packed(texts)  # counts tokens and what is cut
    answers = await served.alone("fill_mask", texts, top_k=asked.top_k)
    return [[r.named(r.Guess, mask) for mask in masks] for masks in answers]


@endpoint("/tag", answered=list[list[r.Span]])
async def tag(served: Served, asked: r.TagRequest) -> list[Any]:
    """The tagged spans of each text. Long texts are read whole."""
    served.needs("tag")
    texts = served.read(asked.inputs)
    await served.whole(texts)
    return [r.named(r.Span, spans) for spans in await served.alone("tag", texts, strategy=asked.strategy)]


@endpoint("/answer", answered=list[list[r.Found]])
async def answer(served: Served, asked: r.AnswerRequest) -> list[Any]:
    """The answers to each question in its context, best first. Long contexts are read whole."""
    served.needs("answer")
    given = asked.inputs if isinstance(asked.inputs, list) else [asked.inputs]
    served.counted(len(given), "inputs")
    CALL.get().method = "batch" if isinstance(asked.inputs, list) else "single"
    await served.whole([(one.question, one.context) for one in given])
    questions, contexts = [one.question for one in given], [one.context for one in given]
    answers = await served.alone("answer", questions, contexts, top_k=asked.top_k, no_answer=asked.no_answer)
    return [r.named(r.Found, found) for found in answers]


ENDPOINTS = (fill_mask, tag, answer)
