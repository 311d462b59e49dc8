"""The command line's files: every form of input, failing output, closed streams, signals. Real processes run where they matter."""

import csv
import errno
import gzip
import json
import os
import random
import re
import resource
import signal
import subprocess
import threading
import time

import conftest
import numpy as np
import pytest
from test_cli import command, error_of
from test_errors import HOSTILE, tame

import fastinfer
from fastinfer import checkpoint, reading, text_io
from fastinfer.config import Classify, Embed, Tasks

TASKS = {
    "embed": ["ada"],
    "rank": ["ada", "paris"],
    "classify": ["ada"],
    "fill-mask": ["a [MASK]"],
    "tag": ["ada"],
    "answer": ["-q", "ada", "ada lived"],
    "info": [],
}
needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")


def process(*arguments, streams="", **options):
    """A finished process. streams: a shell's redirections, such as ">&-", which closes standard output."""
    words = command(*map(str, arguments))
    if streams:
        words = ["sh", "-c", f'exec "$0" "$@" {streams}', *words]
    return subprocess.run(words, **{"capture_output": True, "text": True, "timeout": 120, "check": False} | options)


def failed(done, said: str) -> None:
    assert done.returncode == 1
    assert done.stderr == f"fastinfer: error: {said}\n"


# --- input -----------------------------------------------------------------------------------------

LINES = b'\xef\xbb\xbf"ada"\n\n  \t \r\n{"text": "in london"}\r\n\n["ada", "paris"]\n\n'
VALUES = ["ada", "in london", ["ada", "paris"]]


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.JsonL", "a.ndjson", "a.NDJSON", "a.json", "a.JSON", "a.jsonl.gz", "a.JSON.GZ"])
def test_json_lines_by_any_name(embed, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(LINES) if name.lower().endswith("gz") else LINES)
    assert embed("-i", path) == VALUES


def test_blank_lines_of_plain_text_are_texts(embed, tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"ada\r\n\r\n\nparis")
    assert embed("-i", path) == ["ada", "", "", "paris"]


@pytest.mark.parametrize("indent", [None, 0, 2])
def test_a_list_in_a_json_file(embed, tmp_path, indent):
    path = tmp_path / "a.json"
    for values, want in (
        (["ada", "paris"], ["ada", "paris"]),
        (["ada"], ["ada"]),
        ([], []),
        ([["ada", "paris"], {"text": "in"}, {"text": "a", "pair": "b"}], [["ada", "paris"], "in", ["a", "b"]]),
        ("ada", ["ada"]),
        ({"text": "ada", "more": [1, 2]}, ["ada"]),
    ):
        path.write_text(json.dumps(values, indent=indent))
        assert embed("-i", path) == want
    path.write_text('["ada", "paris"]')
    assert embed("-i", path, "--jsonl") == [["ada", "paris"]], "--jsonl: each line is a text"
    path.write_bytes(b"")
    assert embed("-i", path) == []


def test_lists_and_lines_are_told_apart(embed, tmp_path):
    """In every layout, a .json file has the texts that json.loads finds in the whole file or in each line."""
    chance = random.Random(4)
    path = tmp_path / "a.json"
    for _ in range(40):
        texts = [chance.choice(["ada", "[", "]", '"', "{}", "a, b", "\n", "é"]) for _ in range(chance.randrange(4))]
        path.write_text(json.dumps(texts, indent=chance.choice([None, 1, 3]), ensure_ascii=chance.random() < 0.5))
        assert embed("-i", path) == texts
        path.write_text("".join(json.dumps(text) + "\n" * chance.randrange(1, 4) for text in texts))
        assert embed("-i", path) == texts


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", b'["ada", 5]', r"a\.json, item 2: 5, expected one of "),
        ("a.json", b'{"txt": "ada"}', r"a\.json, item 1: \{'txt': 'ada'\}, expected one of "),
        ("a.json", b'["ada",\n "paris"', r"a\.json: no JSON: "),
        ("a.json", b"ada\nparis\n", r"a\.json: no JSON: "),
        ("a.json", b'"ada"\n\n\nparis', r"a\.json, line 4: no JSON: "),
        ("a.jsonl", b'\n\n"ada"\n\n{"text": 3}\n', r"a\.jsonl, line 5: 3, expected one of "),
        ("a.JSONL", b"\n\n\nada\n", r"a\.JSONL, line 4: no JSON: "),
        ("a.txt", "ada\n".encode("utf-16"), r"a\.txt, line 1: the file is UTF-16 or UTF-32, expected UTF-8: convert it with iconv"),
        ("a.txt", b"\xfe\xff" + "ada\n".encode("utf-16-be"), r"a\.txt, line 1: the file is UTF-16 or UTF-32"),
        ("a.txt", "ada\n".encode("utf-32"), r"a\.txt, line 1: the file is UTF-16 or UTF-32"),
        ("a.jsonl", '"ada"\n'.encode("utf-16"), r"a\.jsonl, line 1: the file is UTF-16 or UTF-32"),
        ("a.txt", "ada\n".encode("utf-16-le"), r"a\.txt, line 1: byte 2 is 0, expected UTF-8 text: the file is binary, or UTF-16"),
        ("a.txt", b"ada\nlon\0don\n", r"a\.txt, line 2: byte 4 is 0, expected UTF-8 text"),
        ("a.txt", b"ada\n\xff\xfea\n", r"a\.txt, line 2: byte 1 \(0xff\) is no UTF-8"),
    ],
)
def test_input_that_cannot_be_read(run, random_model, tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    message = error_of(run("embed", "-m", random_model, "-i", path))
    assert re.search(said, message)
    assert tame(message)


def test_names_that_are_empty(run, random_model, tmp_path):
    for option in ("-i", "-o"):
        assert f"--{'input' if option == '-i' else 'output'} is empty" in run("embed", "-m", random_model, option, "")[2]
    assert "an empty name is no checkpoint folder" in error_of(run("embed", "-m", "", "ada"))


def test_folders_and_missing_files_are_named(run, random_model, tmp_path):
    assert error_of(run("embed", "-m", random_model, "-i", tmp_path)) == f"{tmp_path}: {os.strerror(errno.EISDIR)}"
    assert error_of(run("embed", "-m", random_model, "-i", tmp_path / "no")) == f"{tmp_path / 'no'}: {os.strerror(errno.ENOENT)}"
    hostile = tmp_path / "a\x1b[31m\nb"
    assert tame(error_of(run("embed", "-m", random_model, "-i", hostile)))


def test_the_bar_counts_texts(monkeypatch, tmp_path):
    for name, content, count in (
        ("a.txt", b"ada\n\n\nin", 4),
        ("a.jsonl", LINES.removeprefix(b"\xef\xbb\xbf"), 3),
        ("a.JSONL", b"\n\n", 0),
        ("a.json", b"[]", None),
        ("a.txt.gz", b"", None),
        ("a.TXT.GZ", b"", None),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        args = type("Args", (), {"texts": [], "input": str(path), "jsonl": False})
        assert reading._count(args) == count


# --- arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize("utf8", ["0", "1"])
def test_other_locales(random_model, tmp_path, utf8):
    """Arguments and answers are UTF-8 whatever the locale and PYTHONIOENCODING say."""
    environment = os.environ | {"LC_ALL": "C", "LANG": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": utf8}
    done = process("classify", "-m", random_model, "é 日本", "--json", env=environment, text=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["text"] == "é 日本"
    done = process("answer", "-m", random_model, "-q", "ünd", "é 日本", "--json", env=environment, text=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (json.loads(done.stdout)["question"], json.loads(done.stdout)["context"]) == ("ünd", "é 日本")
    done = process("rank", "-m", random_model, "é", "日本", "-o", tmp_path / "é.txt", env=environment, text=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert "日本" in (tmp_path / "é.txt").read_text("utf-8")


ODD = os.fsdecode(b"\xff\x1b[31m\xe2\x80\xae\x9b")


@pytest.mark.parametrize(
    "arguments",
    [
        ["embed", ODD],
        ["embed", "-m", ODD, "a"],
        ["embed", "-i", ODD],
        ["embed", f"--{ODD}", "a"],
        ["embed", f"-{ODD}", "a"],
        ["embed", "--device", ODD, "a"],
        ["embed", "--dtype", ODD, "a"],
        ["embed", "--threads", ODD, "a"],
        ["embed", "--threads", "9" * 100_000, "a"],
        ["embed", "--max-depth", "9" * 5000, "a"],
        ["embed", "--batch-tokens", "-" + "9" * 5000, "a"],
        ["embed", "--" + "x" * 100_000, "a"],
        ["embed", "-o", ODD + "/x.npy", "a"],
        ["embed", "-o", "x" * 5000, "a"],
        ["embed", "-o", "v." + ODD, "a"],
        ["rank", ODD, "a"],
        ["answer", "-q", ODD, "a"],
        ["tag", "a", "b", f"--pairs={ODD}"],
        ["info", ODD],
        ["info", "-m", ODD],
        [ODD],
        ["x" * 100_000],
        ["embed", "-m", HOSTILE.replace("\0", ""), "a"],
    ],
    ids=range(23),
)
def test_odd_arguments(run, random_model, arguments):
    if "-m" not in arguments and arguments[0] in TASKS:
        arguments = [arguments[0], "-m", random_model, *arguments[1:]]
    status, out, err = run(*arguments)
    assert status in (1, 2)
    assert out == ""
    assert "Traceback" not in err
    assert all(line.isprintable() for line in err.split("\n"))
    assert len(err) < 6000


# --- text shown on a terminal ---------------------------------------------------------------------------------


@pytest.fixture
def hostile_model(tmp_path):
    """A folder whose name and labels would act on a terminal."""
    folder = tmp_path / "m\x1b[31m\nodd"
    config = conftest.make_config(tasks=Tasks(embed=Embed("mean", True), classify=Classify((HOSTILE, "\u202eb"), "softmax", "mean")))
    checkpoint.save(folder, config, conftest.builders.weights(config))
    conftest.make_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("json_lines", [False, True])
def test_nothing_acts_on_a_terminal(run, hostile_model, json_lines):
    text = HOSTILE.replace("\ud800", "")
    for arguments in (["embed", text], ["classify", text], ["rank", text, text], ["info"]):
        status, out, err = run(*arguments, "-m", hostile_model, *(["--json"] if json_lines else []))
        assert (status, err) == (0, "")
        assert all(line.isprintable() for line in out.split("\n"))
        if json_lines:
            for line in out.removesuffix("\n").split("\n"):
                found = json.loads(line)
                assert arguments[0] == "info" or found["text"] == text
            if arguments[0] == "classify":
                assert {label["label"] for label in found["labels"]} == {HOSTILE, "\u202eb"}


def test_json_lines_keep_every_character():
    everything = "".join(map(chr, [*range(0x3000), *random.Random(7).sample(range(0x3000, 0x110000), 20_000)]))
    for value in (everything, "é日本👍", "\ud83d\ude00 is no pair of characters", {HOSTILE: [HOSTILE, 1.5, None]}):
        line = text_io.json_line(value)
        assert line.isprintable()
        assert line.encode()
        assert json.loads(line) == json.loads(json.dumps(value))
    assert text_io.json_line("é日本👍") == '"é日本👍"'


# --- output ----------------------------------------------------------------------------------------


@needs_full
@pytest.mark.parametrize("task", TASKS)
def test_full_devices(run, random_model, task):
    said = os.strerror(errno.ENOSPC)
    with open("/dev/full", "wb") as full:
        failed(
            process(task, "-m", random_model, *TASKS[task], stdout=full, capture_output=False, stderr=subprocess.PIPE),
            f"standard output: {said}",
        )
    assert error_of(run(task, "-m", random_model, *TASKS[task], "-o", "/dev/full")) == f"/dev/full: {said}"


@needs_full
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["rank", "--help"]])
def test_help_to_a_full_device(arguments, unbuffered):
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "wb") as full:
        done = process(*arguments, stdout=full, capture_output=False, stderr=subprocess.PIPE, env=environment)
    failed(done, f"standard output: {os.strerror(errno.ENOSPC)}")


def test_a_full_disk_while_an_array_is_written(random_model, tmp_path):
    """A limit on file sizes imitates a full disk. The old file stays, and no other file is left."""
    old = tmp_path / "x.npy"
    old.write_bytes(b"old")

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    failed(process("embed", "-m", random_model, *["ada"] * 99, "-o", old, preexec_fn=limited), f"{old}: {os.strerror(errno.EFBIG)}")
    assert old.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.npy"]


def test_closed_streams(random_model, tmp_path):
    path = tmp_path / "x.npy"
    done = process("embed", "-m", random_model, "ada", "-o", path, streams=">&-")
    assert (done.returncode, done.stderr) == (0, "")
    want = np.load(path)
    assert want.shape == (1, 32)
    path.unlink()
    for streams in ("2>&-", ">&- 2>&-", "<&- >&- 2>&-"):
        done = process("embed", "-m", random_model, "ada", "-o", path, streams=streams)
        assert (done.returncode, done.stdout) == (0, "")
        np.testing.assert_array_equal(np.load(path), want)
        path.unlink()
    failed(process("embed", "-m", random_model, "ada", streams=">&-"), f"standard output: {os.strerror(errno.EBADF)}")
    failed(process("--version", streams=">&-"), f"standard output: {os.strerror(errno.EBADF)}")
    done = process("embed", "-m", random_model, "-i", tmp_path / "none", streams="2>&-")
    assert (done.returncode, done.stdout) == (1, ""), "messages do not go to standard output instead"
    done = process("embed", "-m", random_model, "-", streams="<&-")
    assert done.returncode == 2
    assert "no texts" in done.stderr


@pytest.mark.parametrize("ending", [".cvs", ".tsv", ".xlsx", ".pkl", ".gz", ".jsonl.gz", ".safetensors", ".html", ".bin"])
def test_endings_that_are_not_written(run, random_model, tmp_path, ending):
    for task, arguments in TASKS.items():
        status, out, err = run(task, "-m", random_model, *arguments, "-o", tmp_path / f"v{ending}")
        assert (status, out) == (2, "")
        assert f"{ending}: {os.path.splitext(f'v{ending}')[1].lower()} is not written here, expected " in err
        assert (".npy" in err) == (task == "embed")
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["v.npy", "v.NPY", "v.npz", "v.csv", "v.jsonl", "v.JSONL", "v.ndjson", "v.json", "v.txt", "v"])
def test_endings_that_are_written(run, random_model, tmp_path, name):
    assert run("embed", "-m", random_model, "ada", "-o", tmp_path / name) == (0, "", "")
    raw = (tmp_path / name).read_bytes()
    want = fastinfer.load(random_model).embed("ada")
    if name.lower().endswith("npy"):
        found = np.load(tmp_path / name)
    elif name == "v.npz":
        found = np.load(tmp_path / name)["embeddings"]
    elif name == "v.csv":
        found = [next(csv.reader([raw.decode().splitlines()[1]]))[1:]]
    elif name == "v.json":
        found = [row["embedding"] for row in json.loads(raw)]
    elif "json" in name.lower():
        found = [json.loads(raw)["embedding"]]
    else:
        found = np.loadtxt(tmp_path / name, ndmin=2)
    np.testing.assert_array_equal(np.array(found, np.float32), want)


def test_places_that_cannot_be_written(run, random_model, tmp_path):
    missing = tmp_path / "no" / "x.npy"
    assert error_of(run("embed", "-m", random_model, "ada", "-o", missing)) == f"{missing}: {os.strerror(errno.ENOENT)}"
    folder = tmp_path / "folder.npy"
    folder.mkdir()
    assert error_of(run("embed", "-m", random_model, "ada", "-o", folder)) == f"{folder}: {os.strerror(errno.EISDIR)}"
    below = tmp_path / "file"
    below.write_bytes(b"")
    assert error_of(run("embed", "-m", random_model, "ada", "-o", below / "x.npy")) == f"{below / 'x.npy'}: {os.strerror(errno.ENOTDIR)}"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.npy"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only(run, random_model, tmp_path):
    tmp_path.chmod(0o500)
    message = error_of(run("embed", "-m", random_model, "ada", "-o", tmp_path / "x.npy"))
    assert message == f"{tmp_path / 'x.npy'}: {os.strerror(errno.EACCES)}"


def test_no_texts_at_all(run, random_model, tmp_path):
    assert run("embed", "-m", random_model, "-i", os.devnull, "-o", tmp_path / "x.npy") == (0, "", "")
    assert np.load(tmp_path / "x.npy").shape == (0, 32)
    assert run("classify", "-m", random_model, "-i", os.devnull, "-o", tmp_path / "x.jsonl") == (0, "", "")
    assert (tmp_path / "x.jsonl").read_bytes() == b""


def test_two_writers_of_one_file(run, random_model, tmp_path):
    """While a process writes a file, another one that would write it is refused. The first one's file is whole."""
    path = tmp_path / "x.jsonl"
    with subprocess.Popen(command("embed", "-m", random_model, "-o", str(path)), stdin=subprocess.PIPE, stderr=subprocess.PIPE) as pipe:
        pipe.stdin.write(b"ada\n" * reading.WINDOW_TEXTS * 2)
        pipe.stdin.flush()
        wait_for(lambda: any(part.stat().st_size for part in tmp_path.glob("*.part")), "answers in the part")
        for more in ([], ["--resume"]):
            said = error_of(run("embed", "-m", random_model, "paris", "-o", path, *more))
            assert said == f"{path}.part belongs to a run that is still going on: wait for it, or name another file"
        _, errors = pipe.communicate(b"ada\n" * 1000, timeout=120)
    assert (pipe.returncode, errors) == (0, b"")
    assert [json.loads(line)["text"] for line in path.read_text().splitlines()] == ["ada"] * (reading.WINDOW_TEXTS * 2 + 1000)
    assert os.listdir(tmp_path) == ["x.jsonl"]


# --- signals ---------------------------------------------------------------------------------------


def wait_for(done, what: str) -> None:
    end = time.monotonic() + 100
    while not done():
        assert time.monotonic() < end, f"waited for {what}"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("name", ["x.npy", "x.jsonl"])
def test_a_request_to_end(random_model, tmp_path, number, name):
    (tmp_path / name).write_bytes(b"old")
    with subprocess.Popen(
        command("embed", "-m", random_model, "-o", str(tmp_path / name)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as running:
        running.stdin.write(b"ada\n" * reading.WINDOW_TEXTS * 2)
        running.stdin.flush()
        wait_for(lambda: any(part.stat().st_size for part in tmp_path.glob("*.part")), "answers in the part")
        running.send_signal(number)
        out, err = running.communicate(timeout=120)
    assert (running.returncode, out) == (128 + number, b"")
    kept = [f"{name}.part", f"{name}.part.json"] if err else []  # it may have answered no text yet
    assert re.fullmatch(r"|fastinfer: kept: the answers to (1024|2048) texts are kept in .*\.part: the same command .*\n", err.decode())
    assert sorted(os.listdir(tmp_path)) == sorted([name, *kept])
    assert (tmp_path / name).read_bytes() == b"old"


def test_signals_that_are_ignored_or_handled_stay_so(run, random_model):
    for handler in (signal.SIG_IGN, signal.SIG_DFL, lambda *_: None):
        before = signal.signal(signal.SIGTERM, handler)
        try:
            assert run("embed", "-m", random_model, "ada")[0] == 0
            assert signal.getsignal(signal.SIGTERM) is handler
        finally:
            signal.signal(signal.SIGTERM, before)


def test_from_another_thread(run, random_model):
    done = []
    thread = threading.Thread(target=lambda: done.append(run("embed", "-m", random_model, "ada")[0]))
    thread.start()
    thread.join()
    assert done == [0]
