"""The training loop that pretrain and distill share: optimiser, schedule, states that a run resumes from, metrics, a plot.

A run is a folder: state.pt (the last good state), metrics.jsonl (a line per report), plot.svg, tokenizer.json. Batches are a
function of the seed and the step alone, so the step is all that has to be kept of the data's position.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from fff_torch import Encoder, leaf_counts, usage
from recipe import option
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from fastinfer.config import FFF, Config
from fastinfer.errors import CheckpointError, InputError
from fastinfer.files import replacing

STATE, METRICS, PLOT = "state.pt", "metrics.jsonl", "plot.svg"
VALIDATION_BATCHES = 8
BETAS = (0.9, 0.98)


@dataclasses.dataclass(frozen=True)
class Training:
    """What every recipe has: where a run lives, how long it is and how it learns."""

    out: str = option(help="folder of the run, new or with --resume")
    steps: int | None = option(None, "length of the run in steps")
    seconds: float | None = option(
        None, "or in seconds, not counting the first step, which compiles; the learning rate decays by what ends first"
    )
    seed: int = option(0, "of the weights, of the batches and of dropout")
    batch_tokens: int = option(49152, "tokens of a batch, padding and all processes included")
    lr: float = option(1e-3, "peak learning rate of feedforwards")
    lr_rest: float = option(2e-4, "peak learning rate of everything else")
    warmup: int = option(200, "steps until the learning rate's peak; then a cosine to zero")
    weight_decay: float = option(0.01, "of AdamW, on matrices and trees")
    clip: float = option(1.0, "largest norm of the gradient")
    balance: float = option(0.0, "weight of the loss that balances decisions")
    report_every: int = option(100, "steps between lines of metrics")
    validate_every: int = option(1000, "steps between validations; one more comes at the end")
    save_every: float = option(300.0, "seconds between states saved; one more is saved at the end")
    device: str = option("auto", "cpu, cuda, or auto: a GPU where there is one")
    bfloat16: bool | None = option(None, "autocast to bfloat16 (default: on a GPU)")
    compile: bool | None = option(None, "compile feedforwards with torch.compile (default: on a GPU)")
    stored: str = option("float32", "dtype of the checkpoint that the run exports at its end: float32, float16, bfloat16 or int8")


class Data(Protocol):
    """Batches by step. Every process builds the whole batch and takes its own rows of it."""

    def batch(self, step: int, validation: bool = False) -> tuple[Tensor | None, ...]: ...


class Objective(nn.Module):
    """What is minimised: forward(*batch, seen) -> {"loss": ..., parts of it, "tokens": how many were read}. It trains `encoder`.

    batch[1] is the mask of the tokens, or None; `seen` is what Encoder.forward takes.
    """

    encoder: Encoder


@dataclasses.dataclass(frozen=True)
class Workers:
    """The processes that train together, one per device; without torchrun, this one alone."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    def start(cls, device: str) -> Workers:
        """Join the processes that torchrun has started, if it has."""
        rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
            raise InputError(f"device is {device!r}, " + ("expected cpu, cuda or auto" if device != "cuda" else "but PyTorch sees no GPU"))
        if device == "cuda":
            place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(place)
        else:
            place = torch.device("cpu")
        if world > 1:
            dist.init_process_group("nccl" if device == "cuda" else "gloo")
        return cls(rank, world, place)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            dist.barrier()

    def rows(self, count: int) -> slice:
        """This process's part of the `count` rows of a batch."""
        if count % self.world:
            raise InputError(f"a batch has {count} rows, expected a multiple of the {self.world} processes: change batch_tokens")
        each = count // self.world
        return slice(self.rank * each, (self.rank + 1) * each)

    def mean(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Each value, averaged over the processes."""
        stacked = torch.stack([v.double() for v in values.values()])
        if self.world > 1:
            dist.all_reduce(stacked)
        return dict(zip(values, (stacked / self.world).tolist(), strict=True))

    def agreed(self, value: float) -> float:
        """What process 0 says."""
        if self.world == 1:
            return value
        said = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.broadcast(said, 0)
        return float(said)


# --- states ----------------------------------------------------------------------------------------


def save_state(run: Path, state: dict[str, Any]) -> None:
    """Write run/state.pt, which is replaced once all is written. Raises CheckpointError; the state before then survives."""
    path = run / STATE
    try:
        with replacing(path) as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:  # PyTorch turns a full disk into a RuntimeError
        kept = "the state saved before it is as it was" if path.exists() else "no state had been saved before"
        raise CheckpointError(f"{path} could not be saved: {error}; {kept}") from error


def load_state(run: Path) -> dict[str, Any]:
    """The last state of a run, on the CPU. Raises CheckpointError for what is none."""
    path = run / STATE
    if not path.is_file():
        raise CheckpointError(f"{run} holds no {STATE}, expected the folder of a training run")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        Config.from_json(json.loads(state["config"]), str(path))
    except Exception as error:  # many types, by what is broken where
        raise CheckpointError(f"{path} is no state of a training run: {str(error).strip().partition(chr(10))[0]}") from None
    return state


def trained(run: Path) -> Encoder:
    """The encoder of a run's last state, on the CPU."""
    state = load_state(run)
    encoder = Encoder(Config.from_json(json.loads(state["config"])))
    encoder.load_state_dict(state["encoder"])
    return encoder


def open_run(recipe: Training, resume: bool) -> Path:
    """The folder of a run, made where it is new. Raises InputError where it holds another run and is not to be resumed."""
    run = Path(recipe.out)
    if recipe.steps is None and recipe.seconds is None:
        raise InputError("a run has neither steps nor seconds: set one of them")
    if resume:
        load_state(run)
    elif (run / STATE).exists():
        raise InputError(f"{run} holds a run already: go on with it by --resume, or name another folder")
    run.mkdir(parents=True, exist_ok=True)
    return run


# --- the loop --------------------------------------------------------------------------------------


def fit(
    objective: Objective,
    data: Data,
    recipe: Training,
    workers: Workers,
    *,
    resume: bool = False,
    evaluate: Callable[[Encoder], dict[str, float]] = lambda encoder: {},
) -> dict[str, Any]:
    """Train objective.encoder as the recipe says; the last line of metrics is returned.

    evaluate  more figures for each validation, from the encoder in evaluation mode
    """
    device, run = workers.device, Path(recipe.out)
    encoder = objective.encoder
    objective.to(device)
    on_gpu = device.type == "cuda"
    bfloat16, compiled = (on_gpu if choice is None else choice for choice in (recipe.bfloat16, recipe.compile))
    optimizer = make_optimizer(encoder, recipe, fused=on_gpu)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    torch.manual_seed(recipe.seed)
    step, tokens, before = 0, 0.0, 0.0
    if resume:
        state = load_state(run)
        encoder.load_state_dict(state["encoder"])
        optimizer.load_state_dict(state["optimizer"])
        step, tokens, before = state["step"], state["tokens"], state["seconds"]
        torch.set_rng_state(state["rng"])
        if on_gpu and state["rng_gpu"] is not None:
            torch.cuda.set_rng_state(state["rng_gpu"])
    if compiled:
        for layer in encoder.layers:
            layer.ffn.compile(dynamic=False)
    model = DistributedDataParallel(objective) if workers.world > 1 else objective
    report = _Report(run, recipe, workers, step)

    def save() -> None:
        if workers.rank == 0:
            rng_gpu = torch.cuda.get_rng_state() if on_gpu else None
            state = {"config": encoder.config.to_json(), "recipe": dataclasses.asdict(recipe), "encoder": encoder.state_dict()}
            state |= {"optimizer": optimizer.state_dict(), "step": step, "tokens": tokens, "seconds": seconds()}
            save_state(run, state | {"rng": torch.get_rng_state(), "rng_gpu": rng_gpu})

    started = time.monotonic()
    saved = started

    def seconds() -> float:
        return before + time.monotonic() - started

    def share() -> float:
        return max(step / recipe.steps if recipe.steps else 0.0, seconds() / recipe.seconds if recipe.seconds else 0.0)

    sums: dict[str, Tensor] = {}
    since, first = step, True
    objective.train()
    try:
        while (done := workers.agreed(share())) < 1:
            factor = min(1, (step + 1) / max(1, recipe.warmup)) * 0.5 * (1 + math.cos(math.pi * done))
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                losses = model(*data.batch(step))
            optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()
            losses["gradient"] = nn.utils.clip_grad_norm_(parameters, recipe.clip)
            optimizer.step()
            step += 1
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach().float()
            if first and recipe.seconds:
                if on_gpu:
                    torch.cuda.synchronize()
                started, first = time.monotonic(), False
            report.bar(step, share())
            if step % recipe.report_every == 0:
                mean = workers.mean({name: value / (step - since) for name, value in sums.items()})
                tokens += mean.pop("tokens") * workers.world * (step - since)
                report.line(step, tokens, seconds(), optimizer.param_groups[0]["lr"], mean)
                sums, since = {}, step
                if workers.agreed(time.monotonic() - saved) > recipe.save_every:
                    save()
                    saved = time.monotonic()
            if step % recipe.validate_every == 0 and step != recipe.steps:
                report.validation(validate(objective, data, workers, bfloat16) | evaluate_with(encoder, evaluate, bfloat16))
    finally:
        report.close()
    figures = validate(objective, data, workers, bfloat16) | evaluate_with(encoder, evaluate, bfloat16)
    report.validation(figures)
    save()
    if workers.rank == 0:
        plot(run)
    return report.last


def make_optimizer(encoder: Encoder, recipe: Training, *, fused: bool) -> torch.optim.AdamW:
    """AdamW over what is not frozen: feedforwards by recipe.lr, the rest by recipe.lr_rest; no decay for vectors."""
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, weight in encoder.named_parameters():
        if weight.requires_grad:
            groups.setdefault((".ffn." in name and "norm" not in name, weight.ndim > 1 and not name.endswith("b_in")), []).append(weight)
    made = [
        {"params": weights, "peak": recipe.lr if ffn else recipe.lr_rest, "weight_decay": recipe.weight_decay if decays else 0.0}
        for (ffn, decays), weights in groups.items()
    ]
    return torch.optim.AdamW(made, lr=recipe.lr, betas=BETAS, fused=fused)


@torch.no_grad()
def validate(objective: Objective, data: Data, workers: Workers, bfloat16: bool) -> dict[str, float]:
    """Mean losses over validation batches, and per layer with trees how its leaves are used."""
    objective.eval()
    sums: dict[str, Tensor] = {}
    counts: dict[int, Tensor] = {}
    layers = [i for i, ffn in enumerate(objective.encoder.config.ffn) if isinstance(ffn, FFF)]
    with torch.autocast(workers.device.type, torch.bfloat16, enabled=bfloat16):
        for number in range(VALIDATION_BATCHES):
            batch = data.batch(number, validation=True)
            seen: list[tuple[Tensor, Tensor]] = []
            for name, value in objective(*batch, seen=seen).items():
                sums[name] = sums.get(name, 0) + value.float() / VALIDATION_BATCHES
            mask = None if batch[1] is None else batch[1].flatten()
            for i, (logits, leaf) in zip(layers, seen, strict=True):
                counts[i] = counts.get(i, 0) + leaf_counts(leaf, logits.shape[2] // 2, mask)
    objective.train()
    figures: dict[str, Any] = {f"validation_{name}": value for name, value in workers.mean(sums).items() if name != "tokens"}
    if counts:
        used = []
        for count in counts.values():
            if workers.world > 1:
                dist.all_reduce(count)
            used.append(usage(count))
        figures["effective_leaves"] = [round(u.effective, 4) for u in used]
        figures["dead_leaves"] = [round(u.dead, 4) for u in used]
    return figures


@torch.no_grad()
def evaluate_with(encoder: Encoder, evaluate: Callable[[Encoder], dict[str, float]], bfloat16: bool) -> dict[str, float]:
    """evaluate(encoder) in evaluation mode."""
    encoder.eval()
    device = next(encoder.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        figures = evaluate(encoder)
    encoder.train()
    return figures


class _Report:
    """The progress bar and the lines of metrics of process 0."""

    def __init__(self, run: Path, recipe: Training, workers: Workers, step: int) -> None:
        self.recipe, self.show = recipe, workers.rank == 0
        self.last: dict[str, Any] = {}
        self.path = run / METRICS
        if self.show:
            kept = [line for line in read_metrics(self.path) if line["step"] <= step] if step else []
            self.path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self.progress = tqdm(total=1000, bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}", disable=not self.show)

    def bar(self, step: int, share: float) -> None:
        self.progress.n = min(1000, int(1000 * share))
        if step % 10 == 0:
            self.progress.refresh()

    def line(self, step: int, tokens: float, seconds: float, lr: float, losses: dict[str, float]) -> None:
        rate = (tokens - self.last.get("tokens", 0)) / max(1e-9, seconds - self.last.get("seconds", 0))
        figures = {name: float(f"{value:.5g}") for name, value in losses.items()}
        line = {"step": step, "tokens": int(tokens), "seconds": round(seconds, 2), "tokens_per_second": int(rate), "lr": float(f"{lr:.4g}")}
        self._write(line | figures)
        self.progress.set_postfix_str(f"step {step}, loss {losses['loss']:.4g}, {rate:,.0f} tokens/s", refresh=False)

    def validation(self, figures: dict[str, Any]) -> None:
        rounded = {name: float(f"{v:.5g}") if isinstance(v, float) else v for name, v in figures.items()}
        self._write({name: self.last.get(name, 0) for name in ("step", "tokens", "seconds", "tokens_per_second")} | rounded)
        if self.show:
            self.progress.write(", ".join(f"{name} {value}" for name, value in self.last.items()))

    def _write(self, line: dict[str, Any]) -> None:
        self.last = line
        if self.show:
            with open(self.path, "a") as file:
                file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        self.progress.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of metrics."""
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
