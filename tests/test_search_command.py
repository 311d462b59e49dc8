"""fastinfer index and fastinfer search: texts in, an index out, answers to queries."""

import json
import subprocess
import sys

import numpy as np
import pytest

from fastinfer import Index, api


@pytest.fixture
def index(run, random_model, tmp_path):
    """index(*arguments, stdin) -> the path of an index that the command made."""

    def make(*arguments, stdin=b"", name="a.npz"):
        status, out, err = run("index", str(tmp_path / name), "-m", random_model, *arguments, stdin=stdin)
        assert (status, err) == (0, "")
        assert out.startswith(str(tmp_path / name))
        return str(tmp_path / name)

    return make


@pytest.fixture
def search(run, random_model):
    """search(*arguments, stdin) -> the JSON records of the command."""

    def find(*arguments, stdin=b""):
        status, out, err = run("search", "-m", random_model, "--json", *arguments, stdin=stdin)
        assert (status, err) == (0, "")
        return [json.loads(line) for line in out.splitlines()]

    return find


def test_arguments_and_their_numbers(index, search, random_model):
    path = index("ada", "in London", "Paris is")
    [found] = search(path, "ada", "-k", "2")
    assert found["query"] == "ada"
    assert next((r["id"], r["text"]) for r in found["results"]) == (0, "ada")
    model = api.load(random_model)
    ranking = model.rank("ada", ["ada", "in London", "Paris is"], top_k=2)
    assert [(r["id"], np.float32(r["score"])) for r in found["results"]] == ranking


def test_ids_of_json_lines(index, search, tmp_path, run, random_model):
    file = tmp_path / "t.jsonl"
    file.write_text('{"id": "a", "text": "ada"}\n{"id": "b", "text": "London"}\n')
    path = index("-i", str(file), name="folder")
    assert {r["id"] for r in search(path, "ada")[0]["results"]} == {"a", "b"}
    assert run("index", path, "--add", "-m", random_model, "-i", str(file))[2].count("already") == 1
    file.write_text('{"id": "c", "text": "Paris"}\n')
    assert index("--add", "-i", str(file), name="folder") == path
    assert len(Index.open(path)) == 3
    for content, message in (('{"id": "d", "text": "x"}\n"y"', "has no id"), ('"y"\n{"id": 1, "text": "x"}', "has an id")):
        file.write_text(content)
        assert message in run("index", path, "-m", random_model, "-i", str(file))[2]
    file.write_text('{"id": [1], "text": "x"}')
    assert "its id is [1]" in run("index", path, "-m", random_model, "-i", str(file))[2]
    assert len(Index.open(path)) == 3  # a failed command leaves what was there


def test_a_folder_is_cut_into_passages(run, random_model, search, tmp_path):
    folder = tmp_path / "notes"
    (folder / "sub").mkdir(parents=True)
    long = "is the capital of France. " * 30
    (folder / "b.txt").write_text(f"\n\nada\nlived\n\nin London\n\n{long}\n{long}\n\nParis")
    (folder / "sub" / "a.md").write_text("of Paris")
    (folder / ".hidden").write_text("hidden")
    (folder / "binary").write_bytes(b"\xff\xfe\0")
    (folder / "zero").write_bytes(b"a\0b")
    path = str(tmp_path / "a.npz")
    status, _, err = run("index", path, "-m", random_model, "-i", str(folder))
    assert (status, err.count("\n"), "cut" in err) == (0, 1, True)  # one warning of the long passage
    results = search(path, "ada", "-k", "99")[0]["results"]
    assert {r["id"]: r["text"][:9] for r in results} == {
        "b.txt:3": "ada\nlived",
        "b.txt:8": "is the ca",
        "b.txt:11": "Paris",
        "sub/a.md:1": "of Paris",
    }


def test_queries_from_a_file_and_from_standard_input(index, search, tmp_path, run, random_model):
    path = index(stdin=b"ada\nLondon\n")
    (tmp_path / "q.txt").write_text("ada\nLondon\n")
    records = search(path, "-i", str(tmp_path / "q.txt"), "-k", "1")
    assert [r["results"][0]["text"] for r in records] == ["ada", "London"]
    assert search(path, "-k", "1", stdin=b"ada\nLondon\n") == records
    status, out, _ = run("search", path, "-m", random_model, "-k", "1", "ada", "London")
    assert (status, [line.split()[-1] for line in out.splitlines()]) == (0, ["ada", "ada", "London", "London"])
    status, out, _ = run("search", path, "-m", random_model, "-k", "1", "ada")
    assert out.split() == ["1", f"{records[0]['results'][0]['score']:.4f}", "0", "ada"]


def test_each_line_is_answered_at_once(index, random_model):
    path = index("ada", "London")
    command = [sys.executable, "-m", "fastinfer", "search", path, "-m", random_model, "--json", "-k", "1", "--device", "numpy"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        for query in ("ada", "London"):
            process.stdin.write(query + "\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["results"][0]["text"] == query
        process.stdin.close()
        assert process.wait() == 0


def test_the_model_inside_needs_no_name(run, tmp_path):
    path = str(tmp_path / "a.npz")
    assert run("index", path, "A cat sleeps.", "Shares fell.", "--precision", "int8", "--dim", "100")[0] == 0
    status, out, _ = run("search", path, "pets", "-k", "1")
    assert status == 0
    assert out.endswith("A cat sleeps.\n")


def test_errors(index, run, random_model, tmp_path):
    path = index("ada")
    assert "name it with -m" in run("search", path, "ada")[2]
    assert "holds vectors of" in run("search", path, "-m", "fastminilm", "ada")[2]
    assert "does not exist" in run("search", str(tmp_path / "none.npz"), "ada")[2]
    assert "has no texts" in run("index", str(tmp_path / "b.npz"), "-m", random_model)[2]
    assert not (tmp_path / "b.npz").exists()
