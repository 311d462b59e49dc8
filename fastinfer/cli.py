"""The command line: fastinfer embed | rank | classify | fill-mask | tag | answer | index | search | info | bench."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import api, checkpoint, search_command
from .arguments import CLASSES, parse
from .config import Embed
from .errors import CheckpointWarning, FastinferError, InputError, printable
from .files import naming
from .info import info
from .text_io import (
    STANDARD_OUTPUT,
    argument,
    as_json,
    drop_output,
    fill_closed_streams,
    json_line,
    listing,
    named,
    output,
    output_ending,
    read_texts,
    shown,
    table,
    text_record,
    windows,
)
from .tokenizer import TruncationWarning, as_text

TOKENS = 8  # tokens shown per text of embed --sparse in readable output


def main(argv: list[str] | None = None) -> int:
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

    try:
        with _ended_in_order(), warnings.catch_warnings():
            warnings.simplefilter("always", TruncationWarning)
            warnings.simplefilter("always", CheckpointWarning)
            warnings.showwarning = show
            args = parse(argv)
            COMMANDS[args.command](args)
            with naming(STANDARD_OUTPUT):
                sys.stdout.flush()
    except BrokenPipeError:
        drop_output()
        return 141
    except KeyboardInterrupt:
        return 130
    except FastinferError as error:
        _say("error", error)
        return 1
    except OSError as error:
        if error.filename == STANDARD_OUTPUT:
            drop_output()
        _say("error", error if error.filename is None else f"{error.filename}: {error.strerror}")
        return 1
    except MemoryError as error:
        _say("error", f"not enough memory: {error}" if str(error) else "not enough memory")
        return 1
    if cuts:
        cut, texts, longest = sum(c.cut for c in cuts), sum(c.texts for c in cuts), max(c.longest for c in cuts)
        _say("warning", TruncationWarning(cut, texts, longest, cuts[0].limit))
    return 0


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


# --- commands --------------------------------------------------------------------------------------


def _embed_sparse(args: argparse.Namespace) -> None:
    def compute(model: api.Model, texts: list[Any]) -> list[dict[str, float]]:
        found = model.embed_sparse(texts, **_batching(args))
        name = model.tokenizer.raw.id_to_token if model.tokenizer is not None else str
        rows = [(row.indices.tolist(), row.data.tolist()) for row in (found[[i]] for i in range(len(texts)))]
        return [{name(id_) or str(id_): w for w, id_ in sorted(zip(ws, ids, strict=True), key=lambda pair: -pair[0])} for ids, ws in rows]

    def record(text: Any, weights: dict[str, float]) -> dict[str, Any]:
        return {**text_record(text), "weights": weights}

    def readable(text: Any, weights: dict[str, float]) -> str:
        best = [(f"{weight:.4f}", token) for token, weight in itertools.islice(weights.items(), TOKENS)]
        return listing(f"{len(weights)} tokens: {shown(text)}", best) if best else f"0 tokens: {shown(text)}"

    _each(args, compute, record, readable)


def _embed(args: argparse.Namespace) -> None:
    if args.sparse:
        return _embed_sparse(args)

    def compute(model: api.Model, texts: list[Any]) -> np.ndarray:
        prompt, name = (None if given is None else argument(given) for given in (args.prompt, args.prompt_name))
        options = {"prompt": prompt, "prompt_name": name, "normalize": args.normalize, "dim": args.dim}
        return model.embed(texts, **options, **_batching(args))

    def record(text: Any, vector: np.ndarray) -> dict[str, Any]:
        return {**text_record(text), "embedding": vector.tolist()}

    def readable(text: Any, vector: np.ndarray) -> str:
        first = " ".join(f"{v:8.4f}" for v in vector[:4])
        return f"{len(vector)} dimensions, norm {np.linalg.norm(vector):.4f}: {first} ...  {shown(text)}"

    if output_ending(args) != ".npy":
        _each(args, compute, record, readable)
        return
    with output(args) as out:
        model = _load(args)
        parts = [vectors for _, vectors in _answers(args, model, compute)]
        np.save(out, np.concatenate([compute(model, []), *parts]))


def _classify(args: argparse.Namespace) -> None:
    top_k = args.top_k or (None if as_json(args) else CLASSES)

    def compute(model: api.Model, texts: list[Any]) -> list[Any]:
        own = {"labels": args.labels, "template": argument(args.template), "multi_label": args.multi_label}
        return model.classify(texts, top_k=top_k, **own, **_batching(args))

    def record(text: Any, answer: Any) -> dict[str, Any]:
        found = {"score": answer} if isinstance(answer, float) else {"labels": named(answer, "label", "score")}
        return {**text_record(text), **found}

    def readable(text: Any, answer: Any) -> str:
        if isinstance(answer, float):
            return f"{answer:10.4f}  {shown(text)}"
        return listing(shown(text), [(f"{score:.4f}", label) for label, score in answer])

    _each(args, compute, record, readable)


def _fill_mask(args: argparse.Namespace) -> None:
    def compute(model: api.Model, texts: list[Any]) -> list[Any]:
        return model.fill_mask(texts, top_k=args.top_k or 5, **_batching(args))

    def record(text: Any, masks: list[Any]) -> dict[str, Any]:
        return {**text_record(text), "masks": [named(best, "token", "score", "text") for best in masks]}

    def readable(text: Any, masks: list[Any]) -> str:
        return listing(shown(text), [(f"{score:.4f}", token, filled) for best in masks for token, score, filled in best])

    _each(args, compute, record, readable)


def _tag(args: argparse.Namespace) -> None:
    def compute(model: api.Model, texts: list[Any]) -> list[Any]:
        return model.tag(texts, strategy=args.strategy, **_batching(args))

    def record(text: str, spans: list[Any]) -> dict[str, Any]:
        return {"text": text, "spans": named(spans, "start", "end", "label", "score", "text")}

    def readable(text: str, spans: list[Any]) -> str:
        rows: list[tuple[Any, ...]] = [(f"{score:.4f}", label, f"{start}-{end}", part) for start, end, label, score, part in spans]
        return listing(shown(text), rows or [("nothing tagged",)])

    _each(args, compute, record, readable)


def _answer(args: argparse.Namespace) -> None:
    def compute(model: api.Model, texts: list[Any]) -> list[Any]:
        questions, contexts = zip(*map(pair, texts), strict=True)
        options = {"no_answer": args.no_answer, "whole_words": args.whole_words}
        return model.answer(questions, contexts, top_k=args.top_k or 1, **options, **_batching(args))

    question = None if args.question is None else as_text(argument(args.question), "--question")

    def pair(text: Any) -> Any:
        return text if question is None else (question, text)

    def record(text: Any, answers: list[Any]) -> dict[str, Any]:
        asked, context = pair(text)
        return {"question": asked, "context": context, "answers": named(answers, "start", "end", "score", "text")}

    def readable(text: Any, answers: list[Any]) -> str:
        rows = [(f"{score:.4f}", f"{start}-{end}", part or "no answer") for start, end, score, part in answers]
        return listing(shown(text), rows)

    _each(args, compute, record, readable)


def _rank(args: argparse.Namespace) -> None:
    query = argument(args.query)
    as_text(query, "QUERY")
    with output(args) as out:
        model = _load(args)
        documents: list[Any] = list(read_texts(args))
        ranking = model.rank(query, documents, top_k=args.top_k, dim=args.dim, progress=sys.stderr.isatty(), **_batching(args))
        width = len(str(len(ranking)))
        for place, (index, score) in enumerate(ranking, 1):
            if as_json(args):
                out.line(json_line({"rank": place, "index": index, "score": score, "text": documents[index]}))
            else:
                out.line(f"{place:{width}}  {score:8.4f}  {shown(documents[index])}")


def _info(args: argparse.Namespace) -> None:
    found = info()
    if args.model is not None:
        found["model"] = _describe(args.model, _load(args))
    with output(args) as out:
        if as_json(args):
            out.line(json_line(found))
        else:
            found["devices"] = {device: why or "ready" for device, why in found["devices"].items()}
            out.line("\n".join(table(found)))


def _bench(args: argparse.Namespace) -> None:
    from .bench import command

    command.run(args)


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


# --- from texts to answers -------------------------------------------------------------------------


def _each(
    args: argparse.Namespace,
    compute: Callable[[api.Model, list[Any]], Any],
    record: Callable[[Any, Any], dict[str, Any]],
    readable: Callable[[Any, Any], str],
) -> None:
    """Write the answer of each text as soon as it is known: record(text, answer) as a JSON line, or readable(text, answer)."""
    with output(args) as out:
        model = _load(args)
        for texts, answers in _answers(args, model, compute):
            for text, answer in zip(texts, answers, strict=True):
                out.line(json_line(record(text, answer)) if as_json(args) else readable(text, answer))


def _answers(args: argparse.Namespace, model: api.Model, compute: Callable[[api.Model, list[Any]], Any]) -> Iterator[tuple[list[Any], Any]]:
    """Yield (texts, their answers), one window at a time. An InputError also says how many texts were done."""
    done = 0
    for texts in windows(args):
        try:
            yield texts, compute(model, texts)
        except InputError as error:
            raise InputError(f"after the first {done} texts: {error}" if done else str(error)) from None
        done += len(texts)


def _load(args: argparse.Namespace) -> api.Model:
    return api.load(args.model, device=args.device, dtype=args.dtype, threads=args.threads, max_depth=args.max_depth)


def _batching(args: argparse.Namespace) -> dict[str, Any]:
    return {} if args.batch_tokens is None else {"batch_tokens": args.batch_tokens}


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "embed": _embed,
    "rank": _rank,
    "classify": _classify,
    "fill-mask": _fill_mask,
    "tag": _tag,
    "answer": _answer,
    "index": lambda args: search_command.index(args, _load),
    "search": lambda args: search_command.search(args, _load),
    "info": _info,
    "bench": _bench,
}
