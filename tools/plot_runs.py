"""Draw the validation losses of several runs into one picture: python tools/plot_runs.py OUT.svg METRICS.jsonl ...

A curve is named after its file or, for a file called metrics.jsonl, after the run's folder.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from training.report import METRICS, read_metrics

from fastinfer.errors import InputError


def main(arguments: list[str] | None = None) -> int:
    """The command line: 0, or 1 with the reason on standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT.svg", type=Path, help="picture to write")
    parser.add_argument("metrics", metavar="METRICS.jsonl", type=Path, nargs="+", help="metrics of a run of train.py, a curve each")
    options = parser.parse_args(arguments)
    try:
        draw(options.out, options.metrics)
    except (InputError, OSError) as error:
        print(f"plot_runs: {error}", file=sys.stderr)
        return 1
    return 0


def draw(out: Path, files: list[Path]) -> None:
    """Draw a curve of validation_loss over tokens for each file. Raises InputError for a file without a validation_loss."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for file in files:
        points = [(line["tokens"] / 1e6, line["validation_loss"]) for line in read_metrics(file) if "validation_loss" in line]
        if not points:
            raise InputError(f"{file} has no validation_loss: is it the metrics of a run of train.py?")
        axes.plot(*zip(*points, strict=True), label=file.parent.name if file.name == METRICS else file.stem)
    axes.set(xlabel="million tokens", ylabel="validation loss")
    axes.legend()
    figure.savefig(out, bbox_inches="tight")
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
