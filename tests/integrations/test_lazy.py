"""Models by name, and what importing fastinfer imports."""

import copy
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import fastinfer
from fastinfer.catalog import inside
from fastinfer.integrations import lazy
from fastinfer.integrations.lazy import Lazy


def test_it_loads_once_when_it_is_first_used(embedder, monkeypatch):
    loads = []

    def load(*args, **options):
        loads.append((args, options))
        return fastinfer.load(*args, **options)

    monkeypatch.setattr(lazy, "load", load)
    made = Lazy(Path(embedder), device="cpu", threads=1)
    assert loads == []
    found = []
    threads = [threading.Thread(target=lambda: found.append(made())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(model is found[0] for model in found)
    assert loads == [((embedder,), {"device": "cpu", "dtype": None, "threads": 1})]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_a_copy_holds_no_weights_and_gives_the_same_answers(embedder, texts, copied):
    made = Lazy(embedder, threads=1)
    want = made().embed(texts)
    assert len(pickle.dumps(made)) < 1000
    other = copied(made)
    assert other.settings == made.settings == {"model": embedder, "device": "auto", "dtype": None, "threads": 1}
    np.testing.assert_array_equal(other().embed(texts), want)


def test_a_model_that_was_loaded_is_used_as_it_is(embedder):
    model = fastinfer.load(embedder)
    assert Lazy(model)() is model
    with pytest.raises(fastinfer.InputError, match="got a Model, which a file of settings cannot hold: pass the name"):
        _ = Lazy(model).settings


def test_settings_name_the_model_inside():
    assert Lazy().settings["model"] == inside()[0]


def test_what_is_no_model_is_told_at_once_and_a_wrong_name_when_it_is_used():
    with pytest.raises(fastinfer.InputError, match=r"model is 3, expected the name or the folder of a model"):
        Lazy(3)
    made = Lazy("no such folder")
    with pytest.raises(fastinfer.CheckpointError, match="no such folder"):
        made()


def test_importing_fastinfer_imports_no_integration():
    code = "import sys, fastinfer, fastinfer.cli; print([name for name in sys.modules if name.startswith('fastinfer.integrations')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
