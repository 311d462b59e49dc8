"""A short run of the stress tests that tests/stress repeats for hours."""

import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from fastinfer.tokenizer import TruncationWarning

pytest.importorskip("fastinfer._cpu", reason="the compiled module is not built")
sys.path.insert(0, str(Path(__file__).with_name("stress")))

import processes
import soak

on_both_teams = pytest.mark.parametrize("team", ["own", "openmp"], indirect=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@on_both_teams
@pytest.mark.parametrize("scenario", processes.SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_processes_threads_and_signals(scenario, team):
    """In a process of its own: a fork copies the heap and the libraries that other tests have left in this one."""
    command = [sys.executable, processes.__file__, "--repeat", "5", scenario.__name__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10 * processes.LIMIT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[1]) >= 5, "the event did not happen five times"


@on_both_teams
def test_mixed_calls_keep_their_bits(team):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        calls, wrong, _ = soak.soak(0.1 if team == "own" else 0.03, 3)
    assert calls > 20
    assert wrong == []


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="no /proc/self/task on this system")
@on_both_teams
def test_threads_sleep_when_a_call_has_returned(team):
    subject = processes.Subject()
    subject.answer()
    own = threading.get_native_id()

    def awake() -> list[str]:
        states = {}
        for task in Path("/proc/self/task").iterdir():
            if int(task.name) != own:
                states[task.name] = (task / "stat").read_text().rpartition(")")[2].split()[0]
        assert states, "no thread was started, so the test tests nothing"
        return [name for name, state in states.items() if state == "R"]

    for _ in range(100):
        if not awake():
            break
        time.sleep(0.05)
    for _ in range(20):
        assert not awake()
        time.sleep(0.01)
