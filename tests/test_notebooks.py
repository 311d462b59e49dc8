"""The notebooks run, and print what they show."""

import json
from pathlib import Path

import pytest
from test_documents import assert_same

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
LARGEST = 100_000  # bytes of a notebook with its outputs

pytestmark = [
    pytest.mark.skipif(not FOLDER.is_dir(), reason="docs/ is not beside the tests"),
    pytest.mark.filterwarnings("ignore"),  # other packages may warn of anything
]


def printed(notebook) -> list[str]:
    """What each cell of code prints."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return ["".join("".join(out["text"]) for out in cell["outputs"] if out["output_type"] == "stream") for cell in cells]


@pytest.mark.parametrize("name", ["embeddings", "routes"])
def test_a_notebook_prints_what_it_shows(name):
    for package in ("nbclient", "nbformat", "ipykernel", "matplotlib"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    import nbclient
    import nbformat

    shown = nbformat.read(FOLDER / f"{name}.ipynb", 4)
    run = nbformat.from_dict(json.loads(json.dumps(shown)))
    for cell in run.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    nbclient.NotebookClient(run, timeout=120, kernel_name="python3").execute()
    for i, (got, want) in enumerate(zip(printed(run), printed(shown), strict=True)):
        assert_same(got, want, f"{name}.ipynb, cell {i} of code,")


@pytest.mark.parametrize("name", ["embeddings", "routes"])
def test_a_notebook_is_small_and_has_a_picture(name):
    text = (FOLDER / f"{name}.ipynb").read_text()
    kinds = {kind for cell in json.loads(text)["cells"] for out in cell.get("outputs", []) for kind in out.get("data", {})}
    assert "image/png" in kinds
    assert len(text) < LARGEST
