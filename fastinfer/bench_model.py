"""Benchmarks of whole models: BERT-base with random weights (or a checkpoint folder), dense and with fast feedforward layers.

Every engine gets the same weights and the same number of threads; what it answers is compared with the NumPy
reference before it is timed, an FFF along the routes that the engine took. tools/bench.py adds engines of others.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import bench, checkpoint
from .backends.reference import Reference, gelu
from .batch import PackedBatch
from .checkpoint import Tensor
from .config import FFF, Dense, Stored
from .errors import BackendError, InputError
from .workspace import Workspace

SIZES = ((1, 16), (1, 128), (8, 128), (32, 128), (8, 512))  # texts x tokens
CHECKED = 256  # tokens whose answers are compared, one text at least
# What an engine may differ by from the float32 reference: mean of the errors of hidden states, whose own size is about 1.
TOLERANCE = {"float32": 1e-4, "tf32": 5e-3, "float16": 5e-3, "bfloat16": 0.03, "int8": 0.15}
NEEDS = ("numpy", "scipy", "tokenizers", "safetensors")
TEXTS_TOLERANCE = {"float32": 1e-3, "float16": 0.01, "bfloat16": 0.05, "int8": 0.3}  # relative, of a batch against each text alone
RIVAL_BATCH = 32  # texts in a padded batch of a rival
PAUSE_SECONDS = 0.25  # between turns: Intel's OpenMP, which CTranslate2 brings, spins for 0.2 s after a call

Encode = Callable[..., Any]


class Engine(NamedTuple):
    """One way to run one model.

    load       a function that stands alone (a fresh process runs its source): load(*arguments) -> encode, and
               encode(ids (B, S) int64, mask (B, S) or None) -> hidden states, (B, S, D) or B times (S, D)
    arguments  strings and numbers
    packages   what must be installed for it, but fastinfer itself
    embed      (encode, tokenizer) -> run(texts) -> (B, D), where it takes texts in its own way; None: in padded batches
    """

    name: str
    model: str
    dtype: str
    load: Callable[..., Encode]
    arguments: tuple
    packages: tuple[str, ...]
    embed: Callable[[Encode, Any], Callable[[list[str]], Any]] | None = None

    @property
    def own(self) -> bool:
        return self.load is load_fastinfer

    def __str__(self) -> str:
        return f"{self.name} {self.model} {self.dtype}"


# (folder in the Hugging Face layout, cache, threads, wanted(name), left_out) -> engines of others; left_out gets what cannot run and why.
Rivals = Callable[[Path, Path, int, Callable[[str], bool], dict[str, str]], Iterator[Engine]]


def load_fastinfer(folder: str, dtype: str, device: str, threads: int) -> Encode:
    import fastinfer

    model = fastinfer.load(folder, device=device, dtype=dtype, threads=threads)

    def encode(ids, mask=None):  # type: ignore[no-untyped-def]
        rows = ids if mask is None else [row[: m.sum()] for row, m in zip(ids, mask, strict=True)]
        return model.hidden_states(fastinfer.PackedBatch.from_ids(rows))

    encode.model = model  # type: ignore[attr-defined]
    return encode


# --- models ----------------------------------------------------------------------------------------


def bert_base(folder: Path) -> Path:
    """`folder` with BERT-base in the Hugging Face layout, random weights of seed 0; made once."""
    from safetensors.numpy import save_file

    if (folder / "config.json").exists():
        return folder
    rng = np.random.default_rng(0)
    hidden, width = 768, 3072
    weights: dict[str, np.ndarray] = {}

    def matrix(name: str, *shape: int, deviation: float = 0.02) -> None:
        weights[f"{name}.weight"] = rng.standard_normal(shape, np.float32) * np.float32(deviation)

    def linear(name: str, *shape: int) -> None:
        matrix(name, *shape)
        weights[f"{name}.bias"] = rng.standard_normal(shape[0], np.float32) * np.float32(0.02)

    def norm(name: str) -> None:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = np.ones(hidden, np.float32), np.zeros(hidden, np.float32)

    matrix("embeddings.word_embeddings", 30522, hidden)
    matrix("embeddings.position_embeddings", 512, hidden, deviation=0.01)
    matrix("embeddings.token_type_embeddings", 2, hidden, deviation=0.002)
    norm("embeddings.LayerNorm")
    for i in range(12):
        at = f"encoder.layer.{i}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            linear(f"{at}.attention.{name}", hidden, hidden)
        norm(f"{at}.attention.output.LayerNorm")
        linear(f"{at}.intermediate.dense", width, hidden)
        linear(f"{at}.output.dense", hidden, width)
        norm(f"{at}.output.LayerNorm")
    config = {
        "architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu", "hidden_size": hidden, "intermediate_size": width,
        "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12, "pad_token_id": 0, "position_embedding_type": "absolute",
        "attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return folder


def stored_as(source: Path, folder: Path, dtype: str, shape: tuple[int, int] | None = None) -> Path:
    """`folder` with the model of `source` stored in `dtype`, its feedforwards replaced by random balanced trees where a shape is given."""
    if (folder / "config.json").exists():
        return folder
    config, weights = checkpoint.load(source, validate=False)
    if shape is not None:
        ffn = FFF(*shape)
        config = dataclasses.replace(config, ffn=(ffn,) * config.layers)
        rng = np.random.default_rng(0)
        scale = np.array([config.hidden**-0.5, ffn.used**-0.5], np.float32)[:, None]
        weights = {name: t for name, t in weights.items() if ".ffn." not in name or ".ffn.norm" in name}
        for i in range(config.layers):
            nodes = rng.standard_normal((ffn.trees, ffn.count, 2, config.hidden), np.float32) * scale
            weights[f"layers.{i}.ffn.nodes"] = Tensor(nodes, "float32")
            weights[f"layers.{i}.ffn.b_in"] = Tensor(np.zeros((ffn.trees, ffn.count), np.float32), "float32")
    spec = checkpoint.tensors(config)
    weights = {name: t if spec[name].family in ("vector", "table") else t.to(dtype) for name, t in weights.items()}
    checkpoint.save(folder, dataclasses.replace(config, stored=Stored(dtype, dtype, dtype)), weights)  # type: ignore[arg-type]
    if (source / "tokenizer.json").exists():
        shutil.copy(source / "tokenizer.json", folder)
    return folder


def own_engines(
    source: Path,
    base: str,
    cache: Path,
    threads: int,
    device: str,
    shapes: Sequence[tuple[int, int]],
    dtypes: Sequence[str],
    wanted: Callable[[str], bool],
) -> Iterator[Engine]:
    """fastinfer with the model of `source`, called `base`, and with an FFF of each shape, in each dtype."""
    for shape in (None, *shapes):
        model = base if shape is None else "{}x{}".format(*shape)
        for dtype in dtypes:
            if wanted(f"fastinfer {model} {dtype}"):
                folder = stored_as(source, cache / f"fastinfer-{model}-{dtype}", dtype, shape)
                yield Engine("fastinfer", model, dtype, load_fastinfer, (str(folder), dtype, device, threads), NEEDS, embed_own)


# --- correctness -----------------------------------------------------------------------------------


class Along(Reference):
    """The reference, its trees walked along given nodes: an array (T, P, depth + 1) per layer that has trees."""

    def __init__(self, nodes: Sequence[np.ndarray]) -> None:
        self._nodes = iter(nodes)

    def fff(
        self, x: np.ndarray, trees: Any, *, bias: Any = None, residual: Any = None, out: np.ndarray, nodes: Any = None, z: Any = None
    ) -> None:
        y = np.zeros_like(x) if residual is None else residual.copy()
        for p, path in enumerate(next(self._nodes).transpose(1, 2, 0)):
            for at in path:
                logit = np.einsum("td,td->t", x, trees.nodes[p, at, 0]) + (0 if trees.b_in is None else trees.b_in[p, at])
                y += gelu(logit)[:, None] * trees.nodes[p, at, 1]
        out[...] = y if bias is None else y + bias


class Oracle:
    """What the engines should answer: the NumPy reference in float32, of the weights stored in float32."""

    def __init__(self, folder_of: Callable[[str], Path]) -> None:
        self._folder_of = folder_of
        self._loaded: dict[str, tuple] = {}
        self._dense: dict[bytes, np.ndarray] = {}

    def errors(self, engine: Engine, encode: Encode, ids: np.ndarray) -> tuple[float, float]:
        """(largest, mean) error over the first texts of a batch. Raises BackendError where that is too much.

        Routes are those of the whole batch: on a GPU its size decides how products round, and so on which side a near-tie falls.
        """
        some = ids[: max(1, CHECKED // ids.shape[1])]
        got = np.stack([np.asarray(rows, np.float32) for rows in encode(ids)[: len(some)]])
        if engine.model not in self._loaded:
            self._loaded[engine.model] = checkpoint.load(self._folder_of(engine.model), validate=False)
        config, stored = self._loaded[engine.model]
        packed = PackedBatch.from_ids(some)
        routes = []
        if engine.own:
            per_text = encode.model.routes(PackedBatch.from_ids(ids))[: len(some)]  # type: ignore[attr-defined]
            routes = [np.concatenate([r[0] for r in layer]) for layer in zip(*per_text, strict=True) if layer[0] is not None]
        key = some.tobytes()
        want = None if routes else self._dense.get(key)
        if want is None:
            ops = Along(routes)
            want = ops.encode(ops.prepare(config, stored), packed, Workspace()).reshape(*some.shape, -1).copy()
            if not routes:
                self._dense[key] = want
        error = np.abs(got - want)
        if not error.mean() < TOLERANCE[engine.dtype]:
            raise BackendError(f"{engine} is wrong: it differs from the reference by {error.mean():g} on average, at most {error.max():g}")
        return float(error.max()), float(error.mean())


# --- sizes -----------------------------------------------------------------------------------------


def bench_sizes(
    engines: dict[str, tuple[Engine, Encode]],
    oracle: Oracle,
    vocabulary: int,
    *,
    sizes: Sequence[tuple[int, int]],
    threads: int,
    seconds: float,
) -> Iterator[list[dict]]:
    """Per size a list of rows, one per engine."""
    for texts, tokens in sizes:
        rng = np.random.default_rng(texts * tokens)
        inputs = [rng.integers(0, vocabulary, (texts, tokens)) for _ in range(bench.INPUTS)]
        errors: dict[str, tuple[float, float]] = {}
        for name, (engine, encode) in engines.items():
            try:
                errors[name] = oracle.errors(engine, encode, inputs[0])
            except BackendError as error:
                if engine.own:
                    raise
                print(f"left out: {error}", file=sys.stderr)
        spreads = bench.interleaved({name: engines[name][1] for name in errors}, inputs, seconds=seconds, least=5, pause=PAUSE_SECONDS)
        us = {name: s.median / texts / tokens for name, s in spreads.items()}
        rows = []
        for name in errors:
            engine = engines[name][0]
            rows.append(
                {
                    "op": "model",
                    "engine": engine.name,
                    "model": engine.model,
                    "dtype": engine.dtype,
                    "texts": texts,
                    "tokens": tokens,
                    "threads": threads,
                    "us_per_token": us[name],
                    "p10": spreads[name].low / texts / tokens,
                    "p90": spreads[name].high / texts / tokens,
                    "texts_per_s": 1e6 / us[name] / tokens,
                    "max_error": errors[name][0],
                    "mean_error": errors[name][1],
                    **ratios(name, {n: engines[n][0] for n in errors}, us),
                }
            )
        yield rows


def ratios(name: str, engines: dict[str, Engine], times: dict[str, float]) -> dict:
    """How many times faster an engine of our own is than each rival, its own dense form, the best rival of its dtype, the best of all."""
    engine = engines[name]
    speedup = {n: times[n] / times[name] for n, other in engines.items() if engine.own and not other.own}
    same = [speedup[n] for n in speedup if engines[n].dtype == engine.dtype]
    own_dense = times.get(f"fastinfer dense {engine.dtype}") if engine.own and engine.model != "dense" else None
    return {
        "speedup": speedup,
        "against_own_dense": own_dense / times[name] if own_dense else None,
        "against_best_of_dtype": min(same) if same else None,
        "against_best": min(speedup.values()) if speedup else None,
    }


# --- a fresh process -------------------------------------------------------------------------------

PROBE = """
import json, re, time
import numpy as np
{source}
def kilobytes(file, key): return int(re.search(key + r":\\s+(\\d+)", open(file).read())[1])
start = time.perf_counter()
encode = {name}(*json.loads({arguments!r}))
loaded = time.perf_counter()
encode(np.arange(1, 17)[None])
print("answered", flush=True)
shared = kilobytes("/proc/self/smaps_rollup", "Pss")
if {large}: encode(np.arange(4096).reshape(32, 128) % 1000)
print(json.dumps(dict(load_s=loaded - start, pss_mb=shared / 1e3, peak_mb=kilobytes("/proc/self/status", "VmHWM") / 1e3)))
"""


def bench_start(engine: Engine, repeats: int = 3) -> dict:
    """Of fresh processes, files in the page cache: load time, time to the first answer (16 tokens), memory; and installed bytes."""
    package = str(Path(__file__).parent.parent)
    source = inspect.getsource(engine.load).replace("-> Encode", "")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))}
    runs = []
    for large in range(repeats - 1, -1, -1):
        code = PROBE.format(source=source, name=engine.load.__name__, arguments=json.dumps(engine.arguments), large=not large)
        start = time.perf_counter()
        with (
            tempfile.TemporaryFile("w+") as complaint,
            subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=complaint, text=True) as child,
        ):
            while (said := child.stdout.readline()) not in ("answered\n", ""):  # type: ignore[union-attr]
                pass
            first = time.perf_counter() - start
            rest = child.stdout.read()  # type: ignore[union-attr]
            if child.wait() or not said:
                complaint.seek(0)
                raise BackendError(f"{engine} fails in a fresh process: {(complaint.read().strip().splitlines() or ['no message'])[-1]}")
        runs.append(json.loads(rest.splitlines()[-1]) | {"first_answer_s": first})
    row = {key: float(np.median([r[key] for r in runs])) for key in runs[0]} | {"peak_mb": runs[-1]["peak_mb"]}
    stored = sum(f.stat().st_size for f in Path(engine.arguments[0]).rglob("*.safetensors")) / 1e6 if engine.own else None
    own = sum(f.stat().st_size for f in Path(__file__).parent.rglob("*") if f.is_file()) / 1e6 if engine.own else 0.0
    return {
        "op": "start", "engine": engine.name, "model": engine.model, "dtype": engine.dtype, **row, "stored_mb": stored,
        "installed_mb": own + installed_mb(engine.packages),
    }  # fmt: skip


def installed_mb(packages: Sequence[str]) -> float:
    """Megabytes of files that these packages and all they depend on have in site-packages."""
    found: dict[str, float] = {}
    waiting = list(packages)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = 0.0  # a dependency of other platforms, or one that was left out
            continue
        paths = (Path(str(distribution.locate_file(file))) for file in distribution.files or ())
        found[name] = sum(p.stat().st_size for p in paths if p.is_file()) / 1e6
        waiting += [re.match(r"[\w.-]+", r)[0] for r in distribution.requires or () if "extra ==" not in r]  # type: ignore[index]
    return sum(found.values())


# --- real texts ------------------------------------------------------------------------------------


def embed_own(encode: Encode, tokenizer: Any) -> Callable[[list[str]], Any]:
    """model.embed: texts ordered by length, packed, nothing padded."""
    return functools.partial(encode.model.embed, normalize=False)  # type: ignore[attr-defined]


def embed_padded(encode: Encode, tokenizer: Any, *, ordered: bool) -> Callable[[list[str]], Any]:
    """Texts in padded batches of 32, in the order in which they came or ordered by length; means over the tokens."""

    def run(texts: list[str]) -> np.ndarray:
        rows = [e.ids for e in tokenizer.encode_batch(texts)]
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i])) if ordered else range(len(rows))
        out: list = [None] * len(rows)
        for begin in range(0, len(rows), RIVAL_BATCH):
            which = order[begin : begin + RIVAL_BATCH]
            mask = np.arange(max(len(rows[i]) for i in which)) < np.array([len(rows[i]) for i in which])[:, None]
            ids = np.zeros(mask.shape, np.int64)
            ids[mask] = np.concatenate([rows[i] for i in which])
            hidden = np.asarray(encode(ids, mask.astype(np.int64)), np.float32)
            means = np.einsum("bsd,bs->bd", hidden, mask.astype(np.float32)) / mask.sum(1, keepdims=True)
            for i, mean in zip(which, means, strict=True):
                out[i] = mean
        return np.stack(out)

    return run


def bench_texts(
    engines: dict[str, tuple[Engine, Encode]], texts: list[str], tokenizer_file: Path, limit: int, *, seconds: float
) -> list[dict]:
    """Text in, means out: each engine with its own ordering of texts, rivals in batches of 32 as the texts come, and sorted."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_padding()
    tokenizer.enable_truncation(limit)
    tokens = sum(len(e.ids) for e in tokenizer.encode_batch(texts))
    runs: dict[str, Callable] = {}
    kinds: dict[str, tuple[Engine, str]] = {}
    for name, (engine, encode) in engines.items():
        ways = {"own": engine.embed(encode, tokenizer)} if engine.embed else {}
        if not ways:
            ways = {way: embed_padded(encode, tokenizer, ordered=way == "sorted") for way in ("arrival", "sorted")}
        for way, run in ways.items():
            runs[f"{name} {way}"], kinds[f"{name} {way}"] = run, (engine, way)
    some = texts[:RIVAL_BATCH]
    for name, run in runs.items():
        engine = kinds[name][0]
        alone = np.stack(
            [np.asarray(engines[str(engine)][1](np.array([e.ids]))[0], np.float32).mean(0) for e in tokenizer.encode_batch(some)]
        )
        error = float(np.linalg.norm(run(some) - alone) / np.linalg.norm(alone))
        if not error < TEXTS_TOLERANCE[engine.dtype]:
            raise BackendError(f"{name}: its means of texts differ by {error:.1%} from those of each text alone; nothing is timed")
    spreads = bench.interleaved(runs, [texts], seconds=seconds, least=3, pause=PAUSE_SECONDS)  # type: ignore[list-item]
    return [
        {
            "op": "texts", "engine": engine.name, "model": engine.model, "dtype": engine.dtype, "order": way, "texts": len(texts),
            "tokens": tokens, "us_per_token": spreads[name].median / tokens, "p10": spreads[name].low / tokens,
            "p90": spreads[name].high / tokens, "texts_per_s": 1e6 * len(texts) / spreads[name].median,
        }
        for name, (engine, way) in kinds.items()
    ]  # fmt: skip


# --- output ----------------------------------------------------------------------------------------

# per table: (title, key of the row, width, format); us per token count no padding
WHO = (("engine", "engine", 24, ""), ("model", "model", 6, ""), ("dtype", "dtype", 8, ""))
SPEED = (("us/token", "us_per_token", 8, ".1f"), ("p10", "p10", 8, ".1f"), ("p90", "p90", 8, ".1f"), ("texts/s", "texts_per_s", 8, ".1f"))
RATIOS = (
    ("x own dense", "against_own_dense", 11, ".2f"),
    ("x best of dtype", "against_best_of_dtype", 15, ".2f"),
    ("x best rival", "against_best", 12, ".2f"),
    ("max_err", "max_error", 7, ".0e"),
    ("mean_err", "mean_error", 8, ".0e"),
)
COLUMNS = {
    "model": (*WHO, *SPEED, *RATIOS),
    "gpu": (  # launch us, host us: what launching and waiting, and a whole call, take beyond the graph; us of parts: per layer
        *WHO,
        ("graph ms", "graph_ms", 8, ".3f"),
        ("p10", "p10", 8, ".3f"),
        ("p90", "p90", 8, ".3f"),
        ("launch us", "launch_us", 9, ".1f"),
        ("call ms", "wall_ms", 8, ".3f"),
        ("host us", "host_us", 7, ".1f"),
        ("states ms", "states_ms", 9, ".3f"),
        ("attention us", "attention_us", 12, ".1f"),
        ("its block", "attention_block_us", 9, ".1f"),
        ("ffn block us", "ffn_block_us", 12, ".1f"),
        *RATIOS,
    ),
    "texts": (*WHO, ("order", "order", 8, ""), *SPEED),
    "start": (  # peak: with a batch of 32x128; PSS: after the first answer
        *WHO,
        ("load s", "load_s", 7, ".2f"),
        ("first answer s", "first_answer_s", 14, ".2f"),
        ("peak MB", "peak_mb", 8, ".0f"),
        ("PSS MB", "pss_mb", 7, ".0f"),
        ("stored MB", "stored_mb", 9, ".0f"),
        ("installed MB", "installed_mb", 12, ".0f"),
    ),
}


def header(op: str) -> str:
    """The titles of a table."""
    return " ".join(f"{title:>{width}}" for title, _, width, _ in COLUMNS[op])


def line(row: dict) -> str:
    """A row under its table's header."""
    cells = (("-" if row[key] is None else format(row[key], spec), width) for _, key, width, spec in COLUMNS[row["op"]])
    return " ".join(f"{cell:>{width}}" for cell, width in cells)


def table(rows: list[dict]) -> str:
    """Microseconds per token, or a GPU's milliseconds per batch: a line per engine, a column per size."""
    title, key, spec = ("ms", "graph_ms", ".3f") if rows[0]["op"] == "gpu" else ("us per token", "us_per_token", ".1f")
    sizes = list(dict.fromkeys((r["texts"], r["tokens"]) for r in rows))
    times = {(r["engine"], r["model"], r["dtype"], r["texts"], r["tokens"]): format(r[key], spec) for r in rows}
    lines = [f"{title:<41}" + "".join(f"{'x'.join(map(str, s)):>9}" for s in sizes)]
    for who in dict.fromkeys(key[:3] for key in times):
        lines.append(f"{who[0]:>24} {who[1]:>6} {who[2]:>8} " + "".join(f"{times.get(who + s, '-'):>9}" for s in sizes))
    return "\n".join(lines)


def plot(rows: list[dict], path: str) -> None:
    """Tokens per second as bars, a panel per size: rivals grey, fastinfer dense and with trees coloured."""
    try:
        import matplotlib
    except ImportError:
        raise InputError("--plot needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes = list(dict.fromkeys((r["texts"], r["tokens"]) for r in rows))
    ordered = sorted(rows, key=lambda r: list(TOLERANCE).index(r["dtype"]))
    names = list(dict.fromkeys((r["dtype"], r["engine"], r["model"]) for r in ordered))
    figure, panels = pyplot.subplots(1, len(sizes), figsize=(3.2 + 2.2 * len(sizes), 0.8 + 0.22 * len(names)), sharey=True, squeeze=False)
    for axes, size in zip(panels[0], sizes, strict=True):
        speed = {(r["dtype"], r["engine"], r["model"]): 1e6 / r["us_per_token"] for r in rows if (r["texts"], r["tokens"]) == size}
        colours = ["0.7" if name[1] != "fastinfer" else "C0" if name[2] == "dense" else "C1" for name in names]
        axes.barh(range(len(names)), [speed.get(name, 0) for name in names], color=colours)
        axes.set(title="{}x{}".format(*size), xlabel="tokens per second")
    panels[0][0].set_yticks(range(len(names)), [f"{e}, {d}" + f", {m}" * (e == "fastinfer") for d, e, m in names], fontsize=7)
    panels[0][0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=150)


# --- the command -----------------------------------------------------------------------------------


def add_arguments(parser: Any, listed: Callable, shape: Callable) -> None:
    """The options of `bench model` beyond those that it shares with the kernels'."""
    parser.add_argument("-m", "--model", metavar="FOLDER", help="model: a checkpoint folder (default: BERT-base with random weights)")
    parser.add_argument(
        "--sizes", type=listed(shape), metavar="BxS,...", help="model: texts x tokens (default 1x16, 1x128 ... 8x512 or, on a GPU, 64x512)"
    )
    parser.add_argument("--engines", metavar="WORD,...", help="model: only engines whose name, model or dtype holds one of these words")
    parser.add_argument("--cache", metavar="FOLDER", help="model: where prepared models are kept (default: a temporary folder)")
    parser.add_argument("--start", action="store_true", help="model: load time, first answer, memory of fresh processes instead of speed")
    parser.add_argument("--texts", metavar="FILE", help="model: real texts, one per line, instead of random tokens")
    parser.add_argument("--tokenizer", metavar="FILE", help="model: tokenizer.json for --texts, where weights are random")


def run(options: Any, ops: Any, about: dict, rivals: Rivals | None) -> None:
    """Run what parsed options say, and print it."""
    threads = about.get("threads")
    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(options.cache or scratch)
        source = Path(options.model) if options.model else bert_base(cache / "bert-base")
        config, _ = checkpoint.load(source, validate=False)
        base = "dense" if all(isinstance(f, Dense) for f in config.ffn) else str(config.ffn[0])
        cache = cache / re.sub(r"\W+", "-", str(source.resolve())).strip("-") if options.model else cache
        tokenizer = source / "tokenizer.json"
        if options.tokenizer:
            if options.model:
                raise InputError("--tokenizer goes with random weights: a checkpoint folder has its own")
            tokenizer.write_bytes(Path(options.tokenizer).read_bytes())
        words = options.engines.split(",") if options.engines else [""]
        left_out: dict[str, str] = {}

        def wanted(name: str) -> bool:
            return any(word in name for word in words) and (not options.dtypes or name.split()[-1] in options.dtypes)

        shapes = (options.shapes or [(1, 11)]) if not options.model else []
        chosen = list(own_engines(source, base, cache, threads, ops.device, shapes, ops.dtypes, wanted))
        if rivals is not None and base == "dense":
            chosen += rivals(source, cache, threads, wanted, left_out)
        if not chosen:
            raise InputError(f"no engine matches --engines {','.join(words)} and --dtypes {','.join(options.dtypes or ops.dtypes)}")

        def emit(row: dict) -> None:
            print(json.dumps({**row, "machine": about}) if options.json else line(row), flush=True)

        def say(text: str) -> None:
            print(text, file=sys.stderr if options.json else sys.stdout, flush=True)

        say("  ".join(f"{k} {v}" for k, v in about.items()))
        what = options.model or "BERT-base size, random weights (seed 0)"
        say(f"model: {what}; {config.layers} layers, hidden {config.hidden}, {config.heads} heads, vocabulary {config.vocabulary}")
        for name, why in left_out.items():
            say(f"left out: {name} ({why})")
        if options.start:
            say(header("start"))
            for engine in chosen:
                emit(bench_start(engine))
            return
        if options.texts and not tokenizer.exists():
            raise InputError(f"--texts needs {tokenizer}" + ("" if options.model else ": give one with --tokenizer"))
        loaded = {str(engine): (engine, engine.load(*engine.arguments)) for engine in chosen}
        if options.texts:
            texts = [t for t in Path(options.texts).read_text(encoding="utf-8").splitlines() if t.strip()]
            say(header("texts"))
            for row in bench_texts(loaded, texts, tokenizer, config.max_tokens, seconds=options.seconds):
                emit(row)
            return

        def folder_of(model: str) -> Path:
            if model == base:
                return source
            trees, depth = map(int, model.split("x"))
            return stored_as(source, cache / f"fastinfer-{model}-float32", "float32", (trees, depth))

        rows: list[dict] = []
        given = loaded, Oracle(folder_of), config.vocabulary
        if ops.name == "cuda":
            from . import bench_cuda

            measured = bench_cuda.bench_sizes(*given, sizes=options.sizes or bench_cuda.SIZES, seconds=options.seconds)
        else:
            measured = bench_sizes(*given, sizes=options.sizes or SIZES, threads=threads, seconds=options.seconds)
        for done in measured:
            say("\n{texts} texts x {tokens} tokens\n".format(**done[0]) + header(done[0]["op"]))
            for row in done:
                emit(row)
            rows += done
        say("\n" + table(rows))
        if options.plot:
            plot(rows, options.plot)
