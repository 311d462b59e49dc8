"""The command `fastinfer bench` on the CPU: its rows, tables and refusals. No test checks a time."""

import json
from pathlib import Path

import numpy as np
import pytest

import fastinfer
from fastinfer import backends, cli
from fastinfer.bench import command, engines, layers, machine, start, timing
from fastinfer.bench.cases import FFFCase, dense_weights
from fastinfer.bench.oracle import dense64
from fastinfer.bench.rivals import installed_dense
from fastinfer.errors import BackendError


@pytest.fixture
def bench(run, monkeypatch):
    """bench(*arguments) -> the output lines of a quick run."""
    monkeypatch.setattr(command, "reexecute", lambda threads: None)
    monkeypatch.setattr(machine.Roofline, "read", lambda roofline, nbytes: 1e11)
    monkeypatch.setattr(timing, "TURN_SECONDS", 1e-9)
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: None)

    def bench(*arguments):
        status, out, _ = run("bench", *arguments, "--threads", "1", "--seconds", "0")
        assert status == 0
        return out.splitlines()

    return bench


def rows(lines):
    return [json.loads(line) for line in lines]


def test_cmm(bench):
    got = rows(bench("cmm", "--shapes", "1x3,9x2", "--tokens", "1,33", "--dtypes", "float32,int8", "--json"))
    assert [(r["tokens"], r["shape"], r["dtype"]) for r in got] == [
        (tokens, shape, dtype) for tokens in (1, 33) for shape in ("1x3", "9x2") for dtype in ("float32", "int8")
    ]
    assert all(0 < r["p10"] <= r["us_per_token"] <= r["p90"] and r["machine"]["threads"] == 1 for r in got)
    assert all(set(r["dense_us"]) == {"numpy", "numpy+gelu", "own f32", "own bf16", "own int8"} for r in got)


def test_cmm_of_leaf_blocks(bench):
    got = rows(bench("cmm", "--shapes", "1x2x5,64x1", "--tokens", "1,40", "--dtypes", "float32,int8", "--hidden", "48", "--json"))
    assert [(r["shape"], r["hidden"], r["dtype"], "equal_us" in r) for r in got[:4]] == [
        ("1x2x5", 48, "float32", True),
        ("1x2x5", 48, "int8", True),
        ("64x1", 48, "float32", False),
        ("64x1", 48, "int8", False),
    ]
    assert all(0 < r["nodes_touched"] <= 1 and r["us_per_token"] > 0 for r in got)
    assert got[0]["limit"] == 3072 / 7


def test_cmm_as_a_table(bench):
    about, header, *lines = bench("cmm", "--shapes", "1x3", "--tokens", "5", "--dtypes", "float32")
    assert about.startswith("date ")
    assert header.split()[:3] == ["shape", "tokens", "dtype"]
    assert [line.split()[:3] for line in lines] == [["1x3", "5", "float32"]]


def test_gemm(bench):
    got = rows(bench("gemm", "--tokens", "3", "--dtypes", "bfloat16", "--json"))
    assert [(r["outputs"], r["inputs"]) for r in got] == [(2304, 768), (768, 768), (3072, 768), (768, 3072)]
    assert all(set(r["rivals_gop_per_s"]) == {"numpy"} and r["gop_per_s"] > 0 for r in got)


def test_ladder(bench):
    got = rows(bench("ladder", "--tokens", "2", "--json"))
    assert [r["level"] for r in got] == ["dense level 1", "dense level 2", "dense level 3", "fff level 1", "fff level 2", "fff kernel"]
    assert [r["against_same_level"] is None for r in got] == [True, True, True, False, False, True]


def test_model(bench, random_model):
    got = rows(bench("model", "-m", random_model, "--sizes", "2x5", "--json"))
    assert [(r["engine"], r["dtype"], r["texts"], r["tokens"]) for r in got] == [
        ("fastinfer", dtype, 2, 5) for dtype in ("float32", "bfloat16", "int8")
    ]
    assert all(r["mean_error"] <= r["max_error"] for r in got)


def test_texts_of_a_model(bench, random_model, tmp_path):
    (tmp_path / "texts").write_text("ada lived in london\n\nparis is the capital of france .\n")
    row, query = rows(bench("model", "-m", random_model, "--dtypes", "float32", "--texts", tmp_path / "texts", "--json"))
    assert (row["op"], row["order"], row["texts"], row["tokens"]) == ("texts", "own", 2, 15)
    assert (query["op"], query["tokens"]) == ("queries", 7.5)
    assert all(0 < query[f"{pause}_p50"] <= query[f"{pause}_p99"] for pause in ("busy", "5ms", "1s"))


def test_latencies_of_calls_after_a_pause(monkeypatch):
    now, slept = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing.time, "sleep", slept.append)

    def run(took):
        now[0] += took

    found = timing.latencies({"a": run, "b": lambda x: run(2 * x)}, [0.001, 0.003], pause=0.25, calls=20)
    assert slept.count(0.25) == 40
    assert found["a"][0] == pytest.approx(2)
    assert found["b"] == (pytest.approx(4), pytest.approx(6))


def test_start_of_a_model(bench):
    """Fresh processes use ids up to 1,000, which the shipped model has."""
    inside = Path(fastinfer.__file__).parent / "models" / "fastminilm-1x11"
    (row,) = rows(bench("model", "-m", inside, "--dtypes", "float32", "--start", "--json"))
    assert row["op"] == "start"
    assert all(row[key] > 0 for key in ("load_s", "first_answer_s", "pss_mb", "peak_mb", "stored_mb", "installed_mb"))


def load_table(rows):
    """An Encode in a fresh process: random vectors of ids, of padding, too."""
    table = np.random.default_rng(0).standard_normal((rows, 8), np.float32)
    return lambda ids, mask=None: table[ids]


def test_texts_in_fresh_processes(bench, tmp_path):
    """A way that batches texts itself and one that needs padded batches give the speed and the memory of processes of their own."""
    (tmp_path / "texts.txt").write_text("The cat sleeps.\n\nBoil the grains for twelve minutes, then drain them.\n")
    inside = Path(fastinfer.__file__).parent / "models" / "fastminilm-small"
    (row,) = rows(bench("model", "-m", inside, "--dtypes", "int8", "--start", "--texts", tmp_path / "texts.txt", "--json"))
    assert row["op"] == "apart"
    padded = engines.Engine("padded", "dense", "float32", load_table, (40_000,), ("numpy",))
    for found in (row, *start.bench_texts_apart([padded], tmp_path / "texts.txt", inside / "tokenizer.json", 256, 2)):
        assert 0 < found["least"] <= found["texts_per_s"] <= found["most"]
        assert found["first_answer_s"] > 0
        assert 20 < found["peak_mb"] < 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cmm", "--device", "numpy"], "the NumPy reference has no benchmark"),
        (["cmm", "--dtypes", "float64"], "expected some of float32, bfloat16, float16, int8"),
        (["model", "-m", "MODEL", "--engines", "nosuch"], "no engine matches --engines nosuch"),
        (["model", "-m", "MODEL", "--tokenizer", "t.json"], "a checkpoint folder has its own"),
        (["cmm", "--dtypes", "flaot32"], ": did you mean float32?"),
        (["cmm", "--plot", "x.gif"], "--plot x.gif: .gif is not drawn, expected .svg, .png, .pdf"),
        (["cmm", "--plot", "no/x.svg"], "--plot no/x.svg: no is no folder"),
        (["model", "-m", "no-model"], "no-model is no checkpoint folder"),
        (["model", "-m", "fastminilm", "--engines", "nosuch"], "no engine matches --engines nosuch"),
        (["model", "--texts", "no-texts"], "--texts no-texts does not exist"),
        (["gemm", "--plot", "x.svg"], "unrecognized arguments: --plot"),
        (["gem"], ": did you mean gemm?"),
        (["cmm", "rest"], "unrecognized arguments: rest"),
        (["nothing"], "invalid choice: 'nothing'"),
    ],
)
def test_refusals(arguments, message, run, random_model, monkeypatch):
    monkeypatch.setattr(command, "reexecute", lambda threads: None)
    monkeypatch.setattr(machine.Roofline, "__init__", lambda roofline, ops: None)
    status, _, errors = run("bench", *[random_model if a == "MODEL" else a for a in arguments])
    assert status != 0
    assert message in errors


def test_help(run):
    status, out, _ = run("bench", "--help")
    assert status == 0
    assert set(command.KINDS) <= set(out.split())
    for kind in command.KINDS:
        status, out, _ = run("bench", kind, "--help")
        assert (status, "--shapes" in out, "--start" in out) == (0, kind in ("cmm", "model"), kind == "model")
        words = out.split("example:\n")[1].split()
        assert cli.parse(words[1:]).what == kind


def test_dense_layers_compute_the_same():
    x = np.random.default_rng().standard_normal((7, 64), np.float32)
    weights = dense_weights(64, 96)
    for name, make in installed_dense(backends.get("cpu", threads=1)).items():
        want = dense64(x, *weights, gelu=name != "numpy")  # "numpy" has only the two products
        assert np.abs(make(*weights, 1)(x) - want).max() < 0.06 * np.abs(want).max(), name


def test_a_wrong_layer_is_not_timed(monkeypatch):
    monkeypatch.setattr(layers, "check_fff", lambda layer, x, arrays, dtype: (0.5, 0.0))
    with pytest.raises(BackendError, match=r"differs from float64 by 0\.5; nothing is timed"):
        layers.checked_layers("cpu", [FFFCase(1, 2, 16, 3)], ["float32"], FFFCase(1, 0, 16, 3).build(1)[0])
