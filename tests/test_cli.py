"""The command line: its inputs, outputs and errors."""

import errno
import gzip
import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys

import builders
import numpy as np
import pytest
from conftest import WORDS, make_config, make_tokenizer
from numpy.testing import assert_allclose

import fastinfer
from fastinfer import cli, progress, reading, text_commands
from fastinfer.config import Classify, Embed, FillMask, Project, Prompt, Tasks

COMMANDS = ["embed", "rank", "classify", "fill-mask", "tag", "answer"]


def error_of(result, status=1) -> str:
    """The one message of a command that failed, without a traceback."""
    assert result[0] == status
    assert result[1] == ""
    if status == 1:
        assert result[2].startswith("fastinfer: error: ")
        assert result[2].count("fastinfer: ") == 1
    assert "Traceback" not in result[2]
    return result[2].removeprefix("fastinfer: error: ").rstrip()


def command(*arguments) -> list[str]:
    return [sys.executable, "-m", "fastinfer", *map(str, arguments)]


# --- texts in ---


def test_arguments_are_texts(embed):
    assert embed("ada", "", "in London 🦊") == ["ada", "", "in London 🦊"]


def test_texts_may_stand_after_options(run, random_model):
    status, out, _ = run("embed", "ada", "-m", random_model, "london", "--json", "paris")
    assert status == 0
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["ada", "london", "paris"]
    status, out, _ = run("rank", "ada", "-m", random_model, "london", "--json", "ada")
    assert (status, json.loads(out.splitlines()[0])["text"]) == (0, "ada")
    assert run("embed", "-m", random_model, "--json", "--", "-x")[0] == 0


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"ada\n\nlondon\n", ["ada", "", "london"]),
        (b"ada\r\nlondon", ["ada", "london"]),
        (b"\xef\xbb\xbfada\n\xef\xbb\xbf", ["ada", "\ufeff"]),
        ("é\x85ada\u2028\x0b🦊\n".encode(), ["é\x85ada\u2028\x0b🦊"]),
        (b" a\tb \n", [" a\tb "]),
    ],
)
def test_a_line_is_a_text(embed, tmp_path, content, texts):
    path = tmp_path / "texts.txt"
    path.write_bytes(content)
    assert embed("-i", path) == texts
    assert embed(stdin=content) == texts
    assert embed("-", stdin=content) == texts
    assert embed("--input", "-", stdin=content) == texts
    zipped = tmp_path / "texts.gz"
    zipped.write_bytes(gzip.compress(content))
    assert embed("-i", zipped) == texts


JSON_LINES = (
    b'"ada"\n{"text": "in\\nlondon", "other": 3}\n["ada", "paris"]\n{"text": "is", "pair": "the"}\n""\n{"pair": "p", "text": "\\u00e9"}\n'
)
JSON_TEXTS = ["ada", "in\nlondon", ["ada", "paris"], ["is", "the"], "", ["é", "p"]]


def test_json_lines(embed, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_bytes(JSON_LINES)
    assert embed("-i", path) == JSON_TEXTS
    (tmp_path / "texts.jsonl.gz").write_bytes(gzip.compress(JSON_LINES))
    assert embed("-i", tmp_path / "texts.jsonl.gz") == JSON_TEXTS
    assert embed("--jsonl", stdin=JSON_LINES) == JSON_TEXTS


def test_what_is_written_as_json_can_be_read_again(embed, run, random_model, tmp_path):
    path = tmp_path / "out.jsonl"
    assert run("embed", "-m", random_model, "--jsonl", "-o", path, stdin=JSON_LINES) == (0, "", "")
    assert embed("-i", path) == JSON_TEXTS


def test_tabs_part_pairs(embed, tmp_path):
    assert embed("--pairs", "ada\tin london", "\t") == [["ada", "in london"], ["", ""]]
    path = tmp_path / "pairs.tsv"
    path.write_bytes(b"ada\tin london\nis\t\n")
    assert embed("--pairs", "-i", path) == [["ada", "in london"], ["is", ""]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"ada\nlon\xffdon\n", r"a\.txt, line 2: byte 4 \(0xff\) is no UTF-8"),
        ("a.txt", b"ada\n\xed\xa0\x80\n", r"a\.txt, line 2: byte 1 \(0xed\) is no UTF-8"),
        ("a.jsonl", b'"ada"\n{"text": \n', r"a\.jsonl, line 2: no JSON: "),
        ("a.jsonl", b'"ada"\n\n \r\n{', r"a\.jsonl, line 4: no JSON: "),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl, line 1: no JSON: "),
        ("a.jsonl", b"3\n", r'a\.jsonl, line 1: 3, expected one of "a text", {"text": "a text"}, \["one", "two"\]'),
        ("a.jsonl", b'{"txt": "ada"}', r"a\.jsonl, line 1: {'txt': 'ada'}, expected one of"),
        ("a.jsonl", b'{"text": null}', r"a\.jsonl, line 1: None, expected one of"),
        ("a.jsonl", b'["a", "b", "c"]', r"a\.jsonl, line 1: \['a', 'b', 'c'\], expected one of"),
        ("a.jsonl", b'{"text": "a", "pair": 2}', r"a\.jsonl, line 1: \['a', 2\], expected one of"),
        ("a.jsonl", b'"\\ud83e"', r"a\.jsonl, line 1 is no Unicode text: surrogates not allowed"),
        ("a.gz", b"ada", r"a\.gz, after line 0: broken gzip data"),
        ("a.gz", gzip.compress(b"ada\n" * 9, mtime=0)[:-9], r"a\.gz, after line \d: broken gzip data"),
        ("a.gz", gzip.compress(b"ada\n", mtime=0)[:-8] + b"\0" * 8, r"a\.gz, after line \d: broken gzip data"),
    ],
)
def test_broken_input_names_file_and_line(run, random_model, tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    error = error_of(run("embed", "-m", random_model, "-i", path, "-o", tmp_path / "out.jsonl"))
    assert re.search(message, error)
    assert len(error) < 600
    assert os.listdir(tmp_path) == [name], "no output is left of a command that failed"


def test_broken_standard_input_and_arguments(run, random_model):
    assert error_of(run("embed", "-m", random_model, stdin=b"\xff")) == "standard input, line 1: byte 1 (0xff) is no UTF-8"
    assert "argument 2 is no Unicode text" in error_of(run("embed", "-m", random_model, "ada", os.fsdecode(b"\xff")))
    assert "QUERY is no Unicode text" in error_of(run("rank", "-m", random_model, os.fsdecode(b"\xff"), "ada"))
    for text, tabs in (("ada", 0), ("a\tb\tc", 2)):
        assert f"argument 1 has {tabs} tabs, expected two texts" in error_of(run("embed", "-m", random_model, "--pairs", text))


@pytest.mark.parametrize("command", ["tag", "rank"])
def test_single_texts_only(run, random_model, command):
    query = ["ada"] if command == "rank" else []
    error = error_of(run(command, "-m", random_model, *query, "--jsonl", stdin=b'"ada"\n["a", "b"]\n'))
    assert error == """standard input, line 2: ['a', 'b'], expected one of "a text", {"text": "a text"}"""


def test_files_that_cannot_be_read(run, random_model, tmp_path):
    for path, number in ((tmp_path / "none.txt", errno.ENOENT), (tmp_path, errno.EISDIR)):
        assert error_of(run("embed", "-m", random_model, "-i", path)) == f"{path}: {os.strerror(number)}"


# --- usage ---


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_parses(run, command):
    status, out, _ = run(command, "--help")
    assert status == 0
    example = out.split("example:\n")[1]
    words = [w.strip('"') for w in re.findall(r'"[^"]*"|\S+', example)]
    assert words[:2] == ["fastinfer", command]
    # the first examples use the shipped model, an embedder; others name a model
    assert cli.parse(words[1:]).model == (None if command in ("embed", "rank") else "MODEL")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["paint"], "invalid choice: 'paint'"),
        (["rank", "-m", "M"], "required: QUERY"),
        (["embed", "-m", "M", "ada", "--depth", "3"], "unrecognized arguments: --depth"),
        (["info", "-m", "M", "ada"], "unrecognized arguments: ada"),
        (["embed", "-m", "M", "ada", "-i", "f"], "give texts as arguments or with --input, not both"),
        (["embed", "-m", "M"], "no texts: give them as arguments, with --input FILE, or on standard input"),
        (["rank", "-m", "M", "ada"], "no texts"),
        (["embed", "-m", "M", "ada", "--threads", "0"], "--threads: '0' is no integer of at least 1"),
        (["embed", "-m", "M", "ada", "--max-depth", "-1"], "--max-depth"),
        (["classify", "-m", "M", "ada", "-k", "x"], "'x' is no integer of at least 1"),
        (["embed", "-m", "M", "ada", "--json", "-o", "x.npy"], "--json and --output x.npy name two formats"),
        (["embed", "-m", "M", "ada", "--json", "-o", "x.csv"], "--json and --output x.csv name two formats"),
        (["tag", "-m", "M", "ada", "-o", "x.npy"], "--output x.npy: .npy holds arrays, and the answers of this command are none"),
        (["embed", "-m", "M", "ada", "--sparse", "-o", "x.npz"], "--output x.npz: weights of tokens are no array"),
        (["embed", "-m", "M", "ada", "--sparse", "--dim", "3"], "--dim is for vectors"),
        (["embed", "-m", "M", "ada", "--sparse", "--prompt", "x"], "--prompt is for vectors"),
        (["embed", "-m", "M", "ada", "--resume"], "--resume goes on with an interrupted --output FILE: name that file"),
        (["embed", "-m", "M", "ada", "--column", "x"], "--column is for texts from a file or from standard input"),
        (["embed", "-m", "M", "ada", "--jsonl"], "--jsonl is for texts from a file or from standard input"),
        (["tag", "-m", "M", "-i", "x.csv", "--column", "a", "--column", "b"], "--column is given 2 times, expected once"),
        (["answer", "-m", "M", "-i", "x.csv", "--column", "a"], "--column is given 1 times, expected twice"),
        (["classify", "-m", "M", "ada", "--template", "{}"], "--template is for labels of your own"),
        (["classify", "-m", "M", "ada", "--multi-label"], "--multi-label is for labels of your own"),
        (["info", "--dtype", "int8"], "--dtype says how a model is loaded: name one with --model"),
        (["embd", "ada"], "invalid choice: 'embd' (choose from embed, rank,"),
        (["embd", "ada"], ": did you mean embed?"),
        (["embed", "ada", "--treads", "2"], "unrecognized arguments: --treads: did you mean --threads?"),
        (["tag", "ada", "--strategy", "frist"], ": did you mean first?"),
        (["embed", "ada", "-o", "x.parqet"], ": .parqet is not written here, expected "),
        (["embed", "ada", "-o", "x.parqet"], ": did you mean .parquet?"),
    ],
)
def test_wrong_usage_ends_with_2(run, arguments, message):
    error = error_of(run(*arguments, stdin=None), status=2)
    assert message in error
    assert error.startswith("usage: fastinfer")


def test_version(run):
    assert run("--version") == (0, f"fastinfer {fastinfer.__version__}\n", "")


# --- answers out ---


def test_embed(run, random_model, tmp_path):
    want = fastinfer.load(random_model).embed(["ada", ("in", "london")])
    _, out, _ = run("embed", "-m", random_model, "--jsonl", "--json", stdin=b'"ada"\n["in", "london"]\n')
    assert_allclose([json.loads(line)["embedding"] for line in out.splitlines()], want, atol=1e-6)
    status, out, err = run("embed", "-m", random_model, "ada", "the " * 200 + "x", "a\x1b[2J\nb")
    assert status == 0
    lines = out.splitlines()
    first = " ".join(f"{v:8.4f}" for v in want[0, :4])
    assert lines[0] == f"32 dimensions, norm 1.0000: {first} ...  ada"
    assert lines[1].endswith(" ...  " + ("the " * 18)[:69] + "...")
    assert lines[2].endswith("a [2J b")
    assert all(len(line) < 160 for line in lines)
    said = r"1 of 3 texts had more than 32 tokens, the model's limit, and were cut \(the longest had at least (\d+)\)"
    assert 32 < int(re.fullmatch(f"fastinfer: warning: {said}\n", err)[1]) <= 203  # the command reads no more input than it needs
    assert run("embed", "-m", random_model, "ada", "-o", tmp_path / "x.npy") == (0, "", "")
    array = np.load(tmp_path / "x.npy")
    assert array.dtype == np.float32
    assert_allclose(array, want[:1], atol=1e-6)
    assert run("embed", "-m", random_model, "-o", tmp_path / "x.npy") == (0, "", "")
    assert np.load(tmp_path / "x.npy").shape == (0, 32)
    run("embed", "-m", random_model, "ada", "--no-normalize", "-o", tmp_path / "x.npy")
    assert_allclose(np.load(tmp_path / "x.npy"), fastinfer.load(random_model).embed("ada", normalize=False), atol=1e-6)


def test_prompts_and_shorter_vectors(run, tmp_path):
    head = Embed("mean", True, layers=(Project(9),), prompts=(Prompt("task", "paris is "), Prompt("query", "in ")), similarity="dot")
    config = make_config(tasks=Tasks(head))
    builders.save(tmp_path, config)
    make_tokenizer().save(str(tmp_path / "tokenizer.json"))
    model, at = fastinfer.load(tmp_path), ("-m", tmp_path)
    for options, want in [
        ((), model.embed("ada")),
        (("--prompt", "of "), model.embed("of ada")),
        (("--prompt-name", "task", "--dim", "4"), model.embed("paris is ada", dim=4)),
    ]:
        assert run("embed", *at, "ada", *options, "-o", tmp_path / "x.npy") == (0, "", "")
        assert_allclose(np.load(tmp_path / "x.npy"), want, atol=1e-6)
        run("embed", *at, *options, "-o", tmp_path / "x.npy")
        assert np.load(tmp_path / "x.npy").shape == (0, want.shape[1])
    _, out, _ = run("rank", *at, "--json", "--dim", "4", "ada", "london", "paris")
    want = model.embed("in ada", dim=4) @ model.embed(["london", "paris"], dim=4).T
    assert sorted(json.loads(line)["score"] for line in out.splitlines()) == pytest.approx(sorted(want[0]), abs=1e-6)
    assert run("embed", *at, "ada", "--dim", "10")[1:] == (
        "",
        "fastinfer: error: dim is 10, expected an integer from 1 to 9, the numbers of a vector\n",
    )
    status, _, err = run("embed", *at, "ada", "--prompt-name", "tusk")
    assert (status, err.partition(", expected")[0]) == (1, "fastinfer: error: prompt_name is 'tusk'")
    assert run("embed", *at, "ada", "--prompt-name", "task", "--prompt", "x")[0] == 2
    _, out, _ = run("info", *at, "--json")
    assert json.loads(out)["model"]["vectors"] == {"numbers": 9, "normalize": True, "similarity": "dot", "prompts": ["task", "query"]}


@pytest.mark.parametrize("name", ["texts.txt", "texts.txt.gz"])
def test_a_line_that_is_too_long(run, random_model, tmp_path, monkeypatch, name):
    monkeypatch.setattr(reading, "LINE_MEGABYTES", 1)
    path = tmp_path / name
    lines = b"ada\n" + b"a" * (1 << 20) + b"\n" + b"a" * ((1 << 20) + 1)
    path.write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
    status, out, err = run("embed", "-m", random_model, "-i", path)
    assert (status, out.count("\n")) == (0, 3)
    assert err.startswith(f"fastinfer: warning: {path}, line 3 has more than 1 MB: only its first 1 MB were read\n")
    for command in ("tag", "answer"):  # they answer about the whole text
        status, out, err = run(command, "-m", random_model, "-i", path, *(["-q", "is?"] if command == "answer" else []))
        assert status == 1
        assert f"{path}, line 3 has more than 1 MB, expected one text per line: split it\n" in err


def test_long_input_is_answered_in_order_window_by_window(run, random_model, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "WINDOW_TEXTS", 4)
    monkeypatch.setattr(reading, "WINDOW_CHARACTERS", 60)
    texts = [f"{'ada ' * (i % 9)}{WORDS[5 + i % 15]}" for i in range(30)] + ["paris " * 50, "ada", "london " * 60]
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(texts))
    sizes = []
    model = fastinfer.load(random_model)
    compute = model.embed
    monkeypatch.setattr(model, "embed", lambda window, **options: sizes.append(window) or compute(window, **options))
    monkeypatch.setattr(text_commands.api, "load", lambda *_, **__: model)
    status, out, err = run("embed", "-m", random_model, "-i", path, "--json")
    assert status == 0
    assert [json.loads(line)["text"] for line in out.splitlines()] == texts
    assert max(map(len, sizes)) == 4
    assert all(sum(map(len, window[:-1])) < 60 for window in sizes)
    assert min(map(len, sizes)) < 4
    assert err.startswith("fastinfer: warning: 2 of ")
    assert err.count("\n") == 1
    assert 32 < int(re.search(r"the longest had at least (\d+)", err)[1]) <= 62
    run("embed", "-m", random_model, "-i", path, "-o", tmp_path / "x.npy")
    with pytest.warns(UserWarning, match="2 of 33 texts"):
        assert_allclose(np.load(tmp_path / "x.npy"), compute(texts), atol=1e-5)


def test_an_error_in_a_later_window_says_where(run, readable_model, monkeypatch):
    monkeypatch.setattr(reading, "WINDOW_TEXTS", 2)
    folder = readable_model()
    status, out, err = run("fill-mask", "-m", folder, "[MASK]", "is [MASK]", "[MASK]", "ada")
    assert (status, out.count("\n")) == (1, 12)
    assert err.startswith("fastinfer: error: after the first 2 texts: texts[1] has no [MASK]")


def test_classify(run, readable_model):
    folder = readable_model({"classify": {"paris": [0, 3]}})
    yes = 1 / (1 + np.exp(-1))
    status, out, _ = run("classify", "-m", folder, "paris", "ada")
    assert (status, out) == (0, f"paris\n  {yes:.4f}  yes\n  {1 - yes:.4f}  no\nada\n  0.5000  no\n  0.5000  yes\n")
    _, out, _ = run("classify", "-m", folder, "--pairs", "-k", "1", "--json", "ada\tparis paris paris paris")
    (line,) = map(json.loads, out.splitlines())
    assert (line["text"], line["pair"]) == ("ada", "paris paris paris paris")
    assert line["labels"] == [{"label": "yes", "score": pytest.approx(1 / (1 + np.exp(-1.5)))}]


def test_classify_shows_a_few_of_many_labels(run, readable_model):
    labels = tuple(f"label {i}" for i in range(9))
    folder = readable_model(tasks=Tasks(classify=Classify(labels, "softmax", "mean")))
    assert run("classify", "-m", folder, "ada")[1].count("label") == 5
    assert run("classify", "-m", folder, "ada", "--top-k", 7)[1].count("label ") == 7
    assert len(json.loads(run("classify", "-m", folder, "ada", "--json")[1])["labels"]) == 9


def test_regression(run, readable_model):
    folder = readable_model({"classify": {"paris": [4.5]}}, tasks=Tasks(classify=Classify(("score",), "identity", "mean")))
    assert run("classify", "-m", folder, "paris", "ada")[1] == "    1.5000  paris\n    0.0000  ada\n"
    assert json.loads(run("classify", "-m", folder, "paris", "--json")[1]) == {"text": "paris", "score": 1.5}


def test_rank(run, random_model):
    documents = ["london", "in", "ada", "ada lovelace", *["?"] * 8]
    ranking = fastinfer.load(random_model).rank("ada", documents)
    status, out, _ = run("rank", "-m", random_model, "ada", *documents)
    assert status == 0
    assert out.splitlines() == [f"{place:2}  {score:8.4f}  {documents[i]}" for place, (i, score) in enumerate(ranking, 1)]
    _, out, _ = run("rank", "-m", random_model, "ada", "-k", "2", "--json", stdin="\n".join(documents).encode())
    assert [json.loads(line) for line in out.splitlines()] == [
        {"rank": place, "index": i, "score": pytest.approx(score), "text": documents[i]} for place, (i, score) in enumerate(ranking[:2], 1)
    ]


def test_fill_mask(run, readable_model):
    fill = [6.0 * (word == "london") + 5.0 * (word == "in") for word in WORDS]
    folder = readable_model({"fill_mask": {"[MASK]": fill}})
    found = fastinfer.load(folder).fill_mask("ada is [MASK]", top_k=2)[0][0]
    status, out, _ = run("fill-mask", "-m", folder, "ada is [MASK]", "-k", 2)
    assert (status, out) == (0, f"ada is [MASK]\n  {found[0][1]:.4f}  london  ada is london\n  {found[1][1]:.4f}  in      ada is in\n")
    (line,) = map(json.loads, run("fill-mask", "-m", folder, "ada is [MASK]", "--json")[1].splitlines())
    assert [len(best) for best in line["masks"]] == [5]
    assert line["masks"][0][0] == {"token": "london", "score": pytest.approx(found[0][1]), "text": "ada is london"}


def test_tag(run, readable_model):
    folder = readable_model({"tag": {"london": [0, 0, 0, 9, 0], "is": [9, 0, 0, 0, 0]}})
    score = fastinfer.load(folder).tag("london")[0][0][3]
    status, out, _ = run("tag", "-m", folder, "is London", "is")
    assert (status, out) == (0, f"is London\n  {score:.4f}  LOC  3-9  London\nis\n  nothing tagged\n")
    line = json.loads(run("tag", "-m", folder, "is London", "--json")[1])
    assert line == {"text": "is London", "spans": [{"start": 3, "end": 9, "label": "LOC", "score": pytest.approx(score), "text": "London"}]}


def test_answer(run, readable_model):
    folder = readable_model({"answer": {"london": [20, 20]}})
    context = "Ada lived in London."
    assert run("answer", "-m", folder, "-q", "is?", context)[:2] == (0, f"{context}\n  1.0000  13-19  London\n")
    assert "contexts[1] is '', expected a text with an answer in it" in error_of(run("answer", "-m", folder, "-q", "is?", context, ""))
    status, out, _ = run("answer", "-m", folder, "-q", "is?", "--no-answer", context, "")
    assert (status, out) == (0, f"{context}\n  1.0000  13-19  London\n\n  1.0000  0-0  no answer\n")
    want = {"question": "is?", "context": context, "answers": [{"start": 13, "end": 19, "score": pytest.approx(1), "text": "London"}]}
    given = [
        (["-q", "is?"], context),
        ([], f"is?\t{context}"),
        (["--jsonl"], json.dumps(["is?", context])),
        (["--jsonl"], json.dumps({"question": "is?", "context": context})),
        (["--jsonl", "-q", "is?"], json.dumps({"text": context})),
    ]
    for options, line in given:
        assert json.loads(run("answer", "-m", folder, "--json", *options, stdin=line.encode())[1]) == want
    assert len(json.loads(run("answer", "-m", folder, "--json", "-q", "is?", "-k", 3, context)[1])["answers"]) == 3
    assert "argument 1 has 0 tabs" in error_of(run("answer", "-m", folder, context))
    error = error_of(run("answer", "-m", folder, "--jsonl", stdin=b'"ada"'))
    assert """'ada', expected one of ["one", "two"], {"question": "one", "context": "two"}""" in error


def test_info(run, random_model):
    status, out, _ = run("info")
    assert status == 0
    assert re.search(rf"^version +{re.escape(fastinfer.__version__)}$", out, re.MULTILINE)
    assert re.search(r"^  numpy +ready$", out, re.MULTILINE)
    assert json.loads(run("info", "--json")[1]) == fastinfer.info()
    status, out, _ = run("info", "-m", random_model, "--device", "numpy")
    for line in (
        r"  device +numpy",
        r"  tasks +embed, fill_mask, classify, tag, answer",
        "  feedforward +2x3",
        "    stored +30",
        "    used +8",
        "  tokenizer +yes",
    ):
        assert re.search(f"^{line}$", out, re.MULTILINE), line
    model = fastinfer.load(random_model)
    found = json.loads(run("info", "-m", random_model, "--json")[1])["model"]
    assert found["folder"] == random_model
    assert (found["layers"], found["hidden"], found["max_tokens"], found["bytes"]) == (1, 32, 32, model.nbytes)
    assert found["parameters"] * 4 == model.nbytes
    assert found["tasks"] == list(model.tasks)


@pytest.fixture
def inside(monkeypatch, tmp_path, random_model):
    """Makes the random model the shipped one, named "tiny"."""
    monkeypatch.setattr(fastinfer.catalog, "MODELS", tmp_path / "models")
    shutil.copytree(random_model, tmp_path / "models" / "tiny")


def test_the_model_inside_is_the_default(run, inside, random_model):
    for words in (["embed", "ada", "in london", "--json"], ["rank", "ada", "in london", "ada"], ["classify", "ada"]):
        status, out, err = run(*words)
        assert (status, err) == (0, "")
        assert out == run(*words, "-m", random_model)[1] == run(*words, "-m", "tiny")[1]
    assert "or the name of a model inside fastinfer (tiny)" in error_of(run("embed", "-m", "teeny", "ada"))
    assert re.search("^models +tiny$", run("info")[1], re.MULTILINE)


def test_no_model_inside(run, monkeypatch, tmp_path):
    monkeypatch.setattr(fastinfer.catalog, "MODELS", tmp_path)
    assert "no model is named, and none is inside" in error_of(run("embed", "ada"))
    assert re.search("^models +none$", run("info")[1], re.MULTILINE)


# --- output files ---


def test_output_files(run, random_model, tmp_path):
    for name in ("out.txt", "out.jsonl"):
        want = run("classify", "-m", random_model, "ada", "é", *(["--json"] if name == "out.jsonl" else []))[1]
        assert run("classify", "-m", random_model, "ada", "é", "-o", tmp_path / name) == (0, "", "")
        assert (tmp_path / name).read_text(encoding="utf-8") == want
    assert sorted(os.listdir(tmp_path)) == ["out.jsonl", "out.txt"]


def test_a_failed_command_leaves_the_old_output(run, random_model, tmp_path):
    old = tmp_path / "out.jsonl"
    old.write_text("old")
    error_of(run("embed", "-m", random_model, "-o", old, stdin=b"ada\n\xff"))
    assert old.read_text() == "old"
    error_of(run("embed", "-m", tmp_path / "none", "ada", "-o", old))
    assert old.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.jsonl"]
    os.symlink("out.jsonl", tmp_path / "link")
    assert run("rank", "-m", random_model, "ada", "paris", "--json", "-o", tmp_path / "link")[0] == 0
    assert (tmp_path / "link").is_symlink()
    assert json.loads(old.read_text())["text"] == "paris"


def test_output_may_be_the_input(run, random_model, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('"ada"\n"london"\n')
    assert run("embed", "-m", random_model, "-i", path, "-o", path)[0] == 0
    assert [json.loads(line)["text"] for line in path.read_text().splitlines()] == ["ada", "london"]


def test_output_that_is_no_file(run, random_model, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert run("rank", "-m", random_model, "ada", "paris", "--json", "-o", pipe) == (0, "", "")
        assert json.loads(os.read(reader, 1000))["text"] == "paris"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert error_of(run("embed", "-m", random_model, "ada", "-o", tmp_path)) == f"{tmp_path}: {os.strerror(errno.EISDIR)}"
    assert os.strerror(errno.ENOENT) in error_of(run("embed", "-m", random_model, "ada", "-o", tmp_path / "no" / "x.txt"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk(random_model):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command("embed", "-m", random_model, "ada"), stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False
        )
    assert done.returncode == 1
    assert done.stderr == f"fastinfer: error: standard output: {os.strerror(errno.ENOSPC)}\n"


# --- failing ---


def test_a_task_without_a_head(run, readable_model):
    folder = readable_model(tasks=Tasks(fill_mask=FillMask(False, tied=False, bias=False)))
    for command in ("embed", "classify", "tag", "answer"):
        options = ["-q", "is?"] if command == "answer" else []
        assert error_of(run(command, "-m", folder, "ada", *options)) == f"{folder} has no {command} head; it has fill_mask"
    assert "cannot rank" in error_of(run("rank", "-m", folder, "ada", "paris"))


def test_models_and_devices_that_are_not_there(run, random_model, tmp_path):
    assert "is no checkpoint folder" in error_of(run("embed", "-m", tmp_path / "none", "ada"))
    assert "device 'cuda:99' was asked for" in error_of(run("embed", "-m", random_model, "ada", "--device", "cuda:99"))
    assert "dtype is 'float8'" in error_of(run("embed", "-m", random_model, "ada", "--dtype", "float8"))


def test_options_reach_the_model(run, random_model, monkeypatch):
    seen = {}
    load = fastinfer.load

    def recorded(path, **options):
        seen.update(options, path=path)
        model = load(path, **options)
        embed = model.embed
        model.embed = lambda texts, **options: seen.update(options) or embed(texts, **options)
        return model

    monkeypatch.setattr(text_commands.api, "load", recorded)
    options = ["--device", "numpy", "--dtype", "float32", "--threads", 2, "--max-depth", 1, "--batch-tokens", 77, "--normalize"]
    options += ["--dim", 7, "--prompt", "in "]
    assert run("embed", "-m", random_model, "ada", *options)[0] == 0
    want = {
        "path": random_model,
        "device": "numpy",
        "dtype": "float32",
        "threads": 2,
        "max_depth": 1,
        "batch_tokens": 77,
        "normalize": True,
        "dim": 7,
        "prompt": "in ",
        "prompt_name": None,
    }
    assert seen == want


def test_other_warnings_are_one_line(run, random_model, monkeypatch):
    import warnings

    def load(*_, **__):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning("something odd", UserWarning, "file.py", 3)
        return fastinfer.Model

    monkeypatch.setattr(text_commands, "load", load)
    monkeypatch.setattr(cli, "_describe", lambda *_: {})
    assert run("info", "-m", random_model)[2] == "fastinfer: warning: something odd\n"


def test_interrupted(run, random_model, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(fastinfer.Model, "embed", interrupt)
    assert run("embed", "-m", random_model, "ada", "-o", tmp_path / "x.npy") == (130, "", "fastinfer: interrupted\n")
    assert os.listdir(tmp_path) == []


def test_a_reader_that_goes_away(random_model):
    with subprocess.Popen(
        command("embed", "-m", random_model, "--json"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        _, err = process.communicate(b"ada\n" * 5000, timeout=120)
    assert err == b""
    assert process.returncode == 141


def test_ctrl_c(random_model):
    with subprocess.Popen(
        command("embed", "-m", random_model, "--json"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdin.write(b"ada\n" * reading.WINDOW_TEXTS)
        process.stdin.flush()
        process.stdout.readline()  # the command runs and waits for more input
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert err == b"fastinfer: interrupted\n"
    assert process.returncode == 130


# --- progress ---


@pytest.fixture
def terminal(monkeypatch):
    """terminal() makes standard error a terminal with readable text. Call it inside a test, because pytest replaces it before."""

    def terminal() -> io.StringIO:
        stream = io.StringIO()
        stream.isatty = lambda: True
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(progress, "INTERVAL", 0)
        monkeypatch.setattr(reading, "WINDOW_TEXTS", 2)
        return stream

    return terminal


def test_a_bar_where_the_number_of_texts_is_known(run, random_model, tmp_path, terminal):
    stream = terminal()
    path = tmp_path / "texts.txt"
    path.write_text("ada\n" * 5)
    run("embed", "-m", random_model, "-i", path, "-o", tmp_path / "x.npy")
    drawn = stream.getvalue()
    assert re.search(r"\[#{12} {18}\] 2/5 texts  \d+/s  \d+ s left", drawn)
    assert re.search(r"\[#{24} {6}\] 4/5 texts", drawn)
    assert drawn.endswith("\r\x1b[K"), "it erases itself"


def test_a_count_where_it_is_not(run, random_model, tmp_path, terminal):
    stream = terminal()
    run("embed", "-m", random_model, "-o", tmp_path / "x.npy", stdin=b"ada\n" * 5)
    assert re.search(r"\r4 texts  \d+/s", stream.getvalue())
    assert "[#" not in stream.getvalue()


def test_no_bar_in_a_pipe_nor_between_lines_on_a_terminal(run, random_model, tmp_path, monkeypatch, terminal):
    stream = terminal()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    run("embed", "-m", random_model, *["ada"] * 5)
    assert stream.getvalue() == ""
    stream.isatty = lambda: False
    run("embed", "-m", random_model, *["ada"] * 5, "-o", tmp_path / "x.npy")
    run("rank", "-m", random_model, *["ada"] * 5)
    assert stream.getvalue() == ""


def test_a_waiting_terminal_is_told_what_is_missing(random_model):
    parent, child = pty.openpty()
    try:
        done = subprocess.run(command("embed", "-m", random_model), stdin=child, capture_output=True, text=True, timeout=120, check=False)
    finally:
        os.close(parent)
        os.close(child)
    assert done.returncode == 2
    assert "no texts: give them as arguments" in done.stderr
