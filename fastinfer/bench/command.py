"""Benchmarks of this machine. Results are checked before anything is timed.

Each row shows a median with its spread, the rivals and the limits of the machine. The layer and its rivals take turns on the
same random tokens, with the same number of threads. tools/bench.py adds rivals that are not dependencies, such as PyTorch.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .. import backends, checkpoint
from ..arguments import Parser, at_least
from ..catalog import folder_of
from ..config import Config, Dense, Gated
from ..errors import InputError, near, short
from . import gpu_layers, gpu_models, layers, models, report
from .engines import Engine, FindEngines, bert_base, own_engines, stored_as
from .machine import describe_cpu, describe_gpu
from .oracle import Oracle
from .plot import check_plot, plot_cmm, plot_models
from .report import Output, Row
from .rivals import Rivals, installed_dense
from .start import bench_start, bench_texts_apart
from .timing import reexecute

# --- options ---------------------------------------------------------------------------------------


def _listed(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """A parser of comma-separated values of one kind."""
    return lambda text: [kind(part) for part in text.split(",")]


def _shape(text: str) -> tuple[int, int]:
    """(P, D) of "PxD", such as trees and depth."""
    found = re.fullmatch(r"(\d{1,9})x(\d{1,9})", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{short(text)} is no pair of integers such as 16x7")
    return int(found[1]), int(found[2])


def _tree(text: str) -> tuple[int, ...]:
    """(P, D) of "PxD" or (P, D, L) of "PxDxL": trees, depth and the neurons of a leaf."""
    found = re.fullmatch(r"(\d{1,9})x(\d{1,9})(?:x(\d{1,9}))?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{short(text)} is no shape of trees such as 16x7, or 1x6x64 with 64 neurons at each leaf")
    return tuple(int(size) for size in found.groups() if size is not None)


_count = at_least(1)


def _dtype(text: str) -> str:
    known = backends.COMPUTE_DTYPES
    if text not in known:
        raise argparse.ArgumentTypeError(f"{short(text)}, expected some of {', '.join(known)}{near(text, known)}")
    return text


KINDS = {
    "cmm": "fast feedforward layers beside dense ones",
    "gemm": "packed matrix products",
    "ladder": "the paper's BLAS levels",
    "model": "whole models",
}
EXAMPLES = {
    "cmm": "--shapes 1x11 --tokens 1,128,4096 --plot speed.svg",
    "gemm": "--tokens 128 --dtypes bfloat16,int8",
    "ladder": "--tokens 128",
    "model": "--sizes 1x128,32x128 --engines fastinfer",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the description and options of `fastinfer bench` and tools/bench.py to a parser: a parser for each kind of benchmark."""
    parser.description = __doc__
    parser.epilog = "fastinfer bench KIND --help shows the options of a kind."
    kinds = parser.add_subparsers(metavar="KIND", required=True)
    parsers = {}
    for kind, what in KINDS.items():
        sub = kinds.add_parser(kind, help=what, formatter_class=argparse.RawDescriptionHelpFormatter)
        sub.description = f"Measure {what}, on this machine."
        sub.epilog = f"example:\n  fastinfer bench {kind} {EXAMPLES[kind]}"
        # A kind has some of these options. The others are None, so that run() may ask for any.
        sub.set_defaults(what=kind, parser=sub, **dict.fromkeys(ONLY_SOME), device="cpu", paths="balanced", cold=False, start=False)
        if kind != "gemm":
            sub.add_argument("--device", help="cpu (default), cpu:ISA, cuda or cuda:N")
        if kind in ("cmm", "gemm", "model"):
            known = "float32, bfloat16, int8" + (", float16 (GPU)" if kind != "gemm" else "")
            sub.add_argument("--dtypes", type=_listed(_dtype), metavar="DTYPE,...", help=f"some of {known} (default: all)")
        if kind != "model":
            sub.add_argument("--tokens", type=_listed(_count), metavar="T,...", help="tokens per call")
        sub.add_argument("--threads", type=_count, metavar="N", help="threads of every engine (default: the CPUs this process may use)")
        sub.add_argument("--seconds", type=float, metavar="S", help="time per engine and row (default: 1, on a GPU 0.05)")
        sub.add_argument("--json", action="store_true", help="write one JSON object per row")
        if kind in ("cmm", "model"):
            sub.add_argument("--plot", metavar="FILE", help="draw the speeds into FILE (.svg, .png or .pdf; needs matplotlib)")
        parsers[kind] = sub
    _add_cmm_options(parsers["cmm"])
    _add_model_options(parsers["model"])


ONLY_SOME = ("dtypes", "tokens", "plot", "shapes", "hidden", "model", "sizes", "engines", "cache", "texts", "tokenizer")


def _add_cmm_options(sub: argparse.ArgumentParser) -> None:
    shapes = "trees x depth, perhaps x neurons of a leaf, such as 1x6x64 (default: 1x11,16x7,64x5,128x4,512x2)"
    sub.add_argument("--shapes", type=_listed(_tree), metavar="PxD[xL],...", help=shapes)
    sub.add_argument("--hidden", type=_count, metavar="D", help="columns of x (default: 768)")
    sub.add_argument("--paths", choices=["balanced", "skewed"], help="how tokens spread over a tree (default: balanced)")
    sub.add_argument("--cold", action="store_true", help="evict all caches before each call (a GPU is measured both ways)")


def _add_model_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "-m", "--model", metavar="MODEL", help="a checkpoint folder, or a name as load() takes it (default: BERT-base with random weights)"
    )
    sub.add_argument(
        "--shapes", type=_listed(_shape), metavar="PxD,...", help="trees x depth of fast models with random weights (default: 1x11)"
    )
    sizes = "texts x tokens (default: 1x16, 1x128 ... 8x512 or, on a GPU, 64x512)"
    sub.add_argument("--sizes", type=_listed(_shape), metavar="BxS,...", help=sizes)
    sub.add_argument("--engines", metavar="WORD,...", help="only engines whose name, model or dtype contains one of these words")
    sub.add_argument("--cache", metavar="FOLDER", help="the folder that keeps prepared models (default: a temporary folder)")
    sub.add_argument(
        "--start", action="store_true", help="measure fresh processes: load time, first answer, memory; with --texts, their speed"
    )
    sub.add_argument(
        "--texts", metavar="FILE", help="real texts, one per line, instead of random tokens: all of them, and queries after a pause"
    )
    sub.add_argument("--tokenizer", metavar="FILE", help="tokenizer.json for --texts with random weights")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options in an argument list of `fastinfer bench`, for run()."""
    parser = Parser(prog="fastinfer bench", formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    return parser.parse_args(argv)


def check(options: argparse.Namespace) -> None:
    """Raise FastinferError for files that are missing, and for a plot that could not be drawn, before anything is measured."""
    if options.tokenizer and options.model:
        raise InputError("--tokenizer goes with random weights: a checkpoint folder has its own")
    if options.model:
        folder_of(options.model)
    for name in ("texts", "tokenizer"):
        path = getattr(options, name)
        if path is not None and not Path(path).exists():
            raise InputError(f"--{name} {path} does not exist")
    if options.plot is not None:
        check_plot(options.plot)


# --- the command -----------------------------------------------------------------------------------


def run(options: argparse.Namespace, rivals: Rivals | None = None) -> None:
    """Run the benchmark that parsed options ask for, and print its rows. rivals: other projects' engines for the device."""
    check(options)
    ops = backends.get(options.device, threads=options.threads)
    rivals = rivals or Rivals()
    if ops.name == "cuda":
        run_gpu(options, ops, rivals)
    elif ops.name == "cpu":
        run_cpu(options, ops, rivals)
    else:
        raise InputError(f"device is {options.device!r}, expected cpu, cpu:ISA, cuda or cuda:N: the NumPy reference has no benchmark")


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """{name: value} of the named options that are not None."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def run_cpu(options: argparse.Namespace, ops: Any, rivals: Rivals) -> None:
    """Run the benchmark that options ask for on the CPU backend `ops`, in a process with the right BLAS threads."""
    seconds = 1.0 if options.seconds is None else options.seconds
    reexecute(ops.threads)
    output = Output(describe_cpu(ops), options.json)
    if options.what == "model":
        run_models(options, ops, output, ops.threads, rivals.models, seconds)
    elif options.what == "ladder":
        shown = output.table(report.LADDER_HEADER, report.ladder_line)
        for count in options.tokens or [128]:
            layers.bench_ladder(ops, tokens=count, seconds=seconds, report=shown)
    elif options.what == "gemm":
        shown = output.table(report.GEMM_HEADER, report.gemm_line)
        layers.bench_gemm(ops, **_given(options, "tokens", "dtypes"), seconds=seconds, others=rivals.products, report=shown)
    else:
        shown = output.table(report.CMM_HEADER, report.cmm_line)
        given = _given(options, "tokens", "dtypes", "shapes", "hidden")
        dense = installed_dense(ops) | rivals.dense
        rows = layers.bench_cmm(ops, **given, paths=options.paths, cold=options.cold, seconds=seconds, dense=dense, report=shown)
        if options.plot:
            plot_cmm(rows, options.plot, lambda r: r["speedup"]["numpy"], "numpy's two float32 products (3072 wide)")


def run_gpu(options: argparse.Namespace, ops: Any, rivals: Rivals) -> None:
    """Run the benchmark that options ask for on the GPU backend `ops`."""
    if options.what == "gemm":
        raise InputError(f"gemm measures the CPU's matrix products; with device {options.device!r} there are cmm, ladder and model")
    seconds = 0.05 if options.seconds is None else options.seconds
    output = Output(describe_gpu(ops), options.json)
    with ops.cupy.cuda.Device(ops.number):
        if options.what == "model":
            others = None if options.start else rivals.models  # rivals' models do not load in a fresh process
            run_models(options, ops, output, None, others, seconds)
        elif options.what == "ladder":
            shown = output.table(report.LADDER_HEADER, report.ladder_line)
            for count in options.tokens or [128, 16384]:
                gpu_layers.bench_ladder(ops.device, tokens=count, seconds=seconds, others=rivals.ladder, report=shown)
        else:
            given = _given(options, "tokens", "dtypes", "shapes", "hidden")
            leaves = [(*shape, 1)[2] > 1 for shape in options.shapes or ()]
            if any(leaves) and not all(leaves):
                raise InputError("some shapes have several neurons at a leaf and others one: their tables differ, so measure them apart")
            header = (report.GPU_LEAVES_HEADER, report.gpu_leaves_line) if any(leaves) else (report.GPU_CMM_HEADER, report.gpu_cmm_line)
            given |= {"paths": options.paths, "seconds": seconds, "dense": rivals.dense, "grouped": rivals.grouped}
            rows = gpu_layers.bench_cmm(ops.device, **given, report=output.table(*header))
            if options.plot:
                against = "the best dense layer (3072 wide) of the same dtype"
                plot_cmm(rows, options.plot, lambda r: r["speedup"][r["best_dense"]], against)


# --- whole models ----------------------------------------------------------------------------------


class Source(NamedTuple):
    """The model to measure.

    folder  the folder of its checkpoint
    cache   the folder that keeps other forms of it
    config  its Config
    base    its name in tables: "dense", or the shape of its feedforward
    """

    folder: Path
    cache: Path
    config: Config
    base: str

    @classmethod
    def of(cls, options: argparse.Namespace, cache: Path) -> Source:
        """The model that options name, or else BERT-base with random weights, created in the cache."""
        folder = folder_of(options.model) if options.model else bert_base(cache / "bert-base")
        config, _ = checkpoint.load(folder, validate=False)
        base = "dense" if all(isinstance(f, (Dense, Gated)) for f in config.ffn) else str(config.ffn[0])
        if options.model:
            cache = cache / re.sub(r"\W+", "-", str(folder.resolve())).strip("-")
        if options.tokenizer:
            (folder / "tokenizer.json").write_bytes(Path(options.tokenizer).read_bytes())
        return cls(folder, cache, config, base)

    def folder_of(self, model: str) -> Path:
        """The folder of a float32 model: this one for `base`, or the same with an FFF of the shape "PxD"."""
        if model == self.base:
            return self.folder
        return stored_as(self.folder, self.cache / f"fastinfer-{model}-float32", "float32", _shape(model))


def chosen(
    options: argparse.Namespace, ops: Any, source: Source, threads: int | None, find: FindEngines | None
) -> tuple[list[Engine], dict[str, str]]:
    """(the engines that options ask for, {name of another engine: why it cannot run}). Raises InputError if no engine is left."""
    words = options.engines.split(",") if options.engines else [""]
    left_out: dict[str, str] = {}

    def wanted(name: str) -> bool:
        return any(word in name for word in words) and (not options.dtypes or name.split()[-1] in options.dtypes)

    shapes = (options.shapes or [(1, 11)]) if not options.model else []
    engines = list(own_engines(source.folder, source.base, source.cache, threads, ops.device, shapes, ops.dtypes, wanted))
    if find is not None and source.base == "dense":
        engines += find(source.folder, source.cache, threads, wanted, left_out)
    if not engines:
        raise InputError(f"no engine matches --engines {','.join(words)} and --dtypes {','.join(options.dtypes or ops.dtypes)}")
    return engines, left_out


def run_models(
    options: argparse.Namespace, ops: Any, output: Output, threads: int | None, find: FindEngines | None, seconds: float
) -> None:
    """Measure whole models: their speed; with --texts, real texts; with --start, fresh processes."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Source.of(options, Path(options.cache or scratch))
        engines, left_out = chosen(options, ops, source, threads, find)
        output.say(output.machine)
        what, config = options.model or "BERT-base size, random weights (seed 0)", source.config
        output.say(f"model: {what}; {config.layers} layers, hidden {config.hidden}, {config.heads} heads, vocabulary {config.vocabulary}")
        for name, why in left_out.items():
            output.say(f"left out: {name} ({why})")
        tokenizer = source.folder / "tokenizer.json"
        if options.texts and not tokenizer.exists():
            raise InputError(f"--texts needs {tokenizer}" + ("" if options.model else ": give one with --tokenizer"))
        if options.start:
            output.say(report.header("apart" if options.texts else "start"))
            apart = options.texts and bench_texts_apart(engines, Path(options.texts), tokenizer, config.max_tokens)
            for row in apart or map(bench_start, engines):
                output.row(row, report.line)
            return
        loaded = {str(engine): (engine, engine.load(*engine.arguments)) for engine in engines}
        if options.texts:
            texts = [t for t in Path(options.texts).read_text(encoding="utf-8").splitlines() if t.strip()]
            show_texts(output, loaded, texts, models.read_tokenizer(tokenizer, config.max_tokens), seconds)
            return
        given = loaded, Oracle(source.folder_of), config.vocabulary
        if ops.name == "cuda":
            measured = gpu_models.bench_sizes(*given, sizes=options.sizes or gpu_models.SIZES, seconds=seconds)
        else:
            measured = models.bench_sizes(*given, sizes=options.sizes or models.SIZES, threads=ops.threads, seconds=seconds)
        rows = show_sizes(output, measured)
        if options.plot:
            plot_models(rows, options.plot)


def show_texts(output: Output, loaded: models.Loaded, texts: list[str], tokenizer: Any, seconds: float) -> None:
    """Print a table of all texts and one of single short ones, in milliseconds."""
    output.say(report.header("texts"))
    for row in models.bench_texts(loaded, texts, tokenizer, seconds=seconds):
        output.row(row, report.line)
    output.say("\nms of a query\n" + report.header("queries"))
    for row in models.bench_queries(loaded, texts, tokenizer, seconds=seconds):
        output.row(row, report.line)


def show_sizes(output: Output, measured: Iterator[list[Row]]) -> list[Row]:
    """All rows. A table per size is printed when it has been measured, and at the end one of all sizes."""
    rows: list[Row] = []
    for done in measured:
        output.say("\n{texts} texts x {tokens} tokens\n".format(**done[0]) + report.header(done[0]["op"]))
        for row in done:
            output.row(row, report.line)
        rows += done
    output.say("\n" + report.table(rows))
    return rows
