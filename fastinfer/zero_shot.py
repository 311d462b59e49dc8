"""ZeroShot: labels that a caller names, scored by a model of natural language inference."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from .config import Classify
from .errors import InputError, TaskError, listed, short
from .heads import classify
from .run import Head, Options, Runner
from .tokenizer import TruncationWarning, as_singles, warn_of

__all__ = ["ZeroShot"]


class ZeroShot:
    """Scores labels with the classify head of the model that a Runner runs. forward: that of the head."""

    def __init__(self, head: Classify, runner: Runner, forward: Head) -> None:
        self._head, self._runner, self._forward = head, runner, forward

    def classify(
        self, texts: Any, labels: Any, template: Any, multi_label: bool, top_k: int | None, options: Options
    ) -> list[list[tuple[str, float]]]:
        """Per text a list of (label, score), best first, as Model.classify() says. Raises InputError and TaskError."""
        names = as_singles([] if isinstance(labels, str) else labels, "labels")
        if not names or "" in names:
            raise InputError(f"labels is {short(labels)}, expected a list of names such as ['politics', 'sports']")
        if not isinstance(template, str) or "{}" not in template:
            raise InputError(f"template is {short(template)}, expected a sentence with {{}} in it, such as 'This example is {{}}.'")
        hypotheses = [template.replace("{}", name) for name in names]
        return classify.zero_shot(self._logits(as_singles(texts), hypotheses, options), names, multi_label, top_k)

    def _logits(self, texts: list[str], hypotheses: list[str], options: Options) -> np.ndarray:
        """The logits (B, hypotheses, 2) of contradiction and entailment of each text and each hypothesis."""
        found = classify.entailment(self._head.labels)
        if found is None:
            known = listed(map(short, self._head.labels))
            raise TaskError(f"{self._runner.name} cannot score labels of yours: none of its classes is entailment, they are {known}")
        tokenizer = self._runner.tokenizer("classify")
        cuts: list[list[TruncationWarning]] = [[] for _ in hypotheses]
        pairs = (tokenizer.packed([(text, h) for text in texts], cut, only_first=True) for h, cut in zip(hypotheses, cuts, strict=True))
        out = np.empty((len(hypotheses) * len(texts), 2), np.float32)
        windows = self._runner.joined(itertools.chain.from_iterable(pairs))
        for which, _, logits in self._runner.run(windows, len(out), self._forward, options):
            out[which] = logits[:, found]
        # The longest hypothesis cuts every text that another one cuts.
        warn_of(max(cuts, key=lambda cut: sum(warning.cut for warning in cut)))
        by_text: np.ndarray = out.reshape(len(hypotheses), len(texts), 2).swapaxes(0, 1)
        return by_text
