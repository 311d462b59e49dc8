"""The model that ships inside the package."""

import zlib
from pathlib import Path

import numpy as np
import pytest
from models import load_tool

import fastinfer
from fastinfer import catalog
from fastinfer.evaluation import scoring, tasks

DATA = Path(__file__).parents[2] / "shared" / "data"
TEXTS = [
    "Boil the grains for twelve minutes, then drain them.",
    "",
    "My cat sleeps all day.",
    "The central bank raised its rate again. " * 30,
]


@pytest.fixture(scope="module")
def model():
    return fastinfer.load()


def test_it_is_one_small_folder(model):
    """setuptools packs only files directly inside the model's folder, and the folder has no others."""
    (name,) = fastinfer.info()["models"]
    files = [path for path in catalog.MODELS.rglob("*") if path.is_file()]
    assert {path.parent for path in files} == {catalog.MODELS / name}
    assert {"README.md", "LICENSE", "config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in files}
    assert sum(len(zlib.compress(path.read_bytes())) for path in files) <= 36e6  # compressed as in a wheel
    assert (model.tasks, model.config.max_tokens, model.config.stored.trees) == (("embed",), 256, "int8")


def test_it_uses_few_of_its_neurons(model):
    used, stored = (sum(getattr(ffn, what) for ffn in model.config.ffn) for what in ("used", "total"))
    assert used <= 0.05 * stored


def test_it_ranks_by_meaning(model):
    documents = [
        "The central bank raised its rate again.",
        "Boil the grains for twelve minutes, then drain them.",
        "My cat sleeps all day.",
    ]
    assert [model.rank(query, documents)[0][0] for query in ("How do I cook rice?", "pets", "inflation")] == [1, 2, 0]


def test_training_and_engine_agree(model):
    """PyTorch runs the stored weights text by text along its own routes, and agrees. Almost no token is a near-tie."""
    torch = pytest.importorskip("torch", reason="the trainable encoder needs PyTorch")
    encoders = load_tool("training.encoder")
    folder = catalog.MODELS / fastinfer.info()["models"][0]
    encoder = encoders.load(folder).eval()
    engine = fastinfer.load(folder, device="numpy", dtype="float32")
    with torch.inference_mode():
        for text, vector in zip(TEXTS, engine.embed(TEXTS), strict=True):
            ids = torch.tensor([engine.tokenizer.encode([text])[0].ids])
            assert np.abs(encoder.embed(encoder(ids)[-1])[0].numpy() - vector).max() < 1e-4


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize(("task", "metric", "goal"), [("STS-B", "spearman", 86.0), ("CLINC150", "accuracy", 90.17)])
def test_its_quality(task, metric, goal, dtype):
    """The goal for CLINC150 is the teacher's 91.67 minus 1.5."""
    for module in ("tqdm", "sklearn"):
        pytest.importorskip(module, reason=f"the metrics need {module}")
    if not DATA.is_dir():
        pytest.skip("the data sets are not beside the repository, at ../shared/data")
    result = scoring.evaluate(fastinfer.load(dtype=dtype), tasks.TASKS[task], DATA, "inside", dtype)
    assert result.metrics[metric] >= goal
