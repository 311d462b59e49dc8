"""The GPU kernels as one program, and the host's launches of it. This needs NVRTC, but no GPU: NumPy's arrays replace CuPy's."""

import ctypes
import re
import sys
from types import SimpleNamespace

import builders
import numpy as np
import pytest

import fastinfer
from fastinfer import checkpoint
from fastinfer.backends.cuda import attention, compiler, fff, kernels, session, shared
from fastinfer.bench.cases import FFFCase
from fastinfer.config import (
    FFF,
    Alibi,
    Attention,
    Buckets,
    Classify,
    Dense,
    Disentangled,
    Embed,
    FillMask,
    Gated,
    Ids,
    Norm,
    Positions,
    Project,
    Tag,
    Tasks,
    Unit,
)

ARCHITECTURES = ("sm_70", "sm_80", "sm_90a")
TREES = ("-DACT_HALF", "-DHIDDEN=64", "-DDEPTH=3")


@pytest.fixture(scope="module")
def nvrtc():
    pytest.importorskip("cupy", reason="CuPy, which calls the compiler, is not installed")
    try:
        return compiler.compiler()
    except fastinfer.BackendError as error:
        pytest.skip(str(error))


# --- sources ---


def test_the_program_has_every_source_once():
    """kernels.cu lists all includes. A listed file includes only its own parts."""
    texts = compiler.sources()
    included = [name for text in texts.values() for name in re.findall(r'^#include "(.*)"$', text, re.MULTILINE)]
    assert sorted([*included, compiler.PROGRAM]) == sorted(texts)


def test_an_error_of_the_compiler_names_file_and_line(nvrtc, monkeypatch):
    texts = compiler.sources()
    for name, options in (("rows.cuh", TREES), ("fff_few.cu", TREES), ("attention_mma.cuh", (*TREES[:2], "-DHEADS=2"))):
        monkeypatch.setattr(compiler, "sources", lambda name=name: texts | {name: texts[name] + "\nint broken = nothing;\n"})
        line = texts[name].count("\n") + 2
        with pytest.raises(fastinfer.BackendError, match=rf'\n  {name}\({line}\): error: .*\n.*\n.*\n *\n  .*"nothing" is undefined'):
            compiler.compile_kernels("sm_80", options)


STRUCTS = {
    "FFF": (fff.FFF_STRUCT, TREES),
    "Leaves": (fff.LEAVES_STRUCT, ("-DACT_HALF", "-DHIDDEN=64", "-DLEAVES")),
    "Scores": (attention.SCORES_STRUCT, ("-DACT_HALF", "-DHIDDEN=64", "-DHEADS=2", "-DSCORES", "-DRELATIVE")),
}


@pytest.mark.parametrize("struct", STRUCTS)
def test_a_struct_of_the_host_is_the_kernels(nvrtc, struct):
    """Host and kernels agree on the offset and size of each field and on the whole size. A table that differs does not compile."""
    table, options = STRUCTS[struct]

    def asserted(table):
        fields = ((name, *table.fields[name][:2]) for name in table.names)
        lines = [
            f'static_assert(__INTADDR__(&(({struct}*)0)->{name}) == {at} && sizeof({struct}::{name}) == {kind.itemsize}, "{name}");'
            for name, kind, at in fields
        ]
        return "\n".join([*lines, f'static_assert(sizeof({struct}) == {table.itemsize}, "the whole");\n'])

    compiler.compile_kernels("sm_80", options, more=asserted(table))
    swapped = [table.names[i] for i in (1, 0, *range(2, len(table.names)))]
    other = np.dtype([(name, table.fields[name][0]) for name in swapped], align=True)
    with pytest.raises(fastinfer.BackendError, match=f'static assertion failed with "{table.names[0]}"'):
        compiler.compile_kernels("sm_80", options, more=asserted(other))


def test_choices_have_the_same_numbers_on_both_sides():
    """The kernels use all names that the host defines, and no numbers instead."""
    given = dict(option.removeprefix("-D").split("=", 1) for option in shared.defines())
    used = set(re.findall(r"\b(?:KIND|POOL)_[A-Z_]+\b", "\n".join(compiler.sources().values())))
    assert used == {name for name in given if name.startswith(("KIND_", "POOL_"))}
    assert [given[f"KIND_{name}".upper()] for name in shared.ACTIVATIONS] == [str(i) for i in range(len(shared.ACTIVATIONS))]


# --- launches ---


class Array(np.ndarray):
    """A NumPy array with the attributes of CuPy's that the backend uses."""

    data = property(lambda self: SimpleNamespace(ptr=self.ctypes.data))

    def set(self, values):
        self[...] = values


class Pinned(bytearray):
    ptr = property(lambda self: ctypes.addressof(ctypes.c_char.from_buffer(self)))


class Context:
    def __init__(self, *_, **__):
        self.ptr, self.compute_capability = 1, "90"
        self.attributes = {"MultiProcessorCount": 132, "MaxSharedMemoryPerBlockOptin": 227 << 10}
        self.replays = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def nothing(self, *_):
        pass

    use = begin_capture = synchronize = record = upload = launch = nothing

    def end_capture(self):
        return Context()


class Module:
    """A program: its constants, and its kernels with their parameter types and threads per block."""

    def __init__(self, path):
        text = Module.texts[path]
        self.kernels = {}
        for name, parameters, rest in re.findall(r"\.visible \.entry (\w+)\(\s*(.*?)\s*\)(.*?)\{", text, re.DOTALL):
            types = re.findall(r"\.param (?:\.align \d+ )?\.(\w+) (?:\.ptr[^,]*? )?\w+(?:\[(\d+)\])?", parameters)
            self.kernels[name] = types, int(re.search(r"\.maxntid (\d+)", rest)[1])
        found = re.findall(r"\.global .*?\.b8 (\w+)\[(\d+)\] = \{([\d, ]+)\};", text)  # PTX omits zeros at the end
        self.constants = {name: bytes(map(int, values.split(","))).ljust(int(size), b"\0") for name, size, values in found}

    def get_function(self, name):
        return SimpleNamespace(kernel=SimpleNamespace(ptr=(name, *self.kernels[name])), shared_size_bytes=0)

    def get_global(self, name):
        return self.constants[name]


@pytest.fixture
def launched(nvrtc, monkeypatch):
    """The names of launched kernels, on a GPU that does nothing. Each launch is compared with its kernel."""
    names, Module.texts = [], {}

    def compiled(architecture, options):
        path = repr((architecture, options))
        if path not in COMPILED:
            COMPILED[path] = compiler.compile_kernels(architecture, options, kind="ptx")[0].decode()
        Module.texts[path] = COMPILED[path]
        return path

    def launch(function, blocks, threads, shared, stream, arguments, early):
        name, types, most = function
        given = [("b8", str(a.itemsize)) if isinstance(a, np.ndarray) else (KINDS[type(a)], "") for a in arguments]
        assert given == types, name
        assert threads == most, name
        assert all(n > 0 for n in blocks), name
        names.append(name)

    class Product:
        def __init__(self, device, act, rows, outputs, inputs, bias, residual):
            assert outputs % 8 == inputs % 8 == 0

        def candidates(self):
            return [b"one", b"two"]

        def __call__(self, x, weight, bias, residual, out, workspace, stream):
            assert x.shape == (len(out), weight.shape[1])
            assert out.shape[1] == len(weight)

    class HeadProduct:
        def __init__(self, device, act, rows, outputs, heads, size, strides, factor):
            self.shape, self.columns = (heads, rows, outputs), heads * size
            assert strides[0] == 3 * strides[1]
            assert outputs % 8 == size % 8 == 0

        def __call__(self, x, weight, bias, residual, out, workspace, stream):
            assert out.shape == self.shape
            assert (len(x), len(weight)) == self.shape[1:]
            assert min(x.shape[1], weight.shape[1]) >= self.columns

    monkeypatch.setattr(session, "HeadProduct", HeadProduct)
    monkeypatch.setattr(kernels, "cached_kernels", compiled)
    monkeypatch.setattr(kernels, "launch", launch)
    by_value = kernels.by_value
    monkeypatch.setattr(kernels, "by_value", lambda a: ctypes.c_void_p(a.data.ptr) if isinstance(a, Array) else by_value(a))
    monkeypatch.setattr(session, "Product", Product)
    monkeypatch.setattr(compiler, "compiler", lambda: nvrtc)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)
    monkeypatch.setitem(sys.modules, "cupy", cupy_of_numpy())
    return names


COMPILED = {}
KINDS = {ctypes.c_void_p: "u64", ctypes.c_int64: "u64", ctypes.c_int32: "u32", ctypes.c_float: "f32"}


def cupy_of_numpy():
    def copy(to, source, size, *_):
        ctypes.memmove(to, source, size)

    runtime = SimpleNamespace(
        getDeviceCount=lambda: 1, getDevice=lambda: 0, setDevice=lambda number: None, driverGetVersion=lambda: 13000,
        memGetInfo=lambda: (1, 2), memcpyAsync=copy, memcpyHostToDevice=1, memcpyDeviceToHost=2, CUDARuntimeError=OSError,
    )  # fmt: skip
    cuda = SimpleNamespace(
        runtime=runtime, Device=Context, Stream=Context, Event=Context, memory=SimpleNamespace(OutOfMemoryError=MemoryError),
        alloc_pinned_memory=lambda size: Pinned(size), get_current_stream=Context, get_elapsed_time=lambda begin, end: 1.0,
    )  # fmt: skip
    pool = SimpleNamespace(free_all_blocks=lambda: None)
    return SimpleNamespace(
        cuda=cuda, RawModule=Module, empty=lambda shape, dtype: np.zeros(shape, dtype).view(Array), asnumpy=np.asarray,
        ndarray=lambda count, dtype, values: np.frombuffer(values, dtype, count),
        ascontiguousarray=lambda a, dtype=None: np.ascontiguousarray(a, dtype).view(Array), isnan=np.isnan, where=np.where,
        arange=np.arange, from_dlpack=lambda a: a.array, get_default_memory_pool=lambda: pool, get_default_pinned_memory_pool=lambda: pool,
    )  # fmt: skip


VECTORS = Embed(("mean", "weightedmean"), True, (Unit(), Project(9, True, "tanh"), Unit(), Project(5, False)))
TASKS = Tasks(VECTORS, FillMask(True, tied=True, bias=True), Classify(("no", "yes"), "softmax", "cls"), Tag(("O", "B-x")))
MODELS = {
    "pre": {"norm": Norm("pre", 1e-12), "ffn": (FFF(1, 3), Dense(40), FFF(1, 3, children=True, nodes=11)), "final_norm": True},
    "post": {"norm": Norm("post", 1e-12), "ffn": (FFF(16, 3, dense=24, bias_out=True), FFF(1, 3), Dense(32))},
}
OTHERS = {
    "rotary": {
        "attention": (Attention(10000.0), Attention(100.0, 0.5, 8), Attention(window=8, causal=True)),
        "norm": Norm("pre", 1e-12, first=False),
    },
    "alibi": {"distances": Alibi(), "norm": Norm("post", 1e-12)},
    "buckets": {"distances": Buckets(), "norm": Norm("post", 1e-12)},
    "disentangled": {"distances": Disentangled(16, 64), "norm": Norm("post", 1e-12)},
    "narrow": {"embedding_width": 24, "norm": Norm("pre", 1e-12)},
}  # each with a gated, a dense and a fast feedforward


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("order", MODELS)
def test_every_launch_of_a_model_fits_its_kernel(launched, tmp_path, order, dtype):
    """A launch has the number, size and kind of arguments, and the threads per block, that its kernel expects."""
    options = {"hidden": 64, "heads": 1, "layers": 3, "vocabulary": 101, "positions": Positions("learned", 600), "max_tokens": 600}
    config = builders.tiny(**options | {"token_types": 2, "ids": Ids(0, 4, 2, 3), "tasks": TASKS} | MODELS[order])
    checkpoint.save(tmp_path, config, builders.weights(config))
    model = fastinfer.load(tmp_path, device="cuda", dtype=dtype)
    rng = np.random.default_rng(3)
    for lengths in ((1, 5, 17, 64), (300, 2, 500)):
        ids = [rng.integers(0, 101, n).tolist() for n in lengths]
        batch = fastinfer.PackedBatch.from_ids(ids, [rng.integers(0, 2, n).tolist() for n in lengths])
        assert model.embed(batch, normalize=False).shape == (len(lengths), 5)
        assert [[a.shape for a in text] for text in model.hidden_states(batch, layers=(0, 1, -1))] == [[(n, 64)] * 3 for n in lengths]
        assert [text[2] is None for text in model.routes(batch)] == [order == "post"] * len(lengths)
        assert [a.shape for a in model.logits(batch, task="fill_mask", positions="all")] == [(n, 101) for n in lengths]
        assert model.logits(batch, task="classify").shape == (len(lengths), 2)
    model.release()
    wanted = {"embed", "layer_norm", "attention", "pool", "unit", "fff_subtrees", "fff_tree_few"}
    wanted |= {"activate"} if dtype == "float32" else {"product_2_3", "to_float32"}
    wanted |= {"fff_trees" if order == "pre" else "fff_mask"}
    assert wanted <= set(launched)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", OTHERS)
def test_every_launch_of_other_positions_fits_its_kernel(launched, tmp_path, kind, dtype):
    options = {"hidden": 64, "heads": 2, "layers": 3, "vocabulary": 101, "positions": Positions("none", 600), "max_tokens": 600}
    options |= {"ffn": (Gated(40), Dense(40), FFF(1, 3)), "activation": "silu", "tasks": Tasks(Embed("mean", True), FillMask(True))}
    config = builders.tiny(**options | OTHERS[kind])
    checkpoint.save(tmp_path, config, builders.weights(config))
    model = fastinfer.load(tmp_path, device="cuda", dtype=dtype)
    for lengths in ((1, 5, 17, 64), (300, 2, 500)):
        batch = fastinfer.PackedBatch.from_ids([list(range(n % 100)) + [7] * (n - n % 100) for n in lengths])
        assert model.embed(batch, normalize=False).shape == (len(lengths), 64)
        assert [[a.shape for a in text] for text in model.hidden_states(batch, layers=(0, -1))] == [[(n, 64)] * 2 for n in lengths]
        assert [a.shape for a in model.logits(batch, task="fill_mask", positions="all")] == [(n, 101) for n in lengths]
    assert ("rotate" in launched) == (kind == "rotary")
    variants = {v for v in model._runner.replicas[0].ops.kernels._modules if not isinstance(v, kernels.Walk)}
    changed = {"rotary": [(1, 0, 0, 0), (1, 1, 0, 0)], "disentangled": [(0, 0, 0, 1)], "narrow": []}.get(kind, [(0, 0, 1, 0)])
    assert variants == {None, *(kernels.Changed(*c) for c in changed), *(kernels.Narrow(24) for _ in range(kind == "narrow"))}


def test_sizes_that_the_gpu_does_not_take(launched, tmp_path):
    for i, changes in enumerate(({"embedding_width": 12}, {"embedding_width": 5000})):
        config = builders.tiny(**changes)
        checkpoint.save(tmp_path / str(i), config, builders.weights(config))
        with pytest.raises(fastinfer.BackendError, match=f"embedding.word has {changes['embedding_width']} columns, but the GPU backend"):
            fastinfer.load(tmp_path / str(i), device="cuda")


REFUSED = {
    "norm.kind is 'rms'": {"norm": Norm("pre", 1e-6, kind="rms")},
    "head_norms is true": {"head_norms": True},
    "head_size is 16": {"head_size": 16},
}


@pytest.mark.parametrize("setting", REFUSED)
def test_what_the_gpu_does_not_compute_is_refused_by_name(launched, tmp_path, setting):
    config = builders.tiny(**REFUSED[setting])
    checkpoint.save(tmp_path, config, builders.weights(config))
    with pytest.raises(fastinfer.BackendError, match=f"{setting}, which the GPU backend does not compute: use device 'cpu'"):
        fastinfer.load(tmp_path, device="cuda")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("shape", [(1, 3), (3, 2), (9, 3), (2, 0)], ids=str)
@pytest.mark.parametrize("silent", [False, True])
def test_every_launch_of_blocks_fits_its_kernel(launched, silent, shape, dtype):
    trees, depth = shape
    rng, neurons = np.random.default_rng(5), 2**depth - 1 + 12 * 2**depth
    w_in, w_out = (rng.standard_normal((trees, neurons, 60), np.float32) for _ in range(2))
    b_leaf = rng.standard_normal((trees, 2**depth, 60), np.float32)
    options = {"depth": depth, "leaf": 12, "silent": silent, "activation": "relu", "b_leaf": b_leaf, "b_out": w_in[0, 0].copy()}
    layer = fastinfer.FFF(w_in, None, w_out, **options, device="cuda", dtype=dtype)
    inner = layer._layer.trees.nodes
    for strategy in ("fff_trees", "products"):
        if strategy == "products" and (inner is None or inner.products is None):
            continue
        layer._ops.plan = lambda tokens, trees, strategy=strategy: strategy
        for tokens in (0, 3, 40, 700):
            x = rng.standard_normal((tokens, 60), np.float32)
            assert layer(x).shape == x.shape
            if tokens:
                nodes, z = layer.routes(x)
                assert nodes.shape == z.shape == (tokens, trees, depth + 1)
    wanted = {"fff_few_in", "fff_few_out", "fff_group", "fff_block_in_64", "fff_block_out_64"}
    wanted |= {"fff_trees", "fff_block_in_16", "fff_block_out_16"} if depth else set()
    wanted |= {"fff_reach"} if silent and depth else {"fff_mask"} if trees == 9 else set()
    assert wanted <= set(launched)


STRATEGIES = ["fff_tree", "fff_tree_few", "fff_subtrees", "fff_trees", "fff_trees_few", "fff_mask"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_launch_of_a_layer_fits_its_kernel(launched, strategy, dtype):
    x, w_in, b_in, w_out = FFFCase(1 if "_tree" in strategy and strategy != "fff_trees" else 8, 3, 60, 9).build(5)
    dense = w_in[0, :5].copy(), None, w_out[0, :5].copy()
    layer = fastinfer.FFF(w_in, b_in, w_out, depth=3, device="cuda", dtype=dtype, b_out=w_in[0, 0].copy(), dense=dense)
    layer._ops.plan = lambda tokens, trees: "products" if strategy == "fff_mask" else strategy
    assert layer(x).shape == x.shape
    assert layer(x[:0]).shape == (0, 60)
    nodes, z = layer.routes(x)
    assert nodes.shape == z.shape == (9, len(w_in), 4)
    there = SimpleNamespace(__dlpack__=None, array=x.view(Array))
    out = np.empty_like(x)
    assert layer(there, out=out) is out
    for wrong, error in ((x[:, :8], fastinfer.ShapeError), (x.astype(np.float64), fastinfer.DtypeError)):
        with pytest.raises(error):
            layer(SimpleNamespace(__dlpack__=None, array=wrong.view(Array)))
    assert strategy in launched
