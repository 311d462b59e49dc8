"""The format: a loaded checkpoint equals the saved one bit for bit, a full disk breaks nothing, and large trees stay mapped."""

import errno
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import builders
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

import fastinfer
from fastinfer import backends, checkpoint
from fastinfer.checkpoint import DTYPES, Tensor
from fastinfer.config import FFF, Dense, Stored

INDEX = "model.safetensors.index.json"
seeds = st.integers(0, 2**32 - 1)


def assert_same(found, made):
    assert found.keys() == made.keys()
    for name, tensor in made.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].data.dtype == tensor.data.dtype == DTYPES[tensor.dtype][1]
        assert found[name].data.shape == tensor.data.shape
        assert found[name].data.tobytes() == tensor.data.tobytes(), name
        assert (found[name].scale is None) == (tensor.scale is None)
        if tensor.scale is not None:
            assert found[name].scale.tobytes() == tensor.scale.tobytes(), name


def header_of(path):
    """(header, offset of the data) of a safetensors file, read without the project's code."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), 8 + length


# --- round trips -----------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(builders.configs(), seeds, st.none() | st.integers(1, 5000))
def test_round_trip(config, seed, max_shard_bytes):
    with tempfile.TemporaryDirectory() as folder:
        made = builders.save(folder, config, seed, max_shard_bytes=max_shard_bytes)
        loaded, found = checkpoint.load(folder, validate=True)
        assert loaded == config
        assert_same(found, made)
        for path in Path(folder).glob("*.safetensors"):
            header, begin = header_of(path)
            header.pop("__metadata__")
            with safe_open(path, framework="numpy") as theirs:
                assert set(theirs.keys()) == set(header)
            for name, entry in header.items():
                first, last = entry["data_offsets"]
                assert (last - first) % 64 or (begin + first) % 64 == 0, f"{name} begins at byte {begin + first}"


@settings(max_examples=100, deadline=None, derandomize=True)
@given(builders.configs(), seeds)
def test_every_config_runs(config, seed):
    ids = builders.rows(config, seed)
    types = [[i % config.token_types for i in row] for row in ids] if config.token_types else None
    batch = fastinfer.PackedBatch.from_ids(ids, types)
    tokens = [len(row) for row in ids]
    with tempfile.TemporaryDirectory() as folder:
        builders.save(folder, config, seed)
        models = [fastinfer.load(folder, device=device, dtype="float32") for device in ("numpy", "cpu")]
        hidden, routes = zip(*((m.hidden_states(batch), m.routes(batch)) for m in models), strict=True)
        same_way = all(a is None or np.array_equal(a[0], b[0]) for x, y in zip(*routes, strict=True) for a, b in zip(x, y, strict=True))
        for model in models:
            shapes = {
                "classify": lambda c: [len(c.labels)] * len(ids),
                "tag": lambda c: [(n, len(c.labels)) for n in tokens],
                "answer": lambda c: [(n, 2) for n in tokens],
                "fill_mask": lambda c: [(n, config.vocabulary) for n in tokens],
            }
            for task in model.tasks:
                if task == "embed":
                    vectors = model.embed(batch)
                    assert vectors.shape == (len(ids), config.tasks.embed.numbers(config.hidden))
                    assert np.isfinite(vectors).all()
                    continue
                if task == "embed_sparse":
                    assert model.embed_sparse(batch).shape == (len(ids), config.vocabulary)
                    continue
                logits = model.logits(batch, task=task, positions="all")
                wanted = shapes[task](getattr(config.tasks, task))
                assert [row.shape if row.ndim > 1 else len(row) for row in logits] == wanted
                assert all(np.isfinite(row).all() for row in logits)
        for ours, theirs, n in zip(*hidden, tokens, strict=True):
            assert ours.shape == theirs.shape == (n, config.hidden)
            assert np.isfinite(ours).all()
            if same_way:
                np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16", "int8"])
def test_the_safetensors_library_sees_the_same_bytes(tmp_path, stored):
    config = builders.tiny(stored=Stored(stored, stored, stored))
    made = builders.save(tmp_path, config)
    with safe_open(tmp_path / "model.safetensors", framework="numpy") as file:
        for name, tensor in made.items():
            if stored != "bfloat16" or tensor.dtype != "bfloat16":  # numpy does not have it
                assert file.get_tensor(name).tobytes() == tensor.data.tobytes()
            assert file.get_slice(name).get_shape() == list(tensor.data.shape)
            assert file.get_slice(name).get_dtype() == DTYPES[tensor.dtype][0]


def test_files_that_the_safetensors_library_wrote(tmp_path):
    """Their header is padded only to 8 bytes and their tensors have another order, so tensors may be unaligned."""
    config = builders.tiny(ffn=(FFF(2, 3, children=True, nodes=9),))
    made = builders.save(tmp_path, config)
    arrays = {name: tensor.data for name, tensor in made.items()}
    for length in range(9):
        save_file(arrays, tmp_path / "model.safetensors", metadata={"pad": "x" * length})
        assert_same(checkpoint.load(tmp_path)[1], made)


def test_equal_weights_give_equal_bytes(tmp_path):
    config = builders.tiny(stored=Stored("int8", "bfloat16", "int8"))
    made = builders.save(tmp_path / "a", config, max_shard_bytes=3000)
    checkpoint.save(tmp_path / "b", config, dict(reversed(made.items())), max_shard_bytes=3000)
    checkpoint.save(tmp_path / "c", *checkpoint.load(tmp_path / "a"), max_shard_bytes=3000)
    first = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert len(first) > 3
    for other in ("b", "c"):
        assert {path.name: path.read_bytes() for path in (tmp_path / other).iterdir()} == first


def test_arrays_in_another_memory_order(tmp_path):
    config = builders.tiny()
    made = builders.weights(config)
    checkpoint.save(tmp_path, config, {n: Tensor(np.asfortranarray(t.data), t.dtype) for n, t in made.items()})
    assert_same(checkpoint.load(tmp_path)[1], made)


# --- saving over an existing checkpoint ---------------------------------------------------------------------


def test_from_one_file_to_shards_and_back(tmp_path):
    configs = builders.tiny(), builders.tiny(ffn=(Dense(30),))
    (tmp_path / "model_of_mine.safetensors").write_bytes(b"kept")
    for seed, shard in enumerate((None, 2000, 4000, None)):
        made = builders.save(tmp_path, configs[seed % 2], seed, max_shard_bytes=shard)
        loaded, found = checkpoint.load(tmp_path)
        assert loaded == configs[seed % 2]
        assert_same(found, made)
        names = {path.name for path in tmp_path.iterdir()} - {"config.json", "model_of_mine.safetensors"}
        if shard is None:
            assert names == {"model.safetensors"}
        else:
            parts = json.loads((tmp_path / INDEX).read_text())
            assert names == {INDEX, *parts["weight_map"].values()}
            assert parts["metadata"]["total_size"] == sum(t.nbytes for t in made.values())
    assert (tmp_path / "model_of_mine.safetensors").read_bytes() == b"kept"


def test_over_the_checkpoint_that_is_mapped(tmp_path):
    config = builders.tiny()
    made = builders.save(tmp_path, config, 1)
    model = fastinfer.load(tmp_path, device="cpu")
    batch = fastinfer.PackedBatch.from_ids(builders.rows(config))
    before = model.hidden_states(batch)
    _, found = checkpoint.load(tmp_path)
    checkpoint.save(tmp_path, config, found)
    builders.save(tmp_path, config, 2)
    assert_same(found, made)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.hidden_states(batch), strict=True))


def test_a_tokenizer_is_copied(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    builders.save(tmp_path / "a", builders.tiny(), tokenizer=tmp_path / "tokenizer.json")
    builders.save(tmp_path / "a", builders.tiny(), tokenizer=tmp_path / "a" / "tokenizer.json")
    assert (tmp_path / "a" / "tokenizer.json").read_text() == "{}"


@pytest.mark.parametrize("shard", [None, 3000])
@pytest.mark.parametrize("old_shard", [None, 3000])
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch, shard, old_shard):
    old, new = tmp_path / "old", tmp_path / "new"
    made = builders.save(old, builders.tiny(), 1, max_shard_bytes=old_shard)
    names = sorted(path.name for path in old.iterdir())
    other = builders.tiny(ffn=(Dense(7),))
    builders.save(new, other, 2, max_shard_bytes=shard)
    files = len(list(new.iterdir()))
    for call, successes in [("fsync", n) for n in range(files)] + [("replace", 0)]:
        left = iter([True] * successes)

        def full(*arguments, left=left):
            if not next(left, False):
                raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            with pytest.raises(fastinfer.CheckpointError, match=r"old cannot be written: .*No space left"):
                builders.save(old, other, 2, max_shard_bytes=shard)
        assert sorted(path.name for path in old.iterdir()) == names
        loaded, found = checkpoint.load(old)
        assert loaded == builders.tiny()
        assert_same(found, made)


def test_a_file_size_limit_leaves_the_old_checkpoint(tmp_path):
    resource = pytest.importorskip("resource")
    made = builders.save(tmp_path, builders.tiny(), 1)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
    try:
        with pytest.raises(fastinfer.CheckpointError, match=r"cannot be written: .*File too large"):
            builders.save(tmp_path, builders.tiny(), 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    assert_same(checkpoint.load(tmp_path)[1], made)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(fastinfer.CheckpointError, match=r"file cannot be written: .*exists"):
        builders.save(tmp_path / "file", builders.tiny())


def test_weights_that_do_not_fit_are_not_written(tmp_path):
    config = builders.tiny(stored=Stored("int8", "float32", "float32"))
    made = builders.weights(config)
    word = made["embedding.word"]
    for wrong, said in (
        ({k: v for k, v in made.items() if k != "embedding.word"}, r"missing    embedding.word \(24, 16\) int8"),
        (made | {"more": word}, r"surplus    'more' \(24, 16\) int8"),
        (made | {"embedding.word": Tensor(word.data, "int8")}, "missing    embedding.word.scale"),
        (made | {"embedding.word": word.to("float32")}, "dtype      embedding.word is float32, expected int8"),
        (made | {"embedding.word": Tensor(word.data, "int8", word.scale[:5])}, r"embedding.word.scale is \(5,\), expected \(24,\)"),
        (made | {"tasks.tag.out.bias": Tensor(np.zeros(3), "float32")}, "tasks.tag.out.bias holds float64, expected float32"),
        (made | {"tasks.tag.out.bias": Tensor(np.zeros(3, ">f4"), "float32")}, "tasks.tag.out.bias holds >f4, expected float32"),
    ):
        with pytest.raises(fastinfer.CheckpointError, match=said):
            checkpoint.save(tmp_path / "new", config, wrong)
        assert not (tmp_path / "new").exists()


# --- memory ----------------------------------------------------------------------------------------


def test_trees_are_used_where_they_lie(tmp_path):
    config = builders.tiny(ffn=(FFF(2, 9),))
    builders.save(tmp_path, config)
    _, found = checkpoint.load(tmp_path)
    nodes = found["layers.0.ffn.nodes"].data
    base = nodes
    while base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    assert not nodes.flags.writeable
    assert nodes.ctypes.data % 64 == 0
    weights = backends.get("numpy").prepare(config, found)
    assert np.shares_memory(weights.layers[0].ffn.trees.nodes, nodes)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc")
def test_a_large_tree_is_not_read(tmp_path):
    """Loading a tree of 2 GiB (a hole in the file) and running a few tokens reads only a small part of it."""
    config = builders.tiny(hidden=128, ffn=(FFF(64, 14, bias_in=False),))
    spec = checkpoint.tensors(config)
    header, begin = {}, 0
    for name, (shape, _, _) in spec.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, begin := begin + 4 * math.prod(shape)]}
    assert begin > 2**31 - 2**20
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + begin)
    (tmp_path / "config.json").write_text(config.to_json())
    code = (
        "import sys, fastinfer\n"
        "model = fastinfer.load(sys.argv[1], device='cpu')\n"
        "assert model.hidden_states(fastinfer.PackedBatch.from_ids([[1, 2, 3]]))[0].shape == (3, 128)\n"
        "print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 400 * 1024, f"{done.stdout} KiB were resident"


# --- storing as another dtype ----------------------------------------------------------------------


def bits_to_float64(bits):
    """The float64 values of bfloat16 patterns. Infinity becomes 2**128, its value for rounding."""
    bits = bits.astype(np.int64)
    exponent, mantissa = (bits >> 7) & 0xFF, bits & 0x7F
    value = np.where(exponent == 0, mantissa * 2.0**-133, (mantissa + 128) * np.exp2(exponent - 134.0))
    return np.where(bits >> 15, -value, value)


def test_bfloat16_rounds_to_nearest_even():
    rng = np.random.default_rng(0)
    edges = [(high << 16) | low for high in range(0, 1 << 16, 7) for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]
    special = [0x7F7F0000, 0xFF7F0000, 0x7F7EFFFF, 1, 0x80000001, 0x00007FFF, 0x00008000, 0x00018000, 0x007FFFFF]
    bits = np.concatenate([np.array(edges + special, np.uint32), rng.integers(0, 1 << 32, 100_000, dtype=np.uint32)])
    bits = bits[bits & 0x7FFFFFFF <= 0x7F7F0000]  # above this, values round to infinity
    values = bits.view(np.float32)
    got = Tensor(values, "float32").to("bfloat16").data
    low = (bits >> 16).astype(np.int64)
    exact = values.astype(np.float64)
    below, above = np.abs(exact - bits_to_float64(low)), np.abs(bits_to_float64(low + 1) - exact)
    want = np.where(below < above, low, np.where(above < below, low + 1, low + (low & 1)))
    np.testing.assert_array_equal(got, want)


def test_bfloat16_keeps_what_it_can_hold():
    every = np.arange(1 << 16, dtype=np.uint16)
    values = Tensor(every, "bfloat16").float32()
    back = Tensor(values, "float32").to("bfloat16").data
    nan = np.isnan(values)
    assert nan.sum() == 2 * 127
    np.testing.assert_array_equal(back[~nan], every[~nan])
    assert np.isnan(Tensor(back, "bfloat16").float32()[nan]).all()


def test_int8_has_a_scale_per_row():
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(2, 5, 2, 33)) * np.exp(rng.normal(size=(2, 5, 2, 1), scale=8))).astype(np.float32)
    values[0, 0, 0] = 0
    values[1, 1, 1] = 1e-45
    values[1, 2, 0] = np.float32(3.4e38)
    stored = Tensor(values, "float32").to("int8")
    assert stored.scale.shape == values.shape[:-1]
    for at in np.ndindex(stored.scale.shape):
        scale = np.float32(max(abs(float(v)) for v in values[at])) / np.float32(127)
        assert stored.scale[at] == (scale or 1)
        for value, got in zip(values[at], stored.data[at], strict=True):
            assert got == min(127, max(-127, round(float(value / stored.scale[at]))))
    assert np.isfinite(stored.float32()).all()
    assert (np.abs(stored.float32() - values) <= stored.scale[..., None] * 0.5001).all()


def test_float16():
    values = np.array([0, 1, -2.5, 65504, 6e-8, 1e-9, np.inf, np.nan], np.float32)
    assert Tensor(values, "float32").to("float16").data.tobytes() == values.astype(np.float16).tobytes()
    for bad in ([70000.0], [-70000.0, np.nan], [np.inf, 1e30]):
        with pytest.raises(fastinfer.CheckpointError, match=r"magnitude (70000|1e\+30) does not fit into float16 .*65504.*: use bfloat16"):
            Tensor(np.array(bad, np.float32), "float32").to("float16")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_int8_holds_no_nan(bad):
    with pytest.raises(fastinfer.CheckpointError, match="NaN or infinite, which int8 cannot hold"):
        Tensor(np.array([[1, bad]], np.float32), "float32").to("int8")


def test_dtypes_that_are_none():
    for dtype in ("float64", "int32", "", None):
        with pytest.raises(fastinfer.DtypeError, match=r"cannot store float32 as .*, expected one of float32, float16, bfloat16, int8"):
            Tensor(np.zeros((1, 1), np.float32), "float32").to(dtype)


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from(["float32", "float16", "bfloat16", "int8"]), st.sampled_from(["float32", "float16", "bfloat16", "int8"]))
def test_from_any_dtype_to_any(seed, first, second):
    values = np.random.default_rng(seed).normal(size=(3, 17)).astype(np.float32)
    there = Tensor(values, "float32").to(first)
    through = there.to(second)
    assert through.dtype == second
    np.testing.assert_allclose(through.float32(), values, rtol=0.01, atol=0.05)
    assert there.to(first) is there
