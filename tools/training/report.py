"""What a run tells while it trains: a progress bar, metrics.jsonl with a line per report, and plot.svg."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

METRICS, PLOT = "metrics.jsonl", "plot.svg"
SHOWN_EVERY = 1.0  # seconds between looks at the loss for the bar: a look makes a GPU wait


class Report:
    """The progress bar and the lines of metrics of a run; only process 0 shows and writes them.

    Without a terminal, lines take the place of the bar.

    step  steps that the run has behind it. Lines beyond them come from an attempt that broke off, and are dropped.
    """

    def __init__(self, run: Path, step: int, *, show: bool) -> None:
        self.show = show
        self.last: dict[str, Any] = {}
        self.path = run / METRICS
        if self.show:
            kept = [line for line in read_metrics(self.path) if line["step"] <= step] if step else []
            self.path.write_text("".join(json.dumps(line) + "\n" for line in kept))
            self.last = kept[-1] if kept else {}
        self.has_bar = show and sys.stderr.isatty()
        self.progress = tqdm(total=1000, bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}", disable=not self.has_bar)
        self.shown_step, self.shown_at = step, time.monotonic()

    def bar(self, step: int, share: float, loss: Tensor, tokens: Tensor) -> None:
        """Move the progress bar to the share of the run that is done, with the loss of the step and the rate of the last second.

        tokens  those of the step
        """
        self.progress.n = min(1000, int(1000 * share))
        now = time.monotonic()
        if self.has_bar and now - self.shown_at >= SHOWN_EVERY:
            rate = float(tokens) * (step - self.shown_step) / (now - self.shown_at)
            self.progress.set_postfix_str(f"step {step}, loss {float(loss):.4g}, {rate:,.0f} tokens/s")
            self.shown_step, self.shown_at = step, now

    def line(self, step: int, tokens: float, seconds: float, lr: float, losses: dict[str, float]) -> None:
        """Write the mean losses since the line before."""
        rate = (tokens - self.last.get("tokens", 0)) / max(1e-9, seconds - self.last.get("seconds", 0))
        figures = {name: float(f"{value:.5g}") for name, value in losses.items()}
        line = {"step": step, "tokens": int(tokens), "seconds": round(seconds, 2), "tokens_per_second": int(rate), "lr": float(f"{lr:.4g}")}
        self._write(line | figures)
        if self.show and not self.has_bar:
            print(f"step {step}, loss {losses['loss']:.4g}, {rate:,.0f} tokens/s", file=sys.stderr, flush=True)

    def validation(self, figures: dict[str, Any]) -> None:
        """Write and print the figures of a validation, with the step of the line before."""
        rounded = {name: float(f"{v:.5g}") if isinstance(v, float) else v for name, v in figures.items()}
        self._write({name: self.last.get(name, 0) for name in ("step", "tokens", "seconds", "tokens_per_second")} | rounded)
        if self.show:
            self.say(", ".join(f"{name} {value}" for name, value in self.last.items()))

    def say(self, line: str) -> None:
        """Print a line on standard output, above the bar."""
        if self.show:
            self.progress.write(line)

    def summary(self) -> None:
        """Print what became of the run: its steps, its tokens, its time, and its losses at the first and at the last report."""
        losses = [line["loss"] for line in read_metrics(self.path) if "loss" in line] if self.show else []
        if losses:
            last = self.last
            self.say(
                f"trained for {last['step']:,} steps and {last['tokens']:,} tokens in {last['seconds']:,.0f} s: loss {losses[0]:.4g} at "
                f"first, {losses[-1]:.4g} at last, {last['validation_loss']:.4g} in validation"
            )

    def _write(self, line: dict[str, Any]) -> None:
        self.last = line
        if self.show:
            with open(self.path, "a") as file:
                file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """End the progress bar."""
        self.progress.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of metrics, each a dict."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def plot(run: Path) -> None:
    """Draw the losses of a run over its tokens into run/plot.svg."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    lines = read_metrics(run / METRICS)
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for key, label in (("loss", "training"), ("validation_loss", "validation")):
        points = [(line["tokens"] / 1e6, line[key]) for line in lines if key in line]
        axes.plot(*zip(*points, strict=True), label=label) if points else None
    axes.set(xlabel="million tokens", ylabel="loss", title=run.name)
    axes.legend()
    figure.savefig(run / PLOT, bbox_inches="tight")
    pyplot.close(figure)
