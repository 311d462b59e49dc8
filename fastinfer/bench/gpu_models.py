"""Benchmarks of whole models on a GPU: the graph of a forward pass, its launch, a call from the host, parts of a layer."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..backends.cuda.ops import FittedCUDA
from ..backends.cuda.session import Session
from ..batch import PackedBatch
from ..errors import BackendError
from ..weights import Layer, Weights
from . import timing
from .engines import Encode, Engine
from .gpu_timing import LEAST, SETS, Replay, interleaved, own_work, replay
from .models import Loaded
from .oracle import Oracle
from .report import Row, ratios
from .timing import Spread

SIZES = ((1, 16), (1, 128), (32, 128), (64, 512))  # texts x tokens
PARTS = ("attention", "attention block", "ffn block")


class Encoder(NamedTuple):
    """A whole model on the GPU, ready for batches of one size.

    replay  the graph of its forward pass, from ids on the device to hidden states on the device
    call    call(which batch) takes ids on the host to hidden states on the device, and waits for them
    parts   {part: Replay per layer} for some of PARTS; "attention" excludes the projections
    """

    replay: Replay
    call: Callable[[int], Any]
    parts: dict[str, Replay]


def own_encoder(encode: Any, batches: Sequence[np.ndarray]) -> Encoder:
    """The Encoder of fastinfer for batches (texts, tokens). encode: the result of engines.load_fastinfer."""
    ops, weights = encode.model._runner.replicas[0]
    packed = [PackedBatch.from_ids(ids.tolist()) for ids in batches]
    with ops.cupy.cuda.Device(ops.number):
        session, other = ops.sessions.new(), ops.sessions.new()

    def call(which: int) -> None:
        with session:
            ops.encode(weights, packed[which], session)
        session.stream.synchronize()

    call(0)
    ((graph, _),) = session.graphs.values()
    whole = Replay(session.stream, functools.partial(graph.launch, session.stream), 1, keep=session)
    with other:
        return Encoder(whole, call, own_parts(ops, weights, other, packed[0]))


def own_parts(ops: FittedCUDA, weights: Weights, session: Session, batch: PackedBatch) -> dict[str, Replay]:
    """{part: Replay per layer} of fastinfer. The session must be entered."""
    tokens = len(batch.ids)
    placed = session.place(batch, tokens, False)
    x = session.take("x", tokens, weights.hidden)
    ops.embed(placed, weights.embedding, out=x)
    qkv = [ops.empty(tokens, 3 * weights.hidden) for _ in weights.layers[:SETS]]
    for array, layer in zip(qkv, weights.layers, strict=False):
        ops.linear(x, layer.attention.qkv.weight, bias=layer.attention.qkv.bias, out=array)
    out = ops.empty(tokens, weights.hidden)
    start = x.copy()  # blocks work in place, so x would grow without bounds

    def restore() -> None:
        x[...] = start

    def attention(layer: Layer) -> None:
        ops.attention_block(x, layer, placed.cu_seqlens, weights, session)

    def feedforward(layer: Layer) -> None:
        ops.ffn_block(x, layer, weights, session)

    attend = [functools.partial(ops.attention, q, placed.cu_seqlens, weights.heads, out=out) for q in qkv]
    parts = {"attention": replay(own_work(ops, session, attend, out))}
    for part, block in (("attention block", attention), ("ffn block", feedforward)):
        parts[part] = replay(own_work(ops, session, [functools.partial(block, layer) for layer in weights.layers], x), restore)
    return parts


def started(replay: Replay, which: int) -> None:
    """Launch a graph and wait for it."""
    replay.launch()
    replay.stream.synchronize()


class Ready(NamedTuple):
    """The engines whose answers are right for batches of one size. wrong: the last error of a fastinfer engine, or None."""

    engines: dict[str, Engine]
    encodes: dict[str, Encode]
    encoders: dict[str, Encoder]
    errors: dict[str, tuple[float, float]]
    wrong: BackendError | None


def ready(engines: Loaded, oracle: Oracle, inputs: Sequence[np.ndarray]) -> Ready:
    """Compare the engines with the reference and make their encoders. Engines that fail are left out, with a line on standard error."""
    texts, tokens = inputs[0].shape
    errors: dict[str, tuple[float, float]] = {}
    encoders: dict[str, Encoder] = {}
    wrong: BackendError | None = None
    for name, (engine, encode) in engines.items():
        if not engine.own and not hasattr(encode, "encoder"):  # this engine is only for --texts
            continue
        if engine.own:
            encode.model._runner.replicas[0][0].batch_tokens = texts * tokens  # so that the check uses the same batches as the timing
        try:
            errors[name] = oracle.errors(engine, encode, inputs[0])
            encoders[name] = own_encoder(encode, inputs) if engine.own else encode.encoder(inputs)
        except Exception as error:
            if engine.own:
                if not isinstance(error, BackendError):
                    raise
                wrong = error
            print(f"left out: {engine} at {texts}x{tokens}: {error}", file=sys.stderr)
    return Ready({n: engines[n][0] for n in encoders}, {n: engines[n][1] for n in encoders}, encoders, errors, wrong)


class Times(NamedTuple):
    """Microseconds by engine.

    graphs    the graph of the forward pass, by the device's clock
    launches  launching the graph and waiting for it, by the host's clock
    walls     a whole call from ids on the host to hidden states on the device, by the host's clock
    states    from ids to hidden states on the host, by the host's clock; only fastinfer's
    parts     {part: time per layer}, by the device's clock
    """

    graphs: dict[str, Spread]
    launches: dict[str, Spread]
    walls: dict[str, Spread]
    states: dict[str, Spread]
    parts: dict[str, dict[str, Spread]]


def measure(made: Ready, inputs: Sequence[np.ndarray], seconds: float) -> Times:
    """The Times of the engines, which take turns."""
    encoders = made.encoders
    on_host = functools.partial(timing.interleaved, seconds=seconds, least=LEAST, pause=0)
    return Times(
        graphs=interleaved({name: e.replay for name, e in encoders.items()}, seconds=seconds),
        launches=on_host({name: functools.partial(started, e.replay) for name, e in encoders.items()}, range(SETS)),
        walls=on_host({name: e.call for name, e in encoders.items()}, range(SETS)),
        states=on_host({name: made.encodes[name] for name in encoders if made.engines[name].own}, inputs),
        parts={part: interleaved({n: e.parts[part] for n, e in encoders.items() if part in e.parts}, seconds=seconds) for part in PARTS},
    )


def row_of(name: str, made: Ready, times: Times, texts: int, tokens: int) -> Row:
    """The row of an engine for batches of texts x tokens."""
    engine, graph, wall = made.engines[name], times.graphs[name], times.walls[name]
    return {
        "op": "gpu",
        "engine": engine.name,
        "model": engine.model,
        "dtype": engine.dtype,
        "texts": texts,
        "tokens": tokens,
        "graph_ms": graph.median / 1e3,
        "p10": graph.low / 1e3,
        "p90": graph.high / 1e3,
        "wall_ms": wall.median / 1e3,
        "launch_us": times.launches[name].median - graph.median,
        "host_us": wall.median - graph.median,
        "states_ms": times.states[name].median / 1e3 if name in times.states else None,
        "us_per_token": graph.median / texts / tokens,
        **{part.replace(" ", "_") + "_us": us[name].median if name in us else None for part, us in times.parts.items()},
        **ratios(name, made.engines, {n: s.median for n, s in times.graphs.items()}),
        "max_error": made.errors[name][0],
        "mean_error": made.errors[name][1],
    }


def bench_sizes(
    engines: Loaded, oracle: Oracle, vocabulary: int, *, sizes: Sequence[tuple[int, int]], seconds: float
) -> Iterator[list[Row]]:
    """Per size (texts, tokens), a list with a row per engine. Raises BackendError after the last size if fastinfer was wrong."""
    wrong: BackendError | None = None
    for texts, tokens in sizes:
        rng = np.random.default_rng(texts * tokens)
        inputs = [rng.integers(0, vocabulary, (texts, tokens)) for _ in range(SETS)]
        made = ready(engines, oracle, inputs)
        wrong = made.wrong or wrong
        times = measure(made, inputs, seconds)
        if made.encoders:
            yield [row_of(name, made, times, texts, tokens) for name in made.encoders]
    if wrong:
        raise wrong
