"""Formats of answers: each holds what Model gives, and what is written can be read again."""

import csv
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastinfer
from fastinfer import text_io

TEXTS = ["ada in london", "", "=1+1", 'a "b", c', "in\nparis", "é🦊"]


@pytest.fixture
def made(run, random_model, tmp_path):
    """made(command, ending, *options) -> the path that the command wrote for TEXTS."""
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(text) + "\n" for text in TEXTS))

    def made(command, ending, *options):
        out = tmp_path / f"out{ending}"
        assert run(command, "-m", random_model, "-i", path, "-o", out, *options) == (0, "", "")
        return out

    return made


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_vectors(made, random_model):
    want = fastinfer.load(random_model).embed(TEXTS)
    rows = rows_of(made("embed", ".csv"))
    assert [row["text"] for row in rows] == TEXTS
    assert list(rows[0])[1:] == [f"embedding_{i}" for i in range(32)]
    np.testing.assert_array_equal(np.array([[row[f"embedding_{i}"] for i in range(32)] for row in rows], np.float32), want)
    np.testing.assert_array_equal(np.load(made("embed", ".npz"))["embeddings"], want)
    np.testing.assert_array_equal(np.loadtxt(made("embed", ".txt"), dtype=np.float32), want)
    found = np.load(made("embed", ".npy"))
    np.testing.assert_array_equal(found, want)
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(np.array([row["embedding"] for row in json.loads(made("embed", ".json").read_text())], np.float32), want)


def test_vectors_in_parquet(made, random_model):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(made("embed", ".parquet"))
    assert table.column_names == ["text", "embedding"]
    assert table["text"].to_pylist() == TEXTS
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), np.float32), fastinfer.load(random_model).embed(TEXTS))


def test_spans(made, random_model):
    want = fastinfer.load(random_model).tag(TEXTS)
    assert [] in want
    rows = rows_of(made("tag", ".csv"))
    assert list(rows[0]) == ["row", "text", "start", "end", "label", "score", "span"]
    for i, spans in enumerate(want):
        mine = [row for row in rows if row["row"] == str(i)]
        assert {row["text"] for row in mine} == {TEXTS[i]}
        found = [(int(row["start"]), int(row["end"]), row["label"], row["span"]) for row in mine if row["start"]]
        assert found == [(start, end, label, part) for start, end, label, _, part in spans]
        assert [np.float32(row["score"]) for row in mine if row["start"]] == [np.float32(score) for *_, score, _ in spans]
        assert len(mine) == max(1, len(spans))


@pytest.mark.parametrize("command", ["tag", "classify", "answer"])
def test_tables_of_both_kinds_agree(made, command):
    parquet = pytest.importorskip("pyarrow.parquet")
    options = ["-q", "is?", "--no-answer"] if command == "answer" else []
    table = parquet.read_table(made(command, ".parquet", *options)).to_pylist()
    rows = rows_of(made(command, ".csv", *options))
    assert [{name: "" if cell is None else str(cell) for name, cell in row.items() if name != "score"} for row in table] == [
        {name: cell for name, cell in row.items() if name != "score"} for row in rows
    ]
    assert [row["score"] or 0 for row in table] == [float(row["score"] or 0) for row in rows] or np.allclose(
        [row["score"] or 0 for row in table], [float(row["score"] or 0) for row in rows], rtol=1e-7
    )


def test_what_is_written_is_read_again(run, random_model, made, tmp_path):
    for ending in (".csv", ".jsonl", ".json"):
        first = made("embed", ending, "--column", "review")
        again = tmp_path / f"again{ending}"
        assert run("embed", "-m", random_model, "-i", first, "--column", "review", "-o", again) == (0, "", "")
        assert again.read_bytes() == first.read_bytes()


def test_pairs_and_single_texts_do_not_mix_in_a_table(run, random_model, tmp_path):
    (tmp_path / "a.jsonl").write_text('"ada"\n["in", "paris"]\n')
    status, _, err = run("embed", "-m", random_model, "-i", tmp_path / "a.jsonl", "-o", tmp_path / "x.csv")
    assert status == 1
    assert "text 2 is a pair, but a table holds single texts, as it begins: write JSON lines instead" in err


@pytest.mark.parametrize("ending", [".npy", ".npz", ".csv", ".jsonl", ".json", ".txt"])
def test_no_texts(run, random_model, tmp_path, ending):
    path = tmp_path / f"x{ending}"
    assert run("embed", "-m", random_model, "-o", path) == (0, "", "")
    if ending == ".npy":
        assert np.load(path).shape == (0, 32)
    elif ending == ".npz":
        assert np.load(path)["embeddings"].shape == (0, 32)
    elif ending == ".csv":
        assert rows_of(path) == []
        assert path.read_text().startswith("text,embedding_0,")
    else:
        assert path.read_bytes() == (b"[]\n" if ending == ".json" else b"")


def test_a_pipe_gets_a_whole_array(run, random_model, tmp_path):
    import os

    os.mkfifo(tmp_path / "x.npy")
    reader = os.open(tmp_path / "x.npy", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert run("embed", "-m", random_model, "ada", "-o", tmp_path / "x.npy") == (0, "", "")
        (tmp_path / "y.npy").write_bytes(os.read(reader, 10_000))
    finally:
        os.close(reader)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), fastinfer.load(random_model).embed("ada"))


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_numbers_are_short_and_exact(value):
    """No shorter decimal gives the same float32, and the shortest double stays for what is no float32."""
    said = text_io.json_line(value)
    assert np.float32(said) == np.float32(value)
    digits = len(said.partition("e")[0].replace("-", "").replace(".", "").strip("0"))
    with np.errstate(over="ignore"):  # a largest value that is rounded up is infinite
        shortest = next(n for n in range(1, 10) if np.float32(f"{value:.{n - 1}e}") == np.float32(value))
    assert digits <= max(shortest, 1)
    assert json.loads(text_io.json_line(0.1)) == 0.1
    assert text_io.json_line({"a": [np.float32(0.1), 1, True, None, "é"]}) == '{"a": [0.1, 1, true, null, "é"]}'
