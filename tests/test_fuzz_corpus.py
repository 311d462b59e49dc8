"""Inputs that once broke file readers: each is now accepted or refused, and the process lives on. tests/fuzz/loaders.py finds more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))
import loaders

FUZZ = Path(__file__).parent / "fuzz"


def test_every_input_of_the_corpus():
    inputs = sorted(file.name for file in (FUZZ / "corpus").glob("*.json"))
    done = subprocess.run([sys.executable, FUZZ / "loaders.py", "--replay", FUZZ / "corpus"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout.splitlines()[-1:]} ends with {done.returncode}\n{done.stderr[-3000:]}"
    assert [line for line in done.stdout.splitlines() if line.endswith(".json")] == inputs
    assert inputs


@pytest.mark.parametrize("target", loaders.TARGETS)
def test_valid_files_are_taken(target):
    for seed in loaders.TARGETS[target][1]:
        assert loaders.execute(target, seed, {}), seed


def test_errors_of_other_kinds_come_through(monkeypatch):
    def run(files, folder):
        raise {b"1": ZeroDivisionError, b"2": loaders.fastinfer.CheckpointError, b"3": MemoryError}[files["config.json"]]("why")

    monkeypatch.setitem(loaders.TARGETS, "config", (run, ("ours",), 1))
    assert not loaders.execute("config", "ours", {"config.json": b"2"})
    for name, kind in ((b"1", ZeroDivisionError), (b"3", MemoryError)):
        with pytest.raises(kind):
            loaders.execute("config", "ours", {"config.json": name})


def test_a_short_run_finds_what_is_broken(tmp_path):
    """The fuzzer finds workers that raise, die, hang or take too much memory, and names the input of each."""
    broken = (
        "import os, sys, time\n"
        f"sys.path.insert(0, {str(FUZZ)!r})\n"
        "import loaders\n"
        "ways = {'raises': lambda: 1 // 0, 'dies': os.abort, 'hangs': lambda: time.sleep(99), 'grows': lambda: bytearray(3 << 30)}\n"
        "way = ways[os.environ['WAY']]\n"
        "whole = loaders.SEEDS['ours']['config.json']\n"
        "loaders.TARGETS['config'] = (lambda files, folder: files['config.json'] == whole or way(), ('ours',), 1)\n"
        "loaders.HANG = 1\n"
        "loaders.__file__ = __file__\n"
        "if __name__ == '__main__': sys.exit(loaders.main())\n"
    )
    (tmp_path / "broken.py").write_text(broken)
    said = {"raises": "ZeroDivisionError", "dies": "died with SIGABRT", "hangs": "hangs for 1 seconds", "grows": "MemoryError"}
    runs = {}
    for way in said:
        command = [sys.executable, tmp_path / "broken.py", "--seconds", "100", "--first", "--processes", "1", "--targets", "config"]
        command += ["--findings", tmp_path / way]
        runs[way] = subprocess.Popen(command, env={**os.environ, "WAY": way}, stdout=subprocess.PIPE, text=True)
    for way, run in runs.items():
        with run:
            out, _ = run.communicate(timeout=200)
        assert run.returncode == 1, (way, out)
        assert said[way] in out, (way, out)
        assert len(list((tmp_path / way).glob("*.json"))) == 1
