"""Load time, first answer, speed from text and memory of fresh processes, and the size of the packages that they need."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BackendError
from .engines import Engine
from .models import RIVAL_BATCH, embed_padded, read_tokenizer

PACKAGE = Path(__file__).parents[1]  # fastinfer

# What all fresh processes begin with. Annotations are not evaluated, since they name types that these processes do not import.
PRELUDE = """
from __future__ import annotations
import functools, json, re, time
import numpy as np
{sources}
def kilobytes(file, key): return int(re.search(key + r":\\s+(\\d+)", open(file).read())[1])
"""
PROBE = """
start = time.perf_counter()
encode = {name}(*json.loads({arguments!r}))
loaded = time.perf_counter()
encode(np.arange(1, 17)[None])
print("answered", flush=True)
shared = kilobytes("/proc/self/smaps_rollup", "Pss")
if {large}: encode(np.arange(4096).reshape(32, 128) % 1000)
print(json.dumps(dict(load_s=loaded - start, pss_mb=shared / 1e3, peak_mb=kilobytes("/proc/self/status", "VmHWM") / 1e3)))
"""
TEXTS_PROBE = """
encode = {name}(*json.loads({arguments!r}))
run = {embed}
texts = [text for text in open({texts!r}, encoding="utf-8").read().splitlines() if text.strip()]
run(texts[:1])
print("answered", flush=True)
start = time.perf_counter()
run(texts)
seconds = time.perf_counter() - start
print(json.dumps(dict(texts_per_s=len(texts) / seconds, peak_mb=kilobytes("/proc/self/status", "VmHWM") / 1e3)))
"""


def bench_start(engine: Engine, repeats: int = 3) -> dict[str, Any]:
    """A row with medians over fresh processes: load time, first answer (16 tokens) and memory. It also has stored and installed MB."""
    runs = [fresh_process(engine, large=i == repeats - 1) for i in range(repeats)]
    row = {key: float(np.median([r[key] for r in runs])) for key in runs[0]} | {"peak_mb": runs[-1]["peak_mb"]}
    stored = sum(f.stat().st_size for f in Path(engine.arguments[0]).rglob("*.safetensors")) / 1e6 if engine.own else None
    own = sum(f.stat().st_size for f in PACKAGE.rglob("*") if f.is_file()) / 1e6 if engine.own else 0.0
    return {
        "op": "start", "engine": engine.name, "model": engine.model, "dtype": engine.dtype, **row, "stored_mb": stored,
        "installed_mb": own + installed_mb(engine.packages),
    }  # fmt: skip


def fresh_process(engine: Engine, *, large: bool) -> dict[str, float]:
    """{load_s, first_answer_s, pss_mb, peak_mb} of one process. large: also run a batch of 32x128. Raises BackendError if it fails."""
    return _probed(engine, [engine.load], PROBE.format(name=engine.load.__name__, arguments=json.dumps(engine.arguments), large=large))


def bench_texts_apart(engines: Sequence[Engine], texts: Path, tokenizer: Path, limit: int, rounds: int = 3) -> list[dict[str, Any]]:
    """A row per engine for the way from the lines of `texts` to vectors, in fresh processes that take turns.

    Rivals that do not batch texts themselves get padded batches sorted by length, their better order. The row has the median, the
    least and the most texts a second, and the medians of the seconds to the first answer and of the peak of memory in MB.

    limit  most tokens of a text
    """
    found: dict[str, list[dict[str, float]]] = {str(engine): [] for engine in engines}
    for i in range(rounds):
        for engine in engines:
            print(f"round {i + 1} of {rounds}: {engine} ...", file=sys.stderr, flush=True)
            found[str(engine)].append(process_of_texts(engine, texts, tokenizer, limit))
    return [
        {
            "op": "apart", "engine": engine.name, "model": engine.model, "dtype": engine.dtype,
            **{key: float(np.median([run[key] for run in runs])) for key in runs[0]},
            "least": min(run["texts_per_s"] for run in runs), "most": max(run["texts_per_s"] for run in runs),
        }
        for engine in engines if (runs := found[str(engine)])
    ]  # fmt: skip


def process_of_texts(engine: Engine, texts: Path, tokenizer: Path, limit: int) -> dict[str, float]:
    """{texts_per_s, first_answer_s, peak_mb} of one process. Raises BackendError if it fails."""
    functions: list[Callable[..., Any]] = [embed_padded, read_tokenizer] if engine.embed is None else [engine.embed]
    if engine.embed is None:
        embed = f"embed_padded(encode, read_tokenizer({str(tokenizer)!r}, {limit}), ordered=True)"
    else:
        embed = f"{engine.embed.__name__}(encode, None)"
    values = {"name": engine.load.__name__, "arguments": json.dumps(engine.arguments), "embed": embed, "texts": str(texts)}
    return _probed(engine, [engine.load, *functions], f"RIVAL_BATCH = {RIVAL_BATCH}\n" + TEXTS_PROBE.format(**values))


def _probed(engine: Engine, functions: Sequence[Callable[..., Any]], probe: str) -> dict[str, float]:
    """What a fresh process with the sources of these functions prints as JSON, and first_answer_s. Raises BackendError if it fails."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))}
    code = PRELUDE.format(sources="\n".join(map(inspect.getsource, functions))) + probe
    start = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as complaint,
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=complaint, text=True) as child,
    ):
        assert child.stdout is not None
        while (said := child.stdout.readline()) not in ("answered\n", ""):
            pass
        first = time.perf_counter() - start
        rest = child.stdout.read()
        if child.wait() or not said:
            complaint.seek(0)
            raise BackendError(f"{engine} fails in a fresh process: {(complaint.read().strip().splitlines() or ['no message'])[-1]}")
    return {**json.loads(rest.splitlines()[-1]), "first_answer_s": first}


def installed_mb(packages: Sequence[str]) -> float:
    """Megabytes of the installed files of these packages and of all their dependencies."""
    found: dict[str, float] = {}
    waiting = list(packages)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = 0.0  # a dependency for other platforms, or one that is not installed
            continue
        paths = (Path(str(distribution.locate_file(file))) for file in distribution.files or ())
        found[name] = sum(p.stat().st_size for p in paths if p.is_file()) / 1e6
        waiting += [re.split(r"[^\w.-]", r, maxsplit=1)[0] for r in distribution.requires or () if "extra ==" not in r]
    return sum(found.values())
