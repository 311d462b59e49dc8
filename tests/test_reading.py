"""Texts from tables and JSON: columns, keys, quoting, encodings, and what is refused before a model is loaded."""

import csv
import io
import json
import random
import re

import pytest
from test_cli import error_of

from fastinfer import reading, text_commands

ODD = ["", "a,b", 'say "hi"', "two\nlines", "two\r\nlines", "=1+1", "\ttab", "é 日本 🦊", " spaced ", "'", ";", "\u2028"]


@pytest.fixture
def texts():
    return [random.choice(ODD) + random.choice(["", " ada", " in london"]) for _ in range(20)]


def write_csv(path, header, rows, delimiter=",", encoding="utf-8", **options):
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, **options).writerows([header, *rows])
    path.write_bytes(out.getvalue().encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("ending", ["\r\n", "\n"])
@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.CSV", ","), ("a.tsv", "\t")])
def test_columns(embed, run, random_model, tmp_path, texts, name, delimiter, ending, encoding):
    rows = [(i, text, "x") for i, text in enumerate(texts)]
    path = write_csv(tmp_path / name, ["id", "text", "b"], rows, delimiter, encoding, lineterminator=ending)
    assert embed("-i", path) == texts
    pairs = embed_records(run, random_model, "-i", path, "--column", "b", "--column", "text")
    assert pairs == [{"b": "x", "text": text} for text in texts]


def embed_records(run, model, *arguments):
    status, out, err = run("embed", "-m", model, "--json", *arguments)
    assert (status, err) == (0, "")
    return [{key: value for key, value in json.loads(line).items() if key != "embedding"} for line in out.split("\n")[:-1]]


def test_default_columns(embed, run, random_model, readable_model, tmp_path):
    path = write_csv(tmp_path / "a.csv", ["pair", "text"], [("b", "a"), ("", "c")])
    assert embed("-i", path) == [["a", "b"], ["c", ""]]
    assert run("tag", "-m", random_model, "-i", path)[0] == 0, "single texts are read where pairs have no meaning"
    path = write_csv(tmp_path / "q.csv", ["question", "context"], [("is?", "ada is")])
    status, out, _ = run("answer", "-m", random_model, "-i", path, "--json")
    assert (status, json.loads(out)["question"], json.loads(out)["context"]) == (0, "is?", "ada is")
    path = write_csv(tmp_path / "named.csv", ["asked", "told"], [("is?", "ada is")])
    _, out, _ = run("answer", "-m", random_model, "-i", path, "--json", "--column", "asked", "--column", "told")
    assert (json.loads(out)["asked"], json.loads(out)["told"]) == ("is?", "ada is")


def test_parquet(run, random_model, tmp_path, texts):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = {"id": list(range(20)), "review": texts, "kind": arrow.array(["x"] * 20).dictionary_encode(), "none": [None] + ["a"] * 19}
    parquet.write_table(arrow.table(table), tmp_path / "a.parquet", row_group_size=7)
    at = ("-i", tmp_path / "a.parquet", "--column")
    assert embed_records(run, random_model, *at, "review") == [{"review": text} for text in texts]
    assert embed_records(run, random_model, *at, "review", "--column", "kind") == [{"review": text, "kind": "x"} for text in texts]
    said = [("id", "column 'id' has int64 values, expected texts"), ("none", "row 1: column 'none' has no value, expected a text")]
    for column, message in [*said, ("reviw", "has no column 'reviw', only 'id', 'review', 'kind', 'none': did you mean review?")]:
        assert message in error_of(run("embed", "-m", random_model, *at, column))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    assert "b.parquet: no parquet data" in error_of(run("embed", "-m", random_model, "-i", tmp_path / "b.parquet"))


def test_keys_of_json(run, random_model, tmp_path):
    for name, content in (("a.jsonl", '{"review": "ada", "text": "no"}\n"in"\n'), ("a.json", '[{"review": "ada"}, "in"]')):
        (tmp_path / name).write_text(content)
        at = ("-i", tmp_path / name, "--column", "review")
        assert embed_records(run, random_model, *at) == [{"review": "ada"}, {"review": "in"}]
        (tmp_path / name).write_text(content.replace("review", "reviews", 1))
        assert ": did you mean reviews?" in error_of(run("embed", "-m", random_model, *at))


@pytest.mark.parametrize(
    ("name", "content", "more", "said"),
    [
        ("a.csv", b"id,txt\n1,ada\n", [], r"a\.csv has no column 'text', only 'id', 'txt': did you mean txt\?"),
        ("a.csv", b"id,review\n1,ada\n", [], r"a\.csv has no column 'text', only 'id', 'review': name one with --column"),
        ("a.csv", b"", [], r"a\.csv is empty, expected the names of columns in its first line"),
        ("a.csv", b"text,id\nada\n", [], r"a\.csv, line 2 has 1 cells, expected 2, as the first line has"),
        ("a.csv", b'text\n"ada\n', [], r"a\.csv, line 2: no table: unexpected end of data"),
        ("a.csv", b'text\n"ada"x\n', [], r"a\.csv, line 2: no table: "),
        ("a.csv", b"text,text\nada,in\n", [], r"a\.csv has 2 columns 'text', expected different names"),
        ("a.csv", "text\nada\n".encode("utf-16"), [], r"a\.csv, line 1: the file is UTF-16 or UTF-32"),
        ("a.csv", b"text\n\xff\n", [], r"a\.csv, line 2: byte 1 \(0xff\) is no UTF-8"),
        ("a.txt", b"ada\n", ["--column", "text"], r"a\.txt is read as plain lines, which have no columns"),
        ("a.csv", b"text\nada\n", ["--pairs"], "--pairs is for plain lines"),
        ("a.json", b'["ada" "in"]', [], r"a\.json: no JSON: expected , or \] behind a value"),
        ("a.json", b'["ada"] "in"', [], r"a\.json: no JSON: more follows after the list"),
        ("a.json", b'["ada",]', [], r"a\.json: no JSON"),
    ],
)
def test_what_is_refused_before_a_model_is_loaded(run, tmp_path, monkeypatch, name, content, more, said):
    monkeypatch.setattr(text_commands.api, "load", None)
    (tmp_path / name).write_bytes(content)
    # an error in a later row comes after the model is loaded
    late = re.search("line 2 has|more follows|expected , or|no JSON$", said) and name != "a.csv"
    if late:
        monkeypatch.undo()
    status, out, err = run("embed", "-i", tmp_path / name, *more)
    assert (status, out) == (1, "")
    assert re.search(said, err)


def test_a_list_is_read_item_by_item(monkeypatch, embed, tmp_path):
    """In pieces of any size, a list has the items that json.loads finds."""
    path = tmp_path / "a.json"
    for _ in range(20):
        texts = [random.choice(["ada", "[", "]", '"', "\\", "é日", "a\nb", "12"]) * random.randrange(4) for _ in range(random.randrange(9))]
        path.write_text(json.dumps(texts, indent=random.choice([None, 1]), ensure_ascii=random.random() < 0.5), "utf-8")
        monkeypatch.setattr(reading, "PIECE", random.choice([1, 2, 3, 7, 1 << 20]))
        assert embed("-i", path) == texts
    pieces = iter(["[1, 2", "3, [", "4], 5e", "3]", " \n"])
    assert list(reading._items(pieces, "x")) == [1, 23, [4], 5000]


def test_pairs_of_tsv_lines(embed, tmp_path):
    (tmp_path / "a.tsv").write_text('one "\ttwo\n')
    assert embed("-i", tmp_path / "a.tsv", "--pairs") == [['one "', "two"]]


def test_answer_without_a_question(run, random_model):
    said = error_of(run("answer", "-m", random_model, "Ada lived in London."))
    assert "expected a question and a context with one tab between them: to ask one question of all texts, give it with -q" in said


def test_the_model_inside_has_no_such_head(run):
    for command in ("classify", "tag"):
        assert error_of(run(command, "ada")).endswith("it has embed: name a model that has one with -m MODEL")
