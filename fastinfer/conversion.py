"""Conversion of checkpoints to fastinfer's own format: `fastinfer convert`, which the tools that make models share."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from . import checkpoint
from .arguments import at_least, describe
from .catalog import folder_of
from .checkpoint import layouts
from .config import Config, Dense, Embed, Stored
from .errors import CheckpointError
from .strict_json import read_json
from .tokenizer import Tokenizer

STORED = ("float32", "float16", "bfloat16", "int8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the description and the options of the command."""
    how = "Convert a checkpoint to fastinfer's format, or store one of this format in another dtype. Recognised are:\n" + layouts.RECOGNISED
    describe(parser, how, "fastinfer convert fastminilm large --dtype float32")
    parser.add_argument("source", metavar="SRC", help="what --model takes: a folder, the name of a model inside, or org/name on the hub")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write: new, empty, or holding a fastinfer checkpoint to replace")
    parser.add_argument("--dtype", choices=STORED, help="dtype of the stored embeddings, matrices and trees (default: as in the source)")
    what = "start a new file where one would grow beyond N MB (default: one file)"
    parser.add_argument("--max-shard-mb", type=at_least(1), metavar="N", help=what)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    print(convert(args.source, args.out, dtype=args.dtype, max_shard_mb=args.max_shard_mb))


def convert(source: str | Path, out: Path, *, dtype: str | None = None, max_shard_mb: int | None = None) -> str:
    """Convert a checkpoint into folder `out`; the text says what was made.

    source        what fastinfer.load opens: a folder, or a name
    dtype         dtype of the stored embeddings, matrices and trees; None: as in the source. Vectors are float32.
    max_shard_mb  size in MB beyond which a file does not grow: the next tensor starts a new one

    Raises FastinferError where the source is not recognised, is broken or holds NaN, and where `out` may not be written.
    """
    source = folder_of(source)
    check_out(source, out)
    with checkpoint.unchanged(source), tempfile.TemporaryDirectory() as scratch:
        config, weights, tokenizer = checkpoint.load_all(source, validate=True)
        if dtype is not None:
            stored: Any = dict.fromkeys(("embeddings", "matrices", "trees"), dtype)
            config = dataclasses.replace(config, stored=Stored(**stored))
        spec = checkpoint.tensors(config)
        for name in weights:  # one at a time, in place, so that memory holds the model once
            if spec[name].family == "table":  # of children, which have one dtype
                continue
            try:
                weights[name] = weights[name].to(spec[name].dtype)
            except CheckpointError as error:
                raise CheckpointError(f"{source}: {name}: {error}") from None
        path, about = None, f"none: {tokenizer.about}"
        if tokenizer.file:
            opened = Tokenizer(tokenizer.file, config)  # raises where it does not fit the model
            path, about = Path(scratch, "tokenizer.json"), tokenizer.about
            path.write_bytes(tokenizer.file.text if tokenizer.file.exact else opened.raw.to_str().encode())
        checkpoint.save(out, config, weights, tokenizer=path, max_shard_bytes=max_shard_mb and max_shard_mb * 10**6)
    if path is None:
        (out / "tokenizer.json").unlink(missing_ok=True)  # the replaced checkpoint may have had one
    return summary(out, config, sum(t.nbytes for t in weights.values()), about)


def check_out(source: Path, out: Path) -> None:
    """Raise CheckpointError unless `out` is new, empty, or a fastinfer checkpoint other than `source`."""
    if out.resolve() == source.resolve():
        raise CheckpointError(f"{out} is the source itself: name another folder to write")
    if not out.exists():
        if not out.absolute().parent.is_dir():
            raise CheckpointError(f"{out} cannot be written: {out.absolute().parent} is no folder")
        return
    if not out.is_dir():
        raise CheckpointError(f"{out} is a file, expected a folder to write")
    if not any(out.iterdir()):
        return
    data = read_json(out / "config.json") if (out / "config.json").exists() else None
    if not isinstance(data, dict) or "format_version" not in data:
        raise CheckpointError(f"{out} holds files that are no fastinfer checkpoint: name a new or an empty folder")


# --- what was made ---------------------------------------------------------------------------------


def vectors(config: Config, head: Embed) -> str:
    """A remark on the vectors of an embed head."""
    return f"{' + '.join(head.poolings)} pooling, {head.numbers(config.hidden)} numbers" + (", normalised" if head.normalize else "")


def summary(out: Path, config: Config, nbytes: int, tokenizer: str) -> str:
    """A small table of the checkpoint that was written into `out`; `tokenizer` is the remark on its tokenizer."""
    tasks = config.tasks
    details = {
        "embed": tasks.embed and vectors(config, tasks.embed),
        "classify": tasks.classify and f"{len(tasks.classify.labels)} labels, {tasks.classify.output}",
        "tag": tasks.tag and f"{len(tasks.tag.labels)} labels, {tasks.tag.scheme}",
    }
    stored = dataclasses.asdict(config.stored)
    if all(isinstance(ffn, Dense) for ffn in config.ffn):
        del stored["trees"]
    same = len(set(stored.values())) == 1
    rows = {
        "made": str(out),
        "tasks": ", ".join(f"{name} ({details[name]})" if details.get(name) else name for name in tasks.names) or "none",
        "layers": config.layers,
        "hidden": config.hidden,
        "heads": config.heads,
        "feedforward": " | ".join(dict.fromkeys(str(ffn) for ffn in config.ffn)),
        "vocabulary": f"{config.vocabulary:,}",
        "tokens": f"at most {config.max_tokens:,} a text",
        "parameters": f"{checkpoint.parameters(config):,}",
        "bytes": f"{nbytes:,}",
        "stored": stored["matrices"] if same else ", ".join(f"{family} {dtype}" for family, dtype in stored.items()),
        "tokenizer": tokenizer,
    }
    return "\n".join(f"{key:<12} {value}" for key, value in rows.items())
