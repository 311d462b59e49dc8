"""Interrupted runs of the command line: what they keep, and that going on gives the file of a run without an interruption."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from conftest import WORDS
from test_cli import command, error_of

import fastinfer
from fastinfer import keeping, reading

FORMATS = ["npy", "npz", "csv", "parquet", "jsonl", "json", "txt"]


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(reading, "WINDOW_TEXTS", 4)


@pytest.fixture
def texts(tmp_path):
    """A file of 30 random texts."""
    path = tmp_path / "texts.txt"
    path.write_text("".join(" ".join(random.choices(WORDS[5:], k=random.randrange(8))) + "\n" for _ in range(30)))
    return path


@pytest.fixture
def stopping(monkeypatch):
    """stopping(after, error) makes embed fail with the error after so many calls with texts."""

    def stopping(after, error=KeyboardInterrupt):
        with monkeypatch.context() as patch:
            count, embed = [0], fastinfer.Model.embed

            def interrupted(model, given, **options):
                count[0] += len(given) > 0
                if count[0] > after:
                    raise error
                return embed(model, given, **options)

            patch.setattr(fastinfer.Model, "embed", interrupted)
            yield

    return contextlib.contextmanager(stopping)


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "texts.txt")


@pytest.mark.parametrize("form", FORMATS)
def test_going_on_gives_the_same_file(run, random_model, tmp_path, texts, stopping, form):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    given = ("embed", "-m", random_model, "-i", texts, "-o")
    whole, path = tmp_path / f"whole.{form}", tmp_path / f"x.{form}"
    assert run(*given, whole) == (0, "", "")
    for done in (random.randrange(1, 4), random.randrange(1, 3)):  # interrupted twice
        with stopping(done):
            status, out, err = run(*given, path, "--resume")
        assert (status, out) == (130, "")
        assert err.startswith("fastinfer: interrupted\nfastinfer: kept: the answers to ")
        assert f" texts are kept in {path}.part: the same command with --resume goes on from there" in err
        assert files(tmp_path) == sorted([whole.name, f"x.{form}.part", f"x.{form}.part.json"])
    kept = json.loads((tmp_path / f"x.{form}.part.json").read_text())["texts"]
    seen = []
    embed = fastinfer.Model.embed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fastinfer.Model, "embed", lambda model, given, **options: seen.extend(given) or embed(model, given, **options))
        assert run(*given, path, "--resume") == (0, "", "")
    assert seen == texts.read_text().split("\n")[kept:-1], "answers that were kept are not computed again"
    assert path.read_bytes() == whole.read_bytes()
    assert files(tmp_path) == sorted([whole.name, path.name])


def test_other_commands_go_on_too(run, random_model, tmp_path, texts, monkeypatch):
    given = ("tag", "-m", random_model, "-i", texts, "-o")
    assert run(*given, tmp_path / "whole.csv")[0] == 0
    tag, count = fastinfer.Model.tag, []

    def interrupted(model, given, **options):
        count.append(given)
        if len(count) == 4:
            raise KeyboardInterrupt
        return tag(model, given, **options)

    monkeypatch.setattr(fastinfer.Model, "tag", interrupted)
    assert run(*given, tmp_path / "x.csv")[0] == 130
    assert run(*given, tmp_path / "x.csv", "--resume")[0] == 0
    assert (tmp_path / "x.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_killed_process_goes_on(run, random_model, tmp_path):
    """What was saved before SIGKILL is used, and what was written behind it is written again."""
    texts, path = tmp_path / "texts.txt", tmp_path / "x.jsonl"
    texts.write_text("ada in london\nparis\n" * 600)
    code = (
        "import sys; from fastinfer import cli, keeping, reading; keeping.SAVED_EVERY = 0; reading.WINDOW_TEXTS = 8; cli.main(sys.argv[1:])"
    )
    words = [command()[0], "-c", code, "embed", "-m", random_model, "-o", str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as running:
        running.stdin.write(texts.read_bytes()[:4000])
        running.stdin.flush()
        end = time.monotonic() + 100
        while not (tmp_path / "x.jsonl.part.json").exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
    with open(f"{path}.part", "ab") as part:
        part.write(b'{"text": "half a li')
    assert run("embed", "-m", random_model, "-i", texts, "-o", path, "--resume") == (0, "", "")
    assert run("embed", "-m", random_model, "-i", texts, "-o", tmp_path / "whole.jsonl") == (0, "", "")
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_texts_may_follow_but_not_change(run, random_model, tmp_path, texts, stopping):
    path, given = tmp_path / "x.npy", ("embed", "-m", random_model, "-i", texts)
    with stopping(3):
        run(*given, "-o", path)
    before = (tmp_path / "x.npy.part").read_bytes()
    lines = texts.read_text().splitlines()
    for changed in (["other", *lines[1:]], lines[1:], lines[:11], [lines[1], lines[0], *lines[2:]]):
        if changed[:12] != lines[:12]:
            texts.write_text("".join(line + "\n" for line in changed))
            said = error_of(run(*given, "-o", path, "--resume"))
            assert (
                said == f"{path}.part has the answers to 12 texts, but the input begins with others now: remove {path}.part to begin again"
            )
            assert (tmp_path / "x.npy.part").read_bytes() == before
    texts.write_text("".join(line + "\n" for line in [*lines[:12], "paris", "ada"]))
    assert run(*given, "-o", path, "--resume") == (0, "", "")
    np.testing.assert_array_equal(np.load(path), fastinfer.load(random_model).embed([*lines[:12], "paris", "ada"]))


def test_another_model_or_other_options_are_refused(run, random_model, tmp_path, texts, stopping):
    path, folder = tmp_path / "x.csv", tmp_path / "model"
    shutil.copytree(random_model, folder)
    given = ("embed", "-m", folder, "-i", texts, "-o", path)
    with stopping(2):
        run(*given)
    for more, said in (
        (["--dim", 7], "dim was None and is 7"),
        (["--device", "numpy"], "device was 'cpu"),
        (["--max-depth", 1], "max depth"),
    ):
        error = error_of(run(*given, "--resume", *more))
        assert error.startswith(f"{path}.part was made in another way: {said}")
        assert error.endswith(f"Give the same options: remove {path}.part to begin again")
    config = json.loads((folder / "config.json").read_text())
    config["max_tokens"] -= 1
    (folder / "config.json").write_text(json.dumps(config))
    assert "was made in another way: model was '" in error_of(run(*given, "--resume"))
    shutil.rmtree(folder)
    shutil.copytree(random_model, folder)
    assert run(*given, "--resume", "--threads", 1)[0] == 0, "threads change no bit"


def test_a_part_is_not_overwritten(run, random_model, tmp_path, texts, stopping):
    path, given = tmp_path / "x.txt", ("embed", "-m", random_model, "-i", texts, "-o", tmp_path / "x.txt")
    with stopping(2):
        run(*given)
    said = error_of(run(*given))
    assert said == f"{path}.part keeps the answers of an interrupted run: add --resume to go on with it, or remove it to begin again"
    (tmp_path / "x.txt.part").unlink()
    assert run(*given) == (0, "", "")
    assert files(tmp_path) == ["x.txt"]


def test_an_error_keeps_what_came_before_it(run, random_model, tmp_path):
    lines = [b"ada"] * 9 + [b"\xff"] + [b"paris"] * 3
    (tmp_path / "texts.txt").write_bytes(b"\n".join(lines))
    given = ("embed", "-m", random_model, "-i", tmp_path / "texts.txt", "-o", tmp_path / "x.jsonl")
    status, out, err = run(*given)
    assert (status, out) == (1, "")
    assert err.splitlines()[0].endswith("line 10: byte 1 (0xff) is no UTF-8")
    assert err.splitlines()[1].startswith("fastinfer: kept: the answers to 8 texts are kept in ")
    (tmp_path / "texts.txt").write_bytes(b"\n".join([*lines[:9], b"london", *lines[10:]]))
    assert run(*given, "--resume") == (0, "", "")
    found = [json.loads(line)["text"] for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert found == ["ada"] * 9 + ["london"] + ["paris"] * 3


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (b"{", "cannot be read as JSON"),
        (b"[]", "does not say what x.npy.part holds: remove "),
        (b'{"texts": 3}', "does not say what x.npy.part holds: remove "),
        (b'{"texts": "3", "digest": "", "bytes": 128, "made": {}}', "texts is '3', expected an integer of at least 1"),
        (b'{"texts": 3, "digest": "", "bytes": 1e99, "made": {}}', "bytes is 1e+99, expected an integer from 0 to"),
        (b'{"texts": 3, "digest": "", "bytes": 99999999, "made": {}}', "bytes is 99999999, expected an integer from 0 to"),
        (b'{"texts": 3, "digest": "", "bytes": 128, "made": 7}', "does not say what x.npy.part holds: remove "),
        (b'{"texts": 3, "digest": "", "bytes": 128, "made": {}}', "was made in another way: "),
    ],
)
def test_broken_states(run, random_model, tmp_path, texts, stopping, state, said):
    given = ("embed", "-m", random_model, "-i", texts, "-o", tmp_path / "x.npy", "--resume")
    with stopping(1):
        run(*given)
    (tmp_path / "x.npy.part.json").write_bytes(state)
    assert said in error_of(run(*given))
    assert files(tmp_path) == ["x.npy.part", "x.npy.part.json"]


def test_a_link_in_the_place_of_the_part(run, random_model, tmp_path, texts):
    (tmp_path / "other").write_bytes(b"kept")
    os.symlink("other", tmp_path / "x.npy.part")
    assert f"{tmp_path / 'x.npy'}.part: " in error_of(run("embed", "-m", random_model, "-i", texts, "-o", tmp_path / "x.npy"))
    assert (tmp_path / "other").read_bytes() == b"kept"


def test_streams_keep_nothing(run, random_model, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        said = error_of(run("embed", "-m", random_model, "ada", "-o", tmp_path / "pipe", "--resume"))
    finally:
        os.close(reader)
    assert said == f"--resume: {tmp_path / 'pipe'} is no file, so nothing is kept of it"


@pytest.mark.parametrize("what", ["ends", "begins anew", "ends, and a third begins"])
@pytest.mark.parametrize("there", [False, True], ids=["no part", "a part"])
def test_another_run_between_the_opening_of_a_part_and_its_lock(run, random_model, texts, tmp_path, monkeypatch, there, what):
    """A file that lost its name is not written. Each run that ends leaves its answers whole."""
    path, part, locked = tmp_path / "x.jsonl", tmp_path / "x.jsonl.part", keeping.locked
    if there:
        part.write_bytes(b"what a run that was killed wrote")
    others = []

    def late(file, name):
        if not others:
            others.append(part.read_bytes())
            if what == "begins anew":
                part.unlink()
            else:
                os.replace(part, path)
            if what != "ends":
                part.write_bytes(b"more")
        locked(file, name)

    monkeypatch.setattr(keeping, "locked", late)
    assert run("embed", "-m", random_model, "-i", texts, "-o", path) == (0, "", "")
    assert len(others) == 1
    assert len(path.read_text().splitlines()) == 30
    assert files(tmp_path) == ["x.jsonl"]


def test_another_run_ends_before_one_goes_on(run, random_model, texts, tmp_path, monkeypatch, stopping):
    """The part became the file of the other run, which --resume must not write into."""
    path, part, locked = tmp_path / "x.jsonl", tmp_path / "x.jsonl.part", keeping.locked
    with stopping(3):
        assert run("embed", "-m", random_model, "-i", texts, "-o", path)[0] == 130
    kept = tmp_path / "kept"

    def late(file, name):
        if not kept.exists():
            os.link(part, kept)
            os.replace(part, path)
            before.append(path.read_bytes())
        locked(file, name)

    before = []
    monkeypatch.setattr(keeping, "locked", late)
    assert run("embed", "-m", random_model, "-i", texts, "-o", path, "--resume") == (0, "", "")
    assert kept.read_bytes() == before[0]
    assert len(path.read_text().splitlines()) == 30
    assert files(tmp_path) == ["kept", "x.jsonl"]
