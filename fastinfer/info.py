"""info() reports what this installation can run, and why other devices cannot be used."""

from __future__ import annotations

from typing import Any

from . import backends
from .catalog import inside

__version__ = "0.1.0"


def info() -> dict[str, Any]:
    """A dict: version; devices {name: None or why it cannot run}; gpus; isas (compiled, usable, chosen, why); threads; teams; models."""
    found: dict[str, Any] = {
        "version": __version__,
        "devices": backends.available(),
        "gpus": backends.gpus(),
        "isas": None,
        "threads": None,
        "teams": None,
        "models": inside(),
    }
    if found["devices"]["cpu"] is None:
        from . import _cpu
        from .backends import cpu, threads

        compiled = _cpu.isas()
        chosen, why = cpu.choose_isa()
        found["isas"] = {
            "compiled": [name for name, _ in compiled],
            "usable": cpu.isas(),
            "chosen": chosen,
            "why": why,
        }
        found["threads"] = cpu.default_threads()
        found["teams"] = threads.describe()
    return found
