"""Memory of a process that loads a model: it has no second copy of the weights, keeps nothing of large batches, and shares trees."""

import os
import subprocess
import sys

import builders
import pytest
from conftest import make_config, make_tokenizer

from fastinfer import checkpoint
from fastinfer.config import FFF, Dense, Embed, Positions, Stored, Tasks

if not os.path.exists("/proc/self/smaps_rollup"):
    pytest.skip("no /proc/self/smaps_rollup on this system", allow_module_level=True)

START = """
import re, sys
import numpy as np
import fastinfer
from fastinfer import PackedBatch
def pss(): return int(re.search(r"Pss:\\s+(\\d+)", open("/proc/self/smaps_rollup").read())[1]) / 1e3
before = pss()
model = fastinfer.load(sys.argv[1], device=sys.argv[2], threads=2)
rng = np.random.default_rng(0)
def texts(count, length): return PackedBatch.from_ids(rng.integers(0, model.config.vocabulary, (count, length)).tolist())
"""


def process(code: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", START + code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def numbers(code: str, *arguments: str) -> list[float]:
    with process(code, *arguments) as child:
        said, _ = child.communicate(timeout=120)
    assert child.returncode == 0
    return [float(word) for word in said.split()]


def save(folder, **changes) -> float:
    """Save a model with about 60 MB of float32 weights, and return its stored megabytes."""
    options = {"hidden": 512, "heads": 8, "layers": 4, "vocabulary": 2000, "max_tokens": 128, "positions": Positions("learned", 128)}
    config = builders.tiny(**options | {"ffn": (Dense(2560),) * 4, "tasks": Tasks(Embed("mean", True))} | changes)
    builders.save(folder, config)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "int8"])
def test_loading_keeps_one_copy_of_the_weights(tmp_path, stored):
    megabytes = save(tmp_path, stored=Stored(stored, stored, stored))
    (grown,) = numbers("model.embed(texts(1, 16)); print(pss() - before)", str(tmp_path), "cpu")
    # 8 MB are for the compiled module, scipy's loaded parts and thread stacks
    assert grown < 1.1 * megabytes + 8


def test_memory_comes_back_after_large_batches(tmp_path):
    save(tmp_path)
    code = "model.embed(texts(4, 16)); small = pss(); model.embed(texts(800, 100)); print(small, pss())"
    small, after = numbers(code, str(tmp_path), "cpu")
    assert after < 1.1 * small


def test_processes_share_the_trees_of_a_mapped_file(tmp_path):
    megabytes = save(tmp_path, ffn=(FFF(4, 10),) * 4)
    trees = 4 * 4 * 2047 * 2 * 512 * 4 / 1e6
    code = "model.embed(texts(200, 64)); print(pss() - before, flush=True); input(); print(pss() - before)"
    with process(code, str(tmp_path), "cpu") as first:
        alone = float(first.stdout.readline())
        with process(code, str(tmp_path), "cpu") as second:
            second.stdout.readline()
            shared = float(first.communicate("\n", timeout=120)[0])
            second.communicate("\n", timeout=120)
    assert first.returncode == second.returncode == 0
    assert trees > 0.8 * megabytes
    assert alone > 0.9 * trees, "the texts were too few to visit the trees"
    assert shared < alone - 0.4 * trees


@pytest.mark.parametrize(
    "texts",
    [
        '["ada lived in london, the capital"] * 50_000',
        '["." * 2_000_000]',
        '["ada " * 500_000] * 3',
        '[("is", "ada, " * 400_000)] * 2',
    ],
    ids=["many texts", "dots", "words", "pairs"],
)
def test_texts_are_tokenised_in_bounded_memory(tmp_path, texts):
    config = make_config()
    checkpoint.save(tmp_path, config, builders.weights(config))
    make_tokenizer().save(str(tmp_path / "tokenizer.json"))
    code = f"""
import resource, warnings
warnings.simplefilter("ignore")
model.embed(["ada lived in london"] * 100)
texts = {texts}
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
before = peak()
vectors = model.embed(texts)
print(peak() - before - vectors.nbytes / 1e6)
"""
    (grown,) = numbers(code, str(tmp_path), "cpu")
    assert grown < 40  # MB: tokenising all texts at once took 1,500 for the dots and 350 for the many texts
