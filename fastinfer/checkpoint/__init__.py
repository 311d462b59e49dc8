"""The checkpoint format: the tensors that a Config has, and how they are saved, mapped, checked and validated.

A checkpoint folder holds config.json, model.safetensors (or shards with model.safetensors.index.json) and
tokenizer.json. Files are safetensors; tensors whose size is a multiple of 64 bytes start 64-byte
aligned, so that kernels read trees directly from the mapped file.
"""

from .check import check, check_children, check_finite
from .fingerprint import fingerprint, samples
from .open import load, load_all
from .read import INDEX, SINGLE, digest, map_file, map_folder, stamps, unchanged
from .spec import Spec, parameters, tensors
from .tensor import DTYPES, Tensor
from .write import save

__all__ = ["DTYPES", "INDEX", "SINGLE", "Spec", "Tensor", "check", "check_children", "check_finite", "digest", "fingerprint", "load"]
__all__ += ["load_all", "map_file", "map_folder", "parameters", "samples", "save", "stamps", "tensors", "unchanged"]
