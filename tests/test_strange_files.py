"""Files of a checkpoint that are not regular files, are links, are too large, or change during or after reading."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import builders
import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastinfer
from fastinfer import checkpoint, conversion, files
from fastinfer.checkpoint import Tensor
from fastinfer.config import FFF, Dense, Embed, Positions, Stored, Tasks
from fastinfer.errors import CheckpointError, ConfigError, FastinferError

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))
import seeds

BATCH = fastinfer.PackedBatch.from_ids([[1, 2, 3, 4], [5, 0]])


def write(folder, contents):
    for name, text in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text)
    return folder


@pytest.fixture(scope="module")
def made():
    return seeds.make()


# --- not a regular file -------------------------------------------------------------------------------


def a_pipe(path):
    os.mkfifo(path)


def a_device(path):
    path.symlink_to("/dev/zero")


def a_folder(path):
    path.mkdir()


def a_socket(path):
    import socket

    here = os.getcwd()
    os.chdir(path.parent)  # a socket's name may have 100 characters
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


READ = [("bert", name) for name in ("config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json")]
READ += [("bert", name) for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "model.safetensors")]
READ += [("shards", "model.safetensors.index.json"), ("bin", "pytorch_model.bin"), ("bin", "vocab.txt")]


@pytest.mark.parametrize("spoil", [a_pipe, a_device, a_folder])
@pytest.mark.parametrize(("seed", "name"), READ)
def test_pipes_and_devices_are_refused_without_waiting(tmp_path, made, seed, name, spoil):
    folder = write(tmp_path / "model", made[seed])
    (folder / name).unlink()
    spoil(folder / name)
    with pytest.raises(FastinferError, match=re.escape(str(folder / name)) + " is no regular file"):
        conversion.convert(folder, tmp_path / "out") if seed == "bin" else fastinfer.load(folder, device="numpy")


def test_a_socket(tmp_path):
    a_socket(tmp_path / "socket")
    with pytest.raises(CheckpointError, match="socket cannot be read: No such device or address"), files.regular(tmp_path / "socket"):
        pass


def test_a_regular_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "nowhere").symlink_to("none")
    (tmp_path / "loop").symlink_to("loop")
    assert files.read_file(path, 3) == files.read_file(tmp_path / "link", 3) == b"abc"
    for name, limit, said in (
        ("file", 2, "file has 3 bytes, expected at most 2"),
        ("nowhere", 9, "nowhere does not exist"),
        ("loop", 9, "loop cannot be read: Too many levels"),
        ("file/x", 9, "file/x cannot be read: Not a directory"),
        ("\0", 9, "cannot be read: embedded null byte"),
    ):
        with pytest.raises(ConfigError, match=said):
            files.read_file(tmp_path / name, limit, ConfigError)
    with open(tmp_path / "hole", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="hole has 1099511627776 bytes, expected at most 1000"):
        files.read_file(tmp_path / "hole", 1000)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc, whose files have more than they say")
def test_a_file_that_has_more_than_it_said():
    with pytest.raises(CheckpointError, match="status changed while it was read: had 0 bytes, gave 1"):
        files.read_file("/proc/self/status", 1000)


# --- links ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/etc", "a" * 300, "../other", "1_Pooling/../../other", "..", 5, None, ["1_Pooling"]], ids=repr)
def test_modules_outside_the_folder(tmp_path, made, path):
    folder = write(tmp_path / "model", made["bert"])
    write(tmp_path / "other", {"config.json": made["bert"]["1_Pooling/config.json"]})
    modules = json.loads(made["bert"]["modules.json"])
    modules[1]["path"] = path
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ConfigError, match=r"modules.json: a module's path is .*, expected one inside the folder, such as '1_Pooling'"):
        fastinfer.load(folder, device="numpy")


def test_a_folder_of_links_as_a_cache_of_models_has_them(tmp_path, made):
    """Each file of a snapshot is a link to a blob outside the folder."""
    for i, (name, text) in enumerate(made["bert"].items()):
        write(tmp_path, {f"blobs/{i}": text})
        link = tmp_path / "snapshots" / "main" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(tmp_path / "blobs" / str(i), link.parent))
    model = fastinfer.load(tmp_path / "snapshots" / "main", device="numpy")
    assert model.tasks == ("embed", "classify")
    expected = fastinfer.load(write(tmp_path / "plain", made["bert"]), device="numpy")
    assert_array_equal(model.embed(["ada lived in london"]), expected.embed(["ada lived in london"]))


# --- larger than the other files confirm ---------------------------------------------------------


def test_a_table_of_sines_is_bounded_by_the_weights(tmp_path):
    config = builders.tiny(hidden=512, heads=8, positions=Positions("scaled-sinusoidal", 1 << 16), tasks=Tasks())
    with pytest.raises(
        CheckpointError, match=r"positions.max is 65536, whose tables would take 134217728 bytes, expected at most 67108864"
    ):
        checkpoint.save(tmp_path, config, builders.weights(config))
    config = builders.tiny(hidden=512, heads=8, positions=Positions("scaled-sinusoidal", 1 << 15), tasks=Tasks())
    builders.save(tmp_path, config)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace("32768", "32769"))
    with pytest.raises(CheckpointError, match="would take 67110912 bytes"):
        fastinfer.load(tmp_path)


def test_a_long_header_is_not_read(tmp_path):
    builders.save(tmp_path, builders.tiny())
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write((32 << 20).to_bytes(8, "little") + b"{")
        file.truncate(64 << 20)
    with pytest.raises(CheckpointError, match="its header has 33554432 bytes, expected at most 16777216"):
        fastinfer.load(tmp_path)


# --- changes ----------------------------------------------------------------------------------

LARGE = builders.tiny(hidden=32, heads=4, ffn=(FFF(4, 12, children=True),), tasks=Tasks(Embed("mean", True)))


def save_large(folder, seed=0):
    """Save LARGE with full trees, where node n leads to 2n + 1 and 2n + 2."""
    made = builders.weights(dataclasses.replace(LARGE, ffn=(FFF(4, 12),)), seed)
    table = 2 * np.arange(8191)[:, None] + [1, 2]
    table[table > 8190] = -1
    checkpoint.save(folder, LARGE, made | {"layers.0.ffn.children": Tensor(np.stack([table.astype(np.int32)] * 4), "int32")})


def overwrite(path, begin, end, value):
    with open(path, "r+b") as file:
        file.seek(begin)
        file.write(value * (end - begin))


def place(path, name):
    """(begin, end) of a tensor in its file."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    begin, end = json.loads(raw[8 : 8 + size])[name]["data_offsets"]
    return 8 + size + begin, 8 + size + end


@pytest.mark.parametrize("device", ["cpu", "numpy"])
def test_children_that_are_overwritten_later_are_not_followed(tmp_path, device):
    """Kernels do not check the table, so an index read later from the file could lead anywhere."""
    save_large(tmp_path)
    path = tmp_path / "model.safetensors"
    table = place(path, "layers.0.ffn.children")
    assert table[1] - table[0] > checkpoint.read.SMALL
    model = fastinfer.load(tmp_path, device=device)
    expected = model.embed(BATCH)
    overwrite(path, *table, b"\x7f")
    assert_array_equal(model.embed(BATCH), expected)


def maps(array):
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap):
            return True
        array = array.base
    return False


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "int8"])
def test_a_copy_does_not_depend_on_the_file(tmp_path, stored):
    config = builders.tiny(hidden=32, heads=4, vocabulary=3000, ffn=(FFF(4, 9),), stored=Stored(stored, stored, stored))
    builders.save(tmp_path, config)
    path = tmp_path / "model.safetensors"
    assert any(maps(t.data) for t in checkpoint.load(tmp_path)[1].values())
    assert not any(maps(t.data) or maps(t.scale) for t in checkpoint.load(tmp_path, copy=True)[1].values())
    models = [fastinfer.load(tmp_path, device=device, copy=True) for device in ("cpu", "numpy")]
    expected = [fastinfer.load(tmp_path, device=device).embed(BATCH) for device in ("cpu", "numpy")]
    overwrite(path, 0, path.stat().st_size, b"\xff")
    os.truncate(path, 0)
    for model, before in zip(models, expected, strict=True):
        assert_array_equal(model.embed(BATCH), before)


def test_small_tensors_are_copied(tmp_path):
    builders.save(tmp_path, builders.tiny())
    for tensor in checkpoint.load(tmp_path)[1].values():
        assert not maps(tensor.data)


def test_a_mapped_model_keeps_its_weights_when_its_file_is_replaced(tmp_path):
    save_large(tmp_path)
    model = fastinfer.load(tmp_path)
    expected = model.embed(BATCH)
    save_large(tmp_path, seed=1)
    assert_array_equal(model.embed(BATCH), expected)
    assert not np.array_equal(fastinfer.load(tmp_path).embed(BATCH), expected)


def written_to(folder):
    overwrite(folder / "model.safetensors", 5000, 5001, b"\0")


def grown(folder):
    with open(folder / "config.json", "a") as file:
        file.write(" ")


def replaced(folder):
    text = (folder / "model.safetensors").read_bytes()
    with files.replacing(folder / "model.safetensors") as file:
        file.write(text)


def removed(folder):
    (folder / "model.safetensors").unlink()


def sharded(folder):
    (folder / "model.safetensors.index.json").write_text("{}")


@pytest.mark.parametrize("change", [written_to, grown, replaced, removed, sharded])
@pytest.mark.parametrize("copy", [False, True])
def test_a_change_while_it_is_loaded_is_told(tmp_path, monkeypatch, change, copy):
    builders.save(tmp_path, builders.tiny())

    def check(*arguments, whole=checkpoint.check):
        change(tmp_path)
        return whole(*arguments)

    monkeypatch.setattr(checkpoint.open, "check", check)
    with pytest.raises(CheckpointError, match=r"(config.json|model.safetensors.*) changed while it was read: load the checkpoint again"):
        fastinfer.load(tmp_path, copy=copy)


def test_other_files_may_change(tmp_path, monkeypatch):
    builders.save(tmp_path, builders.tiny())

    def check(*arguments, whole=checkpoint.check):
        (tmp_path / "results.txt").write_text("1")
        (tmp_path / "metrics.jsonl").write_text("1")
        return whole(*arguments)

    monkeypatch.setattr(checkpoint.open, "check", check)
    fastinfer.load(tmp_path)


def test_a_header_that_changes_between_check_and_use(tmp_path, monkeypatch):
    import safetensors

    builders.save(tmp_path, builders.tiny())
    path = tmp_path / "model.safetensors"

    def safe_open(*arguments, whole=safetensors.safe_open, **options):
        found = whole(*arguments, **options)
        overwrite(path, 20, 21, b"X")
        return found

    monkeypatch.setattr(safetensors, "safe_open", safe_open)
    with pytest.raises(CheckpointError, match="it changed while it was read"):
        checkpoint.map_file(path)


def test_a_file_that_is_cut_while_it_is_copied(tmp_path, monkeypatch):
    import safetensors

    builders.save(tmp_path, builders.tiny())
    path = tmp_path / "model.safetensors"

    def safe_open(*arguments, whole=safetensors.safe_open, **options):
        found = whole(*arguments, **options)
        os.truncate(path, path.stat().st_size - 1)
        return found

    monkeypatch.setattr(safetensors, "safe_open", safe_open)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        checkpoint.map_file(path, copy=True)


def test_a_copy_takes_no_more_memory_for_long(tmp_path):
    """A packed tensor is not kept beside its packed form."""
    if not os.path.exists("/proc/self/smaps_rollup"):
        pytest.skip("no /proc/self/smaps_rollup on this system")
    config = builders.tiny(hidden=256, heads=4, layers=4, vocabulary=1000, ffn=(Dense(8000),) * 4, tasks=Tasks(Embed("mean", True)))
    builders.save(tmp_path, config)
    code = (
        "import re, sys, fastinfer\n"
        "def pss(): return int(re.search(r'Pss:\\s+(\\d+)', open('/proc/self/smaps_rollup').read())[1]) / 1e3\n"
        "before = pss()\n"
        "model = fastinfer.load(sys.argv[1], device='cpu', copy=True)\n"
        "print(pss() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    megabytes = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors")) / 1e6
    assert megabytes > 60
    assert float(done.stdout) < 1.1 * megabytes + 8
