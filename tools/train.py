"""Train a FastBERT from text, distil a dense BERT into one, fine-tune it, export it.

    python tools/train.py pretrain RECIPE.toml --text corpus.txt.xz --out runs/mlm
    python tools/train.py distill  RECIPE.toml --teacher .models/minilm --text corpus.txt.xz --out runs/embedder
    python tools/train.py finetune --models .models/fast --tasks SST-2 --data data --out .models/sst2
    python tools/train.py finetune --models .models/fast --train reviews.csv --dev more.csv --text review --target stars --out .models/stars
    python tools/train.py export   runs/embedder models/embedder --stored int8

A recipe is a TOML file of settings. Each of its keys is also a flag, which overrides it: COMMAND --help lists them. A run is a
folder, and --resume continues it. torchrun --nproc-per-node N tools/train.py ... trains with several GPUs or processes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch.distributed as dist
from training import recipe, runs, study
from training.distill import Distill, distill
from training.finetune import Finetune
from training.pretrain import Pretrain, pretrain

from fastinfer.conversion import STORED
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
        command.set_defaults(run=lambda options, kind=kind, run=run: run(recipe.from_options(kind, options), options.resume))
    command = commands.add_parser("export", help="Write a run as a checkpoint folder.", description="Write a run as a checkpoint folder.")
    command.add_argument("source", metavar="RUN", type=Path, help="folder of a run")
    command.add_argument("out", metavar="OUT", type=Path, help="folder to write")
    command.add_argument(
        "--stored", choices=STORED, default="float32", help="dtype of embeddings, matrices and trees (default: %(default)s)"
    )
    command.set_defaults(run=lambda options: print(runs.export(options.source, options.out, options.stored)))
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (FastinferError, OSError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
