"""The examples of docs/search.md with other libraries find what Index finds, where the libraries are installed."""

import re
from pathlib import Path

import numpy as np
import pytest

import fastinfer

PAGE = Path(__file__).parents[1] / "docs" / "search.md"

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="docs/ is not beside the tests")


@pytest.mark.parametrize("package", ["faiss", "usearch", "hnswlib"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_examples_with_other_libraries(package):
    pytest.importorskip(package)
    [code] = [
        code
        for code in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
        if f"import {package}" in code or f"from {package}" in code
    ]
    model = fastinfer.load("fastminilm-small", device="numpy")
    texts = ["A cat sleeps.", "The cat is asleep.", "Shares fell.", "Stocks dropped."]
    names = {"np": np, "model": model, "vectors": model.embed(texts)}
    exec(code, names)
    index = fastinfer.Index(model)
    index.add(names["vectors"])
    want = [row for row, _ in index.search(model.embed("a sleeping cat"), 2)[0]]
    assert np.asarray(names["rows"]).reshape(-1).tolist() == want
