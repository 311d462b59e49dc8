"""The arguments of the command line: parse() turns them into a Namespace whose `command` is the name of the command to run."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from . import search_command
from .errors import printable, short
from .files import naming
from .heads.tag import STRATEGIES
from .info import __version__
from .text_io import ENDINGS, STANDARD_OUTPUT, argument, output_ending, reads_stdin

__all__ = ["CLASSES", "parse"]

CLASSES = 5  # classes shown per text in readable output
TEMPLATE = "This example is {}."

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
FORMATTER = argparse.RawDescriptionHelpFormatter


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The parsed arguments, checked together. Ends the process with a message and status 2 if they do not fit."""
    args, rest = _parser().parse_known_args(argv)
    error = args.parser.error
    odd = [word for word in rest if word.startswith("-") and word != "-"]
    takes_texts = args.command not in ("info", "bench")
    if odd or (rest and not takes_texts):
        error(f"unrecognized arguments: {' '.join(odd or rest)}")
    if args.command == "bench":
        return args
    _check_output(args, error)
    if not takes_texts:
        return args
    args.texts += rest  # argparse does not collect texts that stand after an option
    if args.texts and args.input is not None:
        error("give texts as arguments or with --input, not both")
    if args.input == "":
        error("--input is empty, expected the name of a file, or - for standard input")
    if reads_stdin(args) and (sys.stdin is None or (not (args.texts or args.input or args.command == "search") and sys.stdin.isatty())):
        error("no texts: give them as arguments, with --input FILE, or on standard input")
    if args.command == "embed" and args.sparse and args.normalize is not None:
        error("--normalize is for vectors, and --sparse gives weights of tokens: leave one of them out")
    if args.command == "answer" and args.question is None:
        args.takes, args.pairs = "pairs", True
    return args


def _check_output(args: argparse.Namespace, error: Callable[[str], Any]) -> None:
    """Refuse an --output whose ending does not match the format that would be written."""
    if args.output == "":
        error("--output is empty, expected the name of a file")
    ending = output_ending(args)
    array = args.command == "embed" and not args.sparse
    if ending == ".npy" and (args.json or not array):
        error("--output FILE.npy is for embed without --json: other answers are no arrays")
    if ending not in ENDINGS and (os.path.isfile(args.output) or not os.path.exists(args.output)):
        also = ".npy for an array, " if array else ""
        error(f"--output {args.output}: {ending} is not written here, expected {also}.jsonl for JSON lines, or .txt for readable text")


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose messages are printable, and which reports an output that cannot be written.

    complete  called before the first parse, to add the options of a command whose module is imported only then
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
    parser = _Parser("fastinfer", description=DESCRIPTION, epilog="fastinfer COMMAND --help says more, with an example.")
    parser.add_argument("--version", action="version", version=f"fastinfer {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    either = INPUT_HELP + PAIRS_HELP

    sub = _command(commands, "embed", "turn texts into vectors", either, "fastinfer embed -i texts.txt -o vectors.npy", takes="either")
    _add_texts(sub, "TEXT", pairs=True)
    prompt = sub.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help="put TEXT before each text")
    prompt.add_argument("--prompt-name", metavar="NAME", help="put the model's prompt NAME before each text (default: the model's default)")
    sub.add_argument(
        "--normalize", action=argparse.BooleanOptionalAction, help="scale vectors to length 1 (default: as the checkpoint says)"
    )
    _add_dim(sub)
    sub.add_argument("--sparse", action="store_true", help="give a weight per token of the vocabulary (SPLADE) instead of a vector")

    example = 'fastinfer rank "a cat on a mat" "the kitten sleeps" "stocks fell" "a dog barks"'
    sub = _command(commands, "rank", "order documents by how well they match a query", INPUT_HELP, example)
    sub.add_argument("query", metavar="QUERY", help="text that documents are compared with")
    _add_texts(sub, "DOCUMENT")
    _add_top_k(sub, "show the best N (default: all)")
    _add_dim(sub)

    example = 'fastinfer classify -m MODEL "what a film!" "what a waste"'
    sub = _command(commands, "classify", "give texts, or pairs of texts, a label or a score", either, example, takes="either")
    _add_texts(sub, "TEXT", pairs=True)
    _add_top_k(sub, f"show the best N labels (default: {CLASSES}, or all with --json)")
    group = sub.add_argument_group("labels of your own, for a model of natural language inference")
    group.add_argument("--labels", type=_names, metavar="A,B,...", help="score these labels by how well the text entails the template")
    group.add_argument("--template", default=TEMPLATE, metavar="TEXT", help="a sentence with {} for the label (default: %(default)s)")
    group.add_argument("--multi-label", action="store_true", help="several labels may be right: score each by itself")

    example = 'fastinfer fill-mask -m MODEL "Paris is the [MASK] of France."'
    sub = _command(commands, "fill-mask", "guess the words that a mask token hides", either, example, takes="either")
    _add_texts(sub, "TEXT", pairs=True)
    _add_top_k(sub, "show the best N tokens for each mask (default: 5)")

    example = 'fastinfer tag -m MODEL "Ada Lovelace lived in London."'
    sub = _command(commands, "tag", "mark spans of a text, such as names and places", INPUT_HELP, example)
    _add_texts(sub, "TEXT")
    sub.add_argument("--strategy", choices=list(STRATEGIES), default="first", help="how a word's tokens decide its tag (default: first)")

    how = INPUT_HELP + '\nWithout --question each text is a pair: QUESTION<tab>CONTEXT, or {"question": ..., "context": ...}.\n'
    example = 'fastinfer answer -m MODEL -q "Where did she live?" "Ada Lovelace lived in London."'
    sub = _command(commands, "answer", "find the answer to a question in a text", how, example)
    sub.add_argument("-q", "--question", help="the question, asked of each CONTEXT")
    _add_texts(sub, "CONTEXT")
    _add_top_k(sub, "show the best N answers (default: 1)")
    sub.add_argument("--no-answer", action="store_true", help='allow "no answer" as an answer')
    sub.add_argument("--whole-words", action=argparse.BooleanOptionalAction, default=True, help="widen answers to whole words (default)")

    search_command.add_arguments(commands, _command, _add_texts, _at_least)
    _command(commands, "info", "show what this installation can run and, with --model, what a model is", "", "fastinfer info -m MODEL")

    example = "example:\n  fastinfer bench cmm --shapes 1x11 --tokens 1,128,4096 --plot speed.svg"
    sub = commands.add_parser("bench", help="measure the kernels on this machine", epilog=example, formatter_class=FORMATTER)
    sub.set_defaults(command="bench", parser=sub)
    sub.complete = _add_bench_options
    return parser


def _command(commands: Any, name: str, what: str, how: str, example: str, *, takes: str = "singles") -> Any:
    """The parser of a command, with the options of its model and its output. takes: the texts it reads, "singles", "pairs" or "either"."""
    description = f"{what[0].upper()}{what[1:]}.\n{how}".rstrip()
    sub = commands.add_parser(name, help=what, description=description, epilog=f"example:\n  {example}", formatter_class=FORMATTER)
    sub.set_defaults(command=name, parser=sub, takes=takes, pairs=False)
    group = sub.add_argument_group("model")
    default = "" if name == "info" else " (default: the one inside)"
    group.add_argument(
        "-m",
        "--model",
        metavar="MODEL",
        help=f"checkpoint folder, name of a model inside fastinfer, or org/name[@revision] on the hub{default}",
    )
    group.add_argument(
        "--device", default="auto", help="auto (default), cpu, cpu:ISA, cuda, cuda:N or numpy; fastinfer info lists what runs here"
    )
    group.add_argument("--dtype", help="dtype to compute in (default: as the checkpoint suggests)")
    group.add_argument("--threads", type=_at_least(1), metavar="N", help="use at most N threads (default: the CPUs this process may use)")
    group.add_argument("--max-depth", type=_at_least(0), metavar="N", help="walk trees at most N decisions deep: faster, less exact")
    out = sub.add_argument_group("output")
    out.add_argument("--json", action="store_true", help="write complete answers for programs, one JSON value per line")
    files = ".npy: an array; " if name == "embed" else ""
    out.add_argument("-o", "--output", metavar="FILE", help=f"write to FILE ({files}.jsonl: like --json; .txt: readable text)")
    return sub


def _add_texts(sub: argparse.ArgumentParser, metavar: str, *, pairs: bool = False) -> None:
    sub.add_argument("texts", nargs="*", metavar=metavar, help="texts; without any, or for -, standard input is read")
    group = sub.add_argument_group("input")
    group.add_argument(
        "-i", "--input", metavar="FILE", help="read FILE, one text per line (.jsonl, .json and .gz work, too); - is standard input"
    )
    group.add_argument("--jsonl", action="store_true", help="read each line as a JSON value, whatever the name of FILE")
    if pairs:
        group.add_argument("--pairs", action="store_true", help="read each line or argument as two texts with a tab between them")
    group.add_argument("--batch-tokens", type=_at_least(1), metavar="N", help="compute at most N tokens at a time")


def _add_top_k(sub: argparse.ArgumentParser, what: str) -> None:
    sub.add_argument("-k", "--top-k", type=_at_least(1), metavar="N", help=what)


def _add_dim(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--dim", type=_at_least(1), metavar="N", help="keep the first N numbers of a vector (default: as the checkpoint says)")


def _add_bench_options(parser: argparse.ArgumentParser) -> None:
    from .bench import command

    command.add_arguments(parser)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in argument(text).split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError(f"{short(text)} names no labels, expected some, such as politics,sports")
    return names


def _at_least(low: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{short(text)} is no integer of at least {low}")
        return int(text)

    return integer
