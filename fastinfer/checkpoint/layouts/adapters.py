"""LoRA adapters (arXiv 2106.09685) as peft saves them, beside the weights of their base model: merged into these once, at load."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import CheckpointError, CheckpointWarning, ConfigError, listed, short, warn
from ..read import ADAPTERS, map_folder
from ..tensor import Tensor
from .names import BODY, bare_name
from .settings import read_object

__all__ = ["merge"]

PART = re.compile(r"(.*)\.(lora_(?:embedding_)?[AB])(?:\.weight)?", re.DOTALL)
# Settings that change what is computed, and that merge() does not know. None, false and empty values turn them off.
REFUSED = (
    *("use_dora", "rank_pattern", "alpha_pattern", "layer_replication", "use_qalora", "trainable_token_indices", "target_parameters"),
    *("lora_bias", "alora_invocation_tokens", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config", "velora_config"),
)
STARTS = (None, True, False, "gaussian", "orthogonal", "eva")  # of init_lora_weights: the others change the base weights, too
CLASSES = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification", "QUESTION_ANS": "ForQuestionAnswering"}


def merge(data: dict[str, Any], stored: Mapping[str, Tensor], folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config, tensors) of a base model with the adapter in `folder` merged in: W + scale * B @ A, in float32, kept in W's dtype.

    data, stored  the object in the base's config.json, and its tensors by their bare names

    Whole tensors that the adapter brings (modules_to_save, biases) take the place of the base's. Raises ConfigError for another kind of
    adapter and for a setting that is not known, CheckpointError for tensors that do not fit.
    """
    settings = read_object(folder / "adapter_config.json", dict)
    scale = _scale(settings, folder / "adapter_config.json")
    merged, heads = dict(stored), dict[str, Tensor]()
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in map_folder(folder, ADAPTERS).items():
        part = PART.fullmatch(name)
        if part is not None:
            pairs.setdefault(part[1], {})[part[2]] = tensor
            continue
        whole = bare_name(name.replace(".base_layer.", "."), merged)
        if "lora_" in name:
            raise ConfigError(f"{folder}: the adapter has a tensor {short(name)}, which is not supported, only lora_A and lora_B")
        (merged if whole in stored else heads)[whole] = tensor
    for module, parts in pairs.items():
        name = bare_name(f"{module}.weight", stored)
        if name not in stored:
            raise CheckpointError(f"{folder}: the adapter changes {short(module)}, which the weights beside it do not have")
        merged[name] = _changed(stored[name], parts, settings["r"], scale, f"{folder}: the adapter of {short(module)}")
    if heads:
        left = [name for name in merged if not name.startswith((*BODY, "pooler."))]
        if left:
            warn(CheckpointWarning(f"{folder}: the adapter's head takes the place of {listed(map(short, left))}"))
        merged = {name: tensor for name, tensor in merged.items() if name not in left} | heads
        task = settings.get("task_type")
        if isinstance(task, str) and task in CLASSES:
            data = data | {"architectures": [CLASSES[task]]}
    return data, merged


def _scale(settings: dict[str, Any], path: Path) -> float:
    """The factor of B @ A. Raises ConfigError for a setting that is not known or that has another type."""
    kind, start = settings.get("peft_type"), settings.get("init_lora_weights")
    if kind != "LORA":
        raise ConfigError(f"{path}: peft_type {short(kind)} is not supported, only LORA")
    wrong = [f"{key} {short(settings[key])}" for key in REFUSED if settings.get(key)]
    if not any(start is known or start == known for known in STARTS if type(start) is type(known)):
        wrong.append(f"init_lora_weights {short(start)}, which changes the base weights")
    if wrong:
        raise ConfigError(f"{path}: {listed(wrong)} is not supported: merge the adapter with peft's merge_and_unload() and save the result")
    r: Any = settings.get("r")
    alpha: Any = settings.get("lora_alpha")
    root = settings.get("use_rslora", False)
    if type(r) is not int or not 0 < r < 1 << 20:
        raise ConfigError(f"{path}: r is {short(r)}, expected an integer from 1 to {(1 << 20) - 1}")
    if type(alpha) not in (int, float) or not abs(alpha) < 1e9:
        raise ConfigError(f"{path}: lora_alpha is {short(alpha)}, expected a number below 1e9")
    if not isinstance(root, bool):
        raise ConfigError(f"{path}: use_rslora is {short(root)}, expected true or false")
    return float(alpha) / (math.sqrt(r) if root else r)


def _changed(weight: Tensor, parts: dict[str, Tensor], r: int, scale: float, what: str) -> Tensor:
    """`weight` with the product of an adapter's two parts added. Linear maps are (out, in), tables are stored as (rows, width)."""
    table = "lora_embedding_A" in parts
    first, second = parts.get("lora_embedding_A" if table else "lora_A"), parts.get("lora_embedding_B" if table else "lora_B")
    if first is None or second is None or len(parts) != 2:
        raise CheckpointError(f"{what} has {listed(sorted(parts))}, expected lora_A and lora_B")
    wanted = weight.data.shape[::-1] if table else weight.data.shape
    if (second.data.shape + first.data.shape) != (*wanted[:1], r, r, *wanted[1:]) or weight.data.ndim != 2:
        shapes = f"shapes {first.data.shape} and {second.data.shape}"
        raise CheckpointError(f"{what} has {shapes}, expected a product of shape {wanted} through r={r}")
    floats = ("float32", "float16", "bfloat16")
    if not {weight.dtype, first.dtype, second.dtype} <= set(floats):
        raise CheckpointError(f"{what} has dtypes {first.dtype} and {second.dtype}, for a {weight.dtype}; expected {listed(floats)}")
    with np.errstate(all="ignore"):  # check_finite tells of what is not finite
        product = np.float32(scale) * (second.float32() @ first.float32())
        return Tensor(weight.float32() + (product.T if table else product), "float32").to(weight.dtype)
