"""Packages that tests are for."""

import warnings

import pytest


def needed(name):
    """The package, which may warn of anything when it is imported. Skips the tests of the module where it is missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"the package {name.replace('_', '-')} is not installed", exc_type=ImportError)
