"""The command line: `fastinfer COMMAND`. COMMANDS is the table of its commands."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from . import api, arguments, checkpoint, search_command, text_commands
from .arguments import Command, add_model, add_output, describe
from .config import Embed
from .errors import CheckpointWarning, FastinferError, InputWarning, printable
from .files import naming
from .info import info
from .text_io import STANDARD_OUTPUT, as_json, drop_output, fill_closed_streams, json_line, output, table
from .tokenizer import TruncationWarning

__all__ = ["COMMANDS", "main", "parse"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0 done, 1 failed, 130 interrupted, 141 the output has lost its reader.

    Wrong usage exits with status 2. A signal that asks to end exits with 128 plus its number: 143 for SIGTERM.
    """
    fill_closed_streams()
    cuts: list[TruncationWarning] = []

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if isinstance(message, TruncationWarning):
            cuts.append(message)
        else:
            _say("warning", message)

    args = argparse.Namespace(kept="")
    try:
        with _ended_in_order(), warnings.catch_warnings():
            for kind in (TruncationWarning, CheckpointWarning, InputWarning):
                warnings.simplefilter("always", kind)
            warnings.showwarning = show
            args = parse(argv)
            args.run(args)
            with naming(STANDARD_OUTPUT):
                sys.stdout.flush()
    except BaseException as error:
        status = _failed(error)
        if args.kept:
            _say("kept", args.kept)
        if status is None:
            raise
        return status
    if cuts:
        cut, texts, longest = sum(c.cut for c in cuts), sum(c.texts for c in cuts), max(c.longest for c in cuts)
        _say("warning", TruncationWarning(cut, texts, longest, cuts[0].limit))
    return 0


def _failed(error: BaseException) -> int | None:
    """Say what went wrong. Returns the exit status; None for an error that is not to be caught."""
    if isinstance(error, BrokenPipeError):
        drop_output()
        return 141
    if isinstance(error, KeyboardInterrupt):
        print("fastinfer: interrupted", file=sys.stderr)
        return 130
    if isinstance(error, FastinferError):
        _say("error", error)
    elif isinstance(error, OSError):
        if error.filename == STANDARD_OUTPUT:
            drop_output()
        _say("error", error if error.filename is None else f"{error.filename}: {error.strerror}")
    elif isinstance(error, MemoryError):
        _say("error", f"not enough memory: {error}" if str(error) else "not enough memory")
    else:
        return None
    return 1


def _say(kind: str, message: object) -> None:
    print(f"fastinfer: {kind}: {printable(message)}", file=sys.stderr)


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """SIGTERM or SIGHUP raises SystemExit in the block, so that temporary files are removed; the same signal again is ignored."""

    def end(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise SystemExit(128 + number)

    taken = {}
    if threading.current_thread() is threading.main_thread():
        signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
        taken = {number: signal.signal(number, end) for number in signals if signal.getsignal(number) is signal.SIG_DFL}
    try:
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)


# --- info ------------------------------------------------------------------------------------------------


def _add_info(parser: argparse.ArgumentParser) -> None:
    describe(parser, "Show what this installation can run and, with --model, what a model is.", "fastinfer info -m MODEL")
    parser.set_defaults(check=_check_info)
    add_model(parser, default="")
    add_output(parser)


def _check_info(args: argparse.Namespace, error: Any) -> None:
    given = [name for name in ("dtype", "threads", "max_depth") if getattr(args, name) is not None]
    given += ["device"] if args.device != "auto" else []
    if args.model is None and given:
        error(f"--{given[0].replace('_', '-')} says how a model is loaded: name one with --model, or leave it out")


def _info(args: argparse.Namespace) -> None:
    found = info()
    with output(args) as out:
        if args.model is not None:
            found["model"] = _describe(args.model, text_commands.load(args))
        if as_json(args):
            out.line(json_line(found))
        else:
            found["devices"] = {device: why or "ready" for device, why in found["devices"].items()}
            out.line("\n".join(table(found)))


def _describe(folder: str, model: api.Model) -> dict[str, Any]:
    c = model.config
    return {
        "folder": folder,
        "device": model.device,
        "tasks": model.tasks,
        "layers": c.layers,
        "hidden": c.hidden,
        "heads": c.heads,
        "feedforward": list(dict.fromkeys(str(f) for f in c.ffn)),
        "neurons": {"stored": sum(f.total for f in c.ffn), "used": sum(f.used for f in c.ffn)},
        "vocabulary": c.vocabulary,
        "max_tokens": c.max_tokens,
        "parameters": checkpoint.parameters(c),
        "bytes": model.nbytes,
        "tokenizer": model.tokenizer is not None,
        **({"vectors": _vectors(c.tasks.embed, c.hidden)} if c.tasks.embed else {}),
    }


def _vectors(head: Embed, hidden: int) -> dict[str, Any]:
    """What embed and rank make of texts with this head."""
    prompts = [prompt.name for prompt in head.prompts]
    return {"numbers": head.numbers(hidden), "normalize": head.normalize, "similarity": head.similarity, "prompts": prompts}


# --- commands whose modules are imported only when they are used -------------------------------------------


def _add_bench(parser: argparse.ArgumentParser) -> None:
    from .bench import command

    command.add_arguments(parser)


def _bench(args: argparse.Namespace) -> None:
    from .bench import command

    command.run(args)


def _add_routes(parser: argparse.ArgumentParser) -> None:
    from . import routes

    routes.add_arguments(parser)


def _routes(args: argparse.Namespace) -> None:
    from . import routes

    routes.run(args)


def _add_convert(parser: argparse.ArgumentParser) -> None:
    from . import conversion

    conversion.add_arguments(parser)


def _convert(args: argparse.Namespace) -> None:
    from . import conversion

    conversion.run(args)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    from .evaluation import command

    command.add_arguments(parser)


def _evaluate(args: argparse.Namespace) -> None:
    from .evaluation import command

    command.run(args)


def _add_serve(parser: argparse.ArgumentParser) -> None:
    from .serve import command

    command.add_arguments(parser)


def _serve(args: argparse.Namespace) -> None:
    from .serve import command

    command.run(args)


def _add_bulk(parser: argparse.ArgumentParser) -> None:
    from .bulk import command

    command.add_arguments(parser)


def _bulk(args: argparse.Namespace) -> None:
    from .bulk import command

    command.embed(args)


COMMANDS = {
    "embed": Command("turn texts into vectors", text_commands.add_embed, text_commands.embed),
    "rank": Command("order documents by how well they match a query", text_commands.add_rank, text_commands.rank),
    "classify": Command("give texts, or pairs of texts, a label or a score", text_commands.add_classify, text_commands.classify),
    "fill-mask": Command("guess the words that a mask token hides", text_commands.add_fill_mask, text_commands.fill_mask),
    "tag": Command("mark spans of a text, such as names and places", text_commands.add_tag, text_commands.tag),
    "answer": Command("find the answer to a question in a text", text_commands.add_answer, text_commands.answer),
    "index": Command("embed texts once, to search them", search_command.add_index, search_command.index),
    "search": Command("find the texts of an index that are most like a query", search_command.add_search, search_command.search),
    "bulk": Command("answer the texts of a large table, in one process or with Ray, Dask or Spark", _add_bulk, _bulk),
    "info": Command("show what this installation can run and, with --model, what a model is", _add_info, _info),
    "routes": Command("show how texts use the trees of a model, as text or as a picture", _add_routes, _routes),
    "convert": Command("write a checkpoint in fastinfer's format, or in another dtype", _add_convert, _convert),
    "evaluate": Command("measure the quality and the speed of models", _add_evaluate, _evaluate),
    "serve": Command("answer HTTP requests, in the protocols of OpenAI and text-embeddings-inference", _add_serve, _serve),
    "bench": Command("measure the kernels on this machine", _add_bench, _bench),
}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The parsed arguments of a command of COMMANDS. Ends the process with a message and status 2 if they do not fit."""
    return arguments.parse(argv, COMMANDS)
