"""Files are written whole or not at all."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from fastinfer.files import replacing, replacing_all


def test_a_file_is_replaced_only_when_all_is_written(tmp_path):
    path = tmp_path / "out"
    path.write_bytes(b"before")
    with replacing(path) as file:
        file.write(b"after")
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"after"
    with pytest.raises(TypeError, match="bytes-like"), replacing(path) as file:
        file.write("not bytes")
    assert path.read_bytes() == b"after"
    assert os.listdir(tmp_path) == ["out"]


def test_files_and_links_beside_it_are_left_alone(tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    path = tmp_path / "out"
    for name in ("out.partial", "out.tmp", ".out.tmp"):
        (tmp_path / name).symlink_to(victim)
    with replacing(path) as file:
        file.write(b"yours")
    assert victim.read_bytes() == b"mine"
    assert len(os.listdir(tmp_path)) == 5


def test_of_two_writers_one_wins_whole(tmp_path):
    path = tmp_path / "out"

    def write(value):
        with replacing(path) as file:
            for _ in range(64):
                file.write(bytes([value]) * 4096)
                file.flush()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(32)))
    data = path.read_bytes()
    assert len(data) == 64 * 4096
    assert len(set(data)) == 1
    assert os.listdir(tmp_path) == ["out"]


def test_the_mode_is_that_of_the_file_before(tmp_path):
    path, fresh = tmp_path / "out", tmp_path / "fresh"
    path.write_bytes(b"")
    path.chmod(0o640)
    before = os.umask(0o027)
    try:
        with replacing_all([path, fresh]) as files:
            for file in files:
                file.write(b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o640
    assert path.read_bytes() == fresh.read_bytes() == b"x"


def test_several_files_are_renamed_together(tmp_path):
    with pytest.raises(OSError, match="No such file"), replacing_all([tmp_path / "a", tmp_path / "missing" / "b"]):
        raise AssertionError("not reached")
    assert os.listdir(tmp_path) == []
