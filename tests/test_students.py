"""tools/students.py: runs side by side, their table, and what stops and fails."""

import json

import pytest
from models import load_tool

pytest.importorskip("torch", reason="tools/train.py needs PyTorch")
pytest.importorskip("tqdm", reason="tools/train.py needs tqdm")
students = load_tool("students")

# stands for `train.py distill`: it writes a run, fails or waits, as its shape says
TRAIN = """
import json, pathlib, sys, time
flags = sys.argv[2:]
out = pathlib.Path(flags[flags.index("--out") + 1])
out.mkdir(exist_ok=True)
(out / "state.pt").touch()
if "--resume" not in flags:
    (out / "flags").write_text(json.dumps(flags))
    if "fails" in flags:
        sys.exit("no such shape")
    if "waits" in flags:
        time.sleep(60)
lines = [{"step": 1}, {"step": 2, "validation_embed": 0.01 * (1 + int(json.loads((out / "flags").read_text())[-1]))}]
(out / "metrics.jsonl").write_text("".join(json.dumps(line) + chr(10) for line in lines))
(out / "model").mkdir()
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A function that runs a study with these kinds of runs and options: its exit status."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "train.py").write_text(TRAIN)
    monkeypatch.setattr(students, "__file__", str(tmp_path / "tools" / "students.py"))

    def run(kinds, *options):
        monkeypatch.setattr(students, "STUDIES", {"options": kinds})
        return students.main(["options", "--teacher", "minilm", "--out", str(tmp_path / "runs"), *options])

    return run


def test_runs_are_trained_once_and_listed(study, tmp_path, capsys):
    kinds = {"one": "--shape '1x2 + 3' --lr 0", "two, more": "--lr 2"}
    assert study(kinds, "--seeds", "2", "--cache", "ids.npz", "--steps", "7") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "seeds", "1", "-", "cosine", "hidden", "STS-B", "tokens/s"]
    assert lines[1].split() == ["one", "2", "0.01", "(0)", "-", "-", "-"]
    assert lines[2].split() == ["two,", "more", "2", "0.03", "(0)", "-", "-", "-"]
    flags = json.loads((tmp_path / "runs" / "options-one-1" / "flags").read_text())
    assert flags[flags.index("--shape") + 1] == "1x2 + 3"
    assert [flags[flags.index(f"--{name}") + 1] for name in ("seed", "cache", "steps", "teacher")] == ["1", "ids.npz", "7", "minilm"]
    (tmp_path / "tools" / "train.py").write_text("raise SystemExit('trained again')")
    assert study(kinds, "--seeds", "2") == 0
    assert study(kinds, "--runs", "three") == 1
    assert "options has no run three; known here: one; two, more" in capsys.readouterr().err


def test_a_run_that_fails_is_told_of(study, capsys):
    assert study({"bad": "--shape fails", "good": "--lr 1"}) == 1
    out, err = capsys.readouterr()
    assert "bad, seed 0, failed:\n  no such shape" in err
    assert "good" in out


def test_runs_that_the_time_does_not_suffice_for_go_on_later(study, capsys):
    kinds = {"long": "--shape waits --lr 0"}
    assert study(kinds, "--seconds", str(students.LAST + 2)) == 0
    assert "long" not in capsys.readouterr().out
    assert study(kinds) == 0
    assert "0.01" in capsys.readouterr().out
