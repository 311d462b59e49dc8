"""The sdist: what it holds, how its README looks on a package index, and what is installed from it where no C compiler is."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

import fastinfer

ROOT = Path(__file__).parents[1]
MADE = re.compile(r"PKG-INFO|setup\.cfg|fastinfer\.egg-info/.*")  # files that setuptools adds

pytestmark = [
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="setup.py is not beside the tests"),
    pytest.mark.skipif(find_spec("build") is None, reason="build is not installed"),
    pytest.mark.skipif(find_spec("setuptools") is None, reason="setuptools is not installed"),
]


def build(kind, source, to, **environment):
    """Build an sdist or a wheel of the folder `source` with the packages of this environment. Returns (its path, what the build said)."""
    if int(metadata.version("setuptools").partition(".")[0]) < 77:
        pytest.skip("setuptools is older than 77")
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--skip-dependency-check", "--outdir", to, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = to.iterdir()
    return made, done.stdout + done.stderr


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))[0]


@pytest.fixture(scope="module")
def unpacked(sdist, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as file:
        file.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (root,) = folder.iterdir()
    return root


def tracked(*options):
    """The files that git knows, or with options `git ls-files` lists."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("this is not a clone")
    done = subprocess.run([git, "ls-files", "-z", *options], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split("\0")[:-1])


def test_the_sdist_holds_every_file_of_the_project(unpacked):
    held = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    held = {name for name in held if not MADE.fullmatch(name)}
    assert {"src/cpu/_cpu.pyx", "src/cpu/kernels.h", "src/cpu/gemm.inc", "LICENSE", "NOTICE", "tests/conftest.py"} <= held
    here = {name for name in tracked() if (ROOT / name).exists()}
    assert here - held == set()
    assert held - here - tracked("--others", "--exclude-standard") == set()


def test_the_readme_suits_a_package_index(sdist, unpacked):
    """It is rendered without the files beside it, so each link has an address."""
    text = (unpacked / "PKG-INFO").read_text()
    links = re.findall(r"\]\(([^)]+)\)", text.partition("\n\n")[2])
    assert len(links) > 20
    assert [link for link in links if not link.startswith("https://")] == []
    for name in (link.partition("/v")[2].partition("/")[2].partition("#")[0] for link in links if "/v" in link):
        assert (ROOT / name).exists(), name
    if find_spec("twine") is None:
        pytest.skip("twine is not installed")
    done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", sdist], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


USE = """
import sys, warnings
import fastinfer
assert fastinfer.__file__.startswith(sys.argv[1]), fastinfer.__file__
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model = fastinfer.load()
print([str(w.message) for w in caught if w.category is fastinfer.BackendWarning])
print(model.rank("How do I cook rice?", ["Shares fell.", "Boil the grains."], top_k=1)[0][0])
print(fastinfer.info()["devices"]["cpu"])
try:
    fastinfer.load(device="cpu")
except fastinfer.BackendError as error:
    print(str(error).splitlines()[0])
"""


def test_without_a_compiler(unpacked, tmp_path):
    """It installs, says so, and ranks with NumPy after one warning."""
    wheel, said = build("wheel", unpacked, tmp_path / "wheel", CC=str(tmp_path / "no-compiler"))
    (line,) = (line for line in said.splitlines() if "WITHOUT" in line)
    assert "Install a C compiler" in line
    assert str(tmp_path / "no-compiler") in line
    with zipfile.ZipFile(wheel) as file:
        for name in fastinfer.info()["models"]:
            assert f"fastinfer/models/{name}/model.safetensors" in file.namelist()
        assert not any("_cpu." in name for name in file.namelist() if not name.endswith(".pyi"))
        file.extractall(tmp_path / "site")
    # -S: an editable install of this project would find the module that it has compiled.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *sys.path]), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-S", "-c", USE, str(tmp_path / "site")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    warned, first, why, refused = done.stdout.splitlines()
    assert warned.count("computing with NumPy") == 1
    assert "--force-reinstall" in warned
    assert first == "1"
    assert why.startswith("the compiled module is missing: fastinfer was built without a C compiler")
    assert refused == f"device 'cpu' was asked for but cannot run: {why}"
