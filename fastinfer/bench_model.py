"""Benchmarks of whole models: BERT-base with random weights (or a checkpoint folder), dense and with fast feedforward layers.

Every engine gets the same weights and the same number of threads; what it answers is compared with the NumPy
reference before it is timed, an FFF along the routes that the engine took. tools/bench.py adds engines of others.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import api, bench, checkpoint
from .backends.reference import Reference, gelu
from .batch import PackedBatch
from .checkpoint import Tensor
from .config import FFF, Stored
from .errors import BackendError, InputError

SIZES = ((1, 16), (1, 128), (8, 128), (32, 128), (8, 512))  # texts x tokens
DTYPES = ("float32", "bfloat16", "int8")
CHECKED = 256  # tokens whose answers are compared, one text at least
# What an engine may differ by from the float32 reference: mean of the errors of hidden states, whose own size is about 1.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.03, "int8": 0.15}
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


# (folder in the Hugging Face layout, cache, threads, wanted(name)) -> the engines of others; a preparation that fails says why in `left_out`.
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
    return folder


def own_engines(
    source: Path, cache: Path, threads: int, device: str, shapes: Sequence[tuple[int, int]], dtypes: Sequence[str], wanted: Callable[[str], bool]
) -> Iterator[Engine]:
    """fastinfer with the dense model and with an FFF of each shape, in each dtype."""
    for shape in (None, *shapes):
        model = "dense" if shape is None else "{}x{}".format(*shape)
        for dtype in dtypes:
            if wanted(f"fastinfer {model} {dtype}"):
                folder = stored_as(source, cache / f"fastinfer-{model}-{dtype}", dtype, shape)
                arguments = (str(folder), dtype, device, threads)
                yield Engine("fastinfer", model, dtype, load_fastinfer, arguments, ("numpy", "scipy", "tokenizers", "safetensors"), embed_own)


# --- correctness -----------------------------------------------------------------------------------


class Along(Reference):
    """The reference, its trees walked along given nodes: an array (T, P, depth + 1) per layer that has trees."""

    def __init__(self, nodes: Sequence[np.ndarray]) -> None:
        self._nodes = iter(nodes)

    def fff(self, x: np.ndarray, trees: Any, *, bias: Any = None, residual: Any = None, out: np.ndarray, nodes: Any = None, z: Any = None) -> None:
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
        """(largest, mean) error over the first texts of a batch. Raises BackendError where that is too much."""
        some = ids[: max(1, CHECKED // ids.shape[1])]
        got = np.stack([np.asarray(rows, np.float32) for rows in encode(ids)[: len(some)]])
        if engine.model not in self._loaded:
            self._loaded[engine.model] = checkpoint.load(self._folder_of(engine.model), validate=False)
        config, stored = self._loaded[engine.model]
        packed = PackedBatch.from_ids(some)
        routes = []
        if engine.own:
            per_text = encode.model.routes(packed)  # type: ignore[attr-defined]
            routes = [np.concatenate([r[0] for r in layer]) for layer in zip(*per_text, strict=True) if layer[0] is not None]
        key = some.tobytes()
        want = None if routes else self._dense.get(key)
        if want is None:
            ops = Along(routes)
            want = ops.encode(ops.prepare(config, stored), packed, api.Workspace()).reshape(*some.shape, -1).copy()
            if not routes:
                self._dense[key] = want
        error = np.abs(got - want)
        if not error.mean() < TOLERANCE[engine.dtype]:
            raise BackendError(f"{engine} is wrong: it differs from the reference by {error.mean():g} on average, at most {error.max():g}")
        return float(error.max()), float(error.mean())


# --- sizes -----------------------------------------------------------------------------------------


def bench_sizes(
    engines: dict[str, tuple[Engine, Encode]], oracle: Oracle, vocabulary: int, *, sizes: Sequence[tuple[int, int]], threads: int, seconds: float
) -> Iterator[list[dict]]:
    """Per size a list of rows, one per engine."""
    for texts, tokens in sizes:
        rng = np.random.default_rng(texts * tokens)
        inputs = [rng.integers(0, vocabulary, (texts, tokens)) for _ in range(bench.INPUTS)]
        errors = {name: oracle.errors(engine, encode, inputs[0]) for name, (engine, encode) in engines.items()}
        spreads = bench.interleaved({name: encode for name, (_, encode) in engines.items()}, inputs, seconds=seconds, pause=PAUSE_SECONDS)
        us = {name: s.median / texts / tokens for name, s in spreads.items()}
        rivals = {name: e for name, (e, _) in engines.items() if e.model == "dense"}
        rows = []
        for name, (engine, _) in engines.items():
            others = {n: e for n, e in rivals.items() if not (engine.own and e.own and engine.model == "dense")} if engine.own else {}
            same = [us[n] for n, e in others.items() if e.dtype == engine.dtype and not e.own]
            foreign = [us[n] for n, e in others.items() if not e.own]
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
                    "speedup": {n: us[n] / us[name] for n in others},
                    "against_own_dense": us.get(f"{engine.name} dense {engine.dtype}", np.nan) / us[name] if engine.model != "dense" else None,
                    "against_best_of_dtype": min(same) / us[name] if same else None,
                    "against_best": min(foreign) / us[name] if foreign else None,
                }
            )
        yield rows


HEADER = (
    f"{'engine':>28} {'model':>6} {'dtype':>8} {'us/token':>9} {'p10..p90':>16} {'texts/s':>8} {'x own dense':>11} "
    f"{'x best rival of dtype':>21} {'x best rival':>12} {'max_err':>8} {'mean_err':>8}"
)


def line(r: dict) -> str:
    """A row of bench_sizes as a line under HEADER."""
    spread = f"{r['p10']:.1f}..{r['p90']:.1f}"
    own, same, best = (f"{r[k]:.2f}" if r[k] is not None else "-" for k in ("against_own_dense", "against_best_of_dtype", "against_best"))
    return (
        f"{r['engine']:>28} {r['model']:>6} {r['dtype']:>8} {r['us_per_token']:>9.1f} {spread:>16} {r['texts_per_s']:>8.1f} {own:>11} "
        f"{same:>21} {best:>12} {r['max_error']:>8.0e} {r['mean_error']:>8.0e}"
    )


def table(rows: list[dict]) -> str:
    """Microseconds per token: a line per engine, a column per size."""
    sizes = list(dict.fromkeys((r["texts"], r["tokens"]) for r in rows))
    us = {(r["engine"], r["model"], r["dtype"], r["texts"], r["tokens"]): r["us_per_token"] for r in rows}
    lines = ["us per token" + " " * 33 + "".join(f"{'x'.join(map(str, s)):>9}" for s in sizes)]
    for who in dict.fromkeys(key[:3] for key in us):
        lines.append(f"{who[0]:>28} {who[1]:>6} {who[2]:>8} " + "".join(f"{us[who + s]:>9.1f}" if who + s in us else f"{'-':>9}" for s in sizes))
    return "\n".join(lines)


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
for turn in range(2): encode(np.arange(4096).reshape(32, 128) % 1000)
print(json.dumps(dict(load_s=loaded - start, pss_mb=shared / 1e3, peak_mb=kilobytes("/proc/self/status", "VmHWM") / 1e3)))
"""


def bench_start(engine: Engine, repeats: int = 3) -> dict:
    """Of fresh processes, files in the page cache: load time, time to the first answer (16 tokens), memory; and installed bytes."""
    package = str(Path(__file__).parent.parent)
    source = inspect.getsource(engine.load).replace("-> Encode", "")
    command = [sys.executable, "-c", PROBE.format(source=source, name=engine.load.__name__, arguments=json.dumps(engine.arguments))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))}
    runs = []
    for _ in range(repeats):
        start = time.perf_counter()
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            while (said := child.stdout.readline()) not in ("answered\n", ""):  # type: ignore[union-attr]
                pass
            first = time.perf_counter() - start
            rest, complaint = child.communicate()
        if not said or child.returncode:
            raise BackendError(f"{engine} fails in a fresh process: {(complaint.strip().splitlines() or ['no message'])[-1]}")
        runs.append(json.loads(rest.splitlines()[-1]) | {"first_answer_s": first})
    row = {key: float(np.median([r[key] for r in runs])) for key in runs[0]}
    stored = sum(f.stat().st_size for f in Path(engine.arguments[0]).rglob("*.safetensors")) / 1e6 if engine.own else None
    own = sum(f.stat().st_size for f in Path(__file__).parent.rglob("*") if f.is_file()) / 1e6 if engine.own else 0.0
    return {
        "op": "start", "engine": engine.name, "model": engine.model, "dtype": engine.dtype, **row, "stored_mb": stored,
        "installed_mb": own + installed_mb(engine.packages),
    }  # fmt: skip


START_HEADER = (
    f"{'engine':>28} {'model':>6} {'dtype':>8} {'load s':>7} {'first answer s':>14} {'peak MB':>8} {'PSS MB':>7} {'stored MB':>9} {'installed MB':>12}"
)


def start_line(r: dict) -> str:
    """A row of bench_start as a line under START_HEADER. Peak: after two batches of 32x128; PSS: after the first answer."""
    stored = "-" if r["stored_mb"] is None else f"{r['stored_mb']:.0f}"
    return (
        f"{r['engine']:>28} {r['model']:>6} {r['dtype']:>8} {r['load_s']:>7.2f} {r['first_answer_s']:>14.2f} {r['peak_mb']:>8.0f} "
        f"{r['pss_mb']:>7.0f} {stored:>9} {r['installed_mb']:>12.0f}"
    )


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
    """Texts as model.embed takes them: ordered by length, packed, nothing padded."""
    model = encode.model  # type: ignore[attr-defined]
    limit = model.config.max_tokens

    def run(texts: list[str]) -> np.ndarray:
        return model.embed(PackedBatch.from_ids([e.ids[:limit] for e in tokenizer.encode_batch(texts)]), normalize=False)

    return run


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


def bench_texts(engines: dict[str, tuple[Engine, Encode]], texts: list[str], tokenizer_file: Path, limit: int, *, seconds: float) -> list[dict]:
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
    means: dict[str, np.ndarray] = {}
    for name, run in runs.items():
        engine, _ = kinds[name]
        got = run(texts[:64])
        error = float(np.abs(got - means.setdefault(engine.model, got)).mean())
        if not error < TOLERANCE["int8"]:
            raise BackendError(f"{name}: its means of texts differ from the first engine's by {error:g} on average; nothing is timed")
    spreads = bench.interleaved(runs, [texts], seconds=seconds, least=3, pause=PAUSE_SECONDS)  # type: ignore[list-item]
    return [
        {
            "op": "texts", "engine": engine.name, "model": engine.model, "dtype": engine.dtype, "order": way, "texts": len(texts),
            "tokens": tokens, "us_per_token": spreads[name].median / tokens, "p10": spreads[name].low / tokens,
            "p90": spreads[name].high / tokens, "texts_per_s": 1e6 * len(texts) / spreads[name].median,
        }
        for name, (engine, way) in kinds.items()
    ]  # fmt: skip


TEXTS_HEADER = f"{'engine':>28} {'model':>6} {'dtype':>8} {'order':>8} {'us/token':>9} {'p10..p90':>16} {'texts/s':>8}"


def texts_line(r: dict) -> str:
    """A row of bench_texts as a line under TEXTS_HEADER; us per token that is no padding."""
    spread = f"{r['p10']:.1f}..{r['p90']:.1f}"
    return f"{r['engine']:>28} {r['model']:>6} {r['dtype']:>8} {r['order']:>8} {r['us_per_token']:>9.1f} {spread:>16} {r['texts_per_s']:>8.1f}"


# --- the command -----------------------------------------------------------------------------------


def plot(rows: list[dict], path: str) -> None:
    """Tokens per second as bars, a panel per size: rivals grey, fastinfer dense and with trees coloured."""
    try:
        import matplotlib
    except ImportError:
        raise InputError("--plot needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes = list(dict.fromkeys((r["texts"], r["tokens"]) for r in rows))
    names = list(dict.fromkeys((r["dtype"], r["engine"], r["model"]) for r in sorted(rows, key=lambda r: DTYPES.index(r["dtype"]))))
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


def add_arguments(parser: Any, listed: Callable, shape: Callable) -> None:
    """The options of `bench model` beyond those that it shares with the kernels'."""
    parser.add_argument("-m", "--model", metavar="FOLDER", help="model: a checkpoint folder (default: BERT-base with random weights)")
    parser.add_argument("--sizes", type=listed(shape), metavar="BxS,...", help="model: texts x tokens (default 1x16,1x128,8x128,32x128,8x512)")
    parser.add_argument("--engines", metavar="WORD,...", help="model: only engines whose name, model or dtype holds one of these words")
    parser.add_argument("--cache", metavar="FOLDER", help="model: where prepared models are kept (default: a temporary folder)")
    parser.add_argument("--start", action="store_true", help="model: load time, first answer and memory of fresh processes instead of speed")
    parser.add_argument("--texts", metavar="FILE", help="model: real texts, one per line, instead of random tokens")
    parser.add_argument("--tokenizer", metavar="FILE", help="model: tokenizer.json for --texts (default: the model's)")


def run(options: Any, ops: Any, about: dict, rivals: Rivals | None) -> None:
    """Run what parsed options say, and print it."""
    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(options.cache or scratch)
        source = Path(options.model) if options.model else bert_base(cache / "bert-base")
        config, _ = checkpoint.load(source, validate=False)
        cache = cache / re.sub(r"\W+", "-", str(source.resolve())).strip("-") if options.model else cache
        words = options.engines.split(",") if options.engines else [""]
        left_out: dict[str, str] = {}

        def wanted(name: str) -> bool:
            return any(word in name for word in words) and (not options.dtypes or any(d in name for d in options.dtypes))

        shapes = (options.shapes or [(1, 11)]) if not options.model else []
        chosen = list(own_engines(source, cache, ops.threads, ops.device, shapes, options.dtypes or DTYPES, wanted))
        if rivals is not None:
            chosen += rivals(source, cache, ops.threads, wanted, left_out)
        if not chosen:
            raise InputError(f"--engines {options.engines} matches no engine")

        def emit(row: dict, text: str) -> None:
            print(json.dumps({**row, "machine": about}) if options.json else text, flush=True)

        def say(text: str) -> None:
            print(text, file=sys.stderr if options.json else sys.stdout, flush=True)

        say("  ".join(f"{k} {v}" for k, v in about.items()))
        what = options.model or "BERT-base size, random weights (seed 0)"
        say(f"model: {what}; {config.layers} layers, hidden {config.hidden}, {config.heads} heads, vocabulary {config.vocabulary}")
        for name, why in left_out.items():
            say(f"left out: {name} ({why})")
        if options.start:
            say(START_HEADER)
            for engine in chosen:
                emit(row := bench_start(engine), start_line(row))
            return
        loaded = {str(engine): (engine, engine.load(*engine.arguments)) for engine in chosen}
        if options.texts:
            texts = [t for t in Path(options.texts).read_text(encoding="utf-8").splitlines() if t.strip()]
            tokenizer = Path(options.tokenizer or source / "tokenizer.json")
            say(TEXTS_HEADER)
            for row in bench_texts(loaded, texts, tokenizer, config.max_tokens, seconds=options.seconds):
                emit(row, texts_line(row))
            return

        def folder_of(model: str) -> Path:
            return source if model == "dense" else stored_as(source, cache / f"fastinfer-{model}-float32", "float32", tuple(map(int, model.split("x"))))  # type: ignore[arg-type]

        rows: list[dict] = []
        sizes = options.sizes or SIZES
        for done in bench_sizes(loaded, Oracle(folder_of), config.vocabulary, sizes=sizes, threads=ops.threads, seconds=options.seconds):
            say("\n{texts} texts x {tokens} tokens\n".format(**done[0]) + HEADER)
            for row in done:
                emit(row, line(row))
            rows += done
        say("\n" + table(rows))
        if options.plot:
            plot(rows, options.plot)
