"""Train a FastBERT from text, distil a dense BERT into one, fine-tune it, export it.

    python tools/train.py pretrain RECIPE.toml --text corpus.txt.xz --out runs/mlm
    python tools/train.py distill  RECIPE.toml --teacher .models/minilm --text corpus.txt.xz --out runs/embedder
    python tools/train.py finetune --models fastminilm-1x11 --tasks SST-2 --data data --out .models/sst2
    python tools/train.py finetune --models .models/fast --train reviews.csv --dev more.csv --text review --target stars --out .models/stars
    python tools/train.py export   runs/embedder models/embedder --stored int8
    python tools/train.py average  .models/mean runs/first/model runs/second/model --stored int8

A recipe is a TOML file of settings. Each of its keys is also a flag, which overrides it: COMMAND --help lists them. A run is a
folder. Ctrl-C ends it after the present step and keeps its state, and COMMAND --out RUN --resume goes on with the settings that it had.
torchrun --nproc-per-node N tools/train.py ... trains with several GPUs or processes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

try:
    import matplotlib  # noqa: F401, which draws at the end of a run
    import torch
    import torch.distributed as dist
    from training import recipe, runs, study
    from training.distill import Distill, distill
    from training.finetune import Finetune
    from training.pretrain import Pretrain, pretrain
except ModuleNotFoundError as missing:
    sys.exit(f"train: {missing}: pip install -r tools/requirements.txt")

from fastinfer.catalog import folder_of
from fastinfer.conversion import STORED, check_out
from fastinfer.errors import FastinferError

COMMANDS = (("pretrain", Pretrain, pretrain), ("distill", Distill, distill), ("finetune", Finetune, study.run))


def main(arguments: list[str] | None = None) -> int:
    """The command line: 0, or 1 with the reason on standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, kind, run in COMMANDS:
        command = commands.add_parser(name, help=kind.__doc__, description=kind.__doc__)
        recipe.add_flags(command, kind)
        command.add_argument("--resume", action="store_true", help="continue the run in --out")
        command.set_defaults(run=lambda options, kind=kind, run=run: run(settings(kind, options), options.resume))
    command = commands.add_parser("export", help="Write a run as a checkpoint folder.", description="Write a run as a checkpoint folder.")
    command.add_argument("source", metavar="RUN", type=Path, help="folder of a run")
    command.add_argument("out", metavar="OUT", type=Path, help="folder to write")
    command.set_defaults(run=export)
    mean = "Write the mean of the weights of several checkpoints of one start and one shape."
    command = commands.add_parser("average", help=mean, description=mean)
    command.add_argument("out", metavar="OUT", type=Path, help="folder to write")
    command.add_argument("sources", metavar="MODEL", nargs="+", help="checkpoint folders, or names as fastinfer.load takes them")
    command.set_defaults(run=average)
    for name in ("export", "average"):
        commands.choices[name].add_argument(
            "--stored", choices=STORED, default="float32", help="dtype of embeddings, matrices and trees (default: %(default)s)"
        )
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (FastinferError, OSError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError as error:
        print(f"train: the GPU has too little memory: raise --accumulate, or lower the size of a batch ({error})", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, runs.Stopped) as stop:
        print(f"train: {stop or 'interrupted before the first step; nothing was kept'}", file=sys.stderr)
        return 130
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


def settings(kind: type, options: argparse.Namespace) -> Any:
    """The settings of a command. A run of pretrain or distill that goes on has those that it had, unless the options have others."""
    goes_on = options.resume and options.recipe is None and kind is not Finetune and hasattr(options, "out")
    return recipe.from_options(kind, options, runs.kept_recipe(Path(options.out)) if goes_on else None)


def export(options: argparse.Namespace) -> None:
    """Write a run as a checkpoint folder."""
    check_out(options.source, options.out)
    print(runs.export(options.source, options.out, options.stored))


def average(options: argparse.Namespace) -> None:
    """Write the mean of the weights of several checkpoints."""
    sources = [folder_of(source) for source in options.sources]
    for source in sources:
        check_out(source, options.out)
    print(runs.average(sources, options.out, options.stored))


if __name__ == "__main__":
    sys.exit(main())
