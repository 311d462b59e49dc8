"""A short run of what tests/stress repeats for hours."""

import os
import sys
import warnings
from pathlib import Path

import pytest

from fastinfer.tokenizer import TruncationWarning

pytest.importorskip("fastinfer._cpu", reason="the compiled module is not built")
sys.path.insert(0, str(Path(__file__).with_name("stress")))

import processes
import soak


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("scenario", processes.SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_processes_threads_and_signals(scenario):
    assert [problem for problem in scenario(5) if problem] == []


def test_mixed_calls_keep_their_bits():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        calls, wrong, _ = soak.soak(0.1, 3)
    assert calls > 20
    assert wrong == []
