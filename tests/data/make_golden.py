"""How tests/data/golden/format-1 was made, on 2026-11-29: kept to be read, not run again. Old files stay as they are.

python tests/data/make_golden.py FOLDER   writes the like into FOLDER, which must be new

Each folder holds a tiny checkpoint in format 1, as the release that defined it wrote it, and expected.safetensors: token ids, and in
float64 what the stored values give for them, stage by stage. That is computed here from the bytes of the file and the definitions alone.
"""

import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
import builders
import oracle

from fastinfer import checkpoint
from fastinfer.config import FFF, Answer, Classify, Dense, Embed, FillMask, HeadLayer, Ids, Norm, Positions, Stored, Tag, Tasks

DTYPES = ("float32", "float16", "bfloat16", "int8")
LENGTHS = (1, 5, 8, 3)
MARGIN = 5e-3  # of every deciding logit: the arithmetic of a test may not send a token another way
KINDS = {
    "fff": {
        "ffn": (FFF(2, 3), FFF(3, 2)), "norm": Norm("pre", 1e-5), "final_norm": True, "embedding_norm": False,
        "tasks": Tasks(Embed("mean", True), FillMask(True, tied=True, bias=True)),
    },
    "fff-always-on": {
        "ffn": (FFF(1, 4, dense=6, bias_out=True), FFF(2, 2, dense=3, bias_in=False)), "norm": Norm("post", 1e-12), "token_types": 2,
        "tasks": Tasks(
            Embed("max", False), None, Classify(("no", "yes", "so"), "softmax", "cls", (HeadLayer(7, "tanh"),)), Tag(("O", "B-x"))
        ),
    },
    "children": {
        "ffn": (FFF(2, 4, children=True, nodes=9), Dense(12, bias_in=False)), "norm": Norm("pre", 1e-6), "attention_bias": False,
        "positions": Positions("scaled-sinusoidal", 8),
        "tasks": Tasks(Embed("lse", False), FillMask(False, tied=False, bias=False), None, None, Answer()),
    },
    "dense": {
        "ffn": (Dense(20), Dense(9, bias_out=False)), "norm": Norm("post", 1e-12), "token_types": 1,
        "tasks": Tasks(Embed("cls", True), None, Classify(("score",), "identity", "mean", (HeadLayer(6, "relu"), HeadLayer(5, "gelu")))),
    },
}  # fmt: skip


def read(path):
    """{name: values in float64, int32 of tables} of a safetensors file, from its bytes; int8 times its scales."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header, found = json.loads(raw[8:start]), {}
    header.pop("__metadata__", None)
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        data = raw[start + begin : start + end]
        if entry["dtype"] == "BF16":
            values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(data, {"F32": "<f4", "F16": "<f2", "I8": "i1", "I32": "<i4"}[entry["dtype"]])
        found[name] = values.reshape(entry["shape"]).astype(np.int32 if entry["dtype"] == "I32" else np.float64)
    return {n: v * found[f"{n}.scale"][..., None] if f"{n}.scale" in found else v for n, v in found.items()}


def gelu(x):
    return np.vectorize(oracle.gelu, otypes=[float])(x)


def forward(config, w, ids, types):
    """What one text of these ids gives: {stage: array}, float64. config: the object of config.json."""
    said, hidden, heads = {}, config["hidden"], config["heads"]
    pre, eps = config["norm"]["order"] == "pre", config["norm"]["eps"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    def attention(x, name):
        q, k, v = linear(x, f"{name}.qkv").reshape(len(x), 3, heads, -1).transpose(1, 2, 0, 3)
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(hidden // heads)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return linear((weights @ v).transpose(1, 0, 2).reshape(len(x), hidden), f"{name}.out")

    def feedforward(x, i, ffn):
        name = f"layers.{i}.ffn"
        y = np.zeros_like(x) + w.get(f"{name}.b_out", 0)
        if f"{name}.dense_in.weight" in w:
            y = y + gelu(linear(x, f"{name}.dense_in")) @ w[f"{name}.dense_out.weight"].T
        if ffn["kind"] == "fff":
            trees, b_in = w[f"{name}.nodes"], w.get(f"{name}.b_in")
            nodes, z = oracle.walk(x, trees[:, :, 0], b_in, ffn["depth"], w.get(f"{name}.children"))
            said[f"nodes.{i}"] = nodes.astype(np.int32)
            decided = z[..., :-1] if ffn["depth"] else z[..., :0]
            if np.abs(decided[nodes[..., : decided.shape[-1]] >= 0]).min() < MARGIN:
                raise ValueError("a logit is too close to zero")
            y = y + oracle.add_up(x, trees[:, :, 0], b_in, trees[:, :, 1], nodes)
        return y

    place = np.arange(len(ids))
    if config["positions"]["kind"] == "learned":
        position = w["embedding.position"][place]
    else:
        column = np.arange(hidden)
        angle = place[:, None] / 10000.0 ** ((column - column % 2) / hidden)
        position = w["embedding.position_scale"] * np.where(column % 2, np.cos(angle), np.sin(angle))
    x = w["embedding.word"][ids] + position
    if config["token_types"]:
        x = x + w["embedding.token_type"][types]
    if config["embedding_norm"]:
        x = norm(x, "embedding.norm")
    layers = config["ffn"] if isinstance(config["ffn"], list) else [config["ffn"]] * config["layers"]
    for i, ffn in enumerate(layers):
        said[f"hidden.{i}"] = x
        at = f"layers.{i}.attention"
        x = x + attention(norm(x, f"{at}.norm"), at) if pre else norm(x + attention(x, at), f"{at}.norm")
        at = f"layers.{i}.ffn"
        x = x + feedforward(norm(x, f"{at}.norm"), i, ffn) if pre else norm(x + feedforward(x, i, ffn), f"{at}.norm")
    said[f"hidden.{len(layers)}"] = x
    if config["final_norm"]:
        x = norm(x, "final_norm")
    said["final"] = x

    pool = {"cls": lambda: x[0], "mean": lambda: x.mean(0), "max": lambda: x.max(0), "lse": lambda: np.log(np.exp(x).sum(0))}
    tasks = config["tasks"]
    if "embed" in tasks:
        vector = pool[tasks["embed"]["pooling"]]()
        said["embed"] = (vector / np.linalg.norm(vector) if tasks["embed"]["normalize"] else vector)[None]
    if "classify" in tasks:
        h = pool[tasks["classify"]["pooling"]]()[None]
        for i, layer in enumerate(tasks["classify"]["layers"]):
            h = linear(h, f"tasks.classify.layers.{i}")
            h = {"tanh": np.tanh, "relu": lambda v: np.maximum(v, 0), "gelu": gelu}[layer["activation"]](h)
        said["classify"] = linear(h, "tasks.classify.out")
    for task in ("tag", "answer"):
        if task in tasks:
            said[task] = linear(x, f"tasks.{task}.out")
    if "fill_mask" in tasks:
        h = x
        if tasks["fill_mask"]["transform"]:
            h = norm(gelu(linear(h, "tasks.fill_mask.transform")), "tasks.fill_mask.norm")
        decoder = w["embedding.word"] if tasks["fill_mask"]["tied"] else w["tasks.fill_mask.decoder.weight"]
        said["fill_mask"] = h @ decoder.T + w.get("tasks.fill_mask.bias", 0)
    return said


def expected(folder, seed):
    """All texts of a checkpoint, side by side."""
    config, w = json.loads((folder / "config.json").read_text()), read(folder / "model.safetensors")
    rng = np.random.default_rng(seed)
    ids, types = ([rng.integers(0, most, n) for n in LENGTHS] for most in (config["vocabulary"], max(config["token_types"], 1)))
    texts = [forward(config, w, i, t) for i, t in zip(ids, types, strict=True)]
    inputs = {"ids": np.concatenate(ids), "token_types": np.concatenate(types), "lengths": np.array(LENGTHS)}
    return inputs | {stage: np.concatenate([text[stage] for text in texts]) for stage in texts[0]}


def make(folder, kind, dtype):
    """The first seed whose tokens all stand away from a tie."""
    options = {"hidden": 16, "heads": 2, "layers": 2, "vocabulary": 24, "max_tokens": 8, "ids": Ids(0, 1, 2, 3)}
    config = builders.tiny(**options | {"stored": Stored(dtype, dtype, dtype)} | KINDS[kind])
    for seed in itertools.count():
        made = builders.weights(config, seed)
        folder.mkdir(exist_ok=True, parents=True)
        checkpoint.save(folder, config, made)
        try:
            save_file(expected(folder, seed), folder / "expected.safetensors")
            return
        except ValueError:
            continue


if __name__ == "__main__":
    out = Path(sys.argv[1])
    if out.exists():
        sys.exit(f"{out} exists: golden files are made once and kept")
    for kind, dtype in itertools.product(KINDS, DTYPES):
        make(out / f"{kind}-{dtype}", kind, dtype)
