"""Each promise in SECURITY.md names tests that exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def rows() -> list[tuple[str, list[str]]]:
    """(promise, its tests) of each row of the table."""
    table = [line.strip("| \n").split(" | ") for line in (ROOT / "SECURITY.md").read_text().splitlines() if line.startswith("| ")]
    return [(row[0], re.findall(r"`([^`]+)`", row[1])) for row in table if len(row) == 2 and row[0] != "promise"]


def test_every_promise_names_tests_that_exist():
    promises = rows()
    assert len(promises) > 20
    assert [promise for promise, tests in promises if not tests] == []
    missing = []
    for test in {t for _, tests in promises for t in tests}:
        file, _, name = test.partition("::")
        path = ROOT / file
        names = {f.name for f in ast.parse(path.read_text()).body if isinstance(f, ast.FunctionDef)} if path.is_file() else set()
        if name not in names:
            missing.append(test)
    assert missing == []
