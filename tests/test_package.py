"""The promises about imports and packaging."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import backends
import pytest

import fastinfer

HEAVY = ["torch", "cupy", "transformers", "scipy", "tokenizers", "safetensors"]


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout


def test_import_brings_in_nothing_heavy():
    assert run(f"import sys, fastinfer; print([m for m in {HEAVY} if m in sys.modules])").strip() == "[]"


@pytest.mark.parametrize("module", ["fastinfer", "fastinfer.cli"])
def test_benchmarks_are_imported_by_their_command_alone(module):
    """The command line also imports nothing heavy before it knows its command."""
    code = f"import sys, {module}; print([m for m in sys.modules if m.split('.')[0] in {HEAVY} or m.startswith('fastinfer.bench')])"
    assert run(code).strip() == "[]"


def test_import_brings_in_few_modules():
    """Time is spent on modules. numpy brings in most of those of Python's library that are needed."""
    code = "import sys, numpy; before = set(sys.modules); import fastinfer; print(*set(sys.modules) - before)"
    added = run(code).split()
    slow = ["asyncio", "concurrent", "hashlib", "logging", "multiprocessing", "secrets", "socket", "subprocess", "zipfile"]
    assert [name for name in added if name.split(".")[0] in slow] == []
    assert len([name for name in added if not name.startswith("fastinfer")]) <= 20


def test_import_changes_nothing_in_the_process():
    code = """
import os, signal, threading, warnings, numpy as np
def state():
    settings = np.geterr(), np.get_printoptions(), warnings.filters
    return repr((dict(os.environ), threading.active_count(), signal.getsignal(signal.SIGINT), settings))
before = state()
import fastinfer
print(before == state())
"""
    assert run(code).strip() == "True"


def test_names_and_version():
    assert fastinfer.__version__ == metadata.version("fastinfer")
    for name in fastinfer.__all__:
        assert getattr(fastinfer, name) is not None
    asked = ["load", "PackedBatch", "FFF", "fff", "info"]
    assert set(asked) <= set(fastinfer.__all__)


def test_runtime_dependencies_are_few():
    needs = [r.split(";")[0] for r in metadata.requires("fastinfer") if "extra ==" not in r]
    assert sorted(r.split(">")[0] for r in needs) == ["numpy", "safetensors", "tokenizers"]


WITHOUT = """
import sys
sys.modules["scipy"] = None  # importing it raises ImportError
import fastinfer
model = fastinfer.load(device=sys.argv[1])
print(model.rank("How do I cook rice?", ["Shares fell.", "Boil the grains."], top_k=1)[0][0])
try:
    fastinfer.load(sys.argv[2], device=sys.argv[1]).embed_sparse("ada")
except fastinfer.InputError as error:
    print(error)
"""


@pytest.mark.parametrize("device", backends.ALL)
def test_scipy_is_an_extra(device, random_model):
    command = [sys.executable, "-c", WITHOUT, device, random_model]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    first, refused = done.stdout.splitlines()
    assert first == "1"
    assert refused == "embed_sparse() gives a scipy.sparse.csr_array, and SciPy is missing: pip install 'fastinfer[scipy]'"


def test_it_is_typed():
    assert Path(fastinfer.__file__).with_name("py.typed").exists()


def test_every_package_is_installed():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    root = Path(__file__).parents[1]
    listed = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(file.parent.relative_to(root).parts) for file in (root / "fastinfer").rglob("__init__.py")}
    assert found <= set(listed)
    assert "fastinfer.bench" in found
