"""The command line: fastinfer embed | rank | classify | fill-mask | tag | answer | info | bench."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy as np

from . import api, checkpoint
from .errors import FastinferError, InputError, printable, short
from .files import naming
from .heads.tag import STRATEGIES
from .info import __version__, info
from .text_io import (
    ENDINGS,
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
    reads_stdin,
    shown,
    table,
    text_record,
    windows,
)
from .tokenizer import TruncationWarning, as_text

CLASSES = 5  # classes of a text in readable output

DESCRIPTION = "Run transformer encoders with fast feedforward networks: texts in, answers out."
INPUT_HELP = """
Texts come from the arguments, or from --input FILE with one text per line, or from standard input.
In a FILE named .jsonl, or with --jsonl, each line is a JSON value: "a text" or {"text": "a text"}; blank lines are skipped.
A FILE named .json holds such lines, or one list of such values. A FILE named .gz is unpacked.
Files are UTF-8. An empty line of plain text is an empty text.
"""
PAIRS_HELP = """
A pair of texts is ["one", "two"] or {"text": "one", "pair": "two"} in JSON lines; with --pairs it is
two texts with a tab between them, in arguments and plain lines.
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0 done, 1 failed, 130 interrupted, 141 nobody reads the output.

    Wrong usage exits with 2, a request to end with 128 and the signal's number: 143 for SIGTERM.
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
            warnings.showwarning = show
            args = _parse(argv)
            args.command(args)
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
    """A signal that asks the process to end raises SystemExit in here, so that temporary files go; the second one is not waited for."""

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


def _embed(args: argparse.Namespace) -> None:
    def compute(model: api.Model, texts: list[Any]) -> np.ndarray:
        return model.embed(texts, normalize=args.normalize, **_batching(args))

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
        np.save(out, np.concatenate([np.empty((0, model.config.hidden), np.float32), *parts]))


def _classify(args: argparse.Namespace) -> None:
    top_k = args.top_k or (None if as_json(args) else CLASSES)

    def compute(model: api.Model, texts: list[Any]) -> list[Any]:
        return model.classify(texts, top_k=top_k, **_batching(args))

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
        documents = list(read_texts(args))
        ranking = model.rank(query, documents, top_k=args.top_k, progress=sys.stderr.isatty(), **_batching(args))
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


def _bench_options(parser: argparse.ArgumentParser) -> None:
    from .bench import command

    command.add_arguments(parser)


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
    }


# --- from texts to answers -------------------------------------------------------------------------


def _each(
    args: argparse.Namespace,
    compute: Callable[[api.Model, list[Any]], Any],
    record: Callable[[Any, Any], dict[str, Any]],
    readable: Callable[[Any, Any], str],
) -> None:
    """Write the answer of each text, as it comes: what `record` makes of it as a JSON line, or what `readable` does."""
    with output(args) as out:
        model = _load(args)
        for texts, answers in _answers(args, model, compute):
            for text, answer in zip(texts, answers, strict=True):
                out.line(json_line(record(text, answer)) if as_json(args) else readable(text, answer))


def _answers(args: argparse.Namespace, model: api.Model, compute: Callable[[api.Model, list[Any]], Any]) -> Iterator[tuple[list[Any], Any]]:
    """(texts, their answers) a window at a time."""
    done = 0
    for texts in windows(args):
        try:
            yield texts, compute(model, texts)
        except InputError as error:
            raise InputError(f"after the first {done} texts: {error}" if done else str(error)) from None
        done += len(texts)


# --- arguments -------------------------------------------------------------------------------------


def _load(args: argparse.Namespace) -> api.Model:
    return api.load(args.model, device=args.device, dtype=args.dtype, threads=args.threads, max_depth=args.max_depth)


def _batching(args: argparse.Namespace) -> dict[str, Any]:
    return {} if args.batch_tokens is None else {"batch_tokens": args.batch_tokens}


def _parse(argv: list[str] | None) -> argparse.Namespace:
    args, rest = _parser().parse_known_args(argv)
    error = args.parser.error
    odd = [word for word in rest if word.startswith("-") and word != "-"]
    takes_texts = args.command not in (_info, _bench)
    if odd or (rest and not takes_texts):
        error(f"unrecognized arguments: {' '.join(odd or rest)}")
    if args.command is _bench:
        return args
    _check_output(args, error)
    if not takes_texts:
        return args
    args.texts += rest  # argparse gives up on texts that stand after an option
    if args.texts and args.input is not None:
        error("give texts as arguments or with --input, not both")
    if args.input == "":
        error("--input is empty, expected the name of a file, or - for standard input")
    if reads_stdin(args) and (sys.stdin is None or (not (args.texts or args.input) and sys.stdin.isatty())):
        error("no texts: give them as arguments, with --input FILE, or on standard input")
    if args.command is _answer and args.question is None:
        args.takes, args.pairs = "pairs", True
    return args


def _check_output(args: argparse.Namespace, error: Callable[[str], Any]) -> None:
    """Refuse an --output that would hold something else than its name says."""
    if args.output == "":
        error("--output is empty, expected the name of a file")
    ending = output_ending(args)
    if ending == ".npy" and (args.json or args.command is not _embed):
        error("--output FILE.npy is for embed without --json: other answers are no arrays")
    if ending not in ENDINGS and (os.path.isfile(args.output) or not os.path.exists(args.output)):
        array = ".npy for an array, " if args.command is _embed else ""
        error(f"--output {args.output}: {ending} is not written here, expected {array}.jsonl for JSON lines, or .txt for readable text")


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose messages are printable, and which does not pass over an output that cannot be written.

    complete  adds options once they are needed: those of a command whose module is imported for it alone
    """

    complete: Callable[[argparse.ArgumentParser], None] | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.complete is not None:
            complete, self.complete = self.complete, None
            complete(self)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))

    def _print_message(self, message: str, file: Any = None) -> None:
        with naming(STANDARD_OUTPUT if file is sys.stdout else "standard error"):
            print(message, end="", file=file, flush=True)


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = _Parser("fastinfer", description=DESCRIPTION, epilog="fastinfer COMMAND --help says more, with an example.")
    parser.add_argument("--version", action="version", version=f"fastinfer {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(
        run: Callable[[argparse.Namespace], None], name: str, what: str, how: str, example: str, *, takes: str = "singles"
    ) -> argparse.ArgumentParser:
        description = f"{what[0].upper()}{what[1:]}.\n{how}".rstrip()
        sub = commands.add_parser(name, help=what, description=description, epilog=f"example:\n  {example}", formatter_class=formatter)
        sub.set_defaults(command=run, parser=sub, takes=takes, pairs=False)
        group = sub.add_argument_group("model")
        default = "" if run is _info else " (default: the one inside)"
        group.add_argument("-m", "--model", metavar="MODEL", help=f"checkpoint folder, or the name of a model inside fastinfer{default}")
        group.add_argument(
            "--device", default="auto", help="auto (default), cpu, cpu:ISA, cuda, cuda:N or numpy; fastinfer info lists what runs here"
        )
        group.add_argument("--dtype", help="what to compute in (default: what the checkpoint suggests)")
        group.add_argument("--threads", type=_at_least(1), metavar="N", help="most threads (default: the CPUs this process may use)")
        group.add_argument("--max-depth", type=_at_least(0), metavar="N", help="walk trees at most N decisions deep: faster, less exact")
        out = sub.add_argument_group("output")
        out.add_argument("--json", action="store_true", help="complete, machine-readable: a JSON value per line")
        files = ".npy: an array; " if run is _embed else ""
        out.add_argument("-o", "--output", metavar="FILE", help=f"write to FILE ({files}.jsonl: as --json; .txt: readable text)")
        return sub

    def texts(sub: argparse.ArgumentParser, metavar: str, *, pairs: bool = False) -> None:
        sub.add_argument("texts", nargs="*", metavar=metavar, help="- or nothing: standard input")
        group = sub.add_argument_group("input")
        group.add_argument(
            "-i", "--input", metavar="FILE", help="texts, one per line; .jsonl, .json and .gz are understood; - is standard input"
        )
        group.add_argument("--jsonl", action="store_true", help="lines are JSON values, whatever the FILE is called")
        if pairs:
            group.add_argument("--pairs", action="store_true", help="a tab parts each line or argument into a pair of texts")
        group.add_argument("--batch-tokens", type=_at_least(1), metavar="N", help="most tokens computed at a time")

    def top_k(sub: argparse.ArgumentParser, what: str) -> None:
        sub.add_argument("-k", "--top-k", type=_at_least(1), metavar="N", help=what)

    either = INPUT_HELP + PAIRS_HELP
    sub = command(_embed, "embed", "turn texts into vectors", either, "fastinfer embed -i texts.txt -o vectors.npy", takes="either")
    texts(sub, "TEXT", pairs=True)
    sub.add_argument(
        "--normalize", action=argparse.BooleanOptionalAction, help="scale vectors to length 1 (default: as the checkpoint says)"
    )

    example = 'fastinfer rank "a cat on a mat" "the kitten sleeps" "stocks fell" "a dog barks"'
    sub = command(_rank, "rank", "order documents by how well they match a query", INPUT_HELP, example)
    sub.add_argument("query", metavar="QUERY", help="what to look for")
    texts(sub, "DOCUMENT")
    top_k(sub, "show the best N (default: all)")

    example = 'fastinfer classify -m MODEL "what a film!" "what a waste"'
    sub = command(_classify, "classify", "give texts, or pairs of texts, a label or a score", either, example, takes="either")
    texts(sub, "TEXT", pairs=True)
    top_k(sub, f"show the best N labels (default: {CLASSES}, or all with --json)")

    example = 'fastinfer fill-mask -m MODEL "Paris is the [MASK] of France."'
    sub = command(_fill_mask, "fill-mask", "guess the words that a mask token hides", either, example, takes="either")
    texts(sub, "TEXT", pairs=True)
    top_k(sub, "show the best N tokens for each mask (default: 5)")

    example = 'fastinfer tag -m MODEL "Ada Lovelace lived in London."'
    sub = command(_tag, "tag", "mark spans of a text, such as names and places", INPUT_HELP, example)
    texts(sub, "TEXT")
    sub.add_argument("--strategy", choices=list(STRATEGIES), default="first", help="which of its tokens tag a word (default: first)")

    how = INPUT_HELP + '\nWithout --question each text is a pair: QUESTION<tab>CONTEXT, or {"question": ..., "context": ...}.\n'
    example = 'fastinfer answer -m MODEL -q "Where did she live?" "Ada Lovelace lived in London."'
    sub = command(_answer, "answer", "find the answer to a question in a text", how, example)
    sub.add_argument("-q", "--question", help="the question, asked of each CONTEXT")
    texts(sub, "CONTEXT")
    top_k(sub, "show the best N answers (default: 1)")
    sub.add_argument("--no-answer", action="store_true", help="that there is none is an answer, too")
    sub.add_argument("--whole-words", action=argparse.BooleanOptionalAction, default=True, help="widen answers to whole words (default)")

    command(_info, "info", "show what this installation can run and, with --model, what a model is", "", "fastinfer info -m MODEL")

    example = "example:\n  fastinfer bench cmm --shapes 1x11 --tokens 1,128,4096 --plot speed.svg"
    sub = commands.add_parser("bench", help="measure the kernels on this machine", epilog=example, formatter_class=formatter)
    sub.set_defaults(command=_bench, parser=sub)
    sub.complete = _bench_options
    return parser


def _at_least(low: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{short(text)} is no integer of at least {low}")
        return int(text)

    return integer
