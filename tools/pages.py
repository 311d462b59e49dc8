"""Try the documents as a reader would: each page in a fresh environment, with the packages that it is about: tools/pages.py [PAGE ...]

    python tools/pages.py                    # README.md and docs/ without extras, then every page of docs/apps
    python tools/pages.py ray chroma         # these two
    python tools/pages.py documents --work environments --keep

A wheel of this tree is built once. For each page an environment is made, the wheel and the packages of the page are installed, its
examples (tests/test_documents.py) and the tests of its integration run, and the environment is removed. `documents` stands for README.md
and all pages of docs/ that are about no other package. Status 1: a page fails.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = "documents"  # all pages that are about no other package
# The packages of a page, in the words of pip, where they differ from the modules that it needs.
PACKAGES = {
    "chroma": ("chromadb",),
    "haystack": ("haystack-ai",),
    "langchain": ("langchain-core",),
    "llama-index": ("llama-index-core",),
    "mteb": ("mteb",),
    "ray": ("ray[data]",),
    "sklearn": ("scikit-learn", "pandas"),
}


def needed(name: str) -> list[str]:
    """The packages that a page is about."""
    if name == DOCUMENTS:
        return []
    found = re.findall(r"^<!-- needs: (.+) -->$", (ROOT / "docs" / "apps" / f"{name}.md").read_text(), re.M)
    return list(PACKAGES.get(name, found[0].split() if found else ()))


def run(*command: str | Path, cwd: Path) -> tuple[int, str]:
    """The status of a command, and what it printed."""
    done = subprocess.run(list(map(str, command)), cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


def tried(name: str, wheel: Path, work: Path, keep: bool) -> bool:
    """Whether all of a page runs in an environment of its own; prints a line about it."""
    place = work / name
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    python, started = place / "bin" / "python", time.monotonic()
    status, said = run(python, "-m", "pip", "install", "-q", wheel, "pytest", "hypothesis", *needed(name), cwd=work)
    if not status:
        tests = place / "tests"
        shutil.copytree(ROOT / "tests", tests / "tests", ignore=shutil.ignore_patterns("fuzz", "stress", "__pycache__"))
        for folder in ("docs", "tools"):
            (tests / folder).symlink_to(ROOT / folder)
        for document in ROOT.glob("*.md"):
            (tests / document.name).symlink_to(document)
        shutil.copy(ROOT / "pyproject.toml", tests)
        own = tests / "tests" / "integrations" / f"test_{name.replace('-', '_')}.py"
        chosen = ["tests/test_documents.py", *([str(own)] if own.exists() else [])]
        which = "example or command or figure or limits" if name == DOCUMENTS else f"{name}.md or {own.name}"
        status, said = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, "-k", which, cwd=tests)
    said = said.strip()
    print(f"{name:<12} {'fails' if status else 'runs'}  {time.monotonic() - started:4.0f} s  {said.splitlines()[-1]}", flush=True)
    if status:
        print("\n".join(said.splitlines()[-60:]), flush=True)
    if not keep:
        shutil.rmtree(place)
    return not status


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    pages = [DOCUMENTS, *(page.stem for page in sorted(ROOT.glob("docs/apps/*.md")))]
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=f"some of {', '.join(pages)} (default: all)")
    parser.add_argument("--wheel", type=Path, help="a wheel of this tree (default: one is built)")
    parser.add_argument("--work", type=Path, help="a folder for the environments (default: a temporary one)")
    parser.add_argument("--keep", action="store_true", help="leave the environments in --work")
    options = parser.parse_args()
    if odd := [name for name in options.pages if name not in pages]:
        parser.error(f"unknown page {odd[0]}, expected some of {', '.join(pages)}")
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        wheel = options.wheel
        if wheel is None:
            status, said = run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", work, ROOT, cwd=work)
            if status:
                print(said, file=sys.stderr)
                return 1
            (wheel,) = work.glob("fastinfer-*.whl")
        good = [tried(name, wheel.resolve(), work, options.keep) for name in options.pages or pages]
    return int(not all(good))


if __name__ == "__main__":
    sys.exit(main())
