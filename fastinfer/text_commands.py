"""The commands that answer texts: embed, rank, classify, fill-mask, tag and answer. Each has its options, and how its answers are shown."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import api, checkpoint
from .arguments import INPUT_HELP, PAIRS_HELP, add_dim, add_model, add_output, add_texts, add_top_k, add_vectors, describe, names
from .catalog import folder_of
from .errors import InputError, TaskError
from .formats import Answers, format_of
from .heads.tag import STRATEGIES
from .info import __version__
from .keeping import Made, Part, Stream, kept
from .reading import opened, text_names, windows
from .text_io import ENDINGS, argument, is_file, listing, named, output, output_ending, shown, text_record
from .text_io import SHOWN as SHOWN_ON_A_TERMINAL
from .tokenizer import as_text

__all__ = ["batching", "load", "made", "vector_options"]

TOKENS = 8  # tokens shown per text of embed --sparse in readable output
CLASSES = 5  # classes shown per text in readable output
TEMPLATE = "This example is {}."
WHOLE = 1 << 40  # characters: texts in a file are not cut
# Options that do not change an answer, and what parse() adds.
BESIDE = {"texts", "input", "output", "source", "target", "resume", "threads", "engine", "workers", "model", "device"}
BESIDE |= {"parser", "run", "check", "formats", "takes", "whole", "kept"}

Compute = Callable[[api.Model, list[Any]], Any]


# --- embed -----------------------------------------------------------------------------------------------


def add_embed(parser: argparse.ArgumentParser) -> None:
    describe(parser, "Turn texts into vectors.\n" + INPUT_HELP + PAIRS_HELP, "fastinfer embed -i texts.txt -o vectors.npy")
    parser.set_defaults(check=_check_embed)
    add_model(parser)
    add_output(parser, "npy", "npz", "csv", "parquet", resume=True)
    add_texts(parser, takes="either")
    add_vectors(parser)
    parser.add_argument("--sparse", action="store_true", help="give a weight per token of the vocabulary (SPLADE) instead of a vector")


def _check_embed(args: argparse.Namespace, error: Callable[[str], Any]) -> None:
    if not args.sparse:
        return
    given = [name for name in ("normalize", "dim", "prompt", "prompt_name") if getattr(args, name) is not None]
    if given:
        error(f"--{given[0].replace('_', '-')} is for vectors, and --sparse gives weights of tokens: leave one of them out")
    if ENDINGS.get(output_ending(args)) in ("npy", "npz"):
        error(f"--output {args.output}: weights of tokens are no array, expected .csv, .parquet, .jsonl, .json or .txt")


def embed(args: argparse.Namespace) -> None:
    """Run the command."""
    if args.sparse:
        return _answer_texts(args, *_embed_sparse(args))

    def compute(model: api.Model, texts: list[Any]) -> np.ndarray:
        return model.embed(texts, **vector_options(args), **batching(args))

    def record(text: Any, vector: np.ndarray) -> dict[str, Any]:
        return {**text_record(text, text_names(args)), "embedding": vector}

    def readable(text: Any, vector: np.ndarray) -> str:
        if args.output is not None:
            return " ".join(map(str, vector))
        first = " ".join(f"{v:8.4f}" for v in vector[:4])
        return f"{len(vector)} dimensions, norm {np.linalg.norm(vector):.4f}: {first} ...  {shown(text)}"

    def answers(model: api.Model) -> Answers:
        width = compute(model, []).shape[1]
        return Answers(record, readable, text_names(args), ("embedding",), lambda vector: [(vector,)], width, numbered=False)

    _answer_texts(args, compute, answers)


def _embed_sparse(args: argparse.Namespace) -> tuple[Compute, Callable[[api.Model], Answers]]:
    def compute(model: api.Model, texts: list[Any]) -> list[dict[str, float]]:
        found = model.embed_sparse(texts, **batching(args))
        name = model.tokenizer.raw.id_to_token if model.tokenizer is not None else str
        rows = [(row.indices.tolist(), row.data.tolist()) for row in (found[[i]] for i in range(len(texts)))]
        return [{name(id_) or str(id_): w for w, id_ in sorted(zip(ws, ids, strict=True), key=lambda pair: -pair[0])} for ids, ws in rows]

    def record(text: Any, weights: dict[str, float]) -> dict[str, Any]:
        return {**text_record(text, text_names(args)), "weights": weights}

    def readable(text: Any, weights: dict[str, float]) -> str:
        most = TOKENS if args.output is None else len(weights)
        best = [(f"{weight:.4f}", token) for token, weight in itertools.islice(weights.items(), most)]
        said = f"{len(weights)} tokens: {shown(text, _most(args))}"
        return listing(said, best, _most(args)) if best else said

    rows: Any = lambda weights: list(weights.items())  # noqa: E731
    return compute, lambda _: Answers(record, readable, text_names(args), ("token", "weight"), rows)


# --- classify, fill-mask, tag, answer ----------------------------------------------------------------------


def add_classify(parser: argparse.ArgumentParser) -> None:
    how = "Give texts, or pairs of texts, a label or a score.\n" + INPUT_HELP + PAIRS_HELP
    describe(parser, how, 'fastinfer classify -m MODEL "what a film!" "what a waste"')
    parser.set_defaults(check=_check_classify)
    add_model(parser)
    add_output(parser, "csv", "parquet", resume=True)
    add_texts(parser, takes="either")
    add_top_k(parser, f"show the best N labels (default: {CLASSES} in text, else all)")
    group = parser.add_argument_group("labels of your own, for a model of natural language inference")
    group.add_argument("--labels", type=names, metavar="A,B,...", help="score these labels by how well the text entails the template")
    group.add_argument("--template", metavar="TEXT", help=f"a sentence with {{}} for the label (default: {TEMPLATE})")
    group.add_argument("--multi-label", action="store_true", help="several labels may be right: score each by itself")


def _check_classify(args: argparse.Namespace, error: Callable[[str], Any]) -> None:
    if args.labels is None and (args.template is not None or args.multi_label):
        error(f"{'--multi-label' if args.multi_label else '--template'} is for labels of your own: name them with --labels")


def classify(args: argparse.Namespace) -> None:
    """Run the command."""
    top_k = args.top_k or (CLASSES if _readable(args) else None)

    def compute(model: api.Model, texts: list[Any]) -> list[Any]:
        own = {"labels": args.labels, "template": argument(args.template or TEMPLATE), "multi_label": args.multi_label}
        return model.classify(texts, top_k=top_k, **own, **batching(args))

    def record(text: Any, answer: Any) -> dict[str, Any]:
        found = {"score": answer} if isinstance(answer, float) else {"labels": named(answer, "label", "score")}
        return {**text_record(text, text_names(args)), **found}

    def readable(text: Any, answer: Any) -> str:
        if isinstance(answer, float):
            return f"{answer:10.4f}  {shown(text, _most(args))}"
        return listing(shown(text, _most(args)), [(f"{score:.4f}", label) for label, score in answer], _most(args))

    def answers(model: api.Model) -> Answers:
        head = model.config.tasks.classify
        if args.labels is None and head is not None and len(head.labels) == 1:
            return Answers(record, readable, text_names(args), ("score",), lambda score: [(score,)], numbered=False)
        return Answers(record, readable, text_names(args), ("label", "score"), list)

    _answer_texts(args, compute, answers)


def add_fill_mask(parser: argparse.ArgumentParser) -> None:
    how = "Guess the words that a mask token hides.\n" + INPUT_HELP + PAIRS_HELP
    describe(parser, how, 'fastinfer fill-mask -m MODEL "Paris is the [MASK] of France."')
    add_model(parser)
    add_output(parser, "csv", "parquet", resume=True)
    add_texts(parser, takes="either")
    add_top_k(parser, "show the best N tokens for each mask (default: 5)")


def fill_mask(args: argparse.Namespace) -> None:
    """Run the command."""

    def compute(model: api.Model, texts: list[Any]) -> list[Any]:
        return model.fill_mask(texts, top_k=args.top_k or 5, **batching(args))

    def record(text: Any, masks: list[Any]) -> dict[str, Any]:
        return {**text_record(text, text_names(args)), "masks": [named(best, "token", "score", "text") for best in masks]}

    def readable(text: Any, masks: list[Any]) -> str:
        rows: list[tuple[Any, ...]] = [(f"{score:.4f}", token, filled) for best in masks for token, score, filled in best]
        return listing(shown(text, _most(args)), rows, _most(args))

    def rows(masks: list[Any]) -> list[tuple[Any, ...]]:
        return [(mask, *guess) for mask, best in enumerate(masks) for guess in best]

    _answer_texts(args, compute, lambda _: Answers(record, readable, text_names(args), ("mask", "token", "score", "filled"), rows))


def add_tag(parser: argparse.ArgumentParser) -> None:
    describe(
        parser, "Mark spans of a text, such as names and places.\n" + INPUT_HELP, 'fastinfer tag -m MODEL "Ada Lovelace lived in London."'
    )
    add_model(parser)
    add_output(parser, "csv", "parquet", resume=True)
    add_texts(parser, whole=True)
    parser.add_argument("--strategy", choices=list(STRATEGIES), default="first", help="how a word's tokens decide its tag (default: first)")


def tag(args: argparse.Namespace) -> None:
    """Run the command."""

    def compute(model: api.Model, texts: list[Any]) -> list[Any]:
        return model.tag(texts, strategy=args.strategy, **batching(args))

    def record(text: str, spans: list[Any]) -> dict[str, Any]:
        return {**text_record(text, text_names(args)), "spans": named(spans, "start", "end", "label", "score", "text")}

    def readable(text: Any, spans: list[Any]) -> str:
        rows: list[tuple[Any, ...]] = [(f"{score:.4f}", label, f"{start}-{end}", part) for start, end, label, score, part in spans]
        return listing(shown(text, _most(args)), rows or [("nothing tagged",)], _most(args))

    _answer_texts(args, compute, lambda _: Answers(record, readable, text_names(args), ("start", "end", "label", "score", "span"), list))


def add_answer(parser: argparse.ArgumentParser) -> None:
    how = """
Without --question each text is a pair: QUESTION<tab>CONTEXT, or {"question": ..., "context": ...} in JSON,
or the columns question and context of a table.
"""
    describe(
        parser,
        "Find the answer to a question in a text.\n" + INPUT_HELP + how,
        'fastinfer answer -m MODEL -q "Where did she live?" "Ada Lovelace lived in London."',
    )
    parser.set_defaults(check=_check_answer)
    parser.add_argument("-q", "--question", help="the question, asked of each CONTEXT")
    add_model(parser)
    add_output(parser, "csv", "parquet", resume=True)
    add_texts(parser, "CONTEXT", whole=True)
    add_top_k(parser, "show the best N answers (default: 1)")
    parser.add_argument("--no-answer", action="store_true", help='allow "no answer" as an answer')
    parser.add_argument("--whole-words", action=argparse.BooleanOptionalAction, default=True, help="widen answers to whole words (default)")


def _check_answer(args: argparse.Namespace, error: Callable[[str], Any]) -> None:
    if args.question is None:
        args.takes, args.pairs = "pairs", True


def answer(args: argparse.Namespace) -> None:
    """Run the command."""
    question = None if args.question is None else as_text(argument(args.question), "--question")

    def pair(text: Any) -> Any:
        return text if question is None else (question, text)

    def compute(model: api.Model, texts: list[Any]) -> list[Any]:
        questions, contexts = zip(*map(pair, texts), strict=True)
        options = {"top_k": args.top_k or 1, "no_answer": args.no_answer, "whole_words": args.whole_words, **batching(args)}
        return model.answer(questions, contexts, **options)

    def record(text: Any, answers: list[Any]) -> dict[str, Any]:
        return {**text_record(pair(text), text_names(args)), "answers": named(answers, "start", "end", "score", "text")}

    def readable(text: Any, answers: list[Any]) -> str:
        rows: list[tuple[Any, ...]] = [(f"{score:.4f}", f"{start}-{end}", part or "no answer") for start, end, score, part in answers]
        return listing(shown(text, _most(args)), rows, _most(args))

    first, second = text_names(args)
    columns = (first, second) if question is None else (second, first)
    _answer_texts(args, compute, lambda _: Answers(record, readable, columns, ("start", "end", "score", "answer"), list))


# --- rank ------------------------------------------------------------------------------------------------


def add_rank(parser: argparse.ArgumentParser) -> None:
    example = 'fastinfer rank "a cat on a mat" "the kitten sleeps" "stocks fell" "a dog barks"'
    describe(parser, "Order documents by how well they match a query.\n" + INPUT_HELP, example)
    parser.add_argument("query", metavar="QUERY", help="text that documents are compared with")
    add_model(parser)
    add_output(parser, "csv", "parquet")
    add_texts(parser, "DOCUMENT")
    add_top_k(parser, "show the best N (default: all)")
    add_dim(parser)


def rank(args: argparse.Namespace) -> None:
    """Run the command."""
    query = argument(args.query)
    as_text(query, "QUERY")

    def record(text: Any, answer: Any) -> dict[str, Any]:
        return {**dict(zip(("rank", "index", "score"), answer, strict=True)), **text_record(text, text_names(args))}

    with output(args) as out:
        given = opened(args)
        model = load(args)
        documents: list[Any] = list(given)
        ranking = model.rank(query, documents, top_k=args.top_k, dim=args.dim, progress=sys.stderr.isatty(), **batching(args))
        width = len(str(len(ranking)))

        def readable(text: Any, answer: Any) -> str:
            return f"{answer[0]:{width}}  {answer[2]:8.4f}  {shown(text, _most(args))}"

        answers = Answers(record, readable, text_names(args), ("rank", "index", "score"), lambda answer: [answer], numbered=False)
        with Stream(out).writing(format_of(_form(args), answers, args.output or "", False)) as write:
            write([documents[index] for index, _ in ranking], [(place, *found) for place, found in enumerate(ranking, 1)])


# --- from texts to answers -------------------------------------------------------------------------------


def _answer_texts(args: argparse.Namespace, compute: Compute, answers: Callable[[api.Model], Answers]) -> None:
    """Write the answers to the texts of a command, a window at a time, as soon as they are known."""
    with _sink(args) as sink:
        try:
            texts = opened(args)
            model = load(args)
            sink.made = lambda: made(args, model)
            first = list(itertools.islice(texts, 1))
            texts = itertools.chain(first, texts)
            sink.skip(texts)
            form = format_of(_form(args), answers(model), args.output or "", bool(first) and not isinstance(first[0], str))
            with _hinted(args), sink.writing(form) as write:
                done = sink.done
                for window in windows(args, texts, done):
                    try:
                        write(window, compute(model, window))
                    except InputError as error:
                        raise InputError(f"after the first {done} texts: {error}" if done else str(error)) from None
                    done += len(window)
        except BaseException:
            args.kept = sink.said()
            raise


@contextlib.contextmanager
def _sink(args: argparse.Namespace) -> Iterator[Stream | Part]:
    """Where the answers go: a file that an interrupted run keeps, or a stream."""
    if args.output is not None and is_file(os.path.realpath(args.output)):
        with kept(os.path.realpath(args.output), resume=args.resume) as part:
            yield part
        return
    if args.resume:
        raise InputError(f"--resume: {args.output} is no file, so nothing is kept of it")
    with output(args) as out:
        yield Stream(out)


def made(args: argparse.Namespace, model: api.Model) -> Made:
    """What decides the answers to the texts: the options, the device, the release and the files of the model."""
    options = {name: value for name, value in vars(args).items() if name not in BESIDE}
    found = {**options, "device": model.device, "fastinfer": __version__, "model": checkpoint.digest(folder_of(args.model))}
    return dict(json.loads(json.dumps(found)))


def _form(args: argparse.Namespace) -> str:
    """The name of the format of the output, a value of ENDINGS."""
    form = ENDINGS.get(output_ending(args), "text")
    return "jsonl" if args.json and form == "text" else form


def _readable(args: argparse.Namespace) -> bool:
    return _form(args) == "text"


def _most(args: argparse.Namespace) -> int:
    """The most characters of a text that readable output shows: of texts in a file, all."""
    return SHOWN_ON_A_TERMINAL if args.output is None else WHOLE


def load(args: argparse.Namespace) -> api.Model:
    """The model that the options of add_model() name."""
    return api.load(args.model, device=args.device, dtype=args.dtype, threads=args.threads, max_depth=args.max_depth)


@contextlib.contextmanager
def _hinted(args: argparse.Namespace) -> Iterator[None]:
    """A TaskError about the model inside says that another one may be named."""
    try:
        yield
    except TaskError as error:
        raise TaskError(str(error) if args.model else f"{error}: name a model that has one with -m MODEL") from None


def vector_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of add_vectors() for Model.embed."""
    return {name: getattr(args, name) for name in ("prompt", "prompt_name", "normalize", "dim")}


def batching(args: argparse.Namespace) -> dict[str, Any]:
    """The options of add_texts() for a call of the model."""
    return {} if args.batch_tokens is None else {"batch_tokens": args.batch_tokens}
