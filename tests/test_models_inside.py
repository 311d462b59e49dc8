"""The models that ship inside the package."""

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


NAMES = ("fastminilm", "fastminilm-1x11", "fastminilm-small")


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return fastinfer.load(name)


def test_all_are_known_and_the_default_is_the_first():
    assert tuple(fastinfer.info()["models"]) == NAMES
    assert fastinfer.load().fingerprint == fastinfer.load(NAMES[0]).fingerprint


def test_each_is_one_small_folder(name, model):
    """setuptools packs only files directly inside a model's folder, and the folder has no others."""
    files = [path for path in (catalog.MODELS / name).rglob("*") if path.is_file()]
    assert {path.parent for path in files} == {catalog.MODELS / name}
    assert {"README.md", "LICENSE", "config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in files}
    most = {"fastminilm": 19.5e6, "fastminilm-1x11": 36e6, "fastminilm-small": 15.5e6}[name]
    assert sum(len(zlib.compress(path.read_bytes())) for path in files) <= most  # compressed as in a wheel
    assert (model.tasks, model.config.max_tokens, model.config.stored.trees) == (("embed",), 256, "int8")


def test_trees_use_few_of_their_neurons():
    ffns = fastinfer.load("fastminilm-1x11").config.ffn
    used, stored = (sum(getattr(ffn, what) for ffn in ffns) for what in ("used", "total"))
    assert used <= 0.05 * stored


def test_it_ranks_by_meaning(model):
    documents = [
        "The central bank raised its rate again.",
        "Boil the grains for twelve minutes, then drain them.",
        "My cat sleeps all day.",
    ]
    assert [model.rank(query, documents)[0][0] for query in ("How do I cook rice?", "pets", "inflation")] == [1, 2, 0]


def test_training_and_engine_agree(name):
    """PyTorch runs the stored weights text by text along its own routes, and agrees. Almost no token is a near-tie."""
    torch = pytest.importorskip("torch", reason="the trainable encoder needs PyTorch")
    encoders = load_tool("training.encoder")
    folder = catalog.MODELS / name
    encoder = encoders.load(folder).eval()
    engine = fastinfer.load(folder, device="numpy", dtype="float32")
    with torch.inference_mode():
        for text, vector in zip(TEXTS, engine.embed(TEXTS), strict=True):
            ids = torch.tensor([engine.tokenizer.encode([text])[0].ids])
            assert np.abs(encoder.embed(encoder(ids)[-1])[0].numpy() - vector).max() < 1e-4


@pytest.mark.parametrize(("which", "dtype"), [*((name, "int8") for name in NAMES), (NAMES[0], "float32")])
@pytest.mark.parametrize(("task", "metric"), [("STS-B", "spearman"), ("CLINC150", "accuracy")])
def test_their_quality(which, dtype, task, metric):
    """The teacher has 86.72 and 91.67."""
    for module in ("tqdm", "sklearn"):
        pytest.importorskip(module, reason=f"the metrics need {module}")
    if not DATA.is_dir():
        pytest.skip("the data sets are not beside the repository, at ../shared/data")
    goals = {"fastminilm": (86.4, 91.0), "fastminilm-1x11": (86.0, 90.17), "fastminilm-small": (85.0, 88.0)}[which]
    goal = goals[task == "CLINC150"]
    result = scoring.evaluate(fastinfer.load(which, dtype=dtype), tasks.TASKS[task], DATA, "inside", dtype)
    assert result.metrics[metric] >= goal, result.metrics
