"""A run of pretrain or distill: its recipe, its folder, the states that it resumes from, and the checkpoint that it becomes.

A run is a folder: state.pt (the last good state), metrics.jsonl (a line per report), plot.svg, tokenizer.json, model/. Batches are a
function of the seed and the step alone, so a state keeps the step and nothing else of the data's position.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastinfer import checkpoint
from fastinfer.catalog import folder_of
from fastinfer.config import FFF, Config, Dense, Gated
from fastinfer.conversion import STORED, summary
from fastinfer.errors import CheckpointError, InputError, near
from fastinfer.evaluation.articles import text_file
from fastinfer.files import replacing
from training import encoder as encoders
from training import memory
from training.encoder import Encoder
from training.loop import Data, Descent, fit
from training.objectives import Objective
from training.recipe import option
from training.report import Report, plot
from training.validation import Evaluate, validate
from training.workers import Workers

STATE = "state.pt"
SHAPE = re.compile(r"(?:(dense|gated) (\d+)|(\d+)x(\d+)(?: leaf (\d+))?(?: ?\+ ?(\d+))?)")


@dataclasses.dataclass(frozen=True)
class Training:
    """The settings that pretrain and distill share: where a run lives, how long it is, how it learns, and from which text."""

    out: str = option(help="folder of the run, new or with --resume")
    steps: int | None = option(None, "length of the run in steps")
    seconds: float | None = option(
        None,
        "length of the run in seconds, counted from the end of the first step where that compiles; with both, the run ends by the one "
        "that is reached first",
    )
    seed: int = option(0, "seed of the weights, of the batches and of dropout")
    batch_tokens: int = option(49152, "tokens of a batch, padding and all processes included")
    lr: float = option(1e-3, "peak learning rate of feedforwards")
    lr_rest: float = option(2e-4, "peak learning rate of everything else")
    warmup: int = option(200, "steps until the learning rate's peak; then it follows a cosine to zero")
    weight_decay: float = option(0.01, "weight decay of AdamW, for matrices and trees")
    clip: float = option(1.0, "largest norm of the gradient")
    accumulate: int = option(
        1, "parts that a batch is computed in, one after the other, which takes less memory; the loss is the mean of the parts'"
    )
    memory: float | None = option(None, "GB of memory that a run on a CPU may take (default: those that are available)")
    balance: float = option(0.0, "weight of the loss that balances decisions")
    report_every: int = option(100, "steps between lines of metrics")
    validate_every: int = option(1000, "steps between validations; one more comes at the end")
    save_every: float = option(300.0, "seconds between saved states; one more is saved at the end")
    device: str = option("auto", "cpu, cuda, or auto: a GPU where there is one")
    bfloat16: bool | None = option(None, "autocast to bfloat16 (default: on a GPU)")
    compile: bool | None = option(None, "compile feedforwards with torch.compile (default: on a GPU)")
    stored: str = option("float32", "dtype of the checkpoint that the run exports at its end: float32, float16, bfloat16 or int8")
    text: tuple[str, ...] = option((), "files to train on: .txt or .jsonl, perhaps with .gz or .xz")
    shape: str = option("1x11", 'feedforward: "PxD", "PxD leaf L" (L neurons a leaf), "PxD + W" (W always on), "dense W" or "gated W"')
    cache: str | None = option(None, "a .npz file that keeps the text's ids for the next run")


def parse_shape(shape: str) -> Dense | Gated | FFF:
    """The feedforward that a recipe's shape names: "1x11", "1x6 leaf 64 + 128", "dense 1536" or "gated 1024". Raises InputError."""
    found = SHAPE.fullmatch(shape)
    if not found:
        raise InputError(
            f'shape is {shape!r}, expected trees x depth such as "1x11", "1x6 leaf 64" with 64 neurons at each leaf, "1x11 + 64" with 64 '
            'neurons always on, or "dense 1536" or "gated 1024"'
        )
    kind, *sizes = found.groups()
    width, trees, depth, leaf, always = (int(n or 0) for n in sizes)
    if kind is None:
        return FFF(trees, depth, always, bias_out=True, leaf=1 if sizes[3] is None else leaf)
    return Dense(width) if kind == "dense" else Gated(width)


# --- the folder ------------------------------------------------------------------------------------


def open_run(recipe: Training, resume: bool, *models: str | None) -> tuple[Path, Workers]:
    """The folder of a run, made where it is new, and the processes that share it.

    models  names of the models that the run opens; None is left out

    Raises InputError for settings out of range, for files and models that do not exist, and where the folder holds another run and is not
    resumed: before anything is read. Raises OSError for a folder that cannot be written to.
    """
    if recipe.stored not in STORED:
        raise InputError(f"stored is {recipe.stored!r}, expected one of {', '.join(STORED)}{near(recipe.stored, STORED)}")
    parse_shape(recipe.shape)
    if recipe.steps is None and recipe.seconds is None:
        raise InputError("a run has neither steps nor seconds: set one of them")
    check_positive(recipe, "steps", "seconds", "batch_tokens", "accumulate", "memory", "report_every", "validate_every")
    for file in recipe.text:
        text_file(file)
    if recipe.cache and not recipe.cache.endswith(".npz"):
        raise InputError(f"cache is {recipe.cache!r}, expected the name of a .npz file")
    if not recipe.text and not (recipe.cache and Path(recipe.cache).exists()):
        raise InputError("there is no text to train on: name files with --text, or a cache that holds some")
    for model in filter(None, models):
        folder_of(model)
    folder = Path(recipe.out)
    if resume:
        load_state(folder)
    elif (folder / STATE).exists():
        raise InputError(f"{folder} holds a run already: go on with it by --resume, or name another folder")
    workers = Workers.start(recipe.device)
    for place in (folder, Path(recipe.cache).parent) if recipe.cache else (folder,):
        writable(place)
    return folder, workers


def check_positive(recipe: Any, *names: str) -> None:
    """Raise InputError for a setting with one of these names that is neither None nor above zero."""
    for name in names:
        value = getattr(recipe, name)
        if value is not None and value <= 0:
            raise InputError(f"{name} is {value}, expected a positive number")


def writable(folder: Path) -> None:
    """Make the folder where it does not exist. Raises OSError where it cannot be made or written to."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, "this folder cannot be written to", str(folder))


def check_memory(
    recipe: Training, workers: Workers, make: Callable[[], Objective], batches: Callable[[int], Sequence[memory.Batch]], rows: int
) -> None:
    """On a CPU, print how much memory the run takes. Raises InputError as memory.check does, whose arguments these are."""
    if workers.device.type != "cpu":
        return
    line = memory.check(
        make,
        batches,
        rows=max(1, rows // workers.world),
        accumulate=recipe.accumulate,
        size=("batch_tokens", recipe.batch_tokens),
        memory=recipe.memory,
        processes=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        bfloat16=bool(recipe.bfloat16),
        text=recipe.text,
    )
    if workers.rank == 0:
        print(line, flush=True)


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Replace folder/state.pt once the new state is written whole. Raises CheckpointError; the state before then survives."""
    path = folder / STATE
    try:
        with replacing(path) as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:  # PyTorch turns a full disk into a RuntimeError
        kept = "the state saved before it is as it was" if path.exists() else "no state had been saved before"
        raise CheckpointError(f"{path} could not be saved: {error}; {kept}") from error


def load_state(folder: Path) -> dict[str, Any]:
    """The last state of a run, on the CPU. Raises CheckpointError where the folder has none that can be read."""
    path = folder / STATE
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no {STATE}, expected the folder of a training run")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        Config.from_json(json.loads(state["config"]), str(path))
    except Exception as error:  # the type depends on what is broken
        raise CheckpointError(f"{path} is no state of a training run: {str(error).strip().partition(chr(10))[0]}") from None
    return state


def kept_recipe(folder: Path) -> dict[str, Any]:
    """The settings of the run in a folder, as its state has them. Raises CheckpointError as load_state does."""
    return {name: value for name, value in load_state(folder)["recipe"].items() if value is not None}


def trained(folder: Path) -> Encoder:
    """The encoder of a run's last state, on the CPU."""
    state = load_state(folder)
    encoder = Encoder(Config.from_json(json.loads(state["config"])))
    encoder.load_state_dict(state["encoder"])
    return encoder


def export(folder: Path, out: Path, stored: str) -> str:
    """Write a run's last state as a checkpoint folder that fastinfer.load opens; the text says what was made."""
    encoder = trained(folder)
    tokenizer = folder / "tokenizer.json"
    return _written(encoder, out, stored, tokenizer if tokenizer.exists() else None, "that of the run")


def average(sources: Sequence[Path], out: Path, stored: str) -> str:
    """Write the mean of the weights of several checkpoints of one shape as one; the text says what was made.

    That works for models that were trained from one start (Wortsman et al., 2022, "Model soups", arXiv 2203.05482).
    Raises InputError where shapes or tokenizers differ, and CheckpointError as checkpoint.load does.
    """
    models = [encoders.load(source) for source in sources]
    tokenizers = [source / "tokenizer.json" for source in sources]
    first, tokenizer = models[0], tokenizers[0].read_bytes() if tokenizers[0].exists() else None
    for source, model, path in zip(sources, models, tokenizers, strict=True):
        if model.config != first.config:
            raise InputError(f"the configurations of {sources[0]} and {source} differ, expected models of one shape")
        if (path.read_bytes() if path.exists() else None) != tokenizer:
            raise InputError(f"the tokenizers of {sources[0]} and {source} differ, expected models that read texts alike")
    states = [model.state_dict() for model in models]
    first.load_state_dict({name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]})
    return _written(first, out, stored, tokenizers[0] if tokenizer else None, f"that of {sources[0]}")


def _written(encoder: Encoder, out: Path, stored: str, tokenizer: Path | None, remark: str) -> str:
    """Write a checkpoint folder; the text says what was made. remark: what it says of the tokenizer."""
    encoders.save(encoder, out, stored=stored, tokenizer=tokenizer)
    config, weights = checkpoint.load(out)
    return summary(out, config, sum(t.nbytes for t in weights.values()), remark)


# --- the run ---------------------------------------------------------------------------------------


class Stopped(Exception):
    """A run was stopped by a signal. The message says what was kept and how to go on."""


class Run:
    """Watches the loop: reports, saves and validates between the steps, and ends the run after its steps or its seconds."""

    def __init__(self, descent: Descent, data: Data, recipe: Training, evaluate: Evaluate | None, *, resume: bool) -> None:
        self.descent, self.data, self.recipe, self.evaluate = descent, data, recipe, evaluate
        self.folder = Path(recipe.out)
        self.tokens, self.before = 0.0, 0.0  # tokens read so far; seconds of the processes before this one
        if resume:
            self._restore()
        self.report = Report(self.folder, descent.step, show=descent.workers.rank == 0)
        self.sums: dict[str, Tensor] = {}  # of the losses since step `since`
        self.since, self.first = descent.step, True
        self.stopped, self.saved_step = False, descent.step if resume else None
        self.started = self.saved = time.monotonic()

    def seconds(self) -> float:
        """Seconds that the run has trained, over all of its processes."""
        return self.before + time.monotonic() - self.started

    def share(self) -> float:
        """The part of the run that is done; 1 also where a signal has asked for the end."""
        recipe = self.recipe
        if self.stopped:
            return 1.0
        by_steps = self.descent.step / recipe.steps if recipe.steps else 0.0
        return max(by_steps, self.seconds() / recipe.seconds if recipe.seconds else 0.0)

    def after_step(self, losses: dict[str, Tensor]) -> None:
        """Add up the losses; report, save and validate when it is time to."""
        step, recipe, workers = self.descent.step, self.recipe, self.descent.workers
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().float()
        if self.first and recipe.seconds and compiles(recipe, workers):  # a step that compiles does not count
            if workers.device.type == "cuda":
                torch.cuda.synchronize()
            self.started, self.first = time.monotonic(), False
        self.report.bar(step, self.share(), losses["loss"], losses["tokens"])
        if step % recipe.report_every == 0:
            self._line()
            if workers.agreed(time.monotonic() - self.saved) > recipe.save_every:
                self.save()
                self.saved = time.monotonic()
        if step % recipe.validate_every == 0 and step != recipe.steps:
            self.validate()

    def validate(self) -> None:
        """Report the losses until now and the figures of a validation."""
        self._line()
        self.report.validation(validate(self.descent, self.data, self.evaluate))

    def save(self) -> None:
        """Replace the state in the folder by the present one; process 0 does so."""
        descent = self.descent
        if descent.workers.rank == 0:
            encoder = descent.objective.encoder
            rng_gpu = torch.cuda.get_rng_state() if descent.workers.device.type == "cuda" else None
            state = {"config": encoder.config.to_json(), "recipe": dataclasses.asdict(self.recipe), "encoder": encoder.state_dict()}
            state |= {"optimizer": descent.optimizer.state_dict(), "step": descent.step, "tokens": self.tokens, "seconds": self.seconds()}
            save_state(self.folder, state | {"rng": torch.get_rng_state(), "rng_gpu": rng_gpu})
        self.saved_step = descent.step

    def stop(self) -> Stopped:
        """Save the state after the last step. The result is the exception to raise."""
        self._line()
        self.save()
        return Stopped(
            f"stopped after step {self.descent.step}, whose state is kept in {self.folder}: go on with --out {self.folder} --resume"
        )

    def broken(self) -> Stopped:
        """The exception to raise where a step did not end."""
        if self.saved_step is None:
            return Stopped(f"interrupted in step {self.descent.step + 1}; no state was saved before")
        return Stopped(
            f"interrupted in step {self.descent.step + 1}; the state after step {self.saved_step} is kept in {self.folder}: "
            f"go on with --out {self.folder} --resume"
        )

    @contextlib.contextmanager
    def stoppable(self) -> Iterator[None]:
        """In this block, the first Ctrl-C or SIGTERM ends the run after the present step, and a second Ctrl-C at once."""
        if threading.current_thread() is not threading.main_thread():  # where signals cannot be handled
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def stop(number: int, _: Any) -> None:
            self.stopped = True
            self.report.say("stopping after this step; press Ctrl-C again to stop at once, without its result")
            for other, handler in before.items():
                signal.signal(other, handler)

        for number in before:
            signal.signal(number, stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _restore(self) -> None:
        descent, state = self.descent, load_state(self.folder)
        mine, theirs = descent.objective.encoder.config, Config.from_json(json.loads(state["config"]))
        if mine != theirs:
            found = ", ".join(f.name for f in dataclasses.fields(mine) if getattr(mine, f.name) != getattr(theirs, f.name))
            raise InputError(
                f"{self.folder} holds a run of a model that differs from the settings by {found}: resume with its own settings"
            )
        descent.objective.encoder.load_state_dict(state["encoder"])
        descent.optimizer.load_state_dict(state["optimizer"])
        descent.step, self.tokens, self.before = state["step"], state["tokens"], state["seconds"]
        torch.set_rng_state(state["rng"])
        if descent.workers.device.type == "cuda" and state["rng_gpu"] is not None:
            torch.cuda.set_rng_state(state["rng_gpu"])

    def _line(self) -> None:
        """Report the mean losses of the steps since the last line, where there are some."""
        step, workers = self.descent.step, self.descent.workers
        if step == self.since:
            return
        mean = workers.mean({name: value / (step - self.since) for name, value in self.sums.items()})
        self.tokens += mean.pop("tokens") * workers.world * (step - self.since)
        self.report.line(step, self.tokens, self.seconds(), self.descent.optimizer.param_groups[0]["lr"], mean)
        self.sums, self.since = {}, step


def compiles(recipe: Training, workers: Workers) -> bool:
    """Whether the first step compiles feedforwards."""
    return workers.device.type == "cuda" if recipe.compile is None else recipe.compile


def train(
    objective: Objective, data: Data, recipe: Training, workers: Workers, *, resume: bool = False, evaluate: Evaluate | None = None
) -> None:
    """Train objective.encoder as the recipe says, save its state, draw its losses, and export it beside its state.

    evaluate  more figures for each validation, from the encoder in evaluation mode
    """
    descent = Descent(objective, recipe, workers, warmup=recipe.warmup)
    torch.manual_seed(recipe.seed)
    run = Run(descent, data, recipe, evaluate, resume=resume)
    if compiles(recipe, workers):
        for layer in objective.encoder.layers:
            layer.ffn.compile(dynamic=False)
    try:
        with run.stoppable():
            fit(descent, data, run)
        if workers.agreed(run.stopped):
            raise run.stop()
        run.validate()
    except KeyboardInterrupt:
        raise run.broken() from None
    finally:
        run.report.close()
    run.save()
    if workers.rank == 0:
        run.report.summary()
        plot(run.folder)
        print(export(run.folder, run.folder / "model", recipe.stored))
