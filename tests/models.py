"""Real models that packages on PyPI carry."""

import importlib
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / "tools"


def load_tool(name):
    """The module `name` of tools/, such as "convert" or "training.loop", imported as a command of that folder imports it."""
    sys.path.insert(0, str(TOOLS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(TOOLS))


def real_model(name, cache):
    """The folder of a real model, downloaded into folder `cache` if needed. Skips the test if the model is not available."""
    try:
        return load_tool("get_model").download(name, Path(cache))
    except OSError as error:
        pytest.skip(str(error))
