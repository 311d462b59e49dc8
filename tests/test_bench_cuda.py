"""The GPU benchmark: arithmetic, tables and refusals without a GPU, and its commands on one."""

import argparse
import json
import types

import numpy as np
import oracle
import pytest

import fastinfer
from fastinfer import cli
from fastinfer.bench import command, engines, gpu_layers, gpu_models, gpu_timing, report
from fastinfer.bench.cases import FFFCase, dense_weights
from fastinfer.bench.oracle import dense64, walk64
from fastinfer.bench.timing import Spread
from fastinfer.errors import BackendError, InputError

WHY_NOT = fastinfer.backends.available()["cuda"]
needs_gpu = pytest.mark.skipif(WHY_NOT is not None, reason=f"no GPU: {WHY_NOT}")


def spread(median):
    return Spread(median, 0.9 * median, 1.1 * median)


@pytest.mark.parametrize(("trees", "depth", "tokens", "rows"), [(1, 11, 1, 12), (1, 11, 128, 767), (1, 11, 2048, 4095), (512, 2, 2, 2560)])
def test_rows_once(trees, depth, tokens, rows):
    assert gpu_layers.rows_once(trees, depth, tokens) == rows


@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_no_more_rows_are_visited(tokens):
    x, w_in, b_in, _ = FFFCase(3, 4, 16, tokens).build(7)
    nodes, _ = oracle.walk(x, w_in, b_in, 4)
    visited = sum(len(np.unique(nodes[:, p])) for p in range(3))
    assert visited <= gpu_layers.rows_once(3, 4, tokens) <= 3 * 31


def test_floor_of_the_paper_shape():
    """At 3.0 TB/s the floor is 1.02 ns per token + 4.2 us in float16, and twice as much in float32."""
    rate = 3.0e6
    few, many = (gpu_layers.floor_bytes(FFFCase(1, 11, 768, t), "float16") / rate for t in (4096, 65536))
    assert (many - few) / (65536 - 4096) * 1e3 == pytest.approx(1.02, abs=0.01)
    assert few - 4096 * 1.024e-3 == pytest.approx(4.2, abs=0.05)
    case = FFFCase(1, 11, 768, 4096)
    assert gpu_layers.floor_bytes(case, "float32") == 2 * gpu_layers.floor_bytes(case, "float16")
    assert gpu_layers.floor_bytes(case, "int8") == 4 * 4096 * 768 + 2 * 4095 * (768 + 4)


def test_row_of_a_table():
    """Ratios use medians. The best dense layer has the same precision, so TF32 has a column of its own."""
    case = FFFCase(1, 11, 768, 128)
    spreads = {"fff": spread(10.0), "own": spread(40.0), "torch": spread(30.0), "torch tf32": spread(20.0)}
    cold = {name: spread(2 * s.median) for name, s in spreads.items()}
    dense = {"own": None, "torch": gpu_layers.Rival("float32", None), "torch tf32": gpu_layers.Rival("tf32", None)}
    row = gpu_layers.cmm_row(case, "float32", "fff", spreads, cold, dense, 3.0e6)
    assert row["best_dense"] == "torch"
    assert row["speedup"] == {"own": 4.0, "torch": 3.0, "torch tf32": 2.0}
    assert (row["tf32"], row["cold_us"], row["cold_speedup"]) == (2.0, 20.0, 3.0)
    assert row["floor_us"] == gpu_layers.floor_bytes(case, "float32") / 3.0e6
    assert row["share_of_floor"] == pytest.approx(row["floor_us"] / 10)
    assert row["ns_per_token"] == pytest.approx(1e4 / 128)
    row |= {"strategy": "fff_tree", "max_error": 1e-6, "rerouted": 0.0}
    warm = row | gpu_layers.cmm_row(case, "float16", "fff", spreads, {}, {"own": None}, 3.0e6)
    assert (warm["tf32"], warm["cold_us"], warm["cold_speedup"]) == (None, None, None)
    for line in (report.gpu_cmm_line(row), report.gpu_cmm_line(warm)):
        assert line.endswith("fff_tree")
        assert len(line) == len(report.GPU_CMM_HEADER)


def test_copied_weights_lie_elsewhere():
    first = gpu_timing.Replay(np.arange(3.0), None, 2)
    second = gpu_layers.copied(first)
    assert second.stream is not first.stream
    assert not np.shares_memory(second.stream, first.stream)
    assert np.array_equal(second.stream, first.stream)
    assert (second.launch, second.calls) == (None, 2)


def test_ratios():
    def engine(name, dtype, load=None):
        return engines.Engine(name, "dense" if "1x11" not in name else "1x11", dtype, load, (), ())

    own = engines.load_fastinfer
    made = {
        "fastinfer dense float16": engine("fastinfer", "float16", own),
        "fastinfer 1x11 float16": engine("fastinfer 1x11", "float16", own),
        "torch f16": engine("torch", "float16"),
        "torch f32": engine("torch", "float32"),
    }
    times = dict(zip(made, (4.0, 2.0, 5.0, 3.0), strict=True))
    got = report.ratios("fastinfer 1x11 float16", made, times)
    assert got == {
        "speedup": {"torch f16": 2.5, "torch f32": 1.5},
        "against_own_dense": 2.0,
        "against_best_of_dtype": 2.5,
        "against_best": 1.5,
    }
    assert report.ratios("torch f16", made, times)["against_best"] is None


def test_table_of_models():
    row = {"op": "gpu", "engine": "fastinfer", "model": "1x11", "dtype": "float16", "texts": 1, "tokens": 16, "graph_ms": 0.2271}
    other = row | {"engine": "torch", "model": "dense", "texts": 32, "tokens": 128, "graph_ms": 1.71}
    title, first, second = report.table([row, other]).splitlines()
    assert title.split() == ["ms", "1x16", "32x128"]
    assert first.split() == ["fastinfer", "1x11", "float16", "0.227", "-"]
    assert second.split() == ["torch", "dense", "float16", "-", "1.710"]


@pytest.mark.parametrize("along", [False, True])
def test_walk64(along):
    x, w_in, b_in, w_out = FFFCase(3, 4, 16, 9).build(3)
    nodes, z = oracle.walk(x, w_in, b_in, 4)
    given = np.random.default_rng(0).integers(0, 31, nodes.shape) if along else None
    y, visited, margin = walk64(x, np.stack([w_in, w_out], 2), b_in, 4, along=given)
    want = nodes if given is None else given
    assert np.array_equal(visited, want)
    np.testing.assert_allclose(y, oracle.add_up(x, w_in, b_in, w_out, want), atol=1e-12)
    if given is None:
        np.testing.assert_allclose(margin, np.abs(z[..., :-1]).min(2), rtol=1e-9)


def test_a_wrong_dense_layer_is_not_timed():
    x = np.random.default_rng(0).standard_normal((5, 8), np.float32)
    weights = dense_weights(8, 12)
    right = dense64(x, *weights, gelu=True).astype(np.float32)
    for result, wrong in ((right, False), (right * 1.1, True), (right * np.nan, True)):
        work = gpu_timing.Work(None, [lambda: None], None, lambda result=result: result)
        if wrong:
            with pytest.raises(BackendError, match="'a rival' is wrong"):
                gpu_layers.check_dense({"a rival": work}, x, weights)
        else:
            gpu_layers.check_dense({"a rival": work}, x, weights)


def test_products_are_the_cpus():
    with pytest.raises(InputError, match="gemm measures the CPU's"):
        command.run_gpu(argparse.Namespace(what="gemm", device="cuda"), None, None)


def test_unknown_dtype():
    with pytest.raises(InputError, match="expected some of float16, float32, bfloat16, int8"):
        gpu_layers.bench_cmm("cuda", dtypes=("float64",))


@pytest.mark.skipif(WHY_NOT is None, reason="there is a GPU")
@pytest.mark.parametrize("what", ["cmm", "ladder", "model"])
def test_without_a_gpu_the_command_says_why(what, capsys):
    assert cli.main(["bench", what, "--device", "cuda"]) != 0
    assert "device 'cuda' was asked for but cannot run" in capsys.readouterr().err


@needs_gpu
def test_cmm_on_a_gpu(capsys):
    cli.main(["bench", "cmm", "--device", "cuda", "--shapes", "1x3,9x2", "--tokens", "1,33", "--seconds", "0", "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(r["dtype"], r["tokens"], r["shape"]) for r in rows] == [
        (dtype, tokens, shape) for dtype in gpu_layers.DTYPES for tokens in (1, 33) for shape in ("1x3", "9x2")
    ]
    assert all(0 < r["p10"] <= r["us"] <= r["p90"] and r["cold_us"] > 0 and r["machine"]["gpu"] for r in rows)


@needs_gpu
def test_ladder_on_a_gpu(capsys):
    cli.main(["bench", "ladder", "--device", "cuda", "--tokens", "40", "--seconds", "0"])
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[2:]] == [["dense", "own"], ["fff", "own"]]


@needs_gpu
def test_model_on_a_gpu(random_model, capsys):
    cli.main(
        ["bench", "model", "--device", "cuda", "-m", random_model, "--sizes", "3x5", "--dtypes", "float32,tf32", "--seconds", "0", "--json"]
    )
    (row,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (row["op"], row["texts"], row["tokens"], row["dtype"]) == ("gpu", 3, 5, "float32")
    assert 0 < row["p10"] <= row["graph_ms"] <= row["p90"]
    assert row["attention_us"] > 0
    assert row["states_ms"] > row["graph_ms"]


class Given:
    """An oracle with errors that the test gives."""

    def __init__(self, **errors):
        self.given = errors

    def errors(self, engine, encode, ids):
        if self.given[engine.name] is None:
            raise BackendError(f"{engine} is wrong")
        return self.given[engine.name]


def rival(name, graph_us):
    encode = lambda ids: None  # noqa: E731
    replay = lambda us: gpu_timing.Replay(types.SimpleNamespace(synchronize=lambda: None), lambda: None, 1, us)  # noqa: E731
    encode.encoder = lambda batches: gpu_models.Encoder(replay(graph_us), lambda which: None, {"attention": replay(graph_us / 100)})
    return engines.Engine(name, "dense", "float16", None, (), ()), encode


def test_sizes_of_models(monkeypatch, capsys):
    """Only engines with right answers have rows. Wrong engines, and those that only embed texts, have none."""
    monkeypatch.setattr(gpu_models, "interleaved", lambda replays, seconds: {name: spread(r.before) for name, r in replays.items()})
    made = {"quick": rival("quick", 400.0), "slow": rival("slow", 800.0), "wrong": rival("wrong", 1.0)}
    made["texts"] = (rival("texts", 1.0)[0], lambda ids: None)
    oracle_ = Given(quick=(0.1, 0.01), slow=(0.2, 0.02), wrong=None)
    (rows,) = gpu_models.bench_sizes(made, oracle_, 100, sizes=[(2, 8)], seconds=0)
    assert [(r["engine"], r["graph_ms"], r["us_per_token"], r["attention_us"], r["ffn_block_us"]) for r in rows] == [
        ("quick", 0.4, 25.0, 4.0, None),
        ("slow", 0.8, 50.0, 8.0, None),
    ]
    assert all(r["host_us"] == pytest.approx(1e3 * (r["wall_ms"] - r["graph_ms"])) and r["mean_error"] > 0 for r in rows)
    assert all(-r["graph_ms"] * 1e3 < r["launch_us"] < 0 and r["states_ms"] is None for r in rows)  # the launched graph does nothing
    assert "left out: wrong dense float16 at 2x8: wrong dense float16 is wrong" in capsys.readouterr().err
    for row in rows:
        assert len(report.line(row)) == len(report.header("gpu"))


def test_interleaved_takes_off_what_comes_first(monkeypatch):
    """A replay of 4 calls takes 100 us, of which 60 us are other work. So a call takes 10 us."""
    monkeypatch.setattr(gpu_timing, "elapsed", lambda stream, launch, times=1, ahead=False: 100.0 * times)
    spreads = gpu_timing.interleaved({"a": gpu_timing.Replay(None, None, 4, before=60.0), "b": gpu_timing.Replay(None, None, 1)}, seconds=0)
    assert spreads == {"a": Spread(10.0, 10.0, 10.0), "b": Spread(100.0, 100.0, 100.0)}
