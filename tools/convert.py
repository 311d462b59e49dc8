"""Convert a checkpoint to fastinfer's own format, or store one of this format in another dtype.

    python tools/convert.py SRC OUT [--dtype float32|float16|bfloat16|int8] [--max-shard-mb N]

SRC is what fastinfer.load opens: a folder, or a name on the hub. Its layout is recognised by its files.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from conversion import STORED, convert

from fastinfer.checkpoint import layouts
from fastinfer.errors import FastinferError


def main(arguments: list[str] | None = None) -> int:
    """The command line: 0, or 1 with the reason on standard error."""
    parser = argparse.ArgumentParser(
        description="Convert a checkpoint to fastinfer's format. Recognised are:\n" + layouts.RECOGNISED,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SRC", help="folder of the checkpoint to convert, or its name on the hub")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write: new, empty, or holding a fastinfer checkpoint to replace")
    parser.add_argument("--dtype", choices=STORED, help="dtype of the stored embeddings, matrices and trees (default: as in the source)")
    parser.add_argument(
        "--max-shard-mb", type=int, metavar="N", help="start a new file where one would grow beyond N MB (default: one file)"
    )
    options = parser.parse_args(arguments)
    if options.max_shard_mb is not None and options.max_shard_mb < 1:
        parser.error(f"--max-shard-mb is {options.max_shard_mb}, expected at least 1")
    try:
        print(convert(options.source, options.out, dtype=options.dtype, max_shard_mb=options.max_shard_mb))
    except (FastinferError, OSError) as error:
        print(f"convert: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
