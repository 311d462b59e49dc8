"""A type checker accepts right calls, tells what they give, and refuses wrong ones."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A comment says what mypy must say about its line: the type that is revealed, or the code of an error. Other lines are right.
CALLS = """\
import collections
import numpy as np
import numpy.typing as npt
import fastinfer
from fastinfer.values import Texts

model = fastinfer.load("folder", device=["cpu", "numpy"], dtype="int8")
batch = fastinfer.PackedBatch.from_ids([[1, 2]])
column = np.array(["a", "b"])

for texts in ("a", ("a", "b")):
    model.embed(texts)
model.embed(["a", "b"])
model.embed([("a", "b"), ("c", "d")])
model.embed([["a", "b"]])
model.embed(["a", ("b", "c")])
model.embed(["a", None], na="skip")
model.embed(text for text in ["a"])
model.embed({"a": 1}.keys())
model.embed(collections.deque(["a"]))
model.embed(column)
model.embed(column.tolist())
model.embed(batch)
model.embed("a", progress=True)
model.embed("a", progress=lambda done, total: print(done / total))
model.tag(("a", "b"))
model.rank("a", ("b", "c"))
model.answer("a", "b")
model.embed_tokens(batch)

def mine(model: fastinfer.Model, texts: Texts) -> float:
    return float(model.embed(texts).sum())

model.embed(3)  # call-overload
model.embed([3])  # call-overload list-item
model.embed(None)  # call-overload
model.embed(b"a")  # call-overload arg-type
model.embed([b"a"])  # call-overload list-item
model.embed("a", na="drop")  # call-overload
model.embed("a", progress="yes")  # call-overload
model.embed("a", progress=lambda done: None)  # call-overload arg-type misc
model.embed("a", dim="8")  # call-overload
model.embed("a", dimension=8)  # call-overload
model.embed("a", precision=8)  # call-overload
model.tag([("a", "b")])  # list-item
model.tag(batch)  # arg-type
model.rank("a", 3)  # arg-type
model.rank(["a"], ["b"])  # arg-type
model.answer("a", [3])  # list-item
model.hidden_states(["a", None])  # list-item
model.routes(3)  # call-overload arg-type
fastinfer.load(3)  # arg-type
fastinfer.load(device=0)  # arg-type

reveal_type(model)  # "fastinfer.api.Model"
reveal_type(model.embed("a").dtype.itemsize)  # "int"
singles: npt.NDArray[np.float32] = model.embed("a", dim=8, precision="float32")
halves: npt.NDArray[np.float16] = model.embed("a", precision="float16")
codes: npt.NDArray[np.int8] = model.embed("a", precision="int8")
codes = model.embed("a", precision="binary")
bits: npt.NDArray[np.uint8] = model.embed("a", precision="ubinary")
halves = model.embed("a")  # assignment
singles = model.embed("a", precision="int8")  # assignment
bits = model.embed("a", precision="binary")  # assignment
reveal_type(model.rank("a", ["b"]))  # "list[tuple[int, float]]"
reveal_type(model.classify("a"))  # "list[list[tuple[str, float]] | Any]"
reveal_type(model.tag("a"))  # "list[list[tuple[int, int, str, float, str]]]"
reveal_type(model.answer("a", "b"))  # "list[list[tuple[int, int, float, str]]]"
reveal_type(model.fill_mask("a"))  # "list[list[list[tuple[str, float, str | Any]]]]"
reveal_type(model.hidden_states("a")[0].shape)  # "tuple[Any, ...]"
reveal_type(model.hidden_states("a", layers=(-1,))[0].shape)  # "tuple[Any, ...]"
reveal_type(model.logits("a", task="classify").dtype.itemsize)  # "int"
reveal_type(model.logits("a", task="tag")[0].dtype.itemsize)  # "int"

label, score = model.classify("a")[0][0]
reveal_type(score)  # "float | Any"
for vector in model.embed_iter(["a"]):
    reveal_type(vector.dtype.itemsize)  # "int"
for start, end, name, score, text in model.tag("a")[0]:
    reveal_type(text)  # "str"
[[(token, probability, filled)]] = model.fill_mask("a [MASK]")[0:1]
model.tag("a")[0][0].label  # attr-defined
"""


def test_mypy_says_so_of_calls(tmp_path):
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed")
    calls = tmp_path / "calls.py"
    calls.write_text(CALLS)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", ROOT / "pyproject.toml", "--no-error-summary", calls]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    said: dict[int, set[str]] = {}
    for line in done.stdout.splitlines():  # of an equal file that mypy has seen before, it says the old path
        found = re.fullmatch(r'.*\bcalls\.py:(\d+): (?:error: .*\[([\w-]+)\]|note: Revealed type is (".*"))', line)
        if found:
            said.setdefault(int(found[1]), set()).add(found[2] or found[3].replace("builtins.", ""))
        else:
            assert ": note: " in line, done.stdout + done.stderr
    wrong = []
    for number, line in enumerate(CALLS.splitlines(), 1):
        wanted = line.partition("  # ")[2]
        got = said.get(number, set())
        right = got == {wanted} if wanted.startswith('"') else bool(got) == bool(wanted) and got <= set(wanted.split())
        wrong += [] if right else [f"{line}: mypy says {got or 'nothing'}"]
    assert not wrong, "\n".join([*wrong, done.stderr])
