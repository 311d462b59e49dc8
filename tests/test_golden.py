"""Golden checkpoints, stage by stage: the authors' files against their own PyTorch code, and files of each version of this project's
format against float64 (tests/data/make_golden.py). Files of a version never change, because later releases must read them.
"""

from pathlib import Path

import backends
import numpy as np
import pytest
from numpy.testing import assert_array_less
from safetensors.numpy import load_file

import fastinfer
from fastinfer import checkpoint

GOLDEN = Path(__file__).parent / "data" / "golden"
NAMES = sorted(folder.name for folder in GOLDEN.glob("crammedbert-*"))
FORMAT_1 = sorted(folder.name for folder in (GOLDEN / "format-1").iterdir())


def close(got, want):
    """Assert a difference of at most 1e-5 * max(1, |value|)."""
    assert got.shape == want.shape
    assert_array_less(np.abs(got - want), 1e-5 * np.maximum(1, np.abs(want)))


def unpadded(golden):
    """The golden batch without its padding: (PackedBatch, row mask per text)."""
    masks = golden["attention_mask"].astype(bool)
    return fastinfer.PackedBatch.from_ids([row[mask] for row, mask in zip(golden["input_ids"], masks, strict=True)]), masks


@pytest.fixture(params=["as published", "converted"])
def folder(request, tmp_path):
    """A function from a golden name to a folder with the authors' files, or with the same model in our format."""

    def find(name):
        if request.param == "as published":
            return GOLDEN / name
        config, weights = checkpoint.load(GOLDEN / name)
        checkpoint.save(tmp_path / name, config, weights)
        return tmp_path / name

    return find


def test_there_are_goldens():
    assert NAMES == ["crammedbert-1x5-cls", "crammedbert-4x3-mlm", "crammedbert-dense-mlm"]
    kinds, stored = ("children", "dense", "fff", "fff-always-on"), ("bfloat16", "float16", "float32", "int8")
    assert sorted(f"{kind}-{dtype}" for kind in kinds for dtype in stored) == FORMAT_1


@pytest.mark.parametrize("device", backends.ALL)
@pytest.mark.parametrize("name", NAMES)
def test_every_stage(name, device, folder):
    golden = load_file(GOLDEN / name / "golden.safetensors")
    model = fastinfer.load(folder(name), device=device)
    batch, masks = unpadded(golden)
    layers = range(model.config.layers)
    stages = ["stage.embedding", *(f"stage.layer.{i}" for i in layers), "last_hidden_state"]
    states = model.hidden_states(batch, layers=(*range(len(layers) + 1), -1))
    for b, mask in enumerate(masks):
        for state, stage in zip(states[b], stages, strict=True):
            close(state, golden[stage][b][mask])


@pytest.mark.parametrize("device", backends.ALL)
@pytest.mark.parametrize("name", [n for n in NAMES if n.endswith("mlm")])
def test_mlm_logits(name, device, folder):
    golden = load_file(GOLDEN / name / "golden.safetensors")
    model = fastinfer.load(folder(name), device=device)
    batch, masks = unpadded(golden)
    for b, logits in enumerate(model.logits(batch, positions="all")):
        close(logits, golden["mlm_logits"][b][masks[b]])


@pytest.mark.parametrize("device", backends.ALL)
def test_class_logits(device, folder):
    golden = load_file(GOLDEN / "crammedbert-1x5-cls" / "golden.safetensors")
    model = fastinfer.load(folder("crammedbert-1x5-cls"), device=device)
    close(model.logits(unpadded(golden)[0]), golden["cls_logits"])


@pytest.mark.parametrize("device", backends.ALL)
def test_the_batch_does_not_matter(device):
    name = "crammedbert-4x3-mlm"
    golden = load_file(GOLDEN / name / "golden.safetensors")
    model = fastinfer.load(GOLDEN / name, device=device)
    batch, _ = unpadded(golden)
    whole = model.hidden_states(batch)
    for b, rows in enumerate(batch.split(batch.ids)):
        alone = model.hidden_states(fastinfer.PackedBatch.from_ids([rows]))[0]
        np.testing.assert_allclose(alone, whole[b], atol=1e-5, rtol=1e-5)
    one_by_one = model.hidden_states(batch, batch_tokens=1)
    for a, b in zip(one_by_one, whole, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


def test_max_depth_stops_the_walk_early():
    name = "crammedbert-1x5-cls"
    batch, _ = unpadded(load_file(GOLDEN / name / "golden.safetensors"))
    whole, cut = (fastinfer.load(GOLDEN / name, max_depth=d).routes(batch) for d in (None, 2))
    assert whole[0][0][0].shape[-1] == 6
    np.testing.assert_array_equal(cut[0][0][0], whole[0][0][0][..., :3])
    deeper = fastinfer.load(GOLDEN / name, max_depth=99).logits(batch)
    np.testing.assert_array_equal(deeper, fastinfer.load(GOLDEN / name).logits(batch))


@pytest.mark.parametrize("device", backends.ALL)
def test_routes_of_a_model(device):
    name = "crammedbert-4x3-mlm"
    batch, _ = unpadded(load_file(GOLDEN / name / "golden.safetensors"))
    model = fastinfer.load(GOLDEN / name, device=device)
    routes = model.routes(batch)
    assert [len(r) for r in routes] == [model.config.layers] * len(batch)
    for text, length in zip(routes, batch.lengths, strict=True):
        for nodes, z in text:
            assert nodes.shape == z.shape == (length, 4, 4)
            np.testing.assert_array_equal(nodes[..., 0], 0)
            np.testing.assert_array_equal(nodes[..., 1:], 2 * nodes[..., :-1] + 1 + (z[..., :-1] > 0))
    dense = fastinfer.load(GOLDEN / "crammedbert-dense-mlm", device=device)
    assert dense.routes(batch)[0] == [None, None]


def stages(model, batch):
    """{stage: rows of all texts}, for the stages that make_golden.py computes."""
    count = model.config.layers
    states = model.hidden_states(batch, layers=(*range(count + 1), -1))
    said = {f"hidden.{i}" if i <= count else "final": np.concatenate([s[i] for s in states]) for i in range(count + 2)}
    routes = model.routes(batch)
    said |= {f"nodes.{i}": np.concatenate([r[i][0] for r in routes]) for i in range(count) if routes[0][i] is not None}
    for task in model.tasks:
        rows = model.embed(batch) if task == "embed" else model.logits(batch, task=task, positions="all")
        said[task] = np.concatenate(rows) if isinstance(rows, list) else rows
    return said


def of_format_1(name, **options):
    """(golden checkpoint, its batch, its outputs in float64)."""
    want = load_file(GOLDEN / "format-1" / name / "expected.safetensors")
    model = fastinfer.load(GOLDEN / "format-1" / name, **options)
    ids, types, lengths = (want.pop(key) for key in ("ids", "token_types", "lengths"))
    cuts = np.cumsum(lengths)[:-1]
    return model, fastinfer.PackedBatch.from_ids(np.split(ids, cuts), np.split(types, cuts)), want


@pytest.mark.parametrize("device", backends.ALL)
@pytest.mark.parametrize("name", FORMAT_1)
def test_a_file_of_format_1(name, device):
    model, batch, want = of_format_1(name, device=device, dtype="float32")
    got = stages(model, batch)
    assert {"final", "embed"} < set(want) <= set(got)
    for stage, values in want.items():
        np.testing.assert_allclose(got[stage], values, rtol=1e-4, atol=2e-5, err_msg=stage)


@pytest.mark.parametrize("device", [d for d in backends.ALL if d != "numpy"])
@pytest.mark.parametrize("name", [n for n in FORMAT_1 if n.startswith("dense")])
def test_a_file_of_format_1_computed_as_it_is_stored(name, device):
    """This uses only checkpoints without trees, because the rounding of a tree's input may change its paths."""
    model, batch, want = of_format_1(name, device=device)
    got = stages(model, batch)
    for stage, values in want.items():
        np.testing.assert_allclose(got[stage], values, atol=0.1, err_msg=stage)
        assert np.abs(got[stage] - values).mean() < 0.03
