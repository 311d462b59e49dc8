"""fastinfer: transformer encoders with fast feedforward networks, without PyTorch.

    import fastinfer
    model = fastinfer.load("folder")
    vectors = model.embed(["a text", "another"])

README.md explains everything else; fastinfer.info() reports the devices that this machine can use.
"""

from .api import Model, load
from .backends import set_team
from .batch import PackedBatch
from .config import Config
from .errors import (
    BackendError,
    BackendWarning,
    BusyError,
    CheckpointError,
    CheckpointWarning,
    ConfigError,
    DtypeError,
    FastinferError,
    InputError,
    ShapeError,
    TaskError,
)
from .index import Index
from .info import __version__, info
from .layer import FFF, fff
from .similarity import communities, paraphrase_pairs, similarity

__all__ = [
    "FFF",
    "BackendError",
    "BackendWarning",
    "BusyError",
    "CheckpointError",
    "CheckpointWarning",
    "Config",
    "ConfigError",
    "DtypeError",
    "FastinferError",
    "Index",
    "InputError",
    "Model",
    "PackedBatch",
    "ShapeError",
    "TaskError",
    "__version__",
    "communities",
    "fff",
    "info",
    "load",
    "paraphrase_pairs",
    "set_team",
    "similarity",
]
