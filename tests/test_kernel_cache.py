"""Compiled kernels on the disk are kept, and used only if nobody else can have written them. This needs no GPU."""

import os
import stat
from pathlib import Path

import pytest

import fastinfer
from fastinfer.backends.cuda import cache

PROGRAM = b"\x7fELF a program"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The folder of the cache, which does not exist yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cache, "private_folder", lambda: private(tmp_path))
    return tmp_path / "fastinfer"


def private(tmp_path):
    (tmp_path / "private").mkdir(exist_ok=True)
    return tmp_path / "private"


class Compiler:
    """Counts its calls."""

    def __init__(self, program=PROGRAM, kind="cubin"):
        self.made, self.calls = (program, kind), 0

    def __call__(self):
        self.calls += 1
        return self.made


def test_a_program_is_compiled_once(home):
    compiler = Compiler()
    first, second = cache.cached("key", compiler), cache.cached("key", compiler)
    assert first == second
    assert first.parent == home
    assert first.read_bytes() == PROGRAM
    assert first.suffix == ".cubin"
    assert compiler.calls == 1
    assert stat.S_IMODE(first.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert cache.cached("other", Compiler(b"ptx", "ptx")).suffix == ".ptx"


def overwritten(path):
    path.write_bytes(PROGRAM[:-1] + b"!")


def cut(path):
    path.write_bytes(PROGRAM[:-1])


def writable_by_others(path):
    path.chmod(0o666)


def writable_by_a_group(path):
    path.chmod(0o620)


def a_link(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def a_pipe(path):
    path.unlink()
    os.mkfifo(path)


def a_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [overwritten, cut, writable_by_others, writable_by_a_group, a_link, a_pipe])
def test_a_program_that_cannot_be_trusted_is_compiled_again(home, spoil):
    spoil(cache.cached("key", Compiler()))
    compiler = Compiler()
    path = cache.cached("key", compiler)
    assert compiler.calls == 1
    assert path.read_bytes() == PROGRAM
    assert cache.trusted(path)
    assert cache.cached("key", compiler) == path
    assert compiler.calls == 1


def test_a_folder_in_the_place_of_a_program(home):
    a_folder(cache.cached("key", Compiler()))
    assert cache.cached("key", Compiler()).parent == home.parent / "private"


def test_a_program_of_another_user_is_not_used(home, monkeypatch):
    path = cache.cached("key", Compiler())
    assert cache.trusted(path)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert not cache.trusted(path)
    assert cache.usual_folder() is None
    assert cache.cached("key", Compiler()).parent == home.parent / "private"


def test_a_folder_that_others_may_write_to_is_closed_to_them(home):
    home.mkdir(mode=0o700)
    home.chmod(0o777)
    planted = home / f"key-{'0' * 64}.cubin"
    planted.write_bytes(b"planted")
    path = cache.cached("key", Compiler())
    assert path.parent == home
    assert path != planted
    assert stat.S_IMODE(home.stat().st_mode) == 0o755


def test_a_program_under_another_name_is_not_used(home):
    path = cache.cached("key", Compiler())
    for name in ("key.cubin", f"key-{'0' * 64}.cubin", path.name + ".tmp", path.name.upper()):
        assert not cache.trusted(path.rename(path.with_name(name)))
        path.with_name(name).rename(path)
    assert cache.trusted(path)


@pytest.mark.parametrize("given", ["", "relative/folder", None])
def test_without_a_usable_cache_variable_it_lies_in_the_home_folder(tmp_path, monkeypatch, given):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if given is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", given)
    assert cache.cached("key", Compiler()).parent == tmp_path / ".cache" / "fastinfer"


def no_home(monkeypatch, tmp_path):
    def fail():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(Path, "home", fail)


def an_empty_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "")


def a_home_that_is_a_file(monkeypatch, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))


@pytest.mark.parametrize("spoil", [no_home, an_empty_home, a_home_that_is_a_file])
def test_without_a_home_it_lies_in_a_private_folder(tmp_path, monkeypatch, spoil):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(cache.tempfile, "tempdir", None)
    monkeypatch.chdir(tmp_path)
    spoil(monkeypatch, tmp_path)
    cache.private_folder.cache_clear()
    compiler = Compiler()
    try:
        path = cache.cached("key", compiler)
        assert cache.cached("key", compiler) == path
    finally:
        cache.private_folder.cache_clear()
    assert compiler.calls == 1
    assert path.parent.parent == tmp_path
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_without_any_folder_there_is_an_error(tmp_path, monkeypatch):
    no_home(monkeypatch, tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def fail(**_):
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(cache.tempfile, "mkdtemp", fail)
    cache.private_folder.cache_clear()
    with pytest.raises(
        fastinfer.BackendError, match="no folder for compiled GPU kernels can be written, set XDG_CACHE_HOME to one: No usable"
    ):
        cache.cached("key", Compiler())


def test_a_full_disk(home, monkeypatch):
    monkeypatch.setattr(cache, "replacing", refuse_in(home))
    assert cache.cached("key", Compiler()).parent == home.parent / "private"
    monkeypatch.setattr(cache, "replacing", refuse_in(home.parent))
    with pytest.raises(fastinfer.BackendError, match=r"kernels cannot be written, set XDG_CACHE_HOME to a folder with room: .*No space"):
        cache.cached("another", Compiler())


def refuse_in(folder):
    def replacing(path, whole=cache.replacing):
        if folder in path.parents:
            raise OSError(28, "No space left on device")
        return whole(path)

    return replacing
