"""Hostile and broken checkpoints and arrays give one clear error each, and no crash. A number in a file never sizes an allocation."""

import json
import mmap
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import backends
import builders
import numpy as np
import pytest
import safetensors

import fastinfer
from fastinfer import checkpoint
from fastinfer.backends.pages import Pages
from fastinfer.checkpoint import Tensor, check_children
from fastinfer.config import FFF, Dense, Positions, Stored, tree_nodes
from fastinfer.errors import check_array, printable
from fastinfer.strict_json import MAX_JSON_BYTES

CONFIG = builders.tiny()
ERROR = fastinfer.CheckpointError


def pack(header, data=b""):
    """The bytes of a safetensors file. header: an object or bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def unpack(raw):
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.fixture
def folder(tmp_path):
    builders.save(tmp_path, CONFIG)
    return tmp_path


@pytest.fixture
def weights(folder):
    return folder / "model.safetensors"


def refuses(folder, said, kind=ERROR, **options):
    with pytest.raises(kind, match=said) as error:
        fastinfer.load(folder, device="numpy", **options)
    assert printable(folder)[:1000] in str(error.value)
    return str(error.value)


# --- folders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["none", "x" * 5000, "\0"])
def test_no_folder(tmp_path, name):
    with pytest.raises(ERROR, match=r"is no checkpoint folder; expected one with config.json and model.safetensors") as error:
        fastinfer.load(tmp_path / name, device="numpy")
    assert str(error.value).startswith(str(tmp_path))


def test_a_file_instead_of_a_folder(weights):
    refuses(weights, r"is no checkpoint folder \(a file: pass the folder that holds it\)")


def test_an_empty_folder(tmp_path):
    refuses(tmp_path, "config.json does not exist", fastinfer.ConfigError)


def test_no_config(folder):
    (folder / "config.json").unlink()
    refuses(folder, "config.json does not exist", fastinfer.ConfigError)


def test_no_weights(weights):
    weights.unlink()
    refuses(weights.parent, "has no weights, expected model.safetensors or pytorch_model.bin: take it from")


@pytest.mark.parametrize("path", [5, [], b"a"], ids=repr)
def test_no_path(path):
    with pytest.raises(fastinfer.InputError, match=r"expected the name of a checkpoint folder or of a model inside fastinfer"):
        fastinfer.load(path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("make", [os.mkdir, getattr(os, "mkfifo", os.mkdir)])
def test_folders_and_pipes_for_files(folder, name, make):
    (folder / name).unlink()
    make(folder / name)
    refuses(folder, f"{name} is no regular file", fastinfer.FastinferError)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_files_that_may_not_be_read(folder, name):
    (folder / name).chmod(0)
    refuses(folder, f"{name} cannot be read: Permission denied", fastinfer.FastinferError)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"{", "cannot be read as JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "model_type None is not recognised"),
        (b"{}", "model_type None is not recognised"),
        (b'{"format_version": 1}', "missing key hidden, layers, heads, vocabulary, norm"),
        (b" " * 200_000_000, f"has 200000000 bytes, expected at most {MAX_JSON_BYTES}"),
    ],
    ids=range(6),
)
def test_a_broken_config(folder, text, said):
    (folder / "config.json").write_bytes(text)
    refuses(folder, said, fastinfer.FastinferError)


# --- safetensors files -----------------------------------------------------------------------------

BROKEN = [
    b"",
    b"\1\0\0",
    b"\xff" * 8,
    (10**9).to_bytes(8, "little") + b"{}",
    pack(b""),
    pack(b"{"),
    pack(b"[" * 100_000),
    pack(b"\xff\xfe\xfd"),
    pack([]),
    pack(5),
    pack({"a": 1}),
    pack({"a": {"dtype": "F32", "shape": [2]}}),
    pack({"a": entry(dtype="F31")}, bytes(8)),
    pack({"a": entry(dtype=["F32"])}, bytes(8)),
    pack({"a": entry(shape=5)}, bytes(8)),
    pack({"a": entry(shape=[-2])}, bytes(8)),
    pack({"a": entry(shape=[True, 2])}, bytes(8)),
    pack({"a": entry(shape=[2.0])}, bytes(8)),
    pack({"a": entry(shape=[10**30])}, bytes(8)),
    pack({"a": entry(shape=[2**40, 2**40])}, bytes(8)),
    pack({"a": entry(shape=[3])}, bytes(8)),
    pack({"a": entry(shape=[])}, bytes(8)),
    pack({"a": entry(dtype="F64")}, bytes(8)),
    pack({"a": entry(offsets=[0])}, bytes(8)),
    pack({"a": entry(offsets=[8, 0])}, bytes(8)),
    pack({"a": entry(offsets=[-8, 0])}, bytes(8)),
    pack({"a": entry(offsets="08")}, bytes(8)),
    pack({"a": entry()}, bytes(7)),
    pack({"a": entry(offsets=[2**61, 2**61 + 8])}),
    pack({"a": entry()}, bytes(9)),
    pack({"a": entry(), "b": entry()}, bytes(8)),
    pack({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)),
    pack({"a": entry(offsets=[8, 16])}, bytes(16)),
    pack({"x" * 10**6: 5}),
]


@pytest.mark.parametrize("raw", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_header(weights, raw):
    weights.write_bytes(raw)
    message = refuses(
        weights.parent, rf"model.safetensors \({len(raw)} bytes\) is no whole safetensors file: .{{8,}}: copy or download it again"
    )
    assert len(message) < 800


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (pack({"a": entry(shape=[2] + [1] * 99)}, bytes(8)), r"tensor 'a' has shape \[2, 1, .*dimension"),
        (pack({"a": entry(shape=[0, 2**61], offsets=[0, 0])}), r"tensor 'a' has shape \[0, 2305843009213693952\]: .*too big"),
        (pack(b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2), bytes(8)), "an object names 'a' twice"),
    ],
    ids=["dimensions", "size", "twice"],
)
def test_a_sound_header_that_cannot_be_used(weights, header, said):
    weights.write_bytes(header)
    refuses(weights.parent, said)


def test_truncated_at_every_interesting_place(weights):
    raw = weights.read_bytes()
    begin = len(raw) - len(unpack(raw)[1])
    ends = [end for e in unpack(raw)[0].values() if "shape" in e for end in e["data_offsets"]]
    for size in sorted({*range(12), begin // 2, begin - 1, begin, begin + 1, *(begin + end for end in ends), len(raw) - 1} - {len(raw)}):
        weights.write_bytes(raw[:size])
        refuses(weights.parent, rf"\({size} bytes\) is no whole safetensors file: ")
    weights.write_bytes(raw + b"\0")
    refuses(weights.parent, rf"\({len(raw) + 1} bytes\) is no whole safetensors file: ")
    weights.write_bytes(raw)
    fastinfer.load(weights.parent)


def test_tensors_stored_by_others_are_named(weights):
    header, data = unpack(weights.read_bytes())
    header["position_ids"] = entry("I64", [1, 4], [len(data), len(data) + 32])
    weights.write_bytes(pack(header, data + bytes(32)))
    refuses(weights.parent, r"surplus    'position_ids' \(32,\) I64")


# --- shards ----------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path):
    builders.save(tmp_path, CONFIG, max_shard_bytes=2000)
    return tmp_path


def edit(folder, **names):
    """Change the weight_map of an index: place a name in another file, or remove it for None."""
    path = folder / "model.safetensors.index.json"
    data = json.loads(path.read_text())
    places = {k: v for k, v in (data["weight_map"] | names).items() if v is not None}
    path.write_text(json.dumps({"weight_map": places}))


def test_missing_shards(shards):
    first, second = sorted(shards.glob("model-*"))[:2]
    first.unlink()
    second.unlink()
    refuses(shards, f"index.json names shards that are missing: '{first.name}', '{second.name}'")


@pytest.mark.parametrize("place", ["../x.safetensors", "/etc/passwd", "a/b", "./model.safetensors", "a/.."])
def test_shards_outside_the_folder(shards, place):
    edit(shards, extra=place)
    refuses(shards, f"index.json names files outside the folder: '{re.escape(place)}'")


@pytest.mark.parametrize("place", ["", ".", "..", "\0", "x" * 5000])
def test_shards_that_are_no_files(shards, place):
    edit(shards, extra=place)
    refuses(shards, "index.json names .*(missing|outside)")


def test_an_index_that_disagrees_with_its_shards(shards):
    last = max(shards.glob("model-*")).name
    edit(shards, extra=last)
    refuses(shards, "places tensors in shards that do not hold them: 'extra'")
    name = "layers.0.attention.norm.weight"
    edit(shards, extra=None, **{name: last})
    refuses(shards, f"holds '{name}', which model.safetensors.index.json places in {last}")
    edit(shards, **{name: None})
    refuses(shards, f"holds '{name}', which model.safetensors.index.json places in no file")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": null}}'])
def test_an_index_that_is_none(shards, text):
    (shards / "model.safetensors.index.json").write_text(text)
    refuses(shards, r"index.json (cannot be read as JSON|has no weight_map, expected an object of tensor names)", fastinfer.FastinferError)


# --- tensors that do not fit the config ------------------------------------------------------------


def change(path, name, tensor):
    """Replace one tensor of a safetensors file, or remove it for None, without the project's code."""
    header, data = unpack(path.read_bytes())
    header.pop("__metadata__", None)
    parts = {n: (e["dtype"], e["shape"], data[slice(*e["data_offsets"])]) for n, e in header.items()}
    parts.pop(name, None)
    if tensor is not None:
        parts[name] = (checkpoint.DTYPES[tensor.dtype][0], tensor.data.shape, tensor.data.tobytes())
    header, data = {}, b""
    for key, (dtype, shape, raw) in parts.items():
        header[key] = entry(dtype, shape, [len(data), len(data) + len(raw)])
        data += raw
    path.write_bytes(pack(header, data))


def zeros(*shape, dtype="float32"):
    return Tensor(np.zeros(shape, checkpoint.DTYPES[dtype][1]), dtype)


def test_every_fault_in_one_message(weights):
    change(weights, "embedding.word", None)
    change(weights, "layers.0.attention.qkv.bias", None)
    change(weights, "colour", zeros(2, 3, dtype="int8"))
    change(weights, "embedding.position", zeros(16, 8))
    change(weights, "layers.0.attention.norm.weight", zeros(16, dtype="float16"))
    said = refuses(weights.parent, "5 tensors not as config.json says")
    for line in (
        "missing    embedding.word (24, 16) float32",
        "missing    layers.0.attention.qkv.bias (48,) float32",
        "surplus    'colour' (2, 3) int8",
        "shape      embedding.position is (16, 8), expected (8, 16)",
        "dtype      layers.0.attention.norm.weight is float16, expected float32",
        "convert the original with fastinfer convert",
    ):
        assert line in said


@pytest.mark.parametrize("nodes", [14, 16, 1, 0, 7])
def test_trees_of_another_size(weights, nodes):
    change(weights, "layers.0.ffn.nodes", zeros(2, nodes, 2, 16))
    said = refuses(
        weights.parent, rf"layers.0.ffn.nodes is \(2, {nodes}, 2, 16\), expected \(2, 15, 2, 16\) = \(trees, nodes, in\|out, hidden\)"
    )
    assert (f"{nodes} nodes are not a full tree (2**k - 1)" in said) == (nodes in (14, 16))


def test_more_embeddings_than_the_config_says(weights):
    change(weights, "embedding.word", zeros(25, 16))
    refuses(weights.parent, r"shape      embedding.word is \(25, 16\), expected \(24, 16\)")


@pytest.mark.parametrize("shape", [(), (0,), (24,), (24, 16, 1), (16, 24), (0, 16)])
def test_wrong_shapes(weights, shape):
    change(weights, "embedding.word", zeros(*shape))
    refuses(weights.parent, rf"shape      embedding.word is {re.escape(str(shape))}, expected \(24, 16\)")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "int32"])
def test_wrong_dtypes(weights, dtype):
    change(weights, "embedding.word", zeros(24, 16, dtype=dtype))
    refuses(weights.parent, f"dtype      embedding.word is {dtype}, expected float32")


def test_scales_of_int8(tmp_path):
    config = builders.tiny(stored=Stored("int8", "float32", "int8"))
    for tensor, said in (
        (None, r"missing    layers.0.ffn.nodes.scale \(2, 15, 2\) float32"),
        (zeros(2, 15), r"layers.0.ffn.nodes.scale is \(2, 15\), expected \(2, 15, 2\)"),
        (zeros(2, 15, 2, dtype="float16"), "layers.0.ffn.nodes.scale is float16, expected float32"),
        (Tensor(np.full((2, 15, 2), np.nan, np.float32), "float32"), "NaN or infinite:\n  layers.0.ffn.nodes.scale: 60 of 60"),
    ):
        builders.save(tmp_path, config)
        change(tmp_path / "model.safetensors", "layers.0.ffn.nodes.scale", tensor)
        refuses(tmp_path, said)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(tmp_path, dtype, bad):
    config = builders.tiny(stored=Stored(trees=dtype))
    made = builders.weights(config)
    values = made["layers.0.ffn.nodes"].float32().copy()
    values[1, 2, 0, 3:5] = bad
    bias = made["layers.0.ffn.norm.bias"].float32().copy()
    bias[1] = bad
    made |= {"layers.0.ffn.nodes": Tensor(values, "float32").to(dtype), "layers.0.ffn.norm.bias": Tensor(bias, "float32")}
    checkpoint.save(tmp_path, config, made)
    for options in ({}, {"validate": True}):
        said = refuses(tmp_path, "weights that are NaN or infinite:", **options)
        assert f"layers.0.ffn.nodes: 2 of {values.size}" in said
        assert "layers.0.ffn.norm.bias: 1 of 16" in said
    for device in backends.ALL:
        model = fastinfer.load(tmp_path, device=device, validate=False)
        with np.errstate(all="ignore"):
            assert model.hidden_states(fastinfer.PackedBatch.from_ids([[1, 2, 3]]))[0].shape == (3, 16)


# --- pruned trees ----------------------------------------------------------------------------------


def table(*rows):
    return np.array([rows], np.int32)


STOP = (-1, -1)
TABLES = [
    (table((1, 2), STOP, (3, -1), STOP), 2, None),
    (table((1, 1), (2, -1), STOP), 2, None),
    (table((1, 2), STOP, (3, -1), STOP), 1, r"\[0\] leads to node 3 after more than depth=1 decisions"),
    (table((1, -1), STOP), 0, r"\[0\] leads to node 1 after more than depth=0 decisions"),
    (table((1, 2), STOP), 1, r"\[0, 0, 1\] is 2, expected -1 \(stop\) or a node from 0 to 1"),
    (table((1, -2), STOP), 1, r"\[0, 0, 1\] is -2, expected -1 \(stop\) or a node"),
    (table((1, 2**31 - 1), STOP), 1, r"\[0, 0, 1\] is 2147483647, expected"),
    (table((0, -1)), 1, r"\[0, 0, 0\] is 0, expected a node after 0: children follow their parent, or a walk could loop"),
    (table((1, -1), (-1, 1)), 3, r"\[0, 1, 1\] is 1, expected a node after 1"),
    (table((2, -1), STOP, (-1, 1)), 3, r"\[0, 2, 1\] is 1, expected a node after 2"),
    (table((1, -1), (0, -1)), 3, r"\[0, 1, 0\] is 0, expected a node after 1"),
]


@pytest.mark.parametrize(("children", "depth", "said"), TABLES, ids=range(len(TABLES)))
def test_tables_of_children(children, depth, said):
    if said is None:
        check_children(children, depth, "table")
        return
    with pytest.raises(ERROR, match=rf"^table{said}"):
        check_children(children, depth, "table")
    good = np.full_like(children, -1)
    with pytest.raises(ERROR, match=said.replace(r"\[0", r"\[1", 1)):
        check_children(np.concatenate([good, children]), depth, "table")


def test_a_broken_table_in_a_file(tmp_path):
    config = builders.tiny(ffn=(FFF(2, 3, children=True, nodes=9),))
    builders.save(tmp_path, config)
    broken = np.full((2, 9, 2), -1, np.int32)
    broken[1, 4, 0] = 9
    change(tmp_path / "model.safetensors", "layers.0.ffn.children", Tensor(broken, "int32"))
    refuses(tmp_path, r"layers.0.ffn.children\[1, 4, 0\] is 9, expected -1 \(stop\) or a node from 0 to 8")


def test_a_million_trees_are_checked_quickly():
    children = np.full((1_000_000, 3, 2), -1, np.int32)
    children[:, 0] = 1, 2
    check_children(children, 1, "table")
    children[-1, 2, 0] = 1
    with pytest.raises(ERROR, match=r"\[999999, 2, 0\] is 1, expected a node after 2"):
        check_children(children, 1, "table")


# --- a fuzz ----------------------------------------------------------------------------------------

FUZZED = [
    (builders.tiny(), None),
    (builders.tiny(ffn=(FFF(2, 2, dense=3, children=True, nodes=6),), stored=Stored("int8", "float16", "int8")), None),
    (builders.tiny(layers=2, ffn=(Dense(4), FFF(1, 3)), positions=Positions("scaled-sinusoidal", 8), token_types=2), 2500),
]
NUMBERS = [b"0", b"1", b"-1", b"2", b"17", b"65536", b"2147483648", b"4294967297", b"9223372036854775807", b"18446744073709551616"]
NUMBERS += [b"1" + b"0" * 30, b"1e999", b"1.5", b"true", b"null", b'"1"', b"[]", b"[[[]]]", b"{}", b"NaN", b"1" * 5000]
BATCH = fastinfer.PackedBatch.from_ids([[1, 2, 3], [0]])


def mutate(rng, name, raw):
    """`raw` with one fault: it is cut, a bit or bytes differ, or a number of its JSON is replaced."""
    begin = 0
    if name.endswith(".safetensors"):
        begin = 8 + int.from_bytes(raw[:8], "little")
    kind = rng.choice(["cut", "bit", "bytes", "number", "number"])
    if kind == "cut":
        return raw[: rng.randrange(rng.choice([len(raw), begin or len(raw)]))]
    if kind == "number":
        text = raw[8:begin] if begin else raw
        place = rng.choice(list(re.finditer(rb"(?<=[\[,: ])-?[0-9][0-9.e-]*(?=[\],}\s])", text)))
        text = text[: place.start()] + rng.choice(NUMBERS) + text[place.end() :]
        return pack(text, raw[begin:]) if begin else text
    changed = bytearray(raw)
    reach = rng.choice([len(raw), begin or len(raw)])
    for _ in range(1 if kind == "bit" else rng.randint(1, 8)):
        at = rng.randrange(reach)
        changed[at] = changed[at] ^ (1 << rng.randrange(8)) if kind == "bit" else rng.randrange(256)
    return bytes(changed)


def fuzz(seed, rounds):
    """Break checkpoints at random. Returns how many were loaded and how many refused with their place. Other errors are raised."""
    rng = random.Random(seed)
    loaded = refused = 0
    with tempfile.TemporaryDirectory() as temporary:
        for i, (config, shard) in enumerate(FUZZED):
            folder = Path(temporary, str(i))
            builders.save(folder, config, max_shard_bytes=shard)
            whole = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
            for _ in range(rounds):
                name = rng.choice(sorted(whole))
                broken = mutate(rng, name, whole[name])
                (folder / name).write_bytes(broken)
                try:
                    run(folder, rng.choice(backends.ALL))
                    loaded += 1
                    if name.endswith(".safetensors"):
                        safetensors.safe_open(folder / name, framework="numpy").__enter__()
                except fastinfer.FastinferError as error:
                    refused += str(folder) in str(error)
                except BaseException as error:
                    raise AssertionError(f"seed {seed}, round {loaded + refused}, {name} of FUZZED[{i}]: {type(error).__name__}") from error
                (folder / name).write_bytes(whole[name])
            run(folder, "cpu")
    return loaded, refused


def run(folder, device):
    """Load a checkpoint, use every head, and check the shapes of outputs."""
    model = fastinfer.load(folder, device=device)
    c = model.config
    batch = BATCH if c.vocabulary > 3 and c.positions.max > 2 else fastinfer.PackedBatch.from_ids([[0]])
    tokens = batch.lengths.tolist()
    with np.errstate(all="ignore"):
        assert [h.shape for h in model.hidden_states(batch)] == [(n, c.hidden) for n in tokens]
        for task in model.tasks:
            if task == "embed":
                assert model.embed(batch).shape == (len(tokens), c.hidden)
            else:
                assert len(model.logits(batch, task=task, positions="all")) == len(tokens)


@pytest.mark.parametrize("seed", range(3))
def test_fuzz(seed):
    loaded, refused = fuzz(seed, 250)
    assert loaded > 40
    assert loaded + refused == 3 * 250, "a message does not name the file"


def test_fuzz_with_little_memory():
    """No number in a file makes the loader allocate: 300 MiB more than a valid checkpoint needs are enough."""
    resource = pytest.importorskip("resource")
    code = (
        "import re, resource, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import test_bad_input\n"
        "test_bad_input.backends.ALL.remove('cuda') if 'cuda' in test_bad_input.backends.ALL else None\n"  # its driver maps terabytes
        "test_bad_input.fuzz(100, 1)\n"
        "used = 1024 * int(re.search(r'VmSize:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        f"resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20), {resource.RLIM_INFINITY}))\n"
        "print(*test_bad_input.fuzz(101, 250))\n"
    )
    if not os.path.exists("/proc/self/status"):
        pytest.skip("reads /proc")
    one = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # each of numpy's threads takes memory
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300, env=one)
    assert done.returncode == 0, done.stderr[-3000:]
    loaded, refused = map(int, done.stdout.split())
    assert loaded > 40
    assert loaded + refused == 3 * 250


# --- ids and arrays to a model ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    builders.save(folder, CONFIG)
    return fastinfer.load(folder, device="numpy")


def test_ids_that_the_model_does_not_have(model):
    for ids, said in (
        ([[1, 2], [3, 24]], "ids of text 1, token 1 is 24, expected 0 to 23"),
        ([[-1]], "ids of text 0, token 0 is -1, expected 0 to 23"),
        ([[1], [2] * 9], "text 1 has 9 tokens, expected at most 8, the model's positions"),
    ):
        with pytest.raises(fastinfer.InputError, match=said):
            model.hidden_states(fastinfer.PackedBatch.from_ids(ids))
    with pytest.raises(fastinfer.InputError, match="token_types of text 0, token 1 is 1, expected 0 to 0"):
        model.hidden_states(fastinfer.PackedBatch.from_ids([[1, 2]], [[0, 1]]))
    for cu in ([0, 1], [1, 2], [0, 2, 2], [0, 3, 2], [], [0]):
        with pytest.raises(fastinfer.ShapeError, match="cu_seqlens does not rise from 0 to the 2 ids given"):
            model.hidden_states(fastinfer.PackedBatch(np.array([1, 2], np.int32), np.array(cu, np.int32)))


def test_arguments_that_cannot_be(model):
    batch = fastinfer.PackedBatch.from_ids([[1, 2]])
    for layers in (5, (), (2,), (-2,), (True,), ("0",), "0", None, 1.5):
        expected = r"expected (a tuple of integers from 0|an integer from -1) to 1.*-1 for the final norm"
        with pytest.raises(fastinfer.InputError, match=rf"layers.* is .*, {expected}"):
            model.hidden_states(batch, layers=layers)
    for tokens in (0, -1, 1.5, True, "9"):
        with pytest.raises(fastinfer.InputError, match=r"batch_tokens is .*, expected an integer of at least 1"):
            model.hidden_states(batch, batch_tokens=tokens)
    for task in ("colour", 5, [], "names", "__class__"):
        with pytest.raises(fastinfer.TaskError, match=r"has no .* head; it has embed, fill_mask"):
            model.logits(batch, task=task)
    with pytest.raises(fastinfer.InputError, match="needs a tokenizer"):
        model.embed("text")


def test_an_empty_batch(model):
    empty = fastinfer.PackedBatch.from_ids([])
    assert model.hidden_states(empty) == []
    assert model.embed(empty).shape == (0, 16)
    assert model.routes(empty) == []
    assert model.logits(empty, task="classify").shape == (0, 2)
    assert model.logits(empty, task="tag") == []


# --- arrays to fff and FFF -------------------------------------------------------------------------

RNG = np.random.default_rng(0)


def trees(depth=2, count=2, hidden=6):
    shape = (count, tree_nodes(depth), hidden)
    return {
        "w_in": RNG.normal(size=shape).astype(np.float32),
        "b_in": RNG.normal(size=shape[:2]).astype(np.float32),
        "w_out": RNG.normal(size=shape).astype(np.float32),
        "depth": depth,
    }


X = RNG.normal(size=(5, 6)).astype(np.float32)
SHAPE, DTYPE, INPUT = fastinfer.ShapeError, fastinfer.DtypeError, fastinfer.InputError
ARRAYS = [
    ({"x": X[0]}, SHAPE, r"x is \(6,\), expected \(T, 6\)\n  hidden=6 comes from w_in"),
    ({"x": X[None]}, SHAPE, r"x is \(1, 5, 6\), expected \(T, 6\)"),
    ({"x": np.float32(1)}, DTYPE, "x is a float32, expected a numpy array of float32"),
    ({"x": np.array(1, np.float32)}, SHAPE, r"x is \(\), expected \(T, 6\)"),
    ({"x": np.zeros((5, 7), np.float32)}, SHAPE, r"x is \(5, 7\), expected \(T, 6\)"),
    ({"x": X.tolist()}, DTYPE, "x is a list, expected a numpy array of float32"),
    ({"x": X.astype(float)}, DTYPE, r"x has dtype float64, expected float32: convert it with x.astype\(np.float32\)"),
    ({"x": X.astype(int)}, DTYPE, "x has dtype int64, expected float32"),
    ({"x": X.astype(object)}, DTYPE, "x has dtype object, expected float32"),
    ({"x": X.astype(">f4")}, DTYPE, "x has dtype >f4, expected float32"),
    ({"x": np.zeros((10, 6), np.float32)[::2]}, SHAPE, r"x has strides .*: use np.ascontiguousarray\(x\)"),
    ({"x": np.asfortranarray(X)}, SHAPE, "x has strides .*, expected a C-contiguous"),
    ({"x": np.frombuffer(bytes(121), np.uint8)[1:].view(np.float32).reshape(5, 6)}, SHAPE, "x has strides .*aligned"),
    ({"out": X}, INPUT, "out overlaps x"),
    ({"out": np.zeros((4, 6), np.float32)}, SHAPE, r"out is \(4, 6\), expected \(5, 6\)\n  out has the shape of x"),
    ({"out": np.zeros((5, 6))}, DTYPE, "out has dtype float64"),
    ({"out": np.broadcast_to(np.float32(0), (5, 6))}, SHAPE, "out has strides"),
    ({"out": np.frombuffer(bytes(120), np.float32).reshape(5, 6)}, INPUT, "out is read-only"),
    ({"out": [0]}, DTYPE, "out is a list"),
    ({"depth": -1}, INPUT, "depth is -1, expected an integer from 0 to 15"),
    ({"depth": 16}, INPUT, "depth is 16, expected an integer from 0 to 15"),
    ({"depth": True}, INPUT, "depth is True, expected an integer from 0 to 15"),
    ({"depth": 2.0}, INPUT, "depth is 2.0, expected an integer"),
    ({"depth": None}, INPUT, "depth is None, expected an integer"),
    ({"depth": np.int64(3)}, SHAPE, r"w_in is \(2, 7, 6\), expected \(trees, 15, hidden\)"),
    ({"depth": np.uint8(15)}, SHAPE, r"w_in is \(2, 7, 6\), expected \(trees, 65535, hidden\)"),
    ({"depth": np.array(3)}, SHAPE, r"w_in is \(2, 7, 6\), expected \(trees, 15, hidden\)"),
    ({"depth": np.int64(16)}, INPUT, "depth is .*16.*, expected an integer from 0 to 15"),
    ({"depth": np.bool_(True)}, INPUT, "depth is .*True.*, expected an integer from 0 to 15"),
    ({"depth": np.float32(2)}, INPUT, "depth is .*2.0.*, expected an integer"),
    ({"depth": 3}, SHAPE, r"w_in is \(2, 7, 6\), expected \(trees, 15, hidden\)\n  a tree of depth=3 has N = .* = 15 nodes"),
    ({"w_in": np.zeros((7, 6), np.float32)}, SHAPE, r"w_in is \(7, 6\), expected \(trees, 7, hidden\)"),
    ({"w_in": np.zeros((0, 7, 6), np.float32)}, SHAPE, r"w_in is \(0, 7, 6\), expected \(1, 7, 6\)"),
    ({"w_in": np.zeros((2, 7, 0), np.float32)}, SHAPE, r"w_in is \(2, 7, 0\), expected \(2, 7, 1\)"),
    ({"w_in": [[[0.0]]]}, DTYPE, "w_in is a list"),
    ({"w_out": np.zeros((2, 7, 5), np.float32)}, SHAPE, r"w_out is \(2, 7, 5\), expected \(2, 7, 6\)"),
    ({"b_in": np.zeros((2, 6), np.float32)}, SHAPE, r"b_in is \(2, 6\), expected \(2, 7\)"),
    ({"b_in": 0.0}, DTYPE, "b_in is a float"),
    ({"b_out": np.zeros(5, np.float32)}, SHAPE, r"b_out is \(5,\), expected \(6,\)"),
    ({"dense": X}, DTYPE, r"dense is expected to be a tuple \(w_in, b_in, w_out\)"),
    ({"dense": (X[:0], None, X[:0])}, SHAPE, r"dense w_in is \(0, 6\), expected at least one neuron that is always on, or dense=None"),
    ({"dense": (X, None, X[:4])}, SHAPE, r"dense w_out is \(4, 6\), expected \(5, 6\)"),
    ({"dense": (X, X, X)}, SHAPE, r"dense b_in is \(5, 6\), expected \(5,\)"),
    ({"activation": "relo"}, INPUT, "activation is 'relo', expected one of gelu, tanh, relu, silu, gelu_tanh: did you mean relu"),
    ({"activation": None}, INPUT, "activation is None, expected one of gelu"),
    ({"leaf": 0}, INPUT, "leaf is 0, expected an integer from 1 to 65536"),
    ({"leaf": 2.0}, INPUT, "leaf is 2.0, expected an integer"),
    ({"leaf": 3}, SHAPE, r"w_in is \(2, 7, 6\), expected \(trees, 15, hidden\)\n  a tree of depth=2 and leaf=3 has N = "),
    ({"silent": 1}, INPUT, "silent is 1, expected True or False"),
    ({"b_leaf": np.zeros((2, 3, 6), np.float32)}, SHAPE, r"b_leaf is \(2, 3, 6\), expected \(2, 4, 6\)"),
    ({"b_leaf": np.zeros((2, 4, 6))}, DTYPE, "b_leaf has dtype float64"),
    ({"outputs": 5}, SHAPE, r"w_out is \(2, 7, 6\), expected \(2, 7, 5\)"),
    ({"outputs": 0}, INPUT, "outputs is 0, expected an integer"),
    ({"outputs": 7, "w_out": np.zeros((2, 7, 7), np.float32), "out": np.zeros((5, 6), np.float32)}, SHAPE, r"out is .*, expected \(5, 7\)"),
]


@pytest.mark.parametrize(("changes", "kind", "said"), ARRAYS, ids=range(len(ARRAYS)))
def test_arrays_that_cannot_be(changes, kind, said):
    for device in backends.ALL:
        with pytest.raises(kind, match=said):
            fastinfer.fff(**{"x": X, **trees(), "device": device} | changes)


class Index:
    """An integer that is neither an int nor a NumPy integer."""

    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value


INTEGERS = [np.int8, np.uint8, np.int64, np.uint64, lambda v: np.array(v, np.int32), Index]


@pytest.mark.parametrize("integer", INTEGERS)
def test_integers_of_every_kind_are_ints(integer, model):
    arguments = trees()
    for device in backends.ALL:
        layer = fastinfer.FFF(**arguments | {"depth": integer(2)}, device=device)
        assert type(layer.depth) is int
        np.testing.assert_array_equal(layer(X, threads=integer(2)), fastinfer.fff(X, **arguments, device=device))

    config = fastinfer.Config.from_json(json.loads(model.config.to_json()))
    assert Dense(integer(3)) != config.ffn[0]
    changed = fastinfer.Config(**vars(config) | {"vocabulary": integer(97), "ffn": [FFF(integer(2), integer(3))] * config.layers})
    assert fastinfer.Config.from_json(json.loads(changed.to_json())) == changed
    assert {type(changed.vocabulary), type(changed.ffn[0].trees), type(changed.ffn[0].depth)} == {int}

    batch = fastinfer.PackedBatch.from_ids([[1, 2, 3]] * 100)  # 300 tokens: batches begin at indices beyond uint8
    want = model.hidden_states(batch, layers=(1,), batch_tokens=120)
    for got, right in zip(model.hidden_states(batch, layers=(integer(1),), batch_tokens=integer(120)), want, strict=True):
        np.testing.assert_array_equal(got, right)
    top = model.classify(batch, top_k=integer(1), threads=integer(1))
    assert [len(answer) for answer in top] == [1] * 100


def test_a_size_that_cannot_be_compared_is_refused():
    """A size of another type raises TypeError, and never counts as equal."""
    for sizes in ((5.0, 6), (None, 6), (5, np.float64(6))):
        with pytest.raises(TypeError):
            check_array("x", X, sizes)
    for sizes in ((np.int64(4), 6), (5, np.uint8(7)), (Index(6), "D")):
        with pytest.raises(SHAPE, match=r"x is \(5, 6\), expected"):
            check_array("x", X, sizes)
    check_array("x", X, (np.int64(5), Index(6)))


COMPILED = pytest.mark.skipif(not backends.COMPILED, reason="the compiled module is not built")


@COMPILED
def test_int8_products_whose_sums_would_not_fit():
    w = np.ones((140_000, 2), np.float32)
    x = np.ones((1, 2), np.float32)
    tree = np.zeros((1, 1, 2), np.float32)
    arguments = {"w_in": tree, "b_in": None, "w_out": tree, "depth": 0}
    with pytest.raises(SHAPE, match=r"inputs of an int8 matrix is 140000, expected 1 to 131072 .*: compute in another dtype"):
        fastinfer.FFF(**arguments, dense=(w, None, w), device="cpu", dtype="int8")
    assert fastinfer.fff(x, **arguments, dense=(w, None, w), device="cpu", dtype="bfloat16").min() > 140_000
    # The most inputs, all at the largest value: the sum of 2**17 * 127 * 127 is the largest.
    ops = fastinfer.backends.get("cpu", dtype="int8")
    most = ops.matrix(Tensor(np.ones((1, 1 << 17), np.float32), "float32"))
    out = np.empty((2, 1), np.float32)
    ops.linear(np.ones((2, 1 << 17), np.float32), most, out=out)
    np.testing.assert_allclose(out, 1 << 17, rtol=1e-5)


@COMPILED
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory that is not there until it is used is mapped the way of Linux")
def test_more_rows_than_the_kernels_count():
    """With 2**31 rows the kernels once left the output unchanged."""
    try:
        x, out = (np.frombuffer(mmap.mmap(-1, 4 << 31, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000), np.float32) for _ in range(2))
    except OSError as error:
        pytest.skip(f"no room to map two arrays of 8 GB that nobody touches: {error}")
    w = np.ones((1, 3, 1), np.float32)
    for depth in (0, 1):
        layer = fastinfer.FFF(w[:, : 2 * depth + 1].copy(), None, w[:, : 2 * depth + 1].copy(), depth=depth, device="cpu")
        for rows in (1 << 30, (1 << 31) - 1, 1 << 31):
            with pytest.raises(SHAPE, match=f"number of rows is {rows}, expected 0 to 1073741823 .*: pass them in parts"):
                layer(x[:rows, None], out=out[:rows, None])


@COMPILED
def test_the_compiled_module_checks_shapes_itself():
    """No kernel runs on an array that is too short, even if earlier checks miss it."""
    from fastinfer import _cpu

    kernels = _cpu.Kernels(backends.ISAS[0])

    def floats(*shape):
        return np.zeros(shape, np.float32)

    def ints(*values):
        return np.array(values, np.int32)

    nodes = floats(2, 7, 2, 6)
    for arguments in (
        (nodes, "float32", None, None, None, 3),
        (nodes, "float32", None, None, None, 16),
        (nodes, "float32", None, None, None, -1),
        (floats(2, 7, 1, 6), "float32", None, None, None, 2),
        (floats(0, 7, 2, 6), "float32", None, None, None, 2),
        (nodes, "float32", floats(2, 7, 2), None, None, 2),
        (nodes.astype(np.int8), "int8", None, None, None, 2),
        (nodes.astype(np.int8), "int8", floats(2, 7, 1), None, None, 2),
        (nodes, "float32", None, floats(2, 6), None, 2),
        (nodes, "float32", None, None, np.zeros((2, 7, 1), np.int32), 2),
    ):
        with pytest.raises(SHAPE):
            _cpu.Trees(*arguments, "gelu", False, None, None)
    trees = _cpu.Trees(nodes, "float32", None, None, None, 2, "gelu", False, None, None)
    pages = Pages()
    matrix = kernels.pack(floats(5, 6), "float32", None, "float32", pages.take, 1)
    right = {
        kernels.pack: (floats(5, 6), "float32", None, "float32", pages.take, 1),
        kernels.fff: (floats(4, 6), trees, floats(6), floats(4, 6), floats(4, 6), np.zeros((4, 2, 3), np.int32), floats(4, 2, 3), 1),
        kernels.gemm: (floats(4, 6), matrix, floats(5), None, None, floats(4, 5), floats(4, 5), 1),
        kernels.norm: (floats(4, 6), floats(6), floats(6), 0.0, floats(4, 6), 1),
        kernels.embed: (
            *(ints(1, 2, 0, 1), ints(0, 1, 2, 3), ints(0, 0, 1, 1), floats(3, 6), "float32", None),
            *(floats(4, 6), floats(2, 6), floats(6), floats(6), 0.0, floats(4, 6), 1),
        ),
        kernels.attention: (floats(4, 48), ints(0, 1, 4), 2, 0, False, None, None, ints(1, 2), floats(4, 16), "float32", 1),
        kernels.array: ("gelu", floats(4), floats(4)),
    }
    for call, arguments in right.items():
        call(*arguments)
        for i, array in enumerate(arguments):
            if not isinstance(array, np.ndarray) or (call in (kernels.pack, kernels.embed) and array.ndim == 2 and i == 0):
                continue
            for axis in range(array.ndim):
                if call == kernels.pack or (call == kernels.embed and axis == 0 and array.ndim == 2 and array is not arguments[11]):
                    continue  # any number of rows: they are what the others are checked against, or what ids are
                short = np.ascontiguousarray(np.delete(array, -1, axis))
                with pytest.raises(SHAPE):
                    call(*arguments[:i], short, *arguments[i + 1 :])
    for cu, heads in (
        (ints(0, 3, 2, 4), 2),
        (ints(1, 4), 2),
        (ints(0, 5), 2),
        (ints(0), 2),
        (ints(0, 4), 0),
        (ints(0, 4), 3),
        (ints(0, 4), 1 << 30),
    ):
        with pytest.raises(SHAPE):
            kernels.attention(floats(4, 48), cu, heads, 0, False, None, None, None, floats(4, 16), "float32", 1)
    for keys, window in ((ints(1), 0), (ints(0, 1), 0), (ints(1, 3), 0), (ints(3, -1), 0), (ints(1, 1), 2)):
        with pytest.raises(SHAPE):
            kernels.attention(floats(4, 48), ints(0, 2, 4), 2, window, False, None, None, keys, floats(4, 16), "float32", 1)


def test_routes_check_their_array():
    layer = fastinfer.FFF(**trees())
    with pytest.raises(SHAPE, match=r"x is \(5, 5\), expected \(T, 6\)"):
        layer.routes(np.zeros((5, 5), np.float32))


def test_an_output_that_overlaps_in_part():
    both = np.zeros((8, 6), np.float32)
    with pytest.raises(INPUT, match="out overlaps x"):
        fastinfer.fff(both[:5], **trees(), out=both[3:])
    fastinfer.fff(both[:4], **trees(), out=both[4:])


@pytest.mark.parametrize("device", backends.ALL)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(device, bad):
    """They reach the output of their token, and other tokens do not change. A NaN logit is not > 0, so the walk goes left."""
    arguments = trees(depth=3)
    layer = fastinfer.FFF(**arguments, device=device)
    x = np.zeros((7, 6), np.float32)
    x[:5] = X
    clean = layer(x)
    x[2, 1] = bad
    with np.errstate(all="ignore"):
        out, (nodes, z) = layer(x), layer.routes(x)
    assert not np.isfinite(out[2]).any()
    assert nodes.min() >= 0
    assert nodes.max() < 15
    np.testing.assert_array_equal(nodes[..., 1:], 2 * nodes[..., :-1] + 1 + (z[..., :-1] > 0))
    np.testing.assert_array_equal(np.delete(out, 2, 0), np.delete(clean, 2, 0))
    if np.isnan(bad):
        np.testing.assert_array_equal(nodes[2], [[0, 1, 3, 7]] * 2)
        assert np.isnan(z[2]).all()


def test_weights_that_are_changed_later_do_not_reach_the_layer():
    arguments = trees()
    layer = fastinfer.FFF(**arguments)
    before = layer(X)
    for name in ("w_in", "b_in", "w_out"):
        arguments[name][:] = np.nan
    np.testing.assert_array_equal(layer(X), before)
