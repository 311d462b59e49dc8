"""The documents: shown output is real, commands parse, links have targets, figures are up to date, README keeps its limits.

All ```python blocks of a document run in one namespace, and lines that begin with "# > " show what a block prints. A ```text block
after a ```sh block with one fastinfer command shows what the command prints. Numbers may differ as much as between ISAs and GPUs.
The line <!-- not run: why --> before a block excludes it. The line <!-- needs: names --> names the modules that a page is about:
without them its examples are skipped, with that reason. The line <!-- block needs: names --> before a block says so of this block alone.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import itertools
import json
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest

import fastinfer
from fastinfer import cli
from fastinfer.cli import parse

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("fastinfer/models/*/*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
README = ROOT / "README.md"
NUMBER = re.compile(r"-?\d+\.\d*(?:e[-+]?\d+)?")
TOLERANCE = 0.03  # difference of a score near 1 that rounding to int8 or bfloat16 on another ISA may cause

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="docs/ is not beside the tests")


class Block(NamedTuple):
    """A fenced block: its language, its text, its first line, and whether it is excluded, or needs a module that is not installed."""

    language: str
    code: str
    line: int
    left_out: bool


LEAVES_OUT = re.compile(r"<!--(?! needs:)((?!-->).)*-->\s*\Z", re.S)
NEEDS = re.compile(r"<!-- block needs: ([\w. ]+) -->\s*\Z")


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a document. A comment before a block leaves it out, but for one that says what the page needs."""
    text = page.read_text()
    found = []
    for m in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S):
        before = text[: m.start()]
        needs = NEEDS.search(before)
        left_out = LEAVES_OUT.search(before) is not None if needs is None else not all(map(installed, needs[1].split()))
        found.append(Block(m[1], m[2], before.count("\n") + 2, left_out))
    return found


def missing(page: Path) -> list[str]:
    """The modules that a page needs and that are not installed."""
    needed = [name for line in re.findall(r"^<!-- needs: (.+) -->$", page.read_text(), re.M) for name in line.split()]
    return [name for name in needed if not installed(name)]


def installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def commands(code: str) -> list[list[str]]:
    """The fastinfer commands of a shell block, as lists of arguments."""
    lines = re.sub(r"\\\n\s*|&&\n", lambda m: "&& " if m[0].startswith("&") else " ", code).splitlines()
    parts = [part for line in lines for part in " ".join(shlex.split(line, comments=True, posix=False)).split("&&")]
    return [shlex.split(part)[1:] for part in parts if part.split()[:1] == ["fastinfer"]]


def assert_same(got: str, want: str, where: str) -> None:
    """Assert that the texts are equal, except that decimal numbers may differ by TOLERANCE."""
    assert NUMBER.sub("#", got).split() == NUMBER.sub("#", want).split(), f"{where} shows\n{want}\nbut what is printed is\n{got}"
    for a, b in zip(NUMBER.findall(got), NUMBER.findall(want), strict=True):
        assert float(a) == pytest.approx(float(b), abs=TOLERANCE), f"{where} shows {b}, but {a} is printed in\n{got}"


def test_assert_same_tells_numbers_and_words():
    assert_same("a 0.50, b", "a  0.51, b", "here")
    for other in ("a 0.60, b", "a 0.50, c", "a 0.50", "a 1, b"):
        with pytest.raises(AssertionError, match="here shows"):
            assert_same("a 0.50, b", other, "here")


def test_modules_that_a_page_needs(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n<!-- needs: json fastinfer.nothing nothing.at.all -->\n")
    assert missing(page) == ["fastinfer.nothing", "nothing.at.all"]
    page.write_text("# A page\n")
    assert missing(page) == []
    code = "```python\n1\n```\n"
    comments = (
        "",
        "<!-- needs: nothing.at.all -->",
        "<!-- block needs: json -->",
        "<!-- block needs: json nothing.at.all -->",
        "<!-- not run: it is -->",
    )
    page.write_text("".join(f"{comment}\n\n{code}\n" for comment in comments))
    assert [block.left_out for block in blocks(page)] == [False, False, False, True, True]


def test_commands_of_a_block():
    code = "pip install . &&\nfastinfer rank \"a && b\" \\\n  'c'\nfastinfer info  # all\npython -m fastinfer info\n"
    assert commands("fastinfer info\n") == [["info"]]
    assert commands(code.replace(" && b", "")) == [["rank", "a", "c"], ["info"]]


@pytest.fixture(scope="session")
def example_models(tmp_path_factory) -> Path:
    """A folder that holds `examples`, the model that the documents use."""
    folder = tmp_path_factory.mktemp("documents")
    subprocess.run([sys.executable, ROOT / "tools" / "example_models.py", folder / "examples"], check=True)
    (folder / "texts.txt").write_text("A text.\nAnother one.\n")
    (folder / "big.txt").write_text("A text.\nAnother one.\n" * 9)
    (folder / "reviews.csv").write_text('id,review\n1,"Roast the carrots, then eat."\n2,Shares fell again.\n')
    return folder


@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(b.language == "python" for b in blocks(p))], ids=lambda p: str(p.relative_to(ROOT))
)
def test_python_examples(page, example_models, monkeypatch):
    if lacks := missing(page):
        pytest.skip(f"not installed: {', '.join(lacks)}")
    monkeypatch.chdir(example_models)
    if "<!-- needs:" in page.read_text():
        warnings.simplefilter("ignore")  # other packages may warn of anything
    namespace: dict = {"__name__": page.stem}
    for block in blocks(page):
        if block.language != "python" or block.left_out:
            continue
        where = f"{page.relative_to(ROOT)}:{block.line}"
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(block.code, where, "exec"), namespace)
        shown = "\n".join(line.strip()[4:] for line in block.code.splitlines() if line.strip().startswith("# > "))
        assert_same(out.getvalue(), shown, where)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands(page, example_models, monkeypatch, capsys):
    """Every fastinfer command parses, and prints the text shown below it."""
    monkeypatch.chdir(example_models)
    for block, below in itertools.pairwise([*blocks(page), None]):
        if block.language != "sh" or block.left_out:
            continue
        where = f"{page.relative_to(ROOT)}:{block.line}"
        given = commands(block.code)
        for arguments in given:
            if "--help" not in arguments:
                parse(arguments)
        shows = below is not None and below.language == "text" and below.line == block.line + block.code.count("\n") + 3
        if shows and len(given) == 1:
            assert cli.main(given[0]) == 0
            assert_same(capsys.readouterr().out, below.code, where)


@pytest.mark.parametrize("page", [README, ROOT / "docs" / "command-line.md"], ids=lambda page: page.name)
def test_commands_run(page, example_models, monkeypatch, capsys):
    """Every command of these pages that names no model of the reader's, and measures nothing, does what it says without a word."""
    monkeypatch.chdir(example_models)
    count = 0
    for block in blocks(page):
        for arguments in commands(block.code) if block.language == "sh" else []:
            model = arguments[arguments.index("-m") + 1] if "-m" in arguments else "examples"
            if "--help" in arguments or arguments[0] == "bench" or model != "examples":
                continue
            if any(word.endswith(".parquet") for word in arguments) and not importlib.util.find_spec("pyarrow"):
                continue
            assert cli.main(arguments) == 0, f"{page.name}:{block.line}: {shlex.join(arguments)}"
            out, err = capsys.readouterr()
            assert (err, bool(out)) == ("", "-o" not in arguments)
            if "-o" in arguments:
                assert Path(arguments[arguments.index("-o") + 1]).stat().st_size > 0
            count += 1
    assert count >= 5


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_scripts_exist(page):
    """Every script that a command runs exists."""
    named = {name for b in blocks(page) if b.language == "sh" for name in re.findall(r"(?:tools|tests)/[\w/.-]+\.(?:py|sh|toml)\b", b.code)}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_that_are_named_exist(page):
    """Paths in `code` exist. NAME and * stand for any name."""
    named = re.findall(r"`((?:fastinfer|src|tools|tests|docs)/[\w/.*-]+)`", page.read_text())
    made = {"tests/fuzz/findings"}  # programs in the documents create these
    assert [path for path in sorted(set(named) - made) if not any(ROOT.glob(path.replace("NAME", "*").rstrip("/")))] == []


def anchors(page: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page if not path else (page.parent / path).resolve()
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_figures_have_a_text_alternative(page):
    assert [words for words in re.findall(r"!\[([^]]*)\]\(", page.read_text()) if len(words) < 20] == []


def test_figures_are_drawn_from_their_results(tmp_path):
    """tools/figures.py draws the same pictures from the files beside them."""
    code = "import pathlib, sys; import figures; [pathlib.Path(sys.argv[1], n + '.svg').write_text(f()) for n, f in figures.DRAWN.items()]"
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, env={"PYTHONPATH": str(ROOT / "tools")})
    drawn = {path.name: path.read_text() for path in tmp_path.glob("*.svg")}
    assert drawn == {path.name: path.read_text() for path in (ROOT / "docs" / "figures").glob("*.svg")}


def test_the_path_of_the_tree_is_that_of_the_model():
    found = json.loads((ROOT / "docs" / "figures" / "tree.json").read_text())
    model = fastinfer.load(found["model"], dtype="float32", device="cpu")
    place = model.tokenizer.encode([found["text"]])[0].tokens.index(found["token"])
    nodes, z = (path[place, 0] for path in model.routes(found["text"])[0][found["layer"] - 1])
    assert nodes.tolist() == found["nodes"]
    assert z == pytest.approx(found["z"], abs=1e-3)
    assert found["stored"] == model.config.ffn[found["layer"] - 1].count


@pytest.mark.parametrize("results", sorted(ROOT.glob("docs/figures/*.csv")), ids=lambda path: path.name)
def test_results_are_those_of_the_tables(results):
    """Each value in a figure is also in a table on a page that shows the figure."""
    pages = [page.read_text() for page in PAGES if f"figures/{results.stem}.svg" in page.read_text()]
    tables = [line for page in pages for line in page.splitlines() if line.startswith("|")]
    known = {float(number.replace(",", "")) for line in tables for number in re.findall(r"\d[\d,]*(?:\.\d+)?", line)}
    rows = csv.DictReader(line for line in results.read_text().splitlines() if not line.startswith("#"))
    shown = {float(row[column]) for row in rows for column in ("y", "low", "high") if row.get(column)}
    assert shown
    assert shown - known == set()


def test_every_public_name_is_in_the_api_page():
    classes = (fastinfer.Model, fastinfer.PackedBatch, fastinfer.FFF)
    names = {*fastinfer.__all__, *(name for kind in classes for name in vars(kind) if not name.startswith("_"))}
    text = (ROOT / "docs" / "api.md").read_text()
    assert [name for name in sorted(names) if not re.search(rf"\b{name}\b", text)] == []


def test_limits_of_the_readme():
    lines = README.read_text().splitlines()
    assert len(lines) <= 200
    assert [line for line in lines if len(line) > 100 and not line.startswith("|")] == []
    assert len(README.read_text().split()) <= 1400


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text()
    pages = [str(page.relative_to(ROOT / "docs")) for page in PAGES if ROOT / "docs" in page.parents]
    assert [page for page in pages if page != "README.md" and f"({page})" not in index] == []
