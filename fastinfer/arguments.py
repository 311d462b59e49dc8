"""The arguments of the command line: parse() turns them into a Namespace whose `run` is the command to call with it."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from .errors import near, printable, short
from .files import naming
from .info import __version__
from .reading import reads_stdin
from .text_io import ENDINGS, STANDARD_OUTPUT, argument, output_ending

__all__ = ["Command", "Parser", "add_dim", "add_model", "add_output", "add_texts", "add_top_k", "add_vectors"]
__all__ += ["FORMATTER", "at_least", "describe", "names", "parse"]

DESCRIPTION = "Run transformer encoders with fast feedforward networks: texts in, answers out."
INPUT_HELP = """
Texts come from the arguments, or from --input FILE with one text per line, or from standard input.
A FILE's name says how it is read, also with .gz behind it:
  .txt      a text per line; an empty line is an empty text. Any other name is read like this, too
  .jsonl    a JSON value per line: "a text" or {"text": "a text"}; blank lines are skipped
  .json     such lines, or one list of such values
  .csv      a table with the names of its columns in the first line; .tsv: the same with tabs
  .parquet  a table; needs pyarrow
In a table, --column NAME has the texts, in JSON the key NAME (default: text). Files are UTF-8.
"""
PAIRS_HELP = """
A pair of texts is ["one", "two"] or {"text": "one", "pair": "two"} in JSON, and --column twice in a table;
with --pairs it is two texts with a tab between them, in arguments and plain lines.
"""
FORMATTER = argparse.RawDescriptionHelpFormatter


class Command(NamedTuple):
    """A row of the table of commands.

    what  says what it does, in the list of all commands
    add   adds its description and its options to a parser; called only when the command is used
    run   runs it with the parsed options
    """

    what: str
    add: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


def parse(argv: Sequence[str] | None, commands: Mapping[str, Command]) -> argparse.Namespace:
    """The parsed arguments, checked together. Ends the process with a message and status 2 if they do not fit."""
    parser = Parser("fastinfer", description=DESCRIPTION, epilog="fastinfer COMMAND --help says more, with an example.")
    parser.add_argument("--version", action="version", version=f"fastinfer {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in commands.items():
        sub = subparsers.add_parser(name, help=command.what, formatter_class=FORMATTER)
        sub.set_defaults(command=name, parser=sub, run=command.run, check=None, kept="")
        sub.complete = command.add
    args: argparse.Namespace
    args, rest = parser.parse_known_args(argv)
    error = args.parser.error
    odd = [word for word in rest if word.startswith("-") and word != "-"]
    takes_texts = hasattr(args, "takes")
    if odd or (rest and not takes_texts):
        error(f"unrecognized arguments: {' '.join(odd or rest)}{near(odd[0].partition('=')[0], args.parser.options()) if odd else ''}")
    if hasattr(args, "output"):
        _check_output(args, error)
    if takes_texts:
        args.texts += rest  # argparse does not collect texts that stand after an option
    if args.check is not None:
        args.check(args, error)
    if takes_texts:
        _check_texts(args, error)
    return args


def _check_output(args: argparse.Namespace, error: Callable[[str], Any]) -> None:
    """Refuse an --output whose ending does not name a format that the command writes."""
    if args.output == "":
        error("--output is empty, expected the name of a file")
    if args.output is None:
        if getattr(args, "resume", False):
            error("--resume goes on with an interrupted --output FILE: name that file")
        return
    ending = output_ending(args)
    if ENDINGS.get(ending) not in args.formats and (os.path.isfile(args.output) or not os.path.exists(args.output)):
        known = [other for other, form in ENDINGS.items() if form in args.formats and other]
        many = ENDINGS.get(ending) in ("npy", "npz")
        why = "holds arrays, and the answers of this command are none" if many else "is not written here"
        error(f"--output {args.output}: {ending} {why}, expected {', '.join(known[:-1])} or {known[-1]}{near(ending, known)}")
    if args.json and ENDINGS.get(ending) not in ("json", "jsonl", "text"):
        error(f"--json and --output {args.output} name two formats: leave one of them out")


def _check_texts(args: argparse.Namespace, error: Callable[[str], Any]) -> None:
    """Refuse options of the input that contradict each other."""
    if args.texts and args.input is not None:
        error("give texts as arguments or with --input, not both")
    if args.input == "":
        error("--input is empty, expected the name of a file, or - for standard input")
    if reads_stdin(args) and (sys.stdin is None or (not (args.texts or args.input or args.interactive) and sys.stdin.isatty())):
        error("no texts: give them as arguments, with --input FILE, or on standard input")
    if args.texts and not reads_stdin(args):
        for name in ("column", "jsonl"):
            if getattr(args, name):
                error(f"--{name} is for texts from a file or from standard input, but they are arguments here")
    times, said = {"singles": ((1,), "once"), "pairs": ((2,), "twice"), "either": ((1, 2), "once, or twice for pairs")}[args.takes]
    if args.column and len(args.column) not in times:
        error(f"--column is given {len(args.column)} times, expected {said}")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose messages are printable and suggest near names, and which reports an output that cannot be written.

    complete  called before the first parse, to add the options of a command whose module is imported only then
    """

    complete: Callable[[argparse.ArgumentParser], None] | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.complete is not None:
            complete, self.complete = self.complete, None
            complete(self)
        return super().parse_known_args(args, namespace)

    def options(self) -> list[str]:
        """The options that this parser knows, such as --model."""
        return [name for name in self._option_string_actions if name.startswith("--")]

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = list(map(str, action.choices))
            raise argparse.ArgumentError(action, f"invalid choice: {short(value)} (choose from {', '.join(known)}){near(value, known)}")

    def _print_message(self, message: str, file: Any = None) -> None:
        with naming(STANDARD_OUTPUT if file is sys.stdout else "standard error"):
            print(message, end="", file=file, flush=True)


# --- options that several commands have ----------------------------------------------------------------


def describe(parser: argparse.ArgumentParser, text: str, *examples: str) -> None:
    """Set what --help says above the options and, under them, examples."""
    parser.description = text.strip("\n")
    parser.epilog = "\n  ".join(["example:" if len(examples) == 1 else "examples:", *examples])


def add_model(parser: argparse.ArgumentParser, *, default: str = " (default: the one inside)", many: bool = False) -> None:
    """Add the options that say which model runs, and where. many: several models can be named."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "-m",
        "--model",
        action="append" if many else "store",
        metavar="MODEL",
        help=f"checkpoint folder, name of a model inside fastinfer, or org/name[@revision] on the hub{default}",
    )
    group.add_argument(
        "--device", default="auto", help="auto (default), cpu, cpu:ISA, cuda, cuda:N or numpy; fastinfer info lists what runs here"
    )
    group.add_argument("--dtype", help="dtype to compute in: float32, bfloat16, float16 or int8 (default: as the checkpoint suggests)")
    group.add_argument("--threads", type=at_least(1), metavar="N", help="use at most N threads (default: the CPUs this process may use)")
    group.add_argument("--max-depth", type=at_least(0), metavar="N", help="walk trees at most N decisions deep: faster, less exact")


def add_output(parser: argparse.ArgumentParser, *formats: str, resume: bool = False) -> None:
    """Add --json and --output. formats: values of ENDINGS, which the command writes besides JSON lines and readable text."""
    parser.set_defaults(formats=(*formats, "jsonl", "json", "text"))
    out = parser.add_argument_group("output")
    out.add_argument("--json", action="store_true", help="write complete answers for programs, one JSON value per line")
    said = {
        "npy": ".npy: an array",
        "npz": ".npz: an archive of arrays",
        "csv": ".csv: a table",
        "parquet": ".parquet: a table; needs pyarrow",
        "svg": ".svg: a picture",
    }
    files = "; ".join([*(said[name] for name in formats), ".jsonl: like --json; .json: a list of these; .txt: readable text"])
    out.add_argument("-o", "--output", metavar="FILE", help=f"write to FILE, whose name says how ({files})")
    if resume:
        out.add_argument("--resume", action="store_true", help="go on with the same command's interrupted FILE, if there is one")


def add_texts(
    parser: argparse.ArgumentParser, metavar: str = "TEXT", *, takes: str = "singles", whole: bool = False, interactive: bool = False
) -> None:
    """Add the texts and the options of their input.

    takes  what the command reads, "singles", "pairs" or "either"
    whole  it reads the whole of a long text, where others read its beginning
    interactive  it answers each line that is typed on a terminal
    """
    parser.set_defaults(takes=takes, pairs=False, whole=whole, interactive=interactive)
    parser.add_argument("texts", nargs="*", metavar=metavar, help="texts; without any, or for -, standard input is read")
    group = parser.add_argument_group("input")
    group.add_argument("-i", "--input", metavar="FILE", help="read FILE, whose name says how (see above); - is standard input")
    group.add_argument(
        "--column",
        action="append",
        type=argument,
        metavar="NAME",
        help="column of a table, or key of a JSON object, that has the texts" + ("; twice for pairs" if takes != "singles" else ""),
    )
    group.add_argument("--jsonl", action="store_true", help="read each line as a JSON value, whatever the name of FILE")
    if takes == "either":
        group.add_argument("--pairs", action="store_true", help="read each line or argument as two texts with a tab between them")
    group.add_argument("--batch-tokens", type=at_least(1), metavar="N", help="compute at most N tokens at a time")


def add_top_k(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("-k", "--top-k", type=at_least(1), metavar="N", help=what)


def add_dim(parser: argparse.ArgumentParser) -> None:
    what = "keep the first N numbers of a vector (default: as the checkpoint says)"
    parser.add_argument("--dim", type=at_least(1), metavar="N", help=what)


def add_vectors(parser: argparse.ArgumentParser) -> None:
    """Add the options of vectors."""
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", type=argument, metavar="TEXT", help="put TEXT before each text")
    what = "put the model's prompt NAME before each text (default: the model's default)"
    prompt.add_argument("--prompt-name", type=argument, metavar="NAME", help=what)
    parser.add_argument(
        "--normalize", action=argparse.BooleanOptionalAction, help="scale vectors to length 1 (default: as the checkpoint says)"
    )
    add_dim(parser)


def names(text: str) -> list[str]:
    """The type of an option that takes labels with commas between them."""
    found = [name.strip() for name in argument(text).split(",") if name.strip()]
    if not found:
        raise argparse.ArgumentTypeError(f"{short(text)} names no labels, expected some, such as politics,sports")
    return found


def at_least(low: int) -> Callable[[str], int]:
    """The type of an option that takes an integer of at least `low`."""

    def integer(text: str) -> int:
        if not re.fullmatch(r"[0-9]+", text) or int(text) < low:
            raise argparse.ArgumentTypeError(f"{short(text)} is no integer of at least {low}")
        return int(text)

    return integer
